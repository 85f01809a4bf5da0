"""Must-link and cannot-link pairs from a CSV file `a,b,link`, free of contradictions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.clusters.linkage import contradiction, linked_groups
from twinlens.data.csv_file import read_csv
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line
from twinlens.files import expand_user

__all__ = ["Constraints", "read_constraints", "rows_by_name"]

COLUMNS = ("a", "b", "link")
LINKS = ("must", "cannot")
MOST_SHOWN = 10

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Constraints:
    """Pairs of rows: must-link and cannot-link."""

    must: tuple[tuple[int, int], ...] = ()
    cannot: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.must) + len(self.cannot)

    def kept_apart(self, pairs: Sequence[tuple[int, int]], label_N: Ints) -> Constraints:
        """With further cannot-link pairs, except those of pictures that are together.

        Args:
            pairs: cannot-link pairs.
            label_N: existing clusters, whose pictures are together; -1 for a new picture.
        """
        group_N = linked_groups(len(label_N), self.must, label_N)
        free = [(a, b) for a, b in pairs if group_N[a] != group_N[b]]
        return Constraints(self.must, (*self.cannot, *free))


@dataclass(frozen=True)
class _Line:
    """A line of the file."""

    number: int
    a: str
    b: str
    link: str


def rows_by_name(table: ImageTable) -> dict[str, int]:
    """The row of each picture, by its path in DATA and by its absolute path."""
    rows: dict[str, int] = {}
    for row in range(len(table)):
        path = str(table.path[row])
        rows[path if table.pixels is not None else os.path.abspath(path)] = row  # noqa: PTH100
        rows[table.relative(row)] = row
    return rows


def read_constraints(file: Path, rows: Mapping[str, int]) -> Constraints:
    """Read must-link and cannot-link pairs.

    Args:
        file: CSV, UTF-8, with the columns `a`, `b` (pictures) and `link` (must | cannot), separated
            by commas, semicolons or tabs. Pictures are named as in DATA, or by a path from the
            working directory.
        rows: row of each picture, by name; see `rows_by_name`.
    Raises:
        DataError: unreadable, missing columns, no lines, invalid lines or unknown pictures (the
            first ten are listed together), or lines that contradict each other, also through
            others.
    """
    lines = list(_lines(file))
    if not lines:
        raise DataError(f"{file} has no pairs: write one line for each, or leave out --constraints")
    problems: list[str] = []
    pairs: dict[str, list[tuple[int, int]]] = {link: [] for link in LINKS}
    origin: dict[str, list[_Line]] = {link: [] for link in LINKS}
    for line in lines:
        wrong = list(_problems(line, rows))
        problems += wrong
        if not wrong:
            first, second = (_row_of(name, rows) for name in (line.a, line.b))
            assert first is not None
            assert second is not None
            pairs[line.link].append((first, second))
            origin[line.link].append(line)
    _refuse(file, problems)
    clash = contradiction(pairs["must"], pairs["cannot"])
    if clash is not None:
        chain = [origin["must"][at] for at in clash[1]]
        raise DataError(_contradiction_message(file, origin["cannot"][clash[0]], chain))
    return Constraints(tuple(pairs["must"]), tuple(pairs["cannot"]))


def _row_of(name: str, rows: Mapping[str, int]) -> int | None:
    # The names as they are, and those of Windows.
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        for known in (text, os.path.normpath(text), os.path.abspath(expand_user(text))):  # noqa: PTH100
            if known in rows:
                return rows[known]
    return None


def _problems(line: _Line, rows: Mapping[str, int]) -> Iterator[str]:
    if line.link not in LINKS:
        yield f"line {line.number}: link must be 'must' or 'cannot', found '{one_line(line.link)}'"
    for name in dict.fromkeys((line.a, line.b)):
        if not name:
            yield f"line {line.number}: a and b are both required"
        elif _row_of(name, rows) is None:
            yield f"line {line.number}: '{one_line(name)}' is not among the pictures that were read"


def _refuse(file: Path, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MOST_SHOWN
        shown = [*problems[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError(
            f"{file} has invalid lines (pictures are named by their paths below DATA, or from "
            "the working directory):\n  " + "\n  ".join(shown)
        )


def _contradiction_message(file: Path, cannot: _Line, chain: Sequence[_Line]) -> str:
    pair = f"'{one_line(cannot.a)}' and '{one_line(cannot.b)}'"
    if not chain:
        return (
            f"{file} line {cannot.number}: {pair} are the same picture, which cannot be kept apart"
        )
    if len(chain) > MOST_SHOWN:
        named = [*(str(line.number) for line in chain[: MOST_SHOWN - 1]), "...", chain[-1].number]
    else:
        named = [line.number for line in chain]
    lines = "line" if len(chain) == 1 else "lines"
    return (
        f"{file} contradicts itself: line {cannot.number} keeps {pair} apart, and {lines} "
        f"{', '.join(map(str, named))} {'brings' if len(chain) == 1 else 'bring'} them together: "
        "remove one of these lines"
    )


def _lines(file: Path) -> Iterator[_Line]:
    def check_columns(names: list[str]) -> None:
        if not set(COLUMNS) <= set(names):
            raise DataError(
                f"{file} has the columns {', '.join(names) or '(none)'}: pairs that must or "
                f"cannot be together need {','.join(COLUMNS)}"
            )

    # Names of files need not be UTF-8.
    for number, cells in read_csv(file, "the pairs", check_columns, errors="surrogateescape"):
        a, b, link = (cells[name] for name in COLUMNS)
        yield _Line(number, a, b, link.strip().lower())
