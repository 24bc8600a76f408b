"""Which words lie nearest to a vision row: the lens, layer by layer, and how well it reads what a caption says.

Two vocabularies are asked. The logit lens puts a row through the model's final norm and its output embedding, as if the
layer were the last one; its scores are the logits that the model would give there. The other takes the cosine with the
input embeddings, the rows that words have where they enter the decoder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from mirlib.adapters import unwrap
from mirlib.batches import ANY_TEXT, PairBatches, device_of
from mirlib.costs import as_seen
from mirlib.data import load_image
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.grids import PatchGrid
from mirlib.hidden_states import decoder_parts, from_layer_zero, hidden_of
from mirlib.mir import check_confidence
from mirlib.prompts import used_template

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Lens", "LensRanks", "lens", "lens_rank"]

LENSES = ("output", "input")
ROWS_AT_ONCE = 512  # (rows, vocabulary) scores in float32 are the largest thing here
WORDS_AT_ONCE = 8192
WORD = re.compile(r"[^\W_]+")
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
        """Refuse a model whose logits are not those of its final norm and output embedding, at the first forward pass.

        A scale or a cap behind the output embedding changes no rank and is let through.
        """
        last: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            last[:] = [hidden_of(self.parts, output)[:1, -1]]

        def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for hook in hooks:
                hook.remove()
            logits = getattr(output, "logits", None)
            if logits is None or not last:
                raise MirlibError(f"{self.name} returns no logits, so its rows cannot be read as words")
            try:
                found = self.scores("output", last[0])[0]
            except (RuntimeError, TypeError, ValueError) as error:
                raise MirlibError(self._no_lens) from error
            own = logits[0, -1].float().to(found.device)
            if own.shape != found.shape or not _spearman(own, found) >= SAME_RANKS:
                raise MirlibError(self._no_lens)

        hooks = [self.parts.layers[-1].register_forward_hook(keep), unwrap(model).register_forward_hook(check)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def _no_lens(self) -> str:
        return (
            f"{self.name}: its logits are not those of the final norm and the output embedding of the last layer's "
            "rows, so a logit lens would not read what the model reads; register_adapter() can name another norm"
        )


def _spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([values.double().argsort().argsort().double() for values in (a.cpu(), b.cpu())])
    return float(torch.corrcoef(ranks)[0, 1])


def _batches(processor: Any, images: Sequence[Any], text: str, template: str, batch_size: int) -> PairBatches:
    settings = {
        "batch_size": batch_size,
        "template": used_template(processor, template),
        "max_text_tokens": None,
    }
    return PairBatches(processor, images, [text], [(i, 0) for i in range(len(images))], settings)


def _chosen_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    chosen = tuple(range(count + 1)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or not all(0 <= layer <= count for layer in chosen):
        raise MirlibError(f"layers must be some of 0..{count} (0: what enters layer 1), got {list(layers)}")
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# One picture


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
        picture: (h, w, 3) uint8, as the model sees it.
        grid: Where the vision rows stand in it, or None where that is not known of the model.
    """

    layers: tuple[int, ...]
    words: np.ndarray
    probabilities: np.ndarray
    neighbours: np.ndarray
    cosines: np.ndarray
    picture: np.ndarray
    grid: PatchGrid | None

    def to_frame(self) -> pd.DataFrame:
        """One line a layer, vision row and place.

        Columns layer, row, place (from 1), word, probability, neighbour, cosine.
        """
        import pandas as pd

        layer, row, place = np.indices(self.words.shape)
        columns = {"layer": np.asarray(self.layers)[layer], "row": row, "place": place + 1, "word": self.words}
        columns |= {"probability": self.probabilities, "neighbour": self.neighbours, "cosine": self.cosines}
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()})

    def plot(self, layer: int | None = None, by: str = "output", ax: Axes | None = None) -> Axes:
        """The nearest word of each patch, over the picture.

        Args:
            layer: Its number; the last one if left out.
            by: ``"output"`` for the logit lens, ``"input"`` for the input embeddings.
            ax: Where to draw; a new figure if left out.
        """
        from mirlib.plots import figure_lens

        layer = self.layers[-1] if layer is None else layer
        if layer not in self.layers or by not in LENSES:
            raise MirlibError(f"choose a layer of {list(self.layers)} and a lens of {', '.join(LENSES)}")
        if self.grid is None:
            raise MirlibError(
                "where the vision rows of this model stand in the picture is not known: take the words from "
                "to_frame(), or teach register_adapter() the grid"
            )
        words, weights = (self.words, self.probabilities) if by == "output" else (self.neighbours, self.cosines)
        place = self.layers.index(layer)
        title = f"Nearest {'word' if by == 'output' else 'input embedding'} of each patch after layer {layer}"
        return figure_lens(self.picture, words[place, :, 0], weights[place, :, 0], self.grid, ax, title=title)


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
    chosen = _chosen_layers(layers, len(vocabulary.parts.layers))
    if not 1 <= k <= vocabulary.size:
        raise MirlibError(f"k must lie between 1 and the {vocabulary.size} words of the vocabulary, got {k}")
    picture = load_image(image)
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

    batches = _batches(processor, [picture], ANY_TEXT if text is None else text, template, 1)
    _read(model, vocabulary, batches, on_layer, progress=False)
    stacked = {name: [torch.stack(side).numpy() for side in zip(*pairs, strict=True)] for name, pairs in found.items()}
    (probabilities, word_ids), (cosines, neighbour_ids) = stacked["output"], stacked["input"]
    return Lens(
        layers=chosen,
        words=_decoded(processor.tokenizer, word_ids),
        probabilities=probabilities,
        neighbours=_decoded(processor.tokenizer, neighbour_ids),
        cosines=cosines,
        picture=as_seen(processor, picture),
        grid=grids[0],
    )


