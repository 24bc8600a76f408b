"""Measures of pairs: the rows of a sample are pooled to their mean, and image i is held against text i.

They ask whether samples lie to each other in vision as they do in text, not whether the two clouds lie in one place,
and many of them are well above zero for samples that were put together at random: each stands beside its mean and
spread over random pairings, see `Calibration`. Text rows behind a picture in one sequence have seen it, and score as
high with random weights: read the text alone, as `mirlib.gaps.reading.PairReader` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import hyp0f1
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.gaps import base
from mirlib.gaps.base import HIGHER, LOWER, Calibration, GapResult, Rows, left_out, sums_of_samples, unit

PERMUTATIONS, NEIGHBOURS = 200, 10
VARIANCE, SHARPNESS, ROUNDING = 0.99, 2.0, 1e-9
DELETE_ONE, GROUPS = 100, 20  # SVCCA leaves out up to so many pairs one by one, and of more so many groups of them


class Statistic(NamedTuple):
    """A measure of the pairs of a layer: the value of a (N,) pairing, in which image i belongs to text ``pairing[i]``.

    ``without`` gives the (N,) values without each pair, or one a group of pairs; ``beside`` goes into the settings.
    """

    of: Callable[[Tensor], float]
    without: Callable[[], Any]
    beside: Mapping[str, float] = {}


class Pooled(NamedTuple):
    """(N, d) means of the rows of N samples in a layer, of images and of texts, and the seed of what is drawn."""

    images: Tensor
    texts: Tensor
    seed: int


def pairs_of(rows: Rows) -> tuple[tuple[Tensor, Tensor], int]:
    """The pair that each vision row and each text row belongs to, 0..N−1 in the order of the samples, and N."""
    if rows.names is None:
        vision, text = rows.counts.values()
        if vision != text:
            way = "pass samples=(of the vision rows, of the text rows), or as many rows of both"
            raise MirlibError(f"pairs: {vision} vision rows and {text} text rows; {way}, row i belonging to row i")
        return (torch.arange(vision),) * 2, vision
    alone = set(rows.places[0].tolist()) ^ set(rows.places[1].tolist())
    if alone:
        raise MirlibError(f"pairs: sample {int(rows.names[min(alone)])} has rows of one modality only")
    return rows.places, len(rows.names)


_TAKEN = """\
    vision: K arrays (r, d); each sample's rows are pooled to their mean.
    text: K arrays (s, d).
    samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
    seed: Of the random pairings, and of the 1000 pairs that are taken where there are more.
    permutations: How many of them.
    confidence: Of the interval over pairs, from leaving some out; None for none.
