"""FID of every layer, run by run: the widget over the ledger's rows, and the same numbers in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import traitlets

from mirlib.widgets.base import StaticWidget
from mirlib.widgets.ledger_rows import Row, arm_names, mean_and_range, rounded

PLACES = 4  # arms that one picture can hold and stay readable
QUANTITIES = ("fid", "mean_term", "covariance_term", "norm_ratio", "share")
MEAN = "mean"  # what `seed` says when all seeds are shown

_KEPT = ("value", "null", "norm_only")
_CURVES = ("per_layer", "mean_term", "covariance_term", "norm_ratio")


class Band(NamedTuple):
    """One number of several runs.

    Attributes:
        mean: Over the runs.
        low: The lowest run.
        high: The highest run.
    """

    mean: float
    low: float
    high: float


class LayerSeries(NamedTuple):
    """What the widget shows of one arm.

    Attributes:
        name: Experiment and arm.
        seeds: Of the runs behind the curve.
        curve: A `Band` for every layer, of the quantity shown.
        mir: The value of MIR.
        norm_only: The norm-only baseline.
        zeroed_rows: The zeroed-rows baseline.
        accuracy: Mean accuracy after stage 2, or None where no run has one.
    """

    name: str
    seeds: tuple[int, ...]
    curve: tuple[Band, ...]
    mir: Band
    norm_only: Band
    zeroed_rows: Band
    accuracy: Band | None


def layer_runs(rows: Iterable[Row], arm_of: Callable[[Row], str] | None = None) -> list[dict[str, Any]]:
    """Return what the page needs of the rows: arms with their runs, rounded to five significant digits.

    A run that was also measured at steps on its way gives an arm for each of these steps. Rows without MIR by layer
    are left out.

    Args:
        rows: Rows of the ledger, of one experiment or of several.
        arm_of: Gives the name of a row's arm; see `mirlib.widgets.ledger_rows.arm_names`.

    Returns:
        Dictionaries with ``name``, ``experiment``, ``arm`` and ``runs``, in the order of the rows.
    """
    by_experiment: dict[str, list[Row]] = {}
    for row in rows:
        by_experiment.setdefault(row["experiment"], []).append(row)
    arms: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for experiment, own in by_experiment.items():
        for row, arm in zip(own, arm_names(own, arm_of), strict=True):
            metrics, seed = row["metrics"], row["configuration"]["seed"]
            probes = metrics.get("probes", [])
            for probe in probes:
                arms.setdefault((experiment, f"{arm}, step {probe['step']}"), []).append(_run(probe, seed))
            last = f"{arm}, last step" if probes else arm
            arms.setdefault((experiment, last), []).append(_run(metrics, seed))
    return [
        {
            "name": f"{experiment}: {arm}",
            "experiment": experiment,
            "arm": arm,
            "runs": sorted(found, key=lambda run: run["seed"]),
        }
        for (experiment, arm), runs in arms.items()
        if (found := [run for run in runs if run is not None])
    ]


def _run(metrics: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    mir = metrics.get("mir")
    if not isinstance(mir, Mapping) or "per_layer" not in mir:
        return None
    run: dict[str, Any] = {"seed": seed}
    run |= {name: rounded(mir[name]) for name in _KEPT}
    run |= {name: [rounded(value) for value in mir[name]] for name in _CURVES}
    if "accuracy" in metrics:
        run["accuracy"] = rounded(metrics["accuracy"]["mean"])
    return run


def layer_values(run: Mapping[str, Any], quantity: str) -> list[float]:
    """A quantity of every layer of one run.

    Args:
        run: One of the ``runs`` of `layer_runs`.
        quantity: ``fid``, ``mean_term``, ``covariance_term``, ``norm_ratio``, or ``share``: of the sum over layers.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, not {quantity!r}")
    if quantity == "share":
        total = sum(run["per_layer"])
        return [value / total for value in run["per_layer"]]
    return list(run["per_layer" if quantity == "fid" else quantity])


def layer_series(arm: Mapping[str, Any], quantity: str = "fid", seed: str = MEAN) -> LayerSeries | None:
    """Return what the widget shows of an arm.

    Args:
        arm: One of the arms of `layer_runs`.
        quantity: See `layer_values`.
        seed: ``"mean"``, or one seed as text.

    Returns:
        The numbers, or None if the arm has no such run.
    """
    runs = [run for run in arm["runs"] if seed in (MEAN, str(run["seed"]))]
    if not runs:
        return None

    def band(values: Sequence[float]) -> Band:
        return Band(**mean_and_range(values))

    curves = [layer_values(run, quantity) for run in runs]
    accuracies = [run["accuracy"] for run in runs if "accuracy" in run]
    return LayerSeries(
        name=arm["name"],
        seeds=tuple(run["seed"] for run in runs),
        curve=tuple(band(values) for values in zip(*curves, strict=True)),
        mir=band([run["value"] for run in runs]),
        norm_only=band([run["norm_only"] for run in runs]),
        zeroed_rows=band([run["null"] for run in runs]),
        accuracy=band(accuracies) if accuracies else None,
    )


