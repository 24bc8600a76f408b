"""What goes into a model: its inputs taken out of a batch, and pairs of images and texts drawn, read and encoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mirlib.adapters import base_of, find_vision_token_ids, longest_sequence
from mirlib.data import Unreadable, draw, load_image
from mirlib.distributed import Processes
from mirlib.errors import MirlibError, naming, shown
from mirlib.hidden_states import decoder_parts, unwrap
from mirlib.prompts import check_text, encode_batch, first_tokens, name_of, used_template
from mirlib.result import Sample

__all__ = ["ModelInputs", "PairBatches", "device_of", "pair_batches"]

RESERVED = ("text_mask", "sample_ids", "sample_names")
WORDS = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids"}  # and no pictures
ANY_TEXT = "Any text."


def device_of(model: nn.Module) -> torch.device:
    """Where inputs go: the device of the first parameter (of the embeddings, for a model spread over devices)."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else model
    device = next(iter(embeddings.parameters()), next(model.parameters())).device
    if device.type == "meta" and hasattr(embeddings, "_hf_hook"):  # accelerate brings these weights when they are used
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def _too_long(length: int, limit: int) -> str:
    return (
        f"a sequence of {length} tokens does not fit a model of {limit} positions; cut texts with max_text_tokens "
        "(--max-text-tokens), or take smaller images"
    )


@dataclass
class ModelInputs:
    """A batch taken apart: what the model gets, and our own keys.

    ``inputs`` are on the model's device and in its precision, ``text_mask`` is (B, T) bool or None, ``names`` call B
    samples in messages, and ``ids`` are their hashes, of picture and text.
    """

    inputs: dict[str, Any]
    text_mask: Tensor | None
    names: Sequence[str] | None
    ids: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, batch: Mapping[str, Any], model: nn.Module) -> ModelInputs:
        """Take our own keys out, move the rest to the model, and leave out what only costs memory here."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise MirlibError("each batch must be a dict with input_ids that model(**batch) takes")
        ids = batch["input_ids"]
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            raise MirlibError("input_ids must be a (B, T) integer tensor")
        config = getattr(unwrap(model), "config", None)
        limit, places = longest_sequence(config), find_vision_token_ids(config)
        if limit is not None and ids.shape[1] > limit:
            raise MirlibError(_too_long(ids.shape[1], limit))
        inputs = {name: value for name, value in batch.items() if name not in (*RESERVED, "labels")}
        if not inputs.keys() - WORDS and torch.isin(ids, ids.new_tensor(places)).any():
            raise MirlibError("the batch has places for pictures and no pictures: where are its pixel_values?")
        device = device_of(model)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                inputs[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        accepted = signature(base_of(model).forward).parameters  # PEFT's wrapper takes any keyword and hands it on
        if "logits_to_keep" in accepted:  # (B, T, vocabulary) logits would be larger than all hidden states of a layer
            inputs.setdefault("logits_to_keep", 1)
        if "use_cache" in accepted or any(p.kind == p.VAR_KEYWORD for p in accepted.values()):
            inputs.setdefault("use_cache", False)
        else:
            inputs.pop("use_cache", None)
        if not isinstance(mask := batch.get("text_mask"), Tensor | None):
            raise MirlibError(f"text_mask must be a (B, T) bool tensor, got {type(mask).__name__}")
        names = _of_samples(batch, "sample_names", "a string", lambda value: isinstance(value, str))
        found = _of_samples(batch, "sample_ids", "a pair of strings", _is_pair)
        return cls(inputs, mask, names, found or _ids_of_tensors(batch))


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _of_samples(batch: Mapping[str, Any], key: str, kind: str, fits: Callable[[Any], bool]) -> Sequence[Any] | None:
    """What a batch says of each of its samples under a key of ours; None if nothing."""
    given, count = batch.get(key), len(batch["input_ids"])
    if given is None or (isinstance(given, (tuple, list)) and not given):
        return None
    if not isinstance(given, (tuple, list)) or len(given) != count or not all(map(fits, given)):
        raise MirlibError(f"{key} must be a list with {kind} for each of the {count} samples of the batch")
    return given


def _hash(*values: Any) -> str:
    """16 hexadecimal digits that depend on the shapes and contents of arrays and on texts."""
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, str):
            found.update(value.encode("utf-8", "surrogatepass"))
        else:
            array = np.ascontiguousarray(value)
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(array.data)
    return found.hexdigest()


def _ids_of_tensors(batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Hashes for samples that came as tensors, equal where the same batches are measured again."""
    # Which rows of the other tensors belong to which sample is not known: a picture goes by all of them and its place.
    tensors = {name: batch[name] for name in sorted(batch) if isinstance(batch[name], Tensor) and name != "input_ids"}
    others = _hash(*(part for name, value in tensors.items() for part in (name, _as_bytes(value))))
    return [(_hash(others, str(place)), _hash(_as_bytes(ids))) for place, ids in enumerate(batch["input_ids"])]


