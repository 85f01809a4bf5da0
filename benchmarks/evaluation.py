"""Recall at 1, MAP@R and the equal error rate of all pairs, beside metric learning's libraries.

pytorch-metric-learning's AccuracyCalculator with its own faiss search and with its CustomKNN, at
k="max_bin_count" (its default, k=None, keeps every one of N x N neighbours); open-metric-learning's
RetrievalResults and its share of right first ones, and MAP@R, which it lacks, from the same; for
the error rate scikit-learn's `roc_curve` of scipy's distances, one thread both, since neither
library has it over all pairs. Each work runs in a process of its own,
whose most memory above what it held before is shown, in turns, with as many threads on both sides.

Prediction, made after a profile of faiss, whose search took 1.7 times the product of all embeddings
that ours needs too: against faiss no more than 2; against CustomKNN at least 3; the error rate at
least 5, since nothing is sorted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.table import ROOT, Line
from benchmarks.timing import Row
from benchmarks.venvs import PeerError, interpreter
from twinlens.machine import available_cores

THREADS = available_cores()
LIMIT = 600


@dataclass(frozen=True)
class Setting:
    """Numbers of embeddings, dimensions, identities and rounds, and the libraries to compare."""

    num: int
    dim: int
    identities: int
    rounds: int
    peers: tuple[str, ...]


RETRIEVAL = (
    Setting(10_000, 64, 200, 3, ("faiss", "custom", "oml")),
    Setting(60_000, 128, 3_000, 3, ("faiss",)),
    Setting(60_000, 128, 3_000, 1, ("custom", "oml")),
)
RATES = (Setting(10_000, 64, 200, 3, ("sklearn",)), Setting(60_000, 128, 3_000, 1, ()))
PEERS = {
    "faiss": "pytorch-metric-learning, faiss",
    "custom": "pytorch-metric-learning, CustomKNN",
    "oml": "open-metric-learning",
    "sklearn": "scikit-learn roc_curve of scipy pdist",
}
VENVS = {"faiss": "pml", "custom": "pml", "oml": "oml"}
"""Peer -> its own environment; scikit-learn is twinlens's dependency too."""

AIM, LEAST = "3 times as fast, equal to 1e-6", 3.0


def lines() -> Iterator[Line]:
    for setting in RETRIEVAL:
        for peer in setting.peers:
            yield _line("recall at 1 and MAP@R", "ours", peer, setting)
    for setting in RATES:
        for peer in setting.peers:
            yield _line("EER of all pairs", "our_eer", peer, setting)
        if not setting.peers:
            yield _alone(setting)


def _line(what: str, ours: str, peer: str, setting: Setting) -> Line:
    what = f"{what}, {setting.num} x {setting.dim}, {setting.identities} identities"
    pairs = [(_run(ours, setting), _run(peer, setting)) for _ in range(setting.rounds)]
    failed = [theirs["failed"] for _, theirs in pairs if "failed" in theirs]
    here = statistics.median(mine["seconds"] for mine, _ in pairs)
    memory = f"{pairs[0][0]['mb']} MB"
    if failed:
        return Line(what, PEERS[peer], f"{here:.3g} s, {memory}", "none", "", AIM, False, failed[0])
    apart = max(
        abs(a - b)
        for mine, theirs in pairs
        for a, b in zip(mine["result"], theirs["result"], strict=True)
    )
    row = Row.of(
        what, PEERS[peer], [(mine["seconds"], theirs["seconds"]) for mine, theirs in pairs]
    )
    note = (
        f"{THREADS} threads at hand; {memory} beside {pairs[0][1]['mb']} MB; figures differ by "
        f"{apart:.0e}"
    )
    line = row.line(AIM, LEAST, note)
    return line if apart <= 1e-6 else replace(line, reached=False)


def _alone(setting: Setting) -> Line:
    result = _run("our_eer", setting)
    what = f"EER of all pairs, {setting.num} x {setting.dim}, {setting.identities} identities"
    pairs = setting.num * (setting.num - 1) // 2
    note = f"{pairs:,} pairs: their distances alone are {pairs * 4 / 1e9:.0f} GB"
    return Line(what, "nobody", f"{result['seconds']:.3g} s, {result['mb']} MB", "none", note=note)


def _run(who: str, setting: Setting) -> dict[str, object]:
    words = [who, setting.num, setting.dim, setting.identities]
    try:
        python = interpreter(VENVS[who]) if who in VENVS else sys.executable
    except PeerError as error:
        return {"failed": str(error)}
    command = [str(python), "-m", "benchmarks.evaluation_work", *map(str, words), str(THREADS)]
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, check=False, env=env, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {LIMIT} s"}
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or ["killed, out of memory"]
        return {"failed": f"ended with {run.returncode}: {last[0]}"}
    return json.loads(run.stdout.strip().splitlines()[-1])
