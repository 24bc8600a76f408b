"""Where a vision-language model keeps its decoder layers, its final norm and its vision rows: one rule, few exceptions.

The rule reads config and structure; a family that it does not cover has an adapter, from a model to its `DecoderParts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.errors import MirlibError, UndefinedMIRError
from mirlib.grids import PatchGrid, find_grid

__all__ = ["DecoderParts", "decoder_parts", "register_adapter"]

VISION_TOKEN_NAMES = "image_token_id image_token_index image_patch_id video_token_id video_token_index".split()
FINAL_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "layer_norm", "embedding_norm")
# Under which families keep the module that makes vision tokens out of features; the first that a model has counts.
CONNECTOR_NAMES = (
    *("multi_modal_projector", "mm_projector", "connector", "aligner", "projector", "vision_projection"),
    *("language_projection", "resampler_model", "embed_vision", "vision_embed_tokens", "merger", "patch_merger"),
)
# A decoder with a head, or a wrapper around one, keeps the module with the layers under one of these names.
DECODER_NAMES = ("model", "decoder", "language_model", "text_model", "backbone", "transformer")


@dataclass(frozen=True)
class DecoderParts:
    """Where an LVLM keeps what MIR reads.

    Attributes:
        layers: The K decoder layers, in order; each returns a (B, T, d) tensor or a tuple that starts with one.
        final_norm: The module whose output is the last hidden state: the norm behind layer K, or layer K itself where
            each layer ends in its norm. None: unknown.
        vision_token_ids: Ids in ``input_ids`` whose positions hold vision tokens; empty with ``vision_mask``.
        read: Turns a layer's output into one (B, T, d) tensor, for layers with several residual streams.
        vision_mask: For models whose ``input_ids`` do not show where vision stands: takes the keyword arguments of a
            forward pass and returns a (B, T') bool mask. If T' is larger than T, the decoder puts T' - T rows of its
            own in front of those of ``input_ids``.
        grid: Takes the keyword arguments of a forward pass and the (B, T) bool mask of the vision rows, and returns B
            `PatchGrid`, None for a picture whose grid it does not know.
        connector: The module that makes vision tokens out of the encoder's features (projector, merger, aligner), or
            None.
    """

    layers: Sequence[nn.Module]
    final_norm: nn.Module | None
    vision_token_ids: tuple[int, ...] = ()
    read: Callable[[Tensor], Tensor] | None = None
    vision_mask: Callable[[Mapping[str, Any]], Tensor] | None = None
    grid: Callable[[Mapping[str, Any], Tensor], Sequence[PatchGrid | None]] | None = None
    connector: nn.Module | None = None


def register_adapter(model_type: str, adapter: Callable[[nn.Module], DecoderParts]) -> None:
    """Teach mirlib a model family, by its ``config.model_type``, that its general rule does not cover.

    Examples:
        >>> register_adapter("my_lvlm", lambda model: DecoderParts(model.blocks, model.final_norm, (model.image_id,)))
    """
    _ADAPTERS[model_type] = adapter


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel``, FSDP's and ``torch.compile``'s wrappers."""
    while True:
        wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        wrapped = wrapped or type(model).__name__ == "FullyShardedDataParallel"  # by name: its import takes long
        inner = getattr(model, "_orig_mod", None) or (model.module if wrapped else None)
        if inner is None:
            return model
        model = inner


def base_of(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper as well, whose attributes are not where one looks for them."""
    model = unwrap(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_parts(model: nn.Module) -> DecoderParts:
    """Find the decoder layers, the final norm and the vision rows of a model, from its config and structure.

    Raises:
        UndefinedMIRError: If vision never enters the decoder's token sequence, so that MIR is undefined.
        MirlibError: If the structure is not recognised; the message says how to register an adapter.
    """
    model = base_of(model)
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type in _ADAPTERS:
        return _ADAPTERS[model_type](model)
    if config is None:
        raise MirlibError(f"{type(model).__name__} has no config; register_adapter() tells mirlib where its layers are")
    return general_rule(model)


def general_rule(model: nn.Module) -> DecoderParts:
    """The `DecoderParts` of a model whose config names its image token; an adapter may start from it."""
    model_type, ids, decoder = model.config.model_type, find_vision_token_ids(model.config), find_decoder(model)
    reason = _why_undefined(model, decoder, ids)
    if reason is not None:
        raise UndefinedMIRError(reason)
    if decoder is None:
        raise MirlibError(f"{model_type}: no decoder with `layers` found; register_adapter() tells mirlib where it is")
    return parts_of(decoder, vision_token_ids=ids, grid=find_grid(model), connector=find_connector(model))


def parts_of(decoder: nn.Module, **others: Any) -> DecoderParts:
    """The `DecoderParts` of a module that holds layers and their norm, and what else is known."""
    return DecoderParts(decoder_layers(decoder), find_final_norm(decoder), **others)


def find_decoder(model: nn.Module) -> nn.Module | None:
    """The module that holds the decoder's ``layers``, under whatever heads and wrappers; None if there is none."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for _ in range(len(DECODER_NAMES)):  # a wrapper inside a wrapper, and never in circles
        if decoder is None or len(getattr(decoder, "layers", None) or ()):
            return decoder
        decoder = _first_of(decoder, DECODER_NAMES)
    return None


def _first_of(owner: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The first module that another keeps under one of these names."""
    return next((found for name in names if isinstance(found := getattr(owner, name, None), nn.Module)), None)


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers that a forward pass runs: behind them may stand layers that only predict further tokens."""
    count = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    layers = list(decoder.layers)
    return layers[:count] if isinstance(count, int) and count > 0 else layers


def find_final_norm(decoder: nn.Module) -> nn.Module | None:
    """The norm behind the last layer, by the names that decoders give it."""
    return _first_of(decoder, FINAL_NORM_NAMES)


def connector_names(model: nn.Module) -> list[str]:
    """Dotted names of the modules that go by the first of the usual names of a connector; one, where it is known."""
    named = [name for name, _ in model.named_modules()]
    found = ([name for name in named if name.rpartition(".")[2] == known] for known in CONNECTOR_NAMES)
    return next(filter(None, found), [])


def find_connector(model: nn.Module) -> nn.Module | None:
    found = connector_names(model)
    return model.get_submodule(found[0]) if len(found) == 1 else None


def find_vision_token_ids(config: Any) -> tuple[int, ...]:
    """Ids of the image and video placeholders that a config names."""
    ids = [getattr(config, name, None) for name in VISION_TOKEN_NAMES]
    # Models that turn a picture into words of their own vocabulary name the placeholder in that vocabulary.
    ids.append((getattr(config, "vocabulary_map", None) or {}).get("<image>"))
    return tuple(sorted({i for i in ids if isinstance(i, int) and i >= 0}))


def text_config(config: Any) -> Any:
    """The part of a config that is its language model's, or all of it."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def longest_sequence(config: Any) -> int | None:
    """The number of positions that a language model was made for, if its config says so."""
    return getattr(text_config(config), "max_position_embeddings", None)


def _why_undefined(model: nn.Module, decoder: nn.Module | None, vision_token_ids: tuple[int, ...]) -> str | None:
    """Why a model has no vision rows in its decoder's sequence, or None if it has them."""
    config, model_type, language = model.config, model.config.model_type, text_config(model.config)
    if any(getattr(each, "is_encoder_decoder", False) for each in (config, language)):
        return (
            f"{model_type} is an encoder-decoder: vision reaches its decoder by cross-attention and has no rows in the "
            "decoder's sequence, so MIR is undefined for it"
        )
    crossing = not vision_token_ids and _has_cross_attention(decoder or model)
    if crossing or getattr(language, "cross_attention_layers", None):
        return (
            f"{model_type} feeds what its encoder sees to its decoder by cross-attention layers: there are no vision "
            "rows in the token sequence, so MIR is undefined for it"
        )
    if vision_token_ids:
        return None
    if not any(word in name for name in vars(config) for word in ("vision", "image", "visual", "vq")):
        why = "is a language model alone: its config names no image token and no vision part"
        return f"{model_type} {why}, so MIR is undefined for it"
    return (
        f"the config of {model_type} names no image token (image_token_id), so its input_ids hold no vision rows "
        "and MIR is undefined for it; if it does have them, register_adapter() tells mirlib which"
    )


def _has_cross_attention(decoder: nn.Module) -> bool:
    names = (f"{name} {type(module).__name__}".lower() for name, module in decoder.named_modules())
    return any(word in name for name in names for word in ("crossattention", "cross_attn", "encoder_attn"))


# The exceptions, by model type. Each says what the general rule misses.


def _with(**changes: Callable[[nn.Module], Any]) -> Callable[[nn.Module], DecoderParts]:
    """The general rule, but for parts that are made of the model."""
    return lambda model: replace(general_rule(model), **{name: make(model) for name, make in changes.items()})


def _mean_of_streams(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Hyper-connections keep n residual streams, (B, T, n, d) or (B, T, n d), and the row is their mean."""
    # As in GLM's head; Qwen's and Hunyuan's weigh the streams by gates, which only the whole model's output shows.
    width = model.config.get_text_config().hidden_size
    return lambda hidden: hidden.reshape(*hidden.shape[:2], -1, width).mean(dim=2)


def _active_stream(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Gemma 3n keeps several guesses of each row, (n, B, T, d), and computes with one of them."""
    active = model.config.get_text_config().altup_active_idx
    return lambda hidden: hidden[active] if hidden.ndim == 4 else hidden


def _rows_in_front(model: nn.Module) -> DecoderParts:
    """GIT puts its patches before the text, without placeholders in input_ids, and its layers end in a norm."""
    inner = getattr(model, "git", model)
    layers = list(inner.encoder.layer)
    patches = layers[0].attention.self.image_patch_tokens

    def vision_mask(inputs: Mapping[str, Any]) -> Tensor:
        text = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        front = 0 if inputs.get("pixel_values") is None else patches
        return torch.cat([text.new_ones(len(text), front), text], dim=1)

    connector = getattr(inner, "visual_projection", None)
    return DecoderParts(layers, layers[-1], vision_mask=vision_mask, connector=connector)


def _rows_given_by_mask(model: nn.Module) -> DecoderParts:
    """Kosmos takes a mask of the positions of its image as an argument, and any token may stand there."""

    def vision_mask(inputs: Mapping[str, Any]) -> Tensor:
        mask = inputs.get("image_embeds_position_mask")
        # Kosmos-2.5 marks the image with 1, and with -1 the tokens around it.
        return torch.zeros_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask == 1

    return parts_of(find_decoder(model.text_model), vision_mask=vision_mask, connector=model.image_to_text_projection)


def _reader_of_images(model: nn.Module) -> DecoderParts:
    """DiffusionGemma reads image and text with a causal encoder, whose weights its decoder shares, into a cache."""
    encoder, ids = model.model.encoder.language_model, find_vision_token_ids(model.config)
    return parts_of(encoder, vision_token_ids=ids, connector=find_connector(model))


_ADAPTERS: dict[str, Callable[[nn.Module], DecoderParts]] = {
    "diffusion_gemma": _reader_of_images,
    "gemma3n": _with(read=_active_stream),
    "git": _rows_in_front,
    "glm5_next": _with(read=_mean_of_streams),
    "hy_v4_vl": _with(read=_mean_of_streams),
    "kosmos-2": _rows_given_by_mask,
    "kosmos-2.5": _rows_given_by_mask,
    # PI0 reads image and text with a PaliGemma, and a second decoder makes robot actions from its cache.
    "pi0": lambda model: general_rule(model.model.vlm),
    "qwen4_exp": _with(read=_mean_of_streams, final_norm=lambda model: find_decoder(model).hyper_connection_mixer),
}
