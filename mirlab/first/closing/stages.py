"""Clean captions, more alignment, new domains: findings 2 to 4 of arXiv 2503.19508.

Inspired by "Improved Alignment of Modalities in Large Vision Language Models", of which only the abstract is public to
us: what its stages train, on which data and for how long is not, so the arms are our reading.

- Finding 2, the language model converges faster on AI-generated (clean, detailed) data. Here: full captions, or short
  ones (colour and shape of each thing), each clean or with three words in ten wrong, at equal steps. Convergence is
  what equal steps are worth: perplexity on clean captions that were held out, and accuracy after stage 2.
- Finding 3, more work should be done in the alignment stage. Here: 3072 pictures in all, shared differently between
  stage 1 and stage 2; and four stages of alignment (see `mirlab.methods.stages`) against one of as many steps.
- Finding 4, the model adapts easily to a new domain. Here: neither stage has seen a digit; then comes a quarter of the
  length of stage 2 with questions about handwritten digits. As good as can be expected is what stage 2 on digits alone,
  four times as long, reaches.

The rows of the plain arms (clean and detailed captions, with 512 and 2048 pairs; the two one-stage alignments) were
there when this was written; no row of any other arm was, and nothing was tuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mirlab.first.outcomes import Part, above, below, shown
from mirlab.first.protocol import Protocol, arm
from mirlab.methods.stages import FourStages, NewDomain, NoisyCaptions
from mirlab.recipes import StageTwo

if TYPE_CHECKING:
    import pandas as pd

REGIME = "low"
PAIRS = 2048
NOISE = NoisyCaptions(rate=0.3)
SHARES = {"1024 + 2048": (1024, 2048), "2560 + 512": (2560, 512)}
"""Pictures of stage 1 and of stage 2, 3072 together; the plain run has 2048 + 1024."""
SHARED = ("shares, 1024 + 2048", "full, clean", "shares, 2560 + 512")
"""Arms with one budget, more of it in stage 1 from one to the next."""
NEAR = 0.05
"""By how much a short adaptation may fall behind."""

FASTER = "The language model converges faster on clean captions than on captions with wrong words"
RAW = "It converges faster on clean, detailed captions than on short ones with wrong words"
QUARTER = "A quarter of the pairs with clean captions is worth more than all with wrong words (not in the paper)"
WORK = "More work in the alignment stage pays, out of one budget of pictures"
FOUR = "Four stages of alignment are better than one with encoder and language model frozen"
AT_ONCE = "Four stages of alignment are better than one in which all learns from the start (not in the paper)"
ADAPTS = "The model adapts easily to a new domain of questions"
OURS = frozenset({QUARTER, AT_ONCE})
"""Claims that are not the paper's."""

_LAST_STAGE = {"unlock": "all", "unlock_encoder": True}

