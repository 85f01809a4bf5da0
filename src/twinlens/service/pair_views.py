"""Distances of the pictures of a set by a model: what a threshold accepts, worst pairs, nearest.

Pictures that the model has not learned from are preferred. Everything is computed once for each
model and state of a set, and kept for the next requests.

Shapes: N pictures, Q pairs, D numbers in an embedding, B bins.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.selection import select_pictures
from twinlens.data.pixels import select_rows
from twinlens.data.table import ImageTable
from twinlens.match.matcher import Matcher
from twinlens.measure.error_rates import far_at, frr_at, matches
from twinlens.measure.pairs import PairSet, draw_pairs, pair_distances, sample_pictures
from twinlens.report.content import ScoredPairs, worst_rows
from twinlens.service.errors import ServiceError
from twinlens.service.models import Models
from twinlens.service.picture_sets import PictureSets

__all__ = ["AtThreshold", "Neighbour", "PairView", "PairViews", "ShownPair"]

MOST_PICTURES = 1000  # compared; more of them take too long for a page
KEPT = 4
BINS = 60
SHOWN_IMPOSTORS = 0.75  # share of impostor pairs within the span
BORDER = 6  # pairs on each side of a threshold
SAME_NAMES = 2  # of them with the same two names
NEAR_BORDER = 2000  # pairs among which they are looked for
MIN_NAMES = 2


@dataclass(frozen=True)
class ShownPair:
    """A pair of pictures: keys in their set, identities, distance, and whether it matches."""

    a: str
    b: str
    identity_a: str
    identity_b: str
    distance: float
    match: bool | None = None

    @property
    def same(self) -> bool:
        """Whether both have one identity."""
        return self.identity_a == self.identity_b


@dataclass(frozen=True)
class Neighbour:
    """A picture near another: key, identity, distance, and whether it matches."""

    picture: str
    identity: str
    distance: float
    match: bool | None


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold accepts and rejects.

    Attributes:
        threshold: largest distance that matches.
        far: share of impostor pairs that match.
        frr: share of genuine pairs that do not match.
        num_genuine: genuine pairs.
        num_impostor: impostor pairs.
        false_accepts: impostor pairs that match.
        false_rejects: genuine pairs that do not match.
        accepted: pairs just below it, the nearest to it first, few of the same two names.
        rejected: pairs just above it, likewise.
    """

    threshold: float
    far: float
    frr: float
    num_genuine: int
    num_impostor: int
    false_accepts: int
    false_rejects: int
    accepted: tuple[ShownPair, ...]
    rejected: tuple[ShownPair, ...]


