"""A form for a notebook: a checkpoint, a folder of pictures, a button; MIR with its interval and its curve."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from mirlib.errors import MirlibError, said_by
from mirlib.files import DISK

if TYPE_CHECKING:
    from mirlib.result import MIRResult

__all__ = ["ScoreForm"]

NO_KERNEL = "<p>Here stands a form that measures a model of your own. It needs Jupyter: download this page.</p>"


class ScoreForm(ipywidgets.VBox):
    """Measures a model of one's own on pictures of one's own, as `mirlib.score` does, over the texts that come along.

    It measures on the CPU.

    Attributes:
        checkpoint: Text field: a local folder or a name on the Hugging Face hub; empty for the shipped miniature.
        pictures: Text field: a folder, or what else `mirlib.readers.open_images` reads; empty for the sample pictures.
        pairs: How many pairs are measured; fewer where there are not so many pictures.
        button: Starts the measurement.
        result: The last `mirlib.MIRResult`, or None.

    Example:
        >>> form = ScoreForm()
        >>> form.result is None, form.button.description
        (True, 'Measure')
    """

    def __init__(self) -> None:
        wide = {"layout": {"width": "100%", "max_width": "40rem"}, "style": {"description_width": "8rem"}}
        self.checkpoint = ipywidgets.Text(description="Checkpoint", placeholder="empty: the shipped miniature", **wide)
        self.pictures = ipywidgets.Text(description="Pictures", placeholder="empty: the sample pictures", **wide)
        self.pairs = ipywidgets.BoundedIntText(20, min=2, max=10_000, description="Pairs", style=wide["style"])
        self.button = ipywidgets.Button(description="Measure")
        self.button.on_click(lambda _: self.measure())
        self.said = ipywidgets.HTML()
        self.curve = ipywidgets.Image(format="png", layout={"display": "none", "max_width": "40rem"})
        self.result: MIRResult | None = None
        super().__init__([self.checkpoint, self.pictures, self.pairs, self.button, self.said, self.curve])

    def measure(self) -> None:
        """Measure what the fields say, and show it; what does not work is said in a sentence."""
        self.button.disabled = True
        self.curve.layout.display = "none"
        self._say("Measuring …")
        try:
            self.result = self._score()
        except (MirlibError, *DISK) as error:
            self.result = None
            self._say(str(error) if isinstance(error, MirlibError) else said_by(error))
        else:
            self._show(self.result)
        finally:
            self.button.disabled = False

    def _score(self) -> MIRResult:
        from mirlib.data import sample_images, sample_texts
        from mirlib.loading import load_miniature, load_model
        from mirlib.readers import open_images
        from mirlib.scoring import score

        folder, name = self.pictures.value.strip(), self.checkpoint.value.strip()
        images = open_images(Path(folder).expanduser()) if folder else sample_images(self.pairs.value)
        local = Path(name).expanduser()
        model, processor = load_model(str(local) if local.is_dir() else name) if name else load_miniature()
        count = min(self.pairs.value, len(images))
        return score(model, processor, images, sample_texts(count), num=count, progress=False)

    def _show(self, result: MIRResult) -> None:
        from mirlib import plots

        parts = [f"MIR {result.value:.3f}"]
        if result.interval is not None:
            low, high = result.interval.low, result.interval.high
            parts.append(f"{result.interval.confidence:.0%} interval {low:.3f} to {high:.3f}")
        parts.append(f"{result.settings['num']} pairs, {result.num_layers} layers")
        self._say(", ".join(parts) + ".", *result.warnings)
        self.curve.value = plots.as_png(result.plot, figsize=(6, 3.2))
        self.curve.layout.display = None

    def _say(self, *lines: str) -> None:
        self.said.value = "<br>".join(html.escape(line) for line in lines)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Jupyter shows the form; a page without a kernel says what would be here."""
        return {**super()._repr_mimebundle_(**kwargs), "text/html": NO_KERNEL}
