"""Wrong labels by the evidence of all other pictures: a conditional logit with noisy labels.

Each picture is compared with the other pictures of each identity: their mean distance, the nearest
one, and the identity's own spread. A conditional logit (McFadden 1974) of these gives the
probability of each identity. Its weights and the share of wrong labels are fitted together by
maximum likelihood, so there is nothing to tune: a wrong label is any other identity alike (the
symmetric noise of Bouveyron & Girard 2009). As in confident learning (Northcutt 2021), a picture
never is evidence for its own label.

Shapes: N pictures, I identities, M distances of each pair (members of a model), B rows of a block,
K candidate identities of a picture, P features of a picture and an identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Distances", "Evidence", "LabelErrors", "collect_evidence", "label_errors"]

CANDIDATES = 32  # identities of a picture that are kept: its own and the nearest
BLOCK = 2**23  # numbers of a block of distances
RIDGE = 1e-2
FIRST_SHARE = 0.02  # of wrong labels, where the fit begins
LEAST_SHARE, LARGEST_SHARE = 1e-4, 0.3

Floats = NDArray[np.float64]


class Distances(Protocol):
    """M kinds of distances between N pictures; lower is closer."""

    @property
    def num(self) -> int:
        """Number of pictures."""
        ...

    def blocks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows (B,) and their distances (M, B, N) to all pictures, B at most `size`."""
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """Candidate identities of each picture with their features; the first is its own identity.

    Attributes:
        candidate: (N, K) identities; -1 where an identity has no other picture than this one.
        features: (N, K, P), lower is closer; 0 without a candidate.
    """

    candidate: NDArray[np.int64]
    features: Floats

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(N,) pictures whose identity has other pictures."""
        return np.asarray(self.candidate[:, 0] >= 0)


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Probabilities of wrong labels.

    Attributes:
        wrong: (N,) probability that a label is wrong; 0 where it cannot be judged.
        suggestion: (N,) the most probable other identity; -1 without one.
        share: estimated share of wrong labels.
        coefficient: (P,) of the features; a score is their negative sum.
    """

    wrong: Floats
    suggestion: NDArray[np.int64]
    share: float
    coefficient: Floats

    def scores(self, evidence: Evidence) -> Floats:
        """(N, K) logits of the candidates, NaN without one; only differences mean something."""
        score_NK = -(evidence.features @ self.coefficient)
        return np.where(evidence.candidate >= 0, score_NK, np.nan)

    @property
    def weight(self) -> Floats:
        """(M,) of the distances, if a single one stands for the mean and the nearest one."""
        num_members = len(self.coefficient) // 3
        return np.asarray(self.coefficient[: 2 * num_members].reshape(2, -1).sum(0))


