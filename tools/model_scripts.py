"""A Sphinx extension: the scripts that carry the miniature's weights into pages stand in the book's static files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirlib.widgets.engine import write_scripts


def _write(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        write_scripts(Path(app.outdir) / "_static")


def setup(app: Any) -> dict[str, bool]:
    """Connect to the end of the build, when the other static files are there."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
