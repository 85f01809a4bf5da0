"""Commands under kill -9 at random moments, each in a process of its own.

`python kills.py OPERATION FIRST LAST SCRATCH` makes the trials of these numbers and prints what
broke. In a trial a command is killed twice, and then completes. After each kill everything is as
before the command or as after it; after the completion no part is left.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sandbox import Outcome, Running, in_fork, prepare

KILLS_PER_TRIAL = 2
State = Any
"""JSON of what a command changes."""


@dataclass
class Operation:
    """A command that is killed.

    Attributes:
        words: of the command line, in a folder with the files of `files`.
        files: names of what is copied from the base.
        state: reads what the command changes.
        again: words that complete it, if it was killed once it took effect.
        begun: words that complete it once `r` exists.
    """

    words: list[str]
    files: tuple[str, ...]
    state: Callable[[], State]
    again: list[str] | None = None
    begun: list[str] | None = None
    seconds: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=3))
    before: State = None
    after: State = None


def gallery_state() -> State:
    """Templates and the settings that a user sees."""
    from twinlens.gallery.gallery import Gallery

    gallery = Gallery.open("g")
    rows = gallery.store.find().sort_by("hash").to_pylist()
    for row in rows:
        row["vector"] = [round(float(value), 6) for value in row["vector"]]
    settings = gallery.core.state().settings
    assert len(gallery) == len(rows)
    if rows:
        gallery.search_embedding(gallery.store.find(limit=1)["vector"].to_pylist()[0], k=1)
    kept = [{k: v for k, v in row.items() if k not in ("time", "thumbnail")} for row in rows]
    return [kept, settings.fingerprint, settings.open_set]


def table_state() -> State:
    """The rows of a Parquet file; None if missing."""
    import pyarrow.parquet as pq

    path = Path("e.parquet")
    return repr(pq.read_table(path).to_pylist()) if path.exists() else None


def folder_state() -> State:
    """Names and sizes of the files of an output folder; None if missing."""
    top = Path("c")
    return sorted(str(p.relative_to(top)) for p in top.rglob("*")) if top.exists() else None


def model_state() -> State:
    """The description of a model that can be loaded."""
    from twinlens.match.matcher import Matcher

    Matcher.load("m")
    return json.loads(Path("m/model.json").read_text())


def run_state() -> State:
    """The files of a finished run that do not depend on the time; None before that."""
    record = Path("r/run.json")
    if not record.exists() or not json.loads(record.read_text()).get("finished"):
        return None
    names = ("model/model.safetensors", "settings.json", "split.csv", "results.json")
    return [Path("r", name).read_bytes().hex() for name in names]


def operations(base: Path) -> Mapping[str, Operation]:
    """Every command that writes, by name."""
    from conftest import tiny_words

    pictures, steps = str(base / "pictures"), tiny_words(train__steps=30, train__validations=6)
    optimize = ["gallery", "optimize", "g"]
    return {
        "train": Operation(
            ["train", pictures, "--out", "r", *steps], (), run_state,
            begun=["train", pictures, "--out", "r", "--resume", *steps],
        ),
        "calibrate": Operation(
            ["calibrate", "m", pictures, "--on", "all", "--far", "0.1"], ("bundle m",), model_state
        ),
        "embed": Operation(
            ["embed", "m", pictures, "--out", "e.parquet"], ("bundle m",), table_state
        ),
        "cluster": Operation(
            ["cluster", "m", pictures, "--out", "c", "--copy"], ("bundle m",), folder_state,
            again=["recipes"],
        ),
        "enrol": Operation(
            ["gallery", "enrol", "g", str(base / "photos")], ("gallery g",), gallery_state
        ),
        "erase": Operation(
            ["gallery", "erase", "g", "thing 3"], ("gallery g",), gallery_state, again=optimize
        ),
        "optimize": Operation(
            [*optimize, "--partitions", "2"], ("gallery g",), gallery_state
        ),
        "gallery-calibrate": Operation(
            ["gallery", "calibrate", "g", "--fpir", "0.2"], ("gallery g",), gallery_state
        ),
        "import": Operation(
            ["gallery", "import", "g", str(base / "other.parquet")], ("gallery g",), gallery_state
        ),
        "export": Operation(
            ["gallery", "export", "g", "e.parquet"], ("gallery g",), table_state
        ),
        "rebuild": Operation(
            ["gallery", "rebuild", "g", "--model", str(base / "second")], ("gallery g",),
            gallery_state,
        ),
    }  # fmt: skip


class Trial:
    """One folder in which a command is killed, and completes."""

    def __init__(self, name: str, number: int, operation: Operation, base: Path, top: Path) -> None:
        self.operation = operation
        self.name = f"{name}-{number}"
        self.draw = random.Random(self.name)
        self.top = top / self.name
        self.place = self.top / "work"
        self.place.mkdir(parents=True)
        self.num_forks = 0
        for names in operation.files:
            source, target = names.split()
            shutil.copytree(base / source, self.place / target)

    def fork(self, call: Callable[[], int]) -> Running:
        """A process in the trial's folder."""
        import os

        def inside() -> int:
            os.chdir(self.place)
            return call()

        self.num_forks += 1
        return Running(self.name, self.top / f"process-{self.num_forks}", inside)

    def command(self, words: list[str]) -> Running:
        from twinlens.cli.main import main

        return self.fork(lambda: main(words))

    def state(self) -> State:
        file = self.top / "state.json"

        def call() -> int:
            file.write_text(json.dumps(self.operation.state()))
            return 0

        outcome = self.fork(call).wait()
        if outcome.code:
            raise AssertionError(f"{self.name}: cannot be read\n{outcome}")
        return json.loads(file.read_text())

    def words(self, state: State) -> list[str]:
        """Words that begin, resume or complete the command."""
        operation = self.operation
        if operation.again is not None and state == operation.after:
            return operation.again
        if operation.begun is not None and (self.place / "r").exists():
            return operation.begun
        return operation.words

    def complete(self, state: State) -> Outcome:
        """Run the command to its end."""
        outcome = self.command(self.words(state)).wait()
        self.operation.seconds.append(outcome.seconds)
        if outcome.code:
            raise AssertionError(f"{self.name}: does not complete\n{outcome}")
        return outcome

    def kill(self, state: State) -> bool:
        """Kill the command at a random moment; whether it was still running."""
        running = self.command(self.words(state))
        end = time.monotonic() + self.draw.uniform(0, 0.9) * median(self.operation.seconds)
        while time.monotonic() < end:
            if (outcome := running.poll()) is not None:
                if outcome.problem:
                    raise AssertionError(f"{self.name}: {outcome}")
                return False
            time.sleep(0.002)
        running.kill_group()
        return running.wait().code == -signal.SIGKILL

    def check_tidy(self) -> None:
        """No part of a killed process is left, and no model of a former gallery."""
        models = list(self.place.glob("g/models/*"))
        if len(models) > 1:
            raise AssertionError(f"{self.name}: left behind: {models}")
        left = [p for p in self.place.rglob("*") if ".part" in p.name or ".tmp" in p.name]
        if left:
            raise AssertionError(f"{self.name}: left behind: {left}")


