"""The command `mir`: what it prints where, what it writes, and that it measures what the library measures."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from command import mir, refused
from PIL import Image
from safetensors.torch import save_file
from tiny_processors import lvlm

import mirlib
from mirlib import MIRResult, cli, loading, modality_integration_rate, reports, score
from mirlib.__main__ import _Deaf
from mirlib.comparison import COMPARABLE, compare, differences
from mirlib.data import read_texts, sample_images, sample_texts
from mirlib.loading import MINIATURE
from mirlib.result import LengthSplit

PROGRAM = Path(sys.executable).with_name("mir")
ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as other code leaves it: model and processor, saved with save_pretrained."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model, processor = lvlm("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of twenty images and a file of twenty texts, whose rows are enough for an interval."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    for number, image in enumerate(sample_images(20)):
        image.save(folder / "images" / f"{number}.png")
    (folder / "texts.txt").write_text("\n".join(sample_texts(20)), encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# mir score


def test_score_of_a_saved_checkpoint_is_that_of_the_library(checkpoint, inputs, capsys, tmp_path):
    out = tmp_path / "result.json"
    outcome = mir(
        capsys, "score", checkpoint, "--images", inputs / "images", "--texts", inputs / "texts.txt", "--num", 20,
        "--max-text-tokens", 30, "--json", out, "--no-progress",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    model, processor = lvlm("llava")
    expected = score(
        model, processor, sorted((inputs / "images").iterdir()), read_texts(inputs / "texts.txt"), num=20,
        max_text_tokens=30, confidence=0.95, progress=False,
    )  # fmt: skip
    stored = MIRResult.from_dict(json.loads(out.read_text()))
    assert stored.value == pytest.approx(expected.value, rel=1e-6)
    assert np.allclose(stored.per_layer, expected.per_layer, rtol=1e-5)
    assert stored.interval.standard_error == pytest.approx(expected.interval.standard_error, rel=1e-3)
    assert f"{stored.value:.4f}" in outcome.out and "95% interval [" in outcome.out and str(checkpoint) in outcome.out
    table = [line.split() for line in outcome.out.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [int(line[0]) for line in table[:3]] == [1, 2, 3]
    assert [float(line[1]) for line in table[:3]] == [float(f"{fid:.4g}") for fid in stored.per_layer]
    assert f"wrote {out}" in outcome.err


def test_score_without_arguments_measures_the_miniature(capsys):
    first = mir(capsys, "score", "--num", 12, "--json", "-", "--no-progress")
    again = mir(capsys, "score", "--num", 12, "--json", "-", "--no-progress")
    other = mir(capsys, "score", "--num", 12, "--json", "-", "--no-progress", "--seed", 1)
    assert first.code == 0, first.err
    assert first.out == again.out, "the same seed gave other digits"
    data = json.loads(first.out)
    assert data["mir"] != json.loads(other.out)["mir"]
    assert data["interval"]["low"] < data["mir"] < data["interval"]["high"]
    assert data["settings"]["num"] == 12 and len(data["per_layer"]) == data["settings"]["layers"]


def test_what_a_library_prints_while_it_loads_a_model_is_not_among_the_results(checkpoint, inputs, capfd, monkeypatch):
    def load_and_chat(*arguments, **options):
        sys.stdout.write("from Python\n")
        os.write(1, b"past Python\n")
        return load_model(*arguments, **options)

    load_model = loading.load_model
    monkeypatch.setattr(loading, "load_model", load_and_chat)
    outcome = mir(capfd, "score", checkpoint, "--images", inputs / "images", "--texts", inputs / "texts.txt",
                  "--num", 2, "--json", "-", "--no-progress")  # fmt: skip
    assert outcome.code == 0 and json.loads(outcome.out)["settings"]["num"] == 2
    assert "from Python" in outcome.err and "past Python" in outcome.err


def test_score_options_reach_the_measurement(checkpoint, inputs, capsys):
    def run(*options):
        outcome = mir(capsys, "score", checkpoint, "--images", inputs / "images", "--texts", inputs / "texts.txt",
                      "--num", 4, "--json", "-", "--no-progress", *options)  # fmt: skip
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    plain = run()
    defaults = {"text_rows": "text", "last": "normed", "template": "chat", "preset": "paper"}
    assert plain["settings"] | defaults == plain["settings"]
    for options, name, value in (
        (["--text-rows", "after_image"], "text_rows", "after_image"),
        (["--last", "raw"], "last", "raw"),
        (["--template", "plain"], "template", "plain"),
        (["--preset", "authors"], "preset", "authors"),
        (["--max-text-tokens", 5], "max_text_tokens", 5),
        (["--seed", 7], "seed", 7),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--dtype", "float16"], "dtype", "float16"),
        (["--batch-size", 1], "batch_size", 1),
        (["--device", "cpu"], "device", "cpu"),
    ):
        changed = run(*options)
        assert changed["settings"][name] == value
        if name not in ("batch_size", "device", "dtype"):
            assert changed["mir"] != plain["mir"], f"{options} changed nothing"
        else:
            assert changed["mir"] == pytest.approx(plain["mir"], abs=0.05)
    assert run("--no-interval")["interval"] is None
    assert run("--num", 20, "--confidence", 0.5)["interval"]["confidence"] == 0.5
    assert run("--preset", "authors-fast")["interval"] is None


def test_the_json_says_what_was_measured_and_with_what(checkpoint, inputs, capsys):
    images, texts = str(inputs / "images"), str(inputs / "texts.txt")
    outcome = mir(
        capsys, "score", checkpoint, "--images", images, images, "--texts", texts, "--num", 2, "--json", "-",
        "--no-progress",
    )  # fmt: skip
    versions = {"mirlib": mirlib.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    expected = {"model": str(checkpoint), "images": [images, images], "texts": texts, "paired": False} | versions
    settings = json.loads(outcome.out)["settings"]
    assert settings | expected == settings and settings["quantization"] is None
    settings = json.loads(mir(capsys, "score", "--num", 2, "--json", "-", "--no-progress").out)["settings"]
    named = (settings["model"], settings["images"], settings["texts"])
    assert named == ("miniature", "sample_images", "sample_texts") and "part" not in settings


@pytest.mark.parametrize(
    ("stored", "flag", "expected"),
    [
        (None, False, None),
        (None, True, "nf4"),
        ({"quant_method": "gptq"}, False, "gptq"),
        (transformers.BitsAndBytesConfig(load_in_8bit=True), False, "bitsandbytes"),
    ],
)
def test_quantized_weights_are_recorded(stored, flag, expected):
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=stored))
    options = SimpleNamespace(model="m", images=["i"], texts="t", pairs=None, load_in_4bit=flag)
    vars(options).update(dict.fromkeys(cli.READ_BY))
    assert cli._recorded(options, model)["quantization"] == expected


def test_no_progress_means_no_bars_of_others_either(checkpoint, capsys):
    outcome = mir(capsys, "score", checkpoint, "--num", 2, "--no-progress")
    assert outcome.code == 0 and outcome.err == ""


def test_one_pair_has_no_interval(capsys):
    outcome = mir(capsys, "score", "--num", 1, "--no-progress", "--json", "-")
    assert outcome.code == 0 and json.loads(outcome.out)["interval"] is None


def test_unreadable_inputs_are_named_and_left_out_when_asked_for(checkpoint, inputs, capsys, tmp_path):
    images, texts = tmp_path / "images", tmp_path / "texts"
    images.mkdir()
    texts.mkdir()
    for number, image in enumerate(sample_images(4)):
        image.save(images / f"{number}.png")
        (texts / f"{number}.txt").write_text(f"A text with the number {number}, and some more words.")
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:100])
    (texts / "more.txt").write_text("One text more than there are images.")
    (texts / "empty.txt").write_text("  ")
    (texts / "latin.txt").write_bytes(b"caf\xe9")
    command = ["score", checkpoint, "--images", images, "--texts", texts, "--num", 4, "--no-progress"]
    refused(capsys, *command)
    outcome = mir(capsys, *command, "--skip-unreadable", "--json", "-")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["settings"]["samples"] == 4
    for name in ("broken.png", "empty.txt", "latin.txt"):
        assert sum(name in line for line in outcome.err.splitlines() if "skipped" in line) == 1, outcome.err
    assert "5 images were asked for, there are 5, 4 of them usable" in refused_last(
        capsys, *command[:-2], 5, "--no-progress", "--skip-unreadable"
    )


def refused_last(capsys, *arguments):
    """A refusal after messages about what was skipped."""
    outcome = mir(capsys, *arguments)
    assert outcome.code == 2 and outcome.out == "", outcome
    return outcome.err.splitlines()[-1]


def test_plots_are_drawn(capsys, tmp_path):
    for suffix in ("png", "svg", "pdf"):
        outcome = mir(capsys, "features", GOLDEN / "wide_gap.npz", "--plot", tmp_path / f"a.{suffix}")
        assert outcome.code == 0, outcome.err
        assert (tmp_path / f"a.{suffix}").stat().st_size > 2000
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300 and len(np.unique(image.convert("L"))) > 10


# ---------------------------------------------------------------------------------------------------------------------
# mir features


@pytest.mark.parametrize("name", ["wide_gap", "same_scale", "rank_deficient"])
def test_features_of_the_golden_files(name, capsys):
    """What the authors' functions and the exact formulas gave; test_mir.py looks at each number more closely."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        golden = dict(stored)

    def run(*options):
        outcome = mir(capsys, "features", GOLDEN / f"{name}.npz", "--json", "-", *options)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out), outcome.err

    paper, err = run()
    assert paper["mir"] == pytest.approx(float(golden["exact_drop_mir"]), rel=1e-9)
    assert np.allclose(paper["per_layer"], golden["exact_drop_fid"], rtol=1e-9)
    assert ("too few" in err) == (name == "rank_deficient")
    authors, _ = run("--preset", "authors")
    assert authors["mir"] == pytest.approx(float(golden["exact_median_mir"]), rel=1e-4)
    assert authors["mir"] == pytest.approx(float(golden["official_accurate_mir"]), rel=1e-4)
    assert np.allclose(authors["per_layer"], golden["exact_median_fid"], rtol=1e-4)
    tolerance = 1e-4 if name != "rank_deficient" else 1e-3  # their float32 root is off there: see test_mir.py
    assert np.allclose(authors["per_layer"], golden["official_accurate_fid"], rtol=tolerance)
    fast, err = run("--preset", "authors-fast")
    assert abs(fast["mir"] - float(golden["official_fast_mir"])) < 0.02
    assert err.count("fast square root stands still") == 1
    for result in (paper, authors, fast):
        assert {"mir", "per_layer", "mean_term", "covariance_term", "norm_ratio", "settings"} <= set(result)


