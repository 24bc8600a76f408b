"""One run of the laboratory: train a miniature by a recipe, and measure it with everything the ledger keeps.

A `Run` says all that the outcome depends on; `execute` turns it into the metrics of a row. What is common to many runs
(encoder, language model, pictures and their features) is made once and kept in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab import world
from mirlab.methods import PLAIN, Method, configuration_of
from mirlab.model import evaluation, miniature, parts, train
from mirlab.world import language
from mirlib import baselines, data, rows
from mirlib.mir import modality_integration_rate

STUDIES = ("final", "during", "robustness", "zoo", "zoo_samples")
TEXT_KINDS = ("news", "topics", "docstrings", "code", "scenes")
PICTURE_KINDS = ("scenes", "digits", "photographs", "scans")

POOL = 16_384
"""Scenes that the runs draw their pairs from; those of one encoder share them, and so their features."""


@dataclass(frozen=True)
class Run:
    """All that the outcome of a run depends on.

    Attributes:
        seed: Of the connector's first weights, the choice and order of the pairs, and stage 2.
        parts: Seed of the encoder and of the language model, see `mirlab.model.parts`.
        size: Size of the language model, a key of `parts.SIZES`.
        stage_one: Recipe of stage 1.
        stage_two: Recipe of stage 2, the same for all runs of an experiment.
        study: ``final`` measures the model after stage 1; ``during`` also at `probes`; ``robustness`` measures MIR
            over kinds of pictures and texts, templates, and numbers of samples; ``zoo`` takes all measures of the gap
            and leaves stage 2 to the run that it repeats, ``zoo_samples`` also those of more pairs, see
            `mirlab.zoo`.
        probes: Steps of stage 1 after which everything is measured.
        scenes: Held-out scenes of each evaluation.
        method: What is done beside the plain recipe, see `mirlab.methods`.
    """

    seed: int = 0
    parts: int = 0
    size: str = "base"
    stage_one: train.StageOne = train.StageOne()
    stage_two: train.StageTwo = train.StageTwo(images=1024)
    study: str = "final"
    probes: tuple[int, ...] = ()
    scenes: int = 120
    method: Method = PLAIN

    def __post_init__(self) -> None:
        if self.study not in STUDIES:
            raise ValueError(f"study must be one of {', '.join(STUDIES)}, not {self.study!r}")
        if self.stage_one.pairs > POOL:
            raise ValueError(f"a run has at most {POOL} pairs, not {self.stage_one.pairs}")

    @property
    def configuration(self) -> dict[str, Any]:
        """The run as JSON. The plain recipe has no entry ``method``."""
        configuration = {**asdict(self), "probes": list(self.probes), "method": configuration_of(self.method)}
        if self.method == PLAIN:
            del configuration["method"]
        return configuration

    @property
    def cost(self) -> float:
        """About how many seconds it takes on one core, for the order of a sweep and the time left."""
        steps = self.stage_one.schedule.steps
        unlocked = self.stage_one.unlock != "none" or self.stage_one.unlock_encoder
        measured = {"zoo": 12, "zoo_samples": 90, "robustness": 150}.get(self.study, 20 * (1 + len(self.probes)))
        return steps * (0.075 if unlocked else 0.05) * self.stage_one.batch / 8 + measured


def execute(run: Run, cache: Path, *, progress: bool = False) -> dict[str, Any]:
    """Do a run on one thread.

    Args:
        run: What to do.
        cache: Folder of trained parts and of features; see `parts.load`.
        progress: Draw progress bars on stderr.

    Returns:
        The row's ``metrics``, ``seconds`` by phase, and ``parts``, the fingerprint of encoder and language model.
    """
    started = time.monotonic()
    shared = _shared(run.parts, run.size, str(cache))
    model, processor = deepcopy(shared.model), shared.processor
    probes: list[dict[str, Any]] = []

    def probe(step: int, _: float) -> None:
        if step in run.probes:
            probes.append({"step": step, **_measure(model, processor, run)})

    trained = train.stage_one(
        model,
        processor.tokenizer,
        run.stage_one,
        seed=run.seed,
        scenes=shared.scenes,
        features=None if run.stage_one.unlock_encoder else shared.features,
        method=run.method,
        after_step=probe if run.study == "during" else None,
        progress=progress,
    )
    after_training = time.monotonic()
    metrics: dict[str, Any] = {"stage_one": train.state_of(trained)}
    if trained.before:
        metrics["before_stage_one"] = _rounded(trained.before)
    if trained.after:
        metrics["after_stage_one"] = _rounded(trained.after)
    if run.study == "robustness":
        chosen = train.chosen_pairs(len(shared.scenes), run.stage_one.pairs, seed=run.seed)[:300]
        metrics |= robustness(model, processor, trained_on=[shared.scenes[i] for i in chosen])
    elif run.study in ("zoo", "zoo_samples"):
        from mirlab import zoo  # which names runs of this module

        metrics |= _rounded(zoo.measure(model, processor, run))
    else:
        metrics |= _measure(model, processor, run)
    if probes:
        metrics["probes"] = probes
    return {
        "metrics": metrics,
        "seconds": {
            "stage_one": round(after_training - started, 1),
            "all": round(time.monotonic() - started, 1),
        },
        "parts": shared.fingerprint,
    }


@dataclass(frozen=True)
class _Shared:
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    fingerprint: str
    scenes: list[world.Scene]
    features: torch.Tensor


@lru_cache(maxsize=2)
def _shared(seed: int, size: str, cache: str) -> _Shared:
    """What the runs of a process have in common. The features lie in a file that all processes map."""
    model, processor, fingerprint = parts.load(seed, Path(cache))
    scenes = train.stage_one_scenes(POOL, seed=seed)
    path = Path(cache) / "features" / f"{miniature.fingerprint(model.model.vision_tower)}-{seed}-{POOL}.npy"
    if not path.exists():
        parts.save_array(train.vision_features(model, scenes).numpy(), path)
    return _Shared(model, processor, fingerprint, scenes, torch.from_numpy(np.load(path, mmap_mode="c")))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _measure(model: LlavaForConditionalGeneration, processor: LlavaProcessor, run: Run) -> dict[str, Any]:
    """All metrics of a model as it is, then those of a copy after stage 2."""
    tokenizer = processor.tokenizer
    options = {"scenes": run.scenes, "seed": 0}
    other = "mid" if run.stage_one.detail != "mid" else "full"
    captions = {
        "in_domain": evaluation.caption_scores(model, tokenizer, scenes=200, detail=run.stage_one.detail),
        "out_of_domain": evaluation.caption_scores(model, tokenizer, scenes=200, detail=other),
    }
    asked = {
        "zero_shot": evaluation.image_answers(model, tokenizer, **options),
        "in_context_text": evaluation.image_answers(model, tokenizer, scenes=run.scenes // 2, shots="text"),
        "in_context_image": evaluation.image_answers(model, tokenizer, scenes=run.scenes // 2, shots="image"),
    }
    metrics: dict[str, Any] = {
        "perplexity": {domain: scores["perplexity"] for domain, scores in captions.items()},
        "slots": {k: v for k, v in captions["in_domain"].items() if k in world.CAPTION_SLOTS},
        "in_context": {k: asked[f"in_context_{k}"].mean_accuracy for k in ("text", "image")},
        "zero_shot": asked["zero_shot"].accuracy,
        "discrimination": asked["zero_shot"].mean_discrimination,
        "mir": mir_of(model, processor, seed=0),
        "mir_scenes": mir_of(model, processor, texts="scenes", seed=0)["value"],
    }
    tuned = deepcopy(model)
    history = train.stage_two(tuned, tokenizer, run.stage_two, seed=run.seed, method=run.method, progress=False)
    seen = evaluation.image_answers(tuned, tokenizer, **options)
    blind = evaluation.image_answers(tuned, tokenizer, permuted=True, **options)
    metrics |= {
        "accuracy": {"mean": seen.mean_accuracy, "blind": blind.mean_accuracy},
        "accuracy_by_kind": seen.accuracy,
        "blind_by_kind": blind.accuracy,
        "stage_two": {k: v for k, v in train.state_of(history).items() if k != "curve"},
    }
    return _rounded(metrics)


def texts_of(kind: str, count: int, *, seed: int = 0) -> list[str]:
    """Texts of a kind that no miniature was trained on.

    Args:
        kind: One of `TEXT_KINDS`: made-up news, passages of Python's documentation topics, docstrings and source of
            its standard library, or full captions of scenes.
        count: How many.
        seed: Which ones; draws of real texts overlap, and so do the passages of one draw: the topics that no
            miniature has read hold some 800 words in all.

    Raises:
        ValueError: There are not so many.
    """
    rng = np.random.default_rng([seed, 51, TEXT_KINDS.index(kind)])
    if kind == "news":
        return ["".join(language.news(rng)).strip() for _ in range(count)]
    if kind == "scenes":
        return [world.caption(world.sample_scene(rng, held_out=True)) for _ in range(count)]
    passages = _held_out_passages(kind)
    if len(passages) < count:
        raise ValueError(f"there are {len(passages)} passages of {kind}, not {count}")
    return [passages[i] for i in rng.permutation(len(passages))[:count]]


@cache
def _held_out_passages(kind: str) -> tuple[str, ...]:
    """Passages of held-out texts, without those that repeat what stands in texts that were read."""
    texts = language.english_texts(kind, held_out=True)
    return tuple(filter(language.unread, dict.fromkeys(passage for text in texts for passage in _passages(text))))


def _passages(text: str) -> Iterator[str]:
    """Passages of whole lines, of at least 100, 150, ..., 300 and at most 400 characters, from each line on.

    They overlap: the held-out topics are so few that paragraphs alone would not give a hundred texts.
    """
    lines = text.splitlines(keepends=True)
    for least in range(100, 301, 50):
        for first in range(len(lines)):
            passage = ""
            for line in lines[first:]:
                passage += line
                if len(passage.strip()) >= least:
                    break
            if lines[first].strip() and least <= len(passage.strip()) <= 400:
                yield passage.strip()


def pictures_of(kind: str, count: int, *, seed: int = 0) -> Sequence[Any]:
    """Pictures of a kind: scenes of shapes, scenes of handwritten digits, crops of photographs, crops of scans."""
    if kind in ("photographs", "scans"):
        return data.sample_images(count, seed=seed, kind=kind.removesuffix("s"))
    rng = np.random.default_rng([seed, 52, PICTURE_KINDS.index(kind)])
    share = {"scenes": 0.0, "digits": 1.0}[kind]
    return [world.to_image(world.sample_scene(rng, digits=share, held_out=True)) for _ in range(count)]


def mir_of(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    *,
    pictures: str = "scenes",
    texts: str = "news",
    num: int = 100,
    seed: int = 0,
    template: str = "chat",
) -> dict[str, Any]:
    """MIR with its parts and baselines, over pictures and texts of one kind each.

    Returns:
        ``value``, ``per_layer``, ``mean_term``, ``covariance_term``, ``norm_ratio``, ``norm_only``, ``null``, and
        ``floor``, the mean MIR of text against text over two splits.
    """
    collected = rows.collect_rows(
        model,
        processor,
        pictures_of(pictures, num, seed=seed),
        texts_of(texts, num, seed=seed),
        batch_size=25,
        template=template,
    )
    return mir_of_rows(collected)


def mir_of_rows(collected: rows.TokenRows) -> dict[str, Any]:
    """`mir_of` of rows in memory."""
    result = modality_integration_rate(collected.vision, collected.text)
    floor = baselines.text_floor(collected.text, collected.text_samples, splits=2)
    return {
        "value": result.value,
        "per_layer": list(result.per_layer),
        "mean_term": list(result.mean_term),
        "covariance_term": list(result.covariance_term),
        "norm_ratio": list(result.norm_ratio),
        "norm_only": result.norm_only,
        "null": baselines.zeroed_rows(collected.text).value,
        "floor": floor.mean,
    }


COUNTS = (1, 5, 10, 20, 50, 100, 200, 500, 800, 1000)
"""Numbers of samples of the paper's Table 6."""

