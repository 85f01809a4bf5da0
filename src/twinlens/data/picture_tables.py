"""Parquet files and Lance tables that hold the pictures themselves, in a column of bytes.

Columns are found by their names, as in a data frame (`adapters`). The other columns are read at
once, and pictures when they are needed: of Parquet a row group at a time, of Lance by row.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinlens.data.adapters import IDENTITY_COLUMNS, PICTURE_COLUMNS, table_of_columns
from twinlens.data.manifests import MAX_FOOTER, SPLIT_NAMES, check_size
from twinlens.data.stored_pictures import (
    StoredPicture,
    file_name,
    file_size,
    file_version,
    open_input,
)
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError, first_line, one_line
from twinlens.parsing import parse_json

__all__ = ["holds_pictures", "read_lance", "read_parquet"]

MAX_GROUP = 2**30  # bytes of a row group's pictures, which are read at once
SOURCE_PLACE = re.compile(r", /[^ ]*\.rs:[\d:]+")  # of an error of Lance


@dataclass(frozen=True)
class _ParquetFile:
    """Pictures of a Parquet file; see `stored_pictures.PictureFile`."""

    name: str
    version: str
    column: str  # with ".bytes" for pictures as Hugging Face stores them
    first_row: tuple[int, ...] = field(compare=False)  # of each row group

    def read(self, places: Sequence[StoredPicture]) -> list[bytes | PictureError]:
        """The content of some pictures, a row group at a time."""
        groups = np.searchsorted(self.first_row, [place.start for place in places], "right") - 1
        own = defaultdict[int, list[int]](list)
        for at, group in enumerate(groups.tolist()):
            own[group].append(at)
        results: list[bytes | PictureError] = [b""] * len(places)
        for group, rows in own.items():
            contents = _row_group(self, group)
            for at in rows:
                content = contents[places[at].start - self.first_row[group]].as_py()
                results[at] = PictureError(self.name, "no picture") if content is None else content
        return results


@dataclass(frozen=True)
class _LanceTable:
    """Pictures of a Lance table; see `stored_pictures.PictureFile`."""

    name: str
    version: str
    column: str

    def read(self, places: Sequence[StoredPicture]) -> list[bytes | PictureError]:
        """The content of some pictures."""
        rows = [place.start for place in places]
        with _errors(self.name):
            column = _lance(self.name, int(self.version)).take(rows, columns=[self.column])
        contents = _bytes_of(column.column(0).combine_chunks()).to_pylist()
        return [
            PictureError(self.name, "no picture") if content is None else content
            for content in contents
        ]


def holds_pictures(name: str) -> bool:
    """Whether a Parquet file has a column of pictures, and is no manifest of paths.

    Raises:
        DataError: it cannot be read, or has bytes in columns of other names and no paths.
    """
    schema = _opened(name).schema_arrow
    if _picture_column(schema) is not None:
        return True
    if any(map(_is_bytes, schema)) and not {"path", "a", "b"} & set(schema.names):
        raise _no_pictures(name, schema)
    return False


def read_parquet(files: Sequence[str], source: str) -> ImageTable:
    """The pictures of Parquet files.

    Args:
        files: paths or addresses.
        source: data as the user named it.
    Raises:
        DataError: unreadable or truncated files, or no columns of pictures and identities.
    """
    pictures, names = list[StoredPicture](), list[str]()
    others: list[tuple[int, Mapping[str, list[Any]]]] = []
    column = ""
    for file in files:
        with _errors(file):
            parquet = _opened(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            column = _picture_column(schema) or ""
            if not column:
                raise _no_pictures(file, schema)
            check_size(metadata, one_line(file, 200), file_size(file))
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            leaf = f"{column}.bytes" if _is_struct(schema.field(column)) else column
            _check_groups(groups, leaf, file)
            starts = np.cumsum([0] + [group.num_rows for group in groups])[:-1]
            stored = _ParquetFile(file, file_version(file), leaf, tuple(starts.tolist()))
            pictures += [StoredPicture(stored, row) for row in range(metadata.num_rows)]
            names += _row_names(file, metadata.num_rows)
            columns = parquet.read(columns=_flat(schema, column, file))
            others.append((metadata.num_rows, _columns(columns, schema, file)))
    return _table(column, pictures, names, others, source)


def read_lance(name: str, source: str) -> ImageTable:
    """The pictures of a Lance table; see `read_parquet`.

    Raises:
        DataError: a missing or damaged table, or no columns of pictures and identities.
    """
    with _errors(name):
        dataset = _lance.__wrapped__(name, None)  # The newest version, which changes.
        schema, num = dataset.schema, dataset.count_rows()
        column = _picture_column(schema)
        if column is None:
            raise _no_pictures(name, schema)
        columns = _columns(dataset.to_table(columns=_flat(schema, column, name)), schema, "")
    stored = _LanceTable(name, str(dataset.version), column)
    pictures = [StoredPicture(stored, row) for row in range(num)]
    return _table(column, pictures, _row_names(name, num), [(num, columns)], source)


def _table(
    column: str, pictures: list[StoredPicture], names: list[str],
    others: Sequence[tuple[int, Mapping[str, list[Any]]]], source: str,
) -> ImageTable:  # fmt: skip
    if not pictures:
        raise DataError(f"{source} has no rows: needed is one for each picture")
    columns: dict[str, Any] = {column: pictures}
    for key in dict.fromkeys(key for _, part in others for key in part):
        parts = (part.get(key, [None] * num) for num, part in others)
        columns[key] = [value for part in parts for value in part]
    return table_of_columns(columns, source, None, names)


def _row_names(file: str, num: int) -> list[str]:
    """Names of pictures, in the order of their rows when sorted."""
    width = len(str(max(num - 1, 0)))
    return [f"{file_name(file)}/{row:0{width}d}" for row in range(num)]


def _picture_column(schema: Any) -> str | None:
    """The column of bytes, plain or as Hugging Face stores pictures."""
    names = (str(column.name) for column in schema if _is_bytes(column))
    return next((name for name in names if name.lower() in PICTURE_COLUMNS), None)


def _no_pictures(file: str, schema: Any) -> DataError:
    return DataError(
        f"{one_line(file, 200)} has no column of pictures: needed is one of bytes, named "
        f"{', '.join(PICTURE_COLUMNS)}; found {one_line(', '.join(schema.names), 300)}"
    )


def _is_bytes(column: Any) -> bool:
    from pyarrow import types

    kind = column.type.field("bytes").type if _is_struct(column) else column.type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_struct(field: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)


def _flat(schema: Any, column: str, file: str) -> list[str]:
    """The columns of plain values beside the pictures.

    Raises:
        DataError: the only column of identities holds other values.
    """
    from pyarrow import types

    kinds = (types.is_nested, types.is_binary, types.is_large_binary)
    others = [other for other in schema if other.name != column]
    flat = [other.name for other in others if not any(kind(other.type) for kind in kinds)]
    named = [other for other in others if other.name.lower() in IDENTITY_COLUMNS]
    if named and not {other.name for other in named} & set(flat):
        raise DataError(
            f"the column {named[0].name} of {one_line(file, 200)} holds {named[0].type}: needed "
            "for identities are texts or whole numbers"
        )
    return flat


def _columns(table: Any, schema: Any, file: str) -> dict[str, list[Any]]:
    """The columns beside the pictures; labels by their names, splits by the file's if not given."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, names in _label_names(schema, file).items():
        if name in columns:
            columns[name] = [  # -1 is no label, and texts are names already.
                names.get(label, label if isinstance(label, str) else None)
                for label in columns[name]
            ]
    split = file_name(file).partition("-")[0].lower()
    if split in SPLIT_NAMES and "split" not in columns:
        columns["split"] = [split] * table.num_rows
    return columns


