"""What each package of an installation weighs: `python -m benchmarks.installation`.

Installs this folder with pip into two fresh environments, `build/installation/answer` and
`build/installation/train`, and prints a Markdown table of both: megabytes (10^6 bytes) of the files
that each package owns, compiled modules included. Python, pip and setuptools are not counted.
Needs a package index and 10 GB of disk; the environments are removed afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.table import ROOT

HOME = ROOT / "build" / "installation"
INSTALLATIONS = {"answer": ".", "train": ".[train]"}
NOT_COUNTED = {"pip", "setuptools"}  # What every environment holds.
LEAST_MB = 10  # Smaller packages share a row.
CUDA = ("nvidia", "cuda", "triton")  # Beginnings of names: what torch loads on a GPU of NVIDIA.


def weigh(name: str, words: str) -> Counter[str]:
    """Bytes of each package after `pip install WORDS` in a fresh environment."""
    folder = HOME / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", words]
    subprocess.run(pip, cwd=ROOT, check=True)
    sizes: Counter[str] = Counter()
    for site in folder.glob("lib/python*/site-packages"):
        for package in distributions(path=[str(site)]):
            owned = (Path(str(package.locate_file(file))) for file in package.files or ())
            label = package.name.lower()
            if label not in NOT_COUNTED:
                label = "CUDA's libraries and triton" if label.startswith(CUDA) else label
                sizes[label] += sum(file.stat().st_size for file in owned if file.is_file())
    shutil.rmtree(folder)
    return sizes


def main() -> None:
    """Print the table, largest first."""
    weights = {name: weigh(name, words) for name, words in INSTALLATIONS.items()}
    rows = sorted(weights["train"], key=lambda label: -weights["train"][label])
    large = [label for label in rows if weights["train"][label] >= LEAST_MB * 1e6]
    print("| megabytes | `pip install .` | `pip install '.[train]'` |\n|---|---|---|")
    for label in large:
        print(_row(label, *(sizes[label] for sizes in weights.values())))
    rest = [sum(size for label, size in sizes.items() if label not in large)
            for sizes in weights.values()]  # fmt: skip
    counts = [len(sizes.keys() - set(large)) for sizes in weights.values()]
    print(_row(f"{counts[0]} and {counts[1]} smaller packages", *rest))
    print(_row("**all**", *(sizes.total() for sizes in weights.values())))


def _row(label: str, *sizes: int) -> str:
    cells = [f"{size / 1e6:,.0f}" if size else "" for size in sizes]
    return f"| {' | '.join([label, *cells])} |"


if __name__ == "__main__":
    main()
