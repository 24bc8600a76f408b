"""Stage 1 in the page: a fresh projector learns captions while its loss and its MIR are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets
from PIL import Image

from mirlib.widgets.the_model import EngineWidget, address_of


class TrainInPage(EngineWidget):
    """The projector of the miniature learns for a minute or two, with the reader's learning rate and warm-up.

    The page computes what `mirlab.model.train.stage_one` computes: captions of scenes behind their pictures, a frozen
    encoder and language model, Adam with warm-up and a cosine. First weights and scenes are the same in every run.

    Args:
        pictures: Held-out pictures of 48 x 48 pixels, on which MIR is measured; the first is described as well.
        texts: A text under each picture.
        **traits: The attributes below; `mirlab.live.train_in_page` fills them in.

    Attributes:
        pictures: The pictures' addresses.
        texts: The texts.
        truth: What a full caption of the first picture says.
        world: Of what scenes are made: ``shapes``, ``colours`` and ``sizes`` of `mirlab.live.drawing`.
        learning_rate: The highest rate, .0005 times a power of 2, up to .064.
        warmup_steps: Steps over which the rate rises, 1 to 32.
        steps: Steps of a run.
        batch: Pairs of picture and caption a step.
        every: Steps from one measurement of MIR to the next.
    """

    asset = "train_in_page"

    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    truth = traitlets.Unicode().tag(sync=True)
    world = traitlets.Dict().tag(sync=True)
    learning_rate = traitlets.Float(8e-3, min=5e-4, max=6.4e-2).tag(sync=True)
    warmup_steps = traitlets.Int(2, min=1, max=32).tag(sync=True)
    steps = traitlets.Int(64, min=1).tag(sync=True)
    batch = traitlets.Int(8, min=1).tag(sync=True)
    every = traitlets.Int(8, min=1).tag(sync=True)

    def __init__(self, pictures: Sequence[Image.Image], texts: Sequence[str], **traits: Any) -> None:
        super().__init__(pictures=[address_of(image) for image in pictures], texts=list(texts), **traits)
