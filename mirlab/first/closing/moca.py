"""Does a scale and a shift for vision rows lower MIR and raise accuracy, and do plainer norms do as much (Table 5)?

Nothing was tuned: MoCa and the LayerNorm learn at the connector's rate in stage 1 and at that of stage 2 after it, and
everything else is as in the plain runs of the same regime. The plain arms (four, one of them
with matched norms at the high rate) are runs of other experiments, whose rows were there when this was written; no row
of any other arm was.

Of the claims, the paper makes two, MoCa lowers MIR and MoCa raises the average. A reviewer of it asked for the layers.
The claim on the LayerNorm is that of arXiv:2512.08374. All others are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mirlab.first.estimates import bootstrap, correlations
from mirlab.first.outcomes import ABOVE, BELOW, Part, above, below, follows, shown
from mirlab.first.protocol import HIGH_RATE, REGIMES, Protocol, arm
from mirlab.methods.moca import LayerNorm
from mirlab.recipes import Method

if TYPE_CHECKING:
    import pandas as pd

PAIRS = 2048

LOWERS = "MoCa lowers MIR"
RAISES = "MoCa raises the accuracy after stage 2"
LAYERS = "MoCa lowers the distance at every layer (asked by a reviewer; the paper is silent)"
LAYER_NORM = "One LayerNorm after the projector raises the accuracy (arXiv 2512.08374)"
MORE_ACCURATE = {
    "LayerNorm": "MoCa raises the accuracy more than one LayerNorm after the projector does (not in the paper)",
    "matched norms": "MoCa raises the accuracy more than matching the projector's norms does (not in the paper)",
}
LOWER = {
    "LayerNorm": "MoCa lowers MIR more than one LayerNorm after the projector does (not in the paper)",
    "matched norms": "MoCa lowers MIR more than matching the projector's norms does (not in the paper)",
}
START = "It makes no difference whether MoCa starts with a spread of 0 or of 0.02 (the authors' code has both)"
RANKS = "MIR ranks plain, MoCa, LayerNorm and matched norms as accuracy does (not in the paper)"

OURS = frozenset({LAYERS, LAYER_NORM, *MORE_ACCURATE.values(), *LOWER.values(), START, RANKS})
"""Claims that are not the paper's."""

SAME = {"mir": 0.05, "accuracy": 0.015}
"""How near two starts must be to make no difference: a quarter of the paper's fall of MIR, and its gain in accuracy."""

RATES = {
    "high": {
        "plain": "high, plain",
        "MoCa": "high, MoCa",
        "LayerNorm": "high, LayerNorm",
        "matched norms": "matched high",
    },
    "low": {
        "plain": "low, plain",
        "MoCa": "low, MoCa",
        "LayerNorm": "low, LayerNorm",
        "matched norms": "matched, plain",
    },
}
"""Arms by learning rate and by what is done. With matched norms and the low rate a run is the regime ``matched``."""

