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


def figure_norms(norms: Mapping[str, Sequence[np.ndarray]], ax: Axes | None = None, *, first_layer: int = 1) -> Axes:
    """Mean token norm of every layer with the band from the 10th to the 90th percentile.

    Args:
        norms: ``"vision"`` and ``"text"``, each an array of row norms for every layer.
        ax: Where to draw; a new figure if left out.
        first_layer: Number of the first layer; 0 stands for the embeddings that enter layer 1.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for name, colour, marker, line in (("vision", VISION, "o", "-"), ("text", TEXT, "s", "--")):
        layers = np.arange(first_layer, first_layer + len(norms[name]))
        low, high = np.array([np.percentile(values, [10, 90]) for values in norms[name]]).T
        ax.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
        means = [float(np.mean(values)) for values in norms[name]]
        ax.plot(layers, means, color=colour, marker=marker, linestyle=line, label=f"{name} tokens")
    ax.set_xlabel("layer (0: what enters layer 1)" if first_layer == 0 else "layer")
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


KIND_MARKERS = ("o", "^", "s", "D", "v", "P")


def kind_colours(modality: str, count: int) -> list[Any]:
    """``count`` shades of a modality's colour, from dark to light; in grey they stay apart, too."""
    base = np.array(mpl.colors.to_rgb({"vision": VISION, "text": TEXT}[modality]))
    return [tuple(base + (1 - base) * share) for share in np.linspace(0, 0.55, count)] if count > 1 else [tuple(base)]


