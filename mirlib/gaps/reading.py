"""Means of samples for the measures of pairs, read so that the picture has no way into the text, nor back.

In a sequence of a picture and its text every layer lets the text look at the picture, so text rows read after it hold
it whether the model has learned anything or not: with random weights, measures of pairs come out as high as trained.
Here the text is read without its picture, and the picture beside a text that is the same for all of them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.adapters import unwrap
from mirlib.align.files import base_of
from mirlib.batches import ANY_TEXT, ModelInputs, PairBatches, pair_batches
from mirlib.errors import MirlibError, boundary
from mirlib.forward import evaluating, memory_advice
from mirlib.hidden_states import capture
from mirlib.prompts import encode_batch
from mirlib.rows import collect_rows, means_of_samples

__all__ = ["PairMeans", "PairReader", "in_order", "random_twin"]

ALONE, AFTER = "alone", "after the picture"
SEEN = 1e-3  # share of its length by which a vision row moves with a text that it has seen; rounding moves it by less


def in_order(model: nn.Module, processor: Any, images: Sequence, texts: Sequence[str], **options: Any) -> PairBatches:
    """The pairs ``(images[i], texts[i])`` in their order, checked as `mirlib.batches.pair_batches` does."""
    drawn = pair_batches(model, processor, images, texts, num=len(texts), paired=True, **options)
    return PairBatches(processor, images, texts, [(i, i) for i in range(len(texts))], drawn.settings)


class PairMeans(NamedTuple):
    """Means of the rows of N samples, K tensors (N, d) each: what measures of pairs take as ``(vision, text)``."""

    vision: list[Tensor]
    text: list[Tensor]


@dataclass(frozen=True)
class PairReader:
    """Reads the pairs ``(images[i], texts[i])`` with a model, the one modality apart from the other.

    ``text`` is ``"alone"``, or ``"after the picture"`` to see what comes of that; all else is as for `mirlib.score`. A
    text alone stands in the same prompt, with nothing in the picture's place.

    Examples:
        >>> from mirlib import gaps
        >>> from mirlib.data import sample_images, sample_texts
        >>> from mirlib.loading import load_miniature
        >>> model, processor = load_miniature()
        >>> pairs = PairReader(processor, sample_images(6), sample_texts(6), max_text_tokens=8).read(model)
        >>> 0 <= gaps.cka(*pairs, permutations=0).value <= 1
        True
    """

    processor: Any
    images: Sequence[Any]
    texts: Sequence[str]
    text: str = ALONE
    batch_size: int = 8
    template: str = "chat"
    text_rows: str = "text"
    last: str = "normed"
    max_text_tokens: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.text not in (ALONE, AFTER):
            raise MirlibError(f"unknown text {self.text!r}; choose {ALONE!r} or {AFTER!r}")
        images, texts = len(self.images), len(self.texts)
        if images != texts or not images:
            raise MirlibError(f"expected as many images as texts and at least one, got {images} and {texts}")

    def read(self, model: nn.Module) -> PairMeans:
        """The means of all samples, the texts in a pass of their own; a model that takes no text alone is refused."""
        if self.text == AFTER:
            return self._together(model, self.images, self.texts)
        return PairMeans(self.vision(model), self.text_alone(model))

    def vision(self, model: nn.Module) -> list[Tensor]:
        """K tensors (N, d), the means of vision rows, each picture before one and the same short text."""
        return self._together(model, self.images, [ANY_TEXT] * len(self.images)).vision

    def text_alone(self, model: nn.Module) -> list[Tensor]:
        """K tensors (N, d), the means of the text rows of each text without its picture."""
        order = sorted(range(len(self.texts)), key=lambda i: len(self.texts[i]))
        starts = range(0, len(order), self.batch_size)
        bar = tqdm(starts, desc="texts alone", unit="batch", disable=not self.progress, file=sys.stderr, leave=False)
        prompt = {"template": self.template, "max_text_tokens": self.max_text_tokens}
        kind, template = type(unwrap(model)).__name__, f"the chat template of {type(self.processor).__name__}"
        way = f"measures of pairs can only be had with text={AFTER!r}, where the text has seen it"
        found = []
        with evaluating(model), capture(model, last=self.last) as stream:
            for start in bar:
                texts = [self.texts[i] for i in order[start : start + self.batch_size]]
                batch = ModelInputs.of(encode_batch(self.processor, None, texts, **prompt), model)
                stream.text_mask = batch.text_mask
                with boundary(f"{kind} reads no text without a picture", way), memory_advice(model, self.batch_size):
                    model(**batch.inputs)
                if stream.positions["vision"].any():
                    raise MirlibError(f"{template} writes placeholders of a picture that cannot be taken out; {way}")
                found.append(means_of_samples(stream.text, stream.text_samples.cpu(), len(texts)))
        return list(torch.cat(found, dim=1)[:, torch.tensor(order).argsort()])

    def vision_sees_text(self, model: nn.Module) -> bool:
        """Whether vision rows change with the text: with attention both ways (PaliGemma), or a picture behind its text.

        It compares two pictures before their own texts with the same before each other's. Texts that are equal tell
        nothing, and then there is nothing to see.
        """
        second = next((i for i, text in enumerate(self.texts) if text.strip() != self.texts[0].strip()), None)
        if second is None:
            return False
        images, texts = [self.images[0], self.images[second]], [self.texts[0], self.texts[second]]
        first, other = (torch.stack(self._together(model, images, side).vision) for side in (texts, texts[::-1]))
        return bool((torch.linalg.vector_norm(first - other, dim=-1) > SEEN * first.norm(dim=-1)).any())

    def _together(self, model: nn.Module, images: Sequence[Any], texts: Sequence[str]) -> PairMeans:
        """Each picture before its text."""
        names = ("batch_size", "template", "text_rows", "last", "max_text_tokens", "progress")
        options = {name: getattr(self, name) for name in names}
        return PairMeans(*collect_rows(model, self.processor, images, texts, max_rows=1, **options).pooled)


def random_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same class and config, in evaluation mode, with the weights that its class starts from.

    It is on the model's device and in its precision, without adapters of PEFT and methods of `mirlib.align`. Weights of
    a GPU are others than those of a CPU. It is refused if it would not fit in the memory that is free, the weights are
    spread over devices or stored in few bits, or the class cannot be made from its config.
    """
    inner = base_of(model)
    kind, config = type(inner).__name__, getattr(inner, "config", None)
    if config is None:
        raise MirlibError(f"{kind} has no config to make another from")
    if getattr(config, "quantization_config", None):
        raise MirlibError(f"the weights of {kind} are stored in few bits, and there are none of random weights")
    weights = list(inner.parameters())
    devices = {weight.device for weight in weights}
    if len(devices) > 1 or next(iter(devices)).type == "meta":
        raise MirlibError(f"the weights of {kind} are spread over devices")
    device = devices.pop()
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
    size, free = sum(weight.numel() * weight.element_size() for weight in weights), _free_memory(device)
    if free is not None and size > free:
        raise MirlibError(f"another {kind} takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    advice = "leave its random weights out (random_weights=0, --random-weights 0)"
    with boundary(f"{kind} cannot be made from its config", advice), _seeded(seed, device, dtype):
        return type(inner)(copy.deepcopy(config)).eval().to(device, dtype)


@contextmanager
def _seeded(seed: int, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New tensors on a device and in a precision, from a seed that leaves the caller's random numbers alone."""
    before = torch.get_default_dtype()
    accelerators = [device] if device.type not in ("cpu", "mps") else []
    with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
