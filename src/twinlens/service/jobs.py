"""Long work of the service: trainings, calibrations, clusterings, imports and exports.

Each job is a folder `DATA/jobs/ID/` and a process of its own, which outlives the server. All state
is read from files, so that every worker and a restarted server see the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from twinlens.service.settings import ServiceSettings

__all__ = ["ENDED", "Event", "Job", "Jobs", "State"]

State = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]
Kind = Literal["train", "calibrate", "cluster", "import", "export"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")


@dataclass(frozen=True)
class Job:
    """A job as its files are now.

    Attributes:
        id: name of its folder; later jobs sort after earlier ones.
        kind: kind of work.
        state: "interrupted" if its process was killed; it can be resumed, as a cancelled one can.
        created: time, ISO 8601 with UTC offset.
        started: time at which its work began, if it did.
        ended: time at which its process ended, if it is known.
        arguments: as they were checked, defaults included.
        by: name of the key that started it.
        progress: the last progress (`task`, `unit`, `done`, `total`, `rate` in units a second,
            `seconds_left`, `note`), if any.
        result: of a finished job, by its kind; None before.
        error: message of a failed job.
    """

    id: str
    kind: Kind
    state: State
    created: str
    started: str | None
    ended: str | None
    arguments: dict[str, Any]
    by: str
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of the attributes."""
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """An event of a job.

    Attributes:
        id: position behind it in the list of events; `after` for the next.
        type: "state", "progress", "log" (`level`, `text`), "curve" (`step`, `loss`, `metric`,
            `rate`, `seconds`, ...), or "end" with the job as the last.
        data: its values.
    """

    id: int
    type: str
    data: dict[str, Any]


class Jobs:
    """Starts, lists, follows, cancels and resumes jobs.

    Every method but `enabled` raises `ServiceError` (409) in a service without a folder of its own.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    @property
    def enabled(self) -> bool:
        """Whether there is a folder for jobs."""
        return self._settings.data is not None

    @property
    def can_train(self) -> str | None:
        """None if training is possible; otherwise a line that says what to install."""
        raise NotImplementedError

    def start(self, kind: str, arguments: Mapping[str, Any], by: str = "local") -> Job:
        """Start a job; it waits if another one of its queue runs.

        Args:
            kind: "train", "calibrate", "cluster", "import" or "export".
            arguments: see the classes `TrainArguments` and so on.
            by: name of the key that starts it.
        Raises:
            ConfigError: unknown kind or wrong arguments, all of them at once.
            ServiceError: too many waiting jobs (503), a full disk (507), a missing set, model or
                gallery (404), or no packages for training (501).
        """
        raise NotImplementedError

    def get(self, id: str) -> Job:
        """A job.

        Raises:
            ServiceError: no such job (404).
        """
        raise NotImplementedError

    def list(self) -> Sequence[Job]:
        """All jobs, the newest first."""
        raise NotImplementedError

    def cancel(self, id: str) -> Job:
        """Cancel a job. A training keeps its checkpoint and model; a second cancel ends it at once.

        Raises:
            ServiceError: no such job (404), or it has ended (409).
        """
        raise NotImplementedError

    def resume(self, id: str) -> Job:
        """Start the process of an interrupted, cancelled or failed job again.

        Raises:
            ServiceError: no such job (404), or it runs or is done (409).
        """
        raise NotImplementedError

    def delete(self, id: str) -> None:
        """Delete an ended job and its files; the run or gallery that it made stays.

        Raises:
            ServiceError: no such job (404), or it has not ended (409).
        """
        raise NotImplementedError

    def resume_interrupted(self) -> None:
        """Resume the jobs whose processes were killed; called when the server starts."""
        raise NotImplementedError

    def folder(self, id: str) -> Path:
        """The folder of a job's files: `log.txt`, `clusters.json` or `export/`."""
        raise NotImplementedError

    async def events(self, id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events of a job as they come, up to its end.

        Args:
            id: of the job.
            after: `Event.id` of the last one that is known.
        """
        raise NotImplementedError
        yield
