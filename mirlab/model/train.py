"""Training a miniature LLaVA: stage 1 teaches it to see, stage 2 to answer.

1. `stage_one`: captions. Encoder and language model stay frozen, or are unlocked in part.
2. `stage_two`: questions about pictures (supervised fine-tuning, SFT) with the language model unlocked.

Both share one loop, `fit`. What a step sees depends only on the seed and the step's number, so a run that is killed
and started again goes on exactly where its last checkpoint stood.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration as Llava
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import world
from mirlab.methods import PLAIN, Batch, Technique, Training
from mirlab.model import connectors, miniature, precision, sequence
from mirlab.recipes import Schedule, StageOne, StageTwo
from mirlab.world import language


@dataclass
class History:
    """What a training left behind."""

    losses: list[float] = field(default_factory=list)  # of every step
    seconds: float = 0.0  # over all restarts
    before: dict[str, Any] = field(default_factory=dict)  # what a method trained before it, see `mirlab.methods`
    after: dict[str, Any] = field(default_factory=dict)  # what a method says of itself after it

    @property
    def final_loss(self) -> float:
        """Mean loss of the last 50 steps."""
        return float(np.mean(self.losses[-50:]))


def fit(
    module: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    schedule: Schedule,
    *,
    rates: Sequence[tuple[float, list[nn.Parameter]]] | None = None,
    after_step: Callable[[int, float], bool | None] | None = None,
    checkpoint: Path | None = None,
    every: int = 250,
    progress: bool = True,
    name: str = "",
) -> History:
    """Minimise a loss over the parameters of a module that require a gradient, and survive being killed.

    `loss_of_step` must draw its batch from the step's number alone. `rates` are highest learning rates with their
    parameters, where not all have that of the schedule. `after_step` is called with the number of steps done and the
    loss; a true value ends the training. A run that finds a `checkpoint`, kept `every` so many steps, goes on there.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    rates = [(schedule.learning_rate, parameters)] if rates is None else rates
    groups = [{"params": members, "lr": rate, "highest": rate} for rate, members in rates if members]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True)
    history = History()
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        history = History(state["losses"], state["seconds"])
    done = len(history.losses)
    started = time.monotonic() - history.seconds
    bar = tqdm(range(done, schedule.steps), desc=name, initial=done, total=schedule.steps, disable=not progress)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * schedule.factor(step)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        history.losses.append(loss.item())
        history.seconds = time.monotonic() - started
        bar.set_postfix(loss=f"{history.final_loss:.3f}", refresh=False)
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            unfinished = checkpoint.with_suffix(f".{os.getpid()}.tmp")
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), **asdict(history)}
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
        if after_step is not None and after_step(step + 1, history.losses[-1]):
            break
    return history


