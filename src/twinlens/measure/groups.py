"""Error rates of groups of pictures or pairs: a camera, an age, an alphabet.

A group's pairs have both pictures in it, as in NIST IR 8280 (2019, "Demographic effects"): two
pictures of one camera, two people of one age. Pairs of two groups are a row of their own. The
bootstrap draws the identities of a group.

The highest rate of many small groups is partly chance: its interval counts.

Shapes: N pictures, D numbers in an embedding, Q pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.data.columns import Groups
from twinlens.display import Result
from twinlens.errors import CalibrationError
from twinlens.measure.bootstrap import REPLICATES, Estimate
from twinlens.measure.calibration import Calibration, fit_calibration
from twinlens.measure.error_rates import frr_at
from twinlens.measure.pairs import Comparison, PairSet, draw_pairs, pair_distances
from twinlens.measure.trials import pair_trials
from twinlens.measure.verification import PairBootstrap

__all__ = ["LEAST_IDENTITIES", "LEAST_PAIRS", "GroupRates", "GroupThreshold", "GroupsResult",
           "group_rates", "trial_group_rates"]  # fmt: skip

LEAST_IDENTITIES = 5
LEAST_PAIRS = 10
"""A group with fewer identities or trials of a kind gets no rates."""

MOST_PAIRS = 20_000
"""Pairs of each kind that a group is measured on, by default."""

ACROSS = "two groups"

RATES = ("far", "frr", "eer")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupThreshold:
    """The threshold for one group alone at a FAR, and the FRR there, on the same pairs."""

    threshold: Estimate
    target_far: float
    frr: float

    def as_json(self) -> dict[str, Any]:
        """`{"threshold", "target_far", "frr"}`."""
        return {
            "threshold": self.threshold.as_json(),
            "target_far": self.target_far,
            "frr": self.frr,
        }


@dataclass(frozen=True)
class GroupRates:
    """Error rates of the pairs within a group.

    Attributes:
        name: value of the column.
        num_genuine: number of genuine pairs.
        num_impostor: number of impostor pairs.
        num_identities: identities with a picture in the group; None for given trials.
        num_pictures: pictures in the group; None for given trials.
        eer: equal error rate; None if the group is too small.
        far: FAR (FMR) at the model's threshold; None too without a calibration.
        frr: FRR (FNMR) there.
        own: threshold for this group alone, if asked for and possible.
    """

    name: str
    num_genuine: int
    num_impostor: int
    num_identities: int | None = None
    num_pictures: int | None = None
    eer: Estimate | None = None
    far: Estimate | None = None
    frr: Estimate | None = None
    own: GroupThreshold | None = None

    def as_json(self) -> dict[str, Any]:
        """All attributes that are not None."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: value.as_json() if hasattr(value, "as_json") else value
            for name, value in plain.items()
            if value is not None
        }


@dataclass(frozen=True, repr=False)
class GroupsResult(Result):
    """Error rates by a column.

    Attributes:
        column: name of the column.
        groups: the groups, in the order of their values.
        across: pairs of two groups; None if there are none of either kind.
        num_missing: pictures or pairs without a value; they are in no group.
    """

    column: str
    groups: tuple[GroupRates, ...]
    across: GroupRates | None
    num_missing: int

    @property
    def too_small(self) -> tuple[str, ...]:
        """Names of the groups that are too small for rates."""
        return tuple(group.name for group in self.groups if group.eer is None)

    @property
    def worst(self) -> dict[str, str]:
        """The group with the highest "far", "frr" and "eer", of two groups or more."""
        worst = {}
        for rate in RATES:
            values = {
                group.name: figure.value
                for group in self.groups
                if (figure := getattr(group, rate)) is not None and figure.value is not None
            }
            if len(values) > 1 and max(values.values()) > 0:
                worst[rate] = max(values, key=values.__getitem__)
        return worst

    def as_json(self) -> dict[str, Any]:
        """`{"groups", "across", "worst", "too_small", "num_missing"}`; across if any."""
        return {
            "groups": [group.as_json() for group in self.groups],
            **({} if self.across is None else {"across": self.across.as_json()}),
            "worst": self.worst,
            "too_small": list(self.too_small),
            "num_missing": self.num_missing,
        }


