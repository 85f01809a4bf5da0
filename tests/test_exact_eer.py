"""The equal error rate of all pairs is that of the pairs listed one by one."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from twinlens.data.table import pair_masks
from twinlens.errors import DataError
from twinlens.measure import exact_eer as all_pairs
from twinlens.measure import pairs as pairs_module
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.error_rates import det_curve, eer
from twinlens.measure.exact_eer import exact_eer

EUCLIDEAN = EuclideanComparison("euclidean")


class Opaque:
    """A comparison of which nothing is known but its distances."""

    matrix = EUCLIDEAN.matrix
    pairwise = EUCLIDEAN.pairwise


def people(num, identities, *, forgeries=0.0, decimals=6, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, identities, num) * 3 - 5
    _, code = np.unique(label, return_inverse=True)
    emb = rng.normal(size=(identities, 6))[code] + 1.5 * rng.normal(size=(num, 6))
    return emb.round(decimals).astype(np.float32), label, rng.random(num) < forgeries


def listed(emb, label, forged, comparison):
    dist = comparison.matrix(emb, emb)
    a, b = np.triu_indices(len(label), 1)
    genuine, impostor = pair_masks(label[a], forged[a], label[b], forged[b])
    return dist[a, b][genuine], dist[a, b][impostor]


@pytest.mark.parametrize("forgeries", [0.0, 0.3])
@pytest.mark.parametrize("decimals", [0, 6])  # 0: many ties
@pytest.mark.parametrize("comparison", [EUCLIDEAN, EuclideanComparison("cosine"), Opaque()])
def test_equals_the_rate_of_the_pairs_listed(forgeries, decimals, comparison, monkeypatch):
    if comparison == EuclideanComparison("cosine"):
        decimals = 6  # unit vectors are rounded, which breaks ties in either way
    data = people(700, 15, forgeries=forgeries, decimals=decimals)
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 48 * 700 * 90)
    monkeypatch.setattr(all_pairs, "SAMPLE", 3000)
    genuine, impostor = listed(*data, comparison)
    found = exact_eer(*data, comparison)
    assert found.eer == pytest.approx(eer(det_curve(genuine, impostor)), abs=1e-9)
    assert (found.num_genuine, found.num_impostor) == (len(genuine), len(impostor))


def test_equals_the_loop():
    data = people(25, 4, forgeries=0.2)
    genuine, impostor = listed(*data, EUCLIDEAN)
    assert exact_eer(*data, EUCLIDEAN).eer == pytest.approx(
        reference.equal_error_rate(genuine.tolist(), impostor.tolist())
    )


def test_by_hand():
    # Genuine 1 and 3, impostors 2, 3, 5 and 6. FAR and FRR are 1/4 and 1/2 at 2, 1/2 and 0 at 3:
    # their difference goes from -1/4 to 1/2, so that they cross after a third of the way.
    emb = np.array([[0], [1], [-5], [-2]], np.float32)
    found = exact_eer(emb, [0, 0, 1, 1], [False] * 4, EUCLIDEAN)
    assert (found.num_genuine, found.num_impostor) == (2, 4)
    assert found.eer == pytest.approx(1 / 3)


def test_a_misleading_sample_is_noticed(monkeypatch):
    data = people(500, 10)
    expected = eer(det_curve(*listed(*data, EUCLIDEAN)))
    looked = []

    def around(self, width):
        looked.append(width)
        return (-all_pairs.FARTHEST, 0.5) if width < np.inf else (0.5, all_pairs.FARTHEST)

    monkeypatch.setattr(all_pairs._Gap, "around", around)
    assert exact_eer(*data, EUCLIDEAN).eer == pytest.approx(expected, abs=1e-9)
    assert looked == list(all_pairs.WIDTHS)


def test_few_pairs_are_kept(monkeypatch):
    emb, label, forged = people(3000, 150)
    monkeypatch.setattr(all_pairs, "SAMPLE", 100_000)
    kept = []
    merged = all_pairs._Side.merged.__func__

    def counted(cls, sides):
        kept.append(sum(len(side.value) for side in sides))
        return merged(cls, sides)

    monkeypatch.setattr(all_pairs._Side, "merged", classmethod(counted))
    seen = []
    found = exact_eer(
        emb, label, forged, EUCLIDEAN, progress=lambda done, total: seen.append((done, total))
    )
    assert len(kept) == 2
    assert sum(kept) < 0.1 * found.num_impostor
    assert seen[-1] == (3000, 3000)


def test_the_seed_and_the_order_change_nothing():
    emb, label, forged = people(400, 8, forgeries=0.1)
    order = np.random.default_rng(1).permutation(400)
    first = exact_eer(emb, label, forged, EUCLIDEAN)
    again = exact_eer(emb[order], label[order] + 9, forged[order], EUCLIDEAN, seed=5)
    assert first.eer == pytest.approx(again.eer, abs=1e-6)


def test_collapsed_embeddings_are_chance():
    emb, label, forged = people(200, 5)
    assert exact_eer(emb * 0, label, forged, EUCLIDEAN).eer == 0.5


def test_what_cannot_be_measured_is_refused():
    emb, label, forged = people(60, 4)
    with pytest.raises(DataError, match="0 impostor"):
        exact_eer(emb, label * 0, forged, EUCLIDEAN)
    with pytest.raises(DataError, match="0 genuine"):
        exact_eer(emb, np.arange(60), forged, EUCLIDEAN)
    emb[3, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        exact_eer(emb, label, forged, EUCLIDEAN)
