"""What is said of the zoo's rows, from rows whose truth is known; and figures that draw what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_zoo import ARMS, by_rank, ledger_of

from mirlib.lab import tables, zoo, zoo_reading
from mirlib.lab.closing.zoo import SWEEPS


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
    assert set(by_name) == set(zoo.ALL)
    for name, by_sweep in by_name.items():
        assert set(by_sweep) == {zoo_reading.ALL_SETTINGS, *SWEEPS}
        wrong = name in ("mir", "norm_only", "rmg")
        for values in by_sweep.values():
            assert values.tolist() == [-1.0 if wrong else 1.0] * 5, name
    assert set(zoo_reading.ranked(found)[-3:]) == {"mir", "norm_only", "rmg"}


def test_a_sweep_counts_the_seeds_that_have_all_of_it(found):
    without = found[~((found["arm"] == "matched, qformer") & (found["seed"] == 1))]
    by_sweep = zoo_reading.correlations(without)["ima"]
    assert {over: len(values) for over, values in by_sweep.items()} == {
        "all settings": 4, "data": 5, "rate and norms": 5, "captions": 5, "connectors": 4,
    }  # fmt: skip


def test_measures_that_rank_alike_are_a_family_and_their_opposites_are_none(found):
    names, matrix = zoo_reading.agreement(found)
    assert names[-1] == "accuracy" and len(names) == len(matrix) == len(zoo.ON_ROWS) + 2
    assert np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)
    groups = zoo_reading.families(names, matrix)
    assert sorted(map(len, groups)) == [3, 15]
    assert set(min(groups, key=len)) == {"mir", "norm_only", "rmg"}
    place = {name: i for i, name in enumerate(names)}
    assert matrix[place["mir"], place["ima"]] == -1 and matrix[place["ima"], place["accuracy"]] == 1


def test_bias_is_few_less_many_with_an_interval_and_noise_is_that_between_parts():
    off = zoo_reading.bias(sampled({"mir": 0.3}))
    assert off.loc["mir", "difference"].value == pytest.approx(0.3)
    assert off.loc["ima", "difference"].value == pytest.approx(0)
    assert off.loc["ima", "noise"] == pytest.approx(0.1)
    assert zoo_reading.bias([]).empty


def test_cost_is_the_median_of_what_was_measured():
    assert zoo_reading.cost(sampled({}))["kid"] == (0.5, 4)
    assert all(np.isnan(value) for value in zoo_reading.cost([])["kid"])


def test_spread_is_that_between_settings_within_a_seed(found):
    expected = np.std(np.arange(len(ARMS)), ddof=1)
    assert zoo_reading.spread(found)["ima"] == pytest.approx(expected)
    places = [i for i, arm in enumerate(ARMS) if arm.startswith("matched")]
    assert len(places) == 8
    assert zoo_reading.spread(found, zoo_reading.MATCHED_NORMS)["ima"] == pytest.approx(np.std(places, ddof=1))


def test_likeness_is_the_mean_and_the_lowest_over_the_pairs_of_a_group(found):
    assert zoo_reading.likeness(found, ["ima", "kid", "cka"]) == (1, 1)
    assert zoo_reading.likeness(found, ["ima", "kid", "mir"], zoo_reading.MATCHED_NORMS) == pytest.approx((-1 / 3, -1))
    assert all(np.isnan(zoo_reading.likeness(zoo.table([]), ["ima", "kid"])))


def test_sentences_name_what_is_steady_and_what_lies_above_mir(tmp_path):
    rows = tables.load("zoo", ledger_of(tmp_path, by_rank))
    for row in rows:
        for measure in row["metrics"]["gaps"].values():
            measure["seconds"] = 0.1
    said = zoo_reading.reading(rows)
    assert "MIR, turned, has a correlation of −1.00 [−1.00, −1.00]" in said[0]
    assert "IMA score" in said[1] and "MIR" not in said[1]
    assert said[2].endswith("none.")
    assert "reaches 0.8" in said[5] and "IMA score" in said[5] and "norm-only" not in said[5]
    assert "modality gap" in said[3] and "RMG" not in said[3] and "norm-only" not in said[3]
    table = zoo_reading.summary(rows)
    assert list(table.index[-3:]) != [] and len(table) == len(zoo.ALL)
    assert table.loc["IMA score", "all settings"] == "+1.00 [+1.00, +1.00]"
    assert table.loc["MIR", "captions"] == "−1.00 [−1.00, −1.00]"
    assert table.loc["IMA score", "seconds, 100 pairs"] == "0.10"
    text = zoo_reading.as_markdown(table, "measure")
    assert text.count("\n| ") == len(zoo.ALL) + 1 and "| measure | needs |" in text


def test_without_rows_nothing_is_said_and_nothing_fails():
    empty = zoo.table([])
    assert "nothing is said yet" in zoo_reading.reading([])[0]
    assert zoo_reading.agreement(empty) == ([], pytest.approx(np.zeros((0, 0))))
    assert len(zoo_reading.summary([])) == len(zoo.ALL)
    for ax in (
        zoo_reading.figure_agreement(*zoo_reading.agreement(empty)),
        zoo_reading.figure_zoo_correlations({name: np.array([]) for name in zoo.ALL}),
    ):
        assert "no whole seed" in ax.texts[0].get_text()
        plt.close(ax.figure)


def test_the_figures_draw_the_data_that_they_are_given():
    data = {"ima": np.full(5, 0.5), "mir": np.array([-0.4, -0.2, 0.0, 0.2, 0.4]), "kid": np.full(5, -0.5)}
    ax = zoo_reading.figure_zoo_correlations(data, over="all settings")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IMA score", "MIR", "KID"]
    marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    assert marks == pytest.approx([0.5, 0.0, -0.5])
    assert ax.get_title() == "1 of 2 measures have a higher mean than MIR"
    few = zoo_reading.figure_zoo_correlations({name: values[:3] for name, values in data.items()})
    assert "provisional: 3 seeds" in few.get_title()
    matrix = np.array([[1, 0.8, 0.1], [0.8, 1, -0.3], [0.1, -0.3, 1]])
    drawn = zoo_reading.figure_agreement(["kid", "mmd", "accuracy"], matrix)
    assert np.array_equal(drawn.images[0].get_array(), matrix)
    assert [text.get_text() for text in drawn.texts] == ["", "+0.8", "+0.1", "+0.8", "", "−0.3", "+0.1", "−0.3", ""]
    assert drawn.get_title().startswith("2 measures, one family of")
    for figure in (ax, few, drawn):
        plt.close(figure.figure)
