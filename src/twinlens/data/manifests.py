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

from twinlens.data.csv_file import read_csv
from twinlens.data.table import ImageTable, Row
from twinlens.errors import DataError

__all__ = ["MANIFEST_SUFFIXES", "SPLIT_NAMES", "read_manifest"]

MANIFEST_SUFFIXES = (".csv", ".parquet")

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

Entry = tuple[str, dict[str, str], dict[str, Any]]
"""Location of the row ("line 7"), its known columns, and its other columns unless empty."""


def read_manifest(file: Path, *, root: Path | None = None, source: str | None = None) -> ImageTable:
    """The pictures listed in a CSV or Parquet file.

    CSV is UTF-8, with or without a byte order mark, separated by commas, semicolons or tabs.
    Equal rows count once. Identities are text, whatever the type of the column.

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
    num_entries = 0
    for num_entries, (where, cells, others) in enumerate(entries, 1):  # noqa: B007
        wrong = _problems(cells)
        if not wrong:
            row = _row(cells, base)
            first, same_path = rows.setdefault(row[0], (where, row))
            metadata.setdefault(row[0], others)
            wrong = [] if same_path == row else [f"contradicts {first} about '{cells['path']}'"]
        problems += [f"{where}: {problem}" for problem in wrong]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise DataError(f"the manifest {file} has invalid rows:\n  " + "\n  ".join(shown))
    if num_entries == 0:
        raise DataError(f"the manifest {file} has no rows: add one for each picture")
    table = ImageTable.of_rows((row for _, row in rows.values()), source or str(file), base)
    if not any(metadata.values()):
        return table
    return table.with_metadata([metadata[path] for path in table.path])


def _problems(cells: dict[str, str]) -> list[str]:
    problems = [f"no {name}" for name in REQUIRED if not cells[name].strip()]
    if cells["role"].strip().lower() not in ROLES:
        problems.append(f"role is genuine, forged or empty, found '{cells['role']}'")
    if cells["split"].strip().lower() not in {"", *SPLIT_NAMES}:
        problems.append(f"split is train, val, test or empty, found '{cells['split']}'")
    return problems


def _row(cells: dict[str, str], base: Path) -> Row:
    split = cells["split"].strip().lower()
    # normpath, so that "a.png" and "./a.png" are the same picture.
    path = os.path.normpath(base / cells["path"])
    forged = ROLES[cells["role"].strip().lower()]
    return path, cells["identity"].strip(), forged, SPLIT_NAMES.get(split, "")


def _require_columns(names: list[str], file: Path) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(
            f"the manifest {file} has no column {' and no column '.join(missing)}, found"
            f" {', '.join(names) if names else 'nothing'}: it needs path and identity; role and"
            " split are optional"
        )


def _csv_entries(file: Path) -> Iterator[Entry]:
    for line, cells in read_csv(file, "the manifest", lambda names: _require_columns(names, file)):
        others = {name: value for name, value in cells.items() if name not in COLUMNS and value}
        yield f"line {line}", {name: cells.get(name, "") for name in COLUMNS}, others


def _parquet_entries(file: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            _require_columns(names, file)
            # Nested columns such as embeddings are no metadata to filter by.
            flat = [f.name for f in parquet.schema_arrow if not pyarrow.types.is_nested(f.type)]
            number = 0
            for batch in parquet.iter_batches(columns=flat):
                for values in batch.to_pylist():
                    number += 1
                    cells = {name: _text(values.pop(name, None)) for name in COLUMNS}
                    others = {name: _plain(value) for name, value in values.items()}
                    yield f"row {number}", cells, {k: v for k, v in others.items() if v != ""}
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read the manifest {file}: {error}") from error


def _plain(value: Any) -> Any:
    """A value that JSON can express: finite numbers and booleans unchanged, the rest as text."""
    finite = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if finite else _text(value)


def _text(value: Any) -> str:
    # A missing number of a data frame is NaN, which differs from itself.
    return "" if value is None or value != value else str(value)
