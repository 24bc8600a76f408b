"""The table of what runs measured on their way: every probe has a loss, whatever the spacing of the curve is."""

from pathlib import Path

import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlab.first import tables
from mirlab.model import train

RESULTS = Path(__file__).parents[2] / "results" / "0.1"


def made(losses):
    """The first run of convergence, its curve thinned as the ledger's is."""

    def metrics(arm, run):
        history = train.state_of(train.History(losses=list(losses), seconds=1.0))
        probes = [{"step": step, **measured()} for step in run.probes]
        return measured() | {"probes": probes, "stage_one": history}

    return rows_of("convergence", metrics, seeds=range(1))[:1]


def test_the_loss_of_a_probe_is_that_of_about_the_twenty_steps_before_it():
    falling = np.linspace(3.0, 1.0, 1024)
    table = tables.probes(made(falling)).set_index("step")
    assert list(table.index) == [64, 128, 256, 512, 768, 1024]
    assert table["loss"].notna().all(), "the curve has a point every ten steps; each probe must find one"
    # The last point ends at most nine steps before the probe, and two points of ten steps are twenty steps.
    for step, loss in table["loss"].items():
        end = step // 10 * 10
        assert loss == pytest.approx(falling[end - 20 : end].mean(), abs=1e-4)


@pytest.mark.parametrize("spacing", [1, 5, 10, 40])
def test_a_probe_finds_a_loss_however_far_the_points_lie_apart(spacing):
    row = made([1.0] * 1024)[0]
    steps = range(spacing, 1025, spacing)
    row["metrics"]["stage_one"]["curve"] = [[step, float(step)] for step in steps]
    table = tables.probes([row]).set_index("step")
    for step, loss in table["loss"].items():
        inside = [point for point in steps if step - 20 < point <= step] or [max(p for p in steps if p <= step)]
        assert loss == pytest.approx(np.mean(inside))


def test_a_probe_before_the_first_point_takes_the_point_that_holds_its_step():
    row = made([1.0] * 1024)[0]
    row["metrics"]["stage_one"]["curve"] = [[100, 2.0], [200, 1.5], [1000, 1.0]]
    assert tables.probes([row])["loss"].tolist() == [2.0, 2.0, 1.5, 1.5, 1.5, 1.0]


@pytest.mark.parametrize("name", ["convergence", "overfitting"])
def test_no_loss_of_the_ledger_is_missing(name):
    table = tables.probes(tables.load_runs(name, RESULTS))
    assert len(table) and table.notna().all(axis=None)
