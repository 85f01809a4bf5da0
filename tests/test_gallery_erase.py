"""After an erasure no file of a gallery holds anything of whom it was about."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from gallery_writer import batch, enrol
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.errors import GalleryError
from twinlens.match.gallery import Gallery

WHO = "Zoë d'Ça"


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


@pytest.fixture
def pictures(picture_folder: PictureFolder) -> Path:
    return picture_folder({WHO: 5, "anna": 4, "bert": 4, "carl": 6})


@dataclass(frozen=True)
class Person:
    """All that a gallery knows of somebody: bytes that the files hold, by what they are."""

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

    def found(self, place: Path) -> dict[str, list[str]]:
        """Of what kinds something is found, and in which files."""
        seen = {kind: found_in(place, traces) for kind, traces in self.traces.items()}
        return {
            kind: sorted({name for names in found.values() for name in names})
            for kind, found in seen.items()
            if found
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
    assert set(person.found(place)) == set(person.traces)

    receipt = gallery.erase(name)

    assert person.found(place) == {}
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
    assert person.found(Path(gallery.place)) == {}
    assert len(gallery) == 0
    assert gallery.identify(files[0]).verdict == "nobody"


def test_the_digest_of_a_picture_goes_too(gallery: Gallery, pictures: Path) -> None:
    """It would show that a picture somebody has was enrolled."""
    file = pictures / WHO / "0.png"
    gallery.enrol(pictures)
    name = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    traces = [name.hex().encode(), name]
    assert found_in(Path(gallery.place), traces)
    gallery.erase(WHO)
    assert found_in(Path(gallery.place), traces) == {}


@settings(max_examples=6, deadline=None)
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
    assert person.found(place) == {}
    assert others(gallery) == before
    assert Gallery.open(place).store.num_partitions() == (gallery.state().index or {}).get(
        "partitions", 0
    )


def test_readers_go_on_during_erasures(gallery: Gallery) -> None:
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
