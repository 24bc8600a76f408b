"""The laboratory's experiments, one file a question: its arms and its claims, written down before anything is run.

A file declares one `Experiment` under the name ``EXPERIMENT``, and is called by the experiment's name. Files are
imported when their experiment is asked for.

The ``effect`` of a claim, for which the oracle is asked, was set after the pilot and before the runs. On MIR it is the
difference that the paper's table prints; where the paper has none, what the first edition saw (for forced MIR the
geometric mean of its two rates), or .1. On accuracy, whose scale is another than the paper's, it is .05, and more where
the first edition saw more. `convergence` leaves the effect on accuracy out, so that the pilot's own counts, which ran
these arms.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from mirlab.claims import SEEDS, Claim

if TYPE_CHECKING:
    import pandas as pd

    from mirlab.recipes import Run


@dataclass(frozen=True)
class Experiment:
    """One question, declared.

    Attributes:
        name: Of the experiment, its module and its file in the ledger.
        question, paper, figure: What is asked, what the MIR paper says, and its figure or table.
        summary: One line for ``mir lab list``.
        arms: Runs by the name of their arm, for each seed in the same order.
        claims: Judged by `mirlab.claims.judge`, these and no others. One may name an arm at a probe: ``ARM, step 64``.
        seeds: How many a verdict needs.
        derive: Adds columns to the table of `mirlab.results.load`, where a claim needs others.
    """

    name: str
    question: str
    paper: str
    figure: str
    summary: str
    arms: dict[str, tuple[Run, ...]]
    claims: tuple[Claim, ...]
    seeds: int = SEEDS
    derive: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    def __post_init__(self) -> None:
        names = [claim.name for claim in self.claims]
        arms = {arm for claim in self.claims for arm in claim.arms}
        twice = {name for name in names if names.count(name) > 1}
        missing = {arm for arm in arms if arm.partition(", step ")[0] not in self.arms}
        for what, faulty in (("claims twice", twice), ("claims on arms that it has not", missing)):
            if faulty:
                raise ValueError(f"the experiment {self.name} has {what}: {', '.join(sorted(faulty))}")

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for runs in self.arms.values() for run in runs)


class Registry(Mapping[str, Experiment]):
    """The experiments of a package by name; modules are imported when looked up, those with a ``_`` in front never."""

    def __init__(self, package: str, path: list[str]) -> None:
        self._package = package
        found = (module.name for module in pkgutil.iter_modules(path))
        self._names = tuple(sorted(name for name in found if not name.startswith("_")))

    def __getitem__(self, name: str) -> Experiment:
        if name not in self._names:
            raise KeyError(name)
        return import_module(f"{self._package}.{name}").EXPERIMENT

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


EXPERIMENTS = Registry(__name__, __path__)
"""All experiments of the second edition by name."""
