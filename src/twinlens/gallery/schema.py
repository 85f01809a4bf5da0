"""Columns of a gallery's table, and the settings in its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlens.errors import GalleryError, one_line, short_repr
from twinlens.parsing import parse_json

__all__ = ["COLUMNS", "FIRST_TIME", "LAST_TIME", "MAX_DIM", "SETTINGS", "check_columns",
           "check_rows", "quoted", "read_metadata", "schema", "settings_json", "stored_settings",
           "with_settings"]  # fmt: skip

SETTINGS = "twinlens.gallery"
COLUMNS = ("hash", "identity", "path", "time", "metadata", "vector", "thumbnail")
MAX_DIM = 65_536  # as of `config.ModelSettings.embedding`
MAX_SETTINGS = 4 << 20  # characters
FIRST_TIME, LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""The times that Python can show."""


def quoted(text: str) -> str:
    """A string as an SQL literal.

    >>> quoted("d'Arc")
    "'d''Arc'"
    """
    return "'" + text.replace("'", "''") + "'"


def schema(dim: int) -> pa.Schema:
    """The columns of a table of templates.

    `hash` identifies a picture and is unique; `thumbnail` is a JPEG, or null.
    """
    # With this key Lance detects that two writers in an object store insert the same hash.
    key = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field("hash", pa.string(), nullable=False, metadata=key),
            pa.field("identity", pa.string()),
            pa.field("path", pa.string()),
            pa.field("time", pa.timestamp("us", "UTC")),
            pa.field("metadata", pa.json_(pa.utf8())),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("thumbnail", pa.large_binary()),
        ]
    )


def check_columns(columns: pa.Schema) -> None:
    """Check that a table has the columns of `schema`, of any dimension up to `MAX_DIM`.

    Raises:
        ValueError: other columns; names those found.
    """
    index = columns.get_field_index("vector")
    kind = columns.field(index).type if index >= 0 else None
    if isinstance(kind, pa.FixedSizeListType) and 1 <= kind.list_size <= MAX_DIM:
        wanted = schema(kind.list_size)
        if columns.names == wanted.names and columns.types == wanted.types:
            return
    names = one_line(", ".join(f"{field.name} ({field.type})" for field in columns), 200)
    raise ValueError(
        f"its table has the columns {names}; {', '.join(COLUMNS)} are needed, with vectors of 1 "
        f"to {MAX_DIM} numbers"
    )


def check_rows(rows: pa.Table) -> None:
    """Check rows of a table, which may have been written by anyone.

    Raises:
        ValueError: a missing value, a time beyond the years 1 to 9999, or a vector that is not
            finite.
    """
    for name in rows.column_names:
        column = rows[name]
        if name in COLUMNS and name != "thumbnail" and column.null_count:
            raise ValueError(f"{name} is missing in {column.null_count} of {len(rows)} rows")
    if "time" in rows.column_names and len(rows):
        span = pc.min_max(rows["time"].cast(pa.int64()))
        limits = [pa.scalar(at, pa.timestamp("us", "UTC")).value for at in (FIRST_TIME, LAST_TIME)]
        if span["min"].as_py() < limits[0] or span["max"].as_py() > limits[1]:
            raise ValueError("a time is outside of the years 1 to 9999")
    if "vector" in rows.column_names:
        for chunk in rows["vector"].chunks:
            if chunk.flatten().null_count or not np.isfinite(chunk.flatten().to_numpy()).all():
                raise ValueError("a vector holds numbers that are missing or not finite")


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a row.

    Raises:
        GalleryError: not a JSON object, or beyond the limits of `parsing`.
    """
    reason = ""
    try:
        if isinstance(values := parse_json(text), dict):
            return values
    except ValueError as error:
        reason = f" ({error})"
    raise GalleryError(
        f"its column metadata holds {short_repr(text)}, but a JSON object is needed, such as "
        f'{{"room": "north"}}{reason}'
    )


def with_settings(columns: pa.Schema, settings: Mapping[str, Any]) -> pa.Schema:
    """A schema that carries a gallery's settings."""
    return columns.with_metadata({SETTINGS: settings_json(settings)})


def stored_settings(table: lance.LanceDataset) -> dict[str, Any] | None:
    """The settings in a table's schema; None if it is not a gallery's table.

    Raises:
        ValueError: no JSON object, too large, or beyond the limits of `parsing`.
    """
    text = (table.schema.metadata or {}).get(SETTINGS.encode())
    if text is None:
        return None
    if len(text) > MAX_SETTINGS:
        raise ValueError(f"its settings have {len(text):,} bytes, over {MAX_SETTINGS:,}")
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its settings cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("its settings are no JSON object")
    return values


def settings_json(settings: Mapping[str, Any]) -> str:
    """Settings as stored."""
    return json.dumps(settings, ensure_ascii=False, allow_nan=False)
