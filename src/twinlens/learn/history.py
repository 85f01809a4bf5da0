"""The history of a run in two forms: `history.csv`, and TensorBoard events if installed."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from twinlens.learn.run_folder import HistoryRow, RunFolder

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
        self._events = None if run is None else _event_writer(run.path / "tensorboard", step)

    def add(self, row: HistoryRow) -> None:
        """Add a row."""
        self.rows.append(row)
        if self._run is not None:
            self._run.write_history(self.rows)
        if self._events is None:
            return
        for name, value in (("loss", row.loss), ("rate", row.rate), ("validation", row.metric)):
            if value is not None and math.isfinite(value):
                self._events.add_scalar(name, value, row.step)
        if row.event:
            self._events.add_text("event", row.event, row.step)

    def flush(self) -> None:
        """Write all rows to disk: the checkpoint that is written next relies on them."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush, and close the files."""
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, step: int) -> Any:
    """A `SummaryWriter`; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard events are not written: pip install 'twinlens[tensorboard]'")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
