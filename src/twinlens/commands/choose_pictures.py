"""Which pictures a trained model is calibrated or measured on: never those it learned from.

Only `against_training` takes these too, to look the others up in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.config import DataSettings
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import Broken, Decoded, decode_table
from twinlens.data.splits import assign_splits
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name
from twinlens.model.bundle import Bundle
from twinlens.model.stored import hash_identities
from twinlens.progress import Progress

__all__ = [
    "AgainstTraining",
    "ChosenPictures",
    "against_training",
    "never_seen",
    "pictures_for",
    "read_data",
]

log = logging.getLogger("twinlens")


@dataclass(frozen=True, eq=False)
class ChosenPictures:
    """Decoded pictures of a split, "all" or "unseen", and whether training knew the identities."""

    table: ImageTable
    pixels: NDArray[np.uint8]
    split: str
    identity_disjoint: bool
    broken: tuple[Broken, ...]


@dataclass(frozen=True, eq=False)
class AgainstTraining:
    """Decoded pictures to ask about and the training pictures, as rows of one table.

    `probe` and `gallery` are row numbers, ascending; they may share rows. `split` is the probes'.
    """

    table: ImageTable
    pixels: NDArray[np.uint8]
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    split: str
    identity_disjoint: bool
    broken: tuple[Broken, ...]


def pictures_for(
    bundle: Bundle,
    data: str | Path | ImageTable,
    *,
    wanted: str,
    prefer: str,
    root: str | Path | None = None,
) -> ChosenPictures:
    """Read and decode the part of the data that a model should be looked at on.

    Where the data is what the model was trained on (the same fingerprint), it is split as it was
    then. Other data is taken by the splits that it names itself. Where it names none, all is taken
    but for the identities, by their names, that the model was trained on.

    Args:
        bundle: the model.
        data: a folder, a manifest, the name of a set, or a table.
        wanted: "train", "val", "test", "all", or "auto": `prefer` where there is one, else what
            is unseen.
        prefer: the split that "auto" means.
        root: where the copy of a named set lies.
    Raises:
        ConfigError: an unknown split.
        DataError: nothing in that split.
    """
    if wanted not in (*SPLITS, "all", "auto"):
        raise ConfigError(unknown_name("split", wanted, (*SPLITS, "all", "auto")))
    table, whole = _split_as_trained(bundle, read_data(bundle, data, root))
    split = _resolve(table, wanted, prefer)
    part = table if split == "all" else table.of_split(split)
    if split == "all" and wanted == "auto":
        part, split = _unseen(bundle, table)
    if not len(part):
        raise DataError(
            f"{table.source} has no {split} pictures: give another folder, or another --on"
        )
    decoded = _decode(bundle, part, whole=whole)
    disjoint = never_seen(bundle, decoded.table)
    if not disjoint and split in ("all", "train"):
        log.warning(
            "some of these identities were trained on: the figures are better than those for "
            "unseen ones"
        )
    return ChosenPictures(decoded.table, decoded.pixels, split, disjoint, decoded.broken)


def against_training(bundle: Bundle, data: ImageTable, *, wanted: str) -> AgainstTraining:
    """Decode the pictures of a split, and the training pictures to look them up in.

    Splits are those of `pictures_for`. The training pictures are those of "train", and those of
    "val" too: they were cut out of the training pictures. They are not where DATA itself names
    its validation pictures, or where it is these that are asked about. Forgeries take no part:
    nobody knows whose they are.

    Args:
        bundle: the model.
        data: what `read_data` gave.
        wanted: "test", "val", "train", or "auto": test where there is one, else val.
    Raises:
        ConfigError: an unknown split, or "all".
        DataError: no pictures of the split or no training pictures, or none of the one shows an
            identity of the other.
    """
    if wanted == "all":
        raise ConfigError(
            "--protocol nearest looks up one split among the training pictures: --on test, val or "
            "train, not all"
        )
    if wanted not in (*SPLITS, "auto"):
        raise ConfigError(unknown_name("split", wanted, (*SPLITS, "auto")))
    table, whole = _split_as_trained(bundle, data)
    split = _resolve(table, wanted, "test")
    searched = {"train"} if split == "val" or "val" in data.split else {"train", "val"}
    table = table.select(np.isin(table.split.astype(str), [split, *searched]) & ~table.forged)
    _check_both(table, split, searched)
    decoded = _decode(bundle, table, whole=whole)
    table = decoded.table
    probe, gallery = (
        np.flatnonzero(np.isin(table.split.astype(str), list(names)))
        for names in ([split], searched)
    )
    if split == "train":
        log.warning("each training picture is looked up among all of them, itself included")
    disjoint = never_seen(bundle, table.select(probe))
    return AgainstTraining(table, decoded.pixels, probe, gallery, split, disjoint, decoded.broken)


def _check_both(table: ImageTable, split: str, searched: set[str]) -> None:
    """Refuse probes that are missing, that have nothing to be looked up in, or nothing to find."""
    names = [set(table.identity[table.split == name]) for name in (split, "train")]
    for found, what in zip(names, (split if split != "all" else "test", "train"), strict=True):
        if not found:
            raise DataError(
                f"{table.source} has no {what} pictures, and --protocol nearest looks up test "
                "pictures among training pictures: give a folder with train/ and test/, a manifest "
                "with a column `split`, or the data that the model was trained on with --split "
                "images"
            )
    known = set().union(*(table.identity[table.split == name] for name in searched))
    if names[0].isdisjoint(known):
        raise DataError(
            f"none of the {len(names[0])} identities of the {split} pictures of {table.source} has "
            "training pictures, so that none can be found among them: train with --split images to "
            "divide the pictures of each identity, or leave out --protocol nearest, which measures "
            "one-shot accuracy on identities that are new"
        )


def _decode(bundle: Bundle, table: ImageTable, *, whole: bool) -> Decoded:
    settings = DataSettings() if bundle.origin is None else bundle.origin.data
    decoded = decode_table(
        table,
        bundle.encoder.picture,
        max_pixels=settings.max_pixels,
        # Training has judged the share of the whole already; a small part may hold most of it.
        max_broken=1.0 if whole else settings.max_broken,
        progress=Progress("reading"),
    )
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    return decoded


def read_data(bundle: Bundle, data: str | Path | ImageTable, root: str | Path | None) -> ImageTable:
    """What DATA names, read as it was for a model's training.

    Raises:
        DataError: nothing there, or nothing that is understood.
    """
    settings = DataSettings() if bundle.origin is None else bundle.origin.data
    return read_table(
        data, root=None if root is None else Path(root), forged_suffix=settings.forged_suffix
    )


def never_seen(bundle: Bundle, table: ImageTable) -> bool:
    """Whether none of a table's identities, by their names, was trained on."""
    known = set() if bundle.origin is None else set(bundle.origin.identities)
    return known.isdisjoint(hash_identities(table.identities()))


