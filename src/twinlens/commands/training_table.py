"""The training pictures of a table: splits, batches, a sample. Needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Settings, value_text
from twinlens.data.samplers import Sampler, make_sampler
from twinlens.data.splits import assign_splits
from twinlens.data.table import ImageTable, require_identities
from twinlens.errors import DataError
from twinlens.learn.records import Choice

__all__ = ["choice_line", "sample_rows", "split_table", "training_sampler"]

SAMPLE_SIZE = 1000  # pictures, for mean and standard deviation


def split_table(table: ImageTable, settings: Settings) -> ImageTable:
    """The table with its splits.

    Raises:
        DataError: too few identities, or no training pictures.
    """
    require_identities(table, minimum=2, purpose="training")
    fractions = settings.data.fractions
    given = sorted(set(table.split) - {""})
    table = assign_splits(table, mode=settings.data.split, fractions=fractions, seed=settings.seed)
    if not len(table.of_split("train")):
        cause = (
            f"its pictures are marked {' and '.join(given)}: mark some as train, or none at all"
            if given
            else f"data.fractions is {list(fractions)}: the first number is the share of training"
        )
        raise DataError(f"{table.source} has no pictures for training, since {cause}")
    require_identities(table.of_split("train"), minimum=2, purpose="training")
    return table


def training_sampler(table: ImageTable, settings: Settings) -> Sampler:
    """The sampler of a run over the training pictures.

    Raises:
        DataError: no genuine or no impostor pair.
        ConfigError: settings that give no batch.
    """
    training = table.of_split("train")
    return make_sampler(training.labels(), training.forged, settings.sampler, settings.seed)


def sample_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """About a thousand evenly spaced rows, for mean and standard deviation."""
    return rows[:: max(1, len(rows) // SAMPLE_SIZE)]


def choice_line(choice: Choice) -> str:
    """A chosen setting with its reason, as a line of text."""
    return f"  {choice.key} = {value_text(choice.key, choice.value)}: {choice.why}"
