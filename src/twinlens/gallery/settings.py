"""Settings of a gallery, which are stored with its templates.

`GallerySettings` is the schema of format 1. `open_set` is the gallery's calibration and `index`
the measurement by `optimize`, both null at first; `pairs` is the model's calibration. `deletions`
counts erasures begun, `purged` those of which no byte is left. Format 2 has `feedback`, or the
source of the calibration if that is other pictures than the templates. Format 3 is that of a
sharded gallery.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from twinlens._version import __version__
from twinlens.errors import GalleryError, validation_problems
from twinlens.gallery.corrections import Feedback, unpacked
from twinlens.gallery.metric import Metric
from twinlens.gallery.store import Store
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import as_euclidean
from twinlens.measure.open_set_calibration import OpenSetCalibration
from twinlens.model.stored import DESCRIPTION, GALLERY_MODELS, Fingerprint
from twinlens.model.training_record import RECORD_FILE, find_record

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["FORMAT", "GallerySettings", "GalleryState", "IndexMeasurement",
           "Shards", "in_format", "model_files", "model_settings", "new_settings",
           "read_settings", "read_state"]  # fmt: skip

FORMAT = 3
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0, le=2**53)]
Partitions = Annotated[int, Field(ge=1, le=1024)]
Text = Annotated[str, Field(max_length=200)]
PartName = Annotated[str, Field(max_length=200, pattern=r"^[^/\\.][^/\\]*$")]
Floats = NDArray[np.float32]


class IndexMeasurement(BaseModel):
    """The index as `optimize` measured it.

    `recall` is the share of the true 10 nearest templates that a search of `nprobes` of the
    `partitions` finds.
    """

    model_config = STRICT

    partitions: Partitions
    nprobes: Partitions
    recall: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _probes_no_more_than_there_are(self) -> Self:
        if self.nprobes > self.partitions:
            raise ValueError(f"nprobes: found {self.nprobes} of {self.partitions} partitions")
        return self


class Shards(BaseModel):
    """The parts of a sharded gallery.

    `names` are the parts' folders inside the gallery. `by` is "hash" if a new identity goes to the
    part of its hash, "tenant" if the parts are galleries to enrol into by themselves.
    """

    model_config = STRICT

    names: list[PartName] = Field(min_length=1, max_length=1024)
    by: Literal["hash", "tenant"]


class GallerySettings(BaseModel):
    """Settings of a gallery in format 1 to 3."""

    model_config = STRICT

    format: Literal[1, 2, 3]
    created: Text  # ISO 8601
    deletions: Count
    purged: Count
    twinlens: Text
    fingerprint: Fingerprint
    comparator: Literal["euclidean", "squared-euclidean", "cosine", "sigmoid", "network"]
    scale: float = Field(gt=0, le=1e6)
    pairs: dict[str, Any] | None
    open_set: dict[str, Any] | None
    index: IndexMeasurement | None
    calibrated_on: Literal["pictures"] | None = None
    feedback: Feedback | None = None
    shards: Shards | None = None

    @field_validator("created")
    @classmethod
    def _is_a_time(cls, created: str) -> str:
        datetime.fromisoformat(created)
        return created

    @model_validator(mode="after")
    def _purged_what_was_deleted(self) -> Self:
        if self.purged > self.deletions:
            raise ValueError(f"purged: found {self.purged} of {self.deletions} deletions")
        return self


@dataclass(frozen=True)
class GalleryState:
    """Settings and size of one version of a gallery.

    Attributes:
        version: version of the store.
        settings: the settings stored in it.
        num_templates: M.
    """

    version: int
    settings: GallerySettings
    num_templates: int

    @cached_property
    def pairs(self) -> Calibration | None:
        """The model's calibration for pairs; None if it had none.

        Raises:
            ModelError: damaged.
        """
        stored = self.settings.pairs
        return None if stored is None else Calibration.from_json(stored)

    @cached_property
    def open_set(self) -> OpenSetCalibration | None:
        """The calibration in force, with the corrections; None before `Gallery.calibrate`.

        Raises:
            ModelError: damaged; the gallery can be calibrated again all the same.
        """
        feedback = self.settings.feedback
        if feedback is None or feedback.open_set is None or self.settings.open_set is None:
            return self.calibrated
        return OpenSetCalibration.from_json(feedback.open_set)

    @cached_property
    def calibrated(self) -> OpenSetCalibration | None:
        """The calibration as `Gallery.calibrate` found it, without corrections.

        Raises:
            ModelError: damaged; the gallery can be calibrated again all the same.
        """
        stored = self.settings.open_set
        return None if stored is None else OpenSetCalibration.from_json(stored)

    @cached_property
    def metric(self) -> Metric | None:
        """The metric from corrections; None if it is not applied."""
        feedback = self.settings.feedback
        if feedback is None or feedback.metric is None or self.settings.open_set is None:
            return None
        return Metric.of(feedback.metric)

    @cached_property
    def vetoes(self) -> dict[str, Floats]:
        """Vectors (V, D) of pictures that are not of an identity, by its name."""
        vectors: dict[str, list[Floats]] = {}
        feedback = self.settings.feedback
        for one in [] if feedback is None else feedback.corrections:
            picture = None if feedback is None else feedback.pictures.get(one.pictures[0])
            if one.kind == "is-not" and one.identity is not None and picture is not None:
                vectors.setdefault(one.identity, []).append(unpacked(picture.vector))
        return {identity: np.stack(rows) for identity, rows in vectors.items()}

    @property
    def rule(self) -> str:
        """Fusion rule for the templates of an identity."""
        return "nearest" if self.open_set is None else self.open_set.rule

    @property
    def index(self) -> IndexMeasurement | None:
        """The measured index; None without one."""
        return self.settings.index

    @property
    def nprobes(self) -> int | None:
        """Partitions of the index to search; None without one."""
        return None if self.index is None else self.index.nprobes


def read_state(store: Store) -> GalleryState:
    """The state of the newest version.

    Raises:
        GalleryError: a newer format, or damaged settings.
    """
    version, values = store.version, store.settings()
    settings = read_settings(store.place, values)
    if (feedback := settings.feedback) is not None:
        lengths = {len(unpacked(picture.vector)) for picture in feedback.pictures.values()}
        if feedback.metric is not None:
            num_directions = len(feedback.metric.damping)
            lengths.add(len(unpacked(feedback.metric.directions)) // num_directions)
        if lengths - {store.dim}:
            raise GalleryError(
                f"the gallery {store.place} is damaged: feedback: found vectors of "
                f"{min(lengths - {store.dim})} numbers instead of {store.dim}. Restore it from a "
                "copy"
            )
    return GalleryState(version, settings, store.count())


def read_settings(place: str, values: Mapping[str, Any]) -> GallerySettings:
    """Check stored settings.

    Args:
        place: gallery that they were read from, for the message.
        values: settings as stored.
    Raises:
        GalleryError: a newer format, or damaged settings; names every problem.
    """
    stored_format = values.get("format")
    if type(stored_format) is int and stored_format > FORMAT:
        raise GalleryError(
            f"the gallery {place} has format {stored_format}, but twinlens {__version__} reads "
            f"formats up to {FORMAT}: upgrade twinlens"
        )
    try:
        return GallerySettings.model_validate(values)
    except ValidationError as error:
        raise GalleryError(
            f"the gallery {place} is damaged: {validation_problems(error)}. Restore it from a copy"
        ) from error


def in_format(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the number of the oldest format that can hold them."""
    number = 2 if settings.keys() & {"feedback", "calibrated_on"} else 1
    return {**settings, "format": 3 if "shards" in settings else number}


