"""What learning uses of the machine: device, bfloat16 hardware, the allocator's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from twinlens.errors import ConfigError, TrainingError, first_line

__all__ = ["has_bfloat16", "keep_freed_memory", "memory_explained", "pick_device"]


def pick_device(name: str) -> str:
    """The device for "auto" (CUDA if available) or for one of torch's names.

    Raises:
        ConfigError: no such device, or one without float64, which losses need.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(
            f"train.device must be auto, cpu, cuda or cuda:1 and so on, found '{name}'"
        )
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"train.device '{name}' cannot be used here: {first_line(error)}"
        ) from error
    return name


def has_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32.

    The AVX-512 instructions for it gain nothing over those for float32; only AMX does.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> bool:
    """Make glibc keep the memory that a training step frees, for the next step.

    By default glibc returns large blocks to the system, which clears them page by page at the next
    step. That was half of a step's time for small networks on two cores. The process then stays as
    large as its largest step.

    Returns:
        False without glibc, where nothing is done.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


@contextmanager
def memory_explained() -> Iterator[None]:
    """Name the settings that help a GPU with too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory does not hold a step of this training: set a smaller train.chunk "
            "(such as train.chunk=32) or picture.size, or train.device=cpu"
        ) from error
