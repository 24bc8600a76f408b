"""Figures of what runs measured on their way, and of what should not move MIR, draw the numbers that they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlib.lab import figures
from mirlib.lab.estimates import bootstrap


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


def test_layers_over_steps_draws_a_line_for_each_step():
    ax = figures.figure_layers_over_steps({8: np.array([[4.0, 2.0]]), 2: np.array([[9.0, 1.0], [7.0, 3.0]])})
    np.testing.assert_allclose(line(ax, "step 2")[1], [8.0, 2.0])
    np.testing.assert_allclose(line(ax, "step 8")[1], [4.0, 2.0])


def test_seed_values_draws_every_seed_and_says_when_there_is_none():
    ax = figures.figure_seed_values({"template": {"high": np.array([0.1, 0.3])}}, xlabel="change", limits=(0.25,))
    assert any(np.array_equal(drawn.get_xdata(), [0.1, 0.3]) for drawn in ax.get_lines())
    assert set(line(ax, "limit of the protocol")[0]) == {0.25}
    empty = figures.figure_seed_values({"template": {}}, xlabel="change")
    assert "no run" in empty.texts[0].get_text()


def test_kind_grid_tells_the_range_of_kinds_from_that_of_draws():
    values = np.array([[[[1.0, 1.2], [2.0, 2.2]]]])  # one model, one kind of picture, two texts, two draws
    ax = figures.figure_kind_grid(["scenes"], ["news", "code"], values, name="high")
    assert ax.get_title() == "high: the kinds span 1.00, draws of one kind 0.20"
    assert [text.get_text() for text in ax.texts] == ["1.10", "draws 0.20", "2.10", "draws 0.20"]


def test_counts_are_less_the_mean_of_each_model_at_the_largest_number():
    by_count = {1: np.array([[3.0, 5.0], [5.0, 7.0]]), 10: np.array([[1.0, 3.0], [4.0, 4.0]])}
    ax = figures.figure_counts({"high": by_count}, published={1: 3.5, 10: 3.25})
    np.testing.assert_allclose(line(ax, "high")[1], [2.0, 0.0])
    np.testing.assert_allclose(line(ax, "paper's Table 6")[1], [0.25, 0.0])
