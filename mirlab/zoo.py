"""Every measure of the gap on models of the ledger, trained again: what the experiment ``zoo`` records, and its table.

The ledger keeps metrics, not hidden states, so stage 1 is done again with the very configuration of a run that another
experiment has done, and its rows are measured. Stage 2 is not: what it leads to stands in the row that is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab import ledger, runs, world
from mirlab.model import evaluation
from mirlib.gaps import MEASURES
from mirlib.gaps.base import HIGHER, PAIRS, TASK
from mirlib.gaps.model import apply_measures
from mirlib.rows import TokenRows, collect_rows

Row = dict[str, Any]

NUM, MANY, DRAWS = 100, 1000, 3
PERMUTATIONS = 100
CALIBRATED = ("cka", "cka_debiased", "svcca", "mutual_knn")
"""Measures of which the calibrated value is used: what random pairs give them depends on the model."""

ALL = (
    *("modality_gap", "ima", "a_score", "mmd", "cmmd", "kid", "sliced_wasserstein", "symmetric_kl", "probe_auc"),
    *("mir", "norm_only", "fd_infinity", "rmg", "cka", "cka_debiased", "svcca", "mutual_knn"),
    *("perceptual_score", "soft_discrimination"),
)
"""The measures that the experiment records; the registry has more."""
ON_ROWS = tuple(name for name in ALL if MEASURES[name].needs != TASK)

LEAKED = tuple(name for name in ALL if MEASURES[name].needs == PAIRS)
"""Measures whose values in this ledger are of captions read behind their pictures, which leak into them whatever the
weights (see `mirlib.gaps.reading`): they stay in the rows, and out of every rank until the runs are made again."""
RANKED = tuple(name for name in ALL if name not in LEAKED)

STUDIES = ("zoo", "zoo_samples")
"""Values of `runs.Run.study`: all measures of `NUM` pairs; and beside them of `MANY`, and of `DRAWS` parts of those."""


def repeated_key(run: runs.Run) -> str:
    """Key of the run that a run of the zoo does again."""
    return ledger.key_of(replace(run, study="final").configuration)


def measure(model: LlavaForConditionalGeneration, processor: LlavaProcessor, run: runs.Run) -> dict[str, Any]:
    """Metrics of a run of the zoo, after stage 1.

    Measures of clouds get pictures of scenes and news, as MIR does everywhere in the ledger; those of pairs get
    held-out scenes and their own full captions, read after the picture, which the text has seen: see
    `mirlib.gaps.reading` for the reading without it.

    Returns:
        ``repeats``, the key of the run that this one does again; ``mir`` as in every row; ``gaps``, for each measure
        its ``value``, ``per_layer`` and processor ``seconds``, and for measures of pairs ``calibrated``, ``null_mean``
        and ``null_std``. In the study ``zoo_samples`` also ``samples``, by measure: ``many``, its value over `MANY`
        pairs, and ``few``, its values over `DRAWS` disjoint parts of them, of `NUM` pairs each.
    """
    news = _collect(model, processor, runs.pictures_of("scenes", NUM, seed=0), runs.texts_of("news", NUM, seed=0))
    metrics: dict[str, Any] = {"repeats": repeated_key(run), "mir": runs.mir_of_rows(news)}
    metrics["gaps"] = measured(news, _captioned(model, processor, NUM))
    if run.study == "zoo_samples":
        metrics["samples"] = by_samples(
            _collect(model, processor, runs.pictures_of("scenes", MANY, seed=9), runs.texts_of("news", MANY, seed=9)),
            _captioned(model, processor, MANY),
        )
    return metrics


def _collect(model: Any, processor: Any, pictures: Sequence[Any], texts: Sequence[str]) -> TokenRows:
    return collect_rows(model, processor, pictures, texts, batch_size=25)


def _captioned(model: Any, processor: Any, count: int) -> TokenRows:
    scenes = evaluation.held_out_scenes(count, seed=1000)
    return _collect(model, processor, list(map(world.to_image, scenes)), [world.caption(scene) for scene in scenes])


def measured(news: TokenRows, captions: TokenRows, *, permutations: int = PERMUTATIONS) -> dict[str, dict[str, Any]]:
    """All measures of rows; those of pairs take the captions."""
    found = {}
    for name in ON_ROWS:
        rows = captions if MEASURES[name].needs == PAIRS else news
        results, seconds = apply_measures(rows, [name], permutations=permutations, confidence=None)
        result = results[name]
        found[name] = {"value": _finite(result.value), "per_layer": [_finite(value) for value in result.per_layer]}
        found[name]["seconds"] = seconds[name]
        if result.calibration is not None:
            found[name] |= {
                "calibrated": result.calibration.value,
                "null_mean": float(result.calibration.null_mean.mean()),
                "null_std": float(result.calibration.null_std.mean()),
            }
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: FD∞ has no logarithm where it is not positive."""
    return float(value) if np.isfinite(value) else None


