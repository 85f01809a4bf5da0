"""Export, import and rebuild, with files and pictures that are damaged, odd or missing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun
from test_matcher import make_matcher

from twinlens.commands.embed import embed
from twinlens.data.folders import read_table
from twinlens.errors import DataError, GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import SkippedPicture
from twinlens.match.matcher import Matcher

Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture
def gallery(tmp_path: Path, tiny_run: TinyRun) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.run)


def vectors_for(gallery: Gallery, num: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, gallery.dim)).astype(np.float32)


def enrol(gallery: Gallery, emb_ND: Floats, names: list[str], **more: Any) -> Any:
    return gallery.enrol_embeddings(emb_ND, names, fingerprint=gallery.fingerprint, **more)


# --- whose it is ---


def test_one_vector_under_two_names_is_the_firsts(gallery: Gallery) -> None:
    emb = vectors_for(gallery, 2)
    result = enrol(gallery, emb[[0, 0, 1, 0]], ["anna", "ben", "ben", "anna"])
    assert (result.num_new, result.num_known, result.num_identities) == (2, 1, 2)
    assert result.skipped == (
        SkippedPicture("row 2", "the same picture is enrolled already, as 'anna'"),
    )
    assert gallery.identities() == {"anna": 1, "ben": 1}


def test_counts_are_those_of_one_by_one(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes again, in one batch or several: as if each row had come alone."""
    monkeypatch.setattr("twinlens.gallery.enrol_embeddings.AT_ONCE", 7)
    rng = np.random.default_rng(1)
    emb, names = vectors_for(gallery, 12)[rng.integers(0, 12, 40)], rng.choice(["a", "b"], 40)
    owners: dict[bytes, str] = {}
    new = known = 0
    skipped = []
    for row, name in enumerate(names.tolist()):
        owner = owners.get(emb[row].tobytes())
        if owner is None:
            owners[emb[row].tobytes()] = name
            new += 1
        elif owner == name:
            known += 1
        else:
            skipped.append(f"row {row + 1}")
    result = enrol(gallery, emb, names.tolist())
    assert (result.num_new, result.num_known) == (new, known)
    assert [one.path for one in result.skipped] == skipped
    assert skipped
    assert result.num_identities == 2


def test_an_import_skips_pictures_of_another_identity(gallery: Gallery, tmp_path: Path) -> None:
    paths = [f"/pictures/{n}.png" for n in range(4)]
    enrol(gallery, vectors_for(gallery, 4), ["anna", "anna", "ben", "ben"], path=paths)
    gallery.export(tmp_path / "all.parquet")
    gallery.rename("anna", "carla")
    gallery.erase("ben")
    result = gallery.import_file(tmp_path / "all.parquet")
    assert (result.num_new, result.num_known, result.num_identities) == (2, 0, 1)
    assert {one.path for one in result.skipped} == set(paths[:2])
    assert {one.reason for one in result.skipped} == {
        "the same picture is enrolled already, as 'carla'"
    }
    assert gallery.identities() == {"ben": 2, "carla": 2}


# --- files that others wrote ---


def file_of(gallery: Gallery, num: int = 3) -> pa.Table:
    """The columns of a file, as `export` names them."""
    emb = vectors_for(gallery, num)
    return pa.table(
        {
            "hash": [f"{n:032x}" for n in range(num)],
            "identity": [f"p{n}" for n in range(num)],
            "path": [f"/p/{n}.png" for n in range(num)],
            "time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * num),
            "metadata": ['{"room": "north"}'] * num,
            "embedding": pa.FixedSizeListArray.from_arrays(emb.ravel(), gallery.dim),
            "thumbnail": pa.nulls(num, pa.large_binary()),
        }
    ).replace_schema_metadata({"twinlens.fingerprint": gallery.fingerprint})


def with_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(column) if isinstance(column, list) else column)


def written(table: pa.Table, tmp_path: Path) -> Path:
    pq.write_table(table, tmp_path / "given.parquet")
    return tmp_path / "given.parquet"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())], ids=str)
def test_lists_of_any_kind_are_read(gallery: Gallery, tmp_path: Path, kind: pa.DataType) -> None:
    table = file_of(gallery)
    lists = pa.array(table["embedding"].to_pylist(), kind)
    assert gallery.import_file(written(with_column(table, "embedding", lists), tmp_path)).num_new
    stored = np.array(gallery.store.find()["vector"].to_pylist())
    np.testing.assert_allclose(
        stored, gallery.core.prepared(vectors_for(gallery, 3)), rtol=1e-6, atol=1e-7
    )


