"""Execute the pages that Sphinx is about to read side by side, a kernel a core.

myst-nb executes a page when Sphinx comes to it, one page after another. This Sphinx extension comes just before: the
pages that the cache of executed notebooks does not hold go through myst-nb's own client, each in a thread that waits
for the kernel of its page. So the cache holds what Sphinx would have put there, and Sphinx finds every page executed.

The pages that took longest the last time start first. A page that fails is reported at once, with its cell, on stderr
and in ``_build/html/reports``; the other pages still run, stay in the cache, and then the build ends.

Side by side the pages take their memory together. LOKY_MAX_CPU_COUNT=1 in the environment runs one at a time.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import book_cache
import joblib
import psutil  # comes with every ipykernel
from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.execute import ExecutionError, NotebookClientCache, create_client
from myst_nb.core.read import create_nb_reader
from nbclient.exceptions import DeadKernelError
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# What the client has to say comes again when Sphinx reads the page, with the page's name before it.
QUIET = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), lambda *_, **__: None))


@dataclass(frozen=True)
class Page:
    """A page that waits for its execution.

    Attributes:
        name: As in the table of contents.
        client: Executes the page and puts it into the cache.
    """

    name: str
    client: NotebookClientCache

    def cell(self, index: int | None) -> str:
        """Return the name of the cell of this index."""
        notebook = self.client.notebook
        if index is None:
            return "outside of the cells"
        if "source_map" in notebook.metadata:  # of a page in Markdown, whose cells have no lasting ids
            return f"the cell at line {notebook.metadata.source_map[index] + 1}"
        return f"cell {index + 1} (id {notebook.cells[index].get('id', '?')})"


def waiting(names: Iterable[str], path_of: Callable[[str], str], md_config: Any, nb_config: Any) -> Iterator[Page]:
    """Yield the pages that are to be executed and are not in the cache.

    Args:
        names: Names of pages, of which some may be no notebooks.
        path_of: From the name of a page to its file.
        md_config: Sphinx's ``env.myst_config``.
        nb_config: Sphinx's ``env.mystnb_config``.
    """
    hashes = set()
    for name in names:
        path = path_of(name)
        content = Path(path).read_text(encoding="utf-8")
        try:
            reader = create_nb_reader(path, md_config, nb_config, content)
            if reader is None:
                continue
            notebook = reader.read(content)
            config = nb_config.copy(**notebook.metadata.get(nb_config.metadata_key, {}))
        except Exception:  # a damaged page is Sphinx's to report: it says where
            continue
        client = create_client(notebook, path, config, QUIET, reader.read_fmt)
        if not isinstance(client, NotebookClientCache):  # not to be executed, or not to be kept
            continue
        cache = get_cache(config.execution_cache_path or ".jupyter_cache")
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            _, key = cache.create_hashed_notebook(notebook)
            if key not in hashes:  # pages with the same code share their place in the cache
                hashes.add(key)
                yield Page(name, client)


def execute(pages: list[Page], processes: int, done: Callable[[Page, BaseException | None], None]) -> None:
    """Execute pages side by side, in the order given, and put those that succeed into the cache.

    Args:
        pages: What to execute.
        processes: How many at a time.
        done: Called after each page, in the calling thread, with what went wrong or None.
    """
    futures: dict[Future[None], Page] = {}
    taking = threading.Lock()
    take = JupyterCacheBase.cache_notebook_bundle

    def one_at_a_time(*args: Any, **kwargs: Any) -> Any:
        # After each page the cache drops those that were not there a moment before: also what came in between.
        with taking:
            return take(*args, **kwargs)

    patched = mock.patch.object(JupyterCacheBase, "cache_notebook_bundle", one_at_a_time)
    with patched, ThreadPoolExecutor(processes) as pool:
        try:
            futures |= {pool.submit(page.client.start_client): page for page in pages}
            for future in as_completed(futures):
                done(futures[future], future.exception())
        except BaseException:  # Ctrl-C: the threads would wait for their kernels to the end of the page
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                _end_kernels()
                time.sleep(0.2)
            raise


def _end_kernels() -> None:
    for child in psutil.Process().children():
        try:
            if any("kernel" in part for part in child.cmdline()):
                child.kill()
        except psutil.NoSuchProcess:
            pass


def ended_at(error: BaseException) -> int | None:
    """Return the index of the cell that nbclient was executing when it raised this, or None outside of the cells.

    Asked of the traceback: what a cell holds does not tell, since the kernel's word that it began on a cell may arrive
    before the kernel dies or never.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    cells = [frame.f_locals["cell_index"] for frame in frames if frame.f_code.co_name == "async_execute_cell"]
    return cells[-1] if cells else None


