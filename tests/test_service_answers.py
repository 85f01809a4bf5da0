"""Answers by HTTP are those of the command line and of Python, whatever the form of the body."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import BaseModel

import twinlens
from twinlens.cli.main import main
from twinlens.exports.formats import write_model
from twinlens.gallery.gallery import Gallery
from twinlens.model.stored import read_stored_model, store_calibration
from twinlens.service import schemas
from twinlens.service.app import create_app
from twinlens.service.errors import CODES, KINDS
from twinlens.service.settings import Limits, ServiceSettings

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("service") / "things"
    gallery = Gallery.create(place, tiny_run.run)
    for number in range(4):
        folder = tiny_run.data / f"thing {number}"
        gallery.enrol_files(f"thing {number}", [folder / "0.png", folder / "1.png"],
                            metadata={"room": "north" if number else "south"})  # fmt: skip
    return place


@pytest.fixture(scope="module")
def client(tiny_run: TinyRun, place: Path) -> Iterator[TestClient]:
    settings = ServiceSettings(model=tiny_run.run, galleries=(str(place),))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def picture(tiny_run: TinyRun, number: int, file: int = 2) -> Path:
    return tiny_run.data / f"thing {number}" / f"{file}.png"


def by_command(shown: Shown, *words: object) -> dict[str, Any]:
    """What the command line prints with --json."""
    shown.readouterr()
    main([*map(str, words), "--json"])
    answer: dict[str, Any] = json.loads(shown.readouterr().out)
    return answer


def with_names(answer: Any) -> Any:
    """An answer of the command line with names of files instead of paths."""
    if isinstance(answer, list):
        return [with_names(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    return {
        key: Path(value).name if key in ("path", "picture") else with_names(value)
        for key, value in answer.items()
    }


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def assert_described(answer: dict[str, Any], schema: type[BaseModel]) -> None:
    """Every key of an answer is in its schema, with the right type, and no key is missing."""
    again = schema.model_validate(answer, strict=True).model_dump(exclude_unset=True)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(answer))


def test_verify_answers_as_the_command_line(
    client: TestClient, tiny_run: TinyRun, capsys: Shown
) -> None:
    for other in (picture(tiny_run, 0, 3), picture(tiny_run, 5), picture(tiny_run, 0)):
        a, b = picture(tiny_run, 0), other
        expected = by_command(capsys, "verify", tiny_run.run, a, b, "--prior", "0.2")
        form = {"a": a.read_bytes(), "b": (b.name, b.read_bytes(), "image/png")}
        answers = [
            client.post("/v1/verify?prior=0.2", files=form),
            client.post("/v1/verify?prior=0.2&model=run",
                        json={"a": in_base64(a), "b": f"data:image/png;base64,{in_base64(b)}"}),
        ]  # fmt: skip
        assert [answer.json() for answer in answers] == [expected] * 2
        assert expected == twinlens.verify(tiny_run.run, a, b, prior=0.2).as_json()
        assert_described(expected, schemas.VerifyAnswer)


def test_embed_answers_as_the_command_line_and_python(
    client: TestClient, tiny_run: TinyRun, tmp_path: Path
) -> None:
    path = picture(tiny_run, 1)
    (tmp_path / "data/thing").mkdir(parents=True)
    (tmp_path / "data/thing" / path.name).write_bytes(path.read_bytes())
    twinlens.embed(tiny_run.run, tmp_path / "data", out=tmp_path / "e.parquet", quiet=True)
    row = pq.read_table(tmp_path / "e.parquet").to_pylist()[0]
    matcher = twinlens.load(tiny_run.run)
    raw = client.post("/v1/embed", content=path.read_bytes(), headers={"content-type": "image/png"})
    several = client.post("/v1/embed", json={"picture": [in_base64(path), "aGVsbG8="]})
    for answer, name, num_failed in ((raw, "picture 1", 0), (several, "picture 1", 1)):
        body = answer.json()
        assert_described(body, schemas.EmbedAnswer)
        assert (body["fingerprint"], body["dim"]) == (matcher.fingerprint, 16)
        assert body["num_failed"] == num_failed
        first = body["embeddings"][0]
        assert first["picture"] == name
        assert first["embedding"] == row["embedding"] == matcher.embed(path)[0].tolist()
        assert np.float32(first["quality"]["score"]) == np.float32(row["quality"])
        score = first["domain_score"]
        assert score == row["domain_score"] or np.float32(score) == np.float32(row["domain_score"])
    assert body["embeddings"][1] == {
        "picture": "picture 2", "error": "not a picture that Pillow can read",
    }  # fmt: skip


def test_identify_answers_as_the_command_line(
    client: TestClient, tiny_run: TinyRun, place: Path, capsys: Shown, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    paths = [picture(tiny_run, 0), broken, picture(tiny_run, 7), picture(tiny_run, 3)]
    expected = with_names(by_command(capsys, "identify", place, *paths, "-k", 2))
    form = [("picture", (path.name, path.read_bytes(), "image/png")) for path in paths]
    body = client.post("/v1/identify?gallery=things&k=2", files=form).json()
    assert body == expected
    assert body["num_failed"] == 1
    assert_described(body, schemas.IdentifyAnswer)
    assert str(place.parent) not in json.dumps(body)
    one = client.post("/v1/identify?k=2", content=paths[0].read_bytes()).json()
    assert one["answers"] == [expected["answers"][0] | {"picture": "picture 1"}]


def test_search_answers_as_the_command_line(
    client: TestClient, tiny_run: TinyRun, place: Path, capsys: Shown
) -> None:
    path, where = picture(tiny_run, 0), "metadata.room = 'north'"
    for options, words in (("k=3", ["-k", 3]), (f"where={where}", ["--where", where])):
        expected = with_names(by_command(capsys, "search", place, path, *words))
        body = client.post(
            f"/v1/search?{options}", files={"picture": (path.name, path.read_bytes())}
        ).json()
        assert body == expected
        assert_described(body, schemas.SearchAnswer)


def test_errors_are_named_in_one_form(client: TestClient, tiny_run: TinyRun) -> None:
    good, text, flat = picture(tiny_run, 0).read_bytes(), b"no picture", io.BytesIO()
    Image.new("L", (16, 16)).save(flat, "PNG")
    cases = [
        ("/v1/verify", {"files": {"a": good}}, 422, "'b' needs one picture, found 0"),
        ("/v1/verify", {"content": good}, 415, "send the pictures a, b as multipart or JSON"),
        ("/v1/verify", {"files": {"a": good, "b": text}}, 422, "not a picture"),
        ("/v1/verify?prior=2", {"files": {"a": good, "b": good}}, 422, "prior: "),
        ("/v1/verify?model=none", {"files": {"a": good, "b": good}}, 404, "unknown model 'none'"),
        ("/v1/embed", {"content": text}, 422, "picture 1: not a picture"),
        ("/v1/embed", {"json": {"picture": "https://example.org/a.jpg"}}, 422, "base64"),
        ("/v1/embed?min_quality=0.5", {"content": flat.getvalue()}, 422, "the minimum is 0.5"),
        ("/v1/identify?gallery=none", {"content": good}, 404, "unknown gallery 'none'"),
        ("/v1/identify?far=0.0001", {"content": good}, 409, "no threshold for an FPIR of 0.0001"),
        ("/v1/identify?k=0", {"content": good}, 422, "k: "),
        ("/v1/identify", {"json": {"picture": ["aGk=", "aGk="]}}, 422, "none of the 2 pictures"),
        ("/v1/search?where=colour = 'red'", {"content": good}, 422, "metadata.colour"),
        ("/v1/search", {"content": text}, 422, "the picture: not a picture"),
    ]  # fmt: skip
    for address, body, status, part in cases:
        answer = client.post(address, **body)  # type: ignore[arg-type]
        assert (answer.status_code, part in answer.text) == (status, True), (address, answer.text)
        assert_described(answer.json(), schemas.ErrorBody)
        assert str(tiny_run.run.parent) not in answer.text


def test_a_gallery_that_is_rebuilt_is_taken_by_requests_under_way(
    client: TestClient, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "rebuilt"
    Gallery.create(place, tiny_run.run).enrol_files("thing 0", picture(tiny_run, 0, 0))
    other = tmp_path / "other"
    other.mkdir()
    stored = read_stored_model(tiny_run.run)
    assert stored.description.calibration is not None
    written = write_model(stored, other, "onnx", "outside", None)
    store_calibration(written, stored.description.calibration)
    with TestClient(
        create_app(ServiceSettings(galleries=(str(place),))), base_url="http://127.0.0.1"
    ) as client:
        embed = Gallery.identify

        def rebuild_before(self: Gallery, *args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(Gallery, "identify", embed)
            Gallery.open(place).rebuild(other)
            return embed(self, *args, **kwargs)

        monkeypatch.setattr(Gallery, "identify", rebuild_before)
        answer = client.post("/v1/identify", content=picture(tiny_run, 0, 0).read_bytes())
        assert answer.status_code == 200, answer.text
        assert answer.json()["answers"][0]["candidates"][0]["distance"] == pytest.approx(
            0, abs=1e-5
        )


def test_openapi_describes_every_route_and_its_examples_hold(client: TestClient) -> None:
    described = client.get("/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["components"]["securitySchemes"]) == {"bearer", "key"}
    assert "itemSchema" not in json.dumps(described)  # Of version 3.2.
    names: list[str] = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            assert operation["tags"], (method, path)
            assert {"401", "403", "404", "409", "413", "422", "429", "503"} <= set(
                operation["responses"]
            )
            for parameter in operation.get("parameters", ()):
                assert parameter["in"] in ("path", "query", "header")
                assert parameter["in"] != "path" or f"{{{parameter['name']}}}" in path
    assert len(set(names)) == len(names)
    known = described["components"]["schemas"]
    assert set(re.findall(r'#/components/schemas/([^"]+)', json.dumps(described))) <= set(known)
    examples = {name: schema["example"] for name, schema in known.items() if "example" in schema}
    assert {"VerifyAnswer", "EmbedAnswer", "IdentifyAnswer", "SearchAnswer"} <= set(examples)
    for name, example in examples.items():
        if hasattr(schemas, name):
            assert_described(example, getattr(schemas, name))


def test_the_reference_names_every_route_and_loads_nothing(client: TestClient) -> None:
    page = client.get("/v1/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path, operations in client.get("/v1/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in page.text
    assert not re.findall(r'(?:src|href|action)="(?![/#])', page.text)


def test_a_picture_is_read_as_it_is_shown(client: TestClient, tiny_run: TinyRun) -> None:
    """Its rotation by EXIF counts, as on the command line."""
    with Image.open(picture(tiny_run, 0)) as upright:
        turned = upright.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    both = {"a": picture(tiny_run, 0).read_bytes(), "b": file.getvalue()}
    assert client.post("/v1/verify", files=both).json()["distance"] == 0


def test_the_documents_have_a_curl_for_every_route(client: TestClient) -> None:
    documents = Path(__file__).parents[1] / "docs"
    commands = re.findall(
        r"^\$ (.*?)(?=\n[^ ])", (documents / "service.md").read_text(), re.M | re.S
    )
    called = {(_method(words), address) for words in commands for address in _addresses(words)}
    compatible = re.sub(r"{\w+}", "{}", (documents / "compreface.md").read_text())
    paths = client.get("/v1/openapi.json").json()["paths"]
    for path, operations in paths.items():
        pattern = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) + "$")
        for method in operations:
            if path.startswith("/api/"):
                named = f"`{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
                assert named in compatible, (method, path)
            else:
                known = [each for each in called if each[0] == method.upper()]
                assert any(pattern.match(each[1]) for each in known), (method, path)


def _method(words: str) -> str:
    named = re.search(r"-X (\w+)", words)
    if named is not None:
        return named[1]
    return "POST" if re.search(r" (-F|--json|--data-binary) ", words) else "GET"


def _addresses(words: str) -> list[str]:
    return re.findall(r"http://127\.0\.0\.1:8000(/[^\s?']*)", words)


def test_the_table_of_errors_has_every_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "service.md").read_text().partition("## Errors")[2]
    rows = {
        int(row.group(1)): row.group(2) for row in re.finditer(r"^\| (\d+) \| (.*?) \|", text, re.M)
    }
    for status, code in [*CODES.items(), *((status, code) for _, code, status in KINDS)]:
        assert f"`{code}`" in rows[status], (status, code)


def test_the_table_of_limits_is_that_of_the_settings() -> None:
    text = (Path(__file__).parents[1] / "docs" / "service.md").read_text()
    table = text.partition("<!-- limits -->")[2].partition("<!-- end -->")[0]
    values = {row.strip("|").split("|")[1].strip() for row in table.strip().splitlines()[2:]}
    for name, value in Limits().model_dump().items():
        if name not in ("slots", "requests_a_minute"):
            assert f"{value:,g}" in values or f"{value:,}" in values, (name, value)
