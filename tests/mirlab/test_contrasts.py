"""What chapter 12 says of the runs of ``eim``, on rows whose truth is known, and the probe of CLIP's features."""

import copy

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from made_rows import measured, rows_of

from mirlab.first import contrasts, verdicts
from mirlab.first.closing import features as clip_features
from mirlab.first.closing.eim import PROTOCOL
from mirlib.loading import load_miniature

matplotlib.use("agg")

ACCURACY = {
    "plain": 0.50, "ST": 0.53, "LM": 0.50, "IE": 0.48, "ST, LM": 0.55, "ST, LM, IE": 0.57, "one stage": 0.52,
    "LM, ST": 0.58, "encoder": 0.45, "two epochs": 0.55,
}  # fmt: skip


def made(arm, run):
    """Levels of `ACCURACY`; LM differs from plain by noise of both signs; segments fall from chance by the seed."""
    noise = (run.seed - 2) * 1e-3
    found = measured(1.0 + (0.2 if "ST" in arm else 0) + noise, ACCURACY[arm] + noise * (2 if arm == "LM" else 1))
    segments = run.method.segments if run.configuration.get("method") else ()
    if segments:
        found["before_stage_one"] = {
            name: {"curve": [[2, 7.6], [4, 6.0 + run.seed], [6, 5.0]], "loss": 5.0, "chance": 7.6, "found": 0.25}
            for name in segments
        }
    return found


@pytest.fixture(scope="module")
def rows():
    return rows_of("eim", made)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_levels_have_every_arm_and_what_the_paper_prints(rows):
    table = contrasts.levels(rows)
    assert list(table.index) == list(PROTOCOL.arms)
    assert table.loc["ST", "accuracy"].startswith("0.530 [") and set(table["seeds"]) == {5}
    assert table.loc["ST, LM, IE", "paper, BLEU-4"] == "33.9" and table.loc["encoder", "paper, BLEU-4"] == ""
    none = contrasts.levels([])
    assert list(none.index) == list(PROTOCOL.arms) and set(none["accuracy"]) == {""}


def test_differences_are_those_within_a_seed(rows):
    assert contrasts.difference(rows, "ST, LM, IE", "one stage", "accuracy") == pytest.approx([0.05] * 5)
    assert contrasts.difference(rows, "LM", "plain", "accuracy") == pytest.approx([-2e-3, -1e-3, 0, 1e-3, 2e-3])
    assert len(contrasts.difference(rows_of("eim", made, seeds=()), "ST", "plain", "mir")) == 0


def test_what_stage_two_cannot_change_is_not_compared(rows):
    table = contrasts.changes(rows)
    assert list(table.index) == [f"{first} − {second}" for first, second in contrasts.AGAINST]
    shared = table.index[table["MIR"] == "same stage 1"]
    assert set(shared) == {"IE − plain", "encoder − plain", "ST, LM, IE − ST, LM", "IE − encoder"}
    assert table.loc["ST, LM, IE − one stage", "MIR"].startswith("+0.200")
    assert table.loc["ST − plain", "accuracy"].startswith("+0.030 [+0.030")


def test_figures_draw_the_rows_and_say_where_there_are_none(rows):
    accuracy, mir = contrasts.figure_changes(rows).axes
    assert [tick.get_text() for tick in accuracy.get_yticklabels()] == list(contrasts.changes(rows).index)
    drawn = {
        tuple(np.round(np.array(line.get_xdata(), dtype=float), 6))
        for line in accuracy.lines
        if line.get_marker() == "|"
    }
    assert (0.03,) * 5 in drawn and (-0.05,) * 5 in drawn
    assert len([line for line in mir.lines if len(line.get_xdata()) == 5]) == len(contrasts.AGAINST) - 4
    assert "+0.07" in accuracy.get_title() and "+0.20" in mir.get_title()

    st, lm = contrasts.figure_segments(rows).axes
    curves = [line.get_ydata() for line in st.lines if len(line.get_ydata()) == 3]
    assert any(np.allclose(curve, [7.6, 8.0, 5.0]) for curve in curves)  # the mean over seeds
    assert "25 %" in st.get_title() and "25 %" in lm.get_title()

    few = rows_of("eim", made, seeds=(0, 1))
    assert all("provisional: 2 seeds" in ax.get_title() for ax in contrasts.figure_changes(few).axes)
    for figure in (contrasts.figure_changes([]), contrasts.figure_segments([])):
        assert all("no run in the ledger yet" in [text.get_text() for text in ax.texts] for ax in figure.axes)


