"""Samplers: invariants of batches and epochs; batches depend on (seed, step) only."""

from __future__ import annotations

import numpy as np
import pytest

from twinlens.config import SamplerSettings
from twinlens.data.batch import Batch
from twinlens.data.samplers import PKSampler, make_sampler
from twinlens.errors import ConfigError, DataError

NUM_SETS = 100


def random_set(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with gaps, in any order; sometimes singletons, forgeries, forged-only identities."""
    rng = np.random.default_rng([77, number])
    names = rng.choice(50, rng.integers(2, 12), replace=False)
    genuine = np.repeat(names, rng.integers(0, 9, len(names)))
    genuine = np.concatenate([genuine, names[:1], names[:1], names[1:2]])
    forged = np.repeat(names, rng.integers(0, 4, len(names))) if number % 2 else names[:0]
    label = np.concatenate([genuine, forged])
    role = np.arange(len(label)) >= len(genuine)
    order = rng.permutation(len(label))
    return label[order].astype(np.int64), role[order]


def pk_settings(number: int) -> SamplerSettings:
    rng = np.random.default_rng([78, number])
    return SamplerSettings(
        labels_per_batch=int(rng.integers(2, 8)),
        images_per_label=int(rng.integers(2, 6)),
        forged_per_label=int(rng.integers(0, 3)),
        rotations=number % 3 == 0,
    )


def pair_settings(kind: str, number: int) -> SamplerSettings:
    batch = int(np.random.default_rng([79, number]).integers(1, 30))
    return SamplerSettings(
        kind=kind, batch=batch, rotations=number % 3 == 0, mirror=number % 5 == 0,
        fresh=number % 4 != 0, forged_share=(0.5, 0.0, 1.0)[number % 3],
    )  # fmt: skip


def epoch(sampler, number: int = 0) -> list[Batch]:
    steps = sampler.steps_per_epoch
    return [sampler.batch(number * steps + step) for step in range(steps)]


def num_turns(settings: SamplerSettings) -> int:
    return 4 if settings.rotations else 1


def pictures(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.row.tolist(), batch.turns.tolist(), strict=True))


def check_rows(batch: Batch, label: np.ndarray, forged: np.ndarray, turns: int) -> None:
    mirrored = np.zeros(len(batch.row), bool) if batch.mirrored is None else batch.mirrored
    assert len(set(zip(pictures(batch), mirrored.tolist(), strict=True))) == len(batch.row)
    np.testing.assert_array_equal(batch.label, label[batch.row] * turns + batch.turns)
    np.testing.assert_array_equal(batch.forged, forged[batch.row])
    assert set(batch.turns.tolist()) <= set(range(turns))


def same_batch(a: Batch, b: Batch) -> bool:
    names = ("row", "label", "forged", "turns", "pairs", "same", "triplets", "mirrored")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


# P identities x K pictures


@pytest.mark.parametrize("number", range(NUM_SETS))
def test_pk_invariants(number):
    label, forged = random_set(number)
    settings = pk_settings(number)
    sampler = make_sampler(label, forged, settings, number)
    turns = num_turns(settings)
    drawn_from = label if settings.forged_per_label else label[~forged]
    identities = len(np.unique(drawn_from)) * turns
    for batch in epoch(sampler):
        check_rows(batch, label, forged, turns)
        names, count = np.unique(batch.label[~batch.forged], return_counts=True)
        have = np.array([np.sum(~forged & (label == name // turns)) for name in names])
        np.testing.assert_array_equal(count, np.minimum(have, settings.images_per_label))
        drawn = np.unique(batch.label)
        assert len(drawn) == min(settings.labels_per_batch, identities)
        for name in drawn:
            have_forged = np.sum(forged & (label == name // turns))
            drawn_forged = np.sum(batch.forged & (batch.label == name))
            assert drawn_forged == min(have_forged, settings.forged_per_label)
        assert count.max() >= 2
        assert len(drawn) >= 2 or batch.forged.any()


@pytest.mark.parametrize("number", range(0, NUM_SETS, 5))
def test_pk_epoch_sees_every_identity_equally_often(number):
    rng = np.random.default_rng(number)
    label = rng.permutation(np.repeat(np.arange(7 + number), rng.integers(2, 9, 7 + number)))
    settings = SamplerSettings(labels_per_batch=int(rng.integers(2, 7)), images_per_label=3)
    sampler = make_sampler(label, np.zeros(len(label), bool), settings, number)
    for epoch_number in (0, 3):
        drawn = [np.unique(batch.label) for batch in epoch(sampler, epoch_number)]
        count = np.bincount(np.concatenate(drawn), minlength=7 + number)
        assert count.min() >= 1
        assert count.max() - count.min() <= 1


def test_pk_draws_the_pictures_of_an_identity_evenly():
    label = np.repeat([3, 9], [12, 4])
    settings = SamplerSettings(labels_per_batch=2, images_per_label=4)
    sampler = make_sampler(label, np.zeros(16, bool), settings, 0)
    assert sampler.steps_per_epoch == 2
    first, second = epoch(sampler)
    twelve = np.concatenate([batch.row[batch.label == 3] for batch in (first, second)])
    assert len(set(twelve.tolist())) == 8
    seen = np.zeros(16, int)
    for number in range(300):
        for batch in epoch(sampler, number):
            seen[batch.row] += 1
    assert np.all(seen[12:] == 600)
    assert np.all(np.abs(seen[:12] - 200) < 50)


def test_pk_by_hand():
    label = np.array([5, 5, 5, 5, 5, 2, 8])
    settings = SamplerSettings(labels_per_batch=10, images_per_label=2)
    sampler = make_sampler(label, np.zeros(7, bool), settings, 4)
    # 3 identities, so a batch draws 6 pictures, and 7 take 2 batches.
    assert sampler.steps_per_epoch == 2
    assert sampler.num_labels == 9
    for batch in epoch(sampler):
        assert sorted(batch.label.tolist()) == [2, 5, 5, 8]


def test_pk_draws_a_genuine_pair_among_singletons():
    label = np.concatenate([np.arange(40), [40, 40]])
    settings = SamplerSettings(labels_per_batch=2, images_per_label=4)
    sampler = make_sampler(label, np.zeros(42, bool), settings, 0)
    assert all(np.sum(batch.label == 40) == 2 for batch in epoch(sampler))


def test_pk_leaves_forged_only_identities_out_when_no_forgery_is_drawn():
    label = np.array([0, 0, 1, 1, 2, 2])
    forged = np.array([False, False, False, False, True, True])
    settings = SamplerSettings(labels_per_batch=3, forged_per_label=0)
    for batch in epoch(make_sampler(label, forged, settings, 0)):
        assert set(batch.label.tolist()) == {0, 1}


def test_pk_one_identity_with_forgeries_can_train():
    label, forged = np.zeros(5, int), np.array([False, False, False, True, True])
    batch = make_sampler(label, forged, SamplerSettings(labels_per_batch=1), 0).batch(0)
    assert sorted(batch.row.tolist()) == [0, 1, 2, 3, 4]


def test_rotations_make_four_identities_of_one():
    settings = SamplerSettings(labels_per_batch=4, images_per_label=2, rotations=True)
    sampler = make_sampler(np.array([6, 6, 6]), np.zeros(3, bool), settings, 0)
    assert sampler.steps_per_epoch == 2
    assert sampler.num_labels == 28
    batch = sampler.batch(0)
    assert sorted(batch.label.tolist()) == [24, 24, 25, 25, 26, 26, 27, 27]
    np.testing.assert_array_equal(batch.turns, batch.label - 24)


# pairs


@pytest.mark.parametrize("number", range(NUM_SETS))
def test_pairs_cover_each_genuine_picture_as_anchor(number):
    label, forged = random_set(number)
    settings = pair_settings("pairs", number)
    turns = num_turns(settings)
    sampler = make_sampler(label, forged, settings, number)
    batches = epoch(sampler)
    sizes = [len(batch.pairs) for batch in batches]
    assert max(sizes) <= settings.batch
    assert max(sizes) - min(sizes) <= 1
    anchors: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for batch in batches:
        check_rows(batch, label, forged, turns)
        assert set(batch.pairs.ravel().tolist()) == set(range(len(batch.row)))
        for (a, b), same in zip(batch.pairs, batch.same, strict=True):
            assert a != b
            assert not batch.forged[a]
            one = batch.label[a] == batch.label[b]
            assert same == (one and not batch.forged[b])
            assert one or not batch.forged[b]
            anchors[bool(same)].append(pictures(batch)[a])
    everyone = [(row, turn) for row in np.flatnonzero(~forged) for turn in range(turns)]
    partnered = [
        (row, turn) for row, turn in everyone if np.sum(~forged & (label == label[row])) > 1
    ]
    assert sorted(anchors[True]) == sorted(partnered)
    assert sorted(anchors[False]) == sorted(everyone)


def test_partners_are_uniform_and_half_of_the_negatives_are_forgeries():
    label = np.array([0, 0, 0, 0, 1, 1, 2, 0, 0])
    forged = np.arange(9) >= 7
    sampler = make_sampler(label, forged, SamplerSettings(kind="pairs", batch=13), 1)
    positive, negative, of_one = np.zeros(9, int), np.zeros(9, int), np.zeros(9, int)
    for number in range(3000):
        for batch in epoch(sampler, number):
            for (a, b), same in zip(batch.row[batch.pairs], batch.same, strict=True):
                if a == 1:
                    (positive if same else negative)[b] += 1
                elif a == 4 and not same:
                    of_one[b] += 1
    expected = np.array([1, 0, 1, 1, 0, 0, 0, 0, 0]) * 1000
    assert np.all(np.abs(positive - expected) < 150)
    expected = np.array([0, 0, 0, 0, 500, 500, 500, 750, 750])
    assert np.all(np.abs(negative - expected) < 150)
    assert np.all(negative[:4] == 0)
    expected = np.array([600, 600, 600, 600, 0, 0, 600, 0, 0])
    assert np.all(np.abs(of_one - expected) < 150)
    assert np.all(of_one[[4, 5, 7, 8]] == 0)


# triplets


@pytest.mark.parametrize("number", range(NUM_SETS))
def test_triplets_are_triplets_and_cover_the_anchors(number):
    label, forged = random_set(number)
    settings = pair_settings("triplets", number)
    turns = num_turns(settings)
    sampler = make_sampler(label, forged, settings, number)
    anchors = []
    for batch in epoch(sampler):
        check_rows(batch, label, forged, turns)
        assert 1 <= len(batch.triplets) <= settings.batch
        assert set(batch.triplets.ravel().tolist()) == set(range(len(batch.row)))
        a, p, n = batch.triplets.T
        assert np.all(a != p)
        assert np.all(batch.label[a] == batch.label[p])
        assert not batch.forged[[*a, *p]].any()
        np.testing.assert_array_equal(batch.label[n] == batch.label[a], batch.forged[n])
        anchors += [pictures(batch)[i] for i in a]
    count = np.array([np.sum(~forged & (label == name)) for name in label])
    usable = np.flatnonzero(~forged & (count > 1))
    assert sorted(anchors) == sorted((row, turn) for row in usable for turn in range(turns))


# partners drawn once, share of forgeries, mirroring


def drawn_of(sampler, number: int) -> set[tuple[int, ...]]:
    """The rows of every pair or triplet of an epoch."""
    drawn = set()
    for batch in epoch(sampler, number):
        positions = batch.pairs if batch.pairs is not None else batch.triplets
        drawn |= {tuple(row) for row in batch.row[positions].tolist()}
    return drawn


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_partners_are_drawn_each_epoch_or_once(kind):
    label, forged = np.repeat(np.arange(5), 20), np.zeros(100, bool)
    fresh = make_sampler(label, forged, SamplerSettings(kind=kind, batch=9), 3)
    assert drawn_of(fresh, 0) != drawn_of(fresh, 1)
    kept = make_sampler(label, forged, SamplerSettings(kind=kind, batch=9, fresh=False), 3)
    assert drawn_of(kept, 0) == drawn_of(kept, 1)
    assert not same_batch(kept.batch(0), kept.batch(kept.steps_per_epoch))  # In another order.
    other = make_sampler(label, forged, SamplerSettings(kind=kind, batch=9, fresh=False), 4)
    assert drawn_of(kept, 0) != drawn_of(other, 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_forgeries_are_drawn_at_their_share(share):
    label, forged = np.tile(np.repeat(np.arange(2), 10), 2), np.repeat([False, True], 20)
    settings = SamplerSettings(kind="pairs", batch=40, forged_share=share)
    sampler = make_sampler(label, forged, settings, 0)
    negatives = [
        batch.forged[b]
        for number in range(100)
        for batch in epoch(sampler, number)
        for (_, b), same in zip(batch.pairs, batch.same, strict=True)
        if not same
    ]
    assert np.mean(negatives) == pytest.approx(share, abs=0.05 if 0 < share < 1 else 0)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_a_pair_or_triplet_is_mirrored_as_a_whole(kind):
    label, forged = np.repeat(np.arange(3), 4), np.zeros(12, bool)
    plain = make_sampler(label, forged, SamplerSettings(kind=kind, batch=6), 1)
    assert all(batch.mirrored is None for batch in epoch(plain))
    sampler = make_sampler(label, forged, SamplerSettings(kind=kind, batch=6, mirror=True), 1)
    whole = []
    for number in range(30):
        for batch in epoch(sampler, number):
            positions = batch.pairs if kind == "pairs" else batch.triplets
            none = np.zeros(len(batch.row), bool)  # By chance no pair of a batch is.
            mirrored = none if batch.mirrored is None else batch.mirrored
            together = mirrored[positions]
            assert np.all(together == together[:, :1])
            whole += together[:, 0].tolist()
            seen = list(zip(batch.row.tolist(), mirrored.tolist(), strict=True))
            assert len(set(seen)) == len(seen)
            np.testing.assert_array_equal(batch.label, label[batch.row])
    assert np.mean(whole) == pytest.approx(0.5, abs=0.08)


# determinism


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", ["pk", "pairs", "triplets"])
def test_a_batch_depends_on_seed_and_step_only(kind, fresh, mirror):
    label, forged = random_set(3)
    settings = SamplerSettings(
        kind=kind, labels_per_batch=3, batch=7, fresh=fresh, mirror=mirror, forged_share=0.3
    )
    steps = list(range(3 * make_sampler(label, forged, settings, 5).steps_per_epoch))
    sampler = make_sampler(label, forged, settings, 5)
    in_order = [sampler.batch(step) for step in steps]
    for step in reversed(steps):  # One sampler, backwards across epochs.
        assert same_batch(sampler.batch(step), in_order[step])
    new = make_sampler(label, forged, settings, 5)
    assert same_batch(new.batch(steps[-1]), in_order[-1])
    other = make_sampler(label, forged, settings, 6)
    assert not all(same_batch(other.batch(step), in_order[step]) for step in steps)
    half = len(steps) // 3
    assert not all(same_batch(in_order[s], in_order[s + half]) for s in range(half))


# errors


@pytest.mark.parametrize("kind", ["pk", "pairs", "triplets"])
def test_data_without_pairs_is_an_error(kind):
    def make(label, forged=None):
        role = np.zeros(len(label), bool) if forged is None else np.array(forged)
        return make_sampler(np.array(label, np.int64), role, SamplerSettings(kind=kind), 0)

    with pytest.raises(DataError, match="no pictures"):
        make([])
    with pytest.raises(DataError, match="3 identities, none with two genuine"):
        make([0, 1, 2])
    with pytest.raises(DataError, match="none with two genuine"):
        make([0, 0, 1], [False, True, False])
    with pytest.raises(DataError, match="at least two identities"):
        make([4, 4, 4])


def test_pk_with_one_identity_a_batch_is_an_error():
    settings = SamplerSettings(labels_per_batch=1)
    with pytest.raises(ConfigError, match="at least 2"):
        PKSampler(np.array([0, 0, 1, 1]), np.zeros(4, bool), settings, 0)
