"""A Sphinx extension that mends what a screen reader would trip over in the pages that Sphinx writes."""

from __future__ import annotations

from typing import Any

# Sphinx calls a bibliography a list, and its entries by a role that is no longer one of a list's items.
ROLES = (' role="list" class="citation-list"', ' class="citation-list"'), (' role="doc-biblioentry"', "")


def _mend(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    for wrong, right in ROLES:
        if "body" in context:
            context["body"] = context["body"].replace(wrong, right)


def setup(app: Any) -> dict[str, bool]:
    """Connect to the writing of pages."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
