"""``python -m benchmarks.coverage``: does the 95 % interval of MIR hold what it promises, and is its width right?

A pool of samples stands for the world: all rows of 1200 pairs are read once and kept. Sets of N pairs are drawn from it
with replacement, hundreds of times, and each is measured as a user's N pairs would be, with outlier bounds and a scale
of its own, by `mirlib.modality_integration_rate`. An interval says how far another draw of as many samples falls, so
its target is the mean of MIR over all draws of that size. Two questions, a few rows of results/coverage.jsonl each:

- ``coverage``: how often the interval of one draw holds the mean, on the miniature and on a tiny Qwen2-VL with random
  weights, whose pictures have different numbers of tokens; and the standard error beside the spread of the draws.
- ``difference``: the same for the difference of two checkpoints on the same draws, with the interval of a paired
  difference and with that of two independent values: two of one training, and the shipped miniature against the later.

Rows that are there are not made again; all together take about twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mirlab import ledger, recipes
from mirlab.model import train
from mirlab.world import language
from mirlib import capture, modality_integration_rate
from mirlib.comparison import compare
from mirlib.data import sample_images, sample_texts
from mirlib.gaps import GapResult
from mirlib.loading import load_miniature
from mirlib.result import MIRResult, Sample
from mirlib.rows import collect_rows

RESULTS = Path(__file__).resolve().parents[1] / "results" / "coverage.jsonl"
POOL = 1200
DRAWS = {"miniature": 500, "qwen2_vl": 2000}  # a draw of the small one takes a tenth of the time
CONFIDENCE = 0.95
# Of the other checkpoints; the miniature that is shipped read 16,384 pairs.
TRAINING = recipes.StageOne(pairs=1024, batch=8, learning_rate=2e-3)
STEPS = {"step 96": 96, "step 128": 128}  # of that training, where its checkpoints are taken
PAIRS_OF_MODELS = (("step 128", "step 96"), ("miniature", "step 128"))


@dataclass(frozen=True)
class Pool:
    """Rows of all samples, sorted by sample.

    Attributes:
        layers: Of vision and of text, K tensors of rows each.
        starts: Of vision and of text, (P + 1,) where the rows of each sample begin.
    """

    layers: tuple[list[Tensor], list[Tensor]]
    starts: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, layers: tuple[Sequence[Tensor], Sequence[Tensor]], samples: tuple[Tensor, Tensor]) -> Pool:
        """From rows whose samples are numbered 0..P−1 in order."""
        starts = [np.concatenate([[0], ids.bincount().cumsum(0).numpy()]) for ids in samples]
        return cls(tuple(list(side) for side in layers), tuple(starts))

    def __len__(self) -> int:
        return len(self.starts[0]) - 1

    def measure(self, chosen: np.ndarray, **options: Any) -> MIRResult:
        """MIR of some samples; one that is drawn twice is two."""
        rows, ids = [], []
        for layers, starts in zip(self.layers, self.starts, strict=True):
            counts = starts[chosen + 1] - starts[chosen]
            places = np.concatenate([np.arange(starts[each], starts[each + 1]) for each in chosen])
            rows.append([layer[torch.from_numpy(places)] for layer in layers])
            ids.append(np.repeat(np.arange(len(chosen)), counts))
        return modality_integration_rate(*rows, samples=tuple(ids), confidence=CONFIDENCE, **options)


@cache
def pool_of(model: str, size: int) -> Pool:
    """The rows of a model over the first pictures and texts of the installed packages."""
    if model == "qwen2_vl":
        return _qwen2_vl_pool(size)
    network, processor = load_miniature()
    if model in STEPS:
        train.stage_one(
            network, processor.tokenizer, TRAINING, seed=0, after_step=lambda step, _: step == STEPS[model]
        )  # fmt: skip
    rows = collect_rows(
        network.eval(), processor, sample_images(size), sample_texts(size), batch_size=16, progress=True
    )
    return Pool.of((rows.vision, rows.text), rows.samples)


def _qwen2_vl_pool(size: int) -> Pool:
    """A tiny Qwen2-VL of random weights on pictures of 4 to 25 tokens."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = language.VOCABULARY_SIZE + np.arange(4)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": language.VOCABULARY_SIZE + 4,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4},
            "initializer_range": 0.15,  # the usual 0.02 would let the layers add next to nothing to the embeddings
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.15,
        },
        image_token_id=int(special[0]), video_token_id=int(special[1]), vision_start_token_id=int(special[2]),
        vision_end_token_id=int(special[3]), initializer_range=0.15,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config).eval()
    pixels_of = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=256, max_pixels=1600
    )
    tokenizer = load_miniature()[1].tokenizer
    generator = np.random.default_rng(0)
    layers: dict[str, list[list[Tensor]]] = {"vision": [], "text": []}
    ids: dict[str, list[Tensor]] = {"vision": [], "text": []}
    pairs = zip(sample_images(size), sample_texts(size), strict=True)
    with torch.no_grad(), capture(model) as stream:
        for number, (image, text) in enumerate(tqdm(pairs, desc="rows", unit="pair", total=size, leave=False)):
            side = tuple(8 * int(tokens) for tokens in generator.integers(2, 6, size=2))
            pixels = pixels_of(image.convert("RGB").resize(side, Image.Resampling.BILINEAR), return_tensors="pt")
            tokens = int(pixels["image_grid_thw"].prod()) // 4
            words = tokenizer(text, add_special_tokens=False)["input_ids"]
            sequence = torch.tensor([[special[2], *[special[0]] * tokens, special[3], *words]])
            model(input_ids=sequence, mm_token_type_ids=(sequence == special[0]).int(), use_cache=False, **pixels)
            for modality in layers:
                found = getattr(stream, modality)
                layers[modality].append([rows.clone() for rows in found])
                ids[modality].append(torch.full((len(found[0]),), number))
    sides = [[torch.cat(rows) for rows in zip(*layers[modality], strict=True)] for modality in layers]
    return Pool.of(tuple(sides), tuple(torch.cat(ids[modality]) for modality in ids))


