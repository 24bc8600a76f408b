"""`capture` against transformers' own ``output_hidden_states``, on five families, and in all that can go wrong."""

import pytest
import torch
from tiny_models import FAMILIES, IMAGE, llava_config
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, MllamaConfig, T5Config

from mirlib import MirlibError, UndefinedMIRError, capture
from mirlib.adapters import _ADAPTERS, DecoderParts, decoder_parts, register_adapter
from mirlib.hidden_states import token_masks

LLAVA = FAMILIES[0]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_equal_those_of_transformers(family):
    model, inputs = family.model(), family.inputs()
    with torch.no_grad(), capture(model) as stream:
        states = model(**inputs, output_hidden_states=True).hidden_states
    vision = inputs["input_ids"] == IMAGE
    text = inputs["attention_mask"].bool() & ~vision
    text[:, 0] = False  # <bos> is a special token
    assert stream.num_layers == len(states) - 1 == 3
    for k in range(3):
        torch.testing.assert_close(stream.vision[k], states[k + 1][vision], rtol=0, atol=0)
        torch.testing.assert_close(stream.text[k], states[k + 1][text], rtol=0, atol=0)
    assert stream.vision_samples.tolist() == [0] * family.image_tokens + [1] * family.image_tokens
    assert stream.text_samples.tolist() == [0] * 7 + [1] * 5


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_vision_rows_are_where_the_model_puts_them(family):
    """The rows that change with the picture at layer 1, before any text, are exactly those marked as vision."""
    model, inputs = family.model(), family.inputs(batch=1)
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    embeddings = []
    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: embeddings.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    )
    with torch.no_grad():
        model(**inputs)
        model(**other)
    handle.remove()
    changed = (embeddings[0] != embeddings[1]).any(dim=-1)
    vision = token_masks(inputs["input_ids"], None, decoder_parts(model).vision_token_ids)[0]
    # LLaVA-OneVision's new-line tokens stand among the vision rows and do not depend on the picture.
    assert bool((changed <= vision).all())
    assert int(vision.sum() - changed.sum()) == (2 if family.name == "llava_onevision" else 0)


def test_raw_last_layer_is_before_the_final_norm():
    model, inputs = LLAVA.model(), LLAVA.inputs()
    with torch.no_grad(), capture(model, last="raw") as raw:
        model(**inputs)
    with torch.no_grad(), capture(model) as normed:
        model(**inputs)
    norm = model.get_decoder().norm
    torch.testing.assert_close(norm(raw.vision[-1]), normed.vision[-1])
    assert not torch.equal(raw.vision[-1], normed.vision[-1])
    torch.testing.assert_close(raw.vision[0], normed.vision[0], rtol=0, atol=0)


def test_text_after_the_image_is_the_authors_choice():
    ids = torch.tensor([[1, 5, IMAGE, IMAGE, 7, 2, 0], [IMAGE, 5, IMAGE, 8, 9, 2, 0]])
    attention = torch.tensor([[1] * 6 + [0]] * 2)
    vision, text = token_masks(ids, attention, [IMAGE], [0, 1, 2], text_rows="after_image")
    assert vision.tolist() == (ids == IMAGE).tolist()
    assert text.nonzero().tolist() == [[0, 4], [0, 5], [1, 3], [1, 4], [1, 5]]
    _, text = token_masks(ids, attention, [IMAGE], [0, 1, 2])
    assert text.nonzero().tolist() == [[0, 1], [0, 4], [1, 1], [1, 3], [1, 4]]


def test_given_text_mask_holds_for_one_pass():
    model, inputs = LLAVA.model(), LLAVA.inputs()
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[0, 6] = True
    with torch.no_grad(), capture(model) as stream:
        stream.text_mask = mask
        model(**inputs)
        assert stream.text[0].shape[0] == 1
        model(**inputs)
        assert stream.text[0].shape[0] == 12


def test_on_layer_sees_every_layer_in_order_and_keeps_nothing():
    model, seen = LLAVA.model(), []
    with torch.no_grad(), capture(model, on_layer=lambda k, v, t: seen.append((k, *v.shape, *t.shape))) as stream:
        model(**LLAVA.inputs())
    assert seen == [(k, 8, 32, 12, 32) for k in (1, 2, 3)]
    assert stream.vision == [] and stream.text == []


def test_hooks_are_removed_after_use_and_after_an_exception():
    model = LLAVA.model()
    with capture(model):
        assert hooks_of(model) == 5  # 3 layers, and before and after the whole
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="stop"), capture(model):
        raise RuntimeError("stop")
    assert hooks_of(model) == 0
    with pytest.raises(MirlibError, match="input_ids"), capture(model):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    assert hooks_of(model) == 0


def test_hooks_that_do_not_fire_are_noticed():
    model = LLAVA.model()
    layers = model.get_decoder().layers
    with capture(model), pytest.raises(MirlibError, match=r"layers \[2\] did not fire"):
        layers[1] = type(layers[1])(model.config.text_config, 1)  # as a compiled layer: it runs, its hooks do not
        model(**LLAVA.inputs())


def test_layers_that_only_predict_further_tokens_are_left_out():
    model, inputs = LLAVA.model(), LLAVA.inputs()
    decoder = model.get_decoder()
    decoder.layers.append(type(decoder.layers[0])(model.config.text_config, 3))  # a forward pass runs the first three
    with torch.no_grad(), capture(model) as stream:
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert stream.num_layers == len(states) - 1 == 3
    torch.testing.assert_close(stream.vision[2], states[3][stream.positions["vision"]], rtol=0, atol=0)


