"""Each figure draws the numbers that it is given, and says them in its title: artists are read, never pixels."""

import os
import subprocess
import sys

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


def test_a_first_figure_leaves_the_interactive_mode_of_a_notebook_on():
    program = """
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance()
import matplotlib
from mirlib import plots
plots.new_axes()
assert matplotlib.is_interactive()
"""
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


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


def test_figure_lvlm_says_how_large_each_part_is():
    counts = {"vision encoder": 40, "projector": 10, "language model": 50}
    ax = plots.figure_lvlm({"layers": 7, "vision_tokens": 36, "encoder_dim": 8, "dim": 16, "parameters": counts})
    said = " ".join(text.get_text() for text in ax.texts)
    assert "layer K = 7" in said and "36 vision tokens" in said and "projector\n10 weights" in said


def test_figure_pictures_shows_each_picture_in_the_line_of_its_kind():
    black, white = np.zeros((10, 20, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)
    ax = plots.figure_pictures({"dark": [black, black], "light": [white, white]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dark", "light"]
    brightness = [image.get_array().mean() for image in ax.get_images()]
    assert brightness == [0, 0, 255, 255]


def test_figure_training_draws_loss_and_mir_on_their_own_axes():
    ax = plots.figure_training({"losses": [4.0, 2.0, 1.0], "mir": {1: 0.5, 3: 0.75}, "zeroed_rows": 0.9})
    np.testing.assert_array_equal(lines(ax, "loss (left)"), [[1, 2, 3], [4.0, 2.0, 1.0]])
    right = ax.figure.axes[-1]
    np.testing.assert_array_equal(lines(right, "MIR (right)"), [[1, 3], [0.5, 0.75]])
    assert lines(right, "vision rows zeroed (right)")[1][0] == 0.9
    assert ax.get_title() == "Step 3: loss 4.00 → 1.00, MIR 0.50 → 0.75"
    alone = plots.figure_training({"losses": [4.0], "mir": {}, "zeroed_rows": None})
    assert alone.figure.axes == [alone]


def test_wilson_interval_is_that_of_the_books():
    low, high = plots.wilson_interval(np.array([0.5, 0.0]), np.array([100, 10]))
    np.testing.assert_allclose(low, [0.4038, 0.0], atol=1e-4)
    np.testing.assert_allclose(high, [0.5962, 0.2775], atol=1e-4)
