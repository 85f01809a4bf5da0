"""The record of training pictures, and what `evaluate` and `calibrate` know by it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, PictureFolder, TinyRun, draw_pictures
from PIL import Image, ImageEnhance
from safetensors.numpy import load_file, save_file

import twinlens
from twinlens.commands.selection import select_pictures
from twinlens.data.contents import NO_DIGEST, content_digests
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import ModelError
from twinlens.gallery.sources import Source
from twinlens.match.matcher import Matcher
from twinlens.model.stored import DESCRIPTION, hash_identities
from twinlens.model.training_record import (
    RECORD_FILE,
    THUMBNAIL,
    TrainingRecord,
    find_record,
    read_record,
    thumbnails_of,
    trained_names,
)

NFC, NFD = (unicodedata.normalize(form, "Zo\u00eb") for form in ("NFC", "NFD"))


def made_up_table(num: int = 6) -> ImageTable:
    """Pictures of two identities in each split."""
    generator = np.random.default_rng(0)
    return ImageTable(
        np.array([f"{row:02d}" for row in range(num)], object),
        np.array([f"{NFC}{row // 2}" for row in range(num)], object),
        np.zeros(num, bool),
        np.array([("train", "val", "test")[row * 3 // num] for row in range(num)], object),
        "made up",
        None,
        pixels=generator.integers(0, 256, (num, 8, 8), dtype=np.uint8),
    )


def record_of(table: ImageTable) -> TrainingRecord:
    assert table.pixels is not None
    return TrainingRecord.of_table(table, table.pixels[:, None])


# --- contents -----------------------------------------------------------------------------------


def test_digests_are_those_of_a_gallery(picture_folder: PictureFolder) -> None:
    table = read_table(picture_folder({"a": 2, "b": 1}))
    for row, value in enumerate(content_digests(table)):
        source = Source(str(table.path[row]), "")
        assert value.hex() == source.hash()
    table = made_up_table()
    assert table.pixels is not None
    sources = [Source("", "", pixels=picture) for picture in table.pixels]
    assert [value.hex() for value in content_digests(table)] == [
        source.hash() for source in sources
    ]


def test_what_has_no_content_has_no_digest(tmp_path: Path) -> None:
    """Neither waits for a pipe nor reads a device that has no end."""
    os.mkfifo(tmp_path / "pipe")
    names = ["/dev/zero", str(tmp_path / "gone"), str(tmp_path / "pipe"), "nul\0"]
    table = ImageTable.of_rows([(name, "x", False, "") for name in names], "made up", None)
    assert content_digests(table) == [NO_DIGEST] * 4
    assert record_of(made_up_table()).splits_of([NO_DIGEST]).tolist() == [""]


# --- the record ---------------------------------------------------------------------------------


def test_pictures_and_names_are_recognised() -> None:
    table = made_up_table()
    record = record_of(table)
    digests = content_digests(table)
    assert record.splits_of(digests).tolist() == table.split.tolist()
    assert record.splits_of([b"x" * 16, digests[0]]).tolist() == ["", "train"]
    for split, expected in (
        ("train", [True, False, True, False]),
        ("val", [False, True, False, False]),
    ):
        names = [f"{NFC}0", f"{NFC}1", f"{NFD}0", "0"]
        assert record.knows_names(names, split).tolist() == expected
    assert record.num_identities("train") == 1
    assert not record.is_closed
    closed = table.with_split(["train", "test", "train", "test", "train", "val"])
    assert record_of(closed).is_closed


def test_a_picture_in_two_splits_counts_as_trained_on() -> None:
    table = made_up_table()
    pixels = np.array(table.pixels)
    pixels[5] = pixels[2] = pixels[0]
    record = record_of(replace(table, pixels=pixels))
    splits = record.splits_of(content_digests(replace(table, pixels=pixels)))
    assert splits.tolist() == ["train", "train", "train", "val", "test", "train"]


def test_rows_without_a_split_were_not_used() -> None:
    table = made_up_table().with_split(["train", "", "train", "", "val", "val"])
    record = record_of(table)
    assert record.split.tolist() == [0, 0, 1, 1]
    assert record.splits_of(content_digests(table)).tolist() == table.split.tolist()


def test_the_file_gives_back_the_record_to_its_owner_only(tmp_path: Path) -> None:
    record = record_of(made_up_table())
    file = tmp_path / RECORD_FILE
    record.save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = read_record(file)
    assert again is not None
    assert (again.key, again.id) == (record.key, record.id)
    for name in ("split", "content", "identity", "thumb"):
        np.testing.assert_array_equal(getattr(again, name), getattr(record, name))
    record.without_thumbnails().save(file)
    again = read_record(file)
    assert again is not None
    assert again.thumb is None
    assert read_record(tmp_path / "absent") is None


def test_nothing_can_be_guessed_without_the_key(tmp_path: Path) -> None:
    """Neither names nor contents, from the model or from a record whose key is not known."""
    table = made_up_table()
    first, second = record_of(table), record_of(table)
    assert first.id != second.id
    assert not np.isin(first.content, second.content).all()
    assert first.key.hex() not in first.id
    first.save(tmp_path / RECORD_FILE)
    content = (tmp_path / RECORD_FILE).read_bytes()
    for name in table.identities():
        hashes = [
            hashlib.blake2b(name.encode(form), digest_size=size).digest()
            for form in ("utf-8", "utf-16") for size in (6, 16)
        ]  # fmt: skip
        assert not any(value in content for value in [name.encode(), *hashes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": np.array([0, 9], np.uint8)}, "found the arrays"),
        ({"split": np.array([0, 0, 1, 1, 2, 3], np.uint8)}, "unknown split"),
        ({"split": np.zeros(6, np.int64)}, "found the arrays"),
        ({"split": np.zeros((), np.uint8)}, "found the arrays"),
        ({"key": np.zeros(5, np.uint8)}, "found the arrays"),
        ({"content": np.zeros((6, 15), np.uint8)}, "found the arrays"),
        ({"thumb": np.zeros((6, 16, 17), np.uint8)}, "found the arrays"),
        ({"more": np.zeros(6, np.uint8)}, "found the arrays"),
        ({"identity": None}, "found the arrays"),
        ({"split": None}, "found the arrays"),
    ],
)
def test_a_damaged_record_is_refused(
    change: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / RECORD_FILE
    record_of(made_up_table()).save(file)
    arrays = {k: v for k, v in (load_file(file) | change).items() if v is not None}
    save_file(arrays, file, {"format": "1"})
    with pytest.raises(ModelError, match=f"is damaged.*{message}") as caught:
        read_record(file)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04", b"\xff" * 64, b"\0" * 64])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        read_record(tmp_path / RECORD_FILE)


def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD_FILE)
    with pytest.raises(ModelError, match="no regular file"):
        read_record(tmp_path / RECORD_FILE)


def test_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / RECORD_FILE
    record_of(made_up_table()).save(file)
    for metadata in ({"format": "2"}, None):
        save_file(load_file(file), file, metadata)
        with pytest.raises(ModelError, match="of another version"):
            read_record(file)


def test_thumbnails_are_means_of_areas() -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (3, 1, 2 * THUMBNAIL, 3 * THUMBNAIL), dtype=np.uint8)
    means = grey.reshape(3, THUMBNAIL, 2, THUMBNAIL, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(thumbnails_of(grey), means, atol=0.5 + 1e-4)
    color = np.repeat(grey, 3, axis=1)
    np.testing.assert_allclose(thumbnails_of(color), thumbnails_of(grey), atol=1)
    small = generator.integers(0, 256, (2, 1, 8, 5), dtype=np.uint8)
    thumb = thumbnails_of(small)
    np.testing.assert_allclose(thumb.mean(axis=(1, 2)), small.mean(axis=(1, 2, 3)), atol=0.5)
    np.testing.assert_array_equal(thumb[:, ::2, 0], small[:, 0, :, 0])
    assert thumbnails_of(grey[:0]).shape == (0, THUMBNAIL, THUMBNAIL)


# --- of a run -----------------------------------------------------------------------------------


def test_a_run_records_what_it_used(tiny_run: TinyRun) -> None:
    matcher = twinlens.load(tiny_run.run)
    record = find_record(matcher.path, matcher.origin)
    assert record is not None
    table = read_table(tiny_run.data)
    lines = (tiny_run.run / "split.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert record.splits_of(content_digests(table)).tolist() == [
        line.rsplit(",", 1)[1] for line in lines
    ]
    assert stat.S_IMODE((tiny_run.run / RECORD_FILE).stat().st_mode) == 0o600
    # The folder "model" need not be called so, and the record may lie within.
    assert find_record(tiny_run.model / "..", matcher.origin) is not None


def test_a_resumed_run_keeps_the_key(tmp_path: Path) -> None:
    """The model of an interrupted run names its record by it."""
    draw_pictures(tmp_path / "data", dict.fromkeys("abcdefgh", 4))
    run, settings = tmp_path / "run", TINY | {"train.steps": 2}
    twinlens.train(tmp_path / "data", out=run, settings=settings, quiet=True)
    file, first = run / RECORD_FILE, twinlens.load(run)
    before = file.read_bytes()
    facts = json.loads((run / "run.json").read_text()) | {"finished": False}
    (run / "run.json").write_text(json.dumps(facts))
    twinlens.train(tmp_path / "data", out=run, resume=True, quiet=True)
    assert file.read_bytes() == before
    # A damaged record is written anew, before the model that names it.
    (run / "run.json").write_text(json.dumps(facts))
    file.write_bytes(b"damaged")
    twinlens.train(tmp_path / "data", out=run, resume=True, quiet=True)
    again = twinlens.load(run)
    assert again.origin != first.origin
    assert find_record(again.path, again.origin) is not None
    assert find_record(first.path, first.origin) is None


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run on a folder whose pictures lie two levels down; accents in NFC."""
    top = tmp_path_factory.mktemp("people")
    names = [NFC, "Ren\u00e9", *(f"p{number}" for number in range(8))]
    draw_pictures(top / "data" / "faces", dict.fromkeys(names, 6), size=(24, 24), seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(top / "cache"))
        twinlens.train(top / "data", out=top / "run", settings=TINY, quiet=True)
    return TinyRun(top / "run", top / "data", "")


