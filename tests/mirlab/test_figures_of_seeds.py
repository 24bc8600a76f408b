"""The figure of seeds draws every seed that it is given; intervals are those of the first edition's verdicts."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlab.first import figures
from mirlab.first.estimates import bootstrap


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
