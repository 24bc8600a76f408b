"""Figures of the ledger's runs: ``figure_*(data, ax=None) -> Axes``, where data are plain numbers by name.

Values over seeds are arrays whose first axis is the seed. Where a figure draws a mean, it draws its 95 % interval too:
a bootstrap over seeds, the one that `mirlab.first.verdicts` judges by. The functions that turn rows of the ledger into
such arrays stand beside the figures that need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mirlab.first.estimates import RESAMPLES
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.tables import loss_curve
from mirlib.plots import COLOURS, MARKERS, NEUTRAL, new_axes

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By label: x (n,), and values (seeds, n)."""


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over the first axis, the seeds; `mirlab.first.estimates.bootstrap` for many at once.

    Args:
        values: (seeds, ...), at least one seed. A single seed has no interval: both ends are nan.

    Returns:
        The lower and the upper end, each (...).
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def say_missing(axes: Iterable[Axes]) -> None:
    """Write on axes for which the ledger has no run yet that it has none."""
    for ax in axes:
        ax.text(0.5, 0.5, "no run in the ledger yet", ha="center", va="center", transform=ax.transAxes)


def headline(name: str, finding: str, seeds: Iterable[int]) -> str:
    """A title that says what came out only where at least five seeds stand behind every point.

    Args:
        name: What the axes show.
        finding: What came out; may be empty.
        seeds: Number of seeds behind each point; a point without any is not drawn, and does not count.

    Example:
        >>> headline("high", "MIR rises", [5, 5]), headline("high", "MIR rises", [1, 2, 0]), headline("high", "", [])
        ('high: MIR rises', 'high, provisional: 1 to 2 seeds a point', 'high')
    """
    drawn = sorted(count for count in seeds if count)
    if drawn and drawn[0] < SEEDS_NEEDED:
        few, many = drawn[0], drawn[-1]
        count = f"{few} to {many} seeds" if few < many else f"{few} seed{'s' if few > 1 else ''}"
        return f"{name}, provisional: {count} a point"
    return f"{name}: {finding}" if drawn and finding else name


def level(ax: Axes, value: float, label: str, *, line: Any = ":", above: bool = True) -> None:
    """A horizontal level with its name on it, where a legend would stand far away.

    Args:
        ax: Where to draw.
        value: Height of the level.
        label: Its name; written at the left end.
        line: Matplotlib's line style.
        above: Whether the name stands above the line or below it.
    """
    ax.axhline(value, color="black", linewidth=1, marker="", linestyle=line)
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 8}
    shift = {"xytext": (4, 3 if above else -3), "va": "bottom" if above else "top"}
    ax.annotate(label, (0, value), **at, **shift)