def report(page: Page, error: BaseException) -> tuple[str, str]:
    """Return what is to be said of a page that failed.

    Args:
        page: The page.
        error: What its client raised.

    Returns:
        A line with page, cell and error, and the traceback.
    """
    cause = error.__cause__ if isinstance(error, ExecutionError) and error.__cause__ else error
    index = ended_at(cause)
    kind = getattr(cause, "ename", type(cause).__name__)
    said = (getattr(cause, "evalue", "") or str(cause)).strip().splitlines()
    if isinstance(error, ExecutionError):
        text = str(cause)  # the cell's source, what it printed, and its traceback
    elif isinstance(error, DeadKernelError):
        source = page.client.notebook.cells[index].source if index is not None else ""
        text = f"{source}\n\nWas there too little memory? LOKY_MAX_CPU_COUNT=1 executes one page at a time."
    else:
        text = "".join(traceback.format_exception(cause))
    return f"{page.name}, {page.cell(index)}: {kind}: {said[0] if said else ''}", text.rstrip()


def before_reading(app: Any, env: Any, names: list[str]) -> None:
    """Execute the pages among those that Sphinx is about to read.

    Raises:
        SystemExit: If a page failed. (An exception would print two tracebacks of Sphinx's below that of the page.)
    """
    pages = list(waiting(names, env.doc2path, env.myst_config, env.mystnb_config))
    if not pages:
        return
    # joblib counts the cores that this process may use, in a container too.
    processes = min(joblib.cpu_count(), len(pages))
    # A kernel a core leaves none for further threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    store = Path(app.outdir).parent / book_cache.SECONDS
    seconds = json.loads(store.read_text()) if store.exists() else {}
    pages.sort(key=lambda page: -seconds.get(page.name, math.inf))
    LOGGER.info("executing %d page%s, %d at a time", len(pages), "s" if len(pages) > 1 else "", processes)
    failed = []
    finished = 0
    started = time.monotonic()

    def done(page: Page, error: BaseException | None) -> None:
        nonlocal finished
        finished += 1
        if error is None:
            seconds[page.name] = round(page.client.exec_metadata["runtime"], 1)
            store.write_text(json.dumps(seconds, indent=1))
            LOGGER.info("executed %2d/%d  %5.0f s  %s", finished, len(pages), seconds[page.name], page.name)
            return
        line, text = report(page, error)
        failed.append(line)
        log = Path(app.outdir, "reports", f"{page.name}.err.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{line}\n{text}\n", encoding="utf-8")
        print(f"\nFAILED   {finished:2d}/{len(pages)}  {line}\n{text}\n", file=sys.stderr, flush=True)

    execute(pages, processes, done)
    LOGGER.info("executed %d of %d in %.0f s", len(pages) - len(failed), len(pages), time.monotonic() - started)
    if failed:
        raise SystemExit("These pages failed, and their reports stand above:\n  " + "\n  ".join(failed))


def setup(app: Any) -> dict[str, bool]:
    """Ask Sphinx for the moment before it reads the pages."""
    app.connect("env-before-read-docs", before_reading)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