def drawn(pool: Pool, samples: int, number: int, seed: int) -> np.ndarray:
    """So many samples of a pool, with replacement."""
    return np.random.default_rng([seed, samples, number]).integers(0, len(pool), samples)


@dataclass(frozen=True)
class Draws:
    """What many draws of as many samples gave.

    Attributes:
        values: (draws,) MIR.
        errors: (draws,) standard errors.
        ends: (draws, 2) ends of the intervals.
        influences: (draws, N) influence of each sample on MIR.
        methods: How the intervals were found, each way once.
    """

    values: np.ndarray
    errors: np.ndarray
    ends: np.ndarray
    influences: np.ndarray
    methods: list[str]


@cache
def draws_of(model: str, size: int, samples: int, draws: int, seed: int) -> Draws:
    """Measure a model on many sets of samples; the same sets for each model."""
    pool = pool_of(model, size)
    numbers = tqdm(range(draws), desc=f"{model}, {samples} samples", unit="draw", leave=False)
    results = [pool.measure(drawn(pool, samples, number, seed)) for number in numbers]
    return Draws(
        np.array([result.value for result in results]),
        np.array([result.interval.standard_error for result in results]),
        np.array([result.interval[:2] for result in results]),
        np.array([result.sample_influence for result in results]),
        sorted({result.interval.method for result in results}),
    )


def asked(configuration: dict[str, Any], model: str) -> Draws:
    """The draws that a configuration names."""
    return draws_of(model, *(configuration[name] for name in ("pool", "samples", "draws", "seed")))


def held(ends: np.ndarray, target: float) -> dict[str, float]:
    """How often intervals hold a target, the standard error of that, on which sides they miss it, and their width."""
    low, high = ends.T
    rate = float(((low <= target) & (target <= high)).mean())
    return {
        "coverage": rate,
        "coverage_error": math.sqrt(rate * (1 - rate) / len(ends)),
        "all_below": float((high < target).mean()),
        "all_above": float((low > target).mean()),
        "mean_half_width": float((high - low).mean() / 2),
    }


