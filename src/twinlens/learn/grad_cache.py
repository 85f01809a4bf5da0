"""A batch embedded a chunk at a time: the gradient of the whole, the memory of a chunk.

Gradient caching (Gao 2021, arXiv 2101.06983): all chunks are embedded without keeping their
graphs; a loss on all embeddings gives the gradient of each; then each chunk is embedded again and
passes its gradient on to the weights. torch's checkpoints do just this, chunk by chunk, and give
dropout the same random numbers both times. The price is a second forward pass.

Batch norm: a chunk is normalised by its own statistics, both times ("ghost" batch norm, Hoffer
2017, arXiv 1705.08741), since those of the whole batch are known only when all of it has passed
the layer before. So the gradient is that of the whole batch for networks without batch norm, or
with frozen ones, and elsewhere that of smaller batches' norms. The running statistics see each
chunk once.

It knows nothing of pictures, losses or optimisers.
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
    """The embeddings (B, D) of a batch, with a graph that is made again chunk by chunk.

    Args:
        embed: gives the embeddings of a part of the batch; is called again for each part when the
            gradient comes, and must then do the same.
        parts: the chunks, in order.
        net: what `embed` calls; its batch norms are to see each chunk once.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_norms(net)

    # torch keeps the random numbers' state of the CPU and of its tensor arguments' devices alone.
    here = next(net.parameters()).new_empty(0)
    return torch.cat([
        checkpoint(
            lambda _, part: embed(part), here, part, use_reentrant=False, context_fn=contexts
        )
        for part in parts
    ])  # fmt: skip


def chunks_of(num: int, most: int) -> list[slice]:
    """`num` pictures in as few chunks of at most `most` as there can be, of almost equal sizes.

    Equal, since batch norm cannot take the statistics of a last chunk of one picture.
    """
    count = -(-num // most)
    bounds = [num * index // count for index in range(count + 1)] if count else []
    return [slice(low, high) for low, high in pairwise(bounds)]


def moving_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms that normalise by the statistics of what passes them just now."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]


@contextmanager
def _still_norms(net: nn.Module) -> Iterator[None]:
    """For the second pass: batch norms have their running statistics back at the end."""
    buffers = [buffer for norm in moving_norms(net) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
