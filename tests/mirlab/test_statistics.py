"""Intervals cover, tests keep their level, and correlations are SciPy's. All by simulation or a second computation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mirlab.statistics import (
    ABOVE,
    BELOW,
    Spread,
    equivalence_p,
    holm,
    holm_factors,
    jackknife,
    mean_interval,
    p_value,
    paired,
    rank_step,
    simulated,
    spearman_of_means,
    spearman_within,
    spread,
    wide,
)
from mirlib import MirlibError

DRAWS = 6000


def within(share, expected, draws=DRAWS):
    """A simulated share may be four standard errors off."""
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=6)
    for confidence in (0.9, 0.95, 0.99375):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(confidence)
        estimate = mean_interval(values, confidence)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
        assert (estimate.value, estimate.seeds) == (pytest.approx(values.mean()), 6)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_it_holds_the_mean_of_six_normal_seeds_as_often_as_it_says(confidence):
    found = [mean_interval(values, confidence) for values in np.random.default_rng(1).normal(3, 2, (DRAWS, 6))]
    assert within(np.mean([e.low <= 3 <= e.high for e in found]), confidence)


def test_of_skewed_seeds_it_holds_the_mean_somewhat_less_often_and_far_more_than_a_bootstrap():
    values = np.random.default_rng(2).gamma(4, size=(DRAWS, 6))  # skewness 1
    covered = np.mean([e.low <= 4 <= e.high for e in map(mean_interval, values)])
    assert 0.92 < covered < 0.95
    few = values[:1500]
    resampled = few[:, np.random.default_rng(3).integers(6, size=(400, 6))].mean(axis=-1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1)
    assert np.mean((low <= 4) & (high >= 4)) < 0.88


def test_what_is_no_confidence_and_no_side():
    with pytest.raises(ValueError, match="confidence lies between 0 and 1"):
        mean_interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="side is 'below' or 'above'"):
        p_value([1.0, 2.0], 0, "sideways")


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert mean_interval([2.0]).value == 2
    assert np.isnan(mean_interval([2.0]).low)
    assert np.isnan(mean_interval([]).value)
    assert str(mean_interval([2.0])) == "+2.00"


def test_seeds_that_agree_leave_the_width_of_one_that_differs_by_a_step():
    alike, other = mean_interval([-1.0] * 6, step=0.2), mean_interval([-1.0] * 5 + [-0.8])
    assert alike.high - alike.low == pytest.approx(other.high - other.low)
    assert mean_interval([-1.0] * 5 + [-0.8], step=0.2).low == pytest.approx(other.low)


def test_p_is_scipys():
    values = np.random.default_rng(4).normal(0.5, size=(20, 6))
    for side, word in ((BELOW, "less"), (ABOVE, "greater")):
        expected = stats.ttest_1samp(values, 0.3, axis=1, alternative=word).pvalue
        np.testing.assert_allclose(p_value(values, 0.3, side), expected, atol=1e-12)


def test_seeds_without_spread_have_a_p():
    assert p_value([0.2] * 6, 0.2, ABOVE) == 0.5
    assert p_value([0.3] * 6, 0.2, ABOVE) == 0
    assert p_value([0.3] * 6, 0.2, BELOW) == 1


def test_equivalence_is_the_90_percent_interval_within_the_margin():
    for values in np.random.default_rng(5).normal(0.2, 0.5, (300, 6)):
        inner = mean_interval(values, 0.9)
        assert (equivalence_p(values, 0.6) <= 0.05) == (-0.6 <= inner.low and inner.high <= 0.6)


def test_equivalence_keeps_its_level_at_the_margin_and_has_power_inside():
    noise = np.random.default_rng(6).normal(0, 0.1, (DRAWS, 6))
    assert within(np.mean(equivalence_p(0.5 + noise, 0.5) <= 0.05), 0.05)
    assert within(np.mean(equivalence_p(-0.5 + noise, 0.5) <= 0.05), 0.05)
    assert np.mean(equivalence_p(noise, 0.5) <= 0.05) > 0.99


def stepped_down(p, level):
    """Holm's procedure as his paper tells it."""
    rejected = [False] * len(p)
    for step, test in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[test] > level / (len(p) - step):
            break
        rejected[test] = True
    return rejected


