"""A model on disk: a folder with `model.safetensors` and `model.json`. No pickle anywhere.

`model.json` holds the format's version, the settings of the network and of its preprocessing, the
checksum of the weights, the calibration as plain data, and what the model was trained on. This
module does not know what a calibration means, builds no network and needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from twinlens._version import __version__
from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.errors import ConfigError, ModelError

__all__ = ["DAMAGES", "DESCRIPTION", "FORMAT", "WEIGHTS", "Origin", "StoredModel", "damaged",
           "description_fingerprint", "file_sha256", "hash_identities", "model_folder",
           "origin_as_json", "part_of", "read_description", "read_stored_model"]  # fmt: skip

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
GALLERY_MODELS = "models"  # below which a gallery keeps the copy of its model

DAMAGES = (
    KeyError, TypeError, RuntimeError, ValidationError, SafetensorError, ConfigError,
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """What a model was trained on, so that it can later be measured on what it has not seen.

    `identities` are short hashes of the names of the training identities.
    """

    source: str
    fingerprint: str
    seed: int
    data: DataSettings
    identities: tuple[str, ...]


@dataclass(frozen=True)
class StoredModel:
    """What a model's folder says of it, whole and of these weights; no network is built yet."""

    model: ModelSettings
    picture: PictureSettings
    fingerprint: str
    calibration: dict[str, Any] | None
    origin: Origin | None
    path: Path

    @property
    def weights(self) -> Path:
        """The file of the encoder's and the comparator's weights, a prefix before each name."""
        return self.path / WEIGHTS


def hash_identities(names: Sequence[str]) -> tuple[str, ...]:
    """Short hashes of identity names, sorted: enough to recognise one, too little to read it."""
    # Folder names that are not UTF-8 reach Python as lone surrogates.
    encoded = {name.encode("utf-8", "surrogatepass") for name in names}
    return tuple(sorted(hashlib.blake2b(name, digest_size=6).hexdigest() for name in encoded))


def model_folder(path: str | Path) -> Path:
    """The model's own folder, for a model folder or for the run folder that holds it.

    Raises:
        ModelError: there is no model.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / DESCRIPTION).is_file():
            return folder
    found = "nothing is there" if not path.exists() else "it holds no model.json"
    for inner in sorted(path.glob(f"{GALLERY_MODELS}/*/{DESCRIPTION}")):
        raise ModelError(
            f"{path} is a gallery, and a model is needed here: the gallery's own is {inner.parent}."
            f" A gallery's threshold is found by `twinlens gallery calibrate {path}`, and"
            " `twinlens identify` asks it"
        )
    raise ModelError(
        f"{path} is no model: {found}. Give the run folder of `twinlens train`, or its `model`."
    )


def read_stored_model(path: str | Path) -> StoredModel:
    """Read what a model folder, or the run folder around one, says, and check its files.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    folder = model_folder(path)
    description = read_description(folder)
    weights_file = folder / WEIGHTS
    if not weights_file.is_file() or file_sha256(weights_file) != description.get("weights"):
        raise ModelError(
            f"the model {folder} is damaged: {WEIGHTS} is missing or is not the file that "
            f"{DESCRIPTION} names. Copy the whole folder again, or train again."
        )
    fingerprint = description_fingerprint(description)
    if description.get("fingerprint") != fingerprint:
        raise ModelError(
            f"the model {folder} is damaged: {DESCRIPTION} was changed after it was written, and "
            "its embeddings would be another model's. Copy the whole folder again."
        )
    try:
        picture = PictureSettings.model_validate(description["picture"])
        settings = ModelSettings.model_validate(description["model"])
        origin = _origin(description.get("origin"))
    except DAMAGES as error:
        raise damaged(folder, error) from error
    return StoredModel(
        settings, picture, fingerprint, description.get("calibration"), origin, folder
    )


def part_of(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The weights whose names begin so, by what follows: "encoder." or "comparator."."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of a model folder's `model.json`.

    Raises:
        ModelError: missing, damaged, or of a newer format.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = int(description["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the model {folder} is damaged: {DESCRIPTION}: {error}") from error
    if version > FORMAT:
        raise ModelError(
            f"the model {folder} has format {version}, and this twinlens "
            f"{__version__} reads up to {FORMAT}: upgrade twinlens"
        )
    return dict(description)


def damaged(folder: Path, error: Exception) -> ModelError:
    """The error for a model folder whose contents are invalid."""
    line = " ".join(str(error).split())
    return ModelError(f"the model {folder} is damaged: {line}")


def origin_as_json(origin: Origin | None) -> dict[str, Any] | None:
    """The JSON form of an origin."""
    if origin is None:
        return None
    return asdict(origin) | {"data": origin.data.model_dump(mode="json")}


def _origin(found: dict[str, Any] | None) -> Origin | None:
    if found is None:
        return None
    return Origin(
        source=str(found["source"]),
        fingerprint=str(found["fingerprint"]),
        seed=int(found["seed"]),
        data=DataSettings.model_validate(found["data"]),
        identities=tuple(found["identities"]),
    )


def description_fingerprint(description: dict[str, Any]) -> str:
    """16 hex digits over the weights and everything else that decides an embedding."""
    parts = {key: description.get(key) for key in ("picture", "model", "weights")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
