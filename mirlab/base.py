"""The experiment ``base``: the miniature LLaVA itself, made from nothing and measured, and its model card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mirlab import ledger, recipes, world
from mirlab.model import evaluation, miniature, parts, precision, train
from mirlab.model.parts import PartsRecipe
from mirlab.world import language
from mirlib.loading import load_miniature

MINUTES = 45
"""About how long it takes on one core of a laptop or server."""


@dataclass(frozen=True)
class BaseRecipe:
    """All that the miniature and its measurement depend on; `scenes` is the number of held-out scenes."""

    parts: PartsRecipe = PartsRecipe(seed=parts.SHIPPED)
    scenes: int = 600
    stage_one: recipes.StageOne = recipes.StageOne(pairs=16_384, batch=8, learning_rate=2e-3)


def run(
    book: ledger.Ledger,
    cache: Path,
    *,
    recipe: BaseRecipe = BaseRecipe(),
    output: str | Path | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Make the miniature LLaVA from nothing: tokenizer, encoder, language model, projector, evaluation.

    Every part keeps checkpoints in `cache`; the same call goes on where a killed one stood. A second process that
    runs the same recipe waits for the first.

    The row goes to the `book`, checkpoints to the `cache`, the finished model to `output`; `miniature` beside its
    checkpoints if left out.
    """
    configuration = asdict(recipe)
    key = ledger.key_of(configuration)
    home = cache / f"base-{key}"
    output = Path(output) if output is not None else home / "miniature"
    with parts.only_process(home), one_thread():
        _say(f"base: about {MINUTES} minutes on one core if nothing is done yet", progress)
        model, tokenizer, histories = parts.make(recipe.parts, cache, progress=progress)
        histories["stage_one"] = train.stage_one(
            model,
            tokenizer,
            recipe.stage_one,
            seed=recipe.parts.seed,
            checkpoint=home / "stage-one.pt",
            progress=progress,
        )
        miniature.save_miniature(model, miniature.new_processor(tokenizer), output)
        if book.find(key) is None:
            # What is shipped is what is measured: weights rounded to float16.
            model, processor = load_miniature(output)
            measured = measure(model, processor.tokenizer, scenes=recipe.scenes, progress=progress)
            _say("base: stage 2, to know what the miniature answers after fine-tuning", progress)
            histories["stage_two"] = train.stage_two(model, processor.tokenizer, recipes.StageTwo(), progress=progress)
            measured["image_accuracy"]["tuned"], measured["image_accuracy"]["tuned, permuted"] = (
                evaluation.image_answers(model, processor.tokenizer, scenes=recipe.scenes, permuted=permuted).accuracy
                for permuted in (False, True)
            )
            book.append(
                {
                    "key": key,
                    "experiment": "base",
                    "configuration": configuration,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "final_loss": {name: history.final_loss for name, history in histories.items()},
                    "seconds": {name: round(history.seconds, 1) for name, history in histories.items()},
                    "loss_curve": {name: train.state_of(history)["curve"] for name, history in histories.items()},
                    "measured": measured,
                    "provenance": precision.provenance(),
                }
            )
        row = book.find(key)
        (output / "README.md").write_text(model_card(row), encoding="utf-8")
        _say(f"base: saved in {output}", progress)
    return [row]


