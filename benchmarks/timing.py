"""Two pieces of work in turns, A B A B: a ratio that holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


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

    def __str__(self) -> str:
        spread = f"({self.ratio_low:.2f} to {self.ratio_high:.2f})"
        return (
            f"{self.what:52} {self.peer_name:34} {1000 * self.ours:9.1f} {1000 * self.peer:9.1f}"
            f" {self.ratio:7.2f} {spread}"
        )


HEADER = f"{'what':52} {'beside':34} {'ours, ms':>9} {'its, ms':>9} {'its / ours':>7}"


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
