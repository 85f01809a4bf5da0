"""Metrics in Prometheus' format, summed over the worker processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from twinlens._version import __version__

__all__ = ["CONTENT_TYPE", "ERRORS", "IN_PROGRESS", "PICTURES", "QUEUE", "REQUEST_SECONDS",
           "exposition", "shared_by_workers"]  # fmt: skip

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

# They would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
"""Metrics of this process; with several, those of all are read from files instead."""

REQUEST_SECONDS = Histogram(
    "twinlens_request_seconds", "Seconds from a request's headers to the end of its answer.",
    ("route", "method", "status"), buckets=SECONDS, registry=REGISTRY,
)  # fmt: skip
ERRORS = Counter(
    "twinlens_errors", "Answers that are errors, by the code of their body.", ("code",),
    registry=REGISTRY,
)  # fmt: skip
PICTURES = Counter(
    "twinlens_pictures", "Uploaded pictures of requests that were answered without an error.",
    ("route",), registry=REGISTRY,
)  # fmt: skip
IN_PROGRESS = Gauge(
    "twinlens_requests_in_progress", "Requests whose answer is not complete.",
    multiprocess_mode="livesum", registry=REGISTRY,
)  # fmt: skip
QUEUE = Gauge(
    "twinlens_queue_length", "Requests that wait for a slot, or compute.",
    multiprocess_mode="livesum", registry=REGISTRY,
)  # fmt: skip


class _Facts(Collector):
    """Values that are read at the time of a scrape, and are the same for every worker."""

    def __init__(self, gallery_sizes: Iterable[tuple[str, int]]) -> None:
        self._gallery_sizes = gallery_sizes

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("twinlens_info", "Version of twinlens.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        sizes = GaugeMetricFamily(
            "twinlens_gallery_templates", "Templates of a gallery.", labels=("gallery",)
        )
        for name, num_templates in self._gallery_sizes:
            sizes.add_metric((name,), num_templates)
        yield sizes


def exposition(gallery_sizes: Iterable[tuple[str, int]] = ()) -> bytes:
    """The page that Prometheus scrapes: metrics of all workers.

    Args:
        gallery_sizes: names of galleries and their numbers of templates.
    """
    facts = CollectorRegistry()
    facts.register(_Facts(gallery_sizes))
    workers = REGISTRY
    if FOLDER in os.environ:
        workers = CollectorRegistry()
        MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(workers) + generate_latest(facts))


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """A folder for the metrics of processes that start meanwhile; removed at the end."""
    folder = tempfile.mkdtemp(prefix="twinlens-metrics-")
    os.environ[FOLDER] = folder
    try:
        yield
    finally:
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)
