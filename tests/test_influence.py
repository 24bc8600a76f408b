"""The influence of samples against closed forms, finite differences, leave-one-out, the bootstrap and repetition."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mirlib import MirlibError, ModalityIntegrationRate, frechet_distance, modality_integration_rate
from mirlib.frechet import Moments
from mirlib.influence import LayerInfluence, SampleInfluence, influence_interval, standard_error
from mirlib.mir import NormBounds
from mirlib.result import Influence

LAYERS, DIM, TOKENS = 3, 5, 12


def draw(samples, seed=0, dim=DIM, alike=0.5):
    """(K, samples · tokens, d) of each modality, rows of one sample alike, and the sample of each row."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(LAYERS, 2, dim, dim))

    def side(which, scale, shift):
        common = rng.normal(size=(samples, 1, dim))
        own = rng.normal(size=(samples, TOKENS, dim))
        rows = (alike * common + own).reshape(-1, dim)
        return np.stack([scale * rows @ mixing[k, which] + shift * (k + 1) for k in range(LAYERS)])

    ids = np.repeat(np.arange(samples), TOKENS)
    return side(0, 2.0, 1.0), side(1, 1.0, 0.0), (ids, ids)


def weighted_distance(x, y, weights):
    """The Fréchet distance where row i of x counts ``weights[i]`` (they add up to 1), by plain eigenvalues."""
    mean = weights @ x
    covariance = (x - mean).T @ (weights[:, None] * (x - mean)) * len(x) / (len(x) - 1)
    other = np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(covariance @ other).real.clip(0))
    return ((mean - y.mean(0)) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * roots.sum()


def layer_influence(x, y, **options):
    options = {"normalized": False, "text_rows": len(y)} | options
    moments = Moments.of(torch.tensor(x)), Moments.of(torch.tensor(y))
    return LayerInfluence.of(*moments, frechet_distance(x, y).total, 1.0, **options)


@pytest.mark.parametrize("side", [0, 1])
def test_finite_differences(side):
    vision, text, _ = draw(20)
    x, y = vision[1], text[1]
    found = layer_influence(x, y).of_kept(torch.tensor((x, y)[side]), side)
    rows, other = ((x, y), (y, x))[side]
    even, step = np.full(len(rows), 1 / len(rows)), 1e-6
    for row in (0, 7, 100):
        towards = (np.arange(len(rows)) == row) - even
        ends = [weighted_distance(rows, other, even + sign * step * towards) for sign in (1, -1)]
        assert float(found[row]) * len(rows) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_closed_form_in_one_dimension():
    """D = (μ_x − μ_y)² + (σ_x − σ_y)², whose derivative in σ_x² is 1 − σ_y / σ_x."""
    rng = np.random.default_rng(1)
    x, y = 3 * rng.normal(size=(50, 1)) + 2, rng.normal(size=(40, 1))
    centred, spread = x[:, 0] - x.mean(), x.std(ddof=1)
    slope = 1 - y.std(ddof=1) / spread
    expected = slope * (centred**2 * 50 / 49 - spread**2) + 2 * (x.mean() - y.mean()) * centred
    found = layer_influence(x, y).of_kept(torch.tensor(x), 0)
    assert np.allclose(found * 50, expected, rtol=1e-12)


def test_influences_add_up_to_nothing():
    vision, text, samples = draw(30)
    text[2, 9] *= 40  # a row that moves the scale
    found = modality_integration_rate(vision, text, samples=samples, confidence=0.95, outliers="none")
    for side in (found.influence.vision, found.influence.text):
        assert side.shape == (LAYERS, 30)
        assert np.abs(side.sum(axis=1)).max() < 1e-12 * np.abs(side).sum()
    dropping = modality_integration_rate(vision, text, samples=samples, confidence=0.95)
    assert dropping.outliers["text"][2] == 1
    for side in (dropping.influence.vision, dropping.influence.text):  # a median has no derivative to the last digit
        assert np.abs(side.sum(axis=1)).max() < 0.01 * np.abs(side).sum()


def test_leaving_a_sample_out():
    """The change that is predicted is the one that comes, to the order of 1 / N."""
    vision, text, samples = draw(80)
    whole = modality_integration_rate(vision, text, samples=samples, confidence=0.95, outliers="none")
    influence = whole.influence.vision + whole.influence.text
    true = np.zeros((LAYERS, 80))
    for left_out in range(80):
        rest = samples[0] != left_out
        true[:, left_out] = (
            modality_integration_rate(vision[:, rest], text[:, rest], outliers="none").per_layer - whole.per_layer
        )
    assert np.corrcoef(true.ravel(), -influence.ravel())[0, 1] > 0.995
    assert np.abs(true + influence * 80 / 79).max() < 0.1 * np.abs(true).max()


@pytest.mark.parametrize("outliers", ["none", "drop"])
def test_the_scale_moves_with_the_text(outliers):
    """Texts that differ in length of rows alone: without the derivative of the scale the error would be far off."""
    vision, text, samples = draw(60, seed=3)
    text *= np.exp(0.3 * np.random.default_rng(5).normal(size=60))[samples[0]][:, None]
    result = modality_integration_rate(vision, text, samples=samples, confidence=0.95, outliers=outliers)
    expected = bootstrap(vision, text, samples[0], outliers=outliers)
    assert result.interval.standard_error == pytest.approx(expected, rel=0.13)
    fixed = result.influence.text.copy()
    lengths = np.linalg.norm(text, axis=2) / np.linalg.norm(text, axis=2).mean(axis=1, keepdims=True) - 1
    by_sample = lengths.reshape(LAYERS, 60, TOKENS).sum(axis=2) / lengths.shape[1]
    fixed += 2 * result.per_layer[:, None] * by_sample  # takes the part of the scale away again
    without = standard_error(Influence(result.influence.vision, fixed, True), result.per_layer)
    assert without > 1.5 * expected or without < expected / 1.5


@pytest.mark.parametrize("unit", [2.0**-80, 2.0**72])
def test_the_unit_of_float32_rows_does_not_change_an_influence(unit):
    """Their squares lie outside of float32, which the maps are kept in; powers of two round nothing else."""
    vision, text, samples = draw(20, seed=3)
    found = []
    for factor in (1, unit):
        metric = ModalityIntegrationRate(LAYERS, vision.shape[2], confidence=0.95)
        rows = [[torch.tensor(factor * layer, dtype=torch.float32) for layer in side] for side in (vision, text)]
        metric.update(*rows, samples=tuple(map(torch.as_tensor, samples)))
        metric.begin_second_pass()
        metric.update(*rows, samples=tuple(map(torch.as_tensor, samples)))
        found.append(metric.result())
    for side in ("vision", "text"):
        same, other = (getattr(result.influence, side) for result in found)
        assert other == pytest.approx(same, abs=1e-3 * np.abs(same).max())


def bootstrap(vision, text, ids, draws=150, **options):
    """Standard error of MIR over samples drawn with replacement, everything computed anew: scale, bounds, distances."""
    rng, places = np.random.default_rng(1), [np.flatnonzero(ids == i) for i in np.unique(ids)]
    values = []
    for _ in range(draws):
        rows = np.concatenate([places[i] for i in rng.integers(0, len(places), len(places))])
        values.append(modality_integration_rate(vision[:, rows], text[:, rows], **options).value)
    return np.std(values, ddof=1)


@pytest.mark.parametrize("samples", [50, 100])
def test_standard_error_is_that_of_the_bootstrap(samples):
    vision, text, ids = draw(samples, seed=samples)
    for outliers in ("none", "drop"):
        found = modality_integration_rate(vision, text, samples=ids, confidence=0.95, outliers=outliers)
        expected = bootstrap(vision, text, ids[0], outliers=outliers)
        assert found.interval.standard_error == pytest.approx(expected, rel=0.13)  # of 150 draws: 6 % to either side


def test_the_bounds_of_the_outlier_rule_move():
    """Norms with a long tail: with bounds that stand still, the standard error would be a quarter too small."""

    def rows_of(rng, tail):
        rows = rng.normal(size=(60 * TOKENS, 3))
        tails = rng.normal(size=(60 * TOKENS, 1)) + 0.5 * np.repeat(rng.normal(size=(60, 1)), TOKENS, axis=0)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.exp(tail * tails))[None]

    ids = np.repeat(np.arange(60), TOKENS)
    values, errors, still = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        vision, text = 4 * rows_of(rng, 0.7), rows_of(rng, 0.1)
        found = modality_integration_rate(vision, text, samples=(ids, ids), confidence=0.95)
        values.append(found.value)
        errors.append(found.interval.standard_error)
        norms = torch.linalg.vector_norm(torch.tensor(vision[0]), dim=1)
        bounds = NormBounds.three_sigma(norms)
        standing = SampleInfluence(_maps_of(vision[0], text[0], bounds), 0, bounds, 60, torch.device("cpu"))
        standing.add(torch.tensor(vision[0]), norms, torch.tensor(ids))
        vision_alone = Influence(standing.of_rows[None].numpy(), found.influence.text, True)
        still.append(standard_error(vision_alone, found.per_layer))
    spread = np.std(values, ddof=1)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.12)
    assert np.sqrt(np.mean(np.square(still))) < 0.8 * spread


