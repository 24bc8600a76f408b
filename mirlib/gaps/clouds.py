"""Measures of two clouds of rows: they need no pairs, and take every row for itself.

Each is called as ``measure(vision, text, *, samples=None, seed=0, ...)``, with the K arrays (r, d) and K arrays (s, d)
that `mirlib.modality_integration_rate` takes, and returns a `GapResult`. With ``samples`` it has an interval over them:
from the value without each sample where sums over samples lead to it, else from the derivative by each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.frechet import Moments, distance_of_rows, is_regular
from mirlib.gaps.base import (
    CONFIDENCE,
    HIGHER,
    LOWER,
    QUADRATIC_ROWS,
    ROWS,
    GapResult,
    Rows,
    left_out,
    register,
    result,
    unit,
)
from mirlib.influence import LayerInfluence, SampleInfluence, rows_suffice
from mirlib.mir import NormBounds, modality_integration_rate, row_norms

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


# ---------------------------------------------------------------------------------------------------------------------
# Samples: (N, …) sums over the rows of each, and what is left without it


class _Samples:
    """The samples of chosen rows, where they are known and an interval is wanted.

    Attributes:
        wanted: Whether there are influences to find.
        size: Number of samples, N.
        places: The sample of each row, 0..N−1, by modality.
        counts: (N,) rows of each sample, by modality.
    """

    def __init__(self, rows: Rows, confidence: float | None) -> None:
        self.rows, self.confidence = rows, confidence
        self.size = 0 if rows.samples is None else len(rows.names)
        self.wanted = confidence is not None and self.size > 1
        self.places = rows.places if self.wanted else ()
        self.counts = [place.bincount(minlength=self.size).double() for place in self.places]

    def sums(self, values: Tensor, side: int) -> Tensor:
        """(N, …) sums of a modality's (rows, …) values over the rows of each sample."""
        return _sums(values, self.places[side], self.size)

    def means_without(self, values: Tensor, side: int) -> Tensor:
        """(N, …) means of a modality's (rows, …) values over the rows of all other samples."""
        sums = self.sums(values, side)
        left = len(values) - self.counts[side]
        return (sums.sum(0) - sums) / left.reshape(-1, *[1] * (values.ndim - 1))

    def blocks(self, values: Tensor, first: int, second: int) -> Tensor:
        """(N, N) sums of (rows, rows) values over the rows of each two samples."""
        return _sums(_sums(values, self.places[first], self.size).T, self.places[second], self.size).T

    def result(
        self, name: str, per_layer: Any, influence: Sequence[Any], *, why: str | None = None, **options: Any
    ) -> GapResult:
        """`mirlib.gaps.base.result` with K arrays (N,) of influences; ``why`` they are fewer, where they may be."""
        if self.wanted and len(influence) == len(per_layer):
            options["influence"] = np.array(influence)
        elif self.wanted or self.size == 1:
            options["no_interval"] = why if self.wanted else "there is one sample alone"
        return result(name, per_layer, self.rows.counts, confidence=self.confidence, **options)


def _of_unit(slope: float, text: Tensor, by: _Samples) -> Tensor:
    """(N,) influences by the unit of length, the mean text norm, of text rows in that unit.

    Args:
        slope: Of the value in the logarithm of a factor that all rows get.
        text: (s, d).
        by: Their samples.
    """
    norms = row_norms(text)
    return -slope * by.sums(norms - norms.mean(), 1) / len(text)


def _sums(values: Tensor, places: Tensor, size: int) -> Tensor:
    return torch.zeros(size, *values.shape[1:], dtype=torch.float64).index_add_(0, places, values.double())


