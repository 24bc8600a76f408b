"""Which pictures, patches and words make the gap: the cost of every row of a model, layer by layer.

The squared Fréchet distance of a layer is the mean of what its vision rows pay for being moved onto the text
(`mirlib.transport`), so that costs add up over patches, pictures and layers to what MIR is the logarithm of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.accumulators import FiniteChecks, Side
from mirlib.batches import pair_batches
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.frechet import Moments, threads_for
from mirlib.grids import PatchGrid
from mirlib.hidden_states import decoder_parts
from mirlib.mir import MODALITIES, NormBounds, row_norms
from mirlib.result import MIRResult
from mirlib.streaming import ModalityIntegrationRate
from mirlib.transport import optimal_maps, row_costs, unreached_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NullLevel", "TransportMap", "as_seen", "transport_map"]

QUANTILE = 0.95
MATRICES = 6  # (d, d) float64 a layer, at the most


class NullLevel(NamedTuple):
    """What a row of the text costs on its way onto other text, its ``mean`` and its 95 % quantile ``high``."""

    mean: float
    high: float


@dataclass(frozen=True)
class TransportMap:
    """What each row of N samples costs in each of K layers, in units of (mean text norm)².

    A vision row that the outlier rule keeps pays the squared way that it goes when all of them are moved onto the text;
    in every layer the mean over them plus ``unreached`` is FID_k. A row that the rule drops has NaN.

    Attributes:
        vision: N arrays (K, P): the vision rows of each picture, P of which may differ from picture to picture.
        text: N arrays (K, S): the text rows of each text, moved onto the vision rows.
        null: N arrays (K, S): the text rows of the first, third, … sample moved onto those of the others; NaN for
            these.
        per_layer: (K,) FID_k, as `mirlib.score` finds it.
        unreached: ``{"vision": (K,), "text": (K,), "null": (K,)}`` spread of the cloud moved onto in directions in
            which no row of the moved one differs; 0 where rows are many more than dimensions.
        grids: For each picture the places of its rows, or None where they are not known.
        names: Names of the pictures.
        words: For each text the strings of its tokens.
        images: The number that each picture has among the images given.
        settings: How it was computed.
    """

    vision: tuple[np.ndarray, ...]
    text: tuple[np.ndarray, ...]
    null: tuple[np.ndarray, ...]
    per_layer: np.ndarray
    unreached: Mapping[str, np.ndarray]
    grids: tuple[PatchGrid | None, ...]
    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    images: tuple[int, ...]
    settings: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        """Number of layers, K."""
        return len(self.per_layer)

    @cached_property
    def kept(self) -> np.ndarray:
        """(K,) number of vision rows that the outlier rule keeps."""
        return sum((~np.isnan(costs)).sum(axis=1) for costs in self.vision)

    def ranking(self, layer: int | None = None) -> np.ndarray:
        """(N,) samples from the dearest picture to the cheapest, by their rows' mean cost in a layer or in all."""
        costs = [self.patch_costs(number, layer) for number in range(len(self.vision))]
        means = [np.nansum(values) / max((~np.isnan(values)).sum(), 1) for values in costs]
        return np.argsort(-np.array(means), kind="stable")

    def patch_costs(self, picture: int, layer: int | None = None) -> np.ndarray:
        """(P,) what each vision row of a picture costs, in a layer, 1..K, or in all of them together.

        In a layer NaN stands for a row that the outlier rule dropped; in the sum it pays nothing for that layer.
        """
        costs = self.vision[picture]
        return np.nansum(costs, axis=0) if layer is None else costs[self._row(layer)]

    def _row(self, layer: int) -> int:
        if not 1 <= layer <= self.num_layers:
            raise MirlibError(f"layer {layer}: layers are numbered 1..{self.num_layers}")
        return layer - 1

    def null_level(self, layer: int | None = None) -> NullLevel:
        """What a row of the text costs on its way onto other text, in a layer or in all; NaN for a single sample.

        A vision row that costs no more is where text could be. The halves have half of the rows, and a map between
        fewer rows costs more, so that the level is rather too high than too low.
        """
        rows = np.concatenate(self.null, axis=1)
        if layer is None:
            found = np.nansum(rows, axis=0)[~np.isnan(rows).all(axis=0)]
        else:
            of_layer = rows[self._row(layer)]
            found = of_layer[~np.isnan(of_layer)]
        if len(found) == 0:
            return NullLevel(np.nan, np.nan)
        return NullLevel(float(found.mean()), float(np.quantile(found, QUANTILE)))

    def __repr__(self) -> str:
        return (
            f"TransportMap({len(self.vision)} pictures, {len(self.per_layer)} layers, ΣFID {self.per_layer.sum():.4g})"
        )

    def plot(self, pictures: Mapping[int, np.ndarray], layer: int | None = None) -> Axes:
        """Draw the dearest and the cheapest of the pictures; see `mirlib.plots.figure_transport_map`."""
        from mirlib.plots import figure_transport_map

        return figure_transport_map(self, pictures, layer=layer)


