"""What README.md tells a reader to type works as it is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from mirlib.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = {"book/_static/readme.gif", "book/_static/readme_map.png"}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that looks like a clone from the command line, and takes what the commands write."""
    (tmp_path / "mirlib").symlink_to(ROOT / "mirlib")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_lines_print_a_mir(clone, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    said = r"MIRResult\(-?\d\.\d{4} \[-?\d\.\d{4}, -?\d\.\d{4}\], layers=\d+, rows=\d+ vision \+ \d+ text"
    assert re.search(said, capsys.readouterr().out)


def test_the_shell_lines_run_one_after_another(clone, capsys):
    commands = re.findall(r"^\.venv/bin/mir (.*)$", README, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main(command.split()) == 0, command
        assert "MIR" in capsys.readouterr().out
    assert (clone / "mir.json").is_file()
    assert all((clone / picture).stat().st_size > 10_000 for picture in ("mir.png", "map.png"))


def test_the_two_commands_are_targets_of_the_makefile():
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_files_that_it_links_to_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert {"CONTRIBUTING.md", "CITATION.cff", *PICTURES} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_pictures_are_small_and_have_words():
    assert {path for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README) if len(words) > 50} == PICTURES
    assert sum((ROOT / path).stat().st_size for path in PICTURES) < 700_000
    with Image.open(ROOT / "book" / "_static" / "readme.gif") as film:
        assert film.n_frames > 8 and 700 <= film.width <= 860 and film.info["loop"] == 0
