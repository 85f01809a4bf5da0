"""The service: requests a second and latencies of verify and identify, beside the bare runtime.

The model is EfficientNet-lite0 at 224 with random weights, the gallery holds 100,000 made-up
templates, pictures are JPEG files of 640 x 480. Both sides of a line are measured in turns. The
bare runtime is a pool of threads that calls the same functions with the same bytes: decode, embed,
compare. Clients run in a process of their own, on the same cores; a refused client waits as it is
told. Beside them two servers that one writes in an afternoon: FastAPI with torch, and LitServe with
ONNX Runtime, both of which compare embeddings with numpy.

`python -m benchmarks.service --minutes 30` is another measurement: verify, identify and enrol, two
workers of which one is killed every ten seconds; memory, and whether any acknowledged template is
lost.

Prediction: HTTP costs 0.3 ms, two bodies of 75 kB and their form 0.5 ms more, clients take a
twentieth of the cores: 0.9 of the bare runtime with 8 clients, less with one. At twice the capacity
half is refused at once, and the others wait for a queue of constant length: p99 is twice p50.
FastAPI with torch reaches a third of ours, LitServe four fifths; both answer everybody late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.photographs import write_photographs
from benchmarks.service_load import Client, Outcome, Plan, apply_load, multipart, raw
from benchmarks.table import Line
from benchmarks.venvs import SCRIPTS, interpreter
from twinlens.gallery.gallery import Gallery
from twinlens.machine import num_threads
from twinlens.match.matcher import Matcher

CLIENTS, ROUNDS, SECONDS = (1, 4, 16, 64), 4, 3.0
TEMPLATES, PER_IDENTITY = 100_000, 4
AIM, LATE = 0.9, 4.0
PICTURES, DIRECTIONS = 16, 12
OURS = ("-m", "twinlens", "serve")


def lines() -> Iterator[Line]:
    """Each row of the table, with its aim."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        things = _Things(folder)
        words = ["--model", things.model, "--gallery", things.gallery]
        with served(words, folder) as (_, one):
            for what in ("verify", "identify"):
                yield _beside_bare(what, one, things, "one process")[0]
        with served([*words, "--workers", str(num_threads())], folder) as (_, ours):
            for what in ("verify", "identify"):
                line, capacity = _beside_bare(what, ours, things, "a process for each core", AIM)
                yield line
                yield from _by_clients(what, ours, things)
                yield _overload(what, "twinlens", ours, things, capacity)
            for peer in ("torch", "litserve"):
                with _peer(peer, things, folder) as theirs:
                    for what in ("verify", "identify by form"):
                        line, capacity = _beside_peer(peer, what, ours, theirs, things)
                        yield line
                        yield _overload(what, peer, theirs, things, capacity)


class _Things:
    """A model, a gallery, and requests in files."""

    def __init__(self, folder: Path) -> None:
        from benchmarks.answering import MODELS, _saved

        stored = _saved(folder / "lite0", *MODELS["lite0"][:2])
        self.model, self.gallery = str(stored.path), str(folder / "gallery")
        photographs = folder / "photographs"
        photographs.mkdir()
        self.pictures = [
            Path(path).read_bytes() for path in write_photographs(photographs, PICTURES).path
        ]
        matcher = Matcher(stored)
        gallery = Gallery.create(Path(self.gallery), matcher)
        self.embeddings = _spread(matcher.embed(self.pictures))
        gallery.enrol_embeddings(
            self.embeddings, [f"person {number // PER_IDENTITY}" for number in range(TEMPLATES)],
            fingerprint=gallery.fingerprint,
        )  # fmt: skip
        gallery.optimize()
        pairs = [(a, self.pictures[(n + 1) % PICTURES]) for n, a in enumerate(self.pictures)]
        requests = {
            "verify": [multipart("/v1/verify", [("a", a), ("b", b)]) for a, b in pairs],
            "identify": [raw("/v1/identify", a) for a, _ in pairs],
            # The peers take no raw bodies.
            "identify by form": [multipart("/v1/identify", [("picture", a)]) for a, _ in pairs],
        }
        self.requests: dict[str, tuple[str, ...]] = {}
        for what, each in requests.items():
            files = [folder / f"{what}-{number}.http" for number in range(PICTURES)]
            for file, request in zip(files, each, strict=True):
                file.write_bytes(request)
            self.requests[what] = tuple(str(file) for file in files)