def figure_lvlm(parts: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """A large vision-language model as boxes: encoder, projector, one sequence of tokens, and K decoder layers.

    Args:
        parts: ``layers``, ``vision_tokens`` (of one image), ``encoder_dim``, ``dim``, and ``parameters``: counts of
            ``"vision encoder"``, ``"projector"`` and ``"language model"``.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(8.4, 4.6))
    counts = parts["parameters"]

    def box(x: float, y: float, width: float, height: float, text: str, colour: Any, **kwargs: Any) -> None:
        style = {"facecolor": (*mpl.colors.to_rgb(colour), 0.14), "edgecolor": colour, "linewidth": 1.4, **kwargs}
        ax.add_patch(mpl.patches.FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02", **style))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(x: float, y: float, to_x: float, to_y: float, colour: Any = "black") -> None:
        ax.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2})

    # Bottom: image and text become rows of one sequence.
    box(0.0, 0.0, 1.5, 0.75, "image", VISION)
    box(2.0, 0.0, 2.3, 0.75, f"vision encoder\n{counts['vision encoder']:,} weights", VISION)
    box(4.8, 0.0, 2.1, 0.75, f"projector\n{counts['projector']:,} weights", VISION)
    box(8.0, 0.0, 2.6, 0.75, "text\ntokenizer, embedding table", TEXT)
    arrow(1.5, 0.37, 2.0, 0.37, VISION)
    arrow(4.3, 0.37, 4.8, 0.37, VISION)
    arrow(5.85, 0.77, 5.85, 1.45, VISION)
    arrow(9.3, 0.77, 9.3, 1.45, TEXT)
    for number in range(12):
        modality = VISION if number < 6 else TEXT
        square = (4.15 + 0.52 * number + (0.25 if number >= 6 else 0), 1.5)
        ax.add_patch(mpl.patches.Rectangle(square, 0.42, 0.42, facecolor=modality, edgecolor="white"))
    ax.text(4.0, 1.71, f"{parts['vision_tokens']} vision tokens,\nthen the text tokens", ha="right", va="center")
    # Above: the decoder.
    heights = np.array([2.45, 3.15, 4.15])
    for y, name in zip(heights, ("layer 1", "layer 2", f"layer K = {parts['layers']}"), strict=True):
        box(4.15, y, 6.4, 0.45, name, NEUTRAL)
        arrow(10.6, y + 0.22, 11.3, y + 0.22)
    ax.text(7.35, 3.88, "⋮", ha="center", va="center", fontsize=13)
    ax.text(11.4, 3.4, "hidden states:\nwhat this book\nmeasures", va="center")
    arrow(7.35, 2.0, 7.35, 2.42)
    arrow(7.35, 4.62, 7.35, 5.1)
    ax.text(7.35, 5.15, "next word", ha="center", va="bottom")
    ax.text(
        4.0,
        3.5,
        f"language model\n{counts['language model']:,} weights\n{parts['dim']} numbers a token",
        ha="right",
        va="center",
    )
    ax.set(xlim=(-0.2, 13.2), ylim=(-0.2, 5.6))
    ax.set_axis_off()
    share = counts["projector"] / sum(counts.values())
    ax.set_title(f"Two inputs, one sequence: the projector between them is {share:.1%} of the weights")
    return ax


def figure_pictures(pictures: Mapping[str, Sequence[np.ndarray]], ax: Axes | None = None) -> Axes:
    """A contact sheet: one line of pictures for each kind, all scaled to one size by repeating or skipping pixels.

    Args:
        pictures: (h, w, 3) uint8 arrays by kind, equally many of each.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(7.4, 1.05 * len(pictures)))
    side, gap = 96, 8
    for line, images in enumerate(pictures.values()):
        for column, image in enumerate(images):
            image = np.asarray(image)
            rows, columns = (np.arange(side) * size // side for size in image.shape[:2])
            left, top = column * (side + gap), line * (side + gap)
            ax.imshow(image[rows][:, columns], extent=(left, left + side, top + side, top), interpolation="nearest")
    widest = max(len(images) for images in pictures.values())
    ax.set(xlim=(0, widest * (side + gap) - gap), ylim=(len(pictures) * (side + gap) - gap, 0), xticks=[])
    ax.set_yticks([line * (side + gap) + side / 2 for line in range(len(pictures))], list(pictures))
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def figure_token_map(
    points: Mapping[str, Mapping[str, np.ndarray]], ax: Axes | None = None, *, legend: bool = True
) -> Axes:
    """Tokens in two dimensions: shades of the warm colour for kinds of image, of the cool one for kinds of text.

    Args:
        points: ``{"vision": {kind: (n, 2)}, "text": {kind: (n, 2)}}``.
        ax: Where to draw; a new figure if left out.
        legend: Whether to name the kinds.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(5.2, 4.2))
    for modality, kinds in points.items():
        shades = kind_colours(modality, len(kinds))
        markers = KIND_MARKERS[:3] if modality == "vision" else ("x", "+", "1")
        for (kind, values), colour, marker in zip(kinds.items(), shades, markers, strict=False):
            ax.scatter(*np.asarray(values).T, s=11, color=colour, marker=marker, linewidth=0.8, alpha=0.75, label=kind)
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    if legend:
        ax.legend(markerscale=1.8, handletextpad=0.2)
    return ax


def figure_layer_curves(
    curves: Mapping[str, np.ndarray], ylabel: str, ax: Axes | None = None, *, first_layer: int = 1
) -> Axes:
    """One quantity of every layer, for several series; the band reaches from the lowest to the highest repetition.

    Args:
        curves: (layers,) values, or (repetitions, layers), of which the mean is drawn, by name.
        ylabel: What is drawn, with its unit.
        ax: Where to draw; a new figure if left out.
        first_layer: Number of the first layer; 0 stands for the embeddings that enter layer 1.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for number, (name, values) in enumerate(curves.items()):
        values = np.atleast_2d(values)
        layers = np.arange(first_layer, first_layer + values.shape[1])
        colour = COLOURS[number % len(COLOURS)]
        ax.fill_between(layers, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        ax.plot(
            layers,
            values.mean(axis=0),
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            label=name,
        )
    ax.set_xlabel("layer (0: what enters layer 1)" if first_layer == 0 else "layer")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax


def figure_kind_distances(distances: np.ndarray, kinds: Mapping[str, Sequence[str]], ax: Axes | None = None) -> Axes:
    """Distances between kinds of image and kinds of text as a table of shades, with the two modalities ruled off.

    Args:
        distances: (n, n) distances, the vision kinds first.
        kinds: ``{"vision": [...], "text": [...]}``, n names together.
        ax: Where to draw; a new figure if left out.

    Returns:
        The axes.
    """
    ax = new_axes(ax, figsize=(5.6, 4.6))
    distances = np.asarray(distances)
    names, border = [*kinds["vision"], *kinds["text"]], len(kinds["vision"])
    positive = distances[distances > 0]
    norm = mpl.colors.LogNorm(positive.min(), positive.max())
    image = ax.imshow(np.where(distances > 0, distances, np.nan), cmap="Greys", norm=norm)
    for row, column in np.ndindex(distances.shape):
        value = distances[row, column]
        dark = value > 0 and norm(value) > 0.55
        ax.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for modality, span in (("vision", (0, border)), ("text", (border, len(names)))):
        colour = {"vision": VISION, "text": TEXT}[modality]
        corner, size = (span[0] - 0.5, span[0] - 0.5), span[1] - span[0]
        ax.add_patch(
            mpl.patches.Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=2.5, clip_on=False)
        )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    for label, modality in zip(
        [*ax.get_xticklabels(), *ax.get_yticklabels()],
        2 * (border * ["vision"] + (len(names) - border) * ["text"]),
        strict=True,
    ):
        label.set_color({"vision": VISION, "text": TEXT}[modality])
    ax.figure.colorbar(image, ax=ax, label="Fréchet distance (squared mean text norms)")
    across = distances[:border, border:]
    within = np.concatenate(
        [part[~np.eye(len(part), dtype=bool)] for part in (distances[:border, :border], distances[border:, border:])]
    )
    ax.set_title(f"Between modalities {across.min():.2g} to {across.max():.2g}, within one at most {within.max():.2g}")
    return ax


def figure_sample_size(
    values: Mapping[int, Sequence[float]], ax: Axes | None = None, *, enough: int | None = None
) -> Axes:
    """MIR of independent draws against the number of samples in a draw, each draw a point.

    Args:
        values: MIR of the draws, by number of samples.
        ax: Where to draw; a new figure if left out.
        enough: A number of samples that was claimed to be enough; ruled off, and named in the title.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    sizes = np.array(sorted(values))
    draws = [np.asarray(values[size], dtype=float) for size in sizes]
    for size, found in zip(sizes, draws, strict=True):
        ax.plot(np.full(len(found), size), found, color=NEUTRAL, marker="_", linestyle="none", markersize=11)
    low, high = np.array([[found.min(), found.max()] for found in draws]).T
    ax.fill_between(sizes, low, high, color=TEXT, alpha=0.15, linewidth=0)
    ax.plot(sizes, [found.mean() for found in draws], color=TEXT, marker="o", label="mean of the draws")
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("number of samples (image–text pairs)")
    ax.set_ylabel("MIR (log10)")
    title = f"The draws span {high[0] - low[0]:.3f} at {sizes[0]} samples and {high[-1] - low[-1]:.3f} at {sizes[-1]}"
    if enough is not None:
        ax.axvline(enough, color=NEUTRAL, linestyle=":", marker="none", label=f"{enough} samples")
    ax.set_title(title)
    ax.legend()
    return ax
