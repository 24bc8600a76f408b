"""Draw the picture of README.md: tokens of the miniature in two dimensions, and FID after every layer.

``python tools/readme_picture.py`` writes book/_static/readme.png. The pairs are those of ``mir score``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from torch import cat  # noqa: E402

from mirlib import modality_integration_rate  # noqa: E402
from mirlib.data import draw, sample_images, sample_texts  # noqa: E402
from mirlib.lab.models import load_miniature  # noqa: E402
from mirlib.plots import figure_per_layer, figure_token_map, style  # noqa: E402
from mirlib.rows import collect_rows  # noqa: E402

TARGET = Path(__file__).resolve().parents[1] / "book" / "_static" / "readme.png"
SAMPLES = 100
DRAWN = 40  # samples in the cloud; all of them would be a blot


def main() -> None:
    """Measure, draw, write."""
    images, texts = sample_images(SAMPLES), sample_texts(SAMPLES)
    chosen = draw(images, SAMPLES, 0, "images"), draw(texts, SAMPLES, 1, "texts")
    rows = collect_rows(*load_miniature(), [images[i] for i in chosen[0]], [texts[i] for i in chosen[1]])
    result = modality_integration_rate(rows.vision, rows.text, samples=rows.samples, confidence=0.95)
    with style():
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=(1, 1, 1.35))
        vision, text = rows.of_samples(range(DRAWN))
        for ax, k in ((axes[0], 1), (axes[1], rows.num_layers)):
            plane = PCA(2, svd_solver="full").fit(cat([vision[k - 1], text[k - 1]]))
            figure_token_map(
                {
                    "vision": {"vision tokens": plane.transform(vision[k - 1])},
                    "text": {"text tokens": plane.transform(text[k - 1])},
                },
                ax,
                legend=k == 1,
            )
            share = plane.explained_variance_ratio_.sum()
            ax.set_title(f"layer {k} (PCA, {share:.0%} of the variance)")
        figure_per_layer(result, axes[2])
        axes[2].set_ylim(top=1.5 * axes[2].get_ylim()[1])  # room for the legend above the curves
        axes[2].legend(loc="upper left")
        figure.savefig(TARGET, dpi=110, metadata={"Software": None})
    print(f"{TARGET.name}: {result}")


if __name__ == "__main__":
    main()
