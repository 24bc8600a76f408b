"""Figures of the ledger's runs: ``figure_*(data, ax=None) -> Axes``, where data are plain numbers by name.

Values over seeds are arrays whose first axis is the seed. Where a figure draws a mean, it draws its 95 % interval too:
a bootstrap over seeds, the one that `mirlab.first.verdicts` judges by. The functions that turn rows of the ledger into
such arrays stand beside the figures that need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mirlab.first.estimates import RESAMPLES, Estimate
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.tables import loss_curve
from mirlib.plots import ACCENT, COLOURS, LINES, MARKERS, NEUTRAL, TEXT, VISION, new_axes

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


def over_steps(table: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of `mirlab.first.tables.probes` for one arm: steps (n,), and values (seeds, n)."""
    wide = table.pivot(index="seed", columns="step", values=column)
    return wide.columns.to_numpy(), wide.to_numpy(float)


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The thinned loss curves of runs that differ in their seed alone: steps (n,), and losses (seeds, n)."""
    curves = np.array([loss_curve(row) for row in rows])
    return curves[0, :, 0], curves[..., 1]


def figure_beside_accuracy(
    data: Series,
    accuracy: tuple[np.ndarray, np.ndarray],
    ax: Axes | None = None,
    *,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    boundary: float | None = None,
) -> Axes:
    """What a run shows on its way (left axis) beside what it is worth in the end (right axis), over the steps.

    Thick lines are means over seeds, thin ones the seeds: curves that run close together would hide each other's bands.
    The bars of accuracy are its 95 % intervals.

    Args:
        data: Curves of the left axis; the first is drawn in the colour of vision.
        accuracy: Steps (n,), and accuracies after stage 2 (seeds, n).
        ax: Where to draw; a new figure if left out.
        ylabel: Label of the left axis, with its unit.
        references: Levels of the left axis, by name.
        boundary: Step at which an epoch ends; ruled off.

    Returns:
        The left axes, from step 0 to the last one of accuracy; the right ones are their ``right`` twin, labelled
        "accuracy after stage 2".
    """
    ax = new_axes(ax)
    right = ax.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    steps, values = accuracy[0], np.asarray(accuracy[1], dtype=float)
    means, ends = values.mean(axis=0), np.array(interval(values))
    style = {"color": TEXT, "marker": "s", "linestyle": "--", "label": "accuracy after stage 2"}
    right.plot(steps, means, **style)
    right.vlines(steps, *ends, color=TEXT, linewidth=1.2)
    right.set_ylabel("accuracy after stage 2 (share right)", color=TEXT)
    for number, (label, (steps, values)) in enumerate(data.items()):
        dense = len(steps) > 20
        colour, marker = (VISION, NEUTRAL, ACCENT)[number], "" if dense else ("o", "^", "v")[number]
        _line(ax, label, steps, values, colour=colour, marker=marker, line=("-", "-.", ":")[number], each=True)
    for number, (label, level) in enumerate((references or {}).items()):
        ax.axhline(level, color="black", linewidth=1, marker="", linestyle=(":", (0, (5, 2)))[number], label=label)
    if boundary is not None:
        ax.axvline(boundary, color="black", linewidth=1, linestyle="-", marker="", label="second epoch begins")
    ax.set_xlim(0, 1.02 * accuracy[0][-1])
    ax.set_xlabel("step of stage 1")
    ax.set_ylabel(ylabel, color=VISION)
    handles, labels = (a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (ax, right)), strict=True))
    _legend_below(ax, handles, labels)
    return ax


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


def figure_over_steps(
    data: Series | Mapping[str, Series],
    ax: Axes | None = None,
    *,
    ylabel: str,
    boundary: float | None = None,
    log: bool = False,
) -> Axes:
    """Metrics over the steps of stage 1, mean over seeds with its interval.

    Args:
        data: Curves by label; or by group (a regime, say), then by label: a group has one colour, the first label of
            each a filled mark and a full line, and so on. A label may be empty.
        ax: Where to draw; a new figure if left out.
        ylabel: Label of the value axis, with its unit.
        boundary: Step at which an epoch ends; ruled off.
        log: Whether the value axis is logarithmic.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    styles = []  # name, curve, number of its colour, number of its mark and line
    for first, (name, found) in enumerate(data.items()):
        if isinstance(found, Mapping):
            for second, (label, one) in enumerate(found.items()):
                styles.append((", ".join(filter(None, (name, label))), one, first, second))
        else:
            styles.append((name, found, first, first))
    for name, (steps, values), first, second in styles:
        colour, marker = COLOURS[first % len(COLOURS)], MARKERS[second % len(MARKERS)]
        _line(ax, name, steps, values, colour=colour, marker=marker, line=LINES[second % len(LINES)])
    if boundary is not None:
        ax.axvline(boundary, color="black", linewidth=1, marker="", linestyle="-")
    if log:
        ax.set_yscale("log")
        _readable_ticks(ax)
    ax.set_xlabel("step of stage 1")
    ax.set_ylabel(ylabel)
    if styles:
        ax.legend(fontsize=8)
    return ax


