"""Blocks of numpy work on every core: one thread a core, and one BLAS thread in each.

numpy lets go of the interpreter while it multiplies, compares, sorts and partitions, so that
threads are enough. A BLAS that starts threads of its own inside them only waits for itself, and
where another program takes a core it waits for that too: it is told to keep to one. This module
knows nothing of what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["available_cores", "parallel_map"]

Part = TypeVar("Part")
Found = TypeVar("Found")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(
    work: Callable[[Part], Found], parts: Sequence[Part], threads: int
) -> Iterator[Found]:
    """`work(part)` for each part, in the order of the parts, `threads` of them at a time.

    Args:
        work: must hold no state that two threads would write.
        parts: what to work on; a single one is done where it is, with BLAS as it stands.
        threads: at least 1.
    Raises:
        Exception: what `work` raises, for the first part that does; later parts are dropped.
    """
    if threads == 1 or len(parts) < 2:
        yield from map(work, parts)
        return
    # Not quick to import, and small galleries do without.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, parts)
