"""A Sphinx extension for the API page: the fields of a named tuple are described once, by the class's docstring."""

from __future__ import annotations

from typing import Any

_FIELD = "Alias for field number"


def _skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    return True if (getattr(obj, "__doc__", None) or "").startswith(_FIELD) else None


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-skip-member", _skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
