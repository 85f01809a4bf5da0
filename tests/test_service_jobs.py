"""Jobs of the service: arguments, states read from files, events, and processes that are killed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import draw_pictures
from fastapi.testclient import TestClient

from twinlens.errors import ConfigError, DataError
from twinlens.gallery.location import table_of
from twinlens.progress import Progress, publish
from twinlens.service import job_folder, job_process, job_schemas, job_work, jobs
from twinlens.service.app import create_app
from twinlens.service.errors import ServiceError
from twinlens.service.galleries import Galleries
from twinlens.service.job_arguments import ARGUMENTS, check_arguments
from twinlens.service.job_folder import Event, JobFolder
from twinlens.service.jobs import Job, Jobs
from twinlens.service.models import Models
from twinlens.service.settings import ServiceSettings

SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
IMPORT = {"gallery": "things", "pictures": "set"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw_pictures(tmp_path / "pictures/set", {"anna": 2, "ben": 2})
    Path(table_of(str(tmp_path / "galleries/things"))).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def place(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs whose processes sleep."""
    monkeypatch.setattr(Jobs, "_command", lambda self: SLEEP)
    place = jobs_of(data)
    yield place
    for process in place._processes:
        process.kill()
        process.wait()


def jobs_of(data: Path) -> Jobs:
    settings = ServiceSettings(data=data)
    models = Models(settings)
    return Jobs(settings, models, Galleries(settings, models))


def kill(place: Jobs) -> None:
    for process in place._processes:
        process.kill()
        process.wait()


# --- arguments ---


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("dance", {}, "unknown kind of job"),
        ("train", {}, "pictures"),
        ("train", {"pictures": "x", "data": "/etc"}, "data"),
        ("train", {"pictures": "x", "recipe": "../x.toml"}, "recipe"),
        ("train", {"pictures": "x", "settings": {"model.weights": "/x"}}, "model.weights"),
        ("train", {"pictures": "x", "settings": {"loss.name": "pml"}}, "loss.name"),
        ("train", {"pictures": "x", "settings": {"train.device": "cuda"}}, "train.device"),
        ("train", {"pictures": "x", "settings": {"train.accept_licence": True}}, "accept_licence"),
        ("train", {"pictures": "x", "settings": {"picture.size": 0}}, "picture.size"),
        ("train", {"pictures": "x", "time_budget": float("inf")}, "time_budget"),
        ("calibrate", {"model": "x"}, "picture set"),
        ("calibrate", {"pictures": "x", "far": 1.5}, "far"),
        ("export", {"format": "web"}, "format"),
    ],
)
def test_wrong_arguments(kind: str, values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arguments(kind, values)


def test_a_training_needs_its_extra(place: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "installed_extras", lambda: {"train": False})
    with pytest.raises(ServiceError, match=r"pip install 'twinlens\[train\]'") as caught:
        place.start("train", {"pictures": "set"})
    assert caught.value.status == 501
    assert "\n" not in str(caught.value)


def test_the_server_never_imports_torch() -> None:
    code = (
        "import sys; from twinlens.service import app, job_process; "
        "from twinlens.service.job_arguments import check_arguments; "
        "check_arguments('train', {'pictures': 'x'}); "
        "from twinlens.machine import installed_extras; installed_extras(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- processes ---


def test_a_job_is_interrupted_if_its_process_dies_and_resumed_once(place: Jobs, data: Path) -> None:
    job = place.start("import", IMPORT, "key of anna")
    assert (job.state, job.by, job.arguments["gallery"]) == ("waiting", "key of anna", "things")
    other = jobs_of(data)  # Another worker, or the server after a restart.
    assert other.get(job.id) == job
    other.resume_interrupted()
    assert other._processes == []
    with pytest.raises(ServiceError, match="nothing to resume"):
        other.resume(job.id)
    with pytest.raises(ServiceError, match="cancel it first"):
        other.delete(job.id)
    kill(place)
    assert other.get(job.id).state == "interrupted"
    workers = [jobs_of(data) for _ in range(4)]
    threads = [threading.Thread(target=worker.resume_interrupted) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(worker._processes) for worker in workers) == 1
    assert place.get(job.id).state == "waiting"
    for worker in workers:
        kill(worker)
    place.cancel(job.id)
    assert place.get(job.id).state == "cancelled"
    place.delete(job.id)
    assert place.list() == []


def test_a_job_that_kills_its_process_is_not_resumed_for_ever(place: Jobs) -> None:
    job = place.start("import", IMPORT)
    kill(place)
    JobFolder(place.folder(job.id)).write_status(state="running", attempts=jobs.MAX_ATTEMPTS)
    place.resume_interrupted()
    assert place.get(job.id).state == "interrupted"
    assert place.resume(job.id).state == "waiting"


def test_waiting_jobs_are_bounded_and_old_ones_deleted(
    place: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)
    monkeypatch.setattr(jobs, "KEPT", 1)
    ids = [place.start("import", IMPORT).id for _ in range(2)]
    with pytest.raises(ServiceError, match="wait already") as caught:
        place.start("import", IMPORT)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "60"})
    kill(place)
    ids += [place.start("import", IMPORT).id]
    assert [job.id for job in place.list()] == [ids[2], ids[1]]


