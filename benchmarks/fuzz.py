"""``python -m benchmarks.fuzz``: valid small inputs, broken at random, through everything that reads a file.

Every input must end in a result or in one sentence: no traceback, no hang, no claim of memory. Each surface runs in a
process of its own that may take two gigabytes more than it begins with; what fails is kept with its seed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mirlab import commands  # noqa: F401  (what the command would import in the time of the first input)
from mirlab.ledger import Ledger
from mirlib import MirlibError, cli, modality_integration_rate
from mirlib.data import load_image
from mirlib.mir import PRESETS
from mirlib.readers import open_images, open_pairs, open_texts
from mirlib.result import Sample

LIMIT = 10  # seconds of processor time for one input, and four times as many on the wall
MEMORY = 2 << 30  # bytes more than at the start
LONGEST = 1100  # characters of a sentence
ROOT = Path(__file__).resolve().parents[1]

Rng = np.random.Generator
Break = Callable[[Rng, Path], Path]
"""Writes a broken input into a folder and returns its path."""


@dataclass(frozen=True)
class Surface:
    """Something that reads files.

    Attributes:
        share: Of all inputs.
        broken: Writes an input.
        read: Reads it, as a user would; an error that is no `MirlibError` is a failure.
    """

    share: int
    broken: Break
    read: Callable[[Path], None]


class Hang(BaseException):
    """An input took too long; no handler of errors may take it for one."""


class Unclear(AssertionError):
    """A refusal that is no sentence."""


# ---------------------------------------------------------------------------------------------------------------------
# Breaking bytes and values

ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0\0\0\0\0",
    b"\n",
    b'"',
    b"{",
    b"[" * 20_000,
    b"1e999",
    b"\x1b[31m",
)


def broken_bytes(rng: Rng, whole: bytes) -> bytes:
    """One to four changes of bytes: flipped, cut, repeated, overwritten, put in, left out."""
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        start = int(rng.integers(len(data)))
        stop = min(len(data), start + int(rng.integers(1, 40)))
        kind = int(rng.integers(7))
        if kind == 0:
            data[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[start] = int(rng.integers(256))
        elif kind == 2:
            del data[start:]
        elif kind == 3:
            data[start:start] = data[start:stop]
        elif kind == 4:
            odd = ODD_BYTES[int(rng.integers(len(ODD_BYTES)))]
            data[start : start + len(odd)] = odd
        elif kind == 5:
            del data[start:stop]
        else:
            data[start:start] = rng.bytes(stop - start)
    return bytes(data)


HUGE = "huge"  # stands for a number of more digits than Python writes or reads


def odd_value(rng: Rng) -> Any:
    """A value of JSON that nobody expected."""
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    odd = (
        *(None, True, 0, -1, 1.5, 2**63, 10**400, -(10**30), float("nan"), float("inf"), 1e308, 5e-324, "", " ", "x"),
        *(
            "NaN",
            "\ud800",
            "\x1b]0;x\x07",
            "../../etc/passwd",
            HUGE,
            "http://127.0.0.1/x.png",
            "file:///etc/passwd",
            "a" * 5000,
        ),
        *([], {}, [[]], [None], {"a": {"b": []}}, deep, "<image>", ["x", 1], "0.png\0", "/dev/zero"),
    )
    return odd[int(rng.integers(len(odd)))]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def broken_value(rng: Rng, value: Any) -> Any:
    """A copy with one to three places replaced, left out, or moved under another key."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(value))
        if not places:
            return odd_value(rng)
        path = places[int(rng.integers(len(places)))]
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        kind = int(rng.integers(5))
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder["\x1b[31mkey"] = holder.pop(path[-1])
        elif kind == 2 and isinstance(holder[path[-1]], list):
            holder[path[-1]] = holder[path[-1]] * 3
        else:
            holder[path[-1]] = odd_value(rng)
    return value


