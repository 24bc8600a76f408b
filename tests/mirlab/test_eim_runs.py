"""EIM in a run of the laboratory: what learns when, its protocol, and its judge on rows that are made up."""

import copy
import json

import pytest
import torch
from made_rows import measured, rows_of

from mirlab import recipes
from mirlab.first import verdicts
from mirlab.first.closing import eim as experiment
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, UNDECIDED
from mirlab.first.protocols import PROTOCOLS
from mirlab.ledger import key_of
from mirlab.methods import PLAIN, TECHNIQUES
from mirlab.methods import eim as method
from mirlab.methods.eim import EIM
from mirlab.model import train
from mirlab.model.miniature import assemble, new_encoder, new_language_model, pixel_values
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

PROTOCOL = experiment.PROTOCOL
RECIPE = recipes.StageOne(pairs=24, batch=8, warmup_steps=1, learning_rate=1e-2)
TUNE = recipes.StageTwo(images=8, batch=4)


@pytest.fixture(scope="module")
def tokenizer():
    return language.load_tokenizer(MINIATURE)


@pytest.fixture(scope="module")
def model():
    """Two layers, random; no test changes it."""
    return assemble(new_encoder(), new_language_model(layers=2))


@pytest.fixture(autouse=True)
def small_teacher(monkeypatch):
    monkeypatch.setattr(method, "TEACHER_SCENES", 64)
    monkeypatch.setattr(method, "TEACHER", recipes.Schedule(steps=3, learning_rate=1e-3))
    monkeypatch.setattr(method, "_TEACHER_BATCH", 16)
    monkeypatch.setattr(method, "_teachers", {})


PARTS = {
    "connector": "multi_modal_projector",
    "language model": "language_model",
    "encoder": "vision_tower",
}


def moved(before, after):
    """Which parts of a model have other weights than in the state before."""
    state = after.state_dict()
    changed = [name for name, weight in before.items() if not torch.equal(weight, state[name])]
    return {part for part, name in PARTS.items() if any(name in each for each in changed)}


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


class Watched(Exception):
    """Stops a run where stage 1 begins."""


def before_stage_one(model, tokenizer, eim, recipe=RECIPE):
    """The model as the segments leave it, the state they started from, and what they say."""
    model = copy.deepcopy(model)
    start, said = {}, {}

    class Watching(EIM):
        def before_stage_one(self, training):
            start.update(weights(training.model))
            said.update(super().before_stage_one(training))
            raise Watched

    with pytest.raises(Watched):
        train.stage_one(model, tokenizer, recipe, seed=3, method=Watching(**vars(eim)), progress=False)
    return model, start, said


# Segments


@pytest.mark.parametrize(
    ("segments", "parts"),
    [
        (("st",), {"connector"}),
        (("lm",), {"language model"}),
        (("st", "lm"), {"connector", "language model"}),
        ((), set()),
    ],
)
def test_a_segment_trains_its_own_part_and_nothing_else(model, tokenizer, segments, parts):
    after, start, said = before_stage_one(model, tokenizer, EIM(segments=segments))
    assert moved(start, after) == parts
    assert tuple(said) == segments
    for found in said.values():
        assert json.loads(json.dumps(found)) == found
        assert len(found["curve"]) == 3  # one pass over 24 pairs, 8 a step
        assert found["chance"] == pytest.approx(torch.tensor(24.0).log().item())
        assert 0 <= found["found_before"] <= 1 and 0 <= found["found"] <= 1


def test_the_order_of_segments_matters(model, tokenizer):
    one, _, said = before_stage_one(model, tokenizer, EIM(segments=("st", "lm")))
    other, _, _ = before_stage_one(model, tokenizer, EIM(segments=("lm", "st")))
    alone, _, first = before_stage_one(model, tokenizer, EIM(segments=("st",)))
    assert moved(weights(one), other) == {"connector", "language model"}
    assert moved(weights(one), alone) == {"language model"}  # ST comes first in both
    assert said["st"]["curve"] == first["st"]["curve"]


@pytest.mark.parametrize(("segment", "pairs"), [("st", 512), ("lm", 64)])
def test_a_segment_brings_queries_to_their_keys(tokenizer, segment, pairs):
    miniature, _ = load_miniature()
    recipe = recipes.StageOne(pairs=pairs, batch=8, learning_rate=2e-3)
    _, _, said = before_stage_one(miniature, tokenizer, EIM(segments=(segment,)), recipe)
    losses = [loss for _, loss in said[segment]["curve"]]
    assert sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.3
    assert said[segment]["found"] > said[segment]["found_before"]


