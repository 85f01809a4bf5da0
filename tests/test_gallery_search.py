"""Nearest identities and templates agree in memory, by the index, and by a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_matcher import make_matcher

from twinlens.gallery import search as lookup
from twinlens.gallery.gallery import Gallery
from twinlens.measure.fusion import RULES

NUM, DIM = 60, 8


def filled(place: Path, comparator: str = "cosine") -> tuple[Gallery, np.ndarray, list[str]]:
    """60 templates of 12 identities, named so that their order is not that of enrolment."""
    matcher = make_matcher(place / "m", "grey", comparator, normalize=False)
    gallery = Gallery.create(place / "g", matcher)
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(NUM, DIM)).astype(np.float32)
    names = [f"id {(7 * n) % 12:02d}" for n in range(NUM)]
    for part in (slice(0, 25), slice(25, NUM)):
        gallery.enrol_embeddings(
            emb[part], names[part], fingerprint=gallery.fingerprint,
            path=[f"{n}.png" for n in range(NUM)][part],
            metadata=[{"even": n % 2 == 0, "n": n} for n in range(NUM)][part],
        )  # fmt: skip
    return gallery, emb, names


def loop(gallery: Gallery, emb: np.ndarray, names: list[str], probe: np.ndarray, rule: str):
    """(distance, identity) of all identities, the slow way."""
    compare = gallery.matcher.comparison.pairwise
    result = []
    for name in sorted(set(names)):
        own = gallery.core.prepared(emb[[n == name for n in names]])
        own = own.mean(axis=0, keepdims=True) if rule == "mean" else own
        result.append((min(float(compare(probe[None], row[None])[0]) for row in own), name))
    return sorted(result)


@pytest.mark.parametrize("comparator", ["cosine", "euclidean", "sigmoid", "network"])
@pytest.mark.parametrize("rule", ["nearest", "mean"])
def test_identities_in_memory_are_the_loops(tmp_path: Path, comparator: str, rule: str) -> None:
    gallery, emb, names = filled(tmp_path, comparator)
    for probe in np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32):
        result = gallery.lookup.identities(gallery.core.prepared(probe[None])[0], rule, 4, None,
                                          in_memory=True)  # fmt: skip
        expected = loop(gallery, emb, names, probe, rule)[:4]
        assert [one.identity for one in result] == [name for _, name in expected]
        np.testing.assert_allclose(
            [one.distance for one in result], [d for d, _ in expected], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("comparator", ["cosine", "network"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("indexed", [False, True])
def test_index_and_scan_answer_as_memory_does(
    tmp_path: Path, comparator: str, rule: str, indexed: bool
) -> None:
    gallery, _, _ = filled(tmp_path, comparator)
    if indexed:
        gallery.store.make_index(4)
    nprobes = 4 if indexed else None
    for probe in np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32):
        probe = gallery.core.prepared(probe[None])[0]
        memory = gallery.lookup.identities(probe, rule, 5, None, in_memory=True)
        disk = gallery.lookup.identities(probe, rule, 5, nprobes, in_memory=False)
        assert [(one.identity, one.path) for one in disk] == [
            (one.identity, one.path) for one in memory
        ]
        np.testing.assert_allclose(
            [one.distance for one in disk], [one.distance for one in memory], atol=1e-5
        )


def test_a_shortlist_grows_until_it_holds_enough_identities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "SHORTLIST", 2)
    gallery, emb, _ = filled(tmp_path)
    crowd = np.tile(emb[0], (40, 1)) + np.linspace(0, 1e-3, 40)[:, None].astype(np.float32)
    gallery.enrol_embeddings(crowd, ["id 00"] * 40, fingerprint=gallery.fingerprint)
    result = gallery.lookup.identities(gallery.core.prepared(emb[:1])[0], "nearest", 12, None,
                                      in_memory=False)  # fmt: skip
    assert len({one.identity for one in result}) == 12
    assert result[0].identity == "id 00"


@pytest.mark.parametrize("comparator", ["euclidean", "network"])
def test_search_in_memory_by_scan_and_by_loop(tmp_path: Path, comparator: str) -> None:
    gallery, emb, names = filled(tmp_path, comparator)
    probe = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
    dist = gallery.matcher.comparison.pairwise(np.tile(probe, (NUM, 1)), emb)
    for where, allowed in [
        (None, range(NUM)),
        ("metadata.even = 'true'", range(0, NUM, 2)),
        ("metadata.n >= 30 AND identity <> 'id 03'", [n for n in range(30, NUM)
                                                      if names[n] != "id 03"]),
        ("path LIKE '1%.png'", [n for n in range(NUM) if str(n).startswith("1")]),
    ]:  # fmt: skip
        expected = sorted((float(dist[n]), f"{n}.png") for n in allowed)[:7]
        hits = gallery.search_embedding(probe, k=7, where=where)
        assert [hit.path for hit in hits] == [path for _, path in expected]
        np.testing.assert_allclose([h.distance for h in hits], [d for d, _ in expected], rtol=1e-4)
        assert all(hit.metadata["n"] == int(hit.path.removesuffix(".png")) for hit in hits)


def test_a_template_is_no_distance_from_itself(tmp_path: Path) -> None:
    gallery, emb, _ = filled(tmp_path, "euclidean")
    assert gallery.search_embedding(emb[17], k=1)[0].distance == 0
    assert gallery.nearest(emb[17], 1)[0].distance == 0
    gallery.store.make_index(4)
    result = gallery.lookup.identities(emb[17], "nearest", 1, 4, in_memory=False)
    assert result[0].distance == 0


def test_an_empty_gallery_has_nobody(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "g", make_matcher(tmp_path / "m", "grey"))
    probe = np.ones(DIM, dtype=np.float32)
    assert gallery.nearest(probe, 3) == []
    assert gallery.search_embedding(probe) == ()
    assert gallery.lookup.identities(probe, "vote", 3, None, in_memory=False) == []


def test_conditions_and_large_k_reach_into_far_partitions(tmp_path: Path) -> None:
    """The index looks into one partition of many, and into more where that holds too little."""
    gallery = Gallery.create(
        tmp_path / "g", make_matcher(tmp_path / "m", "grey", "euclidean", normalize=False)
    )
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(20, DIM)) * 50
    code = np.repeat(np.arange(20), 100)
    emb = (centre[code] + rng.normal(size=(2000, DIM))).astype(np.float32)
    names = [f"id {one:02d}" for one in code]
    gallery.enrol_embeddings(emb, names, fingerprint=gallery.fingerprint)
    assert gallery.optimize(partitions=20, target_recall=0.1).nprobes == 1
    far = int(np.argmax(np.linalg.norm(centre - centre[0], axis=1)))
    hits = gallery.search_embedding(emb[0], k=50, where=f"identity = 'id {far:02d}'")
    assert len(hits) == 50
    assert {hit.identity for hit in hits} == {f"id {far:02d}"}
    assert len(gallery.search_embedding(emb[0], k=2000)) == 2000
    assert len(gallery.nearest(emb[0], 20)) == 20


def test_a_learned_comparator_answers_with_as_many_as_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "RERANKED", 4)
    gallery, emb, _ = filled(tmp_path, "network")
    assert len(gallery.search_embedding(emb[0], k=50)) == 50
    near = gallery.nearest(emb[0], 12)
    assert len({one.identity for one in near}) == 12
