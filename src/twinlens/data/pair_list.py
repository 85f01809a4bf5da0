"""Lists of pairs: which pictures show the same identity, and which do not.

Pictures that genuine pairs join, directly or through others, are one identity. This is what the
list states. That two identities differ, it states only for its impostor pairs.

Shapes: N pairs, P distinct pictures.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.csv_file import path_of_cell, read_csv
from twinlens.data.picture_list import build_table, columns_of, text_of
from twinlens.data.picture_value import picture_of_row
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line
from twinlens.files import expand_user

__all__ = ["CLUSTER", "PairList", "pairs_in", "pairs_of_columns", "pairs_of_file"]

log = logging.getLogger("twinlens")

PAIR_COLUMNS = ("a", "b", "same")
TRIAL, CLUSTER = "trial", "cluster"
ONE_SHOT_COLUMNS = (TRIAL, "probe", "candidate", "same")
SUFFIXES = (".csv", ".tsv")
TRUE, FALSE = ("1", "true", "yes", "same"), ("0", "false", "no", "different")


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of pictures.

    Attributes:
        table: the P distinct pictures; the identities are numbers of the groups that genuine pairs
            join, "0001" and so on.
        a: rows of the first pictures, shape (N,).
        b: rows of the second pictures.
        same: whether each pair is genuine, shape (N,).
        columns: other columns, N values each.
        trial: trial of each pair of probe `a` and candidate `b`, N names; None if the list is of
            pairs, not of one-shot trials.
    """

    table: ImageTable
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    same: NDArray[np.bool_]
    columns: Mapping[str, Sequence[str]]
    trial: Sequence[str] | None = None

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels of the identities of both pictures of each pair, (N,) and (N,)."""
        label_P = self.table.labels()
        return label_P[self.a], label_P[self.b]

    def unlabelled(self) -> ImageTable:
        """The pictures without identities, whose numbers are no names."""
        return replace(self.table, identity=np.full(len(self.table), "", dtype=object))

    def as_table(self) -> ImageTable:
        """The table, after a line on what the pairs mean as identities.

        Raises:
            DataError: a pair that is not the same, of pictures that other pairs join.
        """
        a, b = self.labels()
        wrong = np.flatnonzero((a == b) & ~self.same)
        if len(wrong):
            names = [
                one_line(self.table.relative(int(rows[wrong[0]]))) for rows in (self.a, self.b)
            ]
            raise DataError(
                f"{self.table.source} contradicts itself in {len(wrong)} pairs: {names[0]} and "
                f"{names[1]} are not the same, but other pairs join them; correct one of these"
            )
        log.info("%s", self.describe())
        return self.table

    def describe(self) -> str:
        """What the pairs mean as identities, in a sentence."""
        num = len(self.table.identities())
        different = np.sort(np.stack(self.labels())[:, ~self.same], axis=0)
        stated = np.unique(different, axis=1).shape[1]
        return (
            f"{np.count_nonzero(self.same):,} genuine pairs join {len(self.table):,} pictures to "
            f"{num:,} identities, which count as different; impostor pairs state this of "
            f"{stated:,} of their {num * (num - 1) // 2:,} pairs"
        )


def pairs_in(data: Any, root: str | Path | None = None) -> PairList | None:
    """The pairs of a list of pairs; None for other data.

    Args:
        data: a CSV file or a data frame with the columns `a`, `b` and `same`, or a list of tuples
            (a, b, same) or of mappings. Pictures are of any kind of `picture_value`; `same` is 1 or
            0, or a boolean. Other data is not read.
        root: base folder of relative paths; by default the folder of the file, else the current
            folder.
    Raises:
        DataError: pairs with a missing picture or an unknown value of `same`.
    """
    base = None if root is None else expand_user(root)
    if isinstance(data, PairList):
        return data
    if isinstance(data, str | Path):
        file = expand_user(data)
        if file.suffix.lower() not in SUFFIXES or not set(PAIR_COLUMNS) <= set(_header(file)):
            return None
        return pairs_of_file(file, base)
    source = type(data).__name__
    columns = columns_of(data)
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        columns = {name: [row.get(name) for row in data] for name in data[0]}
    elif isinstance(data, list) and data and _is_triple(data[0]):
        if not all(map(_is_triple, data)):
            raise DataError("each item of a list of pairs needs a, b and same")
        columns = dict(zip(PAIR_COLUMNS, zip(*data, strict=True), strict=True))
    return None if columns is None else pairs_of_columns(columns, source, base)


def pairs_of_columns(
    columns: Mapping[str, Sequence[Any]], source: str, root: Path | None
) -> PairList | None:
    """The pairs of columns `a`, `b` and `same`; None without them.

    Raises:
        DataError: as in `pairs_in`.
    """
    names = {name.strip().lower(): name for name in columns}
    if not set(PAIR_COLUMNS) <= names.keys():
        return None
    first, second, same = (columns[names[name]] for name in PAIR_COLUMNS)
    words = [text_of(value).lower() for value in same]
    for row, word in enumerate(words):
        if word not in TRUE + FALSE:
            raise DataError(f"row {row} of the {source}: same is 1 or 0, found '{one_line(word)}'")
    pictures_a, pictures_b = (
        [picture_of_row(value, row) for row, value in enumerate(values)]
        for values in (first, second)
    )
    others = {
        name: list(map(text_of, columns[name]))
        for name in columns
        if name.strip().lower() not in PAIR_COLUMNS
    }
    is_same = np.array([word in TRUE for word in words], np.bool_)
    return _build(pictures_a, pictures_b, is_same, others, source, root, root)


def pairs_of_file(file: Path, folder: Path | None = None) -> PairList:
    """The pairs of a CSV file of pairs or one-shot trials.

    Args:
        file: columns `a,b,same` or `trial,probe,candidate,same`.
        folder: further folder of the pictures, besides that of the file and the current one.
    Raises:
        DataError: unreadable, other columns, no rows, an empty cell, or an unknown value of `same`.
    """
    rows, columns = _read_trials(file)
    first, second = (
        [_find_picture(row[name], file, folder) for row in rows] for name in columns[-3:-1]
    )
    same = np.array([row["same"].strip().lower() in TRUE for row in rows])
    others = {
        name: [row[name] for row in rows] for name in rows[0] if name not in columns[-3:]
    }  # fmt: skip
    pairs = _build(first, second, same, others, str(file), None, file.parent)
    return replace(pairs, trial=others[TRIAL]) if columns[0] == TRIAL else pairs


def _read_trials(file: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """The rows of a CSV file, and those of its columns that every row needs."""

    def check_columns(names: list[str]) -> None:
        if names and all(name.isdecimal() for name in names):
            raise DataError(
                f"{file} begins with numbers, as pairs.txt of LFW does, which is not read: write "
                f"the line {','.join(PAIR_COLUMNS)}, then one for each pair, such as "
                "NAME/NAME_0001.jpg,NAME/NAME_0002.jpg,1"
            )
        if not any(set(columns) <= set(names) for columns in (ONE_SHOT_COLUMNS, PAIR_COLUMNS)):
            raise DataError(
                f"{file} has the columns {one_line(', '.join(names)) or '(none)'}; trials need "
                f"{','.join(PAIR_COLUMNS)} or {','.join(ONE_SHOT_COLUMNS)}"
            )

    lines = list(read_csv(file, "the trials", check_columns))
    if not lines:
        raise DataError(f"{file} holds no trials: it needs a line for each pair")
    header = lines[0][1]
    columns = ONE_SHOT_COLUMNS if set(ONE_SHOT_COLUMNS) <= set(header) else PAIR_COLUMNS
    needed = (*columns, CLUSTER) if CLUSTER in header else columns
    for number, row in lines:
        if any(not row[name].strip() for name in needed):
            raise DataError(f"{file} line {number}: {', '.join(needed)} are all needed")
        if row["same"].strip().lower() not in TRUE + FALSE:
            raise DataError(
                f"{file} line {number}: same is 1 or 0, found '{one_line(row['same'])}'"
            )
    return [row for _, row in lines], columns


def _find_picture(name: str, file: Path, folder: Path | None) -> str:
    """The path of a picture in a list: beside the list, in a folder, or in the current one."""
    for base in (file.parent, *([folder] if folder is not None else []), Path()):
        path = path_of_cell(base, name)
        if path.is_file():
            return str(path)
    return str(file.parent / name)


def _header(file: Path) -> list[str]:
    names: list[str] = []
    if file.is_file():  # A pipe could not be read again.
        next(read_csv(file, "the list", names.extend), None)
    return [] if "path" in names else names


def _is_triple(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == len(PAIR_COLUMNS)


def _build(
    first: Sequence[Any],
    second: Sequence[Any],
    same: NDArray[np.bool_],
    others: Mapping[str, Sequence[str]],
    source: str,
    root: Path | None,
    base: Path | None,
) -> PairList:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    both = [
        str(Path(one) if root is None else root / one) if isinstance(one, str) else one
        for pair in zip(first, second, strict=True)
        for one in pair
    ]
    keys = list(map(_key, both))
    pictures = dict(zip(keys, both, strict=True))
    place = {key: row for row, key in enumerate(pictures)}
    a, b = np.array([place[key] for key in keys], np.int64).reshape(-1, 2).T
    links = coo_array((same[same], (a[same], b[same])), shape=(len(place), len(place)))
    num, label_P = connected_components(links, directed=False)
    names = [f"{label + 1:0{len(str(num))}d}" for label in label_P.tolist()]
    table = build_table(list(pictures.values()), names, source, None)
    if table.pixels is None:  # It is sorted by path.
        place = {path: row for row, path in enumerate(table.path)}
    row_P = np.array([place[key] for key in pictures], np.int64)
    return PairList(replace(table, root=base), row_P[a], row_P[b], same, others)


def _key(picture: Any) -> Any:
    """Equal for one picture in several pairs."""
    if isinstance(picture, np.ndarray):
        return picture.shape, hashlib.sha256(picture.tobytes()).digest()
    return picture
