"""The ledger's rows as tables: one line a run, a probe, or an arm."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mirlab import ledger
from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.protocols import PROTOCOLS, Protocol
from mirlib.errors import MirlibError, first_line, shown

Row = dict[str, Any]

METRICS = {
    "loss": "loss (last 50 steps)",
    "perplexity": "perplexity, in-domain",
    "perplexity_out": "perplexity, out-of-domain",
    "in_context_text": "in-context score, text shots",
    "in_context_image": "in-context score, shots with images",
    "discrimination": "soft discrimination",
    "norm_only": "norm-only baseline",
    "mir": "MIR (news)",
    "accuracy": "accuracy after stage 2",
}
"""What is compared with accuracy, by the columns of `frame`."""

MORE_IS_BETTER = frozenset(("in_context_text", "in_context_image", "discrimination", "accuracy", "pairs"))
"""Columns of `frame` of which more is better; of all other metrics less is."""

INDEX = "arms.json"
"""Beside the rows: the arms of every experiment, and the keys of their runs."""

LOSS_WINDOW = 20
"""Steps before a probe over which `probes` takes the mean of the loss."""


def load(name: str, results_dir: str | Path) -> list[Row]:
    """Rows of a sweep, and those of data_scale with them where they give the unit of measure (robustness).

    A row that is a run of its protocol has an ``arm``: that of the index beside the rows (`INDEX`), or its own. Runs of
    the sweep that only another one has done so far are among them, as in `load_runs`.

    Raises:
        MirlibError: If a file of rows or the index is damaged.
    """
    rows = _own(name, results_dir)
    rows += _borrowed(name, results_dir, rows)
    if rows and name == "robustness":
        rows = rows + _own("data_scale", results_dir)
    return rows


def load_runs(name: str, results_dir: str | Path) -> list[Row]:
    """Rows of a sweep that are runs of its protocol as it stands; those of an older version of it are left out.

    A run that this sweep has not reached but another one has done with the very same configuration is there, too, as
    the sweep will copy it: with ``copied_from``, the name of the sweep that it was found in.
    """
    own = _own(name, results_dir)
    return [row for row in own if is_run(row)] + _borrowed(name, results_dir, own)


class Counted(NamedTuple):
    """How much of an experiment is there.

    Attributes:
        runs_found: Runs of its protocol in the ledger, those included that another experiment made.
        runs_wanted: Runs of its protocol.
        minutes_made_here: Minutes of one core that its own runs took; those of others count where they were made.
    """

    runs_found: int
    runs_wanted: int
    minutes_made_here: float


def counted(name: str, results_dir: str | Path) -> Counted:
    """How many runs of an experiment the ledger holds, of how many, and the minutes of one core that its own took."""
    rows = load_runs(name, results_dir)
    made = sum(row["seconds"]["all"] for row in rows if "copied_from" not in row)
    return Counted(len({row["key"] for row in rows}), len(PROTOCOLS[name].runs), made / 60)


def is_run(row: Row) -> bool:
    """Whether a row that was loaded is a run of its protocol as it stands."""
    return row.get("arm") in PROTOCOLS[row["experiment"]].arms


def _own(name: str, results_dir: str | Path) -> list[Row]:
    arms = _arms_by_key(name, results_dir)
    rows = ledger.Ledger(Path(results_dir) / f"{name}.jsonl").rows()
    return [row | {"arm": arms[row["key"]]} if row["key"] in arms else row for row in rows]


def _borrowed(name: str, results_dir: str | Path, own: Iterable[Row]) -> list[Row]:
    """Runs of a sweep that are not among its own rows, from the files of the others, in their order."""
    arms = _arms_by_key(name, results_dir)
    missing = set(arms) - {row["key"] for row in own}
    found = []
    for other in PROTOCOLS:
        if other == name or not missing & set(_arms_by_key(other, results_dir)):
            continue
        for row in _own(other, results_dir):
            if row["key"] in missing:
                found.append({"copied_from": other} | row | {"experiment": name, "arm": arms[row["key"]]})
                missing.remove(row["key"])
    return found


def _arms_by_key(name: str, results_dir: str | Path) -> dict[str, str]:
    """Arms of an experiment by the keys of their runs, from the index; none where there is no index."""
    path = Path(results_dir) / INDEX
    if not path.exists():
        return {}
    try:
        arms = json.loads(path.read_text(encoding="utf-8")).get(name, {})
        return {key: arm for arm, keys in arms.items() for key in keys}
    except (ValueError, AttributeError, TypeError) as error:
        raise MirlibError(f"{shown(path)}: not an index of arms ({shown(first_line(error), 300)})") from error


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a run, in the order of the protocol's arms and the seeds.

    Rows that are no run of their protocol (of an older version of it, say) are left out.

    Returns:
        Columns ``experiment``, ``arm``, ``series`` and ``level`` (the arm's name before and after its first comma),
        ``seed``, ``parts``, the recipe, and the metrics: `METRICS`, ``mir_scenes`` (MIR with captions as the text),
        ``norm_ratio`` (layer 1), ``null``, ``floor``, ``blind``, ``seconds``.
    """
    lines = []
    for row in rows:
        if not is_run(row):
            continue
        arm = row["arm"]
        run, metrics = row["configuration"], row["metrics"]
        recipe = run["stage_one"]
        series, _, level = arm.partition(", ")
        lines.append(
            {"experiment": row["experiment"], "arm": arm, "series": series, "level": level}
            | {"seed": run["seed"], "parts": run["parts"], "size": run["size"]}
            | {key: recipe[key] for key in ("pairs", "epochs", "warmup_steps", "scheduler", "detail", "connector")}
            | {"rate": recipe["learning_rate"], "matched": recipe["norm_matched"], "unlock": recipe["unlock"]}
            | {"loss": metrics["stage_one"]["loss"], "seconds": row["seconds"]["all"]}
            | _measured(metrics)
        )
    table = pd.DataFrame(lines)
    if len(table):
        # By experiment and arm: two experiments may give the same name to arms of theirs.
        order = {(name, arm): i for name, protocol in PROTOCOLS.items() for i, arm in enumerate(protocol.arms)}
        place = [order[key] for key in zip(table["experiment"], table["arm"], strict=True)]
        table = table.assign(place=place).sort_values(["experiment", "place", "seed"], kind="stable")
        table = table.drop(columns="place").reset_index(drop=True)
    return table


