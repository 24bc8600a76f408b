"""What a reader does with her own hands: watch a training, draw a scene, ask the model about it.

`LiveCurve` draws a training while it runs. `ask_the_model` makes a widget: with a kernel it answers questions about
any scene that the reader sets with sliders; without one it holds the answers to a gallery of scenes, computed when the
page was built.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mirlab import world
from mirlab.model import evaluation, precision, sequence, train
from mirlab.world import language
from mirlib.widgets.ask_the_model import AskTheModel

GALLERY_WRITING = 4
"""The handwriting of every digit that a reader draws: one that no training sees, see `world.sample_scene`."""

# ---------------------------------------------------------------------------------------------------------------------
# A training, while it runs


class LiveCurve:
    """The loss of a training, and MIR every few steps, drawn again and again while it runs.

    Hand it to a training as ``after_step`` inside a ``with`` block. In a notebook the figure grows in place, and one
    figure is left when the block ends; outside a notebook the numbers are collected and nothing is drawn.

    Args:
        measure: Measures the model as it is and returns a mapping with ``value`` (MIR) and, if it likes, ``null`` (the
            zeroed-rows baseline), such as `mirlab.measuring.mir_of`. Without it only the loss is shown.
        every: Steps from one measurement to the next; the first follows step 1.
        seconds: Least time from one drawing to the next; 0 draws every step. On a busy machine the pause grows, so that
            drawing takes no more than a tenth of the time.

    Attributes:
        losses: Loss of every step.
        measured: What `measure` returned, by step.

    Example:
        >>> with LiveCurve(lambda: {"value": 0.5}, every=2) as curve:
        ...     for step, loss in enumerate([3.0, 2.0, 1.0, 0.5], start=1):
        ...         curve(step, loss)
        >>> curve.losses, list(curve.measured)
        ([3.0, 2.0, 1.0, 0.5], [1, 2, 4])
    """

    def __init__(
        self, measure: Callable[[], Mapping[str, Any]] | None = None, *, every: int = 8, seconds: float = 0.5
    ) -> None:
        self.losses: list[float] = []
        self.measured: dict[int, Mapping[str, Any]] = {}
        self._measure = measure
        self._every = every
        self._seconds = seconds
        self._next_drawing = -np.inf
        self._handle: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def __call__(self, step: int, loss: float) -> None:
        """Take note of a step that has been done.

        Args:
            step: Number of steps done.
            loss: Loss of the last one.
        """
        self.losses.append(loss)
        if self._measure is not None and (step == 1 or step % self._every == 0):
            self.measured[step] = self._measure()
        if time.monotonic() >= self._next_drawing:
            self._draw()

    @property
    def data(self) -> dict[str, Any]:
        """What `mirlib.plots.figure_training` draws."""
        zeroed = next((found["null"] for found in self.measured.values() if "null" in found), None)
        return {
            "losses": list(self.losses),
            "mir": {step: found["value"] for step, found in self.measured.items()},
            "zeroed_rows": zeroed,
        }

    def _draw(self) -> None:
        from IPython.core.getipython import get_ipython

        if get_ipython() is None or not self.losses:
            return
        from IPython.display import Image, display

        began = time.monotonic()
        picture = Image(data=self._png(), format="png", alt="Loss and MIR by training step")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
        now = time.monotonic()
        self._next_drawing = now + (max(self._seconds, 9 * (now - began)) if self._seconds else 0)

    def _png(self) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from mirlib import plots

        # A figure that pyplot does not know: a notebook would show it a second time at the end of the cell.
        with plots.style():
            figure = Figure()
            plots.figure_training(self.data, figure.add_subplot())
            written = io.BytesIO()
            FigureCanvasAgg(figure).print_png(written)
        return written.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Questions and replies


@dataclass(frozen=True)
class Reply:
    """What a model replied to a question.

    Attributes:
        question: The question with its true answer.
        said: The word that the model finds likeliest among all of its vocabulary.
        words: The answers that the question allows.
        probabilities: Of each of these words, among all of the vocabulary; what is missing to 1 went elsewhere.
    """

    question: world.Question
    said: str
    words: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def is_right(self) -> bool:
        """Whether the likeliest word is the true answer."""
        return self.said == self.question.answer


def questions_of(scene: world.Scene, *, most: int = 4) -> list[world.Question]:
    """The questions that a scene allows, at most `most` of each kind, always the same for the same scene."""
    asked = []
    for number, kind in enumerate(world.QUESTION_KINDS):
        rng = np.random.default_rng([number, 94])
        drawn = (world.ask(scene, kind, rng) for _ in range(16))
        asked += list(dict.fromkeys(question for question in drawn if question is not None))[:most]
    return asked


@torch.no_grad()
def ask_pictures(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    scene: world.Scene,
    questions: Sequence[world.Question],
    *,
    picture_of: world.Scene | None = None,
) -> list[Reply]:
    """Ask questions about the picture of a scene, in the form of the chat template.

    Args:
        model: The whole model.
        tokenizer: Its tokenizer.
        scene: What the questions are about.
        questions: What to ask.
        picture_of: Show the picture of this scene instead: a blind baseline.
    """
    shown = scene if picture_of is None else picture_of
    image = model.model.multi_modal_projector(train.vision_features(model, [shown]).float())[0]  # (36, d)
    return _ask(partial(sequence.read, model), model, tokenizer, sequence.image(image), questions)


def _ask(
    read: Callable[..., torch.Tensor],
    model: LlavaForConditionalGeneration | LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    scene: sequence.Embedded,
    questions: Sequence[world.Question],
) -> list[Reply]:
    """Ask about what stands in the place of the scene: image tokens or embedded words."""
    if not questions:
        return []
    encode = language.segment_encoder(tokenizer)
    embed = model.get_input_embeddings()
    before = sequence.join(sequence.words(embed(torch.tensor([language.BOS, *encode("USER:")]))), scene)
    prompts = [[*encode("\n"), *encode(f" {q.text}"), *encode(" ASSISTANT:")] for q in questions]
    last = torch.tensor([len(before.vision) + len(prompt) - 1 for prompt in prompts])
    with precision.multiplying():
        hidden = read(before, sequence.words(embed(train.padded(prompts))))  # (n, length, d)
    rows = hidden[torch.arange(len(questions)), last].float()
    likelihoods = model.lm_head(rows).softmax(-1)  # (n, vocabulary)
    replies = []
    for question, likely in zip(questions, likelihoods, strict=True):
        said = tokenizer.decode(int(likely.argmax())).strip()
        if question.kind:
            words = evaluation.candidates(question)
            ids = [encode(f" {word}")[0] for word in words]
        else:  # a question of the reader's own: whatever the model finds likeliest
            ids = likely.topk(5).indices.tolist()
            words = tuple(tokenizer.decode(i).strip() for i in ids)
        replies.append(Reply(question, said, words, tuple(likely[ids].tolist())))
    return replies


# ---------------------------------------------------------------------------------------------------------------------
# The widget


def scene_of(things: Sequence[Mapping[str, Any]], *, background: int = 110) -> world.Scene:
    """The scene that the widget's controls say.

    Args:
        things: ``shape``, ``colour``, ``size``, ``cell``, ``right`` and ``down`` (pixels) of one to four things.
        background: Grey level, 0 to 255.

    Raises:
        ValueError: No things or too many, a word that the world does not know, two things in a cell, or a thing that
            would leave its cell.
    """
    if not 1 <= len(things) <= len(world.CELLS):
        raise ValueError(f"a scene holds 1 to {len(world.CELLS)} things, not {len(things)}")
    drawn = []
    for thing in things:
        for name, known in zip(("cell", "shape", "size", "colour"), world.CAPTION_SLOTS.values(), strict=True):
            if thing[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {thing[name]!r}")
        slack = slack_of(thing["size"])
        offset = (int(thing["right"]), int(thing["down"]))
        if max(map(abs, offset)) > slack:
            raise ValueError(f"a {thing['size']} thing moves by at most {slack} pixels, not {offset}")
        writing = GALLERY_WRITING if thing["shape"] in world.DIGITS else 0
        drawn.append(world.Thing(thing["shape"], thing["colour"], thing["size"], thing["cell"], offset, writing))
    if len({thing.cell for thing in drawn}) < len(drawn):
        raise ValueError("two things stand in one cell")
    return world.Scene(tuple(sorted(drawn, key=lambda t: world.CELLS.index(t.cell))), int(background))


def slack_of(size: str) -> int:
    """By how many pixels a thing may move from the middle of its cell without leaving it."""
    return world.IMAGE_SIZE // 4 - world.SIZES[size] - 1


def things_of(scene: world.Scene) -> list[dict[str, Any]]:
    """A scene's things as the widget's controls say them: the other way round from `scene_of`."""
    return [
        {
            "shape": t.shape,
            "colour": t.colour,
            "size": t.size,
            "cell": t.cell,
            "right": t.offset[0],
            "down": t.offset[1],
        }
        for t in scene.things
    ]


def gallery_scenes(*, each: int = 3, seed: int = 0) -> list[world.Scene]:
    """Held-out scenes for the widget: `each` of every number of things, of shapes and of digits."""
    rng = np.random.default_rng([seed, 93])
    counts = range(1, len(world.CELLS) + 1)
    drawn = [
        world.sample_scene(rng, count=count, digits=digits, held_out=True)
        for digits in (0.0, 1.0)
        for count in counts
        for _ in range(each)
    ]
    # Drawn again by the widget's own controls, so that a reader can go on from any of them.
    return [scene_of(things_of(scene), background=scene.background) for scene in drawn]


def answer_cards(
    models: Mapping[str, LlavaForConditionalGeneration],
    tokenizer: PreTrainedTokenizerFast,
    scenes: Sequence[world.Scene],
    *,
    typed: str = "",
) -> list[dict[str, Any]]:
    """All that the widget shows of each scene, as JSON: picture, questions, and what each model says.

    Args:
        models: Models by the names that the reader sees.
        tokenizer: Their tokenizer.
        scenes: What to draw and ask about.
        typed: A question in the reader's own words; it is put first.
    """
    captions = {
        name: evaluation.write_captions(model, tokenizer, train.vision_features(model, list(scenes)))
        for name, model in models.items()
    }
    cards = []
    for number, scene in enumerate(scenes):
        questions = _with_typed(questions_of(scene), typed)
        replies = {name: ask_pictures(model, tokenizer, scene, questions) for name, model in models.items()}
        words = [list(dict.fromkeys(w for of in replies.values() for w in of[i].words)) for i in range(len(questions))]
        cards.append(
            {
                "things": things_of(scene),
                "background": scene.background,
                "picture": _picture(scene),
                "caption": world.caption(scene),
                "questions": [
                    {"kind": q.kind, "text": q.text, "answer": q.answer, "words": allowed}
                    for q, allowed in zip(questions, words, strict=True)
                ],
                "models": {
                    name: {
                        "caption": captions[name][number],
                        "said": [reply.said for reply in of],
                        "probabilities": [_shares(reply, allowed) for reply, allowed in zip(of, words, strict=True)],
                    }
                    for name, of in replies.items()
                },
            }
        )
    return cards


def _with_typed(questions: list[world.Question], typed: str) -> list[world.Question]:
    text = " ".join(typed.split())
    known = [question for question in questions if question.text == text]
    if not text:
        return questions
    first = known or [world.Question("", text, text, "")]
    return first + [question for question in questions if question.text != text]


def _shares(reply: Reply, words: Sequence[str]) -> list[float]:
    """The probability of each word; 0 for a word that only another model found likely."""
    known = dict(zip(reply.words, reply.probabilities, strict=True))
    return [round(known.get(word, 0.0), 3) for word in words]


def _picture(scene: world.Scene) -> str:
    """The very pixels that the model sees, as an address that an image element takes."""
    written = io.BytesIO()
    world.to_image(scene).save(written, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def ask_the_model(
    models: Mapping[str, LlavaForConditionalGeneration],
    tokenizer: PreTrainedTokenizerFast,
    *,
    scenes: Sequence[world.Scene] | None = None,
) -> AskTheModel:
    """A widget in which a reader draws a scene, asks about it, and sees what models answer.

    Args:
        models: Models by the names that the reader sees. They are asked as they are at that moment: one that learns on
            answers differently the next time.
        tokenizer: Their tokenizer.
        scenes: The gallery, all that a reader without a kernel can ask about; `gallery_scenes` if left out.
    """
    scenes = gallery_scenes() if scenes is None else scenes

    def answer(things: list[dict[str, Any]], background: int, typed: str) -> dict[str, Any]:
        (card,) = answer_cards(models, tokenizer, [scene_of(things, background=background)], typed=typed)
        return card

    return AskTheModel(
        gallery=answer_cards(models, tokenizer, scenes),
        names=list(models),
        choices={
            "shape": list(world.SHAPES),
            "digit": list(world.DIGITS),
            "colour": list(world.COLOURS),
            "size": list(world.SIZES),
            "cell": list(world.CELLS),
            "slack": {size: slack_of(size) for size in world.SIZES},
        },
        answer=answer,
    )
