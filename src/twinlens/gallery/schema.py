"""Columns of a gallery's table, and the settings in its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import lance
import pyarrow as pa

__all__ = ["COLUMNS", "SETTINGS", "quoted", "schema", "settings_json", "stored_settings",
           "with_settings"]  # fmt: skip

SETTINGS = "twinlens.gallery"
COLUMNS = ("hash", "identity", "path", "time", "metadata", "vector", "thumbnail")


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


def with_settings(columns: pa.Schema, settings: Mapping[str, Any]) -> pa.Schema:
    """A schema that carries a gallery's settings."""
    return columns.with_metadata({SETTINGS: settings_json(settings)})


def stored_settings(table: lance.LanceDataset) -> dict[str, Any] | None:
    """The settings in a table's schema; None if it is not a gallery's table."""
    text = (table.schema.metadata or {}).get(SETTINGS.encode())
    return None if text is None else dict(json.loads(text))


def settings_json(settings: Mapping[str, Any]) -> str:
    """Settings as stored."""
    return json.dumps(settings, ensure_ascii=False, allow_nan=False)
