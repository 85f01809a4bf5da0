"""Folds, scores of candidates on held-out pictures, and their fusion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from twinlens.measure.held_out import (
    Fold,
    Matrices,
    assign_folds,
    fuse,
    fused_distances,
    gain,
    make_fold,
    scores,
)

LABEL = np.repeat(np.arange(12), 6)


def folds_of(label: NDArray[np.int64] = LABEL, num: int = 3) -> dict[int, Fold]:
    made = {}
    for number in range(num):
        row = np.flatnonzero(label % num == number)
        fold = make_fold(row, label[row], np.zeros(len(row), bool), 0)
        assert fold is not None
        made[number] = fold
    return made


def distances(folds: dict[int, Fold], noise: float, seed: int) -> Matrices:
    """Cosine distances of embeddings that hold the identity and noise."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(12, 16))
    made = {}
    for number, fold in folds.items():
        emb = center[fold.label] + noise * rng.normal(size=(len(fold.row), 16))
        emb /= np.linalg.norm(emb, axis=1, keepdims=True)
        made[number] = (1 - emb @ emb.T).astype(np.float32)
    return made


def test_folds_share_no_identity_and_the_first_is_validation() -> None:
    is_validation = LABEL < 3
    fold = assign_folds(LABEL, is_validation, by_identity=True, seed=0)
    assert (fold[is_validation] == 0).all()
    assert set(fold) == set(range(4))  # As large as validation.
    for name in range(12):
        assert len(set(fold[name == LABEL])) == 1


def test_folds_without_validation_pictures_are_of_the_others() -> None:
    fold = assign_folds(LABEL, np.zeros(72, bool), by_identity=True, seed=0)
    assert np.bincount(fold).tolist() == [18, 18, 18, 18]


def test_folds_of_a_closed_set_divide_the_pictures_of_an_identity() -> None:
    is_validation = np.tile(np.arange(6) == 0, 12)
    fold = assign_folds(LABEL, is_validation, by_identity=False, seed=0)
    assert (fold[is_validation] == 0).all()
    assert all(len(set(fold[name == LABEL])) > 1 for name in range(12))


def test_a_fold_needs_pairs_of_both_kinds() -> None:
    none_forged = np.zeros(4, bool)
    rows = np.arange(4)
    assert make_fold(rows, np.arange(4), none_forged, 0) is None
    assert make_fold(rows, np.zeros(4, np.int64), none_forged, 0) is None
    fold = make_fold(rows, np.array([0, 0, 1, 1]), none_forged, 0)
    assert fold is not None
    assert fold.pairs.same.sum() == 2


def test_a_large_fold_is_sampled_evenly() -> None:
    label = np.repeat(np.arange(4), [3000, 500, 500, 2])
    fold = make_fold(np.arange(4002), label, np.zeros(4002, bool), 0)
    assert fold is not None
    assert np.bincount(fold.label).tolist() == [375, 375, 375, 2]


def test_a_perfect_candidate_has_no_error() -> None:
    folds = folds_of()
    perfect = {n: (f.label[:, None] != f.label).astype(np.float32) for n, f in folds.items()}
    result = scores(folds, perfect)
    assert (result.eer, result.recall_error) == (0, 0)
    assert result.error == pytest.approx(0, abs=1e-9)
    blind = {n: np.ones_like(dist) for n, dist in perfect.items()}
    assert scores(folds, blind).eer == pytest.approx(0.5)
    assert scores(folds, blind).overlap == pytest.approx(0.5)


def test_a_picture_is_not_its_own_nearest() -> None:
    """Identities are in a wrong order, and each picture is nearest to itself."""
    fold = folds_of()[0]
    wrong = (fold.label[:, None] == fold.label).astype(np.float32)
    np.fill_diagonal(wrong, 0)
    assert scores({0: fold}, {0: wrong}).recall_error == 1


@pytest.mark.parametrize("seed", range(4))
def test_fusion_is_never_worse_than_the_best_candidate(seed: int) -> None:
    folds = folds_of()
    matrices = {
        f"noise {noise}": distances(folds, noise, seed * 10 + place)
        for place, noise in enumerate((1.5, 1.7, 3.0, 30.0))
    }
    weights = fuse(folds, matrices)
    assert sum(weights.values()) == pytest.approx(1)
    best = min(scores(folds, own).error for own in matrices.values())
    assert scores(folds, fused_distances(weights, matrices, folds)).error <= best


def test_fusion_joins_what_is_complementary_and_leaves_out_noise() -> None:
    folds = folds_of()
    matrices = {
        "one": distances(folds, 1.8, 1), "other": distances(folds, 1.8, 2),
        "noise": distances(folds, 1000.0, 3),
    }  # fmt: skip
    weights = fuse(folds, matrices)
    assert set(weights) == {"one", "other"}
    error = scores(folds, fused_distances(weights, matrices, folds)).error
    assert error < 0.9 * scores(folds, matrices["one"]).error
    assert fuse(folds, {"alone": matrices["one"]}) == {"alone": 1.0}


def test_features_that_a_fold_favours_by_chance_do_not_displace_those_of_every_fold() -> None:
    folds = folds_of()
    lucky = {n: distances(folds, 0.1 if n == 0 else 30.0, 1)[n] for n in folds}
    matrices = {
        "good": distances(folds, 1.5, 2), "lucky": lucky,
        "network": {0: distances(folds, 1.5, 3)[0]}, "useless": {0: distances(folds, 1000.0, 4)[0]},
    }  # fmt: skip
    weights = fuse(folds, matrices)
    assert sum(weights.values()) == pytest.approx(1)
    assert set(weights) == {"good", "lucky", "network"}
    by_luck = fuse({0: folds[0]}, {name: {0: own[0]} for name, own in matrices.items()})
    assert by_luck.get("good", 0) < 0.15 < weights["good"]
    assert fuse(folds, {"network": matrices["network"]}) == {"network": 1.0}


def test_gain_has_an_interval_that_tells_a_clear_difference() -> None:
    folds = folds_of()
    good, bad = distances(folds, 1.0, 1), distances(folds, 4.0, 2)
    found = gain(folds, good, bad, seed=0)
    assert found.value == pytest.approx(scores(folds, bad).eer - scores(folds, good).eer, abs=0.01)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low <= found.value <= found.high
    same = gain(folds, good, good, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
