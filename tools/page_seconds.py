"""How much processor time each page of the book takes on a small machine.

    python tools/page_seconds.py [NAME …]     all pages, or those whose name holds one of the NAMEs

Each page runs alone in a kernel with one thread and no instructions beyond AVX2, and the seconds of processor time that
it took are written to tools/page_seconds.json. `make book` reads them: it says how long it will take, and begins with
the longest pages. Time of a processor and not of a clock, so that a busy machine gives the same.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = ROOT / "tools" / "page_seconds.json"
SMALL_MACHINE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}


def pages(root: Path = ROOT) -> Iterator[str]:
    """Names of the pages of the table of contents that have code to execute."""
    import yaml

    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    for part in contents["parts"]:
        for chapter in part["chapters"]:
            name = chapter["file"]
            page = root / f"{name}.md"
            if (root / f"{name}.ipynb").exists() or "{code-cell}" in page.read_text(encoding="utf-8"):
                yield name


def seconds_of(name: str) -> float:
    """Execute a page in a kernel of its own and return the seconds of processor time that it took."""
    import nbformat
    from myst_nb.core.read import read_myst_markdown_notebook
    from nbclient import NotebookClient

    path = ROOT / f"{name}.ipynb"
    if path.exists():
        notebook = nbformat.read(path, 4)
    else:
        notebook = read_myst_markdown_notebook(path.with_suffix(".md").read_text(encoding="utf-8"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and write."""
    os.environ.update(SMALL_MACHINE)
    wanted = sys.argv[1:] or [""]
    known = json.loads(SECONDS.read_text()) if SECONDS.exists() else {}
    for name in pages():
        if any(part in name for part in wanted):
            known[name] = round(seconds_of(name))
            print(f"{known[name]:5d} s  {name}", flush=True)
    SECONDS.write_text(json.dumps({name: known[name] for name in pages() if name in known}, indent=1) + "\n")
    print(f"{sum(known.values()):5d} s  in all")


if __name__ == "__main__":
    main()
