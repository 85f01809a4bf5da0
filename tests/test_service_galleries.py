"""Galleries by HTTP: as the command line has them, whatever process answers, and nothing lost."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyRun
from fastapi.testclient import TestClient
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from PIL import Image
from service_answers import answered

from twinlens.cli.main import main
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.sources import digest
from twinlens.service import audit_log
from twinlens.service import gallery_schemas as schemas
from twinlens.service.app import create_app
from twinlens.service.audit_log import AuditLog
from twinlens.service.errors import ServiceError
from twinlens.service.security import Caller
from twinlens.service.settings import ServiceSettings

Shown = pytest.CaptureFixture[str]
PEOPLE = "/v1/galleries/people"


@pytest.fixture
def settings(tiny_run: TinyRun, tmp_path: Path) -> ServiceSettings:
    (tmp_path / "data").mkdir()
    return ServiceSettings(model=tiny_run.run, data=tmp_path / "data")


@pytest.fixture
def client(settings: ServiceSettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def form(run: TinyRun, thing: int, *numbers: int) -> list[tuple[str, tuple[str, bytes]]]:
    folder = run.data / f"thing {thing}"
    return [("picture", (f"{n}.png", (folder / f"{n}.png").read_bytes())) for n in numbers]


def refused(response: Any, status: int, *words: str) -> None:
    message = answered(response, None, status)["error"]["message"]
    for word in words:
        assert word in message


def by_command(shown: Shown, *words: object) -> Any:
    shown.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(shown.readouterr().out)


def test_a_gallery_from_its_creation_to_its_deletion(
    client: TestClient, settings: ServiceSettings, tiny_run: TinyRun, capsys: Shown
) -> None:
    assert answered(client.get("/v1/galleries")) == {"galleries": []}
    refused(client.post("/v1/galleries?name=../up"), 422, "1 to 64 letters")
    refused(client.post("/v1/galleries?name=people&model=nothing"), 404, "nothing")
    made = answered(client.post("/v1/galleries?name=people"), schemas.GalleryFacts, 201)
    refused(client.post("/v1/galleries?name=people"), 409, "people")
    folder = Path(str(settings.data)) / "galleries" / "people"
    command = by_command(capsys, "gallery", "info", folder)
    assert made == command | {"name": "people", "place": "people", "deletable": True}

    for thing in range(3):
        url = f"{PEOPLE}/templates?identity=thing {thing}"
        answered(client.post(url, files=form(tiny_run, thing, 0, 1, 2)), schemas.EnrolAnswer)
    answered(client.get("/v1/galleries"), schemas.GalleryList)
    answered(client.get(PEOPLE), schemas.GalleryFacts)
    page = answered(client.get(f"{PEOPLE}/identities?offset=1&limit=1"), schemas.IdentityPage)
    whole = by_command(capsys, "gallery", "list", folder)["identities"]
    assert page == {"identities": whole[1:2], "total": 3}
    one = answered(client.get(f"{PEOPLE}/identities?prefix=THING 2"))
    assert one == {"identities": whole[2:], "total": 1}
    page = answered(client.get(f"{PEOPLE}/templates?offset=2&limit=3"), schemas.TemplatePage)
    rows = by_command(capsys, "gallery", "list", folder, "--templates")["templates"]
    assert page == {"templates": rows[2:5], "total": 9}

    refused(client.post(f"{PEOPLE}/calibrate?fpir=0.001"), 409, "parameter fpir, found 0.001")
    calibrated = client.post(f"{PEOPLE}/calibrate?fpir=0.3")
    command = by_command(capsys, "gallery", "calibrate", folder, "--fpir", "0.3")
    assert answered(calibrated, schemas.GalleryCalibrated) == command
    answered(client.post(f"{PEOPLE}/optimize"), schemas.OptimizeAnswer)

    assert client.delete(PEOPLE).status_code == 204
    assert list(folder.parent.iterdir()) == []
    refused(client.get(PEOPLE), 404, "no gallery")
    actions = [row["action"] for row in answered(client.get("/v1/audit"))["entries"]]
    assert actions == ["delete", "optimize", "calibrate", *["enrol"] * 3, "create"]


def test_enrolment_tells_the_fate_of_each_picture(
    client: TestClient, settings: ServiceSettings, tiny_run: TinyRun
) -> None:
    client.post("/v1/galleries?name=people")
    [first] = form(tiny_run, 0, 0)
    url = f"{PEOPLE}/templates?identity=anna&as_is=true"
    query = {"identity": "anna", "metadata": '{"room": "north", "floor": 2}'}
    broken = ("picture", ("0.png", b"no picture"))
    answer = answered(
        client.post(f"{PEOPLE}/templates", params=query, files=[first, first, broken]),
        schemas.EnrolAnswer,
    )
    name = digest(first[1][1])
    fates = [(row["picture"], row["status"], row["hash"]) for row in answer["pictures"]]
    assert fates == [
        ("0.png", "new", name), ("0.png (2)", "known", name), ("0.png (3)", "skipped", None),
    ]  # fmt: skip
    assert (answer["num_new"], answer["num_known"], answer["num_failed"]) == (1, 1, 1)
    # The same file, enrolled by the command line, is known; its path was never the server's.
    folder = Path(str(settings.data)) / "galleries" / "people"
    by_file = Gallery.open(folder).enrol_files("anna", tiny_run.data / "thing 0" / "0.png")
    assert (by_file.num_new, by_file.num_known) == (0, 1)
    [row] = answered(client.get(f"{PEOPLE}/templates?where=metadata.floor = 2"))["templates"]
    assert (row["path"], row["has_thumbnail"]) == ("0.png", False)
    refused(client.post(f"{PEOPLE}/templates?identity=bert", files=[first]), 422, "anna")
    refused(client.post(url, files=[broken]), 422, "0.png", "nothing was enrolled")
    refused(client.post(url + "&metadata=[]", files=[first]), 422, "JSON object")
    refused(client.post(f"{PEOPLE}/templates?identity= ", files=[first]), 422, "name")
    refused(client.post("/v1/galleries/other/templates?identity=a", files=[first]), 404, "other")
    refused(client.get(f"{PEOPLE}/templates?identity=bert"), 404, "bert")
    refused(client.get(f"{PEOPLE}/templates?where=colour = 1"), 422, "colour")
    refused(client.get(f"{PEOPLE}/templates/{name}/thumbnail"), 404, "keep_thumbnails")


def test_erased_bytes_are_gone(
    client: TestClient, settings: ServiceSettings, tiny_run: TinyRun
) -> None:
    client.post("/v1/galleries?name=people")
    folder = Path(str(settings.data))
    for thing, name in enumerate(("Zoë d/Ça", "anna", "bert")):
        query = {"identity": name, "keep_thumbnails": "true", "metadata": f'{{"a": "b{name}"}}'}
        client.post(f"{PEOPLE}/templates", params=query, files=form(tiny_run, thing, 0, 1))
    gallery = Gallery.open(folder / "galleries" / "people")

    def traces(*hashes: str) -> list[bytes]:
        small = [client.get(f"{PEOPLE}/templates/{name}/thumbnail") for name in hashes]
        assert {picture.headers["content-type"] for picture in small} == {"image/jpeg"}
        assert Image.open(io.BytesIO(small[0].content)).size == (16, 16)
        vectors = traces_of_vectors(np.stack([gallery.embedding(name) for name in hashes]))
        return [*vectors, *(picture.content for picture in small), *traces_of_texts(hashes)]

    def hashes(name: str) -> list[str]:
        page = answered(client.get(f"{PEOPLE}/templates", params={"identity": name}))
        return [row["hash"] for row in page["templates"]]

    zoe, anna = hashes("Zoë d/Ça"), hashes("anna")[:1]
    held = traces(*zoe, *anna)
    assert set(held) == set(found_in(folder / "galleries", held))
    gone = [*held, *traces_of_texts(["Zoë d/Ça", "bZoë d/Ça"])]
    receipt = answered(
        client.delete(f"{PEOPLE}/identities", params={"identity": "Zoë d/Ça"}), schemas.Receipt
    )
    assert (receipt["num_identities"], receipt["num_templates"]) == (1, 2)
    receipt = answered(client.delete(f"{PEOPLE}/templates/{anna[0]}"), schemas.Receipt)
    assert (receipt["num_identities"], receipt["num_templates"]) == (0, 1)
    assert found_in(folder / "galleries", gone) == {}
    refused(client.delete(f"{PEOPLE}/templates/{anna[0]}"), 404, anna[0])
    refused(client.delete(f"{PEOPLE}/identities?identity=Zoe"), 404, "Zoe")
    # The audit log says what happened, with names and hashes, and without a picture's byte.
    log = (folder / "audit.jsonl").read_bytes()
    entries = answered(client.get("/v1/audit?limit=2"), schemas.AuditEntries)["entries"]
    assert [row["action"] for row in entries] == ["erase_templates", "erase"]
    assert (entries[0]["hashes"], entries[1]["identity"]) == (anna, "Zoë d/Ça")
    assert entries[1]["key"] == "local"
    names = {name.encode() for name in [*zoe, *anna]}
    assert {trace for trace in held if trace in log} == names


def test_corrections_and_renaming(client: TestClient, tiny_run: TinyRun) -> None:
    client.post("/v1/galleries?name=people")
    for thing in range(3):
        url = f"{PEOPLE}/templates?identity=p{thing}"
        client.post(url, files=form(tiny_run, thing, 0, 1))
    url = f"{PEOPLE}/corrections"
    answer = answered(
        client.post(f"{url}?kind=is&identity=p0", files=form(tiny_run, 0, 3)),
        schemas.FeedbackAnswer,
    )
    assert (answer["num_new"], answer["num_corrections"]) == (1, 1)
    a, b = (form(tiny_run, 4, n)[0][1] for n in (0, 1))
    answered(client.post(f"{url}?kind=same", files={"a": a, "b": b}))
    for kind in ("is_not", "is-not"):
        again = client.post(f"{url}?kind={kind}&identity=p1", files=form(tiny_run, 5, 0))
    assert answered(again)["num_new"] == 0
    listed = answered(client.get(url), schemas.CorrectionList)["corrections"]
    assert [(row["kind"], row["identity"]) for row in listed] == [
        ("is", "p0"), ("same", None), ("is-not", "p1"),
    ]  # fmt: skip
    assert listed[1]["pictures"] == ["0.png", "1.png"]
    undone = answered(client.delete(f"{url}/1"), schemas.FeedbackAnswer)
    assert (undone["num_undone"], undone["num_corrections"]) == (1, 2)
    refused(client.delete(f"{url}/77"), 404, "no correction 77")
    refused(client.post(f"{url}?kind=is", files=form(tiny_run, 0, 3)), 422, "identity")
    refused(client.post(f"{url}?kind=is&identity=x", files=form(tiny_run, 0, 3)), 404, "x")
    refused(client.post(f"{url}?kind=same", files=form(tiny_run, 0, 3)), 422, "picture")

    names = f"{PEOPLE}/identities"
    assert answered(client.patch(f"{names}?identity=p0&name=q")) == {"num_templates": 2}
    refused(client.patch(f"{names}?identity=p1&name=q"), 409, "merge=true")
    assert answered(client.patch(f"{names}?identity=p1&name=q&merge=true"), schemas.Renamed)
    counts = answered(client.get(names))["identities"]
    assert [(row["identity"], row["num_templates"]) for row in counts] == [("p2", 2), ("q", 4)]


def test_two_workers_see_each_other_at_once(
    client: TestClient, settings: ServiceSettings, tiny_run: TinyRun
) -> None:
    [picture] = form(tiny_run, 0, 0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as other:
        for round in range(2):  # The second gallery has the place and the versions of the first.
            answered(client.post("/v1/galleries?name=people"), None, 201)
            assert answered(other.get(PEOPLE))["num_templates"] == 0
            for number, worker in enumerate((client, other) * 2):
                name = f"p{number} of {round}"
                files = form(tiny_run, number, round)
                answered(worker.post(f"{PEOPLE}/templates?identity={name}", files=files))
                for asked in (client, other):
                    hits = answered(asked.post("/v1/search", files=files))["hits"]
                    assert (hits[0]["identity"], len(hits)) == (name, number + 1)
            assert client.delete(PEOPLE).status_code == 204
            refused(other.post("/v1/search?gallery=people", files=[picture]), 404, "no gallery")


def test_without_a_folder_galleries_are_only_changed(tiny_run: TinyRun, tmp_path: Path) -> None:
    place = tmp_path / "people"
    Gallery.create(place, tiny_run.model)
    settings = ServiceSettings(galleries=(str(place),))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        refused(client.post("/v1/galleries?name=new"), 409, "--data")
        refused(client.delete(PEOPLE), 409, "people")
        answered(client.post(f"{PEOPLE}/templates?identity=a", files=form(tiny_run, 0, 0)))
        assert answered(client.get("/v1/audit")) == {"entries": []}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people"]


def test_audit_log_survives_a_cut_line_and_grows_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, caller = AuditLog(tmp_path), Caller("door", "enrol")
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b'{"time": "cut')
    log.write("enrol", caller, gallery="people", identity="Zoë\n")
    assert [row["identity"] for row in log.entries(0, 9)] == ["Zoë\n"]
    assert file.read_bytes().count(b"\n") == 2
    monkeypatch.setattr(audit_log, "ROTATED_BYTES", 300)
    for number in range(9):
        log.write("undo", caller, number=number)
    assert len(list(tmp_path.glob("audit-*.jsonl"))) >= 2
    assert [row["number"] for row in log.entries(1, 5)] == [7, 6, 5, 4, 3]
    assert len(log.entries(0, 100)) == 10
    file.unlink(missing_ok=True)
    file.mkdir()
    with pytest.raises(ServiceError, match="done"):
        log.write("undo", caller, number=9)
