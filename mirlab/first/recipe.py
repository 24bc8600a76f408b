"""Runs of the first edition as they were declared, so that a row's arm can be told. They are no longer done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mirlab import recipes
from mirlab.methods import Technique


@dataclass(frozen=True)
class StageOne(recipes.StageOne):
    """Stage 1, with the defaults of the first edition."""

    pairs: int = 16_384
    batch: int = 8
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Run:
    """A run of the first edition."""

    seed: int = 0
    parts: int = 0
    size: str = "base"
    stage_one: StageOne = StageOne()
    stage_two: recipes.StageTwo = recipes.StageTwo(images=1024)
    study: str = "final"
    probes: tuple[int, ...] = ()
    scenes: int = 120
    method: recipes.Method | Technique = recipes.PLAIN

    @property
    def configuration(self) -> dict[str, Any]:
        """The run as JSON. The plain recipe has no entry ``method``."""
        configuration = {**asdict(self), "probes": list(self.probes), "method": self.method.configuration}
        if self.method == recipes.PLAIN:
            del configuration["method"]
        return configuration

    @property
    def cost(self) -> float:
        """About how many seconds it took on one core."""
        steps = self.stage_one.schedule.steps
        unlocked = self.stage_one.unlock != "none" or self.stage_one.unlock_encoder
        measured = {"robustness": 150}.get(self.study, 20 * (1 + len(self.probes)))
        return steps * (0.075 if unlocked else 0.05) * self.stage_one.batch / 8 + measured
