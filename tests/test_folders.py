from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twinlens.data.folders import picture_suffixes, read_table
from twinlens.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def meaning(table):
    """{relative path: (identity, forged, split)}"""
    return {
        table.relative(row): (table.identity[row], bool(table.forged[row]), table.split[row])
        for row in range(len(table))
    }


def test_class_folders_of_any_depth_with_unicode_names(picture_folder):
    folder = picture_folder({"b": 1, "tief/Ärger": 1, "tief/顔/eins": 1})
    table = read_table(str(folder))
    assert meaning(table) == {
        "b/0.png": ("b", False, ""),
        "tief/Ärger/0.png": ("tief/Ärger", False, ""),
        "tief/顔/eins/0.png": ("tief/顔/eins", False, ""),
    }
    assert table.root == folder
    assert table.source == str(folder)
    assert table.path[0] == str(folder / "b/0.png")


def test_a_folder_with_pictures_and_class_folders_below_is_an_identity_too(picture_folder):
    table = read_table(picture_folder({"a": 1, "a/b": 1}))
    assert table.identity.tolist() == ["a", "a/b"]


def test_hidden_files_and_other_extensions_are_ignored(picture_folder):
    folder = picture_folder({"a": 1, "b": 1, ".hidden": 1, "a/.git": 1})
    for name in ("a/.cover.png", "a/README.txt", "b/Thumbs.db", "labels.csv", "b/x.h5", "b/png"):
        (folder / name).write_bytes(b"x")
    assert list(meaning(read_table(folder))) == ["a/0.png", "b/0.png"]


def test_a_broken_file_with_a_pictures_extension_stays_in_the_table(picture_folder):
    folder = picture_folder({"a": 1, "b": 1})
    (folder / "a/broken.JPG").write_bytes(b"no picture")
    assert list(meaning(read_table(folder))) == ["a/0.png", "a/broken.JPG", "b/0.png"]


def test_picture_suffixes_are_those_that_pillow_opens():
    assert {".png", ".jpg", ".jpeg", ".pgm", ".tif", ".gif", ".webp", ".bmp"} <= picture_suffixes()
    assert not {".pdf", ".h5", ".mpg", ".txt"} & picture_suffixes()


