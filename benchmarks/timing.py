"""Two pieces of work in turns, A B A B: a ratio that holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.table import Line


@dataclass(frozen=True)
class Row:
    """One line of the table: medians in seconds, and the median of peer / ours pair by pair."""

    what: str
    peer_name: str
    ours: float
    peer: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def line(self, aim: str = "", at_least: float | None = None, note: str = "") -> Line:
        """The line of the table; the aim is reached where peer / ours is `at_least` so much."""
        return Line(
            self.what,
            self.peer_name,
            _shown(self.ours),
            _shown(self.peer),
            f"theirs / ours {self.ratio:.2f} ({self.ratio_low:.2f} to {self.ratio_high:.2f})",
            aim,
            None if at_least is None else self.ratio >= at_least,
            note,
        )


def compare(
    what: str,
    peer_name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    rounds: int = 5,
) -> Row:
    """Time both, in turns, after one round that is not counted."""
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(rounds + 1)][1:]
    ratios = sorted(b / a for a, b in pairs)
    return Row(
        what,
        peer_name,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
