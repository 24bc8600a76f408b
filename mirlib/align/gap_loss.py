"""The gap itself as a loss: MIR on the moments of recent batches, and the distance of image tokens to text tokens.

A batch has fewer rows than a model has dimensions: moments of earlier batches are kept, without gradient, and fade. The
text is where vision has to go: no gradient flows into it, nor into the scale α. Outlier rows stay in, or the rows
farthest off would have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from mirlib.adapters import decoder_parts, unwrap
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError, check_choice
from mirlib.hidden_states import hidden_of, read_modules

__all__ = ["DISTANCES", "GapLoss", "StreamedDistance", "differentiable_trace_sqrt", "token_distance"]


class _TraceSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        value, ctx.by_x = _value_and_derivative(x, y)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        by_y = grad * _value_and_derivative(y, x)[1] if ctx.needs_input_grad[1] else None
        return (grad * ctx.by_x if ctx.needs_input_grad[0] else None), by_y


def differentiable_trace_sqrt(covariance_x: Tensor, covariance_y: Tensor) -> Tensor:
    """``Tr((Σ_x Σ_y)^{1/2})`` of (d, d) float64 covariances, with a gradient that is finite where they are singular.

    With ``Σ_y = L Lᵀ`` the trace is ``Σ √λ`` over the eigenvalues λ of ``G = Lᵀ Σ_x L``, and its derivative by ``Σ_x``
    is ``½ L G^{-1/2} Lᵀ``. Where Σ_x has directions without variance (fewer rows than dimensions), the pseudo-inverse
    is taken, with eigenvalues below d · 1e-15 of the largest as zeros: the subgradient of the smallest norm. What
    reaches the rows ``X`` with ``Σ_x = XᵀX`` is the polar factor of ``X L`` times ``Lᵀ``, whose singular values are at
    most 1 and at most those of L.
    """
    return _TraceSqrt.apply(covariance_x, covariance_y)


def _value_and_derivative(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The trace and its derivative by ``x``."""
    factor = _factor(y)
    if factor.shape[1] == 0:
        return x.new_zeros(()), torch.zeros_like(x)
    gram = factor.T @ x @ factor
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    kept = values > values[-1].clamp(min=0) * _noise(values)
    roots = values.clamp(min=0).sqrt()
    inverse = torch.where(kept, 1 / roots.masked_fill(~kept, 1), 0)
    side = factor @ (vectors * inverse.sqrt())
    return roots[kept].sum(), side @ side.T / 2


def _factor(covariance: Tensor) -> Tensor:
    """(d, rank) L with ``L Lᵀ = Σ``: Cholesky's where Σ is regular, eigenvectors where it is not."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed) and bool((lower.diagonal().square() > _noise(covariance) * covariance.diagonal()).all()):
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * _noise(values)
    return vectors[:, kept] * values[kept].sqrt()


def _noise(matrix: Tensor) -> float:
    """What rounding leaves of a zero eigenvalue, in units of the largest."""
    return 4 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps


class StreamedDistance:
    """The text-centric Fréchet distance of one layer, batch after batch, with a gradient for the batch's vision rows.

    On the first batch its value is that of `mirlib.frechet_distance` on the rows scaled by α = 1 / (mean text norm).
    With ``decay=1`` it stays that of all rows so far. Below 1 a batch weighs ``decay``, in [0, 1], times less with each
    batch that follows, since the vision rows move while the connector learns: about ``1 / (1 − decay)`` batches count.

    Examples:
        >>> import torch
        >>> from mirlib import frechet_distance
        >>> vision, text = torch.randn(50, 4), torch.randn(40, 4)
        >>> scale = 1 / text.norm(dim=1).mean()
        >>> distance = StreamedDistance()(vision, text)
        >>> bool(torch.isclose(distance, torch.tensor(frechet_distance(scale * vision, scale * text).total).double()))
        True
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay <= 1:
            raise MirlibError(f"decay must be between 0 and 1, not {decay}")
        self.decay = decay
        self._past: dict[str, tuple[float, Tensor, Tensor]] = {}  # by modality: row count, mean, scatter, all fading
        self._past_norms = 0.0  # sum of text norms, fading as the moments do

    def __call__(self, vision: Tensor, text: Tensor) -> Tensor:
        """The distance of (r, d) and (s, d) rows and the past, in units of the squared mean text norm, float64.

        Fewer than 2 rows, rows that are not finite, and text whose norm is 0 are refused.
        """
        for name, rows in (("vision", vision), ("text", text)):
            if rows.ndim != 2 or len(rows) < 2:
                raise MirlibError(f"{name}: a distance needs at least 2 rows (n, d), got shape {tuple(rows.shape)}")
            if not bool(torch.isfinite(rows).all()):
                raise MirlibError(f"{name}: the batch holds rows that are not finite")
        with torch.autocast(vision.device.type, enabled=False):
            vision, text = vision.double(), text.detach().double().to(vision.device)
            together = {name: self._with_past(name, rows) for name, rows in (("vision", vision), ("text", text))}
            self._past_norms += float(text.norm(dim=1).sum())
            if not self._past_norms > 0:
                raise MirlibError("the norm of all text rows is 0, so there is no scale to measure in")
            scale = together["text"][0] / self._past_norms
            self._past_norms *= self.decay
            (_, mean_v, cov_v), (_, mean_t, cov_t) = together.values()
            trace = differentiable_trace_sqrt(cov_v, cov_t)
            mean_term = (mean_v - mean_t).square().sum()
            return scale**2 * (mean_term + cov_v.trace() + cov_t.trace() - 2 * trace)

    def _with_past(self, name: str, rows: Tensor) -> tuple[float, Tensor, Tensor]:
        """Count, mean and covariance of a modality, and the batch's rows as a sample of all for the gradient."""
        mean = rows.mean(dim=0)
        centred = rows - mean
        count, scatter = float(len(rows)), centred.T @ centred
        if name in self._past:  # merged after Chan et al.
            past, past_mean, past_scatter = self._past[name]
            batch, count = count, count + past
            shift = mean - past_mean.to(mean.device)
            mean = mean - shift * (past / count)
            scatter = scatter + past_scatter.to(scatter.device) + torch.outer(shift, shift) * (batch * past / count)
        if self.decay > 0:
            self._past[name] = count * self.decay, mean.detach(), scatter.detach() * self.decay
        factor = count / len(rows)
        return count, _gradient_times(mean, factor), _gradient_times(scatter / (count - 1), factor)


