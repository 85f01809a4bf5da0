"""`python -m benchmarks.scale`: embedding by several processes, and the cost of 10^8 pictures.

Made-up photographs (JPEG, 640 x 480, 75 kB) are embedded with EfficientNet-lite0 at 224 pixels,
with random weights, or with MODEL. For each number of workers, in turns: whole commands
`twinlens embed --workers N`; and the bare loop, which decodes, resizes and runs the graph in as
many processes with a share of the files each, and writes, rates and checks nothing. Two numbers of
pictures tell the start of a command from its rate. `--ray` adds the engine ray on this machine.

The cost of `--total` pictures follows from the rate of one core, by arithmetic: nothing of that
size was run. Prices, cores and efficiency are options.

Prediction: ours has 0.95 of the bare loop's rate, since the network takes four fifths of the time,
quality and writing a twentieth; two workers on two cores have 1.9 times the rate of one with one
thread, and the same as one with two threads; Ray costs five seconds more at the start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.photographs import write_photographs
from twinlens.data.table import ImageTable

PICTURE_BYTES, ROW_BYTES = 75_000, 128 * 4 + 100
"""Bytes of a photograph, and of a row of 128 numbers with its path."""


def bare(graph: str, files: list[str], size: int) -> int:
    """Decode, resize and run the graph, with one thread; returns the number of embeddings."""
    import onnxruntime as ort
    from PIL import Image

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    num = 0
    for path in files:
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * size, 2 * size))
            pixels = np.asarray(picture.convert("RGB").resize((size, size)))
        num += len(session.run(None, {"pixels": pixels[None]})[0])
    return num


def seconds_bare(graph: Path, files: list[str], size: int, workers: int) -> float:
    """Seconds of the bare loop in several new processes."""
    start = time.perf_counter()
    shares = [files[number::workers] for number in range(workers)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        runs = [pool.submit(bare, str(graph), share, size) for share in shares]
        assert sum(run.result() for run in runs) == len(files)
    return time.perf_counter() - start


def seconds_ours(model: Path, data: Path, more: list[str], cores: int) -> float:
    """Seconds of `twinlens embed` from a shell, on some cores."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["embed", str(model), str(data), "--out", f"{folder}/e.parquet", "--quiet", *more]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "twinlens", *words], check=True, stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, range(cores)),
        )  # fmt: skip
        return time.perf_counter() - start


def measured(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int, float, float]]:
    """Name, workers, seconds of the start and pictures a second of each kind of run."""
    from twinlens.match.matcher import Matcher
    from twinlens.model.stored import GRAPH

    model = args.model or _lite0(folder / "model")
    matcher = Matcher.load(model)
    graph, size = matcher.path / GRAPH, matcher.picture.size[0]
    data: dict[int, list[str]] = {}
    for num in (args.pictures // 4, args.pictures):
        (place := folder / str(num)).mkdir()
        data[num] = write_photographs(place, num).path.tolist()
    cores = len(os.sched_getaffinity(0))
    for workers in args.workers:
        names = ["ours", "bare", *(["ray"] if args.ray else [])]
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(args.rounds):
            for num, files in data.items():
                for name in names:
                    more = ["--workers", str(workers), *(["--engine", "ray"] * (name == "ray"))]
                    seconds.setdefault((name, num), []).append(
                        seconds_bare(graph, files, size, workers)
                        if name == "bare"
                        else seconds_ours(matcher.path, folder / str(num), more,
                                          min(workers, cores))
                    )  # fmt: skip
        few, many = data
        for name in names:
            short, long = (statistics.median(seconds[name, num]) for num in (few, many))
            rate = (many - few) / (long - short)
            yield name, workers, short - few / rate, rate


def _lite0(folder: Path) -> Path:
    from benchmarks.answering import MODELS, _saved

    return _saved(folder, *MODELS["lite0"][:2]).path


def bytes_of_a_row(num: int = 100_000) -> float:
    """Memory of a table of files for each picture."""
    import tracemalloc

    tracemalloc.start()
    table = ImageTable.of_rows(
        ((f"/data/products/{row // 8:08d}/{row:09d}.jpg", f"{row // 8:08d}", False, "")
         for row in range(num)), "data", None,
    )  # fmt: skip
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(table)


def cost(args: argparse.Namespace, rate: float) -> Iterator[str]:
    """Machines, hours and price of `args.total` pictures, by arithmetic."""
    each = rate * args.cores * args.efficiency
    hours = args.total / each / 3600
    row = bytes_of_a_row()
    yield (
        f"{args.total:,} pictures at {rate:.1f} a second and core, {args.cores} cores a machine, "
        f"efficiency {args.efficiency:g}: {each:,.0f} a second and machine"
    )
    yield "| machines | hours | machine hours | price | read by each, MB/s | results, MB/s |"
    yield "|---|---|---|---|---|---|"
    for num in args.machines:
        yield (
            f"| {num} | {hours / num:,.1f} | {hours:,.0f} | {hours * args.price:,.0f} | "
            f"{each * PICTURE_BYTES / 1e6:,.0f} | {num * each * ROW_BYTES / 1e6:,.1f} |"
        )
    yield (
        f"pictures {args.total * PICTURE_BYTES / 1e12:,.1f} TB, embeddings "
        f"{args.total * ROW_BYTES / 1e9:,.0f} GB; the first process holds a table of {row:.0f} "
        f"bytes a picture: {args.total * row / 1e9:,.1f} GB in one command, "
        f"{args.total * row / 1e9 / args.commands:,.2f} GB in each of {args.commands} commands"
    )


def main() -> None:
    """Measure, then print the cost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("model", nargs="?", type=Path, help="model of colour pictures (lite0)")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="measure the engine ray too")
    parser.add_argument("--rate", type=float, help="pictures a second and core, not measured")
    parser.add_argument("--total", type=int, default=10**8)
    parser.add_argument("--cores", type=int, default=64, help="of a machine")
    parser.add_argument("--efficiency", type=float, default=0.8, help="of all cores beside one")
    parser.add_argument("--price", type=float, default=2.5, help="of a machine and hour")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--commands", type=int, default=100)
    args = parser.parse_args()
    rate = args.rate
    if rate is None:
        print("| | workers | start, s | pictures a second | of the bare loop |")
        print("|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            rows = list(measured(args, Path(folder)))
        rates = {(name, workers): speed for name, workers, _, speed in rows}
        for name, workers, start, speed in rows:
            share = speed / rates["bare", workers]
            print(f"| {name} | {workers} | {start:.1f} | {speed:.1f} | {share:.2f} |")
        rate = rates["ours", min(args.workers)] / min(args.workers)
    print("\n".join(cost(args, rate)))


if __name__ == "__main__":
    main()
