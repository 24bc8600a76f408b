"""What the language model reads: words and image tokens, joined into one sequence of embeddings.

Training and evaluation hand the decoder embeddings, not ids, because the vision features of a frozen encoder are
computed once. `read` also says which of them are vision, for the methods of `mirlib.align` that treat those apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaModel
from transformers import LlavaForConditionalGeneration as Llava

from mirlib.align import masks
from mirlib.align.masks import rows_are
from mirlib.align.vision_rows import vision_rows_are

_CACHE = next(name for name in ("cache", "past_key_values") if name in signature(LlamaModel.forward).parameters)
"""What this release of transformers calls the argument."""


@dataclass(frozen=True)
class Embedded:
    """Some of a sequence."""

    embeddings: Tensor  # (n, length, d), or (length, d) where all rows of a batch share it
    vision: Tensor  # (length,) bool, true where vision stands; the same in all rows


def words(embeddings: Tensor) -> Embedded:
    """Embedded words, (n, length, d) or (length, d)."""
    return Embedded(embeddings, torch.zeros(embeddings.shape[-2], dtype=torch.bool))


def image(tokens: Tensor) -> Embedded:
    """What the connector made of pictures, (n, length, d) or (length, d)."""
    return Embedded(tokens, torch.ones(tokens.shape[-2], dtype=torch.bool))


def join(*pieces: Embedded) -> Embedded:
    """One piece behind the other; those that all rows share are repeated where others have rows."""
    embeddings = [piece.embeddings for piece in pieces]
    rows = {len(e) for e in embeddings if e.ndim == 3}
    if len(rows) > 1:
        raise ValueError(f"the pieces have {', '.join(map(str, sorted(rows)))} rows; they must have as many")
    for count in rows:
        embeddings = [e if e.ndim == 3 else e.expand(count, -1, -1) for e in embeddings]
    return Embedded(torch.cat(embeddings, dim=-2), torch.cat([piece.vision for piece in pieces]))


def announced(model: Llava, sequence: Embedded) -> AbstractContextManager[None]:
    """Inside the ``with`` block, the methods on a model know where vision stands in a sequence (n, length, d)."""
    return vision_rows_are(model, sequence.vision.expand(sequence.embeddings.shape[:2]))


def read(
    model: Llava,
    *pieces: Embedded,
    answers_from: int | Tensor | None = None,
    attended: Tensor | None = None,
    behind: Begun | None = None,
) -> Tensor:
    """The decoder's last hidden states (n, length, d) for a joined sequence.

    `answers_from` is the place in the last piece where the prompt ends and the answer, or the padding, begins: one for
    all rows, or (n,); None where all of it is prompt. Masks of `mirlib.align.masks` may ask for it. Of the places, only
    those `attended`, (length,) bool, may be attended to. `behind` is what stands before the pieces, see `begin`; its
    rows are not returned.
    """
    if behind is not None and behind.cache is None:
        read_again = read(model, *behind.pieces, *pieces, answers_from=answers_from, attended=attended)
        return read_again[:, -sum(piece.embeddings.shape[-2] for piece in pieces) :]
    sequence = join(*pieces)
    count, length = sequence.embeddings.shape[:2]
    prompt = None
    if answers_from is not None:
        end = torch.as_tensor(answers_from).reshape(-1, 1) + length - pieces[-1].embeddings.shape[-2]
        prompt = (torch.arange(length) < end).expand(count, length)
    options: dict[str, Any] = {"use_cache": False} if behind is None else {"use_cache": True, _CACHE: behind.cache}
    options["attention_mask"] = None if attended is None else attended.long().expand(count, length)
    with announced(model, sequence), rows_are(model, prompt=prompt):
        return model.model.language_model(inputs_embeds=sequence.embeddings, **options).last_hidden_state


@dataclass(frozen=True)
class Begun:
    """The beginning of sequences, read once for all that go on from it."""

    pieces: tuple[Embedded, ...]
    cache: DynamicCache | None  # keys and values; None where it has to be read again with what follows

    def rows(self, numbers: Tensor) -> Begun:
        """The beginnings of some rows, (n,) numbers from 0, which may repeat; to be gone on from once."""
        pieces = tuple(
            Embedded(p.embeddings[numbers] if p.embeddings.ndim == 3 else p.embeddings, p.vision) for p in self.pieces
        )
        if self.cache is None:
            return Begun(pieces, None)
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[numbers], layer.values[numbers], number)
        return Begun(pieces, cache)


def begin(model: Llava, *pieces: Embedded) -> Begun:
    """Read what many sequences begin with, such as a picture that is asked about several times; without a gradient.

    An attention mask of `mirlib.align.masks` may let the beginning see what follows, and what hooks into the decoder's
    input may hide some of the beginning from it (`mirlab.model.long_tokens.changed`), so then nothing is kept.
    """
    if masks.is_attached(model) or model.model.language_model._forward_pre_hooks:
        return Begun(pieces, None)
    sequence, cache = join(*pieces), DynamicCache()
    with torch.no_grad(), announced(model, sequence):
        model.model.language_model(inputs_embeds=sequence.embeddings, use_cache=True, **{_CACHE: cache})
    return Begun(pieces, cache)
