"""`inspect`: report and settings of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, PictureFolder, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.errors import ConfigError, DataError

Capture = pytest.CaptureFixture[str]


def test_settings_are_those_of_a_run(tiny_run: TinyRun) -> None:
    """Its choices and splits are those that a run on the same data has made."""
    found = twinlens.inspect(tiny_run.data, settings=TINY, quiet=True).as_json()
    facts = json.loads((tiny_run.run / "run.json").read_text())
    assert json.loads(json.dumps(found["run"]["choices"])) == facts["choices"]
    assert found["run"]["problem"] is None
    stored = json.loads((tiny_run.run / "settings.json").read_text())
    assert json.loads(json.dumps(found["run"]["settings"])) == stored
    assert stored["picture"]["mean"] != [0.5]
    assert found["splits"] == {
        "train": {"pictures": 36, "identities": 6},
        "val": {"pictures": 12, "identities": 2},
        "test": {"pictures": 12, "identities": 2},
    }


def test_words_for_a_person(tiny_run: TinyRun) -> None:
    text = twinlens.inspect(tiny_run.data, settings=TINY, quiet=True).as_text()
    assert text.startswith(f"{tiny_run.data}: 60 pictures of 10 identities\n")
    assert "Settings of a training run:\n  model.classes = no: " in text
    assert "\n  picture.color = grey: no picture has colour\n" in text


def test_a_problem_is_no_error(picture_folder: PictureFolder, tmp_path: Path) -> None:
    data = picture_folder({"a": 3, "b": 3, "c": 3})
    found = twinlens.inspect(data, quiet=True)
    assert found.settings is None
    assert found.problem is not None
    assert "each split needs 2" in found.problem
    assert found.as_json()["run"] == {"problem": found.problem}
    assert f"Training would fail: {found.problem}" in found.as_text()
    with pytest.raises(DataError, match="there are no pairs to draw"):
        twinlens.inspect(data, montage=tmp_path / "x.png", quiet=True)
    # With the pictures of each identity divided, it would do.
    closed = twinlens.inspect(data, settings={"data.split": "images"}, quiet=True)
    assert closed.problem is None


def test_pictures_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(b"no picture")
    found = twinlens.inspect(tmp_path / "data", quiet=True)
    assert found.problem is not None
    assert "can be read" in found.problem
    assert len(found.as_json()["broken"]) == 4


@pytest.mark.parametrize("num", [0, 4, 7])
def test_broken_pictures_as_a_run_takes_them(
    num: int, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """The same levels without them, and the same refusal where they are too many."""
    data = picture_folder({f"thing{number}": 4 for number in range(8)})
    for number in range(num):
        (data / f"thing{number}" / "0.png").write_bytes(b"no picture")
    settings = TINY | {"train.steps": 1}
    found = twinlens.inspect(data, settings=settings, quiet=True)
    if num == 7:
        assert found.settings is None
        assert found.problem is not None
        assert "7 of 32 pictures cannot be read (21.9 %, at most 20.0 % allowed)" in (found.problem)
        with pytest.raises(DataError, match=r"21\.9 %, at most 20\.0 % allowed"):
            twinlens.train(data, out=tmp_path / "run", settings=settings, quiet=True)
        return
    assert found.problem is None
    assert found.settings is not None
    twinlens.train(data, out=tmp_path / "run", settings=settings, quiet=True)
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert json.loads(json.dumps(found.as_json()["run"]["settings"])) == stored


def test_pairs_that_are_lost_with_broken_pictures(
    picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """Every second picture is broken, so no genuine pair is left: both commands report that."""
    data = picture_folder({f"thing{number}": 2 for number in range(8)})
    for number in range(8):
        (data / f"thing{number}" / "1.png").write_bytes(b"no picture")
    settings = TINY | {"data.max_broken": 0.6}
    problem = twinlens.inspect(data, settings=settings, quiet=True).problem
    assert problem is not None
    with pytest.raises(DataError) as refused:
        twinlens.train(data, out=tmp_path / "run", settings=settings, quiet=True)
    assert str(refused.value) == problem
    assert not (tmp_path / "run").exists()


def test_a_montage_of_forgeries_and_broken_pictures(tmp_path: Path) -> None:
    data = tmp_path / "signed"
    names = [f"writer{number}" for number in range(6)]
    draw_pictures(data, dict.fromkeys(names, 4), size=(20, 60))
    draw_pictures(data, {f"{name}_forg": 3 for name in names}, size=(20, 60), seed=1)
    for number in range(6):
        (data / f"writer{number}" / "0.png").write_bytes(b"no picture")
    found = twinlens.inspect(data, montage=tmp_path / "pairs.png", quiet=True)
    assert found.inspection.num_forged == 18
    with Image.open(tmp_path / "pairs.png") as picture:
        colors = picture.convert("RGB").getcolors(2**24)
    assert colors is not None
    assert len(colors) > 50


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_a_montage_as_training_would_draw(kind: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = {"sampler.kind": kind}
    if kind == "triplets":
        settings |= {"loss.name": "triplet", "loss.mining": "given"}
    out = tmp_path / "pairs.png"
    twinlens.inspect(tiny_run.data, settings=settings, montage=out, quiet=True)
    with Image.open(out) as picture:
        assert picture.width == 1600


def test_wrong_settings_are_errors(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="unknown backbone"):
        twinlens.inspect(tiny_run.data, settings={"model.backbone": "resnet51"}, quiet=True)
    with pytest.raises(ConfigError, match="unknown key"):
        twinlens.inspect(tiny_run.data, settings={"loss.magrin": 1}, quiet=True)


def test_what_a_folder_leaves_out_and_may_mean(picture_folder: PictureFolder) -> None:
    data = picture_folder({f"cam{cam}/p{who}": 2 for cam in "123" for who in "123456"})
    for name in ("cam1/p1/x.CR2", "cam1/p1/y.cr2", "cam1/p1/._0.png", "cam2/p1/notes.txt"):
        (data / name).write_bytes(b"x")
    (data / "@eaDir/p1").mkdir(parents=True)
    found = twinlens.inspect(data, quiet=True)
    assert found.as_json()["left_out"] == {
        "pictures": {".cr2": 2},
        "others": {".txt": 1},
        "hidden": 1,
        "system_folders": {"@eaDir": 1},
        "skipped": [],
        "repeated": [],
    }
    text = found.as_text()
    assert (
        "left out      2 pictures that are not read here, 1 hidden, 1 of the operating system, "
        "1 .txt" in text
    )
    assert "! 2 pictures left out: 2 .cr2 (raw data of a camera: convert them" in text
    assert "- 1 folder of the operating system left out: 1 @eaDir." in text
    [hint] = found.as_json()["layout_hints"]
    assert f"? {hint}" in text
    merged = twinlens.inspect(data, settings={"data.identity_depth": -1}, quiet=True)
    assert merged.as_json()["identities"] == 6
    assert merged.as_json()["layout_hints"] == []


def test_long_lists_are_cut_in_text_and_whole_in_json(tmp_path: Path) -> None:
    """200 copies of one picture in each of 12 identities."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    for number in range(12):
        (tmp_path / f"thing{number}").mkdir()
        for copy in range(200):
            picture.save(tmp_path / f"thing{number}" / f"{copy}.bmp")
    found = twinlens.inspect(tmp_path, quiet=True)
    assert max(map(len, found.as_text().splitlines())) < 400
    assert "... 2,400 in all" in found.as_text()
    [group] = found.as_json()["duplicates"]["exact"]["groups"]
    assert len(group) == 2400
