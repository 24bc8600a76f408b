"""Stage 1 of the real parts on composed photographs, and what is measured after it.

The encoder is frozen, so every picture is read once; the projector learns captions in the form of the chat template.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration as Llava
from transformers import LlavaProcessor

from mirlab import measuring
from mirlab.experiments.real import PAIRS, RealRun
from mirlab.model import connectors, miniature, parts, precision, real, real_parts, sequence, train
from mirlab.world import cutouts
from mirlib import data, prompts, rows
from mirlib.errors import MirlibError

HELD_OUT = 1_000_000
"""Seed of the held-out scenes, which is no run's, since scenes of one seed share backgrounds and places."""

TEXT_TOKENS = 48
"""Texts that MIR is measured on are cut after so many tokens; they give as many rows as is needed (d = 576)."""

_BATCH = 25


@dataclass(frozen=True)
class World:
    """What the runs of a process have in common."""

    model: Llava  # before stage 1; it is trained in place, a fresh projector a run
    processor: LlavaProcessor
    words: tuple[str, ...]
    photographs: cutouts.Photographs  # to train on
    held_out: list[cutouts.Scene]  # scenes of photographs that are held out
    held_out_features: Tensor  # what the projector reads of them, float16 (n, tokens, d)
    fingerprint: str  # of encoder, language model and photographs
    folder: Path  # where features are kept
    most: int = max(PAIRS)  # pairs of a seed whose features are kept


@lru_cache(maxsize=1)
def world(folder: Path, *, most: int = max(PAIRS), held_out: int = 600) -> World:
    """Model, photographs, scenes to measure on and their features, from the folder of `real_parts.fetch`."""
    model, processor = real.load(folder / "model")
    photographs = cutouts.read(folder / "cutouts")
    known, unseen = cutouts.split(photographs)
    others = cutouts.sample_scenes(unseen, held_out, seed=HELD_OUT)
    seen = kept_features(model, processor, others, folder)
    fingerprint = f"{miniature.fingerprint(model, without='multi_modal_projector')}-{cutouts.fingerprint(photographs)}"
    return World(model, processor, tuple(photographs), known, others, seen, fingerprint, folder, most)


def pairs(at: World, run: RealRun) -> tuple[list[cutouts.Scene], Tensor]:
    """Scenes of its seed that a run reads, in their order, and their features, which are kept."""
    scenes = cutouts.sample_scenes(at.photographs, at.most, seed=run.seed)
    kept = kept_features(at.model, at.processor, scenes, at.folder)
    return scenes[: run.stage_one.pairs], kept[: run.stage_one.pairs]


