"""Words follow from interval and limit alone, and the procedure as a whole keeps its level."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mirlab.claims import (
    Contrast,
    Effect,
    Follows,
    Within,
    ceilings,
    drawn_again,
    judge,
    judge_values,
    listed,
    outcome,
    spreads,
)
from mirlab.statistics import ABOVE, BELOW, Estimate
from mirlib import MirlibError

SIDES = {BELOW: -1, ABOVE: 1}


def table_of(values, columns=("mir",)):
    """A table of runs from arrays (seeds, arms) by column, the arms being called a, b, c …"""
    values = [np.asarray(v, dtype=float) for v in values]
    return pd.DataFrame(
        {"arm": "abcdefghij"[arm], "seed": seed}
        | {column: v[seed, arm] for column, v in zip(columns, values, strict=True)}
        for seed in range(len(values[0]))
        for arm in range(values[0].shape[1])
    )


def word(low, high, *, side=BELOW, limit=0.0, ceiling=None, seeds=6):
    claim = Contrast("it falls", "ours", "a", "b", "mir", side, limit=limit)
    estimate = Estimate((low + high) / 2, low, high, seeds)
    return outcome(claim, estimate, estimate, ceiling=ceiling, seeds=6)


@pytest.mark.parametrize(
    ("low", "high", "limit", "expected"),
    [
        (-3, -1, 0, "reproduced"),
        (-3, -1, -0.5, "reproduced"),
        (1, 3, 0, "the opposite"),
        (1, 3, -0.5, "the opposite"),
        (-1, 1, 0, "undecided"),
        (-1, 1, -0.5, "undecided"),  # holds limit and 0
        (-1, -0.2, -0.5, "falls short"),  # a fall, whether of that size is open
        (-0.4, -0.2, -0.5, "falls short"),  # a fall, and a smaller one
        (-0.4, 0.2, -0.5, "falls short"),  # so large a fall is ruled out
        (0.1, 0.4, 0.5, "reproduced"),  # at most so much of a rise
        (0.1, 0.8, 0.5, "undecided"),
        (0.6, 0.8, 0.5, "the opposite"),
    ],
)
def test_the_word_for_a_side(low, high, limit, expected):
    assert word(low, high, limit=limit) == expected
    assert word(-high, -low, side=ABOVE, limit=-limit) == expected


@pytest.mark.parametrize(
    ("low", "high", "inner_low", "inner_high", "expected"),
    [
        (-0.6, 0.3, -0.4, 0.2, "no change"),  # 90 % decides
        (-0.3, 0.6, -0.2, 0.55, "undecided"),
        (0.1, 0.4, 0.15, 0.35, "no change"),  # significant, and within the margin all the same
        (0.6, 0.9, 0.65, 0.85, "the opposite"),
        (-0.9, -0.6, -0.85, -0.65, "the opposite"),
        (-2, 2, -1.5, 1.5, "undecided"),  # an interval that holds 0 is no evidence of no change
    ],
)
def test_the_word_for_no_change(low, high, inner_low, inner_high, expected):
    claim = Within("it stays", "paper, Table 7", {"a": 1, "b": -1}, "mir", 0.5)
    inner = Estimate(0, inner_low, inner_high, 6)
    assert outcome(claim, Estimate(0, low, high, 6), inner, ceiling=None, seeds=6) == expected


def test_what_is_not_testable_or_not_measured_has_no_other_word():
    assert word(-3, -1, ceiling=0.79) == word(1, 3, ceiling=0.0, seeds=0) == "not testable here"
    assert word(-3, -1, ceiling=0.8) == "reproduced"
    assert word(-3, -1, seeds=5) == "not measured"


def test_a_claim_has_a_source_and_a_side():
    with pytest.raises(ValueError, match="source"):
        Contrast("x", "Table 2", "a", "b", "mir")
    with pytest.raises(ValueError, match="side"):
        Contrast("x", "ours", "a", "b", "mir", side="<")


CLAIMS = (
    Contrast("a falls", "paper, Table 2", "a", "b", "mir"),
    Effect("interaction", "ours", {"a": 1, "b": -1, "c": -1, "d": 1}, "mir", ABOVE),
    Within("c stays", "ours", {"c": 1, "d": -1}, "mir", margin=0.2),
    Follows("follows", "paper, Fig. 1", tuple("abcd"), "mir", "accuracy", limit=-0.8),
    Effect("slope", "ours", {"a": -3, "b": -1, "c": 1, "d": 3}, "accuracy"),
)


def test_an_experiment_is_judged_from_its_table():
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 3, (6, 1))  # what a seed does to all arms falls out
    mir = np.array([0.0, 2.0, 4.0, 4.01]) + offset + rng.normal(0, 0.05, (6, 4))
    mir[:, 3] = np.maximum(mir[:, 3], mir[:, 2] + 0.01)
    accuracy = -mir + offset
    findings = judge(CLAIMS, table_of([mir, accuracy], ["mir", "accuracy"]))
    assert [f.outcome for f in findings] == ["reproduced", "the opposite", "no change", "reproduced", "reproduced"]
    assert [f.holds for f in findings] == [True, False, True, True, True]
    differences = mir[:, 0] - mir[:, 1]
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    first = findings[0]
    assert (first.estimate.low, first.estimate.high) == pytest.approx((low, high))
    assert first.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert findings[1].estimate.value == pytest.approx((mir @ [1, -1, -1, 1]).mean())
    margin = max(
        stats.ttest_1samp(mir[:, 2] - mir[:, 3], limit, alternative=side).pvalue
        for limit, side in ((-0.2, "greater"), (0.2, "less"))
    )
    assert findings[2].p == pytest.approx(margin)
    assert findings[3].estimate.value == findings[3].over_means.value == -1
    assert findings[4].estimate.value == pytest.approx((accuracy @ [-3, -1, 1, 3]).mean())
    shown = listed(findings).set_index("claim")
    assert shown.loc["follows", "over_means"] == -1
    assert shown.loc["a falls", "seeds"] == 6


def test_seeds_without_one_of_the_arms_do_not_count():
    values = np.random.default_rng(1).normal(0, 0.1, (7, 3)) + [0, 2, 2]
    table = table_of([values])
    late = table[~((table["arm"] == "b") & (table["seed"] > 4))]
    claims = (Contrast("a falls", "ours", "a", "b", "mir"), Contrast("so", "ours", "a", "c", "mir"))
    findings = judge(claims, late)
    assert [(f.outcome, f.estimate.seeds) for f in findings] == [("not measured", 5), ("reproduced", 7)]
    assert np.isnan(findings[0].p)
    assert findings[1].p_holm == pytest.approx(2 * findings[1].p)  # the claim that waits is in the family
    assert judge(claims, late, seeds=5)[0].outcome == "reproduced"
    assert [f.outcome for f in judge(claims, table[:0])] == ["not measured"] * 2
    holes = table.assign(mir=table["mir"].where(table["seed"] > 1))
    assert {f.outcome for f in judge(claims, holes)} == {"not measured"}
    with pytest.raises(MirlibError, match="no column"):
        judge((Contrast("a falls", "ours", "a", "b", "mire"),), table)


def test_a_word_needs_the_interval_that_holm_leaves_and_says_where_the_plain_one_differs():
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (6, 9))
    values -= values.mean(axis=0)
    values[:, 0] = values[:, 8] + np.array([-1.6, -0.2, -1.1, -0.5, -0.9, -0.3])
    claims = tuple(Contrast(f"{arm} falls", "ours", arm, "i", "mir") for arm in "abcdefgh")
    alone = judge(claims[:1], table_of([values]))[0]
    assert (alone.outcome, alone.note, alone.adjusted) == ("reproduced", "", alone.estimate)
    among = judge(claims, table_of([values]))[0]
    assert among.outcome == "undecided"
    assert among.note == "by the 95 % interval alone: reproduced"
    assert among.estimate == alone.estimate
    assert among.adjusted.high > 0 > among.estimate.high
    # A claim that cannot be tested here is not in the family.
    untestable = judge(claims, table_of([values]), ceilings={f"{arm} falls": 0.3 for arm in "bcdefgh"})
    assert [f.outcome for f in untestable] == ["reproduced"] + ["not testable here"] * 7
    assert np.isnan(untestable[1].p_holm)


def test_the_adjusted_interval_and_the_adjusted_p_never_disagree():
    rng = np.random.default_rng(3)
    claims = [Contrast(arm, "ours", arm, "f", "mir", BELOW, limit=-0.3) for arm in "abc"]
    claims += [Contrast(f"{arm} up", "ours", arm, "f", "mir", ABOVE) for arm in "de"]
    claims += [Within("d stays", "ours", {"d": 1, "f": -1}, "mir", 1.0)]
    words = set()
    for _ in range(60):
        values = rng.normal(0, 0.3, (6, 6)) + rng.choice([-1.0, 0.0, 1.0], 6)
        for finding in judge(claims, table_of([values])):
            assert finding.holds == (finding.p_holm <= 0.05)
            words.add(finding.outcome)
    assert words == {"reproduced", "no change", "the opposite", "falls short", "undecided"}


# ---------------------------------------------------------------------------------------------------------------------
# The level of the whole procedure


def null_experiment(rng, *, skewed):
    """Eight claims on two columns about arms that do nothing, all against one plain arm, in six seeds."""
    draw = (lambda size: rng.gamma(2, size=size)) if skewed else (lambda size: rng.standard_normal(size))
    offset = draw((6, 1))
    mir, accuracy = draw((6, 5)) + offset, draw((6, 5)) + 0.5 * offset
    pairs = [(values, arm) for values in (mir, accuracy) for arm in range(3)]
    claims = [
        Contrast(f"{i}", "ours", "arm", "plain", "y", side)
        for i, side in enumerate((BELOW, ABOVE, BELOW) + (ABOVE,) * 3)
    ]
    data = [{"y": values[:, [arm, 4]]} for values, arm in pairs]
    claims.append(Effect("6", "ours", {"a": 1, "b": -1, "c": -1, "plain": 1}, "y"))
    claims.append(Effect("7", "ours", {"a": 3, "b": -2, "c": -1}, "y"))
    data += [{"y": mir[:, [0, 1, 2, 4]]}, {"y": accuracy[:, :3]}]
    return tuple(claims), data


@pytest.mark.parametrize("skewed", [False, True])
def test_at_most_5_percent_of_experiments_without_any_effect_print_a_false_word(skewed):
    rng, draws = np.random.default_rng(4), 800
    counts = {"reproduced": 0, "the opposite": 0, "either": 0, "alone": 0}
    for _ in range(draws):
        findings = judge_values(*null_experiment(rng, skewed=skewed))
        words = {finding.outcome for finding in findings}
        counts["reproduced"] += "reproduced" in words
        counts["the opposite"] += "the opposite" in words
        counts["either"] += bool({"reproduced", "the opposite"} & words)
        counts["alone"] += "reproduced" in {finding.alone for finding in findings}
    shares = {name: count / draws for name, count in counts.items()}
    error = np.sqrt(0.05 * 0.95 / draws)
    assert shares["reproduced"] < 0.05
    assert shares["either"] < 0.05 + 3 * error
    assert shares["alone"] > 0.08  # the 95 % intervals alone would not keep it, so that this test can fail


def test_true_claims_do_not_make_false_ones_easier():
    rng, draws, false = np.random.default_rng(5), 600, 0
    claims = tuple(Contrast(f"{i}", "ours", "arm", "plain", "y") for i in range(6))
    for _ in range(draws):
        values = rng.standard_normal((6, 7))
        values[:, :3] -= 30
        findings = judge_values(claims, [{"y": values[:, [arm, 6]]} for arm in range(6)])
        assert all(finding.holds for finding in findings[:3])
        false += any(finding.holds for finding in findings[3:])
    assert false / draws < 0.05


def test_a_metric_that_has_nothing_to_do_with_accuracy_never_follows_it():
    rng = np.random.default_rng(6)
    claim = (Follows("follows", "paper, Fig. 1", tuple("abcd"), "x", "y"),)
    words = [
        judge_values(claim, [dict(zip("xy", rng.normal(size=(2, 6, 4)), strict=True))])[0].outcome for _ in range(200)
    ]
    assert "reproduced" not in words
    assert words.count("the opposite") / 200 < 0.06


# ---------------------------------------------------------------------------------------------------------------------
# The oracle


def rates_of(claims, table, **options):
    return ceilings(claims, spreads(claims, table), **options)


def pilot(means, noise, *, seed=7, seeds=3, columns=("mir", "accuracy")):
    """A pilot whose sample means, and noise within arms, are exactly those given, in each of two columns."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in columns:
        rest = rng.standard_normal((seeds, len(means)))
        rest -= rest.mean(axis=0)
        rest -= rest.mean(axis=1, keepdims=True)
        rest *= noise / np.sqrt((rest**2).sum() / ((seeds - 1) * (len(means) - 1)))
        made.append(np.array(means) + rest)
    return table_of(made, columns)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ceiling_of_one_difference_is_the_power_of_the_t_test_whichever_way_the_pilot_went(sign):
    table = pilot([0.0, 0.4 * sign], 0.2)
    claim = Contrast("falls", "ours", "b", "a", "mir")
    expected = stats.nct.sf(stats.t.ppf(0.975, 5), 5, 0.4 / (0.2 * np.sqrt(2)) * np.sqrt(6))
    assert rates_of((claim,), table)["falls"] == pytest.approx(expected, abs=0.04)
    asked = Contrast("falls", "ours", "b", "a", "mir", effect=-0.6)
    expected = stats.nct.sf(stats.t.ppf(0.975, 5), 5, 0.6 / (0.2 * np.sqrt(2)) * np.sqrt(6))
    assert rates_of((asked,), table)["falls"] == pytest.approx(expected, abs=0.04)


