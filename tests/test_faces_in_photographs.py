"""A model of cropped faces: it finds the faces of whole photographs, answers for each, says so."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY, TinyRun
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.config import FaceSettings
from twinlens.errors import DataError, ModelError, PictureError
from twinlens.face import faces_of as finding
from twinlens.face.marks import settings_of_files
from twinlens.match.answers import ComparedFaces
from twinlens.model.stored import read_stored_model

pytest.importorskip("cv2", reason="the extra `faces` is not installed")

SHARED = Path(__file__).parents[2] / "shared"
ORL = SHARED / "data" / "orl_faces"
WEIGHTS = SHARED / "weights"
needs_orl = pytest.mark.skipif(
    not ORL.is_dir() or not list(WEIGHTS.glob("face_detection_yunet*")),
    reason="no ORL faces or no YuNet model beside the project",
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def hopper(hopper: Image.Image) -> Image.Image:
    """The photograph of a face, 137 x 160."""
    return hopper.resize((137, 160))


@pytest.fixture(scope="module")
def model(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as if its pictures had been cropped faces."""
    folder = tmp_path_factory.mktemp("of faces") / "model"
    shutil.copytree(tiny_run.model, folder)
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    description["face"] = FaceSettings(detector="haar", margin=0.1).model_dump()
    (folder / "model.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


@pytest.fixture
def photos(tmp_path: Path, hopper: Image.Image) -> Path:
    """`one.png`, `party.png` with two faces, and `wall.png` with none."""
    hopper.save(tmp_path / "one.png")
    party = Image.new("RGB", (290, 160), (90, 90, 90))
    party.paste(hopper.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((120, 140)), (5, 10))
    party.paste(hopper, (145, 0))
    party.save(tmp_path / "party.png")
    Image.new("RGB", (200, 160), (90, 90, 90)).save(tmp_path / "wall.png")
    return tmp_path


def test_the_nearest_faces_of_two_photographs_are_compared(model: Path, photos: Path) -> None:
    matcher = twinlens.load(model)
    assert matcher.face == FaceSettings(detector="haar", margin=0.1)
    one, party = photos / "one.png", photos / "party.png"
    answer = matcher.verify(party, one)
    faces = answer.faces
    assert isinstance(faces, ComparedFaces)
    assert (faces.first.number, faces.first.of, faces.second.of, faces.pairs) == (2, 2, 1, 2)
    assert faces.far_bound == 2 * answer.target_far
    crops = [face.picture for face in matcher.faces(party)]
    (grace,) = (face.picture for face in matcher.faces(one))
    distances = [matcher.distance(crop, grace) for crop in crops]
    assert answer.distance == min(distances) < max(distances)
    # The crop itself goes in untouched, as pixels of the network too.
    assert np.array_equal(matcher.as_is().embed(grace), matcher.embed(one))
    lines = answer.explain().splitlines()
    assert lines[1].startswith("the first picture shows 2 faces; compared: face 2 at 1")
    assert lines[3].startswith("the nearest of 2 pairs of faces: ")
    values = answer.as_json()["faces"]
    assert values["pairs"] == 2
    assert values["first"]["box"] == faces.first.box
    assert matcher.verify_many([(party, one)]) == [answer]
    assert twinlens.verify(model, party, one).faces == faces
    assert "faces" not in twinlens.verify(model, party, one, as_is=True).as_json()


def test_pictures_without_one_face(model: Path, photos: Path) -> None:
    matcher = twinlens.load(model)
    with pytest.raises(PictureError, match="no face was found in it; as_is"):
        matcher.embed(photos / "wall.png")
    with pytest.raises(PictureError, match=r"2 faces in it: face 1 at .*; face 2 at .*: crop one"):
        matcher.embed(photos / "party.png")
    assert matcher.as_is().embed(photos / "party.png").shape == (1, matcher.settings.embedding)
    with pytest.raises(ModelError, match="was not trained on cropped faces"):
        matcher.as_is().faces(photos / "one.png")


def test_identify_and_search_answer_for_each_face(
    model: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    people = str(tmp_path / "people")
    assert main(["gallery", "create", people, "--model", str(model)]) == 0
    files = [str(photos / name) for name in ("one.png", "party.png", "wall.png")]
    assert main(["gallery", "enrol", people, "--identity", "grace", *files]) == 0
    said = capsys.readouterr().err
    assert "party.png: 2 faces in it: face 1 at" in said
    assert "wall.png: no face was found in it" in said

    result = twinlens.identify(people, [files[1], files[2]], quiet=True)
    faces = [row.answer.face for row in result.answers if row.answer is not None]
    assert [(face.number, face.of) for face in faces if face is not None] == [(1, 2), (2, 2)]
    assert len(result.unread) == 1
    assert result.answers[1].as_json()["face"]["number"] == 2
    lines = result.as_text().splitlines()
    assert lines[0].startswith(f"2 faces in {files[1]}: face 1 at ")
    assert ", face 2 at 1" in lines[3]

    assert main(["search", people, files[1], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["face"]["number"], values["others"][0]["face"]["number"]) == (1, 2)
    assert values["others"][0]["hits"][0]["identity"] == "grace"
    text = twinlens.search(people, files[1], show=photos / "hits.png").as_text()
    assert [line.split(" ")[0] for line in text.splitlines()] == ["2", "face", "", "face", ""]

    gallery = twinlens.Gallery.open(people)
    answer = gallery.identify(files[0])
    assert answer.distance == 0
    (whole,) = twinlens.identify(gallery, files[2], as_is=True, quiet=True).answers
    assert "face" not in whole.as_json()
    twinlens.identify(people, files, show=photos / "sheet.png", as_is=True, quiet=True)
    assert gallery.enrol_files("wall", files[2], as_is=True).num_new == 1


def test_embed_writes_a_row_for_each_face(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    assert twinlens.embed(model, photos, out=out, quiet=True) == 3
    rows = pq.read_table(out).to_pylist()
    assert [(Path(row["path"]).name, row["face"]) for row in rows] == [
        ("one.png", 1), ("party.png", 1), ("party.png", 2),
    ]  # fmt: skip
    assert rows[1]["left"] < 137 < rows[2]["left"]
    one = twinlens.load(model).embed(photos / "one.png")[0]
    assert np.allclose(rows[0]["embedding"], one, atol=1e-6)
    assert twinlens.embed(model, photos, out=out, as_is=True, quiet=True) == 3
    assert "face" not in pq.read_table(out).column_names
    (photos / "one.png").unlink()
    (photos / "party.png").unlink()
    with pytest.raises(DataError, match=r"no face was found in .*; --as-is takes"):
        twinlens.embed(model, photos, out=out, quiet=True)


def test_a_missing_detector_is_one_line_with_a_way_out(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> None:
        raise DataError("cannot download yunet")

    monkeypatch.setattr(finding, "choose_detector", gone)
    finding._choice.cache_clear()
    with pytest.raises(DataError, match=r"^cannot download yunet; or take pictures as they are"):
        twinlens.load(model).embed(photos / "one.png")


# --- the walk: from unsorted photographs to names -----------------------------------------------


def photograph(files: list[Path], seed: int) -> Image.Image:
    """Pictures side by side, in several sizes, on grey."""
    rng, pictures = random.Random(seed), []
    for file in files:
        with Image.open(file) as picture:
            scale = rng.uniform(1, 2)
            size = round(picture.width * scale), round(picture.height * scale)
            pictures.append(picture.resize(size, Image.Resampling.BICUBIC))
    width = sum(picture.width + 40 for picture in pictures) + 40
    ground = Image.new("L", (width, max(picture.height for picture in pictures) + 80), 120)
    left = 40
    for picture in pictures:
        ground.paste(picture, (left, 40))
        left += picture.width + 40
    return ground


@needs_orl
@pytest.mark.slow
def test_from_unsorted_photographs_to_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Photographs of six people, three in each; a model of others; groups, names, a gallery."""
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(WEIGHTS))
    finding._choice.cache_clear()
    for person in range(1, 11):
        for file in sorted((ORL / f"s{person}").iterdir())[:6]:
            (tmp_path / "others" / f"s{person}").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "others" / f"s{person}")
    for number in range(8):
        people = [f"s{31 + (number + place) % 6}" for place in (0, 1, 3)]
        files = [ORL / person / f"{1 + number % 8}.pgm" for person in people]
        (tmp_path / "album").mkdir(exist_ok=True)
        photograph(files, number).save(tmp_path / "album" / f"{number}.jpg", quality=95)
    crop = {"margin": 0.1, "align": True, "workers": 1, "quiet": True}
    others = twinlens.faces(tmp_path / "others", tmp_path / "crops", **crop)
    album = twinlens.faces(tmp_path / "album", tmp_path / "faces", **crop)
    assert (others.faces, album.faces) == (60, 24)

    run = tmp_path / "run"
    twinlens.train(
        tmp_path / "crops", out=run, settings=TINY, quiet=True,
    )  # fmt: skip
    settings = settings_of_files([str(next((tmp_path / "crops" / "s1").iterdir()))],
                                 max_pixels=10**6)  # fmt: skip
    assert settings is not None
    assert settings.align
    assert read_stored_model(run).description.face == settings
    export = twinlens.export(run, tmp_path / "portable", format="onnx")
    assert read_stored_model(export.path).description.face == settings
    twinlens.evaluate(run, tmp_path / "others", split="all")
    assert "others holds pictures that `twinlens faces` has not cropped" in capsys.readouterr().err
    assert "Its pictures are cropped faces: the box of yunet" in (
        export.path / "README.md"
    ).read_text(encoding="utf-8")

    groups = tmp_path / "groups"
    twinlens.cluster(run, tmp_path / "faces", out=groups, quiet=True)
    largest = groups / "cluster-001"
    largest.rename(groups / "anna")
    twinlens.Gallery.create(tmp_path / "people", run)
    enrolled = twinlens.Gallery.open(tmp_path / "people").enrol(groups)
    assert enrolled.num_identities == 1
    answer = twinlens.identify(tmp_path / "people", tmp_path / "album" / "0.jpg", quiet=True)
    assert len(answer.answers) == 3
