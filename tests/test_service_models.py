"""Models of the service: facts, replacement under load, downloads, deletion, calibration."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import TinyRun
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from test_service_answers import assert_described

import twinlens
from twinlens.errors import ModelError
from twinlens.exports.formats import write_model
from twinlens.files import creating_folder
from twinlens.model.stored import read_stored_model, store_calibration
from twinlens.service import schemas
from twinlens.service.app import create_app
from twinlens.service.downloads import ZipResponse
from twinlens.service.errors import ServiceError
from twinlens.service.models import Models
from twinlens.service.settings import Limits, ServiceSettings


@pytest.fixture
def data(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A service's folder with two runs."""
    for name in ("first", "second"):
        run = tmp_path / "data" / "runs" / name
        shutil.copytree(tiny_run.model, run / "model")
        shutil.copy(tiny_run.run / "report.html", run)
    return tmp_path / "data"


@pytest.fixture
def client(data: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings(data=data)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="session")
def other_model(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another fingerprint and another threshold."""
    folder = tmp_path_factory.mktemp("other")
    stored = write_model(read_stored_model(tiny_run.run), folder, "onnx", "outside", None)
    calibration = dict(read_stored_model(tiny_run.run).description.calibration or {})
    store_calibration(stored, calibration | {"threshold": 0.123})
    return folder


def test_models_are_listed_with_their_facts(client: TestClient, data: Path) -> None:
    (data / "runs/second/model/model.json").write_text("{}")
    (data / "runs/.hidden/model").mkdir(parents=True)
    shutil.copy(data / "runs/first/model/model.json", data / "runs/.hidden/model")
    listed = client.get("/v1/models").json()
    assert_described(listed, schemas.ModelList)
    first, second = listed["models"]
    matcher = twinlens.load(data / "runs/first")
    assert matcher.calibration is not None
    assert first == client.get("/v1/models/first").json()
    assert (first["fingerprint"], first["dim"]) == (matcher.fingerprint, 16)
    assert (first["height"], first["width"], first["channels"]) == (
        16,
        16,
        matcher.picture.channels,
    )
    assert first["threshold"] == matcher.calibration.threshold
    assert first["calibration"] == matcher.calibration.as_json()
    assert first["trained_on"] == "pictures"
    assert second["name"] == "second"
    assert "damaged" in second["error"]
    assert str(data) not in second["error"]


def test_a_name_is_needed_where_there_are_several(data: Path, tiny_run: TinyRun) -> None:
    models = Models(ServiceSettings(data=data))
    with pytest.raises(ServiceError, match="several models: name one of first, second") as error:
        models.get()
    assert error.value.status == 422
    with pytest.raises(ServiceError, match=r"unknown model '\.\./runs/first'"):
        models.get("../runs/first")
    shutil.rmtree(data / "runs/first")
    assert models.get().path == data / "runs/second/model"
    with pytest.raises(ServiceError, match="there is no model"):
        Models(ServiceSettings(data=data / "none")).get()
    named = Models(ServiceSettings(data=data, model=tiny_run.run))
    assert named.get().path == tiny_run.model
    assert list(named.folders()) == ["run", "second"]


def test_a_replaced_model_answers_the_next_request(
    client: TestClient, data: Path, other_model: Path, tiny_run: TinyRun
) -> None:
    """Threads ask while the model is replaced again and again: no request fails, none is mixed."""
    picture = (tiny_run.data / "thing 0/0.png").read_bytes()
    form = {"a": picture, "b": (tiny_run.data / "thing 1/0.png").read_bytes()}
    folder, models = data / "runs/first/model", (other_model, tiny_run.model)
    thresholds = [twinlens.load(model).require_calibration().threshold for model in models]
    fingerprints = [twinlens.load(model).fingerprint for model in models]
    stop, problems = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/v1/verify?model=first", files=form)
            if answer.status_code != 200 or answer.json()["threshold"] not in thresholds:
                problems.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(12):
            model = models[turn % 2]
            if turn < 6:  # As a training writes it.
                with creating_folder(folder, "runs", "", replace=True) as part:
                    shutil.copytree(model, part, dirs_exist_ok=True)
            else:  # As `cp` does, file by file.
                for file in sorted(model.iterdir()):
                    shutil.copy(file, folder)
                for file in folder.iterdir():
                    if not (model / file.name).exists():
                        file.unlink()
            answer = client.post("/v1/embed?model=first", content=picture).json()
            assert answer["fingerprint"] == fingerprints[turn % 2]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems, problems[:3]


def test_a_damaged_replacement_leaves_the_older_model_in_place(data: Path) -> None:
    models = Models(ServiceSettings(data=data))
    before, graph = models.get("first"), data / "runs/first/model/model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    assert models.get("first") is before
    assert models.get("first") is before
    shutil.copy(data / "runs/second/model/model.onnx", graph)
    assert models.get("first") is not before


def test_a_model_that_is_being_renamed_is_waited_for_and_a_deleted_one_is_not_found(
    data: Path,
) -> None:
    models, folder = Models(ServiceSettings(data=data)), data / "runs/first/model"
    shutil.rmtree(data / "runs/second")
    before = models.get()
    folder.rename(data / "aside")
    threading.Timer(0.1, (data / "aside").rename, (folder,)).start()
    assert models.get() is before
    shutil.rmtree(data / "runs/first")
    for _ in range(2):
        with pytest.raises(ServiceError, match="there is no model"):
            models.get()


def test_downloads_are_whole_and_leave_nothing(
    client: TestClient, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for kind, inside in (("download", "model"), ("export", ".")):
        answer = client.get(f"/v1/models/first/{kind}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/zip"
        zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / kind)
        again = twinlens.load(tmp_path / kind / inside)
        assert again.calibration == twinlens.load(data / "runs/first").calibration
    assert not (tmp_path / "download" / "trained_on.safetensors").exists()
    assert list(temporary.iterdir()) == []
    report = client.get("/v1/models/first/report")
    assert report.content == (data / "runs/first/report.html").read_bytes()
    assert "default-src 'none'" in report.headers["content-security-policy"]
    assert "sandbox" in report.headers["content-security-policy"]
    (data / "runs/second/report.html").unlink()
    assert client.get("/v1/models/second/report").status_code == 404
    unknown = client.get("/v1/models/first/export?format=coreml")
    assert (unknown.status_code, "'onnx-int8'" in unknown.text) == (422, True)
    assert list(temporary.iterdir()) == []


async def _gone(*_: object) -> None:
    raise OSError("the client has gone")


def test_a_download_that_breaks_closes_what_it_opened(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(bytes(2**20))
    closed, stack = [], ExitStack()
    stack.callback(closed.append, True)
    answer = ZipResponse("x.zip", {"part": tmp_path / "part"}, stack)
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        asyncio.run(answer(scope, _gone, _gone))
    assert closed == [True]


def test_a_run_is_deleted_whole_and_the_model_of_the_start_is_not(
    client: TestClient, data: Path, tiny_run: TinyRun
) -> None:
    assert client.delete("/v1/models/first").status_code == 204
    assert [path.name for path in (data / "runs").iterdir()] == ["second"]
    assert client.delete("/v1/models/first").status_code == 404
    with TestClient(
        create_app(ServiceSettings(model=tiny_run.run)), base_url="http://127.0.0.1"
    ) as started:
        assert started.delete("/v1/models/run").status_code == 409
    assert tiny_run.model.exists()


def test_an_export_that_takes_too_long_names_the_job(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def slow(*_: object, **__: object) -> None:
        done.wait(10)
        raise ModelError("nothing is exported")

    monkeypatch.setattr("twinlens.service.routes.models.export", slow)
    settings = ServiceSettings(data=data, limits=Limits(seconds=0.2))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        answer = client.get("/v1/models/first/export")
        done.set()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "timeout"
    assert "POST /v1/jobs/export" in answer.json()["error"]["message"]


def test_share_says_that_a_limit_is_strict_until_another_is_set(
    client: TestClient, data: Path
) -> None:
    def page(threshold: float) -> str:
        at = {"threshold": {"value": threshold}, "frr": {"value": 0.9}}
        results = json.dumps({"verification": {"calibrated": at}})
        (data / "runs" / "first" / "results.json").write_text(results)
        return client.get("/share").text

    threshold = client.get("/v1/models/first").json()["threshold"]
    assert "The limit is strict" in page(threshold)
    assert "The limit is strict" not in page(threshold / 2)
