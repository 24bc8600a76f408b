"""What each pass of `mirlib.score_batches` costs beside a plain forward pass over the same prepared batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import Measurement, Stopwatch, Target, Timing, medians, ratios, say
from mirlib import score_batches
from mirlib.data import sample_images, sample_texts
from mirlib.prompts import encode_batch

OURS = ("text_mask", "sample_groups", "sample_names")
PASSES = ("pass 1, norms", "pass 2, moments")
TARGET = Target("≤", 1.5)


class TimedBatches:
    """Batches that note how long each pass over them took."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self.batches = batches
        self.passes: list[Timing] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        watch = Stopwatch()
        yield from self.batches
        self.passes.append(watch.read())


def plain_pass(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> Timing:
    """The forward passes alone, with the two settings that spare `score_batches` memory too."""
    inputs = [{name: value for name, value in batch.items() if name not in OURS} for batch in batches]
    watch = Stopwatch()
    with torch.no_grad():
        for batch in inputs:
            model(**batch, use_cache=False, logits_to_keep=1)
    return watch.read()


def prepared_batches(processor: Any, samples: int, batch_size: int) -> list[dict[str, Any]]:
    """Real pictures and real English, ready for the model."""
    images, texts = sample_images(samples), sample_texts(samples)
    starts = range(0, samples, batch_size)
    return [encode_batch(processor, images[i : i + batch_size], texts[i : i + batch_size]) for i in starts]


def measure(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], size: str, rounds: int, threads: int
) -> list[Measurement]:
    """Two rows: each pass over a plain forward pass of the same round."""
    timings: dict[str, list[Timing]] = {"plain": [], **{name: [] for name in PASSES}}
    plain_pass(model, batches)  # the first pass of a process also loads code
    for number in range(rounds):
        say(f"capture, {size}: round {number + 1} of {rounds}")
        timed = TimedBatches(batches)
        timings["plain"].append(plain_pass(model, batches))
        score_batches(model, timed, progress=False)
        for name, timing in zip(PASSES, timed.passes, strict=True):
            timings[name].append(timing)
    return [
        Measurement.of(
            f"capture: {name} / plain forward pass",
            size,
            ratios(timings[name], timings["plain"], threads),
            target=TARGET,
            details={"threads": threads, "seconds": medians(timings)},
        )
        for name in PASSES
    ]
