"""Hints on folders that may mean something else than they are read as."""

from __future__ import annotations

import pytest

from twinlens.data.folders import read_table
from twinlens.data.layout_hints import layout_hints


def hints(folder, **options) -> list[str]:
    return layout_hints(read_table(folder, **options))


def test_plain_class_folders_and_other_tables_have_none(picture_folder):
    assert hints(picture_folder({"a": 3, "b": 3, "c": 3})) == []
    assert hints(picture_folder({"left": 3, "right": 3}, top="pairs")) == []
    assert layout_hints(read_table("digits")) == []


def test_one_name_below_several_folders(picture_folder):
    names = [f"cam{cam}/person{who}" for cam in "123" for who in "123"]
    folder = picture_folder(dict.fromkeys(names, 1))
    [hint] = hints(folder)
    assert hint == (
        "9 identities share the name of their folder with another, such as cam1/person1 and "
        "cam2/person1. If one name is one identity, add --set data.identity_depth=-1 (the last "
        "folder names it)."
    )
    assert hints(folder, identity_depth=-1) == []


@pytest.mark.parametrize(
    "names",
    [
        ["x/a", "y/b", "z/c"],  # No name twice.
        ["x/a", "y/a", "z/c", "z/d", "u", "v"],  # One of many.
        ["x/day1", "x/day2", "y/day3"],
    ],
)
def test_names_that_are_hardly_shared_give_no_hint(picture_folder, names):
    assert hints(picture_folder(dict.fromkeys(names, 1))) == []


def test_two_folders_with_equal_file_names_may_be_counterparts(picture_folder):
    folder = picture_folder({"day": 4, "night": 4})
    [hint] = hints(folder)
    assert "The folders day and night hold 4 files of equal names" in hint
    assert "call the folders left and right" in hint
    (folder / "night").rename(folder / "right")
    (folder / "day").rename(folder / "left")
    assert hints(folder) == []


def test_two_folders_with_equal_subfolders_get_both_hints(picture_folder):
    folder = picture_folder({f"{top}/{who}": 2 for top in ("photo", "sketch") for who in "abc"})
    counterparts, shared = hints(folder)
    assert "photo and sketch hold 6 files of equal names" in counterparts
    assert "photo/a and sketch/a" in shared
    for file in (folder / "sketch").glob("*/*.png"):
        file.rename(file.with_name(f"s{file.name}"))
    [shared] = hints(folder)
    assert "data.identity_depth=-1" in shared


def test_copies_of_named_sets(picture_folder):
    folder = picture_folder({"images_background/Latin/character01": 2,
                             "images_evaluation/Ge_ez/character02": 2})  # fmt: skip
    [hint] = hints(folder)
    assert "looks like a copy of omniglot" in hint
    assert f"omniglot --root {folder}" in hint
