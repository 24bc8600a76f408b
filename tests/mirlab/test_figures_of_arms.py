"""Figures of arms draw the numbers that they are given, and say so where there are none."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlab.first import figures


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def line(ax, label):
    (found,) = [one for one in ax.get_lines() if one.get_label() == label]
    return found.get_data()


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
