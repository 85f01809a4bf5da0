"""Gradient caching: a batch in chunks, with the gradient of the whole and the memory of a chunk.

Gao 2021 (arXiv 2101.06983): all chunks are embedded without their graphs; a loss on all embeddings
gives the gradient of each; then each chunk is embedded again and passes its gradient to the
weights. torch's checkpoints do this, and give dropout the same random numbers in both passes. The
price is a second forward pass.

A chunk is normalised by its own statistics in both passes ("ghost" batch norm, Hoffer 2017, arXiv
1705.08741). The gradient therefore equals that of the whole batch only without batch norm, or with
frozen batch norm. The running statistics count each chunk once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["chunks_of", "embed_in_chunks", "moving_norms"]


def embed_in_chunks(embed: Callable[[slice], Tensor], parts: list[slice], net: nn.Module) -> Tensor:
    """The embeddings (B, D) of a batch, with a graph that is recomputed chunk by chunk.

    Args:
        embed: function from a slice of the batch to its embeddings; it is called again for each
            slice in the backward pass and must then return the same.
        parts: chunks, in order.
        net: network that `embed` calls.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _restored_statistics(net)

    # torch saves the generators of the CPU and of the devices of tensor arguments only.
    on_device = next(net.parameters()).new_empty(0)
    return torch.cat([
        checkpoint(
            lambda _, part: embed(part), on_device, part, use_reentrant=False, context_fn=contexts
        )
        for part in parts
    ])  # fmt: skip


def chunks_of(num: int, max_size: int) -> list[slice]:
    """The fewest chunks of at most `max_size` of `num` pictures, of almost equal sizes.

    Batch norm needs more than one picture, which a remainder might be.

    >>> chunks_of(7, 3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    count = -(-num // max_size)
    bounds = [num * index // count for index in range(count + 1)] if count else []
    return [slice(low, high) for low, high in pairwise(bounds)]


def moving_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms that normalise by the statistics of their present input."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]


@contextmanager
def _restored_statistics(net: nn.Module) -> Iterator[None]:
    """Restore the running statistics of batch norms after the second pass."""
    buffers = [buffer for norm in moving_norms(net) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