def _gradient_times(value: Tensor, factor: float) -> Tensor:
    """The same value, with a gradient that is larger by a factor."""
    return value if factor == 1 else value.detach() + factor * (value - value.detach())


class GapLoss:
    """MIR of a model in training, ``log10 Σ_k FID_k``, to be added to its loss with a weight.

    It is called after each forward pass. One unit of it is a factor of ten in the summed distances, whatever their
    size. The MIR paper reports no such loss; the authors' public code holds one, commented out, without the covariance
    product.

    Hooks read the chosen layers as `mirlib.capture` does, but keep the graph. Passes without gradients are not kept. A
    `copy.deepcopy` of the model has hooks of its own and starts empty. They hang, until `remove`, on any Hugging Face
    LVLM whose vision rows stand in its decoder's sequence; others are refused.

    ``layers`` are numbers, 1..K, None for all; layer K is read after the final norm where there is one. A residual
    stream passes on what the connector puts in, so a few layers do nearly what all do, and cost less: one factorisation
    and one eigenvalue problem of d × d a layer and step. For ``decay`` see `StreamedDistance`.

    Examples:
        >>> import torch
        >>> from mirlib.loading import load_miniature
        >>> model, processor = load_miniature()
        >>> gap = GapLoss(model, layers=(1, 4))
        >>> ids = torch.tensor([[1, *[model.config.image_token_id] * 36, 40, 41, 42]])
        >>> outputs = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 48, 48))
        >>> bool(gap(text=ids >= 40).isfinite())
        True
        >>> gap.remove()
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] | None = None, *, decay: float = 0.9) -> None:
        model = unwrap(model)
        parts = decoder_parts(model)
        count = len(parts.layers)
        self.layers = tuple(sorted(set(range(1, count + 1) if layers is None else layers)))
        wrong = [k for k in self.layers if k not in range(1, count + 1)]
        if wrong or not self.layers:
            raise MirlibError(f"layers must be numbers from 1 to {count}, not {wrong or 'none at all'}")
        self.distances = [StreamedDistance(decay) for _ in self.layers]
        self._parts, self._model, self._rows = parts, model, VisionRows.of(model)
        self._states: dict[int, Tensor] = {}
        self._vision: Tensor | None = None
        modules = dict(enumerate(read_modules(parts), start=1))
        # Partials of bound methods, so that a copy of the model calls its own.
        self._handles = [modules[k].register_forward_hook(partial(self._keep, k)) for k in self.layers]

    def __getstate__(self) -> dict[str, Any]:
        """Without what the latest pass left: a copy starts empty, and tensors with a graph cannot be copied."""
        return {**self.__dict__, "_states": {}}

    def _keep(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled():
            self._states[layer] = hidden_of(self._parts, output)
            self._vision = self._rows.of_sequence(self._states[layer])  # what is announced now may be over later

    def take(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(r, d) vision rows and (s, d) text rows of each layer in the latest pass, which is then forgotten.

        ``text`` says where text stands, (B, T) bool; the decoder may have put rows of its own in front of the T. Where
        there was no pass with gradients since the last call, that is refused.
        """
        states, self._states = self._states, {}
        missing = [k for k in self.layers if k not in states]
        if missing:
            way = "run the model forward, with gradients, before each call"
            why = "A compiled model runs past hooks that were added after its first call"
            raise MirlibError(f"layers {missing} left no hidden states: {way}. {why}")
        vision = self._vision
        front = vision.shape[1] - text.shape[1]
        if text.shape[0] != vision.shape[0] or front < 0:
            raise MirlibError(f"text has shape {tuple(text.shape)}, the sequence {tuple(vision.shape)}")
        text = pad(text.to(vision.device), (front, 0)) & ~vision
        hidden = [states[k] for k in self.layers]
        return [(h[vision.to(h.device)], h[text.to(h.device)]) for h in hidden]

    def __call__(self, text: Tensor) -> Tensor:
        """The loss of the latest forward pass, float64; ``text``, (B, T) bool, is where a label is learnt."""
        found = [distance(*pair) for distance, pair in zip(self.distances, self.take(text), strict=True)]
        device = found[0].device
        return torch.stack([each.to(device) for each in found]).sum().log10()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._states = {}
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self._rows.release(self._model)
        self._handles = []


