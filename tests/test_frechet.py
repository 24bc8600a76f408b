"""The Fréchet distance: closed forms, laws, two independent implementations beside it, precision, and moments."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid

from mirlib import MirlibError, frechet_distance
from mirlib.frechet import (
    Moments,
    add_rows,
    as_rows,
    first_order_bias,
    frechet_distance_from_moments,
    trace_sqrt_product,
)


def gaussian(n, d, seed=0, scale=1.0, mean=0.0):
    return np.random.default_rng([seed, n, d]).normal(mean, scale, (n, d))


def mixed(n, d, seed=0):
    """Correlated rows whose dimensions differ in scale."""
    rng = np.random.default_rng([seed, n, d])
    return rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(1, 20, d)) + rng.normal(size=d)


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng([seed, d]).normal(size=(d, d)))[0]


def rows_with(mean, covariance, n, seed=0):
    """n rows whose sample mean and sample covariance are the given ones, up to rounding."""
    covariance = np.atleast_2d(np.asarray(covariance, dtype=float))
    noise = np.random.default_rng(seed).normal(size=(n, len(covariance)))
    white = np.linalg.qr(noise - noise.mean(axis=0))[0] * math.sqrt(n - 1)
    values, vectors = np.linalg.eigh(covariance)
    return white @ (vectors * np.sqrt(values.clip(0))).T + np.asarray(mean)


def factor(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows - rows.mean(axis=0)) / math.sqrt(len(rows) - 1)


def by_svd(x, y):
    """Covariance term by singular values of the cross-Gram matrix of the rows: never forms a covariance."""
    a, b = factor(x), factor(y)
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return (a**2).sum() + (b**2).sum() - 2 * nuclear


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize(("m1", "s1", "m2", "s2"), [(0, 1, 0, 1), (0, 1, 3, 1), (1, 2, -4, 7), (5, 1e-3, 5, 1e3)])
def test_one_dimension(m1, s1, m2, s2):
    got = frechet_distance(rows_with([m1], [[s1**2]], 30), rows_with([m2], [[s2**2]], 50, seed=1))
    assert got.mean_term == pytest.approx((m1 - m2) ** 2, rel=1e-12, abs=1e-24)
    assert got.covariance_term == pytest.approx((s1 - s2) ** 2, rel=1e-9, abs=1e-14)
    assert got.total == got.mean_term + got.covariance_term


@pytest.mark.parametrize("d", [2, 5, 33])
def test_diagonal_covariances_add_up_over_the_dimensions(d):
    s1, s2 = np.geomspace(0.1, 10, d), np.linspace(3, 1, d)
    x, y = rows_with(np.zeros(d), np.diag(s1**2), 200), rows_with(np.ones(d), np.diag(s2**2), 150, seed=1)
    got = frechet_distance(x, y)
    assert got.mean_term == pytest.approx(d, rel=1e-12)
    assert got.covariance_term == pytest.approx(((s1 - s2) ** 2).sum(), rel=1e-11)


@pytest.mark.parametrize("d", [3, 24])
def test_commuting_covariances_subtract_their_roots(d):
    vectors, a, b = rotation(d), np.geomspace(0.01, 9, d), np.linspace(4, 0.5, d)
    x = rows_with(np.zeros(d), vectors @ np.diag(a) @ vectors.T, 100)
    y = rows_with(np.zeros(d), vectors @ np.diag(b) @ vectors.T, 100, seed=1)
    assert frechet_distance(x, y).covariance_term == pytest.approx(((a**0.5 - b**0.5) ** 2).sum(), rel=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_two_by_two_has_a_formula_without_eigenvalues(seed):
    rng = np.random.default_rng(seed)
    a, b = (m @ m.T for m in rng.normal(size=(2, 2, 2)))
    # The two eigenvalues p, q of ΣxΣy have (√p + √q)² = p + q + 2√(pq).
    trace = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert trace_sqrt_product(torch.tensor(a), torch.tensor(b)) == pytest.approx(trace, rel=1e-10)
    got = frechet_distance(rows_with([0, 0], a, 20), rows_with([1, 2], b, 25, seed=1))
    assert got.mean_term == pytest.approx(5, rel=1e-12)
    assert got.covariance_term == pytest.approx(np.trace(a) + np.trace(b) - 2 * trace, rel=1e-9)


def test_two_point_sets_on_one_line():
    """Rank 1 against rank 1 in many dimensions: ‖A Bᵀ‖_* = |cos| · σ_x σ_y."""
    u, v = rotation(20)[:2]
    for angle in (0.0, 0.3, math.pi / 2):
        w = math.cos(angle) * u + math.sin(angle) * v
        x, y = np.outer([-1, 0, 1], u), np.outer([-2, 0, 2], w)  # variances 1 and 4
        expected = 1 + 4 - 2 * abs(math.cos(angle)) * 2
        assert frechet_distance(x, y).covariance_term == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Laws


SHAPES = [(2, 2), (3, 1), (10, 10), (11, 10), (40, 7), (7, 40), (200, 30), (5, 128)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_identical_sets_are_at_distance_zero(n, d):
    x = mixed(n, d)
    scale = np.var(x, axis=0).sum()
    got = frechet_distance(x, x.copy())
    assert got.mean_term == 0.0
    assert 0 <= got.covariance_term <= 1e-12 * scale


def test_identical_sets_are_at_distance_zero_with_massive_activations():
    x = gaussian(600, 64)
    x[:, 17] *= 1e4
    assert frechet_distance(x, x).total <= 1e-12 * np.var(x, axis=0).sum()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_symmetry(n, d):
    x, y = mixed(n, d), mixed(max(2, n - 1), d, seed=1)
    assert np.allclose(frechet_distance(x, y), frechet_distance(y, x), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (6, 50)])
def test_shifts_rotations_and_permutations(n, d):
    x, y = mixed(n, d), mixed(n + 3, d, seed=1)
    expected = frechet_distance(x, y)
    together = np.random.default_rng(2).normal(size=d) * 30
    q = rotation(d, seed=3)
    order = np.random.default_rng(4).permutation(d)
    for name, f in {
        "common shift": lambda z: z + together,
        "rotation": lambda z: z @ q,
        "order of the dimensions": lambda z: z[:, order],
        "mirror": lambda z: -z,
    }.items():
        assert np.allclose(frechet_distance(f(x), f(y)), expected, rtol=1e-9), name
    shuffled = frechet_distance(x[::-1], np.roll(y, 5, axis=0))
    assert np.allclose(shuffled, expected, rtol=1e-11), "order of the rows"
    moved = frechet_distance(x + together, y)
    assert moved.covariance_term == pytest.approx(expected.covariance_term, rel=1e-9)
    delta = x.mean(axis=0) + together - y.mean(axis=0)
    assert moved.mean_term == pytest.approx(delta @ delta, rel=1e-12)


@pytest.mark.parametrize("c", [1e-8, 0.5, -3.0, 1e6])
@pytest.mark.parametrize(("n", "d"), [(30, 4), (4, 30)])
def test_a_common_factor_multiplies_by_its_square(n, d, c):
    x, y = mixed(n, d), mixed(n, d, seed=1)
    assert np.allclose(frechet_distance(c * x, c * y), np.multiply(c**2, frechet_distance(x, y)), rtol=1e-10, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 12), seed=st.integers(0, 2**20),
    scale=st.sampled_from([1e-6, 1.0, 1e5]), rank=st.integers(0, 3),
)  # fmt: skip
def test_never_negative_never_nan(n, m, d, seed, scale, rank):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), scale * rng.normal(size=(m, d))
    if rank:  # few directions, the rest exactly empty
        x[:, rank:] = 0
        y[:, :-rank] = 0
    got = frechet_distance(x, y)
    assert all(math.isfinite(part) and part >= 0 for part in got)
    upper = (np.linalg.norm(x - y.mean(axis=0), axis=1).max() + np.linalg.norm(y - y.mean(axis=0), axis=1).max()) ** 2
    assert got.total <= 2 * upper * (1 + 1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (5, 40)])
def test_bounds_by_the_norms(n, d):
    """(√E‖x‖² − √E‖y‖²)² ≤ d² ≤ (√E‖x‖² + √E‖y‖²)² for the moments with divisor n."""
    for seed in range(10):
        x, y = mixed(n, d, seed), 3 * mixed(n, d, seed + 100)
        population = math.sqrt((n - 1) / n)
        x, y = (
            (z - z.mean(axis=0)) / population + z.mean(axis=0) for z in (x, y)
        )  # covariance with n − 1 becomes that with n
        a, b = (math.sqrt(Moments.of(z).mean_square_norm - Moments.of(z).scatter.trace() / n
                          + Moments.of(z).covariance.trace()) for z in (x, y))  # fmt: skip
        assert (a - b) ** 2 <= frechet_distance(x, y).total * (1 + 1e-12)
        assert frechet_distance(x, y).total <= (a + b) ** 2 * (1 + 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Peers: scipy.linalg.sqrtm and torchmetrics, which do something else to get the same number


def by_sqrtm(x, y):
    cx, cy = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    delta = x.mean(axis=0) - y.mean(axis=0)
    with warnings.catch_warnings():
        # SciPy warns that a singular matrix may have no root; whether its trace is right is what the test checks.
        warnings.simplefilter("ignore", category=scipy.linalg.LinAlgWarning)
        root = scipy.linalg.sqrtm(cx @ cy)
    return delta @ delta + np.trace(cx) + np.trace(cy) - 2 * np.trace(np.real(root))


def by_torchmetrics(x, y):
    x, y = torch.tensor(x), torch.tensor(y)
    return float(
        _compute_fid(x.mean(0), x.T.cov().reshape(x.shape[1], -1), y.mean(0), y.T.cov().reshape(x.shape[1], -1))
    )


@pytest.mark.parametrize("d", [2, 5, 16, 64, 128])
@pytest.mark.parametrize("n", [2, 8, 65, 150, 512])
def test_peers_agree(n, d):
    x, y = mixed(n, d), 0.5 * mixed(n + 1, d, seed=1)
    got = frechet_distance(x, y).total
    full_rank = n > d + 1
    # Where the product is singular, both peers take roots of eigenvalues that are rounding noise (1e-16 → 1e-8 each).
    tolerance = 1e-9 if full_rank else 1e-6
    assert got == pytest.approx(by_torchmetrics(x, y), rel=tolerance)
    if full_rank:
        assert got == pytest.approx(by_sqrtm(x, y), rel=tolerance)
    assert got == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + by_svd(x, y), rel=1e-10)


def constant_dimensions(x, y):
    x[:, ::3], y[:, ::3] = 7.0, 7.0
    return x, y


def constant_on_one_side(x, y):
    y[:, 1] = -2.0
    return x, y


def rank_one(x, y):
    return np.outer(x[:, 0], y[0]), y


def both_rank_one(x, y):
    return np.outer(x[:, 0], y[0]), np.outer(y[:, 0], x[0])


def repeated_dimensions(x, y):
    return np.concatenate([x, x], axis=1), np.concatenate([y, y], axis=1)


def massive_activation(x, y):
    x[:, 3] *= 1e4
    y[:, 3] *= 1e4
    return x, y


def massive_activation_on_one_side(x, y):
    x[:, -1] *= 1e4
    return x, y


def massive_direction(x, y):
    """Huge along no axis in particular."""
    direction = rotation(x.shape[1], seed=9)[0]
    return x + 1e4 * np.outer(x[:, 0], direction), y + 1e4 * np.outer(y[:, 0], direction)


def massive_mean(x, y):
    return x + 1e4, y + 1e4


@pytest.mark.parametrize("n", [400, 20], ids=["many rows", "few rows"])
@pytest.mark.parametrize(
    "change",
    [
        constant_dimensions, constant_on_one_side, rank_one, both_rank_one, repeated_dimensions, massive_activation,
        massive_activation_on_one_side, massive_direction, massive_mean,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_awkward_rows_keep_nine_digits(n, change):
    """Of the covariance term, relative to the traces that it is the difference of, and of the trace term."""
    x, y = change(gaussian(n, 32), gaussian(n - 3, 32, seed=1, scale=1.5))
    traces = (factor(x) ** 2).sum() + (factor(y) ** 2).sum()
    got = frechet_distance(x, y).covariance_term
    assert abs(got - by_svd(x, y)) <= 1e-9 * traces
    if change is massive_activation:
        # Dimension 3 is nearly alone in the traces, and nearly cancels: the other 31 are what is left. They must not
        # drown in its rounding noise (1e-8 of the traces, before the dimensions were put in order).
        assert got == pytest.approx(by_svd(x, y), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 300), (300, 20), (20, 25), (33, 300), (2, 2)])
@pytest.mark.parametrize("massive", [1.0, 1e4])
def test_singular_covariances_lose_nothing_against_the_rows(n, m, massive):
    """A stream keeps moments only; where they are singular the value must be that of the rows all the same."""
    x, y = gaussian(n, 32), gaussian(m, 32, seed=1, scale=1.5)
    x[:, 5] *= massive
    y[:, 5] *= massive
    got = frechet_distance_from_moments(Moments.of(x), Moments.of(y))[0].covariance_term
    assert got == pytest.approx(by_svd(x, y), rel=1e-9)


SPECTRA = ["same axes", "other axes", "falling", "rising", "spike", "identity", "blocks"]


def factors_of(shape, d, condition):
    """Factors A and B of two covariances AᵀA and BᵀB with a condition of up to ``condition``."""
    s = np.geomspace(1, condition**-0.5, d)
    q, p, a, b = rotation(d, 1), rotation(d, 2), np.diag(s), np.diag(s)
    if shape == "same axes":
        a, b = a @ q, b @ q
    elif shape == "other axes":
        a, b = a @ q, b @ p
    elif shape == "falling":
        b = np.diag(s * np.linspace(1, 2, d))
    elif shape == "rising":
        a, b = np.diag(s[::-1]), np.diag(s[::-1]) @ (np.eye(d) + 0.1 * np.triu(p))
    elif shape == "spike":
        spike = np.where(np.arange(d) == d // 2, condition**0.5, 1.0)
        a, b = gaussian(d, d, 5) * spike, gaussian(d, d, 6) * spike
    elif shape == "identity":
        a, b = a @ q, np.eye(d)
    elif shape == "blocks":  # large in one half for x, in the other for y
        a, b = np.diag(np.concatenate([s[::2], s[::-2]])), np.diag(np.concatenate([s[::-2], s[::2]])) @ q
    return a, b


def covariances_of(shape, d, condition):
    """Two covariances and the trace term, by singular values of their factors."""
    a, b = factors_of(shape, d, condition)
    return torch.tensor(a.T @ a), torch.tensor(b.T @ b), np.linalg.svd(a @ b.T, compute_uv=False).sum()


@pytest.mark.parametrize("d", [8, 64, 128])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("shape", SPECTRA)
def test_trace_term_against_svd_up_to_a_condition_of_1e12(d, condition, shape):
    x, y, expected = covariances_of(shape, d, condition)
    got = trace_sqrt_product(x, y)
    assert abs(got - expected) <= 1e-9 * expected, f"relative error {abs(got - expected) / expected:.1e}"


# ---------------------------------------------------------------------------------------------------------------------
# What goes in


KINDS = [("torch", "bfloat16"), *((kind, f"float{n}") for n in (16, 32, 64) for kind in ("numpy", "torch"))]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize(("n", "d"), [(60, 8), (8, 60)])
def test_dtypes_lose_only_what_their_rounding_lost(kind, dtype, n, d):
    x, y = (torch.tensor(mixed(n, d, seed)).to(getattr(torch, dtype)) for seed in (0, 1))
    expected = frechet_distance(x.double(), y.double())  # the same rounded rows, widened beforehand
    if kind == "numpy":
        x, y = x.numpy(), y.numpy()
    before = (x.copy(), y.copy()) if kind == "numpy" else (x.clone(), y.clone())
    assert frechet_distance(x, y) == expected
    assert (x == before[0]).all() and (y == before[1]).all(), "the input was changed"
    assert frechet_distance(x, torch.tensor(mixed(n, d, 1))).total == pytest.approx(expected.total, rel=0.05)


def test_float16_rows_whose_squares_overflow():
    x = torch.tensor(gaussian(40, 6)).half() * 1000 + 30000
    assert frechet_distance(x, x + 2000).mean_term == pytest.approx(6 * 2000.0**2, rel=0.02)


def test_kinds_of_arrays_that_are_rows():
    x, y = gaussian(20, 5), gaussian(30, 5, seed=1)
    expected = frechet_distance(x, y)
    wide = np.zeros((20, 15))
    wide[:, ::3] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    tensor = torch.tensor(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # above all PyTorch's about arrays that are not writable
        for name, rows in {
            "not contiguous": wide[:, ::3],
            "column-major": np.asfortranarray(x),
            "backwards": x[::-1][::-1],
            "big-endian": x.astype(">f8"),
            "read-only": frozen,
            "list": x.tolist(),
            "long double": x.astype(np.longdouble),
            "transposed tensor": tensor.T.contiguous().T,
            "tensor that wants a gradient": tensor.clone().requires_grad_(),
        }.items():
            assert np.allclose(frechet_distance(rows, y), expected, rtol=1e-13), name


def test_memory_mapped_arrays(tmp_path):
    x, y = gaussian(20, 5), gaussian(30, 5, seed=1)
    np.save(tmp_path / "x.npy", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert frechet_distance(mapped, y) == frechet_distance(x, y)


def test_rows_are_not_copied_where_they_need_not_be():
    x = gaussian(20, 5)
    assert as_rows(x).data_ptr() == x.ctypes.data
    tensor = torch.tensor(x)
    assert as_rows(tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 2), dtype=int), "expected floating-point numbers, got dtype int64"),
        (torch.ones(3, 2, dtype=torch.int32), "expected floating-point numbers, got dtype torch.int32"),
        (np.ones((3, 2), dtype=complex), "expected floating-point numbers, got dtype complex128"),
        (torch.ones(3, 2, dtype=torch.complex64), "expected floating-point numbers, got dtype torch.complex64"),
        (np.ones((3, 2), dtype=bool), "dtype bool"),
        (np.array([["a", "b"]]), "expected floating-point numbers"),
        (np.ones((3, 2), dtype=object), "dtype object"),
        (None, "expected floating-point numbers"),
        ([[1.0, 2.0], [1.0]], "x: .*rows"),
        (np.ones(3), r"expected a matrix of rows \(n, d\), got shape \(3,\)"),
        (np.ones((2, 3, 2)), r"got shape \(2, 3, 2\)"),
        (np.float64(1), "expected a matrix of rows"),
        (np.ones((0, 2)), r"empty array of shape \(0, 2\)"),
        (np.ones((3, 0)), r"empty array of shape \(3, 0\)"),
        ([], "x: "),
        (np.ones((1, 2)), r"x has 1 row\(s\); a covariance needs at least 2"),
        (np.ones((3, 5)), "x has 5 dimensions and y has 2"),
        (np.array([[0.0, np.nan], [1, 1]]), "x holds NaN or infinite"),
        (np.array([[0.0, np.inf], [1, 1]]), "x holds NaN or infinite"),
        (torch.tensor([[0.0, -math.inf], [1, 1]], dtype=torch.bfloat16), "x holds NaN or infinite"),
    ],
)
def test_rows_that_are_refused(x, message):
    with pytest.raises(MirlibError, match=message):
        frechet_distance(x, np.ones((4, 2)))


def test_the_second_set_is_named_too():
    with pytest.raises(MirlibError, match="y holds NaN"):
        frechet_distance(np.ones((3, 2)), np.full((3, 2), np.nan))
    with pytest.raises(MirlibError, match=r"y has 1 row"):
        frechet_distance(np.ones((3, 2)), np.ones((1, 2)))


# ---------------------------------------------------------------------------------------------------------------------
# Moments


def same(a, b, rtol=1e-11):
    assert a.count == b.count
    scale = float(b.scatter.diagonal().max()) + 1e-300
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=rtol * math.sqrt(scale))
    torch.testing.assert_close(a.scatter, b.scatter, rtol=rtol, atol=rtol * scale)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_moments_of_parts_merge_to_those_of_the_whole(seed, cuts):
    rows = np.random.default_rng(seed).normal(3, 2, (40, 4))
    total = Moments.empty(4)
    for part in np.split(rows, sorted(cuts)):
        total = total.merge(Moments.of(part) if len(part) else Moments.empty(4))
    same(total, Moments.of(rows))
    expected = torch.tensor(np.cov(rows, rowvar=False))
    torch.testing.assert_close(total.covariance, expected, rtol=1e-11, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(sizes=st.tuples(*[st.integers(0, 9)] * 3), seed=st.integers(0, 2**20))
def test_merging_is_associative_and_commutative(sizes, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (Moments.of(rng.normal(size=(n, 3))) if n else Moments.empty(3) for n in sizes)
    same(a.merge(b), b.merge(a))
    same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_no_rows_are_neutral_and_operands_stay_as_they_are():
    a, empty = Moments.of(gaussian(7, 3)), Moments.empty(3)
    mean, scatter = a.mean.clone(), a.scatter.clone()
    other = Moments.of(gaussian(5, 3, seed=1))
    for merged in (a.merge(empty), empty.merge(a)):
        assert merged.count == 7 and torch.equal(merged.mean, mean) and torch.equal(merged.scatter, scatter)
    a.merge(other)
    other.merge(a)
    assert a.count == 7 and torch.equal(a.mean, mean) and torch.equal(a.scatter, scatter)
    assert empty.merge(Moments.empty(3)).count == 0 and empty.mean_square_norm == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_added_in_place_are_those_of_the_weights(dtype):
    """Rows of weight 0 leave no trace, whatever they hold; the rows themselves are not touched."""
    rows = torch.tensor(mixed(60, 5)).to(dtype)
    rows[7] *= 1000
    kept = torch.arange(60) % 7 != 0
    count, mean, scatter = torch.zeros((), dtype=torch.float64), torch.zeros(5).double(), torch.zeros(5, 5).double()
    before = rows.clone()
    for start, stop in ((0, 10), (10, 10), (10, 40), (7, 8), (40, 60)):  # no rows, and one of weight 0 alone, too
        part = slice(start, stop)
        add_rows(count, mean, scatter, rows[part], None if start == 40 else kept[part].double())
    assert torch.equal(rows, before)
    seen = [i for i in range(40) if kept[i]] + list(range(40, 60))
    expected = Moments.of(rows[seen])
    assert (int(count), expected.count) == (len(seen), len(seen))
    assert torch.allclose(mean, expected.mean, rtol=1e-12, atol=0)
    assert torch.allclose(scatter, expected.scatter, rtol=1e-10, atol=1e-9)


def test_a_large_offset_does_not_cancel():
    rows = gaussian(2000, 3)
    expected = np.cov(rows, rowvar=False)
    total = Moments.empty(3)
    for part in np.split(rows + 1e6, 40):
        total = total.merge(Moments.of(part))
    # 1e6 leaves about 1e-10 of each number's own digits; Σxxᵀ − nμμᵀ would have left 1e-4.
    assert np.allclose(total.covariance.numpy(), expected, rtol=0, atol=1e-8)
    naive = ((rows + 1e6).T @ (rows + 1e6) - 2000 * np.outer((rows + 1e6).mean(0), (rows + 1e6).mean(0))) / 1999
    assert abs(naive - expected).max() > 1e-6, "the naive formula is good enough here: this test shows nothing"


def test_moments_say_what_they_cannot():
    one = Moments.of(np.ones((1, 3)))
    assert one.count == 1 and float(one.scatter.abs().max()) == 0
    with pytest.raises(MirlibError, match="at least 2 rows, got 1"):
        _ = one.covariance
    with pytest.raises(MirlibError, match="merge moments of 3 and 4 dimensions"):
        one.merge(Moments.empty(4))
    with pytest.raises(MirlibError, match="3 and 4 dimensions"):
        frechet_distance_from_moments(Moments.of(np.ones((5, 3))), Moments.of(np.ones((5, 4))))


def test_mean_square_norm():
    rows = mixed(17, 5)
    assert Moments.of(rows).mean_square_norm == pytest.approx((rows**2).sum(axis=1).mean(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Bias


@pytest.mark.parametrize(
    ("n", "m", "ratio", "shift"), [(150, 150, 1.0, 0.0), (120, 240, 2.0, 1.0), (400, 100, 0.5, 0.0)]
)
def test_first_order_bias_against_monte_carlo(n, m, ratio, shift):
    d, draws = 6, 400
    rng = np.random.default_rng(n)
    sx, sy = np.linspace(1, 2, d), ratio * np.linspace(2, 1, d)
    true = ((sx - sy) ** 2).sum() + d * shift**2
    found = [
        frechet_distance(rng.normal(size=(n, d)) * sx, rng.normal(size=(m, d)) * sy + shift).total for _ in range(draws)
    ]
    expected = first_order_bias(torch.tensor(sx * sy), (sx**2).sum(), (sy**2).sum(), n, m)
    measured, error = np.mean(found) - true, np.std(found) / math.sqrt(draws)
    assert abs(measured - expected) < 3 * error + 0.03 * expected, (
        f"{measured:.4f} ± {error:.4f} against {expected:.4f}"
    )
    assert error < 0.25 * expected, "too few draws to see a wrong bias"


def test_first_order_bias_of_isotropic_gaussians_is_the_known_one():
    d, n = 7, 100
    assert first_order_bias(torch.ones(d, dtype=torch.float64), d, d, n, n) == pytest.approx(
        2 * d / n + d * (d + 1) / (2 * n), rel=1e-12
    )


def test_bias_comes_with_the_distance():
    x, y = mixed(80, 5), mixed(90, 5, seed=1)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = torch.tensor(np.sqrt(np.linalg.eigvals(a @ b).real))
    _, bias = frechet_distance_from_moments(Moments.of(x), Moments.of(y))
    assert bias == pytest.approx(first_order_bias(roots, np.trace(a), np.trace(b), 80, 90), rel=1e-9)


@pytest.mark.parametrize("exponent", [-490, -300, -270, 300, 490])
@pytest.mark.parametrize(("n", "m", "dim"), [(30, 33, 4), (5, 9, 9), (200, 180, 60)])
def test_the_distance_grows_with_the_square_of_the_scale(exponent, n, m, dim):
    """Multiplied by a power of 2, no digit may change, though the product of two variances is beyond float64."""
    rng = np.random.default_rng(dim)
    x, y = rng.normal(size=(n, dim)) * np.logspace(0, -2, dim), rng.normal(size=(m, dim)) + 1
    expected, found = frechet_distance(x, y), frechet_distance(x * 2.0**exponent, y * 2.0**exponent)
    assert np.allclose(np.array(found) / 2.0**exponent / 2.0**exponent, expected, rtol=1e-14, atol=0)


def test_the_trace_term_of_tiny_and_large_covariances_together():
    tiny, large = torch.eye(3).double() * 2.0**-900, torch.eye(3).double() * 2.0**960
    assert trace_sqrt_product(tiny, large) == 3 * 2.0**30
    assert trace_sqrt_product(tiny, tiny) == 3 * 2.0**-900


@pytest.mark.parametrize("scale", [1e-160, 1e-300, 1e155, 1e300])
def test_what_cannot_be_squared_is_refused(scale):
    rows = np.random.default_rng(0).normal(size=(2, 20, 3)) * scale
    with pytest.raises(MirlibError, match=r"the largest number of [xy] is .*, which float64 cannot square; multiply"):
        frechet_distance(*rows)
