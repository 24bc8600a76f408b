"""Several processes, each with its own share of the samples, find what one process finds."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import crew
import pytest
import torch.multiprocessing
from command import mir, refused
from streams import SAMPLES, agree, measure, same_interval, worker

from mirlib import MirlibError
from mirlib.distributed import Processes, processes_of_launcher

ALL = range(2 * SAMPLES)
FORTY = range(40)
INTERVAL = {"confidence": 0.95}
FEW_ROWS = {"confidence": 0.95, "dim": 80}  # 144 rows: no interval
CASES = {
    1: {
        "influence": ((ALL,), INTERVAL),
        "few rows": ((ALL,), FEW_ROWS),
        "value": ((ALL,), {}),
    },
    2: {
        "two halves": ((ALL[:12], ALL[12:]), INTERVAL),
        "two halves, few rows": ((ALL[:12], ALL[12:]), FEW_ROWS),
        "two halves, value alone": ((ALL[:12], ALL[12:]), {}),
        "two unequal shares, no outlier rule": ((ALL[:5], ALL[5:]), {"outliers": "none", **INTERVAL}),
        "one process without samples": ((ALL, ALL[:0]), INTERVAL),
        "every other sample, not normalised": ((ALL[::2], ALL[1::2]), {"normalize": False, **INTERVAL}),
        "a repair in one process": ((FORTY[:20], FORTY[20:]), {"make": "narrowing", **INTERVAL}),
        "a repair, value alone": ((FORTY[:20], FORTY[20:]), {"make": "narrowing"}),
        "alone all the same": ((ALL, ALL), {"sync_on_compute": False, **INTERVAL}),
    },
    3: {
        "three unequal shares": ((ALL[:1], ALL[1:15], ALL[15:]), INTERVAL),
        "three unequal shares, value alone": ((ALL[:1], ALL[1:15], ALL[15:]), {}),
    },
}


@pytest.fixture(scope="module", params=list(CASES), ids=lambda n: f"{n} processes")
def found(request, tmp_path_factory):
    """``(case, what each process found)`` of all cases with this number of processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cases = CASES[request.param]
    crew.preload()
    torch.multiprocessing.start_processes(
        worker,
        (port, list(cases.values()), str(folder)),
        nprocs=request.param,
        start_method="forkserver",
    )
    ranks = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(request.param)]
    return list(zip(cases, cases.values(), zip(*ranks, strict=True), strict=True))


def test_processes_find_what_one_process_finds(found):
    for name, (shares, options), ranks in found:
        together = options.get("sync_on_compute", True)
        order = [number for share in shares for number in share] if together else list(shares[0])
        alone = measure(sorted(order), 4, **options).result()
        if options.get("outliers") != "none":
            assert alone.outliers["vision"].sum() > 0, "no outliers: the shared bounds are not tested"
        expected = "influence" if "confidence" in options and "dim" not in options else None
        assert (alone.interval and alone.interval.method) == expected, name
        for computed, result, again, kept in ranks:
            agree(result, alone, rel=1e-9)
            assert computed == result.value, name
            same_interval(result, alone, order=order)
            assert result.passes == (1 if expected is None else 2) + ("narrowing" in options.values()), name
            agree(again, result, rel=1e-15)
            same_interval(again, result)
            assert kept, f"{name}: a process kept the sums of the others, so that they would count twice"


def test_a_process_alone_would_have_found_something_else(found):
    """Without this the test above could pass on shares that are all alike."""
    for name, (shares, options), ranks in found:
        part = measure(shares[-1] if 0 < len(shares[-1]) < 24 else ALL[:12], 4, **options).result()
        assert abs(part.value - ranks[0][1].value) > 1e-4, name


# ---------------------------------------------------------------------------------------------------------------------
# Samples shared out: score, score_batches and the command

