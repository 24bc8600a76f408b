"""The command ``mir lab``: list, run and show experiments. `mirlib.cli` finds it by its entry point in pyproject.toml.

It stands in every call of ``mir``, so it imports nothing of the laboratory before an experiment is asked for.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mirlab.ledger import shipped
from mirlib.cli import integer, print_result
from mirlib.errors import MirlibError, first_line, shown
from mirlib.files import check_writable


def add(commands: Any) -> None:
    """Add ``lab`` to the commands of ``mir``, which `argparse.ArgumentParser.add_subparsers` returned."""
    laboratory = commands.add_parser("lab", help="the laboratory: list, run and show experiments")
    actions = laboratory.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="the experiments").set_defaults(run=_list)
    run = actions.add_parser("run", help="run an experiment, or finish one that was stopped")
    run.set_defaults(run=_run)
    run.add_argument("experiment", metavar="EXPERIMENT")
    run.add_argument("--results", default="results", metavar="DIR", help="the ledger (default: results)")
    run.add_argument("--output", metavar="DIR", help="base: where the model goes (default: the cache)")
    run.add_argument("--jobs", type=integer, metavar="N", help="sweeps: processes at once (default: the cores)")
    run.add_argument("--backend", metavar="NAME", help="sweeps: a joblib backend, e.g. dask or ray")
    precisions = "float32, or bfloat16 where the CPU has it; the rows name it (default: %(default)s)"
    run.add_argument("--precision", default="float32", metavar="NAME", help=precisions)
    run.add_argument("--no-progress", action="store_true", help="no bars on stderr")
    show = actions.add_parser("show", help="what its ledger says")
    show.set_defaults(run=_show)
    show.add_argument("experiment", metavar="EXPERIMENT")
    default = "the ledger (default: results, or else the ledger that comes along)"
    show.add_argument("--results", metavar="DIR", help=default)
    fetched = actions.add_parser("parts", help="get pretrained parts that the experiment of this name runs on")
    fetched.add_argument("experiment", choices=["real"], metavar="EXPERIMENT", help="real")
    fetched.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="pictures with transparent surroundings, each with its word in a text file beside it or as its folder's "
        "name, to take in place of those of Debian's tuxpaint-stamps-default",
    )
    fetched.add_argument("--no-progress", action="store_true", help="no bars on stderr")
    fetched.set_defaults(run=_parts)


def _list(_: argparse.Namespace) -> None:
    from mirlab import commands

    print_result(commands.listing())


def _run(options: argparse.Namespace) -> None:
    from mirlab import commands
    from mirlab.model import precision

    commands.check_name(options.experiment)
    given = {name: value for name in ("output", "jobs", "backend") if (value := getattr(options, name)) is not None}
    accepted = {"base": {"output"}, "parts": set()}.get(options.experiment, {"jobs", "backend"})
    if unknown := given.keys() - accepted:
        raise MirlibError(f"--{min(unknown)} means nothing to {options.experiment}")
    if options.jobs is not None and options.jobs < 1:
        raise MirlibError(f"--jobs must be at least 1, got {options.jobs}")
    ledger = Path(options.results) / f"{options.experiment}.jsonl"
    check_writable(ledger, make_folder=True)  # before the first run is trained
    with _reading(ledger), _workers_end(), precision.use(options.precision):
        commands.run(options.experiment, results_dir=ledger.parent, progress=not options.no_progress, **given)
        found = commands.show(options.experiment, ledger.parent)
    print_result(found)


def _show(options: argparse.Namespace) -> None:
    from mirlab import commands

    commands.check_name(options.experiment)
    folder = Path(options.results or "results")
    if options.results is not None and not folder.is_dir():
        raise MirlibError(f"--results {shown(folder)}: no such folder")
    ledger = folder / f"{options.experiment}.jsonl"
    if options.results is None and not ledger.exists():
        ledger = shipped() / ledger.name
    with _reading(ledger):
        found = commands.show(options.experiment, ledger.parent)
    print_result(found)


def _parts(options: argparse.Namespace) -> None:
    from transformers.utils import logging

    from mirlab import commands
    from mirlab.model import real_parts

    pictures = None if options.pictures is None else Path(options.pictures)
    if pictures is not None and not pictures.is_dir():
        raise MirlibError(f"--pictures {shown(pictures)}: no such folder")
    logging.disable_progress_bar()  # of each tensor that is converted; there is a bar for the whole
    print_result(str(real_parts.fetch(commands.default_cache(), pictures=pictures, progress=not options.no_progress)))


@contextmanager
def _reading(ledger: Path) -> Iterator[None]:
    """Turn what rows that no run has written do to their readers into a sentence."""
    try:
        yield
    except MirlibError:
        raise
    except OSError as error:
        raise MirlibError(f"{shown(Path(error.filename or ledger))}: {error.strerror or first_line(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {shown(first_line(error), 300)}"
        raise MirlibError(
            f"{shown(ledger)}: its rows are not those that this experiment writes ({reason}); take the rows that were "
            "changed out, and `mir lab run` makes them again"
        ) from error


class Interrupted(KeyboardInterrupt):
    """A signal that asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextmanager
def _workers_end() -> Iterator[None]:
    """Let an interrupt unwind, so that the processes of a sweep are ended; a second one ends this one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as before:

        def unwind(number: int, _: object) -> NoReturn:
            before.close()
            raise Interrupted(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            before.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, unwind)
        yield
