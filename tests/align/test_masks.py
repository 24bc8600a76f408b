"""The masks are what attention does: weights that are 0 where it is forbidden, and rows that move when others do."""

import copy
from inspect import signature

import pytest
import torch
from tiny_families import Case
from tiny_models import FAMILIES, IMAGE
from transformers import AutoModelForImageTextToText, LlamaModel

from mirlib import MirlibError, UndefinedMIRError
from mirlib.adapters import decoder_parts
from mirlib.align import masks
from mirlib.align.vision_rows import vision_rows_are
from mirlib.loading import load_miniature

LLAVA = FAMILIES[0]
PADDING, TEXT, VISION = 0, 1, 2
CACHE = next(name for name in ("cache", "past_key_values") if name in signature(LlamaModel.forward).parameters)


@torch.no_grad()
def attention_weights(model, **inputs):
    """(K, B, T, T), mean over the heads, in a pass whose attention is computed eagerly; 0 where it was forbidden."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    model.set_attn_implementation("eager")
    try:
        found = model(**inputs, output_attentions=True, use_cache=False).attentions
    finally:
        for config, how in before:
            config._attn_implementation = how
    return torch.stack([weights.mean(dim=1) for weights in found])


class Model:
    """A model that no test changes for good, its inputs, and which rows are what."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        ids = inputs["input_ids"]
        self.attended = inputs["attention_mask"].bool()
        self.vision = torch.isin(ids, torch.tensor(decoder_parts(model).vision_token_ids))

    def expected(self, variant):
        """(B, T, T), from the definition and the padding."""
        allowed = masks.may_attend(variant, masks.image_numbers(self.vision), self.attended)
        return allowed & self.attended[:, None, :]

    def differing_rows(self, variant):
        """Entries of each layer's weights that are not as expected, in rows that are no padding."""
        weights = attention_weights(self.model, **self.inputs)
        return [((layer > 0) != self.expected(variant))[self.attended].sum().item() for layer in weights]


def two_images():
    """LLaVA with two images a sample, words between them, and a second sample that ends in padding."""
    model = LLAVA.model()
    ids = torch.randint(3, 50, (2, 15), generator=torch.Generator().manual_seed(0))
    ids[:, 1:5] = ids[:, 7:11] = IMAGE
    attention = torch.ones_like(ids)
    ids[1, -2:], attention[1, -2:] = 0, 0
    return Model(model, {"input_ids": ids, "attention_mask": attention, **LLAVA.pixels(4)})


def of_transformers(name):
    case = Case(name)
    case.find_tokens()
    return Model(case.model, case.inputs())


def miniature():
    model, _ = load_miniature()
    ids = torch.randint(10, 90, (2, 44), generator=torch.Generator().manual_seed(0))
    ids[:, 1:37] = model.config.image_token_id
    attention = torch.ones_like(ids)
    ids[1, -2:], attention[1, -2:] = model.config.text_config.pad_token_id, 0
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return Model(model, {"input_ids": ids, "attention_mask": attention, "pixel_values": pixels})


MAKERS = {
    "two_images": two_images,
    "miniature": miniature,
    **{each.name: lambda each=each: Model(each.model(), each.inputs()) for each in FAMILIES},
    **{name: lambda name=name: of_transformers(name) for name in ("gemma3", "paligemma", "mistral3", "internvl")},
}
SOME = ("two_images", "qwen2_vl", "smolvlm", "internvl")


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def of(made):
    def get(name):
        if name not in made:
            made[name] = MAKERS[name]()
        return made[name]

    return get


@pytest.fixture(autouse=True)
def always_one_thread(one_thread):
    """The matrices are tiny."""


class attached:
    """A mask inside a ``with`` block."""

    def __init__(self, model, variant):
        self.model, self.variant = model, variant

    def __enter__(self):
        masks.attach(self.model, self.variant)

    def __exit__(self, *_):
        masks.detach(self.model)


@torch.no_grad()
def logits(case, **more):
    return case.model(**{**case.inputs, **more}).logits


