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

__all__ = ["Influence", "Interval", "LengthSplit", "MIRResult", "Sample"]

SCHEMA = 2
ARRAYS = ("per_layer", "mean_term", "covariance_term", "norm_ratio", "scale", "bias")
INTERVAL_NUMBERS = ("low", "high", "standard_error")
INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}


class Interval(NamedTuple):
    """A confidence interval for MIR at this number of samples.

    Attributes:
        low: Lower end, in log10 units like the value.
        high: Upper end.
        confidence: For example 0.95.
        standard_error: Standard error of the value.
        method: How it was found; ``"influence"`` for MIR. Always over samples (images), never over tokens.
        degrees: Degrees of freedom of the Student's t that gives its width; None for a normal distribution.
    """

    low: float
    high: float
    confidence: float
    standard_error: float
    method: str
    degrees: float | None = None


class Sample(NamedTuple):
    """One image and one text that were measured: the image's file name, or ``"image 3"``, and two hashes.

    They are of the image's pixels and of the text, 16 hexadecimal digits each; empty if not known.
    """

    name: str
    picture: str
    text: str


@dataclass(frozen=True, eq=False)
class Influence:
    """What each of N samples does to the distance of each of K layers.

    FID_k without sample i is about ``FID_k − influence_i``, and its variance is ``N / (N − 1) Σ_i influence_i²``.

    Attributes:
        vision: (K, N) influence of the vision rows of each sample, in the units of FID_k.
        text: (K, N) influence of the text rows of each sample; another number of columns if not ``paired``.
        paired: Whether vision rows and text rows of one number were drawn together, as one sample.
    """

    vision: np.ndarray
    text: np.ndarray
    paired: bool


class LengthSplit(NamedTuple):
    """Shares of ``Σ_k FID_k``, which add up to 1.

    Attributes:
        forced: What the norms of the rows force, whatever their directions are.
        equalised: What goes away when every vision row gets the mean norm of the text rows of its layer.
        shape: The rest: direction and shape of the clouds.
    """

    forced: float
    equalised: float
    shape: float


