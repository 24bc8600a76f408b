"""The Fréchet distance between two sets of rows, and the mergeable moments it needs. Knows arrays only.

The trace term is never computed through a matrix square root: with ``Σ_x = AᵀA`` and ``Σ_y = BᵀB`` it is the nuclear
norm ``‖A Bᵀ‖_*``, so eigenvalues of a symmetric matrix or singular values are enough.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg.lapack import dsygst
from threadpoolctl import ThreadpoolController
from torch import Tensor

from mirlib.errors import MirlibError

__all__ = [
    "FrechetDistance",
    "Moments",
    "as_rows",
    "first_order_bias",
    "frechet_distance",
    "frechet_distance_from_moments",
    "trace_sqrt_product",
]


class FrechetDistance(NamedTuple):
    """A squared Fréchet distance and its parts, in the squared units of the rows.

    Attributes:
        total: ``mean_term + covariance_term``, at least 0.
        mean_term: ``‖μ_x − μ_y‖²``.
        covariance_term: ``Tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^{1/2})``, at least 0.
    """

    total: float
    mean_term: float
    covariance_term: float


class _ReadOnly:
    """A read-only array that claims to be writable: PyTorch warns about others, and a copy would fill the memory."""

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.array, self.__array_interface__ = array, interface | {"data": (interface["data"][0], False)}


def as_rows(values: Any, name: str = "rows") -> Tensor:
    """The (n, d) rows in a NumPy array or a tensor, detached, in their own dtype, not copied where possible.

    Refused, under ``name``, are what is no matrix, is empty, or holds no real floating-point numbers.
    """
    if isinstance(values, Tensor):
        rows = values.detach()
    else:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError) as error:
            raise MirlibError(f"{name}: not a matrix of rows: {error}") from error
        if array.dtype.kind not in "f":
            raise MirlibError(f"{name}: expected floating-point numbers, got dtype {array.dtype}; convert them first")
        dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)  # no long double
        array = np.ascontiguousarray(array.astype(dtype, copy=False))
        rows = torch.from_numpy(array if array.flags.writeable else np.asarray(_ReadOnly(array)))
    if not rows.is_floating_point():
        raise MirlibError(f"{name}: expected floating-point numbers, got dtype {rows.dtype}; convert them first")
    if rows.dtype.itemsize < 2:
        raise MirlibError(f"{name}: eight-bit numbers ({rows.dtype}) cannot be computed with; convert them first")
    if rows.ndim != 2:
        raise MirlibError(f"{name}: expected a matrix of rows (n, d), got shape {tuple(rows.shape)}")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise MirlibError(f"{name}: empty array of shape {tuple(rows.shape)}")
    return rows


SQUARABLE = 1e150  # float64 holds the squares of what lies between this and its inverse, and sums of them
SMALL = 512  # dimensions up to which threads cost more than they give


def threads_for(dim: int) -> AbstractContextManager[Any]:
    """One thread for the many small problems of narrow models: on a busy machine threads wait for each other."""
    return _thread_pools().limit(limits=1) if dim <= SMALL else nullcontext()


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def _exact(rows: Tensor) -> Tensor:
    return (rows.cpu() if rows.device.type == "mps" else rows).to(torch.float64)


@dataclass
class Moments:
    """Row count, mean and centred scatter of a set of rows: all that the Fréchet distance needs.

    Merged by the pairwise formula of Chan, Golub & LeVeque (1979), which stays accurate where ``Σ x xᵀ − n μ μᵀ``
    cancels.

    Attributes:
        count: Number of rows, n.
        mean: (d,) float64 mean row.
        scatter: (d, d) float64 ``Σ (x − μ)(x − μ)ᵀ``.

    Examples:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 3.0]])
        >>> parts = Moments.of(rows[:1]).merge(Moments.of(rows[1:]))
        >>> torch.allclose(Moments.of(rows).covariance, parts.covariance)
        True
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dim: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of no rows: the neutral element of `merge`."""
        zeros = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(dim), zeros)

    @classmethod
    def of(cls, rows: Any) -> Moments:
        """Moments of an (n, d) array, n ≥ 1, in float64.

        On a GPU, where float64 products are slow, the product of the centred rows is taken in float32 (TF32 off).
        """
        rows = as_rows(rows)
        if rows.device.type == "cuda":
            centre = rows.to(torch.float64).mean(dim=0)
            centred = (rows.to(torch.float64) - centre).to(torch.float32)
            scatter = _full_precision_gram(centred).to(torch.float64)
        else:
            rows = _exact(rows)
            centre = rows.mean(dim=0)
            centred = rows - centre
            scatter = centred.T @ centred
        return cls(rows.shape[0], centre, scatter)

    @property
    def dim(self) -> int:
        """Number of dimensions, d."""
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """(d, d) covariance with divisor n − 1; a `MirlibError` for fewer than 2 rows."""
        if self.count < 2:
            raise MirlibError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def mean_square_norm(self) -> float:
        """Mean squared ℓ2 norm of the rows, ``E‖x‖² = ‖μ‖² + Tr(scatter)/n``."""
        return float(self.mean @ self.mean + self.scatter.trace() / max(self.count, 1))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together; neither operand is changed."""
        if self.dim != other.dim:
            raise MirlibError(f"cannot merge moments of {self.dim} and {other.dim} dimensions")
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        shift = other.mean.to(self.mean.device) - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter.to(self.scatter.device)
        scatter = scatter.addr(shift, shift, alpha=self.count * other.count / count)
        return Moments(count, mean, scatter)