# The definition


def drawn(variant, rows, prompt=None):
    images = torch.tensor([[int(each) if each.isdigit() else -1 for each in rows]])
    told = None if prompt is None else torch.tensor([[each == "p" for each in prompt]])
    return ["".join("x" if each else "." for each in row) for row in masks.may_attend(variant, images, told)[0]]


def test_each_variant_is_what_it_says():
    assert drawn("causal", "t00t") == ["x...", "xx..", "xxx.", "xxxx"]
    assert drawn("vision_bidirectional", "t00t11") == ["x.....", "xxx...", "xxx...", "xxxx..", "xxxxxx", "xxxxxx"]
    assert drawn("no_attention_across_images", "0t11t") == ["x....", "xx...", ".xx..", ".xxx.", "xxxxx"]
    assert drawn("prefix", "0tttt", "ppp..") == ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]


def test_a_run_of_vision_rows_is_an_image():
    vision = torch.tensor([[True, True, False, True], [False, False, False, False]])
    assert masks.image_numbers(vision).tolist() == [[0, 0, -1, 1], [-1, -1, -1, -1]]


# What attention does


@pytest.mark.parametrize("variant", masks.VARIANTS)
@pytest.mark.parametrize("name", MAKERS)
def test_eager_attention_has_weight_where_it_is_allowed_and_none_elsewhere(of, name, variant):
    case = of(name)
    with attached(case.model, variant):
        assert case.differing_rows(variant) == [0] * len(decoder_parts(case.model).layers)


@pytest.mark.parametrize("variant", masks.VARIANTS)
@pytest.mark.parametrize("name", SOME)
def test_with_sdpa_a_row_moves_when_a_row_that_it_sees_is_changed_and_else_not(of, name, variant):
    case = of(name)
    case.model.set_attn_implementation("sdpa")
    layers = decoder_parts(case.model).layers
    expected, count = case.expected(variant)[0], case.attended.shape[1]
    assert case.attended[0].all()
    state = {"row": None, "out": None}

    def shake(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if state["row"] is not None:
            hidden = hidden.clone()
            hidden[0, state["row"]] += torch.linspace(-1, 1, hidden.shape[-1])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def keep(module, args, output):
        state["out"] = (output[0] if isinstance(output, tuple) else output)[0].clone()

    with attached(case.model, variant):
        handles = [layers[0].register_forward_pre_hook(shake, with_kwargs=True), layers[0].register_forward_hook(keep)]
        try:
            logits(case)
            still = state["out"]
            for row in range(count):
                state["row"] = row
                logits(case)
                moved = (state["out"] - still).abs().amax(dim=-1) > 0
                assert torch.equal(moved, expected[:, row]), f"row {row}: {moved.nonzero()[:, 0].tolist()} moved"
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("variant", masks.VARIANTS)
def test_sdpa_and_eager_attention_agree(of, variant):
    case = of("two_images")
    found = {}
    with attached(case.model, variant):
        for how in ("sdpa", "eager"):
            case.model.set_attn_implementation(how)
            found[how] = logits(case)[case.attended]
    case.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found["sdpa"], found["eager"])


def test_without_padding_sdpa_has_no_mask_of_its_own_and_gets_one(of):
    case = of("llava")
    alone = {"input_ids": case.inputs["input_ids"][:1], "pixel_values": case.inputs["pixel_values"][:1]}
    plain = case.model(**alone).logits
    with attached(case.model, "causal"):
        assert torch.equal(case.model(**alone).logits, plain)
    with attached(case.model, "vision_bidirectional"):
        changed = case.model(**alone).logits
    assert torch.equal(changed[:, 0], plain[:, 0])  # what stands before the image
    assert not torch.isclose(changed[:, 1:], plain[:, 1:]).all(dim=-1).any()


