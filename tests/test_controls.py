"""Controls by intervention, each beside the same done by hand."""

from __future__ import annotations

import copy
import json
import math
import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import Case
from tiny_processors import lvlm
from torch import nn

import mirlib
from mirlab.model import connectors
from mirlib import MirlibError, MIRResult, capture, interventions, layer_pairs
from mirlib.adapters import decoder_parts
from mirlib.cli import describe_controls, main
from mirlib.data import sample_images, sample_texts
from mirlib.interventions import (
    CONTROLS,
    Controls,
    NotAvailableError,
    _entering,
    _fresh,
    _fresh_weights,
    _keys,
    _random_directions,
    _warnings,
    _watching,
    check_names,
)
from mirlib.loading import load_miniature
from mirlib.prompts import encode_batch
from mirlib.result import Interval

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = {"num": 16, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


@pytest.fixture(scope="module")
def data():
    return sample_images(16), sample_texts(16)


@pytest.fixture(scope="module")
def found(miniature, data):
    return mirlib.controls(*miniature, *data, **PAIRS, confidence=0.95)


def by_hand(model, processor, images, texts, **changes):
    return mirlib.score(model, processor, images, texts, **PAIRS | changes, confidence=None).value


def test_all_are_measured_on_one_draw_of_texts(found):
    assert list(found.results) == ["real", *CONTROLS] and not found.unavailable and not found.warnings
    assert {result.rows["text"] for result in found.results.values()} == {found.real.rows["text"]}
    assert all(result.settings["input"] == name for name, result in found.results.items())


def test_the_numbers_of_the_miniature(miniature):
    """With 60 pairs; the range of a fresh projector is that of several seeds."""
    found = mirlib.controls(
        *miniature, sample_images(60), sample_texts(60), num=60, batch_size=16, progress=False, confidence=None
    )
    values = {name: result.value for name, result in found.results.items()}
    expected = {"real": 1.12, "black": 1.11, "noise": 1.14, "shuffled": 1.12, "zero": 1.51, "gaussian": 0.68}
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=0.01)
    assert 0.77 < values["fresh"] < 0.85 and 0.90 < values["fresh_rescaled"] < 0.98


def test_other_pictures_by_hand(miniature, data, found):
    images, texts = data
    black = [Image.new("RGB", image.size) for image in images]
    assert found.results["black"].value == pytest.approx(by_hand(*miniature, black, texts), abs=1e-12)
    assert found.real.value == pytest.approx(by_hand(*miniature, images, texts), abs=1e-12)
    noise = [
        np.random.default_rng([0, i]).integers(0, 256, (*image.size[::-1], 3), np.uint8)
        for i, image in enumerate(images)
    ]
    assert found.results["noise"].value == pytest.approx(by_hand(*miniature, noise, texts), abs=1e-12)


def test_shuffled_pictures_are_the_same_pictures_and_none_stays(miniature, data, found, monkeypatch):
    from mirlib import interventions

    drawn = []
    score_pairs = interventions.score_pairs
    monkeypatch.setattr(interventions, "score_pairs", lambda m, b, **k: drawn.append(b) or score_pairs(m, b, **k))
    again = mirlib.controls(*miniature, *data, **PAIRS, only="shuffled", confidence=None)
    real, shuffled = drawn
    assert sorted(image for image, _ in real.chosen) == sorted(image for image, _ in shuffled.chosen)
    assert [text for _, text in real.chosen] == [text for _, text in shuffled.chosen]
    assert all(mine[0] != its[0] for mine, its in zip(real.chosen, shuffled.chosen, strict=True))
    images, texts = data
    pairs = [(images[i], texts[j]) for i, j in shuffled.chosen]
    value = by_hand(*miniature, *zip(*pairs, strict=True), paired=True)
    assert again.results["shuffled"].value == pytest.approx(found.results["shuffled"].value, abs=1e-12)
    assert again.results["shuffled"].value == pytest.approx(value, abs=1e-6)


def test_rows_of_zero_are_those_of_a_projector_whose_last_layer_is_zero(miniature, data, found):
    model = copy.deepcopy(miniature[0])
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
        model.model.multi_modal_projector.linear_2.bias.zero_()
    value = by_hand(model, miniature[1], *data)
    assert found.results["zero"].value == pytest.approx(value, abs=1e-12)
    assert value > found.real.value + 0.3


