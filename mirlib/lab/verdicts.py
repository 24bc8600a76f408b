"""What the ledger's rows say about the paper's claims."""

from __future__ import annotations

from typing import Any

from mirlib.lab.protocols import Protocol


def report(protocol: Protocol, rows: list[dict[str, Any]]) -> str:
    """An experiment's table and verdict as text."""
    return f"{protocol.name}: {len(rows)} of {len(protocol.runs)} runs"