def test_a_sliding_window_stays(of):
    case = Case("gemma3")
    case.find_tokens()
    inputs = case.inputs(text=30)
    window = case.model.config.text_config.sliding_window
    kinds = case.model.config.text_config.layer_types
    assert "sliding_attention" in kinds and "full_attention" in kinds
    long = Model(case.model, inputs)
    rows = torch.arange(long.attended.shape[1])
    near = (rows[:, None] - rows[None, :]).abs() < window
    assert not near.all()
    for variant in masks.VARIANTS:
        with attached(case.model, variant):
            weights = attention_weights(case.model, **inputs)
        for kind, layer in zip(kinds, weights, strict=True):
            expected = long.expected(variant) & (near if kind == "sliding_attention" else True)
            assert torch.equal((layer > 0)[long.attended], expected[long.attended]), (variant, kind)


# Models with a mask of their own


def test_gemma_3_lets_an_image_see_itself_anyway(of):
    case = of("gemma3")
    plain = logits(case)[case.attended]
    with attached(case.model, "vision_bidirectional"):
        torch.testing.assert_close(logits(case)[case.attended], plain)
    with attached(case.model, "causal"):
        causal = logits(case)[case.attended]
        told_nothing = logits(case, token_type_ids=torch.zeros_like(case.inputs["input_ids"]))[case.attended]
    torch.testing.assert_close(causal, told_nothing)
    assert not torch.allclose(causal, plain)


def test_paligemma_lets_a_prompt_see_itself_anyway(of):
    case = of("paligemma")
    plain = logits(case)[case.attended]
    with attached(case.model, "prefix"):
        torch.testing.assert_close(logits(case)[case.attended], plain)
    with attached(case.model, "causal"):
        assert not torch.allclose(logits(case)[case.attended], plain)


# The prompt


def test_the_prompt_ends_where_the_labels_begin(of):
    case = of("llava")
    labels = torch.full_like(case.inputs["input_ids"], -100)
    labels[:, 8:] = 5
    prompt = torch.zeros_like(labels, dtype=torch.bool)
    prompt[:, :8] = True
    with attached(case.model, "prefix"):
        whole = logits(case)
        by_labels = logits(case, labels=labels)
        with masks.rows_are(case.model, prompt=prompt):
            told = logits(case)
    assert torch.equal(by_labels, told)
    assert not torch.allclose(whole, told)


def test_images_without_anything_between_them_are_told_apart():
    model = LLAVA.model()
    ids = torch.tensor([[1, *[IMAGE] * 8, 5, 6]])
    inputs = {"input_ids": ids, **LLAVA.pixels(2)}
    images = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, 1, 1, -1, -1]])
    with attached(model, "no_attention_across_images"):
        one = attention_weights(model, **inputs)
        with masks.rows_are(model, images=images):
            two = attention_weights(model, **inputs)
    assert (one[:, 0, 5:9, 1:5] > 0).all()
    assert (two[:, 0, 5:9, 1:5] == 0).all()
    assert (two[:, 0, 9:, 1:9] > 0).all()


# Generation


def left_padded():
    """A LLaVA batch whose second sample begins in padding."""
    ids = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(2))
    ids[0, 1:5] = ids[1, 3:7] = IMAGE
    attention = torch.ones_like(ids)
    ids[1, :2], attention[1, :2] = 0, 0
    return LLAVA.model(), {"input_ids": ids, "attention_mask": attention, **LLAVA.pixels(2)}


def gemma_beyond_its_window():
    case = Case("gemma3")
    case.find_tokens()
    inputs = {name: value[:1] for name, value in case.inputs(text=15).items()}
    return case.model, inputs


