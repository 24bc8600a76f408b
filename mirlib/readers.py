"""Images, texts and pairs from where you keep them, read when their turn comes.

One call for each kind of source::

    open_images(["photos/"])                a folder, or image files
    open_images(["shards/{000..009}.tar"])  WebDataset shards
    open_images(["hf:lmms-lab/textvqa"])    a Hugging Face dataset: TextVQA
    open_texts("hf:abisee/cnn_dailymail")   CNN/DailyMail
    open_texts("texts.txt")                 a text a line, or a folder of files
    open_pairs("pairs.jsonl")               objects with an image and its text

Each returns sequences that `mirlib.score` takes, in an order that the source fixes, so that a seed draws the same
items.
"""

from __future__ import annotations

import re
import tarfile
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from mirlib import data
from mirlib.data import TEXT_FIELDS, Items, Named, Pairs, Unreadable
from mirlib.errors import MirlibError, doing, first_line, shown
from mirlib.records import CSV, JSON, Records, json_of, layout_of
from mirlib.tables import HUB, ParquetRows, Table, files_of, named

__all__ = ["Items", "Pairs", "open_images", "open_pairs", "open_texts"]

COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1A|\xfd7zXZ|\x28\xb5\x2f\xfd|PK\x03\x04")  # gzip, bzip2, xz, zstd, zip
MOST_SHARDS = 100_000  # that one {000..009} stands for


