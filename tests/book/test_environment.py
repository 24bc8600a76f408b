"""The versions are the same everywhere, and the targets of the Makefile work in a folder of any name."""

import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import constraints
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mirlab.ledger import shipped
from mirlib.loading import FAMILY_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PINS = dict(line.split("==") for line in constraints.CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))


def test_the_constraints_are_those_of_the_dependencies():
    """Whoever changes pyproject.toml has to run `make constraints`, or write the fingerprint where no version moves."""
    assert constraints.fingerprint(PYPROJECT) in constraints.CONSTRAINTS.read_text().splitlines()[1]
    assert constraints.fingerprint(PYPROJECT.replace('"peft"', '"peft>=1"')) != constraints.fingerprint(PYPROJECT)
    assert constraints.fingerprint(PYPROJECT + "\n# a remark\n") == constraints.fingerprint(PYPROJECT)


def test_every_dependency_has_one_version_which_its_range_allows():
    project = tomllib.loads(PYPROJECT)["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["book"], *extras["test"], *extras["dev"], *extras["real"]]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement
    assert "torch" in PINS and not any("+" in version for version in PINS.values())


def test_the_packages_that_a_message_promises_come_with_the_extra():
    families = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]["families"]
    assert sorted(Requirement(each).name for each in families) == sorted(FAMILY_PACKAGES)


def test_the_whole_ledger_is_installed_with_the_package():
    """And where it lies with its marks, `shipped` finds it."""
    patterns = tomllib.loads(PYPROJECT)["tool"]["setuptools"]["data-files"]
    listed = {path for globs in patterns.values() for glob in globs for path in ROOT.glob(glob)}
    assert listed == {path for path in (ROOT / "results").rglob("*") if path.is_file()}
    assert patterns.keys() == {f"share/mirlab/{path.parent.relative_to(ROOT).as_posix()}" for path in listed}
    assert shipped() == ROOT / "results"


def test_everything_that_installs_reads_the_constraints():
    assert "-c constraints.txt" in (ROOT / "environment.yml").read_text()
    assert "--constraint $(CONSTRAINTS)" in (ROOT / "Makefile").read_text()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a name that a shell takes apart, and in it the Makefile and a python that writes down its calls."""
    folder = tmp_path / 'l\'été (à deux) & "so" on;'
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@" >> calls\necho >> calls\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def make(folder, *arguments):
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (folder / "calls").read_text().splitlines()
    (folder / "calls").unlink()
    return [re.sub(r"\|$", "", call).split("|") for call in calls]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_targets_work_in_a_folder_of_any_name(elsewhere):
    installs, fonts, cache, book = make(elsewhere, "book")
    assert installs[:3] == ["-m", "pip", "install"] and installs[-2:] == ["--editable", ".[book,test,dev]"]
    assert ["--constraint", "constraints.txt"] == installs[4:6] and fonts[0] == "-c"
    assert cache == ["tools/book_cache.py"] and book[-5:] == ["build", ".", "-W", "-n", "--keep-going"]
    (tests,) = make(elsewhere, "test")  # nothing is installed twice
    assert tests[:2] == ["-m", "pytest"]
    build, check = make(elsewhere, "wheel")
    assert build == ["-m", "build"] and check == [
        "tools/check_wheel.py",
        "dist/*.whl",
        "--constraint",
        "constraints.txt",
    ]
    assert [call[1] for call in make(elsewhere, "lint")] == ["ruff", "ruff"]
    assert make(elsewhere, "figures", "FIGURES=03") == [["tools/figures.py", "03"]]
    assert make(elsewhere, "lab", "EXPERIMENT=base") == [["-m", "mirlib", "lab", "run", "base"]]
    assert make(elsewhere, "bench") == [["-m", "benchmarks"]]
    assert make(elsewhere, "notebook") == [["-m", "jupyterlab", "notebooks"]]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_newest_versions_go_into_an_environment_of_their_own(elsewhere):
    shutil.move(elsewhere / ".venv", elsewhere / ".venv-newest")
    installs, _, tests = make(elsewhere, "test-newest")
    assert "--constraint" not in installs and "--upgrade" in installs and tests[:2] == ["-m", "pytest"]
    assert not (elsewhere / ".venv").exists()
