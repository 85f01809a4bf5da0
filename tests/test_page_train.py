"""Pages that start, follow and explain a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TinyRun

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from twinlens.parsing import read_json
from twinlens.service.app import create_app
from twinlens.service.job_folder import Job
from twinlens.service.jobs import Jobs
from twinlens.service.settings import ServiceSettings

ID = "20261126T120000000000-abcdef"
TRAINING = Job(
    ID, "train", "running", "2026-11-26T12:00:00+00:00", "2026-11-26T12:00:01+00:00", None,
    {"pictures": "Things", "run": "Things", "time_budget": 120.0}, "local",
    {"task": "training", "unit": "steps", "done": 3, "total": 10},
)  # fmt: skip


@pytest.fixture
def client(tmp_path: Path, tiny_run: TinyRun) -> Iterator[TestClient]:
    settings = ServiceSettings(data=tmp_path / "data")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for thing in range(2):
            picture = (tiny_run.data / f"thing {thing}" / "0.png").read_bytes()
            client.post("/v1/pictures/Things", params={"identity": f"{thing}"}, content=picture)
        yield client


def test_button_starts_a_training_of_the_chosen_length(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(self: Jobs, kind: str, arguments: dict[str, object], by: str) -> Job:
        started.append((kind, arguments, by))
        return TRAINING

    monkeypatch.setattr(Jobs, "start", start)
    page = client.get("/train")
    assert 'value="Things" required checked' in page.text
    form = {"pictures": "Things", "minutes": "2"}
    answer = client.post("/train", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/train/{ID}")
    client.post("/train", data={"pictures": "Things", "minutes": "0", "run": " best "})
    assert started == [
        ("train", {"pictures": "Things", "time_budget": 120.0}, "local"),
        ("train", {"pictures": "Things", "run": "best"}, "local"),
    ]


def test_server_that_cannot_train_says_what_is_missing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jobs, "training_problem", "pip install 'twinlens[train]'")
    page = client.get("/train")
    assert "twinlens[train]" in page.text
    assert "<form" not in page.text


def test_training_is_followed_then_explained(
    client: TestClient, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jobs, "get", lambda self, id: TRAINING)
    running = client.get(f"/train/{ID}").text
    assert f'data-events="/v1/jobs/{ID}/events"' in running
    assert 'max="10" value="3"' in running
    results = read_json(tiny_run.run / "results.json")
    result = {"run": "Things", "report": True, "calibration": None, "results": results}
    monkeypatch.setattr(
        Jobs, "get", lambda self, id: replace(TRAINING, state="done", result=result)
    )
    done = client.get(f"/train/{ID}").text
    assert "The model has no threshold yet" in done  # The calibration is None.
    assert 'src="/v1/models/Things/report"' in done
    failed = replace(TRAINING, state="failed", error="too few <identities>")
    monkeypatch.setattr(Jobs, "get", lambda self, id: failed)
    page = client.get(f"/train/{ID}").text
    assert "too few &lt;identities&gt;" in page
    assert f'action="/train/{ID}/resume"' in page


def test_errors_at_the_threshold_come_first_and_a_strict_one_is_said(
    client: TestClient, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read_json(tiny_run.run / "results.json")
    at = results["verification"]["calibrated"]
    at["far"] = {"value": 0.0, "low": 0.0, "high": 1.0}

    def page(frr: float | None) -> str:
        at["frr"] = {"value": frr, "low": None, "high": None}
        calibration = {"threshold": 0.01, "num_identities": 7}
        result = {"run": "Things", "report": True, "calibration": calibration, "results": results}
        done = replace(TRAINING, state="done", result=result)
        monkeypatch.setattr(Jobs, "get", lambda self, id: done)
        return client.get(f"/train/{ID}").text

    strict = page(0.978)
    assert "<dd>97.8 %</dd>" in strict
    assert "it misses about 98. It was set from only 7 names" in strict
    assert 'href="/look?model=Things&amp;set=Things">Choose a more lenient limit' in strict
    assert "between 0 and 1e+02" not in strict
    assert "between 0 and 100 are" in strict
    assert "notice caution" not in page(0.1)
    assert "could not be measured" in page(None)


def test_unknown_training_is_a_page_not_json(client: TestClient) -> None:
    answer = client.get(f"/train/{ID}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert 'role="alert"' in answer.text