def test_features_of_one_sample_have_a_value_alone(capsys, tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 30, 4))
    numbers = np.zeros(30, dtype=int)
    np.savez(tmp_path / "a.npz", vision=rows, text=rows + 1, vision_samples=numbers, text_samples=numbers)
    outcome = mir(capsys, "features", tmp_path / "a.npz", "--json", "-")
    assert outcome.code == 0 and json.loads(outcome.out)["interval"] is None
    assert "there is no interval: it needs at least 2 samples" in outcome.err
    assert mir(capsys, "features", tmp_path / "a.npz", "--no-interval").err == ""
    assert "at least 2 samples" in refused(capsys, "features", tmp_path / "a.npz", "--confidence", 0.9)


def test_features_with_samples_have_an_interval(capsys, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"vision": rng.normal(size=(2, 60, 4)), "text": rng.normal(size=(2, 40, 4))}
    ids = {"vision_samples": np.repeat(np.arange(10), 6), "text_samples": np.repeat(np.arange(10), 4)}
    np.savez(tmp_path / "a.npz", **arrays, **ids, something_else=np.array("x"))
    save_file({name: torch.tensor(values) for name, values in (arrays | ids).items()}, tmp_path / "a.safetensors")
    expected = modality_integration_rate(arrays["vision"], arrays["text"], samples=tuple(ids.values()), confidence=0.95)
    for file in ("a.npz", "a.safetensors"):
        data = json.loads(mir(capsys, "features", tmp_path / file, "--json", "-").out)
        assert data["mir"] == expected.value
        assert data["interval"]["low"] == pytest.approx(expected.interval.low, rel=1e-12)
    none = mir(capsys, "features", tmp_path / "a.npz", "--json", "-", "--no-interval")
    assert json.loads(none.out)["interval"] is None
    table = mir(capsys, "features", tmp_path / "a.npz").out
    assert "95% interval [" in table and "influence over samples" in table


