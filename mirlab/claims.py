"""Claims as data, and the one place where a word is put to them.

A claim is written down before its runs. It comes to one number a seed (a difference of two arms, an effect of a
factorial design, a rank correlation over arms), and is judged by the mean of these, Student's t, and Holm's procedure
over all claims of its experiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mirlab import statistics
from mirlab.statistics import ABOVE, BELOW, LEVEL, Estimate, Spread, spearman_within
from mirlib.errors import MirlibError

SEEDS = 6
"""Seeds that a verdict needs, unless an experiment was declared with another number."""

FAIR = 0.8
"""A claim that an oracle meets less often than this is not testable here."""

REPRODUCED, NO_CHANGE = "reproduced", "no change"
OPPOSITE, FALLS_SHORT, UNDECIDED = "the opposite", "falls short", "undecided"
NOT_TESTABLE, NOT_MEASURED = "not testable here", "not measured"

Columns = Mapping[str, np.ndarray]
"""Columns by name, (..., seeds, arms), the arms being those of the claim."""


@dataclass(frozen=True)
class Claim:
    """What all claims have: a name, the claim in words, and a source, such as ``paper, Table 2`` or ``ours``."""

    name: str
    source: str

    step = 0.0  # smallest difference of two seeds' numbers where these are discrete

    def __post_init__(self) -> None:
        if not self.source.startswith(("paper", "ours")):
            raise ValueError(f"the source of a claim begins with 'paper' or 'ours', not {self.source!r}")
        if self.side not in (BELOW, ABOVE):
            raise ValueError(f"the side of a claim is {BELOW!r} or {ABOVE!r}, not {self.side!r}")

    def p(self, numbers: np.ndarray) -> np.ndarray:
        """(..., seeds) → (...): twice the one-sided p, at most .05 where a 95 % interval leaves out the limit."""
        return np.minimum(1.0, 2 * statistics.p_value(numbers, self.limit, self.side, step=self.step))

    def interval(self, numbers: np.ndarray, confidence: float = 0.95) -> Estimate:
        """The mean of one number a seed with its interval."""
        return statistics.mean_interval(numbers, confidence, step=self.step)


@dataclass(frozen=True)
class _Linear(Claim):
    """A weighted sum of arms on one column, within each seed."""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def per_seed(self, values: Columns) -> np.ndarray:
        """(..., seeds) weighted sums."""
        return values[self.column] @ np.array(list(self.weights.values()), dtype=float)

    def oracle(self, pilot: Mapping[str, Spread], drawn: np.ndarray) -> np.ndarray:
        """(..., seeds) sums of arms drawn from a pilot, moved to the claim's effect, or the pilot's on its side."""
        true = float(self.per_seed({self.column: pilot[self.column].means}))
        side = -1 if self.side == BELOW else 1
        effect = side * abs(true) if self.effect is None else self.effect
        return self.per_seed({self.column: drawn}) - true + effect


@dataclass(frozen=True)
class Contrast(_Linear):
    """Arm first minus arm second on a column lies below, or above, a limit.

    Attributes:
        first, second: Arms.
        column: Of `mirlab.results.load`.
        side: `BELOW` or `ABOVE`.
        effect: The true difference for which the oracle's rate is asked; that of the pilot if left out.
        limit: The size asked for; 0 asks for the sign alone.
    """

    first: str
    second: str
    column: str
    side: str = BELOW
    effect: float | None = None
    limit: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """By arm."""
        return {self.first: 1.0, self.second: -1.0}


def better(name: str, source: str, first: str, second: str, effect: float | None = 0.05) -> Contrast:
    """Arm first makes a better model than arm second: its accuracy after stage 2 lies above."""
    return Contrast(name, source, first, second, "accuracy", ABOVE, effect)


def lower_mir(name: str, source: str, first: str, second: str, effect: float) -> Contrast:
    """Arm first has a lower MIR than arm second."""
    return Contrast(name, source, first, second, "mir", BELOW, effect)


@dataclass(frozen=True)
class Effect(_Linear):
    """A main effect, a slope over levels, or an interaction of a design: a weighted sum of arms within each seed.

    Weights are by arm; the rest is as in `Contrast`.
    """

    weights: dict[str, float]
    column: str
    side: str = BELOW
    effect: float | None = None
    limit: float = 0.0


@dataclass(frozen=True)
class Within(_Linear):
    """A weighted sum of arms on a column stays within ± margin, fixed before the runs: no change, by equivalence."""

    weights: dict[str, float]
    column: str
    margin: float

    side, limit, effect = BELOW, 0.0, 0.0

    def p(self, numbers: np.ndarray) -> np.ndarray:
        """(..., seeds) → (...): p of the two one-sided tests."""
        return statistics.equivalence_p(numbers, self.margin)


@dataclass(frozen=True)
class Follows(Claim):
    """A column ranks the arms as another does: Spearman's correlation within seeds, mean over seeds.

    A limit near −1 asks for more than six seeds give: with the arms and the noise of the first edition an oracle's
    interval lies below −.8 in at most 62 % of all experiments, below −.5 in 98 % and more where data are varied.

    Attributes:
        arms: Which are ranked.
        x, y: A metric, or a setting of the recipe, and what it should go with.
        limit: The correlation asked for; its sign is that of the claim.
    """

    arms: tuple[str, ...]
    x: str
    y: str
    limit: float = -0.5

    @property
    def columns(self) -> tuple[str, ...]:
        """Both."""
        return (self.x, self.y)

    @property
    def side(self) -> str:
        """That of the limit."""
        return BELOW if self.limit < 0 else ABOVE

    @property
    def step(self) -> float:
        """Smallest difference of two seeds' correlations."""
        return statistics.rank_step(len(self.arms))

    def interval(self, numbers: np.ndarray, confidence: float = 0.95) -> Estimate:
        """Within ±1."""
        return super().interval(numbers, confidence).clipped(-1, 1)

    def per_seed(self, values: Columns) -> np.ndarray:
        """(..., seeds) rank correlations."""
        return spearman_within(values[self.x], values[self.y])

    def oracle(self, pilot: Mapping[str, Spread], drawn: np.ndarray) -> np.ndarray:
        """(..., seeds) correlations of arms drawn from a pilot with their true means, on the claimed side."""
        return spearman_within(pilot[self.y].means * (-1 if self.side == BELOW else 1), drawn)


def outcome(claim: Claim, estimate: Estimate, inner: Estimate, *, ceiling: float | None, seeds: int) -> str:
    """The word for a claim, which follows from the interval and the limit alone, in this order.

    1. *not testable here*: an oracle would meet the claim in fewer than 80 % of such experiments.
    2. *not measured*: fewer seeds than were declared.
    3. For "no change": *no change* if the inner interval lies within ± margin, *the opposite* if the outer one lies
       beyond it on either side, else *undecided*.
    4. *reproduced*: the interval lies on the claimed side of the limit.
    5. *the opposite*: it lies on the other side of 0 (of the limit, where that is further off): a rise where a fall
       was claimed, whatever the claim is about.
    6. *falls short*, where a size was asked for: the sign is right but the size is not shown (0 is left out), or so
       large an effect is ruled out (the limit is left out).
    7. *undecided*: the rest. Where only the sign was asked for, the interval holds 0.

    The ``estimate`` has the interval of confidence 1 − .05 / k, k being Holm's factor, ``inner`` that of 1 − .10 / k.
    """
    if ceiling is not None and ceiling < FAIR:
        return NOT_TESTABLE
    if estimate.seeds < seeds:
        return NOT_MEASURED
    if isinstance(claim, Within):
        if max(-inner.low, inner.high) < claim.margin:
            return NO_CHANGE
        return OPPOSITE if max(estimate.low, -estimate.high) > claim.margin else UNDECIDED
    low, high, limit = estimate.low, estimate.high, claim.limit
    if claim.side == ABOVE:  # as if a fall were claimed
        low, high, limit = -high, -low, -limit
    if high < limit:
        return REPRODUCED
    if low > max(0.0, limit):
        return OPPOSITE
    if limit < 0 and (high < 0 or low > limit):
        return FALLS_SHORT
    return UNDECIDED


