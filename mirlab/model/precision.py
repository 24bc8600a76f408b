"""The precision in which the laboratory multiplies: float32, which every CPU does alike, unless another is asked for.

bfloat16 is up to three times as fast on a CPU that has it, forty times as slow on one that has not (so it is refused
there), and its numbers differ from machine to machine. Weights and sums stay float32 either way.
"""

from __future__ import annotations

import hashlib
import timeit
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from mirlab import ledger
from mirlib.errors import MirlibError

PRECISIONS = ("float32", "bfloat16")

_current: ContextVar[str] = ContextVar("precision", default="float32")


def current() -> str:
    """The precision that is in use: one of `PRECISIONS`."""
    return _current.get()


def provenance() -> dict[str, Any]:
    """That of `mirlab.ledger`, and how was multiplied: ``precision`` and ``arithmetic``."""
    return {**ledger.provenance(), "precision": current(), "arithmetic": arithmetic()}


@contextmanager
def use(name: str) -> Iterator[None]:
    """Multiply in this precision inside the ``with`` block; refused if this CPU has no instructions for it."""
    if name not in PRECISIONS:
        raise MirlibError(f"unknown precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    if name == "bfloat16" and not native_bfloat16():
        raise MirlibError(
            "this CPU has no instructions for bfloat16, which would take many times as long as float32: leave "
            "precision (--precision) at float32"
        )
    before = _current.set(name)
    try:
        yield
    finally:
        _current.reset(before)


def multiplying() -> AbstractContextManager[None]:
    """Around a forward pass: autocast where bfloat16 is in use, and nothing where float32 is."""
    return torch.autocast("cpu", torch.bfloat16, enabled=current() == "bfloat16")


@cache
def arithmetic() -> str:
    """The kernels that this process multiplies with: the instructions PyTorch uses, and a fingerprint of products.

    Kernels add up in different orders. Where the fingerprints are equal, so are sums to the last bit.
    """
    digest = hashlib.sha256()
    for rows, inner, columns in ((75, 128, 344), (24, 344, 128), (512, 128, 2048)):  # as the miniature has them
        left = torch.arange(rows * inner, dtype=torch.float32).remainder(97).view(rows, inner) / 97 - 0.5
        right = torch.arange(inner * columns, dtype=torch.float32).remainder(89).view(inner, columns) / 89 - 0.5
        digest.update((left @ right).softmax(-1).numpy().tobytes())
    return f"{torch.backends.cpu.get_cpu_capability()} {digest.hexdigest()[:8]}"


@cache
def native_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 itself: whether a product takes no longer than twice that in float32.

    Measured, since libraries can be told to leave instructions out. Natively the ratio is about a half; else some 30.
    """

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 128, dtype=dtype), torch.ones(128, 256, dtype=dtype)
        return min(timeit.repeat(lambda: torch.mm(left, right), repeat=5, number=1))

    return seconds(torch.bfloat16) <= 2 * seconds(torch.float32)
