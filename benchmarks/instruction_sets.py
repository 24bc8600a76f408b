"""``python -m benchmarks.instruction_sets``: how far a run of the laboratory differs between the CPUs that may do it.

The cheapest run of the shipped parts in each of three experiments, in float32, under the best instructions of this
machine and under those of smaller ones (``SETTINGS``), each in a process of its own, from the features on. The runs
were chosen before any was made: by cost alone, and so that a plain one, one with a method and one with two stages of
captions are among them. Rows go to results/instruction_sets.jsonl; those that are there are not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mirlab import ledger, runs
from mirlab.first.protocols import PROTOCOLS
from mirlab.model import parts

RESULTS = Path(__file__).resolve().parents[1] / "results" / "instruction_sets.jsonl"
EXPERIMENTS = ("data_scale", "moca", "stages")
SETTINGS = {
    "best": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def run_of(experiment: str) -> runs.Run:
    """The cheapest run of the shipped parts that has a method where the experiment is about one."""
    found = [run for run in PROTOCOLS[experiment].runs if run.parts == parts.SHIPPED and run.size == "base"]
    with_method = [run for run in found if "method" in run.configuration]
    return min(with_method or found, key=lambda run: run.cost)


def configuration_of(experiment: str, setting: str) -> dict[str, Any]:
    """What a row's key is made of."""
    return {"run": run_of(experiment).configuration, "instructions": setting}


def row_of(experiment: str, setting: str, cache: Path) -> dict[str, Any]:
    """A run in a process that has only the instructions of the setting."""
    code = f"from benchmarks.instruction_sets import main_of; main_of({experiment!r}, {str(cache)!r})"
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **SETTINGS[setting], "OMP_NUM_THREADS": "1"},
        cwd=RESULTS.parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    configuration = configuration_of(experiment, setting)
    return {
        "key": ledger.key_of(configuration),
        "experiment": experiment,
        "configuration": configuration,
        **json.loads(made.stdout),
        "provenance": {**ledger.provenance(), "precision": "float32"},
    }


def main_of(experiment: str, cache: str) -> None:
    """In the process of a setting: do the run, and print what it gave as JSON."""
    import torch

    torch.set_num_threads(1)
    print(json.dumps(runs.execute(run_of(experiment), Path(cache))))


def main() -> None:
    """Make the rows that are missing."""
    book = ledger.Ledger(RESULTS)
    with tempfile.TemporaryDirectory() as cache:
        pairs = [(experiment, setting) for setting in SETTINGS for experiment in EXPERIMENTS]
        for experiment, setting in tqdm(pairs, unit="run"):
            if book.find(ledger.key_of(configuration_of(experiment, setting))) is None:
                book.append(row_of(experiment, setting, Path(cache) / setting))


if __name__ == "__main__":
    main()
