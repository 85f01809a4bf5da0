"""What was measured of a model on decoded pictures, in every protocol that applies."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.choose_pictures import AgainstTraining, ChosenPictures
from twinlens.data.duplicates import exact_groups
from twinlens.data.pixel_cache import PixelRows, Pixels
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import plain_of
from twinlens.measure.evaluation_result import Measured
from twinlens.measure.exact_eer import all_pairs_eer
from twinlens.measure.nearest_neighbour import nearest
from twinlens.measure.pairs import count_pairs
from twinlens.measure.verification import (
    one_shot,
    open_set,
    retrieval,
    verification,
)
from twinlens.model.bundle import Bundle
from twinlens.model.comparators import TorchComparison
from twinlens.model.encoder import embed_pixels
from twinlens.progress import Progress

__all__ = ["measure", "measure_nearest", "measure_open_set"]

log = logging.getLogger("twinlens")


def measure(
    bundle: Bundle,
    calibration: Calibration | None,
    table: ImageTable,
    pixels_NCHW: Pixels,
    *,
    split: str,
    identity_disjoint: bool,
    pairs: int | None = None,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    seed: int = 0,
) -> Measured:
    """Measure a model on decoded pictures.

    Raises:
        DataError: there is no genuine or no impostor pair among them.
    """
    emb_ND = _embedded(bundle, pixels_NCHW)
    comparison = TorchComparison(bundle.comparator)
    label, forged = table.labels(), table.forged
    verified = verification(
        emb_ND, label, forged, comparison, calibrated=calibration, num_pairs=pairs, seed=seed
    )
    every, drawn = None, (verified.num_genuine, verified.num_impostor)
    # By a network for each distance all pairs would take hours.
    quick = plain_of(comparison) is not None
    if pairs is None and quick and drawn != count_pairs(label, forged):
        every = all_pairs_eer(emb_ND, label, forged, comparison, progress=Progress("all pairs"))
    found = one_shot(
        emb_ND, label, forged, comparison, way=way, shot=shot, episodes=episodes, seed=seed
    )
    return Measured(
        split=split,
        identity_disjoint=identity_disjoint,
        verification=verified,
        all_pairs=every,
        retrieval=retrieval(
            emb_ND, label, forged, comparison, seed=seed, progress=Progress("searching")
        ),
        one_shot={} if found is None else {found.key: found},
        table=table,
        pixels=pixels_NCHW,
        embeddings=emb_ND,
    )


def measure_nearest(bundle: Bundle, chosen: AgainstTraining, *, seed: int = 0) -> Measured:
    """Look pictures up among the training pictures.

    A picture that is equal to a training picture has distance 0 to it: both get one embedding,
    since a network's last bits may depend on a picture's place in its batch.

    Raises:
        DataError: embeddings that are not numbers.
    """
    emb_ND = _embedded(bundle, chosen.pixels)
    for rows in exact_groups([_digest(picture) for picture in chosen.pixels]):
        emb_ND[list(rows)] = emb_ND[rows[0]]
    label = chosen.table.labels()
    return Measured(
        split=chosen.split,
        identity_disjoint=chosen.identity_disjoint,
        nearest=nearest(
            emb_ND[chosen.probe], label[chosen.probe], emb_ND[chosen.gallery],
            label[chosen.gallery], TorchComparison(bundle.comparator), seed=seed,
            progress=Progress("comparing"),
        ),
        table=chosen.table,
        pixels=chosen.pixels,
        embeddings=emb_ND,
        probe=chosen.probe,
        gallery=chosen.gallery,
    )  # fmt: skip


def measure_open_set(
    bundle: Bundle,
    calibration: Calibration | None,
    chosen: ChosenPictures,
    *,
    shot: int = 1,
    rule: str = "nearest",
    seed: int = 0,
) -> Measured:
    """Enrol half of the identities and ask about everyone; forged pictures take no part.

    Where there are too few identities for that, the log says so, and there are no figures.

    Raises:
        DataError: embeddings that are not numbers.
    """
    real = np.flatnonzero(~chosen.table.forged)
    table, pixels = chosen.table.select(real), PixelRows(chosen.pixels, real)
    emb_ND = _embedded(bundle, pixels)
    found = open_set(
        emb_ND, table.labels(), TorchComparison(bundle.comparator), shot=shot, rule=rule,
        pair_threshold=None if calibration is None else calibration.threshold, seed=seed,
        progress=Progress("comparing"),
    )  # fmt: skip
    if found is None:
        count_I = np.bincount(table.labels())
        log.warning(
            "no gallery can be measured: of %d identities, %d have more than %d genuine pictures; "
            "needed are 4 identities, 2 of them with so many",
            len(count_I), np.count_nonzero(count_I > shot), shot,
        )  # fmt: skip
    return Measured(
        split=chosen.split,
        identity_disjoint=chosen.identity_disjoint,
        open_set=found,
        table=table,
        pixels=pixels,
        embeddings=emb_ND,
    )


def _digest(picture: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def _embedded(bundle: Bundle, pixels: Pixels) -> NDArray[np.float32]:
    emb_ND = embed_pixels(bundle.encoder, pixels, progress=Progress("embedding"))
    if not np.isfinite(emb_ND).all():
        raise DataError("some embeddings are not numbers: the model is broken, train it again")
    return emb_ND
