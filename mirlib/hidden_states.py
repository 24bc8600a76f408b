"""Hidden states out of any Hugging Face LVLM by forward hooks, layer by layer, 1..K, vision and text rows apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mirlib.adapters import DecoderParts, decoder_parts, text_config, unwrap
from mirlib.errors import MirlibError, check_choice

__all__ = ["HiddenStateStream", "capture"]

TEXT_ROWS = ("text", "after_image")
LAST_LAYER = ("normed", "raw")
# Placeholders of sounds are neither vision nor text; the others frame a text or a picture.
SPECIAL_TOKEN_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id", "audio_token_id", "audio_token_index") + tuple(
    pattern.format(medium)
    for medium in ("vision", "image", "video", "audio", "frame")
    for pattern in ("{}_start_token_id", "{}_end_token_id", "{}_bos_token_id", "{}_eos_token_id")
)
SPECIAL_TOKEN_NAMES += ("boi_token_id", "eoi_token_id", "boi_token_index", "eoi_token_index")


@dataclass
class HiddenStateStream:
    """The rows that the hooks of `capture` read in the latest forward pass.

    Attributes:
        parts: The `DecoderParts` of the model.
        vision: K tensors (r, d), the vision rows after each layer, batch by position order. Empty with ``on_layer``.
        text: K tensors (s, d), the text rows.
        vision_samples: (r,) index within the batch of the sample that each vision row belongs to.
        text_samples: (s,) likewise for the text rows.
        positions: ``{"vision": (B, T), "text": (B, T)}`` bool, where in the batch those rows stand.
        text_mask: A (B, T) bool tensor set before a forward pass says, for that pass, which positions are text.
    """

    parts: DecoderParts
    vision: list[Tensor] = field(default_factory=list)
    text: list[Tensor] = field(default_factory=list)
    vision_samples: Tensor | None = None
    text_samples: Tensor | None = None
    positions: dict[str, Tensor] = field(default_factory=dict)
    text_mask: Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers, K."""
        return len(self.parts.layers)


