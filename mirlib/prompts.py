"""From an image and a text to the inputs of a model, and to the rows that hold the text."""

from __future__ import annotations

import json
import os
import re
import signal
import string
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirlib.errors import MirlibError, boundary, check_choice, said_by, shown

__all__ = ["build_prompt", "encode_batch"]

TEMPLATES = ("chat", "plain")
# What a template does to a text shows on one that has of everything: it is cut, stripped, escaped, or in capitals.
_STAND_IN = f"Sample {string.printable.strip()}\t two  spaces,\n\n a break, “Ünïcode” 世界 مرحبا 😀. " * 20 + "End"
_LONGEST_PROMPT = 1_000_000
_PLAIN = "take template='plain' (--template plain), which writes the image, a line break and the text"
# Settings of processors that must fit the model, and are None where an old processor_config.json lacks them.
_SETTINGS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "num_query_tokens")


# Processors that put the image into each prompt themselves; some of them name a token for it nevertheless.
_WITHOUT_PLACEHOLDERS = ("FuyuProcessor", "GitProcessor", "Kosmos2Processor", "Kosmos2_5Processor")


def _named_token(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", None)
    token = getattr(processor, "image_token", None) or getattr(tokenizer, "image_token", None)
    return getattr(token, "content", token) or ""


def used_template(processor: Any, template: str) -> str:
    """``"chat"`` or ``"plain"``: plain is used where the processor has no chat template of its own."""
    check_choice("template", template, TEMPLATES)
    return template if getattr(processor, "chat_template", None) else "plain"


_frames: dict[tuple[Any, ...], tuple[str, str]] = {}  # by what a template's answer depends on


def _frame(processor: Any, template: str) -> tuple[str, str]:
    """What stands before and behind the text in every prompt of a processor.

    A chat template came with a checkpoint: it is run once, bounded, with a text of ours, so that no text can change it.
    """
    token = _named_token(processor)
    if used_template(processor, template) == "plain":
        if _adds_placeholders(processor):
            return "", ""
        if not token:
            raise MirlibError(f"{type(processor).__name__} names no image token; is it the processor of an LVLM?")
        return f"{token}\n", ""
    special = getattr(getattr(processor, "tokenizer", None), "special_tokens_map", None)
    key = type(processor), _adds_placeholders(processor), token, str(processor.chat_template), str(special)
    if key not in _frames:
        _frames[key] = _frame_of_chat(processor, token)
    return _frames[key]


def _frame_of_chat(processor: Any, token: str) -> tuple[str, str]:
    conversation = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": _STAND_IN}]},
    ]

    def render() -> str:
        prompt = processor.apply_chat_template(conversation, tokenize=False)
        if len(prompt) > _LONGEST_PROMPT:
            raise MirlibError(f"it writes {len(prompt)} characters")
        return prompt

    found = bounded(render, "the chat template", _PLAIN).split(_STAND_IN)
    if len(found) > 2:
        raise MirlibError(f"the chat template writes the text {len(found) - 1} times, not once; {_PLAIN}")
    if len(found) < 2:
        raise MirlibError(f"the chat template changes the text, so its rows cannot be found; {_PLAIN}")
    before, after = found
    if not token:  # the template writes all that stands for an image, as that of PP-Chart2Table does
        return before, after
    if _adds_placeholders(processor):
        return before.replace(token, ""), after
    images = before.count(token), after.count(token)
    if images != (1, 0):
        raise MirlibError(
            f"the chat template must write the image's placeholder {token!r} once, before the text, and writes "
            f"{images[0]} before it and {images[1]} behind it; {_PLAIN}"
        )
    return before, after


def _adds_placeholders(processor: Any) -> bool:
    """Whether a processor itself puts its image before each text, as those of BLIP-2 do if they count its queries."""
    return bool(getattr(processor, "num_query_tokens", None)) or type(processor).__name__ in _WITHOUT_PLACEHOLDERS


def build_prompt(processor: Any, text: str, template: str = "chat") -> str:
    """The prompt for one image and one text: the image as the user's turn, the text as the assistant's answer.

    ``"plain"`` is the image, a line break and the text, or the text alone where the processor itself puts the image
    before it. Refused are templates that are unknown, fail, take too long, or do not keep one image and one text.
    """
    before, after = _frame(processor, template)
    return before + text + after


def first_tokens(tokenizer: Any, text: str, count: int) -> list[tuple[int, int]]:
    """Character spans of the tokens of a text, at least ``count`` of them where it has so many.

    Only as much of a long text is read as holds them: tokens that end far before the end do not depend on it.
    """
    length = 8 * count + 64
    while True:
        with boundary(f"the tokenizer refuses {name_of(text)}", "leave the text out"):
            spans = tokenizer(
                text[:length], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            ).offset_mapping
        if length >= len(text) or len(spans) >= 2 * count:
            return spans
        length *= 4