def test_what_may_be_left_empty(gallery: Gallery, tmp_path: Path) -> None:
    table = file_of(gallery)
    table = with_column(table, "path", [None, "/p/1.png", None])
    table = with_column(table, "hash", [None, "b" * 32, ""])
    table = with_column(table, "metadata", [None, "", '{"a": 1}'])
    table = with_column(table, "identity", pa.array(["x", "y", "x"]).dictionary_encode())
    table = with_column(table, "time", ["2026-01-02T03:04:05Z", None, "2026-01-02T04:04:05+01:00"])
    before = datetime.now(UTC)
    result = gallery.import_file(written(table, tmp_path))
    assert (result.num_new, result.num_identities) == (3, 2)
    rows = {row["identity"] + row["metadata"]: row for row in gallery.store.find().to_pylist()}
    assert set(rows) == {"x{}", "y{}", 'x{"a":1}'}
    assert [rows[name]["path"] for name in ("x{}", "y{}")] == ["", "/p/1.png"]
    assert rows["x{}"]["time"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert before <= rows["y{}"]["time"] <= datetime.now(UTC)
    assert len({row["hash"] for row in rows.values()}) == 3


def test_forgeries_are_not_enrolled(gallery: Gallery, tmp_path: Path) -> None:
    """They are named, and the numbers of rows without paths stay those of the file."""
    table = with_column(file_of(gallery, 6), "path", ["", "/p/1.png", None, "", "", ""])
    table = with_column(table, "hash", [f"{n:032x}" for n in (0, 1, 2, 3, 4, 0)])
    table = table.append_column("forged", pa.array([False, True, True, False, None, False]))
    result = gallery.import_file(written(table, tmp_path))
    reason = "a forgery, which is never enrolled"
    assert result.skipped == (
        SkippedPicture("/p/1.png", reason), SkippedPicture("row 3", reason),
        SkippedPicture("row 6", "the same picture is enrolled already, as 'p0'"),
    )  # fmt: skip
    assert (result.num_new, result.num_known, result.num_identities) == (3, 0, 3)
    assert gallery.identities() == {"p0": 1, "p3": 1, "p4": 1}
    only = table.filter(pa.array([False, True, True, False, False, False]))
    assert gallery.import_file(written(only, tmp_path)).num_new == 0
    assert len(gallery) == 3


def test_relative_paths_lead_there_from_anywhere(
    gallery: Gallery, tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data" / "a" / "0.png"
    file.parent.mkdir(parents=True)
    shutil.copy(tiny_run.data / "thing 0" / "0.png", file)
    monkeypatch.chdir(tmp_path)
    embed(tiny_run.run, "data", out="x.parquet", quiet=True)
    assert pq.read_table("x.parquet")["path"].to_pylist() == ["data/a/0.png"]
    assert gallery.import_file("x.parquet").num_new == 1
    monkeypatch.chdir(file.parent)
    assert gallery.store.find()["path"].to_pylist() == [str(file)]
    assert gallery.rebuild(make_matcher(tmp_path / "m", "grey")).num_templates == 1


WRONG: dict[str, tuple[str, Callable[[pa.Table], Any], str]] = {
    "length": ("embedding", lambda t: [[1.0, 2.0]] * 3, "column embedding holds list"),
    "lengths": ("embedding", lambda t: [[1.0], [1.0, 2.0], []], "column embedding holds list"),
    "text": ("embedding", lambda t: ["1 2"] * 3, "column embedding holds string"),
    "no vector": (
        "embedding",
        lambda t: pa.array([None, *t["embedding"].to_pylist()[1:]], t["embedding"].type),
        "column embedding is empty in 1 rows",
    ),
    "a hole": (
        "embedding",
        lambda t: [[None, *row[1:]] for row in t["embedding"].to_pylist()],
        "column embedding lacks some numbers",
    ),
    "infinite": (
        "embedding",
        lambda t: [[np.inf, *row[1:]] for row in t["embedding"].to_pylist()],
        r"row 1 \(/p/0\.png\): its embedding holds NaN or infinity; so do 2 more rows",
    ),
    "nobody": ("identity", lambda t: ["a", None, None], "column identity is empty in 2 rows"),
    "no name": ("identity", lambda t: ["a", " ", "b"], "an identity needs a name"),
    "lists of names": ("identity", lambda t: [["a"]] * 3, "column identity holds list"),
    "time": ("time", lambda t: ["yesterday"] * 3, "column time holds string"),
    "no zone": ("time", lambda t: ["2026-01-02 03:04:05"] * 3, "column time holds string"),
    "no JSON": ("metadata", lambda t: ["{}", "room=north", "{}"], "metadata holds 'room=north'"),
    "no object": ("metadata", lambda t: ["{}", "[1]", "{}"], r"metadata holds '\[1\]'"),
    "NaN": (
        "metadata",
        lambda t: ["{}", '{"a": NaN}', "{}"],
        r"row 2: its column metadata .* \(the number NaN is not finite\)",
    ),
    "struct": ("metadata", lambda t: [{"room": "north"}] * 3, "column metadata holds struct"),
    "path": ("path", lambda t: [{"a": 1}] * 3, "column path holds struct"),
    "thumbnail": ("thumbnail", lambda t: [1.5] * 3, "column thumbnail holds double"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_named(gallery: Gallery, tmp_path: Path, case: str) -> None:
    name, column, words = WRONG[case]
    table = file_of(gallery)
    path = written(with_column(table, name, column(table)), tmp_path)
    with pytest.raises(GalleryError, match=rf"cannot import {path}: .*{words}"):
        gallery.import_file(path)
    assert len(gallery) == 0


def test_a_column_that_is_there_twice(gallery: Gallery, tmp_path: Path) -> None:
    table = file_of(gallery)
    path = written(table.append_column("path", table["path"]), tmp_path)
    with pytest.raises(GalleryError, match="it has a column twice"):
        gallery.import_file(path)


def test_another_model_is_said_before_another_length(gallery: Gallery, tmp_path: Path) -> None:
    table = with_column(file_of(gallery), "embedding", [[1.0]] * 3)
    table = table.replace_schema_metadata({"twinlens.fingerprint": "0123456789abcdef"})
    with pytest.raises(GalleryError, match="belong to the model 0123456789abcdef"):
        gallery.import_file(written(table, tmp_path))


def test_a_damaged_file(gallery: Gallery, tmp_path: Path) -> None:
    path = written(file_of(gallery, 2000), tmp_path)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(GalleryError, match=rf"cannot read {path}"):
        gallery.import_file(path)


# --- files that cannot be written ---


def test_an_export_without_a_place_names_the_place(gallery: Gallery, tmp_path: Path) -> None:
    enrol(gallery, vectors_for(gallery, 2), ["a", "b"])
    with pytest.raises(
        DataError, match=r"cannot write .*no/x\.parquet: there is no folder .*no; create"
    ):
        gallery.export(tmp_path / "no" / "x.parquet")
    with pytest.raises(DataError, match=r"cannot write .*gallery: it is a folder"):
        gallery.export(gallery.place)
    assert {one.name for one in tmp_path.iterdir()} == {"gallery"}


def test_an_export_of_a_damaged_gallery_names_the_gallery(gallery: Gallery, tmp_path: Path) -> None:
    enrol(gallery, vectors_for(gallery, 2), ["a", "b"])
    for file in Path(gallery.place).rglob("*.lance"):
        if file.is_file():
            file.unlink()
    with pytest.raises(GalleryError, match="cannot read the gallery"):
        Gallery.open(gallery.place).export(tmp_path / "x.parquet")
    assert {one.name for one in tmp_path.iterdir()} == {"gallery"}


# --- another model ---


def test_what_has_the_path_of_a_missing_one_stays(
    gallery: Gallery, tmp_path: Path, tiny_run: TinyRun
) -> None:
    """A file that was overwritten and enrolled again: two templates of one path."""
    file = tmp_path / "a.png"
    for number in (0, 1):
        shutil.copy(tiny_run.data / "thing 0" / f"{number}.png", file)
        gallery.enrol_files("a", file)
    assert gallery.identities() == {"a": 2}
    hits = gallery.search(file, k=1)
    result = gallery.rebuild(make_matcher(tmp_path / "m", "grey"), drop_missing=True)
    assert result.num_templates == 1
    assert result.missing == (SkippedPicture(str(file), "it was changed since it was enrolled"),)
    assert [hit.hash for hit in Gallery.open(gallery.place).search(file)] == [hits[0].hash]


def test_what_has_no_file_is_said_to_have_none(gallery: Gallery, tmp_path: Path) -> None:
    gallery.enrol(read_table("digits").select(np.arange(4)))
    enrol(gallery, vectors_for(gallery, 1), ["x"])
    other = make_matcher(tmp_path / "m", "grey")
    with pytest.raises(GalleryError, match=r"5 of 5 pictures .* only be enrolled into a") as told:
        gallery.rebuild(other)
    assert "No such file" not in str(told.value)
    assert str(told.value).count("no file is known") == 5
    assert len(gallery) == 5


# --- how DATA is read, and what is asked ---


def test_calibration_leaves_out_the_models_forgeries(
    gallery: Gallery, tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As enrolling does: the folder that the model calls forgeries is nobody's."""
    for name, number in (("a", 0), ("a_fake", 1), ("b", 2)):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(tiny_run.data / "thing 0" / f"{number}.png", tmp_path / "data" / name)
    gallery.enrol_files("c", tiny_run.data / "thing 1" / "0.png")
    matcher = gallery.matcher
    assert matcher.origin is not None
    data = matcher.origin.data.model_copy(update={"forged_suffix": "_fake"})
    origin = replace(matcher.origin, data=data)
    description = matcher.stored.description.model_copy(update={"origin": origin})
    stored = replace(matcher.stored, description=description)
    monkeypatch.setattr(gallery.core, "matcher", Matcher(stored))
    asked: list[list[str]] = []
    steps: list[tuple[int, int]] = []

    def calibrate(emb_PD: Floats, *args: Any, probe_identity_P: Any, **more: Any) -> None:
        asked.append(list(probe_identity_P))
        raise GalleryError("far enough")

    monkeypatch.setattr("twinlens.gallery.maintain.calibrate_open_set_on_probes", calibrate)
    with pytest.raises(GalleryError, match="far enough"):
        gallery.calibrate(tmp_path / "data", progress=lambda done, num: steps.append((done, num)))
    assert asked == [["a", "b"]]
    assert steps == [(2, 2)]
    assert gallery.enrol(tmp_path / "data").num_new == 2


def test_a_lone_path_is_one_file(gallery: Gallery, tiny_run: TinyRun) -> None:
    file = tiny_run.data / "thing 0" / "0.png"
    assert gallery.enrol_files("a", str(file)).num_new == 1
    assert gallery.enrol_files("a", file).num_known == 1


def test_numbers_for_names_and_fractions_of_answers(gallery: Gallery, tiny_run: TinyRun) -> None:
    file = tiny_run.data / "thing 0" / "0.png"
    number: Any = 5
    with pytest.raises(GalleryError, match=r"a name must be a string, found 5 \(int\): write '5'"):
        gallery.enrol_files(number, file)
    with pytest.raises(GalleryError, match="a name must be a string"):
        gallery.erase(number)
    with pytest.raises(GalleryError, match="a name must be a string"):
        enrol(gallery, vectors_for(gallery, 1), [number])
    half: Any = 2.5
    with pytest.raises(GalleryError, match=r"k must be a whole number of answers, found 2\.5"):
        gallery.search(file, k=half)
    two: Any = np.int64(2)
    assert gallery.search(file, k=two) == ()


@pytest.mark.parametrize(
    ("where", "num"),
    [
        ("metadata.\"my key\" = 'x'", 1),
        ("METADATA.floor > 1", 1),
        ("metadata.Floor > 1", 0),
        ('metadata."a-b" = \'metadata."my key"\'', 1),
        ('metadata."no such" IS NULL', 2),
    ],
)
def test_keys_of_any_characters(gallery: Gallery, where: str, num: int) -> None:
    said = [{"my key": "x", "floor": 2}, {"a-b": 'metadata."my key"'}]
    enrol(gallery, vectors_for(gallery, 2), ["a", "b"], metadata=said)
    assert len(gallery.search_embedding(vectors_for(gallery, 1)[0], where=where)) == num


def test_imports_list_skipped_rows(
    gallery: Gallery,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from twinlens.cli.main import main

    enrol(gallery, vectors_for(gallery, 2), ["a", "b"], path=["/p/a.png", "/p/b.png"])
    gallery.export(tmp_path / "x.parquet")
    gallery.rename("a", "c")
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        words = ["gallery", "import", gallery.place, str(tmp_path / "x.parquet")]
        assert main([*words, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_known"] == 1
    assert caplog.messages == ["skipped /p/a.png: the same picture is enrolled already, as 'c'"]
