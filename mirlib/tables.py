"""Tables with a row a sample: local parquet files, read by pyarrow alone, and datasets of Hugging Face.

The package datasets asks the hub even about local files, and is kept for what lies there and for folders that it saved.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from mirlib import data
from mirlib.data import IMAGE_FIELDS, TEXT_FIELDS, Items, Named, Pairs, Unreadable
from mirlib.errors import MirlibError, boundary, doing, naming, shown

__all__ = ["HUB", "ParquetRows", "Table", "files_of", "named"]

HUB = "hf:"
ROWS = 32  # of a parquet file that are decoded at once


# Where the paper's data lie on the hub, with the configuration and the split unless something else is asked for.
TEXTVQA = "lmms-lab/textvqa", None, "validation"
CNN_DAILYMAIL = "abisee/cnn_dailymail", "3.0.0", "validation"
KNOWN = {
    "textvqa": TEXTVQA,
    "lmms-lab/textvqa": TEXTVQA,
    "facebook/textvqa": TEXTVQA,  # a loading script, which the package no longer runs
    "cnn_dailymail": CNN_DAILYMAIL,
    "cnn/dailymail": CNN_DAILYMAIL,
    "abisee/cnn_dailymail": CNN_DAILYMAIL,
}


def _package(name: str) -> Any:
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise MirlibError(
            f"Hugging Face datasets and .parquet files are read by the package {name.partition('.')[0]}, which is not "
            "installed: pip install 'mirlib[datasets]'"
        ) from error


class ParquetRows:
    """The rows of parquet files, one file after the other, of which a few are in memory at a time."""

    def __init__(self, paths: Sequence[Path], image_root: str | Path | None, on_unreadable: Unreadable) -> None:
        self.name = shown(paths[0]) if len(paths) == 1 else f"{shown(paths[0])} and {len(paths) - 1} more files"
        _package("pyarrow.parquet")
        self._paths: list[Path] = []
        self._groups: list[list[int]] = []  # where the row groups of each file begin, and its end
        self._schemas = []
        for path in paths:
            with data.leaving_out(on_unreadable if len(paths) > 1 else None):
                data.check_regular(path)
                with doing(f"read {shown(path)}", Exception), self._open(path) as file:
                    metadata, schema = file.metadata, file.schema_arrow
                    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
                if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
                    raise MirlibError(f"{shown(path)}: the table is damaged: its row groups have not the rows it says")
                self._paths.append(path)
                self._groups.append(list(accumulate(sizes, initial=0)))
                self._schemas.append(schema)
        if not self._paths:
            raise MirlibError(f"no table in {self.name}")
        self._folders = [data.folders_of(path, image_root) for path in self._paths]
        self.schema = self._schemas[0]
        for name in self.schema.names:
            if self.schema.names.count(name) > 1:
                raise MirlibError(f"{self.name}: two columns are called {shown(name)!r}; rename one")
        self._starts = list(accumulate((groups[-1] for groups in self._groups), initial=0))

    @staticmethod
    def _open(path: Path) -> Any:
        parquet, arrow = _package("pyarrow.parquet"), _package("pyarrow")
        return parquet.ParquetFile(arrow.OSFile(str(path)), buffer_size=1 << 20)

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, row: int) -> tuple[int, int]:
        """The file that holds a row, and the row's number in it."""
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def where(self, row: int) -> str:
        """What a message calls a row: the file and the row in it, from 0."""
        number, row = self._place(row)
        return f"{shown(self._paths[number])}, row {row}"

    def folders(self, row: int) -> Sequence[Path]:
        """What paths in a row are relative to."""
        return self._folders[self._place(row)[0]]

    def whole(self, name: str) -> list[Any]:
        """All values of a column of numbers or words."""
        values: list[Any] = []
        for path in self._paths:
            with doing(f"read {shown(path)}", Exception), self._open(path) as file:
                values += file.read(columns=[name]).column(0).to_pylist()
        if len(values) != len(self):
            raise MirlibError(f"{self.name}: column {shown(name)!r} has {len(values)} rows, and the table {len(self)}")
        return values

    def column(self, name: str) -> Callable[[int], Any]:
        """What reads a value of a column: on from where it is, so that rows in order are decoded once, or anew."""
        for path, schema in zip(self._paths, self._schemas, strict=True):
            if name not in schema.names:
                raise MirlibError(
                    f"{shown(path)}: there is no column {shown(name)!r}; there is {data.listed(schema.names)}"
                )
        place, first, values, batches = (-1, -1), 0, [], iter(())

        def read(start: int) -> Any:
            nonlocal place, first, values, batches
            number, row = self._place(start)
            group = bisect_right(self._groups[number], row) - 1
            with doing(f"read {shown(self._paths[number])}", Exception):
                if place != (number, group) or row < first:
                    place, values = (number, group), []
                    first = self._groups[number][group]
                    file = self._open(self._paths[number])
                    batches = file.iter_batches(batch_size=ROWS, row_groups=[group], columns=[name])
                while row >= first + len(values):
                    first += len(values)
                    batch = next(batches, None)
                    if batch is None:
                        raise MirlibError(f"cannot read {self.where(start)}: there are fewer rows than the file says")
                    values = batch.column(0)
                return values[row - first].as_py()

        return read


