"""The scenes that the runs of a set of parts read, and what its encoder makes of them, computed once and kept."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration as Llava

from mirlab import recipes, world
from mirlab.model import miniature, parts, train

BLOCK = 8192
"""Scenes that are encoded together, when the first of them is asked for."""


class Pool:
    """A stream of scenes, of which each run reads the first ones.

    Features of the model's encoder lie in one file, which all processes map; what no run has asked for is a hole in it.
    """

    def __init__(self, model: Llava, seed: int, folder: Path) -> None:
        self.model, self.seed, self.size = model, seed, recipes.POOL
        self.folder = folder / f"{miniature.fingerprint(model.model.vision_tower)}-{seed}-{self.size}"
        self._scenes: list[world.Scene] = []

    def scenes(self, count: int) -> list[world.Scene]:
        """The first scenes; more than the pool has are refused."""
        if count > self.size:
            raise ValueError(f"{count} scenes were asked for, but the pool has {self.size}")
        if count > len(self._scenes):
            self._scenes += train.stage_one_scenes(count, first=len(self._scenes), seed=self.seed)
        return self._scenes[:count]

    def features(self, count: int) -> torch.Tensor:
        """What the connector reads for the first scenes: float16 (count, 36, 96), mapped from the file."""
        path = self.folder / "features.npy"
        with parts.only_process(self.folder):
            for block in range(ceil(count / BLOCK)):
                if not (self.folder / f"block-{block}").exists():
                    self._write(path, block)
        return torch.from_numpy(np.load(path, mmap_mode="c")[:count])

    def _write(self, path: Path, block: int) -> None:
        first, last = block * BLOCK, min((block + 1) * BLOCK, self.size)
        found = train.vision_features(self.model, self.scenes(last)[first:]).numpy()
        mode, shape = "r+" if path.exists() else "w+", (self.size, *found.shape[1:])
        whole = np.lib.format.open_memmap(path, mode, found.dtype, shape)
        whole[first:last] = found
        whole.flush()
        (self.folder / f"block-{block}").touch()  # only now is it there
