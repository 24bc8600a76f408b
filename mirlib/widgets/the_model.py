"""The model in the page: two clouds of tokens, layer by layer, while the reader changes what goes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets
from PIL import Image

from mirlib.widgets import engine
from mirlib.widgets.base import StaticWidget, _literal, _read, address


class EngineWidget(StaticWidget):
    """A widget that runs the miniature in the page: `engine.js`, in a worker.

    Attributes:
        pieces: How many scripts carry the weights, see `mirlib.widgets.engine`.
    """

    shared = ("scenes", "engine_page")

    pieces = traitlets.Int().tag(sync=True)
    _wanted = traitlets.Bool(False).tag(sync=True)  # by a page that has no scripts: a notebook
    _packet = traitlets.Bytes().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(pieces=engine.count_scripts(), **traits)

    @traitlets.observe("_wanted")
    def _hand_over(self, change: traitlets.Bunch) -> None:
        self._packet = engine.packet()

    @property
    def _esm(self) -> str:
        source = "".join(map(_read, ("engine.js", "engine_training.js", "scenes.js", "engine_worker.js")))
        source = source.replace("\nexport ", "\n")
        return f"const WORKER = {_literal(source)};\n{super()._esm}"


class TheModel(EngineWidget):
    """The miniature at work: what goes in, who turns it into tokens, and how far these are from words.

    Args:
        pictures: By the name of an input, as many pictures of 48 x 48 pixels as there are texts.
        texts: A text under each picture.
        **traits: The attributes below.

    Attributes:
        inputs: By name, the pictures' addresses. The page adds ``black``, ``noise`` and ``random``, tokens of random
            directions and the lengths of those that they replace; and ``drawn``, if there is a world to draw.
        world: What can be drawn and how: see `mirlab.live.drawing`.
        scene: What is drawn: dictionaries with ``cell``, ``shape`` and ``colour``.
        texts: The texts.
        input: Name of an input.
        projector: ``trained`` or ``fresh``.
        gain: Factor on the projector's tokens, 0 to 4.
        layer: Which layer is shown, 1 to 8; 0 is what enters the first.
    """

    asset = "the_model"

    inputs = traitlets.Dict().tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    world = traitlets.Dict().tag(sync=True)
    scene = traitlets.List(
        traitlets.Dict(), default_value=[{"cell": "topleft", "shape": "circle", "colour": "red"}]
    ).tag(sync=True)
    input = traitlets.Unicode("scenes").tag(sync=True)
    projector = traitlets.Enum(["trained", "fresh"], "trained").tag(sync=True)
    gain = traitlets.Float(1.0, min=0, max=4).tag(sync=True)
    layer = traitlets.Int(1, min=0, max=8).tag(sync=True)

    def __init__(self, pictures: Mapping[str, Sequence[Image.Image]], texts: Sequence[str], **traits: Any) -> None:
        addresses = {name: [address_of(image) for image in images] for name, images in pictures.items()}
        super().__init__(inputs=addresses, texts=list(texts), **traits)


def address_of(image: Image.Image) -> str:
    """A picture, bit by bit, as an address."""
    return address(image.convert("RGB"), "WEBP", lossless=True)
