"""Files that are written whole or not at all, and looked at before the work whose result they are to hold."""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mirlib.errors import MirlibError, boundary, doing, naming, shown
from mirlib.result import MIRResult

__all__ = ["check_writable", "input_at", "is_no_file", "write_whole"]


DISK = (OSError, RuntimeError, ValueError)  # a loop of links is a RuntimeError, a name with a zero byte a ValueError


def check_writable(path: Path, make_folder: bool = False) -> None:
    """Refuse a file that could not be written in the end; ``make_folder`` makes its folder if it is missing."""
    with doing(f"write {shown(path)}", DISK):
        if path.is_dir():
            raise MirlibError(f"cannot write {shown(path)}: it is a folder")
        if is_no_file(path):
            return
        target = path.resolve()
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.is_dir():
            raise MirlibError(f"cannot write {shown(path)}: there is no folder {shown(target.parent)}")
        with suppress(FileNotFoundError):
            target.stat()  # a name that is too long shows here
            if not os.access(target, os.W_OK):
                raise MirlibError(f"cannot write {shown(path)}: the file is read-only")
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # what the rights say is not enough: a disk can be mounted read-only


def is_no_file(path: Path) -> bool:
    """Whether it is a device or a pipe, which are written to as they are."""
    return path.exists() and (not path.is_file() or path.parts[:2] == ("/", "dev"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` write a file beside its name and move it there, so that a crash leaves the old one as it was."""
    with doing(f"write {shown(path)}", DISK):
        if is_no_file(path):
            write(path)
            return
        target = path.resolve()
        beside = target.with_name(f".{target.name[:80]}.{os.getpid()}.part")
        try:
            write(beside)
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            if target.exists():
                beside.chmod(stat.S_IMODE(target.stat().st_mode))
            beside.replace(target)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def input_at(path: Path, inputs: Iterable[Path]) -> Path | None:
    """The first of the inputs that would be destroyed if the path were written, or None.

    That is the same file by whatever name, or a folder that holds it, unless it is a result of an earlier run there.
    """
    for other in inputs:
        with suppress(*DISK):  # what cannot be found, cannot be destroyed
            if path.is_file() and other.exists():
                inside = other.is_dir() and path.resolve().is_relative_to(other.resolve())
                if path.samefile(other) or (inside and b'"schema"' not in path.read_bytes()[:100]):
                    return other
    return None


ARRAYS = ("vision", "text", "vision_samples", "text_samples")
LARGEST_PRODUCTS = 8 << 30  # bytes of (d, d) matrices that stored hidden states may ask for
LARGEST_UNPACKED = 1 << 28  # bytes of an array that may be as well packed as it likes
MOST_PACKED = 20  # times the size of the file, beyond that


def check_memory(dim: int) -> None:
    need = 6 * 4 * dim**2
    if need > LARGEST_PRODUCTS:
        raise MirlibError(
            f"preset 'authors-fast' would take {need / 2**30:.0f} GiB for matrices of {dim} x {dim} numbers; use "
            "preset 'authors' or 'paper'"
        )


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz or .safetensors file, its claims looked at first; pickled objects are never opened."""
    if not path.is_file():
        raise MirlibError(f"{shown(path)}: a folder, not a file" if path.is_dir() else f"no such file: {shown(path)}")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix.lower() not in readers:
        raise MirlibError(f"{shown(path)}: expected .npz or .safetensors")
    with naming(shown(path)), boundary("cannot read the arrays"):
        return readers[path.suffix.lower()](path)


def _wanted(names: Iterable[str]) -> list[str]:
    """The names of our arrays, of those that are there."""
    there = set(names)
    missing = [name for name in ("vision", "text") if name not in there]
    if missing:
        raise MirlibError(f"no array {' and '.join(missing)}; it needs vision (K, r, d) and text (K, s, d)")
    return [name for name in ARRAYS if name in there]


def _read_npz(path: Path) -> dict[str, Any]:
    """Arrays whose headers claim no more than what lies behind them."""
    from numpy.lib import format as form

    found, most = {}, max(LARGEST_UNPACKED, MOST_PACKED * path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        for name in _wanted([name.removesuffix(".npy") for name in archive.namelist()]):
            info = archive.getinfo(f"{name}.npy")
            if info.file_size > most:
                raise MirlibError(
                    f"{name} unpacks to {info.file_size / 2**30:.1f} GiB, more than {MOST_PACKED} times the size of "
                    "the file, which no hidden states do"
                )
            with archive.open(info) as file:
                old = form.read_magic(file) == (1, 0)
                shape, _, dtype = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
                held = info.file_size - file.tell()
            if dtype.hasobject:
                raise ValueError("Object arrays can run code when they are opened; store plain numbers")
            if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > held:
                raise MirlibError(f"{name} claims shape {shown(shape)} of {shown(dtype)}, and holds {held} bytes")
            with archive.open(info) as file:
                found[name] = form.read_array(file, allow_pickle=False)
    return found


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # it holds claims against the size of the file
        return {name: file.get_tensor(name) for name in _wanted(file.keys())}


def stored_result(path: Path) -> MIRResult:
    """The result in a file that ``--json`` wrote."""
    with doing(f"read {shown(path)}", DISK):
        # A pipe that a shell made (<(…), /dev/stdin) ends; one with a name may never, nor may a device.
        if path.exists() and not (
            path.is_file() or path.is_dir() or (path.is_fifo() and path.parts[:2] == ("/", "dev"))
        ):
            raise MirlibError(f"{shown(path)}: not a file")
        stored = path.read_bytes()
    # No UTF-8, no JSON, a number of thousands of digits, too deep …
    with naming(shown(path)), boundary("not a result written by --json"):
        return MIRResult.from_dict(json.loads(stored.decode("utf-8-sig")))
