"""Templates in memory: the narrow array changes the time only, not the result."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_gallery_store import DIM, SETTINGS, erase, fill, make_rows, vectors

from twinlens.gallery import snapshot
from twinlens.gallery.snapshot import NARROW, WORTH_NARROWING, Bounds, Snapshot, Snapshots
from twinlens.gallery.store import Store

Vectors = NDArray[np.float32]


def whole_table(vector_MD: Vectors) -> pa.Table:
    """One identity for each three rows."""
    num, dim = vector_MD.shape
    names = pa.array([f"id {row // 3:06d}" for row in range(num)], pa.string())
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector_MD.ravel()), dim)
    times = pa.array(np.arange(num), pa.timestamp("us", "UTC"))
    named = {"identity": names, "path": names, "hash": names}
    return pa.table({**named, "time": times, "vector": column})


def snapshot_of(vector_MD: Vectors, monkeypatch: pytest.MonkeyPatch, least: int = 0) -> Snapshot:
    """With a narrow array however few there are."""
    monkeypatch.setattr(snapshot, "WORTH_NARROWING", least)
    return Snapshot.of(1, whole_table(vector_MD))


def shaped(kind: str, num: int, dim: int, rng: np.random.Generator) -> Vectors:
    """Vectors that vary in a few directions, in all alike, in lengths, or hardly at all."""
    plain = rng.standard_normal((num, dim))
    if kind == "few":
        plain *= 0.8 ** np.arange(dim)
    if kind == "lengths":
        plain *= 10.0 ** rng.uniform(-3, 3, (num, 1))
    if kind == "twins":
        plain = np.random.default_rng(9).standard_normal((5, dim))[rng.integers(0, 5, num)]
    if kind == "one corner":
        plain = 100 + 1e-3 * plain
    return plain.astype(np.float32)


KINDS = ("few", "alike", "lengths", "twins", "one corner")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [1, 4, 50])
def test_nearest_is_that_of_a_loop(kind: str, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vector_MD = shaped(kind, 3000, 2 * NARROW, rng)
    snap = snapshot_of(vector_MD, monkeypatch)
    assert snap.bounds.turn is not None
    for probe_D in [vector_MD[7], *shaped(kind, 5, 2 * NARROW, rng)]:
        row_S, square_S = snap.nearest(probe_D, num)
        truth_M = np.array([np.square(row - probe_D).sum(dtype=np.float32) for row in vector_MD])
        assert np.all(np.diff(square_S) >= 0)
        np.testing.assert_allclose(square_S, truth_M[row_S], rtol=1e-5)
        left_out = np.delete(truth_M, row_S)
        assert len(row_S) >= num
        assert left_out.min(initial=np.inf) > square_S[-1] * (1 - 1e-5)
        assert np.all(square_S[num - 1 :] == square_S[num - 1])  # More only where they are as near.


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_never_too_high(kind: str) -> None:
    rng = np.random.default_rng(1)
    vector_MD = shaped(kind, WORTH_NARROWING, 2 * NARROW, rng)
    for bounds in (Bounds.of(vector_MD), Bounds.plain(vector_MD)):
        for probe_D in [vector_MD[3], *shaped(kind, 3, 2 * NARROW, rng)]:
            exact_M = np.square(vector_MD.astype(np.float64) - probe_D).sum(axis=1)
            assert np.all(bounds.below(probe_D) <= exact_M + 1e-9)


def test_the_narrow_array_is_tight_where_few_directions_matter() -> None:
    rng = np.random.default_rng(2)
    vector_MD = shaped("few", WORTH_NARROWING, 4 * NARROW, rng)
    bounds, probe_D = Bounds.of(vector_MD), vector_MD[5]
    assert bounds.narrow.shape == (WORTH_NARROWING, NARROW)
    exact_M = np.square(vector_MD - probe_D).sum(axis=1)
    assert np.corrcoef(bounds.below(probe_D), exact_M)[0, 1] > 0.99


def test_a_template_is_no_distance_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    vector_MD = shaped("one corner", 500, 2 * NARROW, np.random.default_rng(3))
    snap = snapshot_of(vector_MD, monkeypatch)
    for row in (0, 17, 499):
        row_S, square_S = snap.nearest(vector_MD[row], 1)
        assert (row_S.tolist(), square_S.tolist()) == ([row], [0.0])


def test_as_many_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    vector_MD = shaped("alike", 10, 2 * NARROW, np.random.default_rng(4))
    snap = snapshot_of(vector_MD, monkeypatch, least=100)
    for num in (10, 11, 1000):
        row_S, square_S = snap.nearest(vector_MD[2], num)
        assert sorted(row_S) == list(range(10))
        assert row_S[0] == 2
        assert np.all(np.diff(square_S) >= 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=700),
    st.integers(1, 40),
)
def test_the_lowest_hold_the_true_ones(values: list[int], num: int) -> None:
    low_M = np.array(values, dtype=np.float32)
    num = min(num, len(values))
    result = snapshot._lowest(low_M, num)
    assert len(set(result.tolist())) == len(result) >= num
    assert sorted(low_M[result])[:num] == sorted(values)[:num]


def test_an_extended_snapshot_equals_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the reserved memory and beyond, with and without a narrow array."""
    monkeypatch.setattr(snapshot, "SPARE", 5)
    vector_MD = shaped("few", 60, 2 * NARROW, np.random.default_rng(5))
    for least in (0, 50, 100):
        whole = snapshot_of(vector_MD, monkeypatch, least)
        rows = whole_table(vector_MD)
        snap = Snapshot.of(1, rows[:40])
        for start, end in ((40, 40), (40, 44), (44, 45), (45, 60)):
            older, size = snap, len(snap)
            snap = snap.extended(2, rows[start:end])
            assert len(older) == size
            assert len(snap) == end
        np.testing.assert_array_equal(snap.vector, vector_MD)
        assert snap.identities.equals(whole.identities)
        assert snap.path.equals(whole.path)
        assert snap.hash.equals(whole.hash)
        np.testing.assert_array_equal(snap.code, whole.code)
        assert snap.of_identity(15).tolist() == [45, 46, 47]
        for mine, other in zip(
            snap.nearest(vector_MD[50], 7), whole.nearest(vector_MD[50], 7), strict=True
        ):
            np.testing.assert_array_equal(mine, other)