def _maps_of(vision, text, bounds):
    norms = np.linalg.norm(text, axis=1)
    kept = ~bounds.outliers(torch.linalg.vector_norm(torch.tensor(vision), dim=1)).numpy()
    within = ~NormBounds.three_sigma(torch.tensor(norms)).outliers(torch.tensor(norms)).numpy()
    moments = Moments.of(torch.tensor(vision[kept])), Moments.of(torch.tensor(text[within]))
    scale = 1 / norms.mean()
    distance = frechet_distance(vision[kept], text[within]).total * scale**2
    return LayerInfluence.of(*moments, distance, scale, normalized=True, text_rows=len(text))


def test_coverage():
    """Of the mean of MIR over redrawn sets of samples: between 92 and 98 of 100 intervals of 95 % hold it."""
    drawn = [draw(40, seed=1000 + number) for number in range(200)]
    results = [modality_integration_rate(v, t, samples=ids, confidence=0.95) for v, t, ids in drawn]
    target = np.mean([result.value for result in results])
    held = np.mean([result.interval.low <= target <= result.interval.high for result in results])
    assert 0.92 <= held <= 0.98
    spread = np.std([result.value for result in results], ddof=1)
    assert np.mean([r.interval.standard_error for r in results]) == pytest.approx(spread, rel=0.1)


