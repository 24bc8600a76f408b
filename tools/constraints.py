"""Write constraints.txt: the versions of every package in this environment, with which the book and the tests are run.

`make constraints` calls this in a new environment of the newest versions that pyproject.toml allows. After it, `make
book` and `make test` say whether they can be kept.
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Not ours to choose: what comes with Python, what PyTorch asks for on some systems only, and this project.
LEFT_OUT = ("pip", "setuptools", "wheel", "mirlib", "triton")
HEAD = """\
# The versions with which the book and the tests are run; `make constraints` writes this file.
# Made from the dependencies in pyproject.toml with the fingerprint {}
"""


def fingerprint(pyproject: str) -> str:
    """Of the lists of dependencies in the text of a pyproject.toml; comments do not count."""
    project = tomllib.loads(pyproject)["project"]
    lists = [project["requires-python"], project["dependencies"], sorted(project["optional-dependencies"].items())]
    return hashlib.sha256(repr(lists).encode()).hexdigest()[:16]


def pins() -> list[str]:
    """``name==version`` of every package of this environment, without what a build calls itself (``+cpu``)."""
    found = {
        canonicalize_name(package.metadata["Name"]): Version(package.version).public for package in distributions()
    }
    chosen = {name: version for name, version in found.items() if name not in LEFT_OUT and "nvidia" not in name}
    return [f"{name}=={version}" for name, version in sorted(chosen.items())]


def main() -> None:
    """Write the file."""
    head = HEAD.format(fingerprint((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    CONSTRAINTS.write_text(head + "\n".join(pins()) + "\n", encoding="utf-8")
    print(f"wrote {CONSTRAINTS.name}: {len(pins())} versions")


if __name__ == "__main__":
    main()
