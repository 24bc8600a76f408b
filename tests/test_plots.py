"""Each figure draws the numbers that it is given, and says them in its title: artists are read, never pixels."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlib import plots


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def lines(ax, label):
    """The (x, y) data of the line with this label."""
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return line.get_data()


def test_figure_quantile_matching_joins_equal_quantiles_and_states_the_cost():
    ax = plots.figure_quantile_matching((3.0, 2.0), (0.0, 1.0), pairs=3)
    middle = ax.get_lines()[3].get_xdata()  # after the two outlines and the first pair: the medians
    np.testing.assert_allclose(middle, [3.0, 0.0], atol=1e-12)
    assert "costs 10.0" in ax.get_title()


def test_figure_clouds_draws_its_points_and_arrows():
    vision, text = np.arange(8.0).reshape(4, 2), np.ones((3, 2))
    ax = plots.figure_clouds(vision, text, arrows=np.array([[[0.0, 0.0], [2.0, 5.0]]]))
    offsets = {c.get_label(): c.get_offsets() for c in ax.collections if c.get_label() in ("vision", "text")}
    np.testing.assert_array_equal(offsets["vision"], vision)
    np.testing.assert_array_equal(offsets["text"], text)
    (quiver,) = [c for c in ax.collections if isinstance(c, mpl.quiver.Quiver)]
    assert (quiver.U[0], quiver.V[0]) == (2.0, 5.0)


def test_figure_sampling_bias_draws_the_mean_over_seeds_and_its_slope():
    rows = np.array([10, 100, 1000])
    values = np.array([[2.0, 0.2, 0.02], [4.0, 0.4, 0.04]])
    ax = plots.figure_sampling_bias(rows, {8: values}, {8: values[0]})
    np.testing.assert_allclose(lines(ax, "8 dimensions")[1], [3.0, 0.3, 0.03])
    np.testing.assert_allclose(lines(ax, "first-order bias")[1], values[0])
    assert "n to the −1.00" in ax.get_title()


def test_figure_cancellation_names_the_first_offset_without_a_right_digit():
    errors = {"subtracting": np.array([[1e-3, 2.0, 30.0]] * 3), "merging": np.array([[1e-7, 1e-7, 0.0]] * 3)}
    ax = plots.figure_cancellation(np.array([1.0, 1000.0, 1e6]), errors)
    np.testing.assert_allclose(lines(ax, "subtracting")[1], [1e-3, 2.0, 30.0])
    assert (lines(ax, "merging")[1] > 0).all(), "an error of 0 stays on a logarithmic axis"
    assert ax.get_title().startswith("Subtracting: no digit is right from an offset of 1,000 ")