# ---------------------------------------------------------------------------------------------------------------------
# Convergence and overfitting: what a run measured on its way


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The thinned loss curves of runs that differ in their seed alone: steps (n,), and losses (seeds, n)."""
    curves = np.array([loss_curve(row) for row in rows])
    return curves[0, :, 0], curves[..., 1]


def _legend_below(ax: Axes, *entries: Any, columns: int = 2) -> None:
    """A legend under the axes, where no curve runs through it."""
    ax.legend(*entries, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _line(
    ax: Axes,
    label: str,
    x: np.ndarray,
    values: np.ndarray,
    *,
    colour: str,
    marker: str,
    line: Any,
    each: bool = False,
) -> None:
    """The mean over seeds, and its interval as a band or, on demand, each seed as a thin line."""
    values = np.asarray(values, dtype=float)
    if each:
        ax.plot(x, values.T, color=colour, marker="", linestyle="-", linewidth=0.6, alpha=0.45, label="_seed")
    else:
        ax.fill_between(x, *interval(values), color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, values.mean(axis=0), color=colour, marker=marker, linestyle=line, label=label)


def figure_seed_values(
    data: Mapping[str, Mapping[str, np.ndarray]],
    ax: Axes | None = None,
    *,
    xlabel: str,
    limits: Sequence[float] = (),
    crossed: Mapping[str, Sequence[bool]] | None = None,
) -> Axes:
    """One line for each name, and in it each group: every seed a tick, their mean, and the mean's 95 % interval.

    Args:
        data: By name, then by group (a regime, say): values over seeds.
        ax: Where to draw; a new figure if left out.
        xlabel: What the values are, with their unit.
        limits: Positions of vertical rules, the bounds of a criterion.
        crossed: By group, which of its seeds are drawn as a cross in place of a tick (those with other parts, say).

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    groups = list(dict.fromkeys(group for by_group in data.values() for group in by_group))
    shifts = [0.0] if len(groups) == 1 else np.linspace(-0.18, 0.18, len(groups))
    ax.axvline(0, color="black", linewidth=0.8, linestyle="-", marker="")
    for number, (group, shift) in enumerate(zip(groups, shifts, strict=True)):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for row, by_group in enumerate(data.values()):
            values = np.asarray(by_group.get(group, ()), dtype=float)
            other = np.asarray((crossed or {}).get(group, np.zeros(len(values))), dtype=bool)[np.isfinite(values)]
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            height = row + shift
            for some, look in ((values[~other], {"marker": "|"}), (values[other], {"marker": "x", "markersize": 4})):
                if len(some):
                    ax.plot(some, np.full(len(some), height + 0.09), color=colour, linestyle="", alpha=0.7, **look)
            low, high = interval(values)
            mean = values.mean()
            reach = None if np.isnan(low) else [[mean - low], [high - mean]]
            ax.errorbar(mean, height, xerr=reach, color=colour, marker=marker, capsize=3, linestyle="", zorder=3)
        if len(groups) > 1:
            ax.plot([], [], color=colour, marker=marker, linestyle="", label=group)
    if not groups:
        say_missing([ax])
    for number, limit in enumerate(limits):
        label = "limit of the protocol" if number == 0 else "_"
        ax.axvline(limit, color="black", linewidth=1.2, linestyle="--", marker="", label=label)
    ax.set_yticks(range(len(data)), list(data))
    ax.set_ylim(max(1, len(data)) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    if len(groups) > 1 or limits:
        _legend_below(ax, columns=3)
    return ax


# ---------------------------------------------------------------------------------------------------------------------
# Robustness: everything that should not matter


# ---------------------------------------------------------------------------------------------------------------------
# Data scale, recipes and designs: arms side by side


def figure_arms(
    data: Mapping[str, Mapping[str, np.ndarray]],
    ax: Axes | None = None,
    *,
    xlabel: str,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """One line an arm: for each metric the mean over seeds and its 95 % interval, with every seed as a tick.

    An arm keeps its colour and marker, those of `figure_against_accuracy`, in all metrics; the first metric is filled,
    the others are hollow. A single run has no tick, for its mark is the run.

    Args:
        data: By metric (two at most), then by arm: values over seeds. An arm may have none.
        ax: Where to draw; a new figure if left out.
        xlabel: What the values are, with their unit.
        references: Levels of baselines by name.

    Returns:
        The axes; they say so where there is nothing to draw.
    """
    ax = new_axes(ax)
    arms = list(dict.fromkeys(arm for by_arm in data.values() for arm in by_arm))
    for number, (metric, by_arm) in enumerate(data.items()):
        for row, arm in enumerate(arms):
            values = np.asarray(by_arm.get(arm, ()), dtype=float)
            if not len(values):
                continue
            height, (low, high) = row + 0.22 * number, interval(values)
            colour, marker, mean = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)], values.mean()
            if len(values) > 1:
                ax.plot(values, np.full(len(values), height + 0.1), color=colour, marker="|", linestyle="", alpha=0.7)
            reach = None if np.isnan(low) else [[mean - low], [high - mean]]
            face = colour if number == 0 else "white"
            ax.errorbar(mean, height, xerr=reach, color=colour, marker=marker, mfc=face, capsize=3, linestyle="")
        ax.plot([], [], color=NEUTRAL, marker="o", mfc="white" if number else NEUTRAL, linestyle="", label=metric)
    for number, (label, level) in enumerate((references or {}).items()):
        ax.axvline(level, color="black", linewidth=1, marker="", linestyle=(":", (0, (5, 2)))[number % 2], label=label)
    ax.set_xlabel(xlabel)
    if any(len(values) for by_arm in data.values() for values in by_arm.values()):
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.4, -0.5)
        if len(data) > 1 or references:
            _legend_below(ax, columns=3)
    else:
        _nothing(ax)
    return ax


def figure_against_accuracy(
    data: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ax: Axes | None = None,
    *,
    ylabel: str = "accuracy (share right)",
    legend: bool = True,
) -> Axes:
    """MIR (across) against accuracy (up), one mark an arm: means over seeds with their 95 % intervals.

    What differs between the seeds alike for all arms is taken out of the intervals: each seed's mean over the arms is
    replaced by that over all seeds. The means stay what they are.

    Args:
        data: By arm: MIR and accuracy, each (seeds,), the same seeds in all arms.
        ax: Where to draw; a new figure if left out.
        ylabel: Label of the upward axis, with its unit.
        legend: Whether to name the arms under the axes; not needed beside `figure_arms` of the same arms.

    Returns:
        The axes; they say so where there is no seed.
    """
    ax = new_axes(ax)
    ax.set_xlabel("MIR (log10)")
    ax.set_ylabel(ylabel)
    points = np.array([pair for pair in data.values()], dtype=float)  # (arms, 2, seeds)
    if not points.size:
        _nothing(ax, "no seed has all arms yet")
        return ax
    centred = points - points.mean(axis=0) + points.mean(axis=(0, 2))[:, None]
    for number, (label, both) in enumerate(zip(data, centred, strict=True)):
        x, y = both.mean(axis=1)
        reach = [None, None]
        if both.shape[1] > 1:
            reach = [np.abs([[end] for end in interval(one)] - one.mean()) for one in both]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ax.errorbar(x, y, yerr=reach[1], xerr=reach[0], color=colour, marker="", capsize=3, linewidth=1.2, linestyle="")
        ax.plot(x, y, color=colour, marker=marker, markersize=7, linestyle="", label=label)
    ax.margins(0.15)
    if legend:
        _legend_below(ax)
    return ax


def _nothing(ax: Axes, what: str = "no runs in the ledger yet") -> None:
    ax.text(0.5, 0.5, what, ha="center", va="center", transform=ax.transAxes)
    ax.set_xticks([])  # numbers would look measured
    ax.set_yticks([])
