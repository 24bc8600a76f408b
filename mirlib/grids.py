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


Rule = Callable[[Mapping[str, Any], Tensor], "list[PatchGrid | None]"]
"""From the keyword arguments of a forward pass and the (B, T) mask of its vision rows to the grid of each picture."""


def find_grid(model: nn.Module) -> Rule | None:
    """The rule of a model's family, or None if mirlib knows none."""
    make = _RULES.get(model.config.model_type)
    return None if make is None else make(model.config)


def whole(rows: int, columns: int) -> PatchGrid:
    """All patches of a picture, line by line."""
    return PatchGrid(rows, columns, np.arange(rows * columns))


def _each(one: Callable[[Mapping[str, Any], int, np.ndarray], PatchGrid | None]) -> Rule:

    def rule(inputs: Mapping[str, Any], vision: Tensor) -> list[PatchGrid | None]:
        found = []
        for number, mask in enumerate(vision.cpu().numpy()):
            places = np.flatnonzero(mask)
            grid = one(inputs, number, places)
            found.append(grid if grid is not None and len(grid.cells) == len(places) else None)
        return found

    return rule


def _runs(places: np.ndarray) -> list[np.ndarray]:
    """Positions in runs without gaps."""
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def _side(vision: Any) -> int:
    """Patches along the side of a square picture."""
    sizes = [
        value[0] if isinstance(value, (list, tuple)) else value for value in (vision.image_size, vision.patch_size)
    ]
    return sizes[0] // sizes[1]


def _square(side: Callable[[Any], int]) -> Callable[[Any], Rule]:
    return lambda config: _each(lambda inputs, number, places: whole(side(config), side(config)))


def _merged(config: Any) -> Rule:
    """As the processor says in ``image_grid_thw``, some patches merged into one row; one picture a sample."""

    def one(inputs: Mapping[str, Any], number: int, places: np.ndarray) -> PatchGrid | None:
        grids = inputs.get("image_grid_thw")
        if grids is None or len(grids) != len(inputs["input_ids"]):
            return None
        frames, rows, columns = grids[number].tolist()
        merge = config.vision_config.spatial_merge_size
        return whole(rows // merge, columns // merge) if frames == 1 else None

    return _each(one)


def _lines(inputs: Mapping[str, Any], number: int, places: np.ndarray) -> PatchGrid | None:
    """A run of vision rows for each line of patches: another token ends the line."""
    runs = _runs(places)
    lengths = {len(run) for run in runs}
    return whole(len(runs), lengths.pop()) if len(lengths) == 1 else None


def _llava(config: Any) -> Rule:
    return _each(_lines) if config.vision_config.model_type == "pixtral" else _square(_of_vision)(config)


def _of_vision(config: Any) -> int:
    return _side(config.vision_config)


def _tiles_in_words(config: Any) -> Rule:
    """Idefics3: each tile after two tokens of its own, a line of tiles after a third, at the end the whole picture."""
    side = _side(config.vision_config) // config.scale_factor

    def one(inputs: Mapping[str, Any], number: int, places: np.ndarray) -> PatchGrid | None:
        runs = _runs(places)
        if any(len(run) != side * side for run in runs):
            return None
        if len(runs) == 1:
            return whole(side, side)
        tiles = runs[:-1]
        gaps = [int(after[0] - before[-1]) - 1 for before, after in zip(tiles, tiles[1:], strict=False)]
        lines = 1 + sum(gap > 2 for gap in gaps)
        if len(tiles) % lines or [gap > 2 for gap in gaps] != [
            (tile + 1) % (len(tiles) // lines) == 0 for tile in range(len(gaps))
        ]:
            return None
        return _tiled(lines, len(tiles) // lines, side, views_behind=1)

    return _each(one)


def _tiled(lines: int, columns: int, side: int, views_behind: int) -> PatchGrid:
    """Tiles line by line, each with side × side patches line by line, then views of the whole picture."""
    cells = np.arange(lines * side * columns * side).reshape(lines, side, columns, side).transpose(0, 2, 1, 3)
    return PatchGrid(lines * side, columns * side, np.concatenate([cells.ravel(), np.full(views_behind * side**2, -1)]))


def _any_resolution(config: Any) -> Rule:
    """LLaVA-NeXT: the whole picture small, then its tiles joined, without their padding, a token behind each line."""
    side = _side(config.vision_config)

    def one(inputs: Mapping[str, Any], number: int, places: np.ndarray) -> PatchGrid | None:
        if inputs.get("image_sizes") is None or len(inputs["image_sizes"]) != len(inputs["input_ids"]):
            return None
        height, width = (int(value) for value in inputs["image_sizes"][number].tolist())
        best = _best_resolution(config.image_grid_pinpoints, height, width)
        rows, columns = (side * length // config.vision_config.image_size for length in best)
        if width / height > columns / rows:  # the padding above and below goes
            padding = (rows - int(round(height * columns / width, 7))) // 2
            rows -= 2 * padding
        else:
            padding = (columns - int(round(width * rows / height, 7))) // 2
            columns -= 2 * padding
        most = getattr(config, "vision_aspect_ratio", "")
        if most.startswith("anyres_max_"):
            ratio = (rows * columns / (int(most.removeprefix("anyres_max_")) * side**2)) ** 0.5
            if ratio > 1.1:
                rows, columns = int(rows // ratio), int(columns // ratio)
        lines = np.full((rows, columns + 1), -1)
        lines[:, :columns] = np.arange(rows * columns).reshape(rows, columns)
        return PatchGrid(rows, columns, np.concatenate([np.full(side * side, -1), lines.ravel()]))

    return _each(one)


def _best_resolution(pinpoints: Any, height: int, width: int) -> tuple[int, int]:
    """The resolution of those given that keeps most of the picture, and of equal ones that which wastes least."""

    def keeps(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - size[0] * size[1]

    return max((tuple(size) for size in pinpoints), key=keeps)


_RULES: dict[str, Callable[[Any], Rule]] = {
    "gemma3": _square(lambda config: round(config.mm_tokens_per_image**0.5)),
    "idefics3": _tiles_in_words,
    "llava": _llava,
    "llava_next": _any_resolution,
    "llava_onevision": _any_resolution,
    "mistral3": lambda config: _each(_lines),
    "paligemma": _square(_of_vision),
    "qwen2_5_vl": _merged,
    "qwen2_vl": _merged,
    "qwen3_vl": _merged,
    "qwen3_vl_moe": _merged,
    "smolvlm": _tiles_in_words,
    "vipllava": _square(_of_vision),
}
