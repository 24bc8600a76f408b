"""``python -m benchmarks.instruction_sets [EXPERIMENT …]``: how far does a row depend on the machine that made it?

The cheapest run of each experiment on miniatures, done twice on the parts of the shipped miniature (trained sets
are in no repository) by a processor with AVX-512: with all that it has, and with AVX2 and nothing newer. Rows go
to results/small_machine.jsonl with the ``metrics`` of AVX2 and, under ``beside``, those of AVX-512; those that are
there are not made again. Five rows repeat rows of the ledger instead, made by hand while their parts were there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mirlab import commands, ledger, recipes, runs
from mirlab.experiments import EXPERIMENTS
from mirlab.model import parts, precision

RESULTS = Path(__file__).resolve().parents[1] / "results"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def cheapest(experiment: str) -> dict[str, Any] | None:
    """The row that took the fewest seconds, of those that the experiment made itself if there are any."""
    rows = ledger.Ledger(RESULTS / f"{experiment}.jsonl").rows()
    own = [row for row in rows if "copied_from" not in row]
    return min(own or rows, key=lambda row: row["seconds"]["all"], default=None)


def done(configuration: dict[str, Any], instructions: dict[str, str]) -> dict[str, Any]:
    """The run of a configuration in a process of one thread with these settings for its instructions."""
    process = subprocess.run(
        [sys.executable, "-c", "from benchmarks.instruction_sets import in_process; in_process()"],
        input=json.dumps(configuration),
        env=os.environ | instructions | {"OMP_NUM_THREADS": "1"},
        cwd=RESULTS.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(process.stdout))


def in_process() -> None:
    """Do the run that stdin names, from the encoder's features on, and print what it gave as JSON."""
    torch.set_num_threads(1)
    cache = commands.default_cache() / torch.backends.cpu.get_cpu_capability()
    found = runs.execute(recipes.Run.of(json.load(sys.stdin)), cache)
    print(json.dumps({**found, "provenance": precision.provenance()}))


def main(names: list[str]) -> None:
    """Make the rows that are missing."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        sys.exit("this compares AVX-512 with AVX2, and PyTorch finds no AVX-512 here")
    book = ledger.Ledger(RESULTS / "small_machine.jsonl")
    there = {row["experiment"] for row in book.rows()}
    of_the_miniature = [name for name, declared in EXPERIMENTS.items() if declared.runs[0].done_by == runs.__name__]
    for name in tqdm([name for name in names or of_the_miniature if name not in there], unit="run"):
        row = cheapest(name)
        if row is None:
            continue
        configuration = row["configuration"] | {"parts": parts.SHIPPED}
        key = ledger.key_of(configuration)
        if book.find(key) is None:  # some experiments share runs
            beside = done(configuration, {})
            again = {"key": key, "experiment": name, "arm": row["arm"], "configuration": configuration}
            book.append({**again, **done(configuration, AVX2), "beside": beside})


if __name__ == "__main__":
    main(sys.argv[1:])
