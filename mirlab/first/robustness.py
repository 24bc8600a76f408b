"""What moves the MIR of one model: numbers and conclusions from the rows of `robustness` and `data_scale`.

Everything here takes rows as they are in the ledger, none, some or all of them, and says nothing about what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mirlab.first.estimates import Estimate, bootstrap, correlations
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, UNDECIDED, Claim
from mirlab.first.protocols import MOVED, PROTOCOLS
from mirlab.first.reporting import listed
from mirlab.first.tables import Row, arms_of, cells, complete_seeds, frame, is_run
from mirlab.first.verdicts import is_enough

LIMIT = 0.25
"""A claim that MIR hardly moves holds if the interval of its range lies below so many units; see the protocol."""

DIFFERENCES = {"template": ("plain", "chat"), "relevance": ("other", "own"), "seen": ("unseen", "seen")}
"""What is changed in one step: the first less the second."""


def by_regime(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Runs of the protocol `robustness` by regime, in the order of the seeds; a regime without runs is left out."""
    found: dict[str, list[Row]] = {regime: [] for regime in PROTOCOLS["robustness"].arms}
    for row in rows:
        if row["experiment"] == "robustness" and is_run(row):
            found[row["arm"]].append(row)
    return {regime: sorted(own, key=_seed) for regime, own in found.items() if own}


def _seed(row: Row) -> int:
    return row["configuration"]["seed"]