def test_features_of_few_rows_have_no_interval(capsys, tmp_path):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(1, 6, 12)) for name in ("vision", "text")}
    np.savez(tmp_path / "a.npz", **rows, vision_samples=np.arange(6), text_samples=np.arange(6))
    for options in ((), ("--confidence", 0.9)):
        outcome = mir(capsys, "features", tmp_path / "a.npz", "--json", "-", *options)
        assert json.loads(outcome.out)["mir"] == modality_integration_rate(**rows).value
        assert "there is no interval: in 1 of 1 layers" in outcome.err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_features_in_half_precision(dtype, capsys, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(2, 50, 4, generator=generator).to(dtype) for name in ("vision", "text")}
    save_file(rows, tmp_path / "a.safetensors")
    data = json.loads(mir(capsys, "features", tmp_path / "a.safetensors", "--json", "-").out)
    assert data["mir"] == modality_integration_rate(rows["vision"].double(), rows["text"].double()).value


def test_identical_clouds_can_be_printed(capsys, tmp_path):
    rows = np.tile(np.eye(3), (2, 2, 1))
    np.savez(tmp_path / "same.npz", vision=rows, text=rows)
    outcome = mir(capsys, "features", tmp_path / "same.npz")
    assert outcome.code == 0 and "nan" not in outcome.out
    data = json.loads(mir(capsys, "features", tmp_path / "same.npz", "--json", "-").out)
    assert data["mir"] is None or data["mir"] < -12


