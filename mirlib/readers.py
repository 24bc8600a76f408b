"""Images, texts and pairs from where you keep them, read when their turn comes.

One call for each kind of source::

    open_images(["photos/"])                     a folder, or image files
    open_images(["shards/{000..009}.tar"])       WebDataset shards
    open_images(["hf:lmms-lab/textvqa"])         a Hugging Face dataset, here TextVQA
    open_texts("hf:abisee/cnn_dailymail")        CNN/DailyMail
    open_texts("texts.txt")                      one text a line, or a folder with one a file
    open_pairs("pairs.jsonl")                    a JSON object a line, with an image path and its text

Each returns sequences that `mirlib.score` takes. The order of the items is fixed by the source, so that a seed draws
the same ones every time; what cannot be read is an error that names the file, the line, the key or the row.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mirlib.data import IMAGE_SUFFIXES, find_images, random_stream, read_texts
from mirlib.errors import MirlibError, first_line

__all__ = ["Items", "Pairs", "open_images", "open_pairs", "open_texts", "part_of"]

Unreadable = Callable[[str], None] | None

IMAGE_FIELDS = ("image", "image_path", "img", "jpg", "png", "file_name", "filename", "path")
TEXT_FIELDS = ("text", "caption", "article", "question", "sentence", "txt")
JSON_LINES = frozenset((".jsonl", ".ndjson"))
HUB = "hf:"


class Pairs(NamedTuple):
    """Images and the texts that belong to them: ``texts[i]`` to ``images[i]``. `mirlib.score` takes them ``paired``."""

    images: Sequence[Any]
    texts: Sequence[str]


class Items(Sequence[Any]):
    """A sequence whose items are read when they are asked for.

    Args:
        count: How many there are.
        read: Takes the number of an item, from 0, and returns it.
    """

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


def open_images(
    sources: str | Path | Iterable[str | Path], *, image_field: str | None = None, on_unreadable: Unreadable = None
) -> Sequence[Any]:
    """Images of one or more sources, one source after the other.

    Args:
        sources: Image files; folders, searched through and through; WebDataset shards (``.tar``, with ``{000..009}``
            for a range of them, or a folder of them); a JSON Lines file with image paths; ``.parquet`` files, or a
            folder of them; ``hf:NAME``, ``hf:NAME@CONFIG`` or ``hf:NAME@CONFIG:SPLIT`` for a Hugging Face dataset on
            the hub or in a folder. Of a dataset with an ``image_id`` each image is taken once: TextVQA asks several
            questions about one.
        image_field: The field, the column or (in shards) the ending of the images. Left out, the one that holds images,
            or the first of ``image``, ``image_path``, ``img``, ``jpg``, ``png``, ``file_name``, ``filename``, ``path``.
        on_unreadable: Called with a sentence for each line, key or shard that cannot be read, which is then left out;
            without it the first one is an error. Whether an image itself can be read, shows when it is.

    Returns:
        Paths, and images that are read when they are asked for.

    Raises:
        MirlibError: If a source does not exist, holds no images, or cannot be read.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    parts: list[Sequence[Any]] = []
    for source in sources:
        reader = _reader(source, on_unreadable)
        parts.append(find_images([source]) if reader is None else reader.images(image_field))
    return parts[0] if len(parts) == 1 else _joined(parts)


def open_texts(source: str | Path, *, text_field: str | None = None, on_unreadable: Unreadable = None) -> Sequence[str]:
    """Texts of a source.

    Args:
        source: A text file with one text a line, or a folder with one a file; or shards, JSON Lines, ``.parquet`` files
            or ``hf:NAME`` as for `open_images`. In shards a text is the member ``.txt`` of a key, or a field of its
            ``.json``.
        text_field: The field, the column or the ending of the texts. Left out, the first of ``text``, ``caption``,
            ``article``, ``question``, ``sentence``, ``txt``.
        on_unreadable: As for `open_images`.

    Returns:
        The texts, those of shards and datasets read when they are asked for.

    Raises:
        MirlibError: If the source does not exist, holds no texts, or cannot be read.
    """
    reader = _reader(source, on_unreadable)
    return read_texts(source, on_unreadable) if reader is None else reader.texts(text_field)


