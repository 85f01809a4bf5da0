"""`evaluate` and `calibrate`: which pictures are taken, and lists of trials."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, PictureFolder, TinyRun, draw_pictures, save_networks
from PIL import Image

import twinlens
from twinlens.commands.selection import select_pictures
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.folders import read_table
from twinlens.data.pixels import PixelRows
from twinlens.data.splits import assign_splits
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, ConfigError, DataError, TwinlensError
from twinlens.match.matcher import Matcher
from twinlens.measure import pairs as pairs_module
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.estimate import Estimate
from twinlens.measure.evaluation_result import NearestNeighbourEvaluation, OpenSetEvaluation
from twinlens.measure.open_set import open_set
from twinlens.measure.trials import (
    OneShotTrialsResult,
    PairTrialsResult,
    one_shot_trials,
    pair_trials,
)
from twinlens.model.comparators import COMPARATORS, make_comparator
from twinlens.model.encoder import Encoder
from twinlens.report import build as pages
from twinlens.report.embedding_map import map_rows


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def model(tiny_run: TinyRun) -> Matcher:
    return twinlens.load(tiny_run.run)


@pytest.fixture
def own_model(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(tiny_run.model, tmp_path / "model")


# --- pairs --------------------------------------------------------------------------------------


def test_of_a_sample_of_pairs_all_are_looked_at_too(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = twinlens.evaluate(tiny_run.run, tiny_run.data, split="all", quiet=True)
    assert whole.all_pairs is None
    assert "all_pairs" not in whole.as_json()
    monkeypatch.setattr(pairs_module, "ALL_PAIRS_LIMIT", 50)
    monkeypatch.setattr(pairs_module, "SAMPLED_PAIRS", 50)
    some = twinlens.evaluate(tiny_run.run, tiny_run.data, split="all", quiet=True)
    assert some.verification.num_impostor == 50
    found = some.as_json()["all_pairs"]
    assert found["num_genuine"] == whole.verification.num_genuine
    assert found["num_impostor"] == whole.verification.num_impostor
    assert found["eer"]["value"] == pytest.approx(whole.verification.eer.value, abs=1e-6)
    assert "all pairs eer" in some.as_text()
    asked = twinlens.evaluate(tiny_run.run, tiny_run.data, split="all", pairs=50, quiet=True)
    assert asked.all_pairs is None


# --- which pictures -----------------------------------------------------------------------------


def test_training_data_is_split_as_it_was(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_run.data, tmp_path / "a copy is the same data")
    lines = (tiny_run.run / "split.csv").read_text(encoding="utf-8").splitlines()[1:]
    for split in ("train", "val", "test"):
        chosen = select_pictures(model, copy, split=split, prefer="test")
        found = {chosen.table.relative(row) for row in range(len(chosen.table))}
        assert found == {line.split(",")[0] for line in lines if line.endswith(f",{split}")}
        assert chosen.identity_disjoint == (split != "train")
    auto = select_pictures(model, copy, split="auto", prefer="test")
    assert (auto.split, auto.identity_disjoint) == ("test", True)
    whole = select_pictures(model, copy, split="all", prefer="test")
    assert (whole.split, len(whole.table), whole.identity_disjoint) == ("all", 60, False)


def test_other_data_is_taken_whole(model: Matcher, picture_folder: PictureFolder) -> None:
    new = picture_folder({"new a": 3, "new b": 3})
    chosen = select_pictures(model, new, split="auto", prefer="test")
    assert (chosen.split, len(chosen.table), chosen.identity_disjoint) == ("all", 6, True)
    assert chosen.pixels.shape == (6, 1, 16, 16)


def names_of_splits(run: TinyRun) -> dict[str, set[str]]:
    """The identities of each split."""
    lines = (run.run / "split.csv").read_text(encoding="utf-8").splitlines()
    return {
        split: {line.split(",")[1] for line in lines if line.endswith(f",{split}")}
        for split in ("train", "val", "test")
    }


def test_of_a_copy_with_more_pictures_only_the_unseen_is_taken(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation pictures are left out of an evaluation too, not out of a calibration."""
    copy = shutil.copytree(tiny_run.data, tmp_path / "changed")
    names = names_of_splits(tiny_run)
    draw_pictures(copy / min(names["train"]), {"": 1}, seed=5, suffix=" new.png")
    capsys.readouterr()
    found = twinlens.evaluate(model.path, copy)
    assert (
        "left out 49 pictures of 8 identities that the model was trained on or validated with; 12 "
        "of 2 remain (recognised: 48 copies, 49 by the name of their identity)"
    ) in capsys.readouterr().err
    assert (found.split, found.identity_disjoint) == ("unseen", True)
    assert set(found.table.identities()) == names["test"]
    chosen = select_pictures(model, copy, split="auto", prefer="val")
    assert (chosen.split, chosen.identity_disjoint) == ("unseen", True)
    assert set(chosen.table.identities()) == names["val"] | names["test"]
    found = twinlens.evaluate(model.path, copy, split="all")
    assert (found.split, found.identity_disjoint) == ("all", False)
    assert "warning: the model was trained on some of these identities" in capsys.readouterr().err


def test_where_too_little_is_unseen_all_is_taken(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_run.data, tmp_path / "changed")
    names = names_of_splits(tiny_run)
    unseen = sorted(names["val"] | names["test"])
    for name in unseen[1:]:
        shutil.rmtree(copy / name)
    draw_pictures(copy / unseen[0], {"": 1}, seed=5, suffix=" new.png")
    capsys.readouterr()
    chosen = select_pictures(model, copy, split="auto", prefer="test")
    assert (chosen.split, len(chosen.table), chosen.identity_disjoint) == ("all", 43, False)
    twinlens.evaluate(model.path, copy)
    said = capsys.readouterr().err
    assert "warning: the model was trained on some of these identities" in said
    assert "left out" not in said


