"""Where a gallery lives: one Lance table of templates, on disk or in an object store.

On disk, writers take turns (a lock file), and a commit is acknowledged when its files, and then
its manifest, have been told to reach the disk: neither kill -9 nor a loss of power takes back what
was acknowledged, or leaves half of it. Readers wait for nobody: each looks at the newest version,
and looks again when the one that it reads was cleared away. In an object store (`s3://...`)
writers meet by Lance's conditional writes instead, and durability is the store's.

This module knows no models, pictures or thresholds: rows go in, rows and distances come out.

Shapes: M templates of D dimensions.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import numpy as np
import pyarrow as pa
from filelock import FileLock
from lance.file import LanceFileSession
from numpy.typing import NDArray

from twinlens.errors import GalleryError, TwinlensError
from twinlens.files import expanded

__all__ = ["COLUMNS", "Cleared", "Store", "is_remote", "quoted", "schema"]

TABLE = "templates.lance"
SETTINGS = "twinlens.gallery"
COLUMNS = ("hash", "identity", "path", "time", "metadata", "vector", "thumbnail")
VECTOR_INDEX = "vector_idx"

INDEX_CACHE = 64 << 20
METADATA_CACHE = 32 << 20
"""Bytes of parts of the index, and of descriptions of files, that a reader may keep in memory."""

POLL = 0.005
"""Seconds between looks whether another writer is done."""

TRIES = 5
DELETED_AT_ONCE = 1000
RUST_PLACE = re.compile(r",?\s*(location: )?\S+\.rs:\d+:\d+")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cleared:
    """What a clean-up took away."""

    num_versions: int
    num_bytes: int


def is_remote(place: str | Path) -> bool:
    """Whether a gallery's place is an object store's, such as `s3://bucket/faces`."""
    return "://" in str(place)


def quoted(text: str) -> str:
    """A string as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def schema(dim: int) -> pa.Schema:
    """The columns of a table of templates.

    `hash` tells pictures apart and occurs once; `thumbnail` is a JPEG, or null.
    """
    # By this Lance sees that two writers in an object store insert the same hash at a time.
    key = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field("hash", pa.string(), nullable=False, metadata=key),
            pa.field("identity", pa.string()),
            pa.field("path", pa.string()),
            pa.field("time", pa.timestamp("us", "UTC")),
            pa.field("metadata", pa.json_(pa.utf8())),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("thumbnail", pa.large_binary()),
        ]
    )


