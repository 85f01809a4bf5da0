"""`identify` and `search`: answers, their text, and their sheets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyRun
from PIL import Image

import twinlens
from twinlens.commands.identify import (
    Identification,
    IdentificationResult,
    SearchResult,
    identify,
    search,
)
from twinlens.errors import CalibrationError, DataError, GalleryError, PictureError
from twinlens.gallery import show as answer_sheets
from twinlens.gallery.gallery import Gallery
from twinlens.match.answers import Candidate, Hit, IdentifyAnswer
from twinlens.report.answer_sheet import Strip
from twinlens.report.canvas import GREEN, LINE, RED

ENROLLED = ("thing 0", "thing 1", "thing 2")


@pytest.fixture(scope="module")
def place(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three identities with 4 pictures each, calibrated. Shared: do not change it."""
    top = tmp_path_factory.mktemp("identify")
    gallery = Gallery.create(top / "gallery", tiny_run.run)
    for floor, name in enumerate(ENROLLED):
        files = [tiny_run.data / name / f"{number}.png" for number in range(4)]
        gallery.enrol_files(
            name, files, metadata={"floor": floor, "name": name}, keep_thumbnails=True
        )
    gallery.calibrate(fpir=0.25)
    return top / "gallery"


def picture(tiny_run: TinyRun, name: str, number: int = 5) -> Path:
    return tiny_run.data / name / f"{number}.png"


def count(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as shown:
        return int((np.asarray(shown) == color).all(axis=2).sum())


def test_answers_are_those_of_the_gallery(place: Path, tiny_run: TinyRun) -> None:
    pictures = [picture(tiny_run, name) for name in ("thing 0", "thing 1", "thing 9")]
    found = identify(place, pictures, k=2)
    gallery = Gallery.open(place)
    assert [one.picture for one in found.answers] == [str(path) for path in pictures]
    assert [one.answer for one in found.answers] == [gallery.identify(p, k=2) for p in pictures]
    assert identify(gallery, pictures, k=2) == found
    assert identify(place, pictures[0], k=2).answers == found.answers[:1]
    named = [one.answer.identity for one in found.answers[:2] if one.answer is not None]
    assert named == ["thing 0", "thing 1"]


def test_a_picture_that_is_enrolled_finds_itself(place: Path, tiny_run: TinyRun) -> None:
    found = identify(place, picture(tiny_run, "thing 1", 2)).answers[0].answer
    assert found is not None
    assert found.identity == "thing 1"
    assert found.distance == pytest.approx(0, abs=1e-5)
    assert found.candidates[0].path == str(picture(tiny_run, "thing 1", 2))


def test_one_that_cannot_be_read_stops_no_other(place: Path, tiny_run: TinyRun) -> None:
    good = picture(tiny_run, "thing 0")
    found = identify(place, [good, "none.png", good])
    assert [one.error for one in found.answers] == [None, "no such file", None]
    assert found.unread == (Identification("none.png", None, "no such file"),)
    assert not found.all_identified
    assert found.as_json()["answers"][1] == {"picture": "none.png", "error": "no such file"}
    assert "none.png" not in found.as_text()
    assert identify(place, good).all_identified


def test_where_none_can_be_read(place: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"^none\.png: no such file$"):
        identify(place, "none.png")
    with pytest.raises(DataError, match=r"none of the 2 pictures can be read.*a\.png"):
        identify(place, ["a.png", tmp_path])
    with pytest.raises(DataError, match="no pictures were given"):
        identify(place, [])


def test_what_is_wrong_is_said(place: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    good = picture(tiny_run, "thing 0")
    with pytest.raises(GalleryError, match="k must be at least 1, found 0"):
        identify(place, good, k=0)
    with pytest.raises(CalibrationError, match=r"0\.0001 needs at least 10000"):
        identify(place, good, far=0.0001)
    with pytest.raises(GalleryError, match="there is no gallery at"):
        identify(tmp_path / "none", good)
    with pytest.raises(GalleryError, match=r"identity, path, time or metadata.*metadata\.colour"):
        search(place, good, where="colour = 'red'")
    with pytest.raises(GalleryError, match="is not understood at character 12"):
        search(place, good, where="identity ==== 'x'")
    with pytest.raises(GalleryError, match="since identity is text"):
        search(place, good, where="identity > 3")
    with pytest.raises(DataError, match="there is no folder"):
        identify(place, good, show=tmp_path / "no" / "x.png")
    # Before the work: the gallery is not even opened.
    with pytest.raises(DataError, match=r"cannot write .*s\.txt: its ending is not a picture's"):
        identify(tmp_path / "none", good, show=tmp_path / "s.txt")
    with pytest.raises(DataError, match="its ending is not a picture's"):
        search(tmp_path / "none", good, show=tmp_path / "s")


def test_an_empty_gallery_answers_nobody(tiny_run: TinyRun, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "empty", tiny_run.run)
    shown = tmp_path / "x.png"
    found = identify(tmp_path / "empty", picture(tiny_run, "thing 0"), show=shown).answers[0].answer
    assert found is not None
    assert (found.verdict, found.candidates) == ("nobody", ())
    assert "the gallery is empty" in found.reason
    assert search(tmp_path / "empty", picture(tiny_run, "thing 0")).hits == ()
    assert shown.is_file()


def test_searching(place: Path, tiny_run: TinyRun) -> None:
    probe = picture(tiny_run, "thing 2")
    found = search(place, probe, k=12)
    assert found.hits == Gallery.open(place).search(probe, k=12)
    assert len(found.hits) == 12
    distances = [hit.distance for hit in found.hits]
    assert distances == sorted(distances)
    assert {hit.identity for hit in found.hits[:4]} == {"thing 2"}
    assert len(search(place, probe, k=5).hits) == 5


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("identity = 'thing 1'", {"thing 1"}),
        ("metadata.floor > 0", {"thing 1", "thing 2"}),
        ("metadata.floor = 0 OR identity LIKE '%2'", {"thing 0", "thing 2"}),
        ("time > date '2020-01-01'", set(ENROLLED)),
        ("time > date '2200-01-01'", set()),
    ],
)
def test_searching_where(where: str, names: set[str], place: Path, tiny_run: TinyRun) -> None:
    found = search(place, picture(tiny_run, "thing 0"), k=50, where=where)
    assert {hit.identity for hit in found.hits} == names


