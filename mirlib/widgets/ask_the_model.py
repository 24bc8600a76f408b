"""A picture, questions about it, and what models answer: a gallery for all, an editor where there is a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import traitlets

from mirlib.widgets.base import StaticWidget

Answer = Callable[[list[dict[str, Any]], int, str], dict[str, Any]]
"""From the things of a scene, its background and a typed question to a card, as the gallery holds them."""


class AskTheModel(StaticWidget):
    """Scenes with questions, and the answers of one or more models.

    Every scene comes as a *card*: a dictionary with ``things``, ``background``, ``picture`` (an image address),
    ``caption`` (the true one), ``questions`` (each with ``kind``, ``text``, ``answer`` and the possible ``words``) and
    ``models`` (by name: ``caption``, and for every question the word ``said`` and the ``probabilities`` of the words).
    `mirlab.live.answer_cards` makes them.

    A page without a kernel shows the cards of the gallery. With a kernel the reader also draws scenes of her own and
    types questions: the page raises `request`, Python answers with `reply`.

    Args:
        answer: Makes the card of a scene that the reader has drawn; without it there is only the gallery.
        **traits: The attributes below.

    Attributes:
        gallery: Cards.
        names: Names of the models, in the order of their columns.
        choices: What the editor offers: lists ``shape``, ``digit``, ``colour``, ``size``, ``cell``, and ``slack``, the
            largest offset in pixels by size.
        live: Whether there is a kernel that answers.
        things: What the reader has drawn.
        background: Its grey level.
        typed: The question that she typed.
        request: Goes up by one when the page wants a card.
        reply: The card with its ``number``, that of the request; or ``number`` and ``error``, one sentence.
    """

    asset = "ask_the_model"

    gallery = traitlets.List(traitlets.Dict()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    live = traitlets.Bool(False).tag(sync=True)
    things = traitlets.List(traitlets.Dict()).tag(sync=True)
    background = traitlets.Int(110).tag(sync=True)
    typed = traitlets.Unicode("").tag(sync=True)
    request = traitlets.Int(0).tag(sync=True)
    reply = traitlets.Dict().tag(sync=True)

    def __init__(self, *, answer: Answer | None = None, **traits: Any) -> None:
        super().__init__(live=answer is not None, **traits)
        self._answer = answer

    @traitlets.observe("request")
    def _reply_to_request(self, change: traitlets.Bunch) -> None:
        if self._answer is None:
            return
        try:
            card = self._answer(self.things, self.background, self.typed)
        except ValueError as error:  # a scene that cannot be: the reader is told, and the widget lives on
            card = {"error": str(error)}
        self.reply = {"number": change.new, **card}

    def state(self) -> dict[str, Any]:
        """Return the values of the traits as they hold in a page without a kernel."""
        alone = {"live": False, "request": 0, "reply": {}, "things": [], "typed": ""}
        return {**super().state(), **alone}
