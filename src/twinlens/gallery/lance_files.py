"""Checks of Lance's files before rows are read from them.

At some damaged files Lance ends the process while it reads rows, or reserves as many bytes as they
claim. Reading their descriptions first makes an error of it.

A file ends with a footer of 40 bytes. It names two lists, of the descriptions of the columns and of
buffers; their entries are a position in the file and a number of bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from lance.file import LanceFileReader

__all__ = ["check_lance_file"]

FOOTER = struct.Struct("<QQQIIHH4s")
ENTRY = struct.Struct("<QQ")
MAGIC = b"LANC"


def check_lance_file(path: Path) -> None:
    """Check the description of a file.

    Raises:
        OSError: it is damaged, missing, or of another format.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.name} not found") from error  # As Lance says it.
    with path.open("rb") as file:
        file.seek(max(0, size - FOOTER.size))
        footer = file.read(FOOTER.size)
        if len(footer) < FOOTER.size or not footer.endswith(MAGIC):
            raise OSError(f"{path.name} is cut off, or no file of Lance")
        _, columns, buffers, num_buffers, num_columns, *_ = FOOTER.unpack(footer)
        for start, num in ((columns, num_columns), (buffers, num_buffers)):
            if start + num * ENTRY.size > size:
                raise OSError(f"{path.name} is damaged: a list lies beyond its end")
            file.seek(start)
            for place, length in ENTRY.iter_unpack(file.read(num * ENTRY.size)):
                if place + length > size:
                    raise OSError(f"{path.name} is damaged: a part lies beyond its end")
    LanceFileReader(str(path))
