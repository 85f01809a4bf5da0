"""`python -m benchmarks.systems WORK [--alone] [NAME ...]`: published systems beside `auto`.

Trains by the command line in the folder WORK, once a system and (but for `--alone`) once with
`auto`, measures both on the same unseen pictures, and prints a line each. What was trained already
is only measured again.
"""

from __future__ import annotations

import csv
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import twinlens
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.error_rates import matches
from twinlens.model.networks import load_networks
from twinlens.model.stored import read_stored_model

SHARED = Path(__file__).parents[2] / "shared"
DATA = SHARED / "data"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
LITE0 = ("--backbone", "tf_efficientnet_lite0", "--weights",
         str(SHARED / "weights/tf_efficientnet_lite0.in1k.safetensors"))  # fmt: skip
THAWED = ("--set", "model.freeze=blocks.6")
CLASSES = ("Brücke", "Εκκλησία", "Башня", "塔", "قلعة")


@dataclass(frozen=True)
class System:
    """A recipe, its data, what only it gets and what `auto` gets too, and how it is measured."""

    data: Callable[[Path], list[str]]
    figure: Callable[[Path, Path], str]
    options: tuple[str, ...] = ()
    both: tuple[str, ...] = ()


def percent(figure: Estimate) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:.1f} %"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


def fashion(work: Path) -> list[str]:
    return ["fashion-mnist", "--root", str(FASHION)]


def omniglot(work: Path) -> list[str]:
    return ["omniglot", "--root", str(DATA / "omniglot")]


def signatures(work: Path) -> list[str]:
    return [str(DATA / "signatures")]


def faces(work: Path) -> list[str]:
    return [str(DATA / "att_faces")]


def counterparts(work: Path) -> list[str]:
    """Two photographs of each person of AT&T, the first and the sixth, as counterparts."""
    for side, number in (("left", 1), ("right", 6)):
        for person in sorted((DATA / "att_faces").glob("s*")):
            copy(person / f"{number}.pgm", work / "counterparts" / side / f"{person.name}.pgm")
    return [str(work / "counterparts")]


def classes(work: Path) -> list[str]:
    """AT&T as class folders with names of five scripts: 7 photographs to learn from, 3 to ask."""
    for person in sorted((DATA / "att_faces").glob("s*")):
        name = f"{CLASSES[int(person.name[1:]) % len(CLASSES)]} {person.name}"
        for number in range(1, 11):
            split = "train" if number <= 7 else "test"
            copy(person / f"{number}.pgm", work / "classes" / split / name / f"{number}.pgm")
    return [str(work / "classes")]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def table_and_root(words: list[str]) -> tuple[str, str | None]:
    return words[0], words[2] if len(words) > 2 else None


def pair_accuracy(words: list[str], run: Path, published: float | None = None) -> str:
    """At the best threshold, at the published rule, and the EER, on 10,000 pairs of each kind."""
    data, root = table_and_root(words)
    result = twinlens.evaluate(run, data, root=root, pairs=10_000, quiet=True).verification
    assert result is not None
    text = f"accuracy {percent(result.accuracy)}, EER {percent(result.eer)}"
    if published is None:
        return text
    right = matches(result.distance, published) == result.pairs.same
    same = result.pairs.same
    return (
        f"{text}; at {published:.3f}: {100 * (right[same].mean() + right[~same].mean()) / 2:.1f} %"
    )


def on_fashion(run: Path, work: Path) -> str:
    comparator = load_networks(read_stored_model(run)).comparator
    name, bias = comparator.name, getattr(comparator, "bias", None)
    published = {"sigmoid": None if bias is None else float(bias), "euclidean": 0.5}.get(name)
    return pair_accuracy(fashion(work), run, published)


def on_signatures(run: Path, work: Path) -> str:
    result = twinlens.evaluate(run, signatures(work)[0], quiet=True).verification
    assert result is not None
    assert result.skilled is not None
    all_pairs = f"accuracy {percent(result.accuracy)}, EER {percent(result.eer)}"
    return f"{all_pairs}; skilled forgeries alone EER {percent(result.skilled.eer)}"


def on_faces(run: Path, work: Path) -> str:
    return pair_accuracy(faces(work), run)