def by_parts(rows: Sequence[Row]) -> dict[int, list[int]]:
    """Places of the rows by set of parts: which encoder and language model a run stands on."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["configuration"]["parts"], []).append(place)
    return dict(sorted(places.items()))


# ---------------------------------------------------------------------------------------------------------------------
# The unit


@dataclass(frozen=True)
class Unit:
    """The unit of a regime: highest minus lowest MIR over the amounts of data of `data_scale`.

    Attributes:
        by_seed: The unit of each seed that has all amounts.
        accuracy: Rank correlation of MIR with accuracy over the amounts, mean over seeds.
        pairs: That with the number of pairs.
        length: How far the span of the norm-only baseline lies from the unit, at most, over the seeds.
    """

    by_seed: dict[int, float]
    accuracy: Estimate
    pairs: Estimate
    length: float

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.by_seed.values())))


def units(scale_rows: Iterable[Row]) -> dict[str, Unit]:
    """The unit of each regime for which a seed of `data_scale` has all amounts of data."""
    table = frame(row for row in scale_rows if row["experiment"] == "data_scale")
    found = {}
    for regime in PROTOCOLS["robustness"].arms:
        arms = arms_of(PROTOCOLS["data_scale"], regime)
        seeds = complete_seeds(table, arms)
        if not seeds:
            continue
        mir, norm_only, accuracy, pairs = (
            cells(table, arms, column, seeds) for column in ("mir", "norm_only", "accuracy", "pairs")
        )
        spans = np.ptp(mir, axis=0)
        found[regime] = Unit(
            by_seed={seed: float(span) for seed, span in zip(seeds, spans, strict=True)},
            accuracy=bootstrap(correlations(mir, accuracy)),
            pairs=bootstrap(correlations(mir, pairs)),
            length=float(np.abs(np.ptp(norm_only, axis=0) - spans).max()),
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Kinds, and changes in one step


def grid_range(values: np.ndarray) -> np.ndarray:
    """Range over the kinds of the means over draws: (..., pictures, texts, draws) to (...)."""
    means = values.mean(axis=-1)
    return means.max(axis=(-2, -1)) - means.min(axis=(-2, -1))


def chance_range(values: np.ndarray, *, resamples: int = 400, seed: int = 0) -> np.ndarray:
    """The range over the kinds that the draws alone would give if no kind mattered.

    All kinds of text meet the same pictures in a draw, so what the pictures add goes through a whole row of the grid
    at once. Each resample therefore gives one normal weight to each draw of a row, the same for all its texts: its
    cell means vary, and vary together, as those of three fresh draws would.

    Args:
        values: (models, pictures, texts, draws), two draws at least.
        resamples: How many grids of nothing.
        seed: Of the weights.

    Returns:
        (models,) the mean range over the resamples.
    """
    left = values - values.mean(axis=-1, keepdims=True)
    draws = values.shape[-1]
    weights = np.random.default_rng(seed).normal(size=(resamples, 1, values.shape[1], 1, draws))
    means = (weights * left).sum(axis=-1) / np.sqrt(draws * (draws - 1))
    return np.ptp(means.reshape(resamples, len(values), -1), axis=-1).mean(axis=0)


def differences(rows: Sequence[Row], name: str) -> np.ndarray:
    """One of `DIFFERENCES`, model by model and draw by draw: (models, draws)."""
    first, second = DIFFERENCES[name]
    return np.array([np.subtract(row["metrics"][name][first], row["metrics"][name][second]) for row in rows])


def noise(values: np.ndarray) -> float:
    """Standard error, over the draws, of a mean over models and draws: (models, draws).

    The models of an experiment are measured with the same draws, and an interval over models does not know the luck
    that they share. Draws differ in it.

    Example:
        >>> round(noise(np.array([[0.0, 2.0, 4.0], [0.0, 2.0, 4.0]])), 4)
        1.1547
    """
    return float(values.mean(axis=0).std(ddof=1) / np.sqrt(values.shape[1]))


# ---------------------------------------------------------------------------------------------------------------------
# Number of samples


def by_count(rows: Sequence[Row]) -> pd.DataFrame:
    """One line for each number of samples N.

    Returns:
        Columns ``shift`` (mean less that at the largest N, over models and draws), ``error`` (its standard error over
        the draws, see `noise`), ``up`` (the number of models with a shift above 0) and ``deviation`` (standard
        deviation of a draw, mean over models).
    """
    counts = rows[0]["metrics"]["counts"]
    last = np.array([np.mean(row["metrics"]["counts"][max(counts, key=int)]) for row in rows])[:, None]
    lines = {}
    for number in sorted(counts, key=int):
        values = np.array([row["metrics"]["counts"][number] for row in rows])
        shift = values - last
        lines[int(number)] = {
            "shift": shift.mean(),
            "error": noise(shift),
            "up": int((shift.mean(axis=1) > 0).sum()),
            "deviation": values.std(axis=1, ddof=1).mean(),
        }
    return pd.DataFrame(lines).T.rename_axis("N")


def enough_from(counts: Mapping[str, Sequence[float]], unit: float) -> int | None:
    """The smallest N from which on *every* N meets the criterion of `mirlab.first.verdicts.samples_needed`.

    Example:
        >>> counts = {"1": [0.5, 0.5], "5": [0.3, 0.3], "20": [0.5, 0.52], "1000": [0.5, 0.5]}
        >>> enough_from(counts, unit=1.0)  # 1 passes by luck
        20
    """
    found = None
    for number in sorted(counts, key=int, reverse=True):
        if not is_enough(counts, number, unit):
            break
        found = int(number)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What came out


def side(claim: Claim) -> str:
    """On which side of its limit the interval of a claim lies.

    Returns:
        ``holds``, ``fails``, ``undecided`` (the limit lies inside) or ``not measured``.
    """
    return _SIDES[claim.outcome]


_SIDES = {REPRODUCED: "holds", OPPOSITE: "fails", UNDECIDED: "undecided", NOT_MEASURED: "not measured"}
"""What a claim that MIR hardly moves, or that samples are enough, has to say of its limit."""

_SHORT = {
    "pictures": "kind of picture",
    "texts": "kind of text",
    "kinds": "both kinds together",
    "template": "template",
    "relevance": "relevance",
    "seen": "seen or unseen",
}


def short(paper: str) -> str:
    """What a claim is about, in few words.

    Example:
        >>> short("MIR hardly moves with whether the data were trained on"), short("20 samples are enough")
        ('seen or unseen', '20 samples')
    """
    names = {MOVED[key]: name for key, name in _SHORT.items()}
    return names.get(paper, paper.removesuffix(" are enough"))


def conclusions(claims: Sequence[Claim]) -> list[str]:
    """What the claims come to, a sentence for each way in which the regimes agree or do not; [] if none was measured.

    Args:
        claims: Of `mirlab.first.verdicts.judge`, for `robustness`.
    """
    sides: dict[str, dict[str, str]] = {}
    for claim in claims:
        sides.setdefault(short(claim.paper), {})[claim.condition] = side(claim)
    groups: dict[str, list[str]] = {}
    for name, by in sides.items():
        holding = [regime for regime, one in by.items() if one == "holds"]
        rest = {regime: one for regime, one in by.items() if one != "holds"}
        if set(by.values()) == {"not measured"}:
            continue
        if not rest:
            groups.setdefault(_EVERYWHERE, []).append(name)
            continue
        if len(set(rest.values())) == 1 and len(rest) == len(by):
            (word,) = set(rest.values())
            note = f"{word} in both" if len(rest) == 2 else f"{word} in all"
        else:
            note = ", ".join(f"{one} in *{regime}*" for regime, one in rest.items())
        start = f"Reproduced in {listed([f'*{r}*' for r in holding])} alone" if holding else _NOWHERE
        groups.setdefault(start, []).append(f"{name} ({note})")
    ordered = sorted(groups.items(), key=lambda group: (group[0] == _NOWHERE) - (group[0] == _EVERYWHERE))
    return [f"{start}: {', '.join(names)}." for start, names in ordered]


_EVERYWHERE, _NOWHERE = "Reproduced in every regime tested", "Reproduced in none"


def about(regime: str, unit: Unit) -> str:
    """What the unit of a regime is made of, and which way MIR goes there, as a paragraph."""
    seeds = ", ".join(f"{span:.3f}" for span in unit.by_seed.values())
    found = {"the number of pairs": unit.pairs, "accuracy": unit.accuracy}
    ways = [f"{_way(one)} with {name} (rank correlation {one})" for name, one in found.items()]
    few = f" (provisional: {len(unit.by_seed)} of {SEEDS_NEEDED} seeds)" if len(unit.by_seed) < SEEDS_NEEDED else ""
    text = f"In the regime *{regime}* U is {unit.value:.3f}; by seed {seeds}{few}. Over the amounts of data MIR "
    text += f"{ways[0]}, and {ways[1]}. "
    text += f"The span of the norm-only baseline lies within {unit.length:.3f} of U in every seed"
    if unit.length < 0.05 * min(unit.by_seed.values()):
        return text + ": this U is a span of lengths."
    return text + ": this U is more than a span of lengths."


def _way(correlation: Estimate) -> str:
    if correlation.low > 0:
        return "rises"
    return "falls" if correlation.high < 0 else "has no clear trend"


def warnings(units: Mapping[str, Unit]) -> list[str]:
    """A sentence for each regime whose unit is not the difference between a bad and a good model, as MIR ranks them.

    Nothing is said from fewer than five seeds.
    """
    found = []
    for regime, unit in units.items():
        if len(unit.by_seed) < SEEDS_NEEDED:
            continue
        if unit.accuracy.low > 0:
            found.append(
                f"In *{regime}* MIR rises with accuracy, so the highest MIR of U belongs to the models that answer "
                "better: a small range in units of this U says little about an instrument for quality."
            )
        elif unit.accuracy.high >= 0:
            found.append(f"In *{regime}* MIR does not follow accuracy: U is no difference between bad and good there.")
    return found