def _as_json(value: Any) -> bytes:
    return json.dumps(value).replace(f'"{HUGE}"', "9" * 5000).encode()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _picked(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


# ---------------------------------------------------------------------------------------------------------------------
# Stored hidden states and results


def _command(*arguments: Any) -> None:
    """Run ``mir``, and hold its refusal to the rule: one line, not too long, nothing that a terminal obeys."""
    out, said = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(said):
        code = cli.main([str(argument) for argument in arguments])
    if code == 0:
        return
    lines = said.getvalue().splitlines()
    if code != cli.BAD_INPUT or not lines or not lines[-1].startswith("mir: "):
        raise Unclear(f"exit code {code}, {said.getvalue()[-300:]!r}")
    if "allocate" in lines[-1]:  # the arrays were asked for before they were looked at
        raise MemoryError(lines[-1])
    raise MirlibError(lines[-1].removeprefix("mir: "))


def check_sentence(sentence: str) -> None:
    """Refuse an empty, long or unprintable sentence."""
    if not sentence.strip() or len(sentence) > LONGEST or not sentence.isprintable():
        raise Unclear(f"not a sentence ({len(sentence)} characters): {sentence[:300]!r}")


@cache
def _states() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "vision": rng.normal(size=(2, 12, 3)),
        "text": rng.normal(size=(2, 10, 3)),
        "vision_samples": np.repeat(np.arange(4), 3),
        "text_samples": np.arange(10) % 4,
    }


DTYPES = "f2 f4 f8 >f4 >f8 g i1 i4 u8 c8 c16 ? U3 S3 M8[s] V4 O".split()
SHAPES = (
    (),
    (0,),
    (2,),
    (2, 3),
    (1, 1, 1),
    (0, 4, 3),
    (2, 0, 3),
    (2, 4, 0),
    (2, 4, 3),
    (1, 2, 60_000),
    (100_000, 2, 1),
    (2, 1, 3, 1),
)
SCALES = (0.0, 1e-300, 1e-160, 1e-90, 1e-30, 1e30, 1e90, 1e160, 1e300, float("nan"), float("inf"))


def _odd_states(rng: Rng) -> dict[str, np.ndarray]:
    arrays = dict(_states())
    for _ in range(int(rng.integers(1, 4))):
        name = _picked(rng, list(arrays) or ["vision"])
        kind = int(rng.integers(6))
        if kind == 0:
            arrays.pop(name, None)
        elif kind == 5:
            shape = _picked(rng, SHAPES)
            arrays = {name: rng.normal(size=shape) for name in ("vision", "text")}
        elif kind == 1:
            arrays[name] = rng.normal(size=_picked(rng, SHAPES))
        elif kind == 2 and name in arrays and arrays[name].dtype.kind in "iuf":
            with np.errstate(all="ignore"):
                arrays[name] = arrays[name].astype(_picked(rng, DTYPES))
        elif kind == 3 and name in arrays and arrays[name].dtype.kind == "f":
            with np.errstate(all="ignore"):
                arrays[name] = np.asfortranarray(arrays[name] * _picked(rng, SCALES))
        elif name in arrays and arrays[name].dtype.kind in "iu":
            arrays[name] = rng.integers(-(2**62), 2**62, size=arrays[name].shape)
    return arrays


