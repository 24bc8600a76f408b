"""What a model is measured on: kinds of pictures and texts, and what must not change any number."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from mirlab import measuring, world
from mirlab.model import miniature
from mirlab.world import language

NUM = 100


def bytes_of(pictures):
    return [np.asarray(picture).tobytes() for picture in pictures]


# Texts and pictures


@pytest.mark.parametrize("kind", measuring.TEXT_KINDS)
def test_there_are_as_many_texts_of_each_kind_as_asked_for(kind):
    draws = [measuring.texts_of(kind, NUM, seed=seed) for seed in range(3)]
    for texts in draws:
        assert len(texts) == NUM
        assert all(text and text == text.strip() for text in texts)
        assert len(set(texts)) >= 0.95 * NUM
        assert max(map(len, texts)) <= 500
    assert len({tuple(texts) for texts in draws}) == 3
    for other in draws[1:]:
        assert len(set(draws[0]) & set(other)) < 0.8 * NUM
    assert measuring.texts_of(kind, NUM, seed=1) == draws[1]


@pytest.mark.parametrize("kind", measuring.PICTURE_KINDS)
def test_there_are_as_many_pictures_of_each_kind_as_asked_for(kind):
    draws = [bytes_of(measuring.pictures_of(kind, NUM, seed=seed)) for seed in range(3)]
    assert [len(pictures) for pictures in draws] == [NUM] * 3
    assert [len(set(pictures)) for pictures in draws] == [NUM] * 3
    assert not set(draws[0]) & set(draws[1]) and not set(draws[0]) & set(draws[2])
    assert bytes_of(measuring.pictures_of(kind, NUM, seed=1)) == draws[1]


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_real_texts_come_from_held_out_texts_alone(kind):
    held_out = language.english_texts(kind, held_out=True)
    assert all(any(text in whole for whole in held_out) for text in measuring.texts_of(kind, NUM))


def eights(text):
    words = re.sub(r"\W+", " ", text.lower()).split()
    return [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]


@pytest.fixture(scope="module")
def read():
    """Every eight words in a row of the real texts that models train on."""
    return {run for kind in language.ENGLISH_KINDS for text in language.english_texts(kind) for run in eights(text)}


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_no_text_shares_eight_words_in_a_row_with_anything_that_was_read(kind, read):
    for seed in range(3):
        for text in measuring.texts_of(kind, NUM, seed=seed):
            assert eights(text)
            assert read.isdisjoint(eights(text))


@pytest.mark.parametrize("kind", language.ENGLISH_KINDS)
def test_held_out_texts_do_repeat_what_was_read_and_unread_finds_it(kind, read):
    found = [passage for whole in language.english_texts(kind, held_out=True) for passage in measuring._passages(whole)]
    repeated = [passage for passage in found if not read.isdisjoint(eights(passage))]
    assert len(repeated) > 0.1 * len(found)  # which is why they are looked for
    assert not any(map(language.unread, repeated))
    assert set(found) - set(repeated) >= set(measuring.texts_of(kind, NUM))


def test_eight_words_from_anywhere_in_the_training_texts_are_found_whatever_their_dress():
    words = language.english_texts("topics")[3].split()[20:40]
    assert not language.unread(f"Nobody wrote this: {' '.join(words)}!".upper())
    assert not language.unread("too short to tell")
    assert language.unread("the zebra of my aunt plays four violins at once on sunday mornings")


@pytest.mark.parametrize("kind", ["topics", "docstrings", "code"])
def test_too_many_real_texts_are_refused(kind):
    with pytest.raises(ValueError, match=rf"there are \d+ passages of {kind}, not 1000000"):
        measuring.texts_of(kind, 1_000_000)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError):
        measuring.texts_of("poems", 1)
    with pytest.raises(ValueError):
        measuring.pictures_of("drawings", 1)


# Robustness


def test_robustness_compares_what_it_says(tokenizer, monkeypatch):
    monkeypatch.setattr(measuring, "COUNTS", (2, 4))
    shown = {}

    class Collected:
        def __init__(self, pictures, texts, template):
            self.said = (tuple(map(str, pictures)), tuple(texts), template)
            self.vision = self.text = self.said

        def of_samples(self, chosen):
            return ("sample", *chosen), None

    monkeypatch.setattr(measuring, "pictures_of", lambda kind, count, seed=0: [f"{kind} {count} {seed}"])
    monkeypatch.setattr(measuring, "texts_of", lambda kind, count, seed=0: [f"{kind} {count} {seed}"])
    monkeypatch.setattr(
        measuring.rows,
        "collect_rows",
        lambda model, processor, pictures, texts, *, batch_size, template="chat": Collected(pictures, texts, template),
    )
    monkeypatch.setattr(
        measuring,
        "modality_integration_rate",
        lambda vision, text: SimpleNamespace(value=float(shown.setdefault(vision, len(shown)))),
    )
    trained_on = [world.sample_scene(np.random.default_rng(i)) for i in range(300)]
    model = miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))
    found = measuring.robustness(model, miniature.new_processor(tokenizer), trained_on=trained_on)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"kinds", "template", "relevance", "seen", "counts"}
    assert list(found["kinds"]) == list(measuring.PICTURE_KINDS)
    for by_text in found["kinds"].values():
        assert list(by_text) == list(measuring.TEXT_KINDS)
        assert all(len(draws) == 3 for draws in by_text.values())
    for comparison, sides in (("template", {"chat", "plain"}), ("relevance", {"own", "other"})):
        assert set(found[comparison]) == sides
        assert all(len(set(draws)) == 3 for draws in found[comparison].values())
    assert set(found["seen"]) == {"seen", "unseen"}
    assert found["seen"]["unseen"] == found["relevance"]["own"]
    assert found["seen"]["seen"] != found["seen"]["unseen"]
    assert {count: len(draws) for count, draws in found["counts"].items()} == {"2": 5, "4": 5}
    values = {said: value for said, value in shown.items() if said[0] != "sample"}
    for picture in measuring.PICTURE_KINDS:
        for text in measuring.TEXT_KINDS:
            asked = [((f"{picture} 100 {d}",), (f"{text} 100 {d}",), "chat") for d in range(3)]
            assert found["kinds"][picture][text] == [values[said] for said in asked]
    plain = [((f"scenes 100 {d}",), (f"news 100 {d}",), "plain") for d in range(3)]
    assert found["template"] == {"chat": found["kinds"]["scenes"]["news"], "plain": [values[said] for said in plain]}
