"""The command ``mir``: results to stdout, progress and messages to stderr; bad input is a sentence and exit code 2."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirlib import __version__
from mirlib.distributed import Processes, ProcessFailedError, launched, processes_of_launcher
from mirlib.errors import MirlibError, MirlibWarning
from mirlib.mir import PRESETS
from mirlib.result import MIRResult

if TYPE_CHECKING:
    from mirlib.gaps.model import ZooResult

BAD_INPUT = 2
INTERRUPTED = 130
ARRAYS = ("vision", "text", "vision_samples", "text_samples")
LARGEST_FREE_INTERVAL = 1 << 30  # bytes of jackknife moments that are spent without being asked for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        rank = 0
        with suppress(MirlibError):  # which matters where processes are to work together
            rank, _ = processes_of_launcher()
        with redirect_stderr(io.StringIO()) if rank else nullcontext():  # a wrong option is said once
            options = _parser().parse_args(arguments)
        # A warning of ours is one line for the reader, not a line of source code.
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except SaidError:
        return BAD_INPUT
    except MirlibError as error:
        _say(f"mir: {error}")
        return BAD_INPUT
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        _say("mir: interrupted")
        return INTERRUPTED
    return 0


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
    print(message, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    score.add_argument("model", nargs="?", metavar="MODEL", help="Hugging Face id or local folder (default: miniature)")
    score.add_argument("--images", nargs="+", metavar="SOURCE", help="image files, folders of them, shards, hf:NAME")
    score.add_argument(
        "--texts", metavar="SOURCE", help="folder of text files, a file with one text a line, records, shards, hf:NAME"
    )
    score.add_argument(
        "--pairs",
        metavar="SOURCE",
        help="images with the texts that belong to them: records, shards, .parquet, hf:NAME",
    )
    score.add_argument("--image-field", metavar="NAME", help="field, column or ending in shards (default: the usual)")
    score.add_argument("--text-field", metavar="NAME", help="likewise, of the texts")
    score.add_argument("--image-root", metavar="DIR", help="folder of the image paths in files (default: the file's)")
    # torchrun takes --num for an option of its own, cut short, wherever it stands; hence -n.
    score.add_argument("--num", "-n", type=int, default=100, help="number of pairs (default: %(default)s)")
    score.add_argument("--batch-size", type=int, default=4, help="pairs a forward pass (default: %(default)s)")
    score.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    score.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float64", "float32", "bfloat16", "float16"),
        help="precision of the model; auto is the checkpoint's on a GPU and float32 on a CPU (default: %(default)s)",
    )
    score.add_argument(
        "--device-map", metavar="MAP", help="auto: spread the model over all GPUs, then the CPU (needs accelerate)"
    )
    score.add_argument("--load-in-4bit", action="store_true", help="NF4 weights (needs bitsandbytes and accelerate)")
    score.add_argument("--seed", type=int, default=0, help="which images and texts are drawn (default: %(default)s)")
    score.add_argument(
        "--part",
        metavar="I/N",
        help="draw from part I of N, which have no image or text in common: 1/3, 2/3, 3/3",
    )
    score.add_argument("--template", default="chat", choices=("chat", "plain"), help="default: %(default)s")
    score.add_argument(
        "--text-rows", default="text", choices=("text", "after_image"), help="after_image is the authors' choice"
    )
    score.add_argument(
        "--last", default="normed", choices=("normed", "raw"), help="last layer after or before its norm"
    )
    score.add_argument("--max-text-tokens", type=int, help="cut each text after so many tokens")
    score.add_argument(
        "--trace", default="exact", choices=("exact", "polar"), help="route to the trace term; polar is for GPUs"
    )
    score.add_argument(
        "--measures",
        metavar="NAMES",
        help="all, or names with commas between them: other measures of the gap instead, from one pass over the pairs",
    )
    score.add_argument(
        "--rows", type=int, metavar="R", help="with --measures: rows kept of each modality (default: what 1 GiB holds)"
    )
    score.add_argument("--skip-unreadable", action="store_true", help="leave out what cannot be read, and name it")
    score.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring its own code")
    score.add_argument("--allow-pickle", action="store_true", help="load weights that are not safetensors")
    score.add_argument("--no-progress", action="store_true", help="no bars on stderr")
    score.set_defaults(run=_score)

    features = commands.add_parser(
        "features",
        help="MIR of stored hidden states",
        description='MIR of hidden states in a file: arrays "vision" (K, r, d) and "text" (K, s, d), and for an '
        'interval "vision_samples" (r,) and "text_samples" (s,), the sample that each row belongs to.',
    )
    features.add_argument("file", metavar="FILE", help=".npz or .safetensors")
    features.set_defaults(run=_features)

    for command in (score, features):
        command.add_argument("--preset", default="paper", choices=tuple(PRESETS), help="default: %(default)s")
        command.add_argument(
            "--confidence", type=float, metavar="LEVEL", help="of the interval, 0 for none (default: 0.95 if cheap)"
        )
        command.add_argument("--json", metavar="OUT", help="write the result as JSON; - for stdout alone")
        command.add_argument("--plot", metavar="OUT.png", help="draw the per-layer curve")

    planning = commands.add_parser(
        "plan",
        help="memory and work of a measurement, before it starts",
        description="Memory, forward passes and operations of `mir score` on a model, from its configuration alone: no "
        "weights are read. MODEL is llava-1.5-7b or llava-1.5-13b, a folder with a config.json, or a Hugging Face id.",
    )
    planning.add_argument("model", metavar="MODEL")
    planning.add_argument("--num", "-n", type=int, default=100, help="number of pairs (default: %(default)s)")
    planning.add_argument("--batch-size", type=int, default=4, help="pairs a forward pass (default: %(default)s)")
    planning.add_argument("--text-tokens", type=int, default=800, help="of the longest text (default: %(default)s)")
    planning.add_argument("--vision-tokens", type=int, help="of an image, where the configuration does not say")
    planning.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16", "4bit"), help="of the weights"
    )
    planning.add_argument("--device", default="cuda", help="where it will run: cuda or cpu (default: %(default)s)")
    planning.add_argument("--preset", default="paper", choices=tuple(PRESETS), help="default: %(default)s")
    planning.add_argument("--confidence", type=float, metavar="LEVEL", help="of an interval; 0 or left out for none")
    planning.add_argument(
        "--tflops", type=float, metavar="RATE", help="10^12 operations a second that your device sustains, for a time"
    )
    planning.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring its own code")
    planning.add_argument("--json", metavar="OUT", help="write the plan as JSON; - for stdout alone")
    planning.set_defaults(run=_plan, plot=None)

    compare = commands.add_parser("compare", help="results side by side, with intervals")
    compare.add_argument("results", nargs="+", metavar="RESULT.json", help="files written by --json")
    compare.set_defaults(run=_compare)

    laboratory = commands.add_parser("lab", help="the laboratory: list, run and show experiments")
    actions = laboratory.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="the experiments").set_defaults(run=_lab_list)
    for name, run, text in (
        ("run", _lab_run, "run an experiment, or finish one that was stopped"),
        ("show", _lab_show, "what its ledger says"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("experiment", metavar="EXPERIMENT")
        action.add_argument("--results", default="results", metavar="DIR", help="the ledger (default: %(default)s)")
        action.set_defaults(run=run)
        if name == "run":
            action.add_argument("--output", metavar="DIR", help="base: where the model goes (default: the cache)")
            action.add_argument("--jobs", type=int, metavar="N", help="sweeps: processes at once (default: the cores)")
            action.add_argument("--backend", metavar="NAME", help="sweeps: a joblib backend, e.g. dask or ray")
            action.add_argument(
                "--precision",
                default="float32",
                metavar="NAME",
                help="float32, or bfloat16 where the CPU has it; the rows name it (default: %(default)s)",
            )
            action.add_argument("--no-progress", action="store_true", help="no bars on stderr")
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# mir score


def _score(options: argparse.Namespace) -> None:
    if options.measures is not None:
        _score_measures(options)
        return
    if options.rows is not None:
        raise MirlibError("--rows means nothing without --measures")
    with launched() as processes, _one_voice(processes):
        _score_share(options, processes)


def _score_measures(options: argparse.Namespace) -> None:
    """``mir score --measures``: one process, one pass, many measures."""
    from mirlib.gaps.model import chosen_measures, score_measures

    for given, name in (
        (options.plot is not None, "--plot"),
        (options.confidence, "--confidence"),
        (options.preset != "paper", "--preset"),
        (options.trace != "exact", "--trace"),
    ):
        if given:
            raise MirlibError(f"{name} is for MIR alone: leave out it or --measures")
    if processes_of_launcher()[1] > 1:
        raise MirlibError("--measures keeps rows in the memory of one process: start it without torchrun")
    chosen_measures(options.measures, pairs=options.pairs is not None)  # a wrong name is said before a model is loaded
    _check_outputs(options)
    left_out: list[str] = []

    def leave_out(sentence: str) -> None:
        left_out.append(sentence)
        _say(f"mir: skipped: {sentence}")

    skip = leave_out if options.skip_unreadable else None
    images, texts = _sources(options, skip)
    model, processor = _load(options)
    found = score_measures(
        model,
        processor,
        images,
        texts,
        measures=options.measures,
        num=options.num,
        batch_size=options.batch_size,
        seed=options.seed,
        paired=options.pairs is not None,
        max_rows=options.rows,
        template=options.template,
        text_rows=options.text_rows,
        last=options.last,
        max_text_tokens=options.max_text_tokens,
        skip_unreadable=skip,
        progress=not options.no_progress,
    )
    found = replace(found, settings={**found.settings, **_recorded(options, model)})
    if left_out:
        _say(f"mir: skipped {len(left_out)} in all, which could not be read")
    if options.json == "-":
        print(found.to_json(), flush=True)
        return
    print(describe_measures(found, options.model or "the miniature LLaVA"), flush=True)
    if options.json:
        with _writing():
            _write_json(found, options.json)


def _score_share(options: argparse.Namespace, processes: Processes) -> None:
    """What one process does: measure its share; the first one prints and writes."""
    from mirlib.scoring import DEFAULT_GROUPS, score

    if not processes.leads:
        _hush()

    def prepare() -> tuple[Any, ...]:
        _check_outputs(options)
        images, texts = _sources(options, skip)
        return images, texts, *_load(options, processes)

    left_out: list[str] = []

    def leave_out(sentence: str) -> None:
        left_out.append(sentence)
        if processes.leads:
            _say(f"mir: skipped: {sentence}")

    skip = leave_out if options.skip_unreadable else None
    images, texts, model, processor = processes.together(prepare)
    result = score(
        model,
        processor,
        images,
        texts,
        num=options.num,
        batch_size=options.batch_size,
        seed=options.seed,
        paired=options.pairs is not None,
        preset=options.preset,
        template=options.template,
        text_rows=options.text_rows,
        last=options.last,
        trace=options.trace,
        max_text_tokens=options.max_text_tokens,
        confidence=_confidence(options, model, min(DEFAULT_GROUPS, options.num), processes),
        skip_unreadable=skip,
        progress=not options.no_progress,
    )
    result = replace(result, settings={**result.settings, **_recorded(options, model)})

    def report() -> None:
        if processes.leads:
            if left_out:
                _say(f"mir: skipped {len(left_out)} in all, which could not be read")
            _report(result, options, options.model or "the miniature LLaVA")

    processes.together(report)


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
        **({"image_root": options.image_root} if options.image_root else {}),
        **({"part": options.part} if options.part else {}),
        "quantization": quantization,
        "mirlib": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _sources(options: argparse.Namespace, skip: Callable[[str], None] | None) -> tuple[Sequence[Any], Sequence[str]]:
    """The images and the texts to draw from: all that the options name, or the part of them that ``--part`` names."""
    from mirlib.readers import part_of

    if options.part is None:
        return _all_sources(options, skip, max(options.num, 1))
    number, _, parts = options.part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise MirlibError(f"--part must be I/N with I from 1 to N, such as 1/3, got {options.part}")
    found = _all_sources(options, skip, max(options.num, 1) * int(parts))
    shares = tuple(part_of(items, int(number), int(parts), seed=options.seed) for items in found)
    for what, items, share in zip(("images", "texts"), found, shares, strict=True):
        if len(share) < options.num:
            raise MirlibError(
                f"part {options.part} holds {len(share)} of the {len(items)} {what}, and {options.num} are asked for: "
                "take fewer parts (--part) or fewer pairs (--num)"
            )
    return shares


def _all_sources(
    options: argparse.Namespace, skip: Callable[[str], None] | None, number: int
) -> tuple[Sequence[Any], Sequence[str]]:
    """The images and the texts that the options name; without any, ``number`` of those of installed packages."""
    from mirlib.data import sample_images, sample_texts
    from mirlib.readers import open_images, open_pairs, open_texts

    fields = {"image_field": options.image_field, "text_field": options.text_field}
    root = options.image_root
    if options.pairs:
        if options.images or options.texts:
            raise MirlibError("--pairs brings its own images and texts: leave out --images and --texts")
        return open_pairs(options.pairs, **fields, image_root=root, on_unreadable=skip)
    for name, given, sources in (("image", "image_field", options.images), ("text", "text_field", options.texts)):
        if fields[given] and not sources:
            raise MirlibError(f"--{name}-field means nothing without --{name}s or --pairs")
    images, texts = options.images, options.texts
    if root and not images:
        raise MirlibError("--image-root means nothing without --images or --pairs")
    return (
        open_images(images, image_field=options.image_field, image_root=root, on_unreadable=skip)
        if images
        else sample_images(number, options.seed),
        open_texts(texts, text_field=options.text_field, on_unreadable=skip)
        if texts
        else sample_texts(number, options.seed),
    )


def _hush() -> None:
    """Leave messages to the first process."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.showwarning = lambda *_, **__: None


