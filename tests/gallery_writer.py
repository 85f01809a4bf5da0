"""Processes that use a gallery concurrently, or until they are killed.

`python gallery_writer.py act PLACE FIRST SEED` enrols, erases, renames and optimizes at random,
without end. It prints a line of JSON before each action, and the same line with `"done": true` once
the call returned. FIRST is the number of the first batch that it enrols, so that no two processes
make the same templates; `batch(number)` says again what is in one.

`python gallery_writer.py fill PLACE FIRST SECONDS`, `tidy` the same: enrols batches of 10, and with
`tidy` erases some again and optimizes; prints the identities that it leaves.

`python gallery_writer.py read PLACE SECONDS` looks, and prints what it saw.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 16
WHOLE = 10
"""Templates of a batch of `fill`."""
FEWEST_TURNS = 5
FEWEST, MOST = 4, 40
"""Identities that a writer keeps a gallery between."""


@dataclass(frozen=True)
class Batch:
    """Templates of one identity, enrolled in one call."""

    identity: str
    path: list[str]
    hash: list[str]
    emb: NDArray[np.float32]
    metadata: list[dict[str, Any]]


def hash_of(number: int, at: int) -> str:
    return hashlib.blake2b(f"{number} {at}".encode(), digest_size=16).hexdigest()


def batch(number: int, num: int | None = None) -> Batch:
    rng = np.random.default_rng(number)
    num = int(rng.integers(1, 40)) if num is None else num
    emb = rng.standard_normal((num, DIM)).astype(np.float32)
    return Batch(
        f"person-{number:07d}",
        [f"/pictures/{number:07d}-{at:03d}.png" for at in range(num)],
        [hash_of(number, at) for at in range(num)],
        emb,
        [{"at": at, "batch": number} for at in range(num)],
    )


def actions(names: list[str], first: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Random actions without end; `names`, the enrolled identities, is updated."""
    number = first
    while True:
        weights = [4, 2 * (len(names) > FEWEST), 2 * (len(names) > FEWEST), 2]
        if len(names) > MOST:
            weights[0], weights[1] = 0, 6
        kind = draw.choices(["enrol", "erase", "rename", "optimize"], weights)[0]
        if kind == "enrol":
            yield {"do": kind, "batch": number}
            names.append(batch(number).identity)
            number += 1
        elif kind == "erase":
            who = draw.choice(names)
            yield {"do": kind, "who": who}
            names.remove(who)
        elif kind == "rename":
            old, new = draw.choice(names), f"renamed-{number:07d}-{draw.randrange(10**6):06d}"
            yield {"do": kind, "old": old, "new": new}
            names[names.index(old)] = new
        else:
            yield {"do": kind, "partitions": draw.choice([0, 0, 2, 3])}


def perform(gallery: Any, action: dict[str, Any]) -> None:
    match action["do"]:
        case "enrol":
            enrol(gallery, batch(action["batch"]))
        case "erase":
            gallery.erase(action["who"])
        case "rename":
            gallery.rename(action["old"], action["new"])
        case "optimize":
            gallery.optimize(partitions=action["partitions"])


def enrol(gallery: Any, new: Batch) -> None:
    gallery.enrol_embeddings(
        new.emb,
        [new.identity] * len(new.emb),
        fingerprint=gallery.fingerprint,
        path=new.path,
        hash=new.hash,
        metadata=new.metadata,
    )


def act(gallery: Any, first: int, seed: int) -> None:
    for action in actions(list(gallery.identities()), first, random.Random(seed)):
        say(action)
        perform(gallery, action)
        say(action | {"done": True})


def say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def fill(gallery: Any, first: int, seconds: float, *, tidy: bool) -> None:
    end, left, draw = time.monotonic() + seconds, [], random.Random(first)
    turn = num_erased = num_optimized = 0
    while time.monotonic() < end or turn < FEWEST_TURNS:
        new = batch(first + turn, WHOLE)
        enrol(gallery, new)
        left.append(new.identity)
        turn += 1
        if tidy and turn % 3 == 0:
            gallery.erase(left.pop(draw.randrange(len(left))))
            num_erased += 1
        if tidy and turn % 5 == 0:
            gallery.optimize(partitions=draw.choice([0, 0, 0, 3]))
            num_optimized += 1
    say({"left": left, "enrolled": turn, "erased": num_erased, "optimized": num_optimized})


def read(gallery: Any, seconds: float) -> None:
    """Check that reads see whole batches only, whatever other processes do."""
    end, looks, rng = time.monotonic() + seconds, 0, np.random.default_rng(0)
    versions = set()
    while time.monotonic() < end:
        counts = gallery.identities()
        assert set(counts.values()) <= {WHOLE}, counts
        assert len(gallery) % WHOLE == 0
        probe = rng.standard_normal(DIM).astype(np.float32)
        hits = gallery.search_embedding(probe, k=5)
        assert all(a.distance <= b.distance for a, b in itertools.pairwise(hits))
        assert len(hits) == 5 or len(gallery) < 50
        gallery.identify_embedding(probe)
        versions.add(gallery.store.version)
        looks += 1
    say({"looks": looks, "versions": len(versions)})


def main(kind: str, place: str, *more: str) -> None:
    from twinlens.gallery.gallery import Gallery

    gallery = Gallery.open(place)
    match kind:
        case "act":
            act(gallery, int(more[0]), int(more[1]))
        case "fill" | "tidy":
            fill(gallery, int(more[0]), float(more[1]), tidy=kind == "tidy")
        case "read":
            read(gallery, float(more[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
