"""Reads and commits of a gallery's Lance table, on disk or in an object store.

On disk, writers take turns (a lock file), and a commit returns once its files, and then its
manifest, have reached the disk (see `durable`): neither kill -9 nor a loss of power undoes an
acknowledged commit or leaves half of one. Readers never wait: each reads the newest version, and
reads again if that version was deleted meanwhile. In an object store (`s3://...`) writers conflict
by Lance's conditional writes instead, and a commit that conflicts is repeated. Lance looks for
conflicts in the versions since the one that was read: were these deleted, a commit would pass
unchecked, or be lost below a newer version (lance-format/lance issues 3718 and 3719). So each write
keeps an object below `WRITERS` while it lasts, and old versions are deleted only once the writes
that began before have ended (`wait_for_writers`).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lance
import pyarrow as pa
from filelock import FileLock
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from twinlens.errors import GalleryError, TwinlensError
from twinlens.gallery.durable import Durable, permissions, restrict_hint
from twinlens.gallery.location import (
    LOCKS,
    READ_ERRORS,
    check_content,
    gallery_error,
    gallery_errors,
    is_panic,
    is_remote,
    missing_gallery,
    open_files,
    table_of,
)

__all__ = ["ActiveWriterError", "Table"]

INDEX_CACHE = 640 << 20
METADATA_CACHE = 32 << 20
"""Bytes of index parts, and of file descriptions, that a reader may keep in memory. An index of
10 million templates of 128 dimensions has 530 MB."""

LOCK_POLL = 0.005
"""Seconds between attempts to take the lock."""

READ_ATTEMPTS = 5
WRITE_ATTEMPTS = 20
MAX_WAIT = 0.2
"""Attempts of a read, and of a write in an object store; its wait grows by this many seconds."""

CONFLICTS = ("commit conflict", "incompatible transaction", "contention", "not found")

WRITERS = ".writers"
WRITER = re.compile(rf"{WRITERS}/(\d{{1,12}})-[0-9a-f]{{32}}")
"""Objects of writes at work, each named by the second since 1970 in which the write began."""
LONGEST_WRITE = 3600
PATIENCE = 60.0
WRITER_POLL = 0.2
"""Seconds after which a write counts as killed, that the writes at work are waited for, and between
two looks at them."""

Result = TypeVar("Result")


class ActiveWriterError(GalleryError):
    """Other writers of an object store may still need files of old versions."""


# Lance warns on standard error if this is not set; the centroids are not needed.
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")


class Table:
    """The table of a gallery; thread-safe.

    Attributes:
        place: folder, or address in an object store.
        options: Lance's `storage_options` for the object store.
    """

    def __init__(self, place: str, options: Mapping[str, str] | None) -> None:
        self.place = place
        self.options = None if options is None else dict(options)
        self._caches = lance.Session(
            index_cache_size_bytes=INDEX_CACHE, metadata_cache_size_bytes=METADATA_CACHE
        )
        self._opened = threading.local()
        self._reopen()

    @property
    def dataset(self) -> lance.LanceDataset:
        """The table as this thread last read it."""
        # Each thread has its own: Lance panics if one moves to a new version while another reads.
        if not hasattr(self._opened, "dataset"):
            self._reopen()
        return self._opened.dataset

    def read(self, action: Callable[[lance.LanceDataset], Result]) -> Result:
        """Apply `action` to the newest version; again if that was deleted meanwhile."""
        for attempt in range(READ_ATTEMPTS):
            try:
                self.dataset.checkout_latest()
                return action(self.dataset)
            except TwinlensError:
                raise
            except BaseException as error:
                if not isinstance(error, READ_ERRORS) and not is_panic(error):
                    raise
                # Lance has no class for files of a deleted version.
                if attempt == READ_ATTEMPTS - 1 or "not found" not in str(error).lower():
                    raise gallery_error(error, f"cannot read the gallery {self.place}") from error
                self._reopen()
        raise AssertionError

    def write(
        self, action: Callable[[lance.LanceDataset], Result], *, single: bool = True
    ) -> Result:
        """Apply `action` to the newest version; again if it conflicts with another writer.

        Args:
            action: makes commits; may run several times.
            single: whether it makes one commit only, so that a failure changes nothing.
        """
        for attempt in range(WRITE_ATTEMPTS):
            with self.writing(single=single) as table:
                try:
                    return action(table)
                except (OSError, ValueError, RuntimeError) as error:
                    if attempt == WRITE_ATTEMPTS - 1 or not self._is_conflict(error):
                        raise
            time.sleep(random.uniform(0, MAX_WAIT) * (attempt + 1))
            self._reopen()
        raise AssertionError

    @contextlib.contextmanager
    def writing(
        self, *, single: bool = True, announced: bool = True
    ) -> Iterator[lance.LanceDataset]:
        """The newest version; on disk all other writers wait until the end.

        Args:
            single: as for `write`.
            announced: whether others keep, in an object store, what the commit is checked against.
        """
        task = f"cannot write the gallery {self.place}" + "; it is unchanged" * single
        announcement = self._announced() if announced else contextlib.nullcontext()
        with gallery_errors(task), self._write_lock(), announcement:
            self.dataset.checkout_latest()
            yield self.dataset
            if not is_remote(self.place):
                restrict_hint(Path(table_of(self.place)))

    def replace_all(self, batches: Callable[[lance.LanceDataset], pa.RecordBatchReader]) -> None:
        """Replace all rows, the columns and the settings in one commit.

        Args:
            batches: makes the new rows from the present table.
        Raises:
            GalleryError: another writer changed the table meanwhile, which happens in an object
                store only; the table is as that writer left it, and the new files remain until
                `Store.clear` finds them a week old.
        """
        changed = GalleryError(
            f"another writer changed the gallery {self.place} meanwhile, so nothing was "
            "replaced: run this again while no other process writes"
        )
        # Others do not wait while the rows are made, which takes long.
        with self.writing(announced=False) as table:
            new = write_fragments(
                batches(table), table, mode="overwrite", return_transaction=True,
                storage_options=self.options,
            )  # fmt: skip
            with self._announced():
                if self._open().version != table.version:
                    raise changed
                try:
                    # Without retries Lance commits on the version that was read, and on no other.
                    lance.LanceDataset.commit(
                        table, new, commit_lock=self._commit_lock(),
                        storage_options=self.options, max_retries=0,
                    )  # fmt: skip
                except CommitConflictError as error:
                    raise changed from error

    def wait_for_writers(self) -> None:
        """In an object store, wait for the writes at work that began before this call.

        Raises:
            ActiveWriterError: one takes longer than a minute.
        """
        with gallery_errors(f"cannot read the gallery {self.place}"):
            files, start = open_files(self.place, self.options), time.monotonic()
            found = filter(None, map(WRITER.fullmatch, files.list(WRITERS)))
            began = {match[0]: int(match[1]) for match in found}
            while began := {name: at for name, at in began.items() if files.contains(name)}:
                if time.monotonic() - start > PATIENCE:
                    raise ActiveWriterError(
                        f"another process has been writing the gallery {self.place} for more than "
                        "a minute, and may need files of old versions (a write that was killed "
                        "counts for an hour)"
                    )
                for name, at in began.items():
                    if time.time() - at > LONGEST_WRITE:
                        with contextlib.suppress(OSError):  # Another process deletes it, too.
                            files.delete_file(name)
                time.sleep(WRITER_POLL)

    @contextlib.contextmanager
    def _announced(self) -> Iterator[None]:
        """In an object store, a write at work, which `wait_for_writers` waits for."""
        if not is_remote(self.place):
            yield
            return
        files = open_files(self.place, self.options)
        name = f"{WRITERS}/{time.time():.0f}-{uuid.uuid4().hex}"
        files.upload_file(os.devnull, name)
        try:
            yield
        finally:
            with contextlib.suppress(*READ_ERRORS):  # The commit stands; this counts for an hour.
                files.delete_file(name)

    def _is_conflict(self, error: Exception) -> bool:
        """Whether another writer committed, or deleted files, before this commit."""
        text = str(error).lower()
        return is_remote(self.place) and any(words in text for words in CONFLICTS)

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[None]:
        if is_remote(self.place):
            yield
            return
        self._check_place()  # The lock files may be links.
        mode = permissions(self.place) & 0o666
        current, following = (FileLock(Path(self.place) / name, mode=mode) for name in LOCKS)
        # One waiting writer holds the second lock, so that a busy writer cannot take every turn.
        with following.acquire(poll_interval=LOCK_POLL):
            current.acquire(poll_interval=LOCK_POLL)
        try:
            self._check_place()  # Other writers came before.
            yield
        finally:
            current.release()

    def _check_place(self) -> None:
        if not Path(self.place).is_dir():
            raise missing_gallery(self.place)
        check_content(self.place)

    def _commit_lock(self) -> Durable | None:
        return None if is_remote(self.place) else Durable(Path(table_of(self.place)))

    def _reopen(self) -> None:
        self._opened.dataset = self._open()

    def _open(self) -> Any:
        if not is_remote(self.place):
            self._check_place()  # At once: Lance retries for seconds on a file.
        try:
            table = lance.dataset(
                table_of(self.place), storage_options=self.options,
                commit_lock=self._commit_lock(), session=self._caches,
            )  # fmt: skip
            is_elsewhere = bool(table.base_paths())
        except BaseException as error:
            if not isinstance(error, READ_ERRORS) and not is_panic(error):
                raise
            if "not found" in str(error).lower():
                raise missing_gallery(self.place) from error
            raise gallery_error(error, f"cannot open the gallery {self.place}") from error
        if is_elsewhere:
            raise GalleryError(
                f"the gallery {self.place} names files at other places, which no command of "
                "twinlens writes: restore it from a copy"
            )
        return table
