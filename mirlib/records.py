"""Records of JSON Lines, JSON, CSV and TSV files: objects with fields that hold an image's path and a text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mirlib import data
from mirlib.data import IMAGE_FIELDS, TEXT_FIELDS, Items, Named, Pairs, Unreadable
from mirlib.errors import MirlibError, boundary, doing, shown

__all__ = ["CSV", "JSON", "Records", "layout_of"]

LINES = frozenset((".jsonl", ".ndjson"))
JSON = LINES | {".json"}
CSV = frozenset((".csv", ".tsv"))
LARGEST_OBJECT = 1 << 29  # bytes of a file that is one JSON object, which is read whole
BEFORE, BETWEEN = re.compile(r"\s*"), re.compile(r"[\s,]*")  # what stands before elements of an array
MOST_LINES = 1000  # of a row of a table; with more, a quote that is not closed swallows the rows below it
NO_TEXTS = frozenset(".ass .htm .html .py .rtf .srt .svg .tex .toml .vtt .xml .yaml .yml".split())
OF_PICTURE = re.compile(rb"[^\t,]+\.(jpe?g|png|gif|webp|bmp|tiff?)(#\d+)?\s*[\t,]", re.IGNORECASE)
STEP = 1 << 20  # characters of an array that are read at once


# Python refuses to convert integers of more digits, and would end the file.
DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= 4300 else float(digits))


def layout_of(path: Path) -> str | None:
    """How the records stand in a file: as lines, in an array, in one object, as a table; None for plain text."""
    suffix = path.suffix.lower()
    if suffix in CSV:
        return "table"
    data.check_regular(path)
    with doing(f"read {shown(path)}"), path.open("rb") as file:
        start = file.read(data.LONGEST_LINE).removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in LINES and isinstance(_json(start.partition(b"\n")[0]), list) and not re.match(rb"\[\s*\{", start):
        return "lines"  # each of which is refused
    if re.match(rb'\[\s*[{"\]]', start) or (suffix == ".json" and start.startswith(b"[")):
        if suffix in JSON or _is_array(path):
            return "array"
    if not start.startswith(b"{"):
        return "lines" if suffix in JSON else _plain(path, start)
    for layout, text in (("lines", start.partition(b"\n")[0]), ("object", start)):
        if isinstance(_json(text), dict):
            return "object" if suffix not in LINES and text.strip() == start.strip() else layout
    return "lines" if suffix in LINES else "object" if suffix in JSON else _plain(path, start)


def json_of(text: str, name: str) -> Any:
    """What a text of JSON says; a `MirlibError` if it is none."""
    with boundary(f"{name}: not JSON"):
        return DECODER.decode(text)


def _json(text: bytes) -> Any:
    """What the JSON says; None where it is none."""
    try:
        return DECODER.decode(text.decode(errors="replace").strip())
    except (ValueError, RecursionError):
        return None


def _plain(path: Path, start: bytes) -> None:
    """Refuses a file as plain text whose first lines are those of a table or of JSON."""
    whole = start if len(start) < STEP else start[:STEP].rpartition(b"\n")[0]
    lines = [line.strip() for line in whole.splitlines() if line.strip()][:20]
    header = lines[0].decode(errors="replace") if lines else ""
    if path.suffix.lower() in NO_TEXTS:
        raise MirlibError(
            f"{shown(path)}: a file of this kind holds more than texts; store them in a .txt file, one a line, or as "
            "JSON Lines (.jsonl)"
        )
    prose = sum(b" " in line for line in lines[1:])
    if header.strip('"').lower() in TEXT_FIELDS and 2 * prose > len(lines) - 1:
        raise MirlibError(f"{shown(path)}: its first line, {shown(header)!r}, is a header, and not a text; take it out")
    if 2 * sum(OF_PICTURE.match(line) is not None for line in lines) > len(lines):
        raise MirlibError(
            f"{shown(path)}: its lines begin with the names of pictures, {shown(header)!r}, so it is a table; put a "
            "header over it, such as image and text, and name it .tsv or .csv"
        )
    for delimiter in "\t,;|":
        names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
        known = [name for name in names if name in (*IMAGE_FIELDS, *TEXT_FIELDS)]
        rows = [line.count(delimiter.encode()) >= len(names) - 1 for line in lines[1:]]
        if len(names) > 1 and known and all(re.fullmatch(r"[\w.:-]*", name) for name in names) and rows and all(rows):
            raise MirlibError(
                f"{shown(path)}: its first line, {shown(header)!r}, is the header of a table, and not a text; name the "
                f"file {shown(path.stem)}{'.tsv' if delimiter == chr(9) else '.csv'}"
                f"{', with commas between the fields' if delimiter == '|' else ''}"
            )
    found = [_json(line.rstrip(b",")) for line in lines if line not in (b"[", b"]", b"],")]
    objects = sum(isinstance(value, (dict, list)) for value in found)
    objects += sum(line[:2] in (b"{'", b'{"') and line[-1:] == b"}" and _json(line) is None for line in lines)
    if 2 * objects > len(found) or (len(found) > 1 and all(isinstance(value, str) for value in found)):
        raise MirlibError(
            f"{shown(path)}: its lines are JSON, and not texts; store it as JSON Lines, an object a line without a "
            f'title and commas between them, as {{"text": "…"}}, and name it {shown(path.stem)}.jsonl'
        )


def _is_array(path: Path) -> bool:
    """Whether a text that begins like a JSON array is one: its first element is an object, or all of it can be read."""
    for _, record in _elements(path):
        if not isinstance(record, str):
            return isinstance(record, dict)
    return True


def _characters(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, numbered from 1, of which one at a time is in memory; an error for the damage."""
    with doing(f"read {shown(path)}"), _characters(path) as file:
        text = file.read(STEP)
        position, number = text.index("[") + 1, 0
        while True:
            position = (BETWEEN if number else BEFORE).match(text, position).end()
            if text.startswith("]", position):
                if not (text[position + 1 :] + file.read(STEP)).strip():
                    return
                reason = "something stands behind the array"
            else:
                try:
                    element, position = DECODER.raw_decode(text, position)
                    number += 1
                    yield number, element
                    continue
                except json.JSONDecodeError as error:  # also where the rest has not been read yet
                    reason = error.msg
                except RecursionError:
                    reason = "it is nested too deeply"
            rest = len(text) - position
            if rest > data.LONGEST_LINE:
                reason = f"it has more than {data.LONGEST_LINE >> 20} MiB"
            more = file.read(max(STEP, rest)) if rest <= data.LONGEST_LINE else ""
            if not more:
                name = f"{shown(path)}, record {number + 1}"
                yield number + 1, MirlibError(f"{name}: not JSON ({reason}), and none after it can be read")
                return
            text, position = text[position:] + more, 0


