"""Claims as text: tables for pages of the book, a report for the terminal, and a count.

What is printed here was decided in `mirlab.first.outcomes` and `mirlab.first.verdicts`.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from mirlab.first.outcomes import (
    FAILURES,
    IN_PART,
    NOT_MEASURED,
    NOT_TESTABLE,
    OPPOSITE,
    REPRODUCED,
    UNDECIDED,
    Claim,
    grouped,
    overall,
    standing,
)
from mirlab.first.protocols import Protocol
from mirlab.first.tables import Row, is_run, summary


def listed(words: Sequence[str]) -> str:
    """Words in a row, with commas and an "and".

    Example:
        >>> listed(["loss"]), listed(["loss", "perplexity", "MIR"])
        ('loss', 'loss, perplexity and MIR')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def as_frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a table, one line each."""
    return pd.DataFrame([asdict(claim) for claim in claims])


def _said(claim: Claim) -> str:
    """A claim as it is printed where its source stands beside it."""
    return claim.paper.removesuffix(" (not in the paper)")


def _usual(claims: Sequence[Claim]) -> dict[str, int]:
    """Seeds, sets of parts and runs of most claims that were judged; empty if none was."""
    counts = Counter((c.seeds, c.parts, c.runs) for c in claims if c.outcome != NOT_MEASURED)
    if not counts:
        return {}
    seeds, parts, runs = counts.most_common(1)[0][0]
    return {"seeds": seeds, "sets of parts": parts, "runs": runs}


def _unusual(claim: Claim, usual: dict[str, int]) -> str:
    if claim.outcome == NOT_MEASURED:
        return ""
    own = {"seeds": claim.seeds, "sets of parts": claim.parts, "runs": claim.runs}
    different = [f"{number} {what}" for what, number in own.items() if usual[what] != number]
    return f"; {', '.join(different)}" if different else ""


def footnotes(claims: Sequence[Claim]) -> list[str]:
    """What a reader of these claims should know once."""
    return list(dict.fromkeys(note for claim in claims for note in claim.footnotes))


def markdown(claims: Sequence[Claim], *, experiment: bool = False) -> str:
    """Claims as a Markdown table, one line for each claim and condition, with what all lines share above it.

    Columns are the claim (with its source and the figure; given once for its conditions), the condition where there
    are several, the verdict, and the numbers that decide, each with its interval.

    Args:
        claims: From `mirlab.first.verdicts.judge`.
        experiment: Whether to say which command repeats them.
    """
    usual = _usual(claims)
    conditions = any(claim.condition for claim in claims)
    above = []
    if usual:
        counts = "{seeds} seeds, {sets of parts} sets of parts (encoder and language model), {runs} runs".format(
            **usual
        )
        above.append(
            f"Means over seeds, each with its 95 % interval. Each line has {counts}, where it says nothing else."
        )
    if experiment and claims:
        commands = ", ".join(f"`{command}`" for command in dict.fromkeys(claim.command for claim in claims))
        above.append(f"Repeat them with {commands}.")
    head = ["claim", *["condition"] * conditions, "verdict", "what decides"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for group in grouped(claims):
        for claim in group:
            said = f"{_said(claim)} *({claim.source}, {claim.figure})*" if claim is group[0] else ""
            cells = [said, *[f"*{claim.condition}*" if claim.condition else ""] * conditions, f"**{claim.verdict}**"]
            cells.append(claim.measured + _unusual(claim, usual))
            lines.append(f"| {' | '.join(cells)} |")
    below = [f"- {note}" for note in footnotes(claims)]
    return "\n".join([*[" ".join(above), ""] * bool(above), *lines, *[""] * bool(below), *below])


def short(claims: Sequence[Claim]) -> str:
    """Claims as a Markdown table, one line for each, with one verdict over its conditions."""
    lines = ["| figure | claim | verdict |", "|---|---|---|"]
    for group in grouped(claims):
        ours = " *(ours)*" if group[0].source == "ours" else ""
        lines.append(f"| {group[0].figure} | {_said(group[0])}{ours} | {overall(group)} |")
    return "\n".join(lines)


def in_short(claims: Sequence[Claim]) -> str:
    """How many claims stand where, in sentences of Markdown."""
    if not claims:
        return "No claim was judged."
    groups = grouped(claims)
    where = Counter(map(standing, groups))
    lines = Counter(claim.outcome for claim in claims)
    ours = sum(group[0].source == "ours" for group in groups)
    failed = where[OPPOSITE] + where[UNDECIDED]
    measured = len(groups) - where[NOT_MEASURED]
    if not measured:
        return f"**Of {len(groups)} claims ({ours} of them ours), none is measured yet.**"
    said = [
        f"**Of {len(groups)} claims ({ours} of them ours), {measured} are measured: {where[REPRODUCED]} reproduced "
        f"under every condition, {where[IN_PART]} under some only, {failed} under none"
        + (f", {where[NOT_TESTABLE]} not testable here" if where[NOT_TESTABLE] else "")
        + ".**"
    ]
    if failed:
        said.append(
            f"Of the {failed} under none, the opposite came out under one condition at least for {where[OPPOSITE]}; "
            f"the other {where[UNDECIDED]} are undecided or fall short."
        )
    counted = [(REPRODUCED, REPRODUCED), *((outcome, outcome) for outcome in (*FAILURES, NOT_TESTABLE, NOT_MEASURED))]
    single = ", ".join(f"{lines[outcome]} {name}" for outcome, name in counted if lines[outcome])
    said.append(f"Line by line (claim and condition): {single}.")
    return " ".join(said)


def boxed(table: str, *classes: str) -> str:
    """A Markdown table as a block that scrolls sideways in its own box on a page of the book.

    Lines before and after the table stay outside of the box.

    Args:
        table: With whatever stands above and below it.
        *classes: Of the style sheet, beside ``verdicts``: ``short`` for a table without numbers.

    Example:
        >>> print(boxed("| a |"))
        ```{table}
        :class: verdicts
        <BLANKLINE>
        | a |
        ```
    """
    lines = table.split("\n")
    inside = [number for number, line in enumerate(lines) if line.startswith("|")]
    first, last = inside[0], inside[-1] + 1
    box = ["```{table}", f":class: {' '.join(['verdicts', *classes])}", "", *lines[first:last], "```"]
    return "\n".join([*lines[:first], *box, *lines[last:]])


_WIDTH = 118


def report(protocol: Protocol, rows: Sequence[Row], claims: Sequence[Claim]) -> str:
    """An experiment's protocol, table and verdicts as text of at most 120 columns.

    Args:
        protocol: What was declared.
        rows: The ledger's rows; those of other experiments are passed over.
        claims: What `mirlab.first.verdicts.judge` says of them.
    """
    own = [row for row in rows if row["experiment"] == protocol.name]
    known = sum(map(is_run, own))
    count = f"{protocol.name} ({protocol.figure}): {known} of {len(protocol.runs)} runs"
    if known < len(own):
        count += f"; {len(own) - known} rows that are no run of the protocol are left out"

    def filled(label: str, text: str) -> str:
        return textwrap.fill(text, _WIDTH, initial_indent=f"{label:10}", subsequent_indent=" " * 10)

    sections = [
        "\n".join(
            [
                count,
                filled("question", protocol.question),
                filled("paper", protocol.paper),
                filled("primary", protocol.primary),
            ]
        ),
        _table(protocol, own),
    ]
    for group in grouped(claims):
        source = f"{group[0].figure}, {group[0].source}"
        lines = [
            textwrap.fill(f"{source}: {_said(group[0])}", _WIDTH),
            textwrap.fill(f"verdict: {overall(group)}", _WIDTH, initial_indent="  ", subsequent_indent="    "),
            textwrap.fill(f"criterion: {group[0].criterion}", _WIDTH, initial_indent="  ", subsequent_indent="    "),
        ]
        for claim in group:
            start = f"{claim.condition}: {claim.verdict}. " if claim.condition else ""
            counts = f" ({claim.seeds} seeds, {claim.parts} sets of parts, {claim.runs} runs)"
            counts = "" if claim.outcome == NOT_MEASURED else counts
            text = f"{start}{claim.measured}{counts}"
            lines.append(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    "))
        sections.append("\n".join(lines))
    notes = footnotes(claims)
    if notes:
        sections.append("\n".join(filled("note", note) for note in notes))
    return "\n\n".join(sections)


_SHOWN = {
    "mir": "MIR",
    "norm_only": "norm-only",
    "loss": "loss",
    "perplexity": "PPL",
    "in_context_text": "in-context",
    "discrimination": "discr.",
    "accuracy": "accuracy",
}


def _table(protocol: Protocol, rows: Sequence[Row]) -> str:
    found = summary(protocol, rows, tuple(_SHOWN))
    lines = [["", "runs", *_SHOWN.values()]]
    for arm, line in found.iterrows():
        values = []
        for key in _SHOWN:
            value, half = line[key], (line[f"{key}_high"] - line[f"{key}_low"]) / 2
            digits = 2 if key in ("loss", "perplexity") else 3
            cell = f"{value:.{digits}f}±{half:.{digits}f}"
            values.append("" if np.isnan(value) else re.sub(r"(?<!\d)0\.", ".", cell))
        lines.append([str(arm), str(int(line["runs"])), *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        " ".join([line[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)])
        for line in lines
    ]
    return "\n".join([*aligned, "(mean over seeds ± half of its 95 % interval)"])
