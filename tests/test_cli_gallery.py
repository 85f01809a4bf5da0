"""The jobs of galleries: what they do to one, what they say, and what they refuse."""

from __future__ import annotations

import logging
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
from twinlens.commands import gallery as jobs
from twinlens.commands.embed import embed
from twinlens.errors import CalibrationError, ConfigError, DataError, GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import Calibrated, Identities, Templates
from twinlens.measure.bootstrap import Figure
from twinlens.measure.open_set_calibration import OpenSetCalibration

ODD = 'Zoë "O\'Brien"\n👩‍👩‍👧 ../x\x1b[2J' + "y" * 4000


@pytest.fixture
def place(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """An empty gallery."""
    jobs.create(tmp_path / "gallery", tiny_run.run)
    return tmp_path / "gallery"


@pytest.fixture
def some(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A folder with 3 identities of 4 pictures each, of those that the model was made with."""
    for name in ("thing 0", "thing 1", "thing 2"):
        (tmp_path / "some" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(tiny_run.data / name / f"{number}.png", tmp_path / "some" / name)
    return tmp_path / "some"


def files(tiny_run: TinyRun, name: str) -> list[Path]:
    return sorted((tiny_run.data / name).iterdir())


def test_enrolling_twice_changes_nothing(place: Path, some: Path) -> None:
    first = jobs.enrol(place, some, metadata={"room": "north"}, quiet=True)
    assert (first.num_new, first.num_known, first.num_identities) == (12, 0, 3)
    again = jobs.enrol(place, some, quiet=True)
    assert (again.num_new, again.num_known, again.num_identities) == (0, 12, 3)
    counts = jobs.list_identities(place).counts
    assert counts == {"thing 0": 4, "thing 1": 4, "thing 2": 4}
    listed = jobs.list_templates(place, "thing 1").templates
    assert [one.path for one in listed] == [
        str(some / "thing 1" / f"{number}.png") for number in range(4)
    ]
    assert {one.metadata["room"] for one in listed} == {"north"}
    assert len(jobs.list_templates(place).templates) == 12


def test_skipped_pictures_are_named(
    place: Path, some: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (some / "thing 0" / "broken.png").write_bytes(b"no picture")
    shutil.copy(some / "thing 0" / "0.png", some / "thing 1" / "same.png")
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        found = jobs.enrol(place, some, quiet=True)
    assert (found.num_new, len(found.skipped)) == (12, 2)
    for path in (some / "thing 0" / "broken.png", some / "thing 1" / "same.png"):
        assert sum(f"skipped {path}: " in message for message in caplog.messages) == 1


def test_nothing_at_all_could_be_read(place: Path, tmp_path: Path) -> None:
    bad = [tmp_path / name for name in ("one.png", "two.png")]
    for path in bad:
        path.write_bytes(b"no picture")  # Equal bytes: and yet neither is known.
    with pytest.raises(DataError, match=r"nothing was enrolled: .*one\.png: not a picture"):
        jobs.enrol_files(place, "x", bad[:1], quiet=True)
    with pytest.raises(DataError, match="all 2 pictures were skipped"):
        jobs.enrol_files(place, "x", bad, quiet=True)
    assert jobs.list_identities(place).counts == {}


def test_odd_names_go_in_and_out_unchanged(place: Path, tiny_run: TinyRun) -> None:
    jobs.enrol_files(place, ODD, files(tiny_run, "thing 3"), quiet=True)
    found = jobs.list_identities(place)
    assert found.counts == {ODD: 6}
    assert found.as_json() == {"identities": [{"identity": ODD, "num_templates": 6}]}
    assert len(found.as_text().splitlines()) == 1
    assert len(found.as_text()) < 100
    text = jobs.list_templates(place, ODD).as_text()
    assert len(text.splitlines()) == 6
    assert "\x1b" not in text
    assert jobs.rename(place, ODD, "plain").num_templates == 6
    receipt = jobs.erase(place, "plain")
    assert (receipt.num_templates, receipt.num_left) == (6, 0)
    assert "plain" not in receipt.as_text() + str(receipt.as_json())
    assert jobs.list_identities(place).counts == {}


def test_unknown_identities_get_near_names(place: Path, some: Path) -> None:
    jobs.enrol(place, some, quiet=True)
    for act in (
        lambda: jobs.erase(place, "thing1"),
        lambda: jobs.rename(place, "thing1", "new"),
        lambda: jobs.list_templates(place, "thing1"),
    ):
        with pytest.raises(GalleryError, match=r"unknown identity 'thing1': did you mean thing \d"):
            act()
    with pytest.raises(GalleryError, match=r"'thing 2' already.*--merge"):
        jobs.rename(place, "thing 1", "thing 2")
    assert jobs.rename(place, "thing 1", "thing 2", merge=True).num_templates == 4
    assert jobs.list_identities(place).counts == {"thing 0": 4, "thing 2": 8}


def test_names_that_are_empty(place: Path, tiny_run: TinyRun) -> None:
    for name in ("", " \n"):
        with pytest.raises(GalleryError, match="an identity needs a name"):
            jobs.enrol_files(place, name, files(tiny_run, "thing 3"), quiet=True)


def test_calibrating_by_its_own_templates(place: Path, some: Path) -> None:
    jobs.enrol(place, some, quiet=True)
    found = jobs.calibrate(place, fpir=0.25, quiet=True)
    assert found.found == Gallery.open(place).state().open_set
    assert found.pair_threshold == Gallery.open(place).matcher.require_calibration().threshold
    text = found.as_text()
    assert f"threshold {found.found.threshold:.4f}" in text
    assert "for 3 identities with 12 templates" in text
    assert f"the model's threshold for pairs, {found.pair_threshold:.4f}, would take" in text
    assert jobs.info(place).threshold == found.found.threshold


def test_calibrating_by_other_pictures(place: Path, some: Path, tiny_run: TinyRun) -> None:
    jobs.enrol(place, some, quiet=True)
    found = jobs.calibrate(place, tiny_run.data, fpir=0.1, rule="mean", quiet=True).found
    # Two further pictures of each of the 3, and 6 of each of the other 7.
    assert (found.num_mated, found.num_strangers, found.rule) == (6, 42, "mean")


def test_a_gallery_that_has_outgrown_its_threshold(
    place: Path, some: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.enrol(place, some, quiet=True)
    jobs.calibrate(place, fpir=0.25, quiet=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        jobs.enrol_files(place, "thing 3", files(tiny_run, "thing 3"), quiet=True)
        jobs.enrol(place, some, quiet=True)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        jobs.enrol(place, tiny_run.data, quiet=True)
    # 1 - 0.75 ** (10 / 3)
    assert caplog.messages == [
        "calibrated for 3 identities, the gallery has 10 now, and may take 62 % of strangers for"
        f" somebody instead of 25 %: run `twinlens gallery calibrate {place}`"
    ]


def test_calibrating_an_empty_gallery(place: Path) -> None:
    with pytest.raises(GalleryError, match="is empty: enrol pictures first"):
        jobs.calibrate(place, quiet=True)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"seed": -1}, ConfigError, "seed must be at least 0, found -1"),
        ({"rule": "nearset"}, ConfigError, "unknown rule 'nearset': did you mean nearest"),
        ({"fpir": 2.0}, CalibrationError, "the target FPIR is 2.0; it must lie between 0 and 1"),
        ({"fpir": float("nan")}, CalibrationError, "the target FPIR is nan"),
    ],
)
def test_what_cannot_be_calibrated_for_is_refused_before_the_work(
    place: Path, some: Path, tiny_run: TinyRun, wrong: dict[str, Any], error: type[Exception],
    said: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    jobs.enrol(place, some, quiet=True)

    def embed_anyway(*_: Any) -> None:
        raise AssertionError("it was embedded")

    monkeypatch.setattr("twinlens.gallery.maintain._asked", embed_anyway)
    for data in (None, tiny_run.data):
        with pytest.raises(error, match=said):
            jobs.calibrate(place, data, **({"fpir": 0.25, "quiet": True} | wrong))
    assert jobs.info(place).threshold_of != "gallery"


def test_there_and_back(place: Path, some: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    jobs.enrol(place, some, metadata={"floor": 2}, keep_thumbnails=True, quiet=True)
    written = jobs.export(place, tmp_path / "all.parquet")
    assert written.num_templates == len(pq.read_table(tmp_path / "all.parquet")) == 12
    jobs.create(tmp_path / "other", tiny_run.model)
    found = jobs.import_file(tmp_path / "other", tmp_path / "all.parquet", quiet=True)
    assert (found.num_new, found.num_known) == (12, 0)
    assert jobs.list_templates(tmp_path / "other") == jobs.list_templates(place)
    assert jobs.info(tmp_path / "other").num_thumbnails == 12
    again = jobs.import_file(tmp_path / "other", tmp_path / "all.parquet", quiet=True)
    assert (again.num_new, again.num_known) == (0, 12)


def test_importing_what_embed_wrote(
    place: Path, some: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    embed(tiny_run.run, some, out=tmp_path / "emb.parquet", quiet=True)
    assert jobs.import_file(place, tmp_path / "emb.parquet", quiet=True).num_new == 12
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
        found = jobs.import_file(place, tmp_path / "emb.parquet", quiet=True)
    assert (found.num_new, len(found.skipped)) == (8, 4)
    assert jobs.list_identities(place).counts == {"thing 0": 4, "thing 2": 4}
    assert sum("a forgery" in message for message in caplog.messages) == 4


def test_exports_need_a_place(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        jobs.export(place, tmp_path / "no" / "x.parquet")
    with pytest.raises(DataError, match="it is a folder"):
        jobs.export(place, tmp_path)


def test_rebuilding(
    place: Path, some: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.enrol(place, some, quiet=True)
    gone = some / "thing 0" / "0.png"
    gone.unlink()
    with pytest.raises(GalleryError, match=r"1 of 12 pictures cannot be embedded again"):
        jobs.rebuild(place, tiny_run.run, quiet=True)
    assert len(Gallery.open(place)) == 12
    with caplog.at_level(logging.WARNING, logger="twinlens"):
        found = jobs.rebuild(place, tiny_run.run, drop_missing=True, quiet=True)
    assert (found.num_templates, [one.path for one in found.missing]) == (11, [str(gone)])
    assert any(f"dropped {gone}: " in message for message in caplog.messages)


def test_optimizing(place: Path, some: Path) -> None:
    jobs.enrol(place, some, quiet=True)
    before = twinlens.search(place, some / "thing 0" / "0.png", k=12).hits
    found = jobs.optimize(place, quiet=True)
    assert (found.num_templates, found.search, found.recall) == (12, "exact", 1.0)
    assert twinlens.search(place, some / "thing 0" / "0.png", k=12).hits == before


def test_a_gallery_that_is_none(tmp_path: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(GalleryError, match=r"there is no gallery at .*gallery create"):
        jobs.info(tmp_path / "none")
    for model in (tiny_run.run, tiny_run.model):
        with pytest.raises(GalleryError, match="is a model, and a gallery is needed"):
            jobs.info(model)
    with pytest.raises(GalleryError, match="is there already"):
        jobs.create(tiny_run.run, tiny_run.run)


@pytest.mark.parametrize("words", [["list"], ["erase"]], ids=lambda words: words[0])
def test_what_embeds_nothing_loads_no_torch(
    words: list[str], place: Path, tiny_run: TinyRun
) -> None:
    jobs.enrol_files(place, "x", files(tiny_run, "thing 3"), quiet=True)
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
        tpir=Figure(0.875, 0.8, 0.95), rank_1=Figure(0.9, 0.85, 1.0),
        by_rule={"nearest": 0.85, "mean": 0.8, "vote": 0.875},
        strangers=tuple(np.linspace(0.5, 1.4, 10).tolist()), curve=None,
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_calibration_in_words() -> None:
    lines = Calibrated(calibration(), 0.95).as_text().splitlines()
    assert lines == [
        "threshold 0.5000 (95 % interval 0.4000 to 0.6000): a picture is somebody at this distance"
        " or closer, and at most 10 % of strangers are taken for somebody",
        "for 20 identities with 60 templates; from 60 probes of enrolled people and 10 of"
        " strangers",
        "recognised at it: 87.5 % of the pictures of enrolled people (95 % interval 80.0 % to"
        " 95.0 %), by the rule vote (by rule: nearest 85.0 %, mean 80.0 %, vote 87.5 %)",
        # Five of the ten strangers are at 0.9 or nearer.
        "the model's threshold for pairs, 0.9500, would take 50 % of strangers for somebody: each"
        " identity is one more chance",
        # 1 - 0.9 ** 2
        "with twice as many identities expect 19 % instead: calibrate again when the gallery has"
        " grown",
    ]


def test_a_calibration_of_which_little_is_known() -> None:
    nothing = Figure(None)
    found = calibration(low=None, high=None, tpir=nothing, rank_1=nothing, by_rule={}, margin=0.02)
    text = Calibrated(found, None).as_text()
    assert text.startswith("threshold 0.5000: a picture")
    assert "is not known: there is one picture of each" in text
    assert "less than 0.0200 farther than the first" in text
    assert "for pairs" not in text
    assert Calibrated(found, None).as_json()["pairs"] is None


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
    assert Identities({}).as_text().startswith("nobody is enrolled yet")
    assert Templates(()).as_text() == ""


def test_a_gallery_that_outgrows_memory_gets_its_index(
    place: Path,
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("twinlens.gallery.search.EXACT_BYTES", 10 * 16 * 4)
    monkeypatch.setattr("twinlens.gallery.index.ROWS_IN_PARTITION", 6)
    jobs.enrol_files(place, "a", files(tiny_run, "thing 3"))
    assert jobs.info(place).search == "exact"
    assert "index" not in capsys.readouterr().err
    jobs.enrol_files(place, "b", files(tiny_run, "thing 4"))
    assert (jobs.info(place).search, jobs.info(place).partitions) == ("index", 2)
    assert "the gallery has outgrown its index" in capsys.readouterr().err
    jobs.enrol_files(place, "c", files(tiny_run, "thing 5"))
    assert jobs.info(place).num_unindexed == 0


def test_calibrating_on_what_was_trained_on_is_said(
    place: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.enrol(place, tiny_run.data, quiet=True)
    jobs.calibrate(place, fpir=0.2)
    assert "of 10 identities have the names of some that the model was trained on" in (
        capsys.readouterr().err
    )
