"""The two parts of the miniature before they meet: a vision encoder and a language model, each trained from nothing.

1. `train_encoder`: pictures and captions find each other (CLIP), then the encoder is frozen.
2. `train_language_model`: text only, in three phases; the second makes the model deeper and its documents denser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import world
from mirlab.model import cells, miniature, precision
from mirlab.model.train import History, fit, padded
from mirlab.recipes import Schedule
from mirlab.world import language


# -------------------- 1. The vision encoder
@dataclass(frozen=True)
class EncoderRecipe:
    """Contrastive pre-training of the encoder."""

    schedule: Schedule = Schedule(steps=3000, learning_rate=1e-3, warmup=0.05, weight_decay=0.05)
    groups: int = 32  # independent scenes in a batch,
    group_size: int = 4  # each with relatives that differ in one word (the hard negatives), so many in all
    label_weight: float = 1.0  # of the label loss beside the contrastive one
    digits: float = 0.5  # share of scenes with digits; handwriting takes longer to learn than shapes


def train_encoder(
    tokenizer: Tokenizer,
    recipe: EncoderRecipe = EncoderRecipe(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[CLIPModel, History]:
    """Train a CLIP on scenes and their full captions.

    The contrastive loss alone can be met by noticing just enough. So a label head asks the patch tokens of each cell
    for the size, colour and shape in it, or that nothing is there.
    """
    clip = miniature.new_encoder(seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        label_head = nn.Linear(clip.config.vision_config.hidden_size, sum(map(len, cells.LABELS.values())))
    trained = nn.ModuleDict({"clip": clip, "label_head": label_head})
    encode = language.segment_encoder(tokenizer)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 11, step])
        scenes = []
        for _ in range(recipe.groups):
            scenes.append(world.sample_scene(rng, digits=recipe.digits))
            scenes += [world.edit_scene(scenes[-1], rng) for _ in range(recipe.group_size - 1)]
        with precision.multiplying():
            seen = clip.vision_model(miniature.pixel_values(scenes))
            image = clip.visual_projection(seen.pooler_output)
            text = clip.text_projection(clip.text_model(input_ids=caption_ids(scenes, encode)).pooler_output)
            told = label_head(cells.cell_means(seen.last_hidden_state[:, 1:]))  # (n, 4 cells, 26)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)  # (n, d)
        similarity = clip.logit_scale.exp().clamp(max=100) * image @ text.T  # (n, n)
        # Two scenes of a group may share a caption; both then count as right answers.
        captions = [world.caption(scene) for scene in scenes]
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
        same /= same.sum(dim=1, keepdim=True)
        contrastive = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
        label_loss = sum(
            F.cross_entropy(logits.flatten(0, 1), truth.flatten())
            for logits, truth in zip(cells.split_labels(told), cells.cell_labels(scenes).unbind(-1), strict=True)
        )
        return contrastive + recipe.label_weight * label_loss

    history = fit(trained, loss_of_step, recipe.schedule, checkpoint=checkpoint, progress=progress, name="encoder")
    return clip.eval(), history


def caption_ids(scenes: list[world.Scene], encode: Callable[[str], tuple[int, ...]]) -> torch.Tensor:
    """Full captions as the text tower reads them, int64 (n, CAPTION_TOKENS), padded."""
    told = [[i for t in scene.things for i in encode(f" {t.sentence}")] for scene in scenes]
    return padded([[language.BOS, *ids, language.EOS] for ids in told], length=miniature.CAPTION_TOKENS)


# -------------------- 2. The language model
_FIRST_WEIGHTS = {"scene": 0.2, "prompt": 0.2, "answer": 3.0, "description": 2.0}
_DENSE_WEIGHTS = {"scene": 0.05, "prompt": 0.05, "answer": 2.0, "description": 1.0}
_OVERSAMPLED = {"exist": 3.0, "colour": 1.5, "relation": 3.0, "count": 3.0}
_OVERSAMPLED |= {"size": 1.0, "where": 1.5, "shape_at": 1.0, "colour_at": 1.0}


@dataclass(frozen=True)
class LanguageRecipe:
    """Three phases of text-only training; the third is the second once more, from its highest rate."""

    dim: int = 128  # width of the residual stream
    layers: int = 5
    first: Schedule = Schedule(steps=2000, learning_rate=2e-3)
    first_mixture: language.Mixture = language.Mixture(role_weights=_FIRST_WEIGHTS)
    first_rows: tuple[int, int] = (32, 96)
    copy: tuple[float, float] = (0.30, 0.03)  # share of copy documents at the start of the first phase, and after
    copy_steps: int = 1500
    new_layers: int = 3  # identity layers put in after the first phase
    second: Schedule = Schedule(steps=2500, learning_rate=1e-3)
    second_mixture: language.Mixture = language.Mixture(
        questions=0.52, chat=0.12, description=0.08, lookup=0.12, news=0.03, arithmetic=0.02, listing=0.02,
        topics=0.05, docstrings=0.02, code=0.02,
        question_count=(12, 20), kind_weights=_OVERSAMPLED, role_weights=_DENSE_WEIGHTS,
    )  # fmt: skip
    second_rows: tuple[int, int] = (24, 112)
    short: tuple[float, float] = (0.75, 0.35)  # share of telegram-style questions at start and end of the second phase
    third: Schedule = Schedule(steps=1500, learning_rate=1e-3)


def train_language_model(
    tokenizer: Tokenizer,
    recipe: LanguageRecipe = LanguageRecipe(),
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> tuple[LlamaForCausalLM, tuple[History, History, History]]:
    """Train the language model on text alone.

    The first phase teaches it to look back: copy documents make the heads that find an earlier token again. The second
    starts from the same function with more layers and asks a dozen questions of each scene. Some kinds of question are
    learned in a leap, which its falling rate can forestall; the third goes on from its end with the rate high again.
    """
    maker = language.RowMaker(tokenizer)

    def mixture(number: int, step: int) -> language.Mixture:
        if number == 1:
            start, end = recipe.copy
            copy = start + (end - start) * min(1.0, step / recipe.copy_steps)
            return replace(recipe.first_mixture, copy=copy / (1 - copy))  # the other shares add up to 1
        start, end = recipe.short
        short = start + (end - start) * step / recipe.second.steps if number == 2 else end
        return replace(recipe.second_mixture, short=short)

    def phase(number: int, model: LlamaForCausalLM, schedule: Schedule, shape: tuple[int, int]) -> History:
        def loss_of_step(step: int) -> torch.Tensor:
            rng = np.random.default_rng([seed, 20 + number, step])
            return weighted_loss(model, maker.rows(rng, mixture(number, step), batch=shape[0], length=shape[1]))

        checkpoint = None if checkpoints is None else checkpoints / f"language-{number}.pt"
        name = f"language model {number}/3"
        return fit(model, loss_of_step, schedule, checkpoint=checkpoint, progress=progress, name=name)

    model = miniature.new_language_model(dim=recipe.dim, layers=recipe.layers, seed=seed)
    first = phase(1, model, recipe.first, recipe.first_rows)
    model = miniature.insert_identity_layers(model, recipe.new_layers, seed=seed)
    second = phase(2, model, recipe.second, recipe.second_rows)
    third = phase(3, model, recipe.third, recipe.second_rows)
    return model.eval(), (first, second, third)


def weighted_loss(model: nn.Module, rows: language.Rows) -> torch.Tensor:
    """Cross-entropy of the next token, each target weighted: sum(w * ce) / sum(w)."""
    ids, weights = torch.from_numpy(rows.ids), torch.from_numpy(rows.weights)[:, 1:]  # (rows, length)
    with precision.multiplying():
        # Positions that fall back to 0 tell transformers to keep the documents of a row apart.
        output = model(input_ids=ids, position_ids=torch.from_numpy(rows.positions), use_cache=False)
    logits = output.logits[:, :-1].float()  # (rows, length - 1, vocabulary)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