def shorten(processor: Any, text: str, max_tokens: int | None) -> str:
    """The text's first ``max_tokens`` tokens, stripped of white space around it."""
    stripped = text.strip()
    if max_tokens is None:
        return stripped
    if max_tokens < 1:
        raise MirlibError(f"max_text_tokens (--max-text-tokens) must be at least 1, got {max_tokens}")
    spans = first_tokens(processor.tokenizer, stripped, max_tokens)
    return stripped[: spans[max_tokens - 1][1]].strip() if len(spans) > max_tokens else stripped


def name_of(text: str) -> str:
    """How messages name a text: by its first characters, and by its source if its reader knows it."""
    source = getattr(text, "source", None)
    return f"the text {shown(repr(text[:80]))}" + (f" ({shown(source, 300)})" if source else "")


def check_text(processor: Any, text: Any) -> None:
    """Refuse what cannot be the text of a pair: no string, empty, no characters, special tokens alone, placeholders."""
    if not isinstance(text, str):
        raise MirlibError(f"expected a text, got {type(text).__name__}")
    if not text.strip():
        source = getattr(text, "source", None)
        raise MirlibError("a text is empty" + (f" ({shown(source, 300)})" if source else ""))
    if re.search("[\ud800-\udfff]", text):
        raise MirlibError(f"{name_of(text)} holds half a surrogate pair, which is no character; leave it out")
    for placeholder in _placeholders(processor):
        if placeholder in text:
            raise MirlibError(f"{name_of(text)} holds the model's placeholder {placeholder!r}; leave it out")
    tokenizer = processor.tokenizer
    special = tuple(tokenizer.convert_ids_to_tokens(_special_ids(tokenizer)))
    rest = text.strip()
    while rest.startswith(special):
        rest = rest.removeprefix(next(token for token in special if rest.startswith(token))).strip()
    if not rest:
        raise MirlibError(f"{name_of(text)} is made of special tokens alone, which are no text; leave it out")


def encode_batch(
    processor: Any,
    images: Sequence[Any] | None,
    texts: Sequence[str],
    *,
    template: str = "chat",
    max_text_tokens: int | None = None,
    advice: str | None = None,
) -> dict[str, Any]:
    """Model inputs for a batch of image–text pairs, right-padded, with the positions of the text.

    Args:
        processor: A Hugging Face processor with a fast tokenizer.
        images: B PIL images; None for the texts alone, in the same prompt with nothing in the image's place.
        texts: B non-empty texts.
        template: See `build_prompt`.
        max_text_tokens: Cut each text after so many tokens.
        advice: What to do if the processor fails; left out, it is the image's fault.

    Returns:
        What the processor (without images, the tokenizer) returns, as tensors, and ``"text_mask"``, (B, T) bool: the
        rows of the given texts alone, without template, special and padding rows.

    Raises:
        MirlibError: If the tokenizer gives no offsets or cannot pad, a text holds a placeholder for vision, the
            processor fails, or the rows that were found do not read as the text.
    """
    before, after = _frame(processor, template)
    token = _named_token(processor)
    left = before.rpartition(token)[2] if token else before  # stays beside the text when placeholders grow
    if images is None and token:
        before = left = before.replace(token, "")
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise MirlibError(
            f"{type(processor).__name__} has no tokenizer, so it is no processor of an LVLM; does processor_class in "
            "processor_config.json or tokenizer_config.json name the right one?"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise MirlibError(
            "finding the text's rows needs a fast tokenizer (offsets); load the processor with use_fast=True"
        )
    if len(texts) > 1 and tokenizer.pad_token is None:
        raise MirlibError(
            "the tokenizer has no padding token, so texts of unequal length cannot share a batch: set "
            "processor.tokenizer.pad_token, or take batch_size=1 (--batch-size 1)"
        )
    for text in texts:
        check_text(processor, text)
    cut = [shorten(processor, text, max_text_tokens) for text in texts]
    lacking = [name for name in _SETTINGS if getattr(processor, name, 0) is None]
    advice = advice or ("take another image" if len(texts) == 1 else "take batch_size=1 (--batch-size 1)")
    advice = f"its settings lack {', '.join(lacking)} (processor_config.json)" if lacking else advice
    with _overheard(processor) as heard, boundary(f"{type(processor).__name__} cannot prepare its inputs", advice):
        options = {"padding": len(cut) > 1, "padding_side": "right", "return_tensors": "pt"}
        prompts = [before + text + after for text in cut]
        if images is None:
            batch = dict(processor.tokenizer(prompts, **options))
        else:
            if "mm_token_type_ids" in getattr(processor, "model_input_names", ()):
                options["return_mm_token_type_ids"] = True  # Cosmos 3 returns them only where they are asked for
            # A list for each sample, which every family takes but one: GOT-OCR's are the pages of a document.
            flat = type(processor).__name__ == "GotOcr2Processor"
            pictures = list(images) if flat else [[image] for image in images]
            batch = dict(processor(images=pictures, text=prompts, **options))
    emu = type(processor).__name__ == "Emu3Processor" and images is not None
    if emu and len(batch["image_sizes"].unique(dim=0)) > 1:
        raise MirlibError(
            "Emu3 gives pictures of different sizes other features where they share a batch, and MIR would change with "
            "it; take batch_size=1 (--batch-size 1)"
        )
    ids = batch["input_ids"] = torch.as_tensor(batch["input_ids"])
    attended = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids)))
    batch["text_mask"] = torch.zeros_like(ids, dtype=torch.bool)
    special = set(_special_ids(tokenizer))
    for row, (whole, text) in enumerate(zip(texts, cut, strict=True)):
        found = _rows_of(tokenizer, heard, ids[row].tolist(), attended[row].tolist(), (left, text, after), special)
        if found is None:
            raise MirlibError(
                f"{name_of(whole)} cannot be found for sure among the tokens that {type(processor).__name__} made of "
                "it; leave it out, or make the batches yourself, with a text_mask, for mirlib.score_batches"
            )
        batch["text_mask"][row, found] = True
    return batch


