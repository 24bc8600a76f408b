"""Measures that ask the model itself, or a labelled task: each against a closed form or a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tiny_processors import lvlm
from torch.nn import functional as F

from mirlib import MirlibError, gaps
from mirlib.align.weighting import vision_hidden
from mirlib.data import sample_images, sample_texts
from mirlib.gaps import hiding, sphere
from mirlib.gaps.samples import of_samples, t_interval
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
    assert t_interval(values)[:2] == pytest.approx(tuple(expected), rel=1e-12)
    found = of_samples("picture_gain", values, {"pairs": 12}, layers=[values, 2 * values], null=null)
    assert found.value == values.mean() and found.per_layer == pytest.approx([values.mean(), 2 * values.mean()])
    assert found.settings["interval"] == pytest.approx(list(expected))
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


def test_pictures_that_reach_no_word_gain_nothing_and_are_left_at_once(tiny, pairs):
    model, processor = lvlm("llava")
    with torch.no_grad():
        for layer in model.get_decoder().layers:  # nothing comes out of attention, so no row hears of another
            layer.self_attn.o_proj.weight.zero_()
    found = gaps.picture_gain(model, processor, *pairs, **OPTIONS)
    assert found.value == pytest.approx(0, abs=1e-6) and found.settings["null"] == pytest.approx(0, abs=1e-6)
    depth = gaps.exit_depth(model, processor, *pairs, **OPTIONS)
    assert depth.value == 0 and depth.settings["interval"] == [0, 0]
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


def test_a_share_that_is_none_is_refused(tiny, pairs):
    with pytest.raises(MirlibError, match="unchanged must lie in"):
        gaps.exit_depth(*tiny, *pairs, unchanged=0)


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
    assert sphere.even_spread(3) == pytest.approx(-4 + math.log(math.sinh(4) / 4), rel=1e-12)  # E exp(κ cos θ)
    for dim in (2, 8):
        weight = lambda a, dim=dim: math.sin(a) ** (dim - 2)  # noqa: E731
        above = integrate.quad(lambda a: math.exp(-2 * (2 - 2 * math.cos(a))) * weight(a), 0, math.pi)[0]  # noqa: B023
        below = integrate.quad(weight, 0, math.pi)[0]
        assert sphere.even_spread(dim) == pytest.approx(math.log(above / below), rel=1e-8)
    drawn = np.random.default_rng(2).normal(size=(1500, 8))
    assert gaps.uniformity(drawn) == pytest.approx(sphere.even_spread(8), abs=0.01)


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