def measure(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    scenes: int = 600,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything the ledger says about a finished miniature on held-out scenes, blind baselines included."""
    llm = miniature.language_model_of(model)
    options = {"scenes": scenes}
    parts: dict[str, Callable[[], Any]] = {
        "text_accuracy": lambda: {
            "chat": evaluation.text_accuracy(llm, tokenizer, form="chat", **options),
            "facts": evaluation.text_accuracy(llm, tokenizer, form="facts", **options),
            "permuted": evaluation.text_accuracy(llm, tokenizer, form="chat", permuted=True, **options),
        },
        "image_accuracy": lambda: {
            "own": evaluation.image_answers(model, tokenizer, **options).accuracy,
            "permuted": evaluation.image_answers(model, tokenizer, permuted=True, **options).accuracy,
        },
        "captions": lambda: {
            image: evaluation.caption_scores(model, tokenizer, image=image, **options)
            for image in ("own", "permuted", "none")
        },
        "written_captions": lambda: {
            "own": evaluation.written_scores(model, tokenizer, **options),
            "permuted": evaluation.written_scores(model, tokenizer, permuted=True, **options),
        },
        "vision_probe": lambda: evaluation.probe_accuracy(model, scenes=5 * scenes, test=scenes),
        "english": lambda: {
            kind: evaluation.english_loss(llm, tokenizer, kind=kind) for kind in language.ENGLISH_KINDS
        },
    }
    return {name: part() for name, part in tqdm(parts.items(), desc="evaluation", disable=not progress)}


def describe(rows: list[dict[str, Any]]) -> str:
    """The newest row as text."""
    return _report(rows[-1], heading="{}", table=_plain_table)


def model_card(row: dict[str, Any]) -> str:
    """The README.md of the shipped folder."""
    recipe, minutes, made = row["configuration"], sum(row["seconds"].values()) / 60, row["provenance"]
    llm, joined = recipe["parts"]["language"], recipe["stage_one"]
    layers = llm["layers"] + llm["new_layers"]
    return f"""---
license: mit
pipeline_tag: image-text-to-text
library_name: transformers
---
# A miniature LLaVA

A `LlavaForConditionalGeneration` of {row["parameters"] / 1e6:.1f} million parameters, trained from nothing on one
CPU core. It sees pictures of {world.IMAGE_SIZE} x {world.IMAGE_SIZE} pixels with one to four coloured shapes or
handwritten digits, and describes them. It is made for experiments and teaching: it has the anatomy of a LLaVA
(CLIP-style encoder, two-layer MLP projector, Llama-style language model of {layers} layers, {miniature.VISION_TOKENS}
vision tokens a picture) and fits into an e-mail. It knows nothing about photographs.

```python
from mirlib.loading import load_miniature

model, processor = load_miniature()
```

## How it was trained

1. Encoder: contrastive learning on rendered scenes and their captions, with neighbours that differ in one word.
2. Language model: text only. Scenes in words, questions, descriptions, made-up news, and the Python documentation
   with docstrings and source of the standard library.
3. Stage 1: the projector alone, {joined["pairs"]} picture-caption pairs seen {joined["epochs"]} time(s), batches of
   {joined["batch"]}, learning rate {joined["learning_rate"]:g}. The shipped weights are those after stage 1;
   *tuned* below is a copy after a short stage 2 (questions about pictures).

{minutes:.0f} minutes of training on one core of: {made["processor"]}, multiplied in {made["precision"]}.
`mir lab run base` repeats it.

## What it reaches

{_report(row, heading="### {}", table=_markdown_table)}

*Permuted* shows the model another scene's picture (or words): what can be had without looking.
Questions about pictures are zero-shot unless they say *tuned*: after stage 1 the model has only ever answered
questions about words.

## Licence

MIT. The training text was made by this project, but for the Python documentation and standard library (PSF licence),
which were read from the Python installation. The digits are those of scikit-learn's `load_digits`.
"""


def _report(row: dict[str, Any], *, heading: str, table: Callable[[list[str], list[list[Any]]], str]) -> str:
    measured = row["measured"]
    text, image, captions = measured["text_accuracy"], measured["image_accuracy"], measured["captions"]
    names = {"own": "own picture", "permuted": "permuted", "none": "no picture"}
    written, probe = measured["written_captions"], measured["vision_probe"]
    sections = [
        (
            "Questions, share answered rightly",
            ["question", "about words", "telegram style", "words permuted", "about pictures", "permuted", "tuned"]
            + ["tuned, permuted"],
            [
                [kind, text["chat"][kind], text["facts"][kind], text["permuted"][kind], image["own"][kind]]
                + [image[which][kind] for which in ("permuted", "tuned", "tuned, permuted")]
                for kind in world.QUESTION_KINDS
            ],
        ),
        (
            "Held-out captions",
            ["", "loss", "perplexity", *world.CAPTION_SLOTS, "written exactly", "F1 of things"],
            [
                [names[which], *(scores[k] for k in ("loss", "perplexity", *world.CAPTION_SLOTS))]
                + [written[which][k] if which in written else "" for k in ("exact", "f1")]
                for which, scores in captions.items()
            ],
        ),
        (
            "A linear probe on the frozen vision features",
            list(probe),
            [list(probe.values())],
        ),
        (
            "Real English it never read",
            ["", "loss (nats a token)", "bits a character"],
            [[kind, *scores.values()] for kind, scores in measured["english"].items()],
        ),
        (
            "Training",
            ["part", "last-50-steps loss", "minutes"],
            [[part, loss, row["seconds"][part] / 60] for part, loss in row["final_loss"].items()],
        ),
    ]
    return "\n\n".join(f"{heading.format(title)}\n\n{table(header, body)}" for title, header, body in sections)


def _plain_table(header: list[str], body: list[list[Any]]) -> str:
    return pd.DataFrame(body, columns=header).to_string(index=False, float_format="{:.3f}".format)


def _markdown_table(header: list[str], body: list[list[Any]]) -> str:
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in line] for line in body]
    first, *lines = (f"| {' | '.join(line)} |" for line in (header, *cells))
    return "\n".join([first, f"|{'---|' * len(header)}", *lines])


def _say(message: str, progress: bool) -> None:
    if progress:
        tqdm.write(message, file=sys.stderr)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: so small a model is not faster with more, and the sums come out the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
