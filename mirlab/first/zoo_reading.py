"""What the rows of the zoo say: correlations by sweep, agreement, bias, and the figures of them.

Measures whose rows hold a text that had seen its picture, `mirlab.first.zoo_table.LEAKED`, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mirlab.first import zoo_table as zoo
from mirlab.first.closing.zoo import EXPECTED, PROTOCOL, SWEEPS, with_accuracy
from mirlab.first.estimates import Estimate, spearman
from mirlab.first.reporting import boxed
from mirlib.gaps import MEASURES
from mirlib.gaps.base import TASK, mean_interval
from mirlib.plots import ACCENT, NEUTRAL, TEXT, VISION, new_axes

ALL_SETTINGS = "all settings"
OVER = {ALL_SETTINGS: list(PROTOCOL.arms), **SWEEPS}
"""Arms over which models are ranked, by name."""
MATCHED_NORMS = [arm for arm in PROTOCOL.arms if arm.startswith("matched")]
"""Settings whose vision tokens start as long as words: what sees lengths cannot tell them apart by these alone."""


def unlabelled() -> list[str]:
    """Measures that are ranked and need no answers to a task."""
    return [name for name in zoo.RANKED if MEASURES[name].needs != TASK]


def seeds_with(found: pd.DataFrame, arms: Sequence[str]) -> list[int]:
    """Seeds of `zoo.table` that have a run of every arm."""
    if not len(found):
        return []
    counts = found[found["arm"].isin(arms)].groupby("seed")["arm"].nunique()
    return sorted(int(seed) for seed in counts.index[counts == len(arms)])


def correlations(found: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """By measure and by what is ranked (a key of `OVER`): the correlation with accuracy of each seed that has all arms.

    Positive where the better integrated model is the better one.
    """
    seeds = {over: seeds_with(found, arms) for over, arms in OVER.items()}
    return {
        name: {
            over: with_accuracy(found, arms, name, seeds[over]) if seeds[over] else np.array([])
            for over, arms in OVER.items()
        }
        for name in zoo.RANKED
    }


def over_seeds(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean over seeds with Student's 95 % interval.

    Examples:
        >>> str(over_seeds([0.1, 0.2, 0.3, 0.4, 0.5]))
        '+0.30 [+0.10, +0.50]'
    """
    low, high, *_ = mean_interval(values)
    return Estimate(float(np.mean(values)), low, high, len(values))


def ranked(found: pd.DataFrame, *, over: str = ALL_SETTINGS) -> list[str]:
    """Measures by their mean correlation with accuracy, the best first; in the registry's order without rows."""
    by_name = {name: values[over] for name, values in correlations(found).items()}
    return sorted(by_name, key=lambda name: -by_name[name].mean() if len(by_name[name]) else 0.0)


def bias(rows: Iterable[zoo.Row]) -> pd.DataFrame:
    """How far a measure of 100 pairs is from that of 1000, from runs of the study ``zoo_samples``.

    Returns:
        By measure: ``few`` and ``many``, the means over runs of the value of 100 and of 1000 pairs; ``difference``, an
        `Estimate` over runs of few minus many; ``noise``, the standard deviation between parts of 100 pairs.
    """
    samples = [row["metrics"]["samples"] for row in rows if "samples" in row["metrics"]]
    lines = {}
    for name in unlabelled() if samples else ():
        few = np.array([run[name]["few"] for run in samples], dtype=float)  # (runs, draws)
        many = np.array([run[name]["many"] for run in samples], dtype=float)
        lines[name] = {
            "few": few.mean(),
            "many": many.mean(),
            "difference": over_seeds(few.mean(axis=1) - many),
            "noise": float(np.sqrt(few.var(axis=1, ddof=1).mean())),
        }
    return pd.DataFrame(lines, index=["few", "many", "difference", "noise"]).T


def as_markdown(table: pd.DataFrame, corner: str = "", *classes: str) -> str:
    """A table of texts as Markdown in a box that scrolls by itself where it is wide."""
    lines = [[corner, *map(str, table.columns)], *([str(name), *map(str, line)] for name, line in table.iterrows())]
    marked = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]
    return boxed("\n".join([marked[0], "|" + "---|" * len(lines[0]), *marked[1:]]), *classes)


