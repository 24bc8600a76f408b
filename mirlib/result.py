"""What a measurement returns: plain numbers with their provenance. Knows nothing of how they were computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirlib.errors import MirlibError

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
            MirlibError: If keys are missing or the schema is unknown.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise MirlibError(f"not a result of `mir score` or `mir features` (schema {schema!r})")
        try:
            arrays = {name: np.array([_number(x, math.nan) for x in data[name]], dtype=np.float64) for name in ARRAYS}
            outliers = {name: np.array(data["outliers"][name], dtype=np.int64) for name in data["outliers"]}
            if len({values.shape for values in (*arrays.values(), *outliers.values())}) != 1:
                raise ValueError("its lists differ in length")
            if not outliers.keys() == data["rows"].keys() == {"vision", "text"}:
                raise ValueError("outliers and rows must name vision and text")
            interval = data["interval"]
            if interval is not None:
                numbers = {name: _number(interval[name], math.nan) for name in INTERVAL_NUMBERS}
                interval = Interval(**{**interval, **numbers})
            # A value that JSON could not hold is −inf for a distance of 0, and otherwise not a number.
            nothing = -math.inf if arrays["per_layer"].sum() == 0 else math.nan
            return cls(
                value=_number(data["mir"], nothing),
                null_baseline=_number(data["null_baseline"], -math.inf),
                norm_only=_number(data["norm_only"], -math.inf),
                outliers=outliers,
                rows={name: int(count) for name, count in data["rows"].items()},
                interval=interval,
                settings=dict(data["settings"]),
                warnings=tuple(data["warnings"]),
                **arrays,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MirlibError(f"not a complete result: {error}") from error

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


def _number(stored: Any, missing: float) -> float:
    return missing if stored is None else float(stored)


def _interval_as_dict(interval: Interval) -> dict[str, Any]:
    return interval._asdict() | {name: _finite(getattr(interval, name)) for name in INTERVAL_NUMBERS}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_finite(float(value)) for value in values]
