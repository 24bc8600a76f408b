"""Sweeps: killed, shared between processes, spread over workers; in the end every row is there, once."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import fake_runs
import pytest
from fake_runs import ARM, EXPERIMENT, arms, gated, metrics, noted, open_gates, settings, wait_until
from joblib import parallel

from mirlab import commands, ledger, recipes, sweep
from mirlab.experiments import EXPERIMENTS
from mirlib import cli
from mirlib.errors import MirlibError


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def run_sweep(results, cache, count=6, *, experiment=EXPERIMENT, arm=ARM, execute=fake_runs.execute, jobs=1, **options):
    return sweep.sweep(experiment, arms(count, arm), results, cache, jobs=jobs, execute=execute, **options)


def written(results, experiment=EXPERIMENT):
    """The rows of the file, by no code under test."""
    path = results / f"{experiment}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_complete(results, count, experiment=EXPERIMENT):
    """Every run has its row, once, with the metrics that a sweep has which nothing disturbed."""
    found = {row["key"]: row["metrics"] for row in written(results, experiment)}
    expected = {ledger.key_of(run.configuration): metrics(run) for run in settings(count)}
    assert found == expected
    assert len(written(results, experiment)) == count


class Process:
    """A sweep of gated runs in another process, forked: it has all its modules already."""

    def __init__(self, results, cache, count, **options):
        arguments = {"execute": gated, "jobs": 1, "progress": False, **options}
        self._process = multiprocessing.get_context("fork").Process(
            target=run_sweep, args=(results, cache, count), kwargs=arguments
        )

    def __enter__(self):
        self._process.start()
        return self

    def kill(self):
        self._process.kill()
        self._process.join()

    def finish(self):
        self._process.join(120)
        assert self._process.exitcode == 0

    def __exit__(self, *_):
        self.kill()


# One process


def test_rows_come_back_in_the_order_of_the_runs_with_all_that_a_row_needs(results, cache):
    wanted = settings(4)
    in_order = sorted(wanted, key=lambda run: (run.parts, -run.cost))
    rows = run_sweep(results, cache, 4, progress=False)
    assert [row["configuration"]["seed"] for row in rows] == [0, 1, 2, 3]
    assert noted(cache, "finished") == [run.seed for run in in_order]
    assert rows == written(results)
    for row, run in zip(rows, wanted, strict=True):
        assert row["key"] == ledger.key_of(row["configuration"])
        assert row["configuration"] == run.configuration
        assert (row["experiment"], row["arm"]) == (EXPERIMENT, ARM)
        assert {"metrics", "seconds", "parts", "provenance"} <= set(row)
        assert {"commit", "libraries", "processor", "finished"} <= set(row["provenance"])


def test_sets_of_parts_come_one_after_the_other_and_of_each_the_dearest_run_first(results, cache):
    cheap, other = settings(1)[0], recipes.arm(pairs=16_384)[5]
    dear = replace(other, seed=4, parts=cheap.parts)
    assert other.cost == dear.cost > cheap.cost and other.parts > cheap.parts
    both = {"cheap": [cheap], "dear": [other, dear]}
    rows = sweep.sweep(EXPERIMENT, both, results, cache, jobs=1, progress=False, execute=fake_runs.execute)
    assert noted(cache, "started") == [4, 0, 5]
    assert [(row["arm"], row["configuration"]["seed"]) for row in rows] == [("cheap", 0), ("dear", 5), ("dear", 4)]


def test_a_finished_sweep_does_nothing_more(results, cache):
    first = run_sweep(results, cache, progress=False)
    before = (results / f"{EXPERIMENT}.jsonl").read_bytes()
    assert run_sweep(results, cache, progress=False) == first
    assert noted(cache, "started") == list(range(6))
    assert (results / f"{EXPERIMENT}.jsonl").read_bytes() == before


def test_new_runs_are_added_to_those_that_are_there(results, cache):
    run_sweep(results, cache, 2, progress=False)
    run_sweep(results, cache, 5, progress=False)
    assert noted(cache, "started") == list(range(5))
    assert_complete(results, 5)


def test_a_run_that_fails_is_told_and_takes_no_finished_row_with_it(results, cache):
    with pytest.raises(ArithmeticError, match="cannot be done"):
        run_sweep(results, cache, execute=fake_runs.failing, progress=False)
    assert [row["configuration"]["seed"] for row in written(results)] == [0, 1]
    run_sweep(results, cache, progress=False)
    assert_complete(results, 6)
    assert noted(cache, "finished") == list(range(6))


# Killed


def lasting(rows):
    """What must be the same in a sweep that was disturbed and in one that was not."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "provenance", "process")} for row in rows]


