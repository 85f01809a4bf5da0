"""Galleries that somebody made to do harm, or that were damaged: one message, nothing outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import TinyRun
from test_matcher import make_matcher

from twinlens.cli.main import main
from twinlens.errors import GalleryError, TwinlensError
from twinlens.gallery import store as stores
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.location import delete_model
from twinlens.gallery.schema import SETTINGS, schema, with_settings

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def gallery(tmp_path: Path, tiny_run: TinyRun) -> Gallery:
    gallery = Gallery.create(tmp_path / "gallery", tiny_run.run)
    gallery.enrol_files("anna", sorted((tiny_run.data / "thing 0").iterdir())[:3])
    return gallery


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user, whose files no command may touch."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("letter.txt", "model.json", "model.safetensors"):
        (folder / name).write_text(name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- links ---

COMMANDS: dict[str, list[str]] = {
    "enrol": ["gallery", "enrol", "GALLERY", "PICTURES", "--quiet"],
    "erase": ["gallery", "erase", "GALLERY", "anna"],
    "rename": ["gallery", "rename", "GALLERY", "anna", "ben"],
    "list": ["gallery", "list", "GALLERY"],
    "info": ["gallery", "info", "GALLERY"],
    "optimize": ["gallery", "optimize", "GALLERY", "--quiet"],
    "calibrate": ["gallery", "calibrate", "GALLERY", "--quiet"],
    "export": ["gallery", "export", "GALLERY", "OUT"],
    "import": ["gallery", "import", "GALLERY", "OUT", "--quiet"],
    "rebuild": ["gallery", "rebuild", "GALLERY", "--model", "NEW", "--quiet"],
    "identify": ["identify", "GALLERY", "PICTURE", "--quiet"],
    "search": ["search", "GALLERY", "PICTURE"],
}
LINKS = ("models", "models/FP", "models/FP/model.json", "templates.lance", "templates.lance/data",
         ".lock", ".next", "models/0123456789abcdef")  # fmt: skip


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_matcher(tmp_path_factory.mktemp("new") / "m", "grey").path


def words_of(command: str, place: str, tiny_run: TinyRun, new_model: Path) -> list[str]:
    picture = str(tiny_run.data / "thing 0" / "0.png")
    given = {"GALLERY": place, "PICTURES": str(tiny_run.data), "PICTURE": picture,
             "OUT": f"{place}.parquet", "NEW": str(new_model)}  # fmt: skip
    return [given.get(word, word) for word in COMMANDS[command]]


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
@pytest.mark.parametrize("name", LINKS)
def test_links_are_refused_by_every_command(
    gallery: Gallery, outside: Path, tiny_run: TinyRun, new_model: Path, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place = Path(gallery.place)
    link = place / name.replace("FP", gallery.fingerprint)
    before = content(outside)
    if link.exists():
        shutil.move(link, f"{place}.away")
    link.symlink_to(outside if link.suffix not in {".lock", ".json"} else outside / "letter.txt")
    for command in COMMANDS:
        assert main(words_of(command, gallery.place, tiny_run, new_model)) == 2, command
        message = capsys.readouterr().err
        assert f"holds a link, {link}: a gallery has only folders and files" in message, command
    assert content(outside) == before
    assert link.is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_that_comes_while_the_gallery_is_open(
    gallery: Gallery, outside: Path, new_model: Path
) -> None:
    place, before = Path(gallery.place), content(outside)
    shutil.rmtree(place / "models")
    (place / "models").symlink_to(outside)
    for work in (lambda: gallery.rebuild(new_model), lambda: gallery.erase("anna")):
        with pytest.raises(GalleryError, match="holds a link"):
            work()
    assert content(outside) == before


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_gallery_is_not_created_through_a_link(
    outside: Path, tmp_path: Path, tiny_run: TinyRun
) -> None:
    place, before = tmp_path / "new", content(outside)
    place.mkdir()
    (place / "models").symlink_to(outside)
    with pytest.raises(GalleryError, match="holds a link"):
        Gallery.create(place, tiny_run.run)
    assert content(outside) == before


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_the_folder_of_a_gallery_may_be_a_link(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(gallery.place)
    assert Gallery.open(tmp_path / "link").erase("anna").num_templates == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_a_gallery_does_not_block(gallery: Gallery) -> None:
    os.mkfifo(Path(gallery.place) / "templates.lance" / "_versions" / "0.manifest")
    with pytest.raises(GalleryError, match="holds a pipe or device"):
        Gallery.open(gallery.place)


# --- fingerprints ---

NO_FINGERPRINTS = ["", "..", "../../../OUTSIDE", "a" * 15, "a" * 17, "A" * 16, "a" * 16 + "\n",
                   "/etc", "models", 5, None, "\N{FULLWIDTH DIGIT ONE}" * 16]  # fmt: skip


@pytest.mark.parametrize("fingerprint", NO_FINGERPRINTS)
def test_a_fingerprint_has_16_digits(
    gallery: Gallery, outside: Path, new_model: Path, fingerprint: Any
) -> None:
    gallery.store.change_settings(lambda old: old | {"fingerprint": fingerprint})
    before = content(Path(gallery.place) / "models") | content(outside)
    for work in (lambda: Gallery.open(gallery.place), lambda: gallery.rebuild(new_model)):
        with pytest.raises(GalleryError, match=r"is damaged: fingerprint: .*Restore it from a cop"):
            work()
    assert content(Path(gallery.place) / "models") | content(outside) == before
    if isinstance(fingerprint, str):
        with pytest.raises(AssertionError):
            delete_model(gallery.place, fingerprint, None)


def test_a_rebuild_deletes_known_files_only(gallery: Gallery, new_model: Path) -> None:
    """Of its own old model by name, and of killed rebuilds; all else stays."""
    models = Path(gallery.place) / "models"
    own = models / gallery.fingerprint
    (own / "notes.txt").write_text("of somebody")
    (models / "mine").mkdir()
    (models / "mine" / "model.json").write_text("of somebody")
    killed = models / "0123456789abcdef"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half")
    gallery.rebuild(new_model)
    new = Gallery.open(gallery.place).fingerprint
    assert {str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()} == {
        f"{gallery.fingerprint}/notes.txt", "mine/model.json",
        f"{new}/model.json", f"{new}/model.onnx",
    }  # fmt: skip
    assert not killed.exists()


def test_a_rebuild_with_the_same_model_never_lacks_it(
    gallery: Gallery, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it copies the model, it leaves the copy that was there."""

    def killed(source: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        gallery.rebuild(tiny_run.run)
    monkeypatch.undo()
    assert Gallery.open(gallery.place).matcher.fingerprint == gallery.fingerprint


# --- settings ---

DAMAGE: dict[str, tuple[Change, str]] = {
    "text for a number": (lambda s: s | {"deletions": "3"}, "deletions: input should be a valid i"),
    "a number for text": (lambda s: s | {"created": 5}, "created: input should be a valid string"),
    "true": (lambda s: s | {"deletions": True}, "deletions: "),
    "negative": (lambda s: s | {"purged": -1}, "purged: "),
    "too many purged": (lambda s: s | {"purged": 7}, "purged: found 7 of 0 deletions"),
    "no time": (lambda s: s | {"created": "yesterday"}, "created: "),
    "unknown": (lambda s: s | {"surprise": 1}, "surprise is unknown"),
    "no scale": (lambda s: s | {"scale": 0}, "scale: "),
    "a giant scale": (lambda s: s | {"scale": 1e300}, "scale: "),
    "comparator": (lambda s: s | {"comparator": "eval"}, "comparator: "),
    "index": (lambda s: s | {"index": {"partitions": 2, "nprobes": 9, "recall": 1}}, "nprobes"),
    "recall": (lambda s: s | {"index": {"partitions": 2, "nprobes": 1, "recall": 7}}, "recall"),
    "a list": (lambda s: [s], "its settings are no JSON object"),
    "1e999": (lambda s: json.dumps(s).replace("1.0", "1e999"), "the number 1e999 is not finite"),
    "NaN": (lambda s: json.dumps(s).replace("1.0", "NaN"), "the number NaN is not finite"),
    "deep": (lambda s: "[" * 10_000 + "]" * 10_000, "it is nested more than 32 deep"),
    "long": (lambda s: json.dumps(s | {"x": "y" * (5 << 20)}), "its settings have 5,"),
    "twice": (lambda s: '{"format": 1, "format": 1}', "occurs twice"),
    "no JSON": (lambda s: "{", "its settings cannot be read"),
    "empty": (lambda s: "", "its settings cannot be read"),
    "all missing": (lambda s: {}, "format is missing"),
    "a newer format": (lambda s: s | {"format": 7}, "has format 7"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_settings(gallery: Gallery, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = DAMAGE[case]
    values = change(gallery.store.settings())
    text = values if isinstance(values, str) else json.dumps(values)
    table = lance.dataset(f"{gallery.place}/templates.lance")
    table.update_schema_metadata({SETTINGS: text})
    for command in ("info", "erase"):
        words_given = ["gallery", command, gallery.place, *(["anna"] if command == "erase" else [])]
        assert main(words_given) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
        assert len(message) < 1000


# --- the table ---


def replaced(gallery: Gallery, columns: pa.Schema, rows: pa.Table) -> str:
    """The gallery's table, written anew by somebody."""
    metadata = {SETTINGS: json.dumps(gallery.store.settings())}
    lance.write_dataset(
        pa.table(rows.columns, schema=columns.with_metadata(metadata)),
        f"{gallery.place}/templates.lance", mode="overwrite",
    )  # fmt: skip
    return gallery.place


@pytest.mark.parametrize("dim", [0, 70_000, 10**9])
def test_a_claimed_dimension(gallery: Gallery, dim: int, tiny_run: TinyRun) -> None:
    columns = schema(16)
    place = columns.get_field_index("vector")
    columns = columns.set(place, pa.field("vector", pa.list_(pa.float32(), dim or 1)))
    if not dim:
        columns = columns.set(place, pa.field("vector", pa.list_(pa.float32())))
    with pytest.raises(
        GalleryError, match=r"is damaged: its table has the columns hash \(string\)"
    ):
        Gallery.open(replaced(gallery, columns, columns.empty_table()))


def test_a_table_of_another_dimension_than_its_model(gallery: Gallery, tiny_run: TinyRun) -> None:
    opened = Gallery.open(replaced(gallery, schema(8), schema(8).empty_table()))
    with pytest.raises(GalleryError, match=r"it stores 8 dimensions, .* but its model has 16"):
        opened.enrol(tiny_run.data)


def test_another_comparator_than_the_models(gallery: Gallery, tiny_run: TinyRun) -> None:
    gallery.store.change_settings(lambda old: old | {"comparator": "squared-euclidean"})
    with pytest.raises(GalleryError, match=r"it stores 16 dimensions, squared-euclidean and scale"):
        Gallery.open(gallery.place).identify(tiny_run.data / "thing 0" / "0.png")


def test_a_missing_column(gallery: Gallery) -> None:
    columns = schema(16).remove(1)
    with pytest.raises(GalleryError, match="is damaged: its table has the columns"):
        Gallery.open(replaced(gallery, columns, columns.empty_table()))


BAD_ROWS: dict[str, tuple[str, Any]] = {
    "identity": ("identity", None),
    "path": ("path", None),
    "metadata": ("metadata", None),
    "vector": ("vector", None),
    "not finite": ("vector", [float("nan")] * 16),
    "time": ("time", pa.scalar(2**62, pa.timestamp("us", "UTC"))),
    "no time": ("time", None),
    "a list of metadata": ("metadata", "[1]"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_nobody_enrolled(
    gallery: Gallery, case: str, tmp_path: Path, tiny_run: TinyRun, new_model: Path
) -> None:
    """Each way to use them ends in an answer or in one message."""
    name, value = BAD_ROWS[case]
    rows = gallery.store.find()
    at = rows.column_names.index(name)
    kind = rows.schema.field(at).type
    bad = (
        pa.array([value], pa.string()).cast(kind) if name == "metadata" else pa.array([value], kind)
    )
    column = pa.chunked_array([bad, *rows[name].slice(1).chunks])
    opened = Gallery.open(
        replaced(gallery, schema(16), rows.set_column(at, rows.schema.field(at), column))
    )
    picture = tiny_run.data / "thing 0" / "0.png"
    works: list[Callable[[], object]] = [
        lambda: opened.info().as_text(), opened.identities, lambda: opened.templates().as_text(),
        lambda: opened.identify(picture), lambda: opened.search(picture),
        lambda: opened.search(picture, where="identity = 'anna'"),
        lambda: opened.export(tmp_path / "x.parquet"), lambda: opened.calibrate(fpir=0.9),
        lambda: opened.rebuild(new_model), opened.optimize, lambda: opened.erase("anna"),
    ]  # fmt: skip
    messages = []
    for work in works:
        try:
            work()
        except TwinlensError as error:
            messages.append(str(error))
    assert messages
    assert any("is missing in 1 of" in m or "not finite" in m or "1 to 9999" in m
               or "a JSON object is needed" in m for m in messages)  # fmt: skip


def test_more_rows_than_its_files_can_hold(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "ROWS_PER_BYTE", 1e-9)
    with pytest.raises(
        GalleryError, match=r"is damaged: it claims 3 templates, and its files hold"
    ):
        Gallery.open(gallery.place)


def test_a_description_that_lance_cannot_report(gallery: Gallery) -> None:
    """Its error has a NUL byte, at which Lance would end the process."""
    (file,) = (Path(gallery.place) / "templates.lance" / "data").iterdir()
    file.write_bytes(
        file.read_bytes().replace(b"encodings21.PageLayout", b"encodings\0\0.PageLayout")
    )
    for _ in range(2):
        with pytest.raises(GalleryError, match=r"cannot read the gallery"):
            Gallery.open(gallery.place).identities()


@pytest.mark.parametrize("at", [-40, -32, -24, -16, -12])
@pytest.mark.parametrize("number", [2**32 - 1, 2**62])
def test_a_file_that_claims_what_it_does_not_hold(gallery: Gallery, at: int, number: int) -> None:
    (file,) = (Path(gallery.place) / "templates.lance" / "data").iterdir()
    content = bytearray(file.read_bytes())
    size = 4 if at >= -16 else 8
    content[len(content) + at : len(content) + at + size] = number.to_bytes(8, "little")[:size]
    file.write_bytes(content)
    with contextlib.suppress(GalleryError):
        Gallery.open(gallery.place).identities()


def test_a_table_that_names_files_elsewhere(gallery: Gallery, tmp_path: Path) -> None:
    place = tmp_path / "other"
    shutil.copytree(gallery.place, place)
    shutil.rmtree(place / "templates.lance")
    columns = with_settings(schema(16), gallery.store.settings())
    lance.write_dataset(
        columns.empty_table(), str(place / "templates.lance"),
        initial_bases=[lance.DatasetBasePath(str(tmp_path / "elsewhere"), name="e")],
    )  # fmt: skip
    with pytest.raises(GalleryError, match="names files at other places"):
        Gallery.open(place)


# --- the model inside ---


def test_a_model_that_was_swapped(gallery: Gallery, new_model: Path, tiny_run: TinyRun) -> None:
    folder = Path(gallery.place) / "models" / gallery.fingerprint
    for name in ("model.json", "model.onnx"):
        shutil.copy(new_model / name, folder / name)
    with pytest.raises(GalleryError, match=r"holds the model .*: put that model's files back"):
        Gallery.open(gallery.place).enrol(tiny_run.data)


# --- permissions and places ---


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("existing", [False, True])
def test_only_its_owner_reads_a_gallery(
    tmp_path: Path, tiny_run: TinyRun, new_model: Path, existing: bool
) -> None:
    place = tmp_path / "g"
    if existing:
        place.mkdir(mode=0o755)
    gallery = Gallery.create(place, tiny_run.run)
    gallery.enrol(tiny_run.data, keep_thumbnails=True)
    gallery.calibrate(fpir=0.2)
    gallery.rename("thing 0", "thing")
    gallery.erase("thing")
    gallery.optimize(partitions=2)
    gallery.export(tmp_path / "x.parquet")
    gallery.rebuild(new_model)
    assert (tmp_path / "x.parquet").stat().st_mode & 0o777 == 0o600
    open_to_others = [path for path in place.rglob("*") if path.stat().st_mode & 0o077]
    assert place.stat().st_mode & 0o777 == 0o700
    assert open_to_others == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_gallery_keeps_the_permissions_that_it_was_given(
    gallery: Gallery, tiny_run: TinyRun
) -> None:
    place = Path(gallery.place)
    for path in (place, *place.rglob("*")):
        path.chmod(0o750 if path.is_dir() else 0o640)
    gallery.enrol(tiny_run.data)
    assert place.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()} == {0o640}


def test_an_empty_gallery_promises_nothing(tmp_path: Path, tiny_run: TinyRun) -> None:
    gallery = Gallery.create(tmp_path / "empty", tiny_run.run)
    text = gallery.info().as_text()
    assert "but no identity is enrolled yet" in text
    assert "0.0%" not in text
    answer = gallery.identify(tiny_run.data / "thing 0" / "0.png")
    assert (answer.verdict, answer.reason) == ("nobody", "the gallery is empty")


def test_a_place_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("text")
    assert main(["gallery", "info", str(tmp_path / "file")]) == 2
    assert "is a file, and a gallery is a folder" in capsys.readouterr().err


def test_a_gallery_that_was_moved_while_open(gallery: Gallery, tmp_path: Path) -> None:
    shutil.move(gallery.place, tmp_path / "moved")
    for work in (
        lambda: gallery.identities(), lambda: gallery.erase("anna"), gallery.optimize,
        lambda: gallery.rename("anna", "ben"), lambda: gallery.export(tmp_path / "x.parquet"),
    ):  # fmt: skip
        with pytest.raises(GalleryError, match=r"there is no gallery at"):
            work()
    assert not Path(gallery.place).exists()
    assert Gallery.open(tmp_path / "moved").identities() == {"anna": 3}


def test_what_an_erasure_leaves_is_said(
    gallery: Gallery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gallery", "erase", gallery.place, "anna"]) == 0
    text = capsys.readouterr().out
    for words in ("reports", "clusters", "exports", "backups", "A model that was trained on them"):
        assert words in text.split("not erased, ")[1]
    assert "anna" not in text


@pytest.mark.parametrize("k", [10**12, 10**30])
def test_more_answers_than_there_are_templates(gallery: Gallery, tiny_run: TinyRun, k: int) -> None:
    picture = tiny_run.data / "thing 0" / "0.png"
    assert len(gallery.search(picture, k=k)) == 3
    assert len(gallery.search(picture, k=k, where="identity = 'anna'")) == 3
    assert len(gallery.identify(picture, k=k).candidates) == 1


def test_numbers_of_a_few_kinds(gallery: Gallery) -> None:
    probe = np.ones(16)
    wrong: Any = True
    with pytest.raises(GalleryError, match="k must be a whole number"):
        gallery.search_embedding(probe, k=wrong)
