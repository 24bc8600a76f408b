"""Sets of parts: an encoder and a language model that a run starts from, trained from nothing and examined first.

A set goes into runs only if it passes the gate: its language model answers every kind of question about scenes in
words, and a linear probe reads its encoder. Otherwise the next seed takes its place.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration as Llava
from transformers import LlavaProcessor
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import ledger
from mirlab.model import evaluation, miniature, precision, pretraining
from mirlab.model.train import History
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

SHIPPED = 1
"""Seed of the parts of the miniature that comes with the package."""


@dataclass(frozen=True)
class PartsRecipe:
    """All that an encoder and a language model depend on. The tokenizer is the same for all seeds."""

    seed: int = 0
    encoder: pretraining.EncoderRecipe = pretraining.EncoderRecipe()
    language: pretraining.LanguageRecipe = pretraining.LanguageRecipe()

    @property
    def key(self) -> str:
        """Fingerprint of the recipe."""
        return ledger.key_of(asdict(self))


def make(recipe: PartsRecipe, cache: Path, *, progress: bool = True) -> tuple[Llava, Tokenizer, dict[str, History]]:
    """Train an encoder and a language model, or finish what was stopped, and join them by a fresh projector.

    Recipes that share an encoder, a tokenizer or a language model train it once; a second process waits for the first.
    The histories are those of ``encoder`` and ``language_1`` to ``language_3``.
    """
    tokenizer = _tokenizer(cache)
    options = {"seed": recipe.seed, "progress": progress}
    home = cache / f"encoder-{ledger.key_of({'seed': recipe.seed, **asdict(recipe.encoder)})}"
    with only_process(home):
        clip, seen = pretraining.train_encoder(tokenizer, recipe.encoder, checkpoint=home / "encoder.pt", **options)
    home = cache / f"language-{ledger.key_of({'seed': recipe.seed, **asdict(recipe.language)})}"
    with only_process(home):
        llm, read = pretraining.train_language_model(tokenizer, recipe.language, checkpoints=home, **options)
    model = miniature.assemble(clip, llm, seed=recipe.seed)
    return model, tokenizer, {"encoder": seen} | {f"language_{i}": history for i, history in enumerate(read, start=1)}


def load(seed: int, cache: Path, *, progress: bool = True) -> tuple[Llava, LlavaProcessor, str]:
    """Encoder and language model of a seed, joined by a projector that means nothing yet.

    Those of seed `SHIPPED` are in the shipped miniature. Others are read from the cache, where they are trained first
    if they are missing (about an hour on one core). The third value is a fingerprint of encoder and language model.
    """
    folder = MINIATURE
    if seed != SHIPPED:
        recipe = PartsRecipe(seed=seed)
        folder = cache / f"parts-{recipe.key}"
        with only_process(cache / f"making-{recipe.key}"):
            if not (folder / "model.safetensors").exists():
                model, tokenizer, _ = make(recipe, cache, progress=progress)
                unfinished = folder.with_suffix(f".{os.getpid()}")
                miniature.save_miniature(model, miniature.new_processor(tokenizer), unfinished)
                unfinished.replace(folder)
    model, processor = load_miniature(folder)
    return model, processor, miniature.fingerprint(model, without="multi_modal_projector")


WORDS_GATE, PROBE_GATE = 0.95, 0.9
"""Least share of right answers about scenes in words, for every kind of question; and of the probe on the encoder."""

PROBED = ("colour", "shape", "cell")
"""What the probe must read. Handwritten digits are a quarter of the world and harder; their share stands beside."""


def failures(measured: dict[str, dict[str, float]]) -> list[str]:
    """What of a set of parts misses the gate, from what `examine` measured; empty if it passes.

    Example:
        >>> failures({"words": {"exist": 0.7, "count": 1.0}, "probe": {"colour": 1.0, "shape": 0.95, "cell": 0.99}})
        ['exist in words']
    """
    words = [f"{kind} in words" for kind, share in measured["words"].items() if not share >= WORDS_GATE]  # or NaN
    return words + [f"{name} by the probe" for name in PROBED if not measured["probe"][name] >= PROBE_GATE]


def examine(model: Llava, tokenizer: Tokenizer, *, scenes: int = 600) -> dict[str, dict[str, float]]:
    """What a set of parts can do before any stage 1: answers in words by kind of question, and the encoder's probe."""
    llm = miniature.language_model_of(model)
    words = evaluation.text_accuracy(llm, tokenizer, scenes=scenes)
    return {"words": words, "probe": evaluation.probe_accuracy(model, scenes=5 * scenes, test=scenes)}


def make_row(seed: int, book: ledger.Ledger, cache: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train a set of parts, or finish it, and examine it as it is kept (weights rounded to float16): its row."""
    recipe = PartsRecipe(seed=seed)
    if (row := book.find(recipe.key)) is not None:
        return row
    model, processor, fingerprint = load(seed, cache, progress=progress)
    measured = examine(model, processor.tokenizer)
    _, _, histories = make(recipe, cache, progress=progress)  # all is done: this reads the histories back
    row = {
        "key": recipe.key,
        "experiment": book.path.stem,
        "configuration": asdict(recipe),
        "seed": seed,
        "parts": fingerprint,
        "measured": measured,
        "failures": failures(measured),
        "final_loss": {name: round(history.final_loss, 4) for name, history in histories.items()},
        "seconds": {name: round(history.seconds, 1) for name, history in histories.items()},
        "provenance": precision.provenance(),
    }
    book.append(row)
    return row


def _tokenizer(cache: Path) -> Tokenizer:
    home = cache / f"tokenizer-{language.corpus_fingerprint()}"
    with only_process(home):
        if not (home / "tokenizer.json").exists():
            unfinished = home / f"unfinished.{os.getpid()}"
            language.train_tokenizer().save_pretrained(unfinished)
            for file in sorted(unfinished.iterdir(), key=lambda f: f.name == "tokenizer.json"):
                file.replace(home / file.name)
            shutil.rmtree(unfinished)
    return language.load_tokenizer(home)


def only_process(folder: Path) -> ledger.FileLock:
    """Make a folder and hold its lock; a second process waits."""
    folder.mkdir(parents=True, exist_ok=True)
    return ledger.FileLock(folder / "lock")


def save_array(array: np.ndarray, path: Path) -> None:
    """Write an array whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.npy")
    np.save(unfinished, array)
    unfinished.replace(path)
