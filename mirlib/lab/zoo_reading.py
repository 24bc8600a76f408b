"""What the rows of the zoo say: correlations by sweep, agreement, bias, cost, and the figures of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mirlib.gaps import MEASURES
from mirlib.gaps.base import TASK
from mirlib.lab import zoo
from mirlib.lab.closing.zoo import EXPECTED, PROTOCOL, SWEEPS, with_accuracy
from mirlib.lab.estimates import Estimate, bootstrap, spearman
from mirlib.lab.mediation import SEEDS_NEEDED
from mirlib.lab.reporting import boxed
from mirlib.plots import ACCENT, NEUTRAL, TEXT, VISION, new_axes

ALL_SETTINGS = "all settings"
OVER = {ALL_SETTINGS: list(PROTOCOL.arms), **SWEEPS}
"""Arms over which models are ranked, by name."""
MATCHED_NORMS = [arm for arm in PROTOCOL.arms if arm.startswith("matched")]
"""Settings whose vision tokens start as long as words: what sees lengths cannot tell them apart by these alone."""


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
        for name in zoo.ALL
    }


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
    for name in zoo.ON_ROWS if samples else ():
        few = np.array([run[name]["few"] for run in samples], dtype=float)  # (runs, draws)
        many = np.array([run[name]["many"] for run in samples], dtype=float)
        lines[name] = {
            "few": few.mean(),
            "many": many.mean(),
            "difference": bootstrap(few.mean(axis=1) - many),
            "noise": float(np.sqrt(few.var(axis=1, ddof=1).mean())),
        }
    return pd.DataFrame(lines, index=["few", "many", "difference", "noise"]).T


def spread(found: pd.DataFrame, arms: Sequence[str] | None = None) -> dict[str, float]:
    """By measure: the standard deviation over settings within a seed, mean over seeds. NaN without a whole seed.

    Args:
        found: `mirlib.lab.zoo.table`.
        arms: Which settings; all if left out.
    """
    arms = OVER[ALL_SETTINGS] if arms is None else list(arms)
    seeds = seeds_with(found, arms)
    if not seeds:
        return dict.fromkeys(zoo.ALL, float("nan"))
    return {name: float(zoo.grid(found, arms, name, seeds).std(axis=0, ddof=1).mean()) for name in zoo.ALL}


def cost(rows: Iterable[zoo.Row]) -> dict[str, tuple[float, float]]:
    """By measure: median seconds of processor time with 100 and with 1000 pairs; NaN where there is no row."""
    rows = list(rows)

    def median(values: list[float]) -> float:
        return float(np.median(values)) if values else float("nan")

    found = {}
    for name in zoo.ON_ROWS:
        many = [row["metrics"]["samples"][name]["seconds"] for row in rows if "samples" in row["metrics"]]
        found[name] = median([row["metrics"]["gaps"][name]["seconds"] for row in rows]), median(many)
    return found


def summary(rows: Sequence[zoo.Row]) -> pd.DataFrame:
    """The zoo's table: what a measure needs, its cost, its bias, and its correlation with accuracy by sweep.

    Args:
        rows: From `mirlib.lab.tables.load`.

    Returns:
        Text, a line a measure, the best over all settings first. ``off by``: value with 100 pairs minus that with
        1000, as a share of the standard deviation between the settings of `MATCHED_NORMS`, since it was measured in
        one of these: the lengths of the others would make any bias look small. Correlations carry intervals over
        seeds.
    """
    found = zoo.table(rows)
    by_name, between, seconds, off = correlations(found), spread(found, MATCHED_NORMS), cost(rows), bias(rows)

    def share(name: str) -> str:
        if name not in off.index or not between[name] > 0:
            return ""
        difference = off.loc[name, "difference"]
        return Estimate(*(x / between[name] for x in (difference.value, difference.low, difference.high)), 0).text(2)

    lines = {}
    for name in ranked(found):
        measure = MEASURES[name]
        few, many = seconds.get(name, (float("nan"), float("nan")))
        lines[measure.title] = {
            "needs": {"rows": "rows", "pairs": "pairs", "task": "labels"}[measure.needs],
            "integrated": measure.direction,
            "seconds, 100 pairs": "" if np.isnan(few) else f"{few:.2f}",
            "seconds, 1000": "" if np.isnan(many) else f"{many:.2f}",
            "off by (sd, norms matched)": share(name),
            **{over: str(bootstrap(values)) if len(values) else "" for over, values in by_name[name].items()},
        }
    return pd.DataFrame(lines).T


def as_markdown(table: pd.DataFrame, corner: str = "") -> str:
    """A table of texts as Markdown in a box that scrolls by itself where it is wide."""
    lines = [[corner, *map(str, table.columns)], *([str(name), *map(str, line)] for name, line in table.iterrows())]
    marked = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]
    return boxed("\n".join([marked[0], "|" + "---|" * len(lines[0]), *marked[1:]]))


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
    names = [name for name in zoo.ALL if MEASURES[name].needs != TASK] + ["soft_discrimination"]
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


def families(names: Sequence[str], matrix: np.ndarray, *, alike: float = 0.7) -> list[list[str]]:
    """Groups of measures whose mean correlation with each other is at least ``alike`` (average linkage)."""
    names = [name for name in names if name != "accuracy"]
    if len(names) < 2:
        return [list(names)] if names else []
    apart = 1 - matrix[: len(names), : len(names)]
    linked = hierarchy.linkage(squareform((apart + apart.T) / 2 * (1 - np.eye(len(names))), checks=False), "average")
    labels = hierarchy.fcluster(linked, 1 - alike, criterion="distance")
    groups: dict[int, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        groups.setdefault(int(label), []).append(name)
    return list(groups.values())


def likeness(found: pd.DataFrame, group: Sequence[str], arms: Sequence[str] | None = None) -> tuple[float, float]:
    """Mean and lowest rank correlation of two measures of a group over settings, within a seed, mean over seeds.

    Args:
        found: `mirlib.lab.zoo.table`.
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


