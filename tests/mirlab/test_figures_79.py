"""Figures of what runs measured on their way, and of what should not move MIR, draw the numbers that they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlab.first import figures
from mirlab.first.estimates import Estimate, bootstrap
from mirlib.plots import TEXT


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def line(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found.get_data()


def test_interval_is_that_of_the_verdicts():
    values = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    found = bootstrap(values)
    np.testing.assert_allclose(figures.interval(values), (found.low, found.high))
    assert np.isnan(figures.interval(values[:1])).all(), "one seed has no interval"


def test_beside_accuracy_draws_means_over_seeds_on_two_axes():
    steps, values = np.array([1.0, 2.0]), np.array([[3.0, 1.0], [5.0, 2.0]])
    ax = figures.figure_beside_accuracy({"MIR": (steps, values)}, (steps, values / 10), ylabel="MIR", boundary=1.5)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    np.testing.assert_allclose(line(ax, "MIR")[1], [4.0, 1.5])
    np.testing.assert_allclose(line(right, "accuracy after stage 2")[1], [0.4, 0.15])
    assert set(line(ax, "second epoch begins")[0]) == {1.5}
    seeds = [drawn.get_ydata() for drawn in ax.get_lines() if drawn.get_label() == "_seed"]
    np.testing.assert_allclose(seeds, values)
    assert ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 2, "panels that stand side by side share their steps"


def test_over_steps_gives_a_regime_one_colour_and_each_series_of_it_one_line_style():
    curve = np.array([1.0, 2.0]), np.array([[2.0, 4.0], [4.0, 8.0]])
    series = {regime: {"in domain": curve, "": curve} for regime in ("high", "matched")}
    ax = figures.figure_over_steps(series, ylabel="perplexity", log=True)
    drawn = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(drawn["high, in domain"].get_ydata(), [3.0, 6.0])
    assert drawn["high, in domain"].get_color() == drawn["high"].get_color() != drawn["matched"].get_color()
    assert drawn["high"].get_linestyle() == drawn["matched"].get_linestyle() != drawn["high, in domain"].get_linestyle()
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    shown = [
        tick.get_text() for tick, at in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True) if low <= at <= high
    ]
    assert {"2", "3", "5"} <= set(shown), "no powers of ten in a narrow range"
    flat = figures.figure_over_steps({"MIR": curve}, ylabel="MIR")
    np.testing.assert_allclose(line(flat, "MIR")[1], [3.0, 6.0])


def test_layers_over_steps_draws_a_line_for_each_step():
    ax = figures.figure_layers_over_steps({8: np.array([[4.0, 2.0]]), 2: np.array([[9.0, 1.0], [7.0, 3.0]])})
    np.testing.assert_allclose(line(ax, "step 2")[1], [8.0, 2.0])
    np.testing.assert_allclose(line(ax, "step 8")[1], [4.0, 2.0])
    assert ax.get_yscale() == "linear", "curves within a factor of ten can be read without a logarithm"
    assert figures.figure_layers_over_steps({2: np.array([[90.0, 3.0]])}).get_yscale() == "log"


def test_seed_values_draws_every_seed_and_says_when_there_is_none():
    ax = figures.figure_seed_values({"template": {"high": np.array([0.1, 0.3])}}, xlabel="change", limits=(0.25,))
    assert any(np.array_equal(drawn.get_xdata(), [0.1, 0.3]) for drawn in ax.get_lines())
    assert set(line(ax, "limit of the protocol")[0]) == {0.25}
    values, other = {"template": {"high": np.array([0.1, 0.3, 0.4])}}, {"high": [False, True, False]}
    crossed = figures.figure_seed_values(values, xlabel="change", crossed=other)
    drawn = [(one.get_marker(), list(one.get_xdata())) for one in crossed.get_lines()]
    assert ("|", [0.1, 0.4]) in drawn and ("x", [0.3]) in drawn
    empty = figures.figure_seed_values({"template": {}}, xlabel="change")
    assert "no run" in empty.texts[0].get_text()


def test_kind_grid_shows_means_and_tells_the_range_of_one_model():
    values = np.array([[[[1.0, 1.2], [2.0, 2.2]]], [[[3.0, 3.2], [2.0, 2.2]]]])  # two models that disagree
    ax = figures.figure_kind_grid(["scenes"], ["news", "code"], values, name="high", chance=0.1)
    assert ax.get_title() == "high\nrange 1.00, by chance 0.10"
    assert [text.get_text() for text in ax.texts] == ["2.10", "2.10"]


def test_moved_draws_the_interval_that_is_judged_and_every_model_by_its_parts():
    data = {"template": {"high": (np.array([0.1, 0.9, 0.2]), Estimate(0.4, 0.1, 0.7, 3))}}
    ax = figures.figure_moved(data, parts={"high": [0, 1, 0]}, limit=0.25)
    hollow = [drawn for drawn in ax.get_lines() if drawn.get_fillstyle() == "none" and len(drawn.get_xdata())]
    assert {drawn.get_marker(): list(drawn.get_xdata()) for drawn in hollow} == {"|": [0.1, 0.2], "x": [0.9]}
    (bar,) = [bars for bars in ax.collections if isinstance(bars, mpl.collections.LineCollection)]
    np.testing.assert_allclose(bar.get_segments()[0][:, 0], [0.1, 0.7])
    assert set(line(ax, "limit of the protocol")[0]) == {0.25}
    empty = figures.figure_moved({}, parts={}, limit=0.25)
    assert "no run" in empty.texts[0].get_text()


def test_counts_are_less_the_mean_of_each_model_at_the_largest_number():
    by_count = {1: np.array([[3.0, 5.0], [5.0, 7.0]]), 10: np.array([[1.0, 3.0], [4.0, 4.0]])}
    ax = figures.figure_counts({"high": by_count}, published={1: 3.5, 10: 3.25}, first=1)
    np.testing.assert_allclose(line(ax, "high")[1], [2.0, 0.0])
    np.testing.assert_allclose(line(ax, "paper's Table 6")[1], [0.25, 0.0])
    (own,) = [drawn for drawn in ax.get_lines() if drawn.get_label() == "high"]
    assert own.get_color() == TEXT, "a regime keeps its colour from panel to panel"