PROTOCOL = Protocol(
    name="stages",
    figure="Improved Alignment, findings 2 to 4",
    summary="Noisy captions, shares of alignment, four stages, a new domain (Improved Alignment, findings 2 to 4).",
    question="At equal steps, what do wrong words in the captions cost? Out of one budget, does more of stage 1 and "
    "less of stage 2 make a better model, and do four stages of alignment, from the connector alone to everything, "
    "beat one? Does a model that has never been asked about digits learn to answer about them in a few steps?",
    paper="The language model converges faster on AI-generated data; more work should be done in the alignment stage; "
    "the model can easily adapt to any downstream task like visual question answering on healthcare data (abstract of "
    "arXiv 2503.19508; no number).",
    primary="Differences of accuracy after stage 2 between two arms, within a seed; mean over seeds, bootstrap over "
    "seeds. For captions of one kind also the difference of perplexity on clean held-out captions of that kind. For "
    "the new domain the accuracy on questions about scenes of digits.",
    criteria={
        FASTER: "at equal steps, clean minus noisy, captions of one kind: interval of perplexity's difference below 0, "
        "of accuracy's above 0",
        RAW: "at equal steps: interval of accuracy's difference, clean full captions minus noisy short ones, above 0",
        QUARTER: "interval of accuracy's difference, 512 pairs of clean full captions minus 2048 of noisy ones, above "
        "0",
        WORK: "intervals of both differences of accuracy above 0: 2048 + 1024 pictures minus 1024 + 2048, and 2560 + "
        "512 minus 2048 + 1024",
        FOUR: "interval of accuracy's difference above 0, as many pairs and steps",
        AT_ONCE: "interval of accuracy's difference above 0, as many pairs and steps",
        ADAPTS: "accuracy on digits: interval of the gain by the short adaptation above 0; interval of its difference "
        f"from stage 2 on digits alone, four times as long, above −{NEAR}",
    },
    arms={
        "full, clean": arm(pairs=PAIRS, regime=REGIME),
        "full, clean, a quarter": arm(pairs=PAIRS // 4, regime=REGIME),
        "full, noisy": arm(pairs=PAIRS, regime=REGIME, method=NOISE),
        "mid, clean": arm(pairs=PAIRS, regime=REGIME, detail="mid"),
        "mid, noisy": arm(pairs=PAIRS, regime=REGIME, detail="mid", method=NOISE),
        **{
            f"shares, {name}": arm(pairs=pairs, regime=REGIME, stage_two=StageTwo(images=images))
            for name, (pairs, images) in SHARES.items()
        },
        "alignment, one stage, frozen": arm(pairs=PAIRS),
        "alignment, one stage, all": arm(pairs=PAIRS, **_LAST_STAGE),
        "alignment, four stages": arm(pairs=PAIRS // 4, method=FourStages(), **_LAST_STAGE),
        "new domain": arm(pairs=PAIRS, regime=REGIME, method=NewDomain()),
    },
)


def adaptation(rows: Any) -> dict[int, dict[str, dict[str, float]]]:
    """By seed, what the runs of the new domain said: by time (see `NewDomain`) the accuracy in each domain."""
    found = {
        row["configuration"]["seed"]: row["metrics"]["after_stage_one"]
        for row in rows
        if row["experiment"] == PROTOCOL.name and row.get("arm") == "new domain"
    }
    return dict(sorted(found.items()))


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first.tables import cells, difference

    def claim(paper: str, number: int, condition: str, first: str, second: str, *, perplexity: bool = False) -> None:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            parts = [above("accuracy changes by", difference(table, first, second, "accuracy", seeds))]
            change = difference(table, first, second, "perplexity", seeds)
            if perplexity:
                parts.append(below("perplexity on clean captions by", change))
            return [*parts, shown("MIR by", difference(table, first, second, "mir", seeds))]

        at.claim(f"Improved Alignment, finding {number}", paper, condition, [first, second], decide)

    for detail in ("full", "mid"):
        claim(FASTER, 2, f"{detail} captions", f"{detail}, clean", f"{detail}, noisy", perplexity=True)
    claim(RAW, 2, "", "full, clean", "mid, noisy")
    claim(QUARTER, 2, "", "full, clean, a quarter", "full, noisy")

    def more_work(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
        less, base, more = cells(table, SHARED, "accuracy", seeds)
        return [
            above("accuracy changes with 2048 + 1024 pictures instead of 1024 + 2048 by", base - less),
            above("with 2560 + 512 instead of 2048 + 1024 by", more - base),
        ]

    at.claim("Improved Alignment, finding 3", WORK, "", SHARED, more_work)
    claim(FOUR, 3, "", "alignment, four stages", "alignment, one stage, frozen")
    claim(AT_ONCE, 3, "", "alignment, four stages", "alignment, one stage, all")

    def adapts(_: pd.DataFrame, seeds: list[int]) -> list[Part]:
        found = adaptation(at.rows)

        def of(time: str, domain: str) -> np.ndarray:
            return np.array([found[seed][time][domain] for seed in seeds])

        return [
            above(
                "the short adaptation changes the accuracy on digits by", of("short", "digits") - of("before", "digits")
            ),
            above(
                "its difference from stage 2 on digits alone is",
                of("short", "digits") - of("direct", "digits"),
                limit=-NEAR,
            ),
            shown("the accuracy on shapes changes by", of("short", "shapes") - of("before", "shapes")),
        ]

    at.claim("Improved Alignment, finding 4", ADAPTS, "", ["new domain"], adapts)
