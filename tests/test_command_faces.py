"""Folders of photographs to folders of faces; one photograph is tested in `test_face_crop`."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.commands import faces as command
from twinlens.config import FaceSettings
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError
from twinlens.face import extract
from twinlens.face.faces_of import FacePlace, faces_of
from twinlens.face.geometry import Face
from twinlens.face.layout import target_paths
from twinlens.face.marks import open_marked, settings_of_files
from twinlens.face.result import PhotographResult
from twinlens.report import faces as face_page

pytest.importorskip("cv2", reason="the extra `faces` is not installed")

MODEL = Path(__file__).parents[2] / "shared" / "weights" / "face_detection_yunet_2026may.onnx"
needs_model = pytest.mark.skipif(not MODEL.is_file(), reason="no YuNet model beside the project")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def hopper(hopper: Image.Image) -> Image.Image:
    """The photograph of a face, 137 x 160."""
    return hopper.resize((137, 160))


@pytest.fixture
def photos(tmp_path: Path, hopper: Image.Image) -> Path:
    """Two of Grace, one with two faces, one without, one broken."""
    top = tmp_path / "photos"
    save(hopper, top / "Грейс <b>" / "one.jpg")
    save(hopper.transpose(Image.Transpose.FLIP_LEFT_RIGHT), top / "Грейс <b>" / "zwei.png")
    twice = Image.new("RGB", (274, 160))
    twice.paste(hopper, (0, 0))
    twice.paste(hopper.resize((120, 140)), (145, 10))
    save(twice, top / "both" / "two.webp")
    save(Image.new("L", (120, 90), 130), top / "nobody" / "wall.png")
    (top / "nobody" / "broken.jpg").write_bytes(b"no picture")
    return top


def save(picture: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, **options)


def below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "faces.csv").open(encoding="utf-8", newline="") as text:
        return {row["path"]: row for row in csv.DictReader(text)}


def table_of(tmp_path: Path, *rows: tuple[str, str, bool, str]) -> ImageTable:
    return ImageTable.of_rows(
        [(str(tmp_path / path), *rest) for path, *rest in rows], "made", tmp_path
    )


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "detector", ["haar", pytest.param("yunet", marks=needs_model)]
)  # fmt: skip
def test_folders_names_counts_and_the_list(
    photos: Path, tmp_path: Path, detector: str, capsys: Capture
) -> None:
    model = MODEL if detector == "yunet" else None
    result = twinlens.faces(photos, tmp_path / "out", detector=detector, model=model)
    assert (result.pictures, result.faces) == (5, 3)
    assert (result.single, result.several, result.without, result.broken) == (2, 1, 1, 1)
    assert (result.identities, result.identities_with_a_face, result.identities_with_two) == (
        3,
        2,
        1,
    )
    said = capsys.readouterr().err
    assert "warning:   nobody/broken.jpg: not a picture that Pillow can read" in said
    assert "1 of 3 identities have no face" in said

    names = {"Грейс <b>/one.jpg", "Грейс <b>/zwei.png", "both/two.png"}
    assert set(below(tmp_path / "out")) == names | {"faces.csv", "faces.html"}
    table = read_table(tmp_path / "out")
    assert {table.relative(row) for row in range(len(table))} == names
    assert table.identities() == ["both", "Грейс <b>"]

    rows = rows_of(tmp_path / "out")
    assert list(rows) == sorted(rows)
    assert [row["outcome"] for row in rows.values()] == [
        "several", "broken", "without", "single", "single",
    ]  # fmt: skip
    assert rows["both/two.webp"]["output"] == "both/two.png"
    assert rows["both/two.webp"]["faces"] == "2"
    assert rows["nobody/broken.jpg"]["reason"] == "not a picture that Pillow can read"
    one = rows["Грейс <b>/one.jpg"]
    sides = [float(one[side]) for side in ("left", "top", "right", "bottom")]
    with Image.open(tmp_path / "out" / one["output"]) as face:
        assert face.format == "JPEG"
        assert abs(face.width - (sides[2] - sides[0])) <= 1
        assert abs(face.height - (sides[3] - sides[1])) <= 1
    assert 0 < sides[0] < 51 < 85 < sides[2] < 137  # Both of her eyes.


def test_the_face_is_the_listed_part_of_the_photograph(photos: Path, tmp_path: Path) -> None:
    twinlens.faces(photos, tmp_path / "out", detector="haar", margin=0.25, quiet=True)
    row = rows_of(tmp_path / "out")["Грейс <b>/zwei.png"]
    left, top, right, bottom = (float(row[side]) for side in ("left", "top", "right", "bottom"))
    x, y = 0.25 * (right - left), 0.25 * (bottom - top)
    sides = (max(0, left - x), max(0, top - y), min(137, right + x), min(160, bottom + y))
    with Image.open(photos / "Грейс <b>" / "zwei.png") as photograph:
        expected = photograph.crop([int(np.floor(side + 0.5)) for side in sides])
    with Image.open(tmp_path / "out" / row["output"]) as face:
        assert face.tobytes() == expected.tobytes()


def test_best_or_largest(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The left one of the two is the larger; here the right one has the higher score."""
    real = extract.detect_faces

    def scored(*args: Any, **kwargs: Any) -> list[Face]:
        result = real(*args, **kwargs)
        return [replace(face, score=1 + face.box.left) for face in result]

    monkeypatch.setattr(extract, "detect_faces", scored)
    sides = {}
    for keep in ("best", "largest"):
        out = tmp_path / keep
        twinlens.faces(photos, out, detector="haar", keep=keep, workers=1, quiet=True)
        row = rows_of(out)["both/two.webp"]
        assert row["output"] == "both/two.png"
        sides[keep] = float(row["left"]), float(row["right"])
    assert sides["largest"][1] < 137 < sides["best"][0]


