"""`train`: from each layout of pictures to a run folder that holds all it should."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, PictureFolder, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.commands import fit_model as fit_job
from twinlens.commands import train as train_job
from twinlens.commands.prepare import prepare
from twinlens.commands.selection import Selection
from twinlens.data.folders import read_table
from twinlens.data.pixels import PixelRows
from twinlens.errors import ConfigError, DataError, TrainingError
from twinlens.learn.run_folder import RunFolder, lock_run_folder
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder
from twinlens.progress import Progress
from twinlens.report import build as pages
from twinlens.report.content import ReportContent

SHORT = TINY | {"train.steps": 4}


Written = list[pages.ReportFacts]


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Contents of the reports in place of files: drawing takes most of a tiny run's time."""
    facts: Written = []

    def note(path: Path, bundle: object, measured: object, said: pages.ReportFacts) -> None:
        facts.append(said)
        path.touch()

    monkeypatch.setattr(train_job, "write_model_report", note)
    return facts


@pytest.fixture
def drawn(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reports of this test are drawn after all."""
    monkeypatch.setattr(train_job, "write_model_report", pages.write_model_report)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def splits_of(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def identities(run: Path, split: str) -> set[str]:
    return {row["identity"] for row in splits_of(run) if row["split"] == split}


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


# --- the run folder -----------------------------------------------------------------------------


def test_a_run_folder_holds_all_it_should(tiny_run: TinyRun) -> None:
    """Everything that the docstring of learn/run_folder.py lists."""
    run = tiny_run.run
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents")}
    assert events
    assert found - events == {
        "settings.json", "run.json", "split.csv", "trained_on.safetensors", "history.csv",
        "checkpoint.safetensors", "model/model.json", "model/model.onnx",
        "model/model.safetensors", "report.html", "results.json",
    }  # fmt: skip


def test_settings_and_facts_of_a_run(tiny_run: TinyRun) -> None:
    settings, facts = read(tiny_run.run / "settings.json"), read(tiny_run.run / "run.json")
    assert settings["model"]["backbone"] == "mlp"
    assert settings["picture"]["size"] == [16, 16]
    assert settings["train"]["steps"] == 20
    chosen = {choice["key"]: choice["value"] for choice in facts["choices"]}
    # What was given is not chosen, and what was chosen is what the settings say.
    assert not set(chosen) & set(TINY)
    for key, value in chosen.items():
        section, name = key.split(".")
        assert settings[section][name] == value
    assert settings["picture"]["color"] == "grey"
    assert facts["finished"] is True
    assert facts["recipe"] == "auto"
    assert facts["source"] == str(tiny_run.data)
    table = twinlens.ImageTable.of_rows([], "", None)
    assert facts["fingerprint"] != table.fingerprint()


def test_the_command_repeats_the_run(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of run.json gives the same weights: nothing depends on time or file order."""
    import shlex

    words = shlex.split(read(tiny_run.run / "run.json")["command"])
    assert words[:3] == ["twinlens", "train", str(tiny_run.data)]
    monkeypatch.chdir(tmp_path)
    np.random.default_rng().random()  # Nothing global may matter.
    import torch

    torch.rand(7)
    assert main([*words[1:], "--quiet"]) == 0
    again = tmp_path / "runs" / "pictures"
    assert weights(again) == weights(tiny_run.run)
    assert read(again / "results.json") == read(tiny_run.run / "results.json")
    assert (again / "split.csv").read_bytes() == (tiny_run.run / "split.csv").read_bytes()


def test_odd_settings_in_the_command() -> None:
    """Each comes back as what it was, however it is written."""
    import shlex

    from twinlens.commands.resume import repeat_command
    from twinlens.recipes import Recipe, parse_overrides

    odd = {
        "plain": "conv", "number": "3", "truth": "true", "list": "[1, 2]", "date": "2020-01-01",
        "quoted": '"x"', "spaces": " x ", "empty": "", "path": "a b\\c.pth", "real": 1e-05,
        "whole": 3, "yes": True, "pair": (0.5, 2),
        "args": {"alpha": 2.0, "kind": "a b", "none": None},
        "lines": "a\nb", "ünï": "ü",
    }  # fmt: skip
    recipe = Recipe("auto", {}, frozenset(), odd | {"left.out": None})
    words = shlex.split(repeat_command("some photos", None, recipe))
    assert words[:3] == ["twinlens", "train", "some photos"]
    assert words[3::2] == ["--set"] * len(odd)
    expected = odd | {"pair": [0.5, 2], "args": {"alpha": 2.0, "kind": "a b"}}
    assert parse_overrides(words[4::2]) == expected


def test_a_run_without_pairs_is_refused_before_anything_is_written(
    picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """And the same command works once there are some."""
    data = picture_folder({f"thing{number}": 1 for number in range(8)})
    for _ in range(2):
        with pytest.raises(DataError, match="genuine"):
            twinlens.train(data, out=tmp_path / "run", settings=SHORT, quiet=True)
        assert not (tmp_path / "run").exists()
    picture_folder({f"thing{number}": 3 for number in range(8)})
    twinlens.train(data, out=tmp_path / "run", settings=SHORT, quiet=True)
    assert read(tmp_path / "run" / "run.json")["finished"] is True


def test_another_seed_starts_from_other_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Even where nothing is learned to speak of: the first weights depend on the seed too."""
    still = SHORT | {"train.steps": 1, "optimizer.rate": 1e-9}
    for seed in (1, 2):
        twinlens.train(
            tiny_run.data, out=tmp_path / str(seed), settings=still | {"seed": seed}, quiet=True
        )
    a, b = (twinlens.load(tmp_path / str(seed)) for seed in (1, 2))
    picture = tiny_run.data / "thing 0" / "0.png"
    assert np.abs(a.embed(picture) - b.embed(picture)).max() > 0.05


def test_splits_are_by_identity(tiny_run: TinyRun) -> None:
    rows = splits_of(tiny_run.run)
    assert len(rows) == 60
    parts = [identities(tiny_run.run, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10
    assert {row["role"] for row in rows} == {"genuine"}
    assert {row["path"] for row in rows} == {
        path.relative_to(tiny_run.data).as_posix() for path in tiny_run.data.rglob("*.png")
    }


def test_history(tiny_run: TinyRun) -> None:
    with (tiny_run.run / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "seconds", "loss", "rate", "metric", "event"]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 20
    assert [row["metric"] != "" for row in rows if int(row["step"]) in (10, 20)] == [True, True]


def test_results_equal_those_of_evaluate(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(tiny_run.run), str(tiny_run.data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read(tiny_run.run / "results.json")


def test_the_splits_are_not_copied_to_be_measured(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may lie in a file that is larger than memory."""
    seen: list[Any] = []

    def note(job: Callable[..., Any]) -> Callable[..., Any]:
        def noted(bundle: Any, *args: Any, **more: Any) -> Any:
            pixels = [one.pixels if isinstance(one, Selection) else one for one in args]
            seen.extend(one for one in pixels if isinstance(one, PixelRows))
            return job(bundle, *args, **more)

        return noted

    for name in ("check_parity", "evaluate_standard"):
        monkeypatch.setattr(train_job, name, note(getattr(train_job, name)))
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=SHORT, quiet=True)
    val, test = (len([row for row in splits_of(tmp_path / "run") if row["split"] == split])
                 for split in ("val", "test"))  # fmt: skip
    # The graph is compared and calibrated on the same embeddings.
    assert [len(one) for one in seen] == [val, test]
    assert all(len(one.pixels) == 60 for one in seen)


def test_the_returned_model_is_the_one_on_disk(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = SHORT | {"model.backbone": "conv", "model.channels": (4, 8),
                        "train.channels_last": "yes"}  # fmt: skip
    model = twinlens.train(tiny_run.data, out=tmp_path / "run", settings=settings, quiet=True)
    stored = twinlens.load(tmp_path / "run")
    assert (model.path, model.fingerprint) == (stored.path, stored.fingerprint)
    files = sorted(tiny_run.data.rglob("*.png"))[::7]
    np.testing.assert_array_equal(model.embed(files), stored.embed(files))
    assert model.verify(files[0], files[-1]) == stored.verify(files[0], files[-1])


def test_the_report_is_one_page(tiny_run: TinyRun) -> None:
    page = (tiny_run.run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    command = read(tiny_run.run / "run.json")["command"].replace("'", "&#39;").replace('"', "&#34;")
    assert command in page
    for words in ("Nearest impostors", "Farthest genuine pairs", "model.backbone", "fingerprint"):
        assert words in page
    assert page.count("data:image/") > 20


def test_it_learns(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The loss falls, and unseen identities are separated."""
    twinlens.train(
        tiny_run.data, out=tmp_path / "run", settings=TINY | {"train.steps": 80}, quiet=True
    )
    with (tmp_path / "run" / "history.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"] != "nan"]
    assert losses[-1] < losses[0] - 0.05
    auc = read(tmp_path / "run" / "results.json")["verification"]["auc"]["value"]
    assert auc > 0.95


def test_default_names(
    picture_folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(dict.fromkeys("abcdef", 3), top="things")
    monkeypatch.chdir(tmp_path)
    for name in ("things", "things-2"):
        model = twinlens.train("things", settings=SHORT | {"train.steps": 1}, quiet=True)
        assert model.path == Path("runs") / name / "model"
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "path,identity\n"
        + "".join(f"{p.relative_to(tmp_path)},{p.parent.name}\n" for p in data.rglob("*.png"))
    )
    model = twinlens.train(manifest, settings=SHORT | {"train.steps": 1}, quiet=True)
    assert model.path == Path("runs") / "list" / "model"


def test_of_two_that_start_at_once_each_gets_its_own_folder(
    picture_folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts as soon as the first has its name."""
    data = picture_folder(dict.fromkeys("abcdef", 3), top="things")
    monkeypatch.chdir(tmp_path)
    settings = SHORT | {"train.steps": 1}
    found: list[Path] = []

    def lock_late(folder: Path) -> Any:
        if not found:
            found.append(folder)
            found.append(twinlens.train(data, settings=settings, quiet=True).path)
        return lock_run_folder(folder)

    monkeypatch.setattr(train_job, "lock_run_folder", lock_late)
    first = twinlens.train(data, settings=settings, quiet=True)
    assert first.path == Path("runs") / "things" / "model"
    assert found[1] == Path("runs") / "things-2" / "model"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["things", "things-2"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("folder", ["run", "new/deep/run"])
def test_a_folder_is_trained_in_by_one_at_a_time(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, resume: bool
) -> None:
    run, refused = tmp_path / folder, []

    def prepare_late(*args: Any) -> Any:
        if not refused:
            before = sorted(tmp_path.rglob("*"))
            refused.append(True)
            for out in (run, tmp_path / "link"):
                with pytest.raises(TrainingError, match="another process trains in"):
                    twinlens.train(tiny_run.data, out=out, resume=resume, quiet=True)
            assert sorted(tmp_path.rglob("*")) == before
        return prepare(*args)

    (tmp_path / "link").symlink_to(run)
    monkeypatch.setattr(train_job, "prepare", prepare_late)
    twinlens.train(tiny_run.data, out=run, settings=SHORT, quiet=True)
    assert refused
    assert read(run / "run.json")["finished"] is True
    assert list(tmp_path.rglob(".*")) == []
    twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)


def test_a_lock_that_a_kill_left_is_none(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / ".run.lock").touch()
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=SHORT, quiet=True)
    assert not (tmp_path / ".run.lock").exists()


def test_without_a_lock_a_run_continues(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / ".run.lock").mkdir()
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=SHORT, quiet=True)
    assert read(tmp_path / "run" / "run.json")["finished"] is True


def test_a_refused_run_leaves_nothing(
    picture_folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder({"alone": 3})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError):
        twinlens.train(data, settings={"loss.nonsense": 1}, quiet=True)
    with pytest.raises(DataError):
        twinlens.train(data, out=tmp_path / "new" / "run", quiet=True)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(DataError):
        twinlens.train(data, quiet=True)
    assert list((tmp_path / "runs").iterdir()) == []


# --- layouts ------------------------------------------------------------------------------------


def test_counterparts(tmp_path: Path) -> None:
    data = tmp_path / "pairs"
    for side, seed in (("left", 0), ("right", 0)):
        draw_pictures(data / side, {"x": 0})
        generator = np.random.default_rng(seed)
        for number in range(12):
            coarse = Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8))
            noise = np.random.default_rng(len(side)).integers(0, 9, (16, 16))
            pixels = np.clip(np.asarray(coarse.resize((16, 16))) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(data / side / f"{number}.png")
        (data / side / "x").rmdir()
    twinlens.train(data, out=tmp_path / "run", settings=SHORT, quiet=True)
    rows = splits_of(tmp_path / "run")
    assert len(rows) == 24
    assert {row["identity"] for row in rows} == {str(number) for number in range(12)}
    found = read(tmp_path / "run" / "results.json")
    assert found["identity_disjoint"] is True
    assert found["verification"]["num_genuine"] == len(identities(tmp_path / "run", "test"))


@pytest.mark.usefixtures("drawn")
def test_forgeries(tmp_path: Path) -> None:
    data = tmp_path / "signed"
    names = [f"writer{number}" for number in range(8)]
    draw_pictures(data, dict.fromkeys(names, 4))
    draw_pictures(data, {f"{name}-fake": 3 for name in names}, seed=1)
    settings = SHORT | {"data.forged_suffix": "-fake"}
    twinlens.train(data, out=tmp_path / "run", settings=settings, quiet=True)
    rows = splits_of(tmp_path / "run")
    assert {row["identity"] for row in rows} == set(names)
    assert sum(row["role"] == "forged" for row in rows) == 24
    test = [row for row in rows if row["split"] == "test"]
    num, forged = len(identities(tmp_path / "run", "test")), 3
    assert len(test) == num * 7
    found = read(tmp_path / "run" / "results.json")["verification"]
    assert found["skilled"]["num_impostor"] == num * 4 * forged
    assert found["num_genuine"] == num * 6
    assert "a forgery" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    # A later command reads the folder as the training did.
    again = twinlens.evaluate(tmp_path / "run", data, quiet=True)
    assert again.as_json() == read(tmp_path / "run" / "results.json")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("loss.forged_weight", 4.0, True), ("sampler.forged_share", 0.5, True), (None, None, False)],
)
def test_forgeries_that_are_counted_on_and_not_there(
    tiny_run: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str | None,
    value: float,
    said: bool,
) -> None:
    settings = SHORT | ({} if key is None else {key: value})
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=settings)
    assert ("no forgeries to train on" in capsys.readouterr().err) is said