@contextmanager
def fast_attention(model: nn.Module) -> Iterator[None]:
    """Compute attention inside the ``with`` block as `miniature.ATTENTION` says."""
    before = model.config._attn_implementation
    model.set_attn_implementation(miniature.ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


# -------------------- Stage 1: captions
def stage_one_scenes(pairs: int, *, seed: int = 0, first: int = 0) -> list[world.Scene]:
    """The scenes of stage 1 from number `first` on; the first n of a larger set are the smaller set."""
    return [world.sample_scene(np.random.default_rng([seed, 31, i])) for i in range(first, pairs)]


def stage_one(
    model: Llava,
    tokenizer: Tokenizer,
    recipe: StageOne,
    *,
    seed: int = 0,
    scenes: list[world.Scene] | None = None,
    features: torch.Tensor | None = None,
    method: Technique = PLAIN,
    after_step: Callable[[int, float], bool | None] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """Train a fresh connector, and what the recipe unlocks, in place.

    Args:
        model: The whole model; its connector is replaced by a new one.
        tokenizer: Its tokenizer.
        recipe: What to train, on how much.
        seed: Of the connector's first weights, of the order of the pairs and, without ``scenes``, of the scenes.
        scenes: At least ``recipe.pairs`` scenes, of which the first are read.
        features: Their vision features (n, 36, 96), if they are known already; see `vision_features`.
        method: What to do beside the plain recipe, see `mirlab.methods`.
        after_step: As for `fit`.
        checkpoint: File that keeps the state.
        progress: Draw progress bars on stderr.
    """
    scenes = stage_one_scenes(method.wanted(recipe.pairs), seed=seed) if scenes is None else scenes
    if len(scenes) < recipe.pairs:
        raise ValueError(f"{recipe.pairs} pairs were asked for, but there are {len(scenes)} scenes")
    connectors.replace(model, recipe.connector, norm_matched=recipe.norm_matched, seed=seed)
    attached = method.attach(model, seed=seed)
    subset = method.choose(scenes, recipe.pairs)
    if features is None and not recipe.unlock_encoder:  # a frozen encoder sees each picture once
        features = vision_features(model, scenes, progress=progress)
    training = Training(model, tokenizer, recipe, seed, scenes, features, subset, progress)
    before = method.before_stage_one(training)
    history = caption_stage(training, method, attached=attached, after_step=after_step, checkpoint=checkpoint)
    history.before = before
    if recipe.unlock == "lora_merged":
        connectors.merge_lora(model)
    history.after = method.after_stage_one(training)
    return history


def caption_stage(
    training: Training,
    method: Technique = PLAIN,
    *,
    attached: Sequence[nn.Parameter] = (),
    after_step: Callable[[int, float], bool | None] | None = None,
    checkpoint: Path | None = None,
    name: str = "stage 1",
) -> History:
    """Train the connector that is there, and what the recipe unlocks, on captions of the chosen scenes.

    What is `attached` are parameters of the method, which learn at its own rate or at the connector's.
    """
    model, recipe, seed, scenes = training.model, training.recipe, training.seed, training.scenes
    unlocked = unlock(model, recipe, seed=seed)
    connector = list(model.model.multi_modal_projector.parameters())
    attached = [p for p in attached if all(p is not other for other in connector)]
    # What hangs on the language model is among its parameters.
    unlocked = [p for p in unlocked if all(p is not other for other in attached)]
    for parameter in attached:
        parameter.requires_grad_(True)
    encode = language.segment_encoder(training.tokenizer)
    batches = recipe.pairs // recipe.batch
    told = method.told(training)

    def loss_of_step(step: int) -> torch.Tensor:
        epoch, position = divmod(step, batches)
        order = np.random.default_rng([seed, 32, epoch]).permutation(training.chosen)
        chosen = order[position * recipe.batch : (position + 1) * recipe.batch]
        with precision.multiplying():
            learnt = recipe.unlock_encoder
            seen = encoded(model, [scenes[i] for i in chosen]) if learnt else training.features[chosen].float()
            ids = caption_rows([told[i] for i in chosen], encode, detail=recipe.detail)
            batch = Batch(chosen, ids, ids != language.PAD, seen)
            return method.caption_loss(training, batch, caption_logits(model, ids, seen)[batch.targets[:, 1:]])

    rates = [(recipe.learning_rate, connector), (method.rate_of_attached or recipe.learning_rate, attached)]
    rates.append((recipe.unlocked_rate, unlocked))
    options = {"rates": rates, "after_step": after_step, "checkpoint": checkpoint, "progress": training.progress}
    with fast_attention(model):
        return fit(model, loss_of_step, recipe.schedule, name=name, **options)


def unlock(model: Llava, recipe: StageOne, *, seed: int = 0) -> list[nn.Parameter]:
    """Freeze all but the connector and what the recipe unlocks; the parameters beside the connector that learn."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    decoder = model.model.language_model
    opened: list[nn.Parameter] = []
    if recipe.unlock.startswith("lora"):
        opened += connectors.add_lora(model, seed=seed)
    elif recipe.unlock == "half":
        opened += [p for layer in decoder.layers[: len(decoder.layers) // 2] for p in layer.parameters()]
    elif recipe.unlock == "all":
        opened += list(decoder.parameters())
    if recipe.unlock_encoder:
        # The hidden state that the connector reads is the last but one: the last layer never gets a gradient.
        layers = _tower(model).encoder.layers
        opened += [p for layer in layers[len(layers) // 2 : -1] for p in layer.parameters()]
    for parameter in opened:
        parameter.requires_grad_(True)
    return opened


def _tower(model: Llava) -> nn.Module:
    return getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)


def encoded(model: Llava, scenes: list[world.Scene]) -> torch.Tensor:
    """What the connector reads for each scene: (n, 36, 96)."""
    seen = model.model.vision_tower(miniature.pixel_values(scenes), output_hidden_states=True)
    return seen.hidden_states[miniature.VISION_FEATURE_LAYER][:, 1:]  # without CLS


@torch.no_grad()
def vision_features(model: Llava, scenes: list[world.Scene], *, progress: bool = False) -> torch.Tensor:
    """What the connector reads for each scene, kept small: float16 (n, 36, 96); small sets are remembered."""
    # Two ways to compute attention differ in the last digit, and nothing may depend on which one was asked first.
    attention = model.model.vision_tower.config._attn_implementation
    small = len(scenes) <= _REMEMBERED_SCENES
    key = (miniature.fingerprint(_tower(model)), attention, tuple(scenes)) if small else None
    if key in _remembered:
        return _remembered[key].clone()
    starts = tqdm(range(0, len(scenes), 256), desc="vision features", disable=not progress)
    found = torch.cat([encoded(model, scenes[start : start + 256]).half() for start in starts])
    if small:
        while len(_remembered) >= _REMEMBERED_SETS:
            del _remembered[next(iter(_remembered))]  # the oldest
        _remembered[key] = found.clone()
    return found


_REMEMBERED_SCENES, _REMEMBERED_SETS = 2048, 16
_remembered: dict[tuple[str, str, tuple[world.Scene, ...]], torch.Tensor] = {}


def caption_rows(
    scenes: list[world.Scene], encode: Callable[[str], tuple[int, ...]], *, detail: str = "full"
) -> torch.Tensor:
    """Captions as the language model reads them after the image: line break, caption, ``</s>``; int64, padded."""
    return padded([[*encode("\n"), *encode(f" {world.caption(s, detail)}"), language.EOS] for s in scenes])


def padded(rows: list[list[int]], *, fill: int = language.PAD, length: int | None = None) -> torch.Tensor:
    """Rows of ids as a rectangle (n, longest, or another length), filled up on the right."""
    ids = torch.full((len(rows), length or max(map(len, rows))), fill)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def caption_losses(model: Llava, ids: torch.Tensor, features: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced reading of captions (n, length), from `caption_rows`, after ``<s>`` and the image.

    The connector is applied here to vision features (n, 36, 96); None leaves the image out. What is returned: the loss
    of every caption token, flat, without the line break and the padding; and the ids predicted for ``ids[:, 1:]``.
    """
    logits, targets = caption_logits(model, ids, features), ids[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses[targets.flatten() != language.PAD], logits.argmax(dim=-1)


def caption_logits(model: Llava, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
    """Float32 logits (n, length - 1, vocabulary) of each caption token but the first; arguments as `caption_losses`."""
    hidden = sequence.read(model, *caption_pieces(model, ids, features), answers_from=1)  # (n, 37 + length, d)
    return model.lm_head(hidden[:, -ids.shape[1] : -1]).float()


def caption_pieces(model: Llava, ids: torch.Tensor, features: torch.Tensor | None) -> list[sequence.Embedded]:
    """What is read of captions: ``<s>``, the image if there is one, and the caption; arguments as `caption_losses`."""
    embed = model.get_input_embeddings()
    start = sequence.words(embed(torch.full((len(ids), 1), language.BOS)))
    image = [] if features is None else [sequence.image(model.model.multi_modal_projector(features))]
    return [start, *image, sequence.words(embed(ids))]


# -------------------- Stage 2: questions
def stage_two(
    model: Llava,
    tokenizer: Tokenizer,
    recipe: StageTwo,
    *,
    seed: int = 0,
    method: Technique = PLAIN,
    digits: float = world.DIGIT_SHARE,
    progress: bool = True,
) -> History:
    """Train language model and connector in place to answer questions about pictures; the encoder stays frozen.

    The `seed` is that of scenes and questions, `digits` the share of scenes with digits; the rest as for `stage_one`.
    """
    rng = np.random.default_rng([seed, 41])
    scenes = [world.sample_scene(rng, digits=digits) for _ in range(recipe.images)]
    dialogues = [[world.sample_question(scene, rng) for _ in range(recipe.questions)] for scene in scenes]
    features = vision_features(model, scenes)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    model.model.language_model.requires_grad_(True)
    encode = language.segment_encoder(tokenizer)
    embed = model.get_input_embeddings()
    before = torch.tensor([language.BOS, *encode("USER:")])
    every = np.arange(recipe.images)
    training = Training(model, tokenizer, recipe, seed, scenes, features, every, progress)
    if encodes := method.before_stage_two(training):
        training.features = None

    def loss_of_step(step: int) -> torch.Tensor:
        chosen = slice(step * recipe.batch, (step + 1) * recipe.batch)
        ids, targets = dialogue_rows(dialogues[chosen], encode)
        with precision.multiplying():
            seen = encoded(model, scenes[chosen]) if encodes else features[chosen].float()
            batch = Batch(every[chosen], ids, targets, seen)
            image = sequence.image(model.model.multi_modal_projector(batch.features))
            opening, asked = sequence.words(embed(before)), sequence.words(embed(ids))
            hidden = sequence.read(model, opening, image, asked, answers_from=targets.int().argmax(dim=1))
            logits = model.lm_head(hidden[:, -ids.shape[1] : -1][targets[:, 1:]])  # (answers, vocabulary)
        return method.answer_loss(training, batch, logits.float())

    with fast_attention(model):
        return fit(model, loss_of_step, recipe.schedule, progress=progress, name="stage 2")


def dialogue_rows(
    dialogues: list[list[world.Question]], encode: Callable[[str], tuple[int, ...]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dialogues after the image: ids (n, length), padded, and a mask (n, length) that is true on the answers."""
    rows, masks = [], []
    for dialogue in dialogues:
        pieces = []
        for i, question in enumerate(dialogue):
            before = (language.EOS, *encode("USER:")) if i else encode("\n")
            pieces.append((*before, *encode(f" {question.text}"), *encode(" ASSISTANT:")))
            pieces.append(encode(f" {question.answer}"))
        rows.append([token for piece in pieces for token in piece])
        masks.append([number % 2 for number, piece in enumerate(pieces) for _ in piece])  # every other is an answer
    return padded(rows), padded(masks, fill=0).bool()


def state_of(history: History) -> dict[str, Any]:
    """A history as JSON: the mean loss of the last 50 steps, a thinned curve, and the seconds."""
    losses, width = history.losses, max(1, len(history.losses) // 100)
    ends = range(width, len(losses) + 1, width)
    curve = [[end, round(sum(losses[end - width : end]) / width, 4)] for end in ends]
    return {"loss": history.final_loss, "curve": curve, "seconds": round(history.seconds, 1)}
