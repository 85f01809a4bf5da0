"""Processes of one training: started here (`--devices`), or by torchrun and its like.

Rank 0 is the user's process. It starts the others, which call the same function, and ends them in
any case; they end by themselves if it is killed. Under torchrun the environment names the ranks.
Sockets of the processes that are started here stay on the loopback.

An error of another rank goes to rank 0 by torch's store, and becomes its one message.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from twinlens.errors import ConfigError, TrainingError, TwinlensError, first_line
from twinlens.learn.ranks import ALONE, PATIENCE, Ranks
from twinlens.machine import available_cores, num_threads
from twinlens.processes import CAUSES_OF_DEATH, SIGNALS, worker_processes

__all__ = ["Team", "check_gpus", "team_of"]

LOOPBACK = "127.0.0.1"
ERROR, JOINED = "error", "joined"  # keys of the store
MOST_ON_A_CORE = 4  # processes; each takes half a GiB
MEETING = timedelta(minutes=10)  # An interrupt does not end torch's wait.
NOTICE = 5.0  # seconds in which the reason of a lost connection becomes known
LOST = ("gloo", "NCCL")  # in messages of torch

Failure = Callable[[], str | None]
"""Why another rank failed; None if nothing is known."""


class _EndedError(Exception):
    """Ends the other processes."""


class Team:
    """The processes of a training, this one included.

    Attributes:
        ranks: rank of this process, and number of all.
    """

    def __init__(
        self, ranks: Ranks, store: Store | None = None, failure: Failure = lambda: None
    ) -> None:
        self.ranks = ranks
        self._store = None if store is None else PrefixStore("twinlens", store)
        self._failure, self._ended = failure, threading.Event()
        if self._store is not None and ranks.rank:
            self._store.set(f"{JOINED}{ranks.rank}", "")

    def connect(self) -> None:
        """Wait for all ranks, and form torch's process group; rank 0 may prepare before.

        CPU tensors go by gloo, those of GPUs by NCCL.
        """
        if self._store is None:
            return
        rank, size, backend = self.ranks.rank, self.ranks.size, "gloo"
        if rank == 0:
            self._store.set(f"{JOINED}0", "")
        # Signals end this wait, not that of torch.
        while not self._store.check([f"{JOINED}{other}" for other in range(size)]):
            if self._store.check([ERROR]) or self._failure() is not None:
                raise dist.DistError("a rank did not start")
            time.sleep(0.02)
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(_local() % torch.cuda.device_count())
        torch.set_num_threads(max(1, num_threads() // _num_local(size)))
        dist.init_process_group(
            backend, store=self._store, rank=rank, world_size=size, timeout=PATIENCE
        )

    def work(self) -> Iterator[Any]:
        """What rank 0 sends by `Ranks.object_of_first`, on another rank, until it releases it."""
        while (work := self.ranks.object_of_first(None)) is not None:
            yield work
        dist.destroy_process_group()

    def release(self) -> None:
        """On rank 0: end the others, which wait for work, and leave the process group."""
        if self.ranks.size > 1:
            self.ranks.object_of_first(None)
            self._ended.set()
            dist.destroy_process_group()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a lost rank into one message on rank 0, and leave the process group at the end.

        Raises:
            TrainingError: on rank 0, another rank failed.
            SystemExit: on another rank, any rank failed.
        """
        threads = torch.get_num_threads()
        if self._store is not None and self.ranks.is_first and torch.cuda.is_available():
            # A connection of its own, since another thread may wait in that one.
            known = partial(_known_reason, self._store.clone(), self._failure)
            threading.Thread(target=_end_with, args=(known, self._ended), daemon=True).start()
        try:
            yield
        except Exception as error:
            if self.ranks.rank:
                self._report(error)
                raise SystemExit(2) from error
            if not _is_lost(error):
                raise
            raise TrainingError(
                f"{self._reason()}. What was done is kept: the same command with --resume goes on, "
                "with any number of processes"
            ) from error
        finally:
            torch.set_num_threads(threads)
            if dist.is_initialized() and self.ranks.size > 1:
                _leave()
            self._ended.set()

    def _report(self, error: Exception) -> None:
        """Report an error of this rank to rank 0, if this rank is its cause."""
        if _is_lost(error) or self._store is None:
            return
        text = str(error)
        if not isinstance(error, TwinlensError | OSError):  # A fault of twinlens.
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {first_line(error)}"
        with suppress(RuntimeError):  # The store is gone.
            self._store.set(ERROR, f"rank {self.ranks.rank}: {text}")

    def _reason(self) -> str:
        """Why another rank failed, which becomes known a little later."""
        deadline = time.monotonic() + NOTICE
        while self._store is not None and time.monotonic() < deadline:
            if (reason := _known_reason(self._store, self._failure)) is not None:
                return reason
            time.sleep(0.05)
        return "the connection to a process of this training was lost"