def _as_bytes(values: Tensor) -> np.ndarray:
    """The memory of a tensor; NumPy knows no bfloat16."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


@dataclass(eq=False)
class PairBatches:
    """Re-iterable batches of image–text pairs: images are opened and processed when their turn comes.

    ``chosen`` are the numbers of image and text of each pair, ``settings`` what `score` was asked for (``batch_size``,
    ``template`` and ``max_text_tokens`` are read here), ``share`` the pairs that these batches hold (default: all), and
    ``offset`` is the number of the first of them.
    """

    processor: Any
    images: Sequence[Any]
    texts: Sequence[str]
    chosen: Sequence[tuple[int, int]]
    settings: Mapping[str, Any]
    share: range | None = None

    def __post_init__(self) -> None:
        self.share = range(len(self.chosen)) if self.share is None else self.share
        self.offset, self.batch_size = self.share.start, self.settings["batch_size"]
        self.prompt = {name: self.settings[name] for name in ("template", "max_text_tokens")}

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.share), self.batch_size):
            yield self._batch(self.share[start : start + self.batch_size])

    def first(self, batches: int) -> PairBatches:
        """The first pairs of all, ``batches`` batches of them."""
        return replace(self, chosen=self.chosen[: batches * self.batch_size], share=None)

    def samples(self) -> tuple[Sample, ...]:
        """All pairs, by their names and hashes; it opens every image."""
        found = []
        for image, text in self.chosen:
            pixels = np.asarray(load_image(self.images[image]))
            found.append(Sample(_name(self.images[image], image), _hash(pixels), _hash(self.texts[text])))
        return tuple(found)

    @property
    def spare(self) -> dict[str, Any]:
        """A batch to go through the model with where others still have some and this process has none."""
        return self._batch(range(1))

    def _batch(self, pairs: range) -> dict[str, Any]:
        sources = [self.images[self.chosen[pair][0]] for pair in pairs]
        texts = [self.texts[self.chosen[pair][1]] for pair in pairs]
        names = [_name(source, self.chosen[i][0]) for i, source in zip(pairs, sources, strict=True)]
        images = [load_image(source) for source in sources]
        try:
            encoded = encode_batch(self.processor, images, texts, **self.prompt)
        except MirlibError:  # the sample that is refused alone is named
            for image, text, name in zip(images, texts, names, strict=True):
                with naming(shown(name, 300)):
                    encode_batch(self.processor, [image], [text], **self.prompt)
            raise
        ids = [(_hash(np.asarray(image)), _hash(text)) for image, text in zip(images, texts, strict=True)]
        return encoded | {"sample_names": names, "sample_ids": ids}


def _name(image: Any, index: int) -> str:
    name = image if isinstance(image, (str, Path)) else getattr(image, "filename", "")
    return str(name) or f"image {index}"


def pair_batches(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    num: int = 100,
    batch_size: int = 4,
    seed: int = 0,
    paired: bool = False,
    template: str = "chat",
    max_text_tokens: int | None = None,
    skip_unreadable: Unreadable = None,
    merge_processes: bool = True,
) -> PairBatches:
    """The pairs that `score` measures, drawn and checked, as batches for `score_pairs`; it raises what `score` does."""
    if num < 1 or batch_size < 1:
        raise MirlibError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
    for what, given, reader in (("images", images, "open_images"), ("texts", texts, "open_texts")):
        if isinstance(given, (str, Path)):
            raise MirlibError(f"{what}: expected a sequence, got one name or text; mirlib.readers.{reader} opens files")
    if paired and len(images) != len(texts):
        raise MirlibError(f"paired: {len(images)} images and {len(texts)} texts; there must be a text for each image")
    decoder_parts(model)
    processes = Processes.current(merge_processes)

    limit = longest_sequence(getattr(unwrap(model), "config", None))
    prompt = {"template": used_template(processor, template), "max_text_tokens": max_text_tokens}
    # What any image and text meet is no fault of one: it must not count as unreadable, sample for sample.
    advice = "an ordinary picture is refused, so the fault is in its settings (processor_config.json)"
    encode_batch(processor, [Image.new("RGB", (336, 336), "gray")], [ANY_TEXT], advice=advice, **prompt)
    any_text = len(first_tokens(processor.tokenizer, ANY_TEXT, 1))
    longest = 1  # of the chosen images with their templates, in tokens

    def check_image(index: int, text: str = ANY_TEXT) -> None:
        """Images are processed here only if one may be left out: it takes as long as for the measurement itself."""
        nonlocal longest
        image = load_image(images[index])
        if skip_unreadable is not None:
            with naming(shown(_name(images[index], index), 300)):
                length = encode_batch(processor, [image], [text], **prompt)["input_ids"].shape[1]
                if limit is not None and length > limit:
                    raise MirlibError(_too_long(length, limit))
            longest = max(longest, length - any_text)

    def check_words(index: int, beside: int = 1) -> None:
        text = texts[index]
        check_text(processor, text)
        if limit is not None and len(text) > (limit - beside) // 4:  # a character is four tokens at the most
            length = len(first_tokens(processor.tokenizer, text.strip(), limit))
            more = " or more" if length >= 2 * limit else ""  # only the beginning of a very long text was read
            length = min(length, max_text_tokens or length)
            if length + beside > limit:
                advice = f"cut texts with max_text_tokens (--max-text-tokens): {name_of(text)}"
                what = f"a text of {length}{more} tokens does not fit a model of {limit} positions"
                raise MirlibError(f"{what}; {advice}")

    def check_pair(index: int) -> None:
        check_words(index)
        check_image(index, texts[index])

    drawn = partial(_draw, num=num, processes=processes, skip=skip_unreadable)
    if paired:
        chosen = [(i, i) for i in drawn(len(images), seed=seed, what="pairs", check=check_pair)]
    else:
        chosen_images = drawn(len(images), seed=seed, what="images", check=check_image)
        chosen_texts = drawn(len(texts), seed=seed + 1, what="texts", check=lambda index: check_words(index, longest))
        chosen = list(zip(chosen_images, chosen_texts, strict=True))
    settings = {"num": num, "batch_size": batch_size, "seed": seed, **prompt, **({"paired": True} if paired else {})}
    return PairBatches(processor, images, texts, chosen, settings)


PAIR_OPTIONS = frozenset(signature(pair_batches).parameters)


def _draw(
    items: int, num: int, seed: int, what: str, check: Callable[[int], None], processes: Processes, skip: Unreadable
) -> list[int]:
    """What `mirlib.data.draw` draws, each process reading its share of the items that come into question."""

    def problem_with(index: int) -> str | None:
        try:
            check(index)
        except MirlibError as error:
            if skip is None:
                raise
            return str(error)
        return None

    verdicts: dict[int, str | None] = {}
    order, usable = draw(range(items), items, seed, what), 0
    while usable < num and len(verdicts) < items:  # the first num, then as many as turned out to be unusable
        mine = order[len(verdicts) : len(verdicts) + num - usable][processes.rank :: processes.size]
        found = processes.together(lambda mine=mine: {index: problem_with(index) for index in mine})
        for part in processes.gather(found):
            verdicts |= part
        usable = sum(problem is None for problem in verdicts.values())

    def is_usable(index: int) -> bool:
        if verdicts[index] is not None:
            skip(verdicts[index])
        return verdicts[index] is None

    return draw(range(items), num, seed, what, is_usable)
