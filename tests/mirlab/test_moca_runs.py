"""MoCa and the LayerNorm in a run of the laboratory, their protocol, and its judge on rows that are made up."""

import copy
import json

import pytest
import torch
from made_rows import measured, rows_of

from mirlab import recipes
from mirlab.first import verdicts
from mirlab.first.closing import moca as experiment
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, UNDECIDED
from mirlab.first.protocols import PROTOCOLS
from mirlab.ledger import key_of
from mirlab.methods import PLAIN, TECHNIQUES
from mirlab.methods.moca import LayerNorm, MoCa
from mirlab.model import train
from mirlib.align import moca, norms

PROTOCOL = experiment.PROTOCOL
RECIPE = recipes.StageOne(pairs=24, batch=8, warmup_steps=1, learning_rate=1e-2)
TUNE = recipes.StageTwo(images=8, batch=4)


def trained(model, tokenizer, method):
    """A copy of a model after three steps of stage 1, and what they left behind."""
    model = copy.deepcopy(model)
    return model, train.stage_one(model, tokenizer, RECIPE, seed=3, method=method, progress=False)


# In training


def test_moca_learns_in_both_stages_from_where_the_plain_run_starts(tiny, tokenizer):
    _, plain = trained(tiny, tokenizer, PLAIN)
    model, history = trained(tiny, tokenizer, MoCa())
    assert plain.after == {}
    assert history.losses[0] == plain.losses[0]
    assert history.losses[1:] != plain.losses[1:]

    calibration = moca.find(model)
    u, v = (each.detach().clone() for each in (calibration.u, calibration.v))
    moved = ((u != 1) | (v != 0)).any(dim=1)
    assert moved.tolist() == [True, False]  # of two layers: no text row reads what the last one hands on
    assert 0 < (u[0] - 1).abs().max() <= 3 * RECIPE.learning_rate  # at the connector's rate
    language_model = {k: p for k, p in model.model.language_model.state_dict().items() if not k.startswith("moca.")}
    before = tiny.model.language_model.state_dict()
    assert language_model.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in language_model.items())

    said = history.after
    assert json.loads(json.dumps(said)) == said
    assert said["u_mean"] == pytest.approx(u.mean(dim=1).tolist())
    assert said["u_sd"] == pytest.approx(u.std(dim=1).tolist())
    assert said["v_norm"] == pytest.approx(v.norm(dim=1).tolist())

    tuned = copy.deepcopy(model)
    train.stage_two(tuned, tokenizer, TUNE, seed=3, method=MoCa(), progress=False)
    assert not torch.equal(moca.find(tuned).u[0], u[0]) and torch.equal(moca.find(tuned).u[1], u[1])
    assert torch.equal(moca.find(model).u, u)


def test_the_spread_and_the_seed_of_a_run_set_the_start(tiny):
    model = copy.deepcopy(tiny)
    parameters = MoCa(std=0.02).attach(model, seed=5)
    calibration = moca.find(model)
    assert [id(p) for p in parameters] == [id(calibration.u), id(calibration.v)]
    assert torch.equal(calibration.u, moca.Calibration(*calibration.u.shape, std=0.02, seed=5).u)


def test_the_layer_norm_learns_in_both_stages(tiny, tokenizer):
    model, history = trained(tiny, tokenizer, LayerNorm())
    projector = model.model.multi_modal_projector
    layer_norm = norms.find(model)
    assert layer_norm in projector.children()
    start = norms.text_norm(tiny) / layer_norm.normalized_shape[0] ** 0.5
    gain = layer_norm.weight.detach().clone()
    assert 0 < (gain - start).abs().max() <= 3 * RECIPE.learning_rate
    assert layer_norm.bias.any()
    assert history.after == {}
    train.stage_two(model, tokenizer, TUNE, seed=3, method=LayerNorm(), progress=False)
    assert not torch.equal(layer_norm.weight, gain)


# The protocol


def test_the_runs_differ_in_what_is_asked_and_in_nothing_else():
    assert TECHNIQUES["moca"] is MoCa and TECHNIQUES["layer_norm"] is LayerNorm
    keys = [key_of(run.configuration) for run in PROTOCOL.runs]
    assert len(set(keys)) == len(keys) == 50
    for rate, ways in experiment.RATES.items():
        for way, arm in ways.items():
            for run, plain in zip(PROTOCOL.arms[arm], PROTOCOL.arms[f"{rate}, plain"], strict=True):
                told = {"MoCa": {"name": "moca", "std": 0.0}, "LayerNorm": {"name": "layer_norm"}}.get(way)
                found = run.configuration
                assert found.pop("method", None) == told
                expected = plain.configuration
                expected["stage_one"]["norm_matched"] = way == "matched norms"
                assert found == expected


def test_the_plain_arms_are_runs_of_other_experiments():
    others = {key_of(run.configuration) for name in ("data_scale", "warmup_or_data") for run in PROTOCOLS[name].runs}
    shared = {arm for arm, runs in PROTOCOL.arms.items() if all(key_of(r.configuration) in others for r in runs)}
    assert shared == {"high, plain", "low, plain", "matched, plain", "matched high"}


# The judge


