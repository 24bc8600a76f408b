"""All hidden states of a small data set in memory, for figures, probes and subsets; `mirlib.score` never keeps rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirlib.batches import PairBatches
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.hidden_states import decoder_parts, from_layer_zero
from mirlib.mir import MODALITIES

__all__ = ["TokenRows", "collect_rows"]


@dataclass(frozen=True)
class TokenRows:
    """Rows of N samples after each of K layers.

    Attributes:
        vision: K tensors (r, d).
        text: K tensors (s, d).
        vision_samples: (r,) int64, the sample that each vision row belongs to, 0..N−1.
        text_samples: (s,) likewise for the text rows.
        vision_embeddings: (r, d), the same rows where they enter layer 1.
        text_embeddings: (s, d).
        seen: Rows that the model had, by modality, where only a part was kept; else None.
        pooled: There also the means of all rows of each sample, K tensors (N, d) of vision and K of text, float32.
    """

    vision: list[Tensor]
    text: list[Tensor]
    vision_samples: Tensor
    text_samples: Tensor
    vision_embeddings: Tensor
    text_embeddings: Tensor
    seen: dict[str, int] | None = None
    pooled: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers, K."""
        return len(self.vision)

    @property
    def samples(self) -> tuple[Tensor, Tensor]:
        """The pair that `mirlib.modality_integration_rate` takes as ``samples``."""
        return self.vision_samples, self.text_samples

    def of_samples(
        self, vision: Any, text: Any | None = None, *, embeddings: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The vision arrays and the text arrays of some samples, one a layer, in the order of the rows.

        ``text`` names the samples whose text rows are taken, those of ``vision`` if left out; with ``embeddings`` the
        rows that enter layer 1 stand in front, as layer 0.
        """
        vision = torch.as_tensor(vision)
        text = vision if text is None else torch.as_tensor(text)
        kept = torch.isin(self.vision_samples, vision), torch.isin(self.text_samples, text)
        layers = [self.vision_embeddings, *self.vision], [self.text_embeddings, *self.text]
        return tuple([rows[mask] for rows in side[not embeddings :]] for side, mask in zip(layers, kept, strict=True))


def collect_rows(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    template: str = "chat",
    text_rows: str = "text",
    last: str = "normed",
    max_text_tokens: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TokenRows:
    """Run the pairs ``(images[i], texts[i])`` through a model once and keep its vision rows and text rows, on the CPU.

    Memory grows with the rows that are kept, (K + 1) · rows · d · bytes of a number.

    Args:
        model: As for `mirlib.score`.
        processor: Its processor, with a fast tokenizer.
        images: N paths, PIL images or arrays.
        texts: N non-empty strings.
        batch_size: Pairs a forward pass. Texts of like length are put together, which saves padding.
        template: As for `mirlib.score`.
        text_rows: As for `mirlib.capture`.
        last: As for `mirlib.capture`.
        max_text_tokens: Cut each text after so many tokens.
        max_rows: Keep ``max_rows // N``, and at least one, of the rows of each modality of each sample, drawn at
            random.
        seed: Of that draw, which depends on the sample's number and not on the batches.
        progress: Whether to show a bar on stderr.

    Returns:
        `TokenRows`, sorted by sample.

    Raises:
        MirlibError: If there are not as many images as texts, or none, and all that `mirlib.capture` raises.
    """
    if len(images) != len(texts) or not len(images):
        raise MirlibError(f"expected as many images as texts and at least one, got {len(images)} and {len(texts)}")
    if max_rows is not None and max_rows < 1:
        raise MirlibError(f"max_rows must be at least 1, got {max_rows}")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    settings = {"batch_size": batch_size, "template": template, "max_text_tokens": max_text_tokens}
    batches = PairBatches(processor, images, texts, [(i, i) for i in order], settings)
    parts = decoder_parts(model)
    states, pooled = ([[[] for _ in range(len(parts.layers) + 1)] for _ in MODALITIES] for _ in range(2))
    samples, seen = ([], []), dict.fromkeys(MODALITIES, 0)
    index, kept = [None, None], [slice(None), slice(None)]  # of the latest batch

    def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        chosen = order[batch.first : batch.first + batch.size]
        for side, rows in enumerate((vision, text)):
            if k == 0:
                index[side] = batch.samples[side].cpu() - batch.first
                if max_rows is not None:
                    kept[side] = _drawn(index[side], chosen, max(1, max_rows // len(texts)), seed)
                seen[MODALITIES[side]] += len(rows)
                samples[side].append(torch.tensor(chosen)[index[side][kept[side]]])
            elif max_rows is not None:
                pooled[side][k].append(means_of_samples([rows], index[side], batch.size)[0])
            states[side][k].append(rows.cpu() if max_rows is None else rows[kept[side].to(rows.device)].cpu())

    with evaluating(model), from_layer_zero(parts, on_layer) as on_every_layer:
        Reader(model, batches, text_rows, last).run(on_every_layer, "rows", progress)
    numbers, layers = [], []
    for side in range(2):
        of_rows, by_sample = torch.cat(samples[side]).sort(stable=True)
        numbers.append(of_rows)
        layers.append([torch.cat(rows)[by_sample] for rows in states[side]])
    back = torch.tensor(order).argsort()
    return TokenRows(
        vision=layers[0][1:],
        text=layers[1][1:],
        vision_samples=numbers[0],
        text_samples=numbers[1],
        vision_embeddings=layers[0][0],
        text_embeddings=layers[1][0],
        seen=None if max_rows is None else seen,
        pooled=None if max_rows is None else tuple([torch.cat(means)[back] for means in side[1:]] for side in pooled),
    )


def means_of_samples(rows: Sequence[Tensor], index: Tensor, count: int) -> Tensor:
    """(K, count, d) means over the rows of each sample of a batch; float32, for sums of float16 rows overflow."""
    means = []
    counts = index.bincount(minlength=count)[:, None].clamp(min=1)
    for values in rows:
        values = values.float()
        sums = torch.zeros(count, values.shape[1], device=values.device)
        means.append(sums.index_add_(0, index.to(values.device), values).cpu() / counts)
    return torch.stack(means)


def _drawn(index: Tensor, chosen: Sequence[int], quota: int, seed: int) -> Tensor:
    """Places of at most ``quota`` rows of each sample of a batch, in order."""
    kept = []
    for place, sample in enumerate(chosen):
        rows = (index == place).nonzero()[:, 0]
        if len(rows) > quota:
            drawn = np.random.default_rng([seed, sample]).permutation(len(rows))[:quota]
            rows = rows[torch.from_numpy(np.sort(drawn))]
        kept.append(rows)
    return torch.cat(kept).sort().values