def _npz(rng: Rng, folder: Path) -> Path:
    path = folder / "a.npz"
    kind = int(rng.integers(4))
    if kind < 2:
        save = np.savez if kind else np.savez_compressed
        save(path, **(_odd_states(rng) if kind else _states()))
        return path if kind else _written(path, broken_bytes(rng, path.read_bytes()))
    with zipfile.ZipFile(path, "w", _picked(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, values in _states().items():
            plain = io.BytesIO()
            np.save(plain, values)
            whole = plain.getvalue()
            head, body = whole[:128], whole[128:]
            if rng.random() < 0.6:
                number = str(_picked(rng, (0, -1, 7, 10**6, 10**12, 2**64, "9" * 2900)))
                old = _picked(rng, (b"2", b"12", b"3", b"False", b"<f8", b"descr", b"10"))
                new = _picked(rng, (number.encode()[:3000], b"True", b"|O", b"<f1", b"()", b"'" * 3))
                head = head.replace(old, new) if kind == 2 else broken_bytes(rng, head)
            archive.writestr(f"{name}.npy", head + body)
    return path


SAFE = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 F4 F6_E2M3 I64 U8 BOOL C64 X".split()


def _safetensors(rng: Rng, folder: Path) -> Path:
    header: dict[str, Any] = {}
    body = b""
    for name, values in _states().items():
        start = len(body)
        body += values.tobytes()
        dtype = "F64" if values.dtype.kind == "f" else "I64"
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [start, len(body)]}
    kind = int(rng.integers(4))
    if kind == 0:
        header = broken_value(rng, header)
    elif kind == 1:  # other types that fit
        for name in ("vision", "text"):
            dtype = _picked(rng, SAFE)
            size = {"F64": 1, "C64": 1, "F32": 2, "F16": 4, "BF16": 4}.get(dtype, 8)
            header[name]["dtype"] = dtype
            header[name]["shape"][1] *= size
        del header["vision_samples"], header["text_samples"]
    elif kind == 2:
        body = np.frombuffer(body, "<f8").copy()
        body[rng.integers(len(body), size=5)] = rng.choice(SCALES, size=5)
        body = body.tobytes()
    text = _as_json(header)
    whole = len(text).to_bytes(8, "little") + text + body
    return _written(folder / "a.safetensors", broken_bytes(rng, whole) if kind == 3 else whole)


def _measure(path: Path) -> None:
    """`mir features` with the preset that the size of the file falls on."""
    _command("features", path, "--preset", tuple(PRESETS)[path.stat().st_size % len(PRESETS)])


@cache
def _result() -> dict[str, Any]:
    states = _states()
    samples = (states["vision_samples"], states["text_samples"])
    result = modality_integration_rate(states["vision"], states["text"], samples=samples, confidence=0.9)
    count = 0 if result.influence is None else result.influence.vision.shape[1]
    return replace(result, samples=tuple(Sample(f"{i}.png", f"{i:016x}", f"{i:016x}") for i in range(count))).to_dict()


def _stored_result(rng: Rng, folder: Path) -> Path:
    _written(folder / "whole.json", _as_json(_result()))
    if rng.random() < 0.7:
        return _written(folder / "a.json", _as_json(broken_value(rng, _result())))
    return _written(folder / "a.json", broken_bytes(rng, _as_json(_result())))


# ---------------------------------------------------------------------------------------------------------------------
# Images, texts, pairs


@cache
def _png() -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(9, 11, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@cache
def _pictures() -> list[bytes]:
    """A small picture in every format and mode that Pillow writes."""
    Image.init()
    pixels = np.random.default_rng(1).integers(256, size=(24, 32, 4)).astype(np.uint8)
    found = [_png()]
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "RGBA", "P", "L", "1", "I;16", "I", "F", "CMYK", "LA"):
            file = io.BytesIO()
            try:
                image = Image.fromarray(pixels)
                image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
                image.save(file, kind)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
                continue  # not every format takes every mode
            found.append(file.getvalue())
    return found


def _picture(rng: Rng, folder: Path) -> Path:
    name = _picked(rng, ("a.png", "a.jpg", "a.webp", "a.tiff", "a.gif", "a.bmp"))
    return _written(folder / name, broken_bytes(rng, _picked(rng, _pictures())))


RECORDS = (
    [{"image": f"{i}.png", "text": f"a text with the number {i}"} for i in range(3)],
    [
        {
            "id": str(i),
            "image": f"{i}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": f"A picture, the {i}th."},
            ],
        }
        for i in range(3)
    ],
)


def _with_pictures(folder: Path) -> None:
    for number in range(3):
        _written(folder / f"{number}.png", _png())


def _json_lines(rng: Rng, folder: Path) -> Path:
    _with_pictures(folder)
    records = [dict(record) for record in _picked(rng, RECORDS)]
    if rng.random() < 0.7:
        number = int(rng.integers(len(records)))
        records[number] = broken_value(rng, records[number])
        return _written(folder / "a.jsonl", b"\n".join(map(_as_json, records)) + b"\n")
    return _written(folder / "a.jsonl", broken_bytes(rng, b"\n".join(map(_as_json, records)) + b"\n"))


