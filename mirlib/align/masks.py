"""Who may look at whom: attention masks for the vision rows of a Hugging Face LVLM, put on and taken off.

Nothing in a picture says that its patches come one after the other, so one may let vision rows see each other both ways
or keep images apart. "Improved Alignment of Modalities in Large Vision Language Models" (arXiv 2503.19508) reports that
no causal mask on vision helps; only its abstract is public to us, so `VARIANTS` are our reading of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mirlib.adapters import decoder_parts, find_decoder, unwrap
from mirlib.align.files import read_file, write_file
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError, check_choice

__all__ = ["FILE", "VARIANTS", "attach", "detach", "image_numbers", "load", "may_attend", "rows_are", "save"]

FILE = "masks.safetensors"
VARIANTS: dict[str, str] = {
    "causal": "every row sees itself and what stands before it, vision or text",
    "vision_bidirectional": "causal, and the vision rows of one image see each other both ways",
    "no_attention_across_images": "causal, but vision rows do not see the rows of other images",
    "prefix": "image and prompt see each other both ways, the answer is causal",
}
"""What each variant lets a row attend to."""

_ATTRIBUTE = "_mirlib_attention_mask"


def image_numbers(vision: Tensor) -> Tensor:
    """Number the images of each sample, from a (B, T) mask of vision: a run of neighbouring vision rows is one image.

    The numbers are (B, T) int64, 0, 1, ... in the order of the images; -1 where text stands.

    Examples:
        >>> import torch
        >>> image_numbers(torch.tensor([[False, True, True, False, True]])).tolist()
        [[-1, 0, 0, -1, 1]]
    """
    vision = vision.bool()
    first = vision & ~pad(vision, (1, 0))[:, :-1]
    return torch.where(vision, first.cumsum(dim=1) - 1, -1)


def may_attend(variant: str, images: Tensor, prompt: Tensor | None = None) -> Tensor:
    """(B, T, T) bool, whether row i may attend to row j by a variant, where nothing is padded and there is no window.

    ``images`` are those of `image_numbers`, (B, T); ``prefix`` must be told the ``prompt``, (B, T) bool.

    Examples:
        >>> import torch
        >>> may_attend("vision_bidirectional", torch.tensor([[0, 0, -1]]))[0].int().tolist()
        [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    check_choice("attention mask", variant, VARIANTS)
    count = images.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool, device=images.device).tril().expand(len(images), -1, -1)
    rows, columns = images[:, :, None], images[:, None, :]
    if variant == "vision_bidirectional":
        return causal | ((rows == columns) & (rows >= 0))
    if variant == "no_attention_across_images":
        return causal & ((rows == columns) | (rows < 0) | (columns < 0))
    if variant == "prefix":
        if prompt is None:
            raise MirlibError("the variant prefix must be told which rows are the prompt")
        return causal | (prompt[:, :, None] & prompt[:, None, :])
    return causal


def attach(model: nn.Module, variant: str) -> None:
    """Give all decoder layers of a Hugging Face LVLM another attention mask, one of `VARIANTS`, until `detach`.

    What the variant does not speak of stays as the model has it: padding is never attended to, and a layer with a
    sliding window of w rows looks less than w rows back, and less than w rows ahead. A mask that the model has for
    vision (Gemma 3 lets the rows of an image see each other, PaliGemma its whole prompt) is replaced.

    An image is a run of neighbouring vision rows. Where a model puts other tokens into its pictures (line breaks in
    Pixtral, tiles in Idefics3), or pictures without anything between them, say with `rows_are` which rows are whose.

    The prompt of ``prefix`` is what `rows_are` says. Left unsaid, it is everything before the first learnt label if the
    model is called with ``labels``, and else all that a pass without a filled cache reads, as generation's first pass
    does. Generated tokens are text and causal; without a cache say what the prompt is, since every pass then reads
    prompt and answer together.

    Refused are a model that has a variant already, or no vision rows in its decoder's sequence; attention that is not
    computed by ``sdpa`` or ``eager`` (flash attention takes no mask); and a layer that takes no attention mask or is no
    attention of that kind (convolutions, recurrences, chunks).

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model, "vision_bidirectional")
        >>> detach(model)
    """
    check_choice("attention mask", variant, VARIANTS)
    inner = unwrap(model)
    if is_attached(inner):
        raise MirlibError(f"the model has the attention mask {_masks_of(inner).variant!r} already: detach() it first")
    setattr(inner, _ATTRIBUTE, _Masks(inner, variant))


def _masks_of(model: nn.Module) -> _Masks:
    masks = getattr(unwrap(model), _ATTRIBUTE, None)
    if masks is None:
        raise MirlibError("the model has no attention mask of attach()")
    return masks