@pytest.mark.parametrize("variant", masks.VARIANTS)
@pytest.mark.parametrize("make", [left_padded, gemma_beyond_its_window])
def test_generation_is_the_same_with_and_without_a_cache(make, variant):
    model, inputs = make()
    image = decoder_parts(model).vision_token_ids
    options = {
        "suppress_tokens": list(image),
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    with attached(model, variant):
        with masks.rows_are(model, prompt=inputs["attention_mask"].bool()):
            without = model.generate(**inputs, use_cache=False, output_logits=True, **options)
        for cache in ({}, {"cache_implementation": "static", "disable_compile": True}):  # one has room for what comes
            with_cache = model.generate(**inputs, use_cache=True, output_logits=True, **cache, **options)
            assert torch.equal(with_cache.sequences, without.sequences)
            torch.testing.assert_close(torch.stack(with_cache.logits), torch.stack(without.logits))


def test_a_second_image_in_a_conversation_with_a_cache_is_as_without(of):
    case = of("two_images")
    inputs = {name: value[:1] for name, value in case.inputs.items() if name != "pixel_values"}
    pixels = case.inputs["pixel_values"][:2]
    for variant in ("vision_bidirectional", "no_attention_across_images"):
        with attached(case.model, variant), torch.no_grad():
            whole = case.model(**inputs, pixel_values=pixels).logits
            first = case.model(input_ids=inputs["input_ids"][:, :6], pixel_values=pixels[:1], use_cache=True)
            rest = case.model(
                input_ids=inputs["input_ids"][:, 6:], pixel_values=pixels[1:], **{CACHE: getattr(first, CACHE)}
            )
            torch.testing.assert_close(rest.logits, whole[:, 6:])


def test_layers_that_read_the_keys_of_earlier_layers_are_as_without_a_cache():
    """Gemma 4's later layers keep no keys of their own; the words go on beyond the sliding window."""
    case = Case("gemma4")
    case.find_tokens()
    settings = case.model.config.to_dict()
    for derived in ("kv_sharing_modes", "per_layer_config"):
        settings["text_config"].pop(derived, None)
    kinds = ["sliding_attention", "full_attention"] * 2
    settings["text_config"] |= {"num_hidden_layers": 4, "layer_types": kinds, "num_kv_shared_layers": 2}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(type(case.model.config).from_dict(settings)).eval()
    inputs = {name: value[:1] for name, value in case.inputs(text=20).items() if name != "attention_mask"}
    shape, cut = inputs["input_ids"].shape, 12
    assert shape[1] - cut < model.config.text_config.sliding_window < shape[1]
    read = {name: value[:, :cut] if value.shape == shape else value for name, value in inputs.items()}
    with attached(model, "vision_bidirectional"), torch.no_grad():
        whole = model(**inputs, use_cache=False).logits
        first = model(**read, use_cache=True)
        words = {name: value[:, cut:] for name, value in inputs.items() if value.shape == shape}
        rest = model(**words, **{CACHE: getattr(first, CACHE)}).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), whole, rtol=1e-4, atol=1e-5)


def additive(lowest):
    return lambda allowed: torch.zeros(allowed.shape).masked_fill(~allowed, lowest)


@pytest.mark.parametrize(
    "form", [lambda allowed: allowed, additive(torch.finfo().min), additive(-torch.inf)], ids=["bool", "min", "inf"]
)
@pytest.mark.parametrize("heads", [1, 4])
def test_a_mask_that_the_caller_gives_is_read_whatever_its_form(of, form, heads):
    case = of("two_images")
    count = case.attended.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    mine = (causal & case.attended[:, None, :])[:, None] | torch.eye(count, dtype=torch.bool)
    with attached(case.model, "vision_bidirectional"):
        expected = logits(case)[case.attended]
        found = logits(case, attention_mask=form(mine.expand(-1, heads, -1, -1)))[case.attended]
    torch.testing.assert_close(found, expected)


def test_a_mask_of_whole_numbers_is_refused(of):
    case = of("two_images")
    whole = torch.ones(15, 15, dtype=torch.long).tril().expand(2, 1, -1, -1)
    with attached(case.model, "causal"), pytest.raises(MirlibError, match="mask of torch.int64; give a boolean one"):
        logits(case, attention_mask=whole)


