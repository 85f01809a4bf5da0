"""Preparation of a run: read, split, choose settings, decode, and record.

A resumed run takes its settings from the run folder (see `commands.resume`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.commands.initial_model import InitialModel, read_initial_model
from twinlens.commands.resume import (
    Resumption,
    check_length,
    check_pictures,
    repeat_command,
    resumption,
)
from twinlens.commands.run_lines import choice_lines
from twinlens.commands.training_table import sample_rows, split_table, training_sampler
from twinlens.config import Settings
from twinlens.data.contents import content_digests
from twinlens.data.duplicates import equal_pictures
from twinlens.data.folders import read_table
from twinlens.data.inspection import sample_statistics
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixel_shards import PixelShards
from twinlens.data.pixels import DecodedTable, table_depths
from twinlens.data.splits import is_closed_set
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, TrainingError, TwinlensError
from twinlens.learn.auto import choose_levels, choose_settings, start_for
from twinlens.learn.records import Choice
from twinlens.learn.run_folder import RunFolder, RunRecord
from twinlens.machine import machine, versions
from twinlens.model.compute import choose_compute
from twinlens.model.encoder import Encoder
from twinlens.model.fused import encoder_layout
from twinlens.model.networks import check_portable
from twinlens.model.plugged_in import (
    check_passed,
    check_plugged_loss,
    check_plugged_transform,
    is_plugged_in,
    plugged,
)
from twinlens.model.training_record import RECORD_FILE, find_record, read_record
from twinlens.progress import Progress
from twinlens.recipes import Recipe

__all__ = ["PreparedRun", "choose_run_settings", "prepare", "read_run_table", "run_division"]

log = logging.getLogger("twinlens")

MOST_BROKEN = 20  # in the log


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run before its first step.

    Attributes:
        recipe: name of its recipe.
        initial: model to begin with; None for a new network, or one in a checkpoint.
    """

    recipe: str
    settings: Settings
    choices: list[Choice]
    decoded: DecodedTable
    fingerprint: str
    initial: InitialModel | None = None


def prepare(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
    initial: InitialModel | None = None,
) -> PreparedRun | None:
    """Read and split the data, choose the settings, and decode the pictures.

    If that fails, no empty run folder remains.

    Args:
        data: a folder, a manifest, the name of a set, or a table.
        root: folder of a named set's local copy.
        recipe: recipe with the user's overrides; a resumed run has settings of its own.
        run: existing run folder.
        resume: whether to resume the run in it.
        initial: model to begin with, if any.
    Returns:
        The run; None if it is finished already, and nothing is to change.
    Raises:
        DataError: pictures that cannot be trained on.
        ConfigError: settings that do not fit the data, or the run that is resumed.
        TrainingError: other data than at the start, or a damaged run folder.
    """
    try:
        record, stored = (run.read_record(), run.read_settings()) if resume else (None, None)
        check_passed(recipe.settings() if stored is None else stored)
        if resume and run.has_checkpoint:
            run.check_checkpoint(stored)
        resumed = None
        if record is not None and stored is not None:
            resumed = resumption(recipe, _path_of(initial), record, stored, run)
        settings = recipe.settings() if stored is None else stored
        table = read_run_table(data, root, settings)
        if record is None or resumed is None:  # New, or killed before its first file.
            if resume:
                log.info("nothing to resume in %s: starting", run.path)
            return _start(data, table, root, recipe, run, initial)
        fingerprint = check_pictures(table, record, run)
        if record.finished and not resumed.changes:
            return None
        if record.init is not None and initial is None and not run.has_checkpoint:
            initial = read_initial_model(record.init)
        return replace(_resume(table, record, resumed, fingerprint, run), initial=initial)
    except (TwinlensError, KeyboardInterrupt):
        with suppress(OSError):  # It is not empty.
            run.path.rmdir()
        raise


def read_run_table(
    data: str | Path | ImageTable, root: str | Path | None, settings: Settings
) -> ImageTable:
    """The pictures of a run, with their splits."""
    table = read_table(
        data,
        root=None if root is None else Path(root),
        forged_suffix=settings.data.forged_suffix,
        identity_depth=settings.data.identity_depth,
    )
    return split_table(table, settings)


def choose_run_settings(
    recipe: Recipe, table: ImageTable, *, download: bool = False
) -> tuple[Settings, list[Choice]]:
    """The settings for a table with splits, except `picture.mean` and `picture.std`.

    Args:
        recipe: recipe with the user's overrides.
        table: table with splits.
        download: whether pretrained weights may be downloaded.
    Raises:
        DataError: training pictures that give no pairs, or cannot be read.
        ConfigError: settings that do not fit them.
    """
    max_pixels = recipe.settings().data.max_pixels
    statistics = sample_statistics(table.of_split("train"), max_pixels=max_pixels)
    closed = is_closed_set(table)
    start = start_for(recipe, statistics, closed=closed, download=download)
    has_test = len(table.of_split("test")) > 0
    settings, choices = choose_settings(
        recipe, statistics, closed=closed, start=start, has_test=has_test
    )
    training_sampler(table, settings)
    if statistics.sixteen_bit and settings.picture.depth is None:
        settings, depth = _choose_depth(settings, table)
        choices = choices + depth
    return settings, choices


