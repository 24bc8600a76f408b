"""Images and texts to measure with: your own files, or photographs, scans and English from installed packages."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mirlib.errors import MirlibError, check_choice, doing, shown

__all__ = ["Named", "find_images", "load_image", "read_texts", "sample_images", "sample_texts"]

# Pictures made of pixels alone. Pillow goes by a file's content and not by its name, and hands EPS to another program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .tif .tiff "
    ".webp".split()
)
TEXT_SUFFIXES = frozenset(".story .txt .md .text".split())
ORIENTATION = ExifTags.Base.Orientation
NO_DATA = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN"))  # what systems put beside the files of their users
MOST_PIXELS = 1 << 27  # at eight bytes each, the picture and its RGB form, 1 GiB
HEAVY = frozenset(("JPEG2000", "WEBP"))  # formats whose decoders take as much again
MOST_BYTES = 1 << 30  # of a file or a member of an archive, some of which are read whole
LONGEST_LINE = 1 << 24  # bytes of a line or a record; it bounds what one of them can take in memory

Unreadable = Callable[[str], None] | None
"""What is called with a sentence for each item that cannot be read, which is then left out; None for an error."""

# Which pictures of scikit-image, and with an ending of scikit-learn, are photographs, and which are scanned pages.
PICTURES = {
    "photograph": ("astronaut", "chelsea", "coffee", "rocket", "china.jpg", "flower.jpg"),
    "scan": ("page", "text"),
}


def random_stream(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers of a seed of the user's, others in every stream; a `MirlibError` for a negative seed."""
    if seed < 0:
        raise MirlibError(f"seed (--seed) must be at least 0, got {seed}")
    return np.random.default_rng([seed, *stream] if stream else seed)


@cache
def _picture(name: str) -> Image.Image:
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(name)).convert("RGB")
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def sample_images(num: int = 100, seed: int = 0, kind: str = "any") -> Items:
    """Crops of real pictures that scikit-image and scikit-learn install, each cut when it is asked for.

    They are square RGB images, 96 to 256 pixels wide, and carry ``info["source"]``.

    Args:
        num: How many.
        seed: Which crops. The first ``n`` of ``num`` are the same for every ``num``.
        kind: ``"photograph"``, ``"scan"``, or ``"any"`` for three photographs to one scan.
    """
    check_choice("kind of picture", kind, (*PICTURES, "any"))
    generator = random_stream(seed, 1)
    crops = []
    for number in range(num):
        chosen = ("scan" if number % 4 == 3 else "photograph") if kind == "any" else kind
        name = PICTURES[chosen][generator.integers(len(PICTURES[chosen]))]
        picture = _picture(name)
        side = int(generator.integers(96, min(256, *picture.size) + 1))
        left = int(generator.integers(picture.width - side + 1))
        top = int(generator.integers(picture.height - side + 1))
        crops.append((chosen, name, left, top, side))

    def cut(place: tuple[str, str, int, int, int]) -> Image.Image:
        chosen, name, left, top, side = place
        crop = _picture(name).crop((left, top, left + side, top + side))
        crop.info["source"] = f"{chosen} {name.removesuffix('.jpg')} at ({left}, {top}), {side} px"
        return crop

    return Items(crops, cut)


@cache
def _paragraphs() -> tuple[str, ...]:
    """Paragraphs of prose from Python's documentation topics: 8 to 120 words, no code, no tables."""
    from pydoc_data.topics import topics

    found = []
    for topic in sorted(topics):
        for block in topics[topic].split("\n\n"):
            words = block.removeprefix("* ").split()
            text = " ".join(words)
            is_code = any(mark in text for mark in (">>>", "::=", "----", "====", "****"))
            if 8 <= len(words) <= 120 and text.endswith((".", ":", ";", ")")) and not is_code:
                found.append(text)
    return tuple(dict.fromkeys(found))


