"""Every figure of the book is a function of plain data: ``figure_*(data, ax=None) -> Axes``.

It draws on the axes given, or on those of a new figure, and returns them. Vision is warm and text is cool in every
figure; line styles and markers tell series apart as well, so that figures read in grey.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirlib.errors import MirlibError

if TYPE_CHECKING:
    from mirlib.comparison import Comparison
    from mirlib.costs import TransportMap
    from mirlib.result import MIRResult

VISION = "#c8553d"
TEXT = "#2a6f97"
NEUTRAL = "#6b6b6b"
ACCENT = "#e0a030"
COLOURS = (VISION, TEXT, ACCENT, "#5b8c5a", "#7d5ba6", NEUTRAL)
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

COSTS = "inferno"  # dark is cheap, light is dear
_TILE = 100  # side of a picture in a transport map, in the units of its axes

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
    plt.draw_if_interactive()  # a notebook's backend turns the interactive mode on when it is loaded: let it stay on
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


def as_png(draw: Callable[[Axes], Any], **of_figure: Any) -> bytes:
    """What `draw` draws, as PNG, of a figure that pyplot does not know: a notebook would show it a second time."""
    written = io.BytesIO()
    with style():
        figure = Figure(**of_figure)
        draw(figure.add_subplot())
        figure.savefig(written, dpi="figure")
    return written.getvalue()


def figure_per_layer(data: MIRResult | Mapping[str, MIRResult], ax: Axes | None = None) -> Axes:
    """FID of every layer on a logarithmic axis: of one result with its parts, or of several results by name."""
    ax = new_axes(ax)
    results = data if isinstance(data, Mapping) else {"FID": data}
    alone = len(results) == 1
    for number, (name, result) in enumerate(results.items()):
        layers = np.arange(1, result.num_layers + 1)
        ax.plot(
            layers,
            result.per_layer,
            color="black" if alone else COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            label=name if alone else f"{name}: MIR {result.value:.3f}",
        )
        if alone:
            ax.plot(layers, result.mean_term, color=VISION, marker="^", linestyle="--", label="mean term")
            ax.plot(layers, result.covariance_term, color=TEXT, marker="s", linestyle=":", label="covariance term")
            largest = int(np.argmax(result.per_layer)) + 1
            share = result.per_layer.max() / result.per_layer.sum()
            ax.set_title(f"MIR {result.value:.3f}: layer {largest} carries {share:.0%} of the sum")
    ax.set_yscale("log")
    _plain_ticks(ax)
    ax.set(xlabel="layer", ylabel="FID (squared mean text norms)")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax


def figure_difference(data: Comparison, ax: Axes | None = None) -> Axes:
    """What each layer contributes to the difference of two results, with its interval; the title gives the whole.

    Results whose numbers of layers differ are refused, for there is nothing by layer.
    """
    found = data.contributions or data.per_layer
    if not found:
        raise MirlibError("there is no difference by layer to draw: the results have not the same number of layers")
    ax = new_axes(ax)
    values = np.array([one.value for one in found])
    layers = np.arange(1, len(found) + 1)
    clear = np.array([one.distinguishable for one in found])
    for chosen, colour, label in ((clear, TEXT, "interval leaves 0 out"), (~clear, NEUTRAL, "interval holds 0")):
        if chosen.any():
            ax.bar(layers[chosen], values[chosen], width=0.7, color=colour, label=label)
    reach = np.array([[one.value - one.low, one.high - one.value] for one in found]).T
    if np.isfinite(reach).all():
        ax.errorbar(layers, values, yerr=reach, fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        ax.legend()
    ax.axhline(0, color="black", linewidth=1)
    ax.grid(visible=False, axis="x")
    total = data.difference
    interval = "" if np.isnan(total.low) else f" [{total.low:+.4f}, {total.high:+.4f}]"
    largest = int(np.argmax(np.abs(values))) + 1
    title = f"{data.quantity} differs by {total.value:+.4f}{interval}, the largest part in layer {largest}"
    units = "log10" if data.quantity == "MIR" else "difference"
    what = f"contribution to the difference ({units})" if data.contributions else "difference"
    ax.set(title=title.replace("-", "−"), xlabel="layer", ylabel=what)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return ax


def _plain_ticks(ax: Axes) -> None:
    """Write the numbers of a logarithmic vertical axis out, 0.1 and 20, and some in between where it is short."""
    low, high = ax.get_ylim()
    few = np.log10(high / low) < 1.5
    ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
    ax.yaxis.set_minor_locator(mpl.ticker.LogLocator(subs=range(2, 10)))
    ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def figure_quantile_matching(
    vision: tuple[float, float], text: tuple[float, float], ax: Axes | None = None, pairs: int = 25
) -> Axes:
    """Two normal distributions on a line, one above the other, with equal quantiles joined: the cheapest transport.

    ``vision`` (below) and ``text`` are means and standard deviations; ``pairs`` is the number of quantiles.
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
    for i in range(pairs):
        z = NormalDist().inv_cdf((i + 0.5) / pairs)
        ends = [vision[0] + vision[1] * z, text[0] + text[1] * z]
        ax.plot(ends, [0, 1], color=NEUTRAL, linewidth=0.8, linestyle="-", marker="")
    cost = (vision[0] - text[0]) ** 2 + (vision[1] - text[1]) ** 2
    title = f"Moving each quantile to its equal costs {cost:.1f} per point, and nothing costs less"
    ax.set(title=title, xlabel="x", yticks=[])
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
    """Two clouds of points in the plane, (n, 2) and (m, 2), on equal axes.

    ``arrows`` are (a, 2, 2) starts and ends, from text points to where a map takes them; ``names`` those of the clouds.
    """
    ax = new_axes(ax)
    ax.scatter(*vision.T, color=VISION, marker="o", s=12, alpha=0.5, linewidths=0, label=names[0])
    ax.scatter(*text.T, color=TEXT, marker="s", s=12, alpha=0.5, linewidths=0, label=names[1])
    if arrows is not None:
        starts, ends = arrows[:, 0], arrows[:, 1]
        true_length = {"angles": "xy", "scale_units": "xy", "scale": 1}
        ax.quiver(*starts.T, *(ends - starts).T, **true_length, width=0.004, color="black", alpha=0.75)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="first dimension", ylabel="second dimension")
    ax.legend(markerscale=2)
    return ax


