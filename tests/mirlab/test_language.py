"""The tokenizer and the documents that the language model reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirlab import world
from mirlab.world import language
from mirlib.loading import MINIATURE


@pytest.fixture(scope="module")
def tokenizer():
    return language.load_tokenizer(MINIATURE)


@pytest.mark.parametrize("word", world.WORDS)
def test_each_word_of_the_world_is_one_token(tokenizer, word):
    assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "It’s 5 °C — naïve café, “quoted”…",
        "  two leading spaces, a\ttab and\n\n  a blank line ",
        "漢字 and emoji 🦊, combining e\u0301",
        "\x00\x7f\ufeff",
        "don't , punctuation .",
    ],
)
def test_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == language.BOS
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60).filter(lambda text: not any(token in text for token in language.SPECIAL_TOKENS)))
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_real_english_comes_back_exactly(tokenizer):
    for topic in language.english_texts("topics", held_out=True):
        ids = tokenizer.backend_tokenizer.encode(topic, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == topic
        assert len(ids) < len(topic) / 2  # more than letters: words


def test_held_out_topics_are_not_read(tokenizer):
    assert not set(language.english_texts("topics")) & set(language.english_texts("topics", held_out=True))


def test_training_the_tokenizer_gives_the_vocabulary_asked_for():
    trained = language.train_tokenizer()
    assert len(trained) == language.VOCABULARY_SIZE
    assert trained.convert_tokens_to_ids(list(language.SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert trained.unk_token is None
    assert trained.decode(trained.encode("any text — at all", add_special_tokens=False)) == "any text — at all"


def test_tokenizing_segments_equals_tokenizing_the_whole(tokenizer):
    encode = language.segment_encoder(tokenizer)
    rng = np.random.default_rng(0)
    for _ in range(50):
        for document in (
            language.description_document(rng),
            language.question_document(rng, count=4, short=0.5),
            language.chat_document(rng, count=2),
        ):
            whole = "".join(text for text, _ in document)
            assert [i for text, _ in document for i in encode(text)] == tokenizer.encode(
                whole, add_special_tokens=False
            )


def test_a_chat_document_has_the_form_of_the_chat_template(tokenizer):
    document = language.chat_document(np.random.default_rng(0), count=2)
    scene = "".join(text for text, role in document if role == "scene").removeprefix("USER:").removesuffix("\n")
    prompts = [text for text, role in document if role == "prompt" and "ASSISTANT" not in text and "USER" not in text]
    answers = [text for text, role in document if role == "answer"]
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": prompts[0].strip()}]},
        {"role": "assistant", "content": [{"type": "text", "text": answers[0].strip()}]},
        {"role": "user", "content": [{"type": "text", "text": prompts[1].strip()}]},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered + answers[1] == "".join(text for text, _ in document).replace(scene, "<image>", 1)


def test_rows_start_at_a_document_and_are_full(tokenizer):
    maker = language.RowMaker(tokenizer)
    roles = {"scene": 0.2, "prompt": 0.2, "answer": 3.0, "description": 2.0}
    rows = maker.rows(np.random.default_rng(0), language.Mixture(role_weights=roles, copy=0.3), batch=16, length=96)
    assert rows.ids.shape == rows.weights.shape == (16, 96)
    assert (rows.ids[:, 0] == language.BOS).all()
    assert not (rows.ids == language.PAD).any()
    assert np.array_equal(rows.positions == 0, rows.ids == language.BOS)
    assert (np.diff(rows.positions)[rows.positions[:, 1:] > 0] == 1).all()
    answers = [int(i) for i in rows.ids[np.isclose(rows.weights, 3.0)]]
    words = {tokenizer.decode([i]).strip() for i in answers}
    assert words <= {*world.FORMS, *world.COLOURS, *world.SIZES, *world.NUMBERS, *world.CELLS, "yes", "no"}


def test_rows_depend_on_the_generator_alone(tokenizer):
    maker = language.RowMaker(tokenizer)
    first, second = (maker.rows(np.random.default_rng(5), language.Mixture(), batch=4, length=64) for _ in range(2))
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.weights, second.weights)
