"""Many runs, over all cores or many machines: resumable, without a row lost or written twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from mirlib.lab import ledger, runs

Execute = Callable[[runs.Run, Path], dict[str, Any]]


def sweep(
    experiment: str,
    settings: Sequence[runs.Run],
    results_dir: str | Path,
    cache: str | Path,
    *,
    jobs: int | None = None,
    backend: str | None = None,
    progress: bool = True,
    execute: Execute = runs.execute,
) -> list[dict[str, Any]]:
    """Do every run that the ledger does not hold yet.

    A row is written by the process that made it as soon as it is done, and once more offered by this one, which
    changes nothing where they share a disk and keeps the row where they do not. A run that another process is at is
    left to it, and looked at again in the end. A run that another experiment has done already is copied.

    Args:
        experiment: Name of the ledger's file.
        settings: The runs.
        results_dir: Folder of the ledger.
        cache: Folder of trained parts and features.
        jobs: Processes at once; as many as there are cores if left out.
        backend: A joblib backend, ``loky`` if left out. With ``dask`` or ``ray`` (registered by their packages) the
            runs spread over a cluster.
        progress: Draw a progress bar with the time left on stderr.
        execute: What does a run; for tests.

    Returns:
        The experiment's rows, in the order of `settings`.
    """
    results_dir, cache = Path(results_dir), Path(cache)
    book = ledger.Ledger(results_dir / f"{experiment}.jsonl")
    wanted = {ledger.key_of(run.configuration): run for run in settings}
    _copy_from_others(experiment, wanted, book, results_dir)
    done = {row["key"] for row in book.rows()}
    pending = sorted((run for key, run in wanted.items() if key not in done), key=lambda run: -run.cost)
    total = sum(run.cost for run in pending)
    bar = tqdm(
        total=round(total),
        desc=f"{experiment}: {len(pending)} of {len(wanted)} runs to do",
        unit="s",
        disable=not progress or not pending,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    )
    left_to_others = []
    workers = Parallel(
        n_jobs=min(jobs or os.cpu_count() or 1, max(1, len(pending))),
        backend=backend,
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="n_jobs",
    )
    task = delayed(_do)
    for run, row in workers(task(experiment, run, book.path, cache, execute, False) for run in pending):
        if row is None:
            left_to_others.append(run)
        else:
            book.append(row)
        bar.update(round(run.cost))
        bar.set_postfix_str(f"{len(book.rows())} rows")
    for run in left_to_others:  # wait for the other process, and do the run if that one died
        _do(experiment, run, book.path, cache, execute, True)
    bar.close()
    rows = {row["key"]: row for row in book.rows()}
    return [rows[key] for key in wanted]


def _do(
    experiment: str, run: runs.Run, path: Path, cache: Path, execute: Execute, wait: bool
) -> tuple[runs.Run, dict[str, Any] | None]:
    """A run and its row; None where another process is at it."""
    torch.set_num_threads(1)  # so small a model is not faster with more, and the sums come out the same everywhere
    key = ledger.key_of(run.configuration)
    book = ledger.Ledger(path)
    with ledger.FileLock(cache / "claims" / key, wait=wait) as claim:
        if not claim.held:
            return run, None
        row = book.find(key)
        if row is None:
            row = {
                "key": key,
                "experiment": experiment,
                "configuration": run.configuration,
                **execute(run, cache),
                "provenance": ledger.provenance(),
            }
            book.append(row)
    return run, row


def _copy_from_others(experiment: str, wanted: dict[str, runs.Run], book: ledger.Ledger, results_dir: Path) -> None:
    done = {row["key"] for row in book.rows()}
    for path in sorted(results_dir.glob("*.jsonl")):
        if path == book.path or path.stem not in runs_of_sweeps():
            continue
        for row in ledger.Ledger(path).rows():
            if row["key"] in wanted and row["key"] not in done:
                book.append({**row, "experiment": experiment, "copied_from": path.stem})
                done.add(row["key"])


def runs_of_sweeps() -> tuple[str, ...]:
    """Names of the experiments that are sweeps, whose rows may stand for one another."""
    from mirlib.lab.protocols import PROTOCOLS

    return tuple(PROTOCOLS)
