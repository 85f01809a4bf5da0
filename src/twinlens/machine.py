"""Facts of the machine and the installation, for reports and `twinlens doctor`; needs no torch."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twinlens._version import __version__
from twinlens.errors import EXTRAS

__all__ = ["available_cores", "decoding_threads", "installed_extras", "machine", "memory",
           "num_threads", "providers", "versions"]  # fmt: skip

PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "numpy",
    "scipy", "scikit-learn", "pillow", "pyarrow", "pylance", "torch", "torchvision", "timm", "onnx",
    "pytorch-metric-learning",
)  # fmt: skip

INSTRUCTIONS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}
"""Flag of a processor -> its name, widest first."""


def versions() -> dict[str, str]:
    """Versions of twinlens, Python and those of `PACKAGES` that are installed."""
    table = {"twinlens": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            table[name] = metadata.version(name)
    return table


def installed_extras() -> dict[str, bool]:
    """Whether every package of an extra is installed, by the name of the extra."""
    needed: dict[str, list[str]] = {}
    for module, extra in EXTRAS.items():
        needed.setdefault(extra, []).append(module)
    return {extra: all(map(find_spec, modules)) for extra, modules in needed.items()}


def machine() -> dict[str, Any]:
    """Processor, cores, threads, memory, GPUs, and the devices that ONNX Runtime can use."""
    flags = _processor_facts().get("flags", _processor_facts().get("Features", "")).split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_facts().get("model name")
        or platform.processor()
        or platform.machine(),
        "cores": available_cores(),
        "threads": num_threads(),
        "memory_gb": _memory_gb(),
        "instructions": next((INSTRUCTIONS[flag] for flag in INSTRUCTIONS if flag in flags), None),
        "amx": "amx_tile" in flags,
        "gpus": _gpus(),
        "providers": providers(),
    }


def available_cores() -> int:
    """Number of cores that this process may use; a container's share counts on Linux."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def num_threads() -> int:
    """Threads for arithmetic: one for each available core, at most OMP_NUM_THREADS if set.

    More threads than cores gain nothing, and some thousands of them stop a machine.
    """
    cores = available_cores()
    with suppress(KeyError, ValueError):
        return max(1, min(cores, int(os.environ["OMP_NUM_THREADS"])))
    return cores


def decoding_threads() -> int:
    """Threads that read and decode pictures: one for each available core, at most 8.

    More of them wait for Python's lock: on 16 cores 4, 8 and 16 threads decoded 840, 1,270 and
    1,070 JPEG files of 640 x 480 a second. Each may hold a large picture, too.
    """
    return min(8, available_cores())


def providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime that compute on this machine.

    Azure's is left out: it sends pictures to a server, and twinlens never uses it.
    """
    import onnxruntime

    names: list[str] = onnxruntime.get_available_providers()
    return [name for name in names if name != "AzureExecutionProvider"]


def _processor_facts() -> dict[str, str]:
    """Linux's facts of the last processor; empty on other systems."""
    facts = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts


def memory() -> int | None:
    """Bytes of memory of the machine, or of the container if that is less; None if unknown."""
    limits = []
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits) if limits else None


def _memory_gb() -> float | None:
    size = memory()
    return None if size is None else round(size / 1e9, 1)


def _gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver lists on Linux."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.startswith("Model:"):
                    names.append(line.partition(":")[2].strip())
    return names