class _Listener:
    """A tokenizer that is heard: what its processor asked for in the end, and how that was split."""

    def __init__(self, tokenizer: Any) -> None:
        vars(self).update(_tokenizer=tokenizer, _heard=[])

    def __call__(self, *args: Any, **options: Any) -> Any:
        answer = self._tokenizer(*args, **options)
        asked = args[0] if args else options.get("text")
        strings = [asked] if isinstance(asked, str) else asked
        self._heard.extend(zip(strings, answer.encodings or [], strict=False))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_tokenizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tokenizer, name, value)

    def __len__(self) -> int:
        return len(self._tokenizer)


@contextmanager
def _overheard(processor: Any) -> Iterator[list[tuple[str, Any]]]:
    """Every string that the processor hands to its tokenizer inside the block, with its `tokenizers.Encoding`.

    Processors write more into a prompt than they are given; only what was really tokenized shows where the text is.
    """
    tokenizer = processor.tokenizer
    listener = _Listener(tokenizer)
    processor.tokenizer = listener
    try:
        yield vars(listener)["_heard"]
    finally:
        processor.tokenizer = tokenizer


def _rows_of(
    tokenizer: Any,
    heard: Sequence[tuple[str, Any]],
    ids: list[int],
    attended: list[int],
    parts: tuple[str, str, str],
    special: set[int],
) -> list[int] | None:
    """Positions in a row of (T,) ids whose tokens hold the text; None where that is in doubt.

    ``heard`` are the strings that were tokenized with their encodings, ``attended`` is 0 at padding, ``parts`` what
    stands before the text (behind the image), the text, and what stands behind it; ``special`` ids are no text.
    """
    end = max((place + 1 for place, value in enumerate(attended) if value), default=0)
    for prompt, encoding in heard:
        start = _place(prompt, *parts)
        if start is None:
            continue
        stop = start + len(parts[1])
        asked = max((place + 1 for place, value in enumerate(encoding.attention_mask) if value), default=0)
        tokens, spans = encoding.ids[:asked], encoding.offsets[:asked]  # each access makes a list of all
        over = [i for i, (a, b) in enumerate(spans) if a < b and a < stop and b > start]
        if not over:
            continue
        # Tokens of mere white space have no span in some tokenizers: all from the first to the last are the text's.
        first, last = over[0], over[-1] + 1
        shift = end - asked  # processors put tokens before those of the prompt, and none behind
        if first + shift < 0 or ids[first + shift : end] != tokens[first:]:
            continue
        chosen = [i for i in range(first, last) if tokens[i] not in special]
        while chosen and not tokenizer.decode(tokens[chosen[0]]).strip():  # a blank that the tokenizer put before it
            chosen.pop(0)
        if _read_as_written(tokenizer, prompt, tokens, spans, chosen):
            return [i + shift for i in chosen]
    return None


def _place(prompt: str, left: str, text: str, after: str) -> int | None:
    """Where the text begins in what was tokenized: between what stands beside it, or else where it stands alone."""
    start = prompt.rfind(left + text + after)
    if start >= 0:
        return start + len(left)
    for beside in (left, ""):
        if prompt.count(beside + text) == 1:
            return prompt.index(beside + text) + len(beside)
    return None


