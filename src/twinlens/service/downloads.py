"""Downloads: a zip archive that is written while it is sent, without a copy on the disk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["ZipResponse"]

BLOCK = 2**18


class ZipResponse(StreamingResponse):
    """An archive of files as an answer.

    All are opened at once, so that files that are replaced meanwhile do not mix.

    Args:
        name: file name of the archive, plain ASCII.
        files: paths by their names in the archive.
        stack: closed when all is sent, or the client has gone.
    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(self, name: str, files: Mapping[str, Path], stack: ExitStack) -> None:
        self._stack = stack
        opened = {path: stack.enter_context(file.open("rb")) for path, file in files.items()}
        super().__init__(
            _archive(opened), media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive."""
        with self._stack:
            await super().__call__(scope, receive, send)


class _Sink:
    """A file that keeps what was written to it until it is taken; it cannot seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _archive(files: Mapping[str, IO[bytes]]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for path, file in files.items():
            with archive.open(zipfile.ZipInfo(path), "w", force_zip64=True) as entry:
                while block := file.read(BLOCK):
                    entry.write(block)
                    yield sink.take()
    yield sink.take()
