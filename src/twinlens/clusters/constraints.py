"""`a,b,link`: what a user knows of pairs of pictures, from a CSV file.

This module clusters nothing; what it gives is free of contradictions.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinlens.clusters.linkage import contradiction
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line
from twinlens.files import expand_user

__all__ = ["Constraints", "places_of", "read_constraints"]

COLUMNS = ("a", "b", "link")
LINKS = ("must", "cannot")
MOST_SHOWN = 10


@dataclass(frozen=True)
class Constraints:
    """Pairs of rows that must be in one cluster, and pairs that must not."""

    must: tuple[tuple[int, int], ...] = ()
    cannot: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.must) + len(self.cannot)


@dataclass(frozen=True)
class _Line:
    """A line of the file: where it is, and what it says."""

    number: int
    a: str
    b: str
    link: str


def places_of(table: ImageTable) -> dict[str, int]:
    """What a picture may be called -> its row: its path in DATA, and its whole path."""
    places: dict[str, int] = {}
    for row in range(len(table)):
        path = str(table.path[row])
        places[path if table.pixels is not None else os.path.abspath(path)] = row  # noqa: PTH100
        places[table.relative(row)] = row
    return places


def read_constraints(file: Path, places: Mapping[str, int]) -> Constraints:
    """Read what must and what must not be together.

    Args:
        file: CSV, UTF-8, with the columns `a`, `b` (pictures) and `link` (must | cannot), divided
            by commas, semicolons or tabs. Pictures are named as in DATA, or by a path from here.
        places: what the pictures are called; see `places_of`.
    Raises:
        DataError: unreadable, missing columns, no lines, wrong lines or pictures that are not
            there, of which the first ten are named together, or lines that contradict each
            other, also by way of others.
    """
    lines = list(_lines(file))
    if not lines:
        raise DataError(f"{file} names no pairs: it needs a line for each, or leave it out")
    problems: list[str] = []
    pairs: dict[str, list[tuple[int, int]]] = {link: [] for link in LINKS}
    origin: dict[str, list[_Line]] = {link: [] for link in LINKS}
    for line in lines:
        found = list(_problems(line, places))
        problems += found
        if not found:
            first, second = (_place(name, places) for name in (line.a, line.b))
            assert first is not None
            assert second is not None
            pairs[line.link].append((first, second))
            origin[line.link].append(line)
    _refuse(file, problems)
    clash = contradiction(pairs["must"], pairs["cannot"])
    if clash is not None:
        chain = [origin["must"][at] for at in clash[1]]
        raise DataError(_in_words(file, origin["cannot"][clash[0]], chain))
    return Constraints(tuple(pairs["must"]), tuple(pairs["cannot"]))


def _place(name: str, places: Mapping[str, int]) -> int | None:
    for known in (name, os.path.normpath(name), os.path.abspath(expand_user(name))):  # noqa: PTH100
        if known in places:
            return places[known]
    return None


def _problems(line: _Line, places: Mapping[str, int]) -> Iterator[str]:
    if line.link not in LINKS:
        yield f"line {line.number}: link is must or cannot, found '{one_line(line.link)}'"
    for name in dict.fromkeys((line.a, line.b)):
        if not name:
            yield f"line {line.number}: a and b are both needed"
        elif _place(name, places) is None:
            yield f"line {line.number}: '{one_line(name)}' is not among the pictures that were read"


def _refuse(file: Path, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MOST_SHOWN
        shown = [*problems[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError(
            f"{file} has wrong lines (pictures are named by their paths below DATA, or from "
            "here):\n  " + "\n  ".join(shown)
        )


def _in_words(file: Path, cannot: _Line, chain: Sequence[_Line]) -> str:
    pair = f"'{one_line(cannot.a)}' and '{one_line(cannot.b)}'"
    if not chain:
        return f"{file} line {cannot.number}: {pair} are one picture, which cannot be kept apart"
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
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            header = text.readline()
            delimiter = max(",;\t", key=header.count)
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            if not set(COLUMNS) <= set(names):
                raise DataError(
                    f"{file} has the columns {', '.join(names) or '(none)'}: pairs that must or "
                    f"cannot be together need {','.join(COLUMNS)}"
                )
            for values in reader:
                if values:
                    cells = dict(zip(names, values, strict=False))
                    a, b, link = (cells.get(name, "") for name in COLUMNS)
                    yield _Line(reader.line_num, a, b, link.strip().lower())
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}") from error
