"""Token weights (CAL, PRIOR), MIR as a loss, and the distance of tokens (ReGap)."""

from mirlab.claims import ABOVE, BELOW, Contrast
from mirlab.experiments import Experiment
from mirlab.experiments.hallucination import EXPERIMENT as HALLUCINATION
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
        Contrast("MIR as a light loss lowers MIR", "ours", "MIR as a loss, light", "plain", "mir", BELOW, -0.42),
        Contrast("MIR as a strong loss lowers MIR", "ours", "MIR as a loss, strong", "plain", "mir", BELOW, -0.7),
        Contrast(
            "MIR as a light loss raises the accuracy", "ours", "MIR as a loss, light", "plain", "accuracy", ABOVE, 0.05
        ),
        Contrast(
            "MIR as a strong loss raises the accuracy",
            "ours",
            "MIR as a loss, strong",
            "plain",
            "accuracy",
            ABOVE,
            0.05,
        ),
        Contrast(
            "The strong loss makes a better model than matched norms",
            "ours",
            "MIR as a loss, strong",
            "matched norms",
            "accuracy",
            ABOVE,
            0.09,
        ),
        Contrast("ReGap lowers MIR", "paper ReGap", "ReGap", "plain", "mir", BELOW, -0.7),
        Contrast("CAL raises the accuracy", "paper CAL", "CAL", "plain", "accuracy", ABOVE, 0.05),
        Contrast("PRIOR raises the accuracy", "paper PRIOR", "PRIOR", "plain", "accuracy", ABOVE, 0.05),
    ),
)
