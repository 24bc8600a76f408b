"""Figures of arms draw the numbers that they are given, and say so where there are none."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlab.first import figures, verdicts


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
    data = {"MIR": {"none": [1.0, 3.0], "all": [2.0, 2.0]}, "norm-only": {"none": [], "all": [5.0]}}
    ax = figures.figure_arms(data, xlabel="MIR")
    drawn = {(one.get_marker(), tuple(one.get_xdata())): one for one in ax.get_lines()}
    assert ("|", (1.0, 3.0)) in drawn
    assert ("|", (5.0,)) not in drawn, "a single run is its own mark"
    none, both, single = (drawn[mark, (value,)] for mark, value in (("o", 2.0), ("s", 2.0), ("s", 5.0)))
    assert both.get_color() == single.get_color() != none.get_color(), "an arm keeps its colour and mark"
    assert (both.get_markerfacecolor(), single.get_markerfacecolor()) == (both.get_color(), "white")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "all"]


def test_an_arm_has_the_same_mark_beside_its_accuracy_and_a_legend_only_where_it_is_asked_for():
    data = {"none": ([1.0, 3.0], [0.2, 0.4]), "all": ([2.0, 2.0], [0.5, 0.7])}
    with_legend, without = (figures.figure_against_accuracy(data, legend=legend) for legend in (True, False))
    (mark,) = [one for one in without.get_lines() if one.get_label() == "all"]
    assert (mark.get_marker(), mark.get_color()) == (figures.MARKERS[1], figures.COLOURS[1])
    np.testing.assert_allclose(mark.get_xydata(), [[2.0, 0.6]])
    assert without.get_legend() is None
    assert [text.get_text() for text in with_legend.get_legend().get_texts()] == ["none", "all"]


def test_figure_warmup_draws_a_line_for_each_amount_and_joins_the_two_cells_of_the_path():
    data = {2048: {2: [4.0, 5.0], 8: [3.0]}, 8192: {8: [1.0, 2.0]}}
    ax = figures.figure_warmup(data, ylabel="MIR", path=((2048, 2), (8192, 8)))
    np.testing.assert_array_equal(line(ax, "2048 pairs"), [[2, 8], [4.5, 3.0]])
    np.testing.assert_array_equal(line(ax, "8192 pairs"), [[8], [1.5]])
    (arrow,) = ax.texts
    assert (arrow.xyann, arrow.xy) == ((2, 4.5), (8, 1.5))
    assert ax.get_xlabel() == "warm-up steps"
    without = figures.figure_warmup({2048: {2: [4.0]}}, ylabel="MIR", path=((2048, 2), (8192, 8)))
    assert not without.texts, "an end of the path is missing"


def test_figure_arms_against_accuracy_draws_the_means_in_order_with_intervals():
    arms = [([2.0, 4.0], [0.2, 0.4]), ([1.0, 1.0], [0.5, 0.7])]
    ax = figures.figure_arms_against_accuracy({"high": arms, "low": []}, xlabel="MIR")
    bars = [one for one in ax.containers if one.get_label() == "high"]
    np.testing.assert_allclose(bars[0].lines[0].get_data(), [[3.0, 1.0], [0.3, 0.6]])
    across = bars[0].lines[2][0].get_segments()
    np.testing.assert_allclose([one[:, 0] for one in across], [[2.0, 4.0], [1.0, 1.0]])
    assert len(ax.containers) == 1, "a series without an arm is left out"


def test_an_empty_ledger_gives_a_figure_that_says_so():
    empty = verdicts.frame([])
    assert figures.by_level(empty, ["a"], "mir") == {}
    for ax in (
        figures.figure_by_pairs({"MIR": {}}, ylabel="MIR"),
        figures.figure_arms({"MIR": {}}, xlabel="MIR"),
        figures.figure_warmup({2048: {}}, ylabel="MIR"),
        figures.figure_arms_against_accuracy({"high": []}, xlabel="MIR"),
    ):
        assert ax.texts[0].get_text() == "no runs in the ledger yet"
