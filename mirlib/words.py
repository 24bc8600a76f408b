"""Which words lie nearest to a vision row: the lens, layer by layer.

Two vocabularies are asked. The logit lens puts a row through the model's final norm and its output embedding, as if the
layer were the last one; its scores are the logits that the model would give there. The other takes the cosine with the
input embeddings, the rows that words have where they enter the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from mirlib.adapters import unwrap
from mirlib.batches import ANY_TEXT, PairBatches, device_of
from mirlib.data import load_image
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.grids import PatchGrid
from mirlib.hidden_states import decoder_parts, from_layer_zero, hidden_of, some_layers
from mirlib.prompts import used_template

__all__ = ["Lens", "lens"]

LENSES = ("output", "input")
ROWS_AT_ONCE = 512  # (rows, vocabulary) scores in float32 are the largest thing here
WORDS_AT_ONCE = 8192
SAME_RANKS = 0.99  # Spearman's ρ of the lens at the last layer with the model's own logits


class _Vocabulary:
    """A model's words as directions: its final norm and output embedding, and its input embeddings."""

    def __init__(self, model: nn.Module) -> None:
        self.parts, self.device = decoder_parts(model), device_of(model)
        inner = unwrap(model)
        self.name = type(inner).__name__
        self.head, self.embeddings = (
            getattr(inner, f"get_{side}_embeddings", lambda: None)() for side in ("output", "input")
        )
        for what, found in (("output embedding", self.head), ("input embeddings", self.embeddings)):
            if found is None:
                raise MirlibError(f"{self.name} has no {what}, so its rows cannot be read as words")
        if self.parts.final_norm is None:
            raise MirlibError(f"{self.name}: no final norm found; name it with register_adapter()")
        # Where each layer ends in its norm, there is none behind the last one.
        self.norm = nn.Identity() if self.parts.final_norm is self.parts.layers[-1] else self.parts.final_norm
        self.size = int(getattr(self.embeddings, "num_embeddings", 0) or self.embeddings.weight.shape[0])

    def scores(self, lens: str, rows: Tensor) -> Tensor:
        """(n, V) float32: the logits of (n, d) rows, or their cosines with the input embeddings."""
        if lens == "output":
            return self.head(self.norm(rows)).float()
        unit, parts = nn.functional.normalize(rows.float(), dim=1), []
        for numbers in torch.arange(self.size, device=self.device).split(WORDS_AT_ONCE):
            words = nn.functional.normalize(self.embeddings(numbers).float(), dim=1)
            parts.append(unit @ words.to(unit.device).T)
        return torch.cat(parts, dim=1)

    @contextmanager
    def checked(self, model: nn.Module) -> Iterator[None]:
        """Refuse a model whose logits are not those of its final norm and output embedding, in a forward pass.

        A scale or a cap behind the output embedding changes no rank and is let through.
        """
        last: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            last[:] = [hidden_of(self.parts, output)[:1, -1]]

        def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            logits = getattr(output, "logits", None)
            if logits is None or not last:
                raise MirlibError(f"{self.name} returns no logits, so its rows cannot be read as words")
            no_lens = (
                f"{self.name}: its logits are not those of the final norm and the output embedding of the last layer's "
                "rows, so a logit lens would not read what the model reads; register_adapter() can name another norm"
            )
            try:
                found = self.scores("output", last[0])[0]
            except (RuntimeError, TypeError, ValueError) as error:
                raise MirlibError(no_lens) from error
            own, found = logits[0, -1].float().cpu().numpy(), found.cpu().numpy()
            if own.shape != found.shape or not spearmanr(own, found).statistic >= SAME_RANKS:
                raise MirlibError(no_lens)

        with ExitStack() as stack:
            stack.callback(self.parts.layers[-1].register_forward_hook(keep).remove)
            stack.callback(unwrap(model).register_forward_hook(check).remove)
            yield


