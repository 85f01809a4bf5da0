"""`twinlens gallery`: effects on a gallery, output, warnings and errors."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun

import twinlens
from twinlens.cli.main import main
from twinlens.commands.embed import embed
from twinlens.errors import CalibrationError, ConfigError, GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import GalleryCalibrationResult, IdentityList, TemplateList
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.open_set_calibration import OpenSetCalibration

ODD = 'Zoë "O\'Brien"\n👩‍👩‍👧 ../x\x1b[2J' + "y" * 4000


@pytest.fixture
def place(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """An empty gallery."""
    Gallery.create(tmp_path / "gallery", tiny_run.run)
    return tmp_path / "gallery"


@pytest.fixture
def some(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A folder with 3 identities of 4 pictures each, of those that the model was made with."""
    for name in ("thing 0", "thing 1", "thing 2"):
        (tmp_path / "some" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(tiny_run.data / name / f"{number}.png", tmp_path / "some" / name)
    return tmp_path / "some"


def run(command: str, place: Path, *words: object) -> int:
    """The exit code of a subcommand, which logs warnings only."""
    return main(["gallery", command, str(place), *map(str, words), "--quiet"])


def files(tiny_run: TinyRun, name: str) -> list[Path]:
    return sorted((tiny_run.data / name).iterdir())


def test_enrolling_twice_changes_nothing(place: Path, some: Path) -> None:
    first = Gallery.open(place).enrol(some, metadata={"room": "north"})
    assert (first.num_new, first.num_known, first.num_identities) == (12, 0, 3)
    again = Gallery.open(place).enrol(some)
    assert (again.num_new, again.num_known, again.num_identities) == (0, 12, 3)
    counts = Gallery.open(place).identities()
    assert counts == {"thing 0": 4, "thing 1": 4, "thing 2": 4}
    listed = Gallery.open(place).templates("thing 1").templates
    assert [one.path for one in listed] == [
        str(some / "thing 1" / f"{number}.png") for number in range(4)
    ]
    assert {one.metadata["room"] for one in listed} == {"north"}
    assert len(Gallery.open(place).templates().templates) == 12


def test_skipped_pictures_are_named(
    place: Path, some: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (some / "thing 0" / "broken.png").write_bytes(b"no picture")
    shutil.copy(some / "thing 0" / "0.png", some / "thing 1" / "same.png")
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        assert run("enrol", place, some) == 0
    assert len(Gallery.open(place)) == 12
    for path in (some / "thing 0" / "broken.png", some / "thing 1" / "same.png"):
        assert sum(f"skipped {path}: " in message for message in caplog.messages) == 1


def test_nothing_at_all_could_be_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [tmp_path / name for name in ("one.png", "two.png")]
    for path in bad:
        path.write_bytes(b"no picture")  # Equal bytes: and yet neither is known.
    assert run("enrol", place, *bad[:1], "--identity", "x") == 2
    error = f"error: nothing was enrolled: {bad[0]}: not a picture"
    assert error in capsys.readouterr().err
    assert run("enrol", place, *bad, "--identity", "x") == 2
    assert "error: nothing was enrolled: all 2 pictures were skipped" in capsys.readouterr().err
    assert Gallery.open(place).identities() == {}


def test_odd_names_go_in_and_out_unchanged(place: Path, tiny_run: TinyRun) -> None:
    Gallery.open(place).enrol_files(ODD, files(tiny_run, "thing 3"))
    found = IdentityList(Gallery.open(place).identities())
    assert found.counts == {ODD: 6}
    assert found.as_json() == {"identities": [{"identity": ODD, "num_templates": 6}]}
    assert len(found.as_text().splitlines()) == 1
    assert len(found.as_text()) < 100
    text = Gallery.open(place).templates(ODD).as_text()
    assert len(text.splitlines()) == 6
    assert "\x1b" not in text
    assert Gallery.open(place).rename(ODD, "plain") == 6
    receipt = Gallery.open(place).erase("plain")
    assert (receipt.num_templates, receipt.num_left) == (6, 0)
    assert "plain" not in receipt.as_text() + str(receipt.as_json())
    assert Gallery.open(place).identities() == {}


def test_unknown_identities_get_near_names(place: Path, some: Path) -> None:
    Gallery.open(place).enrol(some)
    for act in (
        lambda: Gallery.open(place).erase("thing1"),
        lambda: Gallery.open(place).rename("thing1", "new"),
        lambda: Gallery.open(place).templates("thing1"),
    ):
        with pytest.raises(GalleryError, match=r"unknown identity 'thing1': did you mean thing \d"):
            act()
    with pytest.raises(GalleryError, match=r"'thing 2' exists already.*--merge"):
        Gallery.open(place).rename("thing 1", "thing 2")
    assert Gallery.open(place).rename("thing 1", "thing 2", merge=True) == 4
    assert Gallery.open(place).identities() == {"thing 0": 4, "thing 2": 8}


def test_names_that_are_empty(place: Path, tiny_run: TinyRun) -> None:
    for name in ("", " \n"):
        with pytest.raises(GalleryError, match="an identity needs a name"):
            Gallery.open(place).enrol_files(name, files(tiny_run, "thing 3"))


def test_calibrating_by_its_own_templates(
    place: Path, some: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = Gallery.open(place)
    gallery.enrol(some)
    assert run("calibrate", place, "--fpir", 0.25) == 0
    text, calibration = capsys.readouterr().out, gallery.state().open_set
    assert calibration is not None
    assert f"threshold {calibration.threshold:.4f}" in text
    assert "for 3 identities with 12 templates" in text
    pairs = gallery.matcher.require_calibration().threshold
    assert text == GalleryCalibrationResult(calibration, pairs).as_text() + "\n"
    assert gallery.info().threshold == calibration.threshold


def test_calibrating_by_other_pictures(place: Path, some: Path, tiny_run: TinyRun) -> None:
    Gallery.open(place).enrol(some)
    found = Gallery.open(place).calibrate(tiny_run.data, fpir=0.1, rule="mean")
    # Two further pictures of each of the 3, and 6 of each of the other 7.
    assert (found.num_mated, found.num_strangers, found.rule) == (6, 42, "mean")


def test_a_gallery_that_has_outgrown_its_threshold(
    place: Path, some: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture
) -> None:
    Gallery.open(place).enrol(some)
    Gallery.open(place).calibrate(fpir=0.25)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        assert run("enrol", place, "--identity", "thing 3", *files(tiny_run, "thing 3")) == 0
        assert run("enrol", place, some) == 0
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        assert run("enrol", place, tiny_run.data) == 0
    # 1 - 0.75 ** (10 / 3)
    assert caplog.messages == [
        "calibrated for 3 identities, the gallery has 10 now: expect an FPIR of 62 % instead of "
        f"25 %, and run `twinlens gallery calibrate {place}`"
    ]


def test_calibrating_an_empty_gallery(place: Path) -> None:
    with pytest.raises(GalleryError, match="is empty: enrol pictures first"):
        Gallery.open(place).calibrate()


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"seed": -1}, ConfigError, "seed must be at least 0, found -1"),
        ({"rule": "nearset"}, ConfigError, "unknown rule 'nearset': did you mean nearest"),
        ({"fpir": 2.0}, CalibrationError, "the target FPIR must be in (0, 1), found 2.0"),
        ({"fpir": float("nan")}, CalibrationError, "the target FPIR must be in (0, 1), found nan"),
    ],
)
def test_what_cannot_be_calibrated_for_is_refused_before_the_work(
    place: Path, some: Path, tiny_run: TinyRun, wrong: dict[str, Any], error: type[Exception],
    said: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Gallery.open(place).enrol(some)

    def embed_anyway(*_: Any) -> None:
        raise AssertionError("it was embedded")

    monkeypatch.setattr("twinlens.gallery.maintain._probes", embed_anyway)
    for data in (None, tiny_run.data):
        with pytest.raises(error, match=re.escape(said)):
            Gallery.open(place).calibrate(data, **({"fpir": 0.25} | wrong))
    assert Gallery.open(place).info().threshold_of != "gallery"


def test_there_and_back(place: Path, some: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    Gallery.open(place).enrol(some, metadata={"floor": 2}, keep_thumbnails=True)
    written = Gallery.open(place).export(tmp_path / "all.parquet")
    assert written == len(pq.read_table(tmp_path / "all.parquet")) == 12
    Gallery.create(tmp_path / "other", tiny_run.model)
    found = Gallery.open(tmp_path / "other").import_file(tmp_path / "all.parquet")
    assert (found.num_new, found.num_known) == (12, 0)
    assert Gallery.open(tmp_path / "other").templates() == Gallery.open(place).templates()
    assert Gallery.open(tmp_path / "other").info().num_thumbnails == 12
    again = Gallery.open(tmp_path / "other").import_file(tmp_path / "all.parquet")
    assert (again.num_new, again.num_known) == (0, 12)


def test_importing_what_embed_wrote(
    place: Path, some: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    embed(tiny_run.run, some, out=tmp_path / "emb.parquet", quiet=True)
    assert Gallery.open(place).import_file(tmp_path / "emb.parquet").num_new == 12
    probe = some / "thing 2" / "1.png"
    best = twinlens.search(place, probe, k=1).hits[0]
    assert best.identity == "thing 2"
    assert best.distance < 1e-6


def test_forgeries_that_embed_wrote_are_not_imported(
    place: Path, some: Path, tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (some / "thing 1").rename(some / "thing 0_forg")
    embed(tiny_run.run, some, out=tmp_path / "emb.parquet", quiet=True)
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        assert run("import", place, tmp_path / "emb.parquet") == 0
    assert Gallery.open(place).identities() == {"thing 0": 4, "thing 2": 4}
    assert sum("a forgery" in message for message in caplog.messages) == 4


def test_exports_need_a_place(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, message in ((tmp_path / "no" / "x.parquet", "there is no folder"),
                          (tmp_path, "it is a folder")):  # fmt: skip
        assert main(["gallery", "export", str(place), str(file)]) == 2
        assert message in capsys.readouterr().err


def test_rebuilding(
    place: Path, some: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture
) -> None:
    Gallery.open(place).enrol(some)
    gone = some / "thing 0" / "0.png"
    gone.unlink()
    with pytest.raises(GalleryError, match=r"1 of 12 pictures cannot be embedded again"):
        Gallery.open(place).rebuild(tiny_run.run)
    assert len(Gallery.open(place)) == 12
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        assert run("rebuild", place, "--model", tiny_run.run, "--drop-missing") == 0
    assert len(Gallery.open(place)) == 11
    assert any(f"dropped {gone}: " in message for message in caplog.messages)


def test_optimizing(place: Path, some: Path) -> None:
    Gallery.open(place).enrol(some)
    before = twinlens.search(place, some / "thing 0" / "0.png", k=12).hits
    found = Gallery.open(place).optimize()
    assert (found.num_templates, found.search, found.recall) == (12, "exact", 1.0)
    assert twinlens.search(place, some / "thing 0" / "0.png", k=12).hits == before


def test_a_gallery_that_is_none(tmp_path: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(GalleryError, match=r"there is no gallery at .*gallery create"):
        Gallery.open(tmp_path / "none").info()
    for model in (tiny_run.run, tiny_run.model):
        with pytest.raises(GalleryError, match="is a model, not a gallery"):
            Gallery.open(model).info()
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(tiny_run.run, tiny_run.run)


@pytest.mark.parametrize("words", [["list"], ["erase"]], ids=lambda words: words[0])
def test_what_embeds_nothing_loads_no_torch(
    words: list[str], place: Path, tiny_run: TinyRun
) -> None:
    Gallery.open(place).enrol_files("x", files(tiny_run, "thing 3"))
    command = [sys.executable, "-X", "importtime", "-m", "twinlens", "gallery", *words, str(place)]
    command += ["x"] if words == ["erase"] else []
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "lance" in loaded
    assert not loaded & {"torch", "timm", "sklearn"}


# --- in words -----------------------------------------------------------------------------------


def calibration(**changes: object) -> OpenSetCalibration:
    found = OpenSetCalibration(
        rule="vote", target_fpir=0.1, threshold=0.5, low=0.4, high=0.6, margin=0.0,
        num_identities=20, num_templates=60, num_mated=60, num_strangers=10,
        tpir=Estimate(0.875, 0.8, 0.95), rank_1=Estimate(0.9, 0.85, 1.0),
        by_rule={"nearest": 0.85, "mean": 0.8, "vote": 0.875},
        strangers=tuple(np.linspace(0.5, 1.4, 10).tolist()), curve=None,
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_calibration_in_words() -> None:
    lines = GalleryCalibrationResult(calibration(), 0.95).as_text().splitlines()
    assert lines == [
        "threshold 0.5000 (95 % interval 0.4000 to 0.6000): pictures are identified at or below"
        " this distance, and at most 10 % of strangers are falsely identified (FPIR)",
        "for 20 identities with 60 templates; from 60 mated probes (of enrolled identities) and 10"
        " non-mated ones (of strangers)",
        "TPIR 87.5 % (95 % interval 80.0 % to 95.0 %): mated probes that are identified correctly,"
        " by the rule vote (by rule: nearest 85.0 %, mean 80.0 %, vote 87.5 %)",
        # Five of the ten strangers are at 0.9 or nearer.
        "the model's threshold for pairs, 0.9500, would falsely identify 50 % of strangers: each"
        " identity is one more chance of a false match",
        # 1 - 0.9 ** 2
        "with twice as many identities expect an FPIR of 19 %: calibrate again when the gallery has"
        " grown",
    ]


def test_a_calibration_of_which_little_is_known() -> None:
    nothing = Estimate(None)
    found = calibration(low=None, high=None, tpir=nothing, rank_1=nothing, by_rule={}, margin=0.02)
    text = GalleryCalibrationResult(found, None).as_text()
    assert text.startswith("threshold 0.5000: pictures are identified")
    assert "TPIR unknown: each identity has one picture only" in text
    assert "less than 0.0200 farther than the first" in text
    assert "for pairs" not in text
    assert GalleryCalibrationResult(found, None).as_json()["pairs"] is None


@pytest.mark.parametrize(
    ("threshold", "share"), [(0.49, 0.0), (0.5, 0.1), (0.55, 0.1), (1.4, 1.0), (9.0, 1.0)]
)
def test_what_another_threshold_lets_through(threshold: float, share: float) -> None:
    assert calibration().fpir_of(threshold) == pytest.approx(share)


def test_what_another_threshold_lets_through_of_many() -> None:
    from twinlens.measure.open_set_calibration import kept_ranks

    every = np.sort(np.random.default_rng(0).gamma(9, size=5000))
    kept = every[kept_ranks(5000)]
    found = calibration(num_strangers=5000, strangers=tuple(kept.tolist()))
    for threshold in every[[0, 10, 255]]:
        assert found.fpir_of(threshold) == np.mean(every <= threshold)
    for threshold in every[[400, 1000, 3000, 4990]]:
        assert found.fpir_of(threshold) == pytest.approx(np.mean(every <= threshold), abs=0.006)


def test_nobody_and_nothing() -> None:
    assert IdentityList({}).as_text().startswith("no identities yet")
    assert TemplateList((), 0).as_text() == ""


def test_a_gallery_that_outgrows_memory_gets_its_index(
    place: Path,
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("twinlens.gallery.search.EXACT_BYTES", 10 * 16 * 4)
    monkeypatch.setattr("twinlens.gallery.index.ROWS_IN_PARTITION", 6)

    def enrol(identity: str, name: str) -> str:
        words = ["--identity", identity, *map(str, files(tiny_run, name))]
        assert main(["gallery", "enrol", str(place), *words]) == 0
        return capsys.readouterr().err

    assert "index" not in enrol("a", "thing 3")
    assert Gallery.open(place).info().search == "exact"
    assert "the gallery has outgrown its index" in enrol("b", "thing 4")
    info = Gallery.open(place).info()
    assert (info.search, info.partitions) == ("index", 2)
    enrol("c", "thing 5")
    assert Gallery.open(place).info().num_unindexed == 0


def test_calibrating_on_what_was_trained_on_is_said(
    place: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    Gallery.open(place).enrol(tiny_run.data)
    assert run("calibrate", place, "--fpir", 0.2) == 0
    err = capsys.readouterr().err
    assert "the model was trained on 6 of the 10 identities enrolled (recognised: 36 copies" in err
