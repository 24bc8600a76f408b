"""Parameters of a method stay in float32 in a model of half precision.

Next to 1, bfloat16 knows no number between 1 and 1.0078: a scale that starts at 1 and is kept in it would never move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Float32Module", "widened"]


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Float32Module(nn.Module):
    """A module whose own parameters and buffers are never coarser than float32.

    They follow the model from device to device, and to float64; ``model.bfloat16()``, ``model.half()`` and
    ``model.to(dtype)`` change its children alone.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> class Scale(Float32Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.scale, self.child = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)
        >>> [parameter.dtype for parameter in Scale().bfloat16().parameters()]
        [torch.float32, torch.bfloat16, torch.bfloat16]
    """

    def follow(self, module: nn.Module) -> Self:
        """Take over a module's device and mode, and its dtype where that is float32 or wider."""
        like = next((p for p in module.parameters() if p.is_floating_point()), None)
        placed = self if like is None else self.to(device=like.device, dtype=like.dtype)
        return placed.train(module.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if recurse:
            for child in self.children():
                child._apply(fn)

        def without_rounding(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            coarser = changed.is_floating_point() and torch.finfo(changed.dtype).bits < 32
            return tensor.to(changed.device) if coarser else changed

        return super()._apply(without_rounding, recurse=False)
