"""What a reader does with her own hands: watch a training, draw a scene, ask the model about it.

`LiveCurve` draws a training while it runs. `ask_the_model` and `train_in_page` make widgets in which the miniature
answers, and its projector learns, in the page.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import nn

from mirlab import world
from mirlab.measuring import pictures_of, texts_of
from mirlab.world.scenes import handwritten
from mirlib.widgets.ask_the_model import AskTheModel
from mirlib.widgets.train_in_page import TrainInPage

GALLERY_WRITING = 4
"""The handwriting of every digit that a reader draws, one that no training sees, see `world.sample_scene`."""


class LiveCurve:
    """The loss of a training, and MIR every few steps, drawn again and again while it runs.

    Hand it to a training as ``after_step`` inside a ``with`` block. In a notebook the figure grows in place, and one
    figure is left when the block ends; outside a notebook the numbers are collected and nothing is drawn.

    Args:
        measure: Measures the model as it is and returns a mapping with ``value`` (MIR) and, if it likes, ``null`` (the
            zeroed-rows baseline), such as `mirlab.measuring.mir_of`. Without it only the loss is shown.
        every: Steps from one measurement to the next; the first follows step 1.
        seconds: Least time from one drawing to the next; 0 draws every step. On a busy machine the pause grows, so that
            drawing takes no more than a tenth of the time.

    Attributes:
        losses: Loss of every step.
        measured: What `measure` returned, by step.

    Example:
        >>> with LiveCurve(lambda: {"value": 0.5}, every=2) as curve:
        ...     for step, loss in enumerate([3.0, 2.0, 1.0, 0.5], start=1):
        ...         curve(step, loss)
        >>> curve.losses, list(curve.measured)
        ([3.0, 2.0, 1.0, 0.5], [1, 2, 4])
    """

    def __init__(
        self, measure: Callable[[], Mapping[str, Any]] | None = None, *, every: int = 8, seconds: float = 0.5
    ) -> None:
        self.losses: list[float] = []
        self.measured: dict[int, Mapping[str, Any]] = {}
        self._measure, self._every, self._seconds = measure, every, seconds
        self._next_drawing = -np.inf
        self._handle: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()

    def __call__(self, step: int, loss: float) -> None:
        """Take note of the loss of a step that has been done; the first is 1."""
        self.losses.append(loss)
        if self._measure is not None and (step == 1 or step % self._every == 0):
            self.measured[step] = self._measure()
        if time.monotonic() >= self._next_drawing:
            self._draw()

    @property
    def data(self) -> dict[str, Any]:
        """What `mirlib.plots.figure_training` draws."""
        zeroed = next((found["null"] for found in self.measured.values() if "null" in found), None)
        mir = {step: found["value"] for step, found in self.measured.items()}
        return {"losses": list(self.losses), "mir": mir, "zeroed_rows": zeroed}

    def _draw(self) -> None:
        from IPython.core.getipython import get_ipython

        if get_ipython() is None or not self.losses:
            return
        from IPython.display import Image, display

        from mirlib import plots

        began = time.monotonic()
        png = plots.as_png(lambda ax: plots.figure_training(self.data, ax))
        picture = Image(data=png, format="png", alt="Loss and MIR by training step")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
        now = time.monotonic()
        self._next_drawing = now + (max(self._seconds, 9 * (now - began)) if self._seconds else 0)


def questions_of(scene: world.Scene, *, most: int = 4) -> list[world.Question]:
    """The questions that a scene allows, at most `most` of each kind, always the same for the same scene."""
    asked = []
    for number, kind in enumerate(world.QUESTION_KINDS):
        rng = np.random.default_rng([number, 94])
        asked += list(dict.fromkeys(filter(None, (world.ask(scene, kind, rng) for _ in range(16)))))[:most]
    return asked


def drawing() -> dict[str, Any]:
    """What a page needs to draw the world's scenes, pixel by pixel as `world.render` does with noise of seed 0.

    ``shapes``, ``colours`` (red, green, blue by name), ``sizes`` (radius by name), and in base 64 ``digits`` (by digit
    and size, the bytes of one handwriting) and ``noise`` (48 x 48 float32).
    """
    noise = np.random.default_rng(0).standard_normal((world.IMAGE_SIZE, world.IMAGE_SIZE), dtype=np.float32)

    def text(values: np.ndarray) -> str:
        return base64.b64encode(values.tobytes()).decode()

    digits = {d: {s: text(handwritten(d, s, GALLERY_WRITING)) for s in world.SIZES} for d in world.DIGITS}
    colours = {name: list(colour) for name, colour in world.COLOURS.items()}
    shown = {"shapes": list(world.SHAPES), "colours": colours, "sizes": world.SIZES}
    return {**shown, "digits": digits, "noise": text(noise.astype("<f4"))}


def beside_drawings() -> tuple[list[Image.Image], list[str]]:
    """Six scenes, as the cloud in which a drawing stands, and seven texts of made-up news, the drawing's first."""
    return pictures_of("scenes", 6), texts_of("news", 7)


def ask_the_model(projectors: Mapping[str, nn.Module | None], **traits: Any) -> AskTheModel:
    """A widget in which a reader draws a scene, asks about it, and sees what the miniature answers and how it sees it.

    The drawing is measured beside six scenes and above seven texts, `beside_drawings`. The `projectors` are as for
    `AskTheModel`, by the names that the reader sees; the traits are what is drawn and asked at first.
    """
    names = ("shape", "colour", "size", "cell", "right", "down")
    first = [("circle", "red", "large", "topleft"), ("square", "blue", "small", "bottomright")]
    first += [("triangle", "yellow", "large", "topright"), ("ring", "green", "small", "bottomleft")]
    things = [dict(zip(names, (*words, 0, 0), strict=True)) for words in first]
    pictures, texts = beside_drawings()
    return AskTheModel(projectors, pictures, **{"world": drawing(), "things": things, "texts": texts, **traits})


def train_in_page(*, pictures: int = 6, **traits: Any) -> TrainInPage:
    """A widget that trains the miniature's projector in the page, and measures MIR on held-out scenes and news.

    There are as many scenes and news as `pictures`; the traits are those of `mirlib.widgets.TrainInPage`.
    """
    rng = np.random.default_rng([0, 97])
    scenes = [world.sample_scene(rng, count=2, digits=0, held_out=True) for _ in range(pictures)]
    shown = {name: value for name, value in drawing().items() if name in ("shapes", "colours", "sizes")}
    first = {"truth": world.caption(scenes[0]), "world": shown}
    return TrainInPage([world.to_image(scene) for scene in scenes], texts_of("news", pictures), **{**first, **traits})
