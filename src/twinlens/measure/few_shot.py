"""N-way K-shot episodes: one of N identities, shown K times each, is the probe's.

As in few-shot learning (Lake et al. 2015; Vinyals et al. 2016), each episode draws N identities,
K genuine pictures of each, and one more genuine picture of one of them: the probe. The answer is
the identity of the picture nearest to the probe. Means of embeddings are not used, since a learned
comparison need not have any. If T identities tie for the nearest, the right one among them counts
1 / T. Forgeries take no part.

Shapes: N pictures, D numbers in an embedding, E episodes, W ways, S shots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, mean_estimates
from twinlens.measure.pairs import Comparison, PairSet, pair_distances

__all__ = ["OneShotResult", "one_shot", "tied_credit"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OneShotResult:
    """Share of right answers in `episodes` of `way` identities with `shot` pictures each."""

    accuracy: Estimate
    way: int
    shot: int
    episodes: int

    @property
    def key(self) -> str:
        """Key in JSON, such as "20-way-1-shot"."""
        return f"{self.way}-way-{self.shot}-shot"

    def as_json(self) -> dict[str, float | None]:
        """The accuracy as `{"value", "low", "high"}`."""
        return self.accuracy.as_json()


def one_shot(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    comparison: Comparison,
    *,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> OneShotResult | None:
    """Accuracy in random episodes, with a bootstrap over the probes' identities.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        comparison: distances between embeddings.
        way: identities in an episode, at most the number with more than `shot` genuine pictures.
        shot: pictures of each identity.
        episodes: number of episodes.
        seed: random seed for episodes and bootstrap.
        replicates: number of bootstrap replicates.
    Returns:
        None if fewer than 2 identities have more than `shot` genuine pictures.
    Raises:
        DataError: `way` below 2, or `shot` or `episodes` below 1.
    """
    if way < 2 or shot < 1 or episodes < 1:
        raise DataError(
            "an episode needs at least 2 ways and 1 shot, and there must be at least 1 episode; "
            f"found {way} ways, {shot} shots and {episodes} episodes"
        )
    rng = np.random.default_rng(seed)
    members = _members(np.asarray(label), np.asarray(forged, dtype=bool), more_than=shot)
    if len(members) < 2:
        return None
    way = min(way, len(members))
    pairs, class_E = _draw_episodes(members, way, shot, episodes, rng)
    dist = pair_distances(emb_ND, pairs, comparison).reshape(episodes, way, shot)
    first_W = np.arange(way) == 0
    credit_E = tied_credit(dist.min(axis=2), np.broadcast_to(first_W, (episodes, way)))
    accuracy, *_ = mean_estimates(
        credit_E[None], class_E, len(members), seed=seed, replicates=replicates
    )
    return OneShotResult(accuracy, way, shot, episodes)


def tied_credit(dist_EW: NDArray[Any], right_EW: NDArray[np.bool_]) -> Floats:
    """Share of right ones among the nearest of each row, shape (E,).

    >>> tied_credit(np.array([[0.2, 0.2, 0.5]]), np.array([[True, False, False]])).tolist()
    [0.5]

    Raises:
        DataError: a distance is NaN.
    """
    if np.isnan(dist_EW).any():
        raise DataError("found distances that are NaN, so the embeddings are broken: train again")
    nearest = dist_EW == dist_EW.min(axis=1, keepdims=True)
    return np.asarray((nearest & right_EW).sum(axis=1) / nearest.sum(axis=1), dtype=np.float64)


def _members(label_N: NDArray[Any], forged_N: NDArray[np.bool_], more_than: int) -> list[Ints]:
    """Rows of the genuine pictures of each identity with more than `more_than` of them."""
    real = np.flatnonzero(~forged_N)
    order = real[np.argsort(label_N[real], kind="stable")]
    starts = np.flatnonzero(np.diff(label_N[order])) + 1
    return [rows for rows in np.split(order, starts) if len(rows) > more_than]


def _draw_episodes(
    members: list[Ints], way: int, shot: int, episodes: int, rng: np.random.Generator
) -> tuple[PairSet, Ints]:
    """Pairs of probe and shown picture (E * W * S,), and the probes' identities (E,).

    The first identity of each episode is the probe's.
    """
    probe_E = np.empty(episodes, dtype=np.int64)
    class_E = np.empty(episodes, dtype=np.int64)
    shown_EWS = np.empty((episodes, way, shot), dtype=np.int64)
    for episode in range(episodes):
        classes = rng.choice(len(members), size=way, replace=False)
        drawn = rng.choice(members[classes[0]], size=shot + 1, replace=False)
        class_E[episode], probe_E[episode] = classes[0], drawn[0]
        shown_EWS[episode, 0] = drawn[1:]
        for place in range(1, way):
            rows = members[classes[place]]
            shown_EWS[episode, place] = rng.choice(rows, size=shot, replace=False)
    same = np.broadcast_to(np.arange(way)[:, None] == 0, shown_EWS.shape)
    probe = np.broadcast_to(probe_E[:, None, None], shown_EWS.shape)
    return PairSet(probe.ravel(), shown_EWS.ravel(), same.ravel()), class_E
