"""Every measure of the gap on a model after stage 1: what a run with `mirlab.recipes.Run.zoo` adds to its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab import measuring, world
from mirlab.model import evaluation
from mirlib.gaps import MEASURES
from mirlib.gaps.base import TASK
from mirlib.gaps.model import apply_measures
from mirlib.gaps.reading import PairMeans, PairReader, random_twin
from mirlib.rows import TokenRows

NUM, MANY, DRAWS = 100, 1000, 3
PERMUTATIONS = 100
CALIBRATED = ("cka", "cka_debiased", "svcca", "mutual_knn")
"""Measures of which the calibrated value is used: what random pairs give them depends on the model."""

ALL = (
    *("modality_gap", "ima", "a_score", "mmd", "cmmd", "kid", "sliced_wasserstein", "symmetric_kl", "probe_auc"),
    *("mir", "norm_only", "fd_infinity", "rmg", "cka", "cka_debiased", "svcca", "mutual_knn"),
    *("perceptual_score", "soft_discrimination"),
)
"""The measures that the ledger records; the registry has more."""
ON_ROWS = tuple(name for name in ALL if MEASURES[name].needs != TASK)


def measure(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, news: TokenRows, *, samples: bool = False
) -> dict[str, Any]:
    """All measures of a model.

    Measures of clouds take the rows that MIR takes everywhere in the ledger. Those of pairs take `NUM` held-out scenes
    and their own full captions, the caption read without its picture; beside them stands what the same architecture
    gives with random weights.

    Args:
        model: The model after stage 1.
        processor: Its processor.
        news: Rows of pictures of scenes and of news.
        samples: Take them of `MANY` pairs, too, and of `DRAWS` parts of those.

    Returns:
        ``gaps``, for each measure its ``value``, ``per_layer`` and processor ``seconds``, and for measures of pairs
        ``calibrated``, ``null_mean``, ``null_std`` and ``random_weights``. With `samples` also ``samples``, by measure:
        ``many``, its value over `MANY` pairs, and ``few``, its values over `DRAWS` disjoint parts of them.
    """
    reader = captioned(processor, NUM)
    random = reader.read(random_twin(model, seed=0))
    metrics: dict[str, Any] = {"gaps": measured(news, reader.read(model), random)}
    if samples:
        many = measuring.collect(model, processor, num=MANY, seed=9)
        metrics["samples"] = by_samples(many, captioned(processor, MANY).read(model))
    return metrics


def captioned(processor: LlavaProcessor, count: int) -> PairReader:
    """Held-out scenes and their full captions, to be read apart."""
    scenes = evaluation.held_out_scenes(count, seed=1000)
    captions = [world.caption(scene) for scene in scenes]
    return PairReader(processor, list(map(world.to_image, scenes)), captions, batch_size=25)


def measured(
    news: TokenRows, pairs: PairMeans, random: PairMeans | None = None, *, permutations: int = PERMUTATIONS
) -> dict[str, dict[str, Any]]:
    """All measures; those of pairs take the means of `pairs`, and of `random`, those of a model of random weights."""
    nulls = () if random is None else (random,)
    options = {"permutations": permutations, "confidence": None, "pairs": pairs, "random": nulls}
    results, seconds = apply_measures(news, ON_ROWS, **options)
    found = {}
    for name, result in results.items():
        found[name] = {"value": _finite(result.value), "per_layer": [_finite(value) for value in result.per_layer]}
        found[name]["seconds"] = seconds[name]
        if result.calibration is not None:
            found[name] |= {
                "calibrated": _finite(result.calibration.value),
                "null_mean": float(result.calibration.null_mean.mean()),
                "null_std": float(result.calibration.null_std.mean()),
            }
            if random is not None:
                found[name]["random_weights"] = float(result.calibration.random_weights.mean())
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: FD∞ has no logarithm below 0, and random pairs may leave no room."""
    return float(value) if np.isfinite(value) else None


def by_samples(news: TokenRows, pairs: PairMeans, *, num: int = NUM, draws: int = DRAWS) -> dict[str, dict[str, Any]]:
    """Each measure of all samples, and of disjoint parts of them, with the seconds that all of them took."""
    whole = measured(news, pairs, permutations=20)
    parts = []
    for first in range(0, draws * num, num):
        means = PairMeans(*([layer[first : first + num] for layer in side] for side in pairs))
        parts.append(measured(part_of(news, first, num), means, permutations=20))
    return {
        name: {
            "many": value_of(name, whole[name]),
            "few": [value_of(name, part[name]) for part in parts],
            "raw_many": whole[name]["value"],
            "raw_few": [part[name]["value"] for part in parts],
            "seconds": whole[name]["seconds"],
        }
        for name in ON_ROWS
    }


def part_of(rows: TokenRows, first: int, num: int) -> TokenRows:
    """Rows of `num` samples from number `first` on, numbered from 0."""
    kept = [(ids >= first) & (ids < first + num) for ids in rows.samples]
    return TokenRows(
        vision=[layer[kept[0]] for layer in rows.vision],
        text=[layer[kept[1]] for layer in rows.text],
        vision_samples=rows.vision_samples[kept[0]] - first,
        text_samples=rows.text_samples[kept[1]] - first,
        vision_embeddings=rows.vision_embeddings[kept[0]],
        text_embeddings=rows.text_embeddings[kept[1]],
    )


def value_of(name: str, found: Mapping[str, Any]) -> float | None:
    """The value that a measure is judged by: the calibrated one for those of `CALIBRATED`."""
    return found["calibrated"] if name in CALIBRATED else found["value"]
