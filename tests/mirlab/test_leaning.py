"""The arrays for the measures of leaning are those of the model asked through its processor."""

import numpy as np
import pytest
import torch

from mirlab import world
from mirlab.model import evaluation, leaning
from mirlib import gaps
from mirlib.loading import load_miniature

pytestmark = pytest.mark.usefixtures("one_thread")

SCENES = 12


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


@torch.no_grad()
def asked(model, processor, scene, text, words):
    """Log-probabilities of words behind ``USER:<image>text ASSISTANT:``."""
    inputs = processor(images=world.to_image(scene), text=f"USER:<image>{text} ASSISTANT:", return_tensors="pt")
    scores = model(**inputs).logits[0, -1].log_softmax(-1)
    return [scores[processor.tokenizer(f" {word}", add_special_tokens=False).input_ids[0]].item() for word in words]


def test_conflicts_are_those_of_the_model_asked_one_by_one(miniature):
    model, processor = miniature
    found = leaning.conflicts(model, processor.tokenizer, scenes=SCENES)
    scenes = evaluation.held_out_scenes(SCENES)
    questions = evaluation.questions_about(scenes, "colour")
    picture = [asked(model, processor, scenes[i], f"\n {q.text}", [q.answer])[0] for i, q in questions]
    assert found["without"][0] == pytest.approx(picture, abs=0.02)  # features are kept in float16
    assert found["with"][0].shape == found["with"][1].shape == (len(questions),)
    assert np.abs(found["with"][0] - found["without"][0]).max() > 0.05  # the words are read
    result = gaps.text_preference(*found["with"], without=found["without"])
    assert 0 < result.value < 0.5 and result.rows == {"questions": len(questions)}


def test_existence_is_that_of_the_model_asked_one_by_one(miniature):
    model, processor = miniature
    absent, present = leaning.existence(model, processor.tokenizer, scenes=SCENES)
    other = leaning.existence(model, processor.tokenizer, scenes=SCENES, permuted=True)
    scenes = evaluation.held_out_scenes(SCENES)
    for shift, found in ((0, (absent, present)), (1, other)):
        expected = {"yes": [], "no": []}
        for i, question in evaluation.questions_about(scenes, "exist"):
            scores = asked(model, processor, scenes[(i + shift) % SCENES], f"\n {question.text}", ["yes", "no"])
            expected[question.answer].append(np.exp(scores[0]) / np.exp(scores).sum())
        assert found[0] == pytest.approx(expected["no"], abs=0.02)
        assert found[1] == pytest.approx(expected["yes"], abs=0.02)
