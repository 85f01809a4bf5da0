"""Pools of worker processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["CAUSES_OF_DEATH", "SIGNALS", "worker_processes"]

CAUSES_OF_DEATH = 'too little memory, or a script without `if __name__ == "__main__":`'
"""Usual causes of `BrokenProcessPool`, for messages."""
SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)}  # fmt: skip
"""A terminal or a service manager sends them to all processes; the first one ends the others."""


@contextmanager
def worker_processes(
    num_workers: int, begin: Callable[..., None] | None = None, *values: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of started processes. They end with the block, also by an error in it, and with this
    process, also if it is killed.

    Args:
        num_workers: number of processes.
        begin: function that each process calls first, with a lock of all of them and `values`.
    """
    # Not forked: a child would lack the threads of torch and OpenCV.
    context = get_context("spawn")
    ended, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, context, _begin_worker, (ended, begin, context.Lock(), *values)
    )
    try:
        with _signals_blocked():
            for _ in range(num_workers):
                pool.submit(int)  # Each starts one.
        yield pool
    except BaseException:
        ours.close()  # Ends the workers in the middle of their work.
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        ended.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals: processes started meanwhile inherit the mask; this one gets them later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # Its start would lift the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(
    ended: Connection, begin: Callable[..., None] | None, lock: Any, *values: Any
) -> None:
    for number in SIGNALS:  # For systems without masks.
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()
    if begin is not None:
        begin(lock, *values)


def _end_with(ended: Connection) -> None:
    """End this worker when the other end of a pipe is closed: it might wait for work for ever."""
    with suppress(OSError):
        ended.poll(None)
    os._exit(1)