def root_mean_square(errors: np.ndarray) -> float:
    """What the spread of the draws is held against: variances are what averages."""
    return float(np.sqrt(np.square(errors).mean()))


def coverage_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """The interval of each draw against the mean of all."""
    found = asked(configuration, configuration["model"])
    target = float(found.values.mean())
    return {
        "target": target,
        "spread": float(found.values.std(ddof=1)),
        "standard_error": root_mean_square(found.errors),
        "methods": found.methods,
        **held(found.ends, target),
    }


def difference_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """The interval of each difference against the mean of all, paired and not."""
    first, second = (asked(configuration, model) for model in configuration["models"])
    differences = first.values - second.values
    samples = tuple(Sample("", str(number), str(number)) for number in range(configuration["samples"]))
    results = (
        [
            GapResult("mir", value, np.empty(0), "lower", "rows", {}, influence=influence, samples=samples)
            for value, influence in zip(each.values, each.influences, strict=True)
        ]
        for each in (first, second)
    )
    found = [compare(a, b, confidence=CONFIDENCE) for a, b in zip(*results, strict=True)]
    target = float(differences.mean())
    metrics: dict[str, Any] = {
        "target": target,
        "spread": float(differences.std(ddof=1)),
        "means": [float(each.values.mean()) for each in (first, second)],
        "correlation": float(np.corrcoef(first.values, second.values)[0, 1]),
    }
    for name, each in (("paired", [one.difference for one in found]), ("unpaired", [one.unpaired for one in found])):
        errors = np.array([one.standard_error for one in each])
        ends = np.array([(one.low, one.high) for one in each])
        metrics[name] = {"standard_error": root_mean_square(errors), **held(ends, target)}
    return metrics


QUESTIONS = {"coverage": coverage_of, "difference": difference_of}


def configurations(pool: int = POOL, draws: Mapping[str, int] = MappingProxyType(DRAWS)) -> list[dict[str, Any]]:
    """What each row's key is made of, in the order in which they are made."""
    common = {"pool": pool, "confidence": CONFIDENCE, "seed": 0}
    found = [
        {"question": "coverage", "model": model, "samples": samples, "draws": draws[model], **common}
        for model in ("miniature", "qwen2_vl")
        for samples in (50, 100)
    ]
    return found + [
        {"question": "difference", "models": list(models), "samples": samples, "draws": draws["miniature"], **common}
        for models in PAIRS_OF_MODELS
        for samples in (50, 100)
    ]


def describe(row: dict[str, Any]) -> str:
    """A row as one line."""
    configuration, found = row["configuration"], row["metrics"]
    question = configuration["question"]
    model = configuration.get("model") or " − ".join(configuration["models"])
    head = f"{question:10}  {model:20}  {configuration['samples']:>4} samples"
    parts = {"interval": found} if question == "coverage" else {name: found[name] for name in ("paired", "unpaired")}
    said = [
        f"{name} holds {part['coverage']:.1%} ± {part['coverage_error']:.1%}, half width "
        f"{part['mean_half_width']:.4f}, standard error {part['standard_error']:.5f}"
        for name, part in parts.items()
    ]
    return f"{head}  {'; '.join(said)}; spread of the draws {found['spread']:.5f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are missing, and print all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON Lines file to add the rows to")
    options = parser.parse_args(arguments)
    book = ledger.Ledger(options.output)
    torch.set_num_threads(1)
    for configuration in tqdm(configurations(), desc="coverage", unit="row"):
        key = ledger.key_of(configuration)
        if book.find(key) is None:
            began = time.monotonic()
            metrics = QUESTIONS[configuration["question"]](configuration)
            book.append(
                {
                    "key": key,
                    "configuration": configuration,
                    "metrics": metrics,
                    "seconds": round(time.monotonic() - began, 1),
                    "provenance": ledger.provenance(),
                }
            )
    print("\n".join(describe(row) for row in book.rows() if row["configuration"]["question"] in QUESTIONS))


if __name__ == "__main__":
    main()
