"""Columns of a data set as groups of its pictures: metadata of a manifest, or parent folders.

Shapes: N pictures or rows, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.manifests import SPLIT_NAMES
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line

__all__ = ["FOLDER", "Groups", "as_groups", "column_names", "read_column"]

FOLDER = "folder"
"""The column of every table of files: the folder above that of the picture."""

MOST_GROUPS = 50
MOST_NUMBERS = 8  # Distinct numbers; more are binned.
NUM_BINS = 4


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of N rows: `code` (N,), an index into `names`, or -1 for a row without a value."""

    column: str
    names: tuple[str, ...]
    code: NDArray[np.int64]


def column_names(table: ImageTable) -> list[str]:
    """Columns that `read_column` reads, sorted: those of the metadata, and "folder"."""
    metadata = [] if table.metadata is None else table.metadata.tolist()
    names = {name for row in metadata for name in row}
    return sorted(names | ({FOLDER} if any(_folders(table)) else set()))


def read_column(table: ImageTable, name: str) -> list[Any]:
    """The value of each picture in a column; "" or None if missing.

    The column "folder", unless the metadata has one, is the folder above that of the picture, below
    DATA and the folder of a split: the alphabet of `Greek/character01/0.png`.

    Raises:
        DataError: no such column.
    """
    if table.metadata is not None and any(name in row for row in table.metadata):
        return [row.get(name) for row in table.metadata]
    if name == FOLDER and any(values := _folders(table)):
        return values
    known = column_names(table)
    has = f"its columns are {one_line(', '.join(known), 300)}" if known else (
        "it has none: they come from further columns of a manifest, or from folders above those of "
        "the identities (folder)"
    )  # fmt: skip
    raise DataError(f"{table.source} has no column '{one_line(name)}' to group by; {has}")


def as_groups(values: Sequence[Any], column: str) -> Groups:
    """Groups of equal values; more than 8 distinct numbers fall into quarters of equal size.

    >>> as_groups(["b", "a", None, "b"], "camera").code.tolist()
    [1, 0, -1, 1]
    >>> as_groups([str(age) for age in range(20, 40)], "age").names
    ('20 to 24', '25 to 29', '30 to 34', '35 to 39')

    Args:
        values: N values; "" and None are missing.
        column: name of the column.
    Raises:
        DataError: no values, or more than 50 different texts.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    present = np.array([bool(text) for text in texts])
    code = np.full(len(texts), -1, dtype=np.int64)
    if not present.any():
        raise DataError(f"the column '{one_line(column)}' is empty: there is nothing to group by")
    kept = [text for text in texts if text]
    numbers = _numbers(kept)
    if numbers is None:
        names, code[present] = np.unique(np.array(kept, dtype=object), return_inverse=True)
        if len(names) > MOST_GROUPS:
            raise DataError(
                f"the column '{one_line(column)}' has {len(names):,} different values, and at most "
                f"{MOST_GROUPS} groups are compared: choose another column, or add a coarser one"
            )
        return Groups(column, tuple(names.tolist()), code)
    distinct, code[present] = np.unique(numbers, return_inverse=True)
    if len(distinct) <= MOST_NUMBERS:
        return Groups(column, tuple(f"{number:g}" for number in distinct), code)
    ends = np.unique(np.quantile(numbers, np.arange(1, NUM_BINS) / NUM_BINS, method="lower"))
    bins, code[present] = np.unique(np.searchsorted(ends, numbers), return_inverse=True)
    parts = [numbers[code[present] == place] for place in range(len(bins))]
    return Groups(column, tuple(_range(part.min(), part.max()) for part in parts), code)


def _folders(table: ImageTable) -> list[str]:
    if table.pixels is not None:
        return [""] * len(table)
    folders = []
    for row in range(len(table)):
        parts = PurePosixPath(table.relative(row)).parts[:-2]
        if parts and table.split[row] and SPLIT_NAMES.get(parts[0].lower()) == table.split[row]:
            parts = parts[1:]
        folders.append("/".join(parts))
    return folders


def _numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return np.array(numbers) if all(map(math.isfinite, numbers)) else None


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
