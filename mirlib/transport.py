"""Who is to blame: the Fréchet distance as a mean of the costs of single rows.

Between two Gaussians the cheapest way to move the first onto the second is an affine map, ``x ↦ μ_y + T (x − μ_x)``,

    T = Σ_x^{-1/2} (Σ_x^{1/2} Σ_y Σ_x^{1/2})^{1/2} Σ_x^{-1/2}        (the inverse root on the range of Σ_x)

and the squared Fréchet distance is the mean squared way that the rows go, plus the spread of the second cloud that no
row of the first can reach, which is 0 where Σ_x has full rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mirlib.frechet import Moments, _cholesky, _exact, _factor, _near_one, _order

__all__ = ["OptimalMaps", "optimal_maps", "row_costs", "unreached_spread"]


class OptimalMaps(NamedTuple):
    """The optimal maps T between two centred Gaussians, on the ranges of their covariances.

    Attributes:
        forward: (d, d) symmetric float64 from the first to the second; ``backward`` from the second to the first.
        trace: ``Tr((Σ_x Σ_y)^{1/2})``.
    """

    forward: Tensor
    backward: Tensor
    trace: float


def optimal_maps(covariance_x: Tensor, covariance_y: Tensor) -> OptimalMaps:
    """The optimal maps between Gaussians with these (d, d) symmetric positive semi-definite float64 covariances.

    With ``Σ_x = F Fᵀ``, ``Σ_y = G Gᵀ`` and the singular value decomposition ``Fᵀ G = U S Vᵀ`` the map is ``T = F⁺ᵀ U S
    Uᵀ F⁺``; where F is regular that is ``G V Uᵀ F⁻¹``, which is right to the last digit however small some singular
    values are.

    Raises:
        MirlibError: For covariances that overflow.

    Source: Olkin & Pukelsheim (1982); Peyré & Cuturi (2019), remark 2.31.

    Examples:
        >>> import torch
        >>> four_nine, one = torch.diag(torch.tensor([4.0, 9.0])).double(), torch.eye(2).double()
        >>> optimal_maps(four_nine, one).forward.diagonal().tolist()
        [0.5, 0.3333333333333333]
    """
    (covariance_x, root_x), (covariance_y, root_y) = _near_one(covariance_x), _near_one(covariance_y)
    order = _order(covariance_x, covariance_y)
    back = order.argsort()
    covariance_x, covariance_y = (covariance[order][:, order] for covariance in (covariance_x, covariance_y))
    lower_x, lower_y = _cholesky(covariance_x), _cholesky(covariance_y)
    factor_x = _factor(covariance_x) if lower_x is None else lower_x
    factor_y = _factor(covariance_y) if lower_y is None else lower_y
    u, s, vh = torch.linalg.svd(factor_x.T @ factor_y, full_matrices=False)

    def onto(start: Tensor, regular: bool, end: Tensor, from_start: Tensor, to_end: Tensor) -> Tensor:
        if regular and len(s) == len(start) == end.shape[1]:
            found = torch.linalg.solve_triangular(start, end @ to_end.T @ from_start.T, upper=False, left=False)
        else:  # the columns of a factor of `_factor` are orthogonal, those of a Cholesky factor independent
            identity = torch.eye(len(start)).to(start)
            inverse = (
                torch.linalg.solve_triangular(start, identity, upper=False)
                if regular
                else start.T / start.square().sum(dim=0)[:, None]
            )
            half = inverse.T @ from_start
            found = (half * s) @ half.T
        return ((found + found.T) / 2)[back][:, back]

    return OptimalMaps(
        onto(factor_x, lower_x is not None, factor_y, u, vh) * (root_y / root_x),
        onto(factor_y, lower_y is not None, factor_x, vh.T, u.T) * (root_x / root_y),
        float(s.sum()) * root_x * root_y,
    )


def row_costs(rows: Tensor, own: Moments, other: Moments, map: Tensor) -> Tensor:
    """What each row pays: the squared way that it goes when its cloud is moved onto the other one.

    With ``c = x − μ_own``, ``δ = μ_own − μ_other`` and the (d, d) float64 map T, row x of the (m, d) ``rows``, which
    are among the n ≥ 2 behind ``own``, costs ``‖δ + √(n / (n − 1)) (I − T) c‖²``. The mean over all n, plus
    `unreached_spread`, is the squared Fréchet distance.

    Returns:
        (m,) float64 costs, at least 0, in squared units of the rows, on the device of the rows (the CPU for MPS).

    Source: Olkin & Pukelsheim (1982).

    Examples:
        >>> import torch
        >>> rows = torch.tensor([[-1.0], [1.0], [0.0]])
        >>> x, y = Moments.of(rows), Moments.of(3 * rows + 5)
        >>> costs = row_costs(rows, x, y, optimal_maps(x.covariance, y.covariance).forward)
        >>> round(float(costs.mean()), 9)  # 5² for the means, (3 − 1)² for the standard deviations
        29.0
    """
    wide = _exact(rows)
    mean, target, map = (values.to(wide.device) for values in (own.mean, other.mean, map))
    centred = wide - mean
    moved = (centred - centred @ map) * (own.count / (own.count - 1)) ** 0.5
    return (moved + (mean - target)).square().sum(dim=1)


def unreached_spread(own: Moments, other: Moments, map: Tensor) -> float:
    """``Tr(Σ_other − T Σ_own T)``, at least 0: spread of the other cloud that no row of this one reaches."""
    covariance = own.covariance
    if _cholesky(covariance) is not None:
        return 0.0
    map = map.to(covariance.device)
    return max(float(other.covariance.trace()) - float(((map @ covariance) * map).sum()), 0.0)
