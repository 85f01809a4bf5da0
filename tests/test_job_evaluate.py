"""`evaluate` and `calibrate`: which pictures are taken, and lists of trials."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, PictureFolder, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.data.sources import read_table
from twinlens.data.splits import assign_splits
from twinlens.errors import CalibrationError, ConfigError, DataError
from twinlens.jobs.pictures import pictures_for
from twinlens.match.matcher import Matcher
from twinlens.measure.trials import OneShotTrials, PairTrials, one_shot_trials, pair_trials


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def model(tiny_run: TinyRun) -> Matcher:
    return twinlens.load(tiny_run.run)


@pytest.fixture
def own_model(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(tiny_run.model, tmp_path / "model")


# --- which pictures -----------------------------------------------------------------------------


def test_training_data_is_split_as_it_was(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_run.data, tmp_path / "a copy is the same data")
    lines = (tiny_run.run / "split.csv").read_text(encoding="utf-8").splitlines()[1:]
    for split in ("train", "val", "test"):
        chosen = pictures_for(model.bundle, copy, wanted=split, prefer="test")
        found = {chosen.table.relative(row) for row in range(len(chosen.table))}
        assert found == {line.split(",")[0] for line in lines if line.endswith(f",{split}")}
        assert chosen.identity_disjoint == (split != "train")
    auto = pictures_for(model.bundle, copy, wanted="auto", prefer="test")
    assert (auto.split, auto.identity_disjoint) == ("test", True)
    whole = pictures_for(model.bundle, copy, wanted="all", prefer="test")
    assert (whole.split, len(whole.table), whole.identity_disjoint) == ("all", 60, False)


def test_other_data_is_taken_whole(model: Matcher, picture_folder: PictureFolder) -> None:
    new = picture_folder({"new a": 3, "new b": 3})
    chosen = pictures_for(model.bundle, new, wanted="auto", prefer="test")
    assert (chosen.split, len(chosen.table), chosen.identity_disjoint) == ("all", 6, True)
    assert chosen.pixels.shape == (6, 1, 16, 16)


@pytest.mark.parametrize("change", ["less", "more"])
def test_of_a_changed_copy_only_the_unseen_is_taken(
    change: str,
    model: Matcher,
    tiny_run: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It has another fingerprint; the identities that were trained on are known by name."""
    copy = shutil.copytree(tiny_run.data, tmp_path / "changed")
    names = {
        split: {
            line.split(",")[1]
            for line in (tiny_run.run / "split.csv").read_text().splitlines()
            if line.endswith(f",{split}")
        }
        for split in ("train", "val", "test")
    }
    changed = copy / min(names["train"])
    if change == "less":
        (changed / "0.png").unlink()
    else:
        shutil.copy(changed / "0.png", changed / "new.png")
    capsys.readouterr()
    found = twinlens.evaluate(model.path, copy)
    said = capsys.readouterr().err
    num = 35 if change == "less" else 37
    assert f"left out {num} pictures of 6 identities that the model was trained on; 24 of 4" in said
    assert (found.split, found.identity_disjoint) == ("unseen", True)
    assert found.table is not None
    assert set(found.table.identities()) == names["val"] | names["test"]
    found = twinlens.evaluate(model.path, copy, split="all")
    assert (found.split, found.identity_disjoint) == ("all", False)
    assert "warning: some of these identities were trained on" in capsys.readouterr().err


def test_where_too_little_is_unseen_all_is_taken(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_run.data, tmp_path / "changed")
    lines = (tiny_run.run / "split.csv").read_text().splitlines()
    unseen = sorted({line.split(",")[1] for line in lines if line.endswith((",val", ",test"))})
    for name in unseen[1:]:
        shutil.rmtree(copy / name)
    capsys.readouterr()
    chosen = pictures_for(model.bundle, copy, wanted="auto", prefer="test")
    assert (chosen.split, len(chosen.table), chosen.identity_disjoint) == ("all", 42, False)
    twinlens.evaluate(model.path, copy)
    said = capsys.readouterr().err
    assert "warning: some of these identities were trained on" in said
    assert "left out" not in said


