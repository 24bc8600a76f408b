"""Memory and work of a measurement, from the configuration of a model alone, before anything is loaded.

The model is built without weights, and a forward pass runs through it in PyTorch's fake tensors, which have shapes and
devices but no numbers, together with the very code that measures: every allocation is counted when it is made and when
it is given back. The distances at the end, which need numbers, are counted by formula.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from mirlib.accumulators import FiniteChecks, RowSamples
from mirlib.adapters import DecoderParts
from mirlib.errors import MirlibError, check_choice, first_line, said_by
from mirlib.hidden_states import decoder_parts, hidden_of, read_modules
from mirlib.influence import ROWS_PER_DIMENSION, rows_suffice
from mirlib.loading import check_layers, check_name, register_architectures
from mirlib.mir import resolve_settings
from mirlib.streaming import (
    DEFAULT_GROUPS,
    LARGEST_JACKKNIFE,
    ModalityIntegrationRate,
    aside_bytes,
    interval_bytes,
    moment_bytes,
)

__all__ = ["SHAPES", "Plan", "llava_shape", "plan"]

GIB = 2**30
IMAGE_TOKEN = 32000
TEXT_TOKENS = 800  # a news story
DTYPES = ("auto", "float32", "bfloat16", "float16", "4bit")
FOUR_BITS = 0.5 + 4 / 64 / 4  # bytes a weight: NF4 with a scale for each 64 weights, the scales stored in 8 bits
# d × d float64 matrices held at once beside moments and what waits, measured at d = 1000 and 1500 on a CPU: 11.3
# while the distances of a layer are found, 13.0 while its maps are made, and 2 for each group and 6.7 in a jackknife.
FINAL_MATRICES, MAP_MATRICES, JACKKNIFE_MATRICES = 11, 13, 7


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
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=min(IMAGE_TOKEN, vocabulary - 1),
        image_seq_length=(image_size // 14) ** 2,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": llava_shape,
    "llava-1.5-13b": lambda: llava_shape(layers=40, dim=5120, feed_forward=13824, heads=40),
}


@dataclass(frozen=True)
class Plan:
    """What a measurement will take. Bytes and floating-point operations (a multiplication and an addition are two).

    Attributes:
        model: Its name.
        settings: What was planned for.
        layers: Number of decoder layers, K.
        dim: Width of the hidden states, d.
        parameters: Number of weights.
        passes: How often the inputs go through the model: 2 with an interval, else 1. A repair would take one more.
        forward_passes: Forward passes in all, ``passes · ceil(num / batch_size)``.
        bytes_of: What takes memory, by name: ``weights``; ``first_pass`` and ``second_pass``, the most that a forward
            pass and our reading of it hold at once beside weights and state; ``moments``; ``norms``; ``maps``, what an
            interval keeps in place of the moments; ``distances``, for adding up and making the maps; in the memory of
            the CPU ``aside``, the rows that wait for the outlier rule, at most, and ``rows``, which the authors'
            presets keep.
        peak: The most bytes that tensors take on the device at once. Python, PyTorch and a CUDA context come on top.
        peak_in: When that is: ``"pass 1"``, ``"adding up"`` or ``"pass 2"``.
        operations: ``forward``, one pass over one full batch; ``forward_passes``, all of them; ``moments``;
            ``distances``.
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
    peak_in: str
    operations: dict[str, float]
    authors_bytes: int
    notes: tuple[str, ...]

    def seconds(self, rate: float) -> float:
        """Time at a rate of so many operations a second, sustained: a lower bound."""
        return sum(self.operations[name] for name in ("forward_passes", "moments", "distances")) / rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"notes": list(self.notes)}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        settings, sizes, work = self.settings, self.bytes_of, self.operations
        names = {
            "weights": "weights",
            "moments": "moments",
            "norms": "norms of all tokens",
            "maps": "what the interval keeps, in place of the moments",
            "first_pass": "a batch in pass 1, with what is read of it",
            "second_pass": "a batch in pass 2, likewise",
            "distances": "adding up" + (", and making what the interval keeps" if sizes["maps"] else ""),
        }
        memory = {text: sizes[name] for name, text in names.items() if sizes[name]} | {
            f"peak, in {self.peak_in}": self.peak
        }
        operations = {
            f"{self.forward_passes} forward passes ({self.passes} over every pair)": work["forward_passes"],
            "one forward pass over a full batch": work["forward"],
            "moments": work["moments"],
            "distances, in float64": work["distances"],
        }
        aside = {
            "Rows that wait for the outlier rule, on the CPU, at most": sizes["aside"],
            f"Preset {settings['preset']!r} keeps rows on the CPU": sizes["rows"],
            "The authors' code would keep all hidden states of these inputs": self.authors_bytes,
        }
        count = self.parameters
        return "\n".join(
            [
                f"MIR of {self.model}: {self.layers} layers of {self.dim} dimensions, "
                + (f"{count / 1e9:.2f} billion weights" if count >= 1e9 else f"{count / 1e6:.1f} million weights"),
                f"  {settings['num']} pairs of {settings['vision_tokens']} vision and {settings['text_tokens']} text "
                f"tokens in batches of {settings['batch_size']}, {settings['dtype']} on {settings['device']}, "
                f"preset {settings['preset']!r}",
                "",
                f"{'memory on the device':58}{'GiB':>9}",
                *(f"  {text:56}{size / GIB:>9.2f}" for text, size in memory.items()),
                "",
                f"{'work':58}{'10^12 operations':>9}",
                *(f"  {text:56}{number / 1e12:>9.1f}" for text, number in operations.items()),
                "",
                *(f"{text}: {size / GIB:.2f} GiB" for text, size in aside.items() if size),
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
    outliers: str | None = None,
    confidence: float | None = 0.95,
    groups: int = DEFAULT_GROUPS,
    trust_remote_code: bool = False,
) -> Plan:
    """Memory and work of a measurement with `mirlib.score`, from the configuration alone: no weights are read.

    Args:
        model: ``"llava-1.5-7b"`` or another name in `SHAPES`, a folder with a ``config.json``, a Hugging Face id, or a
            configuration of transformers.
        num: Number of pairs.
        batch_size: Pairs a forward pass.
        text_tokens: Tokens of the longest text, to which a batch is padded.
        vision_tokens: Vision tokens of an image. Read from the configuration where that says it.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"4bit"``, or ``"auto"``: float32 on a CPU, and elsewhere
            that of the configuration, or else bfloat16.
        device: ``"cuda"`` or ``"cpu"``: where it will run. Nothing runs there now.
        preset: As for `mirlib.score`, and the next three.
        outliers: Overrides the preset.
        confidence: Of the interval.
        groups: Of a jackknife.
        trust_remote_code: Let a checkpoint bring its own code.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: If the configuration cannot be read, does not say how many vision tokens an image has, or cannot be
            built without weights.

    Examples:
        >>> found = plan(llava_shape(2, 64, 96, 32, vision_layers=2, heads=4, image_size=28), num=10, text_tokens=20)
        >>> found.forward_passes, found.passes, found.bytes_of["moments"] == 3 * 2 * (64 + 2) * 64 * 8
        (6, 2, True)
    """
    if num < 1 or batch_size < 1 or text_tokens < 1 or (vision_tokens is not None and vision_tokens < 1):
        raise MirlibError("num, batch_size, text_tokens and vision_tokens must be at least 1")
    check_choice("dtype", dtype, DTYPES)
    kind = device.split(":")[0]
    if kind not in ("cuda", "cpu", "mps"):
        raise MirlibError(f"unknown device {device!r}; choose cuda, cpu or mps")
    chosen = resolve_settings(preset, outliers, None)
    name, config = _config(model, trust_remote_code)
    dtype = _dtype(dtype, config, kind)
    in_memory = chosen.outliers == "median" or chosen.sqrt != "exact"
    streamed_interval = confidence is not None and not in_memory and num > 1
    batch = min(batch_size, num)
    readings = [None] if in_memory else ["repair", "influence"] if streamed_interval else ["repair"]
    simulation = _simulate(
        config, batch, text_tokens, vision_tokens, dtype, readings, kind == "cuda", trust_remote_code
    )
    layers, dim = simulation.layers, simulation.dim
    rows = num * (simulation.vision_tokens + text_tokens)
    element = 2 if dtype != "float32" else 4
    moments = 0 if in_memory else moment_bytes(layers, dim)
    drops = chosen.outliers == "drop"
    norms = 4 * layers * rows if drops else 0
    interval, jackknifed, notes = "influence" if streamed_interval else None, 0, list(simulation.notes)
    if confidence is not None and num == 1:
        notes.append("there is no interval: it needs at least 2 samples")
    if streamed_interval and not rows_suffice(num * min(simulation.vision_tokens, text_tokens), dim):
        interval, jackknifed = "jackknife", min(groups, num)
        why = f"fewer than {ROWS_PER_DIMENSION} rows a dimension"
        need = moment_bytes(layers, dim, jackknifed) - moments
        if need > LARGEST_JACKKNIFE:
            notes.append(
                f"there is no interval: {why}, and a jackknife over {jackknifed} groups of samples would take "
                f"{need / GIB:.0f} GiB; use more samples"
            )
            interval, jackknifed = None, 0
        else:
            notes.append(f"{why}: the interval is a jackknife over {jackknifed} groups of samples")
    passes, matrix = 2 if interval else 1, dim**2 * 8
    maps, after = 0, 0  # what an interval keeps, and the matrices that are held while it is made
    if interval == "influence":
        maps, after = interval_bytes(layers, dim), MAP_MATRICES
    elif interval == "jackknife":
        maps, after = moment_bytes(layers, dim, jackknifed) - moments, 2 * jackknifed + JACKKNIFE_MATRICES
    bytes_of = {
        "weights": simulation.weights,
        "first_pass": simulation.first_pass,
        "second_pass": simulation.second_pass if interval else 0,
        "moments": moments,
        "norms": norms,
        "maps": maps,
        "distances": 0 if in_memory else max(FINAL_MATRICES, after) * matrix,
        "aside": aside_bytes(rows, num, layers, dim, element) if drops else 0,
        "rows": layers * rows * dim * element if in_memory else 0,
    }
    waiting = bytes_of["aside"] if kind == "cpu" else 0
    state = simulation.weights + norms
    made_beside = maps if interval == "jackknife" else moments  # what waited is decided by then
    adding_up = max(moments + waiting + FINAL_MATRICES * matrix, made_beside + after * matrix)
    peaks = {
        "pass 1": state + simulation.first_pass + moments + waiting,
        "adding up": 0 if in_memory else state + adding_up,
        "pass 2": state + simulation.second_pass + maps if interval else 0,  # in place of the moments
    }
    peak_in = max(peaks, key=peaks.get)
    forward, cube = simulation.operations, float(dim) ** 3
    operations = {
        "forward": forward,
        "forward_passes": passes * forward * (num / batch),
        "moments": 0.0 if in_memory else 2.0 * dim**2 * layers * (rows + num * simulation.vision_tokens),
        # Twice a Cholesky factor d³/3, the congruence d³ and the eigenvalues 4 d³/3; the maps take singular vectors.
        "distances": layers * cube * (2 * (8 / 3) + jackknifed * (8 / 3) + (26 if interval == "influence" else 0)),
    }
    if interval == "influence":
        operations["moments"] += 2.0 * dim**2 * layers * rows  # of the quadratic forms
    return Plan(
        model=name,
        settings={
            "num": num,
            "batch_size": batch_size,
            "vision_tokens": simulation.vision_tokens,
            "text_tokens": text_tokens,
            "dtype": dtype,
            "device": device,
            "preset": preset,
            "interval": interval,
        },
        layers=layers,
        dim=dim,
        parameters=simulation.parameters,
        passes=passes,
        forward_passes=passes * math.ceil(num / batch_size),
        bytes_of=bytes_of,
        peak=peaks[peak_in],
        peak_in=peak_in,
        operations=operations,
        authors_bytes=rows * (layers + 1) * dim * element,
        notes=tuple(notes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The configuration


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


def _dtype(dtype: str, config: Any, device: str) -> str:
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    stored = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    return stored if stored in DTYPES else "bfloat16"


FIXED_VISION_TOKENS = {"llava": "image_seq_length", "gemma3": "mm_tokens_per_image"}


# ---------------------------------------------------------------------------------------------------------------------
# The simulation


@dataclass(frozen=True)
class _Simulation:
    layers: int
    dim: int
    parameters: int
    weights: int
    first_pass: int
    second_pass: int
    operations: float
    vision_tokens: int
    notes: tuple[str, ...]


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, but for those that were there before."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.live = self.peak = self.peak_within = 0
        self.within = False
        self._known = known
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # a model that checks its inputs finds them right
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value)
        if self.within:
            self.peak_within = max(self.peak_within, self.live)
        else:
            self.peak = max(self.peak, self.live)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._seen:
            return
        size = storage.nbytes()
        self.live += size

        def freed(_: Any, key: int = key, size: int = size) -> None:
            self._seen.pop(key, None)
            self.live -= size

        self._seen[key] = weakref.ref(storage, freed)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What is allocated in here is our own reading of a layer."""
        self.within = True
        try:
            yield
        finally:
            self.within = False


def _simulate(
    config: Any,
    batch: int,
    text_tokens: int,
    vision_tokens: int | None,
    dtype: str,
    readings: list[str | None],
    on_gpu: bool,
    trust_remote_code: bool,
) -> _Simulation:
    """Forward passes over one batch in fake tensors, one for each stage of the measure that reads it (None: none)."""
    from transformers import AutoModelForImageTextToText

    family = getattr(config, "model_type", "the model")
    fixed = getattr(config, FIXED_VISION_TOKENS.get(family, ""), None)
    vision_tokens = vision_tokens or fixed
    if vision_tokens is None:
        raise MirlibError(
            f"{family}: the number of vision tokens depends on the image; say how many with vision_tokens "
            "(--vision-tokens)"
        )
    precision = torch.bfloat16 if dtype == "4bit" else getattr(torch, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        with torch.device("meta"):
            options = {"trust_remote_code": True} if trust_remote_code else {}
            model = AutoModelForImageTextToText.from_config(config, **options).eval()
    except ValueError as error:
        raise MirlibError(
            f"transformers knows no image-text-to-text model of type {family!r}, so MIR cannot be measured"
        ) from error
    finally:
        torch.set_default_dtype(before)
    parts = decoder_parts(model)
    text_config = config.get_text_config()
    whole = family == "llava" and vision_tokens == fixed
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model = model.to_empty(device="cpu")
    tensors = [*model.parameters(), *model.buffers()]
    length, side = 1 + vision_tokens + text_tokens, getattr(config.vision_config, "image_size", None) if whole else None

    def forward() -> None:
        attention = torch.ones(batch, length, dtype=torch.long)
        if whole:
            ids = torch.zeros(batch, length, dtype=torch.long)
            pixels = torch.zeros(batch, 3, side, side, dtype=precision)
            model(input_ids=ids, attention_mask=attention, pixel_values=pixels, use_cache=False, logits_to_keep=1)
        else:
            embeddings = torch.zeros(batch, length, text_config.hidden_size, dtype=precision)
            model.get_decoder()(inputs_embeds=embeddings, attention_mask=attention, use_cache=False)

    try:
        with fake, torch.no_grad():
            known = {tensor.untyped_storage()._cdata for tensor in tensors}
            numbers = batch * vision_tokens, batch * text_tokens
            found = [
                _run(forward, parts, text_config.hidden_size, numbers, reading, known, on_gpu) for reading in readings
            ]
    except MirlibError:
        raise
    except Exception as error:  # a model may ask for numbers, and there are none
        raise MirlibError(f"{family} cannot be run without numbers ({said_by(error)}), so there is no plan") from error
    (first, operations), (second, _) = found[0], found[-1]
    weights, notes = sum(tensor.numel() * tensor.element_size() for tensor in tensors), []
    if dtype == "4bit":
        saved, largest = _four_bits(model)
        weights, first, second = weights - saved, first + largest, second + largest
        notes.append("4 bits: every linear layer but the output is taken to be stored in NF4, others in bfloat16")
    if not on_gpu:
        notes.append(
            "on Linux the C library may hold freed activations back for later, and the process then looks larger; with "
            "MALLOC_MMAP_THRESHOLD_=65536 in its environment it gives them back at once"
        )
    if not whole:
        notes.append("activations and operations of the vision encoder are not in the plan; its weights are")
    return _Simulation(
        layers=len(parts.layers),
        dim=text_config.hidden_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        first_pass=first,
        second_pass=second,
        operations=operations,
        vision_tokens=vision_tokens,
        notes=tuple(notes),
    )


def _run(
    forward: Callable[[], None],
    parts: DecoderParts,
    dim: int,
    rows: tuple[int, int],
    reading: str | None,
    known: set[int],
    on_gpu: bool,
) -> tuple[int, float]:
    """The most bytes alive at once beside weights and state, and the operations of the forward pass.

    A first pass is taken as one for repair, which adds up moments too and decides nothing by numbers.
    """
    metric = ModalityIntegrationRate(len(parts.layers), dim)
    samples, checks = _OneSample(), FiniteChecks()
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False, custom_mapping={attention: lambda query, key, value, *_, **__: sdpa_flop(query, key, value)}
    )
    with ExitStack() as stack:
        stack.enter_context(counter)
        allocations = stack.enter_context(_Allocations(known))
        metric.pretend(reading or "repair")
        places = [torch.zeros(count, dtype=torch.long) for count in rows]
        one = torch.zeros(1, dim)
        for layer in range(1, len(parts.layers) + 1) if reading else ():
            metric.update_layer(
                layer, one, one, samples, checks=FiniteChecks()
            )  # its state lies there before the batch
        lying = allocations.live

        def hook(layer: int) -> Callable[..., None]:
            def read(module: nn.Module, args: Any, output: Any) -> None:
                with allocations.reading():
                    flat = hidden_of(parts, output).flatten(0, 1)
                    sides = [flat.index_select(0, index) for index in places]
                    metric.update_layer(layer, *sides, samples, checks=checks)

            return read

        for k, module in enumerate(read_modules(parts) if reading else (), start=1):
            stack.callback(module.register_forward_hook(hook(k)).remove)
        allocations.peak = allocations.peak_within = allocations.live
        forward()
    within = allocations.peak_within
    if on_gpu and reading == "repair":  # products are taken of a float32 copy there
        within += max(rows) * dim * 4 + dim**2 * 4
    return max(allocations.peak, within) - lying, float(counter.get_total_flops())


def _four_bits(model: nn.Module) -> tuple[int, int]:
    """Bytes that 4-bit storage saves, and the largest weight, which is written out in bfloat16 when it is used."""
    output = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
    saved = sum(round(w.numel() * (w.element_size() - FOUR_BITS)) for w in linear)
    return saved, max((w.numel() * 2 for w in linear), default=0)


class _OneSample(RowSamples):
    """All rows of one sample, found without looking at numbers."""

    def __init__(self) -> None:
        self.numbers = [0]

    numbers: list[int] = []

    def check(self, rows: tuple[int, int]) -> None:
        pass

    def index(self, side: int, places: dict[int, int], rows: int, device: torch.device) -> Tensor:
        return torch.zeros(rows, dtype=torch.long, device=device)