def detach(model: nn.Module) -> None:
    """Take the masks of `attach` off; the model attends as before. Refused if it has none."""
    model = unwrap(model)
    _masks_of(model).remove(model)
    delattr(model, _ATTRIBUTE)


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` put a mask on the model, or on the one that the model is a copy of."""
    return hasattr(unwrap(model), _ATTRIBUTE)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the variant's name to a file in the model's folder: a checkpoint shows no mask. Refused without one."""
    return write_file(folder, "masks", {}, {"variant": _masks_of(model).variant})


def load(model: nn.Module, folder: str | Path) -> None:
    """Attach the variant that `save` wrote to a folder (or that file), in the place of one that the model may have."""
    path, _, settings = read_file(folder, "masks")
    variant = str(settings.get("variant"))
    if variant not in VARIANTS:
        raise MirlibError(f"{path}: unknown attention mask {variant[:80]!r}; choose one of {', '.join(VARIANTS)}")
    if is_attached(model):
        detach(model)
    attach(model, variant)


@contextmanager
def rows_are(model: nn.Module, *, images: Tensor | None = None, prompt: Tensor | None = None) -> Iterator[None]:
    """Say which rows belong to which image, or which are the prompt, for the passes inside the ``with`` block.

    ``images`` are (B, T) numbers, -1 where text stands; ``prompt`` is (B, T) bool, false on the answer and on padding.
    Rows are counted from the start of the sequence, those in a cache included; rows behind the given ones are text and
    no prompt. Without a mask on the model this does nothing.
    """
    masks = getattr(unwrap(model), _ATTRIBUTE, None)
    if masks is None:
        yield
        return
    before = masks.told_images, masks.told_prompt
    masks.told_images = before[0] if images is None else torch.as_tensor(images)
    masks.told_prompt = before[1] if prompt is None else torch.as_tensor(prompt, dtype=torch.bool)
    try:
        yield
    finally:
        masks.told_images, masks.told_prompt = before


class _Place(NamedTuple):
    """Where a pass stands for a layer: rows before it, its first key, how many keys there are, and its window."""

    query_offset: int
    key_offset: int
    keys: int
    window: int | None


class _Masks:
    """The masks of one model. The hooks are bound methods and partials of such, so that copies have their own."""

    def __init__(self, model: nn.Module, variant: str) -> None:
        self.variant = variant
        self.told_images: Tensor | None = None
        self.told_prompt: Tensor | None = None
        layers = decoder_parts(model).layers
        self._decoder_config = getattr(find_decoder(model), "config", model.config)
        self._check_implementation()
        kinds = list(getattr(self._decoder_config, "layer_types", None) or ())[: len(layers)]
        if len(kinds) < len(layers):  # the config does not say it
            kinds = [None] * len(layers)
        self._labels: Tensor | None = None
        self._seen: Tensor | None = None  # (B, T) bool, vision among all rows so far, those in the cache included
        self._places: dict[int | None, _Place] = {}  # of the latest layer with such a window in this pass
        self._rows = VisionRows.of(model)
        self._handles = [model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        try:
            for number, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
                hook = partial(self._before_layer, number, *self._mask_and_window(number, layer, kind))
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        except MirlibError:
            self.remove(model)
            raise

    def remove(self, model: nn.Module) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._rows.release(model)

    def _check_implementation(self) -> None:
        how, way = self._decoder_config._attn_implementation, "model.set_attn_implementation('sdpa') or ('eager')"
        if how not in ("sdpa", "eager"):
            raise MirlibError(f"attention is computed by {how!r}, which takes no mask of this kind: call {way}")

    def _mask_and_window(self, number: int, layer: nn.Module, kind: str | None) -> tuple[int, int | None]:
        """The place of the mask among a layer's arguments, and its window."""
        name = f"layer {number + 1} ({type(layer).__name__})"
        parameters = list(inspect.signature(layer.forward).parameters)
        if "attention_mask" not in parameters:
            raise MirlibError(f"{name} takes no attention_mask, so it cannot be given another one")
        if kind not in (None, "full_attention", "sliding_attention"):
            raise MirlibError(f"{name} is a layer of {kind}; masks are defined for full and sliding attention")
        windows = {getattr(module, "sliding_window", None) for module in layer.modules()} - {None}
        window = None if kind == "full_attention" else next(iter(windows), None)
        if kind == "sliding_attention" and not isinstance(window, int):
            window = getattr(self._decoder_config, "sliding_window", None)
        return parameters.index("attention_mask"), window

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        self._labels = labels if isinstance(labels, Tensor) else None

    def _before_layer(
        self, number: int, at: int, window: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        given = args[at] if at < len(args) else kwargs.get("attention_mask")
        # By what it can do: releases of transformers call the argument past_key_values, or cache.
        cache = next((each for each in (*args, *kwargs.values()) if hasattr(each, "get_mask_sizes")), None)
        mask = self._rewritten(given, hidden, self._place(number, window, cache, given, hidden.shape[1]))
        if at < len(args):
            return (*args[:at], mask, *args[at + 1 :]), kwargs
        return args, {**kwargs, "attention_mask": mask}

    def _place(self, number: int, window: int | None, cache: Any, given: Any, queries: int) -> _Place:
        """Where the pass stands, by the cache; how many keys there are, by the mask if there is one."""
        if number == 0:
            self._places.clear()
        layers = getattr(cache, "layers", ())
        own = layers[number] if number < len(layers) else None
        if hasattr(own, "get_mask_sizes"):
            keys, first = (int(each) for each in own.get_mask_sizes(queries))
            place = _Place(int(own.get_seq_length()), first, keys, window)
        else:  # nothing is kept, or not yet, or the layer reads the keys of an earlier one of its kind
            place = self._places.get(window, _Place(0, 0, queries, window))
        if isinstance(given, Tensor) and given.ndim == 4:
            place = place._replace(keys=given.shape[-1])
        self._places[window] = place
        return place

    def _rewritten(self, given: Tensor | None, hidden: Tensor, place: _Place) -> Tensor | None:
        """The mask for a layer, from the one that the model made."""
        self._check_implementation()
        vision = self._rows.of_sequence(hidden)
        queries, device = hidden.shape[1], hidden.device
        total = place.query_offset + queries
        images = self._images(vision, place.query_offset).to(device)
        prompt = self._prompt(len(vision), place.query_offset, total, device)
        wanted = may_attend(self.variant, images, prompt)[:, place.query_offset :]  # (B, q, total)
        first, last = place.key_offset, place.key_offset + place.keys
        ends = max(0, last - total)  # a static cache has room for what is not there yet
        wanted = pad(wanted, (0, ends))[..., first:last]
        rows = torch.arange(place.query_offset, total, device=device)[:, None]
        columns = torch.arange(first, last, device=device)[None, :]
        if given is None:  # SDPA without a mask is causal
            if not (wanted != (columns <= rows)).any():
                return None
            allowed = (columns <= rows).expand(1, 1, -1, -1)
        else:
            allowed = self._allowed(given, queries, place.keys)
        # A row that attends to itself is no padding; rows of the cache are never ahead of the queries.
        itself = allowed[..., torch.arange(queries, device=device), rows[:, 0] - first]  # (B, heads, q)
        ahead = itself[..., :, None] & pad(itself, (place.query_offset - first, ends))[..., None, :]
        ahead = ahead & (columns > rows) & (columns - rows < (place.window or total + ends + 1))
        result = wanted[:, None] & (allowed | ahead)
        if given is not None and given.dtype != torch.bool:
            lowest = given.clamp(max=torch.finfo(given.dtype).min)
            return torch.where(result, given.masked_fill(~allowed, 0), lowest)
        if given is None and self._decoder_config._attn_implementation == "eager":
            return torch.zeros_like(result, dtype=hidden.dtype).masked_fill(~result, torch.finfo(hidden.dtype).min)
        return result

    def _allowed(self, given: Tensor, queries: int, keys: int) -> Tensor:
        if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[-2:] != (queries, keys):
            form = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            what = f"a layer got an attention mask of {form} for {queries} queries and {keys} keys"
            raise MirlibError(f"{what}; only masks of shape (batch, heads, queries, keys) can be rewritten")
        if not (given.dtype == torch.bool or given.is_floating_point()):
            raise MirlibError(f"a layer got an attention mask of {given.dtype}; give a boolean one, or one to be added")
        return given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2

    def _images(self, vision: Tensor, past: int) -> Tensor:
        """(B, past + q) numbers of the images of all rows; what is in the cache was read by earlier passes."""
        if self.told_images is not None:
            return _filled(self.told_images, past + vision.shape[1], -1)
        before = None if self._seen is None else self._seen[:, :past]
        if past == 0:
            before = vision[:, :0]
        elif before is None or before.shape != (len(vision), past):
            if vision.any():
                what = f"{past} rows that were read before the attention mask was attached, or in another batch"
                way = "new images need to know where the old ones stand: start with an empty cache"
                raise MirlibError(f"the cache holds {what}; {way}")
            before = vision.new_zeros(len(vision), past)
        before = before.to(vision.device)
        if past and self.variant == "vision_bidirectional" and (before[:, -1] & vision[:, 0]).any():
            raise MirlibError("an image is cut in two by the cache, so its rows cannot see each other both ways")
        self._seen = torch.cat([before, vision], dim=1)
        return image_numbers(self._seen)

    def _prompt(self, batch: int, past: int, total: int, device: torch.device) -> Tensor | None:
        if self.variant != "prefix":
            return None
        if self.told_prompt is not None:
            return _filled(self.told_prompt, total, False).to(device)
        if not past and self._labels is not None and self._labels.shape == (batch, total):
            return ((self._labels != -100).cumsum(dim=1) == 0).to(device)
        return torch.full((batch, total), not past, device=device)


def _filled(rows: Tensor, length: int, value: int | bool) -> Tensor:
    """Rows (B, T) cut or filled up to a length."""
    return pad(rows, (0, max(0, length - rows.shape[1])), value=value)[:, :length]