def test_after_the_segments_stage_one_is_the_plain_one(model, tokenizer):
    """From the connector and the language model that the segments leave, with the same batches, and nothing else."""
    segmented, start, _ = before_stage_one(model, tokenizer, EIM(segments=("lm",)))
    reference = copy.deepcopy(model)
    reference.model.language_model.load_state_dict(segmented.model.language_model.state_dict())
    plain = train.stage_one(reference, tokenizer, RECIPE, seed=3, method=PLAIN, progress=False)
    whole = copy.deepcopy(model)
    history = train.stage_one(whole, tokenizer, RECIPE, seed=3, method=EIM(segments=("lm",)), progress=False)
    assert history.losses == plain.losses
    assert moved(weights(reference), whole) == set()
    assert moved(weights(segmented), whole) == {"connector"}


# Stage 2


def tuned(model, tokenizer, eim):
    model = copy.deepcopy(model)
    history = train.stage_two(model, tokenizer, TUNE, seed=3, method=eim, progress=False)
    return model, history


def test_without_a_final_loss_stage_two_is_the_plain_one(model, tokenizer):
    plain, history = tuned(model, tokenizer, PLAIN)
    same, again = tuned(model, tokenizer, EIM(segments=("st",)))
    assert again.losses == history.losses and moved(weights(plain), same) == set()
    assert moved(weights(model), plain) == {"connector", "language model"}


def test_each_final_loss_is_there_and_the_encoder_learns(model, tokenizer):
    everything = {"connector", "language model", "encoder"}
    runs = {final: tuned(model, tokenizer, EIM(final=final)) for final in ("none", "encoder", "ie", "all")}
    first = {final: history.losses[0] for final, (_, history) in runs.items()}
    assert first["encoder"] == pytest.approx(first["none"], abs=0.02)  # features in bfloat16 instead of float16
    assert first["ie"] > first["encoder"] + 0.5  # 2.1 = log 8 if it knew nothing
    assert first["all"] > first["ie"] + 0.5
    for final in ("encoder", "ie", "all"):
        assert moved(weights(model), runs[final][0]) == everything
    ends = {
        final: {k: v for k, v in run[0].state_dict().items() if "post_layernorm" in k} for final, run in runs.items()
    }
    start = model.state_dict()
    for name in ends["ie"]:  # only IE reads the encoder's last layer
        assert torch.equal(ends["encoder"][name], start[name])
        assert not torch.equal(ends["ie"][name], start[name])


def test_the_text_tower_finds_the_pictures_of_its_captions_and_leaves_the_model_alone(tokenizer, monkeypatch):
    miniature, _ = load_miniature()
    before = weights(miniature)
    monkeypatch.setattr(method, "TEACHER", recipes.Schedule(steps=40, learning_rate=3e-3))
    tower = method.text_tower(miniature, tokenizer)
    assert method.text_tower(copy.deepcopy(miniature), tokenizer) is tower  # the same vision tower
    assert moved(before, miniature) == set()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    scenes = [method.world.sample_scene(method.np.random.default_rng([0, 36, i])) for i in range(64)]
    ids = method.pretraining.caption_ids(scenes, language.segment_encoder(tokenizer))
    with torch.no_grad():
        queue = method.KeyQueue(method.caption_vectors(tower, ids))
        pictures = method.image_vectors(miniature, pixel_values(scenes))
    assert queue.accuracy(pictures, torch.arange(64)) > 0.5  # 1 in 64 by chance


@pytest.mark.parametrize("wrong", [{"segments": ("x",)}, {"segments": ("st", "st")}, {"final": "st"}])
def test_what_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        EIM(**wrong)


# The protocol


