"""Pages are executed side by side before Sphinx reads them; one that fails is named, and the others are built."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import execute_pages
import nbformat
import pytest
from jupyter_cache.cache.db import NbCacheRecord
from myst_nb.core.config import NbParserConfig
from myst_parser.config.main import MdParserConfig

ROOT = Path(__file__).resolve().parents[2]

MARKDOWN = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page in Markdown

```{code-cell}
1 + 1
```

```{code-cell}
1 / 0
```
"""

# Says that it runs, and waits until the other page says so too.
MEET = """
import time
from pathlib import Path
Path("{mine}.running").touch()
end = time.monotonic() + 30
while not Path("{other}.running").exists():
    assert time.monotonic() < end, "the pages do not run side by side"
    time.sleep(0.05)
"""


def write(folder, name, *cells, **metadata):
    """Write a notebook of code cells; returns its path."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [nbformat.v4.new_markdown_cell(f"# {name}"), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel | metadata), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Sphinx's app and environment, as far as the extension looks at them, over a folder of pages."""
    monkeypatch.delenv("MIRLIB_CELL_SECONDS", raising=False)
    config = NbParserConfig(
        execution_mode="cache",
        execution_cache_path=str(tmp_path / "_build" / ".jupyter_cache"),
        execution_raise_on_error=True,
        execution_timeout=60,
    )
    (tmp_path / "_build" / "html").mkdir(parents=True)

    def doc2path(name):
        return str(next(p for p in (tmp_path / f"{name}.ipynb", tmp_path / f"{name}.md") if p.exists()))

    env = SimpleNamespace(myst_config=MdParserConfig(), mystnb_config=config, doc2path=doc2path)
    app = SimpleNamespace(outdir=str(tmp_path / "_build" / "html"), statuscode=0, asked={})
    app.connect = app.asked.__setitem__
    return SimpleNamespace(folder=tmp_path, env=env, app=app)


def waiting(book, *names):
    return list(execute_pages.waiting(names, book.env.doc2path, book.env.myst_config, book.env.mystnb_config))


def test_pages_run_side_by_side_and_then_wait_no_more(book, monkeypatch):
    def drop(keep, db):
        """The cache's own two looks at what it holds, and time for another page to come in between."""
        kept = {record.pk for record in NbCacheRecord.records_all(db)}
        time.sleep(1)
        return [record.pk for record in NbCacheRecord.records_all(db) if record.pk not in kept]

    monkeypatch.setattr(NbCacheRecord, "records_to_delete", drop)
    write(book.folder, "one", MEET.format(mine="one", other="two"))
    write(book.folder, "two", MEET.format(mine="two", other="one"), "print('met')")
    (book.folder / "prose.md").write_text("# No cells\n")
    pages = waiting(book, "one", "prose", "two")
    assert [page.name for page in pages] == ["one", "two"]
    errors = {}
    execute_pages.execute(pages, 2, lambda page, error: errors.update({page.name: error}))
    assert errors == {"one": None, "two": None}
    assert not waiting(book, "one", "prose", "two")
    write(book.folder, "two", "print('other code')")
    assert [page.name for page in waiting(book, "one", "two")] == ["two"]


def test_one_core_runs_one_page_at_a_time_and_the_longest_first(book, monkeypatch):
    alone = "from pathlib import Path\nassert not Path('busy').exists()\nPath('busy').touch()\n"
    alone += "with open('order', 'a') as log:\n    print({!r}, file=log)\nPath('busy').unlink()"
    for name in ("long", "new", "short"):
        write(book.folder, name, alone.format(name))
    seconds = book.folder / "_build" / "page-seconds.json"
    seconds.write_text('{"short": 1.0, "long": 70.0}')
    monkeypatch.setattr(execute_pages.joblib, "cpu_count", lambda: 1)
    execute_pages.before_reading(book.app, book.env, ["short", "new", "long"])
    assert (book.folder / "order").read_text().split() == ["new", "long", "short"]
    assert 0 < execute_pages.json.loads(seconds.read_text())["long"] < 60
    assert set(execute_pages.json.loads(seconds.read_text())) == {"long", "new", "short"}


