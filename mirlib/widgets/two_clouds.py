"""Two clouds of points whose distance can be felt: the widget, and the same numbers in Python."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import traitlets
from scipy.special import erf

from mirlib.widgets.base import StaticWidget

# The text cloud stands still: its mean, and its standard deviations along the two axes. two_clouds.js has the same.
TEXT_MEAN = np.array([1.0, 0.5])
TEXT_SPREAD = np.array([1.0, 0.5])
DIRECTIONS = 1024  # of the sum behind a mean norm; its error falls exponentially in their number


class CloudDistance(NamedTuple):
    """What the widget shows.

    Attributes:
        mean_term: ‖μ_v − μ_t‖².
        covariance_term: Tr(Σ_v + Σ_t − 2(Σ_vΣ_t)^{1/2}).
        total: The Fréchet distance, the sum of both terms.
        log10: Its logarithm to base 10; −∞ where the clouds are equal.
        norm_ratio: E‖v‖ / E‖t‖.
        alpha: The factor that both clouds were multiplied by: 1/E‖t‖ with text-centric scaling, else 1.
    """

    mean_term: float
    covariance_term: float
    total: float
    log10: float
    norm_ratio: float
    alpha: float


def mean_norm(mean: np.ndarray, covariance: np.ndarray) -> float:
    """E‖x‖ of a Gaussian in the plane, from its (2,) mean and its (2, 2) covariance, positive definite.

    The norm of a vector is π/2 times the mean of ``|u·x|`` over all directions u, a smooth periodic function, so it
    converges fast; and u·x is a Gaussian number, whose mean absolute value is known.
    """
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    u = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (directions, 2)
    m = u @ mean
    s = np.sqrt(np.einsum("ni,ij,nj->n", u, covariance, u))
    z = m / s
    folded = s * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + m * erf(z / math.sqrt(2))
    return float(np.pi / 2 * folded.mean())


def cloud_distance(
    mean_shift: float,
    vision_scale: float,
    rotation: float,
    anisotropy: float,
    layer_scale: float = 1.0,
    text_centric: bool = False,
) -> CloudDistance:
    """The distance between the two clouds, as the page computes it; arguments are the attributes of `TwoClouds`.

    Two 2 × 2 covariances A and B have Tr((AB)^{1/2}) = √(Tr(AB) + 2√(det A · det B)), so nothing is iterated.

    Example:
        >>> cloud_distance(mean_shift=2, vision_scale=1, rotation=0, anisotropy=2).total
        4.0
    """
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    side = vision_scale * math.sqrt(TEXT_SPREAD.prod())
    spread = side * np.array([math.sqrt(anisotropy), 1 / math.sqrt(anisotropy)])
    covariance_v = layer_scale**2 * turn @ np.diag(spread**2) @ turn.T
    covariance_t = layer_scale**2 * np.diag(TEXT_SPREAD**2)
    mean_t = layer_scale * TEXT_MEAN
    mean_v = mean_t + layer_scale * mean_shift * TEXT_MEAN / np.linalg.norm(TEXT_MEAN)

    text_norm = mean_norm(mean_t, covariance_t)
    norm_ratio = mean_norm(mean_v, covariance_v) / text_norm
    alpha = 1 / text_norm if text_centric else 1.0

    mean_term = alpha**2 * (layer_scale * mean_shift) ** 2
    spread_sum = float(np.trace(covariance_v + covariance_t))
    root_of_determinants = layer_scale**4 * spread.prod() * TEXT_SPREAD.prod()
    root = math.sqrt(float((covariance_v * covariance_t).sum()) + 2 * root_of_determinants)
    difference = spread_sum - 2 * root
    # Equal clouds leave only the rounding of the subtraction.
    covariance_term = alpha**2 * difference if difference > 1e-12 * spread_sum else 0.0
    total = mean_term + covariance_term
    log10 = math.log10(total) if total > 0 else -math.inf
    return CloudDistance(mean_term, covariance_term, total, log10, norm_ratio, alpha)


class TwoClouds(StaticWidget):
    """Two Gaussian clouds in the plane, vision and text, and every term of the distance between them.

    Move the vision cloud with the sliders; the text cloud stands still. `cloud_distance` gives the same numbers.

    Attributes:
        mean_shift: Distance of the two means, 0 to 6.
        vision_scale: Spread of the vision cloud, 0.2 to 3; 1 gives it the area of the text cloud.
        rotation: Of the vision cloud, −90 to 90 degrees.
        anisotropy: Ratio of the vision cloud's axes, 1 to 5; 2 is that of the text cloud.
        layer_scale: Factor on both clouds, 0.25 to 4.
        text_centric: Whether both clouds are divided by the mean norm of the text.

    Example:
        >>> TwoClouds(mean_shift=1.0, text_centric=True).numbers().norm_ratio > 1
        True
    """

    asset = "two_clouds"

    mean_shift = traitlets.Float(3.0, min=0, max=6).tag(sync=True)
    vision_scale = traitlets.Float(1.5, min=0.2, max=3).tag(sync=True)
    rotation = traitlets.Float(40.0, min=-90, max=90).tag(sync=True)
    anisotropy = traitlets.Float(2.0, min=1, max=5).tag(sync=True)
    layer_scale = traitlets.Float(1.0, min=0.25, max=4).tag(sync=True)
    text_centric = traitlets.Bool(False).tag(sync=True)

    def numbers(self) -> CloudDistance:
        """What the widget shows in its present state."""
        return cloud_distance(**self.state())