@register(
    "modality_gap",
    title="modality gap",
    asks="How far apart are the mean directions?",
    source="Liang et al. 2022, arXiv 2203.02053",
    needs=ROWS,
    direction=LOWER,
    cost="n d",
)
def modality_gap(
    vision: Any, text: Any, *, samples: Any = None, seed: int = 0, confidence: float | None = CONFIDENCE
) -> GapResult:
    """Modality gap: the distance of the mean unit vectors, ``‖mean(v/‖v‖) − mean(t/‖t‖)‖₂``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Not needed here.
        confidence: Of the interval over samples; None for none.

    Returns:
        `GapResult`, each layer in [0, 2]. Norms do not count.

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: Liang et al. (2022), arXiv 2203.02053, there on CLIP's embeddings.

    Examples:
        >>> east, north = [[[1.0, 0.0], [5.0, 0.0]]], [[[0.0, 2.0], [0.0, 3.0]]]
        >>> import numpy as np
        >>> round(modality_gap(np.array(east), np.array(north)).value, 6)
        1.414214
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found, influence, by = [], [], _Samples(rows, confidence)
    for sides in rows.layers("unit"):
        found.append(float(torch.linalg.vector_norm(sides[0].mean(0) - sides[1].mean(0))))
        if by.wanted:
            v, t = (by.means_without(rows_of, side) for side, rows_of in enumerate(sides))
            influence.append(left_out(torch.linalg.vector_norm(v - t, dim=1)))
    return by.result("modality_gap", found, influence)


@register(
    "ima",
    title="IMA score",
    asks="Do the mean vision token and the mean text token point the same way?",
    source="arXiv 2405.16700",
    needs=ROWS,
    direction=HIGHER,
    cost="n d",
)
def ima(
    vision: Any, text: Any, *, samples: Any = None, seed: int = 0, confidence: float | None = CONFIDENCE
) -> GapResult:
    """IMA score: the cosine of the mean vision row and the mean text row.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Not needed here.
        confidence: Of the interval over samples; None for none.

    Returns:
        `GapResult`, each layer in [−1, 1]; 0 where a mean is zero.

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: arXiv 2405.16700.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found, influence, by = [], [], _Samples(rows, confidence)
    for sides in rows.layers():
        found.append(float(torch.linalg.vecdot(*(unit(side.mean(0)[None]) for side in sides))))
        if by.wanted:
            v, t = (unit(by.means_without(rows_of, side)) for side, rows_of in enumerate(sides))
            influence.append(left_out(torch.linalg.vecdot(v, t)))
    return by.result("ima", found, influence)


