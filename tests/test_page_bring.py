"""The pages' frame, and the page that takes pictures."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import AXE, axe_violations, chromium, complaints_of, serving, wait_until
from conftest import PictureFolder
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from twinlens.service.app import create_app
from twinlens.service.pages import view
from twinlens.service.settings import Limits, ServiceSettings

PAGES = Path(view.__file__).parent
TEMPLATES = sorted((PAGES / "templates").glob("*.j2"))
SCRIPTS = sorted(path for path in (PAGES / "static").glob("*.js") if "htmx" not in path.name)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = ServiceSettings(data=tmp_path / "data")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "licence", "digest"),
    [
        # htmx.org 4.0.1 of npm, package/dist/htmx.min.js
        (PAGES / "static" / "htmx.min.js", "htmx.LICENSE.txt",
         "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"),
        # axe-core 4.14.1 of npm, package/axe.min.js
        (AXE, "LICENSE", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"),
    ],
    ids=["htmx", "axe-core"],
)  # fmt: skip
def test_vendored_files_are_the_published_ones(path: Path, licence: str, digest: str) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert (path.parent / licence).is_file()


def test_templates_have_no_text_script_or_style_of_their_own() -> None:
    for path in TEMPLATES:
        check_template(path.name, path.read_text(encoding="utf-8"))


def check_template(place: str, template: str) -> None:
    for key in re.findall(r"""\bt\(\s*["']([\w.]+)["']\s*[,)]""", template):
        section, _, name = key.partition(".")
        assert name in view.texts()[section], (place, key)
    bare = re.sub(
        r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<(code|pre)\b.*?</\1>", " ", template, flags=re.S
    )
    assert not re.search(r"""<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=|hx-on""", bare)
    texts = re.findall(r">([^<>]+)<", re.sub(r"<!doctype html>", "", f">{bare}<"))
    words = [text.strip() for text in texts if re.search(r"[A-Za-z]{2}", text)]
    words = [text for text in words if not text.endswith(".json")]  # names of files
    named = re.findall(r"""(?:alt|title|placeholder|aria-label)=["']([^"']*\w[^"']*)""", bare)
    assert not words + named, place


def test_every_text_is_used() -> None:
    used = "\n".join(
        path.read_text(encoding="utf-8") for path in (*TEMPLATES, *PAGES.glob("*.py"), *SCRIPTS)
    )
    for section, entries in view.texts().items():
        if f'texts()["{section}"]' in used:
            continue
        starts = re.findall(rf"""t\("{section}\.(\w*)" ~""", used)
        for name in entries:
            uses = f'"{section}.{name}"', f'"{section}.{name.removesuffix("_one")}"'
            assert any(use in used for use in uses) or name.startswith(tuple(starts)), name


def test_static_files_are_kept_for_long_under_an_address_of_their_content(
    client: TestClient,
) -> None:
    answer = client.get(view.static("style.css"))
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert client.get("/static/older/style.css").headers["cache-control"] == "no-store"
    assert client.get("/static/older/en.toml").status_code == 404


def test_start_page_names_every_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    for _, path, _ in view.NAVIGATION:
        assert f'href="{path}"' in page.text
    assert "http:" not in page.text
    assert "https:" not in page.text


def picture(client: TestClient, identity: str | None, number: int) -> str:
    """Add a picture to the set Things; its key."""
    query = {} if identity is None else {"identity": identity}
    body = picture_bytes(number)
    answer = client.post("/v1/pictures/Things", params={"name": "a.png"} | query, content=body)
    return str(answer.json()["added"][0]["picture"])


def picture_bytes(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_set_is_made_filled_and_understood(client: TestClient) -> None:
    made = client.post("/pictures", data={"name": "Things"}, follow_redirects=False)
    assert (made.status_code, made.headers["location"]) == (303, "/pictures/Things")
    assert "There are no pictures yet." in client.get("/pictures/Things").text
    files = [
        ("folder", ("photos/ann/1.png", picture_bytes(1), "image/png")),
        ("folder", ("photos/bob/1.png", picture_bytes(1), "image/png")),
        ("folder", ("photos/bob/2.png", picture_bytes(2), "image/png")),
        ("files", ("3.png", picture_bytes(3), "image/png")),
        ("files", ("notes.png", b"no picture", "image/png")),
    ]
    sent = client.post("/pictures/Things/add", files=files, data={"identity": ""}).text
    for line in ("3 new pictures", "1 is there under another name too", "1 was left out"):
        assert line in sent
    page = client.get("/pictures/Things/summary").text
    assert "The same picture under two names: 1" in page
    assert "Only one picture: 1" in page
    assert "notes.png" in page
    assert "One of them has two pictures" in page
    assert "One picture has no name" in client.get("/pictures/Things").text


def test_pictures_are_moved_removed_and_renamed(client: TestClient) -> None:
    key = picture(client, "ann", 1)
    picture(client, "ann", 2)
    other = picture(client, None, 3)
    part = {"HX-Request": "true"}
    form = {"picture": other, "identity": " <b>ob "}
    moved = client.post("/pictures/Things/move", data=form, headers=part)
    assert "Moved to &lt;b&gt;ob." in moved.text
    client.post("/pictures/Things/remove", data={"picture": [key], "back": "//elsewhere.org"})
    renamed = client.post(
        "/pictures/Things/rename", data={"identity": "ann", "new": "<b>ob", "merge": "true"}
    )
    assert renamed.url.path == "/pictures/Things/identity"
    assert "2 pictures" in renamed.text
    form = {"picture": "no/such.png", "identity": "x"}
    assert client.post("/pictures/Things/move", data=form, headers=part).status_code == 404
    away = client.post(
        "/pictures/Things/move", follow_redirects=False,
        data={"picture": other.replace(".unsorted", "%3Cb%3Eob"), "back": "//elsewhere.org"},
    )  # fmt: skip
    assert away.headers["location"] == "/pictures/Things"
    client.post("/pictures/Things/delete")
    assert client.get("/pictures/Things").status_code == 404


def test_group_is_named(client: TestClient) -> None:
    keys = [picture(client, None, number) for number in range(3)]
    form = {"picture": keys[:2], "identity": "ann"}
    named = client.post("/pictures/Things/name", data=form, headers={"HX-Request": "true"})
    assert "Named ann: 2 pictures." in named.text
    assert client.post("/pictures/Things/name", data={"picture": keys[2:]}).status_code == 422
    assert client.post("/pictures/Things/name", data={"identity": "ann"}).status_code == 422
    assert "One picture has no name" in client.get("/pictures/Things/groups").text


def test_service_without_a_folder_says_so() -> None:
    with TestClient(create_app(ServiceSettings()), base_url="http://127.0.0.1") as client:
        for path in ("/pictures", "/train"):
            assert "--data FOLDER" in client.get(path).text


@pytest.mark.slow
def test_folder_is_uploaded_and_mended_in_a_browser(
    tmp_path: Path, picture_folder: PictureFolder
) -> None:
    photos = picture_folder({"ann": 3, "bob": 3, "cat": 2})
    (photos / "cat" / "broken.png").write_bytes(b"no picture")
    (photos / "cat" / "notes.txt").write_text("not sent")
    (photos / "bob" / "copy.png").write_bytes((photos / "ann" / "0.png").read_bytes())
    with serving("--data", tmp_path / "data") as address, chromium() as browser:
        by = lambda selector: browser.find_element("css selector", selector)  # noqa: E731
        browser.get(f"{address}/pictures")
        by("form button.main").click()
        by("input[webkitdirectory]").send_keys(str(photos))
        plan = wait_until(browser, lambda _: by("[data-plan]").text)
        assert "10 pictures of 3 people or things" in plan
        assert "Left out: 1 file that" in plan
        by("[data-plan] button.main").click()
        done = wait_until(browser, lambda _: "Done" in by("[data-status]").text
                          and by("[data-status]").text)  # fmt: skip
        assert done == ("Done. 8 new pictures. 1 is there under another name too. 1 was left out.")
        wait_until(browser, lambda _: "under two names: 1" in by("#summary").text)
        assert "broken.png" in by("#summary").text
        assert axe_violations(browser) == []
        keep = by("#summary .findings form button")
        assert keep.text == "Keep ann"
        keep.click()
        wait_until(browser, lambda _: "Removed: 1." in by("#summary").text)
        assert list((tmp_path / "data").glob("pictures/*/bob/copy*.png")) == []
        assert complaints_of(browser, address) == []


def test_a_large_picture_of_a_form_is_refused(tmp_path: Path) -> None:
    settings = ServiceSettings(data=tmp_path / "data", limits=Limits(picture_bytes=10))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        client.post("/pictures", data={"name": "things"})
        refused = client.post("/pictures/things/add", files={"files": ("a.png", b"x" * 11)})
    assert refused.status_code == 413
