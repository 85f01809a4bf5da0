"""What was measured of a model on decoded pictures, in every protocol that applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.measure.calibration import Calibration
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

__all__ = ["Measured", "measure"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured; a part that does not apply to the pictures is None.

    `table`, `pixels` and `embeddings` are what it was measured on, for a report.
    """

    split: str | None = None
    identity_disjoint: bool | None = None
    verification: Verification | None = None
    retrieval: Retrieval | None = None
    one_shot: Mapping[str, OneShot] = field(default_factory=dict)
    trials: PairTrials | OneShotTrials | None = None
    table: ImageTable | None = None
    pixels: NDArray[np.uint8] | None = None
    embeddings: NDArray[np.float32] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        found: dict[str, Any] = {}
        if self.split is not None:
            found |= {"split": self.split, "identity_disjoint": self.identity_disjoint}
        for name in ("verification", "retrieval", "trials"):
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
        return "\n".join(lines)


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
    if not np.isfinite(emb_ND).all():
        raise DataError("some embeddings are not numbers: the model is broken, train it again")
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