# ---------------------------------------------------------------------------------------------------------------------
# mir compare


def test_results_side_by_side(capsys, tmp_path):
    for name, options in (("a", []), ("b", ["--preset", "authors"])):
        mir(capsys, "features", GOLDEN / "wide_gap.npz", "--json", tmp_path / f"{name}.json", *options)
    mir(capsys, "features", GOLDEN / "rank_deficient.npz", "--json", tmp_path / "c.json")
    outcome = mir(capsys, "compare", *(tmp_path / f"{name}.json" for name in "abc"))
    assert outcome.code == 0 and outcome.err.startswith("mir: warning: the results may not belong side by side")
    lines = outcome.out[outcome.out.index("MIR  ") :].splitlines()
    assert "3.0259" in lines[1] and "3.0224" in lines[2] and "-0.0035" in lines[2] and "1.3570" in lines[3]
    notes = [line for line in lines if "not comparable" in line]
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    assert f"  ! not comparable: preset differs (paper in {a}, {c}; authors in {b})" in notes
    assert f"  ! not comparable: layers differs (6 in {a}, {b}; 4 in {c})" in notes
    same = mir(capsys, "compare", tmp_path / "a.json", tmp_path / "a.json").out
    assert "not comparable" not in same and same.count("3.0259") == 2, "one of two like names was swallowed"


def test_results_that_are_no_mir_are_named_for_what_they_are(capsys, tmp_path):
    measures, old = tmp_path / "measures.json", tmp_path / "old.json"
    mir(capsys, "score", "--num", 4, "--no-progress", "--measures", "modality_gap", "--json", measures)
    assert "other measures of the gap and no MIR" in refused(capsys, "compare", measures, measures)
    old.write_text('{"schema": 1}')
    assert "(schema 1); schema 2 is read here: measure again" in refused(capsys, "compare", old)


