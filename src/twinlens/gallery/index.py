"""What keeps a gallery quick: few files, and an index whose recall was measured.

Shapes: M templates, D dimensions, P probes, B templates of a batch, K = 10 nearest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.store import Cleared, Store

if TYPE_CHECKING:
    from twinlens.gallery.gallery import Gallery

__all__ = ["Optimized", "fitting", "optimize", "sweep"]

MOST_PARTITIONS = 256
"""More of them lose the near ones: each then holds too few of its neighbours' templates."""
ROWS_IN_PARTITION = 4000
NEAREST = 10
NUM_PROBES = 100
NUM_STEPS = 4
NPROBES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did.

    Attributes:
        num_templates: M.
        search: "exact" in memory, "index", or "scan" from disk: too many for memory and no index.
        partitions: of the index.
        nprobes: partitions that a search looks into: the fewest that reach the target.
        recall: the share of the true 10 nearest of templates that a search finds; 1 without index.
        milliseconds: the median of an identification, without embedding the picture.
        num_versions: older states of the gallery that were removed.
        num_bytes: of the files that were removed.
        seconds: how long all took.
    """

    num_templates: int
    search: str
    partitions: int
    nprobes: int | None
    recall: float
    milliseconds: float | None
    num_versions: int
    num_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """What was done, in words."""
        how = "exact search in memory"
        if self.search == "scan":
            how = "no index, and too many for memory: each search reads all from disk, slowly"
        elif self.search == "index":
            how = (
                f"an index of {self.partitions} partitions, of which {self.nprobes} are searched; "
                f"it finds {self.recall:.1%} of the true {NEAREST} nearest"
            )
        speed = "" if self.milliseconds is None else f", {self.milliseconds:.1f} ms a search"
        return (
            f"{self.num_templates} templates: {how}{speed}; removed {self.num_versions} older "
            f"versions ({self.num_bytes / 1e6:.1f} MB) in {self.seconds:.1f} s"
        )


def optimize(
    gallery: Gallery, partitions: int | None, target_recall: float, progress: Progress | None
) -> Optimized:
    """Compact, index, measure and clear; see `Gallery.optimize`."""
    if partitions is not None and not 0 <= partitions <= MOST_PARTITIONS:
        raise GalleryError(f"partitions is {partitions}: 0 (none) to {MOST_PARTITIONS} are allowed")
    if not 0 < target_recall <= 1:
        raise GalleryError(f"the target recall is {target_recall}: it lies between 0 and 1")
    start, store = time.monotonic(), gallery.store
    done = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), NUM_STEPS)

    deletions = store.settings()["deletions"]
    store.compact()
    step()
    num = store.count()
    if partitions is None:
        fits = gallery.lookup.fits_memory(num)
        partitions = 0 if fits else min(MOST_PARTITIONS, max(1, num // ROWS_IN_PARTITION))
    partitions = partitions if num >= partitions else 0
    store.make_index(partitions)
    step()
    found = _measure(gallery, partitions, target_recall) if partitions else None
    # Another one may have built its index meanwhile, of which this says nothing.
    settled = store.settle(lambda old, num: old | {"index": fitting(num, found, old["index"])})
    index = settled["index"]
    step()
    cleared = sweep(store, deletions)
    milliseconds = _median_time(gallery)
    step()
    return Optimized(
        num,
        "index" if index else "exact" if gallery.lookup.fits_memory(num) else "scan",
        0 if index is None else index["partitions"],
        None if index is None else index["nprobes"],
        1.0 if index is None else index["recall"],
        milliseconds, cleared.num_versions, cleared.num_bytes, time.monotonic() - start,
    )  # fmt: skip


def sweep(store: Store, deletions: int) -> Cleared:
    """Clear, and note that nothing is left of so many deletions; see `state` for both numbers."""
    cleared = store.clear()
    store.settle(
        lambda old, num: (
            old | {"purged": max(old["purged"], deletions), "index": fitting(num, old["index"])}
        )
    )
    return cleared


def _measure(gallery: Gallery, partitions: int, target: float) -> dict[str, Any]:
    """The settings of the index: the fewest partitions to search that reach the target."""
    store = gallery.store
    probe_PD, own_P = _probes(gallery, NUM_PROBES)
    truth = _exact(gallery, probe_PD, own_P)
    choices = [n for n in NPROBES if n < partitions] + [partitions]
    for nprobes in choices:
        hits = total = 0
        for probe_D, own, true in zip(probe_PD, own_P, truth, strict=True):
            near = store.nearest(probe_D, NEAREST + 1, columns=["hash"], nprobes=nprobes)
            hits += len(true & (set(near["hash"].to_pylist()) - {own}))
            total += len(true)
        recall = hits / total if total else 1.0
        if recall >= target:
            break
    return {"partitions": partitions, "nprobes": nprobes, "recall": recall}


def fitting(partitions: int, *measured: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The first of some measurements that is of an index of so many partitions, or None."""
    return next((one for one in measured if one and one["partitions"] == partitions), None)


def _probes(gallery: Gallery, num: int) -> tuple[Floats, list[str]]:
    """Some templates, spread over the table, and their hashes."""
    total = gallery.store.count()
    rows = np.linspace(0, total - 1, min(num, total)).astype(np.int64).tolist()
    found = gallery.store.read(lambda table: table.take(rows, columns=["vector", "hash"]))
    return vectors(found["vector"]), found["hash"].to_pylist()


def _exact(gallery: Gallery, probe_PD: Floats, own_P: list[str]) -> list[set[str]]:
    """The hashes of the true nearest of each probe but itself, batch by batch of the table."""

    def scan(table: Any) -> tuple[Floats, NDArray[np.object_]]:
        best = np.full((len(probe_PD), 0), np.inf, dtype=np.float32)
        names = np.empty((len(probe_PD), 0), dtype=object)
        length_P1 = np.square(probe_PD).sum(1)[:, None]
        for batch in table.to_batches(columns=["hash", "vector"]):
            vector_BD = vectors(pa.chunked_array([batch["vector"]]))
            square = length_P1 + np.square(vector_BD).sum(1) - 2 * probe_PD @ vector_BD.T
            square = np.concatenate([best, square], axis=1)
            hashes = batch["hash"].to_numpy(zero_copy_only=False)
            hashes_PB = np.broadcast_to(hashes, (len(probe_PD), len(hashes)))
            hashes_PB = np.concatenate([names, hashes_PB], axis=1)
            near = np.argsort(square, axis=1)[:, : NEAREST + 1]
            best = np.take_along_axis(square, near, axis=1)
            names = np.take_along_axis(hashes_PB, near, axis=1)
        return best, names

    _, names = gallery.store.read(scan)
    found = ([name for name in row if name != own] for row, own in zip(names, own_P, strict=True))
    return [set(row[:NEAREST]) for row in found]


def _median_time(gallery: Gallery) -> float | None:
    """Milliseconds of finding the best identities of a vector, once everything is loaded."""
    if not len(gallery):
        return None
    probe_PD, _ = _probes(gallery, NUM_PROBES)
    seconds = []
    for probe_D in [probe_PD[0], *probe_PD]:
        start = time.perf_counter()
        gallery.nearest(probe_D, 5)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]) * 1000)
