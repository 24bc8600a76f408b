"""One run: what it is measured on, what it leaves behind, and that it leaves the same behind twice."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from mirlab import recipes, runs, world
from mirlab.model import evaluation, miniature, train
from mirlab.world import language

NUM = 100


def bytes_of(pictures):
    return [np.asarray(picture).tobytes() for picture in pictures]


# Texts and pictures


@pytest.mark.parametrize("kind", runs.TEXT_KINDS)
def test_there_are_as_many_texts_of_each_kind_as_asked_for(kind):
    draws = [runs.texts_of(kind, NUM, seed=seed) for seed in range(3)]
    for texts in draws:
        assert len(texts) == NUM
        assert all(text and text == text.strip() for text in texts)
        assert len(set(texts)) >= 0.95 * NUM
        assert max(map(len, texts)) <= 500
    assert len({tuple(texts) for texts in draws}) == 3
    for other in draws[1:]:
        assert len(set(draws[0]) & set(other)) < 0.8 * NUM
    assert runs.texts_of(kind, NUM, seed=1) == draws[1]


@pytest.mark.parametrize("kind", runs.PICTURE_KINDS)
def test_there_are_as_many_pictures_of_each_kind_as_asked_for(kind):
    draws = [bytes_of(runs.pictures_of(kind, NUM, seed=seed)) for seed in range(3)]
    assert [len(pictures) for pictures in draws] == [NUM] * 3
    assert [len(set(pictures)) for pictures in draws] == [NUM] * 3
    assert not set(draws[0]) & set(draws[1]) and not set(draws[0]) & set(draws[2])
    assert bytes_of(runs.pictures_of(kind, NUM, seed=1)) == draws[1]


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_real_texts_come_from_held_out_texts_alone(kind):
    held_out = language.english_texts(kind, held_out=True)
    assert all(any(text in whole for whole in held_out) for text in runs.texts_of(kind, NUM))


def eights(text):
    words = re.sub(r"\W+", " ", text.lower()).split()
    return [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]


@pytest.fixture(scope="module")
def read():
    """Every eight words in a row of the real texts that models train on."""
    return {run for kind in language.ENGLISH_KINDS for text in language.english_texts(kind) for run in eights(text)}


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_no_text_shares_eight_words_in_a_row_with_anything_that_was_read(kind, read):
    for seed in range(3):
        for text in runs.texts_of(kind, NUM, seed=seed):
            assert eights(text)
            assert read.isdisjoint(eights(text))


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_held_out_texts_do_repeat_what_was_read_and_unread_finds_it(kind, read):
    found = [passage for whole in language.english_texts(kind, held_out=True) for passage in runs._passages(whole)]
    repeated = [passage for passage in found if not read.isdisjoint(eights(passage))]
    assert len(repeated) > 0.1 * len(found)  # which is why they are looked for
    assert not any(map(language.unread, repeated))
    assert set(found) - set(repeated) >= set(runs.texts_of(kind, NUM))


def test_eight_words_from_anywhere_in_the_training_texts_are_found_whatever_their_dress():
    words = language.english_texts("topics")[3].split()[20:40]
    assert not language.unread(f"Nobody wrote this: {' '.join(words)}!".upper())
    assert not language.unread("too short to tell")
    assert language.unread("the zebra of my aunt plays four violins at once on sunday mornings")


@pytest.mark.parametrize("kind", ["topics", "docstrings", "code"])
def test_too_many_real_texts_are_refused(kind):
    with pytest.raises(ValueError, match=rf"there are \d+ passages of {kind}, not 1000000"):
        runs.texts_of(kind, 1_000_000)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError):
        runs.texts_of("poems", 1)
    with pytest.raises(ValueError):
        runs.pictures_of("drawings", 1)


# Runs


def test_a_run_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="study must be one of final, during, robustness, zoo, zoo_samples, not 'x'"):
        runs.Run(study="x")
    with pytest.raises(ValueError, match="at most 16384 pairs, not 20000"):
        runs.Run(stage_one=recipes.StageOne(pairs=20_000))


def test_what_a_run_costs_grows_with_what_it_does():
    base = runs.Run()
    assert runs.Run(stage_one=recipes.StageOne(pairs=512)).cost < base.cost
    assert runs.Run(study="during", probes=(4, 8)).cost > base.cost
    assert runs.Run(study="robustness").cost > base.cost
    assert runs.Run(stage_one=recipes.StageOne(unlock="all")).cost > base.cost


@pytest.fixture(scope="module")
def laboratory(tokenizer, tmp_path_factory):
    """`execute` with small parts and few scenes; each call names a cache of its own, so nothing is shared."""

    def load(seed, cache):
        model = miniature.assemble(miniature.new_encoder(seed=seed), miniature.new_language_model(layers=2, seed=seed))
        return model, miniature.new_processor(tokenizer), miniature.fingerprint(model, without="multi_modal_projector")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "POOL", 96)
        patch.setattr(runs.parts, "load", load)
        yield lambda run, name: runs.execute(run, tmp_path_factory.mktemp(name))


RECIPE = recipes.StageOne(pairs=64, batch=32, warmup_steps=1)
FINAL = runs.Run(seed=4, parts=1, stage_one=RECIPE, stage_two=recipes.StageTwo(images=32, batch=16), scenes=16)


@pytest.fixture(scope="module")
def final(laboratory):
    return laboratory(FINAL, "first")


def numbers(value, path=()):
    """All numbers in nested JSON, by their path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in numbers(item, (*path, key)).items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in numbers(item, (*path, i)).items()}
    return {path: value}


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


