"""Memory of a measurement, by formulas from the configuration of a model alone, before anything is loaded.

With K layers, width d and N samples the measure holds 3 K (d + 2) d float64 numbers beside the model, whatever N is; an
interval puts 2 K d² float32 numbers in their place. Only the norms of all rows and the rows set aside grow with N.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirlib.adapters import decoder_parts, longest_sequence
from mirlib.errors import MirlibError, boundary, check_choice, first_line
from mirlib.influence import why_no_interval
from mirlib.loading import check_layers, check_name, register_architectures
from mirlib.mir import PRESETS

__all__ = ["SHAPES", "Plan", "llava_shape", "plan"]

GIB = 2**30
TEXT_TOKENS = 800  # a news story
DTYPES = ("auto", "float32", "bfloat16", "float16", "4bit")
FOUR_BITS = 0.5 + 4 / 64 / 4  # bytes a weight: NF4 with a scale for each 64 weights, the scales stored in 8 bits
# Of the rows, what is set aside at most: measured 3 to 8 % of 50 and 100 samples on norms of six shapes, and of the
# first samples three in all.
ASIDE_SHARE, ASIDE_SAMPLES = 0.09, 3
# d × d float64 matrices held at once beside moments and maps, measured at d = 1000 and 1500 on a CPU: 11.3 while the
# distances of a layer are found, 13.0 while its maps are made.
FINAL_MATRICES, MAP_MATRICES = 11, 13
FIXED_VISION_TOKENS = {"llava": "image_seq_length", "gemma3": "mm_tokens_per_image"}


def llava_shape(
    layers: int = 32,
    dim: int = 4096,
    feed_forward: int = 11008,
    vision_dim: int = 1024,
    *,
    heads: int = 32,
    vision_layers: int = 24,
    vocabulary: int = 32064,
    image_size: int = 336,
) -> Any:
    """The configuration of LLaVA-1.5-7B (336 px, 576 vision tokens), or of another model of the same plan.

    Source: the configuration of llava-hf/llava-1.5-7b-hf.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=vision_dim,
        intermediate_size=4 * vision_dim,
        num_hidden_layers=vision_layers,
        num_attention_heads=16,
        image_size=image_size,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=min(32000, vocabulary - 1),
        image_seq_length=(image_size // 14) ** 2,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": llava_shape,
    "llava-1.5-13b": lambda: llava_shape(layers=40, dim=5120, feed_forward=13824, heads=40),
}


@dataclass(frozen=True)
class Plan:
    """What a measurement will take, in bytes.

    Attributes:
        model: Its name.
        settings: What was planned for.
        layers: Number of decoder layers, K.
        dim: Width of the hidden states, d.
        parameters: Number of weights.
        passes: How often the inputs go through the model: 2 with an interval, else 1. A repair would take one more.
        forward_passes: Forward passes in all, ``passes · ceil(num / batch_size)``.
        bytes_of: What takes memory, by name: ``weights``; ``moments``; ``norms``; ``maps``, what an interval keeps in
            place of the moments; ``distances``, for adding up and making the maps; in the memory of the CPU ``aside``,
            the rows that wait for the outlier rule, at most, and ``rows``, which the authors' presets keep.
        peak: The most bytes of all these on the device at once; Python, PyTorch and a CUDA context come on top. While
            a batch goes through, what the model's own forward pass holds takes the place of ``distances``.
        authors_bytes: What the authors' code keeps for the same inputs: all rows of the K + 1 hidden states.
        notes: What the plan leaves out.
    """

    model: str
    settings: dict[str, Any]
    layers: int
    dim: int
    parameters: int
    passes: int
    forward_passes: int
    bytes_of: dict[str, int]
    peak: int
    authors_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        settings, sizes = self.settings, self.bytes_of
        on_device = {
            "weights": sizes["weights"],
            "moments": sizes["moments"],
            "norms of all tokens": sizes["norms"],
            "what the interval keeps, in place of the moments": sizes["maps"],
            "adding up" + (", and making what the interval keeps" if sizes["maps"] else ""): sizes["distances"],
            "the most at once": self.peak,
        }
        on_cpu = {
            "Rows that wait for the outlier rule, on the CPU, at most": sizes["aside"],
            f"Preset {settings['preset']!r} keeps rows on the CPU": sizes["rows"],
            "The authors' code would keep all hidden states of these inputs": self.authors_bytes,
        }
        count = self.parameters
        weights = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        return "\n".join(
            [
                f"MIR of {self.model}: {self.layers} layers of {self.dim} dimensions, {weights} weights",
                f"  {settings['num']} pairs of {settings['vision_tokens']} vision and {settings['text_tokens']} text "
                f"tokens in batches of {settings['batch_size']}, {settings['dtype']} on {settings['device']}, "
                f"preset {settings['preset']!r}",
                f"  {self.forward_passes} forward passes ({self.passes} over every pair)",
                "",
                f"{'memory on the device':58}{'GiB':>9}",
                *(f"  {text:56}{size / GIB:>9.2f}" for text, size in on_device.items() if size),
                "",
                *(f"{text}: {size / GIB:.2f} GiB" for text, size in on_cpu.items() if size),
                *(f"  ! {note}" for note in self.notes),
            ]
        )


