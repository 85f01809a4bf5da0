"""Parts of a table in several processes of this machine."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import pyarrow as pa

from twinlens.data.picture_file import share_memory
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.processes import CAUSES_OF_DEATH, worker_processes
from twinlens.scale.parts import Part

__all__ = ["Work", "in_processes"]

Work = Callable[[ImageTable], pa.Table]
"""Result of a part; can be pickled."""
AHEAD = 2  # parts for each process, so that none waits for the next one
MOST_DEATHS = 3  # starts in a row that complete no part

log = logging.getLogger("twinlens")


def in_processes(
    work: Work, table: ImageTable, parts: Sequence[Part], num_workers: int
) -> Generator[tuple[Part, pa.Table], None, None]:
    """Parts and their results, as they are completed.

    The parts of a process that dies are given to new processes. Processes end when the generator is
    closed.

    Raises:
        DataError: processes die again and again, or the pictures are functions of this process.
        Exception: that of `work`.
    """
    left, deaths = {part.name: part for part in parts}, 0
    if parts:
        _check_sendable(parts[0].of(table))
    while left:
        before = len(left)
        try:
            with worker_processes(min(num_workers, before), _begin, num_workers) as pool:
                for part, result in _completed(pool, work, table, list(left.values()), num_workers):
                    yield part, result
                    del left[part.name]
        except BrokenProcessPool as error:
            deaths = deaths + 1 if len(left) == before else 1
            log.warning("a worker process died; its pictures are given to another")
            if deaths == MOST_DEATHS:
                rows = next(iter(left.values())).rows
                raise DataError(
                    f"worker processes die at pictures {rows.start + 1} to {rows.stop} of "
                    f"{table.source}, from {table.path[rows.start]} on: {CAUSES_OF_DEATH}"
                ) from error


def _completed(
    pool: ProcessPoolExecutor, work: Work, table: ImageTable, parts: Sequence[Part], num: int
) -> Iterator[tuple[Part, pa.Table]]:
    rest, running = iter(parts), dict[Future[pa.Table], Part]()
    while True:
        for part in islice(rest, AHEAD * num - len(running)):
            running[pool.submit(work, part.of(table))] = part
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _check_sendable(table: ImageTable) -> None:
    try:
        pickle.dumps(table)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DataError(
            f"the pictures of {table.source} are functions or objects of this process, which no "
            "other process has: set workers to 1, or name files"
        ) from error


def _begin(lock: AbstractContextManager[Any], num_workers: int) -> None:
    share_memory(num_workers, lock)
