"""Overlap of pictures with the training of a model: by content, by near copies, and by name.

Shapes: N pictures of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.data.contents import content_digests
from twinlens.data.near_copies import near_copies
from twinlens.data.pixels import Pixels
from twinlens.data.table import SPLITS, ImageTable
from twinlens.model.bundle import Bundle
from twinlens.model.training_record import (
    RECORD_FILE,
    TrainingRecord,
    thumbnails_of,
    trained_names,
)
from twinlens.report.formatting import count_of

__all__ = ["TrainingOverlap", "training_overlap", "unknown_reason", "validation_overlap"]

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

    def __or__(self, other: TrainingOverlap) -> TrainingOverlap:
        """Pictures of either overlap."""
        return TrainingOverlap(
            self.copy | other.copy, self.near | other.near, self.named | other.named,
            self.identity | other.identity, self.is_known and other.is_known,
        )  # fmt: skip

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


def training_overlap(
    bundle: Bundle,
    record: TrainingRecord | None,
    table: ImageTable,
    pixels_NCHW: Pixels,
    *,
    near: bool = True,
) -> TrainingOverlap:
    """The overlap of decoded pictures with the training pictures of a model.

    Without the record of its training only names can be compared, and those only for models of
    format 1.

    Args:
        bundle: the model.
        record: the record of its training, if there is one.
        table: N pictures.
        pixels_NCHW: their pixels at the model's size.
        near: whether to search for near copies.
    """
    named = trained_names(bundle.origin, record, table.identities())[table.labels()]
    if record is not None:
        return _overlap(record, table, pixels_NCHW if near else None, named, "train")
    none = np.zeros(len(table), np.bool_)
    return TrainingOverlap(none, none, named, named, False)


def validation_overlap(
    record: TrainingRecord, table: ImageTable, pixels_NCHW: Pixels
) -> TrainingOverlap:
    """The overlap with the validation pictures, which chose the weights and set the threshold."""
    named = record.knows_names(table.identities(), "val")[table.labels()]
    return _overlap(record, table, pixels_NCHW, named, "val")


def unknown_reason(bundle: Bundle) -> str:
    """Why it is unknown whether a model was trained on some pictures."""
    origin = bundle.origin
    if origin is None:
        return "the model does not say what it was trained on"
    if origin.record is None:
        return "an older twinlens trained the model, and recorded names of identities only"
    return f"{RECORD_FILE} of the model's run is not beside {bundle.path}"


def _overlap(
    record: TrainingRecord, table: ImageTable, pixels_NCHW: Pixels | None, named: Rows, split: str
) -> TrainingOverlap:
    """The overlap with one split of the record; without pixels no near copies are searched."""
    copy = np.asarray(record.splits_of(content_digests(table)) == split, np.bool_)
    near = np.zeros(len(table), np.bool_)
    if record.thumb is not None and pixels_NCHW is not None:
        rest = np.flatnonzero(~copy)
        learned = record.thumb[record.split == SPLITS.index(split)]
        near[rest] = near_copies(thumbnails_of(pixels_NCHW)[rest], learned)
    label, num = table.labels(), len(table.identities())
    num_all, num_near = (np.bincount(label[rows], minlength=num) for rows in (slice(None), near))
    many = (num_near >= MIN_NEAR_COPIES) & (num_near >= MIN_NEAR_SHARE * num_all)
    trained = many | (2 * num_near >= np.maximum(num_all, 1))
    trained[label[copy | named]] = True
    return TrainingOverlap(copy, near, named, trained[label], True)
