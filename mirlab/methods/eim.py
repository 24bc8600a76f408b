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
from torch import nn
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
        texts = captions_of(training)
        if self.final in ("ie", "all"):
            training.memory["ie"] = _ie_keys(training, training.scenes)
        if self.final == "all":
            model = training.model
            training.memory |= {"st": _st_keys(model, texts), "lm": _lm_keys(model, texts), "texts": texts}
        return True

    def answer_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The base loss and what `final` adds to it, each with weight 1."""
        loss = super().answer_loss(training, batch, logits)
        model, positives = training.model, torch.from_numpy(batch.numbers)
        with precision.multiplying():
            if "ie" in training.memory:
                shown = miniature.pixel_values([training.scenes[i] for i in batch.numbers])
                loss = loss + training.memory["ie"].loss(image_vectors(model, shown).float(), positives)
            if "st" in training.memory:
                loss = loss + training.memory["st"].loss(_st_queries(model, batch.features), positives)
            if "lm" in training.memory:
                ended = _lm_vectors(model, training.memory["texts"][positives], batch.features)
                loss = loss + training.memory["lm"].loss(ended, positives)
        return loss

    def _train_segment(self, training: Training, name: str) -> dict[str, Any]:
        """One segment; what each of its losses asks for, and what learns in it, at which rate."""
        model = training.model
        losses = {
            "ie": (_ie, IE_RATE, vision_tower(model)),
            "st": (_st, training.recipe.learning_rate, model.model.multi_modal_projector),
            "lm": (_lm, self.lm_rate, model.model.language_model),
        }
        chosen = [losses[loss] for loss in name.split("+")]
        asked = [of_training(training) for of_training, _, _ in chosen]
        rates = [(rate, list(module.parameters())) for _, rate, module in chosen]
        found = _segment(training, asked, rates, name)
        if "ie" in name:  # the encoder has changed, and with it what all that follows reads
            seen = [training.scenes[i] for i in training.chosen]
            changed = train.vision_features(model, seen)
            features = torch.zeros(len(training.scenes), *changed.shape[1:], dtype=changed.dtype)
            features[training.chosen] = changed
            training.features = features
        return found


Asked = tuple[Callable[[np.ndarray], torch.Tensor], KeyQueue]
"""What a loss compares, from positions in `Training.chosen` to queries, and the keys of all of them."""


def _ie(training: Training) -> Asked:
    """The encoder's [CLS] token shall find the caption."""
    model = training.model
    scenes = [training.scenes[i] for i in training.chosen]
    queue = _ie_keys(training, scenes)
    return lambda numbers: image_vectors(model, miniature.pixel_values([scenes[i] for i in numbers])).float(), queue


def _st(training: Training) -> Asked:
    """The mean of the connector's tokens shall be near the mean embedding of the caption."""
    model = training.model
    queue = _st_keys(model, captions_of(training))
    return lambda numbers: _st_queries(model, training.features[training.chosen[numbers]].float()), queue


def _lm(training: Training) -> Asked:
    """The language model shall end a caption, after its picture, as the original one ends it without."""
    model, texts = training.model, captions_of(training)
    queue = _lm_keys(model, texts)

    def vectors(numbers: np.ndarray) -> torch.Tensor:
        features = training.features[training.chosen[numbers]].float()
        return _lm_vectors(model, texts[numbers], features)

    return vectors, queue


def captions_of(training: Training) -> torch.Tensor:
    """Captions of the pairs of a stage, in the order of `Training.chosen`, as `train.caption_rows` makes them."""
    encode = language.segment_encoder(training.tokenizer)
    detail = getattr(training.recipe, "detail", "full")  # stage 2 has no captions of its own
    return train.caption_rows([training.scenes[i] for i in training.chosen], encode, detail=detail)


def _ie_keys(training: Training, scenes: list[world.Scene]) -> KeyQueue:
    """What the text tower makes of the captions of scenes."""
    teacher = text_tower(training.model, training.tokenizer)
    ids = pretraining.caption_ids(scenes, language.segment_encoder(training.tokenizer))
    return KeyQueue.build(lambda some: caption_vectors(teacher, some), ids.split(256))


def _st_keys(model: LlavaForConditionalGeneration, texts: torch.Tensor) -> KeyQueue:
    """Means of the embedded words of captions; without the line break before them and the ``</s>`` behind."""
    embed = model.get_input_embeddings()

    def means(ids: torch.Tensor) -> torch.Tensor:
        words = (ids != language.PAD) & (ids != language.EOS)
        words[:, 0] = False  # the line break
        return (embed(ids) * words[..., None]).sum(dim=1) / words.sum(dim=1, keepdim=True)

    return KeyQueue.build(means, texts.split(256))


def _st_queries(model: LlavaForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Means of the connector's tokens, (n, d), from vision features (n, 36, 96)."""
    return model.model.multi_modal_projector(features).float().mean(dim=1)


def _lm_keys(model: LlavaForConditionalGeneration, texts: torch.Tensor) -> KeyQueue:
    """Where captions end in the language model as it is now, without their pictures."""
    return KeyQueue.build(lambda ids: _lm_vectors(model, ids, None), texts.split(256))


def _lm_vectors(model: LlavaForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
    """What the language model makes of the last token of captions (n, length) after ``<s>`` and the image, (n, d)."""
    lengths = (ids != language.PAD).sum(dim=1)
    ids = ids[:, : int(lengths.max())]
    hidden = sequence.read(model, *train.caption_pieces(model, ids, features))[:, -ids.shape[1] :]
    return hidden[torch.arange(len(ids)), lengths - 1].float()


def _segment(
    training: Training, asked: list[Asked], rates: list[tuple[float, list[nn.Parameter]]], name: str
) -> dict[str, Any]:
    """One pass over the pairs of a run, in which some parameters learn to bring queries to their keys.

    Losses are added; ``rates`` holds the highest learning rates with what learns, and everything else is frozen. The
    history has the loss ``chance`` of keys that cannot be told apart, and the share of 256 pairs whose nearest key is
    their own, mean over the losses, before and after: ``found_before`` and ``found``.
    """
    model, batch = training.model, training.recipe.batch
    count = len(training.chosen)
    order = np.random.default_rng([training.seed, 34 + SEGMENTS.index(name)]).permutation(count)
    model.requires_grad_(False)
    for parameter in itertools.chain(*(learns for _, learns in rates)):
        parameter.requires_grad_(True)

    def loss_of_step(step: int) -> torch.Tensor:
        numbers = order[step * batch : (step + 1) * batch]
        with precision.multiplying():
            return sum(queue.loss(vectors(numbers), torch.from_numpy(numbers)) for vectors, queue in asked)

    @torch.no_grad()
    def found() -> float:
        some = np.arange(min(256, count))
        with precision.multiplying():
            shares = [queue.accuracy(vectors(some), torch.from_numpy(some)) for vectors, queue in asked]
        return float(np.mean(shares))

    schedule = recipes.Schedule(count // batch, rates[0][0], weight_decay=0.0)
    before = found()
    with train.fast_attention(model):
        history = train.fit(model, loss_of_step, schedule, rates=rates, progress=training.progress, name=name.upper())
    chance = len(asked) * math.log(count)
    return {**train.state_of(history), "chance": chance, "found_before": before, "found": found()}


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