MEASURED = {
    "perplexity", "slots", "in_context", "zero_shot", "discrimination", "mir", "mir_scenes",
    "accuracy", "accuracy_by_kind", "blind_by_kind", "stage_two",
}  # fmt: skip


def test_a_run_has_every_metric_and_each_is_a_finite_number(final):
    assert set(final) == {"metrics", "seconds", "parts"}
    assert json.loads(json.dumps(final, allow_nan=False)) == final
    metrics = final["metrics"]
    assert set(metrics) == {"stage_one", *MEASURED}
    assert set(metrics["stage_one"]) == {"loss", "curve", "seconds"}
    assert set(metrics["perplexity"]) == {"in_domain", "out_of_domain"}
    assert set(metrics["slots"]) == set(world.CAPTION_SLOTS)
    assert set(metrics["in_context"]) == {"text", "image"}
    for by_kind in ("zero_shot", "accuracy_by_kind", "blind_by_kind"):
        assert list(metrics[by_kind]) == list(world.QUESTION_KINDS)
    assert set(metrics["accuracy"]) == {"mean", "blind"}
    assert set(metrics["stage_two"]) == {"loss", "seconds"}
    assert set(metrics["mir"]) == {
        "value", "per_layer", "mean_term", "covariance_term", "norm_ratio", "norm_only", "null", "floor",
    }  # fmt: skip
    for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio"):
        assert len(metrics["mir"][name]) == 2  # layers
    for path, number in numbers(final["metrics"]).items():
        assert isinstance(number, (int, float)) and math.isfinite(number), path


def test_the_numbers_of_a_run_agree_with_each_other(final):
    metrics = final["metrics"]
    curve = metrics["stage_one"]["curve"]
    assert [step for step, _ in curve] == [1, 2]
    assert metrics["stage_one"]["loss"] == pytest.approx(np.mean([loss for _, loss in curve]), abs=1e-4)
    assert metrics["accuracy"]["mean"] == pytest.approx(np.mean(list(metrics["accuracy_by_kind"].values())), rel=1e-4)
    assert metrics["accuracy"]["blind"] == pytest.approx(np.mean(list(metrics["blind_by_kind"].values())), rel=1e-4)
    mir = metrics["mir"]
    assert mir["value"] == pytest.approx(np.log10(sum(mir["per_layer"])), rel=1e-4)
    terms = np.add(mir["mean_term"], mir["covariance_term"])
    assert mir["per_layer"] == pytest.approx(terms.tolist(), rel=1e-4)
    assert final["seconds"]["all"] >= final["seconds"]["stage_one"] >= metrics["stage_one"]["seconds"] > 0


