"""Long tokens and absent things, held against the model asked one by one, NumPy loops, scikit-learn and pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from mirlab import measuring, recipes, results, world
from mirlab.experiments import EXPERIMENTS
from mirlab.model import evaluation, leaning, long_tokens, sequence, train
from mirlab.model.miniature import PATCH_SIZE
from mirlab.statistics import wide
from mirlib import MirlibError, rows
from mirlib.align import norms
from mirlib.loading import load_miniature

SCENES = 6


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


@pytest.fixture(scope="module")
def tokens(miniature):
    """(n, 36, d) of the held-out scenes."""
    model, _ = miniature
    with torch.no_grad():
        return model.model.multi_modal_projector(
            train.vision_features(model, evaluation.held_out_scenes(SCENES)).float()
        )


# Which tokens, and how long


def test_the_longest_and_the_shortest_quarter_are_those_of_a_sorted_list(tokens):
    for which, part in (("long", slice(-9, None)), ("short", slice(None, 9)), ("all", slice(None))):
        for row, picture in zip(long_tokens.chosen(tokens, which), tokens.numpy(), strict=True):
            order = sorted(range(36), key=lambda i: float(np.sqrt((picture[i] ** 2).sum())))
            assert row.nonzero()[:, 0].tolist() == sorted(order[part])


def test_random_tokens_are_as_many_and_stand_everywhere():
    some = long_tokens.chosen(torch.randn(4000, 36, 2), "random", torch.Generator().manual_seed(0))
    assert (some.sum(1) == 9).all()
    assert np.allclose(some.float().mean(0), 0.25, atol=0.03)  # four standard deviations


def test_lengths_change_where_they_should_and_directions_nowhere(tokens, miniature):
    words = miniature[0].get_input_embeddings().weight
    some = long_tokens.chosen(tokens, "long")
    every = torch.ones_like(some)
    changed = {
        "rest": long_tokens.rescaled(tokens, some, "rest", words),
        "words": long_tokens.rescaled(tokens, some, "words", words),
        "mean": long_tokens.rescaled(tokens, every, "mean", words),
    }
    of_words = np.mean([np.linalg.norm(word) for word in words.detach().numpy()])
    for n, picture in enumerate(tokens.numpy()):
        lengths = np.linalg.norm(picture, axis=1)
        expected = {"rest": lengths[~some[n].numpy()].mean(), "words": of_words, "mean": lengths.mean()}
        for what, new in changed.items():
            for i in range(36):
                meant = bool(some[n, i]) or what == "mean"
                assert new[n, i].norm().item() == pytest.approx(expected[what] if meant else lengths[i], rel=1e-4)
                assert torch.cosine_similarity(new[n, i], tokens[n, i], dim=0) > 1 - 1e-5


# What the decoder reads


@torch.no_grad()
def last_hidden(model, tokens):
    """After a picture and six words."""
    embed = model.get_input_embeddings()
    prompt = sequence.words(embed(torch.arange(10, 16)))
    return sequence.read(model, sequence.words(embed(torch.tensor([1]))), sequence.image(tokens), prompt)[:, -1]


def test_a_dropped_token_is_left_out_and_the_others_keep_their_places(miniature, tokens):
    model, _ = miniature
    with long_tokens.changed(model, "drop_long"):
        found = last_hidden(model, tokens)
    embed = model.get_input_embeddings()
    for n, picture in enumerate(tokens):
        kept = sorted(range(36), key=lambda i: picture[i].norm().item())[:27]
        kept = torch.tensor(sorted(kept))
        with torch.no_grad():
            read = torch.cat([embed(torch.tensor([1])), picture[kept], embed(torch.arange(10, 16))])
            places = torch.cat([torch.tensor([0]), 1 + kept, torch.arange(37, 43)])
            expected = model.model.language_model(
                inputs_embeds=read[None],
                position_ids=places[None],
                attention_mask=torch.ones(1, len(read), dtype=torch.long),  # without it gaps mean packed sequences
                use_cache=False,
            )
        assert torch.allclose(found[n], expected.last_hidden_state[0, -1], atol=1e-4)
    assert not torch.allclose(found, last_hidden(model, tokens), atol=0.1)  # and they were read


def test_rescaling_is_what_the_decoder_reads_and_nothing_stays_behind(miniature, tokens):
    model, _ = miniature
    before = last_hidden(model, tokens)
    with long_tokens.changed(model, "words_long"):
        found = last_hidden(model, tokens)
    words = model.get_input_embeddings().weight
    by_hand = long_tokens.rescaled(tokens, long_tokens.chosen(tokens, "long"), "words", words)
    assert torch.allclose(found, last_hidden(model, by_hand), atol=1e-5)
    assert torch.equal(before, last_hidden(model, tokens))
    assert not model.model.language_model._forward_pre_hooks and not model._forward_pre_hooks


@torch.no_grad()
def attended_by_hand(model, inputs):
    """The inputs with the nine longest vision tokens hidden, and where those stand."""
    features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    long = np.argsort([feature.norm().item() for feature in features])[-9:]
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0][torch.from_numpy(long.copy())]
    mask = inputs["attention_mask"].clone()
    mask[0, places] = 0
    return {**inputs, "attention_mask": mask}, places


@torch.no_grad()
def test_answers_without_the_longest_tokens_are_those_of_the_model_asked_one_by_one(miniature):
    model, processor = miniature
    with long_tokens.changed(model, "drop_long"):
        found = evaluation.image_answers(model, processor.tokenizer, scenes=SCENES)
    scenes = evaluation.held_out_scenes(SCENES)
    for kind in ("colour_at", "shape_at", "size"):
        probabilities = []
        for index, question in evaluation.questions_about(scenes, kind):
            text = f"USER:<image>\n {question.text} ASSISTANT:"
            inputs = processor(images=world.to_image(scenes[index]), text=text, return_tensors="pt")
            scores = model(**attended_by_hand(model, inputs)[0]).logits[0, -1]
            words = evaluation.candidates(question)
            ids = [processor.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in words]
            probabilities.append(scores[ids].softmax(0)[words.index(question.answer)].item())
        assert found.discrimination[kind] == pytest.approx(np.mean(probabilities), abs=0.02)  # features in float16


@torch.no_grad()
def test_rows_without_the_dropped_are_those_that_a_masked_model_has(miniature):
    model, processor = miniature
    shown, told = measuring.pictures_of("scenes", 3), measuring.texts_of("news", 3)
    with long_tokens.changed(model, "drop_long"):
        collected = long_tokens.without_dropped(rows.collect_rows(model, processor, shown, told, batch_size=3))
    assert np.bincount(collected.vision_samples).tolist() == [27] * 3
    for n, (picture, text) in enumerate(zip(shown, told, strict=True)):
        one = rows.collect_rows(model, processor, [picture], [text])  # for the prompt's length alone
        whole = processor(images=picture, text=f"USER:<image>\n{text} ASSISTANT:", return_tensors="pt")
        inputs, places = attended_by_hand(model, whole)
        states = model(**inputs, output_hidden_states=True).hidden_states
        vision = whole["input_ids"][0] == model.config.image_token_id
        vision[places] = False
        for layer in (0, 3, 7):
            mine = collected.vision[layer][collected.vision_samples == n]
            assert torch.allclose(mine, states[layer + 1][0, vision], atol=2e-3, rtol=1e-3)
            theirs = collected.text[layer][collected.text_samples == n]
            assert len(theirs) == len(one.text[layer])
            assert not torch.allclose(theirs, one.text[layer], atol=0.1)  # words read what is left of the picture


def test_a_mask_on_the_model_is_refused(miniature, tokens):
    model, _ = miniature
    mask = torch.zeros(1, 1, 43, 43)
    with long_tokens.changed(model, "drop_long"), pytest.raises(MirlibError, match="another mask is on the model"):
        embeddings = torch.zeros(1, 43, tokens.shape[-1])
        vision = torch.arange(43)[None] < 36
        with sequence.vision_rows_are(model, vision):
            model.model.language_model(inputs_embeds=embeddings, attention_mask=mask)


# Where they stand


def test_patches_with_things_are_where_their_outlines_say():
    scenes = evaluation.held_out_scenes(60, digits=0.0)
    shown, cells = long_tokens.patches_with_things(scenes)
    for scene, on_thing, in_cell in zip(scenes, shown, cells, strict=True):
        outer, inner = np.zeros((2, 36), dtype=bool)
        for thing in scene.things:
            middle = [
                24 * place + 12 + shift
                for place, shift in zip((thing.row, thing.column), thing.offset[::-1], strict=True)
            ]
            radius = world.SIZES[thing.size]
            for patch in range(36):
                apart = [
                    max(start - m, m - (start + PATCH_SIZE - 1), 0)
                    for start, m in zip(np.array(divmod(patch, 6)) * PATCH_SIZE, middle, strict=True)
                ]
                outer[patch] |= max(apart) <= radius
                inner[patch] |= thing.shape == "square" and max(apart) <= 0.87 * radius - 1
            assert (
                on_thing[sum(p // PATCH_SIZE * k for p, k in zip(middle, (6, 1), strict=True))] or thing.shape == "ring"
            )
        assert (on_thing <= outer).all() and (inner <= on_thing).all() and (on_thing <= in_cell).all()
        assert in_cell.sum() == 9 * len(scene.things)
        assert {world.CELLS[2 * (i // 18) + i % 6 // 3] for i in np.flatnonzero(in_cell)} == {
            t.cell for t in scene.things
        }


def test_places_are_shares_counted_token_by_token(miniature, tokens):
    scenes = evaluation.held_out_scenes(SCENES)
    found = long_tokens.places(miniature[0], scenes)
    shown, cells = long_tokens.patches_with_things(scenes)
    hit, inside, lengths = [], [], []
    for n, picture in enumerate(tokens.numpy()):
        norm = np.linalg.norm(picture, axis=1)
        for i in np.argsort(norm)[-9:]:
            hit.append(shown[n, i])
            inside.append(cells[n, i])
            lengths.append(norm[i])
    assert found["long_on_thing"] == pytest.approx(np.mean(hit))
    assert found["long_in_cell"] == pytest.approx(np.mean(inside))
    assert found["all_on_thing"] == pytest.approx(shown.mean()) and found["all_in_cell"] == pytest.approx(cells.mean())
    assert found["long_length"] == pytest.approx(np.mean(lengths) / np.linalg.norm(tokens.numpy(), axis=2).mean())
    assert found["short_length"] < 1 < found["long_length"]


# Absent things


def test_leaning_is_that_of_the_answers(miniature):
    model, processor = miniature
    found = leaning.measured(model, processor.tokenizer, scenes=24)
    absent, present = leaning.existence(model, processor.tokenizer, scenes=24)
    truth = np.repeat([0, 1], [len(absent), len(present)])
    said = np.concatenate([absent, present]) > 0.5
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert found["false_alarms"] == sum(p > 0.5 for p in absent) / len(absent)
    assert found["hits"] == sum(p > 0.5 for p in present) / len(present)
    assert found["hallucinated"] == pytest.approx(sum(absent) / len(absent))
    assert found["yes_bias"] == pytest.approx(sum(absent) / len(absent) - sum(1 - present) / len(present))
    told = leaning.conflicts(model, processor.tokenizer, scenes=24)["with"]
    assert found["text_preference"] == pytest.approx(
        np.mean([1 / (1 + np.exp(p - t)) for p, t in zip(*told, strict=True)])
    )
    assert -1 <= found["yes_bias_blind"] <= 1 and 0 < found["text_preference_null"] < 1


# Runs and experiments


def test_what_changes_nothing_gives_the_metrics_of_the_row_itself(tiny, miniature, monkeypatch):
    monkeypatch.setattr(long_tokens, "VARIANTS", {"words_all": ("all", "words")})
    monkeypatch.setattr(measuring, "LEANING_SCENES", 2)
    norms.attach(tiny, "matched", projector="model.multi_modal_projector")
    stage_two = recipes.StageTwo(images=16, batch=16, learning_rate=0.0)
    run = recipes.Run(stage_two=stage_two, scenes=16, leaning=True, long_tokens=True)
    found = measuring.measure(tiny, miniature[1], run)
    changed = found["long_tokens"]
    assert changed["mir_words_all"] == pytest.approx(found["mir"]["value"], abs=1e-3)
    assert changed["perplexity_words_all"] == pytest.approx(found["perplexity"]["in_domain"], rel=1e-4)
    assert changed["accuracy_words_all"] == found["accuracy"]["mean"]
    assert changed["accuracy_count_words_all"] == found["accuracy_by_kind"]["count"]
    assert found["leaning"] == pytest.approx(found["leaning_zero_shot"])  # at a rate of 0 stage 2 changes nothing
    columns = results._measured({"stage_one": {}, **found})
    assert columns["mir_words_all"] == changed["mir_words_all"]
    assert columns["hallucinated"] == found["leaning"]["hallucinated"] == columns["zero_shot_hallucinated"]


def test_a_run_knows_what_it_asks():
    run = recipes.Run(leaning=True, long_tokens=True)
    assert recipes.Run.of(run.configuration) == replace(
        run, stage_one=replace(run.stage_one, warmup_steps=run.stage_one.schedule.rise)
    )
    assert {"leaning", "long_tokens"} <= set(run.configuration) - set(recipes.Run().configuration)
    assert run.cost > recipes.Run().cost


@pytest.mark.parametrize("name", ["hallucination", "long_tokens"])
def test_claims_have_their_columns_and_all_arms_share_the_seeds(name):
    declared = EXPERIMENTS[name]
    assert all(len(runs) == declared.seeds for runs in declared.arms.values())
    leaned = {"false_alarms", "hits", "balanced_accuracy", "hallucinated", "yes_bias", "gap_ima", "mir", "accuracy"}
    places = {f"{which}_on_thing" for which in ("long", "short", "all")}
    varied = {f"{metric}_{v}" for metric in ("accuracy", "mir", "perplexity") for v in long_tokens.VARIANTS}
    for claim in declared.claims:
        for column in claim.columns:
            assert set(column.split(" - ")) <= leaned | places | varied, claim.name


def test_a_column_may_be_the_difference_of_two():
    import pandas as pd

    table = pd.DataFrame({"arm": ["plain"] * 2, "seed": [0, 1], "a": [3.0, 5.0], "b": [1.0, 4.5]})
    assert wide(table, "a - b")["plain"].tolist() == [2.0, 0.5]
    with pytest.raises(MirlibError, match="no column"):
        wide(table, "a - c")
