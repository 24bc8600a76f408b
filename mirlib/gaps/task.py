"""Measures of a labelled task: what the model does with the picture, rather than where its rows lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import special, stats

from mirlib.errors import MirlibError
from mirlib.gaps import base
from mirlib.gaps.base import CONFIDENCE, HIGHER, LOWER, TASK, GapResult, mean_interval, of_samples, register
from mirlib.influence import t_interval
from mirlib.mir import as_layers


def _of_questions(name: str, values: np.ndarray, confidence: float | None, **settings: Any) -> GapResult:
    options = {"value": values.mean(), "influence": (values - values.mean()) / len(values), "confidence": confidence}
    return base.result(name, [], {"questions": len(values)}, **options, **settings)


@register("perceptual_score", title="Perceptual Score", needs=TASK, direction=HIGHER)
def perceptual_score(own: Any, permuted: Any, *, confidence: float | None = CONFIDENCE) -> GapResult:
    """Perceptual Score: accuracy minus accuracy with the images permuted over the samples, in [−1, 1].

    How much of the accuracy goes when each question gets another image? Without layers; ``settings`` holds both
    accuracies. Other shapes and numbers are refused. Source: Gat et al. (2021), arXiv 2110.14375; the score that is not
    divided by the accuracy.

    Args:
        own: (n,) whether (or how far) each of 2 questions or more was answered rightly with its own image, in [0, 1].
        permuted: (n,) or (draws, n) likewise with the image of another sample, for one or several permutations.
        confidence: Of the interval over questions; None for none.

    Examples:
        >>> perceptual_score([1, 1, 1, 0], [1, 0, 0, 0]).value
        0.5
    """
    own, permuted = np.asarray(own, dtype=float), np.atleast_2d(np.asarray(permuted, dtype=float))
    if own.ndim != 1 or len(own) < 2 or permuted.ndim != 2 or permuted.shape[1] != len(own):
        shapes = f"{own.shape} and {permuted.shape}"
        raise MirlibError(f"expected (n,) and (n,) or (draws, n) answers with n ≥ 2, got {shapes}")
    if not all(((values >= 0) & (values <= 1)).all() for values in (own, permuted)):
        raise MirlibError("answers must be 0, 1 or between (right or wrong)")
    accuracies = {"accuracy": float(own.mean()), "permuted_accuracy": float(permuted.mean())}
    return _of_questions("perceptual_score", own - permuted.mean(0), confidence, **accuracies)


@register("soft_discrimination", title="soft discrimination", needs=TASK, direction=HIGHER)
def soft_discrimination(scores: Any, right: Any, *, confidence: float | None = CONFIDENCE) -> GapResult:
    """Mean probability of the right one among candidate answers, by a softmax over their scores.

    How probable is the right answer among the candidates? It moves before accuracy does, and needs no fine-tuning of
    the model. In [0, 1], without layers; ``settings`` holds chance, the mean of 1 / candidates. Source: arXiv
    2602.12892.

    Args:
        scores: (n, c) mean logit (or log-probability) of the tokens of each candidate; −inf where a question has fewer
            candidates than c. NaN and +inf are refused.
        right: (n,) number of the right candidate, whose score is finite.
        confidence: Of the interval over questions; None for none.

    Examples:
        >>> import numpy as np
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
    chance = float((1 / np.isfinite(scores).sum(1)).mean())
    return _of_questions("soft_discrimination", probability, confidence, chance=chance)


def _scores(values: Any, name: str, count: int | None = None) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or (count is not None and len(values) != count):
        wanted = "(n,)" if count is None else f"({count},)"
        raise MirlibError(f"{name}: expected {wanted} numbers, got an array of shape {values.shape}")
    return values


@register("text_preference", title="preference for text", needs=TASK, direction=LOWER)
def text_preference(picture: Any, text: Any, *, without: tuple[Any, Any] | None = None) -> GapResult:
    """Mean probability of the answer that a text gives, against the one that the picture gives, where they differ.

    Whom does the model believe where a text contradicts the picture? When to use it: the model is to trust its picture
    (documents, screens, medicine), and what stands in its prompt may be wrong. In [0, 1], without layers: 0 trusts the
    picture, 1 the text. See `mirlib.gaps.base.of_samples`. Refused are shapes that differ, fewer than 2 questions, and
    differences that are no numbers.

    Args:
        picture: (n,) logit or log-probability of the answer that is right of the picture, for n questions asked with
            the picture and a text that contradicts it.
        text: (n,) the same of the answer that is right of the text.
        without: Both once more, for the same questions without the text: the null. Left out, it is ½, no preference.

    Examples:
        >>> import numpy as np
        >>> round(text_preference([0.0, 0.0], [np.log(3.0), 0.0]).value, 6)
        0.625
    """

    def preferred(pair: tuple[Any, Any], name: str) -> np.ndarray:
        first = _scores(pair[0], f"{name}picture")
        return special.expit(_scores(pair[1], f"{name}text", len(first)) - first)

    found = preferred((picture, text), "")
    null = 0.5 if without is None else _scores(preferred(without, "without, "), "without", len(found))
    return of_samples("text_preference", found, {"questions": len(found)}, null=null)