def open_pairs(
    source: str | Path,
    *,
    image_field: str | None = None,
    text_field: str | None = None,
    on_unreadable: Unreadable = None,
) -> Pairs:
    """Images with the texts that belong to them.

    Args:
        source: A JSON Lines file (an object a line; image paths are relative to the file), WebDataset shards,
            ``.parquet`` files or ``hf:NAME``, as for `open_images`.
        image_field: As for `open_images`.
        text_field: As for `open_texts`.
        on_unreadable: As for `open_images`.

    Raises:
        MirlibError: If the source does not exist, holds no pairs, or cannot be read.
    """
    reader = _reader(source, on_unreadable)
    if reader is None:
        raise MirlibError(
            f"{source}: pairs are read from JSON Lines (.jsonl), WebDataset shards (.tar), .parquet files and hf:NAME; "
            "separate images and texts are not paired"
        )
    return reader.pairs(image_field, text_field)


def part_of(items: Sequence[Any], number: int, parts: int, *, seed: int = 0) -> Items:
    """One of so many parts that have no item in common, for measurements that are repeated on other data.

    Args:
        items: What to divide.
        number: Which part, from 1.
        parts: How many parts there are. Their sizes differ by at most one.
        seed: How the items are shuffled before they are divided. Sequences of one length are divided alike, so that
            images and the texts that belong to them stay together.

    Raises:
        MirlibError: If there is no such part.

    Examples:
        >>> halves = [set(part_of(range(5), number, 2)) for number in (1, 2)]
        >>> len(halves[0]), len(halves[1]), halves[0] & halves[1]
        (3, 2, set())
    """
    if not 1 <= number <= parts:
        raise MirlibError(f"part {number} of {parts}: parts are numbered from 1 to their number")
    chosen = random_stream(seed, 3).permutation(len(items))[number - 1 :: parts].tolist()
    return Items(len(chosen), lambda i: items[chosen[i]])


def _reader(source: str | Path, on_unreadable: Unreadable) -> _JsonLines | _Shards | _Dataset | None:
    """What reads the source; None for plain files and folders of them."""
    name = str(source)
    if name.startswith(HUB):
        return _Dataset.named(name)
    path = Path(source)
    if path.suffix.lower() in JSON_LINES:
        return _JsonLines(path, on_unreadable)
    if re.search(r"\.(tar\.\w+|tgz)$", name, re.IGNORECASE):
        raise MirlibError(f"{name}: a compressed archive cannot be read key by key; unpack it to a .tar")
    if path.suffix.lower() == ".tar":
        return _Shards(list(_expanded(name)), on_unreadable)
    if path.suffix.lower() == ".parquet":
        return _Dataset.of_parquet([path])
    if path.is_dir():
        for suffix, make in ((".tar", lambda found: _Shards(found, on_unreadable)), (".parquet", _Dataset.of_parquet)):
            files = sorted(path.rglob(f"*{suffix}"))
            if files and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.rglob("*")):
                return make(files)
    return None


def _joined(parts: list[Sequence[Any]]) -> Items:
    ends = list(accumulate(len(part) for part in parts))

    def read(index: int) -> Any:
        number = bisect_right(ends, index)
        return parts[number][index - (ends[number - 1] if number else 0)]

    return Items(ends[-1] if ends else 0, read)


def _image_of(data: bytes, name: str) -> Image.Image:
    """The image in the bytes, decoded when it is used; messages call it by ``name``."""
    try:
        image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise MirlibError(f"cannot read the image {name}: {reason}") from error
    image.filename = name
    return image


