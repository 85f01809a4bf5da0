from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.data.splits import assign_splits, is_closed_set, is_identity_disjoint
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError

USUAL = (0.7, 0.15, 0.15)


def table_of(identities, *, forged=None, split=None):
    num = len(identities)
    return ImageTable(
        np.array([f"{row:04d}.png" for row in range(num)], dtype=object),
        np.array(list(identities), dtype=object),
        np.array([False] * num if forged is None else forged, dtype=bool),
        np.array([""] * num if split is None else split, dtype=object),
        "test",
        None,
    )


def random_table(generator, *, least_identities=1):
    num_identities = int(generator.integers(least_identities, 40))
    count = 1 + generator.geometric(0.3, num_identities) * generator.integers(0, 2, num_identities)
    identities = [f"id{label:02d}" for label, n in enumerate(count) for _ in range(n)]
    forged = generator.random(len(identities)) < 0.2
    return table_of(generator.permutation(identities).tolist(), forged=forged)


def sizes(table):
    return [len(table.of_split(name)) for name in SPLITS]


def num_identities(table):
    return [len(table.of_split(name).identities()) for name in SPLITS]


def num_paired(table):
    """Per split, the identities with two genuine pictures or more."""
    found = []
    for name in SPLITS:
        part = table.of_split(name)
        found.append(sum(n > 1 for n in Counter(part.identity[~part.forged]).values()))
    return found


def test_identities_by_hand():
    table = table_of([f"id{row // 3:02d}" for row in range(60)])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert num_identities(split) == [14, 3, 3]
    assert sizes(split) == [42, 9, 9]