def test_a_closed_set_is_taken_whole(model: Matcher, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Its identities are those of the training, as they are meant to be."""
    copy = shutil.copytree(tiny_run.data, tmp_path / "changed")
    (copy / "thing 0" / "0.png").unlink()
    origin = model.bundle.origin
    assert origin is not None
    closed = replace(origin, data=origin.data.model_copy(update={"split": "images"}))
    bundle = replace(model.bundle, origin=closed)
    chosen = pictures_for(bundle, copy, wanted="auto", prefer="test")
    assert (chosen.split, len(chosen.table)) == ("all", 59)


def test_other_data_is_taken_by_its_own_splits(
    model: Matcher, picture_folder: PictureFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = picture_folder({f"{split}/{name}": 3 for split in ("train", "test") for name in "ab"})
    found = pictures_for(model.bundle, data, wanted="auto", prefer="test")
    assert (found.split, len(found.table)) == ("test", 6)
    with pytest.raises(DataError, match="has no val pictures"):
        pictures_for(model.bundle, data, wanted="val", prefer="test")
    instead = pictures_for(model.bundle, data, wanted="auto", prefer="val")
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
    assert (found.split, found.identity_disjoint) == ("unseen", True)
    assert found.table is not None
    assert found.table.identities() == given.select(given.split != "train").identities()
    assert "was trained on other splits of" in capsys.readouterr().err
    found = twinlens.evaluate(tmp_path / "run", given, quiet=True)
    assert (found.split, found.identity_disjoint) == ("test", True)
    assert found.table is not None
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
    assert found.table is not None
    assert len(found.table) == 11
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "x/2.png" in page
    assert "<title>" in page
    for number in range(4):
        (data / "y" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"5 of 12 pictures .* at most 20\.0%"):
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
    assert {"measured on", "auc", "eer", "tar at far 0.1", "calibrated far", "recall at 1",
            "one shot 2-way-1-shot"} <= names  # fmt: skip
    assert any("too few pairs" in line for line in lines)


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
    # The threshold is one of the distances that were measured, but for a network's last bits.
    assert np.mean(np.array(impostors) <= found.threshold + 1e-6) == pytest.approx(0.05, abs=0.01)


def test_calibrating_on_training_data_takes_the_validation_pictures(
    own_model: Path, tiny_run: TinyRun
) -> None:
    """As training itself did, so nothing changes."""
    again = twinlens.calibrate(own_model, tiny_run.data, far=0.1, quiet=True)
    assert again.calibration == twinlens.load(tiny_run.run).calibration


def test_too_few_pairs_change_nothing(own_model: Path, tiny_run: TinyRun) -> None:
    before = (own_model / "model.json").read_bytes()
    with pytest.raises(CalibrationError, match=r"36 impostor"):
        twinlens.calibrate(own_model, tiny_run.data, far=0.001, quiet=True)
    assert (own_model / "model.json").read_bytes() == before


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
    assert isinstance(found, PairTrials)
    assert (found.num_genuine, found.num_impostor) == (2, 2)

    def place(name: str) -> Path:
        return tmp_path / name if name.startswith("near") else tiny_run.data / name

    right = [model.verify(place(a), place(b)).match == (s in ("1", "same")) for a, b, s in rows]
    expected = (np.mean(right[::2]) + np.mean(right[1::2])) / 2
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(expected)


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
    assert isinstance(found.trials, OneShotTrials)
    assert found.trials.num_trials == 2
    assert found.trials.accuracy.value == 0.5
    assert list(found.as_json()) == ["trials"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\); trials need a,b,same or trial,probe,candidate,same"),
        ("left,right,same\nx,y,1\n", "has the columns left, right, same; trials need"),
        ("a,b,same\n", "names no trials"),
        ("a,b,same\nx.png,y.png,maybe\n", "line 2: same is 1 or 0, found 'maybe'"),
        ("a,b,same\nx.png,x.png,1\nx.png,,0\n", "line 3: a, b, same are all needed"),
        ("a,b,same\nx.png,x.png\n", "line 2: a, b, same are all needed"),
        ("a,b,same\nx.png,none.png,1\n", r"1 of the 2 pictures .*none\.png: no such file"),
        ("a,b,same\nx.png,text.png,1\n", r"text\.png: not a picture"),
        ("trial,probe,candidate,same\n1,x.png,x.png,0\n", "no candidate marked same"),
        ("a,b,same\n\xff,x.png,1\n", "cannot read the trials"),
        ("a,b,same,cluster\nx.png,x.png,1,\n", "line 2: a, b, same, cluster are all needed"),
        (
            "trial,probe,candidate,same,cluster\n1,x.png,x.png,1,a\n1,x.png,x.png,0,b\n",
            "stand in two clusters",
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
    with pytest.raises(ConfigError, match="--report is of the pictures in DATA"):
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
    assert found["split"] == "all"
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
    """Such a folder only holds what the list names, and it is said why it is not measured."""
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


def test_a_named_set(tiny_run: TinyRun) -> None:
    """Array-backed pictures go the same way as files."""
    chosen = pictures_for(
        twinlens.load(tiny_run.run).bundle, "digits", wanted="auto", prefer="test"
    )
    assert (chosen.split, chosen.identity_disjoint) == ("all", True)
    assert chosen.pixels.shape == (len(read_table("digits")), 1, 16, 16)
