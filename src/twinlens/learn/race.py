"""A race of losses and views: short trainings from the same initial weights, on held-out pictures.

Successive halving (Jamieson 2016, arXiv 1502.07943) in two rounds. In the first, each entry differs
from the settings of the rules in one thing. The worse half stops. The others, and the best changes
together, start again with twice the steps. The settings of the rules are in both rounds, and stay
unless another entry has a lower EER by more than the interval of the difference.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Settings
from twinlens.errors import TrainingError
from twinlens.learn.cross_validation import cosine_distances, held_out_network
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.pml import PML
from twinlens.learn.records import CandidateRow
from twinlens.measure.held_out import Fold, Scores, gain, scores
from twinlens.model.compute import Compute
from twinlens.progress import Progress

__all__ = ["Entry", "Race", "changed", "entries_of"]

log = logging.getLogger("twinlens")

LOSSES = {
    "multi-similarity": "MultiSimilarityLoss",
    "sub-center ArcFace": "SubCenterArcFaceLoss",
    "proxy anchor": "ProxyAnchorLoss",
}
"""Losses of pytorch-metric-learning, by their names in the table."""

RULES = "settings of the rules"
LONG = 480.0  # seconds that must be left: in shorter trainings each step counts
SHARE = 0.15  # of a time budget or of the training's steps, at most
STEPS_SHARE = 0.05  # of these steps, for each entry of the first round where no length is set
LEAST_STEPS, MOST_STEPS = 40, 200  # of the first round: with fewer, chance decides
MOST_LABELS = 32  # of a batch
TIMED_STEPS = (2, 10)  # of two trainings that show how long a step takes


@dataclass(frozen=True)
class Entry:
    """Settings that race, by their differences from those of the rules.

    Attributes:
        name: name in the table.
        kind: what it changes; entries of different kinds can be joined.
        updates: "section.key" -> value.
    """

    name: str
    kind: str = ""
    updates: Mapping[str, Any] = field(default_factory=dict)


def changed(settings: Settings, updates: Mapping[str, Any]) -> Settings:
    """The settings with other values, "section.key" -> value."""
    values = settings.model_dump()
    for key, value in updates.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return Settings.model_validate(values)


def entries_of(settings: Settings, chosen: Collection[str], num_identities: int) -> list[Entry]:
    """The entries of a race; first the settings as they are.

    Args:
        settings: of a network that learns from nothing to compare identities.
        chosen: keys that the rules chose; others are the user's, and do not race.
        num_identities: identities to learn from.
    """
    loss, sampler, (height, width) = settings.loss, settings.sampler, settings.picture.size
    entries = []
    if loss.name == "supcon":
        other = 0.05 if loss.temperature >= 0.1 else 0.1
        entries.append(Entry(f"temperature {other:g}", "loss", {"loss.temperature": other}))
        if importlib.util.find_spec("pytorch_metric_learning") is not None:
            entries += [
                Entry(name, "loss", {"loss.name": f"{PML}{kind}"}) for name, kind in LOSSES.items()
            ]
    if height == width and sampler.kind == "pk":
        turned, batch = not sampler.rotations, sampler.labels_per_batch * sampler.images_per_label
        # As many pictures a batch, of more or fewer identities.
        labels = min(MOST_LABELS, num_identities * (4 if turned else 1))
        updates = {
            "sampler.rotations": turned, "sampler.labels_per_batch": labels,
            "sampler.images_per_label": max(2, batch // labels),
        }  # fmt: skip
        name = "quarter turns as identities" if turned else "no quarter turns"
        entries.append(Entry(name, "turns", updates))
    flip = not settings.augment.flip
    name = "mirrored views" if flip else "no mirrored views"
    entries.append(Entry(name, "flip", {"augment.flip": flip, "model.mirrored": flip}))
    optimizer = "adamw" if settings.optimizer.name == "muon" else "muon"
    entries.append(Entry(optimizer, "optimizer", {"optimizer.name": optimizer}))
    return [Entry(RULES), *(one for one in entries if set(one.updates) <= set(chosen))]


@dataclass(frozen=True)
class _Result:
    entry: Entry
    steps: int
    scores: Scores | None  # None if the training failed
    seconds: float
    dist: NDArray[np.float32] | None = None  # of the held-out pictures, (n, n)

    @property
    def error(self) -> float:
        error = math.inf if self.scores is None else self.scores.error
        return error if math.isfinite(error) else math.inf


class Race:
    """Trains entries for a few steps and measures them on held-out pictures.

    Args:
        settings: of the rules.
        images: N pictures.
        train: positions of the pictures to learn from.
        fold: pictures to measure on.
        compute: device and number format.
    """

    def __init__(
        self,
        settings: Settings,
        images: LabelledPixels,
        train: NDArray[np.int64],
        fold: Fold,
        compute: Compute,
    ) -> None:
        self.settings, self.images, self.train, self.fold = settings, images, train, fold
        self.compute = compute

    def run(
        self, entries: Sequence[Entry], seconds: float | None
    ) -> tuple[Entry, list[CandidateRow]]:
        """The best entry, and a row for each training.

        Args:
            entries: at least one; the first is that of the rules.
            seconds: time that is left; None for no limit.
        """
        is_short = seconds is not None and seconds < LONG
        steps = 0 if is_short or len(entries) < 2 else self._affordable_steps(len(entries), seconds)
        if steps < LEAST_STEPS:
            return entries[0], []
        log.info("comparing %d settings on held-out pictures, %d steps each", len(entries), steps)
        progress = Progress("comparing settings", "trainings")
        most = len(entries) + len(entries) // 2 + 2
        first = [self._try(entry, steps) for entry in _counted(entries, 0, most, progress)]
        second = [
            self._try(entry, 2 * steps)
            for entry in _counted(_survivors(first), len(first), most, progress)
        ]
        progress.close()
        best = min(second, key=lambda result: result.error)
        if not self._is_better(best, second[0]):
            best = second[0]
        return best.entry, [_row(result) for result in first + second if result.scores is not None]

    def _is_better(self, best: _Result, rules: _Result) -> bool:
        """Whether the EER is lower, with 95 % confidence over the identities."""
        if best.dist is None or rules.dist is None:
            return rules.dist is None
        difference = gain({0: self.fold}, {0: best.dist}, {0: rules.dist}, seed=self.settings.seed)
        return difference.low is not None and difference.low > 0

    def _affordable_steps(self, num: int, seconds: float | None) -> int:
        """Steps of each training in the first round."""
        train = self.settings.train
        if seconds is None and train.extend:
            return min(MOST_STEPS, max(LEAST_STEPS, int(STEPS_SHARE * (train.steps or 0))))
        trainings, units = num + num // 2 + 2, num + 2 * (num // 2 + 2)
        if seconds is None:
            return min(MOST_STEPS, int(SHARE * (train.steps or 0) / units))
        few, more = (self._try(Entry(RULES), steps).seconds for steps in TIMED_STEPS)
        each = max((more - few) / (TIMED_STEPS[1] - TIMED_STEPS[0]), 1e-6)
        # Embedding takes the same time, whatever the number of steps.
        return min(MOST_STEPS, int((SHARE * seconds - few - more - trainings * few) / units / each))

    def _try(self, entry: Entry, steps: int) -> _Result:
        begun = time.monotonic()
        length = {"train.steps": steps, "train.epochs": None, "train.time_budget": None}
        settings = changed(self.settings, {**entry.updates, **length})
        result = dist = None
        try:
            emb_ND = held_out_network(
                settings, self.images, self.train, self.fold, self.compute, None
            )
            dist = cosine_distances(emb_ND)
            result = scores({0: self.fold}, {0: dist})
        except TrainingError as error:  # It collapsed.
            log.info("  %s: %s", entry.name, error)
        return _Result(entry, steps, result, time.monotonic() - begun, dist)


def _counted(
    entries: Sequence[Entry], done: int, total: int, progress: Progress
) -> Iterator[Entry]:
    for number, entry in enumerate(entries, done + 1):
        yield entry
        progress(number, total)


def _survivors(results: Sequence[_Result]) -> list[Entry]:
    """The entries of the second round: those of the rules, the better half, and the best joined."""
    rules = results[0]
    ranked = sorted(results, key=lambda result: result.error)
    better = [result.entry for result in ranked if result.error < rules.error]
    best_of_kind = dict[str, Entry]()
    for entry in better:
        best_of_kind.setdefault(entry.kind, entry)
    half = [result.entry for result in ranked[: len(results) // 2]]
    entries = [rules.entry, *(entry for entry in half if entry is not rules.entry)]
    if len(best_of_kind) > 1:
        updates = {key: v for entry in best_of_kind.values() for key, v in entry.updates.items()}
        name = ", ".join(entry.name for entry in best_of_kind.values())
        entries.append(Entry(name, "joined", updates))
    return entries


def _row(result: _Result) -> CandidateRow:
    assert result.scores is not None
    own = result.scores
    name = f"race, {result.steps} steps: {result.entry.name}"
    log.debug(
        "  %s: EER %.1f %%, recall at 1 %.1f %% (%.0f s)", name, 100 * own.eer,
        100 * (1 - own.recall_error), result.seconds,
    )  # fmt: skip
    return CandidateRow(name, own.eer, 1 - own.recall_error, 1, result.seconds)
