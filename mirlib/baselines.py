"""What belongs beside a MIR before it is read: three values that need no integration of modalities at all.

The Fréchet distance to a cloud in which every row is zero is the *energy* of the rows, ``‖μ‖² + Tr(Σ)``. From it follow
the baseline of zeroed vision rows, the norm-only baseline (text rows of zero) and, by the triangle inequality through
the zero cloud, bounds on every MIR with these norms. The floor is the MIR of text against text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mirlib.errors import MirlibError
from mirlib.mir import (
    as_layers,
    check_layers,
    energy_of_rows,
    log10_sum,
    modality_integration_rate,
    prepare_layer,
    resolve_settings,
)

__all__ = ["NormBaseline", "TextFloor", "ZeroedRows", "norm_bounds", "text_floor", "zeroed_rows"]


class ZeroedRows(NamedTuple):
    """The MIR that text rows would have to vision rows replaced by zeros.

    Attributes:
        value: ``log10`` of the sum of ``per_layer``.
        per_layer: (K,) ``α_k² (‖μ_t‖² + Tr Σ_t)``, in units of (mean text norm)².
    """

    value: float
    per_layer: np.ndarray


class TextFloor(NamedTuple):
    """MIR of text against text.

    Attributes:
        mean: Mean over the random splits.
        spread: Standard deviation over the splits. They share their samples, so it is no standard error.
        values: (splits,) MIR of each split.
        per_layer: (splits, K) FID_k of each split.
    """

    mean: float
    spread: float
    values: np.ndarray
    per_layer: np.ndarray


class NormBaseline(NamedTuple):
    """What norms alone say about MIR.

    Attributes:
        norm_only: ``log10 Σ_k`` of ``vision_energy``: MIR if every text token were zero, in the same units.
        lower: ``log10 Σ_k`` of ``per_layer_lower``; no MIR with these energies is smaller.
        upper: ``log10 Σ_k`` of ``per_layer_upper``; none is larger.
        vision_energy: (K,) ``α_k² (‖μ_v‖² + Tr Σ_v)``.
        text_energy: (K,) ``α_k² (‖μ_t‖² + Tr Σ_t)``, that of zeroed vision rows.
        per_layer_lower: (K,) ``(√vision_energy − √text_energy)²``.
        per_layer_upper: (K,) ``(√vision_energy + √text_energy)²``.
    """

    norm_only: float
    lower: float
    upper: float
    vision_energy: np.ndarray
    text_energy: np.ndarray
    per_layer_lower: np.ndarray
    per_layer_upper: np.ndarray


def _energies(rows: dict[str, list[Tensor]], outliers: str | None) -> list[np.ndarray]:
    """By modality (K,) energies of the rows that the outlier rule keeps, scaled; text is among them."""
    chosen = resolve_settings("paper", outliers, None)
    energies = []
    for k, layer in enumerate(zip(*rows.values(), strict=True), start=1):
        prepared = prepare_layer(
            dict(zip(rows, layer, strict=True)), k, chosen, normalize=True, name_row=lambda _, row: f"row {row}"
        )
        energies.append([energy_of_rows(kept) * prepared.scale**2 for kept in prepared.kept.values()])
    return list(np.array(energies).T)


def zeroed_rows(text: Any, *, outliers: str | None = None) -> ZeroedRows:
    """The MIR that text rows would have to vision rows replaced by zeros after the model has run.

    It is a number about the text alone, and no intervention: a model whose vision tokens are zero from the start fills
    them layer by layer, and moves its text, too. Zero rows have mean 0 and covariance 0, so ``FID_k = α_k² (‖μ_t‖² +
    Tr Σ_t)``. Without an outlier rule that is ``1 + CV_k² + α_k² Tr(Σ_t)/s`` for s text rows whose norms have the
    coefficient of variation ``CV_k`` (divisor s), so the value is at least ``log10 K``.

    Args:
        text: K arrays (s, d), the text rows after each layer. NumPy or torch, any floating dtype, any device.
        outliers: ``"drop"``, if left out, ``"median"`` or ``"none"``.

    Raises:
        MirlibError: For what `mirlib.modality_integration_rate` refuses too.

    Examples:
        >>> import numpy as np
        >>> text = np.eye(4)[None].repeat(10, axis=0)  # 10 layers of 4 rows of norm 1
        >>> float(zeroed_rows(text, outliers="none").per_layer[0].round(4))  # 1 + 0 + Tr(Σ)/4 = 1 + 1/4
        1.25
    """
    layers = as_layers(text, "text")
    check_layers(layers, layers, minimum=2)
    (per_layer,) = _energies({"text": layers}, outliers)
    return ZeroedRows(log10_sum(per_layer), per_layer)


def norm_bounds(vision: Any, text: Any, *, outliers: str | None = None) -> NormBaseline:
    """The norm-only baseline, and the bounds that norms alone put on MIR.

    The root of FID_k is a distance, and its distance to the zero cloud is the root of the energy; so, by the triangle
    inequality, ``(√e_v − √e_t)² ≤ FID_k ≤ (√e_v + √e_t)²`` for the energies ``e = α_k² (‖μ‖² + Tr Σ)``.

    Args:
        vision: K arrays (r, d), the vision rows after each layer.
        text: K arrays (s, d), the text rows after each layer.
        outliers: See `zeroed_rows`.

    Returns:
        `NormBaseline`. Its ``norm_only`` differs from that of `MIRResult` by the divisor alone: n − 1 here for the
        covariance, without which the bounds would not hold to the last digit.

    Raises:
        MirlibError: For what `mirlib.modality_integration_rate` refuses too.

    Examples:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(1, 100, 3))
        >>> bounds = norm_bounds(8 * rows, rows, outliers="none")  # energies in the ratio 64, so 49 ≤ FID/e_t ≤ 81
        >>> float((bounds.per_layer_lower / bounds.text_energy).round(6)[0])
        49.0
        >>> float((bounds.per_layer_upper / bounds.text_energy).round(6)[0])
        81.0
    """
    vision_layers, text_layers = as_layers(vision, "vision"), as_layers(text, "text")
    check_layers(vision_layers, text_layers, minimum=2)
    vision_energy, text_energy = _energies({"vision": vision_layers, "text": text_layers}, outliers)
    lower = (np.sqrt(vision_energy) - np.sqrt(text_energy)) ** 2
    upper = (np.sqrt(vision_energy) + np.sqrt(text_energy)) ** 2
    values = (log10_sum(each) for each in (vision_energy, lower, upper))
    return NormBaseline(*values, vision_energy, text_energy, lower, upper)


def text_floor(text: Any, samples: Any, *, seed: int = 0, splits: int = 10, outliers: str | None = None) -> TextFloor:
    """MIR of one random half of the text samples against the other half: the same modality twice.

    What is left is the sampling noise of two halves and how much texts differ; no model is to blame for it. It shrinks
    with the number of samples, so compare it with a MIR over as many.

    Args:
        text: K arrays (s, d), the text rows after each layer.
        samples: (s,) integers: which sample (text) each row belongs to. Rows of one text stay together.
        seed: Seed of the splits, at least 0.
        splits: Number of random splits, at least 2.
        outliers: See `zeroed_rows`.

    Raises:
        MirlibError: For fewer than 2 samples or splits, a negative seed, samples that are not (s,) integers, and what
            `mirlib.modality_integration_rate` refuses.

    Examples:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(2, 600, 4))
        >>> floor = text_floor(rows, np.arange(600) // 20, outliers="none")
        >>> floor.values.shape, floor.mean < -1
        ((10,), True)
    """
    layers = as_layers(text, "text")
    check_layers(layers, layers, minimum=2)
    ids = np.asarray(samples.cpu() if isinstance(samples, Tensor) else samples)
    if ids.shape != (len(layers[0]),) or ids.dtype.kind not in "iu":
        raise MirlibError(
            f"samples: expected {len(layers[0])} integers, one a row, got shape {ids.shape} of dtype {ids.dtype}"
        )
    names = np.unique(ids)
    if len(names) < 2:
        raise MirlibError(f"a split into halves needs at least 2 samples, got {len(names)}")
    if splits < 2 or seed < 0:
        raise MirlibError(f"splits must be at least 2 and seed at least 0, got {splits} and {seed}")
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(splits):
        first = torch.from_numpy(np.isin(ids, generator.permutation(names)[: len(names) // 2]))
        halves = ([rows[half.to(rows.device)] for rows in layers] for half in (first, ~first))
        results.append(modality_integration_rate(*halves, outliers=outliers))
    values, per_layer = np.array([found.value for found in results]), np.stack([found.per_layer for found in results])
    return TextFloor(float(values.mean()), float(values.std(ddof=1)), values, per_layer)
