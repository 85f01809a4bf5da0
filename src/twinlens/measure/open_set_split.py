"""Random split of identities into enrolled ones and strangers, and searches of small galleries.

Shapes: N pictures, D numbers in an embedding, I identities, G mated probes (of enrolled
identities), S non-mated ones (of strangers).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from twinlens.measure.error_rates import DetCurve, SortedPairs
from twinlens.measure.pairs import Comparison
from twinlens.measure.rank_probes import balanced_sample, random_rounds, rank_probes

__all__ = ["OpenSetSplit", "SplitScores"]

MOST_PROBES = 5000
NEVER = float(np.finfo(np.float64).max)
"""Distance of a mated probe whose best identity is wrong: no threshold identifies it."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class OpenSetSplit:
    """Rows of templates, mated probes and non-mated probes.

    Enrolled identities are numbered in a random order, so the first few are a smaller gallery;
    `template_code` ascends. `odd` marks one half of the strangers' identities.
    """

    template: Ints
    template_code: Ints
    mated: Ints
    mated_code: Ints
    nonmated: Ints
    odd: Bools

    @classmethod
    def draw(
        cls, code_N: Ints, count_I: Ints, num_enrolled: int, shot: int, rng: np.random.Generator
    ) -> OpenSetSplit:
        """Split the identities, then the pictures of each enrolled one."""
        mixed_I = rng.permutation(len(count_I))
        enrolled = mixed_I[count_I[mixed_I] > shot][:num_enrolled]
        number_I = np.full(len(count_I), -1)
        number_I[enrolled] = np.arange(num_enrolled)
        strangers = mixed_I[number_I[mixed_I] < 0]
        odd_I = np.zeros(len(count_I), dtype=bool)
        odd_I[strangers[1::2]] = True
        number_N, shown_N = number_I[code_N], random_rounds(code_N, rng) < shot
        template = np.flatnonzero((number_N >= 0) & shown_N)
        template = template[np.argsort(number_N[template], kind="stable")]
        mated = np.flatnonzero((number_N >= 0) & ~shown_N)
        nonmated = np.flatnonzero(number_N < 0)
        mated, nonmated = (
            rows[balanced_sample(code_N[rows], MOST_PROBES, rng)] for rows in (mated, nonmated)
        )
        return cls(template, number_N[template], mated, number_N[mated], nonmated,
                   odd_I[code_N[nonmated]])  # fmt: skip

    def search(
        self,
        emb_ND: NDArray[np.float32],
        code_N: Ints,
        size: int,
        comparison: Comparison,
        rule: str,
    ) -> SplitScores:
        """Enrol the first `size` identities, and search for their probes and all strangers."""
        shown = self.template_code < size
        rows, mated = self.template[shown], self.mated[self.mated_code < size]
        probe = np.concatenate([mated, self.nonmated])
        best = rank_probes(
            emb_ND[probe], emb_ND[rows], self.template_code[shown], comparison, (rule,)
        )[rule]
        code, distance = best.code, best.distance.astype(np.float64)
        right = code[: len(mated)] == self.mated_code[self.mated_code < size]
        return SplitScores(
            right, np.where(right, distance[: len(mated)], NEVER), distance[len(mated) :],
            code_N[mated], code_N[self.nonmated], self.odd,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Scores of the probes of one gallery.

    Attributes:
        right: whether the best identity of each mated probe is right, (G,).
        mated: distances of the mated probes, (G,); `NEVER` if wrong.
        stranger: distances of the non-mated probes, (S,).
        mated_own: identities of the mated probes, for the bootstrap, (G,).
        stranger_own: identities of the non-mated probes, (S,).
        odd: whether a non-mated probe belongs to one half of the strangers, (S,).
    """

    right: Bools
    mated: Floats
    stranger: Floats
    mated_own: Ints
    stranger_own: Ints
    odd: Bools

    @cached_property
    def pairs(self) -> SortedPairs:
        """Sorted distances, of which FAR is the FPIR, and FRR is 1 - DIR."""
        return SortedPairs.of(self.mated, self.stranger)

    @cached_property
    def halves(self) -> tuple[SplitScores, SplitScores]:
        """The scores with either half of the strangers."""
        kept = (self.right, self.mated, self.mated_own)
        first, second = (
            SplitScores(
                kept[0], kept[1], self.stranger[odd], kept[2], self.stranger_own[odd], odd[odd]
            )
            for odd in (self.odd, ~self.odd)
        )
        return first, second

    def rank_1(self, count_I: Ints) -> float:
        """Share of mated probes whose best identity is right."""
        return float(np.average(self.right, weights=count_I[self.mated_own]))

    def curve(self, count_I: Ints) -> DetCurve | None:
        """The curve under counts of identities; None if one kind of probes has none."""
        mated, stranger = count_I[self.mated_own], count_I[self.stranger_own]
        if not mated.any() or not stranger.any():
            return None
        return self.pairs.curve(mated, stranger)
