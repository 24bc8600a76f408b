"""The places where a method may step in, and the techniques by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from mirlab import world
    from mirlab.recipes import StageOne, StageTwo

TECHNIQUES: dict[str, type[Technique]] = {}
"""Techniques by name; all of them once `mirlab.methods.technique` was called."""


@dataclass
class Training:
    """What a method may need to know of the stage that it steps into.

    Attributes:
        model: The whole model.
        tokenizer: Its tokenizer.
        recipe: Of the stage.
        seed: Of the run.
        scenes: The scenes that batches are drawn from.
        features: Their vision features (n, 36, 96), or None if the encoder learns.
        chosen: Numbers of the scenes that the run trains on.
        progress: Draw progress bars on stderr.
        memory: Whatever the method wants to keep from one step to the next.
    """

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    recipe: StageOne | StageTwo
    seed: int
    scenes: list[world.Scene]
    features: torch.Tensor | None
    chosen: np.ndarray
    progress: bool = False
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One step's pictures and texts.

    Attributes:
        numbers: (n,) which of `Training.scenes` they are.
        ids: (n, length) the texts after the image, padded.
        targets: (n, length) bool, the tokens that are learnt; each is predicted from what stands before it.
        features: (n, 36, 96) vision features.
    """

    numbers: np.ndarray
    ids: torch.Tensor
    targets: torch.Tensor
    features: torch.Tensor

    @property
    def labels(self) -> torch.Tensor:
        """(m,) the ids that are learnt, row by row."""
        return self.ids[:, 1:][self.targets[:, 1:]]


@dataclass(frozen=True)
class Technique:
    """A method at work; this one is the plain recipe.

    Another is a subclass with a ``name``, its options as fields, and what it does instead. What stands in a run is a
    `mirlab.recipes.Method` of that name; `mirlab.methods.technique` makes the one out of the other.
    """

    name: ClassVar[str] = "plain"

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.name, TECHNIQUES[name] = name, cls

    @property
    def configuration(self) -> dict[str, Any]:
        """The name and all options as JSON, those at their defaults included."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"name": self.name, **options}

    @property
    def rate_of_attached(self) -> float | None:
        """Highest learning rate of what `attach` returns in stage 1; None for the connector's."""
        return None

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[nn.Parameter]:
        """Change a model that has just got a fresh connector, in place.

        What is returned learns in stage 1, at `rate_of_attached`; in stage 2 whatever hangs on the language model or on
        the connector learns with them.
        """
        return []

    def wanted(self, pairs: int) -> int:
        """How many scenes there must be for stage 1 to train on so many."""
        return pairs

    def choose(self, scenes: Sequence[world.Scene], pairs: int) -> np.ndarray:
        """Numbers of the scenes that stage 1 trains on, as many as there are `pairs`."""
        return np.arange(pairs)

    def told(self, training: Training) -> Sequence[world.Scene]:
        """The scenes that the captions of stage 1 tell of, by number; the pictures are those of `Training.scenes`."""
        return training.scenes

    def before_stage_one(self, training: Training) -> dict[str, Any]:
        """Train something before stage 1, and return what the ledger should keep of it, as JSON."""
        return {}

    def after_stage_one(self, training: Training) -> dict[str, Any]:
        """Say what stage 1 made of it, as JSON for the ledger."""
        return {}

    def caption_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The loss of a step of stage 1, from the logits (m, vocabulary) of its targets: their mean cross-entropy."""
        return F.cross_entropy(logits, batch.labels, reduction="none").mean()

    def before_stage_two(self, training: Training) -> bool:
        """Get ready for stage 2, where language model and connector learn; whether the encoder shall learn, too."""
        return False

    def answer_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The loss of a step of stage 2, likewise."""
        return F.cross_entropy(logits, batch.labels)


PLAIN = Technique()
TECHNIQUES[Technique.name] = Technique
