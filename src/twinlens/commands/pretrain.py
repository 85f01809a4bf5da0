"""`twinlens pretrain`: a start for drawings, which later trainings on drawings begin with."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from twinlens.commands.train import train
from twinlens.config import Settings
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.folders import read_table
from twinlens.data.inspection import sample_statistics
from twinlens.errors import ConfigError
from twinlens.files import creating_folder, writing_errors
from twinlens.learn.auto_facts import Facts
from twinlens.model.drawing_start import (
    START_FILE,
    START_WEIGHTS,
    DrawingStart,
    drawing_start_folder,
)
from twinlens.model.networks import load_networks
from twinlens.model.stored import StartRecord, file_sha256
from twinlens.model.training_record import RECORD_FILE
from twinlens.progress import console_log
from twinlens.report.formatting import count_of

__all__ = ["pretrain"]

log = logging.getLogger("twinlens")

# One network, from nothing.
NETWORK = {"model.backbone": "conv", "model.pretrained": False, "picture.color": "grey"}


def pretrain(
    data: Data,
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Train a network on many drawings, and keep it as the start of later trainings on drawings.

    It is `train`, whose backbone is then copied to the cache. An older start is replaced.

    Args:
        data: drawings of many identities, as for `train`.
        out: run folder; by default as for `train`.
        settings: overrides, "section.key" -> value.
        root: folder of a named set's local copy.
        quiet: log warnings only.
    Returns:
        The folder of the start.
    Raises:
        ConfigError: photographs, or wrong settings.
        DataError: pictures that cannot be trained on.

    Example:
        >>> twinlens.pretrain("omniglot")  # doctest: +SKIP
    """
    data = path_or_table(data, root)
    table = read_table(data, root=None if root is None else Path(root))
    statistics = sample_statistics(table)
    if not Facts(statistics, Settings(), closed=False).drawing:
        raise ConfigError(
            f"{table.source} shows photographs, and a start for drawings needs drawings: dark or "
            "light strokes on an even ground. For photographs see docs/pretrained.md"
        )
    given = {**(settings or {}), **NETWORK}
    model = train(data, out=out, settings=given, root=root, quiet=quiet)
    description, origin = model.stored.description, model.stored.description.origin
    assert origin is not None
    num = count_of(statistics.num_identities, "identity")
    record = StartRecord(
        name="drawings",
        licence="that of its pictures",
        source=Path(table.source).name or table.source,
        trained_on=f"{count_of(len(table), 'drawing')} of {num}",
        fingerprint=origin.fingerprint,
        identities=statistics.num_identities,
    )
    weights = load_networks(model.stored).encoder.backbone.state_dict()
    folder = drawing_start_folder()
    advice = "name another folder in the environment variable TWINLENS_CACHE"
    with creating_folder(folder, f"the cache {folder.parent}", advice, replace=True) as part:
        with writing_errors(part / START_WEIGHTS):
            save_file(weights, part / START_WEIGHTS)
        shutil.copyfile(model.path.parent / RECORD_FILE, part / RECORD_FILE)
        start = DrawingStart(
            model=description.model,
            picture=description.picture,
            weights=file_sha256(part / START_WEIGHTS),
            record=record,
        )
        text = json.dumps(start.model_dump(mode="json"), indent=1)
        (part / START_FILE).write_text(text + "\n", encoding="utf-8")
    with console_log(quiet):
        log.info("trainings on drawings begin with %s: %s", record.trained_on, folder)
    return folder
