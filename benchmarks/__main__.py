"""`python -m benchmarks [NAME ...]`: every comparison, or those named, in one table."""

from __future__ import annotations

import sys
from importlib import import_module

from benchmarks.timing import HEADER
from twinlens.jobs.doctor import machine, versions

NAMES = ("losses", "loop", "evaluation", "clusters")


def main() -> None:
    """Print the table."""
    here = machine()
    print(f"{here['processor']}, {here['cores']} cores, {here['threads']} threads")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(HEADER)
    for name in sys.argv[1:] or NAMES:
        for row in import_module(f"benchmarks.{name}").rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
