"""EIM's contrastive losses: alone, in segments, together, in another order, IE first (its Tables 3 to 8).

The arms on the order of the losses were declared with the others and put off. When their turn came, the sets of parts
of the first arms were gone, so they run on six sets of their own, and ST and LM in segments, with which they are
compared, runs there again. Claims, ceilings and Holm's family of ten are those of the first declaration. Four runs on
the first sets (ST, LM, IE and all at once, two seeds each) were taken out of the ledger at the same time, since the
arms of a claim have to share their sets; they are in the ledger's history.
"""

from functools import partial

from mirlab.claims import better
from mirlab.experiments import Experiment
from mirlab.recipes import LATER_PARTS, Method, arm, plain

on_other_sets = partial(arm, parts=LATER_PARTS)

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
        "ST, LM again": on_other_sets(method=Method("eim", segments=("st", "lm"))),
        "ST, LM, IE": on_other_sets(method=Method("eim", segments=("st", "lm"), final="ie")),
        "at once": on_other_sets(method=Method("eim", final="all")),
        "LM, ST": on_other_sets(method=Method("eim", segments=("lm", "st"))),
        "ST with LM": on_other_sets(method=Method("eim", segments=("st+lm",))),
        "IE, ST, LM": on_other_sets(method=Method("eim", segments=("ie", "st", "lm"))),
        "two epochs": arm(epochs=2),
    },
    claims=(
        better("ST alone raises the accuracy", "paper", "ST", "plain"),
        better("LM alone raises the accuracy", "paper", "LM", "plain"),
        better("IE alone raises the accuracy", "paper", "IE", "plain"),
        better("LM after ST raises it further", "paper", "ST, LM", "ST"),
        better("IE after both raises it further", "paper", "ST, LM, IE", "ST, LM again"),
        better("Segments beat all three losses at once", "paper", "ST, LM, IE", "at once"),
        better("ST before LM beats LM before ST", "paper", "ST, LM again", "LM, ST"),
        better("ST before LM beats both in one segment", "paper, Table 6", "ST, LM again", "ST with LM"),
        better("IE at the end beats IE at the start", "paper, Table 8", "ST, LM, IE", "IE, ST, LM"),
        better("The segments raise the accuracy more than a second epoch does", "ours", "ST, LM", "two epochs"),
    ),
)
