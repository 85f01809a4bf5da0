"""Overlap of pictures with the training of a model: by content, by near copies, and by name.

Shapes: N pictures of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.data.contents import content_digests
from twinlens.data.duplicates import near_copies
from twinlens.data.pixels import Pixels, select_rows
from twinlens.data.table import ImageTable
from twinlens.match.matcher import Matcher
from twinlens.model.training_record import (
    TrainingRecord,
    thumbnails_of,
    trained_names,
)
from twinlens.report.formatting import count_of

__all__ = ["KnownPictures", "TrainingOverlap", "known_pictures"]

# A chance resemblance must not make an identity a trained one.
MIN_NEAR_COPIES = 2
MIN_NEAR_SHARE = 0.1

Rows = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TrainingOverlap:
    """Pictures of a table that a model has learned from.

    Attributes:
        copy: (N,) copies of training pictures, byte for byte.
        near: (N,) other pictures that look like a training picture: saved again or resized.
        named: (N,) pictures of identities whose name is that of a training identity.
        identity: (N,) pictures of training identities. An identity counts as one by its name, by a
            copy, or by near copies: at least half of its pictures, or two and a tenth of them.
        is_known: whether the contents were compared, for which the training record is needed.
    """

    copy: Rows
    near: Rows
    named: Rows
    identity: Rows
    is_known: bool

    @property
    def picture(self) -> Rows:
        """(N,) copies and near copies."""
        return self.copy | self.near

    @property
    def identity_disjoint(self) -> bool | None:
        """Whether none of the identities was trained on; None if unknown."""
        if self.identity.any():
            return False
        return True if self.is_known else None

    def of(self, rows: Rows) -> TrainingOverlap:
        """The overlap of some rows of the table."""
        return TrainingOverlap(self.copy[rows], self.near[rows], self.named[rows],
                               self.identity[rows], self.is_known)  # fmt: skip

    def reasons(self) -> str:
        """The evidence, as a phrase."""
        copies, near, named = (int(rows.sum()) for rows in (self.copy, self.near, self.named))
        parts = [
            count_of(copies, "copy") if copies else "",
            count_of(near, "near copy") if near else "",
            f"{named:,} by the name of their identity" if named else "",
        ]
        return f"recognised: {', '.join(filter(None, parts))}"


@dataclass(frozen=True, eq=False)
class KnownPictures:
    """What a model and the record of its training know of N pictures.

    Attributes:
        matcher: the model.
        record: the record of its training; without it only names are compared, and those only for
            models of format 1.
        table: the pictures.
        copy: (N,) split of the training data that holds a picture byte for byte, or "".
        near: (N,) split of the training or validation picture that it resembles, or "".
    """

    matcher: Matcher
    record: TrainingRecord | None
    table: ImageTable
    copy: NDArray[np.object_]
    near: NDArray[np.object_]

    def overlap(self, *splits: str) -> TrainingOverlap:
        """The overlap with some splits of the training data."""
        label, names = self.table.labels(), self.table.identities()
        is_named = trained_names(self.matcher.origin, self.record, names, splits)
        copy, near = (np.isin(part.astype(str), splits) for part in (self.copy, self.near))
        num_all, num_near = (
            np.bincount(label[rows], minlength=len(names)) for rows in (slice(None), near)
        )
        many = (num_near >= MIN_NEAR_COPIES) & (num_near >= MIN_NEAR_SHARE * num_all)
        is_trained = is_named | many | (2 * num_near >= num_all)
        is_trained[label[copy]] = True
        return TrainingOverlap(
            copy, near, is_named[label], is_trained[label], self.record is not None
        )


def known_pictures(
    matcher: Matcher, record: TrainingRecord | None, table: ImageTable, pixels_NCHW: Pixels
) -> KnownPictures:
    """Compare decoded pictures with the record of a model's training.

    Near copies are searched for among pictures of other data only; `inspect` shows those within
    the training data.

    Args:
        matcher: the model.
        record: the record of its training, if there is one.
        table: N pictures.
        pixels_NCHW: their pixels at the model's size.
    """
    copy, alike = (np.full(len(table), "", dtype=object) for _ in range(2))
    if record is not None:
        copy = record.splits_of(content_digests(table))
        if record.thumb is not None:
            rest = np.flatnonzero(copy == "")
            row = near_copies(record.thumb, thumbnails_of(select_rows(pixels_NCHW, rest)))
            alike[rest[row >= 0]] = record.learned_splits()[row[row >= 0]]
    return KnownPictures(matcher, record, table, copy, alike)
