"""What all measures of the gap share: their result, their registry, and how rows get from the caller to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.mir import MODALITIES, as_layers, check_layers, check_norms, row_norms

LOWER, HIGHER = "lower", "higher"
ROWS, PAIRS, TASK = "rows", "pairs", "task"
QUADRATIC_ROWS = 1000
"""Rows of a modality that measures of quadratic cost take where nobody says otherwise."""


@dataclass(frozen=True)
class Calibration:
    """A measure of paired samples beside what it gives for pairs put together at random.

    Attributes:
        null_mean: (K,) mean over random pairings.
        null_std: (K,) standard deviation over them.
        z: (K,) ``(value − null mean) / null std``; positive where the true pairs are more alike than random ones.
        p_value: (K,) share of pairings at least as alike as the true one, that one counted among them.
        calibrated: (K,) ``(value − null mean) / (best − null mean)``: 0 for random pairs, 1 for the best there can be.
        permutations: Number of random pairings.
    """

    null_mean: np.ndarray
    null_std: np.ndarray
    z: np.ndarray
    p_value: np.ndarray
    calibrated: np.ndarray
    permutations: int

    @property
    def value(self) -> float:
        """Mean of `calibrated` over the layers."""
        return float(self.calibrated.mean())


@dataclass(frozen=True)
class GapResult:
    """What a measure says.

    Attributes:
        measure: Its name in `mirlib.gaps.MEASURES`.
        value: Over all layers: the mean of ``per_layer``, or for ``mir``, ``norm_only`` and ``fd_infinity`` the
            logarithm to base 10 of its sum.
        per_layer: (K,) by layer; empty for measures of a labelled task.
        direction: ``"lower"`` or ``"higher"``, which of the two means that vision and text are better integrated.
        needs: ``"rows"`` of both modalities, ``"pairs"`` of images and texts that belong together, or a labelled
            ``"task"``.
        rows: Rows (or pairs, or questions) that went into it, by modality.
        calibration: What random pairs give, for measures of pairs.
        settings: What the value depends on beside the rows.
    """

    measure: str
    value: float
    per_layer: np.ndarray
    direction: str
    needs: str
    rows: Mapping[str, int]
    calibration: Calibration | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON; NaN and infinity become None."""
        found = {
            "measure": self.measure,
            "value": _number(self.value),
            "per_layer": [_number(value) for value in self.per_layer],
            "direction": self.direction,
            "needs": self.needs,
            "rows": dict(self.rows),
            "settings": dict(self.settings),
        }
        if self.calibration is not None:
            columns = ("null_mean", "null_std", "z", "p_value", "calibrated")
            found["calibration"] = {
                name: [_number(value) for value in getattr(self.calibration, name)] for name in columns
            } | {"value": _number(self.calibration.value), "permutations": self.calibration.permutations}
        return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Measure:
    """An entry of the registry.

    Attributes:
        name: Its key.
        title: Its name in prose.
        function: ``function(vision, text, *, samples=None, seed=0, ...) -> GapResult``; for a measure of a task, what
            its docstring says.
        asks: The question that it puts to the rows, in a line.
        source: Where it was proposed.
        needs: See `GapResult`.
        direction: See `GapResult`.
        cost: What its time grows with, for a layer: n rows or pairs, d dimensions.
    """

    name: str
    title: str
    function: Callable[..., GapResult]
    asks: str
    source: str
    needs: str
    direction: str
    cost: str


MEASURES: dict[str, Measure] = {}


def register(
    name: str, *, title: str, asks: str, source: str, needs: str, direction: str, cost: str
) -> Callable[[Callable[..., GapResult]], Callable[..., GapResult]]:
    """Decorator: make a measure known by its name."""

    def keep(function: Callable[..., GapResult]) -> Callable[..., GapResult]:
        MEASURES[name] = Measure(name, title, function, asks, source, needs, direction, cost)
        return function

    return keep


def result(
    name: str,
    per_layer: np.ndarray | list[float],
    rows: Mapping[str, int],
    *,
    value: float | None = None,
    calibration: Calibration | None = None,
    **settings: Any,
) -> GapResult:
    """A result of a registered measure; ``value`` is the mean over the layers if left out."""
    measure, per_layer = MEASURES[name], np.asarray(per_layer, dtype=float)
    value = float(per_layer.mean()) if value is None else float(value)
    return GapResult(name, value, per_layer, measure.direction, measure.needs, dict(rows), calibration, settings)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True)
