r"""Norms for what a projector puts out: the simplest ways to bring vision tokens to the length of words.

`ProjectorLayerNorm` is the proposal of arXiv:2512.08374: one LayerNorm behind the projector, whose gain starts at
:math:`T/\sqrt{d}`, so that a vision token starts with about the mean norm T of the text embeddings. Gain and bias learn
with the projector. `NormMatched` has nothing to learn: every vision token is rescaled to T, and stays there.

`attach` puts either behind the projector of a Hugging Face LVLM, `detach` takes it away.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.adapters import unwrap
from mirlib.align.precision import Float32Module, widened
from mirlib.errors import MirlibError

__all__ = ["KINDS", "PROJECTORS", "NormMatched", "ProjectorLayerNorm", "attach", "detach", "text_norm"]

KINDS = ("layer_norm", "matched")
"""What `attach` knows: `ProjectorLayerNorm` and `NormMatched`."""

PROJECTORS = ("multi_modal_projector", "mm_projector", "connector", "aligner", "merger", "embed_vision")
"""Names under which families keep the module that makes vision tokens out of features."""

_IDS_AT_ONCE = 4096


class NormMatched(Float32Module):
    """A connector whose every output token is rescaled to one norm.

    Args:
        connector: From (n, tokens, d_vision) to (n, tokens, d).
        norm: The norm, usually the mean norm of the text embeddings.
    """

    def __init__(self, connector: nn.Module, norm: float) -> None:
        super().__init__()
        self.connector = connector
        self.register_buffer("norm", torch.tensor(norm))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(n, tokens, d_vision) to (n, tokens, d), every row of length `norm`."""
        tokens = self.connector(*args, **kwargs)
        wide = widened(tokens)
        return (wide * (self.norm / wide.norm(dim=-1, keepdim=True).clamp(min=1e-6))).to(tokens.dtype)


class _LayerNorm(Float32Module, nn.LayerNorm):
    """That of PyTorch, in float32 at least."""


class ProjectorLayerNorm(nn.Module):
    r"""A connector with one LayerNorm behind it (arXiv:2512.08374).

    With its mean and variance a row of d numbers is brought to length :math:`\sqrt{d}`, and the gain makes that
    ``norm``. The paper speaks of the gain; the bias that every LayerNorm has starts at 0 here, and learns too. Both are
    float32 whatever the precision of the model.

    Args:
        connector: From (n, tokens, d_vision) to (n, tokens, d).
        dim: Width of a token, d.
        norm: Length that a token starts with, usually the mean norm of the text embeddings, T.
    """

    def __init__(self, connector: nn.Module, dim: int, norm: float) -> None:
        super().__init__()
        self.connector = connector
        self.layer_norm = _LayerNorm(dim)
        nn.init.constant_(self.layer_norm.weight, norm / math.sqrt(dim))
        like = next((p for p in connector.parameters() if p.is_floating_point()), None)
        if like is not None:
            self.layer_norm.to(device=like.device, dtype=like.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(n, tokens, d_vision) to (n, tokens, d); at the start every row has about length ``norm``."""
        tokens = self.connector(*args, **kwargs)
        return self.layer_norm(tokens.to(self.layer_norm.weight.dtype)).to(tokens.dtype)


@torch.no_grad()
def text_norm(model: nn.Module) -> float:
    """Mean norm of the text embeddings, T, over the vocabulary; 0 or more.

    The embedding layer is called, since some scale what their weight holds (Gemma by the root of its width).
    """
    embed = model.get_input_embeddings()
    ids = torch.arange(len(embed.weight), device=embed.weight.device)
    return torch.cat([embed(part).float().norm(dim=-1) for part in ids.split(_IDS_AT_ONCE)]).mean().item()


def attach(model: nn.Module, kind: str = "layer_norm", *, projector: str | None = None) -> nn.Module:
    """Put a norm behind the projector of a model, in place.

    The projector becomes the child ``connector`` of the new module, and so do its names in the ``state_dict``.

    Args:
        model: A Hugging Face LVLM.
        kind: One of `KINDS`.
        projector: Dotted name of the module whose output are the vision tokens; None looks for one of `PROJECTORS`.

    Returns:
        The new module.

    Raises:
        MirlibError: If the kind is unknown, no projector is found (or several are), or there is a norm already.
    """
    if kind not in KINDS:
        raise MirlibError(f"unknown kind of norm {kind!r}; choose one of {', '.join(KINDS)}")
    model = unwrap(model)
    if _places(model):
        raise MirlibError("the projector has a norm already; detach() takes it away")
    name = _projector(model) if projector is None else projector
    try:
        connector = model.get_submodule(name)
    except AttributeError as error:
        raise MirlibError(f"{type(model).__name__} has no module {name!r}: {error}") from error
    norm, dim = text_norm(model), model.config.get_text_config().hidden_size
    made = ProjectorLayerNorm(connector, dim, norm) if kind == "layer_norm" else NormMatched(connector, norm)
    made.train(connector.training)
    model.set_submodule(name, made)
    return made


def detach(model: nn.Module) -> None:
    """Take the norm away: the projector stands where it stood, as it was trained.

    Raises:
        MirlibError: If there is none.
    """
    model = unwrap(model)
    places = _places(model)
    if not places:
        raise MirlibError("there is no norm behind the projector of this model; attach() puts one there")
    for name in places:
        model.set_submodule(name, model.get_submodule(name).connector)


def _places(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, (NormMatched, ProjectorLayerNorm))]


def _projector(model: nn.Module) -> str:
    named = dict(model.named_modules())
    for known in PROJECTORS:
        found = [name for name in named if name.rpartition(".")[2] == known]
        if len(found) == 1:
            return found[0]
        if found:
            break
    there = f"several: {', '.join(found)}" if found else "none of the usual names"
    raise MirlibError(
        f"{type(model).__name__}: which module makes the vision tokens? Found {there}; say it with projector="
    )
