"""Blocks of work on every core, in order."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info

from twinlens.measure.parallel import parallel_map


def test_results_come_in_order_and_from_several_threads():
    meeting = threading.Barrier(2, timeout=10)

    def work(part):
        if part < 2:
            meeting.wait()  # passes only where two are at work at once
        return part * part

    assert list(parallel_map(work, range(20), 2)) == [n * n for n in range(20)]
    assert list(parallel_map(lambda n: n + 1, [1, 2], 1)) == [2, 3]
    assert list(parallel_map(lambda n: n, [], 4)) == []


def test_blas_keeps_to_one_thread_and_is_given_back():
    def blas():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    before = blas()
    assert before
    assert all(set(seen) == {1} for seen in parallel_map(lambda _: blas(), range(3), 2))
    assert blas() == before


def test_an_error_reaches_the_caller():
    def work(part):
        if part == 3:
            raise ValueError("three")
        return part

    with pytest.raises(ValueError, match="three"):
        list(parallel_map(work, range(9), 2))
