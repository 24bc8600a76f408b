"""Every measure of the gap on the same models: which of them ranks models as accuracy after stage 2 does?

Written before any run of it was made. Its models are runs of other experiments, whose accuracies and whose MIR were in
the ledger by then, and had been looked at; no other measure had been taken of any of them. What the code does was tried
on seed 100 and on the miniature that ships with the library; nothing was chosen by its outcome.

That MIR follows norms and learning rates more than accuracy was known from those experiments. So six measures that do
not know norms are expected to do better than it. All others are shown beside them and judged by nobody.

Six claims at 95 % each are a family, and the intervals are not widened for it: five seeds leave no room for a
correction (the narrowest statement that they allow is that all five agree, which chance alone brings in 1 of 32 cases).
By chance alone about one in seven of such families would hold a claim whose interval, at its nominal 95 %, lies above 0
(six times 2.5 %); intervals from five seeds are narrower than nominal, so count on more, and read a single claim that
stands alone with that in mind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mirlab.first.estimates import correlations
from mirlab.first.outcomes import Part, above, follows, shown
from mirlab.first.protocol import HIGH_RATE, REGIMES, Protocol, arm

if TYPE_CHECKING:
    import pandas as pd

PAIRS = (512, 2048)

EXPECTED = {
    "modality_gap": "The modality gap of unit vectors ranks models better than MIR",
    "ima": "The cosine of the means (IMA) ranks models better than MIR",
    "a_score": "The A-score ranks models better than MIR",
    "rmg": "The relative modality gap of captioned pictures ranks models better than MIR",
    "cka_debiased": "Debiased CKA of captioned pictures, calibrated, ranks models better than MIR",
    "mutual_knn": "Mutual k-NN of captioned pictures, calibrated, ranks models better than MIR",
}
"""Claims of the experiment, by the measure that is expected to do better."""

MIR_FOLLOWS = "MIR follows the accuracy after stage 2 over all settings"
OURS = frozenset(EXPECTED.values())
"""Claims that are no paper's."""

LEAKED = "the captions were read behind their pictures, which leak into them; to be run again with the captions alone"
"""Why claims on measures of pairs are not judged from these rows."""

SWEEPS = {
    "data": [f"{regime}, {pairs} pairs" for regime in REGIMES for pairs in PAIRS],
    "rate and norms": ["high, 2048 pairs", "low, 2048 pairs", "matched, 2048 pairs", "matched high, 2048 pairs"],
    "captions": [f"{regime}, {level}" for regime in ("high", "matched") for level in ("brief captions", "mid captions")]
    + ["high, 2048 pairs", "matched, 2048 pairs"],
    "connectors": ["matched, mlp1", "matched, 2048 pairs", "matched, mlp4", "matched, qformer"],
}
"""Arms by what is varied; an arm may stand in several."""

PROTOCOL = Protocol(
    name="zoo",
    figure="reviewers' questions",
    summary="Seventeen measures of the gap on the same models: which ranks them as accuracy does?",
    question="Which measure of the gap ranks models as their accuracy after stage 2 does, over all settings and within "
    "each sweep? Which measures agree with each other, what does each cost, and how far is it off with 100 samples?",
    paper="MIR follows performance. Why a Fréchet distance rather than another measure is a question that reviewers "
    "asked and the paper leaves open.",
    primary="Spearman correlation with the accuracy after stage 2 over all fourteen settings within a seed, of a "
    "measure turned so that more is better integrated; mean over seeds, bootstrap over seeds. Between two measures: "
    "the difference of these correlations, paired within seed, signs included. Measures of clouds: 100 pictures of "
    "scenes and 100 news; measures of pairs: 100 held-out scenes and their own captions. Of CKA, SVCCA and mutual "
    "k-NN the value calibrated by random pairings counts.",
    criteria={
        MIR_FOLLOWS: "mean correlation of MIR with accuracy, not turned, at most −0.8, interval below 0",
        **dict.fromkeys(
            EXPECTED.values(),
            "correlation of the measure with accuracy minus that of MIR, both turned so that more is better "
            "integrated, paired within seed: interval above 0 (six claims, not corrected for their number)",
        ),
    },
    arms={
        **{
            f"{regime}, {pairs} pairs": arm(
                pairs=pairs, regime=regime, study="zoo_samples" if (regime, pairs) == ("matched", 2048) else "zoo"
            )
            for regime in REGIMES
            for pairs in PAIRS
        },
        "matched high, 2048 pairs": arm(pairs=2048, regime="matched", learning_rate=HIGH_RATE, study="zoo"),
        **{
            f"{regime}, {detail} captions": arm(pairs=2048, regime=regime, detail=detail, study="zoo")
            for regime in ("high", "matched")
            for detail in ("brief", "mid")
        },
        **{
            f"matched, {connector}": arm(pairs=2048, connector=connector, study="zoo")
            for connector in ("mlp1", "mlp4", "qformer")
        },
    },
)


def with_accuracy(found: pd.DataFrame, arms: list[str], name: str, seeds: list[int]) -> np.ndarray:
    """Within each seed, the rank correlation of a measure with accuracy; positive if better integrated is better.

    Args:
        found: `mirlab.zoo.table`.
        arms: Over which settings.
        name: The measure.
        seeds: Which seeds.
    """
    from mirlab.first import zoo_table as zoo

    values, accuracy = (zoo.grid(found, arms, column, seeds) for column in (name, "accuracy"))
    return correlations(zoo.integrated(name) * values, accuracy)


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first import zoo_table as zoo

    found = zoo.table(at.rows)
    arms = list(at.protocol.arms)

    def known(seed: int) -> bool:
        """Whether the runs that its runs repeat are in the ledger, too."""
        return len(found) > 0 and set(found[found["seed"] == seed]["arm"]) == set(arms)

    def mir_follows(_: pd.DataFrame, seeds: list[int]) -> list[Part]:
        parts = [follows("correlation over all settings", -with_accuracy(found, arms, "mir", seeds))]
        return parts + [
            shown(f"over {sweep}", -with_accuracy(found, some, "mir", seeds), 2) for sweep, some in SWEEPS.items()
        ]

    at.claim("Fig. 1", MIR_FOLLOWS, "", arms, mir_follows, complete=known)
    for name, paper in EXPECTED.items():

        def better(_: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            def gain(some: list[str]) -> np.ndarray:
                return with_accuracy(found, some, name, seeds) - with_accuracy(found, some, "mir", seeds)

            parts = [above("difference over all settings", gain(arms), 2)]
            parts.append(shown("its own correlation", with_accuracy(found, arms, name, seeds), 2))
            return parts + [shown(f"difference over {sweep}", gain(some), 2) for sweep, some in SWEEPS.items()]

        void = LEAKED if name in zoo.LEAKED else ""
        at.claim("reviewers' questions", paper, "", arms, better, complete=known, void=void)