@dataclass(frozen=True)
class Lens:
    """The k words nearest to each of r vision rows at each of L layers, nearest first.

    Attributes:
        layers: (L,) their numbers; 0 is what enters layer 1.
        words: (L, r, k) strings, as the tokenizer decodes them, by the logit lens.
        probabilities: (L, r, k) their shares of the softmax over the vocabulary, before any scale or cap of the
            model's own.
        neighbours: (L, r, k) strings, the nearest input embeddings.
        cosines: (L, r, k) with them.
        grid: Where the vision rows stand in the picture, or None where that is not known of the model.
    """

    layers: tuple[int, ...]
    words: np.ndarray
    probabilities: np.ndarray
    neighbours: np.ndarray
    cosines: np.ndarray
    grid: PatchGrid | None


def lens(
    model: nn.Module,
    processor: Any,
    image: Any,
    *,
    text: str | None = None,
    k: int = 5,
    layers: Sequence[int] | None = None,
    template: str = "chat",
) -> Lens:
    """The words nearest to each vision row of a picture, layer by layer.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence.
        processor: Its processor, with a fast tokenizer.
        image: A path, PIL image or (h, w, 3) uint8 array.
        text: What stands behind the picture; it matters only to models whose vision rows look ahead.
        k: How many words.
        layers: Which layers, of 0..K; all if left out. 0 is what enters layer 1.
        template: As for `mirlib.score`.

    Returns:
        `Lens`. At layer K the words by the logit lens are those that the model itself would predict there.

    Raises:
        UndefinedMIRError: If vision never enters the decoder's token sequence.
        MirlibError: If the model has no output embedding or no final norm, or they do not give its logits.

    Source: the logit lens is nostalgebraist (2020); on vision rows Neo et al. (arXiv 2410.07149).

    Examples:
        >>> from mirlib.data import sample_images
        >>> from mirlib.loading import load_miniature
        >>> (picture,) = sample_images(1)
        >>> lens(*load_miniature(), picture, k=1, layers=[0, 8]).words.shape
        (2, 36, 1)
    """
    vocabulary = _Vocabulary(model)
    count = len(vocabulary.parts.layers)
    chosen = some_layers(range(count + 1) if layers is None else layers, count)
    if not 1 <= k <= vocabulary.size:
        raise MirlibError(f"k must lie between 1 and the {vocabulary.size} words of the vocabulary, got {k}")
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in LENSES}
    grids: list[PatchGrid | None] = []

    def on_layer(layer: int, vision: Tensor, _: Tensor, batch: ReadBatch) -> None:
        if layer not in chosen:
            return
        if not grids:
            grid = vocabulary.parts.grid
            grids.append(None if grid is None else grid(batch.inputs, batch.positions["vision"])[0])
        for name in LENSES:
            parts = []
            for rows in vision.split(ROWS_AT_ONCE):
                scores = vocabulary.scores(name, rows)
                shares = scores.softmax(dim=1) if name == "output" else scores
                parts.append(shares.topk(k, dim=1))
            found[name].append(tuple(torch.cat(side).cpu() for side in zip(*parts, strict=True)))

    settings = {"batch_size": 1, "template": used_template(processor, template), "max_text_tokens": None}
    batches = PairBatches(processor, [load_image(image)], [ANY_TEXT if text is None else text], [(0, 0)], settings)
    # From layer 0 on; layer K before its norm, for the lens brings that itself.
    with evaluating(model), vocabulary.checked(model), from_layer_zero(vocabulary.parts, on_layer) as on_every_layer:
        Reader(model, batches, last="raw").run(on_every_layer, "lens", progress=False)
    stacked = {name: [torch.stack(side).numpy() for side in zip(*pairs, strict=True)] for name, pairs in found.items()}
    (probabilities, word_ids), (cosines, neighbour_ids) = stacked["output"], stacked["input"]
    return Lens(
        layers=chosen,
        words=_decoded(processor.tokenizer, word_ids),
        probabilities=probabilities,
        neighbours=_decoded(processor.tokenizer, neighbour_ids),
        cosines=cosines,
        grid=grids[0],
    )


def _decoded(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """The string of each id."""
    numbers, places = np.unique(ids, return_inverse=True)
    words = np.array([tokenizer.decode([int(number)]) for number in numbers], dtype=object)
    return words[places].reshape(ids.shape)
