"""Parts of a table on a Ray cluster.

Actors compute, and this process gets their results and writes them. So the cluster needs no disk in
common, and a part that Ray computes twice, after the loss of a machine, is kept once.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from twinlens.data.table import ImageTable
from twinlens.errors import DataError, TwinlensError, first_line, naming_extras
from twinlens.scale.parts import Part
from twinlens.scale.workers import Work

__all__ = ["on_ray"]

HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^/]+?)\]?:(\d{1,5})")
SECONDS = 10.0  # to wait for a connection
RETRIES = 3
"""How often Ray starts an actor anew, and gives a part to another one."""


def on_ray(
    work: Work,
    table: ImageTable,
    parts: Sequence[Part],
    num_workers: int | None,
    address: str | None,
    *,
    use_gpus: bool = True,
) -> Generator[tuple[Part, pa.Table], None, None]:
    """Parts and their results, as they are completed.

    Args:
        work: computes a result; sent to each machine once.
        table: the pictures, which the actors must reach by the same paths.
        parts: parts of the table.
        num_workers: number of actors; None for one for each GPU of the cluster, else each core.
        address: address of the cluster; None for that of RAY_ADDRESS, else Ray is started here.
        use_gpus: whether each actor reserves a GPU, if the cluster has any.
    Raises:
        DataError: the cluster cannot be reached, or actors die again and again.
        MissingExtraError: Ray is not installed.
        TwinlensError: that of `work`.
    """
    with naming_extras("the engine ray"):
        import ray

    if not parts:
        return
    was_started = ray.is_initialized()
    if not was_started:
        _start(ray, address)
    try:
        untyped: Any = ray
        resources = untyped.cluster_resources()
        num_gpus = int(resources.get("GPU", 0)) if use_gpus else 0
        num = num_workers or num_gpus or max(1, int(resources.get("CPU", 1)))
        kind: Any = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=min(1, num_gpus), max_restarts=RETRIES, max_task_retries=RETRIES
        )
        shared, here = ray.put(work), str(Path.cwd())
        # An actor gets a part once it runs: the cluster may have no room for all of them.
        running = dict[Any, tuple[Any, Part | None]]()
        for _ in range(min(num, len(parts))):
            actor = kind.remote(here)
            running[actor.ready.remote()] = actor, None
        rest, num_left = iter(parts), len(parts)
        while num_left:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, part = running.pop(done)
            rows = ray.get(done)
            if (following := next(rest, None)) is not None:
                running[actor.compute.remote(shared, following.of(table))] = actor, following
            actor = None  # Ends one without work, which makes room for one that starts anew.
            if part is not None:
                num_left -= 1
                yield part, rows
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TwinlensError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise DataError(f"actors of Ray die again and again: {first_line(error)}") from error
    finally:
        if not was_started:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    # A cluster of its own on this machine listens on loopback only.
    own = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        if address is not None and (place := HOST_AND_PORT.fullmatch(address)):
            with socket.create_connection((place[1], int(place[2])), SECONDS):
                pass  # Ray would try for minutes.
        with _same_signals():
            ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise DataError(
            f"cannot reach the Ray cluster {address or 'on this machine'}: {first_line(error)}; "
            "check the address (--ray-address or RAY_ADDRESS), such as 10.0.0.1:6379"
        ) from error


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM: that of Ray prints a stack, and ends this process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):  # Only the main thread may set one, so only there Ray does.
            signal.signal(signal.SIGTERM, before)


class _Actor:
    """A process of the cluster, in the folder of the command if its machine has it."""

    def __init__(self, folder: str) -> None:
        with suppress(OSError):  # Names of pictures may be relative.
            os.chdir(folder)

    def ready(self) -> None:
        """Return once the actor runs."""

    def compute(self, work: Work, table: ImageTable) -> pa.Table:
        """The result of a part."""
        return work(table)
