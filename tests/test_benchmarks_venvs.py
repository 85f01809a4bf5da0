"""The peers' environments: made once, and again when what they need changes; errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

venvs = pytest.importorskip("benchmarks.venvs")


class Shell:
    """Stands in for venv and pip: makes the folder, and answers with a code."""

    def __init__(self, code: int = 0, said: str = "") -> None:
        self.code, self.said, self.calls = code, said, 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True, exist_ok=True)
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, self.code, "", self.said)


def shell(monkeypatch: pytest.MonkeyPatch, *args: object) -> Shell:
    stand_in = Shell(*args)
    monkeypatch.setattr(venvs.subprocess, "run", stand_in)
    return stand_in


def test_environment_is_made_once_and_again_when_it_needs_other_parts(tmp_path, monkeypatch):
    made = shell(monkeypatch)
    python = venvs.interpreter("pml", tmp_path)
    assert python == tmp_path / "pml" / "bin" / "python"
    assert made.calls == 2
    venvs.interpreter("pml", tmp_path)
    assert made.calls == 2
    monkeypatch.setitem(venvs.PEERS, "pml", ("something-else",))
    venvs.interpreter("pml", tmp_path)
    assert made.calls == 4


def test_failed_install_gives_pips_reason_and_leaves_no_stamp(tmp_path, monkeypatch):
    said = "WARNING: old\nERROR: No matching distribution found for torch\n"
    shell(monkeypatch, 1, said)
    with pytest.raises(venvs.PeerError, match=r"No matching distribution.*registry"):
        venvs.interpreter("oml", tmp_path)
    assert not (tmp_path / "oml" / venvs.STAMP).exists()


def test_unknown_peer_is_named(tmp_path):
    with pytest.raises(venvs.PeerError, match=r"unknown peer 'keras2'.*keras"):
        venvs.interpreter("keras2", tmp_path)


def test_ask_gives_back_what_a_script_wrote_and_refuses_a_failed_one(tmp_path, monkeypatch):
    (tmp_path / "double.py").write_text(
        "import sys, numpy as np\n"
        "x = np.load(sys.argv[1])['x']\n"
        "assert x.sum() < 100\n"
        "np.savez(sys.argv[2], x=x * int(sys.argv[3]))\n"
    )
    monkeypatch.setattr(venvs, "SCRIPTS", tmp_path)
    monkeypatch.setattr(venvs, "interpreter", lambda name: Path(sys.executable))
    question, answer = tmp_path / "question.npz", tmp_path / "answer.npz"
    np.savez(question, x=np.arange(3))
    found = venvs.ask("pml", "double", question, answer, "7")
    assert found.arrays["x"].tolist() == [0, 7, 14]
    assert found.seconds > 0
    np.savez(question, x=np.full(3, 100))
    with pytest.raises(venvs.PeerError, match="double ended with 1"):
        venvs.ask("pml", "double", question, answer, "7")


def test_an_answer_of_an_earlier_run_is_never_read_again(tmp_path, monkeypatch):
    (tmp_path / "silent.py").write_text("pass\n")
    monkeypatch.setattr(venvs, "SCRIPTS", tmp_path)
    monkeypatch.setattr(venvs, "interpreter", lambda name: Path(sys.executable))
    answer = tmp_path / "answer.npz"
    np.savez(answer, x=1)
    with pytest.raises(venvs.PeerError, match="wrote no"):
        venvs.ask("pml", "silent", tmp_path / "question.npz", answer)
