"""C³ moves the vision rows that enter the decoder onto the mean of the text, and nothing else."""

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES
from tiny_processors import lvlm
from transformers import AutoProcessor

from mirlib import MirlibError
from mirlib.adapters import decoder_parts
from mirlib.align import c3
from mirlib.align.saved import attached
from mirlib.data import sample_images, sample_texts
from mirlib.hidden_states import token_masks
from mirlib.loading import MINIATURE, load_model
from mirlib.rows import collect_rows

OPTIONS = {"max_text_tokens": 8}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    """A model that no test changes, and its inputs."""
    return request.param.model(), request.param.inputs()


@torch.no_grad()
def entering(model, inputs):
    """What the first layer reads (B, T, d), as a hook sees it that came later, and the logits."""
    kept = []
    layer = decoder_parts(model).layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    logits = model(**inputs).logits
    hook.remove()
    return kept[0], logits


def moved(model, noise=0.0, seed=0):
    width = model.config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(seed)
    c3.attach(model, *(torch.randn(width, generator=generator) for _ in range(2)), noise)
    return model


def test_vision_rows_are_shifted_and_all_others_are_left_bit_for_bit(family):
    model, inputs = family
    other = moved(copy.deepcopy(model))
    vision, _ = token_masks(inputs["input_ids"], None, decoder_parts(model).vision_token_ids)
    (before, plain), (after, logits) = entering(model, inputs), entering(other, inputs)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(before.shape[-1], generator=generator) for _ in range(2))
    torch.testing.assert_close(after[vision], before[vision] - first + second)
    assert torch.equal(after[~vision], before[~vision])
    assert not torch.allclose(logits, plain, atol=1e-4)  # the decoder reads it
    c3.detach(other)
    assert torch.equal(entering(other, inputs)[1], plain)
    assert not any(layer._forward_pre_hooks for layer in decoder_parts(other).layers)


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_vl", "idefics3"])
def test_the_gap_of_the_means_is_zero_and_differences_of_rows_are_what_they_were(name):
    model, processor = lvlm(name)
    images, texts = list(sample_images(6)), sample_texts(6)
    before = collect_rows(model, processor, images, texts, **OPTIONS)
    vision, text = c3.means(model, processor, images, texts, **OPTIONS)
    torch.testing.assert_close(vision, before.vision_embeddings.mean(0))
    torch.testing.assert_close(text, before.text_embeddings.mean(0))
    assert (vision - text).norm() > 0.01
    c3.attach(model, vision, text)
    after = collect_rows(model, processor, images, texts, **OPTIONS)
    gap = after.vision_embeddings.double().mean(0) - after.text_embeddings.double().mean(0)
    assert gap.abs().max() < 1e-6
    for side in ("vision", "text"):
        rows, there = (getattr(each, f"{side}_embeddings") for each in (before, after))
        torch.testing.assert_close(there - there[0], rows - rows[0], atol=1e-5, rtol=1e-5)


def test_noise_is_added_in_training_alone_with_the_deviation_that_was_asked():
    rows, vision = torch.zeros(4, 500, 32), torch.arange(500).expand(4, -1) % 2 == 0
    made = c3.Collapse(torch.arange(32.0), noise=0.5)
    assert torch.equal(made.eval()(rows, vision)[vision], torch.arange(32.0).expand(1000, 32))
    shaken = made.train()(rows, vision)
    assert torch.equal(shaken[~vision], rows[~vision])
    left = shaken[vision] - torch.arange(32.0)
    assert left.std().item() == pytest.approx(0.5, rel=0.02) and left.mean().item() == pytest.approx(0, abs=0.02)
    assert not torch.equal(made(rows, vision), shaken)


def test_a_copy_has_its_own(family):
    model, inputs = family
    first = moved(copy.deepcopy(model))
    second = copy.deepcopy(first)
    c3.detach(first)
    assert torch.equal(entering(second, inputs)[1], entering(moved(copy.deepcopy(model)), inputs)[1])


@pytest.mark.parametrize("where", ["beside", "among"])
def test_a_checkpoint_is_loaded_with_it(where, tmp_path):
    model, inputs, processor = FAMILIES[0].model(), FAMILIES[0].inputs(), AutoProcessor.from_pretrained(MINIATURE)
    plain = entering(model, inputs)[1]
    if where == "beside":
        model.save_pretrained(tmp_path)
    c3.find(moved(model, 0.25)).half()
    wanted = entering(model, inputs)[1]
    assert c3.save(model, tmp_path / "alone").name == c3.FILE
    if where == "beside":
        c3.save(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    assert attached(loaded) == ["c3"] and c3.find(loaded).noise == 0.25
    assert torch.equal(c3.find(loaded).shift, c3.find(model).shift)  # float32 although .half() was called
    torch.testing.assert_close(entering(loaded, inputs)[1], wanted)
    c3.detach(loaded)
    torch.testing.assert_close(entering(loaded, inputs)[1], plain)


def test_what_cannot_be_done_is_refused_and_the_model_left_alone(tmp_path):
    model, inputs = FAMILIES[0].model(), FAMILIES[0].inputs()
    plain = entering(model, inputs)[1]
    with pytest.raises(MirlibError, match="not attached"):
        c3.detach(model)
    with pytest.raises(MirlibError, match=r"rows have 32 entries, and the means \(31,\) and \(32,\)"):
        c3.attach(model, torch.zeros(31), torch.zeros(32))
    with pytest.raises(MirlibError, match="noise is -1"):
        c3.attach(model, torch.zeros(32), torch.zeros(32), -1.0)
    with pytest.raises(MirlibError, match="noise is nan"):
        c3.attach(model, torch.zeros(32), torch.zeros(32), math.nan)
    with pytest.raises(MirlibError, match="a mean holds NaN or infinity"):
        c3.attach(model, torch.full((32,), math.nan), torch.zeros(32))
    save_file({"shift": torch.zeros(5), "noise": torch.tensor(0.0)}, tmp_path / c3.FILE)
    with pytest.raises(MirlibError, match="belongs to another model"):
        c3.load(model, tmp_path)
    assert not c3.is_attached(model) and torch.equal(entering(model, inputs)[1], plain)
    with pytest.raises(MirlibError, match="attached to this model already"):
        moved(moved(model))
