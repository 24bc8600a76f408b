"""Peak memory of `mirlib.score` by number of samples, each in a fresh process: ``python -m benchmarks.peak_memory``."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import Measurement, Target, say

MEBI = 2**20
TARGET = Target("≤", 1.05)


def _memory(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak. 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def _peak() -> int:
    if _memory("VmHWM"):
        return _memory("VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def score_once(num: int, images: Path, threads: int) -> dict[str, int]:
    """Score the miniature over ``num`` files and say how much memory that took, in bytes."""
    import torch

    from mirlib import score
    from mirlib.data import find_images, sample_texts
    from mirlib.lab.models import load_miniature

    torch.set_num_threads(threads)
    model, processor = load_miniature()
    files, texts = find_images([images]), sample_texts(num)
    loaded = _memory("VmRSS")
    score(model, processor, files, texts, num=num, progress=False)
    return {"peak": _peak(), "loaded": loaded}


def _in_fresh_process(num: int, images: Path, threads: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(num), str(images), str(threads)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"scoring {num} samples in a fresh process failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(nums: Sequence[int], repetitions: int, threads: int) -> list[Measurement]:
    """Peak memory at each number of samples as a multiple of that at the first; image files, not images in memory."""
    from mirlib.data import sample_images

    readings: dict[int, list[dict[str, int]]] = {num: [] for num in nums}
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(sample_images(max(nums))):
            image.save(Path(folder) / f"{number:04d}.jpg")
        for repetition in range(repetitions):
            for num in nums:
                say(f"peak memory: repetition {repetition + 1} of {repetitions}, {num} samples")
                readings[num].append(_in_fresh_process(num, Path(folder), threads))
    first = median(reading["peak"] for reading in readings[nums[0]])
    table = []
    for num in nums:
        peaks = [reading["peak"] for reading in readings[num]]
        details: dict[str, Any] = {
            "num": num,
            "threads": threads,
            "peak_mib": median(peaks) / MEBI,
            "above_loaded_model_mib": median(reading["peak"] - reading["loaded"] for reading in readings[num]) / MEBI,
        }
        table.append(Measurement.of("peak memory of score", f"num = {num}", [p / MEBI for p in peaks], unit="MiB"))
        table.append(
            Measurement.of(
                f"peak memory / that at num = {nums[0]}",
                f"num = {num}",
                [peak / first for peak in peaks],
                target=None if num == nums[0] else TARGET,
                details=details,
            )
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score the miniature once and print the memory that it took, as JSON.")
    parser.add_argument("num", type=int)
    parser.add_argument("images", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    print(json.dumps(score_once(arguments.num, arguments.images, arguments.threads)))
