"""One run of the laboratory: train a miniature by a recipe, and measure it with everything the ledger keeps.

A `mirlab.recipes.Run` says all that the outcome depends on; `execute` turns it into the metrics of a row. What is
common to many runs (encoder, language model, pictures and their features) is made once and kept in the cache.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab import measuring, methods, zoo
from mirlab.model import parts, train
from mirlab.model.pool import Pool
from mirlab.recipes import Run


def execute(run: Run, cache: Path) -> dict[str, Any]:
    """Do a run on one thread, with trained parts and features in the cache; see `mirlab.model.parts.load`.

    Returns:
        The row's ``metrics``, ``seconds`` by phase, ``parts``, the fingerprint of encoder and language model, and
        ``method``, where there is one, with all its options.
    """
    started = time.monotonic()
    technique = methods.technique(run.method)
    shared, processor, fingerprint, pool = _shared(run.parts, cache)
    model = deepcopy(shared)
    wanted = technique.wanted(run.stage_one.pairs)
    probes: list[dict[str, Any]] = []
    plainly = replace(run, leaning=False, long_tokens=False)

    def probe(step: int, _: float) -> None:
        if step in run.probes:
            probes.append({"step": step, **measuring.measure(model, processor, plainly, technique)})

    trained = train.stage_one(
        model,
        processor.tokenizer,
        run.stage_one,
        seed=run.seed,
        scenes=pool.scenes(wanted),
        features=None if run.stage_one.unlock_encoder else pool.features(wanted),
        method=technique,
        after_step=probe if run.probes else None,
        progress=False,
    )
    trained_at = time.monotonic()
    metrics: dict[str, Any] = {"stage_one": train.state_of(trained)}
    for name, said in (("before_stage_one", trained.before), ("after_stage_one", trained.after)):
        if said:
            metrics[name] = measuring.rounded(said)
    metrics |= measuring.measure(model, processor, run, technique)
    if run.robustness:
        chosen = technique.choose(pool.scenes(wanted), run.stage_one.pairs)[:300]
        metrics |= measuring.robustness(model, processor, trained_on=[pool.scenes(wanted)[i] for i in chosen])
    if run.zoo:
        metrics |= measuring.rounded(zoo.measure(model, processor, measuring.collect(model, processor)))
    if probes:
        metrics["probes"] = probes
    seconds = {"stage_one": round(trained_at - started, 1), "all": round(time.monotonic() - started, 1)}
    row = {"metrics": metrics, "seconds": seconds, "parts": fingerprint}
    return row if technique == methods.PLAIN else {**row, "method": technique.configuration}


@lru_cache(maxsize=2)
def _shared(seed: int, cache: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, str, Pool]:
    """What the runs of a process have in common: model, processor, fingerprint of the parts, and pool."""
    model, processor, fingerprint = parts.load(seed, cache)
    return model, processor, fingerprint, Pool(model, seed, cache / "features")
