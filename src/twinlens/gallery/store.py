"""Store of templates: insert, rename, delete, search, index, clean up.

Rows go in, rows and squared distances come out: models, pictures and thresholds play no part here.
See `table` for the guarantees of a commit.

Shapes: M templates of D dimensions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.files import part_beside
from twinlens.gallery.durable import Durable, fsync, restrict, restrict_hint
from twinlens.gallery.lance_files import check_lance_file
from twinlens.gallery.location import (
    check_content,
    check_free,
    copy_files,
    delete_model,
    gallery_errors,
    is_remote,
    model_names,
    normalized,
    open_files,
    table_of,
)
from twinlens.gallery.schema import (
    COLUMNS,
    SETTINGS,
    check_columns,
    check_rows,
    quoted,
    schema,
    settings_json,
    stored_settings,
    with_settings,
)
from twinlens.gallery.table import ActiveWriterError, Table

__all__ = ["CleanupResult", "Store", "name_taken"]

VECTOR_INDEX = "vector_idx"
NAMED = ("identity", "hash")
"""Columns that a large table is searched by, besides the vectors."""

CODES = {"num_bits": 2}
"""Bits of a coordinate in the index (RaBitQ). One bit finds too few of the nearest templates where
vectors are short, or where nothing is near."""
SHORT = 32
"""Dimensions below which vectors are small enough without codes, and codes too coarse."""
REFINED = 32
"""Rows, at least, that are compared by the vectors in the table after their codes: exact
distances, and most of a query's time."""

MAX_FRAGMENTS = 100
"""Small fragments of the table, one per commit, above which they are compacted."""
FRAGMENT_ROWS = 1 << 16
"""Rows of a fragment that is left alone by a compaction, unless rows of it are deleted. Readers
read new fragments, so that few large ones would hold up their next query."""

DELETED_AT_ONCE = 1000

PRIVATE = 0o700
"""Permissions of a new gallery's folder; its files have no more (see `durable`)."""

ROWS_PER_BYTE = 1
"""More rows than that in the table's files are no templates: each has a hash of its own."""

