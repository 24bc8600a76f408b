"""The command `mir` inside the test's own process: what it printed, what it said, and its exit code."""

from typing import NamedTuple

from mirlib.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def mir(capsys, *arguments) -> Outcome:
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    return Outcome(code, *capsys.readouterr())


def refused(capsys, *arguments) -> str:
    """The one sentence that a refusal says; it must be one, on stderr, with exit code 2 and nothing on stdout."""
    outcome = mir(capsys, *arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == "", "a refusal printed something to stdout"
    lines = [line for line in outcome.err.splitlines() if line.startswith("mir: ")]
    assert len(lines) == 1, outcome.err
    assert outcome.err.rstrip().endswith(lines[0].strip()), f"more was said after the sentence:\n{outcome.err}"
    assert "Traceback" not in outcome.err
    return lines[0].removeprefix("mir: ")
