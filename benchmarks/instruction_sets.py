"""``python -m benchmarks.instruction_sets [EXPERIMENT …]``: does a small machine make the rows of the ledger again?

The cheapest run of each experiment on miniatures, once more in a process that has the instructions of AVX2 and nothing
newer, from the encoder's features on; trained parts are taken from the cache. What differs shows how far a row depends
on the machine that made it. Rows go to results/small_machine.jsonl, each with the key of the row that it repeats; those
that are there are not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mirlab import commands, ledger, recipes, runs
from mirlab.experiments import EXPERIMENTS
from mirlab.model import precision

RESULTS = Path(__file__).resolve().parents[1] / "results"
SMALL = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def cheapest(experiment: str) -> dict[str, Any] | None:
    """The row that took the fewest seconds, of those that the experiment made itself."""
    rows = (row for row in ledger.Ledger(RESULTS / f"{experiment}.jsonl").rows() if "copied_from" not in row)
    return min(rows, key=lambda row: row["seconds"]["all"], default=None)


def again(row: dict[str, Any], cache: Path) -> dict[str, Any]:
    """The run of a row in a process that has only the instructions of a small machine."""
    code = "from benchmarks.instruction_sets import in_process; in_process()"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(row["configuration"]), str(cache)],
        env=os.environ | SMALL | {"OMP_NUM_THREADS": "1"},
        cwd=RESULTS.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {
        "key": row["key"],
        "experiment": row["experiment"],
        "arm": row["arm"],
        "configuration": row["configuration"],
        **json.loads(done.stdout),
    }


def in_process() -> None:
    """Do the run of the command line and print what it gave as JSON."""
    torch.set_num_threads(1)
    run, cache = recipes.Run.of(json.loads(sys.argv[1])), Path(sys.argv[2])
    found = runs.execute(run, cache)
    print(json.dumps({**found, "provenance": precision.provenance()}))


def main(names: list[str]) -> None:
    """Make the rows that are missing."""
    book = ledger.Ledger(RESULTS / "small_machine.jsonl")
    of_the_miniature = [name for name, declared in EXPERIMENTS.items() if declared.runs[0].done_by == runs.__name__]
    rows = [row for name in names or of_the_miniature if (row := cheapest(name)) is not None]
    with tempfile.TemporaryDirectory() as folder:
        for trained in commands.default_cache().glob("parts-*"):
            (Path(folder) / trained.name).symlink_to(trained)
        for row in tqdm([row for row in rows if book.find(row["key"]) is None], unit="run"):
            book.append(again(row, Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
