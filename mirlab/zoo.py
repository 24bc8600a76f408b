"""Every measure of the gap on a model after stage 1: what a run with `mirlab.recipes.Run.zoo` adds to its row."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab import world
from mirlab.model import evaluation
from mirlib.gaps.model import apply_measures
from mirlib.gaps.reading import PairMeans, PairReader, random_twin
from mirlib.rows import TokenRows

NUM = 100
PERMUTATIONS = 100
ON_ROWS = (
    *("modality_gap", "ima", "a_score", "mmd", "cmmd", "kid", "sliced_wasserstein", "symmetric_kl", "probe_auc"),
    *("mir", "norm_only", "fd_infinity", "rmg", "cka", "cka_debiased", "svcca", "mutual_knn"),
)
"""The measures that the ledger records; the registry has more."""


def measure(model: LlavaForConditionalGeneration, processor: LlavaProcessor, news: TokenRows) -> dict[str, Any]:
    """All measures of a model after stage 1.

    Measures of clouds take the rows that MIR takes everywhere in the ledger. Those of pairs take `NUM` held-out scenes
    and their own full captions, read apart; beside them stands what the same architecture gives with random weights.

    Returns:
        ``gaps``, for each measure its ``value``, ``per_layer`` and processor ``seconds``, and for measures of pairs
        ``calibrated``, ``null_mean``, ``null_std`` and ``random_weights``.
    """
    reader = captioned(processor, NUM)
    random = reader.read(random_twin(model, seed=0))
    return {"gaps": measured(news, reader.read(model), random)}


def captioned(processor: LlavaProcessor, count: int) -> PairReader:
    """Held-out scenes and their full captions, to be read apart."""
    scenes = evaluation.held_out_scenes(count, seed=1000)
    captions = [world.caption(scene) for scene in scenes]
    return PairReader(processor, list(map(world.to_image, scenes)), captions, batch_size=25)


def measured(
    news: TokenRows, pairs: PairMeans, random: PairMeans, *, permutations: int = PERMUTATIONS
) -> dict[str, dict[str, Any]]:
    """All measures; those of pairs take the means of `pairs`, and of `random`, those of a model of random weights."""
    options = {"permutations": permutations, "confidence": None, "pairs": pairs, "random": (random,)}
    results, seconds = apply_measures(news, ON_ROWS, **options)
    found = {}
    for name, result in results.items():
        found[name] = {"value": _finite(result.value), "per_layer": [_finite(value) for value in result.per_layer]}
        found[name]["seconds"] = seconds[name]
        if result.calibration is not None:
            found[name]["calibrated"] = _finite(result.calibration.value)
            for kept in ("null_mean", "null_std", "random_weights"):
                found[name][kept] = float(getattr(result.calibration, kept).mean())
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: FD∞ has no logarithm below 0, and random pairs may leave no room."""
    return float(value) if np.isfinite(value) else None