def test_fresh_weights_are_those_of_the_config(miniature, data, found):
    """Normal numbers of the width that the config names, and biases of zero, drawn from the seed."""
    model, processor = copy.deepcopy(miniature[0]), miniature[1]
    projector, width = model.model.multi_modal_projector, model.config.get_text_config().initializer_range
    before = mean_length(model, processor, *data)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for layer in (projector.linear_1, projector.linear_2):
            layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0, width))
            layer.bias.zero_()
    assert found.results["fresh"].value == pytest.approx(by_hand(model, processor, *data), abs=1e-12)
    after = mean_length(model, processor, *data)
    assert found.settings["mean_length"] == pytest.approx({"real": before, "fresh": after}, rel=1e-5)
    with torch.no_grad():
        projector.linear_2.weight.mul_(before / after)
    value = by_hand(model, processor, *data)
    assert found.results["fresh_rescaled"].value == pytest.approx(value, abs=1e-5)


def mean_length(model, processor, images, texts):
    """Of what the projector puts out for all pictures."""
    pixels = encode_batch(processor, images, texts)["pixel_values"]
    with torch.no_grad():
        rows = model.get_image_features(pixels).pooler_output
    return float(torch.cat(list(rows)).norm(dim=-1).mean())


def test_random_rows_by_hand_on_the_embeddings(miniature, data):
    """The decoder alone, on embeddings with rows of random directions put in, gives the hidden states of the hook."""
    model, processor = miniature
    images, texts = data
    batch = encode_batch(processor, images[:4], texts[:4])
    mask = batch.pop("text_mask")
    parts = decoder_parts(model)
    entered = []

    def change(rows, samples):
        entered.append((rows, _random_directions(rows, samples, keys)))
        return entered[-1][1]

    with torch.no_grad(), _keys(model, 0) as keys, _entering(model, parts, change), capture(model) as stream:
        stream.text_mask = mask
        model(**batch)
    (trained, made), embed = entered[0], model.get_input_embeddings()
    torch.testing.assert_close(made.norm(dim=-1), trained.norm(dim=-1), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        embeddings = embed(batch["input_ids"])
        features = torch.cat(list(model.get_image_features(batch["pixel_values"]).pooler_output))
        torch.testing.assert_close(trained, features)
        embeddings[batch["input_ids"] == model.config.image_token_id] = made
        states = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states[1:]
    for layer, (vision, text) in enumerate(zip(stream.vision, stream.text, strict=True)):
        torch.testing.assert_close(vision, states[layer][stream.positions["vision"]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text, states[layer][stream.positions["text"]], rtol=1e-4, atol=1e-4)


def test_random_directions_are_uniform_and_the_same_in_any_batch(miniature, data):
    rows = 3 * torch.ones(4000, 20)
    samples = torch.arange(4000) // 1000
    made = _random_directions(rows, samples, [1, 2, 3, 4])
    torch.testing.assert_close(made.norm(dim=-1), rows.norm(dim=-1))
    assert float(made.mean(0).abs().max()) < 0.3  # 5 standard errors of 3 / √4000
    covariance = torch.cov(made.T)
    torch.testing.assert_close(covariance, 9 * torch.eye(20), rtol=0, atol=1.0)
    torch.testing.assert_close(_random_directions(rows[1000:2000], samples[:1000], [2]), made[1000:2000])
    values = [
        mirlib.controls(*miniature, *data, **PAIRS | {"batch_size": size}, only="gaussian", confidence=None)
        for size in (3, 16)
    ]
    assert values[0].results["gaussian"].value == pytest.approx(values[1].results["gaussian"].value, abs=1e-5)


def state_of(model):
    """Everything that an intervention could leave behind."""
    hooks = [
        (name, len(each._forward_hooks), len(each._forward_pre_hooks), each.training, sorted(vars(each)))
        for name, each in model.named_modules()
    ]
    weights = {name: (value.data_ptr(), id(value), value.clone()) for name, value in model.named_parameters()}
    return hooks, weights, torch.get_rng_state(), random.getstate()


def assert_same(before, after):
    assert before[0] == after[0]
    for name, (place, identity, value) in before[1].items():
        assert after[1][name][:2] == (place, identity) and torch.equal(after[1][name][2], value), name
    assert torch.equal(before[2], after[2]) and before[3] == after[3]


class Interruption(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("at", [*CONTROLS, "never"])
def test_the_model_is_left_as_it_was(data, at, monkeypatch):
    from mirlib import interventions

    model, processor = load_miniature()
    model.train()
    model.model.multi_modal_projector.eval()
    score_pairs, inputs = interventions.score_pairs, []

    def interrupted(model, batches, **options):
        inputs.append(batches)
        if len(inputs) == 2:
            handle = model.get_decoder().layers[3].register_forward_hook(fail)
            try:
                return score_pairs(model, batches, **options)
            finally:
                handle.remove()
        return score_pairs(model, batches, **options)

    def fail(*_):
        raise Interruption

    options = {"num": 2, "batch_size": 1, "progress": False, "confidence": None}
    mirlib.score(model, processor, *data, **options)  # transformers leaves marks of its own in the first pass
    before = state_of(model)
    if at == "never":
        mirlib.controls(model, processor, *data, **options)
    else:
        monkeypatch.setattr(interventions, "score_pairs", interrupted)
        with pytest.raises(Interruption):
            mirlib.controls(model, processor, *data, **options, only=[at])
        assert len(inputs) == 2
    assert_same(before, state_of(model))


def test_fresh_weights_are_put_back_when_something_fails_among_them(miniature):
    model = miniature[0]
    before = state_of(model)
    with pytest.raises(Interruption), _fresh(model, decoder_parts(model), 0):
        weight = model.model.multi_modal_projector.linear_1.weight
        assert not torch.equal(weight, before[1]["model.multi_modal_projector.linear_1.weight"][2])
        raise Interruption
    assert_same(before, state_of(model))


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl", "idefics3"])
def test_families_run_all_controls(family):
    model, processor = lvlm(family)
    images = [Image.new("RGB", (24, 16), color) for color in ("red", "green", "blue", "white")]
    texts = ["a cat", "a red dog sat", "blue", "a mat on a cat"]
    options = {"num": 4, "batch_size": 2, "confidence": None, "progress": False}
    mirlib.score(model, processor, images, texts, **options)
    before = state_of(model)
    found = mirlib.controls(model, processor, images, texts, **options)
    assert list(found.results) == ["real", *CONTROLS] and not found.unavailable and not found.warnings
    assert_same(before, state_of(model))
    real, fresh = (found.settings["mean_length"][name] for name in ("real", "fresh"))
    assert real > 0 and fresh > 0 and found.settings["connector"].split(".")[-1] in (
        "multi_modal_projector", "merger", "connector",
    )  # fmt: skip
    assert len({round(result.value, 6) for result in found.results.values()}) == len(found.results)


def test_features_that_are_added_again_are_said():
    """Qwen3-VL adds features behind layer 1; LLaVA does not."""
    said = {}
    for model_type in ("qwen3_vl", "llava", "kosmos-2"):
        case = Case(model_type)
        case.find_tokens()
        with torch.no_grad(), _watching(case.model, decoder_parts(case.model)) as seen:
            case.model(**case.inputs())
            case.model(**case.inputs())
        said[model_type] = _warnings(seen, list(CONTROLS))
    assert len(said["qwen3_vl"]) == 1 and "once more before layer 2" in said["qwen3_vl"][0]
    assert "fresh projector" in said["qwen3_vl"][0] and said["llava"] == ()
    assert len(said["kosmos-2"]) == 1 and "positions" in said["kosmos-2"][0]


def test_a_projector_that_is_not_found_is_said(miniature, data, monkeypatch):
    assert decoder_parts(Case("chameleon").model).connector is None
    case = Case("chameleon")
    with pytest.raises(NotAvailableError, match="usual name of a projector"):
        _fresh_weights(case.model, decoder_parts(case.model), 0)
    monkeypatch.setattr("mirlib.adapters.CONNECTOR_NAMES", ())
    found = mirlib.controls(*miniature, *data, **PAIRS, only="zero,fresh_rescaled", confidence=None)
    assert list(found.results) == ["real", "zero"]
    assert list(found.unavailable) == ["fresh", "fresh_rescaled"]
    assert "left out: fresh: no module of this family" in describe_controls(found)


def test_a_fresh_projector_of_zero_has_no_length():
    """Gemma 3 begins with a projection of zeros."""
    case = Case("gemma3")
    weights = _fresh_weights(case.model, decoder_parts(case.model), 0)
    assert any(not values.any() for values in weights.values())


def test_weights_that_the_model_does_not_initialise_are_said(miniature):
    model = copy.deepcopy(miniature[0])
    connectors.replace(model, "qformer")
    with pytest.raises(NotAvailableError, match="leaves model.multi_modal_projector.queries as it is"):
        _fresh_weights(model, decoder_parts(model), 0)


def test_a_norm_behind_the_projector_stays(miniature):
    from mirlib.align import norms

    model = copy.deepcopy(miniature[0])
    norms.attach(model)
    parts = decoder_parts(model)
    weights = _fresh_weights(model, parts, 0)
    kept = norms.find(model)
    assert len(weights) == 4 and not any(own is mine for own in weights for mine in kept.parameters())


class Other(nn.Module):
    """A model that no one can initialise."""

    def __init__(self) -> None:
        super().__init__()
        self.connector = nn.Linear(2, 2)


def test_a_model_without_an_initialisation_of_its_own():
    from mirlib.adapters import DecoderParts

    model = Other()
    with pytest.raises(NotAvailableError, match="no _init_weights"):
        _fresh_weights(model, DecoderParts([], None, connector=model.connector), 0)


def test_one_pair_cannot_be_shuffled(miniature, data):
    found = mirlib.controls(*miniature, *data, num=1, batch_size=1, only="shuffled", confidence=None, progress=False)
    assert "one pair" in found.unavailable["shuffled"]


def test_a_picture_that_is_there_twice_counts_twice_when_it_is_shuffled(miniature, data):
    """Eight pictures, each in two pairs: each influence of the shuffled pairs counts once, where its picture stands."""
    images, texts = data
    twice = [images[i] for i in range(8)] * 2
    found = mirlib.controls(*miniature, twice, texts[:16], num=16, only="shuffled", progress=False)
    shuffled, real = found.results["shuffled"], found.real
    assert shuffled.interval.method == real.interval.method == "influence"
    by_picture = {}
    for sample, influence in zip(shuffled.samples, shuffled.vision_influence, strict=True):
        by_picture.setdefault(sample.picture, []).append(influence)
    vision = [by_picture[sample.picture].pop(0) for sample in real.samples]
    difference = np.array(vision) + shuffled.text_influence - real.sample_influence
    expected = math.sqrt(16 / 15 * (difference**2).sum())
    assert found.difference("shuffled").standard_error == pytest.approx(expected, rel=1e-9)
    assert not any(by_picture.values())


def test_changed_pictures_keep_their_names(miniature, data, tmp_path):
    images, texts = data
    images[1].save(tmp_path / "b.png")
    found = mirlib.controls(
        *miniature, [images[0], tmp_path / "b.png"], texts[:2], num=2, only="black", confidence=None, progress=False
    )
    names = [[sample.name for sample in result.samples] for result in found.results.values()]
    assert names[0] == names[1] and set(names[0]) == {"image 0", str(tmp_path / "b.png")}


def result_of(value, half):
    interval = None if half is None else Interval(value - half, value + half, 0.95, half / 2, "jackknife")
    numbers = np.array([10.0**value])
    return MIRResult(
        value, numbers, numbers, 0 * numbers, numbers, value, value, numbers, numbers,
        {"vision": np.array([0]), "text": np.array([0])}, {"vision": 1, "text": 1}, interval, {"outliers": "drop"},
    )  # fmt: skip


def test_differences_are_those_of_the_shared_samples(found):
    """The spread of the differences of the influences, sample by sample; of shuffled pictures, each with its own."""
    for name in ("gaussian", "fresh", "noise", "shuffled", "zero"):
        interval, control, real = found.difference(name), found.results[name], found.real
        moved = np.arange(16)
        if name == "shuffled":
            pictures = [sample.picture for sample in control.samples]
            moved = np.array([pictures.index(sample.picture) for sample in real.samples])
            assert (moved != np.arange(16)).all()
        theirs = (control.influence.vision[:, moved] + control.influence.text).sum(0) / control.per_layer.sum()
        ours = (real.influence.vision + real.influence.text).sum(0) / real.per_layer.sum()
        error = np.sqrt(16 / 15 * np.square(theirs - ours).sum()) / np.log(10)
        assert interval.standard_error == pytest.approx(error, rel=1e-9)
        assert interval.degrees == pytest.approx(15)
        assert (interval.low + interval.high) / 2 == pytest.approx(control.value - real.value)


@pytest.mark.parametrize(
    ("values", "reading"),
    [
        (
            {"zero": (1.5, 0.1), "gaussian": (0.5, 0.1)},
            "below the real pictures lie random rows of the same lengths: a",
        ),
        (
            {"zero": (1.5, 0.1), "black": (0.9, 0.1)},
            "no control lies below the real pictures; not told apart from them: black pictures",
        ),
        (
            {"noise": (1.3, 0.1), "zero": (1.5, 0.1)},
            "all controls with an interval lie above the real pictures: pictures of noise and vision rows of zero",
        ),
        (
            {"zero": (1.5, None), "gaussian": (0.5, 0.1)},
            "below the real pictures lie random rows of the same lengths: a",
        ),
        ({"zero": (1.5, None)}, None),
        ({}, None),
    ],
)
def test_the_sentence_follows_the_intervals(values, reading):
    results = {name: result_of(*value) for name, value in {"real": (1.0, 0.1), **values}.items()}
    found = Controls(results, {"fresh": "no"}, {"seed": 0}, ("so",))
    assert found.reading() == reading if reading is None else found.reading().startswith(reading)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["reading"] == found.reading() and repr(found).startswith("Controls(real 1.000")
    assert MIRResult.from_dict(again["results"]["real"]).value == 1.0
    frame = found.to_frame()
    assert len(frame) == len(results) and frame["mir"].iloc[0] == 1.0


def test_names():
    assert check_names("fresh_rescaled, black") == ["black", "fresh", "fresh_rescaled"]
    assert check_names(None) == list(CONTROLS)
    for wrong in ("white", [], "black,"):
        with pytest.raises(MirlibError, match="unknown control"):
            check_names(wrong)


def test_the_command_says_the_cost_and_keeps_the_controls(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["score", "-n", "8", "--batch-size", "8", "--controls", "black,gaussian", "--no-progress",
                 "--json", str(out)]) == 0  # fmt: skip
    printed = capsys.readouterr()
    assert "2 controls take" in printed.err and "more passes over 8 pairs" in printed.err
    assert "random rows of the same lengths" in printed.out and "a low MIR alone is no evidence" in printed.out
    stored = json.loads(out.read_text())
    assert MIRResult.from_dict(stored).value == MIRResult.from_dict(stored["controls"]["results"]["real"]).value


def test_a_pipe_gets_the_result_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        arguments = ["score", "-n", "4", "--no-progress", "--controls", "black", "--json", str(tmp_path / "pipe")]
        assert main(arguments) == 0
        assert "controls" in json.loads(read.result(timeout=60))


@pytest.mark.parametrize("long", [["--controls", "black"], ["--layer-map", "map.png"]])
def test_what_was_measured_first_is_kept_when_the_rest_is_ended(long, tmp_path, monkeypatch, capsys):
    """As by a signal, which no exception could follow."""
    monkeypatch.chdir(tmp_path)

    def ended(*_, **__):
        raise SystemExit("ended")

    monkeypatch.setattr(interventions, "_pictures_of", ended)
    monkeypatch.setattr(layer_pairs, "layer_map", ended)
    with pytest.raises(SystemExit, match="ended"):
        main(["score", "-n", "4", "--no-progress", "--json", "out.json", *long])
    stored = MIRResult.from_dict(json.loads((tmp_path / "out.json").read_text()))
    assert f"MIR is {stored.value:.4f}" in capsys.readouterr().err and stored.settings["model"] == "miniature"


def test_the_command_refuses_unknown_controls_before_a_model_is_loaded(capsys):
    assert main(["score", "nowhere", "--controls", "white"]) == 2
    assert "unknown control 'white'" in capsys.readouterr().err
    assert main(["score", "--measures", "rmg", "--controls"]) == 2
    assert "--controls is for MIR alone" in capsys.readouterr().err
