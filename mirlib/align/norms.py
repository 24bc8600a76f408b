r"""Norms for what a projector puts out: the simplest ways to bring vision tokens to the length of words.

`LayerNorm` is the proposal of arXiv:2512.08374: one LayerNorm behind the projector, whose gain starts at
:math:`T/\sqrt{d}`, so that a vision token starts with about the mean norm T of the text embeddings; gain and bias learn
with the projector. `NormMatched` has nothing to learn: every vision token is rescaled to T, and stays there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mirlib.adapters import connector_names
from mirlib.align.files import Hooked, Method, base_of, check_not_compiled, place_of
from mirlib.align.precision import widened
from mirlib.errors import MirlibError, check_choice

__all__ = ["FILE", "KINDS", "LayerNorm", "NormMatched", "attach", "detach", "find", "load", "save", "text_norm"]

CHILD = "norm_of_text"  # its name on the projector, and so before its weights in the state_dict
_IDS_AT_ONCE = 4096


class _Behind(Hooked):
    """What stands behind a projector, and acts on what that returns."""

    def hang(self, projector: nn.Module) -> None:
        """Become the projector's child, and put the hook on."""
        projector.add_module(CHILD, self)
        if not isinstance(projector, nn.Sequential):  # which calls its last child anyway
            self._handles = [projector.register_forward_hook(self._after, prepend=True)]

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self(output)


class NormMatched(_Behind):
    """Rescales every token, of any width, to one norm, usually the mean norm of the text embeddings."""

    kind: ClassVar[str] = "matched"

    def __init__(self, dim: int, norm: float) -> None:
        super().__init__()
        self.register_buffer("norm", torch.tensor(norm))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., d) to the same, every row of length `norm`."""
        wide = widened(tokens)
        return (wide * (self.norm / wide.norm(dim=-1, keepdim=True).clamp(min=1e-6))).to(tokens.dtype)


class LayerNorm(_Behind, nn.LayerNorm):
    r"""The LayerNorm of arXiv:2512.08374.

    With its mean and variance a row of d numbers is brought to length :math:`\sqrt{d}`, and the gain makes that
    ``norm``. The paper speaks of the gain; the bias that every LayerNorm has starts at 0 here, and learns too. Both are
    float32 whatever the precision of the model.
    """

    kind: ClassVar[str] = "layer_norm"

    def __init__(self, dim: int, norm: float) -> None:
        super().__init__(dim)
        nn.init.constant_(self.weight, norm / math.sqrt(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., d) to the same; at the start every row has about length ``norm``."""
        return super().forward(tokens.to(self.weight.dtype)).to(tokens.dtype)


_CLASSES = {each.kind: each for each in (LayerNorm, NormMatched)}
KINDS = tuple(_CLASSES)
"""What `attach` knows, `LayerNorm` and `NormMatched`."""


@torch.no_grad()
def text_norm(model: nn.Module) -> float:
    """Mean norm of the text embeddings, T, over the vocabulary; 0 or more.

    The embedding layer is called, since some scale what their weight holds (Gemma by the root of its width).
    """
    embed = model.get_input_embeddings()
    ids = torch.arange(len(embed.weight), device=embed.weight.device)
    return torch.cat([embed(part).float().norm(dim=-1) for part in ids.split(_IDS_AT_ONCE)]).mean().item()


def attach(model: nn.Module, kind: str = "layer_norm", *, projector: str | None = None) -> LayerNorm | NormMatched:
    """Put a norm, one of `KINDS`, behind the projector of a Hugging Face LVLM, in place.

    It is the projector's child ``norm_of_text``: trained, moved, copied and listed in the ``state_dict`` with it, while
    the names of the projector's own weights stay what they were. ``projector`` is the dotted name of the module whose
    output are the vision tokens; None looks for the usual names. None or several found, a norm that is there already,
    and a model that is compiled are refused.

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model).weight.shape
        torch.Size([128])
        >>> detach(model)
    """
    check_choice("kind of norm", kind, KINDS)
    check_not_compiled(model, "align.norms")
    model = base_of(model)
    if is_attached(model):
        raise MirlibError("the projector has a norm already; detach() takes it away")
    found = connector_names(model) if projector is None else [projector]
    if len(found) != 1:
        there = f"several: {', '.join(found)}" if found else "none of the usual names"
        question = f"{type(model).__name__}: which module makes the vision tokens?"
        raise MirlibError(f"{question} Found {there}; say it with projector=")
    name = found[0]
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise MirlibError(f"{type(model).__name__} has no module {name!r}: {error}") from error
    made = _CLASSES[kind](model.config.get_text_config().hidden_size, text_norm(model))
    made.follow(module).hang(module)
    return made


def _settings(model: nn.Module) -> dict[str, Any]:
    made, model = find(model), base_of(model)
    return {"kind": made.kind, "projector": place_of(model, made)[0]}


_METHOD = Method(
    "norms",
    tuple(_CLASSES.values()),
    "there is no norm behind the projector of this model; attach() puts one there",
    lambda model, settings: attach(model, settings.get("kind"), projector=settings.get("projector")),
    _settings,
)
FILE = _METHOD.file
is_attached, find, detach = _METHOD.is_attached, _METHOD.find, _METHOD.detach
save, load, restore = _METHOD.save, _METHOD.load, _METHOD.restore
