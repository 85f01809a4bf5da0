"""`twinlens calibrate --unlabelled`: a threshold from pictures without labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.commands.selection import read_data, warn_of_photographs
from twinlens.commands.training_overlap import known_pictures
from twinlens.data.folders import is_folder, read_unlabelled
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixels import select_rows
from twinlens.data.table import ImageTable
from twinlens.files import expand_user
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.domain import describe_pictures
from twinlens.measure.pairs import pair_distances
from twinlens.measure.unlabelled import check_share, random_pairs, unlabelled_calibration
from twinlens.model.training_record import find_record
from twinlens.progress import Progress

__all__ = ["calibrate_unlabelled"]

log = logging.getLogger("twinlens")


def calibrate_unlabelled(
    matcher: Matcher,
    data: str | Path | ImageTable,
    root: str | Path | None,
    far: float,
    share: float,
    seed: int,
) -> tuple[Calibration, dict[str, Any] | None]:
    """The calibration and the domain by pictures whose labels, if any, are not used.

    Pictures that the model was trained on are left out.

    Args:
        matcher: the model; the probability of an earlier calibration is moved.
        data: a folder of pictures at any depth, or data as for `calibrate`.
        root: folder of a named set's local copy.
        far: target false accept rate.
        share: largest share of genuine pairs among random ones.
        seed: random seed for the pairs.
    Raises:
        CalibrationError: too few pictures.
        ConfigError: a share outside (0, 0.2].
        DataError: pictures that cannot be read.
    """
    check_share(share)
    settings = matcher.data_settings
    if not isinstance(data, ImageTable) and is_folder(data) and root is None:
        matcher.require_outside_resize()
        table = read_unlabelled(expand_user(data), source=str(data))
    else:
        table = read_data(matcher, data, root)
    warn_of_photographs(matcher, table)
    decoded = decode_table(
        table, matcher.picture, max_pixels=settings.max_pixels,
        max_broken=settings.max_broken, progress=Progress("reading"),
    )  # fmt: skip
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    record = find_record(matcher.path, matcher.origin)
    known = known_pictures(matcher, record, decoded.table, decoded.pixels).overlap("train").picture
    if known.any():
        log.info("left out %d pictures that the model was trained on", known.sum())
    rows = np.flatnonzero(~known)
    pixels = select_rows(decoded.pixels, rows)
    pairs = random_pairs(len(rows), np.random.default_rng(seed))
    emb_ND = matcher.embed_pixels(pixels, Progress("embedding"))
    distance = pair_distances(emb_ND, pairs, matcher.comparison)
    calibration = unlabelled_calibration(matcher.calibration, distance, far, share)
    table = decoded.table.select(rows)
    # Without labels each picture counts as an identity.
    domain = describe_pictures(emb_ND, table, pixels, table, closed=True, seed=seed)
    return calibration, domain
