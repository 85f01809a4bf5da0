"""What keeps a gallery right: erasing for certain, the threshold, the facts.

Shapes: M templates, D dimensions, P probes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, GalleryError
from twinlens.gallery.enrol import read_labelled, sources_of
from twinlens.gallery.index import fitting, sweep
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.store import Cleared, quoted
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.fusion import check_rule
from twinlens.measure.open_set_calibration import OpenSetCalibration, check_target
from twinlens.measure.open_set_threshold import calibrate_open_set, calibrate_with_probes

if TYPE_CHECKING:
    from twinlens.gallery.gallery import Gallery

__all__ = ["GalleryInfo", "Receipt", "calibrate", "describe", "erase", "finish"]

log = logging.getLogger("twinlens")

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery in numbers.

    Attributes:
        place: where it is.
        created: when, in ISO 8601.
        fingerprint: of its model.
        comparator: of its model.
        dim: D.
        num_templates: M.
        num_identities: how many have templates.
        num_thumbnails: templates with a thumbnail.
        num_bytes: on disk, without the model.
        rule: how the templates of an identity are fused.
        threshold: beyond it the answer is nobody; None where nothing is calibrated.
        threshold_of: "gallery", "pairs" (the model's), or None.
        expected_fpir: the share of strangers that the threshold may take for somebody, at the
            gallery's present size; of a threshold for pairs about the most.
        calibrated_for: how many identities there were when the gallery was calibrated, or None.
        search: "exact" in memory, "index", or "scan", which is slow and wants `optimize`.
        partitions: of the index, 0 without one.
        nprobes: partitions that a search looks into.
        recall: the share of the true 10 nearest that it finds, measured by `optimize`.
        num_unindexed: templates younger than the index, which are compared one by one.
        num_deletions: erasures that were interrupted; `optimize` finishes them.
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
            lines["interrupted"] = "an erasure: `twinlens gallery optimize` finishes it"
        return "\n".join(f"{name:26} {words}" for name, words in lines.items())

    def _threshold_words(self) -> str:
        if self.threshold is None or self.expected_fpir is None:
            return "none: run `twinlens gallery calibrate`"
        share = f"{self.expected_fpir:.1%} of strangers for somebody"
        if self.threshold_of == "pairs":
            return (
                f"{self.threshold:.4f}, may take up to {share}; it is the model's, for pairs: run "
                "`twinlens gallery calibrate`"
            )
        return (
            f"{self.threshold:.4f}, takes about {share}; found for {self.calibrated_for} identities"
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
class Receipt:
    """What an erasure removed; it names nobody.

    Attributes:
        num_templates: that were erased.
        num_thumbnails: that were erased with them.
        num_versions: older states of the gallery that were removed.
        num_bytes: of the files that were removed.
        num_left: templates of others, which stay.
        time: when it was done, in ISO 8601.
        seconds: how long it took.
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
        """What was done, in words."""
        return (
            f"erased 1 identity: {self.num_templates} templates, {self.num_thumbnails} thumbnails; "
            f"removed {self.num_versions} older versions ({self.num_bytes / 1e6:.1f} MB); "
            f"{self.num_left} templates of others remain ({self.time}, {self.seconds:.1f} s)"
        )


def describe(gallery: Gallery) -> GalleryInfo:
    """A gallery in numbers."""
    state, store = gallery.state(), gallery.store
    # A measurement is of no use where another optimization, or a kill, left another index.
    settings, index = state.settings, fitting(store.num_partitions(), state.index)
    names = len(gallery.identities())
    try:
        found = gallery.threshold()
    except CalibrationError:
        found = None
    expected = None if found is None else found.fpir
    if state.open_set is not None:
        expected = state.open_set.fpir_at_size(names)
    search = "index" if index else "exact" if gallery.is_in_memory(state) else "scan"
    return GalleryInfo(
        place=gallery.place,
        created=settings["created"],
        fingerprint=gallery.fingerprint,
        comparator=settings["comparator"],
        dim=gallery.dim,
        num_templates=state.num_templates,
        num_identities=names,
        num_thumbnails=store.count("thumbnail IS NOT NULL"),
        num_bytes=store.num_bytes(),
        rule=state.rule,
        threshold=None if found is None else found.value,
        threshold_of=None if found is None else found.of,
        expected_fpir=expected,
        calibrated_for=None if state.open_set is None else state.open_set.num_identities,
        search=search,
        partitions=0 if index is None else index["partitions"],
        nprobes=None if index is None else index["nprobes"],
        recall=None if index is None else index["recall"],
        num_unindexed=store.num_unindexed() or 0,
        num_deletions=settings["deletions"] - settings["purged"],
    )


