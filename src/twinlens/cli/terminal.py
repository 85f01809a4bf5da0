"""Text of strangers on a terminal: control characters in names are escaped, whoever prints them.

A name of a file or an identity may hold codes that move the cursor, change colours or titles, or
reverse the order of the text that follows. All output of a command passes here. JSON stays valid.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from twinlens.errors import BIDI_CONTROLS

__all__ = ["escaped_streams"]

LAYOUT = "\t\n\r"  # used by tables and progress bars
CONTROLS = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029", *BIDI_CONTROLS]
ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in CONTROLS if char not in LAYOUT}


class _Escaped:
    """A text stream that writes control characters as `\\uXXXX`, which JSON can read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text.translate(ESCAPES))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def escaped_streams() -> Iterator[None]:
    """Escape control characters of all that is written to standard output and standard error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Escaped(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