# ---------------------------------------------------------------------------------------------------------------------
# Distances of tokens

DISTANCES = ("mean", "nearest")


def token_distance(
    vision: Tensor, text: Tensor, text_mask: Any = None, vision_mask: Any = None, *, kind: str = "mean"
) -> Tensor:
    """How far the image tokens of each pair are from its text tokens, in units of the mean text norm.

    It is the mean over pairs, a scalar, at least 0, and no gradient flows into the text. ReGap (Yang et al., arXiv
    2505.24208) adds such a distance to the loss of pre-training; its formula was not at hand. Chosen here: not squared,
    so that a far cloud is not pulled harder than a near one.

    Args:
        vision: (B, V, d) image tokens.
        text: (B, T, d) tokens of the text that belongs to each picture; both have at least one a pair.
        text_mask: (B, T) bool, false at padding; None for all.
        vision_mask: (B, V) bool, likewise.
        kind: ``"mean"``: between the mean image token and the mean text token; ``"nearest"``: from each image token to
            the text token nearest to it, mean over image tokens.

    Examples:
        >>> import torch
        >>> vision, text = torch.tensor([[[3.0, 0.0], [5.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [0.0, 4.0]]])
        >>> token_distance(vision, text)  # from (4, 0) to (0, 3), the mean norm of text being 3
        tensor(1.6667)
    """
    check_choice("kind of token distance", kind, DISTANCES)
    if vision.ndim != 3 or text.ndim != 3 or len(vision) != len(text) or vision.shape[-1] != text.shape[-1]:
        shapes = f"vision has shape {tuple(vision.shape)}, text {tuple(text.shape)}"
        raise MirlibError(f"{shapes}; they must be (B, V, d) and (B, T, d)")
    masks = []
    for name, rows, mask in (("vision", vision, vision_mask), ("text", text, text_mask)):
        mask = torch.ones(rows.shape[:2], device=rows.device).bool() if mask is None else mask.bool()
        if mask.shape != rows.shape[:2]:
            raise MirlibError(f"{name}_mask has shape {tuple(mask.shape)}, {name} has {tuple(rows.shape)}")
        if not bool(mask.any(dim=1).all()):
            raise MirlibError(f"pair {int((~mask.any(dim=1)).nonzero()[0])} has no {name} tokens")
        masks.append(mask)
    seen, read = masks
    with torch.autocast(vision.device.type, enabled=False):
        vision, text = vision.float(), text.detach().float()
        unit = text[read].norm(dim=-1).mean()
        if kind == "mean":
            found = (_mean_token(vision, seen) - _mean_token(text, read)).norm(dim=-1)
        else:
            apart = torch.cdist(vision, text).masked_fill(~read[:, None], torch.inf)  # (B, V, T)
            nearest = apart.min(dim=-1).values.masked_fill(~seen, 0)
            found = nearest.sum(dim=1) / seen.sum(dim=1)
        return found.mean() / unit


def _mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, d) mean over the tokens that are there."""
    return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