def measure(name: str, operation: Operation, base: Path, top: Path) -> None:
    """Run the command without a kill, for the states before and after, and its time."""
    trial = Trial(name, -1, operation, base, top)
    operation.before = trial.state()
    trial.complete(operation.before)
    operation.after = trial.state()
    shutil.rmtree(trial.top)


def attempt(name: str, number: int, operation: Operation, base: Path, top: Path) -> int:
    """One trial; returns the number of kills that hit the running command."""
    trial = Trial(name, number, operation, base, top)
    state, hits = operation.before, 0
    for _ in range(KILLS_PER_TRIAL):
        hits += trial.kill(state)
        state = trial.state()
        if state not in (operation.before, operation.after):
            raise AssertionError(
                f"{trial.name}: neither as before nor as after: {str(state)[:500]}"
            )
    if not (operation.begun and state == operation.after):  # Nothing is left to resume.
        trial.complete(state)
    if (state := trial.state()) != operation.after:
        raise AssertionError(f"{trial.name}: not as after an unbroken command: {str(state)[:500]}")
    if "gallery g" in operation.files:  # It deletes the files of Lance's killed writers.
        trial.command(["gallery", "optimize", "g"]).wait()
    trial.check_tidy()
    shutil.rmtree(trial.top)
    return hits


def make_more(base: Path) -> None:
    """A second model, and the templates of another gallery of the first."""
    from conftest import draw_pictures, tiny_words
    from hostile_inputs import run_command

    run_command("train", base / "pictures", "--out", "second-run", *tiny_words(seed=1))
    shutil.copytree("second-run/model", base / "second")
    draw_pictures(base / "others", {"x": 3, "y": 3}, seed=5)
    run_command("gallery", "create", "o", "--model", base / "bundle")
    run_command("gallery", "enrol", "o", base / "others")
    run_command("gallery", "export", "o", base / "other.parquet")


def main(chosen: str, first: str, last: str, scratch: str) -> int:
    sys.path.append(str(Path(__file__).parents[1]))
    top = Path(scratch)
    base = prepare(top)

    def more() -> int:
        make_more(base)
        return 0

    if not (base / "other.parquet").exists():
        outcome = in_fork(top / "more", more)
        if outcome.code:
            raise RuntimeError(str(outcome))
    problems = kills = hits = 0
    begin = time.monotonic()
    for name, operation in operations(base).items():
        if chosen not in ("all", name):
            continue
        measure(name, operation, base, top)
        for number in range(int(first), int(last) + 1):
            kills += KILLS_PER_TRIAL
            try:
                hits += attempt(name, number, operation, base, top)
            except AssertionError as error:
                problems += 1
                print(error, flush=True)
    print(
        f"{hits} of {kills} kills hit a running command; {problems} problems, "
        f"in {time.monotonic() - begin:.0f} s"
    )
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
