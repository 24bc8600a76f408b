"""Questions that explain every option: plain HTML, which needs no script and no kernel."""

from __future__ import annotations

import html
import tomllib
from importlib.resources import files
from typing import Any

from IPython.display import HTML

from mirlib.errors import MirlibError

_FOLDER = files("mirlib.widgets").joinpath("quizzes")


def questions(name: str) -> list[dict[str, Any]]:
    """The questions of a quiz, by the name of its file in `mirlib/widgets/quizzes`, without the ending.

    Returns:
        One mapping a question: what it asks under ``ask``, and under ``options`` what each option says (``say``), why
        it is right or wrong (``why``), and ``right = True`` for the one that is.

    Raises:
        MirlibError: If there is no such quiz.
    """
    file = _FOLDER.joinpath(f"{name}.toml")
    if not file.is_file():
        there = ", ".join(sorted(each.name.removesuffix(".toml") for each in _FOLDER.iterdir()))
        raise MirlibError(f"There is no quiz {name!r}; take one of {there}.")
    return tomllib.loads(file.read_text(encoding="utf-8"))["questions"]


def _option(option: dict[str, Any], group: str) -> str:
    say, why = html.escape(option["say"]), html.escape(option["why"])
    verdict = "Yes." if option.get("right") else "No."
    return f'<details name="{group}"><summary>{say}</summary><p><strong>{verdict}</strong> {why}</p></details>'


def quiz(name: str) -> HTML:
    """A quiz, named as in `questions`, for a page or Jupyter: a reader opens the option that she would choose.

    The options are the browser's own disclosure elements, so a keyboard opens them and a screen reader announces them.

    Raises:
        MirlibError: If there is no such quiz.
    """
    parts = []
    for number, question in enumerate(questions(name), start=1):
        group = f"quiz-{name}-{number}"
        ask = f'<p id="{group}"><strong>{number}.</strong> {html.escape(question["ask"])}</p>'
        options = "\n".join(_option(option, group) for option in question["options"])
        parts.append(f'<div role="group" aria-labelledby="{group}">\n{ask}\n{options}\n</div>')
    return HTML("\n".join(['<div class="mirlib-quiz">', *parts, "</div>"]))
