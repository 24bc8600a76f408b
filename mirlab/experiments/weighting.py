"""Token weights (CAL, PRIOR), MIR as a loss, and the distance of tokens (ReGap)."""

from mirlab.claims import better, lower_mir
from mirlab.experiments import Experiment
from mirlab.experiments.hallucination import EXPERIMENT as HALLUCINATION
from mirlab.experiments.hallucination import LIGHT, MATCHED, STRONG
from mirlab.recipes import Method, arm

EXPERIMENT = Experiment(
    name="weighting",
    figure="CAL, PRIOR, ReGap",
    summary="Token weights (CAL, PRIOR), MIR as a loss, distance of tokens (ReGap).",
    question="Does it help to lower MIR by force, with a loss on the gap itself? Do weights for the words that need "
    "the picture raise the accuracy after stage 2?",
    paper="The MIR paper is silent on MIR as a loss. CAL, PRIOR and ReGap report gains on benchmarks of their own: "
    "the first two in accuracy, ReGap in safety at no cost in accuracy.",
    arms={
        **HALLUCINATION.arms,
        "ReGap": arm(method=Method("regap", weight=0.01)),
        "CAL": arm(method=Method("cal")),
        "PRIOR": arm(method=Method("prior")),
    },
    claims=(
        lower_mir("MIR as a light loss lowers MIR", "ours", LIGHT, "plain", -0.42),
        lower_mir("MIR as a strong loss lowers MIR", "ours", STRONG, "plain", -0.7),
        better("MIR as a light loss raises the accuracy", "ours", LIGHT, "plain"),
        better("MIR as a strong loss raises the accuracy", "ours", STRONG, "plain"),
        better("The strong loss makes a better model than matched norms", "ours", STRONG, MATCHED, 0.09),
        lower_mir("ReGap lowers MIR", "paper ReGap", "ReGap", "plain", -0.7),
        better("CAL raises the accuracy", "paper CAL", "CAL", "plain"),
        better("PRIOR raises the accuracy", "paper PRIOR", "PRIOR", "plain"),
    ),
)