def open_images(
    sources: str | Path | Iterable[str | Path],
    *,
    image_field: str | None = None,
    image_root: str | Path | None = None,
    on_unreadable: Unreadable = None,
) -> Sequence[Any]:
    """Images of one or more sources, one source after the other.

    Args:
        sources: Image files; folders, searched through and through; WebDataset shards (``.tar``, with ``{000..009}``
            for a range of them, or a folder of them); a file of records with image paths (``.jsonl``, ``.json``,
            ``.csv``, ``.tsv``); ``.parquet`` files, or a folder of them; ``hf:NAME``, ``hf:NAME@CONFIG`` or
            ``hf:NAME@CONFIG:SPLIT`` for a Hugging Face dataset on the hub or in a folder. Each path of a file of
            records is taken once, and so is each image of a table with an ``image_id``.
        image_field: The field, the column or (in shards) the ending of the images. Left out, the one that holds images,
            or the first of ``image``, ``image_path``, ``img``, ``jpg``, ``png``, ``file_name``, ``filename``, ``path``,
            ``images``.
        image_root: The folder that paths in records and tables are relative to. Left out, the folder of the file, and
            the folder ``images`` in it.
        on_unreadable: Called with a sentence for each record, key, shard or table that cannot be read, which is then
            left out; without it the first one is an error. Whether an image itself can be read, shows when it is.

    Returns:
        Paths, and images that are read when they are asked for.

    Raises:
        MirlibError: If a source does not exist, holds no images, or cannot be read.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    readers = [_reader(source, on_unreadable, image_root) for source in sources]
    _check_root(readers, image_root)
    _check_field("image", image_field, readers)
    parts: list[Sequence[Any]] = [
        data.find_images([source]) if reader is None else reader.images(image_field)
        for source, reader in zip(sources, readers, strict=True)
    ]
    return parts[0] if len(parts) == 1 else _joined(parts)


def open_texts(source: str | Path, *, text_field: str | None = None, on_unreadable: Unreadable = None) -> Sequence[str]:
    """Texts of a source, each of which knows its file and line, key or row.

    Args:
        source: A text file with one text a line, or a folder with one a file; or shards (the member ``.txt`` of a key,
            or a field of its ``.json``), a file of records, ``.parquet`` files or ``hf:NAME`` as for `open_images`. A
            file that holds JSON is read as such, whatever it is called.
        text_field: The field, the column or the ending of the texts. Left out, the first of ``text``, ``caption``,
            ``article``, ``question``, ``sentence``, ``txt``, ``conversations``, ``messages``. Of a list of texts the
            first is taken, and of a conversation the first answer of the model (``gpt``, ``assistant``,
            ``model``), without ``<image>``.
        on_unreadable: As for `open_images`.

    Raises:
        MirlibError: If the source does not exist, holds no texts, or cannot be read.
    """
    reader = _reader(source, on_unreadable)
    _check_field("text", text_field, [reader])
    return data.read_texts(source, on_unreadable) if reader is None else reader.texts(text_field)


def open_pairs(
    source: str | Path,
    *,
    image_field: str | None = None,
    text_field: str | None = None,
    image_root: str | Path | None = None,
    on_unreadable: Unreadable = None,
) -> Pairs:
    """Images with the texts that belong to them.

    Args:
        source: A file of records with the path of an image and a text, WebDataset shards, ``.parquet`` files or
            ``hf:NAME``, as for `open_images`. A record is a line of JSON Lines, an object of a JSON array or of the one
            list in a JSON object, an annotation of COCO, or a row of CSV or TSV below its header. The training data of
            LLaVA and ShareGPT4V are such files; their records without an image are passed over, and a warning counts
            them.
        image_field: As for `open_images`.
        text_field: As for `open_texts`.
        image_root: As for `open_images`.
        on_unreadable: As for `open_images`.

    Raises:
        MirlibError: If the source does not exist, holds no pairs, or cannot be read.
    """
    reader = _reader(source, on_unreadable, image_root)
    if reader is None:
        raise MirlibError(
            f"{shown(Path(source))}: pairs are read from JSON Lines (.jsonl), JSON, CSV and TSV files, WebDataset "
            "shards (.tar), .parquet files and hf:NAME; separate images and texts are not paired"
        )
    _check_root([reader], image_root)
    return reader.pairs(image_field, text_field)


def _reader(
    source: str | Path, on_unreadable: Unreadable, image_root: str | Path | None = None
) -> Records | _Shards | Table | None:
    """What reads the source; None for plain files and folders of them."""
    name, path = str(source), Path(source)
    suffix = path.suffix.lower()
    if name.startswith(HUB):
        return named(name, image_root, on_unreadable)
    data.refuse_remote(name, "source")
    if suffix == ".parquet":
        return Table(ParquetRows([path], image_root, on_unreadable))
    if path.is_dir():
        found, _ = data.walk(path, data.IMAGE_SUFFIXES | {".tar", ".parquet"})
        tables, shards = ([file for file in found if file.suffix.lower() == end] for end in (".parquet", ".tar"))
        pictures = len(found) - len(tables) - len(shards)
        table = Table(ParquetRows(files_of(path, tables), image_root, on_unreadable)) if tables else None
        if table is not None and (not pictures or table.is_of_samples()):
            if pictures:  # those beside the files of a dataset: a teaser, a logo
                warnings.warn(f"{shown(path)}: took the .parquet files; images passed over: {pictures}", stacklevel=3)
            return table
        return _Shards(shards, on_unreadable) if shards and not pictures else None
    if re.search(r"\.(tar\.\w+|tgz)$", name, re.IGNORECASE):
        raise MirlibError(f"{shown(path)}: a compressed archive cannot be read key by key; unpack it to a .tar")
    if suffix == ".tar":
        return _Shards(list(_expanded(name)), on_unreadable)
    if suffix in JSON | CSV or (path.is_file() and suffix not in data.IMAGE_SUFFIXES):
        layout = layout_of(path)
        return layout and Records(path, layout, on_unreadable, image_root)
    return None


def _check_root(readers: Iterable[Any], image_root: str | Path | None) -> None:
    if image_root is not None and not any(isinstance(reader, (Records, Table)) for reader in readers):
        raise MirlibError("image_root (--image-root) is for paths in files of records and tables, and there are none")


def _check_field(kind: str, field: str | None, readers: Iterable[Any]) -> None:
    if field is not None and all(reader is None for reader in readers):
        raise MirlibError(f"{kind}_field (--{kind}-field) is for records, tables and shards, and there are none")


def _joined(parts: list[Sequence[Any]]) -> Items:
    starts = list(accumulate(map(len, parts), initial=0))

    def read(index: int) -> Any:
        number = bisect_right(starts, index) - 1
        return parts[number][index - starts[number]]

    return Items(range(starts[-1]), read)


# ---------------------------------------------------------------------------------------------------------------------
# WebDataset shards


def _expanded(name: str) -> Iterator[Path]:
    """``shard-{000..002}.tar`` as its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        yield Path(name)
        return
    first, last = match.groups()
    if len(first) > 9 or len(last) > 9 or int(last) - int(first) >= MOST_SHARDS:
        raise MirlibError(f"{shown(Path(name))}: the range {shown(match[0])} is of more than {MOST_SHARDS} shards")
    if int(first) > int(last):
        raise MirlibError(f"{shown(Path(name))}: the range {match[0]} runs backwards")
    for number in range(int(first), int(last) + 1):
        yield from _expanded(name[: match.start()] + str(number).zfill(len(first)) + name[match.end() :])