def test_peft_changes_nothing_before_it_is_trained():
    peft = pytest.importorskip("peft")
    model, inputs = LLAVA.model(), LLAVA.inputs()
    with torch.no_grad(), capture(model) as stream:
        model(**inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
    assert [type(layer) for layer in decoder_parts(adapted).layers] == [type(layer) for layer in stream.parts.layers]
    with torch.no_grad(), capture(adapted) as again:
        adapted(**inputs)
    for k in range(3):
        torch.testing.assert_close(again.vision[k], stream.vision[k])
        torch.testing.assert_close(again.text[k], stream.text[k])


def test_rows_that_input_ids_do_not_show():
    """Two rows stand in front of those of input_ids; the first of them is vision, and a word is vision too."""
    ids = torch.tensor([[1, 5, 6, 0], [7, 8, 2, 0]])
    attention = torch.tensor([[1, 1, 1, 0]] * 2)
    where = torch.tensor([[1, 0, 0, 1, 0, 1]] * 2).bool()
    vision, text = token_masks(ids, attention, (), (0, 1, 2), vision_mask=where)
    assert vision.tolist() == [[True, False, False, True, False, False]] * 2  # padding is never vision
    assert text.int().tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]
    given = torch.tensor([[True, True, True, True]] * 2)
    _, text = token_masks(ids, attention, (), text_mask=given, vision_mask=where)
    assert text.int().tolist() == [[0, 0, 1, 0, 1, 0]] * 2
    _, text = token_masks(ids, attention, (), text_rows="after_image", vision_mask=where)
    assert text.int().tolist() == [[0, 0, 0, 0, 1, 0]] * 2
    for wrong in (where[:, 3:], where[:1]):
        with pytest.raises(MirlibError, match="must cover every position of every sample"):
            token_masks(ids, attention, (), vision_mask=wrong)


def test_frames_of_pictures_are_not_text():
    model, inputs = LLAVA.model(), LLAVA.inputs(batch=1)
    model.config.image_end_token_id = int(inputs["input_ids"][0, 6])
    model.config.audio_token_id = int(inputs["input_ids"][0, 8])
    with torch.no_grad(), capture(model) as stream:
        model(**inputs)
    assert stream.positions["text"][0].nonzero()[:, 0].tolist() == [5, 7, 9, 10, 11]


def test_layers_of_another_shape_are_refused():
    model = LLAVA.model()
    _ADAPTERS["llava"] = lambda model: DecoderParts(
        [model.model.multi_modal_projector.linear_1], model.get_decoder().norm, (IMAGE,)
    )
    try:
        with torch.no_grad(), pytest.raises(MirlibError, match="layer 1 returned"), capture(model, last="raw"):
            model(**LLAVA.inputs())
    finally:
        _ADAPTERS.pop("llava")


def test_wrapped_models_are_unwrapped():
    model = LLAVA.model()
    wrapped = torch.nn.DataParallel(model, device_ids=None)
    with torch.no_grad(), capture(wrapped) as stream:
        wrapped.module(**LLAVA.inputs())
    assert len(stream.vision) == 3


def test_models_without_vision_rows_are_refused_with_the_reason():
    text_only = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(UndefinedMIRError, match="names no image token"), capture(text_only):
        pass

    class Encoder(torch.nn.Module):
        config = T5Config()

    with pytest.raises(UndefinedMIRError, match="encoder-decoder.*cross-attention"), capture(Encoder()):
        pass

    mllama = MllamaConfig(
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_global_layers": 1,
            "attention_heads": 2, "vision_output_dim": 16, "image_size": 16, "patch_size": 8,
            "supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0],
        },
        text_config={
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0,
        },
        image_token_index=60,
    )  # fmt: skip
    with (
        pytest.raises(UndefinedMIRError, match="cross-attention layers"),
        capture(AutoModelForImageTextToText.from_config(mllama)),
    ):
        pass


def test_an_adapter_teaches_a_new_family():
    class Strange(torch.nn.Module):
        config = type("Config", (), {"model_type": "strange"})()

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
            self.out = torch.nn.LayerNorm(4)

        def forward(self, input_ids):
            hidden = self.embed(input_ids)
            for block in self.blocks:
                hidden = block(hidden)
            return self.out(hidden)

    model = Strange()
    with pytest.raises(MirlibError, match="image"), capture(model):
        pass
    register_adapter("strange", lambda m: DecoderParts(m.blocks, m.out, (9,)))
    try:
        with torch.no_grad(), capture(model) as stream:
            output = model(torch.tensor([[9, 9, 3]]))
        torch.testing.assert_close(stream.vision[1], output[0, :2])
    finally:
        _ADAPTERS.pop("strange")


@pytest.mark.parametrize("name", ["text_rows", "last"])
def test_unknown_options_name_the_choices(name):
    with pytest.raises(MirlibError, match="choose one of"), capture(LLAVA.model(), **{name: "nonsense"}):
        pass


def test_config_is_the_only_thing_that_says_where_vision_is():
    config = llava_config()
    config.image_token_index = 55
    model = AutoModelForImageTextToText.from_config(config)
    assert decoder_parts(model).vision_token_ids == (55,)
