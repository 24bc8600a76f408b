"""A world of real pixels: photographs cut out with alpha, one to three of them on a varied background.

A picture holds one group of things, or two groups side by side, all things of a group having one word. So every label
is exact: what is there, how many, which is left of which, and what is not there. Captions are plain English; questions
are the beginnings of such captions, with the words among which the next one is chosen by its likelihood. Photographs
are held out, never only scenes. Composed from real photographs: the light, the sizes and the company are made up.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from mirlib.errors import MirlibError

SIDE = 224
"""Pixels along the side of a picture."""

NUMBERS = ("one", "two", "three")
KINDS = ("what", "count", "exist", "side")
"""Kinds of question, which of all words; how many; which of two words, of which one is there; left or right of."""

_ARRANGEMENTS = ((1,), (2,), (3,), (1, 1), (1, 2), (2, 1))

Photographs = Mapping[str, Sequence[Path]]
"""Photographs by their word."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two groups from left to right, of three photographs at most in all."""

    groups: tuple[tuple[str, tuple[Path, ...]], ...]  # a word and its photographs
    look: int  # seed of sizes, places and background


@dataclass(frozen=True)
class Question:
    """The beginning of a caption, and the words that may follow."""

    kind: str  # one of KINDS
    prompt: str
    answers: tuple[str, ...]  # in a fixed order
    answer: str  # the right one


# -------------------- Photographs
def read(folder: str | Path) -> dict[str, list[Path]]:
    """The photographs of a folder with one folder for each word (``FOLDER/bird/owl.png``); refused below two words."""
    homes = sorted(Path(folder).glob("*/"))
    photographs = {home.name: paths for home in homes if (paths := sorted(home.glob("*.png")))}
    if len(photographs) < 2:
        raise MirlibError(f"{folder}: no folders of cut-out photographs there, one for each word: mir lab parts real")
    return photographs


def split(photographs: Photographs) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Photographs to train on, and those that are held out, at most a quarter of each word; refused where none can be.

    What may show nearly the same stays together: photographs of one word whose names share a part, as
    ``apple_red`` and ``apple_green`` do, ``lion`` and ``lion-2``, or ``pepper`` and ``yellowpepper``.
    """
    kept: dict[str, list[Path]] = {}
    held_out: dict[str, list[Path]] = {}
    for word, paths in photographs.items():
        most, chosen = ceil(len(paths) / 4), []
        groups = related(paths)
        for i in np.random.default_rng([len(paths), 71]).permutation(len(groups)):
            if len(chosen) + len(groups[i]) <= most:
                chosen += groups[i]
        if not chosen or len(chosen) == len(paths):
            raise MirlibError(f"the photographs of {word!r} look too much alike by their names to hold some out")
        kept[word], held_out[word] = [path for path in paths if path not in chosen], sorted(chosen)
    return kept, held_out


def related(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of photographs whose names share a part of three letters or more, directly or through others."""

    def alike(one: str, other: str) -> bool:
        short, long = sorted((one, other), key=len)
        return one == other or len(short) > 3 and short in long

    groups: list[tuple[set[str], list[Path]]] = []
    for path in paths:
        parts = {part for part in re.split(r"[^a-z]+", path.stem.lower()) if len(part) > 2} or {path.stem}
        near = [group for group in groups if any(alike(a, b) for a in parts for b in group[0])]
        groups = [group for group in groups if group not in near]
        groups.append((parts.union(*(names for names, _ in near)), [*(p for _, old in near for p in old), path]))
    return [sorted(members) for _, members in groups]


def fingerprint(photographs: Photographs) -> str:
    """Of all pixels and words, 16 hexadecimal digits; the same however the files are compressed."""
    digest = hashlib.sha256()
    for word, paths in sorted(photographs.items()):
        for path in paths:
            digest.update(f"{word}/{path.name}".encode() + np.asarray(_cut_out(path)).tobytes())
    return digest.hexdigest()[:16]


# -------------------- Pictures
def sample_scene(photographs: Photographs, rng: np.random.Generator) -> Scene:
    """A scene: the arrangement, the words, then different photographs of each word, all with equal chances."""
    arrangement = _ARRANGEMENTS[rng.integers(len(_ARRANGEMENTS))]
    words = [sorted(photographs)[i] for i in rng.choice(len(photographs), len(arrangement), replace=False)]
    groups = []
    for word, number in zip(words, arrangement, strict=True):
        there = photographs[word]
        groups.append((word, tuple(there[i] for i in rng.choice(len(there), number, replace=len(there) < number))))
    return Scene(tuple(groups), int(rng.integers(2**31)))


