"""Clustering beside scikit-learn's average linkage of all pairs, and how large it can get.

`python -m benchmarks.clusters RUN DATA [--root ROOT] [--num 100000] [--method hdbscan]` takes the
embeddings of the pictures that the model has not seen and makes many more identities like them:
centres are drawn from the normal distribution of the real identities' centres, and each has the
pictures of a real identity, as they lie around its centre. It prints seconds, the largest resident
memory and the B-cubed scores, of `linkage`, `hdbscan` or `scikit-learn` (its HDBSCAN of all pairs).
With `--quality` it compares methods and cuts on the real pictures, by split.

Prediction: slower than scikit-learn's compiled code at 2,000 pictures, where all pairs are no
matter; a million pictures by HDBSCAN on the k-NN graph in half an hour and 4 GB, where all pairs
would need 4 TB.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.cluster import HDBSCAN as AllPairs  # noqa: N811

from benchmarks.peak import peak_mb
from benchmarks.table import Line
from benchmarks.timing import compare
from twinlens.clusters.constraints import Constraints
from twinlens.clusters.knn_graph import nearest_neighbours
from twinlens.clusters.linkage import cluster_embeddings
from twinlens.clusters.method import HDBSCAN, LEAST, LINKAGE, METHODS, Cut, cluster_by
from twinlens.commands.selection import select_pictures
from twinlens.match.matcher import Matcher
from twinlens.measure.clustering import b_cubed
from twinlens.model.comparators import Cosine, TorchComparison

CUTS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7)


def lines() -> Iterator[Line]:
    """2,000 pictures of 200 identities around random centres."""
    from sklearn.cluster import AgglomerativeClustering

    rng = np.random.default_rng(0)
    label = np.arange(2_000) % 200
    emb = rng.standard_normal((200, 64))[label] + 0.5 * rng.standard_normal((2_000, 64))
    emb = emb.astype(np.float32)
    comparison = TorchComparison(Cosine())
    peer = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=0.5
    )
    ours = cluster_embeddings(emb, comparison, threshold=0.5, angular=True)
    assert b_cubed(ours.label, peer.fit_predict(emb))[2] == 1
    yield compare(
        "clusters of 2000 pictures", "scikit-learn, average linkage",
        lambda: cluster_embeddings(emb, comparison, threshold=0.5, angular=True),
        lambda: peer.fit_predict(emb), rounds=3,
    ).line()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--method", choices=(*METHODS, "scikit-learn"), default=HDBSCAN)
    parser.add_argument("--min-size", type=int, default=LEAST)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--each", type=int, help="with --quality: at most so many of an identity")
    args = parser.parse_args()
    matcher = Matcher.load(args.run)
    if args.quality:
        for split in ("val", "test"):
            emb, label = embedded(matcher, args.data, args.root, split)
            few = first_of_each(label, args.each)
            quality(matcher, emb[few], label[few], split)
    else:
        emb, label = embedded(matcher, args.data, args.root, "test")
        scale(matcher, emb, label, args.num, args.method, args.min_size)


def embedded(matcher: Matcher, data: str, root: str | None, split: str) -> tuple[Any, Any]:
    chosen = select_pictures(matcher, data, split=split, prefer=split, root=root)
    return matcher.embed_pixels(chosen.pixels), chosen.table.labels()


def first_of_each(label: np.ndarray, each: int | None) -> np.ndarray:
    if each is None:
        return np.arange(len(label))
    return np.concatenate([np.flatnonzero(label == name)[:each] for name in np.unique(label)])


# --- how well -----------------------------------------------------------------------------------


def quality(matcher: Matcher, emb: np.ndarray, label: np.ndarray, split: str) -> None:
    """B-cubed precision/recall/F and the number of groups, by method and cut."""
    threshold = matcher.require_calibration().threshold
    print(f"{split}: {len(emb)} pictures of {len(np.unique(label))} identities; cuts are multiples "
          f"of the pair threshold {threshold:.3f}")  # fmt: skip
    methods = by_cut(matcher, emb)
    print(f"{'cut':>5}  " + "  ".join(f"{name:24}" for name in methods))
    for cut in CUTS:
        result = [shown(divide(cut * threshold), label) for divide in methods.values()]
        print(f"{cut:5}  " + "  ".join(f"{words:24}" for words in result), flush=True)
    for least in (2, 3, 5):
        print(f"HDBSCAN, at least {least} pictures: {shown(hdbscan(matcher, emb, least), label)}")


def by_cut(matcher: Matcher, emb: np.ndarray) -> dict[str, Callable[[float], np.ndarray]]:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import squareform
    from sklearn.cluster import AgglomerativeClustering

    dist, angular = distances(matcher, emb), matcher.settings.comparator == "cosine"
    trees = {name: linkage(squareform(dist), name) for name in ("average", "complete")}
    near = nearest_neighbours(emb, matcher.comparison, angular=angular)
    first = np.repeat(np.arange(len(emb)), near.row.shape[1])
    known = csr_matrix((near.distance.ravel(), (first, near.row.ravel())), shape=dist.shape)

    def ours(cut: float) -> np.ndarray:
        result = cluster_embeddings(emb, matcher.comparison, threshold=cut, angular=angular)
        return result.label

    def connected(cut: float) -> np.ndarray:
        close = near.distance.ravel() <= cut
        graph = csr_matrix((close[close], (first[close], near.row.ravel()[close])), dist.shape)
        result: np.ndarray = connected_components(graph, directed=False)[1]
        return result

    def along_edges(cut: float) -> np.ndarray:
        made = AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage="average", distance_threshold=cut,
            connectivity=known.maximum(known.T),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # It joins the graph's parts.
            result: np.ndarray = made.fit_predict(dist)
        return result

    return {
        "twinlens": ours,
        "average, all pairs": lambda cut: fcluster(trees["average"], cut, "distance"),
        "complete, all pairs": lambda cut: fcluster(trees["complete"], cut, "distance"),
        "scikit-learn, kNN graph": along_edges,
        "connected components": connected,
    }


def hdbscan(matcher: Matcher, emb: np.ndarray, least: int) -> np.ndarray:
    """With what it takes for noise as groups of one."""
    made = AllPairs(min_cluster_size=least, min_samples=1, metric="precomputed", copy=True)
    return alone_if_noise(made.fit_predict(distances(matcher, emb).astype(np.float64)))


def alone_if_noise(label: np.ndarray) -> np.ndarray:
    return np.where(label < 0, len(label) + np.arange(len(label)), label)


def distances(matcher: Matcher, emb: np.ndarray) -> np.ndarray:
    dist = matcher.comparison.matrix(emb, emb)
    dist = (dist + dist.T) / 2
    np.fill_diagonal(dist, 0)
    return dist


def shown(result: np.ndarray, label: np.ndarray) -> str:
    precision, recall, f = b_cubed(result, label)
    return f"{precision:.2f} {recall:.2f} {f:.3f} {len(np.unique(result)):4}"


# --- how large ----------------------------------------------------------------------------------


def more(emb: np.ndarray, label: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """`num` embeddings of new identities."""
    rng = np.random.default_rng(0)
    names = np.unique(label)
    centres = np.stack([emb[label == name].mean(axis=0) for name in names])
    result = np.empty((num, emb.shape[1]), dtype=np.float32)
    labels = np.empty(num, dtype=np.int64)
    done = identity = 0
    while done < num:
        which = rng.integers(len(names))
        mix = rng.standard_normal(len(names)) / np.sqrt(len(names) - 1)
        centre = centres.mean(axis=0) + mix @ (centres - centres.mean(axis=0))
        around = (centre + emb[label == names[which]] - centres[which])[: num - done]
        around /= np.linalg.norm(around, axis=1, keepdims=True)  # As the model's own.
        result[done : done + len(around)] = around
        labels[done : done + len(around)] = identity
        done, identity = done + len(around), identity + 1
    return result, labels


def scale(
    matcher: Matcher, emb: np.ndarray, label: np.ndarray, num: int, method: str, least: int
) -> None:
    emb, labels = more(emb, label, num)
    before = peak_mb()
    start, begun = time.perf_counter(), time.process_time()
    angular = matcher.settings.comparator == "cosine"
    cut = Cut(None, None, angular, least=least)
    if method == LINKAGE:
        cut = Cut(matcher.require_calibration().threshold, None, angular)
    if method == "scikit-learn":
        made = AllPairs(min_cluster_size=least, min_samples=1, copy=True)
        result = alone_if_noise(made.fit_predict(emb))
    else:
        result = cluster_by(cut, emb, matcher.comparison, Constraints()).label
    seconds, cpu = time.perf_counter() - start, time.process_time() - begun
    scores = b_cubed(result, labels)
    size = np.bincount(np.unique(result, return_inverse=True)[1])
    print(
        f"{method}: {len(emb):,} x {emb.shape[1]}, {labels[-1] + 1:,} identities: {seconds:.0f} s, "
        f"{cpu:.0f} s of CPU; peak RSS {peak_mb():.0f} MB ({before:.0f} MB before); "
        f"{np.count_nonzero(size > 1):,} clusters, {np.count_nonzero(size == 1):,} alone; "
        f"B-cubed P {scores[0]:.3f}, R {scores[1]:.3f}, F {scores[2]:.3f}"
    )


if __name__ == "__main__":
    main()
