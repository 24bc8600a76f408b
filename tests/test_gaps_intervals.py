"""Intervals of the zoo: influences against values without each sample, and standard errors against other draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import pairwise

from mirlib import MirlibError, gaps, modality_integration_rate
from mirlib.gaps import MEASURES, paired
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


@pytest.mark.parametrize(
    "name, count", [("mmd", 60), ("sliced_wasserstein", 60), ("symmetric_kl", 60), ("norm_only", 100)]
)
def test_influences_by_a_derivative_are_close_to_the_values_without_each_sample(name, count):
    data = draw(2, count)
    found = measured(name, *data)
    expected = left_out(values_without(name, *data))
    assert np.corrcoef(found.influence, expected)[0, 1] > 0.97
    assert standard_error(found.influence) == pytest.approx(standard_error(expected), rel=0.1)
    assert abs(found.influence.sum()) < 0.05 * np.abs(found.influence).sum()


def test_influences_on_mir_are_those_of_mir():
    vision, text, samples = draw(3, 40)
    expected = modality_integration_rate(vision, text, samples=samples, confidence=0.9)
    found = gaps.mir(vision, text, samples=samples, confidence=0.9)
    assert found.value == expected.value
    # Norms are rounded to float32 in another unit here, so that the row at the median may fall to its other side.
    theirs = expected.sample_influence
    assert found.influence == pytest.approx(theirs, rel=1e-6, abs=0.04 * abs(theirs).max())
    assert found.interval.standard_error == pytest.approx(expected.interval.standard_error, rel=0.01)
    assert found.interval.degrees == expected.interval.degrees


@pytest.mark.parametrize(
    "name", ["mir", "fd_infinity", "probe_auc", "sliced_wasserstein", "mmd", "cka_debiased", "rmg"]
)
def test_standard_errors_are_the_spread_of_other_draws(name):
    drawn = [measured(name, *draw(seed, 60, layers=1)) for seed in range(100, 180)]
    spread = np.std([found.value for found in drawn], ddof=1)
    assert np.mean([found.interval.standard_error for found in drawn]) == pytest.approx(spread, rel=0.25)


def test_neighbours_change_in_jumps_and_their_interval_is_wide_rather_than_narrow():
    drawn = [measured("mutual_knn", *draw(seed, 60, layers=1)) for seed in range(100, 180)]
    ratio = np.mean([found.interval.standard_error for found in drawn]) / np.std([found.value for found in drawn])
    assert 1 < ratio < 2.5


@pytest.mark.parametrize("name", ["modality_gap", "rmg"])
def test_the_standard_error_is_that_of_scipys_bootstrap(name):
    vision, text, samples = draw(4, 60, layers=1)
    rows = [np.arange(len(ids)).reshape(60, -1) for ids in samples]

    def statistic(chosen):
        sides = [side[:, places[chosen].ravel()] for side, places in zip((vision, text), rows, strict=True)]
        return measured(name, *sides, samples, confidence=None).value

    if name == "rmg":  # a sample drawn twice is no distance apart, so that its share of pairs must go

        def statistic(chosen):
            distances = [1 - pairwise.cosine_similarity(a, b) for a, b in ((x, x), (y, y), (x, y))]
            different = chosen[:, None] != chosen[None]
            within = np.mean([d[np.ix_(chosen, chosen)][different].mean() for d in distances[:2]])
            match = distances[2].diagonal()[chosen].mean()
            return match / (match + within)

        x, y = (side[0].reshape(60, -1, DIM).mean(1) for side in (vision, text))
    found = stats.bootstrap((np.arange(60),), statistic, n_resamples=400, vectorized=False, rng=0, method="basic")
    assert measured(name, vision, text, samples).interval.standard_error == pytest.approx(
        found.standard_error, rel=0.15
    )


def test_means_have_the_standard_error_of_means():
    scores = np.random.default_rng(5).normal(size=(30, 4))
    found = gaps.soft_discrimination(scores, np.zeros(30, dtype=int), confidence=0.9)
    probability = np.exp(scores[:, 0]) / np.exp(scores).sum(1)
    assert found.interval.standard_error == pytest.approx(stats.sem(probability))
    low, high = stats.t.interval(0.9, 29, probability.mean(), stats.sem(probability))
    assert found.interval[:3] == pytest.approx((low, high, 0.9))
    assert found.influence == pytest.approx((probability - probability.mean()) / 30)


def test_many_pairs_are_left_out_in_groups_where_each_costs_a_decomposition(monkeypatch):
    data = draw(6, 60, layers=1)
    single = measured("svcca", *data)
    monkeypatch.setattr(paired, "DELETE_ONE", 50)
    groups = measured("svcca", *data)
    assert groups.influence is None and groups.interval.method == "jackknife over groups"
    assert groups.interval.degrees == paired.GROUPS - 1
    assert groups.interval.standard_error == pytest.approx(single.interval.standard_error, rel=0.5)


def test_pairs_that_were_not_drawn_have_no_influence():
    rng = np.random.default_rng(7)
    found = gaps.rmg(rng.normal(size=(1, 1020, 3)), rng.normal(size=(1, 1020, 3)), permutations=0)
    assert found.rows == {"pairs": 1000} and len(found.influence) == 1020
    assert (found.influence == 0).sum() == 20


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_without_samples_have_no_interval_and_say_so(name):
    vision, text, samples = draw(8, 20)
    options = {"folds": 3} if name == "probe_auc" else {}
    found = measured(name, vision, text, None, **options)
    assert found.interval is None and found.settings["no_interval"] == "the rows belong to no samples"
    given = measured(name, vision, text, samples, **options)
    assert given.interval.low < given.value < given.interval.high and len(given.influence) == 20
    assert "no_interval" not in given.settings
    never = measured(name, vision, text, samples, confidence=None, **options)
    assert never.interval is None and never.influence is None and "no_interval" not in never.settings
    if name not in ("fd_infinity", "probe_auc"):  # which deal the samples
        assert found.value == given.value == pytest.approx(never.value, rel=1e-12)


def test_what_has_no_interval_says_why():
    vision, text, samples = draw(9, 8)

    def why(name, *given, **options):
        found = MEASURES[name].function(*given, **options)
        assert found.interval is None and found.influence is None
        return found.settings["no_interval"]

    few = [side[:, :7] for side in (vision, text)]
    assert "twice the dimensions" in why("mir", *few, samples=[ids[:7] for ids in samples])
    assert "4 pairs are too few" in why("cka_debiased", vision[:, :4], text[:, :4])
    one = [np.zeros(len(ids), dtype=int) for ids in samples]
    assert "one sample alone" in why("ima", vision, text, samples=one)
    apart = [np.zeros(len(samples[0]), dtype=int), samples[1]]  # all pictures are one: without it there are none
    assert "without one of the samples" in why("modality_gap", vision, text, samples=apart)
    with pytest.raises(MirlibError, match="confidence must lie between 0 and 1"):
        gaps.ima(vision, text, samples=samples, confidence=95)


def test_samples_may_have_any_numbers_and_rows_of_one_modality_alone():
    vision, text, samples = draw(11, 12)
    expected = gaps.modality_gap(vision, text, samples=samples)
    renamed = gaps.modality_gap(vision, text, samples=[100 - 7 * ids for ids in samples])
    assert renamed.influence[::-1] == pytest.approx(expected.influence)
    kept = samples[1] != 5
    alone = gaps.modality_gap(vision, text[:, kept], samples=(samples[0], samples[1][kept]))
    assert len(alone.influence) == 12


def test_an_interval_and_influences_survive_json():
    vision, text, _ = draw(12, 12)
    found = gaps.cka(vision[:, :12], text[:, :12], permutations=3).to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["interval"]["method"] == "influence" and len(again["influence"]) == again["rows"]["pairs"]
