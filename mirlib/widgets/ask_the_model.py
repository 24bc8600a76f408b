"""Draw a scene, ask about it, and see what models say and what goes on inside: they run in the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets
from PIL import Image
from torch import nn

from mirlib.errors import MirlibError
from mirlib.widgets.the_model import EngineWidget, address_of

PARTS = {"linear_1.weight": (128, 96), "linear_1.bias": (128,), "linear_2.weight": (128, 128), "linear_2.bias": (128,)}


class AskTheModel(EngineWidget):
    """A scene that the reader draws, and what the miniature makes of it, with one projector or more.

    Three views: the answers to a question; the costs of the patches, as `mirlib.transport_map` finds them with the
    drawing as its first picture; and the words nearest to each patch, as `mirlib.lens` finds them.

    Args:
        projectors: By the names that the reader sees, projectors of the miniature's shape, or None for its own.
        beside: Pictures of 48 x 48 pixels among which the drawing is moved onto the texts.
        **traits: The attributes below; `mirlab.live.ask_the_model` fills them in.

    Attributes:
        names: The names, in the order of their columns.
        world: What can be drawn and how: see `mirlab.live.drawing`.
        things: What is drawn: dictionaries with ``shape``, ``colour``, ``size``, ``cell``, ``right`` and ``down``
            (pixels), one for each of the four cells.
        count: How many of them are shown, 1 to 4.
        background: Grey level, 70 to 149.
        question: What is asked.
        companions: The addresses of the pictures beside the drawing.
        texts: A text under the drawing, then one under each of them.
        view: ``answer``, ``costs`` or ``words``.
        inside: The name of the model whose costs or words are shown.
        layer: 1 to 8; 0 is the sum of all costs, and, for words, what enters the first layer.
        patch: The patch that is read off, 0 to 35.
    """

    asset = "ask_the_model"
    shared = ("scenes", "engine_page", "patches")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    projectors = traitlets.Dict().tag(sync=True)
    world = traitlets.Dict().tag(sync=True)
    things = traitlets.List(traitlets.Dict()).tag(sync=True)
    count = traitlets.Int(2, min=1, max=4).tag(sync=True)
    background = traitlets.Int(110, min=70, max=149).tag(sync=True)
    question = traitlets.Unicode("how many objects ?").tag(sync=True)
    companions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Enum(["answer", "costs", "words"], "answer").tag(sync=True)
    inside = traitlets.Unicode().tag(sync=True)
    layer = traitlets.Int(0, min=0, max=8).tag(sync=True)
    patch = traitlets.Int(7, min=0, max=35).tag(sync=True)

    def __init__(
        self, projectors: Mapping[str, nn.Module | None], beside: Sequence[Image.Image], **traits: Any
    ) -> None:
        weights = {name: None if part is None else _as_text(part) for name, part in projectors.items()}
        names, pictures = list(projectors), [address_of(image) for image in beside]
        start = {"names": names, "projectors": weights, "companions": pictures, "inside": names[-1]}
        super().__init__(**{**start, **traits})


def _as_text(projector: nn.Module) -> str:
    """The weights of a projector, float32, one behind the other, in base 64."""
    state = projector.state_dict()
    if {name: tuple(values.shape) for name, values in state.items()} != PARTS:
        raise MirlibError("the page runs projectors of the miniature's shape alone, with nothing added to them")
    data = np.concatenate([state[name].float().numpy().ravel() for name in PARTS]).astype("<f4").tobytes()
    return base64.b64encode(data).decode()
