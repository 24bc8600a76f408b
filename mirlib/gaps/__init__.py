"""The zoo: measures of the gap between two modalities, one signature for all.

``measure(vision, text, *, samples=None, seed=0, ...)`` takes the K arrays (r, d) and K arrays (s, d) that
`mirlib.modality_integration_rate` takes, and returns a `GapResult`. `MEASURES` says of each what it asks, what it
needs, which direction is integrated, what its time grows with, and where it comes from. Those of `mirlib.gaps.task`,
`mirlib.gaps.leaning` and `mirlib.gaps.matching` take the answers to a labelled task instead; those of
`mirlib.gaps.hiding`, `mirlib.gaps.connector` and `mirlib.gaps.units` take a model, its processor, images and texts, and
read them in passes of their own. `mirlib.gaps.model` applies all others to a model.
"""

from mirlib.gaps.base import MEASURES, Calibration, GapResult, Measure
from mirlib.gaps.clouds import (
    a_score,
    cmmd,
    fd_infinity,
    ima,
    kid,
    mir,
    mmd,
    modality_gap,
    norm_only,
    probe_auc,
    sliced_wasserstein,
    symmetric_kl,
)
from mirlib.gaps.connector import feature_probe, neighbours_kept
from mirlib.gaps.hiding import exit_depth, picture_gain
from mirlib.gaps.leaning import text_preference, yes_bias
from mirlib.gaps.matching import correspondence
from mirlib.gaps.paired import cka, cka_debiased, mutual_knn, rmg, svcca
from mirlib.gaps.sphere import alignment, uniformity
from mirlib.gaps.task import perceptual_score, soft_discrimination
from mirlib.gaps.units import unit_overlap

__all__ = [
    "MEASURES",
    "Calibration",
    "GapResult",
    "Measure",
    "a_score",
    "alignment",
    "cka",
    "cka_debiased",
    "cmmd",
    "correspondence",
    "exit_depth",
    "fd_infinity",
    "feature_probe",
    "ima",
    "kid",
    "mir",
    "mmd",
    "modality_gap",
    "mutual_knn",
    "neighbours_kept",
    "norm_only",
    "perceptual_score",
    "picture_gain",
    "probe_auc",
    "rmg",
    "sliced_wasserstein",
    "soft_discrimination",
    "svcca",
    "symmetric_kl",
    "text_preference",
    "uniformity",
    "unit_overlap",
    "yes_bias",
]