@dataclass(frozen=True, eq=False)
class PairView:
    """Pictures of a set, and the distances of their pairs.

    Attributes:
        matcher: the model.
        split: pictures that were taken: "test", "val", "unseen" or "all".
        unseen: whether none of the identities was trained on; None if unknown.
        notes: sentences about pictures that were trained on.
        keys: N keys of pictures in the set.
        names: N identities.
        embeddings: their embeddings, (N, D).
        pairs: genuine and impostor pairs.
        distance: their distances, (Q,).
    """

    matcher: Matcher
    split: str
    unseen: bool | None
    notes: tuple[str, ...]
    keys: list[str]
    names: list[str]
    embeddings: NDArray[np.float32]
    pairs: PairSet
    distance: NDArray[np.float64]

    @property
    def span(self) -> tuple[float, float]:
        """Distances between which thresholds make a difference."""
        genuine, impostor = self.distance[self.pairs.same], self.distance[~self.pairs.same]
        return 0.0, float(max(genuine.max(), np.quantile(impostor, SHOWN_IMPOSTORS)))

    def at(self, threshold: float) -> AtThreshold:
        """What a threshold accepts and rejects."""
        same_Q = self.pairs.same
        genuine, impostor = self.distance[same_Q], self.distance[~same_Q]
        is_match = matches(self.distance, threshold)
        order = np.argsort(np.abs(self.distance - threshold), kind="stable")
        sides = (self._spread(order[is_match[order]]), self._spread(order[~is_match[order]]))
        return AtThreshold(
            threshold, far_at(impostor, threshold), frr_at(genuine, threshold),
            len(genuine), len(impostor), int(np.count_nonzero(is_match & ~same_Q)),
            int(np.count_nonzero(~is_match & same_Q)),
            *(tuple(self._pair(row, threshold) for row in rows) for rows in sides),
        )  # fmt: skip

    def worst(self, kind: Literal["impostor", "genuine"]) -> list[ShownPair]:
        """The closest impostor pairs, or the farthest genuine ones, worst first."""
        rows = worst_rows(
            ScoredPairs(self.distance, self.pairs.same),
            [self.names[row] for row in self.pairs.a], [self.names[row] for row in self.pairs.b],
            genuine=kind == "genuine",
        )  # fmt: skip
        return [self._pair(row) for row in rows]

    def nearest(
        self, emb_1D: NDArray[np.float32], k: int, without: str | None = None
    ) -> list[Neighbour]:
        """The nearest pictures to an embedding, the nearest first.

        Args:
            emb_1D: its embedding.
            k: number of pictures, at most.
            without: key of a picture to leave out: the queried one.
        """
        dist_N = self.matcher.comparison.matrix(emb_1D, self.embeddings)[0].astype(np.float64)
        rows = [row for row in np.argsort(dist_N, kind="stable") if self.keys[row] != without]
        return [
            Neighbour(self.keys[row], self.names[row], float(dist_N[row]), self._match(dist_N[row]))
            for row in rows[:k]
        ]

    def embedding_of(self, picture: str) -> NDArray[np.float32] | None:
        """The embedding of a picture, shape (1, D); None if it is not among them."""
        return self.embeddings[[self.keys.index(picture)]] if picture in self.keys else None

    def histogram(self) -> tuple[list[int], list[int]]:
        """Genuine and impostor pairs in each of B equal parts of `span`."""
        counts = [
            np.histogram(self.distance[self.pairs.same == same], BINS, self.span)[0].tolist()
            for same in (True, False)
        ]
        return counts[0], counts[1]

    def _spread(self, rows: NDArray[np.intp]) -> list[int]:
        """The first pairs of some, of different names, since those of a few would look alike."""
        kept, num_of = list[int](), Counter[frozenset[str]]()
        for row in map(int, rows[:NEAR_BORDER]):
            names = frozenset({self.names[self.pairs.a[row]], self.names[self.pairs.b[row]]})
            if num_of[names] < SAME_NAMES:
                num_of[names] += 1
                kept.append(row)
            if len(kept) == BORDER:
                break
        return kept

    def _pair(self, row: int, threshold: float | None = None) -> ShownPair:
        a, b, distance = int(self.pairs.a[row]), int(self.pairs.b[row]), float(self.distance[row])
        return ShownPair(
            self.keys[a], self.keys[b], self.names[a], self.names[b], distance,
            self._match(distance, threshold),
        )  # fmt: skip

    def _match(self, distance: float, threshold: float | None = None) -> bool | None:
        """Whether a distance matches, by default at the calibrated threshold, if there is one."""
        calibration = self.matcher.calibration
        if threshold is None and calibration is not None:
            threshold = calibration.threshold
        return None if threshold is None else bool(matches(distance, threshold))


class PairViews:
    """Computes views at their first use."""

    def __init__(self, models: Models, sets: PictureSets) -> None:
        self._models, self._sets = models, sets
        self._views: OrderedDict[tuple[str | None, str, str], PairView] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, model: str | None, set: str) -> PairView:
        """The view of a set by a model. Call it on a thread: it may take seconds.

        Raises:
            ServiceError: no such model or set (404), or too few pictures (409).
            DataError: none of the pictures can be used.
        """
        matcher, table = self._models.get(model), self._sets.table(set)
        key = (model, set, table.fingerprint())
        with self._lock:
            view = self._views.pop(key, None)
            if view is None or view.matcher is not matcher:  # Trained or calibrated again.
                view = _view(matcher, table)
            self._views[key] = view
            while len(self._views) > KEPT:
                self._views.popitem(last=False)
        return view


def _view(matcher: Matcher, table: ImageTable) -> PairView:
    selection = select_pictures(matcher, table, split="auto", prefer="test")
    part, rng = selection.table, np.random.default_rng(0)
    rows = sample_pictures(part.labels(), MOST_PICTURES, rng)
    kept = part.select(rows)
    pairs = draw_pairs(kept.labels(), kept.forged, rng=rng)
    if len(kept.identities()) < MIN_NAMES or not pairs.same.any():
        raise ServiceError(
            409, "the pictures that can be compared are of one identity only, or one of each: add "
            "a second picture of at least two",
        )  # fmt: skip
    emb_ND = matcher.embed_pixels(select_rows(selection.pixels, rows))
    distance = pair_distances(emb_ND, pairs, matcher.comparison).astype(np.float64)
    return PairView(
        matcher, selection.split, selection.identity_disjoint, selection.notes,
        [kept.relative(row) for row in range(len(kept))], kept.identity.astype(str).tolist(),
        emb_ND, pairs, distance,
    )  # fmt: skip
