"""Measures that ask the model itself, or a labelled task: each against a closed form or a second implementation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from tiny_processors import lvlm
from torch.nn import functional as F

from mirlib import MirlibError, gaps
from mirlib.adapters import decoder_parts
from mirlib.align.weighting import vision_hidden
from mirlib.batches import pair_batches
from mirlib.data import sample_images, sample_texts
from mirlib.gaps import connector, hiding, paired
from mirlib.gaps.base import mean_interval, of_samples
from mirlib.prompts import encode_batch

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"max_text_tokens": 9}


@pytest.fixture(scope="module")
def tiny():
    return lvlm("llava")


@pytest.fixture(scope="module")
def pairs():
    return list(sample_images(5)), sample_texts(5)


# ---------------------------------------------------------------------------------------------------------------------
# Means over samples


def test_the_interval_is_that_of_students_t_test():
    values, null = np.random.default_rng(0).normal(size=(2, 12)) + [[1], [0]]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean_interval(values)[:2] == pytest.approx(tuple(expected), rel=1e-12)
    found = of_samples("picture_gain", values, {"pairs": 12}, layers=[values, 2 * values], null=null)
    assert found.value == values.mean() and found.per_layer == pytest.approx([values.mean(), 2 * values.mean()])
    assert found.interval[:2] == pytest.approx(tuple(expected)) and found.interval.degrees == 11
    left = [np.delete(values, i).mean() for i in range(12)]
    assert found.influence == pytest.approx(11 / 12 * (values.mean() - left), abs=1e-12)
    assert found.settings["standard_error"] == pytest.approx([stats.sem(values), 2 * stats.sem(values)])
    paired = stats.ttest_rel(values, null).confidence_interval()
    assert found.settings["above_null_interval"] == pytest.approx(list(paired))
    assert found.settings["null"] == null.mean()


def test_a_single_sample_and_a_number_that_is_none_are_refused():
    with pytest.raises(MirlibError, match="at least 2 of them, got 1"):
        of_samples("picture_gain", [1.0], {})
    with pytest.raises(MirlibError, match="sample 1 gives a number that is not finite"):
        of_samples("picture_gain", [1.0, np.nan], {})


# ---------------------------------------------------------------------------------------------------------------------
# Hiding the picture


@torch.no_grad()
def alone(model, processor, image, text, *, hidden):
    """Sample by sample, without padding: log-probability of each word, and the word said in its place."""
    batch = encode_batch(processor, [image], [text], **OPTIONS)
    words = batch.pop("text_mask")[0].nonzero()[:, 0]
    ids = batch["input_ids"]
    batch["attention_mask"] = (ids != model.config.image_token_id).long() if hidden else torch.ones_like(ids)
    logits = model(**batch).logits[0]
    losses = [-F.cross_entropy(logits[place - 1], ids[0, place]).item() for place in words]
    return np.array(losses), np.array([logits[place - 1].argmax().item() for place in words])


def test_the_gain_is_that_of_a_loop_over_samples_and_words(tiny, pairs):
    model, processor = tiny
    images, texts = pairs
    own = [alone(model, processor, i, t, hidden=False)[0].mean() for i, t in zip(images, texts, strict=True)]
    hid = [alone(model, processor, i, t, hidden=True)[0].mean() for i, t in zip(images, texts, strict=True)]
    next_ones = images[1:] + images[:1]
    other = [alone(model, processor, i, t, hidden=False)[0].mean() for i, t in zip(next_ones, texts, strict=True)]
    found = gaps.picture_gain(model, processor, images, texts, batch_size=2, **OPTIONS)
    assert found.value == pytest.approx(np.mean(own) - np.mean(hid), abs=1e-5)
    assert found.settings["null"] == pytest.approx(np.mean(other) - np.mean(hid), abs=1e-5)
    assert found.settings["above_null_interval"] == pytest.approx(
        list(stats.ttest_rel(own, other).confidence_interval()), abs=1e-5
    )
    assert found.rows == {"pairs": 5} and found.needs == "model"
    assert found.interval.standard_error == pytest.approx(stats.sem(np.subtract(own, hid)), abs=1e-5)
    batches = pair_batches(model, processor, images, texts, num=5, paired=True)
    ids = {sample_id for batch in batches for sample_id in batch["sample_ids"]}
    assert {(sample.picture, sample.text) for sample in found.samples} == ids


def test_pictures_that_reach_no_word_gain_nothing_and_are_left_at_once(tiny, pairs):
    model, processor = lvlm("llava")
    with torch.no_grad():
        for layer in model.get_decoder().layers:  # nothing comes out of attention, so no row hears of another
            layer.self_attn.o_proj.weight.zero_()
    found = gaps.picture_gain(model, processor, *pairs, **OPTIONS)
    assert found.value == pytest.approx(0, abs=1e-6) and found.settings["null"] == pytest.approx(0, abs=1e-6)
    depth = gaps.exit_depth(model, processor, *pairs, **OPTIONS)
    assert depth.value == 0 and depth.interval[:2] == (0, 0)
    json.dumps(depth.to_dict(), allow_nan=False)
    assert depth.per_layer.tolist() == [1, 1, 1] and depth.settings["null"] == depth.settings["never_seen"] == 1


@torch.no_grad()
def by_hand(model, processor, image, text, depth):
    """The decoder's layers one by one, each with a mask of its own; what is said in each word's place."""
    batch = encode_batch(processor, [image], [text], **OPTIONS)
    words = batch.pop("text_mask")[0].nonzero()[:, 0]
    ids = batch["input_ids"]
    kept = []
    decoder = model.get_decoder()
    handle = decoder.layers[0].register_forward_pre_hook(lambda m, a, k: kept.append((a, k)), with_kwargs=True)
    model(**batch, use_cache=False)
    handle.remove()
    (hidden,), options = kept[0]
    vision = ids[0] == model.config.image_token_id
    length = ids.shape[1]
    for number, layer in enumerate(decoder.layers):
        mask = torch.zeros(length, length)
        for i in range(length):
            for j in range(length):
                blind = number >= depth and vision[j] and not vision[i]
                if j > i or blind:
                    mask[i, j] = -1e30
        hidden = layer(hidden, **{**options, "attention_mask": mask[None, None]})
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return model.lm_head(decoder.norm(hidden))[0, words - 1]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hiding_behind_a_layer_is_that_of_layers_run_one_by_one(implementation, pairs):
    model, processor = lvlm("llava")
    model.set_attn_implementation(implementation)
    images, texts = pairs
    logits = [[by_hand(model, processor, i, t, k) for i, t in zip(images, texts, strict=True)] for k in range(4)]
    assert not any(torch.allclose(logits[k][0], logits[3][0], rtol=1e-3, atol=1e-3) for k in range(3))
    said = [[each.argmax(-1) for each in samples] for samples in logits]
    expected = [
        np.mean([(a == b).float().mean().item() for a, b in zip(said[k], said[3], strict=True)]) for k in range(4)
    ]
    found = gaps.exit_depth(model, processor, images, texts, batch_size=3, **OPTIONS)
    assert found.settings["never_seen"] == pytest.approx(expected[0], abs=1e-6)
    assert found.per_layer == pytest.approx(expected[1:], abs=1e-6)
    assert found.value == next(k for k in range(4) if min(expected[k:]) >= 0.95)
    batch = encode_batch(processor, images[:1], texts[:1], **OPTIONS)
    words = batch.pop("text_mask")[0].nonzero()[:, 0]
    with torch.no_grad():
        for depth in range(4):
            with hiding.vision_hidden_behind(model, depth):
                there = model(**batch).logits[0, words - 1]
            torch.testing.assert_close(there, logits[depth][0], rtol=1e-4, atol=1e-5)
        with vision_hidden(model):
            torch.testing.assert_close(model(**batch).logits[0, words - 1], logits[0][0], rtol=1e-4, atol=1e-5)
    assert not any(layer._forward_pre_hooks for layer in model.get_decoder().layers)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "idefics3"])
def test_other_families_are_asked_alike(family, pairs):
    model, processor = lvlm(family)
    found = gaps.exit_depth(model, processor, *pairs, **OPTIONS)
    assert found.per_layer[-1] == 1 and 0 <= found.value <= 3
    batch = encode_batch(processor, pairs[0][:1], pairs[1][:1], **OPTIONS)
    words = batch.pop("text_mask")[0].nonzero()[:, 0]
    with torch.no_grad(), hiding.vision_hidden_behind(model, 0):
        there = model(**batch).logits[0, words - 1]
    with torch.no_grad(), vision_hidden(model):
        torch.testing.assert_close(model(**batch).logits[0, words - 1], there, rtol=1e-4, atol=1e-5)


def test_the_depth_is_where_the_agreement_stays_and_its_interval_where_the_ends_of_students_do():
    rng = np.random.default_rng(4)
    agreement = np.vstack([rng.uniform(low, 1, 30) for low in (0.2, 0.93, 0.5, 0.9, 0.92, 0.99)] + [np.ones(30)])
    assert agreement[1].mean() > 0.95 > agreement[2].mean()  # it falls below once more
    limits = [stats.ttest_1samp(row, 0).confidence_interval() for row in agreement[:-1]]
    depth, interval = hiding.depth_of(agreement)
    for found, curve in zip(
        (depth, *interval), (agreement.mean(1)[:-1], *zip(*((end.high, end.low) for end in limits), strict=True)),
        strict=True,
    ):  # fmt: skip
        assert all(share >= 0.95 for share in curve[found:]) and (found == 0 or curve[found - 1] < 0.95)
    assert interval[0] <= depth <= interval[1]


# ---------------------------------------------------------------------------------------------------------------------
# The sphere


def test_uniformity_against_its_definition_and_closed_forms():
    rows = np.random.default_rng(1).normal(size=(20, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(20) for j in range(20) if i != j]
    assert gaps.uniformity(rows) == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)
    assert gaps.uniformity(np.eye(7)) == pytest.approx(-4, abs=1e-12)
    assert gaps.uniformity(3 * np.ones((4, 2))) == pytest.approx(0, abs=1e-12)
    assert gaps.uniformity([[1.0, 0.0], [-2.0, 0.0]]) == pytest.approx(-8, abs=1e-12)


def test_the_even_spread_against_integration_and_a_draw():
    assert paired.even_spread(3) == pytest.approx(-4 + math.log(math.sinh(4) / 4), rel=1e-12)  # E exp(κ cos θ)
    for dim in (2, 8):
        weight = lambda a, dim=dim: math.sin(a) ** (dim - 2)  # noqa: E731
        above = integrate.quad(lambda a: math.exp(-2 * (2 - 2 * math.cos(a))) * weight(a), 0, math.pi)[0]  # noqa: B023
        below = integrate.quad(weight, 0, math.pi)[0]
        assert paired.even_spread(dim) == pytest.approx(math.log(above / below), rel=1e-8)
    drawn = np.random.default_rng(2).normal(size=(1500, 8))
    assert gaps.uniformity(drawn) == pytest.approx(paired.even_spread(8), abs=0.01)


def test_alignment_against_a_loop_rmg_and_closed_forms():
    rng = np.random.default_rng(3)
    vision, text = rng.normal(size=(2, 2, 30, 4))
    samples = np.arange(30) % 10, np.arange(30) % 10
    found = gaps.alignment(vision, text, samples=samples, permutations=50)
    for k in range(2):
        means = [[side[k][samples[0] == i].mean(0) for i in range(10)] for side in (vision, text)]
        units = [np.array([row / np.linalg.norm(row) for row in side]) for side in means]
        assert found.per_layer[k] == pytest.approx(((units[0] - units[1]) ** 2).sum(1).mean(), rel=1e-12)
        for side, name in zip(means, ("vision_uniformity", "text_uniformity"), strict=True):
            assert found.settings[name][k] == pytest.approx(gaps.uniformity(np.array(side)), rel=1e-12)
    assert found.calibration.null_mean == pytest.approx(
        [np.mean((units[0][:, None] - units[1][None]) ** 2 * 4)] * 2, rel=0.1
    )
    east, north = np.array([[[1.0, 0.0], [5.0, 0.0]]]), np.array([[[0.0, 2.0], [0.0, 3.0]]])
    assert gaps.alignment(east, north, permutations=0).value == pytest.approx(2)
    assert gaps.alignment(east, -east, permutations=0).value == pytest.approx(4)
    assert gaps.alignment(east, 3 * east, permutations=0).value == pytest.approx(0, abs=1e-12)


def test_uniformity_of_one_row_is_refused():
    with pytest.raises(MirlibError, match=r"at least 2 rows \(N, d\), got \(1, 3\)"):
        gaps.uniformity(np.ones((1, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# What the connector keeps


def test_the_neighbours_are_those_of_scikit_learn_and_rotations_keep_all():
    rng = np.random.default_rng(5)
    features, layers = rng.normal(size=(40, 6)), rng.normal(size=(2, 40, 9))
    layers[0, :, :6] += features
    found = connector.shared_neighbours(torch.tensor(features), torch.tensor(layers), 7)

    def of(rows):
        model = NearestNeighbors(n_neighbors=8, metric="cosine").fit(rows)
        return [set(near) - {i} for i, near in enumerate(model.kneighbors(rows, return_distance=False))]

    before = of(features)
    for value, layer in zip(found.per_layer, layers, strict=True):
        expected = [len(a & b) / 7 for a, b in zip(before, of(layer), strict=True)]
        assert value == pytest.approx(np.mean(expected))
    turned = torch.tensor(features @ stats.ortho_group.rvs(6, random_state=0) * 3)
    assert connector.shared_neighbours(torch.tensor(features), [turned], 7).value == 1
    strangers = torch.tensor(rng.normal(size=(400, 6)))
    chance = connector.shared_neighbours(strangers, [strangers[rng.permutation(400)]], 7, confidence=None).value
    assert chance == pytest.approx(7 / 399, abs=0.01)


def test_held_out_errors_are_those_of_scikit_learns_ridge():
    rng = np.random.default_rng(6)
    owners = np.repeat(np.arange(12), 5)
    x = rng.normal(size=(60, 7)) + 2
    y = x @ rng.normal(size=(7, 3)) + rng.normal(size=(60, 3))
    found = connector.ridge_errors(*map(torch.tensor, (x, y, owners)), folds=4, ridge=0.2, seed=1)
    fold_of = np.arange(12)[torch.randperm(12, generator=torch.Generator().manual_seed(1)).numpy()] % 4
    assert np.bincount(fold_of).tolist() == [3] * 4
    errors, spread = np.zeros((2, 12))
    for fold in range(4):
        out = np.isin(owners, np.flatnonzero(fold_of == fold))
        alpha = 0.2 * x[~out].var(0).mean() * (~out).sum()
        guess = Ridge(alpha=alpha).fit(x[~out], y[~out]).predict(x[out])
        for i in np.unique(owners[out]):
            rows = owners[out] == i
            errors[i] = ((y[out] - guess)[rows] ** 2).sum()
            spread[i] = ((y[out] - y[~out].mean(0))[rows] ** 2).sum()
    assert found[0] == pytest.approx(errors, rel=1e-9) and found[1] == pytest.approx(spread, rel=1e-9)
    shares = connector._shares(errors, spread)
    assert shares.mean() == pytest.approx(1 - errors.sum() / spread.sum(), rel=1e-12)
    left = [1 - np.delete(errors, i).sum() / np.delete(spread, i).sum() for i in range(12)]
    jackknife = np.std(left) * 11**0.5
    assert mean_interval(shares).standard_error == pytest.approx(jackknife, rel=0.1)
    exact = connector.ridge_errors(torch.tensor(x), torch.tensor(x @ np.ones((7, 2))), torch.tensor(owners), ridge=0)
    assert exact[0].max() < 1e-18


@torch.no_grad()
def test_features_and_rows_are_those_of_the_model_itself(tiny, pairs):
    model, processor = tiny
    images, texts = pairs
    rows = connector.connector_rows(model, processor, images, texts, max_rows=15, **OPTIONS)
    features, owners, layers = rows.patches
    assert owners.bincount().tolist() == [3] * 5 and len(layers) == len(rows.layers) == 4
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        batch = encode_batch(processor, [image], [text], **OPTIONS)
        batch.pop("text_mask")
        states = model(**batch, output_hidden_states=True).hidden_states
        seen = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
        torch.testing.assert_close(rows.features[i].float(), seen.mean(0), rtol=1e-4, atol=1e-5)
        place = [(seen - feature).abs().sum(1).argmin().item() for feature in features[owners == i].float()]
        assert len(set(place)) == 3
        vision = batch["input_ids"][0] == model.config.image_token_id
        for k in range(4):
            torch.testing.assert_close(rows.layers[k][i].float(), states[k][0, vision].mean(0), rtol=1e-4, atol=1e-5)
            there = layers[k][owners == i].float()
            torch.testing.assert_close(there, states[k][0, vision][place], rtol=1e-4, atol=1e-5)
    connectors = [model.model.multi_modal_projector, *model.get_decoder().layers]
    assert not any(module._forward_pre_hooks for module in connectors)


def test_neighbours_and_probe_of_a_model_are_those_of_its_rows(tiny, pairs):
    model, processor = tiny
    images, texts = pairs
    rows = connector.connector_rows(model, processor, images, texts, **OPTIONS)
    kept = gaps.neighbours_kept(model, processor, images, texts, neighbours=2, **OPTIONS)
    expected = connector.shared_neighbours(rows.features, rows.layers, 2).per_layer
    assert kept.value == expected[0] and kept.per_layer.tolist() == expected[1:].tolist()
    assert kept.settings["null"] == 0.5 and kept.settings["patches"]["null"] == 2 / 19
    by_patch = connector.shared_neighbours(rows.patches[0], rows.patches[2], 2).per_layer.tolist()
    assert [kept.settings["patches"]["entering"], *kept.settings["patches"]["per_layer"]] == pytest.approx(by_patch)
    others = [torch.arange(5) != i for i in range(5)]
    left = [connector.shared_neighbours(rows.features[o], [rows.layers[0][o]], 2).value for o in others]
    assert kept.interval.standard_error == pytest.approx(4**0.5 * np.std(left))
    probe = gaps.feature_probe(model, processor, images, texts, folds=5, ridge=0.1, **OPTIONS)
    features, owners, layers = rows.patches
    sums = [np.sum(connector.ridge_errors(layer, features, owners, ridge=0.1), axis=1) for layer in layers]
    assert probe.per_layer == pytest.approx([1 - a / b for a, b in sums[1:]])
    assert probe.settings["entering"] == pytest.approx(1 - sums[0][0] / sums[0][1])
    assert probe.rows == {"pictures": 5, "rows": 20}


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "idefics3"])
def test_connectors_that_join_features_are_measured_by_picture(family, pairs):
    found = gaps.neighbours_kept(*lvlm(family), *pairs, neighbours=2, **OPTIONS)
    assert found.per_layer.shape == (3,) and found.settings["patches"] is None
    assert gaps.feature_probe(*lvlm(family), *pairs, **OPTIONS).rows == {"pictures": 5, "rows": 5}


def test_what_the_connector_cannot_be_asked_is_refused(tiny, pairs, monkeypatch):
    with pytest.raises(MirlibError, match="5 pairs; it needs at least 11"):
        gaps.neighbours_kept(*tiny, *pairs, **OPTIONS)
    with pytest.raises(MirlibError, match="expected 2 to 5 folds"):
        gaps.feature_probe(*tiny, *pairs, folds=6, **OPTIONS)
    parts = decoder_parts(tiny[0])
    for module, said in ((None, "no connector found"), (torch.nn.Linear(2, 2), "Linear, the connector, is not called")):
        with monkeypatch.context() as patched, pytest.raises(MirlibError, match=said):
            patched.setattr(connector, "decoder_parts", lambda model, module=module: replace(parts, connector=module))
            gaps.feature_probe(*tiny, *pairs, **OPTIONS)


# ---------------------------------------------------------------------------------------------------------------------
# Units of the MLPs


@torch.no_grad()
def test_the_overlap_is_that_of_sets_of_units_sample_by_sample(tiny, pairs):
    model, processor = tiny
    images, texts = pairs
    tops = {"vision": [], "text": []}
    for image, text in zip(images, texts, strict=True):
        batch = encode_batch(processor, [image], [text], **OPTIONS)
        words = batch.pop("text_mask")[0]
        kept = []
        handles = [
            layer.mlp.register_forward_pre_hook(lambda module, args, kept=kept: kept.append((module, args[0][0])))
            for layer in model.get_decoder().layers
        ]
        model(**batch)
        for handle in handles:
            handle.remove()
        for modality, mask in (("vision", batch["input_ids"][0] == model.config.image_token_id), ("text", words)):
            excited = [
                (F.silu(mlp.gate_proj(rows)) * mlp.up_proj(rows))[mask].square().mean(0).sqrt().numpy()
                for mlp, rows in kept
            ]
            tops[modality].append([set(np.argsort(-each)[:12]) for each in excited])
    vision, text = tops["vision"], tops["text"]
    found = gaps.unit_overlap(model, processor, images, texts, share=0.25, batch_size=2, **OPTIONS)
    assert found.settings["units"] == 48 and found.settings["null"] == 0.25
    for k in range(3):
        assert found.per_layer[k] == pytest.approx(
            np.mean([len(v[k] & t[k]) / 12 for v, t in zip(vision, text, strict=True)])
        )
        two = [len(text[i][k] & text[(i + 1) % 5][k]) / 12 for i in range(5)]
        assert found.settings["two_texts"][k] == pytest.approx(np.mean(two))
        two = [len(vision[i][k] & vision[(i + 1) % 5][k]) / 12 for i in range(5)]
        assert found.settings["two_pictures"][k] == pytest.approx(np.mean(two))
    by_sample = np.mean([[len(v[k] & t[k]) / 12 for k in range(3)] for v, t in zip(vision, text, strict=True)], axis=1)
    assert found.interval[:2] == pytest.approx(tuple(stats.ttest_1samp(by_sample, 0).confidence_interval()))


def test_independent_choices_share_as_many_units_as_there_are_and_equal_ones_all():
    first, second = torch.rand(2, 4000, 50, generator=torch.Generator().manual_seed(0))
    assert gaps.units.shared_units(first, second, 0.2).mean().item() == pytest.approx(0.2, abs=0.01)
    assert gaps.units.shared_units(first, 3 * first).min() == 1
    with pytest.raises(MirlibError, match="share 1 of 50 units are 50"):
        gaps.units.shared_units(first, second, 1.0)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "idefics3"])
def test_units_of_other_families_are_found(family, pairs):
    assert gaps.unit_overlap(*lvlm(family), *pairs, **OPTIONS).per_layer.shape == (3,)


def test_a_layer_without_an_mlp_is_refused():
    with pytest.raises(MirlibError, match="Linear: which module maps the units of its MLP back"):
        gaps.units.last_map(torch.nn.Linear(2, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def test_the_preference_for_text_is_a_mean_of_logistic_functions():
    picture, text = np.array([0.0, 2.0, -1.0, 0.5]), np.array([1.0, -1.0, -1.0, 3.0])
    chosen = [math.exp(t) / (math.exp(t) + math.exp(p)) for p, t in zip(picture, text, strict=True)]
    found = gaps.text_preference(picture, text)
    assert found.value == pytest.approx(np.mean(chosen)) and found.settings["null"] == 0.5
    assert found.interval[:2] == pytest.approx(tuple(stats.ttest_1samp(chosen, 0).confidence_interval()))
    assert gaps.text_preference(text, picture).value == pytest.approx(1 - found.value)
    alone = gaps.text_preference(picture, text, without=(picture, picture - 1)).settings
    assert alone["null"] == pytest.approx(1 / (1 + math.e))
    paired = stats.ttest_1samp(np.array(chosen) - 1 / (1 + math.e), 0).confidence_interval()
    assert alone["above_null_interval"] == pytest.approx(list(paired))


def test_the_yes_bias_is_a_difference_of_rates_with_welchs_interval():
    rng = np.random.default_rng(7)
    absent, present = rng.random(40) < 0.4, rng.random(25) < 0.8
    found = gaps.yes_bias(absent, present)
    assert found.value == pytest.approx(absent.mean() - (1 - present.mean()))
    welch = stats.ttest_ind(absent.astype(float), 1.0 - present, equal_var=False)
    assert found.interval[:2] == pytest.approx(tuple(welch.confidence_interval()))
    assert found.interval.degrees == pytest.approx(welch.df)
    rates = found.settings["hallucinated"], found.settings["missed"]
    assert rates == pytest.approx((absent.mean(), 1 - present.mean()))
    blind = gaps.yes_bias(absent, present, permuted=(np.full(40, 0.7), np.full(25, 0.7))).settings
    assert blind["null"] == pytest.approx(0.4) and blind["null_hallucinated"] == pytest.approx(0.7)
    always = gaps.yes_bias(np.ones(5), np.ones(5))
    assert always.value == 1 and always.interval[:2] == (1, 1)
    assert gaps.yes_bias(np.ones(5), np.zeros(5)).value == 0  # wrong throughout, and not biased


def test_a_match_is_right_where_the_nearest_row_of_the_other_picture_lies():
    rng = np.random.default_rng(8)
    pictures, side = 4, 3
    samples = np.repeat(np.arange(pictures), side**2)
    grid = np.array([(i, j) for i in range(side) for j in range(side)])
    positions = np.tile(grid, (pictures, 1))
    rows = rng.normal(size=(2, len(samples), 5))
    matches = np.array([(i, 9 + j) for i, j in zip(range(9), rng.permutation(9), strict=True)] + [(20, 30), (21, 0)])
    found = gaps.correspondence(rows, samples, positions, matches, within=1.0)
    share, chance = {}, {}
    for source, target in matches:
        best, right, near = -2.0, False, []
        for other in np.flatnonzero(samples == samples[target]):
            cosine = rows[0, source] @ rows[0, other] / np.linalg.norm(rows[0, source]) / np.linalg.norm(rows[0, other])
            close = math.dist(positions[other], positions[target]) <= 1
            near.append(close)
            best, right = (cosine, close) if cosine > best else (best, right)
        share.setdefault(samples[source], []).append(right)
        chance.setdefault(samples[source], []).append(np.mean(near))
    assert found.per_layer[0] == pytest.approx(np.mean([np.mean(each) for each in share.values()]))
    assert found.settings["null"] == pytest.approx(np.mean([np.mean(each) for each in chance.values()]))
    assert found.rows == {"pictures": 2, "matches": 11}
    rows[:, 9:18] = rows[:, :9]  # the second picture repeats the first, patch by patch
    exact = np.array([(i, 9 + i) for i in range(9)] + [(9 + i, i) for i in range(9)])
    assert gaps.correspondence(rows, samples, positions, exact, within=0.0).value == 1
    drawn = rng.normal(size=(1, 900, 4))
    many = np.stack([np.arange(450), 450 + rng.integers(450, size=450)], axis=1)
    many = np.concatenate([many, many[:, ::-1]])
    random = gaps.correspondence(drawn, np.arange(900) // 450, rng.random((900, 2)), many, within=0.3)
    assert random.value == pytest.approx(random.settings["null"], abs=0.06)


FOUR = np.ones((1, 4, 2))
BAD_ANSWERS = [
    (lambda: gaps.text_preference([0.0, 1.0], [0.0]), r"text: expected \(2,\) numbers, got an array of shape \(1,\)"),
    (lambda: gaps.text_preference([0.0, 1.0], [0.0, np.nan]), "sample 1 gives a number that is not finite"),
    (lambda: gaps.text_preference([0.0, 1.0], [0.0, 1.0], without=([0.0], [0.0])), r"without: expected \(2,\)"),
    (lambda: gaps.yes_bias([0, 1], [2, 0]), "0 for no, 1 for yes, or between"),
    (lambda: gaps.yes_bias([0], [1, 0]), "at least 2 answers of each kind"),
    (lambda: gaps.correspondence(FOUR, [0, 0, 1], FOUR[0], [[0, 3]]), "for each of 4 rows"),
    (lambda: gaps.correspondence(FOUR, [0, 0, 1, 1], FOUR[0], [[0, 4]]), "from 0 to 3"),
    (lambda: gaps.correspondence(FOUR, [0, 0, 1, 1], FOUR[0], [[0, 1]]), "in different pictures"),
    (
        lambda: gaps.correspondence(FOUR, [0, 0, 1, 1], FOUR[0], [0, 1]),
        r"\(m, 2\) numbers of rows",
    ),
    (lambda: gaps.correspondence(FOUR, [0, 0, 1, 1], FOUR[0], [[0, 3]]), "at least 2 of them"),
]


@pytest.mark.parametrize("call, said", BAD_ANSWERS, ids=[said[:20] for _, said in BAD_ANSWERS])
def test_what_is_no_answer_is_refused_in_a_sentence(call, said):
    with pytest.raises(MirlibError, match=said):
        call()
