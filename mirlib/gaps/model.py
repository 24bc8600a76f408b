"""The measures of the zoo on a model, from one pass over its data: ``mir score --measures all``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from mirlib.align.saved import attached
from mirlib.batches import pair_batches
from mirlib.errors import MirlibError
from mirlib.forward import memory_advice
from mirlib.gaps.base import MEASURES, PAIRS, TASK, GapResult
from mirlib.gaps.paired import PERMUTATIONS
from mirlib.hidden_states import decoder_parts
from mirlib.rows import TokenRows, collect_rows

ROW_BYTES = 1 << 30
"""Memory that the kept rows of all layers may take where nobody says how many rows to keep."""


@dataclass(frozen=True)
class ZooResult:
    """What a set of measures says of the same rows.

    Attributes:
        results: `GapResult` by measure.
        seconds: Of processor time that each took, without the forward passes.
        skipped: Why a measure was left out, by measure.
        settings: What was measured: rows kept and rows seen by modality, and how pairs were drawn.
    """

    results: dict[str, GapResult]
    seconds: dict[str, float]
    skipped: dict[str, str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "measures": {
                name: {**found.to_dict(), "seconds": self.seconds[name]} for name, found in self.results.items()
            },
            "skipped": dict(self.skipped),
            "settings": dict(self.settings),
        }

    def to_json(self) -> str:
        """Everything as a string of JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One line a measure: value, first and last layer, direction, random pairs, rows, seconds."""
        lines = []
        for name, found in self.results.items():
            random = found.calibration
            lines.append(
                {
                    "measure": MEASURES[name].title,
                    "value": found.value,
                    "first layer": found.per_layer[0],
                    "last layer": found.per_layer[-1],
                    "integrated": found.direction,
                    "random pairs": float("nan") if random is None else float(random.null_mean.mean()),
                    "calibrated": float("nan") if random is None else random.value,
                    "rows": " + ".join(str(count) for count in found.rows.values()),
                    "seconds": self.seconds[name],
                }
            )
        return pd.DataFrame(lines).set_index("measure") if lines else pd.DataFrame()


def chosen_measures(names: str | Sequence[str], *, pairs: bool) -> tuple[list[str], dict[str, str]]:
    """Which measures are meant, and why others are left out.

    Args:
        names: ``"all"``, names with commas between them, or a list of names.
        pairs: Whether images and texts belong together.

    Returns:
        Names in the order of the registry (those of ``all``) or of the caller, and reasons by name.

    Raises:
        MirlibError: If a name is unknown, or a measure was named that cannot be had here.
    """
    missing = {
        PAIRS: "needs images and the texts that belong to them (--pairs)",
        TASK: "needs a labelled task: pass the answers to mirlib.gaps.{}",
    }

    def reason(name: str) -> str | None:
        needs = MEASURES[name].needs
        return missing[needs].format(name) if needs == TASK or (needs == PAIRS and not pairs) else None

    if names == "all":
        skipped = {name: why for name in MEASURES if (why := reason(name))}
        return [name for name in MEASURES if name not in skipped], skipped
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in MEASURES:
            raise MirlibError(f"no measure is called {name!r}; there is all, {', '.join(MEASURES)}")
        if why := reason(name):
            raise MirlibError(f"{name} {why}")
    return list(dict.fromkeys(wanted)), {}


def apply_measures(
    rows: TokenRows,
    measures: Sequence[str],
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    on_measure: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, GapResult], dict[str, float]]:
    """Measures of rows in memory, and the seconds of processor time that each took.

    Those of pairs get the mean of all rows of a sample where `rows` holds it, and else that of the rows kept.

    Args:
        rows: The rows.
        measures: Names in `MEASURES`, none of a task.
        seed: Of draws of rows, folds and pairings.
        permutations: Random pairings of those that take pairs.
        on_measure: Called with each name before its turn.
    """
    results, seconds = {}, {}
    numbers = torch.arange(rows.num_samples)
    for name in measures:
        on_measure(name)
        started = time.process_time()
        options: dict[str, Any] = {"samples": rows.samples, "seed": seed}
        sides = rows.vision, rows.text
        if MEASURES[name].needs == PAIRS:
            options["permutations"] = permutations
            if rows.pooled is not None:
                sides, options["samples"] = rows.pooled, (numbers, numbers)
        found = MEASURES[name].function(*sides, **options)
        results[name], seconds[name] = found, round(time.process_time() - started, 3)
    return results, seconds


def rows_that_fit(model: nn.Module, size: int = ROW_BYTES) -> int:
    """Rows of a modality whose states after all layers of a model fit in so many bytes, in the model's precision."""
    layers = len(decoder_parts(model).layers) + 1  # those that enter the first layer are kept as well
    width = model.config.get_text_config().hidden_size
    return max(2, size // (2 * layers * width * next(model.parameters()).element_size()))


class _Picked(Sequence):
    """Some items of a sequence, read when they are asked for."""

    def __init__(self, items: Sequence[Any], chosen: Sequence[int]) -> None:
        self.items, self.chosen = items, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        return self.items[self.chosen[index]]


def score_measures(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    measures: str | Sequence[str] = "all",
    num: int = 100,
    batch_size: int = 4,
    seed: int = 0,
    paired: bool = False,
    max_rows: int | None = None,
    template: str = "chat",
    text_rows: str = "text",
    last: str = "normed",
    max_text_tokens: int | None = None,
    skip_unreadable: Callable[[str], None] | None = None,
    progress: bool = True,
) -> ZooResult:
    """All measures of a model that its data allow, from one forward pass over each pair.

    A bounded part of the rows is kept: of every sample and modality equally many, drawn at random, those of a row the
    same after every layer. The means of samples are taken over all rows before that. Where all rows fit, MIR is
    exactly that of `mirlib.score` on the same pairs; where they do not, every measure of clouds, MIR among them, is
    that of the rows kept, and MIR without measures is the better number.

    Args:
        model: As for `mirlib.score`.
        processor: Its processor.
        images: Images, as for `mirlib.score`.
        texts: Texts.
        measures: ``"all"``, or names in `mirlib.gaps.MEASURES`.
        num: Number of pairs.
        batch_size: Pairs a forward pass.
        seed: Of the draw of pairs and rows, and of what the measures draw.
        paired: Whether ``texts[i]`` belongs to ``images[i]``; measures of pairs need it.
        max_rows: Rows of each modality to keep; as many as take 1 GiB in all layers if left out.
        template: As for `mirlib.score`.
        text_rows: As for `mirlib.score`.
        last: As for `mirlib.score`.
        max_text_tokens: As for `mirlib.score`.
        skip_unreadable: As for `mirlib.score`.
        progress: Whether to show bars on stderr.

    Returns:
        `ZooResult`.

    Raises:
        UndefinedMIRError: If the model's decoder never sees vision rows.
        MirlibError: For unknown measures, and as `mirlib.score`.
    """
    from tqdm import tqdm

    wanted, skipped = chosen_measures(measures, pairs=paired)
    batches = pair_batches(
        model,
        processor,
        images,
        texts,
        num=num,
        batch_size=batch_size,
        seed=seed,
        paired=paired,
        template=template,
        max_text_tokens=max_text_tokens,
        skip_unreadable=skip_unreadable,
        merge_processes=False,
    )
    limit = rows_that_fit(model) if max_rows is None else max_rows
    chosen_images, chosen_texts = zip(*batches.chosen, strict=True)
    with memory_advice(model, batch_size):
        rows = collect_rows(
            model,
            processor,
            _Picked(images, chosen_images),
            [texts[i] for i in chosen_texts],
            batch_size=batch_size,
            template=template,
            text_rows=text_rows,
            last=last,
            max_text_tokens=max_text_tokens,
            max_rows=limit,
            seed=seed,
            progress=progress,
        )
    with tqdm(total=len(wanted), desc="measures", disable=not progress, leave=False) as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        results, seconds = apply_measures(rows, wanted, seed=seed, on_measure=show)
    kept = {"vision": len(rows.vision_samples), "text": len(rows.text_samples)}
    settings = {
        **batches.settings,
        "paired": paired,
        "text_rows": text_rows,
        "last": last,
        "layers": rows.num_layers,
        "rows_kept": kept,
        "rows_seen": dict(rows.seen or kept),
        **({"methods": methods} if (methods := attached(model)) else {}),
    }
    return ZooResult(results, seconds, skipped, settings)
