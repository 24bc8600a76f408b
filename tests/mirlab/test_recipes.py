"""Recipes are plain data: no torch, one key for one run, and the way to JSON and back."""

import json
import math
import subprocess
import sys

import pytest

from mirlab import methods, recipes
from mirlab.ledger import key_of
from mirlab.methods.eim import EIM
from mirlab.methods.moca import MoCa
from mirlab.recipes import PLAIN, Method, Run, StageOne, StageTwo
from mirlib.errors import MirlibError


def test_recipes_load_neither_torch_nor_transformers():
    code = "import sys, mirlab.recipes; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


EVERYTHING = Run(
    seed=4,
    parts=recipes.PARTS[2],
    stage_one=StageOne(pairs=2048, batch=8, learning_rate=2e-3, connector="qformer", unlock="half"),
    stage_two=StageTwo(images=512),
    scenes=60,
    method=Method("eim", segments=("st", "lm"), lm_rate=1e-4),
    probes=(16, 64),
    robustness=True,
    zoo=True,
)


@pytest.mark.parametrize("run", [Run(), EVERYTHING, Run(method=Method("moca", rate=None, std=0.02))])
def test_a_run_comes_back_from_its_json(run):
    there = json.loads(json.dumps(run.configuration, allow_nan=False))
    again = Run.of(there)
    assert again.configuration == there == run.configuration
    assert key_of(again.configuration) == key_of(run.configuration)
    warmed = {"stage_one": recipes.replace(run.stage_one, warmup_steps=run.stage_one.schedule.rise)}
    assert again == recipes.replace(run, **warmed)
    assert hash(again) == hash(recipes.replace(run, **warmed))


def test_what_is_not_done_has_no_entry():
    plain = Run().configuration
    assert set(plain) == {"seed", "parts", "stage_one", "stage_two", "scenes"}
    assert set(EVERYTHING.configuration) - set(plain) == {"method", "probes", "robustness", "zoo"}


@pytest.mark.parametrize("pairs, batch, warmup, steps", [(8192, 32, 0.03, 8), (8192, 8, 0.1, 102), (32, 32, 0.03, 1)])
def test_warm_up_has_one_key_however_it_is_given(pairs, batch, warmup, steps):
    share, number = StageOne(pairs, 1, batch, warmup=warmup), StageOne(pairs, 1, batch, warmup_steps=steps)
    assert share.configuration == number.configuration
    assert share.configuration["warmup_steps"] == steps and "warmup" not in share.configuration
    assert share.schedule.factor(steps - 1) == 1.0


def test_the_rate_rises_and_falls_as_written_down():
    """Against the formula in a loop of its own."""
    schedule = recipes.Schedule(40, 0.1, warmup_steps=4)
    for step in range(40):
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 4) / 36)) / 2
        assert schedule.factor(step) == pytest.approx(min((step + 1) / 4, 1.0) if step < 4 else falling)
    assert recipes.Schedule(40, 0.1, warmup_steps=4, scheduler="linear").factor(22) == pytest.approx(0.01 + 0.99 / 2)


def test_the_defaults_are_the_operating_point():
    recipe = Run().stage_one
    assert (recipe.batch, recipe.learning_rate, recipe.scheduler, recipe.warmup) == (32, 0.008, "cosine", 0.03)
    assert len(recipes.PARTS) == len(set(recipes.PARTS)) == len(recipes.SEEDS)


def test_a_run_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="at most 65536 pairs, not 70000"):
        Run(stage_one=StageOne(pairs=70_000))
    with pytest.raises(ValueError, match=r"probes must be rising steps from 1 to 2, not \(2, 1\)"):
        Run(stage_one=StageOne(pairs=64), probes=(2, 1))
    with pytest.raises(ValueError, match="probes must be"):
        Run(stage_one=StageOne(pairs=64), probes=(3,))
    with pytest.raises(ValueError, match="pairs .8. must be at least one batch .32."):
        StageOne(pairs=8)
    with pytest.raises(MirlibError, match="no configuration of a run: .*study"):
        Run.of({**Run().configuration, "study": "final"})  # of the first edition
    with pytest.raises(MirlibError, match="no configuration of a run"):
        Run.of({"seed": 3})


@pytest.mark.parametrize(
    "name, choices",
    [
        ("unlock", recipes.UNLOCKS),
        ("connector", recipes.CONNECTORS),
        ("scheduler", recipes.SCHEDULERS),
        ("detail", ("full", "mid", "brief")),
    ],
)
def test_a_recipe_is_refused_if_it_cannot_be_carried_out(name, choices):
    with pytest.raises(ValueError, match=f"{name} must be one of {', '.join(choices)}, not 'x'"):
        StageOne(**{name: "x"})
    for choice in choices:
        assert getattr(StageOne(**{name: choice}), name) == choice


def test_what_a_run_costs_grows_with_what_it_does():
    base = Run()
    assert Run(stage_one=StageOne(pairs=512)).cost < base.cost
    assert Run(stage_one=StageOne(unlock="all")).cost > base.cost
    for more in ({"probes": (4, 8)}, {"robustness": True}, {"zoo": True}, {"leaning": True}):
        assert Run(**more).cost > base.cost


def test_an_arm_is_a_run_a_seed_on_parts_of_its_own():
    runs = recipes.arm(pairs=512, learning_rate=0.02, method=Method("moca"))
    assert [run.seed for run in runs] == list(recipes.SEEDS)
    assert [run.parts for run in runs] == list(recipes.PARTS)
    assert {recipes.replace(run, seed=0, parts=0) for run in runs} == {
        Run(parts=0, stage_one=StageOne(pairs=512, learning_rate=0.02), method=Method("moca"))
    }
    (pilot,) = recipes.arm(seeds=[103], pairs=512)
    assert (pilot.seed, pilot.parts) == (103, recipes.PARTS[103 % 6])
    with pytest.raises(TypeError, match="pears"):
        recipes.arm(pears=512)


# Methods


def test_the_order_of_options_does_not_matter_and_lists_are_tuples():
    assert Method("eim", final="ie", segments=["st"]) == Method("eim", segments=("st",), final="ie")
    assert Method("eim", segments=["st"]) != Method("eim", segments=["lm"])
    assert Method("moca") != Method("moca", std=0.0)  # what is left out is left to the method
    assert len({Method("moca", std=0.1), Method("moca", std=0.1)}) == 1


def test_options_are_plain_data():
    with pytest.raises(ValueError, match="the option std of moca must be plain data, not object"):
        Method("moca", std=object())


def test_a_method_becomes_what_works():
    assert methods.technique(PLAIN) == methods.PLAIN
    assert methods.technique(Method("moca", rate=0.01)) == MoCa(rate=0.01)
    assert methods.technique(Method.of(EVERYTHING.configuration["method"])) == EIM(("st", "lm"), "none", 1e-4)
    for name in sorted(methods.TECHNIQUES):
        default = methods.technique(Method(name))
        assert default.name == name
        json.dumps(default.configuration)
        assert methods.technique(Method.of(default.configuration)) == default


@pytest.mark.parametrize(
    "method, said",
    [
        (Method("mocca"), "no method is called 'mocca'; there is cal, eim, .*moca"),
        (Method("moca", speed=1), "the method moca has no option 'speed'; there is std, rate"),
        (Method("layer_norm", std=1), "the method layer_norm has no option 'std'; it has none"),
        (Method("eim", final="x"), "the method eim: final must be one of none, .*, not 'x'"),
    ],
)
def test_an_unknown_method_or_option_is_refused_in_one_sentence(method, said):
    with pytest.raises(MirlibError, match=said):
        methods.technique(method)
