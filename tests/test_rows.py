"""Rows kept in memory are the rows that the streaming measure sees."""

from __future__ import annotations

import pytest
import torch

from mirlab.model import miniature
from mirlab.world import language
from mirlib import MirlibError, modality_integration_rate, score
from mirlib.data import draw, sample_images, sample_texts
from mirlib.prompts import encode_batch
from mirlib.rows import collect_rows


@pytest.fixture(scope="module")
def lvlm(tmp_path_factory):
    model = miniature.assemble(miniature.new_encoder(layers=2), miniature.new_language_model(layers=2))
    return model, miniature.new_processor(language.train_tokenizer())


@pytest.fixture(scope="module")
def pairs():
    return sample_images(5), sample_texts(5)


@pytest.fixture(scope="module")
def rows(lvlm, pairs):
    return collect_rows(*lvlm, *pairs, batch_size=2, max_text_tokens=40)


def test_mir_of_the_rows_equals_the_streamed_score(lvlm, pairs, rows):
    streamed = score(*lvlm, *pairs, num=5, batch_size=5, max_text_tokens=40, progress=False)
    # score() pairs at random: pair in the same order, so that every text has the same image before it.
    images = [pairs[0][i] for i in draw(pairs[0], 5, 0, "images")]
    texts = [pairs[1][i] for i in draw(pairs[1], 5, 1, "texts")]
    again = collect_rows(*lvlm, images, texts, batch_size=2, max_text_tokens=40)
    result = modality_integration_rate(again.vision, again.text)
    assert result.rows == streamed.rows
    assert result.per_layer == pytest.approx(streamed.per_layer, rel=1e-5)


def test_rows_are_sorted_by_sample_and_whole(rows):
    assert rows.num_layers == 2 and int(rows.vision_samples.max()) == 4
    assert rows.vision_samples.tolist() == sorted(rows.vision_samples.tolist())
    assert rows.vision_samples.bincount().tolist() == [miniature.VISION_TOKENS] * 5
    assert rows.text_samples.bincount().max() in (40, 41)  # a first word may be another token behind a line break
    assert rows.vision_embeddings.shape == rows.vision[0].shape
    assert len(rows.text_embeddings) == len(rows.text[1]) == len(rows.samples[1])


def test_embeddings_are_what_transformers_returns_as_the_first_hidden_state(lvlm, pairs):
    model, processor = lvlm
    rows = collect_rows(model, processor, pairs[0][:1], pairs[1][:1])
    batch = encode_batch(processor, pairs[0][:1], pairs[1][:1])
    mask = batch.pop("text_mask")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    torch.testing.assert_close(rows.text_embeddings, states[0][mask])
    torch.testing.assert_close(rows.text[-1], states[-1][mask])
    torch.testing.assert_close(rows.vision_embeddings, states[0][batch["input_ids"] == model.config.image_token_id])


def test_of_samples_takes_the_rows_of_those_samples_alone(rows):
    vision, text = rows.of_samples([1, 3], [0])
    assert torch.equal(vision[1], torch.cat([rows.vision[1][rows.vision_samples == i] for i in (1, 3)]))
    assert torch.equal(text[0], rows.text[0][rows.text_samples == 0])
    assert len(rows.of_samples([1])[0]) == 2
    with_embeddings = rows.of_samples([1], embeddings=True)
    assert [len(side) for side in with_embeddings] == [3, 3]
    assert torch.equal(with_embeddings[1][0], rows.text_embeddings[rows.text_samples == 1])


def test_hooks_are_removed_even_after_an_error(lvlm, pairs):
    first = lvlm[0].get_decoder().layers[0]
    before = len(first._forward_pre_hooks), len(first._forward_hooks)
    with pytest.raises(MirlibError, match="placeholder"):
        collect_rows(*lvlm, pairs[0][:2], [pairs[1][0], "a text with <image> in it"])
    assert (len(first._forward_pre_hooks), len(first._forward_hooks)) == before


def test_unequal_numbers_are_refused(lvlm, pairs):
    with pytest.raises(MirlibError, match="as many images as texts and at least one, got 5 and 2"):
        collect_rows(*lvlm, pairs[0], pairs[1][:2])