# --- in words -----------------------------------------------------------------------------------


def answer(**changes: object) -> IdentifyAnswer:
    values: dict[str, object] = {
        "verdict": "identified", "identity": "anna", "reason": "it is near", "distance": 0.25,
        "margin": 0.5, "threshold": 0.5, "threshold_of": "gallery", "target_fpir": 0.01,
        "probability": 0.9,
        "candidates": (
            Candidate("anna", 0.25, 0.9, "/in/a.png"), Candidate("Bo\nb", 0.75, None, "/in/\n.png"),
        ),
    }  # fmt: skip
    return IdentifyAnswer(**values | changes)  # type: ignore[arg-type]


def test_answers_in_words() -> None:
    found = IdentificationResult(
        (Identification("x\n.png", answer()), Identification("y.png", None, "gone"))
    )
    assert found.as_text().splitlines() == [
        "x\\n.png: anna: it is near",
        "    1  anna   distance 0.2500  probability  90.0 %  /in/a.png",
        "    2  Bo\\nb  distance 0.7500  /in/\\n.png",
    ]
    assert found.answers[1].as_text() == "y.png: not read: gone"
    stranger = answer(verdict="nobody", identity=None, candidates=())
    assert Identification("z", stranger).as_text() == "z: nobody: it is near"


def test_long_and_odd_names_stay_on_a_line_and_are_whole_in_json() -> None:
    name = "\x1b[2J\u2028" + "n" * 4000
    odd = answer(identity=name, candidates=(Candidate(name, 0.1, None, "/in/a.png"),))
    text = Identification("p", odd).as_text()
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert len(text) < 250
    assert Identification("p", odd).as_json()["identity"] == name
    hit = Hit("/in/a.png", name, 0.5, datetime(2026, 1, 2, tzinfo=UTC), {"k": 1}, "00")
    lines = SearchResult("p", (hit, hit)).as_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("    1  distance 0.5000  \\x1b[2J\\u2028nn")
    assert lines[0].endswith("  /in/a.png")
    json = SearchResult("p", (hit,)).as_json()
    assert json["hits"][0]["identity"] == name
    assert json["hits"][0]["time"] == "2026-01-02T00:00:00+00:00"
    assert SearchResult("p\n", ()).as_text() == "p\\n: nothing found"


# --- pictures -----------------------------------------------------------------------------------


