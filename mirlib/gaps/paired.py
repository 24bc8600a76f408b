"""Measures of pairs: the rows of a sample are pooled to their mean, and image i is held against text i.

They ask whether samples lie to each other in vision as they do in text, not whether the two clouds lie in one place,
and many of them are well above zero for samples that were put together at random. Each is therefore reported beside
its mean and spread over random pairings, see `Calibration`.

Text rows that come after the picture in one sequence have seen it, and a model with random weights then scores as well
as any: read the text alone, as `mirlib.gaps.model.score_measures` does and `mirlib.gaps.reading.PairReader` for these
functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.gaps.base import (
    CONFIDENCE,
    HIGHER,
    LOWER,
    MEASURES,
    PAIRS,
    QUADRATIC_ROWS,
    Calibration,
    GapResult,
    Rows,
    left_out,
    register,
    result,
    unit,
)

PERMUTATIONS = 200
NEIGHBOURS = 10
VARIANCE = 0.99

DELETE_ONE, GROUPS = 100, 20
"""Where no short way leads to the value without a pair (SVCCA): up to so many are left out one by one, and of more so
many groups of them."""


class Statistic(NamedTuple):
    """A measure of the pairs of a layer.

    Attributes:
        of: From a (N,) pairing (image i with text ``pairing[i]``) to the value.
        without: The (N,) values without each pair, or one a group of pairs.
    """

    of: Callable[[Tensor], float]
    without: Callable[[], np.ndarray]


def pooled(rows: Rows) -> tuple[Callable[[Tensor, int], Tensor], int]:
    """How rows of a layer become (N, d) means of samples, in the order of their numbers, and N.

    Raises:
        MirlibError: If a sample has rows of one modality only, or there are no samples and the rows are no pairs.
    """
    if rows.samples is None:
        counts = rows.counts
        if counts["vision"] != counts["text"]:
            raise MirlibError(
                f"pairs: {counts['vision']} vision rows and {counts['text']} text rows; pass samples=(of the vision "
                "rows, of the text rows), or as many rows of both, row i belonging to row i"
            )
        return (lambda side, _: side), counts["vision"]
    names = [ids.unique() for ids in rows.samples]
    if not torch.equal(*names):
        alone = set(names[0].tolist()) ^ set(names[1].tolist())
        raise MirlibError(f"pairs: sample {min(alone)} has rows of one modality only")
    places = [torch.searchsorted(name, ids) for name, ids in zip(names, rows.samples, strict=True)]
    count = len(names[0])

    def pool(side: Tensor, modality: int) -> Tensor:
        sums = torch.zeros(count, side.shape[1], dtype=side.dtype).index_add_(0, places[modality], side)
        return sums / places[modality].bincount(minlength=count)[:, None]

    return pool, count


def _paired(
    name: str,
    statistic_of: Callable[[Tensor, Tensor], Statistic],
    vision: Any,
    text: Any,
    samples: Any,
    *,
    seed: int,
    permutations: int,
    confidence: float | None,
    minimum: int,
    spare: int = 1,
    max_pairs: int | None = QUADRATIC_ROWS,
    **settings: Any,
) -> GapResult:
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    pool, count = pooled(rows)
    generator = torch.Generator().manual_seed(seed)
    kept, pairs = torch.arange(count), count
    if max_pairs is not None and count > max_pairs:
        kept = torch.randperm(count, generator=generator)[:max_pairs].sort().values
        count = max_pairs
    if count < minimum:
        raise MirlibError(f"{MEASURES[name].title}: {count} pairs; it needs at least {minimum}")
    pairings = [torch.randperm(count, generator=generator) for _ in range(permutations)]
    # Without one of them there must be as many left as the measure needs, or needs to tell samples apart.
    no_interval = None if count >= minimum + spare else f"{count} pairs are too few to leave one out"
    values, nulls, without = [], [], []
    for v, t in rows.layers():
        statistic = statistic_of(pool(v, 0)[kept], pool(t, 1)[kept])
        values.append(statistic.of(torch.arange(count)))
        nulls.append([statistic.of(pairing) for pairing in pairings])
        if confidence is not None and no_interval is None:
            without.append(statistic.without())
    influence, groups = None, False
    if without:
        influence = left_out(without)
        groups = influence.shape[1] < count
        if not groups:  # pairs that were not drawn do not change the value
            every = np.zeros((len(values), pairs))
            every[:, kept.numpy()] = influence
            influence = every
    calibration = _calibrate(np.array(values), np.array(nulls), MEASURES[name].direction) if permutations else None
    return result(
        name,
        values,
        {"pairs": count},
        influence=influence,
        no_interval=no_interval,
        groups=groups,
        confidence=confidence,
        calibration=calibration,
        permutations=permutations,
        seed=seed,
        **settings,
    )


def _calibrate(values: np.ndarray, nulls: np.ndarray, direction: str) -> Calibration:
    """`Calibration` of (K,) values from (K, P) values of random pairings; the best value is 1, or 0 if lower is."""
    sign, best = (1, 1.0) if direction == HIGHER else (-1, 0.0)
    mean, std = nulls.mean(1), nulls.std(1, ddof=1) if nulls.shape[1] > 1 else np.full(len(values), math.nan)
    slack = 1e-12  # a pairing that is the true one may come out a rounding error below it
    p_value = (1 + (sign * nulls >= sign * values[:, None] - slack).sum(1)) / (1 + nulls.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = sign * (values - mean) / std
        calibrated = (values - mean) / (best - mean)
    return Calibration(mean, std, z, p_value, calibrated, nulls.shape[1])


# ---------------------------------------------------------------------------------------------------------------------


@register(
    "rmg",
    title="RMG",
    asks="Is the distance of a pair small against that of two images, or of two texts?",
    source="arXiv 2404.07983",
    needs=PAIRS,
    direction=LOWER,
    cost="n² d",
)
def rmg(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
) -> GapResult:
    """Relative modality gap: ``d_match / (½ (d_img + d_txt) + d_match)`` with the distance ``(1 − cos) / 2``.

    ``d_match`` is the mean distance of a pair, ``d_img`` and ``d_txt`` those of two different images and texts.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs, each left out once; None for none.

    Returns:
        `GapResult`, each layer in [0, 1].

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or fewer than 2 pairs.

    Source: arXiv 2404.07983.
    """

    def of(x: Tensor, y: Tensor) -> Statistic:
        x, y = unit(x), unit(y)
        count = len(x)
        cosines = x @ y.T

        def apart(side: Tensor, without: bool = False) -> Tensor:
            """Mean distance of two different rows; (N,) without each of them, or of all."""
            total, squares, left = side.sum(0, keepdim=True), side.square().sum(1), count
            if without:
                total, squares, left = total - side, squares.sum() - squares, count - 1
            return (1 - (total.square().sum(1) - (squares if without else squares.sum())) / (left * (left - 1))) / 2

        def relative(matched: Tensor, within: Tensor) -> Tensor:
            match = ((1 - matched) / 2).clamp(min=0)
            whole = within + match
            return torch.where(whole > 1e-15, match / whole, 0.0)

        within = (apart(x) + apart(y)) / 2

        def statistic(pairing: Tensor) -> float:
            return float(relative(cosines[torch.arange(count), pairing].mean(), within))

        def without() -> np.ndarray:
            matched = (cosines.trace() - cosines.diagonal()) / (count - 1)
            return relative(matched, (apart(x, True) + apart(y, True)) / 2).numpy()

        return Statistic(statistic, without)

    return _paired(
        "rmg", of, vision, text, samples, seed=seed, permutations=permutations, confidence=confidence, minimum=2
    )


def _double_centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()


def _u_centred(gram: Tensor) -> Tensor:
    """Centred so that inner products estimate HSIC without bias; the diagonal does not count.

    Source: Song et al. (2012); in this form Székely & Rizzo (2014).
    """
    n = len(gram)
    gram = gram.clone().fill_diagonal_(0)
    sums = gram.sum(0)
    centred = gram - sums / (n - 2) - sums[:, None] / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)


def _products_without(first: Tensor, second: Tensor, unbiased: bool) -> Tensor:
    """(N,) inner products of two Gram matrices, centred, without each of their rows and columns.

    For all of them that product is ``Σ K∘L − 2 a k·l + b Σk Σl`` with the row sums k and l, where a and b are 1/n and
    1/n², or 1/(n − 2) and 1/((n − 1)(n − 2)) without the diagonal; and a row less changes each sum by what it holds.
    """
    if unbiased:
        first, second = (gram.clone().fill_diagonal_(0) for gram in (first, second))
    n = len(first) - 1
    product = first * second
    sums = first.sum(0), second.sum(0)
    own = first.diagonal(), second.diagonal()
    left = product.sum() - 2 * product.sum(0) + product.diagonal()
    # Σ_j≠i (k_j − K_ij)(l_j − L_ij), where the j = i of the sum over all j is taken out at the end
    rows = sums[0] @ sums[1] - first @ sums[1] - second @ sums[0] + product.sum(0)
    rows = rows - (sums[0] - own[0]) * (sums[1] - own[1])
    totals = [total.sum() - 2 * total + diagonal for total, diagonal in zip(sums, own, strict=True)]
    a, b = (1 / (n - 2), 1 / ((n - 1) * (n - 2))) if unbiased else (1 / n, 1 / n**2)
    return left - 2 * a * rows + b * totals[0] * totals[1]


def _cka(unbiased: bool) -> Callable[[Tensor, Tensor], Statistic]:
    centre = _u_centred if unbiased else _double_centred

    def of(x: Tensor, y: Tensor) -> Statistic:
        x, y = (side - side.mean(0) for side in (x, y))  # a shift does not count, and costs digits
        grams = x @ x.T, y @ y.T
        first, second = map(centre, grams)
        norm = float(torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second))

        def statistic(pairing: Tensor) -> float:
            return float((first * second[pairing][:, pairing]).sum()) / norm if norm > 0 else 0.0

        def without() -> np.ndarray:
            across, *within = (_products_without(*two, unbiased) for two in (grams, grams[:1] * 2, grams[1:] * 2))
            norms = (within[0] * within[1]).clamp(min=0).sqrt()
            return torch.where(norms > 0, across / norms, 0.0).numpy()

        return Statistic(statistic, without)

    return of


@register(
    "cka",
    title="CKA",
    asks="Are images that are alike described by texts that are alike?",
    source="Kornblith et al. 2019; arXiv 2405.07987",
    needs=PAIRS,
    direction=HIGHER,
    cost="n² d",
)
def cka(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
) -> GapResult:
    """Linear centred kernel alignment of pooled pairs, ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` of centred X and Y.

    With few pairs and many dimensions it is far above 0 for random pairs; see `cka_debiased` and the calibration.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs, each left out once; None for none.

    Returns:
        `GapResult`, each layer in [0, 1]; 0 where a side does not vary.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or fewer than 2 pairs.

    Source: Kornblith et al. (2019).
    """
    return _paired(
        "cka",
        _cka(False),
        vision,
        text,
        samples,
        seed=seed,
        permutations=permutations,
        confidence=confidence,
        minimum=2,
    )


@register(
    "cka_debiased",
    title="CKA, debiased",
    asks="The same, without what few pairs in many dimensions add?",
    source="Song et al. 2012; arXiv 2405.07987",
    needs=PAIRS,
    direction=HIGHER,
    cost="n² d",
)
def cka_debiased(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
) -> GapResult:
    """Linear CKA from unbiased estimates of HSIC: near 0 for random pairs, whatever their number.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs, each left out once; None for none.

    Returns:
        `GapResult`, each layer in [−1, 1].

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or fewer than 4 pairs.

    Source: Song et al. (2012) for the estimate of HSIC.
    """
    return _paired(
        "cka_debiased",
        _cka(True),
        vision,
        text,
        samples,
        seed=seed,
        permutations=permutations,
        confidence=confidence,
        minimum=4,
    )


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@register(
    "svcca",
    title="SVCCA",
    asks="How much of what varies in one can be read linearly off the other?",
    source="Raghu et al. 2017; arXiv 2405.07987",
    needs=PAIRS,
    direction=HIGHER,
    cost="n d min(n, d)",
)
def svcca(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
    variance: float = VARIANCE,
) -> GapResult:
    """Mean canonical correlation of the leading principal components of pooled pairs.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs, each left out once; None for none.
        variance: Share of the variance that the components of each side must hold, in (0, 1]. With nearly as many of
            them as pairs the correlations of random pairs are close to 1 too: read the calibrated value.

    The interval leaves out each pair by itself up to 100 pairs, and of more 20 groups of them in turn, which gives no
    influence of single pairs: each time both sides are decomposed again.

    Returns:
        `GapResult`, each layer in [0, 1]; 0 where a side does not vary.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, fewer than 3 pairs, or an impossible share.

    Source: Raghu et al. (2017).
    """
    if not 0 < variance <= 1:
        raise MirlibError(f"variance must lie in (0, 1], got {variance:g}")

    def basis(side: Tensor) -> Tensor:
        left, values, _ = torch.linalg.svd(side - side.mean(0), full_matrices=False)
        energy = values.square()
        left = left[:, energy > energy.max() * 1e-20]  # directions of rounding alone carry no information
        energy = energy[: left.shape[1]]
        if not energy.numel() or not float(energy.sum()) > 0:
            return left[:, :0]
        count = int((energy.cumsum(0) < (variance - 1e-12) * energy.sum()).sum()) + 1
        return left[:, :count]

    def correlation(first: Tensor, second: Tensor) -> float:
        kept = min(first.shape[1], second.shape[1])
        return float(torch.linalg.svdvals(first.T @ second).clamp(max=1).sum()) / kept if kept else 0.0

    def of(x: Tensor, y: Tensor) -> Statistic:
        first, second = basis(x), basis(y)
        count = len(x)

        def without() -> np.ndarray:
            # Turned into as many columns as there are pairs, once, the rows are the same to what follows.
            sides = [torch.linalg.svd(side - side.mean(0), full_matrices=False) for side in (x, y)]
            sides = [left * values for left, values, _ in sides]
            order = torch.arange(count) if count <= DELETE_ONE else _shuffled(count, seed)
            parts = count if count <= DELETE_ONE else GROUPS
            found = []
            for part in range(parts):
                left = (order % parts != part).nonzero()[:, 0]
                found.append(correlation(*(basis(side[left]) for side in sides)))
            return np.array(found)

        return Statistic(lambda pairing: correlation(first, second[pairing]), without)

    return _paired(
        "svcca",
        of,
        vision,
        text,
        samples,
        seed=seed,
        permutations=permutations,
        confidence=confidence,
        minimum=3,
        variance=variance,
    )


@register(
    "mutual_knn",
    title="mutual k-NN",
    asks="Has a sample the same nearest neighbours in vision and in text?",
    source="Huh et al. 2024, arXiv 2405.07987",
    needs=PAIRS,
    direction=HIGHER,
    cost="n² d",
)
def mutual_knn(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
    neighbours: int = NEIGHBOURS,
) -> GapResult:
    """Mean share of a sample's k nearest neighbours (by cosine) in vision that are its neighbours in text too.

    Neighbours change in jumps where a sample is left out, so the interval is wider than other draws ask for.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs, each left out once; None for none.
        neighbours: k; there must be more pairs.

    Returns:
        `GapResult`, each layer in [0, 1]; random pairs give ``k / (N − 1)``.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or k pairs and fewer.

    Source: Huh et al. (2024), arXiv 2405.07987.
    """
    if neighbours < 1:
        raise MirlibError(f"neighbours must be at least 1, got {neighbours}")

    def ranks(side: Tensor) -> Tensor:
        """(N, N) the rank of each other sample among the neighbours of a sample, from 0; that of itself is the last."""
        side = unit(side)
        cosines = (side @ side.T).fill_diagonal_(-math.inf)
        return cosines.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

    def of(x: Tensor, y: Tensor) -> Statistic:
        first, second = ranks(x), ranks(y)
        near = [(side < neighbours).double() for side in (first, second)]
        count = len(x)

        def statistic(pairing: Tensor) -> float:
            return float((near[0] * near[1][pairing][:, pairing]).sum()) / (count * neighbours)

        def without() -> np.ndarray:
            # A sample that loses a neighbour gets the next one: in one side, in the other, in both or in none.
            lost = [side < neighbours for side in (first, second)]
            shared = torch.zeros(count, count, dtype=torch.float64)  # of sample j, without sample i, at (j, i)
            for more in ((0, 0), (0, 1), (1, 0), (1, 1)):
                both = ((first < neighbours + more[0]) & (second < neighbours + more[1])).double()
                here = (lost[0] == bool(more[0])) & (lost[1] == bool(more[1]))
                shared += torch.where(here, both.sum(1, keepdim=True) - both, 0.0)
            return ((shared.sum(0) - shared.diagonal()) / ((count - 1) * neighbours)).numpy()

        return Statistic(statistic, without)

    return _paired(
        "mutual_knn",
        of,
        vision,
        text,
        samples,
        seed=seed,
        permutations=permutations,
        confidence=confidence,
        minimum=neighbours + 1,
        spare=2,  # with one more than k pairs, all are neighbours of all
        neighbours=neighbours,
    )
