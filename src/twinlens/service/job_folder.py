"""Files of a job, read by every worker and written by one process each.

    job.json        kind, arguments, places of models and galleries; written by the server
    status.json     state, times, result, error; written by the job's process
    events.jsonl    progress, log lines and training curve; appended by the job's process
    log.txt         standard output and error of the job's process
    lock            locked while that process lives; no process id is ever trusted
    cancel          number of requests to cancel; written by the server

Needs locks of files that pass from the server to the job's process (`flock`), so POSIX.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from twinlens.errors import TwinlensError
from twinlens.files import write_text
from twinlens.parsing import read_json

__all__ = ["ENDED", "EVENTS", "LOCK_SECONDS", "LOG", "Event", "Job", "JobFolder", "Kind", "State",
           "folders_before", "lock_file", "now"]  # fmt: skip

State = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]
Kind = Literal["train", "calibrate", "cluster", "import", "export", "audit", "faces"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")

JOB, STATUS, EVENTS, LOG, LOCK, CANCEL = (
    "job.json", "status.json", "events.jsonl", "log.txt", "lock", "cancel",
)  # fmt: skip
TAIL = 2**16  # bytes of the events that are searched for the last progress
LOCK_SECONDS, LOCK_PAUSE = 0.4, 0.02  # A reader of the state holds the lock for a moment.


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
            `rate`, `seconds`, ...), "candidate" (`name`, `eer`, `recall`), or "end" with the job as
            the last.
        data: its values.
    """

    id: int
    type: str
    data: dict[str, Any]


class JobFolder:
    """The files of a job.

    Args:
        path: existing folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_request(
        self, kind: str, arguments: dict[str, Any], places: dict[str, str], by: str
    ) -> None:
        """Write `job.json`.

        Raises:
            DataError: it cannot be written.
        """
        values = {"kind": kind, "arguments": arguments, "places": places, "by": by,
                  "created": now()}  # fmt: skip
        write_text(self.path / JOB, json.dumps(values) + "\n")

    def request(self) -> dict[str, Any]:
        """Content of `job.json`.

        Raises:
            ValueError: missing or damaged.
        """
        return _read(self.path / JOB)

    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty before the process began."""
        with suppress(ValueError):
            return _read(self.path / STATUS)
        return {}

    def write_status(self, **changes: Any) -> None:
        """Change values of `status.json`.

        Raises:
            DataError: it cannot be written.
        """
        write_text(self.path / STATUS, json.dumps(self.status() | changes, allow_nan=False) + "\n")

    def num_cancels(self) -> int:
        """Number of requests to cancel."""
        with suppress(OSError, ValueError):
            return int((self.path / CANCEL).read_text(encoding="ascii"))
        return 0

    def set_cancels(self, num: int) -> None:
        """Note requests to cancel; 0 before the job is resumed."""
        write_text(self.path / CANCEL, str(num))

    def try_lock(self, seconds: float = LOCK_SECONDS) -> int | None:
        """Lock the job.

        Args:
            seconds: time to wait for a lock that is held.
        Returns:
            The descriptor that holds the lock, or None if the job's process lives.
        """
        deadline = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                return lock_file(self.path / LOCK)
            if time.monotonic() > deadline:
                return None
            time.sleep(LOCK_PAUSE)

    def is_alive(self) -> bool:
        """Whether the job's process lives."""
        try:
            os.close(lock_file(self.path / LOCK, shared=True))
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass  # Deleted.
        return False

    def read(self) -> Job:
        """The job.

        Raises:
            ValueError: no job, or a damaged one.
        """
        alive = self.is_alive()  # Before the status: that of a dead process does not change.
        request, status = self.request(), self.status()
        state: State = status.get("state", "waiting")
        if state not in get_args(State):
            raise ValueError(f"unknown state {state}")
        if state in ("waiting", "running", "interrupted") and not alive:
            state = "cancelled" if self.num_cancels() else "interrupted"
        return Job(
            self.path.name, request["kind"], state, request["created"], status.get("started"),
            status.get("ended"), request["arguments"], request["by"], self._progress(),
            status.get("result"), status.get("error"),
        )  # fmt: skip

    def events(self, after: int) -> list[Event]:
        """Complete events behind a position; of progress in a row only the last."""
        events: list[Event] = []
        with suppress(FileNotFoundError), (self.path / EVENTS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            at = file.seek(after if after <= size else 0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                at += len(line)
                with suppress(ValueError, KeyError):  # A line that a killed process left.
                    values = json.loads(line)
                    event = Event(at, values.pop("type"), values)
                    if events and event.type == events[-1].type == "progress":
                        events.pop()
                    events.append(event)
        return events

    def _progress(self) -> dict[str, Any] | None:
        with suppress(OSError):
            size = (self.path / EVENTS).stat().st_size
            for event in reversed(self.events(max(0, size - TAIL))):
                if event.type == "progress":
                    return event.data
        return None


def lock_file(path: Path, *, shared: bool = False) -> int:
    """Lock a file; returns the descriptor that holds the lock until it is closed.

    Args:
        path: file; made if missing, unless `shared`.
        shared: whether other shared locks may be held at the same time.
    Raises:
        BlockingIOError: it is locked.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | (0 if shared else os.O_CREAT), 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def now() -> str:
    """The time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def folders_before(path: Path) -> Iterator[Path]:
    """Folders of the jobs that were created before one."""
    yield from (other for other in path.parent.glob("[!.]*/") if other.name < path.name)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, TwinlensError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no object")
    return values
