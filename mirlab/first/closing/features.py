"""Which of CLIP's features should a model read: all or one, before its output layer or behind it (EIM's Table 9)?

The paper changes both at once: from the one [CLS] vector behind CLIP's output layer, which ClipCap reads, to [CLS] and
all patches before it. Here the two are crossed. What stands for them is told in `mirlab.methods.features`; "all"
are the patches alone. The regime is that of the experiment ``eim``.

What to know of the miniature: its encoder was trained on groups of scenes that differ in one thing, so its [CLS] has to
hold what few captions tell apart; and it learnt a second task beside CLIP's, to tell what is in each cell of a picture
from the patches of the *last* layer. Those of a CLIP are asked nothing there. Both choices may cost less here.

The prefix connector was settled on seed 100, which no experiment uses, by the loss of stage 1 and by perplexity: with a
hidden layer of 128 and of 512 it trained without a jump at the regime's rate. The wider one came a little lower. It is
128, as in the plain connector, so that only the last layer is larger: 607 thousand parameters, where the plain
connector has 29 thousand. What one feature lacks, it does not lack for want of parameters. Two runs of seed 100 went to
their end, one plain and one with one feature behind the output layer, to show that all the code runs; nothing was
chosen by them. The runs of the plain arm are those of other experiments, whose rows were there; no row of any other arm
was.

Noted when all runs were there, with nothing changed by it. The paper's table has the two steps, too: 31.6 without the
output layer, 31.8 with all features behind it. What it calls the output layer is the linear map alone; here the linear
map is left out, and before and behind differ by depth and LayerNorm, so that claim does not test what the paper says of
the map. And "one" and "all" differ by their connector as well, which the last sentences of the paragraph on it above
see from one side only: what one feature has, it may have for the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirlab.first.outcomes import Part, above, shown
from mirlab.first.protocol import Protocol, arm
from mirlab.methods.features import Features

if TYPE_CHECKING:
    import pandas as pd

PAIRS, REGIME = 2048, "low"

ALL_BEFORE, ALL_BEHIND = "all, before the output layer", "all, behind the output layer"
ONE_BEFORE, ONE_BEHIND = "one, before the output layer", "one, behind the output layer"

MORE = "All of CLIP's features make a better model than one"
BEFORE = "Features before CLIP's output layer make a better model than those behind it"
WHOLE = "The whole change, from one feature behind the output layer to all before it, raises the accuracy"

_MORE = "interval of the difference of accuracy above 0"

PROTOCOL = Protocol(
    name="eim_features",
    figure="EIM, Table 9",
    summary="CLIP's features: all patches or one vector, before the output layer or behind it (EIM, Table 9).",
    question="Do all features of CLIP's vision tower make a better model than its one [CLS] vector? Are features "
    "before its output layer better than those behind it? What is the whole change worth that EIM makes to ClipCap, "
    "and what becomes of MIR?",
    paper="BLEU-4 on COCO with ClipCap: 31.2 with the one vector behind the output layer, 32.9 with all features "
    "before it; its largest single gain. Silent on MIR.",
    primary="Difference of accuracy after stage 2 between two arms within a seed; mean over seeds, bootstrap over "
    "seeds. Shown beside it and deciding nothing: the differences of MIR (news) and of perplexity on held-out "
    "captions, both after stage 1.",
    criteria={
        MORE: f"{_MORE}: all minus one, before the output layer and behind it, each by itself",
        BEFORE: f"{_MORE}: before minus behind, with all features and with one, each by itself",
        WHOLE: f"{_MORE}: all before the output layer, minus one behind it",
    },
    arms={
        ALL_BEFORE: arm(pairs=PAIRS, regime=REGIME),
        ALL_BEHIND: arm(pairs=PAIRS, regime=REGIME, method=Features("all", output_layer=True)),
        ONE_BEFORE: arm(pairs=PAIRS, regime=REGIME, method=Features("one")),
        ONE_BEHIND: arm(pairs=PAIRS, regime=REGIME, method=Features("one", output_layer=True)),
    },
)

AGAINST = {
    (MORE, "before the output layer"): (ALL_BEFORE, ONE_BEFORE),
    (MORE, "behind the output layer"): (ALL_BEHIND, ONE_BEHIND),
    (BEFORE, "with all features"): (ALL_BEFORE, ALL_BEHIND),
    (BEFORE, "with one feature"): (ONE_BEFORE, ONE_BEHIND),
    (WHOLE, ""): (ALL_BEFORE, ONE_BEHIND),
}
"""The two arms of each claim under each condition, the first minus the second."""


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first.tables import difference

    for (paper, condition), (first, second) in AGAINST.items():

        def decide(table: pd.DataFrame, seeds: list[int], pair: tuple[str, str] = (first, second)) -> list[Part]:
            return [
                above("accuracy changes by", difference(table, *pair, "accuracy", seeds)),
                shown("MIR by", difference(table, *pair, "mir", seeds)),
                shown("perplexity by", difference(table, *pair, "perplexity", seeds)),
            ]

        at.claim(PROTOCOL.figure, paper, condition, [first, second], decide)