def test_holm_costs_claims_power_and_hopeless_ones_leave_the_family():
    table = pilot([0.0, 0.8, 0.8, 0.0], 0.2)
    strong = tuple(Contrast(f"{arm} rises", "ours", arm, "a", "mir", ABOVE) for arm in "bc")
    one, two = rates_of(strong[:1], table)["b rises"], rates_of(strong, table)["b rises"]
    lowest = stats.nct.sf(stats.t.ppf(1 - 0.025 / 2, 5), 5, 0.8 / (0.2 * np.sqrt(2)) * np.sqrt(6))
    assert lowest - 0.03 < two <= one
    hopeless = Contrast("d rises", "ours", "d", "a", "mir", ABOVE)
    with_it = rates_of((*strong, hopeless), table)
    assert with_it["d rises"] < 0.05
    assert {name: with_it[name] for name in ("b rises", "c rises")} == rates_of(strong, table)


def test_the_ceiling_of_a_correlation_falls_with_the_noise_and_needs_no_metric():
    claims = (Follows("follows", "paper, Fig. 1", tuple("abcd"), "mir", "accuracy"),)
    means = [0.40, 0.45, 0.50, 0.55]
    rates = [rates_of(claims, pilot(means, noise), draws=1000)["follows"] for noise in (0.001, 0.04, 0.2)]
    assert rates[0] == 1
    assert 0.3 < rates[1] < 1
    assert rates[2] < 0.02


