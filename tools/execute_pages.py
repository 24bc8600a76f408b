"""Execute the pages that Sphinx is about to read side by side, a kernel a core.

myst-nb executes a page when Sphinx comes to it, one page after another. This Sphinx extension comes just before: the
pages that the cache of executed notebooks does not hold go through myst-nb's own client, each in a thread that waits
for the kernel of its page. So the cache holds what Sphinx would have put there, and Sphinx finds every page executed.

What is going to run and about how long it takes is said before; the longest pages start first. A page that fails is
reported at once, with its cell, on stderr and in ``_build/html/reports``. The other pages still run and the book is
built, with what the failed page has to show and a box that says where it failed; the build then ends red.

Side by side the pages take their memory together. LOKY_MAX_CPU_COUNT=1 in the environment runs one at a time. There is
no limit to the time of a cell, which a busy laptop would hit; MIRLIB_CELL_SECONDS sets one.
"""

from __future__ import annotations

import json
import math
import os
import re
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
import myst_nb.sphinx_
import page_seconds
import psutil  # comes with every ipykernel
from jupyter_cache import get_cache
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.execute import ExecutionError, NotebookClientBase, NotebookClientCache, create_client
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
        if limit := os.environ.get("MIRLIB_CELL_SECONDS"):
            config.execution_timeout = int(limit)
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


def with_box(content: str, line: str) -> str:
    """The source of a page, with a box under its title that says that it failed.

    Args:
        content: A notebook as JSON, or a page in Markdown.
        line: Where and why it failed.
    """
    box = f"```{{danger}} This page is not complete\n{line}\n```"
    try:
        notebook = json.loads(content)
    except ValueError:
        return re.sub(r"^# .*$", lambda title: f"{title[0]}\n\n{box}\n", content, count=1, flags=re.MULTILINE)
    first = notebook["cells"][0]
    first["source"] = f"{''.join(first['source'])}\n\n{box}\n"
    return json.dumps(notebook)


def expected(pages: Iterable[Page], last_time: dict[str, float], processes: int) -> tuple[dict[str, float], str]:
    """How many seconds each page is expected to take, and in words how long all of them.

    Args:
        pages: Those that are to be executed.
        last_time: Seconds of the last build on this machine, by the names of pages.
        processes: How many pages run at a time.
    """
    stored = json.loads(page_seconds.SECONDS.read_text()) if page_seconds.SECONDS.exists() else {}
    seconds = {page.name: last_time.get(page.name, stored.get(page.name, math.inf)) for page in pages}
    known = [each for each in seconds.values() if each < math.inf]
    minutes = max(sum(known) / processes, max(known, default=0)) / 60
    measured_here = all(page in last_time for page in seconds)
    where = "as the last time" if measured_here else "on a small laptop"
    return seconds, f"about {minutes:.1f} minutes, {where}" if known else "for how long is not known yet"


def before_reading(app: Any, env: Any, names: list[str]) -> None:
    """Execute the pages among those that Sphinx is about to read."""
    pages = list(waiting(names, env.doc2path, env.myst_config, env.mystnb_config))
    if not pages:
        return
    # joblib counts the cores that this process may use, in a container too.
    processes = min(joblib.cpu_count(), len(pages))
    # A kernel a core leaves none for further threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    store = Path(app.outdir).parent / book_cache.SECONDS
    seconds = json.loads(store.read_text()) if store.exists() else {}
    before, how_long = expected(pages, seconds, processes)
    pages.sort(key=lambda page: -before[page.name])
    LOGGER.info("executing %d page%s, %d at a time: %s", len(pages), "s" * (len(pages) > 1), processes, how_long)
    failed: dict[str, Page] = {}
    lines: dict[str, str] = {}
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
        failed[page.name] = page
        lines[page.name] = line
        log = Path(app.outdir, "reports", f"{page.name}.err.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{line}\n{text}\n", encoding="utf-8")
        print(f"\nFAILED   {finished:2d}/{len(pages)}  {line}\n{text}\n", file=sys.stderr, flush=True)

    execute(pages, processes, done)
    LOGGER.info("executed %d of %d in %.0f s", len(pages) - len(failed), len(pages), time.monotonic() - started)
    if not failed:
        return

    notebooks = {page.client.path: page.client.notebook for page in failed.values()}

    def client_of(notebook: Any, source: str, config: Any, *rest: Any) -> NotebookClientBase:
        there = notebooks.get(Path(source))  # as far as it came, with what it printed
        if there is None:
            return create_client(notebook, source, config, *rest)
        return NotebookClientBase(there, Path(source), config, *rest[:1])

    def announce(app: Any, name: str, source: list[str]) -> None:
        if name in lines:
            source[0] = with_box(source[0], lines[name])

    def end_red(app: Any, exception: Exception | None) -> None:
        print("\nThese pages failed; the others are built:", *lines.values(), sep="\n  ", file=sys.stderr, flush=True)
        app.statuscode = 1

    myst_nb.sphinx_.create_client = client_of  # for this build alone: the process ends with it
    app.connect("source-read", announce)
    app.connect("build-finished", end_red)


def setup(app: Any) -> dict[str, bool]:
    """Ask Sphinx for the moment before it reads the pages."""
    app.connect("env-before-read-docs", before_reading)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
