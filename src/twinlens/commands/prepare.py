"""A run before its first step: what is read, split, chosen and decoded, and written down.

A resumed run takes its settings from the run folder, and refuses other data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Settings
from twinlens.data.folders import read_table
from twinlens.data.inspection import sample_statistics
from twinlens.data.pixel_cache import DecodedTable, decode_table
from twinlens.data.samplers import Sampler, make_sampler
from twinlens.data.splits import assign_splits, is_closed_set
from twinlens.data.table import ImageTable, require_identities
from twinlens.errors import TrainingError, TwinlensError
from twinlens.learn.auto import Choice, choose_levels, choose_settings
from twinlens.learn.run_folder import RunFolder, RunRecord
from twinlens.model.device import machine, versions
from twinlens.model.encoder import Encoder
from twinlens.progress import Progress
from twinlens.recipes import Recipe, parse_overrides

__all__ = ["PreparedRun", "batches_of", "choose", "divide", "in_words", "prepare", "spread"]

log = logging.getLogger("twinlens")

MOST_BROKEN = 20  # that are named on the way
LOOKED_AT = 1000  # pictures, for their mean and spread


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run before its first step; `recipe` is the name of the one that it began with."""

    recipe: str
    settings: Settings
    choices: list[Choice]
    decoded: DecodedTable
    fingerprint: str


def prepare(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
) -> PreparedRun:
    """Read, split, choose, decode; a run that is refused here leaves no empty folder.

    Args:
        data: a folder, a manifest, the name of a set, or a table.
        root: where the copy of a named set lies.
        recipe: with the user's overrides; a run that is gone on with has settings of its own.
        run: the folder, made already.
        resume: whether to go on with what is in it.
    Raises:
        DataError: pictures that cannot be trained on.
        ConfigError: settings that do not fit them.
        TrainingError: other data than the run began with, or a damaged run folder.
    """
    try:
        stored = _stored(run) if resume else None
        settings = recipe.settings() if stored is None else stored.settings
        table = read_table(
            data,
            root=None if root is None else Path(root),
            forged_suffix=settings.data.forged_suffix,
        )
        table = divide(table, settings)
        if stored is None:
            if resume:
                log.info("nothing to resume in %s: starting", run.path)
            return _begin(data, table, root, recipe, run)
        _say_unused(recipe, stored)
        return _go_on(table, stored, run)
    except TwinlensError:
        with suppress(OSError):  # It holds something.
            run.path.rmdir()
        raise


def divide(table: ImageTable, settings: Settings) -> ImageTable:
    """The table with its splits.

    Raises:
        DataError: too few identities.
    """
    require_identities(table, minimum=2, purpose="training")
    table = assign_splits(
        table, mode=settings.data.split, fractions=settings.data.fractions, seed=settings.seed
    )
    require_identities(table.of_split("train"), minimum=2, purpose="training")
    return table


def choose(recipe: Recipe, table: ImageTable) -> tuple[Settings, list[Choice]]:
    """The settings for a divided table, but for `picture.mean` and `picture.std`.

    Raises:
        DataError: training pictures that give no pairs, or cannot be read.
        ConfigError: settings that do not fit them.
    """
    max_pixels = recipe.settings().data.max_pixels
    statistics = sample_statistics(table.of_split("train"), max_pixels=max_pixels)
    settings, choices = choose_settings(recipe, statistics, closed=is_closed_set(table))
    batches_of(table, settings)
    return settings, choices


def batches_of(table: ImageTable, settings: Settings) -> Sampler:
    """The batches that a run draws from the training pictures.

    Raises:
        DataError: they give no genuine or no impostor pair.
        ConfigError: settings that draw none.
    """
    training = table.of_split("train")
    return make_sampler(training.labels(), training.forged, settings.sampler, settings.seed)


def spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """About a thousand of the rows of the training pictures, for their mean and spread."""
    return rows[:: max(1, len(rows) // LOOKED_AT)]


def in_words(choice: Choice) -> str:
    """A choice with its reason, in a line."""
    value = choice.value
    text = " x ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return f"  {choice.key} = {text}: {choice.why}"


def _begin(
    data: str | Path | ImageTable,
    table: ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
) -> PreparedRun:
    """Choose the settings from the data, and write them down."""
    settings, choices = choose(recipe, table)
    _say_missing(recipe, settings, table)
    # Built once for nothing, so that wrong weights or layers show before the long reading.
    Encoder(settings.model, settings.picture)
    decoded = _decode(table, settings)
    batches_of(decoded.table, settings)  # Again, since broken pictures are missing now.
    rows = np.flatnonzero(decoded.table.split == "train")
    settings, levels = choose_levels(recipe, settings, decoded.pixels[spread(rows)])
    begun = PreparedRun(recipe.name, settings, choices + levels, decoded, table.fingerprint())
    _start_run(run, begun, _command(data, recipe, root), root)
    for choice in begun.choices:
        log.info("%s", in_words(choice))
    return begun


def _say_missing(recipe: Recipe, settings: Settings, table: ImageTable) -> None:
    """What the settings count on and is not there."""
    share = recipe.values.get("sampler", {}).get("forged_share", 0)
    counts = recipe.values.get("loss", {}).get("forged_weight", 1)
    wanted = share or counts not in (1, "auto")
    if wanted and not table.of_split("train").forged.any():
        log.warning("there are no forgeries to train on: all impostors are of other identities")
    model = settings.model
    random = model.backbone != "strokes" and not (model.pretrained or model.weights)
    if model.freeze == "all" and random:
        log.warning("the backbone is frozen with random weights: only the head learns")


@dataclass(frozen=True)
class _StoredRun:
    """Contents of the folder of a run that was started before."""

    record: RunRecord
    settings: Settings


def _stored(run: RunFolder) -> _StoredRun | None:
    """The run that was started in a folder; None if it was killed before its first file."""
    settings, record = run.read_settings(), run.read_record()
    return None if settings is None or record is None else _StoredRun(record, settings)


def _say_unused(recipe: Recipe, stored: _StoredRun) -> None:
    # "auto" is what stands where no recipe is named.
    if recipe.name not in ("auto", stored.record.recipe):
        log.warning(
            "the recipe %s is not used: the run goes on with %s, which it began with",
            recipe.name, stored.record.recipe,
        )  # fmt: skip
    if recipe.overrides:
        log.warning("the settings given are not used: a run goes on with those it began with")


def _go_on(table: ImageTable, stored: _StoredRun, run: RunFolder) -> PreparedRun:
    now, then = table.fingerprint(), stored.record.fingerprint
    if now != then:
        raise TrainingError(
            f"the data is not what {run.path} was started on (fingerprint {now[:12]}, then "
            f"{then[:12]}): resume with the same pictures, or start anew"
        )
    decoded = _decode(table, stored.settings)
    if stored.record.division not in (None, _division(decoded.table)):
        raise TrainingError(
            f"the splits, or the pictures that can be read, are not those that {run.path} was "
            "started with (they are in its split.csv): put them back, or start anew"
        )
    return PreparedRun(
        stored.record.recipe, stored.settings, stored.record.choices, decoded, now
    )


def _decode(table: ImageTable, settings: Settings) -> DecodedTable:
    decoded = decode_table(
        table,
        settings.picture,
        max_pixels=settings.data.max_pixels,
        max_broken=settings.data.max_broken,
        progress=Progress("reading"),
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
    return decoded


def _start_run(run: RunFolder, begun: PreparedRun, command: str, root: str | Path | None) -> None:
    """Write down what the run is, before its first step."""
    table = begun.decoded.table
    rows = [
        (table.relative(row), table.identity[row],
         "forged" if table.forged[row] else "genuine", table.split[row])
        for row in range(len(table))
    ]  # fmt: skip
    run.write_table("split.csv", ("path", "identity", "role", "split"), rows)
    record = RunRecord(
        source=table.source,
        root=None if root is None else str(root),
        recipe=begun.recipe,
        command=command,
        fingerprint=begun.fingerprint,
        division=_division(table),
        seed=begun.settings.seed,
        versions=versions(),
        machine=machine(),
        choices=begun.choices,
    )
    run.write_record(record)
    run.write_settings(begun.settings)


def _division(table: ImageTable) -> str:
    """A digest of which pictures there are to train with, and of what each is for."""
    rows = ((str(table.relative(row)), str(table.split[row])) for row in range(len(table)))
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def _command(data: str | Path | ImageTable, recipe: Recipe, root: str | Path | None) -> str:
    """What to type to repeat the run on the same data; "" where a table was made in Python."""
    if isinstance(data, ImageTable):
        return ""
    words = ["twinlens", "train", str(data)]
    if root is not None:
        words += ["--root", str(root)]
    if recipe.name != "auto":
        words += ["--recipe", recipe.name]
    for key, value in recipe.overrides.items():
        if value is not None:
            words += ["--set", f"{key}={_as_typed(value)}"]
    return shlex.join(words)


def _as_typed(value: Any) -> str:
    """A value as `--set` reads it: TOML, where a word that TOML would not understand is itself."""
    if isinstance(value, str) and parse_overrides([f"x={value}"])["x"] == value:
        return value
    return _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = [f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