def test_the_arms_differ_from_the_plain_one_in_what_their_names_say():
    assert TECHNIQUES["eim"] is EIM
    keys = [key_of(run.configuration) for run in PROTOCOL.runs]
    assert len(set(keys)) == len(keys) == 50
    for name, runs in PROTOCOL.arms.items():
        for run, plain in zip(runs, PROTOCOL.arms["plain"], strict=True):
            found, expected = run.configuration, plain.configuration
            told = found.pop("method", None)
            if name == "two epochs":
                expected["stage_one"] |= {"epochs": 2, "warmup_steps": found["stage_one"]["warmup_steps"]}
            assert found == expected
            assert (told is None) == (name in ("plain", "two epochs"))
            if told is not None and name not in ("one stage", "encoder"):
                order = [*told["segments"], *([told["final"]] if told["final"] != "none" else [])]
                assert ", ".join(order).upper() == name
    others = {key_of(run.configuration) for run in PROTOCOLS["data_scale"].runs}
    assert all(key_of(run.configuration) in others for run in PROTOCOL.arms["plain"])


# The judge

ACCURACY = {
    "plain": 0.50, "ST": 0.53, "LM": 0.50, "IE": 0.48, "ST, LM": 0.55, "ST, LM, IE": 0.57, "one stage": 0.52,
    "LM, ST": 0.58, "encoder": 0.45, "two epochs": 0.55,
}  # fmt: skip
MIR = {"ST": 0.8, "LM": 1.2, "ST, LM": 1.0}


def made(arm, run):
    """Levels of `ACCURACY` and `MIR`; what differs by nothing differs by noise of both signs."""
    noise = (run.seed - 2) * 1e-3
    own = noise if arm in ("LM", "ST, LM") else 0
    return measured(MIR.get(arm, 1.0) + noise + own, ACCURACY[arm] + noise + own)


@pytest.fixture(scope="module")
def outcomes():
    claims = verdicts.judge(PROTOCOL, rows_of("eim", made))
    return {(claim.paper, claim.condition): claim for claim in claims}


def test_every_claim_of_the_protocol_is_judged_under_its_conditions(outcomes):
    assert {paper for paper, _ in outcomes} == set(PROTOCOL.criteria)
    assert {condition for paper, condition in outcomes if paper == experiment.ALONE} == {"ST", "LM", "IE"}
    assert {condition for paper, condition in outcomes if paper == experiment.LOWERS} == {"ST", "LM", "ST, LM"}
    ours = {paper for (paper, _), claim in outcomes.items() if claim.source == "ours"}
    assert ours == {experiment.TUNED, experiment.LONGER, experiment.LOWERS}
    assert all(claim.seeds == 5 for claim in outcomes.values())


@pytest.mark.parametrize(
    ("paper", "condition", "outcome", "estimate"),
    [
        (experiment.ALONE, "ST", REPRODUCED, 0.03),
        (experiment.ALONE, "LM", UNDECIDED, 0.0),
        (experiment.ALONE, "IE", OPPOSITE, -0.02),
        (experiment.ADDED, "", REPRODUCED, 0.03),
        (experiment.SEGMENTED, "", REPRODUCED, 0.05),
        (experiment.ORDER, "", OPPOSITE, -0.03),
        (experiment.TUNED, "", REPRODUCED, 0.03),
        (experiment.LONGER, "", UNDECIDED, 0.0),
        (experiment.LOWERS, "ST", REPRODUCED, -0.2),
        (experiment.LOWERS, "LM", OPPOSITE, 0.2),
        (experiment.LOWERS, "ST, LM", UNDECIDED, 0.0),
    ],
)
def test_the_judge_finds_what_was_put_into_the_rows(outcomes, paper, condition, outcome, estimate):
    assert outcomes[paper, condition].outcome == outcome
    assert outcomes[paper, condition].estimate == pytest.approx(estimate)


@pytest.mark.parametrize("stage", ["ST", "ST, LM", "ST, LM, IE"])
def test_one_stage_that_lowers_accuracy_undoes_the_claim_on_all(stage):
    levels = {"plain": 0.5, "ST": 0.6, "ST, LM": 0.7, "ST, LM, IE": 0.8}
    before = dict(experiment.STEPS)[stage]
    levels[stage] = levels[before] - 0.01

    claims = verdicts.judge(PROTOCOL, rows_of("eim", lambda arm, run: measured(1.0, levels.get(arm, 0.5))))
    (added,) = (claim for claim in claims if claim.paper == experiment.ADDED)
    assert added.outcome == OPPOSITE and added.estimate == pytest.approx(-0.01)


def test_nothing_is_judged_from_four_seeds():
    claims = verdicts.judge(PROTOCOL, rows_of("eim", made, seeds=range(4)))
    assert {claim.outcome for claim in claims} == {NOT_MEASURED}
