"""The plan of a measurement: exact where it counts, within 15 % of a process, and never in need of weights."""

import json
import sys
from pathlib import Path

import pytest
from streams import bytes_of_state
from tiny_models import FAMILIES, TEXT, llava_config, qwen2_vl_config

from mirlib import MirlibError, ModalityIntegrationRate, UndefinedMIRError, cli, plan, score_batches
from mirlib.planning import llava_shape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are not part of the installed library

from benchmarks import gpu, planned_memory  # noqa: E402


def tiny(**options):
    return plan(llava_config(), **{"num": 10, "batch_size": 4, "text_tokens": 7, "device": "cpu"} | options)


@pytest.fixture(scope="module")
def seven_billion():
    """LLaVA-1.5-7B's exact shape, planned for a GPU."""
    return plan("llava-1.5-7b")


def test_the_shape_of_llava_15_7b_is_the_published_one(seven_billion):
    found = seven_billion
    assert (found.layers, found.dim, found.parameters) == (32, 4096, 7_063_427_072)
    assert found.bytes_of["weights"] == pytest.approx(2 * found.parameters, rel=1e-3)  # and a few buffers
    assert found.bytes_of["moments"] == 3 * 32 * (4096 + 2) * 4096 * 8
    assert found.bytes_of["maps"] == 2 * 32 * 4096**2 * 4 and found.settings["interval"] == "influence"
    assert found.bytes_of["norms"] == 4 * 32 * 100 * (576 + 800)
    assert found.settings["vision_tokens"] == 576 and found.settings["dtype"] == "bfloat16"
    assert (found.passes, found.forward_passes) == (2, 50)
    assert found.authors_bytes == 100 * (576 + 800) * 33 * 4096 * 2
    assert found.peak == sum(found.bytes_of[name] for name in ("weights", "norms", "moments", "distances"))
    assert found.bytes_of["aside"] == pytest.approx(0.09 * 100 * (576 + 800) * 32 * 4096 * 2, rel=1e-4)  # on the CPU
    value = plan("llava-1.5-7b", confidence=None)
    assert (value.passes, value.forward_passes, value.bytes_of["maps"]) == (1, 25, 0)
    assert found.peak - value.peak <= 8 * 2**30, "an interval is to take no more than 8 GiB beyond the value"


def test_a_text_that_does_not_fit_the_model_is_said():
    said = f"does not fit beside 576 vision tokens, for the model has {(limit := 4096)} positions"
    assert not any(said in note for note in plan("llava-1.5-7b", text_tokens=limit - 576).notes)
    assert any(said in note for note in plan("llava-1.5-7b", text_tokens=limit - 575).notes)


def test_plan_in_words(seven_billion):
    text = str(seven_billion)
    for words in (
        "32 layers of 4096 dimensions, 7.06 billion weights",
        "100 pairs of 576 vision and 800 text tokens in batches of 4, bfloat16 on cuda, preset 'paper'",
        "50 forward passes (2 over every pair)",
        f"{seven_billion.bytes_of['moments'] / 2**30:.2f}",
        f"{seven_billion.peak / 2**30:.2f}",
        "authors' code would keep all hidden states",
        "! what the model's own forward pass of a batch holds is not in the plan",
    ):
        assert words in text, words
    assert json.loads(seven_billion.to_json())["peak"] == seven_billion.peak


@pytest.mark.parametrize("shape", ["weights"])
def test_peak_memory_is_predicted_within_15_percent(shape):
    """Of a run in a process of its own; `python -m benchmarks` measures the other shapes."""
    found = planned_memory.in_fresh_process(shape)
    assert abs(found["planned"] / found["taken"] - 1) <= 0.15, found
    assert found["taken"] > 200 * 2**20, "too small to tell"


def test_formulas_say_what_a_measurement_holds(monkeypatch):
    """Bytes of the tensors of a real one, caught between its passes."""
    held, begin = [], ModalityIntegrationRate.begin_second_pass

    def watched(metric, *args, **options):
        held.append(bytes_of_state(metric))
        begin(metric, *args, **options)
        held.append(bytes_of_state(metric))

    monkeypatch.setattr(ModalityIntegrationRate, "begin_second_pass", watched)
    config, model, drawn = llava_config(), FAMILIES[0].model(), {"batch_size": 4, "text_tokens": 7}
    score_batches(model, gpu.random_batches(config, 40, **drawn), progress=False)
    found = plan(config, num=40, **drawn, device="cpu").bytes_of
    (before, after), (layers, dim) = held, (TEXT["num_hidden_layers"], TEXT["hidden_size"])
    assert found["weights"] == sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert found["moments"] == before["moments"]
    assert found["norms"] == before["norms"] == after["norms"]
    assert found["maps"] == after["_maps"] - 2 * layers * dim * 8 and "moments" not in after  # and two means
    assert 0 < before["aside"] <= found["aside"]


class Counting(list):
    """Batches that count how often a batch is taken."""

    taken = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.taken += 1
            yield batch


