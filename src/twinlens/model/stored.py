"""A model on disk: a folder with graphs that answer, weights to learn on, and `model.json`.

`model.onnx` maps pictures to embeddings; `comparator.onnx`, only for learned comparators, maps
pairs of embeddings to distances. `model.safetensors` holds the same weights for torch. Models of
formats 1 and 2 have no graphs until they are completed. No pickle anywhere.

`ModelDescription` is the schema of `model.json`. The calibration and the domain are plain data
here; their schemas are `measure.calibration` and `measure.domain`. Reading a model builds no
network and needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from twinlens._version import __version__
from twinlens.config import DataSettings, FaceSettings, Member, ModelSettings, PictureSettings
from twinlens.errors import ModelError, first_line, one_line, validation_problems
from twinlens.files import write_text
from twinlens.model.hub_models import download_model, is_hub_address
from twinlens.model.onnx_file import MAX_SIZE, read_onnx_header
from twinlens.model.tensor_file import read_layout
from twinlens.parsing import read_json

__all__ = ["COMPARATOR_GRAPH", "DESCRIPTION", "FINGERPRINT", "FORMAT", "GRAPH", "HUB",
           "LEARNED_COMPARATORS", "MODEL_FILES", "MODEL_KEY", "OPENVINO_FILES",
           "PICTURE_KEY", "THRESHOLD_KEY", "WEIGHTS", "WEIGHTS_KEY", "Fingerprint",
           "ModelDescription", "Origin", "StartRecord", "StoredModel", "damaged_model",
           "file_sha256", "fingerprint_of", "graph_metadata", "hash_identities",
           "model_folder", "read_description", "read_stored_model", "read_values",
           "store_calibration", "write_description"]  # fmt: skip

FORMAT: Final = 3
GRAPH, COMPARATOR_GRAPH = "model.onnx", "comparator.onnx"
OPENVINO_FILES = ("model.xml", "model.bin")
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
MODEL_FILES = (GRAPH, *OPENVINO_FILES, COMPARATOR_GRAPH, WEIGHTS, DESCRIPTION)
"""Every file that a model may have, in the order in which they are copied: the description last."""

LEARNED_COMPARATORS = ("sigmoid", "network")
"""Comparators with weights, which are a graph of their own."""

MODEL_KEY, PICTURE_KEY, WEIGHTS_KEY = "twinlens.model", "twinlens.picture", "twinlens.weights"
"""Keys of a graph's metadata: settings as JSON, and SHA-256 of the weights behind it."""

THRESHOLD_KEY = "twinlens.threshold"
"""Key of an exported graph's metadata, for programs without twinlens."""

HUB = "https://huggingface.co/"  # the address of timm's weights
GALLERY_MODELS = "models"  # the folder of a gallery that holds the copy of its model
FINGERPRINT = "^[0-9a-f]{16}$"
COPY_AGAIN = "Copy the whole folder again, or train again."

Fingerprint = Annotated[str, Field(pattern=FINGERPRINT)]
"""A model's fingerprint, see `fingerprint_of`; it is a name of a folder in galleries."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
GraphName = Literal["model.onnx", "comparator.onnx", "model.xml", "model.bin"]


@dataclass(frozen=True)
class Origin:
    """The training data of a model, so that it can later be evaluated on unseen pictures.

    Attributes:
        source: path or name of the data.
        fingerprint: SHA-256 of the data's table.
        seed: random seed of the run.
        data: settings of reading and splitting.
        record: id of the `model.training_record` that lies beside the model; None in format 1.
        identities: `hash_identities` of the training identities; empty since format 2.
        refitted: whether the model was fitted to the validation pictures too, in the end.
    """

    source: str
    fingerprint: str
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    data: DataSettings
    record: str | None = None
    identities: tuple[str, ...] = ()
    refitted: bool = False


@dataclass(frozen=True)
class StartRecord:
    """The pretrained weights that training began with.

    Attributes:
        name: timm's name of network and weights, or the file's name.
        licence: as timm records it; "unknown" for a file of the user.
        source: address or file name.
        trained_on: pictures of the pretraining, in words.
        fingerprint: SHA-256 of the table of these pictures, if twinlens trained on them.
        identities: number of their identities, if known.
    """

    name: str
    licence: str
    source: str
    trained_on: str
    fingerprint: str | None = None
    identities: int | None = None


class ModelDescription(BaseModel):
    """Contents of `model.json` in formats 1 to 3.

    Formats 1 and 2 differ in `origin`. Format 3 has graphs, which its fingerprint covers; a model
    of an older format keeps its fingerprint when it is completed.

    Attributes:
        start: pretrained weights of the network; None if it learned from nothing.
        members: of a fused model (`model.fused`); empty for all others.
        weights: SHA-256 of `model.safetensors`; None in exports, which cannot be learned on.
        graphs: SHA-256 of each graph; empty before completion.
        precision: of the graph's arithmetic.
        resize: whether the graph takes pictures of the size `picture.size`, or of any size.
        domain: what the model was calibrated on (`measure.domain`); None if unknown.
        face: crop of the faces that it compares; None for a model of other pictures. It does not
            change the embedding of a crop, so the fingerprint leaves it out.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1, 2, 3] = FORMAT
    twinlens: str = __version__
    picture: PictureSettings
    model: ModelSettings
    members: Annotated[tuple[Member, ...], Field(max_length=100, strict=False)] = ()
    weights: Sha256 | None
    graphs: dict[GraphName, Sha256] = Field(default_factory=dict)
    precision: Literal["float32", "int8"] = "float32"
    resize: Literal["outside", "inside"] = "outside"
    fingerprint: Fingerprint
    calibration: dict[str, Any] | None = None
    domain: dict[str, Any] | None = None
    face: FaceSettings | None = None
    origin: Origin | None = None
    start: StartRecord | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        """Refuse a fused model without members, and a graph without a hash, loaded unchecked."""
        if (self.model.backbone == "fused") != bool(self.members):
            raise ValueError("a fused model has members, and no other has")
        dim = sum(member.model.embedding for member in self.members)
        if self.members and dim != self.model.embedding:
            raise ValueError(
                f"embeddings of the members have {dim} numbers, that of the model "
                f"{self.model.embedding}"
            )
        learned = [COMPARATOR_GRAPH] if self.model.comparator in LEARNED_COMPARATORS else []
        needed = [{*names, *learned} for names in ((GRAPH,), OPENVINO_FILES)]
        if self.graphs and not any(names <= self.graphs.keys() for names in needed):
            raise ValueError(
                f"graphs must name {' and '.join(sorted(needed[0]))}, "
                f"found {' and '.join(sorted(self.graphs))}"
            )
        return self