PROTOCOL = Protocol(
    name="moca",
    figure="Table 5",
    summary="MoCa against plain, one LayerNorm, and matched norms (Table 5).",
    question="Does MoCa lower MIR, at every layer too, and raise the accuracy after stage 2, in each regime? Does it "
    "do more for either than one LayerNorm after the projector, or than a projector with matched norms? Does its start "
    "matter?",
    paper="MoCa lowers MIR from 3.374 to 3.162 and raises the average from 59.1 to 60.6 (LLaVA-1.5); 2.667 to 2.514 "
    "and 62.1 to 63.0 (Mini-Gemini).",
    primary="Difference of MIR (news) and of accuracy between two arms, within a seed; mean over seeds, bootstrap over "
    "seeds. By layer: difference of log10 of the layer's distance.",
    criteria={
        LOWERS: "interval of MIR's difference from the plain run below 0",
        RAISES: "interval of accuracy's difference from the plain run above 0",
        LAYERS: "for every layer, the interval of the difference of log10 of its distance from the plain run below 0",
        LAYER_NORM: "interval of accuracy's difference from the plain run above 0",
        **{
            claim: "interval of the difference of accuracy, MoCa minus the other, above 0"
            for claim in MORE_ACCURATE.values()
        },
        **{claim: "interval of the difference of MIR, MoCa minus the other, below 0" for claim in LOWER.values()},
        START: f"interval of the difference of MIR within ±{SAME['mir']}, that of accuracy within ±{SAME['accuracy']}",
        RANKS: "mean correlation at most −0.8, interval below 0, over the four ways at one learning rate",
    },
    arms={
        **{f"{regime}, plain": arm(pairs=PAIRS, regime=regime) for regime in REGIMES},
        "matched high": arm(pairs=PAIRS, regime="matched", learning_rate=HIGH_RATE),
        **{f"{regime}, MoCa": arm(pairs=PAIRS, regime=regime, method=Method("moca", std=0.0)) for regime in REGIMES},
        **{f"{rate}, LayerNorm": arm(pairs=PAIRS, regime=rate, method=LayerNorm()) for rate in RATES},
        "low, MoCa 0.02": arm(pairs=PAIRS, regime="low", method=Method("moca", std=0.02)),
    },
)


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first.tables import cells, difference

    def claim(paper: str, condition: str, first: str, second: str, decide: Callable[..., list[Part]]) -> None:
        """`decide` gets a function from a column of the table to the first arm minus the second, by seed."""

        def parts(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            return decide(lambda column: difference(table, first, second, column, seeds))

        at.claim("Table 5", paper, condition, [first, second], parts)

    against_plain = {regime: (f"{regime}, MoCa", f"{regime}, plain") for regime in REGIMES}
    for regime, (first, second) in against_plain.items():
        claim(
            LOWERS,
            regime,
            first,
            second,
            lambda of: [below("MIR changes by", of("mir")), shown("the norm ratio of layer 1 by", of("norm_ratio"))],
        )
    for regime, (first, second) in against_plain.items():
        claim(RAISES, regime, first, second, lambda of: [above("accuracy changes by", of("accuracy"))])
    for regime, arms in against_plain.items():

        def by_layer(_: pd.DataFrame, seeds: list[int], arms: tuple[str, str] = arms) -> list[Part]:
            first, second = (layers(at.rows, arm, seeds) for arm in arms)
            return [below(f"layer {k}", change) for k, change in enumerate((first - second).T, start=1)]

        at.claim("Table 5", LAYERS, regime, list(arms), by_layer)
    for rate, ways in RATES.items():
        claim(
            LAYER_NORM,
            rate,
            ways["LayerNorm"],
            ways["plain"],
            lambda of: [above("accuracy changes by", of("accuracy")), shown("MIR by", of("mir"))],
        )
    for other, paper in MORE_ACCURATE.items():
        for rate, ways in RATES.items():
            claim(paper, rate, ways["MoCa"], ways[other], lambda of: [above("difference of accuracy", of("accuracy"))])
    for other, paper in LOWER.items():
        for rate, ways in RATES.items():
            claim(paper, rate, ways["MoCa"], ways[other], lambda of: [below("difference of MIR", of("mir"))])

    def alike(of: Callable[[str], np.ndarray]) -> list[Part]:
        found = []
        for column, name in (("mir", "MIR"), ("accuracy", "accuracy")):
            change = bootstrap(of(column))
            found += [
                Part(f"difference of {name}, {limit}", change, side, limit=-side * SAME[column], digits=3)
                for side, limit in ((BELOW, f"held below {SAME[column]}"), (ABOVE, f"held above −{SAME[column]}"))
            ]
        return found

    claim(START, "low", "low, MoCa 0.02", "low, MoCa", alike)
    for rate, ways in RATES.items():

        def ranks(table: pd.DataFrame, seeds: list[int], ways: dict[str, str] = ways) -> list[Part]:
            mir, accuracy = (cells(table, list(ways.values()), column, seeds) for column in ("mir", "accuracy"))
            return [follows("correlation of MIR with accuracy over the four", correlations(mir, accuracy))]

        at.claim("Table 5", RANKS, rate, list(ways.values()), ranks)


def layers(rows: list[dict[str, Any]], arm: str, seeds: list[int]) -> np.ndarray:
    """log10 of the distance of every layer of the runs of an arm, (seeds, K), from rows of the ledger."""
    found = {row["configuration"]["seed"]: row for row in rows if row.get("arm") == arm}
    return np.log10([found[seed]["metrics"]["mir"]["per_layer"] for seed in seeds])
