"""MIR of one model over kinds of pictures and texts, and numbers of samples: a widget, and the same in Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import traitlets

from mirlib.widgets.base import StaticWidget
from mirlib.widgets.ledger_rows import Row, arm_names, mean_and_range, rounded

ALL = "all"  # what `model` says when all models are taken together
_DIGITS = 6


class CellNumbers(NamedTuple):
    """What the widget shows of one kind of picture with one kind of text.

    Attributes:
        mean: Mean MIR over models of their means over draws.
        low: The lowest draw of any model.
        high: The highest draw of any model.
        values: How many draws of all models there are.
        model_low: The lowest mean of a model over its draws.
        model_high: The highest.
        draw_range: Highest minus lowest draw of a model, mean over models.
        difference: Mean over models of the difference to the reference cell of the same model.
        difference_low: The lowest model.
        difference_high: The highest model.
        in_units: `difference` in units of U; None without one.
    """

    mean: float
    low: float
    high: float
    values: int
    model_low: float
    model_high: float
    draw_range: float
    difference: float
    difference_low: float
    difference_high: float
    in_units: float | None


class CountNumbers(NamedTuple):
    """What the widget shows of one number of samples.

    Attributes:
        mean: Mean MIR over models of their means over draws.
        low: The lowest draw of any model.
        high: The highest draw of any model.
        draw_range: Highest minus lowest draw of a model, mean over models.
        deviation: Standard deviation over the draws of a model (divisor n − 1), mean over models; None for one draw.
        shift: `mean` minus that at the largest number of samples.
        in_units: `draw_range` in units of U; None without one.
    """

    mean: float
    low: float
    high: float
    draw_range: float
    deviation: float | None
    shift: float
    in_units: float | None


def robustness_models(rows: Iterable[Row], arm_of: Callable[[Row], str] | None = None) -> list[dict[str, Any]]:
    """Return what the page needs of the rows of a robustness study; others are left out.

    Args:
        rows: Rows of the ledger.
        arm_of: Gives the name of a row's arm; see `mirlib.widgets.ledger_rows.arm_names`.

    Returns:
        Dictionaries with ``regime``, ``seed``, ``kinds`` (MIR by picture kind, text kind and draw) and ``counts`` (MIR
        by number of samples and draw; may be empty).
    """
    own = [row for row in rows if "kinds" in row["metrics"]]
    return [
        {
            "regime": regime,
            "seed": row["configuration"]["seed"],
            "kinds": {
                picture: {text: [rounded(value, _DIGITS) for value in draws] for text, draws in by_text.items()}
                for picture, by_text in row["metrics"]["kinds"].items()
            },
            "counts": {
                count: [rounded(value, _DIGITS) for value in draws]
                for count, draws in row["metrics"].get("counts", {}).items()
            },
        }
        for row, regime in zip(own, arm_names(own, arm_of), strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return mean_and_range(values)["mean"]


def cell_numbers(
    models: Sequence[Mapping[str, Any]],
    cell: tuple[str, str],
    reference_cell: tuple[str, str],
    unit: float | None = None,
) -> CellNumbers:
    """Return what the widget shows of a cell.

    Args:
        models: Some of `robustness_models`, of one regime.
        cell: Kind of picture and kind of text.
        reference_cell: The cell that differences are taken to, within each model.
        unit: U, a difference of MIR to express differences in, for example between models that are to be ranked.
    """
    draws = [model["kinds"][cell[0]][cell[1]] for model in models]
    means = [_mean(values) for values in draws]
    references = [_mean(model["kinds"][reference_cell[0]][reference_cell[1]]) for model in models]
    differences = [mean - reference for mean, reference in zip(means, references, strict=True)]
    everything = [value for values in draws for value in values]
    difference = _mean(differences)
    return CellNumbers(
        mean=_mean(means),
        low=min(everything),
        high=max(everything),
        values=len(everything),
        model_low=min(means),
        model_high=max(means),
        draw_range=_mean([max(values) - min(values) for values in draws]),
        difference=difference,
        difference_low=min(differences),
        difference_high=max(differences),
        in_units=difference / unit if unit else None,
    )


def range_of_cells(models: Sequence[Mapping[str, Any]]) -> float:
    """Highest minus lowest mean over all cells of a model, mean over models.

    Args:
        models: Some of `robustness_models`, of one regime.
    """
    spans = []
    for model in models:
        means = [_mean(draws) for by_text in model["kinds"].values() for draws in by_text.values()]
        spans.append(max(means) - min(means))
    return _mean(spans)


def count_numbers(models: Sequence[Mapping[str, Any]], count: str, unit: float | None = None) -> CountNumbers:
    """Return what the widget shows of a number of samples.

    Args:
        models: Some of `robustness_models`, of one regime, with ``counts``.
        count: The number of samples, as the rows spell it.
        unit: See `cell_numbers`.
    """
    draws = [model["counts"][count] for model in models]
    largest = max(models[0]["counts"], key=int)
    at_largest = _mean([_mean(model["counts"][largest]) for model in models])
    everything = [value for values in draws for value in values]
    mean = _mean([_mean(values) for values in draws])
    draw_range = _mean([max(values) - min(values) for values in draws])
    return CountNumbers(
        mean=mean,
        low=min(everything),
        high=max(everything),
        draw_range=draw_range,
        deviation=_mean([_deviation(values) for values in draws]) if min(map(len, draws)) > 1 else None,
        shift=mean - at_largest,
        in_units=draw_range / unit if unit else None,
    )


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


class RobustnessPicker(StaticWidget):
    """The pictures × texts picker: how much MIR of one model moves with things that should not matter.

    Args:
        rows: Rows of the ledger of a robustness study; missing runs are simply not there.
        reference: U, a difference of MIR to measure by: one for all, or one for each regime, for example the highest
            minus the lowest MIR over the amounts of data. Where there is none, nothing is said in such units.
        arm_of: Gives the name of a row's arm. Without it, see `mirlib.widgets.ledger_rows.arm_names`.
        **state: First values of the attributes below.

    Raises:
        ValueError: No row has MIR by kind, or `reference` is not positive, or for a regime that no row has.

    Attributes:
        regime: Name of the arm.
        model: ``"all"`` models of the regime, or the seed of one as text.
        cell: Kind of picture and kind of text that are looked at.
        reference_cell: The cell that differences are taken to.
        count: Number of samples that is looked at, as the rows spell it; empty where there is none.
        units: U by regime.
        models: What `robustness_models` made of the rows.

    Example:
        >>> kinds = {"photographs": {"news": [1.0, 1.2], "code": [1.4, 1.4]}}
        >>> row = {"experiment": "one", "arm": "a", "configuration": {"seed": 0}, "metrics": {"kinds": kinds}}
        >>> picker = RobustnessPicker([row], reference=0.5, cell=["photographs", "code"])
        >>> round(picker.numbers().in_units, 3)
        0.6
    """

    asset = "robustness"

    models = traitlets.List(traitlets.Dict()).tag(sync=True)
    regime = traitlets.Unicode().tag(sync=True)
    model = traitlets.Unicode(ALL).tag(sync=True)
    cell = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)
    reference_cell = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)
    count = traitlets.Unicode("").tag(sync=True)
    units = traitlets.Dict(value_trait=traitlets.Float(min=0)).tag(sync=True)

    def __init__(
        self,
        rows: Iterable[Row],
        reference: float | Mapping[str, float] | None = None,
        arm_of: Callable[[Row], str] | None = None,
        **state: Any,
    ) -> None:
        models = robustness_models(rows, arm_of)
        if not models:
            raise ValueError("none of the rows has MIR by kind of picture and text (metrics['kinds'])")
        regimes = list(dict.fromkeys(model["regime"] for model in models))
        units = reference if isinstance(reference, Mapping) else dict.fromkeys(regimes, reference)
        units = {regime: float(unit) for regime, unit in units.items() if unit is not None}
        for regime, unit in units.items():
            if not (math.isfinite(unit) and unit > 0):
                raise ValueError(f"reference must be a positive difference of MIR, not {unit} ({regime})")
            if regime not in regimes:
                raise ValueError(f"reference is given for {regime!r}; the regimes are {', '.join(regimes)}")
        first = [next(iter(models[0]["kinds"])), next(iter(next(iter(models[0]["kinds"].values()))))]
        counts = [count for count in ("100", *models[0]["counts"]) if count in models[0]["counts"]]
        start = {
            "regime": models[0]["regime"],
            "cell": first,
            "reference_cell": first,
            "count": counts[0] if counts else "",
            **state,
        }
        super().__init__(models=models, units=units, **start)

    @property
    def unit(self) -> float | None:
        """U of the regime that is shown, or None."""
        return self.units.get(self.regime)

    def shown(self) -> list[dict[str, Any]]:
        """Return the models shown: those of the regime, or the one that is picked."""
        return [m for m in self.models if m["regime"] == self.regime and self.model in (ALL, str(m["seed"]))]

    def numbers(self) -> CellNumbers:
        """Return what the widget shows of the present cell."""
        return cell_numbers(self.shown(), tuple(self.cell), tuple(self.reference_cell), self.unit)

    def count_numbers(self) -> CountNumbers | None:
        """Return what the widget shows of the present number of samples, or None without counts."""
        models = [model for model in self.shown() if self.count in model["counts"]]
        return count_numbers(models, self.count, self.unit) if models else None
