"""What was measured of a model on decoded pictures, in every protocol that applies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.duplicates import exact_groups
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.jobs.pictures import AgainstTraining
from twinlens.measure.calibration import Calibration
from twinlens.measure.nearest import Nearest, nearest
from twinlens.measure.protocols import (
    OneShot,
    OneShotTrials,
    PairTrials,
    Retrieval,
    Verification,
    one_shot,
    retrieval,
    verification,
)
from twinlens.model.bundle import Bundle
from twinlens.model.comparators import NumpyComparison
from twinlens.model.encoder import embed_pixels
from twinlens.progress import Progress

__all__ = ["Measured", "measure", "measure_nearest"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured; a part that does not apply to the pictures is None.

    `table`, `pixels` and `embeddings` are what it was measured on, for a report. Of `nearest`,
    the probes and the gallery are the rows `probe` and `gallery` of the table.
    """

    split: str | None = None
    identity_disjoint: bool | None = None
    verification: Verification | None = None
    retrieval: Retrieval | None = None
    one_shot: Mapping[str, OneShot] = field(default_factory=dict)
    trials: PairTrials | OneShotTrials | None = None
    nearest: Nearest | None = None
    table: ImageTable | None = None
    pixels: NDArray[np.uint8] | None = None
    embeddings: NDArray[np.float32] | None = None
    probe: NDArray[np.int64] | None = None
    gallery: NDArray[np.int64] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        found: dict[str, Any] = {}
        if self.split is not None:
            found |= {"split": self.split, "identity_disjoint": self.identity_disjoint}
        for name in ("verification", "retrieval", "trials", "nearest"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.as_json()
        if self.one_shot:
            found["one_shot"] = {key: part.as_json() for key, part in self.one_shot.items()}
        return found

    def as_text(self) -> str:
        """The figures with their intervals, a line each."""
        lines = []
        if self.split is not None:
            seen = "unseen identities" if self.identity_disjoint else "identities seen in training"
            lines.append(f"{'measured on':28} {self.split} pictures, {seen}")
        lines += [f"{name:28} {_words(figure)}" for name, figure in _flat(self.as_json())]
        if self.nearest is not None:
            lines += [f"{name:28} {words}" for name, words in self._counts(self.nearest)]
        return "\n".join(lines)

    def _counts(self, found: Nearest) -> Iterator[tuple[str, str]]:
        yield "nearest by chance", f"{found.chance:.4f}"
        yield (
            "looked up",
            f"{found.num_probes} pictures among {found.num_gallery} training pictures of "
            f"{found.num_identities} identities",
        )
        if self.split == "train":
            yield "", "each is among them itself, and so finds itself"
        if found.num_unknown:
            yield (
                "not to be found",
                f"{found.num_unknown} pictures of identities without training pictures; they "
                "count as wrong",
            )


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, part in found.items():
        if not isinstance(part, Mapping):
            continue
        full = f"{above} {name}".strip().replace("_", " ")
        if "value" in part:
            yield full.removeprefix("verification ").removeprefix("retrieval "), part
        else:
            yield from _flat(part, full)


def _words(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-  (too few pairs)"
    if figure["low"] is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f}  ({figure['low']:.4f} to {figure['high']:.4f})"


def measure(
    bundle: Bundle,
    calibration: Calibration | None,
    table: ImageTable,
    pixels_NCHW: NDArray[np.uint8],
    *,
    split: str,
    identity_disjoint: bool,
    pairs: int | None = None,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    seed: int = 0,
) -> Measured:
    """Measure a model on decoded pictures.

    Raises:
        DataError: there is no genuine or no impostor pair among them.
    """
    emb_ND = embed_pixels(bundle.encoder, pixels_NCHW, progress=Progress("embedding"))
    _refuse_broken(emb_ND)
    comparison = NumpyComparison(bundle.comparator)
    label, forged = table.labels(), table.forged
    verified = verification(
        emb_ND, label, forged, comparison, calibrated=calibration, num_pairs=pairs, seed=seed
    )
    found = one_shot(
        emb_ND, label, forged, comparison, way=way, shot=shot, episodes=episodes, seed=seed
    )
    return Measured(
        split=split,
        identity_disjoint=identity_disjoint,
        verification=verified,
        retrieval=retrieval(emb_ND, label, forged, comparison, seed=seed),
        one_shot={} if found is None else {found.key: found},
        table=table,
        pixels=pixels_NCHW,
        embeddings=emb_ND,
    )


def measure_nearest(bundle: Bundle, chosen: AgainstTraining, *, seed: int = 0) -> Measured:
    """Look pictures up among the training pictures.

    A picture that is equal to a training picture has distance 0 to it: both get one embedding,
    since a network's last bits may depend on a picture's place in its batch.

    Raises:
        DataError: embeddings that are not numbers.
    """
    emb_ND = embed_pixels(bundle.encoder, chosen.pixels, progress=Progress("embedding"))
    for rows in exact_groups([_digest(picture) for picture in chosen.pixels]):
        emb_ND[list(rows)] = emb_ND[rows[0]]
    _refuse_broken(emb_ND)
    label = chosen.table.labels()
    return Measured(
        split=chosen.split,
        identity_disjoint=chosen.identity_disjoint,
        nearest=nearest(
            emb_ND[chosen.probe], label[chosen.probe], emb_ND[chosen.gallery],
            label[chosen.gallery], NumpyComparison(bundle.comparator), seed=seed,
            progress=Progress("comparing"),
        ),
        table=chosen.table,
        pixels=chosen.pixels,
        embeddings=emb_ND,
        probe=chosen.probe,
        gallery=chosen.gallery,
    )  # fmt: skip


def _digest(picture: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def _refuse_broken(emb_ND: NDArray[np.float32]) -> None:
    if not np.isfinite(emb_ND).all():
        raise DataError("some embeddings are not numbers: the model is broken, train it again")
