"""Training the miniature LLaVA from nothing, in three parts.

1. `train_encoder`: pictures and captions find each other (CLIP), then the encoder is frozen.
2. `train_language_model`: text only, in two phases; the second makes the model deeper and its documents denser.
3. `train_projector`: stage 1 of LLaVA. Encoder and language model stay frozen; a two-layer MLP learns to put vision
   tokens where the language model expects a scene in words.

All three share one loop, `fit`. What a step sees depends only on the seed and the step's number, so a run that is
killed and started again goes on exactly where its last checkpoint stood.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPModel, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mirlib.lab import language, models, world


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up, then a cosine down to a hundredth of the rate."""

    steps: int
    learning_rate: float
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step (the first is 0)."""
        warmup_steps = max(1, round(self.warmup * self.steps))
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class History:
    """What a training left behind: the loss of every step, and the seconds it took (over all its restarts)."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def final_loss(self) -> float:
        """Mean loss of the last 50 steps."""
        return float(np.mean(self.losses[-50:]))


def fit(
    module: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    every: int = 250,
    progress: bool = True,
    name: str = "",
) -> History:
    """Minimise a loss, and survive being killed.

    Args:
        module: What is trained: its parameters that require a gradient.
        loss_of_step: From the step's number to its loss. It must draw its batch from that number alone.
        schedule: Steps and learning rates.
        checkpoint: File that keeps the state; a run that finds one goes on from there.
        every: Steps between checkpoints.
        progress: Draw a progress bar on stderr.
        name: Label of the bar.

    Returns:
        The loss of every step and the time taken.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True
    )
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
            group["lr"] = schedule.rate(step)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        history.losses.append(loss.item())
        history.seconds = time.monotonic() - started
        bar.set_postfix(loss=f"{history.final_loss:.3f}", refresh=False)
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), **asdict(history)}
            _save_atomically(state, checkpoint)
    return history


def _save_atomically(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


# ---------------------------------------------------------------------------------------------------------------------
# 1. The vision encoder


@dataclass(frozen=True)
class EncoderRecipe:
    """Contrastive pre-training of the encoder.

    Attributes:
        groups: Independent scenes in a batch.
        group_size: Each with this many relatives that differ in one word: the hard negatives.
        label_weight: Weight of the multi-label loss beside the contrastive one.
    """

    schedule: Schedule = Schedule(steps=2000, learning_rate=1e-3, warmup=0.05, weight_decay=0.05)
    groups: int = 32
    group_size: int = 4
    label_weight: float = 1.0


def train_encoder(
    tokenizer: PreTrainedTokenizerFast,
    recipe: EncoderRecipe = EncoderRecipe(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[CLIPModel, History]:
    """Train a CLIP on scenes and their full captions.

    The contrastive loss alone can be met by noticing just enough. The multi-label head asks the patch tokens of each
    cell for the size, colour and shape in it, so that nothing a caption says is left unseen in the tokens that the
    projector will read.
    """
    clip = models.new_encoder(seed=seed)
    labels_per_cell = len(world.SIZES) + len(world.COLOURS) + len(world.SHAPES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        label_head = nn.Linear(clip.config.vision_config.hidden_size, labels_per_cell)
    trained = nn.ModuleDict({"clip": clip, "label_head": label_head})
    encode = language.segment_encoder(tokenizer)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 11, step])
        scenes = []
        for _ in range(recipe.groups):
            scenes.append(world.sample_scene(rng))
            scenes += [world.edit_scene(scenes[-1], rng) for _ in range(recipe.group_size - 1)]
        seen = clip.vision_model(models.pixel_values(scenes))
        image = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)  # (n, d)
        read = clip.text_model(input_ids=caption_ids(scenes, encode)).pooler_output
        text = F.normalize(clip.text_projection(read), dim=-1)  # (n, d)
        similarity = clip.logit_scale.exp().clamp(max=100) * image @ text.T  # (n, n)
        # Two scenes of a group may share a caption; both then count as right answers.
        captions = [world.caption(scene) for scene in scenes]
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
        same /= same.sum(dim=1, keepdim=True)
        contrastive = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
        labels = label_head(cell_means(seen.last_hidden_state[:, 1:])).flatten(1)  # (n, 4 cells x 13 labels)
        label_loss = F.binary_cross_entropy_with_logits(labels, multi_labels(scenes), reduction="sum")
        label_loss = label_loss / (len(scenes) * len(world.CELLS))
        return contrastive + recipe.label_weight * label_loss

    history = fit(trained, loss_of_step, recipe.schedule, checkpoint=checkpoint, progress=progress, name="encoder")
    return clip.eval(), history


def cell_means(patches: torch.Tensor) -> torch.Tensor:
    """The mean patch token of each cell: (n, 36, d) -> (n, 4, d)."""
    side = world.IMAGE_SIZE // models.PATCH_SIZE
    grid = patches.unflatten(1, (2, side // 2, 2, side // 2))  # rows of cells, patches down, columns, patches across
    return grid.mean(dim=(2, 4)).flatten(1, 2)


def caption_ids(scenes: list[world.Scene], encode: Callable[[str], tuple[int, ...]]) -> torch.Tensor:
    """Full captions as the text tower reads them, int64 (n, CAPTION_TOKENS), padded."""
    ids = np.full((len(scenes), models.CAPTION_TOKENS), language.PAD)
    for row, scene in zip(ids, scenes, strict=True):
        tokens = (language.BOS, *(i for t in scene.things for i in encode(f" {t.sentence}")), language.EOS)
        row[: len(tokens)] = tokens
    return torch.from_numpy(ids)


def multi_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """What is in each cell: float32 (n, 4 cells x 13 labels), 1 where a size, colour or shape is there."""
    columns = {word: i for i, word in enumerate((*world.SIZES, *world.COLOURS, *world.SHAPES))}
    target = torch.zeros(len(scenes), len(world.CELLS), len(columns))
    for row, scene in zip(target, scenes, strict=True):
        for thing in scene.things:
            row[world.CELLS.index(thing.cell), [columns[thing.size], columns[thing.colour], columns[thing.shape]]] = 1
    return target.flatten(1)


# ---------------------------------------------------------------------------------------------------------------------
# 2. The language model

_FIRST_WEIGHTS = {"scene": 0.2, "prompt": 0.2, "answer": 3.0, "description": 2.0}
_DENSE_WEIGHTS = {"scene": 0.05, "prompt": 0.05, "answer": 2.0, "description": 1.0}
_OVERSAMPLED = {
    "exist": 2.0,
    "colour": 2.0,
    "relation": 3.0,
    "count": 1.5,
    "size": 1.0,
    "shape_at": 1.0,
    "colour_at": 1.0,
}


@dataclass(frozen=True)
class LanguageRecipe:
    """Two phases of text-only training.

    Attributes:
        bfloat16: Multiply in bfloat16 (a quarter faster than float32 on CPUs that know it); weights stay float32.
        copy: Share of copy documents at the start and after `copy_steps` steps of the first phase.
        new_layers: Identity layers put in between the phases.
        short: Share of telegram-style questions at the start and at the end of the second phase.
    """

    layers: int = 5
    first: Schedule = Schedule(steps=3000, learning_rate=2e-3)
    first_mixture: language.Mixture = language.Mixture(role_weights=_FIRST_WEIGHTS)
    first_rows: tuple[int, int] = (32, 96)
    copy: tuple[float, float] = (0.30, 0.03)
    copy_steps: int = 1500
    new_layers: int = 3
    second: Schedule = Schedule(steps=2500, learning_rate=1e-3)
    second_mixture: language.Mixture = language.Mixture(
        questions=0.62, chat=0.12, description=0.1, news=0.03, arithmetic=0.02, listing=0.02, english=0.09,
        question_count=(12, 20), kind_weights=_OVERSAMPLED, role_weights=_DENSE_WEIGHTS,
    )  # fmt: skip
    second_rows: tuple[int, int] = (24, 112)
    short: tuple[float, float] = (0.75, 0.35)
    bfloat16: bool = True


def train_language_model(
    tokenizer: PreTrainedTokenizerFast,
    recipe: LanguageRecipe = LanguageRecipe(),
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> tuple[LlamaForCausalLM, tuple[History, History]]:
    """Train the language model on text alone.

    The first phase teaches it to look back: copy documents make the heads that find an earlier token again, and
    weighting the answers makes reading a scene worth more than guessing the next scene. The second phase starts from
    the same function with more layers (`models.insert_identity_layers`) and asks a dozen questions of each scene.
    """
    maker = language.RowMaker(tokenizer)

    def phase(
        number: int,
        model: LlamaForCausalLM,
        schedule: Schedule,
        shape: tuple[int, int],
        mixture_of_step: Callable[[int], language.Mixture],
    ) -> History:
        def loss_of_step(step: int) -> torch.Tensor:
            rng = np.random.default_rng([seed, 20 + number, step])
            rows = maker.rows(rng, mixture_of_step(step), batch=shape[0], length=shape[1])
            return weighted_loss(model, rows, bfloat16=recipe.bfloat16)

        checkpoint = None if checkpoints is None else checkpoints / f"language-{number}.pt"
        return fit(
            model, loss_of_step, schedule, checkpoint=checkpoint, progress=progress, name=f"language model {number}/2"
        )

    def first_mixture(step: int) -> language.Mixture:
        start, end = recipe.copy
        copy = start + (end - start) * min(1.0, step / recipe.copy_steps)
        return replace(recipe.first_mixture, copy=copy / (1 - copy))  # the other shares add up to 1

    def second_mixture(step: int) -> language.Mixture:
        start, end = recipe.short
        return replace(recipe.second_mixture, short=start + (end - start) * step / recipe.second.steps)

    model = models.new_language_model(layers=recipe.layers, seed=seed)
    first = phase(1, model, recipe.first, recipe.first_rows, first_mixture)
    model = models.insert_identity_layers(model, recipe.new_layers, seed=seed)
    second = phase(2, model, recipe.second, recipe.second_rows, second_mixture)
    return model.eval(), (first, second)


def weighted_loss(model: nn.Module, rows: language.Rows, *, bfloat16: bool = False) -> torch.Tensor:
    """Cross-entropy of the next token, each target weighted: sum(w * ce) / sum(w)."""
    ids, weights = torch.from_numpy(rows.ids), torch.from_numpy(rows.weights)[:, 1:]  # (rows, length)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        # Positions that fall back to 0 tell transformers to keep the documents of a row apart.
        output = model(input_ids=ids, position_ids=torch.from_numpy(rows.positions), use_cache=False)
    logits = output.logits[:, :-1].float()  # (rows, length - 1, vocabulary)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


# ---------------------------------------------------------------------------------------------------------------------
# 3. Stage 1: the projector


@dataclass(frozen=True)
class ProjectorRecipe:
    """Stage 1 of LLaVA: captions, projector only.

    Attributes:
        pairs: Number of picture-caption pairs.
        epochs: Times each is seen.
        detail: Kind of caption, see `mirlib.lab.world.caption`.
    """

    pairs: int = 16_384
    epochs: int = 1
    batch: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.03
    detail: str = "full"

    @property
    def schedule(self) -> Schedule:
        """Without weight decay, as LLaVA does it."""
        steps = self.epochs * (self.pairs // self.batch)
        return Schedule(steps=steps, learning_rate=self.learning_rate, warmup=self.warmup, weight_decay=0.0)


def stage_one_scenes(pairs: int, *, seed: int = 0) -> list[world.Scene]:
    """The scenes of stage 1; the first n of a larger set are the smaller set."""
    return [world.sample_scene(np.random.default_rng([seed, 31, i])) for i in range(pairs)]


def train_projector(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    recipe: ProjectorRecipe = ProjectorRecipe(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """Train the projector in place. The encoder's features never change, so they are computed once."""
    scenes = stage_one_scenes(recipe.pairs, seed=seed)
    features = vision_features(model, scenes, progress=progress)
    ids = caption_rows(scenes, language.segment_encoder(tokenizer), detail=recipe.detail)
    projector = model.model.multi_modal_projector
    model.requires_grad_(False)
    projector.requires_grad_(True)
    batches = recipe.pairs // recipe.batch

    def loss_of_step(step: int) -> torch.Tensor:
        epoch, position = divmod(step, batches)
        order = np.random.default_rng([seed, 32, epoch]).permutation(recipe.pairs)
        chosen = torch.from_numpy(order[position * recipe.batch : (position + 1) * recipe.batch])
        return caption_losses(model, ids[chosen], features[chosen].float())[0].mean()

    return fit(projector, loss_of_step, recipe.schedule, checkpoint=checkpoint, progress=progress, name="projector")