def test_identities_keep_their_invariants_over_100_random_tables():
    generator = np.random.default_rng(1)
    for seed in range(100):
        table = random_table(generator, least_identities=6)
        split = assign_splits(table, mode="identities", fractions=USUAL, seed=seed)
        assert is_identity_disjoint(split)
        assert sum(sizes(split)) == len(table)
        assert min(num_identities(split)) >= 2
        for got, share in zip(num_identities(split), USUAL, strict=True):
            assert abs(got - share * len(table.identities())) <= 2
        all_paired = sum(num_paired(split))
        assert min(num_paired(split)) >= min(2, all_paired // 3)


def test_images_keep_their_invariants_over_100_random_tables():
    generator = np.random.default_rng(2)
    for seed in range(100):
        table = random_table(generator)
        split = assign_splits(table, mode="images", fractions=(0.5, 0.25, 0.25), seed=seed)
        assert sum(sizes(split)) == len(table)
        for identity in table.identities():
            rows = (split.identity == identity) & ~split.forged
            found = Counter(split.split[rows])
            assert found["train"] > 0 or not rows.any()
            # One may be alone in the end: an identity's last picture.
            assert found["val"] % 2 + found["test"] % 2 <= 1


def test_images_are_divided_by_their_shares_in_every_identity():
    table = table_of([f"id{row // 100}" for row in range(500)], forged=np.arange(500) % 5 == 0)
    split = assign_splits(table, mode="images", fractions=(0.5, 0.3, 0.2), seed=0)
    assert sizes(split) == [250, 150, 100]
    assert np.abs(np.subtract(sizes(split.select(split.forged)), [50, 30, 20])).max() <= 1
    for identity in table.identities():
        found = split.split[split.identity == identity]
        for name, share in zip(SPLITS, (50, 30, 20), strict=True):
            assert abs((found == name).sum() - share) <= 3


def test_pictures_few_to_an_identity_still_give_genuine_pairs_by_image():
    table = table_of([f"id{row // 5:02d}" for row in range(200)])
    split = assign_splits(table, mode="images", fractions=USUAL, seed=0)
    assert np.abs(np.subtract(sizes(split), [140, 30, 30])).max() <= 2
    assert num_paired(split)[1] >= 10
    assert num_paired(split)[2] >= 10


@pytest.mark.parametrize("mode", ["identities", "images"])
def test_order_of_rows_and_new_names_change_nothing(mode):
    generator = np.random.default_rng(3)
    table = random_table(generator, least_identities=6)
    expected = assign_splits(table, mode=mode, fractions=USUAL, seed=5).split.tolist()
    for _ in range(5):
        order = generator.permutation(len(table))
        shuffled = ImageTable(
            table.path[order], table.identity[order], table.forged[order], table.split[order],
            "other", None,
        )  # fmt: skip
        renamed = table_of([f"x{name}" for name in table.identity], forged=table.forged)
        for other in (shuffled, renamed):
            split = assign_splits(other, mode=mode, fractions=USUAL, seed=5)
            assert split.split.tolist() == expected
    other_seed = assign_splits(table, mode=mode, fractions=USUAL, seed=6)
    assert other_seed.split.tolist() != expected


def test_forgeries_go_with_their_identity():
    identities = [f"id{row // 4}" for row in range(40)]
    table = table_of(identities, forged=[row % 4 > 1 for row in range(40)])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert is_identity_disjoint(split)
    for name in SPLITS:
        part = split.of_split(name)
        assert part.forged.sum() * 2 == len(part)


@pytest.mark.parametrize(
    ("num", "expected"), [(4, [2, 2, 0]), (5, [3, 2, 0]), (6, [2, 2, 2]), (7, [3, 2, 2])]
)
def test_with_few_identities_each_split_has_two_or_the_test_is_empty(num, expected):
    table = table_of([f"id{row % num}" for row in range(num * 3)])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert num_identities(split) == expected


def test_too_few_identities_are_refused_with_what_is_needed():
    table = table_of(list("abcabc"))
    with pytest.raises(DataError, match=r"3 identities.*at least 4 \(6 .*--split images"):
        assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    with pytest.raises(DataError, match="1 identity is"):
        assign_splits(table_of(["a"]), mode="identities", fractions=(0.5, 0, 0.5), seed=0)
    only = assign_splits(table, mode="identities", fractions=(0, 0, 1), seed=0)
    assert sizes(only) == [0, 0, 6]


def test_all_three_given_splits_are_kept():
    table = table_of("aabbccd", split=["train", "train", "val", "val", "test", "test", ""])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert split.split.tolist() == table.split.tolist()


@pytest.mark.parametrize("given_test", [True, False])
def test_val_is_taken_from_train_by_identity(given_test):
    identities = [f"id{row // 5:02d}" for row in range(100)]
    split = ["test" if given_test and row >= 80 else "train" for row in range(100)]
    before = table_of(identities, split=split)
    after = assign_splits(before, mode="identities", fractions=(0.6, 0.2, 0.2), seed=0)
    assert is_identity_disjoint(after)
    assert num_identities(after) == ([12, 4, 4] if given_test else [15, 5, 0])
    assert np.array_equal(after.split == "test", before.split == "test")


def test_val_is_taken_from_train_by_picture_in_a_closed_set():
    identities = [f"id{row % 4}" for row in range(400)]
    split = ["train" if row < 320 else "test" for row in range(400)]
    before = table_of(identities, split=split)
    for mode in ("identities", "images"):
        after = assign_splits(before, mode=mode, fractions=(0.75, 0.25, 0), seed=0)
        assert sizes(after) == [240, 80, 80]
        assert num_identities(after) == [4, 4, 4]
        assert not is_identity_disjoint(after)
    uncut = assign_splits(before, mode="identities", fractions=(1, 0, 0), seed=0)
    assert sizes(uncut) == [320, 0, 80]


@pytest.mark.parametrize("names", [("val",), ("test",), ("val", "test"), ("train", "val")])
def test_a_missing_training_or_test_split_stays_missing(names):
    table = table_of("aabbccdd", split=[names[row // 2 % len(names)] for row in range(8)])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert split.split.tolist() == table.split.tolist()


def test_rows_without_a_split_join_their_identity_and_the_rest_is_divided():
    identities = ["a", "a", "b", "b", *(f"id{row // 2:02d}" for row in range(40))]
    split = ["test", "", "train", ""] + [""] * 40
    after = assign_splits(
        table_of(identities, split=split), mode="identities", fractions=(0.6, 0.2, 0.2), seed=0
    )
    assert after.split.tolist() == ["test", "test", "train", "train"] + ["val"] * 40
    only_test = ["test", "", "", ""] + [""] * 40
    after = assign_splits(
        table_of(identities, split=only_test), mode="identities", fractions=(0.6, 0.2, 0.2), seed=0
    )
    assert after.split[:2].tolist() == ["test", "test"]
    assert num_identities(after) == [16, 5, 1]
    assert is_identity_disjoint(after)


def test_rows_of_an_identity_in_several_given_splits_go_to_training():
    table = table_of("aaab", split=["test", "train", "", "val"])
    split = assign_splits(table, mode="identities", fractions=USUAL, seed=0)
    assert split.split.tolist() == ["test", "train", "train", "val"]


def test_is_closed_by_hand():
    closed = ["train", "val", "train", "test"]
    assert is_closed_set(table_of("aabb", split=closed))
    assert not is_closed_set(table_of("aabc", split=closed))  # Of c nothing is learned.
    assert not is_closed_set(table_of("ab", split=["train", "train"]))
    assert not is_closed_set(table_of(""))


def test_is_identity_disjoint_by_hand():
    assert is_identity_disjoint(table_of("aab", split=["train", "", "test"]))
    assert not is_identity_disjoint(table_of("aab", split=["train", "val", "test"]))
    assert is_identity_disjoint(table_of(""))


@given(
    st.integers(6, 200),
    st.tuples(*[st.floats(0.01, 10)] * 3),
    st.integers(0, 3),
)
def test_any_fractions_give_every_split_two_identities(num, fractions, seed):
    table = table_of([f"id{row:03d}" for row in range(num)])
    split = assign_splits(table, mode="identities", fractions=fractions, seed=seed)
    assert sum(num_identities(split)) == num
    assert min(num_identities(split)) >= 2


@pytest.mark.parametrize(
    "fractions", [(0, 0, 0), (1, 1), (-1, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1)]
)
def test_unusable_fractions_are_refused(fractions):
    with pytest.raises(ConfigError, match="three numbers"):
        assign_splits(table_of("ab"), mode="images", fractions=fractions, seed=0)


def test_an_unknown_mode_is_refused_with_the_near_name():
    with pytest.raises(ConfigError, match="did you mean images"):
        assign_splits(table_of("ab"), mode="image", fractions=USUAL, seed=0)


def test_an_empty_table_stays_empty():
    assert len(assign_splits(table_of(""), mode="identities", fractions=USUAL, seed=0)) == 0
