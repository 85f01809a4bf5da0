"""The best identities of a gallery for each probe, and for its own templates, each left out.

Probes are compared in blocks, which bound the memory.

Shapes: P probes, B of them in a block, M templates, I identities, D numbers in an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.measure.fusion import RankList, TemplateGroups, identity_means, rank_identities
from twinlens.measure.pairs import Comparison, OnProgress, blocks

__all__ = ["BestIdentities", "balanced_sample", "random_rounds", "rank_left_out", "rank_probes"]

BYTES_EACH = 24
"""Memory for a distance, with the intermediate arrays of a block."""

FEWEST_AT_ONCE = 32
"""Minimum of probes in a block; with fewer, comparisons square all templates too often."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BestIdentities:
    """The best identity of a gallery for each probe, by one rule.

    Attributes:
        code: code of the best identity, -1 if missing, (P,).
        distance: its distance, +inf if missing, (P,).
        runner_up: distance of the second identity, +inf if missing, (P,).
    """

    code: Ints
    distance: Floats
    runner_up: Floats

    @classmethod
    def empty(cls, num: int) -> BestIdentities:
        """Arrays for `num` probes without answers."""
        infinite = np.full(num, np.inf, dtype=np.float32)
        return cls(np.full(num, -1, dtype=np.int64), infinite, infinite.copy())

    def fill(self, part: slice, ranked: RankList) -> None:
        """Write the first two places of a rank list into the rows of `part`."""
        places = ranked.code.shape[1]
        if places:
            self.code[part], self.distance[part] = ranked.code[:, 0], ranked.distance[:, 0]
        if places > 1:
            self.runner_up[part] = ranked.distance[:, 1]


def rank_probes(
    probe_emb_PD: NDArray[Any],
    gallery_emb_MD: NDArray[Any],
    gallery_code_M: ArrayLike,
    comparison: Comparison,
    rules: Sequence[str],
    *,
    progress: OnProgress | None = None,
) -> dict[str, BestIdentities]:
    """The best identity for each probe, by each rule.

    Args:
        probe_emb_PD: embeddings of the probes, shape (P, D).
        gallery_emb_MD: templates, shape (M, D).
        gallery_code_M: identity codes of the templates, integers from 0, shape (M,).
        comparison: distances between embeddings.
        rules: fusion rules, of `fusion.RULES`.
        progress: called with the number of probes done and of all probes.
    """
    gallery = _Gallery.of(gallery_emb_MD, gallery_code_M)
    best = {rule: BestIdentities.empty(len(probe_emb_PD)) for rule in rules}
    for part in _blocks(len(probe_emb_PD), gallery, progress):
        emb_BD = np.asarray(probe_emb_PD[part], dtype=np.float32)
        gallery.answer(best, part, gallery.distances(emb_BD, comparison, rules))
    return best


def rank_left_out(
    row_P: Ints,
    emb_MD: NDArray[Any],
    code_M: ArrayLike,
    comparison: Comparison,
    rules: Sequence[str],
    *,
    progress: OnProgress | None = None,
) -> tuple[dict[str, BestIdentities], dict[str, BestIdentities]]:
    """The best identities for a gallery's own templates, each left out in turn.

    Args:
        row_P: rows of the templates that are probes, shape (P,).
        emb_MD: all templates, shape (M, D).
        code_M: identity codes of the templates, integers from 0, shape (M,).
        comparison: distances between embeddings.
        rules: fusion rules, of `fusion.RULES`.
        progress: called with the number of probes done and of all probes.
    Returns:
        By rule, the best identities in the gallery without the template itself (which leaves its
        identity's mean too), and in the gallery without its whole identity.
    """
    gallery = _Gallery.of(emb_MD, code_M)
    place_P = row_P if gallery.row is None else np.argsort(gallery.row)[row_P]
    mated, stranger = ({rule: BestIdentities.empty(len(row_P)) for rule in rules} for _ in range(2))
    for part in _blocks(len(row_P), gallery, progress):
        emb_BD, code_B1 = gallery.emb[place_P[part]], gallery.code[place_P[part], None]
        dist = gallery.distances(emb_BD, comparison, rules)
        gallery.leave_out_templates(dist, place_P[part], comparison)
        gallery.answer(mated, part, dist)
        for dist_BM in dist.values():
            dist_BM[gallery.code_of_columns(dist_BM) == code_B1] = np.inf
        gallery.answer(stranger, part, dist)
    return mated, stranger


