"""Process of a job: waits for its turn, works, and writes state, events and result.

    python -m twinlens.service.job_process FOLDER DESCRIPTOR

The descriptor holds the lock of the job, see `job_folder`. SIGINT, SIGTERM and requests to cancel
interrupt the work as Ctrl-C does a command; a training keeps its checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from twinlens.errors import TwinlensError, message_lines, naming_extras
from twinlens.files import is_full
from twinlens.progress import LISTENER
from twinlens.service.job_arguments import check_arguments
from twinlens.service.job_folder import EVENTS, JobFolder, folders_before, lock_file, now
from twinlens.service.job_work import WORK, WorkInterruptedError, WorkPlace

__all__ = ["main"]

log = logging.getLogger("twinlens")

POLL = 0.3  # seconds
PROGRESS_SECONDS = 0.5
NICENESS = 5  # Requests are answered before long work.
QUEUES = {"train": "train"}
"""Queue by kind of job; of each queue, one job works at a time."""
OTHERS = "others"
AUDITED = ("calibrate", "import")  # They change galleries or models.
MAX_TEXT = 4000  # characters of a log line in the events


class EventFile:
    """Appends events; a full disk loses some, and the work goes on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._shown: dict[str, float] = {}
        self._lock = threading.Lock()
        self._append(b"\n")  # Ends the line of a killed process.

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append an event; progress at most every half second, and at its end."""
        with self._lock:
            if kind == "progress":
                task, time_now = values["task"], time.monotonic()
                is_last = values["done"] >= values["total"]
                if not is_last and time_now - self._shown.get(task, 0.0) < PROGRESS_SECONDS:
                    return
                self._shown[task] = time_now
            plain = {name: _plain(value) for name, value in values.items()}
            self._append(json.dumps({"type": kind, "time": now()} | plain).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with suppress(OSError):
            os.write(self._file, line)


class _LogEvents(logging.Handler):
    """Turns log records into events; lines of progress have events of their own."""

    def __init__(self, events: EventFile) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if record.module != "progress":
            text = message_lines(record.getMessage())[:MAX_TEXT]
            self._events.write("log", {"level": record.levelname.lower(), "text": text})


def main(folder: Path) -> int:
    """Work on a job whose lock this process holds; returns its exit code."""
    job = JobFolder(folder)
    events = EventFile(folder / EVENTS)

    def enter(state: str, **more: Any) -> None:
        job.write_status(state=state, **more)
        events.write("state", {"state": state})

    with _interrupts(job):
        try:
            request = job.request()
            kind = request["kind"]
            attempts = int(job.status().get("attempts", 0)) + 1
            enter("waiting", attempts=attempts, ended=None, error=None, result=None)
            with _turn(folder, QUEUES.get(kind, OTHERS)):
                enter("running", started=now())
                with _published(events), naming_extras("this job"):
                    arguments = check_arguments(kind, request["arguments"])
                    place = WorkPlace(folder, request["places"])
                    result = WORK[kind](arguments, place)
            if kind in AUDITED:
                _audit(folder, request, result)
            enter("done", ended=now(), result=_plain(result))
        except WorkInterruptedError as error:
            enter(_interrupted_state(job), ended=now(), result=_plain(error.result))
        except KeyboardInterrupt:
            enter(_interrupted_state(job), ended=now())
        except TwinlensError as error:
            enter("failed", ended=now(), error=str(error))
            return 2
        except OSError as error:
            text = "the disk of the service is full" if is_full(error) else str(error)
            enter("failed", ended=now(), error=text)
            raise
        except BaseException as error:
            fault = f"a fault of twinlens ({type(error).__name__}): see the job's log"
            enter("failed", ended=now(), error=fault)
            raise
    return 0


def _audit(folder: Path, request: dict[str, Any], result: dict[str, Any]) -> None:
    """Write a line of the audit log, with the numbers of a result."""
    from twinlens.service.audit_log import AuditLog
    from twinlens.service.errors import ServiceError
    from twinlens.service.security import Caller

    facts = {name: value for name, value in result.items() if isinstance(value, str | int)}
    caller = Caller(request["by"], "admin")
    with suppress(ServiceError):  # A full disk, which the log names; the work is done.
        AuditLog(folder.parent.parent).write(request["kind"], caller, job=folder.name, **facts)


def _interrupted_state(job: JobFolder) -> str:
    """Cancelled by a request, or stopped with the machine, after which it is resumed."""
    return "cancelled" if job.num_cancels() else "interrupted"


@contextmanager
def _interrupts(job: JobFolder) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at a signal, and once for each request to cancel."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    ended = threading.Event()
    thread_id = threading.get_ident()

    def watch() -> None:
        num = 0
        while not ended.wait(POLL):
            if job.num_cancels() > num:
                num += 1
                # To this thread, not to the process: the stacks on which threads of other
                # libraries take signals may be too small for a handler.
                signal.pthread_kill(thread_id, signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _turn(folder: Path, queue: str) -> Iterator[None]:
    """Wait until no earlier job of a queue waits, and none works."""
    while True:
        if not any(_is_ahead(other, queue) for other in folders_before(folder)):
            with suppress(BlockingIOError):
                held = lock_file(folder.parent / f".{queue}.lock")
                break
        time.sleep(POLL)
    try:
        yield
    finally:
        os.close(held)


def _is_ahead(folder: Path, queue: str) -> bool:
    job = JobFolder(folder)
    with suppress(ValueError, OSError):
        return QUEUES.get(job.request()["kind"], OTHERS) == queue and job.is_alive()
    return False


@contextmanager
def _published(events: EventFile) -> Iterator[None]:
    """Write progress, curve and log of twinlens as events."""
    handler = _LogEvents(events)
    token = LISTENER.set(events.write)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        LISTENER.reset(token)


def _plain(value: Any) -> Any:
    """The value without NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[2]), False)
    os.nice(NICENESS)
    logging.captureWarnings(True)
    code = 1
    try:
        code = main(Path(sys.argv[1]))
    except BaseException:  # Also an interrupt while the state was written.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # The state is written. Unloading torch takes seconds, with the lock held.
