"""`twinlens train`, killed as a real process at every stage of a run, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TinyRun, tiny_words

WORDS = tiny_words(train__steps=400, train__validations=20)
PATIENCE = 120.0


def start(data: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "twinlens", "train", str(data), "--out", str(run), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, said
    return said


def rows(run: Path) -> int:
    file = run / "history.csv"
    return file.read_text().count("\n") if file.is_file() else 0


def beginning(run: Path) -> bool:
    return (run / "split.csv").is_file()


def learning(run: Path) -> bool:
    return (run / "checkpoint.safetensors").is_file()


def deep_in_learning(run: Path) -> bool:
    return rows(run) > 40


def learned(run: Path) -> bool:
    return (run / "model").is_dir()


def measured(run: Path) -> bool:
    return (run / "results.json").is_file()


def kill_when(moment: Callable[[Path], bool], process: subprocess.Popen[str], run: Path) -> bool:
    """Kill the process at that moment; whether it was still running."""
    give_up = time.monotonic() + PATIENCE
    while not moment(run) and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_at_every_stage(tiny_run: TinyRun, tmp_path: Path) -> None:
    """One run that is killed again and again comes to the weights of one that never was."""
    finish(start(tiny_run.data, tmp_path / "whole", *WORDS))
    run, killed = tmp_path / "broken", []
    for moment in (beginning, learning, deep_in_learning, learned, measured):
        process = start(tiny_run.data, run, *WORDS, *(["--resume"] if run.exists() else []))
        if kill_when(moment, process, run):
            killed.append(moment)
    assert len(killed) >= 4  # The last moment is short: a fast run may be over before it is seen.
    said = finish(start(tiny_run.data, run, "--resume"))
    assert "nothing to resume" not in said
    for name in ("model/model.safetensors", "results.json", "settings.json", "split.csv"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(tmp_path.rglob(".*.part-*"))  # Each run swept what the one before it left.