def as_seen(processor: Any, image: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8: the part of a PIL image that its processor shows the model, to draw a grid of patches over it.

    Most processors stretch the whole picture; those of CLIP cut the middle out.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    prepared = getattr(processor, "image_processor", None)
    crop = getattr(prepared, "crop_size", None)
    if getattr(prepared, "do_center_crop", False) and crop:
        crop = dict(crop)
        scale = min(image.width / crop["width"], image.height / crop["height"])
        width, height = round(crop["width"] * scale), round(crop["height"] * scale)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image)


def costs_by(own: Moments, other: Moments, map: Tensor) -> Callable[[Tensor], Tensor]:
    """`row_costs`, without the scatters, which are as large as the map and have done their part."""
    own, other = (replace(moments, scatter=moments.scatter.new_zeros(0, 0)) for moments in (own, other))
    return lambda rows: row_costs(rows, own, other, map)


def unknown_costs(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), torch.nan, dtype=torch.float64)


class _Costs:
    """The passes of `transport_map` over the batches, and what they leave behind."""

    def __init__(self, reader: Reader, metric: Callable[[int], ModalityIntegrationRate], progress: bool) -> None:
        self.reader, self.make_metric, self.progress = reader, metric, progress
        self.metric: ModalityIntegrationRate | None = None
        self.bounds: list[tuple[NormBounds, NormBounds]] = []
        self.halves: dict[int, list[Side]] = {}
        self.moves: dict[int, dict[str, Callable[[Tensor], Tensor]]] = {}  # costs of rows
        self.unreached: dict[str, list[float]] = {name: [] for name in (*MODALITIES, "null")}
        self.costs: dict[str, dict[int, list[Tensor]]] = {name: {} for name in self.unreached}
        self.counts: dict[str, list[int]] = {name: [] for name in MODALITIES}
        self.grids: list[PatchGrid | None] = []
        self.words: list[tuple[str, ...]] = []
        self.waiting: list[tuple[list[Tensor], Tensor]] = []

    def measure(self) -> MIRResult:
        """MIR itself, and the moments of the two halves of the texts."""
        checks = FiniteChecks()
        repair = False  # of the metric, of whose early decisions about outliers one was wrong

        def update(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
            if self.metric is None:
                self.metric = self.make_metric(vision.shape[1])
            self.metric.update_layer(k, vision, text, batch.row_samples, batch.name_row, checks)

        def first(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
            update(k, vision, text, batch)
            for side, rows in self.halves_of(k, text, batch):
                drops = self.metric.outliers == "drop"
                side.take(rows, row_norms(rows), 1 + (batch.first + batch.size) // 2, drops)

        def again(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
            if repair:
                update(k, vision, text, batch)
            for side, rows in self.halves_of(k, text, batch):
                if side in wrong:
                    norms = row_norms(rows)
                    side.add(rows, norms, ~self.bounds[k - 1][1].outliers(norms))

        self.reader.run(first, "pass 1 of 2: moments", self.progress, checks.settle)
        self.bounds = [self.metric.bounds(k) for k in range(1, self.metric.num_layers + 1)]
        halves = [(side, self.bounds[k - 1][1]) for k, sides in self.halves.items() for side in sides]
        wrong = [side for side, bounds in halves if side.accepted_outlier(bounds)]
        if self.metric.needs_second_pass(progress=self.progress):
            repair = True
            self.metric.begin_second_pass(progress=self.progress)
        for side in wrong:
            side.clear()
        if repair or wrong:
            self.reader.run(again, "one more pass: repair", self.progress, checks.settle)
        return self.metric.result(progress=self.progress)

    def halves_of(self, layer: int, text: Tensor, batch: ReadBatch) -> Iterator[tuple[Side, Tensor]]:
        """The rows of every other text with what keeps their moments, and those of the others."""
        sides = self.halves.setdefault(layer, [Side(text.shape[1], False), Side(text.shape[1], False)])
        for number, side in enumerate(sides):
            rows = text[(batch.samples[1] % 2 == number).to(text.device)]
            if len(rows):
                yield side, rows

    def dropped(self, layer: int, column: int, rows: Tensor) -> Tensor:
        """(n,) mask of the rows that the outlier rule drops."""
        return self.bounds[layer - 1][column].outliers(row_norms(rows))

    def find_maps(self) -> None:
        """The maps of every layer; what they are made of is let go on the way."""
        metric, self.metric = self.metric, None
        layers = range(1, metric.num_layers + 1)
        bar = tqdm(layers, desc="maps", unit="layer", disable=not self.progress, file=sys.stderr, leave=False)
        with threads_for(metric.dim):
            for layer in bar:
                vision, text = metric.moments(layer)
                first, second = (side.settled(self.bounds[layer - 1][1])[0].moments for side in self.halves.pop(layer))
                maps = optimal_maps(vision.covariance, text.covariance.to(vision.mean.device))
                found = {"vision": (vision, text, maps.forward), "text": (text, vision, maps.backward)}
                if min(first.count, second.count) > 1:
                    found["null"] = (first, second, optimal_maps(first.covariance, second.covariance).forward)
                self.moves[layer] = {"null": unknown_costs} | {name: costs_by(*move) for name, move in found.items()}
                for name, values in self.unreached.items():
                    values.append(unreached_spread(*found[name]) if name in found else np.nan)

    def read_costs(self) -> None:
        """The last pass: what every row costs."""
        rule = decoder_parts(self.reader.model).grid
        tokenizer = self.reader.processor.tokenizer

        def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
            if k == 1:
                for name, samples in zip(MODALITIES, batch.samples, strict=True):
                    self.counts[name] += torch.bincount(samples - batch.first, minlength=batch.size).tolist()
                where = batch.positions
                self.grids += [None] * batch.size if rule is None else rule(batch.inputs, where["vision"])
                ids = batch.inputs["input_ids"]
                masks = where["text"][:, where["text"].shape[1] - ids.shape[1] :]
                for row, mask in zip(ids, masks, strict=True):
                    self.words.append(tuple(tokenizer.decode([number]) for number in row[mask].tolist()))
            moves = self.moves[k]
            for column, (name, rows) in enumerate(zip(MODALITIES, (vision, text), strict=True)):
                dropped = self.dropped(k, column, rows)
                self.keep(name, k, moves[name](rows), dropped)
                if name == "text":
                    moved = (batch.samples[1] % 2 == 0).to(dropped.device)
                    self.keep("null", k, moves["null"](rows), dropped | ~moved)

        def collect() -> None:
            for chunks, costs in self.waiting:
                chunks.append(costs.cpu())
            self.waiting.clear()

        self.reader.run(on_layer, "pass 2 of 2: costs", self.progress, collect)

    def keep(self, name: str, layer: int, costs: Tensor, dropped: Tensor) -> None:
        """Costs stay on their device until the batch is through: fetching each layer's would make the host wait."""
        chunks = self.costs[name].setdefault(layer, [])
        self.waiting.append((chunks, torch.where(dropped.to(costs.device), torch.nan, costs)))

    def by_sample(self, name: str, scale: np.ndarray) -> tuple[np.ndarray, ...]:
        """The costs of each sample's rows, (K, rows), in units of (mean text norm)²."""
        layers = self.costs[name]
        table = torch.stack([torch.cat(layers[k]) for k in sorted(layers)]).numpy() * scale[:, None] ** 2
        counts = self.counts["vision" if name == "vision" else "text"]
        return tuple(np.split(table, np.cumsum(counts)[:-1], axis=1))

    def run(self) -> tuple[MIRResult, dict[str, Any]]:
        result = self.measure()
        self.find_maps()
        self.read_costs()
        return result, {
            **{name: self.by_sample(name, result.scale) for name in self.costs},
            "unreached": {name: np.array(found) * result.scale**2 for name, found in self.unreached.items()},
            "grids": tuple(self.grids),
            "words": tuple(self.words),
        }


def transport_map(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    preset: str = "paper",
    outliers: str | None = None,
    text_rows: str = "text",
    last: str = "normed",
    progress: bool = True,
    **pairs: Any,
) -> TransportMap:
    """Who is to blame for a model's MIR: the cost of every vision row, layer by layer, which add up to it exactly.

    The pairs go through the model twice, for the moments of the rows and for the costs; once more in the rare case that
    a decision of the outlier rule must be repaired. Up to six d × d float64 matrices a layer are kept, and one number a
    row and layer. In a distributed run this process reads all pairs by itself.

    Args:
        model: This and what is not named below are as for `mirlib.score`, which draws the same pairs.
        processor: Its processor.
        images: The images.
        texts: The texts.
        preset: ``"paper"``; the authors' presets replace rows by medians, which have no costs of their own.
        outliers: ``"drop"`` or ``"none"``, in place of the preset's.
        text_rows: As for `mirlib.score`.
        last: As for `mirlib.score`.
        progress: Whether to show bars on stderr.
        **pairs: ``num``, ``batch_size``, ``seed``, ``paired``, ``template``, ``max_text_tokens``, ``skip_unreadable``.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: As for `mirlib.score`.

    Source: Olkin & Pukelsheim (1982) for the map between two Gaussians.
    """
    depth = len(decoder_parts(model).layers)

    def metric_of(dim: int) -> ModalityIntegrationRate:
        return ModalityIntegrationRate(depth, dim, preset=preset, outliers=outliers, sync_on_compute=False)

    metric_of(1)  # refuses what cannot be streamed before a pass is spent
    batches = pair_batches(model, processor, images, texts, merge_processes=False, **pairs)
    reader = Reader(model, batches, text_rows, last)
    with evaluating(model):
        result, found = _Costs(reader, metric_of, progress).run()
    return TransportMap(
        per_layer=result.per_layer,
        names=tuple(sample.name for sample in reader.samples),
        images=tuple(image for image, _ in batches.chosen),
        settings={**result.settings, **batches.settings, "text_rows": text_rows, "last": last},
        **found,
    )
