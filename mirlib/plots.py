"""Every figure of the book is a function of plain data: ``figure_*(data, ax=None) -> Axes``.

One style and two colours: vision is warm, text is cool, in every figure. Line styles and markers tell series apart as
well, so that figures read in grey. The functions take results and arrays and import nothing of the measuring code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import NormalDist
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


def figure_quantile_matching(
    vision: tuple[float, float], text: tuple[float, float], ax: Axes | None = None, pairs: int = 25
) -> Axes:
    """Two normal distributions on a line, one above the other, with equal quantiles joined: the cheapest transport.

    Args:
        vision: Mean and standard deviation of the lower distribution.
        text: Mean and standard deviation of the upper one.
        ax: Where to draw; a new figure if left out.
        pairs: Number of quantiles to join.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    nodes = np.linspace(-3.2, 3.2, 201)
    bell = np.exp(-(nodes**2) / 2)
    parts = (("text", text, TEXT, 1.0, 1.0), ("vision", vision, VISION, 0.0, -1.0))
    for name, (mean, spread), colour, base, side in parts:
        height = 0.9 * min(vision[1], text[1]) / spread  # equal areas
        ax.fill_between(mean + spread * nodes, base, base + side * height * bell, color=colour, alpha=0.3, linewidth=0)
        line = "--" if name == "text" else "-"
        ax.plot(mean + spread * nodes, base + side * height * bell, color=colour, linestyle=line, marker="", label=name)
    levels = [NormalDist().inv_cdf((i + 0.5) / pairs) for i in range(pairs)]
    for z in levels:
        ends = [vision[0] + vision[1] * z, text[0] + text[1] * z]
        ax.plot(ends, [0, 1], color=NEUTRAL, linewidth=0.8, linestyle="-", marker="")
    cost = (vision[0] - text[0]) ** 2 + (vision[1] - text[1]) ** 2
    ax.set_title(f"Moving each quantile to its equal costs {cost:.1f} a point, and nothing costs less")
    ax.set_xlabel("x")
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.legend()
    return ax


def figure_clouds(
    vision: np.ndarray,
    text: np.ndarray,
    ax: Axes | None = None,
    arrows: np.ndarray | None = None,
    names: tuple[str, str] = ("vision", "text"),
) -> Axes:
    """Two clouds of points in the plane, on equal axes, and arrows from text points to where a map takes them.

    Args:
        vision: (n, 2) points.
        text: (m, 2) points.
        ax: Where to draw; a new figure if left out.
        arrows: (a, 2, 2) start and end of each arrow, or None.
        names: What to call the two clouds.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ax.scatter(*vision.T, color=VISION, marker="o", s=12, alpha=0.5, linewidths=0, label=names[0])
    ax.scatter(*text.T, color=TEXT, marker="s", s=12, alpha=0.5, linewidths=0, label=names[1])
    if arrows is not None:
        starts, ends = arrows[:, 0], arrows[:, 1]
        ax.quiver(
            *starts.T,
            *(ends - starts).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.004,
            color="black",
            alpha=0.75,
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("first dimension")
    ax.set_ylabel("second dimension")
    ax.legend()
    return ax


def figure_sampling_bias(
    rows: np.ndarray, distances: Mapping[int, np.ndarray], predicted: Mapping[int, np.ndarray], ax: Axes | None = None
) -> Axes:
    """Distance between two samples of one distribution against their size, where the true distance is 0.

    Args:
        rows: (n,) sizes of the samples.
        distances: By number of dimensions, (seeds, n) distances; the band runs from the lowest to the highest seed.
        predicted: By number of dimensions, (n,) first-order bias.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for number, (dim, values) in enumerate(distances.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ax.fill_between(rows, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        label = f"{dim} dimensions"
        ax.plot(rows, values.mean(axis=0), color=colour, marker=marker, linestyle="-", label=label)
        last = number == len(distances) - 1
        ax.plot(
            rows, predicted[dim], color="black", linestyle=":", marker="", label="first-order bias" if last else None
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rows in each sample")
    ax.set_ylabel("distance (variances)")
    dim, values = max(distances), distances[max(distances)].mean(axis=0)
    slope = np.polyfit(np.log(rows), np.log(values), 1)[0]
    exponent = f"{slope:.2f}".replace("-", "−")
    ax.set_title(f"Two samples of one distribution: the distance falls as n to the {exponent}")
    ax.legend()
    return ax


def figure_cancellation(offsets: np.ndarray, errors: Mapping[str, np.ndarray], ax: Axes | None = None) -> Axes:
    """Relative error of a variance against how far the data lie from zero.

    Args:
        offsets: (n,) distance of the mean from zero, in standard deviations.
        errors: By name of the method, (seeds, n) relative errors; the median is drawn, over the band of all seeds.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    lost = None
    for number, (name, values) in enumerate(errors.items()):
        shown = np.maximum(values, np.finfo(float).eps)
        colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        ax.fill_between(offsets, shown.min(axis=0), shown.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        ax.plot(offsets, np.median(shown, axis=0), color=colour, linestyle=line, marker=MARKERS[number % 6], label=name)
        if lost is None and (np.median(values, axis=0) > 1).any():
            lost = name, offsets[int(np.argmax(np.median(values, axis=0) > 1))]
    ax.axhline(1, color="black", linewidth=0.8, linestyle="-")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("distance of the mean from zero (standard deviations)")
    ax.set_ylabel("relative error of the variance")
    if lost is not None:
        ax.set_title(f"{lost[0].capitalize()}: no digit is right from an offset of {lost[1]:,.0f} on")
    ax.legend()
    return ax