def by_samples(
    news: TokenRows, captions: TokenRows, *, num: int = NUM, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """Each measure of all samples, and of disjoint parts of them, with the seconds that all of them took."""
    whole = measured(news, captions, permutations=20)
    parts = [measured(part_of(news, draw, num), part_of(captions, draw, num), permutations=20) for draw in range(draws)]
    return {
        name: {
            "many": value_of(name, whole[name]),
            "few": [value_of(name, part[name]) for part in parts],
            "raw_many": whole[name]["value"],
            "raw_few": [part[name]["value"] for part in parts],
            "seconds": whole[name]["seconds"],
        }
        for name in ON_ROWS
    }


def part_of(rows: TokenRows, draw: int, num: int) -> TokenRows:
    """Rows of the samples ``draw · num`` to ``(draw + 1) · num − 1``, numbered from 0."""
    first = draw * num
    kept = [(ids >= first) & (ids < first + num) for ids in rows.samples]
    return TokenRows(
        vision=[layer[kept[0]] for layer in rows.vision],
        text=[layer[kept[1]] for layer in rows.text],
        vision_samples=rows.vision_samples[kept[0]] - first,
        text_samples=rows.text_samples[kept[1]] - first,
        vision_embeddings=rows.vision_embeddings[kept[0]],
        text_embeddings=rows.text_embeddings[kept[1]],
    )


def value_of(name: str, found: Mapping[str, Any]) -> float | None:
    """The value that a measure is judged by: the calibrated one for those of `CALIBRATED`."""
    return found["calibrated"] if name in CALIBRATED else found["value"]


# ---------------------------------------------------------------------------------------------------------------------
# The table


def with_repeated(rows: Iterable[Row], results_dir: str | Path) -> list[Row]:
    """Rows of the zoo, each with what the row that it repeats says after stage 2, as ``row["repeated"]``.

    Rows of a run that no other experiment has done stay without.
    """
    from mirlab.sweep import runs_of_sweeps

    known: dict[str, dict[str, Any]] = {}
    for name in runs_of_sweeps():
        if name == "zoo":
            continue
        for row in ledger.Ledger(Path(results_dir) / f"{name}.jsonl").rows():
            if "accuracy" in row["metrics"] and row["key"] not in known:
                known[row["key"]] = {
                    "experiment": name,
                    "accuracy": row["metrics"]["accuracy"]["mean"],
                    "blind": row["metrics"]["accuracy"]["blind"],
                    "discrimination": row["metrics"]["discrimination"],
                    "mir": row["metrics"]["mir"]["value"],
                }
    found = []
    for row in rows:
        repeated = known.get(row["metrics"].get("repeats"))
        found.append(row if repeated is None else {**row, "repeated": repeated})
    return found


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a run of the zoo whose repeated row is known.

    Returns:
        Columns ``arm``, ``seed``, ``accuracy`` after stage 2, ``mir_then`` (MIR in the repeated row), and every measure
        by its name, see `value_of`. ``soft_discrimination`` and ``perceptual_score`` are those of the repeated row; the
        second is taken after stage 2 and contains the accuracy.
    """
    lines = []
    for row in rows:
        if "arm" not in row or "repeated" not in row:
            continue
        then = row["repeated"]
        lines.append(
            {
                "arm": row["arm"],
                "seed": row["configuration"]["seed"],
                "accuracy": then["accuracy"],
                "mir_then": then["mir"],
            }
            | {name: value_of(name, row["metrics"]["gaps"][name]) for name in ON_ROWS}
            | {"soft_discrimination": then["discrimination"], "perceptual_score": then["accuracy"] - then["blind"]}
        )
    return pd.DataFrame(lines)


def integrated(name: str) -> int:
    """1 where a higher value of a measure means better integrated, −1 where a lower one does."""
    return 1 if MEASURES[name].direction == HIGHER else -1


def grid(found: pd.DataFrame, arms: Sequence[str], column: str, seeds: Sequence[int]) -> np.ndarray:
    """(arms, seeds) values of a column of `table`."""
    return found.pivot(index="arm", columns="seed", values=column).loc[list(arms), list(seeds)].to_numpy(float)
