"""After an erasure no file of a gallery holds data of the identity."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from gallery_writer import batch, enrol
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinlens.errors import GalleryError
from twinlens.gallery.gallery import Gallery

WHO = "Zoë d'Ça"


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


@pytest.fixture
def pictures(picture_folder: PictureFolder) -> Path:
    return picture_folder({WHO: 5, "anna": 4, "bert": 4, "carl": 6})


@dataclass(frozen=True)
class Person:
    """All that a gallery stores of an identity, as bytes by kind."""

    traces: dict[str, list[bytes]]

    @classmethod
    def of(cls, gallery: Gallery, *names: str) -> Person:
        rows = gallery.store.find("identity = " + "'" + names[-1].replace("'", "''") + "'")
        emb = np.array(rows["vector"].to_pylist(), np.float32)
        thumbnails = [one for one in rows["thumbnail"].to_pylist() if one]
        return cls(
            {
                "vectors": traces_of_vectors(emb),
                "names": traces_of_texts(names),
                "paths": traces_of_texts(rows["path"].to_pylist()),
                "hashes": traces_of_texts(rows["hash"].to_pylist()),
                "thumbnails": thumbnails,
                "ends of thumbnails": [one[-64:] for one in thumbnails],
                "metadata": traces_of_texts(
                    str(value)
                    for text in rows["metadata"].to_pylist()
                    for value in json.loads(text).values()
                ),
            }
        )

    def traces_in(self, place: Path) -> dict[str, list[str]]:
        """Of what kinds something is found, and in which files."""
        seen = {kind: found_in(place, traces) for kind, traces in self.traces.items()}
        return {
            kind: sorted({name for names in files.values() for name in names})
            for kind, files in seen.items()
            if files
        }


def others(gallery: Gallery, *names: str) -> list[dict[str, object]]:
    rows = gallery.store.find().to_pylist()
    return sorted((row for row in rows if row["identity"] not in names), key=lambda r: r["hash"])


def again(gallery: Gallery, pictures: Path) -> str:
    """Of a picture that is known nothing is stored twice; of a new one it is."""
    extra = pictures / WHO / "extra.png"
    extra.write_bytes((pictures / WHO / "0.png").read_bytes() + b"more")
    gallery.enrol_files(WHO, [pictures / WHO / "1.png", extra], keep_thumbnails=True)
    return WHO


HISTORIES: dict[str, Callable[[Gallery, Path], str]] = {
    "plain": lambda gallery, pictures: WHO,
    "indexed": lambda gallery, pictures: (gallery.optimize(partitions=3), WHO)[1],
    "compacted": lambda gallery, pictures: (gallery.optimize(), WHO)[1],
    "renamed": lambda gallery, pictures: (gallery.rename(WHO, "Näme two"), "Näme two")[1],
    "renamed and back": lambda gallery, pictures: (
        gallery.rename(WHO, "Näme two"),
        gallery.optimize(partitions=2),
        gallery.rename("Näme two", WHO),
    ) and WHO,
    "indexed, then more": lambda gallery, pictures: (
        gallery.optimize(partitions=2),
        again(gallery, pictures),
    )[1],
    "calibrated": lambda gallery, pictures: (gallery.calibrate(fpir=0.5), WHO)[1],
}  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES)
def test_nothing_is_left(gallery: Gallery, pictures: Path, history: str) -> None:
    place = Path(gallery.place)
    secret = {"note": "sekret-4711", "camera": "Nordeingang"}
    gallery.enrol_files(
        WHO, sorted((pictures / WHO).iterdir()), metadata=secret, keep_thumbnails=True
    )
    for name in ("anna", "bert", "carl"):
        gallery.enrol_files(name, sorted((pictures / name).iterdir()), keep_thumbnails=True)
    name = HISTORIES[history](gallery, pictures)
    person = Person.of(gallery, WHO, name)
    before = others(gallery, name)
    reader = Gallery.open(place)
    vectors = [np.array(row["vector"], np.float32) for row in gallery.store.find().to_pylist()]
    reader.search_embedding(vectors[0], k=3)
    assert set(person.traces_in(place)) == set(person.traces)

    receipt = gallery.erase(name)

    assert person.traces_in(place) == {}
    assert others(gallery) == before
    assert name not in reader.identities()
    for vector in vectors:
        hits = reader.search_embedding(vector, k=30)
        assert {hit.identity for hit in hits} == {"anna", "bert", "carl"}
        assert all(one.identity != name for one in reader.identify_embedding(vector).candidates)
    said = (json.dumps(receipt.as_json(), ensure_ascii=False) + receipt.as_text()).encode()
    kinds = {kind: [t for t in traces if t in said] for kind, traces in person.traces.items()}
    assert not any(kinds.values())
    assert receipt.num_templates == receipt.num_thumbnails == 5 + (history == "indexed, then more")
    assert receipt.num_left == len(before)


def test_erased_people_may_come_back(gallery: Gallery, pictures: Path) -> None:
    gallery.enrol(pictures)
    gallery.erase(WHO)
    with pytest.raises(GalleryError, match="anna"):
        gallery.erase("annna")
    assert gallery.enrol(pictures).num_new == 5
    assert gallery.identities()[WHO] == 5


def test_the_last_one(gallery: Gallery, pictures: Path) -> None:
    files = sorted((pictures / WHO).iterdir())
    gallery.enrol_files(WHO, files)
    person = Person.of(gallery, WHO)
    gallery.erase(WHO)
    assert person.traces_in(Path(gallery.place)) == {}
    assert len(gallery) == 0
    assert gallery.identify(files[0]).verdict == "nobody"


def test_the_digest_of_a_picture_goes_too(gallery: Gallery, pictures: Path) -> None:
    """It would reveal that a given picture was enrolled."""
    file = pictures / WHO / "0.png"
    gallery.enrol(pictures)
    name = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    traces = [name.hex().encode(), name]
    assert found_in(Path(gallery.place), traces)
    gallery.erase(WHO)
    assert found_in(Path(gallery.place), traces) == {}


def centres(gallery: Gallery) -> NDArray[np.float32]:
    """Those of the index, shape (partitions, D)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANCE_INCLUDE_VECTOR_CENTROIDS", "true")
        result = gallery.store.read(lambda table: table.stats.index_stats("vector_idx"))
    return np.array(result["indices"][0]["centroids"], np.float32)


