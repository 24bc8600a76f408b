"""Norms behind a projector bring every vision token to the length of words, and change nothing else."""

import copy

import numpy as np
import pytest
import torch
from tiny_families import Case
from tiny_models import FAMILIES
from torch import nn

from mirlib import MirlibError
from mirlib.align import norms

PROJECTOR = {
    "llava": "model.multi_modal_projector",
    "llava_onevision": "model.multi_modal_projector",
    "qwen2_vl": "model.visual.merger",
    "smolvlm": "model.connector",
    "idefics3": "model.connector",
}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    """A model that no test changes, its inputs, and the name of its projector."""
    return request.param.model(), request.param.inputs(), PROJECTOR[request.param.name]


def projected(model, inputs, name):
    """What the projector puts out."""
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        logits = model(**inputs).logits
    hook.remove()
    return kept[0], logits


@pytest.mark.parametrize("kind", norms.KINDS)
def test_vision_tokens_start_with_the_mean_norm_of_words_in_the_right_direction(family, kind):
    model, inputs, name = family
    normed = copy.deepcopy(model)
    made = norms.attach(normed, kind)
    assert norms.find(normed) is made and normed.get_submodule(f"{name}.norm_of_text") is made
    wanted = model.get_input_embeddings().weight.norm(dim=1).mean().item()
    assert norms.text_norm(model) == pytest.approx(wanted)
    before, plain = projected(model, inputs, name)
    after, logits = projected(normed, inputs, name)
    assert after.shape == before.shape
    if kind == "matched":
        expected = before / before.norm(dim=-1, keepdim=True) * wanted
    else:
        centred = before - before.mean(dim=-1, keepdim=True)
        deviation = (before.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()
        expected = centred / deviation * wanted / before.shape[-1] ** 0.5
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(logits, plain, atol=1e-4)  # the decoder reads it
    text = {key: value[:1, -4:] for key, value in inputs.items() if value.ndim == 2 and key != "pixel_values"}
    text = {key: value for key, value in text.items() if key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with torch.no_grad():
        assert torch.equal(normed(**text).logits, model(**text).logits)


@pytest.mark.parametrize("kind", norms.KINDS)
def test_taken_off_the_projector_stands_where_it_stood(family, kind):
    model, inputs, name = family
    normed = copy.deepcopy(model)
    norms.attach(normed, kind)
    added = {"layer_norm": ["weight", "bias"], "matched": ["norm"]}[kind]
    assert set(normed.state_dict()) - set(model.state_dict()) == {f"{name}.norm_of_text.{each}" for each in added}
    assert set(model.state_dict()) <= set(normed.state_dict())
    norms.detach(normed)
    assert not norms.is_attached(normed)
    assert list(normed.state_dict()) == list(model.state_dict())
    assert torch.equal(projected(normed, inputs, name)[1], projected(model, inputs, name)[1])


def test_gain_and_bias_learn_and_matched_norms_stay():
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    layer_norm = norms.LayerNorm(16, 3.0)
    assert torch.equal(layer_norm.weight, torch.full((16,), 3.0 / 4))
    assert torch.equal(layer_norm.bias, torch.zeros(16))
    layer_norm.eps = 0.0
    torch.testing.assert_close(layer_norm(tokens).norm(dim=-1), torch.full((2, 5), 3.0))
    layer_norm(tokens).cos().sum().backward()
    assert {name for name, p in layer_norm.named_parameters() if (p.grad != 0).any()} == {"weight", "bias"}
    matched = norms.NormMatched(16, 3.0)
    assert list(matched.parameters()) == []
    torch.testing.assert_close(matched(100 * tokens).norm(dim=-1), torch.full((2, 5), 3.0))


@pytest.mark.parametrize("kind", norms.KINDS)
def test_behind_a_sequence_it_acts_once(kind):
    """A sequence calls its children itself, the one that is put into it too."""
    model = FAMILIES[0].model()
    chain = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32))
    model.model.multi_modal_projector = chain
    features = torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(0))
    plain = chain(features)
    made = norms.attach(model, kind)
    if kind == "layer_norm":
        nn.init.normal_(made.weight, 2.0)
        nn.init.normal_(made.bias)
    assert torch.equal(chain(features), made(plain))
    norms.detach(model)
    assert torch.equal(chain(features), plain)


