"""Do the three contrastive losses of EIM make a better model, alone, in segments, or all at once (its Tables 3 to 7)?

Before this was written the losses were tried on seed 100, which no experiment uses: that the loss of each segment falls
below chance, and that the language model still reads words after the segment LM at the rate of stage 2 (it answered
99 % of questions about textual scenes). One run of 64 pairs on seed 101 showed that all the code runs, to its accuracy
on ten scenes; nothing was chosen by it. The text tower that gives the keys of IE was made smaller until it took 13 s,
with as many fresh captions found as before. The runs of the plain arm are those of other experiments, whose rows were
there; no row of any other arm was.

The regime is that of a plain MLP at the low rate, which is nearest to the models of the paper: none of them matches
norms. Two arms are controls that the paper does not have. IE opens the encoder to the base loss too, so ``encoder``
opens it without IE. Segments cost steps, so ``two epochs`` spends as many steps on a second pass of stage 1 as one
segment takes.

What is not measured: BLEU-4. Captions are judged by perplexity on held-out captions after stage 1, which the claims do
not hang on. The use of CLIP's features (Table 9) has an experiment of its own, `mirlab.first.closing.features`; here
all arms read all patches before the output layer, which is what EIM changes ClipCap to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirlab.first.outcomes import Part, above, below, shown
from mirlab.first.protocol import Protocol, arm
from mirlab.methods.eim import EIM

if TYPE_CHECKING:
    import pandas as pd

PAIRS, REGIME = 2048, "low"

ALONE = "Each of the three losses alone raises the accuracy"
ADDED = "Each stage that is added raises the accuracy: ST, then LM, then IE"
SEGMENTED = "Segmented training beats all three losses in one stage"
ORDER = "ST before LM beats LM before ST"
TUNED = "IE raises the accuracy beyond training the encoder without it (not in the paper)"
LONGER = "ST and LM raise the accuracy more than a second epoch of stage 1 (not in the paper)"
LOWERS = "The segments before stage 1 lower MIR (not in the paper)"

OURS = frozenset({TUNED, LONGER, LOWERS})
"""Claims that are not the paper's."""

_MORE = "interval of the difference of accuracy above 0"

PROTOCOL = Protocol(
    name="eim",
    figure="EIM, Tables 3–7",
    summary="Three contrastive losses: alone, in segments, in one stage, in the other order (EIM, Tables 3–7).",
    question="Do the contrastive losses IE, ST and LM raise the accuracy after stage 2, alone and one after the other? "
    "Is training in segments better than all three in one stage, and ST before LM better than LM before ST? Is it the "
    "losses, or the trained encoder and the longer training? Do the segments lower MIR?",
    paper="BLEU-4 on COCO with ClipCap: each loss alone +0.8 (ST), +0.6 (LM), +1.6 (IE); features changed 32.9, and ST "
    "33.1, and LM 33.5, and IE 33.9; all three in one stage 33.0. ST stands before LM. Silent on MIR.",
    primary="Difference of accuracy after stage 2 between two arms within a seed; mean over seeds, bootstrap over "
    "seeds. For MIR (news, after stage 1) likewise. Shown beside them and deciding nothing: perplexity of held-out "
    "captions after stage 1.",
    criteria={
        ALONE: f"{_MORE}, from the plain run; for each loss by itself",
        ADDED: f"{_MORE} for each of the three steps: ST minus plain, ST and LM minus ST, all three minus ST and LM",
        SEGMENTED: f"{_MORE}: ST, LM and then IE in stage 2, minus all three beside the base loss of stage 2",
        ORDER: f"{_MORE}: ST before LM, minus LM before ST",
        TUNED: f"{_MORE}: IE alone, minus the encoder trained in stage 2 by the base loss alone",
        LONGER: f"{_MORE}: ST and LM before one epoch of stage 1, minus two epochs without them",
        LOWERS: "interval of the difference of MIR from the plain run below 0; for ST, LM, and both in a row",
    },
    arms={
        "plain": arm(pairs=PAIRS, regime=REGIME),
        "ST": arm(pairs=PAIRS, regime=REGIME, method=EIM(segments=("st",))),
        "LM": arm(pairs=PAIRS, regime=REGIME, method=EIM(segments=("lm",))),
        "IE": arm(pairs=PAIRS, regime=REGIME, method=EIM(final="ie")),
        "ST, LM": arm(pairs=PAIRS, regime=REGIME, method=EIM(segments=("st", "lm"))),
        "ST, LM, IE": arm(pairs=PAIRS, regime=REGIME, method=EIM(segments=("st", "lm"), final="ie")),
        "one stage": arm(pairs=PAIRS, regime=REGIME, method=EIM(final="all")),
        "LM, ST": arm(pairs=PAIRS, regime=REGIME, method=EIM(segments=("lm", "st"))),
        "encoder": arm(pairs=PAIRS, regime=REGIME, method=EIM(final="encoder")),
        "two epochs": arm(pairs=PAIRS, regime=REGIME, epochs=2),
    },
)

LOSSES = ("ST", "LM", "IE")
STEPS = (("ST", "plain"), ("ST, LM", "ST"), ("ST, LM, IE", "ST, LM"))
"""Stages added one after the other: an arm, and the one before."""


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first.tables import difference

    def more_accurate(table_of: str, paper: str, condition: str, *pairs: tuple[str, str], perplexity: bool) -> None:
        """The first of each pair of arms answers better than the second."""

        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            found = []
            for first, second in pairs:
                gain = difference(table, first, second, "accuracy", seeds)
                found.append(above(f"accuracy, {first} minus {second},", gain))
                if perplexity:
                    found.append(shown("perplexity by", difference(table, first, second, "perplexity", seeds)))
            return found

        at.claim(table_of, paper, condition, list(dict.fromkeys(sum(pairs, ()))), decide)

    for loss in LOSSES:
        # IE acts in stage 2 alone, after perplexity is measured.
        more_accurate("EIM, Table 3", ALONE, loss, (loss, "plain"), perplexity=loss != "IE")
    more_accurate("EIM, Table 4", ADDED, "", *STEPS, perplexity=False)
    more_accurate("EIM, Table 5", SEGMENTED, "", ("ST, LM, IE", "one stage"), perplexity=False)
    more_accurate("EIM, Table 7", ORDER, "", ("ST, LM", "LM, ST"), perplexity=True)
    more_accurate("EIM", TUNED, "", ("IE", "encoder"), perplexity=False)
    more_accurate("EIM", LONGER, "", ("ST, LM", "two epochs"), perplexity=True)
    for name in ("ST", "LM", "ST, LM"):

        def lowers(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            return [
                below("MIR changes by", difference(table, name, "plain", "mir", seeds)),
                shown("the norm ratio of layer 1 by", difference(table, name, "plain", "norm_ratio", seeds)),
            ]

        at.claim("EIM", LOWERS, name, [name, "plain"], lowers)
