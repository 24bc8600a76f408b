"""Images and texts to measure with: your own files, or photographs, scans and English from installed packages."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mirlib.errors import MirlibError

__all__ = ["Crops", "find_images", "load_image", "read_texts", "sample_images", "sample_texts"]

IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())
TEXT_SUFFIXES = frozenset(".story .txt .md .text".split())
# Which pictures of scikit-image (sk) and scikit-learn (skl) are photographs, and which are scanned pages.
PICTURES = {
    "photograph": (
        ("sk", "astronaut"),
        ("sk", "chelsea"),
        ("sk", "coffee"),
        ("sk", "rocket"),
        ("skl", "china.jpg"),
        ("skl", "flower.jpg"),
    ),
    "scan": (("sk", "page"), ("sk", "text")),
}


def random_stream(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers of a seed of the user's; the same seed has other numbers in every other stream.

    Raises:
        MirlibError: If `seed` is negative.
    """
    if seed < 0:
        raise MirlibError(f"seed (--seed) must be at least 0, got {seed}")
    return np.random.default_rng([seed, *stream] if stream else seed)


@cache
def _picture(package: str, name: str) -> Image.Image:
    if package == "sk":
        from skimage import data

        return Image.fromarray(getattr(data, name)()).convert("RGB")
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name)).convert("RGB")


class _Crop(NamedTuple):
    kind: str
    package: str
    name: str
    left: int
    top: int
    side: int


class Crops(Sequence[Image.Image]):
    """Crops of pictures, each cut when it is asked for, so that a thousand of them take no memory."""

    def __init__(self, crops: Sequence[_Crop]) -> None:
        self._crops = crops

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Crops(self._crops[index])
        kind, package, name, left, top, side = self._crops[index]
        crop = _picture(package, name).crop((left, top, left + side, top + side))
        crop.info["source"] = f"{kind} {name.removesuffix('.jpg')} at ({left}, {top}), {side} px"
        return crop


