"""What chapter 13 tables, draws and says is what stands in the rows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlab.first import staging, verdicts
from mirlab.first.closing import stages
from mirlab.first.outcomes import OPPOSITE, REPRODUCED
from mirlab.first.protocols import PROTOCOLS

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
    undecided = next(sentence for sentence in said if sentence.startswith("Undecided in accuracy"))
    assert "four stages − one, frozen +0.000 [+0.000, +0.000], by a hair" in undecided
    assert "on shapes −0.020 [−0.020, −0.020] (lower)" in said[-2]
    assert said[-2].endswith("behind stage 2 on digits alone by 0.230 [0.230, 0.230].")
    assert said[-1].startswith("Accuracy decides 6 of these 10 comparisons. In 0 of them the better arm has")


def test_what_mir_says_beside_accuracy_is_counted():
    def made(arm, run):
        found = metrics(arm, run)
        found["mir"]["value"] = {"full, noisy": 2.0, "alignment, four stages": 3.0}.get(arm, 1.0)
        return found

    (said,) = staging.beside_mir(rows_of("stages", made))
    assert said == (
        "Accuracy decides 6 of these 10 comparisons. In 2 of them the better arm has the lower MIR, in 0 the higher "
        "one, and in 4 the interval of MIR's difference holds 0. Where accuracy does not decide, MIR does in 3 of 4: "
        "512 clean − 2048 noisy pairs; four stages − one, frozen; four stages − one, all learns."
    )
    assert staging.beside_mir(rows_of("stages", made, seeds=range(3))) == []


def test_more_data_under_the_causal_mask_give_the_scale():
    def made(arm, run):
        return measured(1.0, 0.7 if arm == "8192 pairs, causal" else 0.5)

    assert staging.reading("masks", rows_of("masks", made))[-1] == (
        "For scale: 8192 pairs in place of 2048, both causal, move accuracy by +0.200 [+0.200, +0.200]."
    )


def test_arms_of_a_question_are_shown_alone_and_fewer_pairs_first(rows):
    assert list(staging.levels("stages", rows, staging.SHARES).index) == [
        "full, clean",
        "shares, 1024 + 2048",
        "shares, 2560 + 512",
    ]
    assert staging.CAPTIONS + staging.SHARES + staging.ALIGNMENT == tuple(staging.COMPARED["stages"])
    masks = staging.levels("masks", rows_of("masks", lambda arm, run: measured(1.0, 0.5)))
    assert [name.partition(" ")[0] for name in masks.index] == ["2048"] * 3 + ["8192"] * 3
    assert "2048 pairs, vision both ways" in masks.index


def test_a_budget_of_pictures_is_not_one_of_steps():
    table = staging.budgets()
    assert set(table["pictures, stage 1"] + table["pictures, stage 2"]) == {3072}
    assert table["steps together"].tolist() == [192, 288, 336]


def test_adaptation_is_compared_within_a_seed(rows):
    table = staging.adaptation_changes(rows)
    assert list(table.columns) == ["accuracy on digits", "accuracy on shapes"]
    assert table.loc["short − before", "accuracy on shapes"] == "−0.020 [−0.020, −0.020]"
    assert table.loc["short − digits alone", "accuracy on digits"].startswith("−0.030")
    assert staging.adaptation_changes([]).empty


def test_advice_follows_from_where_a_claim_stands(rows):
    claims = verdicts.judge(PROTOCOLS["stages"], rows)
    said = staging.advice(claims, rows)
    by_claim = staging._ADVICE
    same = " Accuracy: +0.000 [+0.000, +0.000]."
    assert said == [
        by_claim[stages.FASTER][""],  # accuracy is higher, but perplexity is the same
        by_claim[stages.QUARTER][""] + same,
        by_claim[stages.WORK][OPPOSITE],
        by_claim[stages.FOUR][""] + same,
        by_claim[stages.AT_ONCE][""] + same + " Against the plain recipe at the low rate: −0.100 [−0.100, −0.100].",
        f"{by_claim[stages.ADAPTS][REPRODUCED]} {staging.on_adaptation(rows)[0]}",
    ]
    assert staging.advice(claims)[-1] == by_claim[stages.ADAPTS][REPRODUCED]
    assert staging.advice(verdicts.judge(PROTOCOLS["stages"], [])) == []


def test_the_window_of_a_smoothed_curve_looks_back():
    assert staging.smoothed(np.array([4.0, 2.0, 0.0, 6.0]), 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    np.testing.assert_allclose(staging.smoothed(np.ones((2, 20))), 1.0)


def test_figures_draw_the_rows(rows):
    figure = staging.figure_changes("stages", rows, ["full captions: clean − noisy", "four stages − one, frozen"])
    left, _ = figure.axes
    assert left.get_title() == "Accuracy: 1 of 2 bars above 0, 0 below"
    assert [tick.get_text() for tick in left.get_yticklabels()][0] == "full captions: clean − noisy"

    ax = staging.figure_loss_curves(staging.curves(rows))
    assert [line.get_label() for line in ax.lines] == ["full, clean", "full, noisy", "mid, clean", "mid, noisy"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [4.0, 3.0, 7 / 3])

    ax = staging.figure_adaptation(staging.adapted(rows))
    assert ax.get_title() == "A short adaptation: digits +0.200 [+0.199, +0.201], shapes −0.020 [−0.020, −0.020]"
    means = [bars.lines[0].get_ydata()[0] for bars in ax.containers]
    np.testing.assert_allclose(means[4:], list(DIGITS.values()))


def test_without_rows_everything_says_so():
    assert list(staging.levels("masks", []).columns) == list(staging.changes("masks", []).columns)
    assert staging.reading("masks", []) == ["6 comparisons of masks have fewer than 5 seeds so far."]
    assert staging.figure_adaptation(staging.adapted([])).texts[0].get_text() == "no run in the ledger yet"
    assert staging.figure_loss_curves(staging.curves([])).texts[0].get_text() == "no run in the ledger yet"
    assert staging.advice([]) == staging.for_scale([]) == staging.beside_mir([]) == staging.on_adaptation([]) == []
    for ax in staging.figure_changes("masks", []).axes:
        assert "above" not in ax.get_title()
