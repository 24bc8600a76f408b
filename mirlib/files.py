"""Files that are written whole or not at all, and looked at before the work whose result they are to hold."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mirlib.errors import MirlibError, shown

__all__ = ["check_writable", "input_at", "write_whole"]


@contextmanager
def _what_the_disk_says(path: Path) -> Iterator[None]:
    try:
        yield
    # A loop of links is a RuntimeError, a name with a zero byte a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, MirlibError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MirlibError(f"cannot write {shown(path)}: {shown(reason)}") from error


def check_writable(path: Path, make_folder: bool = False) -> None:
    """Refuse a file that could not be written in the end; nothing stays behind but the folder, with ``make_folder``.

    Raises:
        MirlibError: If there is no such folder, the folder or the file is read-only, or the name cannot be one.
    """
    with _what_the_disk_says(path):
        if path.is_dir():
            raise MirlibError(f"cannot write {shown(path)}: it is a folder")
        if _is_no_file(path):
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


def _is_no_file(path: Path) -> bool:
    """Whether it is a device or a pipe, which are written to as they are."""
    return path.exists() and (not path.is_file() or path.parts[:2] == ("/", "dev"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` write a file beside its name and move it there, so that a crash leaves the old one as it was.

    Raises:
        MirlibError: If it cannot be written.
    """
    with _what_the_disk_says(path):
        if _is_no_file(path):
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
        with suppress(OSError, RuntimeError, ValueError):  # what cannot be found, cannot be destroyed
            if path.is_file() and other.exists():
                inside = other.is_dir() and path.resolve().is_relative_to(other.resolve())
                if path.samefile(other) or (inside and b'"schema"' not in path.read_bytes()[:100]):
                    return other
    return None