@dataclass(frozen=True)
class Finding:
    """What an experiment says to one of its claims.

    Attributes:
        claim, outcome: The claim and the word, held against chance over all claims of the experiment.
        estimate: Mean over seeds with its 95 % interval.
        adjusted: The same with the interval at the level that Holm's procedure leaves; `outcome` follows from it.
        p: Twice the one-sided p, or that of equivalence; NaN if the claim is not measured.
        p_holm: Adjusted within the experiment; NaN also if the claim is not testable, and so not in the family.
        alone: The word that the 95 % interval alone would have had.
        ceiling: The oracle's rate, if there is one.
        over_means: Spearman's correlation of arm means, the paper's statistic, for `Follows`; else None.
    """

    claim: Claim
    outcome: str
    estimate: Estimate
    adjusted: Estimate
    p: float
    p_holm: float
    alone: str
    ceiling: float | None
    over_means: Estimate | None

    @property
    def holds(self) -> bool:
        """Whether the claim is shown."""
        return self.outcome in (REPRODUCED, NO_CHANGE)

    @property
    def note(self) -> str:
        """What the 95 % interval alone would say, where the two intervals part; else empty."""
        return "" if self.alone == self.outcome else f"by the 95 % interval alone: {self.alone}"


def judge(claims: Iterable[Claim], table: pd.DataFrame, **options: Any) -> tuple[Finding, ...]:
    """Judge all claims of one experiment together by its runs, a table of `mirlab.results.load`.

    Options are those of `judge_values`. Two runs of an arm and a seed are refused, and so is a table without a claim's
    columns. The family of Holm's procedure are all claims that are testable, those not measured yet among them, so that
    an early look at half of the runs is no easier test. A word needs the adjusted interval (`Finding.adjusted`), which
    leaves out the limit exactly when the adjusted p is at most .05. So at most 2.5 % of experiments without any effect
    print a false "reproduced", about as many a false "the opposite" (simulated in `tests/mirlab/test_claims.py`).
    """
    claims = tuple(claims)
    return judge_values(claims, _values(claims, table), **options)


def judge_values(
    claims: tuple[Claim, ...], data: list[Columns], *, ceilings: Mapping[str, float] | None = None, seeds: int = SEEDS
) -> tuple[Finding, ...]:
    """As `judge`, from arrays: for each claim the (seeds, arms) values of its columns. Quick enough for simulations.

    `ceilings` are the oracle's rates by the claims' names; a claim needs as many ``seeds`` with every one of its arms.
    """
    ceilings = ceilings or {}
    numbers = [claim.per_seed(values) for claim, values in zip(claims, data, strict=True)]
    measured = np.array([len(number) >= seeds for number in numbers], dtype=bool)
    testable = np.array([ceilings.get(claim.name, 1.0) >= FAIR for claim in claims], dtype=bool)
    p = np.array([float(c.p(n)) if ok else 1.0 for c, n, ok in zip(claims, numbers, measured, strict=True)])
    p_holm, factors = np.full(len(claims), np.nan), np.ones(len(claims))
    p_holm[testable], factors[testable] = statistics.holm(p[testable]), statistics.holm_factors(p[testable])
    findings = []
    for i, claim in enumerate(claims):
        ceiling = ceilings.get(claim.name)
        words = []
        for factor in (factors[i], 1.0):
            outer, inner = (claim.interval(numbers[i], 1 - tails * LEVEL / factor) for tails in (1, 2))
            words.append((outcome(claim, outer, inner, ceiling=ceiling, seeds=seeds), outer))
        (word, adjusted), (alone, estimate) = words
        over = None
        if isinstance(claim, Follows) and measured[i]:
            over = statistics.jackknife(statistics.spearman_of_means, *data[i].values()).clipped(-1, 1)
        known = (p[i], p_holm[i]) if measured[i] else (np.nan, np.nan)
        findings.append(Finding(claim, word, estimate, adjusted, *map(float, known), alone, ceiling, over))
    return tuple(findings)


