"""Tables 1 to 4 and 7 of the MIR paper beside the laboratory's, arm by arm: what they print, and what the ledger holds.

What is drawn and tabled here are levels and differences; whether a claim holds is judged in `mirlib.lab.verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mirlib.lab.estimates import bootstrap, correlations, spearman
from mirlib.lab.figures import figure_against_accuracy, figure_arms
from mirlib.lab.protocols import PROTOCOLS
from mirlib.lab.tables import METRICS, Row, cells, complete_seeds, frame

NAN = float("nan")


@dataclass(frozen=True)
class Design:
    """A table of the paper, and the arms that answer it.

    Attributes:
        table: Its name in the paper.
        published: What it prints, by line: MIR and the average over benchmarks (not a number where it has none).
        labels: Names of our arms on a page, by the last part of their name in the protocol.
        reference: The label that the others are compared with.
    """

    table: str
    published: Mapping[str, tuple[float, float]]
    labels: Mapping[str, str]
    reference: str


DESIGNS = {
    "captions": Design(
        "Table 1",
        {
            "15.2 tokens": (3.588, 63.8),
            "49.1 tokens": (3.442, 64.0),
            "127.1 tokens": (3.279, 64.2),
            "181.2 tokens": (3.218, 64.4),
        },
        {"brief": "brief", "mid": "mid", "full": "full"},
        "brief",
    ),
    "recipes": Design(
        "Table 2",
        {
            "base": (3.182, 59.5),
            "warm-up 5%": (3.043, 59.6),
            "linear": (3.171, 59.5),
            "rate × 3": (3.575, 58.7),
            "rate / 2": (2.990, 60.0),
            "rate × 0.3": (2.808, 60.0),
        },
        {
            "base": "base",
            "warm-up 5%": "warm-up 5%",
            "linear": "linear",
            "rate x 3": "rate × 3",
            "rate / 2": "rate / 2",
            "rate x 0.3": "rate × 0.3",
        },
        "base",
    ),
    "unlocking": Design(
        "Table 3",
        {
            "nothing": (3.001, 64.0),
            "LoRA": (2.735, 64.3),
            "LoRA, merged": (2.734, 64.5),
            "first half": (2.705, 65.9),
            "all": (2.656, 65.9),
        },
        {"none": "nothing", "lora": "LoRA", "lora_merged": "LoRA, merged", "half": "first half", "all": "all"},
        "nothing",
    ),
    "connectors": Design(
        "Table 4",
        {
            "MLP, 1 layer": (3.454, 63.6),
            "MLP, 2 layers": (3.182, 63.9),
            "MLP, 4 layers": (3.446, 63.7),
            "Q-Former": (3.673, 53.7),
        },
        {"mlp1": "MLP, 1 layer", "mlp2": "MLP, 2 layers", "mlp4": "MLP, 4 layers", "qformer": "Q-Former"},
        "MLP, 2 layers",
    ),
    "sizes": Design(
        "Table 7",
        {
            "Vicuna 7B": (3.374, NAN),
            "Vicuna 13B": (2.583, NAN),
            "LLaMA-2-Chat 7B": (3.699, NAN),
            "LLaMA-2-Chat 13B": (2.477, NAN),
        },
        {"small": "width 64", "base": "width 128", "large": "width 192"},
        "width 128",
    ),
}
"""By experiment. Numbers as printed by Huang et al. (arXiv:2410.07167v2)."""

SINGLE_REGIME = "matched"
"""The regime of protocols that have one only."""


def panels(name: str) -> dict[str, dict[str, str]]:
    """Arms of an experiment by regime, then by the label that they have on a page."""
    found: dict[str, dict[str, str]] = {}
    for arm in PROTOCOLS[name].arms:
        regime, _, level = arm.partition(", ")
        regime, level = (regime, level) if level else (SINGLE_REGIME, arm)
        found.setdefault(regime, {})[DESIGNS[name].labels[level]] = arm
    return found


def values(table: pd.DataFrame, arms: Mapping[str, str], column: str) -> dict[str, np.ndarray]:
    """Values over seeds of a column of `mirlib.lab.tables.frame` by label; arms without a run are left out."""
    found = {label: table.loc[table["arm"] == arm, column] for label, arm in arms.items() if len(table)}
    return {label: series.to_numpy(float) for label, series in found.items() if len(series)}


def of_complete_seeds(table: pd.DataFrame, arms: Mapping[str, str], column: str) -> np.ndarray:
    """(arms, seeds) values of the seeds that have a run of every arm; no column where there is no such seed."""
    seeds = complete_seeds(table, arms.values())
    return cells(table, list(arms.values()), column, seeds) if seeds else np.empty((len(arms), 0))


def _level(values: np.ndarray) -> str:
    """A mean with its interval; a single value has none."""
    if not len(values):
        return ""
    found = bootstrap(values)
    ends = f" [{found.low:.3f}, {found.high:.3f}]" if len(values) > 1 else " (1 seed)"
    return f"{found.value:.3f}{ends}".replace("-", "−")


def side_by_side(name: str, rows: Iterable[Row]) -> pd.DataFrame:
    """The paper's table and ours: MIR and accuracy by label and, for ours, the norm-only baseline.

    Returns:
        Text: printed values, and means over the seeds that are there with their 95 % intervals; empty where there is
        nothing. Columns (whose, what).
    """
    table, design = frame(rows), DESIGNS[name]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    lines["paper", "MIR"] = {label: f"{mir:.3f}" for label, (mir, _) in design.published.items()}
    if any(np.isfinite(average) for _, average in design.published.values()):
        lines["paper", "average"] = {label: f"{average:.1f}" for label, (_, average) in design.published.items()}
    for regime, arms in panels(name).items():
        for column, shown in (("mir", "MIR"), ("norm_only", "norm-only"), ("accuracy", "accuracy")):
            lines[regime, shown] = {label: _level(v) for label, v in values(table, arms, column).items()}
    order = list(dict.fromkeys([*design.published, *design.labels.values()]))
    return pd.DataFrame(lines, dtype=object).reindex(order).fillna("")


def changes(
    name: str, rows: Iterable[Row], columns: Sequence[str] = ("mir", "norm_only", "loss", "accuracy")
) -> pd.DataFrame:
    """How far each arm lies from the reference of its regime, within a seed: mean over seeds and 95 % interval.

    Only seeds that have both runs count; ``seeds`` says how many. Empty without such a seed.
    """
    table, reference = frame(rows), DESIGNS[name].reference
    lines = {}
    for regime, arms in panels(name).items():
        for label, arm in arms.items():
            seeds = complete_seeds(table, [arms[reference], arm])
            if label == reference or not seeds:
                continue
            line: dict[str, object] = {}
            for column in columns:
                difference = np.diff(cells(table, [arms[reference], arm], column, seeds), axis=0)[0]
                shown = METRICS[column].split(",")[0]
                line[shown] = bootstrap(difference).text(3) if len(seeds) > 1 else f"{difference[0]:+.3f}"
            lines[regime, f"{label} − {reference}"] = line | {"seeds": len(seeds)}
    return pd.DataFrame(lines).T if lines else pd.DataFrame(columns=["no pair of runs in the ledger yet"])


def with_accuracy(name: str, rows: Iterable[Row], columns: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Rank correlation of metrics with accuracy over the arms of a regime, one for each seed that has them all.

    Returns:
        By regime, then by column of `mirlib.lab.tables.frame`: (seeds,). Regimes without such a seed are left out.
    """
    table = frame(rows)
    found: dict[str, dict[str, np.ndarray]] = {}
    for regime, arms in panels(name).items():
        accuracy = of_complete_seeds(table, arms, "accuracy")
        if accuracy.shape[1]:
            found[regime] = {c: correlations(of_complete_seeds(table, arms, c), accuracy) for c in columns}
    return found


