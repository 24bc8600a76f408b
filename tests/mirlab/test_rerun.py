"""A row of the ledger is run again from the weights that are shipped, and comes out as it stands there."""

from pathlib import Path

import pytest

from mirlab import runs
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.verdicts import TOLERANCE
from mirlab.ledger import Ledger, key_of
from mirlab.model import miniature, parts
from mirlib.loading import load_miniature

EXPERIMENT = "data_scale"
LEDGER = Path(__file__).parents[2] / "results" / "0.1" / f"{EXPERIMENT}.jsonl"


def cheapest():
    """The cheapest run in the ledger that needs no parts but the shipped ones, and its row; None if there is none."""
    rows = {row["key"]: row for row in Ledger(LEDGER).rows()}
    there = [
        (run, rows[key])
        for run in PROTOCOLS[EXPERIMENT].runs
        if run.parts == parts.SHIPPED and run.size == "base" and (key := key_of(run.configuration)) in rows
    ]
    return min(there, key=lambda found: found[0].cost, default=None)


def test_the_shipped_parts_are_loaded_without_a_cache(tmp_path):
    model, _, fingerprint = parts.load(parts.SHIPPED, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    shipped, _ = load_miniature()
    assert fingerprint == miniature.fingerprint(shipped, without="multi_modal_projector")
    assert miniature.fingerprint(model) == miniature.fingerprint(shipped)


def test_the_cheapest_row_that_the_shipped_parts_can_make_comes_out_again(tmp_path):
    found = cheapest()
    if found is None:
        pytest.skip(
            f"NOT RUN AGAIN: {LEDGER.name} has no row of the shipped parts; `mir lab run {EXPERIMENT}` makes it"
        )
    run, row = found
    again = runs.execute(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"features"}  # nothing was trained but the run itself
    assert again["parts"] == row["parts"], "the row was made from other weights than those that are shipped"
    differences = {
        "mir": again["metrics"]["mir"]["value"] - row["metrics"]["mir"]["value"],
        "accuracy": again["metrics"]["accuracy"]["mean"] - row["metrics"]["accuracy"]["mean"],
    }
    assert again["metrics"]["accuracy"]["mean"] > 0  # the metrics are there, and are numbers
    for name, difference in differences.items():
        assert abs(difference) <= TOLERANCE[name], f"{name} differs by {difference:+.4f}, more than {TOLERANCE[name]}"