def sample_texts(num: int = 100, seed: int = 0) -> list[str]:
    """Paragraphs of real English, 8 to 120 words each: the documentation topics that come with Python.

    Args:
        num: How many; a `MirlibError` says how many there are.
        seed: Which, without repetition. The first ``n`` of ``num`` are the same for every ``num``.
    """
    paragraphs = _paragraphs()
    if num > len(paragraphs):
        raise MirlibError(f"Python's documentation topics hold {len(paragraphs)} paragraphs, {num} were asked for")
    order = random_stream(seed, 2).permutation(len(paragraphs))
    return [paragraphs[i] for i in order[:num]]


class Named(str):
    """A text that knows where it comes from: the file and line, key or row that it was read from."""

    __slots__ = ("source",)

    def __new__(cls, text: str, source: str = "") -> Named:
        """The text with its source."""
        named = super().__new__(cls, text)
        named.source = source
        return named


def walk(folder: Path, suffixes: frozenset[str]) -> tuple[list[Path], str]:
    """The files of a folder with certain endings, and what was passed over: "21 hidden and 2 of other kinds (.db)".

    Symbolic links are followed, each file is taken once, and a loop of links ends. A file under its own name comes
    before a link to it.
    """
    found: dict[str, Path] = {}  # by their real names
    passed: Counter[str] = Counter()
    endings: set[str] = set()
    entered: set[str] = set()
    waiting = [(0, str(folder), os.path.realpath(folder))]
    while waiting:
        links, path, real = heappop(waiting)  # what fewer links lead to comes first
        if os.path.isdir(real):
            if real in entered:
                continue
            entered.add(real)
            try:
                entries = list(os.scandir(path))
            except OSError:
                passed["that cannot be opened"] += 1
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in NO_DATA:
                    passed["hidden"] += 1
                else:
                    is_link = entry.is_symlink()
                    behind = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                    heappush(waiting, (links + is_link, entry.path, behind))
        elif not os.path.isfile(real):
            passed["broken or special (links, pipes, devices)"] += 1
        elif (ending := Path(path).suffix.lower()) in suffixes:
            found.setdefault(real, Path(path))
        else:
            passed["of other kinds"] += 1
            endings.add(ending or "no ending")
    kinds = {"of other kinds": f" ({', '.join(sorted(map(shown, endings))[:8])})"}
    counted = [f"{count} {reason}{kinds.get(reason, '')}" for reason, count in sorted(passed.items())]
    return sorted(found.values()), " and ".join(counted)


def _files_in(folder: Path, suffixes: frozenset[str], what: str) -> list[Path]:
    """The files of a folder with these endings; what was passed over is said."""
    files, passed = walk(folder, suffixes)
    if not files:
        raise MirlibError(
            f"no {what} in {shown(folder)} (looked for {', '.join(sorted(suffixes))}"
            f"{f'; passed over {passed}' if passed else ''})"
        )
    if passed:
        warnings.warn(f"{shown(folder)}: {len(files)} {what}; passed over {passed}", stacklevel=3)
    return files


