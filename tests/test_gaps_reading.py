"""Pairs read apart: how a picture leaks into the text behind it, what closes the leak, and random weights beside it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from real_processors import KITS, processor_of, token_settings, widen
from tiny_families import FAMILIES, Family, change, tiny_model, tiny_settings
from tiny_processors import lvlm

from mirlab import world
from mirlab.model import evaluation
from mirlib import MirlibError, capture, compare, gaps
from mirlib.data import sample_images, sample_texts
from mirlib.gaps import MEASURES
from mirlib.gaps.base import HIGHER, PAIRS, standard_error
from mirlib.gaps.model import score_measures
from mirlib.gaps.reading import PairReader, random_twin
from mirlib.loading import load_miniature
from mirlib.prompts import encode_batch

pytestmark = pytest.mark.usefixtures("one_thread")

OF_PAIRS = [name for name, measure in MEASURES.items() if measure.needs == PAIRS]
AFTER = "after the picture"


@pytest.fixture(scope="module")
def captioned():
    scenes = evaluation.held_out_scenes(60, seed=1000)
    return list(map(world.to_image, scenes)), list(map(world.caption, scenes))


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


def family(name):
    """The tiny model of a family and its processor."""
    kit, settings = KITS[name], tiny_settings(name, FAMILIES.get(name, Family()))
    processor = processor_of(name, kit, settings)
    widen(settings, len(processor.tokenizer))
    change(settings, dict(token_settings(settings, processor)))
    return tiny_model(name, settings), processor


# ---------------------------------------------------------------------------------------------------------------------
# The leak


def calibrated(model, processor, captioned, text):
    """By measure: the value, and where it lies between random pairs (0) and the best that there can be (1)."""
    found = score_measures(
        model, processor, *captioned, measures=OF_PAIRS, num=60, paired=True, text=text, random_weights=0,
        confidence=None, batch_size=20, max_text_tokens=40, max_rows=60, progress=False,
    )  # fmt: skip
    return {name: (result.value, result.calibration.value) for name, result in found.results.items()}


@pytest.mark.parametrize("name", ["miniature", "llava_onevision"])
def test_random_weights_score_high_behind_the_picture_and_as_random_pairs_do_alone(name, miniature, captioned):
    trained, processor = miniature if name == "miniature" else lvlm(name)
    model = random_twin(trained, seed=1)
    leaking = calibrated(model, processor, captioned, AFTER)
    assert leaking["cka"][0] > 0.7 and leaking["cka_debiased"][1] > 0.7
    assert leaking["svcca"][1] > 0.4 and leaking["mutual_knn"][1] > 0.25
    for measure, (value, above_chance) in calibrated(model, processor, captioned, "alone").items():
        assert abs(above_chance) < 0.2, measure
        assert measure == "svcca" or MEASURES[measure].direction != HIGHER or value < 0.5, measure


def test_a_trained_model_still_scores_alone_and_its_architecture_stands_beside_it(miniature, captioned):
    options = {"measures": "cka,cka_debiased,mutual_knn", "num": 60, "paired": True, "batch_size": 20}
    found = score_measures(*miniature, *captioned, random_weights=2, progress=False, **options)
    assert found.settings["pair_text"] == "alone" and found.settings["random_weights"] == [0, 1]
    assert found.settings["pair_vision"] == "before their own texts"
    for name in ("cka_debiased", "mutual_knn"):
        result = found.results[name]
        assert result.calibration.random_weights.shape == (2, 8)
        assert result.interval.low > result.calibration.random_value
        assert result.samples == found.samples and len(result.influence) == 60
    other = score_measures(
        *miniature, *captioned, random_weights=0, progress=False, text=AFTER, **options | {"measures": "cka_debiased"}
    )
    both = [values.results["cka_debiased"] for values in (other, found)]
    compared = compare(*both)
    assert compared.shared == {"pairs": 60}
    assert compared.difference.value == pytest.approx(both[0].value - both[1].value)
    error = standard_error(both[0].influence - both[1].influence)
    assert compared.difference.standard_error == pytest.approx(error) and error < compared.unpaired.standard_error
    assert "pair_text differs" in compared.incomparable[0]
    # The same of a model with random weights, read by hand.
    twin = PairReader(miniature[1], *captioned).read(random_twin(miniature[0], seed=1))
    expected = gaps.cka(*twin, permutations=0, confidence=None).per_layer
    assert found.results["cka"].calibration.random_weights[1] == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_a_text_alone_is_read_as_the_language_model_reads_it(miniature, captioned):
    model, processor = miniature
    texts = captioned[1][:5]
    found = PairReader(processor, captioned[0][:5], texts, batch_size=2).text_alone(model)
    for i, text in enumerate(texts):
        inputs = encode_batch(processor, None, [text])
        assert not (inputs["input_ids"] == model.config.image_token_id).any() and "pixel_values" not in inputs
        assert processor.tokenizer.decode(inputs["input_ids"][0][inputs["text_mask"][0]]).strip() == text.strip()
        states = model.model.language_model(inputs["input_ids"], output_hidden_states=True).hidden_states
        for k, layer in enumerate(found, start=1):
            expected = states[k][inputs["text_mask"]].mean(0)
            torch.testing.assert_close(layer[i], expected.detach(), rtol=1e-4, atol=1e-4)


def test_vision_rows_before_any_text_are_the_same_where_attention_is_causal(miniature, captioned):
    model, processor = miniature
    reader = PairReader(processor, *[side[:6] for side in captioned], text=AFTER, batch_size=4)
    assert not reader.vision_sees_text(model)
    together = reader.read(model)
    for layer, expected in zip(reader.vision(model), together.vision, strict=True):
        torch.testing.assert_close(layer, expected, rtol=1e-3, atol=1e-4)
    assert any(
        not torch.allclose(alone, after, rtol=1e-2)
        for alone, after in zip(reader.text_alone(model), together.text, strict=True)
    )


def test_vision_rows_that_see_the_text_are_read_before_one_text_for_all():
    model, processor = family("paligemma")
    pairs = sample_images(6), sample_texts(6)
    reader = PairReader(processor, *pairs, template="plain", max_text_tokens=8)
    assert reader.vision_sees_text(model)
    found = score_measures(
        model, processor, *pairs, measures="cka", num=6, paired=True, template="plain", max_text_tokens=8,
        random_weights=0, progress=False,
    )  # fmt: skip
    assert found.settings["pair_vision"] == "before one text, the same for all"
    expected = gaps.cka(reader.vision(model), reader.text_alone(model), permutations=0)
    assert found.results["cka"].per_layer == pytest.approx(expected.per_layer, rel=1e-4)
    other = PairReader(processor, pairs[0], pairs[1][::-1], template="plain", max_text_tokens=8)
    for layer, same in zip(reader.vision(model), other.vision(model), strict=True):
        assert torch.equal(layer, same)


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_vl", "idefics3"])
def test_families_read_texts_alone(name):
    model, processor = lvlm(name)
    pairs = sample_images(5), sample_texts(5)
    means = PairReader(processor, *pairs, max_text_tokens=12, batch_size=2).read(model)
    assert [len(side) for side in means] == [3, 3] and means.text[0].shape == means.vision[0].shape == (5, 32)
    with capture(model) as stream, torch.no_grad():
        model(**{k: v for k, v in encode_batch(processor, None, pairs[1][:1]).items() if k != "text_mask"})
    assert not stream.positions["vision"].any()


def test_a_model_that_reads_no_text_alone_is_refused_or_measured_without_pairs():
    model, processor = family("blip-2")
    pairs = sample_images(5), sample_texts(5)
    options = {"num": 5, "paired": True, "max_text_tokens": 8, "progress": False}
    with pytest.raises(MirlibError, match=r"Blip2\w+ reads no text without a picture .* text='after the picture'"):
        score_measures(model, processor, *pairs, measures="cka", **options)
    found = score_measures(model, processor, *pairs, measures="all", **options)
    assert "cka" not in found.results and "ima" in found.results
    assert found.skipped["cka"].startswith("cannot be had: Blip2")
    options |= {"measures": "cka", "text": AFTER}
    assert score_measures(model, processor, *pairs, **options).results["cka"].value > 0


def test_pairs_that_make_no_sense_are_refused(miniature):
    _, processor = miniature
    with pytest.raises(MirlibError, match="unknown text 'before'; choose 'alone' or 'after the picture'"):
        PairReader(processor, sample_images(2), sample_texts(2), text="before")
    with pytest.raises(MirlibError, match="as many images as texts and at least one, got 2 and 3"):
        PairReader(processor, sample_images(2), sample_texts(3))


# ---------------------------------------------------------------------------------------------------------------------
# Random weights


def test_random_weights_are_those_that_the_class_starts_from_and_the_seed_decides(miniature):
    model = miniature[0]
    state = torch.get_rng_state()
    twin, again, other = (random_twin(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    expected = type(model)(copy.deepcopy(model.config))
    for name, weight in expected.state_dict().items():
        assert torch.equal(twin.state_dict()[name], weight) and torch.equal(again.state_dict()[name], weight), name
    assert not torch.equal(other.get_input_embeddings().weight, twin.get_input_embeddings().weight)
    assert not torch.equal(model.get_input_embeddings().weight, twin.get_input_embeddings().weight)
    assert not twin.training and twin.dtype == model.dtype
    assert random_twin(copy.deepcopy(model).bfloat16()).dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_random_weights_are_left_out_where_there_is_no_room_for_them(miniature, captioned, monkeypatch):
    monkeypatch.setattr("mirlib.gaps.reading._free_memory", lambda device: 2**20)
    with pytest.raises(
        MirlibError, match=r"another LlavaForConditionalGeneration takes 0\.0 GiB, and 0\.0 GiB are free"
    ):
        random_twin(miniature[0])
    pairs = [side[:8] for side in captioned]
    found = score_measures(*miniature, *pairs, measures="cka", num=8, paired=True, progress=False)
    assert found.settings["random_weights"].startswith("left out: another Llava")
    assert found.results["cka"].calibration.random_weights is None
    assert np.isnan(found.results["cka"].calibration.random_value)


def test_weights_in_few_bits_have_no_random_twin(miniature):
    model = copy.deepcopy(miniature[0])
    model.config.quantization_config = {"bits": 4}
    with pytest.raises(MirlibError, match="stored in few bits"):
        random_twin(model)
