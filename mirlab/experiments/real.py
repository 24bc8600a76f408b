"""Pre-registration B, real parts: does warm-up or data move MIR, and is MIR its norm-only baseline?

SmolLM2-135M and EfficientNet-Lite0 joined by LLaVA's projector, which alone is trained, on captions of composed
photographs: 1024 or 4096 pairs in batches of 16, 2 or 8 steps of warm-up, one pass, cosine, no weight decay. The
rate is .15 of the root mean square of the projector's first weights, about the middle of LLaVA's operating point in the
miniature (.11 to .2); no other rate was tried. Five seeds: of the projector's first weights, and of the choice and order
of the pairs. There is one set of parts and one pool of pictures: what comes out is said of
these, and its intervals tell what another seed would give, not what other parts would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEEDS = (0, 1, 2, 3, 4)
PAIRS = (1024, 4096)
WARMUP_STEPS = (2, 8)

RELATIVE_STEP = 0.15
"""Highest learning rate over the root mean square of the projector's first weights."""

DECISION = (
    "Deciding: within-seed main effects on MIR and on MIR − norm-only. "
    '"Warm-up" if its effect < 0 and data\'s lies within ± .05; "data" if data\'s effect < 0; '
    '"length only" if MIR − norm-only moves less than ± .05.'
)
"""How it is decided, in the words of the pre-registration."""


@dataclass(frozen=True)
class RealRun:
    """All that the outcome of a run of the real parts depends on.

    Attributes:
        seed: Of the projector's first weights, and of the choice and order of the pairs.
        pairs: Pictures with a caption, each seen once.
        warmup_steps: Steps over which the rate rises.
        batch: Pairs a step.
        relative_step: Highest learning rate over the root mean square of the projector's first weights.
        samples: Pairs of a held-out picture and an English text that MIR is measured on.
        questions: Of each kind, at most.
    """

    seed: int = 0
    pairs: int = PAIRS[0]
    warmup_steps: int = WARMUP_STEPS[0]
    batch: int = 16
    relative_step: float = RELATIVE_STEP
    samples: int = 100
    questions: int = 100

    def __post_init__(self) -> None:
        if self.pairs < self.batch:
            raise ValueError(f"pairs ({self.pairs}) must be at least one batch ({self.batch})")

    @property
    def steps(self) -> int:
        """Steps of stage 1."""
        return self.pairs // self.batch

    @property
    def configuration(self) -> dict[str, Any]:
        """The run as JSON."""
        return {"parts": "real", **asdict(self)}

    @property
    def cost(self) -> float:
        """About how many seconds it takes on one core."""
        return 5.0 * self.steps + 200


ARMS: dict[str, tuple[RealRun, ...]] = {
    f"{pairs // 1024}k, {warmup} steps": tuple(RealRun(seed, pairs, warmup) for seed in SEEDS)
    for pairs in PAIRS
    for warmup in WARMUP_STEPS
}
"""The runs by arm."""


def main_effects(rows: Sequence[Mapping[str, Any]], *, beyond_norms: bool = False) -> dict[str, dict[int, float]]:
    """What more warm-up and more data do within each seed that has all four arms.

    Args:
        rows: Rows of the ledger.
        beyond_norms: Of MIR minus its norm-only baseline, in place of MIR.

    Returns:
        ``warmup`` and ``data``: by seed, the difference between the larger and the smaller value, averaged over the
        two values of the other.
    """
    values = {}
    for row in rows:
        mir, run = row["metrics"]["mir"], row["configuration"]
        value = mir["value"] - mir["norm_only"] * beyond_norms
        values[run["seed"], run["pairs"], run["warmup_steps"]] = value
    seeds = [seed for seed in SEEDS if all((seed, n, w) in values for n in PAIRS for w in WARMUP_STEPS)]
    (few, many), (short, long) = PAIRS, WARMUP_STEPS
    return {
        "warmup": {s: sum(values[s, n, long] - values[s, n, short] for n in PAIRS) / 2 for s in seeds},
        "data": {s: sum(values[s, many, w] - values[s, few, w] for w in WARMUP_STEPS) / 2 for s in seeds},
    }