def check_regular(path: Path, what: str = "file") -> int:
    """The size of an ordinary file in bytes; others are refused and not opened: a pipe would wait for ever."""
    with doing(f"read the {what} {shown(path)}", (OSError, ValueError)):
        try:
            found = os.stat(path)
        except FileNotFoundError as error:
            raise MirlibError(f"no such {what}: {shown(path)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise MirlibError(f"cannot read the {what} {shown(path)}: it is {kind}")
    return found.st_size


@contextmanager
def leaving_out(on_unreadable: Unreadable) -> Iterator[None]:
    """Tell ``on_unreadable`` what a `MirlibError` inside the block says, and go on; without it the error stands."""
    try:
        yield
    except MirlibError as error:
        if on_unreadable is None:
            raise
        on_unreadable(str(error))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Image files from files and folders; folders are searched through and through, in sorted order.

    Symbolic links are followed, each file of a folder is taken once, and a warning counts what is passed over: hidden
    files and folders, and files that do not end like an image.

    Raises:
        MirlibError: If a source does not exist or nothing is found.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += _files_in(source, IMAGE_SUFFIXES, "images")
        else:
            check_regular(source, "file or folder")
            found.append(source)
    return found


def load_image(source: Any) -> Image.Image:
    """An RGB image from a path, a PIL image or an (h, w[, 3 or 4]) uint8 array.

    Transparency is laid on white. The image is turned the way the camera was held, and of an animation it is the first
    frame. 16 bits are scaled to 8; 32-bit integers are taken for 8 bits where none is above 255, and for 16 where none
    is above 65535.

    Raises:
        MirlibError: If the file cannot be read whole, is no picture of a usual format, or has more than 134 million
            pixels (67 of WebP and JPEG 2000); the message names it.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise MirlibError(f"image array: expected uint8 from 0 to 255, got {source.dtype}")
        if source.ndim != 2 and (source.ndim != 3 or source.shape[2] not in (3, 4)):
            raise MirlibError(f"image array: expected shape (h, w), (h, w, 3) or (h, w, 4), got {source.shape}")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        name = shown(Path(os.fsdecode(getattr(source, "filename", "") or "in memory")))
        with doing(f"read the image {name}", Exception):
            return _as_rgb(source, name)
    if not isinstance(source, (str, Path)):
        raise MirlibError(f"expected the path of an image, a PIL image or an array, got {type(source).__name__}")
    name = shown(Path(source))
    if check_regular(Path(source), "image") > MOST_BYTES:
        raise MirlibError(f"image {name}: more than {MOST_BYTES >> 30} GiB")
    with doing(f"read the image {name}", Exception), _opened(source) as image:
        return _as_rgb(image, name)


def _opened(source: str | Path | IO[bytes]) -> Image.Image:
    """What Pillow makes of a file's first bytes; its readers of formats may raise anything."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is MOST_PIXELS
        try:
            return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            raise ValueError(f"it is no picture of the formats {', '.join(FORMATS)}") from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise MirlibError(f"image {name} has no pixels: its size is {image.size}")
    most = MOST_PIXELS // 2 if image.format in HEAVY else MOST_PIXELS
    if image.width * image.height > most:
        raise MirlibError(
            f"image {name} has {image.width} × {image.height} pixels, and the most that are read are "
            f"{most // 10**6} million: make it smaller"
        )
    transparent = _transparent(image)
    image.load()
    if image.mode == "F":
        raise MirlibError(f"image {name} has floating-point pixels without a known range; store it with 8 bits")
    divisor = _divisor(image, name)
    found = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):  # in strips, so that a large picture is not held in four forms at once
        strip = image.crop((0, top, image.width, min(top + 256, image.height)))
        found.paste(_strip_as_rgb(strip, divisor, transparent), (0, top))
    with suppress(Exception):  # broken EXIF spoils no picture
        if image.getexif().get(ORIENTATION) in range(2, 9):
            found.getexif()[ORIENTATION] = image.getexif()[ORIENTATION]
            return ImageOps.exif_transpose(found)
    return found


