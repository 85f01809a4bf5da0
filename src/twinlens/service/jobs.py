"""Long work of the service: trainings, calibrations, clusterings, imports and exports.

Each job is a folder `DATA/jobs/ID/` and a process of its own, which outlives the server. All state
is read from files, so that every worker and a restarted server see the same.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from twinlens.errors import one_line, unknown_name
from twinlens.files import part_beside
from twinlens.machine import installed_extras
from twinlens.model.stored import DESCRIPTION
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.galleries import Galleries
from twinlens.service.job_arguments import (
    Arguments,
    AuditArguments,
    FacesArguments,
    ImportArguments,
    TrainArguments,
    check_arguments,
)
from twinlens.service.job_folder import ENDED, LOCK_SECONDS, LOG, Event, Job, JobFolder, State
from twinlens.service.job_work import UPLOAD
from twinlens.service.models import Models
from twinlens.service.picture_sets import PictureSets
from twinlens.service.settings import ServiceSettings, check_name
from twinlens.service.storage import data_folder, storing

__all__ = ["ENDED", "Event", "Job", "Jobs", "State"]

ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{6}")
MAX_WAITING = 8
KEPT = 100  # ended jobs
MAX_STREAMS = 64  # of events, for each worker
MAX_ATTEMPTS = 5  # A job that kills its process is not resumed for ever.
POLL = 0.5  # seconds
ENDING_SECONDS = 10.0  # of a process whose work has ended
FACES_PROBLEM = "finding faces needs further packages on the server: pip install 'twinlens[faces]'"


class Jobs:
    """Starts, lists, follows, cancels and resumes jobs.

    Every method but `enabled` and `list` raises `ServiceError` (409) in a service without a folder
    of its own.
    """

    def __init__(self, settings: ServiceSettings, models: Models, galleries: Galleries) -> None:
        self._settings, self._models, self._galleries = settings, models, galleries
        self._starting = threading.Lock()
        self._num_streams = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def enabled(self) -> bool:
        """Whether there is a folder for jobs."""
        return self._settings.data is not None

    @property
    def training_problem(self) -> str | None:
        """None if training is possible; otherwise a line that says what to install."""
        if installed_extras()["train"]:
            return None
        return "training needs further packages on the server: pip install 'twinlens[train]'"

    @property
    def faces_problem(self) -> str | None:
        """None if faces can be found; otherwise a line that says what to install."""
        return None if installed_extras()["faces"] else FACES_PROBLEM

    def start(
        self, kind: str, arguments: Mapping[str, Any], by: str = "local",
        upload: bytes | None = None,
    ) -> Job:  # fmt: skip
        """Start a job; it waits if another one of its queue runs.

        Args:
            kind: "train", "calibrate", "cluster", "import", "export", "audit" or "faces".
            arguments: see the classes `TrainArguments` and so on.
            by: name of the key that starts it.
            upload: Parquet file to import.
        Raises:
            ConfigError: unknown kind or wrong arguments, all of them at once.
            ServiceError: too many waiting jobs (503), a full disk (507), a missing set, model or
                gallery (404), or no packages for training (501).
        """
        top = data_folder(self._settings, "jobs")
        checked = check_arguments(kind, dict(arguments))
        with self._starting, storing():
            jobs = self.list()
            if sum(job.state == "waiting" for job in jobs) >= MAX_WAITING:
                raise ServiceError(
                    503, f"{MAX_WAITING} jobs wait already: try again when one has ended",
                    headers={"Retry-After": "60"},
                )  # fmt: skip
            for job in [job for job in jobs if job.state in ENDED][KEPT:]:
                self.delete(job.id)
            checked, places = self._places(checked, upload is not None)
            with part_beside(top / "job") as part:
                job_folder = JobFolder(part / f"{_time_id()}-{secrets.token_hex(3)}")
                job_folder.path.mkdir()
                job_folder.write_request(kind, checked.model_dump(mode="json"), places, by)
                if upload is not None:
                    (job_folder.path / UPLOAD).write_bytes(upload)
                id = job_folder.path.name
                job_folder.path.rename(top / id)
            self._spawn(JobFolder(top / id))
        return self.get(id)

    def get(self, id: str) -> Job:
        """A job.

        Raises:
            ServiceError: no such job (404).
        """
        folder = self.folder(id)
        try:
            return _public(JobFolder(folder).read())
        except ValueError as error:
            raise _no_job(id) from error

    def list(self) -> Sequence[Job]:
        """All jobs, the newest first."""
        data, jobs = self._settings.data, []
        for folder in () if data is None else sorted(data.glob("jobs/[!.]*/"), reverse=True):
            with suppress(ValueError):  # Being deleted.
                jobs.append(_public(JobFolder(folder).read()))
        return jobs

    def cancel(self, id: str) -> Job:
        """Cancel a job. A training keeps its checkpoint and model; a second cancel ends it at once.

        Raises:
            ServiceError: no such job (404), or it has ended (409).
        """
        job, folder = self.get(id), JobFolder(self.folder(id))
        if job.state in ENDED and job.state != "interrupted":
            raise ServiceError(409, f"the job {id} is {job.state} already")
        with storing():
            folder.set_cancels(folder.num_cancels() + 1)
        return self.get(id)

    def resume(self, id: str) -> Job:
        """Start the process of an interrupted, cancelled or failed job again.

        Raises:
            ServiceError: no such job (404), or it runs or is done (409).
        """
        job, folder = self.get(id), JobFolder(self.folder(id))
        if job.state == "done" or job.state not in ENDED:
            raise ServiceError(409, f"the job {id} is {job.state}: there is nothing to resume")
        with self._starting, storing():
            if not self._spawn(folder, num_cancels=0, seconds=ENDING_SECONDS):
                raise ServiceError(409, f"the process of the job {id} still ends: try again soon")
        return self.get(id)

    def delete(self, id: str) -> None:
        """Delete an ended job and its files; the model or gallery that it made stays.

        Raises:
            ServiceError: no such job (404), or it has not ended (409).
        """
        job, folder = self.get(id), self.folder(id)
        if job.state not in ENDED:
            raise ServiceError(409, f"the job {id} is {job.state}: cancel it first")
        run = JobFolder(folder).request()["places"].get("run")
        if run is not None and not (Path(run) / "model" / DESCRIPTION).is_file():
            shutil.rmtree(run, ignore_errors=True)
        with suppress(FileNotFoundError), part_beside(folder) as part:
            folder.rename(part / id)

    def resume_interrupted(self) -> None:
        """Resume the jobs whose processes were killed; called when the server starts."""
        for job in reversed(self.list()):
            folder = JobFolder(self.folder(job.id))
            if job.state == "interrupted" and folder.status().get("attempts", 0) < MAX_ATTEMPTS:
                with self._starting:
                    self._spawn(folder)

    def folder(self, id: str) -> Path:
        """The folder of a job's files: `log.txt`, `groups.json` or `export/`."""
        folder = data_folder(self._settings, "jobs") / id
        if ID.fullmatch(id) is None or not folder.is_dir():
            raise _no_job(id)
        return folder

    async def events(self, id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events of a job as they come, up to its end.

        Args:
            id: of the job.
            after: `Event.id` of the last one that is known.
        """
        folder = JobFolder(self.folder(id))
        while True:
            job = await asyncio.to_thread(self.get, id)  # Before the events: none follows its end.
            for event in await asyncio.to_thread(folder.events, after):
                after = event.id
                if event.type == "log":
                    event.data["text"] = public_text(event.data["text"])
                yield event
            if job.state in ENDED:
                yield Event(after, "end", job.as_json())
                return
            await asyncio.sleep(POLL)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hold one of the places for streams of events.

        Raises:
            ServiceError: all are taken (503).
        """
        if self._num_streams >= MAX_STREAMS:
            raise ServiceError(
                503, "too many streams of events are open: ask for the job from time to time",
                headers={"Retry-After": "10"},
            )  # fmt: skip
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    def _spawn(
        self, folder: JobFolder, num_cancels: int | None = None, seconds: float = LOCK_SECONDS
    ) -> bool:
        """Start the process of a job, unless it lives. It inherits the lock, without a gap.

        Args:
            folder: of the job.
            num_cancels: number of requests to cancel to begin with.
            seconds: time to wait for the end of an earlier process.
        Returns:
            Whether it was started.
        """
        self._processes = [process for process in self._processes if process.poll() is None]
        descriptor = folder.try_lock(seconds)
        if descriptor is None:
            return False
        try:
            if num_cancels is not None:
                folder.set_cancels(num_cancels)
            state = folder.status().get("state", "waiting")
            if state != "waiting":
                folder.write_status(state="waiting", ended=None, error=None, result=None)
            with (folder.path / LOG).open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*self._command(), str(folder.path.resolve()), str(descriptor)],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder.path,
                        start_new_session=True, pass_fds=(descriptor,),
                    )
                )  # fmt: skip
        finally:
            os.close(descriptor)
        return True

    def _command(self) -> Sequence[str]:
        return (sys.executable, "-m", "twinlens.service.job_process")

    def _places(self, arguments: Arguments, has_upload: bool) -> tuple[Arguments, dict[str, str]]:
        """Places of what the arguments name; the arguments with names for those left out.

        Raises:
            ServiceError: something is missing (404, 409, 501).
        """
        places = {"device": self._settings.device}
        pictures = arguments.pictures
        if pictures is not None:
            PictureSets(self._settings).identities(pictures)
        if isinstance(arguments, TrainArguments):
            if self.training_problem is not None:
                raise ServiceError(501, self.training_problem, "missing_extra")
            run = self._new_run(arguments.run, arguments.pictures)
            return arguments.model_copy(update={"run": run.name}), places | {"run": str(run)}
        if isinstance(arguments, FacesArguments):
            if self.faces_problem is not None:
                raise ServiceError(501, self.faces_problem, "missing_extra")
            check_name("picture set", arguments.into)
            return arguments, places
        if isinstance(arguments, AuditArguments) and arguments.model is None:
            if self.training_problem is not None:
                raise ServiceError(501, self.training_problem, "missing_extra")
            return arguments, places
        if isinstance(arguments, ImportArguments) and (pictures is None) != has_upload:
            raise ServiceError(422, "an import needs either a picture set or an uploaded file")
        gallery = getattr(arguments, "gallery", None)
        if gallery is not None:
            return arguments, places | {"gallery": self._gallery(gallery)}
        folders = self._models.folders()
        name = _only("model", getattr(arguments, "model", None), folders)
        return (
            arguments.model_copy(update={"model": name}),
            places | {"model": str(folders[name].resolve())},
        )

    def _gallery(self, name: str) -> str:
        places = self._galleries.places()
        place = places[_only("gallery", name, places)]
        return place if "://" in place else str(Path(place).resolve())

    def _new_run(self, name: str | None, pictures: str) -> Path:
        """Make the folder of a new run, which reserves its name."""
        runs = data_folder(self._settings, "runs").resolve()
        taken = self._models.folders()
        if name is not None:
            if check_name("run", name) not in taken:
                with suppress(FileExistsError):
                    (runs / name).mkdir()
                    return runs / name
            raise ServiceError(409, f"there is a run {name} already: choose another name")
        for number in count(1):
            run = runs / (pictures if number == 1 else f"{pictures}-{number}")
            if run.name not in taken:
                with suppress(FileExistsError):
                    run.mkdir()
                    break
        return run


def _public(job: Job) -> Job:
    """The job without paths of the server."""
    return job if job.error is None else replace(job, error=public_text(job.error))


def _only(kind: str, name: str | None, choices: Mapping[str, Any]) -> str:
    """The name, or the first one without a name."""
    if name is None:
        name = next(iter(choices), None)
    if name is None:
        raise ServiceError(404, f"there is no {kind} yet")
    if name not in choices:
        raise ServiceError(404, unknown_name(kind, name, choices))
    return name


def _no_job(id: str) -> ServiceError:
    return ServiceError(404, f"there is no job '{one_line(id)}'")


def _time_id() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