def balanced_sample(code_M: ArrayLike, most: int, rng: np.random.Generator) -> Ints:
    """Random sample of up to `most` rows, ascending, balanced over identities.

    Rows are drawn in rounds: one of each identity in a random order, then a second one of each,
    and so on.

    Args:
        code_M: identities of the rows, shape (M,).
        most: maximum of rows.
        rng: random generator.
    """
    round_M = random_rounds(code_M, rng)
    mixed = rng.permutation(len(round_M))
    return np.sort(mixed[np.argsort(round_M[mixed], kind="stable")][:most])


def random_rounds(code_M: ArrayLike, rng: np.random.Generator) -> Ints:
    """Round of each row, if each round draws one row of each identity, shape (M,)."""
    code = np.asarray(code_M)
    mixed = rng.permutation(len(code))
    row = mixed[np.argsort(code[mixed], kind="stable")]
    at = np.arange(len(code))
    is_first = np.ones(len(code), dtype=bool)
    is_first[1:] = code[row][1:] != code[row][:-1]
    round_M = np.empty(len(code), dtype=np.int64)
    round_M[row] = at - np.maximum.accumulate(np.where(is_first, at, 0))
    return round_M


def _blocks(num: int, gallery: _Gallery, progress: OnProgress | None) -> Iterator[slice]:
    each = BYTES_EACH * len(gallery.code)
    return blocks(num, each, least=FEWEST_AT_ONCE, progress=progress)


@dataclass(frozen=True, eq=False)
class _Gallery:
    """Templates ordered by code; `row` holds their original rows, None if they were ordered."""

    emb: Floats
    code: Ints
    row: Ints | None
    grouped: TemplateGroups
    mean: Floats
    each: TemplateGroups

    @classmethod
    def of(cls, emb_MD: NDArray[Any], code_M: ArrayLike) -> _Gallery:
        emb, code = np.asarray(emb_MD, dtype=np.float32), np.asarray(code_M, dtype=np.int64)
        row = TemplateGroups.of(code).order
        if row is not None:
            emb, code = emb[row], code[row]
        mean, each = identity_means(emb, code)
        return cls(emb, code, row, TemplateGroups.of(code), mean, TemplateGroups.of(each))

    def distances(
        self, emb_BD: Floats, comparison: Comparison, rules: Sequence[str]
    ) -> dict[str, Floats]:
        """By rule, writable distances to all templates (B, M) or to all means (B, I)."""
        distances = {}
        if "mean" in rules:
            distances["mean"] = np.array(comparison.matrix(emb_BD, self.mean), dtype=np.float32)
        if set(rules) - {"mean"}:
            shared = np.array(comparison.matrix(emb_BD, self.emb), dtype=np.float32)
            distances |= {rule: shared for rule in rules if rule != "mean"}
        return distances

    def code_of_columns(self, dist_BM: Floats) -> Ints:
        """Identity codes of the columns of one of `distances`."""
        return self.code if dist_BM.shape[1] == len(self.code) else self.each.code

    def answer(
        self, best: Mapping[str, BestIdentities], part: slice, distances: Mapping[str, Floats]
    ) -> None:
        """Rank by each rule, and write the first two identities into `best`."""
        for rule, dist in distances.items():
            grouped, code = self.grouped, self.code
            if rule == "mean":
                grouped, code = self.each, self.each.code
            best[rule].fill(part, rank_identities(dist, code, rule, 2, grouped=grouped))

    def leave_out_templates(
        self, distances: Mapping[str, Floats], place_B: Ints, comparison: Comparison
    ) -> None:
        """Leave each probe's own template, at `place_B`, out of its distances."""
        row_B = np.arange(len(place_B))
        for rule, dist in distances.items():
            if rule != "mean":
                dist[row_B, place_B] = np.inf
                continue
            own_B = np.searchsorted(self.each.code, self.code[place_B])
            num_B1 = self.grouped.count()[own_B][:, None]
            emb_BD = self.emb[place_B]
            sum_BD = self.mean[own_B].astype(np.float64) * num_B1 - emb_BD
            left_BD = (sum_BD / np.maximum(num_B1 - 1, 1)).astype(np.float32)
            own = np.asarray(comparison.pairwise(emb_BD, left_BD), dtype=np.float32)
            dist[row_B, own_B] = np.where(num_B1[:, 0] > 1, own, np.inf)
