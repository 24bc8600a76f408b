"""The paper's tables and ours side by side: nothing is drawn or printed that neither the paper nor the ledger holds."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlab.first import designs
from mirlab.first.estimates import bootstrap, spearman
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.tables import METRICS, frame


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
    assert table.loc["linear", ("high", "MIR")] == f"{found.value:.3f} [{found.low:.3f},\xa0{found.high:.3f}]"
    assert (designs.side_by_side("recipes", [])["high"] == "").all(axis=None)


def test_changes_are_taken_within_seeds_that_have_both_runs():
    rows = rows_of("recipes", lambda arm, run: None if (arm, run.seed) == ("high, base", 4) else by_arm(arm, run))
    line = designs.changes("recipes", rows).loc[("high", "linear − base")]
    assert line["MIR (news)"] == "+2.000 [+2.000,\xa0+2.000]"
    assert line["accuracy after stage 2"] == "−0.200 [−0.200,\xa0−0.200]"
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


def test_void_columns_are_neither_compared_nor_correlated_nor_chosen_by():
    rows = rows_of("captions", by_caption)
    assert set(designs.changes("captions", rows)[METRICS["loss"]]) == {designs.VOID}
    void = designs.DESIGNS["captions"].void
    for found in (designs.with_accuracy("captions", rows, ["mir", *void]), designs.choices("captions", rows, void)):
        assert all(not set(void) & set(by) for by in found.values())
    assert (designs.choice_table({"captions": rows})["by loss"].iloc[:2] == designs.VOID).all()


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_what_is_taken_on_the_captions_is_void_where_arms_differ_in_their_captions(name):
    """Out-of-domain, too: `mirlab.runs` takes that perplexity on another grade, not on one grade for all arms."""
    differ = len({run.stage_one.detail for run in PROTOCOLS[name].runs}) > 1
    assert set(designs.DESIGNS[name].void) == ({"loss", "perplexity", "perplexity_out"} if differ else set())


def test_a_leader_that_the_seeds_do_not_tell_from_another_arm_is_undecided():
    values = np.array([[1.0, 2.0, 3.0], [1.1, 2.1, 3.1], [0.0, 2.0, 4.3]])
    assert designs.leader(values, ["a", "b", "c"]) == ("a", ["c"]), (
        "b is farther from a in every seed, and told from it"
    )
    assert designs.leader(values[::-1], ["c", "b", "a"]) == ("a", ["c"])
    assert designs.leader(np.array([[1.0, 1.0], [1.0, 1.0]]), ["a", "b"]) == ("a", ["b"]), "equal is not lower"


def test_a_reading_names_the_arms_and_says_nothing_below_five_seeds():
    high, matched = designs.reading("recipes", rows_of("recipes", by_arm))
    assert high.startswith("*high*: the lowest MIR belongs to **base**, and so does the highest accuracy, 0.820.")
    assert "is −1.00 [−1.00, −1.00]." in high
    assert "mean MIR spans 5.00; MIR minus its norm-only baseline, 5.00." in matched
    for seeds in ([], [0], range(4)):
        said = designs.reading("recipes", rows_of("recipes", by_arm, seeds=seeds))
        assert said[0] == f"*high*: {len(seeds)} of 5 seeds have all 6 arms; nothing is read off yet."


def test_a_reading_tells_the_lowest_mir_from_the_best_arm_and_length_from_the_rest():
    def by_length(arm, run):
        place = list(PROTOCOLS["connectors"].arms).index(arm) % 4
        return measured(mir=place + 0.1 * run.seed, norm_only=place - 1.0, accuracy=0.3 + 0.1 * place)

    said = designs.reading("connectors", rows_of("connectors", by_length))[0]
    assert "belongs to **MLP, 1 layer**, whose accuracy is 0.300; the highest accuracy, 0.600, belongs to" in said
    assert said.endswith("mean MIR spans 3.00; MIR minus its norm-only baseline, less than 0.01.")


def all_rows(metrics=None, **kwargs):
    """Rows of all experiments; MIR and soft discrimination both rank as accuracy does if not told otherwise."""

    def ranked(arm, run):
        number = sum(arm.encode()) % 97
        return measured(mir=number, norm_only=0.5, accuracy=0.9 - 0.005 * number, discrimination=0.9 - 0.005 * number)

    return {name: rows_of(name, metrics or ranked, **kwargs) for name in designs.DESIGNS}


def test_lessons_count_what_came_out():
    said = designs.lessons(all_rows())
    assert "in all 8 comparisons (captions, high: −1.00; " in said[0] and "interval above 0) in 8." in said[0]
    assert said[1].startswith("Choosing the arm of the lowest MIR beat choosing by lot in all 8 comparisons")
    assert said[1].endswith("beat it in none of 6 comparisons and lost in none."), "the loss is the same in all runs"
    assert said[2].count("the two part") == 2
    assert len(said) == 4, "nothing is missing"


def test_lessons_say_the_opposite_of_the_opposite():
    def wrong(arm, run):
        number = sum(arm.encode()) % 97
        return measured(mir=number, norm_only=number - 1, accuracy=0.1 + 0.005 * number, discrimination=0.5)

    said = designs.lessons(all_rows(wrong))
    assert "in none of 8 comparisons" in said[0] and "did (at least +0.8, interval above 0) in none." in said[0]
    assert "in none of 8 comparisons, and lost to it in 8." in said[1]
    assert said[2].count("a ranking by MIR is a ranking by length") == 2


def test_lessons_conclude_nothing_from_too_few_seeds_and_name_what_is_missing():
    for seeds in ([], range(4)):
        (said,) = designs.lessons(all_rows(seeds=seeds))
        assert said == "No comparison has 5 seeds with all arms yet, so nothing is concluded here."
    rows = all_rows() | {"sizes": [], "recipes": []}
    assert designs.lessons(rows)[-1] == "Not complete, and left out: recipes (high), recipes (matched), sizes."
    assert "of 5 comparisons" in designs.lessons(rows | {"recipes": []})[0].replace("all 5", "of 5")


def test_lessons_count_the_ways_of_unlocking():
    def by_way(arm, run):
        way = list(PROTOCOLS["unlocking"].arms).index(arm)
        return measured(mir=1.0 - 0.1 * (way == 4), accuracy=0.5 + 0.1 * (way >= 3))

    said = designs.lessons({"unlocking": rows_of("unlocking", by_way)})
    assert (
        said[-1]
        == "Letting the language model learn raised the accuracy in 2 of 4 ways of doing so, and lowered MIR in 1."
    )


def test_the_table_of_choices_counts_intervals_of_complete_comparisons_only():
    rows = {"recipes": rows_of("recipes", by_arm), "connectors": rows_of("connectors", by_caption, seeds=[0, 1])}
    table = designs.choice_table(rows)
    assert table.loc[("recipes", "high"), "by MIR"] == "+0.250 [+0.250,\xa0+0.250]"
    assert table.loc[("intervals", "above 0"), "by MIR"] == "2 of 2", "connectors have two seeds"
    assert table.loc[("intervals", "below 0"), "by norm-only"] == "0 of 2"
    assert len(designs.choice_table({"recipes": []})) == 0
    few = designs.choice_table({"connectors": rows["connectors"]})
    assert list(few.index) == [("connectors", "high"), ("connectors", "matched")], "nothing to count"


def test_the_figure_draws_the_papers_points_and_our_means():
    figure = designs.figure_design("recipes", rows_of("recipes", by_arm))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "paper: lowest is rate × 0.3\n(one run an arm)"
    assert titles[1] == "high: lowest is base\n(mean of 5 seeds)"
    assert titles[4] == "high: correlation −1.00\n[−1.00, −1.00], 5 seeds"
    (line,) = [one for one in figure.axes[4].get_lines() if one.get_label() == "linear"]
    np.testing.assert_allclose(line.get_xydata(), [[2.2, 0.62]])


def test_titles_name_no_winner_below_five_seeds_nor_an_undecided_one_without_saying_so():
    few = designs.figure_design("recipes", rows_of("recipes", by_arm, seeds=range(4)))
    assert [ax.get_title() for ax in few.axes][1::3] == ["high: provisional", "high: 4 of 5 seeds complete"]
    even = designs.figure_design("recipes", rows_of("recipes", by_caption))
    assert even.axes[1].get_title() == "high: lowest is base\n(undecided)"


def test_the_figure_of_metrics_leaves_void_marks_out_and_names_the_largest_where_seeds_suffice():
    figure = designs.figure_metrics(all_rows())
    loss, mir = (list(designs.COMPARED).index(column) for column in ("loss", "mir"))
    for ax, experiments in zip(figure.axes, (3, 5), strict=True):
        means = [one for one in ax.get_lines() if one.get_marker() in designs.MARKERS]
        heights = [height for one in means for height in one.get_ydata()]
        assert sum(abs(height - mir) < 0.4 for height in heights) == experiments
        assert sum(abs(height - loss) < 0.4 for height in heights) == experiments - 1, "captions are void"
        said = ax.get_title().split(": ", 1)[1]
        assert said == "largest mean correlation:\nMIR (news), −1.00 (undecided)", "soft discrimination ranks as well"
    few = designs.figure_metrics(all_rows(seeds=range(4)))
    assert [ax.get_title() for ax in few.axes] == ["high: provisional", "matched: provisional"]
    assert [ax.get_title() for ax in designs.figure_metrics({"recipes": []}).axes] == ["high", "matched"]


def test_the_largest_correlation_is_undecided_only_where_the_seeds_say_so():
    near = {"mir": np.array([-0.5, -0.9, -0.7, -0.6, -0.8]), "loss": np.array([0.6, 0.8, 0.8, 0.5, 0.7])}
    assert designs.largest({"recipes": near}).endswith("(undecided)")
    far = {"mir": np.full(5, -0.2), "loss": np.array([0.6, 0.8, 0.8, 0.5, 0.7])}
    assert designs.largest({"recipes": far}) == "largest mean correlation:\nloss (last 50 steps), +0.68"
    assert designs.largest({"recipes": far, "captions": {"mir": np.full(4, -1.0)}}) == "", "captions lack a seed"
    assert designs.largest({}) == ""


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_an_empty_ledger_gives_a_figure_that_says_so(name):
    figure = designs.figure_design(name, [])
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert set(said) == {"no runs in the ledger yet", "no seed has all arms yet"}


def test_a_baseline_that_lies_far_off_is_named_and_not_drawn():
    rows = [row | {"metrics": measured(mir=5.7, norm_only=5.7)} for row in rows_of("captions", by_caption)]
    far, near = (designs.figure_design("captions", some).axes[1] for some in (rows, rows_of("captions", by_caption)))
    assert far.get_xlabel() == "MIR (log10); rows zeroed: 0.90"
    assert "vision rows zeroed" not in far.get_legend_handles_labels()[1]
    assert "vision rows zeroed" in near.get_legend_handles_labels()[1]


def by_caption(arm, run):
    return measured(mir=1.0)


def test_complete_seeds_of_nothing_are_none():
    assert designs.complete_seeds(frame([]), ["high, base"]) == []
