"""What `mir lab` does: list the experiments, run one or finish it, and say what its ledger holds.

`base` makes the miniature, `parts` the sets that runs start from; all others are declared in `mirlab.experiments`.
Whatever trains is imported only when it is asked for.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from mirlab import results
from mirlab.claims import listed
from mirlab.experiments import EXPERIMENTS, Experiment
from mirlab.ledger import Ledger
from mirlib.errors import MirlibError, shown

SPECIAL = {
    "base": "Train the miniature LLaVA from nothing and measure it.",
    "parts": "Train the sets of encoder and language model that runs start from, and examine each.",
}
"""Experiments that are no sweeps of runs."""

SHOWN = ("mir", "norm_only", "norm_ratio", "loss", "perplexity", "accuracy", "blind")
"""Columns of the table of arms."""

JUDGED = ("claim", "outcome", "value", "adjusted_low", "adjusted_high", "p_holm", "over_means", "ceiling", "note")
"""Columns of the table of claims."""


def names() -> list[str]:
    """Of all experiments."""
    return [*SPECIAL, *EXPERIMENTS]


def sets() -> list[int]:
    """Seeds of the sets of parts that the experiments declare."""
    declared = {run.parts for experiment in EXPERIMENTS.values() for run in experiment.runs}
    return sorted(seed for seed in declared if isinstance(seed, int))


def default_cache() -> Path:
    """Where half-trained models are kept: `$MIRLIB_CACHE`, or `mirlib/lab` in the user's cache folder."""
    if folder := os.environ.get("MIRLIB_CACHE"):
        return Path(folder)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise MirlibError("you have no home folder to keep trained parts in: set MIRLIB_CACHE to a folder") from error
    return Path(home) / "mirlib" / "lab"


def listing() -> str:
    """All experiments, one line each, with the minutes that they take on one core."""
    said = [("base", 45, SPECIAL["base"]), ("parts", 60 * len(sets()), SPECIAL["parts"])]
    for name, experiment in EXPERIMENTS.items():
        said.append((name, round(sum(run.cost for run in experiment.runs) / 60), experiment.summary))
    return "\n".join(f"{name:16} {minutes:4} min  {summary}" for name, minutes, summary in said)


def run(
    name: str, *, results_dir: str | Path, cache_dir: str | Path | None = None, progress: bool = True, **options: Any
) -> list[dict[str, Any]]:
    """Run an experiment, or finish one that was stopped; a name that is none of `names` is refused.

    Rows go to ``NAME.jsonl`` in ``results_dir``, checkpoints to ``cache_dir`` or `default_cache`. Options are passed on
    to the experiment: ``output`` and ``recipe`` to `mirlab.base.run`, ``jobs`` and ``backend`` to `mirlab.sweep.sweep`.
    Its rows are returned.
    """
    check_name(name)
    book = Ledger(Path(results_dir) / f"{name}.jsonl")
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    if name == "base":
        from mirlab import base

        return base.run(book, cache, progress=progress, **options)
    if name == "parts":
        from mirlab.model import parts

        return [parts.make_row(seed, book, cache, progress=progress) for seed in sets()]
    from mirlab import sweep

    return sweep.sweep(name, EXPERIMENTS[name].arms, book.path.parent, cache, progress=progress, **options)


def show(name: str, results_dir: str | Path) -> str:
    """What an experiment's ledger says, as text; an unknown name, and one that has not been run, are refused."""
    check_name(name)
    rows = Ledger(Path(results_dir) / f"{name}.jsonl").rows
    said = describe(EXPERIMENTS[name], results_dir) if name in EXPERIMENTS else _special(name, rows())
    if not said:
        raise MirlibError(f"{name} has no results in {results_dir} yet: mir lab run {name}; mir lab list says how long")
    return said


def describe(experiment: Experiment, results_dir: str | Path) -> str:
    """Question, means, and what became of the claims; of rows of other arms the means alone; empty without rows."""
    table = results.load(experiment.name, results_dir)
    if not len(table):
        return ""
    means = table.groupby("arm", sort=False)[[column for column in SHOWN if column in table]].mean().round(3)
    means.insert(0, "runs", table.groupby("arm", sort=False).size())
    said = [textwrap.fill(experiment.question, 100), f"Paper: {experiment.paper}", means.to_string()]
    if set(experiment.arms) & set(table["arm"]):
        if found := results.outcomes(experiment.name, results_dir):
            said.append(listed(found).round(3)[list(JUDGED)].to_string(index=False, na_rep=""))
    return "\n\n".join(said)


def _special(name: str, rows: list[dict[str, Any]]) -> str:
    if name == "base" and rows:
        from mirlab import base

        return base.describe(rows)
    lines = []
    for row in rows:
        lines.append({"seed": row["seed"], "failed at": ", ".join(row["failures"]) or "-"})
        for by in ("words", "probe"):
            lines[-1] |= {f"{name} ({by})": share for name, share in row["measured"][by].items()}
    return pd.DataFrame(lines).round(3).to_string(index=False) if lines else ""


def check_name(name: str) -> None:
    """Refuse a name that is none of `names`."""
    if name not in names():
        raise MirlibError(f"no experiment is called '{shown(name)}'; there is {', '.join(names())}")
