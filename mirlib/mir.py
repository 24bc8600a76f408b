"""The Modality Integration Rate of hidden states that are in memory (Huang et al., arXiv 2410.07167, Eq. 1–4).

    MIR = log10 Σ_k FID(ω(α_k f_k^v), ω(α_k f_k^t)),    α_k = s / Σ_j ‖f_{k,j}^t‖₂

with ω the 3σ outlier rule on the rows' ℓ2 norms, per modality; over batches that do not fit: `mirlib.streaming`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirlib.authors import fast_frechet_distance, replace_rows_by_median
from mirlib.errors import MirlibError, MirlibWarning, check_choice
from mirlib.frechet import (
    SQUARABLE,
    FrechetDistance,
    Moments,
    as_rows,
    distance_of_rows,
    float64_device,
    threads_for,
)
from mirlib.influence import LayerInfluence, SampleInfluence, influence_interval, rows_suffice, why_no_interval
from mirlib.result import Influence, Interval, LengthSplit, MIRResult

__all__ = ["PRESETS", "modality_integration_rate"]

MODALITIES = ("vision", "text")


class Preset(NamedTuple):
    """How outlier rows and the trace term are handled."""

    outliers: str
    sqrt: str

    @property
    def in_memory(self) -> bool:
        """Whether all rows must be in memory together: for medians over them, or the authors' square root."""
        return self.outliers == "median" or self.sqrt != "exact"


PRESETS = {
    "paper": Preset(outliers="drop", sqrt="exact"),
    "authors": Preset(outliers="median", sqrt="exact"),
    "authors-fast": Preset(outliers="median", sqrt="authors-fast"),
}
LARGEST_DEPTH = 1000  # layers; the deepest language models have about 130
OUTLIERS = ("drop", "median", "none")
SQRT = ("exact", "authors-fast")
FAST_WARNING = (
    "the authors' fast square root stands still at its starting point and returns ΣvΣt instead of its root; "
    "use this value only beside published numbers of that mode"
)


def resolve_settings(preset: str, outliers: str | None, sqrt: str | None) -> Preset:
    check_choice("preset", preset, PRESETS)
    chosen = Preset(outliers or PRESETS[preset].outliers, sqrt or PRESETS[preset].sqrt)
    check_choice("outlier rule", chosen.outliers, OUTLIERS)
    check_choice("square root", chosen.sqrt, SQRT)
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# Norms and outliers


def row_norms(rows: Tensor) -> Tensor:
    """(n,) float64 ℓ2 norms of (n, d) rows. float64 before squaring, so float16 rows cannot overflow."""
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(rows, dim=1, dtype=wide).to(dtype=torch.float64, device=float64_device(rows))


class NormBounds(NamedTuple):
    """Rows whose norm lies within ``centre ± reach``, median ± three standard deviations, are kept.

    ``mean`` and ``count`` are those of all norms, ``density`` the share of them at the median, per unit of norm.
    """

    centre: float
    reach: float
    mean: float = math.nan
    density: float = math.nan
    count: int = 0

    @property
    def moves(self) -> bool:
        """Whether a further row would move the bounds by an amount that is known."""
        return 0 < self.reach < math.inf and 0 < self.density < math.inf

    @classmethod
    def three_sigma(cls, norms: Tensor) -> NormBounds:
        """``|norm − median| ≤ 3 · std`` as in the authors' code: lower median, standard deviation with divisor n − 1.

        Norms are rounded to float32 first, as the streaming measure keeps them, so that both draw the line at one
        place.
        """
        centre = float(norms.median())
        norms = _as_float32(norms, centre)
        centre = float(norms.median())
        deviation = float(norms.std()) if norms.numel() > 1 else math.inf
        width = deviation / 10
        near = float(((norms - centre).abs() <= width).to(torch.float64).mean())
        density = near / (2 * width) if 0 < width < math.inf else math.inf
        return cls(centre, 3 * deviation, float(norms.mean()), density, norms.numel())

    def outliers(self, norms: Tensor) -> Tensor:
        """(n,) mask of the rows outside."""
        return (_as_float32(norms, self.centre) - self.centre).abs() > self.reach


ALL_ROWS = NormBounds(0.0, math.inf)


def _as_float32(norms: Tensor, centre: float) -> Tensor:
    """Norms rounded to float32, as float64; those that lie where float32 does not reach keep as many digits."""
    factor = 1.0 if centre == 0 or 1e-20 < centre < 1e20 else 2.0 ** min(-math.frexp(centre)[1], 1000)
    largest = torch.finfo(torch.float32).max
    return (norms.to(torch.float64) * factor).clamp(max=largest).to(torch.float32).to(torch.float64) / factor