@dataclass(frozen=True)
class StoredModel:
    """A model folder that was read and checked; its graphs are not loaded yet."""

    path: Path
    description: ModelDescription

    @property
    def weights_file(self) -> Path:
        """Weights of encoder and comparator; each name begins with "encoder." or "comparator."."""
        return self.path / WEIGHTS

    @property
    def num_embedding(self) -> int:
        """Dimensions D of the embedding."""
        return self.description.model.embedding


def hash_identities(names: Sequence[str]) -> tuple[str, ...]:
    """Sorted hashes of identity names as in format 1: without a key, so names can be guessed.

    >>> hash_identities(["bob", "alice", "bob"])
    ('230550268730', '9520f02d7dc8')
    """
    # Folder names that are not UTF-8 reach Python as lone surrogates.
    encoded = {name.encode("utf-8", "surrogatepass") for name in names}
    return tuple(sorted(hashlib.blake2b(name, digest_size=6).hexdigest() for name in encoded))


def model_folder(path: str | Path) -> Path:
    """The model folder at `path`, inside the run folder `path`, or of a model at the hub.

    Raises:
        ModelError: no model found.
        MissingExtraError: a model at the hub, without huggingface_hub.
    """
    if is_hub_address(path):
        return download_model(path, MODEL_FILES, MAX_SIZE)
    path = Path(path)
    try:
        for folder in (path, path / "model"):
            if (folder / DESCRIPTION).is_file():
                return folder
    except OSError as error:  # A name that is too long, a folder without permission.
        raise ModelError(f"{one_line(str(path))} is not a model: {error.strerror}") from error
    for inner in sorted(path.glob(f"{GALLERY_MODELS}/*/{DESCRIPTION}")):
        raise ModelError(
            f"{path} is a gallery, not a model; its model is {inner.parent}. `twinlens gallery "
            f"calibrate {path}` sets a gallery's threshold, and `twinlens identify` queries it"
        )
    reason = "it holds no model.json" if path.exists() else "nothing is there"
    raise ModelError(
        f"{one_line(str(path), None)} is not a model: {reason}. Give the run folder of `twinlens "
        "train`, or its `model`."
    )