def sample_images(num: int = 100, seed: int = 0, kind: str = "any") -> Crops:
    """Crops of real pictures that scikit-image and scikit-learn install: photographs and scanned pages.

    Args:
        num: How many.
        seed: Which crops. The first ``n`` of ``num`` are the same for every ``num``.
        kind: ``"photograph"``, ``"scan"``, or ``"any"`` for three photographs to one scan.

    Returns:
        A sequence of square RGB images, 96 to 256 pixels wide; each carries ``info["source"]``.

    Raises:
        MirlibError: If the kind is unknown.
    """
    if kind not in (*PICTURES, "any"):
        raise MirlibError(f"unknown kind of picture {kind!r}; choose one of {', '.join(PICTURES)}, any")
    generator = random_stream(seed, 1)
    crops = []
    for number in range(num):
        chosen = ("scan" if number % 4 == 3 else "photograph") if kind == "any" else kind
        package, name = PICTURES[chosen][generator.integers(len(PICTURES[chosen]))]
        picture = _picture(package, name)
        side = int(generator.integers(96, min(256, *picture.size) + 1))
        left = int(generator.integers(picture.width - side + 1))
        top = int(generator.integers(picture.height - side + 1))
        crops.append(_Crop(chosen, package, name, left, top, side))
    return Crops(crops)


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
    """Paragraphs of real English: the documentation topics that come with Python.

    Args:
        num: How many.
        seed: Which paragraphs, without repetition. The first ``n`` of ``num`` are the same for every ``num``.

    Returns:
        Texts of 8 to 120 words. They differ a little between versions of Python.

    Raises:
        MirlibError: If there are fewer than ``num``.
    """
    paragraphs = _paragraphs()
    if num > len(paragraphs):
        raise MirlibError(f"Python's documentation topics hold {len(paragraphs)} paragraphs, {num} were asked for")
    order = random_stream(seed, 2).permutation(len(paragraphs))
    return [paragraphs[i] for i in order[:num]]


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Image files from files and folders; folders are searched through and through, in sorted order.

    Raises:
        MirlibError: If a source does not exist or nothing is found.
    """
    found: list[Path] = []
    sources = [Path(source) for source in sources]
    for source in sources:
        if source.is_dir():
            found += sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
        elif source.is_file():
            found.append(source)
        else:
            raise MirlibError(f"no such file or folder: {source}")
    if not found:
        raise MirlibError(
            f"no images in {', '.join(map(str, sources))} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return found


def load_image(source: Any) -> Image.Image:
    """An RGB image from a path, a PIL image or an (h, w[, 3]) uint8 array.

    Raises:
        MirlibError: If the file cannot be read whole; the message names it.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise MirlibError(f"image array: expected uint8 from 0 to 255, got {source.dtype}")
        if source.ndim != 2 and (source.ndim != 3 or source.shape[2] not in (3, 4)):
            raise MirlibError(f"image array: expected shape (h, w), (h, w, 3) or (h, w, 4), got {source.shape}")
        source = Image.fromarray(source)
    if not isinstance(source, (str, Path, Image.Image)):
        raise MirlibError(f"expected the path of an image, a PIL image or an array, got {type(source).__name__}")
    name = (getattr(source, "filename", "") or "in memory") if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _as_rgb(source, name)
        with Image.open(source) as image:
            return _as_rgb(image, name)
    except MirlibError:
        raise
    except FileNotFoundError as error:
        raise MirlibError(f"no such image: {name}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MirlibError(f"cannot read the image {name}: {error}") from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    """Eight bits a channel, turned the way the camera was held."""
    if 0 in image.size:
        raise MirlibError(f"image {name} has no pixels: its size is {image.size}")
    if image.mode == "F":
        raise MirlibError(f"image {name} has floating-point pixels without a known range; store it with 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip all but the darkest 256 levels
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that some editors put at the start
    except UnicodeDecodeError as error:
        raise MirlibError(f"{path}: not UTF-8 text (byte {error.start}): {error.reason}") from error
    except OSError as error:
        raise MirlibError(f"cannot read the text {path}: {error}") from error


def _read_lines(path: Path, on_unreadable: Callable[[str], None] | None) -> list[str]:
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise MirlibError(f"cannot read the text {path}: {error}") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            sentence = f"{path}, line {number}: not UTF-8 text (byte {error.start}): {error.reason}"
            if on_unreadable is None:
                raise MirlibError(sentence) from error
            on_unreadable(sentence)
            continue
        if text:
            texts.append(text)
    return texts


def read_texts(source: str | Path, on_unreadable: Callable[[str], None] | None = None) -> list[str]:
    """Texts from a folder (one a file) or from a file (one a line).

    ``.story`` files, the format of CNN/DailyMail, end at their first ``@highlight``.

    Args:
        source: A folder with ``.txt``, ``.md``, ``.text`` or ``.story`` files, or one UTF-8 text file.
        on_unreadable: Called with a sentence for each text that is empty or undecodable, which is then left out;
            without it the first one is an error.

    Returns:
        The texts, stripped, in sorted order of the files or the order of the lines. Blank lines separate, they are no
        texts.

    Raises:
        MirlibError: If the source does not exist, holds no texts, or holds an unreadable one.
    """
    source = Path(source)
    if source.is_file():
        texts = _read_lines(source, on_unreadable)
    elif source.is_dir():
        texts = []
        for path in sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in TEXT_SUFFIXES):
            try:
                text = _read_text(path)
                text = (text.split("@highlight")[0] if path.suffix.lower() == ".story" else text).strip()
                if not text:
                    raise MirlibError(f"{path}: the text is empty")
            except MirlibError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(str(error))
                continue
            texts.append(text)
    else:
        raise MirlibError(f"no such file or folder: {source}")
    if not texts:
        raise MirlibError(f"no texts in {source} (a folder of {', '.join(sorted(TEXT_SUFFIXES))}, or one text a line)")
    return texts


def draw(
    items: Sequence[Any], num: int, seed: int, what: str, usable: Callable[[Any], bool] | None = None
) -> list[int]:
    """Indices of ``num`` of the items in a random order fixed by the seed, skipping those that are not usable.

    Raises:
        MirlibError: If there are fewer than ``num``; the message says how many there are.
    """
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
