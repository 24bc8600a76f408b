"""The benchmarks run at toy sizes and say what they measured. No assertion about time: a busy machine is no bug."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from mirlib import frechet_distance, modality_integration_rate
from mirlib.loading import load_miniature

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are not part of the installed library

from benchmarks import capture_overhead, coverage, gpu, in_page, trace_term  # noqa: E402
from benchmarks.__main__ import keep, parse, run  # noqa: E402
from benchmarks.measuring import Measurement, Target, Timing, format_table, ratios  # noqa: E402


@pytest.fixture(scope="module")
def trace_rows():
    return trace_term.measure([16], threads=1, quick=True)


def test_trace_term_is_measured_against_every_route(trace_rows):
    assert [row.what for row in trace_rows] == [
        "trace term: mirlib / one eigvalsh",
        "trace term: sqrtm, float64 / mirlib",
        "trace term: sqrtm, float32 (authors, accurate) / mirlib",
        "trace term: eigvals of the product (torchmetrics) / mirlib",
        "relative error of the trace term: mirlib",
        "relative error of the trace term: eigvals of the product (torchmetrics)",
        "relative error of the trace term: sqrtm, float64",
        "relative error of the trace term: sqrtm, float32 (authors, accurate)",
    ]
    assert all(row.value > 0 for row in trace_rows[:4])
    assert [row.target for row in trace_rows[:4]] == [None] * 4  # the design sets its targets for d >= 2048


def test_every_route_finds_the_trace_term(trace_rows):
    errors = {row.what.split(": ", 1)[1]: row for row in trace_rows[4:]}
    assert errors["mirlib"].verdict == "met" and errors["mirlib"].value < 1e-12
    assert errors[trace_term.EIGVALS].value < 1e-9
    assert errors[trace_term.SQRTM].value < 1e-9
    assert 1e-12 < errors[trace_term.SQRTM_SINGLE].value < 1e-3


def test_reference_is_the_closed_form_for_rows_without_correlation():
    # Rows ±a e_i have the covariance diag(2 a_i² / (2d − 1)), so the trace term is Σ 2 a_i b_i / (2d − 1).
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 1.0, 0.5])
    x, y = (torch.cat([v.diag(), -v.diag()]).double() for v in (a, b))
    assert trace_term.by_svd(x, y) == pytest.approx(float((2 * a * b).sum()) / 5)


def test_a_mir_is_measured_without_and_with_an_interval():
    model, processor = load_miniature()
    batches = capture_overhead.prepared_batches(processor, 16, 16)
    rows = capture_overhead.measure(model, batches, "16 samples, batch 16", rounds=1, threads=1)
    assert [row.what for row in rows] == [
        "capture: MIR without an interval / plain forward pass",
        "capture: MIR with a 95 % interval / plain forward pass",
    ]
    assert [str(row.target) for row in rows] == ["≤ 1.4", "≤ 2.6"] and rows[1].value > rows[0].value > 0
    other = capture_overhead.prepared_batches(processor, 16, 8)
    rows = capture_overhead.measure(model, other, "16 samples, batch 8", rounds=2, threads=1)
    assert all(row.target is None and row.repetitions == 2 for row in rows)
    with pytest.raises(RuntimeError, match="an interval by influences was expected: .*there is no interval"):
        capture_overhead.whole_pass(FAMILIES[0].model(), [FAMILIES[0].inputs()] * 2, 0.95)


def test_whole_mir_of_the_shape_of_llava_runs_on_a_narrow_model():
    config = gpu.SHAPES["tiny"][1]()
    model = gpu.random_model(config, "cpu", torch.float32)
    rows = gpu.whole_mir(model, gpu.random_batches(config, 20, batch_size=10, text_tokens=8), "narrow", 1, threads=1)
    assert [row.what for row in rows] == [*gpu.PARTS, gpu.WHOLE, gpu.WITH_INTERVAL, gpu.AUTHORS]
    value, interval = rows[3:5]
    assert interval.value > value.value > 0 and interval.value > 1  # two passes cannot cost less than one
    assert interval.details["passes"] == 2 and interval.details["interval"] == "influence"
    assert sum(row.value for row in rows[:3]) == pytest.approx(interval.value, rel=0.2)  # what they add up to
    assert rows[5].value > 0 and torch.get_default_dtype() == torch.float32


def test_the_script_for_a_gpu_runs_on_a_cpu():
    """The same code with a tiny shape: what it says there are no results, and no target is met or missed."""
    rows = gpu.measure(1, quick=True, shape="tiny", device="cpu", samples=20)
    measured = {row.what: row for row in rows if row.value is not None}
    assert "trace term on cpu: mirlib / one eigvalsh" in measured
    assert measured["relative error of the trace term: mirlib on cpu"].value < 1e-9
    assert [row.verdict for row in rows if row.value is None] == ["not measured (no GPU)"] * 5
    assert all(row.target is None and "GPU" not in row.what for row in rows)


def test_a_time_that_is_left_is_never_negative():
    assert gpu._difference(Timing(5.0, 3.0), Timing(1.0, 2.0), Timing(1.5, 2.0)) == Timing(2.5, 0.0)


def test_authors_layer_replaces_outliers_and_takes_the_fast_root():
    generator = torch.Generator().manual_seed(0)
    vision, text = (torch.randn(60, 4, generator=generator) for _ in "vt")
    vision[3] *= 1e3
    assert gpu.authors_layer((vision, text))[0] < 10 < 1e3 < frechet_distance(vision, text).total


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_rows_say_so():
    rows = gpu.measure(threads=1)
    assert {row.verdict for row in rows} == {"not measured (no GPU)"}
    named = [(row.what, row.size) for row in rows]
    assert (gpu.WHOLE, "7B shape, 100 samples") in named and (gpu.PEAK, "7B shape, num = 1000") in named
    assert {size for what, size in named if what == gpu.TRACE} == {"d = 2048", "d = 4096"}
    assert "not measured (no GPU)" in format_table(rows)


def test_ratios_pair_the_rounds_and_take_processor_time_for_one_thread():
    slow, fast = [Timing(8.0, 6.0), Timing(9.0, 4.0)], [Timing(2.0, 3.0), Timing(3.0, 1.0)]
    assert ratios(slow, fast, threads=2) == [4.0, 3.0]
    if not torch.cuda.is_available():
        assert ratios(slow, fast, threads=1) == [2.0, 4.0]


def test_verdicts_and_table():
    rows = [
        Measurement.of("fast", "d = 1", [30.0, 20.0, 40.0], target=Target("≥", 25)),
        Measurement.of("slow", "d = 1", [2.0], target=Target("≤", 1.5)),
        Measurement("small", "d = 1", 3e-15, unit=""),
    ]
    assert [row.verdict for row in rows] == ["met", "not met", ""]
    lines = format_table(rows).splitlines()
    assert lines[2].split() == ["fast", "d", "=", "1", "30.00×", "20.00×", "…", "40.00×", "≥", "25", "met"]
    assert lines[3].split()[-5:] == ["2.00×", "≤", "1.5", "not", "met"]
    assert lines[4].split()[-1] == "3.0e-15"


def test_rows_are_kept_with_where_they_were_measured(tmp_path, trace_rows):
    path = tmp_path / "benchmarks.jsonl"
    keep(trace_rows, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["what"] for row in rows] == [row.what for row in trace_rows]
    assert len({row["run"] for row in rows}) == 1 and len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert {"finished", "cores", "processor", "libraries"} <= set(row["provenance"])
        assert {"torch", "numpy", "scipy", "torchmetrics"} <= set(row["provenance"]["libraries"])
        assert math.isfinite(row["value"])


def test_command_line_runs_one_part_and_hides_nothing(capsys):
    table = run(parse(["--only", "gpu", "--quick"]))
    assert len(table) == 4 + 4 + 5
    assert "expect about" in capsys.readouterr().err


def gaussian_pool(samples, seed=0):
    """Rows of samples with different numbers of them, which have a mean of their own."""
    generator = np.random.default_rng(seed)
    layers, ids = [], []
    for modality in range(2):
        number = np.repeat(np.arange(samples), generator.integers(3, 9, samples))
        means = generator.normal(size=(samples, 4))
        layers.append([torch.from_numpy(means[number] + generator.normal(size=(len(number), 4)) + modality)] * 2)
        ids.append(torch.from_numpy(number))
    return coverage.Pool.of(tuple(layers), tuple(ids))


def test_without_a_book_its_rows_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(in_page, "HTML", tmp_path)
    rows = in_page.measure(1)
    assert {row.verdict for row in rows} == {"not measured (no built book: make book)"}


def test_the_model_in_the_page_is_measured_where_the_book_is_built():
    """In a process of its own: two browsers do not share one."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "benchmarks", "--only", "page", "--quick"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()[2:]
    assert [next(name for name in in_page.TARGETS if line.startswith(name)) for line in lines] == list(in_page.TARGETS)
    missing = [line for line in lines if "not measured" in line]
    if missing:
        pytest.skip(f"THE MODEL IN THE PAGE WAS NOT TIMED: {missing[0].split('not measured')[1]}")
    numbers = [float(re.search(r"([0-9.]+) (s|ms)\b", line)[1]) for line in lines]
    assert all(number > 0 for number in numbers[:3]) and numbers[4] > numbers[0]