def kept_features(model: Llava, processor: LlavaProcessor, scenes: Sequence[cutouts.Scene], folder: Path) -> Tensor:
    """`features` of scenes out of a file, which is written where it is missing."""
    digest = hashlib.sha256(b"".join(cutouts.render(scene).tobytes() for scene in scenes[:8]))  # the world as it is now
    digest.update(f"{miniature.fingerprint(model.model.vision_tower)} {len(scenes)}".encode())
    path = folder / "features" / f"{digest.hexdigest()[:16]}.npy"
    with parts.only_process(path.parent):
        if not path.exists():
            parts.save_array(features(model, processor, scenes, progress=True).numpy(), path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@torch.no_grad()
def features(
    model: Llava, processor: LlavaProcessor, scenes: Sequence[cutouts.Scene], *, progress: bool = False
) -> Tensor:
    """What the projector reads of each scene, kept small: float16 (n, tokens, d)."""
    found = []
    for start in tqdm(range(0, len(scenes), 16), desc="vision features", disable=not progress):
        pictures = [cutouts.render(scene) for scene in scenes[start : start + 16]]
        pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values
        found.append(model.model.vision_tower(pixels).last_hidden_state.half())
    return torch.cat(found)


# -------------------- What the language model reads
class Reader:
    """Hands a model pictures, as features, and the beginnings or wholes of captions, in the chat template's form."""

    def __init__(self, model: Llava, processor: LlavaProcessor) -> None:
        self.model, self.tokenizer = model, processor.tokenizer
        before, _, behind = prompts.build_prompt(processor, "\0").partition(real.IMAGE)
        self.before, self.between, end = map(self._ids, (before, *behind.split("\0")))
        self.end = end[:1]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def ids(self, texts: Sequence[str], *, whole: bool = True) -> tuple[Tensor, Tensor]:
        """What stands behind the picture (n, length), padded, and which of it are tokens of the text and its end."""
        written = [self.between + self._ids(text) + self.end * whole for text in texts]
        ids = train.padded(written, fill=self.tokenizer.pad_token_id)
        places, ends = torch.arange(ids.shape[1]), torch.tensor([len(tokens) for tokens in written])
        return ids, (places >= len(self.between)) & (places < ends[:, None])

    def hidden(self, features: Tensor, ids: Tensor) -> Tensor:
        """Last hidden states (n, length, d): entry i is what is known before token i of ``ids``."""
        embed = self.model.get_input_embeddings()
        image = sequence.image(self.model.model.multi_modal_projector(features.float()))
        pieces = sequence.words(embed(torch.tensor(self.before))), image, sequence.words(embed(ids))
        return sequence.read(self.model, *pieces, answers_from=len(self.between))[:, -ids.shape[1] - 1 :]

    def loss(self, features: Tensor, captions: Sequence[str]) -> Tensor:
        """Mean loss of a caption's token, in nats."""
        ids, targets = self.ids(captions)
        hidden = self.hidden(features, ids)[:, :-1][targets]
        return F.cross_entropy(self.model.lm_head(hidden).float(), ids[targets])

    @torch.no_grad()
    def answers(self, features: Tensor, questions: Sequence[cutouts.Question]) -> list[str]:
        """Of the words that each question allows, the likeliest next one; refused where two begin with one token."""
        given = []
        for start in range(0, len(questions), _BATCH):
            asked = questions[start : start + _BATCH]
            ids, targets = self.ids([question.prompt for question in asked], whole=False)
            ends = len(self.between) + targets.sum(1)
            hidden = self.hidden(features[start : start + _BATCH], ids)[torch.arange(len(ids)), ends]
            for logits, question in zip(self.model.lm_head(hidden).float(), asked, strict=True):
                first = [self._ids(f" {word}")[0] for word in question.answers]
                if len(set(first)) < len(first):
                    raise MirlibError(f"two of these words begin with the same token: {', '.join(question.answers)}")
                given.append(question.answers[int(logits[first].argmax())])
        return given


def size_of(projector: nn.Module) -> float:
    """Root mean square of a projector's weights, without the biases."""
    weights = [p.detach().flatten() for p in projector.parameters() if p.ndim > 1]
    return torch.cat(weights).square().mean().sqrt().item()


def stage_one(at: World, run: RealRun, *, progress: bool = False) -> train.History:
    """Train a fresh projector on captions, in place."""
    recipe = run.stage_one
    at.model.requires_grad_(False)
    projector = connectors.replace(at.model, seed=run.seed)
    scenes, features = pairs(at, run)
    reader = Reader(at.model, at.processor)

    def loss_of_step(step: int) -> Tensor:
        batch = slice(step * recipe.batch, (step + 1) * recipe.batch)
        rng = np.random.default_rng([run.seed, 74, step])
        with precision.multiplying():
            return reader.loss(features[batch], [cutouts.caption(scene, rng) for scene in scenes[batch]])

    with train.fast_attention(at.model):
        return train.fit(at.model, loss_of_step, recipe.schedule(size_of(projector)), progress=progress, name="stage 1")


# -------------------- Measuring
def execute(run: RealRun, cache: Path) -> dict[str, Any]:
    """Do a run on one thread, with the parts in the laboratory's cache, and measure it: what its row is made of."""
    at = world(real_parts.home(cache))
    started = time.monotonic()
    history = stage_one(at, run)
    trained = time.monotonic()
    metrics = {"stage_one": train.state_of(history), **measure(at, run)}
    seconds = {"stage_one": round(trained - started, 1), "all": round(time.monotonic() - started, 1)}
    return {"metrics": metrics, "seconds": seconds, "parts": at.fingerprint}


def measure(at: World, run: RealRun) -> dict[str, Any]:
    """MIR with its parts and baselines, loss on held-out captions, and accuracy by kind of question with baselines.

    Loss and accuracy are those with the scene's own picture and with another (``another``, ``blind``); by kind there
    are also ``majority`` (no picture), ``probe`` (`Probe`, of the same pairs) and ``count``.
    """
    reader = Reader(at.model, at.processor)
    pictures, texts = list(map(cutouts.render, at.held_out[: run.samples])), data.sample_texts(run.samples, seed=0)
    options = {"batch_size": _BATCH, "max_text_tokens": TEXT_TOKENS, "progress": False}
    collected = rows.collect_rows(at.model, at.processor, pictures, texts, **options)
    rng = np.random.default_rng(75)
    captions = [cutouts.caption(scene, rng) for scene in at.held_out[: _BATCH * 4]]
    known, features = pairs(at, run)
    probe = Probe(features, known, at.words)
    found: dict[str, dict[str, float]] = {}
    for kind in cutouts.KINDS:
        asked = cutouts.questions(at.held_out, kind, at.words, run.questions)
        questions = [question for _, question in asked]
        seen = at.held_out_features[[i for i, _ in asked]]
        before = [question for _, question in cutouts.questions(known, kind, at.words, len(known), seed=1)]
        found[kind] = {
            "accuracy": _share(reader.answers(seen, questions), questions),
            "blind": _share(reader.answers(seen.roll(1, dims=0), questions), questions),
            "majority": cutouts.majority(before, questions),
            "probe": _share(probe.answers(seen, questions), questions),
            "count": len(questions),
        }
    with torch.no_grad():
        features = at.held_out_features[: len(captions)]
        batches = [slice(i, i + _BATCH) for i in range(0, len(captions), _BATCH)]
        loss = {
            name: float(np.mean([reader.loss(shown[batch], captions[batch]).item() for batch in batches]))
            for name, shown in (("own", features), ("another", features.roll(1, dims=0)))
        }
    by_kind = {f"{name}_by_kind": {k: v[name] for k, v in found.items()} for name in found["what"]}
    mean, blind = (float(np.mean([*by_kind[f"{name}_by_kind"].values()])) for name in ("accuracy", "blind"))
    metrics = {"mir": measuring.mir_of_rows(collected), "caption_loss": loss}
    return measuring.rounded({**metrics, "accuracy": {"mean": mean, "blind": blind}, **by_kind})


def _share(answers: Sequence[str], questions: Sequence[cutouts.Question]) -> float:
    return float(np.mean([given == question.answer for given, question in zip(answers, questions, strict=True)]))


class Probe:
    """Ridge regression from the encoder's features (n, tokens, d) to what is there, how often, and on which side.

    Tokens are averaged over the rows of their square.
    """

    def __init__(self, features: Tensor, scenes: Sequence[cutouts.Scene], words: Sequence[str]) -> None:
        self.words = list(words)
        x, y = self._columns(features), torch.zeros(len(scenes), 2, len(words))
        for row, scene in zip(y, scenes, strict=True):
            for place, (word, group) in enumerate(scene.groups):
                row[:, self.words.index(word)] = torch.tensor([len(group), (2 * place - 1) * (len(scene.groups) - 1)])
        y = y.flatten(1)
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        x = x - self.mean_x
        gram = x @ x.T
        gram += 0.1 * gram.diagonal().mean() * torch.eye(len(x))
        self.weight = x.T @ torch.linalg.solve(gram, y - self.mean_y)

    @staticmethod
    def _columns(features: Tensor) -> Tensor:
        side = round(features.shape[1] ** 0.5)
        return features.float().unflatten(1, (side, side)).mean(1).flatten(1)  # (n, columns x d)

    def answers(self, features: Tensor, questions: Sequence[cutouts.Question]) -> list[str]:
        """What the probe takes to be right, of the words that each question allows."""
        found = (self._columns(features) - self.mean_x) @ self.weight + self.mean_y
        forms = {form: i for i, word in enumerate(self.words) for form in (word, cutouts.plural(word))}
        given = []
        for (number, side), question in zip(found.unflatten(1, (2, len(self.words))), questions, strict=True):
            if question.kind == "count":
                given.append(question.answers[int(number.sum().round().clamp(1, 3)) - 1])
            elif question.kind == "side":
                asked = forms[question.prompt.split()[4]]
                other = side[number.index_fill(0, torch.tensor([asked]), -torch.inf).argmax()]
                given.append(question.answers[int(side[asked] > other)])
            else:
                given.append(max(question.answers, key=lambda word: number[forms[word]].item()))
        return given