def _split_as_trained(bundle: Bundle, table: ImageTable) -> tuple[ImageTable, bool]:
    """The table split as it was for training, and whether it is what the model was trained on."""
    origin = bundle.origin
    if origin is None or origin.fingerprint != table.fingerprint():
        return table, False
    split = assign_splits(
        table, mode=origin.data.split, fractions=origin.data.fractions, seed=origin.seed
    )
    trained = hash_identities(split.of_split("train").identities())
    if not set(origin.identities) <= set(trained):  # Pictures that broke since may be missing.
        log.warning(
            "the model was trained on other splits of %s than the ones named now, so its pictures "
            "are taken as they are named",
            table.source,
        )
        return table, True
    return split, True


def _resolve(table: ImageTable, wanted: str, prefer: str) -> str:
    """The split to take: "auto" is the preferred one, then the other unseen one, then all."""
    if wanted != "auto":
        return wanted
    present = set(table.split)
    if not present - {""}:
        return "all"
    for split in (prefer, "test", "val"):
        if split in present:
            if split != prefer:
                log.warning("there are no %s pictures: taking the %s pictures", prefer, split)
            return split
    return "all"


def _unseen(bundle: Bundle, table: ImageTable) -> tuple[ImageTable, str]:
    """The rows whose identities were not trained on ("unseen"), or "all".

    All where none was trained on, where the model is of a closed set, and where fewer than two
    identities would remain.
    """
    if bundle.origin is None or bundle.origin.data.split != "identities":
        return table, "all"
    known = set(bundle.origin.identities)
    seen_names = [name for name in table.identities() if known & set(hash_identities([name]))]
    if not seen_names:
        return table, "all"
    seen = np.isin(table.identity.astype(str), seen_names)
    rest = table.select(~seen)
    if len(rest.identities()) < 2:
        return table, "all"
    log.info(
        "left out %d pictures of %d identities that the model was trained on; %d of %d remain",
        np.count_nonzero(seen), len(seen_names), len(rest), len(rest.identities()),
    )  # fmt: skip
    return rest, "unseen"
