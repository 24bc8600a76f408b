"""Write every figure of the book as PDF and SVG, at the width of a paper's column.

    python tools/figures.py [NAME …] [--out FOLDER]     NAME: part of a chapter's name, or the name of a figure

Each notebook runs in a kernel of its own. The figures of its named cells (``mystnb.figure.name``) are drawn again at
paper size, into FOLDER/CHAPTER/FIGURE.pdf and .svg. Nothing in the files depends on the time, so that a second run
writes the same bytes, as long as the cells compute the same numbers (a figure of measured seconds does not).

A figure that is wider than 7 inches on the page is made as wide as a paper's text (6.875 in), any other as wide as a
column (3.25 in). The metadata of a cell overrides this: ``"paper": {"width": "column"}`` or ``"text"``.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = {"column": 3.25, "text": 6.875}  # inches, of the ICCV and CVPR templates
WIDE = 7.0  # inches on the page, from which on a figure is taken for a wide one
LOWEST = 0.7  # type shrinks less than the width does, so height may shrink no more than to this share

PAPER = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "ps.fonttype": 42,
    "svg.fonttype": "path",  # looks the same where the font is missing
    "svg.hashsalt": "mirlib",
}
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


# ---------------------------------------------------------------------------------------------------------------------
# In the kernel of a notebook


class Drawer:
    """Keeps the figures of the cells of a notebook; lives in the notebook's kernel.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: str) -> None:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        from mirlib import plots

        self.folder, self.plt = Path(folder), plt
        matplotlib.rcParams.update(PAPER)
        plots.STYLE.update(PAPER)  # what figures of the library set on top
        plt.show = lambda *args, **kwargs: None  # figures stay open until their cell is done

    def finish(self, name: str | None, width: str | None) -> int:
        """Save the open figures if the cell has a name, and close them; returns how many there were."""
        figures = [self.plt.figure(number) for number in self.plt.get_fignums()]
        for count, figure in enumerate(figures if name else [], start=1):
            self._save(figure, name if count == 1 else f"{name}-{count}", width)
        self.plt.close("all")
        return len(figures)

    def _save(self, figure: Any, name: str, width: str | None) -> None:
        page_width, page_height = figure.get_size_inches()
        inches = WIDTHS[width or ("text" if page_width > WIDE else "column")]
        figure.set_size_inches(inches, page_height * max(inches / page_width, LOWEST))
        for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and hasattr(artist, "set_fontsize")):
            text.set_fontsize(min(text.get_fontsize(), PAPER["font.size"]))  # sizes that a cell set itself
        figure.canvas.draw()  # places the axes, which says how long a line of text may be
        if inches < page_width and _legends_below(figure):
            figure.canvas.draw()
        _wrap_texts(figure)
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, metadata in _UNDATED.items():
            figure.savefig(self.folder / f"{name}.{kind}", metadata=metadata)


