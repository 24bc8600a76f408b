"""How sure is a MIR: what each sample adds to it, by the derivative of the Fréchet distance.

For a row x of the vision rows, with mean μ_v, covariance A and n rows, text rows with μ_t, B and m rows, and the
optimal maps T from vision to text and T' back, the distance D of a layer changes with the weight of the row as

    IF_vision(x) = n / (n − 1) cᵀ(I − T)c − Tr((I − T)A) + 2 δᵀc,       c = x − μ_v,  δ = μ_v − μ_t
    IF_text(y)   = m / (m − 1) cᵀ(I − T')c − Tr((I − T')B) − 2 δᵀc,     c = y − μ_t

and every text row adds ``−2 D (‖y‖ / mean ‖y‖ − 1)`` by its part in the scale. A sample's influence is the sum over its
rows, divided by the number of rows of their modality. The bounds of the outlier rule move with each norm, and the slope
of D in each bound is what the rows near it weigh. Where a covariance is singular the maps are those on its range, which
other weights of the same rows leave as it is.

Source: Hampel (1974) for influence functions; Efron (1982), section 6, for the infinitesimal jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from mirlib.frechet import Moments, float64_device, is_regular
from mirlib.result import Influence, Interval
from mirlib.transport import optimal_maps

if TYPE_CHECKING:
    from mirlib.mir import NormBounds

__all__ = [
    "LayerInfluence",
    "SampleInfluence",
    "influence_interval",
    "rows_suffice",
    "standard_error",
    "t_interval",
    "why_no_interval",
]

ROWS_PER_DIMENSION = 2


def rows_suffice(rows: int, dim: int) -> bool:
    """Whether a modality has rows enough for the derivative to stand for a sample's effect: twice the dimensions."""
    return rows >= ROWS_PER_DIMENSION * dim


def why_no_interval(samples: int, rows: Sequence[int], dim: int) -> str | None:
    """Why there is no interval from so many samples, with so many ``rows`` of the rarer modality in each layer."""
    if samples < 2:
        return "there is no interval: it needs at least 2 samples"
    few = sum(not rows_suffice(count, dim) for count in rows)
    if few == 0:
        return None
    return (
        f"there is no interval: in {few} of {len(rows)} layers, rows are fewer than {ROWS_PER_DIMENSION} times the "
        f"{dim} dimensions; use more samples"
    )


@dataclass(frozen=True)
class LayerInfluence:
    """What the influence of single rows on the distance D of a layer, in units of (mean text norm)², needs.

    ``scale`` is α, ``normalized`` says whether it moves with the ``text_rows``, outliers included; ``gradients`` are
    the (d, d) matrices ``I − T`` and ``I − T'``, ``means`` μ_v and μ_t, ``traces`` ``Tr((I − T)A)`` and ``Tr((I −
    T')B)``, and ``counts`` the rows of each modality that the outlier rule keeps.
    """

    distance: float
    scale: float
    normalized: bool
    gradients: tuple[Tensor, Tensor]
    means: tuple[Tensor, Tensor]
    traces: tuple[float, float]
    counts: tuple[int, int]
    text_rows: int

    @classmethod
    def of(
        cls,
        vision: Moments,
        text: Moments,
        distance: float,
        scale: float,
        *,
        normalized: bool,
        text_rows: int,
        dtype: torch.dtype = torch.float64,
    ) -> LayerInfluence:
        """From the unscaled moments of the rows kept, and their scaled distance.

        The two matrices are kept in ``dtype``; float32 takes half the memory, and is enough for a standard error, but
        not where a covariance is singular: other weights of the rows leave its range as it is, so the maps on it are
        the derivative all the same, but their numbers may be large.
        """
        covariances = vision.covariance, text.covariance.to(vision.mean.device)
        maps = optimal_maps(*covariances)
        if not all(map(is_regular, covariances)):
            dtype = torch.float64

        for optimal in maps[:2]:  # T becomes I − T
            optimal.neg_().diagonal().add_(1.0)
        return cls(
            distance,
            scale,
            normalized,
            (maps.forward.to(dtype), maps.backward.to(dtype)),
            (vision.mean, text.mean.to(vision.mean.device)),
            tuple(float(side.trace()) - maps.trace for side in covariances),
            (vision.count, text.count),
            text_rows,
        )

    def to(self, device: torch.device) -> LayerInfluence:
        """The same on another device."""
        moved = {name: tuple(part.to(device) for part in getattr(self, name)) for name in ("gradients", "means")}
        return replace(self, **moved)

    def of_kept(self, rows: Tensor, side: int) -> Tensor:
        """(n,) float64: what each of (n, d) rows of a side adds to D if it is kept, in units of (mean text norm)².

        It is divided by the number of rows of the modality; ``side`` is 0 for vision, 1 for text.
        """
        gradient, sign, count = self.gradients[side], (1, -1)[side], self.counts[side]
        device = float64_device(rows)
        wide = torch.promote_types(rows.dtype, gradient.dtype)
        # Scaled before anything is squared: float32 holds no square of what is shorter than 1e-22 or longer than 1e19.
        centred = (rows.to(device, wide) - self.means[side].to(device, wide)).mul_(self.scale)
        shift = ((self.means[0] - self.means[1]) * self.scale).to(device, wide)
        quadratic = torch.einsum("nd,nd->n", centred @ gradient.to(device, wide), centred)
        found = quadratic.mul_(count / (count - 1)).add_(centred @ shift, alpha=2 * sign)
        return (found.to(torch.float64) - self.traces[side] * self.scale**2) / count

    def of_scale(self, norms: Tensor) -> Tensor:
        """(n,) what text rows add to D by their part in the scale, from their (n,) norms."""
        if not self.normalized:
            return torch.zeros_like(norms, dtype=torch.float64)
        return -2 * self.distance / self.text_rows * (norms.to(torch.float64) * self.scale - 1)


