"""Token weights and gap losses in stage 1: CAL, PRIOR, MIR as a loss, and the distance of tokens (ReGap).

All act in stage 1 alone; stage 2 is the plain recipe. The loss that a run records is the one that it minimised, so it
cannot be compared across methods; perplexity can.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from mirlab import recipes
from mirlab.methods.base import Batch, Technique, Training
from mirlab.model import miniature, precision, sequence, train
from mirlab.world import language
from mirlib.align import gap_loss, weighting

_GAP = "_mirlib_gap_loss"


def _rectangle(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, length - 1, vocabulary), 0 where nothing is learnt, and the labels (n, length - 1) they predict."""
    learnt = batch.targets[:, 1:]
    labels = batch.ids[:, 1:].masked_fill(~learnt, weighting.IGNORED)
    return logits.new_zeros(*learnt.shape, logits.shape[-1]).masked_scatter(learnt[..., None], logits), labels


@dataclass(frozen=True)
class ContrastiveAlignment(Technique, name="cal"):
    """CAL: words that the picture helps to predict count for more, see `mirlib.align.weighting.cal_weights`.

    Attributes:
        low, high: Smallest and largest weight.
        width: Words whose weights are averaged.
    """

    low: float = 1.0
    high: float = 5.0
    width: int = 3

    def caption_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy weighted by how much the picture helps; one more pass, with the picture hidden."""
        seen, labels = _rectangle(batch, logits)
        unseen = unseen_logits(training.model, batch)
        weights = weighting.cal_weights(seen, unseen, labels, low=self.low, high=self.high, width=self.width)
        return weighting.weighted_cross_entropy(seen, labels, weights)


@torch.no_grad()
def unseen_logits(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Logits (n, length - 1, vocabulary) of captions with the image tokens in place and hidden from attention."""
    joined = sequence.join(*train.caption_pieces(model, batch.ids, batch.features))
    hidden = sequence.read(model, joined, attended=~joined.vision)
    return model.lm_head(hidden[:, -batch.ids.shape[1] : -1]).float()


@dataclass(frozen=True)
class ImprobableWords(Technique, name="prior"):
    """PRIOR: words that a language model without picture finds improbable count for more.

    The reference is the run's own language model, trained first on the captions of the run without their pictures.

    Attributes:
        power: See `mirlib.align.weighting.prior_weights`.
        reference_rate: Highest learning rate of the reference.
        reference_batch: Captions a step; each is read once.
    """

    power: float = 1.0
    reference_rate: float = 3e-4
    reference_batch: int = 32

    def before_stage_one(self, training: Training) -> dict[str, Any]:
        """Train the reference; its first and last losses are means over eight steps, in nats a word."""
        reference = deepcopy(training.model)
        reference.requires_grad_(False)
        reference.model.language_model.requires_grad_(True)
        encode = language.segment_encoder(training.tokenizer)
        order = np.random.default_rng([training.seed, 61]).permutation(training.chosen)
        steps = len(order) // self.reference_batch

        def loss_of_step(step: int) -> torch.Tensor:
            numbers = order[step * self.reference_batch : (step + 1) * self.reference_batch]
            shown = [training.scenes[i] for i in numbers]
            ids = train.caption_rows(shown, encode, detail=training.recipe.detail)
            with precision.multiplying():
                logits = train.caption_logits(reference, ids, None)
            return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=language.PAD)

        schedule = recipes.Schedule(steps, self.reference_rate, weight_decay=0.0)
        with train.fast_attention(reference):
            history = train.fit(reference, loss_of_step, schedule, progress=training.progress, name="reference")
        training.memory["reference"] = reference.requires_grad_(False)
        reference.set_attn_implementation(miniature.ATTENTION)
        ends = {"first": history.losses[:8], "last": history.losses[-8:]}
        return {f"reference_{end}_loss": float(np.mean(losses)) for end, losses in ends.items()}

    def caption_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy weighted by how improbable the reference finds the words."""
        seen, labels = _rectangle(batch, logits)
        with torch.no_grad():
            blind = train.caption_logits(training.memory["reference"], batch.ids, None)
        return weighting.weighted_cross_entropy(seen, labels, weighting.prior_weights(blind, labels, power=self.power))


@dataclass(frozen=True)
class ForcedGap(Technique, name="gap"):
    """MIR itself, over some layers, added to the loss of stage 1: see `mirlib.align.gap_loss.GapLoss`.

    The text is that of the captions in the batch; what is measured afterwards is MIR against news.

    Attributes:
        weight: Of the loss; one unit of MIR is a factor of ten in the distances.
        layers: First, middle and last by default, counted in the language model of size ``base``.
        decay: See `mirlib.align.gap_loss.StreamedDistance`.
    """

    weight: float = 1.0
    layers: tuple[int, ...] = (1, 4, 8)
    decay: float = 0.9

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[torch.nn.Parameter]:
        """Hang the hooks on the model; nothing learns but what the recipe says."""
        setattr(model, _GAP, gap_loss.GapLoss(model, self.layers, decay=self.decay))
        return []

    def caption_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The plain loss and the weighted MIR of this and recent batches."""
        gap = getattr(training.model, _GAP)(text=batch.targets)
        training.memory["mir"] = gap.item()
        return super().caption_loss(training, batch, logits) + self.weight * gap.float()

    def after_stage_one(self, training: Training) -> dict[str, Any]:
        """Take the hooks off; ``mir_of_batches`` is the loss on the gap at the last step, before it was weighted."""
        getattr(training.model, _GAP).remove()
        delattr(training.model, _GAP)
        return {"mir_of_batches": training.memory["mir"]}


@dataclass(frozen=True)
class TokenDistance(Technique, name="regap"):
    """A ReGap-style regulariser: the distance of image tokens to the caption's tokens at the connector's output.

    Attributes:
        weight: Of the distance, which is in units of the mean text norm.
        kind: See `mirlib.align.gap_loss.token_distance`.
    """

    weight: float = 1.0
    kind: str = "mean"

    def caption_loss(self, training: Training, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The plain loss and the weighted distance."""
        image = training.model.model.multi_modal_projector(batch.features)
        words = training.model.get_input_embeddings()(batch.ids)
        apart = gap_loss.token_distance(image, words, batch.targets, kind=self.kind)
        return super().caption_loss(training, batch, logits) + self.weight * apart
