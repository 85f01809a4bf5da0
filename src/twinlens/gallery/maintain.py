"""Maintenance of a gallery: erase, calibrate, describe.

Shapes: M templates, D dimensions, P probes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, GalleryError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.enrol import Enrolment, read_labelled, sources_of
from twinlens.gallery.index import measured_index, sweep
from twinlens.gallery.schema import quoted
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.store import CleanupResult
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.fusion import check_rule
from twinlens.measure.open_set_calibration import OpenSetCalibration, check_fpir
from twinlens.measure.open_set_threshold import calibrate_open_set, calibrate_open_set_on_probes

__all__ = ["EraseReceipt", "GalleryInfo", "calibrate", "describe", "erase", "finish"]

log = logging.getLogger("twinlens")

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery in numbers.

    Attributes:
        place: folder or address.
        created: time of creation, ISO 8601.
        fingerprint: fingerprint of the model.
        comparator: comparator of the model.
        dim: D.
        num_templates: M.
        num_identities: identities with templates.
        num_thumbnails: templates with a thumbnail.
        num_bytes: bytes on disk, without the model.
        rule: fusion rule for the templates of an identity.
        threshold: largest distance that identifies; None without calibration.
        threshold_of: "gallery", "pairs" (the model's), or None.
        expected_fpir: expected FPIR of the threshold at the gallery's present size; for a threshold
            for pairs, about its upper bound.
        calibrated_for: number of identities at calibration, or None.
        search: "exact" in memory, "index", or "scan", which is slow until `optimize`.
        partitions: partitions of the index, 0 without one.
        nprobes: partitions that a search reads.
        recall: share of the true 10 nearest that a search finds, measured by `optimize`.
        num_unindexed: templates younger than the index, compared one by one.
        num_deletions: interrupted erasures; `optimize` completes them.
    """

    place: str
    created: str
    fingerprint: str
    comparator: str
    dim: int
    num_templates: int
    num_identities: int
    num_thumbnails: int
    num_bytes: int
    rule: str
    threshold: float | None
    threshold_of: str | None
    expected_fpir: float | None
    calibrated_for: int | None
    search: str
    partitions: int
    nprobes: int | None
    recall: float | None
    num_unindexed: int
    num_deletions: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """A line for each fact."""
        lines = {
            "gallery": self.place,
            "holds": f"{self.num_templates} templates of {self.num_identities} identities, "
            f"{self.num_thumbnails} with a thumbnail, {self.num_bytes / 1e6:.1f} MB",
            "model": f"{self.fingerprint}, {self.dim} dimensions, {self.comparator}",
            "created": self.created,
            "threshold": self._threshold_words(),
            "templates of an identity": self.rule,
            "search": self._search_words(),
        }
        if self.num_deletions:
            lines["interrupted"] = "an erasure: `twinlens gallery optimize` completes it"
        return "\n".join(f"{name:26} {words}" for name, words in lines.items())

    def _threshold_words(self) -> str:
        if self.threshold is None or self.expected_fpir is None:
            return "none: run `twinlens gallery calibrate`"
        fpir = f"{self.expected_fpir:.1%} of strangers (FPIR)"
        if self.threshold_of == "pairs":
            return (
                f"{self.threshold:.4f}, falsely identifies up to {fpir}; it is the model's threshold "
                "for pairs: run `twinlens gallery calibrate`"
            )
        return (
            f"{self.threshold:.4f}, falsely identifies about {fpir}; calibrated for "
            f"{self.calibrated_for} identities"
        )

    def _search_words(self) -> str:
        if self.search == "exact":
            return "exact, in memory"
        if self.search == "scan":
            return "all templates from disk, slow: run `twinlens gallery optimize`"
        return (
            f"index of {self.partitions} partitions, {self.nprobes} searched, recall "
            f"{self.recall:.3f}; {self.num_unindexed} templates are younger than it"
        )


@dataclass(frozen=True)
class EraseReceipt:
    """Receipt of an erasure; it names no identity.

    Attributes:
        num_templates: erased templates.
        num_thumbnails: erased thumbnails.
        num_versions: removed older versions of the gallery.
        num_bytes: bytes of the removed files.
        num_left: templates of other identities.
        time: time of the erasure, ISO 8601.
        seconds: duration.
    """

    num_templates: int
    num_thumbnails: int
    num_versions: int
    num_bytes: int
    num_left: int
    time: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """The receipt in one line."""
        return (
            f"erased 1 identity: {self.num_templates} templates, {self.num_thumbnails} thumbnails; "
            f"removed {self.num_versions} older versions ({self.num_bytes / 1e6:.1f} MB); "
            f"{self.num_left} templates of others remain ({self.time}, {self.seconds:.1f} s)"
        )


def describe(core: GalleryCore) -> GalleryInfo:
    """A gallery in numbers."""
    state, store = core.state(), core.store
    settings, index = state.settings, measured_index(core)
    names = len(core.identities())
    try:
        threshold = core.threshold()
    except CalibrationError:
        threshold = None
    expected = None if threshold is None else threshold.fpir
    if state.open_set is not None:
        expected = state.open_set.fpir_at_size(names)
    search = "index" if index else "exact" if core.is_in_memory(state) else "scan"
    return GalleryInfo(
        place=core.place,
        created=settings.created,
        fingerprint=core.fingerprint,
        comparator=settings.comparator,
        dim=core.dim,
        num_templates=state.num_templates,
        num_identities=names,
        num_thumbnails=store.count("thumbnail IS NOT NULL"),
        num_bytes=store.num_bytes(),
        rule=state.rule,
        threshold=None if threshold is None else threshold.value,
        threshold_of=None if threshold is None else threshold.of,
        expected_fpir=expected,
        calibrated_for=None if state.open_set is None else state.open_set.num_identities,
        search=search,
        partitions=0 if index is None else index.partitions,
        nprobes=None if index is None else index.nprobes,
        recall=None if index is None else index.recall,
        num_unindexed=store.num_unindexed() or 0,
        num_deletions=settings.deletions - settings.purged,
    )