def copies_of(data: Path, top: Path) -> dict[str, Path]:
    """The same pictures under other names."""
    up = shutil.copytree(data / "faces", top / "up")
    renamed = shutil.copytree(data, top / "renamed")
    for number, folder in enumerate(sorted((renamed / "faces").iterdir())):
        folder.rename(folder.with_name(f"person {number}"))
    nfd = shutil.copytree(data, top / "nfd")
    for folder in list((nfd / "faces").iterdir()):
        folder.rename(folder.with_name(unicodedata.normalize("NFD", folder.name)))
    flat = top / "flat"
    for file in data.rglob("*.png"):
        target = flat / file.parent.name / f"{file.stem}-{file.parent.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return {"down": data / "faces", "up": up, "renamed": renamed, "nfd": nfd, "flat": flat}


def test_training_data_is_recognised_under_other_names(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matcher = twinlens.load(people.run)
    expected = json.loads((people.run / "results.json").read_text())
    assert (expected["split"], expected["identity_disjoint"]) == ("test", True)
    for data in copies_of(people.data, tmp_path).values():
        capsys.readouterr()
        result = twinlens.evaluate(people.run, data)
        assert "belong to the data that the model was trained on" in capsys.readouterr().err
        assert (result.split, result.identity_disjoint) == ("test", True)
        eer = expected["verification"]["eer"]["value"]
        assert result.verification.eer.value == pytest.approx(eer, abs=1e-6)
        assert select_pictures(matcher, data, split="auto", prefer="val").split == "val"
        whole = twinlens.evaluate(people.run, data, split="all")
        assert (len(whole.table), whole.identity_disjoint) == (60, False)
        assert "was trained on some of these identities" in capsys.readouterr().err


def test_some_trained_pictures_among_others_are_left_out(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact copies, however they are called; their identities go with them."""
    train = identities(people.run, "train")
    draw_pictures(tmp_path / "data", {"new a": 4, "new b": 4, "mixed": 3}, size=(24, 24), seed=9)
    shutil.copy(people.data / train[0] / "0.png", tmp_path / "data" / "mixed" / "copy.png")
    capsys.readouterr()
    result = twinlens.evaluate(people.run, tmp_path / "data", report=tmp_path / "page.html")
    text = (
        "left out 4 pictures of 1 identity that the model was trained on or validated with; 8 of 2 "
        "remain (recognised: 1 copy)"
    )
    assert text in capsys.readouterr().err
    assert (result.split, result.identity_disjoint) == ("unseen", True)
    assert result.table.identities() == ["new a", "new b"]
    assert text[1:] in (tmp_path / "page.html").read_text(encoding="utf-8")
    result = twinlens.evaluate(people.run, tmp_path / "data", split="all")
    assert (result.split, result.identity_disjoint) == ("all", False)
    assert "trained on some of these identities" in capsys.readouterr().err


def test_splits_that_data_names_do_not_hide_trained_pictures(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_pictures(tmp_path / "data", {f"{split}/{name}": 4 for split in ("train", "test")
                                      for name in "abc"}, size=(24, 24), seed=9)  # fmt: skip
    trained = people.data / identities(people.run, "train")[0]
    shutil.copy(trained / "0.png", tmp_path / "data" / "test" / "c" / "copy.png")
    capsys.readouterr()
    result = twinlens.evaluate(people.run, tmp_path / "data")
    assert "left out 5 pictures of 1 identity" in capsys.readouterr().err
    assert (result.split, result.identity_disjoint, len(result.table)) == ("test", True, 8)
    result = twinlens.evaluate(people.run, tmp_path / "data", split="test")
    assert (result.split, result.identity_disjoint, len(result.table)) == ("test", False, 13)
    assert "was trained on some of these identities" in capsys.readouterr().err
    nearest = twinlens.evaluate(people.run, tmp_path / "data", protocol="nearest")
    assert (nearest.split, nearest.identity_disjoint, len(nearest.probe)) == ("test", False, 13)
    assert "was trained on some of these identities" in capsys.readouterr().err


def test_calibrating_on_trained_pictures_is_said(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(people.run, tmp_path / "run")
    renamed = tmp_path / "renamed"
    for number, name in enumerate(identities(run, "train")):
        shutil.copytree(people.data / name, renamed / f"person {number}")
    capsys.readouterr()
    twinlens.calibrate(run, renamed, far=0.1)
    assert "was trained on some of these identities" in capsys.readouterr().err
    draw_pictures(renamed, {"new a": 6, "new b": 6}, size=(24, 24), seed=9)
    calibration = twinlens.calibrate(run, renamed, far=0.1).calibration
    assert calibration is not None
    assert calibration.num_identities == 2
    assert "left out 36 pictures of 6 identities" in capsys.readouterr().err


def test_a_model_is_written_after_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed in between has no model without a record."""

    def killed(folder: Path, *args: object, **more: object) -> None:
        assert read_record(folder.parent / RECORD_FILE) is not None
        raise KeyboardInterrupt

    monkeypatch.setattr("twinlens.commands.train.save_model", killed)
    draw_pictures(tmp_path / "data", dict.fromkeys("abcdefgh", 4))
    settings = TINY | {"train.steps": 2}
    with pytest.raises(KeyboardInterrupt):
        twinlens.train(tmp_path / "data", out=tmp_path / "run", settings=settings, quiet=True)
    assert not (tmp_path / "run" / "model").exists()


def test_near_copies_of_trained_pictures_are_left_out(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole data saved again as JPEG files under other names, and one such file alone."""
    again = tmp_path / "again"
    for number, folder in enumerate(sorted((people.data / "faces").iterdir())):
        (again / f"person {number}").mkdir(parents=True)
        for file in folder.iterdir():
            with Image.open(file) as picture:
                brighter = ImageEnhance.Brightness(picture).enhance(1.05)
                brighter.save(again / f"person {number}" / f"{file.stem}.jpg", quality=70)
    capsys.readouterr()
    result = twinlens.evaluate(people.run, again)
    assert "left out 48 pictures of 8 identities that" in (said := capsys.readouterr().err)
    assert "(recognised: 48 near copies)" in said
    assert (result.split, result.identity_disjoint) == ("unseen", True)
    assert len(result.table.identities()) == 2
    whole = twinlens.evaluate(people.run, again, split="all")
    assert whole.identity_disjoint is False
    assert "expect worse figures for unseen identities (recognised: 36 near copies)" in (
        capsys.readouterr().err
    )
    # Of an identity with 5 other pictures one is left out, or said.
    trained = identities(people.run, "train")[0]
    draw_pictures(tmp_path / "new", {"a": 5, "b": 5}, size=(24, 24), seed=9)
    with Image.open(people.data / trained / "0.png") as picture:
        picture.save(tmp_path / "new" / "a" / "copy.jpg", quality=80)
    result = twinlens.evaluate(people.run, tmp_path / "new")
    assert "left out 1 picture of 1 identity" in (said := capsys.readouterr().err)
    assert "10 of 2 remain (recognised: 1 near copy)" in said
    assert result.identity_disjoint is True
    whole = twinlens.evaluate(people.run, tmp_path / "new", split="all")
    assert whole.identity_disjoint is True
    assert "the model was trained on some of these pictures" in capsys.readouterr().err


def identities(run: Path, split: str) -> list[str]:
    lines = (run / "split.csv").read_text(encoding="utf-8").splitlines()
    return sorted({line.split(",")[1] for line in lines if line.endswith(f",{split}")})


def test_a_model_without_its_record_does_not_know(
    people: TinyRun, picture_folder: PictureFolder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A model that was given away, or lies beside the record of another run."""
    model = shutil.copytree(people.run / "model", tmp_path / "given" / "model")
    record_of(made_up_table()).save(tmp_path / "given" / RECORD_FILE)
    data = picture_folder({"new a": 4, "new b": 4}, seed=9)
    capsys.readouterr()
    result = twinlens.evaluate(model, data, report=tmp_path / "page.html")
    said = capsys.readouterr().err
    assert "warning: it is unknown whether the model was trained on these pictures" in said
    assert f"{RECORD_FILE} of the model's run is not beside" in said
    assert result.as_json()["identity_disjoint"] is None
    assert "all pictures, unknown whether seen in training" in result.as_text()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "It is unknown whether the model was trained on these pictures" in page
    assert twinlens.evaluate(people.run, data, quiet=True).identity_disjoint is True
    (tmp_path / "given" / RECORD_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="is damaged"):
        twinlens.evaluate(model, data, quiet=True)


def test_a_model_of_format_1_knows_names_however_accents_are_stored(
    people: TinyRun, tmp_path: Path
) -> None:
    matcher = of_format_1(twinlens.load(people.run), people)
    names = [f"faces/{NFC}", f"faces/{NFD}", "new"]
    is_trained = f"faces/{NFC}" in identities(people.run, "train")
    assert trained_names(matcher.origin, None, names).tolist() == [is_trained, is_trained, False]
    same = select_pictures(matcher, people.data, split="auto", prefer="test")
    assert (same.split, same.identity_disjoint) == ("test", True)
    draw_pictures(tmp_path / "data", {"new a": 4, "new b": 4}, seed=9)
    other = select_pictures(matcher, tmp_path / "data", split="auto", prefer="test")
    assert (other.split, other.identity_disjoint) == ("all", None)


def of_format_1(matcher: Matcher, run: TinyRun) -> Matcher:
    assert matcher.origin is not None
    hashes = hash_identities(identities(run.run, "train"))
    origin = replace(matcher.origin, record=None, identities=hashes)
    description = matcher.stored.description.model_copy(update={"origin": origin})
    return Matcher(replace(matcher.stored, description=description))


def test_lists_of_trials_of_trained_pictures_are_called_so(
    people: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = identities(people.run, "train")
    draw_pictures(tmp_path / "new", {"x": 2}, seed=9)
    shutil.copy(people.data / train[0] / "0.png", tmp_path / "copy.png")
    (tmp_path / "pairs.csv").write_text(
        "a,b,same\nnew/x/0.png,new/x/1.png,1\nnew/x/0.png,copy.png,0\n"
    )
    capsys.readouterr()
    twinlens.evaluate(people.run, trials=tmp_path / "pairs.csv")
    assert "the model was trained on 1 of the 3 pictures in" in capsys.readouterr().err


def test_clusters_of_trained_pictures_under_other_names_are_called_optimistic(
    people: TinyRun, tmp_path: Path
) -> None:
    data = renamed_copy(people.data, tmp_path / "data")
    result = twinlens.cluster(
        people.run, data, out=tmp_path / "out", labelled=True, threshold=0.5, quiet=True
    )
    assert result.disjoint is False
    draw_pictures(tmp_path / "new", {"x": 3, "y": 3}, seed=9)
    result = twinlens.cluster(
        people.run, tmp_path / "new", out=tmp_path / "2", labelled=True, threshold=0.5, quiet=True
    )
    assert result.disjoint is True
    model = shutil.copytree(people.run / "model", tmp_path / "model")
    result = twinlens.cluster(
        model, tmp_path / "new", out=tmp_path / "3", labelled=True, threshold=0.5, quiet=True
    )
    assert result.as_json()["scores"]["identity_disjoint"] is None
    assert "unknown whether some of these identities were trained on" in result.as_text()


def test_a_named_set_is_known_by_its_pixels(tmp_path: Path) -> None:
    """Digits in files are other contents than digits in memory; under other names they are not."""
    digits = read_table("digits")
    few = digits.select(np.arange(0, len(digits), 12))
    twinlens.train(few, out=tmp_path / "run", settings=TINY | {"train.steps": 2}, quiet=True)
    matcher = twinlens.load(tmp_path / "run")
    other = replace(few, identity=np.array([f"digit {name}" for name in few.identity], object))
    assert other.fingerprint() != few.fingerprint()
    chosen = select_pictures(matcher, other, split="auto", prefer="test")
    assert (chosen.split, chosen.identity_disjoint) == ("test", True)
    mixed = digits.select(np.arange(0, len(digits), 6))
    chosen = select_pictures(matcher, mixed, split="all", prefer="test")
    assert chosen.identity_disjoint is False
    assert json.loads((matcher.path / DESCRIPTION).read_text())["format"] == 3


# --- galleries ----------------------------------------------------------------------------------


def renamed_copy(data: Path, folder: Path) -> Path:
    shutil.copytree(data / "faces", folder)
    for number, inner in enumerate(sorted(folder.iterdir())):
        inner.rename(inner.with_name(f"person {number}"))
    return folder


def test_a_gallery_keeps_the_hashes_of_the_record(people: TinyRun, tmp_path: Path) -> None:
    """Not its thumbnails; and not those of a model that it does not have any more."""
    gallery = twinlens.Gallery.create(tmp_path / "g", people.run)
    file = tmp_path / "g" / "models" / gallery.fingerprint / RECORD_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    record, own = read_record(people.run / RECORD_FILE), read_record(file)
    assert record is not None
    assert own is not None
    assert (own.id, own.thumb) == (record.id, None)
    np.testing.assert_array_equal(own.content, record.content)
    gallery.enrol(people.data)
    settings = TINY | {"train.steps": 2, "seed": 1}
    twinlens.train(people.data, out=tmp_path / "other", settings=settings, quiet=True)
    rebuilt = gallery.rebuild(tmp_path / "other")
    models = [path.relative_to(tmp_path / "g" / "models") for path in
              (tmp_path / "g" / "models").rglob("*") if path.is_file()]  # fmt: skip
    assert {path.parent.name for path in models} == {rebuilt.fingerprint}
    assert {path.name for path in models} == {"model.json", "model.onnx", RECORD_FILE}


def test_calibrating_a_gallery_of_trained_pictures_is_said(
    people: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under other names, enrolled or in DATA."""
    gallery = twinlens.Gallery.create(tmp_path / "g", people.run)
    assert gallery.training_overlap() is None
    names = sorted(f"new {number}" for number in range(4))
    draw_pictures(tmp_path / "new", dict.fromkeys(names, 5), size=(24, 24), seed=9)
    gallery.enrol(tmp_path / "new")
    gallery.calibrate(fpir=0.2)
    assert gallery.training_overlap() is None
    assert not caplog.records
    renamed = renamed_copy(people.data, tmp_path / "renamed")
    gallery.calibrate(renamed, fpir=0.2)
    assert "the model was trained on 6 of the 10 identities of " in caplog.text
    assert "(recognised: 36 copies, 0 names)" in caplog.text
    caplog.clear()
    gallery.enrol(renamed)
    gallery.calibrate(fpir=0.2)
    assert "the model was trained on 6 of the 14 identities enrolled" in caplog.text


def test_a_gallery_of_a_model_without_its_record_does_not_know(
    people: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    model = shutil.copytree(people.run / "model", tmp_path / "given")
    gallery = twinlens.Gallery.create(tmp_path / "g", model)
    gallery.enrol(picture_folder({"new a": 3, "new b": 3}, seed=9))
    warning = gallery.training_overlap()
    assert warning is not None
    assert "it is unknown whether the model was trained on the pictures enrolled" in warning
