"""The playground: everything that moves is there, each with something to try, a question and a folded answer."""

import json
from pathlib import Path

from mirlib import widgets

ROOT = Path(__file__).resolve().parents[2]


def test_every_widget_is_there_with_something_to_try_a_question_and_an_answer():
    cells = json.loads((ROOT / "notebooks" / "playground.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    moving = [getattr(widgets, name) for name in widgets.__all__ if name not in ("StaticWidget", "quiz")]
    for widget in moving:
        assert f"{widget.__name__}(" in code or f"{widget.asset}(" in code, widget
    assert text.count("**Try this.**") == len(moving)
    assert text.count("**Question.**") == text.count("Answer\n:class: dropdown") == len(moving) + 1  # and of the form
