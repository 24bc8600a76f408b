"""Where vision stands in the sequence that a decoder is reading, for what has to treat its vision rows apart.

A layer sees hidden states alone, not the ids they came from: `VisionRows` hooks into the whole model, reads the ids of
each forward pass as `mirlib.capture` does, and keeps the mask for the layers. All hooks are bound methods of objects
that hang on the model, so that a `copy.deepcopy` of it has hooks of its own; a closure would serve the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.adapters import decoder_parts, unwrap
from mirlib.errors import MirlibError
from mirlib.hidden_states import token_masks

__all__ = ["VisionRows", "vision_rows_are"]

_ATTRIBUTE = "_mirlib_vision_rows"


class VisionRows:
    """Keeps the mask of the vision rows of the latest forward pass of a model.

    It keeps it beyond the pass, since gradient checkpointing reads the layers once more in the backward pass. A decoder
    that is called by itself afterwards, with as many rows and tokens, is taken to read the same sequence: announce what
    it reads with `vision_rows_are`. Use `VisionRows.of`, which gives every method on a model the same one, and
    `release` when the method comes off. ``mask`` is (B, T) bool, true where vision stands; None before the first pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.mask: Tensor | None = None
        self._users = 0
        parts = decoder_parts(model)
        self._vision_token_ids, self._asks_adapter = parts.vision_token_ids, parts.vision_mask is not None
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    @classmethod
    def of(cls, model: nn.Module) -> VisionRows:
        """The one that hangs on a model, made if there is none; each call is one user, see `release`."""
        model = unwrap(model)
        rows = getattr(model, _ATTRIBUTE, None)
        if rows is None:
            rows = cls(model)
            setattr(model, _ATTRIBUTE, rows)
        rows._users += 1
        return rows

    def release(self, model: nn.Module) -> None:
        """One user less; with the last one the hook is taken off the model."""
        self._users -= 1
        if self._users == 0:
            self._handle.remove()
            delattr(unwrap(model), _ATTRIBUTE)

    def of_sequence(self, hidden: Tensor) -> Tensor:
        """The mask (B, T) for hidden states (B, T, d) that a layer reads or returns, on their device."""
        if self.mask is None or self.mask.shape != hidden.shape[:2]:
            there = "nothing" if self.mask is None else f"a batch of shape {tuple(self.mask.shape)}"
            what = f"a layer reads a batch of shape {tuple(hidden.shape[:2])}, but {there} was announced"
            way = "say where vision stands with mirlib.align.vision_rows.vision_rows_are()"
            raise MirlibError(f"{what}: call the whole model with input_ids, or {way}")
        return self.mask.to(hidden.device)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(input_ids, Tensor):
            return  # inputs_embeds: the mask is that of vision_rows_are()
        given = None
        if self._asks_adapter:  # of this module, which may be a copy of the one that was hooked
            given = decoder_parts(module).vision_mask({**kwargs, "input_ids": input_ids})
        self.mask, _ = token_masks(input_ids, None, self._vision_token_ids, vision_mask=given)


@contextmanager
def vision_rows_are(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Say where vision stands, (B, T) bool, in the ``inputs_embeds`` of the forward passes inside the ``with`` block.

    The model is the whole one; without a method on it that asks, this does nothing.

    Examples:
        >>> import torch
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> embeddings = torch.zeros(1, 5, model.config.text_config.hidden_size)
        >>> with vision_rows_are(model, torch.tensor([[False, True, True, False, False]])):
        ...     _ = model.model.language_model(inputs_embeds=embeddings)
    """
    rows = getattr(unwrap(model), _ATTRIBUTE, None)
    if rows is None:
        yield
        return
    before, rows.mask = rows.mask, torch.as_tensor(mask, dtype=torch.bool)
    try:
        yield
    finally:
        rows.mask = before