def test_the_ceiling_of_no_change_is_the_power_of_equivalence():
    claims = (Within("stays", "ours", {"b": 1, "a": -1}, "mir", 0.3),)
    rate = rates_of(claims, pilot([0.0, 1.0], 0.1))["stays"]  # whatever the pilot's difference
    means = np.random.default_rng(8).normal(0, 0.1 * np.sqrt(2), (3000, 6))
    half = stats.t.ppf(0.95, 5) * means.std(axis=1, ddof=1) / np.sqrt(6)
    assert rate == pytest.approx(np.mean(np.abs(means.mean(axis=1)) + half < 0.3), abs=0.05)


def test_a_ceiling_is_the_share_of_experiments_that_are_judged_so():
    table = pilot([0.0, 0.55, 0.65], 0.2)
    claims = tuple(Contrast(f"{arm} rises", "ours", arm, "a", "mir", ABOVE) for arm in "bc")
    expected = rates_of(claims, table)
    assert all(rate > 0.8 for rate in expected.values())
    rng, held = np.random.default_rng(9), np.zeros(2)
    for _ in range(500):
        mir = np.array([0.0, 0.55, 0.65]) + rng.normal(0, 0.2, (6, 3))
        held += [f.holds for f in judge_values(claims, [{"mir": mir[:, [1, 0]]}, {"mir": mir[:, [2, 0]]}])]
    np.testing.assert_allclose(held / 500, list(expected.values()), atol=0.06)


def test_a_pilot_that_is_too_small_says_so():
    claims = (Contrast("falls", "ours", "a", "b", "mir"),)
    with pytest.raises(MirlibError, match="fewer than two seeds"):
        rates_of(claims, table_of([np.ones((1, 2))]))
    with pytest.raises(MirlibError, match="fewer than two seeds"):
        rates_of(claims, table_of([np.ones((3, 1))]))


def test_an_oracle_drawn_again_knows_clear_arms_and_hardly_ranks_equal_ones():
    claim = Follows("m follows", "paper", arms=tuple("abcdefg"), x="mir", y="accuracy")
    rng = np.random.default_rng(0)
    found = {}
    for name, apart in {"clear": 10, "close": 0.3}.items():
        rows = [
            {"seed": seed, "arm": arm, "mir": 0.0, "accuracy": apart * k + rng.normal()}
            for seed in range(6)
            for k, arm in enumerate(claim.arms)
        ]
        found[name] = drawn_again(claim, pd.DataFrame(rows))
    assert found["clear"] == (pytest.approx(-1, abs=1e-3), 1)
    assert -0.9 < found["close"][0] < -0.2 and found["close"][1] < 0.8
