"""The repository's address stands in one place, and everything else follows from it."""

import json

import nbformat
import pytest
import repository_links
from IPython.core.inputtransformer2 import TransformerManager
from repository_links import citation, notebook, repository_url, theme_options

UNSET = '[project]\nname = "x"\n'
SET = UNSET + '[project.urls]\nRepository = "https://github.com/someone/something/"\n'
CFF = "cff-version: 1.2.0\nlicense: MIT\nreferences: []\n"


def test_unset_means_no_button_and_no_address():
    assert repository_url(UNSET) is None
    options = theme_options(None)
    assert options["repository_url"] == "" and options["launch_buttons"] == {}
    assert not options["use_repository_button"] and not options["use_issues_button"]
    assert citation(CFF, None) == CFF


def test_set_switches_everything_on():
    url = repository_url(SET)
    assert url == "https://github.com/someone/something"
    options = theme_options(url)
    assert options["repository_url"] == url and options["use_repository_button"] and options["use_issues_button"]
    assert {"binderhub_url", "colab_url"} <= set(options["launch_buttons"])
    assert f'repository-code: "{url}"' in citation(CFF, url)


def test_binder_and_colab_only_where_they_can_open_the_notebooks():
    assert theme_options("https://gitlab.com/someone/something")["launch_buttons"] == {}


def test_the_citation_can_be_set_twice_and_unset_again():
    once = citation(CFF, "https://github.com/a/b")
    assert citation(once, "https://github.com/a/b") == once
    assert citation(once, None) == CFF


def test_a_notebook_installs_the_library_where_it_is_missing():
    url = "https://github.com/a/b"
    title = {"cell_type": "markdown", "id": "0", "metadata": {}, "source": ["# A chapter"]}
    bare = json.dumps({"cells": [title], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
    once = notebook(bare, url)
    first, cell = nbformat.reads(once, 4).cells
    assert first.source == "# A chapter" and f'"mirlib[train] @ git+{url}" myst-nb' in cell.source
    python = TransformerManager().transform_cell(cell.source)
    assert compile(python, "cell", "exec") and "run_line_magic('pip'" in python
    assert notebook(once, url) == once and notebook(once, None) == bare == notebook(bare, None)


def test_a_bad_address_is_refused():
    with pytest.raises(ValueError, match="https"):
        repository_url(UNSET + '[project.urls]\nRepository = "git@github.com:someone/something"\n')


def test_the_files_of_the_project_agree():
    root = repository_links.ROOT
    url = repository_url((root / "pyproject.toml").read_text(encoding="utf-8"))
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert citation(text, url) == text, "run `python tools/repository_links.py`"
    for path in (root / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert json.loads(notebook(text, url)) == json.loads(text), "run `python tools/repository_links.py`"


def test_the_pages_show_what_the_address_says(site):
    if not site.is_whole:
        pytest.skip("only the built book is asked for its buttons: run `make book` first")
    url = repository_url((repository_links.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    html = (site.folder / "notebooks" / "01_modality_gap.html").read_text(encoding="utf-8")
    for mark in ("btn-source-repository-button", "colab.research.google.com", "mybinder.org"):
        assert (mark in html) == (url is not None and (mark.startswith("btn") or "github.com" in url)), mark
