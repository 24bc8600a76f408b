"""Loading over devices and in 4 bits: packages that are missing are named, and offloaded weights change nothing."""

from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from tiny_models import FAMILIES, IMAGE, TEXT, VISION
from transformers import AutoProcessor, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mirlib import MirlibError, cli, loading, plan, score_batches
from mirlib.lab.models import MINIATURE


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    for options, package in (({"load_in_4bit": True}, "bitsandbytes"), ({"device_map": "auto"}, "accelerate")):
        with pytest.raises(MirlibError, match=f"needs the package {package}: pip install {package}"):
            loading.load_model(str(tmp_path), **options)


def test_4_bits_do_not_go_with_single_precision(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda name: True)
    with pytest.raises(MirlibError, match="bfloat16 or float16"):
        loading.load_model(str(tmp_path), load_in_4bit=True, dtype="float32")
    monkeypatch.undo()
    options = loading._four_bits("auto", "auto")
    assert options["dtype"] is torch.bfloat16 and options["quantization_config"].bnb_4bit_quant_type == "nf4"


def test_4_bits_give_the_mir_of_the_rounded_model(tmp_path):
    """bitsandbytes rounds and computes by its own code; the same rounded numbers in plain layers must give the same."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    config = LlavaConfig(
        # 96 is no multiple of a block of 64, so that bitsandbytes cannot pack these weights for a CPU with bfloat16.
        vision_config=VISION | {"hidden_size": 64, "intermediate_size": 96, "projection_dim": 64},
        text_config=LlamaConfig(**TEXT | {"hidden_size": 128, "intermediate_size": 192}),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(MINIATURE).save_pretrained(tmp_path)
    rounded, _ = loading.load_model(str(tmp_path), load_in_4bit=True)
    stored, _ = loading.load_model(str(tmp_path), dtype="bfloat16")
    plain = deepcopy(stored)
    linear = {name: module for name, module in rounded.named_modules() if isinstance(module, Linear4bit)}
    assert len(linear) == 3 * 7 + 2 * 6 + 2  # decoder, vision encoder, projector; the output layer stays as it is
    with torch.no_grad():
        for name, module in linear.items():
            numbers = dequantize_4bit(module.weight.data, module.weight.quant_state).to(torch.bfloat16)
            assert not torch.equal(numbers, plain.get_submodule(name).weight)
            plain.get_submodule(name).weight.copy_(numbers)

    sequence = torch.randint(3, IMAGE, (8, 14), generator=torch.Generator().manual_seed(0))
    sequence[:, 1:5] = IMAGE
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    batches = [{"input_ids": sequence[i : i + 4], "pixel_values": pixels[i : i + 4]} for i in (0, 4)]
    found, same, other = (score_batches(model, batches, progress=False).value for model in (rounded, plain, stored))
    assert found == pytest.approx(same, abs=2e-3)
    assert abs(found - other) > 5 * abs(found - same)

    full, four = (
        plan(config, num=2, batch_size=2, text_tokens=8, dtype=dtype, device="cpu").bytes_of["weights"]
        for dtype in ("bfloat16", "4bit")
    )
    saved = stored.get_memory_footprint() - rounded.get_memory_footprint()
    assert full - four == pytest.approx(saved, rel=0.05)


def test_the_shell_hands_the_options_on(monkeypatch, capsys):
    seen = {}

    def load_model(name, **options):
        seen.update(options, name=name)
        raise MirlibError("far enough")

    monkeypatch.setattr(loading, "load_model", load_model)
    command = [
        "score",
        "some/model",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--device-map",
        "auto",
        "--load-in-4bit",
    ]
    assert cli.main([*command, "--num", "1"]) == 2
    assert (seen["name"], seen["dtype"], seen["device_map"], seen["load_in_4bit"]) == (
        "some/model",
        "bfloat16",
        "auto",
        True,
    )
    assert cli.main(["score", "--load-in-4bit", "--device", "cpu", "--num", "1"]) == 2
    assert "are for a MODEL" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
def test_weights_that_accelerate_brings_when_they_are_used():
    """Their parameters lie on the device without numbers in between; inputs must go where the work is done."""
    from accelerate import cpu_offload

    family = FAMILIES[0]
    batches = [family.inputs(2, seed=seed) for seed in range(2)]
    expected = score_batches(family.model(), batches, progress=False)
    offloaded = cpu_offload(family.model(), execution_device=torch.device("cpu"))
    assert {p.device.type for p in offloaded.parameters()} == {"meta"}
    found = score_batches(offloaded, batches, progress=False)
    assert found.value == expected.value
    assert found.settings["device"] == "cpu"


@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
def test_a_device_map_on_a_machine_without_gpus(tmp_path):
    """Loaded through the library, since a tiny checkpoint has no processor to load."""
    from transformers import AutoModelForImageTextToText

    family = FAMILIES[0]
    family.model().save_pretrained(tmp_path)
    spread = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="auto").eval()
    batches = [family.inputs(2)]
    expected = score_batches(family.model(), batches, progress=False)
    assert score_batches(spread, batches, progress=False).value == pytest.approx(expected.value, rel=1e-12)


def test_the_polar_route_of_a_model_and_what_it_does_not_go_with():
    family = FAMILIES[0]
    batches = [family.inputs(4, text=40, seed=seed) for seed in range(12)]
    model = family.model()
    exact, polar = (score_batches(model, batches, progress=False, trace=trace) for trace in ("exact", "polar"))
    assert polar.value == pytest.approx(exact.value, rel=1e-9)
    assert polar.settings["trace"] == "polar" and "trace" not in exact.settings
    with pytest.raises(MirlibError, match="trace='polar' is for moments"):
        score_batches(model, batches, progress=False, trace="polar", preset="authors")
    with pytest.raises(MirlibError, match="unknown trace 'fast'; choose one of exact, polar"):
        score_batches(model, batches, progress=False, trace="fast")