_DRAWS = 5


def robustness(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, *, trained_on: list[world.Scene]
) -> dict[str, Any]:
    """MIR of one model over everything that should not matter (Fig. 3 and 8, Table 6 of the paper).

    Args:
        model: The whole model.
        processor: Its processor.
        trained_on: Three hundred scenes that stage 1 has seen.

    Returns:
        ``kinds``: by picture kind and text kind, MIR of three draws of 100; ``template``: chat or plain;
        ``relevance``: pictures with their own captions or with those of other scenes; ``seen``: pictures and captions
        of stage 1 or held-out ones; ``counts``: by number of samples, MIR of `_DRAWS` draws. All with ``per_layer``
        where one model is compared.
    """

    def value(pictures: Sequence[Any], texts: list[str], template: str = "chat") -> float:
        collected = rows.collect_rows(model, processor, pictures, texts, batch_size=25, template=template)
        return modality_integration_rate(collected.vision, collected.text).value

    def of_kinds(picture: str, text: str, draw: int, template: str = "chat") -> float:
        return value(pictures_of(picture, 100, seed=draw), texts_of(text, 100, seed=draw), template)

    def of_scenes(shown: list[world.Scene], told: list[world.Scene]) -> float:
        return value(list(map(world.to_image, shown)), [world.caption(scene) for scene in told])

    kinds = {
        picture: {text: [of_kinds(picture, text, draw) for draw in range(3)] for text in TEXT_KINDS}
        for picture in PICTURE_KINDS
    }
    template = {form: [of_kinds("scenes", "news", draw, form) for draw in range(3)] for form in ("chat", "plain")}

    relevance: dict[str, list[float]] = {"own": [], "other": []}
    seen: dict[str, list[float]] = {"seen": [], "unseen": []}
    for draw in range(3):
        held_out = evaluation.held_out_scenes(100, seed=1000 + draw)
        relevance["own"].append(of_scenes(held_out, held_out))
        relevance["other"].append(of_scenes(held_out, held_out[1:] + held_out[:1]))
        known = trained_on[100 * draw : 100 * (draw + 1)]
        seen["seen"].append(of_scenes(known, known))
        seen["unseen"].append(relevance["own"][-1])
    counts = by_count(model, processor)
    return _rounded(
        {"kinds": kinds, "template": template, "relevance": relevance, "seen": seen, "counts": counts}
        | {"mir": mir_of(model, processor)}
    )


def by_count(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[str, list[float]]:
    """MIR by number of samples, each for `_DRAWS` draws from 2000 scenes and news texts (without replacement)."""
    total = 2 * max(COUNTS)
    collected = rows.collect_rows(
        model, processor, pictures_of("scenes", total, seed=9), texts_of("news", total, seed=9), batch_size=50
    )
    values: dict[str, list[float]] = {}
    for count in COUNTS:
        rng = np.random.default_rng([count, 53])
        values[str(count)] = []
        for _ in range(_DRAWS):
            vision, text = collected.of_samples(rng.permutation(total)[:count])
            values[str(count)].append(modality_integration_rate(vision, text).value)
    return values


def _rounded(value: Any) -> Any:
    """Six significant digits, which is more than any metric here is worth."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}")
    return value