def float64_device(rows: Tensor) -> torch.device:
    """Where float64 numbers about the rows can live: on their device, but for Apple's MPS, which has no float64."""
    return torch.device("cpu") if rows.device.type == "mps" else rows.device


def add_rows(count: Tensor, mean: Tensor, scatter: Tensor, rows: Tensor, weights: Tensor | None = None) -> None:
    """Merge (n, d) finite rows into a float64 count (), mean (d,) and scatter (d, d) in place, as `Moments` does.

    Nothing is read from the device, for which the host would wait: the count is a tensor, and ``weights``, (n,) float64
    of zeros and ones, leave rows out that would otherwise be cut out.
    """
    wide = _exact(rows)
    if weights is None:
        added = torch.full_like(count, len(rows))
        centre = wide.mean(dim=0)
    else:
        added = weights.sum()
        centre = weights @ wide / added.clamp(min=1)
    centred = wide - centre if wide.dtype == rows.dtype else wide.sub_(centre)  # a copy of ours may be overwritten
    if weights is not None:
        centred.mul_(weights[:, None])
    if rows.device.type == "cuda":  # as in `Moments.of`
        scatter.add_(_full_precision_gram(centred.to(torch.float32)))
    else:
        scatter.addmm_(centred.T, centred)
    total = (count + added).clamp(min=1)
    shift = centre - mean
    scatter.addr_(shift, shift * (count * added / total))
    mean.add_(shift * (added / total))
    count.add_(added)


def _full_precision_gram(centred: Tensor) -> Tensor:
    """``XᵀX`` in float32 with TF32 switched off for this product only."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return centred.T @ centred
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _factor(covariance: Tensor) -> Tensor:
    """A (d, rank) factor L with ``L Lᵀ = Σ`` of a positive semi-definite matrix, noise directions left out."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1].clamp(min=0) * covariance.shape[0] * torch.finfo(covariance.dtype).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt()


def _congruence(covariance: Tensor, lower: Tensor) -> Tensor:
    """``Lᵀ Σ L`` for a lower triangular L; only the lower triangle of the result is meaningful.

    LAPACK's ``sygst`` does this in d³ operations where two matrix products take 4 d³; PyTorch does not expose it.
    """
    if covariance.device.type == "cpu" and covariance.dtype == torch.float64:
        # Both arguments are wanted column by column: for a symmetric matrix the transpose is that, without a copy.
        product, failed = dsygst(covariance.numpy().T, np.asfortranarray(lower.numpy()), itype=2, lower=1)
        if failed == 0:
            return torch.from_numpy(product)
    return lower.T @ covariance @ lower


