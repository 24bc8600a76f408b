"""How an experiment is declared: question, runs, and what would count as an answer, before anything is run.

Three regimes stand side by side, because they part where it matters (see the experiment ``warmup_or_data``):

- ``high``: a plain MLP connector at a high learning rate. A prototype of this laboratory saw MIR behave in it as in the
  paper: 6e-2 for batches of 96, after a scan of rates on data of its own. Here a batch is 8 pairs, and the rate was
  scaled by the root of the batch, to 2e-2. Batch and rate were settled on a seed (100) that no experiment uses, after
  batches of 32 had turned out to leave models of 2048 pairs as good as blind. Twelve runs of ``captions`` (seeds 1 and
  3) had shown that; they were thrown away, and are not in the ledger.
- ``low``: the same connector at a rate ten times lower, which trains better models.
- ``matched``: the low rate, and every vision token rescaled to the mean norm of the text embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mirlab.first.recipe import Run, StageOne

SEEDS = (0, 1, 2, 3, 4)
PARTS = (0, 1)
"""Seeds of encoder and language model; the run's seed takes them in turn."""

HIGH_RATE, LOW_RATE = 2e-2, 2e-3
WARMUP = 0.03

REGIMES: dict[str, dict[str, object]] = {
    "high": {"learning_rate": HIGH_RATE},
    "low": {"learning_rate": LOW_RATE},
    "matched": {"learning_rate": LOW_RATE, "norm_matched": True},
}


@dataclass(frozen=True)
class Protocol:
    """One experiment, declared.

    Attributes:
        name: Of the experiment and its file in the ledger.
        figure: The figure or table of the MIR paper that it answers.
        question: What is asked.
        paper: What the paper says.
        primary: The quantity that decides.
        criteria: What would count as reproduced, by the claim. `mirlab.first.verdicts` judges these claims and no
            others, under each regime (or arm) by itself and from five seeds at least. An interval is that of 95 %
            over seeds.
        arms: Runs by the name of their arm, for each seed in the same order.
        summary: One line for ``mir lab list``.
    """

    name: str
    figure: str
    summary: str
    question: str
    paper: str
    primary: str
    criteria: dict[str, str]
    arms: dict[str, tuple[Run, ...]]

    @property
    def reproduced_when(self) -> str:
        """All criteria as one text; claims that share one stand beside each other."""
        claims: dict[str, list[str]] = {}
        for claim, criterion in self.criteria.items():
            claims.setdefault(criterion, []).append(f"“{claim}”")
        return " ".join(f"{', '.join(group)}: {criterion}." for criterion, group in claims.items())

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for arm in self.arms.values() for run in arm)


def arm(*, seeds: Iterable[int] = SEEDS, pairs: int, regime: str = "matched", **options: object) -> tuple[Run, ...]:
    """Runs that differ in the seed alone. Options of `StageOne` are told from those of `Run` by their names."""
    recipe = {key: value for key, value in options.items() if key in StageOne.__dataclass_fields__}
    rest = {key: value for key, value in options.items() if key not in recipe}
    stage_one = replace(StageOne(pairs=pairs), **{**REGIMES[regime], **recipe})
    if stage_one.warmup_steps is None:  # one way to say it, so that equal runs have equal keys
        stage_one = replace(stage_one, warmup_steps=max(1, round(stage_one.warmup * stage_one.schedule.steps)))
    stage_one = replace(stage_one, warmup=WARMUP)
    return tuple(Run(seed=seed, parts=PARTS[seed % len(PARTS)], stage_one=stage_one, **rest) for seed in seeds)