@register(
    "a_score",
    title="A-score",
    asks="Has a vision token some text token that points its way?",
    source="arXiv 2408.16357",
    needs=ROWS,
    direction=HIGHER,
    cost="n² d",
)
def a_score(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    reference: Any = None,
    max_rows: int | None = QUADRATIC_ROWS,
) -> GapResult:
    """A-score: the mean over vision rows of the best cosine with a reference row.

    The paper's reference are tokens of the same picture that come from a CLIP encoder, with which a language model's
    layers have nothing to do. Here it is the text rows of the same layer, or the rows that you pass, such as the
    text-embedding matrix. The best of more rows is better: compare values of the same number of reference rows only.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Of the draw of rows.
        confidence: Of the interval over samples; None for none.
        reference: One array (m, d) for all layers, instead of the text rows.
        max_rows: Rows drawn of each modality (and of the reference); None for all.

    Returns:
        `GapResult`, each layer in [−1, 1].

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: arXiv 2408.16357, with the reference changed as said.
    """
    if reference is not None:
        text = [reference] * len(vision)
        if samples is not None:  # the reference stays when a sample is left out, so its rows may have any number
            numbers = torch.as_tensor(samples[0])
            samples = numbers, numbers.new_full((len(reference),), int(numbers[0]))
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    found, influence, by = [], [], _Samples(rows, confidence)
    for v, t in rows.layers("unit"):
        cosines = v @ t.T
        best = cosines.amax(1)
        found.append(float(best.mean()))
        if by.wanted and reference is not None:
            influence.append(left_out(by.means_without(best, 0)))
        elif by.wanted:
            of_samples = torch.full((len(v), by.size), -math.inf, dtype=torch.float64)  # with the text of each sample
            of_samples.scatter_reduce_(1, by.places[1].expand(len(v), -1), cosines, "amax")
            (first, second), (owner, _) = (two.T for two in of_samples.topk(2, dim=1))
            lost = first - second  # by a vision row, without the text of its owner
            own = torch.where(owner == by.places[0], second, first)
            total = first.sum() - _sums(lost, owner, by.size) - by.sums(own, 0)
            influence.append(left_out(total / (len(v) - by.counts[0])))
    return by.result("a_score", found, influence, reference="text rows" if reference is None else "given", seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


def squared_mmd(xx: Tensor, yy: Tensor, xy: Tensor, *, unbiased: bool = True) -> float:
    """``mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y)`` from the (n, n), (m, m) and (n, m) values of the kernel.

    Args:
        xx: Kernel within the first set.
        yy: Kernel within the second.
        xy: Kernel between them.
        unbiased: Whether pairs of a row with itself are left out, as an unbiased estimate wants.
    """

    def within(values: Tensor) -> float:
        count = len(values)
        if not unbiased:
            return float(values.mean())
        return float((values.sum() - values.diagonal().sum()) / (count * (count - 1)))

    return within(xx) + within(yy) - 2 * float(xy.mean())


def _square_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp(min=0)


def _mmd(kernels: list[Tensor], by: _Samples, unbiased: bool) -> tuple[float, Tensor | None]:
    """Squared MMD from the kernel's values, and (N,) those without each sample where they are wanted."""
    value = squared_mmd(*kernels, unbiased=unbiased)
    if not by.wanted:
        return value, None
    without = torch.zeros(by.size, dtype=torch.float64)
    for side, kernel in enumerate(kernels[:2]):
        blocks = by.blocks(kernel, side, side)
        sums = blocks.sum() - 2 * blocks.sum(0) + blocks.diagonal()
        left = len(kernel) - by.counts[side]
        if unbiased:
            diagonal = kernel.diagonal()
            sums, pairs = sums - (diagonal.sum() - by.sums(diagonal, side)), left * (left - 1)
        else:
            pairs = left.square()
        without += sums / pairs
    blocks = by.blocks(kernels[2], 0, 1)
    sums = blocks.sum() - blocks.sum(0) - blocks.sum(1) + blocks.diagonal()
    left = [len(kernel) - counts for kernel, counts in zip(kernels[:2], by.counts, strict=True)]
    return value, without - 2 * sums / (left[0] * left[1])


def _median_without(squares: list[Tensor], median: float, by: _Samples) -> Tensor:
    """(N,) medians of the squared distances of two rows, without each sample.

    Without ``t`` of ``T`` distances, of which ``c`` are at most the median, the middle moves ``c − t / 2`` places up
    among those that are left, which lie as densely as before but for the share that is gone.
    """
    pairs = torch.zeros(by.size, dtype=torch.float64)
    below = torch.zeros(by.size, dtype=torch.float64)
    for side, values in enumerate(squares[:2]):
        blocks, own = by.blocks(values <= median, side, side), by.counts[side]
        below += blocks.sum(0) - blocks.diagonal() + (blocks.diagonal() - own) / 2
        pairs += own * (len(values) - own) + own * (own - 1) / 2
    blocks = by.blocks(squares[2] <= median, 0, 1)
    below += blocks.sum(0) + blocks.sum(1) - blocks.diagonal()
    first, second = by.counts
    pairs += first * len(squares[1]) + second * len(squares[0]) - first * second
    ordered = _two_rows(squares).numpy()
    moved = (below - pairs / 2) * len(ordered) / (len(ordered) - pairs)
    places = (moved + (len(ordered) - 1) / 2).round().long().clamp(0, len(ordered) - 1).numpy()
    return torch.from_numpy(np.partition(ordered, np.unique(places))[places])


def _two_rows(squares: list[Tensor]) -> Tensor:
    """The squared distances of any two different rows, each once."""
    within = [s[tuple(torch.triu_indices(len(s), len(s), 1))] for s in squares[:2]]
    return torch.cat([*within, squares[2].flatten()])


def _rbf(
    v: Tensor, t: Tensor, sigma: float | None, by: _Samples, unbiased: bool, scaled: bool
) -> tuple[float, np.ndarray | None]:
    """Squared MMD with a Gaussian kernel, and influences, by the derivative as far as width and unit of length go."""
    squares = [_square_distances(*pair) for pair in ((v, v), (t, t), (v, t))]
    width = None
    if sigma is None:
        square = float(_two_rows(squares).median())
        if square == 0:  # more than half of the rows are one point
            square = max(float(max(s.max() for s in squares)), 1.0)
        elif by.wanted:
            width = _median_without(squares, square, by)
    else:
        square = sigma**2
    kernels = [torch.exp(-s / (2 * square)) for s in squares]
    value, without = _mmd(kernels, by, unbiased)
    if without is None:
        return value, None
    slope = squared_mmd(*(k * s / (2 * square) for k, s in zip(kernels, squares, strict=True)), unbiased=unbiased)
    if width is not None:
        return value, left_out(without + slope * (width / square - 1))
    influence = left_out(without)
    return value, influence + (_of_unit(-2 * slope, t, by).numpy() if scaled else 0)


@register(
    "mmd",
    title="MMD², Gaussian kernel",
    asks="Can any smooth function tell the clouds apart by its mean?",
    source="Gretton et al. 2012",
    needs=ROWS,
    direction=LOWER,
    cost="n² d",
)
def mmd(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    sigma: float | None = None,
    max_rows: int | None = QUADRATIC_ROWS,
) -> GapResult:
    """Unbiased squared maximum mean discrepancy with the kernel ``exp(−‖x − y‖² / (2σ²))``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Of the draw of rows.
        confidence: Of the interval over samples; None for none.
        sigma: Width of the kernel in mean text norms; the median distance of two of the drawn rows if left out, which
            differs between layers and models and makes the value blind to a common scale.
        max_rows: Rows drawn of each modality; None for all.

    Returns:
        `GapResult`, each layer at most 2; slightly below 0 is possible where the clouds coincide.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or text rows of zero alone.

    Source: Gretton et al. (2012), Eq. 3, with the median heuristic.
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    by = _Samples(rows, confidence)
    found, influence = zip(*(_rbf(v, t, sigma, by, True, True) for v, t in rows.layers("text")), strict=True)
    return by.result("mmd", found, influence, sigma=sigma or "median", seed=seed)


@register(
    "cmmd",
    title="CMMD",
    asks="The same of directions, with a kernel so wide that it sees little but their means?",
    source="arXiv 2401.09603",
    needs=ROWS,
    direction=LOWER,
    cost="n² d",
)
def cmmd(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    max_rows: int | None = QUADRATIC_ROWS,
    unbiased: bool = True,
) -> GapResult:
    """CMMD: 1000 times MMD² of unit vectors with a Gaussian kernel of width 10.

    Made for CLIP's embeddings, where distances are below 2. There a kernel of width 10 is all but linear, and the value
    close to ``1000 / σ² = 10`` times the squared `modality_gap`.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Of the draw of rows.
        confidence: Of the interval over samples; None for none.
        max_rows: Rows drawn of each modality; None for all.
        unbiased: Whether to leave out pairs of a row with itself; the published code does not.

    Returns:
        `GapResult`.

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: Jayasumana et al. (2024), arXiv 2401.09603.
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    by = _Samples(rows, confidence)
    found, influence = [], []
    for sides in rows.layers("unit"):
        value, of_samples = _rbf(*sides, CMMD_SIGMA, by, unbiased, False)
        found.append(CMMD_SCALE * value)
        if by.wanted:
            influence.append(CMMD_SCALE * of_samples)
    return by.result("cmmd", found, influence, sigma=CMMD_SIGMA, scale=CMMD_SCALE, unbiased=unbiased, seed=seed)


@register(
    "kid",
    title="KID",
    asks="Do the clouds agree in their moments up to the third?",
    source="Bińkowski et al. 2018",
    needs=ROWS,
    direction=LOWER,
    cost="n² d",
)
def kid(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    max_rows: int | None = QUADRATIC_ROWS,
) -> GapResult:
    """KID: unbiased squared MMD with the cubic kernel ``(x·y / d + 1)³``.

    The kernel has no scale of its own, so rows are scaled until the mean text norm is √d, about 1 a dimension, which
    keeps the ratio of the modalities' norms. One estimate from all drawn rows; no average over subsets.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Of the draw of rows.
        confidence: Of the interval over samples; None for none.
        max_rows: Rows drawn of each modality; None for all.

    Returns:
        `GapResult`; slightly below 0 is possible where the clouds coincide.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or text rows of zero alone.

    Source: Bińkowski et al. (2018).
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)

    found, influence, by = [], [], _Samples(rows, confidence)
    for v, t in rows.layers("text"):
        products = [v @ v.T, t @ t.T, v @ t.T]  # of rows in mean text norms; times √d each and divided by d is the same
        total, without = 0.0, 0.0
        if by.wanted:
            norms = row_norms(t)
            longer = (norms.mean() / by.means_without(norms, 1)).square()
        for power, weight in ((1, 3), (2, 3), (3, 1)):  # (p + 1)³; its constant goes away
            value, of_rest = _mmd([each**power for each in products], by, True)
            total += weight * value
            if by.wanted:
                without = without + weight * of_rest * longer**power
        found.append(total)
        if by.wanted:
            influence.append(left_out(without))
    return by.result("kid", found, influence, seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Transport, densities, classifiers


def wasserstein_1d(x: Tensor, y: Tensor, p: float = 1.0) -> Tensor:
    """``∫₀¹ |F⁻¹ − G⁻¹|ᵖ`` of the columns of (n, c) and (m, c) values, exact also where n and m differ.

    Returns:
        (c,) one value a column; not yet raised to 1/p.
    """
    n, m = len(x), len(y)
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    if n == m:
        return (x - y).abs().pow(p).mean(0)
    steps = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # levels in units of 1/(n m)
    widths = torch.from_numpy(np.diff(steps) / (n * m))
    first, second = torch.from_numpy(steps[:-1] // m), torch.from_numpy(steps[:-1] // n)
    return widths @ (x[first] - y[second]).abs().pow(p)


def _wasserstein_influence(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Influences of (n, c) and (m, c) values on the mean over c columns of ``∫ |F − G|``: (n,) and (m,), of sum 0.

    More weight on a row raises F right of it: ``∫ sign(F − G) (1[row ≤ z] − F(z)) dz``.
    """
    n, m = len(x), len(y)
    values, order = torch.cat([x, y]).sort(dim=0)
    steps = torch.cat([values.new_full((n,), m), values.new_full((m,), -n)])  # whole numbers: equal ones cancel
    signs = steps[order].cumsum(0)[:-1].sign() * values.diff(dim=0)
    behind = torch.cat([signs.flip(0).cumsum(0).flip(0), signs.new_zeros(1, signs.shape[1])])
    reached = torch.empty_like(values).scatter_(0, order, behind).mean(1)
    return (reached[:n] - reached[:n].mean()) / n, -(reached[n:] - reached[n:].mean()) / m


def mean_projection(dim: int) -> float:
    """Mean of ``|θ·e|`` over directions θ, for a unit vector e: what a slice sees of a shift by 1.

    Examples:
        >>> round(mean_projection(1), 6), round(mean_projection(2) * math.pi / 2, 6)
        (1.0, 1.0)
    """
    return math.exp(gammaln(dim / 2) - gammaln((dim + 1) / 2)) / math.sqrt(math.pi)


@register(
    "sliced_wasserstein",
    title="sliced Wasserstein",
    asks="How far must mass move, on average over the directions one can look from?",
    source="Bonneel et al. 2015",
    needs=ROWS,
    direction=LOWER,
    cost="n d",
)
def sliced_wasserstein(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    directions: int = 128,
    p: float = 1.0,
    max_rows: int | None = 2 * QUADRATIC_ROWS,
) -> GapResult:
    """Sliced Wasserstein distance: ``(mean over directions of W_p(θ·v, θ·t)ᵖ)^{1/p}``, random directions.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Of the draw of rows and of the directions, which are the same in every layer.
        confidence: Of the interval over samples; None for none.
        directions: How many.
        p: Order, at least 1.
        max_rows: Rows drawn of each modality; None for all.

    Returns:
        `GapResult`, each layer in units of the mean text norm. A shift by c gives ``‖c‖ · mean_projection(d)`` for
        ``p = 1``.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, text rows of zero alone, fewer than one
            direction, or an order below 1.

    Source: Bonneel et al. (2015).
    """
    if directions < 1 or p < 1:
        raise MirlibError(f"expected at least one direction and an order of at least 1, got {directions} and {p:g}")
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    theta = torch.randn(rows.dim, directions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = theta / torch.linalg.vector_norm(theta, dim=0)
    found, influence, by = [], [], _Samples(rows, confidence)
    for v, t in rows.layers("text"):
        seen = v @ theta, t @ theta
        found.append(float(wasserstein_1d(*seen, p).mean()) ** (1 / p))
        if by.wanted and p == 1:
            of_rows = _wasserstein_influence(*seen)
            of_samples = sum(by.sums(values, side) for side, values in enumerate(of_rows))
            influence.append((of_samples + _of_unit(found[-1], t, by)).numpy())
    why = "the derivative is that of the order p = 1"
    return by.result("sliced_wasserstein", found, influence, why=why, directions=directions, p=p, seed=seed)


@register(
    "symmetric_kl",
    title="symmetric KL of Gaussians",
    asks="How many nats does it cost to take one cloud's Gaussian for the other's?",
    source="Jeffreys 1946; asked for by reviewers of MIR",
    needs=ROWS,
    direction=LOWER,
    cost="n d² + d³",
)
def symmetric_kl(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    ridge: float = 1e-3,
) -> GapResult:
    """Mean of the two Kullback–Leibler divergences between the Gaussians fitted to the rows.

        J = ¼ Tr(Σ_v⁻¹ Σ_t + Σ_t⁻¹ Σ_v − 2 I) + ¼ (μ_v − μ_t)ᵀ (Σ_v⁻¹ + Σ_t⁻¹) (μ_v − μ_t)

    Covariances of token rows are near-singular, and J explodes with the smallest of their eigenvalues. Both are
    therefore regularised by the same multiple of the identity, ``ridge · ½ (Tr Σ_v + Tr Σ_t) / d``. Without it J does
    not change under any invertible affine map; with it, under rotations, shifts and a common scale.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Not needed here.
        confidence: Of the interval over samples; None for none.
        ridge: Share of the mean variance that is added to every variance, at least 0.

    Returns:
        `GapResult`, each layer in nats, at least 0.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or covariances that are singular even so.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found, influence, by = [], [], _Samples(rows, confidence)
    for k, sides in enumerate(rows.layers(), start=1):
        moments = [moment for side in sides for moment in (side.mean(0), torch.atleast_2d(torch.cov(side.T)))]
        for moment in moments:
            moment.requires_grad_(by.wanted)
        with torch.set_grad_enabled(by.wanted):
            divergence = _jeffreys(*moments, ridge)
        if divergence is None:
            raise MirlibError(f"layer {k}: a covariance is singular, so the divergence is infinite; raise ridge")
        found.append(max(float(divergence.detach()), 0.0))
        if by.wanted:
            slopes = torch.autograd.grad(divergence, moments)
            influence.append(_of_moments(sides, slopes, by))
    return by.result("symmetric_kl", found, influence, ridge=ridge)


def _jeffreys(mean_v: Tensor, cov_v: Tensor, mean_t: Tensor, cov_t: Tensor, ridge: float) -> Tensor | None:
    """The divergence of two Gaussians, regularised; None where a covariance is singular."""
    dim = len(mean_v)
    added = ridge * (cov_v.trace() + cov_t.trace()) / 2 / dim * torch.eye(dim, dtype=torch.float64)
    covariances = [cov_v + added, cov_t + added]
    difference = (mean_v - mean_t)[:, None]
    total = -2.0 * dim
    for one, other in (covariances, covariances[::-1]):
        lower, failed = torch.linalg.cholesky_ex(one)
        if int(failed):
            return None
        total = total + torch.cholesky_solve(other, lower).trace()
        total = total + (difference * torch.cholesky_solve(difference, lower)).sum()
    return total / 4


def _of_moments(sides: Sequence[Tensor], slopes: Sequence[Tensor], by: _Samples) -> np.ndarray:
    """(N,) influences by the slopes of a value in the mean and the covariance of each modality."""
    total = torch.zeros(by.size, dtype=torch.float64)
    for side, rows in enumerate(sides):
        of_mean, of_covariance = slopes[2 * side : 2 * side + 2]
        centred = rows - rows.mean(0)
        values = ((centred @ of_covariance) * centred).sum(1)
        total += by.sums(centred @ of_mean + values - values.mean(), side) / len(rows)
    return total.numpy()


@register(
    "probe_auc",
    title="linear-probe AUC",
    asks="Can a plane that it has not seen these samples tell vision rows from text rows?",
    source="asked for by reviewers of MIR",
    needs=ROWS,
    direction=LOWER,
    cost="n d² + d³",
)
def probe_auc(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    folds: int = 5,
    penalty: float = 1.0,
    max_rows: int | None = 2 * QUADRATIC_ROWS,
) -> GapResult:
    """Area under the ROC curve of a linear probe for "is this a vision row?", on samples that it was not fitted to.

    The probe is a ridge regression on ±1 (Fisher's discriminant, shrunk) of standardised columns: solved in one step,
    also where rows can be separated, where a logistic regression runs to infinity. 0.5 means that no plane tells the
    modalities apart; 1 that one does without fail, which says nothing of how far apart they are.

    The interval is for the probes that were fitted: each sample's influence is that on the area of its own fold.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; rows of one sample stay in one fold. Left out, the
            rows are dealt to the folds one by one, which is too kind to the probe.
        seed: Of the draw of rows and of the folds.
        confidence: Of the interval over samples; None for none.
        folds: How many.
        penalty: Of the ridge, at least 0, for standardised columns.
        max_rows: Rows drawn of each modality; None for all.

    Returns:
        `GapResult`, each layer in [0, 1].

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or too few samples for the folds.
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    counts = list(rows.counts.values())
    if rows.samples is None:
        groups = np.concatenate([np.arange(count) for count in counts])
    else:
        groups = torch.cat(rows.samples).numpy()
    labels = np.repeat([1.0, -1.0], counts)
    names, groups = np.unique(groups, return_inverse=True)
    fold = np.empty(len(names), dtype=int)
    fold[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % max(folds, 1)
    fold = fold[groups]
    if folds < 2 or any(len(set(labels[part])) < 2 for f in range(folds) for part in (fold == f, fold != f)):
        raise MirlibError(f"{len(names)} samples are too few for {folds} folds with both modalities in each")
    found, influence, by = [], [], _Samples(rows, confidence)
    for v, t in rows.layers():
        values = torch.cat([v, t]).numpy()
        areas, of_rows = [], np.zeros(len(values))
        for f in range(folds):
            fit, test = fold != f, fold == f
            mean, std = values[fit].mean(0), values[fit].std(0)
            std[std == 0] = 1.0
            probe = Ridge(alpha=penalty, solver="cholesky").fit((values[fit] - mean) / std, labels[fit])
            scores = probe.predict((values[test] - mean) / std)
            areas.append(roc_auc_score(labels[test], scores))
            of_rows[test] = _auc_influence(scores, labels[test] > 0) / folds
        found.append(float(np.mean(areas)))
        if by.wanted:
            influence.append(sum(by.sums(part, i) for i, part in enumerate(torch.from_numpy(of_rows).split(counts))))
    return by.result("probe_auc", found, influence, folds=folds, penalty=penalty, seed=seed)


def _auc_influence(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Influences of (n,) scores on the area under their ROC curve: the share of the other class below it, or above."""
    found = np.empty(len(scores))
    for own in (True, False):
        mine, others = scores[positive == own], np.sort(scores[positive != own])
        below = (np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")) / 2 / len(others)
        share = below if own else 1 - below
        found[positive == own] = (share - share.mean()) / len(mine)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The Fréchet family


@register(
    "mir",
    title="MIR",
    asks="How far apart are the clouds' Gaussians, in mean text norms?",
    source="Huang et al. 2024, arXiv 2410.07167",
    needs=ROWS,
    direction=LOWER,
    cost="n d² + d³",
)
def mir(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    preset: str = "paper",
) -> GapResult:
    """`mirlib.modality_integration_rate` in the form of the other measures: ``log10 Σ_k FID_k``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Not needed here.
        confidence: Of the interval over samples; None for none.
        preset: See there.

    Returns:
        `GapResult`; ``per_layer`` is FID_k.

    Raises:
        MirlibError: See there.
    """
    found = modality_integration_rate(vision, text, preset=preset)
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    influence, by = [], _Samples(rows, confidence)
    if by.wanted and preset == "paper":
        for sides, distance in zip(rows.layers("text"), found.per_layer, strict=True):
            bounds = [NormBounds.three_sigma(row_norms(side)) for side in sides]
            of_samples = _fid_influence(sides, _inside(sides), by, bounds)
            if of_samples is not None:
                influence.append((of_samples + _of_unit(2 * distance, sides[1], by)).numpy())
    why = NO_DERIVATIVE if preset == "paper" else "the derivative is that of the preset 'paper'"
    return by.result("mir", found.per_layer, influence, why=why, logarithm=True, preset=preset)


@register(
    "norm_only",
    title="norm-only baseline",
    asks="How long are vision tokens, in mean text norms?",
    source="this book, chapter 3",
    needs=ROWS,
    direction=LOWER,
    cost="n d",
)
def norm_only(
    vision: Any, text: Any, *, samples: Any = None, seed: int = 0, confidence: float | None = CONFIDENCE
) -> GapResult:
    """MIR's norm-only baseline: ``log10 Σ_k α_k² mean ‖v‖²``. It knows lengths and nothing else.

    Outlier rows are dropped as in MIR's preset ``paper``; the value is that of `mirlib.MIRResult.norm_only`.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to, for the interval.
        seed: Not needed here.
        confidence: Of the interval over samples; None for none.

    Returns:
        `GapResult`; ``per_layer`` is ``α_k² mean ‖v‖²``, in squared mean text norms.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or text rows of zero alone.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found, influence, by = [], [], _Samples(rows, confidence)
    for v, t in rows.layers("text"):
        kept, _ = _inside((v, t))
        squares = torch.where(kept, row_norms(v), 0.0).square()
        found.append(float(squares.sum() / kept.sum()))
        if by.wanted:
            without = by.means_without(squares, 0) / by.means_without(kept.double(), 0)
            influence.append(left_out(without / by.means_without(row_norms(t), 1).square()))
    return by.result("norm_only", found, influence, logarithm=True)


NO_DERIVATIVE = "in a layer rows are fewer than twice the dimensions or in a subspace: the distance has no derivative"


def _fid_influence(
    sides: Sequence[Tensor], kept: Sequence[Tensor], by: _Samples, bounds: Sequence[NormBounds] | None = None
) -> Tensor | None:
    """(N,) influences on the Fréchet distance of the rows that are kept; None where it has no derivative.

    With ``bounds`` those of the outlier rule, by which the rows were kept, move with the samples.
    """
    moments = [Moments.of(side[mask]) for side, mask in zip(sides, kept, strict=True)]
    if not all(rows_suffice(side.count, side.dim) and is_regular(side.covariance) for side in moments):
        return None
    layer = LayerInfluence.of(*moments, 0.0, 1.0, normalized=False, text_rows=len(sides[1]))
    if bounds is None:
        of_rows = [torch.where(kept[i], layer.of_kept(rows, i), 0.0) for i, rows in enumerate(sides)]
        return sum(by.sums(values, side) for side, values in enumerate(of_rows))
    total = torch.zeros(by.size, dtype=torch.float64)
    for side, rows in enumerate(sides):
        found = SampleInfluence(layer, side, bounds[side], by.size, torch.device("cpu"))
        found.add(rows, row_norms(rows), by.places[side])
        total += found.total()
    return total


def _inside(sides: Sequence[Tensor]) -> list[Tensor]:
    """Which rows of each modality the 3σ rule keeps."""
    norms = [row_norms(side) for side in sides]
    return [~NormBounds.three_sigma(values).outliers(values) for values in norms]


@register(
    "fd_infinity",
    title="FD∞",
    asks="What would MIR be if there were infinitely many samples?",
    source="Chong & Forsyth, arXiv 1911.07023",
    needs=ROWS,
    direction=LOWER,
    cost="n d² + d³, several times",
)
def fd_infinity(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    parts: tuple[int, ...] = (1, 2, 3, 4),
) -> GapResult:
    """MIR with its bias extrapolated away: FID_k against 1/N, a line through it, and its value at 1/N = 0.

    The samples are dealt at random into 1, 2, 3 and 4 equal parts; a point of the line is the mean FID of the parts,
    so that every point has seen every sample. Scale and outlier rule are those of MIR on all rows. The extrapolation
    holds while the bias falls as 1/N, which takes more rows than dimensions in every part.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to: whole samples are dealt. Left out, rows are, and
            tokens of one image pass for independent ones.
        seed: Of the deal.
        confidence: Of the interval over samples; None for none.
        parts: Into how many parts; at least two different numbers.

    Returns:
        `GapResult`; ``per_layer`` is the intercept, ``value`` the logarithm to base 10 of their sum, −inf or NaN if
        that is not positive.

    Raises:
        MirlibError: As for MIR, or if a part would hold fewer than 2 rows of a modality.

    Source: Chong & Forsyth (2020), arXiv 1911.07023.
    """
    if len(set(parts)) < 2 or min(parts) < 1:
        raise MirlibError(f"parts: expected at least two different numbers from 1 on, got {parts}")
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    ids = rows.samples or tuple(torch.arange(count) for count in rows.counts.values())
    names = torch.cat(ids).unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    places = [order[torch.searchsorted(names, numbers)] for numbers in ids]
    # N of a part is len(names) / number: the line is in the number of parts, and its intercept linear in the means.
    weights = np.linalg.pinv(np.stack([parts, np.ones(len(parts))], axis=1))[1]
    found, influence, by = [], [], _Samples(rows, confidence)
    for k, sides in enumerate(rows.layers("text"), start=1):
        kept, means = _inside(sides), []
        of_samples: Tensor | None = torch.zeros(by.size, dtype=torch.float64)
        for number, weight in zip(parts, weights, strict=True):
            distances = []
            for part in range(number):
                masks = [mask & (place % number == part) for mask, place in zip(kept, places, strict=True)]
                dealt = [side[mask] for side, mask in zip(sides, masks, strict=True)]
                if min(map(len, dealt)) < 2:
                    raise MirlibError(f"layer {k}: {len(names)} samples are too few to be dealt into {number} parts")
                distances.append(distance_of_rows(*dealt)[0].total)
                if by.wanted and of_samples is not None:
                    of_part = _fid_influence(sides, masks, by)
                    of_samples = None if of_part is None else of_samples + weight / number * of_part
            means.append(np.mean(distances))
        found.append(float(weights @ means))
        if by.wanted and of_samples is not None:
            influence.append((of_samples + _of_unit(2 * found[-1], sides[1], by)).numpy())
    options = {"logarithm": True, "parts": list(parts), "seed": seed}
    return by.result("fd_infinity", found, influence, why=NO_DERIVATIVE, **options)
