"""Commands on hostile input, each in a process of its own: no traceback, 2 GB or hang.

A failing input is made again by `python tests/hostile/sandbox.py SCRATCH FAMILY:SEED`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_inputs import FAMILIES
from named_inputs import NAMED

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forks")

HERE = Path(__file__).parent
QUICK = 1  # inputs of a family
SLOW = {
    "pictures": 400, "folders": 100, "tables": 200, "models": 230, "runs": 30, "galleries": 200,
    "conditions": 230, "recipes": 330, "options": 100, "weights": 20,
}  # fmt: skip
TRIALS, KILLS = 16, 200  # of each command; kills that hit running commands, in all


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files that inputs are made of."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="session")
def outcomes(scratch: Path) -> dict[str, dict[str, Any]]:
    """Outcomes of the named inputs and of one random input of each family."""
    finished = run("sandbox.py", scratch, "named", *(f"{name}:1-{QUICK}" for name in FAMILIES))
    file = scratch / "outcomes.jsonl"
    assert file.exists(), finished.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", NAMED)
def test_named_inputs(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome, named = outcomes[f"named-{name}"], NAMED[name]
    assert outcome["problem"] is None, outcome
    assert outcome["code"] == named.code, outcome
    assert re.search(named.says, outcome["out"] + outcome["err"]), outcome


@pytest.mark.parametrize("family", FAMILIES)
def test_one_input_of_each_family(family: str, outcomes: dict[str, dict[str, Any]]) -> None:
    for seed in range(1, QUICK + 1):
        assert outcomes[f"{family}-{seed}"]["problem"] is None, outcomes[f"{family}-{seed}"]


@pytest.mark.slow
def test_random_inputs(scratch: Path) -> None:
    assert SLOW.keys() == FAMILIES.keys()
    assert sum(SLOW.values()) >= 1800
    finished = run("sandbox.py", scratch, *(f"{name}:1-{num}" for name, num in SLOW.items()))
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-2000:]
    print(finished.stdout)


@pytest.mark.slow
def test_kill_9(scratch: Path) -> None:
    """Everything is as before or as after, the next run completes, and no part is left."""
    finished = run("kills.py", "all", 1, TRIALS, scratch)
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-2000:]
    count = re.search(r"(\d+) of \d+ kills", finished.stdout)
    assert count is not None
    assert int(count[1]) >= KILLS
    print(finished.stdout)