def check_norms(norms: Tensor, rows: Tensor, layer: int, modality: str, name_row: Callable[[int], str]) -> None:
    """Refuse rows that are not finite or cannot be squared, naming layer, modality and row."""
    if bool((norms <= SQUARABLE).all()):
        return
    row = int((~(norms <= SQUARABLE)).nonzero()[0, 0])
    if not bool(torch.isfinite(rows[row]).all()):
        raise not_finite(layer, modality, name_row(row))
    raise MirlibError(
        f"layer {layer}, {modality} {name_row(row)}: the hidden state is finite, but too large to be squared (up to "
        f"{float(rows[row].abs().max()):.3g}); divide all rows of vision and text by the same number"
    )


def not_finite(layer: int, modality: str, row: str) -> MirlibError:
    return MirlibError(
        f"layer {layer}, {modality} {row}: the hidden state holds NaN or infinity. "
        "Nothing was averaged over it; check the model's precision (float16 overflows, bfloat16 does not)"
    )


def text_scale(norm_sum: float, count: int, layer: int) -> float:
    """α_k, the inverse of the mean text norm; a `MirlibError` where every text row is zero."""
    if not norm_sum / count >= 1 / SQUARABLE:
        raise MirlibError(
            f"layer {layer}: every text row has norm zero, or one too small to be squared, so the text-centric scale "
            "is undefined"
        )
    return count / norm_sum


