"""The ledger keeps every finished row, whatever happens around it."""

import json
import multiprocessing
import os
import time
from importlib.metadata import PackagePath
from types import SimpleNamespace

import pytest

from mirlab import ledger as ledger_module
from mirlab.ledger import CEILINGS, Ledger, key_of, provenance, shipped
from mirlib import MirlibError


def test_a_row_comes_back(tmp_path):
    ledger = Ledger(tmp_path / "results" / "x.jsonl")
    assert ledger.rows() == []
    assert ledger.append({"key": "a", "value": 1.5})
    assert ledger.append({"key": "b", "value": None})
    assert ledger.rows() == [{"key": "a", "value": 1.5}, {"key": "b", "value": None}]
    assert ledger.find("b") == {"key": "b", "value": None}
    assert ledger.find("c") is None


@pytest.mark.parametrize("place", ["site/share/mirlab/results", "share/mirlab/results"])
def test_an_installed_package_finds_the_ledger_that_came_with_it(tmp_path, monkeypatch, place):
    """The first as `pip install --target` leaves it, the second as the installer says in its record."""
    package, folder = tmp_path / "site" / "mirlab" / "ledger.py", tmp_path / place
    monkeypatch.setattr(ledger_module, "__file__", str(package))
    recorded = PackagePath("../" + f"{place}/{CEILINGS}")
    recorded.dist = SimpleNamespace(locate_file=lambda path: tmp_path / "site" / path)
    monkeypatch.setattr(ledger_module, "files", lambda _: [recorded])
    with pytest.raises(MirlibError, match="without its ledger"):
        shipped()
    folder.mkdir(parents=True)
    (folder / CEILINGS).write_text("{}")
    assert shipped() == folder


def test_a_row_is_kept_once(tmp_path):
    ledger = Ledger(tmp_path / "x.jsonl")
    assert ledger.append({"key": "a", "value": 1})
    assert not ledger.append({"key": "a", "value": 2})
    assert ledger.rows() == [{"key": "a", "value": 1}]


def test_a_torn_last_line_is_passed_over_and_mended(tmp_path):
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.append({"key": "a"})
    with open(ledger.path, "ab") as file:
        file.write(b'{"key": "b", "val')  # killed here
    assert ledger.rows() == [{"key": "a"}]
    assert ledger.append({"key": "b"})
    assert ledger.path.read_text() == '{"key": "a"}\n{"key": "b"}\n'


def test_a_file_that_is_only_a_torn_line_is_mended(tmp_path):
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.path.write_bytes(b'{"ke')
    assert ledger.rows() == []
    ledger.append({"key": "a"})
    assert ledger.rows() == [{"key": "a"}]


def test_a_damaged_line_in_the_middle_is_reported(tmp_path):
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.path.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: not a row"):
        ledger.rows()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1, 2]", "it is no object with a key"),
        (b'{"value": 1}', "it is no object with a key"),
        (b'{"key": ["a"]}', "it is no object with a key"),
        (b'{"key": "x", "value": NaN}', "NaN is no number of JSON"),
        (b'{"key": "x", "value": ' + b"9" * 5000 + b"}", "not a row of the ledger (Exceeds the limit"),
        (b"[" * 100_000, "not a row of the ledger ("),
        (b'{"key": "\xff"}', "not a row of the ledger ("),
        (b'{"key": "a", "value": 2}', "the key a stands in line 1, too, with another row"),
        (b'{"key": "x", "configuration": {"seed": 1}}', "the key x is not that of the row's configuration"),
        (b'{"key": "x", "configuration": null}', "the key x is not that of the row's configuration"),
    ],
)
def test_a_damaged_line_is_named(line, message, tmp_path):
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.append({"key": "a", "value": 1})
    with open(ledger.path, "ab") as file:
        file.write(line + b"\n")
    before = ledger.path.read_bytes()
    for use in (ledger.rows, lambda: ledger.find("a"), lambda: ledger.append({"key": "b"})):
        with pytest.raises(MirlibError) as caught:
            use()
        assert str(caught.value).startswith(f"{ledger.path}, line 2: ") and message in str(caught.value)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert ledger.path.read_bytes() == before


def test_a_row_that_stands_there_twice_counts_once(tmp_path):
    configuration = {"seed": 3, "rate": 0.1}
    row = {"key": key_of(configuration), "configuration": configuration, "value": 1}
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.append({"key": "a"})
    ledger.append(row)
    with open(ledger.path, "a") as file:
        file.write(json.dumps(dict(reversed(row.items()))) + "\n")  # as a merge of two files leaves it
    with pytest.warns(UserWarning, match=r"x\.jsonl, line 3: the same row as line 2, which is counted once"):
        assert ledger.rows() == [{"key": "a"}, row]


@pytest.mark.parametrize("row", [{"value": 1}, {"key": "a", "value": float("nan")}, {"key": "a", "value": object()}])
def test_a_bad_row_leaves_the_file_alone(tmp_path, row):
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.append({"key": "first"})
    with pytest.raises((ValueError, TypeError)):
        ledger.append(row)
    assert ledger.rows() == [{"key": "first"}]


def _write(path, who, barrier):
    barrier.wait()
    for i in range(60):
        Ledger(path).append({"key": f"{who}-{i}", "filling": "x" * 5000})
        Ledger(path).append({"key": f"both-{i}"})


def test_two_processes_lose_no_row_and_write_none_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write, args=(tmp_path / "x.jsonl", who, barrier)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    keys = [json.loads(line)["key"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert sorted(keys) == sorted(f"{who}-{i}" for who in ("a", "b", "both") for i in range(60))


def _append_slowly(folder):
    write = os.write

    def slow(descriptor, line):  # between the look at what is there and the row
        (folder / "writing").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return write(descriptor, line)

    os.write = slow  # of this process alone, which is a fork
    Ledger(folder / "x.jsonl").append({"key": "both", "from": "slow"})


def _append(folder):
    Ledger(folder / "x.jsonl").append({"key": "both", "from": "quick"})


def test_a_second_writer_waits_until_the_first_has_written(tmp_path):
    context = multiprocessing.get_context("fork")
    slow, quick = (context.Process(target=target, args=(tmp_path,)) for target in (_append_slowly, _append))
    slow.start()
    while not (tmp_path / "writing").exists():
        assert slow.is_alive()
        time.sleep(0.005)
    quick.start()
    quick.join(2)
    waited = quick.is_alive()
    (tmp_path / "go").touch()
    slow.join()
    quick.join()
    assert waited
    assert Ledger(tmp_path / "x.jsonl").rows() == [{"key": "both", "from": "slow"}]


def test_a_key_depends_on_the_configuration_and_not_on_its_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_provenance_names_versions_and_no_path():
    made = provenance()
    assert {"finished", "python", "libraries", "processor", "cores", "commit"} <= set(made)
    assert {"torch", "transformers", "numpy"} <= set(made["libraries"])
    json.dumps(made)
