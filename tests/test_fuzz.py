"""The fuzzer: nothing that reads files ends in anything but a result or a sentence, and it would notice if it did."""

import time

import pytest

from benchmarks import fuzz
from mirlib import MirlibError

INPUTS = {"pictures": 20, "lab show": 1, "checkpoints": 0}


@pytest.mark.parametrize("name", [name for name in fuzz.SURFACES if INPUTS.get(name, 1)])
def test_a_few_inputs_of_every_surface(name, tmp_path, one_thread):
    found = fuzz.fuzz(name, INPUTS.get(name, 20), seed=1, keep=tmp_path, progress=False)
    assert found.failures == {} and found.outcomes.total() == INPUTS.get(name, 20)
    assert set(found.outcomes) <= {"refused", "accepted"}
    assert name == "lab show" or found.outcomes["refused"] > 2, "what was broken was read"


def end(path):
    raise SystemExit


def fail(path):
    raise KeyError("a foreign error")


def claim(path):
    bytearray(1 << 40)


def claim_quietly(path):
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise MirlibError("too large") from error


def kill(path):
    import os

    os._exit(1)


def shout(path):
    raise MirlibError("one line\nand another")


def say_nothing(path):
    raise MirlibError("")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (fail, "tracebacks"),
        (end, "tracebacks"),
        (shout, "tracebacks"),
        (say_nothing, "tracebacks"),
        (kill, "tracebacks"),
        (claim, "over memory"),
        (claim_quietly, "over memory"),
        (lambda path: time.sleep(9), "hangs"),
    ],
)
def test_failures_are_counted_and_kept(read, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 0.2)
    monkeypatch.setitem(fuzz.SURFACES, "texts", fuzz.Surface(1, fuzz._text, read))
    found = fuzz.fuzz("texts", 2, seed=3, keep=tmp_path, progress=False)
    assert found.outcomes == {outcome: 2} and sum(map(len, found.failures.values())) == 2
    if read is not kill:  # the process that keeps the inputs is gone
        kept = tmp_path / "texts-3-1"
        assert (kept / "traceback.txt").stat().st_size and len(list(kept.iterdir())) == 2