def figure_lvlm(parts: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """A large vision-language model as boxes: encoder, projector, one sequence of tokens, and K decoder layers.

    ``parts`` holds ``layers``, ``vision_tokens`` (of one image), ``dim``, and ``parameters``: counts of
    ``"vision encoder"``, ``"projector"`` and ``"language model"``.
    """
    ax = new_axes(ax, figsize=(7, 4.4))
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
    box(7.75, 0.0, 3.1, 0.75, "text\nembedding table", TEXT)
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
    size = f"language model\n{counts['language model']:,} weights\n{parts['dim']} numbers a token"
    ax.text(4.0, 3.5, size, ha="right", va="center")
    ax.set(xlim=(-0.2, 13.2), ylim=(-0.2, 5.6), title="A picture and a text become one row of tokens")
    ax.set_axis_off()
    return ax


def figure_pictures(pictures: Mapping[str, Sequence[np.ndarray]], ax: Axes | None = None) -> Axes:
    """A contact sheet of (h, w, 3) uint8 pictures, a line for each kind, scaled to one size by repeating pixels."""
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
    ax.spines[:].set_visible(False)
    return ax


def figure_training(data: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """The loss of a training by step, and MIR where it was measured, on an axis of its own.

    ``data`` holds ``losses`` of every step; ``mir``, values by step, may be empty; ``zeroed_rows``, that baseline, or
    None. The axes returned are those of the loss; those of MIR, if there are any, are the last of the figure.
    """
    ax = new_axes(ax)
    losses, mir = np.asarray(data["losses"], dtype=float), data["mir"]
    ax.plot(np.arange(1, len(losses) + 1), losses, color="black", marker="", linestyle="-", label="loss (left)")
    ax.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0, 1.05 * losses.max()))
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    title = f"Step {len(losses)}: loss {losses[0]:.2f} → {losses[-1]:.2f}"
    handles = ax.get_lines()
    if mir:
        steps, values = list(mir), list(mir.values())
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.plot(steps, values, color=VISION, marker="o", linestyle="--", label="MIR (right)")
        shown, zeroed = [*values], data.get("zeroed_rows")
        if zeroed is not None:
            right.axhline(zeroed, color=NEUTRAL, linestyle=":", linewidth=1.2, label="vision rows zeroed (right)")
            shown.append(zeroed)
        room = 0.15 + 0.1 * (max(shown) - min(shown))
        right.set(ylabel="MIR (log10)", ylim=(min(shown) - room, max(shown) + room))
        handles = [*handles, *right.get_lines()]
        title += f", MIR {values[0]:.2f} → {values[-1]:.2f}"
    ax.set_title(title)
    ax.legend(handles=handles, loc="upper center", ncols=len(handles), bbox_to_anchor=(0.5, -0.16))
    return ax


