"""Work of a stranger's making, such as a chat template, in a child process: so much time, so much memory, no more."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mirlib.errors import MirlibError, said_by

__all__ = ["bounded"]

SECONDS = 3  # of processor time, which a busy machine does not take away
PATIENCE = 60.0  # seconds of a clock, for work that waits for what never comes
MEBIBYTES = 512


def bounded(work: Callable[[], str], what: str, advice: str) -> str:
    """What ``work()`` returns, computed in a child process that is stopped where it takes too long or too much memory.

    Where the system has no ``fork`` (Windows), the work is done here, without bounds.

    Args:
        work: Returns a string.
        what: What does the work, at the start of a sentence.
        advice: What to do where it fails, at the sentence's end.

    Raises:
        MirlibError: If ``work`` raises, or takes more than 3 seconds of processor time, or more than 512 MiB.
    """
    if not hasattr(os, "fork"):
        return work()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Forking beside other threads can leave a lock taken in the child. It would then be stopped, and nothing lost.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(work, writing)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + PATIENCE)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if answer is None or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        raise MirlibError(f"{what} takes more than {SECONDS} s for one short text; {advice}")
    if not answer:
        raise MirlibError(f"{what} takes more than {MEBIBYTES} MiB for one short text, or crashes; {advice}")
    problem, result = json.loads(answer)
    if problem:
        raise MirlibError(f"{what} fails ({problem}); {advice}")
    return result


def _answer(work: Callable[[], str], writing: int) -> None:
    """The child's part: work, send ``[problem, result]``, and end without what the parent does when it exits."""
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers would say on stderr that it forked
        _set_limits()
        try:
            answer = ["", work()]
        except MemoryError:
            answer = [f"it takes more than {MEBIBYTES} MiB", ""]
        except Exception as error:
            answer = [str(error) if isinstance(error, MirlibError) else said_by(error), ""]
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _set_limits() -> None:
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, SECONDS)
    if sys.platform.startswith("linux"):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, size + MEBIBYTES * 2**20)


def _lower(what: int, limit: int) -> None:
    import resource

    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _read(reading: int, deadline: float) -> bytes | None:
    """Everything that comes until the other end is closed; None if it is still open at the deadline."""
    parts = []
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None
