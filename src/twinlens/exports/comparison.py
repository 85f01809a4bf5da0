"""Comparison of an export with the model that it was made from.

Shapes: N pictures, Q pairs, D dimensions of the embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import matches
from twinlens.measure.pairs import Comparison
from twinlens.measure.verification import VerificationResult, verification

__all__ = ["ExportComparison", "LevelDifference", "PairMeasures", "compare_embeddings",
           "count_changes", "median_milliseconds"]  # fmt: skip

Floats = NDArray[np.float32]
TIMED_RUNS, TIMED_SECONDS = 30, 5.0


@dataclass(frozen=True)
class PairMeasures:
    """Verification by a model and by its export, on the same pairs of labelled pictures.

    Attributes:
        num_pictures: pictures.
        num_genuine: genuine pairs.
        num_impostor: impostor pairs.
        num_identities: identities.
        model_eer: EER of the model with its interval.
        export_eer: EER of the export.
        mean_moved: mean absolute difference of the distances.
        max_moved: largest one.
    """

    num_pictures: int
    num_genuine: int
    num_impostor: int
    num_identities: int
    model_eer: Estimate
    export_eer: Estimate
    mean_moved: float
    max_moved: float


@dataclass(frozen=True)
class LevelDifference:
    """Differences of pictures resized inside the graph and by Pillow, in grey levels of 255."""

    mean: float
    largest: int


@dataclass(frozen=True)
class ExportComparison:
    """An export beside the model that it was made from.

    Attributes:
        pairs: verification on labelled pictures; None without any.
        model_threshold: threshold of the model; None if it is not calibrated.
        export_threshold: that of the export.
        num_changed: pairs whose verdict changes, each with its own threshold; None without both.
        num_changed_at_model: the same with the model's threshold for both.
        levels: differences of resized pictures; None for resizing outside of the graph.
        model_milliseconds: median time of a picture's embedding on one thread.
        export_milliseconds: the same of the export.
        model_bytes: size of the model's graph.
        export_bytes: size of the export's.
    """

    pairs: PairMeasures | None
    model_threshold: float | None
    export_threshold: float | None
    num_changed: int | None
    num_changed_at_model: int | None
    levels: LevelDifference | None
    model_milliseconds: float
    export_milliseconds: float
    model_bytes: int
    export_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return asdict(self)


def compare_embeddings(
    table: ImageTable,
    embeddings: tuple[Floats, Floats],
    comparisons: tuple[Comparison, Comparison],
    *,
    seed: int,
) -> tuple[PairMeasures, tuple[VerificationResult, VerificationResult]] | None:
    """Measures of the same pairs by the model and by its export; None without pairs of both kinds.

    Args:
        table: N labelled pictures.
        embeddings: those of the model and of the export, shape (N, D) each.
        comparisons: their comparators.
        seed: random seed of the pairs and of the bootstrap.
    """
    try:
        model, export = (
            verification(emb_ND, table.labels(), table.forged, comparison, calibrated=None,
                         seed=seed)
            for emb_ND, comparison in zip(embeddings, comparisons, strict=True)
        )  # fmt: skip
    except DataError:
        return None
    moved_Q = np.abs(export.distance.astype(np.float64) - model.distance)
    measures = PairMeasures(
        len(table), model.num_genuine, model.num_impostor, model.num_identities,
        model.eer, export.eer, float(moved_Q.mean()), float(moved_Q.max()),
    )  # fmt: skip
    return measures, (model, export)


def count_changes(
    results: tuple[VerificationResult, VerificationResult],
    thresholds: tuple[Calibration | None, Calibration | None],
) -> tuple[int | None, int | None]:
    """Pairs whose verdict differs: each with its own threshold, and both with the model's."""
    model, export = results
    model_calibration, export_calibration = thresholds
    if model_calibration is None:
        return None, None
    before_Q = matches(model.distance, model_calibration.threshold)
    at_model = int((before_Q != matches(export.distance, model_calibration.threshold)).sum())
    if export_calibration is None:
        return None, at_model
    after_Q = matches(export.distance, export_calibration.threshold)
    return int((before_Q != after_Q).sum()), at_model


def median_milliseconds(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """The median milliseconds of each task; they take turns, so that load hits all alike."""
    times: list[list[float]] = [[] for _ in tasks]
    for task in tasks:
        task()  # The first run opens and compiles.
    end = time.perf_counter() + TIMED_SECONDS
    for _ in range(TIMED_RUNS):
        for task, own in zip(tasks, times, strict=True):
            start = time.perf_counter()
            task()
            own.append(1000 * (time.perf_counter() - start))
        if time.perf_counter() > end:
            break
    return [float(np.median(own)) for own in times]
