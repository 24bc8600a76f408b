"""InfoNCE against closed forms and CLIP's loss, the queue, and both sides of EIM's losses on many families."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import FAMILIES, IMAGE, TEXT
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from mirlib import MirlibError, UndefinedMIRError
from mirlib.align import eim

LLAVA = FAMILIES[0]
WIDTH = TEXT["hidden_size"]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    """A family, a model of it that no test changes, and inputs; the second sample is padded."""
    return request.param, request.param.model(), request.param.inputs()


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    text = {**small, "hidden_size": 16, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The loss


def test_the_loss_is_the_equation_written_out():
    queries, keys, positives = normal(3, 5), 7 * normal(6, 5, seed=1), torch.tensor([4, 0, 4])
    expected = 0
    for query, positive in zip(queries.double(), positives, strict=True):
        powers = [math.exp(F.cosine_similarity(query, key, dim=0).item() / 0.07) for key in keys.double()]
        expected -= math.log(powers[positive] / sum(powers)) / len(queries)
    assert eim.info_nce(queries, keys, positives).item() == pytest.approx(expected, rel=1e-5)
    assert eim.KeyQueue(keys).loss(queries, positives).item() == pytest.approx(expected, rel=1e-5)


def test_both_ways_together_it_is_the_loss_of_clip():
    images, texts, own = normal(8, 5), normal(8, 5, seed=1), torch.arange(8)
    temperature = 0.2
    both = (eim.info_nce(images, texts, own, temperature) + eim.info_nce(texts, images, own, temperature)) / 2
    similarity = F.normalize(texts) @ F.normalize(images).T / temperature
    assert both.item() == pytest.approx(image_text_contrastive_loss(similarity).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_closed_forms(temperature):
    eye, own = torch.eye(6), torch.arange(6)
    right = math.log(1 + 5 * math.exp(-1 / temperature))
    wrong = 1 / temperature + right  # the key of another: cosine 0 above, 1 among those below
    assert eim.info_nce(eye, eye, own, temperature).item() == pytest.approx(right, abs=1e-6)
    assert eim.info_nce(eye, eye, own.roll(1), temperature).item() == pytest.approx(wrong, rel=1e-5)
    alike = torch.ones(6, 6)
    assert eim.info_nce(normal(6, 6), alike, own, temperature).item() == pytest.approx(math.log(6), rel=1e-5)


def test_lengths_do_not_count_and_the_gradient_is_across():
    queries, keys, own = normal(4, 5).requires_grad_(True), normal(4, 5, seed=1), torch.arange(4)
    loss = eim.info_nce(queries, keys, own)
    longer = eim.info_nce(queries * torch.tensor([[0.1], [1], [10], [100]]), keys * 3, own)
    assert longer.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert queries.grad.norm() > 0.01
    assert (queries.grad * queries).sum(dim=1).abs().max() < 1e-5


def test_half_precision_is_no_excuse(bfloat16):
    queries, keys, own = normal(16, 64), normal(500, 64, seed=1), torch.arange(16)
    exact = eim.info_nce(queries.bfloat16().float(), keys, own)
    with bfloat16():
        assert eim.KeyQueue(keys).loss(queries.bfloat16(), own).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("queries", "keys", "positives", "temperature", "message"),
    [
        ((2, 5), (4, 6), [0, 1], 0.07, r"queries \(n, d\) are compared with keys \(N, d\), not \(2, 5\) with \(4, 6\)"),
        ((2, 3, 5), (4, 5), [0, 1], 0.07, r"not \(2, 3, 5\)"),
        ((2, 5), (4, 5), [0], 0.07, "positives must be 2 whole numbers"),
        ((2, 5), (4, 5), [0.0, 1.0], 0.07, "not torch.float32"),
        ((2, 5), (4, 5), [True, False], 0.07, "not torch.bool"),
        ((2, 5), (4, 5), [0, 4], 0.07, "a positive from 0 to 3"),
        ((2, 5), (4, 5), [-1, 1], 0.07, "a positive from 0 to 3"),
        ((2, 5), (4, 5), [0, 1], 0.0, "temperature must be above 0, not 0.0"),
    ],
)
def test_bad_input_is_named(queries, keys, positives, temperature, message):
    with pytest.raises(MirlibError, match=message):
        eim.info_nce(normal(*queries), normal(*keys), torch.tensor(positives), temperature)


# The queue


def test_keys_are_unit_vectors_that_no_gradient_reaches():
    source = normal(7, 5).requires_grad_(True)
    queue = eim.KeyQueue.build(lambda batch: 3 * source[batch], torch.arange(7).split(3))
    assert len(queue) == 7
    torch.testing.assert_close(queue.keys, F.normalize(source.detach()))
    queries = normal(2, 5, seed=1).requires_grad_(True)
    queue.loss(queries, torch.tensor([0, 6])).backward()
    assert source.grad is None and queries.grad.any()
    assert not queue.keys.requires_grad and not eim.KeyQueue(source).keys.requires_grad
    assert not list(queue.parameters()) and queue.state_dict() == {}
    built = queue.keys.clone()
    with torch.no_grad():
        source += 1
    assert torch.equal(queue.keys, built)


def test_a_key_without_a_direction_is_named():
    for bad in (0.0, math.nan, math.inf):
        keys = normal(4, 5)
        keys[2] = bad
        with pytest.raises(MirlibError, match="key 2 of 4 has no direction"):
            eim.KeyQueue(keys)
    with pytest.raises(MirlibError, match="a matrix"):
        eim.KeyQueue(normal(4))
    with pytest.raises(MirlibError, match="no batches"):
        eim.KeyQueue.build(lambda batch: batch, [])
    with pytest.raises(MirlibError, match="output layers behind both"):
        eim.KeyQueue(normal(4, 5)).loss(normal(2, 6), torch.arange(2))


# IE


def test_image_and_caption_vectors_are_those_of_clip(clip):
    pixels = normal(2, 3, 16, 16)
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 8, 9, 2]])
    attention = (ids != 0).long()
    with torch.no_grad():
        image = clip.visual_projection(eim.image_vectors(clip.vision_model, pixels))
        text = clip.text_projection(eim.caption_vectors(clip.text_model, ids, attention))
        whole = clip(pixel_values=pixels, input_ids=ids, attention_mask=attention)
        assert eim.image_vectors(clip.vision_model, pixels).shape == (2, 24)
        assert eim.caption_vectors(clip.text_model, ids).shape == (2, 16)
    torch.testing.assert_close(F.normalize(image), whole.image_embeds)
    torch.testing.assert_close(F.normalize(text), whole.text_embeds)


def test_the_tower_of_a_llava_is_found_and_gets_the_gradient():
    model = LLAVA.model()
    pixels = LLAVA.inputs()["pixel_values"]
    tower = eim.vision_tower(model)
    assert tower is model.model.vision_tower and eim.vision_tower(model.model) is tower
    assert eim.vision_tower(tower) is getattr(tower, "vision_model", tower)
    queries = eim.image_vectors(model, pixels)
    torch.testing.assert_close(queries, eim.image_vectors(tower, pixels))
    eim.KeyQueue(normal(3, 24)).loss(queries, torch.arange(2)).backward()
    moved = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"vision_tower"}


def test_ie_is_undefined_without_a_vector_for_the_whole_image():
    for name in ("qwen2_vl", "smolvlm", "idefics3"):
        family = next(family for family in FAMILIES if family.name == name)
        with pytest.raises(MirlibError, match="so IE is undefined for it"):
            eim.image_vectors(family.model(), normal(2, 3, 16, 16))
    with pytest.raises(MirlibError, match=r"must be \(n, 3, height, width\)"):
        eim.image_vectors(LLAVA.model(), normal(2, 1, 3, 16, 16))


# ST and LM


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_queries_and_keys_are_what_the_model_says_they_are(family):
    family, model, inputs = family
    whole = model(**inputs, output_hidden_states=True)
    before = hooks(model)  # transformers leaves some of its own
    vision, attended = inputs["input_ids"] == IMAGE, inputs["attention_mask"].bool()
    st, lm = eim.mean_vision_tokens(model, inputs), eim.last_token_vectors(model, inputs)
    keys = eim.mean_text_embeddings(model, inputs)
    for sample in range(2):
        torch.testing.assert_close(st[sample], whole.hidden_states[0][sample, vision[sample]].mean(dim=0))
        last = attended[sample].nonzero().max()
        torch.testing.assert_close(lm[sample], whole.hidden_states[-1][sample, last])
        words = inputs["input_ids"][sample, attended[sample] & ~vision[sample]]
        torch.testing.assert_close(keys[sample], model.get_input_embeddings()(words).mean(dim=0))
    assert hooks(model) == before
    assert torch.equal(model(**inputs).logits, whole.logits)


def test_st_moves_what_makes_vision_tokens_and_lm_moves_the_language_model(family):
    family, model, inputs = family
    model = copy.deepcopy(model)
    decoder = [id(p) for p in model.get_decoder().parameters()]
    words = id(model.get_input_embeddings().weight)
    queue = eim.KeyQueue(normal(5, WIDTH))
    queue.loss(eim.mean_vision_tokens(model, inputs), torch.arange(2)).backward()
    moved = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
    assert moved and not moved & (set(decoder) - {words})

    model.zero_grad()
    model.requires_grad_(False)
    for parameter in model.get_decoder().parameters():
        parameter.requires_grad_(True)
    queue.loss(eim.last_token_vectors(model, inputs), torch.arange(2)).backward()
    moved = {id(p) for p in model.parameters() if p.grad is not None}
    assert moved and moved <= set(decoder)
    layers = model.get_decoder().layers
    assert all(any(p.grad.any() for p in layer.parameters()) for layer in layers)


def test_padding_on_either_side_and_words_of_the_picture_do_not_count(family):
    family, model, inputs = family
    one = {name: value[:1] for name, value in family.inputs(batch=1).items()}
    ids = one["input_ids"][:, 1 + family.image_tokens :]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {name: F.pad(value, (2, 3)) for name, value in alone.items()}
    expected = model(**padded, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(eim.last_token_vectors(model, padded), expected[:, -4])
    unsaid = eim.last_token_vectors(model, {"input_ids": ids})  # without a mask all tokens are read
    torch.testing.assert_close(unsaid, eim.last_token_vectors(model, alone))
    keys = [eim.mean_text_embeddings(model, batch) for batch in (alone, padded)]
    torch.testing.assert_close(keys[0], keys[1])
    chosen = torch.zeros_like(one["input_ids"], dtype=torch.bool)
    chosen[:, -2:] = True
    response = model.get_input_embeddings()(ids[:, -2:]).mean(dim=1)
    torch.testing.assert_close(eim.mean_text_embeddings(model, one, chosen), response)


def test_a_copy_is_read_by_itself(family):
    family, model, inputs = family
    before = eim.last_token_vectors(model, inputs)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.get_decoder().parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(eim.last_token_vectors(other, inputs), before)
    assert torch.equal(eim.last_token_vectors(model, inputs), before)


def test_a_sample_without_a_picture_is_named():
    model, inputs = LLAVA.model(), LLAVA.inputs()
    ids = inputs["input_ids"].clone()
    ids[1, ids[1] == IMAGE] = 5
    one_picture = {**inputs, "input_ids": ids, "pixel_values": inputs["pixel_values"][:1]}
    with pytest.raises(MirlibError, match="sample 1 of the batch has no vision tokens"):
        eim.mean_vision_tokens(model, one_picture)


def test_a_language_model_alone_has_last_tokens_but_no_vision_tokens():
    model = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    expected = model(**batch, output_hidden_states=True).hidden_states[-1][:, -1]
    torch.testing.assert_close(eim.last_token_vectors(model, batch), expected)
    with pytest.raises(UndefinedMIRError):
        eim.mean_vision_tokens(model, batch)


def test_a_hook_that_is_run_past_is_not_silent(monkeypatch):
    model, inputs = LLAVA.model(), LLAVA.inputs()
    before = hooks(model)
    monkeypatch.setattr(model, "forward", lambda **batch: None)
    for read in (eim.mean_vision_tokens, eim.last_token_vectors):
        with pytest.raises(MirlibError, match="was not called in the forward pass"):
            read(model, inputs)
    assert hooks(model) == before
