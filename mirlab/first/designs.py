"""Tables 1 to 4 and 7 of the MIR paper beside the laboratory's, arm by arm: what they print, and what the ledger holds.

What is drawn, tabled and said here are levels, differences and choices, all from the rows that are there; whether a
claim holds is judged in `mirlab.first.verdicts`. No sentence and no title reads anything off fewer seeds than
`mirlab.first.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mirlab.first.estimates import bootstrap, correlations, spearman
from mirlab.first.figures import figure_against_accuracy, figure_arms, figure_seed_values
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.outcomes import follows
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.tables import METRICS, MORE_IS_BETTER, Row, cells, complete_seeds, frame
from mirlib.plots import COLOURS, MARKERS

NAN = float("nan")

VOID = "void: other texts"
"""What stands in the place of a value that cannot be compared between the arms."""


@dataclass(frozen=True)
class Design:
    """A table of the paper, and the arms that answer it.

    Attributes:
        table: Its name in the paper.
        published: What it prints, by line: MIR and the average over benchmarks (not a number where it has none).
        labels: Names of our arms on a page, by the last part of their name in the protocol.
        reference: The label that the others are compared with.
        void: Columns of `mirlab.first.tables.frame` that are taken on different texts in different arms. They are
            neither compared nor correlated, and nothing is chosen by them.
    """

    table: str
    published: Mapping[str, tuple[float, float]]
    labels: Mapping[str, str]
    reference: str
    void: tuple[str, ...] = ()


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
        void=("loss", "perplexity", "perplexity_out"),  # "outside" is mid for brief and full, but full for mid
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
            "LLaMA-2-Chat 7B (linear projector)": (3.699, NAN),
            "LLaMA-2-Chat 13B (linear projector)": (2.477, NAN),
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
    """Values over seeds of a column of `mirlab.first.tables.frame` by label; arms without a run are left out."""
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
    return _cell(f"{found.value:.3f}{ends}".replace("-", "−"))


def _change(values: np.ndarray) -> str:
    """A mean difference with its interval, both with signs; a single value has none."""
    found = bootstrap(values)
    return _cell(found.text(3)) if len(values) > 1 else found.text(3).partition(" ")[0]


def _cell(text: str) -> str:
    """For a table: a narrow column breaks an estimate before its interval, not within it."""
    return text.replace(", ", ",\N{NO-BREAK SPACE}")


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
                shown = METRICS[column].split(",")[0]
                if column in DESIGNS[name].void:
                    line[shown] = VOID
                    continue
                difference = np.diff(cells(table, [arms[reference], arm], column, seeds), axis=0)[0]
                line[shown] = _change(difference)
            lines[regime, f"{label} − {reference}"] = line | {"seeds": len(seeds)}
    return pd.DataFrame(lines).T if lines else pd.DataFrame(columns=["no pair of runs in the ledger yet"])


def with_accuracy(name: str, rows: Iterable[Row], columns: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Rank correlation of metrics with accuracy over the arms of a regime, one for each seed that has them all.

    Returns:
        By regime, then by column of `mirlab.first.tables.frame`: (seeds,). Regimes without such a seed are left out,
        and so are columns that are void.
    """
    table = frame(rows)
    columns = [column for column in columns if column not in DESIGNS[name].void]
    found: dict[str, dict[str, np.ndarray]] = {}
    for regime, arms in panels(name).items():
        accuracy = of_complete_seeds(table, arms, "accuracy")
        if accuracy.shape[1]:
            found[regime] = {c: correlations(of_complete_seeds(table, arms, c), accuracy) for c in columns}
    return found


