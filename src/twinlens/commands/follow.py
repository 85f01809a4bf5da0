"""Ranks of a training: rank 0 shares its settings and trainings, the others follow.

Rank 0 alone chooses settings, compares candidates, writes files and lines, and evaluates. The other
ranks read the same pictures, and wait for the trainings that they share.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from twinlens.commands.prepare import PreparedRun, read_run_table, run_division
from twinlens.config import Settings
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.pixel_cache import decode_table
from twinlens.errors import ConfigError
from twinlens.learn.loop import LabelledPixels, fit
from twinlens.learn.ranks import Ranks
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.compute import Compute, deterministic
from twinlens.model.device import keep_freed_memory, memory_explained, pick_device
from twinlens.model.encoder import Encoder
from twinlens.scale.launch import Team, check_gpus

__all__ = ["follow", "lead", "share_training"]


@dataclass(frozen=True)
class _Training:
    """A call of `fit` on all ranks; its pictures are positions and labels, without pixels."""

    settings: Settings
    compute: Compute
    train: LabelledPixels
    val: LabelledPixels | None
    share: float


def lead(prepared: PreparedRun | None, team: Team) -> None:
    """On rank 0: share the settings of a run, or end the ranks without one.

    Raises:
        TrainingError: ranks have other pictures.
    """
    team.connect()
    if prepared is None:
        team.release()
        return
    if team.ranks.size > 1 and ":" in prepared.settings.train.device:
        raise ConfigError(
            f"each process has a device of its own, found train.device="
            f"{prepared.settings.train.device}: leave it out, or set cuda or cpu"
        )
    check_gpus(pick_device(prepared.settings.train.device))
    team.ranks.object_of_first(prepared.settings)
    team.ranks.check_same(_pictures(prepared.fingerprint, run_division(prepared.decoded.table)))


def follow(data: Data, root: str | Path | None, team: Team) -> NoReturn:
    """On another rank: read the pictures, and train with rank 0 until it ends the ranks.

    Raises:
        SystemExit: with code 0, at the end.
        TwinlensError: this rank cannot read the pictures, or has other ones.
    """
    logging.getLogger("twinlens").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    keep_freed_memory()
    team.connect()
    work = team.work()
    for settings in work:
        table = read_run_table(path_or_table(data, root), root, settings)
        decoded = decode_table(
            table, settings.picture,
            max_pixels=settings.data.max_pixels, max_broken=settings.data.max_broken,
        )  # fmt: skip
        team.ranks.check_same(_pictures(table.fingerprint(), run_division(decoded.table)))
        for training in work:
            with memory_explained(), deterministic():
                _train(training, decoded.pixels, team.ranks)
    raise SystemExit(0)


def share_training(
    ranks: Ranks,
    settings: Settings,
    compute: Compute,
    train: LabelledPixels,
    val: LabelledPixels | None = None,
    share: float = 1.0,
) -> None:
    """On rank 0: let the other ranks call `fit` with the same values, before this one does."""
    if ranks.size == 1:
        return
    none = np.empty((0, 0, 0, 0), np.uint8)
    bare, val = replace(train, pixels=none), val and replace(val, pixels=none)
    ranks.object_of_first(_Training(settings, compute, bare, val, share))


def _train(training: _Training, pixels: np.ndarray, ranks: Ranks) -> None:
    settings, compute = training.settings, training.compute
    check_gpus(compute.device)
    encoder = Encoder(settings.model, settings.picture, load=False)
    comparator: Comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    fit(
        encoder, comparator, replace(training.train, pixels=pixels),
        training.val and replace(training.val, pixels=pixels), settings,
        compute=compute, share=training.share, ranks=ranks,
    )  # fmt: skip


def _pictures(fingerprint: str, division: str) -> dict[str, str]:
    return {"pictures": fingerprint, "splits or readable pictures": division}
