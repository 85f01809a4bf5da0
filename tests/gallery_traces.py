"""Search for the bytes of identities in the files of a gallery, for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from numpy.typing import NDArray

PART = 16


def traces_of_vectors(emb_ND: NDArray[np.float32]) -> list[bytes]:
    """The bytes of each vector, and of its parts of 16 bytes."""
    traces = []
    for row in np.ascontiguousarray(emb_ND, dtype="<f4"):
        whole = row.tobytes()
        traces += [whole, *(whole[at : at + PART] for at in range(0, len(whole), PART))]
    return traces


def traces_of_texts(texts: Iterable[str]) -> list[bytes]:
    """The UTF-8 of each text, and its form escaped as in JSON and Lance's logs."""
    traces = []
    for text in texts:
        traces += [text.encode(), ascii(text)[1:-1].encode()]
    return traces


def found_in(folder: Path, traces: Iterable[bytes]) -> dict[bytes, list[str]]:
    """The files below a folder, by trace, whose content or name contains it.

    Lance may compress columns, which hides bytes. The columns of its files are therefore read too,
    with the rows that are marked as deleted.
    """
    held = {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}
    return {
        trace: names
        for trace in set(traces)
        if (names := [name for name, content in held.items() if trace in content])
    }


def _content(path: Path) -> bytes:
    content = path.name.encode()
    if path.is_dir():
        return content
    content += b"\0" + path.read_bytes()
    if path.suffix in {".lance", ".idx"} and path.is_file():
        content += b"\0" + decoded(path)
    return content


def decoded(path: Path) -> bytes:
    """The values of a Lance file, as bytes in memory."""
    table = LanceFileReader(str(path)).read_all().to_table()
    return b"\0".join(
        _bytes(chunk) for column in table.columns for chunk in column.chunks if len(chunk)
    )


def _bytes(array: pa.Array) -> bytes:
    return b"\0".join(bytes(buffer) for buffer in array.buffers() if buffer is not None)
