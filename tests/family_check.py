"""Measure a family end to end on a tiny random model, against truths that do not come from mirlib."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tiny_families import Case, PlaceholderMasks
from torch import Tensor

from mirlib import capture, score_batches
from mirlib.adapters import _ADAPTERS


@dataclass(frozen=True)
class Measured:
    """What was seen of a family.

    Attributes:
        layers: Number of decoder layers of the tiny model.
        vision_rows: Vision rows of a sample.
        kinds: The kinds of its layers, as its config names them.
        own_mask: Whether the model's own placeholder mask was there to compare with; if so it is the same.
        hidden_states: Whether the model returns its hidden states; if so each layer is the same.
        changed: Share of the vision rows that another picture changes before layer 1; the rest separate rows of
            patches, or are codes that stayed the same.
        causal: Whether the text before the picture stays the same when the picture changes.
        mir: MIR over two batches.
    """

    layers: int
    vision_rows: int
    kinds: str
    own_mask: bool
    hidden_states: bool
    changed: float
    causal: bool
    mir: float


def measure(model_type: str) -> Measured:
    """Build a tiny model of a family, read its rows, hold them to the model's own account of them, and score it.

    Args:
        model_type: The family.

    Raises:
        UndefinedMIRError: If MIR is undefined for the family.
        AssertionError: If mirlib's rows are not those of the model.
    """
    case = Case(model_type)
    model = case.model
    entering: list[Tensor] = []
    with torch.no_grad(), capture(model, last=case.family.last) as stream:
        parts = stream.parts
        case.find_tokens()
        inputs = case.inputs()
        before = parts.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        with PlaceholderMasks(model) as own:
            output = model(**inputs, output_hidden_states=True)
        vision, text = stream.vision, stream.text
        mask = stream.positions["vision"]
        samples = len(mask)
        assert mask.any(dim=1).all(), "a sample has no vision rows"
        if own.masks:
            assert torch.equal(own.masks[-1].expand_as(mask), mask), "the vision rows are not those of the model's mask"
        read = parts.read or (lambda hidden: hidden)
        states = getattr(output, "hidden_states", None)
        if states is not None and states[0].shape[:2] != mask.shape and mask.shape[0] == states[0].shape[0]:
            states = None  # those of a second decoder, which does not read the picture's rows
        if states is not None:
            assert len(states) == stream.num_layers + 1, f"{stream.num_layers} layers, {len(states) - 1} by the model"
            for k in range(stream.num_layers):
                difference = (read(states[k + 1])[mask] - vision[k]).abs().max()
                assert difference == 0, f"layer {k + 1} differs from the model's hidden states by {difference:.1e}"
        model(**inputs | case.pixels(samples, seed=99))
        before.remove()
        first, second = (read(hidden) for hidden in entering)
        changed = (first != second).any(dim=-1)
        assert not (changed & ~mask).any(), "the picture enters at rows that are not marked as vision"
        share = (changed & mask).sum().item() / mask.sum().item()
        assert share > 0.4, f"another picture changes only {share:.0%} of the vision rows"
        assert (stream.vision[0] != vision[0]).any(dim=-1).float().mean() >= share, "layer 1 forgets the picture"
        text_at = stream.positions["text"]
        after_picture = mask.cumsum(dim=1) > 0
        ahead = ~after_picture[text_at]
        # Not bit for bit: in a mixture of experts the picture decides which words are multiplied together.
        causal = bool(ahead.any()) and torch.allclose(stream.text[0][ahead], text[0][ahead], rtol=1e-5, atol=1e-6)
    result = score_batches(model, [case.inputs(seed=seed) for seed in range(2)], progress=False)
    assert math.isfinite(result.value) and len(result.per_layer) == len(parts.layers)
    return Measured(
        layers=len(parts.layers),
        vision_rows=int(mask.sum()) // samples,
        kinds=layer_kinds(model.config),
        own_mask=bool(own.masks),
        hidden_states=states is not None,
        changed=round(share, 2),
        causal=causal,
        mir=round(result.value, 4),
    )


def layer_kinds(config: Any) -> str:
    """The kinds of layers that a text config names, attention and feed-forward apart."""
    config = config.get_text_config()
    found = [dict.fromkeys(getattr(config, name, None) or ()) for name in ("layer_types", "mlp_layer_types")]
    kinds = [kind.removesuffix("_attention").replace("_", " ") for kinds in found for kind in kinds]
    return ", ".join(kinds)


def has_adapter(model_type: str) -> bool:
    """Whether a family is read through an adapter of mirlib."""
    return model_type in _ADAPTERS
