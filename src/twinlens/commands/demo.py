"""`twinlens demo`: learn the digits 0 to 6, then verify pairs of the unseen digits 7, 8 and 9."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from twinlens.commands.protocols import evaluate_standard
from twinlens.commands.selection import select_pictures
from twinlens.commands.train import train
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.learn.run_folder import new_run_folder

__all__ = ["demo", "demo_table"]

UNSEEN = ("7", "8", "9")
# Few steps, since seven digits are soon overfitted; no rotations, since a 6 turned is a 9.
SETTINGS = {"train.steps": 100, "train.target_far": 0.003, "sampler.rotations": False}


def demo_table() -> ImageTable:
    """scikit-learn's 1,797 handwritten digits: 0 to 6 for training, 7 to 9 for the test.

    A fifth of the pictures of 0 to 6 chooses the weights and sets the threshold: seven identities
    are too few to hold some out.
    """
    table = read_table("digits")
    unseen = np.isin(table.identity.astype(str), UNSEEN)
    split = np.where(unseen, "test", "train").astype(object)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(~unseen))
    split[rows[: len(rows) // 5]] = "val"
    return table.with_split(split)


def demo(*, out: str | Path | None = None, quiet: bool = False) -> Iterator[str]:
    """Train on the digits 0 to 6, verify pairs of unseen digits, and name the report.

    Args:
        out: run folder; by default `runs/demo`, or `runs/demo-2` if that exists.
        quiet: log warnings only.
    Yields:
        Lines of text.

    Example:
        >>> for line in twinlens.demo():  # doctest: +SKIP
        ...     print(line)
    """
    table = demo_table()
    folder = new_run_folder("demo") if out is None else out
    model = train(table, out=folder, settings=SETTINGS, quiet=quiet)
    tests = table.of_split("test")
    assert tests.pixels is not None
    rng = np.random.default_rng(7)
    yield "Pairs of digits that the model was not trained on:"
    for a, b in (("7", "7"), ("8", "8"), ("9", "9"), ("7", "8"), ("8", "9"), ("7", "9")):
        first, second = (int(rng.choice(np.flatnonzero(tests.identity == name))) for name in (a, b))
        answer = model.verify(tests.pixels[first], tests.pixels[second])
        right = "right" if answer.match == (a == b) else "wrong"
        yield f"  a {a} and a {b}: {answer.explain()} [{right}]"
    selection = select_pictures(model, table, split="test", prefer="test")
    scores = evaluate_standard(model, selection).verification
    calibrated = scores.calibrated
    if calibrated is not None:
        yield (
            f"At the calibrated threshold {calibrated.frr.value:.0%} of {scores.num_genuine:,} "
            f"genuine pairs are rejected (FRR), and {calibrated.far.value:.0%} of "
            f"{scores.num_impostor:,} impostor pairs are accepted (FAR). The threshold was set on "
            "digits that the model was trained on, so it is too high for new ones. With more than "
            "seven identities, training holds some out to set it."
        )
    yield f"Equal error rate on the unseen digits: {scores.eer.value:.1%}"
    yield f"Report: {model.path.parent / 'report.html'}"