class SampleInfluence:
    """The influence of each sample's rows of one side (0 vision, 1 text) on a layer's distance, summed as they come.

    ``bounds`` are those of the outlier rule; ``samples`` is N.
    """

    def __init__(self, maps: LayerInfluence, side: int, bounds: NormBounds, samples: int, device: torch.device) -> None:
        self._maps, self._side, self._bounds = maps, side, bounds
        wide = {"dtype": torch.float64, "device": device}
        self.of_rows = torch.zeros(samples, **wide)
        self.of_norms = torch.zeros(2, samples, **wide)  # on the median and on the standard deviation of all norms
        self.slopes = torch.zeros(2, **wide)  # of D, in the lower and in the upper bound

    def add(self, rows: Tensor, norms: Tensor, index: Tensor) -> None:
        """Add (n, d) rows with their (n,) norms, and the (n,) number of the sample that each belongs to."""
        device, bounds = self.of_rows.device, self._bounds
        found = self._maps.of_kept(rows, self._side).to(device)
        norms, index = norms.to(device, torch.float64), index.to(device)
        if bounds.moves:
            width = bounds.reach / 6  # half a standard deviation
            for number, (end, sign) in enumerate(((-1, -1), (1, 1))):
                near = (norms - (bounds.centre + end * bounds.reach)).abs() <= width
                self.slopes[number] += torch.where(near, found, 0.0).sum() * (sign / (2 * width))
            deviation = bounds.reach / 3
            self.of_norms[0].index_add_(0, index, (norms - bounds.centre).sign() / (2 * bounds.density))
            self.of_norms[1].index_add_(0, index, ((norms - bounds.mean).square() / deviation - deviation) / 2)
        found = torch.where(bounds.outliers(norms), 0.0, found)
        if self._side == 1:
            found = found + self._maps.of_scale(norms)
        self.of_rows.index_add_(0, index, found)

    def total(self, slopes: Tensor | None = None) -> Tensor:
        """(N,) influences; ``slopes`` are those of the rows of all processes."""
        if not self._bounds.moves:
            return self.of_rows
        lower, upper = self.slopes if slopes is None else slopes.to(self.slopes)
        of_median, of_deviation = self.of_norms / self._bounds.count
        return self.of_rows + (upper + lower) * of_median + 3 * (upper - lower) * of_deviation


def standard_error(influence: Influence, per_layer: Sequence[float] | np.ndarray) -> float:
    """Standard error of MIR from the influences of its samples; NaN for fewer than 2 samples or a sum of 0."""
    total = math.fsum(per_layer)
    sides = [side.sum(axis=0) for side in (influence.vision, influence.text)]
    draws = [sides[0] + sides[1]] if influence.paired else sides
    if min(len(draw) for draw in draws) < 2 or not total > 0:
        return math.nan
    variance = sum(len(draw) / (len(draw) - 1) * float(np.square(draw).sum()) for draw in draws)
    return math.sqrt(variance) / (total * math.log(10))


def influence_interval(influence: Influence, per_layer: np.ndarray, value: float, confidence: float) -> Interval:
    """The interval by Student's t with one degree of freedom fewer than there are samples (of the rarer kind)."""
    samples = min(influence.vision.shape[1], influence.text.shape[1])
    return t_interval(value, standard_error(influence, per_layer), confidence, "influence", samples - 1)


def t_interval(value: float, error: float, confidence: float, method: str, degrees: int) -> Interval:
    """``value ± t · standard error``; NaN at both ends without a degree of freedom."""
    reach = float(stdtrit(degrees, 0.5 + confidence / 2)) * error if degrees > 0 else math.nan
    return Interval(value - reach, value + reach, confidence, error, method, degrees)
