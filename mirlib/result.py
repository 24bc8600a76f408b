"""What a measurement returns: plain numbers with their provenance. Knows nothing of how they were computed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirlib.errors import MirlibError, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Interval", "MIRResult"]

SCHEMA = 1
ARRAYS = ("per_layer", "mean_term", "covariance_term", "norm_ratio", "scale", "bias")
INTERVAL_NUMBERS = ("low", "high", "standard_error")


class Interval(NamedTuple):
    """A confidence interval for MIR at this number of samples.

    Attributes:
        low: Lower end, in log10 units like the value.
        high: Upper end.
        confidence: For example 0.95.
        standard_error: Standard error of the value.
        method: How it was found: ``"bootstrap"`` or ``"jackknife"``, both over samples (images), never over tokens.
    """

    low: float
    high: float
    confidence: float
    standard_error: float
    method: str


@dataclass(frozen=True)
class MIRResult:
    """A Modality Integration Rate and everything it was made of. K is the number of layers; lists run over layers 1..K.

    Attributes:
        value: MIR, ``log10 Σ_k FID_k``; lower means closer modalities. −inf if every distance is 0.
        per_layer: (K,) FID_k in units of (mean text norm)², at least 0.
        mean_term: (K,) the part of FID_k that comes from the means.
        covariance_term: (K,) the part that comes from the covariances.
        norm_ratio: (K,) mean vision norm / mean text norm, all rows included.
        norm_only: log10 of ``Σ_k α_k² E‖v‖²`` over the vision rows kept: what MIR would be if only vision norms
            counted.
        null_baseline: What MIR would be if every vision token were zero. A value near it, or above, is no achievement.
        scale: (K,) α_k, 1 / mean text norm (1 where normalisation is off).
        bias: (K,) first-order upward bias of FID_k from the finite number of rows, if rows were independent Gaussians.
        outliers: ``{"vision": (K,), "text": (K,)}`` number of rows that the 3σ rule caught.
        rows: ``{"vision": r, "text": s}`` number of rows that came in.
        interval: `Interval` or None if none was asked for.
        settings: How it was computed; enough to repeat it.
        warnings: Sentences that a reader of the number should see.
    """

    value: float
    per_layer: np.ndarray
    mean_term: np.ndarray
    covariance_term: np.ndarray
    norm_ratio: np.ndarray
    norm_only: float
    null_baseline: float
    scale: np.ndarray
    bias: np.ndarray
    outliers: Mapping[str, np.ndarray]
    rows: Mapping[str, int]
    interval: Interval | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Number of layers, K."""
        return len(self.per_layer)

    def __repr__(self) -> str:
        interval = ""
        if self.interval is not None:
            interval = f" [{self.interval.low:.4f}, {self.interval.high:.4f}]"
        return (
            f"MIRResult({self.value:.4f}{interval}, layers={self.num_layers}, "
            f"rows={self.rows['vision']} vision + {self.rows['text']} text, preset={self.settings.get('preset')!r})"
        )

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON. Numbers that JSON cannot hold (−inf, NaN) become None."""
        return {
            "schema": SCHEMA,
            "mir": _finite(self.value),
            "interval": _interval_as_dict(self.interval) if self.interval else None,
            "norm_only": _finite(self.norm_only),
            "null_baseline": _finite(self.null_baseline),
            "per_layer": _numbers(self.per_layer),
            "mean_term": _numbers(self.mean_term),
            "covariance_term": _numbers(self.covariance_term),
            "norm_ratio": _numbers(self.norm_ratio),
            "scale": _numbers(self.scale),
            "bias": _numbers(self.bias),
            "outliers": {name: [int(n) for n in counts] for name, counts in self.outliers.items()},
            "rows": {name: int(n) for name, n in self.rows.items()},
            "settings": {k: v.item() if isinstance(v, np.generic) else v for k, v in self.settings.items()},
            "warnings": list(self.warnings),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MIRResult:
        """The result that `to_dict` described.

        Raises:
            MirlibError: If the schema is unknown, or a key is missing or holds what `to_dict` does not write; the
                message names the key.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise MirlibError(f"not a result of `mir score` or `mir features` (schema {_said(schema)})")
        arrays = {name: _list(data, name, _or_nan) for name in ARRAYS}
        counts = {name: _of_modalities(data, name) for name in ("outliers", "rows")}
        outliers = {name: _list(counts["outliers"], name, _count) for name in counts["outliers"]}
        lengths = {name: len(values) for name, values in (arrays | outliers).items()}
        for name, length in lengths.items():
            if length != lengths["per_layer"] or length == 0:
                raise MirlibError(
                    f"not a complete result: {name} holds {length} numbers and per_layer {lengths['per_layer']}; it "
                    "must be one a layer"
                )
        per_layer = np.array(arrays["per_layer"])
        # A value that JSON could not hold is −inf for a distance of 0, and otherwise not a number.
        nothing = math.nan if per_layer.any() else -math.inf
        return cls(
            value=_get(data, "mir", _or(nothing)),
            null_baseline=_get(data, "null_baseline", _or(-math.inf)),
            norm_only=_get(data, "norm_only", _or(-math.inf)),
            outliers={name: np.array(values, dtype=np.int64) for name, values in outliers.items()},
            rows={name: _get(counts["rows"], name, _count) for name in counts["rows"]},
            interval=None if _get(data, "interval", _anything) is None else _interval(data["interval"]),
            settings=_get(data, "settings", _settings),
            warnings=tuple(_list(data, "warnings", _text)),
            **{name: np.array(values, dtype=np.float64) for name, values in arrays.items()},
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: a DataFrame indexed by layer 1..K."""
        import pandas as pd

        return pd.DataFrame(
            {
                "fid": self.per_layer,
                "mean_term": self.mean_term,
                "covariance_term": self.covariance_term,
                "share": self.per_layer / max(self.per_layer.sum(), np.finfo(float).tiny),
                "norm_ratio": self.norm_ratio,
                "scale": self.scale,
                "bias": self.bias,
                "vision_outliers": self.outliers["vision"],
                "text_outliers": self.outliers["text"],
            },
            index=pd.RangeIndex(1, self.num_layers + 1, name="layer"),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the per-layer curve; see `mirlib.plots.figure_per_layer`."""
        from mirlib.plots import figure_per_layer

        return figure_per_layer(self, ax=ax)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _interval_as_dict(interval: Interval) -> dict[str, Any]:
    return interval._asdict() | {name: _finite(getattr(interval, name)) for name in INTERVAL_NUMBERS}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_finite(float(value)) for value in values]


