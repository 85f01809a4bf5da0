"""The peers' own virtual environments, and running a script in one of them.

A peer is installed beside nothing of ours, under `build/peers/NAME`, by pip; a stamp makes the
second time quick. The scripts in `benchmarks/peers` are run by the peer's own interpreter. They
read one .npz file and write another, so that neither side imports the other. This module knows
what the peers need, and not what they are asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import ROOT
from twinlens.errors import TwinlensError, unknown_name
from twinlens.files import writing_file

__all__ = ["PEERS", "Answer", "PeerError", "ask", "interpreter"]

HOME = ROOT / "build" / "peers"
SCRIPTS = ROOT / "benchmarks" / "peers"
STAMP = ".ready"

# The torch that they get is as ours: older CPU-only wheels do not match torchvision's.
TORCH = ("torch>=2.14", "torchvision>=0.29")
PEERS = {
    "keras": ("keras>=3.10", "tensorflow-cpu>=2.20"),
    "pml": ("pytorch-metric-learning>=2.6", *TORCH, "faiss-cpu>=1.8"),
    # It asks for numpy 1; pip is told which of the others take that, or it tries for long.
    "oml": (
        "open-metric-learning>=3.1",
        "omegaconf",
        *TORCH,
        "numpy<2",
        "opencv-python-headless<4.12",
        "pandas<3",
    ),
    "litserve": ("litserve>=0.2.19", "onnxruntime>=1.24", "pillow>=13", "python-multipart>=0.0.22"),
}
"""Name -> what pip is asked for."""


class PeerError(TwinlensError):
    """A peer cannot be installed, or its script failed."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Arrays that a script wrote, and the seconds of its whole process."""

    arrays: dict[str, NDArray[Any]]
    seconds: float


def interpreter(name: str, home: Path = HOME) -> Path:
    """The Python of a peer's environment, which is made if it is not there or asks for other parts.

    Args:
        name: one of PEERS.
        home: where the environments lie.
    Raises:
        PeerError: an unknown name, or pip could not install it.
    """
    if name not in PEERS:
        raise PeerError(unknown_name("peer", name, PEERS))
    folder = home / name
    wanted = "\n".join((sys.version, *PEERS[name]))
    python, stamp = folder / "bin" / "python", folder / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {', '.join(PEERS[name])} into {folder}", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    _make([sys.executable, "-m", "venv", "--clear", str(folder)], name)
    _make([str(python), "-m", "pip", "install", "--quiet", *PEERS[name]], name)
    with writing_file(stamp) as part:
        part.write_text(wanted, encoding="utf-8")
    return python


def _make(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reasons = [line for line in said if line.startswith("ERROR")] or said or ["no reason given"]
        raise PeerError(
            f"the environment of the peer '{name}' could not be made ({reasons[-1]}): pip needs a "
            "registry that it can reach (`pip config list` shows where it looks); without one, "
            "name the other benchmarks: python -m benchmarks NAME ..."
        )


def ask(peer: str, script: str, question: Path, answer: Path, *options: str) -> Answer:
    """Run a script of `benchmarks/peers` in a peer's environment.

    Args:
        peer: one of PEERS.
        script: its name, without the ending.
        question: the .npz file that it reads.
        answer: the .npz file that it writes.
        options: further arguments.
    Raises:
        PeerError: the peer cannot be installed, or the script failed.
    """
    python = interpreter(peer)
    command = [str(python), str(SCRIPTS / f"{script}.py"), str(question), str(answer), *options]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    answer.unlink(missing_ok=True)  # An earlier run's must never pass for this one's.
    started = time.perf_counter()
    code = subprocess.run(command, env=environment).returncode
    seconds = time.perf_counter() - started
    if code:
        raise PeerError(f"{script} ended with {code}; what it said stands above")
    if not answer.exists():
        raise PeerError(f"{script} wrote no {answer}")
    with np.load(answer) as result:
        return Answer(dict(result), seconds)
