"""Distances for an audit of labels: by a given model, or without training a network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.training_overlap import known_pictures
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, naming_extras
from twinlens.match.matcher import Matcher
from twinlens.measure.label_errors import Distances
from twinlens.measure.pairs import Comparison
from twinlens.model.training_record import find_record
from twinlens.progress import Progress
from twinlens.recipes import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from twinlens.config import Member

__all__ = ["MOST_PICTURES", "distances_across", "distances_by_model", "untrained_features"]

log = logging.getLogger("twinlens")

MOST_PICTURES = 20_000
"""Pictures, at most, whose features fit the memory."""


@dataclass(frozen=True, eq=False)
class _ModelDistances:
    """Distances of the embeddings (N, D) of one model."""

    embeddings: NDArray[np.float32]
    comparison: Comparison

    @property
    def num(self) -> int:
        return len(self.embeddings)

    def blocks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for start in range(0, self.num, size):
            rows = np.arange(start, min(start + size, self.num))
            yield rows, self.comparison.matrix(self.embeddings[rows], self.embeddings)[None]


def distances_by_model(matcher: Matcher, table: ImageTable) -> tuple[Distances, str]:
    """Distances of all pictures by a model, and a note on those that it was trained on.

    Args:
        matcher: the model.
        table: readable pictures.
    """
    decoded = decode_table(
        table, matcher.picture, max_pixels=matcher.max_pixels, max_broken=0.0,
        progress=Progress("reading"),
    )  # fmt: skip
    emb_ND = matcher.embed_pixels(decoded.pixels, progress=Progress("embedding"))
    record = find_record(matcher.path, matcher.origin)
    overlap = known_pictures(matcher, record, table, decoded.pixels).overlap("train", "val")
    num = int(overlap.picture.sum())
    note = ""
    if num:
        note = (
            f"The model learned from {num:,} of these {len(table):,} pictures with the labels that "
            "are audited here, so that it may repeat their errors; without --model no picture's "
            "label has a part in its own judgement."
        )
    elif not overlap.is_known:
        note = "It is unknown which of these pictures the model was trained on."
    return _ModelDistances(emb_ND, matcher.comparison), note


def distances_across(table: ImageTable, *, seed: int) -> Distances:
    """Distances of all pictures by features that need no training, mapped by other identities.

    Args:
        table: readable genuine pictures.
        seed: random seed of the folds.
    Raises:
        DataError: too many pictures.
        MissingExtraError: without torch.
    """
    with naming_extras("an audit without --model"):
        from twinlens.learn.cross_embedding import CrossEmbeddings
    if len(table) > MOST_PICTURES:
        raise DataError(
            f"{table.source} holds {len(table):,} pictures, and an audit without a model takes up "
            f"to {MOST_PICTURES:,}: train a model, and give it with --model"
        )
    members, features = untrained_features(table, seed=seed)
    log.info("comparing by %s", "; ".join(members))
    return CrossEmbeddings(
        members, features, table.labels(), seed=seed, progress=Progress("fitting", "maps")
    )


def untrained_features(
    table: ImageTable, *, seed: int
) -> tuple[Mapping[str, Member], Mapping[str, Tensor]]:
    """The features that `auto` tries first: descriptors and a pretrained network.

    Args:
        table: N readable genuine pictures.
        seed: random seed of the settings.
    Returns:
        The candidates, and the features (1, N, F) of each, by name.
    """
    from twinlens.commands.fit_model import frozen_network
    from twinlens.commands.prepare import choose_run_settings
    from twinlens.learn.auto import choose_levels
    from twinlens.learn.candidates import feature_candidates
    from twinlens.learn.cross_validation import FeatureBank
    from twinlens.learn.embed_batch import LabelledPixels
    from twinlens.model.compute import choose_compute

    recipe = load_recipe("auto", {"seed": seed})
    table = table.with_split(["train"] * len(table))
    settings, _ = choose_run_settings(recipe, table)
    decoded = decode_table(
        table, settings.picture, max_pixels=settings.data.max_pixels, max_broken=0.0,
        progress=Progress("reading"),
    )  # fmt: skip
    settings, _ = choose_levels(recipe, settings, decoded.pixels[:: max(1, len(table) // 1000)])
    members = feature_candidates(settings.picture, *frozen_network(settings, len(table)))
    images = LabelledPixels.of(decoded.pixels, table.labels(), table.forged)
    bank = FeatureBank.of(
        members, settings.picture, images, choose_compute(settings.model, settings.train),
        mirrored=False, progress=Progress("computing features"),
    )  # fmt: skip
    return members, bank.features
