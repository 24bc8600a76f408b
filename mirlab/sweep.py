"""Many runs, over all cores or many machines: resumable, without a row lost or written twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel
from tqdm.auto import tqdm

from mirlab import ledger, methods
from mirlab.model import precision
from mirlab.recipes import Run
from mirlib.errors import MirlibError

Execute = Callable[[Run, Path], dict[str, Any]]


def sweep(
    experiment: str,
    arms: Mapping[str, Sequence[Run]],
    results_dir: str | Path,
    cache: str | Path,
    *,
    jobs: int | None = None,
    backend: str | None = None,
    progress: bool = True,
    execute: Execute | None = None,
) -> list[dict[str, Any]]:
    """Do every run of an experiment that the ledger does not hold yet.

    A row is written by the process that made it as soon as it is done, and offered once more by this one, for where
    they do not share a disk. A run that another process is at is left to it, and looked at again in the end. A run that
    another experiment has done already is copied, with the name of the arm that it has here. All multiply in the
    precision that is in use here (`mirlab.model.precision`), and their rows name it.

    Args:
        experiment: Name of the ledger's file.
        arms: The runs by the name of their arm.
        results_dir: Folder of the ledger.
        cache: Folder of trained parts and features.
        jobs: Processes at once; as many as there are cores if left out.
        backend: A joblib backend, ``loky`` if left out; with ``dask`` or ``ray`` the runs spread over a `cluster`.
        progress: Draw a progress bar with the time left on stderr.
        execute: What does a run, instead of the function of this name in the module that the run names; for tests.

    Returns:
        The experiment's rows, in the order of the arms and their runs.
    """
    book, cache = ledger.Ledger(Path(results_dir) / f"{experiment}.jsonl"), Path(cache)
    wanted = _planned(experiment, arms)
    done = {row["key"] for row in book.rows()}
    others = _rows_of_others(book) if wanted.keys() - done else {}
    for key, (arm, _) in wanted.items():
        if key in others and key not in done:
            book.append(_copied(others[key], experiment, arm))
    pending = [planned for key, planned in wanted.items() if key not in done | others.keys()]
    pending.sort(key=lambda planned: (str(planned[1].parts), -planned[1].cost))  # each set of parts is loaded once
    bar = tqdm(
        total=sum(round(run.cost) for _, run in pending),
        desc=f"{experiment}: {len(pending)} of {len(wanted)} runs to do",
        unit="s",
        disable=not progress or not pending,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    )
    left_to_others = []
    do = partial(_do, experiment, book.path, cache, execute, precision.current())
    with cluster(backend if pending else None, jobs=jobs) as as_they_come:
        workers = Parallel(
            n_jobs=min(jobs or os.cpu_count() or 1, max(1, len(pending))),
            return_as="generator_unordered" if as_they_come else "list",
            batch_size=1,
            pre_dispatch="n_jobs",
        )
        for arm, run, row in workers(delayed(do)(arm, run) for arm, run in pending):
            if row is None:
                left_to_others.append((arm, run))
            else:
                book.append(row)
            bar.update(round(run.cost))
            bar.set_postfix_str(f"{len(book.rows())} rows")
    for arm, run in left_to_others:  # wait for the other process, and do the run if that one died
        do(arm, run, wait=True)
    bar.close()
    rows = {row["key"]: row for row in book.rows()}
    return [rows[key] for key in wanted]


@contextmanager
def cluster(backend: str | None, *, jobs: int | None = None) -> Iterator[bool]:
    """Let joblib use a backend, and connect to the cluster where it is one.

    - ``dask``: the cluster whose scheduler ``DASK_SCHEDULER_ADDRESS`` names; without it, `jobs` workers on this
      machine.
    - ``ray``: the cluster that ``RAY_ADDRESS`` names; without it, this machine.
    - any other name that joblib knows, or None for no change.

    Every worker needs this package; a relative folder of results or parts is looked for where the worker was started.
    What is yielded: whether the backend hands over each result when it is there; if not, all come in the end.
    """
    if backend is None:
        yield True
        return
    if backend == "dask":
        try:
            from dask import config
            from distributed import Client
        except ImportError as error:
            raise MirlibError("the backend dask needs a package more: pip install distributed") from error
        address = config.get("scheduler-address", None)
        with Client(address) if address else Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None):
            with parallel.parallel_config(backend="dask"):
                yield True
        return
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise MirlibError("the backend ray needs a package more: pip install ray") from error
        register_ray()
    if backend not in parallel.BACKENDS:
        known = ", ".join(sorted({*parallel.BACKENDS, "dask", "ray"}))
        raise MirlibError(f"no backend is called {backend!r}; there is {known}")
    with parallel.parallel_config(backend=backend):
        yield parallel.get_active_backend()[0].supports_return_generator


def _do(
    experiment: str, path: Path, cache: Path, execute: Execute | None, in_use: str, arm: str, run: Run, *, wait=False
) -> tuple[str, Run, dict[str, Any] | None]:
    """A run, its arm, and its row; None where another process is at it."""
    torch.set_num_threads(1)  # so small a model is not faster with more, and the sums come out the same everywhere
    key = ledger.key_of(run.configuration)
    book = ledger.Ledger(path)
    with ledger.FileLock(cache / "claims" / key, wait=wait) as claim:
        if not claim.held:
            return arm, run, None
        row = book.find(key)
        if row is None and (other := _rows_of_others(book).get(key)):  # done since this sweep began
            book.append(row := _copied(other, experiment, arm))
        if row is None:
            with precision.use(in_use):
                done = (execute or import_module(run.done_by).execute)(run, cache)
                provenance = precision.provenance()
            asked = {"key": key, "experiment": experiment, "arm": arm, "configuration": run.configuration}
            row = {**asked, **done, "provenance": provenance}
            book.append(row)
    return arm, run, row


def _planned(experiment: str, arms: Mapping[str, Sequence[Run]]) -> dict[str, tuple[str, Run]]:
    """Arm and run of each key. A file holds a row a key, so a run may stand in one arm only."""
    named = [(ledger.key_of(run.configuration), arm, run) for arm, members in arms.items() for run in members]
    (key, times), *_ = Counter(key for key, _, _ in named).most_common(1) or [("", 0)]
    if times > 1:
        where = " and ".join(repr(arm) for other, arm, _ in named if other == key)
        raise MirlibError(f"the experiment {experiment} has one run twice, in {where}: an arm must not repeat another")
    for method in {run.method for _, _, run in named}:
        methods.technique(method)  # hours before its turn comes
    return {key: (arm, run) for key, arm, run in named}


def _copied(row: dict[str, Any], experiment: str, arm: str) -> dict[str, Any]:
    return {"copied_from": row["experiment"]} | row | {"experiment": experiment, "arm": arm}


def _rows_of_others(book: ledger.Ledger) -> dict[str, dict[str, Any]]:
    """Rows of all other sweeps in the folder of a book, by key; ledgers whose rows have no arm are passed by."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(set(book.path.parent.glob("*.jsonl")) - {book.path}):
        with path.open("rb") as file:
            if b'"arm": ' not in file.readline():
                continue
        found = {row["key"]: row for row in ledger.Ledger(path).rows() if "arm" in row} | found
    return found
