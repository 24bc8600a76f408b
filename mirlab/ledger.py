"""The ledger: what was run, with what settings, on what machine, and what came out.

One JSON Lines file an experiment, one row a finished run. A row is written whole or not at all, two processes may
write at once, and a run that was killed leaves nothing that the next one could stumble over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any, NoReturn

from mirlib.errors import MirlibError, first_line, shown

try:
    import fcntl
except ImportError:  # Windows has no fcntl; a single writer needs no lock there
    fcntl = None


CEILINGS = "ceilings.json"
"""The oracle's rates by experiment and claim, beside the ledger; `mirlab.power` writes them."""


def shipped() -> Path:
    """The folder of the ledger that comes with mirlab, wherever the process runs.

    It is ``results`` of the repository where mirlab runs from a copy of that, as after ``pip install -e .``; otherwise
    what was installed along with the package. Without either it is refused.
    """
    beside = Path(__file__).resolve().parents[1]
    places = [beside / "results", beside / "share" / "mirlab" / "results"]  # the latter after pip install --target
    with contextlib.suppress(PackageNotFoundError):
        installed = (Path(path.locate()) for path in files("mirlib") or () if path.name == CEILINGS)
        places += [path.resolve().parent for path in installed]
    for place in places:
        if (place / CEILINGS).is_file():
            return place
    raise MirlibError("mirlab was installed without its ledger; install it again from a copy of the repository")


def key_of(configuration: dict[str, Any]) -> str:
    """A short fingerprint of a configuration; equal configurations have equal keys, whatever their order."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """Rows of one experiment in one JSON Lines file, which need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """All finished rows, oldest first. A half-written last line, left by a killed run, is passed over.

        A row that stands there twice, as after a merge, counts once, with a warning. Refused are other damaged lines, a
        key that is not that of its configuration, and two different rows of one key.
        """
        if not self.path.exists():
            return []
        if not self.path.is_file():  # a folder, or a pipe that would never end
            raise MirlibError(f"{shown(self.path)}: not a file, so no ledger")
        return _parse(self.path.read_bytes(), self.path)

    def find(self, key: str) -> dict[str, Any] | None:
        """The row with a key, or None."""
        return next((row for row in self.rows() if row["key"] == key), None)

    def append(self, row: dict[str, Any]) -> bool:
        """Add a row, which must be JSON and hold a ``key``, unless one with its key is there; whether it was added."""
        if "key" not in row:
            raise ValueError("a row of the ledger needs a 'key'")
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with FileLock(self.path) as lock:
            content = self.path.read_bytes()
            if any(other["key"] == row["key"] for other in _parse(content, self.path)):
                return False
            whole = content.rfind(b"\n") + 1  # what follows are a killed run's last words
            os.ftruncate(lock.descriptor, whole)
            os.lseek(lock.descriptor, whole, os.SEEK_SET)
            if os.write(lock.descriptor, line) != len(line):
                os.ftruncate(lock.descriptor, whole)
                raise OSError(f"could not write a whole row to {self.path}: is the disk full?")
            os.fsync(lock.descriptor)
        return True


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        where = f"{shown(path)}, line {number}"
        try:
            row = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise MirlibError(f"{where}: not a row of the ledger ({shown(first_line(error))})") from error
        key = row.get("key") if isinstance(row, dict) else None
        if not isinstance(key, str):
            raise MirlibError(f"{where}: not a row of the ledger (it is no object with a key)")
        if "configuration" in row and key_of(row["configuration"]) != key:
            raise MirlibError(
                f"{where}: the key {shown(key)} is not that of the row's configuration, which was changed after the "
                "run; take the line out, and the run is made again"
            )
        before, first = rows.setdefault(key, (number, row))
        if first != row:
            raise MirlibError(
                f"{where}: the key {shown(key)} stands in line {before}, too, with another row; take out the one that "
                "you do not trust"
            )
        if before != number:
            warnings.warn(f"{where}: the same row as line {before}, which is counted once", stacklevel=4)
    return [row for _, row in rows.values()]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class FileLock:
    """An exclusive lock on a file, made if it is missing, for a `with` statement.

    It waits for whoever holds the lock; without ``wait``, `held` tells whether the lock was got. The system lets go of
    it when the process dies.
    """

    def __init__(self, path: str | Path, *, wait: bool = True) -> None:
        self.path, self.wait = Path(path), wait
        self.held = False

    def __enter__(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        with contextlib.suppress(BlockingIOError):
            if fcntl is not None:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            self.held = True
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)  # which lets go of the lock
        self.held = False


def provenance() -> dict[str, Any]:
    """When and where a row was made: UTC time, library versions, processor, and the commit if there is one."""
    libraries = {}
    for name in ("mirlib", "torch", "transformers", "tokenizers", "numpy", "peft"):
        with contextlib.suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "libraries": libraries,
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
        return commit + ("+changes" if changed.stdout.strip() else "")
    return None