def _read(
    model: nn.Module,
    vocabulary: _Vocabulary,
    batches: PairBatches,
    on_layer: Callable[[int, Tensor, Tensor, ReadBatch], None],
    progress: bool,
) -> None:
    """One pass over the batches, from layer 0 on; layer K before its norm, for the lens brings that itself."""
    with evaluating(model), vocabulary.checked(model), from_layer_zero(vocabulary.parts, on_layer) as on_every_layer:
        Reader(model, batches, last="raw").run(on_every_layer, "lens", progress)


def _decoded(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """The string of each id."""
    numbers, places = np.unique(ids, return_inverse=True)
    words = np.array([tokenizer.decode([int(number)]) for number in numbers], dtype=object)
    return words[places].reshape(ids.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Many pictures with captions: the lens as a number


@dataclass(frozen=True)
class LensRanks:
    """How high the words of N captions rank among the vocabulary at the vision rows of their own pictures and others'.

    A word's rank in a picture is the best that it has at any of the vision rows, 1 for the nearest word. Arrays are by
    lens, ``"output"`` and ``"input"``.

    Attributes:
        layers: (L,) their numbers; 0 is what enters layer 1.
        own: (N, L) mean over the words of a caption of log10 of the rank in its own picture.
        shuffled: (N, L) the same words in the picture of another caption.
        own_top: (N, L) share of the words with a rank of at most ``top``.
        shuffled_top: (N, L).
        top: 10, for example.
        vocabulary: How many words the model knows, V.
        words: The words of each caption that counted.
        left_out: How many captions had none, and are not among the N.
    """

    layers: tuple[int, ...]
    own: Mapping[str, np.ndarray]
    shuffled: Mapping[str, np.ndarray]
    own_top: Mapping[str, np.ndarray]
    shuffled_top: Mapping[str, np.ndarray]
    top: int
    vocabulary: int
    words: tuple[tuple[str, ...], ...]
    left_out: int

    def to_frame(self, confidence: float = 0.95) -> pd.DataFrame:
        """One line a lens and layer.

        Columns lens, layer, own and shuffled (mean log10 of the rank), gain (shuffled − own: by how many powers of ten
        the words rank higher beside their own picture) with low and high; then own_top, shuffled_top, gain_top (own −
        shuffled), low_top and high_top. The intervals are Student's t over the pairs.
        """
        import pandas as pd

        check_confidence(confidence)
        lines = []
        for name in LENSES:
            gain = _mean_and_interval(self.shuffled[name] - self.own[name], confidence)
            gain_top = _mean_and_interval(self.own_top[name] - self.shuffled_top[name], confidence)
            for place, layer in enumerate(self.layers):
                line = {"lens": name, "layer": layer}
                line |= {"own": self.own[name][:, place].mean(), "shuffled": self.shuffled[name][:, place].mean()}
                line |= dict(zip(("gain", "low", "high"), gain[:, place], strict=True))
                line |= {"own_top": self.own_top[name][:, place].mean()}
                line |= {"shuffled_top": self.shuffled_top[name][:, place].mean()}
                line |= dict(zip(("gain_top", "low_top", "high_top"), gain_top[:, place], strict=True))
                lines.append(line)
        return pd.DataFrame(lines)


def _mean_and_interval(differences: np.ndarray, confidence: float) -> np.ndarray:
    """(3, L): mean over the pairs, and the ends of its interval."""
    count = len(differences)
    mean = differences.mean(axis=0)
    reach = student.ppf(0.5 + confidence / 2, count - 1) * differences.std(axis=0, ddof=1) / count**0.5
    return np.stack([mean, mean - reach, mean + reach])


def lens_rank(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    captions: Sequence[str],
    *,
    words: Sequence[str] | None = None,
    top: int = 10,
    layers: Sequence[int] | None = None,
    batch_size: int = 4,
    seed: int = 0,
    template: str = "chat",
    progress: bool = False,
) -> LensRanks:
    """How well the lens reads in pictures what their captions say, with the same captions beside other pictures.

    The captions never enter the model, so nothing can leak: a text of ours stands behind each picture. The control
    gives every caption the picture of another one (a derangement drawn by the seed); words that both captions share
    count on both sides. Without any trace of the picture in its rows, own and shuffled are equal in expectation. Where
    every word that captions use ranks high in every picture, the mean of the ranks says little about a picture, and the
    difference all there is.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence.
        processor: Its processor, with a fast tokenizer.
        images: N paths, PIL images or arrays.
        captions: N texts that say what is in the images.
        words: Words to look for; of a caption those count that are among them. Left out: all that stand in at most
            half of the captions, which leaves "a" and "the" out in any language. In both cases words that the tokenizer
            splits do not count, for their pieces mean nothing.
        top: What counts as a high rank.
        layers: Which layers, of 0..K; all if left out.
        batch_size: Images a forward pass.
        seed: Of the derangement.
        template: As for `mirlib.score`.
        progress: Whether to show a bar on stderr.

    Returns:
        `LensRanks`.

    Raises:
        MirlibError: If images and captions are not equally many, fewer than 2 captions hold a word that counts, and all
            that `lens` raises.
    """
    if len(images) != len(captions):
        raise MirlibError(f"expected a caption for each image, got {len(images)} images and {len(captions)} captions")
    vocabulary = _Vocabulary(model)
    chosen = _chosen_layers(layers, len(vocabulary.parts.layers))
    ids_of = _Whole(processor.tokenizer, vocabulary.size)
    spoken = [_content(caption, words) for caption in captions]
    if words is None:
        counts = Counter(word for caption in spoken for word in caption)
        spoken = [[word for word in caption if 2 * counts[word] <= len(captions)] for caption in spoken]
    spoken = [[word for word in caption if ids_of(word)] for caption in spoken]
    used = [i for i, caption in enumerate(spoken) if caption]
    if len(used) < 2:
        raise MirlibError(
            f"{len(used)} of {len(captions)} captions hold a word that counts, and at least 2 are needed: words are "
            "looked for that the tokenizer keeps whole, and without `words` those in at most half of the captions"
        )
    order = np.random.default_rng([seed, 61]).permutation(len(used))
    partner = np.empty(len(used), dtype=int)
    partner[order] = np.roll(order, 1)  # caption i beside the picture of caption partner[i]
    beside = partner.argsort()  # and picture i beside the caption of beside[i]
    asked = [[spoken[used[i]], spoken[used[beside[i]]]] for i in range(len(used))]
    shape = (len(used), len(chosen))
    log_ranks, tops = ({name: np.empty((2, *shape)) for name in LENSES} for _ in range(2))

    def on_layer(layer: int, vision: Tensor, _: Tensor, batch: ReadBatch) -> None:
        if layer not in chosen:
            return
        numbers = batch.samples[0].to(vision.device)
        for picture in range(batch.first, batch.first + batch.size):
            rows = vision[numbers == picture]
            wanted = {word: ids_of(word) for caption in asked[picture] for word in caption}
            for name in LENSES:
                best = _best_ranks(vocabulary, name, rows, wanted)
                for side, caption in enumerate(asked[picture]):
                    ranks = np.array([best[word] for word in caption], dtype=float)
                    owner = beside[picture] if side else picture
                    place = chosen.index(layer)
                    log_ranks[name][side, owner, place] = np.log10(ranks).mean()
                    tops[name][side, owner, place] = (ranks <= top).mean()

    batches = _batches(processor, [images[i] for i in used], ANY_TEXT, template, batch_size)
    _read(model, vocabulary, batches, on_layer, progress)
    return LensRanks(
        layers=chosen,
        own={name: values[0] for name, values in log_ranks.items()},
        shuffled={name: values[1] for name, values in log_ranks.items()},
        own_top={name: values[0] for name, values in tops.items()},
        shuffled_top={name: values[1] for name, values in tops.items()},
        top=top,
        vocabulary=vocabulary.size,
        words=tuple(tuple(spoken[i]) for i in used),
        left_out=len(captions) - len(used),
    )


def _content(caption: str, words: Sequence[str] | None) -> list[str]:
    """The different words of a caption, in order; of given ones those that are asked for."""
    found = dict.fromkeys(WORD.findall(caption))
    return list(found) if words is None else [word for word in found if word in set(words)]


class _Whole:
    """The ids under which a tokenizer keeps a word whole: at the start of a text, behind a blank, in small letters."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.known: dict[str, list[int]] = {}

    def __call__(self, word: str) -> list[int]:
        if word not in self.known:
            forms = {word, f" {word}", word.lower(), f" {word.lower()}"}
            found = [self.tokenizer(form, add_special_tokens=False).input_ids for form in forms]
            unknown = self.tokenizer.unk_token_id
            ids = {ids[0] for ids in found if len(ids) == 1 and ids[0] != unknown and ids[0] < self.size}
            self.known[word] = sorted(ids)
        return self.known[word]


def _best_ranks(vocabulary: _Vocabulary, name: str, rows: Tensor, wanted: Mapping[str, list[int]]) -> dict[str, int]:
    """The best rank of each word at any of the rows: one more than the number of words that score higher."""
    best = dict.fromkeys(wanted, vocabulary.size)
    for part in rows.split(ROWS_AT_ONCE):
        scores = vocabulary.scores(name, part)
        for word, ids in wanted.items():
            own = scores[:, ids].amax(dim=1, keepdim=True)
            best[word] = min(best[word], 1 + int((scores > own).sum(dim=1).min()))
    return best
