"""Masks, noisy captions, four stages and a new domain in runs of the laboratory, their protocols and judges."""

import copy

import numpy as np
import pytest
import torch

from mirlab import recipes, world
from mirlab.methods import PLAIN
from mirlab.methods.masks import AttentionMask
from mirlab.methods.stages import STAGES, FourStages, NewDomain, NoisyCaptions, garbled
from mirlab.model import evaluation, sequence, train
from mirlab.world import language
from mirlib.align import masks

RECIPE = recipes.StageOne(pairs=24, batch=8, warmup_steps=1, learning_rate=1e-2)
EVERYTHING = recipes.StageOne(pairs=8, batch=4, warmup_steps=1, learning_rate=1e-2, unlock="all", unlock_encoder=True)


def trained(model, tokenizer, method, recipe=RECIPE, **options):
    """A copy of a model after stage 1, and what it left behind."""
    model = copy.deepcopy(model)
    return model, train.stage_one(model, tokenizer, recipe, seed=3, method=method, progress=False, **options)


# Masks


@pytest.fixture
def steps(monkeypatch):
    """Which rows were said to be the prompt, of each sequence that was read."""
    seen = []
    rows_are = sequence.rows_are

    def listening(model, *, prompt=None, images=None):
        seen.append(prompt)
        return rows_are(model, prompt=prompt, images=images)

    monkeypatch.setattr(sequence, "rows_are", listening)
    return seen


def test_a_causal_mask_is_the_plain_recipe(tiny, tokenizer):
    _, plain = trained(tiny, tokenizer, PLAIN)
    model, causal = trained(tiny, tokenizer, AttentionMask("causal"))
    assert causal.losses == plain.losses
    masks.detach(model)


@pytest.mark.parametrize("variant", ["vision_bidirectional", "prefix"])
def test_a_mask_is_there_in_both_stages_and_when_the_model_is_asked(tiny, tokenizer, variant):
    _, plain = trained(tiny, tokenizer, PLAIN)
    model, history = trained(tiny, tokenizer, AttentionMask(variant))
    assert history.losses[0] != plain.losses[0]
    bare = copy.deepcopy(model)
    masks.detach(bare)
    recipe, losses = recipes.StageTwo(images=4, batch=4), []
    for each in (model, bare):
        losses += train.stage_two(copy.deepcopy(each), tokenizer, recipe, seed=3, progress=False).losses
    assert losses[0] != losses[1]
    scores = [evaluation.caption_scores(each, tokenizer, scenes=4)["loss"] for each in (model, bare)]
    assert scores[0] != scores[1]


def test_the_prompt_is_all_that_stands_before_the_first_learnt_token(tiny, tokenizer, steps):
    scenes = evaluation.held_out_scenes(3)
    encode = language.segment_encoder(tokenizer)
    ids = train.caption_rows(scenes, encode)
    train.caption_logits(tiny, ids, train.vision_features(tiny, scenes).float())
    assert steps.pop().tolist() == [[True] * (1 + 36 + 1) + [False] * (ids.shape[1] - 1)] * 3

    train.stage_two(copy.deepcopy(tiny), tokenizer, recipes.StageTwo(images=2, batch=2), seed=3, progress=False)
    rng = np.random.default_rng([3, 41])
    drawn = [world.sample_scene(rng) for _ in range(2)]
    asked = [[world.sample_question(scene, rng) for _ in range(3)] for scene in drawn]
    before = len(encode("USER:")) + 1 + 36 + len(encode("\n"))
    lengths = [before + len(encode(f" {first.text}")) + len(encode(" ASSISTANT:")) for first, *_ in asked]
    assert steps.pop().sum(dim=1).tolist() == lengths

    masks.attach(tiny, "causal")  # under a mask a picture is read with its question, and without one before it
    evaluation.image_answers(tiny, tokenizer, scenes=12)
    (_, question), *_ = evaluation.questions_about(evaluation.held_out_scenes(12), world.QUESTION_KINDS[-1])
    assert steps.pop()[0].sum() == before + len(encode(f" {question.text}")) + len(encode(" ASSISTANT:"))


def test_padding_behind_a_prompt_changes_no_answer_under_a_prefix(tiny):
    embed = tiny.get_input_embeddings()
    masks.attach(tiny, "prefix")
    ids = torch.randint(10, 2000, (1, 9), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.full((1, 4), language.PAD)], dim=1)
    image = sequence.image(torch.randn(1, 36, embed.weight.shape[1], generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        alone = sequence.read(tiny, image, sequence.words(embed(ids)), answers_from=torch.tensor([9]))
        longer = sequence.read(tiny, image, sequence.words(embed(padded)), answers_from=torch.tensor([9]))
    torch.testing.assert_close(longer[:, : alone.shape[1]], alone)


# Captions with wrong words


def test_a_scene_is_told_wrongly_at_the_rate_that_was_asked_for():
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng) for _ in range(400)]
    assert [garbled(scene, 0.0, rng) for scene in scenes] == scenes
    wrong = total = 0
    for scene in scenes:
        told = garbled(scene, 0.3, rng)
        assert (told.background, told.noise_seed, len(told.things)) == (
            scene.background,
            scene.noise_seed,
            len(scene.things),
        )
        for thing, other in zip(scene.things, told.things, strict=True):
            for word, said, known in zip(thing.words, other.words, world.CAPTION_SLOTS.values(), strict=True):
                assert said in known
                wrong, total = wrong + (word != said), total + 1
            assert (thing.shape in world.DIGITS) == (other.shape in world.DIGITS)
    assert abs(wrong / total - 0.3) < 0.03
    all_wrong = garbled(scenes[0], 1.0, rng)
    for thing, other in zip(scenes[0].things, all_wrong.things, strict=True):
        assert all(word != said for word, said in zip(thing.words, other.words, strict=True))


