from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from twinlens.data.folders import read_table
from twinlens.data.table import SPLITS, ImageTable, pair_masks, require_identities
from twinlens.errors import DataError


def table_of(paths, identities, *, forged=None, split=None, pixels=None, root=None):
    num = len(paths)
    return ImageTable(
        np.array(list(paths), dtype=object),
        np.array(list(identities), dtype=object),
        np.array([False] * num if forged is None else forged, dtype=bool),
        np.array([""] * num if split is None else split, dtype=object),
        "test",
        root,
        pixels,
    )


def test_rows_are_in_path_order_with_everything_that_belongs_to_them():
    pixels = np.array([3, 1, 2], np.uint8).reshape(3, 1, 1)
    split = ["test", "train", "val"]
    table = table_of(
        "cab", ["z", "x", "y"], forged=[True, False, False], split=split, pixels=pixels
    )
    assert table.path.tolist() == ["a", "b", "c"]
    assert table.identity.tolist() == ["x", "y", "z"]
    assert table.forged.tolist() == [False, False, True]
    assert table.split.tolist() == ["train", "val", "test"]
    assert table.pixels.ravel().tolist() == [1, 2, 3]


def test_tables_cannot_be_changed_and_leave_the_callers_arrays_alone():
    pixels = np.zeros((2, 1, 1), np.uint8)
    table = table_of("ab", "xy", pixels=pixels)
    for column in (table.path, table.identity, table.forged, table.split, table.pixels):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = column[1]
    with pytest.raises(ValueError, match="read-only"):
        table.labels()[0] = 7
    with pytest.raises(AttributeError):
        table.source = "other"
    pixels[0] = 1


def test_labels_count_the_sorted_identities():
    table = table_of("abcd", ["über", "b", "über", "a"])
    assert table.identities() == ["a", "b", "über"]
    assert table.labels().tolist() == [2, 1, 2, 0]
    table.identities().clear()
    assert len(table.identities()) == 3


def test_select_takes_masks_and_rows_and_keeps_the_order():
    table = table_of("abcd", "xxyz", pixels=np.arange(4, dtype=np.uint8).reshape(4, 1, 1))
    for rows in ([3, 1, 1], np.array([False, True, False, True]), [-1, 1]):
        chosen = table.select(rows)
        assert chosen.path.tolist() == ["b", "d"]
        assert chosen.pixels.ravel().tolist() == [1, 3]
        assert chosen.labels().tolist() == [0, 1]
    assert len(table.select([])) == 0


def test_splits_select_and_replace():
    table = table_of("abc", "xxy", split=["train", "", "test"])
    assert table.of_split("").path.tolist() == ["b"]
    assert [len(table.of_split(name)) for name in SPLITS] == [1, 0, 1]
    moved = table.with_split(["val", "val", "test"])
    assert moved.split.tolist() == ["val", "val", "test"]
    assert table.split.tolist() == ["train", "", "test"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table_of("aba", "xyz"), "paths of a table must be unique.*'a'"),
        (lambda: table_of("ab", "x", forged=[False, False]), "equal lengths"),
        (lambda: table_of("ab", "xy", split=["train", "dev"]), "train, val, test or empty.*dev"),
        (lambda: table_of("ab", "xy", pixels=np.zeros((3, 1, 1), np.uint8)), "equal lengths"),
    ],
)
def test_invalid_tables(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_relative_paths_start_at_the_root():
    paths = ["/data/set/a/1.png", "/elsewhere/2.png"]
    table = table_of(paths, "xy", root=Path("/data/set"))
    assert [table.relative(row) for row in (0, 1)] == ["a/1.png", "/elsewhere/2.png"]
    assert table_of(["digits/00001"], "x").relative(0) == "digits/00001"


def test_fingerprint_is_sha256_and_the_same_for_a_copy_and_for_other_splits(picture_folder):
    folder = picture_folder({"a": 2, "b": 1})
    copy = shutil.copytree(folder, folder.with_name("copy"))
    table = read_table(folder)
    again = table.with_split(["test", "train", "train"])
    assert table.fingerprint() == read_table(copy).fingerprint() == again.fingerprint()
    lines = [(f"{i}/{n}.png", i, False, (folder / i / f"{n}.png").stat().st_size) for i, n in
             (("a", 0), ("a", 1), ("b", 0))]  # fmt: skip
    text = "".join(repr(line) for line in lines)
    assert table.fingerprint() == hashlib.sha256(text.encode()).hexdigest()


def test_fingerprint_changes_with_name_identity_role_size_and_pixels(picture_folder):
    folder = picture_folder({"a": 2, "b": 1})
    seen = {read_table(folder).fingerprint()}
    with (folder / "a/1.png").open("ab") as file:
        file.write(b"\0")
    seen.add(read_table(folder).fingerprint())
    (folder / "a/1.png").rename(folder / "b/1.png")
    seen.add(read_table(folder).fingerprint())
    table = read_table(folder)
    (folder / "b/1.png").unlink()
    seen.add(table.fingerprint())
    zero, one = (np.full((2, 1, 1), value, np.uint8) for value in (0, 1))
    seen.add(table_of("ab", "xy", pixels=zero).fingerprint())
    seen.add(table_of("ab", "xy", pixels=one).fingerprint())
    seen.add(table_of("ab", "xy", pixels=one, forged=[False, True]).fingerprint())
    assert len(seen) == 7


def test_names_that_are_not_utf8_have_a_fingerprint():
    assert len(table_of(["a\udcff.png"], "x").fingerprint()) == 64


def test_pair_masks_by_hand():
    label = np.array([0, 0, 0, 1])
    forged = np.array([False, False, True, True])
    genuine, impostor = pair_masks(label[:, None], forged[:, None], label[None], forged[None])
    assert genuine.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert impostor.astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_pair_masks_agree_with_a_loop_on_numpy_and_torch():
    generator = np.random.default_rng(0)
    for _ in range(100):
        num = int(generator.integers(0, 12))
        label, forged = generator.integers(0, 4, num), generator.random(num) < 0.3
        slow = np.zeros((2, num, num), dtype=bool)
        for i in range(num):
            for j in range(num):
                if forged[i] and forged[j]:
                    continue
                same = label[i] == label[j] and not forged[i] and not forged[j]
                slow[0 if same else 1, i, j] = True
        columns = (label[:, None], forged[:, None], label[None], forged[None])
        assert np.array_equal(np.stack(pair_masks(*columns)), slow)
        tensors = pair_masks(*(torch.from_numpy(column) for column in columns))
        assert np.array_equal(torch.stack(tensors).numpy(), slow)


def test_too_few_identities_are_refused_by_name():
    table = table_of("ab", ["only", "only"])
    require_identities(table, 1)
    with pytest.raises(DataError, match=r"1 identity \(only\).* training needs at least 2"):
        require_identities(table, purpose="training")
    with pytest.raises(DataError, match="0 identities"):
        require_identities(table.select([]))
