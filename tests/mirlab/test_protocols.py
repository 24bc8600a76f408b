"""What the experiments declare before they run: enough seeds, equal runs under equal keys, and arms that hold still."""

import json
from collections import Counter

import pytest

from mirlab import commands, recipes, world
from mirlab.first.protocols import HIGH_RATE, LOW_RATE, PROTOCOLS, SEEDS
from mirlab.ledger import key_of
from mirlab.recipes import CONNECTORS

ARMS = [(name, arm) for name, protocol in PROTOCOLS.items() for arm in protocol.arms]


def keys(name, arm):
    return [key_of(run.configuration) for run in PROTOCOLS[name].arms[arm]]


def differing(a, b, prefix=""):
    """Names of the settings in which two configurations differ."""
    found = set()
    for name in a:
        if isinstance(a[name], dict):
            found |= differing(a[name], b[name], f"{prefix}{name}.")
        elif a[name] != b[name]:
            found.add(f"{prefix}{name}")
    return found


OF_THE_PAPER = [
    "data_scale", "warmup_or_data", "convergence", "overfitting", "robustness",
    "captions", "recipes", "unlocking", "connectors", "sizes",
]  # fmt: skip
CLOSING = ["moca", "eim", "eim_features", "masks", "stages", "weighting"]


def test_every_experiment_of_the_book_has_a_protocol():
    assert list(PROTOCOLS) == [*OF_THE_PAPER, *CLOSING]
    assert commands.names()[:2] == ["base", "parts"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_says_what_it_asks_and_what_would_answer_it(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.question.endswith("?")
    for words in (protocol.figure, protocol.summary, protocol.paper, protocol.primary, protocol.reproduced_when):
        assert len(words) > 5
    for criterion in protocol.criteria.values():
        assert "interval" in criterion  # judged with its uncertainty, and not by a mean alone


@pytest.mark.parametrize("name, arm", ARMS)
def test_every_arm_has_at_least_five_seeds_and_two_seeds_of_encoder_and_language_model(name, arm):
    arm = PROTOCOLS[name].arms[arm]
    assert len({run.seed for run in arm}) == len(arm) >= 5
    assert len({run.parts for run in arm}) >= 2
    assert [(run.seed, run.parts) for run in arm] == [(seed, seed % 2) for seed in SEEDS]  # paired across all arms


@pytest.mark.parametrize("name, arm", ARMS)
def test_the_runs_of_an_arm_differ_in_their_seeds_alone(name, arm):
    first, *others = (run.configuration for run in PROTOCOLS[name].arms[arm])
    for other in others:
        assert differing(first, other) <= {"seed", "parts"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_run_of_a_protocol_is_there_twice(name):
    counted = Counter(key_of(run.configuration) for run in PROTOCOLS[name].runs)
    assert set(counted.values()) == {1}
    assert len(counted) == sum(len(arm) for arm in PROTOCOLS[name].arms.values())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_configuration_survives_json(name):
    for run in PROTOCOLS[name].runs:
        written = json.loads(json.dumps(run.configuration, allow_nan=False))
        assert written == run.configuration
        assert key_of(written) == key_of(run.configuration)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_run_can_be_done(name):
    for run in PROTOCOLS[name].runs:
        recipe = run.stage_one
        assert recipe.detail in world.CAPTION_DETAILS
        assert recipe.connector in CONNECTORS
        assert recipe.scheduler in recipes.SCHEDULERS
        assert run.size in ("small", "base", "large")
        assert 1 <= recipe.warmup_steps < recipe.schedule.steps
        assert all(0 < step < recipe.schedule.steps for step in run.probes)
        assert bool(run.probes) == (run.study == "during")
        assert run.cost > 0


def test_stage_two_and_the_evaluation_are_the_same_for_all():
    shares = "shares, "  # of one budget between the stages: that is what these arms are about
    found = {
        (run.stage_two, run.scenes)
        for protocol in PROTOCOLS.values()
        for arm, settings in protocol.arms.items()
        if not arm.startswith(shares)
        for run in settings
    }
    assert found == {(recipes.StageTwo(images=1024), 120)}
    assert [name for name, arm in ARMS if arm.startswith(shares)] == ["stages", "stages"]


@pytest.mark.parametrize(
    "one, other",
    [
        (("data_scale", "matched, 2048 pairs"), ("connectors", "matched, mlp2")),
        (("data_scale", "matched, 2048 pairs"), ("captions", "matched, full")),
        (("data_scale", "matched, 2048 pairs"), ("unlocking", "none")),
        (("data_scale", "matched, 2048 pairs"), ("sizes", "base")),
        (("data_scale", "high, 2048 pairs"), ("connectors", "high, mlp2")),
        (("data_scale", "high, 2048 pairs"), ("captions", "high, full")),
        (("data_scale", "matched, 8192 pairs"), ("recipes", "matched, base")),
        (("data_scale", "high, 8192 pairs"), ("recipes", "high, base")),
        (("data_scale", "low, 2048 pairs"), ("warmup_or_data", "low, 2048 pairs, 8 warm-up steps")),
        (("data_scale", "low, 8192 pairs"), ("warmup_or_data", "low, 8192 pairs, 31 warm-up steps")),
        (("data_scale", "high, 8192 pairs"), ("warmup_or_data", "high, 8192 pairs, 31 warm-up steps")),
        (("data_scale", "matched, 2048 pairs"), ("warmup_or_data", "matched, 2048 pairs, 8 warm-up steps")),
    ],
)
def test_equal_arms_of_different_experiments_have_equal_keys(one, other):
    assert keys(*one) == keys(*other)


# What is held fixed


@pytest.mark.parametrize("regime", ["high", "low", "matched", "matched high"])
def test_warm_up_is_fixed_where_data_moves_and_data_where_warm_up_moves(regime):
    arms = {
        (pairs, steps): PROTOCOLS["warmup_or_data"].arms[f"{regime}, {pairs} pairs, {steps} warm-up steps"]
        for pairs in (2048, 8192)
        for steps in (8, 31, 124)
    }
    for steps in (8, 31, 124):
        for less, more in zip(arms[2048, steps], arms[8192, steps], strict=True):
            assert differing(less.configuration, more.configuration) == {"stage_one.pairs"}
            for run in (less, more):  # the rate rises for so many steps, and for no more
                factors = [run.stage_one.schedule.factor(step) for step in range(steps + 2)]
                assert factors[:steps] == pytest.approx([(i + 1) / steps for i in range(steps)])
                assert factors[steps + 1] < factors[steps] == 1.0
    for pairs in (2048, 8192):
        for short, long in zip(arms[pairs, 8], arms[pairs, 124], strict=True):
            assert differing(short.configuration, long.configuration) == {"stage_one.warmup_steps"}
    # 3% of the steps, the paper's warm-up, is among the fixed ones at both ends: 8 of 256 and 31 of 1024.
    assert [round(0.03 * pairs / 8) for pairs in (2048, 8192)] == [8, 31]


def test_the_regimes_of_warmup_or_data_are_rate_times_projector():
    arms = PROTOCOLS["warmup_or_data"].arms
    assert {
        regime: (run.stage_one.learning_rate, run.stage_one.norm_matched)
        for regime in ("high", "low", "matched", "matched high")
        for run in arms[f"{regime}, 2048 pairs, 8 warm-up steps"]
    } == {
        "high": (HIGH_RATE, False),
        "low": (LOW_RATE, False),
        "matched": (LOW_RATE, True),
        "matched high": (HIGH_RATE, True),
    }
    assert len(arms) == 4 * 2 * 3


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "warmup_or_data"])
def test_elsewhere_warm_up_is_three_percent_unless_the_arm_says_otherwise(name):
    for arm, settings in PROTOCOLS[name].arms.items():
        share = 0.05 if "warm-up 5%" in arm else 0.03
        for run in settings:
            assert run.stage_one.warmup_steps == max(1, round(share * run.stage_one.schedule.steps))


@pytest.mark.parametrize(
    "name, one, other, changed",
    [
        ("data_scale", "high, 512 pairs", "high, 16384 pairs", {"pairs", "warmup_steps"}),
        ("data_scale", "low, 2048 pairs", "matched, 2048 pairs", {"norm_matched"}),
        ("data_scale", "low, 2048 pairs", "high, 2048 pairs", {"learning_rate"}),
        ("data_scale", "matched, 2048 pairs", "unlocked, 2048 pairs", {"unlock", "unlock_encoder"}),
        ("captions", "high, brief", "high, full", {"detail"}),
        ("recipes", "matched, base", "matched, linear", {"scheduler"}),
        ("recipes", "matched, base", "matched, warm-up 5%", {"warmup_steps"}),
        ("recipes", "high, base", "high, rate x 3", {"learning_rate"}),
        ("unlocking", "none", "lora", {"unlock"}),
        ("unlocking", "lora", "lora_merged", {"unlock"}),
        ("connectors", "high, mlp1", "high, qformer", {"connector"}),
    ],
)
def test_two_arms_differ_in_what_is_compared_and_in_nothing_else(name, one, other, changed):
    arms = PROTOCOLS[name].arms
    for a, b in zip(arms[one], arms[other], strict=True):
        assert differing(a.configuration, b.configuration) == {f"stage_one.{field}" for field in changed}


def test_the_second_epoch_shows_the_same_pairs_again_with_probes_on_both_sides_of_the_boundary():
    for run in PROTOCOLS["overfitting"].runs:
        per_epoch = run.stage_one.pairs // run.stage_one.batch
        assert run.stage_one.schedule.steps == 2 * per_epoch
        assert per_epoch in run.probes
        assert any(step < per_epoch for step in run.probes) and any(step > per_epoch for step in run.probes)
