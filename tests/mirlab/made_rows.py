"""Rows of the ledger whose truth is known: every run of a protocol, with metrics that the test makes up."""

import shutil
from pathlib import Path

from mirlab.first.protocols import PROTOCOLS
from mirlab.first.tables import INDEX
from mirlab.ledger import key_of


def index_in(folder):
    """Lay the first edition's index of arms beside rows that do not name theirs."""
    shutil.copy(Path(__file__).parents[2] / "results" / "0.1" / INDEX, folder)


def measured(
    mir=1.0,
    accuracy=0.5,
    *,
    loss=1.0,
    perplexity=2.0,
    outside=3.0,
    shots=0.4,
    ratio=1.0,
    norm_only=0.9,
    discrimination=0.3,
):
    """Metrics of a run, in the form in which `mirlab.runs.execute` leaves them."""
    flat = {name: [float(ratio)] * 8 for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio")}
    return {
        "stage_one": {"loss": loss, "curve": [[1, loss]], "seconds": 1.0},
        "perplexity": {"in_domain": perplexity, "out_of_domain": outside},
        "in_context": {"text": shots, "image": shots},
        "zero_shot": {},
        "discrimination": discrimination,
        "mir": {"value": mir, "norm_only": norm_only, "null": 0.9, "floor": -1.0, **flat},
        "mir_scenes": mir - 0.2,
        "accuracy": {"mean": accuracy, "blind": 0.25},
    }


def rows_of(name, metrics, seeds=range(5)):
    """A row for each run; `metrics(arm, run)` gives what it measured, or None for a run that is not done yet."""
    made = []
    for arm, runs in PROTOCOLS[name].arms.items():
        for run in runs:
            found = metrics(arm, run) if run.seed in seeds else None
            if found is not None:
                made.append(
                    {
                        "key": key_of(run.configuration),
                        "experiment": name,
                        "arm": arm,
                        "configuration": run.configuration,
                        "metrics": found,
                        "seconds": {"stage_one": 1.0, "all": 2.0},
                    }
                )
    return made