def test_sentences_say_up_down_or_undecided_and_nothing_of_four_seeds(rows):
    said = " ".join(contrasts.lessons(rows))
    assert "ST alone raises accuracy (+0.030" in said and "LM alone leaves accuracy undecided" in said
    assert "IE alone lowers accuracy (−0.020" in said
    assert "Segments, against one stage with all three, raise accuracy (+0.050" in said
    assert "ST before LM, against LM before ST, lowers accuracy" in said
    assert "ST alone raises MIR (+0.200" in said
    (nothing,) = contrasts.lessons(rows_of("eim", made, seeds=range(4)))
    assert "nothing is concluded" in nothing


def test_gains_are_told_from_the_worst_seed_to_the_best(rows):
    first, second = contrasts.by_seed(rows)
    assert "reach 0.50, 0.50, 0.50, 0.50, 0.50 in accuracy" in first
    assert "ST +0.03, +0.03, +0.03, +0.03, +0.03; LM " in second and "two epochs +0.05" in second
    levels = {0: 0.6, 1: 0.4, 2: 0.5, 3: 0.3, 4: 0.7}
    uneven = rows_of("eim", lambda arm, run: measured(1.0, levels[run.seed] if arm == "plain" else 0.7))
    first, second = contrasts.by_seed(uneven)
    assert "reach 0.30, 0.40, 0.50, 0.60, 0.70" in first and "ST +0.40, +0.30, +0.20, +0.10, +0.00" in second
    assert contrasts.by_seed(rows_of("eim", made, seeds=range(4))) == []


def test_the_cost_of_a_segment_is_held_against_stage_one(rows):
    assert contrasts.cost(rows) == ""  # no times were kept
    timed = copy.deepcopy(rows)
    for row in timed:
        row["metrics"]["stage_one"]["seconds"] = 20.0
        for name, found in row["metrics"].get("before_stage_one", {}).items():
            found["seconds"] = {"st": 1.0, "lm": 30.0}[name]
    assert contrasts.cost(timed) == (
        "Beside an epoch of stage 1, LM took 150 % of that time and ST took 5 % of that time (median over runs)."
    )


def test_advice_follows_the_outcomes(rows):
    choices = verdicts.judge(clip_features.PROTOCOL, rows_of("eim_features", made_features))
    said = contrasts.advice(verdicts.judge(PROTOCOL, rows), choices)
    assert said[0].startswith("**One loss.** Added alone, ST (+0.030 [+0.030, +0.030]) raised the accuracy. IE (−0.020")
    assert "cannot tell: LM (+0.000" in said[0] and said[0].endswith("try it first.")
    assert "against a second epoch: undecided (+0.000" in said[1]  # both at 0.55
    assert "learns without it: better (+0.030" in said[2]
    assert "against one stage: better (+0.050" in said[3] and "LM before ST: worse (−0.030" in said[3]
    assert said[4].startswith("**MIR.** Of the segments, ST (+0.200") and "raised MIR. What these did to MIR" in said[4]
    assert "before the output layer: better (+0.100" in said[5] and "with one feature: undecided" in said[5]
    assert "with all features: worse (−0.030" in said[5]
    shorter = rows_of("eim", lambda arm, run: measured(1.0, ACCURACY[arm] + (arm == "two epochs") * 0.1))
    said = contrasts.advice(verdicts.judge(PROTOCOL, shorter), [])
    assert "against a second epoch: worse (−0.100" in said[1]
    assert contrasts.advice(verdicts.judge(PROTOCOL, rows_of("eim", made, seeds=range(4))), []) == [
        "Not all runs are in the ledger yet: no advice."
    ]


FEATURES = {
    clip_features.ALL_BEFORE: 0.60, clip_features.ALL_BEHIND: 0.63,
    clip_features.ONE_BEFORE: 0.50, clip_features.ONE_BEHIND: 0.50,
}  # fmt: skip


def made_features(arm, run):
    """Levels of `FEATURES`; MIR falls where accuracy rises; with one feature layers differ by noise of both signs."""
    noise = (run.seed - 2) * 1e-3 * (2 if arm == clip_features.ONE_BEFORE else 1)
    return measured(2.0 - FEATURES[arm] - noise, FEATURES[arm] + noise)


