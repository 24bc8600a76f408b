"""The baselines against MIR itself, closed forms, and the laws that their docstrings state."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirlib import MirlibError, modality_integration_rate
from mirlib.baselines import norm_bounds, text_floor, zeroed_rows

RULES = ("drop", "median", "none")


def hidden_states(seed: int, layers: int = 2, rows: int = 60, dim: int = 6, shift: float = 0.0, scale: float = 1.0):
    """(layers, rows, dim) anisotropic Gaussian rows with a few long ones, so that the outlier rule has work to do."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(layers, dim, dim))
    states = scale * (rng.normal(size=(layers, rows, dim)) @ mixing) + shift * rng.normal(size=(layers, 1, dim))
    states[:, :2] *= 12
    return states


@pytest.mark.parametrize("rule", RULES)
def test_zeroed_rows_is_the_mir_of_vision_rows_of_zero(rule):
    text = hidden_states(0, shift=2.0)
    zeros = np.zeros((2, 50, 6))
    result = modality_integration_rate(zeros, text, outliers=rule)
    zeroed = zeroed_rows(text, outliers=rule)
    np.testing.assert_allclose(zeroed.per_layer, result.per_layer, rtol=1e-10)
    assert zeroed.value == pytest.approx(result.value, abs=1e-10)


def test_zeroed_rows_without_outlier_rule_has_its_closed_form_and_is_at_least_log10_of_the_layers():
    text = hidden_states(1, layers=7, shift=1.0)
    norms = np.linalg.norm(text, axis=2)
    variation = norms.std(axis=1) / norms.mean(axis=1)
    traces = text.var(axis=1, ddof=1).sum(axis=1) / norms.mean(axis=1) ** 2
    zeroed = zeroed_rows(text, outliers="none")
    np.testing.assert_allclose(zeroed.per_layer, 1 + variation**2 + traces / text.shape[1], rtol=1e-12)
    assert zeroed.value >= math.log10(7)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(3, 40),
    dim=st.integers(1, 12),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(0, 30),
    rule=st.sampled_from(RULES),
)
@settings(max_examples=80, deadline=None)
def test_mir_lies_between_the_bounds(seed, rows, dim, scale, shift, rule):
    vision = hidden_states(seed, rows=rows, dim=dim, shift=shift, scale=scale)
    text = hidden_states(seed + 1, rows=rows + 3, dim=dim, shift=1.0)
    bounds = norm_bounds(vision, text, outliers=rule)
    fid = modality_integration_rate(vision, text, outliers=rule).per_layer
    slack = 1e-9 * (bounds.vision_energy + bounds.text_energy)
    assert (bounds.per_layer_lower <= fid + slack).all()
    assert (fid <= bounds.per_layer_upper + slack).all()


@given(seed=st.integers(0, 10**6), factor=st.floats(1.0, 50.0))
@settings(max_examples=30, deadline=None)
def test_both_bounds_are_reached(seed, factor):
    # Vision that is text times c reaches the lower bound; its mirror image of spread zero reaches the upper one.
    text = hidden_states(seed)
    bounds = norm_bounds(factor * text, text, outliers="none")
    fid = modality_integration_rate(factor * text, text, outliers="none").per_layer
    np.testing.assert_allclose(fid, bounds.per_layer_lower, rtol=1e-6, atol=1e-9)

    point = np.ones((1, 5, 3)) * np.array([3.0, 0.0, 4.0])
    opposite = norm_bounds(-factor * point, point, outliers="none")
    fid = modality_integration_rate(-factor * point, point, outliers="none").per_layer
    np.testing.assert_allclose(fid, opposite.per_layer_upper, rtol=1e-10)


def test_bounds_hold_the_null_and_the_norm_only_baselines_of_the_same_settings():
    vision, text = hidden_states(3, scale=4.0, rows=400), hidden_states(4, rows=500)
    bounds = norm_bounds(vision, text)
    result = modality_integration_rate(vision, text)
    np.testing.assert_allclose(bounds.text_energy, zeroed_rows(text).per_layer, rtol=1e-12)
    assert bounds.norm_only == pytest.approx(result.norm_only, abs=2e-3)  # the divisors n and n - 1
    assert bounds.norm_only >= result.norm_only
    assert bounds.lower <= result.value <= bounds.upper


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_baselines_do_not_change_when_a_layer_is_scaled(scale):
    vision, text = hidden_states(5, scale=3.0), hidden_states(6)
    before, after = norm_bounds(vision, text), norm_bounds(scale * vision, scale * text)
    np.testing.assert_allclose(after.per_layer_lower, before.per_layer_lower, rtol=1e-9)
    np.testing.assert_allclose(after.text_energy, before.text_energy, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_baselines_read_tensors_of_any_precision(dtype):
    vision, text = (torch.tensor(hidden_states(seed)).to(dtype) for seed in (7, 8))
    exact = norm_bounds(vision.double().numpy(), text.double().numpy())
    np.testing.assert_allclose(norm_bounds(list(vision), list(text)).vision_energy, exact.vision_energy, rtol=1e-12)


def test_floor_keeps_the_rows_of_a_sample_together():
    # Each text is one point, repeated. A split by token would put every point on both sides and score near zero.
    rng = np.random.default_rng(9)
    texts = np.repeat(rng.normal(size=(1, 8, 4)), 50, axis=1)
    ids = np.repeat(np.arange(8), 50)
    by_sample = text_floor(texts, ids, outliers="none", splits=5)
    by_token = text_floor(texts, np.arange(400), outliers="none", splits=5)
    assert by_sample.per_layer.min() > 5 * by_token.per_layer.max()


def test_floor_falls_with_the_number_of_samples_and_repeats_with_its_seed():
    rows = np.random.default_rng(10).normal(size=(2, 4000, 5))
    ids = np.arange(4000) // 10
    few = text_floor(rows[:, :400], ids[:400])
    many = text_floor(rows, torch.from_numpy(ids))
    # The bias of a distance of two samples of equal size falls as one over the size.
    assert many.mean == pytest.approx(few.mean - 1, abs=0.15)
    assert 0 < few.spread < 0.2
    np.testing.assert_array_equal(text_floor(rows, ids).values, many.values)
    assert not np.array_equal(text_floor(rows, ids, seed=1).values, many.values)
    np.testing.assert_allclose(many.values, np.log10(many.per_layer.sum(axis=1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: zeroed_rows(t, outliers="mean"), "unknown outlier rule"),
        (lambda t: zeroed_rows(t[:, :1]), "at least 2"),
        (lambda t: zeroed_rows(np.zeros_like(t)), "norm zero"),
        (lambda t: zeroed_rows(t.astype(int)), "floating-point"),
        (lambda t: zeroed_rows(t[0]), "one a layer"),
        (lambda t: norm_bounds(t[:1], t), "1 layers and text has 2"),
        (lambda t: norm_bounds(np.where(np.arange(60)[:, None] == 7, np.nan, t), t), "layer 1, vision row 7"),
        (lambda t: text_floor(t, np.zeros(60, dtype=int)), "at least 2 samples"),
        (lambda t: text_floor(t, np.arange(59)), "59"),
        (lambda t: text_floor(t, np.arange(60.0)), "float64"),
        (lambda t: text_floor(t, np.arange(60), splits=1), "splits"),
        (lambda t: text_floor(t, np.arange(60), seed=-1), "seed"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, message):
    with pytest.raises(MirlibError, match=message):
        call(hidden_states(11))
