"""Evaluation protocols on decoded pictures: standard, nearest, open-set."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from twinlens.commands.selection import ProbeGallerySelection, Selection
from twinlens.data.columns import as_groups, read_column
from twinlens.data.pixels import select_rows, table_sources
from twinlens.data.quality import quality_parts, quality_scores
from twinlens.match.matcher import Matcher
from twinlens.measure.distances import as_euclidean
from twinlens.measure.error_reject import error_reject
from twinlens.measure.evaluation_result import (
    EvaluationResult,
    NearestNeighbourEvaluation,
    OpenSetEvaluation,
)
from twinlens.measure.exact_eer import exact_eer
from twinlens.measure.few_shot import one_shot
from twinlens.measure.groups import group_rates
from twinlens.measure.nearest_neighbour import nearest_neighbour
from twinlens.measure.open_set import open_set
from twinlens.measure.pairs import count_pairs
from twinlens.measure.retrieval import retrieval
from twinlens.measure.verification import verification
from twinlens.progress import Progress

__all__ = ["evaluate_nearest", "evaluate_open_set", "evaluate_standard"]

log = logging.getLogger("twinlens")


def evaluate_standard(
    matcher: Matcher,
    selection: Selection,
    *,
    pairs: int | None = None,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    prior: float = 0.5,
    by: Sequence[str] = (),
    group_thresholds: bool = False,
    seed: int = 0,
) -> EvaluationResult:
    """Verification, retrieval and one-shot episodes on the pictures of a selection.

    Raises:
        DataError: no genuine or no impostor pair, or no such column to group by.
        ModelError: embeddings that are not finite.
    """
    table = selection.table
    emb_ND = matcher.embed_pixels(selection.pixels, Progress("embedding"))
    comparison = matcher.comparison
    label, forged = table.labels(), table.forged
    verified = verification(
        emb_ND, label, forged, comparison,
        calibrated=matcher.calibration, prior=prior, num_pairs=pairs, seed=seed,
    )  # fmt: skip
    target_far = matcher.require_calibration().target_far if group_thresholds else None
    groups = {
        name: group_rates(
            emb_ND, label, forged, as_groups(read_column(table, name), name), comparison,
            calibrated=matcher.calibration, target_far=target_far, num_pairs=pairs, seed=seed,
        )
        for name in by
    }  # fmt: skip
    all_pairs, drawn = None, (verified.num_genuine, verified.num_impostor)
    # A learned comparator would take hours for all pairs.
    is_plain = as_euclidean(comparison) is not None
    if pairs is None and is_plain and drawn != count_pairs(label, forged):
        all_pairs = exact_eer(emb_ND, label, forged, comparison, progress=Progress("all pairs"))
    source_N = table_sources(table, max_pixels=matcher.max_pixels)
    quality_N = quality_scores(quality_parts(selection.pixels, matcher.picture, source_N))
    episode_scores = one_shot(
        emb_ND, label, forged, comparison, way=way, shot=shot, episodes=episodes, seed=seed
    )
    return EvaluationResult(
        split=selection.split,
        identity_disjoint=selection.identity_disjoint,
        verification=verified,
        all_pairs=all_pairs,
        retrieval=retrieval(
            emb_ND, label, forged, comparison, seed=seed, progress=Progress("searching")
        ),
        one_shot={} if episode_scores is None else {episode_scores.key: episode_scores},
        table=table,
        pixels=selection.pixels,
        embeddings=emb_ND,
        groups=groups,
        error_reject=error_reject(quality_N, verified.pairs, verified.distance, label, seed=seed),
        num_broken=len(selection.broken),
        domain=matcher.summarize_domain(emb_ND, selection.pixels),
    )


def evaluate_nearest(
    matcher: Matcher, selection: ProbeGallerySelection, *, seed: int = 0
) -> NearestNeighbourEvaluation:
    """Identify each probe by its nearest gallery picture.

    A probe that equals a gallery picture has distance 0 to it.

    Raises:
        ModelError: embeddings that are not finite.
    """
    emb_ND = matcher.embed_pixels(selection.pixels, Progress("embedding"))
    label, probe, gallery = selection.table.labels(), selection.probe, selection.gallery
    return NearestNeighbourEvaluation(
        split=selection.split,
        identity_disjoint=selection.identity_disjoint,
        nearest=nearest_neighbour(
            emb_ND[probe], label[probe], emb_ND[gallery], label[gallery],
            matcher.comparison, seed=seed, progress=Progress("comparing"),
        ),
        table=selection.table,
        pixels=selection.pixels,
        embeddings=emb_ND,
        probe=probe,
        gallery=gallery,
        domain=matcher.summarize_domain(emb_ND[probe], select_rows(selection.pixels, probe)),
    )  # fmt: skip


def evaluate_open_set(
    matcher: Matcher,
    selection: Selection,
    *,
    shot: int = 1,
    rule: str = "nearest",
    seed: int = 0,
) -> OpenSetEvaluation:
    """Enrol half of the identities and identify pictures of all of them; forgeries are left out.

    With too few identities the result has no figures, and a warning is logged.

    Raises:
        ModelError: embeddings that are not finite.
    """
    genuine = np.flatnonzero(~selection.table.forged)
    table, pixels = selection.table.select(genuine), select_rows(selection.pixels, genuine)
    emb_ND = matcher.embed_pixels(pixels, Progress("embedding"))
    calibration = matcher.calibration
    rates = open_set(
        emb_ND, table.labels(), matcher.comparison, shot=shot, rule=rule,
        pair_threshold=None if calibration is None else calibration.threshold, seed=seed,
        progress=Progress("comparing"),
    )  # fmt: skip
    if rates is None:
        count_I = np.bincount(table.labels())
        log.warning(
            "open-set identification needs 4 identities, 2 of them with more than %d genuine "
            "pictures; found %d identities, %d of these with enough",
            shot, len(count_I), np.count_nonzero(count_I > shot),
        )  # fmt: skip
    return OpenSetEvaluation(
        split=selection.split,
        identity_disjoint=selection.identity_disjoint,
        open_set=rates,
        table=table,
        pixels=pixels,
        embeddings=emb_ND,
        domain=matcher.summarize_domain(emb_ND, pixels),
    )
