"""Token weights and gap losses in a run of the laboratory, their protocol, and its judge on rows that are made up."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mirlab import recipes
from mirlab.methods import PLAIN, Batch, Training
from mirlab.methods.weighting import (
    ContrastiveAlignment,
    ForcedGap,
    ImprobableWords,
    TokenDistance,
    unseen_logits,
)
from mirlab.model import train
from mirlab.world import language
from mirlib import frechet_distance
from mirlib.align.gap_loss import token_distance
from mirlib.align.weighting import IGNORED, cal_weights, prior_weights, weighted_cross_entropy

RECIPE = recipes.StageOne(pairs=32, batch=8, warmup_steps=1, learning_rate=1e-2)
TUNE = recipes.StageTwo(images=8, batch=4)
FORCED = ForcedGap(layers=(1, 2))
CAL = ContrastiveAlignment(low=0.001, high=0.1)  # a random model hardly looks at the picture
ALL = (CAL, ImprobableWords(reference_batch=16), FORCED, TokenDistance())


def trained(model, tokenizer, method):
    """A copy of a model after four steps of stage 1, and what they left behind."""
    model = copy.deepcopy(model)
    return model, train.stage_one(model, tokenizer, RECIPE, seed=3, method=method, progress=False)


def step_of(model, tokenizer):
    """The first batch of stage 1, its logits and what a method is told, for a model that is there."""
    scenes = train.stage_one_scenes(8)
    ids = train.caption_rows(scenes, language.segment_encoder(tokenizer))
    features = train.vision_features(model, scenes).float()
    batch = Batch(np.arange(8), ids, ids != language.PAD, features)
    training = Training(model, tokenizer, RECIPE, 0, scenes, features, np.arange(8))
    return training, batch, train.caption_logits(model, ids, features)[batch.targets[:, 1:]]


def hooks(model):
    """On the model and its decoder; transformers may have left some of its own on the encoder."""
    modules = [model, *model.model.language_model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# In training


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_a_method_moves_the_connector_otherwise_and_nothing_else(method, tiny, tokenizer):
    plain_model, _ = trained(tiny, tokenizer, PLAIN)
    model, history = trained(tiny, tokenizer, method)
    before, plain, after = (dict(each.state_dict()) for each in (tiny, plain_model, model))
    assert after.keys() == before.keys()
    connector = [name for name in after if "multi_modal_projector" in name]
    assert not any(torch.equal(after[name], plain[name]) for name in connector)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in connector)
    assert np.isfinite(history.losses).all()
    assert json.loads(json.dumps([history.before, history.after])) == [history.before, history.after]


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_stage_two_is_that_of_the_plain_recipe(method, tiny, tokenizer):
    model, _ = trained(tiny, tokenizer, method)
    losses = []
    for way in (PLAIN, method):
        tuned = copy.deepcopy(model)
        losses.append(train.stage_two(tuned, tokenizer, TUNE, seed=3, method=way, progress=False).losses)
    assert losses[0] == losses[1]


def test_cal_weighs_the_words_of_a_step(tiny, tokenizer):
    training, batch, logits = step_of(tiny, tokenizer)
    labels = batch.ids[:, 1:].masked_fill(~batch.targets[:, 1:], IGNORED)
    seen = train.caption_logits(tiny, batch.ids, batch.features)
    weights = cal_weights(seen, unseen_logits(tiny, batch), labels, low=0.001, high=0.1)
    assert weights[labels != IGNORED].std() > 0
    expected = weighted_cross_entropy(seen, labels, weights)
    torch.testing.assert_close(CAL.caption_loss(training, batch, logits), expected)


def test_a_hidden_picture_does_not_matter_and_words_keep_their_places(tiny, tokenizer):
    _, batch, _ = step_of(tiny, tokenizer)
    other = Batch(batch.numbers, batch.ids, batch.targets, batch.features.flip(0) + 1)
    unseen = unseen_logits(tiny, batch)
    torch.testing.assert_close(unseen, unseen_logits(tiny, other), rtol=1e-5, atol=1e-5)
    seen = train.caption_logits(tiny, batch.ids, batch.features)
    assert unseen.shape == seen.shape
    assert (unseen - seen).abs().max() > 1e-3
    without = train.caption_logits(tiny, batch.ids, None)  # the words move up to the start
    assert (unseen - without).abs().max() > 1e-3


def test_the_reference_of_prior_learns_the_captions_and_the_model_does_not(tiny, tokenizer):
    before = copy.deepcopy(tiny.state_dict())
    training, batch, logits = step_of(tiny, tokenizer)
    method = ImprobableWords(reference_batch=1, reference_rate=1e-2)
    said = method.before_stage_one(training)
    assert said["reference_last_loss"] <= said["reference_first_loss"]  # eight steps: the two means are of the same
    reference = training.memory["reference"]
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    labels = batch.ids[:, 1:].masked_fill(~batch.targets[:, 1:], IGNORED)

    def loss(model):
        found = train.caption_logits(model, batch.ids, None)
        return F.cross_entropy(found.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    assert loss(reference) < loss(tiny) - 0.5
    weights = prior_weights(train.caption_logits(reference, batch.ids, None), labels)
    expected = weighted_cross_entropy(train.caption_logits(tiny, batch.ids, batch.features), labels, weights)
    torch.testing.assert_close(method.caption_loss(training, batch, logits), expected)


def test_the_gap_loss_is_mir_of_the_batch(tiny, tokenizer):
    method = ForcedGap(weight=0.5, layers=(1, 2))
    method.attach(tiny, seed=0)
    training, batch, logits = step_of(tiny, tokenizer)
    loss = method.caption_loss(training, batch, logits)
    embed = tiny.get_input_embeddings()
    with torch.no_grad():
        image = tiny.model.multi_modal_projector(batch.features)
        embedded = torch.cat([embed(torch.full((8, 1), language.BOS)), image, embed(batch.ids)], dim=1)
        states = tiny.model.language_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
    total = 0.0
    for hidden in states[1:]:
        vision, text = hidden[:, 1:37].flatten(0, 1), hidden[:, 37:][batch.targets]
        scale = 1 / text.norm(dim=1).mean()
        total += frechet_distance(scale * vision, scale * text).total
    expected = F.cross_entropy(logits, batch.labels).item() + 0.5 * np.log10(total)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_gap_loss_falls_and_its_hooks_go(tiny, tokenizer):
    strong = ForcedGap(weight=100.0, layers=(1, 2), decay=0.0)
    model, history = trained(tiny, tokenizer, strong)
    assert history.losses[-1] < history.losses[0] - 10  # a tenth of a unit of MIR
    assert history.after["mir_of_batches"] == pytest.approx(history.losses[-1] / 100, abs=0.1)
    assert not hasattr(model, "_mirlib_gap_loss")
    assert not hasattr(model, "_mirlib_vision_rows")
    assert hooks(model) == hooks(tiny) == 0


def test_the_distance_of_tokens_is_that_of_the_connector_and_the_words(tiny, tokenizer):
    training, batch, logits = step_of(tiny, tokenizer)
    words = tiny.get_input_embeddings()(batch.ids)
    apart = token_distance(tiny.model.multi_modal_projector(batch.features), words, batch.targets)
    plain = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(TokenDistance(weight=0.3).caption_loss(training, batch, logits), plain + 0.3 * apart)
