"""A Sphinx extension that leaves out of the pages what nothing in them reads.

A notebook keeps the state of its widgets a second time, for a widget manager. The book has none: a widget brings its
own state (mirlib/widgets/base.py), and the second one would double the weight of a page.

The theme brings a script of 2000 icons, of which the pages show two dozen. The first page has no formula, but gets
MathJax, since it lists chapters that have. And MathJax comes as one script of a megabyte. Each of the three kept the
page from answering for longer than any widget does. So the other icons go, MathJax stays away from where no formula is,
and elsewhere it comes in its parts (`loader` in _config.yml) and sets a few formulas at a time (in_pieces.js).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydata_sphinx_theme

ICONS = Path("_static", "scripts", "fontawesome.js")
# "arrow-up":[384,512,[8593],"f062","M214 …"], with width, height, other names, code and outline
ICON = re.compile(r"""("?)([\w$-]+)\1:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?""")


def _lighten(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    scripts = getattr(app.env, "nb_metadata", {}).get(page, {}).get("js_files", {})
    scripts.pop("ipywidgets_state", None)


def _without_mathjax(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if app.env.get_domain("math").data["has_equations"].get(page):
        return
    scripts = context["script_files"]
    scripts[:] = [s for s in scripts if "mathjax" not in f"{s.filename} {s.attributes.get('body')}".lower()]


def _parts(app: Any, config: Any) -> None:
    config.mathjax_path = "mathjax/startup.js"  # sphinx-mathjax-offline names the one that holds all


def few_icons(script: str, shown: set[str]) -> str:
    """Return the theme's script of icons with those alone that have one of these names."""
    return ICON.sub(lambda icon: icon[0] if shown & {icon[2], *re.findall(r'"([^"]+)"', icon[3])} else "", script)


def _leave_icons_out(app: Any, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    files = [path for path in folder.rglob("*") if path.suffix in (".html", ".js") and path != folder / ICONS]
    shown = {name for path in files for name in re.findall(r"\bfa-([a-z0-9-]+)", path.read_text(encoding="utf-8"))}
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    script = (theme / ICONS.relative_to("_static")).read_text(encoding="utf-8")
    (folder / ICONS).write_text(few_icons(script, shown), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Connect to the beginning, to the writing of pages before and after their scripts are added, and to the end."""
    app.connect("config-inited", _parts)
    app.connect("html-page-context", _lighten, priority=100)
    app.connect("html-page-context", _without_mathjax, priority=900)
    app.connect("build-finished", _leave_icons_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
