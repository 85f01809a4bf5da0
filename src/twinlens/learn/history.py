"""The history of a run, kept where people look: `history.csv` and TensorBoard."""

from __future__ import annotations

import math
from typing import Any

from twinlens.learn.run_folder import HistoryRow, RunFolder

__all__ = ["History"]


class History:
    """Takes rows as they come; without a run folder they stay in memory.

    Args:
        run: where to write.
        step: the step from which the run goes on; what an earlier attempt wrote after it goes.
    """

    def __init__(self, run: RunFolder | None, step: int) -> None:
        self.rows: list[HistoryRow] = run.read_history(step) if run is not None and step else []
        self._run = run
        self._board: Any = None
        if run is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = step + 1 if step else 0
            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=purge)

    def add(self, row: HistoryRow) -> None:
        """Take one more row."""
        self.rows.append(row)
        if self._run is None:
            return
        self._run.write_history(self.rows)
        curves = {"loss": row.loss, "rate": row.rate, "validation": row.metric}
        for name, value in curves.items():
            if value is not None and math.isfinite(value):
                self._board.add_scalar(name, value, row.step)
        if row.event:
            self._board.add_text("event", row.event, row.step)

    def flush(self) -> None:
        """See that all rows are on disk: a checkpoint that is written next relies on them."""
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()
