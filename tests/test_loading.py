"""Loading over devices and in 4 bits: packages that are missing are named, and offloaded weights change nothing."""

import json
import os
import shutil
import socket
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from tiny_models import FAMILIES, IMAGE, TEXT, VISION
from tiny_processors import lvlm
from transformers import AutoProcessor, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mirlib import MirlibError, cli, loading, plan, score, score_batches
from mirlib.data import sample_images, sample_texts
from mirlib.loading import MINIATURE


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


# What a folder can hold that must not be opened, built or fetched.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, processor = lvlm("llava")
    folder = tmp_path_factory.mktemp("checkpoint") / "llava"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder, **options):
    with pytest.raises(MirlibError) as caught:
        loading.load_model(str(folder), **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder}: ") and "\n" not in sentence
    return sentence


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("traffic")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "generation_config.json"]
)
def test_pipes_and_devices_are_not_opened(copy, file):
    (copy / file).unlink()
    os.mkfifo(copy / file)
    assert f"{file} is a pipe or a device" in refused(copy)
    (copy / file).unlink()
    (copy / file).symlink_to("/dev/zero")
    assert f"{file} is a pipe or a device" in refused(copy)


def test_links_to_files_are_followed(copy, tmp_path):
    (copy / "config.json").rename(tmp_path / "elsewhere.json")
    (copy / "config.json").symlink_to(tmp_path / "elsewhere.json")
    loading.load_model(str(copy))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_more_layers_than_the_weights_have_tensors_are_not_built(copy, part):
    config = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", **{part: config[part] | {"num_hidden_layers": 10**9}})
    tensors = len(load_file(copy / "model.safetensors"))
    assert f"num_hidden_layers is 1000000000, and the weights have {tensors} tensors" in refused(copy)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "intermediate_size"])
def test_absurd_widths_are_refused_before_they_take_memory(copy, name):
    config = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", text_config=config["text_config"] | {name: 10**8})
    assert "another shape than config.json says" in refused(copy)


def test_deep_json_and_long_numbers(copy):
    for text, said in (('{"a": ' + "[" * 100_000, "RecursionError"), ('{"a": ' + "9" * 5000 + "}", "4300 digits")):
        (copy / "config.json").write_text(text)
        assert said in refused(copy)


@pytest.mark.parametrize("where", ["normalizer", "decoder"])
def test_tokenizers_whose_replacements_grow_a_text_without_end(copy, where):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    steps = {"type": "Sequence", "normalizers" if where == "normalizer" else "decoders": [step] * 12}
    change(copy / "tokenizer.json", **{where: steps})
    assert "the replacements in tokenizer.json can make a text 1000000000000 times as long" in refused(copy)


def test_weights_outside_of_the_folder_are_not_read(copy):
    (copy / "model.safetensors").rename(copy.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../other.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map in model.safetensors.index.json names '../other.safetensors'" in refused(copy)


def test_a_template_of_many_megabytes_is_not_read(copy):
    (copy / "chat_template.jinja").write_text("{# nothing #}" * 200_000)
    assert "chat_template.jinja has 2 MiB" in refused(copy)


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_a_local_folder_fetches_nothing(copy, file, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    loading.load_model(str(copy))
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "someone/elsewhere"}
    if file == "processor_config.json":
        change(copy / file, audio_tokenizer=named)
    else:
        (copy / file).write_text(json.dumps(named))
    assert "one of its files names another model, and a local folder fetches nothing" in refused(copy)
    assert constants.HF_HUB_OFFLINE is False


# Weights of few bits, and packages that are missing.


def test_a_checkpoint_of_8_bits_keeps_its_own_precision(tmp_path):
    """Its value is that of the model in full precision, but for the rounding of the weights."""
    from transformers import BitsAndBytesConfig

    model, processor = lvlm("llava")
    model.bfloat16().save_pretrained(tmp_path / "whole")
    bits = BitsAndBytesConfig(load_in_8bit=True)
    rounded = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "whole", quantization_config=bits, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    for folder in (tmp_path / "whole", tmp_path / "rounded"):
        (rounded if folder.name == "rounded" else model).save_pretrained(folder)
        processor.save_pretrained(folder)
    values = {}
    for name in ("whole", "rounded"):
        loaded, its_processor = loading.load_model(str(tmp_path / name))
        result = score(loaded, its_processor, sample_images(4), sample_texts(4), num=4, progress=False)
        values[name], dtype = result.value, result.settings["dtype"]
    assert dtype == "bfloat16"
    assert values["rounded"] == pytest.approx(values["whole"], abs=0.02)
    assert "leave --load-in-4bit out" in refused(tmp_path / "rounded", load_in_4bit=True)


@pytest.mark.parametrize(
    ("said", "packages"),
    [
        ("\nVideoProcessor requires the Torchvision library but it was not found in your environment.", "torchvision"),
        ("Package `num2words` is required. Install it with `pip install num2words`.", "num2words"),
        ("Wrapper requires the timm library but it was not found. Install it with pip:\n`pip install timm`.", "timm"),
    ],
)  # fmt: skip
def test_packages_of_single_families_are_named_with_the_extra_that_brings_them(said, packages):
    sentence = loading.loading_advice("some/model", ImportError(said))
    assert sentence == (
        f"some/model: it needs the package {packages}, not installed here: pip install 'mirlib[families]' "
        f"(or only {packages})"
    )


def test_a_type_that_transformers_does_not_know(copy):
    """transformers advises to install itself, and git."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "mobilevlm"}))
    with pytest.raises(MirlibError, match="transformers [0-9.]+ knows no model of type 'mobilevlm'; a newer version"):
        loading.load_model(str(copy))
    assert loading.missing_packages(ImportError("pip install torch; pip install git+https://x; pip install none")) == [
        "none"
    ]


def test_weights_without_a_place_are_said_in_the_result(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (copy / "config.json").write_text(json.dumps(config))
    model, processor = loading.load_model(str(copy))
    found = score(model, processor, sample_images(2), sample_texts(2), num=2, confidence=None, progress=False)
    assert len(found.per_layer) == 2
    assert any("weights of the checkpoint have no place in the model" in said for said in found.warnings)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_packages_of_stored_few_bit_weights_are_named(copy, method):
    """The packages are not installed where the tests run; each is named as pip names it."""
    settings = {
        "gptq": {"bits": 4, "group_size": 128},
        "awq": {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        "compressed-tensors": {"format": "pack-quantized", "config_groups": {}},
    }[method]
    package = {"gptq": "optimum", "awq": "gptqmodel", "compressed-tensors": "compressed-tensors"}[method]
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    change(copy / "config.json", quantization_config={"quant_method": method, **settings})
    assert f"it needs the package {package}, not installed here: pip install {package}" in refused(copy)
