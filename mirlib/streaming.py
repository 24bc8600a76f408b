"""The Modality Integration Rate over batches, in constant memory and as a rule in one pass, as a torchmetrics metric.

Most rows lie so far inside the 3σ bounds that they are accepted at once, the others wait until all norms are known. The
norms are kept (4 bytes a token a layer), so a row that was accepted and should not have been is always seen; only then
the layers concerned need the batches once more. An interval takes one more pass, see `mirlib.influence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from mirlib.accumulators import FiniteChecks, RowSamples, Running, Side, row_of_batch
from mirlib.distributed import Processes
from mirlib.errors import MirlibError
from mirlib.frechet import Moments, as_rows, energy, frechet_distance_from_moments, threads_for
from mirlib.influence import LayerInfluence, SampleInfluence, influence_interval, why_no_interval
from mirlib.mir import (
    ALL_ROWS,
    MODALITIES,
    LayerSummary,
    NormBounds,
    as_layers,
    assemble,
    check_confidence,
    check_layers,
    log10_sum,
    norm_floor,
    resolve_settings,
    row_norms,
    scaled,
    text_scale,
)
from mirlib.result import Influence, MIRResult

__all__ = ["ModalityIntegrationRate"]

SAME_NORMS = 1e-5  # relative: kernels that add in another order in the second pass are forgiven, dropout is not
_BAR = {"unit": "layer", "delay": 3, "leave": False}


class _Known(NamedTuple):
    """What follows from the first pass, over all processes."""

    sums: np.ndarray  # (K, modality, [count, sum of norms])
    bounds: list[tuple[NormBounds, NormBounds]]
    wrong: np.ndarray  # (K, modality) bool: a row was accepted that is an outlier
    aside: float  # share of the rows that were set aside to the end
    samples: int


class ModalityIntegrationRate(Metric):
    """Modality Integration Rate, ``log10 Σ_k FID_k``, accumulated batch by batch.

    Feed every batch, then `compute` or `result`. Where `needs_second_pass` gives a reason, call `begin_second_pass` and
    feed the same batches again: for an interval always, for the value alone in rare cases. Works across processes: each
    sees its own share of the samples, and all get the same result.

    Args:
        num_layers: Number of decoder layers, K.
        dim: Width d of the hidden states.
        preset: ``"paper"``. The authors' presets need the rows themselves; see `mirlib.modality_integration_rate`.
        outliers: ``"drop"`` (default) or ``"none"``.
        normalize: Whether to apply the text-centric scale α_k.
        confidence: For example 0.95, for an interval over samples, by their influences; None for the value alone. There
            is no interval where rows are fewer than twice the dimensions.
        kwargs: Passed to `torchmetrics.Metric`; with ``sync_on_compute=False`` each process is on its own.

    Raises:
        MirlibError: For settings that cannot be streamed.

    Source: arXiv 2410.07167, Eq. 1–4; moments merged after Chan, Golub & LeVeque (1979).

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = ModalityIntegrationRate(num_layers=2, dim=4)
        >>> for _ in range(6):
        ...     rows = torch.randn(2, 50, 4, generator=generator)
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
        confidence: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "distributed_available_fn": bool})  # False: the processes meet in `Processes`
        chosen = resolve_settings(preset, outliers, None)
        if chosen.in_memory:
            raise MirlibError(
                f"preset {preset!r} needs all rows in memory (medians over rows); pass them to "
                "modality_integration_rate, or stream with preset='paper'"
            )
        if num_layers < 1 or dim < 1:
            raise MirlibError(f"num_layers and dim must be at least 1, got {num_layers} and {dim}")
        if confidence is not None:
            check_confidence(confidence)
        self.num_layers, self.dim = num_layers, dim
        self.preset, self.outliers, self.normalize, self.confidence = preset, chosen.outliers, normalize, confidence
        self._clear()

    def _clear(self) -> None:
        self._layers = [(Side(self.dim, True), Side(self.dim, False)) for _ in range(self.num_layers)]
        self._stage = "moments"  # then perhaps "repair", then perhaps "influence"
        self._passes = 1
        self._places: dict[int, int] = {}  # of the samples, in the order in which they came
        self._updates, self._samples_are_batches = 0, False
        self._batches = 0  # of the first pass
        self._forget_sum()
        self._influences: list[list[SampleInfluence]] = []

    def _forget_sum(self) -> None:
        self._known: _Known | None = None
        self._summaries: list[LayerSummary] = []
        self._no_interval: str | None = None  # why there is none

    def set_dtype(self, dst_type: Any) -> ModalityIntegrationRate:
        """Leave the state in float64: a half-precision metric would be wrong without a word."""
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> ModalityIntegrationRate:
        super()._apply(*args, **kwargs)
        self._computed = None  # which the module's conversion would have rounded
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add a batch, and return the value of that batch alone."""
        options = {name: getattr(self, name) for name in ("outliers", "normalize")}
        alone = ModalityIntegrationRate(self.num_layers, self.dim, sync_on_compute=False, **options)
        alone.update(*args, **kwargs)
        self._forward_cache = alone.compute()  # where Lightning looks for it
        self.update(*args, **kwargs)
        return self._forward_cache

    def merge_state(self, incoming_state: Any) -> None:
        """Refused with a `MirlibError`: what waits in one metric depends on the rows of the other."""
        raise MirlibError(
            "the states of two metrics cannot be merged: feed all batches to one, or let processes of "
            "torch.distributed each feed their own and call compute() together"
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Rows come in

    def update(self, vision: Sequence[Any], text: Sequence[Any], samples: Any = None) -> None:
        """Add a batch of rows.

        Args:
            vision: K arrays (r, d).
            text: K arrays (s, d).
            samples: Pair of integer arrays (r,) and (s,): the sample of each row, numbered by you, the same in every
                pass. Left out, each batch is one sample.

        Raises:
            MirlibError: For wrong shapes or values that are not finite; the state is left as it was.
        """
        vision_rows, text_rows = as_layers(vision, "vision"), as_layers(text, "text")
        if len(vision_rows) != self.num_layers:
            raise MirlibError(f"expected {self.num_layers} layers, got {len(vision_rows)}")
        check_layers(vision_rows, text_rows, minimum=1)
        by_batch, samples = samples is None, self._samples_of(samples)
        checks = FiniteChecks()
        layers = [
            self._checked(k, pair, samples, row_of_batch, checks)
            for k, pair in enumerate(zip(vision_rows, text_rows, strict=True), start=1)
        ]
        checks.settle()
        for k, pair in enumerate(layers, start=1):
            self._add_layer(k, pair, samples, by_batch)

    def update_layer(
        self,
        layer: int,
        vision: Any,
        text: Any,
        samples: Any = None,
        name_row: Callable[[str, int], str] = row_of_batch,
        checks: FiniteChecks | None = None,
    ) -> None:
        """Add one layer's rows of a batch; `update` for callers that see one layer at a time, from 1 to K.

        Args:
            layer: 1..K.
            vision: (r, d) rows.
            text: (s, d) rows.
            samples: As for `update`, or `RowSamples`, which spares looking them up again in every layer.
            name_row: Names a row in an error message, given the modality and its number in the batch.
            checks: Notes whether the rows are finite, to be settled by the caller once a batch; else the host waits
                here.
        """
        if not 1 <= layer <= self.num_layers:
            raise MirlibError(f"layer {layer}: layers are numbered 1..{self.num_layers}")
        by_batch, samples = samples is None, self._samples_of(samples)
        now = FiniteChecks() if checks is None else checks
        pair = self._checked(layer, (vision, text), samples, name_row, now)
        if checks is None:
            now.settle()
        self._update_count += layer == self.num_layers  # torchmetrics asks for it
        self._add_layer(layer, pair, samples, by_batch)

    def _samples_of(self, samples: Any) -> RowSamples:
        if isinstance(samples, RowSamples):
            return samples
        if samples is None:
            samples = self._updates, self._updates
        if not isinstance(samples, (tuple, list)) or len(samples) != 2:
            raise MirlibError("samples: expected a pair, the sample of each vision row and that of each text row")
        return RowSamples(*samples)

    def _checked(
        self,
        layer: int,
        pair: tuple[Any, Any],
        samples: RowSamples,
        name_row: Callable[[str, int], str],
        checks: FiniteChecks,
    ) -> list[tuple[Tensor, Tensor]]:
        """The rows of a layer with their norms, vision and text, refused where they do not fit."""
        found = []
        for modality, values in zip(MODALITIES, pair, strict=True):
            rows = as_rows(values, f"{modality}, layer {layer}")
            if rows.shape[1] != self.dim:
                raise MirlibError(
                    f"layer {layer}: {modality} rows have {rows.shape[1]} dimensions, the metric was made for "
                    f"{self.dim}"
                )
            norms = row_norms(rows)
            checks.add(layer, modality, norms, name_row)
            found.append((rows, norms))
        samples.check(tuple(len(rows) for rows, _ in found))
        return found

    def _add_layer(self, layer: int, pair: list[tuple[Tensor, Tensor]], samples: RowSamples, by_batch: bool) -> None:
        """Add checked rows. Counts and masks stay on the device; where rows are set aside, the host waits for them."""
        self._computed = None
        self._samples_are_batches |= by_batch
        self._updates += layer == self.num_layers
        if self._stage == "moments":
            self._forget_sum()
            for number in samples.numbers if layer == 1 else ():
                self._places.setdefault(number, len(self._places))
        elif self._stage == "repair":
            self._summaries = []
        elif unknown := [number for number in samples.numbers if number not in self._places]:
            raise MirlibError(f"sample {unknown[0]} was not in the first pass; feed the same batches again")
        for side, (rows, norms) in enumerate(pair):
            kept = self._layers[layer - 1][side]
            if self._stage == "moments":
                kept.take(rows, norms, len(self._places), self.outliers == "drop")
                continue
            kept.count(norms, again=True)
            if self._stage == "influence":
                sums = self._influences[layer - 1][side]
                sums.add(rows, norms, samples.index(side, self._places, len(rows), sums.of_rows.device))
            elif self._known.wrong[layer - 1, side]:
                kept.add(rows, norms, ~self._known.bounds[layer - 1][side].outliers(norms))

    # -----------------------------------------------------------------------------------------------------------------
    # Between the passes

    def _meet(self, processes: Processes | None) -> Processes:
        return Processes.current(bool(self.sync_on_compute)) if processes is None else processes

    def _learn(self, processes: Processes) -> _Known:
        """What the first pass says, found once after the last batch."""
        if self._known is not None:
            return self._known
        sums = torch.stack([torch.stack([side.sums[0].cpu() for side in layer]) for layer in self._layers])
        sums = processes.total(sums).numpy()
        for layer, pair in enumerate(sums[:, :, 0], start=1):
            for modality, count in zip(MODALITIES, pair, strict=True):
                if count < 2:
                    raise MirlibError(f"layer {layer}: {int(count)} {modality} row(s); at least 2 are needed")
        bounds = [(ALL_ROWS, ALL_ROWS)] * self.num_layers
        if self.outliers != "none":
            norms = [[side.all_norms for side in sides] for sides in zip(*self._layers, strict=True)]
            if processes.size > 1:
                norms = [processes.concatenate(torch.stack([each.cpu() for each in side])) for side in norms]
            bounds = list(zip(*([NormBounds.three_sigma(each) for each in side] for side in norms), strict=True))
        found = torch.zeros(2, self.num_layers, 2, dtype=torch.float64)  # accepted outliers, rows set aside
        for k, layer in enumerate(self._layers):
            for side, kept in enumerate(layer):
                found[0, k, side] = kept.accepted_outlier(bounds[k][side])
                found[1, k, side] = sum(len(rows) for rows, _ in kept.aside)
        wrong, aside = processes.total(found).numpy()
        samples = sum(processes.gather(len(self._places)))
        self._known = _Known(sums, bounds, wrong > 0, float(aside.sum() / sums[:, :, 0].sum()), samples)
        return self._known

    def needs_second_pass(self, processes: Processes | None = None, *, progress: bool = True) -> str | None:
        """Why the batches have to go in once more, or None if all is known.

        In a distributed run all ``processes`` (left out: those of ``torch.distributed``) must call it, and the next two
        as well.

        Raises:
            MirlibError: If nothing was fed, or a pass did not see the rows of the first.
        """
        processes = self._meet(processes)
        known = self._learn(processes)
        if self._stage == "moments" and known.wrong.any():
            return (
                f"repair: in {known.wrong.sum()} of {known.wrong.size} sets of rows one was accepted that turned out "
                "to be an outlier"
            )
        if self._stage in ("moments", "repair") and self.confidence is not None:
            self._add_up(processes, progress)
            if self._no_interval is None:
                return "interval: by influence, which needs the moments first"
        return None

    def begin_second_pass(self, processes: Processes | None = None, *, progress: bool = True) -> None:
        """Get ready for the batches to go in once more; after a repair, for an interval, a third time.

        Raises:
            MirlibError: If nothing was fed, or no further pass is needed.
        """
        processes = self._meet(processes)
        need = self.needs_second_pass(processes, progress=progress)
        if need is None:
            raise MirlibError("no second pass is needed; call compute(), or reset() to start again")
        if need.startswith("repair"):
            for layer, wrong in zip(self._layers, self._known.wrong, strict=True):
                for side in range(2):
                    if wrong[side]:
                        layer[side].clear()
            self._stage = "repair"
        else:
            self._make_maps(processes, progress)
            self._stage = "influence"
        for side in (side for layer in self._layers for side in layer):
            side.sums[1] = 0
        self._batches = self._batches if self._passes > 1 else self._updates
        self._updates = 0
        self._passes += 1

    def moments(self, layer: int) -> tuple[Moments, Moments]:
        """Unscaled moments of the vision rows and text rows of a layer that the outlier rule keeps, in this process.

        Raises:
            MirlibError: Before the first pass is over, while a repair is due, and in a pass for an interval.
        """
        if self._stage not in ("moments", "repair") or self._needs_repair(self._meet(None)):
            raise MirlibError("the moments are known after the first pass, and a repair if it needs one")
        return tuple(part.moments for part in self._settled(layer)[:2])

    def bounds(self, layer: int) -> tuple[NormBounds, NormBounds]:
        """Centre and reach of the norms of a layer's rows that are kept, vision's and text's."""
        return self._learn(self._meet(None)).bounds[layer - 1]

    def _needs_repair(self, processes: Processes) -> bool:
        return self._stage == "moments" and bool(self._learn(processes).wrong.any())

    # -----------------------------------------------------------------------------------------------------------------
    # Adding up

    def _settled(self, layer: int) -> tuple[Running, Running, Running]:
        """Vision, text, and vision of norm 1."""
        (vision, unit), (text, _) = (
            side.settled(bounds)
            for side, bounds in zip(self._layers[layer - 1], self._known.bounds[layer - 1], strict=True)
        )
        return vision, text, unit

    def _owned(self, processes: Processes, forget: bool) -> Iterator[tuple[int, tuple[Moments, ...]]]:
        """The moments of the layers that this process adds up, over all processes: layer k in process k − 1 modulo."""
        for layer in range(1, self.num_layers + 1):
            owner = (layer - 1) % processes.size
            merged = [processes.merge_moments(part.packed, owner) for part in self._settled(layer)]
            if owner == processes.rank:
                yield layer, tuple(Running(packed).moments for packed in merged)
            for side in self._layers[layer - 1] if forget else ():
                side.clear()

    def _each_owned(
        self, processes: Processes, progress: bool, what: str, work: Callable[..., Any], forget: bool = False
    ) -> dict[int, Any]:
        """What ``work(layer, vision, text, unit)`` returns for the moments of the layers that this process adds up."""
        owned: Any = self._owned(processes, forget)
        if processes.size > 1:
            owned = list(owned)  # the processes meet here, and not in their work
        total, silent = self.num_layers // processes.size, not (progress and processes.leads)

        def run() -> dict[int, Any]:
            bar = tqdm(owned, desc=what, total=total, disable=silent, **_BAR)
            with threads_for(self.dim):
                return {layer: work(layer, *moments) for layer, moments in bar}

        return processes.together(run)

    def _add_up(self, processes: Processes, progress: bool) -> None:
        """Sum the layers up, once, and find out whether there can be an interval."""
        if self._summaries:
            return
        processes.together(self._check_passes)
        mine = self._each_owned(processes, progress, "adding up", self._summary)
        parts = {layer: found for part in processes.gather(mine) for layer, found in part.items()}
        self._summaries = [parts[layer] for layer in sorted(parts)]
        if self.confidence is not None:
            self._no_interval = why_no_interval(
                self._known.samples, [layer.fewest_kept for layer in self._summaries], self.dim
            )

    def _summary(self, layer: int, vision: Moments, text: Moments, unit: Moments) -> LayerSummary:
        (vision_count, vision_norms), (text_count, text_norms) = self._known.sums[layer - 1].tolist()
        for modality, moments in zip(MODALITIES, (vision, text), strict=True):
            if moments.count < 2:
                raise MirlibError(f"layer {layer}: fewer than 2 {modality} rows are left after the outlier rule")
        scale = text_scale(text_norms, int(text_count), layer) if self.normalize else 1.0
        distance, bias = frechet_distance_from_moments(vision, text)
        text_norm = text_norms / text_count
        equal = Moments(unit.count, unit.mean * text_norm, unit.scatter * text_norm**2)
        equalised, _ = frechet_distance_from_moments(equal, text)
        energies = energy(vision) * scale**2, energy(text) * scale**2
        return LayerSummary(
            distance=scaled(distance, scale),
            bias=bias * scale**2,
            scale=scale,
            norm_ratio=vision_norms / vision_count / text_norm if text_norm > 0 else math.inf,
            vision_energy=vision.mean_square_norm * scale**2,
            text_energy=energies[1],
            floor=norm_floor(*energies),
            equalised=scaled(equalised, scale).total,
            outliers=(int(vision_count) - vision.count, int(text_count) - text.count),
            rows=(int(vision_count), int(text_count)),
            dim=self.dim,
        )

    def _make_maps(self, processes: Processes, progress: bool) -> None:
        """The maps that influences need, in place of the moments; each process makes some, and all get all."""
        for layer, bounds in zip(self._layers, self._known.bounds, strict=True):
            for side, side_bounds in zip(layer, bounds, strict=True):
                side.settle(side_bounds)
        devices = [layer[0].device for layer in self._layers]

        def make(layer: int, vision: Moments, text: Moments, _: Moments) -> LayerInfluence:
            summary = self._summaries[layer - 1]
            options = {"normalized": self.normalize, "text_rows": summary.rows[1], "dtype": torch.float32}
            return LayerInfluence.of(vision, text, summary.distance.total, summary.scale, **options)

        made = self._each_owned(processes, progress, "maps", make, forget=True)
        cpu, samples = torch.device("cpu"), len(self._places)
        for layer, device in enumerate(devices, start=1):
            mine = made.pop(layer, None)
            if processes.size > 1:  # the device of one process is not that of another
                mine = processes.hand_out(None if mine is None else mine.to(cpu), (layer - 1) % processes.size)
            maps, bounds = mine.to(device), self._known.bounds[layer - 1]
            self._influences.append([SampleInfluence(maps, side, bounds[side], samples, device) for side in range(2)])

    def compute(self) -> Tensor:
        """MIR as a float64 scalar; for its parts see `result`. A `MirlibError` says if it needs another pass."""
        processes = self._meet(None)
        self._check_value(processes)
        self._add_up(processes, progress=True)
        return torch.tensor(log10_sum(layer.distance.total for layer in self._summaries), dtype=torch.float64)

    def result(self, processes: Processes | None = None, *, progress: bool = True) -> MIRResult:
        """The whole `MIRResult`, over all processes, each of which adds up some of the layers.

        Raises:
            MirlibError: If a pass is missing, the passes saw different rows, or fewer than 2 rows are left.
        """
        processes = self._meet(processes)
        self._check_value(processes)
        need = self.needs_second_pass(processes, progress=progress)
        if need is not None:
            raise MirlibError(
                f"a pass is missing ({need}): call begin_second_pass() and feed the same batches again, or make the "
                "metric with confidence=None"
            )
        self._add_up(processes, progress)
        settings = {"preset": self.preset, "outliers": self.outliers, "sqrt": "exact", "normalize": self.normalize}
        settings |= {"layers": self.num_layers, "dim": self.dim}
        if self.outliers != "none":
            settings["set_aside"] = self._known.aside
        interval, influence, notes = None, None, [] if self._no_interval is None else [self._no_interval]
        if self._stage == "influence":
            processes.together(self._check_passes)
            per_layer = np.array([layer.distance.total for layer in self._summaries])
            influence = self._gathered(processes)
            interval = influence_interval(influence, per_layer, log10_sum(per_layer), self.confidence)
        found = assemble(self._summaries, settings, interval, notes)
        return replace(found, influence=influence, passes=self._passes)

    def _check_value(self, processes: Processes) -> None:
        if self._needs_repair(processes):
            raise MirlibError(
                f"the value needs another pass ({self.needs_second_pass(processes)}): call begin_second_pass() and "
                "feed the same batches again"
            )

    def _gathered(self, processes: Processes) -> Influence:
        """The influences of all samples, those of one process behind those of another."""
        sides = []
        for side in range(2):
            parts = [layer[side] for layer in self._influences]
            slopes = processes.total(torch.stack([part.slopes.cpu() for part in parts]))
            mine = torch.stack([part.total(slopes[layer]).cpu() for layer, part in enumerate(parts)])
            sides.append(processes.concatenate(mine).numpy())
        return Influence(*sides, paired=True)

    # -----------------------------------------------------------------------------------------------------------------
    # Were the passes the same?

    def _check_passes(self) -> None:
        """Refuse a later pass that did not see the rows of the first: how many, and how long in the mean."""
        if self._stage == "moments":
            return
        if self._samples_are_batches and self._stage != "repair" and self._updates != self._batches:
            raise MirlibError(
                f"each batch counts as a sample, and {self._updates} came instead of {self._batches}; feed the same "
                "batches again, or say which rows are one sample (samples=)"
            )
        for layer, sides in enumerate(self._layers, start=1):
            for modality, side in zip(MODALITIES, sides, strict=True):
                (first_count, first_norms), (count, norms) = side.sums.tolist()
                if count != first_count:
                    difference = f"{int(count)} {modality} rows came instead of {int(first_count)}"
                elif not math.isclose(norms, first_norms, rel_tol=SAME_NORMS):
                    difference = f"the norms of its {modality} rows differ"
                else:
                    continue
                raise MirlibError(
                    f"layer {layer}: a later pass did not see the rows of the first ({difference}); feed the same "
                    "batches again, with the model in eval mode"
                )

    def reset(self) -> None:
        """Forget everything and start a first pass."""
        super().reset()
        self._clear()
