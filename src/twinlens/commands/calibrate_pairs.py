"""Calibration on given pairs, whose pictures have no identities.

The pictures that genuine pairs join are one identity. So the interval of the threshold is a
bootstrap over these, as with labelled pictures; only the given pairs count.

Shapes: N pairs, P pictures.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from twinlens.commands.trials import embed_pairs
from twinlens.data.pair_list import PairList
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration, fit_calibration
from twinlens.measure.domain import describe_pictures
from twinlens.measure.pairs import PairSet, pair_distances

__all__ = ["calibrate_pairs"]

log = logging.getLogger("twinlens")


def calibrate_pairs(
    matcher: Matcher, pairs: PairList, far: float, seed: int
) -> tuple[Calibration, dict[str, Any] | None]:
    """The calibration of a model on given pairs, and the domain of their pictures.

    Pairs with a picture that the model was trained on are left out, unless no genuine or no
    impostor pair would remain.

    Args:
        matcher: the model.
        pairs: pairs that do not contradict each other.
        far: target false accept rate, in (0, 1).
        seed: random seed of bootstrap, draws and folds.
    Raises:
        CalibrationError: too few pairs.
        DataError: unreadable pictures, or pairs that contradict each other.
    """
    table = pairs.as_table()
    embedded = embed_pairs(matcher, pairs)
    trained_P = embedded.overlap.picture
    rows = np.flatnonzero(~(trained_P[pairs.a] | trained_P[pairs.b]))
    num_left_out = len(pairs.same) - len(rows)
    if num_left_out and len(np.unique(pairs.same[rows])) < 2:
        log.warning(
            "the model was trained on pictures of %d of the %d pairs in %s, and too few are left "
            "without: all are used, so the FAR will be higher for new pictures",
            num_left_out, len(pairs.same), table.source,
        )  # fmt: skip
        rows = np.arange(len(pairs.same))
    elif num_left_out:
        log.info(
            "left out %d of %d pairs with pictures that the model was trained on",
            num_left_out, len(pairs.same),
        )  # fmt: skip
    same = pairs.same[rows]
    chosen = PairSet(pairs.a[rows], pairs.b[rows], same)
    distance = pair_distances(embedded.embeddings, chosen, matcher.comparison)
    first, second = (label_N[rows] for label_N in pairs.labels())
    calibration = fit_calibration(distance, same, first, second, target_far=far, seed=seed)
    domain = describe_pictures(embedded.embeddings, table, embedded.pixels, table, seed)
    return calibration, domain
