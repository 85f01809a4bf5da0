"""CSV files: one reader for all that people give, one writer for all that twinlens makes.

A spreadsheet runs a cell such as `=cmd|' /C calc'!A0` as a formula, and names of files and
identities are written by strangers. The writer puts an apostrophe before such a cell, and the
reader removes it (https://owasp.org/www-community/attacks/CSV_Injection). Numbers stay numbers.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from twinlens.errors import DataError, first_line, one_line

__all__ = ["csv_cell", "original_cell", "path_of_cell", "read_csv", "write_csv"]

DELIMITERS = ",;\t"
MAX_LINE = 2**20  # characters; the memory that a file of one line can take
# The last four are the full-width forms of = + - @, which a spreadsheet runs in Japanese.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def read_csv(
    file: Path,
    kind: str,
    check_columns: Callable[[list[str]], None],
    *,
    errors: str = "strict",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file that a person or another program wrote.

    Cells are separated by commas, semicolons or tabs. Text is UTF-8, with or without a byte order
    mark, or UTF-16 with one. Names of columns are read without capitals and surrounding blanks.

    Args:
        file: the CSV file.
        kind: content of the file, for messages, such as "the manifest".
        check_columns: called with the names of the columns; raises if some are missing.
        errors: handling of bytes that are not UTF-8, as in `open`.
    Yields:
        Number of the line, and its cells by column; missing cells at the end are "".
    Raises:
        DataError: unreadable, another encoding, a column twice, too many cells, cells without a
            column's name, too long a line, or a quotation mark that is not closed.
    """
    last = 0
    try:
        with file.open("rb") as stream:  # In one pass: it may be a pipe.
            is_utf_16 = stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            encoding = "utf-16" if is_utf_16 else "utf-8-sig"
            text = io.TextIOWrapper(stream, encoding, errors, newline="")
            lines = _lines(text, f"{kind} {file}")
            header = next(lines, "")
            delimiter = max(DELIMITERS, key=header.count)
            lines = chain([header], lines)
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            twice = sorted({name for name in names if name and names.count(name) > 1})
            if twice:
                raise DataError(f"{kind} {file} has the column {one_line(twice[0])} twice")
            check_columns(names)
            for values in reader:
                if len(values) > len(names):
                    raise DataError(
                        f"{kind} {file} has {len(values)} cells in line {reader.line_num} and "
                        f"{len(names)} columns: enclose names that contain a {delimiter!r} in "
                        '"quotes"'
                    )
                if any("\0" in value for value in values):
                    raise DataError(f"{kind} {file} has a NUL in line {reader.line_num}")
                if values:
                    values += [""] * (len(names) - len(values))
                    cells = dict(zip(names, map(original_cell, values), strict=True))
                    if any(value and not name for name, value in zip(names, values, strict=True)):
                        raise DataError(
                            f"{kind} {file} has a cell in line {reader.line_num} whose column has "
                            "no name: name it in the first line, or empty it"
                        )
                    cells.pop("", None)
                    yield reader.line_num, cells
                last = reader.line_num
    except UnicodeError as error:
        raise DataError(
            f"{kind} {file} is not UTF-8 ({first_line(error)}): save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"cannot read {kind} {file}, the row that begins in line {last + 1}: {error}: close "
            "each quotation mark"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {kind} {file}: {error.strerror or error}") from error


def _lines(text: TextIO, name: str) -> Iterator[str]:
    """The lines of a file, as long as its memory is bounded."""
    number = 0
    while line := text.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and line[-1] not in "\r\n":
            raise DataError(
                f"{name} has more than {MAX_LINE:,} characters in line {number}: it is no CSV file"
            )
        yield line


def path_of_cell(base: Path, name: str) -> Path:
    r"""The path `base / name`; if only `a/b.png` exists, `a\b.png` of Windows means that."""
    path = base / name
    if "\\" in name and not os.path.lexists(path):
        other = base / name.replace("\\", "/")
        return other if os.path.lexists(other) else path
    return path


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file: UTF-8, with a header.

    Names of files need not be UTF-8; those that are not are written escaped.
    """
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([csv_cell(value) for value in row] for row in rows)


def csv_cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet runs.

    >>> csv_cell("=1+1"), csv_cell("-anna"), csv_cell("-0.5"), csv_cell(-0.5)
    ("'=1+1", "'-anna", '-0.5', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def original_cell(text: str) -> str:
    """The text that `csv_cell` wrote; cells of other programs stay as they are.

    >>> original_cell("'=1+1"), original_cell("'anna'"), original_cell("=1+1")
    ('=1+1', "'anna'", '=1+1')
    """
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return FORMULA.match(text) is not None and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
