"""What a streamed measure keeps of the rows that came: norms, moments, the rows whose turn has not come."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.frechet import Moments, add_rows, float64_device
from mirlib.mir import MODALITIES, NormBounds, not_finite

__all__ = ["FiniteChecks", "RowSamples", "Running", "Side", "early_bounds"]

PIECE = 2048  # rows that wait, added at a time


def _append(chunks: list[Tensor], norms: Tensor) -> None:
    """Append in place, joining what is no longer than what came last: n batches make about log2 n chunks.

    Thousands of small tensors that stay would keep the memory between them from being used again.
    """
    while chunks and len(chunks[-1]) <= len(norms):
        norms = torch.cat([chunks.pop(), norms])
    chunks.append(norms)


def early_bounds(norms: Tensor, samples: int) -> NormBounds:
    """Norms so far inside the 3σ bounds of these (n,) norms that they will lie inside those of all rows, most likely.

    The standard deviation is that of the 99 % of the norms nearest to the median: a few huge ones can make the plain
    one fall as well as rise while rows come in. How many of these are taken grows with the number of samples.
    """
    norms = norms.to(torch.float64)
    centre = norms.median()
    away = (norms - centre).abs()
    near = norms[away <= away.kthvalue(max(1, math.ceil(0.99 * len(norms)))).values]
    deviation = float(near.std()) if len(near) > 1 else 0.0
    return NormBounds(float(centre), max(0.3, 2.5 - 4 / math.sqrt(max(samples, 1))) * deviation)


class RowSamples:
    """The sample of each row of a batch, (r,) and (s,) integers or one number for all, looked up once for all layers.

    ``numbers`` are all samples of the batch in rising order, where some of them may have no rows.
    """

    def __init__(self, vision: Any, text: Any, numbers: Sequence[int] | None = None) -> None:
        refusal = MirlibError("samples: expected a whole number for each row, of vision and of text")
        try:
            self._given = tuple(torch.as_tensor(side) for side in (vision, text))
        except (TypeError, ValueError, RuntimeError) as error:  # words, None, numbers that 64 bits do not hold
            raise refusal from error
        for side in self._given:
            if side.is_floating_point() or side.is_complex() or side.dtype == torch.bool or side.ndim > 1:
                raise refusal
        self._numbers = None if numbers is None else list(numbers)
        self._index: dict[tuple[int, int, torch.device], Tensor] = {}

    def check(self, rows: tuple[int, int]) -> None:
        """Refuse numbers that do not belong to as many rows."""
        for side, count, modality in zip(self._given, rows, MODALITIES, strict=True):
            if side.ndim == 1 and len(side) != count:
                raise MirlibError(
                    f"samples: expected one number for each of {count} {modality} rows, got shape {tuple(side.shape)}"
                )

    @property
    def numbers(self) -> list[int]:
        """The samples that there are, in rising order."""
        if self._numbers is None:
            self._numbers = torch.cat([side.flatten().cpu() for side in self._given]).unique().tolist()
        return self._numbers

    def index(self, side: int, places: dict[int, int], rows: int, device: torch.device) -> Tensor:
        """(rows,) int64, on a device: what the sample of each row is mapped to; kept for the next layers."""
        key = (side, rows, device)
        if key not in self._index:
            known = torch.tensor([places[number] for number in self.numbers])
            found = known[torch.searchsorted(torch.tensor(self.numbers), self._given[side].cpu().to(torch.int64))]
            self._index[key] = found.expand(rows).to(device)
        return self._index[key]


class FiniteChecks:
    """Finds rows that are not finite in many layers, and reads the answer from the device once for all of them."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Callable[[int], MirlibError]]] = []  # the first such row, or −1; its error

    def add(self, layer: int, modality: str, norms: Tensor, name_row: Callable[[str, int], str]) -> None:
        """Note the (n,) norms of a layer's rows, for `settle`; nothing is read from the device."""
        broken = ~torch.isfinite(norms)
        first = torch.where(broken.any(), broken.to(torch.uint8).argmax(), -1)
        self._pending.append((first, lambda row: not_finite(layer, modality, name_row(modality, row))))

    def settle(self) -> None:
        """Read all answers, one transfer a device, and forget them.

        Raises:
            MirlibError: Naming the first layer, modality and row that is not finite.
        """
        pending, self._pending = self._pending, []
        found: dict[int, int] = {}
        for device in {first.device for first, _ in pending}:
            here = [i for i, (first, _) in enumerate(pending) if first.device == device]
            found |= zip(here, torch.stack([pending[i][0] for i in here]).tolist(), strict=True)
        for i, (_, error) in enumerate(pending):
            if found[i] >= 0:
                raise error(found[i])


def row_of_batch(modality: str, row: int) -> str:
    return f"row {row} of the batch"


class Running:
    """Moments that grow in place, where the rows are, without reading from the device.

    ``packed``, (d + 2, d) float64, holds scatter, mean and the count in the corner, as `Processes.merge_moments` does.
    """

    def __init__(self, packed: Tensor) -> None:
        self.packed = packed

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> Running:
        """Moments of no rows."""
        return cls(torch.zeros(dim + 2, dim, dtype=torch.float64, device=device))

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add (n, d) rows with weights of 0 or 1."""
        add_rows(self.packed[-1, 0], self.packed[-2], self.packed[:-2], rows, weights)

    @property
    def moments(self) -> Moments:
        """As plain moments; reads the count from the device. The mean is a copy, for it outlives the scatter."""
        return Moments(int(self.packed[-1, 0]), self.packed[-2].clone(), self.packed[:-2])


def _unit(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows divided by their norms, those of zero left as they are; in float32 on GPUs, where float64 is slow."""
    wide = torch.float32 if rows.device.type == "cuda" and rows.dtype != torch.float64 else torch.float64
    return rows.to(wide) / torch.where(norms > 0, norms, 1.0).to(rows.device, wide)[:, None]


