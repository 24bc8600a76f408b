"""Measures of a labelled task that ask which way a model leans where picture and words disagree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special, stats

from mirlib.errors import MirlibError
from mirlib.gaps.base import CONFIDENCE, LOWER, TASK, GapResult, register, result
from mirlib.gaps.samples import mean_interval, of_samples
from mirlib.influence import t_interval


def _scores(values: Any, name: str, count: int | None = None) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or (count is not None and len(values) != count):
        wanted = "(n,)" if count is None else f"({count},)"
        raise MirlibError(f"{name}: expected {wanted} numbers, got an array of shape {values.shape}")
    return values


@register(
    "text_preference",
    title="preference for text",
    asks="Whom does the model believe where a text contradicts the picture?",
    source="here",
    needs=TASK,
    direction=LOWER,
    cost="the task, once or twice",
)
def text_preference(picture: Any, text: Any, *, without: tuple[Any, Any] | None = None) -> GapResult:
    """Mean probability of the answer that a text gives, against the one that the picture gives, where they differ.

    When to use it: the model is to trust its picture (documents, screens, medicine), and what stands in its prompt may
    be wrong.

    Args:
        picture: (n,) logit or log-probability of the answer that is right of the picture, for n questions asked with
            the picture and a text that contradicts it.
        text: (n,) the same of the answer that is right of the text.
        without: Both once more, for the same questions without the text: the null. Left out, it is ½, no preference.

    Returns:
        `GapResult` in [0, 1], without layers: 0 trusts the picture, 1 the text. See `mirlib.gaps.samples.of_samples`.

    Raises:
        MirlibError: If the shapes differ, there are fewer than 2 questions, or a difference is not a number.

    Examples:
        >>> round(text_preference([0.0, 0.0], [np.log(3.0), 0.0]).value, 6)
        0.625
    """

    def preferred(pair: tuple[Any, Any], name: str) -> np.ndarray:
        first = _scores(pair[0], f"{name}picture")
        return special.expit(_scores(pair[1], f"{name}text", len(first)) - first)

    found = preferred((picture, text), "")
    null: Any = 0.5
    if without is not None:
        null = preferred(without, "without, ")
        _scores(null, "without", len(found))
    return of_samples("text_preference", found, {"questions": len(found)}, null=null)


@register(
    "yes_bias",
    title="yes-bias",
    asks="Does the model say yes to what is not there more often than no to what is?",
    source="here, after the questions of POPE, arXiv 2305.10355",
    needs=TASK,
    direction=LOWER,
    cost="the task, once or twice",
)
def yes_bias(absent: Any, present: Any, *, permuted: tuple[Any, Any] | None = None) -> GapResult:
    """Rate of yes on things that are not in the picture, minus rate of no on things that are.

    When to use it: to tell a model that sees too little from one that hallucinates; both have the same accuracy.

    Args:
        absent: (n,) whether (or how probably) each question about a thing that is absent was answered with yes, in
            [0, 1].
        present: (m,) the same of things that are present.
        permuted: Both once more with the picture of another sample: the null, a model that looks at nothing.

    Returns:
        `GapResult` in [−1, 1], without layers; 0 errs both ways alike, 1 always says yes. The interval is
        Welch's, of two sets of questions. ``settings`` hold ``hallucinated`` and ``missed``, the two rates, and the
        interval of the first; with ``permuted`` the ``null`` and ``null_hallucinated``.

    Raises:
        MirlibError: For fewer than 2 questions of a kind, or a number outside [0, 1].

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
    found = result(
        "yes_bias",
        [],
        {"absent": len(hallucinated), "present": len(missed)},
        value=hallucinated.mean() - missed.mean(),
        hallucinated=float(hallucinated.mean()),
        hallucinated_interval=list(mean_interval(hallucinated)[:2]),
        missed=float(missed.mean()),
        **beside,
    )
    return replace(
        found, interval=t_interval(found.value, squares.sum() ** 0.5, CONFIDENCE, "influence", float(degrees))
    )