def _readable_ticks(ax: Axes) -> None:
    """Ticks of a logarithmic value axis written in full: 1, 2, 3, 5, 10, 20 ..., or fewer where it spans much."""
    if ax.get_yscale() != "log":
        return
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 3, 5) if high < 100 * low else (1,)))
    ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())


def figure_layers_over_steps(data: Mapping[int, np.ndarray], ax: Axes | None = None) -> Axes:
    """The layer curve at each probe of a run: the darker the line, the later the step.

    Args:
        data: By step, the Fréchet distance after every layer, (seeds, K).
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes; their value axis is logarithmic where the mean curves span more than a factor of ten.
    """
    ax = new_axes(ax)
    means = [np.asarray(values, dtype=float).mean(axis=0) for values in data.values()]
    if means and np.max(means) > 10 * np.min(means):
        ax.set_yscale("log")
    for number, (step, values) in enumerate(sorted(data.items())):
        shade = 0.75 * (1 - number / max(1, len(data) - 1))
        values = np.asarray(values, dtype=float)
        layers = np.arange(1, values.shape[1] + 1)
        ax.plot(
            layers,
            values.mean(axis=0),
            color=str(shade),
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            label=f"step {step}",
        )
    ax.axhline(1, color=TEXT, linewidth=1, marker="", linestyle=":", label="tokens of zero")
    _readable_ticks(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("Fréchet distance (squared mean text norms)")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    _legend_below(ax, columns=2)
    return ax


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


def kind_values(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], np.ndarray]:
    """MIR by kind of picture and of text: both lists of kinds, and values (runs, pictures, texts, draws)."""
    kinds = rows[0]["metrics"]["kinds"]
    pictures, texts = list(kinds), list(next(iter(kinds.values())))
    return pictures, texts, np.array([[[r["metrics"]["kinds"][p][t] for t in texts] for p in pictures] for r in rows])


def figure_kind_grid(
    pictures: Sequence[str],
    texts: Sequence[str],
    values: np.ndarray,
    ax: Axes | None = None,
    *,
    name: str = "",
    chance: float | None = None,
) -> Axes:
    """MIR by kind of picture and of text, the mean over models and draws.

    Args:
        pictures: Kinds of pictures, the rows.
        texts: Kinds of texts, the columns.
        values: (models, pictures, texts, draws).
        ax: Where to draw; a new figure if left out.
        name: Of the models; the title begins with it.
        chance: The range within a model that draws alone would give; goes into the title.

    Returns:
        The axes. The range in its title is that of one model, mean over models: where models disagree on which cell is
        the highest, it is larger than the range of the numbers in the cells.
    """
    ax = new_axes(ax)
    values = np.asarray(values, dtype=float)
    by_model = values.mean(axis=3)
    means = by_model.mean(axis=0)
    # Half of the colour map: dark print stays readable on the darkest cell.
    shades = 0.55 * mpl.colors.Normalize(means.min(), means.max() + 1e-12)(means)
    ax.imshow(shades, cmap=mpl.colormaps["Greys"], vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*means.shape):
        ax.text(column, row, f"{means[row, column]:.2f}".replace("-", "−"), ha="center", va="center")
    ax.set_xticks(range(len(texts)), texts, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(pictures)), pictures)
    ax.set_xlabel("kind of text")
    ax.set_ylabel("kind of picture")
    ax.grid(visible=False)
    finding = f"range {np.ptp(by_model, axis=(1, 2)).mean():.2f}"
    finding += "" if chance is None else f", by chance {chance:.2f}"
    ax.set_title(f"{name}\n{finding}" if name else finding.capitalize())
    return ax


