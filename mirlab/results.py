"""The ledger as tables: one line a run, or a probe of a run. Pandas alone; no model is loaded and no run rebuilt.

A chapter shows its analysis itself, in a few lines on top of these tables::

    table = results.load("moca")
    table.groupby("arm")[["mir", "accuracy"]].mean()
    mean_interval(results.paired(table, "MoCa", "plain", "accuracy"))
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mirlab.claims import Finding, judge
from mirlab.experiments import EXPERIMENTS
from mirlab.ledger import CEILINGS, Ledger, shipped
from mirlab.statistics import paired, wide
from mirlib.errors import MirlibError, first_line, shown

__all__ = ["load", "outcomes", "paired", "probes", "wide"]

_PLACES = {
    "stage_one": {"loss": "loss", "curve": "curve"},
    "perplexity": {"in_domain": "perplexity", "out_of_domain": "perplexity_out"},
    "in_context": {"text": "in_context_text", "image": "in_context_image"},
    "discrimination": {None: "discrimination"},
    "mir": {"value": "mir"}
    | {name: name for name in ("norm_only", "null", "floor", "per_layer", "mean_term", "covariance_term")}
    | {"norm_ratio": "norm_ratios"},
    "mir_scenes": {None: "mir_scenes"},
    "accuracy": {"mean": "accuracy", "blind": "blind"},
}
"""Columns by the objects of a row's metrics and their entries; None is the number that stands there instead."""

_GROUPS = {
    "accuracy_by_kind": "accuracy_",
    "blind_by_kind": "blind_",
    "majority_by_kind": "majority_",
    "probe_by_kind": "probe_",
    "zero_shot": "zero_shot_",
    "caption_loss": "caption_loss_",
    "slots": "slot_",
    "before_stage_one": "before_",
    "after_stage_one": "after_",
    "leaning": "",
    "leaning_zero_shot": "zero_shot_",
    "long_tokens": "",
}
"""Objects of a row's metrics that become a column for each of their entries, by what goes before its name."""

_REPEATED = ("kinds", "template", "relevance", "seen", "counts")
"""Objects of a row's metrics that hold lists of MIR, by what was varied."""

LOSS_WINDOW = 20
"""Steps before a probe over which its loss is the mean."""


def load(experiment: str, folder: str | Path | None = None) -> pd.DataFrame:
    """All runs of an experiment, one line each.

    Args:
        experiment: Name of its file, without ``.jsonl``.
        folder: Of the ledger; by default the one that comes with mirlab (`mirlab.ledger.shipped`). Rows that name no
            arm are left out.

    Returns:
        In the order of the arms and the seeds: ``experiment``, ``arm``, ``seed``, ``parts`` (seed of encoder and
        language model), ``method`` (``plain`` without one), ``key``; the recipe of stage 1 (``pairs``, ``batch``,
        ``learning_rate``, ``warmup_steps`` …); and what was measured:

        - ``mir``, ``norm_only``, ``mir_minus_norm_only``, ``null`` (zeros instead of vision rows), ``floor``,
          ``mir_scenes`` (captions as the text), ``norm_ratio`` and ``log_norm_ratio`` (base 10) of layer 1;
        - ``loss``, ``perplexity``, ``perplexity_out``, ``in_context_text``, ``in_context_image``, ``discrimination``;
        - ``accuracy``, ``blind``, and for each kind of question ``accuracy_KIND``, ``blind_KIND``, ``zero_shot_KIND``
          and how many ``questions_KIND``; of the real parts ``majority_KIND``, ``probe_KIND``, ``caption_loss_own`` and
          ``caption_loss_another`` (picture); ``slot_NAME`` of captions, ``gap_NAME`` of the zoo's measures,
          ``gap_NAME_calibrated`` where random pairs calibrate them, ``before_NAME`` and ``after_NAME`` of a method;
        - ``hallucinated``, ``yes_bias`` … of `mirlab.model.leaning.measured`, and with ``zero_shot_`` before stage 2;
          ``accuracy_VARIANT``, ``mir_VARIANT`` … of `mirlab.measuring.with_long_tokens_changed`;
        - lists: ``per_layer``, ``mean_term``, ``covariance_term``, ``norm_ratios``, and ``curve`` of the loss; and of
          MIR measured again and again ``mir_kinds_PICTURES_TEXTS``, ``mir_template_NAME``, ``mir_relevance_NAME``,
          ``mir_seen_NAME``, ``mir_counts_NUMBER``;
        - ``seconds`` of the whole run.

        What no row has is no column; what one row lacks is NaN there. Empty if nothing has been run.
    """
    return _table(_line(row) | _measured(row["metrics"]) for row in _rows(experiment, _ledger(folder)))


