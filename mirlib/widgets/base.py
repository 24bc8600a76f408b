"""The part that all widgets share: one class, which is at home in Jupyter and in a static page.

`NAME.py` declares the state as synced traits; `NAME.js` beside it is an ECMAScript module whose default export has
`render({model, el})`, as anywidget defines it, and does all the maths and the drawing, with or without a kernel.
"""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from typing import Any, ClassVar

import anywidget
from PIL import Image


def _read(name: str) -> str:
    return files("mirlib.widgets").joinpath(name).read_text(encoding="utf-8")


def rounded(value: float, digits: int) -> float:
    """A number with as many significant digits as a page needs."""
    return float(f"{value:.{digits}g}")


def address(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that an image element takes and that needs no file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _literal(value: Any) -> str:
    """Write a value as JavaScript that may stand inside a script element: no `<` can end that element early."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


class StaticWidget(anywidget.AnyWidget):
    """A widget that needs no kernel to work.

    Jupyter shows the live view, whose traits are synced with Python; where there is no kernel, as in the built book,
    HTML that carries the module and the present state, and mounts itself.

    A subclass names its files and declares its traits::

        class TwoClouds(StaticWidget):
            asset = "two_clouds"  # two_clouds.js
            mean_shift = traitlets.Float(3.0).tag(sync=True)

    Attributes:
        asset: The name of the JavaScript file in `mirlib/widgets`, without its ending.
        shared: Names of files that stand before it, behind `controls.js`.
    """

    asset: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ()

    # Properties, so that the files are read when a widget is made and not when the module is imported.
    @property
    def _esm(self) -> str:
        return "".join(_read(f"{name}.js") for name in ("controls", *self.shared, self.asset))

    @property
    def _css(self) -> str:
        return _read("widgets.css")

    def state(self) -> dict[str, Any]:
        """Return the values of the widget's own synced traits, by name."""
        own = set(self.trait_names(sync=True)) - set(StaticWidget.class_trait_names(sync=True))
        return {name: getattr(self, name) for name in sorted(own) if not name.startswith("_")}

    def static_html(self) -> str:
        """Return HTML that shows the widget in its present state in any page, loading nothing from anywhere."""
        call = f"mount({_literal(self.asset)}, {_literal(self._esm)}, {_literal(self._css)}, {_literal(self.state())});"
        return (
            f'<div class="mirlib-mount" data-mirlib-widget="{self.asset}">'
            "<p>This part of the page is interactive and needs JavaScript.</p></div>\n"
            f'<script type="module">\n{_read("mount.js")}{call}\n</script>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Offer both forms. Jupyter prefers the live view; the book takes the HTML (nb_mime_priority_overrides)."""
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle and ({**bundle[0], "text/html": self.static_html()}, bundle[1])