def _cholesky(covariance: Tensor) -> Tensor | None:
    """The lower factor, or None where the matrix is singular: where a pivot is what rounding left of a variance."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    noise = covariance.shape[0] * torch.finfo(covariance.dtype).eps
    regular = int(failed) == 0 and bool((lower.diagonal().square() > noise * covariance.diagonal()).all())
    return lower if regular else None


def is_regular(covariance: Tensor) -> bool:
    """Whether a covariance has full rank, as far as its digits tell."""
    if not bool(torch.isfinite(covariance.diagonal()).all()):
        return False
    order = covariance.diagonal().argsort(descending=True)
    return _cholesky(_near_one(covariance)[0][order][:, order]) is not None


def energy(rows: Moments) -> float:
    """``‖μ‖² + Tr(Σ)``, the squared Fréchet distance of the rows to as many that are all zero."""
    return float(rows.mean @ rows.mean + rows.covariance.trace())


def _order(covariance_x: Tensor, covariance_y: Tensor) -> Tensor:
    """(d,) the dimensions by falling variance."""
    variances = covariance_x.diagonal() * covariance_y.diagonal()
    if not bool(torch.isfinite(variances).all()):
        raise MirlibError("the covariances overflow: the rows are not finite, or too large to be squared")
    return variances.argsort(descending=True)


def _near_one(covariance: Tensor) -> tuple[Tensor, float]:
    """The matrix times a power of 4 that brings its largest variance near 1, and the root of what undoes that.

    The product of two covariances holds fourth powers of the rows, which float64 loses below 1e-77; others stay as they
    are.
    """
    largest = float(covariance.diagonal().max())
    tiny = torch.finfo(covariance.dtype).tiny
    if not 0 < largest < math.inf or tiny**0.25 < largest < tiny**-0.25:
        return covariance, 1.0
    half = max(math.frexp(largest)[1] // 2, -510)
    return covariance * 4.0**-half, 2.0**half


def _spectrum(covariance_x: Tensor, covariance_y: Tensor) -> Tensor:
    """Square roots of the eigenvalues of ``Σ_x Σ_y``: (≤ d,) non-negative.

    One Cholesky factorisation and one symmetric eigenvalue problem; where a covariance is singular, singular values of
    the product of two factors, since square roots of eigenvalues that should be 0 would add noise of 1e-8 each. The
    dimensions are put in the order of falling variance: language models have a few with activations thousands of times
    larger than the rest, and with those in front small eigenvalues keep their digits (relative error 1e-14 instead of
    1e-8).
    """
    (covariance_x, root_x), (covariance_y, root_y) = _near_one(covariance_x), _near_one(covariance_y)
    return _spectrum_near_one(covariance_x, covariance_y) * root_x * root_y


def _spectrum_near_one(covariance_x: Tensor, covariance_y: Tensor) -> Tensor:
    order = _order(covariance_x, covariance_y)
    covariance_x, covariance_y = (covariance[order][:, order] for covariance in (covariance_x, covariance_y))
    lower_y = _cholesky(covariance_y)
    if lower_y is not None:
        values = torch.linalg.eigvalsh(_congruence(covariance_x, lower_y))
        if values[0] > values[-1] * len(values) * torch.finfo(values.dtype).eps:
            return values.sqrt()
    lower_x = _cholesky(covariance_x)
    if lower_x is not None and lower_y is not None:  # graded, not singular
        return values.clamp(min=0).sqrt()
    factor_x = _factor(covariance_x) if lower_x is None else lower_x
    factor_y = _factor(covariance_y) if lower_y is None else lower_y
    if factor_x.shape[1] == 0 or factor_y.shape[1] == 0:
        return covariance_x.new_zeros(1)
    return torch.linalg.svdvals(factor_x.T @ factor_y)


def trace_sqrt_product(covariance_x: Tensor, covariance_y: Tensor) -> float:
    """``Tr((Σ_x Σ_y)^{1/2})`` of two (d, d) positive semi-definite matrices, at least 0, in squared units of the rows.

    With ``Σ_y = L Lᵀ`` the eigenvalues of ``Σ_x Σ_y`` are those of the symmetric ``Lᵀ Σ_x L``, and their square roots
    add up to the trace.

    Examples:
        >>> import torch
        >>> trace_sqrt_product(torch.diag(torch.tensor([4.0, 9.0])), torch.eye(2))
        5.0
    """
    return float(_spectrum(covariance_x, covariance_y).sum())


def first_order_bias(spectrum: Tensor, trace_x: float, trace_y: float, count_x: int, count_y: int) -> float:
    """First-order upward bias of the squared Fréchet distance of two Gaussian samples, in squared units of the rows.

        bias ≈ Tr(Σ_x)/n + Tr(Σ_y)/m + ½ (1/n + 1/m) (Σ_ij s_i s_j / (s_i + s_j) + ½ Σ_i s_i)

    from a second-order expansion of the trace term in the sampling noise of both covariances. ``spectrum`` holds s, the
    square roots of the eigenvalues of ``Σ_x Σ_y``. For equal isotropic Gaussians and n = m the part of the covariances
    is ``Tr(Σ) (d + 1) / (2n)``. It assumes independent rows and n, m ≫ d; tokens of one image are not independent, so
    read it as a lower bound.
    """
    s = spectrum[spectrum > 0]
    noise = float((s[:, None] * s[None, :] / (s[:, None] + s[None, :])).sum()) + 0.5 * float(s.sum())
    return trace_x / count_x + trace_y / count_y + 0.5 * (1 / count_x + 1 / count_y) * noise


def _assemble(
    difference: Tensor, spectrum: Tensor, trace_x: float, trace_y: float, count_x: int, count_y: int
) -> tuple[FrechetDistance, float]:
    """The distance and its `first_order_bias`, from the means' difference and what is known of the covariances."""
    mean_term = float(difference @ difference)
    # Rounding can leave a tiny negative number where the covariances are equal; the exact value is never below 0.
    covariance_term = max(trace_x + trace_y - 2 * float(spectrum.sum()), 0.0)
    distance = FrechetDistance(mean_term + covariance_term, mean_term, covariance_term)
    return distance, first_order_bias(spectrum, trace_x, trace_y, count_x, count_y)


