"""Training: the shared loop, and tiny runs of the whole chain."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from mirlab import base, commands, recipes, world
from mirlab.ledger import Ledger
from mirlab.model import cells, connectors, miniature, parts, pretraining, train
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

TOKENIZER = language.load_tokenizer(MINIATURE)


class Killed(Exception):
    pass


def small_run(checkpoint, steps=12, kill_at=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss_of_step(step):
        if step == kill_at:
            raise Killed
        x = torch.from_numpy(np.random.default_rng([1, step]).normal(size=(16, 4)).astype(np.float32))
        return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

    schedule = recipes.Schedule(steps=steps, learning_rate=1e-2)
    history = train.fit(module, loss_of_step, schedule, checkpoint=checkpoint, every=5, progress=False)
    return module.state_dict(), history


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    expected, whole = small_run(None)
    with pytest.raises(Killed):
        small_run(tmp_path / "x.pt", kill_at=8)  # the last checkpoint is after step 5
    weights, resumed = small_run(tmp_path / "x.pt")
    assert resumed.losses == whole.losses
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    again, _ = small_run(tmp_path / "x.pt", kill_at=0)  # a finished run takes no step
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_the_learning_rate_warms_up_and_falls():
    schedule = recipes.Schedule(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [schedule.factor(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


def test_weighted_loss_ignores_tokens_of_no_weight():
    model = miniature.new_language_model(layers=1)
    ids = np.random.default_rng(0).integers(4, 100, size=(2, 10))
    weights = np.zeros((2, 10), dtype=np.float32)
    weights[0, 3], weights[1, 7] = 1, 3
    loss = pretraining.weighted_loss(model, language.Rows(ids, weights, np.tile(np.arange(10), (2, 1))))
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.from_numpy(ids)).logits, -1)
    expected = -(log_p[0, 2, ids[0, 3]] + 3 * log_p[1, 6, ids[1, 7]]) / 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_documents_of_a_row_do_not_see_each_other():
    model = miniature.new_language_model(layers=2)
    ids = np.random.default_rng(0).integers(4, 100, size=(1, 20))
    positions = np.concatenate([np.arange(8), np.arange(12)])[None]
    weights = np.zeros((1, 20), dtype=np.float32)
    weights[0, 9:] = 1  # the second document, but for its first token
    together = pretraining.weighted_loss(model, language.Rows(ids, weights, positions))
    alone = pretraining.weighted_loss(model, language.Rows(ids[:, 8:], weights[:, 8:], positions[:, 8:]))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_cell_means_average_the_patches_of_each_cell():
    patches = torch.arange(36.0).view(1, 36, 1)
    grid = patches.view(6, 6)
    expected = [grid[:3, :3].mean(), grid[:3, 3:].mean(), grid[3:, :3].mean(), grid[3:, 3:].mean()]
    assert torch.allclose(cells.cell_means(patches).flatten(), torch.stack(expected))


def test_cell_labels_say_what_is_there_and_where_nothing_is():
    scene = world.Scene((world.Thing("ring", "blue", "large", "topright"),))
    (labels,) = cells.cell_labels([scene])
    named = [[words[i] for words, i in zip(cells.LABELS.values(), cell, strict=True)] for cell in labels]
    assert named == [["nothing"] * 3, ["large", "blue", "ring"], ["nothing"] * 3, ["nothing"] * 3]


@pytest.mark.parametrize(
    ("unlock", "opened"),
    [
        ("none", ()),
        ("lora", ("lora_",)),
        ("half", ("language_model.layers.0.",)),
        ("all", ("language_model.", "lm_head")),
    ],
)
def test_stage_one_changes_the_connector_and_what_is_unlocked_alone(unlock, opened):
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    recipe = recipes.StageOne(pairs=64, batch=16, unlock=unlock, learning_rate=1e-2, unlocked_rate=1e-2)
    history = train.stage_one(model, TOKENIZER, recipe, progress=False)
    assert len(history.losses) == 4
    changed = {
        name
        for name, weight in model.state_dict().items()
        if not torch.equal(weight, before.get(name.replace(".base_layer", ""), torch.empty(0)))
    }
    allowed = ("multi_modal_projector", *opened)
    assert any("multi_modal_projector" in name for name in changed)
    assert all(any(part in name for part in allowed) for name in changed)
    for part in opened[:1]:
        assert any(part in name for name in changed)


def test_merging_lora_leaves_the_logits_unchanged():
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))
    train.stage_one(model, TOKENIZER, recipes.StageOne(pairs=64, batch=16, unlock="lora"), progress=False)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        apart = model.model.language_model(input_ids=ids).last_hidden_state
        connectors.merge_lora(model)
        merged = model.model.language_model(input_ids=ids).last_hidden_state
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.allclose(apart, merged, atol=1e-4)


@pytest.mark.parametrize("connector", recipes.CONNECTORS)
def test_a_norm_matched_connector_gives_every_token_the_norm_of_text(connector):
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=1))
    fresh = connectors.replace(model, connector, norm_matched=True)
    tokens = fresh(torch.randn(2, miniature.VISION_TOKENS, miniature.VISION_DIM))
    assert tokens.shape == (2, miniature.VISION_TOKENS, 128)
    expected = model.get_input_embeddings().weight.norm(dim=1).mean()
    assert torch.allclose(tokens.norm(dim=-1), expected.expand(2, miniature.VISION_TOKENS), rtol=1e-4)


def test_caption_losses_agree_with_the_model_itself():
    model, processor = load_miniature()
    scenes = train.stage_one_scenes(3)
    encode = language.segment_encoder(TOKENIZER)
    ids = train.caption_rows(scenes, encode)
    with torch.no_grad():
        losses, predicted = train.caption_losses(model, ids, train.vision_features(model, scenes).float())
        logits = []
        for scene in scenes:
            text = f"<image>\n {world.caption(scene)}</s>"
            inputs = processor(images=world.to_image(scene), text=text, return_tensors="pt")
            labels = inputs["input_ids"].clone()
            labels[:, : 1 + 36 + 1] = -100
            logits.append((model(**inputs, labels=labels).loss, (labels != -100).sum()))
    expected = sum(loss * count for loss, count in logits) / sum(count for _, count in logits)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-2)
    assert predicted.shape == (3, ids.shape[1] - 1)


def test_both_stages_leave_a_frozen_encoder_alone():
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=1))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train.stage_one(model, TOKENIZER, recipes.StageOne(pairs=64, batch=16), progress=False)
    train.stage_two(model, TOKENIZER, recipes.StageTwo(images=32, batch=16), progress=False)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and not any("vision_tower" in name for name in changed)


def test_stage_one_sets_are_nested():
    assert train.stage_one_scenes(20)[:8] == train.stage_one_scenes(8)


def tiny_recipe():
    short = recipes.Schedule(steps=3, learning_rate=1e-3)
    return base.BaseRecipe(
        scenes=20,
        parts=parts.PartsRecipe(
            encoder=pretraining.EncoderRecipe(schedule=short, groups=2, group_size=2),
            language=pretraining.LanguageRecipe(
                layers=1,
                new_layers=1,
                first=short,
                second=short,
                third=short,
                first_rows=(2, 48),
                second_rows=(2, 48),
            ),
        ),
        stage_one=recipes.StageOne(pairs=32, batch=16),
    )


def test_base_runs_from_nothing_and_resumes(tmp_path, monkeypatch):
    options = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "progress": False}

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "stage_one", killed)
        with pytest.raises(Killed):
            commands.run("base", recipe=tiny_recipe(), **options)
    (home,) = (tmp_path / "cache").glob("base-*")
    (encoder,) = (tmp_path / "cache").glob("encoder-*/encoder.pt")
    trained = encoder.stat().st_mtime_ns

    (row,) = commands.run("base", recipe=tiny_recipe(), **options)
    assert encoder.stat().st_mtime_ns == trained  # not trained again
    assert set(row["seconds"]) == {"encoder", "language_1", "language_2", "language_3", "stage_one", "stage_two"}
    assert all(math.isfinite(loss) for loss in row["final_loss"].values())
    assert set(row["measured"]["text_accuracy"]["chat"]) == set(world.QUESTION_KINDS)
    model, _ = load_miniature(home / "miniature")
    assert model.config.text_config.num_hidden_layers == 2
    assert "written captions" in commands.show("base", tmp_path / "results")

    # The same command again finds everything done, and adds no row.
    assert commands.run("base", recipe=tiny_recipe(), output=tmp_path / "made", **options) == [row]
    assert len((tmp_path / "results" / "base.jsonl").read_text().splitlines()) == 1
    made, shipped = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "made", home / "miniature"))
    assert made == shipped


def test_unknown_and_unrun_experiments_are_named(tmp_path):
    with pytest.raises(ValueError, match="no experiment is called 'x'; there is base"):
        commands.run("x", results_dir=tmp_path)
    with pytest.raises(ValueError, match="base has no results in .* yet"):
        commands.show("base", tmp_path)


def test_the_card_of_the_shipped_one_says_what_the_ledger_says():
    row = Ledger(MINIATURE.parent.parent / "results" / "base.jsonl").rows()[-1]
    words, pictures, captions, written, probe, english = row["measured"].values()
    known = {kind: [by[kind] for by in (*words.values(), *pictures.values())] for kind in world.QUESTION_KINDS} | {
        name: [*captions[which].values(), *written.get(which, {}).values()]
        for name, which in (("own picture", "own"), ("permuted", "permuted"), ("no picture", "none"))
    }
    known |= {kind: list(scores.values()) for kind, scores in english.items()}
    known |= {part: [loss, row["seconds"][part] / 60] for part, loss in row["final_loss"].items()}
    known[f"{list(probe.values())[0]:.3f}"] = list(probe.values())[1:]
    card = (MINIATURE / "README.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if re.search(r"\d\.\d{3} ", line)]
    assert {line[0]: [cell for cell in line[1:] if cell.strip()] for line in lines} == {
        name: [f"{number:.3f}" for number in numbers] for name, numbers in known.items()
    }
    recipe, card = row["configuration"]["stage_one"], " ".join(card.split())
    assert f"one pass over {recipe['pairs']:,} pictures" in card and recipe["epochs"] == 1
    assert f"in batches of {recipe['batch']}, at a learning rate of .{recipe['learning_rate'] * 1000:03.0f}." in card
    minutes = sum(row["seconds"].values()) / 60
    made = row["provenance"]
    assert f"took {minutes:.0f} minutes on one core of an {made['processor']}, in {made['precision']}" in card
    assert f"of {row['parameters'] / 1e6:.1f} million parameters" in card
    assert f"pictures of {world.IMAGE_SIZE} x {world.IMAGE_SIZE} pixels" in card
    llm = row["configuration"]["parts"]["language"]
    assert f"of {llm['layers'] + llm['new_layers']} layers, {miniature.VISION_TOKENS} vision tokens" in card


def test_the_ledger_of_base_tells_how_the_shipped_one_was_made():
    text = commands.show("base", MINIATURE.parent.parent / "results")
    for kind in world.QUESTION_KINDS:
        assert kind in text
