"""Stages and data in the laboratory: captions with wrong words, alignment in several stages, a new domain.

Inspired by "Improved Alignment of Modalities in Large Vision Language Models" (arXiv 2503.19508), of which only the
abstract is public to us: four training stages, from aligning with the language model frozen to unfreezing it. What each
stage trains, and on what, is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mirlab import recipes, world
from mirlab.methods.base import Technique, Training


def garbled(scene: world.Scene, rate: float, rng: np.random.Generator) -> world.Scene:
    """A scene told wrongly: each word (position, shape, size, colour) is another of its kind with probability `rate`.

    It is to be described, not to be painted: two things may claim one cell.
    """
    family = world.family_of(scene)
    values = {"cell": world.CELLS, "shape": family, "size": world.SIZES, "colour": world.COLOURS}
    things = []
    for thing in scene.things:
        wrong = {}
        for name, words in values.items():
            others = [word for word in words if word != getattr(thing, name)]
            drawn, other = rng.random(), others[int(rng.integers(len(others)))]
            if drawn < rate:
                wrong[name] = other
        things.append(replace(thing, **wrong))
    return replace(scene, things=tuple(things))


@dataclass(frozen=True)
class NoisyCaptions(Technique, name="noisy_captions"):
    """Captions of stage 1 with a rate of wrong words; pictures, stage 2 and all that is measured stay right."""

    rate: float = 0.3

    def told(self, training: Training) -> list[world.Scene]:
        """The chosen scenes with wrong words; a picture has the same wrong caption whenever it comes."""
        told = list(training.scenes)
        for number in training.chosen:
            rng = np.random.default_rng([training.seed, 61, int(number)])
            told[number] = garbled(told[number], self.rate, rng)
        return told


STAGES: tuple[dict[str, Any], ...] = (
    {"unlock": "none", "unlock_encoder": False},
    {"unlock": "none", "unlock_encoder": True},
    {"unlock": "half", "unlock_encoder": True},
    {"unlock": "all", "unlock_encoder": True},
)
"""What learns beside the connector in each of four stages of alignment (nothing; half of the encoder; half of the
language model too; all of it)."""


@dataclass(frozen=True)
class FourStages(Technique, name="four_stages"):
    """Alignment in four stages, each with a warm-up and a schedule of its own, on pairs of its own.

    The recipe of the run is that of the last stage, which must unlock what the last of `STAGES` does. The three before
    it see as many pairs each. Together they see the pairs that one long stage of the same seed would see.
    """

    def wanted(self, pairs: int) -> int:
        """Pairs for each of the stages; the last one reads the first of them."""
        return len(STAGES) * pairs

    def before_stage_one(self, training: Training) -> dict[str, Any]:
        """The first three stages; ``losses`` are the mean loss of the last 50 steps of each."""
        from mirlab.model import train  # which knows the methods

        last, pairs = training.recipe, training.recipe.pairs
        if any(getattr(last, name) != value for name, value in STAGES[-1].items()):
            raise ValueError(f"the recipe of the last stage must have {STAGES[-1]}")
        losses = []
        for number, unlocked in enumerate(STAGES[:-1], start=1):
            scenes = training.scenes[number * pairs : (number + 1) * pairs]
            features = None if unlocked["unlock_encoder"] else train.vision_features(training.model, scenes)
            own = {"scenes": scenes, "features": features, "chosen": np.arange(pairs), "memory": {}}
            stage = replace(training, recipe=replace(last, **unlocked), **own)
            losses.append(train.caption_stage(stage, name=f"stage 1.{number}").final_loss)
        return {"losses": losses}


@dataclass(frozen=True)
class NewDomain(Technique, name="new_domain"):
    """Keep handwritten digits out of stage 1 and stage 2, then adapt to questions about them.

    The encoder and the language model have met digits in their own training, as those of a large model have met
    medical pictures and words; no digit has passed through the connector, and none was asked about.

    Attributes:
        images, short, long: Pictures of stage 2, of a short adaptation, and of a long one.
        scenes: Held-out scenes of each evaluation.
    """

    images: int = 1024
    short: int = 256
    long: int = 1024
    scenes: int = 240

    def wanted(self, pairs: int) -> int:
        """Twice as many, since some hold digits."""
        return 2 * pairs

    def choose(self, scenes: Sequence[world.Scene], pairs: int) -> np.ndarray:
        """The first scenes without digits; too few of them are refused."""
        shapes = np.array([i for i, scene in enumerate(scenes) if world.family_of(scene) == world.SHAPES])
        if len(shapes) < pairs:
            raise ValueError(f"{pairs} scenes without digits were asked for, but there are {len(shapes)}")
        return shapes[:pairs]

    def after_stage_one(self, training: Training) -> dict[str, Any]:
        """Stage 2 on shapes, then adaptation to digits, and the accuracy in both domains.

        It has ``before`` (after stage 2 on shapes), ``short`` and ``long`` (after that and an adaptation), and
        ``direct`` (stage 2 on digits straight after stage 1, as many pictures as ``long``), each with the mean accuracy
        on ``shapes`` and ``digits``, the same ``by_kind`` of question, and the ``count_by_kind``; and ``gain``, of
        ``short`` over ``before`` on digits.
        """
        from mirlab.model import evaluation, train  # which know the methods

        def tuned(model: Any, images: int, digits: float) -> Any:
            model = deepcopy(model)
            seed = training.seed + (1000 if digits else 0)  # other scenes for the second tuning
            recipe = recipes.StageTwo(images=images)
            train.stage_two(model, training.tokenizer, recipe, seed=seed, digits=digits, progress=False)
            return model

        def accuracy(model: Any) -> dict[str, Any]:
            answers = {
                name: evaluation.image_answers(model, training.tokenizer, scenes=self.scenes, digits=share)
                for name, share in {"shapes": 0.0, "digits": 1.0}.items()
            }
            return {
                **{name: found.mean_accuracy for name, found in answers.items()},
                "by_kind": {name: found.accuracy for name, found in answers.items()},
                "count_by_kind": {name: found.count for name, found in answers.items()},
            }

        before = tuned(training.model, self.images, 0.0)
        models = {"before": before, "short": tuned(before, self.short, 1.0), "long": tuned(before, self.long, 1.0)}
        models["direct"] = tuned(training.model, self.long, 1.0)
        found: dict[str, Any] = {name: accuracy(model) for name, model in models.items()}
        return found | {"gain": found["short"]["digits"] - found["before"]["digits"]}
