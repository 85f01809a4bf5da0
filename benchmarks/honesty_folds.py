"""What thresholds cost that are calibrated on the identities that a model learned from.

`python -m benchmarks.honesty_folds [--only NAME ...] [--divisions N]` prints the table. As `auto`
does, a whitening of frozen features learns from all of a few identities, and their distances are
held-out ones: within four folds; within two folds and the others as one, as for a network that is
trained once more; or across folds, by maps that learned from neither identity. Others are the test.

Shapes: N pictures, F features.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.honesty import SETS, distances, features, thresholds
from twinlens.config import Member, ModelSettings, PictureSettings
from twinlens.learn.cross_embedding import CrossEmbeddings, count_folds
from twinlens.learn.cross_validation import cosine_distances, mapped_embeddings
from twinlens.measure.error_rates import far_at, frr_at, threshold_at_far
from twinlens.measure.held_out import HeldOutPairs, assign_folds, make_fold

SIZES, FAR = (6, 8, 12, 18), 0.01
MOST_TESTED = 150
MODEL = ModelSettings(backbone="pixels", embedding=128, init="whitened", freeze="all")
MEMBER = Member(model=MODEL, picture=PictureSettings(), weight=1.0)  # whose map it is
HEAD = """| data | identities | pairs | above twice the target | mean FAR / target | FRR \
| oracle's | ratio |
|---|---|---|---|---|---|---|---|"""


def rows(name: str, num_divisions: int) -> Iterator[str]:
    """A row for each number of identities and way."""
    emb_ND, label, forged = features(name)
    bank_VNF = torch.from_numpy(emb_ND)[None]
    embed = partial(mapped_embeddings, MEMBER, bank_VNF, label, mirrored=True)
    for num in SIZES:
        met = dict[str, list[tuple[float, float, float]]]()
        for seed in range(num_divisions):
            names = np.random.default_rng([seed, 17]).permutation(label.max() + 1)
            learned, tested = np.sort(names[:num]), names[num : num + MOST_TESTED]
            fit = np.flatnonzero(np.isin(label, learned))
            test = np.flatnonzero(np.isin(label, tested))
            mapped = np.zeros((len(label), MODEL.embedding), dtype=np.float32)
            mapped[test] = embed(test, fit)
            dist, same, _, _ = distances(mapped, label, forged, tested)
            oracle = frr_at(dist[same], threshold_at_far(dist[~same], FAR))
            for way, pairs in _ways(bank_VNF, label, forged, fit, seed).items():
                a, b = np.searchsorted(learned, label[np.stack([pairs.a, pairs.b])])
                given = (pairs.distance, pairs.same, a, b, num, FAR)
                threshold = thresholds(*given)["twinlens"]
                met.setdefault(way, []).append(
                    (far_at(dist[~same], threshold) / FAR, frr_at(dist[same], threshold), oracle)
                )
        for way, values in met.items():
            ratio, frr, least = np.array(values).T
            yield (
                f"| {name} | {num} | {way} | {(ratio > 2).mean():.0%} | {ratio.mean():.2f} | "
                f"{frr.mean():.1%} | {least.mean():.1%} | {frr.mean() / least.mean():.2f} |"
            )


def _ways(
    bank_VNF: torch.Tensor,
    label: NDArray[np.int64],
    forged: NDArray[np.bool_],
    fit: NDArray[np.int64],
    seed: int,
) -> dict[str, HeldOutPairs]:
    """Held-out pairs of the pictures in `fit`, by name of the way."""
    nobody = np.zeros(len(fit), dtype=np.bool_)
    fold_N = assign_folds(label[fit], nobody, by_identity=True, seed=seed)
    numbers = range(fold_N.max() + 1)

    def within(*groups: tuple[int, ...]) -> HeldOutPairs:
        parts = []
        for group in groups:
            is_held = np.isin(fold_N, group)
            fold = make_fold(fit[is_held], label[fit[is_held]], forged[fit[is_held]], seed)
            assert fold is not None
            emb = mapped_embeddings(MEMBER, bank_VNF, label, fold.row, fit[~is_held], mirrored=True)
            parts.append((fold, cosine_distances(emb)))
        return HeldOutPairs.of(parts)

    whole = make_fold(fit, label[fit], forged[fit], seed)
    assert whole is not None
    num_folds = count_folds(len(np.unique(label[fit])))
    crossed = CrossEmbeddings(
        {"": MEMBER}, {"": bank_VNF[:, whole.row]}, whole.label, seed=seed, folds=num_folds
    )
    return {
        "within folds": within(*((number,) for number in numbers)),
        "two folds, the others as one": within((0,), (1,), tuple(numbers[2:])),
        "across folds": HeldOutPairs.of([(whole, crossed.fused({"": 1.0}))]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.honesty_folds", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--divisions", type=int, default=20)
    args = parser.parse_args()
    print(HEAD)
    for name in args.only:
        for row in rows(name, args.divisions):
            print(row, flush=True)


if __name__ == "__main__":
    main()
