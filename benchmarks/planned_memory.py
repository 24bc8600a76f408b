"""What `mirlib.plan` says of memory beside what a run takes: ``python -m benchmarks.planned_memory SHAPE``.

Each run has a process of its own. What it held before the model was made is taken off, as the plan does not count
Python and PyTorch themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement, Target, say
from benchmarks.peak_memory import MEBI, memory, peak_memory

WITHIN = 0.15
# dim, layers, feed forward, image size, text tokens, batch size, samples: weights, moments and what an interval takes
# weigh differently in each, and activations, which a plan does not know, weigh little.
SHAPES = {
    "tiny": (256, 2, 512, 56, 16, 2, 4),
    "weights": (768, 8, 2048, 112, 64, 4, 4),
    "moments": (1280, 5, 640, 112, 32, 2, 2),
    "maps": (1280, 5, 640, 224, 256, 1, 11),
    "7B": (4096, 4, 11008, 336, 64, 1, 2),
    "7B interval": (4096, 4, 11008, 336, 576, 1, 15),
}
"""``7B`` is LLaVA-1.5-7B with 4 of its 32 layers, about 8 GiB in float32; the others have a small vision encoder."""
INTERVALS = {"maps": "influence", "7B interval": "influence"}
"""Shapes measured with an interval: influences need twice as many rows of each modality as there are dimensions."""


def shape_of(name: str) -> dict[str, int]:
    """A shape by name."""
    fields = ("dim", "layers", "feed_forward", "image_size", "text_tokens", "batch_size", "num")
    return dict(zip(fields, SHAPES[name], strict=True))


def config_of(shape: dict[str, int]):
    """The configuration of a LLaVA of that shape."""
    from mirlib.planning import llava_shape

    if shape["dim"] == shape_of("7B")["dim"]:
        return llava_shape(shape["layers"])
    return llava_shape(
        shape["layers"],
        shape["dim"],
        shape["feed_forward"],
        vision_dim=256,
        heads=8,
        vision_layers=3,
        vocabulary=1000,
        image_size=shape["image_size"],
    )


def run_once(name: str) -> dict[str, Any]:
    """Plan, then run, in this process: bytes that were planned, and that were taken."""
    import torch

    from benchmarks.gpu import random_batches, random_model
    from mirlib import plan, score_batches

    torch.set_num_threads(1)
    shape = shape_of(name)
    options = {key: shape[key] for key in ("num", "batch_size", "text_tokens")}
    confidence = 0.95 if name in INTERVALS else None
    options["confidence"] = confidence
    planned = plan(config_of(shape), device="cpu", **options)
    small = shape_of("tiny")  # what the first run of a process loads is no memory of the model
    model = random_model(config_of(small), "cpu", torch.float32)
    warm_up = random_batches(model.config, 2, 2, small["text_tokens"])
    score_batches(model, warm_up, confidence=confidence, progress=False)
    del model
    config = config_of(shape)
    before = memory("VmRSS")
    model = random_model(config, "cpu", torch.float32)
    batches = random_batches(config, shape["num"], shape["batch_size"], shape["text_tokens"])
    result = score_batches(model, batches, confidence=confidence, progress=False)
    taken = peak_memory() - before
    found = None if result.interval is None else result.interval.method
    if not found == planned.settings["interval"] == INTERVALS.get(name):
        raise RuntimeError(f"an interval by {INTERVALS.get(name)} was to be measured, and this was one by {found}")
    return {"planned": planned.peak, "taken": taken, "passes": result.passes}


def in_fresh_process(name: str) -> dict[str, Any]:
    """`run_once` in a process of its own."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "benchmarks.planned_memory", name]
    # glibc keeps freed blocks of up to 32 MB for later, and then a process looks larger than what it uses.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"the run of the shape {name!r} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(names: Sequence[str]) -> list[Measurement]:
    """How far each plan is from what was taken, as a fraction of it."""
    table = []
    for name in names:
        say(f"planned memory, shape {name!r}")
        found = in_fresh_process(name)
        size = f"{name}, {found['taken'] / MEBI:.0f} MiB"
        error = abs(found["planned"] / found["taken"] - 1)
        details = found | shape_of(name)
        target = Target("≤", WITHIN)
        table.append(
            Measurement("error of the planned peak memory", size, error, unit="", target=target, details=details)
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plan and run one shape, and print both memories as JSON.")
    parser.add_argument("shape", choices=SHAPES)
    print(json.dumps(run_once(parser.parse_args().shape)))
