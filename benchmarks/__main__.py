"""``python -m benchmarks``: run, print the table, and keep it with where it was measured."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from benchmarks import capture_overhead, gpu, in_page, peak_memory, planned_memory, trace_term
from benchmarks.measuring import Measurement, format_table, say
from mirlab.ledger import Ledger, key_of, provenance
from mirlib.loading import load_miniature

PARTS = ("trace", "capture", "memory", "plan", "gpu", "page")
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks.jsonl"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions: about a minute")
    parser.add_argument("--small", action="store_true", help="nothing at d = 4096: about fifty minutes less")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="D", help="these sizes of the trace term instead")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=1, help="threads of the linear algebra (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON Lines file to add the rows to")
    parser.add_argument("--no-output", action="store_true", help="print only; --quick implies it")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[Measurement]:
    """All rows that were asked for, part by part."""
    dims = options.sizes or ((256, 512) if options.quick else (512, 1024, 2048, *(() if options.small else (4096,))))
    say(f"expect about {_minutes(dims, options):.0f} min on an idle machine")
    table: list[Measurement] = []
    with threadpool_limits(options.threads), _torch_threads(options.threads):
        if "trace" in options.only:
            table += trace_term.measure(dims, options.threads, options.quick)
        if "capture" in options.only:
            model, processor = load_miniature()
            for batch_size in (4, 16):
                samples = 48 if options.quick else 100
                batches = capture_overhead.prepared_batches(processor, samples, batch_size)
                size = f"{samples} samples, batch {batch_size}"
                rounds = 3 if options.quick else 9
                table += capture_overhead.measure(model, batches, size, rounds, options.threads)
        if "memory" in options.only:
            nums = (4, 8) if options.quick else (50, 100, 200, 1000)
            table += peak_memory.measure(nums, 1 if options.quick else 3, options.threads)
        if "plan" in options.only:
            shapes = ("weights",) if options.quick else ("weights", "moments", "maps")
            wide = () if options.quick or options.small else ("7B", "7B interval")
            table += planned_memory.measure((*shapes, *wide))
        if "gpu" in options.only:
            table += gpu.measure(options.threads, options.quick)
    if "page" in options.only:
        table += in_page.measure(1 if options.quick else 7)
    return table


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _minutes(dims: Sequence[int], options: argparse.Namespace) -> float:
    trace = trace_term.minutes(dims, options.quick) if "trace" in options.only else 0
    memory = (0.5 if options.quick else 6) * ("memory" in options.only)
    plan = (0.5 if options.quick else 3 if options.small else 40) * ("plan" in options.only)
    page = (0.3 if options.quick else 2) * ("page" in options.only)
    return max(1, trace + memory + plan + page)


def keep(table: Sequence[Measurement], path: Path) -> None:
    """Add the rows to a file of results, with the machine, the versions and the date; rows of one run share ``run``."""
    run_name = datetime.now(UTC).isoformat(timespec="seconds")
    where = provenance()
    where["libraries"] |= {name: version(name) for name in ("scipy", "torchmetrics")}
    where["machine"] = platform.machine()
    ledger = Ledger(path)
    for row in table:
        values = {"run": run_name, **row.to_dict()}
        ledger.append({"key": key_of(values), **values, "provenance": where})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and keep."""
    options = parse(arguments)
    table = run(options)
    print(format_table(table))
    if not (options.quick or options.no_output):
        keep(table, options.output)
        say(f"added {len(table)} rows to {options.output}")


if __name__ == "__main__":
    main()