def undisturbed(folder, count):
    (folder / "quiet").mkdir()
    return lasting(run_sweep(folder / "calm", folder / "quiet", count, progress=False))


def die_while_writing(results, cache, after):
    """A sweep whose process is killed, by its own hand, when half of a row is on the disk and the lock is held."""
    written, write = [], os.write

    def half(descriptor, line):
        if line.startswith(b'{"key"'):
            written.append(line)
        if len(written) > after:
            write(descriptor, line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, line)

    os.write = half  # of this process alone, which is a fork
    run_sweep(results, cache, 6, progress=False)


@pytest.mark.parametrize("after", [0, 2])
def test_a_sweep_killed_in_the_middle_of_writing_a_row_ends_as_one_that_was_not(results, cache, tmp_path, after):
    dying = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(results, cache, after))
    dying.start()
    dying.join(120)
    assert dying.exitcode == -signal.SIGKILL
    left = (results / f"{EXPERIMENT}.jsonl").read_bytes()
    assert left.count(b"\n") == after and not left.endswith(b"\n")  # half a row is really there
    assert noted(cache, "started") == list(range(after + 1))

    assert lasting(run_sweep(results, cache, 6, progress=False)) == undisturbed(tmp_path, 6)
    assert_complete(results, 6)
    assert noted(cache, "started") == [*range(after + 1), *range(after, 6)]  # the half row's run again, no other


def start_group(results, cache, *, jobs, count):
    """A sweep in a process group of its own, started as a user starts it."""
    here, root = Path(__file__).parent, Path(sweep.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "fake_runs.py"), str(results), str(cache), str(jobs), str(count)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def test_a_sweep_killed_in_the_middle_of_its_rows_ends_as_one_that_was_not(results, cache, tmp_path):
    group = start_group(results, cache, jobs=2, count=6)
    try:
        open_gates(cache, [0, 1])
        # Two rows are written, and two workers are in the middle of one each.
        wait_until(lambda: set(noted(cache, "started")) == {0, 1, 2, 3} and len(written(results)) == 2)
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()
    assert noted(cache, "finished") in ([0, 1], [1, 0])
    assert len(written(results)) == 2

    open_gates(cache, range(6))
    resumed = run_sweep(results, cache, execute=gated, progress=False)
    assert lasting(resumed) == undisturbed(tmp_path, 6)
    assert_complete(results, 6)
    finished = noted(cache, "finished")
    assert sorted(finished) == list(range(6))  # what was done is not done again
    assert sorted(finished[2:]) == [2, 3, 4, 5]


# Two at once


def test_two_processes_share_the_runs_and_do_each_once(results, cache, tmp_path):
    count = 8
    with Process(results, cache, count) as one, Process(results, cache, count) as other:
        wait_until(lambda: len(noted(cache, "started")) == 2)  # both are at a run, and none is done
        open_gates(cache, range(count))
        one.finish()
        other.finish()
    assert_complete(results, count)
    assert sorted(noted(cache, "started")) == list(range(count))
    assert len({row["process"] for row in written(results)}) == 2
    assert sorted(lasting(written(results)), key=str) == sorted(undisturbed(tmp_path, count), key=str)


def test_a_run_whose_process_dies_is_done_by_the_other(results, cache):
    with Process(results, cache, 3) as dying:
        wait_until(lambda: noted(cache, "started") == [0])
        open_gates(cache, [1, 2])
        with Process(results, cache, 3) as other:
            wait_until(lambda: len(written(results)) == 2)  # all but the run that is not its own
            assert sorted(noted(cache, "started")) == [0, 1, 2]
            dying.kill()
            wait_until(lambda: noted(cache, "started").count(0) == 2)
            open_gates(cache, [0])
            other.finish()
    assert_complete(results, 3)
    assert sorted(noted(cache, "finished")) == [0, 1, 2]


