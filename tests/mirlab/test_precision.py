"""The laboratory multiplies in float32 unless it is asked for another precision that the CPU has, and rows name it."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mirlab import commands, ledger, recipes, sweep
from mirlab.experiments import EXPERIMENTS
from mirlab.model import evaluation, precision, train
from mirlib import MirlibError
from mirlib.loading import load_miniature

ROOT = Path(__file__).resolve().parents[2]
FILES_WITH_CODE = (".py", ".ipynb", ".md")


def dtypes_in(work):
    """What the layers of a miniature give while `work(model, tokenizer)` runs."""
    model, processor = load_miniature()
    seen = set()
    for layer in model.model.language_model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    work(model, processor.tokenizer)
    return seen


@pytest.mark.parametrize(
    "work",
    [
        lambda model, tokenizer: train.stage_one(model, tokenizer, recipes.StageOne(pairs=8, batch=8), progress=False),
        lambda model, tokenizer: train.stage_two(model, tokenizer, recipes.StageTwo(images=32), progress=False),
        lambda model, tokenizer: evaluation.image_answers(model, tokenizer, scenes=24),
        lambda model, tokenizer: evaluation.caption_scores(model, tokenizer, scenes=4),
    ],
    ids=["stage 1", "stage 2", "answers", "captions"],
)
def test_everything_is_multiplied_in_float32_unless_it_is_asked_for(work, monkeypatch):
    assert dtypes_in(work) == {torch.float32}
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    with precision.use("bfloat16"):
        assert dtypes_in(work) == {torch.bfloat16}
    assert precision.current() == "float32"


def test_no_other_file_multiplies_in_bfloat16_on_a_cpu():
    folders = ("mirlib", "mirlab", "tests", "tools", "benchmarks", "notebooks", "book")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in FILES_WITH_CODE]
    call = re.compile(r"autocast\(\s*[\"'][^)]*bfloat16")
    found = {path.name for path in sources if call.search(path.read_text(encoding="utf-8"))}
    assert found == {"precision.py"}


def test_a_precision_that_the_cpu_has_not_is_refused(monkeypatch):
    monkeypatch.setattr(precision, "native_bfloat16", lambda: False)
    with pytest.raises(MirlibError, match="no instructions for bfloat16"), precision.use("bfloat16"):
        pass
    with pytest.raises(MirlibError, match="'float8'; choose one of float32, bfloat16"), precision.use("float8"):
        pass


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for processors of x86")
def test_a_cpu_without_bfloat16_is_told_by_measuring_it():
    small = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    code = "from mirlab.model import precision; print(precision.native_bfloat16())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | small, capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for processors of x86")
def test_other_kernels_have_another_fingerprint():
    code = "from mirlab.model import precision; print(precision.arithmetic())"

    def told(**variables):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
        return done.stdout.strip()

    plainest, again = told(ATEN_CPU_CAPABILITY="default"), told(ATEN_CPU_CAPABILITY="default")
    assert re.fullmatch(r"DEFAULT [0-9a-f]{8}", plainest) and plainest == again
    here = told()
    assert here.startswith("DEFAULT") or here.split()[1] != plainest.split()[1]


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_a_row_names_the_precision_that_it_was_made_with(name, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    used = []

    def execute(run, cache):
        used.append(precision.current())
        return {"metrics": {}}

    with precision.use(name):
        (row,) = sweep.sweep(
            "sizes", {"one": recipes.arm(seeds=[0])}, tmp_path, tmp_path, jobs=1, progress=False, execute=execute
        )
    assert used == [name] and row["provenance"]["precision"] == name
    assert row["provenance"]["arithmetic"] == precision.arithmetic()


def test_every_row_of_a_run_has_the_key_of_its_configuration():
    for name in EXPERIMENTS:
        for row in ledger.Ledger(ROOT / "results" / f"{name}.jsonl").rows():
            assert row["key"] == ledger.key_of(row["configuration"])


def arithmetics(results):
    """Precision and instructions by ledger, of all rows of the second edition: those of an arm, and sets of parts."""
    found = {}
    for path in sorted(results.glob("*.jsonl")):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if "arm" in row or path.stem == "parts":
                made = row["provenance"]
                found.setdefault(path.stem, set()).add(
                    (made.get("precision"), made.get("arithmetic", "").split(" ")[0])
                )
    return found


def mixed(results):
    """Ledgers whose rows were not all multiplied in float32 and with the same instructions, which must be named."""
    return [
        name
        for name, ways in arithmetics(results).items()
        if len(ways) > 1 or any(precision != "float32" or not instructions for precision, instructions in ways)
    ]


def test_the_rows_of_an_experiment_were_multiplied_alike():
    assert mixed(ROOT / "results") == []


@pytest.mark.parametrize(
    ("second", "fits"),
    [
        ({"precision": "float32", "arithmetic": "AVX2 00000000"}, True),
        ({"precision": "float32", "arithmetic": "AVX2 11111111"}, True),  # another library, the same instructions
        ({"precision": "float32", "arithmetic": "AVX512 00000000"}, False),
        ({"precision": "bfloat16", "arithmetic": "AVX2 00000000"}, False),
        ({"precision": "float32"}, False),
        ({}, False),
    ],
)
def test_rows_that_were_multiplied_otherwise_are_found(second, fits, tmp_path):
    first = {"precision": "float32", "arithmetic": "AVX2 00000000"}
    assert mixed(tmp_path) == []  # no ledgers yet
    (tmp_path / "benchmarks.jsonl").write_text('{"benchmark": "no run"}\n')
    for name, told in (("moca", {"arm": "plain"}), ("parts", {})):
        rows = [{**told, "provenance": first}, {**told, "provenance": second}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mixed(tmp_path) == ([] if fits else ["moca", "parts"])


def test_who_has_no_home_is_asked_for_a_folder(monkeypatch):
    monkeypatch.delenv("MIRLIB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(commands.Path, "home", no_home)
    with pytest.raises(MirlibError, match="set MIRLIB_CACHE"):
        commands.default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert commands.default_cache() == Path("/somewhere/mirlib/lab")
