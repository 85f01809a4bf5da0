"""Computation of requests: some at a time, a short queue, and refusal beyond it.

A queue without a limit answers everybody late; this one answers most at once, and the others "busy"
(503), so that a client can go elsewhere or try again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from twinlens.service.errors import ServiceError
from twinlens.service.metrics import QUEUE
from twinlens.service.settings import Limits

__all__ = ["ComputeQueue"]

P = ParamSpec("P")
T = TypeVar("T")


class ComputeQueue:
    """Admits requests, and runs their work on a few threads.

    Attributes:
        num_admitted: requests that wait or compute.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.slots, "twinlens-compute")
        self._starts: dict[int, float] = {}  # Of the threads that compute.
        self.num_admitted = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place while a body is read and its request is answered.

        Raises:
            ServiceError: all places are taken (503).
        """
        if self.num_admitted >= self._limits.slots + self._limits.queue:
            raise ServiceError(
                503, "the service is busy: try again in a second", headers={"Retry-After": "1"}
            )
        self.num_admitted += 1
        QUEUE.inc()
        try:
            yield
        finally:
            self.num_admitted -= 1
            QUEUE.dec()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that computes, on one of the threads.

        Raises:
            ServiceError: no result within the limit of seconds (503). The thread ends its work,
                and keeps its slot until then.
        """
        # The threads have a queue of their own: a free one need not wait for the event loop.
        future = self._threads.submit(self._compute, lambda: work(*args, **kwargs))
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise ServiceError(
                503, f"no answer within {self._limits.seconds:g} seconds: try again later",
                "timeout", {"Retry-After": "5"},
            ) from None  # fmt: skip

    def _compute(self, work: Callable[[], T]) -> T:
        thread = threading.get_ident()
        self._starts[thread] = time.monotonic()
        try:
            return work()
        finally:
            del self._starts[thread]

    def is_stuck(self) -> bool:
        """Whether every thread has computed for longer than twice the limit of seconds."""
        starts = list(self._starts.values())
        silence = 2 * self._limits.seconds
        return len(starts) >= self._limits.slots and time.monotonic() - max(starts) > silence

    def close(self) -> None:
        """Release the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