@dataclass(frozen=True)
class MIRResult:
    """A Modality Integration Rate and everything it was made of. K is the number of layers; lists run over layers 1..K.

    Attributes:
        value: MIR, ``log10 Σ_k FID_k``; lower means closer modalities. −inf if every distance is 0; NaN if their
            sum is negative, which only the preset ``authors-fast`` can give.
        per_layer: (K,) FID_k in units of (mean text norm)², at least 0 but for ``authors-fast``.
        mean_term: (K,) the part of FID_k that comes from the means.
        covariance_term: (K,) the part that comes from the covariances.
        norm_ratio: (K,) mean vision norm / mean text norm, all rows included.
        norm_only: log10 of ``Σ_k α_k² E‖v‖²`` over the vision rows kept: MIR if only vision norms counted.
        zeroed_rows: MIR if the vision rows were replaced by zeros *after* the model has run; see `mirlib.baselines`.
        scale: (K,) α_k, 1 / mean text norm (1 where normalisation is off).
        bias: (K,) first-order upward bias of FID_k from the finite number of rows, if rows were independent Gaussians.
        outliers: ``{"vision": (K,), "text": (K,)}`` number of rows that the 3σ rule caught.
        rows: ``{"vision": r, "text": s}`` number of rows that came in.
        interval: `Interval`; None if none was asked for, or if there can be none, as ``warnings`` then says.
        settings: How it was computed; enough to repeat it.
        warnings: Sentences that a reader of the number should see.
        influence: `Influence` of each sample, or None if it was not asked for or does not exist.
        samples: The N samples, in the order of the influences; empty if they are not known.
        length: `LengthSplit`, or None if it was not taken.
        passes: How often the model read the pairs.
    """

    value: float
    per_layer: np.ndarray
    mean_term: np.ndarray
    covariance_term: np.ndarray
    norm_ratio: np.ndarray
    norm_only: float
    zeroed_rows: float
    scale: np.ndarray
    bias: np.ndarray
    outliers: Mapping[str, np.ndarray]
    rows: Mapping[str, int]
    interval: Interval | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    influence: Influence | None = None
    samples: tuple[Sample, ...] = ()
    length: LengthSplit | None = None
    passes: int = 1

    @property
    def num_layers(self) -> int:
        """Number of layers, K."""
        return len(self.per_layer)

    @property
    def vision_influence(self) -> np.ndarray | None:
        """(N,) influence on MIR of the vision rows of each sample, ``Σ_k influence_k / (S ln 10)``; None if unknown."""
        return None if self.influence is None else self._on_mir(self.influence.vision)

    @property
    def text_influence(self) -> np.ndarray | None:
        """(N,) influence on MIR of the text rows of each sample; None if unknown."""
        return None if self.influence is None else self._on_mir(self.influence.text)

    @property
    def sample_influence(self) -> np.ndarray | None:
        """(N,) influence on MIR of each sample, image and text together; None where they were not drawn together."""
        if self.influence is None or not self.influence.paired:
            return None
        return self._on_mir(self.influence.vision + self.influence.text)

    def _on_mir(self, influence: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # of a distance of 0 there is no logarithm
            return influence.sum(axis=0) / (self.per_layer.sum() * math.log(10))

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
        """Plain Python values, ready for JSON, from which `from_dict` makes the same result again.

        Numbers that JSON cannot hold: NaN becomes None, and so does the −inf of a logarithm of 0; other infinities
        become ``"Infinity"`` and ``"-Infinity"``.
        """
        return {
            "schema": SCHEMA,
            "mir": _finite(self.value),
            "interval": None if self.interval is None else _interval_as_dict(self.interval),
            "passes": int(self.passes),
            "length": None if self.length is None else {n: number_as_json(v) for n, v in self.length._asdict().items()},
            "norm_only": _finite(self.norm_only),
            "zeroed_rows": _finite(self.zeroed_rows),
            **{name: _numbers(getattr(self, name)) for name in ARRAYS},
            "outliers": {name: [int(n) for n in counts] for name, counts in self.outliers.items()},
            "rows": {name: int(n) for name, n in self.rows.items()},
            "settings": {k: v.item() if isinstance(v, np.generic) else v for k, v in self.settings.items()},
            "warnings": list(self.warnings),
            "samples": [list(sample) for sample in self.samples],
            "influence": None if self.influence is None else _influence_as_dict(self.influence),
        }

    def to_json(self) -> str:
        """JSON text of `to_dict`, a key a line, and a line for each list of numbers and each sample."""
        return json_text(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MIRResult:
        """The result that `to_dict` described; a `MirlibError` names a key that is missing or holds something else."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            if isinstance(data, Mapping) and "measures" in data:
                raise MirlibError("it holds other measures of the gap and no MIR: run `mir score` without --measures")
            way = f"; schema {SCHEMA} is read here: measure again" if isinstance(schema, int) else ""
            raise MirlibError(f"not a result of `mir score` or `mir features` (schema {_said(schema)}){way}")
        arrays = {name: _list(data, name, _or_nan) for name in ARRAYS}
        counts = {name: _of_modalities(data, name) for name in ("outliers", "rows")}
        outliers = {name: _list(counts["outliers"], name, _count) for name in counts["outliers"]}
        layers = len(arrays["per_layer"])
        for name, values in (arrays | outliers).items():
            if len(values) != layers or layers == 0:
                raise _incomplete(f"{name} holds {len(values)} numbers and per_layer {layers}; it must be one a layer")
        influence = _optional(data, "influence", lambda stored: _influence(stored, layers))
        samples = tuple(_list(data, "samples", _sample))
        for name in ("vision", "text") if samples and influence is not None else ():
            columns = getattr(influence, name).shape[1]
            if columns != len(samples):
                raise _incomplete(f"samples names {len(samples)} and influence holds {columns} of {name}")
        # A value that JSON could not hold is −inf for a distance of 0, and otherwise not a number.
        nothing = math.nan if np.any(arrays["per_layer"]) else -math.inf
        return cls(
            value=_get(data, "mir", _or(nothing)),
            zeroed_rows=_get(data, "zeroed_rows", _or(-math.inf)),
            norm_only=_get(data, "norm_only", _or(-math.inf)),
            outliers={name: np.array(values, dtype=np.int64) for name, values in outliers.items()},
            rows={name: _get(counts["rows"], name, _count) for name in counts["rows"]},
            interval=_optional(data, "interval", _interval),
            settings=_get(data, "settings", _settings),
            warnings=tuple(_list(data, "warnings", _text)),
            influence=influence,
            samples=samples,
            length=_optional(data, "length", _length),
            passes=_get(data, "passes", _count),
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


def json_text(data: Mapping[str, Any]) -> str:
    """JSON that a person can read: a key a line, and a line for each list of numbers, however long."""
    return _json_lines(data, "\n")


def _json_lines(data: Any, newline: str) -> str:
    inner = newline + "  "
    if isinstance(data, Mapping) and data:
        items = [f"{json.dumps(str(key))}: {_json_lines(value, inner)}" for key, value in data.items()]
        return "{" + inner + f",{inner}".join(items) + newline + "}"
    if isinstance(data, list) and any(isinstance(item, (list, str, Mapping)) for item in data):
        items = [
            _json_lines(item, inner) if isinstance(item, Mapping) else json.dumps(item, allow_nan=False)
            for item in data
        ]
        return "[" + inner + f",{inner}".join(items) + newline + "]"
    return json.dumps(data, allow_nan=False)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def number_as_json(number: float) -> float | str | None:
    """A number as JSON holds it: NaN as null, an infinity by its name."""
    return _finite(number) if not math.isinf(number) else "Infinity" if number > 0 else "-Infinity"


def _interval_as_dict(interval: Interval) -> dict[str, Any]:
    numbers = {name: number_as_json(getattr(interval, name)) for name in INTERVAL_NUMBERS}
    degrees = None if interval.degrees is None else float(interval.degrees)
    return interval._asdict() | numbers | {"degrees": degrees}


def _influence_as_dict(influence: Influence) -> dict[str, Any]:
    return {
        "paired": bool(influence.paired),
        "vision": [_numbers(layer) for layer in influence.vision],
        "text": [_numbers(layer) for layer in influence.text],
    }


def _numbers(values: np.ndarray) -> list[float | str | None]:
    return [number_as_json(float(value)) for value in values]


# ---------------------------------------------------------------------------------------------------------------------
# Reading: what each key may hold


def _incomplete(sentence: str) -> MirlibError:
    return MirlibError(f"not a complete result: {sentence}")


def _get(data: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    """The value of a key, as ``read`` takes it; ``read`` raises TypeError with what it expects."""
    if key not in data:
        raise _incomplete(f"{key!r} is missing")
    try:
        return read(data[key])
    except TypeError as error:
        raise _incomplete(f"{key!r} must be {error}, and is {_said(data[key])}") from error


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
        raise _incomplete(f"{key} must name vision and text, and names {shown(list(found))}")
    return found


def _optional(data: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    """What ``read`` makes of the object under a key; None for null."""
    return None if _get(data, key, lambda stored: stored) is None else read(_get(data, key, _mapping))


def _length(data: Mapping[str, Any]) -> LengthSplit:
    return LengthSplit(*(_get(data, name, _or_nan) for name in LengthSplit._fields))


def _interval(data: Mapping[str, Any]) -> Interval:
    return Interval(
        **{name: _get(data, name, _or_nan) for name in INTERVAL_NUMBERS},
        confidence=_get(data, "confidence", _level),
        method=_get(data, "method", _text),
        degrees=_get(data, "degrees", _degrees),
    )


def _influence(data: Mapping[str, Any], layers: int) -> Influence:
    arrays = {}
    for name in ("vision", "text"):
        rows = _list(data, name, _numbers_of)
        if len(rows) != layers or len({len(row) for row in rows}) != 1:
            raise _incomplete(
                f"influence of {name} must hold a list for each of {layers} layers, with a number a sample, and holds "
                f"lists of {shown([len(row) for row in rows])}"
            )
        arrays[name] = np.array(rows, dtype=np.float64)
    paired = _get(data, "paired", _flag)
    if paired and arrays["vision"].shape != arrays["text"].shape:
        raise _incomplete("influence is paired, but not of as many images as texts")
    return Influence(**arrays, paired=paired)


def _is_number(stored: Any) -> bool:
    return isinstance(stored, (int, float)) and not isinstance(stored, bool) and abs(stored) <= sys.float_info.max


def _or(missing: float) -> Callable[[Any], float]:
    """A number, or ``missing`` for the null that stands for what JSON cannot hold."""

    def read(stored: Any) -> float:
        if stored is not None and not _is_number(stored):
            raise TypeError("a finite number or null")
        return missing if stored is None else float(stored)

    return read


def _or_nan(stored: Any) -> float:
    """A number of a list or an interval: null stands for NaN there, and an infinity is named."""
    return INFINITE[stored] if isinstance(stored, str) and stored in INFINITE else _or(math.nan)(stored)


def _numbers_of(stored: Any) -> list[float]:
    if not isinstance(stored, list):
        raise TypeError("a list")
    return [_or_nan(value) for value in stored]


def _settings(stored: Any) -> dict[str, Any]:
    for value in _mapping(stored).values():
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        if any(isinstance(part, (Mapping, list)) for part in inner):
            raise TypeError("an object of values and lists of values")
    return dict(stored)


def _that(expected: str, fits: Callable[[Any], bool], make: Callable[[Any], Any] = lambda stored: stored) -> Any:
    """A reader for `_get` of what ``fits``."""

    def read(stored: Any) -> Any:
        if not fits(stored):
            raise TypeError(expected)
        return make(stored)

    return read


_flag = _that("true or false", lambda stored: isinstance(stored, bool))
_count = _that("a count", lambda stored: type(stored) is int and 0 <= stored < 2**63)
_level = _that("a number between 0 and 1", lambda stored: _is_number(stored) and 0 < stored < 1, float)
_degrees = _that("a number above 0 or null", lambda stored: stored is None or (_is_number(stored) and stored > 0))
_text = _that("a text", lambda stored: isinstance(stored, str))
_mapping = _that("an object with keys", lambda stored: isinstance(stored, Mapping), dict)


def _sample(stored: Any) -> Sample:
    if not isinstance(stored, list) or len(stored) != 3 or not all(isinstance(part, str) for part in stored):
        raise TypeError("a list of a name and two hashes")
    return Sample(*stored)