def test_a_run_that_another_process_is_at_is_awaited_and_not_repeated(results, cache):
    with Process(results, cache, 3) as slow:
        wait_until(lambda: noted(cache, "started") == [0])
        open_gates(cache, [1, 2])
        with Process(results, cache, 3) as other:
            wait_until(lambda: len(written(results)) == 2)
            open_gates(cache, [0])
            slow.finish()
            other.finish()
    assert_complete(results, 3)
    assert sorted(noted(cache, "started")) == [0, 1, 2]


# Rows of other experiments


def test_a_run_that_another_experiment_has_done_is_copied_with_the_arm_that_it_has_here(results, cache):
    done = run_sweep(results, cache, 3, experiment="connectors", arm="mlp2", progress=False)
    rows = run_sweep(results, cache, 5, experiment="captions", arm="full", progress=False)
    assert noted(cache, "started") == list(range(5))  # three for the first, two more for the second
    assert [row.get("copied_from") for row in rows] == ["connectors"] * 3 + [None] * 2
    for row, source in zip(rows, done, strict=False):
        assert row == {**source, "experiment": "captions", "arm": "full", "copied_from": "connectors"}
    assert {row["arm"] for row in rows} == {"full"}
    assert written(results, "connectors") == done  # as they were
    assert_complete(results, 5, "captions")


def test_a_copy_of_a_copy_names_who_made_it_and_a_second_sweep_adds_nothing(results, cache):
    for experiment in ("connectors", "captions", "aaa", "captions", "connectors"):
        run_sweep(results, cache, 3, experiment=experiment, progress=False)
    assert noted(cache, "started") == [0, 1, 2]
    for experiment in ("captions", "aaa"):
        assert_complete(results, 3, experiment)
        assert {row["copied_from"] for row in written(results, experiment)} == {"connectors"}


def test_a_run_that_another_experiment_is_at_is_awaited_and_copied(results, cache):
    with Process(results, cache, 1) as slow:
        wait_until(lambda: noted(cache, "started") == [0])
        with Process(results, cache, 1, experiment="captions", arm="full") as other:
            time.sleep(0.3)
            open_gates(cache, [0])
            slow.finish()
            other.finish()
    assert noted(cache, "started") == [0]
    (copied,) = written(results, "captions")
    assert (copied["arm"], copied["copied_from"]) == ("full", EXPERIMENT)


def test_rows_of_ledgers_that_are_no_sweeps_are_left_alone(results, cache):
    results.mkdir()
    key = ledger.key_of(settings(1)[0].configuration)
    ledger.Ledger(results / "benchmarks.jsonl").append({"key": key, "speed": 3})
    (results / "notes.jsonl").write_text("no ledger at all\n")
    run_sweep(results, cache, 1, progress=False)
    assert noted(cache, "started") == [0]
    assert "copied_from" not in written(results)[0]


# What cannot be done


def test_an_experiment_must_not_name_one_run_twice(results, cache):
    twice = {"first": settings(2), "second": settings(1)}
    with pytest.raises(
        MirlibError, match="data_scale has one run twice, in 'first' and 'second': an arm must not repeat"
    ):
        sweep.sweep(EXPERIMENT, twice, results, cache, execute=fake_runs.execute)
    assert noted(cache, "started") == []


def test_a_method_that_there_is_not_is_refused_before_anything_is_run(results, cache):
    wrong = {"plain": settings(1), "wrong": recipes.arm(pairs=32, method=recipes.Method("mocca"))}
    with pytest.raises(MirlibError, match="no method is called 'mocca'"):
        sweep.sweep(EXPERIMENT, wrong, results, cache, execute=fake_runs.execute)
    assert noted(cache, "started") == []


# Workers


def test_two_workers_of_loky_do_every_run_once(results, cache):
    rows = run_sweep(results, cache, 6, jobs=2, progress=False)
    assert_complete(results, 6)
    assert sorted(noted(cache, "started")) == list(range(6))
    assert os.getpid() not in {row["process"] for row in rows}


def test_the_backend_is_handed_to_joblib(results, cache):
    threads = set()

    def in_a_thread(run, cache):
        threads.add(threading.get_ident())  # which only a thread of this process can do
        return fake_runs.execute(run, cache)

    rows = run_sweep(results, cache, 6, jobs=2, backend="threading", execute=in_a_thread, progress=False)
    assert {row["process"] for row in rows} == {os.getpid()}
    assert threads and threading.get_ident() not in threads
    assert_complete(results, 6)


