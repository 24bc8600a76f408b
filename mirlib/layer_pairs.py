"""The Fréchet distance between vision rows after one layer and text rows after another, for all pairs of layers.

MIR is the diagonal of this map. Beside it stand two controls: every row at norm one, for norms grow from layer to layer
and may alone decide which is nearest; and text against text, from two halves of the samples.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.accumulators import FiniteChecks
from mirlib.batches import pair_batches
from mirlib.distributed import Processes
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.frechet import SMALL, Moments, float64_device, frechet_distance_from_moments, threads_for
from mirlib.hidden_states import decoder_parts, from_layer_zero, some_layers, unwrap
from mirlib.mir import MODALITIES, NormBounds, row_norms, text_scale

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["LayerMap", "PairsOfLayers", "layer_map", "layer_map_cost"]

CONFIDENCE = 0.95
GROUPS = 20  # of samples, for the jackknife, where the moments of all are small
FEW_LAYERS = 9  # of wide models: the work grows with the square of their number
KINDS = ("given", "unit")


class PairsOfLayers(NamedTuple):
    """Distances of L layers from L layers.

    Attributes:
        distances: (L, L), row i for the rows after layer i, column j for the text rows after layer j.
        within: (L, L) bool, the text layers that cannot be told from the nearest one of the row, whose distance exceeds
            its by no more than chance may. The nearest alone where there is no interval.
    """

    distances: np.ndarray
    within: np.ndarray

    @property
    def nearest(self) -> np.ndarray:
        """(L,) place of the nearest text layer of each row."""
        return self.distances.argmin(axis=1)


@dataclass(frozen=True)
class LayerMap:
    """Fréchet distances between vision rows after layer i and text rows after layer j.

    Attributes:
        layers: (L,) numbers of the layers; 0 is what enters layer 1.
        given: The rows as they are. Both sides are multiplied by α_j, the inverse of the mean norm of all text rows
            after layer j, so the unit is the squared mean text norm of the text's layer and the diagonal is FID_k.
        unit: Every row divided by its norm; squared distances on the unit sphere, from 0 to 4.
        null: Text rows of one half of the samples after layer i, of the other half after layer j; in units of given.
        scale: (L,) α_j.
        rows: ``{"vision": r, "text": s}``, rows that came in; those that the 3σ rule of their layer catches are
            dropped, as in MIR, from all three maps.
        settings: How it was computed.
    """

    layers: tuple[int, ...]
    given: PairsOfLayers
    unit: PairsOfLayers
    null: PairsOfLayers
    scale: np.ndarray
    rows: Mapping[str, int]
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """The nearest text layer of each vision layer, in the maps ``given`` and ``unit``."""
        import pandas as pd

        numbers = pd.Index(self.layers, name="vision after layer")
        return pd.DataFrame({kind: numbers[getattr(self, kind).nearest] for kind in KINDS}, numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        found: dict[str, Any] = {
            "layers": list(self.layers),
            "scale": self.scale.tolist(),
            "rows": dict(self.rows),
            "settings": dict(self.settings),
        }
        for name in (*KINDS, "null"):
            pairs: PairsOfLayers = getattr(self, name)
            nearest = [self.layers[place] for place in pairs.nearest]
            found[name] = {"distances": pairs.distances.tolist(), "nearest": nearest, "within": pairs.within.tolist()}
        return found

    def plot(self) -> Figure:
        """Both maps side by side, with the nearest text layers of each vision layer marked."""
        import matplotlib.pyplot as plt

        from mirlib.plots import figure_layer_map, style

        with style():
            figure, panels = plt.subplots(1, 2, figsize=(11.2, 5.2))
            for ax, kind, name, unit in (
                (panels[0], self.given, "Rows as they are", "squared mean text norms of the text's layer"),
                (panels[1], self.unit, "Rows at norm one", "squared norms"),
            ):
                figure_layer_map(kind.distances, self.layers, kind.within, ax, name=name, unit=unit)
        return figure


class _Sums:
    """What the passes collect, by modality and layer: norms with their groups, then moments by kind and group."""

    def __init__(self, layers: Sequence[int], samples: int, groups: int) -> None:
        self.layers, self.samples, self.groups = layers, samples, groups
        self.checks = FiniteChecks()
        self.norms: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self.members: dict[str, list[Tensor]] = defaultdict(list)
        self.bounds: dict[tuple[str, int], NormBounds] = {}
        self.moments: dict[tuple[str, str, int, int], Moments] = {}

    def add_norms(self, layer: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        """The first pass."""
        if layer not in self.layers:
            return
        for modality, rows, samples in zip(MODALITIES, (vision, text), batch.samples, strict=True):
            norms = row_norms(rows)
            self.checks.add(layer, modality, norms, batch.name_row)
            self.norms[modality, layer].append(norms.cpu())
            if layer == self.layers[0]:
                self.members[modality].append(samples.cpu() * self.groups // self.samples)

    def add_moments(self, layer: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        """The second pass."""
        if layer not in self.layers:
            return
        for modality, rows, samples in zip(MODALITIES, (vision, text), batch.samples, strict=True):
            norms = row_norms(rows)
            kept = ~self.bounds[modality, layer].outliers(norms)
            members = samples.to(norms.device) * self.groups // self.samples
            wide = rows.to(float64_device(rows)).to(torch.float64)
            unit = wide / norms.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
            for group in members.unique().tolist():
                chosen = (members == group) & kept
                if bool(chosen.any()):
                    for kind, values in zip(KINDS, (wide, unit), strict=True):
                        found, key = Moments.of(values[chosen]), (kind, modality, layer, group)
                        self.moments[key] = self.moments[key].merge(found) if key in self.moments else found

    def begin_second_pass(self) -> None:
        """The 3σ bounds of each modality and layer, from all norms."""
        self.bounds = {key: NormBounds.three_sigma(torch.cat(norms)) for key, norms in self.norms.items()}

    def text_scales(self, without: int | None = None) -> np.ndarray:
        """(L,) α_j, of all text rows or of those that are not in a group."""
        members = torch.cat(self.members["text"])
        scales = []
        for layer in self.layers:
            norms = torch.cat(self.norms["text", layer])
            norms = norms if without is None else norms[members != without]
            scales.append(text_scale(float(norms.sum()), len(norms), layer))
        return np.array(scales)

    def filled(self) -> list[int]:
        """The groups with rows of both modalities."""
        first = self.layers[0]
        return [g for g in range(self.groups) if all(("given", m, first, g) in self.moments for m in MODALITIES)]

    def total(self, kind: str, modality: str, groups: Sequence[int]) -> list[Moments]:
        """Of some groups together, one a layer."""
        found = []
        for layer in self.layers:
            keys = ((kind, modality, layer, group) for group in groups)
            parts = [self.moments[key] for key in keys if key in self.moments]
            if sum(part.count for part in parts) < 2:
                raise MirlibError(f"layer {layer}: fewer than 2 {modality} rows are left after the outlier rule")
            found.append(reduce(Moments.merge, parts))
        return found


def layer_map(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    num: int = 100,
    text_rows: str = "text",
    last: str = "normed",
    layers: Sequence[int] | None = None,
    groups: int | None = None,
    progress: bool = True,
    **pairs: Any,
) -> LayerMap:
    """Fréchet distances between the vision rows after every layer and the text rows after every layer.

    The pairs are those that `mirlib.score` draws for the same arguments, and the diagonal is its FID_k. It takes two
    passes over them, and for L layers and G groups (2 G + 3) L² trace terms of d × d matrices, 3 L² with two groups;
    `layer_map_cost` says how long that takes. Read the nearest layer off ``unit``: in ``given`` it depends on the unit,
    which changes from column to column. The final norm (``last``) stands between layer K and all others.

    Arguments that are not named here, and errors, are those of `mirlib.score`; layers that the model does not have are
    refused. ``layers`` says which, of 0..K; 0 is what enters layer 1. Left out, it is all of a model of up to 512
    dimensions, nine of a wider one. ``groups`` of samples are for the jackknife that says, at 95 %, which text layers
    cannot be told from the nearest; with two there is no interval. Left out, it is 20, and 2 for models wider than 512
    dimensions. ``pairs`` are ``batch_size``, ``seed``, ``paired``, ``template``, ``max_text_tokens`` and
    ``skip_unreadable``.

    Source: arXiv 2602.00462 claims, for single tokens and their nearest neighbours, that vision tokens at the input lie
        nearest to text tokens of middle layers.
    """
    chosen, dim, groups = _size(model, num, layers, groups)
    if Processes.current(True).size > 1:
        raise MirlibError("a layer map is computed by one process: start it without torchrun")
    batches = pair_batches(model, processor, images, texts, num=num, **pairs)
    sums = _Sums(chosen, num, groups)
    reader, parts = Reader(model, batches, text_rows, last), decoder_parts(model)
    with evaluating(model):
        with from_layer_zero(parts, sums.add_norms) as on_layer:
            reader.run(on_layer, "pass 1 of 2: norms", progress, sums.checks.settle)
        sums.begin_second_pass()
        with from_layer_zero(parts, sums.add_moments) as on_layer:
            reader.run(on_layer, "pass 2 of 2: moments", progress, sums.checks.settle)
    settings = {"text_rows": text_rows, "last": last, "outliers": "drop", "groups": groups, "confidence": CONFIDENCE}
    with threads_for(dim), torch.no_grad():
        return _maps(sums, CONFIDENCE, batches.settings | settings, progress)


def _size(
    model: nn.Module, num: int, layers: Sequence[int] | None, groups: int | None
) -> tuple[tuple[int, ...], int, int]:
    """The numbers of the layers, d, and the number of groups."""
    count = len(decoder_parts(model).layers)
    dim = unwrap(model).config.get_text_config().hidden_size
    if layers is None:
        few = count + 1 if dim <= SMALL else min(count + 1, FEW_LAYERS)
        layers = np.linspace(0, count, few).round().astype(int).tolist()
    chosen = some_layers(layers, count)
    groups = min(num, (GROUPS if dim <= SMALL else 2) if groups is None else groups)
    if groups < 2:
        raise MirlibError(f"a layer map needs at least 2 pairs (--num) and 2 groups, for its null, got {groups}")
    return chosen, dim, groups


def layer_map_cost(
    model: nn.Module,
    *,
    num: int = 100,
    layers: Sequence[int] | None = None,
    groups: int | None = None,
) -> str:
    """What `layer_map` will take, in a sentence: the time of one small distance on this CPU, times d³, and memory."""
    chosen, dim, groups = _size(model, num, layers, groups)
    probe = min(dim, 256)
    moments = Moments.of(torch.randn(2 * probe, probe, generator=torch.Generator().manual_seed(0)))
    with threads_for(dim):
        frechet_distance_from_moments(moments, moments)
        start = time.perf_counter()
        frechet_distance_from_moments(moments, moments)
        each = (time.perf_counter() - start) * (dim / probe) ** 3
    terms = _trace_terms(len(chosen), groups)
    seconds, unit = next(
        (each * terms / size, name)
        for size, name in ((3600, "h"), (60, "min"), (1, "s"))
        if each * terms >= 2 * size or size == 1
    )
    size = len(KINDS) * len(MODALITIES) * len(chosen) * groups * dim * (dim + 1) * 8
    return (
        f"layer map: {len(chosen)} × {len(chosen)} layers, {terms} trace terms of {dim} × {dim} matrices, about "
        f"{max(seconds, 1):.0f} {unit} on this CPU behind two passes over the pairs, and {size / 2**30:.2g} GiB of "
        "moments"
    )


def _trace_terms(layers: int, groups: int) -> int:
    """Of both maps, of their replicates, and of the null."""
    replicates = groups if groups > 2 else 0
    return layers**2 * (len(KINDS) * (1 + replicates) + 1)


def _maps(sums: _Sums, confidence: float, settings: Mapping[str, Any], progress: bool) -> LayerMap:
    filled = sums.filled()
    left_out = filled if len(filled) > 2 else []
    count = len(sums.layers)
    terms = _trace_terms(count, len(filled))
    bar = tqdm(total=terms, desc="distances", unit="pair", disable=not progress, file=sys.stderr, leave=False)

    def pairs(first: Sequence[Moments], second: Sequence[Moments], scale: np.ndarray | float) -> np.ndarray:
        found = np.empty((count, count))
        for i, of_first in enumerate(first):
            for j, of_second in enumerate(second):
                found[i, j] = frechet_distance_from_moments(of_first, of_second)[0].total
                bar.update()
        return found * np.square(scale)

    def both(kind: str, without: int | None = None) -> np.ndarray:
        groups = [group for group in filled if group != without]
        sides = (sums.total(kind, modality, groups) for modality in MODALITIES)
        return pairs(*sides, sums.text_scales(without) if kind == "given" else 1.0)

    with bar:
        scale = sums.text_scales()
        maps = {}
        for kind in KINDS:
            distances = both(kind)
            replicates = np.array([both(kind, group) for group in left_out])
            maps[kind] = PairsOfLayers(distances, _within(distances, replicates, confidence))
        halves = (sums.total("given", "text", filled[start::2]) for start in (0, 1))
        null = pairs(*halves, scale)
    return LayerMap(
        layers=tuple(sums.layers),
        **maps,
        null=PairsOfLayers(null, _within(null, np.empty((0, *null.shape)), confidence)),
        scale=scale,
        rows={m: sum(map(len, sums.norms[m, sums.layers[0]])) for m in MODALITIES},
        settings=settings,
    )


def _within(distances: np.ndarray, replicates: np.ndarray, confidence: float) -> np.ndarray:
    """Which columns of each row of (L, L) distances cannot be told from the smallest.

    By a one-sided delete-a-group jackknife of the differences, from (G, L, L) replicates, none for no interval.
    """
    rows, nearest = np.arange(len(distances)), distances.argmin(axis=1)
    excess = distances - distances[rows, nearest][:, None]
    if not len(replicates):
        return excess == 0
    each = replicates - replicates[:, rows, nearest][:, :, None]
    error = np.sqrt((len(each) - 1) * each.var(axis=0))
    return excess <= stdtrit(len(each) - 1, confidence) * error
