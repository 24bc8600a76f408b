"""Measures that need a labelled task: what the model does with the image, rather than where its rows lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from mirlib.errors import MirlibError
from mirlib.gaps.base import CONFIDENCE, HIGHER, TASK, GapResult, register, result


@register(
    "perceptual_score",
    title="Perceptual Score",
    asks="How much of the accuracy goes when each question gets another image?",
    source="Gat et al. 2021, arXiv 2110.14375",
    needs=TASK,
    direction=HIGHER,
    cost="the task, twice",
)
def perceptual_score(own: Any, permuted: Any, *, confidence: float | None = CONFIDENCE) -> GapResult:
    """Perceptual Score: accuracy minus accuracy with the images permuted over the samples.

    Args:
        own: (n,) whether (or how far) each question was answered rightly with its own image, in [0, 1].
        permuted: (n,) or (draws, n) likewise with the image of another sample, for one or several permutations.
        confidence: Of the interval over questions; None for none.

    Returns:
        `GapResult` in [−1, 1], without layers; ``settings`` holds both accuracies.

    Raises:
        MirlibError: If the shapes differ, there are fewer than 2 questions, or a number is outside [0, 1].

    Source: Gat et al. (2021), arXiv 2110.14375; the score that is not divided by the accuracy.

    Examples:
        >>> perceptual_score([1, 1, 1, 0], [1, 0, 0, 0]).value
        0.5
    """
    own, permuted = np.asarray(own, dtype=float), np.atleast_2d(np.asarray(permuted, dtype=float))
    if own.ndim != 1 or len(own) < 2 or permuted.ndim != 2 or permuted.shape[1] != len(own):
        raise MirlibError(
            f"expected (n,) and (n,) or (draws, n) answers with n ≥ 2, got {own.shape} and {permuted.shape}"
        )
    for values in (own, permuted):
        if not ((values >= 0) & (values <= 1)).all():
            raise MirlibError("answers must be 0, 1 or between (right or wrong)")
    gained = own - permuted.mean(0)
    return result(
        "perceptual_score",
        [],
        {"questions": len(own)},
        value=gained.mean(),
        influence=(gained - gained.mean()) / len(gained),
        confidence=confidence,
        accuracy=float(own.mean()),
        permuted_accuracy=float(permuted.mean()),
    )


@register(
    "soft_discrimination",
    title="soft discrimination",
    asks="How probable is the right answer among the candidates?",
    source="arXiv 2602.12892",
    needs=TASK,
    direction=HIGHER,
    cost="the task, once",
)
def soft_discrimination(scores: Any, right: Any, *, confidence: float | None = CONFIDENCE) -> GapResult:
    """Mean probability of the right one among candidate answers, by a softmax over their scores.

    It moves before accuracy does, and needs no fine-tuning of the model.

    Args:
        scores: (n, c) mean logit (or log-probability) of the tokens of each candidate; −inf where a question has fewer
            candidates than c.
        right: (n,) number of the right candidate.
        confidence: Of the interval over questions; None for none.

    Returns:
        `GapResult` in [0, 1], without layers; ``settings`` holds chance, the mean of 1 / candidates.

    Raises:
        MirlibError: If the shapes do not fit, a score is NaN or +inf, or the right candidate has score −inf.

    Source: arXiv 2602.12892.

    Examples:
        >>> round(soft_discrimination([[0.0, 0.0], [np.log(3.0), 0.0]], [0, 0]).value, 6)
        0.625
    """
    scores, right = np.asarray(scores, dtype=float), np.asarray(right)
    if scores.ndim != 2 or right.shape != scores.shape[:1] or not len(right) or right.dtype.kind not in "iu":
        raise MirlibError(f"expected (n, c) scores and (n,) whole numbers, got {scores.shape} and {right.shape}")
    if (right < 0).any() or (right >= scores.shape[1]).any():
        raise MirlibError(f"right: expected numbers from 0 to {scores.shape[1] - 1}")
    of_right = scores[np.arange(len(right)), right]
    if np.isnan(scores).any() or (scores == np.inf).any() or not np.isfinite(of_right).all():
        raise MirlibError("scores must be finite, but for −inf where there is no candidate")
    among = np.exp(scores - scores.max(1, keepdims=True))
    probability = among[np.arange(len(right)), right] / among.sum(1)
    return result(
        "soft_discrimination",
        [],
        {"questions": len(right)},
        value=probability.mean(),
        influence=(probability - probability.mean()) / len(right),
        confidence=confidence,
        chance=float((1 / np.isfinite(scores).sum(1)).mean()),
    )
