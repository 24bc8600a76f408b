"""What is said and drawn of the runs of MoCa is what stands in the rows; moments are matched where that is said."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from made_rows import measured, rows_of

from mirlab.first import calibration
from mirlab.first.closing.moca import PROTOCOL
from mirlab.model import miniature
from mirlib.align import moca
from mirlib.data import sample_images, sample_texts
from mirlib.rows import collect_rows

MIR = {"high, plain": 3.7, "high, MoCa": 3.4, "high, LayerNorm": 1.5, "low, plain": 1.2, "low, MoCa": 1.4}


def made(arm, run):
    """MoCa lowers MIR and accuracy at the high rate, and raises both at the low one; the rest is all alike."""
    noise = (run.seed - 2) * 1e-3
    change = {"high, MoCa": -0.02, "low, MoCa": 0.04, "high, LayerNorm": 0.05}.get(arm, 0.0)
    found = measured(MIR.get(arm, 1.0) + noise, 0.5 + change + 2 * noise, ratio=2.0 + change)
    layers = np.linspace(-1, 1, 8) if arm == "high, MoCa" else np.zeros(8)  # log10, on top of the plain one
    found["mir"]["per_layer"] = list(10 ** (2 + layers + (0.1 * noise if arm == "high, MoCa" else 0)))
    if "MoCa" in arm:
        found["after_stage_one"] = {
            "u_mean": [1.0 + 0.1 * run.seed] * 8,
            "u_sd": [0.2 if arm == "high, MoCa" else 0.1] * 8,
            "v_norm": [float(k) for k in range(8)],
        }
    return found


@pytest.fixture(scope="module")
def rows():
    return rows_of("moca", made)


@pytest.fixture(scope="module")
def some():
    """Two seeds of some arms."""
    return rows_of("moca", lambda arm, run: made(arm, run) if arm.startswith("high") else None, seeds=(0, 3))


def test_every_arm_of_the_protocol_stands_in_a_panel():
    shown = {arm for arms in calibration.PANELS.values() for arm in arms.values()}
    assert shown == set(PROTOCOL.arms)


def test_levels_hold_the_paper_and_the_means(rows, some):
    table = calibration.levels(rows)
    assert table.loc[("paper, LLaVA-1.5", "MoCa"), "MIR"] == "3.162"
    assert table.loc[("high", "MoCa"), "MIR"].startswith("3.400 [3.39")
    assert table.loc[("low", "MoCa"), "accuracy"].startswith("0.540 [")
    table = calibration.levels(some)
    assert table.loc[("low", "plain"), "MIR"] == ""
    assert len(calibration.levels([])) == len(table)


def test_differences_are_taken_within_a_seed(rows, some):
    mir = calibration.differences(rows, "mir")
    assert mir["high"]["MoCa"] == pytest.approx([-0.3] * 5)
    assert mir["low"]["MoCa"] == pytest.approx([0.2] * 5)
    assert set(mir["matched"]) == {"MoCa"} and "MoCa, std 0.02" in mir["low"]
    assert calibration.differences(rows, "accuracy")["high"]["LayerNorm"] == pytest.approx([0.05] * 5)
    table = calibration.changes(rows)
    assert table.loc[("high", "MoCa − plain"), "MIR"].replace("\N{NO-BREAK SPACE}", " ") == "−0.300 [−0.300, −0.300]"
    assert set(calibration.changes(some)["seeds"]) == {2}
    assert len(calibration.changes([])) == 0


def test_layers_are_logarithms_and_differences_of_them(rows):
    curves = calibration.layer_curves(rows)
    assert curves["high"]["plain"] == pytest.approx(np.full((5, 8), 2.0))
    assert calibration.layer_changes(rows)["high"].mean(axis=0) == pytest.approx(np.linspace(-1, 1, 8))
    assert calibration.layer_curves([]) == {"high": {}, "low": {}, "matched": {}}


def test_what_was_learned_is_read_from_the_arm_of_its_panel(rows):
    found = calibration.learned(rows)
    assert found["high"]["u_sd"] == pytest.approx(np.full((5, 8), 0.2))
    assert found["low"]["u_sd"] == pytest.approx(np.full((5, 8), 0.1))
    assert found["matched"]["u_mean"][:, 0] == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])


def test_sentences_name_what_the_rows_hold(rows):
    said = calibration.lessons(rows)
    assert said[0].startswith("*high*: MoCa lowers MIR (−0.300")
    assert "lower at 4, higher at 4 of 8 layers, and lowers accuracy (−0.020" in said[0]
    assert "raises MIR (+0.200" in said[1] and "raises accuracy (+0.040" in said[1]
    assert "leaves MIR undecided" in said[2]
    assert "At the high rate LayerNorm does most for accuracy" in "\n".join(said)
    assert "At the low rate MoCa does most for accuracy" in "\n".join(said)
    assert not any("count as alike" in sentence for sentence in said)  # −0.3 is no small fall
    assert "lowest mean MIR at the high rate takes matched norms; its accuracy minus that of the plain" in said[-2]
    assert "lowest mean MIR at the low rate takes LayerNorm; its accuracy minus that of the plain" in said[-1]


def test_a_fall_of_mir_that_is_small_is_called_so(rows):
    small = copy.deepcopy(rows)
    plain = {r["configuration"]["seed"]: r for r in small if r["arm"] == "high, plain"}
    for row in small:
        if row["arm"] == "high, MoCa":
            row["metrics"]["mir"]["value"] = plain[row["configuration"]["seed"]]["metrics"]["mir"]["value"] - 0.01
    said = calibration.lessons(small)
    assert "smaller than the 0.05" in said[0] and not any("smaller than" in sentence for sentence in said[1:])


def test_nothing_is_said_of_few_seeds(some):
    for few in (some, []):
        (nothing,) = calibration.lessons(few)
        assert "nothing is concluded" in nothing


def test_figures_draw_the_rows_and_stand_without_them(rows, some):
    figure = calibration.figure_changes(rows)
    mir, accuracy = figure.axes
    assert "high −0.30; low +0.20" in mir.get_title() and "high −0.02; low +0.04" in accuracy.get_title()
    drawn = [line.get_xdata()[0] for line in mir.lines if len(line.get_xdata()) == 1]
    assert any(np.isclose(drawn, -0.3)) and any(np.isclose(drawn, 0.2))
    figure = calibration.figure_layers(rows)
    titles = [ax.get_title() for ax in figure.axes]
    assert "high: MIR 3.70, with MoCa 3.40" in titles
    assert "high: lower at 4, higher at 4 of 8 layers" in titles
    assert "low: lower at 0, higher at 0 of 8 layers" in titles
    figure = calibration.figure_learned(rows)
    spread = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert spread["high"] == pytest.approx([0.2] * 8) and spread["low"] == pytest.approx([0.1] * 8)
    for few in (some, []):
        assert all("lower at" not in ax.get_title() for ax in calibration.figure_layers(few).axes)
        calibration.figure_changes(few)
        calibration.figure_learned(few)
    plt.close("all")


def test_moments_are_matched_at_every_layer_but_the_last(tiny, tokenizer):
    processor = miniature.new_processor(tokenizer)
    pairs = sample_images(4), sample_texts(4)
    made = calibration.match_moments(tiny, processor, *pairs)
    assert made.moved == (1,)  # of two layers
    seen = collect_rows(tiny, processor, *pairs)
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(seen.vision[0], dim=0), statistic(seen.text[0], dim=0), rtol=1e-3, atol=1e-4
        )
    first = made.u.detach().clone()
    assert calibration.match_moments(tiny, processor, *pairs) is made  # from the start again, not on top
    torch.testing.assert_close(made.u.detach(), first)
    moca.detach(tiny)
