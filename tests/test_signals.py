"""Signals and lost streams, on real processes: one message, an exit code, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, tiny_words

PATIENCE = 120.0
# Tests that run in the background ignore Ctrl-C, and so would their processes.
HEEDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from twinlens.cli.main import main
sys.exit(main())
"""
COMMAND = [sys.executable, "-c", HEEDING]


def start(
    *words: object, command: list[str] = COMMAND, unbuffered: str = "", **streams: Any
) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([*command, *map(str, words)], env=environment, text=True, **streams)


def stop(
    process: subprocess.Popen[str], number: int, ready: Callable[[], bool]
) -> tuple[int, str, str]:
    """Send a signal once the process is ready; its exit code, output and messages."""
    give_up = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def has_steps(history: Path) -> bool:
    return history.is_file() and len(history.read_text(encoding="utf-8").splitlines()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_with_a_model_and_the_command_that_resumes(
    number: int, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    words = ["train", tiny_run.data, "--out", run, *tiny_words(train__steps=30_000), "--quiet"]
    # The history begins before the first step, while there is no model to end with yet.
    code, out, err = stop(start(*words), number, lambda: has_steps(run / "history.csv"))
    assert code == 128 + number
    assert out == f"{run}\n"
    last = err.splitlines()[-1]
    command = f"twinlens train {tiny_run.data} --out '{run}' --resume"
    assert last == f"warning: the run was interrupted; resume it with: {command}"
    assert "Traceback" not in err
    assert "UserWarning" not in err
    assert (run / "model" / "model.json").is_file()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_a_second_signal_ends_training_at_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "train",
        tiny_run.data,
        "--out",
        run,
        *tiny_words(train__steps=30_000, train__validations=3000),
    ]
    process = start(*words)
    assert process.stderr is not None
    for number, line in ((signal.SIGTERM, "step "), (signal.SIGINT, "warning: interrupted")):
        while not (text := process.stderr.readline()).startswith(line):
            assert text, "the process ended"
        process.send_signal(number)
    assert process.wait(PATIENCE) == -signal.SIGINT
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.6, 3.2])
def test_a_signal_while_a_command_starts(
    number: int, seconds: float, tiny_run: TinyRun, tmp_path: Path
) -> None:
    """Imports take seconds, and an interrupted import may raise anything."""
    process = start("embed", tiny_run.run, tiny_run.data, "--out", tmp_path / "e.parquet")
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:  # Else it was done already.
        assert process.returncode in (128 + number, -number)
        assert "Traceback" not in err
        assert not list(tmp_path.glob(".*"))
    if process.returncode == 128 + number:
        message = "twinlens: interrupted: the same command embeds the rest"
        assert err.splitlines()[-1] == message


@pytest.mark.slow
def test_ignored_signals_stay_ignored(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", tiny_run.data, "--out", run, *tiny_words(), "--quiet"]
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-m", "twinlens"]
    code, _, err = stop(start(*words, command=nohup), signal.SIGHUP, run.is_dir)
    assert (code, "interrupted" in err) == (0, False)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["recipes"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output(words: list[str], unbuffered: str) -> None:
    with FULL.open("w") as full:
        process = start(*words, stdout=full, unbuffered=unbuffered)
        _, err = process.communicate(timeout=PATIENCE)
    message = "twinlens: error: cannot write to standard output: No space left on device\n"
    assert (process.returncode, err) == (2, message)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_standard_error_changes_nothing(tiny_run: TinyRun, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        run = tmp_path / "run"
        process = start("train", tiny_run.data, "--out", run, *tiny_words(), stderr=full)
        out, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, f"{run}\n")
        process = start("inspect", tmp_path / "missing", stderr=full)
        assert process.communicate(timeout=PATIENCE)[0] == ""
        assert process.returncode == 2


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "<&- 1>&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """No file takes the number of a closed stream, and so its messages."""
    words = f'"{sys.executable}" -m twinlens recipes nothing {closed}'
    assert subprocess.run(["sh", "-c", words], check=False, timeout=PATIENCE).returncode == 2