def test_an_index_that_the_settings_do_not_know(gallery: Gallery) -> None:
    """As a kill leaves it between building an index and writing what was measured of it."""
    same = np.repeat(batch(1, 1).emb, 300, axis=0)
    names = [f"{number:032x}" for number in range(300)]
    gallery.enrol_embeddings(same, [WHO] * 300, fingerprint=gallery.fingerprint, hash=names)
    enrol(gallery, batch(2, 60))
    vector = np.array(gallery.store.find(limit=1)["vector"][0].as_py(), np.float32)
    gallery.store.make_index(4)
    # Training draws at random, so that a centre is near it, and not it; others are 0.2 away.
    assert np.abs(centres(gallery) - vector).max(axis=1).min() < 1e-2
    gallery.erase(WHO)
    assert gallery.store.num_partitions() == 4
    assert np.abs(centres(gallery) - vector).max(axis=1).min() > 5e-2
    assert found_in(Path(gallery.place), traces_of_vectors(vector[None])) == {}


def between(gallery: Gallery, action: Callable[[Gallery], object]) -> None:
    """Another process does something before this one's turn to write comes."""
    store, real = gallery.store.table, gallery.store.table._write_lock

    def turn() -> AbstractContextManager[None]:
        store._write_lock = real  # type: ignore[method-assign]
        action(Gallery.open(gallery.place))
        return real()

    store._write_lock = turn  # type: ignore[method-assign]


