"""The measures of the zoo on a model: ``mir score --measures all``.

Measures of clouds take the rows of one pass over pairs, as MIR does. Those of pairs take the text alone, from one pass
more, and stand beside what the same architecture with random weights gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from mirlib.align.saved import attached
from mirlib.batches import pair_batches
from mirlib.errors import MirlibError
from mirlib.forward import memory_advice
from mirlib.gaps.base import CONFIDENCE, MEASURES, MODEL, PAIRS, TASK, GapResult
from mirlib.gaps.paired import PERMUTATIONS
from mirlib.gaps.reading import ALONE, PairMeans, PairReader, random_twin
from mirlib.hidden_states import decoder_parts
from mirlib.result import Sample, json_text
from mirlib.rows import TokenRows, collect_rows

ROW_BYTES = 1 << 30  # that the kept rows of all layers may take where nobody says how many rows to keep


@dataclass(frozen=True)
class ZooResult:
    """What a set of measures says of the same rows.

    Attributes:
        results: `GapResult` by measure.
        seconds: Of processor time that each took, without the forward passes.
        skipped: Why a measure was left out, by measure.
        settings: What was measured: rows kept and rows seen by modality, how pairs were drawn, and for measures of
            pairs how they were read (``pair_text``, ``pair_vision``) and the seeds of the ``random_weights``, or why
            there are none.
        samples: The samples, in the order of the influences in ``results``.
    """

    results: dict[str, GapResult]
    seconds: dict[str, float]
    skipped: dict[str, str]
    settings: dict[str, Any]
    samples: tuple[Sample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        said = {name: replace(found, samples=()).to_dict() for name, found in self.results.items()}
        measures = {name: {**found, "seconds": self.seconds[name]} for name, found in said.items()}
        found = {"measures": measures, "skipped": dict(self.skipped), "settings": dict(self.settings)}
        return found | {"samples": [list(sample) for sample in self.samples]}

    def to_json(self) -> str:
        """Everything as a string of JSON."""
        return json_text(self.to_dict())


def chosen_measures(names: str | Sequence[str], *, pairs: bool) -> tuple[list[str], dict[str, str]]:
    """Which measures are meant by ``"all"``, by names with commas between them or a list, and why others are left out.

    ``pairs`` says whether images and texts belong together. A name that is unknown, or cannot be had here, is refused.
    """
    missing = {TASK: "needs a labelled task: pass the answers to mirlib.gaps.{}"}
    missing[MODEL] = "needs passes of its own: call mirlib.gaps.{}(model, processor, images, texts)"
    if not pairs:
        missing[PAIRS] = "needs images and the texts that belong to them (--pairs)"

    def reason(name: str) -> str:
        return missing.get(MEASURES[name].needs, "").format(name)

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
    confidence: float | None = CONFIDENCE,
    pairs: PairMeans | None = None,
    random: Sequence[PairMeans] = (),
) -> tuple[dict[str, GapResult], dict[str, float]]:
    """Measures of rows in memory by name, none of a task, and the seconds of processor time that each took.

    Those of pairs take ``pairs``, see `mirlib.gaps.reading.PairReader` (if left out the rows, of a text that has seen
    the picture), and stand beside ``random``, the same of models with random weights.
    """
    results, seconds = {}, {}
    for name in measures:
        started = time.process_time()
        function, of_pairs = MEASURES[name].function, MEASURES[name].needs == PAIRS
        options: dict[str, Any] = {"seed": seed, "confidence": confidence}
        if of_pairs:
            options["permutations"] = permutations
        if of_pairs and pairs is not None:
            found = function(*pairs, **options)  # a row a sample
        else:
            found = function(rows.vision, rows.text, samples=rows.samples, **options)
        if of_pairs and found.calibration is not None and random:
            values = [function(*means, seed=seed, permutations=0, confidence=None).per_layer for means in random]
            found = replace(found, calibration=replace(found.calibration, random_weights=np.array(values)))
        results[name], seconds[name] = found, round(time.process_time() - started, 3)
    return results, seconds


def rows_that_fit(model: nn.Module, size: int = ROW_BYTES) -> int:
    """Rows of a modality whose states after all layers of a model fit in so many bytes, in the model's precision."""
    layers = len(decoder_parts(model).layers) + 1  # those that enter the first layer are kept as well
    width = model.config.get_text_config().hidden_size
    return max(2, size // (2 * layers * width * next(model.parameters()).element_size()))


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
    text: str = ALONE,
    random_weights: int = 1,
    confidence: float | None = CONFIDENCE,
    template: str = "chat",
    text_rows: str = "text",
    last: str = "normed",
    max_text_tokens: int | None = None,
    skip_unreadable: Callable[[str], None] | None = None,
    progress: bool = True,
) -> ZooResult:
    """All measures of a model that its data allow, from one pass over the pairs, and two where it measures pairs.

    A bounded part of the rows is kept: of every sample and modality equally many, drawn at random, those of a row the
    same after every layer. Where all rows fit, MIR is exactly that of `mirlib.score` on the same pairs; where they do
    not, every measure of clouds is that of the rows kept, and MIR without measures is the better number.

    Measures of pairs take means over all rows of a sample, see `mirlib.gaps.reading`. The text is read once more
    without its picture; the vision rows are those of the first pass, unless they change with the text, which is tried:
    in a model with attention both ways, as PaliGemma, they are read again beside one short text that is the same for
    all. The same is done with models of the same class whose weights are random.

    Arguments that are not named here, and errors, are those of `mirlib.score`. ``measures`` is ``"all"`` or names in
    `mirlib.gaps.MEASURES`; those of pairs need ``paired``. ``max_rows`` of each modality are kept, as many as take 1
    GiB in all layers if left out. For measures of pairs, ``text="after the picture"`` shows what that does, and
    ``random_weights`` says how many models of random weights to measure beside this one, with the seeds from ``seed``
    on; one is left out where there is no room for it.
    """
    if random_weights < 0:
        raise MirlibError(f"random_weights (--random-weights) must not be negative, got {random_weights}")
    wanted, skipped = chosen_measures(measures, pairs=paired)
    reading = {"batch_size": batch_size, "template": template, "max_text_tokens": max_text_tokens}
    drawing = {"num": num, "seed": seed, "paired": paired, "skip_unreadable": skip_unreadable}
    batches = pair_batches(model, processor, images, texts, merge_processes=False, **drawing, **reading)
    reading |= {"text_rows": text_rows, "last": last, "progress": progress}
    chosen = Subset(images, [i for i, _ in batches.chosen]), [texts[i] for _, i in batches.chosen]
    reader = PairReader(processor, *chosen, text=text, **reading)
    limit = rows_that_fit(model) if max_rows is None else max_rows
    of_pairs = [name for name in wanted if MEASURES[name].needs == PAIRS]
    pairs, random, said = None, [], {}
    with memory_advice(model, batch_size):
        rows = collect_rows(model, processor, *chosen, max_rows=limit, seed=seed, **reading)
        if of_pairs:
            try:
                pairs, said = _read_pairs(model, reader, rows)
            except MirlibError as error:
                if measures != "all":
                    raise
                skipped |= {name: f"cannot be had: {error}" for name in of_pairs}
                wanted = [name for name in wanted if name not in skipped]
            else:
                random, said["random_weights"] = _read_random(model, reader, seed, random_weights)
    kept = {"vision": len(rows.vision_samples), "text": len(rows.text_samples)}
    settings = {**batches.settings, "paired": paired, "text_rows": text_rows, "last": last}
    settings |= {"layers": rows.num_layers, "dim": rows.vision[0].shape[1], "rows_kept": kept, "rows_seen": rows.seen}
    settings |= said | ({"methods": methods} if (methods := attached(model)) else {})
    results, seconds, samples = {}, {}, batches.samples()
    with tqdm(wanted, desc="measures", disable=not progress, leave=False) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            try:
                found, took = apply_measures(rows, [name], seed=seed, confidence=confidence, pairs=pairs, random=random)
            except MirlibError as error:  # too few samples for one of them; the others are worth having
                if measures != "all" or (name == wanted[-1] and not results):
                    raise
                skipped[name] = f"cannot be had: {error}"
                continue
            # What mirlib.compare holds against that of another result.
            counts = ("template", "max_text_tokens", "text_rows", "last")
            counts += ("pair_text", "pair_vision") if name in of_pairs else ()
            beside = {**found[name].settings, **{setting: settings[setting] for setting in counts}}
            known = samples if found[name].influence is not None else ()
            results[name] = replace(found[name], settings=beside, samples=known)
            seconds |= took
    return ZooResult(results, seconds, skipped, settings, samples)


def _read_pairs(model: nn.Module, reader: PairReader, rows: TokenRows) -> tuple[PairMeans, dict[str, Any]]:
    """What the measures of pairs take, and the settings that say how it was read."""
    settings = {"pair_text": reader.text, "pair_vision": "before their own texts"}
    if reader.text != ALONE:
        return PairMeans(*rows.pooled), settings
    vision = rows.pooled[0]
    if reader.vision_sees_text(model):
        vision, settings["pair_vision"] = reader.vision(model), "before one text, the same for all"
    return PairMeans(vision, reader.text_alone(model)), settings


def _read_random(model: nn.Module, reader: PairReader, seed: int, count: int) -> tuple[list[PairMeans], Any]:
    """The same of models with random weights, one after another, and their seeds; or why there are none."""
    found, seeds = [], list(range(seed, seed + count))
    for each in seeds:
        try:
            twin = random_twin(model, each)
        except MirlibError as error:
            return [], f"left out: {error}"
        found.append(reader.read(twin))
    return found, seeds