def _confidence(options: argparse.Namespace, model: Any, groups: int, processes: Processes) -> float | None:
    """The level asked for, or 0.95 where the jackknife costs little memory."""
    from mirlib.streaming import moment_bytes

    if options.confidence is not None or options.preset == "authors-fast":
        return options.confidence or None
    config = model.config.get_text_config()
    need = moment_bytes(config.num_hidden_layers, config.hidden_size, groups)
    if need <= LARGEST_FREE_INTERVAL and groups >= 2:
        return 0.95
    if groups >= 2 and processes.leads:
        _say(f"mir: no interval: its moments would take {need / 2**30:.1f} GiB; --confidence 0.95 asks for it")
    return None


def _device(name: str, processes: Processes | None = None) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and processes is not None and processes.size > 1:  # a GPU for each process of a machine
        local = int(os.environ.get("LOCAL_RANK", processes.rank))
        if local >= torch.cuda.device_count():
            raise MirlibError(
                f"there are more processes than GPUs on this machine ({torch.cuda.device_count()}): start as many "
                "(torchrun --nproc-per-node), or pass --device cpu"
            )
        torch.cuda.set_device(local)
        name = f"cuda:{local}"
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        raise MirlibError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _load(options: argparse.Namespace, processes: Processes | None = None) -> tuple[Any, Any]:
    """Model and processor, in the precision and on the device that were asked for.

    Raises:
        MirlibError: If they are missing, damaged, incomplete, or stored in a way that was not allowed.
    """
    import torch

    device = _device(options.device, processes)
    if options.device_map and processes is not None and processes.size > 1:
        raise MirlibError(
            "--device-map spreads one model over the GPUs, which the processes share: pass one or the other"
        )
    if options.model is None and (options.device_map or options.load_in_4bit):
        raise MirlibError("--device-map and --load-in-4bit are for a MODEL; the miniature fits anywhere")
    if options.model is None:
        from mirlib.lab.models import load_miniature

        dtype = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
        try:
            model, processor = load_miniature(dtype=dtype)
        except FileNotFoundError as error:
            raise MirlibError(str(error)) from error
        return model.to(device), processor
    from mirlib.loading import load_model

    return load_model(
        options.model,
        device=device,
        dtype=options.dtype,
        device_map=options.device_map,
        load_in_4bit=options.load_in_4bit,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )


