"""Manifests, CSV or Parquet: one row for each picture.

Columns `path`, `identity`, and optionally `role` (genuine | forged; empty is genuine) and `split`
(train | val | test; empty is not assigned). Numbers, text and booleans of other columns are
metadata, which a gallery keeps and training ignores. The files are not opened here: the decoder
reports missing and broken ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinlens.data.csv_file import path_of_cell, read_csv
from twinlens.data.remote import is_address
from twinlens.data.table import ImageTable, Row
from twinlens.errors import DataError, first_line, one_line

__all__ = ["MANIFEST_SUFFIXES", "MAX_FOOTER", "SPLIT_NAMES", "check_size", "read_manifest"]

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Accepted name of a split -> its name in twinlens."""

COLUMNS = ("path", "identity", "role", "split")
REQUIRED = ("path", "identity")
ROLES = {"": False, "genuine": False, "forged": True}
MAX_PROBLEMS = 10

# Limits of Parquet, whose files of a few bytes may claim any size.
ROWS_AT_ONCE = 1000
MAX_ROWS_PER_BYTE = 10  # Each row has a path of its own.
MAX_FOOTER = 4 << 20
MAX_UNPACKED, MAX_RATIO = 64 << 20, 200  # bytes of a column, of a small file and as a multiple
MAX_CELL = 131_072  # bytes; as of CSV

Entry = tuple[str, dict[str, str], dict[str, Any]]
"""Location of the row ("line 7"), its known columns, and its other columns unless empty."""


def read_manifest(file: Path, *, root: Path | None = None, source: str | None = None) -> ImageTable:
    """The pictures listed in a CSV or Parquet file.

    CSV is UTF-8, with or without a byte order mark, separated by commas, semicolons or tabs.
    Equal rows count once. Identities are text, whatever the type of the column. Backslashes in a
    path separate folders if only that file exists.

    Args:
        file: the manifest.
        root: base folder of relative paths; the folder of the manifest if None.
        source: data as the user named it.
    Raises:
        DataError: unreadable, no rows, missing columns, or invalid rows; the first ten problems
            are reported together.
    """
    base = Path(os.path.normpath(file.parent if root is None else root))
    entries = _parquet_entries(file) if file.suffix.lower() == ".parquet" else _csv_entries(file)
    rows: dict[str, tuple[str, Row]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    num_entries = num_problems = 0
    for num_entries, (where, cells, others) in enumerate(entries, 1):  # noqa: B007
        wrong = _problems(cells)
        if not wrong:
            row = _row(cells, base)
            first, same_path = rows.setdefault(row[0], (where, row))
            metadata.setdefault(row[0], others)
            wrong = (
                []
                if same_path == row
                else [f"contradicts {first} about '{one_line(cells['path'])}'"]
            )
        num_problems += len(wrong)
        problems += [f"{where}: {problem}" for problem in wrong[: MAX_PROBLEMS - len(problems)]]
    if problems:
        more = num_problems - len(problems)
        shown = problems + ([f"and {more} more"] if more > 0 else [])
        raise DataError(f"the manifest {file} has invalid rows:\n  " + "\n  ".join(shown))
    if num_entries == 0:
        raise DataError(f"the manifest {file} has no rows: add one for each picture")
    table = ImageTable.of_rows((row for _, row in rows.values()), source or str(file), base)
    if not any(metadata.values()):
        return table
    return table.with_metadata([metadata[path] for path in table.path])


def _problems(cells: dict[str, str]) -> list[str]:
    problems = [f"no {name}" for name in REQUIRED if not cells[name].strip()]
    if is_address(cells["path"]):
        problems.append("path is an address: `twinlens fetch MANIFEST FOLDER` downloads the files")
    if "\0" in cells["path"]:
        problems.append("path holds a NUL")
    if cells["role"].strip().lower() not in ROLES:
        problems.append(f"role is genuine, forged or empty, found '{one_line(cells['role'])}'")
    if cells["split"].strip().lower() not in {"", *SPLIT_NAMES}:
        problems.append(f"split is train, val, test or empty, found '{one_line(cells['split'])}'")
    return problems


def _row(cells: dict[str, str], base: Path) -> Row:
    split = cells["split"].strip().lower()
    # normpath, so that "a.png" and "./a.png" are the same picture.
    path = os.path.normpath(path_of_cell(base, cells["path"]))
    forged = ROLES[cells["role"].strip().lower()]
    return path, cells["identity"].strip(), forged, SPLIT_NAMES.get(split, "")


def _require_columns(names: list[str], file: Path) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(
            f"the manifest {file} has no column {' and no column '.join(missing)}, found "
            f"{one_line(', '.join(names), 300) or 'nothing'}: it needs path and identity; role and "
            "split are optional"
        )


def _csv_entries(file: Path) -> Iterator[Entry]:
    for line, cells in read_csv(file, "the manifest", lambda names: _require_columns(names, file)):
        others = {name: value for name, value in cells.items() if name not in COLUMNS and value}
        yield f"line {line}", {name: cells.get(name, "") for name in COLUMNS}, others


def _parquet_entries(file: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    try:
        limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_FOOTER}
        with pyarrow.parquet.ParquetFile(file, **limits) as parquet:
            columns = parquet.schema_arrow
        names = [_column(name) for name in columns.names]
        _require_columns(names, file)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"the manifest {file} has the column {one_line(twice[0])} twice")
        check_size(parquet.metadata, f"the manifest {file}", file.stat().st_size)
        # Nested columns such as embeddings are no metadata to filter by.
        flat = [field.name for field in columns if not pyarrow.types.is_nested(field.type)]
        # As dictionaries, so that one large text does not become a copy for each row.
        text = [field.name for field in columns if pyarrow.types.is_string(field.type)]
        with pyarrow.parquet.ParquetFile(file, read_dictionary=text, **limits) as parquet:
            number = 0
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=flat):
                _check_cells(batch, file)
                for values in batch.rename_columns(
                    list(map(_column, batch.schema.names))
                ).to_pylist():
                    number += 1
                    cells = {name: _text(values.pop(name, None)) for name in COLUMNS}
                    others = {name: _plain(value) for name, value in values.items()}
                    yield f"row {number}", cells, {k: v for k, v in others.items() if v != ""}
    except DataError:
        raise
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"cannot read the manifest {file}: {first_line(error)}") from error