def on_counterparts(run: Path, work: Path) -> str:
    result = twinlens.evaluate(run, counterparts(work)[0], quiet=True)
    assert result.retrieval is not None
    assert result.verification is not None
    nearest = percent(result.retrieval.recall_at[1])
    return f"counterpart is nearest {nearest}, EER {percent(result.verification.eer)}"


def on_classes(run: Path, work: Path) -> str:
    asked = twinlens.evaluate(run, classes(work)[0], protocol="nearest", quiet=True).nearest
    own = twinlens.evaluate(
        run, classes(work)[0], protocol="nearest", split="train", quiet=True
    ).nearest
    assert asked is not None
    assert own is not None
    assert np.all(own.distance[:, 0] == 0), "a training picture is nearest to itself, at distance 0"
    return f"right class {percent(asked.accuracy)}, among five {percent(asked.top_5)}"


def on_trials(run: Path, work: Path) -> str:
    trials = work / "trials"
    if not trials.exists():
        script = Path(__file__).parents[1] / "examples/omniglot_trials.py"
        runs = DATA / "omniglot/all_runs.zip"
        subprocess.run([sys.executable, str(script), str(runs), str(trials)], check=True)
    result = twinlens.evaluate(run, trials=trials / "trials.csv", quiet=True).trials
    assert result is not None
    return f"official one-shot {percent(result.accuracy)}"


SYSTEMS = {
    "digits-mlp": System(fashion, on_fashion),
    "faces-triplet": System(
        faces, on_faces, LITE0, ("--set", "data.fractions=[0.6,0.15,0.25]")
    ),
    "lookalikes": System(
        # As many steps as 2 epochs of the 4,800 published counterparts take.
        counterparts, on_counterparts, (*LITE0, *THAWED, "--steps", "150"),
        ("--set", "data.fractions=[0.6,0.15,0.25]"),
    ),
    "landmarks": System(classes, on_classes, LITE0 + THAWED),
    "digits-contrastive": System(fashion, on_fashion),
    "signet": System(
        # 5 epochs of 20, for want of time.
        signatures, on_signatures, ("--set", "model.stride=4", "--epochs", "5"),
    ),
    "omniglot-eca": System(
        # Each drawing is in twice as many pairs an epoch as theirs.
        omniglot, on_trials, ("--epochs", "2"), ("--set", "data.fractions=[0.85,0.15,0]")
    ),
    "digits-bce": System(fashion, on_fashion, ("--epochs", "2")),  # of 20, for want of time
    "cifar": System(fashion, on_fashion, ("--steps", "60")),  # for want of time
}  # fmt: skip


def train(words: list[str], run: Path, options: tuple[str, ...]) -> None:
    """Train by the command line, unless it was done; keep how long it took beside the run."""
    if (run / "report.html").exists():
        return
    command = [
        str(Path(sys.executable).with_name("twinlens")), "train", *words, *options,
        "--out", str(run), "--resume",
    ]  # fmt: skip
    print("$", shlex.join(["twinlens", *command[1:]]), flush=True)
    started = time.perf_counter()
    subprocess.run(command, check=True)
    (run / "seconds.txt").write_text(f"{time.perf_counter() - started:.0f}")


def seconds(run: Path) -> str:
    """Seconds of learning, and of the whole command with calibration and report."""
    with (run / "history.csv").open() as file:
        learned = float(list(csv.DictReader(file))[-1]["seconds"])
    return f"{learned:.0f} s ({(run / 'seconds.txt').read_text()} s in all)"


def main() -> None:
    """Train and measure the systems named, or all."""
    work, *names = (Path(sys.argv[1]), *sys.argv[2:])
    alone = "--alone" in names
    for name in [name for name in names if name != "--alone"] or SYSTEMS:
        system = SYSTEMS[name]
        words = system.data(work)
        same_data = f"auto-{system.data.__name__}"
        for run, options in (
            (work / name, ("--recipe", name, *system.options)),
            (work / same_data, ()),
        )[: 1 if alone else 2]:
            train(words, run, (*options, *system.both))
            print(f"{name} | {run.name} | {system.figure(run, work)} | {seconds(run)}", flush=True)


if __name__ == "__main__":
    main()