def test_exif_orientation_is_applied(hopper: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned right by a quarter.
    save(hopper, tmp_path / "in" / "grace" / "upright.png")
    lying = hopper.transpose(Image.Transpose.ROTATE_90)
    save(lying, tmp_path / "in" / "grace" / "lying.png", exif=exif)
    twinlens.faces(tmp_path / "in", tmp_path / "out", detector="haar", quiet=True)
    pictures = below(tmp_path / "out" / "grace")
    assert pictures["lying.png"] == pictures["upright.png"]


@needs_model
def test_size_margin_align_and_score(photos: Path, tmp_path: Path) -> None:
    result = twinlens.faces(
        photos, tmp_path / "out", model=MODEL, size=64, margin=0.2, align=True, pad=0.1, quiet=True
    )
    assert (result.detector, result.faces) == ("yunet", 3)
    for name, content in below(tmp_path / "out").items():
        if name.endswith(("png", "jpg")):
            with Image.open(tmp_path / "out" / name) as face:
                assert face.size == (64, 64), content[:8]
    none = twinlens.faces(photos, tmp_path / "sure", model=MODEL, score=0.99, quiet=True)
    assert (none.faces, none.low_score, none.without) == (0, 3, 1)
    page = (tmp_path / "sure" / "faces.html").read_text(encoding="utf-8")
    assert "Below the score" in page
    assert 'id="least"' not in page


def test_no_face_at_all_is_a_warning_with_advice(tmp_path: Path, capsys: Capture) -> None:
    save(Image.new("RGB", (50, 50)), tmp_path / "in" / "a" / "b.png")
    words = ["faces", str(tmp_path / "in"), str(tmp_path / "out"), "--detector", "haar"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("0 faces of 0 identities in ")
    assert "--pad" in err
    assert set(below(tmp_path / "out")) == {"faces.csv", "faces.html"}


@pytest.mark.parametrize(
    ("detector", "align"), [("haar", False), pytest.param("yunet", True, marks=needs_model)]
)  # fmt: skip
def test_any_number_of_processes_writes_the_same_bytes(
    photos: Path, tmp_path: Path, detector: Any, align: bool
) -> None:
    outs = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        out = tmp_path / str(workers) / "out"
        twinlens.faces(
            photos, out, detector=detector, model=MODEL if align else None, align=align,
            workers=workers, quiet=True,
        )  # fmt: skip
        outs.append(below(out))
        page = outs[-1].pop("faces.html").replace(str(out).encode(), b"OUT")
        outs[-1]["faces.html"] = page
    assert outs[0] == outs[1]
    assert len(outs[0]) == 5


def test_a_process_starts_without_torch() -> None:
    code = "import sys, twinlens.commands.faces; assert not {'torch', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_shows_the_doubtful_and_escapes_names(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        save(Image.new("L", (60, 40), 9 * number), photos / "nobody" / f"wall{number}.png")
    monkeypatch.setattr(face_page, "MOST_SHOWN", 3)
    twinlens.faces(photos, tmp_path / "out", detector="haar", quiet=True)
    page = (tmp_path / "out" / "faces.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    doubtful = re.sub(r'id="few".*|id="crops".*?</section>', "", page, flags=re.S)
    assert "Грейс &lt;b&gt;" not in doubtful
    assert page.count('<img src="data:image/') == 7  # 3 crops, 3 of 8 walls, and the two faces.
    assert "8 in all; 3 of them, evenly spaced, are shown." in page
    assert "2 faces" in page
    assert "nobody/broken.jpg" in page
    assert "The Haar cascade was used" in page
    command = f"twinlens faces {photos} {tmp_path / 'out'} --detector haar"
    assert f"{command} --score 0.5 --keep best --margin 0.0 --pad 0.0<" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count(":root {") == 3  # The report's style, light, dark and on paper.


def test_boxes_are_drawn_green_and_red() -> None:
    kept = Face(face_page.Box(10, 10, 50, 50), 0.9)
    other = Face(face_page.Box(60, 60, 90, 90), 0.8)
    result = PhotographResult("several", (kept, other), (kept,), 2)
    drawn = face_page._boxed(Image.new("RGB", (100, 100)), result)
    assert drawn.shape == (3, 240, 240)
    assert tuple(drawn[:, 24, 24]) == face_page.GREEN
    assert tuple(drawn[:, 144, 144]) == face_page.RED
    assert drawn[:, 60, 60].sum() == 0


# --- places -------------------------------------------------------------------------------------


def test_equal_names_get_other_names(tmp_path: Path) -> None:
    names = ["a.pgm", "a.PNG", "a.bmp", "a.pgm.png", "b.jpg", "B.jpg", "b.tif", "c.gif"]
    rows = [(f"x/{name}", "x", False, "") for name in names]
    table = table_of(tmp_path, *rows)
    paths = {
        table.relative(row): place.as_posix()
        for row, place in enumerate(target_paths(table, tmp_path))
    }
    assert paths == {
        "x/a.PNG": "x/a.PNG",
        "x/a.pgm.png": "x/a.pgm.png",
        "x/a.bmp": "x/a.bmp.png",
        "x/a.pgm": "x/a.pgm-2.png",
        "x/B.jpg": "x/B.jpg",
        "x/b.jpg": "x/b-2.jpg",
        "x/b.tif": "x/b.png",
        "x/c.gif": "x/c.png",
    }


def test_faces_of_pictures_with_one_name_do_not_overwrite_each_other(
    hopper: Image.Image, tmp_path: Path
) -> None:
    save(hopper, tmp_path / "in" / "g" / "a.bmp")
    save(hopper.convert("L"), tmp_path / "in" / "g" / "a.png")
    twinlens.faces(tmp_path / "in", tmp_path / "out", detector="haar", quiet=True)
    modes = {}
    for name in ("a.png", "a.bmp.png"):
        with Image.open(tmp_path / "out" / "g" / name) as face:
            modes[name] = face.mode
    assert modes == {"a.png": "L", "a.bmp.png": "RGB"}


def test_without_folders_the_identity_is_the_folder(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        ("s/1.png", "../../Anna", False, "train"),
        ("s/2.png", "a/b", True, "test"),
        ("t/2.png", "a/b", False, "test"),
        ("t/.h.png", "a/b", False, "test"),
    )
    places = [place.as_posix() for place in target_paths(table, table)]
    assert places == ["train/_./_./Anna/1.png", "test/a/b_forg/2.png", "test/a/b/_h.png",
                      "test/a/b/2.png"]  # fmt: skip
    loose = table.with_split(["train", "", "", ""])
    assert target_paths(loose, loose)[1].as_posix() == "a/b_forg/2.png"
    clash = table_of(tmp_path, ("1.png", "a:b", False, ""), ("2.png", "a_b", False, ""))
    with pytest.raises(DataError, match=r"'a:b' and 'a_b' would share the folder a_b"):
        target_paths(clash, clash)


def test_a_manifest_gives_class_folders(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "path,identity,split\n"
        "photos/Грейс <b>/one.jpg,Hopper,train\nphotos/both/two.webp,two,test\n",
        encoding="utf-8",
    )
    twinlens.faces(tmp_path / "list.csv", tmp_path / "out" / "new", detector="haar", quiet=True)
    table = read_table(tmp_path / "out" / "new")
    assert table.split.tolist() == ["test", "train"]
    assert table.identity.tolist() == ["two", "Hopper"]


def test_given_splits_stay(hopper: Image.Image, tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(hopper, tmp_path / "in" / split / "grace" / "1.png")
    twinlens.faces(tmp_path / "in", tmp_path / "out", detector="haar", quiet=True)
    assert sorted(read_table(tmp_path / "out").split) == ["test", "train"]


# --- refusals and interruptions -----------------------------------------------------------------


def test_a_folder_in_use_is_an_error_and_nothing_is_lost(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    twinlens.faces(photos, out, detector="haar", quiet=True)  # Empty is as good as new.
    before = below(out)
    with pytest.raises(DataError, match="out is not empty: name another folder"):
        twinlens.faces(photos, out, detector="haar")
    assert below(out) == before
    with pytest.raises(DataError, match="is a file"):
        twinlens.faces(photos, photos / "both" / "two.webp", detector="haar")
    with pytest.raises(DataError, match=r"lies in .*photos"):
        twinlens.faces(photos, photos / "faces", detector="haar")
    with pytest.raises(DataError, match="is in memory"):
        twinlens.faces("digits", tmp_path / "x", detector="haar")
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "out", "own-cache"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": 1.5}, r"score must be in \[0, 1\], found 1.5"),
        ({"score": float("nan")}, r"score must be in \[0, 1\]"),
        ({"margin": -0.1}, r"margin must be in \[0, 4\]"),
        ({"pad": 9}, r"pad must be in \[0, 4\]"),
        ({"size": 0}, "size must be at least 8, found 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"keep": "bets"}, "unknown face to keep 'bets': did you mean best"),
        ({"detector": "yunett"}, "unknown detector"),
        ({"detector": "haar", "align": True}, "the Haar cascade finds no eyes to align by"),
    ],
)
def test_settings_out_of_range(photos: Path, tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        twinlens.faces(photos, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_score_for_the_cascade_is_a_warning(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    twinlens.faces(photos, tmp_path / "out", detector="haar", score=0.9)
    assert "the score of 0.9 is not used" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: Any
) -> None:
    settle: Callable[..., Any] = extract._crop
    calls = []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise error
        return settle(*args)

    monkeypatch.setattr(extract, "_crop", stop)
    code = main(["faces", str(photos), str(tmp_path / "out"), "--detector", "haar"])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "Traceback" not in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "own-cache"}


def start_faces(hopper: Image.Image, folder: Path) -> subprocess.Popen[bytes]:
    """Two workers with more photographs than they can crop before they are stopped, at work."""
    save(hopper, folder / "in" / "grace" / "0.png")
    for number in range(1, 2000):
        shutil.copy(folder / "in/grace/0.png", folder / "in/grace" / f"{number}.png")
    # Tests that run in the background are deaf to Ctrl-C, and so would this process be. (It hears
    # by itself: a `preexec_fn` forks, of which a library that another test has loaded may warn.)
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from twinlens.cli.main import main; sys.exit(main())"
    )
    words = ["-c", code, "faces", "in", "out", "--detector", "haar", "--workers", "2"]
    running = subprocess.Popen(
        [sys.executable, *words], cwd=folder, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".out.part-*/whole/grace/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_leaves_nothing(
    number: int, hopper: Image.Image, tmp_path: Path
) -> None:
    running = start_faces(hopper, tmp_path)
    os.killpg(running.pid, number)
    _, said = running.communicate(timeout=60)  # Until the last process has closed its end.
    # On a busy machine there may have been a line of progress before.
    assert running.returncode == 128 + number
    assert said.endswith(b"twinlens: interrupted: only files that were complete are written\n")
    assert b"Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "own-cache"}


def test_workers_end_with_a_killed_parent_and_its_part_is_swept(
    hopper: Image.Image, tmp_path: Path
) -> None:
    running = start_faces(hopper, tmp_path)
    running.kill()
    running.communicate(timeout=60)  # Until the last worker has closed its end.
    assert list(tmp_path.glob(".out.part-*"))
    (tmp_path / "few" / "grace").mkdir(parents=True)
    shutil.copy(tmp_path / "in/grace/0.png", tmp_path / "few/grace/0.png")
    twinlens.faces(tmp_path / "few", tmp_path / "out", detector="haar", quiet=True)
    assert not list(tmp_path.glob(".*"))


# --- the command line ---------------------------------------------------------------------------


def test_the_command_prints_a_summary_or_json(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["faces", str(photos), "--detector", "haar", "--quiet"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"3 faces of 2 identities in {tmp_path / 'a'}"
    assert main([*words, str(tmp_path / "b"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    again = twinlens.faces(photos, tmp_path / "c", detector="haar", quiet=True).as_json()
    assert [str(value).replace("/b", "/c") for value in said.values()] == [
        str(value) for value in again.values()
    ]


def test_errors_are_one_line_and_exit_code_2(
    photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    for words in (
        ["faces", str(tmp_path / "gone"), out],
        ["faces", str(photos), str(photos)],
        ["faces", str(photos), out, "--detector", "haar", "--align"],
        ["faces", str(photos), out, "--model", str(tmp_path / "gone.onnx")],
        ["faces", str(photos), out, "--score", "much"],
    ):
        assert main(words) == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.startswith("twinlens: error: ")
        assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["faces", str(photos), out]) == 2
    assert "pip install 'twinlens[faces]'" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty", target_is_directory=True)
    monkeypatch.setattr(command, "crop_all", lambda *_: pytest.fail("work has begun"))
    monkeypatch.chdir(tmp_path / "empty")
    for out in (tmp_path / "link", Path()):
        with pytest.raises(DataError, match="cannot replace: name a folder inside it"):
            twinlens.faces(photos, out, quiet=True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["faces", str(photos), "~nobody-at-all/x", "--model", "~nobody-at-all/m"]) == 2
    assert "Traceback" not in capsys.readouterr().err


# --- unsorted photographs -----------------------------------------------------------------------


def test_every_face_of_unsorted_photographs_is_kept(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(photos / "both" / "two.webp", photos / "two.webp")  # Outside of class folders.
    result = twinlens.faces(photos, tmp_path / "out", detector="haar")
    assert (result.pictures, result.faces, result.single, result.several) == (6, 6, 2, 2)
    assert (result.identities, result.failure_to_enrol) == (0, None)
    assert result.as_text().startswith(f"6 faces in {tmp_path / 'out'}\n")
    assert "identit" not in capsys.readouterr().err + result.as_text()

    with (tmp_path / "out" / "faces.csv").open(encoding="utf-8", newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["path"] == "two.webp"]
    assert [row["output"] for row in rows] == ["two.face1.png", "two.face2.png"]
    assert float(rows[0]["left"]) < 137 < float(rows[1]["left"])
    names = {"both/two.face1.png", "both/two.face2.png"}  # Folders stay.
    assert names < set(below(tmp_path / "out"))
    page = (tmp_path / "out" / "faces.html").read_text(encoding="utf-8")
    assert "every face was cropped: 6 faces in all" in page
    assert 'id="few"' not in page


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_crop_remembers_its_settings_and_is_no_photograph(
    hopper: Image.Image, tmp_path: Path, ending: str
) -> None:
    save(hopper, tmp_path / "in" / f"grace.{ending}")
    twinlens.faces(tmp_path / "in", tmp_path / "out", detector="haar", margin=0.1, quiet=True)
    file = tmp_path / "out" / f"grace.face1.{ending}"
    settings = FaceSettings(detector="haar", margin=0.1)
    assert settings_of_files([str(file), "gone.png"], max_pixels=10**6) == settings
    assert settings_of_files([str(file), str(next((tmp_path / "in").iterdir()))],
                             max_pixels=10**6) is None  # fmt: skip
    (crop,) = faces_of(open_marked(file, max_pixels=10**6), settings)
    assert crop.place == FacePlace()
    (again,) = faces_of(
        open_marked(tmp_path / "in" / f"grace.{ending}", max_pixels=10**6), settings
    )
    assert again.place.box is not None
    if ending == "png":
        assert again.picture.tobytes() == crop.picture.tobytes()


def test_a_picture_that_its_crop_would_hardly_change_stays_whole(hopper: Image.Image) -> None:
    settings = FaceSettings(detector="haar")
    (face,) = faces_of(hopper, settings)
    (again,) = faces_of(Image.fromarray(np.asarray(face.picture)), settings)
    assert again.place == FacePlace()
    assert faces_of(Image.new("L", (90, 70), 99), settings) == []
