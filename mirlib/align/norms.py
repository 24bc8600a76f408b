r"""Norms for what a projector puts out: the simplest ways to bring vision tokens to the length of words.

`LayerNorm` is the proposal of arXiv:2512.08374: one LayerNorm behind the projector, whose gain starts at
:math:`T/\sqrt{d}`, so that a vision token starts with about the mean norm T of the text embeddings. Gain and bias learn
with the projector. `NormMatched` has nothing to learn: every vision token is rescaled to T, and stays there.

`attach` puts either behind the projector of a Hugging Face LVLM, as its child ``norm_of_text``: it is trained, moved,
copied and listed in the ``state_dict`` with it, and the names of the projector's own weights stay what they were.
`detach` takes it away. `save` and `load` keep it in a file beside the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mirlib.adapters import connector_names
from mirlib.align.files import base_of, check_not_compiled, put, read_file, write_file
from mirlib.align.precision import Float32Module, widened
from mirlib.errors import MirlibError

__all__ = ["FILE", "KINDS", "LayerNorm", "NormMatched", "attach", "detach", "find", "load", "save"]
__all__ += ["text_norm"]

FILE = "norms.safetensors"
"""Name of the file that `save` writes."""

CHILD = "norm_of_text"
"""Name that the norm has on the projector, and so before its weights in the ``state_dict``."""

_IDS_AT_ONCE = 4096


class _Behind:
    """What stands behind a projector, and acts on what that returns; a bound method, so that copies call their own."""

    _handle: Any = None

    def _hang(self, projector: nn.Module) -> None:
        projector.add_module(CHILD, self)
        if not isinstance(projector, nn.Sequential):  # which calls its last child anyway
            self._handle = projector.register_forward_hook(self._after, prepend=True)

    def _take_off(self, projector: nn.Module) -> None:
        if self._handle is not None:
            self._handle.remove()
        delattr(projector, CHILD)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self(output)


class NormMatched(_Behind, Float32Module):
    """Rescales every token to one norm.

    Args:
        dim: Width of a token, d; any width will do.
        norm: The norm, usually the mean norm of the text embeddings.
    """

    kind: ClassVar[str] = "matched"

    def __init__(self, dim: int, norm: float) -> None:
        super().__init__()
        self.register_buffer("norm", torch.tensor(norm))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., d) to the same, every row of length `norm`."""
        wide = widened(tokens)
        return (wide * (self.norm / wide.norm(dim=-1, keepdim=True).clamp(min=1e-6))).to(tokens.dtype)


class LayerNorm(_Behind, Float32Module, nn.LayerNorm):
    r"""The LayerNorm of arXiv:2512.08374.

    With its mean and variance a row of d numbers is brought to length :math:`\sqrt{d}`, and the gain makes that
    ``norm``. The paper speaks of the gain; the bias that every LayerNorm has starts at 0 here, and learns too. Both are
    float32 whatever the precision of the model.

    Args:
        dim: Width of a token, d.
        norm: Length that a token starts with, usually the mean norm of the text embeddings, T.
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
"""What `attach` knows: `LayerNorm` and `NormMatched`."""


@torch.no_grad()
def text_norm(model: nn.Module) -> float:
    """Mean norm of the text embeddings, T, over the vocabulary; 0 or more.

    The embedding layer is called, since some scale what their weight holds (Gemma by the root of its width).
    """
    embed = model.get_input_embeddings()
    ids = torch.arange(len(embed.weight), device=embed.weight.device)
    return torch.cat([embed(part).float().norm(dim=-1) for part in ids.split(_IDS_AT_ONCE)]).mean().item()


def attach(model: nn.Module, kind: str = "layer_norm", *, projector: str | None = None) -> LayerNorm | NormMatched:
    """Put a norm behind the projector of a model, in place.

    Args:
        model: A Hugging Face LVLM.
        kind: One of `KINDS`.
        projector: Dotted name of the module whose output are the vision tokens; None looks for the usual names.

    Returns:
        The norm.

    Raises:
        MirlibError: If the kind is unknown, no projector is found (or several are), there is a norm already, or the
            model is compiled.

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model).weight.shape
        torch.Size([128])
        >>> detach(model)
    """
    if kind not in KINDS:
        raise MirlibError(f"unknown kind of norm {kind!r}; choose one of {', '.join(KINDS)}")
    check_not_compiled(model, "align.norms")
    model = base_of(model)
    if is_attached(model):
        raise MirlibError("the projector has a norm already; detach() takes it away")
    name = _projector(model) if projector is None else projector
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise MirlibError(f"{type(model).__name__} has no module {name!r}: {error}") from error
    made = _CLASSES[kind](model.config.get_text_config().hidden_size, text_norm(model))
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None:
        made.to(device=like.device, dtype=like.dtype)
    made.train(module.training)
    made._hang(module)
    return made


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` put a norm on the model, or on the one that the model is a copy of."""
    return _place(base_of(model)) is not None


def find(model: nn.Module) -> LayerNorm | NormMatched:
    """The norm that `attach` put on a model, or on the model that it is a copy of.

    Raises:
        MirlibError: If there is none.
    """
    place = _place(base_of(model))
    if place is None:
        raise MirlibError("there is no norm behind the projector of this model; attach() puts one there")
    return base_of(model).get_submodule(place).get_submodule(CHILD)


def detach(model: nn.Module) -> None:
    """Take the norm away: the projector stands where it stood, as it was trained.

    Raises:
        MirlibError: If there is none.
    """
    model = base_of(model)
    find(model)._take_off(model.get_submodule(_place(model)))


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the norm to ``norms.safetensors`` in the folder that holds the model.

    ``model.save_pretrained`` writes it, too, beside the projector's own weights; but a model that is loaded from there
    by transformers has no norm yet: `load` puts it on, and so does ``mir score``.

    Returns:
        The file.

    Raises:
        MirlibError: If there is none.
    """
    made = find(model)
    settings = {"kind": made.kind, "projector": _place(base_of(model))}
    return write_file(Path(folder) / FILE, "norms", made.state_dict(), settings)


def load(model: nn.Module, folder: str | Path) -> LayerNorm | NormMatched:
    """Put the norm that `save` wrote on a model, in the place of one that it may have.

    Args:
        model: The model, changed in place.
        folder: The folder, or the file itself.

    Returns:
        The norm.

    Raises:
        MirlibError: If there is no such file, if it is damaged, or if it belongs to another model.
    """
    path, tensors, settings = read_file(Path(folder), FILE, "norms")
    return restore(model, tensors, settings, str(path))


def restore(
    model: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str
) -> LayerNorm | NormMatched:
    """Put a saved norm on a model; ``source`` is where it comes from, for messages."""
    if is_attached(model):
        detach(model)
    made = attach(model, settings.get("kind"), projector=settings.get("projector"))
    try:
        put(tensors, made, source)
    except MirlibError:
        detach(model)
        raise
    return made


def _place(model: nn.Module) -> str | None:
    """Name of the projector that has a norm."""
    found = (name for name, module in model.named_modules() if isinstance(module, _Behind))
    return next((name.rpartition(".")[0] for name in found), None)


def _projector(model: nn.Module) -> str:
    found = connector_names(model)
    if len(found) == 1:
        return found[0]
    there = f"several: {', '.join(found)}" if found else "none of the usual names"
    raise MirlibError(
        f"{type(model).__name__}: which module makes the vision tokens? Found {there}; say it with projector="
    )
