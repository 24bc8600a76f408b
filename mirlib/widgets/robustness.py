"""MIR of one model over kinds of pictures and texts, and numbers of samples: a widget, and the same in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import traitlets

from mirlib.widgets.base import StaticWidget, rounded

ALL = "all"  # what `model` says when all models are taken together
DIGITS = 6


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
        mean: As in `CellNumbers`, like ``low``, ``high`` and ``draw_range``.
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


def robustness_models(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page needs of the ledger's rows of a robustness study; other rows are left out.

    Returns:
        Dictionaries with ``seed``, ``kinds`` (MIR by picture kind, text kind and draw) and
        ``counts`` (MIR by number of samples and draw; may be empty).
    """

    def short(draws: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        return {name: [rounded(value, DIGITS) for value in values] for name, values in draws.items()}

    return [
        {
            "seed": row["configuration"]["seed"],
            "kinds": {picture: short(draws) for picture, draws in row["metrics"]["kinds"].items()},
            "counts": short(row["metrics"].get("counts", {})),
        }
        for row in rows
        if "kinds" in row["metrics"]
    ]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def cell_numbers(
    models: Sequence[Mapping[str, Any]],
    cell: tuple[str, str],
    reference_cell: tuple[str, str],
    unit: float | None = None,
) -> CellNumbers:
    """What the widget shows of a cell, a kind of picture and a kind of text, of some models.

    ``unit`` is U, a difference of MIR to express differences in, for example between models that are to be ranked.
    """
    draws, references = ([model["kinds"][p][t] for model in models] for p, t in (cell, reference_cell))
    means = [_mean(values) for values in draws]
    differences = [mean - _mean(values) for mean, values in zip(means, references, strict=True)]
    everything = np.concatenate(draws)
    difference = _mean(differences)
    return CellNumbers(
        mean=_mean(means),
        low=float(everything.min()),
        high=float(everything.max()),
        values=len(everything),
        model_low=min(means),
        model_high=max(means),
        draw_range=_mean(np.ptp(values) for values in draws),
        difference=difference,
        difference_low=min(differences),
        difference_high=max(differences),
        in_units=difference / unit if unit else None,
    )


def range_of_cells(models: Sequence[Mapping[str, Any]]) -> float:
    """Highest minus lowest mean over all cells of a model, mean over models."""
    cells = [[_mean(draws) for texts in model["kinds"].values() for draws in texts.values()] for model in models]
    return _mean(np.ptp(means) for means in cells)


def count_numbers(models: Sequence[Mapping[str, Any]], count: str, unit: float | None = None) -> CountNumbers:
    """What the widget shows of a number of samples, spelled as in the rows; see `cell_numbers`."""
    draws = [model["counts"][count] for model in models]
    largest = max(models[0]["counts"], key=int)
    mean, draw_range = _mean(map(_mean, draws)), _mean(np.ptp(values) for values in draws)
    several = min(map(len, draws)) > 1
    return CountNumbers(
        mean=mean,
        low=min(map(min, draws)),
        high=max(map(max, draws)),
        draw_range=draw_range,
        deviation=_mean(np.std(values, ddof=1) for values in draws) if several else None,
        shift=mean - _mean(_mean(model["counts"][largest]) for model in models),
        in_units=draw_range / unit if unit else None,
    )


class RobustnessPicker(StaticWidget):
    """The pictures × texts picker: how much MIR of one model moves with things that should not matter.

    Args:
        rows: Rows of the ledger of a robustness study; missing runs are simply not there.
        reference: U, a difference of MIR to measure by, for example the one between two models that are to be ranked.
            Without it nothing is said in such units.
        **state: First values of the attributes below.

    Raises:
        ValueError: No row has MIR by kind, or `reference` is not positive.

    Attributes:
        model: ``"all"`` models, or the seed of one as text.
        cell: Kind of picture and kind of text that are looked at.
        reference_cell: The cell that differences are taken to.
        count: Number of samples that is looked at, as the rows spell it; empty where there is none.
        unit: U, or None.
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
    model = traitlets.Unicode(ALL).tag(sync=True)
    cell = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)
    reference_cell = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)
    count = traitlets.Unicode("").tag(sync=True)
    unit = traitlets.Float(None, allow_none=True).tag(sync=True)

    def __init__(self, rows: Iterable[Mapping[str, Any]], reference: float | None = None, **state: Any) -> None:
        models = robustness_models(rows)
        if not models:
            raise ValueError("none of the rows has MIR by kind of picture and text (metrics['kinds'])")
        if reference is not None and not (math.isfinite(reference) and reference > 0):
            raise ValueError(f"reference must be a positive difference of MIR, not {reference}")
        picture, texts = next(iter(models[0]["kinds"].items()))
        first = [picture, next(iter(texts))]
        counts = models[0]["counts"]
        count = "100" if "100" in counts else next(iter(counts), "")
        start = {"cell": first, "reference_cell": first, "count": count, **state}
        super().__init__(models=models, unit=reference, **start)

    def shown(self) -> list[dict[str, Any]]:
        """The models shown: all, or the one that is picked."""
        return [m for m in self.models if self.model in (ALL, str(m["seed"]))]

    def numbers(self) -> CellNumbers:
        """What the widget shows of the present cell."""
        return cell_numbers(self.shown(), tuple(self.cell), tuple(self.reference_cell), self.unit)

    def count_numbers(self) -> CountNumbers | None:
        """What the widget shows of the present number of samples, or None without counts."""
        models = [model for model in self.shown() if self.count in model["counts"]]
        return count_numbers(models, self.count, self.unit) if models else None