def _read_as_written(
    tokenizer: Any, prompt: str, tokens: Sequence[int], spans: Sequence[tuple[int, int]], chosen: Sequence[int]
) -> bool:
    """Whether tokens, decoded, are the characters that they are said to stand for.

    Characters with an unknown token are left out. What a tokenizer does not give back (accents, capitals) it does not
    give back of the characters alone.
    """
    lost = {place for i in chosen if tokens[i] == tokenizer.unk_token_id for place in range(*spans[i])}
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    kept = np.array([i for i in chosen if lost.isdisjoint(range(*spans[i]))], dtype=int)
    for run in np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1):  # neighbours on both sides of what is lost apart
        read = decode([tokens[i] for i in run])
        # Each character once: its bytes may be several tokens.
        written = "".join(prompt[place] for place in sorted({place for i in run for place in range(*spans[i])}))
        if _bare(read) != _bare(written):
            again = decode(tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
            if _bare(read) != _bare(again):
                return False
    return True


def _bare(text: str) -> str:
    """A text without what tokenizers change: white space, its sign in vocabularies, forms of letters and their case."""
    return re.sub(r"[\s\u2581]+", "", unicodedata.normalize("NFKC", text).casefold())


def disagreements(processor: Any, config: Any) -> str:
    """Settings in which a processor and a model's config differ, as an addition to a sentence; empty if none do."""
    vision = getattr(config, "vision_config", None)
    found = []

    def compare(name: str, ours: Any, theirs: Any) -> None:
        if ours is not None and theirs is not None and ours != theirs:
            found.append(f"{name} is {shown(ours)} in the processor and {shown(theirs)} in the model")

    compare("patch_size", getattr(processor, "patch_size", None), getattr(vision, "patch_size", None))
    name = "vision_feature_select_strategy"
    compare(name, getattr(processor, name, None), getattr(config, name, None))
    class_token = {"clip_vision_model": 1, "siglip_vision_model": 0}.get(getattr(vision, "model_type", None))
    name = "num_additional_image_tokens"
    compare(name, getattr(processor, name, None), class_token)
    prepared = getattr(processor, "image_processor", None)
    sizes = [dict(getattr(prepared, name, None) or {}) for name in ("crop_size", "size")]
    side = next((size["height"] for size in sizes if size.get("height")), None)
    compare("the image size", side, getattr(vision, "image_size", None))
    if token := _named_token(processor):
        ids = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
        number = processor.tokenizer.convert_tokens_to_ids(token)
        compare("image_token_id", number, next((i for i in ids if i is not None), None))
    entries = getattr(config.get_text_config(), "vocab_size", None) if hasattr(config, "get_text_config") else None
    if entries is not None and len(processor.tokenizer) > entries:
        found.append(f"the tokenizer has {len(processor.tokenizer)} entries and the model {entries}")
    return "; ".join(found)


def _placeholders(processor: Any) -> list[str]:
    """The strings that stand for vision in a prompt."""
    video = getattr(processor, "video_token", None)
    return [token for token in (_named_token(processor), getattr(video, "content", video)) if token]


def _special_ids(tokenizer: Any) -> list[int]:
    """Ids that are no text even where a text spells them out, such as ``</s>``; an unknown word is text."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return sorted((special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id} | ends)


# ---------------------------------------------------------------------------------------------------------------------
# A stranger's program, in a child process: so much time, so much memory, no more

SECONDS = 3  # of processor time, which a busy machine does not take away
PATIENCE = 60.0  # seconds of a clock, for work that waits for what never comes
MEBIBYTES = 512


def bounded(work: Callable[[], str], what: str, advice: str) -> str:
    """What ``work()`` returns, computed in a child process that is stopped where it takes too long or too much memory.

    Where the system has no ``fork`` (Windows), the work is done here, without bounds.

    Raises:
        MirlibError: ``what advice``, if ``work`` raises, or takes more than 3 seconds of processor time or 512 MiB.
    """
    if not hasattr(os, "fork"):
        return work()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Forking beside other threads can leave a lock taken in the child. It would then be stopped, and nothing lost.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()  # until the child ends, as it will
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM):
        raise MirlibError(f"{what} takes more than {SECONDS} s for one short text; {advice}")
    if not answer:
        raise MirlibError(f"{what} takes more than {MEBIBYTES} MiB for one short text, or crashes; {advice}")
    problem, result = json.loads(answer)
    if problem:
        raise MirlibError(f"{what} fails ({problem}); {advice}")
    return result


def _answer(work: Callable[[], str], writing: int) -> None:
    """The child's part: work, send ``[problem, result]``, and end without what the parent does when it exits."""
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers would say on stderr that it forked
        _set_limits()
        try:
            answer = ["", work()]
        except MemoryError:
            answer = [f"it takes more than {MEBIBYTES} MiB", ""]
        except Exception as error:
            answer = [str(error) if isinstance(error, MirlibError) else said_by(error), ""]
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _set_limits() -> None:
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: SECONDS}
    if sys.platform.startswith("linux"):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = size + MEBIBYTES * 2**20
    for what, limit in limits.items():
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
