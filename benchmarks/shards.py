"""`python -m benchmarks.shards`: reads, cache hits and time of an epoch, 10^6 to 10^9 pictures.

The first table is counted with the real sampler and the real cache, on small pictures that are
decoded from arrays: how often shards are decoded in an epoch, with windows of shards and without.

The second is a simulation, by arithmetic from the options: an epoch reads each shard once, from the
cache's folder if it is kept there, else from its source, and decodes it again. Reading, decoding
and learning run beside each other, so the slowest of them is the time of an epoch. Without
windows, each picture that is not kept is a random read of its own. The last column is the memory of
the names and labels of all pictures, which one process holds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.config import PictureSettings, SamplerSettings
from twinlens.data import pixel_shards
from twinlens.data.pixel_shards import SHARD_BYTES, PixelShards
from twinlens.data.pixels import DecodeJob
from twinlens.data.samplers import make_sampler
from twinlens.data.table import ImageTable

SIZE, NUM, IDENTITIES, PER_SHARD, IN_MEMORY = 8, 40_000, 400, 250, 16
BYTES_OF_A_NAME = 250  # with place and label, of a tar; measured by tracemalloc
COUNTED = ("decoded / pictures", "shards / batch", "ms / batch")


def counted(kept: float, windows: bool) -> tuple[float, float, float]:
    """Pictures decoded in the second epoch, a share of all; shards and milliseconds of a batch."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(IDENTITIES), NUM // IDENTITIES)
    rng.shuffle(label)  # Shards of a data set are shuffled; identities lie in several of them.
    spec = PictureSettings(size=(SIZE, SIZE), color="grey")
    pixels = np.empty(NUM, object)
    pixels[:] = list(rng.integers(0, 256, (NUM, SIZE, SIZE), np.uint8))
    names = np.array([f"{row}" for row in range(NUM)], object)
    forged, split = np.zeros(NUM, bool), np.full(NUM, "", object)
    identity = label.astype(str).astype(object)
    table = ImageTable(names, identity, forged, split, "drawn", None, pixels)
    pixel_shards.SHARD_BYTES = PER_SHARD * SIZE**2
    job = DecodeJob(table, spec, 10**6, 0.0)
    num_decoded = 0
    decode = PixelShards._decode

    def count(self: PixelShards, number: int) -> Any:
        nonlocal num_decoded
        pixels, broken = decode(self, number)
        num_decoded += len(pixels)
        return pixels, broken

    with tempfile.TemporaryDirectory() as folder:
        PixelShards._decode = count  # type: ignore[method-assign]
        budget = int(kept * job.num_bytes)
        shards = PixelShards(job, Path(folder), budget, IN_MEMORY * PER_SHARD * SIZE**2)
        shard = shards.shard_of(np.arange(NUM))
        places = (shard, shards.per_window, None) if windows else None
        sampler = make_sampler(label, forged, SamplerSettings(), 0, places)
        steps = sampler.steps_per_epoch if windows else 20
        used, pictures = 0, 0
        num_decoded, start = 0, time.perf_counter()
        for step in range(steps):
            rows = sampler.batch(step).row
            shards[rows]
            used += len(np.unique(shard[rows]))
            pictures += len(rows)
        PixelShards._decode = decode  # type: ignore[method-assign]
    return num_decoded / pictures, used / steps, (time.perf_counter() - start) / steps * 1000


def simulated(num: float, options: argparse.Namespace) -> tuple[str, ...]:
    """A row of the second table."""
    decoded = options.size**2 * 3
    kept = min(1.0, options.cache_tb * 1e12 / (num * decoded))
    missed = num * (1 - kept)
    hours = {
        "disk": num * kept * decoded / (options.disk * 1e6),
        "source": missed * options.picture_kb * 1e3 / (options.source * 1e6),
        "decoding": missed / (options.decode * options.cores),
        "learning": num / options.learn,
    }
    slowest = max(hours, key=hours.__getitem__)
    return (
        f"{num:.0e}", f"{-(-num * decoded // SHARD_BYTES):,.0f}", f"{100 * kept:.1f} %",
        f"{missed * options.picture_kb / 1e9:,.1f} TB", f"{missed:,.0f}",
        f"{hours[slowest] / 3600:,.1f} h ({slowest})", f"{num * BYTES_OF_A_NAME / 1e9:,.1f} GB",
    )  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    for name, value, text in (
        ("size", 224, "height and width of decoded pictures"),
        ("picture-kb", 60, "kB of a picture's file"),
        ("cache-tb", 2, "TB of the cache"),
        ("disk", 2000, "MB/s of the cache's disk"),
        ("source", 1000, "MB/s of the source, such as an object store"),
        ("decode", 400, "pictures a second that one core decodes"),
        ("cores", 32, "cores that decode"),
        ("learn", 3000, "pictures a second that are learned from"),
    ):
        help = f"{text} (default {value})"
        parser.add_argument(f"--{name}", type=float, default=value, help=help)
    options = parser.parse_args(words)
    print("counted, 40,000 pictures in 160 shards, 16 of them in memory:")
    print("| kept | windows | " + " | ".join(COUNTED) + " |")
    for kept in (0.0, 0.5):
        for windows in (True, False):
            decoded, used, ms = counted(kept, windows)
            print(f"| {kept:.0%} | {windows} | {decoded:.2f} | {used:.1f} | {ms:.1f} |", flush=True)
    print("\nsimulated:")
    print("| pictures | shards | kept | read from the source | random reads without windows |"
          " an epoch | names |")  # fmt: skip
    for power in range(6, 10):
        print("| " + " | ".join(simulated(10.0**power, options)) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
