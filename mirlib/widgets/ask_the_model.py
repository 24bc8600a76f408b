"""Draw a scene, ask about it, and see what models say: they run in the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets
from torch import nn

from mirlib.widgets.the_model import EngineWidget

PARTS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")


class AskTheModel(EngineWidget):
    """A scene that the reader draws, a question, and the answers of the miniature with one projector or more.

    Args:
        projectors: By the names that the reader sees, projectors of the miniature's shape, or None for its own.
        **traits: The attributes below; `mirlab.live.ask_the_model` fills them in.

    Attributes:
        names: The names, in the order of their columns.
        world: What can be drawn and how: see `mirlab.live.drawing`.
        things: What is drawn: dictionaries with ``shape``, ``colour``, ``size``, ``cell``, ``right`` and ``down``
            (pixels), one for each of the four cells.
        count: How many of them are shown, 1 to 4.
        background: Grey level, 70 to 149.
        question: What is asked.
    """

    asset = "ask_the_model"

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    projectors = traitlets.Dict().tag(sync=True)
    world = traitlets.Dict().tag(sync=True)
    things = traitlets.List(traitlets.Dict()).tag(sync=True)
    count = traitlets.Int(2, min=1, max=4).tag(sync=True)
    background = traitlets.Int(110, min=70, max=149).tag(sync=True)
    question = traitlets.Unicode("how many objects ?").tag(sync=True)

    def __init__(self, projectors: Mapping[str, nn.Module | None], **traits: Any) -> None:
        weights = {name: None if part is None else _as_text(part) for name, part in projectors.items()}
        super().__init__(names=list(projectors), projectors=weights, **traits)


def _as_text(projector: nn.Module) -> str:
    """The weights of a projector, float32, one behind the other, in base 64."""
    state = projector.state_dict()
    data = np.concatenate([state[name].float().numpy().ravel() for name in PARTS]).astype("<f4").tobytes()
    return base64.b64encode(data).decode()
