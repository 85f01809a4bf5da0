"""Rates of requests: a bucket of tokens for each key or address."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

__all__ = ["TokenBuckets"]

MAX_NAMES = 10_000  # the one that was used longest ago is forgotten first


class TokenBuckets:
    """Allows a number of events a minute for each name, and as many at once after a silence.

    Each worker process counts on its own, so several allow as many times the rate at most.
    """

    def __init__(self, a_minute: int) -> None:
        self._size = a_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> int:
        """Take a token; 0, or the seconds until the next one if there is none."""
        now = time.monotonic()
        tokens, since = self._buckets.pop(name, (float(self._size), now))
        tokens = min(self._size, tokens + (now - since) * self._size / 60)
        wait = 0 if tokens >= 1 else math.ceil((1 - tokens) * 60 / self._size)
        self._buckets[name] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > MAX_NAMES:
            self._buckets.popitem(last=False)
        return wait
