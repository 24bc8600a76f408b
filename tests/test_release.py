"""A tag is all that a release needs: versions agree, the check of the wheel sees what is wrong, workflows can run."""

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mirlib import __version__, modality_integration_rate
from mirlib.data import draw, sample_images
from mirlib.loading import load_miniature
from mirlib.rows import collect_rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import check_wheel  # noqa: E402
import release  # noqa: E402

WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}


# --- the tag ---


def test_every_file_names_the_same_version():
    assert release.problems(f"v{__version__}") == []


@pytest.mark.parametrize("tag", ["v0.9.9", __version__, f"v{__version__}rc1"])
def test_another_tag_is_refused(tag):
    assert len(release.problems(tag)) == len(release.versions()) == 4


def test_one_file_that_lags_behind_is_named(tmp_path):
    for name in release.versions():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0\n")
    (tmp_path / "CITATION.cff").write_text("title: none\n")
    got = release.problems(f"v{__version__}", tmp_path)
    assert [line.split(",")[0] for line in got] == ["CITATION.cff names no version", "CHANGELOG.md names Unreleased"]


def test_notes_are_the_first_section():
    assert (
        release.notes("# Changelog\n\n## 2.0.0\n\nNew.\n\n### Book\n\n- a\n\n## 1.0.0\n\nOld.\n")
        == "New.\n\n### Book\n\n- a"
    )
    assert release.notes("# Changelog\n\n## 1.0.0\n\nOnly.\n") == "Only."


# --- the wheel ---


def packed(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*names, f"mirlib-{__version__}.dist-info/METADATA"]:
            archive.writestr(name, "")
    return path


def test_a_wheel_holds_the_packages_and_the_ledger_and_nothing_else(tmp_path):
    files = check_wheel.wanted()
    data = f"mirlib-{__version__}.data/data/share/mirlab/results"
    assert {
        f"{data}/ceilings.json",
        "mirlib/widgets/engine.js",
        "mirlab/results.py",
        "mirlib/miniature/README.md",
    } <= files
    assert check_wheel.differences(packed(tmp_path / "whole.whl", files), files) == []
    got = check_wheel.differences(packed(tmp_path / "more.whl", files | {"tests/test_mir.py"}), files)
    assert got == ["tests/test_mir.py does not belong in it"]


def test_a_wheel_without_the_miniature_fails(tmp_path, capsys):
    """Before anything is installed."""
    names = {name for name in check_wheel.wanted() if not name.startswith("mirlib/miniature/")}
    assert check_wheel.main([str(packed(tmp_path / "poor.whl", names))]) == 1
    said = capsys.readouterr().out
    assert "mirlib/miniature/model.safetensors is missing" in said and "works alone" not in said


def test_a_wheel_that_is_larger_than_the_readme_says_fails(tmp_path, capsys):
    path = packed(tmp_path / "fat.whl", check_wheel.wanted())
    path.write_bytes(bytes(int(check_wheel.LARGEST)) + path.read_bytes())
    assert check_wheel.main([str(path)]) == 1
    assert "it is larger than 7 MB" in capsys.readouterr().out
    assert "under 7 MB" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_adds_up_to_the_folders(tmp_path):
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mirlib/gaps/a.py", "x" * 2000)
        archive.writestr("mirlib/gaps/deep/b.py", "x" * 5000)
        archive.writestr("mirlib-1.data/data/share/mirlab/results/moca.jsonl", "x" * 3000)
    rows = [line.split() for line in check_wheel.table(path).splitlines()[1:]]
    assert [(row[3].rstrip(":"), row[4]) for row in rows] == [("7", "mirlib/gaps"), ("3", "share/mirlab/results")]


@pytest.fixture
def programs(tmp_path):
    """Programs that answer as those of a new environment would, with the value and the version that a test wants."""
    folder = tmp_path.resolve() / "environment" / "bin"
    folder.mkdir(parents=True)

    def write(mir=check_wheel.MIR, version=__version__, ledger=folder.parent / "share", runs=12, heavy=()):
        answers = {
            "mir": ("mir.json", {"mir": mir, "settings": {"mirlib": version, "model": "miniature"}}),
            "python": ("/dev/stdout", {"folder": str(ledger), "runs": runs, "heavy": list(heavy)}),
        }
        for name, (to, answer) in answers.items():
            (folder / name).write_text(f"#!/bin/sh\necho '{json.dumps(answer)}' > {to}\n")
            (folder / name).chmod(0o755)
        return folder

    return write


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, None),
        ({"mir": check_wheel.MIR + 0.002}, "mir score gives"),
        ({"version": "0.1.0"}, "measured miniature with mirlib 0.1.0"),
        ({"ledger": ROOT / "results"}, "mirlab.results read 12 runs, from"),
        ({"runs": 0}, "mirlab.results read 0 runs"),
        ({"heavy": ["torch"]}, "mirlab.results loads torch"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
def test_what_the_installed_library_does_wrong_is_said(programs, tmp_path, wrong, said):
    (tmp_path / "empty").mkdir()
    found = check_wheel.measure(programs(**wrong), tmp_path / "empty")
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])


def test_the_stored_value_is_that_of_the_library():
    """From rows in memory, where the command streams them."""
    num = len(check_wheel.TEXTS)
    images, texts = sample_images(num), check_wheel.TEXTS
    drawn = draw(images, num, 0, "images"), draw(texts, num, 1, "texts")
    rows = collect_rows(*load_miniature(), [images[i] for i in drawn[0]], [texts[i] for i in drawn[1]])
    assert modality_integration_rate(rows.vision, rows.text).value == pytest.approx(
        check_wheel.MIR, abs=check_wheel.TOLERANCE / 2
    )


# --- the workflows ---


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_calls_is_there(name):
    text = WORKFLOWS[name]
    assert {"on", "permissions", "jobs"} <= {"on" if key is True else key for key in yaml.safe_load(text)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\b(?:python|run:) (\.?[\w./-]+/[\w./-]+)", text):
        assert (ROOT / path).is_file(), path
    for called in re.findall(r"uses: \./(\S+)", text):
        assert "workflow_call" in yaml.safe_load((ROOT / called).read_text(encoding="utf-8"))[True]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_workflow_names_a_host(name):
    """Which index packages come from is said outside of the repository."""
    assert not re.search(r"://|pypi|pythonhosted|anaconda|index-url", WORKFLOWS[name])


def test_a_tag_releases_and_publishes():
    for name in ("release.yml", "pages.yml"):
        assert yaml.safe_load(WORKFLOWS[name])[True]["push"]["tags"] == ["v*"]
    jobs = yaml.safe_load(WORKFLOWS["release.yml"])["jobs"]
    runs = [step.get("run", "") for step in jobs["release"]["steps"]]
    order = [
        next(i for i, run in enumerate(runs) if mark in run)
        for mark in ("tools/release.py", "make wheel", "gh release")
    ]
    assert order == sorted(order) and jobs["release"]["needs"] == "test"
    assert "schedule" in yaml.safe_load(WORKFLOWS["weekly.yml"])[True]
