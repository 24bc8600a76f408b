"""EIM: three contrastive losses, one for each part of an LVLM (Bai et al., doi 10.1371/journal.pone.0329590).

All three are InfoNCE over a queue that holds a key for every training pair, of unit vectors: none can pull long vision
tokens back. IE trains the vision encoder (`image_vectors` against `caption_vectors`), ST the projector
(`mean_vision_tokens` against `mean_text_embeddings`), LM the language model (`last_token_vectors` against its own as
they were before). Keys carry no gradient; which parameters a loss moves, and its weight, are the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirlib.adapters import DecoderParts, decoder_layers, decoder_parts, find_decoder, find_final_norm, unwrap
from mirlib.align.precision import Float32Module, widened
from mirlib.errors import MirlibError, UndefinedMIRError
from mirlib.hidden_states import hidden_of, read_modules, token_masks

__all__ = ["TEMPERATURE", "KeyQueue", "caption_vectors", "image_vectors", "info_nce", "last_token_vectors"]
__all__ += ["mean_text_embeddings", "mean_vision_tokens", "vision_tower"]

TEMPERATURE = 0.07
"""Of all three losses in the paper."""


def info_nce(queries: Tensor, keys: Tensor, positives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    r"""Mean over queries of :math:`-\log \frac{\exp(q_i \cdot k_{p(i)} / \tau)}{\sum_j \exp(q_i \cdot k_j / \tau)}`.

    Queries (n, d) and keys (N, d) are scaled to unit length first; detach keys that are a target only, as `KeyQueue`
    does. ``positives``, (n,) whole numbers, are the key that belongs to each query; all others are negatives, as in the
    paper, even one that equals the positive. Other shapes, a positive that names no key, and a temperature
    :math:`\tau` that is not above 0 are refused. A scalar in nats, float32 or wider, at least 0; log N where all keys
    look alike to the queries.

    Examples:
        >>> import torch
        >>> eye = torch.eye(3)
        >>> round(info_nce(eye, eye, torch.arange(3), temperature=1.0).item(), 4)  # log(e + 2) - 1
        0.5514
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        shapes = f"{tuple(queries.shape)} with {tuple(keys.shape)}"
        raise MirlibError(f"queries (n, d) are compared with keys (N, d), not {shapes}")
    return _loss_of_cosines(_unit(queries) @ _unit(keys).to(queries.device).T, positives, temperature)


def _unit(vectors: Tensor) -> Tensor:
    """In float32 at least: at a temperature of 0.07 half precision is too coarse."""
    return F.normalize(widened(vectors), dim=-1)


def _loss_of_cosines(cosines: Tensor, positives: Tensor, temperature: float) -> Tensor:
    count, keys = cosines.shape
    if positives.shape != (count,) or positives.is_floating_point() or positives.dtype == torch.bool:
        given = f"{positives.dtype} of shape {tuple(positives.shape)}"
        raise MirlibError(f"positives must be {count} whole numbers, one for each query, not {given}")
    if count == 0 or not 0 <= int(positives.min()) <= int(positives.max()) < keys:
        raise MirlibError(f"each of the {count} queries needs a positive from 0 to {keys - 1}")
    if not temperature > 0:
        raise MirlibError(f"temperature must be above 0, not {temperature}")
    return F.cross_entropy(cosines / temperature, positives.to(cosines.device, torch.long))