def test_a_newer_version_is_seen(tmp_path: Path) -> None:
    """New, renamed and erased templates; what did not change is not read again."""
    store = Store.create(tmp_path / "g", DIM, SETTINGS, {})
    emb_ND = fill(store, anna=4, bert=2)
    snapshots = Snapshots(store)
    first = snapshots.latest()
    assert first is snapshots.latest()
    assert first.identities.to_pylist() == ["anna", "bert"]
    np.testing.assert_array_equal(first.vector, emb_ND)
    store.insert(make_rows(["aaron"] * 3, vectors(3, seed=8)))
    second = snapshots.latest()
    assert second.identities.to_pylist() == ["anna", "bert", "aaron"]
    assert second.code.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert second.room is first.room
    np.testing.assert_array_equal(second.vector, np.concatenate([emb_ND, vectors(3, seed=8)]))
    store.rename("anna", "zoe")
    assert set(snapshots.latest().identities.to_pylist()) == {"aaron", "bert", "zoe"}
    erase(store, "bert")
    assert set(snapshots.latest().identities.to_pylist()) == {"aaron", "zoe"}
    assert len(snapshots.latest()) == 7
    assert len(first) == 6


@pytest.mark.parametrize("narrow", [0, 10_000])
def test_rows_of_rewritten_fragments_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: int
) -> None:
    """Compaction, erasure, renaming, and a new template with an old hash, each in one step."""
    monkeypatch.setattr(snapshot, "LARGE", 10)
    monkeypatch.setattr(snapshot, "MOST_SKIPPED", 0.5)
    monkeypatch.setattr(snapshot, "WORTH_NARROWING", narrow)
    store = Store.create(tmp_path / "g", DIM, SETTINGS, {})
    fill(store, **{f"id {number}": 3 for number in range(30)})
    snapshots, rng = Snapshots(store), np.random.default_rng(0)
    first = snapshots.latest()
    store.insert(make_rows(["late"] * 3, vectors(3, seed=8)))
    snapshots.latest()
    store.compact()
    assert snapshots.latest().vector.base is first.vector.base
    erase(store, "id 7")
    store.rename("id 3", "zoe")
    again = store.find("identity = 'id 9'")
    erase(store, "id 9")
    moved = pa.array(rng.standard_normal(3 * DIM).astype(np.float32))
    values = {
        "vector": pa.FixedSizeListArray.from_arrays(moved, DIM),
        "time": pc.add(again["time"], pa.scalar(timedelta(seconds=1))),
    }
    for name, column in values.items():
        place = again.schema.get_field_index(name)
        again = again.set_column(place, again.schema.field(name), column)
    store.insert(again)
    kept = snapshots.latest()
    assert kept.vector.base is first.vector.base
    whole = Snapshots(store).latest()
    assert len(kept) == len(whole) == 90
    assert len(kept.vector) == 99
    for probe_D in [vectors(1, seed=8)[0], whole.vector[5], *rng.standard_normal((5, DIM))]:
        for num in (1, 5, 90):
            results = [snap.nearest(probe_D.astype(np.float32), num) for snap in (kept, whole)]
            hashes = [
                snap.hash.take(pa.array(rows)).to_pylist()
                for snap, (rows, _) in zip((kept, whole), results, strict=True)
            ]
            assert hashes[0] == hashes[1]
            np.testing.assert_array_equal(results[0][1], results[1][1])
    named = [
        snap.identities.take(pa.array(snap.code[snap.rows()])).value_counts().to_pylist()
        for snap in (kept, whole)
    ]
    assert sorted(map(str, named[0])) == sorted(map(str, named[1]))
