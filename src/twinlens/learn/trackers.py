"""Callbacks that send the curve of a run to TensorBoard, Weights & Biases, or MLflow.

Each uses its own package, imported when a run starts. Loss, learning rate and validation metric are
those of `history.csv`; settings and final error rates go along. Pictures and models stay here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from twinlens.errors import naming_extras
from twinlens.files import writing_errors
from twinlens.learn.callbacks import Callback, RunEnd, RunStart, StepReport
from twinlens.learn.records import HistoryRow

__all__ = ["MlflowTracker", "TensorBoard", "WandbTracker"]

log = logging.getLogger("twinlens")


class _Curve(Callback):
    """Each line of `history.csv` by itself, by the method `add`."""

    def add(self, row: HistoryRow) -> None:
        """Take a line."""
        raise NotImplementedError

    def on_step(self, record: StepReport) -> None:
        """A line at this step; those with a metric come to `on_validation`."""
        if record.row is not None and record.row.metric is None:
            self.add(record.row)

    def on_validation(self, record: HistoryRow) -> None:
        """A line with a metric."""
        self.add(record)


class TensorBoard(_Curve):
    """A file of TensorBoard events in the run's folder; nothing if TensorBoard is not installed.

    torch's `SummaryWriter` writes in a thread of its own, whose failure on a full disk prints a
    traceback.
    """

    _path: Path | None = None

    def on_start(self, run: RunStart) -> None:
        """Begin a file; it hides the events of an earlier attempt after the step resumed from."""
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except ImportError:
            log.info("TensorBoard events are not written: pip install 'twinlens[tensorboard]'")
            return
        self._event, self._record_writer = event_pb2.Event, RecordWriter
        self._summary: Any = summary
        folder = run.path / "tensorboard"
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        with writing_errors(folder):
            folder.mkdir(exist_ok=True)
        self._write(run.step, file_version="brain.Event:2")
        if run.step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(run.step + 1, session_log=start)

    def add(self, row: HistoryRow) -> None:
        """Write the scalars and the event of a line."""
        if self._path is None:
            return
        for name, value in _scalars(row).items():
            self._write(row.step, summary=self._summary.scalar(name, value))
        if row.event:
            self._write(row.step, summary=self._summary.text("event", row.event))

    def _write(self, step: int, **content: Any) -> None:
        assert self._path is not None
        event = self._event(step=step, wall_time=time.time(), **content)
        with writing_errors(self._path), self._path.open("ab") as file:
            self._record_writer(file).write(event.SerializeToString())


class WandbTracker(_Curve):
    """A run of Weights & Biases; one that is open already is used, and stays open.

    Args:
        arguments: those of `wandb.init`, such as `project`.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def on_start(self, run: RunStart) -> None:
        """Open the run, with all settings as its configuration."""
        with naming_extras("WandbTracker"):
            import wandb
        self._is_own = wandb.run is None
        if wandb.run is None:
            self._run = wandb.init(**{"name": run.path.name, **self._arguments})
        else:
            self._run = wandb.run
        self._run.config.update(_parameters(run), allow_val_change=True)

    def add(self, row: HistoryRow) -> None:
        """Log a line."""
        self._run.log(_scalars(row), step=row.step)

    def on_end(self, results: RunEnd | None) -> None:
        """Add the error rates to the summary, and close the run."""
        if results is not None:
            self._run.summary.update(_figures(results))
        if self._is_own:
            self._run.finish(exit_code=int(results is None))


class MlflowTracker(_Curve):
    """A run of MLflow; one that is active already is used, and stays active.

    Args:
        arguments: those of `mlflow.start_run`, such as `experiment_id`.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def on_start(self, run: RunStart) -> None:
        """Start the run, with all settings as its parameters."""
        with naming_extras("MlflowTracker"):
            import mlflow
        self._mlflow = mlflow
        self._is_own = mlflow.active_run() is None
        if self._is_own:
            mlflow.start_run(**{"run_name": run.path.name, **self._arguments})
        if run.step == 0:  # Parameters of a run cannot change.
            mlflow.log_params(_parameters(run))

    def add(self, row: HistoryRow) -> None:
        """Log a line."""
        self._mlflow.log_metrics(_scalars(row), step=row.step)

    def on_end(self, results: RunEnd | None) -> None:
        """Log the error rates, and end the run."""
        if results is not None:
            self._mlflow.log_metrics(_figures(results))
        if self._is_own:
            self._mlflow.end_run("FAILED" if results is None else "FINISHED")


def _scalars(row: HistoryRow) -> dict[str, float]:
    """The finite numbers of a line, by name."""
    named = {"loss": row.loss, "rate": row.rate, "validation": row.metric}
    return {k: v for k, v in named.items() if v is not None and math.isfinite(v)}


def _parameters(run: RunStart) -> dict[str, Any]:
    """The settings by "section.key", and the data."""
    parameters: dict[str, Any] = {"data": run.data}
    for section, values in run.settings.model_dump(mode="json").items():
        if isinstance(values, dict):
            parameters |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            parameters[section] = values
    return parameters


def _figures(end: RunEnd) -> dict[str, float]:
    """The error rates of the evaluation: those that it has."""
    if end.result is None:
        return {}
    verification = end.result.verification
    rates = {"eer": verification.eer, "auc": verification.auc}
    if verification.calibrated is not None:
        rates |= {"far": verification.calibrated.far, "frr": verification.calibrated.frr}
    split = end.result.split
    return {f"{split}/{k}": rate.value for k, rate in rates.items() if rate.value is not None}