def test_one_enrolled_in_between_is_erased_too(gallery: Gallery) -> None:
    enrol(gallery, batch(1, 5))
    enrol(gallery, batch(2, 5))
    late = batch(3, 4)
    between(gallery, lambda other: enrol(other, replace(late, identity="person-0000001")))
    receipt = gallery.erase("person-0000001")
    assert (receipt.num_templates, receipt.num_left) == (9, 5)
    assert gallery.identities() == {"person-0000002": 5}
    assert found_in(Path(gallery.place), traces_of_texts(late.hash)) == {}


def test_an_identity_made_in_between_is_not_merged_with(gallery: Gallery) -> None:
    enrol(gallery, batch(1, 5))
    between(gallery, lambda other: enrol(other, batch(2, 4)))
    with pytest.raises(GalleryError, match="exists already, with 4 templates: give --merge"):
        gallery.rename("person-0000001", "person-0000002")
    assert gallery.identities() == {"person-0000001": 5, "person-0000002": 4}
    between(gallery, lambda other: other.erase("person-0000001"))
    with pytest.raises(GalleryError, match="unknown identity 'person-0000001'"):
        gallery.rename("person-0000001", "new")


def test_error_of_an_interrupted_erasure(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, batch(1, 5))
    enrol(gallery, batch(2, 5))

    def fails() -> None:
        raise GalleryError("cannot write the gallery: it burns")

    monkeypatch.setattr(gallery.store, "clear", fails)
    with pytest.raises(GalleryError, match=r"^5 .* erased .* burns.*optimize") as told:
        gallery.erase("person-0000001")
    assert "it is unchanged" not in str(told.value)
    monkeypatch.undo()
    assert gallery.identities() == {"person-0000002": 5}
    assert gallery.info().num_deletions == 1


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_others_are_never_touched(
    data: st.DataObject, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever happened before and in whatever order, and the bytes are gone."""
    place = tmp_path_factory.mktemp("any") / "g"
    gallery = Gallery.create(place, tiny_run.model)
    for number in range(4):
        enrol(gallery, batch(number, data.draw(st.integers(1, 30), label="templates")))
        if data.draw(st.booleans(), label="optimize"):
            gallery.optimize(partitions=data.draw(st.integers(0, 3), label="partitions"))
    who = f"person-{data.draw(st.integers(0, 3), label='who'):07d}"
    person, before = Person.of(gallery, who), others(gallery, who)
    del person.traces["metadata"]  # Numbers, such as others have.
    gallery.erase(who)
    assert person.traces_in(place) == {}
    assert others(gallery) == before
    index = gallery.state().index
    assert Gallery.open(place).store.num_partitions() == (index.partitions if index else 0)


def test_readers_continue_during_erasures(gallery: Gallery) -> None:
    """Threads that look all the time, while one identity after the other goes."""
    for number in range(6):
        enrol(gallery, batch(number, 20))
    gallery.optimize(partitions=2)
    done, problems = threading.Event(), []

    def look() -> None:
        reader = Gallery.open(gallery.place)
        while not done.is_set():
            try:
                hits = reader.search_embedding(batch(5, 20).emb[0], k=20)
                assert len(hits) == 20
                assert hits[0].path == batch(5, 20).path[0]
                assert reader.identify_embedding(batch(5, 20).emb[0]).candidates
            except Exception as error:
                problems.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        gallery.erase(f"person-{number:07d}")
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert gallery.identities() == {"person-0000004": 20, "person-0000005": 20}


def test_an_erasure_deletes_the_temporary_files_of_killed_writers(gallery: Gallery) -> None:
    enrol(gallery, batch(0))
    table = Path(gallery.place) / "templates.lance"
    left = [table / folder / ".tmpA1b2C3" for folder in ("data", "_transactions", "_versions")]
    for path in left:
        path.write_text(batch(0).hash[0])
    gallery.erase(batch(0).identity)
    assert not [path for path in left if path.exists()]
