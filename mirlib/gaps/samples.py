"""Measures that are means over samples: Student's t interval, the null beside it, and what each sample contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from mirlib.batches import PairBatches, pair_batches
from mirlib.errors import MirlibError
from mirlib.gaps.base import CONFIDENCE, GapResult, result
from mirlib.influence import t_interval
from mirlib.result import Interval, Sample


def in_order(
    model: nn.Module, processor: Any, images: Sequence[Any], texts: Sequence[str], **options: Any
) -> PairBatches:
    """The pairs ``(images[i], texts[i])`` in their order, checked as `mirlib.batches.pair_batches` does."""
    drawn = pair_batches(model, processor, images, texts, num=len(texts), paired=True, **options)
    return PairBatches(processor, images, texts, [(i, i) for i in range(len(texts))], drawn.settings)


def mean_interval(values: Any) -> Interval:
    """Student's t interval for the mean of two or more independent samples, at `mirlib.gaps.base.CONFIDENCE`.

    Examples:
        >>> round(mean_interval([1.0, 2.0, 3.0, 4.0]).low, 4)
        0.4457
    """
    values = np.asarray(values, dtype=float)
    return t_interval(float(values.mean()), float(stats.sem(values)), CONFIDENCE, "influence", len(values) - 1)


def of_samples(
    name: str,
    values: Any,
    rows: Mapping[str, int],
    *,
    layers: Any = None,
    null: Any = None,
    samples: Sequence[Sample] = (),
    **settings: Any,
) -> GapResult:
    """The result of a measure that is a mean over samples.

    Args:
        name: Of a registered measure.
        values: (N,) what each sample gives; the value is their mean, its interval Student's t.
        rows: See `GapResult`.
        layers: (K, N) the same by layer; left out, the measure has no layers.
        null: (N,) what each sample gives where there is nothing to find, or one number for all.
        samples: The N samples.
        settings: What else the value depends on, or stands beside it.

    Returns:
        `GapResult`. Its ``settings`` hold, by layer, ``standard_error``; and with a null its mean, ``null``, and
        ``above_null`` and ``above_null_interval``, of the difference sample by sample.

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
    beside: dict[str, Any] = {}
    if layers is not None:
        beside["standard_error"] = stats.sem(by_layer, axis=1).tolist()
    if null is not None:
        above = values - null
        beside |= {"null": float(np.mean(null)), "above_null": float(above.mean())}
        beside["above_null_interval"] = list(mean_interval(above)[:2])
    mean = values.mean()
    found = result(
        name,
        by_layer.mean(1),
        rows,
        value=mean,
        influence=(values - mean) / len(values),
        confidence=CONFIDENCE,
        **beside,
        **settings,
    )
    return replace(found, samples=tuple(samples))
