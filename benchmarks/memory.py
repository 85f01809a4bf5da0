"""A large batch in the memory of a small one: gradient caching beside the batch computed whole.

Prediction: the memory of 256 pictures' graph and a few tens of megabytes for 4,096 pictures and
their distances, a gradient that differs in the sixth digit, and 1.3 to 1.4 times the time: a second
forward pass, where a step is one forward and two of its kind backward; less where the graph of the
whole leaves the cache.

The network is our `conv` without batch norm on pictures of 32x32, since with batch norm no network
has the gradient of the whole batch (see `learn.grad_cache`). Memory is what a step adds to a fresh
process: once with every large block given back to the system as it is freed, which counts what the
step needs, and once with the allocator as `twinlens train` sets it, which keeps freed memory and
its holes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.peak import peak_mb
from benchmarks.table import Line
from benchmarks.timing import compare
from twinlens.config import Settings
from twinlens.data.samplers import make_sampler
from twinlens.learn.embed_batch import BatchEmbedder, LabelledPixels
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.device import keep_freed_memory
from twinlens.model.encoder import Encoder

SMALL, LARGE, IMAGES_PER_LABEL = 256, 4096, 4
LOSSES: dict[str, dict[str, object]] = {
    "supervised contrastive": {"name": "supcon"},
    "all triplets": {"name": "triplet", "mining": "all", "margin": 0.2},
}
HOW = {
    False: "freed blocks given back at once: what the step needs",
    True: "the allocator as `twinlens train` sets it, holes among what it keeps and all",
}
"""Whether freed memory is kept -> what that counts."""

Step = Callable[[], Tensor]


def lines() -> Iterator[Line]:
    """For each loss the memory of both sides and the least there can be, then time and gradient."""
    for name, loss in LOSSES.items():
        for keep, how in HOW.items():
            small, cached, whole = (
                _peak(loss, size, chunk, keep)
                for size, chunk in ((SMALL, None), (LARGE, SMALL), (LARGE, None))
            )
            yield Line(
                f"memory of a batch of {LARGE:,} in chunks of {SMALL}, {name}",
                f"a batch of {SMALL}; whole: {whole:,.0f} MB",
                f"{cached:,.0f} MB", f"{small:,.0f} MB", f"ours / theirs {cached / small:.2f}",
                "" if keep else "at most 1.25", None if keep else cached <= 1.25 * small, how,
            )  # fmt: skip
    keep_freed_memory()
    for name, loss in LOSSES.items():
        ours, theirs = _step(loss, LARGE, SMALL), _step(loss, LARGE, None)
        away = float((ours() - theirs()).norm() / theirs().norm())
        row = compare(
            f"gradient of a batch of {LARGE:,} in chunks of {SMALL}, {name}",
            "the batch whole", ours, theirs, rounds=3,
        )  # fmt: skip
        note = f"the gradients differ by {away:.1g} of their length (aim: 1e-4)"
        line = row.line("at most 1.6x the time", 1 / 1.6, note)
        yield line
        assert away < 1e-4, note


def _step(loss: dict[str, object], size: int, chunk: int | None) -> Step:
    """A step's gradient, of all weights in one vector."""
    settings = Settings.model_validate(
        {
            "picture": {"size": (32, 32)},
            "model": {"channels": (32, 64, 64), "batch_norm": False},
            "loss": loss,
            "sampler": {
                "labels_per_batch": size // IMAGES_PER_LABEL,
                "images_per_label": IMAGES_PER_LABEL,
            },
            "train": {"chunk": chunk},
        }
    )
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
    label, genuine = np.arange(size) // IMAGES_PER_LABEL, np.zeros(size, dtype=bool)
    encoder = Encoder(settings.model, settings.picture)
    feed = BatchEmbedder(
        encoder, LabelledPixels.of(pixels, label, genuine), settings, Compute("cpu")
    )
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    objective = Objective(settings.loss, comparator, size, settings.model.embedding)
    batch = make_sampler(label, genuine, settings.sampler, 0).batch(0)

    def step() -> Tensor:
        encoder.zero_grad(set_to_none=True)
        objective(feed(batch, 0), batch).backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    return step


def _peak(loss: dict[str, object], size: int, chunk: int | None, keep: bool) -> float:
    """The megabytes that a step adds to a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(loss, size, chunk, keep, queue))
    process.start()
    peak: float = queue.get()
    process.join()
    return peak


def _measure(
    loss: dict[str, object],
    size: int,
    chunk: int | None,
    keep: bool,
    queue: multiprocessing.Queue[float],
) -> None:
    if keep:
        keep_freed_memory()
    else:
        _give_back_at_once()
    _step(loss, 32, chunk and 16)()  # What is loaded and kept for good is not counted.
    step = _step(loss, size, chunk)
    before = peak_mb()
    step()
    queue.put(peak_mb() - before)


def _give_back_at_once() -> None:
    """Tell glibc to take each block of 64 KB or more from the system and to give it back freed."""
    m_mmap_threshold = -3  # malloc.h; once it is set, it no longer grows with what is freed.
    if not ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 16):
        raise OSError("glibc's allocator took no threshold: memory is measured with it only")
