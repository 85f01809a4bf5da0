"""Contents of the report as plain arrays and values.

Shapes: N pictures or pairs, D embedding dimension, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.learn.records import CandidateRow, LearningPoint
from twinlens.measure.error_rates import matches

__all__ = ["MapPictures", "OperatingPoint", "PicturePair", "ReportContent", "ScoredPairs",
           "SettingRow", "SplitCount", "worst_rows"]  # fmt: skip

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs with their distances.

    Attributes:
        distance: (N,) lower is closer.
        same: (N,) a genuine pair.
        skilled: (N,) an impostor pair in which one picture is a forgery of the other's identity.
    """

    distance: Floats
    same: Bools
    skilled: Bools | None = None

    def part(self, name: str) -> Floats:
        """Finite distances of a part: `genuine`, `impostor` (all), `skilled` or `others`."""
        skilled = np.zeros_like(self.same) if self.skilled is None else self.skilled & ~self.same
        rows = {
            "genuine": self.same,
            "impostor": ~self.same,
            "skilled": skilled,
            "others": ~self.same & ~skilled,
        }[name] & np.isfinite(self.distance)
        return self.distance[rows].astype(np.float64)

    def accepted(self, name: str, threshold: float) -> float:
        """The share of a part that `threshold` accepts; NaN for an empty part."""
        distance = self.part(name)
        return float(matches(distance, threshold).mean()) if len(distance) else math.nan


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two pictures (C, H, W), their distance, and a note below them."""

    left: Pixels
    right: Pixels
    identity_left: str
    identity_right: str
    path_left: str
    path_right: str
    distance: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class MapPictures:
    """Pictures for the map: (N, D) embeddings, N identities, (N, C, H, W) pixels (or a memmap).

    Above 600 pictures, 600 are drawn at random from `seed`, whole identities first.
    """

    embedding: Floats
    identity: Sequence[str]
    pixels: Pixels
    forged: Bools | None = None
    seed: int = 0


@dataclass(frozen=True)
class SplitCount:
    """Numbers of pictures and identities of a split: "train", "val" or "test"."""

    name: str
    pictures: int
    identities: int


@dataclass(frozen=True)
class OperatingPoint:
    """The calibrated threshold, its interval, target FAR, and number of impostor pairs."""

    threshold: float
    target_far: float
    low: float | None = None
    high: float | None = None
    impostor_pairs: int | None = None
    probability: str = ""  # "Platt scaling", "isotonic regression", or empty
    unadjusted: float | None = None  # without caution for new identities


@dataclass(frozen=True)
class SettingRow:
    """A setting, its value in words, and the reason for it."""

    key: str
    value: str
    why: str = ""


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Contents of the page.

    Attributes:
        title: name of the run or model.
        data: name of the data as the user gave it.
        results: JSON of `evaluate`; missing or null parts are not shown.
        splits: sizes of the splits; with `settings`, "train" is the training data.
        pairs: scored pairs behind the plots.
        operating: the calibration; None if the model is not calibrated.
        history: rows of the run (see `plots.learning_curves`), empty for a loaded model.
        metric: name of a row's `val`.
        candidates: candidates on held-out pictures, the chosen model first.
        curve: learning curve over identities.
        map: pictures for the map.
        nearest_impostors: closest first.
        farthest_genuine: farthest first.
        nearest_wrong: pictures beside their nearest training picture, where that shows another
            identity; closest first.
        broken: (path, reason) of each picture that was skipped.
        findings: sentences about duplicates and leaks between splits.
        settings: settings of the run, with reasons.
        facts: (name, value): fingerprint, versions, seed, machine, times.
        command: command line that repeats the run.
    """

    title: str
    data: str
    results: Mapping[str, Any]
    splits: Sequence[SplitCount] = ()
    pairs: ScoredPairs | None = None
    operating: OperatingPoint | None = None
    history: Sequence[Mapping[str, Any]] = ()
    metric: str = "validation, 1 - EER"
    candidates: Sequence[CandidateRow] = ()
    curve: Sequence[LearningPoint] = ()
    map: MapPictures | None = None
    nearest_impostors: Sequence[PicturePair] = ()
    farthest_genuine: Sequence[PicturePair] = ()
    nearest_wrong: Sequence[PicturePair] = ()
    broken: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    settings: Sequence[SettingRow] = ()
    facts: Sequence[tuple[str, str]] = ()
    command: str = ""


def worst_rows(
    pairs: ScoredPairs,
    identity_a: Sequence[str],
    identity_b: Sequence[str],
    *,
    genuine: bool,
    max_pairs: int = 12,
    max_repeats: int = 2,
) -> list[int]:
    """Rows of the farthest genuine or the nearest impostor pairs, worst first.

    Of the same two identities (or an identity and its forger) at most `max_repeats` pairs are
    taken, so that one odd identity does not fill the page.

    Args:
        pairs: N scored pairs.
        identity_a: N identities of the left pictures.
        identity_b: N identities of the right pictures.
        genuine: whether to take genuine pairs.
        max_pairs: largest number of pairs.
        max_repeats: largest number of pairs of the same two identities.
    """
    kind = np.flatnonzero((pairs.same == genuine) & np.isfinite(pairs.distance))
    sign = -1.0 if genuine else 1.0
    taken: Counter[tuple[str, ...]] = Counter()
    rows: list[int] = []
    for row in kind[np.argsort(sign * pairs.distance[kind], kind="stable")]:
        names = tuple(sorted((identity_a[int(row)], identity_b[int(row)])))
        taken[names] += 1
        if taken[names] <= max_repeats:
            rows.append(int(row))
        if len(rows) == max_pairs:
            break
    return rows