def _spread(emb_PD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Templates around embeddings: as those of real networks, most of them along few directions."""
    rng = np.random.default_rng(0)
    length, dim = np.linalg.norm(emb_PD, axis=1).mean(), emb_PD.shape[1]
    turn = np.linalg.qr(rng.normal(size=(dim, DIRECTIONS)))[0]
    steps_ND = rng.normal(size=(TEMPLATES, DIRECTIONS)) @ turn.T / DIRECTIONS**0.5
    steps_ND += 0.1 * rng.normal(size=(TEMPLATES, dim)) / dim**0.5
    around_ND = emb_PD[np.arange(TEMPLATES) % len(emb_PD)]
    return np.asarray(around_ND + 0.5 * length * steps_ND, dtype=np.float32)


@contextmanager
def served(
    words: Sequence[str], folder: Path, command: Sequence[str] = OURS,
    python: str | Path = sys.executable,
) -> Iterator[tuple[subprocess.Popen[str], str]]:  # fmt: skip
    """A server that prints its address, ended at the end; its log is in the folder."""
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [str(python), *command, "--port", "0", *words],
            stdout=subprocess.PIPE, stderr=log, text=True, process_group=0,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("serving at ")
        _wait(address)
        yield process, address
    finally:
        # LitServe goes on after SIGTERM.
        os.killpg(process.pid, signal.SIGTERM if command == OURS else signal.SIGKILL)
        process.communicate(timeout=60)


def _wait(address: str) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=60).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"no server at {address}")


# --- the lines ---


def _beside_bare(
    what: str, address: str, things: _Things, processes: str, aim: float | None = None
) -> tuple[Line, float]:
    with _bare(what, things) as bare:
        rounds = []
        for _ in range(ROUNDS + 1):
            theirs = bare(SECONDS)
            ours = apply_load(Plan(address, things.requests[what], SECONDS, clients=8))
            rounds.append((ours.per_second, theirs))
    ratios = sorted(ours / theirs for ours, theirs in rounds[1:])
    ours, theirs = (median(side) for side in zip(*rounds[1:], strict=True))
    return Line(
        f"`{what}`, 8 clients, {processes}", f"the bare runtime, {num_threads()} threads",
        f"{ours:.1f}/s", f"{theirs:.1f}/s",
        f"ours / theirs {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "" if aim is None else f"{aim:g} x", None if aim is None else median(ratios) >= aim,
    ), ours  # fmt: skip


def _by_clients(what: str, address: str, things: _Things) -> Iterator[Line]:
    for clients in CLIENTS:
        outcome = apply_load(Plan(address, things.requests[what], SECONDS, clients=clients))
        yield Line(
            f"`{what}`, {clients} client{'s' * (clients > 1)}", "", _shown(outcome), "",
            f"p99 / p50 {outcome.quantile(0.99) / outcome.quantile(0.5):.1f}, "
            f"{outcome.share('503'):.0%} refused (503)",
        )  # fmt: skip


def _overload(what: str, name: str, address: str, things: _Things, capacity: float) -> Line:
    plan = Plan(address, things.requests[what], 2 * SECONDS, rate=2 * capacity)
    outcome = apply_load(plan)
    late = outcome.quantile(0.99) / outcome.quantile(0.5)
    answered = outcome.share("200") + outcome.share("503")
    is_ours = name == "twinlens"
    return Line(
        f"`{what}` at twice its capacity ({2 * capacity:.0f}/s sent), {name}", "",
        _shown(outcome), "",
        f"p99 / p50 {late:.1f}; {outcome.share('200'):.0%} answered, "
        f"{outcome.share('503'):.0%} refused (503), {1 - answered:.0%} neither",
        f"p99 under {LATE:g} x p50, the rest 503" if is_ours else "",
        late < LATE and answered == 1 if is_ours else None,
    )  # fmt: skip


def _beside_peer(
    peer: str, what: str, ours: str, theirs: str, things: _Things
) -> tuple[Line, float]:
    rounds = []
    for _ in range(ROUNDS + 1):
        a, b = (
            apply_load(Plan(address, things.requests[what], SECONDS, clients=8))
            for address in (ours, theirs)
        )
        rounds.append((a, b))
    ratios = sorted(a.per_second / b.per_second for a, b in rounds[1:])
    middle = rounds[len(rounds) // 2]
    return Line(
        f"`{what}`, 8 clients", peer, _shown(middle[0]), _shown(middle[1]),
        f"ours / theirs {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
    ), median(b.per_second for _, b in rounds[1:])  # fmt: skip


def _shown(outcome: Outcome) -> str:
    p50, p99 = (1000 * outcome.quantile(q) for q in (0.5, 0.99))
    return f"{outcome.per_second:.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms"


# --- the sides ---


@contextmanager
def _bare(what: str, things: _Things) -> Iterator[Callable[[float], float]]:
    """Answers a second, for some seconds, of the same functions on a pool of threads."""
    threads = num_threads()
    matcher = Matcher.load(things.model, threads=1)
    gallery = Gallery.open(things.gallery, threads=1)
    pictures = things.pictures

    def verify(number: int) -> object:
        return matcher.verify(pictures[number % PICTURES], pictures[(number + 1) % PICTURES])

    def identify(number: int) -> object:
        return gallery.identify(pictures[number % PICTURES])

    one = verify if what == "verify" else identify

    def until(end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            one(count)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, user_api="blas"):

        def run(seconds: float) -> float:
            end = time.perf_counter() + seconds
            started = time.perf_counter()
            total = sum(pool.map(until, [end] * threads))
            return total / (time.perf_counter() - started)

        run(1)
        yield run


@contextmanager
def _peer(name: str, things: _Things, folder: Path) -> Iterator[str]:
    np.save(folder / "templates.npy", things.embeddings)
    command = [str(SCRIPTS / f"serve_{name}.py")]
    words = ["--model", things.model, "--templates", str(folder / "templates.npy")]
    # torch comes with CUDA, 6 GB: it is taken from here.
    python = sys.executable if name == "torch" else interpreter(name)
    with served(words, folder, command, python) as (_, address):
        yield address


# --- half an hour ---


def soak(
    model: str, gallery: str, pictures: Sequence[bytes], seconds: float, folder: Path
) -> dict[str, Any]:
    """Mixed load on two workers, of which the younger one is killed every ten seconds.

    Returns:
        Figures: requests by status, templates acknowledged and those of them that are missing,
        workers killed, and the resident memory of the oldest worker after a quarter of the time
        and at the end, in MB.
    """
    acknowledged: list[str] = []
    statuses: dict[str, int] = {}
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def client(number: int, address: str) -> None:
        count = 0
        while time.monotonic() < end:
            picture = pictures[(number + count) % len(pictures)]
            identity = f"soak {number} {count}"
            kind = ("verify", "identify", "enrol")[count % 3]
            status = _ask(kind, address, picture, pictures[number % len(pictures)], identity)
            with lock:
                statuses[f"{kind} {status}"] = statuses.get(f"{kind} {status}", 0) + 1
                if kind == "enrol" and status in (200, 201):
                    acknowledged.append(identity)
            count += 1

    words = ["--model", model, "--gallery", gallery, "--workers", "2"]
    killed, memory = 0, []
    with served(words, folder) as (process, address):
        threads = [threading.Thread(target=client, args=(n, address)) for n in range(4)]
        for thread in threads:
            thread.start()
        oldest = workers_of(process.pid)[0]
        quarter = time.monotonic() + seconds / 4
        next_kill = time.monotonic() + 10
        while time.monotonic() < end:
            time.sleep(1)
            if time.monotonic() > quarter:
                memory.append(_resident_mb(oldest))
            if time.monotonic() > next_kill:
                youngest = workers_of(process.pid)[-1]
                if youngest != oldest:
                    os.kill(youngest, signal.SIGKILL)
                    killed += 1
                next_kill = time.monotonic() + 10
        for thread in threads:
            thread.join()
    enrolled = Gallery.open(gallery).identities()
    num = max(1, len(memory) // 8)
    return {
        "statuses": statuses,
        "acknowledged": len(acknowledged),
        "missing": [identity for identity in acknowledged if identity not in enrolled],
        "killed": killed,
        "mb_after_a_quarter": median(memory[:num]),
        "mb_at_the_end": median(memory[-num:]),
    }


def _ask(kind: str, address: str, picture: bytes, other: bytes, identity: str) -> int:
    enrol = f"/v1/galleries/gallery/templates?identity={quote(identity)}"
    requests = {
        "verify": multipart("/v1/verify", [("a", picture), ("b", other)]),
        "identify": multipart("/v1/identify", [("picture", picture)]),
        # Bytes behind the picture make it another file: one enrolled already would be left out.
        "enrol": multipart(enrol, [("picture", picture + identity.encode())]),
    }

    async def ask() -> int:
        client = Client(address)
        status, _ = await client.ask(requests[kind])
        client.close()
        return status

    return asyncio.run(ask())


def workers_of(parent: int) -> list[int]:
    """Worker processes of a service, the oldest first."""
    table = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent), "--sort", "start_time"],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [int(row.split()[0]) for row in table.splitlines() if "spawn_main" in row]


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    """Half an hour of mixed load."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        things = _Things(folder)
        figures = soak(things.model, things.gallery, things.pictures, 60 * minutes, folder)
    print(json.dumps(figures, indent=1))
    return int(bool(figures["missing"]))


if __name__ == "__main__":
    sys.exit(main())