class _Member(NamedTuple):
    """Where a member's bytes lie: the archive is not compressed, so they can be read without going through it."""

    path: Path
    offset: int
    size: int

    def read(self, most: int, name: str) -> bytes:
        if self.size > most:
            raise MirlibError(f"{name}: more than {most >> 20} MiB")
        with doing(f"read {shown(self.path)}"), self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class _Sample:
    """The members of a shard that share a key, by their ending."""

    name: str
    members: dict[str, _Member] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """The endings of images."""
        return [end for end in self.members if f".{end.rsplit('.')[-1]}" in data.IMAGE_SUFFIXES]

    def image_ending(self, wanted: str | None) -> str | None:
        if wanted is not None:
            return wanted.lower() if wanted.lower() in self.members else None
        return next((end for end in self.images if "." not in end), next(iter(self.images), None))

    def text_ending(self, wanted: str | None) -> str | None:
        endings = (*TEXT_FIELDS, "json") if wanted is None else (wanted.lower(), "json")
        return next((ending for ending in endings if ending in self.members), None)

    def image(self, wanted: str | None) -> Image.Image:
        ending = self.image_ending(wanted)
        name = f"{self.name}.{shown(ending)}"
        return data.image_of(self.members[ending].read(data.MOST_BYTES, name), name)

    def text(self, wanted: str | None) -> str:
        ending = self.text_ending(wanted)
        name = f"{self.name}.{shown(ending)}"
        value: Any = data.text_of(self.members[ending].read(data.LONGEST_LINE, name), name)
        where = name
        if ending == "json" and (wanted or "").lower() != "json":
            value = json_of(value, name)
            if not isinstance(value, dict) and not data.is_conversation(value):
                raise MirlibError(f"{name}: expected a JSON object, got {type(value).__name__}")
            if isinstance(value, dict):
                key = data.field_of(wanted, TEXT_FIELDS, value, "texts", name)
                value, where = value[key], f"{name}, field {shown(key)!r}"
        return Named(data.text_in(value, where), name)


