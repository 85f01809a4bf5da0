"""The length of a run, and the learning rate along it.

A run's progress goes from 0 to 1, by steps or, under a time budget, by the clock. Where a run goes
on while that helps, each further round adds a half. Learning rate, validations and rows of the
history depend on progress alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twinlens.config import TrainSettings

__all__ = ["COOL_DOWN", "RunLength", "end_after", "run_length", "schedule_factor"]

WARM_UP = 0.2
START, END = 1 / 25, 1e-3
DEFAULT_EPOCHS = 10.0
COOL_DOWN = 0.8
"""Progress at which a run that ends early goes on: the learning rate is then low."""
ROUND = 0.5
"""Length of a further round, and its highest learning rate, relative to the first round's."""


@dataclass(frozen=True)
class RunLength:
    """The length of a run: `steps`, or `seconds`, with which the run depends on the machine."""

    steps: int | None
    seconds: float | None
    steps_per_epoch: int

    def progress(self, step: int, seconds: float, rounds: int = 0, skipped: float = 0.0) -> float:
        """The share of the run that is done, in [0, 1]; more with further rounds of steps.

        Args:
            step: steps done.
            seconds: seconds spent in them.
            rounds: further rounds.
            skipped: share of the run that an early end leaves out.

        >>> RunLength(steps=200, seconds=None, steps_per_epoch=10).progress(50, 0.0)
        0.25
        """
        if self.steps is not None:
            return min(end_after(rounds), step / self.steps + skipped)
        assert self.seconds is not None
        return min(1.0, seconds / max(self.seconds, 1e-9)) if step else 0.0


def run_length(
    train: TrainSettings, steps_per_epoch: int, reserved: float, share: float = 1.0
) -> RunLength:
    """The length that the settings set; 10 epochs by default.

    Args:
        train: settings with `steps`, `epochs` or `time_budget`.
        steps_per_epoch: steps of an epoch of the sampler.
        reserved: seconds of the time budget for other work than training.
        share: of the seconds that remain.
    """
    if train.time_budget is not None:
        seconds = max(0.0, train.time_budget - reserved) * share
        return RunLength(None, seconds, steps_per_epoch)
    if train.steps is not None:
        return RunLength(train.steps, None, steps_per_epoch)
    epochs = DEFAULT_EPOCHS if train.epochs is None else train.epochs
    return RunLength(max(1, math.ceil(epochs * steps_per_epoch)), None, steps_per_epoch)


def end_after(rounds: int) -> float:
    """The progress at the end of so many further rounds."""
    return 1 + ROUND * rounds


def schedule_factor(schedule: str, progress: float) -> float:
    """The learning rate at a progress, relative to the highest.

    "one-cycle" (Smith 2018) rises during the first fifth and falls along a cosine; "cosine"
    (Loshchilov 2017) only falls; "constant" stays. Beyond 1 each round falls from half the rate
    along a cosine (Loshchilov 2017, warm restarts).

    >>> [round(schedule_factor("one-cycle", progress), 3) for progress in (0.0, 0.2, 0.6, 1.0)]
    [0.04, 1.0, 0.501, 0.001]
    """
    if schedule == "constant":
        return 1.0
    if progress > 1:
        return ROUND * schedule_factor("cosine", (progress - 1) / ROUND % 1)
    warm_up = WARM_UP if schedule == "one-cycle" else 0.0
    if progress < warm_up:
        return START + (1 - START) * (1 - math.cos(math.pi * progress / warm_up)) / 2
    fallen = (progress - warm_up) / (1 - warm_up)
    return END + (1 - END) * (1 + math.cos(math.pi * fallen)) / 2