def plan(
    model: Any,
    *,
    num: int = 100,
    batch_size: int = 4,
    text_tokens: int = TEXT_TOKENS,
    vision_tokens: int | None = None,
    dtype: str = "auto",
    device: str = "cuda",
    preset: str = "paper",
    confidence: float | None = 0.95,
    trust_remote_code: bool = False,
) -> Plan:
    """Memory of a measurement with `mirlib.score`, from the configuration alone: no weights are read.

    Args:
        model: ``"llava-1.5-7b"``, ``"llava-1.5-13b"``, a folder with a ``config.json``, a Hugging Face id, or a
            configuration of transformers.
        num: Number of pairs.
        batch_size: Pairs a forward pass.
        text_tokens: Tokens of the longest text, to which a batch is padded.
        vision_tokens: Vision tokens of an image. Read from the configuration where that says it.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"4bit"``, or ``"auto"``: float32 on a CPU, and elsewhere
            that of the configuration, or else bfloat16.
        device: ``"cuda"``, ``"mps"`` or ``"cpu"``: where it will run. Nothing runs there now.
        preset: As for `mirlib.score`.
        confidence: Of the interval; None for the value alone.
        trust_remote_code: Let a checkpoint bring its own code.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: If the configuration cannot be read, does not say how many vision tokens an image has, or describes
            no image-text-to-text model.

    Examples:
        >>> found = plan(llava_shape(2, 64, 96, 32, vision_layers=2, heads=4, image_size=28), num=40, text_tokens=20)
        >>> found.forward_passes, found.passes, found.bytes_of["moments"] == 3 * 2 * (64 + 2) * 64 * 8
        (20, 2, True)
    """
    if num < 1 or batch_size < 1 or text_tokens < 1 or (vision_tokens is not None and vision_tokens < 1):
        raise MirlibError("num, batch_size, text_tokens and vision_tokens must be at least 1")
    check_choice("dtype", dtype, DTYPES)
    kind = device.split(":")[0]
    check_choice("device", kind, ("cuda", "cpu", "mps"))
    check_choice("preset", preset, PRESETS)
    name, config = _config(model, trust_remote_code)
    if dtype == "auto":
        stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
        dtype = "float32" if kind == "cpu" else stored if stored in DTYPES else "bfloat16"
    family = getattr(config, "model_type", "the model")
    vision_tokens = vision_tokens or getattr(config, FIXED_VISION_TOKENS.get(family, ""), None)
    if vision_tokens is None:
        way = "say how many with vision_tokens (--vision-tokens)"
        raise MirlibError(f"{family}: the number of vision tokens depends on the image; {way}")
    built = _built(config, trust_remote_code)
    layers, dim = len(decoder_parts(built).layers), config.get_text_config().hidden_size
    rows, element = num * (vision_tokens + text_tokens), 4 if dtype == "float32" else 2
    streams, interval, passes = preset == "paper", None, 1
    notes = ["what the model's own forward pass of a batch holds is not in the plan"]
    if confidence is not None and streams:
        why = why_no_interval(num, [num * min(vision_tokens, text_tokens)] * layers, dim)
        if why:
            notes.append(why)
        else:
            interval, passes = "influence", 2
    limit = longest_sequence(config)
    if limit is not None and vision_tokens + text_tokens > limit:
        notes.append(
            f"a text of {text_tokens} tokens does not fit beside {vision_tokens} vision tokens, for the model has "
            f"{limit} positions: cut texts with max_text_tokens (--max-text-tokens), and plan for that (--text-tokens)"
        )
    if dtype == "4bit":
        notes.append("4 bits: every linear layer but the output is taken to be stored in NF4, others in bfloat16")
    share = min(max(ASIDE_SHARE, ASIDE_SAMPLES / num), 1.0)
    bytes_of = {
        "weights": _weight_bytes(built, dtype),
        "moments": 3 * layers * (dim + 2) * dim * 8 * streams,  # vision, text, vision rows of norm 1
        "norms": 4 * layers * rows * streams,
        "maps": 2 * layers * dim**2 * 4 if interval else 0,
        "distances": (MAP_MATRICES if interval else FINAL_MATRICES) * dim**2 * 8 * streams,
        "aside": math.ceil(share * rows) * layers * dim * element * streams,
        "rows": layers * rows * dim * element * (not streams),
    }
    settings = {"num": num, "batch_size": batch_size, "vision_tokens": vision_tokens, "text_tokens": text_tokens}
    settings |= {"dtype": dtype, "device": device, "preset": preset, "interval": interval}
    # Maps take the place of the moments layer by layer, and are less than half of them.
    peak = sum(bytes_of[part] for part in ("weights", "moments", "norms", "distances"))
    if kind == "cpu":
        peak += bytes_of["aside"] + bytes_of["rows"]
    return Plan(
        model=name,
        settings=settings,
        layers=layers,
        dim=dim,
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        passes=passes,
        forward_passes=passes * math.ceil(num / batch_size),
        bytes_of=bytes_of,
        peak=peak,
        authors_bytes=rows * (layers + 1) * dim * element,
        notes=tuple(notes),
    )


