"""Files in which a method keeps what it adds to a model, beside the model's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mirlib.adapters import unwrap
from mirlib.errors import MirlibError, first_line

__all__ = ["base_of", "check_not_compiled", "method_of", "put", "read_file", "write_file"]


def write_file(path: Path, method: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    """Write tensors and settings of a method as safetensors; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt", "mirlib": method, "settings": json.dumps(settings)})
    return path


def read_file(path: Path, name: str, method: str) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """What `write_file` wrote.

    Args:
        path: The file, or the folder that holds it.
        name: Of the file in its folder.
        method: Whose file it must be.

    Returns:
        The file, its tensors and its settings.

    Raises:
        MirlibError: If there is no such file, it is damaged, or it is of another method.
    """
    path = path / name if path.is_dir() else path
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

    Raises:
        MirlibError: If names or shapes differ, or a value is not finite; the module is left as it was.
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
    """Refuse a model that is compiled, in whole or in part.

    Raises:
        MirlibError: Naming the method.
    """
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise MirlibError(
                f"{method}: the model is compiled, or a part of it is, and runs past hooks that are added now: attach "
                f"{method} first, and compile afterwards"
            )
