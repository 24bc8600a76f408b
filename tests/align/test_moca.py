"""MoCa changes the vision rows behind every layer, and nothing else; and it says so where it cannot."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import Case
from tiny_models import FAMILIES
from torch import nn

from mirlib import MirlibError, UndefinedMIRError, capture
from mirlib.adapters import decoder_parts
from mirlib.align import moca
from mirlib.align.vision_rows import VisionRows, vision_rows_are

LLAVA = FAMILIES[0]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    """A family, a model of it that no test changes, and inputs."""
    return request.param, request.param.model(), request.param.inputs()


@pytest.fixture
def llava():
    return LLAVA.model(), LLAVA.inputs()


def shaken(model, std=0.3):
    """The model with a MoCa that does something."""
    moca.attach(model, std, seed=1)
    return model


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@torch.no_grad()
def layers(model, inputs):
    """What each layer hands on, (B, T, d), as a hook sees it that was there before MoCa and one that came later."""
    kept = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
        for layer in decoder_parts(model).layers
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return kept


def hooks_of(model):
    """The hooks of mirlib that hang on a model: where, and how many. transformers leaves some of its own there."""
    found = {}
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        ours = [hook for hook in hooks if getattr(hook, "func", hook).__module__.startswith("mirlib")]
        if ours:
            found[name] = len(ours)
    return found


# What changes, and what does not


def test_at_its_start_it_changes_nothing_bit_for_bit(family):
    _, model, inputs = family
    calibrated = copy.deepcopy(model)
    calibration = moca.attach(calibrated)
    assert (calibration.u == 1).all() and (calibration.v == 0).all()
    assert torch.equal(logits(calibrated, inputs), logits(model, inputs))


def test_each_layer_hands_on_the_equation_on_vision_rows_and_what_it_did_on_all_others(family):
    """Layer by layer: the layer itself is run on what the one before handed on, with and without."""
    _, model, inputs = family
    calibrated = shaken(copy.deepcopy(model))
    calibration = moca.find(calibrated)
    vision = inputs["input_ids"] == 60
    for k in range(1, len(calibration.u) + 1):
        alone = copy.deepcopy(model)
        only = moca.attach(alone)
        with torch.no_grad():
            only.u[k - 1], only.v[k - 1] = calibration.u[k - 1], calibration.v[k - 1]
        before, after = layers(model, inputs), layers(alone, inputs)
        for layer in range(1, k):  # nothing before it
            assert torch.equal(before[layer - 1], after[layer - 1])
        assert torch.equal(before[k - 1][~vision], after[k - 1][~vision])
        wanted = before[k - 1][vision] * calibration.u[k - 1] + calibration.v[k - 1]
        torch.testing.assert_close(after[k - 1][vision], wanted.detach())
        if k < len(calibration.u):  # the text behind it reads the picture, so it changes from the next layer on
            assert not torch.equal(before[k][~vision], after[k][~vision])
        else:
            read = inputs["attention_mask"].bool() & ~vision
            assert torch.equal(logits(model, inputs)[read], logits(alone, inputs)[read])
            assert not torch.equal(logits(model, inputs)[vision], logits(alone, inputs)[vision])


def test_a_text_without_a_picture_is_read_as_before(family):
    name, model, inputs = family[0].name, family[1], family[2]
    calibrated = shaken(copy.deepcopy(model))
    text = {"input_ids": inputs["input_ids"][:1, -5:], "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    if name == "qwen2_vl":
        text["mm_token_type_ids"] = torch.zeros(1, 5, dtype=torch.int)
    assert not (text["input_ids"] == 60).any()
    assert torch.equal(logits(calibrated, text), logits(model, text))


def test_taken_off_it_leaves_no_trace(family):
    _, model, inputs = family
    calibrated = shaken(copy.deepcopy(model))
    assert sum(hooks_of(calibrated).values()) == len(moca.find(calibrated).u) + 5  # two for each pass, one for the ids
    assert hooks_of(model) == {}
    changed = logits(calibrated, inputs)
    moca.detach(calibrated)
    assert hooks_of(calibrated) == {}
    assert not any("moca" in name for name in vars(calibrated))
    assert list(calibrated.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(calibrated.parameters(), model.parameters(), strict=True))
    assert torch.equal(logits(calibrated, inputs), logits(model, inputs))
    assert not torch.equal(changed, logits(model, inputs))


def test_capture_reads_calibrated_rows_whichever_came_first(llava):
    model, inputs = llava
    with capture(model, last="raw") as stream:
        shaken(model)
        with torch.no_grad():
            model(**inputs)
        first = [rows.clone() for rows in stream.vision]
    with torch.no_grad(), capture(model, last="raw") as stream:
        model(**inputs)
        for before, after in zip(first, stream.vision, strict=True):
            assert torch.equal(before, after)
        moca.detach(model)
        model(**inputs)
        assert not torch.equal(stream.vision[0], first[0])


@pytest.mark.parametrize("model_type", ["git", "kosmos-2", "gemma3", "qwen3_vl", "internvl", "paligemma"])
def test_families_of_other_kinds(model_type):
    """Rows in front of the ids, rows that a mask names, masks of other shapes, vision added again behind layers."""
    case = Case(model_type)
    case.find_tokens()
    inputs = case.inputs()
    plain = layers(case.model, inputs)
    with torch.no_grad(), capture(case.model) as stream:
        case.model(**inputs)
        vision = stream.positions["vision"]
    calibration = moca.attach(case.model)
    for before, after in zip(plain, layers(case.model, inputs), strict=True):
        assert torch.equal(before, after)
    with torch.no_grad():
        calibration.u[0] = 2.0
        calibration.v[0] = 0.5
    after = layers(case.model, inputs)[0]
    assert vision.any() and torch.equal(after[~vision], plain[0][~vision])
    torch.testing.assert_close(after[vision], 2 * plain[0][vision] + 0.5)
    moca.detach(case.model)
    assert torch.equal(layers(case.model, inputs)[-1], plain[-1])


@pytest.mark.parametrize("model_type", ["glm5_next"])
def test_layers_with_several_residual_streams_are_refused(model_type):
    model = Case(model_type).model
    with pytest.raises(MirlibError, match=f"layers of {model_type} keep several residual streams"):
        moca.attach(model)
    assert hooks_of(model) == {}


def test_a_model_whose_vision_is_not_in_the_sequence_is_refused():
    with pytest.raises(UndefinedMIRError, match="cross-attention"):
        moca.attach(Case("mllama").model)


# Generation


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "smolvlm"])
def test_words_generated_from_a_cache_are_those_without_one(name):
    family = next(family for family in FAMILIES if family.name == name)
    model, inputs = shaken(family.model(), std=1.0), family.inputs(batch=1)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(**inputs, **options, use_cache=True)
    without = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, without.sequences)
    for a, b in zip(cached.logits, without.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    plain = family.model().generate(**inputs, **options)
    assert not torch.allclose(cached.logits[0], plain.logits[0], rtol=1e-3, atol=1e-3)
    # and the whole answer read at once says the same as the answer written word by word
    whole = {**inputs, "input_ids": cached.sequences, "attention_mask": torch.ones_like(cached.sequences)}
    if name == "qwen2_vl":
        whole["mm_token_type_ids"] = (cached.sequences == 60).int()
    read = logits(model, whole)[0, inputs["input_ids"].shape[1] - 1 : -1]
    torch.testing.assert_close(read, torch.cat(cached.logits), rtol=1e-4, atol=1e-5)


def test_embeddings_are_calibrated_where_they_are_said_to_be_vision(llava):
    model, inputs = llava
    embeddings = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    vision = torch.tensor([[False, True, True, False, False, False]])

    def read():
        with torch.no_grad():
            return model.model.language_model(inputs_embeds=embeddings).last_hidden_state

    plain = read()
    shaken(model)
    with vision_rows_are(model, vision):
        assert not torch.equal(read(), plain)
    with vision_rows_are(model, torch.zeros_like(vision)):
        assert torch.equal(read(), plain)
    with pytest.raises(MirlibError, match="nothing was announced"):
        read()


# Training


def test_it_learns_with_the_decoder_and_text_losses_do_not_reach_the_last_layer(llava):
    model, inputs = llava
    calibration = moca.attach(model)
    assert any(p is calibration.u for p in model.model.language_model.parameters())
    model.requires_grad_(False)
    calibration.requires_grad_(True)
    out = model(**inputs).logits
    text = (inputs["input_ids"] != 60) & inputs["attention_mask"].bool()
    out[text].logsumexp(dim=-1).sum().backward()
    for gradient in (calibration.u.grad, calibration.v.grad):
        assert (gradient[:-1] != 0).any(dim=1).all()
        assert (gradient[-1] == 0).all()


def test_a_deep_copy_has_parameters_and_hooks_of_its_own(llava):
    model, inputs = llava
    shaken(model)
    before = logits(model, inputs)
    other = copy.deepcopy(model)
    assert moca.find(other) is not moca.find(model)
    assert torch.equal(logits(other, inputs), before)
    with torch.no_grad():
        moca.find(other).u.fill_(3.0)
    assert torch.equal(logits(model, inputs), before)
    assert not torch.equal(logits(other, inputs), before)
    moca.detach(other)  # off the copy alone
    assert hooks_of(other) == {} and hooks_of(model) != {}
    assert torch.equal(logits(model, inputs), before)


def test_the_start_follows_the_seed_and_the_spread():
    make = lambda **options: moca.Calibration(50, 400, **options)  # noqa: E731
    assert torch.equal(make().u, torch.ones(50, 400)) and torch.equal(make().v, torch.zeros(50, 400))
    first = make(std=0.02, seed=3)
    assert torch.equal(first.u, make(std=0.02, seed=3).u)
    assert not torch.equal(first.u, make(std=0.02, seed=4).u)
    assert first.u.mean().item() == pytest.approx(1, abs=1e-3) and first.v.mean().item() == pytest.approx(0, abs=1e-3)
    assert first.u.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.v.std().item() == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(first.u - 1, first.v)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(MirlibError, match=f"std is {wrong}"):
            make(std=wrong)


def test_it_stays_in_float32_and_keeps_the_precision_of_the_hidden_states(llava):
    model, inputs = llava
    calibration = shaken(model.bfloat16()) and moca.find(model)
    wanted = calibration.u.clone()
    assert wanted.dtype == torch.float32 and not torch.equal(wanted, wanted.bfloat16())
    for coarser in (model.half, model.bfloat16, lambda: model.to("cpu", torch.bfloat16), lambda: model.to(torch.half)):
        coarser()
        assert torch.equal(calibration.u, wanted) and calibration.v.dtype == torch.float32
        dtype = model.get_input_embeddings().weight.dtype
        given = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
        assert dtype.itemsize == 2 and {each.dtype for each in layers(model, given)} == {dtype}
    model.double()
    assert calibration.u.dtype == torch.float64 and torch.equal(calibration.u, wanted)
    assert moca.attach(LLAVA.model().double()).u.dtype == torch.float64


@pytest.mark.parametrize("order", ["attached_then_coarser", "coarser_then_attached"])
def test_in_bfloat16_it_learns_what_it_does_in_float32(order):
    """Ten steps of which each is below the resolution of bfloat16 at 1."""

    def learnt(dtype):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        if order == "attached_then_coarser":
            calibration = moca.attach(model)
            model.to(dtype)
        else:
            model.to(dtype)
            calibration = moca.attach(model)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == 60) | (inputs["attention_mask"] == 0), -100)
        optimizer = torch.optim.SGD(calibration.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            model(**inputs, labels=labels).loss.backward()
            assert 0.1 * calibration.u.grad.abs().max() < 2**-9
            optimizer.step()
        return calibration.u.detach() - 1

    wanted, found = learnt(torch.float32), learnt(torch.bfloat16)
    assert wanted.norm() > 1e-3
    assert (found - wanted).norm() < 0.05 * wanted.norm()


# Files, fusing, errors


def test_saved_beside_the_model_and_loaded(llava, tmp_path):
    model, inputs = llava
    shaken(model)
    wanted = logits(model, inputs)
    moca.save(model, tmp_path)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert hooks_of(again) == {}
    assert not torch.equal(logits(again, inputs), wanted)
    loaded = moca.load(again, tmp_path)
    assert torch.equal(loaded.u, moca.find(model).u) and torch.equal(loaded.v, moca.find(model).v)
    assert torch.equal(logits(again, inputs), wanted)
    with torch.no_grad():
        loaded.u.zero_()
    assert moca.load(again, tmp_path / moca.FILE) is loaded  # onto what is attached
    assert torch.equal(logits(again, inputs), wanted)


def test_files_that_are_not_right_are_refused_and_leave_the_model_alone(llava, tmp_path):
    model, _ = llava
    with pytest.raises(MirlibError, match=r"no file .*moca.safetensors; .*save\(\) writes it"):
        moca.load(model, tmp_path)
    path = moca.save(shaken(LLAVA.model()), tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(MirlibError, match="cannot be read"):
        moca.load(model, tmp_path)
    for tensors, what in (
        ({"u": torch.ones(4, 32), "v": torch.zeros(4, 32)}, "belongs to another model"),
        ({"u": torch.ones(3, 32)}, "belongs to another model"),
        ({"u": torch.full((3, 32), torch.nan), "v": torch.zeros(3, 32)}, "u holds values that are not finite"),
    ):
        save_file(tensors, path)
        with pytest.raises(MirlibError, match=what):
            moca.load(model, tmp_path)
        assert hooks_of(model) == {} and not moca.is_attached(model)
    save_file({}, path, metadata={"mirlib": "norms"})
    with pytest.raises(MirlibError, match=r"not written by mirlib.align.moca.save\(\)"):
        moca.load(model, tmp_path)
    with pytest.raises(MirlibError, match="not attached"):
        moca.save(model, tmp_path)


def test_one_number_behind_the_last_layer_but_one_is_lost_on_text_but_for_the_epsilon(llava):
    model, inputs = llava[0], LLAVA.inputs(batch=1)  # without padding, whose rows are 0
    for module in model.model.language_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0
    plain, text = logits(model, inputs), inputs["input_ids"] != 60
    calibration = moca.attach(model)
    for layer, lost in ((1, False), (2, True)):
        with torch.no_grad():
            calibration.u.fill_(1.0)
            calibration.u[layer - 1] = 3.0
        assert torch.allclose(logits(model, inputs)[text], plain[text], rtol=1e-4, atol=1e-6) == lost


def test_a_layer_that_runs_past_its_hook_is_found(llava):
    model, inputs = llava
    shaken(model)
    decoder = model.model.language_model

    class Bare(nn.Module):
        """Runs a layer as compiled code does that was made before the hooks were there."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *args, **kwargs):
            return self.layer.forward(*args, **kwargs)

    decoder.layers[1] = Bare(decoder.layers[1])
    with pytest.raises(MirlibError, match=r"hooks of layers \[2\] did not fire"):
        logits(model, inputs)
    assert logits(model, {"input_ids": torch.tensor([[1, 5, 6]])}).isfinite().all()  # no vision rows, nothing to miss

    decoder.forward, run = (lambda *args, **kwargs: run(*args, **kwargs)), decoder.forward
    with pytest.raises(MirlibError, match="did not fire"), vision_rows_are(model, torch.ones(1, 3, dtype=torch.bool)):
        decoder(inputs_embeds=torch.zeros(1, 3, 32))