def collect_evidence(
    distances: Distances, label: NDArray[np.int64], group: NDArray[np.int64]
) -> Evidence:
    """Compare each picture with the other pictures of each identity.

    Args:
        distances: of all pairs.
        label: identities from 0, (N,).
        group: pictures of one number are copies, which are no evidence for each other, (N,).
    """
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(int(label.max()) + 1))
    num_identities = len(starts)
    keep = min(CANDIDATES, num_identities)
    rows_of, kept, features = [], [], []
    own_spread: list[NDArray[np.float32]] = []
    for rows, dist_MBN in distances.blocks(max(1, BLOCK // distances.num)):
        is_copy_BN = (group[rows][:, None] == group)[:, order]
        dist_MBN = dist_MBN[:, :, order]
        count_BI = np.add.reduceat(~is_copy_BN, starts, axis=1, dtype=np.int64)
        nearest_MBI = np.minimum.reduceat(np.where(is_copy_BN, np.inf, dist_MBN), starts, axis=2)
        total_MBI = np.add.reduceat(np.where(is_copy_BN, 0, dist_MBN), starts, axis=2)
        mean_MBI = total_MBI / np.maximum(count_BI, 1)
        merit_BI = np.where(count_BI > 0, (mean_MBI + nearest_MBI).sum(0), np.inf)
        own = label[rows][:, None]
        own_spread.append(
            np.where(np.take_along_axis(count_BI, own, 1).T > 0,
                     np.take_along_axis(mean_MBI, own[None], 2)[:, :, 0], np.nan)
        )  # fmt: skip
        has_own = np.isfinite(np.take_along_axis(merit_BI, own, 1)[:, 0])
        np.put_along_axis(merit_BI, own, -np.inf, 1)
        best = np.argsort(merit_BI, axis=1, kind="stable")[:, :keep]
        valid = np.take_along_axis(count_BI, best, 1) > 0
        both = np.stack([
            np.take_along_axis(part, best[None], 2) for part in (mean_MBI, nearest_MBI)
        ])  # fmt: skip
        features.append(np.where(valid, both, 0).reshape(-1, *best.shape).transpose(1, 2, 0))
        valid[:, 0] &= has_own
        kept.append(np.where(valid, best, -1))
        rows_of.append(rows)
    place = np.argsort(np.concatenate(rows_of))
    candidate = np.concatenate(kept)[place]
    spread_MI = _spreads(np.concatenate(own_spread, axis=1)[:, place], label, num_identities)
    spread_NKM = np.where(candidate[None] >= 0, spread_MI[:, candidate], 0).transpose(1, 2, 0)
    values = np.concatenate([np.concatenate(features)[place], spread_NKM], axis=2)
    return Evidence(candidate, values.astype(np.float64))


def _spreads(own_MN: NDArray[np.float32], label: NDArray[np.int64], num: int) -> Floats:
    """(M, I) median distance of an identity's pictures to its others; the mean one if none."""
    typical = np.nanmean(own_MN, axis=1) if np.isfinite(own_MN).any() else np.zeros(len(own_MN))
    spread_MI = np.repeat(typical[:, None], num, axis=1).astype(np.float64)
    for number in range(num):
        own = own_MN[:, label == number]
        own = own[:, np.isfinite(own).all(0)]
        if own.shape[1]:
            spread_MI[:, number] = np.median(own, axis=1)
    return spread_MI


def label_errors(evidence: Evidence) -> LabelErrors:
    """Fit the probabilities and find the pictures that another identity explains better."""
    from scipy.optimize import minimize

    judged = np.flatnonzero(evidence.judged & ((evidence.candidate >= 0).sum(1) > 1))
    num_features = evidence.features.shape[2]
    wrong = np.zeros(len(evidence.candidate))
    suggestion = np.full(len(wrong), -1, dtype=np.int64)
    if not len(judged):
        return LabelErrors(wrong, suggestion, 0.0, np.ones(num_features))
    valid_nK = evidence.candidate[judged] >= 0
    x_nKP, deviation_P = _standardised(evidence.features[judged], valid_nK)
    others = max(1, len(np.unique(evidence.candidate[evidence.candidate >= 0])) - 1)

    def loss(theta: Floats) -> tuple[float, Floats]:
        """Negative log-likelihood with a ridge, and its gradient."""
        share = 1 / (1 + np.exp(-theta[-1]))
        q_nK = _softmax(-(x_nKP @ theta[:-1]), valid_nK)
        q_n = q_nK[:, 0]
        slope = (1 - share) - share / others
        p_n = share / others + slope * q_n
        value = -np.log(p_n).sum() + RIDGE * len(q_n) * float(theta[:-1] @ theta[:-1]) / 2
        mean_nP = np.einsum("nk,nkp->np", q_nK, x_nKP)
        by_q = -slope / p_n * q_n
        gradient = by_q @ (mean_nP - x_nKP[:, 0]) + RIDGE * len(q_n) * theta[:-1]
        by_share = -((1 / others - q_n * (1 + 1 / others)) / p_n).sum() * share * (1 - share)
        return value, np.append(gradient, by_share)

    num_members = num_features // 3
    start = np.append(np.full(num_features, 1 / num_members), _logit(FIRST_SHARE))
    start[2 * num_members : -1] = 0
    bounds: list[tuple[float | None, float | None]] = [(0, None)] * (2 * num_members) + [
        (None, None)
    ] * num_members
    bounds.append((_logit(LEAST_SHARE), _logit(LARGEST_SHARE)))
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    share = float(1 / (1 + np.exp(-fitted[-1])))
    q_nK = _softmax(-(x_nKP @ fitted[:-1]), valid_nK)
    second = 1 + q_nK[:, 1:].argmax(1)
    rest = share / others * (1 - q_nK[:, 0])
    wrong[judged] = rest / (rest + (1 - share) * q_nK[:, 0])
    suggestion[judged] = evidence.candidate[judged, second]
    return LabelErrors(wrong, suggestion, share, fitted[:-1] / deviation_P)


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def _standardised(x_NKP: Floats, valid_NK: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Features of deviation 1 among a picture's candidates, for the ridge; and their deviations."""
    centre = np.where(valid_NK[:, :, None], x_NKP, 0).sum(1) / valid_NK.sum(1)[:, None]
    x_NKP = np.where(valid_NK[:, :, None], x_NKP - centre[:, None], 0)
    deviation = np.sqrt(np.square(x_NKP).sum((0, 1)) / valid_NK.sum())
    deviation = np.where(deviation > 0, deviation, 1)
    return x_NKP / deviation, deviation


def _softmax(logit_NK: Floats, valid_NK: NDArray[np.bool_]) -> Floats:
    logit_NK = np.where(valid_NK, logit_NK, -np.inf)
    top = np.exp(logit_NK - logit_NK.max(1, keepdims=True))
    return np.asarray(top / top.sum(1, keepdims=True))
