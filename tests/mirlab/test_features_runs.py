"""CLIP's features in a run of the laboratory: what the connector reads, the protocol, and its judge on made-up rows."""

import copy

import numpy as np
import pytest
import torch
from made_rows import measured, rows_of

from mirlab import recipes
from mirlab.first import verdicts
from mirlab.first.closing import features as experiment
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, UNDECIDED
from mirlab.first.protocols import PROTOCOLS
from mirlab.ledger import key_of
from mirlab.measuring import mir_of
from mirlab.methods import PLAIN, TECHNIQUES
from mirlab.methods.features import Features
from mirlab.model import connectors, evaluation, miniature, train
from mirlab.world import language
from mirlib.align.eim import image_vectors
from mirlib.errors import MirlibError
from mirlib.loading import MINIATURE, load_miniature

PROTOCOL = experiment.PROTOCOL
RECIPE = recipes.StageOne(pairs=16, batch=8, warmup_steps=1, learning_rate=1e-2)
TUNE = recipes.StageTwo(images=8, batch=4)
CHOICES = [Features(tokens, layer) for tokens in ("all", "one") for layer in (False, True)]
SCENES = train.stage_one_scenes(6)


@pytest.fixture(scope="module")
def tokenizer():
    return language.load_tokenizer(MINIATURE)


@pytest.fixture(scope="module")
def model():
    """The shipped encoder, whose layers differ, before a random language model; no test changes it."""
    shipped, _ = load_miniature()
    made = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))
    made.model.vision_tower.load_state_dict(shipped.model.vision_tower.state_dict())
    return made


def with_features(model, method):
    model = copy.deepcopy(model)
    assert method.attach(model, seed=0) == []
    return model


def wanted(model, method):
    """What the connector of a plain model would read of `SCENES` if it were as the method says, from the layers."""
    tower = model.model.vision_tower
    found = tower(miniature.pixel_values(SCENES), output_hidden_states=True).hidden_states
    state = tower.post_layernorm(found[-1]) if method.output_layer else found[-2]
    return state[:, :1].expand(-1, 36, -1) if method.tokens == "one" else state[:, 1:]


def by_transformers(model):
    """What transformers' own code gives to the connector."""
    read = []
    handle = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: read.append(args[0]))
    tokens = model.model.get_image_features(miniature.pixel_values(SCENES)).pooler_output
    handle.remove()
    return read[0], torch.stack(tokens)


# What the connector reads


@torch.no_grad()
@pytest.mark.parametrize("method", CHOICES, ids=str)
def test_training_and_transformers_read_the_features_that_were_chosen(model, method):
    changed = with_features(model, method)
    expected = wanted(model, method)
    assert expected.shape == (6, 36, 96)
    for which in (changed, copy.deepcopy(changed)):
        seen, tokens = by_transformers(which)
        torch.testing.assert_close(train.encoded(which, SCENES), expected)
        torch.testing.assert_close(seen, expected)
        assert tokens.shape == (6, 36, 128)
        torch.testing.assert_close(tokens, which.model.multi_modal_projector(train.encoded(which, SCENES)))
    others = [wanted(model, other) for other in CHOICES if other != method]
    assert all((expected - other).abs().max() > 0.1 for other in others)


@torch.no_grad()
def test_behind_the_output_layer_the_one_feature_is_what_the_encoder_was_trained_by(model):
    seen = train.encoded(with_features(model, Features("one", True)), SCENES)
    torch.testing.assert_close(seen[:, 0], image_vectors(model, miniature.pixel_values(SCENES)))


@torch.no_grad()
def test_features_of_the_plain_model_are_remembered_apart(model):
    """The memory is by encoder, and the encoder's weights are the same."""
    plain = train.vision_features(model, SCENES)
    for method in CHOICES:
        changed = with_features(model, method)
        found = train.vision_features(changed, SCENES)
        torch.testing.assert_close(found, wanted(model, method).half())
        assert torch.equal(train.vision_features(copy.deepcopy(changed), SCENES), found)
    assert torch.equal(train.vision_features(model, SCENES), plain)
    towers = [with_features(model, method).model.vision_tower for method in CHOICES]
    assert len({miniature.fingerprint(tower) for tower in [model.model.vision_tower, *towers]}) == 5


