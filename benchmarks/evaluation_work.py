"""One evaluation in a process of its own: `python -m benchmarks.evaluation_work WHO N D I THREADS`.

Prints its seconds, its figures and how many MB it needed above what it held before, as JSON. What
is loaded and made ready once is not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.peak import peak_mb


def main() -> None:
    who, num, dim, identities, threads = sys.argv[1], *map(int, sys.argv[2:])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    small, big = (_embeddings(n, dim, i) for n, i in ((500, 25), (num, identities)))
    WORK[who](*small)()
    work = WORK[who](*big)
    before = peak_mb()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mb": round(peak_mb() - before), "result": result}))


def _embeddings(num: int, dim: int, identities: int) -> tuple[NDArray[np.float32], NDArray]:
    rng = np.random.default_rng(0)
    label = np.arange(num) % identities
    emb = 1.5 * rng.standard_normal((num, dim)) + rng.standard_normal((identities, dim))[label]
    return emb.astype(np.float32), label


def _ours(emb, label) -> Callable[[], list[float]]:
    from twinlens.measure.distances import EuclideanComparison
    from twinlens.measure.retrieval import retrieval

    def work() -> list[float]:
        forged = np.zeros(len(label), dtype=bool)
        comparison = EuclideanComparison("euclidean")
        result = retrieval(emb, label, forged, comparison, ks=(1,), replicates=0)
        return [result.recall_at[1].value, result.map_at_r.value]

    return work


def _our_eer(emb, label) -> Callable[[], list[float]]:
    from twinlens.measure.distances import EuclideanComparison
    from twinlens.measure.exact_eer import exact_eer

    forged = np.zeros(len(label), dtype=bool)
    return lambda: [exact_eer(emb, label, forged, EuclideanComparison("euclidean")).eer]


def _calculator(emb, label, knn) -> Callable[[], list[float]]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", knn_func=knn)
    tensor, labels = torch.from_numpy(emb), torch.from_numpy(label)

    def work() -> list[float]:
        result = calculator.get_accuracy(tensor, labels)
        return [result[name] for name in names]

    return work


def _custom(emb, label) -> Callable[[], list[float]]:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.inference import CustomKNN

    distance = LpDistance(normalize_embeddings=False)
    return _calculator(emb, label, CustomKNN(distance, batch_size=1000))


def _oml(emb, label) -> Callable[[], list[float]]:
    import torch
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_cmc
    from oml.retrieval import RetrievalResults

    num, largest = len(label), int(np.bincount(label).max()) - 1
    tensor, labels, rows = torch.from_numpy(emb), torch.from_numpy(label), torch.arange(num)

    def work() -> list[float]:
        result = RetrievalResults(*batched_knn(tensor, rows, rows, top_n=largest, labels_gt=labels))
        # As its calc_retrieval_metrics begins; what is right is looked up once for both figures.
        right = tuple(
            torch.isin(ids, gt) for ids, gt in zip(result.retrieved_ids, result.gt_ids, strict=True)
        )
        cmc = calc_cmc(right, [len(gt) for gt in result.gt_ids], (1,), verbose=False)[0]
        # It has no MAP@R. All identities are of one size, so that R is one number.
        right_NR = torch.stack(right).double()
        precision_NR = right_NR.cumsum(1) / torch.arange(1, largest + 1)
        return [float(cmc.mean()), float((precision_NR * right_NR).mean())]

    return work


def _sklearn(emb, label) -> Callable[[], list[float]]:
    from scipy.spatial.distance import pdist
    from sklearn.metrics import roc_curve

    def work() -> list[float]:
        distance = pdist(emb)
        first, second = np.triu_indices(len(label), 1)
        far, tar, _ = roc_curve(label[first] == label[second], -distance)
        gap = far - (1 - tar)
        after = int(np.searchsorted(gap, 0))
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        return [float(far[after - 1] + share * (far[after] - far[after - 1]))]

    return work


WORK = {
    "ours": _ours,
    "our_eer": _our_eer,
    "faiss": lambda emb, label: _calculator(emb, label, None),
    "custom": _custom,
    "oml": _oml,
    "sklearn": _sklearn,
}

if __name__ == "__main__":
    main()
