"""A small world of coloured shapes and digits: scenes, their pictures, captions, and questions with known answers.

A scene holds one to four things on a jittered 2 x 2 grid: drawn shapes, or digits that people wrote by hand
(scikit-learn's `load_digits`). Because the scene is known exactly, every caption is complete and every answer is
right by construction, which no web-scraped data set can promise.

All randomness comes from the `numpy.random.Generator` that you pass in; a `Scene` fixes its picture to the last bit.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["CAPTION_DETAILS", "CAPTION_SLOTS", "CELLS", "COLOURS", "DIGITS", "DIGIT_SHARE", "FORMS", "IMAGE_SIZE"]
__all__ += ["NUMBERS", "QUESTION_KINDS", "Question", "RELATIONS", "SHAPES", "SIZES", "Scene", "Thing", "WORDS", "ask"]
__all__ += ["caption", "edit_scene", "family_of", "parse_caption", "plural", "render", "render_batch"]
__all__ += ["sample_question", "sample_scene", "to_image"]

IMAGE_SIZE = 48
"""Side of a picture in pixels."""

COLOURS = {"red": (215, 40, 40), "green": (40, 165, 60), "blue": (50, 80, 215)}
COLOURS |= {"yellow": (240, 215, 40), "purple": (150, 50, 175), "white": (245, 245, 245)}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
DIGITS = tuple("0123456789")
FORMS = SHAPES + DIGITS
"""All that a thing can be. A scene holds either shapes or digits."""

DIGIT_SHARE = 0.25
"""Share of scenes whose things are handwritten digits."""

SIZES = {"small": 6, "large": 10}
"""Size words and their radii in pixels."""

CELLS = ("topleft", "topright", "bottomleft", "bottomright")
"""Position words in reading order; cell `i` sits in row `i // 2`, column `i % 2`."""

NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left", "right", "above", "below")
QUESTION_KINDS = ("exist", "count", "colour", "size", "where", "shape_at", "colour_at", "relation")
CAPTION_DETAILS = ("full", "mid", "brief")
CAPTION_SLOTS = {"position": CELLS, "shape": FORMS, "size": tuple(SIZES), "colour": tuple(COLOURS)}
"""The four words of a sentence of a full caption, in their order."""

_CELL_PIXELS = IMAGE_SIZE // 2
_NOISE = 10.0
_HELD_OUT_WRITINGS = 5  # every fifth handwriting of a digit is kept for evaluation


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape or digit."""

    shape: str  # one of FORMS
    colour: str
    size: str
    cell: str
    offset: tuple[int, int] = (0, 0)  # jitter of the centre from the middle of its cell, (right, down) in pixels
    writing: int = 0  # which handwriting of the digit, from 0; it means nothing for a shape

    @property
    def row(self) -> int:
        """0 at the top, 1 at the bottom."""
        return CELLS.index(self.cell) // 2

    @property
    def column(self) -> int:
        """0 on the left, 1 on the right."""
        return CELLS.index(self.cell) % 2

    @property
    def words(self) -> tuple[str, str, str, str]:
        """The thing in four words, in the order of `CAPTION_SLOTS`."""
        return self.cell, self.shape, self.size, self.colour

    @property
    def sentence(self) -> str:
        """The thing's sentence in a full caption, e.g. ``topleft circle small red .``."""
        return f"{' '.join(self.words)} ."


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, and all that its pixels depend on."""

    things: tuple[Thing, ...]  # one to four in reading order, at most one in a cell
    background: int = 110  # grey level, 0 to 255
    noise_seed: int = 0  # of the pixel noise


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, with its one-word answer."""

    kind: str  # one of QUESTION_KINDS
    text: str  # "what colour is the circle ?"
    short: str  # the same in telegram style, "colour circle"
    answer: str


# -------------------- Scenes
def _sample_offset(rng: np.random.Generator, size: str) -> tuple[int, int]:
    slack = _CELL_PIXELS // 2 - SIZES[size] - 1
    right, down = rng.integers(-slack, slack + 1, size=2)
    return int(right), int(down)


