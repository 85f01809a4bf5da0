"""The training loop beside its limit, the bare step on one batch; the frozen backbone; bfloat16.

Prediction: 0.97 of the limit with a small network, whose step takes 40 ms, and drawing a batch,
turning uint8 into float and watching the guard takes one. 0.99 with ResNet50, whose step takes
seconds, and copying 2.4 MB out of a memory map takes one millisecond. Decoding beforehand is 4 % of
the first epoch: 3 ms a picture where learning takes 120. A frozen backbone: the pass, and 2 ms a
step of the head. bfloat16 twice as fast with AMX, channels last 1.2 times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.photographs import write_photographs
from benchmarks.table import Line
from benchmarks.timing import Row, compare
from twinlens.config import Settings
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.samplers import make_sampler
from twinlens.learn.features import FrozenPart
from twinlens.learn.loop import LabelledPixels, fit
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute, time_formats
from twinlens.model.device import has_bfloat16, keep_freed_memory
from twinlens.model.encoder import Encoder

STEPS = 40
BARE = "its limit, the bare step on one batch"
SETTINGS = Settings.model_validate(
    {
        "picture": {"size": (28, 28), "color": "grey"},
        "model": {"channels": (32, 64, 128)},
        "sampler": {"labels_per_batch": 16, "images_per_label": 8},
        "train": {"steps": STEPS},
    }
)

PHOTOGRAPHS, BATCH = 96, 16
RESNET = Settings.model_validate(
    {
        "picture": {"size": (224, 224)},
        "model": {"backbone": "resnet50"},
        "sampler": {"labels_per_batch": 4, "images_per_label": 4},
        "train": {"steps": PHOTOGRAPHS // BATCH},
    }
)

SHARED = Path(__file__).parents[2] / "shared"
FACES = SHARED / "data/att_faces"
WEIGHTS = SHARED / "weights/tf_efficientnet_lite0.in1k.safetensors"
EPOCHS, COMMAND_STEPS = 10, 100
FROZEN = Settings.model_validate(
    {
        "picture": {"size": (224, 224)},
        "model": {
            "backbone": "tf_efficientnet_lite0",
            "weights": str(WEIGHTS),
            "freeze": "all",
            "head": (1024, 512, 256),
            "dropout": 0.2,
            "normalize": False,
            "comparator": "squared-euclidean",
        },
        "loss": {"name": "triplet", "mining": "given"},
        "sampler": {"kind": "triplets", "batch": 256},
        "optimizer": {"name": "adam", "rate": 1e-4, "weight_decay": 0.0, "schedule": "constant"},
        "train": {"epochs": EPOCHS},
    }
)


def lines() -> Iterator[Line]:
    keep_freed_memory()  # As `twinlens train` does; for both sides.
    yield _small().line("at least 0.95 of the limit", 0.95)
    with tempfile.TemporaryDirectory() as folder:
        yield from _from_files(Path(folder))
    yield from _frozen()
    yield from _formats()
    yield from _commands()


# --- the loop -----------------------------------------------------------------------------------


def _small() -> Row:
    rng = np.random.default_rng(0)
    pool = LabelledPixels.of(
        rng.integers(0, 256, (4000, 1, 28, 28), dtype=np.uint8),
        np.arange(4000) % 40,
        np.zeros(4000, dtype=bool),
    )
    return compare(
        f"training loop, {STEPS} steps of 128 at 28x28", BARE,
        lambda: _loop(pool, SETTINGS), lambda: _bare(pool, SETTINGS), rounds=9,
    )  # fmt: skip


def _from_files(folder: Path) -> Iterator[Line]:
    """An epoch from the memory-mapped cache, and what it costs to fill that."""
    table = write_photographs(folder, PHOTOGRAPHS)
    start = time.perf_counter()
    decoded = decode_table(
        table, RESNET.picture, max_pixels=10**8, max_broken=0, cache_dir=folder / "cache",
        memory_limit=0,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    pool = LabelledPixels.of(decoded.pixels, decoded.table.labels(), decoded.table.forged)
    row = compare(
        f"training loop, ResNet50 at 224, second epoch of {PHOTOGRAPHS} JPEG files", BARE,
        lambda: _loop(pool, RESNET), lambda: _bare(pool, RESNET), rounds=3,
    )  # fmt: skip
    yield row.line("at least 0.95 of the limit", 0.95)
    share = seconds / (seconds + row.ours)
    yield Line(
        "the same, first epoch", "the second epoch", f"{seconds + row.ours:.3g} s",
        f"{row.ours:.3g} s", f"theirs / ours {1 - share:.2f}", "decoding beside learning", False,
        f"decoding everything beforehand takes {seconds:.2g} s, {share:.0%} of the first "
        "epoch, on the cores that learning needs as well: beside it, it would save no more than "
        "the moments in which a core has nothing to do",
    )  # fmt: skip


def _loop(pool: LabelledPixels, settings: Settings) -> None:
    encoder, comparator = Encoder(settings.model, settings.picture), make_comparator("cosine", 128)
    fit(encoder, comparator, pool, None, settings, compute=Compute("cpu"))


def _bare(pool: LabelledPixels, settings: Settings) -> None:
    encoder, comparator = Encoder(settings.model, settings.picture), make_comparator("cosine", 128)
    encoder.train()
    objective = Objective(settings.loss, comparator, 40, 128)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
    batch = make_sampler(pool.label, pool.forged, settings.sampler, 0).batch(0)
    pictures = torch.from_numpy(pool.take(batch.row)).float() / 255
    assert settings.train.steps is not None
    for _ in range(settings.train.steps):
        loss = objective(encoder(pictures), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


# --- the frozen backbone ------------------------------------------------------------------------


def _frozen() -> Iterator[Line]:
    if not (FACES.exists() and WEIGHTS.exists()):
        return
    decoded = decode_table(read_table(FACES), FROZEN.picture, max_pixels=10**8, max_broken=0)
    pool = LabelledPixels.of(decoded.pixels, decoded.table.labels(), decoded.table.forged)
    part = FrozenPart(Encoder(FROZEN.model, FROZEN.picture), Compute("cpu"))
    steps = EPOCHS * make_sampler(pool.label, pool.forged, FROZEN.sampler, 0).steps_per_epoch
    row = compare(
        f"frozen EfficientNet-lite0 at 224, {len(pool.label)} faces, {EPOCHS} epochs, {steps} "
        "steps of 256 triplets",
        "one pass of the backbone over the pictures",
        lambda: _head(pool), lambda: part.compute_all(pool.pixels, pool.row),
        rounds=3,
    )  # fmt: skip
    step = (row.ours - row.peer) / steps
    note = f"network and head apart from the pass: {1000 * step:.0f} ms a step"
    yield row.line("at most 1.5 times the pass (0.67)", 1 / 1.5, note)


def _head(pool: LabelledPixels) -> None:
    encoder = Encoder(FROZEN.model, FROZEN.picture)
    comparator = make_comparator(FROZEN.model.comparator, FROZEN.model.embedding)
    fit(encoder, comparator, pool, None, FROZEN, compute=Compute("cpu"))


# --- formats ------------------------------------------------------------------------------------


def _formats() -> Iterator[Line]:
    """A training step of ResNet50 in each format, in turns."""
    half = has_bfloat16("cpu")
    options = [Compute("cpu", bf, last) for bf in ([False, True] if half else [False])
               for last in (False, True)]  # fmt: skip
    encoder = Encoder(RESNET.model, RESNET.picture)
    rate = {
        (option.bfloat16, option.channels_last): BATCH / seconds
        for option, seconds in zip(
            options, time_formats(encoder, options, BATCH, rounds=3), strict=True
        )
    }
    plain, last = rate[False, False], rate[False, True]
    what = f"training step, ResNet50 at 224, batch of {BATCH}"
    yield Line(
        f"{what}, channels last", "channels first, float32", f"{last:.1f} pictures/s",
        f"{plain:.1f} pictures/s", f"ours / theirs {last / plain:.2f}",
    )  # fmt: skip
    if not half:
        yield Line(
            f"{what}, bfloat16", "float32, the faster of both", "", f"{max(plain, last):.1f} "
            "pictures/s", aim="at least 2", note="no AMX here, nor AVX512_BF16: twinlens stays "
            "with float32 on such a processor",
        )  # fmt: skip
        return
    ours, theirs = max(rate[True, False], rate[True, True]), max(plain, last)
    amx = torch.cpu._is_amx_tile_supported()
    yield Line(
        f"{what}, bfloat16", "float32, the faster of both", f"{ours:.1f} pictures/s",
        f"{theirs:.1f} pictures/s", f"ours / theirs {ours / theirs:.2f}", "at least 2",
        ours >= 2 * theirs if amx else None, "" if amx else "no AMX here",
    )  # fmt: skip


# --- the command --------------------------------------------------------------------------------


def _commands() -> Iterator[Line]:
    """`twinlens train` on 400 small faces, twice: the second time the cache has the graph."""
    if not FACES.exists():
        return
    with tempfile.TemporaryDirectory() as top:
        for turn in ("the first on a machine", "a later one"):
            start, whole, cpu = _command(Path(top), turn.split()[1])
            what = f"`train` of 400 faces, {COMMAND_STEPS} steps, {turn}"
            yield Line(
                what, "", f"{whole:.1f} s", "", aim="under 10 s", reached=whole < 10,
                note=f"{cpu:.1f} s of processor time",
            )  # fmt: skip
            yield Line(
                f"{what}: until its first step", "", f"{start:.1f} s", "", aim="under 5 s",
                reached=start < 5,
            )  # fmt: skip


def _command(top: Path, name: str) -> tuple[float, float, float]:
    """Seconds until the first step, in all, and of the processor, from a cold shell."""
    command = [sys.executable, "-m", "twinlens", "train", str(FACES), "--out", str(top / name)]
    env = {**os.environ, "TWINLENS_CACHE": str(top / "cache"), "HF_HUB_OFFLINE": "1"}
    env.pop("TWINLENS_WEIGHTS", None)
    before, started, first = os.times(), time.perf_counter(), float("nan")
    with subprocess.Popen(
        [*command, "--steps", str(COMMAND_STEPS)], env=env, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training on "):
                first = time.perf_counter() - started
    whole, after = time.perf_counter() - started, os.times()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu = sum(after[2:4]) - sum(before[2:4])
    return first, whole, cpu
