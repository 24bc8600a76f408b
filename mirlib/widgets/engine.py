"""The miniature for a page: its weights and its tokenizer in one packet, and the scripts that carry it there.

The packet keeps each bit of the file's float16 weights, with which `engine.js` computes. A page that was opened from
disk may load scripts and nothing else: the packet travels as text, in scripts of half a megabyte, which a page counts.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

MINIATURE = Path(__file__).resolve().parents[1] / "miniature"

FOLDER = "miniature"
"""In a book's folder of static files."""

ALPHABET = "".join(chr(code) for code in range(33, 127) if chr(code) not in "\"'\\")
"""91 characters that a string in a script may hold as they are."""

_PIECE = 400_000  # bytes
_UNUSED = ("vision_tower.encoder.layers.3.", "vision_tower.post_layernorm.")  # LLaVA reads the layer before


@cache
def packet() -> bytes:
    """The packet, compressed: a line of JSON, then the high bytes of all weights, then their low bytes.

    The line holds ``weights``, a list of names and numbers of values, ``words``, the tokens by id, and ``merges``,
    those of the byte-pair encoding, best first. High bytes are much alike and compress; low ones do not.
    """
    stored = load_file(MINIATURE / "model.safetensors")
    weights = {name: values for name, values in stored.items() if not name.startswith(_UNUSED)}
    tokenizer = json.loads((MINIATURE / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
    head = {
        "weights": [[name, values.size] for name, values in weights.items()],
        "words": sorted(ids, key=ids.__getitem__),
        "merges": merges,
    }
    line = json.dumps(head, separators=(",", ":")).encode() + b"\n"
    halves = np.concatenate([values.ravel() for values in weights.values()]).astype("<f2").view(np.uint8).reshape(-1, 2)
    return gzip.compress(line + halves[:, 1].tobytes() + halves[:, 0].tobytes(), 9, mtime=0)


def as_text(data: bytes) -> str:
    """Bytes in `ALPHABET`, 13 bits in two characters; the last bits are filled up with zeros."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    bits = np.pad(bits, (0, -len(bits) % 13)).reshape(-1, 13)
    numbers = bits @ (1 << np.arange(12, -1, -1))
    letters = np.frombuffer(ALPHABET.encode(), np.uint8)
    return np.stack([letters[numbers // 91], letters[numbers % 91]], axis=1).tobytes().decode()


def count_scripts() -> int:
    """How many scripts carry the packet."""
    return -(-len(packet()) // _PIECE)


def scripts() -> list[str]:
    """The packet as scripts; each puts its text in its place of the list ``mirlibMiniature``."""
    data = packet()
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    return [f'(self.mirlibMiniature??=[])[{i}]=[{len(piece)},"{as_text(piece)}"];\n' for i, piece in enumerate(pieces)]


def write_scripts(static: Path) -> list[Path]:
    """Write them into a book's folder of static files, as ``miniature/0.js`` and so on."""
    folder = static / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, script in enumerate(scripts()):
        paths.append(folder / f"{i}.js")
        paths[-1].write_text(script, encoding="ascii")
    return paths
