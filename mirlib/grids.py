"""Where each vision row stands in its picture, by family, to draw a number of each row over it; else it is a strip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

__all__ = ["PatchGrid", "find_grid"]


class PatchGrid(NamedTuple):
    """The places of the vision rows of one picture.

    Attributes:
        rows: Number of rows of patches, from the top of the picture as the model sees it.
        columns: Number of columns, from the left.
        cells: (P,) int64, for each vision row ``row * columns + column``, or −1 for one that stands for no single
            place: an end of line, or a view of the whole picture beside its tiles.
    """

    rows: int
    columns: int
    cells: np.ndarray


Grids = Callable[[Mapping[str, Any], Tensor], "list[PatchGrid | None]"]
"""From the keyword arguments of a forward pass and the (B, T) mask of its vision rows to the grid of each picture."""

SIZES = ("image_grid_thw", "image_sizes")
"""Inputs in which processors say how large each picture is."""


def find_grid(model: nn.Module) -> Grids | None:
    """The grids of the pictures of a model's family, or None if mirlib knows no rule for it."""
    config = model.config
    rule = _RULES.get(config.model_type)
    if rule is None:
        return None

    def grids(inputs: Mapping[str, Any], vision: Tensor) -> list[PatchGrid | None]:
        given = {name: inputs[name] for name in SIZES if inputs.get(name) is not None}
        found = []
        for number, mask in enumerate(vision.cpu().numpy()):
            sizes = {name: values[number].tolist() for name, values in given.items() if len(values) == len(vision)}
            places = np.flatnonzero(mask)
            grid = rule(config, sizes, places)
            known = grid is not None and grid.rows * grid.columns > 0 and len(grid.cells) == len(places)
            found.append(grid if known else None)
        return found

    return grids


def whole(rows: int, columns: int) -> PatchGrid:
    """All patches of a picture, line by line."""
    return PatchGrid(rows, columns, np.arange(rows * columns))


def _runs(places: np.ndarray) -> list[np.ndarray]:
    """Positions in runs without gaps."""
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def _side(vision: Any) -> int:
    """Patches along the side of a square picture."""
    sizes = [
        value[0] if isinstance(value, (list, tuple)) else value for value in (vision.image_size, vision.patch_size)
    ]
    return sizes[0] // sizes[1]


# ---------------------------------------------------------------------------------------------------------------------
# Rules: from a model's config, what `SIZES` say of a picture, and the places of its vision rows in the sequence


Rule = Callable[[Any, Mapping[str, list[int]], np.ndarray], PatchGrid | None]


def _square(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid:
    return whole(_side(config.vision_config), _side(config.vision_config))


def _pooled(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid:
    side = round(config.mm_tokens_per_image**0.5)
    return whole(side, side)


def _merged(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid | None:
    """As the processor says, some patches merged into one row; one picture a sample."""
    frames, rows, columns = sizes.get("image_grid_thw", (0, 0, 0))
    merge = config.vision_config.spatial_merge_size
    return whole(rows // merge, columns // merge) if frames == 1 else None


def _lines(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid | None:
    """A run of vision rows for each line of patches: another token ends the line."""
    runs = _runs(places)
    lengths = {len(run) for run in runs}
    return whole(len(runs), lengths.pop()) if len(lengths) == 1 else None


def _llava(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid | None:
    rule = _lines if config.vision_config.model_type == "pixtral" else _square
    return rule(config, sizes, places)


def _tiles_in_words(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid | None:
    """Idefics3: each tile after two tokens of its own, a line of tiles after a third, at the end the whole picture."""
    side = _side(config.vision_config) // config.scale_factor
    runs = _runs(places)
    if any(len(run) != side * side for run in runs):
        return None
    if len(runs) == 1:
        return whole(side, side)
    tiles = runs[:-1]
    new_line = [after[0] - before[-1] > 3 for before, after in zip(tiles, tiles[1:], strict=False)]
    lines = 1 + sum(new_line)
    columns, left = divmod(len(tiles), lines)
    if left or new_line != [(tile + 1) % columns == 0 for tile in range(len(new_line))]:
        return None
    # Tile by tile, in each patch by patch, and behind them the view of the whole picture.
    cells = np.arange(lines * side * columns * side).reshape(lines, side, columns, side).transpose(0, 2, 1, 3)
    return PatchGrid(lines * side, columns * side, np.concatenate([cells.ravel(), np.full(side**2, -1)]))


def _any_resolution(config: Any, sizes: Mapping[str, list[int]], places: np.ndarray) -> PatchGrid | None:
    """LLaVA-NeXT: the whole picture small, then its tiles joined, without their padding, a token behind each line."""
    if "image_sizes" not in sizes:
        return None
    side = _side(config.vision_config)
    height, width = map(int, sizes["image_sizes"])
    best = _best_resolution(config.image_grid_pinpoints, height, width)
    rows, columns = (side * length // config.vision_config.image_size for length in best)
    if width / height > columns / rows:  # the padding above and below goes
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    most = getattr(config, "vision_aspect_ratio", "")
    if most.startswith("anyres_max_"):
        ratio = (rows * columns / (int(most.removeprefix("anyres_max_")) * side**2)) ** 0.5
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    lines = np.full((rows, columns + 1), -1)
    lines[:, :columns] = np.arange(rows * columns).reshape(rows, columns)
    return PatchGrid(rows, columns, np.concatenate([np.full(side * side, -1), lines.ravel()]))


def _best_resolution(pinpoints: Any, height: int, width: int) -> tuple[int, int]:
    """The resolution of those given that keeps most of the picture, and of equal ones that which wastes least."""

    def keeps(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - size[0] * size[1]

    return max((tuple(size) for size in pinpoints), key=keeps)


_RULES: dict[str, Rule] = {
    "gemma3": _pooled,
    "idefics3": _tiles_in_words,
    "llava": _llava,
    "llava_next": _any_resolution,
    "llava_onevision": _any_resolution,
    "mistral3": _lines,
    "paligemma": _square,
    "qwen2_5_vl": _merged,
    "qwen2_vl": _merged,
    "qwen3_vl": _merged,
    "qwen3_vl_moe": _merged,
    "smolvlm": _tiles_in_words,
    "vipllava": _square,
}
