"""Loading over devices and in 4 bits: packages that are missing are named, and offloaded weights change nothing."""

from importlib.util import find_spec

import pytest
import torch
from tiny_models import FAMILIES

from mirlib import MirlibError, cli, loading, score_batches


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
