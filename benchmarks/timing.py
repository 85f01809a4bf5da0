"""Two pieces of work in turns, A B A B: a ratio that holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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

    @classmethod
    def of(cls, what: str, peer_name: str, pairs: Sequence[tuple[float, float]]) -> Row:
        """From the seconds of ours and of theirs in each round."""
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        return cls(what, peer_name, ours, theirs, statistics.median(ratios), ratios[0], ratios[-1])

    def shown_ratio(self) -> str:
        """The ratio, with the least and the most where there were several rounds."""
        text = f"theirs / ours {self.ratio:.2f}"
        if self.ratio_low == self.ratio_high:
            return text
        return f"{text} ({self.ratio_low:.2f} to {self.ratio_high:.2f})"

    def line(self, aim: str = "", at_least: float | None = None, note: str = "") -> Line:
        """The line of the table; the aim is reached where peer / ours is `at_least` so much."""
        return Line(
            self.what,
            self.peer_name,
            _shown(self.ours),
            _shown(self.peer),
            self.shown_ratio(),
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
    pairs = [(seconds_of(ours), seconds_of(peer)) for _ in range(rounds + 1)]
    return Row.of(what, peer_name, pairs[1:])


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
