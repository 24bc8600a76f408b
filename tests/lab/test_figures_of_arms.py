"""Figures of arms draw the numbers that they are given, and say so where there are none."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlib.lab import figures, verdicts


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def line(ax, label):
    (found,) = [one for one in ax.get_lines() if one.get_label() == label]
    return found.get_data()


def test_figure_by_pairs_draws_the_mean_over_seeds_of_the_amounts_that_are_there():
    rows = rows_of("data_scale", lambda arm, run: None if run.stage_one.pairs == 512 else measured(mir=run.seed))
    values = figures.by_level(verdicts.frame(rows), ["high, 2048 pairs", "high, 8192 pairs", "high, 512 pairs"], "mir")
    ax = figures.figure_by_pairs({"MIR": values}, ylabel="MIR", references={"null": 0.9})
    np.testing.assert_array_equal(line(ax, "MIR"), [[2048, 8192], [2, 2]])
    np.testing.assert_array_equal(line(ax, "null")[1], [0.9, 0.9])


def test_figure_arms_draws_each_seed_and_the_mean():
    ax = figures.figure_arms({"MIR": {"none": [1.0, 3.0], "all": [2.0, 2.0]}}, xlabel="MIR")
    drawn = [(one.get_marker(), list(one.get_xdata())) for one in ax.get_lines()]
    assert ("|", [1.0, 3.0]) in drawn
    assert drawn.count(("o", [2.0])) == 2, "the means of both arms"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "all"]


def test_an_empty_ledger_gives_a_figure_that_says_so():
    empty = verdicts.frame([])
    assert figures.by_level(empty, ["a"], "mir") == {}
    for ax in (figures.figure_by_pairs({"MIR": {}}, ylabel="MIR"), figures.figure_arms({"MIR": {}}, xlabel="MIR")):
        assert ax.texts[0].get_text() == "no runs in the ledger yet"
