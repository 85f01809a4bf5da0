"""Picture sets of the service: labels, copies, hostile names, full disks, and their routes."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import BaseModel

from twinlens.errors import ConfigError
from twinlens.service import job_schemas, picture_files, picture_sets
from twinlens.service.app import create_app
from twinlens.service.errors import ServiceError
from twinlens.service.folder_names import file_name, folder_name, identity_of
from twinlens.service.job_work import warn_of_contradictions
from twinlens.service.picture_sets import PictureSets
from twinlens.service.settings import Limits, ServiceSettings

ODD_NAMES = ["anna", "Zoë", "a/b", "../../etc", "..", ".", " x ", "CON", "lpt1.txt", "lost+found",
             "100 %", "%2F", 'a"<>|:*?\\b', "train", "x\ny\x00", "猫 \U0001f408", "a.", "@eaDir",
             "\u202eabc"]  # fmt: skip


def drawn(seed: int, side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def sets(tmp_path: Path) -> PictureSets:
    return PictureSets(ServiceSettings(data=tmp_path))


# --- names ---


def test_identities_are_any_text_and_come_back(sets: PictureSets, tmp_path: Path) -> None:
    for number, name in enumerate(ODD_NAMES):
        assert identity_of(folder_name(name)) == name
        assert sets.add("odd", name, "1.png", drawn(number)).state == "stored"
    assert set(sets.identities("odd")) == set(ODD_NAMES)
    assert sorted(sets.table("odd").identities()) == sorted(ODD_NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}
    assert all(path.parent.parent.name == "odd" for path in tmp_path.rglob("*.png"))
    for entry in sets.pictures("odd"):
        assert sets.file("odd", entry.picture).is_file()


def test_forms_of_unicode_are_one_identity(sets: PictureSets) -> None:
    sets.add("set", "Zoe\u0308", "1.png", drawn(1))
    sets.add("set", "Zo\u00eb", "2.png", drawn(2))
    assert sets.identities("set") == {"Zo\u00eb": 2}


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "猫" * 100, "\ud800"])
def test_identities_that_cannot_be_stored(sets: PictureSets, name: str) -> None:
    with pytest.raises(ConfigError):
        sets.add("set", name, "1.png", drawn(1))
    assert sets.names() == []


@pytest.mark.parametrize("name", ["../x.png", ".hidden", "a\0b.png", "x" * 500, "", "..", "\ud800"])
def test_file_names_are_made_safe(name: str) -> None:
    made = file_name(name, ".png", "0" * 12)
    assert "/" not in made
    assert not made.startswith(".")
    assert len(made.encode()) < 200
    assert made.endswith("~000000000000.png")


@pytest.mark.parametrize("name", ["../x", ".x", "", "a/b", "x" * 65])
def test_set_names_are_refused(sets: PictureSets, name: str) -> None:
    with pytest.raises(ConfigError, match="a picture set needs a name"):
        sets.add(name, "anna", "1.png", drawn(1))


@pytest.mark.parametrize(
    "key",
    ["", "anna", "../x.png", "anna/../../x", ".known/x", "/etc/passwd", "anna/\0", "a/" * 500],
)
def test_keys_lead_nowhere_else(sets: PictureSets, key: str) -> None:
    sets.add("set", "anna", "1.png", drawn(1))
    with pytest.raises(ServiceError, match="there is no picture"):
        sets.file("set", key)


def test_links_out_of_a_set_are_no_pictures(sets: PictureSets, tmp_path: Path) -> None:
    sets.add("set", "anna", "1.png", drawn(1))
    (tmp_path / "secret.png").write_bytes(drawn(2))
    (tmp_path / "pictures/set/anna/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ServiceError, match="there is no picture"):
        sets.file("set", "anna/link.png")


# --- contents ---


def test_copies_and_contradictions(sets: PictureSets, capsys: pytest.CaptureFixture[str]) -> None:
    one = sets.add("set", "anna", "1.PNG", drawn(1))
    assert (one.state, one.picture) == ("stored", f"anna/1~{one.picture[7:19]}.png")
    again = sets.add("set", "anna", "other.png", drawn(1))
    assert (again.state, again.picture) == ("duplicate", one.picture)
    other = sets.add("set", "ben", "1.png", drawn(1))
    assert (other.state, other.other) == ("contradiction", one.picture)
    assert sets.add("set", "ben", "2.png", drawn(1)).state == "duplicate"
    assert sets.add("set", None, "1.png", drawn(1)).state == "duplicate"
    warn_of_contradictions(sets, "set")
    assert capsys.readouterr().err == ""  # None is known yet.
    (contradiction,) = sets.summary("set")["inspection"]["contradictions"]
    warn_of_contradictions(sets, "set")
    assert "pictures under several identities (1)" in capsys.readouterr().err
    assert contradiction["paths"] == [one.picture, other.picture]
    assert sets.move("set", other.picture, "anna") == one.picture
    assert sets.identities("set") == {"anna": 1}
    assert sets.summary("set")["inspection"]["contradictions"] == []


def test_broken_pictures_are_refused_and_noted(sets: PictureSets, tmp_path: Path) -> None:
    for name, content in (("cut.png", drawn(1)[:200]), ("text.png", b"hello"), ("no.png", b"")):
        refused = sets.add("set", "anna", name, content)
        assert (refused.state, refused.picture) == ("refused", None)
        assert refused.reason
        assert str(tmp_path) not in refused.reason
    assert [one["name"] for one in sets.summary("set")["refused"]] == [
        "cut.png",
        "text.png",
        "no.png",
    ]
    assert list(tmp_path.rglob("*.png")) == []
    sets.forget_refused("set")
    assert sets.summary("set")["refused"] == []


def test_sorting_moves_pictures_with_their_thumbnails(sets: PictureSets, tmp_path: Path) -> None:
    key = sets.add("set", None, "1.png", drawn(1, 400)).picture
    assert key is not None
    assert (sets.num_unsorted("set"), len(sets.unsorted("set"))) == (1, 1)
    small = sets.thumbnail("set", key)
    with Image.open(small) as opened:
        assert opened.size == (192, 192)
    moved = sets.move("set", key, "anna")
    assert sets.thumbnail("set", moved) == small
    assert (sets.num_unsorted("set"), sets.identities("set")) == (0, {"anna": 1})
    assert sets.add("set", None, "x.png", drawn(1, 400)).picture == moved
    sets.remove("set", moved)
    assert not small.exists()
    assert not (tmp_path / "pictures/set/anna").exists()
    assert sets.add("set", "ben", "1.png", drawn(1, 400)).state == "stored"


def test_a_labelled_upload_sorts_the_unsorted_one(sets: PictureSets) -> None:
    sets.add("set", None, "1.png", drawn(1))
    assert sets.add("set", "anna", "1.png", drawn(1)).state == "stored"
    assert (sets.num_unsorted("set"), sets.identities("set")) == (0, {"anna": 1})


def test_rename_and_merge(sets: PictureSets) -> None:
    for number, name in enumerate(("anna", "anna", "ben")):
        sets.add("set", name, "1.png", drawn(number))
    assert sets.rename("set", "anna", "a/b") == 2
    with pytest.raises(ServiceError, match="already"):
        sets.rename("set", "a/b", "ben")
    assert sets.rename("set", "a/b", "ben", merge=True) == 2
    assert sets.identities("set") == {"ben": 3}
    with pytest.raises(ServiceError, match="no identity"):
        sets.rename("set", "anna", "x")


def test_files_that_were_copied_by_hand_are_read(sets: PictureSets, tmp_path: Path) -> None:
    sets.create("set")
    by_hand = tmp_path / "pictures/set/anna/1.png"
    by_hand.parent.mkdir()
    by_hand.write_bytes(drawn(1))
    assert [entry.picture for entry in sets.pictures("set")] == ["anna/1.png"]
    assert sets.summary("set")["inspection"]["left_out"]["hidden"] == 0
    assert sets.move("set", "anna/1.png", "ben").startswith("ben/1~")
    assert sets.add("set", "ben", "x.png", drawn(1)).state == "duplicate"


def test_concurrent_uploads_lose_nothing(sets: PictureSets) -> None:
    contents = [drawn(number % 20) for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda one: sets.add("set", "anna", "1.png", one), contents))
    assert sets.identities("set") == {"anna": 20}
    assert {one.state for one in added} <= {"stored", "duplicate"}
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda n: sets.add("two", f"{n}", "1", contents[0]), range(8)))
    assert sorted(one.state for one in added) == ["contradiction"] * 7 + ["stored"]


def test_a_full_disk_is_said(
    sets: PictureSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets.create("set")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_files.os, "fsync", full)
    with pytest.raises(ServiceError, match="full") as caught:
        sets.add("set", "anna", "1.png", drawn(1))
    assert caught.value.status == 507
    assert list(tmp_path.rglob("*.png")) == []


def test_summary_is_kept_until_a_file_changes(
    sets: PictureSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets.add("set", "anna", "1.png", drawn(1))
    first = sets.summary("set")
    with monkeypatch.context() as patched:
        patched.setattr(picture_sets, "inspect_table", lambda *args, **kwargs: 1 / 0)
        assert sets.summary("set") == first
    sets.add("set", "anna", "2.png", drawn(2))
    assert sets.summary("set")["inspection"]["pictures"] == 2


# --- routes ---


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    limits = Limits(pictures=8, picture_bytes=100_000)
    settings = ServiceSettings(data=tmp_path, limits=limits)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def check(answer: dict[str, object], model: type[BaseModel]) -> None:
    model.model_validate(answer)
    assert set(answer) == set(model.model_fields)


def test_upload_label_and_delete_by_http(client: TestClient, tmp_path: Path) -> None:
    files = [("picture", (name, drawn(number))) for number, name in enumerate(
        ("anna/1.png", "ben\\deep/2.png", "3.png", "anna/../../4.png")
    )]  # fmt: skip
    answer = client.post("/v1/pictures/faces", files=files).json()
    check(answer, job_schemas.AddedList)
    assert [one["identity"] for one in answer["added"]] == ["anna", "ben", None, "anna"]
    raw = client.post("/v1/pictures/faces", params={"identity": "Zoë/x", "name": "z.png"},
                      content=drawn(9), headers={"Content-Type": "image/png"})  # fmt: skip
    assert raw.json()["added"][0]["identity"] == "Zoë/x"
    counts = client.get("/v1/pictures/faces/identities").json()
    assert counts == {"identities": {"Zoë/x": 1, "anna": 2, "ben": 1}, "unsorted": 1}
    page = client.get("/v1/pictures/faces/list", params={"identity": "anna", "limit": 1}).json()
    check(page, job_schemas.PictureList)
    assert (len(page["pictures"]), page["total"]) == (1, 2)
    key = {"picture": page["pictures"][0]["picture"]}
    assert client.get("/v1/pictures/faces/file", params=key).content in (drawn(0), drawn(3))
    small = client.get("/v1/pictures/faces/thumbnail", params=key)
    assert small.headers["content-type"] == "image/jpeg"
    moved = client.post("/v1/pictures/faces/move",
                        json={"pictures": [key["picture"]], "identity": "ben"})  # fmt: skip
    assert moved.json()["pictures"][0]["identity"] == "ben"
    renamed = client.patch("/v1/pictures/faces/identities", json={"identity": "ben", "new": "c"})
    assert renamed.json()["identities"] == {"Zoë/x": 1, "anna": 1, "c": 2}
    check(client.get("/v1/pictures/faces").json(), job_schemas.SetSummary)
    assert str(tmp_path) not in client.get("/v1/pictures/faces").text
    assert client.delete("/v1/pictures/faces").status_code == 204
    assert client.get("/v1/pictures").json() == {"sets": []}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"files": [("picture", ("1.png", b"x" * 100_001))]}, 413),
        ({"files": [("photo", ("1.png", b"x"))]}, 422),
        ({"files": [("picture", (f"{n}.png", b"x")) for n in range(9)]}, 400),
        ({"json": {"picture": "http://127.0.0.1/x.png"}}, 415),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 422),
    ],
)
def test_bodies_that_are_refused(client: TestClient, body: dict[str, Any], status: int) -> None:
    answer = client.post("/v1/pictures/faces", **body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "request_id"}


def test_without_a_folder_the_service_only_answers() -> None:
    with TestClient(create_app(ServiceSettings()), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/pictures").json() == {"sets": []}
        answer = client.post("/v1/pictures/x", files=[("picture", ("1.png", drawn(1)))])
    assert answer.status_code == 409
    assert "--data" in answer.json()["error"]["message"]