OPTIONS = [
    {},
    {"confidence": None},
    {"preset": "authors"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_passes_are_exact(options):
    family = FAMILIES[0]
    batches = Counting([family.inputs(4), family.inputs(4), family.inputs(2)])  # 10 samples in batches of 4
    model = family.model()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    result = score_batches(model, batches, progress=False, **options)
    handle.remove()
    found = tiny(**options)
    assert found.forward_passes == len(calls) and found.passes == result.passes
    if "preset" not in options:
        assert found.settings["interval"] == (result.interval and result.interval.method)


def test_what_grows_and_what_does_not():
    ten, thousand = tiny(num=10), tiny(num=1000)
    grows = ("norms", "aside")
    assert thousand.bytes_of["norms"] == 100 * ten.bytes_of["norms"]
    assert ten.settings["interval"] is None and thousand.settings["interval"] == "influence"
    assert "there is no interval: in 3 of 3 layers, rows are fewer than 2 times the 32 dimensions" in str(ten)
    value, larger = tiny(num=10, confidence=None), tiny(num=1000, confidence=None)
    assert all(value.bytes_of[name] == larger.bytes_of[name] for name in value.bytes_of if name not in grows)
    hundred = tiny(num=100)
    assert all(thousand.bytes_of[name] == hundred.bytes_of[name] for name in hundred.bytes_of if name not in grows)
    for name in grows:
        assert thousand.bytes_of[name] == pytest.approx(10 * hundred.bytes_of[name], rel=1e-2)
    assert ten.bytes_of["aside"] / ten.bytes_of["norms"] > 3 * hundred.bytes_of["aside"] / hundred.bytes_of["norms"]
    assert (thousand.forward_passes, larger.forward_passes, ten.forward_passes) == (500, 250, 3)
    one = tiny(num=1)
    assert one.settings["interval"] is None and "it needs at least 2 samples" in str(one)
    authors = tiny(preset="authors")
    assert authors.bytes_of["rows"] == 10 * (4 + 7) * TEXT["num_hidden_layers"] * TEXT["hidden_size"] * 4
    assert authors.bytes_of["moments"] == authors.bytes_of["norms"] == 0
    assert "keeps rows on the CPU" in str(authors)


def test_precision_of_the_weights():
    single, half = tiny(), tiny(device="cuda")
    assert (single.settings["dtype"], half.settings["dtype"]) == ("float32", "bfloat16")
    assert half.bytes_of["weights"] == pytest.approx(single.bytes_of["weights"] / 2, rel=0.02)
    big = llava_shape(2, 512, 1024, 128, heads=8, vision_layers=1, vocabulary=100, image_size=56)
    full, four = (plan(big, num=2, batch_size=2, text_tokens=8, dtype=d) for d in ("bfloat16", "4bit"))
    assert 0.25 < four.bytes_of["weights"] / full.bytes_of["weights"] < 0.35
    assert "4 bits" in str(four)


def test_families_whose_vision_tokens_depend_on_the_image_want_to_be_told():
    with pytest.raises(MirlibError, match="qwen2_vl: the number of vision tokens depends .*--vision-tokens"):
        plan(qwen2_vl_config(), device="cpu")
    found = plan(qwen2_vl_config(), num=3, batch_size=2, text_tokens=5, vision_tokens=4, device="cpu")
    assert found.layers == TEXT["num_hidden_layers"] and found.forward_passes == 2


def test_bad_input(tmp_path):
    (tmp_path / "empty").mkdir()
    for model, options, message in (
        ("llava-1.5-7b", {"num": 0}, "must be at least 1"),
        ("llava-1.5-7b", {"dtype": "int8"}, "unknown dtype 'int8'; choose one of auto"),
        ("llava-1.5-7b", {"device": "tpu"}, "unknown device 'tpu'"),
        ("llava-1.5-7b", {"preset": "nonsense"}, "unknown preset"),
        ("llava", {}, "no such folder: llava; without a network there are the shapes llava-1.5-7b, llava-1.5-13b"),
        (str(tmp_path / "empty"), {}, "no config.json there"),
    ):
        with pytest.raises(MirlibError, match=message):
            plan(model, **options)
    text_only = llava_config().text_config
    with pytest.raises((UndefinedMIRError, MirlibError), match="MIR"):
        plan(text_only, vision_tokens=4)


def test_plan_in_the_shell(tmp_path, capsys):
    llava_config().save_pretrained(tmp_path / "model")
    arguments = ["plan", str(tmp_path / "model"), "-n", "20", "--text-tokens", "7", "--device", "cpu"]
    assert cli.main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    out, err = capsys.readouterr()
    assert "10 forward passes (2 over every pair)" in out and "keeps, in place of the moments" in out
    assert "Rows that wait for the outlier rule, on the CPU, at most: 0.00 GiB" in out
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert cli.main([*arguments, "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == stored and printed["peak"] == tiny(num=20).peak
