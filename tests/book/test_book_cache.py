"""The cache of executed notebooks is thrown away when, and only when, what they run on has changed."""

import book_cache
import pytest

VERSIONS = "numpy==2\ntorch==1\n"


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "mirlib").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "mirlib" / "a.py").write_text("x = 1\n")
    (tmp_path / "constraints.txt").write_text(VERSIONS)
    assert book_cache.refresh(tmp_path)
    (tmp_path / "_build" / ".jupyter_cache").mkdir()
    return tmp_path


def test_nothing_changed_nothing_happens(tree):
    assert not book_cache.refresh(tree)
    assert (tree / "_build" / ".jupyter_cache").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: (t / "mirlib" / "a.py").write_text("x = 2\n"),
        lambda t: (t / "mirlib" / "a.py").rename(t / "mirlib" / "b.py"),
        lambda t: (t / "results" / "run.jsonl").write_text("{}\n"),
        lambda t: (t / "constraints.txt").write_text(VERSIONS.replace("torch==1", "torch==2")),
    ],
    ids=["a line of the library", "the name of a file", "a new result", "a version"],
)
def test_a_change_empties_the_build(tree, change):
    change(tree)
    assert book_cache.refresh(tree)
    assert not (tree / "_build" / ".jupyter_cache").exists()
    assert not book_cache.refresh(tree)


def test_how_long_the_pages_took_outlives_a_change(tree):
    seconds = tree / "_build" / book_cache.SECONDS
    seconds.write_text('{"notebooks/01": 12.0}')
    (tree / "mirlib" / "a.py").write_text("x = 2\n")
    assert book_cache.refresh(tree)
    assert seconds.read_text() == '{"notebooks/01": 12.0}'


def test_a_new_style_makes_sphinx_read_the_pages_again_and_runs_nothing(tree):
    (tree / "_build" / ".doctrees").mkdir()
    assert not book_cache.refresh(tree)
    assert (tree / "_build" / ".doctrees").exists()
    (tree / "book" / "_static").mkdir(parents=True)
    (tree / "book" / "_static" / "a.css").write_text("p {}\n")
    assert not book_cache.refresh(tree)
    assert not (tree / "_build" / ".doctrees").exists() and (tree / "_build" / ".jupyter_cache").exists()


def test_what_python_writes_beside_the_source_does_not_count(tree):
    (tree / "mirlib" / "__pycache__").mkdir()
    (tree / "mirlib" / "__pycache__" / "a.cpython-312.pyc").write_bytes(b"\0")
    assert not book_cache.refresh(tree)