def test_a_run_is_reserved(place: Jobs, data: Path) -> None:
    first = place.start("train", {"pictures": "set"})
    assert first.arguments["run"] == "set"
    assert place.start("train", {"pictures": "set"}).arguments["run"] == "set-2"
    with pytest.raises(ServiceError, match="already"):
        place.start("train", {"pictures": "set", "run": "set"})
    kill(place)
    place.delete(first.id)
    assert not (data / "runs/set").exists()


@pytest.mark.parametrize(
    ("kind", "arguments", "status"),
    [
        ("train", {"pictures": "nope"}, 404),
        ("cluster", {"pictures": "set"}, 404),
        ("import", {"gallery": "nope", "pictures": "set"}, 404),
        ("import", {"gallery": "things"}, 422),
        ("calibrate", {"gallery": "nope"}, 404),
    ],
)
def test_missing_things(place: Jobs, kind: str, arguments: dict[str, Any], status: int) -> None:
    with pytest.raises(ServiceError) as caught:
        place.start(kind, arguments)
    assert caught.value.status == status
    assert place.list() == []


@pytest.mark.parametrize("id", ["", "..", "x", "20261126T154533574862-b0ba22"])
def test_unknown_jobs(place: Jobs, id: str) -> None:
    with pytest.raises(ServiceError, match="no job"):
        place.get(id)


