"""Measures of two clouds of rows: they need no pairs, and take every row for itself.

Each is called as ``measure(vision, text, *, samples=None, seed=0, ...)``, with the K arrays (r, d) and K arrays (s, d)
that `mirlib.modality_integration_rate` takes, and returns a `GapResult`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.frechet import distance_of_rows
from mirlib.gaps.base import HIGHER, LOWER, QUADRATIC_ROWS, ROWS, GapResult, Rows, register, result, unit
from mirlib.mir import NormBounds, log10_sum, modality_integration_rate, row_norms

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


@register(
    "modality_gap",
    title="modality gap",
    asks="How far apart are the mean directions?",
    source="Liang et al. 2022, arXiv 2203.02053",
    needs=ROWS,
    direction=LOWER,
    cost="n d",
)
def modality_gap(vision: Any, text: Any, *, samples: Any = None, seed: int = 0) -> GapResult:
    """Modality gap: the distance of the mean unit vectors, ``‖mean(v/‖v‖) − mean(t/‖t‖)‖₂``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Not needed here.

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
    found = [float(torch.linalg.vector_norm(v.mean(0) - t.mean(0))) for v, t in rows.layers("unit")]
    return result("modality_gap", found, rows.counts)


@register(
    "ima",
    title="IMA score",
    asks="Do the mean vision token and the mean text token point the same way?",
    source="arXiv 2405.16700",
    needs=ROWS,
    direction=HIGHER,
    cost="n d",
)
def ima(vision: Any, text: Any, *, samples: Any = None, seed: int = 0) -> GapResult:
    """IMA score: the cosine of the mean vision row and the mean text row.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Not needed here.

    Returns:
        `GapResult`, each layer in [−1, 1]; 0 where a mean is zero.

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: arXiv 2405.16700.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found = [float((unit(v.mean(0)[None]) * unit(t.mean(0)[None])).sum()) for v, t in rows.layers()]
    return result("ima", found, rows.counts)


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
        samples: Not needed here.
        seed: Of the draw of rows.
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
        samples = None
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    found = [float((v @ t.T).amax(1).mean()) for v, t in rows.layers("unit")]
    return result("a_score", found, rows.counts, reference="text rows" if reference is None else "given", seed=seed)


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


def _rbf(v: Tensor, t: Tensor, sigma: float | None, unbiased: bool) -> float:
    squares = [_square_distances(*pair) for pair in ((v, v), (t, t), (v, t))]
    if sigma is None:
        between = [s[tuple(torch.triu_indices(len(s), len(s), 1))] for s in squares[:2]]
        square = float(torch.cat([*between, squares[2].flatten()]).median())
        if square == 0:  # more than half of the rows are one point
            square = max(float(max(s.max() for s in squares)), 1.0)
    else:
        square = sigma**2
    return squared_mmd(*(torch.exp(-s / (2 * square)) for s in squares), unbiased=unbiased)


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
    sigma: float | None = None,
    max_rows: int | None = QUADRATIC_ROWS,
) -> GapResult:
    """Unbiased squared maximum mean discrepancy with the kernel ``exp(−‖x − y‖² / (2σ²))``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Of the draw of rows.
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
    found = [_rbf(v, t, sigma, unbiased=True) for v, t in rows.layers("text")]
    return result("mmd", found, rows.counts, sigma=sigma or "median", seed=seed)


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
    max_rows: int | None = QUADRATIC_ROWS,
    unbiased: bool = True,
) -> GapResult:
    """CMMD: 1000 times MMD² of unit vectors with a Gaussian kernel of width 10.

    Made for CLIP's embeddings, where distances are below 2. There a kernel of width 10 is all but linear, and the value
    close to ``1000 / σ² = 10`` times the squared `modality_gap`.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Of the draw of rows.
        max_rows: Rows drawn of each modality; None for all.
        unbiased: Whether to leave out pairs of a row with itself; the published code does not.

    Returns:
        `GapResult`.

    Raises:
        MirlibError: For rows that do not belong together or are not finite.

    Source: Jayasumana et al. (2024), arXiv 2401.09603.
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)
    found = [CMMD_SCALE * _rbf(v, t, CMMD_SIGMA, unbiased) for v, t in rows.layers("unit")]
    return result("cmmd", found, rows.counts, sigma=CMMD_SIGMA, scale=CMMD_SCALE, unbiased=unbiased, seed=seed)


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
    vision: Any, text: Any, *, samples: Any = None, seed: int = 0, max_rows: int | None = QUADRATIC_ROWS
) -> GapResult:
    """KID: unbiased squared MMD with the cubic kernel ``(x·y / d + 1)³``.

    The kernel has no scale of its own, so rows are scaled until the mean text norm is √d, about 1 a dimension, which
    keeps the ratio of the modalities' norms. One estimate from all drawn rows; no average over subsets.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Of the draw of rows.
        max_rows: Rows drawn of each modality; None for all.

    Returns:
        `GapResult`; slightly below 0 is possible where the clouds coincide.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or text rows of zero alone.

    Source: Bińkowski et al. (2018).
    """
    rows = Rows.of(vision, text, samples, max_rows=max_rows, seed=seed)

    def cubic(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T + 1) ** 3  # of rows in mean text norms; times √d each and divided by d is the same

    found = [squared_mmd(cubic(v, v), cubic(t, t), cubic(v, t)) for v, t in rows.layers("text")]
    return result("kid", found, rows.counts, seed=seed)


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
    directions: int = 128,
    p: float = 1.0,
    max_rows: int | None = 2 * QUADRATIC_ROWS,
) -> GapResult:
    """Sliced Wasserstein distance: ``(mean over directions of W_p(θ·v, θ·t)ᵖ)^{1/p}``, random directions.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Of the draw of rows and of the directions, which are the same in every layer.
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
    found = [float(wasserstein_1d(v @ theta, t @ theta, p).mean()) ** (1 / p) for v, t in rows.layers("text")]
    return result("sliced_wasserstein", found, rows.counts, directions=directions, p=p, seed=seed)