def reading(rows: Sequence[zoo.Row]) -> list[str]:
    """What the table says, in sentences that hold for the rows that are there."""
    found = zoo.table(rows)
    by_name = correlations(found)
    seeds = len(by_name["mir"][ALL_SETTINGS])
    if seeds < SEEDS_NEEDED:
        return [f"{seeds} of {SEEDS_NEEDED} seeds are complete; nothing is said yet."]
    unlabelled = [name for name in zoo.ON_ROWS if name != "mir"]
    sure = {name: _sides(by_name[name]) for name in zoo.ALL}

    def listed(names: Sequence[str]) -> str:
        return ", ".join(title_of(name) for name in names) if names else "none"

    steady = [name for name in zoo.ON_ROWS if sure[name] == {1}]
    turning = [name for name in zoo.ON_ROWS if sure[name] >= {1, -1}]
    mir = bootstrap(by_name["mir"][ALL_SETTINGS])
    best = max(zoo.ON_ROWS, key=lambda name: by_name[name][ALL_SETTINGS].mean())
    higher = [
        name for name in unlabelled if bootstrap(by_name[name][ALL_SETTINGS] - by_name["mir"][ALL_SETTINGS]).low > 0
    ]
    labels = bootstrap(by_name["soft_discrimination"][ALL_SETTINGS])
    good = [name for name in zoo.ON_ROWS if by_name[name][ALL_SETTINGS].mean() >= 0.8]
    flat = [name for name, values in spread(found).items() if values < 1e-3 * abs(found[name].mean())]
    return [
        f"Over all settings MIR, turned, has a correlation of {mir} with accuracy; of the measures without labels the "
        f"highest mean is that of {title_of(best)}, {bootstrap(by_name[best][ALL_SETTINGS])}; soft discrimination, "
        f"with labels, has {labels}.",
        f"Positive, with an interval above 0, over all settings and in every sweep: {listed(steady)}.",
        f"Positive in one sweep and negative in another, both with intervals that leave out 0: {listed(turning)}.",
        f"Without regard to what was claimed in advance, and not corrected for their number, these lie above MIR over "
        f"all settings with an interval that leaves out 0: {listed(higher)}.",
        f"Hardly move between settings (by less than a thousandth of their mean): {listed(flat)}. What is constant "
        "ranks nothing, and its correlation, which is not defined, counts as 0 in the table and in the figures.",
        f"Of the {len(zoo.ON_ROWS)} measures without labels, those whose mean correlation over all settings reaches "
        f"0.8, the size that the claim on MIR asks for: {listed(good)}.",
    ]


def _sides(by_sweep: Mapping[str, np.ndarray]) -> set[int]:
    """On which sides of 0 the intervals lie: 1, −1, and 0 for one that holds it."""
    sides = set()
    for values in by_sweep.values():
        estimate = bootstrap(values)
        sides.add(1 if estimate.low > 0 else -1 if estimate.high < 0 else 0)
    return sides


def title_of(name: str) -> str:
    """A measure's name in prose."""
    return MEASURES[name].title if name in MEASURES else name


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def figure_zoo_correlations(data: Mapping[str, np.ndarray], ax: Axes | None = None, *, over: str = "") -> Axes:
    """Correlation of each measure with accuracy: a tick a seed, the mean with its 95 % interval over seeds.

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
        estimate = bootstrap(values)
        colour, marker = (VISION, "o") if name == "mir" else (TEXT, "s") if name in EXPECTED else (NEUTRAL, "D")
        ax.plot(values, [place] * len(values), linestyle="", marker="|", color=colour, alpha=0.6)
        ax.plot([estimate.low, estimate.high], [place, place], color=colour, linestyle="-", marker="")
        ax.plot([estimate.value], [place], linestyle="", marker=marker, color=colour)
    ax.axvline(0, color="black", linewidth=1, linestyle=":", marker="")
    ax.set_yticks(range(len(drawn)), [title_of(name) for name in drawn])
    ax.set(xlim=(-1.05, 1.05), ylim=(len(drawn) - 0.4, -0.6))
    seeds = min((len(values) for values in drawn.values()), default=0)
    ax.set_xlabel(f"rank correlation with accuracy{f' over {over}' if over else ''}, turned")
    if not drawn:
        ax.text(0.5, 0.5, "no whole seed in the ledger yet", ha="center", va="center", transform=ax.transAxes)
    elif seeds < SEEDS_NEEDED:
        ax.set_title(f"Correlation with accuracy, provisional: {seeds} seeds")
    elif "mir" in drawn:
        means = {name: values.mean() for name, values in drawn.items()}
        above = sum(mean > means["mir"] for mean in means.values())
        ax.set_title(f"{above} of {len(means) - 1} measures have a higher mean than MIR")
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
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if abs(value) > 0.75 else "black")
    titles = [title_of(name) for name in names]
    ax.set_xticks(range(len(names)), titles, rotation=90)
    ax.set_yticks(range(len(names)), titles)
    if "accuracy" in names:
        place = list(names).index("accuracy") - 0.5
        ax.axhline(place, color=ACCENT, linestyle="-", marker="")
        ax.axvline(place, color=ACCENT, linestyle="-", marker="")
    groups = families(names, matrix)
    count = f"{len(groups)} families" if len(groups) != 1 else "one family"
    ax.set_title(f"{len(names) - ('accuracy' in names)} measures, {count} of those that rank models alike")
    ax.figure.colorbar(image, ax=ax, shrink=0.6, label="rank correlation of two measures")
    return ax
