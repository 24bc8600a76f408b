"""The figures for papers: widths, the same bytes twice, and what is said when one fails."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import figures  # noqa: E402

DRAW = (
    "import matplotlib.pyplot as plt\nplt.subplots(figsize=({}, 3))\nplt.plot([1, 4, 9])\nplt.title('{}')\nplt.show()"
)


def notebook(folder, cells):
    """Write a notebook of (figure's name or None, its width or None, source)."""
    made = []
    for name, width, source in cells:
        cell = nbformat.v4.new_code_cell(source)
        if name:
            cell.metadata["mystnb"] = {"figure": {"name": name, "caption": "A caption."}}
        if width:
            cell.metadata["paper"] = {"width": width}
        made.append(cell)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=metadata), folder / "01_tiny.ipynb")


def run(tmp_path, *names, out="out"):
    return figures.main([*names, "--notebooks", str(tmp_path / "notebooks"), "--out", str(tmp_path / out)])


def width_of(path):
    """Width in points."""
    if path.suffix == ".pdf":
        return float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", path.read_bytes()).group(1))
    return float(re.search(r'<svg[^>]* width="([\d.]+)pt"', path.read_text(encoding="utf-8")).group(1))


def test_figures_have_the_width_of_a_paper_and_the_same_bytes_twice(tmp_path):
    notebook(
        tmp_path / "notebooks",
        [
            (None, None, DRAW.format(6, "not named, so not written")),
            ("fig-narrow", None, DRAW.format(6, "a long title " * 8)),
            ("fig-wide", None, DRAW.format(9, "wide")),
            ("fig-told", "text", DRAW.format(5, "told")),
        ],
    )
    assert run(tmp_path) == 0 and run(tmp_path, out="again") == 0
    files = sorted((tmp_path / "out" / "01_tiny").iterdir())
    assert [f.name for f in files] == [f"fig-{n}.{k}" for n in ("narrow", "told", "wide") for k in ("pdf", "svg")]
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / "01_tiny" / path.name).read_bytes(), path.name
        want = 72 * (3.25 if "narrow" in path.name else 6.875)
        assert width_of(path) == pytest.approx(want, abs=0.01), path.name
    pdf = (tmp_path / "out" / "01_tiny" / "fig-narrow.pdf").read_bytes()
    assert b"CreationDate" not in pdf and b"/Type3" not in pdf


def test_a_failing_cell_and_a_missing_figure_are_named(tmp_path, capsys):
    cells = [("fig-none", None, "x = 1"), ("fig-broken", None, "raise ValueError('no such thing')")]
    notebook(tmp_path / "notebooks", cells)
    assert run(tmp_path) == 1
    said = capsys.readouterr().err
    assert "01_tiny.ipynb, cell 1 (fig-none): the cell drew no figure" in said
    assert "01_tiny.ipynb, cell 2 (fig-broken): ValueError: no such thing" in said


def test_one_figure_is_drawn_alone_and_an_unknown_name_is_refused(tmp_path, capsys):
    cells = [("fig-one", None, DRAW.format(5, "one")), ("fig-two", None, "raise ValueError('not to be run')")]
    notebook(tmp_path / "notebooks", cells)
    assert run(tmp_path, "fig-one") == 0
    assert {path.stem for path in (tmp_path / "out" / "01_tiny").iterdir()} == {"fig-one"}
    assert run(tmp_path, "fig-three") == 2
    assert "no chapter and no figure is called 'fig-three'" in capsys.readouterr().err


def test_texts_that_are_too_long_are_broken_and_legends_beside_the_axes_go_below():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(3.25, 2.5), layout="constrained")
    ax.plot([1, 2], label="a line with a long name")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title("a title that is far too long for a column of a paper, and then some", loc="left")
    figure.canvas.draw()
    assert figures._legends_below(figure) and ax.get_legend() is None and len(figure.legends) == 1
    figure.canvas.draw()
    figures._wrap_texts(figure)
    assert "\n" in ax.get_title("left")
    assert ax._left_title.get_window_extent().x1 <= figure.bbox.width
    plt.close(figure)