class DatasetRows:
    """Rows of a table of the package datasets, as they are stored: it would decode images, and name none."""

    def __init__(self, table: Any, name: str, folder: Path) -> None:
        self._table, self.name, self._folder = table.with_format("arrow"), name, folder
        self.schema = table.features.arrow_schema

    def __len__(self) -> int:
        return len(self._table)

    def where(self, row: int) -> str:
        return f"{self.name}, row {row}"

    def folders(self, row: int) -> Sequence[Path]:
        return [self._folder]

    def whole(self, name: str) -> list[Any]:
        return self._table.select_columns([name])[:].column(0).to_pylist()

    def column(self, name: str) -> Callable[[int], Any]:
        table = self._table.select_columns([name])
        return lambda row: table[row].column(0)[0].as_py()


class Table:
    """Images and texts out of the columns of a table."""

    def __init__(self, rows: ParquetRows | DatasetRows) -> None:
        self.rows = rows

    def _held(self) -> list[str]:
        """The columns that hold images by their type: bytes, or a struct of bytes and path, or a list of these."""
        types = _package("pyarrow").types
        of_bytes = types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view
        held = []
        for column in self.rows.schema:
            kind = column.type
            while types.is_list(kind) or types.is_large_list(kind):
                kind = kind.value_type
            is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            if is_struct or (column.name not in TEXT_FIELDS and any(is_bytes(kind) for is_bytes in of_bytes)):
                held.append(column.name)
        return held

    def is_of_samples(self) -> bool:
        """Whether there is a column of images or of texts."""
        return bool(self._held() or {*IMAGE_FIELDS, *TEXT_FIELDS} & {*self.rows.schema.names})

    def _image_column(self, image_field: str | None) -> str:
        """The column of the images: of those with a usual name one that holds images, else the one that holds them."""
        held = self._held()
        usual = [*(name for name in IMAGE_FIELDS if name in held), *IMAGE_FIELDS, *(held if len(held) == 1 else ())]
        return data.field_of(image_field, usual, self.rows.schema.names, "images", self.rows.name)

    def _with_images(self, name: str, what: str) -> Sequence[int]:
        """The rows but those of text alone, as LLaVA's data for instructions has many; a warning counts them."""
        types = _package("pyarrow").types
        talks = [
            self.rows.column(column.name)
            for column in self.rows.schema
            if column.name in TEXT_FIELDS
            and (types.is_list(column.type) or types.is_large_list(column.type))
            and types.is_struct(column.type.value_type)
        ]
        if not talks:  # then the images need not be read twice
            return data.some(range(len(self.rows)), what, self.rows.name)
        values, found = self.rows.column(name), []
        for row in range(len(self.rows)):
            try:
                alone = _is_empty(values(row)) and any(data.is_conversation(talk(row)) for talk in talks)
            except MirlibError:  # said when the row is used
                alone = False
            if not alone:
                found.append(row)
        return data.some(found, what, self.rows.name, len(self.rows) - len(found))

    def _images(self, name: str) -> Callable[[int], Any]:
        values = self.rows.column(name)

        def read(row: int) -> Any:
            where = f"{self.rows.where(row)}, column {shown(name)!r}"
            return data.image_at(data.image_in(values(row), where), where, self.rows.folders(row))

        return read

    def _texts(self, text_field: str | None) -> Callable[[int], str]:
        name = data.field_of(text_field, TEXT_FIELDS, self.rows.schema.names, "texts", self.rows.name)
        values = self.rows.column(name)

        def read(row: int) -> str:
            where = f"{self.rows.where(row)}, column {shown(name)!r}"
            value = values(row)
            return Named(data.text_in(data.text_of(value, where) if isinstance(value, bytes) else value, where), where)

        return read

    def images(self, image_field: str | None) -> Sequence[Any]:
        """The images, each once where the table has an ``image_id``."""
        name = self._image_column(image_field)
        read, rows = self._images(name), self._with_images(name, "images")
        if "image_id" in self.rows.schema.names:
            first: dict[Any, int] = {}
            ids = self.rows.whole("image_id")
            for row in rows:
                # A row without an id (NaN is none) stands for itself, and an id may be of any type.
                without = ids[row] is None or ids[row] != ids[row]
                first.setdefault(("row", row) if without else str(ids[row]), row)
            rows = list(first.values())
        return Items(rows, read)

    def texts(self, text_field: str | None) -> Sequence[str]:
        """The texts."""
        read = self._texts(text_field)
        return Items(data.some(range(len(self.rows)), "texts", self.rows.name), read)

    def pairs(self, image_field: str | None, text_field: str | None) -> Pairs:
        """The images with their texts."""
        name = self._image_column(image_field)
        images, texts = self._images(name), self._texts(text_field)
        rows = self._with_images(name, "pairs")
        return Pairs(Items(rows, images), Items(rows, texts))


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(_is_empty, value)) if isinstance(value, list) else not value


