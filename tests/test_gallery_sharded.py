"""Sharded galleries: several galleries queried as one, with the answers of a single one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyRun
from numpy.typing import NDArray
from test_matcher import make_matcher

import twinlens
from twinlens.cli.main import main
from twinlens.errors import GalleryError, NotEnrolledError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.store import Store
from twinlens.match.matcher import Matcher

NUM, EACH = 40, 6


@pytest.fixture(scope="module")
def model(tiny_run: TinyRun) -> Matcher:
    return twinlens.load(tiny_run.run)


@pytest.fixture(scope="module")
def embeddings(model: Matcher) -> NDArray[np.float32]:
    """Templates of NUM identities, EACH of one in a row."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((NUM, 1, model.settings.embedding))
    steps = 0.4 * rng.standard_normal((NUM, EACH, model.settings.embedding))
    return (centre + steps).reshape(NUM * EACH, -1).astype(np.float32)


def enrol(gallery: Gallery, emb: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    gallery.enrol_embeddings(
        emb[rows],
        [f"thing {row // EACH}" for row in rows],
        fingerprint=gallery.fingerprint,
        path=[f"/{row}.png" for row in rows],
        hash=[f"{row:032x}" for row in rows],
    )


@pytest.fixture(scope="module")
def galleries(
    model: Matcher, embeddings: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Gallery, Gallery]:
    """The same templates in one gallery, and in three parts. Do not change them."""
    top = tmp_path_factory.mktemp("sharded")
    single = Gallery.create(top / "single", model)
    sharded = Gallery.create(top / "sharded", model, shards=3)
    for gallery in (single, sharded):
        enrol(gallery, embeddings, np.arange(NUM * EACH))
    return single, sharded


@pytest.mark.parametrize("rule", ["nearest", "mean", "vote"])
def test_the_answers_of_shards_are_those_of_one_gallery(
    galleries: tuple[Gallery, Gallery], embeddings: NDArray[np.float32], rule: str
) -> None:
    single, sharded = galleries
    counts = [len(part) for part in sharded.parts]
    assert sum(counts) == len(sharded) == len(single)
    assert min(counts) > 0
    assert sharded.info().num_bytes > sum(part.store.num_bytes() for part in sharded.parts)
    calibration = single.calibrate(fpir=0.1, rule=rule)
    own = sharded.calibrate(fpir=0.1, rule=rule)  # Of templates in another order.
    assert (own.num_templates, own.tpir.value) == (NUM * EACH, calibration.tpir.value)
    sharded.store.change_settings(lambda old: old | {"open_set": calibration.as_json()})
    rng = np.random.default_rng(1)
    for row in range(0, NUM * EACH, 17):
        probe = embeddings[row] + 0.3 * rng.standard_normal(single.dim).astype(np.float32)
        assert sharded.identify_embedding(probe) == single.identify_embedding(probe)
        hits = [gallery.search_embedding(probe, k=7) for gallery in (single, sharded)]
        assert [hit.hash for hit in hits[0]] == [hit.hash for hit in hits[1]]
    assert sharded.identities() == single.identities()
    lists = [gallery.templates("thing 3").templates for gallery in (single, sharded)]
    assert [row.hash for row in lists[0]] == [row.hash for row in lists[1]]


def test_a_killed_creation_is_completed(
    tmp_path: Path, model: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, places = Store.create, list[str]()

    def create(place: str, *args: Any, **values: Any) -> Store:
        places.append(place)
        if len(places) == 3:
            raise KeyboardInterrupt
        return real(place, *args, **values)

    with monkeypatch.context() as killed:
        killed.setattr(Store, "create", create)
        with pytest.raises(KeyboardInterrupt):
            Gallery.create(tmp_path / "all", model, shards=3)
    assert len(Gallery.create(tmp_path / "all", model, shards=3).parts) == 3
    Gallery.create(tmp_path / "one", model)
    for place in ("all", "one"):
        before = sorted((tmp_path / place).iterdir())
        with pytest.raises(GalleryError, match=f"{place} exists already"):
            Gallery.create(tmp_path / place, model, shards=4)
        assert sorted((tmp_path / place).iterdir()) == before


def test_a_change_reaches_the_part_that_has_the_identity(
    tmp_path: Path, model: Matcher, embeddings: NDArray[np.float32]
) -> None:
    gallery = Gallery.create(tmp_path / "all", model, shards=3)
    enrol(gallery, embeddings, np.arange(30))
    assert gallery.rename("thing 1", "anna") == EACH
    with pytest.raises(GalleryError, match="exists already, with 6 templates"):
        gallery.rename("thing 2", "anna")
    rows = [30, 31]
    more = gallery.enrol_embeddings(  # The second picture is enrolled in another part.
        embeddings[rows], ["anna", "anna"], fingerprint=gallery.fingerprint,
        hash=[f"{row:032x}" for row in (30, 0)],
    )  # fmt: skip
    assert more.num_new == 1
    known = gallery.parts[0].store.find()
    assert gallery.store.insert(known) == gallery.store.insert(known.slice(0, 0)) == 0
    assert sum("anna" in part.identities() for part in gallery.parts) == 1
    assert gallery.erase("anna").num_templates == EACH + 1
    assert gallery.erase_templates([f"{0:032x}", f"{12:032x}"]).num_templates == 2
    with pytest.raises(NotEnrolledError):
        gallery.erase("anna")
    again = Gallery.open(tmp_path / "all")
    assert len(again) == 22
    again.optimize(partitions=1)
    info = again.info()
    assert (info.search, info.num_parts) == ("index", 3)
    assert again.identify_embedding(embeddings[3], far=None).candidates[0].identity == "thing 0"
    with pytest.raises(GalleryError, match="shard-0000"):
        again.export(tmp_path / "all.parquet")
    again.delete()
    assert not (tmp_path / "all").exists()


def test_galleries_of_tenants_are_joined(
    tmp_path: Path, tiny_run: TinyRun, model: Matcher, embeddings: NDArray[np.float32],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place = tmp_path / "people"
    assert main(["gallery", "join", str(place)]) == 2
    assert "no galleries inside" in capsys.readouterr().err
    for number, name in enumerate(["north", "south"]):
        enrol(Gallery.create(place / name, model), embeddings, np.arange(2, 60, 2) + number)
    with pytest.raises(GalleryError, match="gallery join"):
        Gallery.open(place)
    assert main(["gallery", "join", str(place)]) == 0
    assert "2 galleries" in capsys.readouterr().out
    people = Gallery.open(place)
    assert people.identities()["thing 1"] == EACH  # In both.
    with pytest.raises(GalleryError, match=r"enrol into one of these, such as .*north"):
        enrol(people, embeddings, np.arange(100, 102))
    assert people.erase("thing 1").num_templates == EACH
    calibration = people.calibrate(fpir=0.2)
    Gallery.create(place / "west", model)
    assert len(Gallery.join(place).parts) == 3
    with pytest.raises(GalleryError, match="open it again"):
        people.state()
    assert Gallery.open(place).state().open_set == calibration
    Gallery.create(tmp_path / "alone", model)
    (place / "west").rename(tmp_path / "alone" / "west")
    with pytest.raises(GalleryError, match="a gallery of its own"):
        Gallery.join(tmp_path / "alone")
    with pytest.raises(GalleryError, match="west"):  # Its part is gone.
        Gallery.open(place)
    shards = {"names": ["north", "../alone"], "by": "tenant"}
    Store.open(place).change_settings(lambda old: old | {"shards": shards})
    with pytest.raises(GalleryError, match="is damaged: shards"):
        Gallery.open(place)


def test_a_part_of_another_model_is_refused(tmp_path: Path, model: Matcher) -> None:
    Gallery.create(tmp_path / "people" / "north", model)
    Gallery.create(tmp_path / "people" / "south", make_matcher(tmp_path / "other", "rgb"))
    with pytest.raises(GalleryError, match="distances of two models do not compare"):
        Gallery.join(tmp_path / "people")


def test_a_missing_part_is_named(tmp_path: Path, model: Matcher) -> None:
    place = tmp_path / "people"
    Gallery.create(place, model, shards=2)
    shutil.rmtree(place / "shard-0001")
    with pytest.raises(GalleryError, match=r"the part shard-0001 .* is missing: restore it"):
        Gallery.open(place)
    assert len(Gallery.join(place).parts) == 1