def _table(rng: Rng, folder: Path) -> Path:
    _with_pictures(folder)
    ending = _picked(rng, ("json", "csv", "tsv"))
    records = _picked(rng, RECORDS)
    if ending == "json":
        content = _as_json(broken_value(rng, records) if rng.random() < 0.7 else records)
        return _written(folder / "a.json", broken_bytes(rng, content) if rng.random() < 0.4 else content)
    mark = "," if ending == "csv" else "\t"
    lines = [["image", "text"], *([f"{i}.png", f'"a text, {i}"'] for i in range(3))]
    if rng.random() < 0.5:
        lines[int(rng.integers(4))][int(rng.integers(2))] = str(odd_value(rng)).encode("utf-8", "replace").decode()
    content = "\n".join(mark.join(line) for line in lines).encode()
    return _written(folder / f"a.{ending}", broken_bytes(rng, content) if rng.random() < 0.6 else content)


def _tar(rng: Rng, folder: Path) -> Path:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=_picked(rng, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for number in range(3):
            for ending, content in (("png", _png()), ("txt", b"a text"), ("json", b'{"caption": "a text"}')):
                member = tarfile.TarInfo(f"{number}.{ending}")
                if rng.random() < 0.15:
                    member.name = _picked(
                        rng, ("../x.png", "/etc/x.png", "a\x1b[31m.png", "ü" * 200 + ".png", "noending", "0.png")
                    )
                if rng.random() < 0.1:
                    member.type = _picked(
                        rng, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S")
                    )
                    member.linkname = "/etc/passwd"
                content = broken_bytes(rng, content) if rng.random() < 0.2 else content
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    whole = file.getvalue()[: 512 * 40]
    return _written(folder / "a.tar", broken_bytes(rng, whole) if rng.random() < 0.5 else whole)


@cache
def _tables() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    texts, number = [f"a text {i}" for i in range(3)], list(range(3))
    columns: list[dict[str, Any]] = [
        {"image": [{"bytes": _png(), "path": None}] * 3, "text": texts},
        {"image": [_png()] * 3, "text": texts, "image_id": ["a", None, None]},
        {"image": ["0.png", "../1.png", "/dev/zero"], "text": texts},
        {"image": [None] * 3, "text": [None, "", " "]},
        {"image": number, "text": number},
        {"image": [[_png()], [], None], "text": [["a", "b"], [], None]},
        {"image": [{"path": "0.png"}, {"path": "\x1b"}, None], "text": [{"a": "b"}] * 3},
        {"image": [b"no picture"] * 3, "\x1btext": texts},
    ]
    found = []
    for table in columns:
        file = io.BytesIO()
        parquet.write_table(pa.table(table), file)
        found.append(file.getvalue())
    return found


def _parquet(rng: Rng, folder: Path) -> Path:
    _with_pictures(folder)
    whole = _picked(rng, _tables())
    if rng.random() < 0.3:  # in the description of the columns, which stands last
        cut = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        return _written(folder / "a.parquet", whole[:cut] + broken_bytes(rng, whole[cut:-8]) + whole[-8:])
    return _written(folder / "a.parquet", broken_bytes(rng, whole) if rng.random() < 0.8 else whole)


def _text(rng: Rng, folder: Path) -> Path:
    whole = "A first text.\nEin zweiter, größerer Text.\n\nთქვენ, 三番目.\n".encode(
        _picked(rng, ("utf-8", "utf-16", "utf-8-sig"))
    )
    return _written(folder / f"a.{_picked(rng, ('txt', 'md', 'story', 'text'))}", broken_bytes(rng, whole))


def _read_pairs(path: Path) -> None:
    """Without mercy, then with what cannot be read left out; then as images alone and as texts alone."""
    skipped: list[str] = []
    last: MirlibError | None = None
    for on_unreadable in (None, skipped.append):
        for open_source in (open_pairs, open_images, open_texts):
            try:
                found = open_source(path, on_unreadable=on_unreadable)
                images, texts = {open_pairs: found, open_images: (found, ()), open_texts: ((), found)}[open_source]
                _read_items(images, texts)
            except MirlibError as error:
                check_sentence(str(error))
                last = error
    for sentence in skipped:
        check_sentence(sentence)
    if last is not None:
        raise last


def _read_items(images: Sequence[Any], texts: Sequence[Any]) -> None:
    for items, read in ((images, load_image), (texts, str)):
        for number in range(len(items)):
            try:
                read(items[number])
            except MirlibError as error:
                check_sentence(str(error))


# ---------------------------------------------------------------------------------------------------------------------
# The ledger and checkpoints


@cache
def _ledger_lines() -> list[bytes]:
    return (ROOT / "results" / "robustness.jsonl").read_bytes().splitlines()


def _ledger(rng: Rng, folder: Path) -> Path:
    lines = list(_ledger_lines())
    number = int(rng.integers(len(lines)))
    kind = int(rng.integers(5))
    if kind == 0:
        lines[number] = broken_bytes(rng, lines[number])
    elif kind == 1:
        lines.append(lines[number])
    elif kind == 2:
        lines = lines[:number]
    elif kind == 3:
        row = json.loads(lines[number])
        lines[number] = _as_json(row | {"metrics": broken_value(rng, row["metrics"])})
    else:
        lines[number] = _as_json(broken_value(rng, json.loads(lines[number])))
    return _written(folder / "sizes.jsonl", b"\n".join(lines) + b"\n")


def _append(path: Path) -> None:
    """Add a row to a ledger, which reads it whole."""
    Ledger(path).append({"key": "another", "value": 1})


TEMPLATES = (
    "{{ raise_exception('no') }}", "{{ nothing.here }}", "{% for", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content + 'x' }}{% endfor %}", "", "{{ 1/0 }}", "{{ messages[7].role }}", "\x1b[31m",
    "{% for m in messages %}<image>{% for c in m.content %}{{ c.text }}{{ c.text }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'x' * 10**9 }}",
    "{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
)  # fmt: skip
PARTS = ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")


