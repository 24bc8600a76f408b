"""What chapter 8 says of the ledger follows from the rows, whatever they say and however many there are."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_rows import measured, rows_of

from mirlab.first import figures, scale
from mirlab.first.mediation import LITTLE, LONG, MUCH, SHORT
from mirlab.first.tables import frame


def scale_rows(mir, seeds=range(5), **more):
    """data_scale with MIR, and other metrics, as functions of regime and pairs; accuracy rises with the pairs."""

    def metrics(arm, run):
        regime, pairs = arm.partition(",")[0], run.stage_one.pairs
        found = {key: by(regime, pairs) for key, by in more.items()}
        found = {"accuracy": 0.1 * np.log2(pairs) - 0.7, "loss": 10 / pairs} | found
        # Levels that differ from seed to seed must not matter.
        return measured(mir=mir(regime, pairs) + run.seed, **found)

    return rows_of("data_scale", metrics, seeds=seeds)


@pytest.fixture(scope="module")
def falling_in_high():
    """In high MIR falls with data and is all length, elsewhere it rises and is not."""
    return scale_rows(
        lambda regime, pairs: (-1 if regime == "high" else 1) * np.log2(pairs),
        norm_only=lambda regime, pairs: -np.log2(pairs) if regime == "high" else 0.0,
    )


def test_a_metric_follows_only_with_its_own_sign(falling_in_high):
    table = frame(falling_in_high)
    assert [scale.ranks(table, regime, "mir").follows for regime in scale.REGIMES] == [True, False, False, False]
    assert scale.ranks(table, "low", "pairs").follows and scale.ranks(table, "low", "loss").follows
    assert scale.in_regimes(table, "mir") == "better with data in 1, worse in 3 of 4"


def test_the_outcome_counts_regimes_and_names_what_is_length_only(falling_in_high):
    ranks, length = scale.scale_outcome(falling_in_high)
    assert "in 1 of 4 regimes; the loss in 4, and the number of pairs" in ranks and "*high* −1.00, *low* +1.00" in ranks
    assert "the loss and the number of pairs in all" in ranks
    assert "*high* −5.00 [−5.00, −5.00] (−5.00)" in length
    assert length.endswith("In *high* this is a change of length and of nothing else.")


@pytest.mark.parametrize(("seeds", "known"), [(range(5), True), (range(4), False), ((), False)])
def test_nothing_is_said_below_five_seeds(seeds, known):
    rows = scale_rows(lambda regime, pairs: pairs, seeds=seeds)
    table = frame(rows)
    assert ("regimes; the loss in 4" in scale.scale_outcome(rows)[0]) is known
    assert bool(scale.in_regimes(table, "mir")) is known
    assert ("Not measured yet" not in scale.flattening(table)) is known
    assert bool(scale.other_domain(table)) is known


def test_flattening_tells_saturation_from_a_rise():
    def accuracy(regime, pairs):
        return 0.5 if regime == "high" else 0.1 * np.log2(pairs) - 0.7

    told = scale.flattening(frame(scale_rows(lambda regime, pairs: 1.0, accuracy=accuracy))).splitlines()
    assert "accuracy's interval holds 0" in told[0] and "the interval of MIR holds 0, too" in told[0]
    assert all("cannot be tested" in line for line in told[1:])


def test_against_zeroed_rows_counts_arms_and_runs():
    rows = scale_rows(lambda regime, pairs: 1.0)  # plus the seed: all above the zeroed-rows baseline of 0.9
    told = scale.against_zeroed_rows(frame(rows))
    assert "In all 15 arms" in told and "75 single runs, 0 lie" in told
    rows = scale_rows(lambda regime, pairs: -9.0 if regime == "low" else 0.0)
    told = scale.against_zeroed_rows(frame(rows))
    assert (
        "In 11 of 15 arms" in told and "31 lie below it, all of them in *high*, *low*, *matched* and *unlocked*" in told
    )


def test_a_shape_starts_at_zero_in_every_seed_and_turns_up_for_better():
    found = np.array([[5.0, 1.0], [4.0, 2.0], [2.0, 0.0]])
    shape = scale.shape(found, -1)
    np.testing.assert_allclose(shape, [[0, 0], [0.5, -0.5], [1.5, 0.5]])
    np.testing.assert_array_equal(scale.shape(np.ones((3, 2)), 1), 0)


def test_the_nearest_shape_is_certain_only_if_the_runner_up_is_farther_in_the_resamples():
    rise = np.arange(4.0)[:, None] + np.zeros(5)
    noise = np.random.default_rng(0).normal(size=(4, 5))
    assert scale.nearest({"same": (2 * rise, 1), "falls": (-rise, 1)}, rise) == ("same", True)
    assert scale.nearest({"same": (-rise, -1), "falls": (rise, -1)}, rise) == ("same", True), "signs count"
    assert scale.nearest({"a": (rise + 0.2 * noise, 1), "b": (rise - 0.2 * noise, 1)}, rise)[1] is False


def test_given_away_is_what_a_choice_loses_against_the_best():
    best = {"high": 0.7, "low": 0.6, "matched": 0.5, "unlocked": 0.9}
    rows = scale_rows(
        lambda regime, pairs: {"matched": 1.0}.get(regime, 2.0),
        accuracy=lambda regime, pairs: best[regime],
        loss=lambda regime, pairs: -best[regime],
    )
    table = frame(rows)
    np.testing.assert_allclose(scale.given_away(table, "mir"), 0.2)
    np.testing.assert_allclose(scale.given_away(table, "loss"), 0.0, atol=1e-12)
    np.testing.assert_allclose(scale.given_away(table, always="low"), 0.1)
    np.testing.assert_allclose(scale.given_away(table), 0.1)
    assert scale.given_away(table).shape == (4, 5)
    assert scale.choices(table, "mir") == {"high": 0, "low": 0, "matched": 20}
    assert scale.given_away(frame([]), "mir").size == 0 and scale.choices(frame([]), "mir") == {}


@pytest.fixture(scope="module")
def warmup_rows():
    """MIR = 2 at the high rate with a plain projector, + 0.5 for much data there, − 0.25 for the longest warm-up."""

    def metrics(arm, run):
        series, recipe = arm.partition(",")[0], run.stage_one
        mir = 2.0 + 0.5 * (recipe.pairs == MUCH) if series == "high" else 0.1 * (series == "low")
        mir -= 0.25 * (recipe.warmup_steps == LONG)
        return measured(
            mir=mir + run.seed, norm_only=mir - 0.01, accuracy=0.4 + 0.1 * (recipe.pairs == MUCH), ratio=3.0
        )

    return rows_of("warmup_or_data", metrics)


def test_switches_turn_one_thing_and_keep_the_rest(warmup_rows):
    found = {switch.name: switch for switch in scale.switches(frame(warmup_rows))}
    means = {name: switch.mir.mean() for name, switch in found.items()}
    expected = {
        f"{MUCH // LITTLE} × the data, high": 0.5,
        f"{MUCH // LITTLE} × the data, matched": 0.0,
        f"warm-up {LONG} for {SHORT}, low": -0.25,
        "10 × the rate, plain": 2.15,
        "10 × the rate, matched": 0.0,
        "norms matched, high rate": -2.25,
        "norms matched, low rate": -0.1,
    }
    assert {name: pytest.approx(means[name]) for name in expected} == expected
    assert found["10 × the rate, plain"].accuracy.mean() == pytest.approx(0.0)
    assert len(found) == 12


def test_the_outcome_of_warmup_or_data_ranks_the_switches(warmup_rows):
    told = scale.warmup_outcome(warmup_rows)
    assert "largest first: *norms matched, high rate*: −2.25 [−2.25, −2.25]; *10 × the rate, plain*: +2.15" in told[0]
    assert "to within 0.00" in told[1]
    assert "*high* +0.50 = +0.00 by warm-up + 0.50 by data" in told[2]
    assert "raise accuracy in 4 of 4 series; MIR falls in 0 of them and rises in 1" in told[3]
    assert "Over all 24 settings" in told[4] and "layer 1 is +0.00 [+0.00, +0.00], with the accuracy +0." in told[4]


def test_a_ledger_in_the_making_says_what_is_missing(warmup_rows):
    four = [row for row in warmup_rows if row["configuration"]["seed"] < 4]
    (only,) = scale.warmup_outcome(four)
    assert "no series with five complete seeds" in only
    plain = [row for row in warmup_rows if not row["configuration"]["stage_one"]["norm_matched"]]
    told = scale.warmup_outcome(plain)
    assert "*10 × the rate, plain*" in told[0] and "*norms matched, high rate*" in told[-1]
    assert scale.warmup_outcome([]) and scale.scale_outcome([])


def test_seeds_with_other_parts_are_crosses_and_keep_their_values():
    with mpl.rc_context({"backend": "agg"}):
        values, crossed = np.array([0.1, np.nan, 0.3]), {"high": [False, False, True]}
        ax = figures.figure_seed_values({"MIR": {"high": values}}, xlabel="change", crossed=crossed)
        drawn = [(one.get_marker(), list(one.get_xdata())) for one in ax.get_lines()]
        assert ("|", [0.1]) in drawn and ("x", [0.3]) in drawn
        figures.level(ax, 2.0, "null")
        assert (ax.texts[-1].get_text(), ax.texts[-1].xy[1]) == ("null", 2.0)
        plt.close(ax.figure)