def test_pictures_and_texts_drawn_apart():
    vision, text, (ids, _) = draw(50)
    apart = modality_integration_rate(vision, text, samples=(ids, ids + 1000), confidence=0.95)
    together = modality_integration_rate(vision, text, samples=(ids, ids), confidence=0.95)
    assert not apart.influence.paired and together.influence.paired
    by_hand = [side.sum(axis=0) for side in (apart.influence.vision, apart.influence.text)]
    factor = 50 / 49 / (apart.per_layer.sum() * math.log(10)) ** 2
    assert apart.interval.standard_error**2 == pytest.approx(factor * sum((u**2).sum() for u in by_hand))
    assert together.interval.standard_error**2 == pytest.approx(factor * ((by_hand[0] + by_hand[1]) ** 2).sum())


def test_students_t():
    vision, text, samples = draw(8)
    for confidence in (0.8, 0.95):
        found = modality_integration_rate(vision, text, samples=samples, confidence=confidence).interval
        low, high = stats.t.interval(confidence, 7, loc=(found.low + found.high) / 2, scale=found.standard_error)
        assert (found.low, found.high) == pytest.approx((low, high)) and found.degrees == 7


def test_undefined():
    zero = Influence(np.zeros((2, 1)), np.zeros((2, 1)), True)
    assert math.isnan(influence_interval(zero, np.ones(2), 0.3, 0.95).low)
    assert math.isnan(standard_error(Influence(np.zeros((2, 9)), np.zeros((2, 9)), True), np.zeros(2)))


# ---------------------------------------------------------------------------------------------------------------------
# Streamed


def stream(metric, vision, text, ids, batch=7):
    """One pass in batches of so many samples; rows of a sample need not be neighbours."""
    numbers = np.unique(ids)
    for start in range(0, len(numbers), batch):
        rows = np.isin(ids, numbers[start : start + batch])
        metric.update(vision[:, rows], text[:, rows], samples=(ids[rows], ids[rows]))


