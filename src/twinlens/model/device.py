"""The machine: device, bfloat16 hardware, the allocator's memory, and facts for reports."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from twinlens._version import __version__
from twinlens.errors import ConfigError, first_line

__all__ = ["has_bfloat16", "keep_freed_memory", "machine", "pick_device", "versions"]

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn",
            "pytorch-metric-learning")  # fmt: skip


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


def versions() -> dict[str, str]:
    """Versions of twinlens, Python and those of `PACKAGES` that are installed."""
    table = {"twinlens": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            table[name] = metadata.version(name)
    return table


def machine() -> dict[str, Any]:
    """Processor, memory, devices and threads."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "bfloat16": has_bfloat16(pick_device("auto")),
        "devices": ["cpu"] + [torch.cuda.get_device_name(i) for i in range(_num_gpus())],
    }  # fmt: skip


def _num_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _processor_name() -> str:
    """The processor's name; on Linux it is only in a file."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
