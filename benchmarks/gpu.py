"""What only a GPU can show: the trace term there, and a whole MIR of a model of LLaVA-1.5-7B's shape.

``python -m benchmarks.gpu`` runs this part alone; ``--shape tiny --device cpu`` runs the same code on any machine. The
weights are random: times and memory are those of the real model, and no value of MIR is reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaConfig

from benchmarks.capture_overhead import LEVEL, plain_pass
from benchmarks.measuring import (
    Measurement,
    Stopwatch,
    Target,
    Timing,
    format_table,
    medians,
    ratios,
    say,
    time_in_turns,
)
from benchmarks.trace_term import ACCURACY, by_svd, sample_rows
from mirlib import plan, score_batches
from mirlib.authors import fast_frechet_distance, replace_rows_by_median
from mirlib.frechet import Moments, trace_sqrt_product
from mirlib.mir import NormBounds, row_norms
from mirlib.planning import llava_shape

TRACE = "trace term on the GPU: mirlib / one eigvalsh"
WHOLE = "MIR without an interval / one plain forward pass, on the GPU"
WITH_INTERVAL = "MIR with a 95 % interval / one plain forward pass, on the GPU"
ERROR = "relative error of the trace term: mirlib on the GPU"
STEPS = ("pass 1, moments", "pass 2, influences", "adding up and maps")
PARTS = tuple(f"{step} / plain forward pass, on the GPU" for step in STEPS)
AUTHORS = "authors' distances, one layer scaled to all / MIR without an interval, on the GPU"
PEAK, GROWTH = "peak memory on the GPU", "peak memory on the GPU / that at num = {}"
PLANNED = "error of the planned peak memory, on the GPU"
WHOLE_TARGET, GROWTH_TARGET, PLANNED_TARGET = Target("≤", 2), Target("≤", 1.05), Target("≤", 0.15)
SAMPLES = 100
NO_GPU = "no GPU"
SHAPES = {
    "7b": ("7B shape", llava_shape, {"batch_size": 4, "text_tokens": 800}),
    "tiny": (
        "tiny shape",
        lambda: llava_shape(2, 64, 64, 32, heads=4, vision_layers=2, vocabulary=100, image_size=56),
        {"batch_size": 2, "text_tokens": 8},
    ),
}


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


def random_model(config: LlavaConfig, device: str, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, made on its device: its values mean nothing, its speed is that of the real one."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return AutoModelForImageTextToText.from_config(config).eval()
    finally:
        torch.set_default_dtype(previous)


def random_batches(config: LlavaConfig, samples: int, batch_size: int, text_tokens: int = 800) -> list[dict[str, Any]]:
    """Random pixels and random words: 576 vision tokens and as many text tokens as a long news story."""
    generator = torch.Generator().manual_seed(0)
    side = config.vision_config.image_size
    batches = []
    for start in range(0, samples, batch_size):
        size = min(batch_size, samples - start)
        words = torch.randint(3, config.image_token_id, (size, text_tokens), generator=generator)
        image = torch.full((size, config.image_seq_length), config.image_token_id)
        input_ids = torch.cat([torch.ones(size, 1, dtype=torch.long), image, words], dim=1)
        pixels = torch.randn(size, 3, side, side, generator=generator)
        batches.append({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels})
    return batches


def _difference(a: Timing, *others: Timing) -> Timing:
    """What of a time is left without others of the same round."""
    return Timing(*(max(total - sum(parts), 0.0) for total, *parts in zip(a, *others, strict=True)))


def authors_layer(rows: Sequence[torch.Tensor]) -> tuple[float, float, float]:
    """The authors' default operations on one layer's vision and text rows, in float32."""
    kept = []
    for values in rows:
        norms = row_norms(values)
        kept.append(replace_rows_by_median(values, NormBounds.three_sigma(norms).outliers(norms)))
    return fast_frechet_distance(*kept)


def whole_mir(
    model: nn.Module,
    batches: list[dict[str, Any]],
    size: str,
    rounds: int,
    threads: int,
) -> list[Measurement]:
    """A MIR, with an interval and its steps too, over one plain forward pass on the same inputs; the authors beside."""
    parameter = next(model.parameters())

    def on_device(value: torch.Tensor) -> torch.Tensor:
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)

    batches = [{name: on_device(value) for name, value in batch.items()} for batch in batches]
    plain_pass(model, batches[:1])
    timings: dict[str, list[Timing]] = {name: [] for name in ("plain", *STEPS, "value", "interval", "authors")}
    layers, dim = model.config.text_config.num_hidden_layers, model.config.text_config.hidden_size
    samples = sum(len(batch["input_ids"]) for batch in batches)
    tokens = (model.config.image_seq_length, batches[0]["input_ids"].shape[1] - model.config.image_seq_length - 1)
    rows = [torch.randn(samples * n, dim, device=parameter.device) for n in tokens]
    for number in range(rounds):
        say(f"whole MIR, {size}: round {number + 1} of {rounds}")
        timings["plain"].append(plain_pass(model, batches))
        watch = Stopwatch()
        score_batches(model, batches, confidence=None, progress=False)
        timings["value"].append(watch.read())
        timed = TimedBatches(batches)
        watch = Stopwatch()
        result = score_batches(model, timed, confidence=LEVEL, progress=False)
        timings["interval"].append(watch.read())
        first, *later = timed.passes  # a repair comes between them, if one is needed
        for name, timing in zip(STEPS, (first, later[-1]), strict=False):
            timings[name].append(timing)
        timings[STEPS[2]].append(_difference(timings["interval"][-1], *timed.passes))
        watch = Stopwatch()
        authors_layer(rows)
        one = watch.read()
        timings["authors"].append(Timing(*(part * layers for part in one)))
    details = {"threads": threads, "device": _name(parameter.device), "seconds": medians(timings)}
    details |= {"interval": result.interval and result.interval.method, "passes": result.passes}
    named = dict(zip(PARTS, STEPS, strict=True)) | {WHOLE: "value", WITH_INTERVAL: "interval"}
    table = [
        Measurement.of(
            what,
            size,
            ratios(timings[name], timings["plain"], threads),
            target=WHOLE_TARGET if name == "value" else None,
            details=details,
        )
        for what, name in named.items()
    ]
    authors = ratios(timings["authors"], timings["value"], threads)
    return [*table, Measurement.of(AUTHORS, size, authors, details=details)]


def peak_rows(
    config: LlavaConfig, shape: str, nums: Sequence[int], device: str, dtype: torch.dtype
) -> list[Measurement]:
    """Peak memory by number of samples, what it grows by, and what the plan said; ``not measured`` without a GPU."""
    title, _, options = SHAPES[shape]
    peaks: dict[int, float | None] = dict.fromkeys(nums)
    errors = dict(peaks)
    if device.startswith("cuda"):
        model = random_model(config, device, dtype)
        for num in nums:
            say(f"peak memory, {title}, {num} samples")
            planned = plan(config, num=num, device="cuda", dtype=str(dtype).removeprefix("torch."), **options)
            batches = random_batches(config, num, **options)  # they stay on the CPU until their turn comes
            torch.cuda.reset_peak_memory_stats()
            score_batches(model, batches, progress=False)
            peaks[num] = torch.cuda.max_memory_allocated()
            errors[num] = abs(planned.peak / peaks[num] - 1)
    table = []
    for num in nums:
        size = f"{title}, num = {num}"
        peak = None if peaks[num] is None else peaks[num] / 2**20
        table.append(Measurement(PEAK, size, peak, unit="MiB", missing=NO_GPU))
        table.append(Measurement(PLANNED, size, errors[num], unit="", target=PLANNED_TARGET, missing=NO_GPU))
    growth = None if peaks[nums[-1]] is None else peaks[nums[-1]] / peaks[nums[0]]
    size = f"{title}, num = {nums[-1]}"
    return [*table, Measurement(GROWTH.format(nums[0]), size, growth, target=GROWTH_TARGET, missing=NO_GPU)]


def trace_rows(dims: Sequence[int], threads: int, device: str) -> list[Measurement]:
    """The trace term on the device."""
    table = []
    for dim in dims:
        rows = sample_rows(dim)
        x, y = (Moments.of(part).covariance.to(device) for part in rows)
        actions = {
            "mirlib": lambda x=x, y=y: trace_sqrt_product(x, y),
            "eigvalsh": lambda x=x: torch.linalg.eigvalsh(x),
        }
        time_in_turns(actions, 1, f"warm-up, d = {dim}")
        timings = time_in_turns(actions, 5, f"trace term on {device}, d = {dim}")
        details = {"threads": threads, "dim": dim, "device": _name(torch.device(device)), "seconds": medians(timings)}
        size, values = f"d = {dim}", ratios(timings["mirlib"], timings["eigvalsh"], threads)
        table.append(Measurement.of(TRACE, size, values, target=Target("≤", 2.2), details=details))
        error = abs(trace_sqrt_product(x, y) / by_svd(*rows) - 1)
        table.append(Measurement(ERROR, size, error, unit="", target=ACCURACY, details=details))
    return table


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def not_measured(dims: Sequence[int], samples: int, nums: Sequence[int]) -> list[Measurement]:
    """The rows of a machine without a GPU."""
    targets = {TRACE: Target("≤", 2.2), ERROR: ACCURACY, WHOLE: WHOLE_TARGET}
    size = f"{SHAPES['7b'][0]}, {samples} samples"
    rows = [(what, f"d = {dim}") for dim in dims for what in (TRACE, ERROR)]
    rows += [(what, size) for what in (*PARTS, WHOLE, WITH_INTERVAL, AUTHORS)]
    table = [Measurement(what, where, None, target=targets.get(what), missing=NO_GPU) for what, where in rows]
    return [*table, *peak_rows(llava_shape(), "7b", nums, "cpu", torch.bfloat16)]


def measure(
    threads: int,
    quick: bool = False,
    *,
    shape: str = "7b",
    device: str = "cuda",
    samples: int | None = None,
) -> list[Measurement]:
    """The rows of the GPU; without one they say that they were not measured."""
    dims = (2048,) if quick else (2048, 4096)
    samples = samples or (20 if quick else SAMPLES)
    nums = (samples, 10 * samples)
    if device.startswith("cuda") and not torch.cuda.is_available():
        return not_measured(dims, samples, nums)
    title, config_of, options = SHAPES[shape]
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    config = config_of()
    table = trace_rows((64,) if shape == "tiny" else dims, threads, device)
    model = random_model(config, device, dtype)
    batches = random_batches(config, samples, **options)
    table += whole_mir(model, batches, f"{title}, {samples} samples", 1 if quick else 3, threads)
    del model
    table += peak_rows(config, shape, nums, device, dtype)
    if device.startswith("cuda"):
        return table
    # The targets are those of a GPU and of the real shape.
    return [replace(row, what=row.what.replace("on the GPU", f"on {device}"), target=None) for row in table]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to see that it runs")
    parser.add_argument("--samples", type=int, help=f"pairs (default {SAMPLES}); peak memory at ten times as many, too")
    parser.add_argument("--quick", action="store_true", help="fewer samples, sizes and rounds")
    given = parser.parse_args()
    print(format_table(measure(1, given.quick, shape=given.shape, device=given.device, samples=given.samples)))
