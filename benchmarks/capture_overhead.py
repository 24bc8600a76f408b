"""What a MIR costs beside one plain forward pass over the same prepared batches: all of it, adding up and maps too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import Measurement, Stopwatch, Target, Timing, medians, ratios, say
from mirlib import score_batches
from mirlib.batches import RESERVED
from mirlib.data import sample_images, sample_texts
from mirlib.prompts import encode_batch

LEVEL = 0.95
WAYS = {"MIR without an interval": None, "MIR with a 95 % interval": LEVEL}
TARGETS = dict(zip(WAYS, (Target("≤", 1.4), Target("≤", 2.6)), strict=True))  # at batches of 16
BATCH_OF_TARGETS = 16


def plain_pass(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> Timing:
    """The forward passes alone, with the two settings that spare `score_batches` memory too."""
    inputs = [{name: value for name, value in batch.items() if name not in RESERVED} for batch in batches]
    watch = Stopwatch()
    with torch.no_grad():
        for batch in inputs:
            model(**batch, use_cache=False, logits_to_keep=1)
    return watch.read()


def whole_pass(model: nn.Module, batches: Sequence[Mapping[str, Any]], confidence: float | None) -> Timing:
    """A whole measurement, in one pass or two.

    Raises:
        RuntimeError: If the interval is not one by influences: then it is another measurement that was timed.
    """
    watch = Stopwatch()
    result = score_batches(model, batches, confidence=confidence, progress=False)
    found = watch.read()
    if (result.interval and result.interval.method) != (None if confidence is None else "influence"):
        raise RuntimeError(f"an interval by influences was expected: {result.warnings}")
    return found


def prepared_batches(processor: Any, samples: int, batch_size: int) -> list[dict[str, Any]]:
    """Real pictures and real English, ready for the model."""
    images, texts = sample_images(samples), sample_texts(samples)
    starts = range(0, samples, batch_size)
    return [encode_batch(processor, images[i : i + batch_size], texts[i : i + batch_size]) for i in starts]


def measure(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], size: str, rounds: int, threads: int
) -> list[Measurement]:
    """Two rows: a MIR without and with an interval, each over a plain forward pass of the same round."""
    timings: dict[str, list[Timing]] = {"plain": [], **{name: [] for name in WAYS}}
    plain_pass(model, batches)  # the first pass of a process also loads code
    whole_pass(model, batches, LEVEL)
    for number in range(rounds):
        say(f"capture, {size}: round {number + 1} of {rounds}")
        timings["plain"].append(plain_pass(model, batches))
        for name, confidence in WAYS.items():
            timings[name].append(whole_pass(model, batches, confidence))
    return [
        Measurement.of(
            f"capture: {name} / plain forward pass",
            size,
            ratios(timings[name], timings["plain"], threads),
            target=TARGETS[name] if len(batches[0]["input_ids"]) == BATCH_OF_TARGETS else None,
            details={"threads": threads, "seconds": medians(timings)},
        )
        for name in WAYS
    ]
