"""Timing in turns, and the row that a measurement becomes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """How long something took.

    Attributes:
        clock: Seconds on the wall.
        processor: Seconds of processor time of this process, over all its threads.
    """

    clock: float
    processor: float


class Stopwatch:
    """Runs from the moment it is made."""

    def __init__(self) -> None:
        _wait_for_gpu()
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> Timing:
        """Time since the start."""
        _wait_for_gpu()
        return Timing(time.perf_counter() - self._clock, time.process_time() - self._processor)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_in_turns(actions: Mapping[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, list[Timing]]:
    """Run every action once a round, in turns, so that whatever else the machine does meets all of them alike.

    Args:
        actions: What to time, by name.
        rounds: How often.
        title: What to call it in the progress lines on stderr.

    Returns:
        ``rounds`` timings of each action.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in actions}
    for number in range(rounds):
        for name, action in actions.items():
            say(f"{title}: round {number + 1} of {rounds}, {name}")
            watch = Stopwatch()
            action()
            timings[name].append(watch.read())
    return timings


def say(line: str) -> None:
    """Progress, on stderr: standard output holds the table alone."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Target:
    """A limit from the design, and the side on which it is met."""

    sign: str
    limit: float

    def met(self, value: float) -> bool:
        """Whether a value keeps to the limit."""
        return value >= self.limit if self.sign == "≥" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes:
        what: What was measured.
        size: At which size, in words.
        value: Median over the repetitions, or None if it was not measured.
        low: Smallest of the repetitions.
        high: Largest of the repetitions.
        unit: ``"x"`` for a ratio of times, ``"MiB"``, or ``""`` for a plain ratio.
        target: The limit, if the design names one for this size.
        repetitions: How many.
        details: Numbers behind the value, for the file of results.
        missing: Why it was not measured.
    """

    what: str
    size: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    target: Target | None = None
    repetitions: int = 1
    details: Mapping[str, Any] | None = None
    missing: str | None = None

    @classmethod
    def of(cls, what: str, size: str, values: Sequence[float], **fields: Any) -> Measurement:
        """The row of several repetitions."""
        return cls(what, size, median(values), min(values), max(values), repetitions=len(values), **fields)

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``not measured`` and why, or nothing where there is no target."""
        if self.value is None:
            return f"not measured ({self.missing})" if self.missing else "not measured"
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value) else "not met"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "what": self.what,
            "size": self.size,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict,
            "repetitions": self.repetitions,
            **(self.details or {}),
        }


def ratios(numerator: Sequence[Timing], denominator: Sequence[Timing], threads: int) -> list[float]:
    """Quotients of the timings of the same round.

    One thread is timed by processor time, which other programs on the machine disturb less; more threads are timed by
    the clock, since their processor times add up.
    """
    part = "processor" if threads == 1 and not torch.cuda.is_available() else "clock"
    return [getattr(a, part) / getattr(b, part) for a, b in zip(numerator, denominator, strict=True)]


def medians(timings: Mapping[str, Sequence[Timing]]) -> dict[str, dict[str, float]]:
    """Median clock and processor seconds of each action, for the file of results."""
    return {
        name: {part: median(getattr(timing, part) for timing in values) for part in Timing._fields}
        for name, values in timings.items()
    }


def format_table(rows: Sequence[Measurement]) -> str:
    """The rows as a table of text."""

    def number(value: float | None, unit: str) -> str:
        if value is None:
            return "—"
        text = f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.2f}"
        return text + ("×" if unit == "x" else f" {unit}" if unit else "")

    header = ("what", "size", "median", "from … to", "target", "")
    cells = [header]
    for row in rows:
        spread = "" if row.repetitions < 2 else f"{number(row.low, row.unit)} … {number(row.high, row.unit)}"
        cells.append((row.what, row.size, number(row.value, row.unit), spread, str(row.target or ""), row.verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