def test_the_same_run_again_gives_the_same_numbers_and_looking_on_changes_none(final, laboratory):
    """With a cache of its own, and measured after each of the two steps: a probe must not disturb the training."""
    watched = runs.Run(**{**vars(FINAL), "study": "during", "probes": (2,)})
    again = laboratory(watched, "second")
    assert again["parts"] == final["parts"]
    (probe,) = again["metrics"].pop("probes")
    assert without_seconds(again["metrics"]) == without_seconds(final["metrics"])
    # After the last step a probe measures what is measured in the end.
    assert probe.pop("step") == 2
    assert set(probe) == MEASURED
    # Training and evaluation compute attention by different kernels, so the last digits differ.
    expected = numbers(without_seconds({k: v for k, v in final["metrics"].items() if k in MEASURED}))
    assert numbers(without_seconds(probe)) == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_robustness_compares_what_it_says(tokenizer, monkeypatch):
    monkeypatch.setattr(runs, "COUNTS", (2, 4))
    shown = {}

    class Collected:
        def __init__(self, pictures, texts, template):
            self.said = (tuple(map(str, pictures)), tuple(texts), template)
            self.vision = self.text = self.said

        def of_samples(self, chosen):
            return ("sample", *chosen), None

    monkeypatch.setattr(runs, "pictures_of", lambda kind, count, seed=0: [f"{kind} {count} {seed}"])
    monkeypatch.setattr(runs, "texts_of", lambda kind, count, seed=0: [f"{kind} {count} {seed}"])
    monkeypatch.setattr(
        runs.rows,
        "collect_rows",
        lambda model, processor, pictures, texts, *, batch_size, template="chat": Collected(pictures, texts, template),
    )
    monkeypatch.setattr(
        runs,
        "modality_integration_rate",
        lambda vision, text: SimpleNamespace(value=float(shown.setdefault(vision, len(shown)))),
    )
    monkeypatch.setattr(runs, "mir_of", lambda model, processor: {"value": -1.0})
    trained_on = [world.sample_scene(np.random.default_rng(i)) for i in range(300)]
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))
    found = runs.robustness(model, miniature.new_processor(tokenizer), trained_on=trained_on)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"kinds", "template", "relevance", "seen", "counts", "mir"}
    assert list(found["kinds"]) == list(runs.PICTURE_KINDS)
    for by_text in found["kinds"].values():
        assert list(by_text) == list(runs.TEXT_KINDS)
        assert all(len(draws) == 3 for draws in by_text.values())
    for comparison, sides in (("template", {"chat", "plain"}), ("relevance", {"own", "other"})):
        assert set(found[comparison]) == sides
        assert all(len(set(draws)) == 3 for draws in found[comparison].values())
    assert set(found["seen"]) == {"seen", "unseen"}
    assert found["seen"]["unseen"] == found["relevance"]["own"]
    assert found["seen"]["seen"] != found["seen"]["unseen"]
    assert {count: len(draws) for count, draws in found["counts"].items()} == {"2": 5, "4": 5}
    values = {said: value for said, value in shown.items() if said[0] != "sample"}
    for picture in runs.PICTURE_KINDS:
        for text in runs.TEXT_KINDS:
            asked = [((f"{picture} 100 {d}",), (f"{text} 100 {d}",), "chat") for d in range(3)]
            assert found["kinds"][picture][text] == [values[said] for said in asked]
    plain = [((f"scenes 100 {d}",), (f"news 100 {d}",), "plain") for d in range(3)]
    assert found["template"] == {"chat": found["kinds"]["scenes"]["news"], "plain": [values[said] for said in plain]}


def test_the_scenes_called_seen_are_those_that_the_run_was_trained_on(laboratory, monkeypatch):
    trained, told = [], []

    def captured(scenes, *arguments, **options):
        trained.extend(scenes)
        return rows(scenes, *arguments, **options)

    def robustness(model, processor, *, trained_on):
        told.extend(trained_on)
        return {}

    rows = train.caption_rows
    monkeypatch.setattr(train, "caption_rows", captured)
    monkeypatch.setattr(runs, "robustness", robustness)
    laboratory(runs.Run(**{**vars(FINAL), "study": "robustness"}), "third")
    assert len(told) == len(set(told)) == RECIPE.pairs
    assert set(told) == set(trained)
    assert not set(told) & set(evaluation.held_out_scenes(100))


def test_the_encoder_learns_where_it_is_unlocked_and_its_pictures_are_seen_anew(laboratory):
    """With an unlocked encoder the features in the cache are of no use; the run must not read them."""
    recipe = recipes.StageOne(pairs=32, batch=32, unlock_encoder=True, unlock="half", connector="mlp1")
    row = laboratory(runs.Run(**{**vars(FINAL), "stage_one": recipe}), "fourth")
    assert set(row["metrics"]) == {"stage_one", *MEASURED}
    assert recipe.connector in recipes.CONNECTORS