@torch.no_grad()
def test_nothing_but_what_the_connector_reads_is_changed(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pixels = miniature.pixel_values(SCENES)
    plain = model.model.vision_tower(pixels, output_hidden_states=True)
    for method in CHOICES:
        changed = with_features(model, method)
        found = changed.model.vision_tower(pixels, output_hidden_states=True)
        assert [torch.equal(a, b) for a, b in zip(found.hidden_states, plain.hidden_states, strict=True)] == [
            True, True, True, method == Features(), True,
        ]  # fmt: skip
        assert torch.equal(found.last_hidden_state, plain.last_hidden_state)
        assert torch.equal(found.pooler_output, plain.pooler_output)
        assert changed.model.vision_tower(pixels).hidden_states is None
        state = changed.state_dict()
        own = {name for name in state if name not in before}
        assert own == {"model.vision_tower.feature_choice.choice"}
        kept = [name for name in before if method.tokens == "all" or "multi_modal_projector" not in name]
        assert all(torch.equal(state[name], before[name]) for name in kept)
    assert not model.model.vision_tower._forward_hooks
    with pytest.raises(MirlibError, match="return_dict=True"):
        changed.model.vision_tower(pixels, output_hidden_states=True, return_dict=False)


# The prefix connector


def test_one_vector_becomes_tokens_that_differ_and_no_other_feature_is_read(model):
    changed = with_features(model, Features("one", hidden=16))
    connector = changed.model.multi_modal_projector
    features = train.encoded(changed, SCENES).detach()
    tokens = connector(features)
    assert torch.linalg.matrix_rank(tokens[0] - tokens[0].mean(dim=0)) == 35
    assert (tokens[0] - tokens[1]).abs().max() > 0.01
    assert sum(p.numel() for p in connector.parameters()) == 96 * 16 + 16 + 16 * 36 * 128 + 36 * 128
    again = with_features(model, Features("one", hidden=16)).model.multi_modal_projector
    assert all(torch.equal(a, b) for a, b in zip(connector.parameters(), again.parameters(), strict=True))
    with pytest.raises(MirlibError, match="differ from place to place"):
        connector(train.encoded(model, SCENES))


def test_what_there_is_not_is_refused(model):
    for wrong in ({"tokens": "some"}, {"hidden": 0}):
        with pytest.raises(ValueError, match="must be"):
            Features(**wrong)
    with pytest.raises(MirlibError, match="chosen for this vision tower already"):
        Features().attach(with_features(model, Features("one")), seed=0)
    matched = copy.deepcopy(model)
    connectors.replace(matched, norm_matched=True)
    with pytest.raises(MirlibError, match="NormMatched"):
        Features("one").attach(matched, seed=0)
    assert not hasattr(matched.model.vision_tower, "feature_choice")


# In training


def trained(model, tokenizer, method, **options):
    """A copy of a model after two steps of each stage, and the losses of both."""
    model = copy.deepcopy(model)
    scenes = train.stage_one_scenes(20)
    one = train.stage_one(model, tokenizer, RECIPE, seed=3, scenes=scenes, method=method, progress=False, **options)
    two = train.stage_two(model, tokenizer, TUNE, seed=3, method=method, progress=False)
    return model, one.losses + two.losses


def test_the_plain_features_make_the_plain_run_and_others_another(model, tokenizer):
    plain, losses = trained(model, tokenizer, PLAIN)
    given = train.vision_features(model, train.stage_one_scenes(20))
    seen = [losses]
    for method in CHOICES:
        found, losses = trained(model, tokenizer, method, features=given)  # which are the wrong ones for all but one
        if method == Features():
            assert losses == seen[0]
            state = found.state_dict()
            assert all(torch.equal(weight, state[name]) for name, weight in plain.state_dict().items())
        else:
            assert losses not in seen
            seen.append(losses)


def test_only_the_chosen_scenes_are_encoded(model):
    scenes, chosen = train.stage_one_scenes(20), np.arange(3, 11)
    for method in CHOICES:
        changed = with_features(model, method)
        found = method.features(changed, scenes, chosen)
        assert found.shape == (20, 36, 96) and found.dtype == torch.float16
        with torch.no_grad():
            expected = train.encoded(changed, [scenes[i] for i in chosen]).half()
        assert torch.equal(found[torch.from_numpy(chosen)], expected)
        assert (found.abs().sum(dim=(1, 2)) > 0).sum() == 8
    assert PLAIN.features(model, scenes, chosen) is None


def test_evaluation_and_mir_read_the_features_that_were_chosen(model):
    """Of models that differ in nothing else: the connectors of all four make the same of the same features."""
    _, processor = load_miniature()
    scores, mirs = {}, {}
    for method in CHOICES:
        changed = with_features(model, method)
        changed.model.multi_modal_projector = copy.deepcopy(model.model.multi_modal_projector)
        scores[method] = evaluation.caption_scores(changed, processor.tokenizer, scenes=4)["perplexity"]
        mirs[method] = mir_of(changed, processor, num=4)["per_layer"][0]
    assert len(set(scores.values())) == len(set(mirs.values())) == 4
    plain = copy.deepcopy(model)
    assert evaluation.caption_scores(plain, processor.tokenizer, scenes=4)["perplexity"] == scores[Features()]
    assert mir_of(plain, processor, num=4)["per_layer"][0] == mirs[Features()]


# The protocol


def test_the_arms_cross_features_with_the_output_layer_and_differ_in_nothing_else():
    assert TECHNIQUES["features"] is Features
    keys = [key_of(run.configuration) for run in PROTOCOL.runs]
    assert len(set(keys)) == len(keys) == 20
    others = {key_of(run.configuration) for run in PROTOCOLS["data_scale"].runs}
    for name, runs in PROTOCOL.arms.items():
        tokens, _, layer = name.partition(", ")
        for run, plain in zip(runs, PROTOCOL.arms[experiment.ALL_BEFORE], strict=True):
            found = run.configuration
            told = found.pop("method", None)
            assert found == plain.configuration
            if name == experiment.ALL_BEFORE:
                assert told is None and key_of(run.configuration) in others
            else:
                assert (told["name"], told["tokens"]) == ("features", tokens)
                assert told["output_layer"] == layer.startswith("behind")


LEVELS = {
    experiment.ALL_BEFORE: 0.60, experiment.ALL_BEHIND: 0.63,
    experiment.ONE_BEFORE: 0.50, experiment.ONE_BEHIND: 0.50,
}  # fmt: skip


def made(arm, run):
    """Accuracies of `LEVELS`; with one feature the layer makes a difference of noise alone."""
    noise = (run.seed - 2) * 1e-3
    return measured(1.0 + LEVELS[arm] + noise, LEVELS[arm] + noise * (2 if arm == experiment.ONE_BEFORE else 1))


@pytest.mark.parametrize(
    ("paper", "condition", "outcome", "estimate"),
    [
        (experiment.MORE, "before the output layer", REPRODUCED, 0.10),
        (experiment.MORE, "behind the output layer", REPRODUCED, 0.13),
        (experiment.BEFORE, "with all features", OPPOSITE, -0.03),
        (experiment.BEFORE, "with one feature", UNDECIDED, 0.0),
        (experiment.WHOLE, "", REPRODUCED, 0.10),
    ],
)
def test_the_judge_finds_what_was_put_into_the_rows(paper, condition, outcome, estimate):
    claims = verdicts.judge(PROTOCOL, rows_of("eim_features", made))
    assert len(claims) == 5 and {claim.paper for claim in claims} == set(PROTOCOL.criteria)
    (claim,) = (claim for claim in claims if (claim.paper, claim.condition) == (paper, condition))
    assert claim.outcome == outcome and claim.estimate == pytest.approx(estimate)
    assert claim.source == "paper" and claim.seeds == 5


def test_nothing_is_judged_from_four_seeds():
    claims = verdicts.judge(PROTOCOL, rows_of("eim_features", made, seeds=range(4)))
    assert {claim.outcome for claim in claims} == {NOT_MEASURED}
