"""Trainings by several processes on the CPU: the same model, one message, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyRun, tiny_words
from safetensors.numpy import load_file

import twinlens
from twinlens.errors import ConfigError, TrainingError
from twinlens.learn.ranks import Ranks
from twinlens.scale import launch

WORDS = tiny_words(train__steps=300, train__validations=15)
PATIENCE = 120.0
LOST = "a process of this training was killed"


def start(data: Path, run: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "twinlens", "train", str(data), "--out", str(run), *more]
    values = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        words, env=values, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def rows(run: Path) -> int:
    history = run / "history.csv"
    return history.read_text().count("\n") if history.is_file() else 0


def learning(process: subprocess.Popen[str], run: Path, more: int = 8) -> list[int]:
    """The other processes of a training, once it has learned a little."""
    give_up, begun = time.monotonic() + PATIENCE, rows(run)
    while rows(run) < begun + more:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    stats = Path("/proc").glob("[0-9]*/stat")
    return [int(stat.parent.name) for stat in stats if _is_worker_of(process.pid, stat)]


def _is_worker_of(parent: int, stat: Path) -> bool:
    try:
        own = int(stat.read_text().rpartition(")")[2].split()[1]) == parent
        return own and b"spawn_main" in stat.with_name("cmdline").read_bytes()
    except OSError:  # It has ended.
        return False


def said_by(process: subprocess.Popen[str], code: int) -> str:
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code, said
    return said


def ended(pids: list[int]) -> bool:
    give_up = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model/model.safetensors")


@contextmanager
def torchrun() -> Iterator[tuple[Any, dict[str, str]]]:
    """The store and the environment that torchrun gives to two processes."""
    from torch._C._distributed_c10d import TCPStore

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    yield store, {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": loopback,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_trainings_resume_on_other_numbers_of_processes(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    """Another process is killed, then the first one, then Ctrl-C; the weights are those of one."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    said_by(start(tiny_run.data, whole, *WORDS), 0)

    process = start(tiny_run.data, run, *WORDS, "--devices", "2")
    (other,) = learning(process, run)
    os.kill(other, signal.SIGKILL)
    said = said_by(process, 2)
    assert said.count(LOST) == said.count("twinlens: error") == 1
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said

    process = start(tiny_run.data, run, "--resume", "--devices", "3")
    others = learning(process, run)
    process.kill()
    process.communicate()
    assert ended(others)

    said = said_by(start(tiny_run.data, run, "--resume", "--devices", "2"), 0)
    assert "2 processes" in said
    assert "resumed at step" in said
    expected = weights(whole)
    for name, value in weights(run).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
    assert (run / "history.csv").read_text().count("\n") > 15


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_ends_all_processes_with_a_report(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tiny_run.data, run, *WORDS, "--set", "train.steps=20000", "--devices", "2")
    others = learning(process, run)
    os.killpg(process.pid, signal.SIGINT)
    said = said_by(process, 128 + signal.SIGINT)
    assert "--resume --devices 2" in said
    assert "Traceback" not in said
    assert (run / "report.html").is_file()
    assert ended(others)


@pytest.mark.slow
def test_ranks_of_torchrun_with_other_pictures_give_one_message(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run.data, other)
    (other / "thing 1/3.png").unlink()
    with torchrun() as (_, place):
        first, second = (
            start(data, tmp_path / "run", *WORDS, RANK=rank, LOCAL_RANK=rank, **place)
            for rank, data in (("0", tiny_run.data), ("1", other))
        )
        said = said_by(first, 2)
        assert said_by(second, 2) == ""
    assert "found other pictures on rank 1" in said.splitlines()[-1]
    assert said.count("twinlens: error") == 1


@pytest.mark.slow
def test_a_rank_that_waits_for_the_first_one_ends_when_torchrun_asks(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    """Torchrun does so when the first process failed, and kills the others 30 seconds later."""
    with torchrun() as (store, place):
        process = start(tiny_run.data, tmp_path / "run", RANK="1", LOCAL_RANK="1", **place)
        store.wait(["twinlens/joined1"])
        process.terminate()
        assert said_by(process, 2) == ""


def test_an_environment_in_which_processes_do_not_meet_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "port"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=r"meet at .* and MASTER_PORT=port"):
        launch._store_of_torchrun()


def test_a_failure_ends_a_first_rank_whose_gpu_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own connection to the store may be in use by the call that waits."""
    exits, done = list[int](), threading.Event()

    def end(code: int) -> None:
        exits.append(code)
        done.set()

    monkeypatch.setattr(launch, "NOTICE", 0.1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "_exit", end)
    with torchrun() as (store, _), launch.Team(Ranks(0, 2), store).explained():
        store.set("twinlens/error", "rank 1: the GPU's memory is too small")
        with pytest.raises(RuntimeError):
            store.wait(["never"], timedelta(seconds=3))
        assert done.wait(PATIENCE)
    assert exits == [2]
    assert "error: rank 1: the GPU's memory is too small: resume" in capsys.readouterr().err


def test_more_processes_than_gpus_need_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch.check_gpus("cpu")
    with pytest.raises(ConfigError, match="found 1 GPUs for 2 processes of one machine"):
        launch.check_gpus("cuda")


def test_wrong_numbers_of_processes(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="devices must be at least 1, found 0"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", devices=0)
    with pytest.raises(ConfigError, match="found --devices 9999"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", devices=9999)
    with pytest.raises(ConfigError, match="cannot receive what was passed"):
        twinlens.train(
            tiny_run.data, out=tmp_path / "run", devices=2, loss=lambda emb, label: emb.sum()
        )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun sets the number"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", devices=2)
    assert not (tmp_path / "run").exists()
