"""The experiment zoo of the first edition as a table: its rows, and what the runs that they repeat came to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mirlab import ledger
from mirlab.first.recipe import Run
from mirlab.zoo import ALL, ON_ROWS, value_of
from mirlib.gaps import MEASURES
from mirlib.gaps.base import HIGHER, PAIRS

__all__ = [
    *("ALL", "CALIBRATED", "LEAKED", "ON_ROWS", "RANKED"),
    *("grid", "integrated", "table", "value_of", "with_repeated"),
]

Row = dict[str, Any]

LEAKED = tuple(name for name in ALL if MEASURES[name].needs == PAIRS)
"""Measures whose values in this ledger are of captions read behind their pictures, which leak into them whatever the
weights (see `mirlib.gaps.reading`): they stay in the rows, and out of every rank."""
RANKED = tuple(name for name in ALL if name not in LEAKED)


def repeated_key(run: Run) -> str:
    """Key of the run that a run of the zoo does again."""
    return ledger.key_of(replace(run, study="final").configuration)


def with_repeated(rows: Iterable[Row], results_dir: str | Path) -> list[Row]:
    """Rows of the zoo, each with what the row that it repeats says after stage 2, as ``row["repeated"]``.

    Rows of a run that no other experiment has done stay without.
    """
    from mirlab.first.protocols import PROTOCOLS

    known: dict[str, dict[str, Any]] = {}
    for name in PROTOCOLS:
        if name == "zoo":
            continue
        for row in ledger.Ledger(Path(results_dir) / f"{name}.jsonl").rows():
            if "accuracy" in row["metrics"] and row["key"] not in known:
                known[row["key"]] = {
                    "experiment": name,
                    "accuracy": row["metrics"]["accuracy"]["mean"],
                    "blind": row["metrics"]["accuracy"]["blind"],
                    "discrimination": row["metrics"]["discrimination"],
                    "mir": row["metrics"]["mir"]["value"],
                }
    found = []
    for row in rows:
        repeated = known.get(row["metrics"].get("repeats"))
        found.append(row if repeated is None else {**row, "repeated": repeated})
    return found


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a run of the zoo whose repeated row is known.

    Returns:
        Columns ``arm``, ``seed``, ``accuracy`` after stage 2, ``mir_then`` (MIR in the repeated row), and every measure
        by its name, see `value_of`. ``soft_discrimination`` and ``perceptual_score`` are those of the repeated row; the
        second is taken after stage 2 and contains the accuracy.
    """
    lines = []
    for row in rows:
        if "arm" not in row or "repeated" not in row:
            continue
        then = row["repeated"]
        lines.append(
            {"arm": row["arm"], "seed": row["configuration"]["seed"]}
            | {"accuracy": then["accuracy"], "mir_then": then["mir"]}
            | {name: value_of(name, row["metrics"]["gaps"][name]) for name in ON_ROWS}
            | {"soft_discrimination": then["discrimination"], "perceptual_score": then["accuracy"] - then["blind"]}
        )
    return pd.DataFrame(lines)


def integrated(name: str) -> int:
    """1 where a higher value of a measure means better integrated, −1 where a lower one does."""
    return 1 if MEASURES[name].direction == HIGHER else -1


def grid(found: pd.DataFrame, arms: Sequence[str], column: str, seeds: Sequence[int]) -> np.ndarray:
    """(arms, seeds) values of a column of `table`."""
    return found.pivot(index="arm", columns="seed", values=column).loc[list(arms), list(seeds)].to_numpy(float)