def probes(experiment: str, folder: str | Path | None = None) -> pd.DataFrame:
    """All probes of the runs that have any, one line each, the last one at the end of stage 1.

    As `load`, and ``step``; ``loss`` is the mean of the curve's points within the `LOSS_WINDOW` steps before the probe,
    or the last point before it where there are none.
    """
    lines = []
    for row in _rows(experiment, _ledger(folder)):
        if "probes" not in row["metrics"]:
            continue
        curve = np.array(row["metrics"]["stage_one"]["curve"], dtype=float).reshape(-1, 2)
        start = _line(row)
        steps = start["epochs"] * (start["pairs"] // start["batch"])
        for probe in [*row["metrics"]["probes"], {**row["metrics"], "step": steps}]:
            measured = _measured(probe) | {"step": probe["step"], "loss": _loss_before(curve, probe["step"])}
            lines.append(start | measured)
    return _table(lines)


def outcomes(experiment: str, folder: str | Path | None = None) -> tuple[Finding, ...]:
    """What the ledger says to the claims of an experiment; `mirlab.claims.listed` makes a table of it.

    Where runs have probes, each is an arm of its own, too: ``ARM, step 64``. The folder is as in `load`; the oracle's
    rates are read from ``ceilings.json`` there (`mirlab.power`).
    """
    declared = EXPERIMENTS[experiment]
    table, probed = load(experiment, folder), probes(experiment, folder)
    if len(probed):
        arms = probed["arm"] + ", step " + probed["step"].astype(str)
        table = pd.concat([table, probed.assign(arm=arms)], ignore_index=True)
    if declared.derive and len(table):
        table = declared.derive(table)
    ceilings = _json(_ledger(folder) / CEILINGS).get(experiment)
    return judge(declared.claims, table, ceilings=ceilings, seeds=declared.seeds)


def _ledger(folder: str | Path | None) -> Path:
    return shipped() if folder is None else Path(folder)


def _rows(experiment: str, folder: Path) -> list[dict[str, Any]]:
    """Rows that name an arm: arms in the order of the file, seeds in order within an arm."""
    path = folder / f"{experiment}.jsonl"
    rows = [row for row in _read(path, path.stat().st_mtime_ns if path.is_file() else 0) if "arm" in row]
    if empty := [row["key"] for row in rows if not row.get("metrics")]:
        raise MirlibError(f"{shown(path)}: the row {empty[0]} holds no metrics; take it out, and it is made again")
    order = list(dict.fromkeys(row["arm"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["arm"]), row["configuration"]["seed"]))


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> list[dict[str, Any]]:
    """The rows of a file as it was at a time: one question reads them more than once, and need not warn as often."""
    return Ledger(path).rows()


def _json(path: Path) -> dict[str, dict[str, Any]]:
    """A file beside the ledger, by experiment; empty where there is none."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise MirlibError(f"{shown(path)}: not JSON ({shown(first_line(error))}); restore it") from error


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """What was asked for."""
    run = row["configuration"]
    return {
        "experiment": row["experiment"],
        "arm": row["arm"],
        **{key: run[key] for key in ("seed", "parts", "size", "study") if key in run},
        "method": run["method"]["name"] if "method" in run else "plain",
        "key": row["key"],
        **run["stage_one"],
        "seconds": row["seconds"]["all"],
    }


def _measured(metrics: dict[str, Any]) -> dict[str, Any]:
    """What was measured, of a run or of a probe, flat."""
    found: dict[str, Any] = {}
    for group, columns in _PLACES.items():
        values = metrics.get(group)
        values = values if isinstance(values, dict) else {None: values}
        found |= {column: values[name] for name, column in columns.items() if values.get(name) is not None}
    for group, prefix in _GROUPS.items():
        found |= {f"{prefix}{name}": value for name, value in metrics.get(group, {}).items()}
    for group in _REPEATED:
        found |= dict(_leaves(metrics.get(group, []), f"mir_{group}"))
    counts = metrics.get("count_by_kind", {})
    found |= {f"questions_{kind}": count for kind, count in counts.get("other", counts).items()}
    for name, gap in metrics.get("gaps", {}).items():
        found[f"gap_{name}"] = gap["value"]
        if "calibrated" in gap:
            found[f"gap_{name}_calibrated"] = gap["calibrated"]
    if "norm_ratios" in found:
        found["norm_ratio"] = found["norm_ratios"][0]
        found["log_norm_ratio"] = float(np.log10(found["norm_ratio"]))
    if "norm_only" in found:
        found["mir_minus_norm_only"] = found["mir"] - found["norm_only"]
    return found


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Lists in nested objects, by their names."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}_{key}")
    elif tree:
        yield name, tree


def _loss_before(curve: np.ndarray, step: int) -> float:
    ends, losses = curve.T
    recent = losses[(ends > step - LOSS_WINDOW) & (ends <= step)]
    return float(recent.mean() if len(recent) else losses[max(0, np.searchsorted(ends, step, side="right") - 1)])


def _table(lines: Any) -> pd.DataFrame:
    """A data frame that has the columns every table needs even where it has no line."""
    table = pd.DataFrame(list(lines))
    return table if len(table) else pd.DataFrame(columns=["experiment", "arm", "seed", "parts", "key"])