class Store:
    """The table of a gallery, with the settings that were written beside it.

    Attributes:
        place: a folder, or the address of one in an object store.
        options: how to reach the object store, Lance's `storage_options`.
    """

    def __init__(self, place: str, options: Mapping[str, str] | None) -> None:
        self.place = place
        self.options = None if options is None else dict(options)
        self._caches = lance.Session(
            index_cache_size_bytes=INDEX_CACHE, metadata_cache_size_bytes=METADATA_CACHE
        )
        self._opened = threading.local()
        self._reopen()

    @classmethod
    def create(
        cls,
        place: str | Path,
        dim: int,
        settings: Mapping[str, Any],
        files: Mapping[str, Path],
        *,
        options: Mapping[str, str] | None = None,
    ) -> Store:
        """A new, empty table, with `files` copied beside it under their names.

        Raises:
            GalleryError: something is there already, or it cannot be written.
        """
        base = _base(place)
        if _is_taken(base, options):
            raise GalleryError(f"{place} is there already: name a place that is not, or is empty")
        with _told(f"cannot make the gallery {place}"):
            if not is_remote(base):
                Path(base).mkdir(parents=True, exist_ok=True)
            copy_files(base, files, options)
            # The table is what makes a gallery of it, so it comes last.
            empty = with_settings(schema(dim), settings).empty_table()
            keeper = _Durable(Path(base) / TABLE) if not is_remote(base) else None
            lance.write_dataset(
                empty,
                _table(base),
                storage_options=None if options is None else dict(options),
                commit_lock=keeper,
            )
            if keeper:
                for folder in (base, Path(base).parent):
                    _fsync(folder)
        return cls(base, options)

    @classmethod
    def open(cls, place: str | Path, *, options: Mapping[str, str] | None = None) -> Store:
        """The table that is at `place`.

        Raises:
            GalleryError: none is, or it is damaged.
        """
        return cls(_base(place), options)

    # --- reading ---

    @property
    def version(self) -> int:
        """A number that grows with every commit, whoever made it."""
        return self.read(lambda table: int(table.version))

    @property
    def dim(self) -> int:
        """D, of the vectors."""
        return int(self._dataset.schema.field("vector").type.list_size)

    def settings(self) -> dict[str, Any]:
        """What was last written by `change_settings`."""
        found = self.read(lambda table: (table.schema.metadata or {}).get(SETTINGS.encode()))
        if found is None:
            raise GalleryError(f"{self.place} holds a Lance table that is no gallery of twinlens")
        return dict(json.loads(found))

    def count(self, where: str | None = None) -> int:
        """How many templates there are, or satisfy a condition."""
        return self.read(lambda table: int(table.count_rows(filter=where)))

    def find(
        self, where: str | None = None, columns: Sequence[str] = COLUMNS, limit: int | None = None
    ) -> pa.Table:
        """The templates that satisfy a condition in SQL."""
        return self.read(
            lambda table: table.to_table(columns=list(columns), filter=where, limit=limit)
        )

    def nearest(
        self,
        vector_D: NDArray[np.float32],
        k: int,
        *,
        columns: Sequence[str],
        where: str | None = None,
        nprobes: int | None = None,
    ) -> pa.Table:
        """The k nearest templates, nearest first, with their squared distance as `_distance`.

        Args:
            vector_D: the probe, shape (D,).
            k: how many.
            columns: which to give besides the distance.
            where: only those that satisfy this condition.
            nprobes: how many partitions of the index are searched; None is all of them. Rows that
                are younger than the index are always looked at.
        """
        query: dict[str, Any] = {"column": "vector", "q": vector_D, "k": k}
        if nprobes is None:
            query["use_index"] = False
        else:
            query["nprobes"] = nprobes
        return self.read(
            lambda table: table.scanner(
                columns=[*columns, "_distance"],
                nearest=query,
                filter=where,
                prefilter=where is not None,
                disable_scoring_autoprojection=True,
            ).to_table()
        )

    def read(self, action: Callable[[lance.LanceDataset], Found]) -> Found:
        """Do something with the newest version; again, where that was cleared away meanwhile."""
        for attempt in range(TRIES):
            try:
                self._dataset.checkout_latest()
                return action(self._dataset)
            except (OSError, ValueError) as error:
                # Lance has no class for it: files of a version that `clear` took away.
                if attempt == TRIES - 1 or "not found" not in str(error).lower():
                    raise _translated(error, f"cannot read the gallery {self.place}") from error
                self._reopen()
        raise AssertionError

    def num_unindexed(self) -> int | None:
        """How many rows the index does not know; None without one."""
        found = self.read(_index_statistics)
        return None if found is None else int(found["num_unindexed_rows"])

    def num_partitions(self) -> int:
        """Of the index; 0 without one."""
        found = self.read(_index_statistics)
        return 0 if found is None else int(found["indices"][0]["num_partitions"])

    def num_bytes(self) -> int:
        """The size of all files of the table."""
        files = self.read(lambda table: table.all_files().read_all())
        return int(sum(files["size_bytes"].to_pylist()))

    # --- writing ---

    def insert(self, rows: pa.Table, *, expected: Mapping[str, Any] | None = None) -> int:
        """Add those whose hash is new; returns how many. They are safe when this returns.

        Args:
            rows: in the columns of `schema`.
            expected: settings that must still be so when the rows are written.
        Raises:
            GalleryError: a setting is another one, or the table cannot be written.
        """
        _, first = np.unique(rows["hash"].to_numpy(zero_copy_only=False), return_index=True)
        rows = rows.take(np.sort(first))
        if not len(rows):
            return 0
        with self.writing() as table:
            settings = json.loads(table.schema.metadata[SETTINGS.encode()])
            for name, value in (expected or {}).items():
                if settings.get(name) != value:
                    raise GalleryError(
                        f"the gallery {self.place} was changed meanwhile: its {name} is "
                        f"{settings.get(name)}, and {value} is needed; open it again"
                    )
            found = table.merge_insert("hash").when_not_matched_insert_all().execute(rows)
        return int(found["num_inserted_rows"])

    def rename(self, old: str, new: str) -> int:
        """Give all templates of one identity another; returns how many."""
        with self.writing() as table:
            found = table.update({"identity": quoted(new)}, where=f"identity = {quoted(old)}")
        return int(found["num_rows_updated"])

    def delete(self, hashes: Sequence[str]) -> None:
        """Take rows away, and count that in the settings. Their bytes stay until `clear`."""
        with self.writing() as table:
            # Counted first, so that a deletion which is killed is known to have bytes left.
            self._change(table, lambda old: old | {"deletions": old["deletions"] + 1})
            # By hash: the condition is written into files, and must not name anybody.
            for start in range(0, len(hashes), DELETED_AT_ONCE):
                part = ", ".join(quoted(name) for name in hashes[start : start + DELETED_AT_ONCE])
                table.delete(f"hash IN ({part})")

    def change_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Write the settings that `change` makes of those that are there."""
        with self.writing() as table:
            self._change(table, change)

    def replace_all(self, batches: Callable[[lance.LanceDataset], pa.RecordBatchReader]) -> None:
        """Replace all rows, the columns and the settings in one commit, from the present table."""
        with self.writing() as table:
            lance.write_dataset(batches(table), table, mode="overwrite")

    def make_index(self, num_partitions: int) -> None:
        """Build the index of vectors anew; 0 partitions for none."""
        with self.writing() as table:
            if num_partitions:
                table.create_index("vector", "IVF_FLAT", name=VECTOR_INDEX, metric="L2",
                                   num_partitions=num_partitions, replace=True)  # fmt: skip
            elif _index_statistics(table) is not None:
                table.drop_index(VECTOR_INDEX)

    def compact(self) -> None:
        """Write small files together, and those with deleted rows without them."""
        with self.writing() as table:
            table.optimize.compact_files(materialize_deletions_threshold=0.0)

    def clear(self) -> Cleared:
        """Delete every file that the newest version does not need.

        On disk that includes what killed writers left. In an object store nobody can say whether
        a writer is still at work, so that files of no version stay until they are a week old.
        """
        with self.writing() as table:
            # The log of the newest version stays, and may hold the hashes that it deleted.
            self._change(table, lambda old: old)
            found = table.cleanup_old_versions(
                older_than=timedelta(0), delete_unverified=not is_remote(self.place)
            )
        return Cleared(int(found.old_versions), int(found.bytes_removed))

    @contextlib.contextmanager
    def writing(self) -> Iterator[lance.LanceDataset]:
        """The newest version, with all other writers waiting where it is on disk."""
        with _told(f"cannot write the gallery {self.place}; it is as it was before"), self._turn():
            self._dataset.checkout_latest()
            yield self._dataset

    def copy_files(self, files: Mapping[str, Path]) -> None:
        """Put files beside the table, under their names."""
        with _told(f"cannot write the gallery {self.place}"):
            copy_files(self.place, files, self.options)

    def fetch_file(self, name: str, target: Path) -> None:
        """Copy a file from beside the table."""
        with _told(f"cannot read {name} of the gallery {self.place}"):
            LanceFileSession(self.place, storage_options=self.options).download_file(
                name, str(target)
            )

    def delete_files(self, folder: str) -> None:
        """Delete the files of a folder beside the table."""
        with _told(f"cannot write the gallery {self.place}"):
            session = LanceFileSession(self.place, storage_options=self.options)
            for name in session.list(folder):
                session.delete_file(name)

    def _change(
        self, table: lance.LanceDataset, change: Callable[[dict[str, Any]], Mapping[str, Any]]
    ) -> None:
        old = json.loads(table.schema.metadata[SETTINGS.encode()])
        table.update_schema_metadata({SETTINGS: _json(change(old))})

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if is_remote(self.place):
            yield
            return
        now, after = (FileLock(Path(self.place) / name) for name in (".lock", ".next"))
        # Who waits holds the place after, so that a busy writer cannot take each turn.
        with after.acquire(poll_interval=POLL):
            now.acquire(poll_interval=POLL)
        try:
            yield
        finally:
            now.release()

    @property
    def _dataset(self) -> lance.LanceDataset:
        # Each thread has its own: Lance panics where one moves to a new version in which another
        # reads.
        if not hasattr(self._opened, "dataset"):
            self._reopen()
        return self._opened.dataset

    def _reopen(self) -> None:
        self._opened.dataset = self._open()

    def _open(self) -> lance.LanceDataset:
        table = _table(self.place)
        if not is_remote(self.place) and not Path(self.place).is_dir():
            raise _absent(self.place)  # At once: Lance tries for seconds where a file is.
        try:
            return lance.dataset(
                table,
                storage_options=self.options,
                commit_lock=None if is_remote(self.place) else _Durable(Path(table)),
                session=self._caches,
            )
        except (OSError, ValueError) as error:
            if "not found" in str(error).lower():
                raise _absent(self.place) from error
            raise _translated(error, f"cannot open the gallery {self.place}") from error


class _Durable:
    """Lance enters this before it writes a manifest, and leaves it after.

    Before: the data that the manifest will name is told to reach the disk. After: the manifest.
    So a manifest that survives a loss of power never names data that did not.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._synced: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, version: int) -> Iterator[None]:
        """Around the commit of a version."""
        found: set[str] = set()
        for folder in ("data", "_deletions", "_indices", "_transactions"):
            self._sync(self._table / folder, found)
        yield
        self._synced = found
        # Manifests are named so that the newest is first; a hint at it is written again each time.
        versions = self._table / "_versions"
        for path in [min(versions.glob("*.manifest")), *versions.glob("*.json"), versions]:
            _fsync(path)
        _fsync(self._table)

    def _sync(self, folder: Path, found: set[str]) -> None:
        if not folder.is_dir():
            return
        names = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.path)
                if entry.is_dir():
                    self._sync(Path(entry.path), found)
                elif entry.path not in self._synced:
                    _fsync(entry.path)
        if names - self._synced:
            _fsync(folder)
        found |= names