class _Shards:
    """The samples of WebDataset shards, in the order of the shards and of their members."""

    def __init__(self, paths: Sequence[Path], on_unreadable: Unreadable) -> None:
        self.name = shown(paths[0]) if len(paths) == 1 else f"{shown(paths[0])} and {len(paths) - 1} more shards"
        self.on_unreadable = on_unreadable
        self.samples: list[_Sample] = []
        for path in tqdm(paths, desc="reading the shards", unit="shard", delay=2, leave=False):
            with data.leaving_out(on_unreadable if len(paths) > 1 else None):
                self.samples += self._index(path, data.check_regular(path))

    def _index(self, path: Path, length: int) -> Iterable[_Sample]:
        found: dict[str, _Sample] = {}
        passed = 0
        try:
            with path.open("rb") as file:
                if COMPRESSED.match(file.read(6)):
                    raise MirlibError(f"{shown(path)}: the archive is compressed; unpack it to a .tar")
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    archive.members.clear()  # it keeps them all
                    if member.size < 0 or member.offset_data + member.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    folder, _, base = member.name.removeprefix("./").rpartition("/")
                    stem, dot, ending = base.partition(".")
                    parts = folder.split("/")
                    hidden = any(part.startswith(".") and part.strip(".") or part in data.NO_DATA for part in parts)
                    if member.isdir() or hidden or not dot or not stem:
                        continue
                    if not member.isfile() or member.issparse():
                        passed += 1
                        continue
                    key = f"{folder}/{stem}" if folder else stem
                    sample = found.setdefault(key, _Sample(f"{shown(path)}/{shown(key, 200)}"))
                    if ending.lower() in sample.members:
                        self._refuse(f"{sample.name}.{shown(ending)}: the archive has two members of this name")
                    else:
                        sample.members[ending.lower()] = _Member(path, member.offset_data, member.size)
        except MirlibError:
            raise
        except Exception as error:  # damaged headers make tarfile raise ValueError, OverflowError, RecursionError …
            self._refuse(
                f"{shown(path)}: the archive is damaged ({shown(first_line(error))}); {len(found)} keys stand before "
                "the damage"
            )
        if passed:
            warnings.warn(
                f"{shown(path)}: members passed over, which are links, pipes, devices or sparse: {passed}", stacklevel=5
            )
        return found.values()

    def _refuse(self, sentence: str) -> None:
        with data.leaving_out(self.on_unreadable):
            raise MirlibError(sentence)

    def images(self, image_field: str | None) -> Sequence[Any]:
        there = [sample for sample in self.samples if sample.image_ending(image_field) is not None]
        chosen = [sample for sample in there if self._has_one_image(sample, image_field)]
        self._check_ending(chosen, image_field, "images")
        return Items(chosen, lambda sample: sample.image(image_field))

    def texts(self, text_field: str | None) -> Sequence[str]:
        chosen = [sample for sample in self.samples if sample.text_ending(text_field) is not None]
        self._check_ending(chosen, text_field, "texts")
        return Items(chosen, lambda sample: sample.text(text_field))

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        chosen = []
        for sample in self.samples:
            endings = {"image": sample.image_ending(image_field), "text": sample.text_ending(text_field)}
            lacking = [what for what, ending in endings.items() if ending is None]
            if lacking:
                periods = any("." in ending for ending in sample.members)
                self._refuse(
                    f"{sample.name}: no {' and no '.join(lacking)} (there is {data.listed(sample.members)}"
                    f"{'; a key ends at the first period of the name' if periods else ''})"
                )
            elif self._has_one_image(sample, image_field):
                chosen.append(sample)
        data.some(chosen, "pairs", self.name)
        images, texts = lambda sample: sample.image(image_field), lambda sample: sample.text(text_field)
        return Pairs(Items(chosen, images), Items(chosen, texts))

    def _has_one_image(self, sample: _Sample, wanted: str | None) -> bool:
        """Whether it is clear which member is the image: that wanted, one without a period, or the only one."""
        if wanted is not None or len(sample.images) == 1 or any("." not in end for end in sample.images):
            return True
        self._refuse(
            f"{sample.name}: which member is the image? There is {data.listed(sample.images)}; name one with "
            "image_field (--image-field). A key ends at the first period of the name: names that hold periods share one"
        )
        return False

    def _check_ending(self, chosen: list[_Sample], wanted: str | None, what: str) -> None:
        if not chosen and wanted is not None and self.samples:
            there = sorted({ending for sample in self.samples for ending in sample.members})
            raise MirlibError(f"{self.name}: no key has a member .{shown(wanted)}; there is {data.listed(there)}")
        data.some(chosen, what, self.name)
