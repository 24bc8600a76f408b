"""MoCa and the LayerNorm in a run of the laboratory, their protocol, and its judge on rows that are made up."""

import copy
import json

import pytest
import torch

from mirlab import recipes
from mirlab.methods import PLAIN
from mirlab.methods.moca import LayerNorm, MoCa
from mirlab.model import train
from mirlib.align import moca, norms

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
