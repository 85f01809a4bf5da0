"""Given trials: pairs, or one-shot trials with several candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.commands.training_overlap import TrainingOverlap, known_pictures
from twinlens.data.adapters import Data
from twinlens.data.columns import as_groups
from twinlens.data.pair_list import CLUSTER, PairList, pairs_in, pairs_of_file
from twinlens.data.pixel_cache import decode_table
from twinlens.errors import DataError
from twinlens.files import expand_user
from twinlens.match.matcher import Matcher
from twinlens.measure.groups import GroupsResult, trial_group_rates
from twinlens.measure.pairs import PairSet, pair_distances
from twinlens.measure.trials import (
    OneShotTrialsResult,
    PairTrialsResult,
    one_shot_trials,
    pair_trials,
)
from twinlens.model.training_record import find_record
from twinlens.progress import Progress

__all__ = ["EmbeddedPairs", "embed_pairs", "run_trials"]

log = logging.getLogger("twinlens")


def run_trials(
    matcher: Matcher,
    trials: Data,
    folder: Path | None,
    *,
    prior: float = 0.5,
    by: Sequence[str] = (),
    seed: int,
) -> tuple[PairTrialsResult | OneShotTrialsResult, dict[str, GroupsResult]]:
    """Evaluate a model on given trials.

    Args:
        matcher: the model.
        trials: pairs as of `pair_list.pairs_in`, or a CSV file of one-shot trials. The bootstrap
            draws the identities that genuine pairs join; with a column `cluster` it draws these
            clusters instead. A relative path starts from the file's folder, then `folder`, then the
            working directory.
        folder: further folder of the pictures.
        prior: prior probability of a genuine pair, for the reliability of pairs.
        by: columns to group pairs by; those that the file lacks are left out.
        seed: random seed for the bootstrap.
    Returns:
        The results, and those by column.
    Raises:
        DataError: wrong columns, an unknown value of `same`, no trials, or unreadable pictures.
    """
    if isinstance(trials, str | Path):
        pairs = pairs_of_file(expand_user(trials), folder)
    elif (given := pairs_in(trials, folder)) is not None:
        pairs = given
    else:
        raise DataError(
            f"trials are a CSV file, a data frame with the columns a, b and same, or a list of "
            f"(a, b, same), found {type(trials).__name__}"
        )
    embedded = embed_pairs(matcher, pairs)
    _warn(matcher, embedded, pairs.table.source)
    same = pairs.same
    chosen = PairSet(pairs.a, pairs.b, same)
    distance = pair_distances(embedded.embeddings, chosen, matcher.comparison)
    cluster: ArrayLike | None = pairs.columns.get(CLUSTER)
    if pairs.trial is not None:
        return one_shot_trials(pairs.trial, distance, same, cluster=cluster, seed=seed), {}
    cluster = np.stack(pairs.labels()) if cluster is None else cluster
    calibrated = matcher.calibration
    result = pair_trials(
        distance, same, calibrated=calibrated, prior=prior, cluster=cluster, seed=seed
    )
    groups = {
        name: trial_group_rates(
            distance, same, as_groups(pairs.columns[name], name),
            calibrated=calibrated, cluster=cluster, seed=seed,
        )
        for name in by if name in pairs.columns
    }  # fmt: skip
    return result, groups


@dataclass(frozen=True, eq=False)
class EmbeddedPairs:
    """The decoded pictures of pairs, (P, C, H, W), embeddings (P, D), and what was trained on."""

    pixels: NDArray[np.uint8]
    embeddings: NDArray[np.float32]
    overlap: TrainingOverlap


def embed_pairs(matcher: Matcher, pairs: PairList) -> EmbeddedPairs:
    """Decode and embed the pictures of pairs.

    Raises:
        DataError: unreadable pictures.
    """
    table, source = pairs.unlabelled(), pairs.table.source
    decoded = decode_table(
        table,
        matcher.picture,
        max_pixels=matcher.data_settings.max_pixels,
        max_broken=1.0,
        progress=Progress("reading"),
    )
    if decoded.broken:
        named = "; ".join(f"{b.path}: {b.reason}" for b in decoded.broken[:5])
        raise DataError(
            f"{len(decoded.broken)} of the {len(table)} pictures in {source} cannot be read "
            f"({named}): repair them, or remove their trials"
        )
    record = find_record(matcher.path, matcher.origin)
    overlap = known_pictures(matcher, record, table, decoded.pixels).overlap("train")
    embeddings = matcher.embed_pixels(decoded.pixels, progress=Progress("embedding"))
    return EmbeddedPairs(decoded.pixels, embeddings, overlap)


def _warn(matcher: Matcher, embedded: EmbeddedPairs, source: str) -> None:
    """Warn of pictures that the model was trained on, or that are unlike those of its domain."""
    known_P = embedded.overlap.picture
    if known_P.any():
        log.warning(
            "the model was trained on %d of the %d pictures in %s: expect worse figures for new "
            "pictures (%s)",
            known_P.sum(), len(known_P), source, embedded.overlap.reasons(),
        )  # fmt: skip
    domain = matcher.summarize_domain(embedded.embeddings, embedded.pixels)
    if domain is not None and not domain.in_domain:
        log.warning("%s: %s", source, domain.as_text())
