"""Who is to blame: optimal maps, and the costs of single rows, which add up to the Fréchet distance."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mirlib.frechet import Moments, frechet_distance, frechet_distance_from_moments
from mirlib.transport import optimal_maps, row_costs, unreached_spread

GOLDEN = Path(__file__).parent / "golden"


def cloud(n, d, seed, decay=0.7, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -decay
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    return rows @ turn + shift


def added_up(rows, own, other, map):
    """What the Fréchet distance should be."""
    return float(row_costs(rows, own, other, map).mean()) + unreached_spread(own, other, map)


@pytest.mark.parametrize("name", ["wide_gap", "same_scale", "rank_deficient"])
@pytest.mark.parametrize("kind", ["none", "drop"])
def test_costs_add_up_to_the_golden_distances(name, kind):
    """Both ways, with rows that the outlier rule left out, and with fewer rows than dimensions."""
    data = np.load(GOLDEN / f"{name}.npz")
    for k, want in enumerate(data[f"exact_{kind}_fid"]):
        rows = [torch.from_numpy(data[side][k]).double() for side in ("vision", "text")]
        scale = 1 / float(rows[1].norm(dim=1).mean())
        rows = [values * scale for values in rows]
        if kind == "drop":
            norms = [values.norm(dim=1) for values in rows]
            rows = [v[(n - n.median()).abs() <= 3 * n.std()] for v, n in zip(rows, norms, strict=True)]
        vision, text = (Moments.of(values) for values in rows)
        maps = optimal_maps(vision.covariance, text.covariance)
        assert maps.regular == (name != "rank_deficient")
        assert added_up(rows[0], vision, text, maps.forward) == pytest.approx(want, rel=1e-9)
        assert added_up(rows[1], text, vision, maps.backward) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, d", [(900, 700, 32), (40, 700, 64), (700, 40, 64), (40, 30, 64), (2, 50, 8), (65, 64, 64)]
)
def test_costs_add_up_whatever_the_ranks(n, m, d):
    x, y = 3 * cloud(n, d, 0, shift=0.5), cloud(m, d, 1, shift=-0.2)
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    want = frechet_distance(x, y).total
    assert added_up(x, own, other, maps.forward) == pytest.approx(want, rel=1e-9)
    assert added_up(y, other, own, maps.backward) == pytest.approx(want, rel=1e-9)
    assert (unreached_spread(own, other, maps.forward) == 0) == (n > d)
    assert (unreached_spread(other, own, maps.backward) == 0) == (m > d)


def test_each_cost_is_that_of_the_map_by_matrix_roots():
    """Row by row in NumPy, with T from three roots of SciPy's."""
    x, y = cloud(400, 12, 0, shift=0.5).numpy(), 2 * cloud(300, 12, 1).numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    root = sqrtm(a).real
    inverse = np.linalg.inv(root)
    map = inverse @ sqrtm(root @ b @ root).real @ inverse
    want = [
        sum((x.mean(0) - y.mean(0) + np.sqrt(400 / 399) * ((row - x.mean(0)) - map @ (row - x.mean(0)))) ** 2)
        for row in x
    ]
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    assert maps.forward.numpy() == pytest.approx(map, abs=1e-10)
    assert row_costs(torch.from_numpy(x), own, other, maps.forward).numpy() == pytest.approx(np.array(want), rel=1e-9)


def test_each_cost_in_closed_form_where_the_covariances_commute():
    """Along common axes the map stretches each axis by the ratio of the standard deviations."""
    x = cloud(500, 6, 3)
    stretch = torch.tensor([0.1, 0.5, 1.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    axes = torch.linalg.eigh(torch.cov(x.T))[1]
    y = (x @ axes) * stretch @ axes.T + 2
    own, other = Moments.of(x), Moments.of(y)
    costs = row_costs(x, own, other, optimal_maps(own.covariance, other.covariance).forward)
    along = (x - x.mean(0)) @ axes
    shift = (x.mean(0) - y.mean(0)) @ axes
    want = ((shift + (500 / 499) ** 0.5 * along * (1 - stretch)) ** 2).sum(1)
    assert costs.numpy() == pytest.approx(want.numpy(), rel=1e-9)


def test_a_row_that_stands_still_costs_nothing():
    x = cloud(50, 5, 0)
    own = Moments.of(x)
    maps = optimal_maps(own.covariance, own.covariance)
    assert float(row_costs(x, own, own, maps.forward).max()) < 1e-20
    assert unreached_spread(own, own, maps.forward) == 0


def test_half_precision_rows_are_read_in_float64():
    x, y = cloud(300, 8, 0).to(torch.bfloat16), cloud(200, 8, 1).to(torch.bfloat16)
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    want, _ = frechet_distance_from_moments(own, other)
    assert row_costs(x, own, other, maps.forward).dtype == torch.float64
    assert added_up(x, own, other, maps.forward) == pytest.approx(want.total, rel=1e-9)
