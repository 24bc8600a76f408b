"""A Sphinx extension that leaves out of the pages what nothing in them reads.

A notebook keeps the state of its widgets a second time, for a widget manager. The book has none: a widget brings its
own state (mirlib/widgets/base.py), and the second one would double the weight of a page.
"""

from __future__ import annotations

from typing import Any


def _lighten(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    scripts = getattr(app.env, "nb_metadata", {}).get(page, {}).get("js_files", {})
    scripts.pop("ipywidgets_state", None)


def setup(app: Any) -> dict[str, bool]:
    """Connect to the writing of pages, before the scripts of a page are added."""
    app.connect("html-page-context", _lighten, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