def test_a_copy_has_a_norm_of_its_own(family):
    model, inputs, name = copy.deepcopy(family[0]), family[1], family[2]
    norms.attach(model)
    twin = copy.deepcopy(model)
    before = projected(model, inputs, name)[0]
    with torch.no_grad():
        norms.find(twin).weight.mul_(2)
    torch.testing.assert_close(projected(twin, inputs, name)[0], 2 * before)
    norms.detach(twin)
    assert torch.equal(projected(model, inputs, name)[0], before)
    assert torch.equal(projected(twin, inputs, name)[0], projected(family[0], inputs, name)[0])


def test_the_precision_and_the_state_of_the_projector_are_kept():
    model = FAMILIES[0].model().bfloat16().train()
    made = norms.attach(model)
    assert made.weight.dtype == torch.float32 and made.training
    projector = model.model.multi_modal_projector
    features = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert projector(features).dtype == torch.bfloat16
    gain = made.weight.clone()
    model.half()
    assert projector.linear_1.weight.dtype == torch.float16
    assert torch.equal(made.weight, gain) and not torch.equal(gain, gain.half())
    assert projector(features.half()).dtype == torch.float16


def test_in_bfloat16_a_matched_norm_is_met_as_closely_as_bfloat16_can():
    matched = norms.NormMatched(16, 3.01).bfloat16()
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert matched.norm.dtype == torch.float32
    torch.testing.assert_close(matched(tokens).float().norm(dim=-1), torch.full((2, 5), 3.01), rtol=2**-9, atol=0)


@pytest.mark.parametrize("name, scale", [("gemma3", 8.0), ("paligemma", 8.0), ("gemma4", 8.0), ("vipllava", 1.0)])
def test_scaled_embeddings_are_as_long_as_the_decoder_reads_them(name, scale, monkeypatch):
    """Gemma's layer multiplies its weight by the root of the width, 64 here."""
    monkeypatch.setattr(norms, "_IDS_AT_ONCE", 100)  # of 256
    model = Case(name).model
    weight = model.get_input_embeddings().weight.detach()
    assert weight.shape == (256, 64)
    wanted = scale * np.linalg.norm(weight.double().numpy(), axis=1).mean()
    assert norms.text_norm(model) == pytest.approx(wanted, rel=1e-5)


def test_what_is_called_wrongly_is_told_so():
    model = FAMILIES[0].model()
    with pytest.raises(MirlibError, match="unknown kind of norm 'batch'; choose one of layer_norm, matched"):
        norms.attach(model, "batch")
    with pytest.raises(MirlibError, match="no norm behind the projector"):
        norms.detach(model)
    with pytest.raises(MirlibError, match="no module 'model.nowhere'"):
        norms.attach(model, projector="model.nowhere")
    norms.attach(model, projector="model.multi_modal_projector")
    with pytest.raises(MirlibError, match="has a norm already"):
        norms.attach(model)
    with pytest.raises(MirlibError, match="attach align.norms first, and compile afterwards"):
        norms.attach(torch.compile(FAMILIES[0].model(), backend="eager"))
    two = FAMILIES[0].model()
    two.model.another = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 2)})
    with pytest.raises(MirlibError, match=r"several: .*another.multi_modal_projector.*projector="):
        norms.attach(two)
    del two.model.another
    two.model.projection = two.model.multi_modal_projector
    del two.model.multi_modal_projector
    with pytest.raises(MirlibError, match="none of the usual names"):
        norms.attach(two)
