"""The command ``mir``: results to stdout, progress and messages to stderr; bad input is a sentence and exit code 2."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib.metadata import entry_points
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from mirlib import __version__
from mirlib.comparison import Comparison, compare, differences
from mirlib.distributed import Processes, ProcessFailedError, launched, processes_of_launcher
from mirlib.errors import MirlibError, MirlibWarning, boundary, first_line, shown
from mirlib.files import check_memory, check_writable, input_at, is_no_file, read_arrays, stored_result, write_whole
from mirlib.mir import PRESETS, check_confidence
from mirlib.reports import describe, describe_controls, describe_layers, describe_measures, side_by_side
from mirlib.result import MIRResult, json_text

BAD_INPUT = 2
PLAIN = {"█": "#", "×": "x", "−": "-", "±": "+-", "·": "*", "…": "...", "∞": "inf"}
COMMANDS = "mirlib.commands"
"""The group of entry points under which another package adds a command, a function that takes the sub-parsers."""

READ_BY = ("image_root", "image_field", "text_field", "skip_unreadable")  # options that say how sources are read
PICTURES = 3  # dearest and cheapest ones each, on a map
NO_INTERVAL = "there is no interval with --preset {}, which replaces rows: leave out --confidence"
POSITIONAL = {"model": "MODEL", "file": "FILE", "files": "RESULT.json", "experiment": "EXPERIMENT"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        _prepare_streams()
        rank = 0
        with suppress(MirlibError):  # which matters where processes are to work together
            rank, _ = processes_of_launcher()
        with redirect_stderr(io.StringIO()) if rank else nullcontext():  # a wrong option is said once
            options = _parser().parse_args(arguments)
            _refuse_empty(options)
        if getattr(options, "confidence", None) is not None:
            check_confidence(options.confidence)
        # A warning of ours is one line for the reader, not a line of source code.
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except SaidError:
        return BAD_INPUT
    except MirlibError as error:
        _close_bars()
        _say(f"mir: {error}")
        return BAD_INPUT
    except BrokenPipeError:
        _discard(sys.stdout)
        return 0
    except KeyboardInterrupt as error:
        _close_bars()
        _say("mir: interrupted")
        return 128 + getattr(error, "signal", signal.SIGINT)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a list or a text where a name belongs
            raise
        _close_bars()
        _say(f"mir: no such file or folder: {shown(str(error.filename))} ({error.strerror})")
        return BAD_INPUT
    return 0


def _close_bars() -> None:
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _prepare_streams() -> None:
    """Let no character stop the output: what an encoding lacks is replaced, in results and in messages."""
    codecs.register_error("mir", _replaced)
    if sys.stdout is None:  # closed by the caller; it cannot be written to, and no other file may take its place
        sys.stdout = open(os.devnull)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mir")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def print_result(text: str) -> None:
    """Print a result. Where stdout does not take it, it goes to stderr before that is said, so that it is not lost.

    Raises:
        MirlibError: If it cannot be written to stdout.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        _discard(sys.stdout)
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MirlibError(f"cannot write to standard output ({reason}); the result went to standard error") from error


def _discard(stream: Any) -> None:
    """Send what a stream still holds nowhere: the interpreter would fail on it once more when it ends."""
    with suppress(OSError, ValueError):  # streams of tests have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refuse_empty(options: argparse.Namespace) -> None:
    """An option whose value is empty is an unset variable of a shell, and must not mean the default."""
    for name, value in vars(options).items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and not part.strip():
                where = POSITIONAL.get(name) or f"--{name.replace('_', '-')}"
                raise MirlibError(
                    f"{where} is empty: give it a value, or leave it out if the default is meant (is a variable of "
                    "the shell unset?)"
                )


class SaidError(Exception):
    """The run failed, and the process that it failed in has said why."""


