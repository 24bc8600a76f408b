"""The language side: a byte-level tokenizer, and the text-only documents that the language model reads.

The language model never sees a picture. It learns to read *textual scenes* ("small topleft red circle .") and to
describe them or answer questions about them; later, stage 1 puts image tokens where the textual scene used to stand.

Every document is a list of *segments*, a text with a role. Each segment starts with a space or a line break, so
tokenizing segment by segment equals tokenizing the whole, and a cache over segments makes documents nearly free.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mirlab import world
from mirlab.world.scenes import pick, pick_by_share

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<image>")
BOS, EOS, PAD, IMAGE = range(4)
VOCABULARY_SIZE = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER:' if message['role'] == 'user' else ' ASSISTANT:' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ ' ' + item['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""``USER:<image>\\n how many objects ? ASSISTANT:``; the tokenizer adds ``<s>`` in front."""

_EXTRA_WORDS = ("USER", "ASSISTANT", "facts")


# -------------------- Tokenizer
ENGLISH_KINDS = ("topics", "docstrings", "code")
"""Real texts that come with every Python: documentation topics, docstrings and source of the standard library."""

_MODULE_CHARACTERS = 40_000  # of each module, so that no long one speaks for all


@cache
def english_texts(kind: str = "topics", *, held_out: bool = False) -> tuple[str, ...]:
    """Real texts of a kind (others are refused): the tenth that no model trains on if `held_out`, or the rest.

    A text is a documentation topic, all docstrings of a module, or the first 40,000 characters of its source.
    """
    if kind not in ENGLISH_KINDS:
        raise ValueError(f"kind must be one of {', '.join(ENGLISH_KINDS)}, not {kind!r}")
    return tuple(text for i, text in enumerate(_english_texts(kind)) if (i % 10 == 9) == held_out)


@cache
def _english_texts(kind: str) -> tuple[str, ...]:
    if kind == "topics":
        from pydoc_data.topics import topics

        return tuple(topics[name] for name in sorted(topics))
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))  # without packages
    sources = [path.read_text(encoding="utf-8") for path in modules]
    if kind == "code":
        return tuple(source[:_MODULE_CHARACTERS] for source in sources)
    return tuple(filter(None, map(_docstrings, sources)))


def _docstrings(source: str) -> str:
    tree = ast.parse(source)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners))
    return "\n\n".join(text for text in found if text)


_RUN = 8  # words; so many in a row are hardly ever written twice by chance


def unread(text: str) -> bool:
    """Whether no eight words in a row of a text, which must have so many, stand in the texts that models train on.

    Python's documentation and modules repeat themselves, so a text that was held out may have been read elsewhere.
    Capitals and punctuation do not count.
    """
    runs = _runs(text)
    return bool(runs) and _read_runs().isdisjoint(runs)


def _read_texts() -> list[str]:
    return [text for kind in ENGLISH_KINDS for text in english_texts(kind)]


@cache
def _read_runs() -> frozenset[int]:
    return frozenset().union(*map(_runs, _read_texts()))


