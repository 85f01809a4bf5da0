"""The pages' frame, and the page that takes pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from twinlens.service.app import create_app
from twinlens.service.pages import view
from twinlens.service.settings import ServiceSettings

PAGES = Path(view.__file__).parent
TEMPLATES = sorted((PAGES / "templates").glob("*.j2"))
SCRIPTS = sorted(path for path in (PAGES / "static").glob("*.js") if "htmx" not in path.name)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = ServiceSettings(data=tmp_path / "data")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def test_htmx_is_the_published_file() -> None:
    content = (PAGES / "static" / "htmx.min.js").read_bytes()
    # htmx.org 4.0.1 of npm, package/dist/htmx.min.js
    assert hashlib.sha256(content).hexdigest() == (
        "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
    )
    assert (PAGES / "static" / "htmx.LICENSE.txt").is_file()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_text_script_or_style_of_their_own(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    for key in re.findall(r"""\bt\(\s*["']([\w.]+)["']\s*[,)]""", template):
        section, _, name = key.partition(".")
        assert name in view.texts()[section], key
    bare = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", template, flags=re.S)
    assert not re.search(r"""<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=|hx-on""", bare)
    texts = re.findall(r">([^<>]+)<", re.sub(r"<!doctype html>", "", f">{bare}<"))
    words = [text.strip() for text in texts if re.search(r"[A-Za-z]{2}", text)]
    named = re.findall(r"""(?:alt|title|placeholder|aria-label)=["']([^"']*\w[^"']*)""", bare)
    assert not words + named


def test_every_text_is_used() -> None:
    used = "\n".join(
        path.read_text(encoding="utf-8") for path in (*TEMPLATES, *PAGES.glob("*.py"), *SCRIPTS)
    )
    for section, entries in view.texts().items():
        if f't("{section}." ~' in used or f'texts()["{section}"]' in used:
            continue
        for name in entries:
            assert f'"{section}.{name}"' in used, f"{section}.{name}"


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
    for _, path in view.NAVIGATION:
        assert f'href="{path}"' in page.text
    assert "http:" not in page.text
    assert "https:" not in page.text
