"""What is said of the zoo's rows, from rows whose truth is known; and figures that draw what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from test_zoo import by_rank, ledger_of

from mirlab.first import tables, zoo_reading
from mirlab.first import zoo_table as zoo
from mirlab.first.closing.zoo import SWEEPS


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return zoo.table(tables.load("zoo", ledger_of(tmp_path_factory.mktemp("results"), by_rank)))


def sampled(differences):
    """Rows with a value of 1 for 1000 pairs, and three parts of 100 around it; `differences` by measure."""
    return [
        {
            "metrics": {
                "gaps": {name: {"seconds": 0.5} for name in zoo.ON_ROWS},
                "samples": {
                    name: {"many": 1.0, "few": [1 + differences.get(name, 0) + e for e in (-0.1, 0, 0.1)], "seconds": 4}
                    for name in zoo.ON_ROWS
                },
            }
        }
        for _ in range(5)
    ]


def test_correlations_have_a_value_a_seed_over_all_settings_and_in_every_sweep(found):
    by_name = zoo_reading.correlations(found)
    assert set(by_name) == set(zoo.ALL) - {"rmg", "cka", "cka_debiased", "svcca", "mutual_knn"}
    for name, by_sweep in by_name.items():
        assert set(by_sweep) == {zoo_reading.ALL_SETTINGS, *SWEEPS}
        wrong = name in ("mir", "norm_only", "a_score")
        for values in by_sweep.values():
            assert values.tolist() == [-1.0 if wrong else 1.0] * 5, name
    assert set(zoo_reading.ranked(found)[-3:]) == {"mir", "norm_only", "a_score"}


def test_a_sweep_counts_the_seeds_that_have_all_of_it(found):
    without = found[~((found["arm"] == "matched, qformer") & (found["seed"] == 1))]
    by_sweep = zoo_reading.correlations(without)["ima"]
    assert {over: len(values) for over, values in by_sweep.items()} == {
        "all settings": 4, "data": 5, "rate and norms": 5, "captions": 5, "connectors": 4,
    }  # fmt: skip


def test_bias_is_few_less_many_with_an_interval_and_noise_is_that_between_parts():
    off = zoo_reading.bias(sampled({"mir": 0.3}))
    assert off.loc["mir", "difference"].value == pytest.approx(0.3)
    assert off.loc["ima", "difference"].value == pytest.approx(0)
    assert off.loc["ima", "noise"] == pytest.approx(0.1)
    assert zoo_reading.bias([]).empty


def test_likeness_is_the_mean_and_the_lowest_over_the_pairs_of_a_group(found):
    assert zoo_reading.likeness(found, ["ima", "kid", "cmmd"]) == (1, 1)
    assert zoo_reading.likeness(found, ["ima", "kid", "mir"], zoo_reading.MATCHED_NORMS) == pytest.approx((-1 / 3, -1))
    assert all(np.isnan(zoo_reading.likeness(zoo.table([]), ["ima", "kid"])))


def test_measures_that_rank_alike_stand_together_and_accuracy_stands_last(found):
    names, matrix = zoo_reading.agreement(found)
    assert names[-1] == "accuracy" and len(names) == len(matrix) == len(zoo_reading.unlabelled()) + 2 == 14
    assert np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)
    places = sorted(names.index(name) for name in ("mir", "norm_only", "a_score"))
    assert places in ([0, 1, 2], [10, 11, 12])
    assert matrix[names.index("mir"), names.index("ima")] == -1 and matrix[names.index("ima"), -1] == 1


def test_the_interval_over_seeds_is_students():
    values = [0.1, 0.4, 0.3, 0.9, 0.2]
    estimate = zoo_reading.over_seeds(values)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
    assert estimate.value == pytest.approx(np.mean(values)) and estimate.seeds == 5


def test_without_rows_nothing_is_said_and_nothing_fails():
    empty = zoo.table([])
    assert zoo_reading.agreement(empty) == ([], pytest.approx(np.zeros((0, 0))))
    for ax in (
        zoo_reading.figure_agreement(*zoo_reading.agreement(empty)),
        zoo_reading.figure_zoo_correlations({name: np.array([]) for name in zoo.RANKED}),
    ):
        assert "no whole seed" in ax.texts[0].get_text()
        plt.close(ax.figure)


def test_the_figures_draw_the_data_that_they_are_given():
    data = {"ima": np.full(5, 0.5), "mir": np.array([-0.4, -0.2, 0.0, 0.2, 0.4]), "kid": np.full(5, -0.5)}
    ax = zoo_reading.figure_zoo_correlations(data, over="all settings")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IMA score", "MIR", "KID"]
    marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    assert marks == pytest.approx([0.5, 0.0, -0.5])
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert bars[1] == pytest.approx(stats.ttest_1samp(data["mir"], 0).confidence_interval())
    matrix = np.array([[1, 0.8, 0.1], [0.8, 1, -0.3], [0.1, -0.3, 1]])
    drawn = zoo_reading.figure_agreement(["kid", "mmd", "accuracy"], matrix)
    assert np.array_equal(drawn.images[0].get_array(), matrix)
    assert [text.get_text() for text in drawn.texts] == ["", "+0.8", "+0.1", "+0.8", "", "−0.3", "+0.1", "−0.3", ""]
    for figure in (ax, drawn):
        plt.close(figure.figure)
