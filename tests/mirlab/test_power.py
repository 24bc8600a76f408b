"""The oracle's rates beside the ledger are what the pilot gives, and the pilot's seeds are nobody else's."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mirlab import power
from mirlab.claims import Contrast, Effect, Follows
from mirlab.experiments import EXPERIMENTS

RESULTS = Path(__file__).parents[2] / "results"


def made(noise, *, step="end", seed=0):
    rng = np.random.default_rng(seed)
    parts = range(10, 16)
    return pd.DataFrame(
        {"parts": parts, "step": step, "mir": rng.normal(0, noise, 6), "accuracy": rng.normal(0, noise, 6)}
    )


def test_the_noise_of_a_claim_is_that_of_two_runs_of_one_set_of_parts():
    offsets = np.array([3.0, -1.0, 0.5, 2.0, -4.0, 1.0])
    once, again = (made(0.1, seed=seed) for seed in (1, 2))
    for table in (once, again):
        table["mir"] += offsets
    claim = Contrast("falls", "ours", "new", "plain", "mir", effect=-1.0)
    spread = power._of(claim, once, again, pd.DataFrame())["mir"]
    expected = (once["mir"] - again["mir"]).std(ddof=1) / np.sqrt(2)  # independent of the offsets
    np.testing.assert_allclose(spread.noise, [expected] * 2)
    both = (once["mir"] + again["mir"]) / 2
    assert spread.offset == pytest.approx(np.sqrt(both.var(ddof=1) - expected**2 / 2))


def test_arms_at_a_step_have_the_noise_of_that_step():
    once = pd.concat([made(0.1, seed=1), made(0.7, step="64", seed=2)])
    again = pd.concat([made(0.1, seed=3), made(0.7, step="64", seed=4)])
    claim = Effect("falls", "ours", {"plain": 1, "plain, step 64": -1}, "mir", effect=-1.0)
    late, early = power._of(claim, once, again, pd.DataFrame())["mir"].noise
    assert early > 3 * late


def test_ranked_arms_have_the_means_that_are_known():
    means = pd.DataFrame({"mir": [1.0, 2.0], "accuracy": [0.5, 0.4]}, index=["a", "b"])
    claim = Follows("follows", "ours", ("b", "a"), "mir", "accuracy")
    known = power._of(claim, made(0.1), made(0.1, seed=5), means)
    assert known["accuracy"].means.tolist() == [0.4, 0.5] and known["mir"].means.tolist() == [2.0, 1.0]


def test_the_seeds_of_the_pilot_are_used_by_no_experiment():
    used = {run.seed for name, declared in EXPERIMENTS.items() if name != "pilot" for run in declared.runs}
    assert max(used) < 100 <= min(run.seed for run in EXPERIMENTS["pilot"].runs)


@pytest.mark.skipif(not (RESULTS / "pilot.jsonl").exists(), reason="the pilot has not been run")
def test_the_rates_beside_the_ledger_are_those_of_the_pilot():
    written = json.loads((RESULTS / power.FILE).read_text(encoding="utf-8"))
    assert written == power.rates(RESULTS)
    for name, declared in EXPERIMENTS.items():
        assert set(written.get(name, {})) <= {claim.name for claim in declared.claims}