def frechet_distance_from_moments(x: Moments, y: Moments) -> tuple[FrechetDistance, float]:
    """The squared Fréchet distance of two sets of moments of at least 2 rows each, and its `first_order_bias`."""
    if x.dim != y.dim:
        raise MirlibError(f"the two sets of rows have {x.dim} and {y.dim} dimensions; they must be equal")
    covariance_x, covariance_y = x.covariance, y.covariance.to(x.mean.device)
    spectrum = _spectrum(covariance_x, covariance_y)
    traces = float(covariance_x.trace()), float(covariance_y.trace())
    return _assemble(x.mean - y.mean.to(x.mean.device), spectrum, *traces, x.count, y.count)


def frechet_distance(x: Any, y: Any) -> FrechetDistance:
    """Squared Fréchet distance between the Gaussians fitted to two sets of rows.

        d² = ‖μ_x − μ_y‖² + Tr(Σ_x) + Tr(Σ_y) − 2 Tr((Σ_x Σ_y)^{1/2})

    Exact in float64, also where there are fewer rows than dimensions: then the rows themselves serve as factors of the
    covariance, and the trace term is the nuclear norm of their small cross-Gram matrix.

    Args:
        x: (n, d) array, n ≥ 2. NumPy or torch, any floating dtype, any device.
        y: (m, d) array, m ≥ 2.

    Returns:
        `FrechetDistance` ``(total, mean_term, covariance_term)``, each at least 0, in squared units of the rows.

    Raises:
        MirlibError: If a set has fewer than 2 rows, the dimensions differ, or a row is not finite.

    Source: Dowson & Landau (1982); as "FID" Heusel et al. (2017).

    Examples:
        >>> import numpy as np
        >>> x = np.array([[-1.0], [1.0]])
        >>> frechet_distance(x, 3 * x + 5).mean_term
        25.0
    """
    return distance_of_rows(as_rows(x, "x"), as_rows(y, "y"))[0]


def distance_of_rows(x: Tensor, y: Tensor) -> tuple[FrechetDistance, float]:
    """`frechet_distance` of two tensors, and its first-order bias."""
    if x.shape[1] != y.shape[1]:
        raise MirlibError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}; they must be equal")
    largest = {}
    for name, rows in (("x", x), ("y", y)):
        if rows.shape[0] < 2:
            raise MirlibError(f"{name} has {rows.shape[0]} row(s); a covariance needs at least 2")
        largest[name] = max(abs(float(extreme)) for extreme in rows.aminmax())
        if not math.isfinite(largest[name]):
            raise MirlibError(f"{name} holds NaN or infinite values")
    if (top := max(largest.values())) > 0 and not 1 / SQUARABLE <= top <= SQUARABLE:
        raise MirlibError(
            f"the largest number of {max(largest, key=largest.get)} is {top:.3g}, which float64 cannot square; "
            "multiply x and y by the same number first: the distance grows with its square"
        )
    dim = x.shape[1]
    if x.shape[0] > dim and y.shape[0] > dim:
        return frechet_distance_from_moments(Moments.of(x), Moments.of(y))

    def factor(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and an (≤ n, d) factor A of the covariance, AᵀA = Σ."""
        rows = _exact(rows)
        mean = rows.mean(dim=0)
        scaled = (rows - mean) / (rows.shape[0] - 1) ** 0.5
        return mean, scaled if rows.shape[0] <= dim else torch.linalg.qr(scaled, mode="r").R

    mean_x, factor_x = factor(x)
    mean_y, factor_y = factor(y.to(x.device))
    spectrum = torch.linalg.svdvals(factor_x @ factor_y.to(factor_x.device).T)
    traces = float(factor_x.square().sum()), float(factor_y.square().sum())
    return _assemble(mean_x - mean_y.to(mean_x.device), spectrum, *traces, len(x), len(y))
