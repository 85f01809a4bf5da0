"""The choice of a model among candidates, by held-out pictures, and its fit to all of them.

Cheap candidates come first: features of frozen networks and descriptors, with maps in closed form,
on every fold. Then networks learn, each on a fold or more as the time allows. The fused model is
put together greedily, and everything in it is fitted again to all pictures.

Shapes: N pictures, D dimensions of an embedding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Member, ModelSettings, PictureSettings, Settings
from twinlens.learn.candidates import feature_candidates, tapped_before, tuned
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
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.held_out import (
    LEAST_GAIN,
    Fold,
    Scores,
    assign_folds,
    fuse,
    gain,
    make_fold,
    scores,
)
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.fused import FusedEncoder, fused_settings
from twinlens.model.timm_backbones import is_pretrained

__all__ = ["MOST_PICTURES", "HeldOutPairs", "ModelSelection"]

log = logging.getLogger("twinlens")

TUNED_STEPS, MOST_STEPS = 150, 600  # of tuning: at first without a time budget, and at most
TIMED_STEPS = (2, 10)  # of two trainings that show how long a step takes
TUNED_FOLDS = 2
CURVE_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the identities, in the learning curve
FEATURES_SHARE = 0.4  # of the time, at most
FEWEST_PICTURES, MOST_PICTURES = 200, 20_000
SHORT = 30  # steps of tuning that are not worth the time

Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """Distances of the chosen model between held-out pictures, for its threshold.

    Attributes:
        distance: of each pair, (Q,).
        same: whether it is genuine, (Q,).
        a: position of its first picture, (Q,).
        b: position of its second picture, (Q,).
    """

    distance: NDArray[np.float64]
    same: NDArray[np.bool_]
    a: NDArray[np.int64]
    b: NDArray[np.int64]


@dataclass(eq=False)
class _Candidate:
    """A candidate with its distances (n, n) on some folds."""

    member: Member
    matrices: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    settings: Settings | None = None  # of its training
    seconds: float = 0.0


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
    def most_pictures(settings: Settings, seconds: float, each: float) -> int:
        """Number of pictures whose features fit memory and a share of the time.

        Args:
            settings: settings.
            seconds: time for everything here.
            each: of the features of a picture.
        """
        views = 2 if settings.augment.flip else 1
        room = int(FEATURES_SHARE * seconds / max(each, 1e-9) / views)
        return min(MOST_PICTURES, max(FEWEST_PICTURES, room))

    def rest(self, number: int) -> NDArray[np.int64]:
        """Positions of the pictures outside of a fold."""
        return np.flatnonzero(self.fold_N != number)

    def left(self) -> float:
        """Seconds that are left."""
        spent = time.monotonic() - self.started
        return float("inf") if self.limit is None else self.limit - spent

    def add_features(self) -> None:
        """Try features of frozen networks and descriptors on every fold."""
        settings, can_tune = self.settings, is_pretrained(self.settings.model)
        network, picture = self.frozen
        members = feature_candidates(settings.picture, network, picture)
        on_gpu = self.compute.device.startswith("cuda")
        recipe = tuned(settings, TUNED_STEPS, on_gpu=on_gpu) if can_tune else None
        begun = time.monotonic()
        self.bank = FeatureBank.of(
            members, settings.picture, self.images, self.compute,
            mirrored=settings.augment.flip, tuned=recipe, progress=self.progress("features"),
        )  # fmt: skip
        shared = (time.monotonic() - begun) / len(members)
        for name, member in members.items():
            begun, candidate = time.monotonic(), _Candidate(member)
            for number, fold in self.folds.items():
                emb_ND = mapped_embeddings(
                    member, self.bank.features[name], self.images.label, fold, self.rest(number),
                    mirrored=settings.model.mirrored,
                )  # fmt: skip
                candidate.matrices[number] = cosine_distances(emb_ND)
            candidate.seconds = shared + time.monotonic() - begun
            self.candidates[name] = candidate
            self._log(name)

    def add_tuned(self) -> None:
        """Tune the network that has weights, on some of the folds, as long as the time allows."""
        network = self.settings.model
        if self.bank is None or not is_pretrained(network):
            return
        on_gpu = self.compute.device.startswith("cuda")
        numbers = list(self.folds)[:TUNED_FOLDS]
        steps = TUNED_STEPS
        if self.limit is not None and numbers:
            steps, numbers = self._affordable_steps(numbers, on_gpu=on_gpu)
        if steps < SHORT or not numbers:
            log.info("  no time to tune %s", network.backbone)
            return
        error = self._add_tuned(steps, numbers, on_gpu=on_gpu)
        while self.settings.train.extend and self.limit is None and 2 * steps <= MOST_STEPS:
            steps, before = 2 * steps, error
            error = self._add_tuned(steps, numbers, on_gpu=on_gpu)
            if not error < (1 - LEAST_GAIN) * before:
                break

    def _add_tuned(self, steps: int, numbers: list[int], *, on_gpu: bool) -> float:
        """Tune the network for some steps; its error on held-out pictures."""
        part = "tuned" if on_gpu else "last third tuned"
        name = f"{self.settings.model.backbone.partition('.')[0]}, {part} for {steps} steps"
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
        begun = time.monotonic()
        member = Member(model=settings.model, picture=settings.picture, weight=1.0)
        candidate = _Candidate(member, settings=settings)
        for number in numbers:
            emb_ND = held_out_network(
                settings, self.images, self.rest(number), self.folds[number], self.compute,
                self.stored,
            )  # fmt: skip
            candidate.matrices[number] = cosine_distances(emb_ND)
        candidate.seconds = time.monotonic() - begun
        return candidate

    @property
    def stored(self) -> StoredInputs | None:
        """Inputs of the first tuned layer."""
        return None if self.bank is None else self.bank.tuned

    def add_network(self, name: str, encoder: Encoder, settings: Settings, seconds: float) -> None:
        """Add a network that learned from the training pictures, all but the first fold."""
        member = Member(model=settings.model, picture=settings.picture, weight=1.0)
        candidate = _Candidate(member, settings=settings, seconds=seconds)
        number = next(iter(self.folds))
        pixels = self.images.take(self.folds[number].row)
        emb_ND = embed_pixels(encoder, pixels, bfloat16=self.compute.bfloat16)
        candidate.matrices[number] = cosine_distances(emb_ND)
        self.candidates[name] = candidate
        self._log(name)

    def _log(self, name: str) -> None:
        candidate = self.candidates[name]
        result = scores(self.folds, candidate.matrices)
        log.info(
            "  %s: EER %.1f %%, recall at 1 %.1f %% (%d of %d folds, %.0f s)", name,
            100 * result.eer, 100 * (1 - result.recall_error), len(candidate.matrices),
            len(self.folds), candidate.seconds,
        )  # fmt: skip

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
            # On all folds that these have; the sets are compared on those that all have.
            numbers = self._folds_of(names)
            matrices = {
                name: {number: self.candidates[name].matrices[number] for number in numbers}
                for name in names
            }
            weights, _ = fuse({number: self.folds[number] for number in numbers}, matrices)
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
        return weights, rows, self._pairs(self._fused(weights, self._folds_of(weights)))

    def _folds_of(self, names: Iterable[str]) -> list[int]:
        """The folds that all of some candidates were tried on."""
        own = [self.candidates[name].matrices for name in names]
        return [number for number in self.folds if all(number in each for each in own)]

    def learning_curve(self) -> list[LearningPoint]:
        """The EER of the best features by the number of identities that their map is fitted to."""
        assert self.bank is not None
        maps = {name: one for name, one in self.candidates.items() if name in self.bank.features}
        name = min(maps, key=lambda name: scores(self.folds, maps[name].matrices).error)
        member, label = maps[name].member, self.images.label
        rng = np.random.default_rng([self.settings.seed, 7])
        points = []
        for share in CURVE_SHARES:
            matrices, nums = {}, []
            for number, fold in self.folds.items():
                rest = self.rest(number)
                identities = rng.permutation(np.unique(label[rest]))
                kept = identities[: max(2, round(share * len(identities)))]
                emb_ND = mapped_embeddings(
                    member, self.bank.features[name], label, fold,
                    rest[np.isin(label[rest], kept)], mirrored=self.settings.model.mirrored,
                )  # fmt: skip
                matrices[number] = cosine_distances(emb_ND)
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

    def _fused(
        self, weights: Mapping[str, float], numbers: list[int]
    ) -> dict[int, NDArray[np.float32]]:
        return {
            number: np.sum(
                [w * self.candidates[name].matrices[number] for name, w in weights.items()], axis=0
            )
            for number in numbers
        }

    def _pairs(self, matrices: Mapping[int, NDArray[np.float32]]) -> HeldOutPairs:
        parts = [(self.folds[number], dist) for number, dist in matrices.items()]
        return HeldOutPairs(
            np.concatenate([dist[fold.pairs.a, fold.pairs.b] for fold, dist in parts]).astype(
                np.float64
            ),
            np.concatenate([fold.pairs.same for fold, _ in parts]),
            np.concatenate([fold.row[fold.pairs.a] for fold, _ in parts]),
            np.concatenate([fold.row[fold.pairs.b] for fold, _ in parts]),
        )

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
        views = next((one.model_settings for one in encoders.values()), self.settings.model)
        fused = FusedEncoder(
            fused_settings(members, views), self.settings.picture, members, load=True
        )
        for number, name in enumerate(weights):
            if name in encoders:
                fused.take_over(number, encoders[name])
                continue
            assert self.bank is not None
            head = fit_map(members[number], self.bank.features[name], self.images.label, rows)
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