def test_a_draw_is_measured_as_its_rows_are():
    """A sample that is drawn twice brings its rows twice, and counts as two."""
    pool = gaussian_pool(20)
    chosen = np.array([3, 0, 3, 7, 19, 5, 5, 8])
    found = pool.measure(chosen)
    layers = []
    for side, starts in zip(pool.layers, pool.starts, strict=True):
        layers.append([torch.cat([rows[starts[i] : starts[i + 1]] for i in chosen.tolist()]) for rows in side])
    assert found.value == modality_integration_rate(*layers).value
    assert found.sample_influence.shape == (8,) and len(pool) == 20


def test_coverage_of_known_intervals():
    held = coverage.held(np.array([[0.0, 2.0], [0.5, 0.75], [1.5, 2.5], [1.0, 4.0]]), target=1.0)
    assert held == {
        "coverage": 0.5, "coverage_error": 0.25, "all_below": 0.25, "all_above": 0.25, "mean_half_width": 0.78125,
    }  # fmt: skip


def test_rows_of_coverage_are_made_once(tmp_path, monkeypatch, capsys):
    made = []
    pools = {"qwen2_vl": 0, "miniature": 0, "step 96": 1, "step 128": 2}
    monkeypatch.setattr(
        coverage, "pool_of", lambda model, size: made.append(model) or gaussian_pool(size, pools[model])
    )
    configurations = coverage.configurations(pool=60, draws={"miniature": 5, "qwen2_vl": 4})
    monkeypatch.setattr(coverage, "configurations", lambda: configurations)
    coverage.draws_of.cache_clear()
    for _ in range(2):
        coverage.main(["--output", str(tmp_path / "coverage.jsonl")])
    coverage.draws_of.cache_clear()
    rows = [json.loads(line) for line in (tmp_path / "coverage.jsonl").read_text().splitlines()]
    assert [row["configuration"] for row in rows] == configurations and len(rows) == 8
    assert len(made) == 4 * 2  # a model at each of two sizes
    paired, unpaired = (rows[4]["metrics"][name] for name in ("paired", "unpaired"))
    assert 0 <= paired["coverage"] <= 1 and paired["standard_error"] != unpaired["standard_error"]
    assert "step 128 − step 96" in capsys.readouterr().out