def _sample_thing(rng: np.random.Generator, cell: str, family: tuple[str, ...], held_out: bool) -> Thing:
    i, j, k = rng.integers(0, (len(family), len(COLOURS), len(SIZES)))
    form, colour, size = family[i], tuple(COLOURS)[j], tuple(SIZES)[k]
    return Thing(form, colour, size, cell, _sample_offset(rng, size), _sample_writing(rng, form, held_out))


def _sample_writing(rng: np.random.Generator, form: str, held_out: bool) -> int:
    if form not in DIGITS:
        return 0
    count = len(_handwriting(form))
    last = _HELD_OUT_WRITINGS - 1
    if held_out:
        return last + _HELD_OUT_WRITINGS * int(rng.integers(count // _HELD_OUT_WRITINGS))
    number = int(rng.integers(count // _HELD_OUT_WRITINGS * last))
    return number // last * _HELD_OUT_WRITINGS + number % last


def sample_scene(
    rng: np.random.Generator, *, count: int | None = None, digits: float = DIGIT_SHARE, held_out: bool = False
) -> Scene:
    """Draw a scene of `count` things, 1 to 4 (uniform if left out; others are refused).

    They are handwritten digits and not shapes with a probability of `digits`; if the scene is `held_out`, in the
    handwritings that no training sees.
    """
    if count is None:
        count = int(rng.integers(1, len(CELLS) + 1))
    elif not 1 <= count <= len(CELLS):
        raise ValueError(f"a scene holds 1 to {len(CELLS)} things, not {count}")
    family = DIGITS if rng.random() < digits else SHAPES
    cells = sorted(rng.permutation(len(CELLS))[:count])
    background, noise_seed = rng.integers(0, (80, 2**31))
    things = tuple(_sample_thing(rng, CELLS[cell], family, held_out) for cell in cells)
    return Scene(things, int(background) + 70, int(noise_seed))


def edit_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change one shape, colour, size or position: a hard negative of contrastive training.

    Background, noise and jitter are drawn anew.
    """
    things = list(scene.things)
    index = int(rng.integers(len(things)))
    thing = things[index]
    free = [cell for cell in CELLS if all(cell != other.cell for other in things)]
    attribute = int(rng.integers(4 if free else 3))
    if attribute == 0:
        form = _other(rng, family_of(scene), thing.shape)
        thing = replace(thing, shape=form, writing=_sample_writing(rng, form, False))
    elif attribute == 1:
        thing = replace(thing, colour=_other(rng, COLOURS, thing.colour))
    elif attribute == 2:
        thing = replace(thing, size=_other(rng, SIZES, thing.size))
    else:
        thing = replace(thing, cell=pick(rng, free))
    things[index] = thing
    things = [replace(t, offset=_sample_offset(rng, t.size)) for t in things]
    things.sort(key=lambda t: CELLS.index(t.cell))
    background, noise_seed = rng.integers(0, (80, 2**31))
    return Scene(tuple(things), int(background) + 70, int(noise_seed))


def family_of(scene: Scene) -> tuple[str, ...]:
    """What its things may be: `DIGITS` or `SHAPES`."""
    return DIGITS if scene.things[0].shape in DIGITS else SHAPES


def _other(rng: np.random.Generator, values: Iterable[str], current: str) -> str:
    return pick(rng, [value for value in values if value != current])


def pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    """One of the values, all with the same probability."""
    return values[int(rng.integers(len(values)))]


def pick_by_share(rng: np.random.Generator, shares: dict[str, float]) -> str:
    """One of the keys, drawn with the probabilities that are the values; these need not add up to 1."""
    values = np.array(list(shares.values()))
    number = np.searchsorted((values / values.sum()).cumsum(), rng.random(), side="right")
    return list(shares)[min(int(number), len(shares) - 1)]


# -------------------- Pictures
@cache
def _handwriting(digit: str) -> np.ndarray:
    """All handwritings of a digit as uint8 (n, 8, 8), 255 where the ink is thickest."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    return np.clip(scans[labels == int(digit)].reshape(-1, 8, 8) * (255 / 16), 0, 255).astype(np.uint8)


def handwritten(digit: str, size: str, writing: int) -> np.ndarray:
    """A handwriting of a digit in one of the world's sizes: uint8 (2r + 1, 2r + 1), 255 where the ink is thickest."""
    side = 2 * SIZES[size] + 1
    scan = Image.fromarray(_handwriting(digit)[writing])
    return np.asarray(scan.resize((side, side), Image.Resampling.BICUBIC))


@cache
def _sprite(shape: str, size: str, writing: int = 0) -> np.ndarray:
    """Coverage of each pixel by a form, (2r + 1, 2r + 1, 1), in [0, 1]; 4 x 4 samples a pixel give soft edges."""
    radius, samples = SIZES[size], 4
    if shape in DIGITS:
        scan = handwritten(shape, size, writing)
        return np.minimum(scan.astype(np.float32) / 200, 1)[:, :, None]  # thin strokes keep their colour
    side = 2 * radius + 1
    axis = (np.arange(side * samples) + 0.5) / samples - side / 2
    x, y = axis[None, :] / radius, axis[:, None] / radius  # units of the radius, y points down
    distance, shorter, longer = np.hypot(x, y), np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    inside = {
        "circle": distance <= 1,
        "ring": (distance <= 1) & (distance >= 0.55),
        "square": longer <= 0.87,
        "triangle": (y <= 0.87) & (abs(x) <= (y + 1) * 0.55),
        "cross": (shorter <= 0.3) & (longer <= 1),
    }[shape]
    return inside.reshape(side, samples, side, samples).mean(axis=(1, 3)).astype(np.float32)[:, :, None]


def render(scene: Scene) -> np.ndarray:
    """Paint a scene: uint8 array (48, 48, 3)."""
    noise = np.random.default_rng(scene.noise_seed).standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
    canvas = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), scene.background, dtype=np.float32)
    for thing in scene.things:
        sprite = _sprite(thing.shape, thing.size, thing.writing)
        left = thing.column * _CELL_PIXELS + _CELL_PIXELS // 2 + thing.offset[0] - SIZES[thing.size]
        top = thing.row * _CELL_PIXELS + _CELL_PIXELS // 2 + thing.offset[1] - SIZES[thing.size]
        window = canvas[top : top + len(sprite), left : left + len(sprite)]
        window += sprite * (np.asarray(COLOURS[thing.colour], np.float32) - window)
    return np.clip(canvas + _NOISE * noise, 0, 255).astype(np.uint8)


def render_batch(scenes: Iterable[Scene]) -> np.ndarray:
    """Paint scenes: uint8 array (n, 48, 48, 3)."""
    return np.stack([render(scene) for scene in scenes])


def to_image(scene: Scene) -> Image.Image:
    """The picture of a scene as a PIL image."""
    return Image.fromarray(render(scene))


# -------------------- Captions
def caption(scene: Scene, detail: str = "full") -> str:
    """Describe a scene in a detail of `CAPTION_DETAILS`; others are refused.

    ``full`` is ``topleft circle small red . bottomright square large blue .``, ``mid`` is
    ``a red circle and a blue square .``, ``brief`` is ``we see two objects .``
    """
    if detail == "full":
        return " ".join(t.sentence for t in scene.things)
    if detail == "mid":
        names = [f"a {t.colour} {t.shape}" for t in scene.things]
        return " and ".join(filter(None, [" , ".join(names[:-1]), names[-1]])) + " ."
    if detail == "brief":
        return f"we see {NUMBERS[len(scene.things)]} {'object' if len(scene.things) == 1 else 'objects'} ."
    raise ValueError(f"detail must be one of {', '.join(CAPTION_DETAILS)}, not {detail!r}")


def parse_caption(text: str) -> list[tuple[str, str, str, str]]:
    """Read a full caption back: (position, shape, size, colour) of each thing that is named in good form."""
    sentences = (tuple(sentence.split()) for sentence in text.split(" ."))
    return [w for w in sentences if len(w) == 4 and all(map(operator.contains, CAPTION_SLOTS.values(), w))]


# -------------------- Questions
def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """Ask a question of one kind about a scene; None where the scene allows none. An unknown kind is refused.

    "The circle" is asked about only if there is exactly one. Yes and no are equally likely, and most of the nos of
    `exist` name a colour and a shape that are both there, on different things.
    """
    if kind not in QUESTION_KINDS:
        raise ValueError(f"kind must be one of {', '.join(QUESTION_KINDS)}, not {kind!r}")
    return _ASK[kind](scene, rng)


def sample_question(scene: Scene, rng: np.random.Generator, weights: dict[str, float] | None = None) -> Question:
    """Ask a question whose kind is drawn from `weights` (uniform if left out) among those the scene allows."""
    shares = {kind: 1.0 if weights is None else weights.get(kind, 0.0) for kind in QUESTION_KINDS}
    while True:  # exist and count are always possible, so this ends
        if (question := ask(scene, pick_by_share(rng, shares), rng)) is not None:
            return question


def _unique(scene: Scene) -> list[Thing]:
    shapes = [t.shape for t in scene.things]
    return [t for t in scene.things if shapes.count(t.shape) == 1]


def _ask_exist(scene: Scene, rng: np.random.Generator) -> Question:
    among = present = [(t.colour, t.shape) for t in scene.things]
    if rng.random() >= 0.5:
        among = [(c, s) for c, _ in present for _, s in present if (c, s) not in present]
        if not among or rng.random() >= 0.7:
            among = [(c, s) for c in COLOURS for s in family_of(scene) if (c, s) not in present]
    colour, shape = pick(rng, among)
    answer = "yes" if (colour, shape) in present else "no"
    return Question("exist", f"is there a {colour} {shape} ?", f"{shape} {colour} ?", answer)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    what = ("objects", "shape", "shape", "colour", "colour")[int(rng.integers(5))]
    if what == "objects":
        return Question("count", "how many objects ?", "count objects", NUMBERS[len(scene.things)])
    held = [getattr(t, what) for t in scene.things]
    value = pick(rng, held if rng.random() < 0.75 else family_of(scene) if what == "shape" else tuple(COLOURS))
    name = plural(value) if what == "shape" else f"{value} objects"
    return Question("count", f"how many {name} ?", f"count {value}", NUMBERS[held.count(value)])


def plural(form: str) -> str:
    """``circles``, ``crosses``; a digit stays as it is."""
    return form if form in DIGITS else f"{form}es" if form == "cross" else f"{form}s"


def _ask_attribute(kind: str, attribute: str, phrase: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """An attribute of a thing that its shape names."""
    if not (things := _unique(scene)):
        return None
    thing = pick(rng, things)
    return Question(kind, f"{phrase} is the {thing.shape} ?", f"{kind} {thing.shape}", getattr(thing, attribute))


def _ask_at(attribute: str, scene: Scene, rng: np.random.Generator) -> Question:
    """An attribute of the thing in a cell."""
    thing = pick(rng, scene.things)
    text, short = f"what {attribute} is {thing.cell} ?", f"{attribute} {thing.cell}"
    return Question(f"{attribute}_at", text, short, getattr(thing, attribute))


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    things = _unique(scene)
    pairs = [(a, b) for a in things for b in things]
    across = [(a, b, "left" if a.column < b.column else "right") for a, b in pairs if a.column != b.column]
    along = [(a, b, "above" if a.row < b.row else "below") for a, b in pairs if a.row != b.row]
    if not across and not along:
        return None
    first, second, truth = pick(rng, across + along)
    sideways = truth in RELATIONS[:2]
    relation = pick(rng, RELATIONS[:2] if sideways else RELATIONS[2:])
    text = f"is the {first.shape} {relation}{' of' if sideways else ''} the {second.shape} ?"
    short = f"{first.shape} {relation} {second.shape} ?"
    return Question("relation", text, short, "yes" if relation == truth else "no")


_ASK = {
    "exist": _ask_exist,
    "count": _ask_count,
    "colour": partial(_ask_attribute, "colour", "colour", "what colour"),
    "size": partial(_ask_attribute, "size", "size", "what size"),
    "where": partial(_ask_attribute, "where", "cell", "where"),
    "shape_at": partial(_ask_at, "shape"),
    "colour_at": partial(_ask_at, "colour"),
    "relation": _ask_relation,
}

_LITTLE_WORDS = "yes no object objects colour shape size count many what how where is there a the of and we see".split()
_NAMES = (*FORMS, *map(plural, SHAPES), *COLOURS, *SIZES, *CELLS, *NUMBERS, *RELATIONS)
WORDS: tuple[str, ...] = tuple(dict.fromkeys([*_NAMES, *_LITTLE_WORDS]))
"""Every word of the world's language; the tokenizer keeps each one whole."""