def test_a_full_disk_is_said(place: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise DataError(f"cannot write {path}") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(job_folder, "write_text", full)
    with pytest.raises(ServiceError, match="disk") as caught:
        place.start("import", IMPORT)
    assert caught.value.status == 507
    assert place.list() == []


# --- the process, in this one ---

Work = Callable[[Any, job_work.WorkPlace], dict[str, Any]]


def work_on(place: Jobs, monkeypatch: pytest.MonkeyPatch, work: Work) -> tuple[Job, list[Event]]:
    """The job and its events after some work in this process."""
    monkeypatch.setattr(job_process, "POLL", 0.01)
    monkeypatch.setattr(jobs, "POLL", 0.01)
    monkeypatch.setitem(job_work.WORK, "import", work)
    job = place.start("import", IMPORT)
    kill(place)
    folder = JobFolder(place.folder(job.id))
    held = folder.try_lock()
    assert held is not None
    try:
        job_process.main(folder.path)
    finally:
        os.close(held)
    return place.get(job.id), followed(place, job.id)


def followed(place: Jobs, id: str, after: int = 0) -> list[Event]:
    async def follow() -> list[Event]:
        return [event async for event in place.events(id, after)]

    return asyncio.run(follow())


def test_events_and_result(place: Jobs, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    def work(arguments: Any, at: job_work.WorkPlace) -> dict[str, Any]:
        progress = Progress("counting", "sheep")
        for done in range(1, 101):
            progress(done, 100)
        publish("curve", step=1, loss=float("nan"), metric=0.5)
        job_process.log.warning("look at %s", data / "pictures/set")
        return {"pictures": len(at.table("set")), "figure": float("inf")}

    job, events = work_on(place, monkeypatch, work)
    assert (job.state, job.result) == ("done", {"pictures": 4, "figure": None})
    assert job.progress is not None
    assert (job.progress["done"], job.progress["total"], job.progress["unit"]) == (
        100,
        100,
        "sheep",
    )
    kinds = [event.type for event in events]
    assert kinds == ["state", "state", "progress", "curve", "log", "state", "end"]
    curve, line = events[3].data, events[4].data
    assert (curve["step"], curve["loss"], curve["metric"]) == (1, None, 0.5)
    assert (line["level"], line["text"]) == ("warning", "look at set")
    assert events[-1].data == job.as_json()
    assert followed(place, job.id, events[2].id) == events[3:]
    assert followed(place, job.id, 10**9) == events  # Of another time: from the start.
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended
    with (place.folder(job.id) / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "lo')  # The process was killed here.
    assert followed(place, job.id) == events


def test_errors_name_no_path(place: Jobs, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    def work(arguments: Any, at: job_work.WorkPlace) -> dict[str, Any]:
        raise DataError(f"nothing in {data / 'pictures/set'}: add some")

    job, _ = work_on(place, monkeypatch, work)
    assert (job.state, job.error) == ("failed", "nothing in set: add some")
    assert place.resume(job.id).error is None


def test_a_fault_fails_the_job(place: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        work_on(place, monkeypatch, lambda arguments, at: 1 // 0)  # type: ignore[arg-type]
    (job,) = place.list()
    assert job.state == "failed"
    assert "ZeroDivisionError" in str(job.error)


# A process of its own: signals do not belong into this one, with the threads of many libraries.
SLEEPING_WORK = """
import os, sys, time
from pathlib import Path
from twinlens.service import job_process, job_work

def work(arguments, at):
    try:
        Path(os.environ["AT_WORK"]).touch()
        time.sleep(60)
    except KeyboardInterrupt:
        raise job_work.WorkInterruptedError({"run": "half"}) from None

job_work.WORK["import"] = work
sys.exit(job_process.main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("by_request", "state"), [(True, "cancelled"), (False, "interrupted")])
def test_cancelled_or_stopped(
    place: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_request: bool, state: str
) -> None:
    monkeypatch.setattr(Jobs, "_command", lambda self: (sys.executable, "-c", SLEEPING_WORK))
    at_work = tmp_path / "at work"
    monkeypatch.setenv("AT_WORK", str(at_work))
    id = place.start("import", IMPORT).id
    (process,) = place._processes
    deadline = time.monotonic() + 60
    while not at_work.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if by_request:
        place.cancel(id)
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    job, events = place.get(id), followed(place, id)
    assert (job.state, job.result) == (state, {"run": "half"})
    assert events[-1].data["state"] == state
    assert place.resume(id).state == "waiting"


def test_an_earlier_job_of_the_queue_comes_first(place: Jobs) -> None:
    first, second = (place.start("import", IMPORT).id for _ in range(2))
    assert job_process._is_ahead(place.folder(first), job_process.OTHERS)
    assert not job_process._is_ahead(place.folder(first), "train")
    kill(place)
    assert not job_process._is_ahead(place.folder(first), job_process.OTHERS)
    assert list(job_folder.folders_before(place.folder(second))) == [place.folder(first)]


# --- routes ---


@pytest.fixture
def client(place: Jobs, data: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings(data=data)), base_url="http://127.0.0.1") as client:
        yield client
        kill(client.app.state.service.jobs)  # type: ignore[attr-defined]


def test_start_follow_cancel_delete_by_http(
    client: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL", 0.01)
    answer = client.post("/v1/jobs/import", json=IMPORT)
    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == set(job_schemas.JobFacts.model_fields)
    assert client.get("/v1/jobs").json() == {"jobs": [job]}
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "waiting"
    kill(client.app.state.service.jobs)  # type: ignore[attr-defined]
    (data / "jobs" / job["id"] / "events.jsonl").write_text('{"type": "state", "state": "x"}\n')
    lines = client.get(f"/v1/jobs/{job['id']}/events").text.splitlines()
    assert lines[:3] == ["event: state", 'data: {"state": "x"}', "id: 32"]
    assert '"state": "cancelled"' in next(line for line in lines[3:] if line.startswith("data"))
    rest = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "32"}).text
    assert rest.startswith("event: end")
    for path in ("groups", "files"):
        assert client.get(f"/v1/jobs/{job['id']}/{path}").status_code == 404
    assert client.get(f"/v1/jobs/{job['id']}/log").status_code == 200
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}/events").status_code == 404
    assert str(data) not in answer.text


def test_streams_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_STREAMS", 0)
    job = client.post("/v1/jobs/import", json=IMPORT).json()
    assert client.get(f"/v1/jobs/{job['id']}/events").status_code == 503


def test_every_kind_has_a_route_and_work(client: TestClient) -> None:
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert set(ARGUMENTS) == set(job_work.WORK)
    assert {f"/v1/jobs/{kind}" for kind in ARGUMENTS} <= set(paths)


# --- a training, with everything that can be killed ---

SETTINGS = {
    "picture.size": [16, 16], "picture.color": "grey", "train.steps": 600, "train.validations": 20,
    "train.candidates": False, "train.refit": False, "train.extend": False,
    "train.precision": "float32",
}  # fmt: skip


@contextmanager
def served(data: Path) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A running service and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "twinlens", "serve", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("serving at ").strip()
        with httpx2.Client(base_url=address, timeout=120) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def stream(client: httpx2.Client, id: str, after: int = 0) -> Iterator[tuple[int, str, Any]]:
    """Position, type and values of the events of a job."""
    headers = {"Last-Event-ID": str(after)}
    with client.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif "data" in event:
                yield int(event["id"]), event["event"], json.loads(event["data"])
                event = {}


def processes_of(id: str) -> list[int]:
    """Processes of jobs whose folder has this in its name."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True
    ).stdout
    rows = [row for row in table.splitlines() if "job_process" in row and id in row]
    return [int(row.split()[0]) for row in rows]


@pytest.fixture
def own_processes(tmp_path: Path) -> Iterator[None]:
    """Kill what a failed test leaves."""
    yield
    for process in processes_of(str(tmp_path)):
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("own_processes")
def test_trainings_outlive_killed_processes(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "source", {f"thing {n}": 6 for n in range(8)})
    files = [("picture", (f"{file.parent.name}/{file.name}", file.read_bytes()))
             for file in sorted((tmp_path / "source").rglob("*.png"))]  # fmt: skip
    data = tmp_path / "data"
    body = {"pictures": "things", "recipe": "digits-contrastive", "settings": SETTINGS}
    with served(data) as (server, client):
        assert client.post("/v1/pictures/things", files=files).json()["stored"] == 48
        first, second = (client.post("/v1/jobs/train", json=body).json()["id"] for _ in range(2))
        for known, kind, values in stream(client, first):
            if kind == "curve" and values["step"] > 100:
                after = known
                break
        assert client.get(f"/v1/jobs/{second}").json()["state"] == "waiting"
        server.kill()
        server.wait()
    assert JobFolder(data / "jobs" / first).read().state == "running"  # It outlives the server.
    for id in (first, second):
        for process in processes_of(id):
            os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while JobFolder(data / "jobs" / first).is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert JobFolder(data / "jobs" / first).read().state == "interrupted"
    with served(data) as (server, client):
        events = list(stream(client, first, after))
        steps = [values["step"] for _, kind, values in events if kind == "curve"]
        assert steps[-1] == SETTINGS["train.steps"]
        done = events[-1][2]
        assert (done["state"], done["result"]["run"]) == ("done", "things")
        assert 0 <= done["result"]["results"]["verification"]["eer"]["value"] <= 1
        assert [one["name"] for one in client.get("/v1/models").json()["models"]] == ["things"]
        for _, kind, _ in stream(client, second):
            if kind == "curve":
                break
        client.post(f"/v1/jobs/{second}/cancel")
        *_, (_, kind, last) = stream(client, second)
        assert (kind, last["state"]) == ("end", "cancelled")
        assert client.post(f"/v1/jobs/{second}/resume").json()["state"] == "waiting"
        opened = stream(client, second)
        next(opened)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        list(opened)  # The stream ends with the server, promptly; the job does not.
        server.wait(timeout=30)
        assert time.monotonic() - started < 8
    assert processes_of(second)
    JobFolder(data / "jobs" / second).set_cancels(2)
    deadline = time.monotonic() + 60
    while JobFolder(data / "jobs" / second).is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "Traceback" not in (data / "jobs" / second / "log.txt").read_text()