def _row(ahead: list[str], file: TextIO, delimiter: str) -> tuple[list[str], list[str] | csv.Error | None]:
    """The lines of the next row of a table, and its fields: an error for damage, None at the end of the file."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        while len(taken) < MOST_LINES and (line := ahead.pop() if ahead else file.readline()):
            taken.append(line)
            yield line

    try:
        row = next(csv.reader(lines(), delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        if len(taken) == MOST_LINES:
            return taken, csv.Error(f"it is not closed within {MOST_LINES} lines")
        return taken, error
    for line in taken[1:]:
        fields = line.rstrip("\r\n").split(delimiter)
        # Prose has spaces where a row has a path or an id; where a row has neither, behind its delimiters.
        words = [(ours, theirs) for ours, theirs in zip(row, fields, strict=False) if _form(ours) != "prose"]
        alike = all(_form(ours) == _form(theirs) for ours, theirs in words)
        if len(fields) == len(row) > 1 and alike and (words or not any(f[:1] == " " for f in fields)):
            return taken, _LikeARow(f"one of them seems to be {shown(line)!r}")
    return taken, row


class _LikeARow(csv.Error):
    """A field that closes, and of whose lines one looks like a row."""


def _form(value: str) -> str:
    value = value.strip()
    return "prose" if re.search(r"\s", value) or not value else "file" if Path(value).suffix else "word"


class _Wanted(NamedTuple):
    """A field that is to be read: its name if it was given, the usual ones, and what they hold."""

    given: str | None
    usual: Sequence[str]
    what: str
    convert: Callable[[Any, str], Any]

    def field_in(self, record: dict[str, Any]) -> str | None:
        return next((name for name in ([self.given] if self.given else self.usual) if name in record), None)


_IMAGES, _TEXTS = (
    _Wanted(None, IMAGE_FIELDS, "images", data.image_in),
    _Wanted(None, TEXT_FIELDS, "texts", data.text_in),
)


class Records:
    """A file of records in the layout that `layout_of` says; ``on_unreadable`` is called for each that is left out."""

    def __init__(self, path: Path, layout: str, on_unreadable: Unreadable, image_root: str | Path | None) -> None:
        self.path, self.layout, self.on_unreadable = path, layout, on_unreadable
        self.folders = data.folders_of(path, image_root)
        self.name = shown(path)
        self.unit = "line" if layout in ("lines", "table") else "record"
        data.check_regular(path)

    def _where(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def _bad(self, number: int, why: str) -> MirlibError:
        """What stands in the place of a record, so that those who want the others can go on."""
        return MirlibError(f"{self._where(number)}: {why}")

    def _all(self, wanted: Sequence[_Wanted]) -> Iterator[tuple[int, Any]]:
        """Each record with its number; a MirlibError in the place of one that cannot be read."""
        read = {"lines": self._lines, "array": partial(_elements, self.path), "table": self._table}
        for number, record in read.get(self.layout, partial(self._object, wanted))():
            if isinstance(record, str) and len(wanted) == 1:  # an array of paths or of texts
                record = {wanted[0].given or wanted[0].usual[0]: record}
            if not isinstance(record, (dict, MirlibError)):
                record = self._bad(number, f"expected a JSON object, got {type(record).__name__}")
            yield number, record

    def _lines(self) -> Iterator[tuple[int, Any]]:
        for number, line in data.lines_of(self.path):
            name = self._where(number)
            try:
                yield number, json_of(data.text_of_line(line, name), name)
            except MirlibError as error:
                yield number, error

    def _table(self) -> Iterator[tuple[int, Any]]:
        """The rows below a header, which are objects too; fields with line breaks, commas or quotes stand in quotes."""
        size = csv.field_size_limit(data.LONGEST_LINE)  # of the whole process, hence put back
        with ExitStack() as stack:
            stack.callback(csv.field_size_limit, size)
            stack.enter_context(doing(f"read {self.name}"))
            file = stack.enter_context(_characters(self.path))
            first = file.readline(data.LONGEST_LINE)
            data.text_of(first.encode(errors="surrogateescape"), self._where(1))
            file.seek(0)
            commas = ";" if first.count(";") > first.count(",") else ","
            header: list[str] | None = None
            for number, row in self._rows(file, "\t" if self.path.suffix.lower() == ".tsv" else commas):
                if isinstance(row, list) and header is None:
                    header = [name.strip() for name in row]
                    twice = [name for name in header if name and header.count(name) > 1]
                    if twice:
                        raise MirlibError(
                            f"{self._where(1)}, the header: two columns are called {shown(twice[0])!r}; rename one"
                        )
                    continue
                if isinstance(row, MirlibError):
                    yield number, row
                    if header is None:
                        return
                    continue
                if row and isinstance(row, list) and len(row) != len(header):
                    row = csv.Error(f"{len(row)} fields, and the header has {len(header)}")
                if isinstance(row, csv.Error):
                    advice = "a field that holds quotes stands in quotes, and those in it are doubled"
                    yield number, self._bad(number, f"not a row of the table ({shown(row)}); {advice}")
                    if header is None:
                        return
                elif row:
                    yield number, dict(zip(header, row, strict=True))

    def _rows(self, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error | MirlibError]]:
        """The rows, each with the number of its first line. In TSV a quote that closes nowhere is a quote."""
        number = 1
        ahead: list[str] = []  # lines that were taken for parts of a row, the next one last
        while True:
            taken, row = _row(ahead, file, delimiter)
            if row is None:
                return
            several, as_it_is = len(taken) > 1, delimiter == "\t" and isinstance(row, csv.Error)
            if as_it_is or (isinstance(row, csv.Error) and not isinstance(row, _LikeARow)):
                ahead += taken[:0:-1]
                taken = taken[:1]
            if as_it_is:
                row = taken[0].rstrip("\r\n").split("\t")
            elif several and isinstance(row, csv.Error):
                row = self._bad(
                    number,
                    "not a row of the table: a quote opens here, and the rows below would belong to its field "
                    f"({shown(row)}); close it if it is open, or store the table as JSON Lines (.jsonl)",
                )
            yield number, row
            number += len(taken)

    def _object(self, wanted: Sequence[_Wanted]) -> Iterator[tuple[int, Any]]:
        """The records in one object: COCO's images and annotations, the one list in it, or the object itself."""
        if data.check_regular(self.path) > LARGEST_OBJECT:
            raise MirlibError(
                f"{self.name}: one JSON object of more than {LARGEST_OBJECT >> 20} MiB; store its records a line"
            )
        with doing(f"read {self.name}"):
            text = data.text_of(self.path.read_bytes(), self.name)
        found = json_of(text, self.name)
        lists = {key: value for key, value in found.items() if isinstance(value, list)}
        if {"images", "annotations"} <= lists.keys():
            yield from self._coco(lists["images"], lists["annotations"], [each.what for each in wanted])
            return
        records = {key: value for key, value in lists.items() if any(isinstance(each, dict) for each in value)} or lists
        lengths = {len(value) if isinstance(value, list) else 0 for value in found.values()}
        if len(lengths) == 1 and max(lengths) > 1 and {*IMAGE_FIELDS, *TEXT_FIELDS} & (found.keys() - {"images"}):
            for number, row in enumerate(zip(*found.values(), strict=True), start=1):  # columns
                yield number, dict(zip(found, row, strict=True))
        elif any(field in found for field in (*IMAGE_FIELDS, *TEXT_FIELDS) if field != "images"):
            yield 1, found
        elif len(records) == 1:
            yield from enumerate(next(iter(records.values())), start=1)
        else:
            raise MirlibError(
                f"{self.name}: where are the records? They are looked for in an array, or in an object with one list; "
                f"there is {data.listed(records or found)}"
            )

    def _coco(self, images: list[Any], annotations: list[Any], wanted: list[str]) -> Iterator[tuple[int, Any]]:
        if wanted != ["images", "texts"]:
            yield from enumerate(images if wanted == ["images"] else annotations, start=1)
            return
        named = {str(image["id"]): image for image in images if isinstance(image, dict) and "id" in image}
        for number, annotation in enumerate(annotations, start=1):
            if not isinstance(annotation, dict):
                yield number, annotation
                continue
            belongs = annotation.get("image_id")
            if str(belongs) in named:
                yield number, {**named[str(belongs)], **annotation}
            else:
                yield number, self._bad(number, f"no image has its image_id {shown(belongs)}")

    def _fields(self, wanted: Sequence[_Wanted]) -> list[str] | None:
        """Which fields hold what is wanted: those of the first record that has them; None where there is no record."""
        fields: list[str | None] = [None] * len(wanted)
        first: tuple[int, dict[str, Any]] | None = None
        for number, record in self._all(wanted):
            if isinstance(record, dict):
                first = first or (number, record)
                fields = [field or each.field_in(record) for field, each in zip(fields, wanted, strict=True)]
                if all(fields):
                    return fields
        if first is not None:
            number, record = first
            where = f"{self.name}, line 1, the header" if self.layout == "table" else self._where(number)
            for field, each in zip(fields, wanted, strict=True):
                if field is None:
                    data.field_of(each.given, each.usual, record, each.what, where)
        return None

    def _read(self, *wanted: _Wanted) -> tuple[list[int], list[str], list[list[Any]]]:
        """The numbers of the records that have all that is wanted, the names of its fields, and a column for each."""
        fields = self._fields(wanted)
        numbers: list[int] = []
        columns: list[list[Any]] = [[] for _ in wanted]
        alone = 0
        for number, record in self._all(wanted):
            with data.leaving_out(self.on_unreadable):
                if isinstance(record, MirlibError):
                    raise record
                row = self._row(record, fields, wanted, self._where(number))
                if row is None:
                    alone += 1
                    continue
                numbers.append(number)
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        data.some(numbers, "pairs" if len(wanted) == 2 else wanted[0].what, self.name, alone)
        return numbers, fields, columns

    @staticmethod
    def _row(record: dict[str, Any], fields: list[str], wanted: Sequence[_Wanted], name: str) -> list[Any] | None:
        """The values of a record; None for one of text alone, as LLaVA's data for instructions has many."""
        row = []
        for field, each in zip(fields, wanted, strict=True):
            label = f"field {shown(field)!r}"
            if not record.get(field):
                if each.what == "images" and any(data.is_conversation(record.get(other)) for other in TEXT_FIELDS):
                    return None
                if field not in record:
                    raise MirlibError(f"{name}: there is no {label}; there is {data.listed(record)}")
            row.append(each.convert(record[field], f"{name}, {label}"))
        return row

    def images(self, image_field: str | None) -> Sequence[Any]:
        """The images, each once."""
        numbers, (field,), (found,) = self._read(_IMAGES._replace(given=image_field))
        first: dict[str, int] = {}
        for number, image in zip(numbers, found, strict=True):
            first.setdefault(image, number)
        return self._at(list(first.values()), list(first), field)

    def texts(self, text_field: str | None) -> Sequence[str]:
        """The texts."""
        numbers, _, (found,) = self._read(_TEXTS._replace(given=text_field))
        return self._named(numbers, found)

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        """The images with their texts."""
        wanted = _IMAGES._replace(given=image_field), _TEXTS._replace(given=text_field)
        numbers, (field, _), (images, texts) = self._read(*wanted)
        return Pairs(self._at(numbers, images, field), self._named(numbers, texts))

    def _at(self, numbers: list[int], images: list[str], field: str) -> Items:
        return Items(
            range(len(images)),
            lambda i: data.image_at(images[i], f"{self._where(numbers[i])}, field {shown(field)!r}", self.folders),
        )

    def _named(self, numbers: list[int], texts: list[str]) -> Items:
        return Items(range(len(texts)), lambda i: Named(texts[i], self._where(numbers[i])))