def figure_moved(
    data: Mapping[str, Mapping[str, tuple[np.ndarray, Estimate]]],
    ax: Axes | None = None,
    *,
    parts: Mapping[str, Sequence[Any]],
    limit: float,
) -> Axes:
    """How far things that should not matter move MIR: every model by its set of parts, and the interval of the verdict.

    Args:
        data: By what is varied, then by regime: ranges of the models, in units, and the estimate that is judged.
        ax: Where to draw; a new figure if left out.
        parts: By regime, the set of parts that each model stands on.
        limit: Of the protocol; ruled off.

    Returns:
        The axes; they say so where there is nothing to draw.
    """
    ax = new_axes(ax)
    groups = list(dict.fromkeys(group for by_group in data.values() for group in by_group))
    shifts = [0.0] if len(groups) == 1 else np.linspace(-0.2, 0.2, len(groups))
    sets = sorted({one for group in groups for one in parts[group]})
    ax.axvline(0, color="black", linewidth=0.8, linestyle="-", marker="")
    for number, (group, shift) in enumerate(zip(groups, shifts, strict=True)):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for row, by_group in enumerate(data.values()):
            if group not in by_group:
                continue
            values, found = by_group[group]
            for place, one in enumerate(sets):
                own = np.asarray(values, dtype=float)[np.asarray(parts[group]) == one]
                look = {"color": colour, "linestyle": "", "fillstyle": "none", "markersize": 6, "markeredgewidth": 1.2}
                ax.plot(own, np.full(len(own), row + shift + 0.13), marker=_OF_PARTS[place % len(_OF_PARTS)], **look)
            reach = [[found.value - found.low], [found.high - found.value]]
            ax.errorbar(found.value, row + shift, xerr=reach, color=colour, marker=marker, capsize=3, linestyle="")
        ax.plot([], [], color=colour, marker=marker, linestyle="-", linewidth=1, label=group)
    for place, one in enumerate(sets):
        look = {"color": "black", "linestyle": "", "fillstyle": "none", "markersize": 6}
        ax.plot([], [], marker=_OF_PARTS[place % len(_OF_PARTS)], label=f"a model, parts {one}", **look)
    if not groups:
        say_missing([ax])
    ax.axvline(limit, color="black", linewidth=1.2, linestyle="--", marker="", label="limit of the protocol")
    ax.set_yticks(range(len(data)), list(data))
    ax.set_ylim(max(1, len(data)) - 0.5, -0.5)
    ax.set_xlabel("range of MIR within a model (units of U)")
    _legend_below(ax, columns=3)
    return ax


_OF_PARTS = ("|", "x", "o", "D")