def _text_of(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise MirlibError(f"{name}: not UTF-8 text (byte {error.start}): {error.reason}") from error


def _as_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise MirlibError(f"{name}: expected a text, got {type(value).__name__}")
    return value.strip()


def _field(given: str | None, usual: Sequence[str], there: Iterable[str], what: str, option: str, name: str) -> str:
    """The field that holds the images or the texts."""
    there = list(there)
    if given is not None:
        if given not in there:
            raise MirlibError(f"{name}: there is no field {given!r}; there is {', '.join(there) or 'none'}")
        return given
    found = next((candidate for candidate in usual if candidate in there), None)
    if found is None:
        raise MirlibError(
            f"{name}: which field holds the {what}? There is {', '.join(there) or 'none'}; name one with {option} "
            f"(--{option.replace('_', '-')})"
        )
    return found


def _some(items: Sequence[Any], what: str, name: str) -> Sequence[Any]:
    if not items:
        raise MirlibError(f"no {what} in {name}")
    return items


# ---------------------------------------------------------------------------------------------------------------------
# JSON Lines


class _JsonLines:
    """A file with a JSON object a line."""

    def __init__(self, path: Path, on_unreadable: Unreadable) -> None:
        self.path, self.on_unreadable = path, on_unreadable
        if not path.is_file():
            raise MirlibError(f"no such file: {path}")

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each object with the name of its line."""
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise MirlibError(f"cannot read {self.path}: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            name = f"{self.path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(_text_of(line, name))
                if not isinstance(record, dict):
                    raise MirlibError(f"{name}: expected a JSON object, got {type(record).__name__}")
            except (json.JSONDecodeError, RecursionError) as error:
                self._refuse(MirlibError(f"{name}: not JSON ({error})"))
                continue
            except MirlibError as error:
                self._refuse(error)
                continue
            yield name, record

    def _refuse(self, error: MirlibError) -> None:
        if self.on_unreadable is None:
            raise error
        self.on_unreadable(str(error))

    def _read(self, *wanted: tuple[str | None, Sequence[str], str, str, Callable[[Any, str], Any]]) -> list[list[Any]]:
        """The values of some fields in all lines that have them; the first line says which fields those are."""
        fields: list[str] | None = None
        columns: list[list[Any]] = [[] for _ in wanted]
        for name, record in self._records():
            if fields is None:
                fields = [_field(given, usual, record, what, option, name) for given, usual, what, option, _ in wanted]
            try:
                row = []
                for key, (*_, convert) in zip(fields, wanted, strict=True):
                    if key not in record:
                        raise MirlibError(f"{name}: there is no field {key!r}; there is {', '.join(record)}")
                    row.append(convert(record[key], f"{name}, field {key!r}"))
            except MirlibError as error:
                self._refuse(error)
                continue
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        return columns

    def _path(self, value: Any, name: str) -> Path:
        if not isinstance(value, str) or not value:
            raise MirlibError(f"{name}: expected the path of an image, got {type(value).__name__}")
        return self.path.parent / value

    def images(self, image_field: str | None) -> Sequence[Any]:
        (found,) = self._read((image_field, IMAGE_FIELDS, "images", "image_field", self._path))
        return _some(found, "images", str(self.path))

    def texts(self, text_field: str | None) -> Sequence[str]:
        (found,) = self._read((text_field, TEXT_FIELDS, "texts", "text_field", _as_text))
        return _some(found, "texts", str(self.path))

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        images, texts = self._read(
            (image_field, IMAGE_FIELDS, "images", "image_field", self._path),
            (text_field, TEXT_FIELDS, "texts", "text_field", _as_text),
        )
        return Pairs(_some(images, "pairs", str(self.path)), texts)


# ---------------------------------------------------------------------------------------------------------------------
# WebDataset shards


def _expanded(name: str) -> Iterator[Path]:
    """``shard-{000..002}.tar`` as its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        yield Path(name)
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise MirlibError(f"{name}: the range {match[0]} runs backwards")
    for number in range(int(first), int(last) + 1):
        yield from _expanded(name[: match.start()] + str(number).zfill(len(first)) + name[match.end() :])


class _Member(NamedTuple):
    """Where a member's bytes lie: the archive is not compressed, so they can be read without going through it."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise MirlibError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class _Sample:
    """The members of a shard that share a key, by their ending."""

    name: str
    members: dict[str, _Member] = field(default_factory=dict)

    def image_ending(self, wanted: str | None) -> str | None:
        if wanted is not None:
            return wanted if wanted in self.members else None
        return next((end for end in self.members if f".{end.rsplit('.')[-1]}" in IMAGE_SUFFIXES), None)

    def image(self, wanted: str | None) -> Image.Image:
        ending = self.image_ending(wanted)
        return _image_of(self.members[ending].read(), f"{self.name}.{ending}")

    def text_ending(self, wanted: str | None) -> str | None:
        for ending in TEXT_FIELDS if wanted is None else (wanted,):
            if ending in self.members:
                return ending
        return "json" if "json" in self.members else None

    def text(self, wanted: str | None) -> str:
        ending = self.text_ending(wanted)
        name = f"{self.name}.{ending}"
        text = _text_of(self.members[ending].read(), name)
        if ending != "json" or wanted == "json":
            return text
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise MirlibError(f"{name}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise MirlibError(f"{name}: expected a JSON object, got {type(record).__name__}")
        key = _field(wanted, TEXT_FIELDS, record, "texts", "text_field", name)
        return _as_text(record[key], f"{name}, field {key!r}")


class _Shards:
    """The samples of WebDataset shards, in the order of the shards and of their members."""

    def __init__(self, paths: Sequence[Path], on_unreadable: Unreadable) -> None:
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more shards"
        self.on_unreadable = on_unreadable
        self.samples: list[_Sample] = []
        for path in tqdm(paths, desc="reading the shards", unit="shard", delay=2, leave=False):
            if not path.is_file():
                raise MirlibError(f"no such file: {path}")
            self.samples += self._index(path)

    def _index(self, path: Path) -> Iterable[_Sample]:
        found: dict[str, _Sample] = {}
        length = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    folder, _, base = member.name.removeprefix("./").rpartition("/")
                    stem, dot, ending = base.partition(".")
                    if not member.isfile() or not dot or not stem:
                        continue
                    key = f"{folder}/{stem}" if folder else stem
                    sample = found.setdefault(key, _Sample(f"{path}/{key}"))
                    sample.members[ending.lower()] = _Member(path, member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError) as error:
            self._refuse(f"{path}: the archive is damaged ({error}); {len(found)} keys stand before the damage")
        return found.values()

    def _refuse(self, sentence: str) -> None:
        if self.on_unreadable is None:
            raise MirlibError(sentence)
        self.on_unreadable(sentence)

    def images(self, image_field: str | None) -> Sequence[Any]:
        chosen = [sample for sample in self.samples if sample.image_ending(image_field) is not None]
        self._check_ending(chosen, image_field)
        return Items(len(_some(chosen, "images", self.name)), lambda i: chosen[i].image(image_field))

    def texts(self, text_field: str | None) -> Sequence[str]:
        chosen = [sample for sample in self.samples if sample.text_ending(text_field) is not None]
        self._check_ending(chosen, text_field)
        return Items(len(_some(chosen, "texts", self.name)), lambda i: chosen[i].text(text_field))

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        chosen = []
        for sample in self.samples:
            lacking = [
                what
                for what, ending in (
                    ("image", sample.image_ending(image_field)),
                    ("text", sample.text_ending(text_field)),
                )
                if ending is None
            ]
            if lacking:
                self._refuse(f"{sample.name}: no {' and no '.join(lacking)} (there is {', '.join(sample.members)})")
            else:
                chosen.append(sample)
        count = len(_some(chosen, "pairs", self.name))
        return Pairs(
            Items(count, lambda i: chosen[i].image(image_field)), Items(count, lambda i: chosen[i].text(text_field))
        )

    def _check_ending(self, chosen: list[_Sample], wanted: str | None) -> None:
        if not chosen and wanted is not None and self.samples:
            there = sorted({ending for sample in self.samples for ending in sample.members})
            raise MirlibError(f"{self.name}: no key has a member .{wanted}; there is {', '.join(there)}")


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face datasets


class _Known(NamedTuple):
    """Where a dataset of the paper lies on the hub, and what of it is read unless something else is asked for."""

    name: str
    config: str | None
    split: str


TEXTVQA = _Known("lmms-lab/textvqa", None, "validation")
CNN_DAILYMAIL = _Known("abisee/cnn_dailymail", "3.0.0", "validation")
KNOWN: Mapping[str, _Known] = {
    "textvqa": TEXTVQA,
    "lmms-lab/textvqa": TEXTVQA,
    "facebook/textvqa": TEXTVQA,  # a loading script, which the package no longer runs
    "cnn_dailymail": CNN_DAILYMAIL,
    "cnn/dailymail": CNN_DAILYMAIL,
    "abisee/cnn_dailymail": CNN_DAILYMAIL,
}


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MirlibError(
            "Hugging Face datasets and .parquet files are read by the package datasets, which is not installed: "
            "pip install 'mirlib[datasets]'"
        ) from error
    return datasets


class _Dataset:
    """A table of the package datasets."""

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = table, name

    @classmethod
    def named(cls, source: str) -> _Dataset:
        """``hf:NAME``, ``hf:NAME@CONFIG``, ``hf:NAME:SPLIT`` or ``hf:NAME@CONFIG:SPLIT``."""
        datasets = _datasets()
        rest = source.removeprefix(HUB)
        name, config, split = rest, None, None
        if not Path(rest).exists():
            name, config, split = re.fullmatch(r"(.*?)(?:@([^@:]+))?(?::([^:@/]+))?", rest).groups()
        if not name:
            raise MirlibError(f"{source}: expected hf:NAME, hf:NAME@CONFIG or hf:NAME@CONFIG:SPLIT")
        if not Path(name).exists() and name.lower() in KNOWN:
            known = KNOWN[name.lower()]
            name, config, split = known.name, config or known.config, split or known.split
        try:
            table, split = cls._load(datasets, name, config, split)
        except MirlibError as error:
            raise MirlibError(f"{source}: {error}") from error
        except Exception as error:  # the package's errors, the hub's, and those of the network have no common class
            raise MirlibError(f"{source}: cannot load the dataset ({first_line(error)})") from error
        return cls(table, f"{HUB}{name}" + (f":{split}" if split else ""))

    @classmethod
    def _load(cls, datasets: Any, name: str, config: str | None, split: str | None) -> tuple[Any, str | None]:
        folder = Path(name)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            builder = datasets.load_dataset_builder(name, config)
            files = getattr(builder.config, "data_files", None)
            if files and type(builder).__module__.rpartition(".")[2] == "parquet":
                # By its name the package would fetch the files of all splits: gigabytes, for some hundred images.
                split = cls._split_of(files, split, name)
                return datasets.load_dataset("parquet", data_files={split: list(files[split])}, split=split), split
            found = datasets.load_dataset(name, config)
        if isinstance(found, dict):
            split = cls._split_of(found, split, name)
            return found[split], split
        if split is not None:
            raise MirlibError(f"there is no split {split!r}; it is one table without splits")
        return found, None

    @staticmethod
    def _split_of(splits: Mapping[str, Any], wanted: str | None, name: str) -> str:
        there = [str(split) for split in splits]
        if wanted is None and len(there) == 1:
            return there[0]
        if wanted not in there:
            which = "which split" if wanted is None else f"there is no split {wanted!r}"
            raise MirlibError(f"{which}? There is {', '.join(there)}; write {HUB}{name.removeprefix(HUB)}:SPLIT")
        return wanted

    @classmethod
    def of_parquet(cls, paths: Sequence[Path]) -> _Dataset:
        datasets = _datasets()
        for path in paths:
            if not path.is_file():
                raise MirlibError(f"no such file: {path}")
        name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
        try:
            table = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
        except Exception as error:  # as above, and those of pyarrow
            raise MirlibError(f"cannot read {name}: {first_line(error.__cause__ or error)}") from error
        return cls(table, name)

    def _column(self, name: str) -> Any:
        """The table with this column alone, its images not decoded, since an error then names nothing."""
        datasets = _datasets()
        table = self.table.select_columns([name])
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        return table

    def _images(self, image_field: str | None) -> tuple[Any, str]:
        datasets = _datasets()
        held = [name for name, kind in self.table.features.items() if isinstance(kind, datasets.Image)]
        usual = held if len(held) == 1 else IMAGE_FIELDS
        name = _field(image_field, usual, self.table.column_names, "images", "image_field", self.name)
        return self._column(name), name

    def _image_in(self, table: Any, name: str) -> Callable[[int], Any]:
        def read(row: int) -> Any:
            value, where = table[row][name], f"{self.name}, row {row}"
            if isinstance(value, dict) and value.get("bytes"):
                return _image_of(value["bytes"], where)
            path = value.get("path") if isinstance(value, dict) else value
            if not isinstance(path, str) or not path:
                raise MirlibError(f"{where}: column {name!r} holds no image there")
            return Path(path)

        return read

    def _texts_in(self, text_field: str | None) -> Callable[[int], str]:
        name = _field(text_field, TEXT_FIELDS, self.table.column_names, "texts", "text_field", self.name)
        table = self._column(name)
        return lambda row: _as_text(table[row][name], f"{self.name}, row {row}, column {name!r}")

    def images(self, image_field: str | None) -> Sequence[Any]:
        table, name = self._images(image_field)
        read = self._image_in(table, name)
        rows: Sequence[int] = range(len(self.table))
        if "image_id" in self.table.column_names:
            first: dict[Any, int] = {}
            for row, image_id in enumerate(self.table["image_id"]):
                first.setdefault(image_id, row)
            rows = list(first.values())
        return Items(len(_some(rows, "images", self.name)), lambda i: read(rows[i]))

    def texts(self, text_field: str | None) -> Sequence[str]:
        read = self._texts_in(text_field)
        return Items(len(_some(self.table, "texts", self.name)), read)

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        table, name = self._images(image_field)
        count = len(_some(self.table, "pairs", self.name))
        return Pairs(Items(count, self._image_in(table, name)), Items(count, self._texts_in(text_field)))