def new_settings(matcher: Matcher) -> dict[str, Any]:
    """Settings of an empty gallery, as stored."""
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "deletions": 0,
        "purged": 0,
        **model_settings(matcher),
    }


def model_settings(matcher: Matcher) -> dict[str, Any]:
    """The settings that change with the model, as stored."""
    plain = as_euclidean(matcher.comparison)
    return {
        "twinlens": __version__,
        "fingerprint": matcher.fingerprint,
        "comparator": matcher.settings.comparator,
        "scale": 1.0 if plain is None else plain.scale,
        "pairs": matcher.stored.description.calibration,
        "open_set": None,
        "index": None,
    }


@contextmanager
def model_files(matcher: Matcher) -> Iterator[dict[str, Path]]:
    """A model's files, and the hashes of its training record, by their names below a gallery.

    The weights, which only learning needs, and the thumbnails of the record stay in the run.
    """
    folder = f"{GALLERY_MODELS}/{matcher.fingerprint}"
    names = (*matcher.stored.description.graphs, DESCRIPTION)
    files = {name: matcher.path / name for name in names}
    record = find_record(matcher.path, matcher.origin)
    with tempfile.TemporaryDirectory() as temporary:
        if record is not None:
            file = Path(temporary) / RECORD_FILE
            record.without_thumbnails().save(file)
            files = {RECORD_FILE: file, **files}
        yield {f"{folder}/{name}": path for name, path in files.items()}
