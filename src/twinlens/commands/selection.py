"""Selection of the pictures that a trained model is calibrated or evaluated on.

Pictures that the model was trained on are left out, except as the gallery of `nearest`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.config import DataSettings
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixels import BrokenPicture, DecodedTable, Pixels
from twinlens.data.splits import assign_splits
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name
from twinlens.model.bundle import Bundle
from twinlens.model.stored import hash_identities
from twinlens.progress import Progress

__all__ = [
    "ProbeGallerySelection",
    "Selection",
    "is_identity_disjoint",
    "read_data",
    "select_pictures",
    "select_probes_and_gallery",
]

log = logging.getLogger("twinlens")


@dataclass(frozen=True, eq=False)
class Selection:
    """Decoded pictures of a split.

    Attributes:
        table: the pictures.
        pixels: their pixels.
        split: "train", "val", "test", "all", or "unseen": all but trained identities.
        identity_disjoint: whether none of the identities was trained on.
        broken: pictures that could not be read.
    """

    table: ImageTable
    pixels: Pixels
    split: str
    identity_disjoint: bool
    broken: tuple[BrokenPicture, ...] = ()


@dataclass(frozen=True, eq=False)
class ProbeGallerySelection:
    """Decoded probes and gallery pictures.

    Attributes:
        table: probes and gallery.
        pixels: their pixels.
        probe: rows of the probes, ascending.
        gallery: rows of the gallery, ascending; they may include probes.
        split: split of the probes.
        identity_disjoint: whether none of the probes' identities was trained on.
        broken: pictures that could not be read.
    """

    table: ImageTable
    pixels: NDArray[np.uint8]
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    split: str
    identity_disjoint: bool
    broken: tuple[BrokenPicture, ...]


def select_pictures(
    bundle: Bundle,
    data: str | Path | ImageTable,
    *,
    split: str,
    prefer: str,
    root: str | Path | None = None,
) -> Selection:
    """Read and decode the pictures to calibrate or evaluate a model on.

    The data that the model was trained on (by its fingerprint) is split as in training. Other data
    is taken by its own splits. If it names none, identities that the model was trained on are left
    out by name.

    Args:
        bundle: the model.
        data: a folder, a manifest, the name of a set, or a table.
        split: "train", "val", "test", "all", or "auto": `prefer` if there is one, else unseen
            pictures.
        prefer: the split that "auto" prefers.
        root: folder of a named set's local copy.
    Raises:
        ConfigError: an unknown split.
        DataError: no pictures in that split.
    """
    if split not in (*SPLITS, "all", "auto"):
        raise ConfigError(unknown_name("split", split, (*SPLITS, "all", "auto")))
    table, is_training_data = _split_as_trained(bundle, read_data(bundle, data, root))
    name = _resolve(table, split, prefer)
    part = table if name == "all" else table.of_split(name)
    if name == "all" and split == "auto":
        part, name = _unseen(bundle, table)
    if not len(part):
        raise DataError(
            f"{table.source} has no {name} pictures: give another folder, or another --on"
        )
    decoded = _decode(bundle, part, is_training_data)
    disjoint = is_identity_disjoint(bundle, decoded.table)
    if not disjoint and name in ("all", "train"):
        log.warning(
            "the model was trained on some of these identities: expect worse figures for unseen "
            "identities"
        )
    return Selection(decoded.table, decoded.pixels, name, disjoint, decoded.broken)


def select_probes_and_gallery(
    bundle: Bundle, data: ImageTable, *, split: str
) -> ProbeGallerySelection:
    """Decode the pictures of a split as probes, and the training pictures as the gallery.

    Splits are those of `select_pictures`. The gallery is "train", and "val" if training cut it out
    of the training pictures: not if the data names its own, nor if "val" are the probes. Forgeries
    are left out, since their identity is unknown.

    Args:
        bundle: the model.
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
    table, is_training_data = _split_as_trained(bundle, data)
    split = _resolve(table, split, "test")
    gallery_splits = {"train"} if split == "val" or "val" in data.split else {"train", "val"}
    is_used = np.isin(table.split.astype(str), [split, *gallery_splits]) & ~table.forged
    table = table.select(is_used)
    _check_overlap(table, split, gallery_splits)
    decoded = _decode(bundle, table, is_training_data)
    table = decoded.table
    probe, gallery = (
        np.flatnonzero(np.isin(table.split.astype(str), list(names)))
        for names in ([split], gallery_splits)
    )
    if split == "train":
        log.warning("each training picture is compared with all of them, itself included")
    disjoint = is_identity_disjoint(bundle, table.select(probe))
    return ProbeGallerySelection(
        table, decoded.pixels, probe, gallery, split, disjoint, decoded.broken
    )


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


def _decode(bundle: Bundle, table: ImageTable, is_training_data: bool) -> DecodedTable:
    settings = data_settings(bundle)
    decoded = decode_table(
        table,
        bundle.encoder.picture,
        max_pixels=settings.max_pixels,
        # Training checked the share of the whole; a small split may hold most of the broken ones.
        max_broken=1.0 if is_training_data else settings.max_broken,
        progress=Progress("reading"),
    )
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    return decoded


def read_data(bundle: Bundle, data: str | Path | ImageTable, root: str | Path | None) -> ImageTable:
    """Read DATA as for the training of a model.

    Raises:
        DataError: nothing to read, or an unknown format.
    """
    return read_table(
        data,
        root=None if root is None else Path(root),
        forged_suffix=data_settings(bundle).forged_suffix,
    )


def data_settings(bundle: Bundle) -> DataSettings:
    """The data settings of a model's training, or the defaults."""
    return DataSettings() if bundle.origin is None else bundle.origin.data


def is_identity_disjoint(bundle: Bundle, table: ImageTable) -> bool:
    """Whether a model was trained on none of a table's identities, by their names."""
    known = set() if bundle.origin is None else set(bundle.origin.identities)
    return known.isdisjoint(hash_identities(table.identities()))


def _split_as_trained(bundle: Bundle, table: ImageTable) -> tuple[ImageTable, bool]:
    """The table with the splits of the training, and whether it is the training data."""
    origin = bundle.origin
    if origin is None or origin.fingerprint != table.fingerprint():
        return table, False
    divided = assign_splits(
        table, mode=origin.data.split, fractions=origin.data.fractions, seed=origin.seed
    )
    trained = hash_identities(divided.of_split("train").identities())
    if not set(origin.identities) <= set(trained):  # Pictures that broke since may be missing.
        log.warning(
            "the model was trained on other splits of %s than the data names now: the data's own "
            "splits are used",
            table.source,
        )
        return table, True
    return divided, True


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


def _unseen(bundle: Bundle, table: ImageTable) -> tuple[ImageTable, str]:
    """The rows of identities that were not trained on ("unseen"), or "all".

    "all" if no identity was trained on, if the model was trained on a closed set, and if fewer than
    two identities would remain.
    """
    if bundle.origin is None or bundle.origin.data.split != "identities":
        return table, "all"
    known = set(bundle.origin.identities)
    trained = [name for name in table.identities() if known & set(hash_identities([name]))]
    if not trained:
        return table, "all"
    rest = table.select(~np.isin(table.identity.astype(str), trained))
    if len(rest.identities()) < 2:
        return table, "all"
    log.info(
        "left out %d pictures of %d identities that the model was trained on; %d of %d remain",
        len(table) - len(rest), len(trained), len(rest), len(rest.identities()),
    )  # fmt: skip
    return rest, "unseen"