def figure_counts(
    data: Mapping[str, Mapping[int, np.ndarray]],
    ax: Axes | None = None,
    *,
    tolerance: float | None = None,
    published: Mapping[int, float] | None = None,
    first: int = 0,
) -> Axes:
    """MIR by the number of samples, less its mean at the largest number.

    Args:
        data: By regime, then by number of samples: values (models, draws).
        ax: Where to draw; a new figure if left out.
        tolerance: Half the width of a band about zero, the protocol's twentieth of U.
        published: Published values by number of samples; drawn for comparison, less the one at the largest number.
        first: Place of the first regime among the book's colours and markers.

    Returns:
        The axes. Bands hold the mean standard deviation of a model's draws.
    """
    ax = new_axes(ax)
    for number, (regime, by_count) in enumerate(data.items(), start=first):
        counts = np.array(sorted(by_count))
        values = np.stack([np.asarray(by_count[n], dtype=float) for n in counts], axis=-1)  # (models, draws, counts)
        values = values - values[..., -1].mean(axis=1)[:, None, None]
        mean, spread = values.mean(axis=(0, 1)), values.std(axis=1, ddof=1).mean(axis=0)
        colour = COLOURS[number % len(COLOURS)]
        ax.fill_between(counts, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)]}
        ax.plot(counts, mean, color=colour, label=regime, **style)
    if published:
        counts = np.array(sorted(published))
        levels = np.array([published[n] for n in counts])
        style = {"color": "black", "linestyle": ":", "marker": "x"}
        ax.plot(counts, levels - levels[-1], label="paper's Table 6", **style)
    if tolerance is not None:
        ax.axhspan(-tolerance, tolerance, color=NEUTRAL, alpha=0.15, linewidth=0, label="±U/20")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("number of samples N")
    ax.set_ylabel("MIR less its mean\nat the largest N (log10)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, loc="upper right", ncols=3)
    return ax


# ---------------------------------------------------------------------------------------------------------------------
# Data scale, recipes and designs: arms side by side


def by_level(table: pd.DataFrame, arms: Sequence[str], column: str, key: str = "pairs") -> dict[Any, np.ndarray]:
    """Values over seeds of a column of `mirlab.first.tables.frame`, by another one; arms without runs are left out."""
    if not len(table):
        return {}
    here = table[table["arm"].isin(arms)]
    return {level: one[column].to_numpy(float) for level, one in here.groupby(key, sort=False)}


def figure_by_pairs(
    data: Mapping[str, Mapping[float, np.ndarray]],
    ax: Axes | None = None,
    *,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """A metric against the number of stage-1 pairs: mean over seeds with its 95 % interval.

    Args:
        data: By label, then by number of pairs: values over seeds. Amounts may be missing.
        ax: Where to draw; a new figure if left out.
        ylabel: Label of the value axis, with its unit.
        references: Levels of baselines by name.

    Returns:
        The axes; they say so where there is nothing to draw.
    """
    ax = new_axes(ax)
    for number, (label, by_amount) in enumerate(data.items()):
        amounts = sorted(by_amount)
        if not amounts:
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        means = np.array([np.mean(by_amount[n]) for n in amounts])
        low, high = np.array([interval(by_amount[n]) for n in amounts], dtype=float).T
        ax.fill_between(amounts, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(amounts, means, color=colour, marker=marker, linestyle=LINES[number % len(LINES)], label=label)
    for number, (label, level) in enumerate((references or {}).items()):
        ax.axhline(level, color="black", linewidth=1, marker="", linestyle=(":", (0, (5, 2)))[number % 2], label=label)
    ax.set_xlabel("pairs of stage 1")
    ax.set_ylabel(ylabel)
    if any(data.values()):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        ax.legend(fontsize=8)
    else:
        _nothing(ax)
    return ax


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


def figure_warmup(
    data: Mapping[int, Mapping[int, np.ndarray]],
    ax: Axes | None = None,
    *,
    ylabel: str,
    path: Sequence[tuple[int, int]] = (),
) -> Axes:
    """A metric against the number of warm-up steps, one line an amount of data: mean over seeds with its interval.

    Args:
        data: By number of pairs, then by number of warm-up steps: values over seeds. Cells may be missing.
        ax: Where to draw; a new figure if left out.
        ylabel: Label of the value axis, with its unit.
        path: Two cells, each pairs and warm-up steps, that an arrow joins if both are there.

    Returns:
        The axes; they say so where there is nothing to draw.
    """
    lines = {f"{pairs} pairs": by_steps for pairs, by_steps in data.items()}
    ax = figure_by_pairs(lines, ax, ylabel=ylabel)
    ax.set_xlabel("warm-up steps")
    if len(path) == 2 and all(len(data.get(pairs, {}).get(steps, ())) for pairs, steps in path):
        ends = [(steps, float(np.mean(data[pairs][steps]))) for pairs, steps in path]
        arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.2, "shrinkA": 4, "shrinkB": 4}
        ax.annotate("", xy=ends[1], xytext=ends[0], arrowprops=arrow)
    return ax


def figure_arms_against_accuracy(
    data: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], ax: Axes | None = None, *, xlabel: str
) -> Axes:
    """A metric against the accuracy after stage 2: one mark an arm, one colour a series, intervals on both axes.

    Args:
        data: By series, its arms in their order: values of the metric and accuracies, each over the same seeds. A line
            joins the arms of a series.
        ax: Where to draw; a new figure if left out.
        xlabel: What the metric is, with its unit.

    Returns:
        The axes; they say so where there is nothing to draw.
    """
    ax = new_axes(ax)
    for number, (label, arms) in enumerate(data.items()):
        if not arms:
            continue
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        means = np.array([[np.mean(values) for values in arm] for arm in arms])  # (arms, 2)
        ends = np.array([[interval(values) for values in arm] for arm in arms], dtype=float)  # (arms, 2, 2)
        reach = np.nan_to_num(np.abs(ends - means[..., None]))
        ax.errorbar(
            *means.T,
            xerr=reach[:, 0].T,
            yerr=reach[:, 1].T,
            linestyle=LINES[number % len(LINES)],
            linewidth=1,
            capsize=2,
            label=label,
            **style,
        )
        ax.plot(*means[-1], markersize=11, fillstyle="none", linestyle="", **style)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("accuracy after stage 2 (share right)")
    if any(data.values()):
        ax.legend(fontsize=8)
    else:
        _nothing(ax)
    return ax


def _nothing(ax: Axes, what: str = "no runs in the ledger yet") -> None:
    ax.text(0.5, 0.5, what, ha="center", va="center", transform=ax.transAxes)
    ax.set_xticks([])  # numbers would look measured
    ax.set_yticks([])