Result = TypeVar("Result")
Change = Callable[[dict[str, Any]], Mapping[str, Any]]
Forget = Callable[[dict[str, Any], Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class CleanupResult:
    """Counts of a clean-up."""

    num_versions: int
    num_bytes: int


class Store:
    """The table of a gallery, its settings, and the files beside it.

    Attributes:
        place: folder, or address in an object store.
        table: the Lance table.
    """

    def __init__(self, place: str, options: Mapping[str, str] | None) -> None:
        self.place, self.table = place, Table(place, options)

    @classmethod
    def create(
        cls,
        place: str | Path,
        dim: int,
        settings: Mapping[str, Any],
        files: Mapping[str, Path],
        *,
        options: Mapping[str, str] | None = None,
        parts: Collection[str] = (),
    ) -> Store:
        """Create an empty table, with `files` copied beside it under their names.

        Galleries named `parts` may be there already.

        Raises:
            GalleryError: the place is taken, or cannot be written.
        """
        base = normalized(place)
        with gallery_errors(f"cannot create the gallery {place}"):
            check_free(base, files, options, parts)
            if not is_remote(base):
                Path(base).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    Path(base).mkdir(mode=PRIVATE)
                restrict(base, PRIVATE)  # An empty folder that was there.
                check_content(base)
            copy_files(base, files, options)
            # Last, since a place with a table is a gallery.
            lance.write_dataset(
                with_settings(schema(dim), settings).empty_table(),
                table_of(base),
                storage_options=None if options is None else dict(options),
                commit_lock=None if is_remote(base) else Durable(Path(table_of(base))),
            )
            if not is_remote(base):
                restrict_hint(Path(table_of(base)))
                for folder in (base, Path(base).parent):
                    fsync(folder)
        return cls(base, options)

    @classmethod
    def open(cls, place: str | Path, *, options: Mapping[str, str] | None = None) -> Store:
        """Open an existing table.

        Raises:
            GalleryError: missing or damaged.
        """
        return cls(normalized(place), options)

    # --- reading ---

    @property
    def version(self) -> int:
        """A number that grows with every commit of any writer."""
        return self.read(lambda table: int(table.version))

    @property
    def dim(self) -> int:
        """D."""
        return int(self.table.dataset.schema.field("vector").type.list_size)

    def read(self, action: Callable[[lance.LanceDataset], Result]) -> Result:
        """Apply `action` to the newest version; it may run several times."""
        return self.table.read(action)

    def settings(self) -> dict[str, Any]:
        """The settings of the newest version.

        Raises:
            GalleryError: not the table of a gallery, or a damaged one.
        """
        settings = self.read(self._checked_settings)
        if settings is None:
            raise GalleryError(
                f"{self.place} holds a Lance table, but not one of a twinlens gallery"
            )
        return settings

    def _checked_settings(self, table: lance.LanceDataset) -> dict[str, Any] | None:
        try:
            settings = stored_settings(table)
            if settings is not None:
                check_columns(table.schema)
        except ValueError as error:
            raise GalleryError(
                f"the gallery {self.place} is damaged: {error}. Restore it from a copy"
            ) from error
        return settings

    def check_files(self) -> None:
        """Check the table's files before any row is read; those of an object store by size only.

        Raises:
            GalleryError: a damaged file (see `lance_files`), or a few bytes that claim very many
                rows.
        """

        def check(table: lance.LanceDataset) -> None:
            folder = Path(table_of(self.place))
            for fragment in table.get_fragments():
                for file in fragment.data_files():
                    check_lance_file(folder / "data" / file.path)
            with contextlib.suppress(FileNotFoundError):  # Another process replaces an index.
                for path in (*folder.glob("_indices/*/*.idx"), *folder.glob("_indices/*/*.lance")):
                    check_lance_file(path)

        if not is_remote(self.place):
            self.read(check)
        num, size = self.count(), self.num_bytes()
        if num > ROWS_PER_BYTE * size:
            raise GalleryError(
                f"the gallery {self.place} is damaged: it claims {num:,} templates, and its files "
                f"hold {size:,} bytes. Restore it from a copy"
            )

    def count(self, where: str | None = None) -> int:
        """The number of templates, or of those that satisfy a condition."""
        return self.read(lambda table: int(table.count_rows(filter=where)))

    def find(
        self,
        where: str | None = None,
        columns: Sequence[str] | Mapping[str, str] = COLUMNS,
        limit: int | None = None,
    ) -> pa.Table:
        """The templates that satisfy an SQL condition; columns by name may be SQL expressions."""
        wanted = dict(columns) if isinstance(columns, Mapping) else list(columns)
        return self._rows(lambda table: table.to_table(columns=wanted, filter=where, limit=limit))

    def sample(self, num: int, columns: Sequence[str]) -> pa.Table:
        """About `num` templates, spread over the table."""

        def take(table: lance.LanceDataset) -> pa.Table:
            total = table.count_rows()
            rows = np.linspace(0, total - 1, min(num, total)).astype(np.int64)
            return table.take(rows.tolist(), columns=list(columns))

        return self._rows(take)

    def _rows(self, action: Callable[[lance.LanceDataset], pa.Table]) -> pa.Table:
        """Read rows, and check them."""

        def checked(table: lance.LanceDataset) -> pa.Table:
            rows = action(table)
            check_rows(rows)
            return rows

        return self.read(checked)

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
            vector_D: query vector, shape (D,).
            k: number of templates.
            columns: columns of the result, besides the distance.
            where: SQL condition on the templates.
            nprobes: partitions of the index to search, more if these hold fewer than k templates;
                None compares all templates. Rows younger than the index are always compared.
        """
        if nprobes is None:
            return self._nearest(vector_D, k, columns, where, {"use_index": False})
        refined = {"refine_factor": max(1, -(-REFINED // k))}
        rows = self._nearest(vector_D, k, columns, where, {"nprobes": nprobes, **refined})
        if len(rows) == k:
            return rows
        # Without an upper limit Lance searches as many partitions as it needs, and more.
        return self._nearest(vector_D, k, columns, where, {"minimum_nprobes": nprobes, **refined})

    def _nearest(
        self,
        vector_D: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        where: str | None,
        options: Mapping[str, Any],
    ) -> pa.Table:
        return self._rows(
            lambda table: table.scanner(
                columns=[*columns, "_distance"],
                nearest={"column": "vector", "q": vector_D, "k": k, **options},
                filter=where,
                prefilter=where is not None,
                disable_scoring_autoprojection=True,
            ).to_table()
        )

    def num_unindexed(self) -> int | None:
        """The number of rows outside the index; None without an index."""
        statistics = self.read(_index_statistics)
        return None if statistics is None else int(statistics["num_unindexed_rows"])

    def num_partitions(self) -> int:
        """Partitions of the index; 0 without an index."""
        return self.read(_num_partitions)

    def num_bytes(self) -> int:
        """The size of all files of the table."""
        files = self.read(lambda table: table.all_files().read_all())
        return int(sum(files["size_bytes"].to_pylist()))

    # --- writing ---

    def insert(self, rows: pa.Table, *, expected: Mapping[str, Any] | None = None) -> int:
        """Add rows whose hash is new; returns how many. They are durable on return.

        Args:
            rows: rows in the columns of `schema`.
            expected: settings that must still hold at the commit.
        Raises:
            GalleryError: a setting has changed, or the table cannot be written.
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
                        f"{settings.get(name)} instead of {value}; open it again"
                    )
            counts = table.merge_insert("hash").when_not_matched_insert_all().execute(rows)
            sizes = [part.physical_rows for part in table.get_fragments()]
            return int(counts["num_inserted_rows"]), sum(num < FRAGMENT_ROWS for num in sizes)

        num, num_small = self.table.write(merged)
        if num_small > MAX_FRAGMENTS:
            # Each commit adds a few files, which every later read has to open.
            self.compact()
            with contextlib.suppress(ActiveWriterError):  # The next such insertion clears.
                self.clear()
        return num

    def rename(
        self, old: str, new: str, *, merge: bool = True, change: Change | None = None
    ) -> int:
        """Rename an identity; returns the number of its templates.

        Args:
            old: present name.
            new: new name.
            merge: whether `new` may have templates.
            change: change of the settings that follows.
        Raises:
            GalleryError: `new` has templates, and `merge` is not set.
        """
        of_old, of_new = f"identity = {quoted(old)}", f"identity = {quoted(new)}"

        def updated(table: lance.LanceDataset) -> int:
            if not table.count_rows(filter=of_old):
                return 0
            if not merge and (num := table.count_rows(filter=of_new)):
                raise name_taken(new, num)
            counts = table.update({"identity": quoted(new)}, where=of_old)
            if change is not None:
                self._change(table, change)
            return int(counts["num_rows_updated"])

        return self.table.write(updated, single=change is None)

    def move(self, hashes: Sequence[str], identity: str) -> None:
        """Give templates another identity."""
        where = f"hash IN ({', '.join(map(quoted, hashes))})"
        self.table.write(lambda table: table.update({"identity": quoted(identity)}, where=where))

    def delete(self, hashes: Sequence[str], forget: Forget | None = None) -> None:
        """Delete rows, and count the deletion in the settings. Their bytes remain until `clear`.

        Args:
            hashes: hashes of the rows.
            forget: change of the settings for deleted hashes, in the commit that counts them.
        """
        self.table.write(lambda table: self._delete(table, hashes, forget), single=False)

    def delete_where(self, where: str, forget: Forget | None = None) -> tuple[int, int]:
        """Delete the rows that satisfy a condition; otherwise as `delete`.

        In an object store, rows that another writer adds meanwhile are deleted too.

        Returns:
            The number of deleted rows, and how many of them had a thumbnail.
        """
        deleted: dict[str, bool] = {}

        def delete(table: lance.LanceDataset) -> bool:
            columns = {"hash": "hash", "has_thumbnail": "thumbnail IS NOT NULL"}
            rows = table.to_table(columns=columns, filter=where)
            hashes = rows["hash"].to_pylist()
            deleted.update(zip(hashes, rows["has_thumbnail"].to_pylist(), strict=True))
            if hashes:
                self._delete(table, hashes, forget)
            return bool(hashes)

        while self.table.write(delete, single=False) and is_remote(self.place):
            pass
        return len(deleted), sum(deleted.values())

    def _delete(
        self, table: lance.LanceDataset, hashes: Sequence[str], forget: Forget | None
    ) -> None:
        # Counted first, so that bytes of a killed deletion are known to remain.
        def counted(old: dict[str, Any]) -> Mapping[str, Any]:
            new = old | {"deletions": old["deletions"] + 1}
            return new if forget is None else forget(new, hashes)

        self._change(table, counted)
        # By hash: Lance writes the condition into files, which must not contain a name.
        for start in range(0, len(hashes), DELETED_AT_ONCE):
            part = ", ".join(quoted(name) for name in hashes[start : start + DELETED_AT_ONCE])
            table.delete(f"hash IN ({part})")
        if is_remote(self.place):
            # Another writer may have cleaned up after the first count and before this deletion.
            self._change(table, lambda old: old | {"deletions": old["deletions"] + 1})

    def change_settings(self, change: Change) -> None:
        """Replace the settings by `change` of the present ones."""
        self.change_index_settings(lambda old, _: change(old))

    def change_index_settings(
        self, change: Callable[[dict[str, Any], int], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """As `change_settings`; `change` also gets the partitions of the index, 0 without one.

        Returns:
            The new settings.
        """

        def changed(table: lance.LanceDataset) -> dict[str, Any]:
            num = _num_partitions(table)
            return self._change(table, lambda old: change(old, num))

        return self.table.write(changed)

    def _change(self, table: lance.LanceDataset, change: Change) -> dict[str, Any]:
        new = dict(change(_settings(table)))
        table.update_schema_metadata({SETTINGS: settings_json(new)})
        return new

    def make_index(self, num_partitions: int) -> None:
        """Build the indexes, of vectors and of `NAMED`; 0 partitions drop them."""
        self.table.write(lambda table: _index(table, num_partitions), single=False)

    def reindex(self) -> None:
        """Rebuild the indexes, if the table has them, from the present rows.

        With fewer rows than partitions they are dropped: a scan of so few is fast.
        """

        def rebuilt(table: lance.LanceDataset) -> None:
            num = _num_partitions(table)
            if num:
                _index(table, num if table.count_rows() >= num else 0)

        self.table.write(rebuilt, single=False)

    def compact(self) -> None:
        """Merge small files, and rewrite files with deleted rows without them."""
        self.table.write(
            lambda table: table.optimize.compact_files(
                target_rows_per_fragment=FRAGMENT_ROWS, materialize_deletions_threshold=0.0
            ),
            single=False,
        )

    def clear(self) -> CleanupResult:
        """Delete every file that the newest version does not need.

        On disk this includes files of killed writers. In an object store a writer may still be
        at work on them, so files of no version remain until they are a week old.

        Raises:
            ActiveWriterError: in an object store, another write takes longer than a minute.
        """
        if is_remote(self.place):
            newest = self.table.write(self._renewed)
            self.table.wait_for_writers()
            return self.read(lambda table: self._cleared_before(table, newest))
        return self.table.write(self._cleared, single=False)

    def _renewed(self, table: lance.LanceDataset) -> int:
        # The log of the newest version remains, and may hold the hashes that it deleted.
        self._change(table, lambda old: old)
        return int(table.version)

    def _cleared_before(self, table: lance.LanceDataset, newest: int) -> CleanupResult:
        old = [entry["version"] for entry in table.versions() if entry["version"] < newest]
        if not old:  # Another process was first.
            return CleanupResult(0, 0)
        removed = table.cleanup_old_versions(versions=old)
        return CleanupResult(int(removed.old_versions), int(removed.bytes_removed))

    def _cleared(self, table: lance.LanceDataset) -> CleanupResult:
        self._renewed(table)
        removed = table.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        # A loss of power must not bring back deleted files.
        for folder, _, names in os.walk(table_of(self.place)):
            for name in names:
                if name.startswith(".tmp"):  # Lance keeps some of killed writers.
                    Path(folder, name).unlink()
            fsync(folder)
        return CleanupResult(int(removed.old_versions), int(removed.bytes_removed))

    # --- files beside the table ---

    def copy_files(self, files: Mapping[str, Path]) -> None:
        """Copy files beside the table, under their names."""
        with gallery_errors(f"cannot write the gallery {self.place}"):
            copy_files(self.place, files, self.table.options)

    def has_file(self, name: str) -> bool:
        """Whether a file of that name lies beside the table."""
        with gallery_errors(f"cannot read {name} of the gallery {self.place}"):
            return bool(open_files(self.place, self.table.options).contains(name))

    def fetch_file(self, name: str, target: Path) -> None:
        """Copy a file from beside the table."""
        with gallery_errors(f"cannot read {name} of the gallery {self.place}"):
            open_files(self.place, self.table.options).download_file(name, str(target))

    def destroy(self) -> None:
        """Delete the gallery's folder with everything in it, once no other writer is at work.

        Raises:
            GalleryError: in an object store, or the folder cannot be deleted.
        """
        if is_remote(self.place):
            raise GalleryError(f"{self.place} is not deleted from here: use the store's own tool")
        folder = Path(self.place)
        with self.table.writing(single=False), part_beside(folder) as part:
            folder.rename(part / folder.name)  # At once, even if this process is killed.
        fsync(folder.parent)

    def delete_models(self, old: str | None = None) -> None:
        """Delete the copies of models that the newest version does not use.

        Args:
            old: fingerprint of the only one to delete in an object store, where others may be
                copies of a rebuild at work.
        """
        with self.table.writing(single=False) as table:
            used = _settings(table).get("fingerprint")
            names = [old] if is_remote(self.place) else model_names(self.place)
            for name in names:
                if name is not None and name != used:
                    delete_model(self.place, name, self.table.options)


def name_taken(name: str, num: int) -> GalleryError:
    """The error for a new name that has `num` templates already."""
    return GalleryError(
        f"the identity {name[:80]!r} exists already, with {num} templates: give --merge "
        "(merge=True) to put both under that name"
    )


def _settings(table: lance.LanceDataset) -> dict[str, Any]:
    settings = stored_settings(table)
    assert settings is not None
    return settings


def _index_statistics(table: lance.LanceDataset) -> dict[str, Any] | None:
    if not any(index.name == VECTOR_INDEX for index in table.describe_indices()):
        return None
    return dict(table.stats.index_stats(VECTOR_INDEX))


def _num_partitions(table: lance.LanceDataset) -> int:
    statistics = _index_statistics(table)
    return 0 if statistics is None else int(statistics["indices"][0]["num_partitions"])


def _index(table: lance.LanceDataset, num_partitions: int) -> None:
    if not num_partitions:
        for index in table.describe_indices():
            table.drop_index(index.name)
        return
    for column in NAMED:
        table.create_scalar_index(column, "BTREE", name=f"{column}_idx", replace=True)
    dim = table.schema.field("vector").type.list_size
    is_coded = dim >= SHORT and dim % 8 == 0  # Lance's codes pack 8 dimensions.
    kind = {"index_type": "IVF_RQ"} | CODES if is_coded else {"index_type": "IVF_FLAT"}
    # Last: its presence says that the others exist.
    table.create_index("vector", **kind, name=VECTOR_INDEX, metric="L2",
                       num_partitions=num_partitions, replace=True)  # fmt: skip
