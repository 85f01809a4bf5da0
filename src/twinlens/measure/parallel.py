"""Blocks of numpy work on all cores: one thread a core, and one BLAS thread in each.

numpy releases the interpreter lock while it multiplies, compares, sorts and partitions, so threads
suffice. BLAS threads inside them would only wait for each other, and for any other program on the
same core, so BLAS keeps to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["parallel_map"]

Part = TypeVar("Part")
Result = TypeVar("Result")


def parallel_map(
    work: Callable[[Part], Result], parts: Sequence[Part], threads: int
) -> Iterator[Result]:
    """`work(part)` for each part, in the order of the parts, in several threads.

    >>> list(parallel_map(sum, [[1, 2], [3, 4]], threads=2))
    [3, 7]

    Args:
        work: function without state that two threads would write.
        parts: arguments of `work`; a single one runs in the calling thread, with BLAS as it is.
        threads: number of threads, at least 1.
    Raises:
        Exception: that of the first part for which `work` raises; later parts are dropped.
    """
    if threads == 1 or len(parts) < 2:
        yield from map(work, parts)
        return
    # Slow to import, and not needed for small galleries.
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, parts)
