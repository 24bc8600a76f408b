"""EIM's contrastive losses: alone, in segments, together, in another order, IE first (its Tables 3 to 8)."""

from mirlab.claims import better
from mirlab.experiments import Experiment
from mirlab.recipes import Method, arm, plain

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
        better("ST alone raises the accuracy", "paper", "ST", "plain"),
        better("LM alone raises the accuracy", "paper", "LM", "plain"),
        better("IE alone raises the accuracy", "paper", "IE", "plain"),
        better("LM after ST raises it further", "paper", "ST, LM", "ST"),
        better("IE after both raises it further", "paper", "ST, LM, IE", "ST, LM"),
        better("Segments beat all three losses at once", "paper", "ST, LM, IE", "at once"),
        better("ST before LM beats LM before ST", "paper", "ST, LM", "LM, ST"),
        better("ST before LM beats both in one segment", "paper, Table 6", "ST, LM", "ST with LM"),
        better("IE at the end beats IE at the start", "paper, Table 8", "ST, LM, IE", "IE, ST, LM"),
        better("The segments raise the accuracy more than a second epoch does", "ours", "ST, LM", "two epochs"),
    ),
)
