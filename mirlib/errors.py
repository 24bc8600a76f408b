"""The exceptions and warnings of mirlib: each message says what is wrong, where, and what to do."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike


class MirlibError(ValueError):
    """Bad input or a model that cannot be measured. The message is meant for the person at the keyboard."""


class UndefinedMIRError(MirlibError):
    """The Modality Integration Rate is not defined for this model, because vision never enters its token sequence."""


class MirlibWarning(UserWarning):
    """A result that needs care: few rows, a biased estimate, or an inexact method that was asked for."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next behind a colon; the name of its type where there is none."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {rest[0]}" if rest and first.endswith(":") else first


def said_by(error: BaseException) -> str:
    """An error of another library as a message of ours quotes it: its type and its first line."""
    name, first = type(error).__name__, shown(first_line(error), 200)
    return first if first == name else f"{name}: {first}"


@contextmanager
def boundary(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever another library raises inside the block into one sentence: ``what (its type and words); advice``.

    Examples:
        >>> with boundary("the processor fails", "take another image"):
        ...     raise KeyError("patch_size")
        Traceback (most recent call last):
        mirlib.errors.MirlibError: the processor fails (KeyError: 'patch_size'); take another image
    """
    try:
        yield
    except MirlibError:
        raise
    except Exception as error:
        raise MirlibError(f"{what} ({said_by(error)})" + (f"; {advice}" if advice else "")) from error


@contextmanager
def doing(what: str, errors: type[Exception] | tuple[type[Exception], ...] = OSError) -> Iterator[None]:
    """Turn what the disk, or another reader, says inside the block into one sentence: ``cannot what: its reason``."""
    try:
        yield
    except MirlibError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MirlibError(f"cannot {what}: {shown(reason, 200)}") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a sample or a file before what is wrong with it."""
    try:
        yield
    except MirlibError as error:
        raise MirlibError(f"{name}: {error}") from error


def shown(value: object, length: int = 80) -> str:
    r"""A value as a message quotes it: cut, and without characters that a terminal would obey or could not print.

    Of a path the last 300 characters stay, whatever the length, since its name is at its end.

    Examples:
        >>> shown("an escape: \x1b[31m")
        'an escape: \\x1b[31m'
        >>> shown("base64" * 1000, 10)
        'base64base…'
    """
    text = str(value)
    if isinstance(value, PathLike):
        text = text if len(text) <= 300 else f"…{text[-300:]}"
    elif len(text) > length:
        text = f"{text[:length]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_choice(what: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a value that is not among those allowed, and name these."""
    allowed = list(allowed)
    if value not in allowed:
        raise MirlibError(f"unknown {what} {shown(repr(value))}; choose one of {', '.join(allowed)}")