def test_an_image_that_a_cache_cuts_in_two_is_refused(of):
    case = of("llava")
    ids = case.inputs["input_ids"][:1]
    embeddings = case.model.get_input_embeddings()(ids).detach()
    vision = case.vision[:1]
    decoder = case.model.get_decoder()
    with attached(case.model, "vision_bidirectional"):
        with vision_rows_are(case.model, vision[:, :3]):
            cache = getattr(decoder(inputs_embeds=embeddings[:, :3], use_cache=True), CACHE)
        with vision_rows_are(case.model, vision[:, 3:]), pytest.raises(MirlibError, match="cut in two"):
            decoder(inputs_embeds=embeddings[:, 3:], **{CACHE: cache})


# On and off


def test_detached_a_model_is_as_before(of):
    case = of("llava")
    before, weights = logits(case), copy.deepcopy(case.model.state_dict())
    hooks = [len(module._forward_pre_hooks) for module in case.model.modules()]
    with attached(case.model, "vision_bidirectional"):
        assert not torch.allclose(logits(case), before)
        assert case.model.state_dict().keys() == weights.keys()
    assert torch.equal(logits(case), before)
    assert [len(module._forward_pre_hooks) for module in case.model.modules()] == hooks
    assert all(torch.equal(value, weights[name]) for name, value in case.model.state_dict().items())


def test_a_copy_has_a_mask_of_its_own(of):
    case = of("llava")
    with attached(case.model, "vision_bidirectional"):
        expected = logits(case)
        twin = copy.deepcopy(case.model)
        with torch.no_grad():
            assert torch.equal(twin(**case.inputs).logits, expected)
        masks.detach(twin)
        assert torch.equal(logits(case), expected)
        with torch.no_grad():
            causal = twin(**case.inputs).logits
    assert torch.equal(logits(case), causal)


def test_gradients_flow_from_an_earlier_row_of_an_image_to_a_later_one():
    model, inputs = LLAVA.model(), LLAVA.inputs()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    with attached(model, "vision_bidirectional"), vision_rows_are(model, inputs["input_ids"] == IMAGE):
        hidden = model.get_decoder()(inputs_embeds=embeddings).last_hidden_state
        hidden[0, 1].sum().backward()
    moved = embeddings.grad[0].abs().sum(dim=-1) > 0
    assert moved.tolist() == [True] * 5 + [False] * 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (LLAVA.model(), "diagonal"), "unknown attention mask 'diagonal'"),
        (lambda: (with_mask(LLAVA.model()), "causal"), "detach.. it first"),
        (lambda: (computed_by(LLAVA.model(), "flash_attention_2"), "causal"), "flash_attention_2"),
        (lambda: (Case("lfm2_vl").model, "causal"), "layer 1 .Lfm2DecoderLayer. is a layer of conv"),
        (lambda: (Case("llama4").model, "causal"), "chunked_attention"),
    ],
    ids=["variant", "twice", "flash", "convolution", "chunks"],
)
def test_what_cannot_be_masked_is_refused(make, message):
    model, variant = make()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(MirlibError, match=message):
        masks.attach(model, variant)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def with_mask(model):
    masks.attach(model, "causal")
    return model


def computed_by(model, how):
    model.config.text_config._attn_implementation = how
    return model


def test_attention_that_is_switched_to_another_kind_is_refused_when_it_happens(of):
    model = LLAVA.model()
    masks.attach(model, "vision_bidirectional")
    computed_by(model, "flash_attention_2")
    vision = torch.zeros(1, 3, dtype=torch.bool)
    with vision_rows_are(model, vision), pytest.raises(MirlibError, match="flash_attention_2"):
        model.get_decoder().layers[0](torch.zeros(1, 3, 32), attention_mask=None)


def test_a_model_without_vision_rows_and_one_without_a_mask_are_refused():
    with pytest.raises(UndefinedMIRError):
        masks.attach(LLAVA.model().get_decoder(), "causal")
    with pytest.raises(MirlibError, match="no attention mask"):
        masks.detach(LLAVA.model())
    with pytest.raises(MirlibError, match="told which rows are the prompt"):
        masks.may_attend("prefix", torch.tensor([[0, -1]]))
