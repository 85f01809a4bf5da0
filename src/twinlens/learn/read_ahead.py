"""Pixels of the next batch, read on a thread while the present one is learned from.

Shapes: A pictures that are embedded here, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ReadAhead"]


class ReadAhead:
    """`read(position_A)` gives the pixels (A, C, H, W) of pictures, on the CPU.

    For a GPU they lie in pinned memory, from which a copy lets the processor go on.

    Args:
        take: function of positions and, if wanted, of memory for the pixels; called on the thread.
        device: device that learns.
        shape: shape of a picture, (C, H, W).
    """

    def __init__(
        self, take: Callable[..., NDArray[np.uint8]], device: torch.device, shape: Sequence[int]
    ) -> None:
        self._take, self._pins, self._shape = take, device.type == "cuda", shape
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[NDArray[np.int64], Future[Tensor]] | None = None

    def begin(self, position_A: NDArray[np.int64]) -> None:
        """Begin to read the pictures that will be wanted next."""
        self._next = position_A, self._thread.submit(self._read, position_A)

    def __call__(self, position_A: NDArray[np.int64]) -> Tensor:
        """The pixels; read now unless these were begun."""
        begun, self._next = self._next, None
        if begun is not None and np.array_equal(begun[0], position_A):
            return begun[1].result()
        return self._read(position_A)

    def _read(self, position_A: NDArray[np.int64]) -> Tensor:
        if not self._pins:
            return torch.from_numpy(self._take(position_A))
        shape = (len(position_A), *self._shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._take(position_A, pixels.numpy())
        return pixels
