"""What a model loses when its picture is hidden: measures that take pairs of pictures and texts, and no labels.

A text is read as the model's own answer, see `mirlib.prompts.build_prompt`, and each of its tokens predicted from
the picture and the right tokens before it. ``max_text_tokens=1`` asks for the first one alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.adapters import decoder_parts, find_decoder, unwrap
from mirlib.align.vision_rows import VisionRows
from mirlib.align.weighting import vision_hidden
from mirlib.batches import ModelInputs, PairBatches
from mirlib.errors import MirlibError
from mirlib.forward import evaluating, forward_advice
from mirlib.gaps.base import CONFIDENCE, HIGHER, MODEL, GapResult, mean_interval, of_samples, register, result
from mirlib.gaps.reading import in_order
from mirlib.result import Interval, Sample
from mirlib.rows import means_of_samples

UNCHANGED = 0.95
"""Agreement, as a mean over samples, from which on nothing counts as changed."""


def _with_next_pictures(batches: PairBatches) -> PairBatches:
    """The same texts, each with the picture of the next pair."""
    count = len(batches.chosen)
    return replace(batches, chosen=[((i + 1) % count, i) for i in range(count)])


class _Words:
    """The tokens of a batch's texts and what the model says in their places."""

    def __init__(self, model: nn.Module, batch: ModelInputs) -> None:
        ids = batch.inputs["input_ids"]
        words = batch.text_mask.to(ids.device).clone()
        words[:, 0] = False  # nothing stands before it
        self.model, self.batch, self.size = model, batch, len(ids)
        self.samples = [Sample(name, *hashes) for name, hashes in zip(batch.names, batch.ids, strict=True)]
        self.row, place = words.nonzero(as_tuple=True)
        self.ids = ids[self.row, place]
        self.kept = ids.shape[1] - int(place.min()) + 1  # positions from the one that predicts the first word on
        self.place = place - 1 - (ids.shape[1] - self.kept)

    def logits(self) -> Tensor:
        """(M, vocabulary) for the M words, float32."""
        inputs = self.batch.inputs | ({"logits_to_keep": self.kept} if "logits_to_keep" in self.batch.inputs else {})
        return self.model(**inputs).logits[:, -self.kept :][self.row, self.place].float()

    def log_probability(self) -> np.ndarray:
        """(B,) mean over each text's words, in nats."""
        return self.means(self.logits().log_softmax(-1).gather(1, self.ids[:, None])[:, 0])

    def means(self, values: Tensor) -> np.ndarray:
        """(B,) means of (M,) values over the words of each text."""
        return means_of_samples([values[:, None]], self.row.cpu(), self.size)[0, :, 0].double().numpy()


def _read(model: nn.Module, batches: PairBatches, description: str, progress: bool) -> Iterator[_Words]:
    for raw in tqdm(batches, desc=description, unit="batch", disable=not progress, leave=False):
        batch = ModelInputs.of(raw, model)
        with evaluating(model), forward_advice(model, len(batch.inputs["input_ids"]), "a pair", batches.processor):
            yield _Words(model, batch)


@register("picture_gain", title="gain of the picture", needs=MODEL, direction=HIGHER)
def picture_gain(
    model: nn.Module, processor: Any, images: Sequence, texts: Sequence[str], *, progress: bool = False, **options: Any
) -> GapResult:
    """``log P(text | picture) − log P(text | picture hidden)``, in nats a token.

    How much likelier does the picture make each word of its text? When to use it: you have pictures with texts that
    describe them and no labels, and want to know whether the model reads its pictures at all.

    The null gives each text the picture of the next pair: what any picture brings. The difference to it is what this
    picture says, and unlike the gain itself it cannot come from the mere presence of vision rows.

    Model (see `mirlib.align.weighting.vision_hidden`), processor, N images with the N texts that belong to them, and
    options are those of `mirlib.score`; so are the errors, and fewer than 2 pairs are refused. The result is without
    layers, see `mirlib.gaps.base.of_samples`, and its ``settings`` also hold ``log_probability``, the means with the
    picture, with another and with it hidden. The masked picture is that of CAL (arXiv 2405.17871).
    """
    batches = in_order(model, processor, images, texts, **options)
    seen, hidden, samples = [], [], []
    for words in _read(model, batches, "pictures", progress):
        samples += words.samples
        seen.append(words.log_probability())
        with vision_hidden(model):
            hidden.append(words.log_probability())
    others = _read(model, _with_next_pictures(batches), "other pictures", progress)
    other = [words.log_probability() for words in others]
    seen, hidden, other = map(np.concatenate, (seen, hidden, other))
    means = {"own": float(seen.mean()), "other": float(other.mean()), "hidden": float(hidden.mean())}
    settings = {"samples": samples, "log_probability": means, **batches.settings}
    return of_samples("picture_gain", seen - hidden, {"pairs": len(texts)}, null=other - hidden, **settings)