def group_rates(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    groups: Groups,
    comparison: Comparison,
    *,
    calibrated: Calibration | None,
    target_far: float | None = None,
    num_pairs: int | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> GroupsResult:
    """FAR and FRR at the model's threshold, and EER, of the pairs of each group.

    A group of fewer than 5 identities, or without pairs of both kinds, gets counts only.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        groups: groups of the N pictures.
        comparison: distances between embeddings.
        calibrated: calibration with the threshold; None for EER only.
        target_far: FAR for a threshold of each group; None for no such thresholds.
        num_pairs: maximum of pairs of each kind of a group; 20,000 by default.
        seed: random seed for pairs and bootstrap.
        replicates: number of bootstrap replicates.
    Raises:
        DataError: a distance that is not a finite number.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    most = MOST_PAIRS if num_pairs is None else num_pairs
    measurement = _Measurement(
        emb_ND, label_N, comparison, None if calibrated is None else calibrated.threshold,
        target_far, seed, replicates,
    )  # fmt: skip
    parts = []
    for place, name in enumerate(groups.names):
        rows = np.flatnonzero(groups.code == place)
        rng = np.random.default_rng(seed)
        drawn = draw_pairs(label_N[rows], forged_N[rows], num_pairs=most, rng=rng)
        pairs = PairSet(rows[drawn.a], rows[drawn.b], drawn.same)
        parts.append(measurement.rates(name, pairs, rows))
    drawn = draw_pairs(label_N, forged_N, num_pairs=2 * most, rng=np.random.default_rng(seed))
    return GroupsResult(
        groups.column,
        tuple(parts),
        _across(drawn, groups, measurement),
        int(np.count_nonzero(groups.code < 0)),
    )


def trial_group_rates(
    distance: ArrayLike,
    same: ArrayLike,
    groups: Groups,
    *,
    calibrated: Calibration | None,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> GroupsResult:
    """FAR, FRR and EER of groups of given pairs.

    A group of fewer than 10 pairs of a kind gets counts only.

    Args:
        distance: distances of the pairs, shape (Q,).
        same: whether each pair is genuine, shape (Q,).
        groups: groups of the Q pairs.
        calibrated: calibration with the threshold; None for EER only.
        cluster: groups that the bootstrap redraws, as of `trials.pair_trials`.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
    """
    dist_Q, same_Q = np.asarray(distance), np.asarray(same, dtype=bool)

    def rates(place: int, name: str) -> GroupRates:
        rows = np.flatnonzero(groups.code == place)
        num_genuine = int(np.count_nonzero(same_Q[rows]))
        counts = GroupRates(name, num_genuine, len(rows) - num_genuine)
        if min(counts.num_genuine, counts.num_impostor) < LEAST_PAIRS:
            return counts
        result = pair_trials(
            dist_Q[rows], same_Q[rows], calibrated=calibrated, seed=seed, replicates=replicates,
            cluster=None if cluster is None else np.asarray(cluster)[..., rows],
        )  # fmt: skip
        return GroupRates(
            name, num_genuine, counts.num_impostor, eer=result.eer, far=result.far, frr=result.frr
        )

    return GroupsResult(
        groups.column,
        tuple(rates(place, name) for place, name in enumerate(groups.names)),
        None,
        int(np.count_nonzero(groups.code < 0)),
    )


@dataclass(frozen=True, eq=False)
class _Measurement:
    """Embeddings and settings, shared by all groups."""

    embedding: NDArray[Any]
    label: Ints
    comparison: Comparison
    threshold: float | None
    target_far: float | None
    seed: int
    replicates: int

    def rates(self, name: str, pairs: PairSet, rows: Ints) -> GroupRates:
        """Rates of pairs among some rows; counts only if these are too few."""
        identities, code_N = np.unique(self.label[rows], return_inverse=True)
        num_genuine = int(np.count_nonzero(pairs.same))
        counts = GroupRates(name, num_genuine, len(pairs) - num_genuine, len(identities), len(rows))
        if len(identities) < LEAST_IDENTITIES or not 0 < num_genuine < len(pairs):
            return counts
        dist_Q = pair_distances(self.embedding, pairs, self.comparison)
        code_a, code_b = (code_N[np.searchsorted(rows, part)] for part in (pairs.a, pairs.b))
        bootstrap = PairBootstrap(len(identities), self.threshold, self.seed, self.replicates)
        rates = bootstrap.measure(dist_Q, pairs.same, code_a, code_b).rates
        far, frr = (None if self.threshold is None else rates[name] for name in ("far", "frr"))
        own = self._own_threshold(dist_Q, pairs.same, code_a, code_b)
        return replace(counts, eer=rates["eer"], far=far, frr=frr, own=own)

    def _own_threshold(
        self, dist_Q: NDArray[Any], same_Q: NDArray[np.bool_], code_a: Ints, code_b: Ints
    ) -> GroupThreshold | None:
        if self.target_far is None:
            return None
        try:
            own = fit_calibration(
                dist_Q, same_Q, code_a, code_b, target_far=self.target_far, seed=self.seed
            )
        except CalibrationError:  # Too few pairs for this FAR.
            return None
        frr = frr_at(dist_Q[same_Q], own.threshold)
        return GroupThreshold(own.threshold_estimate(), own.target_far, frr)


def _across(drawn: PairSet, groups: Groups, measurement: _Measurement) -> GroupRates | None:
    """Rates of the pairs of two groups; FAR alone if each identity lies in one group."""
    group_a, group_b = groups.code[drawn.a], groups.code[drawn.b]
    known = (group_a >= 0) & (group_b >= 0)
    across = known & (group_a != group_b)
    if not across.any():
        return None
    has_genuine = bool((across & drawn.same).any())
    # The FAR of the impostors does not depend on the genuine pairs.
    kept = across if has_genuine else across | (known & drawn.same)
    pairs = PairSet(drawn.a[kept], drawn.b[kept], drawn.same[kept])
    without_own = replace(measurement, target_far=None)
    rates = without_own.rates(ACROSS, pairs, np.flatnonzero(groups.code >= 0))
    return rates if has_genuine else replace(rates, num_genuine=0, eer=None, frr=None)
