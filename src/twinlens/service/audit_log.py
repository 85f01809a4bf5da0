"""Audit log: a line of JSON for each change of galleries; facts and hashes, never pictures.

The log outlives an erasure: it says who erased what. Its lines hold names of identities.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from twinlens.gallery.durable import fsync
from twinlens.service.errors import ServiceError
from twinlens.service.security import Caller

__all__ = ["AuditLog"]

log = logging.getLogger("twinlens.service.audit")

ROTATED_BYTES = 16 * 2**20


class AuditLog:
    """Appends to a file that several processes share; without a folder, to the log only."""

    def __init__(self, data: Path | None) -> None:
        self._file = None if data is None else data / "audit.jsonl"

    def write(self, action: str, caller: Caller, **facts: Any) -> None:
        """Append a line; it is on the disk on return.

        Args:
            action: verb, such as "enrol".
            caller: who sent the request.
            facts: further keys of the line.
        Raises:
            ServiceError: the line cannot be written (507); what it tells of is done.
        """
        time = datetime.now(UTC)
        own = {"time": time.isoformat(timespec="milliseconds"), "action": action,
               "key": caller.name}  # fmt: skip
        entry = own | facts | own  # First, and not replaced.
        line = json.dumps(entry, ensure_ascii=False)
        log.info("audit", extra={"facts": entry})
        if self._file is None:
            return
        try:
            self._append(self._file, line.encode() + b"\n")
        except OSError as error:
            log.error("the audit log cannot be written: %s", error)
            raise ServiceError(
                507, f"'{action}' is done, but the audit log cannot be written: free some space",
                "audit",
            ) from error  # fmt: skip

    def _append(self, file: Path, line: bytes) -> None:
        is_new = not file.exists()
        # One write of a file opened for appending does not mix with those of other processes.
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # A full disk cut the last line.
            if os.write(handle, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
        if size > ROTATED_BYTES:
            # A unique name: of two processes that rotate, the second moves a short file.
            name = f"audit-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"
            file.rename(file.with_name(name))
        if is_new or size > ROTATED_BYTES:
            fsync(file.parent)

    def entries(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """Lines as objects, the newest first; without a folder, none.

        Args:
            offset: lines to leave out at the beginning.
            limit: number of lines after that, at most.
        """
        return list(islice(self._newest_first(), offset, offset + limit))

    def _newest_first(self) -> Iterator[dict[str, Any]]:
        if self._file is None:
            return
        older = sorted(self._file.parent.glob("audit-*.jsonl"), reverse=True)
        for file in (self._file, *older):
            if not file.exists():
                continue
            for line in reversed(file.read_bytes().splitlines()):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry
