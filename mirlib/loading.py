"""A model and its processor from a checkpoint, in the precision and on the devices that were asked for."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirlib.errors import MirlibError, first_line

__all__ = ["load_model"]


def check_name(name: str, otherwise: str = "") -> None:
    """Refuse what can be neither a checkpoint folder nor a Hugging Face id.

    Args:
        name: Folder or id.
        otherwise: What to say of other ways behind "no such folder".

    Raises:
        MirlibError: If the folder does not exist, holds no configuration, or holds an adapter alone, a projector alone
            or a checkpoint of LLaVA's own code; the message says what to do.
    """
    folder = Path(name)
    if folder.is_dir() and (advice := _what_else_it_is(folder)):
        raise MirlibError(f"{name}: {advice}")
    if folder.exists() and not (folder / "config.json").is_file():
        raise MirlibError(f"{name}: no config.json there, so it is no checkpoint folder")
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise MirlibError(f"no such folder: {name}{otherwise}")


def _what_else_it_is(folder: Path) -> str | None:
    """What to do with a folder of training that is no whole checkpoint of transformers; None if it may be one."""
    whole = any(any(folder.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))
    if not whole and (folder / "adapter_config.json").is_file():
        return (
            "an adapter alone (LoRA, PEFT), without the model that it belongs to; load both in Python "
            "(peft.PeftModel.from_pretrained) and call mirlib.score(model, processor, ...), or merge them and save the "
            "whole (merge_and_unload, save_pretrained)"
        )
    if not whole and any(folder.glob("*projector*")):
        return (
            "a projector alone, without its vision encoder and language model; put the three together in your training "
            "code, and convert them or call mirlib.score_batches there"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(config, dict) and "mm_vision_tower" in config and "auto_map" not in config:
        return (
            f"a checkpoint of LLaVA's own code (model_type {config.get('model_type')}), which transformers cannot "
            "load; convert it with convert_llava_weights_to_hf.py, in src/transformers/models/llava of its repository"
        )
    return None


def load_model(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    device_map: str | None = None,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """A Hugging Face image-text-to-text model in evaluation mode, and its processor.

    Methods of `mirlib.align` that were saved with the model are on it, see `mirlib.align.saved`.

    Args:
        name: Hugging Face id or local folder.
        device: Where the model goes, unless ``device_map`` says where.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: the checkpoint's, but float32 on a CPU.
        device_map: ``"auto"``, or what else transformers takes: spreads the layers over devices. Needs accelerate.
        load_in_4bit: Whether to hold the weights of the linear layers in 4 bits (NF4, scales in 8 bits), computing in
            bfloat16. Needs bitsandbytes and accelerate. MIR then is that of the rounded model. On a CPU bitsandbytes
            may refuse layers whose inputs are not a multiple of 64 wide.
        trust_remote_code: Let the checkpoint bring its own code.
        allow_pickle: Load weights that are not safetensors.

    Returns:
        ``(model, processor)``.

    Raises:
        MirlibError: If the checkpoint is missing, damaged, incomplete, or stored in a way that was not allowed, or a
            package is missing that the options need.
    """
    for option, needed, packages in (
        ("--load-in-4bit (load_in_4bit)", load_in_4bit, ("bitsandbytes", "accelerate")),
        ("--device-map (device_map)", device_map, ("accelerate",)),
    ):
        missing = [package for package in packages if needed and find_spec(package) is None]
        if missing:
            raise MirlibError(f"{option} needs the package {missing[0]}: pip install {missing[0]}")
    if load_in_4bit and dtype == "float32":
        raise MirlibError("4-bit weights are computed with in bfloat16 or float16; leave --dtype float32 out")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mirlib.align.saved import restore_saved

    check_name(name)
    options: dict[str, Any] = {"dtype": dtype}
    if dtype == "auto" and device == "cpu" and not load_in_4bit:
        options["dtype"] = "float32"
    if load_in_4bit:
        options |= _four_bits(dtype, device_map or {"": device})
    elif device_map:
        options["device_map"] = device_map
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **options,
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # what transformers and safetensors raise for a bad folder has no common class
        raise MirlibError(loading_advice(name, error)) from error
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        broken = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise MirlibError(
            f"{name}: the checkpoint is incomplete, {len(broken)} weights are missing or of another shape, first "
            f"{broken[0]}; they would be random"
        )
    restore_saved(model, name, report["unexpected_keys"])
    return (model if "device_map" in options else model.to(device)).eval(), processor


def _four_bits(dtype: str, device_map: Any) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": config, "dtype": compute, "device_map": device_map}


def loading_advice(name: str, error: Exception) -> str:
    """What to do about an error of transformers while it loads ``name``."""
    first = first_line(error)
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            return (
                f"{name}: its weights are pickle files, which can run code when they are opened; convert them to "
                "safetensors, or pass --allow-pickle if you trust them"
            )
        return f"{name}: there are no weights in the folder (*.safetensors)"
    if "ignore_mismatched_sizes" in str(error):
        return f"{name}: a weight has another shape than config.json says; the two do not belong together"
    if type(error).__name__ == "SafetensorError":
        return f"{name}: the weights are damaged ({first}); copy or download them again"
    if "trust_remote_code" in str(error):
        return f"{name}: the checkpoint brings its own code; pass --trust-remote-code if you trust it"
    if "Unrecognized configuration class" in str(error):
        return f"{name}: transformers knows no image-text-to-text model of this type, so MIR cannot be measured"
    return f"{name}: cannot load the model or its processor ({first})"
