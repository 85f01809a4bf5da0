"""A gallery under kill -9, and with several writers and readers at once, in real processes.

TWINLENS_KILLS and TWINLENS_SECONDS make the slow tests longer.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from gallery_writer import DIM, WHOLE, Batch, batch

from twinlens.gallery.gallery import Gallery

KILLS = int(os.environ.get("TWINLENS_KILLS", "30"))
SECONDS = float(os.environ.get("TWINLENS_SECONDS", "12"))
HERE = Path(__file__).parent
KINDS = ("enrol", "erase", "rename", "optimize")

Template = tuple[str, str, bytes, str]
"""Identity, path, vector, metadata."""
Templates = dict[str, Template]
"""By hash."""


def templates_of(new: Batch, gallery: Gallery) -> Templates:
    said = [json.dumps(one, separators=(",", ":")) for one in new.metadata]
    emb = gallery.core.prepared(new.emb)
    return {
        name: (new.identity, path, row.tobytes(), more)
        for name, path, row, more in zip(new.hash, new.path, emb, said, strict=True)
    }


def templates_in(gallery: Gallery) -> Templates:
    rows = gallery.store.find()
    assert rows["time"].null_count == 0
    emb = np.array(rows["vector"].to_pylist(), np.float32)
    columns = (rows[name].to_pylist() for name in ("hash", "identity", "path", "metadata"))
    result = {
        name: (who, path, row.tobytes(), more)
        for name, who, path, more, row in zip(*columns, emb, strict=True)
    }
    assert len(result) == len(rows)
    return result


def after(state: Templates, action: dict[str, Any], gallery: Gallery) -> Templates:
    """The templates after an action."""
    match action["do"]:
        case "enrol":
            return state | templates_of(batch(action["batch"]), gallery)
        case "erase":
            return {name: one for name, one in state.items() if one[0] != action["who"]}
        case "rename":
            old, new = action["old"], action["new"]
            return {k: (new, *one[1:]) if one[0] == old else one for k, one in state.items()}
    return state


@dataclass
class Seen:
    """The output of a writer before it was killed."""

    gallery: Gallery
    state: Templates
    pending: dict[str, Any] | None = None
    num_done: collections.Counter[str] = field(default_factory=collections.Counter)
    names: dict[str, str] = field(default_factory=dict)
    """Names that identities had before, by those that they got."""
    gone: list[tuple[Templates, str]] = field(default_factory=list)
    """Erased templates, and the old name."""

    def take(self, line: dict[str, Any]) -> None:
        if line.pop("done", False):
            self.settle(line)
            self.num_done[line["do"]] += 1
            self.pending = None
        else:
            self.pending = line

    def settle(self, action: dict[str, Any]) -> None:
        """An action was done."""
        if action["do"] == "erase":
            who = action["who"]
            erased = {name: one for name, one in self.state.items() if one[0] == who}
            self.gone.append((erased, self.names.get(who, who)))
        if action["do"] == "rename":
            self.names[action["new"]] = action["old"]
        self.state = self.after(action)

    def after(self, action: dict[str, Any]) -> Templates:
        return after(self.state, action, self.gallery)


def start(kind: str, place: Path, *more: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(HERE / "gallery_writer.py"), kind, str(place), *map(str, more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Killer:
    """Kills writers in the midst of actions, of which it learns how long they take."""

    def __init__(self) -> None:
        self._draw = random.Random(0)
        self._lasts = {kind: collections.deque([0.1], maxlen=5) for kind in KINDS}

    def kill(self, writer: subprocess.Popen[bytes], kind: str, seen: Seen) -> None:
        """Kill it at random during an action of that kind; `seen` receives its output."""
        turn, began = self._draw.randint(1, 2), time.monotonic()
        assert writer.stdout is not None
        for raw in writer.stdout:
            line = json.loads(raw)
            if line.get("done"):
                self._lasts[line["do"]].append(time.monotonic() - began)
            began = time.monotonic()
            seen.take(line)
            turn -= line["do"] == kind and seen.pending is not None
            if not turn:
                break
        time.sleep(self._draw.uniform(0, 1.2 * statistics.median(self._lasts[kind])))
        writer.send_signal(signal.SIGKILL)
        rest, said = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, said.decode()
        for raw in rest.splitlines(keepends=True):
            if raw.endswith(b"\n"):
                seen.take(json.loads(raw))


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    assert TINY["model.embedding"] == DIM
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


def check_searching(gallery: Gallery, seen: Seen, draw: random.Random) -> None:
    """Some templates are found where they are, and those that were erased are not."""
    for name in draw.sample(sorted(seen.state), min(5, len(seen.state))):
        who, path, vector, _ = seen.state[name]
        hit = gallery.search_embedding(np.frombuffer(vector, np.float32), k=1)[0]
        assert (hit.identity, hit.path, hit.hash) == (who, path, name)
        assert hit.distance == pytest.approx(0, abs=1e-3)
    for erased, _ in seen.gone:
        for who, path, vector, _ in list(erased.values())[:2]:
            for hit in gallery.search_embedding(np.frombuffer(vector, np.float32), k=3):
                assert hit.identity != who
                assert hit.path != path


def traces_of(erased: Templates, old_name: str) -> list[bytes]:
    emb = np.stack([np.frombuffer(one[2], np.float32) for one in erased.values()])
    names = {one[0] for one in erased.values()} | {old_name}
    return traces_of_vectors(emb) + traces_of_texts(
        [*names, *erased, *(one[1] for one in erased.values())]
    )


def check_bytes(place: Path, seen: Seen) -> None:
    """No file holds anything of those who were erased."""
    traces = [trace for erased, name in seen.gone for trace in traces_of(erased, name)]
    assert found_in(place, traces) == {}


def finish_erasing(gallery: Gallery, seen: Seen) -> None:
    """After a kill that left bytes: erase who is still there, or tidy up."""
    action = seen.pending
    if action is not None and action["do"] == "erase" and action["who"] in gallery.identities():
        gallery.erase(action["who"])
        seen.settle(action)
    else:
        gallery.optimize()


@pytest.mark.slow
def test_kill_9(gallery: Gallery) -> None:
    """Nothing acknowledged is lost, nothing is there by half, and erased bytes are gone."""
    place, draw, killer = Path(gallery.place), random.Random(1), Killer()
    state: Templates = {}
    hit, effective = collections.Counter[str](), collections.Counter[str]()
    for number in range(KILLS):
        seen = Seen(gallery, dict(state))
        killer.kill(start("act", place, 1000 * number, number), KINDS[number % len(KINDS)], seen)
        opened, pending = Gallery.open(place), seen.pending
        result = templates_in(opened)
        outcomes = [seen.state] if pending is None else [seen.state, seen.after(pending)]
        assert result in outcomes, (number, pending)
        assert len(opened) == len(result)
        if pending is not None:
            hit[pending["do"]] += 1
            if result != seen.state:
                effective[pending["do"]] += 1
                seen.settle(pending)
        check_searching(opened, seen, draw)
        if pending is not None:
            finish_erasing(opened, seen)
        check_searching(Gallery.open(place), seen, draw)
        check_bytes(place, seen)
        state = seen.state
    print(f"{KILLS} kills, in {dict(hit)}, of which took effect: {dict(effective)}")
    assert sum(hit.values()) > KILLS / 2
    assert templates_in(gallery) == state


@pytest.mark.slow
def test_two_writers_and_four_readers(gallery: Gallery) -> None:
    """No error, whole batches at all times, exact counts, and readers are moved on."""
    place = Path(gallery.place)
    writers = [start("fill", place, 0, SECONDS), start("tidy", place, 100_000, SECONDS)]
    readers = [start("read", place, SECONDS) for _ in range(4)]
    told = []
    for process in [*writers, *readers]:
        told.append(process.communicate(timeout=10 * SECONDS + 60))
    problems = [said.decode() for _, said in told if said]
    assert problems == []
    reports = [json.loads(out) for out, _ in told]
    left = [name for one in reports[:2] for name in one.pop("left")]
    print(f"{SECONDS:.0f} s: {reports}")
    assert reports[1]["erased"] > 0
    assert reports[1]["optimized"] > 0
    assert all(one["looks"] > 0 and one["versions"] > 1 for one in reports[2:])
    for reader in (gallery, Gallery.open(place)):
        assert reader.identities() == dict.fromkeys(sorted(left), WHOLE)
        assert len(reader) == WHOLE * len(left)
