"""One pass gives what two gave, exactly, whatever the norms are and in whatever order they come."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mirlib import MirlibError, ModalityIntegrationRate, modality_integration_rate
from mirlib.accumulators import early_bounds
from mirlib.mir import NormBounds

GOLDEN = Path(__file__).parent / "golden"
TOKENS, SAMPLES, DIM = 36, 100, 3
SHAPES = {
    "normal": lambda g, n: g.normal(10, 1, n),
    "log-normal": lambda g, n: np.exp(g.normal(2, 0.5, n)),
    "offsets by picture": lambda g, n: g.normal(10, 1, n) + np.repeat(g.normal(0, 1, n // TOKENS), TOKENS),
    "a sink in every picture": lambda g, n: np.where(np.arange(n) % TOKENS == 0, 500.0, g.normal(10, 1, n)),
    "rare sinks": lambda g, n: np.where(np.arange(n) % (TOKENS * 20) == 7, 800.0, g.normal(10, 1, n)),
    "Student's t": lambda g, n: 10 + np.abs(g.standard_t(3, n)),
}


def rows_with(norms, seed=0):
    """(n, d) float64 rows of these norms in random directions."""
    directions = np.random.default_rng(seed).normal(size=(len(norms), DIM))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True) * norms[:, None]


def feed(metric, vision, text, batch):
    """All passes that the metric asks for; returns the reasons."""
    reasons = []
    while True:
        step = batch * TOKENS
        for start in range(0, vision.shape[1], step):
            some = slice(start, start + step)
            metric.update(
                vision[:, some],
                text[:, some],
                samples=(np.arange(start, min(start + step, vision.shape[1])) // TOKENS,) * 2,
            )
        reason = metric.needs_second_pass()
        if reason is None:
            return reasons
        reasons.append(reason)
        metric.begin_second_pass()


def agree(found, expected):
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio", "scale"):
        assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=0), name
    assert {m: n.tolist() for m, n in found.outliers.items()} == {m: n.tolist() for m, n in expected.outliers.items()}
    assert tuple(found.length) == pytest.approx(tuple(expected.length), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["same_scale", "wide_gap", "rank_deficient"])
@pytest.mark.parametrize("batches", [1, 7, 23])
def test_golden_data(name, batches):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        vision, text, golden = stored["vision"], stored["text"], float(stored["exact_drop_mir"])
    metric = ModalityIntegrationRate(len(vision), vision.shape[2])
    for parts in zip(*(np.array_split(rows, batches, axis=1) for rows in (vision, text)), strict=True):
        metric.update(*parts)
    assert metric.needs_second_pass() is None
    assert float(metric.compute()) == pytest.approx(golden, rel=1e-9)
    agree(metric.result(), modality_integration_rate(vision, text))


@pytest.mark.parametrize("order", ["as drawn", "rising", "falling", "extremes last", "extremes first"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_orders(shape, order):
    generator = np.random.default_rng(7)
    norms = SHAPES[shape](generator, TOKENS * SAMPLES)
    away = np.abs(norms - np.median(norms))
    norms = {
        "as drawn": norms,
        "rising": np.sort(norms),
        "falling": np.sort(norms)[::-1],
        "extremes last": norms[np.argsort(away)],
        "extremes first": norms[np.argsort(-away)],
    }[order]
    vision, text = rows_with(norms)[None], rows_with(generator.normal(5, 1, len(norms)), 1)[None]
    metric = ModalityIntegrationRate(1, DIM)
    reasons = feed(metric, vision, text, 4)
    assert all(reason.startswith("repair") for reason in reasons)
    if order == "as drawn":
        assert not reasons
    found = metric.result()
    assert found.passes == 1 + len(reasons)
    agree(found, modality_integration_rate(vision, text))


def test_the_repair_is_put_to_the_test():
    """Some order above must have needed one, or nothing was shown."""
    norms = np.concatenate([np.linspace(100, 20, 40 * TOKENS), np.random.default_rng(0).normal(1, 0.1, 960 * TOKENS)])
    vision, text = rows_with(norms)[None], rows_with(np.random.default_rng(1).normal(5, 1, len(norms)), 1)[None]
    metric = ModalityIntegrationRate(1, DIM)
    reasons = feed(metric, vision, text, 4)
    assert len(reasons) == 1 and "1 of 2 sets of rows" in reasons[0]
    agree(metric.result(), modality_integration_rate(vision, text))
    with pytest.raises(MirlibError, match="no second pass is needed"):
        metric.begin_second_pass()


def test_a_value_that_needs_repair_is_not_given_away():
    norms = np.concatenate([np.linspace(100, 20, 40 * TOKENS), np.full(960 * TOKENS, 1.0)])
    metric = ModalityIntegrationRate(1, DIM)
    for part in np.array_split(np.arange(len(norms)), 50):
        metric.update(rows_with(norms[part])[None], rows_with(np.ones(len(part)), 1)[None])
    with pytest.raises(MirlibError, match="the value needs another pass .repair: in 1 of 2"):
        metric.compute()


@pytest.mark.parametrize("shape", SHAPES)
def test_how_often_and_how_much(shape):
    """15 draws, two decisions each: none is to be repaired, and at most 8 % of the rows wait to the end."""
    wait = []
    for seed in range(15):
        generator = np.random.default_rng(seed)
        norms = SHAPES[shape](generator, TOKENS * SAMPLES)
        metric = ModalityIntegrationRate(1, DIM)
        assert not feed(metric, rows_with(norms)[None], rows_with(norms[::-1].copy(), 1)[None], 4), seed
        wait.append(metric.result().settings["set_aside"])
    assert 0 < np.mean(wait) and max(wait) <= 0.08


def test_early_bounds_lie_inside():
    for seed, shape in enumerate(SHAPES.values()):
        norms = torch.tensor(shape(np.random.default_rng(seed), TOKENS * SAMPLES))
        last = NormBounds.three_sigma(norms)
        for samples in (1, 4, 20, SAMPLES):
            found = early_bounds(norms[: samples * TOKENS], samples)
            assert found.centre + found.reach < last.centre + last.reach
            assert found.centre - found.reach > last.centre - last.reach


def test_computing_on_the_way_changes_nothing():
    generator = np.random.default_rng(0)
    vision, text = generator.normal(size=(2, 2, 3000, DIM))
    metric, often = ModalityIntegrationRate(2, DIM), ModalityIntegrationRate(2, DIM)
    for part in np.array_split(np.arange(3000), 10):
        for each in (metric, often):
            each.update(vision[:, part], text[:, part])
        expected = modality_integration_rate(vision[:, : part[-1] + 1], text[:, : part[-1] + 1])
        assert float(often.compute()) == pytest.approx(expected.value, rel=1e-12)
    assert metric.result().value == pytest.approx(often.result().value, rel=1e-13)
    often.reset()
    often.update(vision, text)
    assert float(often.compute()) == pytest.approx(float(metric.compute()), rel=1e-12)


def test_rows_wait_in_their_own_precision():
    rows = torch.randn(1, 400, DIM, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    metric = ModalityIntegrationRate(1, DIM)
    metric.update(rows, rows)
    waiting = [part for side in metric._layers[0] for part, _ in side.aside]
    assert waiting and all(part.dtype == torch.bfloat16 for part in waiting)
