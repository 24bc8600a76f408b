"""The program ``mir``, and ``python -m mirlib``: `mirlib.cli` with what belongs to a process of its own.

It imports little: torch takes seconds, and who presses Ctrl-C in them wants no traceback.
"""

import io
import os
import signal
import sys


def main() -> int:
    """Run the command and return its exit code."""
    # Under a launcher of processes, an interrupt reaches all of them, and the launcher ends those that are left.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
        signal.signal(number, _stop)
    if sys.stderr is not None:
        sys.stderr = io.TextIOWrapper(
            _Deaf(sys.stderr.fileno(), "w", closefd=False), encoding=sys.stderr.encoding, write_through=True
        )
    from mirlib.cli import main as run

    code = run()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is done and said; the interpreter takes its time to end
    return code


def _stop(number: int, _: object) -> None:
    """Say it and end here: an exception could be swallowed by whatever runs now, a weakref callback or an import."""
    if os.environ.get("RANK", "0") == "0":
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        on_a_line = bool(getattr(bars, "_instances", ())) or os.isatty(2)  # behind a bar, or behind ^C
        try:
            os.write(2, b"\nmir: interrupted\n" if on_a_line else b"mir: interrupted\n")
        except OSError:
            pass
    os._exit(128 + number)


class _Deaf(io.FileIO):
    """A stream of messages that goes on when nobody can read them: a full disk or a closed pipe loses no result."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


if __name__ == "__main__":
    sys.exit(main())
