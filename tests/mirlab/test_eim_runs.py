"""EIM in a run of the laboratory: what learns when, its protocol, and its judge on rows that are made up."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from mirlab import methods, recipes, world
from mirlab.experiments import EXPERIMENTS
from mirlab.methods import PLAIN
from mirlab.methods import eim as method
from mirlab.methods.eim import EIM
from mirlab.model import train
from mirlab.model.miniature import assemble, new_encoder, new_language_model, pixel_values
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

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


def before_stage_one(model, tokenizer, eim, recipe=RECIPE, trainings=None):
    """The model as the segments leave it, the state they started from, and what they say; `trainings` gets the rest."""
    model = copy.deepcopy(model)
    start, said = {}, {}

    class Watching(EIM):
        def before_stage_one(self, training):
            start.update(weights(training.model))
            said.update(super().before_stage_one(training))
            if trainings is not None:
                trainings.append(training)
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
        (("st+lm",), {"connector", "language model"}),
        (("ie",), {"encoder"}),
        (("ie", "st", "lm"), {"encoder", "connector", "language model"}),
        ((), set()),
    ],
)
def test_a_segment_trains_its_own_part_and_nothing_else(model, tokenizer, segments, parts):
    after, start, said = before_stage_one(model, tokenizer, EIM(segments=segments))
    assert moved(start, after) == parts
    assert tuple(said) == segments
    for name, found in said.items():
        assert json.loads(json.dumps(found)) == found
        assert len(found["curve"]) == 3  # one pass over 24 pairs, 8 a step
        assert found["chance"] == pytest.approx(len(name.split("+")) * math.log(24))
        assert 0 <= found["found_before"] <= 1 and 0 <= found["found"] <= 1


def test_the_order_of_segments_matters(model, tokenizer):
    one, _, said = before_stage_one(model, tokenizer, EIM(segments=("st", "lm")))
    other, _, _ = before_stage_one(model, tokenizer, EIM(segments=("lm", "st")))
    alone, _, first = before_stage_one(model, tokenizer, EIM(segments=("st",)))
    assert moved(weights(one), other) == {"connector", "language model"}
    assert moved(weights(one), alone) == {"language model"}  # ST comes first in both
    assert said["st"]["curve"] == first["st"]["curve"]


def test_after_ie_everything_reads_what_the_changed_encoder_sees(model, tokenizer):
    kept = []
    one, start, said = before_stage_one(model, tokenizer, EIM(segments=("ie", "st")), trainings=kept)
    scenes = train.stage_one_scenes(24, seed=3)
    assert torch.equal(kept[0].features, train.vision_features(one, scenes))
    assert not torch.equal(kept[0].features, train.vision_features(model, scenes))
    encoder = [name for name in start if "vision_tower" in name]
    still = [name for name in encoder if torch.equal(start[name], one.state_dict()[name])]
    assert not [name for name in still if "position_ids" not in name]  # all of it learns

    other, _, later = before_stage_one(model, tokenizer, EIM(segments=("st", "ie")))
    assert moved(weights(one), other) == {"connector"}  # IE does not read it; ST reads what IE made
    assert said["ie"]["curve"] == later["ie"]["curve"]


def test_both_in_one_segment_is_neither_order(model, tokenizer):
    together, _, _ = before_stage_one(model, tokenizer, EIM(segments=("st+lm",)))
    for segments in (("st", "lm"), ("lm", "st")):
        apart, _, _ = before_stage_one(model, tokenizer, EIM(segments=segments))
        assert moved(weights(together), apart) == {"connector", "language model"}


# What a segment's loss is, in loops over one pair at a time


class ByHand:
    """Keys and queries from whole texts and pictures, read by the models of transformers themselves."""

    def __init__(self, model, tokenizer):
        self.model, self.scenes = model, train.stage_one_scenes(24, seed=3)
        self.texts = [
            tokenizer(f"\n {world.caption(scene)}</s>", add_special_tokens=False)["input_ids"] for scene in self.scenes
        ]
        teacher = method.text_tower(model, tokenizer)
        embed = model.get_input_embeddings()
        self.keys = {"ie": [], "st": [], "lm": []}
        with torch.no_grad():
            for text in self.texts:
                words = text[1:-1]
                told = torch.tensor([[language.BOS, *words, language.EOS]])
                self.keys["ie"].append(teacher(input_ids=told).pooler_output[0])
                self.keys["st"].append(sum(embed(torch.tensor(word)) for word in words) / len(words))
                read = model.model.language_model(input_ids=torch.tensor([[language.BOS, *text]]))
                self.keys["lm"].append(read.last_hidden_state[0, -1])

    @torch.no_grad()
    def query(self, kind, number):
        pixels = pixel_values([self.scenes[number]])
        if kind == "ie":
            return self.model.model.vision_tower(pixel_values=pixels).pooler_output[0]
        ids = torch.tensor([[language.BOS, *[language.IMAGE] * 36, *self.texts[number]]])
        states = self.model(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states
        return states[0][0, 1:37].mean(0) if kind == "st" else states[-1][0, -1]

    def loss(self, kind, numbers):
        """The mean of -log exp(q k+ / 0.07) / sum exp(q k / 0.07), with cosines."""
        losses = []
        for number in numbers:
            query = self.query(kind, number).double().numpy()
            cosines = []
            for key in self.keys[kind]:
                key = key.double().numpy()
                cosines.append(query @ key / np.sqrt(query @ query) / np.sqrt(key @ key))
            scores = [math.exp(cosine / 0.07) for cosine in cosines]
            losses.append(-math.log(scores[number] / sum(scores)))
        return sum(losses) / len(losses)


@pytest.fixture
def asked(tokenizer, monkeypatch):
    """From segments to what they would minimise: the shipped miniature as it stands, and for each the loss of every
    step, what learns, at which rate, and the connector's gradient of the first step. No step is taken."""
    fit = train.fit

    def of(*segments):
        found = []

        def only_look(module, loss_of_step, schedule, *, rates=None, **options):
            if rates is None:  # the text tower
                return fit(module, loss_of_step, schedule, **options)
            learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            module.zero_grad()
            loss_of_step(0).backward()
            gradient = module.model.multi_modal_projector.linear_2.weight.grad
            with torch.no_grad():
                losses = [loss_of_step(step).item() for step in range(schedule.steps)]
            parts = {part for part, name in PARTS.items() if any(name in each for each in learning)}
            found.append((losses, parts, {rate for rate, _ in rates}, None if gradient is None else gradient.clone()))
            return train.History(losses, 1.0)

        monkeypatch.setattr(train, "fit", only_look)
        model, _, said = before_stage_one(load_miniature()[0], tokenizer, EIM(segments=segments))
        return model, dict(zip(said, found, strict=True))

    return of


