"""Runs that train nothing, for the tests of sweeps: importable, so that other processes can do them.

What happens is written down in the cache: `started.txt` gets a line when a run starts, `finished.txt` when it ends.
A gated run waits in between until the file `gate-SEED` is there.
"""

import os
import sys
import time
from pathlib import Path

from mirlab import recipes, sweep

EXPERIMENT = "data_scale"
ARM = "32 pairs"


def settings(count):
    """Runs of equal cost, which are done in this order."""
    return [recipes.Run(seed=seed, stage_one=recipes.StageOne(pairs=32)) for seed in range(count)]


def arms(count, name=ARM):
    """The one arm of an experiment."""
    return {name: settings(count)}


def metrics(run):
    return {"mir": {"value": run.seed**2 / 7}, "loss": 1 / (1 + run.seed)}


def execute(run, cache):
    _note(cache, "started", run.seed)
    _note(cache, "finished", run.seed)
    return {"metrics": metrics(run), "seconds": {"all": 0.1}, "parts": "none", "process": os.getpid()}


def gated(run, cache):
    _note(cache, "started", run.seed)
    wait_until((cache / f"gate-{run.seed}").exists)
    _note(cache, "finished", run.seed)
    return {"metrics": metrics(run), "seconds": {"all": 0.1}, "parts": "none", "process": os.getpid()}


def failing(run, cache):
    if run.seed == 2:
        raise ArithmeticError("this run cannot be done")
    return execute(run, cache)


def open_gates(cache, seeds):
    for seed in seeds:
        (cache / f"gate-{seed}").touch()


def noted(cache, what):
    """Seeds in the order in which they were started or finished."""
    path = cache / f"{what}.txt"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def _note(cache, what, seed):
    with open(cache / f"{what}.txt", "a") as file:  # one short write in append mode: processes do not mix
        file.write(f"{seed}\n")


def wait_until(condition, seconds=600):
    """Wait for something that other processes bring about; the limit is there for tests that fail."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError("what the test waits for does not happen")
        time.sleep(0.005)


if __name__ == "__main__":
    results, cache, jobs, count = sys.argv[1:]
    sweep.sweep(EXPERIMENT, arms(int(count)), results, Path(cache), jobs=int(jobs), execute=gated)
