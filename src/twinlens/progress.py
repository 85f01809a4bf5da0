"""Progress of long work: a bar with rate and time left on a terminal and in a notebook, plain lines
elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from twinlens.errors import message_lines

__all__ = ["COMMAND_START", "LISTENER", "Progress", "console_log", "format_duration", "publish"]

log = logging.getLogger("twinlens")

LINE_SECONDS = 10.0

COMMAND_START: ContextVar[float | None] = ContextVar("COMMAND_START", default=None)
"""`time.monotonic()` at the start of a command of the shell; its imports take seconds."""

LISTENER: ContextVar[Callable[[str, dict[str, Any]], None] | None] = ContextVar(
    "LISTENER", default=None
)
"""Receives the type and the values of what is published, such as for the events of a job."""

LOST = (OSError, ValueError)
"""Errors of a standard error that is full, closed or a terminal that is gone: work goes on."""


class Progress:
    """Progress display, updated by `progress(done, total)`; `note` is text beside the numbers.

    If standard error is neither a terminal nor a notebook, a line is logged every ten seconds, and
    none for shorter work.
    """

    def __init__(self, task: str, unit: str = "pictures") -> None:
        self.task, self.unit = task, unit
        self.note = ""
        self._bar: tqdm[None] | None = None
        self._start = self._last = time.monotonic()
        self._listener = LISTENER.get()  # Other threads may report the progress.

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        if self._listener is not None:
            self._listener("progress", self._values(done, total))
        if log.isEnabledFor(logging.INFO):
            with suppress(*LOST):
                if sys.stderr.isatty() or _in_notebook():
                    self._draw(done, total)
                else:
                    self._write(done, total)

    def _values(self, done: int, total: int) -> dict[str, Any]:
        rate = done / max(time.monotonic() - self._start, 1e-9)
        left = (total - done) / rate if done else None
        return {"task": self.task, "unit": self.unit, "done": done, "total": total, "rate": rate,
                "seconds_left": left, "note": self.note}  # fmt: skip

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _bar_class()(total=total, desc=self.task, unit=f" {self.unit}", leave=False)
        self._bar.total = total
        if self.note:
            self._bar.set_postfix_str(self.note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def _write(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < LINE_SECONDS or not done:
            return
        self._last = now
        rate = done / (now - self._start)
        left = (total - done) / rate
        note = f", {self.note}" if self.note else ""
        log.info(
            "%s: %d of %d %s, %.3g/s, %s left%s",
            self.task, done, total, self.unit, rate, format_duration(left), note,
        )  # fmt: skip

    def close(self) -> None:
        """Remove the bar, if work ended early."""
        if self._bar is not None:
            with suppress(*LOST):
                self._bar.close()
            self._bar = None


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython is not imported for this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _bar_class() -> Any:
    """The bar of a notebook, or of a terminal."""
    if not _in_notebook():
        return tqdm
    with warnings.catch_warnings():  # Without ipywidgets the bar is text.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as notebook_tqdm

    return notebook_tqdm


def publish(kind: str, **values: Any) -> None:
    """Pass values to the `LISTENER`, if there is one."""
    listener = LISTENER.get()
    if listener is not None:
        listener(kind, values)


def format_duration(seconds: float) -> str:
    """Seconds as text.

    >>> format_duration(45), format_duration(200), format_duration(7500)
    ('45 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def console_log(quiet: bool = False) -> Iterator[None]:
    """Write the log of twinlens to standard error while the context is open."""
    handler = _Handler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Handler(logging.Handler):
    """Write records above the bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        with suppress(*LOST):
            tqdm.write(prefix + message_lines(record.getMessage()), file=sys.stderr)
