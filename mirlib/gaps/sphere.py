"""Where the samples lie on the unit sphere: whether the two of a pair meet, and whether all of them spread."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import hyp0f1
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.gaps.base import CONFIDENCE, LOWER, PAIRS, GapResult, Rows, register, unit
from mirlib.gaps.paired import PERMUTATIONS, Statistic, _paired, pooled

SHARPNESS = 2.0


def uniformity(rows: Any, sharpness: float = SHARPNESS) -> float:
    """Uniformity: ``log mean exp(−t ‖x − y‖²)`` over all pairs of different rows, scaled to length 1.

    When to use it: beside `alignment`, to see whether pairs meet because all samples have collapsed to one point.

    Args:
        rows: (N, d), N ≥ 2.
        sharpness: t; the paper takes 2.

    Returns:
        From −4t to 0, where all rows point one way; lower is more spread. Rows that are spread evenly give
        `even_spread`.

    Raises:
        MirlibError: For fewer than 2 rows.

    Source: Wang & Isola (2020), arXiv 2005.10242.

    Examples:
        >>> round(uniformity(np.eye(3)), 6)  # all at a right angle, ‖x − y‖² = 2
        -4.0
    """
    rows = unit(torch.as_tensor(rows).double())
    if rows.ndim != 2 or len(rows) < 2:
        raise MirlibError(f"uniformity: expected at least 2 rows (N, d), got {tuple(rows.shape)}")
    kernel = torch.exp(-sharpness * (2 - 2 * (rows @ rows.T)))
    return math.log(float(kernel.sum() - kernel.diagonal().sum()) / (len(rows) * (len(rows) - 1)))


def even_spread(dim: int, sharpness: float = SHARPNESS) -> float:
    """What `uniformity` tends to for rows that are spread evenly over the sphere in d dimensions: the null.

    ``−2t + log ₀F₁(; d/2; t²)``; in many dimensions close to −2t, all rows at a right angle.
    """
    return -2 * sharpness + math.log(float(hyp0f1(dim / 2, sharpness**2)))


@register(
    "alignment",
    title="alignment on the sphere",
    asks="How far apart do the two of a pair lie on the unit sphere?",
    source="Wang & Isola 2020, arXiv 2005.10242",
    needs=PAIRS,
    direction=LOWER,
    cost="n² d",
)
def alignment(
    vision: Any,
    text: Any,
    *,
    samples: Any = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    confidence: float | None = CONFIDENCE,
) -> GapResult:
    """Alignment: the mean of ``‖v̂ − t̂‖²`` over pairs, the means of a sample's rows scaled to length 1.

    When to use it: to tell a gap that is the same for all samples, in which random pairs are as far apart as true
    ones, from samples that have not found each other; read it beside the uniformity of both sides.

    Args:
        vision: K arrays (r, d); each sample's rows are pooled to their mean.
        text: K arrays (s, d).
        samples: Pair (r,), (s,) of the samples that rows belong to; left out, row i belongs to row i.
        seed: Of the random pairings.
        permutations: How many of them.
        confidence: Of the interval over pairs; None for none.

    Returns:
        `GapResult`, each layer in [0, 4]; 4 times the ``d_match`` of `rmg`. ``settings`` hold the `uniformity` of the
        vision means and of the text means of each layer, and the `even_spread` in so many dimensions.

    Raises:
        MirlibError: For rows that do not belong together or are not finite, or fewer than 2 pairs.

    Source: Wang & Isola (2020), arXiv 2005.10242, with α = 2; the pairs there are two views of one sample.
    """

    def of(x: Tensor, y: Tensor) -> Statistic:
        squares = 2 - 2 * unit(x) @ unit(y).T
        places, own = torch.arange(len(x)), squares.diagonal()

        def without() -> np.ndarray:
            return ((own.sum() - own) / (len(own) - 1)).numpy()

        return Statistic(lambda pairing: float(squares[places, pairing].mean()), without)

    options = {"seed": seed, "permutations": permutations, "confidence": confidence}
    found = _paired("alignment", of, vision, text, samples, minimum=2, **options)
    rows = Rows.of(vision, text, samples, max_rows=None, seed=seed)
    pool, _ = pooled(rows)
    spread = np.array([[uniformity(pool(v, 0)), uniformity(pool(t, 1))] for v, t in rows.layers()])
    beside = {"vision_uniformity": spread[:, 0].tolist(), "text_uniformity": spread[:, 1].tolist()}
    return replace(found, settings={**found.settings, **beside, "even_spread": even_spread(rows.dim)})
