"""Pictures whose patches are coloured by what they cost: the widget, and the same numbers in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import traitlets
from PIL import Image

from mirlib.widgets.base import StaticWidget, address, rounded

if TYPE_CHECKING:
    from mirlib.costs import TransportMap

SIDE = 192  # pixels of the longer side of a picture in the page


class PatchReading(NamedTuple):
    """What the widget says of a patch, in the layer shown.

    Attributes:
        cost: In units of (mean text norm)²; None where the outlier rule drops the patch.
        words: The cost, in those of a word on its way onto other words.
        share: Of the layer's distance, or of the sum over the layers; both None as above.
        by_layer: The cost in every layer.
    """

    cost: float | None
    words: float | None
    share: float | None
    by_layer: tuple[float | None, ...]


def _short(value: float) -> float | None:
    """Three significant digits are all that a page shows; JSON has no NaN."""
    return rounded(value, 3) if math.isfinite(value) else None


def picture_address(picture: np.ndarray) -> str:
    """The address of a small PNG."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return address(image.quantize(64), "PNG", optimize=True)


def reading(picture: Mapping[str, Any], layers: list[dict[str, Any]], layer: int, patch: int) -> PatchReading:
    """What the widget says of a patch of a picture in a layer (0 for all), from the numbers that the page holds."""
    by_layer = tuple(costs[patch] for costs in picture["costs"])
    parts = [(cost or 0.0) / one["kept"] for cost, one in zip(by_layer, layers[1:], strict=True)]
    total = [one["distance"] for one in layers[1:]]
    cost = math.fsum(value or 0.0 for value in by_layer) if layer == 0 else by_layer[layer - 1]
    if cost is None:
        return PatchReading(None, None, None, by_layer)
    word = layers[layer]["word"]
    share = math.fsum(parts) / math.fsum(total) if layer == 0 else parts[layer - 1] / total[layer - 1]
    return PatchReading(cost, cost / word if word else None, share, by_layer)


class PatchCosts(StaticWidget):
    """Pictures, their patches coloured by what they cost to move onto the text, layer by layer.

    Args:
        map: The costs.
        pictures: (h, w, 3) uint8 by the number of the sample; see `mirlib.costs.as_seen`. The page holds them as small
            PNGs, and their costs with three digits.
        **state: First values of the last four attributes.

    Attributes:
        pictures: From the dearest to the cheapest: ``name``, ``mean`` cost of a patch in all layers, ``address``,
            ``rows``, ``columns`` and ``cells`` of the grid (0, 0 and all −1 where it is not known), ``costs`` by layer
            and patch.
        layers: First the sum over the layers, then each of them: ``distance`` FID_k, number of ``kept`` rows, ``word``,
            the mean cost of a word on its way onto other words, ``high``, the 95 % quantile of that, and ``top``, where
            the scale of colours ends.
        picture: Which of the pictures is shown.
        layer: 1..K, or 0 for the sum over all.
        patch: The vision row that is read off.
        coloured: Whether the patches are coloured.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace as Some
        >>> level = lambda layer=None: Some(mean=0.5, high=0.75)
        >>> costs = np.array([[1.0, 3.0]])
        >>> map = Some(
        ...     vision=(costs,), per_layer=np.array([2.0]), kept=np.array([2]), names=("a",), grids=(None,),
        ...     null_level=level, ranking=lambda: [0], patch_costs=lambda number, layer=None: costs[0],
        ... )
        >>> widget = PatchCosts(map, {0: np.zeros((8, 8, 3), np.uint8)})
        >>> widget.patch, widget.numbers().words, widget.numbers().share
        (1, 6.0, 0.75)
    """

    asset = "patch_costs"
    shared = ("patches",)

    pictures = traitlets.List(traitlets.Dict()).tag(sync=True)
    layers = traitlets.List(traitlets.Dict()).tag(sync=True)
    picture = traitlets.Int(0, min=0).tag(sync=True)
    layer = traitlets.Int(0, min=0).tag(sync=True)
    patch = traitlets.Int(0, min=0).tag(sync=True)
    coloured = traitlets.Bool(True).tag(sync=True)

    def __init__(self, map: TransportMap, pictures: Mapping[int, np.ndarray], **state: Any) -> None:
        order = [int(number) for number in map.ranking() if int(number) in pictures]
        if not order:
            raise ValueError("none of the pictures belongs to the map: give them by the numbers of its samples")
        shown = [self._one(map, number, pictures[number]) for number in order]
        each = enumerate(zip(map.per_layer, map.kept, strict=True), start=1)
        layers = [self._layer(map, None, map.per_layer.sum(), 0), *(self._layer(map, k, *found) for k, found in each)]
        first = map.patch_costs(order[state.get("picture", 0)], state.get("layer") or None)
        start = {"patch": int(np.nanargmax(first)), **state}
        super().__init__(pictures=shown, layers=layers, **start)

    @staticmethod
    def _one(map: TransportMap, number: int, picture: np.ndarray) -> dict[str, Any]:
        grid, costs = map.grids[number], map.vision[number]
        return {
            "name": map.names[number].replace("\\", "/").rpartition("/")[2],
            "mean": _short(float(map.patch_costs(number).mean())),
            "address": picture_address(picture),
            "width": int(picture.shape[1]),
            "height": int(picture.shape[0]),
            "rows": 0 if grid is None else int(grid.rows),
            "columns": 0 if grid is None else int(grid.columns),
            "cells": [-1] * costs.shape[1] if grid is None else [int(cell) for cell in grid.cells],
            "costs": [[_short(cost) for cost in line] for line in costs],
        }

    @staticmethod
    def _layer(map: TransportMap, layer: int | None, distance: float, kept: int) -> dict[str, Any]:
        level = map.null_level(layer)
        every = np.concatenate([map.patch_costs(number, layer) for number in range(len(map.vision))])
        top = _short(float(np.nanquantile(every, 0.99))) or 1.0
        word, high = _short(level.mean), _short(level.high)
        return {"distance": float(distance), "kept": int(kept), "word": word, "high": high, "top": top}

    def numbers(self) -> PatchReading:
        """Return what the widget says in its present state."""
        return reading(self.pictures[self.picture], self.layers, self.layer, self.patch)
