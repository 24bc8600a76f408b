"""Means, rank correlations and ratios over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean (or a ratio of means) over seeds with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        seeds: Number of seeds.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return self.text(2)

    def text(self, digits: int) -> str:
        """With signs, for example ``+0.12 [-0.03, +0.20]``."""
        ends = (f"{round(number, digits) + 0.0:+.{digits}f}" for number in (self.value, self.low, self.high))
        value, low, high = (end.replace("-", "−") for end in ends)
        return f"{value} [{low}, {high}]"

    def cell(self, *, signs: bool = True, narrow: bool = True) -> str:
        """With three digits for a cell of a table; a single seed has no interval.

        Args:
            signs: Whether plus signs stand.
            narrow: Whether a narrow column may break before the interval only.
        """
        words = self.text(3) if signs else self.text(3).replace("+", "")
        if self.seeds <= 1:
            return f"{words.partition(' ')[0]} (1 seed)"
        return words.replace(", ", ",\N{NO-BREAK SPACE}") if narrow else words


def spearman(x: Iterable[float], y: Iterable[float]) -> float:
    """Rank correlation of two series; ties share their mean rank, as in `scipy.stats.spearmanr`.

    A series that is constant ranks nothing: the correlation is undefined, and counts as 0 here, so that a metric that
    does not move is no witness for or against anything and its seed is not dropped.

    Example:
        >>> spearman([1, 2, 3, 4], [4, 3, 2, 1]), spearman([1, 2, 3], [5, 5, 5])
        (-1.0, 0.0)
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return round(float(stats.spearmanr(x, y).statistic), 12)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman correlation within each seed, from two (arms, seeds) arrays."""
    return np.array([spearman(a, b) for a, b in zip(x.T, y.T, strict=True)])


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = _mean, *, seed: int = 0
) -> Estimate:
    """A statistic over seeds, with a percentile interval from 10,000 resamples of the seeds.

    With five seeds such an interval is narrow: it holds the true mean of normal values in about 83 % of all cases, not
    in 95 %, and it has no width at all where all seeds agree (five rank correlations of -1). It covers the draw of the
    run's seed (first weights, choice and order of the pairs, stage 2), and of encoder and language model only as far
    as those differ between the seeds: two of each stand behind five seeds, which are therefore not quite
    independent. It does not cover another world, another size of model, or the held-out pictures and texts that all
    runs share.

    Args:
        values: (..., seeds); the last axis is resampled, all others together with it.
        statistic: From (..., seeds) with resamples in front of ``seeds`` to a value for each resample.
        seed: Of the resampling.

    Returns:
        The statistic of the values as they are, and the 2.5th and 97.5th percentiles over the resamples.
    """
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(statistic(values[..., drawn]), [2.5, 97.5])
    return Estimate(float(statistic(values)), float(low), float(high), count)


def ratio_of_means(values: np.ndarray) -> np.ndarray:
    """Mean of ``values[0]`` over mean of ``values[1]``, for `bootstrap`: steadier than a mean of ratios."""
    return values[0].mean(axis=-1) / values[1].mean(axis=-1)
