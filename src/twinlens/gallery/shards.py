"""Sharded gallery: galleries of one model inside one folder or bucket, queried as one.

The gallery itself has the settings, with one open-set threshold for all parts, a copy of the model,
and an empty table. Each part is a complete gallery. An identity may be in several parts; it is one
identity all the same. Distances of a part count without its own corrections, so that those of all
parts compare.

Shapes: N templates, M templates of all parts, D dimensions, K answers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.location import galleries_inside
from twinlens.gallery.metric import Metric
from twinlens.gallery.schema import COLUMNS, quoted
from twinlens.gallery.search import Lookup, RankedIdentity, listed
from twinlens.gallery.settings import GalleryState, Shards
from twinlens.gallery.store import Store
from twinlens.measure.fusion import VOTERS, rank_identities

__all__ = ["ShardedCore", "ShardedStore", "check_same_model"]

Result = TypeVar("Result")
Floats = NDArray[np.float32]


class ShardedStore(Store):
    """The rows of all parts, and the settings of the whole.

    Attributes:
        shards: names of the parts, and the rule that places new identities.
        parts: their stores.
    """

    def __init__(self, place: str, options: Mapping[str, str] | None, shards: Shards) -> None:
        super().__init__(place, options)
        self.shards = shards
        self.parts = tuple(_part(place, name, options) for name in shards.names)

    @property
    def version(self) -> int:
        """A number that grows with every commit to the whole or to a part."""
        return super().version + sum(part.version for part in self.parts)

    def count(self, where: str | None = None) -> int:
        """As `Store.count`, of all parts."""
        return sum(part.count(where) for part in self.parts)

    def num_bytes(self) -> int:
        """As `Store.num_bytes`, with all parts."""
        return super().num_bytes() + sum(part.num_bytes() for part in self.parts)

    def find(
        self,
        where: str | None = None,
        columns: Sequence[str] | Mapping[str, str] = COLUMNS,
        limit: int | None = None,
    ) -> pa.Table:
        """As `Store.find`, in all parts."""
        rows = pa.concat_tables([part.find(where, columns, limit) for part in self.parts])
        return rows if limit is None else rows.slice(0, limit)

    def sample(self, num: int, columns: Sequence[str]) -> pa.Table:
        """As `Store.sample`, of all parts."""
        each = -(-num // len(self.parts))
        return pa.concat_tables([part.sample(each, columns) for part in self.parts])

    def insert(self, rows: pa.Table, *, expected: Mapping[str, Any] | None = None) -> int:
        """As `Store.insert`; an identity goes to the part that has it, a new one by its hash.

        A picture that any part has is left out.

        Raises:
            GalleryError: the parts are those of tenants, one of which has to be named.
        """
        if self.shards.by != "hash":
            raise GalleryError(
                f"{self.place} joins the galleries {', '.join(self.shards.names[:5])}: enrol into "
                f"one of these, such as {self.place}/{self.shards.names[0]}"
            )
        known = self.find(_is_in("hash", rows["hash"]), ["hash"])["hash"]
        rows = rows.filter(pc.invert(pc.is_in(rows["hash"], known.combine_chunks())))
        names = rows["identity"].unique()
        part_of = {name: zlib.crc32(name.encode()) % len(self.parts) for name in names.to_pylist()}
        for number, part in enumerate(self.parts):
            enrolled = part.find(_is_in("identity", names), ["identity"])["identity"].unique()
            part_of |= dict.fromkeys(enrolled.to_pylist(), number)
        part_N = np.array([part_of[name] for name in rows["identity"].to_pylist()], np.int64)
        return sum(
            self.parts[number].insert(rows.filter(pa.array(part_N == number)), expected=expected)
            for number in np.unique(part_N)
        )


def _part(place: str, name: str, options: Mapping[str, str] | None) -> Store:
    try:
        return Store.open(f"{place}/{name}", options=options)
    except GalleryError as error:
        if name in galleries_inside(place, options):
            raise
        raise GalleryError(
            f"the part {name} of the gallery {place} is missing: restore it from a backup, or "
            f"leave it out with `twinlens gallery join {place}`"
        ) from error


class ShardedCore(GalleryCore):
    """An open sharded gallery.

    Attributes:
        parts: the open galleries.
    """

    def __init__(
        self, store: ShardedStore, device: str, threads: int | None, *, as_is: bool
    ) -> None:
        super().__init__(store, device, threads, as_is=as_is)
        self.shards = store.shards
        self.parts = tuple(GalleryCore(part, device, threads) for part in store.parts)
        for part in self.parts:
            check_same_model(self, part)
        self.lookup = ShardedLookup(store, self)

    def state(self) -> GalleryState:
        """As `GalleryCore.state`.

        Raises:
            GalleryError: the parts were changed since they were opened.
        """
        state = super().state()
        if state.settings.shards != self.shards:
            raise GalleryError(f"the parts of the gallery {self.place} changed: open it again")
        return state


class ShardedLookup(Lookup):
    """Nearest-neighbour search in all parts, each by its own index or in memory."""

    def __init__(self, store: ShardedStore, core: ShardedCore) -> None:
        super().__init__(store, core._plain, core._learned_comparison)
        self._parts = core.parts
        self._pool = ThreadPoolExecutor(min(len(core.parts), os.cpu_count() or 1))

    def identities(
        self,
        probe_D: Floats,
        rule: str,
        depth: int,
        nprobes: int | None,
        *,
        in_memory: bool,
        metric: Metric | None = None,
    ) -> list[RankedIdentity]:
        """As `Lookup.identities`; by the mean of a part's templates if an identity has several."""

        def nearest(part: GalleryCore) -> list[RankedIdentity]:
            state = part.state()
            return part.lookup.identities(
                probe_D, "nearest" if rule == "vote" else rule, depth, state.nprobes,
                in_memory=part.is_in_memory(state),
            )  # fmt: skip

        entries = [entry for part in self._each(nearest) for entry in part]
        if rule == "vote":
            near = self.templates(
                probe_D, VOTERS, nprobes, where=None, in_memory=in_memory,
                columns=("identity", "path"),
            )  # fmt: skip
            voters = [RankedIdentity(*row) for row in zip(
                near["identity"].to_pylist(), near["distance"].to_pylist(),
                near["path"].to_pylist(), strict=True)]  # fmt: skip
            # Each voter once: the nearest template of an identity may be one.
            others = {entry.identity for entry in voters}
            entries = voters + [entry for entry in entries if entry.identity not in others]
        if not entries:
            return []
        names, code_S = np.unique([entry.identity for entry in entries], return_inverse=True)
        dist_S = np.array([entry.distance for entry in entries], np.float32)
        ranks = rank_identities(dist_S[None], code_S, rule, depth)
        path_S = pa.array([entry.path for entry in entries])
        return listed(ranks.code[0], ranks.distance[0], path_S, dist_S, code_S, names)

    def templates(
        self,
        probe_D: Floats,
        k: int,
        nprobes: int | None,
        *,
        where: str | None,
        in_memory: bool,
        columns: Sequence[str],
        metric: Metric | None = None,
    ) -> pa.Table:
        """As `Lookup.templates`."""

        def nearest(part: GalleryCore) -> pa.Table:
            state = part.state()
            return part.lookup.templates(
                probe_D, k, state.nprobes, where=where, in_memory=part.is_in_memory(state),
                columns=columns,
            )  # fmt: skip

        rows = pa.concat_tables(self._each(nearest))
        order = np.argsort(rows["distance"].to_numpy(), kind="stable")[:k]
        return rows.take(pa.array(order))

    def _each(self, action: Callable[[GalleryCore], Result]) -> list[Result]:
        # In memory, Python's lock would let threads wait for each other.
        if all(part.is_in_memory(part.state()) for part in self._parts):
            return [action(part) for part in self._parts]
        return list(self._pool.map(action, self._parts))


def check_same_model(first: GalleryCore, other: GalleryCore) -> None:
    """Refuse a part of another model.

    Raises:
        GalleryError: names both.
    """
    if first.fingerprint != other.fingerprint:
        raise GalleryError(
            f"{other.place} belongs to the model {other.fingerprint}, but {first.place} to the "
            f"model {first.fingerprint}: distances of two models do not compare; change one with "
            "`twinlens gallery rebuild`"
        )


def _is_in(column: str, values: pa.Array) -> str:
    """The condition that a column has one of some values."""
    return f"{column} IN ({', '.join(map(quoted, values.to_pylist()))})" if len(values) else "false"