def choices(name: str, rows: Iterable[Row], columns: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """What choosing an arm by a metric is worth: accuracy of the chosen arm minus the mean over all arms.

    A choice at random has 0 on average, and a choice by accuracy itself the most that can be had. Where arms share the
    best value, their accuracies are averaged.

    Returns:
        By regime, then by column of `mirlab.first.tables.frame`: (seeds,). Regimes without a seed that has all arms are
        left out, and so are columns that are void.
    """
    table = frame(rows)
    columns = [column for column in columns if column not in DESIGNS[name].void]
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


def leader(values: np.ndarray, labels: Iterable[str]) -> tuple[str, list[str]]:
    """The arm of the lowest mean, and the arms that the seeds cannot tell from it.

    Args:
        values: (arms, seeds), lower is better.
        labels: Of the arms.

    Returns:
        The label of the lowest mean, and those of the arms whose 95 % interval of the difference, paired within seeds,
        holds 0.

    Example:
        >>> leader(np.array([[1.0, 2.0], [1.5, 1.5], [4.0, 5.0]]), ["a", "b", "c"])
        ('a', ['b'])
    """
    labels = list(labels)
    first = int(values.mean(axis=1).argmin())
    undecided = [
        label
        for label, arm in zip(labels, values, strict=True)
        if label != labels[first] and bootstrap(arm - values[first]).low <= 0
    ]
    return labels[first], undecided


def reading(name: str, rows: Iterable[Row]) -> list[str]:
    """What an experiment's arms say, a few sentences of Markdown for each regime.

    Which arm has the lowest MIR and which the highest accuracy, whether the seeds tell them from the others, how the
    two rank together, and how much of MIR's differences its norm-only baseline has as well.
    """
    table = frame(rows)
    said = []
    for regime, arms in panels(name).items():
        mir, norms, accuracy = (of_complete_seeds(table, arms, c) for c in ("mir", "norm_only", "accuracy"))
        seeds = mir.shape[1]
        if seeds < SEEDS_NEEDED:
            said.append(f"*{regime}*: {_incomplete(seeds, len(arms))}; nothing is read off yet.")
            continue
        (lowest, not_lowest), (best, not_best) = leader(mir, arms), leader(-accuracy, arms)
        level = dict(zip(arms, accuracy.mean(axis=1), strict=True))
        start = f"the lowest MIR belongs to **{lowest}**{_told(not_lowest)}"
        if lowest == best:
            start += f", and so does the highest accuracy, {level[best]:.3f}{_told(not_best)}."
        else:
            start += f", whose accuracy is {level[lowest]:.3f}; the highest accuracy, {level[best]:.3f}, belongs to "
            start += f"**{best}**{_told(not_best)}."
        spread, apart = _spans(mir, norms)
        said.append(
            f"*{regime}*: {start} The rank correlation of the two is {bootstrap(correlations(mir, accuracy))}. "
            f"The arms' mean MIR spans {spread:.2f}; MIR minus its norm-only baseline, "
            f"{'only ' if 0.01 <= apart < SAME * spread else ''}{_amount(apart)}."
        )
    return said


SAME = 0.1
"""Differences in MIR count as those of its norm-only baseline where what is left of them is below this share."""


def _spans(mir: np.ndarray, norms: np.ndarray) -> tuple[float, float]:
    """Highest minus lowest mean over the arms: of MIR, and of what it has beyond its norm-only baseline."""
    return float(np.ptp(mir.mean(axis=1))), float(np.ptp((mir - norms).mean(axis=1)))


def _amount(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else "less than 0.01"


def _told(undecided: Sequence[str]) -> str:
    return f" (undecided against {'; '.join(undecided)})" if undecided else ""


def _incomplete(seeds: int, arms: int) -> str:
    return f"{seeds} of {SEEDS_NEEDED} seeds have all {arms} arms"


def _of(count: int, total: int, thing: str) -> str:
    """A count in words, for example ``none of 5 comparisons``."""
    share = f"all {total}" if count == total > 1 else f"{count or 'none'} of {total}"
    return f"{share} {thing}{'s' * (total != 1)}"


def lessons(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What came out over all experiments, in a few plain sentences of Markdown.

    A comparison is an experiment in one regime with `SEEDS_NEEDED` seeds that have all arms; the last sentence names
    those that are not complete.
    """
    asked = ("mir", "discrimination", "loss")
    ranked: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    chosen: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    missing = []
    for name, here in rows.items():
        table = frame(here)
        for regime, arms in panels(name).items():
            if len(complete_seeds(table, arms.values())) < SEEDS_NEEDED:
                missing.append(f"{name} ({regime})" if len(panels(name)) > 1 else name)
        for found, compute in ((ranked, with_accuracy), (chosen, choices)):
            for regime, by in compute(name, here, asked).items():
                if len(by["mir"]) >= SEEDS_NEEDED:
                    found[name, regime] = by
    if not ranked:
        return [f"No comparison has {SEEDS_NEEDED} seeds with all arms yet, so nothing is concluded here."]
    rhos = {place: bootstrap(by["mir"]) for place, by in ranked.items()}
    held = sum(follows("MIR", by["mir"]).holds for by in ranked.values())
    rival = sum(follows("discrimination", -by["discrimination"]).holds for by in ranked.values())
    each = "; ".join(f"{name}, {regime}: {rho.value:+.2f}".replace("-", "−") for (name, regime), rho in rhos.items())
    worth = {column: [bootstrap(by[column]) for by in chosen.values() if column in by] for column in asked}
    won, lost = (
        {column: sum(test(one) for one in found) for column, found in worth.items()}
        for test in (lambda one: one.low > 0, lambda one: one.high < 0)
    )
    said = [
        f"MIR ranked the arms as their accuracy does (mean rank correlation at most −0.8, interval below 0) in "
        f"{_of(held, len(rhos), 'comparison')} ({each}); soft discrimination, measured at the same time, did (at least "
        f"+0.8, interval above 0) in {rival or 'none'}.",
        f"Choosing the arm of the lowest MIR beat choosing by lot in {_of(won['mir'], len(chosen), 'comparison')}, and "
        f"lost to it in {lost['mir'] or 'none'}. Soft discrimination beat it in {won['discrimination'] or 'none'} and "
        f"lost in {lost['discrimination'] or 'none'}"
        + (
            f"; loss, where the arms train on the same kind of text, beat it in "
            f"{_of(won['loss'], len(worth['loss']), 'comparison')} and lost in {lost['loss'] or 'none'}."
            if worth["loss"]
            else "."
        ),
        *_about_lengths(rows),
        *_about_unlocking(rows.get("unlocking", ())),
    ]
    return [*said, f"Not complete, and left out: {', '.join(missing)}."] if missing else said


def _about_lengths(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """In which regimes MIR's differences between arms are those of its norm-only baseline."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for name, here in rows.items():
        table = frame(here)
        for regime, arms in panels(name).items():
            mir, norms = (of_complete_seeds(table, arms, column) for column in ("mir", "norm_only"))
            if mir.shape[1] >= SEEDS_NEEDED:
                spans.setdefault(regime, []).append(_spans(mir, norms))
    said = []
    for regime, found in spans.items():
        widest, left = (max(one) for one in zip(*found, strict=True))
        share = max(apart / spread if spread else 1.0 for spread, apart in found)
        meaning = "a ranking by MIR is a ranking by length" if share < SAME else "the two part"
        meaning = "most of a difference in MIR is one of length" if SAME <= share < 0.5 else meaning
        said.append(
            f"In *{regime}* the arms of an experiment differ by up to {widest:.2f} in MIR, and by "
            f"{'up to ' if left >= 0.01 else ''}{_amount(left)} in MIR minus its norm-only baseline: there, {meaning}."
        )
    return [" ".join(said)] if said else []


def _about_unlocking(rows: Sequence[Row]) -> list[str]:
    """How many ways of unlocking raise accuracy, and how many lower MIR."""
    table, ((_, arms),) = frame(rows), panels("unlocking").items()
    mir, accuracy = (of_complete_seeds(table, arms, column) for column in ("mir", "accuracy"))
    if mir.shape[1] < SEEDS_NEEDED:
        return []
    lower = sum(bootstrap(one - mir[0]).high < 0 for one in mir[1:])
    higher = sum(bootstrap(one - accuracy[0]).low > 0 for one in accuracy[1:])
    return [
        f"Letting the language model learn raised the accuracy in {_of(higher, len(arms) - 1, 'way')} of doing so, and "
        f"lowered MIR in {lower or 'none'}."
    ]


CHOSEN_BY = {
    "accuracy": "the best arm",
    "mir": "by MIR",
    "norm_only": "by norm-only",
    "loss": "by loss",
    "perplexity_out": "by perplexity, out-of-domain",
    "discrimination": "by soft discrimination",
}
"""What an arm is chosen by in `choice_table`, by the column."""


def choice_table(rows: Mapping[str, Iterable[Row]]) -> pd.DataFrame:
    """`choices` as a table: mean over seeds with its 95 % interval, a line for each experiment and regime.

    The last two lines count intervals above and below 0 among comparisons with `SEEDS_NEEDED` seeds. Empty without a
    seed that has all arms.
    """
    lines: dict[tuple[str, str], dict[str, object]] = {}
    sides: dict[str, list[int]] = {column: [] for column in CHOSEN_BY}
    for name, here in rows.items():
        for regime, by in choices(name, here, CHOSEN_BY).items():
            seeds = len(by["mir"])
            line: dict[str, object] = {shown: VOID for shown in CHOSEN_BY.values()}
            for column, worth in by.items():
                line[CHOSEN_BY[column]] = _change(worth)
                if seeds >= SEEDS_NEEDED:
                    found = bootstrap(worth)
                    sides[column].append(1 if found.low > 0 else -1 if found.high < 0 else 0)
            lines[name, regime] = line | {"seeds": seeds}
    if not lines:
        return pd.DataFrame(columns=["no seed has all arms yet"])
    for said, sign in (("above 0", 1), ("below 0", -1)) if sides["mir"] else ():
        counts = {CHOSEN_BY[column]: f"{found.count(sign)} of {len(found)}" for column, found in sides.items()}
        lines["intervals", said] = counts | {"seeds": ""}
    return pd.DataFrame(lines).T


def figure_design(name: str, rows: Iterable[Row]) -> Figure:
    """The paper's table and ours as pictures: MIR arm by arm (above), and beside accuracy (below).

    An arm has the same mark above and below. Above, our panels show the norm-only baseline too, and that of zeroed rows
    as a line, or in words where a line would lie so far off that the arms could not be told apart. Titles name the arm
    of the lowest mean, and the rank correlation of MIR with accuracy, from `SEEDS_NEEDED` seeds on.
    """
    table, published = frame(rows), DESIGNS[name].published
    regimes = panels(name)
    width = 1 + len(regimes)
    averages = [average for _, average in published.values() if np.isfinite(average)]
    if averages:
        figure, axes = plt.subplots(2, width, figsize=(3.4 * width, 6.4), squeeze=False)
        above, below = axes
    else:  # the paper has nothing to set MIR against
        figure, axes = plt.subplots(1, width + len(regimes), figsize=(3.4 * (width + len(regimes)), 3.4))
        above, below = axes[:width], [None, *axes[width:]]
    printed = {label.replace(" (", "\n("): np.array([mir]) for label, (mir, _) in published.items()}
    figure_arms({"MIR": printed}, above[0], xlabel="MIR (log10)")
    lowest = min(printed, key=lambda label: printed[label][0]).partition("\n")[0]
    above[0].set_title(f"paper: lowest is {lowest}\n(one run an arm)")
    if averages:
        points = {label: (np.array([mir]), np.array([average])) for label, (mir, average) in published.items()}
        figure_against_accuracy(points, below[0], ylabel="average over benchmarks (%)", legend=False)
        correlation = spearman([mir for mir, _ in published.values()], averages)
        below[0].set_title(f"paper: correlation {correlation:+.2f}\n(one run an arm)".replace("-", "−"))
    for upper, lower, (regime, arms) in zip(above[1:], below[1:], regimes.items(), strict=True):
        found = {column: values(table, arms, column) for column in ("mir", "norm_only", "null")}
        label, references = _beside_zeroed_rows([found["mir"], found["norm_only"]], found["null"])
        shown = {"MIR": found["mir"], "norm-only": found["norm_only"]}
        shown = {metric: {arm: by_arm.get(arm, ()) for arm in arms} for metric, by_arm in shown.items()}
        figure_arms(shown, upper, xlabel=label, references=references)
        mir, accuracy = (of_complete_seeds(table, arms, column) for column in ("mir", "accuracy"))
        data = dict(zip(arms, zip(mir, accuracy, strict=True), strict=True))
        figure_against_accuracy(data, lower, legend=False)
        seeds = mir.shape[1]
        if seeds >= SEEDS_NEEDED:
            lowest, undecided = leader(mir, arms)
            upper.set_title(f"{regime}: lowest is {lowest}\n({'undecided' if undecided else f'mean of {seeds} seeds'})")
            value, ends = str(bootstrap(correlations(mir, accuracy))).split(" ", 1)
            lower.set_title(f"{regime}: correlation {value}\n{ends}, {seeds} seeds")
        else:
            upper.set_title(f"{regime}: provisional" if found["mir"] else regime)
            lower.set_title(f"{regime}: {seeds} of {SEEDS_NEEDED} seeds complete")
    return figure


def _beside_zeroed_rows(
    shown: Iterable[Mapping[str, np.ndarray]], zeroed: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, float] | None]:
    """Label of the axis, and the baseline of zeroed rows if it lies not much farther off than the values span."""
    drawn = [one for by_arm in shown for one in by_arm.values()]
    if not drawn:
        return "MIR (log10)", None
    level, drawn = float(np.concatenate(list(zeroed.values())).mean()), np.concatenate(drawn)
    if np.abs(drawn - level).min() <= max(np.ptp(drawn), 0.1):
        return "MIR (log10)", {"vision rows zeroed": level}
    return f"MIR (log10); rows zeroed: {level:.2f}", None


COMPARED = ("mir", "norm_only", *(c for c in METRICS if c not in ("mir", "norm_only", "accuracy")))
"""Columns of `figure_metrics`, MIR first."""


def figure_metrics(rows: Mapping[str, Sequence[Row]], regimes: Sequence[str] = ("high", "matched")) -> Figure:
    """Rank correlation of each metric with accuracy, one panel a regime, in each a mark for every experiment.

    Void comparisons are left out. A title names the metric of the largest mean correlation, see `largest`.
    """
    found = {name: with_accuracy(name, here, COMPARED) for name, here in rows.items()}
    found = {name: by_regime for name, by_regime in found.items() if by_regime}
    figure, axes = plt.subplots(1, len(regimes), figsize=(5.2 * len(regimes), 7.2), sharey=True)
    for ax, regime in zip(axes, regimes, strict=True):
        here = {name: by[regime] for name, by in found.items() if regime in by}
        # Every experiment in every panel, so that it keeps its colour.
        shown = {METRICS[c]: {name: here.get(name, {}).get(c, ()) for name in found} for c in COMPARED}
        figure_seed_values(shown, ax, xlabel="rank correlation with accuracy")
        ax.set_xlim(-1.1, 1.1)
        ax.set_xticks([-1, -0.5, 0, 0.5, 1])
        named = largest(here)
        ax.set_title(f"{regime}: {named}" if named else f"{regime}: provisional" if here else regime)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    marks = [
        plt.Line2D([], [], color=COLOURS[number], marker=MARKERS[number], linestyle="", label=name)
        for number, name in enumerate(found)
    ]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    return figure


def largest(found: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """The metric whose mean correlation over the experiments is farthest from 0, as the second half of a title.

    Only metrics that all experiments allow compete, and only seeds that all experiments have.

    Args:
        found: By experiment, then by column: (seeds,) correlations.

    Returns:
        Its name and mean, with "(undecided)" where a paired interval of some other metric's distance holds 0; empty
        where an experiment has fewer than `SEEDS_NEEDED` seeds.
    """
    columns = [column for column in COMPARED if found and all(column in by for by in found.values())]
    if not columns or min(len(values) for by in found.values() for values in by.values()) < SEEDS_NEEDED:
        return ""
    means = np.array([np.mean([by[column] for by in found.values()], axis=0) for column in columns])  # (metrics, seeds)
    sizes = -np.sign(means.mean(axis=1))[:, None] * means  # the farther from 0, the lower
    first, undecided = leader(sizes, columns)
    value = f"{means[columns.index(first)].mean():+.2f}".replace("-", "−")
    return f"largest mean correlation:\n{METRICS[first]}, {value}{' (undecided)' if undecided else ''}"
