"""Recall at 1 and MAP@R beside pytorch-metric-learning's AccuracyCalculator.

Prediction: two to three times as fast: one sort by distance and rightness, against a k-nearest
search in faiss or torch and its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from benchmarks.timing import Row, compare
from twinlens.measure.protocols import retrieval
from twinlens.model.comparators import Euclidean, NumpyComparison

NUM, DIM, CLASSES = 10_000, 64, 200


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    label = np.arange(NUM) % CLASSES
    emb = rng.standard_normal((NUM, DIM)) + rng.standard_normal((CLASSES, DIM))[label]
    emb = emb.astype(np.float32)
    forged = np.zeros(NUM, dtype=bool)
    comparison = NumpyComparison(Euclidean())
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False), batch_size=1000),
    )
    tensor, labels = torch.from_numpy(emb), torch.from_numpy(label)
    ours = retrieval(emb, label, forged, comparison, ks=(1,), replicates=0)
    theirs = calculator.get_accuracy(tensor, labels)
    assert ours is not None
    assert ours.map_at_r.value is not None
    assert abs(ours.map_at_r.value - theirs["mean_average_precision_at_r"]) < 1e-4
    yield compare(
        f"recall at 1 and MAP@R, {NUM} embeddings", "pytorch-metric-learning calculator",
        lambda: retrieval(emb, label, forged, comparison, ks=(1,), replicates=0),
        lambda: calculator.get_accuracy(tensor, labels), rounds=3,
    )  # fmt: skip
