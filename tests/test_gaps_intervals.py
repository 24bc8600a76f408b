"""Intervals of the zoo: influences against values without each sample, and standard errors against other draws."""

from __future__ import annotations

import numpy as np
import pytest

from mirlib.gaps import MEASURES
from mirlib.gaps.base import PAIRS, ROWS, left_out, standard_error

pytestmark = pytest.mark.usefixtures("one_thread")

OF_ROWS = [name for name, measure in MEASURES.items() if measure.needs == ROWS]
OF_PAIRS = [name for name, measure in MEASURES.items() if measure.needs == PAIRS]
DIM, VISION, TEXT = 4, 6, 5
OPTIONS = {
    "mutual_knn": {"neighbours": 3},
    "fd_infinity": {"parts": (1, 2)},
    "svcca": {"variance": 0.8},
    "sliced_wasserstein": {"directions": 16},
}


def draw(seed, count, layers=2):
    """Samples whose rows are alike, of images and texts that share half of what varies: vision, text, samples."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(layers, 3, DIM, DIM))
    shared, own_v, own_t = rng.normal(size=(3, count, DIM))
    vision = (shared + own_v)[:, None] + 0.7 * rng.normal(size=(count, VISION, DIM))
    text = (shared + own_t)[:, None] + 0.7 * rng.normal(size=(count, TEXT, DIM))
    vision = np.stack([1.5 * vision.reshape(-1, DIM) @ mix[0] + 1 for mix in mixing])
    text = np.stack([text.reshape(-1, DIM) @ (mix[0] + 0.4 * mix[1]) for mix in mixing])
    return vision, text, (np.repeat(np.arange(count), VISION), np.repeat(np.arange(count), TEXT))


def measured(name, vision, text, samples, **options):
    if MEASURES[name].needs == PAIRS:
        options["permutations"] = 0
    return MEASURES[name].function(vision, text, samples=samples, **OPTIONS.get(name, {}), **options)


def values_without(name, vision, text, samples, **options):
    """(N,) values of the measure, each computed anew without a sample."""
    found = []
    for sample in range(samples[0].max() + 1):
        kept = [ids != sample for ids in samples]
        rest = [side[:, mask] for side, mask in zip((vision, text), kept, strict=True)]
        ids = tuple(ids[mask] for ids, mask in zip(samples, kept, strict=True))
        found.append(measured(name, *rest, ids, confidence=None, **options).value)
    return np.array(found)


EXACT = ["modality_gap", "ima", "a_score", "cmmd", "kid", *OF_PAIRS]
"""Measures whose influences come from the value without each sample itself."""


@pytest.mark.parametrize("name", EXACT)
def test_influences_are_those_of_the_values_without_each_sample(name):
    data = draw(1, 15)
    found = measured(name, *data)
    assert found.influence == pytest.approx(left_out(values_without(name, *data)), rel=1e-7, abs=1e-12)
    assert found.interval.standard_error == pytest.approx(standard_error(found.influence), rel=1e-12)


@pytest.mark.parametrize("name", ["mmd", "sliced_wasserstein", "symmetric_kl", "mir", "norm_only"])
def test_influences_by_a_derivative_are_close_to_the_values_without_each_sample(name):
    data = draw(2, 100)
    found = measured(name, *data)
    expected = left_out(values_without(name, *data))
    assert np.corrcoef(found.influence, expected)[0, 1] > 0.97
    assert standard_error(found.influence) == pytest.approx(standard_error(expected), rel=0.1)
    assert abs(found.influence.sum()) < 0.05 * np.abs(found.influence).sum()