def test_a_backend_that_someone_registers_carries_the_runs(results, cache):
    handed_over = []

    class Cluster(parallel.ThreadingBackend):
        """Stands for the backends that dask and ray register."""

        def submit(self, *arguments, **options):
            handed_over.append(arguments)
            return super().submit(*arguments, **options)

    parallel.register_parallel_backend("a cluster", Cluster)
    try:
        run_sweep(results, cache, 4, jobs=2, backend="a cluster", progress=False)
    finally:
        del parallel.BACKENDS["a cluster"]
    assert len(handed_over) == 4
    assert_complete(results, 4)


def test_a_backend_that_hands_everything_over_in_the_end_will_do(results, cache):
    rows = run_sweep(results, cache, 4, jobs=2, backend="multiprocessing", progress=False)  # as that of ray does
    assert os.getpid() not in {row["process"] for row in rows}
    assert_complete(results, 4)


def without(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # so that it cannot be imported, installed or not


@pytest.mark.parametrize("backend, package", [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_whose_package_is_missing_says_what_to_install(results, cache, monkeypatch, backend, package):
    without(monkeypatch, "dask", "distributed", "ray")
    with pytest.raises(MirlibError, match=f"the backend {backend} needs a package more: pip install {package}$"):
        run_sweep(results, cache, 2, backend=backend, progress=False)
    assert noted(cache, "started") == []


def test_the_command_says_in_one_sentence_what_to_install(results, cache, monkeypatch, capsys):
    without(monkeypatch, "dask", "distributed")
    monkeypatch.setenv("MIRLIB_CACHE", str(cache))
    command = ["lab", "run", EXPERIMENT, "--results", str(results), "--backend", "dask", "--no-progress"]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mir: the backend dask needs a package more: pip install distributed\n")


def test_a_cluster_is_not_asked_for_when_nothing_is_to_do(results, cache, monkeypatch):
    without(monkeypatch, "dask", "distributed")
    first = run_sweep(results, cache, 2, progress=False)
    assert run_sweep(results, cache, 2, backend="dask", progress=False) == first


def test_an_unknown_backend_is_refused_and_the_known_ones_are_named(results, cache):
    with pytest.raises(MirlibError, match="no backend is called 'cloud'; there is dask, loky, .*ray, .*threading"):
        run_sweep(results, cache, 2, backend="cloud", progress=False)


def test_runs_go_to_the_workers_of_dask(results, cache):
    pytest.importorskip("distributed", reason="dask is not installed")
    rows = run_sweep(results, cache, 4, jobs=2, backend="dask", progress=False)
    assert os.getpid() not in {row["process"] for row in rows}
    assert_complete(results, 4)


def test_an_experiment_hands_jobs_and_backend_on(results, cache, monkeypatch):
    handed_over = {}

    def kept(name, arms, results_dir, cache, **options):
        handed_over.update(options, name=name, arms=arms, results_dir=results_dir, cache=cache)
        return []

    monkeypatch.setattr(sweep, "sweep", kept)
    commands.run(EXPERIMENT, results_dir=results, cache_dir=cache, jobs=3, backend="dask", progress=False)
    assert handed_over == {
        "name": EXPERIMENT, "arms": EXPERIMENTS[EXPERIMENT].arms, "results_dir": results, "cache": cache,
        "jobs": 3, "backend": "dask", "progress": False,
    }  # fmt: skip


# What it says


def test_progress_goes_to_stderr_with_the_time_left(results, cache, capfd):
    run_sweep(results, cache, 4)
    said = capfd.readouterr()
    assert said.out == ""
    assert f"{EXPERIMENT}: 4 of 4 runs to do" in said.err
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", said.err)
    assert "4 rows" in said.err
    assert "100%" in said.err


def test_what_is_done_already_is_not_counted_as_to_do(results, cache, capfd):
    run_sweep(results, cache, 3, progress=False)
    capfd.readouterr()
    run_sweep(results, cache, 5)
    assert "2 of 5 runs to do" in capfd.readouterr().err


def test_no_progress_is_no_output(results, cache, capfd):
    run_sweep(results, cache, 4, progress=False)
    run_sweep(results, cache, 4, progress=False)
    assert capfd.readouterr() == ("", "")