def _transparent(image: Image.Image) -> Any:
    """The colour that is transparent, in the levels that Pillow decodes: of a PNG it gives those of the file."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and image.tile:
        return transparent and transparent * {"L;2": 85, "L;4": 17}.get(image.tile[0].args, 1)
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        return tuple(level >> 8 for level in transparent)  # of 16 bits Pillow keeps the upper 8
    return transparent


def _divisor(image: Image.Image, name: str) -> int:
    """What takes the pixels of an image of integers to 0 to 255."""
    if image.mode != "I":
        return 257  # 16 bits, where there is one channel of more than 8
    lowest, highest = image.getextrema()
    if lowest < 0 or highest > 65535:
        raise MirlibError(
            f"image {name} has 32-bit pixels from {lowest} to {highest}, of which it does not say what is black and "
            "what is white; store it with 8 or 16 bits"
        )
    # PNG and PPM have no more than 16 bits, and older versions of Pillow read those into 32.
    return 1 if highest < 256 and image.format not in ("PNG", "PPM") else 257


def _strip_as_rgb(strip: Image.Image, divisor: int, transparent: Any) -> Image.Image:
    if strip.mode.startswith("I"):  # Pillow's own conversion would clip all but the darkest 256 levels
        levels = np.asarray(strip).astype(np.int64)
        eight_bits = (levels + divisor // 2) // divisor
        if transparent is not None:
            eight_bits[levels == transparent] = 255
        return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
    if transparent is not None:
        strip.info["transparency"] = transparent
    if strip.mode in ("RGBa", "La"):  # premultiplied
        strip = strip.convert({"RGBa": "RGBA", "La": "LA"}[strip.mode])
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    return strip.convert("RGB")


def text_of(data: bytes, name: str) -> str:
    """The text in the bytes, without the mark that some editors put at the start; refused if it is no UTF-8 text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MirlibError(f"{name}: not UTF-8 text: it is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise MirlibError(f"{name}: not UTF-8 text (byte {error.start}): {error.reason}; store it as UTF-8") from error
    if "\0" in text:
        raise MirlibError(f"{name}: not UTF-8 text: it holds a zero byte")
    return text


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file that are not blank, each with its number from 1; None for one of more than 16 MiB."""
    check_regular(path)
    with doing(f"read {shown(path)}"), path.open("rb") as file:
        number = 0
        while read := file.readline(LONGEST_LINE):
            lines: list[bytes | None] = [*read.splitlines()]
            while len(read) == LONGEST_LINE and not read.endswith(b"\n"):
                read, lines = file.readline(LONGEST_LINE), [None]
            for line in lines:
                number += 1
                if line is None or line.decode("utf-8-sig", errors="replace").strip():
                    yield number, line


def text_of_line(line: bytes | None, name: str) -> str:
    """The text of a line of `lines_of`; a `MirlibError` if it is too long or not UTF-8."""
    if line is None:
        raise MirlibError(f"{name}: the line has more than {LONGEST_LINE >> 20} MiB")
    return text_of(line, name)


def _text_of_file(path: Path) -> str:
    if check_regular(path, "text") > LONGEST_LINE:
        raise MirlibError(f"{shown(path)}: the text has more than {LONGEST_LINE >> 20} MiB")
    with doing(f"read the text {shown(path)}"):
        text = text_of(path.read_bytes(), shown(path))
    text = (text.split("@highlight")[0] if path.suffix.lower() == ".story" else text).strip()
    if not text:
        raise MirlibError(f"{shown(path)}: the text is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_binary(path: Path) -> None:
    """A file of another kind must not become texts where its lines happen to be characters; one bad line may stand."""
    with doing(f"read the text {shown(path)}"), path.open("rb") as file:
        start = file.read(4096)
    if start.count(0) >= 8 and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MirlibError(f"{shown(path)}: it is full of zero bytes, so it is no file of texts; what program wrote it?")


def read_texts(source: str | Path, on_unreadable: Unreadable = None) -> list[str]:
    """Texts from a folder (one a file, found as by `find_images`) or from a UTF-8 file (one a line), stripped.

    ``.story`` files, the format of CNN/DailyMail, end at their first ``@highlight``; blank lines are no texts.

    Args:
        source: A folder with ``.txt``, ``.md``, ``.text`` or ``.story`` files, or one text file.
        on_unreadable: Called with a sentence for each text that is empty or undecodable, which is then left out;
            without it the first one is an error.

    Raises:
        MirlibError: If the source does not exist, holds no texts, or holds an unreadable one.
    """
    source = Path(source)
    if source.is_dir():
        files = _files_in(source, TEXT_SUFFIXES, "texts")
        readers = ((shown(path), partial(_text_of_file, path)) for path in files)
    else:
        check_regular(source, "file or folder")
        _refuse_binary(source)
        names = ((f"{shown(source)}, line {number}", line) for number, line in lines_of(source))
        readers = ((name, partial(text_of_line, line, name)) for name, line in names)
    texts: list[str] = []
    for name, read in readers:
        with leaving_out(on_unreadable):
            texts.append(Named(read(), name))
    if not texts:
        raise MirlibError(f"no texts in {shown(source)} (a folder of text files, or one text a line)")
    return texts


def draw(
    items: Sequence[Any], num: int, seed: int, what: str, usable: Callable[[Any], bool] | None = None
) -> list[int]:
    """Indices of ``num`` of the items in a random order fixed by the seed, skipping those that are not usable."""
    chosen: list[int] = []
    for index in random_stream(seed).permutation(len(items)).tolist():
        if len(chosen) == num:
            break
        if usable is None or usable(items[index]):
            chosen.append(index)
    if len(chosen) < num:
        readable = "" if len(chosen) == len(items) else f", {len(chosen)} of them usable"
        raise MirlibError(f"{num} {what} were asked for, there are {len(items)}{readable}; lower num (--num)")
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# What a value of a record, a table or a shard is as an image or as a text

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
    """A sequence of items that are read when they are asked for: ``read(key)`` of each key."""

    def __init__(self, keys: Sequence[Any], read: Callable[[Any], Any]) -> None:
        self._keys, self._read = keys, read

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        found = self._keys[index]
        return Items(found, self._read) if isinstance(index, slice) else self._read(found)


def some(items: Sequence[Any], what: str, name: str, alone: int = 0) -> Sequence[Any]:
    """The items; a `MirlibError` if there are none. A warning says how many of text alone were passed over."""
    passed = f"passed over {alone} of text alone"
    if not items:
        raise MirlibError(f"no {what} in {name}{f' ({passed})' if alone else ''}")
    if alone:
        warnings.warn(f"{name}: {len(items)} {what}; {passed}", stacklevel=5)
    return items


def listed(names: Iterable[Any]) -> str:
    """Names as a message lists them."""
    names = list(names)
    return ", ".join(shown(name) for name in names[:20]) + (", …" if len(names) > 20 else "") or "none"


def refuse_remote(value: str, name: str) -> None:
    """Nothing is fetched because a file or an option says so."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise MirlibError(f"{name}: {shown(value)} is an address, and nothing is fetched; name a file on this machine")


def field_of(given: str | None, usual: Sequence[str], there: Iterable[str], what: str, name: str) -> str:
    """The field that holds the images or the texts; a `MirlibError` if there is none."""
    there = list(there)
    if given is not None:
        if given not in there:
            raise MirlibError(f"{name}: there is no field {shown(given)!r}; there is {listed(there)}")
        return given
    found = next((candidate for candidate in usual if candidate in there), None)
    if found is None:
        kind = what.removesuffix("s")
        raise MirlibError(
            f"{name}: which field holds the {what}? There is {listed(there)}; name one with {kind}_field "
            f"(--{kind}-field)"
        )
    return found


def image_of(data: bytes, name: str) -> Image.Image:
    """The image in the bytes, decoded when it is used; messages call it by ``name``."""
    with doing(f"read the image {name}", Exception):
        image = _opened(io.BytesIO(data))
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
    """What `image_in` found: the path of an image in the first folder that has it, or the picture in its bytes."""
    if isinstance(image, bytes):
        return image_of(image, name)
    for written in dict.fromkeys((image, image.replace("\\", "/"))):  # the second for paths of Windows
        for folder in folders:
            if os.path.exists(folder / written):
                return folder / written
    if os.path.isabs(image) or re.match(r"[A-Za-z]:[\\/]", image):
        advice = "the path is absolute; make it relative to a folder, and name that with image_root, --image-root"
    else:
        advice = f"looked in {' and '.join(map(shown, folders))}; image_root, --image-root, names another folder"
    raise MirlibError(f"{name}: no such image: {shown(image)} ({advice})")


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