@pytest.mark.parametrize("outliers", ["drop", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_streamed_influences_are_those_of_rows_in_memory(outliers, normalize):
    vision, text, samples = draw(40, seed=2)
    vision[0, 3] *= 50
    text[1, 30] *= 50
    options = {"outliers": outliers, "normalize": normalize, "confidence": 0.95}
    expected = modality_integration_rate(vision, text, samples=samples, **options)
    metric = ModalityIntegrationRate(LAYERS, DIM, **options)
    stream(metric, vision, text, samples[0])
    assert metric.needs_second_pass().startswith("interval")
    with pytest.raises(MirlibError, match="a pass is missing .*begin_second_pass"):
        metric.result()
    metric.begin_second_pass()
    stream(metric, vision, text, samples[0], batch=11)
    assert metric.needs_second_pass() is None
    found = metric.result()
    assert found.value == pytest.approx(expected.value, rel=1e-12) and found.passes == 2
    for side in ("vision", "text"):
        ours, theirs = getattr(found.influence, side), getattr(expected.influence, side)
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
    assert found.interval.standard_error == pytest.approx(expected.interval.standard_error, rel=1e-6)
    assert tuple(found.length) == pytest.approx(tuple(expected.length), rel=1e-9)


def test_a_dimension_in_which_rows_do_not_differ_changes_nothing():
    """A covariance is singular then, and the derivative is the one of the other dimensions."""
    vision, text, samples = draw(40)
    flat = np.zeros((*vision.shape[:2], 1))
    options = {"samples": samples, "confidence": 0.95}
    expected = modality_integration_rate(vision, text, **options)
    wide_vision, wide_text = (np.concatenate([rows, flat], axis=2) for rows in (vision, text))
    metric = ModalityIntegrationRate(LAYERS, DIM + 1, confidence=0.95)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        stream(metric, wide_vision, wide_text, samples[0])
    for found in (metric.result(), modality_integration_rate(wide_vision, wide_text, **options)):
        assert found.interval.standard_error == pytest.approx(expected.interval.standard_error, rel=1e-9)
        for side in ("vision", "text"):
            ours, theirs = getattr(found.influence, side), getattr(expected.influence, side)
            assert np.allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("flat", ["vision", "text", "both"])
def test_leaving_a_sample_out_of_rows_that_fill_few_dimensions(flat):
    """As black pictures do, which give the same few vision rows in every sample."""
    vision, text, samples = draw(60, seed=7, dim=8)
    if flat != "text":
        vision = np.tile(vision[:, :5], (1, 144, 1))  # rank 4
    if flat != "vision":
        text[:, :, 6:] = text[:, :, :2]  # rank 6
    options = {"outliers": "none"}
    found = modality_integration_rate(vision, text, samples=samples, confidence=0.95, **options)
    kept = [samples[0] != number for number in range(60)]
    values = [modality_integration_rate(vision[:, rows], text[:, rows], **options).value for rows in kept]
    assert found.interval.standard_error == pytest.approx(math.sqrt(59 * np.var(values)), rel=0.03)


def test_no_interval_of_few_rows_or_a_single_sample():
    vision, text, samples = draw(12, dim=60)
    few_vision, few_text, ids = vision[:, :96], text[:, :96], samples[0][:96]
    metric = ModalityIntegrationRate(LAYERS, 60, confidence=0.95)
    stream(metric, few_vision, few_text, ids)
    assert metric.needs_second_pass() is None
    held = modality_integration_rate(few_vision, few_text, samples=(ids, ids), confidence=0.95)
    for found in (metric.result(), held):
        assert found.interval is None and found.influence is None and found.passes == 1
        assert found.warnings[0] == (
            "there is no interval: in 3 of 3 layers, rows are fewer than 2 times the 60 dimensions; use more samples"
        )
    vision, text, _ = draw(10)
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    metric.update(vision, text)  # a batch is a sample
    assert metric.needs_second_pass() is None
    found = metric.result()
    assert found.interval is None and "at least 2 samples" in found.warnings[0]


def test_the_second_pass_must_see_the_same_samples():
    vision, text, samples = draw(30)
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    stream(metric, vision, text, samples[0])
    metric.begin_second_pass()
    with pytest.raises(MirlibError, match="sample 77 was not in the first pass"):
        metric.update(vision[:, :4], text[:, :4], samples=(np.full(4, 77), np.full(4, 77)))
    metric.reset()
    stream(metric, vision, text, samples[0])
    metric.begin_second_pass()
    stream(metric, vision[:, :120], text[:, :120], samples[0][:120])
    with pytest.raises(MirlibError, match="120 vision rows came instead of 360"):
        metric.result()
