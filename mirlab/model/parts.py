"""Encoders and language models to start runs from: one of each is shipped, the others are trained when needed."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from mirlab import ledger
from mirlab.model import miniature, pretraining
from mirlab.model.train import History
from mirlab.world import language
from mirlib.loading import MINIATURE, load_miniature

SIZES: dict[str, pretraining.LanguageRecipe] = {
    "small": pretraining.LanguageRecipe(dim=64),
    "base": pretraining.LanguageRecipe(),
    "large": pretraining.LanguageRecipe(dim=192),
}
"""Language models by size."""

SHIPPED = 1
"""Seed of the parts of the miniature that comes with the package. Of the two that were trained, the language model of
seed 0 never learned to tell whether a thing is there (70 % right in words); that of seed 1 answers every kind."""


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


def make(
    recipe: PartsRecipe, cache: Path, *, progress: bool = True
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast, dict[str, History]]:
    """Train an encoder and a language model, or finish what was stopped, and join them by a fresh projector.

    Encoder, tokenizer and language model have folders of their own in the cache, so recipes that share one train it
    once; a second process that wants the same one waits for the first.

    Returns:
        The model, its tokenizer, and the histories of ``encoder``, ``language_1`` and ``language_2``.
    """
    tokenizer = _tokenizer(cache)
    home = cache / f"encoder-{ledger.key_of({'seed': recipe.seed, **asdict(recipe.encoder)})}"
    with only_process(home):
        clip, seen = pretraining.train_encoder(
            tokenizer, recipe.encoder, seed=recipe.seed, checkpoint=home / "encoder.pt", progress=progress
        )
    home = cache / f"language-{ledger.key_of({'seed': recipe.seed, **asdict(recipe.language)})}"
    with only_process(home):
        llm, read = pretraining.train_language_model(
            tokenizer, recipe.language, seed=recipe.seed, checkpoints=home, progress=progress
        )
    model = miniature.assemble(clip, llm, seed=recipe.seed)
    return model, tokenizer, {"encoder": seen, "language_1": read[0], "language_2": read[1]}


def load(seed: int, size: str, cache: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, str]:
    """Encoder and language model of a seed and a size, joined by a projector that means nothing yet.

    Seed `SHIPPED` of size ``base`` is the shipped miniature. Another is read from the cache, where it is trained first
    if it is missing (about half an hour on one core).

    Returns:
        The model (weights rounded to float16, as they are shipped), its processor, and a fingerprint of encoder and
        language model.
    """
    if seed == SHIPPED and size == "base":
        folder = MINIATURE
    else:
        recipe = PartsRecipe(seed=seed, language=SIZES[size])
        folder = cache / f"parts-{recipe.key}"
        with only_process(cache / f"making-{recipe.key}"):
            if not (folder / "model.safetensors").exists():
                model, tokenizer, _ = make(recipe, cache)
                unfinished = folder.with_suffix(f".{os.getpid()}")
                miniature.save_miniature(model, miniature.new_processor(tokenizer), unfinished)
                unfinished.replace(folder)
    model, processor = load_miniature(folder)
    return model, processor, miniature.fingerprint(model, without="multi_modal_projector")


def _tokenizer(cache: Path) -> PreTrainedTokenizerFast:
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
