"""What is measured on a model: MIR over kinds of pictures and texts, perplexity, answers before and after stage 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache, partial
from itertools import accumulate, product
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
    details = {"in_domain": run.stage_one.detail}
    details["out_of_domain"] = "mid" if run.stage_one.detail != "mid" else "full"
    captions = {
        domain: evaluation.caption_scores(model, tokenizer, scenes=200, detail=detail)
        for domain, detail in details.items()
    }
    answer = partial(evaluation.image_answers, tokenizer=tokenizer, scenes=run.scenes)
    zero_shot = answer(model)
    in_context = {shots: answer(model, scenes=run.scenes // 2, shots=shots) for shots in ("text", "image")}
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
    seen, blind = answer(tuned), answer(tuned, permuted=True)
    metrics |= {
        "accuracy": {"mean": seen.mean_accuracy, "blind": blind.mean_accuracy},
        "accuracy_by_kind": seen.accuracy,
        "blind_by_kind": blind.accuracy,
        "count_by_kind": {"in_context": in_context["text"].count, "other": seen.count},
        "stage_two": {k: v for k, v in train.state_of(history).items() if k != "curve"},
    }
    if run.leaning:
        for name, each in (("leaning", tuned), ("leaning_zero_shot", model)):
            metrics[name] = leaning.measured(each, tokenizer, scenes=LEANING_SCENES * run.scenes)
    if run.long_tokens:
        metrics["long_tokens"] = with_long_tokens_changed(model, tuned, processor, run)
    return rounded(metrics)


LEANING_SCENES = 4
"""Times as many scenes for `mirlab.model.leaning`, where only one question is asked about each."""


def with_long_tokens_changed(model: Llava, tuned: Llava, processor: LlavaProcessor, run: Run) -> dict[str, float]:
    """What a run says to `mirlab.model.long_tokens`: metrics by variant, and `long_tokens.places` after stage 2.

    The `model`, after stage 1, gives ``perplexity_VARIANT`` (of captions, in domain) and ``mir_VARIANT`` (without
    dropped rows); `tuned`, after stage 2, gives ``accuracy_VARIANT`` and ``accuracy_KIND_VARIANT``.
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
    its standard library, or full captions of scenes. Passages of real texts overlap, of one seed and of several.
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
    """Passages of whole lines, of at least 100, 150, ..., 300 and at most 400 characters, from each line on."""
    lines = text.splitlines(keepends=True)
    for least, first in product(range(100, 301, 50), range(len(lines))):
        longer = (passage.strip() for passage in accumulate(lines[first:]))
        passage = next((passage for passage in longer if len(passage) >= least), "")
        if lines[first].strip() and least <= len(passage) <= 400:
            yield passage


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

    ``null`` has zeros instead of vision rows, and ``floor`` is the mean MIR of text against text over two splits.
    """
    result = modality_integration_rate(collected.vision, collected.text)
    by_layer = ("per_layer", "mean_term", "covariance_term", "norm_ratio")
    return {
        "value": result.value,
        **{name: list(getattr(result, name)) for name in by_layer},
        "norm_only": result.norm_only,
        "null": baselines.zeroed_rows(collected.text).value,
        "floor": baselines.text_floor(collected.text, collected.text_samples, splits=2).mean,
    }


COUNTS = (1, 5, 10, 20, 50, 100, 200, 500, 800, 1000)
"""Numbers of samples of the paper's Table 6."""

_DRAWS = 5


def robustness(model: Llava, processor: LlavaProcessor, *, trained_on: list[world.Scene]) -> dict[str, Any]:
    """MIR of one model over everything that should not matter (Fig. 3 and 8, Table 6 of the paper).

    ``kinds``: by picture kind and text kind, MIR of three draws of 100; ``template``: chat or plain; ``relevance``:
    pictures with their own captions or with those of other scenes; ``seen``: pictures and captions of the three hundred
    scenes that stage 1 was ``trained_on``, or held-out ones; ``counts``: by number of samples, MIR of five draws.
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

    held_out = [evaluation.held_out_scenes(100, seed=1000 + draw) for draw in range(3)]
    known = [trained_on[100 * draw : 100 * (draw + 1)] for draw in range(3)]
    own = [of_scenes(scenes, scenes) for scenes in held_out]
    relevance = {"own": own, "other": [of_scenes(scenes, scenes[1:] + scenes[:1]) for scenes in held_out]}
    seen = {"seen": [of_scenes(scenes, scenes) for scenes in known], "unseen": own}
    counts = by_count(model, processor)
    return rounded({"kinds": kinds, "template": template, "relevance": relevance, "seen": seen, "counts": counts})


def by_count(model: Llava, processor: LlavaProcessor) -> dict[str, list[float]]:
    """MIR by number of samples, each for `_DRAWS` draws from 2000 scenes and news texts (without replacement)."""
    total = 2 * max(COUNTS)
    shown, told = pictures_of("scenes", total, seed=9), texts_of("news", total, seed=9)
    collected = rows.collect_rows(model, processor, shown, told, batch_size=50)
    values: dict[str, list[float]] = {}
    for count in COUNTS:
        rng = np.random.default_rng([count, 53])
        samples = (collected.of_samples(rng.permutation(total)[:count]) for _ in range(_DRAWS))
        values[str(count)] = [modality_integration_rate(vision, text).value for vision, text in samples]
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
