"""What became of a claim: the numbers that it hangs on, the word for their outcome, and that word over conditions.

The one place that decides between the words. The criteria (`mirlab.first.protocols`) say what "reproduced" asks; the
words for what falls short of it follow from where an interval lies:

- the opposite: a deciding interval lies wholly on the other side of its limit;
- not testable here: none does, but the criterion could not have been met with the data at hand;
- undecided: none of both, but a deciding interval holds its limit (mostly 0);
- falls short: all intervals lie on the right side, but a mean misses the size that was asked for.

A claim that hangs on several numbers gets the first of these that one of its numbers gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mirlab.first.estimates import Estimate, bootstrap

REPRODUCED, NOT_MEASURED = "reproduced", "not measured"
OPPOSITE, UNDECIDED, FALLS_SHORT = "the opposite", "undecided", "falls short"
NOT_REPRODUCED, NOT_TESTABLE = "not reproduced", "not testable here"
SHOWN = "shown"
"""Outcome of a number that is printed beside the deciding ones and decides nothing."""

FAILURES = (OPPOSITE, UNDECIDED, FALLS_SHORT)
_WORST_FIRST = (OPPOSITE, NOT_TESTABLE, UNDECIDED, FALLS_SHORT)

BELOW, ABOVE = -1, 1

PLACES = {
    "high": "at a high rate",
    "low": "at a low rate",
    "matched": "with matched norms",
    "matched high": "with matched norms at the high rate",
    "unlocked": "with encoder and language model unlocked",
    "lora": "with LoRA",
    "lora merged": "with LoRA merged",
    "half": "with half of the layers unlocked",
    "all": "with all layers unlocked",
}
"""What follows ``reproduced only``, by the condition of a claim."""


@dataclass(frozen=True)
class Part:
    """One number that a claim hangs on, or that is shown beside those.

    Attributes:
        name: What it is.
        estimate: The number with its interval.
        side: Where the claim puts it: `ABOVE` or `BELOW` the limit; None for a number that decides nothing.
        limit: What the interval is held against.
        closed: Whether an interval that ends at the limit is on the right side.
        weak: Whether it is enough that the interval does not lie wholly on the other side.
        start: Where no effect would put the number, if the limit asks for more than that: an interval between the two
            falls short.
        reach: What the mean itself must reach on that side, if more than the limit.
        premise: What is the case where the number fails, if the claim can then not be tested at all.
        best: What the number would have been, had the claim's subject done as well as can be: where this interval
            holds the limit, the criterion could not have been met.
        best_of: Whose number `best` is, with the verb: ``a perfect MIR would have gained``.
        note: What a reader should know beside the number.
        clause: What else had to be granted for it to hold; goes into the verdict.
        footnote: What a reader should know once, under a table.
        digits: To print.
    """

    name: str
    estimate: Estimate
    side: int | None
    limit: float = 0.0
    closed: bool = False
    weak: bool = False
    start: float | None = None
    reach: float | None = None
    premise: str = ""
    best: Estimate | None = None
    best_of: str = ""
    note: str = ""
    clause: str = ""
    footnote: str = ""
    digits: int = 2

    @property
    def outcome(self) -> str:
        """`REPRODUCED`, one of `FAILURES`, `NOT_TESTABLE` or `SHOWN`."""
        if self.side is None:
            return SHOWN
        near, far = self._beyond(self.limit, self.estimate)
        if far < 0:
            short = self.start is not None and self._beyond(self.start, self.estimate)[0] > 0
            return NOT_TESTABLE if self.premise else FALLS_SHORT if short else OPPOSITE
        if not (self.weak or near > 0 or (self.closed and near == 0)):
            return NOT_TESTABLE if self._ceiling else UNDECIDED
        if self.reach is not None and round(self.side * (self.estimate.value - self.reach), 9) < 0:
            return FALLS_SHORT
        return REPRODUCED

    def _beyond(self, limit: float, found: Estimate) -> tuple[float, float]:
        """Ends of an interval as distances from a limit, positive on the side of the claim; the lower one first.

        Rounded, since a mean of correlations that is 0 on paper may come out as 1e-17.
        """
        low, high = sorted(round(self.side * (end - limit), 9) for end in (found.low, found.high))
        return low, high

    @property
    def holds(self) -> bool:
        """Whether it is as the claim says; what decides nothing holds."""
        return self.outcome in (REPRODUCED, SHOWN)

    @property
    def reason(self) -> str:
        """Why it cannot be tested; empty where it can."""
        if self.outcome != NOT_TESTABLE:
            return ""
        return self.premise or self._ceiling

    @property
    def _ceiling(self) -> str:
        """`best` in words, where it keeps the number from its limit; else empty."""
        if self.best is None or self._beyond(self.limit, self.best)[0] > 0:
            return ""
        return f"{self.best_of} {self.best.text(self.digits)}"

    def __str__(self) -> str:
        asked = self.limit if self.reach is None else self.reach
        limit, reach = (f"{number:g}".replace("-", "−") for number in (self.limit, asked))
        remark = {
            OPPOSITE: f"wholly {'above' if self.side == BELOW else 'below'} {limit}" if self.limit else "the other way",
            UNDECIDED: f"the interval holds {limit}",
            FALLS_SHORT: f"short of {reach}",
            NOT_TESTABLE: self.premise or f"the interval holds {limit}",
            SHOWN: "not judged",
        }.get(self.outcome, "")
        ceiling = "" if self.outcome == NOT_TESTABLE else self._ceiling  # there the verdict names it
        notes = "; ".join(filter(None, [remark, self.note, ceiling]))
        return f"{self.name} {self.estimate.text(self.digits)}{f' ({notes})' if notes else ''}"


def below(
    name: str,
    values: Sequence[float] | np.ndarray,
    digits: int = 3,
    *,
    limit: float = 0.0,
    start: float | None = None,
    note: str = "",
) -> Part:
    """The interval of the mean must lie below the limit."""
    return Part(name, bootstrap(values), BELOW, limit, start=start, note=note, digits=digits)


def above(
    name: str, values: Sequence[float] | np.ndarray, digits: int = 3, *, limit: float = 0.0, start: float | None = None
) -> Part:
    """The interval of the mean must lie above the limit."""
    return Part(name, bootstrap(values), ABOVE, limit, start=start, digits=digits)


def follows(name: str, values: Sequence[float] | np.ndarray) -> Part:
    """The mean correlation must be at most -0.8, and its interval lie below 0."""
    return Part(name, bootstrap(values), BELOW, reach=-0.8)


def shown(name: str, values: Sequence[float] | np.ndarray, digits: int = 3, *, footnote: str = "") -> Part:
    """A mean that is printed and decides nothing."""
    return Part(name, bootstrap(values), None, footnote=footnote, digits=digits)


@dataclass(frozen=True)
class Conclusion:
    """What follows from the numbers of a claim.

    Attributes:
        outcome: `REPRODUCED`, one of `FAILURES`, or `NOT_TESTABLE`.
        decisive: The number that it hangs on: the first with this outcome.
        verdict: The outcome in words, with its reason.
        granted: What had to be granted for it to be reproduced; mostly empty.
    """

    outcome: str
    decisive: Part
    verdict: str
    granted: str = ""


def conclude(parts: Sequence[Part]) -> Conclusion:
    """The outcome of a claim from its numbers, of which one at least must decide something.

    Example:
        >>> at = Estimate(-0.6, -0.8, -0.4, 5)
        >>> conclude([Part("change", at, BELOW)]).verdict
        'reproduced'
        >>> conclude([Part("change", at, ABOVE)]).verdict
        'not reproduced: the opposite'
        >>> conclude([Part("change", at, BELOW, limit=-0.7)]).verdict
        'not reproduced: undecided'
        >>> conclude([Part("correlation", at, BELOW, reach=-0.8)]).verdict
        'not reproduced: falls short'
    """
    judged = [part for part in parts if part.outcome != SHOWN]
    for outcome in _WORST_FIRST:
        part = next((part for part in judged if part.outcome == outcome), None)
        if part is not None:
            verdict = f"{NOT_TESTABLE}: {part.reason}" if outcome == NOT_TESTABLE else f"{NOT_REPRODUCED}: {outcome}"
            return Conclusion(outcome, part, verdict)
    granted = " and ".join(part.clause for part in judged if part.clause)
    return Conclusion(REPRODUCED, judged[0], REPRODUCED + (f" only when {granted}" if granted else ""), granted)


@dataclass(frozen=True)
class Claim:
    """One claim under one condition, and what the ledger says of it.

    Attributes:
        experiment: Whose rows were read.
        figure: Of the paper, for example ``Fig. 1``.
        paper: What it says.
        source: ``paper``, or ``ours`` for a claim that this book adds.
        condition: What it was tested under: a regime, an arm; empty if there is one only.
        measured: What came out, in a sentence with numbers.
        estimate: The deciding number; not a number where nothing was judged.
        low: Lower end of its 95 % interval over seeds.
        high: Upper end.
        best: What a subject without fault would have brought, for claims that one metric is better than another.
        seeds: Number of seeds that have all the runs it needs.
        parts: Number of encoders and language models among them.
        runs: Number of runs read.
        outcome: ``reproduced``, ``the opposite``, ``undecided``, ``falls short``, ``not testable here`` or ``not
            measured``.
        granted: What else had to be granted for it to be reproduced; mostly empty.
        verdict: The outcome in words, with its reason.
        criterion: What had to hold.
        footnotes: What a reader should know once, under a table.
        command: What repeats it.
    """

    experiment: str
    figure: str
    paper: str
    source: str
    condition: str
    measured: str
    estimate: float
    low: float
    high: float
    best: Estimate | None
    seeds: int
    parts: int
    runs: int
    outcome: str
    granted: str
    verdict: str
    criterion: str
    footnotes: tuple[str, ...]
    command: str


def grouped(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Claims, each with its conditions, in the order in which they come."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.experiment, claim.paper), []).append(claim)
    return list(groups.values())


def overall(claims: Sequence[Claim]) -> str:
    """One verdict for a claim that was tested under several conditions; it says which condition did what.

    Example:
        >>> overall([])
        'not measured'
    """
    judged = [claim for claim in claims if claim.outcome != NOT_MEASURED]
    if not judged:
        return NOT_MEASURED
    alike = len({(claim.outcome, claim.granted) for claim in judged}) == 1

    def at(some: Sequence[Claim]) -> str:
        """Under which of the conditions; nothing where all did the same."""
        places = [PLACES.get(claim.condition, claim.condition) for claim in some]
        granted = [f" when {claim.granted}" if claim.granted else "" for claim in some]
        if alike:
            return granted[0].strip()
        return " and ".join(map(str.__add__, places, granted))

    by_outcome = {claim.outcome: [c for c in judged if c.outcome == claim.outcome] for claim in judged}
    good, void = by_outcome.get(REPRODUCED), by_outcome.get(NOT_TESTABLE)
    failed = [outcome for outcome in FAILURES if outcome in by_outcome]
    said = []
    if good:
        only = "" if alike and not good[0].granted else " only"
        said.append(f"{REPRODUCED}{only} {at(good)}".strip())
    if failed:
        where = {outcome: at(by_outcome[outcome]) for outcome in failed}
        if good:
            said.append(f"not {', '.join(f'{place} ({outcome})' for outcome, place in where.items())}")
        else:
            each = (f"{outcome} {place}".strip() for outcome, place in where.items())
            said.append(f"{NOT_REPRODUCED}: {', '.join(each)}")
    if void:
        reasons = {claim.verdict.removeprefix(NOT_TESTABLE) for claim in void}
        said.append(f"{NOT_TESTABLE} {at(void)}".strip() + (reasons.pop() if len(reasons) == 1 else ""))
    missing = [claim.condition for claim in claims if claim.outcome == NOT_MEASURED]
    return "; ".join(said) + (f" ({', '.join(missing)}: {NOT_MEASURED})" if missing else "")


IN_PART = "reproduced in part"


def standing(claims: Sequence[Claim]) -> str:
    """Where one claim stands over its conditions, in a word, to be counted.

    Returns:
        `REPRODUCED` (under every condition that was measured, nothing granted), `IN_PART` (under some, or with a
        grant), `OPPOSITE` (under none, and the opposite under one at least), `UNDECIDED` (under none, no opposite),
        `NOT_TESTABLE` or `NOT_MEASURED`.
    """
    judged = [claim for claim in claims if claim.outcome != NOT_MEASURED]
    outcomes = {claim.outcome for claim in judged}
    if REPRODUCED in outcomes:
        return IN_PART if len(outcomes) > 1 or any(claim.granted for claim in judged) else REPRODUCED
    if OPPOSITE in outcomes:
        return OPPOSITE
    if outcomes & set(FAILURES):
        return UNDECIDED
    return NOT_TESTABLE if outcomes else NOT_MEASURED
