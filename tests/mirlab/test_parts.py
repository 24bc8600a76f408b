"""Sets of parts: what is measured of them is counted by hand, and only those that pass take a place."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from test_train import tiny_recipe

from mirlab import commands, world
from mirlab.experiments import EXPERIMENTS
from mirlab.ledger import Ledger, key_of
from mirlab.model import evaluation, miniature, parts, precision
from mirlab.recipes import LATER_PARTS, PARTS
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

SCENES = 24

GOOD = {"words": {"exist": 1.0, "count": 1.0}, "probe": {"colour": 1.0, "shape": 1.0, "cell": 1.0, "digit": 0.3}}
BAD = {**GOOD, "words": {"exist": 0.7, "count": 1.0}}


# What is measured


@pytest.fixture(scope="module")
def hurt():
    """The shipped miniature with noise in its weights, so that it is right now and then."""
    model, processor = load_miniature()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in [*model.model.language_model.layers.parameters(), *model.model.vision_tower.parameters()]:
            weight += 0.9 * weight.std(correction=0) * torch.randn(weight.shape, generator=noise)
    return model, processor.tokenizer


@pytest.fixture(scope="module")
def examined(hurt):
    return parts.examine(*hurt, scenes=SCENES)


@torch.no_grad()
def share_right(model, tokenizer, kind, rng):
    """Questions one by one, each a text that is tokenized whole, and the likeliest word read out."""
    llm = miniature.language_model_of(model)
    scenes = evaluation.held_out_scenes(SCENES)
    right = asked = 0
    for number, question in evaluation.questions_about(scenes, kind):
        told = "".join(text for text, _ in language.textual_scene(scenes[number], rng))
        ids = tokenizer(f"USER:{told}\n {question.text} ASSISTANT:", return_tensors="pt").input_ids
        logits = llm(input_ids=ids).logits[0, -1]
        word = tokenizer.decode(int(np.argmax(logits.numpy()))).strip()
        scores = {
            candidate: logits[tokenizer.convert_tokens_to_ids(f"Ġ{candidate}")].item()
            for candidate in evaluation.candidates(question)
        }
        if word in scores:
            assert word == max(scores, key=scores.get)
        right += word == question.answer
        asked += 1
    return right / asked


def test_the_words_are_the_shares_of_questions_that_the_language_model_answers(hurt, examined):
    rng = np.random.default_rng([0, 97])  # one stream of scenes in words through all kinds
    expected = {kind: share_right(*hurt, kind, rng) for kind in world.QUESTION_KINDS}
    assert examined["words"] == pytest.approx(expected)
    assert sum(0 < share < 1 for share in expected.values()) >= 4  # so a wrong count would be seen


@torch.no_grad()
def shares_of_the_probe(model, *, fitted, tested):
    """Ridge regressions of scikit-learn in double precision, cell by cell."""
    rng = np.random.default_rng([0, 95])
    rows, things, used = [], [], []
    for number in range(fitted + tested):
        scene = world.sample_scene(rng, held_out=number >= fitted)
        hidden = model.model.vision_tower(miniature.pixel_values([scene]), output_hidden_states=True).hidden_states
        tokens = hidden[-2][0, 1:].half().numpy()
        for cell in world.CELLS:
            down, across = 3 * cell.startswith("bottom"), 3 * cell.endswith("right")
            rows.append([x for y in range(3) for z in range(3) for x in tokens[6 * (down + y) + across + z]])
            things.append(next((thing for thing in scene.things if thing.cell == cell), None))
            used.append(number < fitted)
    rows, used = np.array(rows, dtype=float), np.array(used)
    rows = (rows - rows[used].mean(0)) / np.maximum(rows[used].std(0, ddof=1), 1e-3)
    shares, there = {}, [thing is not None for thing in things]
    for name, words in (("size", tuple(world.SIZES)), ("colour", tuple(world.COLOURS)), ("shape", world.FORMS)):
        truth = [words.index(getattr(thing, name)) if thing else len(words) for thing in things]
        ridge = Ridge(alpha=0.01 * used.sum()).fit(rows[used], np.eye(len(words) + 1)[truth][used])
        said = ridge.predict(rows)
        hits = {True: [], False: []}
        empty = []
        for cell in np.flatnonzero(~used):
            empty.append((said[cell].argmax() < len(words)) == there[cell])
            if there[cell]:
                hits[things[cell].shape in world.DIGITS].append(said[cell][:-1].argmax() == truth[cell])
        if name == "shape":
            shares |= {"shape": np.mean(hits[False]), "digit": np.mean(hits[True]), "cell": np.mean(empty)}
        else:
            shares[name] = np.mean(hits[False] + hits[True])
    return shares


def test_the_probe_is_a_ridge_regression_on_the_tokens_of_each_cell(hurt, examined):
    expected = shares_of_the_probe(hurt[0], fitted=5 * SCENES, tested=SCENES)
    assert examined["probe"] == pytest.approx(expected)
    assert set(parts.PROBED) <= set(expected)
    assert sum(0 < share < 1 for share in expected.values()) >= 4


def test_whole_parts_pass_where_hurt_ones_fail(hurt, examined):
    assert parts.failures(examined)
    model, processor = load_miniature()
    whole = parts.examine(model, processor.tokenizer, scenes=100)
    assert not [miss for miss in parts.failures(whole) if miss.endswith("probe")]
    assert np.mean(list(whole["words"].values())) > np.mean(list(examined["words"].values())) + 0.2


# What misses


@pytest.mark.parametrize(
    ("words", "probe", "missing"),
    [
        ({}, {}, []),
        ({"exist": 0.95}, {"colour": 0.9, "shape": 0.9, "cell": 0.9}, []),
        ({"exist": math.nextafter(0.95, 0)}, {}, ["exist in words"]),
        ({}, {"cell": math.nextafter(0.9, 0)}, ["cell by the probe"]),
        ({}, {"digit": 0.0, "size": 0.0}, []),
        ({"count": 0.0, "exist": 0.5}, {"shape": 0.1}, ["exist in words", "count in words", "shape by the probe"]),
    ],
)
def test_what_misses_is_named_and_the_limits_pass(words, probe, missing):
    assert parts.failures({"words": GOOD["words"] | words, "probe": GOOD["probe"] | probe}) == missing


def test_what_cannot_be_counted_does_not_pass():
    assert parts.failures({**GOOD, "words": {"exist": math.nan}}) == ["exist in words"]
    assert parts.failures({**GOOD, "probe": GOOD["probe"] | {"shape": math.nan}}) == ["shape by the probe"]


# The sets that are declared


@pytest.fixture
def trained(monkeypatch):
    """Seeds that were trained; seed 12 makes parts that fail. Nothing is trained in truth."""
    seeds = []

    class Processor:
        tokenizer = None

    def load(seed, cache, *, progress):
        seeds.append(seed)
        return seed, Processor, f"parts of {seed}"

    def make(recipe, cache, *, progress):
        return None, None, {"encoder": parts.History([2.0, 1.0], 3.04)}

    monkeypatch.setattr(parts, "load", load)
    monkeypatch.setattr(parts, "make", make)
    monkeypatch.setattr(parts, "examine", lambda seed, tokenizer: BAD if seed == 12 else GOOD)
    return seeds


def test_the_sets_that_runs_start_from_are_made_and_failures_keep_their_rows(trained, tmp_path, monkeypatch):
    names = "eim", "real"  # of which the second has no sets of ours
    monkeypatch.setattr(commands, "EXPERIMENTS", {name: EXPERIMENTS[name] for name in names})
    options = {"results_dir": tmp_path, "cache_dir": tmp_path, "progress": False}
    rows = commands.run("parts", **options)
    assert trained == sorted({*PARTS, *LATER_PARTS}) == [row["seed"] for row in rows]
    assert [row["seed"] for row in rows if row["failures"]] == [12]
    book = Ledger(tmp_path / "parts.jsonl")
    assert book.rows() == json.loads(json.dumps(rows))
    assert commands.run("parts", **options) == book.rows()  # none is made again
    assert len(trained) == len(rows)


def test_a_row_tells_how_its_parts_were_made_and_what_they_are(tmp_path, monkeypatch):
    small = tiny_recipe().parts
    monkeypatch.setattr(parts, "PartsRecipe", lambda seed: replace(small, seed=seed))
    monkeypatch.setattr(parts.language, "train_tokenizer", lambda: language.load_tokenizer(MINIATURE))
    monkeypatch.setattr(parts, "examine", partial(parts.examine, scenes=SCENES))
    book = Ledger(tmp_path / "parts.jsonl")
    row = parts.make_row(17, book, tmp_path, progress=False)

    model, processor, fingerprint = parts.load(17, tmp_path, progress=False)
    assert row["parts"] == fingerprint == miniature.fingerprint(model, without="multi_modal_projector")
    assert row["measured"] == parts.examine(model, processor.tokenizer)  # as they are kept, in float16
    assert row["failures"] == parts.failures(row["measured"]) != []
    assert (row["seed"], row["configuration"]["seed"], row["experiment"]) == (17, 17, "parts")
    assert row["key"] == key_of(row["configuration"])
    phases = {"encoder", "language_1", "language_2", "language_3"}
    assert set(row["seconds"]) == set(row["final_loss"]) == phases
    for phase in phases:
        (checkpoint,) = tmp_path.glob(f"*/{phase.replace('_', '-')}.pt")
        kept = torch.load(checkpoint, weights_only=True)
        assert len(kept["losses"]) == 3
        assert row["seconds"][phase] == pytest.approx(kept["seconds"], abs=0.051)
        assert row["final_loss"][phase] == pytest.approx(sum(kept["losses"]) / 3, abs=1e-4)
    assert row["provenance"]["precision"] == "float32"
    assert row["provenance"]["arithmetic"] == precision.arithmetic()
    assert {"finished", "libraries", "processor", "commit"} <= set(row["provenance"])
    assert book.rows() == json.loads(json.dumps([row]))
