"""Arrows run one way: mirlib imports nothing of the laboratory, and inside mirlab no import leads back to its start."""

import ast
import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sources(package):
    """Module names and files of a package; a package's own name stands for its `__init__.py`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree, module):
    """Names that imports of a tree give, each with its line: `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, module)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from ((arg.value, node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def examples(tree):
    """The doctests in the docstrings of a tree, parsed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ">>>" in node.value:
            for example in doctest.DocTestParser().get_examples(node.value):
                yield ast.parse(example.source)


def laboratory_in(text, module="mirlib.x"):
    """Lines of a module, or of its examples, that import mirlab."""
    tree = ast.parse(text)
    return [
        (name, line)
        for part in (tree, *examples(tree))
        for name, line in imported(part, module)
        if name.split(".")[0] == "mirlab"
    ]


def test_mirlib_imports_nothing_of_the_laboratory():
    found = {
        module: lines
        for module, path in sources("mirlib").items()
        if (lines := laboratory_in(path.read_text(encoding="utf-8"), module))
    }
    assert len(sources("mirlib")) > 40 and not found


@pytest.mark.parametrize(
    "text",
    [
        "import mirlab",
        "import numpy, mirlab.world as w",
        "from mirlab import world",
        "def f():\n    from mirlab.model import train",
        "if TYPE_CHECKING:\n    import mirlab.runs",
        'importlib.import_module("mirlab.world")',
        'def f():\n    """Example:\n        >>> from mirlab import world\n        >>> 1\n        1\n    """',
        'X = 1\n"""\n>>> if True:\n...     import mirlab\n"""',
    ],
)
def test_an_import_of_the_laboratory_is_found_wherever_it_stands(text):
    assert laboratory_in(text)


def test_a_name_that_only_begins_alike_is_not_the_laboratory():
    assert not laboratory_in('import mirlabel\nfrom mirlib import mirlab\n"""mirlab.live makes them."""')


def test_the_command_works_without_the_laboratory():
    """It says in a sentence what is missing."""
    program = (
        "import sys\n"
        "class Nowhere:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] == 'mirlab':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Nowhere())\n"
        "from mirlib.cli import main\n"
        "sys.exit(main(['lab', 'list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("mir: mir lab is not installed: ") and done.stderr.count("\n") == 1, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Circles


def at_import(tree):
    """Statements of a module that run when it is imported: no bodies of functions, nothing for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from at_import(node)


def arrows(modules):
    """From each module to those that its import imports.

    `from a import b` leads to the module `a.b` where there is one, else to `a`. That a package is made before its
    modules is no arrow: it is in every package.

    Args:
        modules: Source texts by module name.
    """
    graph = {}
    for module, text in modules.items():
        statements = ast.Module(list(at_import(ast.parse(text))), [])
        names = {name for name, _ in imported(statements, module)}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in modules and name != module}
    return graph


def circle(graph):
    """A way through the graph that ends where it began, or None."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        way.append(node)
        for other in sorted(graph[node]):
            if found := visit(other):
                return found
        way.pop()
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node))), None)


@pytest.mark.parametrize("package", ["mirlab", "mirlib"])
def test_no_import_leads_back_to_where_it_began(package):
    graph = arrows({module: path.read_text(encoding="utf-8") for module, path in sources(package).items()})
    assert sum(map(len, graph.values())) > 60, "the arrows were not found"
    assert circle(graph) is None


@pytest.mark.parametrize(
    "last, expected",
    [
        ("import m.a", ["m.a", "m.b", "m.c", "m.a"]),
        ("from m import a", ["m.a", "m.b", "m.c", "m.a"]),
        ("from m.a import thing", ["m.a", "m.b", "m.c", "m.a"]),
        ("class X:\n    from m.a import thing", ["m.a", "m.b", "m.c", "m.a"]),
        ("def f():\n    from m.a import thing", None),
        ("if TYPE_CHECKING:\n    from m import a", None),
        ("import os", None),
    ],
)
def test_a_circle_is_found(last, expected):
    modules = {"m": "", "m.a": "from m import b", "m.b": "from m.c import thing", "m.c": last}
    assert circle(arrows(modules)) == expected


def test_examples_import_numpy_and_torch_themselves():
    """A reader pastes them; as doctests they also see what their module has imported."""
    found = []
    for module, path in (sources("mirlib") | sources("mirlab")).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ">>>" in node.value:
                names = [n.id for tree in examples(node) for n in ast.walk(tree) if isinstance(n, ast.Name)]
                lines = {"np": "import numpy as np", "torch": "import torch", "nn": "from torch import nn"}
                found += [(module, line) for name, line in lines.items() if name in names and line not in node.value]
    assert found == []
