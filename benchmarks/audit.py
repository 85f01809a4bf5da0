"""Labels that were made wrong on purpose, found by `twinlens audit` and by the nearest picture.

`python -m benchmarks.audit [NAME ...] [--seeds N]` takes some of the data sets. In 2 % of the
pictures the label becomes another one: any other identity at random ("swapped"), or the one of the
nearest picture of another identity ("confused"). The plain way beside ours calls a label wrong if
the nearest other picture, by the sum of the same distances, has another one. Then, on the labels as
they are, some identities are filed under two names (half of the pictures each, at random), others
pooled with another one. All figures are sums over the seeds. Pictures are not divided into test and
training: nothing is trained, and nothing was tuned on these errors but the constants in
`measure.identity_errors`, on ORL and groceries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.regret_data import DATA, characters, in_memory
from benchmarks.table import Line
from twinlens.commands.audit import LEAST
from twinlens.commands.audit_distances import untrained_features
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.learn.cross_embedding import CrossEmbeddings
from twinlens.measure.identity_errors import find_merges, find_splits
from twinlens.measure.label_errors import collect_evidence, label_errors

SHARE = 0.02
IDENTITY_SHARE = 0.05  # of the identities under two names, and of names with two identities
DATA_SETS: dict[str, Callable[[], ImageTable]] = {
    "orl": lambda: read_table(DATA / "orl_faces"),
    "omniglot": lambda: in_memory("omniglot", *characters()),
    "groceries": lambda: read_table(DATA / "groceries"),
}

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def lines(names: tuple[str, ...] = tuple(DATA_SETS), seeds: int = 3) -> Iterator[Line]:
    """A line for each data set and kind of error."""
    for name in names:
        table = DATA_SETS[name]()
        members, features = untrained_features(table, seed=0)

        cross = partial(CrossEmbeddings, members, features)
        label = table.labels()
        near = _nearest_other(cross(label, seed=0), label)
        for kind in ("swapped", "confused"):
            ours, theirs = (np.zeros(3, dtype=np.int64) for _ in range(2))
            suggested = 0
            for seed in range(seeds):
                given, wrong = _wrong(label, near if kind == "confused" else None, seed)
                distances = cross(given, seed=seed)
                errors = label_errors(collect_evidence(distances, given, np.arange(len(given))))
                listed = errors.wrong >= LEAST
                ours += _counts(listed, wrong)
                suggested += int((errors.suggestion == label)[listed & wrong].sum())
                theirs += _counts(_disagrees(distances, given), wrong)
            yield Line(
                f"{name}: labels {kind} in {SHARE:.0%}", "nearest picture",
                f"{_text(ours)}; {suggested} of {ours[0]} suggestions right", _text(theirs),
                note=f"{seeds} seeds, {len(label):,} pictures of {label.max() + 1} identities",
            )  # fmt: skip
        merged, divided = (np.zeros(3, dtype=np.int64) for _ in range(2))
        for seed in range(seeds):
            found = _identity_errors(cross, label, seed)
            merged, divided = merged + found[0], divided + found[1]
        yield Line(f"{name}: one identity under two names", "", _text(merged), "")
        yield Line(f"{name}: two identities under one name", "", _text(divided), "")


def _wrong(label: Ints, near: Ints | None, seed: int) -> tuple[Ints, Mask]:
    """Labels of which some are wrong, and which."""
    rng = np.random.default_rng([seed, 17])
    given, wrong = label.copy(), np.zeros(len(label), dtype=np.bool_)
    wrong[rng.choice(len(label), round(SHARE * len(label)), replace=False)] = True
    for row in np.flatnonzero(wrong):
        others = np.delete(np.arange(label.max() + 1), label[row])
        given[row] = rng.choice(others) if near is None else near[row]
    return given, wrong


def _nearest_other(distances: CrossEmbeddings, label: Ints) -> Ints:
    """The identity of the nearest picture of another identity, (N,)."""
    near = np.empty(len(label), dtype=np.int64)
    for rows, dist_MBN in distances.blocks(128):
        dist_BN = np.where(label[rows][:, None] == label, np.inf, dist_MBN.sum(0))
        near[rows] = label[dist_BN.argmin(1)]
    return near


def _disagrees(distances: CrossEmbeddings, label: Ints) -> Mask:
    """Whether the nearest other picture has another label, (N,)."""
    result = np.empty(len(label), dtype=np.bool_)
    for rows, dist_MBN in distances.blocks(128):
        dist_BN = dist_MBN.sum(0)
        dist_BN[np.arange(len(rows)), rows] = np.inf
        result[rows] = label[dist_BN.argmin(1)] != label[rows]
    return result


def _identity_errors(
    cross: Callable[..., CrossEmbeddings], label: Ints, seed: int
) -> tuple[Ints, Ints]:
    """Counts of merges and of splits on labels with such errors."""
    rng = np.random.default_rng([seed, 18])
    num = label.max() + 1
    many = max(2, round(IDENTITY_SHARE * num))
    names = rng.permutation(num)
    given = label.copy()
    for number, identity in enumerate(names[:many]):
        rows = rng.permutation(np.flatnonzero(label == identity))
        given[rows[: len(rows) // 2]] = num + number
    for kept, gone in zip(names[many : 2 * many], names[2 * many : 3 * many], strict=True):
        given[label == gone] = kept
    codes, given = np.unique(given, return_inverse=True)
    pairs = {frozenset((int(names[number]), num + number)) for number in range(many)}
    pooled = set(names[many : 2 * many].tolist())
    distances, group = cross(given, seed=seed), np.arange(len(given))
    evidence = collect_evidence(distances, given, group)
    errors = label_errors(evidence)
    merges = [
        frozenset((int(codes[one.a]), int(codes[one.b])))
        for one in find_merges(distances, evidence, errors, given, group)
        if one.probability >= LEAST
    ]
    splits = [
        int(codes[one.identity])
        for one in find_splits(distances, errors, given, group)
        if one.probability >= LEAST
    ]
    return (
        np.array([sum(one in pairs for one in merges), len(merges), many]),
        np.array([sum(one in pooled for one in splits), len(splits), many]),
    )


def _counts(listed: Mask, wrong: Mask) -> Ints:
    """Right findings, findings, and errors."""
    return np.array([(listed & wrong).sum(), listed.sum(), wrong.sum()])


def _text(counts: Ints) -> str:
    right, listed, errors = counts.tolist()
    precision = "none listed" if not listed else f"precision {right / listed:.3f}"
    return f"{precision} ({right}/{listed}), recall {right / errors:.3f} ({right}/{errors})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*DATA_SETS, []])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for line in lines(tuple(args.names) or tuple(DATA_SETS), args.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