@contextmanager
def vision_hidden_behind(model: nn.Module, depth: int) -> Iterator[None]:
    """Inside the ``with`` block no text row attends to a vision row in the layers behind the first ``depth`` of 0..K.

    The model's vision rows must meet the words in attention only, computed by ``sdpa`` or ``eager``; a form of its
    attention mask that is not recognised is refused.
    """
    inner = unwrap(model)
    eager = getattr(getattr(find_decoder(inner), "config", inner.config), "_attn_implementation", None) == "eager"
    rows = VisionRows.of(inner)

    def hide(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(args) > 1:
            raise MirlibError(f"{type(module).__name__} was called with an attention mask by place; hide it by name")
        vision = rows.of_sequence(hidden)
        kept = ~(vision[:, None, :] & ~vision[:, :, None])[:, None]  # (B, 1, T, T)
        mask = kwargs.get("attention_mask")
        if mask is None:  # SDPA without a mask is causal
            mask = torch.ones_like(kept[:1]).tril()
        if not isinstance(mask, Tensor) or mask.shape[-2:] != kept.shape[-2:]:
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            where = f"{shape} for a sequence of shape {tuple(hidden.shape[:2])}"
            way = "call model.set_attn_implementation('sdpa') or ('eager')"
            raise MirlibError(f"a layer got an attention mask of {where}; {way}")
        kept = kept.to(mask.device)
        if not mask.is_floating_point():
            kept = mask.bool() & kept
            mask = torch.zeros_like(kept, dtype=hidden.dtype) if eager else kept
        if mask.is_floating_point():
            mask = mask.masked_fill(~kept, torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    with ExitStack() as stack:
        stack.callback(rows.release, inner)
        for layer in decoder_parts(inner).layers[depth:]:
            stack.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield


def depth_of(agreement: np.ndarray) -> tuple[int, list[int]]:
    """From which depth on the mean of an agreement (K + 1, N), by depth from 0 and by sample, is `UNCHANGED` or above.

    Then the depths at which that is true of the upper and of the lower end of Student's t interval. It is 1 at depth K.

    Examples:
        >>> import numpy as np
        >>> depth_of(np.array([[0.0, 0.5], [1.0, 1.0], [0.8, 0.9], [1.0, 1.0]]))
        (3, [0, 3])
    """
    ends = [mean_interval(values) for values in agreement]
    curves = agreement.mean(1), [end.high for end in ends], [end.low for end in ends]
    found = [max((k + 1 for k, share in enumerate(curve) if share < UNCHANGED), default=0) for curve in curves]
    return found[0], found[1:]


@register("exit_depth", title="exit depth", needs=MODEL, direction=HIGHER)
def exit_depth(
    model: nn.Module, processor: Any, images: Sequence, texts: Sequence[str], *, progress: bool = False, **options: Any
) -> GapResult:
    """The number of layers after which hiding the vision rows changes (almost) no answer.

    After how many layers have the words taken all they need from the picture? When to use it: before you compare
    layers, to know up to which of them the rows of the picture matter to what the model says; a gap in later layers can
    do no harm.

    For each depth k the vision rows are hidden from the text in all layers behind k, and the word that the model would
    say in the place of each word of the text is compared with the one it says when nothing is hidden. A sample's
    agreement is the share of its tokens that stay.

    Model (see `vision_hidden_behind`), processor, N images with the N texts that belong to them, and options are those
    of `mirlib.score`; so are the errors, and fewer than 2 pairs are refused. The result is in 0..K, and ``per_layer``
    is the agreement at depths 1..K, the last of them 1. ``settings`` hold ``never_seen``, the agreement at depth 0;
    ``null``, the agreement between a text's own picture and the next one's, above which no answer depends on the
    picture. The interval holds the depths at which the upper and the lower end of the agreement's interval reach 95 %.
    """
    batches = in_order(model, processor, images, texts, **options)
    depths = range(len(decoder_parts(model).layers))
    agreements: list[np.ndarray] = []
    said: list[Tensor] = []
    for words in _read(model, batches, "depths", progress):
        said.append(words.logits().argmax(-1))
        by_depth = []
        for depth in depths:
            with vision_hidden_behind(model, depth):
                by_depth.append(words.means(words.logits().argmax(-1) == said[-1]))
        agreements.append(np.stack(by_depth))
    others = zip(_read(model, _with_next_pictures(batches), "other pictures", progress), said, strict=True)
    null = [words.means(words.logits().argmax(-1) == before) for words, before in others]
    agreement = np.concatenate([np.concatenate(agreements, axis=1), np.ones((1, len(texts)))])  # (K + 1, N)
    depth, interval = depth_of(agreement)
    settings = {"standard_error": stats.sem(agreement[1:], axis=1).tolist(), "never_seen": float(agreement[0].mean())}
    settings |= {"null": float(np.concatenate(null).mean()), "unchanged": UNCHANGED, **batches.settings}
    found = result("exit_depth", agreement[1:].mean(1), {"pairs": len(texts)}, value=depth, **settings)
    return replace(found, interval=Interval(*interval, CONFIDENCE, math.nan, "influence", len(texts) - 1))
