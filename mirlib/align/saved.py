"""Checkpoints with a method of `mirlib.align` on them: what stands beside or among their weights is put on again.

A method stands in a file of its own, which its ``save()`` writes, or among the weights, where ``save_pretrained`` puts
it. Without it the model is another one, so `mirlib.loading.load_model` looks for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mirlib.align import c3, masks, moca, norms
from mirlib.align.files import method_of
from mirlib.errors import MirlibError

__all__ = ["METHODS", "attached", "is_of_method", "restore_saved"]

METHODS: dict[str, Any] = {"moca": moca, "norms": norms, "c3": c3, "masks": masks}
"""The modules of the methods that change what a model computes once it is trained, by name."""

KEYS = {
    name: re.compile(rf"^(?P<place>.*)\.{METHODS[name].CHILD}\.(?P<name>{parameters})$")
    for name, parameters in (("moca", "[uv]"), ("norms", r"\w+"), ("c3", "shift|noise"))
}
"""What their parameters are called among the weights, and in front of that the module that they hang on."""


def attached(model: nn.Module) -> list[str]:
    """Names of the `METHODS` that a model has."""
    return [name for name, method in METHODS.items() if method.is_attached(model)]


def is_of_method(key: str) -> bool:
    """Whether a weight of this name is a parameter of one of the `METHODS`."""
    return any(form.match(key) for form in KEYS.values())


def restore_saved(model: nn.Module, checkpoint: str, unexpected: Iterable[str]) -> None:
    """Put on a model, as transformers loaded it, what was saved with it in a checkpoint, a folder or a Hugging Face id.

    ``unexpected`` are the names of weights that transformers found and did not use. Refused is a file that is damaged,
    of another model, or of a method that is not known here; and parameters beside the weights that differ from those
    among them.
    """
    folder = Path(checkpoint)
    for path in sorted(folder.glob("*.safetensors")):
        if (known := method_of(path)) is not None and known not in METHODS:
            what = f"{path} belongs to the method {known[:80]!r}, which this version of mirlib does not know"
            raise MirlibError(f"{what}: install a newer one, or move the file away to measure the model without it")
    for name, method in METHODS.items():
        among = [found for key in unexpected if name in KEYS and (found := KEYS[name].match(key))]
        beside = (folder / method.FILE).is_file()
        if beside:
            method.load(model, folder)
        if not among:
            continue
        place, tensors = among[0]["place"], _tensors(folder, KEYS[name])
        if not tensors:
            what = f"{checkpoint}: its weights hold parameters of mirlib.align.{name} ({among[0][0]})"
            way = f"from a local folder of safetensors alone; save them with mirlib.align.{name}.save()"
            raise MirlibError(f"{what}, which are read {way}")
        if not beside:
            kind = "matched" if "norm" in tensors else "layer_norm"
            settings = {"kind": kind, "projector": place} if name == "norms" else {}
            method.restore(model, tensors, settings, f"{checkpoint}, {place}")
            continue
        own = method.find(model).state_dict()
        if own.keys() != tensors.keys() or not all(torch.equal(own[key].cpu(), tensors[key]) for key in own):
            what = f"{folder / method.FILE} and the weights beside it hold different parameters of mirlib.align.{name}"
            raise MirlibError(f"{what}: move the file away if those among the weights are right, or save both again")


def _tensors(folder: Path, keys: re.Pattern[str]) -> dict[str, Tensor]:
    """A method's parameters among the weights; what stands in front of their names may differ from the model's."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {match["name"]: file.get_tensor(key) for key in file.keys() if (match := keys.match(key))}  # noqa: SIM118
    return found
