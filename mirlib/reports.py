"""What a result says, as lines of text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mirlib.comparison import Comparison, Difference, differences
from mirlib.errors import MirlibError, shown
from mirlib.result import MIRResult

if TYPE_CHECKING:
    from mirlib.gaps import Calibration
    from mirlib.gaps.model import ZooResult
    from mirlib.interventions import Controls
    from mirlib.layer_pairs import LayerMap

__all__ = ["describe", "describe_controls", "describe_layers", "describe_measures", "side_by_side"]

CARRIERS = 3  # layers and pictures that are named for a difference


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """Lines of cells below a header, each column as wide as its widest cell; those named stand left."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if place in left else ">" for place in range(len(header))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in cells
    ]


def _ends(interval: Any, digits: str = ".4f") -> str:
    """An interval in brackets; "none" where there is none."""
    if interval is None or math.isnan(interval.low):
        return "none"
    return f"[{interval.low:{digits}}, {interval.high:{digits}}]"


def describe(result: MIRResult, name: str) -> str:
    """A result as text: the per-layer table, the value, its interval, and what it means."""
    largest = result.per_layer.max()
    rows = []
    for layer, row in result.to_frame().iterrows():
        bar = "█" * round(20 * row["fid"] / largest) if largest > 0 else ""
        numbers = f"{row['fid']:.4g}", f"{bar:20}", f"{row['mean_term']:.4g}", f"{row['covariance_term']:.4g}"
        outliers = f"{row['vision_outliers']:.0f}+{row['text_outliers']:.0f}"
        rows.append((str(layer), *numbers, f"{row['norm_ratio']:.3g}", outliers))
    lines = _table(("layer", "FID", "", "mean term", "cov. term", "norm ratio", "outliers"), rows)
    interval = ""
    if result.interval is not None:
        found = result.interval
        interval = f"   {found.confidence:.0%} interval {_ends(found)} ({found.method} over samples)"
    lines += ["", f"MIR of {name}: {result.value:.4f}{interval}", *_meaning(result)]
    lines += [f"  ! {warning}" for warning in result.warnings]
    return "\n".join(lines)


def _meaning(result: MIRResult) -> list[str]:
    total = float(result.per_layer.sum())
    layers = result.num_layers
    lines = [
        f"  log10 of the summed distance {total:.4g} over {layers} layers; lower is closer.",
        f"  {result.rows['vision']} vision and {result.rows['text']} text rows, preset {result.settings['preset']!r}"
        + (f", {result.passes} pass{'es' * (result.passes > 1)} over the pairs" if "num" in result.settings else ""),
    ]
    if total > 0:
        layer = int(result.per_layer.argmax()) + 1
        lines.append(
            f"  layer {layer} carries {result.per_layer.max() / total:.0%} of the sum, the means "
            f"{result.mean_term.sum() / total:.0%}, the covariances {result.covariance_term.sum() / total:.0%}"
        )
    if result.length is not None:
        forced, equalised, shape = result.length
        lines.append(
            f"  of the sum, {forced:.0%} is forced by norms, "
            + (f"{equalised:.0%} removed by equalising them, " if equalised >= 0 else "")
            + f"{shape:.0%} direction and shape"
            + ("" if equalised >= 0 else f": equalising the norms would add {-equalised:.0%}")
        )
    lines += [
        f"  beside it: vision norms alone would give {result.norm_only:.4f}, vision rows zeroed after the model has "
        f"run {result.zeroed_rows:.4f}",
        "  compare it only with values of the same number of layers and pairs, kind of text, preset and template",
    ]
    return lines


def describe_layers(found: LayerMap) -> list[str]:
    """A layer map as lines of text: the nearest text layer of each vision layer."""

    def runs(within: np.ndarray) -> str:
        """Those that are within, neighbours together: 1–2, 6–8."""
        places = np.flatnonzero(within)
        parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        ends = [(found.layers[part[0]], found.layers[part[-1]]) for part in parts]
        return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in ends)

    def line(kind: str, what: str) -> str:
        pairs = getattr(found, kind)
        rows = zip(pairs.nearest, pairs.within, strict=True)
        cells = [f"{found.layers[n]}" + (f" ({runs(row)})" if row.sum() > 1 else "") for n, row in rows]
        return f"  {what}: {'; '.join(cells)}"

    return [
        f"  nearest text layer to vision after layers {', '.join(map(str, found.layers))} (0: what enters layer 1), in "
        "brackets those that cannot be told from it",
        line("given", "rows as they are"),
        line("unit", "rows at norm one"),
    ]


def describe_controls(found: Controls) -> str:
    """Controls as text: a line an input, what could not be made, and where the real pictures stand."""
    rows = []
    for title, row in found.to_frame().iterrows():
        difference = "" if math.isnan(row["minus real"]) else f"{row['minus real']:+.4f}"
        difference += "" if math.isnan(row["±"]) else f" ± {row['±']:.4f}"
        rows.append((title, f"{row['mir']:.4f}", _ends(row), difference, row["standing"]))
    lines = _table(("input", "MIR", "interval", "− real", "against the real pictures"), rows, left=(0, 4))
    lines += [f"  ! left out: {name}: {why}" for name, why in found.unavailable.items()]
    lines += [f"  ! {warning}" for warning in found.warnings]
    reading = found.reading()
    return "\n".join(lines if reading is None else [*lines, f"  {reading}"])


