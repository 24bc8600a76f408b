"""Is lower better, or does force make a model hallucinate?

MIR is forced down by a loss on itself, or falls with the lengths of vision tokens alone, where their norms are matched
to those of words. Questions about things that are absent say what that does: a model that sees less errs both ways, one
that hallucinates says yes. The deciding columns are probabilities of yes after stage 2, over four times as many scenes
as an accuracy has; ``text_preference`` and everything after stage 1 alone (``zero_shot_…``) are shown beside them.

arXiv 2405.16700 has a measure of alignment, IMA, go with accuracy, and the other way with hallucination. The question
is that of LAB's list, which sets arXiv 2605.08245 against it.
"""

from mirlab.claims import ABOVE, BELOW, Contrast
from mirlab.experiments import Experiment
from mirlab.recipes import Method, arm, plain

LIGHT, STRONG, MATCHED = "MIR as a loss, light", "MIR as a loss, strong", "matched norms"

CLAIMS = (
    ("A strong loss lowers MIR", STRONG, "mir", BELOW, -0.7),
    ("Matched norms lower MIR", MATCHED, "mir", BELOW, -0.7),
    ("A light loss on MIR brings more yes to absent things", LIGHT, "hallucinated", ABOVE, 0.05),
    ("A strong loss on MIR brings more yes to absent things", STRONG, "hallucinated", ABOVE, 0.05),
    ("Matched norms bring more yes to absent things", MATCHED, "hallucinated", ABOVE, 0.05),
    ("A strong loss on MIR makes the model err towards yes", STRONG, "yes_bias", ABOVE, 0.05),
    ("A strong loss on MIR lowers the balanced accuracy on what exists", STRONG, "balanced_accuracy", BELOW, -0.05),
    ("Matched norms lower the balanced accuracy on what exists", MATCHED, "balanced_accuracy", BELOW, -0.05),
)
"""All are about an arm against the plain one."""

EXPERIMENT = Experiment(
    name="hallucination",
    figure="ours",
    summary="Yes to things that are absent, where MIR is forced down.",
    question="Does a model whose MIR is forced down hallucinate more, or less? Does it if only lengths are matched?",
    paper="The MIR paper is silent on hallucination.",
    arms={
        "plain": plain(),
        LIGHT: arm(zoo=True, leaning=True, method=Method("gap", weight=0.1)),
        STRONG: arm(zoo=True, leaning=True, method=Method("gap", weight=1.0)),
        MATCHED: arm(zoo=True, leaning=True, norm_matched=True),
    },
    claims=tuple(Contrast(claim, "ours", first, "plain", *rest) for claim, first, *rest in CLAIMS),
)
