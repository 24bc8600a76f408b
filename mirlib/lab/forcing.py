"""Chapter 14's tables, figures and sentences: what token weights and losses on the gap did, from the ledger's rows.

Whether a claim holds is judged in `mirlib.lab.closing.weighting`. No sentence is read off fewer seeds than
`mirlib.lab.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mirlib.lab.closing.weighting import CAL, FORCED, HELPS, PRIOR, PROTOCOL, REGIMES
from mirlib.lab.estimates import Estimate, bootstrap
from mirlib.lab.figures import figure_against_accuracy, figure_arms
from mirlib.lab.mediation import SEEDS_NEEDED
from mirlib.lab.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, Claim, overall
from mirlib.lab.tables import Row, arms_of, cells, complete_seeds, difference, frame

COLUMNS = {"mir": "MIR", "norm_ratio": "norm ratio, layer 1", "accuracy": "accuracy", "perplexity": "perplexity"}
"""What is compared, by the columns of `mirlib.lab.tables.frame`, with the names on a page."""

WEIGHTED = ("CAL", "PRIOR")
"""Arms that weigh words and leave the gap alone."""

_DIGITS = {"mir": 2, "norm_ratio": 1, "accuracy": 3, "perplexity": 2}


def change(table: pd.DataFrame, name: str, column: str) -> np.ndarray:
    """An arm minus the plain run of its regime, over the seeds that have both; empty if none has.

    Args:
        table: From `mirlib.lab.tables.frame`.
        name: Of the arm.
        column: Of the table.
    """
    return difference(table, name, f"{name.partition(', ')[0]}, plain", column)


def changes(rows: Iterable[Row]) -> pd.DataFrame:
    """Means over seeds of every arm and, in brackets, what it differs by from the plain run, with the interval."""
    table = frame(rows)
    lines = {}
    for name in (name for regime in REGIMES for name in arms_of(PROTOCOL, regime)):
        here = table[table["arm"] == name] if len(table) else table
        regime, _, what = name.partition(", ")
        line: dict[str, object] = {"seeds": len(here)}
        for column, label in COLUMNS.items():
            digits = _DIGITS[column]
            text = f"{here[column].mean():.{digits}f}" if len(here) else ""
            moved = change(table, name, column) if what != "plain" else np.empty(0)
            if len(moved) > 1:
                text += f" ({bootstrap(moved).text(digits)})"
            line[label] = text.replace(" [", "\u00a0[")
        lines[regime, what] = line
    return pd.DataFrame(lines).T


def figure_forced_arms(rows: Iterable[Row]) -> Figure:
    """MIR above, accuracy after stage 2 below, by arm; one column of panels a regime."""
    table = frame(rows)
    figure, axes = plt.subplots(2, len(REGIMES), figsize=(10, 6.5), layout="constrained", squeeze=False)
    for regime, column in zip(REGIMES, axes.T, strict=True):
        arms = arms_of(PROTOCOL, regime)
        for metric, unit, ax in zip(
            ("mir", "accuracy"), ("MIR (log10)", "accuracy (share right)"), column, strict=True
        ):
            values = {
                name.partition(", ")[2]: table.loc[table["arm"] == name, metric].to_numpy(float) if len(table) else []
                for name in arms
            }
            figure_arms({"": values}, ax, xlabel=unit)
        column[0].set_title(_forced_title(table, regime))
    return figure


def _forced_title(table: pd.DataFrame, regime: str) -> str:
    """What the strong loss did, or the regime alone where too few seeds are there."""
    name = f"{regime}, {FORCED[-1]}"
    moved = {column: change(table, name, column) for column in ("mir", "accuracy")}
    if len(moved["mir"]) < SEEDS_NEEDED:
        return f"{regime} rate"
    mir, accuracy = (bootstrap(values) for values in moved.values())
    return f"{regime} rate: the strong loss moves MIR by {mir.value:+.2f}, accuracy by {accuracy.value:+.3f}".replace(
        "-", "−"
    )


def figure_forced_against(rows: Iterable[Row]) -> Figure:
    """MIR against accuracy after stage 2, one mark for each arm that is plain or lowers the gap, one panel a regime."""
    table = frame(rows)
    figure, axes = plt.subplots(1, len(REGIMES), figsize=(10, 4.5), layout="constrained")
    for regime, ax in zip(REGIMES, axes, strict=True):
        arms = [name for name in arms_of(PROTOCOL, regime) if not name.endswith(WEIGHTED)]
        arms = [name for name in arms if len(table) and (table["arm"] == name).any()]
        seeds = complete_seeds(table, arms)
        data = {
            name.partition(", ")[2]: tuple(cells(table, [name], column, seeds)[0] for column in ("mir", "accuracy"))
            for name in arms
            if seeds
        }
        figure_against_accuracy(data, ax)
        ax.set_title(f"{regime} rate")
    return figure


def _effect(accuracy: Estimate) -> str:
    """What an interval says of a change of accuracy."""
    if accuracy.low > 0 or accuracy.high < 0:
        return f"{'raises' if accuracy.low > 0 else 'lowers'} the accuracy"
    return "does nothing to the accuracy that these seeds could show"


def reading(rows: Iterable[Row]) -> list[str]:
    """What the runs say of lowering MIR by force, a sentence for each loss and regime.

    Each has the change of MIR, how much of it the norm-only baseline shares, and the changes of accuracy and
    perplexity, with their intervals.
    """
    table = frame(rows)
    said = []
    for regime in REGIMES:
        for forced in FORCED:
            name = f"{regime}, {forced}"
            moved = {column: change(table, name, column) for column in ("mir", "norm_only", "accuracy", "perplexity")}
            count = len(moved["mir"])
            if count < SEEDS_NEEDED:
                said.append(f"{name}: not measured yet ({count} of {SEEDS_NEEDED} seeds).")
                continue
            mir, norm, accuracy, perplexity = (bootstrap(values) for values in moved.values())
            effect = _effect(accuracy)
            said.append(
                f"At the {regime} rate the {forced.removeprefix('gap, ')} loss moves MIR by {mir.text(2)}, the "
                f"norm-only baseline by {norm.text(2)}. It {effect}, {accuracy.text(3)}, and moves perplexity by "
                f"{perplexity.text(2)}."
            )
    return said


def advice(claims: Iterable[Claim]) -> list[str]:
    """What follows for a reader who trains a model, from the judged claims.

    Args:
        claims: Those of `mirlib.lab.closing.weighting`.
    """
    claims = list(claims)
    said = _advice_on_force([claim for claim in claims if claim.paper == HELPS])
    for method, paper in (("CAL", CAL), ("PRIOR", PRIOR)):
        here = [claim for claim in claims if claim.paper == paper and claim.outcome != NOT_MEASURED]
        if here:
            found = "; ".join(f"{claim.condition} rate: {claim.measured.partition(';')[0]}" for claim in here)
            said.append(f"{method}: {overall(here)} ({found}).")
    return said


def _advice_on_force(claims: list[Claim]) -> list[str]:
    judged = [claim for claim in claims if claim.outcome != NOT_MEASURED]
    if not judged:
        return ["The runs that would say whether force helps are not in the ledger yet: no advice."]
    good = [claim.condition for claim in judged if claim.outcome == REPRODUCED]
    bad = [claim.condition for claim in judged if claim.outcome == OPPOSITE]
    said = []
    if good:
        said.append(
            f"Forcing MIR down made better models here in {len(good)} of {len(judged)} settings ({'; '.join(good)}). "
            "Try a loss on the gap there, with a light weight first, and keep it only if your own questions are "
            "answered better."
        )
    if bad:
        said.append(
            f"Forcing MIR down made worse models in {len(bad)} of {len(judged)} settings ({'; '.join(bad)}). Do not "
            "choose the weight by MIR: the heaviest wins there."
        )
    if not good:
        said.append(
            "In no setting could these seeds show that forcing MIR down makes a better model: do not add a loss on the "
            "gap for MIR's sake."
        )
    return said
