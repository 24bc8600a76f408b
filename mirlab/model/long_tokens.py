"""Are a picture's longest vision tokens noise or signal? They are left out or given another length, beside controls.

Everything happens where the sequence enters the decoder, inside a ``with`` block. A token that is dropped keeps its
place and is hidden from attention: taken out, it would also move all that stand behind it to other positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration as Llava

from mirlab import world
from mirlab.model import train
from mirlab.model.miniature import PATCH_SIZE
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError
from mirlib.rows import TokenRows

SHARE = 0.25
"""Share of a picture's tokens that is chosen, 9 of 36."""

VARIANTS: dict[str, tuple[str, str]] = {
    "drop_long": ("long", "drop"),
    "drop_random": ("random", "drop"),
    "drop_short": ("short", "drop"),
    "rest_long": ("long", "rest"),
    "words_long": ("long", "words"),
    "words_all": ("all", "words"),
    "equal_all": ("all", "mean"),
}
"""Which tokens of a picture are chosen, by name, and what becomes of them; dropped, or rescaled to the mean length of
the picture's other tokens (``rest``), of the word embeddings (``words``) or of all the picture's tokens (``mean``)."""


def chosen(tokens: Tensor, which: str, generator: torch.Generator | None = None) -> Tensor:
    """(n, m) bool: the longest quarter of each picture's tokens (n, m, d), the shortest, as many at random, or all.

    Examples:
        >>> import torch
        >>> chosen(torch.tensor([[[3.0], [-9.0], [1.0], [2.0]]]), "long")
        tensor([[False,  True, False, False]])
    """
    lengths = tokens.float().norm(dim=-1)
    if which == "all":
        return torch.ones_like(lengths, dtype=torch.bool)
    if which == "random":
        lengths = torch.rand(lengths.shape, generator=generator).to(lengths.device)
    first = lengths.topk(round(SHARE * lengths.shape[1]), dim=1, largest=which != "short").indices
    return torch.zeros_like(lengths, dtype=torch.bool).scatter(1, first, True)


def rescaled(tokens: Tensor, some: Tensor, to: str, words: Tensor) -> Tensor:
    """Tokens (n, m, d) of which some, true in (n, m), have another length, see `VARIANTS`."""
    lengths = tokens.norm(dim=-1, keepdim=True)
    if to == "words":
        target = words.norm(dim=-1).mean()
    else:
        counted = ~some if to == "rest" else torch.ones_like(some)
        target = (lengths * counted[..., None]).sum(1, keepdim=True) / counted.sum(1)[:, None, None]
    return torch.where(some[..., None], tokens * (target / lengths), tokens)


@contextmanager
def changed(model: Llava, variant: str) -> Iterator[None]:
    """Inside the ``with`` block, the decoder reads pictures with some of their vision tokens changed.

    The model is called as a whole or through `mirlab.model.sequence.read`; a mask of `mirlib.align.masks` on it is
    refused. Random tokens are drawn anew for each sequence.
    """
    which, what = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)
    rows = VisionRows.of(model)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeddings, attended = kwargs["inputs_embeds"].clone(), kwargs.get("attention_mask")
        vision = rows.of_sequence(embeddings)
        tokens = embeddings[vision].unflatten(0, (len(embeddings), -1))
        some = chosen(tokens, which, generator)
        if what != "drop":
            words = model.get_input_embeddings().weight
            embeddings[vision] = rescaled(tokens, some, what, words).flatten(0, 1)
            return args, {**kwargs, "inputs_embeds": embeddings}
        if attended is None:
            attended = torch.ones_like(vision, dtype=torch.long)
        elif attended.ndim != 2:
            raise MirlibError("vision tokens cannot be dropped while another mask is on the model: take it off")
        dropped = torch.zeros_like(vision).masked_scatter(vision, some)
        embeddings[dropped] = 0  # which none attends to; `without_dropped` knows them by it
        return args, {**kwargs, "inputs_embeds": embeddings, "attention_mask": attended * ~dropped}

    hook = model.model.language_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        rows.release(model)


def without_dropped(rows: TokenRows) -> TokenRows:
    """Rows that were collected inside `changed`, without those of dropped tokens."""
    kept = rows.vision_embeddings.any(dim=1)
    of_samples = {"vision_samples": rows.vision_samples[kept], "vision_embeddings": rows.vision_embeddings[kept]}
    return replace(rows, vision=[layer[kept] for layer in rows.vision], **of_samples)


@torch.no_grad()
def places(model: Llava, scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Where the longest tokens of pictures stand, and how long they are.

    Of the longest, the shortest and all tokens (``long``, ``short``, ``all``) ``WHICH_on_thing`` is the share whose
    patch shows some of a thing, ``WHICH_in_cell`` that in a cell with a thing, ``WHICH_length`` (not of all) the mean
    length over that of all.
    """
    tokens = model.model.multi_modal_projector(train.vision_features(model, list(scenes)).float())
    lengths = tokens.norm(dim=-1)
    on_thing, in_cell = (torch.from_numpy(mask) for mask in patches_with_things(scenes))
    found = {}
    for which in ("long", "short", "all"):
        some = chosen(tokens, which)
        found[f"{which}_on_thing"] = on_thing[some].float().mean().item()
        found[f"{which}_in_cell"] = in_cell[some].float().mean().item()
        if which != "all":
            found[f"{which}_length"] = (lengths[some].mean() / lengths.mean()).item()
    return found


def patches_with_things(scenes: Sequence[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 36) bool twice: patches that show some of a thing, and patches in a cell that has one.

    A patch shows a thing where its pixels are not those of the same picture without any.
    """
    pixels = world.render_batch(scenes) != world.render_batch(replace(scene, things=()) for scene in scenes)
    side = world.IMAGE_SIZE // PATCH_SIZE
    shown = pixels.any(-1).reshape(len(scenes), side, PATCH_SIZE, side, PATCH_SIZE).any((2, 4))
    cells = np.array([[any(t.cell == cell for t in scene.things) for cell in world.CELLS] for scene in scenes])
    cells = cells.reshape(len(scenes), 2, 2).repeat(side // 2, axis=1).repeat(side // 2, axis=2)
    return shown.reshape(len(scenes), -1), cells.reshape(len(scenes), -1)