class KeyQueue(Float32Module):
    """The keys of all training pairs, built once before a stage: unit vectors that no gradient reaches.

    They are made of ``keys`` (N, d), each of which must have a direction, and are a buffer of that name, float32 or
    wider, so they move with ``.to(device)``; they are not saved with a model. They take 4 N d bytes in float32: 9.1 GB
    for 558,000 pairs at a width of 4096.

    Examples:
        >>> import torch
        >>> queue = KeyQueue(torch.eye(4) * 5)
        >>> queue.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """

    keys: Tensor

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        if keys.ndim != 2 or len(keys) == 0:
            raise MirlibError(f"keys must be a matrix (N, d) with N > 0, not of shape {tuple(keys.shape)}")
        keys = keys.detach()
        without = ~(keys.isfinite().all(dim=1) & keys.ne(0).any(dim=1))
        if without.any():
            raise MirlibError(f"key {int(without.int().argmax())} of {len(keys)} has no direction: zero or not finite")
        self.register_buffer("keys", _unit(keys).clone(), persistent=False)

    @classmethod
    def build(cls, vectors_of: Callable[[Any], Tensor], batches: Iterable[Any]) -> KeyQueue:
        """Make the keys batch by batch, without a gradient; their order is that of the batches."""
        with torch.no_grad():
            made = [vectors_of(batch).detach() for batch in batches]
        if not made:
            raise MirlibError("there are no batches to build keys from")
        return cls(torch.cat(made))

    def __len__(self) -> int:
        return len(self.keys)

    def cosines(self, queries: Tensor) -> Tensor:
        """Of queries (n, d) with all keys, (n, N)."""
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            what = f"queries of shape {tuple(queries.shape)} do not fit keys of width {self.keys.shape[1]}"
            raise MirlibError(f"{what}; where CLIP's towers differ in width, put CLIP's output layers behind both")
        with torch.autocast(queries.device.type, enabled=False):
            return _unit(queries).to(self.keys.device) @ self.keys.T

    def loss(self, queries: Tensor, positives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
        """`info_nce` of queries (n, d) with the keys; arguments and errors as there."""
        return _loss_of_cosines(self.cosines(queries), positives, temperature)

    @torch.no_grad()
    def accuracy(self, queries: Tensor, positives: Tensor) -> float:
        """Share of queries whose nearest key is their own; 1 / N by chance."""
        nearest = self.cosines(queries).argmax(dim=1)
        return (nearest == positives.to(nearest.device)).float().mean().item()


def vision_tower(model: nn.Module) -> nn.Module:
    """The vision tower of an LVLM, by the names that families give it, or refused; a tower is returned as it is."""
    model = unwrap(model)
    for place in (model, getattr(model, "model", None)):
        for name in ("vision_tower", "vision_model", "visual", "vision_encoder"):
            found = getattr(place, name, None)
            if isinstance(found, nn.Module):
                return found
    if "pixel_values" in signature(model.forward).parameters:
        return model
    raise MirlibError(f"{type(model).__name__} has no vision tower of a known name; pass the tower itself")


def image_vectors(model: nn.Module, pixel_values: Tensor, **inputs: Any) -> Tensor:
    """Queries of IE: (n, d), the [CLS] token that the vision tower returns for each image, with its gradient.

    Towers that pool by attention instead (SigLIP) give what they pool; one without a vector for a whole image is
    refused, for which IE is undefined. ``model`` is an LVLM or its tower; ``inputs`` is what else the tower takes.
    """
    tower = vision_tower(model)
    name = type(tower).__name__
    if "pixel_values" not in signature(tower.forward).parameters:
        raise MirlibError(f"{name} does not read images one by one and has no [CLS] token, so IE is undefined for it")
    if pixel_values.ndim != 4:
        raise MirlibError(f"pixel_values must be (n, 3, height, width) for {name}, not {tuple(pixel_values.shape)}")
    pooled = getattr(tower(pixel_values=pixel_values, **inputs), "pooler_output", None)
    if pooled is None or pooled.shape[:-1] != (len(pixel_values),):
        raise MirlibError(f"{name} returns no vector for a whole image ([CLS]), so IE is undefined for it")
    return pooled


def caption_vectors(text_tower: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Keys of IE: (n, d), the [EOS] token that CLIP's text tower (a ``CLIPTextModel``) returns for each caption.

    Ids and mask are (n, T). Where CLIP's towers differ in width, its output layers take keys and queries to one.
    """
    return text_tower(input_ids=input_ids, attention_mask=attention_mask).pooler_output


def mean_vision_tokens(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Queries of ST: (B, d), the mean, over the image, of the vision rows that the decoder's first layer reads.

    These rows are the projector's output (where a decoder adds positions to its input, with those). The forward pass of
    the batch ends there: no layer of the decoder runs. A sample without vision rows is refused.
    """
    model = unwrap(model)
    parts = decoder_parts(model)
    hidden = _first_reading(model, parts.layers[0], batch, entering=True)
    hidden = hidden if parts.read is None else parts.read(hidden)
    given = None if parts.vision_mask is None else parts.vision_mask(batch)
    ids, attended = batch["input_ids"], batch.get("attention_mask")
    mask, _ = token_masks(ids, attended, parts.vision_token_ids, vision_mask=given)
    return _masked_mean(hidden, mask, "vision")


def mean_text_embeddings(model: nn.Module, batch: Mapping[str, Any], text_mask: Tensor | None = None) -> Tensor:
    """Keys of ST: (B, d), the mean of the embedded tokens of each text, by the language model's embedding layer alone.

    The batch holds ``input_ids`` (B, T) and, if padded, ``attention_mask``; ``text_mask``, (B, T) bool, says which
    tokens are instruction and response, all attended ones but those that stand for vision if left out. A text without a
    token is refused.
    """
    model = unwrap(model)
    input_ids = batch["input_ids"]
    ids = decoder_parts(model).vision_token_ids
    _, text = token_masks(input_ids, batch.get("attention_mask"), ids, text_mask=text_mask)
    words = input_ids.masked_fill(~text, 0)  # a placeholder may lie outside of the vocabulary
    return _masked_mean(model.get_input_embeddings()(words), text, "text")


def last_token_vectors(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Queries and keys of LM: (B, d), what the last block, with the final norm, returns for each text's last token.

    ``model`` is an LVLM, or the language model alone. The last attended token is that of the text, [EOS] if it has one.
    """
    model = unwrap(model)
    try:
        parts = decoder_parts(model)
    except UndefinedMIRError:  # no picture is read here: a language model alone will do
        decoder = find_decoder(model)
        if decoder is None:
            raise
        parts = DecoderParts(decoder_layers(decoder), find_final_norm(decoder))
    hidden = hidden_of(parts, _first_reading(model, read_modules(parts)[-1], batch, entering=False))
    length = batch["input_ids"].shape[1]
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    last = (mask.long() * torch.arange(1, length + 1, device=mask.device)).argmax(dim=1)  # the last 1 of each row
    last = last.to(hidden.device) + hidden.shape[1] - length  # rows of vision in front that input_ids does not show
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _masked_mean(hidden: Tensor, mask: Tensor, what: str) -> Tensor:
    mask = mask.to(hidden.device)
    if mask.shape != hidden.shape[:2]:
        shapes = f"{tuple(mask.shape)} positions, but the decoder reads {tuple(hidden.shape)}"
        raise MirlibError(f"{what} stands in {shapes}")
    counts = mask.sum(dim=1, keepdim=True)
    if not bool(counts.all()):
        raise MirlibError(f"sample {int((counts == 0).int().argmax())} of the batch has no {what} tokens")
    return (hidden * mask[..., None]).sum(dim=1) / counts


class _ReadingDoneError(Exception):
    """Ends a forward pass at the place that was to be read, and carries what was."""


def _first_reading(model: nn.Module, module: nn.Module, batch: Mapping[str, Any], *, entering: bool) -> Any:
    """What a module is given (``entering``) or returns in a forward pass of the model, which ends there."""

    def done(module: nn.Module, args: tuple[Any, ...], rest: Any) -> None:  # which are keyword arguments, or the output
        raise _ReadingDoneError((args[0] if args else rest["hidden_states"]) if entering else rest)

    handle = (
        module.register_forward_pre_hook(done, with_kwargs=True) if entering else module.register_forward_hook(done)
    )
    try:
        model(**batch)
    except _ReadingDoneError as reading:
        return reading.args[0]
    finally:
        handle.remove()
    way = "A compiled model runs past hooks that were added after the first call: pass the model that was not compiled"
    raise MirlibError(f"{type(module).__name__} was not called in the forward pass. {way}")