def test_linked_folders_are_followed_and_end(picture_folder, tmp_path):
    folder = picture_folder({"a": 1, "b": 1})
    picture_folder({"c": 1}, top="elsewhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a/round").symlink_to(folder)
    names = list(meaning(read_table(folder)))
    assert names == ["a/0.png", "b/0.png", "linked/c/0.png"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_splits_on_top(picture_folder, val):
    folder = picture_folder({"train/a": 1, "train/deep/b": 1, f"{val}/c": 1, "test/a": 1})
    labels = meaning(read_table(folder))
    assert labels == {
        "train/a/0.png": ("a", False, "train"),
        "train/deep/b/0.png": ("deep/b", False, "train"),
        f"{val}/c/0.png": ("c", False, "val"),
        "test/a/0.png": ("a", False, "test"),
    }


def test_one_given_split_is_enough(picture_folder):
    assert set(read_table(picture_folder({"test/a": 1, "test/b": 1})).split) == {"test"}


def test_a_class_folder_may_be_called_train(picture_folder):
    table = read_table(picture_folder({"train": 1, "car": 1, "boat/fast": 1}))
    assert table.identities() == ["boat/fast", "car", "train"]
    assert set(table.split) == {""}


def test_split_folders_beside_others_are_refused(picture_folder):
    folder = picture_folder({"train/a": 1, "test/b": 1, "more": 1})
    with pytest.raises(DataError, match=r"test, train \(splits\) beside more"):
        read_table(folder)


@pytest.mark.parametrize(
    ("classes", "where"),
    [
        ({".": 1}, "pictures"),
        ({".": 1, "a": 1}, "pictures"),
        ({"train": 1, "test": 1}, "test"),
        ({"train/a": 1, "train": 1, "test/a": 1}, "train"),
    ],
)
def test_pictures_without_a_class_folder_are_refused(picture_folder, classes, where):
    folder = picture_folder(classes)
    with pytest.raises(DataError, match=rf"{where} holds pictures without.*0\.png.*class folders"):
        read_table(folder)


def test_left_and_right_hold_counterparts(picture_folder):
    folder = picture_folder({"left": 2, "right": 2})
    (folder / "right/1.png").rename(folder / "right/alone.jpg")
    (folder / "right/0.png").rename(folder / "right/0.jpeg")
    assert meaning(read_table(folder)) == {
        "left/0.png": ("0", False, ""),
        "left/1.png": ("1", False, ""),
        "right/0.jpeg": ("0", False, ""),
        "right/alone.jpg": ("alone", False, ""),
    }


def test_left_and_right_without_one_common_name_are_classes(picture_folder):
    folder = picture_folder({"left": 1, "right": 1})
    (folder / "right/0.png").rename(folder / "right/1.png")
    assert read_table(folder).identities() == ["left", "right"]


def test_left_and_right_beside_another_folder_are_classes(picture_folder):
    assert read_table(picture_folder({"left": 1, "right": 1, "up": 1})).identities() == [
        "left",
        "right",
        "up",
    ]


def test_forgeries_beside_their_identity(picture_folder):
    folder = picture_folder({"001": 1, "001_forg": 1, "w/2": 1, "w/2_forg": 1, "lone_forg": 1})
    assert meaning(read_table(folder)) == {
        "001/0.png": ("001", False, ""),
        "001_forg/0.png": ("001", True, ""),
        "w/2/0.png": ("w/2", False, ""),
        "w/2_forg/0.png": ("w/2", True, ""),
        "lone_forg/0.png": ("lone_forg", False, ""),
    }
    assert not read_table(folder, forged_suffix="").forged.any()


def test_forgeries_belong_to_their_own_split(picture_folder):
    folder = picture_folder({"train/1": 1, "test/1_forg": 1, "test/2": 1, "test/2_forg": 1})
    labels = meaning(read_table(folder))
    assert labels["test/1_forg/0.png"] == ("1_forg", False, "test")
    assert labels["test/2_forg/0.png"] == ("2", True, "test")


def test_the_suffix_of_forgeries_is_a_setting(picture_folder):
    folder = picture_folder({"a": 1, "a-fake": 1, "a_forg": 1})
    labels = meaning(read_table(folder, forged_suffix="-fake"))
    assert labels["a-fake/0.png"] == ("a", True, "")
    assert labels["a_forg/0.png"] == ("a_forg", False, "")


def test_forgeries_of_an_identity_whose_pictures_lie_deeper(picture_folder):
    labels = meaning(read_table(picture_folder({"a/day1": 1, "a_forg/day1": 1, "b": 1})))
    assert labels["a_forg/day1/0.png"] == ("a/day1", True, "")


@pytest.mark.parametrize("forged", ["forged", "forgeries", "forg"])
def test_genuine_and_forged_inside_an_identity(picture_folder, forged):
    folder = picture_folder({"a/genuine": 1, f"a/{forged}": 1, "deep/b/genuine": 1, "c": 1})
    assert meaning(read_table(folder)) == {
        "a/genuine/0.png": ("a", False, ""),
        f"a/{forged}/0.png": ("a", True, ""),
        "deep/b/genuine/0.png": ("deep/b", False, ""),
        "c/0.png": ("c", False, ""),
    }


def test_genuine_and_forged_on_top_are_classes(picture_folder):
    table = read_table(picture_folder({"genuine": 1, "forged": 1}))
    assert table.identities() == ["forged", "genuine"]
    assert not table.forged.any()


def test_an_identity_may_be_called_genuine(picture_folder):
    folder = picture_folder({"genuine": 1, "a/genuine": 1, "a/forged": 1})
    assert read_table(folder).identity.tolist() == ["a", "a", "genuine"]


def test_genuine_alone_is_a_name_like_any_other(picture_folder):
    assert read_table(picture_folder({"a/genuine": 1, "b/genuine": 1})).identities() == [
        "a/genuine",
        "b/genuine",
    ]


@pytest.mark.parametrize(
    ("depth", "identities"),
    [
        (0, ["lab/cam1/ann", "lab/cam1/bob", "lab/cam2/ann", "lab/cam2/bob", "solo"]),
        (1, ["lab", "solo"]),
        (2, ["lab/cam1", "lab/cam2", "solo"]),
        (9, ["lab/cam1/ann", "lab/cam1/bob", "lab/cam2/ann", "lab/cam2/bob", "solo"]),
        (-1, ["ann", "bob", "solo"]),
        (-2, ["cam1/ann", "cam1/bob", "cam2/ann", "cam2/bob", "solo"]),
        (-9, ["lab/cam1/ann", "lab/cam1/bob", "lab/cam2/ann", "lab/cam2/bob", "solo"]),
    ],
)
def test_the_depth_of_the_identitys_name(picture_folder, depth, identities):
    names = ["solo", *(f"lab/{cam}/{who}" for cam in ("cam1", "cam2") for who in ("ann", "bob"))]
    folder = picture_folder(dict.fromkeys(names, 1))
    table = read_table(folder, identity_depth=depth)
    assert table.identities() == identities
    assert len(table) == 5


def test_the_depth_counts_below_splits_and_without_roles(picture_folder):
    folder = picture_folder(
        {"train/a/day1": 1, "train/a/day2": 1, "test/b/day1": 1, "test/b_forg/day1": 1}
    )
    assert meaning(read_table(folder, identity_depth=1)) == {
        "train/a/day1/0.png": ("a", False, "train"),
        "train/a/day2/0.png": ("a", False, "train"),
        "test/b/day1/0.png": ("b", False, "test"),
        "test/b_forg/day1/0.png": ("b", True, "test"),
    }
    inner = picture_folder({"x/a/genuine": 1, "x/a/forged": 1, "y/a/genuine": 1}, top="inner")
    labels = meaning(read_table(inner, identity_depth=-1))
    assert {identity for identity, _, _ in labels.values()} == {"a"}
    assert labels["x/a/forged/0.png"] == ("a", True, "")


def test_one_identity_can_be_read(picture_folder):
    assert read_table(picture_folder({"a": 2})).identities() == ["a"]


def test_a_table_is_returned_unchanged(picture_folder):
    table = read_table(picture_folder({"a": 2}))
    assert read_table(table) is table


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "no such file or folder: 'nowhere', and no data set has that name: choose"),
        ("digit", "no such file or folder: 'digit'.*did you mean digits"),
        ("no/digits", "no such file or folder: 'no/digits'$"),
        (Path("digits"), "no such file or folder: 'digits'$"),
        ("", "no such file or folder: ''"),
        ("x" * 5000, "cannot read xxx|no such file"),
    ],
)
def test_no_such_data(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read_table(data)


def test_an_empty_folder_is_refused_with_the_layouts(tmp_path):
    (tmp_path / "empty/deeper").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty holds no pictures: accepted are class folders"):
        read_table(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "named_set"),
    [
        ("images_background.zip", "omniglot"),
        ("cifar-10-batches-py/data_batch_1", "cifar10"),
        ("train-images-idx3-ubyte.gz", "mnist"),
        ("lfw-deepfunneled/readme.txt", "lfw"),
    ],
)
def test_a_copy_of_a_named_set_without_pictures_names_the_set(tmp_path, file, named_set):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(
        DataError, match=rf"copy of {named_set}: give {named_set} --root {tmp_path}"
    ):
        read_table(tmp_path)


