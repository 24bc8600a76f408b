"""What chapter 13 tables, draws and says is what stands in the rows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlib.lab import staging, verdicts
from mirlib.lab.closing import stages
from mirlib.lab.outcomes import OPPOSITE, REPRODUCED
from mirlib.lab.protocols import PROTOCOLS

ACCURACY = {"full, clean": 0.6, "full, noisy": 0.5, "mid, clean": 0.55}
DIGITS = {"before": 0.3, "short": 0.5, "long": 0.6, "direct": 0.53}


def metrics(arm, run):
    noise = (run.seed - 2) * 1e-3
    found = measured(1.0 - noise, ACCURACY.get(arm, 0.5) + noise * (arm != "mid, noisy"), perplexity=2.0 + run.seed)
    found["stage_one"]["curve"] = [[2, 4.0], [4, 2.0], [6, 1.0 + noise]]
    if arm == "new domain":
        found["after_stage_one"] = {
            time: {"digits": value + noise * len(time), "shapes": 0.6 - value / 10} for time, value in DIGITS.items()
        }
    return found


@pytest.fixture(scope="module")
def rows():
    return rows_of("stages", metrics)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_what_is_compared_are_arms_of_the_protocol():
    for name, pairs in staging.COMPARED.items():
        assert {arm for pair in pairs.values() for arm in pair} <= set(PROTOCOLS[name].arms)
    assert staging.COMPARED["masks"]["2048 pairs: prefix − causal"] == ("2048 pairs, prefix", "2048 pairs, causal")


def test_levels_and_differences_are_those_of_the_rows(rows):
    levels = staging.levels("stages", rows)
    assert list(levels.index) == list(PROTOCOLS["stages"].arms)
    assert levels.loc["full, clean", "accuracy"].startswith("0.600 [")
    found = staging.differences("stages", rows)
    np.testing.assert_allclose(found["full captions: clean − noisy"], [0.1] * 5)
    np.testing.assert_allclose(found["mid captions: clean − noisy"], 0.05 + np.arange(-2, 3) * 1e-3)


def test_perplexity_is_not_compared_between_captions_of_different_kinds(rows):
    assert "captions: full, clean − mid, noisy" not in staging.differences("stages", rows, "perplexity")
    table = staging.changes("stages", rows)
    assert table.loc["captions: full, clean − mid, noisy", "perplexity"] == "void: other texts"
    assert table.loc["full captions: clean − noisy", "perplexity"].startswith("+0.000")


def test_only_seeds_that_have_both_arms_are_compared():
    some = rows_of("stages", lambda arm, run: metrics(arm, run) if arm != "full, noisy" or run.seed < 2 else None)
    assert len(staging.differences("stages", some)["full captions: clean − noisy"]) == 2
    said = staging.reading("stages", some)
    assert not any(sentence.startswith("full captions") for sentence in said)
    assert said[-1] == "2 comparisons of stages have fewer than 5 seeds so far."


def test_sentences_say_what_is_decided(rows):
    said = staging.reading("stages", rows)
    assert said[0] == "full captions: clean − noisy: accuracy +0.100 [+0.100, +0.100] (higher)."
    assert "(undecided)" in next(sentence for sentence in said if sentence.startswith("four stages − one, frozen"))
    assert "on shapes −0.020 [−0.020, −0.020] (lower)" in said[-1]


def test_advice_follows_from_where_a_claim_stands(rows):
    claims = verdicts.judge(PROTOCOLS["stages"], rows)
    said = staging.advice(claims)
    by_claim = staging._ADVICE
    assert said == [
        by_claim[stages.FASTER][""],  # accuracy is higher, but perplexity is the same
        by_claim[stages.QUARTER][""],
        by_claim[stages.WORK][OPPOSITE],
        by_claim[stages.FOUR][""],
        by_claim[stages.ADAPTS][REPRODUCED],
    ]
    assert staging.advice(verdicts.judge(PROTOCOLS["stages"], [])) == []


def test_the_window_of_a_smoothed_curve_looks_back():
    assert staging.smoothed(np.array([4.0, 2.0, 0.0, 6.0]), 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    np.testing.assert_allclose(staging.smoothed(np.ones((2, 20))), 1.0)


def test_figures_draw_the_rows(rows):
    figure = staging.figure_changes("stages", rows, ["full captions: clean − noisy", "four stages − one, frozen"])
    left, _ = figure.axes
    assert left.get_title() == "Accuracy: 1 of 2 above 0, 0 below"
    assert [tick.get_text() for tick in left.get_yticklabels()][0] == "full captions: clean − noisy"

    ax = staging.figure_loss_curves(staging.curves(rows))
    assert [line.get_label() for line in ax.lines] == ["full, clean", "full, noisy", "mid, clean", "mid, noisy"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [4.0, 3.0, 7 / 3])

    ax = staging.figure_adaptation(staging.adapted(rows))
    assert ax.get_title() == "A short adaptation: digits +0.20, shapes −0.02"
    means = [bars.lines[0].get_ydata()[0] for bars in ax.containers]
    np.testing.assert_allclose(means[4:], list(DIGITS.values()))


def test_without_rows_everything_says_so():
    assert list(staging.levels("masks", []).columns) == list(staging.changes("masks", []).columns)
    assert staging.reading("masks", []) == ["6 comparisons of masks have fewer than 5 seeds so far."]
    assert staging.figure_adaptation(staging.adapted([])).texts[0].get_text() == "no run in the ledger yet"
    assert staging.figure_loss_curves(staging.curves([])).texts[0].get_text() == "no run in the ledger yet"
    for ax in staging.figure_changes("masks", []).axes:
        assert "above" not in ax.get_title()
