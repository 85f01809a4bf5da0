"""Training on GPUs beside its limit, the bare step on one batch that lies on the GPU.

    python -m benchmarks.training_gpu [--steps N] [--small]

ViT-S and ResNet50 at 224 in bfloat16: pictures a second by the loop, from a memory-mapped file as
in a training of many pictures; the most memory; the same compiled; large batches in chunks; reading
JPEG files beside learning; and N processes beside one. `--small` takes small networks and pictures,
so that a machine without a GPU runs every line; its figures say nothing about GPUs.

Prediction: 0.97 of the limit, since a batch is read on a thread and copied beside computation, and
the host waits for the loss once a step. N processes: 0.9 N for ResNet50 on one machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peak import peak_mb
from benchmarks.photographs import write_photographs
from benchmarks.table import Line, heading
from benchmarks.timing import Row
from twinlens.config import Settings
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.samplers import make_sampler
from twinlens.learn.loop import LabelledPixels, fit
from twinlens.learn.objective import Objective
from twinlens.learn.run_folder import RunFolder
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute, choose_compute, compiled
from twinlens.model.device import keep_freed_memory
from twinlens.model.encoder import Encoder

BARE = "its limit, the bare step on one batch"
LARGE = ({"vit_small_patch16_224": 224, "resnet50": 224}, (32, 4), 1024)
SMALL = ({"vit_tiny_patch16_224": 224, "resnet18": 64}, (4, 2), 48)
"""Networks with the sizes of their pictures; identities and pictures of a batch; all pictures."""


def lines(steps: int, *, small: bool) -> Iterator[Line]:
    keep_freed_memory()
    networks, (labels, each), num = SMALL if small else LARGE
    with tempfile.TemporaryDirectory() as top:
        for name, size in networks.items():
            settings = _settings(name, size, labels, each, steps)
            compute = choose_compute(settings.model, settings.train)
            pool = _pool(Path(top) / name, num, size, labels)
            batch = labels * each
            for is_compiled in (False, True):
                train = settings.train.model_copy(update={"compile": is_compiled})
                yield _beside_bare(pool, settings.model_copy(update={"train": train}), compute)
            yield _in_chunks(pool, settings, compute, batch)
        yield from _from_files(Path(top), steps, small=small)


def _settings(name: str, size: int, labels: int, each: int, steps: int) -> Settings:
    values: dict[str, Any] = {
        "picture": {"size": (size, size)},
        "model": {"backbone": name},
        "sampler": {"labels_per_batch": labels, "images_per_label": each},
        "augment": {"flip": True, "rotate": 8.0, "brightness": 0.1},
        "optimizer": {"rate": 1e-6},  # The pictures are noise: faster learning would collapse.
        "train": {"steps": steps, "validations": 1},
    }
    return Settings.model_validate(values)


def _pool(path: Path, num: int, size: int, labels: int) -> LabelledPixels:
    """Random pictures in a memory-mapped file."""
    shape = (num, 3, size, size)
    pixels = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.uint8, shape)
    pixels[:] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return LabelledPixels.of(pixels, np.arange(num) % (2 * labels), np.zeros(num, dtype=bool))


def _beside_bare(pool: LabelledPixels, settings: Settings, compute: Compute) -> Line:
    how = ", compiled" if settings.train.compile else ""
    size, name = settings.picture.size[0], settings.model.backbone
    batch = settings.sampler.labels_per_batch * settings.sampler.images_per_label
    rounds = 2 if settings.train.compile else 3  # Each compiles anew.
    pairs = [
        (_loop(pool, settings, compute), _bare(pool, settings, compute)) for _ in range(rounds)
    ]
    what = f"{name} at {size}, a step of {batch} from a file ({compute}{how})"
    row = Row.of(what, BARE, pairs)
    rate = batch / row.ours
    note = f"{rate:.4g} pictures/s; most memory of the loop {_most_memory(compute)}"
    return row.line("at least 0.95 of the limit", 0.95, note)


def _in_chunks(pool: LabelledPixels, settings: Settings, compute: Compute, batch: int) -> Line:
    """Batches that are four times as large, with the graph of half of one in memory."""
    sampler = settings.sampler.model_copy(
        update={"images_per_label": 4 * settings.sampler.images_per_label}
    )
    train = settings.train.model_copy(update={"chunk": 2 * batch})
    large = settings.model_copy(update={"sampler": sampler})
    whole = _loop(pool, large, compute)
    memory = _most_memory(compute)
    parts = _loop(pool, large.model_copy(update={"train": train}), compute)
    return Line(
        f"{settings.model.backbone}, batches of {4 * batch} in chunks of {2 * batch}",
        "the same at once", f"{parts:.3g} s a step, {_most_memory(compute)}",
        f"{whole:.3g} s a step, {memory}",
        f"theirs / ours {whole / parts:.2f}", "a second forward pass: 0.75",
    )  # fmt: skip


def _from_files(top: Path, steps: int, *, small: bool) -> Iterator[Line]:
    """Decoding of JPEG files, beside the time in which a GPU learns from them; processes."""
    files = top / "files"
    files.mkdir()
    table = write_photographs(files, 48 if small else 512)
    for path, identity in zip(table.path, table.identity, strict=True):
        folder = top / "photographs" / identity
        folder.mkdir(parents=True, exist_ok=True)
        Path(path).rename(folder / Path(path).name)
    table = read_table(top / "photographs")
    networks, (labels, each), _ = SMALL if small else LARGE
    name, size = list(networks.items())[-1]
    settings = _settings(name, size, labels, each, steps)
    compute = choose_compute(settings.model, settings.train)
    begun = time.perf_counter()
    decoded = decode_table(table, settings.picture, max_pixels=10**8, max_broken=0)
    seconds = (time.perf_counter() - begun) / len(table)
    pool = LabelledPixels.of(decoded.pixels, decoded.table.labels(), decoded.table.forged)
    learning = _loop(pool, settings, compute) / (labels * each)
    yield Line(
        f"decoding JPEG files to {size}, all cores", f"learning of {name}",
        f"{1 / seconds:.4g} pictures/s", f"{1 / learning:.4g} pictures/s",
        f"ours / theirs {learning / seconds:.2f}", "decoded once, before learning",
        note="above 1 the cores could decode beside learning without slowing it",
    )  # fmt: skip
    num = torch.cuda.device_count() or 2
    rates = [_rate_of_processes(top, settings, n) for n in sorted({1, num})]
    yield Line(
        f"`train` of {name}, the command", "the loop by itself", f"{rates[0]:.4g} pictures/s",
        f"{1 / learning:.4g} pictures/s", f"ours / theirs {rates[0] * learning:.2f}", "0.95",
        note="from its first logged step to its last",
    )  # fmt: skip
    if num > 1:
        yield Line(
            f"{name}, {num} processes", "one process", f"{rates[-1]:.4g} pictures/s",
            f"{rates[0]:.4g} pictures/s", f"ours / theirs {rates[-1] / rates[0]:.2f}",
            f"at least {0.9 * num:.2g} with a GPU each",
        )  # fmt: skip


def _rate_of_processes(top: Path, settings: Settings, num: int) -> float:
    """Pictures a second of `twinlens train --devices`, after the first step."""
    sampler = settings.sampler
    run = RunFolder(top / f"run-{num}")
    values = {
        "picture.size": list(settings.picture.size), "train.candidates": False,
        "model.pretrained": False, "train.refit": False, "train.extend": False,
        "train.validations": 1,
        "sampler.labels_per_batch": sampler.labels_per_batch,
        "sampler.images_per_label": sampler.images_per_label,
    }  # fmt: skip
    words = [f"--set={key}={str(value).lower()}" for key, value in values.items()]
    subprocess.run(
        [sys.executable, "-m", "twinlens", "train", str(top / "photographs"), "--out",
         str(run.path), "--devices", str(num), "--backbone", settings.model.backbone,
         "--steps", str(settings.train.steps), "--quiet", *words],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    rows = run.read_history(10**9)
    first, last = rows[len(rows) // 2], rows[-1]
    pictures = sampler.labels_per_batch * sampler.images_per_label
    return pictures * (last.step - first.step) / (last.seconds - first.seconds)


def _loop(pool: LabelledPixels, settings: Settings, compute: Compute) -> float:
    """Seconds of a step of a training, without the first ones."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    encoder, comparator = Encoder(settings.model, settings.picture), make_comparator("cosine", 128)
    at = list[float]()
    fit(
        encoder, comparator, pool, None, settings,
        compute=compute, on_step=lambda _: at.append(time.perf_counter()),
    )  # fmt: skip
    return _each(at)