def _choose_depth(settings: Settings, table: ImageTable) -> tuple[Settings, list[Choice]]:
    """The settings with the bits that the 16-bit pictures of a table use, and the choice."""
    num_of = table_depths(
        table, max_pixels=settings.data.max_pixels, progress=Progress("measuring depth")
    )
    if not num_of:
        return settings, []
    depth = max(num_of)
    num = num_of.total()
    why = f"the bits that {num:,} 16-bit pictures of {len(table):,} pictures use"
    if num_of[depth] < num:
        why += f", {num - num_of[depth]:,} of them fewer"
    picture = settings.picture.model_copy(update={"depth": depth})
    choice = Choice("picture.depth", depth, why)
    return settings.model_copy(update={"picture": picture}), [choice]


def _start(
    data: str | Path | ImageTable,
    table: ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    initial: InitialModel | None,
) -> PreparedRun:
    """Choose the settings from the data, and record the run."""
    settings, choices = choose_run_settings(recipe, table, download=True)
    if settings.model.init == "given" and initial is None:
        raise ConfigError("model.init 'given' needs a model to begin with: add --init RUN")
    _warn_without_effect(recipe, settings, table)
    encoder_layout(settings.model, settings.picture)  # A network beyond any memory fails here.
    # Built and dropped, so that wrong weights or layers fail before the long decoding.
    _check_plugged_in(Encoder(settings.model, settings.picture), settings)
    decoded = _decode(table, settings)
    training_sampler(decoded.table, settings)  # Again, without the broken pictures.
    rows = np.flatnonzero(decoded.table.split == "train")
    settings, levels = choose_levels(recipe, settings, decoded.pixels[sample_rows(rows)])
    settings, formats = _choose_formats(settings)
    choices = choices + levels + formats
    prepared = PreparedRun(recipe.name, settings, choices, decoded, table.fingerprint(), initial)
    command = repeat_command(data, root, recipe, _path_of(initial))
    _record(run, prepared, command, root, recipe.overrides)
    for line in choice_lines(settings, choices, run):
        log.info("%s", line)
    _warn_of_pretraining(settings, decoded.table, initial)
    return prepared


def _path_of(initial: InitialModel | None) -> str | None:
    return None if initial is None else initial.path


def _check_plugged_in(encoder: Encoder, settings: Settings) -> None:
    """Try the objects that a program passed, before the long decoding.

    Raises:
        ConfigError: one of them fails, or the backbone gives no portable model.
    """
    if is_plugged_in(name := settings.loss.name):
        check_plugged_loss(plugged("loss", name), name, settings.model.embedding)
    if is_plugged_in(name := settings.augment.transform):
        check_plugged_transform(plugged("augmentation", name), name, settings.picture)
    if is_plugged_in(settings.model.backbone):
        check_portable(encoder)


def _warn_of_pretraining(
    settings: Settings, table: ImageTable, initial: InitialModel | None
) -> None:
    """Warn of pictures that are held out here and were learned from by the start."""
    weights = settings.model.weights
    record = None if weights is None else read_record(Path(weights).with_name(RECORD_FILE))
    if initial is not None:
        record = find_record(initial.stored.path, initial.stored.description.origin)
    if record is None:
        return
    held_out = table.select(np.flatnonzero(table.split != "train"))
    num = np.count_nonzero(record.splits_of(content_digests(held_out)) != "")
    if num:
        log.warning(
            "%d of %d held-out pictures belong to the pretraining of the start, so the figures are "
            "too good; %s learns from nothing", num, len(held_out),
            "a training without --init" if initial else "--set model.pretrained=false",
        )  # fmt: skip


def _choose_formats(settings: Settings) -> tuple[Settings, list[Choice]]:
    """The settings with the precision and memory format of this machine, and the choices."""
    compute = choose_compute(settings.model, settings.train)
    formats = {
        "precision": "bfloat16" if compute.bfloat16 else "float32",
        "channels_last": "yes" if compute.channels_last else "no",
    }
    chosen = {key: v for key, v in formats.items() if getattr(settings.train, key) == "auto"}
    why = f"a rule for {settings.model.backbone} on this machine's {compute.device}"
    train = settings.train.model_copy(update=chosen)
    choices = [Choice(f"train.{key}", value, why) for key, value in chosen.items()]
    return settings.model_copy(update={"train": train}), choices


