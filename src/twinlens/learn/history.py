"""The history of a run: `history.csv`, written as the run goes on."""

from __future__ import annotations

from dataclasses import asdict

from twinlens.learn.records import HistoryRow
from twinlens.learn.run_folder import RunFolder
from twinlens.progress import publish

__all__ = ["History"]


class History:
    """Rows of a run, written as they come; without a run folder they stay in memory.

    Args:
        run: the folder to write to.
        step: the step that the run resumes from; rows of an earlier attempt after it are dropped.
    """

    def __init__(self, run: RunFolder | None, step: int) -> None:
        self.rows: list[HistoryRow] = run.read_history(step) if run is not None and step else []
        self._run = run

    def add(self, row: HistoryRow) -> None:
        """Add a row.

        Raises:
            DataError: a file cannot be written.
        """
        self.rows.append(row)
        if self._run is not None:
            self._run.write_history(self.rows)
            publish("curve", **asdict(row))
