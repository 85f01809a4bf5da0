"""Pages that enrol, ask, correct, compare and share, without a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from conftest import TinyRun

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient
from httpx2 import Response

from twinlens.gallery.gallery import Gallery
from twinlens.service.app import create_app
from twinlens.service.keys import add_key
from twinlens.service.pages import view
from twinlens.service.settings import ServiceSettings

PART = {"HX-Request": "true"}


@pytest.fixture(scope="module")
def client(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    data = tmp_path_factory.mktemp("service") / "data"
    settings = ServiceSettings(model=tiny_run.run, data=data)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        made = client.post("/galleries", data={"name": "things", "model": "run"})
        assert made.url.path == "/galleries/things"
        for number in range(3):
            answer = enrol(client, "things", f"thing {number}", tiny_run, range(4))
            assert "4 new pictures" in words(answer)
        yield client


@pytest.fixture
def gallery(client: TestClient, request: pytest.FixtureRequest) -> str:
    """A gallery with four pictures of each of three things."""
    name = re.sub(r"\W", "-", request.node.name)[:60].rstrip("-")
    galleries = client.app.state.service.settings.data / "galleries"  # type: ignore[attr-defined]
    shutil.copytree(galleries / "things", galleries / name)
    return name


def pictures(tiny_run: TinyRun, thing: str, numbers: range, field: str) -> list[object]:
    folder = tiny_run.data / thing
    return [(field, (f"{number}.png", (folder / f"{number}.png").read_bytes(), "image/png"))
            for number in numbers]  # fmt: skip


def enrol(
    client: TestClient, name: str, thing: str, tiny_run: TinyRun, numbers: range, **texts: str
) -> Response:
    data = {"identity": thing, "keep": "yes"} | texts
    files = pictures(tiny_run, thing, numbers, "pictures")
    return client.post(f"/galleries/{name}/enrol", data=data, files=files)


def words(answer: Response) -> str:
    """The text of a page or of a part."""
    _, _, main = answer.text.rpartition("<main")
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", main or answer.text)).split())


def opened(client: TestClient, name: str) -> Gallery:
    return client.app.state.service.galleries.get(name)  # type: ignore[attr-defined]


def test_galleries_are_listed_with_what_they_hold(client: TestClient, gallery: str) -> None:
    page = words(client.get("/galleries"))
    assert gallery in page
    assert "Enrolled: 3, with 12 pictures" in page
    again = client.post("/galleries", data={"name": gallery, "model": "run"})
    assert (again.status_code, "already" in words(again)) == (409, True)
    assert f'value="{gallery}" required' in again.text


def test_identities_are_found_by_name_and_by_detail(
    client: TestClient, gallery: str, tiny_run: TinyRun
) -> None:
    answer = enrol(client, gallery, "thing 3", tiny_run, range(2), metadata="room = a\nyear=2020")
    assert "2 new pictures" in words(answer)
    metadata = opened(client, gallery).templates("thing 3").templates[0].metadata
    assert metadata == {"room": "a", "year": 2020}
    assert "thing 3" in words(client.get(f"/galleries/{gallery}", params={"q": "THING 3"}))
    wrong = client.get(f"/galleries/{gallery}", params={"where": "room ="})
    assert (wrong.status_code, 'value="room ="' in wrong.text) == (422, True)
    found = words(client.get(f"/galleries/{gallery}", params={"where": "metadata.year > 2019"}))
    assert "Found: 1" in found
    assert "thing 0" not in found.partition("Found: 1")[2].partition("Enrol Choose")[0]
    wrong = client.get(f"/galleries/{gallery}", params={"where": "year >"})
    assert wrong.status_code == 422
    bad = enrol(client, gallery, "thing 3", tiny_run, range(1), metadata="no sign")
    assert (bad.status_code, "no sign" in words(bad)) == (422, True)


def test_thumbnails_are_shown_where_they_were_kept(
    client: TestClient, gallery: str, tiny_run: TinyRun
) -> None:
    far = client.get(
        f"/galleries/{gallery}/identity", params={"identity": "thing 1", "offset": 10**30}
    )
    assert far.status_code == 422
    page = client.get(f"/galleries/{gallery}/identity", params={"identity": "thing 1"})
    urls = re.findall(r'<img src="(/v1[^"]+)"', page.text)
    assert len(urls) == 4
    assert client.get(urls[0]).headers["content-type"] == "image/jpeg"
    files = pictures(tiny_run, "thing 5", range(1), "pictures")
    client.post(f"/galleries/{gallery}/enrol", data={"identity": "thing 5"}, files=files)
    page = client.get(f"/galleries/{gallery}/identity", params={"identity": "thing 5"})
    assert "/v1/" not in page.text
    assert "no-picture.svg" in page.text


@pytest.mark.parametrize("headers", [{}, PART])
def test_answers_are_those_of_the_gallery(
    client: TestClient, gallery: str, tiny_run: TinyRun, headers: dict[str, str]
) -> None:
    (file,) = pictures(tiny_run, "thing 1", range(5, 6), "picture")
    answer = client.post(f"/galleries/{gallery}/ask", files=[file], headers=headers)
    expected = opened(client, gallery).identify(tiny_run.data / "thing 1" / "5.png")
    assert ("<main" in answer.text) == (not headers)
    for candidate in expected.candidates:
        assert f"distance {candidate.distance:.4f}" in words(answer)
    shown = {"identified": f"This is {expected.identity}", "nobody": "Nobody who is enrolled",
             "ambiguous": "too close to tell"}  # fmt: skip
    assert shown[expected.verdict] in words(answer)
    assert answer.text.count("data:image/") == 1


def test_nearest_pictures_obey_a_condition(
    client: TestClient, gallery: str, tiny_run: TinyRun
) -> None:
    files = pictures(tiny_run, "thing 1", range(5, 6), "picture")
    data = {"k": "3", "where": "identity = 'thing 2'"}
    answer = client.post(f"/galleries/{gallery}/nearest", data=data, files=files, headers=PART)
    assert "Nearest pictures: 3" in words(answer)
    assert "thing 1" not in words(answer)
    data = {"k": "1000"}
    answer = client.post(f"/galleries/{gallery}/ask", data=data, files=files, headers=PART)
    assert (answer.status_code, "from 1 to 20" in words(answer)) == (422, True)


def test_corrections_are_stored_and_taken_back(
    client: TestClient, gallery: str, tiny_run: TinyRun
) -> None:
    files = pictures(tiny_run, "thing 1", range(5, 6), "picture")
    url = f"/galleries/{gallery}"
    answer = client.post(f"{url}/correct", data={"identity": "thing 1"}, files=files, headers=PART)
    assert "this is thing 1" in words(answer)
    assert opened(client, gallery).identities()["thing 1"] == 5
    other = pictures(tiny_run, "thing 7", range(1), "picture")
    client.post(f"{url}/correct", data={"not": "thing 0\nthing 2"}, files=other)
    assert "0.png is not thing 2" in words(client.get(f"{url}/corrections"))
    assert len(opened(client, gallery).corrections().corrections) == 3
    answer = client.post(f"{url}/undo", data={"number": "1"})
    assert "taken back" in words(answer)
    assert opened(client, gallery).identities()["thing 1"] == 4


def test_rename_and_merge(client: TestClient, gallery: str) -> None:
    data = {"identity": "thing 1", "new": "Zoë / x"}
    assert "Zoë / x" in words(client.post(f"/galleries/{gallery}/rename", data=data))
    data = {"identity": "Zoë / x", "new": "thing 0"}
    refused = client.post(f"/galleries/{gallery}/rename", data=data)
    assert (refused.status_code, 'value="thing 0"' in refused.text) == (422, True)
    assert "thing 0 is enrolled already. Tick Merge" in words(refused)
    merged = client.post(f"/galleries/{gallery}/rename", data=data | {"merge": "true"})
    assert merged.status_code == 200
    assert opened(client, gallery).identities() == {"thing 0": 8, "thing 2": 4}


def test_erasing_needs_a_tick_and_leaves_a_receipt(client: TestClient, gallery: str) -> None:
    data = {"identity": "thing 1"}
    refused = client.post(f"/galleries/{gallery}/erase", data=data)
    assert (refused.status_code, "tick" in words(refused)) == (422, True)
    page = client.post(f"/galleries/{gallery}/erase", data=data | {"sure": "yes"})
    assert "thing 1" not in opened(client, gallery).identities()
    encoded = re.search(r'href="data:text/plain;base64,([^"]+)"', page.text)
    assert encoded is not None
    receipt = base64.b64decode(encoded[1]).decode()
    kept = json.loads(receipt[receipt.index("{") :])
    assert (kept["gallery"], kept["num_templates"], kept["num_thumbnails"]) == (gallery, 4, 4)
    assert "thing 1" not in receipt


def test_a_single_template_is_erased(client: TestClient, gallery: str) -> None:
    template = opened(client, gallery).templates("thing 2").templates[0]
    data = {"identity": "thing 2", "hash": template.hash}
    assert "confirm" in words(client.post(f"/galleries/{gallery}/remove", data=data))
    assert opened(client, gallery).identities()["thing 2"] == 4
    page = client.post(f"/galleries/{gallery}/remove", data=data | {"sure": "yes"})
    assert "The picture is erased" in words(page)
    assert opened(client, gallery).identities()["thing 2"] == 3


def test_a_gallery_is_deleted_with_a_tick(client: TestClient, gallery: str) -> None:
    assert client.post(f"/galleries/{gallery}/delete").status_code == 422
    page = client.post(f"/galleries/{gallery}/delete", data={"sure": "yes"})
    assert (page.url.path, gallery in words(page)) == ("/galleries", False)


def test_limit_of_a_gallery(client: TestClient, gallery: str, tiny_run: TinyRun) -> None:
    page = client.get(f"/galleries/{gallery}").text  # 12 pictures
    assert re.findall(r'<option value="([\d.]+)" disabled', page) == ["0.001", "0.01", "0.05"]
    assert '<option value="0.2" selected' in page
    refused = client.post(f"/galleries/{gallery}/calibrate", data={"fpir": "0.01"})
    assert (refused.status_code, "FPIR" in words(refused)) == (409, False)
    assert "Choose a larger share" in words(refused)
    for number in range(3, 10):
        opened(client, gallery).enrol_files(
            f"thing {number}", sorted((tiny_run.data / f"thing {number}").iterdir())
        )
    assert re.search(r"roughly \d+ % .* Set a limit", words(client.get(f"/galleries/{gallery}")))
    page = client.post(f"/galleries/{gallery}/calibrate", data={"fpir": "0.1"})
    threshold = opened(client, gallery).threshold()
    assert (page.status_code, threshold.of) == (200, "gallery")
    assert f"Distances up to {threshold.value:.4f} count as the same" in words(page)
    lenient = client.post(f"/galleries/{gallery}/calibrate", data={"fpir": "0.3"})
    assert f"when only {threshold.value:.4f} counted" in words(lenient)
    again = client.post(f"/galleries/{gallery}/calibrate", data={"fpir": "0.1"})
    assert "more lenient than before" not in words(again)


def test_compare_gives_the_verdict_of_the_model(client: TestClient, tiny_run: TinyRun) -> None:
    (a,) = pictures(tiny_run, "thing 1", range(1), "a")
    (b,) = pictures(tiny_run, "thing 4", range(1), "b")
    page = client.post("/compare", data={"model": "run"}, files=[a, b])
    paths = [tiny_run.data / thing / "0.png" for thing in ("thing 1", "thing 4")]
    answer = client.app.state.service.models.get("run").verify(*paths)  # type: ignore[attr-defined]
    assert f"The distance of {answer.distance:.4f}" in words(page)
    assert ("Different" in words(page)) == (not answer.match)


def test_downloads_and_requests_of_the_share_page_exist(client: TestClient, gallery: str) -> None:
    page = client.get("/share")
    links = re.findall(r'href="(/v1/models/[^"]+)"', page.text)
    assert len(links) == 3
    for link in links[:1] + links[2:]:  # The export takes a while; test_service.py has it.
        assert client.get(unescape(link)).status_code == 200
    assert f"gallery={gallery}" in unescape(page.text)


@pytest.mark.parametrize(
    ("role", "offers"), [("read", set()), ("enrol", {"enrol"}),
                         ("admin", {"enrol", "calibrate", "delete"})],
)  # fmt: skip
def test_a_page_offers_what_the_key_allows(
    client: TestClient, gallery: str, tmp_path: Path, role: str, offers: set[str]
) -> None:
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    keys = tmp_path / "keys.json"
    key = add_key(keys, name="a key", role=role).key
    app = create_app(settings.model_copy(update={"keys": keys}))
    with TestClient(app, base_url="http://127.0.0.1", headers={"x-api-key": key}) as other:
        page = other.get(f"/galleries/{gallery}")
        actions = set(re.findall(rf'method="post" action="/galleries/{gallery}/(\w+)"', page.text))
        assert actions == offers
        page = other.get(f"/galleries/{gallery}/identity", params={"identity": "thing 0"})
        assert ("/erase" in page.text) == (role == "admin")
        data = {"identity": "thing 0", "sure": "yes"}
        erased = other.post(f"/galleries/{gallery}/erase", data=data)
        assert (erased.status_code == 403) == (role != "admin")
        assert "Authorization: Bearer KEY" in unescape(other.get("/share").text)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("x.png: broken (unpack_from requires a buffer (4))", "x.png: the file is damaged."),
        ("x.png: not a picture that Pillow can read", "x.png: this is not a picture that can be "
         "read."),
        ("found 20 non-mated probes; an FPIR of 0.01 needs at least 100: set a larger FPIR, or "
         "enrol more", "20 pictures are enrolled, and this share needs at least 100: choose a "
         "larger share, or enrol more."),
        ("the gallery a b has no threshold yet: run `twinlens gallery calibrate a b`",
         "The gallery a b has no limit yet: set one on its page."),
        ("the model m is not calibrated, so it has no threshold: run `twinlens calibrate m DATA` "
         "on pictures", "The model m has no limit yet, so it cannot say yes or no: choose how "
         "strict it is under Look."),
    ],
)  # fmt: skip
def test_messages_have_the_words_of_pages(message: str, shown: str) -> None:
    assert view.sentence(view.plain(message)) == shown


def test_names_are_in_the_order_of_people() -> None:
    names = ["b", "person10", "Person2", "10", "9", "person2 b", "²"]
    assert sorted(names, key=view.natural) == ["9", "10", "b", "Person2", "person2 b", "person10",
                                               "²"]  # fmt: skip


def test_dead_ends_have_a_way_back(client: TestClient) -> None:
    answer = client.post("/galleries", headers={"referer": "http://127.0.0.1/galleries?x=1"})
    assert (answer.status_code, 'href="/galleries?x=1"' in answer.text) == (422, True)
    answer = client.post("/galleries", headers={"referer": "http://other.example/evil"})
    assert "evil" not in answer.text


def test_errors_are_pages_or_parts(client: TestClient, gallery: str) -> None:
    missing = client.get("/galleries/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (
        404, "text/html; charset=utf-8"
    )  # fmt: skip
    broken = [("picture", ("x.png", b"no picture", "image/png"))]
    answer = client.post(f"/galleries/{gallery}/ask", files=broken, headers=PART)
    assert (answer.status_code, "<main" in answer.text) == (422, False)
    assert "x.png" in words(answer)
    answer = client.post(f"/galleries/{gallery}/ask", data={"k": "1"})
    assert (answer.status_code, "One picture is needed" in words(answer)) == (422, True)
    empty = [("pictures", ("x.png", b"no picture", "image/png"))]
    answer = client.post(f"/galleries/{gallery}/enrol", data={"identity": "a"}, files=empty)
    assert "x.png was left out" in words(answer)
