"""Odd names, unreadable pictures and invalid vectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun
from gallery_traces import found_in, traces_of_vectors
from gallery_writer import DIM

from twinlens.errors import GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.schema import quoted

ODD = {
    "quote": "d'Arc",
    "quotes only": "''''",
    "double quotes": 'the "other" one',
    "SQL": "x' OR '1'='1' --",
    "newlines": "two\nlines\r\nand\ttabs",
    "emoji": "👩‍👩‍👧 🇨🇭",
    "other scripts": "Ωμέγα 名前 عربى",
    "combined": "Zoe\u0308",
    "4,000 characters": "ä" * 4000,
    "separators": "../../etc/passwd",
    "backslashes": "C:\\Users\\new\\table",
    "percent and underscore": "100%_of_it",
    "backtick": "`identity`",
    "NUL": "a\0b",
    "surrogate": "file-\udcff-name",
    "spaces around": "  spaced out  ",
    "a number": "42",
    "like SQL": "NULL",
    "key": "metadata.key",
    "braces": "{identity}",
}
AS_STORED = {"file-\udcff-name": "file-\\udcff-name"}


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


def emb(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, DIM)).astype(np.float32)


def enrol(gallery: Gallery, identity: str, vectors: np.ndarray, **more: object) -> None:
    result = gallery.enrol_embeddings(
        vectors, [identity] * len(vectors), fingerprint=gallery.fingerprint, **more
    )
    assert result.num_new == len(vectors)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_name_from_enrolling_to_erasing(
    gallery: Gallery, tiny_run: TinyRun, tmp_path: Path, odd: str
) -> None:
    name, stored = ODD[odd], AS_STORED.get(ODD[odd], ODD[odd])
    own, other = emb(3, seed=1), emb(3, seed=2)
    enrol(gallery, name, own, path=[f"/pictures/{name}/{at}" for at in range(3)])
    enrol(gallery, "other", other)
    assert gallery.identities() == dict(sorted({stored: 3, "other": 3}.items()))
    assert gallery.identify_embedding(own[0]).candidates[0].identity == stored
    hits = gallery.search_embedding(own[1], k=6, where=f"identity = {quoted(stored)}")
    assert [hit.identity for hit in hits] == [stored] * 3
    assert hits[0].path == f"/pictures/{stored}/1"

    assert gallery.export(tmp_path / "all.parquet") == 6
    again = Gallery.create(tmp_path / "again", tiny_run.model)
    assert again.import_file(tmp_path / "all.parquet").num_new == 6
    assert again.identities() == gallery.identities()

    assert gallery.rename(name, "plain") == 3
    assert gallery.rename("plain", name) == 3
    assert gallery.rename(name, "other", merge=True) == 3
    assert gallery.identities() == {"other": 6}
    gallery.erase("other")
    enrol(gallery, name, own)
    assert gallery.erase(name).num_templates == 3
    assert gallery.identities() == {}
    # A short or common name occurs in any file.
    traces = [*traces_of_vectors(own), *([stored.encode()] if len(stored) > 7 else [])]
    place = Path(gallery.place)
    assert {t: f for t, f in found_in(place, traces).items() if t != b"`identity`"} == {}


def test_odd_names_side_by_side(gallery: Gallery) -> None:
    """None is taken for another; SQL erases only whom it names."""
    for number, name in enumerate(ODD.values()):
        enrol(gallery, name, emb(2, seed=number))
    stored = sorted(AS_STORED.get(name, name) for name in ODD.values())
    assert gallery.identities() == dict.fromkeys(stored, 2)
    for name in list(ODD.values()):
        gallery.erase(name)
        stored.remove(AS_STORED.get(name, name))
        assert list(gallery.identities()) == stored


@pytest.mark.parametrize("name", ["", " ", "\n\t"])
def test_empty_names_are_refused(gallery: Gallery, name: str) -> None:
    enrol(gallery, "anna", emb(1, seed=0))
    with pytest.raises(GalleryError, match="needs a name"):
        gallery.enrol_embeddings(emb(2, seed=1), ["fine", name], fingerprint=gallery.fingerprint)
    with pytest.raises(GalleryError, match="needs a name"):
        gallery.enrol_files(name, [])
    with pytest.raises(GalleryError, match="needs a name"):
        gallery.rename("anna", name)
    with pytest.raises(GalleryError):
        gallery.erase(name)
    assert gallery.identities() == {"anna": 1}


@pytest.mark.parametrize("odd", ["quote", "newlines", "emoji", "separators", "surrogate"])
def test_pictures_of_an_odd_name(
    gallery: Gallery, tiny_run: TinyRun, odd: str, tmp_path: Path
) -> None:
    name = ODD[odd]
    files = sorted((tiny_run.data / "thing 0").iterdir())
    result = gallery.enrol_files(name, files, metadata={"said": name}, keep_thumbnails=True)
    assert (result.num_new, result.num_identities) == (6, 1)
    answer = gallery.identify(files[0])
    assert answer.candidates[0].identity == AS_STORED.get(name, name)
    assert answer.explain().encode()
    said = gallery.search(files[0], k=1)[0].as_json()["metadata"]["said"]
    assert said.encode("utf-8", "backslashreplace").decode() == AS_STORED.get(name, name)


def test_one_broken_picture_among_a_thousand(
    gallery: Gallery, picture_folder: PictureFolder
) -> None:
    folder = picture_folder({f"p{number:02d}": 20 for number in range(50)}, size=(8, 8))
    broken = folder / "p07" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    result = gallery.enrol(folder)
    assert [Path(one.path) for one in result.skipped] == [broken]
    assert result.skipped[0].reason
    assert result.num_new + result.num_known == 999
    assert len(gallery) == result.num_new
    assert gallery.identities()["p07"] >= 18


def test_files_that_are_not_there(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    paths = [tmp_path / "absent.png", tmp_path / "empty.png", tmp_path / "text.png", tmp_path]
    result = gallery.enrol_files("anna", paths)
    assert result.num_new == 0
    assert {Path(one.path) for one in result.skipped} == set(paths)
    assert len(gallery) == 0


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_no_utf8(gallery: Gallery, tiny_run: TinyRun, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"odd-\xff.png")
    path.write_bytes((tiny_run.data / "thing 0" / "0.png").read_bytes())
    assert gallery.enrol_files("anna", [path]).num_new == 1
    assert gallery.search(path, k=1)[0].path.endswith("odd-\\udcff.png")


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (
            np.zeros((2, DIM + 1), np.float32),
            rf"must have shape \(N, {DIM}\), found \(2, {DIM + 1}\)",
        ),
        (np.zeros((DIM,), np.float32), rf"must have shape \(N, {DIM}\), found \({DIM},\)"),
        (np.full((2, DIM), np.nan, np.float32), "must be finite"),
        (np.full((2, DIM), np.inf, np.float32), "must be finite"),
    ],
)
def test_vectors_that_are_none(gallery: Gallery, vectors: np.ndarray, match: str) -> None:
    with pytest.raises(GalleryError, match=match):
        gallery.enrol_embeddings(vectors, ["a"] * len(vectors), fingerprint=gallery.fingerprint)
    assert len(gallery) == 0


def test_vectors_of_length_zero(gallery: Gallery) -> None:
    """No direction: far from everything, but no harm."""
    enrol(gallery, "anna", emb(3, seed=0))
    gallery.enrol_embeddings(
        np.zeros((1, DIM), np.float32), ["nothing"], fingerprint=gallery.fingerprint
    )
    assert gallery.identify_embedding(emb(3, seed=0)[1]).candidates[0].identity == "anna"
    for hit in gallery.search_embedding(np.zeros(DIM, np.float32), k=4):
        assert np.isfinite(hit.distance)


def test_other_lengths_are_refused(gallery: Gallery) -> None:
    fingerprint = gallery.fingerprint
    for more in ({"path": ["a"]}, {"hash": ["a"]}, {"metadata": [{}]}):
        with pytest.raises(GalleryError, match="as many of each"):
            gallery.enrol_embeddings(emb(2, 0), ["a", "b"], fingerprint=fingerprint, **more)
    with pytest.raises(GalleryError, match="as many of each"):
        gallery.enrol_embeddings(emb(2, 0), ["a"], fingerprint=fingerprint)
    with pytest.raises(GalleryError, match="0123456789abcdef"):
        gallery.enrol_embeddings(emb(2, 0), ["a", "b"], fingerprint="0123456789abcdef")
    nothing = gallery.enrol_embeddings(emb(0, 0), [], fingerprint=fingerprint)
    assert (nothing.num_new, nothing.num_known) == (0, 0)


@pytest.mark.parametrize("value", [object(), {1: {2, 3}}, float("nan"), b"bytes"])
def test_metadata_that_is_no_json(gallery: Gallery, value: object) -> None:
    with pytest.raises(GalleryError, match="metadata"):
        gallery.enrol_embeddings(
            emb(1, 0), ["a"], fingerprint=gallery.fingerprint, metadata=[{"x": value}]
        )
    assert len(gallery) == 0
