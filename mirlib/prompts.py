"""From an image and a text to the inputs of a model, and to the rows that hold the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mirlib.errors import MirlibError

__all__ = ["build_prompt", "encode_batch"]

TEMPLATES = ("chat", "plain")
_STAND_IN = "TheTextStandsHere"
_CHANGED = "the chat template changes the text, so its rows cannot be found; take template='plain' (--template plain)"


def image_token(processor: Any) -> str:
    """The string that stands for one image in the prompts of a processor."""
    token = getattr(processor, "image_token", None) or getattr(processor.tokenizer, "image_token", None)
    if token is None:
        raise MirlibError(f"{type(processor).__name__} names no image token; is it the processor of an LVLM?")
    return getattr(token, "content", token)


def build_prompt(processor: Any, text: str, template: str = "chat") -> str:
    """The prompt for one image and one text: the image as the user's turn, the text as the assistant's answer.

    Args:
        processor: A Hugging Face processor.
        text: The text.
        template: ``"chat"`` for the processor's chat template (``"plain"`` where it has none), or ``"plain"`` for the
            image, a line break and the text.

    Returns:
        The prompt, with one image placeholder and the text as it is.

    Raises:
        MirlibError: If the template is unknown or does not keep the text.
    """
    if template not in TEMPLATES:
        raise MirlibError(f"unknown template {template!r}; choose one of {', '.join(TEMPLATES)}")
    if template == "plain" or not getattr(processor, "chat_template", None):
        return f"{image_token(processor)}\n{text}"
    conversation = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]
    prompt = processor.apply_chat_template(conversation, tokenize=False)
    if text not in prompt:
        raise MirlibError(_CHANGED)
    return prompt


def shorten(processor: Any, text: str, max_tokens: int | None) -> str:
    """The text's first ``max_tokens`` tokens, stripped of white space around it."""
    text = text.strip()
    if max_tokens is None:
        return text
    if max_tokens < 1:
        raise MirlibError(f"max_text_tokens (--max-text-tokens) must be at least 1, got {max_tokens}")
    offsets = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[max_tokens - 1][1]].strip() if len(offsets) > max_tokens else text


def encode_batch(
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    template: str = "chat",
    max_text_tokens: int | None = None,
) -> dict[str, Any]:
    """Model inputs for a batch of image–text pairs, right-padded, with the positions of the text.

    Args:
        processor: A Hugging Face processor with a fast tokenizer.
        images: B PIL images.
        texts: B non-empty texts.
        template: See `build_prompt`.
        max_text_tokens: Cut each text after so many tokens.

    Returns:
        What the processor returns, as tensors, and ``"text_mask"``, (B, T) bool: the rows of the given texts alone,
        without template, special and padding rows.

    Raises:
        MirlibError: If the tokenizer gives no offsets or cannot pad, or a text holds a placeholder for vision.
    """
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise MirlibError(
            "finding the text's rows needs a fast tokenizer (offsets); load the processor with use_fast=True"
        )
    if len(texts) > 1 and tokenizer.pad_token is None:
        raise MirlibError(
            "the tokenizer has no padding token, so texts of unequal length cannot share a batch: set "
            "processor.tokenizer.pad_token, or take batch_size=1 (--batch-size 1)"
        )
    texts = [shorten(processor, text, max_text_tokens) for text in texts]
    for text in texts:
        for placeholder in _placeholders(processor):
            if placeholder in text:
                raise MirlibError(
                    f"the text {text[:40]!r}… holds the model's placeholder {placeholder!r}; leave it out"
                )
    before, after = build_prompt(processor, _STAND_IN, template).split(_STAND_IN)
    prompts = [build_prompt(processor, text, template) for text in texts]
    if any(prompt != before + text + after for prompt, text in zip(prompts, texts, strict=True)):
        raise MirlibError(_CHANGED)
    batch = dict(
        processor(
            images=list(images),
            text=prompts,
            padding=len(prompts) > 1,
            padding_side="right",
            return_offsets_mapping=True,
            return_tensors="pt",
        )
    )
    offsets = torch.as_tensor(batch.pop("offset_mapping"))  # (B, T, 2) character spans in the expanded prompt
    # Placeholders before the text were expanded. How far that moved the text shows at the end of the last token.
    unexpanded = tokenizer(prompts, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    last = torch.tensor([max(end for _, end in spans) for spans in unexpanded])
    starts = len(before) + offsets[:, :, 1].amax(dim=1) - last
    spans = torch.stack([starts, starts + torch.tensor([len(text) for text in texts])], dim=1)
    special = torch.isin(torch.as_tensor(batch["input_ids"]), torch.tensor(_special_ids(tokenizer), dtype=torch.long))
    batch["text_mask"] = _positions(offsets, spans) & ~special
    return batch


def _placeholders(processor: Any) -> list[str]:
    """The strings that stand for vision in a prompt."""
    video = getattr(processor, "video_token", None)
    return [image_token(processor), *([getattr(video, "content", video)] if video else [])]


def _special_ids(tokenizer: Any) -> list[int]:
    """Ids that are no text even where a text spells them out, such as ``</s>``; an unknown word is text."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return sorted((special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id} | ends)


def _positions(offsets: Tensor, spans: Tensor) -> Tensor:
    """(B, T) mask of the tokens from the first to the last whose characters overlap their sample's span.

    Some tokenizers leave white space out of the spans of their tokens, so that a token of mere white space has none.
    """
    starts, ends = offsets[..., 0], offsets[..., 1]
    overlap = (ends > starts) & (starts < spans[:, 1:]) & (ends > spans[:, :1])
    return (overlap.cumsum(dim=1) > 0) & (overlap.flip(1).cumsum(dim=1).flip(1) > 0)
