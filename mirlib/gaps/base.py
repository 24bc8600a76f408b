"""What all measures of the gap share: their result, their registry, and how rows get from the caller to a layer."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mirlib import mir
from mirlib.errors import MirlibError
from mirlib.influence import t_interval
from mirlib.result import Interval, Sample, _finite, _interval_as_dict, _numbers

LOWER, HIGHER = "lower", "higher"
ROWS, PAIRS, TASK, MODEL = "rows", "pairs", "task", "model"
QUADRATIC_ROWS = 1000
"""Rows of a modality that measures of quadratic cost take where nobody says otherwise."""
CONFIDENCE = 0.95
"""Level of the interval of every measure where nobody says otherwise."""


@dataclass(frozen=True)
class Calibration:
    """A measure of paired samples beside what it gives for pairs put together at random.

    Attributes:
        null_mean: (K,) mean over random pairings.
        null_std: (K,) standard deviation over them.
        p_value: (K,) share of pairings at least as alike as the true one, that one counted among them.
        calibrated: (K,) ``(value − null mean) / (best − null mean)``: 0 for random pairs, 1 for the best there can be.
        permutations: Number of random pairings.
        random_weights: (R, K) values of R models of the same architecture with random weights on the same samples: what
            the architecture gives before anything was learned; None if none was asked.
    """

    null_mean: np.ndarray
    null_std: np.ndarray
    p_value: np.ndarray
    calibrated: np.ndarray
    permutations: int
    random_weights: np.ndarray | None = None

    @property
    def value(self) -> float:
        """Mean of `calibrated` over the layers."""
        return float(self.calibrated.mean())

    @property
    def random_value(self) -> float:
        """Mean over layers and models of `random_weights`; NaN without any."""
        return math.nan if self.random_weights is None else float(self.random_weights.mean())

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON."""
        names = ("null_mean", "null_std", "p_value", "calibrated")
        found: dict[str, Any] = {name: _numbers(getattr(self, name)) for name in names}
        found |= {"value": _finite(self.value), "permutations": self.permutations}
        if self.random_weights is not None:
            found["random_weights"] = [_numbers(values) for values in self.random_weights]
        return found


