"""EIM in the laboratory: contrastive losses in segments before stage 1, or beside the loss of stage 2.

The paper's order for a model with an adapter is ST, LM, adapter (base loss only), final (base loss and IE). Here stage
1 is the adapter's stage and stage 2 the final one. What the paper leaves open is chosen so:

- Texts. ST and LM take instruction and response. A caption of stage 1 has no instruction, as COCO has none, so the text
  is the caption; in stage 2 too, where the caption is that of the picture that is asked about.
- LM's query. The language model that learns reads the picture and then the caption, as it does in stage 1; the original
  one, which makes the key, reads the caption alone.
- IE's keys. The package ships the vision tower without CLIP's output layer and without the text tower. A small text
  tower is therefore trained first, by the same loss with the sides changed: captions find the [CLS] tokens of the
  frozen vision tower. It gives keys of the vision tower's own width, so that no output layer is needed. It is the same
  whether the laboratory's cache is there or not.
- Lengths. A segment is one pass over the pairs of the run, at the batch of stage 1.
- Rates. ST: that of the connector in stage 1. LM: `EIM.lm_rate`. IE: that of stage 2, and in a segment `IE_RATE`.
- Gradient truncation. In a segment only its own part learns: IE the encoder, ST the connector, LM the language model.
  ST and LM in one segment (the paper's Table 6) train both, and nothing is cut between them. Nor is it in one stage
  with all losses: each reaches all that learns there.
- Weights. 1 for each loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mirlab import recipes, world
from mirlab.methods.base import Batch, Technique, Training
from mirlab.model import miniature, precision, pretraining, sequence, train
from mirlab.world import language
from mirlib.align.eim import KeyQueue, caption_vectors, image_vectors, vision_tower

SEGMENTS = ("ie", "st", "lm", "st+lm")
FINAL = ("none", "encoder", "ie", "all")
IE_RATE = 3e-4

TEACHER_SCENES = 4096
TEACHER = recipes.Schedule(steps=400, learning_rate=2e-3, warmup=0.05, weight_decay=0.05)
_TEACHER_BATCH = 64


@dataclass(frozen=True)
class EIM(Technique, name="eim"):
    """EIM's losses, each where it is switched on.

    Attributes:
        segments: What is trained before stage 1, in this order: ``ie``, ``st``, ``lm``, or ``st+lm``, both in one.
        final: What stage 2 trains beside language model and connector, and by which losses beside the base loss:
            ``none``; ``encoder``, the vision encoder by the base loss alone, the control for IE; ``ie``, the encoder by
            IE too; ``all``, by ST, LM and IE together.
        lm_rate: Highest learning rate of the language model in a segment.
    """

    segments: tuple[str, ...] = ()
    final: str = "none"
    lm_rate: float = 3e-4

    def __post_init__(self) -> None:
        if not set(self.segments) <= set(SEGMENTS) or len(set(self.segments)) != len(self.segments):
            raise ValueError(f"segments must be some of {', '.join(SEGMENTS)}, each once, not {self.segments!r}")
        if self.final not in FINAL:
            raise ValueError(f"final must be one of {', '.join(FINAL)}, not {self.final!r}")

    def before_stage_one(self, training: Training) -> dict[str, Any]:
        """The segments, one after the other."""
        return {name: self._train_segment(training, name) for name in self.segments}

    def before_stage_two(self, training: Training) -> bool:
        """Build the keys of what stage 2 will use; whether the encoder learns in it."""
        if self.final == "none":
            return False
        vision_tower(training.model).requires_grad_(True)
        losses = {"encoder": (), "ie": (_ie,), "all": (_ie, _st, _lm)}[self.final]
        training.memory["asked"] = [loss(training) for loss in losses]
        return True

    def answer_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The base loss and what `final` adds to it, each with weight 1."""
        loss = super().answer_loss(training, batch, logits)
        with precision.multiplying():
            for queries, queue in training.memory.get("asked", ()):
                loss = loss + queue.loss(queries(batch.numbers, batch.features), torch.from_numpy(batch.numbers))
        return loss

    def _train_segment(self, training: Training, name: str) -> dict[str, Any]:
        """One pass over the pairs of a run, in which a part or two learn to bring queries to their keys.

        The history has the loss ``chance`` of keys that cannot be told apart, and the share of 256 pairs whose nearest
        key is their own, mean over the losses, before and after: ``found_before`` and ``found``.
        """
        model, batch, count = training.model, training.recipe.batch, len(training.chosen)
        losses = {
            "ie": (_ie, IE_RATE, vision_tower(model)),
            "st": (_st, training.recipe.learning_rate, model.model.multi_modal_projector),
            "lm": (_lm, self.lm_rate, model.model.language_model),
        }
        order = np.random.default_rng([training.seed, 34 + SEGMENTS.index(name)]).permutation(count)
        asked, rates = [], []
        for loss, rate, part in (losses[part] for part in name.split("+")):
            asked.append(loss(training))
            rates.append((rate, list(part.parameters())))
        model.requires_grad_(False)
        for parameter in itertools.chain(*(learns for _, learns in rates)):
            parameter.requires_grad_(True)

        def of_pairs(what: str, numbers: np.ndarray) -> list[Any]:
            """The ``loss`` or the ``accuracy`` of pairs, by their positions, of each loss."""
            features = None if name == "ie" else training.features[training.chosen[numbers]].float()
            with precision.multiplying():
                return [
                    getattr(queue, what)(queries(numbers, features), torch.from_numpy(numbers))
                    for queries, queue in asked
                ]

        def loss_of_step(step: int) -> torch.Tensor:
            return sum(of_pairs("loss", order[step * batch : (step + 1) * batch]))

        @torch.no_grad()
        def found() -> float:
            return float(np.mean(of_pairs("accuracy", np.arange(min(256, count)))))

        schedule = recipes.Schedule(count // batch, rates[0][0], weight_decay=0.0)
        before = found()
        with train.fast_attention(model):
            history = train.fit(
                model, loss_of_step, schedule, rates=rates, progress=training.progress, name=name.upper()
            )
        shares = {"found_before": before, "found": found()}
        if name == "ie":  # the encoder has changed, and with it what all that follows reads
            changed = train.vision_features(model, _pairs(training))
            training.features = torch.zeros(len(training.scenes), *changed.shape[1:], dtype=changed.dtype)
            training.features[training.chosen] = changed
        return {**train.state_of(history), "chance": len(asked) * math.log(count), **shares}


Asked = tuple[Callable[[np.ndarray, torch.Tensor], torch.Tensor], KeyQueue]
"""What a loss compares: queries, from positions in `Training.chosen` and features (n, 36, 96); keys of all pairs."""


def _pairs(training: Training) -> list[world.Scene]:
    return [training.scenes[i] for i in training.chosen]


def _ie(training: Training) -> Asked:
    """The encoder's [CLS] token shall find the caption, as a text tower reads it."""
    scenes, teacher = _pairs(training), text_tower(training.model, training.tokenizer)
    ids = pretraining.caption_ids(scenes, language.segment_encoder(training.tokenizer))

    def queries(numbers: np.ndarray, _: torch.Tensor) -> torch.Tensor:
        return image_vectors(training.model, miniature.pixel_values([scenes[i] for i in numbers])).float()

    return queries, KeyQueue.build(lambda some: caption_vectors(teacher, some), ids.split(256))


def _captions(training: Training) -> torch.Tensor:
    """Captions of the pairs of a stage, in the order of `Training.chosen`, as `train.caption_rows` makes them."""
    detail = getattr(training.recipe, "detail", "full")  # stage 2 has no captions of its own
    return train.caption_rows(_pairs(training), language.segment_encoder(training.tokenizer), detail=detail)


def _st(training: Training) -> Asked:
    """The mean of the connector's tokens shall be near the mean embedding of the caption's words."""
    embed = training.model.get_input_embeddings()

    def keys(ids: torch.Tensor) -> torch.Tensor:
        words = (ids != language.PAD) & (ids != language.EOS)
        words[:, 0] = False  # the line break
        return (embed(ids) * words[..., None]).sum(dim=1) / words.sum(dim=1, keepdim=True)

    def queries(_: np.ndarray, features: torch.Tensor) -> torch.Tensor:
        return training.model.model.multi_modal_projector(features).float().mean(dim=1)

    return queries, KeyQueue.build(keys, _captions(training).split(256))


def _lm(training: Training) -> Asked:
    """The language model shall end a caption, after its picture, as the original one ends it without."""
    model, texts = training.model, _captions(training)

    def ends(ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """What becomes of the last tokens of captions (n, length) after ``<s>`` and the image: (n, d)."""
        lengths = (ids != language.PAD).sum(dim=1)
        ids = ids[:, : int(lengths.max())]
        hidden = sequence.read(model, *train.caption_pieces(model, ids, features))[:, -ids.shape[1] :]
        return hidden[torch.arange(len(ids)), lengths - 1].float()

    queue = KeyQueue.build(lambda ids: ends(ids, None), texts.split(256))
    return lambda numbers, features: ends(texts[numbers], features), queue


_teachers: dict[str, CLIPTextModel] = {}


def text_tower(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """The text tower of a model's frozen vision tower: captions find the [CLS] tokens of their pictures.

    Those of two vision towers are remembered.
    """
    name = miniature.fingerprint(vision_tower(model))
    if name not in _teachers:
        while len(_teachers) >= 2:
            del _teachers[next(iter(_teachers))]  # the oldest
        _teachers[name] = _new_text_tower(model, tokenizer)
    return _teachers[name]


def _new_text_tower(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    config = miniature.new_encoder(dim=model.config.vision_config.hidden_size).config.text_config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = CLIPTextModel(config)
    tower.set_attn_implementation(miniature.ATTENTION)
    scenes = [world.sample_scene(np.random.default_rng([0, 36, i])) for i in range(TEACHER_SCENES)]
    shown = (miniature.pixel_values(scenes[start : start + 256]) for start in range(0, len(scenes), 256))
    queue = KeyQueue.build(lambda pixels: image_vectors(model, pixels), shown)
    ids = pretraining.caption_ids(scenes, language.segment_encoder(tokenizer))

    def loss_of_step(step: int) -> torch.Tensor:
        numbers = torch.from_numpy(np.random.default_rng([0, 37, step]).choice(len(scenes), _TEACHER_BATCH, False))
        with precision.multiplying():
            return queue.loss(caption_vectors(tower, ids[numbers]).float(), numbers)

    train.fit(tower, loss_of_step, TEACHER, progress=False)
    return tower.eval().requires_grad_(False)