MORE_IS_BETTER = ("in_context_text", "in_context_image", "discrimination", "accuracy")
"""Metrics by which the highest arm would be chosen; by all others it is the lowest."""


def choices(name: str, rows: Iterable[Row], columns: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """What choosing an arm by a metric is worth: accuracy of the chosen arm minus the mean over all arms.

    A choice at random has 0 on average, and a choice by accuracy itself the most that can be had. Where arms share the
    best value, their accuracies are averaged.

    Returns:
        By regime, then by column of `mirlib.lab.tables.frame`: (seeds,). Regimes without a seed that has all arms are
        left out.
    """
    table = frame(rows)
    found: dict[str, dict[str, np.ndarray]] = {}
    for regime, arms in panels(name).items():
        accuracy = of_complete_seeds(table, arms, "accuracy")
        if not accuracy.shape[1]:
            continue
        found[regime] = {}
        for column in columns:
            value = of_complete_seeds(table, arms, column) * (-1 if column in MORE_IS_BETTER else 1)
            best = value == value.min(axis=0)
            found[regime][column] = (accuracy * best).sum(axis=0) / best.sum(axis=0) - accuracy.mean(axis=0)
    return found


def figure_design(name: str, rows: Iterable[Row]) -> Figure:
    """The paper's table and ours as pictures: MIR arm by arm (above), and beside accuracy (below).

    Above, our panels show the norm-only baseline too, and the null baseline as a line, or in words where a line would
    lie so far off that the arms could not be told apart. Titles name the arm of the lowest mean, and the rank
    correlation of MIR with accuracy.
    """
    table, published = frame(rows), DESIGNS[name].published
    regimes = panels(name)
    averages = {label: average for label, (_, average) in published.items() if np.isfinite(average)}
    width = 1 + len(regimes)
    if averages:
        figure, axes = plt.subplots(2, width, figsize=(3.3 * width, 7.2), squeeze=False)
        above, below = axes
    else:  # the paper has nothing to set MIR against
        figure, axes = plt.subplots(1, width + len(regimes), figsize=(3.3 * (width + len(regimes)), 3.6))
        above, below = axes[:width], [None, *axes[width:]]
    printed = {label: np.array([mir]) for label, (mir, _) in published.items()}
    figure_arms({"MIR": printed}, above[0], xlabel="MIR (log10)")
    above[0].set_title(f"paper: lowest is {min(printed, key=lambda label: printed[label][0])}")
    if averages:
        points = {label: (printed[label], np.array([average])) for label, average in averages.items()}
        figure_against_accuracy(points, below[0], ylabel="average over benchmarks (%)")
        correlation = spearman([mir for mir, _ in published.values()], list(averages.values()))
        below[0].set_title(f"paper: correlation {correlation:+.2f},\none run an arm".replace("-", "−"))
    for upper, lower, (regime, arms) in zip(above[1:], below[1:], regimes.items(), strict=True):
        shown = {"MIR": values(table, arms, "mir"), "norm-only": values(table, arms, "norm_only")}
        label, references = _beside_null(shown, values(table, arms, "null"))
        figure_arms(shown, upper, xlabel=label, references=references)
        means = {label: one.mean() for label, one in shown["MIR"].items()}
        upper.set_title(f"{regime}: lowest is {min(means, key=means.get)}" if means else regime)
        mir, accuracy = (of_complete_seeds(table, arms, column) for column in ("mir", "accuracy"))
        figure_against_accuracy(dict(zip(arms, zip(mir, accuracy, strict=True), strict=True)), lower)
        found = correlations(mir, accuracy)
        lower.set_title(f"{regime}: correlation {_correlation(found)}" if len(found) else regime)
    return figure


def _beside_null(
    shown: Mapping[str, Mapping[str, np.ndarray]], null: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, float] | None]:
    """Label of the axis, and the null baseline as a reference if it lies not much farther off than the values span."""
    drawn = [one for by_arm in shown.values() for one in by_arm.values()]
    if not drawn:
        return "MIR (log10)", None
    level, drawn = float(np.concatenate(list(null.values())).mean()), np.concatenate(drawn)
    if np.abs(drawn - level).min() <= max(np.ptp(drawn), 0.1):
        return "MIR (log10)", {"null": level}
    return f"MIR (log10); null at {level:.2f}", None


def _correlation(found: np.ndarray) -> str:
    """A mean over seeds with its interval on a line of its own."""
    if len(found) == 1:
        return f"{found[0]:+.2f},\n1 seed".replace("-", "−")
    value, ends = str(bootstrap(found)).split(" ", 1)
    return f"{value}\n{ends}, {len(found)} seeds"