def test_of_a_closed_set_only_pictures_are_left_out(closed: ClosedRun, tmp_path: Path) -> None:
    """Its identities are those of the training, as they are meant to be."""
    matcher = twinlens.load(closed.run)
    shutil.copytree(closed.data / "train", tmp_path / "more")
    draw_pictures(tmp_path / "more", dict.fromkeys(PLACES, 3), seed=5, suffix=" new.png")
    chosen = select_pictures(matcher, tmp_path / "more", split="auto", prefer="test")
    assert (chosen.split, chosen.identity_disjoint) == ("unseen", False)
    assert {Path(path).name for path in chosen.table.path} == {f"{n} new.png" for n in range(3)}
    assert chosen.table.identities() == sorted(PLACES)


def test_other_data_is_taken_by_its_own_splits(
    model: Matcher, picture_folder: PictureFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = picture_folder({f"{split}/{name}": 3 for split in ("train", "test") for name in "ab"})
    found = select_pictures(model, data, split="auto", prefer="test")
    assert (found.split, len(found.table)) == ("test", 6)
    with pytest.raises(DataError, match="has no val pictures"):
        select_pictures(model, data, split="val", prefer="test")
    instead = select_pictures(model, data, split="auto", prefer="val")
    assert instead.split == "test"


def test_same_pictures_split_otherwise(
    picture_folder: PictureFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that was split in Python, and then the same folder without those splits.

    The fingerprint is the same, and a split by chance would call training pictures unseen.
    """
    data = picture_folder(dict.fromkeys("abcdefgh", 4))
    plain = read_table(data)
    by_chance = assign_splits(plain, mode="identities", fractions=(0.7, 0.15, 0.15), seed=0)
    swapped = {"train": "test", "val": "val", "test": "train"}
    given = plain.with_split([swapped[split] for split in by_chance.split])
    assert given.fingerprint() == plain.fingerprint()
    settings = TINY | {"train.steps": 2}
    twinlens.train(given, out=tmp_path / "run", settings=settings, quiet=True)
    capsys.readouterr()
    found = twinlens.evaluate(tmp_path / "run", data)
    assert (found.split, found.identity_disjoint) == ("test", True)
    assert found.table.identities() == given.of_split("test").identities()
    assert "they are split as in training" in capsys.readouterr().err
    found = twinlens.evaluate(tmp_path / "run", given, quiet=True)
    assert (found.split, found.identity_disjoint) == ("test", True)
    assert found.table.identities() == by_chance.of_split("train").identities()
    assert found.as_json() == read(tmp_path / "run" / "results.json")


def test_broken_pictures_are_named(
    model: Matcher,
    picture_folder: PictureFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = picture_folder({"x": 6, "y": 6})
    (data / "x" / "2.png").write_bytes(b"no picture")
    found = twinlens.evaluate(model.path, data, report=tmp_path / "page.html")
    assert f"warning: skipped {data}/x/2.png: not a picture" in capsys.readouterr().err
    assert len(found.table) == 11
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "x/2.png" in page
    assert "<title>" in page
    for number in range(4):
        (data / "y" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"5 of 12 pictures .* at most 20\.0 %"):
        twinlens.evaluate(model.path, data, quiet=True)


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_those_of_the_distances(model: Matcher, picture_folder: PictureFolder) -> None:
    """FAR and FRR at the threshold, by a plain loop over `model.verify`."""
    data = picture_folder({"x": 3, "y": 3, "z": 2}, seed=9)
    files = sorted(data.rglob("*.png"))
    wrong, total = {True: 0, False: 0}, {True: 0, False: 0}
    for i, a in enumerate(files):
        for b in files[i + 1 :]:
            same = a.parent == b.parent
            total[same] += 1
            wrong[same] += model.verify(a, b).match != same
    found = twinlens.evaluate(model.path, data, way=3, episodes=20, quiet=True).as_json()
    verified = found["verification"]
    assert (verified["num_genuine"], verified["num_impostor"]) == (total[True], total[False])
    calibrated = verified["calibrated"]
    assert calibrated["far"]["value"] == pytest.approx(wrong[False] / total[False])
    assert calibrated["frr"]["value"] == pytest.approx(wrong[True] / total[True])
    assert calibrated["threshold"]["value"] == model.require_calibration().threshold
    assert list(found["one_shot"]) == ["3-way-1-shot"]
    assert found["retrieval"]["num_probes"] == 8


def test_words_for_a_person(model: Matcher, tiny_run: TinyRun) -> None:
    lines = twinlens.evaluate(model.path, tiny_run.data, quiet=True).as_text().splitlines()
    names = {line[:28].strip() for line in lines}
    assert {"measured on", "auc", "eer", "tar at far 0.1", "calibrated far (FMR)", "recall at 1",
            "calibration error (ECE)", "one shot 2-way-1-shot"} <= names  # fmt: skip
    assert any("too few pairs" in line for line in lines)


def test_groups_priors_and_their_errors(tiny_run: TinyRun, tmp_path: Path) -> None:
    files = sorted(tiny_run.data.rglob("*.png"))
    rows = [f"{file},{file.parent.name},{row % 2}" for row, file in enumerate(files)]
    manifest = tmp_path / "cameras.csv"
    manifest.write_text("\n".join(["path,identity,camera", *rows]) + "\n")
    page = tmp_path / "report.html"
    found = twinlens.evaluate(
        tiny_run.run, manifest, split="all", by="camera", prior=0.2, report=page, quiet=True
    )
    assert found.groups["camera"].as_json() == found.as_json()["groups"]["camera"]
    assert [group.name for group in found.groups["camera"].groups] == ["0", "1"]
    assert found.verification.reliability.prior == 0.2
    text = found.as_text()
    assert "by camera" in text
    assert "0.2 of a genuine pair" in text
    assert 'id="groups"' in page.read_text(encoding="utf-8")
    assert 'id="probabilities"' in page.read_text(encoding="utf-8")
    for options, message in (
        ({"by": "age"}, "has no column 'age' to group by; its columns are camera"),
        ({"by": "camera", "protocol": "nearest"}, "--by belongs to --protocol standard"),
        ({"group_thresholds": True}, "--group-thresholds belongs to --by COLUMN and DATA"),
        ({"prior": 1.5}, r"must be in \(0, 1\), found 1.5"),
    ):
        with pytest.raises(TwinlensError, match=message):
            twinlens.evaluate(tiny_run.run, manifest, quiet=True, **options)


def test_numbers_of_pairs_and_episodes(model: Matcher, tiny_run: TinyRun) -> None:
    found = twinlens.evaluate(model.path, tiny_run.data, pairs=7, shot=2, quiet=True).as_json()
    verified = found["verification"]
    assert (verified["num_genuine"], verified["num_impostor"]) == (7, 7)
    assert list(found["one_shot"]) == ["2-way-2-shot"]
    with pytest.raises(ConfigError, match="needs DATA, or --trials"):
        twinlens.evaluate(model.path)


# --- calibrate ----------------------------------------------------------------------------------


def test_calibrating_keeps_the_far(own_model: Path, picture_folder: PictureFolder) -> None:
    data = picture_folder({f"new{number}": 5 for number in range(6)}, seed=3)
    before = twinlens.load(own_model)
    after = twinlens.calibrate(own_model, data, far=0.05, quiet=True)
    found = after.require_calibration()
    assert found.target_far == 0.05
    assert (found.num_genuine, found.num_impostor) == (6 * 10, 15 * 25)
    assert after.fingerprint == before.fingerprint
    assert twinlens.load(own_model).calibration == found
    files = sorted(data.rglob("*.png"))
    impostors = [
        before.distance(a, b)
        for i, a in enumerate(files)
        for b in files[i + 1 :]
        if a.parent != b.parent
    ]
    # The unadjusted threshold is one of the distances, but for a network's last bits.
    assert found.unadjusted is not None
    met = np.mean(np.array(impostors) <= found.unadjusted + 1e-6)
    assert met == pytest.approx(0.05, abs=0.01)
    assert found.threshold <= found.unadjusted
    assert found.far_limit == pytest.approx(0.075)


def test_calibrating_on_training_data_takes_the_validation_pictures(
    own_model: Path, tiny_run: TinyRun
) -> None:
    """As training itself did, so nothing changes."""
    again = twinlens.calibrate(own_model, tiny_run.data, quiet=True)
    assert again.calibration == twinlens.load(tiny_run.run).calibration


def test_a_seed_below_0_is_refused_before_the_work(own_model: Path) -> None:
    with pytest.raises(ConfigError, match="seed must be at least 0, found -1"):
        twinlens.calibrate(own_model, "no data", seed=-1, quiet=True)


def test_too_few_pairs_change_nothing(own_model: Path, picture_folder: PictureFolder) -> None:
    before = (own_model / "model.json").read_bytes()
    data = picture_folder({"one": 2, "two": 2}, seed=3)
    with pytest.raises(CalibrationError, match=r"found 4 impostor"):
        twinlens.calibrate(own_model, data, far=0.001, quiet=True)
    assert (own_model / "model.json").read_bytes() == before


def test_pictures_of_one_identity_cannot_be_compared(
    own_model: Path, picture_folder: PictureFolder
) -> None:
    table = read_table(picture_folder({"one": 3, "two": 3}, seed=3))
    split = np.where(table.identity == "one", "test", "train")
    with pytest.raises(DataError, match=r"\(test\) are all of 'one'.*--on all"):
        twinlens.evaluate(own_model, table.with_split(split), quiet=True)
    with pytest.raises(DataError, match="evaluation needs at least 2"):
        twinlens.evaluate(own_model, table.select(table.identity == "one"), split="all", quiet=True)


def test_the_nearest_far_that_the_pairs_allow_is_taken_and_said(
    own_model: Path, picture_folder: PictureFolder, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder({f"new{number}": 5 for number in range(6)}, seed=3)
    found = twinlens.calibrate(own_model, data, far=0.0001).require_calibration()
    assert found.requested_far == 0.0001
    assert found.target_far > 1 / found.num_impostor
    assert "not 0.01 %" in caplog.text
    assert "calibrate with more identities" in caplog.text


# --- nearest ------------------------------------------------------------------------------------

PLACES = ("Zürich", "東京", "Île d'Orléans, Québec", "القاهرة")


@dataclass(frozen=True)
class ClosedRun:
    """A run on train/ and test/ of the same places, of which test/ has one more."""

    run: Path
    data: Path


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> ClosedRun:
    """A test picture of 東京 is a copy, in another format, of a training picture of Zürich."""
    top = tmp_path_factory.mktemp("closed")
    draw_pictures(top / "all", {**dict.fromkeys(PLACES, 12), "new": 3}, seed=3)
    for name in PLACES:
        for number in range(12):
            split = "train" if number < 8 else "test"
            (top / "data" / split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(top / "all" / name / f"{number}.png", top / "data" / split / name)
    shutil.copytree(top / "all" / "new", top / "data" / "test" / "new")
    with Image.open(top / "data" / "train" / PLACES[0] / "5.png") as picture:
        picture.save(top / "data" / "test" / PLACES[1] / "copy.bmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(top / "cache"))
        twinlens.train(
            top / "data", out=top / "run", settings=TINY | {"data.split": "images"}, quiet=True
        )
    return ClosedRun(top / "run", top / "data")


def look_up(
    closed: ClosedRun, folder: Path, **more: Any
) -> tuple[NearestNeighbourEvaluation, list[dict[str, str]]]:
    """`evaluate` by the protocol "nearest", and its answers."""
    file = folder / "answers.csv"
    found = twinlens.evaluate(
        closed.run, closed.data, protocol="nearest", answers=file, quiet=True, **more
    )
    with file.open(newline="", encoding="utf-8") as stream:
        return found, list(csv.DictReader(stream))


def test_nearest_is_that_of_a_loop(closed: ClosedRun, tmp_path: Path) -> None:
    """Each test picture against each training picture by `distance`, one by one."""
    model = twinlens.load(closed.run)
    found, rows = look_up(closed, tmp_path)
    shown = sorted((closed.data / "train").rglob("*.png"))
    asked = sorted(path for path in (closed.data / "test").rglob("*.*"))
    assert len(shown) == 32  # Validation pictures were cut out of these, and are among them.
    assert [row["path"] for row in rows] == [p.relative_to(closed.data).as_posix() for p in asked]
    right, top_5 = [], []
    for path, row in zip(asked, rows, strict=True):
        near = sorted(shown, key=lambda other, path=path: model.distance(path, other))[:5]
        right.append(near[0].parent.name == path.parent.name)
        top_5.append(path.parent.name in [other.parent.name for other in near])
        assert row["identity"] == path.parent.name
        assert row["nearest_identity"] == near[0].parent.name
        assert row["nearest_path"] == near[0].relative_to(closed.data).as_posix()
        distance = model.distance(path, near[0])
        assert float(row["distance"]) == pytest.approx(distance, abs=1e-6)
        assert row["match"] == str(int(distance <= model.require_calibration().threshold))
    assert found.nearest.accuracy.value == pytest.approx(np.mean(right))
    assert found.nearest.top_5.value == pytest.approx(np.mean(top_5))
    assert 0.5 < np.mean(right) < 1
    low, high = found.nearest.accuracy.low, found.nearest.accuracy.high
    assert low is not None
    assert high is not None
    assert low < np.mean(right) <= high
    assert (found.nearest.num_probes, found.nearest.num_gallery) == (20, 32)
    assert (found.nearest.num_identities, found.nearest.num_unknown) == (4, 3)
    # Of 20 pictures, 17 show one of 4 places that each have a quarter of the gallery.
    assert found.nearest.chance == pytest.approx(17 / 20 / 4)
    assert (found.split, found.identity_disjoint) == ("test", False)
    assert list(found.as_json()) == ["split", "identity_disjoint", "nearest", "domain"]


def test_a_nearest_picture_may_be_beyond_the_threshold(closed: ClosedRun, tmp_path: Path) -> None:
    """At the threshold itself it is within."""
    _, rows = look_up(closed, tmp_path)
    # Nine digits name a number of 32 bits.
    distances = sorted(float(np.float32(row["distance"])) for row in rows)
    strict = shutil.copytree(closed.run / "model", tmp_path / "strict")
    description = read(strict / "model.json")
    description["calibration"]["threshold"] = distances[9]
    (strict / "model.json").write_text(json.dumps(description))
    found, again = look_up(replace(closed, run=strict), tmp_path)
    assert [row | {"match": "1"} for row in again] == rows
    assert [row["match"] for row in again] == [
        str(int(np.float32(row["distance"]) <= distances[9])) for row in again
    ]
    assert [row["match"] for row in again].count("1") == 10
    known = look_up(closed, tmp_path)[0].as_json()
    assert found.as_json() == known | {"identity_disjoint": None}  # Without the run's record.


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_a_copy_of_a_training_picture_is_at_distance_zero(
    comparator: str, closed: ClosedRun, tmp_path: Path
) -> None:
    """Wherever it stands in the batch, and for every comparator."""
    torch.manual_seed(0)
    encoder = Encoder(
        ModelSettings.model_validate(
            {"backbone": "conv", "channels": (4,), "embedding": 8, "comparator": comparator}
        ),
        PictureSettings.model_validate({"size": (12, 12), "color": "grey"}),
    )
    save_networks(tmp_path / "model", encoder, make_comparator(comparator, 8))

    _, rows = look_up(replace(closed, run=tmp_path / "model"), tmp_path)
    copy = next(row for row in rows if row["path"].endswith("copy.bmp"))
    assert copy["distance"] == "0"
    assert {row["match"] for row in rows} == {""}
    if comparator != "network":  # Which may call different things the same.
        assert (copy["identity"], copy["nearest_identity"]) == ("東京", "Zürich")
        assert copy["nearest_path"] == "train/Zürich/5.png"


def test_training_pictures_find_themselves(
    closed: ClosedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, rows = look_up(closed, tmp_path, split="train")
    assert "each training picture is compared with all of them" in capsys.readouterr().err
    assert {row["distance"] for row in rows} == {"0"}
    assert all(row["path"] == row["nearest_path"] for row in rows)
    assert found.nearest.accuracy.value == 1
    assert "each training picture is also in the gallery, and finds itself" in found.as_text()
    # Validation pictures, which were cut out of the training pictures, are then not among them.
    val, val_rows = look_up(closed, tmp_path, split="val")
    assert (val.nearest.num_probes + val.nearest.num_gallery, found.nearest.num_gallery) == (32, 32)
    assert all(row["path"] != row["nearest_path"] for row in val_rows)
    assert len(rows) == val.nearest.num_gallery


def test_nearest_in_words(closed: ClosedRun, tmp_path: Path) -> None:
    text = look_up(closed, tmp_path)[0].as_text()
    lines = {line[:28].strip(): line[28:].strip() for line in text.splitlines()}
    assert lines["measured on"] == "test pictures, identities seen in training"
    assert re.fullmatch(r"[\d.]+ % \([\d.]+ to [\d.]+ %\)", lines["nearest accuracy"])
    assert lines["nearest by chance"] == "21.2 %"
    assert lines["probes"] == "20 pictures against 32 training pictures of 4 identities"
    assert lines["non-mated probes"].startswith(
        "3 pictures of identities without training pictures"
    )
    assert "finds itself" not in text


def test_data_of_another_model_is_looked_up_by_its_own_splits(
    closed: ClosedRun, tiny_run: TinyRun, tmp_path: Path
) -> None:
    """Validation pictures that DATA names itself are not training pictures."""
    data = shutil.copytree(closed.data, tmp_path / "data")
    other = ClosedRun(tiny_run.run, data)
    found, _ = look_up(other, tmp_path)
    assert (found.split, found.identity_disjoint) == ("test", True)
    assert (found.nearest.num_probes, found.nearest.num_gallery) == (20, 32)
    (data / "val" / "Zürich").mkdir(parents=True)
    for number in range(3):
        (data / "train" / "Zürich" / f"{number}.png").rename(
            data / "val" / "Zürich" / f"{number}.png"
        )
    found, _ = look_up(other, tmp_path)
    assert found.nearest.num_gallery == 29


def test_forgeries_are_not_looked_up(tiny_run: TinyRun, picture_folder: PictureFolder,
                                     tmp_path: Path) -> None:  # fmt: skip
    data = picture_folder(
        {f"{split}/{name}": 3 for split in ("train", "test") for name in ("a", "a_forg", "b")}
    )
    found, rows = look_up(ClosedRun(tiny_run.run, data), tmp_path)
    assert (found.nearest.num_probes, found.nearest.num_gallery) == (6, 6)
    assert not any("forg" in row["path"] + row["nearest_path"] for row in rows)


def test_where_nothing_can_be_looked_up(
    closed: ClosedRun, tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    def refused(data: Path, message: str, **more: Any) -> None:
        with pytest.raises(DataError, match=message):
            look_up(ClosedRun(tiny_run.run, data), tmp_path, **more)

    refused(tiny_run.data, "none of the 2 identities of the test pictures .* --split images")
    plain = picture_folder({"a": 3, "b": 3})
    refused(plain, "has no test pictures, .*train/ and test/, a manifest with a column `split`")
    refused(closed.data, "has no val pictures", split="val")
    only = picture_folder({"train/a": 3, "train/b": 3}, top="only train")
    refused(only, "has no test pictures")
    for split, message in (("all", "not all"), ("tset", "did you mean test")):
        with pytest.raises(ConfigError, match=message):
            look_up(closed, tmp_path, split=split)
    assert list(tmp_path.glob("*.csv")) == []


def test_what_the_protocols_do_not_share(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, data, file = tiny_run.run, tiny_run.data, tmp_path / "x.csv"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"protocol": "nearset"}, "unknown protocol 'nearset': did you mean nearest?"),
        ({"protocol": "nearest", "data": None}, "nearest needs DATA"),
        ({"protocol": "nearest", "trials": file}, "--trials belongs to --protocol standard"),
        ({"protocol": "nearest", "pairs": 5}, "--pairs belongs to --protocol standard"),
        ({"protocol": "nearest", "way": 5}, "--way belongs to --protocol standard"),
        ({"protocol": "nearest", "shot": 2}, "--shot belongs to --protocol standard"),
        ({"protocol": "nearest", "episodes": 9}, "--episodes belongs to --protocol standard"),
        ({"answers": file}, "--answers belongs to --protocol nearest"),
        ({"protocol": "open-set", "data": None}, "open-set needs DATA"),
        ({"protocol": "open-set", "trials": file}, "--trials belongs to --protocol standard"),
        ({"protocol": "open-set", "pairs": 5}, "--pairs belongs to --protocol standard"),
        ({"protocol": "open-set", "way": 5}, "--way belongs to --protocol standard"),
        ({"protocol": "open-set", "episodes": 9}, "--episodes belongs to --protocol standard"),
        ({"protocol": "open-set", "answers": file}, "--answers belongs to --protocol nearest"),
        ({"protocol": "open-set", "rule": "median"}, "unknown rule 'median'"),
        ({"protocol": "open-set", "shot": 0}, "shot must be at least 1"),
        ({"rule": "mean"}, "--rule belongs to --protocol open-set"),
        ({"protocol": "nearest", "rule": "mean"}, "--rule belongs to --protocol open-set"),
    ]
    for words, message in wrong:
        with pytest.raises(ConfigError, match=message):
            twinlens.evaluate(run, **({"data": data, "quiet": True} | words))
    with pytest.raises(DataError, match="there is no folder"):
        twinlens.evaluate(run, data, protocol="nearest", answers=tmp_path / "none" / "x.csv")


def test_the_page_shows_the_mistakes(closed: ClosedRun, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    _, rows = look_up(closed, tmp_path, report=file)
    page = html.unescape(file.read_text(encoding="utf-8").replace("<wbr>", ""))
    assert "Most confident mistakes" in page
    mistakes = page[page.index("Most confident mistakes") :]
    wrong = [row for row in rows if row["identity"] != row["nearest_identity"]]
    wrong.sort(key=lambda row: float(row["distance"]))
    told = Counter(frozenset((row["identity"], row["nearest_identity"])) for row in wrong)
    assert max(told.values()) > 2  # Of which the closest two are shown.
    seen: Counter[frozenset[str]] = Counter()
    shown = []
    for row in wrong:
        who = frozenset((row["identity"], row["nearest_identity"]))
        seen[who] += 1
        shown += [row] if seen[who] <= 2 else []
    for row in shown:
        assert f"<bdi>{row['path']}</bdi>" in mistakes
        assert f"<bdi>{row['nearest_path']}</bdi>" in mistakes
    assert mistakes.count('<div class="pair">') == len(shown)
    # The copy comes first, at distance 0.
    assert mistakes.index("copy.bmp") < mistakes.index("test/new/")
    assert "distance 0<" in mistakes
    assert "3 of 20 pictures show identities without training pictures" in page
    assert "Trained on" not in page
    assert not list(tmp_path.glob(".*part*"))


def test_the_map_of_many_pictures_takes_the_pixels_of_those_that_it_shows(
    model: Matcher,
) -> None:
    """Those that `map_rows` would choose of all, with what belongs to them."""
    rng = np.random.default_rng(0)
    names = np.repeat([f"i{number:02d}" for number in range(70)], 10).astype(object)
    rows = [(f"{name}/{row % 10}", name, row % 7 == 0, "") for row, name in enumerate(names)]
    table = ImageTable.of_rows(rows, "made up", None)
    pixels = rng.integers(0, 256, (900, 1, 2, 2), dtype=np.uint8)
    row, emb = rng.permutation(900)[:700], rng.normal(size=(700, 3)).astype(np.float32)
    result = OpenSetEvaluation("all", True, None, table, PixelRows(pixels, row), emb)
    found = pages._map_pictures(result, 0)
    shown = map_rows(names.tolist(), np.random.default_rng(0))
    assert len(shown) == 600
    np.testing.assert_array_equal(found.pixels, pixels[row][shown])
    np.testing.assert_array_equal(found.embedding, emb[shown])
    np.testing.assert_array_equal(found.forged, table.forged[shown])
    assert list(found.identity) == names[shown].tolist()


# --- trials -------------------------------------------------------------------------------------


def test_pairs(model: Matcher, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Paths relative to DATA, to the list, and absolute; by hand for the accuracy."""
    draw_pictures(tmp_path / "near", {"x": 2}, seed=8)
    rows = [
        ("thing 0/0.png", "thing 0/1.png", "1"),
        ("thing 0/0.png", "thing 1/0.png", "0"),
        ("near/x/0.png", "near/x/1.png", "same"),
        (str(tiny_run.data / "thing 2/0.png"), "near/x/1.png", "No"),
    ]
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,same\n" + "\n".join(map(",".join, rows)) + "\n")
    both = twinlens.evaluate(tiny_run.run, tiny_run.data, trials=file, quiet=True)
    # DATA is measured as it would be without the list.
    alone = twinlens.evaluate(tiny_run.run, tiny_run.data, quiet=True).as_json()
    assert {key: part for key, part in both.as_json().items() if key != "trials"} == alone
    assert "trials accuracy" in both.as_text()
    found = both.trials
    assert isinstance(found, PairTrialsResult)
    assert (found.num_genuine, found.num_impostor) == (2, 2)

    def place(name: str) -> Path:
        return tmp_path / name if name.startswith("near") else tiny_run.data / name

    right = [model.verify(place(a), place(b)).match == (s in ("1", "same")) for a, b, s in rows]
    expected = (np.mean(right[::2]) + np.mean(right[1::2])) / 2
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(expected)


def test_pairs_as_data(own_model: Path, tmp_path: Path) -> None:
    """A list of pairs evaluates and calibrates as by hand."""
    draw_pictures(tmp_path / "new", {f"n{row}": 4 for row in range(12)}, seed=9)
    files = [sorted((tmp_path / "new" / f"n{row}").iterdir()) for row in range(12)]
    rows = [(a[i], a[j], 1) for a in files for i in range(4) for j in range(i)]
    rows += [(a[0], b[1], 0) for a in files for b in files if a != b]
    result = twinlens.evaluate(own_model, rows, quiet=True).trials
    loaded = twinlens.load(own_model)
    distances = np.array([loaded.distance(a, b) for a, b, _ in rows])
    same = np.array([bool(same) for *_, same in rows])
    assert loaded.calibration is not None
    rejected = distances[same] > loaded.calibration.threshold
    assert (result.num_genuine, result.frr.value) == (72, pytest.approx(rejected.mean()))
    kept = twinlens.calibrate(own_model, rows, far=0.1, quiet=True).calibration
    assert kept is not None
    assert (kept.num_genuine, kept.num_impostor, kept.num_identities) == (72, 132, 12)
    assert (distances[~same] <= kept.threshold).mean() <= 0.1
    with pytest.raises(ConfigError, match="pairs have no splits: leave out --on test"):
        twinlens.calibrate(own_model, rows, split="test", quiet=True)


def test_beside_the_list_comes_first(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """The same name in both places means the picture beside the list."""
    other = picture_folder({"x": 2}, top="other", seed=4)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.png").write_bytes(b"no picture")
    (tmp_path / "pairs.csv").write_text("a,b,same\nx/0.png,x/1.png,1\n")
    with pytest.raises(DataError, match="1 of the 2 pictures"):
        twinlens.evaluate(tiny_run.run, other, trials=tmp_path / "pairs.csv", quiet=True)


def test_one_shot_trials(model: Matcher, tiny_run: TinyRun, tmp_path: Path) -> None:
    """The right candidate of trial t1 is the probe itself, of t2 the farthest of three."""
    probe = tiny_run.data / "thing 0" / "0.png"
    others = [tiny_run.data / f"thing {number}" / "0.png" for number in (1, 2, 3)]
    farthest = max(others, key=lambda path: model.distance(probe, path))
    lines = ["trial,probe,candidate,same"]
    lines += [f"t1,{probe},{other},{int(other == probe)}" for other in [*others, probe]]
    lines += [f"t2,{probe},{other},{int(other == farthest)}" for other in others]
    (tmp_path / "shots.csv").write_text("\n".join(lines))
    found = twinlens.evaluate(tiny_run.run, trials=tmp_path / "shots.csv", quiet=True)
    assert isinstance(found.trials, OneShotTrialsResult)
    assert found.trials.num_trials == 2
    assert found.trials.accuracy.value == 0.5
    assert list(found.as_json()) == ["trials"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa;b;same\r\nd/x.png;d/y.png;1\r\nd/x.png;d/y.png;0\r\n",
        "A, B, Same \nd/x.png, d/y.png, yes\nd/x.png, d/y.png, No\n",
        "same\tb\ta\n1\td\\y.png\td\\x.png\n0\td\\x.png\td\\y.png\n",
    ],
    ids=["Excel", "blanks and capitals", "tabs and Windows"],
)
def test_lists_are_read_as_manifests_are(text: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("x", "y"):
        Image.new("L", (8, 8), ord(name)).save(tmp_path / "d" / f"{name}.png")
    (tmp_path / "list.csv").write_bytes(text.encode())
    found = twinlens.evaluate(tiny_run.run, trials=tmp_path / "list.csv", quiet=True).trials
    assert isinstance(found, PairTrialsResult)
    assert (found.num_genuine, found.num_impostor) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\); trials need a,b,same or trial,probe,candidate,same"),
        ("left,right,same\nx,y,1\n", "has the columns left, right, same; trials need"),
        ("10\t300\nAnn\t1\t4\n", "pairs.txt of LFW.*write the line a,b,same, then"),
        ("a,b,A,same\nx.png,x.png,x.png,1\n", "the column a twice"),
        ("a,b,same\n", "holds no trials"),
        ("a,b,same\nx.png,y.png,maybe\n", "line 2: same is 1 or 0, found 'maybe'"),
        ("a,b,same\nx.png,x.png,1\nx.png,,0\n", "line 3: a, b, same are all needed"),
        ("a,b,same\nx.png,x.png\n", "line 2: a, b, same are all needed"),
        ("a,b,same\nx.png,none.png,1\n", r"1 of the 2 pictures .*none\.png: no such file"),
        ("a,b,same\nx.png,text.png,1\n", r"text\.png: not a picture"),
        ("trial,probe,candidate,same\n1,x.png,x.png,0\n", "no candidate marked same"),
        ("a,b,same\n\xff,x.png,1\n", "not UTF-8"),
        ("a,b,same,cluster\nx.png,x.png,1,\n", "line 2: a, b, same, cluster are all needed"),
        (
            "trial,probe,candidate,same,cluster\n1,x.png,x.png,1,a\n1,x.png,x.png,0,b\n",
            "found trials in two clusters",
        ),
    ],
)
def test_wrong_lists(text: str, message: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        twinlens.evaluate(tiny_run.run, trials=tmp_path / "list.csv", quiet=True)


def test_lists_that_are_not_there(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the trials"):
        twinlens.evaluate(tiny_run.run, trials=tmp_path / "none.csv", quiet=True)
    (tmp_path / "list.csv").write_text("a,b,same\nx.png,x.png,1\n")
    with pytest.raises(DataError, match="no such file or folder: 'nowhere'"):
        twinlens.evaluate(tiny_run.run, "nowhere", trials=tmp_path / "list.csv", quiet=True)
    with pytest.raises(ConfigError, match="--report shows the pictures of DATA"):
        twinlens.evaluate(
            tiny_run.run, trials=tmp_path / "list.csv", report=tmp_path / "x.html", quiet=True
        )


def test_trials_of_an_uncalibrated_model(
    own_model: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    description = read(own_model / "model.json") | {"calibration": None}
    (own_model / "model.json").write_text(json.dumps(description))
    (tmp_path / "pairs.csv").write_text(
        "a,b,same\nthing 0/0.png,thing 0/1.png,1\nthing 0/0.png,thing 1/0.png,0\n"
    )
    found = twinlens.evaluate(own_model, tiny_run.data, trials=tmp_path / "pairs.csv", quiet=True)
    assert set(found.as_json()["trials"]) == {"auc", "eer", "num_genuine", "num_impostor"}


def test_trials_beside_a_named_set_and_a_manifest(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are measured; a manifest's paths start from its root, a set's list from right here."""
    files = sorted(tiny_run.data.rglob("*.png"))
    manifest = tmp_path / "elsewhere" / "list.csv"
    manifest.parent.mkdir()
    manifest.write_text(
        "path,identity\n"
        + "".join(f"{p.relative_to(tiny_run.data)},new {p.parent.name}\n" for p in files)
    )
    trials = tmp_path / "pairs.csv"
    trials.write_text("a,b,same\nthing 0/0.png,thing 0/1.png,1\nthing 0/0.png,thing 1/0.png,0\n")
    found = twinlens.evaluate(
        tiny_run.run, manifest, root=tiny_run.data, trials=trials, quiet=True, episodes=10
    ).as_json()
    assert found["split"] == "test"  # The pictures are known whatever the manifest calls them.
    assert found["trials"]["num_genuine"] == 1
    assert {"verification", "retrieval", "one_shot"} <= set(found)
    with pytest.raises(DataError, match="none of the 3 pictures"):
        twinlens.evaluate(tiny_run.run, "digits", trials=trials, quiet=True)
    monkeypatch.chdir(tiny_run.data)
    found = twinlens.evaluate(
        tiny_run.run, "digits", trials=trials, pairs=50, episodes=10, quiet=True
    ).as_json()
    assert (found["split"], found["trials"]["num_impostor"]) == ("all", 1)
    assert found["verification"]["num_genuine"] == 50


def test_trials_beside_loose_pictures(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a folder only contains the pictures of the trials; a warning gives the reason."""
    loose = shutil.copytree(tiny_run.data / "thing 0", tmp_path / "loose")
    trials = tmp_path / "pairs.csv"
    trials.write_text("a,b,same\n0.png,1.png,1\n")
    capsys.readouterr()
    found = twinlens.evaluate(tiny_run.run, loose, trials=trials)
    assert list(found.as_json()) == ["trials"]
    said = capsys.readouterr().err
    assert "warning: only the trials are measured: " in said
    assert "pictures without a class folder" in said
    with pytest.raises(DataError, match="leave out --report"):
        twinlens.evaluate(
            tiny_run.run, loose, trials=trials, report=tmp_path / "x.html", quiet=True
        )


def test_clusters_of_trials(model: Matcher, tiny_run: TinyRun, tmp_path: Path) -> None:
    """The interval is that of the clusters, and the value is that of the trials."""
    files = sorted(tiny_run.data.rglob("*.png"))[::3]
    generator = np.random.default_rng(0)
    rows, trial, cluster = [], [], []
    for number in range(24):
        probe, *shown = generator.choice(len(files), 4, replace=False)
        for place, other in enumerate(shown):
            rows.append((number, files[probe], files[other], int(place == 0)))
            trial.append(number)
            cluster.append(number // 6)
    lines = [",".join(map(str, (*row, f"run{c}"))) for row, c in zip(rows, cluster, strict=True)]
    (tmp_path / "shots.csv").write_text(
        "\n".join(["trial,probe,candidate,same,cluster", *lines]) + "\n"
    )
    found = twinlens.evaluate(tiny_run.run, trials=tmp_path / "shots.csv", quiet=True).trials
    distance = [model.distance(row[1], row[2]) for row in rows]
    expected = one_shot_trials(trial, distance, [row[3] for row in rows], cluster=cluster)
    assert found == expected
    assert expected != one_shot_trials(trial, distance, [row[3] for row in rows])
    pairs = [f"{row[1]},{row[2]},{row[3]},{c}" for row, c in zip(rows, cluster, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,same,cluster", *pairs]) + "\n")
    judged = twinlens.evaluate(tiny_run.run, trials=tmp_path / "pairs.csv", quiet=True).trials
    same = [row[3] for row in rows]
    assert judged == pair_trials(distance, same, calibrated=model.calibration, cluster=cluster)
    assert judged != pair_trials(distance, same, calibrated=model.calibration)


def test_trials_are_taken_in_blocks(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(tiny_run.data.rglob("*.png"))
    rows = [(a, b, int(a.parent == b.parent)) for a in files[::7] for b in files]
    lines = ["a,b,same", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    whole = twinlens.evaluate(tiny_run.run, trials=tmp_path / "pairs.csv", quiet=True).trials
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 8 * 16 * 50)
    sizes: list[int] = []
    pairwise = EuclideanComparison.pairwise

    def note(self: EuclideanComparison, a_ND: Any, b_ND: Any) -> Any:
        sizes.append(len(a_ND))
        return pairwise(self, a_ND, b_ND)

    monkeypatch.setattr(EuclideanComparison, "pairwise", note)
    found = twinlens.evaluate(tiny_run.run, trials=tmp_path / "pairs.csv", quiet=True).trials
    assert found == whole
    assert max(sizes) == 50
    assert sum(sizes) == len(rows)


def test_a_named_set(tiny_run: TinyRun) -> None:
    """Array-backed pictures go the same way as files."""
    chosen = select_pictures(twinlens.load(tiny_run.run), "digits", split="auto", prefer="test")
    assert (chosen.split, chosen.identity_disjoint) == ("all", True)
    assert chosen.pixels.shape == (len(read_table("digits")), 1, 16, 16)


# --- open set -----------------------------------------------------------------------------------


def test_open_set_is_that_of_the_embeddings(model: Matcher, tiny_run: TinyRun) -> None:
    found = twinlens.evaluate(
        tiny_run.run, tiny_run.data, protocol="open-set", split="all", shot=2, rule="mean",
        seed=3, quiet=True,
    )  # fmt: skip
    table = read_table(tiny_run.data)
    pixels = select_pictures(model, table, split="all", prefer="test").pixels
    assert model.calibration is not None
    expected = open_set(
        model.embed_pixels(pixels), table.labels(), model.comparison, shot=2,
        rule="mean", pair_threshold=model.calibration.threshold, seed=3,
    )  # fmt: skip
    assert found.open_set == expected is not None
    assert list(found.as_json()) == ["split", "identity_disjoint", "open_set", "domain"]
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in found.as_text().splitlines()[:4])
    enrolled, strangers = found.open_set.whole.num_enrolled, found.open_set.num_strangers
    assert lines["galleries"] == (
        f"{enrolled} identities with 2 pictures each, {strangers} strangers, drawn 10 "
        "times; rule mean"
    )
    assert lines["rank 1"] == str(found.open_set.whole.rank_1)
    *_, last, domain = found.as_text().splitlines()
    assert domain.startswith("domain")
    assert last.startswith(f"of {enrolled} enrolled")
    away = found.open_set.whole.pair_threshold
    assert away is not None
    assert last.endswith(f"rejected, pair threshold {Estimate(away.turned_away.value)}")


def test_forged_pictures_and_the_uncalibrated_have_no_part_in_it(
    tiny_run: TinyRun, own_model: Path, tmp_path: Path
) -> None:
    plain, signed = tmp_path / "plain", tmp_path / "signed"
    names = dict.fromkeys("abcdef", 4)
    draw_pictures(plain, names, seed=7)
    shutil.copytree(plain, signed)
    draw_pictures(tmp_path / "forged", {"a_forg": 3, "b_forg": 3}, seed=9)
    shutil.copytree(tmp_path / "forged", signed, dirs_exist_ok=True)
    found, other = (
        twinlens.evaluate(tiny_run.run, data, protocol="open-set", quiet=True, report=page)
        for data, page in ((plain, None), (signed, tmp_path / "page.html"))
    )
    assert other.open_set == found.open_set is not None
    assert isinstance(other.pixels, PixelRows)  # And no copy.
    assert "24</td>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    description = read(own_model / "model.json") | {"calibration": None}
    (own_model / "model.json").write_text(json.dumps(description))
    bare = twinlens.evaluate(own_model, plain, protocol="open-set", quiet=True).open_set
    assert bare is not None
    assert found.open_set is not None
    assert bare.whole.pair_threshold is None
    assert bare.whole.rank_1 == found.open_set.whole.rank_1
    assert "pair threshold" not in replace(other, open_set=bare).as_text()


def test_too_few_for_a_gallery(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_pictures(tmp_path / "few", {"a": 3, "b": 1, "c": 2, "d": 1}, seed=7)
    capsys.readouterr()
    found = twinlens.evaluate(tiny_run.run, tmp_path / "few", protocol="open-set", shot=2,
                              report=tmp_path / "page.html")  # fmt: skip
    assert list(found.as_json()) == ["split", "identity_disjoint", "domain"]
    said = capsys.readouterr().err
    assert (
        "needs 4 identities, 2 of them with more than 2 genuine pictures; found 4 identities, "
        "1 of these with enough" in said
    )
    assert "Galleries" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_shows_galleries(tiny_run: TinyRun, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    found = twinlens.evaluate(
        tiny_run.run, tiny_run.data, protocol="open-set", split="all", report=file, quiet=True
    ).open_set
    assert found is not None
    page = html.unescape(file.read_text(encoding="utf-8")).replace("\N{NO-BREAK SPACE}", " ")
    assert '<section id="galleries">' in page
    assert page.count("<svg") == 3  # Both figures and the map.
    assert f"{found.whole.num_enrolled} enrolled identities against" in page
    assert "twinlens gallery calibrate GALLERY" in page
    assert '<section id="distances">' not in page