# Each case and the one whose result in a single process it must have.
SAME = {
    "whole": "whole",
    "influences": "influences",
    "value_alone": "value_alone",
    "fewer_pairs_than_processes": "fewer_pairs_than_processes",
    "no_outlier_rule_not_normalised": "no_outlier_rule_not_normalised",
    "batches_of_ones_own": "batches_of_ones_own",
    "data_parallel": "whole",
    "sharded_1": "influences",
    "sharded_2": "influences",
}
FAILING = (
    "unreadable", "not_finite", "exception_in_one", "all_alike", "authors", "sharded_and_not_finite",
    "sharded_and_unreadable", "maps_fail_in_one",
)  # fmt: skip
CREWS = {
    2: (*SAME, "unreadable_left_out", "alone", "command", "stopping_early", *FAILING),
    4: (
        "whole",
        "influences",
        "fewer_pairs_than_processes",
        "sharded_2",
        "unreadable_left_out",
        "not_finite",
        "maps_fail_in_one",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    crew.write_images(folder)
    return folder


@pytest.fixture(scope="module")
def crews(folder):
    """``{size: {case: [what rank 0 found, …]}}``"""
    return {size: crew.run(size, cases, folder) for size, cases in CREWS.items()}


@pytest.fixture(scope="module")
def alone(folder):
    return {case: getattr(crew, case)(0, 1, folder) for case in {*SAME.values(), "unreadable_left_out"}}


def same(found, alone):
    """A process has the result of one process: value, layers, interval, influences, samples, rows and settings."""
    agree(found, alone, rel=1e-9)
    assert alone.interval is None or alone.interval.standard_error > 0
    same_interval(found, alone)
    assert [sample[1:] for sample in found.samples] == [sample[1:] for sample in alone.samples]
    assert found.warnings == alone.warnings and found.passes == alone.passes
    assert found.length == pytest.approx(alone.length, rel=1e-9)
    settings, others = dict(found.settings), dict(alone.settings)
    for those in (settings, others):
        those.pop("set_aside", None)  # what waits for the end depends on who saw which rows first
    assert settings.pop("processes") > 1 and settings == others


@pytest.mark.parametrize(
    ("size", "case"), [(size, case) for size, cases in CREWS.items() for case in cases if case in SAME]
)
def test_shares_give_the_result_of_one_process(size, case, crews, alone):
    found = crews[size][case]
    assert len(found) == size and not any(isinstance(of, str) for of in found), found
    for of in found:
        if case.startswith("sharded"):
            of, few = of
            assert few.rows == {"vision": 4, "text": few.rows["text"]} and few.settings["samples"] == 1
        same(of, alone[SAME[case]])
        method = "influence" if SAME[case] == "influences" else None
        assert case == "batches_of_ones_own" or (of.interval and of.interval.method) == method


@pytest.mark.parametrize("size", CREWS)
def test_what_cannot_be_read_is_left_out_as_in_one_process(size, crews, alone):
    expected, said = alone["unreadable_left_out"]
    assert len(said) == 2 and "03.png" in " ".join(said) and "07.png" in " ".join(said)
    for found, sentences in crews[size]["unreadable_left_out"]:
        same(found, expected)
        assert sentences == said, "every process is told of all of them, in the order in which they were drawn"


def test_one_process_may_measure_by_itself(crews, alone):
    found, other = crews[2]["alone"]
    assert other is None and found.value == pytest.approx(alone["whole"].value, rel=1e-12)
    assert "processes" not in found.settings


MESSAGES = {
    "unreadable": r"cannot read the image .*0[37]\.png: image file is truncated",
    "not_finite": r"layer 1, vision row 0 of sample 2 \(broken\.png\): the hidden state holds NaN",
    "exception_in_one": "the disk is gone",
    "sharded_and_not_finite": "layer 1, vision row 0 of sample 2: the hidden state holds NaN",
    "sharded_and_unreadable": "the disk is gone",
    "maps_fail_in_one": "the maps are gone",
}


@pytest.mark.parametrize(("size", "case"), [(size, case) for size in CREWS for case in MESSAGES if case in CREWS[size]])
def test_one_failure_ends_all_and_all_know_where_it_was_and_why(size, case, crews):
    found = crews[size][case]
    assert len(found) == size and None not in found, "a process did not notice"
    kinds, messages, seconds = zip(*found, strict=True)
    own = [kind for kind in kinds if kind != "ProcessFailedError"]
    assert len(own) == 1, "one process has the error itself, the others are told of it"
    assert own[0] == ("RuntimeError" if "gone" in MESSAGES[case] else "MirlibError")
    where = f"rank {kinds.index(own[0])} of {size}"
    for message in messages:
        assert where in message and re.search(MESSAGES[case], message)
    assert max(seconds) < 30


@pytest.mark.parametrize(
    ("case", "message"), [("all_alike", "99 images were asked for"), ("authors", "preset 'authors'")]
)
def test_what_is_wrong_in_all_processes_names_none(case, message, crews):
    for kind, found, _ in crews[2][case]:
        assert kind == "MirlibError" and found.startswith(message)


def test_the_others_stop_at_once_and_not_at_the_end_of_their_pass(crews):
    (kind, message, _, taken), (own, _, _, tried) = crews[2]["stopping_early"]
    assert (kind, own) == ("ProcessFailedError", "MirlibError") and "rank 1 of 2: input_ids must be" in message
    assert tried == 1 and 0 < taken < 200


def test_the_command_prints_and_writes_in_the_first_process_alone(crews, folder):
    (codes, out, err), (other_codes, other_out, other_err) = crews[2]["command"]
    assert codes == other_codes == (0, 2, 2)
    assert (other_out, other_err) == ("", "") and out.count("MIR of the miniature LLaVA") == 1
    assert json.loads((folder / "2.json").read_text())["settings"]["processes"] == 2
    assert err.count("nowhere") == err.count("cannot read the image") == 1
    assert "mir: no such file or folder: " in err, "what is wrong everywhere is said once, and names no process"
    assert re.search(r"mir: rank 0 of 2: cannot read the image .*0[37]\.png", err)


def test_a_process_that_is_killed_is_named_by_those_that_are_left(folder, tmp_path):
    ((kind, message, seconds),) = crew.run(2, ("killed",), tmp_path, allow_death=True)["killed"]
    assert kind == "ProcessFailedError" and message.startswith("rank 1 of 2 ended without a word: it was killed")
    assert seconds < 30


def test_processes_that_a_launcher_names(monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes_of_launcher() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MirlibError, match="RANK=None; start the processes with torchrun, or unset WORLD_SIZE"):
        processes_of_launcher()
    assert "start the processes with torchrun, or unset WORLD_SIZE" in refused(capsys, "score")
    assert mir(capsys, "lab", "list").code == 0, "what one process does anyway does not care"
    monkeypatch.setenv("RANK", "2")
    assert processes_of_launcher() == (2, 3)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(MirlibError, match="RANK=3"):
        processes_of_launcher()


def test_shares_are_neighbours_and_leave_nothing_out():
    for size in (1, 2, 3, 7):
        for items in (0, 1, 6, 7, 100):
            shares = [Processes.share(type("Of", (), {"rank": rank, "size": size}), items) for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(items))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Launchers

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
# The second process dies at its first batch, as one does that the system kills for want of memory.
DEADLY = """
    import os, signal, sys
    from mirlib import batches
    from mirlib.cli import main

    if os.environ["RANK"] == "1":
        batches.encode_batch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(main(sys.argv[1:]))
"""


def launch(*arguments):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    began = time.monotonic()
    found = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, timeout=500,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return found, time.monotonic() - began


def test_torchrun(tmp_path):
    from mirlib import MIRResult
    from mirlib.cli import main

    arguments = ("score", "-n", "3", "--max-text-tokens", "8", "--dtype", "float64", "--no-progress", "--json")
    found, _ = launch(*TORCHRUN, "-m", "mirlib", *arguments, "-")
    assert found.returncode == 0, found.stderr
    assert main([*arguments, str(tmp_path / "one.json")]) == 0
    one = MIRResult.from_dict(json.loads((tmp_path / "one.json").read_text()))
    same(MIRResult.from_dict(json.loads(found.stdout)), one)


def test_a_killed_process_ends_a_launched_run(tmp_path):
    """Under ``accelerate launch``, which starts the processes as torchrun does."""
    script = tmp_path / "deadly.py"
    script.write_text(textwrap.dedent(DEADLY))
    accelerate = Path(sys.executable).with_name("accelerate")
    assert accelerate.exists() or shutil.which("accelerate")
    found, _ = launch(
        accelerate, "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", script, "score", "-n", "4", "--device", "cpu",
    )  # fmt: skip
    assert found.returncode != 0 and found.stdout == ""
    assert "SIGKILL" in found.stderr or "rank 1 of 2 ended without a word" in found.stderr