def test_manifest_with_given_splits(picture_folder: PictureFolder, tmp_path: Path) -> None:
    data = picture_folder(dict.fromkeys("abcdef", 4))
    split_of = dict(zip("abcdef", ("train", "train", "val", "val", "test", "test"), strict=True))
    lines = ["path,identity,split"] + [
        f"{p.relative_to(tmp_path).as_posix()},{p.parent.name},{split_of[p.parent.name]}"
        for p in sorted(data.rglob("*.png"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    twinlens.train(tmp_path / "list.csv", out=tmp_path / "run", settings=SHORT, quiet=True)
    assert identities(tmp_path / "run", "train") == {"a", "b"}
    assert identities(tmp_path / "run", "val") == {"c", "d"}
    assert identities(tmp_path / "run", "test") == {"e", "f"}


def test_closed_set(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = SHORT | {"data.split": "images"}
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=settings, quiet=True)
    assert len(identities(tmp_path / "run", "train")) == 10
    assert len(identities(tmp_path / "run", "test")) > 1
    found = read(tmp_path / "run" / "results.json")
    assert found["identity_disjoint"] is False
    assert twinlens.evaluate(tmp_path / "run", tiny_run.data, quiet=True).as_json() == found


@pytest.mark.parametrize("num", [4, 5])
def test_too_few_identities_for_a_test_split(
    num: int,
    picture_folder: PictureFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    written: Written,
) -> None:
    """It evaluates on the validation pictures, and warns that the figures are optimistic."""
    data = picture_folder({f"thing{number}": 5 for number in range(num)})
    capsys.readouterr()
    twinlens.train(data, out=tmp_path / "run", settings=SHORT)
    said = capsys.readouterr().err
    assert (
        "warning: There are no test pictures: three splits by identity need 6 identities, "
        f"found {num}" in said
    )
    assert "warning: The figures are those of the validation pictures" in said
    found = read(tmp_path / "run" / "results.json")
    assert found["split"] == "val"
    (facts,) = written
    assert [finding.split(":")[0] for finding in facts.findings] == [
        "There are no test pictures",
        "The figures are those of the validation pictures, which also chose the weights and set "
        "the threshold",
    ]
    capsys.readouterr()
    assert twinlens.evaluate(tmp_path / "run", data).as_json() == found
    assert "warning: no test pictures: the val pictures are used" in capsys.readouterr().err


def test_test_pictures_without_pairs(
    picture_folder: PictureFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is not lost because its test pictures cannot be compared."""
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "g")):
        picture_folder({f"{split}/{name}": 4 for name in names})
    capsys.readouterr()
    twinlens.train(tmp_path / "pictures", out=tmp_path / "run", settings=SHORT)
    assert "The test pictures cannot be used for evaluation" in capsys.readouterr().err
    assert read(tmp_path / "run" / "results.json")["split"] == "val"
    assert (tmp_path / "run" / "report.html").is_file()


def test_no_pictures_but_for_training(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither evaluated nor calibrated, with a warning."""
    capsys.readouterr()
    settings = SHORT | {"data.fractions": (1.0, 0.0, 0.0)}
    model = twinlens.train(tiny_run.data, out=tmp_path / "run", settings=settings)
    said = capsys.readouterr().err
    assert "the model is not calibrated: there are no validation pictures" in said
    assert "There are no test pictures." in said
    assert model.calibration is None
    assert not (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "report.html").is_file()


# --- broken pictures ----------------------------------------------------------------------------


def test_a_run_continues_without_broken_pictures(
    picture_folder: PictureFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: None
) -> None:
    data = picture_folder({f"thing{number}": 5 for number in range(8)})
    (data / "thing1" / "0.png").write_bytes(b"no picture")
    (data / "thing6" / "3.png").write_bytes(b"")
    capsys.readouterr()
    model = twinlens.train(data, out=tmp_path / "run", settings=SHORT)
    out, said = capsys.readouterr()
    assert out == ""
    assert "warning: 2 of 40 pictures cannot be read and are skipped:" in said
    assert f"warning:   {data}/thing1/0.png: not a picture that Pillow can read" in said
    assert f"warning:   {data}/thing6/3.png: an empty file" in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert f"{data}/thing1/0.png" in page
    assert "not a picture that Pillow can read" in page
    assert len(splits_of(tmp_path / "run")) == 38
    # The same again: also where one split holds more than its share of them.
    assert twinlens.evaluate(model.path, data, quiet=True).as_json() == read(
        tmp_path / "run" / "results.json"
    )


def test_a_small_split_may_hold_all_that_is_broken(
    picture_folder: PictureFolder, tmp_path: Path
) -> None:
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "gh")):
        picture_folder({f"{split}/{name}": 4 for name in names})
    data = tmp_path / "pictures"
    for name in ("g/0.png", "g/1.png", "h/0.png"):
        (data / "test" / name).write_bytes(b"no picture")
    twinlens.train(data, out=tmp_path / "run", settings=SHORT, quiet=True)
    found = twinlens.evaluate(tmp_path / "run", data, quiet=True)
    assert found.as_json() == read(tmp_path / "run" / "results.json")


def test_too_many_broken_pictures_stop_a_run(picture_folder: PictureFolder, tmp_path: Path) -> None:
    data = picture_folder({f"thing{number}": 5 for number in range(8)})
    for number in range(8):
        (data / f"thing{number}" / "0.png").write_bytes(b"no picture")
        if number < 4:
            (data / f"thing{number}" / "1.png").write_bytes(b"no picture")
    message = r"12 of 40 pictures .* cannot be read \(30\.0 %, at most 20\.0 % allowed\)"
    with pytest.raises(DataError, match=message):
        twinlens.train(data, out=tmp_path / "run", settings=SHORT, quiet=True)
    assert not (tmp_path / "run").exists()
    allowed = SHORT | {"data.max_broken": 0.4}
    twinlens.train(data, out=tmp_path / "run", settings=allowed, quiet=True)
    assert len(splits_of(tmp_path / "run")) == 28


# --- going on -----------------------------------------------------------------------------------


def test_resuming_a_finished_run_is_reported(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.run.rglob("*")}
    capsys.readouterr()
    words = ["train", str(tiny_run.data), "--out", str(tiny_run.run), "--resume"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == f"{tiny_run.run}\n"
    assert err == f"{tiny_run.run} is finished already; more --steps or --epochs train on\n"
    assert {path: path.stat().st_mtime_ns for path in tiny_run.run.rglob("*")} == before


def unfinished(tiny_run: TinyRun, to: Path) -> Path:
    """The run as a kill in its last moments leaves it: trained, and nothing after that."""
    run = shutil.copytree(tiny_run.run, to)
    facts = read(run / "run.json")
    del facts["finished"]
    (run / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(run / "model")
    (run / "results.json").unlink()
    return run


def test_resuming_comes_to_the_same(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)
    assert weights(run) == weights(tiny_run.run)
    assert read(run / "results.json") == read(tiny_run.run / "results.json")
    assert read(run / "settings.json") == read(tiny_run.run / "settings.json")
    assert read(run / "run.json") == read(tiny_run.run / "run.json")


def test_interrupting_keeps_the_best_and_can_be_gone_on_with(
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C at step 13 of 20: a model and a report all the same, and the same weights later."""

    class Impatient(Progress):
        def __call__(self, done: int, total: int) -> None:
            if self.task == "training" and done == 13:
                raise KeyboardInterrupt

    run = tmp_path / "run"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(fit_job, "Progress", Impatient)
        model = twinlens.train(tiny_run.data, out=run, settings=TINY)
    said = capsys.readouterr().err
    assert "warning: interrupted at step 13" in said
    command = f"twinlens train {tiny_run.data} --out {run} --resume"
    assert f"warning: the run was interrupted; resume it with: {command}\n" in said
    assert model.calibration is not None
    assert (run / "results.json").is_file()
    assert "finished" not in read(run / "run.json")
    twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)
    assert weights(run) == weights(tiny_run.run)
    assert read(run / "run.json")["finished"] is True


@pytest.mark.parametrize("finished", [False, True])
def test_resuming_with_other_settings_is_refused(
    finished: bool, tiny_run: TinyRun, tmp_path: Path
) -> None:
    if finished:
        run = shutil.copytree(tiny_run.run, tmp_path / "run")
    else:
        run = unfinished(tiny_run, tmp_path / "run")
    equal = TINY | {"seed": 0, "train.precision": "auto", "train.metric": "auto"}
    other = {"loss.temperature": 9.0, "train.steps": 21, "seed": 7}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ConfigError) as caught:
        twinlens.train(tiny_run.data, out=run, settings=equal | other, resume=True, quiet=True)
    assert str(caught.value) == (
        f"{run} was started with other settings, and a resumed run keeps them:\n"
        "  seed: was 0, is 7\n  loss.temperature: was 0.1, is 9.0\n"
        "  Leave them out to resume (--steps, --epochs, --time-budget and train.device may change)"
        f", or start a new run in another --out; --init {run} begins with its model"
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    twinlens.train(tiny_run.data, out=run, settings=equal, resume=True, quiet=True)
    assert weights(run) == weights(tiny_run.run)


@pytest.mark.parametrize("finished", [False, True])
def test_more_steps_train_on(
    finished: bool, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if finished:
        run = shutil.copytree(tiny_run.run, tmp_path / "run")
    else:
        run = unfinished(tiny_run, tmp_path / "run")
    capsys.readouterr()
    longer = {"train.steps": 25, "train.device": "cpu"}
    twinlens.train(tiny_run.data, out=run, settings=longer, resume=True)
    said = capsys.readouterr().err
    assert "resuming with train.steps=25 (was steps=20)\n" in said
    assert "resumed at step 20 of" in said
    assert read(run / "settings.json")["train"]["steps"] == 25
    assert read(run / "run.json")["finished"] is True
    steps = [row.step for row in RunFolder(run).read_history(10**9)]
    assert steps == sorted(steps)
    assert steps[-1] == 25
    with pytest.raises(TrainingError, match="has done 25 steps already, and the length given is 5"):
        twinlens.train(tiny_run.data, out=run, settings={"train.steps": 5}, resume=True, quiet=True)
    assert read(run / "settings.json")["train"]["steps"] == 25


def test_interrupting_before_the_first_step_keeps_nothing(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that resumes names the settings, since the run has none yet."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "a run"
    settings = {"train.steps": 5, "picture.size": (16, 16)}
    monkeypatch.setattr("twinlens.commands.prepare.decode_table", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        twinlens.train(tiny_run.data, out=run, settings=settings, quiet=True)
    assert str(caught.value) == (
        f"resume the run with: twinlens train {tiny_run.data} --set train.steps=5 "
        f"--set 'picture.size=[16, 16]' --out '{run}' --resume"
    )
    assert not run.exists()


def test_resuming_with_another_recipe_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    recipe = tmp_path / "other.toml"
    recipe.write_text("[loss]\ntemperature = 9.0\n")
    with pytest.raises(ConfigError, match=f"recipe: was auto, is {recipe}"):
        twinlens.train(tiny_run.data, out=run, recipe=str(recipe), resume=True, quiet=True)
    # A file of the same name may have changed.
    facts = read(run / "run.json") | {"recipe": str(recipe)}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"loss\.temperature: was 0\.1, is 9\.0"):
        twinlens.train(tiny_run.data, out=run, recipe=str(recipe), resume=True, quiet=True)


def test_resuming_on_other_data_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    before = sorted(path.name for path in run.rglob("*"))
    other = shutil.copytree(tiny_run.data, tmp_path / "other")
    (other / "thing 3" / "4.png").unlink()
    for folder in (run, tiny_run.run):  # Finished or not.
        with pytest.raises(TrainingError, match=r"DATA is not what .*: was .*pictures .* is .*oth"):
            twinlens.train(other, out=folder, resume=True, quiet=True)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_copy_of_the_data_is_the_same_data(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    copy = shutil.copytree(tiny_run.data, tmp_path / "copy")
    twinlens.train(copy, out=run, resume=True, quiet=True)
    assert weights(run) == weights(tiny_run.run)


def test_resuming_with_other_splits_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Training pictures must not become test pictures."""
    table = read_table(tiny_run.data)
    names = sorted(set(table.identity))
    divided = {name: ("train", "val", "test")[place % 3] for place, name in enumerate(names)}
    given = table.with_split([divided[name] for name in table.identity])
    twinlens.train(given, out=tmp_path / "first", settings=TINY, quiet=True)
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "first", run)
    facts = read(run / "run.json")
    del facts["finished"]
    (run / "run.json").write_text(json.dumps(facts))
    moved = given.with_split(["train" if s == "test" else s for s in given.split])
    with pytest.raises(TrainingError, match="the splits, or the readable pictures, are"):
        twinlens.train(moved, out=run, resume=True, quiet=True)
    twinlens.train(given, out=run, resume=True, quiet=True)


def test_resuming_where_there_is_no_such_device(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    facts = read(run / "run.json")
    facts["compute"]["device"] = "cuda:77"
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"'cuda:77' cannot be used here.*train\.device=auto"):
        twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)
    settings = {"train.device": "auto"}
    twinlens.train(tiny_run.data, out=run, settings=settings, resume=True, quiet=True)
    assert read(run / "run.json")["compute"]["device"] in ("cpu", "cuda")


def test_resuming_does_not_need_the_initial_weights(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Watched(Encoder):
        def __init__(self, *args: Any, load: bool = True) -> None:
            asked.append(load)
            super().__init__(*args, load=load)

    monkeypatch.setattr(fit_job, "Encoder", Watched)
    run = unfinished(tiny_run, tmp_path / "run")
    twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)
    assert asked == [False]
    assert weights(run) == weights(tiny_run.run)


def test_a_time_budget_on_a_gpu_reserves_the_time_of_the_cpu(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = list[float]()

    def fit(*args: Any, reserve: Any, **more: Any) -> None:
        seconds.extend((reserve(1e-6), reserve(1e-3)))
        raise KeyboardInterrupt

    budget = {key: value for key, value in TINY.items() if key != "train.steps"}
    monkeypatch.setattr(Compute, "on_gpu", property(lambda _: True))
    monkeypatch.setattr(fit_job, "fit", fit)
    monkeypatch.setattr(fit_job, "_seconds_on_cpu", lambda *_: 10.0)
    with pytest.raises(KeyboardInterrupt):
        twinlens.train(
            tiny_run.data, out=tmp_path / "run", settings=budget | {"train.time_budget": 30.0},
            quiet=True,
        )  # fmt: skip
    assert min(seconds) > 10.0


def test_a_gpu_that_is_too_small_is_no_traceback(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(fit_job, "fit", full)
    with pytest.raises(TrainingError, match=r"does not hold a step .* train\.chunk=32"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", settings=TINY, quiet=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "cannot be read"),
        ("run.json", "{}", "another version of twinlens wrote it"),
        ("settings.json", '{"loss": {"nonsense": 1}}', "another version of twinlens wrote it"),
        ("checkpoint.safetensors", "x", "damaged"),
    ],
)
def test_resuming_a_damaged_run(
    name: str, content: str, message: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = unfinished(tiny_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(TrainingError, match=message):
        twinlens.train(tiny_run.data, out=run, resume=True, quiet=True)


def test_resuming_what_was_not_begun(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed before its first file begins."""
    (tmp_path / "run").mkdir()
    capsys.readouterr()
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=SHORT, resume=True)
    said = capsys.readouterr().err
    assert f"nothing to resume in {tmp_path / 'run'}: starting\n" in said
    assert "not used" not in said
    assert read(tmp_path / "run" / "run.json")["finished"] is True
    with pytest.raises(ConfigError, match="--resume needs --out"):
        twinlens.train(tiny_run.data, resume=True)


# --- the report ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_contents_of_the_report(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: list[ReportContent] = []
    monkeypatch.setattr(pages, "write_report", lambda path, content: contents.append(content))
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=SHORT, quiet=True)
    (content,) = contents
    assert [(part.name, part.pictures, part.identities) for part in content.splits] == [
        ("train", 36, 6), ("val", 12, 2), ("test", 12, 2),
    ]  # fmt: skip
    assert content.results == read(tmp_path / "run" / "results.json")
    assert content.operating is not None
    assert content.operating.target_far == 0.05  # 1 / 36 impostor pairs
    assert content.findings == []
    # Worst first, and of the right kind.
    near = [pair.distance for pair in content.nearest_impostors]
    wide = [pair.distance for pair in content.farthest_genuine]
    assert near == sorted(near)
    assert wide == sorted(wide, reverse=True)
    assert all(p.identity_left != p.identity_right for p in content.nearest_impostors)
    assert all(p.identity_left == p.identity_right for p in content.farthest_genuine)
    assert content.pairs is not None
    assert near[0] == content.pairs.distance[~content.pairs.same].min()
    assert wide[0] == content.pairs.distance[content.pairs.same].max()
