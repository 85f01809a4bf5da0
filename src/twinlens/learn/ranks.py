"""Ranks: the processes that train one model together, each on a part of every batch.

Every rank draws the same batch, embeds its own part of it, and receives the embeddings of all. The
loss of the whole batch is then computed on every rank, so that pairs, mining and learned parameters
of a loss need no other code. A rank's embeddings keep their graph, the others are constants. The
sum over ranks of the network's gradients is therefore exactly that of one process on the batch.

Decisions (when to validate, when to stop) follow the numbers of rank 0, since clocks differ and
another machine may round otherwise.

Shapes: B pictures of a batch, A of them embedded here, D dimensions, R ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from twinlens.errors import ConfigError, TrainingError
from twinlens.learn.grad_cache import moving_norms

__all__ = ["ALONE", "PATIENCE", "Ranks"]

T = TypeVar("T")

FEWEST = 2  # pictures of a batch on each rank: batch norm needs two
# Rank 0 writes reports and validates while others wait; lost processes end the call at once.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """The number of this process and of all; collective calls need the same order on each."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The ranks of torch's process group; one rank without a group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return ALONE

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and lines."""
        return self.rank == 0

    def own(self, num: int) -> NDArray[np.int64]:
        """Positions of the pictures, among `num`, that this rank embeds.

        Every R-th one: the statistics of a batch norm then come from all identities of the batch.
        """
        return np.arange(self.rank, num, self.size)

    def check_batch(self, num: int) -> None:
        """Refuse a batch of `num` pictures that leaves a rank with fewer than two.

        Raises:
            TrainingError: the batch is too small; it is raised on every rank.
        """
        if self.size > 1 and num < FEWEST * self.size:
            raise TrainingError(
                f"found a batch of {num} pictures for {self.size} processes, and each needs "
                f"{FEWEST}: train with fewer devices, or larger batches (sampler.labels_per_batch)"
            )

    def gather(self, own_AD: Tensor, num: int) -> Tensor:
        """The rows of all ranks, (num, D or more), in their order; the own ones keep their graph.

        Args:
            own_AD: rows of the positions `own(num)`.
            num: number of all rows.
        """
        if self.size == 1:
            return own_AD
        most = -(-num // self.size)  # Equal numbers everywhere: gloo aborts on others.
        padding = [0] * (2 * own_AD.dim() - 1)
        sent_AD = F.pad(own_AD.detach(), (*padding, most - len(own_AD))).contiguous()
        parts = [torch.empty_like(sent_AD) for _ in range(self.size)]
        dist.all_gather(parts, sent_AD)
        all_BD = torch.stack(parts, dim=1).flatten(0, 1)[:num]
        all_BD[self.rank :: self.size] = own_AD
        return all_BD

    def reduce_gradients(self, net: nn.Module, loss: nn.Module) -> None:
        """Replace the gradients by those of the whole batch, and statistics by their mean.

        Args:
            net: network; each rank has the gradient of its own pictures.
            loss: objective; every rank has its whole gradient, up to rounding.
        """
        if self.size == 1:
            return
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        means = [p.grad for p in loss.parameters() if p.grad is not None]
        buffers = (buffer for norm in moving_norms(net) for buffer in norm.buffers())
        means += [buffer for buffer in buffers if buffer.is_floating_point()]
        with torch.no_grad():
            parts = [*grads, *(mean / self.size for mean in means)]
            if not parts:
                return
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat)
            values = torch.split(flat, [part.numel() for part in parts])
            for tensor, value in zip([*grads, *means], values, strict=True):
                tensor.copy_(value.view(tensor.shape))

    def from_first(self, *values: float) -> list[float]:
        """The numbers of rank 0, on every rank."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)  # By gloo.
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def all(self, value: bool) -> bool:
        """Whether the value is true on every rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor(int(value))
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return bool(tensor)

    def object_of_first(self, value: T) -> T:
        """The object of rank 0, on every rank, by pickle; tensors must be on the CPU."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def copy_first(self, modules: Iterable[nn.Module]) -> None:
        """Copy the weights and buffers of rank 0 to every rank."""
        if self.size == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def synchronise_norms(self, net: nn.Module) -> None:
        """Make each batch norm that learns use the statistics of all ranks.

        Raises:
            ConfigError: the network is not on a GPU, which torch needs for that.
        """
        if self.size == 1:
            return
        if not next(net.parameters()).is_cuda:
            raise ConfigError("train.sync_batch_norm needs GPUs: leave it out, or set train.device")
        from timm.layers import convert_sync_batchnorm

        learning = set(moving_norms(net.train()))
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if child in learning:
                    setattr(parent, name, convert_sync_batchnorm(child))

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse ranks that begin with other facts, before a collective call hangs or aborts.

        Args:
            facts: value or hash of each, by the name that the error shows.
        Raises:
            TrainingError: some rank differs from most; it is raised on every rank.
        """
        if self.size == 1:
            return
        each: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(each, dict(facts))
        problems = []
        for name in facts:
            values = [one.get(name) for one in each]
            usual = Counter(values).most_common(1)[0][0]
            others = [str(rank) for rank, value in enumerate(values) if value != usual]
            if others:
                problems.append(f"other {name} on rank {', '.join(others)}")
        if problems:
            raise TrainingError(
                f"found {'; '.join(problems)} of {self.size}: start every process with the same "
                "data, settings and version of twinlens"
            )


ALONE = Ranks()
"""One process by itself."""
