"""What a gallery says of itself: the settings that are written with its templates.

`open_set` is the gallery's calibration and `index` what `optimize` measured, both null at first;
`pairs` is the model's calibration. `deletions` counts erasures begun, `purged` those of which no
byte is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinlens._version import __version__
from twinlens.errors import GalleryError
from twinlens.gallery.store import Store
from twinlens.measure.calibration import Calibration
from twinlens.measure.open_set_calibration import OpenSetCalibration

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["FORMAT", "MODEL_FILES", "State", "model_files", "model_settings", "new_settings",
           "read_state"]  # fmt: skip

FORMAT = 1
MODEL_FILES = ("model.json", "model.safetensors")


@dataclass(frozen=True)
class State:
    """What a version of a gallery says of itself.

    Attributes:
        version: of the store.
        settings: as they are written.
        num_templates: how many there are.
    """

    version: int
    settings: Mapping[str, Any]
    num_templates: int

    @cached_property
    def pairs(self) -> Calibration | None:
        """The model's calibration for pairs; None where it had none.

        Raises:
            ModelError: it is damaged.
        """
        found = self.settings["pairs"]
        return None if found is None else Calibration.from_json(found)

    @cached_property
    def open_set(self) -> OpenSetCalibration | None:
        """The gallery's own calibration; None before `Gallery.calibrate`.

        Raises:
            ModelError: it is damaged; the gallery can be calibrated again all the same.
        """
        found = self.settings["open_set"]
        return None if found is None else OpenSetCalibration.from_json(found)

    @property
    def rule(self) -> str:
        """How the templates of an identity are fused."""
        return "nearest" if self.open_set is None else self.open_set.rule

    @property
    def index(self) -> Mapping[str, Any] | None:
        """What `optimize` measured of the index; None without one."""
        found: Mapping[str, Any] | None = self.settings["index"]
        return found

    @property
    def nprobes(self) -> int | None:
        """Partitions of the index to search; None without one."""
        return None if self.index is None else int(self.index["nprobes"])


def read_state(store: Store) -> State:
    """The state of the newest version.

    Raises:
        GalleryError: of a newer format, or damaged.
    """
    version, settings = store.version, store.settings()
    if int(settings["format"]) > FORMAT:
        raise GalleryError(
            f"the gallery {store.place} has format {settings['format']}, and this twinlens "
            f"{__version__} reads up to {FORMAT}: upgrade twinlens"
        )
    return State(version, settings, store.count())


def new_settings(matcher: Matcher) -> dict[str, Any]:
    """The settings of an empty gallery."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "deletions": 0,
        "purged": 0,
        **model_settings(matcher),
    }


def model_settings(matcher: Matcher) -> dict[str, Any]:
    """The settings that change with the model."""
    plain = matcher.plain
    return {
        "twinlens": __version__,
        "fingerprint": matcher.fingerprint,
        "comparator": matcher.bundle.encoder.model_settings.comparator,
        "scale": 1.0 if plain is None else plain.scale,
        "pairs": matcher.bundle.calibration,
        "open_set": None,
        "index": None,
    }


def model_files(matcher: Matcher) -> dict[str, Path]:
    """A model's files, by their names below a gallery."""
    return {f"models/{matcher.fingerprint}/{name}": matcher.path / name for name in MODEL_FILES}