def test_noise_changes_what_is_told_and_nothing_else(tiny, tokenizer, monkeypatch):
    scenes = train.stage_one_scenes(24, seed=3)
    batches = {}
    caption_logits = train.caption_logits
    for name, method in {"plain": PLAIN, "noisy": NoisyCaptions(0.5), "none": NoisyCaptions(0.0)}.items():
        seen = batches[name] = []

        def listening(model, ids, features, seen=seen):
            seen.append((ids.clone(), features.clone()))
            return caption_logits(model, ids, features)

        monkeypatch.setattr(train, "caption_logits", listening)
        trained(tiny, tokenizer, method, recipes.StageOne(pairs=24, batch=8, epochs=2), scenes=scenes)
    ids = {name: [[tuple(row.tolist()) for row in rows] for rows, _ in seen] for name, seen in batches.items()}
    assert ids["none"] == ids["plain"]
    first, second = ids["noisy"][:3], ids["noisy"][3:]
    assert sorted(sum(first, [])) != sorted(sum(ids["plain"][:3], []))
    trimmed = [
        sorted(tuple(i for i in row if i != language.PAD) for row in sum(epoch, [])) for epoch in (first, second)
    ]
    assert trimmed[0] == trimmed[1]  # a picture has the same wrong caption in every epoch
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(batches["noisy"], batches["plain"], strict=True))


# Four stages


def test_four_stages_unlock_one_part_after_the_other_on_pairs_of_their_own(tiny, tokenizer, monkeypatch):
    scenes = train.stage_one_scenes(40, seed=3)
    ran = []
    caption_stage = train.caption_stage

    def watched(training, method=PLAIN, **options):
        weights = {name: value.clone() for name, value in training.model.state_dict().items()}
        history = caption_stage(training, method, **options)
        changed = {name for name, value in training.model.state_dict().items() if not torch.equal(value, weights[name])}
        ran.append((changed, [training.scenes[i] for i in training.chosen], len(history.losses)))
        return history

    monkeypatch.setattr(train, "caption_stage", watched)
    _, history = trained(tiny, tokenizer, FourStages(), EVERYTHING, scenes=scenes)
    assert len(ran) == 4 and all(steps == EVERYTHING.schedule.steps for _, _, steps in ran)
    assert len(history.before["losses"]) == 3

    whole = scenes[: FourStages().wanted(EVERYTHING.pairs)]
    told = [scene for _, stage, _ in ran for scene in stage]
    assert len(set(told)) == len(told) and set(told) == set(whole)

    parts = [
        {part for part in ("projector", "vision_tower", "language_model") if any(part in n for n in c)} for c, *_ in ran
    ]
    assert parts == [
        {"projector"},
        {"projector", "vision_tower"},
        {"projector", "vision_tower", "language_model"},
        {"projector", "vision_tower", "language_model"},
    ]
    half, full = ({name.split("layers.")[1][0] for name in c if "language_model.layers" in name} for c, *_ in ran[2:])
    assert (half, full) == ({"0"}, {"0", "1"})


def test_four_stages_want_a_recipe_that_is_their_last_one(tiny, tokenizer):
    with pytest.raises(ValueError, match="last stage"):
        trained(tiny, tokenizer, FourStages(), RECIPE)
    assert STAGES[-1] == {"unlock": EVERYTHING.unlock, "unlock_encoder": EVERYTHING.unlock_encoder}


# A new domain


def test_no_digit_is_seen_before_the_adaptation(tiny, tokenizer, monkeypatch):
    tuned, stage_two = [], train.stage_two

    def listening(model, tokenizer, recipe, **options):
        tuned.append((id(model), recipe.images, options["digits"], options["seed"]))
        return stage_two(model, tokenizer, recipe, **options)

    monkeypatch.setattr(train, "stage_two", listening)
    scenes = train.stage_one_scenes(60, seed=3)
    method = NewDomain(images=32, short=32, long=64, scenes=4)
    chosen = method.choose(scenes, 24)
    assert len(chosen) == 24 and not any(thing.shape in world.DIGITS for i in chosen for thing in scenes[i].things)
    with pytest.raises(ValueError, match="without digits"):
        method.choose(scenes, 60)

    model, history = trained(tiny, tokenizer, method, scenes=scenes)
    assert [each[1:] for each in tuned] == [(32, 0.0, 3), (32, 1.0, 1003), (64, 1.0, 1003), (64, 1.0, 1003)]
    assert id(model) not in {each[0] for each in tuned}
    assert set(history.after) == {"before", "short", "long", "direct", "gain"}
    gain = history.after.pop("gain")
    assert gain == history.after["short"]["digits"] - history.after["before"]["digits"]
    for found in history.after.values():
        assert set(found) == {"shapes", "digits", "by_kind", "count_by_kind"}
        for domain in ("shapes", "digits"):
            assert found[domain] == pytest.approx(np.mean(list(found["by_kind"][domain].values())))
            assert all(count <= method.scenes for count in found["count_by_kind"][domain].values())


@pytest.mark.parametrize(("digits", "forms"), [(0.0, world.SHAPES), (1.0, world.DIGITS)])
def test_questions_are_asked_in_one_domain(digits, forms):
    drawn = evaluation.held_out_scenes(20, digits=digits)
    assert {thing.shape for scene in drawn for thing in scene.things} <= set(forms)
