"""The history of a run in two forms: `history.csv`, and TensorBoard events if installed."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinlens.files import writing_errors
from twinlens.learn.records import HistoryRow
from twinlens.learn.run_folder import RunFolder
from twinlens.progress import publish

__all__ = ["History"]

log = logging.getLogger("twinlens")


class History:
    """Rows of a run, written as they come; without a run folder they stay in memory.

    Args:
        run: the folder to write to.
        step: the step that the run resumes from; rows of an earlier attempt after it are dropped.
    """

    def __init__(self, run: RunFolder | None, step: int) -> None:
        self.rows: list[HistoryRow] = run.read_history(step) if run is not None and step else []
        self._run = run
        self._events = None if run is None else _make_events(run.path / "tensorboard", step)

    def add(self, row: HistoryRow) -> None:
        """Add a row.

        Raises:
            DataError: a file cannot be written.
        """
        self.rows.append(row)
        if self._run is not None:
            self._run.write_history(self.rows)
            publish("curve", **asdict(row))
        if self._events is not None:
            self._events.add(row)


class _Events:
    """A file of TensorBoard events.

    torch's `SummaryWriter` writes in a thread of its own, whose failure on a full disk prints a
    traceback.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._record_writer = event_pb2.Event, RecordWriter
        self._summary: Any = summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        with writing_errors(folder):
            folder.mkdir(exist_ok=True)
        self._write(step, file_version="brain.Event:2")
        if step:  # Hides the events of an earlier attempt from here on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step + 1, session_log=start)

    def add(self, row: HistoryRow) -> None:
        for name, value in (("loss", row.loss), ("rate", row.rate), ("validation", row.metric)):
            if value is not None and math.isfinite(value):
                self._write(row.step, summary=self._summary.scalar(name, value))
        if row.event:
            self._write(row.step, summary=self._summary.text("event", row.event))

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(step=step, wall_time=time.time(), **content)
        with writing_errors(self._path), self._path.open("ab") as file:
            self._record_writer(file).write(event.SerializeToString())


def _make_events(folder: Path, step: int) -> _Events | None:
    """The file of events; None if TensorBoard is not installed."""
    try:
        return _Events(folder, step)
    except ImportError:
        log.info("TensorBoard events are not written: pip install 'twinlens[tensorboard]'")
        return None
