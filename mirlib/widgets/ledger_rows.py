"""What the widgets over the ledger share: the arm that a row belongs to, and rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_PER_SEED = ("seed", "parts")


def rounded(value: float, digits: int = 5) -> float:
    """A number with as many significant digits as a page needs."""
    return float(f"{value:.{digits}g}")


def arm_names(rows: Iterable[Row], arm_of: Callable[[Row], str] | None = None) -> list[str]:
    """The name of the arm of each row: rows of one arm differ in their seeds alone.

    Args:
        rows: Rows of one experiment.
        arm_of: Gives the name of a row's arm. Without it, the row's own ``"arm"`` is taken, or else a name is made of
            the settings in which the arms differ.

    Example:
        >>> settings = [{"seed": s, "stage_one": {"pairs": n, "rate": 0.1}} for s in (0, 1) for n in (8, 64)]
        >>> arm_names([{"configuration": one} for one in settings])
        ['pairs 8', 'pairs 64', 'pairs 8', 'pairs 64']
    """
    rows = list(rows)
    if arm_of is not None:
        return [arm_of(row) for row in rows]
    if all("arm" in row for row in rows):
        return [str(row["arm"]) for row in rows]
    settings = [dict(_flat(row["configuration"])) for row in rows]
    names = dict.fromkeys(name for one in settings for name in one)
    told = {name: [json.dumps(one.get(name)) for one in settings] for name in names}
    differing = [name for name in names if len(set(told[name])) > 1]
    # A setting that follows from those named before it tells nothing new.
    kept: list[str] = []
    for name in differing:
        if len(set(zip(*(told[other] for other in [*kept, name]), strict=True))) > (
            len(set(zip(*(told[other] for other in kept), strict=True))) if kept else 1
        ):
            kept.append(name)
    if not kept:
        return ["all runs"] * len(rows)
    return [", ".join(f"{name.replace('_', ' ')} {one.get(name)}" for name in kept) for one in settings]


def _flat(configuration: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            flat += _flat(value)
        elif name not in _PER_SEED:
            flat.append((name, value))
    return flat


def mean_and_range(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest; summed in order, as the page does."""
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}
