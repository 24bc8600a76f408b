"""What the tests of the pages share: a built site, a server for it, and a browser that may not leave the machine."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))  # the helpers of the build are scripts, not a package

import book_cache  # noqa: E402
import screenshots  # noqa: E402

# The theme declares this constant twice on every page, with its live code switched off too. It is not ours.
KNOWN_ERROR = "THEBE_JS_URL"
ELSEWHERE = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")

SAMPLE_CELLS = [
    ("markdown", {}, "# Sample\n\nAn equation, {eq}`sample-eq`:\n\n$$\n\\tr(A) = \\sum_i A_{ii}\n$$ (sample-eq)"),
    ("code", {"mystnb": {"image": {"alt": "A line."}}}, "import matplotlib.pyplot as plt\n\nplt.plot([0, 1]);"),
    ("code", {}, "from mirlib.widgets import TwoClouds\n\nTwoClouds()"),
    ("code", {}, "TwoClouds(mean_shift=1.0, text_centric=True)"),
    (
        "code",
        {},
        "from mirlab.live import drawing\nfrom mirlab.measuring import pictures_of, texts_of\n"
        "from mirlib.widgets import TheModel\n\n"
        'TheModel({"scenes": pictures_of("scenes", 6)}, texts_of("news", 6), world=drawing())',
    ),
]


@dataclass(frozen=True)
class Site:
    """A built book."""

    folder: Path
    is_whole: bool

    @property
    def pages(self) -> list[Path]:
        """Every page that has words of ours."""
        return sorted(p for d in ("book", "notebooks") for p in (self.folder / d).glob("*.html"))

    def with_widget(self, name: str) -> Path:
        """The first page that holds a widget."""
        mark = f'data-mirlib-widget="{name}"'
        return next(p for p in self.pages if mark in p.read_text(encoding="utf-8"))


def _built_book() -> Path | None:
    build = ROOT / "_build"
    stamp = build / book_cache.STAMP
    finished = (build / "html" / "index.html").exists() and (build / ".doctrees" / "environment.pickle").exists()
    if finished and stamp.exists() and stamp.read_text() == book_cache.fingerprint(ROOT):
        return build / "html"
    return None


def _build_sample(folder: Path) -> Path:
    """Build a book of one notebook with the configuration of the real one."""
    for name in ("_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book" / "references.bib")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: notebooks/sample\n")
    (folder / "notebooks").mkdir()
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[make[kind](text, metadata=metadata) for kind, metadata, text in SAMPLE_CELLS],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, folder / "notebooks" / "sample.ipynb")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", ".", "-W", "-n"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The built book if `make book` has built it from the present library, else a sample of one page."""
    built = _built_book()
    if built:
        return Site(built, is_whole=True)
    return Site(_build_sample(tmp_path_factory.mktemp("sample")), is_whole=False)


@pytest.fixture(scope="session")
def served(site: Site) -> Iterator[str]:
    """The address at which the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium. Without it the tests of the pages are skipped, except under MIRLIB_REQUIRE_BROWSER, as in .ci/run."""
    sync_api = pytest.importorskip("playwright.sync_api")
    try:
        binary = screenshots.find_chromium()
    except FileNotFoundError as error:
        if os.environ.get("MIRLIB_REQUIRE_BROWSER"):
            pytest.fail(str(error))
        pytest.skip(f"THE PAGES WERE NOT TESTED. {error}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """One open page and what went wrong on it."""

    page: object
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def go(self, address: str) -> None:
        """Open another page in the same window."""
        self.foreign.clear()
        self.errors.clear()
        self.page.goto(address, wait_until="load")
        self.page.wait_for_function(screenshots.LAID_OUT)


@contextlib.contextmanager
def windows(browser: object) -> Iterator[Callable[..., Visit]]:
    """Open an address in a fresh window. Requests to other hosts are stopped and counted."""
    contexts = []

    def open_page(address: str = "about:blank", width: int = 1200) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        result = Visit(context.new_page())

        def stop(route: object) -> None:
            result.foreign.append(route.request.url)
            route.abort()

        context.route(ELSEWHERE, stop)
        result.page.on("pageerror", lambda e: result.errors.append(str(e)) if KNOWN_ERROR not in str(e) else None)
        result.go(address)
        return result

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def visit(browser: object) -> Iterator[Callable[..., Visit]]:
    """`windows` of one test."""
    with windows(browser) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def visit_once(browser: object) -> Iterator[Callable[..., Visit]]:
    """`windows` that the tests of a file share, for what they only ask."""
    with windows(browser) as open_page:
        yield open_page


@pytest.fixture(params=["http", "file"])
def address(request: pytest.FixtureRequest, site: Site, served: str) -> Callable[[Path], str]:
    """The address of a page of the site: over http, and opened from disk."""
    if request.param == "file":
        return lambda path: path.as_uri()
    return lambda path: f"{served}/{path.relative_to(site.folder).as_posix()}"
