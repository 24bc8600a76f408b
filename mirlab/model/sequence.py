"""What the language model reads: words and image tokens, joined into one sequence of embeddings.

Training and evaluation hand the decoder embeddings, not ids, because the vision features of a frozen encoder are
computed once. `read` also says which of them are vision, for the methods of `mirlib.align` that treat those apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mirlib.align.masks import rows_are
from mirlib.align.vision_rows import vision_rows_are


@dataclass(frozen=True)
class Embedded:
    """Some of a sequence.

    Attributes:
        embeddings: (n, length, d), or (length, d) where all rows of a batch share it.
        vision: (length,) bool, true where vision stands; the same in all rows.
    """

    embeddings: Tensor
    vision: Tensor


def words(embeddings: Tensor) -> Embedded:
    """Embedded words, (n, length, d) or (length, d)."""
    return Embedded(embeddings, torch.zeros(embeddings.shape[-2], dtype=torch.bool))


def image(tokens: Tensor) -> Embedded:
    """What the connector made of pictures, (n, length, d) or (length, d)."""
    return Embedded(tokens, torch.ones(tokens.shape[-2], dtype=torch.bool))


def join(*pieces: Embedded) -> Embedded:
    """One piece behind the other; those that all rows share are repeated where others have rows."""
    rows = {len(piece.embeddings) for piece in pieces if piece.embeddings.ndim == 3}
    if len(rows) > 1:
        raise ValueError(f"the pieces have {', '.join(map(str, sorted(rows)))} rows; they must have as many")
    embeddings = [piece.embeddings for piece in pieces]
    if rows:
        (count,) = rows
        embeddings = [e if e.ndim == 3 else e.expand(count, -1, -1) for e in embeddings]
    return Embedded(torch.cat(embeddings, dim=-2), torch.cat([piece.vision for piece in pieces]))


def announced(model: LlavaForConditionalGeneration, sequence: Embedded) -> AbstractContextManager[None]:
    """Inside the ``with`` block, the methods on a model know where vision stands in a sequence (n, length, d)."""
    return vision_rows_are(model, sequence.vision.expand(sequence.embeddings.shape[:2]))


def read(
    model: LlavaForConditionalGeneration,
    *pieces: Embedded,
    answers_from: int | Tensor | None = None,
    attended: Tensor | None = None,
) -> Tensor:
    """The decoder's last hidden states (n, length, d) for a joined sequence; without a cache.

    Args:
        model: The whole model.
        pieces: What it reads.
        answers_from: Place in the last piece where the prompt ends and the answer, or the padding, begins: one for all
            rows, or (n,); None where all of it is prompt. An attention mask of `mirlib.align.masks` may ask for it.
        attended: (length,) bool, the places that may be attended to; all of them by default.
    """
    sequence = join(*pieces)
    count, length = sequence.embeddings.shape[:2]
    prompt = None
    if answers_from is not None:
        end = torch.as_tensor(answers_from).reshape(-1, 1) + length - pieces[-1].embeddings.shape[-2]
        prompt = (torch.arange(length) < end).expand(count, length)
    mask = None if attended is None else attended.long().expand(count, length)
    with announced(model, sequence), rows_are(model, prompt=prompt):
        return model.model.language_model(
            inputs_embeds=sequence.embeddings, attention_mask=mask, use_cache=False
        ).last_hidden_state