def _measured(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics of a run or of a probe, flat."""
    found = {"mir": metrics["mir"]["value"], "norm_ratio": metrics["mir"]["norm_ratio"][0]}
    found |= {key: metrics["mir"][key] for key in ("norm_only", "null", "floor")}
    if "accuracy" in metrics:
        found |= {
            "perplexity": metrics["perplexity"]["in_domain"],
            "perplexity_out": metrics["perplexity"]["out_of_domain"],
            "in_context_text": metrics["in_context"]["text"],
            "in_context_image": metrics["in_context"]["image"],
            "discrimination": metrics["discrimination"],
            "mir_scenes": metrics["mir_scenes"],
            "accuracy": metrics["accuracy"]["mean"],
            "blind": metrics["accuracy"]["blind"],
        }
    return found


def probes(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a probe of a run (study ``during``), the last one at the end of stage 1.

    Returns:
        Columns ``arm``, ``seed``, ``parts``, ``step``, and the metrics of `frame`; ``loss`` is that before the probe,
        see `loss_before`.
    """
    lines = []
    for row in rows:
        if not is_run(row) or "probes" not in row["metrics"]:
            continue
        curve = loss_curve(row)
        steps = steps_of(row)
        for probe in [*row["metrics"]["probes"], {"step": steps, **row["metrics"]}]:
            start = {"arm": row["arm"], "seed": row["configuration"]["seed"], "parts": row["configuration"]["parts"]}
            loss = loss_before(curve, probe["step"])
            lines.append(start | {"step": probe["step"], "loss": loss} | _measured(probe))
    return pd.DataFrame(lines)


def loss_before(curve: np.ndarray, step: int) -> float:
    """The training loss before a step: the mean of the curve's points that end in the `LOSS_WINDOW` steps up to it.

    Each point of the ledger's curve is itself a mean, of about a hundredth of the run's steps that end at it. Where
    none ends within the window, the last one before it stands in; where none ends before the step at all, the first.

    Args:
        curve: (n, 2) steps and losses in the order of the steps, see `loss_curve`; at least one.
        step: Of the probe.

    Example:
        >>> loss_before(np.array([[10, 3.0], [20, 2.0], [30, 1.0], [40, 0.5]]), 34)
        1.5
    """
    ends, losses = curve.T
    recent = losses[(ends > step - LOSS_WINDOW) & (ends <= step)]
    if len(recent):
        return float(recent.mean())
    return float(losses[max(0, np.searchsorted(ends, step, side="right") - 1)])


def loss_curve(row: Row) -> np.ndarray:
    """(n, 2) steps and losses."""
    return np.array(row["metrics"]["stage_one"]["curve"], dtype=float).reshape(-1, 2)


def steps_of(row: Row) -> int:
    """Steps of a run's stage 1."""
    recipe = row["configuration"]["stage_one"]
    return recipe["epochs"] * (recipe["pairs"] // recipe["batch"])


def summary(protocol: Protocol, rows: Iterable[Row], columns: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """Each arm's mean over seeds with its 95 % interval.

    Returns:
        Arms by ``runs`` and, for each column of `frame` that was asked for, its mean, ``_low`` and ``_high``.
    """
    table = frame(row for row in rows if row["experiment"] == protocol.name)
    lines = []
    for arm in protocol.arms:
        here = table[table["arm"] == arm] if len(table) else table
        line: dict[str, Any] = {"arm": arm, "runs": len(here)}
        for column in columns:
            values = here[column].dropna() if column in here else []
            nothing = Estimate(*[float("nan")] * 3, 0)
            estimate = bootstrap(np.asarray(values)) if len(values) else nothing
            line |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
        lines.append(line)
    return pd.DataFrame(lines).set_index("arm")


def cells(table: pd.DataFrame, arms: Sequence[str], column: str, seeds: Sequence[int]) -> np.ndarray:
    """(arms, seeds) values of a column of `frame`."""
    return table.pivot(index="arm", columns="seed", values=column).loc[list(arms), list(seeds)].to_numpy(float)


def difference(
    table: pd.DataFrame, first: str, second: str, column: str, seeds: Sequence[int] | None = None
) -> np.ndarray:
    """One arm minus another within each seed.

    Args:
        table: From `frame`.
        first: Arm.
        second: Arm that is taken from it.
        column: Of the table.
        seeds: Which seeds; those that have both arms if left out.

    Returns:
        (seeds,) differences; empty if no seed has both.
    """
    seeds = complete_seeds(table, [first, second]) if seeds is None else seeds
    if not len(seeds):
        return np.empty(0)
    mine, other = cells(table, [first, second], column, seeds)
    return mine - other


def complete_seeds(table: pd.DataFrame, arms: Iterable[str]) -> list[int]:
    """Seeds that have a run of every arm, in their order, from a table of `frame`."""
    arms = set(arms)
    if not len(table):
        return []
    counts = table[table["arm"].isin(arms)].groupby("seed")["arm"].nunique()
    return sorted(int(seed) for seed in counts.index[counts == len(arms)])


def arms_of(protocol: Protocol, series: str) -> list[str]:
    """Arms whose name begins with a series, in their order."""
    return [arm for arm in protocol.arms if arm.partition(", ")[0] == series]