def _label_names(schema: Any, file: str) -> dict[str, dict[int, str]]:
    """Names of the labels of each column, as Hugging Face stores them."""
    try:
        about = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features") or {}
        return {
            name: dict(enumerate(map(str, feature["names"])))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("names")
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{one_line(file, 200)} has damaged metadata of Hugging Face: write it again"
        ) from error


def _check_groups(groups: Sequence[Any], leaf: str, file: str) -> None:
    for group in groups:
        for at in range(group.num_columns):
            column = group.column(at)
            if column.path_in_schema == leaf and column.total_uncompressed_size > MAX_GROUP:
                raise DataError(
                    f"{one_line(file, 200)} has a row group of {group.num_rows:,} pictures and "
                    f"{column.total_uncompressed_size:,} bytes, which are read at once: write it "
                    "with a row_group_size of 1,000 or less"
                )


def _opened(name: str) -> Any:
    import pyarrow.parquet

    with _errors(name):
        return pyarrow.parquet.ParquetFile(
            open_input(name), thrift_string_size_limit=MAX_FOOTER,
            thrift_container_size_limit=MAX_FOOTER,
        )  # fmt: skip


@functools.lru_cache(maxsize=2)
def _row_group(file: _ParquetFile, group: int) -> Any:
    """The pictures of a row group, as an array of Arrow."""
    parquet = _opened(file.name)
    with _errors(file.name):
        column = parquet.read_row_group(group, columns=[file.column]).column(0)
        return _bytes_of(column.combine_chunks())


def _bytes_of(column: Any) -> Any:
    from pyarrow import types

    return column.field("bytes") if types.is_struct(column.type) else column


@functools.lru_cache(maxsize=16)
def _lance(name: str, version: int | None) -> Any:
    import lance

    return lance.dataset(name, version=version)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Errors of Arrow and Lance as a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        cause = SOURCE_PLACE.sub("", first_line(error)).rstrip(".")
        raise DataError(
            f"cannot read {one_line(name, 200)}: {one_line(cause, 200)}. Check that it is "
            "complete, and of a store the address and the credentials of the environment"
        ) from error
