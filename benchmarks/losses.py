"""Losses and mining, forward and backward, time and memory beside pytorch-metric-learning's.

Prediction: all triplets by counting beat all triplets one by one (B^3 numbers up to 1,024, where
theirs changes to a list) by ten times at 256 and by a hundred at 1,024; mined triplets by 3.3 at
256, 5 at 1,024 and 4.5 at 4,096, since only they are differentiated; supervised contrastive loss,
which is matrix products in both, by two to four, since ours goes over blocks that fit the cache.
Memory: theirs grows with the triplets, ours with B.

The peer is written as its README writes it: a miner, where there is one, and a loss on it. Both
sides run after `keep_freed_memory`, which training calls, and which helps both.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from benchmarks.peak import peak_mb
from benchmarks.table import Line
from benchmarks.timing import compare
from twinlens.config import LossSettings
from twinlens.data.batch import Batch
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator
from twinlens.model.device import keep_freed_memory

DIM = 128
SIZES = (256, 1024, 4096)
EQUAL = 1e-5
LIMIT = 12 << 30  # bytes of address space of a measured process
FULL = 3  # how a process ends that wanted more
PEER = "pytorch-metric-learning"
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss of ours and of theirs; `same` where value and gradient must be equal."""

    what: str
    settings: dict[str, object]
    comparator: str
    peer_name: str
    peer: Callable[[], Loss]
    images_per_label: int = 4
    at_least: float | None = None
    same: bool = True
    note: str = ""


def _all() -> Loss:
    return pml.TripletMarginLoss(margin=0.2, triplets_per_anchor="all")


def _mined(miner: miners.BaseMiner, reducer: MeanReducer | None = None) -> Loss:
    loss = pml.TripletMarginLoss(margin=0.2, reducer=reducer)
    return lambda emb, label: loss(emb, label, miner(emb, label))


CASES = (
    Case("all triplets", {"name": "triplet", "mining": "all", "margin": 0.2}, "euclidean",
         "TripletMarginLoss", _all, at_least=3),
    Case("semi-hard triplets", {"name": "triplet", "mining": "semi-hard", "margin": 0.2},
         "euclidean", "TripletMarginMiner",
         lambda: _mined(miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")),
         at_least=3, same=False, note="theirs takes every semi-hard negative, ours the nearest"),
    Case("semi-hard triplets, 2 pictures a label",
         {"name": "triplet", "mining": "semi-hard", "margin": 0.2}, "euclidean",
         "BatchEasyHardMiner",
         lambda: _mined(miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="semihard")),
         images_per_label=2, at_least=3),
    Case("hardest triplets", {"name": "triplet", "mining": "hardest", "margin": 0.2}, "euclidean",
         "BatchHardMiner", lambda: _mined(miners.BatchHardMiner(), MeanReducer()), at_least=3),
    Case("contrastive", {"name": "contrastive", "margin": 1.0}, "euclidean", "ContrastiveLoss",
         lambda: pml.ContrastiveLoss(0, 1, distance=LpDistance(power=1), reducer=MeanReducer()),
         same=False, note="theirs is linear in the distance, ours squared as published"),
    Case("supervised contrastive", {"name": "supcon", "temperature": 0.1}, "cosine", "SupConLoss",
         lambda: pml.SupConLoss(temperature=0.1)),
)  # fmt: skip


def lines() -> Iterator[Line]:
    """Each case at each size: time in turns, then the memory of each side in a fresh process."""
    keep_freed_memory()
    for case in CASES:
        for size in SIZES:
            yield _line(case, size)