def ceilings(
    claims: Iterable[Claim], known: Iterable[Mapping[str, Spread]], *, seeds: int = SEEDS, draws: int = 2000
) -> dict[str, float]:
    """The oracle's rate of every claim of an experiment: how often it would be shown if it were true.

    Experiments are drawn from what is `known` of each claim's columns (`spreads`), and go through Holm's procedure
    together. A claim below `FAIR` leaves the family, the weakest first, as `judge` leaves it out. What is true in them:
    for a `Contrast` or an `Effect` the effect that the claim names, or else that of the means, on the claimed side; for
    `Within` no change at all; for `Follows` a metric x that is the true arm mean of y.
    """
    claims = tuple(claims)
    p = np.empty((draws, len(claims)))
    for i, (claim, columns) in enumerate(zip(claims, known, strict=True)):
        drawn = statistics.simulated(columns[claim.columns[-1]], seeds=seeds, draws=draws, seed=i)
        p[:, i] = claim.p(claim.oracle(columns, drawn))
    rates, family = np.empty(len(claims)), list(range(len(claims)))
    while family:
        rates[family] = (statistics.holm(p[:, family]) <= LEVEL).mean(axis=0)
        weakest = min(family, key=rates.__getitem__)
        if rates[weakest] >= FAIR:
            break
        family.remove(weakest)
    return dict(zip((claim.name for claim in claims), rates.tolist(), strict=True))


def spreads(claims: Iterable[Claim], pilot: pd.DataFrame) -> list[dict[str, Spread]]:
    """Means and spreads of the claims' columns, from a pilot that ran all of their arms on two seeds at least."""
    claims, found = tuple(claims), []
    for claim, values in zip(claims, _values(claims, pilot), strict=True):
        if min(map(len, values.values())) < 2:
            raise MirlibError(f"the pilot has fewer than two seeds with all arms of “{claim.name}”: run more of it")
        found.append({column: statistics.spread(values[column]) for column in claim.columns})
    return found


def drawn_again(claim: Follows, runs: pd.DataFrame) -> tuple[float, float]:
    """What an oracle comes to in experiments like these runs (of `mirlab.results.load`), not those of a pilot.

    Returns:
        The mean correlation within seeds, with the claim's sign, of a metric that knows the mean y of every arm; and
        how often the claim would be shown by it, were it the only one of its experiment.
    """
    (known,) = spreads([claim], runs)
    correlation = claim.oracle(known, statistics.simulated(known[claim.y])).mean()
    return float(correlation), ceilings([claim], [known])[claim.name]


def listed(findings: Iterable[Finding]) -> pd.DataFrame:
    """Findings as a table, one line a claim, as a chapter shows it."""
    return pd.DataFrame(
        {
            "claim": finding.claim.name,
            "source": finding.claim.source,
            "outcome": finding.outcome,
            **{name: getattr(finding.estimate, name) for name in ("value", "low", "high")},
            "adjusted_low": finding.adjusted.low,
            "adjusted_high": finding.adjusted.high,
            "p": finding.p,
            "p_holm": finding.p_holm,
            "over_means": finding.over_means.value if finding.over_means else np.nan,
            "ceiling": np.nan if finding.ceiling is None else finding.ceiling,
            "seeds": finding.estimate.seeds,
            "note": finding.note,
        }
        for finding in findings
    )


def _values(claims: tuple[Claim, ...], table: pd.DataFrame) -> list[Columns]:
    """For each claim (seeds, arms) values of its columns, for the seeds that have all of them."""
    names = dict.fromkeys(column for claim in claims for column in claim.columns)
    columns = {name: statistics.wide(table, name) if len(table) else pd.DataFrame() for name in names}
    found = []
    for claim in claims:
        values = [columns[column].reindex(columns=claim.arms).to_numpy(float) for column in claim.columns]
        whole = np.isfinite(values).all(axis=(0, 2))
        found.append({column: value[whole] for column, value in zip(claim.columns, values, strict=True)})
    return found