def _checkpoint(rng: Rng, folder: Path) -> Path:
    made = folder / "checkpoint"
    shutil.copytree(ROOT / "mirlib" / "miniature", made, symlinks=True, dirs_exist_ok=True)
    if rng.random() < 0.4:
        (made / "chat_template.jinja").write_text(_picked(rng, TEMPLATES), encoding="utf-8")
        return made
    part = made / _picked(rng, PARTS)
    if rng.random() < 0.7:
        part.write_bytes(_as_json(broken_value(rng, json.loads(part.read_bytes()))))
    else:
        part.write_bytes(broken_bytes(rng, part.read_bytes()))
    return made


SURFACES: dict[str, Surface] = {
    "features npz": Surface(3000, _npz, _measure),
    "features safetensors": Surface(3000, _safetensors, _measure),
    "compare": Surface(4000, _stored_result, lambda path: _command("compare", path, path.parent / "whole.json")),
    "json lines": Surface(2500, _json_lines, _read_pairs),
    "json, csv, tsv": Surface(2000, _table, _read_pairs),
    "tar": Surface(1500, _tar, _read_pairs),
    "parquet": Surface(1500, _parquet, _read_pairs),
    "texts": Surface(1500, _text, lambda path: _read_items([], open_texts(path))),
    "pictures": Surface(3000, _picture, load_image),
    "ledger": Surface(1500, _ledger, _append),
    "lab show": Surface(100, _ledger, lambda path: _command("lab", "show", "sizes", "--results", path.parent)),
    "checkpoints": Surface(40, _checkpoint, lambda path: _command("score", path, "-n", 1, "--no-progress")),
}

# ---------------------------------------------------------------------------------------------------------------------
# Running