def batches(name):
    order = np.random.default_rng([3, 34 + method.SEGMENTS.index(name)]).permutation(24)
    return [order[:8], order[8:16], order[16:]]


def test_each_segment_asks_at_every_step_for_its_own_losses_and_their_sum(tokenizer, asked):
    model, told = asked("ie", "st", "lm", "st+lm")
    hand = ByHand(model, tokenizer)
    assert list(told) == ["ie", "st", "lm", "st+lm"]
    for name, (losses, _, _, _) in told.items():
        expected = [sum(hand.loss(kind, numbers) for kind in name.split("+")) for numbers in batches(name)]
        assert losses == pytest.approx(expected, abs=0.01)
        assert max(expected) - min(expected) > 0.02  # the order of the pairs is held, too
    learns = {name: (parts, rates) for name, (_, parts, rates, _) in told.items()}
    assert learns == {
        "ie": ({"encoder"}, {method.IE_RATE}),
        "st": ({"connector"}, {RECIPE.learning_rate}),
        "lm": ({"language model"}, {EIM().lm_rate}),
        "st+lm": ({"connector", "language model"}, {RECIPE.learning_rate, EIM().lm_rate}),
    }


def test_in_one_segment_the_connector_learns_from_lm_as_well(tokenizer, asked):
    """Along a direction of its weights, the sum by hand rises as the gradient says, and ST alone does not."""
    model, told = asked("st+lm")
    hand, (numbers, *_) = ByHand(model, tokenizer), batches("st+lm")
    weight, gradient = model.model.multi_modal_projector.linear_2.weight, told["st+lm"][3]
    direction = gradient / gradient.norm()
    step = 2e-2
    rises = {}
    for kind in ("st", "lm"):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step * direction
            ends.append(hand.loss(kind, numbers))
            with torch.no_grad():
                weight -= sign * step * direction
        rises[kind] = (ends[0] - ends[1]) / (2 * step)
    assert rises["st"] + rises["lm"] == pytest.approx(gradient.norm().item(), rel=0.03)
    assert abs(rises["lm"]) > 0.1 * gradient.norm().item()


@pytest.mark.parametrize(("arm", "segments"), [("IE, ST, LM", ("ie", "st", "lm")), ("ST with LM", ("st+lm",))])
def test_the_arms_of_the_second_edition_train_these_segments(arm, segments):
    arms = EXPERIMENTS["eim"].arms
    for run, again, plain in zip(arms[arm], arms["ST, LM again"], arms["plain"], strict=True):
        assert methods.technique(run.method) == EIM(segments=segments)
        assert (run.seed, run.parts) == (again.seed, again.parts)
        assert (run.seed, run.stage_one, run.stage_two) == (plain.seed, plain.stage_one, plain.stage_two)


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
