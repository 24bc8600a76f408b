"""The experiment ``base``: the miniature LLaVA itself, made from nothing and measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration as Llava
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import ledger, recipes
from mirlab.model import evaluation, miniature, parts, precision, train
from mirlab.model.parts import PartsRecipe
from mirlab.world import language
from mirlib.loading import load_miniature


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

    The row goes to the `book`, checkpoints to the `cache`, the finished model to `output` (beside the checkpoints if
    left out). The same call goes on where a killed one stood; a second process waits for the first.
    """
    configuration = asdict(recipe)
    key = ledger.key_of(configuration)
    home = cache / f"base-{key}"
    output = Path(output) if output is not None else home / "miniature"
    with parts.only_process(home), one_thread():
        _say("base: about 45 minutes on one core if nothing is done yet", progress)
        model, tokenizer, histories = parts.make(recipe.parts, cache, progress=progress)
        options = {"seed": recipe.parts.seed, "checkpoint": home / "stage-one.pt", "progress": progress}
        histories["stage_one"] = train.stage_one(model, tokenizer, recipe.stage_one, **options)
        miniature.save_miniature(model, miniature.new_processor(tokenizer), output)
        if book.find(key) is None:
            # What is shipped is what is measured: weights rounded to float16.
            model, processor = load_miniature(output)
            measured = measure(model, processor.tokenizer, scenes=recipe.scenes, progress=progress)
            _say("base: stage 2, to know what the miniature answers after fine-tuning", progress)
            histories["stage_two"] = train.stage_two(model, processor.tokenizer, recipes.StageTwo(), progress=progress)
            tuned = _seen_and_blind(evaluation.image_answers, model, processor.tokenizer, scenes=recipe.scenes)
            measured["image_accuracy"]["tuned"] = tuned["own"].accuracy
            measured["image_accuracy"]["tuned, permuted"] = tuned["permuted"].accuracy
            states = {name: train.state_of(history) for name, history in histories.items()}
            row = {"key": key, "experiment": "base", "configuration": configuration}
            row["parameters"] = sum(p.numel() for p in model.parameters())
            row["final_loss"] = {name: state["loss"] for name, state in states.items()}
            row["seconds"] = {name: state["seconds"] for name, state in states.items()}
            row["loss_curve"] = {name: state["curve"] for name, state in states.items()}
            book.append({**row, "measured": measured, "provenance": precision.provenance()})
        _say(f"base: saved in {output}", progress)
    return [book.find(key)]


def measure(model: Llava, tokenizer: Tokenizer, *, scenes: int = 600, progress: bool = True) -> dict[str, Any]:
    """Everything the ledger says about a finished miniature on held-out scenes, blind baselines included."""
    llm = miniature.language_model_of(model)
    read = partial(evaluation.text_accuracy, llm, tokenizer, scenes=scenes)
    caption = partial(evaluation.caption_scores, model, tokenizer, scenes=scenes)
    english = partial(evaluation.english_loss, llm, tokenizer)
    both = partial(_seen_and_blind, model=model, tokenizer=tokenizer, scenes=scenes)
    parts: dict[str, Callable[[], Any]] = {
        "text_accuracy": lambda: {"chat": read(), "facts": read(form="facts"), "permuted": read(permuted=True)},
        "image_accuracy": lambda: {name: found.accuracy for name, found in both(evaluation.image_answers).items()},
        "captions": lambda: {image: caption(image=image) for image in ("own", "permuted", "none")},
        "written_captions": lambda: both(evaluation.written_scores),
        "vision_probe": lambda: evaluation.probe_accuracy(model, scenes=5 * scenes, test=scenes),
        "english": lambda: {kind: english(kind=kind) for kind in language.ENGLISH_KINDS},
    }
    return {name: part() for name, part in tqdm(parts.items(), desc="evaluation", disable=not progress)}


def _seen_and_blind(evaluate: Callable[..., Any], model: Llava, tokenizer: Tokenizer, *, scenes: int) -> dict[str, Any]:
    pictures = {"own": False, "permuted": True}
    return {name: evaluate(model, tokenizer, scenes=scenes, permuted=blind) for name, blind in pictures.items()}


def describe(rows: list[dict[str, Any]]) -> str:
    """The newest row as text: a table for each thing that was measured, with last losses and seconds of the parts."""
    row = rows[-1]
    tables = {"training": pd.DataFrame({"last-50-steps loss": row["final_loss"], "seconds": row["seconds"]})}
    for name, found in row["measured"].items():
        nested = all(isinstance(value, dict) for value in found.values())
        tables[name.replace("_", " ")] = (pd.DataFrame(found) if nested else pd.Series(found).to_frame("share")).T
    return "\n\n".join(f"{name}\n{table.round(3).to_string(na_rep='')}" for name, table in tables.items())


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
