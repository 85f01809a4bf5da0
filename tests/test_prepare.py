"""Preparation of a run: what it says of the pictures."""

from __future__ import annotations

import shutil

import pytest
from conftest import TINY

from twinlens.commands.prepare import prepare
from twinlens.data.pixel_cache import decode_table
from twinlens.learn.run_folder import RunFolder
from twinlens.recipes import load_recipe


@pytest.mark.parametrize("num", [0, 1, 3])
def test_pictures_of_two_identities_are_said(picture_folder, tmp_path, caplog, num):
    data = picture_folder({f"p{i}": 4 for i in range(8)})
    for i in range(num):
        shutil.copy(data / f"p0/{i}.png", data / f"p1/copy{i}.png")
    shutil.copy(data / "p2/0.png", data / "p2/again.png")
    (tmp_path / "run").mkdir()
    prepare(data, None, load_recipe("auto", TINY), RunFolder(tmp_path / "run"), resume=False)
    lines = [line for line in caplog.messages if "more than one identity" in line]
    if num == 0:
        assert lines == []
    elif num == 1:
        [line] = lines
        assert "1 picture is filed under more than one identity (p0/0.png = p1/copy0.png)" in line
    else:
        [line] = lines
        assert line.startswith("3 pictures are filed under more than one identity (p0/0.png = ")
        assert "p0/1.png = p1/copy1.png; ...)" in line
        assert "`twinlens inspect` lists them all" in line


def test_the_depth_of_the_identitys_name_is_that_of_the_settings(picture_folder, tmp_path):
    data = picture_folder({f"cam{cam}/p{who}": 3 for cam in "12" for who in "12345678"})
    (tmp_path / "run").mkdir()
    recipe = load_recipe("auto", TINY | {"data.identity_depth": -1})
    prepared = prepare(data, None, recipe, RunFolder(tmp_path / "run"), resume=False)
    assert prepared.decoded.table.identities() == [f"p{who}" for who in "12345678"]
    assert prepared.settings.data.identity_depth == -1


def test_a_set_beyond_the_cache_is_said(picture_folder, tmp_path, caplog, own_cache, monkeypatch):
    monkeypatch.setenv("TWINLENS_CACHE_GIB", "0")
    monkeypatch.setitem(decode_table.__kwdefaults__, "memory_limit", 1)
    (tmp_path / "run").mkdir()
    data = picture_folder({f"p{i}": 4 for i in range(8)})
    prepare(data, None, load_recipe("auto", TINY), RunFolder(tmp_path / "run"), resume=False)
    assert "the cache has room for 0 % of the decoded pictures" in caplog.text
