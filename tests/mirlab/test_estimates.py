"""The first edition's rows say what they said before the laboratory moved: every estimate, interval and verdict.

`estimates_0.1.json` was written by the code before the move, and by no code of today.
"""

import json
from itertools import zip_longest
from pathlib import Path

import pytest

from mirlab import ledger
from mirlab.first import tables, verdicts
from mirlab.first.protocols import PROTOCOLS

RESULTS = Path(__file__).parents[2] / "results" / "0.1"
STORED = json.loads((Path(__file__).parent / "estimates_0.1.json").read_text(encoding="utf-8"))
NUMBERS = ("estimate", "low", "high")


@pytest.fixture(scope="module", params=PROTOCOLS)
def experiment(request):
    rows = tables.load(request.param, RESULTS)
    return PROTOCOLS[request.param], rows, STORED["experiments"][request.param]


def as_stored(claims):
    return [[c.paper, c.condition, *(getattr(c, name) for name in NUMBERS), c.verdict] for c in claims]


def same(then, now):
    """Whether numbers are those that were stored, to 1e-9; what was not a number is stored as null."""
    then = [float("nan") if value is None else value for value in then]
    return list(now) == pytest.approx(then, abs=1e-9, rel=0, nan_ok=True)


def changed_claims(protocol, rows, stored):
    """Claims, then and now, whose name, number or verdict is another."""
    pairs = zip_longest(stored["claims"], as_stored(verdicts.judge(protocol, rows)), fillvalue=[None] * 6)
    return [
        (then, now)
        for then, now in pairs
        if not ([then[0], then[1], then[5]] == [now[0], now[1], now[5]] and same(then[2:5], now[2:5]))
    ]


def changed_arms(protocol, rows, stored):
    """Arms whose number of runs, means or intervals are others."""
    found = tables.summary(protocol, rows)
    assert list(found.index) == list(stored["arms"])
    return [arm for arm, then in stored["arms"].items() if not same(then, found.loc[arm, STORED["columns"]])]


def test_every_claim_is_judged_as_before(experiment):
    assert changed_claims(*experiment) == []


def test_every_arm_has_the_means_and_intervals_of_before(experiment):
    assert changed_arms(*experiment) == []


def test_all_experiments_are_stored_with_all_their_claims():
    assert list(STORED["experiments"]) == list(PROTOCOLS)
    assert sum(len(one["claims"]) for one in STORED["experiments"].values()) == 148
    assert sum(len(one["arms"]) for one in STORED["experiments"].values()) == 131


def test_a_row_that_says_something_else_is_noticed():
    """One run's accuracy moved by a ten-millionth, and then the arm of one run."""
    protocol, stored = PROTOCOLS["masks"], STORED["experiments"]["masks"]
    rows = tables.load("masks", RESULTS)
    arm = rows[0]["arm"]
    rows[0]["metrics"]["accuracy"]["mean"] += 1e-7
    assert changed_claims(protocol, rows, stored) and changed_arms(protocol, rows, stored) == [arm]
    rows = tables.load("masks", RESULTS)
    rows[0]["arm"] = "of no protocol"
    assert changed_claims(protocol, rows, stored) and changed_arms(protocol, rows, stored) == [arm]


# ---------------------------------------------------------------------------------------------------------------------
# The index of arms


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_index_names_the_arm_of_every_run(name):
    """Five runs an arm that differ in the seed alone, every one in the ledger, under the keys of their settings."""
    index = json.loads((RESULTS / tables.INDEX).read_text(encoding="utf-8"))[name]
    configurations = {row["key"]: row["configuration"] for row in tables.load_runs(name, RESULTS)}
    assert list(index) == list(PROTOCOLS[name].arms)
    for arm, keys in index.items():
        own = [configurations.pop(key) for key in keys]
        assert [one["seed"] for one in own] == [0, 1, 2, 3, 4], arm
        rest = {json.dumps({k: v for k, v in one.items() if k not in ("seed", "parts")}, sort_keys=True) for one in own}
        assert len(rest) == 1, arm
    assert not configurations, "runs in the ledger that the index does not name"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_index_and_the_protocol_agree(name):
    index = json.loads((RESULTS / tables.INDEX).read_text(encoding="utf-8"))[name]
    arms = PROTOCOLS[name].arms
    assert index == {arm: [ledger.key_of(run.configuration) for run in runs] for arm, runs in arms.items()}
