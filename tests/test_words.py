"""The lens: held to transformers' own logits at the last layer, and to NumPy in between."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mirlab import world
from mirlab.model import evaluation
from mirlib import MirlibError, UndefinedMIRError
from mirlib.data import sample_images
from mirlib.loading import load_miniature
from mirlib.prompts import encode_batch
from mirlib.words import _Vocabulary, lens
from tests.tiny_families import Case
from tests.tiny_processors import lvlm

SCENES = evaluation.held_out_scenes(2, seed=1, digits=0.0)
PICTURES = [world.to_image(scene) for scene in SCENES]


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


def rows_of(model, processor, image):
    """Vision rows by transformers: (K + 1) arrays (r, d), and its logits there (r, V)."""
    batch = encode_batch(processor, [image], ["Any text."])
    batch.pop("text_mask")
    vision = batch["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    return [state[vision].double().numpy() for state in output.hidden_states], output.logits[vision]


def by_hand(model, states, layer):
    """(r, V) logits of the logit lens and cosines with the input embeddings, float64."""
    head = model.get_output_embeddings().weight.detach().double().numpy()
    rows = states[layer]
    normed = rows
    if layer < len(states) - 1:  # transformers' last state is normed
        norm = model.get_decoder().norm
        normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + norm.variance_epsilon)
        normed = normed * norm.weight.detach().double().numpy()
    words = model.get_input_embeddings().weight.detach().double().numpy()
    cosines = rows @ words.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(words, axis=1)
    return normed @ head.T, cosines


def top(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("family", ["miniature", "llava", "qwen2_vl", "idefics3"])
def test_the_last_layer_says_what_the_model_itself_predicts(miniature, family):
    model, processor = miniature if family == "miniature" else lvlm(family)
    image = PICTURES[0] if family == "miniature" else sample_images(1)[0]
    found = lens(model, processor, image, k=3)
    _, logits = rows_of(model, processor, image)
    shares, ids = logits.softmax(dim=1).topk(3, dim=1)
    np.testing.assert_allclose(found.probabilities[-1], shares.numpy(), rtol=1e-5)
    expected = np.array([[processor.tokenizer.decode([i]) for i in row] for row in ids.tolist()], dtype=object)
    assert (found.words[-1] == expected).mean() > 0.99  # words as likely as each other may change places


@pytest.mark.parametrize("layer", [0, 3, 7])
def test_every_layer_is_read_as_by_hand(miniature, layer):
    model, processor = miniature
    found = lens(model, processor, PICTURES[1], k=4, layers=[layer])
    states, _ = rows_of(model, processor, PICTURES[1])
    logits, cosines = by_hand(model, states, layer)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities[0], np.take_along_axis(shares, top(logits, 4), 1), rtol=1e-4)
    np.testing.assert_allclose(found.cosines[0], np.take_along_axis(cosines, top(cosines, 4), 1), atol=1e-5)
    for words, scores in ((found.words, logits), (found.neighbours, cosines)):
        expected = [processor.tokenizer.decode([int(row[0])]) for row in top(scores, 4)]
        assert list(words[0, :, 0]) == expected


def test_layers_stand_in_order_and_every_row_has_a_place(miniature):
    found = lens(*miniature, PICTURES[0], k=2, layers=[6, 0])
    assert found.layers == (0, 6) and found.grid[:2] == (6, 6)
    assert found.words.shape == found.probabilities.shape == found.neighbours.shape == found.cosines.shape == (2, 36, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Models without a lens


def test_a_scale_and_a_cap_of_the_logits_are_let_through_and_other_logits_refused(miniature):
    model, processor = miniature

    def with_logits(change):
        def hook(module, args, output):
            output.logits = change(output.logits)
            return output

        handle = model.register_forward_hook(hook)
        try:
            return lens(model, processor, PICTURES[0], k=1, layers=[8])
        finally:
            handle.remove()

    before = [len(module._forward_hooks) for module in model.modules()]
    plain = lens(model, processor, PICTURES[0], k=1, layers=[8])
    assert (with_logits(lambda logits: 3 * torch.tanh(logits / 30)).words == plain.words).all()
    with pytest.raises(MirlibError, match="its logits are not those of the final norm"):
        with_logits(lambda logits: logits + torch.randn(logits.shape[-1]) * logits.std())
    assert [len(module._forward_hooks) for module in model.modules()] == before


@pytest.mark.parametrize(
    ("family", "refusal"),
    [
        ("cohere2_vision", None),  # a scale behind the output embedding
        ("gemma3", None),
        ("git", None),  # rows in front of input_ids, and a norm at the end of each layer
        ("glm5_next", None),  # several residual streams
        ("granite4_vision", None),
        ("qwen4_exp", "its logits are not those of the final norm"),
        ("pi0", "has no output embedding"),
    ],
)
def test_families_have_a_lens_or_say_why_not(family, refusal):
    case = Case(family)
    with pytest.raises(MirlibError, match=refusal) if refusal else nullcontext(), torch.no_grad():
        vocabulary = _Vocabulary(case.model)
        case.find_tokens()
        with vocabulary.checked(case.model):
            logits = case.model(**case.inputs(1)).logits
        assert vocabulary.size == logits.shape[-1]


def test_what_has_no_words_is_refused_in_a_sentence(miniature, monkeypatch):
    model, processor = miniature
    for layers, k, message in (([9], 1, r"layers must be some of 0\.\.8"), ([], 1, "layers"), (None, 0, "k must lie")):
        with pytest.raises(MirlibError, match=message):
            lens(model, processor, PICTURES[0], layers=layers, k=k)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(MirlibError, match="has no output embedding, so its rows cannot be read as words"):
        lens(model, processor, PICTURES[0])
    alone = nn.Linear(2, 2)
    alone.config = SimpleNamespace(model_type="of_words_alone", is_encoder_decoder=False)
    with pytest.raises(UndefinedMIRError):
        lens(alone, processor, PICTURES[0])