@dataclass
class Count:
    """What became of the inputs of a surface."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0


def _one(surface: Surface, rng: Rng, folder: Path) -> tuple[str, str]:
    """Break one input and read it: what became of it, and the traceback of a failure."""
    path = surface.broken(rng, folder)
    _set_timers(LIMIT)
    try:
        with redirect_stderr(io.StringIO()):
            surface.read(path)
    except Hang:
        return "hangs", traceback.format_exc(limit=-8)
    except MirlibError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
                return "over memory", traceback.format_exc(limit=-8)
            cause = cause.__cause__
        try:
            check_sentence(str(error))
        except Unclear:
            return "tracebacks", traceback.format_exc(limit=-4)
        return "refused", ""
    except MemoryError:
        return "over memory", traceback.format_exc(limit=-8)
    except BaseException:  # whatever it is, it is what is looked for
        return "tracebacks", traceback.format_exc(limit=-8)
    finally:
        _set_timers(0)
    return "accepted", ""


def _set_timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds)


def _hang(*_: object) -> None:
    raise Hang


def _work(name: str, seed: int, numbers: range, keep: Path, sender: Any) -> None:
    """The process of a surface: one message before and one after each input."""
    surface, index = SURFACES[name], list(SURFACES).index(name)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _hang)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng([seed, index, number])
            sender.send((number, None, ""))
            outcome, trace = _one(surface, rng, Path(folder))
            if trace:
                kept = keep / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                (kept / "traceback.txt").write_text(trace, encoding="utf-8", errors="replace")
            sender.send((number, outcome, trace))
    sender.send((numbers.stop, "end", ""))


def fuzz(name: str, inputs: int, *, seed: int = 0, keep: Path, seconds: float = 1e9, progress: bool = True) -> Count:
    """Break and read inputs of a surface, in a process that is started again where one of them kills it."""
    context = multiprocessing.get_context("fork")
    found, started, number = Count(), time.monotonic(), 0
    with tqdm(total=inputs, desc=name, unit="input", disable=not progress, leave=False) as bar:
        while number < inputs and time.monotonic() - started < seconds:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_work, args=(name, seed, range(number, inputs), keep, sender))
            child.start()
            sender.close()
            outcome = None
            while time.monotonic() - started < seconds:
                try:
                    if not receiver.poll(6 * LIMIT):
                        raise EOFError("no answer")
                    number, outcome, trace = receiver.recv()
                except EOFError as error:
                    outcome = "hangs" if str(error) else "tracebacks"
                    trace = f"input {number} ended the process or never came back"
                if outcome == "end":
                    break
                if outcome is not None:
                    found.outcomes[outcome] += 1
                    bar.update()
                    if trace:
                        found.failures.setdefault(_kind(trace), []).append(f"{name} {number}: {outcome}\n{trace}")
                    if trace.startswith("input "):
                        break
            child.kill()
            child.join()
            number += 1
    found.seconds = time.monotonic() - started
    return found


def _kind(trace: str) -> str:
    """What failures with one cause have in common: the last line without its numbers and names of files."""
    last = trace.strip().splitlines()[-1]
    return re.sub(r"/tmp/\S+|\d+", "", last)[:100]


COLUMNS = ("refused", "accepted", "tracebacks", "hangs", "over memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a line a surface, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=sum(surface.share for surface in SURFACES.values()))
    parser.add_argument("--only", nargs="+", choices=SURFACES, default=list(SURFACES), metavar="SURFACE")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most so long for each surface")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fail (default: a temporary one)")
    options = parser.parse_args(arguments)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    torch.set_num_threads(1)
    total = sum(SURFACES[name].share for name in options.only)
    print(f"{'surface':22}{'inputs':>8}" + "".join(f"{column:>13}" for column in COLUMNS) + f"{'seconds':>9}")
    failed: list[tuple[int, str]] = []
    inputs = 0
    for name in options.only:
        share = max(1, options.inputs * SURFACES[name].share // total)
        found = fuzz(name, share, seed=options.seed, keep=keep, seconds=options.seconds)
        failed += [(len(failures), failures[0]) for failures in found.failures.values()]
        inputs += found.outcomes.total()
        row = "".join(f"{found.outcomes[column]:>13}" for column in COLUMNS)
        print(f"{name:22}{found.outcomes.total():>8}{row}{found.seconds:>9.1f}", flush=True)
    for count, first in failed:
        print(f"\n{count} like {first}")
    print(f"\n{inputs} inputs, {sum(count for count, _ in failed)} failures" + (f"; see {keep}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
