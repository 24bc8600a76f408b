"""Which model families mirlib measures: run them all on tiny random models, and write the table of the book.

python tools/families.py            write the table in book/families.md from results/families.jsonl
python tools/families.py --run      measure every family first, about three minutes, and write the ledger; this needs
                                    the packages of the extra [families]
python tools/families.py --try NAME...  measure some families and print what comes out; nothing is written
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results" / "families.jsonl"
PAGE = ROOT / "book" / "families.md"
BEGIN = "<!-- The rest of this page is written by: python tools/families.py -->"
SECONDS = 120  # longer than any family takes by far

REST = {
    "undefined": "for {} MIR is undefined",
    "package": "{} need a package that was not installed",
    "untested": "{} cannot be tested here",
    "fails": "{} failed",
}
PACKAGES = ("transformers", "torch", "torchvision", "timm", "num2words")
TOLERANCE = 1e-3  # of two values of MIR; the batches differ in rounding, which a mixture of experts can magnify
PROCESSORS = {
    "batch size 1 alone": "{} at batch size 1 alone",
    "refused": "{} the command refuses with its processor",
    "fails": "{} failed with their processor",
}
# Checks of a measured family: the field of its row, and the word that the page explains.
CHECKS = {"own_mask": "mask", "hidden_states": "states", "causal": "causal"}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds, where the system has alarms."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure_row(model_type: str) -> dict[str, Any]:
    """Measure one family and say what came out, whatever happens."""
    from family_check import has_adapter, measure
    from tiny_families import CLASSES, FAMILIES, Family

    from mirlib import UndefinedMIRError

    family = FAMILIES.get(model_type, Family())
    row: dict[str, Any] = {"model_type": model_type, "class": CLASSES[model_type]}
    start = time.process_time()
    if family.needs and find_spec(family.needs) is None:
        row |= {"status": "package", "how": family.needs}
    elif family.untested:
        row |= {"status": "untested", "how": family.untested}
    else:
        try:
            with time_limit(SECONDS):
                seen = measure(model_type)
        except UndefinedMIRError as error:
            row |= {"status": "undefined", "how": str(error).split(", so ")[0]}
        except Exception as error:  # a family that breaks must not hide those behind it
            row |= {"status": "fails", "how": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        else:
            row |= {"status": "adapter" if has_adapter(model_type) else "works", "how": checks(seen), **asdict(seen)}
    row |= drive_row(model_type) if _is_measured(row) else {"processor": "none"}
    made_with = {package: version(package).split("+")[0] for package in PACKAGES if find_spec(package)}
    return row | made_with | {"seconds": round(time.process_time() - start, 2)}


def drive_row(model_type: str) -> dict[str, Any]:
    """Drive the command on a checkpoint of the family with its real processor, and say what came out."""
    from family_command import RefusedError, drive
    from real_processors import packages

    row: dict[str, Any] = {"needs": packages(model_type)}
    start = time.process_time()
    try:
        with time_limit(SECONDS), tempfile.TemporaryDirectory() as folder:
            alone, together, by_hand = drive(model_type, Path(folder) / model_type)
    except RefusedError as error:
        return row | {"processor": f"refused: {error}"}
    except Exception as error:  # as in measure_row
        return row | {"processor": f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"}
    seconds = round(time.process_time() - start, 2)
    values = {"command": round(alone, 4), "by_hand": round(by_hand, 4), "driven": seconds}
    if abs(alone - by_hand) > TOLERANCE:
        return row | values | {"processor": f"fails: {alone:.4f} by the command, {by_hand:.4f} by hand"}
    if isinstance(together, str):
        return row | values | {"processor": f"batch size 1 alone: {together}"}
    if abs(alone - together) > TOLERANCE:
        return row | values | {"processor": f"fails: {alone:.4f} at batch size 1, {together:.4f} at 4"}
    return row | values | {"processor": "command"}


def checks(seen: Any) -> str:
    """What a family was held to, in words that the page explains."""
    held = ["mask" if seen.own_mask else "", "states" if seen.hidden_states else "", f"pixels {seen.changed:.0%}"]
    return ", ".join([word for word in held if word] + (["causal"] if seen.causal else []))


def measure_all(model_types: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of the families, one after another, with progress on stderr."""
    from tqdm import tqdm

    rows = []
    bar = tqdm(list(model_types), unit="family", file=sys.stderr)
    for model_type in bar:
        bar.set_description(model_type)
        rows.append(measure_row(model_type))
        if rows[-1]["status"] == "fails":
            bar.write(f"{model_type}: {rows[-1]['how']}", file=sys.stderr)
    return rows


