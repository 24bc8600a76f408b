"""A person writes the sentences, and the analysis stands in the cells: what no page may take from the library."""

import ast
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[01]*.ipynb"))
FOLDED = {"hide-input", "hide-cell", "remove-input"}


def notebook_cells(path: Path) -> list[tuple[str, set[str]]]:
    """Code cells with their tags."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), set(cell["metadata"].get("tags", []))) for cell in code]


def page_cells(path: Path) -> list[str]:
    """Code of a notebook or of a page in Markdown."""
    if path.suffix == ".ipynb":
        return [source for source, _ in notebook_cells(path)]
    found = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [re.sub(r"\A---\n.*?^---\n|^:[^\n]*\n", "", source, flags=re.M | re.S) for source in found]


PAGES = [p for p in [*CHAPTERS, *sorted((ROOT / "book").glob("*.md"))] if page_cells(p)]


def names(path: Path) -> set[tuple[str, str]]:
    """(module, name) of all that a page takes from our packages, by import or as an attribute of an imported module."""
    taken, modules = set(), {}
    trees = [ast.parse(source) for source in page_cells(path)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mirlib", "mirlab"):
            for one in node.names:
                taken.add((node.module, one.name))
                modules[one.asname or one.name] = f"{node.module}.{one.name}"
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken.add((modules[node.value.id], node.attr))
    return taken


def words_returned(source: str) -> str:
    """The longest text in what a function returns, f-strings with their places left out."""
    texts = [""]
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Return) and node.value):
            continue
        for part in ast.walk(node.value):
            if isinstance(part, ast.JoinedStr):
                texts.append(" ".join(v.value for v in part.values if isinstance(v, ast.Constant)))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                texts.append(part.value)
    return max(texts, key=lambda text: len(re.findall(r"[A-Za-z]{2,}", text)))


def test_a_composed_sentence_is_found():
    composed = 'def f(x):\n    if x:\n        return f"MIR falls by {x:.2f} and the accuracy goes along with it"\n'
    assert len(words_returned(composed).split()) > 5
    assert words_returned('def f(x):\n    """It says a lot of words in here."""\n    return {"mir": x}\n') == "mir"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_no_function_writes_a_sentence_for_a_page(path):
    for source in page_cells(path):
        assert not re.search(r"\bMarkdown\(|\bdisplay_markdown\(", source), f"{path.name}: {source[:80]}"
    for module, name in sorted(names(path)):
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):  # a module of a package, or an attribute of something that is none
            continue
        if inspect.isfunction(found):
            text = words_returned(textwrap.dedent(inspect.getsource(found)))
            assert len(re.findall(r"[A-Za-z]{2,}", text)) < 6, f"{module}.{name} returns prose: {text}"


@pytest.mark.parametrize("path", CHAPTERS[6:], ids=lambda p: p.stem)
def test_four_of_five_lines_of_code_are_in_sight(path):
    """The checks of exercises are folded, since they would give answers away, and do not count."""
    lines = {True: 0, False: 0}
    for source, tags in notebook_cells(path):
        if "remove-cell" not in tags and not re.search(r"^def check_", source, flags=re.M):
            lines[not tags & FOLDED] += sum(1 for line in source.splitlines() if line.strip())
    assert lines[True] >= 0.8 * sum(lines.values()), lines


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_no_cell_only_hands_its_results_to_one_call_that_draws(path):
    """But for widgets, which are no figures."""
    for source, tags in notebook_cells(path):
        body = ast.parse(source).body
        if "remove-cell" in tags or len(body) != 1 or not isinstance(body[0], ast.Expr | ast.Assign):
            continue
        call = body[0].value
        called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        assert not called.startswith(("plots.", "figures.")), f"{path.name}: {source[:80]}"
