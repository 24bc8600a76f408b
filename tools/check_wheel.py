"""Check a wheel: what is in it, and that it measures the miniature where there is nothing else.

    python tools/check_wheel.py WHEEL [PIP ARGUMENTS …]

`make wheel` builds one and calls this. The wheel is installed alone into a new virtual environment outside of the
repository; in an empty folder there `mir score` measures the miniature, and `mirlab.results` reads the ledger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TEXTS = [
    f"The {thing} {verb} {place}, and nobody asks why."
    for thing in ("old dog", "second train", "green lamp", "letter from Rome")
    for verb in ("waits", "stays", "sleeps", "shines")
    for place in ("behind the house", "on the table")
]
"""Texts that are the same with every version of Python, which those of `mirlib.data.sample_texts` are not."""

MIR = 1.146666
"""Of the miniature, with `TEXTS` and as many sample pictures; `tests/test_release.py` computes it from the library."""

TOLERANCE = 1e-3  # processors sum in other orders
LARGEST = 7e6  # bytes; README.md says so

READ = """
import json, sys
from mirlab import ledger, results
print(json.dumps({
    "folder": str(ledger.shipped()),
    "runs": len(results.load("moca")),
    "heavy": sorted({"torch", "transformers"} & sys.modules.keys()),
}))
"""


def version() -> str:
    """The version in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def wanted(root: Path = ROOT) -> set[str]:
    """The files that a wheel of this repository holds, beside what describes it."""
    beside = {f"mirlib-{version()}.data/data/share/mirlab/results": "results", "mirlib": "mirlib", "mirlab": "mirlab"}
    return {
        f"{place}/{path.relative_to(root / folder).as_posix()}"
        for place, folder in beside.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def differences(wheel: Path, files: set[str]) -> list[str]:
    """What is wrong with the files in a wheel, one sentence each.

    Args:
        wheel: The file.
        files: What it has to hold beside the folder that describes it.
    """
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    described = {name for name in held if name.split("/")[0] == f"mirlib-{version()}.dist-info"}
    return [f"{name} is missing" for name in sorted(files - held)] + [
        f"{name} does not belong in it" for name in sorted(held - described - files)
    ]


def table(wheel: Path) -> str:
    """The size of a wheel, and of its folders: kilobytes in the wheel, and installed."""
    packed, installed = Counter(), Counter()
    with zipfile.ZipFile(wheel) as archive:
        for each in archive.infolist():
            parts = [part for part in each.filename.split("/")[:-1] if not part.endswith(".data")]
            folder = "/".join(parts[:2] if parts[0] != "data" else parts[1:])
            packed[folder] += each.compress_size
            installed[folder] += each.file_size
    lines = [f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB"]
    for name, size in sorted(packed.items()):
        lines.append(f"{size / 1e3:7.0f} kB, installed {installed[name] / 1e3:7.0f}: {name}")
    return "\n".join(lines)


def _said(command: list[str | Path], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} … failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def install(wheel: Path, place: Path, arguments: list[str]) -> Path:
    """Install a wheel into a new virtual environment, and return the folder of its programs."""
    venv.create(place, with_pip=True)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    pip = [programs / "python", "-I", "-m", "pip", "install", "--quiet"]  # -I: this folder may hold a mirlib, too
    _said([*pip, *arguments, wheel], Path.cwd(), _environment(place))
    return programs


def _environment(home: Path) -> dict[str, str]:
    """The variables of this process, without those that lead back to the repository or to what was downloaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MIR"))}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub")}


def measure(programs: Path, folder: Path) -> list[str]:
    """Use the installed library in an empty folder, and say what is wrong, one sentence each.

    Args:
        programs: Where `mir` and `python` are.
        folder: Empty; it takes the files.
    """
    environment = _environment(folder)
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    score = [programs / "mir", "score", "--num", str(len(TEXTS)), "--texts", "texts.txt", "--json", "mir.json"]
    _said([*score, "--no-progress"], folder, environment)
    result = json.loads((folder / "mir.json").read_text(encoding="utf-8"))
    read = json.loads(_said([programs / "python", "-c", READ], folder, environment))
    print(f"MIR {result['mir']:.6f}, stored {MIR:.6f}; {read['runs']} runs of moca in {read['folder']}")
    settings = result["settings"]
    found = []
    if abs(result["mir"] - MIR) > TOLERANCE:
        found.append(f"mir score gives {result['mir']:.6f} and not {MIR:.6f}")
    if (settings["mirlib"], settings["model"]) != (version(), "miniature"):
        found.append(f"mir score measured {settings['model']} with mirlib {settings['mirlib']}")
    if not read["runs"] or not Path(read["folder"]).is_relative_to(programs.parent.resolve()):
        found.append(f"mirlab.results read {read['runs']} runs, from {read['folder']}")
    if read["heavy"]:
        found.append(f"mirlab.results loads {', '.join(read['heavy'])}")
    return found


def main(arguments: list[str]) -> int:
    """Check the wheel, print what was found."""
    wheel = Path(arguments[0]).resolve()
    print(table(wheel))
    found = differences(wheel, wanted())
    if wheel.stat().st_size > LARGEST:
        found.append(f"it is larger than {LARGEST / 1e6:g} MB")
    if not found:
        with tempfile.TemporaryDirectory(prefix="wheel-") as name:
            place = Path(name).resolve()
            (place / "empty").mkdir()
            found = measure(install(wheel, place / "environment", arguments[1:]), place / "empty")
    print("\n".join(found) or "The wheel is whole, and works alone.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
