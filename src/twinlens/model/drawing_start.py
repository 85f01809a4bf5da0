"""The start for drawings: a network that `twinlens pretrain` learned, in the cache.

A folder with the backbone's weights, `start.json` and the record of the pictures behind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.download import cache_folder
from twinlens.errors import ConfigError, first_line, validation_problems
from twinlens.model.stored import Sha256, StartRecord, file_sha256
from twinlens.parsing import read_json

__all__ = ["START_FILE", "START_WEIGHTS", "DrawingStart", "drawing_start_folder", "read_start"]

FORMAT: Final = 1
START_FILE, START_WEIGHTS = "start.json", "weights.safetensors"

# Settings that decide which weights fit, and those that pretraining chose with them.
NETWORK = ("backbone", "channels", "convolutions", "kernel", "batch_norm", "max_pool", "pool")
PICTURE = ("size", "color", "fit")


class DrawingStart(BaseModel):
    """Contents of `start.json`.

    Attributes:
        model: settings of the network.
        picture: settings of its pictures.
        weights: SHA-256 of the file of weights.
        record: the pretraining.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    model: ModelSettings
    picture: PictureSettings
    weights: Sha256
    record: StartRecord

    def settings(self, weights: Path) -> dict[str, Any]:
        """The settings ("section.key" -> value) of a network that begins with the weights."""
        model = {f"model.{key}": getattr(self.model, key) for key in NETWORK}
        picture = {f"picture.{key}": getattr(self.picture, key) for key in PICTURE}
        return model | picture | {"model.weights": str(weights)}


def drawing_start_folder() -> Path:
    """The folder of the start for drawings; it need not exist."""
    return cache_folder() / "starts" / "drawings"


def read_start(folder: Path) -> DrawingStart | None:
    """The start in a folder; None if there is none.

    Raises:
        ConfigError: damaged, or of a newer version.
    """
    if not (folder / START_FILE).is_file():
        return None
    try:
        start = DrawingStart.model_validate(read_json(folder / START_FILE))
        if file_sha256(folder / START_WEIGHTS) != start.weights:
            raise ValueError(f"{START_WEIGHTS} is not the file that {START_FILE} names")
    except ValidationError as error:
        problem = validation_problems(error)
    except (OSError, ValueError) as error:
        problem = first_line(error)
    else:
        return start
    raise ConfigError(
        f"the start for drawings {folder} is damaged: {problem}. Run `twinlens pretrain` again, or "
        "delete the folder"
    )
