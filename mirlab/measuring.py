"""What is measured on a model: MIR over kinds of pictures and texts, perplexity, answers before and after stage 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration as Llava
from transformers import LlavaProcessor

from mirlab import world
from mirlab.methods import PLAIN, Technique
from mirlab.model import evaluation, leaning, long_tokens, train
from mirlab.recipes import Run
from mirlab.world import language
from mirlib import baselines, data, rows
from mirlib.mir import modality_integration_rate

TEXT_KINDS = ("news", "topics", "docstrings", "code", "scenes")
PICTURE_KINDS = ("scenes", "digits", "photographs", "scans")


def measure(model: Llava, processor: LlavaProcessor, run: Run, technique: Technique = PLAIN) -> dict[str, Any]:
    """All metrics of a model as it is, then those of a copy after stage 2.

    Accuracies by kind of question stand beside how many questions there were, since their noise is binomial.
    """
    tokenizer = processor.tokenizer
    options = {"scenes": run.scenes}
    other = "mid" if run.stage_one.detail != "mid" else "full"
    captions = {
        "in_domain": evaluation.caption_scores(model, tokenizer, scenes=200, detail=run.stage_one.detail),
        "out_of_domain": evaluation.caption_scores(model, tokenizer, scenes=200, detail=other),
    }
    zero_shot = evaluation.image_answers(model, tokenizer, **options)
    in_context = {
        shots: evaluation.image_answers(model, tokenizer, scenes=run.scenes // 2, shots=shots)
        for shots in ("text", "image")
    }
    metrics: dict[str, Any] = {
        "perplexity": {domain: scores["perplexity"] for domain, scores in captions.items()},
        "slots": {k: v for k, v in captions["in_domain"].items() if k in world.CAPTION_SLOTS},
        "in_context": {shots: answers.mean_accuracy for shots, answers in in_context.items()},
        "in_context_by_kind": {shots: answers.accuracy for shots, answers in in_context.items()},
        "zero_shot": zero_shot.accuracy,
        "discrimination": zero_shot.mean_discrimination,
        "mir": mir_of(model, processor, seed=0),
        "mir_scenes": mir_of(model, processor, texts="scenes", seed=0)["value"],
    }
    tuned = deepcopy(model)
    history = train.stage_two(tuned, tokenizer, run.stage_two, seed=run.seed, method=technique, progress=False)
    seen = evaluation.image_answers(tuned, tokenizer, **options)
    blind = evaluation.image_answers(tuned, tokenizer, permuted=True, **options)
    metrics |= {
        "accuracy": {"mean": seen.mean_accuracy, "blind": blind.mean_accuracy},
        "accuracy_by_kind": seen.accuracy,
        "blind_by_kind": blind.accuracy,
        "count_by_kind": {"in_context": in_context["text"].count, "other": seen.count},
        "stage_two": {k: v for k, v in train.state_of(history).items() if k != "curve"},
    }
    if run.leaning:
        metrics["leaning"] = leaning.measured(tuned, tokenizer, scenes=LEANING_SCENES * run.scenes)
        metrics["leaning_zero_shot"] = leaning.measured(model, tokenizer, scenes=LEANING_SCENES * run.scenes)
    if run.long_tokens:
        metrics["long_tokens"] = with_long_tokens_changed(model, tuned, processor, run)
    return rounded(metrics)


LEANING_SCENES = 4
"""Times as many scenes for `mirlab.model.leaning`, where only one question is asked about each."""


def with_long_tokens_changed(model: Llava, tuned: Llava, processor: LlavaProcessor, run: Run) -> dict[str, float]:
    """What a run says to `mirlab.model.long_tokens`, flat: each metric is measured as it is without the change.

    The `model` is the one after stage 1, `tuned` the one after stage 2.

    Returns:
        For each variant ``perplexity_VARIANT`` (of captions, in domain) and ``mir_VARIANT`` after stage 1, the dropped
        rows being left out of MIR; ``accuracy_VARIANT`` and ``accuracy_KIND_VARIANT`` after stage 2; and the
        `mirlab.model.long_tokens.places` of the model after stage 2.
    """
    found = long_tokens.places(tuned, evaluation.held_out_scenes(run.scenes))
    for variant in long_tokens.VARIANTS:
        with long_tokens.changed(model, variant):
            captions = evaluation.caption_scores(model, processor.tokenizer, scenes=200, detail=run.stage_one.detail)
            collected = long_tokens.without_dropped(collect(model, processor, seed=0))
        with long_tokens.changed(tuned, variant):
            answers = evaluation.image_answers(tuned, processor.tokenizer, scenes=run.scenes)
        found[f"perplexity_{variant}"] = captions["perplexity"]
        found[f"mir_{variant}"] = modality_integration_rate(collected.vision, collected.text).value
        found[f"accuracy_{variant}"] = answers.mean_accuracy
        found |= {f"accuracy_{kind}_{variant}": share for kind, share in answers.accuracy.items()}
    return found


def texts_of(kind: str, count: int, *, seed: int = 0) -> list[str]:
    """Texts of a kind that no miniature was trained on; if there are not so many, that is refused.

    The kind is one of `TEXT_KINDS`: made-up news, passages of Python's documentation topics, docstrings and source of
    its standard library, or full captions of scenes. Draws of real texts of several seeds overlap, and so do the
    passages of one: the topics that no miniature has read hold some 800 words in all.
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


def collect(
    model: Llava,
    processor: LlavaProcessor,
    *,
    pictures: str = "scenes",
    texts: str = "news",
    num: int = 100,
    seed: int = 0,
    template: str = "chat",
) -> rows.TokenRows:
    """Rows of pictures and texts of one kind each."""
    shown, told = pictures_of(pictures, num, seed=seed), texts_of(texts, num, seed=seed)
    return rows.collect_rows(model, processor, shown, told, batch_size=25, template=template)


def mir_of(model: Llava, processor: LlavaProcessor, **options: Any) -> dict[str, Any]:
    """`mir_of_rows` of what `collect` reads with these options."""
    return mir_of_rows(collect(model, processor, **options))


def mir_of_rows(collected: rows.TokenRows) -> dict[str, Any]:
    """MIR with its parts and baselines.

    Returns:
        ``value``, ``per_layer``, ``mean_term``, ``covariance_term``, ``norm_ratio``, ``norm_only``,
        ``null``, with zeros instead of vision rows, and ``floor``, the mean MIR of text against text over two splits.
    """
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


def robustness(model: Llava, processor: LlavaProcessor, *, trained_on: list[world.Scene]) -> dict[str, Any]:
    """MIR of one model over everything that should not matter (Fig. 3 and 8, Table 6 of the paper).

    It is told three hundred scenes that stage 1 was ``trained_on``.

    Returns:
        ``kinds``: by picture kind and text kind, MIR of three draws of 100; ``template``: chat or plain;
        ``relevance``: pictures with their own captions or with those of other scenes; ``seen``: pictures and captions
        of stage 1 or held-out ones; ``counts``: by number of samples, MIR of five draws.
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
    return rounded({"kinds": kinds, "template": template, "relevance": relevance, "seen": seen, "counts": counts})


def by_count(model: Llava, processor: LlavaProcessor) -> dict[str, list[float]]:
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


def rounded(value: Any) -> Any:
    """Six significant digits, which is more than any metric here is worth."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}")
    return value
