"""Parsing of JSON and TOML that may be damaged, or made to do harm.

Refused, before much memory is spent: what is too large or too deep, a key that occurs twice, a
number that is not finite or exceeds 64 bits, and text that is not UTF-8. The errors are
`ValueError` and `OSError`; callers add the name of the file and the remedy.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twinlens.errors import one_line

__all__ = ["MAX_DEPTH", "check_depth", "parse_json", "parse_toml", "read_content", "read_json",
           "read_text"]  # fmt: skip

MAX_BYTES = 64 * 2**20  # of a JSON file: the training record of a million pictures fits
MAX_ITEMS = 2_000_000  # objects, lists and keys of a JSON text; a few hundred bytes of memory each
MAX_DEPTH = 32
MAX_TOML_BYTES, MAX_TOML_LINE = 2**18, 2**13  # tomllib takes quadratic time for a dotted key


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file; a byte order mark is dropped.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be read.
        ValueError: it is too large, no regular file, or not UTF-8.
    """
    return _decoded(read_content(path, max_bytes))


def read_content(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be read.
        ValueError: it is too large, or no regular file.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would wait for a writer.
        raise ValueError(f"it is a {'folder' if path.is_dir() else 'device or pipe'}, not a file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes / 2**20:g} MiB")
    return content


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file; see `read_text` and `parse_json` for the errors."""
    return parse_json(read_text(path, max_bytes))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1e999}')
    Traceback (most recent call last):
    ValueError: the number 1e999 is not finite

    Raises:
        ValueError: not JSON, or beyond the limits of this module.
    """
    text = text if isinstance(text, str) else _decoded(text)
    # Before parsing: "[]," is 3 bytes, and an empty list takes 56.
    if sum(map(text.count, "[{:")) > MAX_ITEMS:
        raise ValueError(f"it holds more than {MAX_ITEMS:,} objects, lists and keys")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_float,
        )
    except RecursionError:
        raise _too_deep() from None
    check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Numbers are not checked: the settings have limits of their own.

    Raises:
        ValueError: not TOML, or beyond the limits of this module.
    """
    longest = max(map(len, text.splitlines()), default=0)
    if len(text) > MAX_TOML_BYTES or longest > MAX_TOML_LINE:
        raise ValueError(
            f"it has {len(text):,} characters, the longest line {longest:,}; at most "
            f"{MAX_TOML_BYTES:,}, and {MAX_TOML_LINE:,} in a line, are read"
        )
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    check_depth(values)
    return values


def check_depth(value: Any) -> None:
    """Check that objects and lists are nested at most `MAX_DEPTH` deep.

    Raises:
        ValueError: deeper; its text, copy or checksum would take too many calls.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return
    raise _too_deep()


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key '{one_line(twice)}' occurs twice in one object")
    return values


def _integer(text: str) -> int:
    # The length first: Python refuses to read thousands of digits.
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the number {one_line(text)} exceeds 64 bits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {one_line(text)} is not finite")
    return number
