"""Throw the book's cache away when what the notebooks run on has changed.

The cache of executed notebooks knows the notebooks' own code only: after a change in the library it would show old
numbers. This keeps a fingerprint of the library, of the ledger of results and of the pinned versions beside the build,
and empties the build when the fingerprint is another one. Sphinx's memory of the pages goes with it, since Sphinx
does not even look at a page that did not change. For the same reason a change of the style sheet or of a helper of the
build makes Sphinx forget the pages, but not what the notebooks computed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

SOURCES = ("mirlib", "mirlab", "results")
LOOKS = ("book/_static", "tools")
STAMP = "source-stamp"
LOOKS_STAMP = "looks-stamp"
SECONDS = "page-seconds.json"  # how long each page took, by which tools/execute_pages.py orders them


def _digest(root: Path, folders: tuple[str, ...], start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fingerprint(root: Path) -> str:
    """Return the SHA-256 of everything that an executed notebook depends on, except the notebook.

    Args:
        root: The root of the repository.
    """
    return _digest(root, SOURCES, sys.version + (root / "constraints.txt").read_text(encoding="utf-8"))


def refresh(root: Path) -> bool:
    """Empty `_build` if what the notebooks run on has changed; forget the pages if only their looks have.

    Args:
        root: The root of the repository.

    Returns:
        Whether the build was emptied, so that every notebook runs again.
    """
    build = root / "_build"
    stamp, looks_stamp = build / STAMP, build / LOOKS_STAMP
    now, looks = fingerprint(root), _digest(root, LOOKS)
    stale = not stamp.exists() or stamp.read_text() != now
    if stale:
        seconds = build / SECONDS
        kept = seconds.read_bytes() if seconds.exists() else None  # they hold nearly as well for the next time
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        if kept is not None:
            seconds.write_bytes(kept)
        stamp.write_text(now)
    elif not looks_stamp.exists() or looks_stamp.read_text() != looks:
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
    looks_stamp.write_text(looks)
    return stale


if __name__ == "__main__":
    if refresh(Path(__file__).resolve().parents[1]):
        print("The library, the results or the versions changed: every notebook runs again.")