MIR = {
    "high, plain": 3.7, "high, MoCa": 3.2, "high, LayerNorm": 1.5, "matched high": 1.0,
    "low, plain": 1.2, "low, MoCa": 1.3, "low, LayerNorm": 1.2, "matched, plain": 1.0,
    "matched, MoCa": 1.0, "low, MoCa 0.02": 1.31,
}  # fmt: skip
ACCURACY = {
    "high, plain": 0.50, "high, MoCa": 0.53, "high, LayerNorm": 0.56, "matched high": 0.60,
    "low, plain": 0.50, "low, MoCa": 0.60, "low, LayerNorm": 0.55, "matched, plain": 0.45,
    "matched, MoCa": 0.45, "low, MoCa 0.02": 0.60,
}  # fmt: skip


def made(arm, run, layers=None):
    """Levels of `MIR` and `ACCURACY`; what differs by nothing differs by noise of both signs."""
    noise = (run.seed - 2) * 1e-3
    own = noise if arm in ("matched, MoCa", "low, LayerNorm") else 0
    found = measured(MIR[arm] + noise + own, ACCURACY[arm] + noise + own)
    found["mir"]["per_layer"] = [10.0**3 * 10**noise * change for change in (layers or {}).get(arm, [1.0] * 8)]
    return found


@pytest.fixture(scope="module")
def outcomes():
    falls = [0.5] * 8
    layers = {"high, MoCa": falls, "low, MoCa": [*falls[:-1], 2.0], "matched, MoCa": [*falls[:-1], 1.0]}
    claims = verdicts.judge(PROTOCOL, rows_of("moca", lambda arm, run: made(arm, run, layers)))
    return {(claim.paper, claim.condition): claim for claim in claims}


def test_every_claim_of_the_protocol_is_judged_under_its_conditions(outcomes):
    assert {paper for paper, _ in outcomes} == set(PROTOCOL.criteria)
    conditions = {}
    for paper, condition in outcomes:
        conditions.setdefault(paper, set()).add(condition)
    for paper in (experiment.LOWERS, experiment.RAISES, experiment.LAYERS):
        assert conditions[paper] == {"high", "low", "matched"}
    assert conditions[experiment.START] == {"low"}
    assert all(claim.seeds == 5 and claim.figure == "Table 5" for claim in outcomes.values())
    ours = {paper for (paper, _), claim in outcomes.items() if claim.source == "ours"}
    assert set(PROTOCOL.criteria) - ours == {experiment.LOWERS, experiment.RAISES}


@pytest.mark.parametrize(
    ("paper", "condition", "outcome"),
    [
        (experiment.LOWERS, "high", REPRODUCED),
        (experiment.LOWERS, "low", OPPOSITE),
        (experiment.LOWERS, "matched", UNDECIDED),
        (experiment.RAISES, "high", REPRODUCED),
        (experiment.RAISES, "matched", UNDECIDED),
        (experiment.LAYERS, "high", REPRODUCED),
        (experiment.LAYERS, "low", OPPOSITE),
        (experiment.LAYERS, "matched", UNDECIDED),
        (experiment.LAYER_NORM, "high", REPRODUCED),
        (experiment.MORE_ACCURATE["LayerNorm"], "high", OPPOSITE),
        (experiment.MORE_ACCURATE["LayerNorm"], "low", REPRODUCED),
        (experiment.MORE_ACCURATE["matched norms"], "low", REPRODUCED),
        (experiment.LOWER["LayerNorm"], "high", OPPOSITE),
        (experiment.LOWER["matched norms"], "high", OPPOSITE),
        (experiment.START, "low", REPRODUCED),
        (experiment.RANKS, "high", REPRODUCED),
        (experiment.RANKS, "low", OPPOSITE),
    ],
)
def test_the_judge_finds_what_was_put_into_the_rows(outcomes, paper, condition, outcome):
    assert outcomes[paper, condition].outcome == outcome


def test_differences_are_those_of_the_rows(outcomes):
    assert outcomes[experiment.LOWERS, "high"].estimate == pytest.approx(-0.5)
    assert outcomes[experiment.RAISES, "low"].estimate == pytest.approx(0.1)
    assert outcomes[experiment.MORE_ACCURATE["matched norms"], "low"].estimate == pytest.approx(0.15)


@pytest.mark.parametrize(("mir", "accuracy"), [(1.3 + 0.06, 0.6), (1.3 - 0.06, 0.6), (1.3, 0.62), (1.3, 0.58)])
def test_starts_that_part_in_either_direction_do_make_a_difference(mir, accuracy):
    def metrics(arm, run):
        if arm not in ("low, MoCa", "low, MoCa 0.02"):
            return None
        return measured(mir, accuracy) if arm.endswith("0.02") else measured(1.3, 0.6)

    claims = verdicts.judge(PROTOCOL, rows_of("moca", metrics))
    (start,) = (claim for claim in claims if claim.paper == experiment.START)
    assert start.outcome == OPPOSITE
    assert {claim.outcome for claim in claims if claim is not start} == {NOT_MEASURED}


def test_layers_of_an_arm_come_seed_by_seed():
    rows = rows_of("moca", made)
    found = experiment.layers(rows, "low, MoCa", [4, 0])
    assert found.shape == (2, 8)
    assert found[:, 0] == pytest.approx([3.002, 2.998])
