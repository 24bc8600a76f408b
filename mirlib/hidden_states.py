"""Hidden states out of any Hugging Face LVLM, layer by layer, vision rows and text rows apart.

Forward hooks read each decoder layer's output while the model runs, so nothing has to be edited in the model and no
layer is kept longer than it is needed. Layers are numbered 1..K as in the paper; the embedding output is not a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.errors import MirlibError, UndefinedMIRError

__all__ = ["DecoderParts", "HiddenStateStream", "capture", "decoder_parts", "register_adapter"]

TEXT_ROWS = ("text", "after_image")
LAST_LAYER = ("normed", "raw")
VISION_TOKEN_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
SPECIAL_TOKEN_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_start_token_id", "vision_end_token_id")
FINAL_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "layer_norm")


@dataclass(frozen=True)
class DecoderParts:
    """Where an LVLM keeps what MIR reads.

    Attributes:
        layers: The K decoder layers, in order; each returns a (B, T, d) tensor or a tuple that starts with one.
        final_norm: The module that turns layer K's output into the last hidden state, or None.
        vision_token_ids: Ids in ``input_ids`` whose positions hold vision tokens.
    """

    layers: Sequence[nn.Module]
    final_norm: nn.Module | None
    vision_token_ids: tuple[int, ...]


_ADAPTERS: dict[str, Callable[[nn.Module], DecoderParts]] = {}


def register_adapter(model_type: str, adapter: Callable[[nn.Module], DecoderParts]) -> None:
    """Teach mirlib a model family that its general rule does not cover.

    Args:
        model_type: ``model.config.model_type``.
        adapter: Takes the model and returns its `DecoderParts`.

    Examples:
        >>> register_adapter("my_lvlm", lambda model: DecoderParts(model.blocks, model.final_norm, (model.image_id,)))
    """
    _ADAPTERS[model_type] = adapter


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else None
        )
        if inner is None:
            return model
        model = inner


def decoder_parts(model: nn.Module) -> DecoderParts:
    """Find the decoder layers, the final norm and the vision token ids of a model, from its config and structure.

    Raises:
        UndefinedMIRError: If vision never enters the decoder's token sequence, so that MIR is undefined.
        MirlibError: If the structure is not recognised; the message says how to register an adapter.
    """
    model = unwrap(model)
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type in _ADAPTERS:
        return _ADAPTERS[model_type](model)
    if config is None:
        raise MirlibError(f"{type(model).__name__} has no config; register_adapter() tells mirlib where its layers are")
    if getattr(config, "is_encoder_decoder", False):
        raise UndefinedMIRError(
            f"{model_type} is an encoder-decoder: vision reaches its decoder by cross-attention and has no rows in the "
            "decoder's sequence, so MIR is undefined for it"
        )
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text_config, "cross_attention_layers", None):
        raise UndefinedMIRError(
            f"{model_type} feeds vision to its decoder by cross-attention layers: there are no vision rows in the "
            "token "
            "sequence, so MIR is undefined for it"
        )
    ids = {getattr(config, name, None) for name in VISION_TOKEN_NAMES}
    vision_token_ids = tuple(sorted(i for i in ids if isinstance(i, int) and i >= 0))
    if not vision_token_ids:
        raise UndefinedMIRError(
            f"the config of {model_type} names no image token (image_token_id), so its input_ids hold no vision rows "
            "and "
            "MIR is undefined for it; if it does have them, register_adapter() tells mirlib which"
        )
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if layers is None or len(layers) == 0:
        raise MirlibError(
            f"{model_type}: {type(decoder).__name__} has no `layers`; register_adapter() tells mirlib where they are"
        )
    final_norm = next(
        (getattr(decoder, name) for name in FINAL_NORM_NAMES if isinstance(getattr(decoder, name, None), nn.Module)),
        None,
    )
    return DecoderParts(list(layers), final_norm, vision_token_ids)


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
        text_mask: Set it to a (B, T) bool tensor before a forward pass to say which positions are text; it holds for
            that pass alone.
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
) -> tuple[Tensor, Tensor]:
    """Which positions of a batch are vision rows and which are text rows.

    Args:
        input_ids: (B, T) token ids.
        attention_mask: (B, T), 0 at padding, or None; masks of other shapes (4-D) are ignored.
        vision_token_ids: Ids of the vision placeholders.
        special_token_ids: Ids that are never text.
        text_rows: ``"text"``: the given ``text_mask``, or else every attended position that is neither vision nor
            special. ``"after_image"``: the authors' choice, everything attended after the last vision token.
        text_mask: (B, T) bool.

    Returns:
        Two (B, T) bool masks, vision and text.
    """
    vision = torch.isin(input_ids, input_ids.new_tensor(list(vision_token_ids)))
    attended = torch.ones_like(vision)
    if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
        attended = attention_mask.to(device=input_ids.device, dtype=torch.bool)
    vision = vision & attended
    if text_rows == "after_image":
        # Counting from the right: no vision token at or after this position.
        none_left = vision.flip(1).cumsum(1).flip(1) == 0
        return vision, none_left & attended & vision.any(dim=1, keepdim=True)
    if text_mask is not None:
        if text_mask.shape != input_ids.shape:
            raise MirlibError(
                f"text_mask has shape {tuple(text_mask.shape)}, input_ids has {tuple(input_ids.shape)}; they must be "
                "equal"
            )
        return vision, text_mask.to(device=input_ids.device, dtype=torch.bool) & attended & ~vision
    special = torch.isin(input_ids, input_ids.new_tensor(list(special_token_ids)))
    return vision, attended & ~vision & ~special


def _special_token_ids(model: nn.Module) -> list[int]:
    """Ids that the configs of a model name as special."""
    found: set[int] = set()
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else None
    for source in (config, text_config, getattr(model, "generation_config", None)):
        for name in SPECIAL_TOKEN_NAMES:
            value = getattr(source, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return sorted(found)


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
        text_rows: ``"text"`` or ``"after_image"``; see `token_masks`.
        last: Layer K is read after the final norm (``"normed"``, as ``hidden_states[-1]`` of transformers) or before
            (``"raw"``).
        on_layer: Called with ``(k, vision_rows, text_rows)``, k from 1, as soon as layer k is done; the rows are then
            not kept. Use it for models whose hidden states do not fit in memory.

    Yields:
        `HiddenStateStream`, refilled by every forward pass.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: If the model was called without ``input_ids``, or a layer's output has another length than its
            input, or hooks did not fire (a compiled model runs past hooks that were added later).

    Examples:
        >>> from mirlib.lab.models import load_miniature
        >>> model, processor = load_miniature()
        >>> with capture(model) as stream:
        ...     stream.num_layers == len(model.get_decoder().layers)
        True
    """
    if text_rows not in TEXT_ROWS:
        raise MirlibError(f"unknown text_rows {text_rows!r}; choose one of {', '.join(TEXT_ROWS)}")
    if last not in LAST_LAYER:
        raise MirlibError(f"unknown last {last!r}; choose one of {', '.join(LAST_LAYER)}")
    model = unwrap(model)
    parts = decoder_parts(model)
    if last == "normed" and parts.final_norm is None:
        raise MirlibError(
            f"{type(model).__name__}: no final norm found; take last='raw', or name it with register_adapter()"
        )
    stream = HiddenStateStream(parts)
    special = _special_token_ids(model)
    masks = stream.positions
    places: dict[tuple[str, torch.device], Tensor] = {}  # numbers of the rows in the flattened batch
    fired: set[int] = set()

    def places_on(modality: str, device: torch.device) -> Tensor:
        if (modality, device) not in places:  # a model spread over devices
            places[modality, device] = places[modality, masks[modality].device].to(device)
        return places[modality, device]

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
            raise MirlibError("call the model with input_ids: they tell which rows are vision and which are text")
        masks["vision"], masks["text"] = token_masks(
            input_ids,
            kwargs.get("attention_mask"),
            parts.vision_token_ids,
            special,
            text_rows,
            stream.text_mask,
        )
        stream.text_mask = None
        # Once a pass, not once a layer: finding the rows of a mask makes the host wait for a GPU.
        found = {modality: mask.flatten().nonzero()[:, 0] for modality, mask in masks.items()}
        places.clear()
        places.update({(modality, rows.device): rows for modality, rows in found.items()})
        stream.vision_samples, stream.text_samples = (found[name] // input_ids.shape[1] for name in ("vision", "text"))
        stream.vision, stream.text = [], []
        fired.clear()

    def read(k: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hidden = (output[0] if isinstance(output, (tuple, list)) else output).detach()
            if not masks:
                return
            if hidden.shape[:2] != masks["vision"].shape:
                raise MirlibError(
                    f"layer {k} returned {tuple(hidden.shape)} for input_ids of shape {tuple(masks['vision'].shape)}; "
                    "the "
                    "rows cannot be told apart. register_adapter() can name other layers"
                )
            fired.add(k)
            flat = hidden.flatten(0, 1)
            rows = [flat.index_select(0, places_on(modality, hidden.device)) for modality in ("vision", "text")]
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
                "the "
                "first call: pass the model that was not compiled"
            )

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
        for k, layer in enumerate(parts.layers, start=1):
            module = parts.final_norm if last == "normed" and k == stream.num_layers else layer
            stack.callback(module.register_forward_hook(read(k)).remove)
        stack.callback(model.register_forward_hook(after).remove)
        yield stream
