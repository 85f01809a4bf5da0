"""Where a gallery lives: one Lance table of templates, on disk or in an object store.

On disk, writers take turns (a lock file), and a commit is acknowledged when its files, and then
its manifest, have been told to reach the disk: neither kill -9 nor a loss of power takes back what
was acknowledged, or leaves half of it. Readers wait for nobody: each looks at the newest version,
and looks again when the one that it reads was cleared away. In an object store (`s3://...`)
writers meet by Lance's conditional writes instead, a step that met another one is done again, and
durability is the store's.

This module knows no models, pictures or thresholds: rows go in, rows and distances come out.

Shapes: M templates of D dimensions.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import numpy as np
import pyarrow as pa
from filelock import FileLock
from lance.commit import CommitConflictError
from lance.file import LanceFileSession
from lance.fragment import write_fragments
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.gallery.durable import Durable, fsync
from twinlens.gallery.location import (
    LOCKS,
    absent,
    copy_files,
    is_remote,
    is_taken,
    place_of,
    table_of,
    told,
    translated,
)

__all__ = ["COLUMNS", "CleanupResult", "Store", "quoted", "schema"]

SETTINGS = "twinlens.gallery"
COLUMNS = ("hash", "identity", "path", "time", "metadata", "vector", "thumbnail")
VECTOR_INDEX = "vector_idx"

INDEX_CACHE = 64 << 20
METADATA_CACHE = 32 << 20
"""Bytes of parts of the index, and of descriptions of files, that a reader may keep in memory."""

POLL = 0.005
"""Seconds between looks whether another writer is done."""

MOST_FRAGMENTS = 100
"""Pieces of the table, one of each commit, from which they are written together."""

TRIES = 5
MEETINGS = 20
LONGEST_WAIT = 0.2
"""Tries of a step that meets other writers in an object store; the wait grows by this, seconds."""

DELETED_AT_ONCE = 1000
CONFLICTS = ("commit conflict", "incompatible transaction", "contention", "not found")

Found = TypeVar("Found")

# Lance warns on standard error where this is not said; the centroids are not needed.
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")


@dataclass(frozen=True)
class CleanupResult:
    """What a clean-up took away."""

    num_versions: int
    num_bytes: int


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
        base = place_of(place)
        if is_taken(base, files, options):
            raise GalleryError(f"{place} is there already: name a place that is not, or is empty")
        with told(f"cannot make the gallery {place}"):
            if not is_remote(base):
                Path(base).mkdir(parents=True, exist_ok=True)
            copy_files(base, files, options)
            # The table is what makes a gallery of it, so it comes last.
            empty = with_settings(schema(dim), settings).empty_table()
            keeper = Durable(Path(table_of(base))) if not is_remote(base) else None
            lance.write_dataset(
                empty,
                table_of(base),
                storage_options=None if options is None else dict(options),
                commit_lock=keeper,
            )
            if keeper:
                for folder in (base, Path(base).parent):
                    fsync(folder)
        return cls(base, options)

    @classmethod
    def open(cls, place: str | Path, *, options: Mapping[str, str] | None = None) -> Store:
        """The table that is at `place`.

        Raises:
            GalleryError: none is, or it is damaged.
        """
        return cls(place_of(place), options)

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
            nprobes: how many partitions of the index are searched, more where they hold fewer
                than k; None compares with all templates. Rows that are younger than the index are
                always looked at.
        """
        if nprobes is None:
            return self._nearest(vector_D, k, columns, where, {"use_index": False})
        found = self._nearest(vector_D, k, columns, where, {"nprobes": nprobes})
        if len(found) == k:
            return found
        # Without a limit above, Lance looks into all partitions that it needs, and into more.
        return self._nearest(vector_D, k, columns, where, {"minimum_nprobes": nprobes})

    def _nearest(
        self,
        vector_D: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        where: str | None,
        how: Mapping[str, Any],
    ) -> pa.Table:
        return self.read(
            lambda table: table.scanner(
                columns=[*columns, "_distance"],
                nearest={"column": "vector", "q": vector_D, "k": k, **how},
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
                    raise translated(error, f"cannot read the gallery {self.place}") from error
                self._reopen()
        raise AssertionError

    def num_unindexed(self) -> int | None:
        """How many rows the index does not know; None without one."""
        found = self.read(_index_statistics)
        return None if found is None else int(found["num_unindexed_rows"])

    def num_partitions(self) -> int:
        """Of the index; 0 without one."""
        return self.read(_num_partitions)

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

        def merged(table: lance.LanceDataset) -> tuple[int, int]:
            settings = _settings(table)
            for name, value in (expected or {}).items():
                if settings.get(name) != value:
                    raise GalleryError(
                        f"the gallery {self.place} was changed meanwhile: its {name} is "
                        f"{settings.get(name)}, and {value} is needed; open it again"
                    )
            found = table.merge_insert("hash").when_not_matched_insert_all().execute(rows)
            return int(found["num_inserted_rows"]), len(table.get_fragments())

        num, num_fragments = self._write(merged)
        if num_fragments > MOST_FRAGMENTS:
            # Each commit is a few files, which all that follows would have to look through.
            self.compact()
            self.clear()
        return num

    def rename(self, old: str, new: str, *, merge: bool = True) -> int:
        """Give all templates of one identity another; returns how many.

        Raises:
            GalleryError: there are templates of `new`, and `merge` is not set.
        """
        of_old, of_new = f"identity = {quoted(old)}", f"identity = {quoted(new)}"

        def updated(table: lance.LanceDataset) -> int:
            if not table.count_rows(filter=of_old):
                return 0
            if not merge and (there := table.count_rows(filter=of_new)):
                raise GalleryError(
                    f"there is an identity {new[:80]!r} already, with {there} templates: give "
                    "--merge (merge=True) to put both under that name"
                )
            found = table.update({"identity": quoted(new)}, where=of_old)
            return int(found["num_rows_updated"])

        return self._write(updated)

    def delete(self, hashes: Sequence[str]) -> None:
        """Take rows away, and count that in the settings. Their bytes stay until `clear`."""
        self._write(lambda table: self._delete(table, hashes), single=False)

    def delete_where(self, where: str) -> tuple[int, int]:
        """Take the rows that satisfy a condition away, as `delete`.

        Also those that another writer adds in an object store meanwhile.

        Returns:
            How many there were, and how many of them had a thumbnail.
        """
        gone: dict[str, bool] = {}

        def deleted(table: lance.LanceDataset) -> bool:
            columns = {"hash": "hash", "pictured": "thumbnail IS NOT NULL"}
            found = table.to_table(columns=columns, filter=where)
            hashes = found["hash"].to_pylist()
            gone.update(zip(hashes, found["pictured"].to_pylist(), strict=True))
            if hashes:
                self._delete(table, hashes)
            return bool(hashes)

        while self._write(deleted, single=False) and is_remote(self.place):
            pass
        return len(gone), sum(gone.values())

    def _delete(self, table: lance.LanceDataset, hashes: Sequence[str]) -> None:
        # Counted first, so that a deletion which is killed is known to have bytes left.
        self._change(table, lambda old: old | {"deletions": old["deletions"] + 1})
        # By hash: the condition is written into files, and must not name anybody.
        for start in range(0, len(hashes), DELETED_AT_ONCE):
            part = ", ".join(quoted(name) for name in hashes[start : start + DELETED_AT_ONCE])
            table.delete(f"hash IN ({part})")
        if is_remote(self.place):
            # Another one, who saw the first count, may have swept before these rows went.
            self._change(table, lambda old: old | {"deletions": old["deletions"] + 1})

    def change_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Write the settings that `change` makes of those that are there."""
        self.settle(lambda old, _: change(old))

    def settle(self, change: Callable[[dict[str, Any], int], Mapping[str, Any]]) -> dict[str, Any]:
        """As `change_settings`; `change` is told the partitions of the index too, 0 without one.

        Returns:
            The settings that were written.
        """

        def settled(table: lance.LanceDataset) -> dict[str, Any]:
            num = _num_partitions(table)
            return self._change(table, lambda old: change(old, num))

        return self._write(settled)

    def replace_all(self, batches: Callable[[lance.LanceDataset], pa.RecordBatchReader]) -> None:
        """Replace all rows, the columns and the settings in one commit, from the present table.

        Raises:
            GalleryError: another writer changed the table meanwhile, which happens in an object
                store only; it is as that writer left it, and the new files stay until `clear`
                finds them a week old.
        """
        with self.writing() as table:
            new = write_fragments(
                batches(table), table, mode="overwrite", return_transaction=True,
                storage_options=self.options,
            )  # fmt: skip
            try:
                # Without tries Lance commits on the version that was read, and on no other.
                lance.LanceDataset.commit(
                    table, new, commit_lock=self._keeper(), storage_options=self.options,
                    max_retries=0,
                )  # fmt: skip
            except CommitConflictError as error:
                raise GalleryError(
                    f"the gallery {self.place} was changed by another writer meanwhile, so nothing "
                    "was replaced: do it again when nobody else writes"
                ) from error

    def make_index(self, num_partitions: int) -> None:
        """Build the index of vectors anew; 0 partitions for none."""
        self._write(lambda table: _index(table, num_partitions), single=False)

    def reindex(self) -> None:
        """Build the index anew of the rows that are there, where the table has one.

        It goes where there are fewer rows than partitions: that few are quick without.
        """

        def rebuilt(table: lance.LanceDataset) -> None:
            num = _num_partitions(table)
            if num:
                _index(table, num if table.count_rows() >= num else 0)

        self._write(rebuilt, single=False)

    def compact(self) -> None:
        """Write small files together, and those with deleted rows without them."""
        self._write(
            lambda table: table.optimize.compact_files(materialize_deletions_threshold=0.0),
            single=False,
        )

    def clear(self) -> CleanupResult:
        """Delete every file that the newest version does not need.

        On disk that includes what killed writers left. In an object store nobody can say whether
        a writer is still at work, so that files of no version stay until they are a week old.
        """

        def cleared(table: lance.LanceDataset) -> CleanupResult:
            # The log of the newest version stays, and may hold the hashes that it deleted.
            self._change(table, lambda old: old)
            found = table.cleanup_old_versions(
                older_than=timedelta(0), delete_unverified=not is_remote(self.place)
            )
            if not is_remote(self.place):
                # A loss of power must not bring back what was deleted.
                for folder, _, _ in os.walk(table_of(self.place)):
                    fsync(folder)
            return CleanupResult(int(found.old_versions), int(found.bytes_removed))

        return self._write(cleared, single=False)

    @contextlib.contextmanager
    def writing(self, *, single: bool = True) -> Iterator[lance.LanceDataset]:
        """The newest version, with all other writers waiting where it is on disk.

        Args:
            single: whether one commit is made, so that nothing is changed where it fails.
        """
        what = f"cannot write the gallery {self.place}" + "; it is as it was before" * single
        with told(what), self._turn():
            self._dataset.checkout_latest()
            yield self._dataset

    def _write(
        self, action: Callable[[lance.LanceDataset], Found], *, single: bool = True
    ) -> Found:
        """What `action` gives; again, where it meets another writer in an object store."""
        for attempt in range(MEETINGS):
            with self.writing(single=single) as table:
                try:
                    return action(table)
                except (OSError, ValueError, RuntimeError) as error:
                    if attempt == MEETINGS - 1 or not self._has_met(error):
                        raise
            time.sleep(random.uniform(0, LONGEST_WAIT) * (attempt + 1))
            self._reopen()
        raise AssertionError

    def _has_met(self, error: Exception) -> bool:
        """Whether another writer committed, or cleared files away, before this one committed."""
        text = str(error).lower()
        return is_remote(self.place) and any(words in text for words in CONFLICTS)

    def copy_files(self, files: Mapping[str, Path]) -> None:
        """Put files beside the table, under their names."""
        with told(f"cannot write the gallery {self.place}"):
            copy_files(self.place, files, self.options)

    def fetch_file(self, name: str, target: Path) -> None:
        """Copy a file from beside the table."""
        with told(f"cannot read {name} of the gallery {self.place}"):
            LanceFileSession(self.place, storage_options=self.options).download_file(
                name, str(target)
            )

    def delete_files(self, folder: str) -> None:
        """Delete the files of a folder beside the table."""
        with told(f"cannot write the gallery {self.place}"):
            session = LanceFileSession(self.place, storage_options=self.options)
            for name in session.list(folder):
                session.delete_file(name)

    def _change(
        self, table: lance.LanceDataset, change: Callable[[dict[str, Any]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        new = dict(change(_settings(table)))
        table.update_schema_metadata({SETTINGS: _json(new)})
        return new

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if is_remote(self.place):
            yield
            return
        now, after = (FileLock(Path(self.place) / name) for name in LOCKS)
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

    def _keeper(self) -> Durable | None:
        return None if is_remote(self.place) else Durable(Path(table_of(self.place)))

    def _open(self) -> lance.LanceDataset:
        table = table_of(self.place)
        if not is_remote(self.place) and not Path(self.place).is_dir():
            raise absent(self.place)  # At once: Lance tries for seconds where a file is.
        try:
            return lance.dataset(
                table,
                storage_options=self.options,
                commit_lock=self._keeper(),
                session=self._caches,
            )
        except (OSError, ValueError) as error:
            if "not found" in str(error).lower():
                raise absent(self.place) from error
            raise translated(error, f"cannot open the gallery {self.place}") from error


def with_settings(columns: pa.Schema, settings: Mapping[str, Any]) -> pa.Schema:
    """A schema that carries a gallery's settings."""
    return columns.with_metadata({SETTINGS: _json(settings)})


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, ensure_ascii=False, allow_nan=False)


def _settings(table: lance.LanceDataset) -> dict[str, Any]:
    return dict(json.loads(table.schema.metadata[SETTINGS.encode()]))


def _index_statistics(table: lance.LanceDataset) -> dict[str, Any] | None:
    if not any(index.name == VECTOR_INDEX for index in table.describe_indices()):
        return None
    return dict(table.stats.index_stats(VECTOR_INDEX))


def _num_partitions(table: lance.LanceDataset) -> int:
    found = _index_statistics(table)
    return 0 if found is None else int(found["indices"][0]["num_partitions"])


def _index(table: lance.LanceDataset, num_partitions: int) -> None:
    if num_partitions:
        table.create_index("vector", "IVF_FLAT", name=VECTOR_INDEX, metric="L2",
                           num_partitions=num_partitions, replace=True)  # fmt: skip
    elif _index_statistics(table) is not None:
        table.drop_index(VECTOR_INDEX)
