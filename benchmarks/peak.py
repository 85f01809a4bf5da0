"""The most memory of a process; for peers' interpreters too, so it imports nothing of ours."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_mb"]


def peak_mb() -> float:
    """The most memory that this process has held, in MB.

    Not `ru_maxrss`, which begins at what the parent held when it started the process (execve(2)
    keeps it), and so hides a child that needs less.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("found no VmHWM in /proc/self/status: memory is measured on Linux only")