@contextmanager
def team_of(
    call: Callable[..., Any], arguments: Mapping[str, Any], devices: int | None
) -> Iterator[Team]:
    """The processes of a training; only this one without `devices` and outside of torchrun.

    Args:
        call: function that the other processes call, which joins by this function too.
        arguments: its arguments.
        devices: number of processes on this machine.
    Raises:
        ConfigError: `devices` is wrong, torch.distributed is in use, or arguments that other
            processes cannot receive.
    """
    by_torchrun = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if devices is not None and by_torchrun:
        raise ConfigError("torchrun sets the number of processes: leave --devices out")
    if devices is not None and devices < 1:
        raise ConfigError(f"devices must be at least 1, found {devices}")
    most = max(torch.cuda.device_count(), MOST_ON_A_CORE * available_cores())
    if devices is not None and devices > most:
        raise ConfigError(f"this machine holds at most {most} processes, found --devices {devices}")
    if not by_torchrun and devices in (None, 1):
        yield Team(ALONE)
        return
    if dist.is_initialized():
        raise ConfigError("torch.distributed is in use already: leave that to twinlens")
    if by_torchrun:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        store, rank, size = _store_of_torchrun()
        for number in SIGNALS if rank else ():
            signal.signal(number, _leave_to_first)
        team = Team(Ranks(rank, size), store)
        with team.explained():
            yield team
        return
    assert devices is not None
    with suppress(_EndedError), _started(call, arguments, devices) as team, team.explained():
        yield team
        raise _EndedError  # The pool would wait for those that an interrupt left behind.


def _store_of_torchrun() -> tuple[Store, int, int]:
    """The store, the rank of this process, and the number of ranks, by the environment."""
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=MEETING)))
    except (dist.DistError, ValueError) as error:
        address, port = (os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise TrainingError(
            f"the processes of this training do not meet at MASTER_ADDR={address} and "
            f"MASTER_PORT={port}: {first_line(error).rstrip('.')}; start them by torchrun, all "
            f"within {MEETING.seconds // 60} minutes"
        ) from error
    store.set_timeout(PATIENCE)
    return store, rank, size


@contextmanager
def _started(
    call: Callable[..., Any], arguments: Mapping[str, Any], devices: int
) -> Iterator[Team]:
    """Processes that are started here, and end with the block."""
    try:
        content = bytes(ForkingPickler.dumps((call, dict(arguments))))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"other processes cannot receive what was passed ({first_line(error)}): define it at "
            "the top of a module, or start the program by torchrun"
        ) from error
    # The socket is bound here, since torch's store would listen on all interfaces.
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=PATIENCE,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    named = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback,
             "LOCAL_WORLD_SIZE": str(devices)}  # fmt: skip
    others = list[Future[None]]()
    with worker_processes(devices - 1) as pool, _environment(named):
        for rank in range(1, devices):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": devices,
                     "MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}  # fmt: skip
            values = named | {name: str(value) for name, value in place.items()}
            others.append(pool.submit(_follow, values, content))
        yield Team(Ranks(0, devices), store, partial(_reason, others))


def _leave_to_first(*_: Any) -> None:
    """A signal on another rank: ends it before ranks are connected; then rank 0 decides."""
    if not dist.is_initialized():
        os._exit(2)


def _leave() -> None:
    """Leave the process group while other ranks may wait in a call."""
    if "nccl" in dist.get_backend_config():
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _is_lost(error: Exception) -> bool:
    """Whether another rank is the cause of an error."""
    if not isinstance(error, RuntimeError) or isinstance(error, TwinlensError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)


def _local() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _num_local(size: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


def check_gpus(device: str) -> None:
    """Refuse more processes of a machine than it has GPUs.

    Raises:
        ConfigError: there are more, and the device is a GPU.
    """
    num, gpus = _num_local(1), torch.cuda.device_count()
    if device.startswith("cuda") and num > gpus:
        raise ConfigError(
            f"found {gpus} GPUs for {num} processes of one machine: start one process for each "
            "GPU, or set train.device=cpu"
        )


def _follow(place: Mapping[str, str], content: bytes) -> None:
    """Work of a process that was started here."""
    os.environ.update(place)
    call, arguments = pickle.loads(content)
    call(**arguments)


def _known_reason(store: Store, failure: Failure) -> str | None:
    """Why another rank failed, as it reported, or as this process sees; None if unknown."""
    with suppress(RuntimeError):  # The store is gone.
        if store.check([ERROR]):
            return store.get(ERROR).decode()
    return failure()


def _reason(others: Sequence[Future[None]]) -> str | None:
    for future in others:
        error = future.exception() if future.done() else None
        if isinstance(error, BrokenProcessPool):
            return f"a process of this training was killed ({CAUSES_OF_DEATH})"
        if isinstance(error, Exception):
            return f"a process of this training failed: {type(error).__name__}: {first_line(error)}"
    return None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _end_with(failure: Failure, ended: threading.Event) -> None:
    """End this process if another rank failed, and a call of a GPU waits for it for ever."""
    while (reason := failure()) is None:
        if ended.wait(1.0):
            return
    if not ended.wait(2 * NOTICE):
        print(f"twinlens: error: {reason}: resume with --resume", file=sys.stderr)
        os._exit(2)


def _end_with_parent(parent: int) -> None:
    """End this process when torchrun is killed, which leaves its processes behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(2)
