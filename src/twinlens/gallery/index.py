"""Speed of a gallery: compaction, and an index whose recall is measured.

Shapes: M templates, D dimensions, P probes, B templates of a batch, K = 10 nearest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.results import OptimizeResult
from twinlens.gallery.settings import IndexMeasurement
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.store import CleanupResult, Store

__all__ = ["measured_index", "median_time", "needs_index", "optimize", "sweep"]

MAX_PARTITIONS = 1024
"""More would take long to build, and to compare with a probe."""
ROWS_IN_PARTITION = 4000
NEAREST = 10
NUM_PROBES = 100
NUM_STEPS = 4
NPROBES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

MAX_UNINDEXED = 0.2
"""Share of templates younger than the index above which rebuilding it pays."""

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


def optimize(
    core: GalleryCore, partitions: int | None, target_recall: float, progress: Progress | None
) -> OptimizeResult:
    """Compact, index, measure and clear; see `Gallery.optimize`."""
    if partitions is not None and not 0 <= partitions <= MAX_PARTITIONS:
        raise GalleryError(
            f"partitions must be 0 (no index) to {MAX_PARTITIONS}, found {partitions}"
        )
    if not 0 < target_recall <= 1:
        raise GalleryError(f"the target recall must be in (0, 1], found {target_recall}")
    start, store = time.monotonic(), core.store
    done = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), NUM_STEPS)

    deletions = store.settings()["deletions"]
    store.compact()
    step()
    num = store.count()
    if partitions is None:
        fits = core.lookup.fits_memory(num)
        partitions = 0 if fits else min(MAX_PARTITIONS, max(1, num // ROWS_IN_PARTITION))
    partitions = partitions if num >= partitions else 0
    store.make_index(partitions)
    step()
    measured = _measure(core, partitions, target_recall) if partitions else None
    # Another process may have built its index meanwhile, which was not measured here.
    settings = store.change_index_settings(
        lambda old, num: old | {"index": _of_partitions(num, measured, old["index"])}
    )
    index = settings["index"]
    step()
    cleared = sweep(store, deletions)
    milliseconds = median_time(core)
    step()
    return OptimizeResult(
        num,
        "index" if index else "exact" if core.lookup.fits_memory(num) else "scan",
        0 if index is None else index["partitions"],
        None if index is None else index["nprobes"],
        1.0 if index is None else index["recall"],
        milliseconds, cleared.num_versions, cleared.num_bytes, time.monotonic() - start,
    )  # fmt: skip


def measured_index(core: GalleryCore) -> IndexMeasurement | None:
    """The stored measurement if it belongs to the table's index, else None.

    Another optimization, or a kill, may have left another index since.
    """
    index = core.state().index
    return index if index and index.partitions == core.store.num_partitions() else None


def needs_index(core: GalleryCore) -> bool:
    """Whether searching has become slow: too many templates outside memory and index."""
    state = core.state()
    if core.lookup.fits_memory(state.num_templates):
        return False
    if measured_index(core) is None:
        return True
    num_unindexed = core.store.num_unindexed()
    return num_unindexed is None or num_unindexed > MAX_UNINDEXED * state.num_templates


def sweep(store: Store, deletions: int) -> CleanupResult:
    """Delete unreferenced files, and count that many deletions as purged; see `settings`."""
    cleared = store.clear()
    store.delete_models()  # Copies of a rebuild that was killed.
    store.change_index_settings(
        lambda old, num: (
            old
            | {"purged": max(old["purged"], deletions), "index": _of_partitions(num, old["index"])}
        )
    )
    return cleared


def _measure(core: GalleryCore, partitions: int, target: float) -> dict[str, Any]:
    """The fewest partitions to search that reach the target recall, as stored in the settings."""
    store = core.store
    probe_PD, own_P = _probes(core, NUM_PROBES)
    truth = _exact(core, probe_PD, own_P)
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


def _of_partitions(
    partitions: int, *measured: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The first of some stored measurements with that number of partitions, or None."""
    return next((entry for entry in measured if entry and entry["partitions"] == partitions), None)


def _probes(core: GalleryCore, num: int) -> tuple[Floats, list[str]]:
    """A sample of templates, spread over the table, and their hashes."""
    sample = core.store.sample(num, ["vector", "hash"])
    return vectors(sample["vector"]), sample["hash"].to_pylist()


def _exact(core: GalleryCore, probe_PD: Floats, own_P: list[str]) -> list[set[str]]:
    """Hashes of the true nearest templates of each probe, except itself."""

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

    _, names = core.store.read(scan)
    others = ([name for name in row if name != own] for row, own in zip(names, own_P, strict=True))
    return [set(row[:NEAREST]) for row in others]


def median_time(core: GalleryCore) -> float | None:
    """Median milliseconds of a search for identities, once everything is loaded."""
    if not len(core):
        return None
    probe_PD, _ = _probes(core, NUM_PROBES)
    seconds = []
    for probe_D in [probe_PD[0], *probe_PD]:
        start = time.perf_counter()
        core.nearest(probe_D, 5)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]) * 1000)
