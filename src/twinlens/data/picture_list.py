"""Pictures and identities in lists and columns of any library -> ImageTable.

Pictures in memory are named by their place, such as "000017", so that the table keeps their order.

Shapes: N pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.picture_value import array_of, picture_of_row
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line

__all__ = ["build_table", "columns_of", "is_plain", "one_column", "text_of"]

PLAIN_KINDS = ("dict", "list", "tuple", "generator", "ndarray", "Tensor")
"""Types whose names tell nothing about the data."""


def build_table(
    pictures: Any,
    identities: Iterable[Any] | None,
    source: str,
    root: Path | None,
    *,
    forged: Sequence[bool] = (),
    split: Sequence[str] = (),
    metadata: Sequence[Mapping[str, Any]] = (),
    names: Sequence[str] = (),
) -> ImageTable:
    """A table of files if all pictures are paths, else of pictures in memory.

    Args:
        pictures: an array as of `arrays.pictures_array`, or N values as of `picture_value`.
        identities: N names or labels; None if unknown.
        source: type of the data, which names it.
        root: base folder of relative paths.
        forged: N roles; none are forged by default.
        split: N splits.
        metadata: N mappings.
        names: N names of pictures that are no paths; their rows by default.
    Raises:
        DataError: no pictures, a number of labels that differs, some identities missing, or a
            path with two identities.
    """
    is_array = hasattr(pictures, "__array__") and array_of(pictures).dtype.kind not in "OUST"
    values = pictures if is_array else list(pictures)
    num = len(values)
    paths = list(names) or [f"{row:0{len(str(max(num - 1, 0)))}d}" for row in range(num)]
    labels = _identities(identities, num, names)
    if not is_array:
        values = [picture_of_row(value, row) for row, value in enumerate(values)]
    pixels: Any = values
    kept = list(range(num))
    if not is_array and all(isinstance(value, str) for value in values):
        paths = [str(Path(value) if root is None else root / value) for value in values]
        kept, pixels = _distinct(paths, labels), None
    elif not is_array:
        pixels = np.empty(num, dtype=object)
        pixels[:] = values
    table = ImageTable(
        _objects(paths, kept), _objects(labels, kept),
        np.array([forged[row] for row in kept] if forged else np.zeros(len(kept)), np.bool_),
        _objects(split or [""] * num, kept),
        "pictures" if source in PLAIN_KINDS else source, root, pixels,
    )  # fmt: skip
    if not any(metadata):
        return table
    given = {paths[row]: metadata[row] for row in kept}
    return table.with_metadata([given[path] for path in table.path])


def _identities(identities: Iterable[Any] | None, num: int, names: Sequence[str]) -> list[str]:
    """Labels as text; all empty if there are none."""
    if identities is None:
        return [""] * num
    labels = [text_of(value) for value in identities]
    if len(labels) != num:
        raise DataError(f"found {num} pictures and {len(labels)} labels: each picture needs one")
    missing = [row for row, label in enumerate(labels) if not label]
    if 0 < len(missing) < num:
        first = names[missing[0]] if names else f"picture {missing[0]}"
        raise DataError(
            f"{len(missing)} of {num} pictures have no identity, such as {one_line(first)}: name"
            " it, or remove them"
        )
    return labels


def _distinct(paths: Sequence[str], names: Sequence[str]) -> list[int]:
    """The first row of each path."""
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        known = first.setdefault(path, row)
        if names[known] != names[row]:
            raise DataError(
                f"{one_line(path)} has two identities, {one_line(names[known])} and "
                f"{one_line(names[row])}: correct one of them"
            )
    return list(first.values())


def _objects(values: Sequence[Any], rows: Sequence[int]) -> NDArray[np.object_]:
    return np.array([values[row] for row in rows], dtype=object)


def text_of(value: Any) -> str:
    """A label as text: whole numbers without a point, missing values as ""."""
    if hasattr(value, "item"):  # A scalar of NumPy or torch.
        value = value.item()
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


# --- columns ------------------------------------------------------------------------------------


def columns_of(data: Any) -> dict[str, Any] | None:
    """The columns of a data frame of pandas, Polars or Arrow, by name; None for other objects.

    Raises:
        DataError: a lazy frame, or two columns of one name.
    """
    kind = type(data)
    if hasattr(data, "collect") and kind.__module__.startswith("polars"):
        raise DataError("found a LazyFrame of Polars: pass `frame.collect()`")
    if not (hasattr(data, "__arrow_c_stream__") or hasattr(data, "__dataframe__")):
        return None
    names = list(data.column_names if hasattr(data, "column_names") else data.columns)
    if len(set(names)) < len(names):
        raise DataError(f"the {kind.__name__} has two columns of one name, found {names}")
    return {str(name): _values(data[name]) for name in names}


def _values(column: Any) -> list[Any]:
    names = ("to_pylist", "to_list", "tolist")  # of Arrow, Polars and pandas, and of NumPy
    return list(next(getattr(column, name) for name in names if hasattr(column, name))())


def one_column(columns: Mapping[str, Any], names: Sequence[str], subject: str, source: str) -> str:
    """The column of one of some names, whatever its capitals.

    Raises:
        DataError: none, or several.
    """
    matching = [name for name in columns if name.lower() in names]
    if len(matching) == 1:
        return matching[0]
    problem = f"both {' and '.join(matching)}" if matching else one_line(", ".join(columns), 300)
    raise DataError(
        f"the {source} has the columns {problem or '(none)'}; exactly one column of {subject} is "
        f"needed, named {', '.join(names)}: rename or drop columns"
    )


def is_plain(value: Any) -> bool:
    """Whether JSON can express a value: text, a finite number or a boolean."""
    is_finite = isinstance(value, float) and math.isfinite(value)
    return is_finite or (isinstance(value, str | int) and value != "")