@dataclass(frozen=True)
class GapResult:
    """What a measure says.

    Attributes:
        measure: Its name in `mirlib.gaps.MEASURES`.
        value: Over all layers: the mean of ``per_layer``, for ``mir``, ``norm_only`` and ``fd_infinity`` the logarithm
            to base 10 of its sum; of a few measures something else, which their docstrings say.
        per_layer: (K,) by layer; empty for measures without layers.
        direction: ``"lower"`` or ``"higher"``, which of the two means that vision and text are better integrated.
        needs: ``"rows"`` of both modalities, ``"pairs"`` of images and texts that belong together, a labelled
            ``"task"``, or the ``"model"`` itself, in passes of the measure's own.
        rows: Rows (or pairs, or questions) that went into it, by modality.
        calibration: What random pairs give, for measures of pairs.
        settings: What the value depends on beside the rows; ``no_interval`` says why there is no interval.
        interval: For another draw of as many samples (never of rows); None if none was asked for, or could be had.
        influence: (N,) what each sample adds to the value: without sample i it would be about ``value − influence[i]``.
            They sum to about 0, and the variance of the value is ``N / (N − 1) Σ influence²``. None where samples were
            left out in groups, or not at all.
        samples: The N samples, in the order of ``influence``; empty if they are not known.
    """

    measure: str
    value: float
    per_layer: np.ndarray
    direction: str
    needs: str
    rows: Mapping[str, int]
    calibration: Calibration | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    interval: Interval | None = None
    influence: np.ndarray | None = None
    samples: tuple[Sample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON; NaN and infinity become None."""
        interval = None if self.interval is None else _interval_as_dict(self.interval)
        found = {"measure": self.measure, "value": _finite(self.value), "interval": interval}
        found |= {"per_layer": _numbers(self.per_layer), "direction": self.direction, "needs": self.needs}
        found |= {"rows": dict(self.rows), "settings": dict(self.settings)}
        if self.influence is not None:
            found["influence"] = _numbers(self.influence)
        if self.samples:
            found["samples"] = [list(sample) for sample in self.samples]
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_dict()
        return found


@dataclass(frozen=True)
class Measure:
    """An entry of the registry: its key, its name in prose, and ``needs`` and ``direction`` as in `GapResult`.

    ``function(vision, text, *, samples=None, seed=0, ...) -> GapResult``; of the model, ``function(model, processor,
    images, texts, ...)``; for a measure of a task, what its docstring says.
    """

    name: str
    title: str
    function: Callable[..., GapResult]
    needs: str
    direction: str


Decorator = Callable[[Callable[..., Any]], Callable[..., GapResult]]
MEASURES: dict[str, Measure] = {}


def register(name: str, **entry: str) -> Decorator:
    """Decorator: make a measure known by its name; ``entry`` are the other texts of `Measure`."""

    def keep(function: Callable[..., GapResult]) -> Callable[..., GapResult]:
        MEASURES[name] = Measure(name=name, function=function, **entry)
        return function

    return keep


REFUSED = """\
Raises:
    MirlibError: For rows that do not belong together or are not finite, too few of them, text rows of zero alone where
        lengths are in mean text norms, and options out of range.
"""


def public(function: Callable[..., Any], measure: Callable[..., GapResult], taken: str) -> Callable[..., GapResult]:
    """The ``measure`` of all layers, with the name, the options and the words of the ``function`` of one of them.

    In its docstring ``taken``, on what the measure takes, stands for "layer: Its rows.", and `REFUSED` behind it.
    """
    common, own = (list(inspect.signature(each).parameters.values()) for each in (measure, function))
    functools.update_wrapper(measure, function)
    parameters = [*common[:-1], *own[1:]]
    measure.__signature__ = inspect.Signature(parameters, return_annotation="GapResult")
    measure.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": "GapResult"}
    words, _, options = inspect.cleandoc(function.__doc__).partition("\nArgs:\n    layer: Its rows.\n")
    measure.__doc__ = f"{words.rstrip()}\n\nArgs:\n{taken}{options}".rstrip() + f"\n\n{REFUSED}"
    return measure


def result(
    name: str,
    per_layer: np.ndarray | list[float],
    rows: Mapping[str, int],
    *,
    value: float | None = None,
    logarithm: bool = False,
    influence: Any = None,
    no_interval: str | None = None,
    groups: bool = False,
    confidence: float | None = None,
    calibration: Calibration | None = None,
    **settings: Any,
) -> GapResult:
    """A result of a registered measure from its (K,) values; arguments not named here are those of `GapResult`.

    The value is the mean over the layers if left out, or with ``logarithm`` that of their sum, to base 10. Without a
    ``confidence`` there is no interval. ``influence`` is (K, N) on the layers or (N,) on the value, of samples or of
    ``groups`` of them; ``no_interval`` says why there is none.
    """
    measure, per_layer = MEASURES[name], np.asarray(per_layer, dtype=float)
    if value is None:
        value = mir.log10_sum(per_layer) if logarithm else per_layer.mean()
    found, interval = None, None
    if confidence is not None:
        mir.check_confidence(confidence)
        if influence is None:
            no_interval = no_interval or "the rows belong to no samples"
        else:
            found = np.asarray(influence, dtype=float)
            if found.ndim == 2:
                found = found.sum(0) / (per_layer.sum() * math.log(10)) if logarithm else found.mean(0)
            if not np.isfinite(value):
                no_interval = "the value is not finite"
            elif len(found) < 2:
                no_interval = "there is one sample alone"
            elif not np.isfinite(found).all():
                no_interval = "without one of the samples the measure is not defined"
        if no_interval is not None:
            settings["no_interval"] = no_interval
        else:
            method = "jackknife over groups" if groups else "influence"
            interval = t_interval(float(value), standard_error(found), confidence, method, len(found) - 1)
    known = found if interval is not None and not groups else None
    measured = measure.direction, measure.needs, dict(rows), calibration, settings, interval, known
    return GapResult(name, float(value), per_layer, *measured)


def standard_error(influence: np.ndarray) -> float:
    """Of a value with these influences of N samples: ``(N / (N − 1) Σ influence²)^{1/2}``.

    Examples:
        >>> import numpy as np
        >>> sample = np.array([1.0, 2.0, 6.0])
        >>> round(standard_error((sample - sample.mean()) / 3) ** 2, 6), round(float(sample.var(ddof=1)) / 3, 6)
        (2.333333, 2.333333)
    """
    count = len(influence)
    return float(np.sqrt(count / (count - 1) * np.square(influence).sum()))


def left_out(values: Any) -> np.ndarray:
    """Influences by the delete-one jackknife: ``(N − 1) / N (mean − value)`` of (..., N) values without each sample."""
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    return (count - 1) / count * (values.mean(-1, keepdims=True) - values)


def mean_interval(values: Any) -> Interval:
    """Student's t interval for the mean of two or more independent samples, at `CONFIDENCE`.

    Examples:
        >>> round(mean_interval([1.0, 2.0, 3.0, 4.0]).low, 4)
        0.4457
    """
    values = np.asarray(values, dtype=float)
    return t_interval(float(values.mean()), float(stats.sem(values)), CONFIDENCE, "influence", len(values) - 1)


def of_samples(
    name: str, values: Any, rows: Mapping, *, layers: Any = None, null: Any = None, samples: Any = (), **settings: Any
) -> GapResult:
    """The result of a registered measure that is a mean over samples, with Student's t interval.

    ``values`` (N,) are what each of 2 or more ``samples`` gives, ``layers`` (K, N) the same by layer if there are any,
    and ``null`` what each gives where there is nothing to find, (N,) or one number for all. To the ``settings`` come,
    by layer, ``standard_error``; and with a null its mean, ``null``, and ``above_null`` and ``above_null_interval``,
    of the difference sample by sample.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise MirlibError(f"{name}: an interval over samples takes at least 2 of them, got {len(values)}")
    by_layer = np.empty((0, len(values))) if layers is None else np.asarray(layers, dtype=float)
    broken = ~np.isfinite(np.vstack([values[None], by_layer])).all(0)
    if broken.any():
        raise MirlibError(f"{name}: sample {int(broken.argmax())} gives a number that is not finite")
    beside: dict[str, Any] = {} if layers is None else {"standard_error": stats.sem(by_layer, axis=1).tolist()}
    if null is not None:
        above = values - null
        beside |= {"null": float(np.mean(null)), "above_null": float(above.mean())}
        beside["above_null_interval"] = list(mean_interval(above)[:2])
    mean = values.mean()
    options = {"value": mean, "influence": (values - mean) / len(values), "confidence": CONFIDENCE}
    options |= beside | settings
    return replace(result(name, by_layer.mean(1), rows, **options), samples=tuple(samples))


@dataclass(frozen=True)
class Rows:
    """Rows of all layers, checked, with a bounded part of them chosen; layers are turned into float64 one at a time.

    Attributes:
        sides: K tensors (r, d) of vision rows and K tensors (s, d) of text rows, as they came.
        chosen: Numbers of the chosen rows, by modality.
        names: (N,) numbers of all samples, in ascending order, also of those without a chosen row; None if not said.
        places: Which of the N samples each chosen row belongs to, 0..N−1, by modality; empty likewise.
    """

    sides: tuple[list[Tensor], list[Tensor]]
    chosen: tuple[Tensor, Tensor]
    names: Tensor | None = None
    places: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, vision: Any, text: Any, samples: Any, *, max_rows: int | None, seed: int) -> Rows:
        """Check the arrays, and draw at most ``max_rows`` rows of each modality, the same ones in every layer."""
        sides = mir.as_layers(vision, "vision"), mir.as_layers(text, "text")
        mir.check_layers(*sides, minimum=2)
        if max_rows is not None and max_rows < 2:
            raise MirlibError(f"max_rows must be at least 2, got {max_rows}")
        counts = [len(side[0]) for side in sides]
        ids = None if samples is None else mir.sample_ids(samples, counts)

        def name_row(side: int, row: int) -> str:
            return f"row {row}" + ("" if ids is None else f" of sample {int(ids[side][row])}")

        for side, modality in enumerate(mir.MODALITIES):
            for k, rows in enumerate(sides[side], start=1):
                mir.check_norms(mir.row_norms(rows), rows, k, modality, functools.partial(name_row, side))
        generator = torch.Generator().manual_seed(seed)
        chosen = tuple(torch.randperm(count, generator=generator)[:max_rows].sort().values for count in counts)
        if ids is None:
            return cls(sides, chosen)
        names = torch.cat(ids).unique()
        places = (torch.searchsorted(names, numbers[some]) for numbers, some in zip(ids, chosen, strict=True))
        return cls(sides, chosen, names, tuple(places))

    @property
    def counts(self) -> dict[str, int]:
        """Rows chosen, by modality."""
        return {name: len(chosen) for name, chosen in zip(mir.MODALITIES, self.chosen, strict=True)}

    def layers(self, scale: str = "none") -> Iterator[tuple[Tensor, Tensor]]:
        """The chosen vision rows and text rows of each layer, float64 on the CPU.

        ``scale`` is ``"none"``; ``"unit"``, every row divided by its norm (a row of zero stays zero); or ``"text"``,
        both modalities divided by the mean norm of all text rows, as MIR does, which must not be zero.
        """
        for k, sides in enumerate(zip(*self.sides, strict=True), start=1):
            pairs = zip(sides, self.chosen, strict=True)
            rows = [side[chosen.to(side.device)].detach().to("cpu", torch.float64) for side, chosen in pairs]
            if scale == "unit":
                rows = [unit(side) for side in rows]
            elif scale == "text":
                norm = float(mir.row_norms(sides[1]).mean())
                if not norm > 0:
                    raise MirlibError(f"layer {k}: every text row has norm zero, so there is no unit of length")
                rows = [side / norm for side in rows]
            yield rows[0], rows[1]


def sums_of_samples(values: Tensor, places: Tensor, count: int) -> Tensor:
    """(N, …) float64 sums of (rows, …) values over the rows of each of N samples, which ``places`` say of each row."""
    return torch.zeros(count, *values.shape[1:], dtype=torch.float64).index_add_(0, places, values.double())


def unit(rows: Tensor) -> Tensor:
    """Rows divided by their norms; a row of zero stays zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)