def _each(at: list[float]) -> float:
    """Seconds of a step, of the moments at which steps ended; half of them warm up."""
    half = len(at) // 2
    return (at[-1] - at[half]) / (len(at) - 1 - half)


def _bare(pool: LabelledPixels, settings: Settings, compute: Compute) -> float:
    encoder, comparator = Encoder(settings.model, settings.picture), make_comparator("cosine", 128)
    compute.place(encoder)
    encoder.train()
    network = compiled(encoder) if settings.train.compile else encoder
    objective = Objective(settings.loss, comparator, int(pool.label.max()) + 1, 128)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
    batch = make_sampler(pool.label, pool.forged, settings.sampler, 0).batch(0)
    pictures = torch.from_numpy(pool.take(batch.row)).to(compute.device).float() / 255
    assert settings.train.steps is not None
    at = list[float]()
    for _ in range(settings.train.steps):
        with compute.autocast():
            emb_BD = network(pictures)
        loss = objective(emb_BD.float(), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # Waits for the GPU, as the loop does.
        at.append(time.perf_counter())
    return _each(at)


def _most_memory(compute: Compute) -> str:
    if compute.on_gpu:
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU"
    return f"{peak_mb():.0f} MB of the process so far"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="at least 4")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        print("found no GPU: --small runs every line without one", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{heading()}; {gpu}")
    for line in lines(args.steps, small=args.small):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
