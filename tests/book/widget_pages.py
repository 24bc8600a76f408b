"""A page with one widget, made as the book makes it: for widgets over the ledger, whose rows a test makes up itself."""

from pathlib import Path

from mirlib.widgets import StaticWidget


def write_page(widget: StaticWidget, folder: Path, head: str = "") -> str:
    """Write a page that holds the widget, and return its address; `head` goes into the page's head."""
    path = folder / "page.html"
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>one widget</title>'
        f'<meta name="viewport" content="width=device-width">{head}</head>'
        f"<body>{widget.static_html()}</body></html>",
        encoding="utf-8",
    )
    return path.as_uri()
