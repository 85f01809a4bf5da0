"""The work of several ranks on handwritten digits, for the tests of training over processes.

As a program (`python rank_work.py SIZE FOLDER WORK...`) it runs functions of this module in SIZE
processes that talk by gloo on the loopback interface, and fails if any of them does.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from digits_run import CPU, TRAIN, VAL, digest, digit_settings
from torch import Tensor

from twinlens.config import Settings
from twinlens.data.samplers import make_sampler
from twinlens.errors import TrainingError
from twinlens.learn.embed_batch import BatchEmbedder, LabelledPixels
from twinlens.learn.learner import Learner, make_optimizer
from twinlens.learn.loop import FitResult, fit
from twinlens.learn.objective import Objective
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.run_folder import RunFolder
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.encoder import Encoder

PLAIN = {"model__batch_norm": False, "model__dropout": 0.0, "train__steps": 8}
FORGED = replace(TRAIN, forged=np.arange(len(TRAIN.label)) % 5 == 0)
LOSSES: dict[str, dict[str, Any]] = {
    "supcon": {"loss": {"name": "supcon"}},
    "supcon, forged": {"loss": {"name": "supcon", "forged_weight": 4.0}},
    "contrastive": {"loss": {"name": "contrastive"}},
    "contrastive, forged": {"loss": {"name": "contrastive"}},
    "pairs": {"loss": {"name": "contrastive"}, "sampler": {"kind": "pairs", "batch": 31}},
    "triplets": {
        "loss": {"name": "triplet", "mining": "given"}, "sampler": {"kind": "triplets", "batch": 23}
    },
    "all triplets": {"loss": {"name": "triplet", "mining": "all"}},
    "all soft triplets": {"loss": {"name": "triplet", "mining": "all", "soft": True}},
    "semi-hard": {"loss": {"name": "triplet", "mining": "semi-hard"}},
    "hardest": {"loss": {"name": "triplet", "mining": "hardest"}, "sampler__rotations": True},
    "classes": {"loss": {"name": "classes"}, "model__classes": True},
    "bce, sigmoid": {"loss": {"name": "bce"}, "model__comparator": "sigmoid"},
    "bce, network": {"loss": {"name": "bce"}, "model__comparator": "network"},
    "chunks": {"loss": {"name": "supcon"}, "train__chunk": 7},
    "frozen": {"loss": {"name": "supcon"}, "model__freeze": "all", "augment": {"flip": True}},
    "chunks, pairs": {
        "loss": {"name": "contrastive"}, "sampler": {"kind": "pairs", "mirror": True},
        "train__chunk": 9,
    },
}  # fmt: skip
LIBRARY = (
    "ArcFaceLoss", "CircleLoss", "MultiSimilarityLoss", "NTXentLoss", "ProxyAnchorLoss",
    "SoftTripleLoss", "SubCenterArcFaceLoss", "TripletMarginLoss",
)  # fmt: skip
LOSSES |= {f"pml:{name}": {"loss": {"name": f"pml:{name}"}} for name in LIBRARY}


def gradients(settings: Settings, images: LabelledPixels, ranks: Ranks) -> list[Tensor]:
    """The loss of a batch and the gradients of network, comparator and loss."""
    torch.manual_seed(0)
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    num_labels = 40 if settings.sampler.rotations else 10
    objective = Objective(settings.loss, comparator, num_labels, settings.model.embedding)
    optimizer = make_optimizer(encoder, objective, settings.optimizer)
    learner = Learner(encoder, objective, optimizer, ranks=ranks)
    embed = BatchEmbedder(encoder, images, settings, CPU, ranks=ranks)
    sampler = make_sampler(images.label, images.forged, settings.sampler, 0)
    torch.manual_seed(1)
    batch = sampler.batch(0)
    emb_BD = embed(batch, 5)
    torch.manual_seed(2)
    loss = objective(emb_BD, batch)
    learner.update(loss, 0.0, 0.0)
    grads = [p.grad for p in learner.params() if p.grad is not None]
    assert len(grads) == len(learner.params())
    assert (embed.stored is None) == (settings.model.freeze == "none")
    return [loss.detach(), *grads]


def compare_some_gradients(ranks: Ranks, folder: Path) -> None:
    """As `compare_gradients`, for losses of each kind."""
    compare_gradients(ranks, folder, ("pairs", "bce, network", "chunks", "frozen"))


def compare_gradients(ranks: Ranks, folder: Path, names: Iterable[str] = tuple(LOSSES)) -> None:
    """For each loss, the gradients of all ranks together are those of one process."""
    for name in names:
        settings = digit_settings(**PLAIN | LOSSES[name])
        images = FORGED if "forged" in name else TRAIN
        alone, together = (gradients(settings, images, each) for each in (ALONE, ranks))
        largest = max(float(grad.abs().max()) for grad in alone[1:])
        assert largest > 1e-4, name
        off = max(float((a - b).abs().max()) for a, b in zip(alone[1:], together[1:], strict=True))
        torch.testing.assert_close(together[0], alone[0])
        print(f"{name}: {off / largest:.1e} of {largest:.1e}\n", end="", flush=True)
        assert off < 1e-6 * max(largest, 0.3), f"{name}: off by {off} of {largest}"


def refuse(ranks: Ranks, folder: Path) -> None:
    """Other labels, other settings and too small a batch are one error on every rank."""
    settings = digit_settings(**PLAIN)
    other = settings.model_copy(update={"seed": ranks.rank == 1})
    label = np.where(np.arange(len(TRAIN.label)) == ranks.rank, 0, TRAIN.label)
    few = digit_settings(sampler={"kind": "pairs", "batch": 1}, loss__name="contrastive")
    for train, given, message in (
        (replace(TRAIN, label=label), settings, "other training pictures on rank 1"),
        (TRAIN, other, "other settings on rank 1"),
        (TRAIN, few, f"a batch of 2 pictures for {ranks.size} processes"),
    ):
        with pytest.raises(TrainingError, match=message):
            trained(given, ranks, train=train)


def trained(
    settings: Settings,
    ranks: Ranks,
    run: RunFolder | None = None,
    train: LabelledPixels = TRAIN,
) -> tuple[Encoder, Comparator, FitResult]:
    """A training; the initial weights differ by rank, until the first rank's are copied."""
    torch.manual_seed(ranks.rank)
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    if run is not None and ranks.is_first:
        run.start(resume=True)
    result = fit(encoder, comparator, train, VAL, settings, compute=CPU, run=run, ranks=ranks)
    return encoder, comparator, result