def zeroed_level(series: Sequence[LayerSeries], quantity: str) -> float | None:
    """Where the line for comparison stands: what the quantity is without any vision, or with equal norms.

    The zeroed-rows baseline is MIR of vision rows replaced by zeros after the model has run. Its Fréchet distance is
    nearly the same in every layer, since each layer's text has a mean norm of 1; the line stands at its mean over the
    layers.

    Args:
        series: The series shown.
        quantity: See `layer_values`. For a norm ratio the line stands at 1, for a share at equal shares.
    """
    if not series:
        return None
    layers = len(series[0].curve)
    if quantity == "norm_ratio":
        return 1.0
    if quantity == "share":
        return 1 / layers
    return 10 ** (sum(one.zeroed_rows.mean for one in series) / len(series)) / layers


class LayerExplorer(StaticWidget):
    """The per-layer explorer: up to four arms of the ledger, layer by layer, with MIR and accuracy beside them.

    Args:
        rows: Rows of the ledger, of one experiment or of several; missing runs are simply not there, and the widget
            says how many seeds stand behind a curve.
        arm_of: Gives the name of a row's arm. Without it, see `mirlib.widgets.ledger_rows.arm_names`.
        **state: First values of the attributes below.

    Raises:
        ValueError: No row has MIR by layer.

    Attributes:
        chosen: Names (``"experiment: arm"``) of the arms shown, at most four.
        seed: ``"mean"`` for the mean over seeds with its range, or one seed as text.
        quantity: ``fid``, ``mean_term``, ``covariance_term``, ``norm_ratio`` or ``share``.
        log_scale: Whether the axis is logarithmic.
        layer: The layer that is read off below the picture.
        arms: What `layer_runs` made of the rows.

    Example:
        >>> mir = {"value": 0.5, "null": 0.3, "norm_only": 0.4, "per_layer": [2.0, 1.2], "mean_term": [1.5, 1.0],
        ...        "covariance_term": [0.5, 0.2], "norm_ratio": [1.4, 1.1]}
        >>> row = {"experiment": "one", "arm": "a", "configuration": {"seed": 0}, "metrics": {"mir": mir}}
        >>> LayerExplorer([row], quantity="share").numbers()[0].curve[0].mean
        0.625
    """

    asset = "layers"

    arms = traitlets.List(traitlets.Dict()).tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode(), maxlen=PLACES).tag(sync=True)
    seed = traitlets.Unicode(MEAN).tag(sync=True)
    quantity = traitlets.Enum(QUANTITIES, default_value="fid").tag(sync=True)
    log_scale = traitlets.Bool(True).tag(sync=True)
    layer = traitlets.Int(1, min=1).tag(sync=True)

    def __init__(self, rows: Iterable[Row], arm_of: Callable[[Row], str] | None = None, **state: Any) -> None:
        arms = layer_runs(rows, arm_of)
        if not arms:
            raise ValueError("none of the rows has MIR by layer (metrics['mir']['per_layer'])")
        depths = {len(run["per_layer"]) for arm in arms for run in arm["runs"]}
        if len(depths) > 1:
            raise ValueError(f"models of {', '.join(map(str, sorted(depths)))} layers do not fit in one picture")
        # The first and the last arm of the first experiment: what a reader compares first.
        first = [arm["name"] for arm in arms if arm["experiment"] == arms[0]["experiment"]]
        start = {"chosen": list(dict.fromkeys([first[0], first[-1]])), **state}
        names = {arm["name"] for arm in arms}
        if unknown := [name for name in start["chosen"] if name and name not in names]:
            raise ValueError(f"there is no arm {unknown[0]!r}; the arms are: {'; '.join(sorted(names))}")
        super().__init__(arms=arms, **start)

    def numbers(self) -> list[LayerSeries]:
        """Return what the widget shows in its present state, one entry an arm that has such a run."""
        by_name = {arm["name"]: arm for arm in self.arms}
        found = [layer_series(by_name[name], self.quantity, self.seed) for name in self.chosen if name]
        return [series for series in found if series is not None]

    def level(self) -> float | None:
        """Return where the line for comparison stands; see `zeroed_level`."""
        return zeroed_level(self.numbers(), self.quantity)