def test_a_standard_error_without_a_square_is_compared(capsys, tmp_path):
    mir(capsys, "features", GOLDEN / "wide_gap.npz", "--json", tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    data["interval"] = {
        **{"low": 0.0, "high": 1.0, "confidence": 0.95, "standard_error": 1e200, "method": "jackknife"},
        "degrees": 3,
    }
    (tmp_path / "b.json").write_text(json.dumps(data))
    outcome = mir(capsys, "compare", tmp_path / "b.json", tmp_path / "b.json")
    assert outcome.code == 0 and "+0.0000" in outcome.out


def test_no_help_shows_the_signs_of_its_format(capsys):
    for command in ("score", "features", "plan", "compare"):
        assert "%%" not in mir(capsys, command, "--help").out


def test_what_a_file_of_features_does_not_record_is_said_and_compared_anyway(capsys, tmp_path):
    """The rows of a model, measured as they are: same value, but nobody knows what template they were made with."""
    scored, stored = tmp_path / "scored.json", tmp_path / "stored.json"
    result = json.loads(mir(capsys, "score", "--num", 8, "--no-progress", "--json", "-").out)
    scored.write_text(json.dumps(result))
    unknown = ("text_rows", "template", "last", "max_text_tokens", "num")
    known = {name: value for name, value in result["settings"].items() if name not in unknown}
    stored.write_text(json.dumps({**result, "settings": known}))
    outcome = mir(capsys, "compare", scored, stored)
    assert outcome.code == 0 and outcome.out.count(f"{result['mir']:.4f}") == 2 and "+0.0000" in outcome.out
    assert outcome.err.count("mir: warning: ") == 1
    notes = [line for line in outcome.out.splitlines() if line.startswith("  ! comparable")]
    assert notes == [
        f"  ! comparable only if you know that these agree, which {stored} did not record: {', '.join(unknown)}"
    ]
    assert mir(capsys, "compare", scored, scored).err == ""
    assert mir(capsys, "compare", stored).err == "", "one file has nothing to differ from"
    features = mir(capsys, "features", GOLDEN / "wide_gap.npz", "--json", "-").out
    assert not set(unknown) & json.loads(features)["settings"].keys(), "the test speaks of what features leaves out"


@pytest.mark.parametrize(
    ("setting", "here", "there"),
    [
        ("dtype", "float32", "bfloat16"),
        ("quantization", None, "nf4"),
        ("images", ["photos"], ["photos", "scans"]),
        ("texts", "news", "mail"),
        ("paired", False, True),
        ("template", "chat", "plain"),
        ("num", 100, 20),
    ],
)
def test_settings_that_change_the_number_are_compared(setting, here, there):
    rng = np.random.default_rng(0)
    plain = modality_integration_rate(*rng.normal(size=(2, 3, 20, 4)))
    settings = dict(plain.settings) | dict.fromkeys(COMPARABLE, "agreed") | {"paired": False, "seed": 0}
    one, same, other = (
        replace(plain, settings=settings | changed)
        for changed in ({setting: here}, {setting: here, "seed": 1, "model": "another"}, {setting: there})
    )
    assert differences({"one": one, "same": same}) == []
    (sentence,) = differences({"one": one, "other": other})
    assert sentence.startswith(f"not comparable: {setting} differs (")
    unsaid = replace(one, settings={name: value for name, value in one.settings.items() if name != setting})
    (sentence,) = differences({"other": other, "unsaid": unsaid})
    assert sentence == (
        "not comparable: paired differs (True in other; False in unsaid)"
        if setting == "paired"  # the library writes it where it is true
        else f"comparable only if you know that these agree, which unsaid did not record: {setting}"
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The miniature on the same 30 pairs with two templates, and on others."""
    folder = tmp_path_factory.mktemp("results")
    for name, options in (("chat", []), ("plain", ["--template", "plain"]), ("other", ["--seed", "1"])):
        command = ["score", "-n", "30", "--no-progress", "--json", str(folder / f"{name}.json"), *options]
        with redirect_stdout(io.StringIO()):
            assert cli.main(command) == 0
    return folder


def read_result(path):
    return MIRResult.from_dict(json.loads(path.read_text()))


def test_the_same_pairs_are_compared_pair_by_pair(three, capsys, tmp_path):
    chat, plain = three / "chat.json", three / "plain.json"
    outcome = mir(capsys, "compare", chat, plain, "--json", tmp_path / "d.json", "--plot", tmp_path / "d.png")
    assert outcome.code == 0 and (tmp_path / "d.png").stat().st_size > 10_000
    expected = compare(read_result(plain), read_result(chat))
    total, alone = expected.difference, expected.unpaired
    assert expected.shared == {"pairs": 30} and total.standard_error < alone.standard_error
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"{plain} − {chat}: {total.value:+.4f}, 95% interval [{total.low:+.4f}, ")
    assert lines[1] == f"  by the 30 pairs in both; independent draws would give [{alone.low:+.4f}, {alone.high:+.4f}]"
    layer = 1 + int(np.argmax([abs(one.value) for one in expected.contributions]))
    assert lines[2].startswith(f"  layers that carry it: {layer} ({expected.contributions[layer - 1].value:+.4f} ± ")
    assert lines[3].startswith(f"  pictures that carry it: {expected.samples[0].sample.name} (")
    assert f"{total.value:+.4f} ± {total.high - total.value:.4f}" in lines[-2]
    assert lines[-1] == f"  ! not comparable: template differs (chat in {chat}; plain in {plain})"
    (stored,) = json.loads((tmp_path / "d.json").read_text())["differences"]
    assert (stored["result"], stored["minus"]) == (str(plain), str(chat))
    assert stored["difference"]["low"] == total.low and len(stored["samples"]) == 30
    assert json.loads(mir(capsys, "compare", chat, plain, "--json", "-").out)["differences"] == [stored]


def test_more_results_are_compared_each_with_the_first(three, capsys):
    names = [three / f"{name}.json" for name in ("chat", "plain", "other", "chat")]
    outcome = mir(capsys, "compare", *names)
    told = [line for line in outcome.out.splitlines() if " − " in line and ": " in line]
    assert [line.split(":")[0] for line in told] == [
        f"{name} − {names[0]}" for name in (*names[1:3], f"{names[3]} (again)")
    ]
    assert told[-1].endswith("+0.0000, 95% interval [+0.0000, +0.0000]: not told from 0")
    chat, other = read_result(names[0]), read_result(names[2])
    expected = compare(other, chat)
    assert (
        f"{expected.difference.value:+.4f} ± {expected.difference.high - expected.difference.value:.4f}" in outcome.out
    )
    assert "--plot draws the difference of two results; there are 4" in refused(
        capsys, "compare", *names, "--plot", "d.png"
    )


def test_a_difference_of_nothing_is_refused_in_its_place(capsys, tmp_path):
    """Two identical clouds have a MIR of −inf: the table stands, and says why there is no difference."""
    files = [tmp_path / "a.json", tmp_path / "zero.json"]
    mir(capsys, "features", GOLDEN / "wide_gap.npz", "--json", files[0])
    data = json.loads(files[0].read_text()) | {"mir": None, "per_layer": [0.0] * 6}
    files[1].write_text(json.dumps(data))
    outcome = mir(capsys, "compare", *files)
    assert (
        outcome.code == 0
        and "zero.json: one of the two is a MIR of -inf, which has no difference to another" in outcome.out
    )
    assert [str(files[1]), "-inf"] in [line.split()[:2] for line in outcome.out.splitlines()]
    drawn = mir(capsys, "compare", *files, "--plot", tmp_path / "d.png")
    assert drawn.code == 2 and drawn.out == outcome.out and "a MIR of -inf" in drawn.err.splitlines()[-1]
    stored = json.loads(mir(capsys, "compare", *files, "--json", "-").out)["differences"]
    assert "a MIR of -inf" in stored[0]["refused"]


def test_a_comparison_destroys_no_result(three, capsys):
    chat = three / "chat.json"
    before = chat.read_bytes()
    assert "that would destroy" in refused(capsys, "compare", chat, chat, "--json", chat)
    assert chat.read_bytes() == before


def test_the_report_splits_the_length_and_names_the_passes(three, capsys):
    chat = read_result(three / "chat.json")
    report = reports.describe(replace(chat, length=LengthSplit(0.08, 0.28, 0.64)), "it")
    assert "of the sum, 8% is forced by norms, 28% removed by equalising them, 64% direction and shape" in report
    assert f"{chat.passes} pass" in report and "vision rows zeroed after the model has run" in report
    bare = reports.describe(replace(chat, length=None, interval=None), "it")
    assert "forced by norms" not in bare and "interval" not in bare
    assert "not allowed with argument" in refused(capsys, "score", "--confidence", 0.9, "--no-interval")


# ---------------------------------------------------------------------------------------------------------------------
# As a program


def run_program(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def test_as_a_program():
    found = run_program("features", GOLDEN / "wide_gap.npz", "--json", "-")
    assert found.returncode == 0 and json.loads(found.stdout)["mir"] == pytest.approx(3.025925107862685)
    missing = run_program("features", "missing.npz")
    assert missing.returncode == 2 and missing.stdout == ""
    assert missing.stderr == "mir: no such file: missing.npz\n"


def test_a_reader_that_stops_reading_is_no_error():
    command = '"$0" features "$1" | head -n 1; echo ${PIPESTATUS[0]}'  # quoted: the repository may lie anywhere
    found = subprocess.run(["bash", "-c", command, PROGRAM, GOLDEN / "wide_gap.npz"], capture_output=True, text=True)
    assert "Traceback" not in found.stderr and "Exception" not in found.stderr, found.stderr
    assert found.stdout.splitlines()[0].startswith("layer") and found.stdout.splitlines()[-1] == "0"


def test_version_and_help(capsys):
    assert mir(capsys, "--version").out.strip() == f"mirlib {mirlib.__version__}"
    for command in ([], ["score"], ["features"], ["compare"], ["lab"]):
        outcome = mir(capsys, *command, "--help")
        assert outcome.code == 0 and "usage: mir" in outcome.out
    assert mir(capsys).code == 2


def test_the_laboratory_lists_its_experiments(capsys, tmp_path):
    outcome = mir(capsys, "lab", "list")
    assert outcome.code == 0 and outcome.out.startswith("base ")
    assert "no experiment is called 'nonsense'" in refused(capsys, "lab", "run", "nonsense")
    assert "no experiment is called 'nonsense'" in refused(capsys, "lab", "show", "nonsense")
    refused(capsys, "lab", "show", "base", "--results", tmp_path)
    assert "no such folder" in refused(capsys, "lab", "show", "base", "--results", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pilot", "real_pilot", "data_scale", "parts"])
def test_elsewhere_the_laboratory_shows_the_ledger_that_comes_along(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = mir(capsys, "lab", "show", name)
    assert outcome.code == 0 and ("ceiling" in outcome.out) == (name == "data_scale")


def test_what_the_preset_cannot_give_is_refused_before_it_is_planned(capsys):
    sentence = refused(capsys, "plan", MINIATURE, "--preset", "authors", "--confidence", 0.9)
    assert sentence == "there is no interval with --preset authors, which replaces rows: leave out --confidence"


def test_a_clouds_distance_of_rounding_has_no_shares(capsys, tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 60, 4))
    np.savez(tmp_path / "a.npz", vision=rows, text=rows)
    outcome = mir(capsys, "features", tmp_path / "a.npz")
    assert outcome.code == 0 and "forced by norms" not in outcome.out
    vision, text = np.random.default_rng(0).standard_t(3, size=(2, 2, 500, 4))
    np.savez(tmp_path / "b.npz", vision=vision, text=text)
    result = json.loads(mir(capsys, "features", tmp_path / "b.npz", "--json", "-").out)
    assert result["length"]["equalised"] < 0
    assert "equalising the norms would add" in mir(capsys, "features", tmp_path / "b.npz").out


def test_a_command_that_is_not_installed_says_so(capsys, monkeypatch):
    """As where the package was installed before it had this entry point; all other commands work."""
    monkeypatch.setattr("mirlib.cli.entry_points", lambda group: [])
    for arguments in (["lab"], ["lab", "list"], ["lab", "run", "sizes", "--jobs", "2"]):
        assert refused(capsys, *arguments).startswith("mir lab is not installed: the laboratory, package mirlab, ")
    assert "lab " in mir(capsys, "--help").out
    found = metadata.EntryPoint("shop", "mirlab_shop.command:add", "mirlib.commands")
    monkeypatch.setattr("mirlib.cli.entry_points", lambda group: [found])
    sentence = refused(capsys, "shop", "sell", "--all")
    assert sentence.startswith("mir shop is not installed: ") and "(No module named 'mirlab_shop')" in sentence


def test_an_interrupted_experiment_ends_its_workers_first(capsys, monkeypatch, tmp_path):
    """The signal unwinds, so that a sweep can end its processes; afterwards the handlers are those of before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        ended = []

        def interrupted(*_, number=number, ended=ended, **__):
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            finally:
                ended.append("workers")

        monkeypatch.setattr("mirlab.commands.run", interrupted)
        outcome = mir(capsys, "lab", "run", "captions", "--results", tmp_path)
        assert (outcome.code, outcome.out, outcome.err) == (128 + number, "", "mir: interrupted\n")
        assert ended == ["workers"]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ledgers_through_the_command(capsys, monkeypatch, tmp_path):
    whole = (ROOT / "results" / "captions.jsonl").read_text().splitlines(keepends=True)
    book = tmp_path / "captions.jsonl"
    book.write_text("".join(whole))
    ceilings = tmp_path / "ceilings.json"
    ceilings.write_text("[")
    assert refused(capsys, "lab", "show", "captions", "--results", tmp_path).startswith(f"{ceilings}: not JSON (")
    ceilings.write_bytes((ROOT / "results" / "ceilings.json").read_bytes())
    shown = mir(capsys, "lab", "show", "captions", "--results", tmp_path)
    assert shown.code == 0 and "than short lists reproduced" in shown.out
    book.write_text("".join([*whole, whole[3]]))
    again = mir(capsys, "lab", "show", "captions", "--results", tmp_path)
    assert again.out == shown.out, "a row that stands there twice was counted twice"
    assert again.err == f"mir: warning: {book}, line {len(whole) + 1}: the same row as line 4, which is counted once\n"
    row = json.loads(whole[0])
    for damaged, message in (
        (row | {"metrics": {}}, f": the row {row['key']} holds no metrics; take it out"),
        (row | {"metrics": "none"}, "its rows are not those that this experiment writes ("),
        (row | {"configuration": row["configuration"] | {"seed": 77}}, "line 1: the key"),
    ):
        book.write_text("".join([json.dumps(damaged) + "\n", *whole[1:]]))
        sentence = refused(capsys, "lab", "show", "captions", "--results", tmp_path)
        assert sentence.startswith(str(book)) and message in sentence
    monkeypatch.setattr("mirlab.commands.run", None)  # who comes so far would train
    for results in ("/proc/results", book, tmp_path / ("x" * 300)):
        assert refused(capsys, "lab", "run", "captions", "--results", results).startswith("cannot write ")
    book.unlink()
    book.mkdir()
    assert refused(capsys, "lab", "show", "captions", "--results", tmp_path) == f"{book}: not a file, so no ledger"


# ---------------------------------------------------------------------------------------------------------------------
# Streams and signals


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp932", "utf-8"])
def test_no_character_stops_the_output(encoding, monkeypatch, tmp_path):
    """The table has bars that these encodings lack; what they hold is the same table."""
    written = {}
    for name in ("stdout", "stderr"):
        written[name] = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written[name], encoding=encoding, write_through=True))
    name = tmp_path / "größe\udcff.npz"
    shutil.copy(GOLDEN / "wide_gap.npz", name)
    code = cli.main(["features", str(name), "--json", str(tmp_path / "r.json")])
    out, err = (stream.getvalue().decode(encoding) for stream in written.values())
    assert code == 0 and json.loads((tmp_path / "r.json").read_text())["mir"] == pytest.approx(3.025925107862685)
    assert "MIR of " in out and "r.json" in err and r"\udcff.npz" in out
    assert out.count("█" if encoding == "utf-8" else "#") == out.count("█") + out.count("#") > 20