class Rows:
    """Rows of all layers, checked, with a bounded part of them chosen; layers are turned into float64 one at a time.

    Attributes:
        vision: K tensors (r, d) as they came.
        text: K tensors (s, d).
        samples: The sample of each chosen row, by modality; None if the caller did not say.
        chosen: Which rows were chosen, by modality; None for all.
    """

    vision: list[Tensor]
    text: list[Tensor]
    samples: tuple[Tensor, Tensor] | None
    chosen: tuple[Tensor | None, Tensor | None]

    @classmethod
    def of(cls, vision: Any, text: Any, samples: Any, *, max_rows: int | None, seed: int) -> Rows:
        """Check the arrays, and draw at most ``max_rows`` rows of each modality, the same ones in every layer.

        Raises:
            MirlibError: If they do not belong together, or a row is not finite.
        """
        layers = as_layers(vision, "vision"), as_layers(text, "text")
        check_layers(*layers, minimum=2)
        if max_rows is not None and max_rows < 2:
            raise MirlibError(f"max_rows must be at least 2, got {max_rows}")
        ids = None if samples is None else sample_ids(samples, [len(side[0]) for side in layers])
        for side, (modality, values) in enumerate(zip(MODALITIES, layers, strict=True)):

            def name_row(row: int, side: int = side) -> str:
                return f"row {row}" + ("" if ids is None else f" of sample {int(ids[side][row])}")

            for k, rows in enumerate(values, start=1):
                check_norms(row_norms(rows), rows, k, modality, name_row)
        generator = torch.Generator().manual_seed(seed)
        chosen: list[Tensor | None] = []
        for side in layers:
            count = len(side[0])
            drawn = torch.randperm(count, generator=generator)
            chosen.append(None if max_rows is None or count <= max_rows else drawn[:max_rows].sort().values)
        if ids is not None:
            ids = tuple(numbers if c is None else numbers[c] for numbers, c in zip(ids, chosen, strict=True))
        return cls(*layers, ids, tuple(chosen))

    @property
    def counts(self) -> dict[str, int]:
        """Rows chosen, by modality."""
        sides = zip(MODALITIES, (self.vision, self.text), self.chosen, strict=True)
        return {name: len(side[0]) if chosen is None else len(chosen) for name, side, chosen in sides}

    @property
    def dim(self) -> int:
        """Number of dimensions, d."""
        return self.text[0].shape[1]

    def layers(self, scale: str = "none") -> Iterator[tuple[Tensor, Tensor]]:
        """The chosen vision rows and text rows of each layer, float64 on the CPU.

        Args:
            scale: ``"none"``; ``"unit"``, every row divided by its norm (a row of zero stays zero); ``"text"``, both
                modalities divided by the mean norm of all text rows, as MIR does.

        Raises:
            MirlibError: For ``"text"`` if every text row is zero.
        """
        for k, sides in enumerate(zip(self.vision, self.text, strict=True), start=1):
            rows = [
                (side if chosen is None else side[chosen.to(side.device)]).detach().to("cpu", torch.float64)
                for side, chosen in zip(sides, self.chosen, strict=True)
            ]
            if scale == "unit":
                rows = [unit(side) for side in rows]
            elif scale == "text":
                norm = float(row_norms(sides[1]).mean())
                if not norm > 0:
                    raise MirlibError(f"layer {k}: every text row has norm zero, so there is no unit of length")
                rows = [side / norm for side in rows]
            yield rows[0], rows[1]


def unit(rows: Tensor) -> Tensor:
    """Rows divided by their norms; a row of zero stays zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


def sample_ids(samples: Any, counts: list[int]) -> tuple[Tensor, Tensor]:
    """The sample of each row, by modality, as int64 tensors on the CPU.

    Raises:
        MirlibError: If there is not one whole number for each row.
    """
    try:
        vision, text = samples
    except (TypeError, ValueError) as error:
        raise MirlibError("samples: expected a pair of arrays, (of the vision rows, of the text rows)") from error
    found = []
    for name, values, count in zip(MODALITIES, (vision, text), counts, strict=True):
        numbers = torch.as_tensor(values).detach().cpu()
        if numbers.ndim != 1 or len(numbers) != count or numbers.is_floating_point() or numbers.is_complex():
            raise MirlibError(
                f"samples of the {name} rows: expected {count} whole numbers, one a row, "
                f"got {numbers.dtype} of shape {tuple(numbers.shape)}"
            )
        found.append(numbers.to(torch.int64))
    return found[0], found[1]