"""


def of_pairs(name: str, *, minimum: Callable[[int], int] | int = 2, spare: int = 1, **entry: str) -> base.Decorator:
    """Decorator: from a function of `Pooled` means and options to a measure of all layers, known by its name.

    It needs a ``minimum`` of pairs, or what follows from the neighbours asked for, and ``spare`` more to leave one out.
    """

    def decorate(function: Callable[..., Statistic]) -> Callable[..., GapResult]:
        def measure(
            vision: Any,
            text: Any,
            *,
            samples: Any = None,
            seed: int = 0,
            permutations: int = PERMUTATIONS,
            confidence: float | None = base.CONFIDENCE,
            **options: Any,
        ) -> GapResult:
            settings = {**(function.__kwdefaults__ or {}), **options}
            needed = minimum(settings["neighbours"]) if callable(minimum) else minimum
            rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
            places, pairs = pairs_of(rows)
            generator = torch.Generator().manual_seed(seed)
            kept, count = torch.arange(pairs), min(pairs, base.QUADRATIC_ROWS)
            if count < pairs:
                kept = torch.randperm(pairs, generator=generator)[:count].sort().values
            if count < needed:
                raise MirlibError(f"{base.MEASURES[name].title}: {count} pairs; it needs at least {needed}")
            pairings = [torch.randperm(count, generator=generator) for _ in range(permutations)]
            # Without one of them there must be as many left as the measure needs, or needs to tell samples apart.
            why = None if count >= needed + spare else f"{count} pairs are too few to leave one out"
            values, nulls, without, said = [], [], [], []
            for sides in rows.layers():
                sums = [sums_of_samples(side, place, pairs) for side, place in zip(sides, places, strict=True)]
                sizes = [place.bincount(minlength=pairs)[kept, None] for place in places]
                statistic = function(Pooled(sums[0][kept] / sizes[0], sums[1][kept] / sizes[1], seed), **options)
                values.append(statistic.of(torch.arange(count)))
                nulls.append([statistic.of(pairing) for pairing in pairings])
                if confidence is not None and why is None:
                    without.append(np.asarray(statistic.without()))
                said.append(statistic.beside)
            influence, groups = None, False
            if without and not np.ptp(without, axis=1).max() > ROUNDING:
                why = "it is the same without any of the pairs, as at the end of its range"
            elif without:
                influence = left_out(without)
                groups = influence.shape[1] < count
                if not groups:  # pairs that were not drawn do not change the value
                    every = np.zeros((len(values), pairs))
                    every[:, kept.numpy()] = influence
                    influence = every
            calibration = _calibrate(np.array(values), np.array(nulls), entry["direction"]) if permutations else None
            settings |= {key: [each[key] for each in said] for key in said[0]}
            beside = {"no_interval": why, "groups": groups, "confidence": confidence, "calibration": calibration}
            settings = {"permutations": permutations, "seed": seed, **settings}
            return base.result(name, values, {"pairs": count}, influence=influence, **beside, **settings)

        return base.register(name, needs=base.PAIRS, **entry)(base.public(function, measure, _TAKEN))

    return decorate


def _calibrate(values: np.ndarray, nulls: np.ndarray, direction: str) -> Calibration:
    """`Calibration` of (K,) values from (K, P) values of random pairings; the best value is 1, or 0 if lower is."""
    sign, best = (1, 1.0) if direction == HIGHER else (-1, 0.0)
    mean, std = nulls.mean(1), nulls.std(1, ddof=1) if nulls.shape[1] > 1 else np.full(len(values), math.nan)
    slack = 1e-12  # a pairing that is the true one may come out a rounding error below it
    p_value = (1 + (sign * nulls >= sign * values[:, None] - slack).sum(1)) / (1 + nulls.shape[1])
    room = np.where(np.abs(best - mean) > ROUNDING, best - mean, math.nan)  # random pairs may be at the end already
    calibrated = (values - mean) / room
    return Calibration(mean, std, p_value, calibrated, nulls.shape[1])


@of_pairs("rmg", title="RMG", direction=LOWER)
def rmg(layer: Pooled) -> Statistic:
    """Relative modality gap: ``d_match / (½ (d_img + d_txt) + d_match)`` with the distance ``(1 − cos) / 2``.

    Is the distance of a pair small against that of two images, or of two texts? ``d_match`` is the mean distance of a
    pair, ``d_img`` and ``d_txt`` those of two different images and texts. In [0, 1]. Source: arXiv 2404.07983.
    """
    x, y = unit(layer.images), unit(layer.texts)
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

    def without() -> Tensor:
        matched = (cosines.trace() - cosines.diagonal()) / (count - 1)
        return relative(matched, (apart(x, True) + apart(y, True)) / 2)

    return Statistic(lambda pairing: float(relative(cosines[torch.arange(count), pairing].mean(), within)), without)


def _centred(gram: Tensor, unbiased: bool) -> Tensor:
    """Centred twice, or without diagonal so that inner products estimate HSIC without bias (Székely & Rizzo, 2014)."""
    if not unbiased:
        return gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
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


def _cka(layer: Pooled, unbiased: bool) -> Statistic:
    x, y = (side - side.mean(0) for side in layer[:2])  # a shift does not count, and costs digits
    grams = x @ x.T, y @ y.T
    first, second = (_centred(gram, unbiased) for gram in grams)
    norm = float(torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second))

    def of(pairing: Tensor) -> float:
        return float((first * second[pairing][:, pairing]).sum()) / norm if norm > 0 else 0.0

    def without() -> Tensor:
        across, *within = (_products_without(*two, unbiased) for two in (grams, grams[:1] * 2, grams[1:] * 2))
        norms = (within[0] * within[1]).clamp(min=0).sqrt()
        return torch.where(norms > 0, across / norms, 0.0)

    return Statistic(of, without)


@of_pairs("cka", title="CKA", direction=HIGHER, spare=2)  # of two pairs it is always 1
def cka(layer: Pooled) -> Statistic:
    """Linear centred kernel alignment of pooled pairs, ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` of centred X and Y, in [0, 1].

    Are images that are alike described by texts that are alike? With few pairs and many dimensions it is far above 0
    for random pairs (see `cka_debiased` and the calibration), and 0 where a side does not vary. Source: Kornblith et
    al. (2019); of vision and language arXiv 2405.07987.
    """
    return _cka(layer, unbiased=False)


@of_pairs("cka_debiased", minimum=4, title="CKA, debiased", direction=HIGHER)
def cka_debiased(layer: Pooled) -> Statistic:
    """Linear CKA from unbiased estimates of HSIC, in [−1, 1]: near 0 for random pairs, whatever their number.

    What is left of `cka` without what few pairs in many dimensions add to it? It takes 4 pairs or more. Source: Song et
    al. (2012) for the estimate of HSIC.
    """
    return _cka(layer, unbiased=True)


@of_pairs("svcca", minimum=3, title="SVCCA", direction=HIGHER)
def svcca(layer: Pooled, *, variance: float = VARIANCE) -> Statistic:
    """Mean canonical correlation of the leading principal components of 3 pooled pairs or more, in [0, 1].

    How much of what varies in one can be read linearly off the other? 0 where a side does not vary. The interval leaves
    out each pair by itself up to 100 pairs, and of more 20 groups of them in turn, which gives no influence of single
    pairs: each time both sides are decomposed again. Source: Raghu et al. (2017).

    Args:
        layer: Its rows.
        variance: Share of the variance that the components of each side must hold, in (0, 1]. With nearly as many of
            them as pairs the correlations of random pairs are close to 1 too: read the calibrated value.
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

    first, second = basis(layer.images), basis(layer.texts)
    count = len(first)

    def without() -> list[float]:
        # Turned into as many columns as there are pairs, once, the rows are the same to what follows.
        sides = [torch.linalg.svd(side - side.mean(0), full_matrices=False) for side in layer[:2]]
        sides = [left * values for left, values, _ in sides]
        order, parts = torch.arange(count), count
        if count > DELETE_ONE:
            order, parts = torch.randperm(count, generator=torch.Generator().manual_seed(layer.seed)), GROUPS
        rest = [(order % parts != part).nonzero()[:, 0] for part in range(parts)]
        return [correlation(*(basis(side[left]) for side in sides)) for left in rest]

    return Statistic(lambda pairing: correlation(first, second[pairing]), without)


# With one more pair than k, all are neighbours of all: two are to spare.
@of_pairs("mutual_knn", minimum=lambda neighbours: neighbours + 1, spare=2, title="mutual k-NN", direction=HIGHER)
def mutual_knn(layer: Pooled, *, neighbours: int = NEIGHBOURS) -> Statistic:
    """Mean share of a sample's k nearest neighbours (by cosine) in vision that are its neighbours in text too.

    Has a sample the same nearest neighbours in vision and in text? Neighbours change in jumps where a sample is left
    out, so the interval is wider than other draws ask for. In [0, 1]: random pairs give ``k / (N − 1)``, and a side
    that does not vary 0. Source: Huh et al. (2024), arXiv 2405.07987.

    Args:
        layer: Its rows.
        neighbours: k; there must be more pairs.
    """
    if neighbours < 1:
        raise MirlibError(f"neighbours must be at least 1, got {neighbours}")

    def ranks(side: Tensor) -> Tensor:
        """(N, N) the rank of each other sample among the neighbours of a sample, from 0; that of itself is the last."""
        side = unit(side)
        cosines = side @ side.T
        varies.append(bool(cosines.min() < 1 - ROUNDING))
        cosines.fill_diagonal_(-math.inf)
        return cosines.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

    varies: list[bool] = []
    first, second = ranks(layer.images), ranks(layer.texts)
    if not all(varies):  # then neighbours are those of the order of the samples
        return Statistic(lambda _: 0.0, lambda: torch.zeros(len(first)))
    near = [(side < neighbours).double() for side in (first, second)]
    count = len(first)

    def of(pairing: Tensor) -> float:
        return float((near[0] * near[1][pairing][:, pairing]).sum()) / (count * neighbours)

    def without() -> Tensor:
        # A sample that loses a neighbour gets the next one: in one side, in the other, in both or in none.
        lost = [side < neighbours for side in (first, second)]
        shared = torch.zeros(count, count, dtype=torch.float64)  # of sample j, without sample i, at (j, i)
        for more in ((0, 0), (0, 1), (1, 0), (1, 1)):
            both = ((first < neighbours + more[0]) & (second < neighbours + more[1])).double()
            here = (lost[0] == bool(more[0])) & (lost[1] == bool(more[1]))
            shared += torch.where(here, both.sum(1, keepdim=True) - both, 0.0)
        return (shared.sum(0) - shared.diagonal()) / ((count - 1) * neighbours)

    return Statistic(of, without)


def uniformity(rows: Any) -> float:
    """Uniformity: ``log mean exp(−2 ‖x − y‖²)`` over all pairs of different rows (N, d), scaled to length 1.

    When to use it: beside `alignment`, to see whether pairs meet because all samples have collapsed to one point. From
    −8 to 0, where all rows point one way; lower is more spread. Rows that are spread evenly give `even_spread`; fewer
    than 2 are refused. Source: Wang & Isola (2020), arXiv 2005.10242.

    Examples:
        >>> import numpy as np
        >>> round(uniformity(np.eye(3)), 6)  # all at a right angle, ‖x − y‖² = 2
        -4.0
    """
    rows = unit(torch.as_tensor(rows).double())
    if rows.ndim != 2 or len(rows) < 2:
        raise MirlibError(f"uniformity: expected at least 2 rows (N, d), got {tuple(rows.shape)}")
    kernel = torch.exp(-SHARPNESS * (2 - 2 * (rows @ rows.T)))
    return math.log(float(kernel.sum() - kernel.diagonal().sum()) / (len(rows) * (len(rows) - 1)))


def even_spread(dim: int) -> float:
    """What `uniformity` tends to for rows spread evenly over the sphere in d dimensions: ``−4 + log ₀F₁(; d/2; 4)``."""
    return -2 * SHARPNESS + math.log(float(hyp0f1(dim / 2, SHARPNESS**2)))


@of_pairs("alignment", title="alignment on the sphere", direction=LOWER)
def alignment(layer: Pooled) -> Statistic:
    """Alignment: the mean of ``‖v̂ − t̂‖²`` over pairs, the means of a sample's rows scaled to length 1, in [0, 4].

    How far apart do the two of a pair lie on the unit sphere? When to use it: to tell a gap that is the same for all
    samples, in which random pairs are as far apart as true ones, from samples that have not found each other; read it
    beside the uniformity of both sides. It is 4 times the ``d_match`` of `rmg`; ``settings`` hold the `uniformity` of
    the vision means and of the text means of each layer, and the `even_spread` in so many dimensions. Source: Wang &
    Isola (2020), arXiv 2005.10242, with α = 2; the pairs there are two views of one sample.
    """
    squares = 2 - 2 * unit(layer.images) @ unit(layer.texts).T
    places, own = torch.arange(len(squares)), squares.diagonal()
    spread = {"vision_uniformity": uniformity(layer.images), "text_uniformity": uniformity(layer.texts)}
    spread["even_spread"] = even_spread(layer.images.shape[1])
    without = (own.sum() - own) / (len(own) - 1)
    return Statistic(lambda pairing: float(squares[places, pairing].mean()), lambda: without, spread)
