"""Maintenance of a gallery: erase, calibrate, and warn of an outdated calibration.

Shapes: M templates, D dimensions, P probes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.adapters import Data
from twinlens.data.contents import NO_DIGEST
from twinlens.errors import GalleryError
from twinlens.gallery.adapt import adapt
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.corrections import Feedback, renamed, with_feedback, without
from twinlens.gallery.enrol import Enrolment
from twinlens.gallery.index import sweep
from twinlens.gallery.results import EraseReceipt
from twinlens.gallery.schema import quoted
from twinlens.gallery.settings import in_format
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.sources import read_labelled, sources_of
from twinlens.gallery.store import CleanupResult
from twinlens.gallery.templates import require_templates
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.fusion import check_rule
from twinlens.measure.open_set_calibration import OpenSetCalibration, check_fpir
from twinlens.measure.open_set_threshold import calibrate_open_set, calibrate_open_set_on_probes
from twinlens.model.training_record import find_record, trained_names, unknown_reason

__all__ = ["calibrate", "calibration_outgrown", "erase", "erase_templates", "finish", "rename",
           "training_overlap"]  # fmt: skip

log = logging.getLogger("twinlens")

GROWTH = 1.5
"""Ratio of identities, now to at calibration, from which the threshold counts as outdated."""

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


def erase(core: GalleryCore, identity: str) -> EraseReceipt:
    """Remove an identity and every byte of it, its corrections and their influence included.

    Raises:
        GalleryError: no such identity, or the gallery cannot be written.
    """
    receipt = _erase(core, f"identity = {quoted(identity)}")
    if receipt is None:
        finish(core)  # The bytes of an erasure that was killed.
        core.require(identity)
        return erase(core, identity)  # Enrolled since.
    return receipt


def erase_templates(core: GalleryCore, hashes: Sequence[str]) -> EraseReceipt:
    """Remove templates and every byte of them; see `Gallery.erase_templates`."""
    require_templates(core, hashes)
    receipt = _erase(core, _of(hashes))
    if receipt is None:
        finish(core)
        return erase_templates(core, hashes)
    return receipt


def _erase(core: GalleryCore, where: str) -> EraseReceipt | None:
    """Remove the templates of a condition and every byte of them; None if there are none."""
    start, store = time.monotonic(), core.store
    erased: set[str] = set()

    def forget(settings: dict[str, Any], hashes: Sequence[str]) -> dict[str, Any]:
        names = set(core.owners(hashes).values())
        others = f"identity IN ({', '.join(map(quoted, sorted(names)))}) AND NOT ({_of(hashes)})"
        kept = set(store.find(others, columns=["identity"])["identity"].to_pylist())
        erased.update(names - kept)
        return _without(settings, hashes, erased)

    num_templates, num_thumbnails = store.delete_where(where, forget)
    if not num_templates:
        return None
    try:
        adapt(core)
        cleared = _purge(core)
    except GalleryError as error:
        raise GalleryError(
            f"{num_templates} templates are erased and no longer searched, but files still hold "
            f"their data ({error}): run `twinlens gallery optimize {core.place}`"
        ) from error
    return EraseReceipt(
        len(erased), num_templates, num_thumbnails, cleared.num_versions, cleared.num_bytes,
        store.count(), datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic() - start,
    )  # fmt: skip


def _of(hashes: Sequence[str]) -> str:
    """The condition that holds for the templates of some hashes."""
    return f"hash IN ({', '.join(map(quoted, hashes))})"


def _without(
    settings: dict[str, Any], hashes: Sequence[str], identities: Collection[str]
) -> dict[str, Any]:
    """Settings without the corrections of some pictures or identities, and without a fit."""
    stored = settings.get("feedback")
    if stored is None:
        return settings
    feedback = without(Feedback.model_validate(stored), hashes)
    for identity in identities:
        feedback = without(feedback, identity=identity)
    return in_format(with_feedback(settings, feedback))


def rename(core: GalleryCore, old: str, new: str, merge: bool) -> int:
    """Rename an identity; see `Gallery.rename`."""
    if old == new:
        num = core.store.count(f"identity = {quoted(old)}")
    else:
        has_feedback = core.state().settings.feedback is not None

        def change(settings: dict[str, Any]) -> dict[str, Any]:
            stored = settings.get("feedback")
            if stored is None:
                return settings
            return with_feedback(settings, renamed(Feedback.model_validate(stored), old, new))

        num = core.store.rename(old, new, merge=merge, change=change if has_feedback else None)
    if not num:
        core.require(old)
    return num


def finish(core: GalleryCore) -> None:
    """Adapt after an interruption, and remove the bytes of interrupted erasures."""
    feedback = core.state().settings.feedback
    if feedback is not None and feedback.stale:
        adapt(core)
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
    data: Data | None,
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
    names, code_M, vector_MD = _all_templates(core)
    comparison = core.lookup.comparison
    if data is None:
        if warning := training_overlap(core):
            log.warning("%s", warning)
        calibration = calibrate_open_set(
            vector_MD, code_M, comparison, target_fpir=fpir, rule=rule, seed=seed,
            progress=progress,
        )  # fmt: skip
    else:
        emb_PD, identity_P = _probes(core, data, root, progress)
        code_of: Mapping[str, int] = {name: code for code, name in enumerate(names)}
        code_P = np.array([code_of.get(name, -1) for name in identity_P], dtype=np.int64)
        calibration = calibrate_open_set_on_probes(
            emb_PD, code_P, vector_MD, code_M, comparison, target_fpir=fpir, rule=rule,
            probe_identity_P=identity_P, seed=seed, progress=progress,
        )  # fmt: skip

    def store(old: dict[str, Any]) -> dict[str, Any]:
        core.check_model(old["fingerprint"])
        new = {name: value for name, value in old.items() if name != "calibrated_on"}
        new |= {"open_set": calibration.as_json()}
        return in_format(new if data is None else new | {"calibrated_on": "pictures"})

    core.store.change_settings(store)
    adapt(core)
    in_force = core.state().open_set
    return calibration if in_force is None else in_force


def _all_templates(core: GalleryCore) -> tuple[list[str], NDArray[np.int64], Floats]:
    """Names, the code of each template, and the vectors; all in memory."""
    rows = core.store.find(columns=["identity", "vector"])
    names, code_M = np.unique(rows["identity"].to_numpy(zero_copy_only=False), return_inverse=True)
    return names.tolist(), code_M, vectors(rows["vector"])


def _probes(
    core: GalleryCore,
    data: Data,
    root: str | Path | None,
    progress: Progress | None,
) -> tuple[Floats, NDArray[np.object_]]:
    """Embeddings and names of the pictures of DATA that are not enrolled."""
    sources, _ = sources_of(read_labelled(core.matcher, data, root), {})
    run = Enrolment(core, keep_thumbnails=False, min_quality=None)
    rows = list(run.rows(sources, progress))
    for picture in run.skipped:
        log.warning("skipped %s: %s", picture.path, picture.reason)
    if not rows:
        skipped = " or was skipped" if run.skipped else ""
        raise GalleryError(
            f"every picture of {data} is enrolled{skipped}: give other pictures, of enrolled "
            "identities and of strangers, or no DATA to leave out each template in turn"
        )
    probes = pa.concat_tables(rows)
    if warning := _overlap_warning(core, probes, f"of {data}"):
        log.warning("%s", warning)
    return vectors(probes["vector"]), probes["identity"].to_numpy(zero_copy_only=False)


def calibration_outgrown(core: GalleryCore) -> str | None:
    """A warning if the gallery has far more identities than at its calibration, else None."""
    calibration = core.state().open_set
    if calibration is None:
        return None
    num = len(core.identities())
    if num < GROWTH * calibration.num_identities:
        return None
    return (
        f"calibrated for {calibration.num_identities} identities, the gallery has {num} now: "
        f"expect an FPIR of {100 * calibration.fpir_at_size(num):.2g} % instead of "
        f"{100 * calibration.target_fpir:.2g} %, and run `twinlens gallery calibrate {core.place}`"
    )


def training_overlap(core: GalleryCore) -> str | None:
    """A warning if enrolled pictures were trained on, or if that is unknown, else None."""
    return _overlap_warning(core, core.store.find(columns=["identity", "hash"]), "enrolled")


def _overlap_warning(core: GalleryCore, rows: pa.Table, which: str) -> str | None:
    """The warning for rows with the columns `identity` and `hash`."""
    matcher = core.matcher
    record = find_record(matcher.path, matcher.origin)
    names, code_M = np.unique(rows["identity"].to_numpy(), return_inverse=True)
    is_copy = np.zeros(len(rows), np.bool_)
    if record is not None:
        is_copy = record.splits_of(list(map(_digest_of, rows["hash"].to_pylist()))) == "train"
    is_trained = trained_names(matcher.origin, record, names.tolist())
    num_named = np.count_nonzero(is_trained)
    is_trained[code_M[is_copy]] = True
    advice = (
        "the true FPIR may be higher than measured: calibrate on other pictures, "
        f"`twinlens gallery calibrate {core.place} DATA`"
    )
    if is_trained.any():
        return (
            f"the model was trained on {np.count_nonzero(is_trained)} of the {len(names)} "
            f"identities {which} (recognised: {np.count_nonzero(is_copy)} copies, {num_named} "
            f"names), so {advice}"
        )
    if record is None:
        return (
            f"it is unknown whether the model was trained on the pictures {which} "
            f"({unknown_reason(matcher.path, matcher.origin)}). If so, {advice}"
        )
    return None


def _digest_of(name: str) -> bytes:
    """The digest behind the hash of a row; imported rows may have any text."""
    try:
        return bytes.fromhex(name)
    except ValueError:
        return NO_DIGEST
