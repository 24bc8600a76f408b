"""Measures of two clouds of rows: they need no pairs, and take every row for itself.

`of_clouds` makes a measure of all layers out of what it is for one. With ``samples`` it has an interval over them: from
the value without each sample where sums over samples lead to it, else from the derivative by each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.frechet import Moments, distance_of_rows
from mirlib.gaps import base
from mirlib.gaps.base import HIGHER, LOWER, QUADRATIC_ROWS, GapResult, left_out, sums_of_samples, unit
from mirlib.influence import LayerInfluence, SampleInfluence, rows_suffice
from mirlib.mir import NormBounds, modality_integration_rate, row_norms

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
NO_DERIVATIVE = "in a layer rows are fewer than twice the dimensions"


@dataclass(frozen=True)
class Layer:
    """What a measure of clouds knows of a layer, 1..K, and sums over the rows of each sample.

    Attributes:
        sides: (r, d) vision rows and (s, d) text rows, float64.
        places: The sample of each row, 0..N−1, by modality; empty where they are not known, and then N, ``size``, is 0.
        wanted: Whether influences of the samples are.
        seed: Of what is drawn.
    """

    number: int
    sides: tuple[Tensor, Tensor]
    places: tuple[Tensor, ...]
    size: int
    wanted: bool
    seed: int

    @cached_property
    def counts(self) -> list[Tensor]:
        """(N,) rows of each sample, by modality."""
        return [place.bincount(minlength=self.size).double() for place in self.places]

    def sums(self, values: Tensor, side: int) -> Tensor:
        """(N, …) sums of a modality's (rows, …) values over the rows of each sample."""
        return sums_of_samples(values, self.places[side], self.size)

    def both(self, values: Sequence[Tensor]) -> Tensor:
        """(N,) sums of the values of both modalities' rows."""
        return sum(self.sums(of_rows, side) for side, of_rows in enumerate(values))

    def means(self, values: Tensor, side: int) -> Tensor:
        """(1 + N, …) means of a modality's (rows, …) values, over all rows and, if wanted, without each sample."""
        mean = values.double().mean(0, keepdim=True)
        if not self.wanted:
            return mean
        sums = self.sums(values, side)
        left = len(values) - self.counts[side]
        return torch.cat([mean, (sums.sum(0) - sums) / left.reshape(-1, *[1] * (values.ndim - 1))])

    def unit_of_length(self, slope: float, text: Tensor) -> Tensor:
        """(N,) influences by the mean norm of (s, d) text rows; ``slope`` is that by the log of a common factor."""
        norms = row_norms(text)
        return -slope * self.sums(norms - norms.mean(), 1) / len(text)


Found = tuple[float, Any]
"""A layer's value, and the (N,) influences of the samples on it; None if none are wanted, or why there are none."""


def _found(values: Tensor) -> Found:
    """From (1 + N,) values, that of all rows and those without each sample, if wanted."""
    return float(values[0]), left_out(values[1:]) if len(values) > 1 else None


_TAKEN = """\
    vision: K arrays (r, d), as `mirlib.modality_integration_rate` takes them.
    text: K arrays (s, d).
    samples: Pair (r,), (s,) of the samples that rows belong to; without them there is no interval.
    seed: Of all that is drawn: rows, parts, directions.
    confidence: Of the interval over samples; None for none.
    max_rows: Rows drawn of each modality; None for all.
"""


def of_clouds(
    name: str, *, scale: str = "none", max_rows: int | None = None, logarithm: bool = False, **entry: str
) -> base.Decorator:
    """Decorator: from a function of a `Layer` and options to a measure of all layers, known by its name.

    Its rows are in a ``scale`` of `mirlib.gaps.base.Rows.layers`; its value is the mean of the layers, or with
    ``logarithm`` that of their sum, to base 10.
    """
    default = max_rows

    def decorate(function: Callable[..., Found]) -> Callable[..., GapResult]:
        def measure(
            vision: Any,
            text: Any,
            *,
            samples: Any = None,
            seed: int = 0,
            confidence: float | None = base.CONFIDENCE,
            max_rows: int | None = default,
            **options: Any,
        ) -> GapResult:
            rows = base.Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
            size = 0 if rows.names is None else len(rows.names)
            wanted = confidence is not None and size > 1
            layers = (Layer(k, sides, rows.places, size, wanted, seed) for k, sides in enumerate(rows.layers(scale), 1))
            values, influences = zip(*(function(layer, **options) for layer in layers), strict=True)
            why = next((each for each in influences if isinstance(each, str)), None)
            influence = np.stack(influences) if wanted and why is None else None
            why = "there is one sample alone" if size == 1 else why
            beside = {"logarithm": logarithm, "influence": influence, "no_interval": why, "confidence": confidence}
            settings = {**(function.__kwdefaults__ or {}), **options, "seed": seed}
            return base.result(name, values, rows.counts, **beside, **settings)

        return base.register(name, needs=base.ROWS, **entry)(base.public(function, measure, _TAKEN))

    return decorate


