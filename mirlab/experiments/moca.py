"""Does a scale and a shift for vision rows lower MIR and raise accuracy, and do plainer norms do as much (Table 5)?

MoCa's parameters learn at the connector's rate, as in the authors' code, or at a rate of their own, a tenth of it.
"""

from mirlab.claims import better, lower_mir
from mirlab.experiments import Experiment
from mirlab.experiments.hallucination import EXPERIMENT as HALLUCINATION
from mirlab.recipes import Method, arm, plain

AFTER = "ours, after arXiv 2512.08374"

EXPERIMENT = Experiment(
    name="moca",
    figure="Table 5",
    summary="MoCa against plain, one LayerNorm, and matched norms (Table 5).",
    question="Does MoCa lower MIR and raise the accuracy after stage 2? Does a rate of its own change that? Does it "
    "do more than one LayerNorm after the projector, or than matched norms?",
    paper="MoCa lowers MIR from 3.374 to 3.162 and raises the average from 59.1 to 60.6 (LLaVA-1.5); 2.667 to 2.514 "
    "and 62.1 to 63.0 (Mini-Gemini).",
    arms={
        "plain": plain(),
        "MoCa": arm(method=Method("moca")),
        "MoCa, own rate": arm(method=Method("moca", rate=8e-4)),
        "LayerNorm": arm(method=Method("layer_norm")),
        "matched norms": HALLUCINATION.arms["matched norms"],
    },
    claims=(
        lower_mir("MoCa lowers MIR", "paper, Table 5", "MoCa", "plain", -0.212),
        better("MoCa raises the accuracy", "paper, Table 5", "MoCa", "plain"),
        lower_mir("MoCa with a rate of its own lowers MIR", "ours", "MoCa, own rate", "plain", -0.212),
        better("MoCa with a rate of its own raises the accuracy", "ours", "MoCa, own rate", "plain"),
        better("One LayerNorm after the projector raises the accuracy", AFTER, "LayerNorm", "plain"),
        lower_mir("Matched norms lower MIR more than MoCa does", "ours", "matched norms", "MoCa", -0.7),
        better("MoCa makes a better model than matched norms", "ours", "MoCa", "matched norms", 0.1),
    ),
)