# ---------------------------------------------------------------------------------------------------------------------
# Reading: what each key may hold


def _get(data: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    """The value of a key, as ``read`` takes it; ``read`` raises TypeError with what it expects."""
    if key not in data:
        raise MirlibError(f"not a complete result: {key!r} is missing")
    try:
        return read(data[key])
    except TypeError as error:
        raise MirlibError(f"not a complete result: {key!r} must be {error}, and is {_said(data[key])}") from error


def _said(stored: Any) -> str:
    """A value of a file in a message; of what holds others, which may be deep, the kind alone."""
    return type(stored).__name__ if isinstance(stored, (list, dict)) else shown(repr(stored))


def _list(data: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> list[Any]:
    def read_all(stored: Any) -> list[Any]:
        if not isinstance(stored, list):
            raise TypeError("a list")
        return [_get({f"{key}[{number}]": value}, f"{key}[{number}]", read) for number, value in enumerate(stored)]

    return _get(data, key, read_all)


def _of_modalities(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = _get(data, key, _mapping)
    if found.keys() != {"vision", "text"}:
        raise MirlibError(f"not a complete result: {key} must name vision and text, and names {shown(list(found))}")
    return found


def _interval(stored: Any) -> Interval:
    data = _get({"interval": stored}, "interval", _mapping)
    numbers = {name: _get(data, name, _or_nan) for name in INTERVAL_NUMBERS}
    return Interval(**numbers, confidence=_get(data, "confidence", _level), method=_get(data, "method", _text))


def _or(missing: float) -> Callable[[Any], float]:
    """A number, or ``missing`` for the null that stands for what JSON cannot hold."""

    def read(stored: Any) -> float:
        if stored is None:
            return missing
        if isinstance(stored, bool) or not isinstance(stored, (int, float)) or not abs(stored) <= sys.float_info.max:
            raise TypeError("a finite number or null")
        return float(stored)

    return read


_or_nan = _or(math.nan)


def _count(stored: Any) -> int:
    if isinstance(stored, bool) or not isinstance(stored, int) or not 0 <= stored < 2**63:
        raise TypeError("a count")
    return stored


def _level(stored: Any) -> float:
    if isinstance(stored, bool) or not isinstance(stored, (int, float)) or not 0 < stored < 1:
        raise TypeError("a number between 0 and 1")
    return float(stored)


def _text(stored: Any) -> str:
    if not isinstance(stored, str):
        raise TypeError("a text")
    return stored


def _mapping(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, Mapping):
        raise TypeError("an object with keys")
    return dict(stored)


def _settings(stored: Any) -> dict[str, Any]:
    for value in _mapping(stored).values():
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        if any(isinstance(part, (Mapping, list)) for part in inner):
            raise TypeError("an object of values and lists of values")
    return dict(stored)


def _anything(stored: Any) -> Any:
    return stored