@contextmanager
def _one_voice(processes: Processes) -> Iterator[None]:
    """Of an error that ends all processes, the one that it happened in speaks; of one that all have, the first."""
    try:
        yield
    except ProcessFailedError as error:
        if error.died and processes.rank == int(error.rank == 0):  # it cannot speak for itself
            _say(f"mir: {error}")
        elif not error.died:
            processes.wait_until_said()
        raise SaidError from error
    except Exception as error:
        if processes.size == 1:
            raise
        if processes.leads or hasattr(error, "rank"):
            _say(f"mir: {error}") if isinstance(error, MirlibError) else traceback.print_exc()
            processes.said()
        else:
            processes.wait_until_said()
        raise SaidError from error


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, MirlibWarning):  # ours are printed with the result
        _say(f"mir: warning: {message}")


def _say(message: str) -> None:
    """One line on stderr, without characters that a terminal would obey. That it cannot be said, stops nothing."""
    with suppress(OSError, ValueError):
        print(shown(message, 1000), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Options


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        with suppress(OSError, ValueError):
            print(self.format_usage(), end="", file=sys.stderr)
        raise MirlibError(f"{shown(message, 300)}; {self.prog} --help lists the options")

    def _print_message(self, message: str, file: Any = None) -> None:
        print_result(message.rstrip("\n"))


def integer(text: str) -> int:
    """A whole number that 64 bits hold, as the type of an option.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        number = int(text)
    except ValueError:  # also one of thousands of digits
        number = None
    if number is None or not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 18 digits, got {shown(text)}")
    return number


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, got {shown(text)}") from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mir", description="Measure how far apart vision and text tokens are inside a vision-language model."
    )
    parser.add_argument("--version", action="version", version=f"mirlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    score = commands.add_parser(
        "score",
        help="MIR of a model",
        description="MIR of a model over image-text pairs. Without arguments: of the miniature LLaVA that ships with "
        "mirlib, on real photographs, scans and English from installed packages, offline. A SOURCE is a file, a "
        "folder, WebDataset shards (.tar, with {000..009} for many), records (.jsonl, .json, .csv, .tsv: also the "
        "training data of LLaVA), .parquet files, or a Hugging Face dataset: hf:NAME, hf:NAME@CONFIG:SPLIT, or a "
        "folder for NAME. The paper's data are --images hf:TextVQA --texts hf:cnn_dailymail. Many processes: torchrun "
        "--nproc-per-node N -m mirlib score ...",
    )
    add = score.add_argument
    add("model", nargs="?", metavar="MODEL", help="Hugging Face id or local folder (default: miniature)")
    add("--images", nargs="+", metavar="SOURCE", help="image files, folders of them, shards, hf:NAME")
    add("--texts", metavar="SOURCE", help="folder of text files, a file of one text a line, records, shards, hf:NAME")
    add("--pairs", metavar="SOURCE", help="images with their texts: records, shards, .parquet, hf:NAME")
    add("--image-field", metavar="NAME", help="field, column or ending in shards (default: the usual)")
    add("--text-field", metavar="NAME", help="likewise, of the texts")
    add("--image-root", metavar="DIR", help="folder of the image paths in files (default: the file's)")
    _add_numbers(score)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float64", "float32", "bfloat16", "float16"),
        help="precision of the model; auto is the checkpoint's on a GPU and float32 on a CPU (default: %(default)s)",
    )
    add("--device-map", metavar="MAP", help="auto: over all GPUs, then the CPU (needs accelerate)")
    add("--load-in-4bit", action="store_true", help="NF4 weights (needs bitsandbytes and accelerate)")
    add("--seed", type=integer, default=0, help="which images and texts are drawn (default: %(default)s)")
    add("--template", default="chat", choices=("chat", "plain"), help="default: %(default)s")
    add("--text-rows", default="text", choices=("text", "after_image"), help="after_image is the authors' choice")
    add("--last", default="normed", choices=("normed", "raw"), help="last layer after or before its norm")
    add("--max-text-tokens", type=integer, help="cut each text after so many tokens")
    add("--measures", metavar="NAMES", help="all, or names with commas between them: other measures of the gap instead")
    add(
        "--random-weights",
        type=integer,
        metavar="N",
        help="with --measures and --pairs: models of random weights to measure beside it (default: 1; 0 for none)",
    )
    add("--rows", type=integer, metavar="R", help="with --measures: rows kept of each modality (default: 1 GiB)")
    add("--map", metavar="OUT.png", help="draw what the patches of the dearest and the cheapest pictures cost")
    add("--layer-map", metavar="OUT.png", help="draw the distance of vision after each layer from text after each one")
    add(
        "--controls",
        nargs="?",
        const="all",
        metavar="NAMES",
        help="beside MIR that of inputs which mean less, each at the cost of the value itself: all, or some of black, "
        "noise, shuffled, zero, gaussian, fresh, fresh_rescaled with commas between them",
    )
    add("--skip-unreadable", action="store_true", help="leave out what cannot be read, and name it")
    add("--allow-pickle", action="store_true", help="load weights that are not safetensors")
    add("--no-progress", action="store_true", help="no bars on stderr")
    score.set_defaults(run=_score)

    features = commands.add_parser(
        "features",
        help="MIR of stored hidden states",
        description='MIR of hidden states in a file: arrays "vision" (K, r, d) and "text" (K, s, d), and for an '
        'interval "vision_samples" (r,) and "text_samples" (s,), the sample that each row belongs to.',
    )
    features.add_argument("file", metavar="FILE", help=".npz or .safetensors")
    features.set_defaults(run=_features)

    planning = commands.add_parser(
        "plan",
        help="memory of a measurement, before it starts",
        description="Memory and forward passes of `mir score` on a model, from its configuration alone: no weights are "
        "read. MODEL is llava-1.5-7b or llava-1.5-13b, a folder with a config.json, or a Hugging Face id.",
    )
    add = planning.add_argument
    add("model", metavar="MODEL")
    _add_numbers(planning)
    add("--text-tokens", type=integer, default=800, help="of the longest text (default: %(default)s)")
    add("--vision-tokens", type=integer, help="of an image, where the configuration does not say")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16", "4bit"), help="of the weights")
    add("--device", default="cuda", help="where it will run: cuda, mps or cpu (default: %(default)s)")
    planning.set_defaults(run=_plan)

    comparing = commands.add_parser(
        "compare",
        help="is one model closer than another: results side by side, with the interval of their difference",
        description="Each result minus the first, with the 95 % interval of the difference. Results of the same "
        "samples are compared sample by sample, which tells smaller differences from none, and the layers and pictures "
        "that carry it are named.",
    )
    comparing.add_argument("files", nargs="+", metavar="RESULT.json", help="files written by --json")
    comparing.set_defaults(run=_compare)

    for command in (score, features, planning, comparing):
        command.add_argument("--json", metavar="OUT", help="write it as JSON; - for stdout alone")
    for command in (score, features, comparing):
        command.add_argument("--plot", metavar="OUT.png", help="draw the layers")
    for command in (score, planning):
        command.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring its own code")
    for command in (score, features, planning):
        command.add_argument("--preset", default="paper", choices=tuple(PRESETS), help="default: %(default)s")
        interval = command.add_mutually_exclusive_group()
        interval.add_argument("--confidence", type=_real, metavar="LEVEL", help="of the interval (default: 0.95)")
        interval.add_argument("--no-interval", action="store_true", help="the value alone, which saves a pass")
    _add_commands_of_others(commands)
    return parser


def _add_numbers(command: argparse.ArgumentParser) -> None:
    # torchrun takes --num for an option of its own, cut short, wherever it stands; hence -n.
    command.add_argument("--num", "-n", type=integer, default=100, help="number of pairs (default: %(default)s)")
    command.add_argument("--batch-size", type=integer, default=4, help="pairs a forward pass (default: %(default)s)")


def _add_commands_of_others(commands: Any) -> None:
    """Add the commands of other packages; where one is not there, its name says so, and all others work."""
    found = {entry.name: entry for entry in entry_points(group=COMMANDS)}
    for name in sorted({"lab", *found}):
        try:
            found[name].load()(commands)
        except (KeyError, ImportError, AttributeError) as error:
            missing = commands.add_parser(name, help="not installed", description="Not installed.")
            missing.add_argument("arguments", nargs=argparse.REMAINDER)
            missing.set_defaults(run=_not_installed, name=name, reason=error)


def _not_installed(options: argparse.Namespace) -> None:
    what = "the laboratory, package mirlab" if options.name == "lab" else "the package that brings it"
    reason = "" if isinstance(options.reason, KeyError) else f" ({shown(first_line(options.reason), 300)})"
    raise MirlibError(
        f"mir {options.name} is not installed: {what}, is missing{reason}; `pip install -e .` in the folder of "
        "the repository installs it"
    ) from options.reason


# ---------------------------------------------------------------------------------------------------------------------
# mir score


def _score(options: argparse.Namespace) -> None:
    if options.no_progress:
        from transformers.utils import logging

        logging.disable_progress_bar()  # of the weights that it loads
    _refuse_combinations(options)
    if options.measures is not None:
        _score_measures(options)
        return
    with launched() as processes, _one_voice(processes):
        _score_share(options, processes)


def _refuse_combinations(options: argparse.Namespace) -> None:
    """Options that mean nothing together, said before anything is read."""
    measures, many, other = options.measures is not None, processes_of_launcher()[1] > 1, options.preset != "paper"
    for_mir_alone = {
        "--plot": options.plot is not None,
        "--map": options.map is not None,
        "--layer-map": options.layer_map is not None,
        "--preset": other,
        "--controls": options.controls is not None,
    }
    refused = {
        f"{option} is for MIR alone: leave out it or --measures": measures and given
        for option, given in for_mir_alone.items()
    } | {
        "--measures keeps rows in the memory of one process: start it without torchrun": measures and many,
        "--rows means nothing without --measures": options.rows is not None and not measures,
        "--random-weights means nothing without --measures": options.random_weights is not None and not measures,
        "--layer-map keeps moments, not rows, as --preset paper does: leave out it or --preset": (
            options.layer_map and other
        ),
        "--layer-map is computed by one process: start it without torchrun": options.layer_map and many,
        NO_INTERVAL.format(options.preset): options.confidence is not None and other,
        f"--map needs --preset paper: rows that {options.preset} replaces have no costs": options.map and other,
        "--map keeps the costs in the memory of one process: start it without torchrun": options.map and many,
    }
    for sentence, applies in refused.items():
        if applies:
            raise MirlibError(sentence)


class _Skipped:
    """What ``--skip-unreadable`` leaves out: named when it is met, and counted."""

    def __init__(self, options: argparse.Namespace, leads: bool = True) -> None:
        self.count, self.leads = 0, leads
        self.call = self._leave_out if options.skip_unreadable else None

    def _leave_out(self, sentence: str) -> None:
        self.count += 1
        if self.leads:
            _say(f"mir: skipped: {sentence}")

    def say_how_many(self) -> None:
        if self.count:
            _say(f"mir: skipped {self.count} in all, which could not be read")


def _drawing(options: argparse.Namespace) -> dict[str, Any]:
    """How `mirlib.score` and its like draw the pairs and read them."""
    given = _given(options, "num", "batch_size", "seed", "template", "text_rows", "last", "max_text_tokens")
    return given | {"paired": options.pairs is not None, "progress": not options.no_progress}


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _score_measures(options: argparse.Namespace) -> None:
    """``mir score --measures``: one process, many measures."""
    from mirlib.gaps import MEASURES
    from mirlib.gaps.base import PAIRS
    from mirlib.gaps.model import chosen_measures, score_measures

    # A wrong name is said before a model is loaded.
    wanted, _ = chosen_measures(options.measures, pairs=options.pairs is not None)
    skipped = _Skipped(options)
    measured = model, *_ = _prepare(options, skipped, Processes())
    random_weights = 1 if options.random_weights is None else options.random_weights
    if any(MEASURES[name].needs == PAIRS for name in wanted):
        others = "a model" if random_weights == 1 else f"{random_weights} models"
        beside = f", and beside it {others} of random weights" if random_weights else ""
        _say(f"mir: for measures of pairs the model reads the texts once more, without the pictures{beside}")
    found = score_measures(
        *measured,
        measures=options.measures,
        max_rows=options.rows,
        random_weights=random_weights,
        confidence=None if options.no_interval else options.confidence or 0.95,
        skip_unreadable=skipped.call,
        **_drawing(options),
    )
    found = replace(found, settings={**found.settings, **_recorded(options, model)})
    skipped.say_how_many()
    _deliver(found.to_json(), lambda: describe_measures(found, _name(options)), options.json)


def _score_share(options: argparse.Namespace, processes: Processes) -> None:
    """What one process does: measure its share; the first one prints and writes."""
    from mirlib.interventions import check_names, controls
    from mirlib.scoring import score

    wanted = None if options.controls is None else check_names(None if options.controls == "all" else options.controls)
    if not processes.leads:
        _hush()
    skipped = _Skipped(options, processes.leads)

    def say(sentence: str) -> None:
        if processes.leads:
            _say(f"mir: {sentence}")

    measured = model, *_ = processes.together(lambda: _prepare(options, skipped, processes))
    draw = _drawing(options)
    # The same samples are skipped again by what reads the pairs again, and were named.
    draw_again = draw | {"skip_unreadable": skipped.call and (lambda sentence: None)}
    if options.map:
        say(_cost_of_map(model))
    if options.layer_map:
        from mirlib.layer_pairs import layer_map, layer_map_cost

        say(layer_map_cost(model, num=options.num))
    for_mir = draw | {"preset": options.preset, "skip_unreadable": skipped.call}
    stored, text, notes, drawings, problem = {}, [], [], [], None

    def recorded(result: MIRResult) -> MIRResult:
        return replace(result, settings={**result.settings, **_recorded(options, model)})

    def keep(result: MIRResult, sentence: str) -> None:
        """What takes longer than MIR itself follows: whoever ends it keeps MIR."""
        say(sentence)
        path = _outputs(options).get("--json") if processes.leads else None
        if path is not None and not is_no_file(path):  # what was sent through a pipe cannot be taken back
            with suppress(MirlibError):  # said when all is measured
                _write(json_text(recorded(result).to_dict()), options.json)

    if wanted is None:
        result = recorded(score(*measured, confidence=_confidence(options), **for_mir))
        if options.layer_map:
            keep(result, f"MIR is {result.value:.4f}; the layer map follows")
    else:
        found = controls(*measured, only=wanted, measured=keep, confidence=_confidence(options), **for_mir)
        result, stored["controls"] = recorded(found.real), found.to_dict()
        text.append("\n" + describe_controls(found))
        notes += found.warnings
    try:
        if options.layer_map:
            pairs = layer_map(*measured, **draw_again)
            stored["layer_map"] = pairs.to_dict()
            text += describe_layers(pairs)
            drawings.append((options.layer_map, pairs.plot))
    except (MirlibError, KeyboardInterrupt) as error:  # what was measured before is not lost with it
        problem = error

    def report() -> None:
        if processes.leads:
            skipped.say_how_many()
            _report(result, options, _name(options), stored, text, notes, drawings)
        if problem is not None:
            raise problem
        if options.map:
            _draw_map(options, *measured, preset=options.preset, **draw_again)

    processes.together(report)


def _cost_of_map(model: Any) -> str:
    """What ``--map`` will take, said before it is spent."""
    from mirlib.costs import MATRICES
    from mirlib.hidden_states import decoder_parts

    layers, dim = len(decoder_parts(model).layers), model.config.get_text_config().hidden_size
    memory = MATRICES * layers * dim**2 * 8 / 2**30
    return (
        f"the map reads the pairs twice more, after the result, and keeps {memory:.2g} GiB of matrices "
        f"({layers} layers of {dim} dimensions)"
    )


def _draw_map(options: argparse.Namespace, model: Any, processor: Any, images: Any, texts: Any, **draw: Any) -> None:
    """``mir score --map``: the costs of the patches, drawn over the pictures."""
    from mirlib.costs import as_seen, transport_map
    from mirlib.data import load_image

    found = transport_map(model, processor, images, texts, **draw)
    ranking = found.ranking()
    chosen = {int(number) for number in (*ranking[:PICTURES], *ranking[-PICTURES:])}
    pictures = {i: as_seen(processor, load_image(images[found.images[i]])) for i in chosen}
    _draw(options.map, lambda: found.plot(pictures))


def _draw(out: str, plot: Callable[[], Any]) -> None:
    """Write the figure of the axes that ``plot`` returns."""
    import matplotlib

    matplotlib.use("Agg")
    with boundary(f"cannot draw {shown(Path(out))}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of a distance of 0 on its logarithmic scale
        warnings.filterwarnings("ignore", "Data has no positive values", UserWarning)
        figure, kind = plot().figure, Path(out).suffix[1:].lower()
        write_whole(Path(out), lambda path: figure.savefig(path, format=kind))
    _say(f"mir: drew {shown(Path(out))}")


def _name(options: argparse.Namespace) -> str:
    return shown(options.model, 300) if options.model else "the miniature LLaVA"


def _recorded(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What the library does not write into the settings of a result: sources, quantized weights, versions."""
    import torch
    import transformers

    stored = getattr(model.config, "quantization_config", None)  # a dict in some checkpoints, an object in others
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", stored)
    quantization = "nf4" if options.load_in_4bit else None if method is None else str(getattr(method, "value", method))
    return {
        "model": options.model or "miniature",
        "images": [options.pairs] if options.pairs else options.images or "sample_images",
        "texts": options.pairs or options.texts or "sample_texts",
        "paired": options.pairs is not None,
        **{name: value for name in READ_BY if (value := getattr(options, name))},
        "quantization": quantization,
        "mirlib": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _prepare(options: argparse.Namespace, skipped: _Skipped, processes: Processes) -> tuple[Any, ...]:
    """Model, processor, images and texts; what can be refused without the model comes first."""
    _check_outputs(options)
    images, texts = _sources(options, skipped.call)
    return *_load(options, processes), images, texts


def _sources(options: argparse.Namespace, skip: Callable[[str], None] | None) -> tuple[Sequence[Any], Sequence[str]]:
    """The images and the texts that the options name; without any, those of installed packages."""
    from mirlib.data import sample_images, sample_texts
    from mirlib.readers import open_images, open_pairs, open_texts

    for option, source in (("image_field", "images"), ("text_field", "texts"), ("image_root", "images")):
        if getattr(options, option) and not (options.pairs or getattr(options, source)):
            raise MirlibError(f"--{option.replace('_', '-')} means nothing without --{source} or --pairs")
    of_images = {"image_field": options.image_field, "image_root": options.image_root, "on_unreadable": skip}
    of_texts = {"text_field": options.text_field, "on_unreadable": skip}
    number = max(options.num, 1)
    if options.pairs:
        if options.images or options.texts:
            raise MirlibError("--pairs brings its own images and texts: leave out --images and --texts")
        images, texts = open_pairs(options.pairs, **of_images | of_texts)
    else:  # the texts first: of those that come along there is an end, and an image for each is enough
        texts = open_texts(options.texts, **of_texts) if options.texts else sample_texts(number, options.seed)
        number = min(number, len(texts))
        images = open_images(options.images, **of_images) if options.images else sample_images(number, options.seed)
    _spare_pictures(options, images)
    for what, items in (("images", images), ("texts", texts)):
        if len(items) < options.num:  # said before a model is loaded
            raise MirlibError(f"{options.num} {what} were asked for, there are {len(items)}; lower num (--num)")
    return images, texts


def _hush() -> None:
    """Leave messages to the first process."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.showwarning = lambda *_, **__: None


def _confidence(options: argparse.Namespace) -> float | None:
    """The level asked for; without a word 0.95 where there is an interval."""
    if options.confidence is None and not options.no_interval and options.preset == "paper":
        return 0.95
    return options.confidence


def _device(name: str, processes: Processes) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and processes.size > 1:  # a GPU for each process of a machine
        local = int(os.environ.get("LOCAL_RANK", processes.rank))
        if local >= torch.cuda.device_count():
            raise MirlibError(
                f"there are more processes than GPUs on this machine ({torch.cuda.device_count()}): start as many "
                "(torchrun --nproc-per-node), or pass --device cpu"
            )
        torch.cuda.set_device(local)
        name = f"cuda:{local}"
    with boundary(f"device '{shown(name)}' cannot be used here"):  # each kind of device has errors of its own
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    return name


def _load(options: argparse.Namespace, processes: Processes) -> tuple[Any, Any]:
    import torch

    device = _device(options.device, processes)
    if options.device_map and processes.size > 1:
        raise MirlibError(
            "--device-map spreads one model over the GPUs, which the processes share: pass one or the other"
        )
    if options.model is None:
        if options.device_map or options.load_in_4bit:
            raise MirlibError("--device-map and --load-in-4bit are for a MODEL; the miniature fits anywhere")
        from mirlib.loading import load_miniature

        model, processor = load_miniature(dtype=None if options.dtype == "auto" else getattr(torch, options.dtype))
        return model.to(device), processor
    from mirlib.loading import load_model

    names = ("dtype", "device_map", "load_in_4bit", "trust_remote_code", "allow_pickle")
    with _stdout_for_results():
        return load_model(options.model, device=device, **_given(options, *names))


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Send to stderr what libraries print while a model is loaded; some print past Python, to the descriptor itself."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed
        yield
        return
    with suppress(OSError):  # stderr is closed
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# ---------------------------------------------------------------------------------------------------------------------
# mir plan


def _plan(options: argparse.Namespace) -> None:
    _check_outputs(options)
    if options.confidence is not None and options.preset != "paper":
        raise MirlibError(NO_INTERVAL.format(options.preset))
    from mirlib.planning import plan

    names = ("num", "batch_size", "text_tokens", "vision_tokens", "dtype", "device", "preset", "trust_remote_code")
    found = plan(options.model, confidence=_confidence(options), **_given(options, *names))
    _deliver(found.to_json(), lambda: str(found), options.json)


# ---------------------------------------------------------------------------------------------------------------------
# mir features


def _features(options: argparse.Namespace) -> None:
    from mirlib.mir import modality_integration_rate

    _check_outputs(options)
    path = Path(options.file)
    arrays = read_arrays(path)
    dim = arrays["vision"].shape[-1] if arrays["vision"].ndim == 3 else 0
    if options.preset == "authors-fast":
        check_memory(dim)
    ids = [arrays.get(f"{side}_samples") for side in ("vision", "text")]
    if (ids[0] is None) != (ids[1] is None):
        raise MirlibError(f"{shown(path)}: of vision_samples and text_samples there is one alone; give both, or none")
    samples = None if ids[0] is None else tuple(ids)
    confidence = options.confidence if samples is None else _confidence(options)
    if options.confidence is None and confidence and min(len(set(one.ravel().tolist())) for one in ids) < 2:
        _say("mir: warning: there is no interval: it needs at least 2 samples")
        confidence = None
    result = modality_integration_rate(
        arrays["vision"], arrays["text"], preset=options.preset, samples=samples, confidence=confidence
    )
    _report(result, options, shown(path))


# ---------------------------------------------------------------------------------------------------------------------
# What is printed


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse output files that cannot be written, or are inputs, before minutes are spent."""
    given = vars(options)
    inputs = [given.get(name) for name in ("model", "file", "images", "texts", "pairs", "files")]
    inputs = [path for names in inputs if names for path in ([names] if isinstance(names, str) else names)]
    outputs = _outputs(options)
    for flag, path in outputs.items():
        if flag != "--json" and path.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise MirlibError(f"cannot draw {shown(path)}: the name must end in .png, .pdf or .svg")
    for path in outputs.values():
        check_writable(path)
        if destroyed := input_at(path, files_of(inputs)):
            raise MirlibError(
                f"cannot write {shown(path)}: that would destroy what is to be measured ({shown(destroyed)}); choose "
                "another name"
            )
    for (flag, path), (other, another) in combinations(outputs.items(), 2):
        if path.resolve() == another.resolve():
            raise MirlibError(f"{flag} and {other} are the same file, {shown(path)}; give them two names")


def _outputs(options: argparse.Namespace) -> dict[str, Path]:
    """The files that a command writes, by the option that names them."""
    given = {f"--{name}": vars(options).get(name.replace("-", "_")) for name in ("json", "plot", "map", "layer-map")}
    return {flag: Path(name) for flag, name in given.items() if name and (name != "-" or flag != "--json")}


def _spare_pictures(options: argparse.Namespace, images: Sequence[Any]) -> None:
    """Refuse an output that is one of the pictures which a file of records or a table names."""
    there = [path for path in _outputs(options).values() if path.is_file()]
    for index in range(len(images) if there else 0):
        try:
            image = images[index]
        except MirlibError:  # what cannot be found, cannot be destroyed
            continue
        if not isinstance(image, Path):
            return
        for path in there:
            if image.name == path.name and image.exists() and path.samefile(image):
                raise MirlibError(
                    f"cannot write {shown(path)}: that would destroy a picture that is to be measured; choose another "
                    "name"
                )


def files_of(sources: Sequence[str]) -> Iterator[Path]:
    """The files and folders that sources name, each shard of ``{000..009}`` and the folder behind ``hf:`` included."""
    from mirlib.readers import _expanded
    from mirlib.tables import HUB

    for source in sources:
        if source.startswith(HUB):
            yield Path(source.removeprefix(HUB).split("@")[0])
        elif "{" in source:
            yield from _expanded(source)
        yield Path(source)


def _deliver(as_json: str, as_text: Callable[[], str], out: str | None) -> None:
    """Write the result, then print it; where the file fails in the end, the JSON goes to stderr."""
    if out == "-" or (out and _is_stream(out, sys.stdout)):
        print_result(as_json)
        return
    if out and _is_stream(out, sys.stderr):
        print(as_json, file=sys.stderr)
    elif out:
        try:
            _write(as_json, out)
        except MirlibError:
            print_result(as_text())
            _say("mir: this was to be written:")
            with suppress(OSError, ValueError):
                print(as_json, file=sys.stderr)
            raise
    print_result(as_text())


def _write(as_json: str, out: str) -> None:
    write_whole(Path(out), lambda path: path.write_text(as_json + "\n", encoding="utf-8"))
    _say(f"mir: wrote {shown(Path(out))}")


def _is_stream(out: str, stream: Any) -> bool:
    """Whether a name leads to what a stream is written to, which then must not be opened once more."""
    with suppress(OSError, ValueError):  # there is no such file yet, or the stream is closed
        return os.path.samestat(os.stat(out), os.fstat(stream.fileno()))
    return False


def _report(
    result: MIRResult,
    options: argparse.Namespace,
    name: str,
    stored: dict[str, Any] | None = None,
    text: Sequence[str] = (),
    notes: Sequence[str] = (),
    drawings: Sequence[tuple[str, Callable[[], Any]]] = (),
) -> None:
    """Write, print and draw a result, with what was measured beside it."""
    if options.json == "-":
        for warning in (*result.warnings, *notes):
            _say(f"mir: warning: {warning}")
    _deliver(
        json_text(result.to_dict() | (stored or {})), lambda: "\n".join([describe(result, name), *text]), options.json
    )
    if options.plot:
        _draw(options.plot, result.plot)
    for out, plot in drawings:
        _draw(out, plot)


def _compare(options: argparse.Namespace) -> None:
    _check_outputs(options)
    if options.plot and len(options.files) != 2:
        raise MirlibError(f"--plot draws the difference of two results; there are {len(options.files)}")
    results: dict[str, MIRResult] = {}
    for name in options.files:
        label = shown(Path(name))
        while label in results:
            label += " (again)"
        results[label] = stored_result(Path(name))
    first, *others = results
    found: dict[str, Comparison | MirlibError] = {}
    for name in others:
        try:
            found[name] = compare(results[name], results[first])
        except MirlibError as error:
            found[name] = error
    stored = [
        {"result": name, "minus": first} | ({"refused": str(one)} if isinstance(one, MirlibError) else one.to_dict())
        for name, one in found.items()
    ]
    _deliver(json_text({"differences": stored}), lambda: side_by_side(results, found), options.json)
    if differences(results):
        _say("mir: warning: the results may not belong side by side; the lines with ! say why")
    if options.plot:
        (only,) = found.values()
        if isinstance(only, MirlibError):
            raise only
        _draw(options.plot, only.plot)