def test_a_compiled_model_is_refused_and_one_that_is_compiled_later_is_calibrated(llava):
    model, inputs = llava
    with pytest.raises(MirlibError, match="attach MoCa first, and compile afterwards"):
        moca.attach(torch.compile(model, backend="eager"))
    part = LLAVA.model()
    part.model.language_model.layers[0].compile(backend="eager")
    with pytest.raises(MirlibError, match="or a part of it is"):
        moca.attach(part)
    shaken(model)
    wanted = logits(model, inputs)
    decoder = model.model.language_model
    decoder.layers[0].compile(backend="eager")
    torch.testing.assert_close(logits(model, inputs), wanted)


def test_what_is_called_wrongly_is_told_so(llava):
    model, inputs = llava
    for call in (moca.detach, moca.find):
        with pytest.raises(MirlibError, match="not attached"):
            call(model)
    moca.attach(model)
    with pytest.raises(MirlibError, match="attached to this model already"):
        moca.attach(model)
    assert isinstance(moca.find(model)._rows, VisionRows)
    with pytest.raises(MirlibError, match="announced"):
        model(inputs_embeds=torch.zeros(1, 5, 32))


def test_a_layer_of_another_width_is_named(llava):
    model, inputs = llava
    moca.attach(model)
    moca.find(model).u = nn.Parameter(torch.ones(3, 16))
    with pytest.raises(MirlibError, match=r"layer 1 returned \(2, 12, 32\), not \(batch, length, 16\)"):
        logits(model, inputs)


class Tupled(nn.Module):
    """A layer that returns a tuple, as those of older models do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return (self.layer(*args, **kwargs), "cache")


def test_layers_that_return_tuples_keep_what_stands_behind(llava):
    model, inputs = llava
    seen = []
    layer = Tupled(model.model.language_model.layers[-1])
    model.model.language_model.layers[-1] = layer
    layer.register_forward_hook(lambda module, args, output: seen.append(output) or output[0])
    plain = logits(model, inputs)
    calibration = moca.attach(model)
    with torch.no_grad():
        calibration.u[-1] = 2.0
    changed = logits(model, inputs)
    vision = inputs["input_ids"] == 60
    (before, _), (after, rest) = seen
    assert rest == "cache" and torch.equal(after[vision], 2 * before[vision])
    assert torch.equal(after[~vision], before[~vision]) and torch.equal(changed[~vision], plain[~vision])
