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

from benchmarks.measuring import Measurement, Target, say

MEBI = 2**20
TARGET = Target("≤", 1.05)
TEXT_TOKENS = 64


def memory(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak. 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def peak_memory() -> int:
    """The most bytes that this process has held."""
    if memory("VmHWM"):
        return memory("VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def score_once(num: int, images: Path, threads: int) -> dict[str, int]:
    """Score the miniature over ``num`` files and say how much memory that took, in bytes."""
    import torch

    from mirlib import score
    from mirlib.data import find_images, sample_texts
    from mirlib.loading import load_miniature

    torch.set_num_threads(threads)
    model, processor = load_miniature()
    files, texts = find_images([images]), sample_texts(num)
    loaded = memory("VmRSS")
    # Texts of one length: the memory of a forward pass is that of its longest text, and more texts hold longer ones.
    score(model, processor, files, texts, num=num, max_text_tokens=TEXT_TOKENS, progress=False)
    return {"peak": peak_memory(), "loaded": loaded}


def _in_fresh_process(num: int, images: Path, threads: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(num), str(images), str(threads)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"scoring {num} samples in a fresh process failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(nums: Sequence[int], repetitions: int, threads: int) -> list[Measurement]:
    """Peak memory at each number of samples as a multiple of that at 100, and what of it lies above the loaded model.

    The images are files: pictures in memory would grow with their number, whoever holds them.
    """
    from mirlib.data import sample_images

    readings: dict[int, list[dict[str, int]]] = {num: [] for num in nums}
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(sample_images(max(nums))):
            image.save(Path(folder) / f"{number:04d}.jpg")
        for repetition in range(repetitions):
            for num in nums:
                say(f"peak memory: repetition {repetition + 1} of {repetitions}, {num} samples")
                readings[num].append(_in_fresh_process(num, Path(folder), threads))
    base = 100 if 100 in nums else nums[0]
    usual = median(reading["peak"] for reading in readings[base])
    table = []
    for num in nums:
        size, details = f"num = {num}", {"num": num, "threads": threads}
        peaks = [reading["peak"] for reading in readings[num]]
        extra = [(reading["peak"] - reading["loaded"]) / MEBI for reading in readings[num]]
        table += [
            Measurement.of("peak memory of score", size, [p / MEBI for p in peaks], unit="MiB", details=details),
            Measurement.of("of it above the loaded model", size, extra, unit="MiB", details=details),
        ]
        if num != base:
            what, growth = f"peak memory / that at num = {base}", [peak / usual for peak in peaks]
            table.append(Measurement.of(what, size, growth, target=TARGET, details=details))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score the miniature once and print the memory that it took, as JSON.")
    parser.add_argument("num", type=int)
    parser.add_argument("images", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    print(json.dumps(score_once(arguments.num, arguments.images, arguments.threads)))