def erase(gallery: Gallery, identity: str) -> Receipt:
    """Remove an identity and every byte of it.

    Raises:
        GalleryError: there is no such identity, or the gallery cannot be written.
    """
    start, store = time.monotonic(), gallery.store
    num_templates, num_thumbnails = store.delete_where(f"identity = {quoted(identity)}")
    if not num_templates:
        finish(gallery)  # The bytes of an erasure that was killed.
        gallery.require(identity)
        return erase(gallery, identity)  # Enrolled since.
    try:
        cleared = _purge(gallery)
    except GalleryError as error:
        raise GalleryError(
            f"{num_templates} templates are erased and found no more, but files still hold what "
            f"was theirs ({error}): run `twinlens gallery optimize {gallery.place}`"
        ) from error
    return Receipt(
        num_templates, num_thumbnails, cleared.num_versions, cleared.num_bytes, store.count(),
        datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic() - start,
    )  # fmt: skip


def finish(gallery: Gallery) -> None:
    """Remove the bytes of erasures that were interrupted."""
    settings = gallery.state().settings
    if settings["deletions"] > settings["purged"]:
        _purge(gallery)


def _purge(gallery: Gallery) -> Cleared:
    """Rewrite all that holds deleted rows, and delete what held them."""
    store = gallery.store
    # Only what is deleted by now is surely gone afterwards.
    deletions = store.settings()["deletions"]
    store.compact()
    # The index holds vectors too, and its centres may be somebody's. The table says whether there
    # is one: the settings do not know of one whose measurement was interrupted.
    store.reindex()
    return sweep(store, deletions)


def calibrate(
    gallery: Gallery,
    data: str | Path | ImageTable | None,
    fpir: float,
    rule: str,
    root: str | Path | None,
    seed: int,
    progress: Progress | None,
) -> OpenSetCalibration:
    """Measure strangers' and enrolled people's distances; see `Gallery.calibrate`."""
    check_rule(rule, "auto")
    check_target(fpir)
    check_seed(seed)
    if not len(gallery):
        raise GalleryError(f"the gallery {gallery.place} is empty: enrol pictures first")
    names, code_M, vector_MD = _all_templates(gallery)
    comparison = gallery.lookup.comparison
    if data is None:
        return calibrate_open_set(vector_MD, code_M, comparison, target_fpir=fpir, rule=rule,
                                  seed=seed, progress=progress)  # fmt: skip
    emb_PD, identity_P = _asked(gallery, data, root, progress)
    place: Mapping[str, int] = {name: code for code, name in enumerate(names)}
    code_P = np.array([place.get(name, -1) for name in identity_P], dtype=np.int64)
    return calibrate_with_probes(
        emb_PD, code_P, vector_MD, code_M, comparison, target_fpir=fpir, rule=rule,
        probe_identity_P=identity_P, seed=seed, progress=progress,
    )  # fmt: skip


def _all_templates(gallery: Gallery) -> tuple[list[str], NDArray[np.int64], Floats]:
    """Names, the code of each template, and the vectors; all in memory."""
    if gallery.is_in_memory(gallery.state()):
        snap = gallery.lookup.snapshot()
        return snap.identities.to_pylist(), snap.code, snap.vector
    rows = gallery.store.find(columns=["identity", "vector"])
    names, code_M = np.unique(rows["identity"].to_numpy(zero_copy_only=False), return_inverse=True)
    return names.tolist(), code_M, vectors(rows["vector"])


def _asked(
    gallery: Gallery,
    data: str | Path | ImageTable,
    root: str | Path | None,
    progress: Progress | None,
) -> tuple[Floats, NDArray[np.object_]]:
    """Embeddings and names of the pictures of DATA that are not enrolled themselves."""
    sources, _ = sources_of(read_labelled(gallery.matcher, data, root), {})
    run = gallery.enrolment()
    rows = list(run.rows(sources, progress))
    for one in run.skipped:
        log.warning("skipped %s: %s", one.path, one.reason)
    if not rows:
        skipped = " or was skipped" if run.skipped else ""
        raise GalleryError(
            f"every picture of {data} is enrolled{skipped}: give others, of enrolled identities "
            "and of strangers, or none to leave out each template in turn"
        )
    asked = pa.concat_tables(rows)
    return vectors(asked["vector"]), asked["identity"].to_numpy(zero_copy_only=False)