def _legends_below(figure: Any) -> bool:
    """Move legends that stand to the right of their axes below the figure, where a column has room for them."""
    moved = False
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is not None and legend.get_window_extent().x0 >= ax.get_window_extent().x1:
            handles, labels = ax.get_legend_handles_labels()
            legend.remove()
            figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=PAPER["legend.fontsize"])
            width, height = figure.get_size_inches()
            figure.set_size_inches(width, height + 0.15 * ((len(labels) + 1) // 2))
            moved = True
    return moved


def _wrap_texts(figure: Any) -> None:
    """Break titles and labels of axes that reach beyond their axes' share of the figure."""
    boxes = [ax.get_position() for ax in figure.axes]
    margin = 0.05 * figure.dpi  # 0.05 inches
    for ax, box in zip(figure.axes, boxes, strict=True):
        beside = [other.x0 for other in boxes if other.x0 > box.x1 and other.y0 < box.y1 and other.y1 > box.y0]
        above = [other.y0 for other in boxes if other.y0 > box.y1 and other.x0 < box.x1 and other.x1 > box.x0]
        room = (min(beside, default=1.0) - box.x0) * figure.bbox.width - margin
        for title in (ax.title, ax._left_title, ax._right_title):
            _wrap(title, room, "width")
        # A label is centred on its axes: twice the way from the centre to the nearer edge is its room.
        centre = (box.x0 + box.x1) / 2
        _wrap(ax.xaxis.label, 2 * min(centre, min(beside, default=1.0) - centre) * figure.bbox.width - margin, "width")
        middle = (box.y0 + box.y1) / 2
        _wrap(ax.yaxis.label, 2 * min(middle, min(above, default=1.0) - middle) * figure.bbox.height, "height")


def _wrap(text: Any, room: float, side: str) -> None:
    """Break a text into the fewest lines that fit into the room, in pixels."""
    words = text.get_text()
    if not words or getattr(text.get_window_extent(), side) <= room:
        return
    for fitting in range(max(map(len, words.split("\n"))), 11, -1):
        text.set_text(textwrap.fill(" ".join(words.split()), fitting, break_long_words=False))
        if getattr(text.get_window_extent(), side) <= room:
            return


# ---------------------------------------------------------------------------------------------------------------------
# Outside


def named_cells(notebook: Any) -> dict[int, tuple[str, str | None]]:
    """Name and wanted width of the figures, by the position of their cell.

    Raises:
        ValueError: A cell asks for a width that there is not.
    """
    found = {}
    for index, cell in enumerate(notebook.cells):
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        if cell.cell_type == "code" and name:
            width = cell.metadata.get("paper", {}).get("width")
            if width is not None and width not in WIDTHS:
                raise ValueError(f"figure {name}: a width is {' or '.join(WIDTHS)}, not {width!r}")
            found[index] = name, width
    return found


def draw_notebook(path: Path, out: Path, wanted: set[str] | None = None) -> list[str]:
    """Run a notebook and write its figures.

    Args:
        path: The notebook.
        out: Folder; the figures go into a folder of the notebook's name in it.
        wanted: Names of the only figures to write; cells after the last of them are not run.

    Returns:
        What went wrong, as sentences.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    named = {index: found for index, found in named_cells(notebook).items() if not wanted or found[0] in wanted}
    folder = out.resolve() / path.stem
    start = (
        "import runpy as _runpy\n"
        f"_figures = _runpy.run_path({str(Path(__file__).resolve())!r})['Drawer']({str(folder)!r})"
    )
    # Between the cells stand ours, so that the cells themselves run exactly as they are.
    steps = [("", None, nbformat.v4.new_code_cell(start))]
    for index, cell in enumerate(notebook.cells[: max(named, default=-1) + 1]):
        if cell.cell_type == "code":
            name, width = named.get(index, (None, None))
            where = f"cell {index + 1}" + (f" ({name})" if name else f" (id {cell.get('id', '?')})")
            steps.append((where, None, cell))
            steps.append((where, name, nbformat.v4.new_code_cell(f"print(_figures.finish({name!r}, {width!r}))")))
    running = nbformat.v4.new_notebook(cells=[cell for *_, cell in steps], metadata=notebook.metadata)
    client = NotebookClient(running, timeout=None, resources={"metadata": {"path": str(path.parent)}})
    problems = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
    with client.setup_kernel(env=environment):
        for index, (where, name, cell) in enumerate(steps):
            try:
                done = client.execute_cell(cell, index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                said = getattr(error, "evalue", "") or str(error).strip().splitlines()[-1]
                kind = getattr(error, "ename", type(error).__name__)
                return [*problems, f"{path.name}, {where or 'before the first cell'}: {kind}: {said}"]
            if name:
                count = int("".join(output.get("text", "") for output in done.outputs).strip().splitlines()[-1])
                if not count:
                    problems.append(f"{path.name}, {where}: the cell drew no figure")
                print(f"  {name}" if count else f"  {name}: NOTHING WAS DRAWN", file=sys.stderr, flush=True)
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 if a figure did not appear, 2 if a name fits nothing."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a chapter's name, or a figure's name")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "figures", help="folder (build/figures)")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the notebooks")
    options = parser.parse_args(arguments)
    chapters = [path for path in sorted(options.notebooks.glob("*.ipynb")) if path.stem != "chapter_template"]
    try:
        figures = {path: [n for n, _ in named_cells(nbformat.read(path, as_version=4)).values()] for path in chapters}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    work: dict[Path, set[str] | None] = {}
    for name in options.names:
        whole = [path for path in chapters if name in path.stem]
        single = [path for path in chapters if name in figures[path]]
        if not whole and not single:
            print(f"no chapter and no figure is called {name!r}", file=sys.stderr)
            return 2
        work |= {path: None for path in whole}
        for path in single:
            if path not in whole and work.get(path, set()) is not None:
                work[path] = work.get(path, set()) | {name}
    work = work or dict.fromkeys(chapters)
    problems = []
    for path in sorted(work):
        if not figures[path]:
            continue
        started = time.monotonic()
        print(f"{path.stem}: {len(work[path] or figures[path])} figures", file=sys.stderr, flush=True)
        problems += draw_notebook(path, options.out, work[path])
        print(f"  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