def token_masks(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    vision_token_ids: Sequence[int],
    special_token_ids: Sequence[int] = (),
    text_rows: str = "text",
    text_mask: Tensor | None = None,
    vision_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which positions of a batch are vision rows and which are text rows: two (B, T) bool masks.

    Vision stands where ``vision_mask`` says, (B, T') with T' >= T, or else at ``vision_token_ids``; in the first case
    the masks returned are (B, T'), and the T' - T positions in front are never text. Text are the positions of the (B,
    T) ``text_mask``, or else as for `capture`. An ``attention_mask`` of another shape than (B, T) is ignored.
    """
    device = input_ids.device
    vision = _one_of(input_ids, vision_token_ids) if vision_mask is None else vision_mask.to(device)
    front = vision.shape[1] - input_ids.shape[1]
    if len(vision) != len(input_ids) or front < 0:
        raise MirlibError(
            f"the adapter's vision_mask has shape {tuple(vision.shape)}, input_ids has {tuple(input_ids.shape)}; "
            "the mask must cover every position of every sample"
        )
    attended = torch.ones_like(input_ids, dtype=torch.bool)
    if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
        attended = attention_mask.to(device, torch.bool)
    attended = pad(attended, (front, 0), value=True)
    vision = vision & attended
    if text_rows == "after_image":
        # Counting from the right: no vision token at or after this position.
        none_left = vision.flip(1).cumsum(1).flip(1) == 0
        return vision, none_left & attended & vision.any(dim=1, keepdim=True)
    if text_mask is not None:
        if text_mask.shape != input_ids.shape:
            shapes = f"text_mask has shape {tuple(text_mask.shape)}, input_ids has {tuple(input_ids.shape)}"
            raise MirlibError(f"{shapes}; they must be equal")
        text = text_mask.to(device, torch.bool)
    else:
        text = ~_one_of(input_ids, special_token_ids)
    return vision, pad(text, (front, 0)) & attended & ~vision


def _one_of(input_ids: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(input_ids, input_ids.new_tensor(list(ids)))


def _special_token_ids(model: nn.Module) -> list[int]:
    """Ids that the configs of a model name as special."""
    found: set[int] = set()
    config = getattr(model, "config", None)
    for source in (config, text_config(config), getattr(model, "generation_config", None)):
        for name in SPECIAL_TOKEN_NAMES:
            value = getattr(source, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return sorted(found)


def read_modules(parts: DecoderParts, last: str = "normed") -> list[nn.Module]:
    """The K modules whose outputs are the hidden states after layers 1..K; see `capture` for ``last``."""
    layers = list(parts.layers)
    return [*layers[:-1], parts.final_norm] if last == "normed" and parts.final_norm is not None else layers


def first_of(output: Any) -> Any:
    """What a module returned, or the first of what it returned."""
    return output[0] if isinstance(output, (tuple, list)) else output


def hidden_of(parts: DecoderParts, output: Any) -> Tensor:
    """The hidden states (B, T, d) in what such a module returned."""
    return first_of(output) if parts.read is None else parts.read(first_of(output))


def some_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Layers that were asked for, each once and in order; 0 is what enters the first."""
    chosen = tuple(sorted(set(layers)))
    if not chosen or not all(0 <= layer <= count for layer in chosen):
        raise MirlibError(f"layers must be some of 0..{count} (0: what enters layer 1), got {list(layers)}")
    return chosen


@contextmanager
def from_layer_zero(parts: DecoderParts, on_layer: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """What a `mirlib.forward.Reader` is to call so that ``on_layer`` gets layers 0..K; 0 is what enters layer 1."""
    entered: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[:] = [hidden_of(parts, args[0] if args else kwargs["hidden_states"]).detach()]

    def on_every_layer(k: int, vision: Tensor, text: Tensor, batch: Any) -> None:
        if k == 1:
            hidden = entered.pop()
            masks = (batch.positions[modality].to(hidden.device) for modality in ("vision", "text"))
            on_layer(0, *(hidden[mask] for mask in masks), batch)
        on_layer(k, vision, text, batch)

    with parts.layers[0].register_forward_pre_hook(keep, with_kwargs=True):  # removed at the end of the block
        yield on_every_layer


@contextmanager
def capture(
    model: nn.Module,
    *,
    text_rows: str = "text",
    last: str = "normed",
    on_layer: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Iterator[HiddenStateStream]:
    """Read the hidden states of every forward pass inside the ``with`` block; the hooks are removed whatever happens.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence. Call it with ``input_ids``.
        text_rows: ``"text"``, every attended position that is neither vision nor special; or ``"after_image"``, as the
            authors do, every attended one after the last vision token.
        last: Layer K is read after the final norm (``"normed"``, as ``hidden_states[-1]`` of transformers) or before
            (``"raw"``).
        on_layer: Called with ``(k, vision_rows, text_rows)``, k from 1, as soon as layer k is done; the rows are then
            not kept.

    Yields:
        `HiddenStateStream`, refilled by every forward pass.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: If the model was called without ``input_ids``, a layer's output has another length than its input,
            or hooks did not fire (a compiled model runs past hooks that were added later).

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, processor = load_miniature()
        >>> with capture(model) as stream:
        ...     stream.num_layers == len(model.get_decoder().layers)
        True
    """
    check_choice("text_rows", text_rows, TEXT_ROWS)
    check_choice("last", last, LAST_LAYER)
    model = unwrap(model)
    parts = decoder_parts(model)
    if last == "normed" and parts.final_norm is None:
        raise MirlibError(
            f"{type(model).__name__}: no final norm found; take last='raw', or name it with register_adapter()"
        )
    stream = HiddenStateStream(parts)
    special = _special_token_ids(model)
    masks = stream.positions
    places: dict[str, Tensor] = {}  # numbers of the rows in the flattened batch
    fired: set[int] = set()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
            raise MirlibError("call the model with input_ids: they tell which rows are vision and which are text")
        given = None if parts.vision_mask is None else parts.vision_mask({**kwargs, "input_ids": input_ids})
        attention, text_mask, stream.text_mask = kwargs.get("attention_mask"), stream.text_mask, None
        masks["vision"], masks["text"] = token_masks(
            input_ids, attention, parts.vision_token_ids, special, text_rows, text_mask, given
        )
        # Once a pass, not once a layer: finding the rows of a mask makes the host wait for a GPU.
        places.update({modality: mask.flatten().nonzero()[:, 0] for modality, mask in masks.items()})
        stream.vision_samples, stream.text_samples = (places[name] // mask.shape[1] for name, mask in masks.items())
        stream.vision, stream.text = [], []
        fired.clear()

    def read(k: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not masks:
                return
            hidden = hidden_of(parts, output).detach()
            if hidden.ndim != 3 or hidden.shape[:2] != masks["vision"].shape:
                raise MirlibError(
                    f"layer {k} returned {tuple(hidden.shape)} for a sequence of shape {tuple(masks['vision'].shape)}; "
                    "the rows cannot be told apart. register_adapter() can name other layers"
                )
            fired.add(k)
            flat = hidden.flatten(0, 1)
            rows = [flat.index_select(0, places[modality].to(hidden.device)) for modality in ("vision", "text")]
            if on_layer is not None:
                on_layer(k, *rows)
            else:
                stream.vision.append(rows[0])
                stream.text.append(rows[1])

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        missing = sorted(set(range(1, stream.num_layers + 1)) - fired)
        if missing:
            raise MirlibError(
                f"the hooks of layers {missing} did not fire. A compiled model runs past hooks that were added after "
                "the first call: pass the model that was not compiled"
            )

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
        for k, module in enumerate(read_modules(parts, last), start=1):
            stack.callback(module.register_forward_hook(read(k)).remove)
        stack.callback(model.register_forward_hook(after).remove)
        yield stream