def _config(model: Any, trust_remote_code: bool) -> tuple[str, Any]:
    if not isinstance(model, (str, Path)):
        config = getattr(model, "config", model)
        return getattr(config, "name_or_path", "") or getattr(config, "model_type", type(config).__name__), config
    name = str(model)
    if name.lower() in SHAPES:
        return name, SHAPES[name.lower()]()
    from transformers import AutoConfig, PreTrainedConfig

    otherwise = f"; without a network there are the shapes {', '.join(SHAPES)}"
    check_name(name, otherwise)
    if Path(name).is_dir():
        check_layers(Path(name))
    try:
        register_architectures(PreTrainedConfig.get_config_dict(name)[0])
        return name, AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # what transformers and its hub client raise has no common class
        raise MirlibError(f"{name}: cannot read its configuration ({first_line(error)}){otherwise}") from error


def _built(config: Any, trust_remote_code: bool) -> nn.Module:
    """The model in shapes alone."""
    from transformers import AutoModelForImageTextToText

    family = getattr(config, "model_type", "the model")
    options = {"trust_remote_code": True} if trust_remote_code else {}
    with boundary(f"{family} cannot be built from its configuration"):  # which can ask for anything
        try:
            with torch.device("meta"):
                return AutoModelForImageTextToText.from_config(config, **options)
        except ValueError as error:
            what = f"transformers knows no image-text-to-text model of type {family!r}"
            raise MirlibError(f"{what}, so MIR cannot be measured") from error


def _weight_bytes(model: nn.Module, dtype: str) -> int:
    """Bytes of the parameters in a precision, and of buffers as they are."""
    element = 4 if dtype == "float32" else 2
    size = float(sum(weight.numel() * element for weight in model.parameters()))
    size += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if dtype == "4bit":
        output = model.get_output_embeddings()
        linear = [part.weight for part in model.modules() if isinstance(part, nn.Linear) and part is not output]
        size -= sum(weight.numel() * (element - FOUR_BITS) for weight in linear)
    return round(size)