@torch.no_grad()
def vision_features(
    model: LlavaForConditionalGeneration, scenes: list[world.Scene], *, batch: int = 256, progress: bool = False
) -> torch.Tensor:
    """What the projector will read for each scene: float16 (n, 36, 96)."""
    features = []
    for start in tqdm(range(0, len(scenes), batch), desc="vision features", disable=not progress):
        pixels = models.pixel_values(scenes[start : start + batch])
        hidden_states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features.append(hidden_states[models.VISION_FEATURE_LAYER][:, 1:].half())  # without CLS
    return torch.cat(features)


def caption_rows(
    scenes: list[world.Scene], encode: Callable[[str], tuple[int, ...]], *, detail: str = "full"
) -> torch.Tensor:
    """Captions as the language model reads them after the image: line break, caption, ``</s>``; int64, padded."""
    rows = [[*encode("\n"), *encode(f" {world.caption(scene, detail)}"), language.EOS] for scene in scenes]
    ids = torch.full((len(rows), max(map(len, rows))), language.PAD)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def caption_losses(
    model: LlavaForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced reading of captions after ``<s>`` and the image.

    Args:
        model: The whole model; its projector is applied here.
        ids: Captions from `caption_rows`, (n, length).
        features: Vision features (n, 36, 96); None leaves the image out.

    Returns:
        The loss of every caption token, flat, without the line break and the padding; and the predicted ids
        (n, length - 1), of which entry (i, j) predicts ``ids[i, j + 1]``.
    """
    embed = model.get_input_embeddings()
    start = embed(torch.full((len(ids), 1), language.BOS))
    image = [] if features is None else [model.model.multi_modal_projector(features)]
    inputs = torch.cat([start, *image, embed(ids)], dim=1)  # (n, 1 + 36 + length, d)
    hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -ids.shape[1] : -1])  # (n, length - 1, vocabulary)
    targets = ids[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses[targets.flatten() != language.PAD], logits.argmax(dim=-1)
