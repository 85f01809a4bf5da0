"""A small real run on handwritten digits, for the tests of training.

As a program (`python digits_run.py FOLDER KILLS SEED`) it trains once in peace and once while
being killed again and again, each time in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from twinlens.config import Settings
from twinlens.learn import loop as training
from twinlens.learn.callbacks import Callback, StepReport
from twinlens.learn.loop import FitResult, LabelledPixels, fit
from twinlens.learn.run_folder import RunFolder
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

CPU = Compute("cpu")


def pool(half: int) -> LabelledPixels:
    """Every second picture of the ten digits, starting at the first or the second."""
    data = load_digits()
    pixels = (data.images[half::2, None] * 15.9).astype(np.uint8)
    label = data.target[half::2].astype(np.int64)
    return LabelledPixels.of(pixels, label, np.zeros(len(label), dtype=bool))


TRAIN, VAL = pool(0), pool(1)


def digit_settings(**overrides: Any) -> Settings:
    """Settings for the digits; overrides are "section__key"."""
    values: dict[str, Any] = {
        "picture": {"size": (8, 8), "color": "grey", "mean": (0.3,), "std": (0.37,)},
        "model": {"channels": (16, 32), "embedding": 16, "dropout": 0.1},
        "sampler": {"labels_per_batch": 10, "images_per_label": 6},
        "augment": {"rotate": 8.0, "translate": 0.05},
        "optimizer": {"rate": 5e-3},
        "train": {"steps": 60, "validations": 6},
    }
    for key, value in overrides.items():
        section, _, field = key.partition("__")
        if field:
            values.setdefault(section, {})[field] = value
        else:
            values[section] = value
    return Settings.model_validate(values)


def start(
    settings: Settings,
    *,
    run: RunFolder | None = None,
    train: LabelledPixels = TRAIN,
    val: LabelledPixels | None = VAL,
    compute: Compute = CPU,
    on_step: Callable[[Encoder, StepReport], None] | None = None,
    reserve: Callable[[float], float] | None = None,
    begin: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Encoder, Comparator, FitResult]:
    """Train from initial weights by the seed `begin`, the settings' seed by default."""
    torch.manual_seed(settings.seed if begin is None else begin)
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    if run is not None:
        run.start(resume=True)
    fitted = fit(
        encoder, comparator, train, val, settings, compute=compute, run=run, reserve=reserve,
        on_step=None if on_step is None else lambda moment: on_step(encoder, moment),
        callbacks=callbacks,
    )  # fmt: skip
    return encoder, comparator, fitted


def digest(*modules: torch.nn.Module) -> str:
    """A hash of all tensors of some networks."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def attempt(folder: Path) -> int:
    """Train in a new process, which writes the digest of its weights at the end."""
    child = os.fork()
    if child:
        return child
    try:
        encoder, comparator, _ = start(digit_settings(train__steps=40), run=RunFolder(folder))
        (folder / "digest").write_text(digest(encoder, comparator))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def main(folder: Path, kills: int, seed: int) -> None:
    """Train `folder`/whole and `folder`/broken, and print how often the latter was killed."""
    # Both are loaded late and slowly, so once for all children.
    import torch._dynamo  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    training.CHECKPOINT_SECONDS = 0.03
    begun = time.monotonic()
    assert os.waitpid(attempt(folder / "whole"), 0)[1] == 0
    duration, draw, killed = time.monotonic() - begun, random.Random(seed), 0
    while True:
        child = attempt(folder / "broken")
        if killed < kills:
            time.sleep(draw.uniform(0.05, 0.9 / kills) * duration)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    print(killed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
