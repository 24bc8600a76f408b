"""Attention masks in the laboratory: one variant for stage 1, stage 2 and everything that is measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import LlavaForConditionalGeneration

from mirlab.methods.base import Technique
from mirlib.align import masks


@dataclass(frozen=True)
class AttentionMask(Technique, name="masks"):
    """Train and ask a model under an attention mask.

    The prompt of ``prefix`` is all that stands before the first learnt token: in stage 1 the image and the line break,
    in stage 2 the image and the first question (further questions about the same picture are causal), in an evaluation
    image and question. Where MIR is measured the given text counts as prompt, as it does in generation.

    Attributes:
        variant: One of `mirlib.align.masks.VARIANTS`.
    """

    variant: str = "vision_bidirectional"

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[nn.Parameter]:
        """Put the mask on; it brings no parameters."""
        masks.attach(model, self.variant)
        return []
