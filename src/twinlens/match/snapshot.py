"""A gallery's templates in memory: exact search in one array, loaded once.

Fragments of the table never change, but for the rows that are deleted from them, so a new version
loads only what is new. This module knows no models and no rules.

Shapes: M templates, I identities, D dimensions.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.match.stores import Store
from twinlens.measure.fusion import Grouped

__all__ = ["Snapshot", "Snapshots"]

HELD = ("identity", "path", "hash", "vector")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The templates of one version, those of an identity side by side.

    Attributes:
        version: of the store.
        vector: (M, D) float32.
        square: (M,) their squared lengths.
        code: (M,) the identity of each, a place in `identities`, ascending.
        identities: (I,) names, sorted.
        path: (M,) where each picture was.
        hash: (M,) of its content.
        grouped: `Grouped.of(code)`.
    """

    version: int
    vector: NDArray[np.float32]
    square: NDArray[np.float32]
    code: NDArray[np.int64]
    identities: pa.StringArray
    path: pa.StringArray
    hash: pa.StringArray
    grouped: Grouped

    @classmethod
    def of(cls, version: int, templates: pa.Table) -> Snapshot:
        """Order the rows of a table by identity."""
        encoded = templates["identity"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_numpy(zero_copy_only=False)
        rank_I = np.empty(len(names), dtype=np.int64)
        by_name = np.argsort(names, kind="stable")
        rank_I[by_name] = np.arange(len(names))
        code_M = rank_I[encoded.indices.to_numpy()]
        order_M = np.argsort(code_M, kind="stable")
        code_M = code_M[order_M]
        vector_MD = vectors(templates["vector"])[order_M]
        return cls(
            version,
            vector_MD,
            np.einsum("md,md->m", vector_MD, vector_MD),
            code_M,
            encoded.dictionary.take(pa.array(by_name)),
            templates["path"].combine_chunks().take(pa.array(order_M)),
            templates["hash"].combine_chunks().take(pa.array(order_M)),
            Grouped.of(code_M),
        )

    def __len__(self) -> int:
        return len(self.vector)

    def squares(self, probe_D: NDArray[np.float32], exact: int) -> NDArray[np.float32]:
        """Squared Euclidean distances to all templates, shape (M,).

        They come by a product, which rounds; the `exact` nearest are computed again from the
        differences, so that a template has distance 0 to itself.
        """
        square_M = self.vector @ probe_D
        square_M *= -2
        square_M += self.square
        square_M += probe_D @ probe_D
        np.maximum(square_M, 0, out=square_M)
        if exact < len(square_M):
            near = np.argpartition(square_M, exact)[:exact]
        else:
            near = np.arange(len(square_M))
        difference = self.vector[near] - probe_D
        square_M[near] = np.einsum("sd,sd->s", difference, difference)
        return square_M


class Snapshots:
    """The snapshot of the newest version, kept until there is a newer one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[str, pa.Table] = {}
        self._latest: Snapshot | None = None
        self._lock = threading.Lock()

    def latest(self) -> Snapshot:
        """The templates as they are now."""
        with self._lock:
            version = self._store.version
            if self._latest is None or self._latest.version != version:
                self._latest = self._store.read(self._load)
            return self._latest

    def _load(self, table: lance.LanceDataset) -> Snapshot:
        parts = {}
        for fragment in table.get_fragments():
            key = repr(fragment.metadata.to_json())
            known = self._parts.get(key)
            parts[key] = fragment.to_table(columns=list(HELD)) if known is None else known
        self._parts = parts
        empty = table.schema.empty_table().select(HELD)
        return Snapshot.of(int(table.version), pa.concat_tables([empty, *parts.values()]))


def vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of vectors as one array, shape (M, D)."""
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dim), dtype=np.float32)