def train_together(ranks: Ranks, folder: Path) -> None:
    """Ranks end with equal weights, near those of one process; a loss may draw."""
    drawing = {"name": "pml:TripletMarginLoss", "args": {"triplets_per_anchor": 3}}
    plain = digit_settings(**PLAIN, loss=drawing)
    curve = digit_settings(train__steps=30, train__validations=3)
    encoder, _, result = trained(plain, ranks)
    if ranks.is_first:
        alone, _, expected = trained(plain, ALONE)
        assert result.best_metric == pytest.approx(expected.best_metric, abs=1e-3)
        for one, other in zip(alone.parameters(), encoder.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    encoder, comparator, result = trained(curve, ranks)
    assert result.best_metric is not None
    assert result.best_metric > 0.8
    same_on_all(ranks, digest(encoder, comparator), str(result.best_metric))


def end_together(ranks: Ranks, folder: Path) -> None:
    """The clock of rank 0, and the guard, stop all ranks at the same step."""
    encoder, comparator, result = trained(digit_settings(train={"time_budget": 2.5}), ranks)
    same_on_all(ranks, digest(encoder, comparator), str(result.steps))
    diverging = digit_settings(optimizer={"rate": 1e6, "name": "sgd"}, train__validations=60)
    encoder, comparator, result = trained(diverging, ranks)
    assert result.steps < 60 or not ranks.is_first
    same_on_all(ranks, digest(encoder, comparator), str(result.steps))


def resume(ranks: Ranks, folder: Path) -> None:
    """A run goes on with any number of ranks; only the first one writes its folder."""
    done = 10 * len(list(folder.glob("on-*")))
    settings = digit_settings(train__steps=done + 10, train__validations=1)
    run = RunFolder(folder / "run")
    encoder, comparator, result = trained(settings, ranks, run)
    assert result.steps == done + 10
    assert [row.step for row in result.history][-1] == result.steps or not ranks.is_first
    same_on_all(ranks, digest(encoder, comparator))
    if ranks.is_first:
        (folder / f"on-{ranks.size}-{done}").touch()


def same_on_all(ranks: Ranks, *values: str) -> None:
    """Whether each rank has the same values."""
    assert ranks.object_of_first(values) == values


def main(size: int, folder: Path, works: list[str]) -> int:
    """Run the works on every rank; the number of ranks that fail."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                if size > 1:
                    dist.init_process_group(
                        "gloo", init_method=f"file://{folder}/store-{os.getppid()}", rank=rank,
                        world_size=size, timeout=timedelta(seconds=120),
                    )  # fmt: skip
                for work in works:
                    globals()[work](Ranks.current(), folder)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