def erase(core: GalleryCore, identity: str) -> EraseReceipt:
    """Remove an identity and every byte of it.

    Raises:
        GalleryError: there is no such identity, or the gallery cannot be written.
    """
    start, store = time.monotonic(), core.store
    num_templates, num_thumbnails = store.delete_where(f"identity = {quoted(identity)}")
    if not num_templates:
        finish(core)  # The bytes of an erasure that was killed.
        core.require(identity)
        return erase(core, identity)  # Enrolled since.
    try:
        cleared = _purge(core)
    except GalleryError as error:
        raise GalleryError(
            f"{num_templates} templates are erased and no longer searched, but files still hold "
            f"their data ({error}): run `twinlens gallery optimize {core.place}`"
        ) from error
    return EraseReceipt(
        num_templates, num_thumbnails, cleared.num_versions, cleared.num_bytes, store.count(),
        datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic() - start,
    )  # fmt: skip


def finish(core: GalleryCore) -> None:
    """Remove the bytes of erasures that were interrupted."""
    settings = core.state().settings
    if settings.deletions > settings.purged:
        _purge(core)


def _purge(core: GalleryCore) -> CleanupResult:
    """Rewrite every file that holds deleted rows, and delete the old ones."""
    store = core.store
    # Only deletions before the compaction are certain to be gone after it.
    deletions = store.settings()["deletions"]
    store.compact()
    # The index holds vectors too, and a centre may equal one. The table says whether an index
    # exists: the settings lack one whose measurement was interrupted.
    store.reindex()
    return sweep(store, deletions)


def calibrate(
    core: GalleryCore,
    data: str | Path | ImageTable | None,
    fpir: float,
    rule: str,
    root: str | Path | None,
    seed: int,
    progress: Progress | None,
) -> OpenSetCalibration:
    """Find and store the gallery's threshold; see `Gallery.calibrate`."""
    check_rule(rule, "auto")
    check_fpir(fpir)
    check_seed(seed)
    if not len(core):
        raise GalleryError(f"the gallery {core.place} is empty: enrol pictures first")
    calibration = _measure(core, data, fpir, rule, root, seed, progress)

    def store(old: dict[str, Any]) -> dict[str, Any]:
        core.check_model(old["fingerprint"])
        return old | {"open_set": calibration.as_json()}

    core.store.change_settings(store)
    return calibration


def _measure(
    core: GalleryCore,
    data: str | Path | ImageTable | None,
    fpir: float,
    rule: str,
    root: str | Path | None,
    seed: int,
    progress: Progress | None,
) -> OpenSetCalibration:
    names, code_M, vector_MD = _all_templates(core)
    comparison = core.lookup.comparison
    if data is None:
        return calibrate_open_set(vector_MD, code_M, comparison, target_fpir=fpir, rule=rule,
                                  seed=seed, progress=progress)  # fmt: skip
    emb_PD, identity_P = _probes(core, data, root, progress)
    code_of: Mapping[str, int] = {name: code for code, name in enumerate(names)}
    code_P = np.array([code_of.get(name, -1) for name in identity_P], dtype=np.int64)
    return calibrate_open_set_on_probes(
        emb_PD, code_P, vector_MD, code_M, comparison, target_fpir=fpir, rule=rule,
        probe_identity_P=identity_P, seed=seed, progress=progress,
    )  # fmt: skip


def _all_templates(core: GalleryCore) -> tuple[list[str], NDArray[np.int64], Floats]:
    """Names, the code of each template, and the vectors; all in memory."""
    if core.is_in_memory(core.state()):
        snap = core.lookup.snapshot()
        return snap.identities.to_pylist(), snap.code, snap.vector
    rows = core.store.find(columns=["identity", "vector"])
    names, code_M = np.unique(rows["identity"].to_numpy(zero_copy_only=False), return_inverse=True)
    return names.tolist(), code_M, vectors(rows["vector"])


def _probes(
    core: GalleryCore,
    data: str | Path | ImageTable,
    root: str | Path | None,
    progress: Progress | None,
) -> tuple[Floats, NDArray[np.object_]]:
    """Embeddings and names of the pictures of DATA that are not enrolled."""
    sources, _ = sources_of(read_labelled(core.matcher, data, root), {})
    run = Enrolment(core, keep_thumbnails=False)
    rows = list(run.rows(sources, progress))
    for one in run.skipped:
        log.warning("skipped %s: %s", one.path, one.reason)
    if not rows:
        skipped = " or was skipped" if run.skipped else ""
        raise GalleryError(
            f"every picture of {data} is enrolled{skipped}: give other pictures, of enrolled "
            "identities and of strangers, or no DATA to leave out each template in turn"
        )
    probes = pa.concat_tables(rows)
    return vectors(probes["vector"]), probes["identity"].to_numpy(zero_copy_only=False)
