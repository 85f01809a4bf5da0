"""The index of a large gallery agrees with its stored measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun
from gallery_writer import batch, enrol

from twinlens.gallery import index as indexing
from twinlens.gallery.gallery import Gallery


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    made = Gallery.create(tmp_path / "gallery", tiny_run.model)
    for number in range(3):
        enrol(made, batch(number, 20))
    return made


def test_only_a_measurement_of_this_index_counts() -> None:
    four, also_four, eight = ({"partitions": n} for n in (4, 4, 8))
    assert indexing._of_partitions(4, None, eight, four, also_four) is four
    assert indexing._of_partitions(0, None, four) is None
    assert indexing._of_partitions(8, four, None) is None


@pytest.mark.parametrize("others", [0, 3])
def test_a_measurement_of_an_index_that_is_gone_is_not_written(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Two optimizations at once: the later index counts, and only its own measurement."""
    real = indexing._measure

    def measure(*args: Any) -> Any:
        result = real(*args)
        monkeypatch.undo()
        Gallery.open(gallery.place).optimize(partitions=others)
        return result

    monkeypatch.setattr(indexing, "_measure", measure)
    result = gallery.optimize(partitions=5)
    assert result.partitions == gallery.store.num_partitions() == others
    assert result.search == gallery.info().search == ("index" if others else "exact")
    assert gallery.info().partitions == others
    index = gallery.store.settings()["index"]
    assert index is None or set(index) == {"partitions", "nprobes", "recall"}


def test_a_measurement_without_its_index_is_not_used(gallery: Gallery) -> None:
    gallery.optimize(partitions=4)
    assert gallery.info().search == "index"
    gallery.store.make_index(0)
    info = gallery.info()
    assert (info.search, info.partitions, info.nprobes, info.recall) == ("scan", 0, None, None)
    assert "twinlens gallery optimize" in info.as_text()
    probe = batch(1, 20)
    assert gallery.search_embedding(probe.emb[3], k=1)[0].hash == probe.hash[3]
    gallery.optimize()
    assert gallery.info().search == "exact"


def test_when_an_index_is_wanted(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gallery.needs_index()
    monkeypatch.setattr("twinlens.gallery.search.EXACT_BYTES", 0)  # Too large for memory.
    assert gallery.needs_index()
    gallery.store.make_index(3)  # And killed before it was measured.
    assert gallery.store.num_unindexed() == 0
    assert gallery.needs_index()
    gallery.optimize(partitions=3)
    assert not gallery.needs_index()
    enrol(gallery, batch(7, 10))
    assert not gallery.needs_index()
    enrol(gallery, batch(8, 10))
    assert gallery.needs_index()
    gallery.optimize(partitions=3)
    gallery.store.make_index(0)
    assert gallery.needs_index()


def test_too_many_for_memory_without_an_index_is_reported(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinlens.gallery.search.EXACT_BYTES", 0)
    result = gallery.optimize(partitions=0)
    assert (result.search, result.partitions, result.recall) == ("scan", 0, 1.0)
    assert "60 templates: no index, and too many for memory: " in result.as_text()
    assert "an index of 3 partitions" in gallery.optimize(partitions=3).as_text()
    monkeypatch.undo()
    assert "exact search in memory" in gallery.optimize().as_text()