def wilson_interval(share: np.ndarray, count: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of (n,) shares of (n,) counts: within 0 and 1, of some width also where the share is 0 or 1."""
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share, count = np.asarray(share, dtype=float), np.asarray(count, dtype=float)
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return middle - half, middle + half


def figure_transport_map(
    data: TransportMap, pictures: Mapping[int, np.ndarray], ax: Axes | None = None, *, layer: int | None = None
) -> Axes:
    """Pictures, and beside each what its patches cost: the dearest above, the cheapest below, one colour scale for all.

    Patches are coloured over the picture in grey where their places are known, else in the order of their rows, as a
    strip. At the bottom the null map: words on their way onto other words, in the same colours.

    ``pictures`` are (h, w, 3) uint8 by the number of the sample, see `mirlib.costs.as_seen`; the first half by rank
    stands above. ``layer`` is one of 1..K, or None for the sum.
    """
    order = [int(number) for number in data.ranking(layer) if int(number) in pictures]
    half = -(-len(order) // 2)
    ranked = {"dearest": order[:half], "cheapest": order[half:][::-1]}
    lines = {name: numbers for name, numbers in ranked.items() if numbers}
    gap, down, margin = 6, _TILE + 28, 66 if half > 2 else 46
    step = 2 * _TILE + gap + 22
    width, height = max(half, 2) * step - 22, len(lines) * down + _TILE / 4
    ax = new_axes(ax, figsize=(7.0, 0.6 + 5.9 * height / (width + margin)))
    every = np.concatenate([data.patch_costs(number, layer) for number in range(len(data.vision))])
    every = every[~np.isnan(every)]
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, float(np.quantile(every, 0.99)) or 1.0), COSTS)
    for line, numbers in enumerate(lines.values()):
        for place, number in enumerate(numbers):
            corner = place * step, line * down
            costs = data.patch_costs(number, layer)
            _picture_and_costs(ax, scale, corner, gap, np.asarray(pictures[number]), costs, data.grids[number])
            middle = corner[0] + _TILE + gap / 2, corner[1] + _TILE + 5
            ax.text(*middle, f"{np.nanmean(costs):.3g} a patch", va="top", ha="center", fontsize=8)
    labels = {name: line * down + _TILE / 2 for line, name in enumerate(lines)}
    title = f"A patch costs {every.mean():.3g} to move onto the text"
    null = data.null_level(layer)
    if np.isfinite(null.mean):
        title += f", a word {null.mean:.2g} to move onto other words"
        top = len(lines) * down
        words = np.concatenate([np.nansum(c, axis=0) if layer is None else c[layer - 1] for c in data.null], axis=0)
        words = words[words > 0][:80]
        box = (0, width, top + _TILE / 8, top)
        ax.imshow(scale.to_rgba(words)[None], extent=box, interpolation="nearest")
        below = f"{null.mean:.2g} a word, 95 % of them below {null.high:.2g}"
        ax.text(width / 2, top + _TILE / 8 + 4, below, va="top", ha="center", fontsize=8)
        labels["null:\nwords"] = top + _TILE / 12
    bar = ax.figure.colorbar(scale, ax=ax, extend="max", fraction=0.04, pad=0.02)
    bar.set_label("cost" + (", sum over the layers" if layer is None else f" in layer {layer}"))
    bar.outline.set_visible(False)
    for name, middle in labels.items():
        ax.text(-8, middle, name, va="center", ha="right", fontsize=9)
    ax.set(xlim=(-margin, width), ylim=(height, 0), aspect="equal")
    ax.axis("off")
    ax.set_title(title, fontsize=10, loc="left")
    return ax


def _picture_and_costs(
    ax: Axes,
    scale: mpl.cm.ScalarMappable,
    corner: tuple[float, float],
    gap: float,
    picture: np.ndarray,
    costs: np.ndarray,
    grid: Any,
) -> None:
    """A picture, and beside it its patches coloured over its grey, or a strip of them where no grid is known."""
    high, wide = (_TILE * size / max(picture.shape[:2]) for size in picture.shape[:2])
    left, top = corner[0] + (_TILE - wide) / 2, corner[1] + (_TILE - high) / 2
    ax.imshow(picture, extent=(left, left + wide, top + high, top), interpolation="nearest")
    left += _TILE + gap
    box = (left, left + wide, top + high, top)
    if grid is None:
        band = _TILE / 6
        box = (left, left + wide, corner[1] + (_TILE + band) / 2, corner[1] + (_TILE - band) / 2)
        shown = costs[None]
    else:
        shown = np.full(grid.rows * grid.columns, np.nan)
        shown[grid.cells[grid.cells >= 0]] = costs[grid.cells >= 0]
        shown = shown.reshape(grid.rows, grid.columns)
        grey = picture @ np.array([0.299, 0.587, 0.114])
        ax.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=box, interpolation="nearest")
    tint = scale.to_rgba(shown)
    tint[..., 3] = np.where(np.isnan(shown), 0, 1 if grid is None else 0.75)
    ax.imshow(tint, extent=box, interpolation="nearest")


def figure_layer_map(
    distances: np.ndarray, layers: Sequence[int], within: np.ndarray, ax: Axes | None = None, *, name: str, unit: str
) -> Axes:
    """Distances between vision rows after one layer and text rows after another, with the nearest text layer marked.

    ``distances`` are (L, L), row i for vision after the i-th of the ``layers`` (0 is what enters layer 1), column j for
    text; ``within`` says which text layers cannot be told from the nearest one of their row. The title begins with the
    ``name`` of the rows, and counts the layers whose nearest text layer is their own.
    """
    ax = new_axes(ax, figsize=(5.4, 4.8))
    count, nearest = len(layers), distances.argmin(axis=1)
    shown = distances[distances > 0]
    low, high = (shown.min(), np.percentile(shown, 85)) if shown.size else (1.0, 1.0)
    scale = mpl.colors.LogNorm(low, max(high, 1.01 * low))
    image = ax.imshow(np.maximum(distances, low), norm=scale, cmap="Blues_r", aspect="auto", interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, extend="max" if distances.max() > high else "neither", shrink=0.85)
    bar.set_label(f"Fréchet distance ({unit})")
    bar.ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    bar.set_ticks(np.geomspace(scale.vmin, scale.vmax, 5), labels=[_short(v) for v in np.geomspace(low, scale.vmax, 5)])
    if count <= 12:
        for i, j in np.ndindex(count, count):
            colour = "white" if scale(max(distances[i, j], low)) < 0.5 else "black"  # on dark, on light
            ax.text(j, i, _short(distances[i, j]), ha="center", va="center", fontsize=7, color=colour)

    def frame(i: int, j: int, size: float, **options: Any) -> None:
        ax.add_patch(mpl.patches.Rectangle((j - size / 2, i - size / 2), size, size, fill=False, **options))

    for i in range(count):
        frame(i, i, 0.76, edgecolor="black", linewidth=0.9, linestyle=":")
    for i, j in zip(*np.nonzero(within), strict=True):
        frame(i, j, 0.92, edgecolor=VISION, linewidth=2.2 if j == nearest[i] else 0.9)
    handles = [mpl.patches.Patch(fill=False, edgecolor=VISION, linewidth=2.2, label="nearest text layer")]
    if within.sum() > count:
        handles.append(mpl.patches.Patch(fill=False, edgecolor=VISION, linewidth=0.9, label="not told from it"))
    handles.append(mpl.patches.Patch(fill=False, edgecolor="black", linewidth=0.9, linestyle=":", label="same layer"))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize="small")
    same = int(within.diagonal().sum())
    ax.set_title(f"{name}: same layer nearest for {same} of {count}")
    ticks = np.arange(count) if count <= 12 else np.linspace(0, count - 1, 9).round().astype(int)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, [layers[tick] for tick in ticks])
    ax.set(xlabel="text after layer (0: what enters layer 1)", ylabel="vision after layer")
    ax.grid(visible=False)
    return ax


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
