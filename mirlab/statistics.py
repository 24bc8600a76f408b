"""What a few seeds say: intervals, tests, correlations within seeds, and whether a question could be answered at all.

Arrays of an experiment are (seeds, arms) everywhere, of one quantity (seeds,). A seed has its own encoder, language
model and draw of pairs, and all arms share them, so that what one arm does to a seed is compared within that seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special  # scipy.stats takes seconds to import

from mirlib.errors import MirlibError, shown

BELOW, ABOVE = "below", "above"
"""Sides of a limit."""

Values = np.ndarray | Sequence[Any]

LEVEL = 0.05
"""Of every test and, over all claims of an experiment together, of Holm's procedure."""


def signed(number: float, digits: int = 2) -> str:
    """A number with a true minus or plus, which tells the side of zero even where the digits are all zeros.

    Examples:
        >>> signed(-0.249), signed(-0.001), signed(-0.0)
        ('−0.25', '−0.00', '+0.00')
    """
    return f"{number + 0.0:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, whose ends are NaN where there are too few ``seeds`` for one."""

    value: float
    low: float
    high: float
    seeds: int

    def text(self, digits: int = 2) -> str:
        """With signs, for example ``+0.12 [−0.03, +0.20]``."""
        value, low, high = (signed(number, digits) for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if np.isfinite(self.low) else value

    __str__ = text

    def clipped(self, low: float, high: float) -> Estimate:
        """With an interval that stays where the number can be, as a correlation stays within ±1."""
        return replace(self, low=float(np.clip(self.low, low, high)), high=float(np.clip(self.high, low, high)))


def mean_interval(values: Values, confidence: float = 0.95, *, step: float = 0.0) -> Estimate:
    """The mean over seeds, with Student's t interval.

    Args:
        values: (seeds,); with one seed the interval is NaN.
        confidence: Of the interval.
        step: Where a seed's value is discrete, the smallest difference of two (see `rank_step`). The spread is at least
            that of one seed that differs from all others by it, even where all agree.

    Examples:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        +2.00 [−0.48, +4.48]
        >>> print(mean_interval([-1.0] * 6, step=0.2))
        −1.00 [−1.09, −0.91]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, and is not {confidence}")
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count < 2:
        return Estimate(float(values.mean()) if count else np.nan, np.nan, np.nan, count)
    mean, error = _mean_and_error(values, step)
    width = special.stdtrit(count - 1, (1 + confidence) / 2) * error
    return Estimate(float(mean), float(mean - width), float(mean + width), count)


def jackknife(statistic: Callable[..., float], *arrays: Values) -> Estimate:
    """A statistic over seeds that is no mean, with a 95 % interval from leaving out one seed after the other.

    The error is the delete-one jackknife's [Efron and Stein, 1981], the quantile Student's for one less than the
    number of seeds. Of a mean it is exactly `mean_interval`.

    Args:
        statistic: Of the arrays, for example `spearman_of_means`.
        arrays: Each with the seeds as its first axis, three at least.

    Examples:
        >>> import numpy as np
        >>> print(jackknife(np.mean, [1.0, 2.0, 3.0]))
        +2.00 [−0.48, +4.48]
    """
    arrays = [np.asarray(array, dtype=float) for array in arrays]
    count = len(arrays[0])
    value = float(statistic(*arrays))
    if count < 3:
        return Estimate(value, np.nan, np.nan, count)
    left = np.array([statistic(*(np.delete(array, seed, axis=0) for array in arrays)) for seed in range(count)])
    error = np.sqrt((count - 1) * np.mean((left - left.mean()) ** 2))
    width = float(special.stdtrit(count - 1, 0.975) * error)
    return Estimate(value, value - width, value + width, count)


def p_value(values: Values, limit: float, side: str, *, step: float = 0.0) -> np.ndarray:
    """Student's one-sided t test of a mean over seeds against a limit.

    Args:
        values: (..., seeds), two at least.
        limit: What the mean is, or at most reaches, if there is no effect.
        side: `BELOW` or `ABOVE`: where the mean is expected.
        step: As in `mean_interval`.

    Returns:
        (...) p. Seeds that agree perfectly give 0 or 1 (without a step).

    Examples:
        >>> round(float(p_value([1.0, 2.0, 3.0], 0, ABOVE)), 4)
        0.0371
    """
    if side not in (BELOW, ABOVE):
        raise ValueError(f"side is {BELOW!r} or {ABOVE!r}, not {side!r}")
    values = np.asarray(values, dtype=float)
    mean, error = _mean_and_error(values, step)
    distance = np.round(mean - limit, 12)  # so that a mean that is the limit but for rounding is no evidence
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(distance == 0, 0.0, distance / error)
    return special.stdtr(values.shape[-1] - 1, t if side == BELOW else -t)


def equivalence_p(values: Values, margin: float) -> np.ndarray:
    """Two one-sided t tests: p for "the mean lies within ± margin" [Schuirmann, 1987].

    At most .05 exactly when the 90 % interval of `mean_interval` lies within ± margin. Values are (..., seeds), two at
    least; the margin is above 0 and fixed before the runs.
    """
    return np.maximum(p_value(values, -margin, ABOVE), p_value(values, margin, BELOW))


def holm(p: Values) -> np.ndarray:
    """The p of each test (..., tests), adjusted for its family [Holm, 1979]: at most .05 where that rejects at .05.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = p.shape[-1] - np.arange(p.shape[-1])
    climbing = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    return np.take_along_axis(np.minimum(climbing, 1.0), np.argsort(order, axis=-1), axis=-1)


def holm_factors(p: Values, level: float = LEVEL) -> np.ndarray:
    """By what each test's level is divided where Holm's procedure meets it.

    A test that is rejected has the factor of its own step, all others that of the step at which the procedure stopped,
    so that an interval of confidence ``1 - level / factor`` leaves out the limit exactly when the adjusted p is at most
    the level. p is (tests,).

    Examples:
        >>> holm_factors([0.001, 0.5, 0.6])
        array([3, 2, 2])
    """
    p = np.asarray(p, dtype=float)
    rejected = holm(p) <= level
    ranks = np.argsort(np.argsort(p, kind="stable"), kind="stable")
    return len(p) - np.where(rejected, ranks, rejected.sum())


def spearman_within(x: Values, y: Values) -> np.ndarray:
    """Rank correlation over arms within each seed; ties share their mean rank.

    Both are (..., arms), the correlations (...); where one of the two is the same in all arms it ranks nothing, and the
    correlation counts as 0.

    Examples:
        >>> spearman_within([[1, 2, 3], [1, 2, 3], [4, 4, 4]], [[3, 2, 1], [1, 3, 2], [1, 2, 3]])
        array([-1. ,  0.5,  0. ])
    """
    x, y = (_centred(_ranks(np.asarray(values, dtype=float))) for values in (x, y))
    size = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    product = (x * y).sum(axis=-1)
    return np.round(np.divide(product, size, out=np.zeros(np.shape(product)), where=size > 0), 12)


def spearman_of_means(x: Values, y: Values) -> float:
    """Rank correlation of the means over seeds of (seeds, arms), the statistic of the MIR paper; for `jackknife`."""
    return float(spearman_within(np.mean(x, axis=0), np.mean(y, axis=0)))


def rank_step(arms: int) -> float:
    """The smallest difference between two rank correlations of so many arms without ties.

    Examples:
        >>> rank_step(4)
        0.2
    """
    return 12 / (arms**3 - arms)


@dataclass(frozen=True)
class Spread:
    """What a pilot says of one quantity.

    Attributes:
        means: (arms,) means.
        noise: Standard deviation of a run about its arm's mean and its seed's offset; one number, or (arms,).
        offset: Standard deviation of what all arms of a seed share.
    """

    means: np.ndarray
    noise: float | np.ndarray
    offset: float = 0.0


def spread(values: Values) -> Spread:
    """Means, noise and offsets from a pilot (seeds, arms): a two-way analysis of variance with one run a cell.

    The noise has (seeds − 1)(arms − 1) degrees of freedom. With a single arm all is noise; fewer than two seeds are
    refused.
    """
    values = np.asarray(values, dtype=float)
    seeds, arms = values.shape
    if seeds < 2:
        raise MirlibError("a pilot needs two seeds with all arms at least: run more of it")
    if arms == 1:
        return Spread(values.mean(axis=0), float(values.std(ddof=1)))
    means, offsets = values.mean(axis=0), _centred(values.mean(axis=1))
    rest = values - means - offsets[:, None]
    noise = (rest**2).sum() / ((seeds - 1) * (arms - 1))
    offset = (offsets**2).sum() / (seeds - 1) - noise / arms
    return Spread(means, float(np.sqrt(noise)), float(np.sqrt(max(0.0, offset))))


def simulated(pilot: Spread, *, seeds: int = 6, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """(draws, seeds, arms) normal values of experiments whose truth is the pilot's."""
    draw = np.random.default_rng(seed).standard_normal
    shared = pilot.offset * draw((draws, seeds, 1))
    return pilot.means + shared + pilot.noise * draw((draws, seeds, len(pilot.means)))


def wide(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column of a table of runs as seeds × arms, the arms in the table's order; NaN where a run is missing.

    The table is one of `mirlab.results.load`, with columns ``arm`` and ``seed``; a column may be the difference of two,
    ``first - second``. A missing column, and two runs of one arm and seed, are refused.
    """
    first, minus, second = column.partition(" - ")
    if minus:
        return wide(table, first) - wide(table, second)
    if column not in table:
        raise MirlibError(f"there is no column {shown(column)} in this table: take one of {', '.join(table.columns)}")
    twice = table[table.duplicated(["arm", "seed"])]
    if len(twice):
        arm, seed = twice.iloc[0][["arm", "seed"]]
        raise MirlibError(f"the arm {shown(arm)} has two runs of seed {seed}: keep the one that counts")
    return table.pivot(index="seed", columns="arm", values=column)[list(dict.fromkeys(table["arm"]))]


def paired(table: pd.DataFrame, first: str, second: str, column: str) -> pd.Series:
    """The first arm minus the second on a column of a table as in `wide`, by seed, for the seeds that have both."""
    values = wide(table, column).reindex(columns=[first, second])
    return (values[first] - values[second]).dropna().rename(column)


def _mean_and_error(values: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and its standard error."""
    root = np.sqrt(values.shape[-1])
    return values.mean(axis=-1), np.maximum(values.std(axis=-1, ddof=1), step / root) / root


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks over the last axis, from 1; ties share their mean rank."""
    mine, others = values[..., :, None], values[..., None, :]
    return (mine > others).sum(axis=-1) + ((mine == others).sum(axis=-1) + 1) / 2


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=-1, keepdims=True)