def test_a_failing_page_is_reported_with_its_cell_and_the_others_are_kept(book, capsys, monkeypatch):
    monkeypatch.setattr(execute_pages.myst_nb.sphinx_, "create_client", None)  # put back what stands there now
    good = write(book.folder, "good", "1 / 0")
    notebook = nbformat.read(good, 4)
    notebook.cells[1].metadata["tags"] = ["raises-exception"]  # an error on purpose fails no page
    nbformat.write(notebook, good)
    write(book.folder, "broken", "print('so far')", "raise ValueError('no such thing')", "print('never')")
    write(book.folder, "slow", "import time\ntime.sleep(60)", "print('never')", mystnb={"execution_timeout": 1})
    # The wait is for the word that the kernel began on the cell: it arrives before the kernel dies.
    dies = "import os, signal, time\nprint('here', flush=True)\ntime.sleep({})\nos.kill(os.getpid(), signal.SIGKILL)"
    write(book.folder, "dead", "x = 1", dies.format(0), "print('never')")
    write(book.folder, "dying", "x = 1", dies.format(1))
    (book.folder / "text.md").write_text(MARKDOWN)
    execute_pages.before_reading(book.app, book.env, ["good", "broken", "slow", "dead", "dying", "text"])
    reported = capsys.readouterr().err
    assert book.app.statuscode == 0
    book.app.asked["build-finished"](book.app, None)
    assert book.app.statuscode == 1
    identity = nbformat.read(book.folder / "broken.ipynb", 4).cells[2].id
    line = f"broken, cell 3 (id {identity}): ValueError: no such thing"
    said = capsys.readouterr().err
    number = MARKDOWN[: MARKDOWN.index("1 / 0")].count("\n") + 1
    assert line in said and f"text, the cell at line {number}: ZeroDivisionError: division by zero" in said
    assert "slow, cell 2" in said and "CellTimeoutError" in said
    assert "dead, cell 3" in said and "dying, cell 3" in said and said.count("Kernel died") == 2
    assert "good" not in said
    assert line in reported and "raise ValueError('no such thing')" in reported and "Traceback" in reported
    log = (book.folder / "_build" / "html" / "reports" / "broken.err.log").read_text()
    assert line in log and "ValueError" in log
    assert [page.name for page in waiting(book, "good", "broken")] == ["broken"]


def test_an_interrupt_does_not_wait_for_the_pages(book):
    write(book.folder, "quick", "x = 1")
    write(book.folder, "slow", "import time\ntime.sleep(120)")

    def interrupt(page, error):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute_pages.execute(waiting(book, "slow", "quick"), 2, interrupt)
    assert time.monotonic() - started < 60
    assert [page.name for page in waiting(book, "slow", "quick")] == ["slow"]


def test_it_says_before_what_it_will_do_and_about_how_long(book, monkeypatch, tmp_path):
    pages = [SimpleNamespace(name=name) for name in ("known", "slow", "new")]
    stored = tmp_path / "page_seconds.json"
    monkeypatch.setattr(execute_pages.page_seconds, "SECONDS", stored)
    assert execute_pages.expected(pages, {}, 2)[1] == "for how long is not known yet"
    stored.write_text('{"known": 30, "slow": 90}')
    seconds, said = execute_pages.expected(pages, {"known": 6.0}, 1)
    assert seconds == {"known": 6.0, "slow": 90, "new": float("inf")} and said == "about 1.6 minutes, on a small laptop"
    assert execute_pages.expected(pages[:2], {}, 2)[1].startswith("about 1.5 minutes")  # no less than the longest page
    assert execute_pages.expected(pages[:1], {"known": 6.0}, 2)[1] == "about 0.1 minutes, as the last time"


def test_a_cell_has_no_limit_but_the_one_that_is_asked_for(book, monkeypatch):
    write(book.folder, "page", "x = 1")
    book.env.mystnb_config = book.env.mystnb_config.copy(execution_timeout=-1)
    assert waiting(book, "page")[0].client.nb_config.execution_timeout == -1
    monkeypatch.setenv("MIRLIB_CELL_SECONDS", "900")
    assert waiting(book, "page")[0].client.nb_config.execution_timeout == 900
    assert "timeout: -1" in (ROOT / "_config.yml").read_text()


def test_no_page_needs_more_than_ninety_seconds_of_a_small_processor():
    """As measured and stored by `python tools/page_seconds.py`; a page that is new has to be measured, too."""
    seconds = execute_pages.json.loads(execute_pages.page_seconds.SECONDS.read_text())
    assert set(seconds) == set(execute_pages.page_seconds.pages())
    assert max(seconds.values()) <= 90, seconds


def test_sphinx_finds_every_page_executed_and_builds_the_others_where_one_fails(tmp_path):
    for name in ("_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book" / "references.bib")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: one\nchapters:\n  - file: text\n")
    write(tmp_path, "one", "with open('count', 'a') as log:\n    print('ran', file=log)\nprint('from page one')")
    (tmp_path / "text.md").write_text(MARKDOWN.replace("1 / 0", "print('in Markdown')"))
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*start, "build", ".", "-W", "-n", "--keep-going"]

    def pages():
        return {name: (tmp_path / "_build" / "html" / f"{name}.html").read_text() for name in ("one", "text")}

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "executing 2 pages" in done.stdout and done.stdout.count("Using cached notebook") == 2
    assert "Executing notebook" not in done.stdout and (tmp_path / "count").read_text() == "ran\n"
    assert "from page one" in pages()["one"] and "in Markdown" in pages()["text"]

    (tmp_path / "text.md").write_text(MARKDOWN)
    shutil.rmtree(tmp_path / "_build" / ".doctrees")  # as the Makefile does after a failure
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "text, the cell at line 14: ZeroDivisionError" in done.stderr.partition("the others are built")[2]
    assert "from page one" in pages()["one"]
    box, _, rest = pages()["text"].partition("This page is not complete")[2].partition("</div>")
    assert "ZeroDivisionError" in box and "Traceback" in rest and ">2<" in rest.replace("\n", "")
