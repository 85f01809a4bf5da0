"""`python -m benchmarks [NAME ...]`: every comparison, or those named, in one table.

Each line is printed as it is measured; the page `benchmarks/RESULTS.md` is written after each
module. Some need a registry, from which the peers are installed, or data that is not at hand: they
say so, and the others go on. `python -m benchmarks regret [OPTIONS]` takes hours, hence is not
among "every"; it has options of its own and writes a page of its own, see `--help`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from subprocess import CalledProcessError

from benchmarks.table import heading, keep, write_page
from twinlens.errors import TwinlensError

NAMES = (
    "losses",
    "memory",
    "loop",
    "evaluation",
    "answering",
    "fashion",
    "omniglot",
    "signatures",
    "faces",
    "clusters",
    "audit",
    "feedback",
    "domain",
    "service",
)


def main() -> int:
    """Measure, print and write."""
    if sys.argv[1:2] == ["regret"]:
        return import_module("benchmarks.regret").main(sys.argv[2:])
    names = tuple(sys.argv[1:]) or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no benchmark '{unknown[0]}': choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    print(heading())
    failed = False
    for name in names:
        module = import_module(f"benchmarks.{name}")
        lines = []
        try:
            for line in module.lines():
                print(line, flush=True)
                lines.append(line)
                # So that an end half way loses nothing.
                keep(name, module.__doc__ or "", lines, complete=False)
            keep(name, module.__doc__ or "", lines, complete=True)
        except (TwinlensError, OSError, CalledProcessError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"written to {write_page(NAMES)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
