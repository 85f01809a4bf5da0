"""Resumption of a run: settings that may change, and differences that are refused.

The length and the device may change. Everything else decides what the steps so far have learned,
so another value, or other pictures, need a new run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinlens.commands.training_table import training_sampler
from twinlens.config import LENGTHS, Settings
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, TrainingError
from twinlens.learn.records import Choice
from twinlens.learn.run_folder import RunFolder, RunRecord
from twinlens.learn.schedule import run_length
from twinlens.model.compute import Compute
from twinlens.model.device import pick_device
from twinlens.model.plugged_in import is_plugged_in
from twinlens.recipes import Recipe, as_typed, load_recipe, or_unset

__all__ = ["Resumption", "check_length", "check_pictures", "repeat_command", "resume_command",
           "resumption"]  # fmt: skip

LENGTH_KEYS = tuple(f"train.{length}" for length in LENGTHS)
DEVICE = "train.device"


@dataclass(frozen=True)
class Resumption:
    """The settings and choices of a resumed run.

    Attributes:
        settings: those of the run, with a new length or device.
        choices: those of the run that still hold.
        compute: arithmetic format of the run; None if it has to be chosen.
        changes: what changed, in words; empty if nothing did.
    """

    settings: Settings
    choices: list[Choice]
    compute: Compute | None
    changes: tuple[str, ...] = ()


def resumption(
    recipe: Recipe, init: str | None, record: RunRecord, stored: Settings, run: RunFolder
) -> Resumption:
    """The settings that a run resumes with.

    Args:
        recipe: recipe with the user's overrides.
        init: initial model that the user names; None for none.
        record: record of the run.
        stored: settings of the run.
        run: run folder, for messages.
    Raises:
        ConfigError: another setting, recipe or initial model than at the start.
    """
    refused = list(_refused(recipe, record, stored))
    if init not in (None, record.init):
        refused.append(f"--init: was {record.init or 'unset'}, is {init}")
    if refused:
        raise ConfigError(
            f"{run.path} was started with other settings, and a resumed run keeps them:\n  "
            + "\n  ".join(refused)
            + "\n  Leave them out to resume (--steps, --epochs, --time-budget and train.device may "
            f"change), or start a new run in another --out; --init {run.path} begins with its model"
        )
    resumed = Resumption(stored, record.choices, record.compute)
    return _with_length(_with_device(resumed, recipe, record), recipe)


def _refused(recipe: Recipe, record: RunRecord, stored: Settings) -> Iterator[str]:
    """Each difference that a resumed run does not take: name, value of the run, value given."""
    # "auto" is the default of a command that names no recipe.
    if recipe.name not in ("auto", record.recipe):
        yield f"recipe: was {record.recipe}, is {recipe.name}"
        return
    given, kept = recipe.settings().model_dump(), stored.model_dump()
    keys = list(recipe.overrides)
    if recipe.name.endswith(".toml") and record.overrides is not None:  # The file may have changed.
        whole = load_recipe(recipe.name, {**record.overrides, **recipe.overrides})
        given = whole.settings().model_dump()
        keys += [key for key in whole.fixed() if key not in keys]
    for key in keys:
        value, was = _value(given, key), _value(kept, key)
        if key in (*LENGTH_KEYS, DEVICE) or key in recipe.auto or value in ("auto", was):
            continue
        yield f"{key}: was {or_unset(was)}, is {or_unset(value)}"


def _with_device(resumed: Resumption, recipe: Recipe, record: RunRecord) -> Resumption:
    device = recipe.overrides.get(DEVICE)
    used = None if record.compute is None else record.compute.device
    if device is None or used in (None, pick_device(device)):
        return resumed
    resumed = replace(resumed, compute=None)  # The format is a setting of the run.
    return _changed(resumed, {"device": device}, f"{DEVICE}={device} (was {used})")


def _with_length(resumed: Resumption, recipe: Recipe) -> Resumption:
    """With the length that the user gave, which replaces that of the run and its extension."""
    given = {
        length: value
        for length in LENGTHS
        if (value := recipe.overrides.get(f"train.{length}")) not in (None, "auto")
    }
    train = resumed.settings.train
    if all(getattr(train, length) == value for length, value in given.items()):
        return resumed
    ((length, value),) = given.items()
    was = next((f"{one}={v}" for one in LENGTHS if (v := getattr(train, one)) is not None), "auto")
    update = {**dict.fromkeys(LENGTHS), length: value, "extend": False, "patience": 0}
    return _changed(resumed, update, f"train.{length}={value} (was {was})")


def _changed(resumed: Resumption, update: Mapping[str, Any], change: str) -> Resumption:
    train = resumed.settings.train
    settings = resumed.settings.model_copy(update={"train": train.model_copy(update=dict(update))})
    keys = {f"train.{name}" for name in update}
    choices = [choice for choice in resumed.choices if choice.key not in keys]
    changes = (*resumed.changes, change)
    return replace(resumed, settings=settings, choices=choices, changes=changes)


def check_pictures(table: ImageTable, record: RunRecord, run: RunFolder) -> str:
    """The fingerprint of a table of the pictures that a run was started on.

    Raises:
        TrainingError: other pictures.
    """
    now, then = table.fingerprint(), record.fingerprint
    if now != then:
        raise TrainingError(
            f"DATA is not what {run.path} was started on: was {record.source} (fingerprint "
            f"{then[:12]}), is {table.source} (fingerprint {now[:12]}). Resume with the same "
            f"pictures, or train on these in another --out; --init {run.path} begins with its model"
        )
    return now


def check_length(settings: Settings, table: ImageTable, run: RunFolder) -> None:
    """Check that a run has not done more steps than its new length.

    Raises:
        TrainingError: it has.
    """
    done = run.steps_done()
    length = run_length(settings.train, training_sampler(table, settings).steps_per_epoch, 0.0)
    if not settings.train.extend and length.steps is not None and done > length.steps:
        raise TrainingError(
            f"{run.path} has done {done:,} steps already, and the length given is "
            f"{length.steps:,}: give more to resume it"
        )


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value of "section.key" in nested settings; None if missing."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def resume_command(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    init: str | Path | None = None,
    devices: int | None = None,
) -> str:
    """The command that resumes a run, or starts it if it was interrupted before its first step."""
    stored = run.read_settings() is not None
    if _is_of_program(data, recipe):
        return f"twinlens.train(..., out={str(run.path)!r}, resume=True)"
    command = repeat_command(data, root) if stored else repeat_command(data, root, recipe, init)
    command = f"{command} --out {shlex.quote(str(run.path))} --resume"
    return command if devices is None else f"{command} --devices {devices}"


def _is_of_program(data: Any, recipe: Recipe | None) -> bool:
    """Whether a training takes objects of a Python program: data, or a part such as its loss."""
    values = () if recipe is None else recipe.overrides.values()
    parts = (value for value in values if isinstance(value, str) and is_plugged_in(value))
    return not isinstance(data, str | Path) or any(parts)


def repeat_command(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe | None = None,
    init: str | Path | None = None,
) -> str:
    """The command that repeats a run on the same data; "" for objects made in Python.

    Without a recipe the command leaves out the settings.
    """
    if _is_of_program(data, recipe):
        return ""
    words = ["twinlens", "train", str(data)]
    if root is not None:
        words += ["--root", str(root)]
    if init is not None:
        words += ["--init", str(init)]
    if recipe is None:
        return shlex.join(words)
    if recipe.name != "auto":
        words += ["--recipe", recipe.name]
    for key, value in recipe.overrides.items():
        if value is not None:
            words += ["--set", f"{key}={as_typed(value)}"]
    return shlex.join(words)
