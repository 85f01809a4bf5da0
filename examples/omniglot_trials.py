"""Lake's 20 official one-shot runs of Omniglot as a list of trials for `twinlens evaluate`.

    python examples/omniglot_trials.py all_runs.zip trials/
    twinlens evaluate runs/omniglot --trials trials/trials.csv

A run has one drawing of each of 20 characters of one alphabet as candidates, and 20 other drawings
of them as probes (Lake, Salakhutdinov, Tenenbaum 2015, doi 10.1126/science.aab3050).
`all_runs.zip` is from https://github.com/brendenlake/omniglot (one-shot-classification).
"""

from __future__ import annotations

import argparse
import csv
import zipfile
from pathlib import Path

NUM_RUNS = 20


def read_trials(folder: Path) -> list[tuple[str, str, str, int, str]]:
    """(trial, probe, candidate, same, cluster) of every run, with paths below `folder`.

    The cluster is the run: its trials share candidates, so the bootstrap resamples whole runs.
    """
    rows = []
    for run in range(1, NUM_RUNS + 1):
        name = f"run{run:02}"
        candidates = sorted(p.name for p in (folder / name / "training").glob("class*.png"))
        for line in (folder / name / "class_labels.txt").read_text().splitlines():
            if not line.strip():
                continue
            probe, answer = line.split()
            for candidate in candidates:
                path = f"{name}/training/{candidate}"
                rows.append((probe, probe, path, int(path == answer), name))
    return rows


def main() -> None:
    """Extract the runs and write `trials.csv` beside them."""
    parser = argparse.ArgumentParser(description="Omniglot's official runs as a list of trials")
    parser.add_argument("archive", type=Path, metavar="all_runs.zip")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="a folder for pictures and trials.csv"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.archive) as archive:
        archive.extractall(args.out)
    rows = read_trials(args.out)
    with (args.out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("trial", "probe", "candidate", "same", "cluster"))
        writer.writerows(rows)
    print(f"{len({row[0] for row in rows})} trials in {args.out / 'trials.csv'}")


if __name__ == "__main__":
    main()
