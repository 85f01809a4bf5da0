"""The training loop beside its limit: the bare step on one batch that is there already.

Prediction: 0.9 of the limit, since a small network's step takes tens of milliseconds, and drawing
a batch, turning uint8 into float and watching the guard take one or two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.timing import Row, compare
from twinlens.config import Settings
from twinlens.data.batches import make_sampler
from twinlens.learn.objective import Objective
from twinlens.learn.training import Pool, fit
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

STEPS = 40
SETTINGS = Settings.model_validate(
    {
        "picture": {"size": (28, 28), "color": "grey"},
        "model": {"channels": (32, 64, 128)},
        "sampler": {"labels_per_batch": 16, "images_per_label": 8},
        "train": {"steps": STEPS},
    }
)


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    pool = Pool.of(
        rng.integers(0, 256, (4000, 1, 28, 28), dtype=np.uint8),
        np.arange(4000) % 40,
        np.zeros(4000, dtype=bool),
    )
    yield compare(
        f"training loop, {STEPS} steps of 128 at 28x28", "its limit, the bare step on one batch",
        lambda: _loop(pool), lambda: _bare(pool),
    )  # fmt: skip


def _loop(pool: Pool) -> None:
    encoder, comparator = Encoder(SETTINGS.model, SETTINGS.picture), make_comparator("cosine", 128)
    fit(encoder, comparator, pool, None, SETTINGS, compute=Compute("cpu"))


def _bare(pool: Pool) -> None:
    encoder, comparator = Encoder(SETTINGS.model, SETTINGS.picture), make_comparator("cosine", 128)
    objective = Objective(SETTINGS.loss, comparator, 40, 128)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
    batch = make_sampler(pool.label, pool.forged, SETTINGS.sampler, 0).batch(0)
    pictures = torch.from_numpy(pool.take(batch.row)).float() / 255
    for _ in range(STEPS):
        loss = objective(encoder(pictures), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