@register(
    "symmetric_kl",
    title="symmetric KL of Gaussians",
    asks="How many nats does it cost to take one cloud's Gaussian for the other's?",
    source="Jeffreys 1946; asked for by reviewers of MIR",
    needs=ROWS,
    direction=LOWER,
    cost="n d² + d³",
)
def symmetric_kl(vision: Any, text: Any, *, samples: Any = None, seed: int = 0, ridge: float = 1e-3) -> GapResult:
    """Mean of the two Kullback–Leibler divergences between the Gaussians fitted to the rows.

        J = ¼ Tr(Σ_v⁻¹ Σ_t + Σ_t⁻¹ Σ_v − 2 I) + ¼ (μ_v − μ_t)ᵀ (Σ_v⁻¹ + Σ_t⁻¹) (μ_v − μ_t)

    Covariances of token rows are near-singular, and J explodes with the smallest of their eigenvalues. Both are
    therefore regularised by the same multiple of the identity, ``ridge · ½ (Tr Σ_v + Tr Σ_t) / d``. Without it J does
    not change under any invertible affine map; with it, under rotations, shifts and a common scale.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Not needed here.
        ridge: Share of the mean variance that is added to every variance, at least 0.

    Returns:
        `GapResult`, each layer in nats, at least 0.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or covariances that are singular even so.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found = []
    for k, (v, t) in enumerate(rows.layers(), start=1):
        covariances = [torch.atleast_2d(torch.cov(side.T)) for side in (v, t)]
        added = ridge * sum(float(c.trace()) for c in covariances) / 2 / rows.dim
        covariances = [c + added * torch.eye(rows.dim, dtype=torch.float64) for c in covariances]
        difference = (v.mean(0) - t.mean(0))[:, None]
        total = -2.0 * rows.dim
        for one, other in (covariances, covariances[::-1]):
            lower, failed = torch.linalg.cholesky_ex(one)
            if int(failed):
                raise MirlibError(f"layer {k}: a covariance is singular, so the divergence is infinite; raise ridge")
            total += float(torch.cholesky_solve(other, lower).trace())
            total += float((difference * torch.cholesky_solve(difference, lower)).sum())
        found.append(max(total / 4, 0.0))
    return result("symmetric_kl", found, rows.counts, ridge=ridge)


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
    folds: int = 5,
    penalty: float = 1.0,
    max_rows: int | None = 2 * QUADRATIC_ROWS,
) -> GapResult:
    """Area under the ROC curve of a linear probe for "is this a vision row?", on samples that it was not fitted to.

    The probe is a ridge regression on ±1 (Fisher's discriminant, shrunk) of standardised columns: solved in one step,
    also where rows can be separated, where a logistic regression runs to infinity. 0.5 means that no plane tells the
    modalities apart; 1 that one does without fail, which says nothing of how far apart they are.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; rows of one sample stay in one fold. Left out, the
            rows are dealt to the folds one by one, which is too kind to the probe.
        seed: Of the draw of rows and of the folds.
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
    found = []
    for v, t in rows.layers():
        values = torch.cat([v, t]).numpy()
        areas = []
        for f in range(folds):
            fit, test = fold != f, fold == f
            mean, std = values[fit].mean(0), values[fit].std(0)
            std[std == 0] = 1.0
            probe = Ridge(alpha=penalty, solver="cholesky").fit((values[fit] - mean) / std, labels[fit])
            areas.append(roc_auc_score(labels[test], probe.predict((values[test] - mean) / std)))
        found.append(float(np.mean(areas)))
    return result("probe_auc", found, rows.counts, folds=folds, penalty=penalty, seed=seed)


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
def mir(vision: Any, text: Any, *, samples: Any = None, seed: int = 0, preset: str = "paper") -> GapResult:
    """`mirlib.modality_integration_rate` in the form of the other measures: ``log10 Σ_k FID_k``.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Not needed here.
        preset: See there.

    Returns:
        `GapResult`; ``per_layer`` is FID_k.

    Raises:
        MirlibError: See there.
    """
    found = modality_integration_rate(vision, text, preset=preset)
    return result("mir", found.per_layer, found.rows, value=found.value, preset=preset)


@register(
    "norm_only",
    title="norm-only baseline",
    asks="How long are vision tokens, in mean text norms?",
    source="this book, chapter 3",
    needs=ROWS,
    direction=LOWER,
    cost="n d",
)
def norm_only(vision: Any, text: Any, *, samples: Any = None, seed: int = 0) -> GapResult:
    """MIR's norm-only baseline: ``log10 Σ_k α_k² mean ‖v‖²``. It knows lengths and nothing else.

    Outlier rows are dropped as in MIR's preset ``paper``; the value is that of `mirlib.MIRResult.norm_only`.

    Args:
        vision: K arrays (r, d).
        text: K arrays (s, d).
        samples: Not needed here.
        seed: Not needed here.

    Returns:
        `GapResult`; ``per_layer`` is ``α_k² mean ‖v‖²``, in squared mean text norms.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or text rows of zero alone.
    """
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    found = []
    for v, _ in rows.layers("text"):
        norms = row_norms(v)
        found.append(float(norms[~NormBounds.three_sigma(norms).outliers(norms)].square().mean()))
    return result("norm_only", found, rows.counts, value=log10_sum(found))


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
    vision: Any, text: Any, *, samples: Any = None, seed: int = 0, parts: tuple[int, ...] = (1, 2, 3, 4)
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
    found = []
    for k, sides in enumerate(rows.layers("text"), start=1):
        kept = []
        for side, place in zip(sides, places, strict=True):
            norms = row_norms(side)
            inside = ~NormBounds.three_sigma(norms).outliers(norms)
            kept.append((side[inside], place[inside]))
        means = []
        for number in parts:
            dealt = [[side[place % number == part] for side, place in kept] for part in range(number)]
            if min(len(side) for part in dealt for side in part) < 2:
                raise MirlibError(f"layer {k}: {len(names)} samples are too few to be dealt into {number} parts")
            means.append(np.mean([distance_of_rows(*part)[0].total for part in dealt]))
        # N of a part is len(names) / number: the line is in the number of parts.
        _, intercept = np.polyfit(np.array(parts, dtype=float), np.array(means), 1)
        found.append(float(intercept))
    return result("fd_infinity", found, rows.counts, value=log10_sum(found), parts=list(parts), seed=seed)
