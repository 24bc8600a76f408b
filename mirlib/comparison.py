"""Is one value below another? The difference of two results, with the interval that the samples they share allow.

The variance of a difference of two values of the same samples is that of the difference of their influences; values of
different samples are independent; with some samples in both it is
``Σ_shared (U_a − U_b)² + Σ_only_a U_a² + Σ_only_b U_b²``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirlib.errors import MirlibError, shown
from mirlib.result import MIRResult, Sample, json_text, number_as_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mirlib.gaps.base import GapResult

__all__ = ["Comparison", "Difference", "SampleDifference", "compare"]

# Settings that change what the number is, so that values which differ in them do not belong side by side. The model and
# its width may differ.
COMPARABLE = (
    *("layers", "preset", "outliers", "normalize", "text_rows", "template", "last", "max_text_tokens", "num"),
    *("paired", "images", "image_field", "image_root", "texts", "text_field", "dtype", "quantization", "methods"),
)
# The library writes these where there is something to say.
UNLESS_RECORDED = {
    **{"paired": False, "methods": "none", "image_root": "that of the file"},
    **dict.fromkeys(("image_field", "text_field"), "the first known"),
}
SOURCES = ("images", "image_field", "image_root", "texts", "text_field")
NO_CHOICE = ("seed", "no_interval")  # settings of a measure of the zoo that do not change what it is


class Difference(NamedTuple):
    """A difference of two numbers, the first minus the second.

    Attributes:
        value: The difference, in the units of the numbers.
        standard_error: Its standard error; NaN where nothing is known.
        low: Lower end of its interval.
        high: Upper end.
        degrees: Degrees of freedom of the Student's t that gives the interval its width; infinite for a normal one.
    """

    value: float
    standard_error: float
    low: float
    high: float
    degrees: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class SampleDifference(NamedTuple):
    """What one sample does to a difference: without it the difference is about ``difference − value``."""

    sample: Sample
    value: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two results: the first minus the second.

    Attributes:
        quantity: What was compared, ``"MIR"`` or the name of a measure.
        values: The two values.
        difference: `Difference` of the values, with the interval for the samples that they share.
        unpaired: The same difference with the interval of two independent draws: what pairing buys is seen beside it.
        confidence: Of all intervals.
        shared: Samples in both results: ``{"pairs": n}``, or ``{"pictures": n, "texts": m}`` where images and texts
            were drawn independently; empty where the interval does not come from samples.
        sizes: Number of samples of each result, 0 where it is not known.
        per_layer: `Difference` of every layer's distance, FID_k; empty if the numbers of layers differ.
        contributions: `Difference` that each layer contributes, in the units of the value: they add up to the whole.
        samples: `SampleDifference` of every shared sample (or picture), the largest first, whatever its sign.
        incomparable: Why the two may not belong side by side: settings that differ, or that are not recorded.
        warnings: What else a reader of the difference should see: where its interval comes from.
    """

    quantity: str
    values: tuple[float, float]
    difference: Difference
    unpaired: Difference
    confidence: float
    shared: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)
    per_layer: tuple[Difference, ...] = ()
    contributions: tuple[Difference, ...] = ()
    samples: tuple[SampleDifference, ...] = ()
    incomparable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether any sample is in both results, so that the interval is that of a paired difference."""
        return any(self.shared.values())

    def __float__(self) -> float:
        return self.difference.value

    def __repr__(self) -> str:
        shared = ", ".join(f"{count} {name} shared" for name, count in self.shared.items()) or "no samples known"
        interval = ""
        if not math.isnan(self.difference.standard_error):
            interval = f" [{self.difference.low:+.4f}, {self.difference.high:+.4f}]"
        return f"Comparison({self.quantity} {self.difference.value:+.4f}{interval}, {shared})"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON: NaN becomes None, infinities ``"Infinity"`` and ``"-Infinity"``."""
        return {
            "quantity": self.quantity,
            "values": [number_as_json(value) for value in self.values],
            "confidence": float(self.confidence),
            "difference": _as_dict(self.difference),
            "unpaired": _as_dict(self.unpaired),
            "distinguishable": self.difference.distinguishable,
            "shared": {name: int(count) for name, count in self.shared.items()},
            "sizes": [int(size) for size in self.sizes],
            "per_layer": _columns(self.per_layer),
            "contributions": _columns(self.contributions),
            "samples": [[*one.sample, number_as_json(one.value)] for one in self.samples],
            "incomparable": list(self.incomparable),
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json_text(self.to_dict())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what each layer contributes; see `mirlib.plots.figure_difference`."""
        from mirlib.plots import figure_difference

        return figure_difference(self, ax=ax)


def _as_dict(difference: Difference) -> dict[str, Any]:
    return {name: number_as_json(number) for name, number in difference._asdict().items()}


def _columns(differences: Sequence[Difference]) -> dict[str, list[Any]]:
    """A list for each field, a number a layer."""
    fields = zip(Difference._fields, zip(*differences, strict=True), strict=False)
    return {name: [number_as_json(number) for number in numbers] for name, numbers in fields}


# ---------------------------------------------------------------------------------------------------------------------
# Samples drawn once or twice


class _Draws(NamedTuple):
    """Things drawn independently of each other: (..., N) influences on one number or several, and what each is."""

    influence: np.ndarray
    keys: Sequence[Hashable]


def _match(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of what is in both, in the order of the first; of what was drawn often, one is matched with one."""
    places: dict[Hashable, list[int]] = {}
    for place in reversed(range(len(second))):
        places.setdefault(second[place], []).append(place)
    found = [(i, places[key].pop()) for i, key in enumerate(first) if places.get(key)]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _errors(draws: _Draws) -> np.ndarray:
    """The influences times √(N / (N − 1)), whose squares add up to the variance of what N samples influence."""
    count = draws.influence.shape[-1]
    return draws.influence * (math.sqrt(count / (count - 1)) if count > 1 else math.nan)


def _independent_parts(first: _Draws, second: _Draws) -> list[tuple[np.ndarray, int]]:
    """Variances of independent parts of a difference, each with the number of draws behind it."""
    a, b = _errors(first), _errors(second)
    of_a, of_b = _match(first.keys, second.keys)
    rest_a, rest_b = np.delete(a, of_a, axis=-1), np.delete(b, of_b, axis=-1)
    parts = (a[..., of_a] - b[..., of_b], rest_a, rest_b)
    return [((part**2).sum(axis=-1), part.shape[-1]) for part in parts if part.shape[-1]]


def _with_interval(value: float, parts: Sequence[tuple[float, float]], confidence: float) -> Difference:
    """A value with the interval of independent errors: variances, each with its degrees of freedom (Welch)."""
    from scipy.special import ndtri, stdtrit

    variance = sum(part for part, _ in parts) if parts else math.nan
    doubt = sum(part * part / max(degrees, 1) for part, degrees in parts)
    degrees = variance * variance / doubt if doubt > 0 else min((degrees for _, degrees in parts), default=math.inf)
    error, upper = math.sqrt(variance), 0.5 + confidence / 2
    reach = float(ndtri(upper) if math.isinf(degrees) else stdtrit(degrees, upper)) * error
    return Difference(value, error, value - reach, value + reach, degrees)


def _difference(
    values: np.ndarray | float, first: Sequence[_Draws], second: Sequence[_Draws], confidence: float
) -> tuple[Difference, ...]:
    """A `Difference` for each of the (...) numbers that the draws influence."""
    parts = [part for a, b in zip(first, second, strict=True) for part in _independent_parts(a, b)]
    flat = [(np.atleast_1d(variance), count - 1) for variance, count in parts]
    return tuple(
        _with_interval(float(value), [(float(variance[k]), degrees) for variance, degrees in flat], confidence)
        for k, value in enumerate(np.atleast_1d(values))
    )


def _keys(samples: Sequence[Sample], *names: str) -> list[Hashable]:
    """What makes a sample the same as another; one of which something is not known is like no other."""
    keys = []
    for sample in samples:
        key = tuple(getattr(sample, name) for name in names)
        keys.append(key if all(key) else object())
    return keys


# ---------------------------------------------------------------------------------------------------------------------
# Results


def compare(a: MIRResult | GapResult, b: MIRResult | GapResult, *, confidence: float = 0.95) -> Comparison:
    """Is one model closer to its text than another? The difference ``a − b``, with the interval that it deserves.

    On the same samples the interval is that of a paired difference, often far narrower than those of the two values
    suggest. Samples are the same if their pictures have the same pixels and their texts the same characters, in
    whatever order they come; of a sample that was drawn twice, one is matched with one. Pictures and texts are matched
    together where they went in as one sequence, and each by themselves where vision and text rows belong to different
    samples. With no sample in common, or without the influences of samples, the interval is that of independent draws,
    and a warning says so. It is that of a Student's t, with N − 1 degrees of freedom where both values come from the
    same N samples, and by Welch's rule otherwise.

    Both are results of `mirlib.score`, or of one measure of the gap; ``b`` is subtracted, so that for MIR a negative
    difference means that ``a`` is closer. ``confidence`` is that of all intervals.

    Raises:
        MirlibError: If the difference would mean nothing: results of two measures, a value that is not finite,
            distances in different units; or for a confidence outside (0, 1).

    Examples:
        >>> import numpy as np
        >>> import mirlib
        >>> rng = np.random.default_rng(0)
        >>> text = rng.normal(size=(2, 400, 8))
        >>> far, near = (mirlib.modality_integration_rate(text + shift, text) for shift in (2, 1))
        >>> mirlib.compare(near, far)
        Comparison(MIR -0.6029, no samples known)
    """
    from mirlib.mir import check_confidence

    check_confidence(confidence)
    quantity = _common_quantity(a, b)
    notes: list[str] = []
    first, second = _draws_of(a), _draws_of(b)
    shared: dict[str, int] = {}
    why = _why_unpaired(a, b, first, second)
    if not why:
        kinds = ("pairs",) if len(first) == 1 else ("pictures", "texts")
        shared = {
            kind: len(_match(one.keys, other.keys)[0]) for kind, one, other in zip(kinds, first, second, strict=True)
        }
        if not any(shared.values()):
            why = "no sample is in both"
        elif partly := [
            f"{count} {kind} of {len(one.keys)} and {len(other.keys)}"
            for (kind, count), one, other in zip(shared.items(), first, second, strict=True)
            if not count == len(one.keys) == len(other.keys)
        ]:
            notes.append(f"only {' and '.join(partly)} are in both; the rest counts as drawn independently")
    errors = [_own_errors(result, draws) for result, draws in ((a, first), (b, second))]
    value = float(a.value) - float(b.value)
    unpaired = _with_interval(value, errors[0] + errors[1] if all(errors) else [], confidence)
    if not all(errors):
        notes.append(f"no interval: {_of_the_two(*(not error for error in errors))} came without one")
    elif why:
        notes.append(f"the interval is that of independent draws: {why}")
    difference = unpaired
    if any(shared.values()):
        difference = _difference(value, first, second, confidence)[0]
    return Comparison(
        quantity=quantity,
        values=(float(a.value), float(b.value)),
        difference=difference,
        unpaired=unpaired,
        confidence=confidence,
        shared=shared,
        sizes=(len(a.samples), len(b.samples)),
        samples=_samples_that_carry(a, first, second) if any(shared.values()) else (),
        incomparable=tuple(differences({"a": a, "b": b})),
        warnings=tuple(notes),
        **_layers(a, b, first, second, confidence),
    )


def _common_quantity(a: Any, b: Any) -> str:
    """What both results measure; refused where that is not one thing, or its difference is none."""
    names = ["MIR" if isinstance(result, MIRResult) else getattr(result, "measure", None) for result in (a, b)]
    for result, name in zip((a, b), names, strict=True):
        if not isinstance(name, str):
            kind = type(result).__name__
            raise MirlibError(f"expected a result of mirlib.score or of a measure of mirlib.gaps, got {kind}")
    if names[0] != names[1]:
        raise MirlibError(f"there is no difference between {names[0]} and {names[1]}: compare results of one measure")
    for result in (a, b):
        if not math.isfinite(result.value):
            raise MirlibError(f"one of the two is a {names[0]} of {result.value:g}, which has no difference to another")
    if a.settings.get("normalize", True) != b.settings.get("normalize", True):
        raise MirlibError(
            "one result was measured with normalize=True and the other without: their distances are in different units"
        )
    return names[0]


def _draws_of(result: Any) -> list[_Draws] | None:
    """What was drawn for a result, with its influence on the value; None if the influences are not known."""
    if result.influence is None:
        return None
    if isinstance(result, MIRResult):
        pairs, influences = result.influence.paired, (result.vision_influence, result.text_influence)
        influences = (sum(influences),) if pairs else influences
    else:
        pairs, influences = True, (np.asarray(result.influence, dtype=np.float64),)
    samples = result.samples
    sides = (("picture", "text"),) if pairs else (("picture",), ("text",))
    return [
        _Draws(influence, _keys(samples, *names) if samples else [object() for _ in influence])
        for influence, names in zip(influences, sides, strict=True)
    ]


def _why_unpaired(a: Any, b: Any, first: list[_Draws] | None, second: list[_Draws] | None) -> str:
    """Why samples cannot be matched, or nothing."""
    if first is None or second is None:
        return f"the influence of single samples is not known in {_of_the_two(first is None, second is None)}"
    if not (a.samples and b.samples):
        return f"the samples are not known in {_of_the_two(not a.samples, not b.samples)}"
    if len(first) != len(second):
        return "images and texts were drawn together in one and independently in the other"
    return ""


def _of_the_two(*flags: bool) -> str:
    return "both" if all(flags) else "one of the two"


def _own_errors(result: Any, draws: list[_Draws] | None) -> list[tuple[float, float]]:
    """Variances of independent parts of one value, with their degrees of freedom; nothing if there is no interval."""
    if draws is not None:
        return [(float((_errors(one) ** 2).sum()), len(one.influence) - 1) for one in draws]
    interval = getattr(result, "interval", None)
    if interval is None:
        return []
    degrees = math.inf if interval.degrees is None else interval.degrees
    return [(interval.standard_error * interval.standard_error, degrees)]


def _samples_that_carry(a: Any, first: list[_Draws], second: list[_Draws]) -> tuple[SampleDifference, ...]:
    """The shared pairs, or pictures, by what they do to the difference."""
    of_a, of_b = _match(first[0].keys, second[0].keys)
    on_difference = first[0].influence[of_a] - second[0].influence[of_b]
    return tuple(
        SampleDifference(a.samples[of_a[i]], float(on_difference[i]))
        for i in np.argsort(-np.abs(on_difference), kind="stable")
    )


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def _layers(
    a: Any, b: Any, first: list[_Draws] | None, second: list[_Draws] | None, confidence: float
) -> dict[str, tuple[Difference, ...]]:
    """Differences layer by layer, with intervals where the influences are known in both."""
    if len(a.per_layer) != len(b.per_layer):
        return {}
    per_layer = np.asarray(a.per_layer, dtype=np.float64) - np.asarray(b.per_layer, dtype=np.float64)

    def alone(values: np.ndarray) -> tuple[Difference, ...]:
        return tuple(_with_interval(float(value), [], confidence) for value in values)

    sums = [float(np.sum(result.per_layer)) for result in (a, b)]
    if not isinstance(a, MIRResult) or not all(0 < total < math.inf for total in sums):  # of a file that was changed
        return {"per_layer": alone(per_layer)}
    weight, *slopes = _weight(*sums)
    contributions = per_layer * weight
    if first is None or second is None or len(first) != len(second):
        return {"per_layer": alone(per_layer), "contributions": alone(contributions)}
    distances: list[list[_Draws]] = []
    shares: list[list[_Draws]] = []
    for result, draws, slope in ((a, first, slopes[0]), (b, second, -slopes[1])):
        sides = result.influence.vision, result.influence.text
        sides = (sides[0] + sides[1],) if result.influence.paired else sides
        distances.append([_Draws(side, one.keys) for side, one in zip(sides, draws, strict=True)])
        on_shares = (weight * side + slope * np.outer(per_layer, side.sum(axis=0)) for side in sides)
        shares.append([_Draws(share, one.keys) for share, one in zip(on_shares, draws, strict=True)])
    return {
        "per_layer": _difference(per_layer, *distances, confidence),
        "contributions": _difference(contributions, *shares, confidence),
    }


def _weight(first: float, second: float) -> tuple[float, float, float]:
    """``(log10 S − log10 T) / (S − T)`` and its derivatives by S and by T.

    Times the difference of a layer's distances it is what that layer contributes to the difference of two MIR: the
    contributions add up, and where S = T it is the derivative of log10. With ``h = (S − T) / (S + T)`` it is
    ``g(h) / ((S + T) ln 10)`` for ``g(h) = 2 artanh(h) / h``.
    """
    total = first + second
    h = (first - second) / total
    if abs(h) < 0.01:  # the first terms of its series are exact to the last digit
        g = 2 * (1 + h**2 / 3 + h**4 / 5 + h**6 / 7)
        slope = 2 * (2 * h / 3 + 4 * h**3 / 5 + 6 * h**5 / 7)
    else:
        g = (math.log(first) - math.log(second)) / h
        slope = ((total / first) * (total / second) / 2 - g) / h
    unit = total * math.log(10)
    return g / unit, (slope * (1 - h) - g) / (unit * total), (-slope * (1 + h) - g) / (unit * total)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def differences(results: Mapping[str, MIRResult | GapResult]) -> list[str]:
    """Why results may not belong side by side: the settings that differ, and those that one of them does not record."""
    found = []
    unrecorded: dict[str, list[str]] = {}
    for setting in _settings_that_count(results):
        holders: dict[str, list[str]] = {}
        for name, result in results.items():
            if setting in result.settings or setting in UNLESS_RECORDED:
                value = result.settings.get(setting, UNLESS_RECORDED.get(setting))
                value = shown(" ".join(map(str, value)) if isinstance(value, list) else str(value), 300)
                holders.setdefault(value, []).append(name)
            else:
                unrecorded.setdefault(name, []).append(setting)
        if len(holders) > 1:
            values = "; ".join(f"{value} in {', '.join(names)}" for value, names in holders.items())
            found.append(f"not comparable: {setting} differs ({values})")
    files: dict[str, list[str]] = {}
    for name, settings in unrecorded.items():
        files.setdefault(", ".join(settings), []).append(name)
    if len(results) > 1:
        found += [
            f"comparable only if you know that these agree, which {', '.join(names)} did not record: {settings}"
            for settings, names in files.items()
        ]
    return found


def _was_found(value: Any) -> bool:
    """Whether a setting of a measure is something that it found: a float, or floats by layer or by name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(map(_was_found, value)) if isinstance(value, list | tuple) else isinstance(value, float)


def _settings_that_count(results: Mapping[str, Any]) -> list[str]:
    """The names of the settings that change the number; those of sources only where the samples do not say more."""
    if not all(isinstance(result, MIRResult) for result in results.values()):
        items = [item for result in results.values() for item in result.settings.items()]
        return list(dict.fromkeys(name for name, value in items if name not in NO_CHOICE and not _was_found(value)))
    drawn = [sorted(sample[1:] for sample in result.samples) for result in results.values()]
    same = bool(drawn) and bool(drawn[0]) and all(samples == drawn[0] for samples in drawn)
    return [name for name in COMPARABLE if not (same and name in SOURCES)]
