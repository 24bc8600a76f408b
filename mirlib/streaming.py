"""The Modality Integration Rate over batches, in constant memory, as a torchmetrics metric.

The outlier rule needs every norm before it can drop a row, so the same batches go in twice. The first pass keeps each
token's norm (4 bytes a token a layer); from them follow α_k, the medians and the 3σ bounds. The second pass merges the
moments of the rows that are kept. Nothing else grows with the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from mirlib.distributed import Processes
from mirlib.errors import MirlibError
from mirlib.frechet import (
    TRACE_METHODS,
    Moments,
    add_rows,
    as_rows,
    distance_and_trace,
    float64_device,
    threads_for,
)
from mirlib.mir import (
    MODALITIES,
    LayerSummary,
    NormBounds,
    assemble,
    check_confidence,
    check_layers,
    log10_sum,
    normal_interval,
    not_finite,
    null_energy,
    resolve_settings,
    row_norms,
    scaled,
    spread,
    text_scale,
)
from mirlib.result import MIRResult

__all__ = ["FiniteChecks", "ModalityIntegrationRate", "RowGroups"]

SAME_NORMS = 1e-5  # relative: kernels that add in another order in the second pass are forgiven, dropout is not
_BAR = {"desc": "adding up", "unit": "layer", "delay": 3, "leave": False}


def _append(chunks: list[Tensor], norms: Tensor) -> None:
    """Append in place, joining what is no longer than what came last: n batches make about log2 n chunks.

    Thousands of small tensors that stay would keep the memory of the large ones between them, which come and go, from
    being used again.
    """
    while chunks and len(chunks[-1]) <= len(norms):
        norms = torch.cat([chunks.pop(), norms])
    chunks.append(norms)


def _pack(moments: Moments) -> Tensor:
    """(d + 2, d) tensor: scatter, mean, and the count in the corner, so that torchmetrics can move and gather it."""
    count = torch.zeros_like(moments.mean)
    count[0] = moments.count
    return torch.cat([moments.scatter, moments.mean[None], count[None]])


def _unpack(packed: Tensor) -> Moments:
    return Moments(int(packed[-1, 0]), packed[-2], packed[:-2])


class RowGroups:
    """The jackknife groups of a batch of rows of one modality, found once for all layers.

    Args:
        groups: The group of the whole batch, or (n,) integers, the group of each row.

    Attributes:
        parts: Each group with the (m,) numbers of its rows, or with None where it has all of them.
    """

    def __init__(self, groups: Any) -> None:
        self.count: int | None = None
        if not hasattr(groups, "__len__"):
            self.parts: list[tuple[int, Tensor | None]] = [(int(groups), None)]
            return
        ids = torch.as_tensor(groups).cpu()
        self.shape = tuple(ids.shape)
        self.count = len(ids)
        found = ids.unique().tolist()
        self.parts = [(int(g), None if len(found) == 1 else (ids == g).nonzero()[:, 0]) for g in found]
        self._moved: dict[torch.device, list[tuple[int, Tensor | None]]] = {}

    def check(self, rows: int, groups: int) -> None:
        """Refuse numbers that do not belong to ``rows`` rows, or to no group of ``groups``."""
        if self.count is not None and self.shape != (rows,):
            raise MirlibError(f"groups: expected one number for each of {rows} rows, got shape {self.shape}")
        for group, _ in self.parts:
            if not 0 <= group < groups:
                raise MirlibError(f"group {group} is outside 0..{groups - 1}")

    def on(self, device: torch.device) -> list[tuple[int, Tensor | None]]:
        """`parts` on a device; they are moved there once."""
        if all(index is None for _, index in self.parts):
            return self.parts
        if device not in self._moved:
            self._moved[device] = [(group, index.to(device)) for group, index in self.parts]
        return self._moved[device]


def _pair(groups: Any) -> tuple[RowGroups, RowGroups]:
    pair = groups if isinstance(groups, tuple) else (groups, groups)
    return tuple(part if isinstance(part, RowGroups) else RowGroups(part) for part in pair)


class FiniteChecks:
    """Finds rows that are not finite in many layers, and reads the answer from the device once for all of them.

    Asking after every layer would make the host wait for the device 2 K times a batch.
    """

    class _Pending(NamedTuple):
        layer: int
        modality: str
        name_row: Callable[[str, int], str]
        first: Tensor  # () int64: the number of the first such row, or −1

    def __init__(self) -> None:
        self._pending: list[FiniteChecks._Pending] = []

    def add(self, layer: int, modality: str, norms: Tensor, name_row: Callable[[str, int], str]) -> None:
        """Note the (n,) norms of a layer's rows, for `settle`; nothing is read from the device."""
        broken = ~torch.isfinite(norms)
        first = torch.where(broken.any(), broken.to(torch.uint8).argmax(), -1)
        self._pending.append(self._Pending(layer, modality, name_row, first))

    def settle(self) -> None:
        """Read all answers, one transfer a device, and forget them.

        Raises:
            MirlibError: If a row is not finite; it names the first layer, its modality and the row.
        """
        pending, self._pending = self._pending, []
        found: dict[int, int] = {}
        for device in {check.first.device for check in pending}:
            numbers = [i for i, check in enumerate(pending) if check.first.device == device]
            found |= zip(numbers, torch.stack([pending[i].first for i in numbers]).tolist(), strict=True)
        for i, check in enumerate(pending):
            if found[i] >= 0:
                raise not_finite(check.layer, check.modality, check.name_row(check.modality, found[i]))


