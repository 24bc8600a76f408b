"""Is lower better, or does force make a model hallucinate?

MIR is forced down by a loss on itself, or falls with the lengths of vision tokens alone, where their norms are matched
to those of words. Questions about things that are absent say what that does: a model that sees less errs both ways, one
that hallucinates says yes. The deciding columns are probabilities of yes after stage 2, over four times as many scenes
as an accuracy has; ``text_preference`` and everything after stage 1 alone (``zero_shot_…``) are shown beside them.

arXiv 2405.16700 has a measure of alignment, IMA, go with accuracy, and the other way with hallucination. The question
is that of LAB's list, which sets arXiv 2605.08245 against it.
"""

from mirlab.claims import ABOVE, BELOW, Contrast, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import Method, arm, plain

LIGHT, STRONG = 0.1, 1.0
"""Weights of MIR as a loss."""

EXPERIMENT = Experiment(
    name="hallucination",
    figure="ours",
    summary="Yes to things that are absent, where MIR is forced down.",
    question="Does a model whose MIR is forced down hallucinate more, or less? Does it if only lengths are matched?",
    paper="The MIR paper is silent on hallucination.",
    arms={
        "plain": plain(),
        "MIR as a loss, light": arm(zoo=True, leaning=True, method=Method("gap", weight=LIGHT)),
        "MIR as a loss, strong": arm(zoo=True, leaning=True, method=Method("gap", weight=STRONG)),
        "matched norms": arm(zoo=True, leaning=True, norm_matched=True),
    },
    claims=(
        lower_mir("A strong loss lowers MIR", "ours", "MIR as a loss, strong", "plain", -0.7),
        lower_mir("Matched norms lower MIR", "ours", "matched norms", "plain", -0.7),
        *(
            Contrast(f"{name} more yes to absent things", "ours", first, "plain", "hallucinated", ABOVE, 0.05)
            for name, first in {
                "A light loss on MIR brings": "MIR as a loss, light",
                "A strong loss on MIR brings": "MIR as a loss, strong",
                "Matched norms bring": "matched norms",
            }.items()
        ),
        Contrast(
            "A strong loss on MIR makes the model err towards yes",
            "ours",
            "MIR as a loss, strong",
            "plain",
            "yes_bias",
            ABOVE,
            0.05,
        ),
        *(
            Contrast(
                f"{name} the balanced accuracy on what exists",
                "ours",
                first,
                "plain",
                "balanced_accuracy",
                BELOW,
                -0.05,
            )
            for name, first in {
                "A strong loss on MIR lowers": "MIR as a loss, strong",
                "Matched norms lower": "matched norms",
            }.items()
        ),
    ),
)