# ---------------------------------------------------------------------------------------------------------------------
# hf:NAME


def named(source: str, image_root: str | Path | None, on_unreadable: Unreadable) -> Table:
    """The dataset that ``hf:NAME``, with ``@CONFIG`` and ``:SPLIT`` or without, names: a folder, or one on the hub."""
    rest = source.removeprefix(HUB)
    name, config, split = rest, None, None
    if not Path(rest).exists():
        name, config, split = re.fullmatch(r"(.*?)(?:@([^@:]+))?(?::([^:@/]+))?", rest, re.DOTALL).groups()
    if not name:
        raise MirlibError(f"{shown(source)}: expected hf:NAME, hf:NAME@CONFIG or hf:NAME@CONFIG:SPLIT")
    with naming(shown(source)):
        if Path(name).is_dir():
            return Table(_local(Path(name), config, split, image_root, on_unreadable))
        if Path(name).exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise MirlibError("it is no folder, and no name of a dataset on the hub")
        return Table(_of_hub(name, config, split))


def _local(
    folder: Path, config: str | None, split: str | None, image_root: str | Path | None, on_unreadable: Unreadable
) -> ParquetRows | DatasetRows:
    """The rows of a folder. The package is never asked what it holds: that may fetch what a file in it names."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        datasets = _package("datasets")
        with boundary("cannot load the dataset"):
            found = datasets.load_from_disk(str(folder))
        if isinstance(found, dict):
            split = _one_of(found, split, "split", f"{HUB}{folder}:SPLIT")
            found = found[split]
        elif split is not None:
            raise MirlibError(f"there is no split {shown(split)!r}; it is one table without splits")
        return DatasetRows(found, f"{HUB}{shown(folder)}" + (f":{split}" if split else ""), folder)
    files, _ = data.walk(folder, frozenset((".parquet",)))
    if not files:
        raise MirlibError(
            "the folder holds no .parquet files, and was not saved by save_to_disk; pictures in a folder are named "
            f"without hf: (--images {shown(folder)})"
        )
    return ParquetRows(files_of(folder, files, config, split), image_root, on_unreadable)


def files_of(folder: Path, files: Sequence[Path], config: str | None = None, split: str | None = None) -> list[Path]:
    """A folder's parquet files of one split of one configuration, by the names that the hub gives."""
    found: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)-\d+-of-\d+|(train|validation|test)", path.stem)
        of = path.parent.relative_to(folder).as_posix() if match else "."
        found.setdefault(of, {}).setdefault((match[1] or match[2]) if match else "train", []).append(path)
    config = _one_of(found, config, "configuration", f"{HUB}{folder}@CONFIG:SPLIT")
    return found[config][_one_of(found[config], split, "split", f"{HUB}{folder}:SPLIT")]


def _of_hub(name: str, config: str | None, split: str | None) -> DatasetRows:
    datasets = _package("datasets")
    if name.lower() in KNOWN:
        name, usual_config, usual_split = KNOWN[name.lower()]
        config, split = config or usual_config, split or usual_split
    with boundary("cannot load the dataset"):
        builder = datasets.load_dataset_builder(name, config)
        files = getattr(builder.config, "data_files", None)
        if files and type(builder).__module__.rpartition(".")[2] == "parquet":
            # By its name the package would fetch the files of all splits: gigabytes, for some hundred images.
            split = _one_of(files, split, "split", f"{HUB}{name}:SPLIT")
            found = datasets.load_dataset("parquet", data_files={split: list(files[split])}, split=split)
        else:
            found = datasets.load_dataset(name, config)
            split = _one_of(found, split, "split", f"{HUB}{name}:SPLIT")
            found = found[split]
    return DatasetRows(found, f"{HUB}{name}:{split}", Path())


def _one_of(there: Mapping[str, Any], wanted: str | None, what: str, example: str) -> str:
    names = [str(name) for name in there]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        which = f"which {what}" if wanted is None else f"there is no {what} {shown(wanted)!r}"
        raise MirlibError(f"{which}? There is {', '.join(map(shown, names))}; write {shown(Path(example))}")
    return wanted
