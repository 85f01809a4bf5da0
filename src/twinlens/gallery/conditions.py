"""Conditions of a search: a user's SQL-like text to the filter of the store."""

from __future__ import annotations

import re

from twinlens.errors import GalleryError
from twinlens.gallery.store import Store

__all__ = ["condition_of", "explain_cast"]

KEY = re.compile(r"""\b(?i:metadata)\.(?:(\w+)|"([^"']+)")""")
IN_QUOTES = re.compile(r"('(?:[^']|'')*')")


def condition_of(store: Store, where: str) -> str:
    """The filter for a condition; `metadata.KEY` is a value in a JSON column.

    A KEY with other characters than letters, digits and _ is written in double quotes:
    `metadata."my key"`.

    Raises:
        GalleryError: an invalid condition.
    """
    parts = IN_QUOTES.split(where)  # Every other one is in quotes.
    parts[::2] = [KEY.sub(r"json_get_string(metadata, '\1\2')", part) for part in parts[::2]]
    condition = "".join(parts)
    try:
        store.find(condition, columns=["hash"], limit=0)
    except GalleryError as error:
        reason = str(error).split(": ", 1)[-1]
        raise GalleryError(
            f"the condition {where!r} is not understood: it is SQL on identity, path, time and "
            f"metadata.KEY, such as \"identity = 'anna' AND metadata.year > 2020\" ({reason:.200})"
        ) from error
    return condition


def explain_cast(where: str | None, error: GalleryError) -> GalleryError:
    """The error of a search; with advice if a number was compared with text metadata."""
    if "Cast error: " not in str(error):
        return error
    reason = str(error).rpartition("Cast error: ")[2]
    return GalleryError(
        f"the condition {where!r} compares a number with metadata that is not a number ({reason}): "
        "write it as text, such as metadata.room = '3', or with decimals, such as > 3.0"
    )
