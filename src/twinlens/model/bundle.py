"""A model on disk: a folder with `model.safetensors` and `model.json`. No pickle anywhere.

`model.json` holds the format's version, the settings of the network and of its preprocessing, the
checksum of the weights, the calibration as plain data, and what the model was trained on. This
module does not know what a calibration means, and needs torch only to build networks or save them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError

import twinlens
from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.errors import ConfigError, ModelError
from twinlens.files import replacing

if TYPE_CHECKING:
    from twinlens.model.comparators import Comparator
    from twinlens.model.encoder import Encoder

__all__ = ["FORMAT", "Bundle", "Origin", "Stored", "build_bundle", "hash_identities",
           "load_bundle", "model_folder", "part_of", "read_stored", "save_bundle",
           "with_calibration", "write_text"]  # fmt: skip

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
GALLERY_MODELS = "models"  # below which a gallery keeps the copy of its model


_DAMAGES = (
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
class Stored:
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


@dataclass(frozen=True)
class Bundle:
    """A loaded model: the networks, and what `model.json` says of them."""

    encoder: Encoder
    comparator: Comparator
    fingerprint: str
    calibration: dict[str, Any] | None
    origin: Origin | None
    path: Path


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


def save_bundle(
    folder: Path,
    encoder: Encoder,
    comparator: Comparator,
    *,
    origin: Origin | None = None,
    calibration: dict[str, Any] | None = None,
) -> Bundle:
    """Write a model folder, beside its place and then renamed; an older one there is replaced."""
    from safetensors.torch import save_file

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    weights |= {f"comparator.{k}": v for k, v in comparator.state_dict().items()}
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, part / WEIGHTS)
    # Where the weights once came from is the run's history; the bundle brings its own.
    model = encoder.model_settings.model_copy(update={"weights": None, "pretrained": False})
    description = {
        "format": FORMAT,
        "twinlens": twinlens.__version__,
        "picture": encoder.picture.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "weights": _sha256(part / WEIGHTS),
    }
    fingerprint = _fingerprint(description)
    bundle = Bundle(encoder, comparator, fingerprint, calibration, origin, part)
    _write_description(bundle, description)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return replace(bundle, path=folder)


def with_calibration(bundle: Bundle, calibration: dict[str, Any]) -> Bundle:
    """Store a calibration in a model folder that exists; the weights are not touched."""
    description = _read_description(bundle.path)
    bundle = replace(bundle, calibration=calibration)
    _write_description(bundle, description)
    return bundle


def load_bundle(path: str | Path) -> Bundle:
    """Read a model folder, or the run folder around one.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    return build_bundle(read_stored(path))


def read_stored(path: str | Path) -> Stored:
    """Read what a model folder, or the run folder around one, says, and check its files.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    folder = model_folder(path)
    description = _read_description(folder)
    weights_file = folder / WEIGHTS
    if not weights_file.is_file() or _sha256(weights_file) != description.get("weights"):
        raise ModelError(
            f"the model {folder} is damaged: {WEIGHTS} is missing or is not the file that "
            f"{DESCRIPTION} names. Copy the whole folder again, or train again."
        )
    fingerprint = _fingerprint(description)
    if description.get("fingerprint") != fingerprint:
        raise ModelError(
            f"the model {folder} is damaged: {DESCRIPTION} was changed after it was written, and "
            "its embeddings would be another model's. Copy the whole folder again."
        )
    try:
        picture = PictureSettings.model_validate(description["picture"])
        settings = ModelSettings.model_validate(description["model"])
        origin = _origin(description.get("origin"))
    except _DAMAGES as error:
        raise _damaged(folder, error) from error
    return Stored(settings, picture, fingerprint, description.get("calibration"), origin, folder)


def build_bundle(stored: Stored) -> Bundle:
    """The networks of a model that was read, on CUDA where there is one.

    Raises:
        ModelError: its weights are not of the network that it names.
    """
    from safetensors.torch import load_file

    from twinlens.model.comparators import make_comparator
    from twinlens.model.compute import pick_device
    from twinlens.model.encoder import Encoder

    try:
        encoder = Encoder(stored.model, stored.picture, load=False)
        comparator = make_comparator(stored.model.comparator, stored.model.embedding)
        weights = load_file(stored.weights)
        encoder.load_state_dict(part_of(weights, "encoder."))
        comparator.load_state_dict(part_of(weights, "comparator."))
    except _DAMAGES as error:
        raise _damaged(stored.path, error) from error
    device = pick_device("auto")
    encoder.to(device).eval()
    comparator.to(device).eval()
    return Bundle(
        encoder, comparator, stored.fingerprint, stored.calibration, stored.origin, stored.path
    )


def _damaged(folder: Path, error: Exception) -> ModelError:
    line = " ".join(str(error).split())
    return ModelError(f"the model {folder} is damaged: {line}")


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it, so that it is never seen half."""
    with replacing(path, path.with_name(f"{path.name}.part")) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def part_of(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The weights whose names begin so, by what follows: "encoder." or "comparator."."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = int(description["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the model {folder} is damaged: {DESCRIPTION}: {error}") from error
    if version > FORMAT:
        raise ModelError(
            f"the model {folder} has format {version}, and this twinlens "
            f"{twinlens.__version__} reads up to {FORMAT}: upgrade twinlens"
        )
    return dict(description)


def _write_description(bundle: Bundle, description: dict[str, Any]) -> None:
    description = description | {
        "fingerprint": bundle.fingerprint,
        "calibration": bundle.calibration,
        "origin": _origin_json(bundle.origin),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(bundle.path / DESCRIPTION, text + "\n")


def _origin_json(origin: Origin | None) -> dict[str, Any] | None:
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


def _fingerprint(description: dict[str, Any]) -> str:
    """16 hex digits over the weights and everything else that decides an embedding."""
    parts = {key: description.get(key) for key in ("picture", "model", "weights")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