def test_holm_rejects_what_the_procedure_rejects_and_the_factors_say_at_which_level():
    for p in np.random.default_rng(7).beta(0.3, 3, (300, 7)):
        for level in (0.05, 0.2):
            expected = stepped_down(p, level)
            assert (holm(p) <= level).tolist() == expected
            assert (p <= level / holm_factors(p, level)).tolist() == expected
    assert holm(np.array([[0.5, 0.01], [0.01, 0.5]])).tolist() == [[0.5, 0.02], [0.02, 0.5]]
    assert holm([]).tolist() == holm_factors([]).tolist() == []


def test_holm_keeps_the_level_of_the_family_where_all_arms_share_the_plain_one():
    rng = np.random.default_rng(8)
    values = rng.normal(size=(DRAWS, 6, 8)) - rng.normal(size=(DRAWS, 6, 1))
    p = 2 * np.minimum(*(p_value(np.swapaxes(values, 1, 2), 0, side) for side in (BELOW, ABOVE)))
    assert np.mean(p.min(axis=1) <= 0.05) > 0.15  # what a reader would get without it
    assert np.mean(holm(p).min(axis=1) <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / DRAWS)


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(9).normal(size=6)
    mine, other = jackknife(np.mean, values), mean_interval(values)
    assert (mine.value, mine.low, mine.high) == pytest.approx((other.value, other.low, other.high))


def test_the_jackknife_of_a_ratio_covers():
    rng, true, covered = np.random.default_rng(10), 0.5, 0
    for _ in range(1500):
        y = rng.normal(4, 0.8, 6)
        estimate = jackknife(lambda x, y: x.mean() / y.mean(), true * y + rng.normal(0, 0.3, 6), y)
        covered += estimate.low <= true <= estimate.high
    assert 0.93 < covered / 1500 < 0.97


def test_correlations_within_seeds_are_scipys_also_with_ties():
    rng = np.random.default_rng(11)
    x, y = rng.integers(0, 4, (30, 6)).astype(float), rng.normal(size=(30, 6))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman_within(x, y), expected, atol=1e-11)
    shared = [stats.spearmanr(np.arange(6), b).statistic for b in y]
    np.testing.assert_allclose(spearman_within(np.arange(6), y), shared, atol=1e-11)
    pooled = stats.spearmanr(x.mean(axis=0), y.mean(axis=0)).statistic
    assert spearman_of_means(x, y) == pytest.approx(pooled)


def test_a_metric_that_does_not_move_ranks_nothing():
    assert spearman_within([[1.0, 1, 1]], [[1.0, 2, 3]]).tolist() == [0]


def test_the_smallest_step_of_a_correlation():
    for arms in (3, 4, 5, 6):
        orders = [np.arange(arms)]
        swapped = np.arange(arms)
        swapped[[0, 1]] = 1, 0
        first, second = (stats.spearmanr(orders[0], other).statistic for other in (orders[0], swapped))
        assert first - second == pytest.approx(rank_step(arms))


def test_a_pilots_spread_is_unbiased():
    truth = Spread(np.array([1.0, 2.0, 4.0]), noise=0.3, offset=1.5)
    found = [spread(values) for values in simulated(truth, seeds=3, draws=2000)]
    assert np.mean([s.noise**2 for s in found]) == pytest.approx(0.3**2, rel=0.1)
    assert np.mean([s.offset**2 for s in found]) == pytest.approx(1.5**2, rel=0.15)
    np.testing.assert_allclose(np.mean([s.means for s in found], axis=0), truth.means, atol=0.1)
    assert spread([[1.0], [2.0], [4.0]]).noise == pytest.approx(np.std([1, 2, 4], ddof=1))
    with pytest.raises(MirlibError, match="two seeds"):
        spread(np.ones((1, 3)))


def test_a_table_becomes_seeds_by_arms_and_differences():
    table = pd.DataFrame(
        [{"arm": arm, "seed": seed, "mir": value} for arm, seed, value in
         [("plain", 1, 2.0), ("plain", 0, 1.0), ("new", 0, 1.5), ("new", 2, 9.0), ("new", 1, 2.25)]]
    )  # fmt: skip
    assert list(wide(table, "mir").columns) == ["plain", "new"]
    assert wide(table, "mir").loc[0].tolist() == [1.0, 1.5]
    assert paired(table, "new", "plain", "mir").to_dict() == {0: 0.5, 1: 0.25}
    assert len(paired(table, "new", "absent", "mir")) == 0
    with pytest.raises(MirlibError, match="no column accuracy"):
        wide(table, "accuracy")
    with pytest.raises(MirlibError, match="two runs of seed 1"):
        wide(pd.concat([table, table[:1]]), "mir")
