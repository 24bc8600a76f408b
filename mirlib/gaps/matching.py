"""The correspondence half of the AC score: whether what shows the same thing in two pictures lies close together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mirlib.errors import MirlibError
from mirlib.gaps.base import HIGHER, TASK, GapResult, register, unit
from mirlib.gaps.samples import of_samples
from mirlib.mir import as_layers


@register(
    "correspondence",
    title="C-score",
    asks="Is a part of one picture closest to the same part of another?",
    source="after arXiv 2408.16357",
    needs=TASK,
    direction=HIGHER,
    cost="m p d, for m matches and p patches a picture",
)
def correspondence(vision: Any, samples: Any, positions: Any, matches: Any, *, within: float = 1.0) -> GapResult:
    """Share of matched patches whose most similar patch in the other picture lies where the match says.

    When to use it: with matched points at hand, to see how much of *where* and *what* single vision rows still know;
    `mirlib.gaps.neighbours_kept` needs none. High values need no training.

    Args:
        vision: K arrays (r, d) of vision rows.
        samples: (r,) the picture of each row.
        positions: (r, 2) where each row's patch lies in its picture, in patches or in any unit of length.
        matches: (m, 2) numbers of rows: a patch of one picture, and the patch of another that shows the same.
        within: How far from the match a patch may lie to be right, in the unit of ``positions``.

    Returns:
        `GapResult` in [0, 1]; a sample is a picture with all matches that begin in it. The null is exact: the share of
        patches of the other picture that lie near enough. See `mirlib.gaps.samples.of_samples`.

    Raises:
        MirlibError: If shapes or numbers do not belong together, a match stays in its picture, or all matches begin in
            one.

    Source: arXiv 2408.16357, where it is the share of correct keypoints (PCK) on SPair-71k, of encoder features that
    are interpolated to a finer grid, within a distance that goes with the object's size. Here: rows of the decoder as
    well, patches as they are, one distance for all. The AC score itself, a quadratic form of this and of the A-score
    fitted to the benchmarks of many models, is left out: it says nothing of a single model.
    """
    layers = as_layers(vision, "vision")
    count = len(layers[0])
    samples, positions, matches = np.asarray(samples), np.asarray(positions, dtype=float), np.asarray(matches)
    if any(len(layer) != count for layer in layers) or samples.shape != (count,) or positions.shape != (count, 2):
        raise MirlibError(
            f"expected a picture and a place for each of {count} rows in every layer, got {samples.shape} and "
            f"{positions.shape}"
        )
    if matches.ndim != 2 or matches.shape[1:] != (2,) or matches.dtype.kind not in "iu" or not len(matches):
        raise MirlibError(f"matches: expected (m, 2) numbers of rows, got {matches.dtype} of shape {matches.shape}")
    if matches.min() < 0 or matches.max() >= count:
        raise MirlibError(f"matches: expected numbers of rows from 0 to {count - 1}")
    if (samples[matches[:, 0]] == samples[matches[:, 1]]).any():
        raise MirlibError("matches: the two rows of a match must lie in different pictures")
    right = np.empty((len(layers), len(matches)))
    chance = np.empty(len(matches))
    candidates = {target: np.flatnonzero(samples == target) for target in np.unique(samples[matches[:, 1]])}
    for k, layer in enumerate(layers):
        rows = unit(layer.detach().to("cpu", torch.float64))
        for m, (source, target) in enumerate(matches):
            others = candidates[samples[target]]
            near = np.linalg.norm(positions[others] - positions[target], axis=1) <= within
            right[k, m] = near[int((rows[others] @ rows[source]).argmax())]
            chance[m] = near.mean()
    pictures, owners = np.unique(samples[matches[:, 0]], return_inverse=True)
    share = np.bincount(owners)
    by_picture = np.stack([np.bincount(owners, layer) / share for layer in (*right, chance)])
    return of_samples(
        "correspondence",
        by_picture[:-1].mean(0),
        {"pictures": len(pictures), "matches": len(matches)},
        layers=by_picture[:-1],
        null=by_picture[-1],
        within=within,
    )
