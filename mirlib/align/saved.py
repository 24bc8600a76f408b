"""Checkpoints with a method of `mirlib.align` on them: what stands beside or among their weights is put on again.

A method that is saved with a model stands in a file of its own (``moca.safetensors``, ``norms.safetensors``,
``masks.safetensors``), which its ``save()`` writes, or among the weights, where ``save_pretrained`` and training
loops put the parameters of a model that has it attached. Without the method the model is another one, so
`mirlib.loading.load_model` looks for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mirlib.align import c3, masks, moca, norms
from mirlib.align.files import method_of
from mirlib.errors import MirlibError

__all__ = ["METHODS", "attached", "restore_saved"]


@dataclass(frozen=True)
class SavedMethod:
    """How a method is found with a checkpoint.

    Attributes:
        file: Its name beside the weights.
        load: From that file onto a model.
        is_attached: Whether a model has it.
        keys: What its parameters are called among the weights: groups ``place``, the module that they hang on, and
            ``name``. None if it has no parameters.
        restore: Puts such parameters on a model.
        settings: What else `restore` must know, from the place and the tensors.
        find: Its module on a model.
    """

    file: str
    load: Callable[[nn.Module, Path], Any]
    is_attached: Callable[[nn.Module], bool]
    keys: re.Pattern[str] | None = None
    restore: Callable[..., Any] | None = None
    settings: Callable[[str, dict[str, Tensor]], dict[str, Any]] = lambda place, tensors: {}
    find: Callable[[nn.Module], nn.Module] | None = None


METHODS = {
    "moca": SavedMethod(
        moca.FILE,
        moca.load,
        moca.is_attached,
        re.compile(rf"^(?P<place>.*)\.{moca.CHILD}\.(?P<name>[uv])$"),
        moca.restore,
        find=moca.find,
    ),
    "norms": SavedMethod(
        norms.FILE,
        norms.load,
        norms.is_attached,
        re.compile(rf"^(?P<place>.*)\.{norms.CHILD}\.(?P<name>\w+)$"),
        norms.restore,
        lambda place, tensors: {"kind": "matched" if "norm" in tensors else "layer_norm", "projector": place},
        find=norms.find,
    ),
    "c3": SavedMethod(
        c3.FILE,
        c3.load,
        c3.is_attached,
        re.compile(rf"^(?P<place>.*)\.{c3.CHILD}\.(?P<name>shift|noise)$"),
        c3.restore,
        find=c3.find,
    ),
    "masks": SavedMethod(masks.FILE, masks.load, masks.is_attached),
}
"""The methods that change what a model computes once it is trained, by name."""


def attached(model: nn.Module) -> list[str]:
    """Names of the `METHODS` that a model has."""
    return [name for name, method in METHODS.items() if method.is_attached(model)]


def restore_saved(model: nn.Module, checkpoint: str, unexpected: Iterable[str]) -> None:
    """Put on a model what was saved with it.

    Args:
        model: As transformers loaded it, changed in place.
        checkpoint: Where from: a folder, or a Hugging Face id.
        unexpected: Names of weights that transformers found and did not use.

    Raises:
        MirlibError: If a file is damaged, of another model, or of a method that is not known here; or if parameters
            stand beside the weights and among them and differ.
    """
    folder = Path(checkpoint)
    for path in sorted(folder.glob("*.safetensors")):
        if (known := method_of(path)) is not None and known not in METHODS:
            raise MirlibError(
                f"{path} belongs to the method {known[:80]!r}, which this version of mirlib does not know: install a "
                "newer one, or move the file away to measure the model without it"
            )
    for name, method in METHODS.items():
        among = [found for key in unexpected if method.keys and (found := method.keys.match(key))]
        beside = (folder / method.file).is_file()
        if beside:
            method.load(model, folder)
        if not among:
            continue
        tensors = _tensors(folder, method.keys)
        if not tensors:
            raise MirlibError(
                f"{checkpoint}: its weights hold parameters of mirlib.align.{name} ({among[0][0]}), which are read "
                f"from a local folder of safetensors alone; save them with mirlib.align.{name}.save()"
            )
        if not beside:
            settings = method.settings(among[0]["place"], tensors)
            method.restore(model, tensors, settings, f"{checkpoint}, {among[0]['place']}")
            continue
        own = method.find(model).state_dict()
        if own.keys() != tensors.keys() or not all(torch.equal(own[key].cpu(), tensors[key]) for key in own):
            raise MirlibError(
                f"{folder / method.file} and the weights beside it hold different parameters of mirlib.align.{name}: "
                "move the file away if those among the weights are right, or save both again"
            )


def _tensors(folder: Path, keys: re.Pattern[str]) -> dict[str, Tensor]:
    """A method's parameters among the weights; what stands in front of their names may differ from the model's."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {match["name"]: file.get_tensor(key) for key in file.keys() if (match := keys.match(key))}  # noqa: SIM118
    return found
