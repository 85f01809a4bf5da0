"""Callbacks: objects that hear of the start, steps, validations and end of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.config import Settings
from twinlens.errors import ConfigError, short_repr, unknown_name
from twinlens.learn.records import HistoryRow
from twinlens.measure.evaluation_result import EvaluationResult

__all__ = ["Callback", "RunEnd", "RunStart", "StepReport", "check_callbacks", "informed",
           "notify"]  # fmt: skip


@dataclass(frozen=True)
class RunStart:
    """A run before its first step.

    Attributes:
        path: the run folder.
        data: path or name of the data.
        settings: all settings, as "auto" chose them.
        step: steps done before; 0 unless the run is resumed.
    """

    path: Path
    data: str
    settings: Settings
    step: int


@dataclass(frozen=True)
class StepReport:
    """A step.

    Attributes:
        step: number of the step, from 1.
        progress: share of the run, in (0, 1].
        seconds: seconds since the first step.
        loss: loss of the batch.
        rate: learning rate.
        metric: validation metric, higher is better; None between validations.
        row: line of `history.csv` that ends with this step, with the mean loss since the line
            before; None between lines.
    """

    step: int
    progress: float
    seconds: float
    loss: float
    rate: float
    metric: float | None
    row: HistoryRow | None


@dataclass(frozen=True)
class RunEnd:
    """A run that has its model and report.

    Attributes:
        model: the model's folder.
        report: the report.
        result: error rates on test pictures, or on validation pictures if that fails; None if both
            fail.
        steps: steps done.
        best_step: step of the weights that were kept.
        interrupted: whether Ctrl-C or a callback ended the training.
    """

    model: Path
    report: Path
    result: EvaluationResult | None
    steps: int
    best_step: int
    interrupted: bool


class Callback:
    """Base class of callbacks: each method does nothing until it is overridden.

    An exception of a callback ends the run, and its checkpoint stays. `KeyboardInterrupt` ends the
    training alone, as Ctrl-C does: calibration and report follow.
    """

    def on_start(self, run: RunStart) -> None:
        """After the pictures are read and the settings chosen."""

    def on_step(self, record: StepReport) -> None:
        """After a step of the training; the short trainings of candidates are left out."""

    def on_validation(self, record: HistoryRow) -> None:
        """After a validation, the first before any step; of `record.metric`, higher is better."""

    def on_end(self, results: RunEnd | None) -> None:
        """After report and model are written; None if the run failed."""


METHODS = ("on_start", "on_step", "on_validation", "on_end")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that each object has a method of `Callback`, and no other that begins with "on_".

    Raises:
        ConfigError: another object.
    """
    if not isinstance(callbacks, Iterable):
        raise ConfigError(f"callbacks are a list, found {short_repr(callbacks)}: put it into [...]")
    for callback in callbacks:
        own = [name for name in dir(callback) if name.startswith("on_")]
        for name in own:
            if name not in METHODS:
                raise ConfigError(unknown_name("method of a callback", name, METHODS))
        if not own or isinstance(callback, type):
            raise ConfigError(
                f"callbacks need a method {', '.join(METHODS[:-1])} or {METHODS[-1]}, found "
                f"{short_repr(callback)}: derive a class from twinlens.Callback"
            )


def notify(callbacks: Sequence[Callback], method: str, record: Any) -> None:
    """Call a method of each callback that has it, in order."""
    for callback in callbacks:
        if hasattr(callback, method):
            getattr(callback, method)(record)


@contextmanager
def informed(callbacks: Sequence[Callback], start: RunStart) -> Iterator[None]:
    """Tell callbacks that a run starts, and that it failed if the block raises."""
    notify(callbacks, "on_start", start)
    try:
        yield
    except BaseException:
        notify(callbacks, "on_end", None)
        raise
