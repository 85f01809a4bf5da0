"""Selection of the pictures that a trained model is calibrated or evaluated on.

Pictures that the model was trained on are recognised by their content and by the names of their
identities. They are left out or reported, except as the gallery of `nearest`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.training_overlap import (
    KnownPictures,
    TrainingOverlap,
    known_pictures,
)
from twinlens.data.adapters import Data
from twinlens.data.contents import content_digests
from twinlens.data.folders import is_folder, read_table, read_unlabelled
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixels import BrokenPicture, DecodedTable, PixelRows, Pixels, select_rows
from twinlens.data.splits import assign_splits
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name
from twinlens.face.marks import settings_of_table
from twinlens.files import expand_user
from twinlens.match.matcher import Matcher
from twinlens.model.stored import hash_identities
from twinlens.model.training_record import TrainingRecord, find_record, unknown_reason
from twinlens.progress import Progress
from twinlens.report.formatting import count_of

__all__ = ["ProbeGallerySelection", "Selection", "learned_table", "read_data", "read_pictures",
           "select_pictures", "select_probes_and_gallery", "selection_of_split", "split_as_trained",
           "warn_of_photographs"]  # fmt: skip

log = logging.getLogger("twinlens")


@dataclass(frozen=True, eq=False)
class Selection:
    """Decoded pictures of a split.

    Attributes:
        table: the pictures.
        pixels: their pixels.
        split: "train", "val", "test", "all", or "unseen": all but what was trained on.
        identity_disjoint: whether none of the identities was trained on; None if unknown.
        broken: pictures that could not be read.
        notes: sentences about pictures that were trained on.
        is_closed: whether the model is for the identities that it was trained on.
    """

    table: ImageTable
    pixels: Pixels
    split: str
    identity_disjoint: bool | None
    broken: tuple[BrokenPicture, ...] = ()
    notes: tuple[str, ...] = ()
    is_closed: bool = False


@dataclass(frozen=True, eq=False)
class ProbeGallerySelection:
    """Decoded probes and gallery pictures.

    Attributes:
        table: probes and gallery.
        pixels: their pixels.
        probe: rows of the probes, ascending.
        gallery: rows of the gallery, ascending; they may include probes.
        split: split of the probes.
        identity_disjoint: whether none of the probes' identities was trained on; None if unknown.
        broken: pictures that could not be read.
        notes: sentences about probes that were trained on.
    """

    table: ImageTable
    pixels: NDArray[np.uint8]
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    split: str
    identity_disjoint: bool | None
    broken: tuple[BrokenPicture, ...]
    notes: tuple[str, ...]


def select_pictures(
    matcher: Matcher,
    data: str | Path | ImageTable,
    *,
    split: str,
    prefer: str,
    root: str | Path | None = None,
) -> Selection:
    """Read and decode the pictures to calibrate or evaluate a model on.

    The pictures that the model was trained on are recognised wherever a copy lies and whatever it
    is called. If DATA holds no others, it is split as in training. Other data is taken by its own
    splits. Of other data "auto" leaves out pictures that the model was trained on, near copies of
    them, and all pictures of their identities; and those of the validation split if they are not
    preferred and enough remains.

    Args:
        matcher: the model.
        data: a folder, a manifest, the name of a set, or a table.
        split: "train", "val", "test", "all", or "auto": `prefer` if there is one, else unseen
            pictures.
        prefer: the split that "auto" prefers.
        root: folder of a named set's local copy.
    Raises:
        ConfigError: an unknown split.
        DataError: no pictures in that split.
        ModelError: a damaged training record.
    """
    if split not in (*SPLITS, "all", "auto"):
        raise ConfigError(unknown_name("split", split, (*SPLITS, "all", "auto")))
    record = find_record(matcher.path, matcher.origin)
    table, is_training_data = split_as_trained(matcher, record, read_data(matcher, data, root))
    name = _resolve(table, split, prefer)
    part = table if name == "all" else table.of_split(name)
    if not len(part):
        raise DataError(
            f"{table.source} has no {name} pictures: give another folder, or another --on"
        )
    warn_of_photographs(matcher, part)
    decoded = _decode(matcher, part, is_training_data)
    table = decoded.table
    pixels: Pixels = decoded.pixels
    known = known_pictures(matcher, record, table, pixels)
    overlap, left_out = _overlap(known, is_training_data), list[str]()
    if split == "auto" and not is_training_data:
        kept, note = _unseen(known, prefer)
        if note:
            log.info("%s", note)
            left_out = [_sentence(note)]
            table, pixels, overlap = table.select(kept), select_rows(pixels, kept), overlap.of(kept)
            name = "unseen" if name == "all" else name
    selection = _selection(matcher, record, table, pixels, name, overlap)
    for note in selection.notes:
        log.warning("%s", note)
    notes = (*left_out, *map(_sentence, selection.notes))
    return replace(selection, broken=decoded.broken, notes=notes)


def selection_of_split(
    matcher: Matcher, record: TrainingRecord, table: ImageTable, pixels: Pixels, split: str
) -> Selection:
    """The selection of a split of the training data; nothing is left out."""
    overlap = _overlap(known_pictures(matcher, record, table, pixels), True)
    selection = _selection(matcher, record, table, pixels, split, overlap)
    return replace(selection, notes=tuple(map(_sentence, selection.notes)))


def select_probes_and_gallery(
    matcher: Matcher, data: ImageTable, *, split: str
) -> ProbeGallerySelection:
    """Decode the pictures of a split as probes, and the training pictures as the gallery.

    Splits are those of `select_pictures`. The gallery is "train", and "val" if training cut it out
    of the training pictures: not if the data names its own, nor if "val" are the probes. Forgeries
    are left out, since their identity is unknown.

    Args:
        matcher: the model.
        data: the table of `read_data`.
        split: "test", "val", "train", or "auto": test if there is one, else val.
    Raises:
        ConfigError: an unknown split, or "all".
        DataError: no probes, no training pictures, or no identity in both.
    """
    if split == "all":
        raise ConfigError(
            "--protocol nearest compares one split with the training pictures: --on test, val or "
            "train, not all"
        )
    if split not in (*SPLITS, "auto"):
        raise ConfigError(unknown_name("split", split, (*SPLITS, "auto")))
    record = find_record(matcher.path, matcher.origin)
    table, is_training_data = split_as_trained(matcher, record, data)
    split = _resolve(table, split, "test")
    gallery_splits = {"train"} if split == "val" or "val" in data.split else {"train", "val"}
    is_used = np.isin(table.split.astype(str), [split, *gallery_splits]) & ~table.forged
    table = table.select(is_used)
    _check_overlap(table, split, gallery_splits)
    decoded = _decode(matcher, table, is_training_data)
    table = decoded.table
    probe, gallery = (
        np.flatnonzero(np.isin(table.split.astype(str), list(names)))
        for names in ([split], gallery_splits)
    )
    probes, probe_pixels = table.select(probe), PixelRows(decoded.pixels, probe)
    known = known_pictures(matcher, record, probes, probe_pixels)
    overlap = _overlap(known, is_training_data)
    if split == "train":
        notes = ["each training picture is compared with all of them, itself included"]
    else:
        notes = _notes(matcher, record, overlap, split)
    for note in notes:
        log.warning("%s", note)
    return ProbeGallerySelection(
        table, decoded.pixels, probe, gallery, split, overlap.identity_disjoint, decoded.broken,
        tuple(map(_sentence, notes)),
    )  # fmt: skip


def _check_overlap(table: ImageTable, split: str, gallery_splits: set[str]) -> None:
    """Refuse missing probes, a missing gallery, and probes that are all non-mated."""
    names = [set(table.identity[table.split == name]) for name in (split, "train")]
    for identities, name in zip(names, (split if split != "all" else "test", "train"), strict=True):
        if not identities:
            raise DataError(
                f"{table.source} has no {name} pictures, and --protocol nearest compares test "
                "pictures with training pictures: give a folder with train/ and test/, a manifest "
                "with a column `split`, or the data that the model was trained on with --split "
                "images"
            )
    known = set().union(*(table.identity[table.split == name] for name in gallery_splits))
    if names[0].isdisjoint(known):
        raise DataError(
            f"none of the {len(names[0])} identities of the {split} pictures of {table.source} has "
            "training pictures: train with --split images, which divides the pictures of each "
            "identity, or leave out --protocol nearest, which measures one-shot accuracy on "
            "unseen identities"
        )


def _decode(matcher: Matcher, table: ImageTable, is_training_data: bool) -> DecodedTable:
    settings = matcher.data_settings
    decoded = decode_table(
        table,
        matcher.picture,
        max_pixels=settings.max_pixels,
        # Training checked the share of the whole; a small split may hold most of the broken ones.
        max_broken=1.0 if is_training_data else settings.max_broken,
        progress=Progress("reading"),
    )
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    return decoded


def read_data(matcher: Matcher, data: Data, root: str | Path | None) -> ImageTable:
    """Read DATA as for the training of a model.

    Raises:
        DataError: nothing to read, or an unknown format.
        ModelError: an export that resizes pictures itself.
    """
    matcher.require_outside_resize()
    settings = matcher.data_settings
    return read_table(
        data,
        root=None if root is None else Path(root),
        forged_suffix=settings.forged_suffix,
        identity_depth=settings.identity_depth,
    )


def read_pictures(matcher: Matcher, data: Data, root: str | Path | None) -> ImageTable:
    """Read DATA for work that needs no identities; they are "" in a folder without class folders.

    Raises:
        DataError: nothing to read, or an unknown format.
        ModelError: an export that resizes pictures itself.
    """
    try:
        return read_data(matcher, data, root)
    except DataError:
        if root is not None or not isinstance(data, str | Path) or not is_folder(data):
            raise
        table = read_unlabelled(expand_user(data), source=str(data))
        log.info("%s has no class folders, so its pictures have no identities", data)
        return table


def warn_of_photographs(matcher: Matcher, table: ImageTable) -> None:
    """Warn if a model of cropped faces gets a data set of other pictures, or of other crops."""
    if matcher.face is None or table.pixels is not None:
        return
    crop = settings_of_table(table, max_pixels=matcher.max_pixels)
    if crop != matcher.face:
        log.warning(
            "%s holds %s, and the model compares faces as model.json has them (face): crop them "
            "first, with `twinlens faces`", table.source,
            "pictures that `twinlens faces` has not cropped" if crop is None
            else "faces that are cropped otherwise",
        )  # fmt: skip


def learned_table(table: ImageTable, refitted: bool) -> ImageTable:
    """The table with the validation pictures among those of training, if a model has both."""
    if not refitted:
        return table
    return table.with_split(np.where(table.split == "val", "train", table.split).astype(object))


def split_as_trained(
    matcher: Matcher, record: TrainingRecord | None, table: ImageTable
) -> tuple[ImageTable, bool]:
    """The table with the splits of the training, and whether it is the training data."""
    origin = matcher.origin
    if origin is None:
        return table, False
    is_same = origin.fingerprint == table.fingerprint()
    if is_same:
        divided = assign_splits(
            table, mode=origin.data.split, fractions=origin.data.fractions, seed=origin.seed
        )
        divided = learned_table(divided, origin.refitted)
        if _is_trained_on(matcher, record, divided.of_split("train").identities()):
            return divided, True
    if record is not None and not table.split.any():
        splits = record.splits_of(content_digests(table))
        if splits.all():
            log.info(
                "all of these pictures belong to the data that the model was trained on: they are "
                "split as in training"
            )
            return table.with_split(splits), True
    if is_same:
        log.warning(
            "the model was trained on other splits of %s than the data names now: the data's own "
            "splits are used",
            table.source,
        )
    return table, False


def _is_trained_on(matcher: Matcher, record: TrainingRecord | None, names: list[str]) -> bool:
    """Whether all training identities are among some names; True if that is unknown."""
    assert matcher.origin is not None
    if record is None:
        # Pictures that broke since may be missing.
        return set(matcher.origin.identities) <= set(hash_identities(names))
    return bool(record.knows_names(names, "train").sum() >= record.num_identities("train"))


def _is_closed(matcher: Matcher, record: TrainingRecord | None) -> bool:
    """Whether a model is to be used on the identities that it was trained on."""
    is_given = matcher.origin is not None and matcher.origin.data.split == "images"
    return is_given or (record is not None and record.is_closed)


def _overlap(known: KnownPictures, is_training_data: bool) -> TrainingOverlap:
    """The overlap with the training pictures."""
    overlap, origin = known.overlap("train"), known.matcher.origin
    # Names and sizes of all files are the same, and format 1 lists the training identities.
    is_of_format_1 = origin is not None and bool(origin.identities)
    is_known = overlap.is_known or (is_training_data and is_of_format_1)
    return replace(overlap, is_known=is_known)


def _selection(
    matcher: Matcher,
    record: TrainingRecord | None,
    table: ImageTable,
    pixels: Pixels,
    name: str,
    overlap: TrainingOverlap,
) -> Selection:
    notes = _notes(matcher, record, overlap, name)
    return Selection(
        table, pixels, name, overlap.identity_disjoint, notes=tuple(notes),
        is_closed=_is_closed(matcher, record),
    )  # fmt: skip


def _notes(
    matcher: Matcher, record: TrainingRecord | None, overlap: TrainingOverlap, name: str
) -> list[str]:
    """Warnings of pictures that were trained on; a closed set needs none for its identities."""
    is_expected = name in ("val", "test") and _is_closed(matcher, record)
    if overlap.identity.any() and not is_expected:
        return [
            "the model was trained on some of these identities: expect worse figures for unseen "
            f"identities ({overlap.reasons()})"
        ]
    if overlap.picture.any():
        return [
            "the model was trained on some of these pictures: expect worse figures for new ones "
            f"({overlap.reasons()})"
        ]
    if overlap.identity_disjoint is None:
        return [
            "it is unknown whether the model was trained on these pictures: "
            f"{unknown_reason(matcher.path, matcher.origin)}"
        ]
    return []


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _resolve(table: ImageTable, split: str, prefer: str) -> str:
    """The name of a split; "auto" is the preferred one, then the other unseen one, then all."""
    if split != "auto":
        return split
    present = set(table.split)
    if not present - {""}:
        return "all"
    for name in (prefer, "test", "val"):
        if name in present:
            if name != prefer:
                log.warning("no %s pictures: the %s pictures are used", prefer, name)
            return name
    return "all"


def _unseen(known: KnownPictures, prefer: str) -> tuple[NDArray[np.bool_], str]:
    """The rows (N,) that were not trained on, and a phrase about the others.

    Without validation pictures too, if these are not preferred. All rows are kept if none was
    trained on, and if fewer than two identities would remain. Of a closed set only copies of
    training pictures are left out.
    """
    table, is_closed = known.table, _is_closed(known.matcher, known.record)
    seen = {"trained on": known.overlap("train")}
    if known.record is not None and prefer == "test":
        seen = {"trained on or validated with": known.overlap("train", "val"), **seen}
    for use, part in seen.items():
        out = part.picture if is_closed else part.picture | part.identity
        left, rest = (set(table.identity[rows].tolist()) for rows in (out, ~out))
        if left and len(rest) > 1:
            return ~out, (
                f"left out {count_of(int(out.sum()), 'picture')} of "
                f"{count_of(len(left), 'identity')} that the model was {use}; "
                f"{(~out).sum():,} of {len(rest):,} remain ({part.reasons()})"
            )
    return np.ones(len(table), np.bool_), ""