def _line(case: Case, size: int) -> Line:
    memory = {side: _peak(case, size, side) for side in ("ours", "theirs")}
    what = f"{case.what}, batch {size:,}"
    peer = f"{PEER} {case.peer_name}"
    aim = "" if case.at_least is None else f"{case.at_least:g}x as fast"
    assert memory["ours"] is not None
    shown = f"{memory['ours']:,.0f} MB"
    if memory["theirs"] is None:
        limit = f"more than {LIMIT >> 30} GB"
        return Line(what, peer, shown, limit, "", aim, None if not aim else True, case.note)
    ours, theirs = _steps(case, size)
    note, equal = _equality(case, size) if case.same else (case.note, True)
    rounds = 5 if size < 1024 else 2 if size < 4096 else 1
    row = compare(what, peer, ours, theirs, rounds)
    line = row.line(aim, case.at_least, note)
    return replace(
        line,
        reached=line.reached and equal,
        ours=f"{line.ours}, {shown}",
        theirs=f"{line.theirs}, {memory['theirs']:,.0f} MB",
    )


def _equality(case: Case, size: int) -> tuple[str, bool]:
    """The agreement of both in words, and whether it is within 1e-5.

    At 4,096 some of 50 million triplets lie so near the margin that float32 rounds them to either
    side of it, in which the two distances differ; and of the semi-hard ones six negatives lie less
    than 3e-7 beyond the positive, and either side passes over three of them. So where float32
    differs by more, float64 says whether both are the same loss.
    """
    value, gradient = _difference(case, size, torch.float32)
    words = f"value and gradient differ by {value:.1g} and {gradient:.1g} of the largest"
    if gradient >= EQUAL:
        value, gradient = _difference(case, size, torch.float64)
        words += f", where float32 rounds ties apart; in float64 by {value:.1g} and {gradient:.1g}"
    return words, max(value, gradient) < EQUAL


def _difference(case: Case, size: int, dtype: torch.dtype) -> tuple[float, float]:
    """The largest differences of the values and of the gradients, as shares of the largest."""
    ours, theirs = (step() for step in _steps(case, size, dtype))
    value, gradient = (
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )
    return value, gradient


Step = Callable[[], tuple[Tensor, Tensor]]


def _steps(case: Case, size: int, dtype: torch.dtype = torch.float32) -> tuple[Step, Step]:
    """The value and the gradient of the embeddings, by ours and by theirs."""
    generator = torch.Generator().manual_seed(0)
    emb_BD = torch.randn(size, DIM, generator=generator)
    emb_BD = torch.nn.functional.normalize(emb_BD, dim=1).to(dtype)
    label = np.arange(size) // case.images_per_label
    batch = Batch(np.arange(size), label, np.zeros(size, dtype=bool), np.zeros(size, dtype=int))
    settings = LossSettings.model_validate(case.settings)
    objective = Objective(settings, make_comparator(case.comparator, DIM), size, DIM)
    peer, label_B = case.peer(), torch.from_numpy(label)
    return (
        _step(emb_BD, lambda emb: objective(emb, batch)),
        _step(emb_BD, lambda emb: peer(emb, label_B)),
    )


def _step(emb_BD: Tensor, loss: Callable[[Tensor], Tensor]) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        # As the output of a network is: not normalised yet.
        raw_BD = emb_BD.clone().requires_grad_()
        value = loss(torch.nn.functional.normalize(raw_BD, dim=1))
        return value.detach(), torch.autograd.grad(value, raw_BD)[0]

    return step


def _peak(case: Case, size: int, side: str) -> float | None:
    """The megabytes that a step adds to a fresh process; None where it asks for too much."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(CASES.index(case), size, side, queue))
    process.start()
    process.join()
    if process.exitcode not in (0, FULL):
        raise ChildProcessError(f"{case.what} of {size}, {side}, ended with {process.exitcode}")
    return None if process.exitcode else float(queue.get())


def _measure(index: int, size: int, side: str, queue: multiprocessing.Queue[float]) -> None:
    case = CASES[index]
    for warm in _steps(case, 32):
        warm()
    step = _steps(case, size)[side == "theirs"]
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    before = peak_mb()
    try:
        step()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise SystemExit(FULL) from None
    queue.put(peak_mb() - before)
