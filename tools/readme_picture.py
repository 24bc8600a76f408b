"""Draw the pictures of README.md: tokens of the miniature and FID after every layer, and what patches cost.

``python tools/readme_picture.py`` writes readme.png and readme_map.png into book/_static. The pairs are those of
``mir score``.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from torch import cat  # noqa: E402

from mirlib import modality_integration_rate, transport_map  # noqa: E402
from mirlib.costs import as_seen  # noqa: E402
from mirlib.data import draw, sample_images, sample_texts  # noqa: E402
from mirlib.loading import load_miniature  # noqa: E402
from mirlib.plots import TEXT, VISION, figure_per_layer, figure_transport_map, style  # noqa: E402
from mirlib.rows import collect_rows  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "book" / "_static"
SAMPLES = 100
DRAWN = 40  # samples in the cloud; all of them would be a blot


def clouds() -> Figure:
    """Tokens in two dimensions after the first and the last layer, and the layer curve."""
    images, texts = sample_images(SAMPLES), sample_texts(SAMPLES)
    chosen = draw(images, SAMPLES, 0, "images"), draw(texts, SAMPLES, 1, "texts")
    rows = collect_rows(*load_miniature(), [images[i] for i in chosen[0]], [texts[i] for i in chosen[1]])
    result = modality_integration_rate(rows.vision, rows.text, samples=rows.samples, confidence=0.95)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=(1, 1, 1.35))
    vision, text = rows.of_samples(range(DRAWN))
    for ax, k in ((axes[0], 1), (axes[1], rows.num_layers)):
        plane = PCA(2, svd_solver="full").fit(cat([vision[k - 1], text[k - 1]]))
        looks = {"s": 11, "linewidth": 0.8, "alpha": 0.75}
        ax.scatter(*plane.transform(vision[k - 1]).T, color=VISION, marker="o", label="vision tokens", **looks)
        ax.scatter(*plane.transform(text[k - 1]).T, color=TEXT, marker="x", label="text tokens", **looks)
        ax.set(xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
        if k == 1:
            ax.legend(markerscale=1.8, handletextpad=0.2)
        share = plane.explained_variance_ratio_.sum()
        ax.set_title(f"layer {k} (PCA, {share:.0%} of the variance)")
    figure_per_layer(result, axes[2])
    axes[2].set_ylim(top=1.5 * axes[2].get_ylim()[1])  # room for the legend above the curves
    axes[2].legend(loc="upper left")
    print(result)
    return figure


def costs() -> Figure:
    """What the patches of the dearest and the cheapest pictures cost; the figure of ``mir score --map``."""
    model, processor = load_miniature()
    images = sample_images(SAMPLES)
    found = transport_map(model, processor, images, sample_texts(SAMPLES), num=SAMPLES, progress=False)
    ranked = [int(number) for number in found.ranking()]
    seen = {number: as_seen(processor, images[found.images[number]]) for number in ranked[:3] + ranked[-3:]}
    return figure_transport_map(found, seen).figure


def main() -> None:
    """Measure, draw, write."""
    with style():
        clouds().savefig(FOLDER / "readme.png", dpi=110, metadata={"Software": None})
        stream = io.BytesIO()
        costs().savefig(stream, dpi=110)
        Image.open(stream).convert("RGB").quantize(256).save(FOLDER / "readme_map.png", optimize=True)


if __name__ == "__main__":
    main()
