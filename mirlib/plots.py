"""Every figure of the book is a function of plain data: ``figure_*(data, ax=None) -> Axes``.

One style and two colours: vision is warm, text is cool, in every figure. Line styles and markers tell series apart as
well, so that figures read in grey. The functions take results and arrays and import nothing of the measuring code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from mirlib.result import MIRResult

VISION = "#c8553d"
TEXT = "#2a6f97"
NEUTRAL = "#6b6b6b"
ACCENT = "#e0a030"
COLOURS = (VISION, TEXT, ACCENT, "#5b8c5a", "#7d5ba6", NEUTRAL)
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

STYLE = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "axes.prop_cycle": mpl.cycler(color=COLOURS[:5], marker=MARKERS[:5], linestyle=LINES[:5]),
    # Figures stand on white also where the page is dark, so that their colours stay those of the captions.
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.hashsalt": "mirlib",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of the book, for the time being."""
    with mpl.rc_context(STYLE):
        yield


def use_style() -> None:
    """The look of the book for a whole notebook."""
    mpl.rcParams.update(STYLE)


def new_axes(ax: Axes | None = None, **kwargs: Any) -> Axes:
    """The axes given, or those of a new figure in the book's style."""
    if ax is not None:
        return ax
    with style():
        return plt.subplots(**kwargs)[1]


def figure_per_layer(data: MIRResult | Mapping[str, MIRResult], ax: Axes | None = None) -> Axes:
    """FID of every layer on a logarithmic axis, of one result with its parts, or of several side by side.

    Args:
        data: A result, or results by name.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    results = data if isinstance(data, Mapping) else {"FID": data}
    for number, (name, result) in enumerate(results.items()):
        layers = np.arange(1, result.num_layers + 1)
        ax.plot(
            layers,
            result.per_layer,
            color="black" if len(results) == 1 else COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            label=name if len(results) == 1 else f"{name}: MIR {result.value:.3f}",
        )
        if len(results) == 1:
            ax.plot(layers, result.mean_term, color=VISION, marker="^", linestyle="--", label="mean term")
            ax.plot(layers, result.covariance_term, color=TEXT, marker="s", linestyle=":", label="covariance term")
            largest = int(np.argmax(result.per_layer)) + 1
            share = result.per_layer.max() / result.per_layer.sum()
            ax.set_title(f"MIR {result.value:.3f}: layer {largest} carries {share:.0%} of the sum")
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel("FID (squared mean text norms)")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax


def figure_norms(norms: Mapping[str, Sequence[np.ndarray]], ax: Axes | None = None) -> Axes:
    """Mean token norm of every layer with the band from the 10th to the 90th percentile.

    Args:
        norms: ``"vision"`` and ``"text"``, each K arrays of row norms.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for name, colour, marker, line in (("vision", VISION, "o", "-"), ("text", TEXT, "s", "--")):
        layers = np.arange(1, len(norms[name]) + 1)
        low, high = np.array([np.percentile(values, [10, 90]) for values in norms[name]]).T
        ax.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
        means = [float(np.mean(values)) for values in norms[name]]
        ax.plot(layers, means, color=colour, marker=marker, linestyle=line, label=f"{name} tokens")
    ax.set_xlabel("layer")
    ax.set_ylabel("ℓ2 norm of a token (model units)")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax
