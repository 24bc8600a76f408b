"""MoCa, and one LayerNorm behind the projector, as methods of a run.

Both learn at the connector's rate in stage 1, as in the authors' code, where one optimizer holds all, unless MoCa is
given a rate of its own; in stage 2 they learn at that of all. A connector whose tokens are rescaled to the norm of
words needs no method: it is an option of `mirlab.recipes.StageOne`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from mirlab.methods.base import Technique, Training
from mirlib.align import moca, norms


@dataclass(frozen=True)
class MoCa(Technique, name="moca"):
    """A scale and a shift for vision rows behind every layer, see `mirlib.align.moca`.

    Attributes:
        std: Of the first weights around u = 1 and v = 0.
        rate: Highest learning rate of scales and shifts in stage 1; the connector's if left out.
    """

    std: float = 0.0
    rate: float | None = None

    @property
    def rate_of_attached(self) -> float | None:
        """The rate of its own."""
        return self.rate

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[nn.Parameter]:
        """The parameters are those of `mirlib.align.moca.attach`."""
        return list(moca.attach(model, self.std, seed).parameters())

    def after_stage_one(self, training: Training) -> dict[str, Any]:
        """How far scales and shifts went: by layer, mean and standard deviation of u, and the length of v."""
        calibration = moca.find(training.model)
        with torch.no_grad():
            u, v = calibration.u.float(), calibration.v.float()
            return {"u_mean": u.mean(dim=1).tolist(), "u_sd": u.std(dim=1).tolist(), "v_norm": v.norm(dim=1).tolist()}


@dataclass(frozen=True)
class LayerNorm(Technique, name="layer_norm"):
    """One LayerNorm behind the projector, see `mirlib.align.norms`."""

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[nn.Parameter]:
        """Gain and bias are among the connector's parameters, and learn with them."""
        return list(norms.attach(model, "layer_norm").parameters())