@of_clouds("modality_gap", scale="unit", title="modality gap", direction=LOWER)
def modality_gap(layer: Layer) -> Found:
    """Modality gap: the distance of the mean unit vectors, ``‖mean(v/‖v‖) − mean(t/‖t‖)‖₂``, in [0, 2].

    How far apart are the mean directions? Norms do not count.

    Source: Liang et al. (2022), arXiv 2203.02053, there on CLIP's embeddings.

    Examples:
        >>> east, north = [[[1.0, 0.0], [5.0, 0.0]]], [[[0.0, 2.0], [0.0, 3.0]]]
        >>> import numpy as np
        >>> round(modality_gap(np.array(east), np.array(north)).value, 6)
        1.414214
    """
    v, t = (layer.means(rows, side) for side, rows in enumerate(layer.sides))
    return _found(torch.linalg.vector_norm(v - t, dim=1))


@of_clouds("ima", title="IMA score", direction=HIGHER)
def ima(layer: Layer) -> Found:
    """IMA score: the cosine of the mean vision row and the mean text row, in [−1, 1]; 0 where a mean is zero.

    Do the mean vision token and the mean text token point the same way? Source: arXiv 2405.16700.
    """
    v, t = (unit(layer.means(rows, side)) for side, rows in enumerate(layer.sides))
    return _found(torch.linalg.vecdot(v, t))


@of_clouds("a_score", scale="unit", max_rows=QUADRATIC_ROWS, title="A-score", direction=HIGHER)
def a_score(layer: Layer) -> Found:
    """A-score: the mean over vision rows of the best cosine with a text row, in [−1, 1].

    Has a vision token some text token that points its way? The best of more rows is better: compare values of the same
    number of text rows only. Source: arXiv 2408.16357, where the reference are tokens of the same picture that come
    from a CLIP encoder, with which a language model's layers have nothing to do; here it is the layer's text rows.
    """
    v, t = layer.sides
    cosines = v @ t.T
    found = float(cosines.amax(1).mean())
    if not layer.wanted:
        return found, None
    of_samples = torch.full((len(v), layer.size), -math.inf, dtype=torch.float64)  # with the text of each sample
    of_samples.scatter_reduce_(1, layer.places[1].expand(len(v), -1), cosines, "amax")
    (first, second), (owner, _) = (two.T for two in of_samples.topk(2, dim=1))
    lost = first - second  # by a vision row, without the text of its owner
    own = torch.where(owner == layer.places[0], second, first)
    total = first.sum() - sums_of_samples(lost, owner, layer.size) - layer.sums(own, 0)
    return found, left_out(total / (len(v) - layer.counts[0]))


def squared_mmd(kernel: Tensor, layer: Layer) -> Tensor:
    """(1 + N,) ``mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y)`` over different rows, all and without each sample."""

    def of_sums(xx: Tensor, yy: Tensor, xy: Tensor, n: Any, m: Any) -> Tensor:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    kernel = kernel.clone().fill_diagonal_(0)  # a row is no pair with itself
    n, m = map(len, layer.sides)
    parts = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    value = of_sums(*(part.sum() for part in parts), n, m)[None]
    if not layer.wanted:
        return value
    left = []
    for part, (first, second) in zip(parts, ((0, 0), (1, 1), (0, 1)), strict=True):
        blocks = layer.sums(layer.sums(part, first).T, second)  # (N, N), of each two samples
        left.append(blocks.sum() - blocks.sum(0) - blocks.sum(1) + blocks.diagonal())
    return torch.cat([value, of_sums(*left, n - layer.counts[0], m - layer.counts[1])])


def _square_distances(layer: Layer) -> Tensor:
    """(n + m, n + m) squared distances of all rows."""
    rows = torch.cat(layer.sides)
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)