def describe_measures(found: ZooResult, name: str) -> str:
    """A zoo as text: a line a measure, then what was left out, and what the columns mean."""
    from mirlib.gaps import MEASURES

    calibrated = any(result.calibration is not None for result in found.results.values())
    header = ["measure", "value", "interval", "layer 1", "last", "integrated"]
    header += ["random pairs", "random weights", "calibrated"] if calibrated else []
    rows = []
    for key, result in found.results.items():
        numbers = (f"{number:.4g}" for number in (result.per_layer[0], result.per_layer[-1]))
        interval = "" if result.interval is None else _ends(result.interval, ".4g")
        row = [MEASURES[key].title, f"{result.value:.4g}", interval, *numbers, result.direction]
        row += _nulls(result.calibration) if calibrated else ()
        rows.append([*row, "+".join(map(str, result.rows.values())), f"{found.seconds[key]:.2f}"])
    lines = _table([*header, "rows", "seconds"], rows, left=(0,))
    kept, seen = found.settings["rows_kept"], found.settings["rows_seen"]
    lines += [
        "",
        f"{name}: {found.settings['num']} pairs, {found.settings['layers']} layers, seed {found.settings['seed']}; "
        + "; ".join(f"{kept[side]} of {seen[side]} {side} rows kept" for side in kept),
        "  value: mean over the layers; for MIR, FD∞ and norm-only log10 of their sum",
        "  integrated: whether a lower or a higher value means that vision and text lie closer together",
    ]
    intervals = [result.interval for result in found.results.values() if result.interval is not None]
    if intervals:
        lines.append(f"  interval: {intervals[0].confidence:.0%}, for another draw of as many samples")
    if calibrated:
        lines += [
            f"  pairs: texts read {found.settings['pair_text']}, pictures {found.settings['pair_vision']}",
            "  random pairs: images and texts put together at random; calibrated: 0 for them, 1 for the best there can "
            "be",
        ]
        weights = found.settings["random_weights"]
        if isinstance(weights, str):
            lines.append(f"  ! random weights: {weights}")
        elif weights:
            lines.append("  random weights: the same architecture before it has learned anything")
    dim = found.settings["dim"]
    if "mir" in found.results and (few := [f"{count} {side} rows" for side, count in kept.items() if count <= dim]):
        lines.append(f"  ! {' and '.join(few)} for {dim} dimensions: MIR is biased upwards; use more samples")
    if kept != seen:
        lines.append("  ! MIR and FD∞ are those of the rows kept; for all rows, leave out --measures")
    lines += [
        f"  ! no interval for {MEASURES[key].title}: {result.settings['no_interval']}"
        for key, result in found.results.items()
        if "no_interval" in result.settings
    ]
    lines += [f"  ! left out: {key} {why}" for key, why in found.skipped.items()]
    return "\n".join(lines)


def _nulls(calibration: Calibration | None) -> tuple[str, str, str]:
    """What random pairs and random weights give, and the calibrated value, as text; empty for measures without."""
    if calibration is None:
        return "", "", ""
    weights = "" if calibration.random_weights is None else f"{calibration.random_value:.3f}"
    null = f"{calibration.null_mean.mean():.3f} ± {calibration.null_std.mean():.3f}"
    return null, weights, f"{calibration.value:.3f}"


def side_by_side(results: dict[str, MIRResult], found: dict[str, Comparison | MirlibError]) -> str:
    """What tells the results from the first, then all in a table, then what makes them incomparable."""
    first = next(iter(results))
    lines = []
    for name, one in found.items():
        lines += [f"{name}: {one}", ""] if isinstance(one, MirlibError) else [*_difference(one, name, first), ""]
    rows = []
    for name, result in results.items():
        one = found.get(name)
        difference = _with_reach(one.difference) if isinstance(one, Comparison) else ""
        numbers = difference, f"{result.norm_only:.4f}", f"{result.zeroed_rows:.4f}", str(result.num_layers)
        of_rows = f"{result.rows['vision']}+{result.rows['text']}"
        rows.append((name, f"{result.value:.4f}", _ends(result.interval), *numbers, of_rows))
    header = ("", "MIR", "interval", "− first", "norm only", "zeroed", "layers", "rows")
    lines += _table(header, rows, left=(0, 7))
    lines += [f"  ! {sentence}" for sentence in differences(results)]
    return "\n".join(lines)


def _with_reach(difference: Difference) -> str:
    reach = "" if math.isnan(difference.low) else f" ± {difference.high - difference.value:.4f}"
    return f"{difference.value:+.4f}{reach}"


def _difference(one: Comparison, name: str, first: str) -> list[str]:
    """A difference in words: its interval, what pairing bought, and the layers and pictures that carry it."""
    total, alone = one.difference, one.unpaired
    lines = [f"{name} − {first}: {total.value:+.4f}"]
    if not math.isnan(total.low):
        verdict = f"{name if total.value < 0 else first} is closer" if total.distinguishable else "not told from 0"
        lines[0] += f", {one.confidence:.0%} interval [{total.low:+.4f}, {total.high:+.4f}]: {verdict}"
    if one.paired:
        shared = " and ".join(f"{count} {kind}" for kind, count in one.shared.items())
        lines.append(f"  by the {shared} in both; independent draws would give [{alone.low:+.4f}, {alone.high:+.4f}]")
    if total.value and one.contributions:
        layers = sorted(enumerate(one.contributions, start=1), key=lambda layer: -abs(layer[1].value))[:CARRIERS]
        lines.append("  layers that carry it: " + ", ".join(f"{k} ({_with_reach(part)})" for k, part in layers))
    if carriers := [carrier for carrier in one.samples[:CARRIERS] if carrier.value]:
        lines.append(
            "  pictures that carry it: " + ", ".join(f"{shown(c.sample.name)} ({c.value:+.4f})" for c in carriers)
        )
    return lines + [f"  ! {warning}" for warning in one.warnings]
