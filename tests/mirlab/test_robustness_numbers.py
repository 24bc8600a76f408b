"""The numbers of chapter 9: unit, ranges by chance, noise that models share, samples, and what the claims come to."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mirlab import ledger
from mirlab.first import robustness
from mirlab.first.estimates import Estimate
from mirlab.first.outcomes import BELOW, NOT_MEASURED, Part
from mirlab.first.protocols import MOVED, PROTOCOLS


def rows_of(name, arm, metrics):
    """Rows of an arm, the highest seed first."""
    runs = sorted(PROTOCOLS[name].arms[arm], key=lambda run: -run.seed)
    return [
        {"experiment": name, "arm": arm, "key": ledger.key_of(run.configuration), "configuration": run.configuration}
        | {"metrics": metrics(run), "seconds": {"all": 1.0}}
        for run in runs
    ]


def test_runs_come_by_regime_in_the_order_of_the_seeds_and_know_their_parts():
    rows = rows_of("robustness", "matched", lambda run: {})
    rows += [{**rows[0], "arm": "of an older protocol"}]
    (found,) = robustness.by_regime(rows).values()
    assert [row["configuration"]["seed"] for row in found] == [0, 1, 2, 3, 4]
    assert robustness.by_parts(found) == {0: [0, 2, 4], 1: [1, 3]}
    assert robustness.by_regime([]) == {} and robustness.units([]) == {}


def test_the_unit_is_the_span_over_the_amounts_of_data_and_knows_which_way_mir_goes():
    def measured(level, seed):
        mir = {
            "value": 3 + level * (1 + seed),
            "norm_ratio": [1.0],
            "norm_only": 3 + 1.1 * level,
            "null": 0,
            "floor": 0,
        }
        rest = {"perplexity": {"in_domain": 1, "out_of_domain": 1}, "in_context": {"text": 0, "image": 0}}
        return rest | {
            "stage_one": {"loss": 1.0}, "mir": mir | {"floor": 0}, "discrimination": 0.5, "mir_scenes": 1.0,
            "accuracy": {"mean": 0.4 + level, "blind": 0.3},
        }  # fmt: skip

    levels = {512: 0.0, 2048: 0.1, 8192: 0.2, 16_384: 0.3}
    rows = [
        row
        for pairs, level in levels.items()
        for row in rows_of("data_scale", f"high, {pairs} pairs", lambda run, x=level: measured(x, run.seed))
    ]
    (unit,) = robustness.units(rows[:-1]).values()  # the last amount lacks seed 0
    assert unit.by_seed == pytest.approx({1: 0.6, 2: 0.9, 3: 1.2, 4: 1.5})
    assert unit.value == pytest.approx(1.05)
    assert unit.accuracy.low == unit.pairs.low == 1.0, "here MIR rises with both"
    assert unit.length == pytest.approx(1.5 - 0.33)
    told = robustness.about("high", unit)
    assert (
        "U is 1.050; by seed 0.600, 0.900, 1.200, 1.500 (provisional: 4 of 5 seeds)" in told
        and "rises with accuracy" in told
    )
    assert told.endswith("more than a span of lengths.")
    assert robustness.warnings({"high": unit}) == [], "four seeds are too few"
    unit = replace(unit, by_seed=unit.by_seed | {0: 0.3})
    assert "little about an instrument for quality" in " ".join(robustness.warnings({"high": unit}))
    lower = replace(unit, accuracy=Estimate(-0.9, -1.0, -0.8, 5), length=0.01)
    assert robustness.warnings({"high": lower}) == []
    assert robustness.about("high", lower).endswith("this U is a span of lengths.")
    assert "falls with accuracy" in robustness.about("high", lower)


def test_the_range_by_chance_keeps_what_a_row_of_pictures_has_in_common():
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(60, 4, 1, 3)), 5, axis=2)
    single = rng.normal(size=(60, 4, 5, 3))
    # The mean of a cell has the deviation 1/√3; the range of 4 normal values is 2.059 on average, of 20 it is 3.735.
    assert robustness.chance_range(shared).mean() == pytest.approx(2.059 / 3**0.5, rel=0.08)
    assert robustness.chance_range(single).mean() == pytest.approx(3.735 / 3**0.5, rel=0.08)
    moved = single + 100 * np.arange(5)[:, None]
    np.testing.assert_allclose(robustness.chance_range(moved), robustness.chance_range(single), rtol=1e-9)


def test_differences_are_signed_and_their_noise_is_that_of_the_draws():
    rows = [{"metrics": {"template": {"chat": [1.0, 2.0, 3.0], "plain": [1.5, 2.5, 4.5]}}}] * 3
    found = robustness.differences(rows, "template")
    np.testing.assert_allclose(found, [[0.5, 0.5, 1.5]] * 3)
    assert robustness.noise(found) == pytest.approx(1 / 3), "three models with the same draws are no three witnesses"


def test_counts_say_how_far_the_mean_is_shifted_and_how_sure_that_is():
    rows = [
        {"metrics": {"counts": {"10": [1.2, 1.4], "1": [3.0, 1.0], "100": [1.0, 1.0]}}},
        {"metrics": {"counts": {"10": [1.8, 2.0], "1": [4.0, 2.0], "100": [2.0, 2.0]}}},
    ]
    table = robustness.by_count(rows)
    assert list(table.index) == [1, 10, 100]
    assert table.loc[1].to_dict() == pytest.approx({"shift": 1.0, "error": 1.0, "up": 2, "deviation": 2**0.5})
    assert table.loc[10, ["shift", "error", "up"]].tolist() == pytest.approx([0.1, 0.1, 1])


def claim(paper, condition, low, high):
    """A claim with this interval, held against the limit of its protocol."""
    middle, of_samples = (low + high) / 2, paper not in MOVED.values()
    held = Part("", Estimate(middle, low, high, 5), BELOW, limit=20 if of_samples else 0.25, closed=of_samples)
    outcome = NOT_MEASURED if np.isnan(middle) else held.outcome
    return SimpleNamespace(paper=paper, condition=condition, estimate=middle, low=low, high=high, outcome=outcome)


def test_what_holds_fails_or_is_left_open_follows_from_the_intervals():
    nan = float("nan")
    names = iter(MOVED.values())
    first, second, third, fourth = (next(names) for _ in range(4))
    claims = [
        claim(first, "high", 0.1, 0.2), claim(first, "matched", 0.1, 0.2499),
        claim(second, "high", 0.1, 0.2), claim(second, "matched", 0.1, 0.3),
        claim(third, "high", 0.3, 0.4), claim(third, "matched", 0.3, 0.4),
        claim(fourth, "high", nan, nan), claim(fourth, "matched", nan, nan),
        claim("20 samples are enough", "high", 5, 20), claim("20 samples are enough", "matched", 21, 30),
    ]  # fmt: skip
    assert robustness.conclusions(claims) == [
        "Reproduced in every regime tested: kind of picture.",
        "Reproduced in *high* alone: kind of text (undecided in *matched*), 20 samples (fails in *matched*).",
        "Reproduced in none: both kinds together (fails in both).",
    ]
    assert robustness.conclusions([]) == robustness.conclusions(claims[6:8]) == []
