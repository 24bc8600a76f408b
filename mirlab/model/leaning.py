"""Which way the miniature leans: pictures contradicted by words, and questions about what is not there.

They make the arrays that `mirlib.gaps.text_preference` and `mirlib.gaps.yes_bias` take, and `measured` is what a
run with `mirlab.recipes.Run.leaning` adds to its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration as Llava
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import world
from mirlab.model import evaluation, sequence, train
from mirlab.world import language
from mirlib import gaps


@torch.no_grad()
def _answers(
    model: Llava,
    tokenizer: Tokenizer,
    scenes: Sequence[world.Scene],
    prompts: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
) -> np.ndarray:
    """(n, c) log-probabilities of c words each, right behind the picture of a scene and the segments of a prompt."""
    encode = language.segment_encoder(tokenizer)
    opening = sequence.words(model.get_input_embeddings()(torch.tensor([language.BOS, *encode("USER:")])))
    image = model.model.multi_modal_projector(train.vision_features(model, list(scenes)).float())
    rows = [[i for part in prompt for i in encode(part)] for prompt in prompts]
    wanted = torch.tensor([[encode(f" {word}")[0] for word in each] for each in words])
    found = []
    for batch in evaluation.batches(len(rows)):
        logits = evaluation.logits_behind(model, rows[batch], opening, sequence.image(image[batch]))
        found.append(logits.log_softmax(-1).gather(1, wanted[batch]))
    return torch.cat(found).double().numpy()


def conflicts(model: Llava, tokenizer: Tokenizer, *, scenes: int = 600) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Questions about the colour of a thing in held-out scenes, with words that give it another colour.

    Pairs (picture, text) of (n,) log-probabilities of the colour in the picture and of the one in the words: ``"with"``
    the words, and ``"without"`` them.
    """
    drawn = evaluation.held_out_scenes(scenes)
    rng = np.random.default_rng([0, 94])
    shown, asked, told, words = [], [], [], []
    for index, question in evaluation.questions_about(drawn, "colour"):
        scene = drawn[index]
        shape = question.text.split()[-2]
        other = str(rng.choice([colour for colour in world.COLOURS if colour != question.answer]))
        things = tuple(replace(t, colour=other) if t.shape == shape else t for t in scene.things)
        shown.append(scene)
        asked.append(("\n", f" {question.text}", " ASSISTANT:"))
        told.append(("\n", *(text for text, _ in language.textual_scene(replace(scene, things=things), rng))))
        words.append((question.answer, other))
    both = {"with": [(*text, *question) for text, question in zip(told, asked, strict=True)], "without": asked}
    found = {name: _answers(model, tokenizer, shown, prompts, words) for name, prompts in both.items()}
    return {name: (scores[:, 0], scores[:, 1]) for name, scores in found.items()}


def existence(
    model: Llava, tokenizer: Tokenizer, *, scenes: int = 600, permuted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """How probable yes is against no, (n,) for things that are not in the picture and (m,) for things that are.

    Each of the held-out scenes has one question; `permuted` shows the picture of the next question's scene.
    """
    drawn = evaluation.held_out_scenes(scenes)
    asked = evaluation.questions_about(drawn, "exist")
    shown = [drawn[index] for index, _ in asked]
    shown = shown[1:] + shown[:1] if permuted else shown
    prompts = [("\n", f" {question.text}", " ASSISTANT:") for _, question in asked]
    scores = _answers(model, tokenizer, shown, prompts, [("yes", "no")] * len(asked))
    yes = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    there = np.array([question.answer == "yes" for _, question in asked])
    return yes[~there], yes[there]


def measured(model: Llava, tokenizer: Tokenizer, *, scenes: int = 600) -> dict[str, float]:
    """How a model answers where a thing is absent, and whom it believes where words contradict the picture.

    ``false_alarms`` and ``hits`` are the shares of yes, against no, to things that are absent and present;
    ``balanced_accuracy`` is the mean of hits and correct rejections; ``hallucinated`` the mean probability of yes for
    absent things; ``yes_bias_blind`` is for other scenes' pictures, ``text_preference_null`` without those words.
    """
    absent, present = existence(model, tokenizer, scenes=scenes)
    other = existence(model, tokenizer, scenes=scenes, permuted=True)
    told = conflicts(model, tokenizer, scenes=scenes)
    bias = gaps.yes_bias(absent, present, permuted=other)
    preference = gaps.text_preference(*told["with"], without=told["without"])
    false_alarms, hits = float((absent > 0.5).mean()), float((present > 0.5).mean())
    return {
        "false_alarms": false_alarms,
        "hits": hits,
        "balanced_accuracy": (hits + 1 - false_alarms) / 2,
        "hallucinated": bias.settings["hallucinated"],
        "yes_bias": bias.value,
        "yes_bias_blind": bias.settings["null"],
        "text_preference": preference.value,
        "text_preference_null": preference.settings["null"],
    }