def _warn_without_effect(recipe: Recipe, settings: Settings, table: ImageTable) -> None:
    """Warn of forgery settings without forgeries, and of a frozen backbone without weights."""
    share = recipe.values.get("sampler", {}).get("forged_share", 0)
    counts = recipe.values.get("loss", {}).get("forged_weight", 1)
    uses_forgeries = share or counts not in (1, "auto")
    if uses_forgeries and not table.of_split("train").forged.any():
        log.warning("no forgeries to train on: all impostors are of other identities")
    model = settings.model
    random = model.backbone != "strokes" and not (
        model.pretrained or model.weights or model.init == "given"
    )
    if model.freeze == "all" and random:
        log.warning("the backbone is frozen with random weights: only the head learns")


def _resume(
    table: ImageTable, record: RunRecord, resumed: Resumption, fingerprint: str, run: RunFolder
) -> PreparedRun:
    settings = resumed.settings
    decoded = _decode(table, settings)
    if record.division not in (None, run_division(decoded.table)):
        raise TrainingError(
            f"the splits, or the readable pictures, are not those that {run.path} was started "
            "with (see its split.csv): restore them, or start a new run"
        )
    if resumed.changes:
        check_length(settings, decoded.table, run)
        log.info("resuming with %s", ", ".join(resumed.changes))
        run.write_settings(settings)
        run.update_record(finished=False, choices=resumed.choices, compute=resumed.compute)
    return PreparedRun(record.recipe, settings, resumed.choices, decoded, fingerprint)


def _decode(table: ImageTable, settings: Settings) -> DecodedTable:
    decoded = decode_table(
        table,
        settings.picture,
        max_pixels=settings.data.max_pixels,
        max_broken=settings.data.max_broken,
        progress=Progress("reading"),
    )
    if isinstance(decoded.pixels, PixelShards) and decoded.pixels.kept < 1:
        log.warning(
            "the cache has room for %.0f %% of the decoded pictures; the others are decoded again"
            " in each epoch (TWINLENS_CACHE names a folder, TWINLENS_CACHE_GIB its size)",
            100 * decoded.pixels.kept,
        )
    if decoded.broken:
        log.warning(
            "%d of %d pictures cannot be read and are skipped:", len(decoded.broken), len(table)
        )
    for broken in decoded.broken[:MOST_BROKEN]:
        log.warning("  %s: %s", broken.path, broken.reason)
    if len(decoded.broken) > MOST_BROKEN:
        more = len(decoded.broken) - MOST_BROKEN
        log.warning("  and %d more; all of them are in the report", more)
    _warn_of_conflicts(decoded)
    return decoded


def _warn_of_conflicts(decoded: DecodedTable) -> None:
    """Warn of pictures that are equal at the network's size, under two identities at once."""
    table = decoded.table
    groups = [
        group
        for group in equal_pictures(decoded.pixels)
        if len({table.identity[row] for row in group}) > 1
    ]
    if groups:
        some = [" = ".join(table.relative(row) for row in group[:2]) for group in groups[:2]]
        log.warning(
            "%d %s filed under more than one identity (%s%s), and a model cannot learn both: keep "
            "the right one; `twinlens inspect` lists them all",
            len(groups), "picture is" if len(groups) == 1 else "pictures are", "; ".join(some),
            "; ..." if len(groups) > 2 else "",
        )  # fmt: skip


def _record(
    run: RunFolder,
    prepared: PreparedRun,
    command: str,
    root: str | Path | None,
    overrides: Mapping[str, Any],
) -> None:
    """Write split.csv, run.json and settings.json, before the first step."""
    table = prepared.decoded.table
    rows = [
        (table.relative(row), table.identity[row],
         "forged" if table.forged[row] else "genuine", table.split[row])
        for row in range(len(table))
    ]  # fmt: skip
    run.write_table("split.csv", ("path", "identity", "role", "split"), rows)
    record = RunRecord(
        source=table.source,
        root=None if root is None else str(root),
        recipe=prepared.recipe,
        init=_path_of(prepared.initial),
        start=None if prepared.initial is None else prepared.initial.start_record(),
        overrides=dict(overrides),
        command=command,
        fingerprint=prepared.fingerprint,
        division=run_division(table),
        seed=prepared.settings.seed,
        versions=versions(),
        machine=machine(),
        choices=prepared.choices,
    )
    run.write_record(record)
    run.write_settings(prepared.settings)


def run_division(table: ImageTable) -> str:
    """Hash of the pictures of a run and their splits."""
    rows = ((str(table.relative(row)), str(table.split[row])) for row in range(len(table)))
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