def test_features_are_told_with_their_levels_differences_and_sentences():
    rows = rows_of("eim_features", made_features)
    levels = contrasts.feature_levels(rows)
    assert list(levels.index) == list(clip_features.PROTOCOL.arms)
    assert list(levels["paper, BLEU-4"]) == ["32.9", "31.8", "31.6", "31.2"]
    assert levels.loc[clip_features.ALL_BEHIND, "accuracy"].startswith("0.630 [") and set(levels["seeds"]) == {5}

    accuracy, mir = contrasts.figure_features(rows).axes
    assert [tick.get_text() for tick in accuracy.get_yticklabels()] == list(contrasts.FEATURES_AGAINST)
    assert "the whole change +0.10" in accuracy.get_title() and "−0.10" in mir.get_title()

    said = contrasts.feature_lessons(rows)
    assert len(said) == 5
    assert said[0].startswith("Before the output layer, all features instead of one raise accuracy (+0.100")
    assert "lower MIR (−0.100" in said[0] and "raise accuracy (+0.130" in said[1]
    assert "not behind it lowers accuracy (−0.030" in said[2] and "raises MIR" in said[2]
    assert "leaves accuracy undecided" in said[3]
    assert said[4].startswith("The whole change raises accuracy (+0.100")


def test_features_without_runs_say_so():
    assert set(contrasts.feature_levels([])["accuracy"]) == {""}
    few = rows_of("eim_features", made_features, seeds=(0, 1))
    assert all("provisional: 2 seeds" in ax.get_title() for ax in contrasts.figure_features(few).axes)
    for ax in contrasts.figure_features([]).axes:
        assert "no run in the ledger yet" in [text.get_text() for text in ax.texts]
    (nothing,) = contrasts.feature_lessons(rows_of("eim_features", made_features, seeds=range(4)))
    assert "nothing is concluded" in nothing


def test_the_probe_finds_what_is_in_the_features_and_nothing_where_there_is_nothing():
    model, _ = load_miniature()
    found = contrasts.probe_features(model, scenes=300)
    for where in ("before", "behind"):
        by_cell = found.loc[f"patches cell by cell, {where}"]
        assert (by_cell > found.loc["always the most frequent"] + 0.3).all()
    assert found.to_numpy().min() >= 0 and found.to_numpy().max() <= 1
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(300, 5, generator=generator).double(), torch.randn(50, 5, generator=generator).double()
    weights = torch.randn(5, 2, generator=generator).double()
    torch.testing.assert_close(contrasts._ridge(x, x @ weights + 3, new, 1e-9), new @ weights + 3)
    blind = contrasts._ridge(x, torch.randn(300, 2, generator=generator).double(), new)
    assert blind.abs().max() < 0.5


def test_what_features_hold_stands_beside_what_a_model_makes_of_them():
    probed = pd.DataFrame(
        {"size": [0.5, 0.9, 0.6, 0.9], "colour": [0.5, 0.9, 0.7, 0.6]},
        index=["[CLS], before", "patches cell by cell, before", "[CLS], behind", "patches cell by cell, behind"],
    )
    rows = rows_of("eim_features", lambda arm, run: measured(1.0, 0.9 - FEATURES[arm] + 1e-3 * run.seed))
    before, behind = contrasts.held_and_used(probed, verdicts.judge(clip_features.PROTOCOL, rows))
    assert "tell size and colour better than [CLS] does (size 90 % against 50 %" in before
    assert "reads them does worse than one that reads [CLS] (−0.100" in before and "tell size better" in behind
    none = contrasts.held_and_used(probed, verdicts.judge(clip_features.PROTOCOL, []))
    assert not any("A model" in sentence for sentence in none)


def test_patches_after_two_epochs_stand_beside_one_vector_after_one(rows):
    said = contrasts.patches_longer(rows, rows_of("eim_features", made_features))
    assert "by +0.050 [+0.050, +0.050] in accuracy" in said
    assert contrasts.patches_longer(rows, []) == ""


def test_the_arms_with_the_lowest_and_the_highest_mir_are_named_with_their_accuracy(rows):
    said = contrasts.extremes(rows, rows_of("eim_features", made_features))
    # With features MIR is 2 minus the accuracy; elsewhere it is 1.2 where the arm has ST in it, and 1.0 where not.
    assert "The highest is 1.50: *one, before the output layer* (0.500, place 8 of 13)" in said
    assert "the lowest MIR of all arms on this page is 1.00" in said and "*two epochs* (0.550, place 4 of 13)" in said
    assert contrasts.extremes(rows, []) == "" and contrasts.extremes([], []) == ""
