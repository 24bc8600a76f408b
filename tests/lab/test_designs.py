"""The paper's tables and ours side by side: nothing is drawn or printed that neither the paper nor the ledger holds."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlib.lab import designs
from mirlib.lab.estimates import bootstrap, spearman
from mirlib.lab.protocols import PROTOCOLS
from mirlib.lab.tables import frame


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def by_arm(arm, run):
    """MIR grows from arm to arm, accuracy falls; both differ from seed to seed."""
    place = list(PROTOCOLS["recipes"].arms).index(arm) % 6
    accuracy = 0.8 - 0.1 * place + 0.01 * run.seed
    return measured(mir=place + 0.1 * run.seed, accuracy=accuracy, norm_only=0.5, shots=0.1 * place)


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_every_arm_has_its_place_and_its_label(name):
    found = [arm for arms in designs.panels(name).values() for arm in arms.values()]
    assert found == list(PROTOCOLS[name].arms)
    assert designs.DESIGNS[name].table == PROTOCOLS[name].figure
    assert all(designs.DESIGNS[name].reference in arms for arms in designs.panels(name).values())


@pytest.mark.parametrize(
    "name, correlation", [("captions", -1.00), ("recipes", -0.97), ("unlocking", -0.97), ("connectors", -1.00)]
)
def test_published_numbers_correlate_as_they_do_in_print(name, correlation):
    mir, average = zip(*designs.DESIGNS[name].published.values(), strict=True)
    assert spearman(mir, average) == pytest.approx(correlation, abs=0.005)


def test_the_tables_hold_what_is_printed_and_what_was_measured():
    rows = rows_of("recipes", by_arm)
    table = designs.side_by_side("recipes", rows)
    assert table.loc["rate × 0.3", ("paper", "MIR")] == "2.808"
    found = bootstrap([2 + 0.1 * seed for seed in range(5)])
    assert table.loc["linear", ("high", "MIR")] == f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    assert (designs.side_by_side("recipes", [])["high"] == "").all(axis=None)


def test_changes_are_taken_within_seeds_that_have_both_runs():
    rows = rows_of("recipes", lambda arm, run: None if (arm, run.seed) == ("high, base", 4) else by_arm(arm, run))
    line = designs.changes("recipes", rows).loc[("high", "linear − base")]
    assert line["MIR (news)"] == "+2.000 [+2.000, +2.000]"
    assert line["accuracy after stage 2"] == "−0.200 [−0.200, −0.200]"
    assert line["seeds"] == 4
    assert len(designs.changes("recipes", [])) == 0


def test_correlations_leave_out_seeds_with_a_missing_arm():
    rows = rows_of("recipes", lambda arm, run: None if (arm, run.seed) == ("high, linear", 0) else by_arm(arm, run))
    found = designs.with_accuracy("recipes", rows, ["mir"])
    assert found["high"]["mir"].tolist() == [-1.0] * 4
    assert found["matched"]["mir"].tolist() == [-1.0] * 5
    assert "high" not in designs.with_accuracy("recipes", rows[:30:6], ["mir"])


def test_a_choice_is_worth_what_the_chosen_arm_has_above_the_mean():
    found = designs.choices("recipes", rows_of("recipes", by_arm), ["mir", "norm_only", "in_context_text", "accuracy"])
    np.testing.assert_allclose(found["high"]["mir"], [0.25] * 5)
    np.testing.assert_allclose(found["high"]["accuracy"], [0.25] * 5)
    np.testing.assert_allclose(found["high"]["norm_only"], 0.0, atol=1e-12, err_msg="all arms share one value")
    assert found["high"]["in_context_text"].tolist() == pytest.approx([-0.25] * 5), "of scores, the highest is chosen"
    assert designs.choices("recipes", [], ["mir"]) == {}


def test_the_figure_draws_the_papers_points_and_our_means():
    figure = designs.figure_design("recipes", rows_of("recipes", by_arm))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "paper: lowest is rate × 0.3"
    assert titles[1] == "high: lowest is base"
    assert titles[4] == "high: correlation −1.00\n[−1.00, −1.00], 5 seeds"
    (line,) = [one for one in figure.axes[4].get_lines() if one.get_label() == "linear"]
    np.testing.assert_allclose(line.get_xydata(), [[2.2, 0.62]])


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_an_empty_ledger_gives_a_figure_that_says_so(name):
    figure = designs.figure_design(name, [])
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert set(said) == {"no runs in the ledger yet", "no seed has all arms yet"}


def test_a_null_that_lies_far_off_is_named_and_not_drawn():
    rows = [row | {"metrics": measured(mir=5.7, norm_only=5.7)} for row in rows_of("captions", by_caption)]
    far, near = (designs.figure_design("captions", some).axes[1] for some in (rows, rows_of("captions", by_caption)))
    assert far.get_xlabel() == "MIR (log10); null at 0.90"
    assert "null" not in far.get_legend_handles_labels()[1]
    assert "null" in near.get_legend_handles_labels()[1]


def by_caption(arm, run):
    return measured(mir=1.0)


def test_complete_seeds_of_nothing_are_none():
    assert designs.complete_seeds(frame([]), ["high, base"]) == []
