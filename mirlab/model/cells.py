"""What can be said of each cell of a picture: the truth that the encoder is taught and its features are probed for."""

from __future__ import annotations

import torch

from mirlab import world
from mirlab.model import miniature

_WORDS = {"size": world.SIZES, "colour": world.COLOURS, "shape": world.FORMS}
LABELS = {name: (*words, "nothing") for name, words in _WORDS.items()}
"""What can be said of a cell."""


def cell_tokens(patches: torch.Tensor) -> torch.Tensor:
    """The patch tokens of each cell, one behind the other: (n, 36, d) -> (n, 4, 9 d)."""
    side = world.IMAGE_SIZE // miniature.PATCH_SIZE
    grid = patches.unflatten(1, (2, side // 2, 2, side // 2))  # rows of cells, patches down, columns, patches across
    return grid.transpose(2, 3).flatten(1, 2).flatten(2)


def cell_means(patches: torch.Tensor) -> torch.Tensor:
    """The mean patch token of each cell: (n, 36, d) -> (n, 4, d)."""
    return cell_tokens(patches).unflatten(-1, (-1, patches.shape[-1])).mean(2)


def cell_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """What is in each cell: int64 (n, 4 cells, 3), the index of its size, colour and shape in `LABELS`."""
    nothing = [len(words) - 1 for words in LABELS.values()]
    target = torch.tensor(nothing).repeat(len(scenes), len(world.CELLS), 1)
    for row, scene in zip(target, scenes, strict=True):
        for thing in scene.things:
            labels = [words.index(getattr(thing, name)) for name, words in LABELS.items()]
            row[world.CELLS.index(thing.cell)] = torch.tensor(labels)
    return target


def split_labels(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits (..., 26) as those of size, colour and shape."""
    return logits.float().split([len(words) for words in LABELS.values()], dim=-1)
