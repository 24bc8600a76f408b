"""Which way MIR's change with data goes: warm-up or data, norm ratio or something else (warmup_or_data)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.tables import Row, arms_of, cells, complete_seeds, frame

WARMUP_SERIES = ("high", "low", "matched", "matched high")
SEEDS_NEEDED = 5
LITTLE, MUCH = 2048, 8192
SHORT, MEDIUM, LONG = 8, 31, 124
WARMUP_STEPS = (SHORT, MEDIUM, LONG)
_PROPORTIONAL = ((LITTLE, SHORT), (MUCH, MEDIUM))
"""3 % of the 256 and of the 1024 steps."""


def grid(table: pd.DataFrame, series: str, column: str, seeds: Sequence[int]) -> dict[tuple[int, int], np.ndarray]:
    """Values over seeds by pairs and warm-up steps, of a column of `frame`."""
    return {
        (pairs, steps): cells(table, [f"{series}, {pairs} pairs, {steps} warm-up steps"], column, seeds)[0]
        for pairs in (LITTLE, MUCH)
        for steps in WARMUP_STEPS
    }


def changes(grid: dict[tuple[int, int], np.ndarray]) -> dict[str, np.ndarray]:
    """Changes with data, within each seed: with proportional warm-up, and with each fixed number of its steps."""
    found = {"proportional": grid[_PROPORTIONAL[1]] - grid[_PROPORTIONAL[0]]}
    for steps in WARMUP_STEPS:
        found[f"{steps} steps"] = grid[MUCH, steps] - grid[LITTLE, steps]
    found["fixed"] = np.mean([found[f"{steps} steps"] for steps in WARMUP_STEPS], axis=0)
    # The way from (little data, short warm-up) to (much, medium), each step taken first and last, on average.
    found["by warm-up"] = 0.5 * sum(grid[pairs, MEDIUM] - grid[pairs, SHORT] for pairs in (LITTLE, MUCH))
    found["by data"] = 0.5 * sum(grid[MUCH, steps] - grid[LITTLE, steps] for steps in (SHORT, MEDIUM))
    return found


def mediation(rows: Iterable[Row]) -> pd.DataFrame:
    """Which way MIR's change with data goes, for each regime of warmup_or_data.

    The change from 2048 pairs with 8 warm-up steps to 8192 pairs with 31 (3 % of the steps each) is taken apart twice:

    1. by design: what changing the warm-up brings at equal data, and what more data bring at equal warm-up, each the
       mean of both orders, so that the two add up to the change;
    2. by mediator: MIR is regressed by least squares, within seeds, on data and warm-up (as categories) without and
       with the logarithm of the layer-1 norm ratio. What the ratio takes from the coefficients went through it; the
       rest is left. The same is done for the effect of data at fixed warm-up.

    The second is bookkeeping, not proof of a cause: the norm ratio is part of what MIR measures, and whatever moves
    both counts as going through it. In a regime where the ratio hardly moves its coefficient is poorly known.

    Returns:
        Columns ``series``, ``path``, ``estimate``, ``low``, ``high``, ``share`` (of the change, ratio of means) with
        ``share_low`` and ``share_high``, ``seeds``. Shares are missing where the interval of the change holds 0. Only
        regimes with five complete seeds are there.
    """
    table = frame(row for row in rows if row["experiment"] == "warmup_or_data")
    columns = ["series", "path", "estimate", "low", "high", "share", "share_low", "share_high", "seeds"]
    lines = []
    for name in WARMUP_SERIES:
        here = table[table["series"] == name] if len(table) else table
        seeds = complete_seeds(here, arms_of(PROTOCOLS["warmup_or_data"], name))
        if len(seeds) < SEEDS_NEEDED:
            continue
        lines += _paths(name, grid(here, name, "mir", seeds), grid(here, name, "norm_ratio", seeds))
    return pd.DataFrame(lines, columns=columns)


def _paths(
    name: str, mir: dict[tuple[int, int], np.ndarray], ratio: dict[tuple[int, int], np.ndarray]
) -> list[dict[str, Any]]:
    logs = {cell: np.log10(values) for cell, values in ratio.items()}
    moved, moved_logs = changes(mir), changes(logs)
    sums = _slope_sums(mir, logs)  # (2, seeds)

    def slope(drawn: np.ndarray) -> np.ndarray:
        above, under = drawn[0].sum(axis=-1), drawn[1].sum(axis=-1)
        known = under > 1e-12  # a ratio that does not vary explains nothing
        return np.where(known, above / np.where(known, under, 1.0), 0.0)

    def line(path: str, values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], of: str) -> dict[str, Any]:
        """`values` (k, seeds) and a statistic of them; the share is in the mean of the change called `of`."""
        whole = moved[of]
        total = bootstrap(whole)
        found = bootstrap(values, statistic)
        share = Estimate(*[float("nan")] * 3, 0)
        if total.low > 0 or total.high < 0:
            share = bootstrap(np.vstack([values, whole]), lambda drawn: statistic(drawn[:-1]) / drawn[-1].mean(axis=-1))
        return {
            "series": name,
            "path": path,
            "estimate": found.value,
            "low": found.low,
            "high": found.high,
            "share": share.value,
            "share_low": share.low,
            "share_high": share.high,
            "seeds": found.seeds,
        }

    def first_mean(drawn: np.ndarray) -> np.ndarray:
        return drawn[0].mean(axis=-1)

    def through(drawn: np.ndarray) -> np.ndarray:
        return slope(drawn[:2]) * drawn[2].mean(axis=-1)

    def left(drawn: np.ndarray) -> np.ndarray:
        return drawn[3].mean(axis=-1) - through(drawn)

    found = [
        line("whole change, proportional warm-up", moved["proportional"][None], first_mean, "proportional"),
        line("by warm-up, at equal data", moved["by warm-up"][None], first_mean, "proportional"),
        line("by data, at equal warm-up", moved["by data"][None], first_mean, "proportional"),
    ]
    for of, label in (("proportional", "of the whole change"), ("fixed", "of the effect of data at fixed warm-up")):
        if of == "fixed":
            found.append(line("effect of data at fixed warm-up", moved["fixed"][None], first_mean, "fixed"))
        values = np.vstack([sums, moved_logs[of], moved[of]])
        found.append(line(f"through the norm ratio, {label}", values, through, of))
        found.append(line(f"left, {label}", values, left, of))
    return found


def _slope_sums(mir: dict[tuple[int, int], np.ndarray], logs: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """For each seed Σ r·m and Σ r², r and m being log ratio and MIR without what seed, data and warm-up explain.

    The sums of both over seeds give the coefficient of the log ratio in the regression with all three as categories
    (Frisch, Waugh and Lovell); the data and warm-up effects that are taken out are those of all seeds together.
    """
    order = list(mir)

    def residuals(values: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        block = np.array([values[cell] for cell in order]).reshape(2, 3, -1)  # data, warm-up, seeds
        block = block - block.mean(axis=(0, 1), keepdims=True)
        return block - block.mean(axis=(1, 2), keepdims=True) - block.mean(axis=(0, 2), keepdims=True)

    r, m = residuals(logs), residuals(mir)
    return np.array([(r * m).sum(axis=(0, 1)), (r * r).sum(axis=(0, 1))])
