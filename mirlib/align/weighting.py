"""Weights for the words of a caption: those that need the picture count for more.

CAL (Xiao et al., arXiv 2405.17871) weighs by how much the picture raises the logit of the right word, PRIOR (Chen et
al., arXiv 2505.08971) by how improbable a language model that sees no picture finds it. Both give ``Σ w CE / Σ w`` over
the words that are learnt, with weights that carry no gradient; `vision_hidden` gives the logits without the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirlib.adapters import find_decoder, unwrap
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError

__all__ = ["IGNORED", "cal_weights", "neighbour_mean", "prior_weights", "vision_hidden", "weighted_cross_entropy"]

IGNORED = -100
"""The label of a position that is not learnt, as in PyTorch and transformers."""


def neighbour_mean(values: Tensor, counts: Tensor, width: int = 3) -> Tensor:
    """(B, T) mean of each value and its neighbours in the same row, over those that count; 0 where one does not.

    Of ``values`` (B, T), ``counts`` (B, T) bool, and a ``width`` that is odd, or refused. At the ends of a row, and
    beside a position that does not count (padding, the question before an answer), the mean is over fewer values. CAL's
    public code pools over the whole batch as one row instead, padding included.
    """
    if width < 1 or width % 2 == 0:
        raise MirlibError(f"the pooling width must be an odd number of positions, not {width}")
    ones, kernel = counts.to(values.dtype), values.new_ones(1, 1, width)
    both = (values.masked_fill(~counts, 0), ones)
    summed, there = (F.conv1d(each[:, None], kernel, padding=width // 2)[:, 0] for each in both)
    return summed / there.clamp(min=1) * ones


@torch.no_grad()
def cal_weights(
    seen: Tensor, unseen: Tensor, labels: Tensor, *, low: float = 1.0, high: float = 5.0, width: int = 3
) -> Tensor:
    """CAL's weights: ``AvgPool(clamp(Δ, low, high))`` with ``Δ`` the rise of the right word's logit by the picture.

    Of logits (B, T, vocabulary), ``seen`` with the picture and ``unseen`` with it hidden, of which position t predicts
    ``labels[:, t]``, (B, T) ids, `IGNORED` where nothing is learnt. A word that the picture does not help has the
    weight ``low``, none more than ``high``, which must not be less; see `neighbour_mean` for ``width``. The weights are
    (B, T), in [low, high], 0 at ignored positions, and carry no gradient.

    Examples:
        >>> import torch
        >>> labels = torch.tensor([[0, 1, 0]])
        >>> seen = torch.tensor([[[3.0, 0.0], [0.0, 9.0], [0.0, 0.0]]])  # the right words gain 3, 9 and 0
        >>> cal_weights(seen, torch.zeros(1, 3, 2), labels)
        tensor([[4., 3., 3.]])
    """
    _fit(seen, labels)
    _fit(unseen, labels)
    learnt = labels != IGNORED
    if low > high:
        raise MirlibError(f"low must be at most high, not {low} and {high}")
    gain = _of_label(seen, labels).float() - _of_label(unseen, labels).float()
    return neighbour_mean(gain.clamp(low, high), learnt, width)


@torch.no_grad()
def prior_weights(reference: Tensor, labels: Tensor, *, power: float = 1.0) -> Tensor:
    """PRIOR's weights: ``(1 − p)^power`` with ``p`` the probability that a reference without picture gives the word.

    They are scaled to a mean of 1 over the words of each caption. The paper's text was not at hand: form, power 1 and
    scaling are those that a published summary of it reports. The reference's logits are (B, T, vocabulary) and position
    t predicts ``labels[:, t]``, (B, T) ids, `IGNORED` where nothing is learnt; ``power`` is at least 0, which gives
    equal weights. The weights are (B, T), at least 0, 0 at ignored positions, and carry no gradient. A caption that the
    reference knows by heart (all ``p`` equal to 1) gets equal weights.

    Examples:
        >>> import torch
        >>> reference = torch.tensor([[[0.75, 0.25], [0.75, 0.25]]]).log()
        >>> prior_weights(reference, torch.tensor([[0, 1]]))
        tensor([[0.5000, 1.5000]])
    """
    _fit(reference, labels)
    if power < 0:
        raise MirlibError(f"power must be at least 0, not {power}")
    learnt = labels != IGNORED
    probability = _of_label(reference.float().log_softmax(dim=-1), labels).exp()
    weights = (1 - probability).clamp(min=0) ** power * learnt
    total, count = weights.sum(dim=1, keepdim=True), learnt.sum(dim=1, keepdim=True)
    known = total <= torch.finfo(weights.dtype).tiny
    return torch.where(known, learnt.to(weights.dtype), weights * count / total.masked_fill(known, 1))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """``Σ w CE / Σ w`` in nats a token, over the positions that are learnt.

    Logits are (B, T, vocabulary) and position t predicts ``labels[:, t]``; labels and weights are (B, T). Whatever
    their precision, it is computed in float32. Weights that are all 0 where something is learnt are refused.
    """
    _fit(logits, labels)
    weights = weights.detach().float() * (labels != IGNORED)
    total = weights.sum()
    if not bool(total > 0):
        raise MirlibError("the weights of all positions that are learnt are 0: check labels and weights")
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return (losses * weights.flatten()).sum() / total


def _of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T) the entry of each label; that of id 0 where the label is ignored."""
    return logits.gather(-1, labels.masked_fill(labels == IGNORED, 0)[..., None])[..., 0]