def read_stored_model(path: str | Path) -> StoredModel:
    """Read and check a model folder, or the one inside a run folder.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    folder = model_folder(path)
    values = read_values(folder)
    description = _described(folder, values)
    if description.fingerprint != fingerprint_of(values):
        raise damaged_model(
            folder,
            f"{DESCRIPTION} was changed after it was written, which would change the embeddings",
        )
    # Galleries and exports hold the graphs only.
    is_needed = not description.graphs or (folder / WEIGHTS).exists()
    if is_needed and not _is_file_of(folder / WEIGHTS, description.weights):
        raise damaged_model(
            folder, f"{WEIGHTS} is missing or is not the file that {DESCRIPTION} names"
        )
    for name, expected in description.graphs.items():
        _check_graph(folder / name, expected, description)
    return StoredModel(folder, description)


def read_description(folder: Path) -> ModelDescription:
    """Read `model.json` alone, without a check of the files that it names.

    Raises:
        ModelError: missing, damaged, or of a newer format.
    """
    return _described(folder, read_values(folder))


def _described(folder: Path, values: Mapping[str, Any]) -> ModelDescription:
    try:
        return ModelDescription.model_validate(values)
    except ValidationError as error:
        raise damaged_model(folder, f"{DESCRIPTION}: {validation_problems(error)}") from error


def _is_file_of(weights: Path, expected: str | None) -> bool:
    """Whether a file of weights has the hash that a description names."""
    try:
        read_layout(weights)  # A sparse file would be hashed for hours.
        return file_sha256(weights) == expected
    except (OSError, ValueError):
        return False


def _check_graph(file: Path, expected: str, description: ModelDescription) -> None:
    """Check a file that answers, before anything of it is loaded.

    Raises:
        ModelError: missing, damaged, of another model, or of other weights.
    """
    try:
        metadata = dict[str, str]()
        if file.suffix == ".onnx":
            metadata = read_onnx_header(file).metadata
        elif not file.is_file():
            raise ValueError("it is missing, or no regular file")
        elif file.stat().st_size > MAX_SIZE:  # A sparse file would be hashed for hours.
            raise ValueError(f"it has more than {MAX_SIZE:,} bytes")
        is_same = file_sha256(file) == expected
    except (OSError, ValueError) as error:
        raise damaged_model(file.parent, f"{file.name}: {first_line(error)}") from error
    if file.name == GRAPH and not _describes(metadata, description):
        raise damaged_model(
            file.parent, f"{file.name} and {DESCRIPTION} disagree: they are of different networks"
        )
    made_from = metadata.get(WEIGHTS_KEY) if description.weights is not None else None
    if made_from not in (None, description.weights):
        raise damaged_model(
            file.parent, f"{file.name} and {WEIGHTS} disagree: they hold different weights"
        )
    if not is_same:
        raise damaged_model(file.parent, f"{file.name} is not the file that {DESCRIPTION} names")


def _describes(metadata: Mapping[str, str], description: ModelDescription) -> bool:
    """Whether the metadata of a graph names the network and the pictures of a description."""
    try:
        model = ModelSettings.model_validate_json(metadata[MODEL_KEY])
        picture = PictureSettings.model_validate_json(metadata[PICTURE_KEY])
    except (KeyError, ValidationError):
        return False
    return (model, picture) == (description.model, description.picture)


def read_values(folder: Path) -> dict[str, Any]:
    """`model.json` as it was written, of a format that this version reads.

    Raises:
        ModelError: missing, no JSON object, or of a newer format.
    """
    try:
        values = read_json(folder / DESCRIPTION)
    except (OSError, ValueError) as error:
        raise damaged_model(folder, f"{DESCRIPTION}: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise damaged_model(folder, f"{DESCRIPTION} holds no JSON object")
    version = values.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ModelError(
            f"the model {folder} has format {version}, and twinlens {__version__} reads formats up "
            f"to {FORMAT}: upgrade twinlens"
        )
    return values


def damaged_model(folder: Path, problem: str) -> ModelError:
    """The error for a model folder with invalid contents."""
    return ModelError(f"the model {folder} is damaged: {' '.join(problem.split())}. {COPY_AGAIN}")


def graph_metadata(stored: StoredModel) -> dict[str, str]:
    """The metadata of a model's graph; empty for a graph of OpenVINO."""
    file = stored.path / GRAPH
    return read_onnx_header(file).metadata if file.is_file() else {}


def write_description(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `model.json`; an older one is replaced."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Names of files need not be UTF-8.
    write_text(folder / DESCRIPTION, text.encode("utf-8", "backslashreplace").decode())


def store_calibration(
    stored: StoredModel, calibration: dict[str, Any], domain: dict[str, Any] | None = None
) -> StoredModel:
    """Write a calibration and its domain into a model folder; all else there stays as it is.

    Raises:
        ModelError: a model in the hub's cache, whose files are links.
    """
    if (stored.path / DESCRIPTION).is_symlink():
        raise ModelError(
            f"the model {stored.path} belongs to the hub's cache: copy its folder, and calibrate "
            "the copy"
        )
    values = {"calibration": calibration, "domain": domain}
    before = read_values(stored.path)
    written = before | values
    if domain is None and "domain" not in before:  # As in files of earlier versions.
        del written["domain"]
    write_description(stored.path, written)
    return replace(stored, description=stored.description.model_copy(update=values))


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """16 hex digits over all that decides an answer, as written: picture, model, weights and, since
    format 3, the graphs and their kind.
    """
    keys = ["picture", "model", "weights"]
    if values.get("format", FORMAT) not in (1, 2):
        keys += ["graphs", "precision", "resize"]
    if values.get("members"):
        keys.append("members")
    parts = {key: values.get(key) for key in keys}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
