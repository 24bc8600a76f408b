"""Measures that are means over samples: Student's t interval, the null beside it, and what each sample contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from mirlib.batches import PairBatches, pair_batches
from mirlib.errors import MirlibError
from mirlib.gaps.base import GapResult, result
from mirlib.result import Interval

CONFIDENCE = 0.95
MODEL = "model"
"""What measures need that read the model in passes of their own."""


def in_order(
    model: nn.Module, processor: Any, images: Sequence[Any], texts: Sequence[str], **options: Any
) -> PairBatches:
    """The pairs ``(images[i], texts[i])`` in their order, checked as `mirlib.batches.pair_batches` does."""
    drawn = pair_batches(model, processor, images, texts, num=len(texts), paired=True, **options)
    return PairBatches(processor, images, texts, [(i, i) for i in range(len(texts))], drawn.settings)


def t_interval(values: Any, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval for the mean of independent samples.

    Args:
        values: (N,) a value a sample.
        confidence: Between 0 and 1.

    Returns:
        `Interval`; infinitely wide for a single sample.

    Examples:
        >>> round(t_interval([1.0, 2.0, 3.0, 4.0]).low, 4)
        0.4457
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    error = float(values.std(ddof=1) / count**0.5) if count > 1 else float("inf")
    reach = error * float(stats.t.ppf((1 + confidence) / 2, max(count - 1, 1)))
    return Interval(
        float(values.mean()) - reach, float(values.mean()) + reach, confidence, error, "influence", count - 1
    )


def of_samples(
    name: str, values: Any, rows: Mapping[str, int], *, layers: Any = None, null: Any = None, **settings: Any
) -> GapResult:
    """The result of a measure that is a mean over samples.

    Args:
        name: Of a registered measure.
        values: (N,) what each sample gives; the value is their mean.
        rows: See `GapResult`.
        layers: (K, N) the same by layer; left out, the measure has no layers.
        null: (N,) what each sample gives where there is nothing to find, or one number for all.
        settings: What else the value depends on, or stands beside it.

    Returns:
        `GapResult`. Its ``settings`` hold ``interval``, [low, high] of Student's t over samples; by layer
        ``standard_error``; with a null its mean, ``null``, and ``above_null`` and ``above_null_interval``, of the
        difference sample by sample.

    Raises:
        MirlibError: For fewer than 2 samples, or a value that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise MirlibError(f"{name}: an interval over samples takes at least 2 of them, got {len(values)}")
    by_layer = np.empty((0, len(values))) if layers is None else np.asarray(layers, dtype=float)
    broken = ~np.isfinite(np.vstack([values[None], by_layer])).all(0)
    if broken.any():
        raise MirlibError(f"{name}: sample {int(broken.argmax())} gives a number that is not finite")
    beside: dict[str, Any] = {"interval": list(t_interval(values)[:2])}
    if layers is not None:
        beside["standard_error"] = [t_interval(layer).standard_error for layer in by_layer]
    if null is not None:
        above = values - null
        beside |= {"null": float(np.mean(null)), "above_null": float(above.mean())}
        beside["above_null_interval"] = list(t_interval(above)[:2])
    return result(name, by_layer.mean(1), rows, value=values.mean(), **beside, **settings)
