"""Drive the command on a checkpoint of a family with its real processor, and compute the same without mirlib."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from real_processors import KITS, Kit, save
from tiny_families import FAMILIES, Family, PlaceholderMasks
from transformers import AutoModelForImageTextToText, AutoProcessor

from mirlib.cli import main
from mirlib.data import sample_texts

SIZES = ((40, 24), (24, 40), (16, 16), (50, 34))


# The row of a layer that keeps several streams of it: as the model's own head reads it.
STREAMS = {
    "gemma3n": lambda state: state[0, 0] if state.ndim == 4 else state[0],
    "glm5_next": lambda state: state[0].mean(dim=1) if state.ndim == 4 else state[0],
    "hy_v4_vl": lambda state: state[0].mean(dim=1) if state.ndim == 4 else state[0],
}


class RefusedError(Exception):
    """The command refused the checkpoint in a sentence."""


def write_pairs(folder: Path) -> Path:
    """Four pictures of different sizes and texts of different lengths, and the file that pairs them."""
    texts = sample_texts(4)
    texts = [" ".join(text.split()[: 6 + 5 * number]) for number, text in enumerate(texts)]
    lines = []
    for number, (size, text) in enumerate(zip(SIZES, texts, strict=True)):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 2, size[0] // 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}) + "\n")
    path = folder / "pairs.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def command(folder: Path, pairs: Path, batch_size: int, last: str = "normed") -> dict[str, Any]:
    """The JSON of ``mir score``.

    Raises:
        RefusedError: If the command says a sentence and exits with 2.
    """
    said, printed = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(printed):
        code = main(
            ["score", str(folder), "--pairs", str(pairs), "-n", str(len(SIZES)), "--batch-size", str(batch_size),
             "--last", last, "--no-interval", "--device", "cpu", "--no-progress", "--json", "-"]
        )  # fmt: skip
    if code:
        sentences = [line for line in said.getvalue().splitlines() if line.startswith("mir: ")]
        raise RefusedError(sentences[-1].removeprefix("mir: ").replace(str(folder), folder.name))
    return json.loads(printed.getvalue())


def text_window(decode: Any, ids: Sequence[int], text: str) -> slice:
    """The shortest run of tokens whose decoding holds the text."""
    start = max(first for first in range(len(ids)) if text in decode(ids[first:]))
    end = min(last for last in range(start + 1, len(ids) + 1) if text in decode(ids[start:last]))
    return slice(start, end)


def by_hand(folder: Path, pairs: Path, kit: Kit) -> float:
    """MIR of the pairs, one at a time, by the hidden states that the model returns and NumPy; nothing of mirlib."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    decode = lambda ids: processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # noqa: E731
    # DiffusionGemma reads image and text with an encoder, whose hidden states the whole model does not return.
    reader = model.model.encoder if model.config.model_type == "diffusion_gemma" else model
    layers: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for line in pairs.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        image, text = Image.open(pairs.parent / pair["image"]).convert("RGB"), pair["text"]
        if kit.plain is None:
            messages = [("user", {"type": "image"}), ("assistant", {"type": "text", "text": text})]
            prompt = processor.apply_chat_template(
                [{"role": role, "content": [content]} for role, content in messages], tokenize=False
            )
        else:
            prompt = kit.plain.format(text=text)
        asked = {"return_mm_token_type_ids": True} if model.config.model_type == "cosmos3_edge" else {}
        batch = dict(processor(images=[image], text=[prompt], return_tensors="pt", **asked))
        batch.pop("labels", None)
        ids = batch["input_ids"][0]
        with torch.no_grad(), PlaceholderMasks(model) as own:
            output = reader(**batch, output_hidden_states=True, use_cache=False)
        states = getattr(output, "hidden_states", None) or output.language_model_outputs.hidden_states
        stream = STREAMS.get(model.config.model_type, lambda state: state[0])
        states = [stream(state).float().numpy() for state in states[1:]]
        front = len(states[0]) - len(ids)  # rows before those of input_ids
        mask = own.masks[-1][0] if own.masks else vision_rows(model, batch, front)
        window = text_window(decode, ids.tolist(), text)
        layers = layers or [([], []) for _ in states]
        for (vision, words), rows in zip(layers, states, strict=True):
            vision.append(rows[mask.numpy()])
            words.append(rows[window.start + front : window.stop + front])
    return math.log10(sum(distance(np.concatenate(vision), np.concatenate(words)) for vision, words in layers))


def vision_rows(model: Any, batch: dict[str, Any], front: int) -> torch.Tensor:
    """Where the picture stands in the one sequence of a model that makes no mask of its own."""
    if "image_embeds_position_mask" in batch:
        return batch["image_embeds_position_mask"][0] == 1
    if front:
        return torch.arange(front + batch["input_ids"].shape[1]) < front
    return batch["input_ids"][0] == model.config.image_token_id


def distance(vision: np.ndarray, text: np.ndarray) -> float:
    """The squared Fréchet distance of a layer, scaled by the text's norms, without the rows of odd norms."""
    vision, text = vision.astype(np.float64), text.astype(np.float64)
    norms = [np.linalg.norm(rows, axis=1) for rows in (vision, text)]
    scale = 1 / norms[1].mean()
    kept = []
    for rows, norm in zip((vision, text), norms, strict=True):
        norm = norm.astype(np.float32).astype(np.float64)
        median = np.sort(norm)[(len(norm) - 1) // 2]
        kept.append(scale * rows[np.abs(norm - median) <= 3 * norm.std(ddof=1)])
    means = [rows.mean(axis=0) for rows in kept]
    centred = [(rows - mean) / math.sqrt(len(rows) - 1) for rows, mean in zip(kept, means, strict=True)]
    # The trace of the root of the product of two covariances is the sum of the singular values of this product.
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return ((means[0] - means[1]) ** 2).sum() + sum((rows**2).sum() for rows in centred) - 2 * shared


def drive(model_type: str, folder: Path) -> tuple[float, float | str, float]:
    """MIR by the command at batch size 1 and 4, and by hand; for 4 the sentence that the command says, if it refuses.

    Raises:
        RefusedError: If the command refuses at batch size 1, too.
    """
    folder.mkdir()
    save(model_type, folder)
    pairs = write_pairs(folder)
    last = FAMILIES.get(model_type, Family()).last
    alone = command(folder, pairs, 1, last)["mir"]
    try:
        together = command(folder, pairs, 4, last)["mir"]
    except RefusedError as error:
        together = str(error)
    return alone, together, by_hand(folder, pairs, KITS.get(model_type, Kit()))