def test_show_frames_who_is_within_the_threshold(
    place: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    known, stranger = (picture(tiny_run, name) for name in ("thing 0", "thing 9"))
    found = identify(place, [known], k=3, show=tmp_path / "known.png").answers[0].answer
    assert found is not None
    assert found.verdict == "identified"
    assert sum(one.distance <= found.threshold for one in found.candidates) == 1
    # The probe and one candidate are green, two candidates red; the title is green too.
    assert count(tmp_path / "known.png", GREEN) > 0.8 * count(tmp_path / "known.png", RED)
    far = identify(place, stranger, k=3, show=tmp_path / "far.png").answers[0].answer
    assert far is not None
    assert far.verdict == "nobody"
    assert count(tmp_path / "far.png", GREEN) == 0
    assert count(tmp_path / "far.png", RED) > count(tmp_path / "known.png", RED)


def test_show_draws_the_candidates_of_every_answer(
    place: Path, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer has more of them than are drawn."""
    drawn: list[Strip] = []

    def note(strips: Sequence[Strip]) -> Image.Image:
        drawn.extend(strips)
        return Image.new("L", (2, 2))

    monkeypatch.setattr(answer_sheets, "MAX_STRIPS", 2)
    monkeypatch.setattr(answer_sheets, "MAX_TILES", 1)
    monkeypatch.setattr(answer_sheets, "draw_sheet", note)
    given = [
        (str(picture(tiny_run, "thing 0")), answer(candidates=tuple(
            Candidate(name, 0.25, None, str(picture(tiny_run, name, number))) for name in ENROLLED
        )))
        for number in range(3)
    ]  # fmt: skip
    answer_sheets.draw_answers(tmp_path / "x.png", Gallery.open(place), given)
    assert [[tile.name for tile in strip.results] for strip in drawn] == [["thing 0"]] * 2
    assert all(tile.picture is not None for strip in drawn for tile in strip.results)


def test_show_of_several_is_taller(place: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    good = picture(tiny_run, "thing 0")
    identify(place, good, show=tmp_path / "one.png")
    identify(place, [good, "none.png"], show=tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width == two.width
        assert two.height > 1.9 * one.height - 100


def gallery_of_copies(tiny_run: TinyRun, top: Path, *, keep_thumbnails: bool) -> Path:
    """A gallery whose pictures are gone since."""
    (top / "in").mkdir(parents=True)
    names = [shutil.copy(picture(tiny_run, "thing 0", i), top / "in" / f"{i}.png") for i in (0, 1)]
    gallery = Gallery.create(top / "gallery", tiny_run.run)
    gallery.enrol_files("x", names, keep_thumbnails=keep_thumbnails)
    shutil.rmtree(top / "in")
    return top / "gallery"


def test_show_takes_thumbnails_where_pictures_are_gone(tiny_run: TinyRun, tmp_path: Path) -> None:
    probe = picture(tiny_run, "thing 0")
    grey = {}
    for keep in (True, False):
        top = tmp_path / str(keep)
        gone = gallery_of_copies(tiny_run, top, keep_thumbnails=keep)
        assert len(search(gone, probe, show=top / "hits.png").hits) == 2
        identify(gone, probe, show=top / "who.png")
        grey[keep] = [count(top / name, LINE) for name in ("hits.png", "who.png")]
    # An empty place is grey all over: there were two, and then the best one's.
    assert grey[False][0] > grey[True][0] + 2 * 30_000
    assert grey[False][1] > grey[True][1] + 30_000


def test_searches_are_drawn(place: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    probe = picture(tiny_run, "thing 0")
    search(place, probe, k=12, show=tmp_path / "all.png")
    search(place, probe, k=4, where="identity = 'thing 0'", show=tmp_path / "near.png")
    within = [hit.distance <= Gallery.open(place).threshold().value for hit in
              search(place, probe, k=4).hits]  # fmt: skip
    assert all(within)
    assert count(tmp_path / "near.png", RED) == 0
    assert count(tmp_path / "all.png", RED) > 0
    with pytest.raises(DataError, match="cannot write"):
        search(place, probe, show=tmp_path / "x.nonsense")
    assert not list(tmp_path.glob("*nonsense*"))


def test_a_threshold_for_means_frames_no_single_templates(
    place: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    copy = shutil.copytree(place, tmp_path / "copy")
    probe = picture(tiny_run, "thing 0")
    for rule, framed in (("mean", False), ("vote", True), ("nearest", True)):
        Gallery.open(copy).calibrate(fpir=0.25, rule=rule)
        search(copy, probe, k=12, show=tmp_path / "all.png")
        colors = count(tmp_path / "all.png", GREEN), count(tmp_path / "all.png", RED)
        assert (min(colors) > 0) is framed
        assert (max(colors) > 0) is framed


def test_public_names(place: Path, tiny_run: TinyRun) -> None:
    probe = picture(tiny_run, "thing 0")
    assert twinlens.identify(place, probe) == identify(place, probe)
    assert twinlens.search(str(place), str(probe)) == search(place, probe)
    assert isinstance(twinlens.Gallery.open(place).identify(probe), twinlens.IdentifyAnswer)


def test_pictures_that_are_no_files(place: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    files = [picture(tiny_run, name) for name in ENROLLED]
    pixels, opened = np.array(Image.open(files[1])), Image.open(files[2]).convert("L")
    given = [files[0], pixels, opened, files[0]]
    found = identify(Gallery.open(place), given, show=tmp_path / "who.png", quiet=True)
    assert [row.picture for row in found.answers] == [
        str(files[0]), "picture 2", "picture 3", str(files[0])
    ]  # fmt: skip
    expected = identify(place, [*files, files[0]], show=tmp_path / "files.png", quiet=True)
    assert [row.answer for row in found.answers] == [row.answer for row in expected.answers]
    assert opened.size == (16, 16)
    frame = found.to_frame()
    assert frame["identity"].tolist() == [row.answer.identity for row in expected.answers]
    hits = search(place, pixels, k=2, show=tmp_path / "hits.png")
    assert hits.hits == search(place, files[1], k=2).hits
    assert hits.to_frame()["distance"].tolist() == [hit.distance for hit in hits.hits]
