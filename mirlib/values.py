"""What a value of a record, a table or a shard is as an image or as a text, and sequences that read when asked."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from mirlib.data import LONGEST_LINE, open_picture
from mirlib.errors import MirlibError, first_line, shown

Unreadable = Callable[[str], None] | None

IMAGE_FIELDS = (
    *("image", "image_path", "img", "jpg", "png", "file_name", "filename", "path"),
    "images",  # a list of one
)
TEXT_FIELDS = ("text", "caption", "article", "question", "sentence", "txt", "conversations", "messages")
ANSWERS = ("gpt", "assistant", "model")


class Pairs(NamedTuple):
    """Images and the texts that belong to them: ``texts[i]`` to ``images[i]``. `mirlib.score` takes them ``paired``."""

    images: Sequence[Any]
    texts: Sequence[str]


class Items(Sequence[Any]):
    """A sequence of ``count`` items that are read when they are asked for, by ``read(number)``, from 0."""

    def __init__(self, count: int, read: Callable[[int], Any]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            chosen = range(self._count)[index]
            return Items(len(chosen), lambda i: self._read(chosen[i]))
        if not -self._count <= index < self._count:
            raise IndexError(f"item {index} of {self._count}")
        return self._read(index % self._count)


def some(items: Sequence[Any], what: str, name: str) -> Sequence[Any]:
    """The items; a `MirlibError` if there are none."""
    if not items:
        raise MirlibError(f"no {what} in {name}")
    return items


def listed(names: Iterable[Any]) -> str:
    """Names as a message lists them."""
    names = list(names)
    return ", ".join(shown(name) for name in names[:20]) + (", …" if len(names) > 20 else "") or "none"


def refuse_remote(value: str, name: str) -> None:
    """Nothing is fetched because a file or an option says so."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise MirlibError(f"{name}: {shown(value)} is an address, and nothing is fetched; name a file on this machine")


def field_of(given: str | None, usual: Sequence[str], there: Iterable[str], what: str, option: str, name: str) -> str:
    """The field that holds the images or the texts; a `MirlibError` if there is none."""
    there = list(there)
    if given is not None:
        if given not in there:
            raise MirlibError(f"{name}: there is no field {shown(given)!r}; there is {listed(there)}")
        return given
    found = next((candidate for candidate in usual if candidate in there), None)
    if found is None:
        raise MirlibError(
            f"{name}: which field holds the {what}? There is {listed(there)}; name one with {option} "
            f"(--{option.replace('_', '-')})"
        )
    return found


def image_of(data: bytes, name: str) -> Image.Image:
    """The image in the bytes, decoded when it is used; messages call it by ``name``."""
    try:
        image = open_picture(io.BytesIO(data))
    except Exception as error:  # Pillow's readers raise anything
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else shown(first_line(error), 200)
        raise MirlibError(f"cannot read the image {name}: {reason}") from error
    image.filename = name
    return image


def image_in(value: Any, name: str) -> str | bytes:
    """The path or the bytes of an image, out of a field: as they are, in a list of one, or in a table's struct."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise MirlibError(f"{name}: expected the path of an image, got a list of {len(value)}")
        value = value[0]
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise MirlibError(f"{name}: expected the path of an image, got {_kind_of(value)}")
    refuse_remote(value, name)
    if value.startswith("data:"):
        raise MirlibError(f"{name}: expected the path of an image, got the image itself in base64 ({shown(value)})")
    return value


def image_at(image: str | bytes, name: str, folders: Sequence[Path]) -> Path | Image.Image:
    """The image that `image_in` found: its path in the first of the folders that has it, or the picture in its bytes."""
    if isinstance(image, bytes):
        return image_of(image, name)
    for written in dict.fromkeys((image, image.replace("\\", "/"))):  # the second for paths of Windows
        for folder in folders:
            if os.path.exists(folder / written):
                return folder / written
    if os.path.isabs(image) or re.match(r"[A-Za-z]:[\\/]", image):
        raise MirlibError(
            f"{name}: no such image: {shown(image)} (the path is absolute; make it relative to a folder, and name that "
            "with image_root, --image-root)"
        )
    raise MirlibError(
        f"{name}: no such image: {shown(image)} (looked in {' and '.join(shown(folder) for folder in folders)}; "
        "image_root, --image-root, names another folder)"
    )


def folders_of(file: Path, image_root: str | Path | None) -> list[Path]:
    """The folders that the paths in a file are relative to."""
    if image_root is None:
        return [file.parent, file.parent / "images"]
    if not Path(image_root).is_dir():
        raise MirlibError(f"image_root (--image-root): no such folder: {shown(Path(image_root))}")
    return [Path(image_root)]


def text_in(value: Any, name: str) -> str:
    """The text of a field, stripped: of a list the first, of a conversation the first answer."""
    if is_conversation(value):
        value = _answer(value, name)
    elif isinstance(value, (list, tuple)):
        if not value:
            raise MirlibError(f"{name}: expected a text, got an empty list")
        value = value[0]
    if not isinstance(value, str):
        raise MirlibError(f"{name}: expected a text, got {_kind_of(value)}")
    if len(value) > LONGEST_LINE:
        raise MirlibError(f"{name}: the text has more than {LONGEST_LINE >> 20} MiB")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a character, from a \\ud800 in JSON, or bytes of another encoding
        raise MirlibError(f"{name}: not UTF-8 text (character {error.start}: {shown(value[error.start])})") from error
    text = value.strip()
    if not text:
        raise MirlibError(f"{name}: the text is empty")
    return text


def is_conversation(value: Any) -> bool:
    """Whether it is a list of turns, as LLaVA's ``conversations`` and the ``messages`` of chat templates."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _answer(turns: Sequence[dict[str, Any]], name: str) -> Any:
    """What the first turn of the model says, without the placeholder that stands for the image."""
    speakers = [turn.get("from", turn.get("role")) for turn in turns]
    for turn, speaker in zip(turns, speakers, strict=True):
        if speaker in ANSWERS:
            said = turn.get("value", turn.get("content"))
            if is_conversation(said):  # parts: images and texts
                said = "\n".join(part["text"] for part in said if isinstance(part.get("text"), str))
            return re.sub(r"\n*<image>\n*", "", said) if isinstance(said, str) else said
    raise MirlibError(
        f"{name}: no turn is from {' or '.join(ANSWERS)}; there is {listed(dict.fromkeys(map(str, speakers)))}"
    )


def _kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {listed(value)}"
    return type(value).__name__ if value or value is None else f"an empty {type(value).__name__}"