def test_a_file_that_is_no_manifest_is_refused(picture_folder):
    folder = picture_folder({"a": 1})
    with pytest.raises(DataError, match="not a manifest"):
        read_table(folder / "a/0.png")


def test_a_root_for_a_folder_is_refused(picture_folder, tmp_path):
    with pytest.raises(DataError, match="a root belongs to a named set"):
        read_table(picture_folder({"a": 1}), root=tmp_path)


def test_a_sets_name_means_the_set_unless_it_looks_like_a_path(
    picture_folder, tmp_path, monkeypatch
):
    picture_folder({"a": 1}, top="digits")
    monkeypatch.chdir(tmp_path)
    assert len(read_table("digits")) == 1797
    assert len(read_table("./digits")) == 1
    assert len(read_table(Path("digits"))) == 1


def test_reading_a_folder_loads_neither_torch_nor_scikit_learn(picture_folder):
    code = (
        "import sys; from twinlens.data.folders import read_table; read_table(sys.argv[1]);"
        "sys.exit(bool({'torch', 'torchvision', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, picture_folder({"a": 1})], check=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_signatures_and_faces_as_they_are():
    table = read_table(SHARED / "signatures")
    assert len(table) == 1649
    assert len(table.identities()) == 64
    assert {name: len(table.of_split(name).identities()) for name in ("train", "val", "test")} == {
        "train": 35, "val": 8, "test": 21,
    }  # fmt: skip
    in_folder = np.array([Path(path).parent.name.endswith("_forg") for path in table.path])
    assert np.array_equal(table.forged, in_folder)
    assert not any(name.endswith("_forg") for name in table.identities())
    faces = read_table(SHARED / "att_faces")
    assert (len(faces), len(faces.identities())) == (400, 40)
