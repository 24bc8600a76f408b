"""The trace term ``Tr((Σ_v Σ_t)^{1/2})``: ours against the routes that others take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from benchmarks.measuring import Measurement, Target, medians, ratios, time_in_turns
from mirlib.frechet import Moments, trace_sqrt_product

TARGET_FROM = 2048  # the design sets its targets for this size and above
ACCURACY = Target("≤", 1e-9)
SQRTM, SQRTM_SINGLE = "sqrtm, float64", "sqrtm, float32 (authors, accurate)"
EIGVALS = "eigvals of the product (torchmetrics)"


def sample_rows(dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of ``2 dim`` rows whose variances fall over three decades, in another order of directions each."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(0, -1.5, dim, dtype=torch.float64)

    def rows() -> Tensor:
        order = torch.randperm(dim, generator=generator)
        return torch.randn(2 * dim, dim, dtype=torch.float64, generator=generator) * deviations[order]

    return rows(), rows()


def by_svd(x: Tensor, y: Tensor) -> float:
    """The reference: the nuclear norm of the product of the triangular factors of the rows, in float64."""

    def factor(rows: Tensor) -> Tensor:
        return torch.linalg.qr((rows - rows.mean(dim=0)) / (len(rows) - 1) ** 0.5, mode="r").R

    return float(torch.linalg.svdvals(factor(x) @ factor(y).T).sum())


def routes(covariance_x: Tensor, covariance_y: Tensor) -> dict[str, Callable[[], float]]:
    """The ways to the trace term, by name, each as its owners write it."""
    single_x, single_y = covariance_x.float().numpy(), covariance_y.float().numpy()
    double_x, double_y = covariance_x.numpy(), covariance_y.numpy()
    return {
        "mirlib": lambda: trace_sqrt_product(covariance_x, covariance_y),
        EIGVALS: lambda: float(torch.linalg.eigvals(covariance_x @ covariance_y).sqrt().real.sum()),
        SQRTM: lambda: float(np.trace(sqrtm(double_x.dot(double_y)).real)),
        SQRTM_SINGLE: lambda: float(np.trace(sqrtm(single_x.dot(single_y)).real)),
    }


def rounds_for(dim: int, quick: bool) -> tuple[int, int]:
    """How often the fast and the slow routes run at a size."""
    if quick:
        return 3, 1
    return 9 if dim <= 2048 else 3, 5 if dim <= 1024 else 3 if dim <= 2048 else 1


def minutes(dims: Sequence[int], quick: bool) -> float:
    """A guess of the minutes on one idle core, from a measured 45 s a slow round and 2 s a fast one at d = 2048."""
    total = 0.0
    for dim in dims:
        fast, slow = rounds_for(dim, quick)
        total += (dim / 2048) ** 3 * (45 * slow + 2 * fast + 10)
    return total / 60


def measure(dims: Sequence[int], threads: int, quick: bool = False) -> list[Measurement]:
    """Rows of the table: speed against each route, against one eigvalsh, and accuracy against an SVD."""
    table = []
    for route in routes(*torch.eye(8, dtype=torch.float64).expand(2, 8, 8)).values():
        route()  # the first call of a process also loads code
    for dim in dims:
        x, y = sample_rows(dim)
        covariance_x, covariance_y = Moments.of(x).covariance, Moments.of(y).covariance
        size, targeted = f"d = {dim}", dim >= TARGET_FROM
        fast, slow = rounds_for(dim, quick)
        every_route = routes(covariance_x, covariance_y)
        ours = every_route["mirlib"]
        reference, values = by_svd(x, y), {}
        details = {"dim": dim, "threads": threads}

        short = {"mirlib": ours, "eigvalsh": lambda matrix=covariance_x: torch.linalg.eigvalsh(matrix)}
        timings = time_in_turns(short, fast, f"trace term, {size}")
        table.append(
            Measurement.of(
                "trace term: mirlib / one eigvalsh",
                size,
                ratios(timings["mirlib"], timings["eigvalsh"], threads),
                target=Target("≤", 2.2) if targeted else None,
                details=details | {"seconds": medians(timings)},
            )
        )

        def keep(name: str, route: Callable[[], float], values: dict[str, float] = values) -> Callable[[], None]:
            return lambda: values.update({name: route()})

        timings = time_in_turns(
            {name: keep(name, route) for name, route in every_route.items()}, slow, f"trace term, {size}"
        )
        for name, limit in ((SQRTM, 25), (SQRTM_SINGLE, 25), (EIGVALS, 3)):
            table.append(
                Measurement.of(
                    f"trace term: {name} / mirlib",
                    size,
                    ratios(timings[name], timings["mirlib"], threads),
                    target=Target("≥", limit) if targeted else None,
                    details=details | {"seconds": medians(timings)},
                )
            )
        for name, value in values.items():
            error = abs(value / reference - 1)
            table.append(
                Measurement(
                    f"relative error of the trace term: {name}",
                    size,
                    error,
                    unit="",
                    target=ACCURACY if name == "mirlib" else None,
                    details=details,
                )
            )
    return table
