"""`python -m benchmarks.systems WORK [--alone] [NAME ...]`: published systems beside `auto`.

Trains by the command line in the folder WORK, once a system and (but for `--alone`) once with
`auto`, whose time budget is no longer than the system took. Evaluates both on the same unseen
pictures, and prints a line each. Runs that exist are only evaluated again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import twinlens
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.error_rates import matches
from twinlens.model.networks import load_networks
from twinlens.model.stored import read_stored_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data"
LITE0 = ("--backbone", "tf_efficientnet_lite0", "--weights",
         str(SHARED / "weights/tf_efficientnet_lite0.in1k.safetensors"))  # fmt: skip
THAWED = ("--set", "model.freeze=blocks.6")
LONGEST = 300
"""Seconds that `auto` gets at most."""


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


def mnist(work: Path) -> list[str]:
    return ["mnist", "--root", str(DATA / "mnist")]


def cifar10(work: Path) -> list[str]:
    """The pictures of the archive as folders train/CLASS and test/CLASS."""
    if not (work / "cifar10").exists():
        with zipfile.ZipFile(DATA / "cifar10/cifar10-jpeg.zip") as archive:
            archive.extractall(work / "cifar10")
    return [str(work / "cifar10")]


def omniglot(work: Path) -> list[str]:
    return ["omniglot", "--root", str(DATA / "omniglot")]


def signatures(work: Path) -> list[str]:
    return [str(DATA / "signatures")]


def faces(work: Path) -> list[str]:
    return [str(DATA / "orl_faces")]


def three_faces(work: Path) -> list[str]:
    """The AT&T faces, with people 5, 6 and 7 for the test."""
    for person in sorted((DATA / "orl_faces").glob("s*")):
        split = "test" if person.name in ("s5", "s6", "s7") else "train"
        link(person, work / "three_faces" / split / person.name)
    return [str(work / "three_faces")]


def counterparts(work: Path) -> list[str]:
    """Two photographs of each person of AT&T, the first and the sixth, as counterparts."""
    for side, number in (("left", 1), ("right", 6)):
        for person in sorted((DATA / "orl_faces").glob("s*")):
            link(person / f"{number}.pgm", work / "counterparts" / side / f"{person.name}.pgm")
    return [str(work / "counterparts")]


def landmarks(work: Path) -> list[str]:
    """The landmarks of Cluj-Napoca without `question.jpg`, which is in no class folder."""
    for split in ("train", "test"):
        link(DATA / "landmarks" / split, work / "landmarks-data" / split)
    return [str(work / "landmarks-data")]


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(source)


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


def on_digits(run: Path, work: Path) -> str:
    comparator = load_networks(read_stored_model(run)).comparator
    name, bias = comparator.name, getattr(comparator, "bias", None)
    published = {"sigmoid": None if bias is None else float(bias), "euclidean": 0.5}.get(name)
    return pair_accuracy(mnist(work), run, published)


def on_objects(run: Path, work: Path) -> str:
    return pair_accuracy(cifar10(work), run)


def on_signatures(run: Path, work: Path) -> str:
    result = twinlens.evaluate(run, signatures(work)[0], quiet=True).verification
    assert result is not None
    assert result.skilled is not None
    all_pairs = f"accuracy {percent(result.accuracy)}, EER {percent(result.eer)}"
    return f"{all_pairs}; skilled forgeries alone EER {percent(result.skilled.eer)}"


def on_faces(run: Path, work: Path) -> str:
    return pair_accuracy(faces(work), run)


def on_three_faces(run: Path, work: Path) -> str:
    return pair_accuracy(three_faces(work), run)


def on_counterparts(run: Path, work: Path) -> str:
    result = twinlens.evaluate(run, counterparts(work)[0], quiet=True)
    assert result.retrieval is not None
    assert result.verification is not None
    nearest = percent(result.retrieval.recall_at[1])
    return f"counterpart is nearest {nearest}, EER {percent(result.verification.eer)}"


def on_landmarks(run: Path, work: Path) -> str:
    data = landmarks(work)[0]
    probes, own = (
        twinlens.evaluate(run, data, protocol="nearest", split=split, quiet=True).nearest
        for split in ("test", "train")
    )
    assert probes is not None
    assert own is not None
    assert np.all(own.distance[:, 0] == 0), "a training picture is nearest to itself, at distance 0"
    matcher = twinlens.load(run)
    photographs = sorted((DATA / "landmarks/train").glob("*/*"))
    emb_ND, emb_1D = matcher.embed(photographs), matcher.embed([DATA / "landmarks/question.jpg"])
    distance_N = matcher.comparison.matrix(emb_1D, emb_ND)[0]
    return (
        f"right class {percent(probes.accuracy)}, among five {percent(probes.top_5)}; "
        f"question.jpg: {photographs[int(distance_N.argmin())].parent.name}"
    )


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
    "digits-mlp": System(mnist, on_digits),
    "digits-contrastive": System(mnist, on_digits),
    "digits-bce": System(mnist, on_digits),
    "cifar": System(cifar10, on_objects),
    "faces-triplet": System(
        faces, on_faces, LITE0, ("--set", "data.fractions=[0.6,0.15,0.25]")
    ),
    "faces-contrastive": System(three_faces, on_three_faces),
    "lookalikes": System(
        # As many steps as 2 epochs of the 4,800 published counterparts take.
        counterparts, on_counterparts, (*LITE0, *THAWED, "--steps", "150"),
        ("--set", "data.fractions=[0.6,0.15,0.25]"),
    ),
    "landmarks": System(landmarks, on_landmarks, LITE0 + THAWED),
    "omniglot-eca": System(
        omniglot, on_trials, both=("--set", "data.fractions=[0.85,0.15,0]")
    ),
    "signet": System(signatures, on_signatures, ("--set", "model.stride=4")),
}  # fmt: skip


def train(words: list[str], run: Path, options: tuple[str, ...]) -> None:
    """Train by the command line, unless it was done; keep how long it took beside the run."""
    if (run / "report.html").exists():
        return
    command = ["twinlens", "train", *words, *options, "--out", str(run), "--resume"]
    print("$", shlex.join(command), flush=True)
    started = time.perf_counter()
    environment = {"TWINLENS_WEIGHTS": str(SHARED / "weights")} | os.environ
    subprocess.run([sys.executable, "-m", *command], env=environment, check=True)
    (run / "seconds.txt").write_text(f"{time.perf_counter() - started:.0f}")


def seconds(run: Path) -> str:
    """Seconds of the whole command, calibration and report included."""
    return f"{(run / 'seconds.txt').read_text()} s"


def main() -> None:
    """Train and measure the systems named, or all."""
    work, *names = (Path(sys.argv[1]), *sys.argv[2:])
    alone = "--alone" in names
    for name in [name for name in names if name != "--alone"] or SYSTEMS:
        system = SYSTEMS[name]
        words, run = system.data(work), work / name
        train(words, run, ("--recipe", name, *system.options, *system.both))
        print(f"{name} | {run.name} | {system.figure(run, work)} | {seconds(run)}", flush=True)
        if alone:
            continue
        budget = str(min(int((run / "seconds.txt").read_text()), LONGEST))
        run = work / f"auto-{system.data.__name__}"
        train(words, run, ("--time-budget", budget, *system.both))
        print(f"{name} | {run.name} | {system.figure(run, work)} | {seconds(run)}", flush=True)


if __name__ == "__main__":
    main()
