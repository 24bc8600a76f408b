"""What only a GPU can show: the trace term there, and a whole MIR of a model of LLaVA-1.5-7B's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaConfig

from benchmarks.capture_overhead import plain_pass
from benchmarks.measuring import Measurement, Stopwatch, Target, medians, ratios, say, time_in_turns
from benchmarks.trace_term import ACCURACY, by_svd, sample_rows
from mirlib import score_batches
from mirlib.frechet import Moments, trace_sqrt_product
from mirlib.planning import llava_shape

TRACE, WHOLE = "trace term on the GPU: mirlib / one eigvalsh", "whole MIR / one plain forward pass, on the GPU"
ERROR = "relative error of the trace term: mirlib on the GPU"
WHOLE_TARGET = Target("≤", 2)
SAMPLES = 100
IMAGE_TOKEN = 32000


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


def whole_mir(model: nn.Module, batches: list[dict[str, Any]], size: str, rounds: int, threads: int) -> Measurement:
    """`score_batches`, both passes and the distances, over one plain forward pass on the same inputs."""
    parameter = next(model.parameters())

    def on_device(value: torch.Tensor) -> torch.Tensor:
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)

    batches = [{name: on_device(value) for name, value in batch.items()} for batch in batches]
    plain_pass(model, batches[:1])
    timings: dict[str, list] = {"plain": [], "whole": []}
    for number in range(rounds):
        say(f"whole MIR, {size}: round {number + 1} of {rounds}")
        timings["plain"].append(plain_pass(model, batches))
        watch = Stopwatch()
        score_batches(model, batches, progress=False)
        timings["whole"].append(watch.read())
    return Measurement.of(
        WHOLE,
        size,
        ratios(timings["whole"], timings["plain"], threads),
        target=WHOLE_TARGET,
        details={"threads": threads, "seconds": medians(timings)},
    )


def measure(threads: int, quick: bool = False) -> list[Measurement]:
    """The rows of the GPU; without one they say that they were not measured."""
    dims = (2048,) if quick else (2048, 4096)
    size = f"7B shape, {SAMPLES} samples"
    if not torch.cuda.is_available():
        trace_rows = [Measurement(name, f"d = {dim}", None, target=None) for dim in dims for name in (TRACE, ERROR)]
        return [*trace_rows, Measurement(WHOLE, size, None, target=WHOLE_TARGET)]
    table = []
    for dim in dims:
        rows = sample_rows(dim)
        x, y = (Moments.of(part).covariance.cuda() for part in rows)
        actions = {
            "mirlib": lambda x=x, y=y: trace_sqrt_product(x, y),
            "eigvalsh": lambda x=x: torch.linalg.eigvalsh(x),
        }
        time_in_turns(actions, 1, f"GPU warm-up, d = {dim}")
        timings = time_in_turns(actions, 5, f"trace term on the GPU, d = {dim}")
        values = ratios(timings["mirlib"], timings["eigvalsh"], threads)
        details = {"threads": threads, "dim": dim, "device": torch.cuda.get_device_name(), "seconds": medians(timings)}
        table.append(Measurement.of(TRACE, f"d = {dim}", values, target=Target("≤", 2.2), details=details))
        error = abs(trace_sqrt_product(x, y) / by_svd(*rows) - 1)
        table.append(Measurement(ERROR, f"d = {dim}", error, unit="", target=ACCURACY, details=details))
    config = llava_shape()
    model = random_model(config, "cuda", torch.bfloat16)
    batches = random_batches(config, SAMPLES, batch_size=4)
    table.append(whole_mir(model, batches, size, 1 if quick else 3, threads))
    return table
