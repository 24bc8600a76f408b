"""One run: what it leaves behind, and that it leaves the same behind twice."""

import copy
import json
import math

import numpy as np
import pytest

from mirlab import measuring, recipes, runs, world, zoo
from mirlab.model import evaluation, miniature, pool, train
from mirlab.recipes import Method, Run, StageOne, StageTwo


@pytest.fixture(scope="module")
def laboratory(tokenizer, tmp_path_factory):
    """`execute` with small parts and few scenes; each call names a cache of its own, so nothing is shared."""

    def load(seed, cache):
        model = miniature.assemble(miniature.new_encoder(seed=seed), miniature.new_language_model(layers=2, seed=seed))
        return model, miniature.new_processor(tokenizer), miniature.fingerprint(model, without="multi_modal_projector")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "POOL", 96)
        patch.setattr(pool, "BLOCK", 40)
        patch.setattr(runs.parts, "load", load)
        yield lambda run, name: runs.execute(run, tmp_path_factory.mktemp(name))


RECIPE = StageOne(pairs=64, batch=32, warmup_steps=1)
FINAL = Run(seed=4, parts=1, stage_one=RECIPE, stage_two=StageTwo(images=32, batch=16), scenes=16)


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
    "perplexity", "slots", "in_context", "in_context_by_kind", "zero_shot", "discrimination", "mir", "mir_scenes",
    "accuracy", "accuracy_by_kind", "blind_by_kind", "count_by_kind", "stage_two",
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
    asked = metrics["count_by_kind"]
    drawn = {"other": 16, "in_context": 8}
    assert set(asked) == set(drawn)
    for name, scenes in drawn.items():  # counted by asking
        counted = {
            kind: len(evaluation.questions_about(evaluation.held_out_scenes(scenes), kind))
            for kind in world.QUESTION_KINDS
        }
        assert asked[name] == counted
    for kind, share in metrics["accuracy_by_kind"].items():
        assert share * asked["other"][kind] == pytest.approx(round(share * asked["other"][kind]), abs=1e-3)
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
    watched = Run(**{**vars(FINAL), "probes": (2,)})
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
    monkeypatch.setattr(measuring, "measure", lambda *_: {})
    monkeypatch.setattr(measuring, "robustness", robustness)
    laboratory(Run(**{**vars(FINAL), "robustness": True}), "third")
    assert len(told) == len(set(told)) == RECIPE.pairs
    assert set(told) == set(trained)
    assert not set(told) & set(evaluation.held_out_scenes(100))
    assert told == train.stage_one_scenes(RECIPE.pairs, seed=FINAL.parts)  # the first ones of the parts' stream


def test_the_encoder_learns_where_it_is_unlocked_and_its_pictures_are_seen_anew(laboratory):
    """With an unlocked encoder the features in the cache are of no use; the run must not read them."""
    recipe = StageOne(pairs=32, batch=32, unlock_encoder=True, unlock="half", connector="mlp1")
    row = laboratory(Run(**{**vars(FINAL), "stage_one": recipe}), "fourth")
    assert set(row["metrics"]) == {"stage_one", *MEASURED}


def test_a_method_is_data_in_a_run_and_told_in_full_in_its_row(laboratory):
    row = laboratory(Run(**{**vars(FINAL), "method": Method("moca", rate=0.01)}), "fifth")
    assert row["method"] == {"name": "moca", "std": 0.0, "rate": 0.01}
    assert len(row["metrics"]["after_stage_one"]["u_mean"]) == 2


def test_the_zoo_is_an_addition_to_the_same_run(laboratory, final, monkeypatch):
    monkeypatch.setattr(zoo, "NUM", 12)
    metrics = laboratory(Run(**{**vars(FINAL), "zoo": True}), "sixth")["metrics"]
    gaps = metrics.pop("gaps")
    assert without_seconds(metrics) == without_seconds(final["metrics"])
    assert list(gaps) == list(zoo.ON_ROWS)
    assert gaps["mir"]["value"] == metrics["mir"]["value"]
    assert gaps["mir"]["per_layer"] == metrics["mir"]["per_layer"]
    assert gaps["norm_only"]["value"] == metrics["mir"]["norm_only"]
    assert gaps["cka"]["calibrated"] != gaps["cka"]["value"]
    assert gaps["cka"]["random_weights"] != gaps["cka"]["value"]


# The pool


def test_a_pool_computes_blocks_when_they_are_asked_for_and_keeps_them(tiny, tmp_path, monkeypatch):
    encoded = []

    def watched(model, scenes, **options):
        encoded.append(len(scenes))
        return features(model, scenes, **options)

    features = train.vision_features
    monkeypatch.setattr(train, "vision_features", watched)
    monkeypatch.setattr(recipes, "POOL", 50)
    monkeypatch.setattr(pool, "BLOCK", 20)
    first = pool.Pool(tiny, 3, tmp_path)
    assert first.features(7).shape == (7, 36, 96) and encoded == [20]
    everything = first.features(50)
    assert encoded == [20, 20, 10]  # the last block is a short one
    scenes = train.stage_one_scenes(50, seed=3)
    assert first.scenes(50) == scenes and first.scenes(7) == scenes[:7]
    assert everything.numpy() == pytest.approx(features(tiny, scenes).numpy(), abs=2e-3)  # float16
    again = pool.Pool(tiny, 3, tmp_path)
    assert np.array_equal(again.features(30), everything[:30]) and encoded == [20, 20, 10]
    assert not np.array_equal(pool.Pool(tiny, 4, tmp_path).features(7), everything[:7])
    with pytest.raises(ValueError, match="51 scenes were asked for, but the pool has 50"):
        first.scenes(51)


def test_a_block_that_was_not_finished_is_made_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "POOL", 40)
    monkeypatch.setattr(pool, "BLOCK", 20)
    whole = pool.Pool(tiny, 3, tmp_path).features(40).clone()
    (folder,) = tmp_path.iterdir()
    (folder / "block-1").unlink()
    half = np.load(folder / "features.npy", mmap_mode="r+")
    half[20:] = 0
    half.flush()
    assert np.array_equal(pool.Pool(tiny, 3, tmp_path).features(40), whole)


def test_a_smaller_run_reads_a_prefix_of_a_larger_one(tiny, tokenizer, monkeypatch):
    read = {}

    def noted(scenes, *arguments, **options):
        read[pairs].update(scenes)
        return rows(scenes, *arguments, **options)

    rows = train.caption_rows
    monkeypatch.setattr(train, "caption_rows", noted)
    for pairs in (16, 32):
        read[pairs] = set()
        recipe = StageOne(pairs=pairs, batch=8)
        scenes = train.stage_one_scenes(40)
        train.stage_one(copy.deepcopy(tiny), tokenizer, recipe, seed=3, scenes=scenes, progress=False)
    assert read[16] == set(scenes[:16]) and read[32] == set(scenes[:32])
