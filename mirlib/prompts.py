"""From an image and a text to the inputs of a model, and to the rows that hold the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mirlib.errors import MirlibError

__all__ = ["build_prompt", "encode_batch"]

TEMPLATES = ("chat", "plain")


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
        raise MirlibError("the chat template changes the text, so its rows cannot be found; take template='plain'")
    return prompt


def shorten(processor: Any, text: str, max_tokens: int | None) -> str:
    """The text's first ``max_tokens`` tokens, stripped of white space around it."""
    text = text.strip()
    if max_tokens is None:
        return text
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
        MirlibError: If the tokenizer gives no offsets or a text holds the image placeholder.
    """
    texts = [shorten(processor, text, max_text_tokens) for text in texts]
    placeholder = image_token(processor)
    for text in texts:
        if placeholder in text:
            raise MirlibError(
                f"the text {text[:40]!r}… holds the model's image placeholder {placeholder!r}; leave it out"
            )
    prompts = [build_prompt(processor, text, template) for text in texts]
    if not getattr(processor.tokenizer, "is_fast", False):
        raise MirlibError(
            "finding the text's rows needs a fast tokenizer (offsets); load the processor with use_fast=True"
        )
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
    spans = []
    for prompt, text, ends in zip(prompts, texts, offsets[:, :, 1], strict=True):
        # Placeholders before the text were expanded, so count from the end of the prompt.
        shift = int(ends.max()) - len(prompt)
        start = prompt.rindex(text) + shift
        spans.append((start, start + len(text)))
    batch["text_mask"] = _positions(offsets, torch.tensor(spans))
    return batch


def _positions(offsets: Tensor, spans: Tensor) -> Tensor:
    """(B, T) mask of the tokens whose characters overlap their sample's span; empty tokens never do."""
    starts, ends = offsets[..., 0], offsets[..., 1]
    return (ends > starts) & (starts < spans[:, 1:]) & (ends > spans[:, :1])