def _fit(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        what = f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}"
        way = "give logits (B, T, vocabulary) and the labels (B, T) that they predict, position by position"
        raise MirlibError(f"{what}: {way}")


def _hide(rows: VisionRows, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Take the vision columns out of the attention mask that a decoder is called with."""
    if rows.mask is None:
        raise MirlibError("call the whole model with input_ids: they tell which columns are vision")
    if len(args) > 1:
        raise MirlibError(f"{type(module).__name__} was called with an attention mask by place; hide it by name")
    return args, {**kwargs, "attention_mask": _hidden(kwargs.get("attention_mask"), rows.mask)}


def _hidden(mask: Any, vision: Tensor) -> Any:
    if mask is None:
        return (~vision).long()
    if isinstance(mask, Mapping):  # a mask by kind of layer
        return {kind: None if each is None else _hidden(each, vision) for kind, each in mask.items()}
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] != vision.shape[-1]:
        shapes = f"shape {tuple(getattr(mask, 'shape', ()))} for a sequence of shape {tuple(vision.shape)}"
        way = "vision can be hidden in masks (B, T) and (B, 1, T, T) only"
        raise MirlibError(f"the decoder got an attention mask of {shapes}; {way}")
    columns = vision.to(mask.device) if mask.ndim == 2 else vision.to(mask.device)[:, None, None, :]
    added = mask.is_floating_point() and mask.ndim == 4
    return mask.masked_fill(columns, torch.finfo(mask.dtype).min if added else 0)


@contextmanager
def vision_hidden(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block no row of the decoder attends to a vision row (CAL's "image masked"); positions stay.

    The model's vision rows must stand in its decoder's sequence and meet the words in attention only (not in a
    recurrent layer). Call it with ``input_ids``. A model, or a form of its attention mask, that is not recognised is
    refused.
    """
    inner = unwrap(model)
    with ExitStack() as stack:
        rows = VisionRows.of(inner)
        stack.callback(rows.release, inner)
        decoder = find_decoder(inner)
        if decoder is None:
            raise MirlibError(f"{type(inner).__name__}: no decoder with `layers` found")
        stack.callback(decoder.register_forward_pre_hook(partial(_hide, rows), with_kwargs=True).remove)
        yield