# ---------------------------------------------------------------------------------------------------------------------
# mir plan


def _plan(options: argparse.Namespace) -> None:
    _check_outputs(options)
    if options.tflops is not None and not options.tflops > 0:
        raise MirlibError(f"--tflops must be above 0, got {options.tflops:g}")
    _say(f"mir: running {options.model} without numbers")
    from mirlib.planning import plan

    found = plan(
        options.model,
        num=options.num,
        batch_size=options.batch_size,
        text_tokens=options.text_tokens,
        vision_tokens=options.vision_tokens,
        dtype=options.dtype,
        device=options.device,
        preset=options.preset,
        confidence=options.confidence or None,
        trust_remote_code=options.trust_remote_code,
    )
    if options.json == "-":
        print(found.to_json(), flush=True)
        return
    print(found, flush=True)
    if options.tflops:
        print(
            f"At {options.tflops:g}·10^12 operations a second: {found.seconds(options.tflops * 1e12):.0f} s, at least"
        )
    if options.json:
        try:
            Path(options.json).write_text(found.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise MirlibError(f"cannot write {error.filename or 'the plan'}: {error.strerror}") from error
        _say(f"mir: wrote {options.json}")


# ---------------------------------------------------------------------------------------------------------------------
# mir features


def _features(options: argparse.Namespace) -> None:
    from mirlib.mir import modality_integration_rate

    _check_outputs(options)
    arrays = _read_arrays(Path(options.file))
    samples = None
    if "vision_samples" in arrays and "text_samples" in arrays:
        samples = (arrays["vision_samples"], arrays["text_samples"])
    confidence = options.confidence
    if confidence is None and samples is not None and options.preset != "authors-fast":
        confidence = 0.95
    result = modality_integration_rate(
        arrays["vision"], arrays["text"], preset=options.preset, samples=samples, confidence=confidence or None
    )
    _report(result, options, options.file)


def _read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz or .safetensors file; pickled objects are never opened."""
    if not path.is_file():
        raise MirlibError(f"no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            arrays: dict[str, Any] = load_file(path)
        elif path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ARRAYS if name in stored}
        else:
            raise MirlibError(f"{path}: expected .npz or .safetensors")
    except MirlibError:
        raise
    except Exception as error:  # zipfile, NumPy and safetensors each raise their own
        raise MirlibError(f"{path}: cannot read the arrays ({str(error).splitlines()[0]})") from error
    missing = [name for name in ("vision", "text") if name not in arrays]
    if missing:
        raise MirlibError(f"{path}: no array {' and '.join(missing)}; it needs vision (K, r, d) and text (K, s, d)")
    return arrays


# ---------------------------------------------------------------------------------------------------------------------
# What is printed


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse output files that cannot be written before minutes are spent."""
    for name in (options.json, options.plot):
        if not name or name == "-":
            continue
        if not Path(name).resolve().parent.is_dir():
            raise MirlibError(f"cannot write {name}: there is no folder {Path(name).resolve().parent}")
        if Path(name).is_dir():
            raise MirlibError(f"cannot write {name}: it is a folder")
    if options.plot and Path(options.plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise MirlibError(f"cannot draw {options.plot}: the name must end in .png, .pdf or .svg")


def _report(result: MIRResult, options: argparse.Namespace, name: str) -> None:
    if options.json == "-":
        for warning in result.warnings:
            _say(f"mir: warning: {warning}")
        print(result.to_json(), flush=True)
    else:
        print(describe(result, name), flush=True)
    with _writing():  # after the result is printed, so that a full disk does not lose it
        if options.plot:
            import matplotlib

            matplotlib.use("Agg")
            result.plot().figure.savefig(options.plot)
            _say(f"mir: drew {options.plot}")
        if options.json and options.json != "-":
            _write_json(result, options.json)


@contextmanager
def _writing() -> Iterator[None]:
    """Turn what the disk says into a sentence."""
    try:
        yield
    except OSError as error:
        raise MirlibError(f"cannot write {error.filename or 'the result'}: {error.strerror}") from error


def _write_json(result: MIRResult | ZooResult, path: str) -> None:
    Path(path).write_text(result.to_json() + "\n", encoding="utf-8")
    _say(f"mir: wrote {path}")


def describe(result: MIRResult, name: str) -> str:
    """A result as text: the per-layer table, the value, its interval, and what it means."""
    frame = result.to_frame()
    largest = result.per_layer.max()
    lines = [
        f"{'layer':>5}  {'FID':>10}  {'':20}  {'mean term':>10}  {'cov. term':>10}  {'norm ratio':>10}  {'outliers':>8}"
    ]
    for layer, row in frame.iterrows():
        bar = "█" * round(20 * row["fid"] / largest) if largest > 0 else ""
        outliers = f"{row['vision_outliers']:.0f}+{row['text_outliers']:.0f}"
        lines.append(
            f"{layer:>5}  {row['fid']:>10.4g}  {bar:20}  {row['mean_term']:>10.4g}  {row['covariance_term']:>10.4g}  "
            f"{row['norm_ratio']:>10.3g}  {outliers:>8}"
        )
    interval = ""
    if result.interval is not None:
        low, high, confidence, _, method = result.interval
        interval = f"   {confidence:.0%} interval [{low:.4f}, {high:.4f}] ({method} over samples)"
    lines += ["", f"MIR of {name}: {result.value:.4f}{interval}", *_meaning(result)]
    lines += [f"  ! {warning}" for warning in result.warnings]
    return "\n".join(lines)


def _meaning(result: MIRResult) -> list[str]:
    total = float(result.per_layer.sum())
    layers = result.num_layers
    lines = [
        f"  log10 of the summed distance {total:.4g} over {layers} layers; lower is closer.",
        f"  {result.rows['vision']} vision and {result.rows['text']} text rows, preset {result.settings['preset']!r}",
    ]
    if total > 0:
        layer = int(result.per_layer.argmax()) + 1
        lines.append(
            f"  layer {layer} carries {result.per_layer.max() / total:.0%} of the sum, the means "
            f"{result.mean_term.sum() / total:.0%}, the covariances {result.covariance_term.sum() / total:.0%}"
        )
    lines += [
        f"  beside it: vision norms alone would give {result.norm_only:.4f}, vision rows of zero in every layer "
        f"{result.null_baseline:.4f}",
        "  compare it only with values of the same number of layers and pairs, kind of text, preset and template",
    ]
    return lines


def describe_measures(found: ZooResult, name: str) -> str:
    """A zoo as text: a line a measure, then what was left out, and what the columns mean."""
    from mirlib.gaps import MEASURES

    lines = [
        f"{'measure':24}  {'value':>9}  {'layer 1':>9}  {'last':>9}  {'integrated':>10}  {'random pairs':>14}  "
        f"{'calibrated':>10}  {'rows':>11}  {'seconds':>7}"
    ]
    for key, result in found.results.items():
        random, layers = result.calibration, result.per_layer
        null = "" if random is None else f"{random.null_mean.mean():.3f} ± {random.null_std.mean():.3f}"
        calibrated = "" if random is None else f"{random.value:.3f}"
        lines.append(
            f"{MEASURES[key].title:24}  {result.value:>9.4g}  {layers[0]:>9.4g}  {layers[-1]:>9.4g}  "
            f"{result.direction:>10}  {null:>14}  {calibrated:>10}  {'+'.join(map(str, result.rows.values())):>11}  "
            f"{found.seconds[key]:>7.2f}"
        )
    kept, seen = found.settings["rows_kept"], found.settings["rows_seen"]
    lines += [
        "",
        f"{name}: {found.settings['num']} pairs, {found.settings['layers']} layers, seed {found.settings['seed']}; "
        + "; ".join(f"{kept[side]} of {seen[side]} {side} rows kept" for side in kept),
        "  value: mean over the layers; for MIR, FD∞ and norm-only log10 of their sum",
        "  integrated: whether a lower or a higher value means that vision and text lie closer together",
    ]
    if any(result.calibration is not None for result in found.results.values()):
        lines.append("  calibrated: 0 for images and texts put together at random, 1 for the best that there can be")
    if kept != seen:
        lines.append("  ! MIR and FD∞ are those of the rows kept; for all rows, leave out --measures")
    lines += [f"  ! left out: {key} {why}" for key, why in found.skipped.items()]
    return "\n".join(lines)


def _compare(options: argparse.Namespace) -> None:
    results = {}
    for name in options.results:
        try:
            key = f"{name} (again)" if name in results else name
            results[key] = MIRResult.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
        except OSError as error:
            raise MirlibError(f"cannot read {name}: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise MirlibError(f"{name}: not a result written by --json ({error})") from error
        except MirlibError as error:
            raise MirlibError(f"{name}: {error}") from error
    print(compare(results), flush=True)
    if differences(results):
        _say("mir: warning: the results may not belong side by side; the lines with ! say why")


# Settings that change what the number is, so that values which differ in them do not belong side by side. The model and
# its width may differ; and the route to the trace term, since "polar" proves its error.
COMPARABLE = (
    *("layers", "preset", "outliers", "normalize", "text_rows", "template", "last", "max_text_tokens", "num"),
    *("paired", "images", "texts", "dtype", "quantization", "methods"),
)
UNLESS_RECORDED = {"paired": False, "methods": "none"}  # the library writes them where there is something to say


def compare(results: dict[str, MIRResult]) -> str:
    """Results side by side as text, each against the first, with what makes them incomparable."""
    width = max(len(name) for name in results)
    lines = [
        f"{'':{width}}  {'MIR':>8}  {'interval':>18}  {'− first':>16}  {'norm only':>9}  {'null':>8}  {'layers':>6}  "
        "rows"
    ]
    first = next(iter(results.values()))
    for name, result in results.items():
        interval = f"[{result.interval.low:.4f}, {result.interval.high:.4f}]" if result.interval else "none"
        lines.append(
            f"{name:{width}}  {result.value:>8.4f}  {interval:>18}  {_difference(result, first):>16}  "
            f"{result.norm_only:>9.4f}  {result.null_baseline:>8.4f}  {result.num_layers:>6}  "
            f"{result.rows['vision']}+{result.rows['text']}"
        )
    lines += [f"  ! {sentence}" for sentence in differences(results)]
    lines.append("  ± is the 95 % interval of a difference between independent draws; on the same pairs it is too wide")
    return "\n".join(lines)


def differences(results: dict[str, MIRResult]) -> list[str]:
    """Why the results may not belong side by side: the settings that differ, and those that a file does not record."""
    found = []
    unrecorded: dict[str, list[str]] = {}
    for setting in COMPARABLE:
        holders: dict[str, list[str]] = {}
        for name, result in results.items():
            if setting in result.settings or setting in UNLESS_RECORDED:
                value = result.settings.get(setting, UNLESS_RECORDED.get(setting))
                value = " ".join(value) if isinstance(value, list) else str(value)
                holders.setdefault(value, []).append(name)
            else:
                unrecorded.setdefault(name, []).append(setting)
        if len(holders) > 1:
            values = "; ".join(f"{value} in {', '.join(names)}" for value, names in holders.items())
            found.append(f"not comparable: {setting} differs ({values})")
    if len(results) > 1:
        files: dict[str, list[str]] = {}
        for name, settings in unrecorded.items():
            files.setdefault(", ".join(settings), []).append(name)
        found += [
            f"comparable only if you know that these agree, which {', '.join(names)} did not record: {settings}"
            for settings, names in files.items()
        ]
    return found


def _difference(result: MIRResult, first: MIRResult) -> str:
    if result is first:
        return ""
    text = f"{result.value - first.value:+.4f}"
    if result.interval and first.interval:
        text += f" ± {1.96 * math.hypot(result.interval.standard_error, first.interval.standard_error):.4f}"
    return text


# ---------------------------------------------------------------------------------------------------------------------
# mir lab


def _lab_list(options: argparse.Namespace) -> None:
    from mirlib.lab.experiments import EXPERIMENTS

    for name, experiment in EXPERIMENTS.items():
        print(f"{name:16} {experiment.minutes:4} min  {experiment.summary}")


def _lab_run(options: argparse.Namespace) -> None:
    from mirlib.lab import experiments, precision

    _known(options.experiment)
    given = {
        name: value
        for name, value in (("output", options.output), ("jobs", options.jobs), ("backend", options.backend))
        if value is not None
    }
    accepted = {"output"} if options.experiment == "base" else {"jobs", "backend"}
    if unknown := given.keys() - accepted:
        raise MirlibError(f"--{min(unknown)} means nothing to {options.experiment}")
    if options.jobs is not None and options.jobs < 1:
        raise MirlibError(f"--jobs must be at least 1, got {options.jobs}")
    with precision.use(options.precision):
        experiments.run(
            options.experiment, results_dir=Path(options.results), progress=not options.no_progress, **given
        )
    print(experiments.show(options.experiment, Path(options.results)))


def _lab_show(options: argparse.Namespace) -> None:
    from mirlib.lab import experiments

    _known(options.experiment)
    try:
        print(experiments.show(options.experiment, Path(options.results)))
    except ValueError as error:
        raise MirlibError(str(error)) from error


def _known(name: str) -> None:
    from mirlib.lab.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise MirlibError(f"no experiment is called {name!r}; there is {', '.join(EXPERIMENTS)}")