def moment_bytes(layers: int, dim: int, groups: int = 1) -> int:
    """Bytes of the moments of both modalities: scatter, mean and count in float64, for each layer and group."""
    return 2 * layers * groups * (dim + 2) * dim * 8


def _row_of_batch(modality: str, row: int) -> str:
    return f"row {row} of the batch"


def _merge_processes(stacked: Tensor) -> Tensor:
    """(processes, groups, d + 2, d) packed moments to (groups, d + 2, d), merged in the order of the ranks."""
    merged = []
    for parts in stacked.unbind(dim=1):
        total = _unpack(parts[0])
        for part in parts[1:]:
            total = total.merge(_unpack(part))
        merged.append(_pack(total))
    return torch.stack(merged)


class ModalityIntegrationRate(Metric):
    """Modality Integration Rate, ``log10 Σ_k FID_k``, accumulated batch by batch.

    Feed every batch, call `begin_second_pass`, feed the same batches again, then `compute` or `result`. With
    ``outliers="none"`` one pass is enough. Works across processes: the state merges exactly, and each process sees its
    own share of the samples.

    Args:
        num_layers: Number of decoder layers, K.
        dim: Width d of the hidden states.
        preset: ``"paper"``. The authors' presets need the rows themselves; see `mirlib.modality_integration_rate`.
        outliers: ``"drop"`` (default) or ``"none"``.
        normalize: Whether to apply the text-centric scale α_k.
        groups: Number of groups of samples for the jackknife; 1 for no interval. The moments are kept once a group:
            ``2 K groups (d + 2) d`` float64 numbers (`state_bytes`).
        confidence: For example 0.95, for a jackknife interval; needs at least 2 groups.
        trace: Route to the trace term of each layer, ``"exact"`` or ``"polar"``; see `mirlib.frechet.trace_term`. The
            result's settings hold the largest error that ``"polar"`` proved, and a warning names the layers where it
            could not and the exact route was taken.
        kwargs: Passed to `torchmetrics.Metric`.

    Raises:
        MirlibError: For settings that cannot be streamed.

    Source: arXiv 2410.07167, Eq. 1–4; moments merged after Chan, Golub & LeVeque (1979).

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> batches = [torch.randn(2, 50, 4, generator=generator) for _ in range(6)]
        >>> metric = ModalityIntegrationRate(num_layers=2, dim=4)
        >>> for rows in batches:
        ...     metric.update(3 * rows, rows)
        >>> metric.begin_second_pass()
        >>> for rows in batches:
        ...     metric.update(3 * rows, rows)
        >>> round(float(metric.compute()), 1)
        0.9
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(
        self,
        num_layers: int,
        dim: int,
        *,
        preset: str = "paper",
        outliers: str | None = None,
        normalize: bool = True,
        groups: int = 1,
        confidence: float | None = None,
        trace: str = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        chosen = resolve_settings(preset, outliers, None)
        if chosen.outliers == "median" or chosen.sqrt != "exact":
            raise MirlibError(
                f"preset {preset!r} needs all rows in memory (medians over rows); pass them to "
                "modality_integration_rate, or stream with preset='paper'"
            )
        if num_layers < 1 or dim < 1 or groups < 1:
            raise MirlibError(f"num_layers, dim and groups must be at least 1, got {num_layers}, {dim}, {groups}")
        if confidence is not None:
            check_confidence(confidence)
            if groups < 2:
                raise MirlibError("a jackknife interval needs groups=2 or more")
        if trace not in TRACE_METHODS:
            raise MirlibError(f"unknown route to the trace term {trace!r}; choose one of {', '.join(TRACE_METHODS)}")
        self.num_layers, self.dim, self.groups, self.trace = num_layers, dim, groups, trace
        self.preset, self.outliers, self.normalize, self.confidence = preset, chosen.outliers, normalize, confidence
        # A pass, not a state: every process is in the same one.
        self._second_pass = False
        self._bounds: list[tuple[NormBounds, NormBounds]] = []
        # One zero seen as many: the moments of a layer take memory when its first rows come, and where those are.
        unseen = torch.zeros((), dtype=torch.float64).expand(groups, dim + 2, dim)
        for layer in range(1, num_layers + 1):
            for modality in MODALITIES:
                self.add_state(f"norms_{modality}_{layer}", default=[], dist_reduce_fx="cat")
                name = f"moments_{modality}_{layer}"
                self.add_state(name, default=unseen[:0], dist_reduce_fx=_merge_processes)
                self._defaults[name] = unseen  # add_state writes zeros out, here and in the state
                setattr(self, name, unseen)
        # (K, groups, modality, [count, sum of norms]) of all rows, outliers included
        self.add_state(
            "norm_sums", default=torch.zeros(num_layers, groups, 2, 2, dtype=torch.float64), dist_reduce_fx="sum"
        )
        # (K, modality, [count, sum of norms]) of the second pass, to tell whether it saw the same rows
        self.add_state(
            "second_norm_sums", default=torch.zeros(num_layers, 2, 2, dtype=torch.float64), dist_reduce_fx="sum"
        )

    @property
    def passes(self) -> int:
        """How many times the batches have to go in: 2, or 1 without the outlier rule."""
        return 1 if self.outliers == "none" else 2

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments, which do not grow with the number of samples."""
        return moment_bytes(self.num_layers, self.dim, self.groups)

    def set_dtype(self, dst_type: Any) -> ModalityIntegrationRate:
        """Leave the state in float64: a half-precision metric would be wrong without a word."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ModalityIntegrationRate:
        """Move the state to another device; `to(torch.float16)`, which torchmetrics lets through, changes nothing."""

        def move(values: Tensor) -> Tensor:
            moved = fn(values)
            return moved if moved.dtype == values.dtype else values.to(moved.device)

        return super()._apply(move, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the value of that batch alone, where one pass is enough.

        Raises:
            MirlibError: With an outlier rule, since a batch has no value before all norms are known.
        """
        if self.passes == 2:
            raise MirlibError(
                "a batch alone has no value, since the outlier rule needs the norms of all rows: call update() for "
                "every batch, twice, and compute() at the end"
            )
        return super().forward(*args, **kwargs)

    def update(self, vision: Sequence[Any], text: Sequence[Any], groups: Any = 0) -> None:
        """Add a batch of rows.

        Args:
            vision: K arrays (r, d).
            text: K arrays (s, d).
            groups: Jackknife group of the batch, or a pair of integer tensors (r,) and (s,) with the group of each row.
                All rows of a sample belong to one group.

        Raises:
            MirlibError: For wrong shapes or values that are not finite; the state is left as it was.
        """
        vision_rows = [as_rows(rows, f"vision, layer {k}") for k, rows in enumerate(vision, start=1)]
        text_rows = [as_rows(rows, f"text, layer {k}") for k, rows in enumerate(text, start=1)]
        if len(vision_rows) != self.num_layers:
            raise MirlibError(f"expected {self.num_layers} layers, got {len(vision_rows)}")
        check_layers(vision_rows, text_rows, minimum=1)
        groups = _pair(groups)
        checks = FiniteChecks()
        layers = [
            self._checked(k, pair, groups, _row_of_batch, checks)
            for k, pair in enumerate(zip(vision_rows, text_rows, strict=True), start=1)
        ]
        checks.settle()
        for k, (rows, norms) in enumerate(layers, start=1):
            self._add_layer(k, rows, norms, groups)

    def update_layer(
        self,
        layer: int,
        vision: Any,
        text: Any,
        groups: Any = 0,
        name_row: Callable[[str, int], str] = _row_of_batch,
        checks: FiniteChecks | None = None,
    ) -> None:
        """Add one layer's rows of a batch; `update` for callers that see one layer at a time.

        Args:
            layer: 1..K.
            vision: (r, d) rows.
            text: (s, d) rows.
            groups: As for `update`, or a pair of `RowGroups`, which spares finding them again in every layer.
            name_row: Names a row in an error message, given the modality and its number in the batch.
            checks: Where to note whether the rows are finite, for callers that `settle` a batch at once and give the
                metric up if it raises. Without it the host waits for the answer here.
        """
        if not 1 <= layer <= self.num_layers:
            raise MirlibError(f"layer {layer}: layers are numbered 1..{self.num_layers}")
        groups = _pair(groups)
        now = FiniteChecks() if checks is None else checks
        rows, norms = self._checked(layer, (vision, text), groups, name_row, now)
        if checks is None:
            now.settle()
        self._add_layer(layer, rows, norms, groups)

    def _checked(
        self,
        layer: int,
        pair: tuple[Any, Any],
        groups: tuple[RowGroups, RowGroups],
        name_row: Callable[[str, int], str],
        checks: FiniteChecks,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The rows of a layer and their norms, vision and text, refused where they do not fit."""
        found = []
        for modality, values, row_groups in zip(MODALITIES, pair, groups, strict=True):
            rows = as_rows(values, f"{modality}, layer {layer}")
            if rows.shape[1] != self.dim:
                raise MirlibError(
                    f"layer {layer}: {modality} rows have {rows.shape[1]} dimensions, the metric was made for "
                    f"{self.dim}"
                )
            row_groups.check(len(rows), self.groups)
            norms = row_norms(rows)
            checks.add(layer, modality, norms, name_row)
            found.append((rows, norms))
        return tuple(zip(*found, strict=True))

    def _add_layer(
        self,
        layer: int,
        pair: tuple[Tensor, ...],
        norms_of: tuple[Tensor, ...],
        groups: tuple[RowGroups, RowGroups],
    ) -> None:
        """Add checked rows. On a GPU nothing in here waits for the device: counts and masks stay on it."""
        self._computed = None
        for column, (modality, rows, norms, row_groups) in enumerate(
            zip(MODALITIES, pair, norms_of, groups, strict=True)
        ):
            self._move_sums(norms.device)
            if self._second_pass:
                self.second_norm_sums[layer - 1, column, 0] += len(norms)
                self.second_norm_sums[layer - 1, column, 1] += norms.sum().to(self.second_norm_sums.device)
            elif self.passes == 2:
                _append(getattr(self, f"norms_{modality}_{layer}"), norms.to(torch.float32))
            for (group, members), (_, of_norms) in zip(
                row_groups.on(rows.device), row_groups.on(norms.device), strict=True
            ):
                kept = norms if of_norms is None else norms[of_norms]
                if not self._second_pass:
                    self.norm_sums[layer - 1, group, column, 0] += len(kept)
                    self.norm_sums[layer - 1, group, column, 1] += kept.sum().to(self.norm_sums.device)
                if self._second_pass or self.passes == 1:
                    self._add_moments(layer, modality, group, rows if members is None else rows[members], kept)

    def _move_sums(self, device: torch.device) -> None:
        """Follow the first rows to their device: a sum that went to the host would wait for it in every layer."""
        if self.norm_sums.device.type == "cpu" and device.type != "cpu":
            self.norm_sums, self.second_norm_sums = self.norm_sums.to(device), self.second_norm_sums.to(device)

    def _add_moments(self, layer: int, modality: str, group: int, rows: Tensor, norms: Tensor) -> None:
        name, device = f"moments_{modality}_{layer}", float64_device(rows)
        packed = getattr(self, name)
        if packed.stride(-1) == 0:  # nothing was added yet
            packed = torch.zeros(packed.shape, dtype=torch.float64, device=device)
            setattr(self, name, packed)
        elif packed.device != device:  # the state lives where its layer does
            packed = packed.to(device)
            setattr(self, name, packed)
        weights = None
        if self._second_pass:
            bounds = self._bounds[layer - 1][MODALITIES.index(modality)]
            weights = (~bounds.outliers(norms)).to(device=device, dtype=torch.float64)
        own = packed[group]
        add_rows(own[-1, 0], own[-2], own[:-2], rows, weights)

    def begin_second_pass(self, processes: Processes | None = None) -> None:
        """End the first pass: draw the 3σ bounds from all norms, those of other processes included.

        Args:
            processes: Those that share the samples, each of which must call this; norms alone travel between them.
                Without it torchmetrics' way of finding the other processes holds, which gathers the whole state.

        Raises:
            MirlibError: If nothing was fed, or the outlier rule is off and one pass is all there is.
        """
        if self.passes == 1:
            raise MirlibError("without an outlier rule one pass is enough; call compute()")
        if self._second_pass:
            raise MirlibError("the second pass has begun already; call reset() to start again")
        layers = range(1, self.num_layers + 1)
        if processes is not None and processes.size > 1:
            self._check_rows(processes.total(self.norm_sums))
            norms_of = [
                processes.concatenate(torch.stack([self._norms(modality, layer).cpu() for layer in layers]))
                for modality in MODALITIES
            ]
            self._bounds = [tuple(NormBounds.three_sigma(norms[k - 1]) for norms in norms_of) for k in layers]
        else:
            with self._synced():
                self._check_rows(self.norm_sums)
                self._bounds = [
                    tuple(NormBounds.three_sigma(self._norms(modality, layer)) for modality in MODALITIES)
                    for layer in layers
                ]
        self._second_pass = True

    def reset(self) -> None:
        """Forget everything and start a first pass."""
        defaults = self._defaults
        unseen = {name: default for name, default in defaults.items() if name.startswith("moments_")}
        self._defaults = {name: default for name, default in defaults.items() if name not in unseen}
        try:
            super().reset()
        finally:
            self._defaults = defaults
        for name, default in unseen.items():  # super() would write all their zeros out
            setattr(self, name, default)
        self._second_pass = False
        self._bounds = []

    def compute(self) -> Tensor:
        """MIR as a float64 scalar; for its parts see `result`.

        Raises:
            MirlibError: If a pass is missing.
        """
        return torch.tensor(self._summarise(progress=True).value, dtype=torch.float64)

    def result(self, processes: Processes | None = None, *, progress: bool = True) -> MIRResult:
        """The whole `MIRResult`, over all processes.

        Args:
            processes: As for `begin_second_pass`. The layers are shared out: each process adds up some of them, and no
                process holds the state of another.
            progress: Draw a progress bar on stderr if adding up takes more than three seconds.

        Raises:
            MirlibError: If a pass is missing, the two passes saw different rows, or fewer than 2 rows are left.
        """
        if processes is not None and processes.size > 1:
            with threads_for(self.dim):
                return self._add_up_together(processes, progress)
        with self._synced():
            return self._summarise(progress)

    def _synced(self) -> Any:
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced, should_unsync=True
        )

    def _norms(self, modality: str, layer: int) -> Tensor:
        norms = getattr(self, f"norms_{modality}_{layer}")
        if isinstance(norms, Tensor):
            return norms
        return torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float32)

    @staticmethod
    def _check_rows(norm_sums: Tensor) -> None:
        counts = norm_sums[:, :, :, 0].sum(dim=1)  # (K, 2)
        for layer, pair in enumerate(counts.tolist(), start=1):
            for modality, count in zip(MODALITIES, pair, strict=True):
                if count < 2:
                    raise MirlibError(f"layer {layer}: {int(count)} {modality} row(s); at least 2 are needed")

    def _summarise(self, progress: bool) -> MIRResult:
        with threads_for(self.dim):
            return self._add_up(progress)

    def _add_up(self, progress: bool) -> MIRResult:
        self._check_passes()
        self._check_rows(self.norm_sums)
        layers = range(1, self.num_layers + 1)
        norm_sums = self.norm_sums.cpu()
        parts = [
            self._layer(layer, *self._moments_of(layer), norm_sums)
            for layer in tqdm(layers, **_BAR, disable=not progress)
        ]
        return self._assemble(parts, norm_sums)

    def _add_up_together(self, processes: Processes, progress: bool) -> MIRResult:
        """The same over all processes, layer k in the process k − 1 modulo their number."""
        processes.together(self._check_passes)
        norm_sums = processes.total(self.norm_sums).cpu()
        self._check_rows(norm_sums)
        mine: dict[int, list[list[Moments]]] = {}
        for layer in range(1, self.num_layers + 1):
            owner = (layer - 1) % processes.size
            merged = [processes.merge_moments(getattr(self, f"moments_{m}_{layer}"), owner) for m in MODALITIES]
            if owner == processes.rank:
                mine[layer] = [[_unpack(packed) for packed in side] for side in merged]
        bar = tqdm(mine, **_BAR, disable=not (progress and processes.leads))
        found = processes.together(lambda: {layer: self._layer(layer, *mine[layer], norm_sums) for layer in bar})
        parts: dict[int, tuple[LayerSummary, np.ndarray]] = {}
        for part in processes.gather(found):
            parts |= part
        return self._assemble([parts[layer] for layer in sorted(parts)], norm_sums)

    def _assemble(self, parts: list[tuple[LayerSummary, np.ndarray]], norm_sums: Tensor) -> MIRResult:
        layers = [summary for summary, _ in parts]
        settings = {
            "preset": self.preset,
            "outliers": self.outliers,
            "sqrt": "exact",
            "normalize": self.normalize,
            "layers": self.num_layers,
            "dim": self.dim,
        }
        interval = None
        if self.confidence is not None:
            # Every replicate has its own α_k; the outlier bounds stay those of all rows.
            values = [log10_sum(distances) for distances in np.stack([left_out for _, left_out in parts], axis=1)]
            error = math.sqrt((len(values) - 1) * spread(values))
            value = log10_sum(layer.distance.total for layer in layers)
            interval = normal_interval(value, error, self.confidence, "jackknife")
        notes = []
        if self.trace == "polar":
            proved = [layer.trace_error for layer in layers if layer.trace_fallback is None]
            settings |= {"trace": "polar", "trace_error": max(proved, default=None)}
            for reason in dict.fromkeys(layer.trace_fallback for layer in layers if layer.trace_fallback):
                where = ", ".join(str(k) for k, layer in enumerate(layers, start=1) if layer.trace_fallback == reason)
                notes.append(f"the exact route to the trace term was taken in layers {where}: {reason}")
        return assemble(layers, settings, interval, notes)

    def _moments_of(self, layer: int) -> tuple[list[Moments], list[Moments]]:
        return tuple(
            [_unpack(packed) for packed in getattr(self, f"moments_{modality}_{layer}")] for modality in MODALITIES
        )

    def _layer(
        self, layer: int, vision_groups: list[Moments], text_groups: list[Moments], norm_sums: Tensor
    ) -> tuple[LayerSummary, np.ndarray]:
        """A layer's summary, and FID_k of each jackknife replicate: one for each group that has rows."""
        vision, text = _merge_all(vision_groups), _merge_all(text_groups)
        (vision_count, vision_norms), (text_count, text_norms) = norm_sums[layer - 1].sum(dim=0).tolist()
        outliers = (int(vision_count) - vision.count, int(text_count) - text.count)
        for modality, moments in zip(MODALITIES, (vision, text), strict=True):
            if moments.count < 2:
                raise MirlibError(f"layer {layer}: fewer than 2 {modality} rows are left after the outlier rule")
        scale = text_scale(text_norms, int(text_count), layer) if self.normalize else 1.0
        distance, bias, trace = distance_and_trace(vision, text, self.trace)
        text_norm = text_norms / text_count
        summary = LayerSummary(
            distance=scaled(distance, scale),
            bias=bias * scale**2,
            scale=scale,
            norm_ratio=vision_norms / vision_count / text_norm if text_norm > 0 else math.inf,
            vision_energy=vision.mean_square_norm * scale**2,
            text_energy=null_energy(text) * scale**2,
            outliers=outliers,
            rows=(int(vision_count), int(text_count)),
            dim=self.dim,
            trace_error=trace.error,
            trace_fallback=trace.fallback,
        )
        return summary, self._replicates(layer, vision_groups, text_groups, norm_sums)

    def _check_passes(self) -> None:
        """Refuse passes that are missing, or that saw other rows than the first."""
        if self.passes == 1:
            return
        if not self._second_pass:
            raise MirlibError("feed the batches, call begin_second_pass(), and feed the same batches again")
        for layer in range(1, self.num_layers + 1):
            kept = [getattr(self, f"moments_{modality}_{layer}")[:, -1, 0].sum() for modality in MODALITIES]
            rows = self.norm_sums[layer - 1, :, :, 0].sum(dim=0)
            self._check_second_pass(
                layer, tuple(int(count) - int(left) for count, left in zip(rows, kept, strict=True))
            )

    def _check_second_pass(self, layer: int, outliers: tuple[int, int]) -> None:
        """Compare the rows of the two passes: how many, how long in the mean, and how many of them outliers."""
        first, second = self.norm_sums[layer - 1].sum(dim=0), self.second_norm_sums[layer - 1]
        if not torch.equal(first[:, 0], second[:, 0]):
            counts = [tuple(int(count) for count in sums[:, 0]) for sums in (first, second)]
            difference = f"{counts[1]} vision and text rows came instead of {counts[0]}"
        elif not torch.allclose(first[:, 1], second[:, 1], rtol=SAME_NORMS, atol=0):
            difference = "their norms differ"
        elif self._expected_outliers(layer) != outliers:
            difference = f"it dropped {outliers} vision and text rows instead of {self._expected_outliers(layer)}"
        else:
            return
        raise MirlibError(
            f"layer {layer}: the second pass did not see the rows of the first ({difference}); feed the same batches "
            "twice, with the model in eval mode"
        )

    def _expected_outliers(self, layer: int) -> tuple[int, int]:
        return tuple(
            int(bounds.outliers(self._norms(modality, layer)).sum())
            for modality, bounds in zip(MODALITIES, self._bounds[layer - 1], strict=True)
        )

    def _replicates(self, layer: int, vision: list[Moments], text: list[Moments], norm_sums: Tensor) -> np.ndarray:
        """Delete-a-group jackknife: FID_k without each of the groups that have rows; empty without an interval."""
        if self.confidence is None:
            return np.zeros(0)
        filled = (norm_sums[0, :, :, 0] > 0).all(dim=1).nonzero()[:, 0].tolist()
        if len(filled) < 2:
            raise MirlibError("a jackknife interval needs rows of both modalities in at least 2 groups")
        rest_of_vision, rest_of_text = _leave_one_out(vision), _leave_one_out(text)
        distances = np.zeros(len(filled))
        for row, left_out in enumerate(filled):
            sums = norm_sums[layer - 1].sum(dim=0) - norm_sums[layer - 1, left_out]
            scale = text_scale(float(sums[1, 1]), int(sums[1, 0]), layer) if self.normalize else 1.0
            distance, _, _ = distance_and_trace(rest_of_vision[left_out], rest_of_text[left_out], self.trace)
            distances[row] = scaled(distance, scale).total
        return distances


def _merge_all(parts: list[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def _leave_one_out(parts: list[Moments]) -> list[Moments]:
    """For each part the moments of all others, by merging from both ends: 3 n merges instead of n²."""
    before, after = (
        [Moments.empty(parts[0].dim, parts[0].mean.device)],
        [Moments.empty(parts[0].dim, parts[0].mean.device)],
    )
    for part in parts[:-1]:
        before.append(before[-1].merge(part))
    for part in parts[:0:-1]:
        after.append(after[-1].merge(part))
    return [left.merge(right) for left, right in zip(before, reversed(after), strict=True)]
