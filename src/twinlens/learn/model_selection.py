"""The choice of a model among candidates, by held-out pictures, and its fit to all of them.

Cheap candidates come first: features of frozen networks and descriptors, with maps in closed form,
on every fold. Then networks learn, each on a fold or more as the time allows. The fused model is
put together greedily, and everything in it is fitted again to all pictures.

Shapes: N pictures, D dimensions of an embedding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from twinlens.config import Member, ModelSettings, PictureSettings, Settings
from twinlens.data.samplers import make_sampler
from twinlens.learn.candidates import feature_candidates, tapped_before, tuned
from twinlens.learn.cross_embedding import CrossEmbeddings, count_folds
from twinlens.learn.cross_validation import (
    FeatureBank,
    cosine_distances,
    fit_map,
    held_out_network,
    mapped_embeddings,
    train_network,
)
from twinlens.learn.embed_batch import LabelledPixels, StoredInputs
from twinlens.learn.records import CandidateRow, LearningPoint
from twinlens.learn.schedule import run_length
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.held_out import (
    LEAST_GAIN,
    Distances,
    Fold,
    HeldOutPairs,
    Matrices,
    Scores,
    assign_folds,
    fuse,
    fused_distances,
    gain,
    make_fold,
    scores,
)
from twinlens.measure.new_identities import is_resolved
from twinlens.measure.new_identity_threshold import EXCESS
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.fused import FusedEncoder, fused_settings
from twinlens.model.timm_backbones import is_pretrained
from twinlens.progress import publish

__all__ = ["MOST_PICTURES", "ModelSelection"]

log = logging.getLogger("twinlens")

TUNED_STEPS, MOST_STEPS = 150, 600  # of tuning: at first without a time budget, and at most
TIMED_STEPS = (2, 10)  # of two trainings that show how long a step takes
TUNED_FOLDS = 2
CURVE_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the identities, in the learning curve
# Of the time, at most, for features: so that tuning may follow; and where it cannot, since more
# pictures are worth more.
FEATURES_SHARE, FEATURES_ALONE = 0.4, 0.7
TUNING_SHARE = 0.4  # of the time, at least, to begin to tune
FEWEST_PICTURES, MOST_PICTURES = 200, 20_000
THRESHOLD_SHARE = 0.05  # of the time, that pairs across folds may take in any case
ENOUGH_IDENTITIES = 20  # held out, for a threshold that is not too cautious
SHORT = 30  # steps of tuning that are not worth the time

Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(eq=False)
class _Candidate:
    """A candidate with its distances (n, n) on some folds."""

    member: Member
    matrices: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    settings: Settings | None = None  # of its training
    features: Tensor | None = None  # (V, N, F), if it needs none
    seconds: float = 0.0
    fit_seconds: float = 0.0  # of one fit


class ModelSelection:
    """Tries candidates on the pictures of training and validation.

    Args:
        settings: of the best single network, before training; its pictures are those of `images`.
        images: N pictures for training and validation.
        is_validation: which of them are for validation, (N,).
        closed: closed set, so that folds divide the pictures of each identity.
        frozen: a network with weights from elsewhere for features, if any, and its pictures.
        compute: device and number format.
        seconds: time for everything here; None for no limit.
        progress: makes a progress callback of a title.
    """

    def __init__(
        self,
        settings: Settings,
        images: LabelledPixels,
        is_validation: NDArray[np.bool_],
        *,
        closed: bool,
        frozen: tuple[ModelSettings | None, PictureSettings],
        compute: Compute,
        seconds: float | None,
        progress: Progress,
    ) -> None:
        self.settings, self.images, self.compute, self.frozen = settings, images, compute, frozen
        self.closed = closed
        self.progress, self.limit, self.started = progress, seconds, time.monotonic()
        if is_pretrained(settings.model):  # No network is trained on the training pictures alone.
            is_validation = np.zeros_like(is_validation)
        self.fold_N = assign_folds(
            images.label, is_validation, by_identity=not closed, seed=settings.seed
        )
        made = {
            int(number): make_fold(rows, images.label[rows], images.forged[rows], settings.seed)
            for number in np.unique(self.fold_N)
            for rows in [np.flatnonzero(self.fold_N == number)]
        }
        self.folds: dict[int, Fold] = {k: fold for k, fold in made.items() if fold is not None}
        self.candidates: dict[str, _Candidate] = {}
        self.bank: FeatureBank | None = None

    @staticmethod
    def most_pictures(settings: Settings, num: int, seconds: float, each: float) -> int:
        """Number of pictures, at most, whose features fit memory and a share of the time.

        Args:
            settings: settings.
            num: number of all pictures.
            seconds: time for everything here.
            each: of the features of a picture.
        """
        views = 2 if settings.augment.flip else 1
        room = seconds / max(each, 1e-9) / views
        share = FEATURES_SHARE if num <= FEATURES_SHARE * room else FEATURES_ALONE
        return min(MOST_PICTURES, max(FEWEST_PICTURES, int(share * room)))

    def rest(self, number: int) -> NDArray[np.int64]:
        """Positions of the pictures outside of a fold."""
        return np.flatnonzero(self.fold_N != number)

    def left(self) -> float:
        """Seconds that are left."""
        spent = time.monotonic() - self.started
        return float("inf") if self.limit is None else self.limit - spent

    def add_features(self, members: Mapping[str, Member] | None = None) -> None:
        """Try features of frozen networks and descriptors on every fold.

        Args:
            members: features to try, where no network is tuned; all of `feature_candidates` by
                default.
        """
        settings = self.settings
        can_tune = is_pretrained(settings.model) and members is None
        if members is None:
            is_classed = self.closed and not self.images.forged.any()
            num_classes = int(self.images.label.max()) + 1 if is_classed else 0
            members = feature_candidates(settings.picture, *self.frozen, num_classes)
        on_gpu = self.compute.on_gpu
        recipe = tuned(settings, TUNED_STEPS, on_gpu=on_gpu) if can_tune else None
        begun = time.monotonic()
        self.bank = FeatureBank.of(
            members, settings.picture, self.images, self.compute,
            mirrored=settings.augment.flip, tuned=recipe, progress=self.progress("features"),
        )  # fmt: skip
        shared = (time.monotonic() - begun) / len(members)
        for name, member in members.items():
            candidate = _Candidate(member, features=self.bank.features[name])
            self.candidates[name] = candidate
            self._try(candidate, self.folds)
            candidate.seconds += shared
            self._log(name)

    def add_tuned(self) -> None:
        """Tune the network that has weights, on some of the folds, as long as the time allows."""
        network = self.settings.model
        if self.bank is None or not is_pretrained(network):
            return
        on_gpu = self.compute.on_gpu
        numbers = list(self.folds)[:TUNED_FOLDS]
        steps = self._steps()
        if self.limit is not None and numbers:
            steps = 0
            if self.left() >= TUNING_SHARE * self.limit:
                steps, numbers = self._affordable_steps(numbers, on_gpu=on_gpu)
        if (steps < SHORT and self.limit is not None) or not numbers:
            log.info("no time to tune %s", network.backbone)
            return
        error = self._add_tuned(steps, numbers, on_gpu=on_gpu)
        while self.settings.train.extend and self.limit is None and 2 * steps <= MOST_STEPS:
            steps, before = 2 * steps, error
            error = self._add_tuned(steps, numbers, on_gpu=on_gpu)
            if not error < (1 - LEAST_GAIN) * before:
                break

    def _steps(self) -> int:
        """Steps of a tuning without a time budget: as set, else enough for a first try."""
        train, images = self.settings.train, self.images
        if train.extend or (train.steps is None and train.epochs is None):
            return TUNED_STEPS
        sampler = make_sampler(
            images.label, images.forged, self.settings.sampler, self.settings.seed
        )
        return run_length(train, sampler.steps_per_epoch, 0.0).steps or TUNED_STEPS

    def _add_tuned(self, steps: int, numbers: list[int], *, on_gpu: bool) -> float:
        """Tune the network for some steps; its error on held-out pictures."""
        part = "tuned" if on_gpu else "last third tuned"
        name = f"{self.settings.model.backbone.partition('.')[0]}, {part} for {steps} steps"
        log.info("candidate: %s, on %d of %d folds", name, len(numbers), len(self.folds))
        candidate = self._train(tuned(self.settings, steps, on_gpu=on_gpu), numbers)
        self.candidates[name] = candidate
        self._log(name)
        return scores(self.folds, candidate.matrices).error

    def _affordable_steps(self, numbers: list[int], *, on_gpu: bool) -> tuple[int, list[int]]:
        """Steps of one training on each of some folds, and of the last one on all pictures.

        Where these are too few to be worth it, one fold has to do.
        """
        few, more = (
            self._train(tuned(self.settings, steps, on_gpu=on_gpu), numbers[:1]).seconds
            for steps in TIMED_STEPS
        )
        each = max((more - few) / (TIMED_STEPS[1] - TIMED_STEPS[0]), 1e-6)
        # Whitening and embedding take the same time, whatever the number of steps.
        steps = int((self.left() / (len(numbers) + 1) - few) / each)
        if steps < SHORT:
            numbers = numbers[:1]
            steps = int((self.left() / 2 - few) / each)
        return min(MOST_STEPS, steps), numbers

    def _train(self, settings: Settings, numbers: list[int]) -> _Candidate:
        member = Member(model=settings.model, picture=settings.picture, weight=1.0)
        candidate = _Candidate(member, settings=settings)
        self._try(candidate, numbers)
        return candidate

    def _try(self, candidate: _Candidate, numbers: Iterable[int]) -> None:
        """Fit a candidate without each of some folds, and keep the distances of these."""
        begun = time.monotonic()
        for number in numbers:
            dist = self._held_out(candidate, self.folds[number], self.rest(number))
            candidate.matrices[number] = dist
        candidate.seconds = time.monotonic() - begun
        candidate.fit_seconds = candidate.seconds / max(1, len(candidate.matrices))

    def _held_out(
        self, candidate: _Candidate, fold: Fold, rest: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Distances (n, n) of a fold by a candidate that was fitted to the rest."""
        if candidate.settings is not None:
            emb_ND = held_out_network(
                candidate.settings, self.images, rest, fold, self.compute, self.stored
            )
        else:
            assert candidate.features is not None
            emb_ND = mapped_embeddings(
                candidate.member, candidate.features, self.images.label, fold.row, rest,
                mirrored=self.settings.model.mirrored,
            )  # fmt: skip
        return cosine_distances(emb_ND)

    @property
    def stored(self) -> StoredInputs | None:
        """Inputs of the first tuned layer."""
        return None if self.bank is None else self.bank.tuned

    def add_network(self, name: str, encoder: Encoder, settings: Settings, seconds: float) -> None:
        """Add a network that learned from the training pictures, all but the first fold."""
        member = Member(model=settings.model, picture=settings.picture, weight=1.0)
        candidate = _Candidate(member, settings=settings, seconds=seconds, fit_seconds=seconds)
        number = next(iter(self.folds))
        pixels = self.images.take(self.folds[number].row)
        emb_ND = embed_pixels(encoder, pixels, bfloat16=self.compute.bfloat16)
        candidate.matrices[number] = cosine_distances(emb_ND)
        self.candidates[name] = candidate
        self._log(name)

    def _log(self, name: str) -> None:
        candidate = self.candidates[name]
        result = scores(self.folds, candidate.matrices)
        log.debug(
            "  %s: EER %.1f %%, recall at 1 %.1f %% (%d of %d folds, %.0f s)", name,
            100 * result.eer, 100 * (1 - result.recall_error), len(candidate.matrices),
            len(self.folds), candidate.seconds,
        )  # fmt: skip
        publish("candidate", name=name, eer=result.eer, recall=1 - result.recall_error)

    def leave_out_trained(self) -> None:
        """Keep the candidates that need no training."""
        self.candidates = {
            name: one for name, one in self.candidates.items() if one.settings is None
        }

    def choose(self) -> tuple[dict[str, float], list[CandidateRow], HeldOutPairs]:
        """The members of the chosen model with their weights, the table, and its distances.

        A tuned network and frozen features of its last layers are never fused: the model would
        hold two networks of one kind.
        """
        common = self._folds_of(self.candidates)
        trials = []
        for names in self._compatible():
            # The sets are compared on the folds that all candidates have.
            weights = fuse(self.folds, {name: self.candidates[name].matrices for name in names})
            trials.append((weights, scores(self.folds, self._fused(weights, common))))
        weights, fused_scores = min(trials, key=lambda trial: trial[1].error)
        chosen = self._fused(weights, common)
        rows = [_row("the chosen model", fused_scores, len(common), 0.0, 1.0)]
        for name, candidate in self.candidates.items():
            on_common = {number: candidate.matrices[number] for number in common}
            rows.append(
                _row(
                    name, scores(self.folds, on_common), len(candidate.matrices),
                    candidate.seconds, weights.get(name, 0.0),
                    gain(self.folds, chosen, on_common, seed=self.settings.seed),
                )
            )  # fmt: skip
        rows[1:] = sorted(rows[1:], key=lambda row: row.eer)
        return weights, rows, self._pairs(weights)

    def _folds_of(self, names: Iterable[str]) -> list[int]:
        """The folds that all of some candidates were tried on."""
        own = [self.candidates[name].matrices for name in names]
        return [number for number in self.folds if all(number in each for each in own)]

    def learning_curve(self) -> list[LearningPoint]:
        """The EER of the best features by the number of identities that their map is fitted to."""
        maps = [one for one in self.candidates.values() if one.features is not None]
        best = min(maps, key=lambda one: scores(self.folds, one.matrices).error)
        label = self.images.label
        rng = np.random.default_rng([self.settings.seed, 7])
        points = []
        for share in CURVE_SHARES:
            matrices, nums = {}, []
            for number, fold in self.folds.items():
                rest = self.rest(number)
                identities = rng.permutation(np.unique(label[rest]))
                kept = identities[: max(2, round(share * len(identities)))]
                kept_rows = rest[np.isin(label[rest], kept)]
                matrices[number] = self._held_out(best, fold, kept_rows)
                nums.append(len(kept))
            eer = scores(self.folds, matrices).eer
            points.append(LearningPoint(round(float(np.mean(nums))), eer))
        return points

    def _compatible(self) -> list[list[str]]:
        """Names of the candidates that may be fused, in one set or more."""
        trained = [name for name, one in self.candidates.items() if one.settings is not None]
        sets = []
        for name in [None, *trained]:
            member = None if name is None else self.candidates[name].member
            sets.append(
                [
                    other
                    for other, one in self.candidates.items()
                    if other == name or (one.settings is None and tapped_before(one.member, member))
                ]
            )
        return [names for names in sets if names]

    def _fused(self, weights: Mapping[str, float], numbers: Iterable[int]) -> Matrices:
        matrices = {name: self.candidates[name].matrices for name in weights}
        return fused_distances(weights, matrices, numbers)

    def _pairs(self, weights: Mapping[str, float]) -> HeldOutPairs:
        """Distances of a fused model between held-out pictures.

        Folds of few identities hold too few pairs of them. Maps in closed form are then fitted
        again to compare pictures of different folds; a network is trained once more.
        """
        dist = self._fused(weights, self._folds_of(weights))
        parts = [(self.folds[number], dist[number]) for number in dist]
        within = HeldOutPairs.of(parts)
        if self.closed or self._is_resolved(within):
            return within
        if all(self.candidates[name].settings is None for name in weights):
            parts = self._across_folds(weights) or parts
        else:
            parts += self._further_fold(weights, list(dist))
        return HeldOutPairs.of(parts)

    def _is_resolved(self, pairs: HeldOutPairs) -> bool:
        a, b = (self.images.label[rows[~pairs.same]] for rows in (pairs.a, pairs.b))
        return is_resolved(a, b, EXCESS * self.settings.train.target_far)

    def _across_folds(self, weights: Mapping[str, float]) -> list[Distances]:
        """All pictures as one fold, by maps that learned from neither of two identities."""
        chosen = [self.candidates[name] for name in weights]
        fold = self._joined(np.unique(self.fold_N))
        num_folds = count_folds(len(np.unique(fold.label)))
        seconds = math.comb(num_folds, 2) * sum(one.fit_seconds for one in chosen)
        spare = 0.0 if self.limit is None else THRESHOLD_SHARE * self.limit
        if len(np.unique(fold.label)) < num_folds or seconds > max(spare, self.left()):
            return []
        features = [one.features for one in chosen if one.features is not None]
        crossed = CrossEmbeddings(
            {name: one.member for name, one in zip(weights, chosen, strict=True)},
            {name: part[:, fold.row] for name, part in zip(weights, features, strict=True)},
            fold.label, seed=self.settings.seed, folds=num_folds,
            mirrored=self.settings.model.mirrored,
        )  # fmt: skip
        return [(fold, crossed.fused(weights))]

    def _further_fold(
        self, weights: Mapping[str, float], numbers: Sequence[int]
    ) -> list[Distances]:
        """Two further folds as one, if few identities were held out and a training has time."""
        others = [number for number in self.folds if number not in numbers][:2]
        num = sum(len(np.unique(self.folds[number].label)) for number in numbers)
        seconds = max(self.candidates[name].fit_seconds for name in weights)
        if not others or num >= ENOUGH_IDENTITIES or self.left() < 2 * seconds:
            return []
        log.info("training once more, since %d held-out identities are few for a threshold", num)
        fold, rest = self._joined(others), np.flatnonzero(~np.isin(self.fold_N, others))
        parts = [
            weight * self._held_out(self.candidates[name], fold, rest)
            for name, weight in weights.items()
        ]
        return [(fold, np.sum(parts, axis=0))]

    def _joined(self, numbers: ArrayLike) -> Fold:
        """Some folds as one."""
        rows, images = np.flatnonzero(np.isin(self.fold_N, numbers)), self.images
        fold = make_fold(rows, images.label[rows], images.forged[rows], self.settings.seed)
        assert fold is not None
        return fold

    def refit(
        self,
        weights: Mapping[str, float],
        rows: NDArray[np.int64],
        networks: Mapping[str, Encoder] | None = None,
    ) -> FusedEncoder:
        """The fused model, each member fitted to some pictures.

        Args:
            weights: of each member.
            rows: positions of the pictures.
            networks: members that are trained already.
        """
        encoders = dict(networks or {})
        for name in weights:
            settings = self.candidates[name].settings
            if settings is not None and name not in encoders:
                encoders[name] = train_network(
                    settings, self.images, rows, self.compute, self.stored
                )
        layer = next(
            (one.member.model.freeze for name, one in self.candidates.items() if name in encoders),
            "all",
        )
        members = []
        for name, weight in weights.items():
            member = self.candidates[name].member
            if is_pretrained(member.model):  # One network for all its taps.
                model = member.model.model_copy(update={"freeze": layer})
                member = member.model_copy(update={"model": model})
            members.append(member.model_copy(update={"weight": weight}))
        mirrored = self.settings.model.mirrored
        fused = FusedEncoder(
            fused_settings(members, mirrored=mirrored), self.settings.picture, members, load=True
        )
        for number, name in enumerate(weights):
            if name in encoders:
                fused.take_over(number, encoders[name])
                continue
            features = self.candidates[name].features
            assert features is not None
            head = fit_map(members[number], features, self.images.label, rows)
            fused.heads[number].load_state_dict({f"0.{k}": v for k, v in head.state_dict().items()})
        return fused.eval()


def _row(
    name: str,
    result: Scores,
    folds: int,
    seconds: float,
    weight: float,
    loss: Estimate | None = None,
) -> CandidateRow:
    return CandidateRow(name, result.eer, 1 - result.recall_error, folds, seconds, weight, loss)