def sample_scenes(photographs: Photographs, count: int, *, seed: int = 0) -> list[Scene]:
    """Scenes of a seed; the first n of a larger number are the smaller number."""
    return [sample_scene(photographs, np.random.default_rng([seed, 72, i])) for i in range(count)]


def render(scene: Scene) -> Image.Image:
    """The picture, RGB, 224 x 224: each thing in a column of its own, from left to right."""
    rng = np.random.default_rng(scene.look)
    canvas = _background(rng)
    paths = [path for _, group in scene.groups for path in group]
    column = SIDE / len(paths)
    for place, path in enumerate(paths):
        cut = _cut_out(path)
        room = rng.uniform(0.7, 1) * min(column, 0.75 * SIDE), rng.uniform(0.7, 1) * 0.75 * SIDE
        scale = min(room[0] / cut.width, room[1] / cut.height)
        cut = cut.resize((max(1, int(scale * cut.width)), max(1, int(scale * cut.height))))
        x, y = place * column + rng.uniform(0, column - cut.width), rng.uniform(0, SIDE - cut.height)
        canvas.paste(cut, (int(x), int(y)), cut)
    return canvas


@lru_cache(maxsize=1024)
def _cut_out(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGBA")


def _background(rng: np.random.Generator) -> Image.Image:
    """One colour, or colours that run into each other, with some noise."""
    cells, contrast, noise = rng.integers(1, 6), rng.uniform(0, 80), rng.uniform(0, 12)
    colours = rng.uniform(40, 255, 3) + rng.uniform(-contrast, contrast, (cells, cells, 3))
    smooth = Image.fromarray(colours.clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, noise, (SIDE, SIDE, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


# -------------------- Words
def plural(word: str) -> str:
    """More than one of it.

    >>> [plural(word) for word in ("bird", "fish", "berry", "bus", "toy")]
    ['birds', 'fish', 'berries', 'buses', 'toys']
    """
    if word == "fish":
        return word
    ending = "es" if re.search(r"(s|x|z|ch|sh)$", word) else "s"
    return re.sub(r"(?<![aeiou])y$", "ie", word) + ending


def counted(word: str, number: int) -> str:
    """``one bird``, ``two birds``."""
    return f"{NUMBERS[number - 1]} {word if number == 1 else plural(word)}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the true captions of a scene."""
    named = [counted(word, len(group)) for word, group in scene.groups]
    forms = [f"The picture shows {named[0]}.", f"Here you see {named[0]}."]
    if len(named) > 1:
        left, right = named
        forms = [
            f"The picture shows {left} to the left of {right}.",
            f"The picture shows {right} to the right of {left}.",
            f"Here you see {left} on the left and {right} on the right.",
            f"Here you see {right} on the right and {left} on the left.",
        ]
    return forms[rng.integers(len(forms))]


def ask(scene: Scene, kind: str, words: Sequence[str], rng: np.random.Generator) -> Question | None:
    """A question of a kind (others are refused) about a scene, with all words of the world; None if it allows none."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if len(scene.groups) != (1 if kind in ("what", "count") else 2):
        return None
    place = int(rng.integers(len(scene.groups)))
    word, group = scene.groups[place]
    start, number = "The picture shows", len(group)
    if kind == "count":
        return Question(kind, start, NUMBERS, NUMBERS[number - 1])
    if kind == "side":
        return Question(kind, f"{start} {counted(word, number)} to the", ("left", "right"), ("left", "right")[place])
    if kind == "exist":
        absent = [other for other in words if other not in dict(scene.groups)]
        words = sorted([word, absent[rng.integers(len(absent))]])
    form = str if number == 1 else plural
    return Question(kind, f"{start} {NUMBERS[number - 1]}", tuple(map(form, words)), form(word))


def questions(
    scenes: Sequence[Scene], kind: str, words: Sequence[str], count: int, *, seed: int = 0
) -> list[tuple[int, Question]]:
    """The first questions of a kind, ``count`` at most, each with the number of its scene."""
    rng = np.random.default_rng([seed, 73, KINDS.index(kind)])
    asked = ((i, ask(scene, kind, words, rng)) for i, scene in enumerate(scenes))
    return [(i, question) for i, question in asked if question is not None][:count]


def majority(known: Sequence[Question], asked: Sequence[Question]) -> float:
    """Share of right answers by whoever gives, of the words allowed, the one that was right most often before."""
    often = Counter(question.answer for question in known)
    return float(np.mean([max(q.answers, key=lambda word: often[word]) == q.answer for q in asked]))
