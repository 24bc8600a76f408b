"""Check that a tag names the version that the files name, and print what the release says of itself.

    python tools/release.py v1.0.0

The section of that version in CHANGELOG.md goes to standard output; what does not fit goes to standard error.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(root: Path = ROOT) -> dict[str, str]:
    """The version by the file that names it; empty where a file names none."""

    def found(name: str, pattern: str) -> str:
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        return match[1] if match else ""

    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "mirlib/__init__.py": found("mirlib/__init__.py", r'^__version__ = "(.*)"$'),
        "CITATION.cff": found("CITATION.cff", r"^version: (.*)$"),
        "CHANGELOG.md": found("CHANGELOG.md", r"^## (\S+)"),
    }


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """The files whose version is not that of a tag, one sentence each."""
    named = versions(root).items()
    return [f"{name} names {got or 'no version'}, and the tag is {tag}" for name, got in named if f"v{got}" != tag]


def notes(changelog: str) -> str:
    """The first section of a changelog, without its heading."""
    return re.split(r"^## .*\n", changelog, flags=re.MULTILINE)[1].strip()


def main(tag: str) -> int:
    """Check the tag, print the notes."""
    found = problems(tag)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    if not found:
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