def _runs(text: str) -> set[int]:
    """Hashes of all runs of eight words."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[first : first + _RUN])) for first in range(len(words) - _RUN + 1)}


def corpus_fingerprint() -> str:
    """Of all that the tokenizer is trained on that may differ between Python installations."""
    digest = hashlib.sha256()
    for text in (*_read_texts(), *world.WORDS):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on the world's language and on real English.

    Every byte is a token, so no text is unknown and decoding returns the exact text; every word of the world, with
    its leading space, is one token, so an answer is one prediction. A vocabulary too small for that is refused.
    """
    rng = np.random.default_rng([0, 1])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = " " + " ".join((*world.WORDS, *_EXTRA_WORDS, ":", "?", ".", ","))
    made_up = ["".join(news(rng) + listing(rng) + arithmetic(rng)) for _ in range(2000)]
    tokenizer.train_from_iterator([*_read_texts(), *made_up, *[words] * 5000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    for word in (*world.WORDS, *_EXTRA_WORDS):
        if len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) != 1:
            raise RuntimeError(f"{word!r} is not a single token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """A tokenizer that was saved with `save_pretrained`."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def segment_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], tuple[int, ...]]:
    """A cached `str -> ids` without special tokens, for the short segments that documents are made of."""
    backend = tokenizer.backend_tokenizer
    return lru_cache(maxsize=50_000)(lambda text: tuple(backend.encode(text, add_special_tokens=False).ids))


# -------------------- Documents
Segment = tuple[str, str]
"""A text and its role (scene, prompt, answer, description or prose)."""


def textual_scene(scene: world.Scene, rng: np.random.Generator) -> list[Segment]:
    """A scene in words, as the language model reads it, for example ``small topleft red circle .``.

    The words of a sentence stand in any order, since image tokens cannot be continued as a fixed sentence can; half the
    time the things stand in reading order.
    """
    order = range(len(scene.things)) if rng.random() < 0.5 else rng.permutation(len(scene.things))
    things = [scene.things[i].words for i in order]
    return [(f" {' '.join(words[j] for j in rng.permutation(len(words)))} .", "scene") for words in things]


def description_document(rng: np.random.Generator) -> list[Segment]:
    """Scene, line break, caption: the very form of a stage-1 row, with words in the place of the image tokens."""
    scene = world.sample_scene(rng)
    detail = ("full", "full", "full", "full", "mid", "brief")[int(rng.integers(6))]
    told = [t.sentence for t in scene.things] if detail == "full" else [world.caption(scene, detail)]
    return [*textual_scene(scene, rng), ("\n", "scene"), *((f" {text}", "description") for text in told)]


def lookup_document(rng: np.random.Generator) -> list[Segment]:
    r"""A scene, then its things again, each called by its shape: ``scene \n circle small red topleft . ...``.

    Only shapes that the scene holds once are called: questions about "the circle" need the model to find a thing by
    its shape. Half of these documents check instead of tell: ``circle red ? yes . circle blue ? no .``
    """
    scene = world.sample_scene(rng)
    shapes = [thing.shape for thing in scene.things]
    called = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
    document = [*textual_scene(scene, rng), ("\n", "scene")]
    if rng.random() < 0.5:
        for i in rng.permutation(len(called)):
            thing = called[i]
            document += _asked(thing.shape, f"{thing.size} {thing.colour} {thing.cell}")
        return document
    for i in rng.integers(len(called), size=3 * len(called)) if called else ():
        thing, told = called[i], pick(rng, tuple(world.COLOURS))
        if rng.random() < 0.5:
            told = thing.colour
        elif rng.random() < 0.7:  # a colour that something else has
            told = pick(rng, scene.things).colour
        document += _asked(f"{thing.shape} {told} ?", "yes" if told == thing.colour else "no")
    return document


def _asked(prompt: str, answer: str) -> list[Segment]:
    return [(f" {prompt}", "prompt"), (f" {answer}", "answer"), (" .", "prompt")]


def question_document(
    rng: np.random.Generator, *, count: int, short: float, weights: dict[str, float] | None = None
) -> list[Segment]:
    r"""A scene, then many questions with their answers: ``scene \n facts : red circle ? yes . ...``.

    The `short` share of them is in telegram style; `weights` say how often each kind of question is asked.
    """
    scene = world.sample_scene(rng)
    document = [*textual_scene(scene, rng), ("\n facts :", "scene")]
    for _ in range(count):
        question = world.sample_question(scene, rng, weights)
        document += _asked(question.short if rng.random() < short else question.text, question.answer)
    return document


def chat_document(rng: np.random.Generator, *, count: int, weights: dict[str, float] | None = None) -> list[Segment]:
    """A scene and questions in the form of the chat template, again with words in the place of the image tokens."""
    scene = world.sample_scene(rng)
    document = [("USER:", "scene"), *textual_scene(scene, rng), ("\n", "scene")]
    for i in range(count):
        question = world.sample_question(scene, rng, weights)
        prompts = ["</s>USER:"] * (i > 0) + [f" {question.text}", " ASSISTANT:"]
        document += [*((text, "prompt") for text in prompts), (f" {question.answer}", "answer")]
    return document


_PEOPLE = "minister president mayor company bank court police team doctor teacher union museum".split()
_PLACES = "city north south capital river coast country valley island border".split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_VERBS = "said reported announced confirmed denied expected agreed warned".split()
_DEEDS = "rise fall close open grow change return vote build sell move stop".split()
_GOODS = "prices schools trains taxes roads houses jobs ships farms rates plans talks".split()
_ITEMS = "apple bread chair door egg fish glass hat ink jar key lamp map nut oil pen rope salt tree".split()


def news(rng: np.random.Generator) -> list[str]:
    """Two to four sentences in the manner of a news ticker."""
    words = (_PEOPLE, _PLACES, _VERBS, _DAYS, _GOODS, _DEEDS, _PLACES)
    form = " The {} of the {} {} on {} that {} will {} in the {}."
    return [form.format(*(pick(rng, some) for some in words)) for _ in range(int(rng.integers(2, 5)))]


def arithmetic(rng: np.random.Generator) -> list[str]:
    """A few sums of small numbers."""
    pairs = rng.integers(0, 30, size=(int(rng.integers(3, 8)), 2))
    return [f" {a} + {b} = {a + b} ." for a, b in pairs]


def listing(rng: np.random.Generator) -> list[str]:
    """A list of things, then the same list backwards."""
    items = [_ITEMS[i] for i in rng.permutation(len(_ITEMS))[: int(rng.integers(3, 8))]]
    return [f" list : {' , '.join(items)} ; backwards : {' , '.join(items[::-1])} ."]


_MADE_UP = {"news": news, "arithmetic": arithmetic, "listing": listing}
_DOCUMENTS = {"questions": question_document, "chat": chat_document}
_DOCUMENTS |= {"description": description_document, "lookup": lookup_document}


class EnglishReader:
    """Windows of one kind of real text as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
        texts = tokenizer.backend_tokenizer.encode_batch_fast(list(english_texts(kind)), add_special_tokens=False)
        self._texts = [encoded.ids for encoded in texts]
        lengths = np.array([len(ids) for ids in self._texts], dtype=float)
        self._cumulative = (lengths / lengths.sum()).cumsum()

    def window(self, rng: np.random.Generator, length: int) -> list[int]:
        """A window of up to `length` tokens; long texts are read more often, so that every token is as likely."""
        ids = self._texts[min(int(np.searchsorted(self._cumulative, rng.random())), len(self._texts) - 1)]
        start = int(rng.integers(max(len(ids) - length, 0) + 1))
        return ids[start : start + length]


# -------------------- Rows
@dataclass(frozen=True)
class Mixture:
    """What the language model reads, and how much each token counts in its loss."""

    questions: float = 0.33  # share of documents with dense questions; down to `copy` likewise
    chat: float = 0.15
    description: float = 0.15
    lookup: float = 0.15
    news: float = 0.05
    arithmetic: float = 0.03
    listing: float = 0.04
    topics: float = 0.05
    docstrings: float = 0.025
    code: float = 0.025
    copy: float = 0.0
    short: float = 0.5  # share of telegram-style questions
    question_count: tuple[int, int] = (2, 6)  # fewest and most in a document
    kind_weights: dict[str, float] | None = None  # how often each kind of question is asked
    role_weights: dict[str, float] | None = None  # weight of a token in the loss


@dataclass
class Rows:
    """A batch for the language model; all arrays are (rows, length)."""

    ids: np.ndarray  # int64
    weights: np.ndarray  # of each token as a prediction target, float32
    positions: np.ndarray  # in the document, int64; attention must not look further back than to the last 0


class RowMaker:
    """Fills rows of tokens with documents of a mixture. A row starts at the start of a document."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = segment_encoder(tokenizer)
        self._english = {kind: EnglishReader(tokenizer, kind) for kind in ENGLISH_KINDS}
        self._words = [self._encode(f" {word}")[0] for word in world.WORDS]

    def rows(self, rng: np.random.Generator, mixture: Mixture, *, batch: int, length: int) -> Rows:
        """Draw a batch of rows."""
        ids = np.full((batch, length), PAD, dtype=np.int64)
        weights = np.zeros((batch, length), dtype=np.float32)
        positions = np.zeros((batch, length), dtype=np.int64)
        for row in range(batch):
            filled = 0
            while filled < length:
                positions[row, filled:] = np.arange(length - filled)
                for piece, weight in self._document(rng, mixture, length):
                    taken = piece[: length - filled]
                    ids[row, filled : filled + len(taken)] = taken
                    weights[row, filled : filled + len(taken)] = weight
                    filled += len(taken)
        return Rows(ids, weights, positions)

    def _document(self, rng: np.random.Generator, m: Mixture, length: int) -> Iterator[tuple[tuple[int, ...], float]]:
        kinds = (*_DOCUMENTS, *_MADE_UP, *ENGLISH_KINDS, "copy")
        kind = pick_by_share(rng, {kind: getattr(m, kind) for kind in kinds})
        yield (BOS,), 0.0
        if kind == "copy":
            # The same random string twice: the quickest way to teach a model to look back into its own context.
            # Mostly words of the world, since those are the ones it must find again in a scene.
            count = int(rng.integers(6, 24))
            if rng.random() < 0.7:
                string = tuple(self._words[i] for i in rng.integers(len(self._words), size=count))
            else:
                string = tuple(rng.integers(len(SPECIAL_TOKENS), VOCABULARY_SIZE, size=count).tolist())
            yield string, 0.0
            yield string, 1.0
        elif kind in ENGLISH_KINDS:
            yield tuple(self._english[kind].window(rng, int(rng.integers(length // 2, length)))), 0.5
        elif kind in _MADE_UP:
            for text in _MADE_UP[kind](rng):
                yield self._encode(text), 0.5
        else:
            options: dict[str, Any] = {}
            if kind in ("questions", "chat"):
                options = {"count": int(rng.integers(*m.question_count, endpoint=True)), "weights": m.kind_weights}
            if kind == "questions":
                options["short"] = m.short
            for text, role in _DOCUMENTS[kind](rng, **options):
                yield self._encode(text), m.role_weights[role] if m.role_weights else 1.0
        yield (EOS,), 0.5
