"""The oracle's rates beside the ledger are what the pilot gives, and the pilot's seeds are nobody else's."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mirlab import power, results
from mirlab.claims import Contrast, Follows, ceilings
from mirlab.experiments import EXPERIMENTS
from mirlab.ledger import Ledger, key_of

PILOTS = ("pilot", "real_pilot")
RESULTS = Path(__file__).parents[2] / "results"


def made(noise, *, seed=0):
    """A pilot whose seeds have levels of their own, and its runs noise about them; one column is the plain arm's."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"seed": range(100, 112), "parts": [*range(10, 16)] * 2, "level": rng.normal(0, 5, 12)})
    table = pd.concat([table.assign(arm=arm) for arm in ("plain", "8192 pairs")], ignore_index=True)
    drawn = rng.normal(0, noise, (3, len(table)))
    table["mir"], table["accuracy"] = table["level"] + drawn[0], table["level"] + drawn[1]
    table["asked"] = (table["parts"] + drawn[2]).where(table["arm"] == "plain")
    return table


def test_the_noise_of_a_claim_is_that_of_two_arms_of_one_seed():
    pilot = made(0.1)
    claim = Contrast("falls", "ours", "new", "plain", "mir", effect=-1.0)
    spread = power._of(claim, pilot, pd.DataFrame())["mir"]
    plain, half = (pilot.loc[pilot["arm"] == arm, "mir"].to_numpy() for arm in ("plain", "8192 pairs"))
    assert spread.noise == pytest.approx((plain - half).std(ddof=1) / np.sqrt(2))  # the seeds' levels do not count
    both = (plain + half) / 2
    assert spread.offset == pytest.approx(np.sqrt(both.var(ddof=1) - spread.noise**2 / 2))


def test_it_is_that_of_two_seeds_of_a_set_of_parts_where_these_differ_less_or_are_all_there_is():
    pilot = made(0.1)
    plain = pilot[pilot["arm"] == "plain"]
    for column in ("asked", "mir"):
        if column == "mir":  # no level of a seed, but an effect of the amount of data that differs from seed to seed
            pilot["mir"] = pilot["asked"].fillna(pilot["level"])
        once, again = plain["asked"].to_numpy()[:6], plain["asked"].to_numpy()[6:]
        claim = Contrast("falls", "ours", "new", "plain", column, effect=-1.0)
        expected = (once - again).std(ddof=1) / np.sqrt(2)
        assert power._of(claim, pilot, pd.DataFrame())[column].noise == pytest.approx(expected)


@pytest.mark.parametrize("x", ["mir", "pairs"])
def test_the_oracle_of_ranked_arms_knows_their_means(x):
    """Whatever it ranks by: it is to know the order itself, so that only the noise of what is ranked is in its way."""
    means = pd.DataFrame({"mir": [1.0, 2.0, 1.5], "accuracy": [0.5, 0.4, 0.45]}, index=["a", "b", "c"])
    claim = Follows("follows", "ours", ("b", "a", "c"), x, "accuracy")
    pilot = made(0.001).assign(pairs=8192.0)
    known = power._of(claim, pilot, means)
    assert known["accuracy"].means.tolist() == [0.4, 0.5, 0.45]
    assert ceilings([claim], [known])["follows"] == 1


def test_the_seeds_of_the_pilot_are_used_by_no_experiment():
    used = {run.seed for declared in EXPERIMENTS.values() if declared.claims for run in declared.runs}
    assert max(used) < 100 <= min(run.seed for pilot in PILOTS for run in EXPERIMENTS[pilot].runs)


def test_the_noise_of_the_real_parts_is_that_of_their_own_pilot():
    arms = {"8192 pairs": "1024 pairs, 2 warm-up steps", "plain": "1024 pairs, 8 warm-up steps"}
    table = made(0.1).replace({"arm": arms})
    table["mir_minus_norm_only"] = table["accuracy"]
    for claim in EXPERIMENTS["real"].claims:
        column = claim.columns[-1]
        known = power._of_real(claim, table)[column]
        short, long = (table.loc[table["arm"] == name, column].to_numpy() for name in arms.values())
        assert known.noise == pytest.approx((long - short).std(ddof=1) / np.sqrt(2))
        assert known.means.shape == (len(claim.arms),) == (4,)


def test_the_rates_beside_the_ledger_are_those_of_the_pilot():
    for pilot in PILOTS:
        wanted = {key_of(run.configuration) for run in EXPERIMENTS[pilot].runs}
        if wanted - {row["key"] for row in Ledger(RESULTS / f"{pilot}.jsonl").rows()}:
            pytest.skip("a pilot has not been run to the end")
    written = json.loads((RESULTS / results.CEILINGS).read_text(encoding="utf-8"))
    assert written == power.rates(RESULTS)
    for name, declared in EXPERIMENTS.items():
        assert set(written.get(name, {})) <= {claim.name for claim in declared.claims}