# ---------------------------------------------------------------------------------------------------------------------
# One layer, and all layers together


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a measurement; distances are already in units of (mean text norm)²."""

    distance: FrechetDistance
    bias: float
    scale: float
    norm_ratio: float
    vision_energy: float
    text_energy: float
    floor: float  # what the norms force
    equalised: float  # the distance if every vision row had the mean text norm; NaN where it was not taken
    outliers: tuple[int, int]
    rows: tuple[int, int]
    dim: int

    @property
    def fewest_kept(self) -> int:
        """Rows of the rarer modality that the outlier rule keeps."""
        return min(rows - outliers for rows, outliers in zip(self.rows, self.outliers, strict=True))


def scaled(distance: FrechetDistance, scale: float) -> FrechetDistance:
    """The distance after both sets of rows were multiplied by ``scale``."""
    return FrechetDistance(*(part * scale**2 for part in distance))


def norm_floor(vision_energy: float, text_energy: float) -> float:
    """``(√e_v − √e_t)²``, below which no Fréchet distance of rows with these energies lies; see `norm_bounds`."""
    return (math.sqrt(vision_energy) - math.sqrt(text_energy)) ** 2


def split_of_length(layers: Sequence[LayerSummary]) -> LengthSplit | None:
    """Shares of lengths and shape in the sum of distances; None if it is 0 but for rounding or they were not taken.

    ``equalised`` is what rescaling every vision row to the mean text norm removes beyond what the norms force.
    """
    total = math.fsum(layer.distance.total for layer in layers)
    equal = math.fsum(layer.equalised for layer in layers)
    energies = math.fsum(layer.vision_energy + layer.text_energy for layer in layers)
    if not total > 1e-12 * energies or math.isnan(equal):
        return None
    forced, shape = math.fsum(layer.floor for layer in layers) / total, equal / total
    return LengthSplit(forced, 1 - forced - shape, shape)


def log10_sum(per_layer: Iterable[float]) -> float:
    """``log10 Σ_k FID_k``; −inf for a sum of 0, NaN for a negative one (only the authors' fast mode can produce it)."""
    total = math.fsum(per_layer)
    if total > 0:
        return math.log10(total)
    return -math.inf if total == 0 else math.nan


def assemble(
    layers: Sequence[LayerSummary],
    settings: dict[str, Any],
    interval: Interval | None = None,
    notes: Sequence[str] = (),
) -> MIRResult:
    """Sum the layers up into a result, with the warnings that its rows call for."""

    def each(name: str) -> np.ndarray:
        return np.array([getattr(layer, name) for layer in layers])

    rows = dict(zip(MODALITIES, layers[0].rows, strict=True))
    distances = np.array([layer.distance for layer in layers])  # (K, [total, mean_term, covariance_term])
    per_layer, bias, notes = distances[:, 0], each("bias"), list(notes)
    if not np.isfinite(per_layer).all():
        raise MirlibError(
            f"layer {int(np.isfinite(per_layer).argmin()) + 1}: the distance is no finite number; the vision rows are "
            "too long beside the text rows, or too long for the precision that they are computed in"
        )
    if few := [f"{count} {name} rows" for name, count in rows.items() if count <= layers[0].dim]:
        total, added = float(per_layer.sum()), float(bias.sum())
        much = f", ΣFID by at least about {added:.3g} of {total:.3g} (first order)" if math.isfinite(added) else ""
        notes.append(
            f"{' and '.join(few)} for {layers[0].dim} dimensions: too few to fit a covariance. The value is biased "
            f"upwards{much}; use more samples"
        )
    return MIRResult(
        value=log10_sum(per_layer),
        per_layer=per_layer,
        mean_term=distances[:, 1],
        covariance_term=distances[:, 2],
        norm_ratio=each("norm_ratio"),
        norm_only=log10_sum(each("vision_energy")),
        zeroed_rows=log10_sum(each("text_energy")),
        scale=each("scale"),
        bias=bias,
        outliers=dict(zip(MODALITIES, each("outliers").T, strict=True)),
        rows=rows,
        interval=interval,
        settings=settings,
        warnings=tuple(notes),
        length=split_of_length(layers),
    )


def energy_of_rows(rows: Tensor) -> float:
    """`mirlib.frechet.energy` without the (d, d) scatter, of which the trace alone is wanted."""
    rows = rows.to(device=float64_device(rows), dtype=torch.float64)
    mean = rows.mean(dim=0)
    return float(mean @ mean + (rows - mean).square().sum() / (len(rows) - 1))


def with_norm(rows: Tensor, norm: float) -> Tensor:
    """(n, d) float64 rows rescaled to a norm; those of zero stay zero."""
    norms = row_norms(rows)
    return rows.to(norms.device, torch.float64) * torch.where(norms > 0, norm / norms, 0.0)[:, None]


class PreparedLayer(NamedTuple):
    """Rows of one layer after the outlier rule, unscaled but for ``authors-fast``, with what was learned on the way."""

    kept: dict[str, Tensor]
    outliers: dict[str, int]
    norms: dict[str, Tensor]
    bounds: dict[str, NormBounds]
    scale: float


def prepare_layer(
    rows: dict[str, Tensor], layer: int, chosen: Preset, normalize: bool, name_row: Callable[[str, int], str]
) -> PreparedLayer:
    """The rows of a layer by modality, text among them where they are to be normalized, under the outlier rule."""
    norms = {modality: row_norms(values) for modality, values in rows.items()}
    for modality, values in rows.items():
        check_norms(norms[modality], values, layer, modality, lambda row, modality=modality: name_row(modality, row))
    scale = text_scale(float(norms["text"].sum()), len(norms["text"]), layer) if normalize else 1.0
    kept, outliers, bounds = {}, {}, {}
    for modality, values in rows.items():
        of_rows = norms[modality]
        bounds[modality] = ALL_ROWS if chosen.outliers == "none" else NormBounds.three_sigma(of_rows)
        outside = bounds[modality].outliers(of_rows).to(values.device)
        outliers[modality] = int(outside.sum())
        if chosen.sqrt == "authors-fast":  # the authors scale first, and their rounding is part of the value
            values = values.to(torch.float32) * scale
        kept[modality] = replace_rows_by_median(values, outside) if chosen.outliers == "median" else values[~outside]
        if len(kept[modality]) < 2:
            raise MirlibError(f"layer {layer}: fewer than 2 {modality} rows are left after the outlier rule")
    return PreparedLayer(kept, outliers, norms, bounds, scale)


def _summarise_layer(layer: PreparedLayer, chosen: Preset) -> LayerSummary:
    """FID_k of the prepared rows, with everything that belongs to it."""
    vision, text = layer.kept["vision"], layer.kept["text"]
    fast = chosen.sqrt == "authors-fast"
    rescale = 1.0 if fast else layer.scale**2  # rows of the fast mode are scaled already
    if fast:
        distance, bias = FrechetDistance(*fast_frechet_distance(vision, text)), math.nan
    else:
        distance, bias = distance_of_rows(vision, text)
        distance, bias = scaled(distance, layer.scale), bias * rescale
    text_norm, equalised = float(layer.norms["text"].mean()), math.nan
    if not fast:
        equalised = scaled(distance_of_rows(with_norm(vision, text_norm), text)[0], layer.scale).total
    energies = [energy_of_rows(rows) * rescale for rows in (vision, text)]
    return LayerSummary(
        distance=distance,
        bias=bias,
        scale=layer.scale,
        norm_ratio=float(layer.norms["vision"].mean()) / text_norm if text_norm > 0 else math.inf,
        vision_energy=float(row_norms(vision).square().mean()) * rescale,
        text_energy=energies[1],
        floor=norm_floor(*energies),
        equalised=equalised,
        outliers=tuple(layer.outliers[modality] for modality in MODALITIES),
        rows=tuple(len(layer.norms[modality]) for modality in MODALITIES),
        dim=vision.shape[1],
    )


def as_layers(values: Any, name: str) -> list[Tensor]:
    """K matrices of rows from a (K, n, d) array or a sequence of K (n, d) arrays; messages call it by ``name``."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise MirlibError(f"{name}: expected K arrays of rows, one a layer, got {type(values).__name__}")
    if getattr(values, "ndim", 3) != 3:
        raise MirlibError(
            f"{name}: expected K arrays of rows, one a layer, got one array of shape {tuple(values.shape)}; "
            "wrap a single layer in a list"
        )
    if len(values) == 0:
        raise MirlibError(f"{name}: no layers")
    if len(values) > LARGEST_DEPTH:
        raise MirlibError(
            f"{name}: {len(values)} layers, more than any model has (at most {LARGEST_DEPTH}); the array's axes are "
            "layers, rows, dimensions"
        )
    return [as_rows(value, f"{name}, layer {k}") for k, value in enumerate(values, start=1)]


def check_layers(vision: Sequence[Tensor], text: Sequence[Tensor], *, minimum: int) -> None:
    """Refuse layers whose K, d or number of rows differ where they must agree, or with too few rows."""
    if len(vision) != len(text):
        raise MirlibError(f"vision has {len(vision)} layers and text has {len(text)}; they must be equal")
    for name, layers in (("vision", vision), ("text", text)):
        for k, rows in enumerate(layers, start=1):
            if rows.shape != layers[0].shape:
                raise MirlibError(
                    f"{name}: layer {k} has shape {tuple(rows.shape)}, layer 1 has {tuple(layers[0].shape)}; "
                    "all layers of a model hold the same tokens"
                )
            if len(rows) < minimum:
                raise MirlibError(f"{name}, layer {k}: {len(rows)} row(s); a covariance needs at least {minimum}")
    for k, (v, t) in enumerate(zip(vision, text, strict=True), start=1):
        if v.shape[1] != t.shape[1]:
            raise MirlibError(
                f"layer {k}: vision rows have {v.shape[1]} dimensions and text rows {t.shape[1]}; they must be equal"
            )


def modality_integration_rate(
    vision: Any,
    text: Any,
    *,
    preset: str = "paper",
    outliers: str | None = None,
    normalize: bool = True,
    sqrt: str | None = None,
    samples: tuple[Any, Any] | None = None,
    confidence: float | None = None,
) -> MIRResult:
    """Modality Integration Rate of hidden states in memory: ``log10 Σ_k FID_k`` over the layers given.

    Args:
        vision: K arrays (r, d), the vision rows after each layer. NumPy or torch, any floating dtype, any device.
        text: K arrays (s, d), the text rows after each layer.
        preset: ``"paper"`` drops outlier rows and takes the exact trace term; ``"authors"`` replaces outlier rows by
            the per-dimension median; ``"authors-fast"`` repeats the authors' default operations in float32, and warns.
        outliers: Overrides the preset: ``"drop"``, ``"median"`` or ``"none"``.
        normalize: Whether to apply the text-centric scale α_k (Eq. 2). Off only for the ablation of the paper's Fig. 7.
        sqrt: Overrides the preset: ``"exact"`` or ``"authors-fast"``.
        samples: Pair of integer arrays (r,) and (s,): which sample (image, text) each row belongs to. Needed for an
            interval, since tokens of one sample are not independent.
        confidence: For example 0.95, for an interval over samples, see `mirlib.influence`. Refused with the
            authors' presets, which replace rows.

    Returns:
        `MIRResult`; lower means closer modalities.

    Raises:
        MirlibError: For NaN or infinite values (naming layer, modality and row), fewer than 2 rows, zero text norm,
            unequal K or d, integer, complex or empty arrays, unknown presets; for samples that do not fit the rows, and
            for a confidence without samples, with fewer than two, or with a preset of the authors.

    Source: arXiv 2410.07167, Eq. 1–4. The base 10 is that of the authors' code.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> text = rng.normal(size=(2, 400, 8))
        >>> result = modality_integration_rate(5 * text + 1, text, outliers="none")
        >>> result.num_layers, round(result.value, 2)
        (2, 1.56)
    """
    chosen = resolve_settings(preset, outliers, sqrt)
    vision_layers, text_layers = as_layers(vision, "vision"), as_layers(text, "text")
    check_layers(vision_layers, text_layers, minimum=2)
    ids = None if samples is None else sample_ids(samples, (len(vision_layers[0]), len(text_layers[0])))
    notes: list[str] = []
    if chosen.sqrt == "authors-fast":
        notes.append(FAST_WARNING)
        warnings.warn(FAST_WARNING, MirlibWarning, stacklevel=2)

    def name_row(modality: str, row: int) -> str:
        return f"row {row}" if ids is None else f"row {row} (sample {int(ids[MODALITIES.index(modality)][row])})"

    if confidence is not None:
        check_confidence(confidence)
        if ids is None:
            raise MirlibError(
                "an interval needs samples=(vision_ids, text_ids): rows of one image are not independent, so it is "
                "over whole samples, never over tokens"
            )
        if chosen.in_memory:
            raise MirlibError("there is no interval where rows are replaced by medians; use preset 'paper'")
        names = [side.unique() for side in ids]
        if min(len(name) for name in names) < 2:
            raise MirlibError("an interval needs at least 2 samples")
        places = [torch.searchsorted(name, side) for name, side in zip(names, ids, strict=True)]
    layers: list[LayerSummary] = []
    influences: list[tuple[Tensor, Tensor]] = []
    pairs = list(zip(vision_layers, text_layers, strict=True))
    for k, (v, t) in enumerate(tqdm(pairs, desc="layers", unit="layer", delay=3, leave=False), start=1):
        with threads_for(v.shape[1]):
            prepared = prepare_layer({"vision": v, "text": t.to(v.device)}, k, chosen, normalize, name_row)
            layers.append(_summarise_layer(prepared, chosen))
            if confidence is not None and rows_suffice(layers[-1].fewest_kept, v.shape[1]):
                influences.append(_influence_of_layer(prepared, layers[-1], (v, t), places, normalize))
    found, influence = None, None
    if confidence is not None:
        why = why_no_interval(min(map(len, names)), [layer.fewest_kept for layer in layers], layers[0].dim)
        notes += [why] if why else []
    if len(influences) == len(layers):
        per_layer = np.array([layer.distance.total for layer in layers])
        sides = (torch.stack(side).numpy() for side in zip(*influences, strict=True))
        influence = Influence(*sides, paired=torch.equal(*names))
        found = influence_interval(influence, per_layer, log10_sum(per_layer), confidence)
    shape = {"layers": len(layers), "dim": layers[0].dim}
    settings = {"preset": preset, **chosen._asdict(), "normalize": normalize, **shape}
    return replace(assemble(layers, settings, found, notes), influence=influence)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def check_confidence(confidence: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    try:
        inside = 0 < confidence < 1
    except TypeError:
        inside = False
    if not inside:
        raise MirlibError(f"confidence must lie between 0 and 1, got {confidence!r}")


def _influence_of_layer(
    layer: PreparedLayer,
    summary: LayerSummary,
    rows: tuple[Tensor, Tensor],
    places: Sequence[Tensor],
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """(N,) influence of each sample's vision rows and text rows on FID_k."""
    moments = [Moments.of(layer.kept[modality]) for modality in MODALITIES]
    maps = LayerInfluence.of(
        *moments, summary.distance.total, layer.scale, normalized=normalize, text_rows=summary.rows[1]
    )
    found = []
    for side, modality in enumerate(MODALITIES):
        sums = SampleInfluence(maps, side, layer.bounds[modality], int(places[side].max()) + 1, torch.device("cpu"))
        sums.add(rows[side], layer.norms[modality], places[side])
        found.append(sums.total())
    return tuple(found)


def sample_ids(samples: Any, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The sample of each row, by modality, as int64 tensors on the CPU; refused if not one whole number a row."""
    try:
        vision, text = samples
    except (TypeError, ValueError) as error:
        raise MirlibError("samples: expected a pair of arrays, (of the vision rows, of the text rows)") from error
    found = []
    for modality, given, count in zip(MODALITIES, (vision, text), counts, strict=True):
        expected = f"samples of the {modality} rows: expected {count} whole numbers, one a row"
        try:
            if isinstance(given, np.ndarray):
                given = given.astype(given.dtype.newbyteorder("="))
            numbers = torch.as_tensor(given).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:  # words, None, numbers that 64 bits do not hold
            raise MirlibError(expected) from error
        fractional = numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool
        if numbers.shape != (count,) or fractional:
            raise MirlibError(f"{expected}, got {numbers.dtype} of shape {tuple(numbers.shape)}")
        found.append(numbers.to(torch.int64))
    return found[0], found[1]