def start(code, *arguments, **options):
    """``mir`` in a process of its own, after some code; both streams are kept apart."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code += (
        f"\nimport sys\nsys.argv[1:] = {list(map(str, arguments))}\nfrom mirlib.__main__ import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, text=True, env=environment, timeout=120, **options)


def test_a_full_disk_behind_a_stream_loses_no_result(tmp_path):
    out = tmp_path / "r.json"
    with open("/dev/full", "w") as full:
        found = start("", "features", GOLDEN / "wide_gap.npz", "--json", out, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2 and "Traceback" not in found.stderr and "Exception" not in found.stderr
    assert "MIR of" in found.stderr and found.stderr.splitlines()[-1] == (
        "mir: cannot write to standard output (No space left on device); the result went to standard error"
    )
    assert json.loads(out.read_text())["schema"] == 2
    with _Deaf("/dev/full", "w") as deaf, io.FileIO("/dev/full", "w") as full:
        assert deaf.write(b"a message") == 9, "a message that cannot be written stopped the measurement"
        with pytest.raises(OSError):
            full.write(b"a result")


def test_a_stream_that_is_named_as_a_file_is_written_once(tmp_path):
    for number, name in ((1, "stdout"), (2, "stderr")):
        with open(tmp_path / name, "w") as file:
            streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {name: file}
            assert (
                start("", "features", GOLDEN / "wide_gap.npz", "--json", f"/dev/fd/{number}", **streams).returncode == 0
            )
        assert json.loads((tmp_path / name).read_text())["schema"] == 2


def test_names_that_are_too_long(capsys, tmp_path):
    for command in (
        "score NAME",
        "plan NAME",
        "features NAME.npz",
        "score --pairs hf:NAME",
        "lab show moca --results NAME",
    ):
        said = refused(capsys, *command.replace("NAME", "a" * 300).split())
        assert said.startswith("no such file or folder: aaa") and said.endswith("… (File name too long)")


def test_a_result_with_a_mark_of_byte_order(capsys, tmp_path):
    assert mir(capsys, "features", GOLDEN / "wide_gap.npz", "--json", tmp_path / "a.json").code == 0
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert mir(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json").code == 0


def test_closed_streams_lose_no_result(tmp_path):
    out = tmp_path / "r.json"
    code = "import os, sys\nos.close(1); os.close(2)\nsys.stdout = sys.stderr = None  # as Python begins without them"
    assert start(code, "features", GOLDEN / "wide_gap.npz", "--json", out).returncode == 2
    assert json.loads(out.read_text())["schema"] == 2


COLD = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
"""
WARM = """
import os, time, weakref
import mirlib.cli
class Thing: pass
def read(path):
    thing = Thing()
    watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), {number}))
    del thing  # what is raised in the callback is printed and forgotten
    time.sleep(20)
mirlib.cli.read_arrays = read
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [COLD.replace("{module!r}", "'numpy'"), COLD.replace("{module!r}", "'scipy'"), WARM])
def test_an_interrupt_is_one_line_at_any_moment(code, number):
    code = code.replace("{number}", str(int(number)))
    found = start(code, "features", GOLDEN / "wide_gap.npz", capture_output=True)
    assert (found.returncode, found.stdout, found.stderr) == (128 + number, "", "mir: interrupted\n")