def _column(name: str) -> str:
    """The name of a column; those that a manifest needs are read without capitals, as in CSV."""
    plain = name.strip().lower()
    return plain if plain in COLUMNS else name


def check_size(metadata: Any, name: str, size: int) -> None:
    """Check what a Parquet file claims to hold, before memory is spent.

    Args:
        metadata: its footer.
        name: the file, for messages.
        size: its bytes.
    Raises:
        DataError: more rows, or larger columns, than its bytes can be.
    """
    if metadata.num_rows > MAX_ROWS_PER_BYTE * size:
        raise DataError(
            f"{name} claims {metadata.num_rows:,} rows in {size:,} bytes, in which so many "
            "pictures do not fit: write it again"
        )
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    sizes = (group.column(at).total_uncompressed_size for group in groups
             for at in range(group.num_columns))  # fmt: skip
    largest = max(sizes, default=0)
    if largest > max(MAX_UNPACKED, MAX_RATIO * size):
        raise DataError(
            f"{name} has {size:,} bytes, and a column of it {largest:,} when unpacked: write it "
            "without large columns"
        )


def _check_cells(batch: Any, file: Path) -> None:
    import pyarrow
    import pyarrow.compute

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        text = column.dictionary if pyarrow.types.is_dictionary(column.type) else column
        if pyarrow.types.is_string(text.type) or pyarrow.types.is_binary(text.type):
            longest = pyarrow.compute.max(pyarrow.compute.binary_length(text)).as_py() or 0
            if longest > MAX_CELL:
                raise DataError(
                    f"the manifest {file} has a cell of {longest:,} bytes in the column "
                    f"{one_line(name)}; up to {MAX_CELL:,} are read"
                )


def _plain(value: Any) -> Any:
    """A value that JSON can express: finite numbers and booleans unchanged, the rest as text."""
    finite = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if finite else _text(value)


def _text(value: Any) -> str:
    # A missing number of a data frame is NaN, which differs from itself.
    return "" if value is None or value != value else str(value)
