"""Digests of what pictures hold: the bytes of their files, or their pixels if they have none.

Copies have one digest wherever they lie and whatever they are called.

Shapes: N pictures.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.picture_file import file_digest
from twinlens.data.picture_value import PictureValue, read_value
from twinlens.data.table import ImageTable
from twinlens.errors import PictureError
from twinlens.machine import decoding_threads

__all__ = ["DIGEST_SIZE", "NO_DIGEST", "content_digests", "digest_of_picture",
           "digest_of_pixels"]  # fmt: skip

DIGEST_SIZE = 16
NO_DIGEST = bytes(DIGEST_SIZE)
AT_ONCE = 256  # A task for each picture would take longer than the hashing of small files.


def content_digests(table: ImageTable) -> list[bytes]:
    """The digest of each picture, N values; 16 zero bytes if its file cannot be read.

    >>> table = ImageTable(["a", "b"], ["x", "x"], [0, 0], ["", ""], "made up", None,
    ...                    pixels=np.zeros((2, 4, 4), np.uint8))
    >>> first, second = content_digests(table)
    >>> first == second
    True
    """
    rows = range(len(table))
    parts = [rows[start : start + AT_ONCE] for start in rows[::AT_ONCE]]
    with ThreadPoolExecutor(decoding_threads()) as pool:
        return list(chain.from_iterable(pool.map(partial(_digests_of_rows, table), parts)))


def digest_of_picture(table: ImageTable, row: int) -> bytes:
    """The digest of the picture of a row.

    Raises:
        PictureError: its file cannot be read.
    """
    return _digest(table.picture(row))


def _digest(source: PictureValue) -> bytes:
    if isinstance(source, str):
        return file_digest(source, DIGEST_SIZE)
    if isinstance(source, np.ndarray):
        return digest_of_pixels(source)
    return hashlib.blake2b(source, digest_size=DIGEST_SIZE).digest()


def digest_of_pixels(picture: NDArray[np.uint8]) -> bytes:
    """The digest of a picture without a file, (H, W), (H, W, 3) or (H, W, 4)."""
    content = repr(picture.shape).encode() + picture.tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


def _digests_of_rows(table: ImageTable, rows: range) -> list[bytes]:
    return [_digest_or_none(value) for value in table.pictures(rows)]


def _digest_or_none(value: Any) -> bytes:
    try:
        return NO_DIGEST if isinstance(value, PictureError) else _digest(read_value(value))
    except PictureError:
        return NO_DIGEST
