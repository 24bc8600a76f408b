"""What the authors' public code computes by default, repeated on purpose, so that published numbers can be compared.

Two of its steps part from the paper: outlier rows are replaced by the per-dimension median instead of being removed,
and its fast square root starts its iteration at a fixed point. Repository shikiw/Modality-Integration-Rate, commit
07070b9; chapter 4 of the book proves the second claim and measures it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirlib.errors import MirlibError

__all__ = ["fast_frechet_distance", "fast_square_root", "replace_rows_by_median"]

ITERATIONS = 5


def replace_rows_by_median(rows: Tensor, outliers: Tensor) -> Tensor:
    """A copy of the (n, d) rows with the per-dimension (lower) median of all rows wherever the (n,) mask is set."""
    return torch.where(outliers[:, None], rows.median(dim=0).values, rows)


def fast_square_root(product: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The iteration of the authors' ``fast`` mode, which is meant to return ``A^{1/2}`` and returns ``A``.

    It repeats ``Y ← ½(Y + Z⁻¹A)``, ``Z ← ½(Z + Y⁻¹A)`` from ``Y = A``, ``Z = I``. In exact arithmetic ``Z⁻¹A = A``
    leaves Y where it is and ``Y⁻¹A = I`` leaves Z where it is. In float32 the inverse of an ill-conditioned A adds
    noise, which is part of the published values, so it is repeated here too.

    An A that cannot be inverted in its precision is refused.
    """
    y, z = product, torch.eye(product.shape[0], dtype=product.dtype, device=product.device)
    try:
        for _ in range(iterations):
            y = (y + torch.linalg.inv(z) @ product) * 0.5
            z = (z + torch.linalg.inv(y) @ product) * 0.5
    except torch.linalg.LinAlgError as error:
        raise MirlibError(
            "preset 'authors-fast' inverts the product of the covariances, which is singular here; "
            "use preset 'authors' or 'paper'"
        ) from error
    return y


def fast_frechet_distance(vision: Tensor, text: Tensor) -> tuple[float, float, float]:
    """The authors' default distance between (r, d) and (s, d) float32 rows: ``(total, mean_term, covariance_term)``."""

    def mean_and_covariance(rows: Tensor) -> tuple[Tensor, Tensor]:
        mean = rows.mean(dim=0)
        centred = rows - mean
        return mean, centred.T @ centred / (rows.shape[0] - 1)

    vision_mean, vision_covariance = mean_and_covariance(vision.to(torch.float32))
    text_mean, text_covariance = mean_and_covariance(text.to(torch.float32))
    root = fast_square_root(vision_covariance @ text_covariance)
    mean_term = ((vision_mean - text_mean) ** 2).sum()
    covariance_term = vision_covariance.trace() + text_covariance.trace() - 2 * root.trace()
    return float(mean_term + covariance_term), float(mean_term), float(covariance_term)
