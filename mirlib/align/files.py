"""What the methods share that hang numbers on a model: to find them, to take them off, and to keep them in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mirlib.adapters import decoder_parts, unwrap
from mirlib.align.precision import Float32Module
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError, first_line

__all__ = ["Hooked", "Method", "base_of", "check_not_compiled", "method_of", "open_decoder", "put"]
__all__ += ["read_file", "write_file"]


@dataclass(frozen=True)
class Method:
    """A method whose numbers are those of one module that hangs on a model as a child.

    Attributes:
        name: Of its module in `mirlib.align`, and of its file.
        kinds: Classes of the module, each a `Hooked`.
        absent: What `find` says where there is none.
        attach: Puts one on a model as it starts, from what the file says besides the numbers.
        settings: That, of a model that has one.
    """

    name: str
    kinds: tuple[type[Hooked], ...]
    absent: str
    attach: Callable[[nn.Module, Mapping[str, Any]], Any]
    settings: Callable[[nn.Module], dict[str, Any]] = lambda model: {}

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.safetensors"

    def is_attached(self, model: nn.Module) -> bool:
        """Whether ``attach`` put it on the model, or on the one that the model is a copy of."""
        return any(isinstance(module, self.kinds) for module in model.modules())

    def find(self, model: nn.Module) -> Any:
        """What ``attach`` put on a model, or on the model that it is a copy of; refused where there is nothing."""
        found = next((module for module in model.modules() if isinstance(module, self.kinds)), None)
        if found is None:
            raise MirlibError(self.absent)
        return found

    def detach(self, model: nn.Module) -> None:
        """Take it off a model, which computes as before, with what else was trained; refused where there is nothing."""
        made, model = self.find(model), base_of(model)
        made.take_off(model)
        parent, child = place_of(model, made)
        delattr(model.get_submodule(parent), child)

    def save(self, model: nn.Module, folder: str | Path) -> Path:
        """Write its numbers to a file of its name in the folder that holds the model; refused where there are none.

        ``model.save_pretrained`` writes them, too, under the names that they have in the ``state_dict``; but a model
        that transformers loads from there is without the method: ``load`` puts it on again, and so does ``mir score``.
        """
        return write_file(folder, self.name, self.find(model).state_dict(), self.settings(model))

    def load(self, model: nn.Module, folder: str | Path) -> Any:
        """Put what ``save`` wrote to a folder, or that file, on a model that it fits, in place of what it may have."""
        path, tensors, settings = read_file(folder, self.name)
        return self.restore(model, tensors, settings, str(path))

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> Any:
        """Put saved numbers on a model; ``source`` is where they come from, for messages."""
        if self.is_attached(model) and self.settings(model) != settings:
            self.detach(model)
        there = self.is_attached(model)
        made = self.find(model) if there else self.attach(model, settings)
        try:
            put(tensors, made, source)
        except MirlibError:
            if not there:
                self.detach(model)
            raise
        return made


class Hooked(Float32Module):
    """One that acts through hooks, which are bound methods, so that copies of the model call their own."""

    _handles: Sequence[Any] = ()
    _rows: VisionRows | None = None

    def take_off(self, model: nn.Module) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if self._rows is not None:
            self._rows.release(model)


def place_of(model: nn.Module, module: nn.Module) -> tuple[str, str]:
    """Dotted name of the module that holds another, and the other's name in it."""
    name = next(name for name, each in model.named_modules() if each is module)
    return name.rpartition(".")[::2]


def parent_of(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module that holds another, lists of modules passed over."""
    while True:
        module = model.get_submodule(place_of(model, module)[0])
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            return module


def write_file(folder: str | Path, method: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    """Write tensors and settings of a method as safetensors of its name; folders are made as needed."""
    path = Path(folder) / f"{method}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt", "mirlib": method, "settings": json.dumps(settings)})
    return path


def read_file(place: str | Path, method: str) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """A method's file, its tensors and its settings, from its path or its folder; that of another is refused."""
    path = Path(place) / f"{method}.safetensors" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise MirlibError(f"no file {path}; mirlib.align.{method}.save() writes it")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
        settings = json.loads(metadata.get("settings", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise MirlibError(f"{path} cannot be read: {first_line(error)}. Save it again") from error
    if metadata.get("mirlib", method) != method or not isinstance(settings, dict):
        raise MirlibError(f"{path} was not written by mirlib.align.{method}.save()")
    return path, tensors, settings


def method_of(path: Path) -> str | None:
    """The method that wrote a file of safetensors; None for a file of anything else."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("mirlib")
    except (SafetensorError, OSError):
        return None


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Copy tensors into a module, which keeps its own dtype and device.

    Other names or shapes, and values that are not finite, are refused, and the module is left as it was.
    """
    own = module.state_dict(keep_vars=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != wanted:
        raise MirlibError(f"{source} holds {str(given)[:80]}, the model needs {wanted}: it belongs to another model")
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise MirlibError(f"{source}: {broken[0]} holds values that are not finite; save it again")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def base_of(model: nn.Module) -> nn.Module:
    """The model whose forward pass reads ``input_ids`` whichever wrapper is called: PEFT's `generate` skips its own."""
    model = unwrap(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_not_compiled(model: nn.Module, method: str) -> None:
    """Refuse a model that is compiled, in whole or in part; the message names the method."""
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            why = "the model is compiled, or a part of it is, and runs past hooks that are added now"
            raise MirlibError(f"{method}: {why}: attach {method} first, and compile afterwards")


def open_decoder(model: nn.Module, method: str, attached: bool) -> tuple[nn.Module, nn.Module, list[nn.Module]]:
    """The base of a model, its decoder and that one's layers, for a method of this name to hang hooks on.

    Refused are a model that has the method already, is compiled, or keeps several residual streams for each row.
    """
    check_not_compiled(model, method)
    if attached:
        raise MirlibError(f"{method} is attached to this model already; detach() takes it off")
    model = base_of(model)
    parts = decoder_parts(model)
    if parts.read is not None:
        why = f"the layers of {model.config.model_type} keep several residual streams for each row"
        raise MirlibError(f"{method}: {why}; only models with one can be changed")
    return model, parent_of(model, parts.layers[0]), list(parts.layers)