class Side:
    """What is kept of the rows of one modality after one layer.

    ``norms`` are chunks of float32 norms of all rows, where the outlier rule needs them; ``sums``, (2, 2) float64, how
    many rows came and the sum of their norms, in the first pass and in the latest one; ``running`` moments of the rows
    that were accepted, ``unit`` of the same rows at norm 1; ``aside`` rows that are not decided, in host memory, with
    their norms; ``reached`` the smallest and the largest norm that was accepted.
    """

    def __init__(self, dim: int, unit: bool) -> None:
        self.dim, self.with_unit = dim, unit
        self.norms: list[Tensor] = []
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self.seen = self.refreshed = 0
        self.bounds: NormBounds | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the moments, and what waits to be added to them."""
        self.running: Running | None = None
        self.unit: Running | None = None
        self.aside: list[tuple[Tensor, Tensor]] = []
        self.reached = torch.tensor([math.inf, -math.inf], dtype=torch.float64)

    def count(self, norms: Tensor, again: bool = False) -> None:
        """Add to the sums; they follow the first rows to their device, for a transfer would wait for it."""
        self.sums = self.sums.to(norms.device)
        self.sums[int(again), 0] += len(norms)
        self.sums[int(again), 1] += norms.sum()

    def take(self, rows: Tensor, norms: Tensor, samples: int, drops: bool) -> None:
        """Rows of the first pass, of so many samples up to now: counted, and accepted or set aside."""
        self.count(norms)
        self.seen += len(norms)
        if not drops:
            self.add(rows, norms)
            return
        _append(self.norms, norms.to(torch.float32))
        if self.bounds is None or self.seen >= 1.3 * self.refreshed:  # drawn anew when a third more rows are in
            self.bounds, self.refreshed = early_bounds(self.all_norms, samples), self.seen
            for some, their_norms in self._waiting():
                self._sort(some, their_norms)
        self._sort(rows, norms)

    def accepted_outlier(self, bounds: NormBounds) -> bool:
        """Whether a row is among the moments that the final bounds leave out."""
        reached = self.reached.cpu()
        return bool(bounds.outliers(reached[reached.isfinite()]).any())

    @property
    def device(self) -> torch.device:
        """Where the moments are."""
        return torch.device("cpu") if self.running is None else self.running.packed.device

    @property
    def all_norms(self) -> Tensor:
        """(rows,) float32."""
        return torch.cat(self.norms) if self.norms else torch.zeros(0)

    def _waiting(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What waits, taken out in few pieces: each that is added to the moments goes over all of their numbers."""
        waiting, self.aside = self.aside, []
        if waiting:
            rows, norms = (torch.cat(parts) for parts in zip(*waiting, strict=True))
            yield from zip(rows.split(PIECE), norms.split(PIECE), strict=True)

    def _sort(self, rows: Tensor, norms: Tensor) -> None:
        outside = self.bounds.outliers(norms)
        rounded = norms.to(torch.float32).to(torch.float64)
        low, high = torch.where(outside, math.inf, rounded).min(), torch.where(outside, -math.inf, rounded).max()
        if self.reached.device != norms.device and norms.device.type != "cpu":
            self.reached = self.reached.to(norms.device)
        ends = torch.stack([low, high]).to(self.reached.device)
        self.reached = torch.stack([torch.minimum(self.reached[0], ends[0]), torch.maximum(self.reached[1], ends[1])])
        self.add(rows, norms, ~outside)
        left = outside.nonzero()[:, 0]
        if len(left):
            self.aside.append((rows[left.to(rows.device)].cpu(), norms[left].cpu()))

    def add(self, rows: Tensor, norms: Tensor, kept: Tensor | None = None) -> None:
        """Add rows to the moments, but for those that are not to be kept."""
        if self.running is None:
            self._start(float64_device(rows))
        device = self.device  # the moments stay where the first rows were
        weights = None if kept is None else kept.to(device, torch.float64)
        self.running.add(rows.to(device) if rows.device.type != "mps" else rows, weights)
        if self.unit is not None:
            self.unit.add(_unit(rows.to(device), norms), weights)

    def _start(self, device: torch.device) -> None:
        self.running = Running.empty(self.dim, device)
        self.unit = Running.empty(self.dim, device) if self.with_unit else None

    def settle(self, bounds: NormBounds) -> None:
        """Decide the waiting rows for good."""
        for rows, norms in self._waiting():
            inside = ~bounds.outliers(norms)
            if bool(inside.any()):
                self.add(rows[inside], norms[inside])

    def settled(self, bounds: NormBounds) -> tuple[Running, Running | None]:
        """The moments with those of the waiting rows that lie inside the final bounds; what is kept stays as it was."""
        whole = self
        if self.aside or self.running is None:
            whole = Side(self.dim, self.with_unit)
            whole.running, whole.unit = copy.deepcopy((self.running, self.unit))
            whole.aside = self.aside
            whole.settle(bounds)
            if whole.running is None:
                whole._start(torch.device("cpu"))
        return whole.running, whole.unit