def _median_without(squares: Tensor, ordered: np.ndarray, median: float, layer: Layer) -> Tensor:
    """(N,) medians of the squared distances of two rows (``ordered``: each once), without each sample.

    Without ``t`` of ``T`` distances, of which ``c`` are at most the median, the middle moves ``c − t / 2`` places up
    among those that are left, which lie as densely as before but for the share that is gone.
    """
    places, own = torch.cat(layer.places), sum(layer.counts)
    blocks = sums_of_samples(sums_of_samples(squares <= median, places, layer.size).T, places, layer.size)
    below = blocks.sum(0) - blocks.diagonal() + (blocks.diagonal() - own) / 2
    pairs = own * (len(squares) - own) + own * (own - 1) / 2
    moved = (below - pairs / 2) * len(ordered) / (len(ordered) - pairs)
    places = (moved + (len(ordered) - 1) / 2).round().long().clamp(0, len(ordered) - 1).numpy()
    return torch.from_numpy(np.partition(ordered, np.unique(places))[places])


@of_clouds("mmd", scale="text", max_rows=QUADRATIC_ROWS, title="MMD², Gaussian kernel", direction=LOWER)
def mmd(layer: Layer) -> Found:
    """Unbiased squared maximum mean discrepancy with the kernel ``exp(−‖x − y‖² / (2σ²))``.

    Can any smooth function tell the clouds apart by its mean? σ is the median distance of two of the drawn rows: it
    differs between layers and models, and makes the value blind to a common scale. A layer has at most 2, and perhaps
    slightly less than 0 where the clouds coincide. Source: Gretton et al. (2012), Eq. 3, with the median heuristic.
    """
    squares = _square_distances(layer)
    of_two = squares[tuple(torch.triu_indices(*squares.shape, 1))]  # different rows, each two once
    median = float(of_two.median())
    square = median or max(float(squares.max()), 1.0)  # of 0, where most rows are one point
    kernel = torch.exp(-squares / (2 * square))
    values = squared_mmd(kernel, layer)
    if layer.wanted and median:
        slope = squared_mmd(kernel * squares / (2 * square), layer)[0]
        values[1:] += slope * (_median_without(squares, of_two.numpy(), square, layer) / square - 1)
    return _found(values)


@of_clouds("cmmd", scale="unit", max_rows=QUADRATIC_ROWS, title="CMMD", direction=LOWER)
def cmmd(layer: Layer) -> Found:
    """CMMD: 1000 times the unbiased MMD² of unit vectors with a Gaussian kernel of width 10.

    Can a function of directions tell the clouds apart, one so smooth that it sees little but their means? Made for
    CLIP's embeddings, where distances are below 2. There a kernel of width 10 is all but linear, and the value close to
    ``1000 / σ² = 10`` times the squared `modality_gap`. Source: Jayasumana et al. (2024), arXiv 2401.09603, whose code
    is biased: it also counts pairs of a row with itself.
    """
    kernel = torch.exp(-_square_distances(layer) / (2 * CMMD_SIGMA**2))
    return _found(CMMD_SCALE * squared_mmd(kernel, layer))


@of_clouds("kid", scale="text", max_rows=QUADRATIC_ROWS, title="KID", direction=LOWER)
def kid(layer: Layer) -> Found:
    """KID: unbiased squared MMD with the cubic kernel ``(x·y / d + 1)³``.

    Do the clouds agree in their moments up to the third? The kernel has no scale of its own, so rows are scaled until
    the mean text norm is √d, about 1 a dimension, which keeps the ratio of the modalities' norms. One estimate from all
    drawn rows, no average over subsets; slightly below 0 is possible where the clouds coincide. Source: Bińkowski et
    al. (2018).
    """
    rows = torch.cat(layer.sides)
    products = rows @ rows.T  # of rows in mean text norms; times √d each and divided by d is the same
    norms = layer.means(row_norms(layer.sides[1]), 1)
    longer = (norms[0] / norms).square()
    powers = ((1, 3), (2, 3), (3, 1))  # (p + 1)³; its constant goes away
    return _found(sum(weight * squared_mmd(products**n, layer) * longer**n for n, weight in powers))