def read_ledger(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The rows of the last whole run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The generated part of the page: how many, with what, the families that differ, and then those that do not."""
    rows = sorted(rows, key=lambda row: row["model_type"])
    counts = Counter(row["status"] for row in rows)
    made = ", ".join(f"{package} {rows[0][package]}" for package in PACKAGES if package in rows[0])
    measured = [row for row in rows if _is_measured(row)]
    kinds = Counter(row["processor"].split(":")[0] for row in measured)
    lines = [
        BEGIN,
        "",
        "## All families",
        "",
        f"Of the {len(rows)} image-text-to-text families of transformers, **{len(measured)} are measured end to end**"
        f" ({counts['works']} by the general rule, {counts['adapter']} by an adapter); "
        + "; ".join(words.format(counts[status]) for status, words in REST.items() if counts[status])
        + f". Of the {len(measured)}, **{kinds['command']} were driven by the command with their real processors**; "
        + "; ".join(words.format(kinds[kind]) for kind, words in PROCESSORS.items() if kinds[kind])
        + f". Made with {made}.",
        "",
    ]
    lines += _section("Not measured", _not_measured(rows))
    lines += _section("Measured, but not like the others", _different(rows))
    lines += _section("Measured, also by the command with their real processors, and all checks held", _alike(rows))
    return "\n".join(lines[:-1]) + "\n"


def _section(title: str, body: list[str]) -> list[str]:
    return [f"### {title}", "", *body, ""]


def _names(rows: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"`{row['model_type']}`" for row in rows)


def _not_measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Families without a value, by the reason."""
    reasons: dict[str, list[dict[str, Any]]] = {}
    words = {"undefined": "undefined: {}", "package": "needs the package {}", "untested": "not testable here: {}"}
    for row in rows:
        if not _is_measured(row):
            how = row["how"].removeprefix(f"{row['model_type']} ")
            reasons.setdefault(words.get(row["status"], "fails: {}").format(how), []).append(row)
    return ["| families | why |", "|---|---|", *(f"| {_names(some)} | {why} |" for why, some in reasons.items())]


def _is_measured(row: dict[str, Any]) -> bool:
    return row["status"] in ("works", "adapter")


def _differences(row: dict[str, Any]) -> tuple[str, ...]:
    """What a measured family has that most have not: an adapter, a check that it does not allow, rows that stay."""
    missing = [word for field, word in CHECKS.items() if not row[field]]
    return tuple(
        ([] if row["status"] == "works" else ["by an adapter"])
        + ([f"no {', no '.join(missing)}"] if missing else [])
        + ([f"pixels {row['changed']:.0%}"] if row["changed"] < 1 else [])
    )


def _is_ordinary(row: dict[str, Any]) -> bool:
    return not _differences(row) and row["processor"] == "command"


def _different(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = (row for row in rows if _is_measured(row) and not _is_ordinary(row))
    return [
        "| family | what differs | real processor |",
        "|---|---|---|",
        *(f"| `{row['model_type']}` | {'; '.join(_differences(row)) or '-'} | {row['processor']} |" for row in found),
    ]


def _alike(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The other families, by the kinds of layers that were in the test."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if _is_measured(row) and _is_ordinary(row):
            kinds.setdefault(row["kinds"] or "one kind, without a name", []).append(row)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    cells = (f"| {kind} | {_names(some)} |" for kind, some in ordered)
    return ["| kinds of layers in the test | families |", "|---|---|", *cells]


def page(rows: Sequence[dict[str, Any]], text: str) -> str:
    """The page with the table of the rows in place of the one that it has."""
    return text[: text.index(BEGIN)] + table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure every family and write the ledger first")
    parser.add_argument("--try", dest="some", nargs="+", metavar="NAME", help="measure these and print the rows")
    options = parser.parse_args(arguments)
    if options.run or options.some:
        sys.path.insert(0, str(ROOT / "tests"))
        import torch
        from tiny_families import CLASSES
        from transformers.utils import logging

        torch.set_num_threads(1)  # the matrices are small
        logging.set_verbosity_error()
        if options.some:
            for row in measure_all(options.some):
                print(json.dumps(row))
            return
        rows = measure_all(CLASSES)
        LEDGER.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    PAGE.write_text(page(read_ledger(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