@register("yes_bias", title="yes-bias", needs=TASK, direction=LOWER)
def yes_bias(absent: Any, present: Any, *, permuted: tuple[Any, Any] | None = None) -> GapResult:
    """Rate of yes on things that are not in the picture, minus rate of no on things that are.

    Does the model say yes to what is not there more often than no to what is? When to use it: to tell a model that sees
    too little from one that hallucinates; both have the same accuracy. The questions are those of POPE (arXiv
    2305.10355). In [−1, 1], without layers; 0 errs both ways alike, 1 always says yes, −1 always no; the nearer to 0,
    the better. The interval is Welch's, of two sets of questions. ``settings`` hold ``hallucinated`` and ``missed``,
    the two rates, and the interval of the first; with ``permuted`` the ``null`` and ``null_hallucinated``. Refused are
    fewer than 2 questions of a kind, and numbers outside [0, 1].

    Args:
        absent: (n,) whether (or how probably) each question about what is absent was answered with yes, in [0, 1].
        present: (m,) the same of things that are present.
        permuted: Both once more with the picture of another sample: the null, a model that looks at nothing.

    Examples:
        >>> yes_bias([1, 1, 0, 0], [1, 1, 1, 0]).value
        0.25
    """

    def rates(pair: tuple[Any, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        first, second = _scores(pair[0], f"{name}absent"), 1 - _scores(pair[1], f"{name}present")
        for values in (first, second):
            if len(values) < 2 or not ((values >= 0) & (values <= 1)).all():
                raise MirlibError("expected at least 2 answers of each kind, 0 for no, 1 for yes, or between")
        return first, second

    hallucinated, missed = rates((absent, present), "")
    beside: dict[str, Any] = {}
    if permuted is not None:
        first, second = rates(permuted, "permuted, ")
        beside = {"null": float(first.mean() - second.mean()), "null_hallucinated": float(first.mean())}
    squares = np.array([stats.sem(hallucinated), stats.sem(missed)]) ** 2
    free = np.array([len(hallucinated) - 1, len(missed) - 1])
    degrees = squares.sum() ** 2 / (squares**2 / free).sum() if squares.any() else float(free.sum())  # Welch
    rows = {"absent": len(hallucinated), "present": len(missed)}
    said = {"hallucinated": float(hallucinated.mean()), "hallucinated_interval": list(mean_interval(hallucinated)[:2])}
    said |= {"missed": float(missed.mean()), **beside}
    found = base.result("yes_bias", [], rows, value=hallucinated.mean() - missed.mean(), **said)
    interval = t_interval(found.value, squares.sum() ** 0.5, CONFIDENCE, "influence", float(degrees))
    return replace(found, interval=interval)


@register("correspondence", title="C-score", needs=TASK, direction=HIGHER)
def correspondence(vision: Any, samples: Any, positions: Any, matches: Any, *, within: float = 1.0) -> GapResult:
    """Share of matched patches whose most similar patch in the other picture lies where the match says.

    Is a part of one picture closest to the same part of another? When to use it: with matched points at hand, to see
    how much of *where* and *what* single vision rows still know; `mirlib.gaps.neighbours_kept` needs none. High values
    need no training. In [0, 1]; a sample is a picture with all matches that begin in it. The null is exact: the share
    of patches of the other picture that lie near enough. See `mirlib.gaps.base.of_samples`. Source: arXiv 2408.16357,
    where it is the share of correct keypoints (PCK) on SPair-71k, of encoder features that are interpolated to a finer
    grid, within a distance that goes with the object's size. Here: rows of the decoder as well, patches as they are,
    one distance for all. The AC score itself, a quadratic form of this and of the A-score fitted to the benchmarks of
    many models, is left out: it says nothing of a single model.

    What does not belong together, a match that stays in its picture, and matches that all begin in one are refused.

    Args:
        vision: K arrays (r, d) of vision rows.
        samples: (r,) the picture of each row.
        positions: (r, 2) where each row's patch lies in its picture, in patches or in any unit of length.
        matches: (m, 2) numbers of rows: a patch of one picture, and the patch of another that shows the same.
        within: How far from the match a patch may lie to be right, in the unit of ``positions``.
    """
    layers = as_layers(vision, "vision")
    count = len(layers[0])
    samples, positions, matches = np.asarray(samples), np.asarray(positions, dtype=float), np.asarray(matches)
    if any(len(layer) != count for layer in layers) or samples.shape != (count,) or positions.shape != (count, 2):
        wanted = f"expected a picture and a place for each of {count} rows in every layer"
        raise MirlibError(f"{wanted}, got {samples.shape} and {positions.shape}")
    if matches.ndim != 2 or matches.shape[1:] != (2,) or matches.dtype.kind not in "iu" or not len(matches):
        raise MirlibError(f"matches: expected (m, 2) numbers of rows, got {matches.dtype} of shape {matches.shape}")
    if matches.min() < 0 or matches.max() >= count:
        raise MirlibError(f"matches: expected numbers of rows from 0 to {count - 1}")
    if (samples[matches[:, 0]] == samples[matches[:, 1]]).any():
        raise MirlibError("matches: the two rows of a match must lie in different pictures")
    right, chance = np.empty((len(layers), len(matches))), np.empty(len(matches))
    candidates = {target: np.flatnonzero(samples == target) for target in np.unique(samples[matches[:, 1]])}
    for k, layer in enumerate(layers):
        rows = base.unit(layer.detach().to("cpu", torch.float64))
        for m, (source, target) in enumerate(matches):
            others = candidates[samples[target]]
            near = np.linalg.norm(positions[others] - positions[target], axis=1) <= within
            right[k, m] = near[int((rows[others] @ rows[source]).argmax())]
            chance[m] = near.mean()
    pictures, owners = np.unique(samples[matches[:, 0]], return_inverse=True)
    share = np.bincount(owners)
    by_picture = np.stack([np.bincount(owners, layer) / share for layer in (*right, chance)])
    layers, null = by_picture[:-1], by_picture[-1]
    counts = {"pictures": len(pictures), "matches": len(matches)}
    return of_samples("correspondence", layers.mean(0), counts, layers=layers, null=null, within=within)