def wasserstein_1d(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(c,) ``∫ |F − G|`` of the columns of (n, c) and (m, c) values, and the influences on their mean.

    These are (n,) and (m,) and sum to 0. More weight on a row raises F right of it:
    ``∫ sign(F − G) (1[row ≤ z] − F(z)) dz``.
    """
    n, m = len(x), len(y)
    values, order = torch.cat([x, y]).sort(dim=0)
    steps = torch.cat([values.new_full((n,), m), values.new_full((m,), -n)])  # whole numbers: equal ones cancel
    apart, widths = steps[order].cumsum(0)[:-1], values.diff(dim=0)  # n m (F − G)
    signs = apart.sign() * widths
    behind = torch.cat([signs.flip(0).cumsum(0).flip(0), signs.new_zeros(1, signs.shape[1])])
    reached = torch.empty_like(values).scatter_(0, order, behind).mean(1)
    influences = (reached[:n] - reached[:n].mean()) / n, -(reached[n:] - reached[n:].mean()) / m
    return (apart.abs() * widths).sum(0) / (n * m), influences


@of_clouds("sliced_wasserstein", scale="text", max_rows=2 * QUADRATIC_ROWS, title="sliced Wasserstein", direction=LOWER)
def sliced_wasserstein(layer: Layer, *, directions: int = 128) -> Found:
    """Sliced Wasserstein distance: the mean over random directions θ of ``W₁(θ·v, θ·t)``, in mean text norms.

    How far must mass move, on average over the directions one can look from? A shift by c gives ``‖c‖`` times the mean
    of ``|θ·e|`` for a unit vector e. Source: Bonneel et al. (2015).

    Args:
        layer: Its rows.
        directions: How many; the same in every layer.
    """
    if directions < 1:
        raise MirlibError(f"expected at least one direction, got {directions}")
    dim = layer.sides[0].shape[1]
    theta = torch.randn(dim, directions, generator=torch.Generator().manual_seed(layer.seed), dtype=torch.float64)
    theta = theta / torch.linalg.vector_norm(theta, dim=0)
    distances, of_rows = wasserstein_1d(*(side @ theta for side in layer.sides))
    found = float(distances.mean())
    return found, layer.both(of_rows) + layer.unit_of_length(found, layer.sides[1]) if layer.wanted else None


@of_clouds("symmetric_kl", title="symmetric KL of Gaussians", direction=LOWER)
def symmetric_kl(layer: Layer, *, ridge: float = 1e-3) -> Found:
    """Mean of the two Kullback–Leibler divergences (Jeffreys, 1946) of the Gaussians fitted to the rows, 0 or more.

    How many nats does it cost to take one cloud's Gaussian for the other's?

        J = ¼ Tr(Σ_v⁻¹ Σ_t + Σ_t⁻¹ Σ_v − 2 I) + ¼ (μ_v − μ_t)ᵀ (Σ_v⁻¹ + Σ_t⁻¹) (μ_v − μ_t)

    Covariances of token rows are near-singular, and J explodes with the smallest of their eigenvalues. Both are
    therefore regularised by the same multiple of the identity, ``ridge · ½ (Tr Σ_v + Tr Σ_t) / d``; a layer is refused
    where one is singular even so. Without ridge J does not change under any invertible affine map; with it, under
    rotations, shifts and a common scale.

    Args:
        layer: Its rows.
        ridge: Share of the mean variance that is added to every variance, at least 0.
    """
    moments = [moment for side in layer.sides for moment in (side.mean(0), torch.atleast_2d(torch.cov(side.T)))]
    for moment in moments:
        moment.requires_grad_(layer.wanted)
    with torch.set_grad_enabled(layer.wanted):
        divergence = _jeffreys(*moments, ridge, layer.number)
    found = max(float(divergence.detach()), 0.0)
    if not layer.wanted:
        return found, None
    slopes = torch.autograd.grad(divergence, moments)
    influence = torch.zeros(layer.size, dtype=torch.float64)
    for side, (rows, of_mean, of_covariance) in enumerate(zip(layer.sides, slopes[::2], slopes[1::2], strict=True)):
        centred = rows - rows.mean(0)
        values = ((centred @ of_covariance) * centred).sum(1)
        influence += layer.sums(centred @ of_mean + values - values.mean(), side) / len(rows)
    return found, influence


def _jeffreys(mean_v: Tensor, cov_v: Tensor, mean_t: Tensor, cov_t: Tensor, ridge: float, layer: int) -> Tensor:
    """The divergence of two Gaussians, regularised; refused where a covariance is singular."""
    dim = len(mean_v)
    added = ridge * (cov_v.trace() + cov_t.trace()) / 2 / dim * torch.eye(dim, dtype=torch.float64)
    covariances = [cov_v + added, cov_t + added]
    difference = (mean_v - mean_t)[:, None]
    total = -2.0 * dim
    for one, other in (covariances, covariances[::-1]):
        lower, failed = torch.linalg.cholesky_ex(one)
        if int(failed):
            raise MirlibError(f"layer {layer}: a covariance is singular, so the divergence is infinite; raise ridge")
        total = total + torch.cholesky_solve(other, lower).trace()
        total = total + (difference * torch.cholesky_solve(difference, lower)).sum()
    return total / 4


@of_clouds("probe_auc", max_rows=2 * QUADRATIC_ROWS, title="linear-probe AUC", direction=LOWER)
def probe_auc(layer: Layer, *, folds: int = 5, penalty: float = 1.0) -> Found:
    """Area under the ROC curve of a linear probe for "is this a vision row?", on samples that it was not fitted to.

    Can a plane that has not seen these samples tell vision rows from text rows? The probe is a ridge regression on ±1
    (Fisher's discriminant, shrunk) of standardised columns: solved in one step, also where rows can be separated, where
    a logistic regression runs to infinity. In [0, 1]: 0.5 means that no plane tells the modalities apart; 1 that one
    does without fail, which says nothing of how far apart they are.

    Rows of one sample stay in one fold; without samples rows are dealt to the folds one by one, which is too kind to
    the probe. The interval is for the probes that were fitted: each sample's influence is that on the area of its own
    fold.

    Args:
        layer: Its rows.
        folds: How many; there must be samples enough for both modalities in each.
        penalty: Of the ridge, at least 0, for standardised columns.
    """
    counts = [len(side) for side in layer.sides]
    groups = torch.cat(layer.places or [torch.arange(count) for count in counts]).numpy()
    labels = np.repeat([1.0, -1.0], counts)
    names, groups = np.unique(groups, return_inverse=True)
    fold = np.empty(len(names), dtype=int)
    fold[np.random.default_rng(layer.seed).permutation(len(names))] = np.arange(len(names)) % max(folds, 1)
    fold = fold[groups]
    if folds < 2 or any(len(set(labels[part])) < 2 for f in range(folds) for part in (fold == f, fold != f)):
        raise MirlibError(f"{len(names)} samples are too few for {folds} folds with both modalities in each")
    values = torch.cat(layer.sides).numpy()
    areas, of_rows = [], np.zeros(len(values))
    for f in range(folds):
        fit, test = fold != f, fold == f
        mean, std = values[fit].mean(0), values[fit].std(0)
        std[std == 0] = 1.0
        probe = Ridge(alpha=penalty, solver="cholesky").fit((values[fit] - mean) / std, labels[fit])
        scores = probe.predict((values[test] - mean) / std)
        areas.append(roc_auc_score(labels[test], scores))
        of_rows[test] = _auc_influence(scores, labels[test] > 0) / folds
    influence = layer.both(torch.from_numpy(of_rows).split(counts)) if layer.wanted else None
    return float(np.mean(areas)), influence


def _auc_influence(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Influences of (n,) scores on the area under their ROC curve: the share of the other class below it, or above."""
    found = np.empty(len(scores))
    for own in (True, False):
        mine, others = scores[positive == own], np.sort(scores[positive != own])
        below = (np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")) / 2 / len(others)
        share = below if own else 1 - below
        found[positive == own] = (share - share.mean()) / len(mine)
    return found


@of_clouds("mir", logarithm=True, title="MIR", direction=LOWER)
def mir(layer: Layer) -> Found:
    """`mirlib.modality_integration_rate` by the preset "paper", ``log10 Σ_k FID_k``; ``per_layer`` is FID_k.

    How far apart are the clouds' Gaussians, in mean text norms? Source: Huang et al. (2024), arXiv 2410.07167.
    """
    found = float(modality_integration_rate(*([side] for side in layer.sides)).per_layer[0])
    if not layer.wanted:
        return found, None
    norm = float(row_norms(layer.sides[1]).mean())
    sides = [side / norm for side in layer.sides]
    of_samples = _fid_influence(sides, _inside(sides), layer, bounds_move=True)
    return found, NO_DERIVATIVE if of_samples is None else of_samples + layer.unit_of_length(2 * found, sides[1])


@of_clouds("norm_only", scale="text", logarithm=True, title="norm-only baseline", direction=LOWER)
def norm_only(layer: Layer) -> Found:
    """MIR's norm-only baseline: ``log10 Σ_k α_k² mean ‖v‖²``. It knows lengths and nothing else.

    How long are vision tokens, in mean text norms? Outlier rows are dropped as in MIR's preset ``paper``; the value is
    that of `mirlib.MIRResult.norm_only`, and ``per_layer`` is ``α_k² mean ‖v‖²``, in squared mean text norms.
    """
    v, t = layer.sides
    kept, _ = _inside((v, t))
    squares = layer.means(torch.where(kept, row_norms(v), 0.0).square(), 0) / layer.means(kept.double(), 0)
    norms = layer.means(row_norms(t), 1)
    return _found(squares * (norms[0] / norms).square())


def _fid_influence(sides: Any, kept: Sequence[Tensor], layer: Layer, *, bounds_move: bool = False) -> Tensor | None:
    """(N,) influences on the Fréchet distance of the rows that the 3σ rule keeps; None where they are too few."""
    moments = [Moments.of(side[mask]) for side, mask in zip(sides, kept, strict=True)]
    if not all(rows_suffice(side.count, side.dim) for side in moments):
        return None
    maps = LayerInfluence.of(*moments, 0.0, 1.0, normalized=False, text_rows=len(sides[1]))
    if not bounds_move:
        return layer.both([torch.where(kept[i], maps.of_kept(rows, i), 0.0) for i, rows in enumerate(sides)])
    total = torch.zeros(layer.size, dtype=torch.float64)
    for side, rows in enumerate(sides):
        norms = row_norms(rows)
        found = SampleInfluence(maps, side, NormBounds.three_sigma(norms), layer.size, torch.device("cpu"))
        found.add(rows, norms, layer.places[side])
        total += found.total()
    return total


def _inside(sides: Sequence[Tensor]) -> list[Tensor]:
    """Which rows of each modality the 3σ rule keeps."""
    norms = [row_norms(side) for side in sides]
    return [~NormBounds.three_sigma(values).outliers(values) for values in norms]


@of_clouds("fd_infinity", scale="text", logarithm=True, title="FD∞", direction=LOWER)
def fd_infinity(layer: Layer, *, parts: tuple[int, ...] = (1, 2, 3, 4)) -> Found:
    """MIR with its bias extrapolated away: FID_k against 1/N, a line through it, and its value at 1/N = 0.

    What would MIR be if there were infinitely many samples? The samples are dealt at random into 1, 2, 3 and 4 equal
    parts; a point of the line is the mean FID of the parts, so that every point has seen every sample. Scale and
    outlier rule are those of MIR on all rows. The extrapolation holds while the bias falls as 1/N, which takes more
    rows than dimensions in every part. Without samples rows are dealt, and tokens of one image pass for independent
    ones. ``per_layer`` is the intercept, ``value`` the logarithm to base 10 of their sum, −inf or NaN if that is not
    positive. Source: Chong & Forsyth (2020), arXiv 1911.07023.

    Args:
        layer: Its rows.
        parts: Into how many parts; at least two different numbers, and 2 rows of each modality in a part.
    """
    if len(set(parts)) < 2 or min(parts) < 1:
        raise MirlibError(f"parts: expected at least two different numbers from 1 on, got {parts}")
    sides = layer.sides
    ids = layer.places or tuple(torch.arange(len(side)) for side in sides)
    names = torch.cat(ids).unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(layer.seed))
    places = [order[torch.searchsorted(names, numbers)] for numbers in ids]
    # N of a part is len(names) / number: the line is in the number of parts, and its intercept linear in the means.
    weights = np.linalg.pinv(np.stack([parts, np.ones(len(parts))], axis=1))[1]
    kept, found, influences = _inside(sides), 0.0, []
    for number, weight in zip(parts, weights / parts, strict=True):
        for part in range(number):
            masks = [mask & (place % number == part) for mask, place in zip(kept, places, strict=True)]
            dealt = [side[mask] for side, mask in zip(sides, masks, strict=True)]
            if min(map(len, dealt)) < 2:
                where = f"layer {layer.number}: {len(names)} samples"
                raise MirlibError(f"{where} are too few to be dealt into {number} parts")
            found += float(weight) * distance_of_rows(*dealt)[0].total
            if layer.wanted:
                influences.append((weight, _fid_influence(sides, masks, layer)))
    if not layer.wanted:
        return found, None
    if any(of_part is None for _, of_part in influences):
        return found, NO_DERIVATIVE
    of_samples = sum(weight * of_part for weight, of_part in influences)
    return found, of_samples + layer.unit_of_length(2 * found, sides[1])