def copy_files(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> None:
    """Put files below `base`, a folder or an address in an object store, under their names."""
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    for name, path in files.items():
        session.upload_file(str(path), name)
        if not is_remote(base):
            target = Path(base) / name
            for place in (target, *target.parents[: len(Path(name).parents)]):
                _fsync(place)


def with_settings(columns: pa.Schema, settings: Mapping[str, Any]) -> pa.Schema:
    """A schema that carries a gallery's settings."""
    return columns.with_metadata({SETTINGS: _json(settings)})


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, ensure_ascii=False, allow_nan=False)


def _base(place: str | Path) -> str:
    return str(place).rstrip("/") if is_remote(place) else str(expanded(place).absolute())


def _table(base: str) -> str:
    return f"{base}/{TABLE}"


def _is_taken(base: str, options: Mapping[str, str] | None) -> bool:
    if not is_remote(base):
        folder = Path(base)
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    return bool(session.list())


def _absent(place: str) -> GalleryError:
    if any((Path(place) / name).is_file() for name in ("model.json", "model/model.json")):
        return GalleryError(
            f"{place} is a model, and a gallery is needed: make one of it with "
            f"`twinlens gallery create GALLERY --model {place}`"
        )
    return GalleryError(
        f"there is no gallery at {place}: make one with "
        f"`twinlens gallery create {place} --model MODEL`"
    )


def _index_statistics(table: lance.LanceDataset) -> dict[str, Any] | None:
    # Lance warns on standard error where this is not said; the centroids are not needed.
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
    if not any(index.name == VECTOR_INDEX for index in table.describe_indices()):
        return None
    return dict(table.stats.index_stats(VECTOR_INDEX))


def _fsync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Lance's errors, and the system's, as one of ours that starts with `what`."""
    try:
        yield
    except TwinlensError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _translated(error, what) from error


def _translated(error: Exception, what: str) -> GalleryError:
    text = RUST_PLACE.sub("", str(error)).strip().rstrip(",.")
    if "No space left on device" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return GalleryError(f"{what}: the disk is full; make room and do it again")
    if "Invalid user input" in text and "filter" not in what:
        text = text.split("Invalid user input: ", 1)[1]
    return GalleryError(f"{what}: {text.splitlines()[0] if text else type(error).__name__}")