def agreement(found: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """How alike measures rank all settings: rank correlations within a seed, mean over seeds.

    Both measures of a pair are turned so that more is better integrated.

    Returns:
        Names, put next to each other by clustering (average linkage of ``1 − correlation``), and the (m, m)
        correlations. Accuracy is the last one, ``"accuracy"``. Empty without a seed that has all settings.
    """
    arms, seeds = OVER[ALL_SETTINGS], seeds_with(found, OVER[ALL_SETTINGS])
    if not seeds:
        return [], np.zeros((0, 0))
    names = [*unlabelled(), "soft_discrimination"]
    values = {name: zoo.integrated(name) * zoo.grid(found, arms, name, seeds) for name in names}
    values["accuracy"] = zoo.grid(found, arms, "accuracy", seeds)
    matrix = np.array(
        [[np.mean([spearman(*pair) for pair in zip(a.T, b.T, strict=True)]) for b in values.values()]
         for a in values.values()]
    )  # fmt: skip
    apart = 1 - matrix[:-1, :-1]
    order = hierarchy.leaves_list(
        hierarchy.linkage(squareform((apart + apart.T) / 2 * (1 - np.eye(len(names))), checks=False), "average")
    )
    order = [*order, len(names)]
    return [[*names, "accuracy"][i] for i in order], matrix[np.ix_(order, order)]


def likeness(found: pd.DataFrame, group: Sequence[str], arms: Sequence[str] | None = None) -> tuple[float, float]:
    """Mean and lowest rank correlation of two measures of a group over settings, within a seed, mean over seeds.

    Args:
        found: `mirlab.first.zoo_table.table`.
        group: Names of two measures or more.
        arms: Over which settings; all if left out.

    Returns:
        Both turned so that more is better integrated; NaN without a seed that has all of the settings.
    """
    arms = OVER[ALL_SETTINGS] if arms is None else list(arms)
    seeds = seeds_with(found, arms)
    if not seeds:
        return float("nan"), float("nan")
    values = [zoo.integrated(name) * zoo.grid(found, arms, name, seeds) for name in group]
    pairs = [
        np.mean([spearman(*pair) for pair in zip(a.T, b.T, strict=True)])
        for i, a in enumerate(values)
        for b in values[:i]
    ]
    return float(np.mean(pairs)), float(np.min(pairs))


def title_of(name: str) -> str:
    """A measure's name in prose."""
    return MEASURES[name].title if name in MEASURES else name


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def figure_zoo_correlations(data: Mapping[str, np.ndarray], ax: Axes | None = None, *, over: str = "") -> Axes:
    """Correlation of each measure with accuracy: a tick a seed, the mean with its interval, see `over_seeds`.

    Args:
        data: By measure, the correlations of the seeds; drawn from top to bottom.
        ax: Where to draw; a new figure if left out.
        over: What was ranked, for the axis.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(6.4, 0.3 * max(len(data), 3) + 1.1))
    drawn = {name: values for name, values in data.items() if len(values)}
    for place, (name, values) in enumerate(drawn.items()):
        estimate = over_seeds(values)
        colour, marker = (VISION, "o") if name == "mir" else (TEXT, "s") if name in EXPECTED else (NEUTRAL, "D")
        ax.plot(values, [place] * len(values), linestyle="", marker="|", color=colour, alpha=0.6)
        ax.plot([estimate.low, estimate.high], [place, place], color=colour, linestyle="-", marker="")
        ax.plot([estimate.value], [place], linestyle="", marker=marker, color=colour)
    ax.axvline(0, color="black", linewidth=1, linestyle=":", marker="")
    ax.set_yticks(range(len(drawn)), [title_of(name) for name in drawn])
    ax.set(xlim=(-1.05, 1.05), ylim=(len(drawn) - 0.4, -0.6))
    ax.set_xlabel(f"rank correlation with accuracy{f' over {over}' if over else ''}, turned")
    if not drawn:
        ax.text(0.5, 0.5, "no whole seed in the ledger yet", ha="center", va="center", transform=ax.transAxes)
    return ax


def figure_agreement(names: Sequence[str], matrix: np.ndarray, ax: Axes | None = None) -> Axes:
    """How alike measures rank the same models, a cell for each two of them, with the number in it.

    Args:
        names: Names of measures, or ``"accuracy"``.
        matrix: (m, m) rank correlations.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(7.6, 6.8))
    ax.grid(False)
    if not len(names):
        ax.text(0.5, 0.5, "no whole seed in the ledger yet", ha="center", va="center", transform=ax.transAxes)
        return ax
    image = ax.imshow(matrix, cmap="PuOr_r", vmin=-1, vmax=1)
    for i, line in enumerate(matrix):
        for j, value in enumerate(line):
            text = f"{round(value, 1) + 0.0:+.1f}".replace("-", "−") if i != j else ""
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.75 else "black")
    titles = [title_of(name) for name in names]
    ax.set_xticks(range(len(names)), titles, rotation=90)
    ax.set_yticks(range(len(names)), titles)
    if "accuracy" in names:
        place = list(names).index("accuracy") - 0.5
        ax.axhline(place, color=ACCENT, linestyle="-", marker="")
        ax.axvline(place, color=ACCENT, linestyle="-", marker="")
    ax.figure.colorbar(image, ax=ax, shrink=0.6, label="rank correlation of two measures")
    return ax
