"""Each measure of the zoo against a reference or a closed form, its invariances, its direction, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.spatial import distance
from sklearn.metrics import pairwise
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch.distributions import MultivariateNormal, kl_divergence
from torchmetrics.image.kid import poly_mmd

from mirlib import MirlibError, frechet_distance, gaps, modality_integration_rate
from mirlib.gaps import MEASURES, clouds
from mirlib.gaps.base import MODEL, PAIRS, ROWS, TASK

pytestmark = pytest.mark.usefixtures("one_thread")

OF_ROWS = [name for name, measure in MEASURES.items() if measure.needs == ROWS]
OF_PAIRS = [name for name, measure in MEASURES.items() if measure.needs == PAIRS]
LAYERS = 2


def rows(seed=0, n=40, m=30, d=6, shift=1.0, scale=2.0):
    """K = 2 layers of vision rows and text rows that differ in mean and scale."""
    rng = np.random.default_rng(seed)
    vision = scale * rng.normal(size=(LAYERS, n, d)) @ rng.normal(size=(d, d)) + shift
    return vision, rng.normal(size=(LAYERS, m, d)) + 0.3


def samples_of(n, m, count=10):
    """Ten samples, with n/10 vision rows and m/10 text rows each."""
    return np.arange(n) % count, np.arange(m) % count


def value(name, vision, text, **options):
    if name == "probe_auc" and "samples" not in options:
        options["folds"] = 3
    if MEASURES[name].needs == PAIRS:
        options = {"permutations": 0} | options
    return MEASURES[name].function(vision, text, **options)


def unit(x):
    return normalize(x)


# ---------------------------------------------------------------------------------------------------------------------
# Against references


def test_at_the_end_of_its_range_a_measure_has_no_interval_and_no_calibration():
    """As many dimensions as pairs: canonical correlations are 1, whatever the pairing."""
    x, y = np.random.default_rng(0).normal(size=(2, 1, 8, 30))
    found = gaps.svcca(x, y, samples=(np.arange(8), np.arange(8)), variance=1.0, permutations=5)
    assert found.value == pytest.approx(1) and found.interval is None
    assert "the same without" in found.settings["no_interval"]
    assert np.isnan(found.calibration.calibrated).all()
    three = gaps.cka(x[:, :3], y[:, :3], samples=(np.arange(3), np.arange(3)), permutations=3)
    assert three.interval is None and "3 pairs are too few" in three.settings["no_interval"]


def test_modality_gap_and_ima_against_scikit_learn_and_scipy():
    vision, text = rows()
    for k in range(LAYERS):
        expected = np.linalg.norm(unit(vision[k]).mean(0) - unit(text[k]).mean(0))
        assert gaps.modality_gap(vision, text).per_layer[k] == pytest.approx(expected, rel=1e-12)
        expected = 1 - distance.cosine(vision[k].mean(0), text[k].mean(0))
        assert gaps.ima(vision, text).per_layer[k] == pytest.approx(expected, rel=1e-12)


def test_a_score_against_scikit_learn():
    vision, text = rows()
    expected = [pairwise.cosine_similarity(v, t).max(1).mean() for v, t in zip(vision, text, strict=True)]
    assert gaps.a_score(vision, text).per_layer == pytest.approx(expected, rel=1e-12)


def unbiased(kernel, x, y):
    """The definition: means over all pairs of different rows."""
    xx, yy = kernel(x, x), kernel(y, y)
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return sum(within) - 2 * kernel(x, y).mean()


def test_mmd_against_scikit_learns_kernel():
    vision, text = rows()
    for k in range(LAYERS):
        unit_of_length = np.linalg.norm(text[k], axis=1).mean()
        v, t = vision[k] / unit_of_length, text[k] / unit_of_length
        width = np.median(distance.pdist(np.vstack([v, t])))

        def kernel(x, y, width=width):
            return pairwise.rbf_kernel(x, y, gamma=1 / (2 * width**2))

        # torch's median of an even number is the lower one of the two in the middle
        assert gaps.mmd(vision, text).per_layer[k] == pytest.approx(unbiased(kernel, v, t), rel=2e-3)


def test_cmmd_against_scikit_learns_kernel_and_close_to_ten_squared_gaps():
    vision, text = rows()
    gamma = 1 / (2 * 10**2)
    for k in range(LAYERS):
        v, t = unit(vision[k]), unit(text[k])
        expected = 1000 * unbiased(lambda x, y: pairwise.rbf_kernel(x, y, gamma=gamma), v, t)
        assert gaps.cmmd(vision, text).per_layer[k] == pytest.approx(expected, rel=1e-9)
        blocks = [pairwise.rbf_kernel(*pair, gamma=gamma).mean() for pair in ((v, v), (t, t), (v, t))]
        biased = 1000 * (blocks[0] + blocks[1] - 2 * blocks[2])
        gap = gaps.modality_gap(vision, text).per_layer[k]
        assert biased == pytest.approx(10 * gap**2, rel=0.02)


def test_kid_against_torchmetrics():
    vision, text = rows(n=30)  # it wants as many rows of both
    for k in range(LAYERS):
        scale = text.shape[2] ** 0.5 / np.linalg.norm(text[k], axis=1).mean()
        expected = poly_mmd(torch.tensor(vision[k] * scale), torch.tensor(text[k] * scale), degree=3, gamma=None)
        assert gaps.kid(vision, text).per_layer[k] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("n, m", [(40, 30), (30, 30), (7, 50)])
def test_wasserstein_in_one_dimension_against_scipy(n, m):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(m, 3))
    found, _ = clouds.wasserstein_1d(torch.tensor(x), torch.tensor(y))
    expected = [stats.wasserstein_distance(x[:, c], y[:, c]) for c in range(3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_what_a_mean_slice_sees_of_it():
    _, text = rows(m=60, d=5)
    shift = np.array([3.0, 0, 0, 0, 0])
    unit_of_length = np.linalg.norm(text, axis=2).mean(1)
    mean = math.gamma(5 / 2) / math.gamma(3) / math.sqrt(math.pi)  # of |θ·e|
    found = gaps.sliced_wasserstein(text + shift, text, directions=20_000).per_layer
    assert found == pytest.approx(3 * mean / unit_of_length, rel=0.02)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_symmetric_kl_against_torch_distributions(ridge):
    vision, text = rows()
    found = gaps.symmetric_kl(vision, text, ridge=ridge).per_layer
    for k in range(LAYERS):
        covariances = [np.cov(side[k].T) for side in (vision, text)]
        added = ridge * (np.trace(covariances[0]) + np.trace(covariances[1])) / 2 / 6 * np.eye(6)
        p, q = (
            MultivariateNormal(torch.tensor(side[k].mean(0)), torch.tensor(c + added))
            for side, c in zip((vision, text), covariances, strict=True)
        )
        assert found[k] == pytest.approx(float(kl_divergence(p, q) + kl_divergence(q, p)) / 2, rel=1e-9)


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0])
def test_probe_auc_of_two_gaussians_is_the_normal_integral(apart):
    rng = np.random.default_rng(2)
    text = rng.normal(size=(1, 3000, 3))
    vision = rng.normal(size=(1, 3000, 3)) + np.array([apart, 0, 0])
    found = gaps.probe_auc(vision, text, max_rows=None).value
    assert found == pytest.approx(stats.norm.cdf(apart / 2**0.5), abs=0.02)


def test_probe_auc_keeps_the_rows_of_a_sample_in_one_fold():
    rng = np.random.default_rng(3)
    # Each sample has a place of its own, and which modality lies above is a coin's choice: only a probe that has seen
    # other rows of the same sample could know.
    places, coins = rng.normal(size=(40, 60)) * 5, rng.choice([-1, 1], size=(40, 60)) * 0.5
    ids = np.repeat(np.arange(40), 8)
    vision = (places + coins)[ids][None] + rng.normal(size=(1, 320, 60)) * 0.01
    text = (places - coins)[ids][None] + rng.normal(size=(1, 320, 60)) * 0.01
    by_sample = gaps.probe_auc(vision, text, samples=(ids, ids), penalty=1e-6).value
    by_row = gaps.probe_auc(vision, text, penalty=1e-6).value
    assert by_row > 0.9
    assert abs(by_sample - 0.5) < 0.2


def test_rmg_against_its_double_sum():
    vision, text = rows(n=30)
    found = gaps.rmg(vision, text, permutations=0).per_layer
    for k in range(LAYERS):
        halves = [pairwise.cosine_distances(*pair) / 2 for pair in (2 * [vision[k]], 2 * [text[k]])]
        match = np.mean([distance.cosine(v, t) / 2 for v, t in zip(vision[k], text[k], strict=True)])
        within = sum(h.sum() / (30 * 29) for h in halves) / 2
        assert found[k] == pytest.approx(match / (within + match), rel=1e-9)


def test_cka_against_its_definition_by_features():
    vision, text = rows(n=30)
    found = gaps.cka(vision, text, permutations=0).per_layer
    for k in range(LAYERS):
        x, y = (side[k] - side[k].mean(0) for side in (vision, text))
        expected = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
        assert found[k] == pytest.approx(expected, rel=1e-10)


def unbiased_hsic(x, y):
    """Song et al., the formula with traces of the Gram matrices without their diagonals."""
    n = len(x)
    k, g = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(g, 0)
    product = k @ g
    total = np.trace(product) + k.sum() * g.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)
    return total / (n * (n - 3))


def test_debiased_cka_against_the_formula_with_traces():
    vision, text = rows(n=30)
    found = gaps.cka_debiased(vision, text, permutations=0).per_layer
    for k in range(LAYERS):
        x, y = vision[k], text[k]
        expected = unbiased_hsic(x, y) / math.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))
        assert found[k] == pytest.approx(expected, rel=1e-8)


def test_svcca_with_all_components_is_the_mean_canonical_correlation():
    vision, text = rows(n=30, d=4)
    found = gaps.svcca(vision, text, permutations=0, variance=1.0).per_layer
    for k in range(LAYERS):
        covariance = np.cov(vision[k].T, text[k].T)
        xx, xy, yy = covariance[:4, :4], covariance[:4, 4:], covariance[4:, 4:]
        squares = linalg.eigvals(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T)).real
        assert found[k] == pytest.approx(np.sqrt(squares).mean(), rel=1e-8)


def test_svcca_counts_the_components_that_hold_the_variance():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(200, 1))
    x = np.hstack([10 * shared, 0.01 * rng.normal(size=(200, 5))])
    y = np.hstack([10 * shared, 0.01 * rng.normal(size=(200, 5))])
    assert gaps.svcca([x], [y], permutations=0, variance=0.99).value == pytest.approx(1, abs=1e-3)
    assert gaps.svcca([x], [y], permutations=0, variance=1.0).value < 0.5


def test_mutual_knn_has_no_interval_where_all_that_are_left_are_neighbours_of_all():
    vision, text = ([layer[:7] for layer in side] for side in rows(n=30))
    options = {"permutations": 0, "confidence": 0.95, "neighbours": 5}
    found = gaps.mutual_knn(vision, text, **options)
    assert found.interval is None and found.settings["no_interval"] == "7 pairs are too few to leave one out"
    vision, text = ([layer[:8] for layer in side] for side in rows(n=30))
    assert gaps.mutual_knn(vision, text, **options).interval.standard_error > 0


def test_mutual_knn_against_scikit_learn():
    vision, text = rows(n=30)
    found = gaps.mutual_knn(vision, text, permutations=0, neighbours=4).per_layer
    for k in range(LAYERS):
        sets = []
        for side in (vision[k], text[k]):
            near = NearestNeighbors(n_neighbors=5, metric="cosine").fit(side).kneighbors(return_distance=False)
            sets.append(NearestNeighbors(n_neighbors=4, metric="cosine").fit(side).kneighbors(return_distance=False))
            assert near.shape == (30, 5)
        expected = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(*sets, strict=True)])
        assert found[k] == pytest.approx(expected, rel=1e-12)


def test_pairs_are_the_means_of_their_samples_rows():
    vision, text = rows(n=40, m=30)
    samples = samples_of(40, 30)
    pooled = [
        np.stack([np.stack([layer[ids == i].mean(0) for i in range(10)]) for layer in side])
        for side, ids in zip((vision, text), samples, strict=True)
    ]
    shuffled = np.random.default_rng(0).permutation(40)
    for name in OF_PAIRS:
        options = {"neighbours": 3} if name == "mutual_knn" else {}
        expected = value(name, *pooled, **options).per_layer
        found = value(name, vision[:, shuffled], text, samples=(samples[0][shuffled], samples[1]), **options)
        assert found.per_layer == pytest.approx(expected, rel=1e-9)
        assert found.rows == {"pairs": 10}


def test_mir_and_norm_only_are_the_librarys():
    vision, text = rows()
    expected = modality_integration_rate(vision, text)
    assert gaps.mir(vision, text).value == expected.value
    assert gaps.mir(vision, text).per_layer == pytest.approx(expected.per_layer)
    assert gaps.norm_only(vision, text).value == pytest.approx(expected.norm_only, rel=1e-12)


def test_fd_infinity_of_two_parts_is_twice_the_whole_less_the_mean_half():
    vision, text = rows(n=200, m=200)
    ids = np.repeat(np.arange(20), 10)
    found = gaps.fd_infinity(vision, text, samples=(ids, ids), parts=(1, 2), seed=4)
    deal = torch.randperm(20, generator=torch.Generator().manual_seed(4)).numpy() % 2
    for k in range(LAYERS):
        kept = []
        for side in (vision[k], text[k]):
            norms = torch.tensor(np.linalg.norm(side, axis=1))
            inside = (norms - norms.median()).abs() <= 3 * norms.std()
            kept.append((side[inside], deal[ids][inside]))
        halves = [frechet_distance(*(side[part == half] for side, part in kept)).total for half in (0, 1)]
        whole = frechet_distance(*(side for side, _ in kept)).total
        scale = 1 / np.linalg.norm(text[k], axis=1).mean()
        assert found.per_layer[k] == pytest.approx((2 * whole - np.mean(halves)) * scale**2, rel=1e-6)


def test_fd_infinity_takes_most_of_the_bias_away():
    rng = np.random.default_rng(5)
    cloud = rng.normal(size=(2, 20, 200, 8))  # 20 draws of two clouds from one Gaussian: the distance is 0
    drawn = [gaps.fd_infinity(v[None], t[None]).per_layer[0] for v, t in zip(*cloud, strict=True)]
    plain = [gaps.mir(v[None], t[None]).per_layer[0] for v, t in zip(*cloud, strict=True)]
    assert abs(np.mean(drawn)) < np.mean(plain) / 4


def test_measures_of_a_task_against_their_definitions():
    rng = np.random.default_rng(6)
    own, permuted = rng.integers(2, size=50), rng.integers(2, size=(3, 50))
    found = gaps.perceptual_score(own, permuted)
    assert found.value == pytest.approx(own.mean() - permuted.mean())
    assert found.interval.standard_error == pytest.approx(stats.sem(own - permuted.mean(0)))
    scores, right = rng.normal(size=(20, 4)), rng.integers(4, size=20)
    scores[right < 2, 3] = -np.inf
    expected = torch.tensor(scores).softmax(1)[torch.arange(20), torch.tensor(right)].mean()
    found = gaps.soft_discrimination(scores, right)
    assert found.value == pytest.approx(float(expected), rel=1e-12)
    assert found.settings["chance"] == pytest.approx(np.where(right < 2, 1 / 3, 1 / 4).mean())
    assert gaps.soft_discrimination(np.zeros((5, 4)), np.zeros(5, dtype=int)).value == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# What does not change a value, and what does

SEEDS = st.integers(0, 10_000)


def few(test):
    return settings(max_examples=5, deadline=None)(given(seed=SEEDS)(test))


# A slice looks from fixed directions, so a rotation moves it a little.
@pytest.mark.parametrize("name", [name for name in [*OF_ROWS, *OF_PAIRS] if name != "sliced_wasserstein"])
@few
def test_a_rotation_of_both_clouds_changes_nothing(name, seed):
    vision, text = rows(seed, n=30)
    rotation = stats.ortho_group.rvs(6, random_state=seed)
    expected, found = value(name, vision, text), value(name, vision @ rotation, text @ rotation)
    # The probe's columns are standardised, which looks at the axes.
    tolerance = {"abs": 0.1} if name == "probe_auc" else {"rel": 1e-6, "abs": 1e-9}
    assert found.per_layer == pytest.approx(expected.per_layer, **tolerance)


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_PAIRS])
@few
def test_a_common_scale_changes_nothing(name, seed):
    vision, text = rows(seed, n=30)
    expected, found = value(name, vision, text), value(name, 7 * vision, 7 * text)
    assert found.per_layer == pytest.approx(expected.per_layer, rel=1e-6, abs=1e-9)


BLIND_TO_VISION_NORMS = {"modality_gap", "ima", "a_score", "cmmd", "probe_auc", *OF_PAIRS}


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_PAIRS])
@few
def test_longer_vision_rows_are_seen_by_those_that_say_so(name, seed):
    vision, text = rows(seed, n=30)
    if name == "probe_auc":
        vision = vision - vision.mean(1, keepdims=True) + 30  # a plane finds them before and after
    same = value(name, 5 * vision, text).per_layer == pytest.approx(value(name, vision, text).per_layer, rel=1e-6)
    assert same == (name in BLIND_TO_VISION_NORMS)


SHIFTED = {"mmd", "symmetric_kl", "cka", "cka_debiased", "svcca"}


@pytest.mark.parametrize("name", sorted(SHIFTED))
@few
def test_a_common_shift_changes_nothing_where_no_point_is_special(name, seed):
    vision, text = rows(seed, n=30)
    expected, found = value(name, vision, text), value(name, vision + 3, text + 3)
    assert found.per_layer == pytest.approx(expected.per_layer, rel=1e-6, abs=1e-9)


@few
def test_kl_without_a_ridge_does_not_change_under_any_affine_map(seed):
    vision, text = rows(seed)
    rng = np.random.default_rng(seed)
    change = rng.normal(size=(6, 6)) + 3 * np.eye(6)
    expected = gaps.symmetric_kl(vision, text, ridge=0).per_layer
    found = gaps.symmetric_kl(vision @ change + 1, text @ change + 1, ridge=0).per_layer
    assert found == pytest.approx(expected, rel=1e-6)


@few
def test_a_scale_for_each_side_does_not_change_measures_of_pairs(seed):
    vision, text = rows(seed, n=30)
    for name in OF_PAIRS:
        expected, found = value(name, vision, text), value(name, 3 * vision, 0.2 * text)
        assert found.per_layer == pytest.approx(expected.per_layer, rel=1e-9)


@few
def test_the_order_of_the_rows_does_not_matter_and_that_of_pairs_does(seed):
    rng = np.random.default_rng(seed)
    vision, text = rows(seed, n=30)
    order = rng.permutation(30)
    for name in ("modality_gap", "ima", "a_score", "mmd", "cmmd", "kid", "sliced_wasserstein", "symmetric_kl", "mir"):
        expected = value(name, vision, text).per_layer
        assert value(name, vision[:, order], text).per_layer == pytest.approx(expected, rel=1e-6, abs=1e-9), name
    for name in OF_PAIRS:
        expected = value(name, vision, vision).per_layer
        together = value(name, vision[:, order], vision[:, order]).per_layer
        assert together == pytest.approx(expected, rel=1e-6, abs=1e-9), name
        assert value(name, vision[:, order], vision).per_layer != pytest.approx(expected, rel=1e-3, abs=1e-3), name


@few
def test_identical_clouds_have_no_gap(seed):
    cloud, _ = rows(seed)
    best = {
        "modality_gap": 0, "ima": 1, "a_score": 1, "sliced_wasserstein": 0, "symmetric_kl": 0,
        "rmg": 0, "cka": 1, "cka_debiased": 1, "svcca": 1, "mutual_knn": 1,
    }  # fmt: skip
    for name, expected in best.items():
        assert value(name, cloud, cloud).per_layer == pytest.approx([expected] * LAYERS, abs=1e-6), name
    for name in ("mmd", "cmmd", "kid"):  # without bias, that of the same rows is a little below 0
        assert (value(name, cloud, cloud).per_layer <= 1e-12).all()
    assert (gaps.mir(cloud, cloud).per_layer < 1e-6).all()
    assert gaps.probe_auc(cloud, cloud, samples=(np.arange(40), np.arange(40))).value == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("name", OF_ROWS)
def test_the_further_the_clouds_are_apart_the_worse_by_the_direction_that_is_declared(name):
    rng = np.random.default_rng(7)
    text = rng.normal(size=(1, 200, 4)) + 2
    start = rng.normal(size=(1, 200, 4)) + 2
    way = np.array([1.0, -1.0, 1.0, -1.0])
    found = [value(name, start + step * way, text).value for step in (0, 1, 2)]
    sign = 1 if MEASURES[name].direction == "higher" else -1
    assert sign * found[0] > sign * found[1] > sign * found[2]


@pytest.mark.parametrize("name", OF_PAIRS)
def test_the_noisier_the_pairs_the_worse_by_the_direction_that_is_declared(name):
    rng = np.random.default_rng(8)
    text = rng.normal(size=(1, 80, 5))
    noise = rng.normal(size=(1, 80, 5))
    found = [value(name, text + level * noise, text).value for level in (0.1, 1, 10)]
    sign = 1 if MEASURES[name].direction == "higher" else -1
    assert sign * found[0] > sign * found[1] > sign * found[2]


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


@pytest.mark.parametrize("name", OF_PAIRS)
def test_random_pairs_are_calibrated_to_nothing_and_perfect_ones_to_one(name):
    rng = np.random.default_rng(9)
    vision, text = rng.normal(size=(2, 1, 60, 20))
    found = MEASURES[name].function(vision, text, permutations=100).calibration
    assert abs(found.value) < 0.1
    assert 0.01 < found.p_value[0] < 0.999
    perfect = MEASURES[name].function(text, text, permutations=100).calibration
    assert perfect.value == pytest.approx(1, abs=1e-9)
    assert perfect.p_value[0] == pytest.approx(1 / 101)


def test_raw_values_of_random_pairs_show_why_to_calibrate():
    rng = np.random.default_rng(10)
    vision, text = rng.normal(size=(2, 1, 60, 40))
    assert gaps.cka(vision, text).value > 0.3
    assert gaps.svcca(vision, text).value > 0.6
    assert abs(gaps.cka_debiased(vision, text).value) < 0.1
    knn = gaps.mutual_knn(vision, text)
    assert knn.calibration.null_mean[0] == pytest.approx(10 / 59, abs=0.01)


def test_calibration_is_the_null_of_shuffled_texts():
    vision, text = rows(n=30)
    found = gaps.cka(vision, text, permutations=50, seed=3).calibration
    rng = np.random.default_rng(0)
    null = [gaps.cka(vision, text[:, rng.permutation(30)], permutations=0).per_layer for _ in range(200)]
    assert found.null_mean == pytest.approx(np.mean(null, axis=0), rel=0.15)
    assert found.null_std == pytest.approx(np.std(null, axis=0), rel=0.4)


# ---------------------------------------------------------------------------------------------------------------------
# One signature


def test_the_registry_says_everything_of_every_measure():
    assert {measure.needs for measure in MEASURES.values()} == {ROWS, PAIRS, MODEL, TASK}
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert measure.function is getattr(gaps, name)
        assert measure.direction in ("lower", "higher") and measure.title
        assert "?" in measure.function.__doc__, "the question that it asks"


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_PAIRS])
def test_all_take_numpy_and_torch_half_precision_lists_and_samples(name):
    vision, text = rows(n=30)
    samples = samples_of(30, 30, 15)
    expected = value(name, vision, text, samples=samples)
    assert expected.per_layer.shape == (LAYERS,) and expected.measure == name
    assert expected.direction == MEASURES[name].direction and expected.needs == MEASURES[name].needs
    as_torch = [list(torch.tensor(side)) for side in (vision, text)]
    found = value(name, *as_torch, samples=tuple(map(torch.tensor, samples)))
    assert found.per_layer == pytest.approx(expected.per_layer, rel=1e-9)
    half = value(name, *(torch.tensor(side).half() for side in (vision, text)), samples=samples)
    assert half.per_layer == pytest.approx(expected.per_layer, rel=0.05, abs=0.05)
    assert set(expected.to_dict()) >= {"measure", "value", "per_layer", "direction", "needs", "rows", "settings"}


def test_a_bounded_part_of_the_rows_is_drawn_and_told():
    vision, text = rows(n=3000, m=2500)
    bounded = gaps.kid(vision, text)
    assert bounded.rows == {"vision": 1000, "text": 1000}
    assert bounded.value == gaps.kid(vision, text).value != gaps.kid(vision, text, seed=1).value
    whole = gaps.kid(vision, text, max_rows=None)
    assert whole.rows == {"vision": 3000, "text": 2500}
    assert bounded.value == pytest.approx(whole.value, rel=0.5)
    assert gaps.a_score(vision, text, max_rows=7).rows == {"vision": 7, "text": 7}


def test_rows_of_zero_count_as_no_direction():
    vision, text = rows()
    assert gaps.modality_gap(0 * vision, text).value == pytest.approx(gaps.modality_gap(text, 0 * text).value)
    assert gaps.ima(0 * vision, text).value == 0
    assert gaps.cka([np.ones((9, 2))], [np.ones((9, 2))], permutations=3).value == 0
    varied = np.random.default_rng(0).normal(size=(9, 2))
    assert gaps.mutual_knn([np.ones((9, 2))], [varied], neighbours=2, permutations=3).value == 0
    assert gaps.mutual_knn([varied], [varied], neighbours=2, permutations=3).value == 1


BAD = [
    ("ima", {"vision": "nan"}, r"layer 2, vision row 3 of sample 3: the hidden state holds NaN"),
    ("mmd", {"text": 0.0}, "every text row has norm zero"),
    ("cka", {"samples": None, "n": 40}, "40 vision rows and 30 text rows; pass samples"),
    ("cka", {"samples": (np.arange(30), np.arange(30) % 29)}, "sample 29 has rows of one modality only"),
    ("rmg", {"samples": (np.arange(29), np.arange(30))}, "expected 30 whole numbers, one a row"),
    ("rmg", {"samples": 3}, "expected a pair of arrays"),
    ("mutual_knn", {"neighbours": 30}, "30 pairs; it needs at least 31"),
    ("mutual_knn", {"neighbours": 0}, "at least 1"),
    ("svcca", {"variance": 0}, "variance must lie in"),
    ("symmetric_kl", {"ridge": 0.0, "vision": 1.0}, "layer 1: a covariance is singular"),
    ("probe_auc", {"samples": (np.arange(30) % 3, np.arange(30) % 3)}, "3 samples are too few for 5 folds"),
    ("fd_infinity", {"parts": (2, 2)}, "two different numbers"),
    ("fd_infinity", {"parts": (1, 30)}, "30 samples are too few"),
    ("sliced_wasserstein", {"directions": 0}, "at least one direction"),
    ("kid", {"max_rows": 1}, "max_rows must be at least 2"),
]


@pytest.mark.parametrize("name, change, said", BAD, ids=[f"{name}-{said[:18]}" for name, _, said in BAD])
def test_bad_input_is_refused_in_a_sentence(name, change, said):
    change = dict(change)
    vision, text = rows(n=change.pop("n", 30))
    for modality, side in (("vision", vision), ("text", text)):
        told = change.pop(modality, None)
        if told == "nan":
            side[1, 3, 2] = np.nan
        elif told is not None:
            side[:] = told
    options = {"samples": (np.arange(30), np.arange(30))} | change
    with pytest.raises(MirlibError, match=said):
        MEASURES[name].function(vision, text, **options)


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_PAIRS])
def test_layers_that_do_not_belong_together_are_refused_by_all(name):
    vision, text = rows(n=30)
    with pytest.raises(MirlibError, match="vision has 2 layers and text has 1"):
        MEASURES[name].function(vision, text[:1])
    with pytest.raises(MirlibError, match="6 dimensions and text rows 5"):
        MEASURES[name].function(vision, text[:, :, :5])


def test_measures_of_a_task_refuse_what_is_no_answer():
    with pytest.raises(MirlibError, match=r"got \(3,\) and \(1, 2\)"):
        gaps.perceptual_score([1, 1, 0], [1, 0])
    with pytest.raises(MirlibError, match="between"):
        gaps.perceptual_score([1, 1, 2], [1, 0, 0])
    with pytest.raises(MirlibError, match="from 0 to 1"):
        gaps.soft_discrimination([[0.0, 1.0]], [2])
    with pytest.raises(MirlibError, match="must be finite"):
        gaps.soft_discrimination([[0.0, -np.inf]], [1])
