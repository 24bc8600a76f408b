"""What is stored: notebooks without outputs, a table of contents that fits, no large or private thing."""

import json
import re
import subprocess
from pathlib import Path

import nbclient
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("NOT A GIT CHECKOUT: the tracked files were not examined.")
    return [p for name in done.stdout.split("\0") if name and (p := ROOT / name).is_file()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5), "cells have ids from format 4.5 on"
    assert "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
            assert not {"execution", "collapsed", "scrolled"} & set(cell["metadata"]), cell["id"]
        assert "attachments" not in cell, f"{cell['id']}: a picture inside a notebook; draw it by code"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_starts_with_its_only_title(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert len(re.findall(r"^# ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)) == 1


ELSEWHERE = re.compile(r"""["'](?:\.\./|(?:\./)?(?:results|tests|notebooks|book|mirlib|mirlab)(?:/|["']))""")
"""A string that names a place of the repository."""
READS_LEDGER = re.compile(r"\bshipped\(\)|\bresults\.(load|probes)\(")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_reads_nothing_beside_it(path):
    """Who downloads it has this one file, and the installed packages."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    assert [line for line in code.splitlines() if ELSEWHERE.search(line)] == []


@pytest.mark.parametrize("name", ["05_mir_on_llava", "08_data_scale"])
def test_a_downloaded_notebook_finds_the_ledger(name, tmp_path):
    """Its imports and its first look at the ledger, in a folder that holds nothing else."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [code[0], next(cell for cell in code if READS_LEDGER.search(cell.source))]
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    assert [cell.execution_count for cell in notebook.cells] == [1, 2] and not list(tmp_path.iterdir())


def test_the_table_of_contents_and_the_files_agree():
    listed = toc_files()
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert (ROOT / f"{name}.md").exists() or (ROOT / f"{name}.ipynb").exists(), name
    there = {f"notebooks/{p.stem}" for p in NOTEBOOKS} | {f"book/{p.stem}" for p in (ROOT / "book").glob("*.md")}
    assert there == set(listed)


def test_no_tracked_file_is_over_five_megabytes():
    assert [p.name for p in tracked() if p.stat().st_size > 5_000_000] == []


# Spelt so that this file does not hold what it looks for.
PRIVATE = re.compile(
    r"/wor[k]/|/tm[p]/[a-z]|/roo[t]/|/hom[e]/[a-z]|/opt/[pw][yh]|"
    r"py[p]i\.(org|python)|pythonhoste[d]\.org|download\.pytorc[h]|npmj[s]\.(org|com)|anacond[a]\.org"
)


def test_no_tracked_file_names_a_path_of_a_machine_or_a_package_registry():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        for number, line in enumerate(text.splitlines(), start=1):
            if match := PRIVATE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert found == []
