"""EIM's contrastive losses: alone, in segments, together, in another order, IE first (its Tables 3 to 8)."""

from mirlab.claims import ABOVE, Contrast
from mirlab.experiments import Experiment
from mirlab.recipes import Method, arm, plain


def _better(claim: str, first: str, second: str, source: str = "paper") -> Contrast:
    return Contrast(claim, source, first, second, "accuracy", ABOVE, 0.05)


EXPERIMENT = Experiment(
    name="eim",
    figure="EIM, Tables 3 to 8",
    summary="EIM's losses: alone, in segments, at once, in another order (EIM, Tables 3 to 8).",
    question="Do IE, ST and LM raise the accuracy after stage 2, alone and one after the other? Are segments better "
    "than all at once, than ST and LM in one segment, than the other order, than IE first? Is it more than "
    "a second epoch?",
    paper="BLEU-4 on COCO with ClipCap: each loss alone +.8 (ST), +.6 (LM), +1.6 (IE); features changed 32.9, and ST"
    " 33.1, and LM 33.5, and IE 33.9; all three in one stage 33.0; ST and LM together 32. Silent on MIR.",
    arms={
        "plain": plain(),
        "ST": arm(method=Method("eim", segments=("st",))),
        "LM": arm(method=Method("eim", segments=("lm",))),
        "IE": arm(method=Method("eim", final="ie")),
        "ST, LM": arm(method=Method("eim", segments=("st", "lm"))),
        "ST, LM, IE": arm(method=Method("eim", segments=("st", "lm"), final="ie")),
        "at once": arm(method=Method("eim", final="all")),
        "LM, ST": arm(method=Method("eim", segments=("lm", "st"))),
        "ST with LM": arm(method=Method("eim", segments=("st+lm",))),
        "IE, ST, LM": arm(method=Method("eim", segments=("ie", "st", "lm"))),
        "two epochs": arm(epochs=2),
    },
    claims=(
        _better("ST alone raises the accuracy", "ST", "plain"),
        _better("LM alone raises the accuracy", "LM", "plain"),
        _better("IE alone raises the accuracy", "IE", "plain"),
        _better("LM after ST raises it further", "ST, LM", "ST"),
        _better("IE after both raises it further", "ST, LM, IE", "ST, LM"),
        _better("Segments beat all three losses at once", "ST, LM, IE", "at once"),
        _better("ST before LM beats LM before ST", "ST, LM", "LM, ST"),
        _better("ST before LM beats both in one segment", "ST, LM", "ST with LM", "paper, Table 6"),
        _better("IE at the end beats IE at the start", "ST, LM, IE", "IE, ST, LM", "paper, Table 8"),
        _better("The segments raise the accuracy more than a second epoch does", "ST, LM", "two epochs", "ours"),
    ),
)
