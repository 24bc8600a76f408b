"""The zoo: measures of the gap between two modalities, one signature for all.

``measure(vision, text, *, samples=None, seed=0, ...)`` takes what `mirlib.modality_integration_rate` takes, and returns
a `GapResult`; its docstring begins with what it asks, and `MEASURES` says what it needs. Those of `mirlib.gaps.task`
take the answers to a task with labels instead; those of `hiding`, `connector` and `units` a model, its processor,
images and texts.
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
from mirlib.gaps.paired import alignment, cka, cka_debiased, mutual_knn, rmg, svcca, uniformity
from mirlib.gaps.task import correspondence, perceptual_score, soft_discrimination, text_preference, yes_bias
from mirlib.gaps.units import unit_overlap

__all__ = ["MEASURES", "Calibration", "GapResult", "Measure"]
__all__ += ["a_score", "cmmd", "fd_infinity", "ima", "kid", "mir", "mmd", "modality_gap", "norm_only", "probe_auc"]
__all__ += ["sliced_wasserstein", "symmetric_kl"]
__all__ += ["alignment", "cka", "cka_debiased", "mutual_knn", "rmg", "svcca", "uniformity"]
__all__ += ["exit_depth", "feature_probe", "neighbours_kept", "picture_gain", "unit_overlap"]
__all__ += ["correspondence", "perceptual_score", "soft_discrimination", "text_preference", "yes_bias"]
