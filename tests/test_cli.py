"""The command line: output, exit codes, and one clear message for every mistake.

The commands themselves are tested in test_command_*.py, and the keys of `--json` in test_json.py.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun, tiny_words
from PIL import Image
from safetensors.torch import load_file, save_file

import twinlens
from twinlens.cli.arguments import print_result, values_of
from twinlens.cli.commands import COMMANDS, SETTINGS
from twinlens.cli.gallery import GALLERY_COMMANDS
from twinlens.cli.main import main, make_parser
from twinlens.config import Settings
from twinlens.gallery.gallery import Gallery
from twinlens.progress import COMMAND_START
from twinlens.report.canvas import GREEN, RED

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def refuse(capsys: Capture, *words: object) -> str:
    """The message of a command that must fail: exit code 2, one message, nothing on stdout."""
    code, out, err = run(capsys, *words)
    assert code == 2, (out, err)
    assert out == ""
    assert "Traceback" not in err
    assert err.count("twinlens: error: ") == 1
    return err.rpartition("twinlens: error: ")[2]


def two_pictures(tiny_run: TinyRun) -> tuple[Path, Path]:
    return tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 1" / "0.png"


# --- one declaration ----------------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty
# Arguments and parameters that differ: settings and metadata are words on the command line, and
# an absent DATA has errors of its own. `gallery create` embeds nothing.
DIFFERENT = {
    "train": {"settings"}, "inspect": {"settings"}, "pretrain": {"settings"},
    "calibrate": {"data"}, "serve": {"galleries"},
    "gallery enrol": {"data", "files", "identity", "metadata"},
    "gallery list": {"templates", "limit", "offset", "where"},
    "gallery create": {"device"}, "gallery join": {"device"},
    "gallery feedback": {"list", "undo", "as_is"}, "gallery calibrate": {"as_is"},
}  # fmt: skip
PYTHON_ONLY = {
    "calibrate": {"seed"}, "push": {"token"},
    "train": {"augmentation", "backbone", "callbacks", "loss"},
}  # fmt: skip
GALLERY_PYTHON_ONLY = {"self", "place", "options", "progress", "threads"}
METHODS: dict[str, tuple[Callable[..., Any], ...]] = {
    "create": (Gallery.create,), "join": (Gallery.join,),
    "enrol": (Gallery.open, Gallery.enrol, Gallery.enrol_files),
    "feedback": (Gallery.open, Gallery.feedback),
    "erase": (Gallery.erase,), "rename": (Gallery.rename,), "list": (Gallery.templates,),
    "info": (Gallery.info,), "optimize": (Gallery.optimize,),
    "calibrate": (Gallery.open, Gallery.calibrate),
    "export": (Gallery.export,), "import": (Gallery.import_file,), "rebuild": (Gallery.rebuild,),
}  # fmt: skip


def actions_of(*words: str) -> list[Any]:
    parser: Any = make_parser()
    for word in words:
        (commands,) = (one for one in parser._actions if isinstance(one.choices, dict))
        parser = commands.choices[word]
    actions: list[Any] = parser._actions
    return actions


def arguments_of(*words: str) -> dict[str, Any]:
    """The `dest` of each argument of a command with its default."""
    return {
        one.dest: REQUIRED if one.required else one.default
        for one in actions_of(*words)
        if one.dest not in ("help", "json")
    }


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {one.name: one.default for one in inspect.signature(function).parameters.values()}


def without(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("gallery", "keys")])
def test_arguments_are_the_parameters_of_the_function(name: str) -> None:
    arguments = without(arguments_of(name), DIFFERENT.get(name, set()))
    if name in ("train", "inspect"):
        assert set(SETTINGS) < set(arguments)
        arguments = without(arguments, SETTINGS)
    if name == "pretrain":
        arguments = without(arguments, {"train.time_budget"})
    parameters = parameters_of(COMMANDS[name].function())
    differing = DIFFERENT.get(name, set()) | PYTHON_ONLY.get(name, set())
    assert differing <= set(parameters)
    assert arguments == without(parameters, differing)


def test_results_are_shown_as_json_where_a_command_has_no_other_form() -> None:
    for name, command in COMMANDS.items():
        if command.show is print_result and name not in ("gallery", "keys"):
            assert "json" in {one.dest for one in actions_of(name)}, name


def test_options_of_settings_are_settings() -> None:
    for key in SETTINGS:
        section, _, name = f".{key}".rpartition(".")
        fields: Any = Settings.model_fields
        if section:
            fields = fields[section.removeprefix(".")].annotation.model_fields
        assert name in fields


@pytest.mark.parametrize("name", GALLERY_COMMANDS)
def test_arguments_of_gallery_are_the_parameters_of_its_methods(name: str) -> None:
    different = DIFFERENT.get(f"gallery {name}", set())
    arguments = without(arguments_of("gallery", name), {"gallery", "quiet"} | different)
    parameters = {k: v for one in METHODS[name] for k, v in parameters_of(one).items()}
    assert arguments == without(parameters, GALLERY_PYTHON_ONLY | different)


# --- answers ------------------------------------------------------------------------------------


def test_verify_prints_same_or_different(tiny_run: TinyRun, capsys: Capture) -> None:
    a, _ = two_pictures(tiny_run)
    code, out, err = run(capsys, "verify", tiny_run.run, a, a, "--json")
    answer = json.loads(out)
    assert (code, err, answer["verdict"], answer["match"]) == (0, "", "same", True)
    assert answer["distance"] == 0

    model = twinlens.load(tiny_run.run)
    threshold = model.require_calibration().threshold
    far = max((p for p in sorted(tiny_run.data.rglob("*.png"))), key=lambda p: model.distance(a, p))
    assert model.distance(a, far) > threshold
    code, out, err = run(capsys, "verify", tiny_run.run, a, far, "--json")
    assert (code, err, json.loads(out)["verdict"]) == (1, "", "different")
    with_torch = model.verify(a, far).as_json()
    assert json.loads(out) == with_torch | {
        key: pytest.approx(with_torch[key], abs=1e-5)
        for key in ("distance", "similarity", "probability")
    }
    # To the last bit.
    assert json.loads(out) == twinlens.verify(tiny_run.model, str(a), str(far)).as_json()

    code, out, _ = run(capsys, "verify", tiny_run.run, a, far)
    assert code == 1
    assert out == twinlens.verify(tiny_run.run, a, far).explain() + "\n"
    assert out.startswith("different: distance ")


def test_verify_in_a_process_of_its_own(tiny_run: TinyRun) -> None:
    a, b = two_pictures(tiny_run)
    words = [sys.executable, "-m", "twinlens", "verify", str(tiny_run.run), str(a)]
    same = subprocess.run([*words, str(a), "--json"], capture_output=True, text=True)
    assert (same.returncode, same.stderr) == (0, "")
    assert json.loads(same.stdout) == twinlens.load(tiny_run.run).verify(a, a).as_json()
    wrong = subprocess.run([*words, str(b) + "x"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"twinlens: error: {b}x: no such file\n"


def level_in_the_middle(array: np.ndarray) -> float:
    """The mean of the middle half of a picture."""
    top, left = array.shape[0] // 4, array.shape[1] // 4
    return float(array[top:-top, left:-left].mean())


def test_show_draws_the_verdict(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    first, other = two_pictures(tiny_run)
    shown = tmp_path / "shown.png"
    for second in (first, other):
        code, *_ = run(capsys, "verify", tiny_run.run, first, second, "--show", shown)
        color, absent = (GREEN, RED) if code == 0 else (RED, GREEN)
        array = np.asarray(Image.open(shown))
        assert array.shape[2:] == (3,)
        assert not (array == absent).all(axis=2).any()
        is_frame = (array == color).all(axis=2)
        rows = np.flatnonzero(is_frame.sum(axis=1) > 200)
        columns = np.flatnonzero(is_frame.sum(axis=0) > 200)
        inside = array[rows.min() : rows.max(), columns.min() : columns.max()]
        halves = np.array_split(inside, 2, axis=1)  # Both pictures, enlarged; the text is below.
        for path, half in zip((first, second), halves, strict=True):
            original = np.asarray(Image.open(path).convert("L"))
            assert abs(level_in_the_middle(half) - level_in_the_middle(original)) < 12
        assert (array[rows.max() + 5 :] != array[0, 0]).any()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["shown.png"]


def test_montage_draws_pairs(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "inspect", tiny_run.data, "--montage", tmp_path / "pairs.png")
    assert code == 0
    assert out.startswith(f"{tiny_run.data}: 60 pictures of 10 identities\n")
    with Image.open(tmp_path / "pairs.png") as picture:
        picture.load()
        assert picture.width == 1600


def test_progress_and_warnings_are_not_on_stdout(
    tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    code, out, err = run(
        capsys, "train", tiny_run.data, "--out", tmp_path / "run", *tiny_words(train__steps=3)
    )
    assert code == 0
    assert out == f"{tmp_path / 'run'}\n"
    assert "training on 36 pictures of 6 identities" in err
    assert "warning: calibrated for a FAR of 5 %, not 1 %" in err
    code, out, err = run(capsys, "evaluate", tiny_run.run, tiny_run.data, "--quiet")
    assert code == 0
    assert err == ""
    first = out.splitlines()[0]
    assert first.split(maxsplit=2) == ["measured", "on", "test pictures, unseen identities"]


def test_flags_are_settings(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    words = ["--loss", "contrastive", "--seed", "3", "--split", "images", "--steps", "2"]
    words += ["--backbone", "conv", "--set", "model.channels=[4,8]", "--set", "loss.margin=0.25",
              "--set", "picture.size=[8,8]", "--set", "train.precision=float32",
              "--set", "train.channels_last=no"]  # fmt: skip
    code, *_ = run(capsys, "train", tiny_run.data, "--out", tmp_path / "run", *words, "--quiet")
    assert code == 0
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert stored["loss"] | {"name": "contrastive", "margin": 0.25} == stored["loss"]
    assert (stored["seed"], stored["data"]["split"], stored["train"]["steps"]) == (3, "images", 2)
    assert (stored["model"]["backbone"], stored["model"]["channels"]) == ("conv", [4, 8])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("7", 7)])
def test_times(text: str, seconds: float) -> None:
    args = make_parser().parse_args(["train", "x", "--time-budget", text])
    assert COMMANDS["train"].values(args)["settings"] == {"train.time_budget": seconds}


def test_nearest(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path, capsys: Capture
) -> None:
    data = picture_folder(
        {f"{split}/{name}": 4 for split in ("train", "test") for name in ("Wörth", "東京")}
    )
    answers = tmp_path / "answers.csv"
    words = ["evaluate", tiny_run.run, data, "--protocol", "nearest"]
    code, out, err = run(capsys, *words, "--answers", answers, "--json", "--quiet")
    assert (code, err) == (0, "")
    found = twinlens.evaluate(tiny_run.run, data, protocol="nearest", quiet=True)
    assert json.loads(out) == found.as_json()
    assert json.loads(out)["nearest"]["num_gallery"] == 8
    lines = answers.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,identity,nearest_identity,nearest_path,distance,match"
    assert [line.split(",")[0] for line in lines[1:]] == [
        f"test/{name}/{number}.png" for name in ("Wörth", "東京") for number in range(4)
    ]
    code, out, err = run(capsys, *words)
    assert code == 0
    assert out == found.as_text() + "\n"


def test_split_is_another_word_for_on(tiny_run: TinyRun, capsys: Capture) -> None:
    found = [
        run(capsys, "evaluate", tiny_run.run, tiny_run.data, word, "val", "--json", "--quiet")[1]
        for word in ("--on", "--split")
    ]
    assert json.loads(found[0])["split"] == "val"
    assert found[0] == found[1]
    assert make_parser().parse_args(["calibrate", "m", "d", "--split", "all"]).split == "all"


def test_interrupting(
    tiny_run: TinyRun, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training can be resumed, and the message is the command; others say what is kept."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twinlens.commands.train.write_model_report", interrupt)
    monkeypatch.setattr("twinlens.commands.evaluate.select_pictures", interrupt)
    words = ["train", tiny_run.data, "--out", tmp_path / "run", *tiny_words(train__steps=2)]
    code, out, err = run(capsys, *words, "--quiet")
    assert (code, out) == (130, "")
    command = f"twinlens train {tiny_run.data} --out {tmp_path / 'run'} --resume"
    assert err.splitlines()[-1] == f"twinlens: interrupted: resume the run with: {command}"
    code, out, err = run(capsys, "evaluate", tiny_run.run, tiny_run.data)
    message = "twinlens: interrupted: only files that were complete are written\n"
    assert (code, out, err) == (130, "", message)
    monkeypatch.setattr(twinlens.Gallery, "open", interrupt)
    for words, kept in (
        ("enrol g d", "what is enrolled so far is kept; the same command enrols the rest"),
        ("optimize g", "the gallery is intact; run the same command again to complete it"),
    ):
        code, out, err = run(capsys, "gallery", *words.split())
        assert (code, out, err) == (130, "", f"twinlens: interrupted: {kept}\n")


def test_a_time_budget_counts_from_the_start_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Imports take seconds; in Python the call is the start."""
    started = list[float | None]()
    command = replace(
        COMMANDS["inspect"],
        function=lambda: lambda **_: started.append(COMMAND_START.get()),
        show=lambda *_: 0,
    )
    monkeypatch.setitem(COMMANDS, "inspect", command)
    before = time.monotonic()
    assert main(["inspect", "somewhere"]) == 0
    (start,) = started
    assert start is not None
    assert before <= start <= time.monotonic()
    assert COMMAND_START.get() is None


def test_recipes(capsys: Capture) -> None:
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    assert out.splitlines()[0].split(maxsplit=1)[0] == "auto"
    code, out, _ = run(capsys, "recipes", "auto")
    assert code == 0
    assert 'name = "auto"' in out


def test_help_names_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in COMMANDS)


# --- galleries ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two identities with 5 pictures each, calibrated. Shared: do not change it."""
    place = tmp_path_factory.mktemp("cli") / "gallery"
    opened = twinlens.Gallery.create(place, tiny_run.run)
    for name in ("thing 0", "thing 1"):
        opened.enrol_files(name, [tiny_run.data / name / f"{number}.png" for number in range(5)])
    opened.calibrate(fpir=0.25)
    return place


def test_identify_exits_by_its_answers(gallery: Path, tiny_run: TinyRun, capsys: Capture) -> None:
    known, stranger = (tiny_run.data / name / "5.png" for name in ("thing 0", "thing 9"))
    code, out, err = run(capsys, "identify", gallery, known)
    assert (code, err) == (0, "")
    assert out.startswith(f"{known}: thing 0: distance ")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["1", "2"]
    assert run(capsys, "identify", gallery, "-k", 1, known, stranger)[0] == 1
    code, out, err = run(capsys, "identify", gallery, known, "none.png", "--json")
    assert (code, err) == (2, "twinlens: error: none.png: no such file\n")
    answers = json.loads(out)["answers"]
    assert answers[0] == {
        "picture": str(known), **twinlens.Gallery.open(gallery).identify(known).as_json()
    }  # fmt: skip
    assert answers[1] == {"picture": "none.png", "error": "no such file"}
    assert "none.png: no such file" in refuse(capsys, "identify", gallery, "none.png")


def test_search_prints_the_nearest(gallery: Path, tiny_run: TinyRun, capsys: Capture) -> None:
    probe = tiny_run.data / "thing 1" / "5.png"
    code, out, err = run(capsys, "search", gallery, probe, "-k", 3)
    assert (code, err) == (0, "")
    assert out == twinlens.search(gallery, probe, k=3).as_text() + "\n"
    words = ["search", "--where", "identity = 'thing 0'", gallery, probe, "-k", 9, "--json"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert {hit["identity"] for hit in json.loads(out)["hits"]} == {"thing 0"}


def test_a_gallery_from_the_first_word_to_the_last(
    tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    place, name = tmp_path / "people", "O'Brien\n👩‍👩‍👧"
    files = sorted((tiny_run.data / "thing 3").iterdir())

    def gallery(command: str, *words: object) -> str:
        code, out, err = run(capsys, "gallery", command, place, *words)
        assert (code, err) == (0, "")
        return out

    assert gallery("create", "--model", tiny_run.run).startswith("gallery ")
    words = ["--identity", name, "--metadata", "room=a=b", "--quiet", *files[:3]]
    assert gallery("enrol", *words) == "3 new, 0 known, 0 skipped; 1 identity\n"
    assert gallery("enrol", *files, "--identity", name).startswith("3 new, 3 known")
    words = ["gallery", "enrol", place, "--quiet", tiny_run.data, "--metadata", "floor=2"]
    code, out, err = run(capsys, *words)
    assert (code, out) == (0, "54 new, 0 known, 6 skipped; 9 identities\n")
    assert err.count("warning: skipped ") == err.count("\n") == 6
    assert "       6  O'Brien\\n👩‍👩‍👧\n" in gallery("list")
    listed = json.loads(gallery("list", name, "--json"))["templates"]
    assert [one["metadata"] for one in listed] == [{"room": "a=b"}] * 3 + [{}] * 3
    assert gallery("list", "--templates").count("\n") == 60
    code, out, err = run(capsys, "gallery", "calibrate", place, "--fpir", 0.1, "--rule", "mean")
    assert (code, "for 10 identities" in out) == (0, True)
    assert "the model was trained on 6 of the 10 identities enrolled" in err
    assert "calibrated for 10 identities" in gallery("info")
    assert gallery("rename", name, "plain") == "6 templates renamed\n"
    assert gallery("optimize").startswith("60 templates: exact search")
    assert gallery("export", tmp_path / "x.parquet") == f"60 templates in {tmp_path}/x.parquet\n"
    receipt = gallery("erase", "plain")
    assert receipt.startswith("erased 1 identity: 6 templates")
    assert "plain" not in receipt
    assert gallery("import", tmp_path / "x.parquet").startswith("6 new, 54 known")
    assert gallery("rebuild", "--model", tiny_run.model).startswith("60 templates embedded")


def test_wrong_words_about_galleries(
    gallery: Path, tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    model, a = tiny_run.run, two_pictures(tiny_run)[0]
    empty = tmp_path / "empty"
    twinlens.Gallery.create(empty, model)
    wrong: list[tuple[list[object], str]] = [
        (["gallery"], "required: SUBCOMMAND"),
        (["gallery", "enroll", gallery], "'enroll': did you mean enrol?"),
        (["gallery", "create", tmp_path / "x"], "required: --model"),
        (["gallery", "create", gallery, "--model", model], "exists already"),
        (["gallery", "create", tmp_path / "x", "--model", gallery], "is a gallery, not a model"),
        (["gallery", "enrol", gallery], "enrol needs one DATA"),
        (["gallery", "enrol", gallery, a, a], "found 2 words after GALLERY"),
        (["gallery", "enrol", gallery, "--identity", "x"], "needs one file or more"),
        (["gallery", "enrol", gallery, "--identity", "", a], "an identity needs a name"),
        (["gallery", "enrol", gallery, "--identity", "x", a, "--root", "y"], "--root belongs to"),
        (["gallery", "enrol", gallery, a, "--metadata", "north"], "--metadata needs KEY=VALUE"),
        (["gallery", "enrol", gallery, a, "--metadata", "O'B=x"], "has no quotes, found O'B"),
        (["gallery", "enrol", gallery, tmp_path / "none"], "no such file or folder"),
        (["gallery", "erase", gallery, "thing0"], "did you mean thing 0"),
        (["gallery", "list", gallery, "x"], "choose from thing 0, thing 1"),
        (["gallery", "rename", gallery, "thing 0", "thing 1"], "--merge"),
        (["gallery", "calibrate", empty], "is empty: enrol pictures first"),
        (["gallery", "calibrate", gallery, "--fpir", "0.001"], "an FPIR of 0.001 needs at least"),
        (["gallery", "calibrate", gallery, "--rule", "meen"], "did you mean mean?"),
        (
            ["gallery", "optimize", gallery, "--partitions", "1025"],
            "0 (no index) to 1024, found 1025",
        ),
        (["gallery", "optimize", gallery, "--recall", "2"], "recall must be in (0, 1], found 2"),
        (["gallery", "import", gallery, a], "cannot read"),
        (["gallery", "export", gallery, tmp_path / "no" / "x"], "there is no folder"),
        (["gallery", "info", model], "is a model, not a gallery"),
        (["gallery", "info", tmp_path / "none"], "there is no gallery at"),
        (["identify", gallery], "required: PICTURE"),
        (["identify", model, a], "is a model, not a gallery"),
        (["identify", gallery, a, "-k", "0"], "k must be at least 1, found 0"),
        (["identify", gallery, a, "--far", "0.0001"], "0.0001 needs at least 10000"),
        (["identify", gallery, a, "--far", "2"], "the target FPIR must be in (0, 1), found 2"),
        (["identify", gallery, a, "--show", tmp_path], "it is a folder"),
        (["search", gallery, a, "--where", "colour = 'x'"], "written metadata.colour"),
        (["search", gallery, tmp_path / "none.png"], "no such file"),
        (["verify", gallery, a, a], "is a gallery, not a model; its model is"),
        (["evaluate", gallery, tiny_run.data], "is a gallery, not a model"),
        (["calibrate", gallery], f"`twinlens gallery calibrate {gallery}`"),
        (["calibrate", gallery, tiny_run.data], f"`twinlens gallery calibrate {gallery}`"),
    ]
    for words, message in wrong:
        found = refuse(capsys, *words)
        assert message in found, (words, found)
        assert found.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_options_may_stand_anywhere(gallery: Path, tiny_run: TinyRun) -> None:
    """argparse alone takes an optional word for left out once an option came before it."""
    parse = make_parser().parse_args
    first = parse(["evaluate", "m", "--on", "val", "d"])
    assert values_of(first) == values_of(parse(["evaluate", "m", "d", "--on=val"]))
    found = parse(["gallery", "enrol", "--identity", "x", "g", "--quiet", "a", "b"])
    assert (found.gallery, found.identity, found.data) == ("g", "x", ["a", "b"])
    assert parse(["gallery", "calibrate", "g", "--fpir", "0.1", "d"]).data == "d"


# --- mistakes -----------------------------------------------------------------------------------


def test_words_that_are_wrong(
    tiny_run: TinyRun, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = tiny_run.data, tiny_run.run
    a, b = two_pictures(tiny_run)
    wrong: list[tuple[list[object], str]] = [
        ([], "required: COMMAND"),
        (["trian", data], "unknown command 'trian': did you mean train or pretrain?"),
        (["train"], "required: DATA"),
        (["train", data, "--nonsense"], "--nonsense"),
        (["train", data, "--recipe", "atuo"], "unknown recipe 'atuo'"),
        (["train", data, "--recipe", "none.toml"], "cannot read the recipe none.toml"),
        (["recipes", "atuo"], "unknown recipe 'atuo': did you mean auto?"),
        (["train", data, "--backbone", "resnet51"], "unknown backbone 'resnet51': did you mean"),
        (["train", data, "--loss", "tripled"], "unknown loss 'tripled': did you mean triplet?"),
        (["train", data, "--loss", "pml:TripletLoss"], "unknown loss 'pml:TripletLoss'"),
        (["train", data, "--split", "people"], "invalid choice: 'people'"),
        (["train", data, "--set", "loss.magrin=1"], "unknown key 'loss.magrin': did you mean"),
        (["train", data, "--set", "loss.margin=wide"], "loss.margin"),
        (["train", data, "--set", "loss.margin"], "--set needs section.key=value"),
        (["train", data, "--set", "train.device=abacus"], "found 'abacus'"),
        (["train", data, "--weights", "none.pth", *tiny_words()], "no weights file none.pth"),
        (["train", data, *tiny_words(), "--set", "model.freeze=no-layer"], "unknown layer"),
        (["train", data, "--epochs", "2", "--steps", "3"], "not allowed with argument"),
        (["train", data, "--epochs", "few"], "argument --epochs"),
        (["train", data, "--epochs", "0"], "train.epochs"),
        (["train", data, "--epochs", "nan"], "train.epochs"),
        (["train", data, "--time-budget", "soon"], "a time is a number and s, m or h"),
        (["train", data, "--time-budget", "0s"], "must be above 0 seconds"),
        (["train", data, "--time-budget", "nan"], "must be above 0 seconds"),
        (["train", data, "--seed", "-1"], "seed"),
        (["train", data, "--resume"], "--resume needs --out"),
        (["calibrate", model, data, "--far", "2"], "far must be in (0, 1)"),
        (["calibrate", model, data, "--far", "nan"], "far must be in (0, 1)"),
        (["calibrate", model, data, "--far", "low"], "argument --far"),
        (["calibrate", model], "calibrate needs DATA"),
        (["evaluate", model], "evaluate needs DATA, or --trials"),
        (["evaluate", model, data, "--on", "tset"], "unknown split 'tset': did you mean test?"),
        (["evaluate", model, "digits", "--on", "val"], "digits has no val pictures"),
        (["evaluate", model, data, "--way", "1"], "way must be at least 2"),
        (["evaluate", model, data, "--pairs", "0"], "pairs must be at least 1"),
        (["evaluate", model, data, "--seed", "-1"], "seed must be at least 0"),
        (["evaluate", model, "mnits"], "did you mean mnist"),
        (["evaluate", model, data, "--protocol", "nearset"], "did you mean nearest?"),
        (["evaluate", model, "--protocol", "nearest"], "--protocol nearest needs DATA"),
        (["evaluate", model, data, "--protocol", "nearest"], "train with --split images"),
        (["evaluate", model, "digits", "--protocol", "nearest"], "digits has no test pictures"),
        (["evaluate", model, data, "--protocol", "nearest", "--on", "all"], "not all"),
        (["evaluate", model, data, "--answers", "x.csv"], "--answers belongs to --protocol"),
        (["verify", model, a], "required: B"),
        (["verify", model, a, b, "--show", data], "it is a folder"),
        (["verify", model, a, b, "--show", data / "no" / "x.png"], "there is no folder"),
        (["verify", model, a, b, "--show", data.parent / "x.nonsense"], "cannot write"),
        (["embed", model, data], "required: --out"),
        (["embed", model, data, "--out", data.parent / "x.txt"], ".parquet, .lance, .csv, .npy"),
        (["gallery", "list", "g", "--foo"], "--foo (see `twinlens gallery list --help`)"),
        (["verify", model, a, b, "--foo"], "--foo (see `twinlens verify --help`)"),
        (["faces", data, data.parent / "f", "--detector", "x.onnx"], "file is given by --model"),
        (["train", data, "--set", "zzz=1"], "'auto': unknown key 'zzz' (`twinlens recipes auto`"),
        (["train", data, "--backbone", "zzz"], "unknown backbone 'zzz': choose from"),
    ]  # fmt: skip
    for words, message in wrong:
        found = refuse(capsys, *words)
        assert message in found, (words, found)
        assert len(found) < 1000
    assert not list(tmp_path.glob("runs/*"))  # A run that is refused leaves no folder.


def test_all_wrong_settings_at_once(tiny_run: TinyRun, capsys: Capture) -> None:
    words = ["--set", "loss.margin=-1", "--set", "sampler.kind=pairs!", "--set", "nothing.here=1"]
    message = refuse(capsys, "train", tiny_run.data, *words)
    for key in ("loss.margin: ", "sampler.kind: ", "unknown key 'nothing'"):
        assert key in message


EACH_COMMAND: list[Callable[[Path, Path, Path], list[object]]] = [
    lambda data, model, out: ["train", data, "--out", out / "run"],
    lambda data, model, out: ["inspect", data],
    lambda data, model, out: ["calibrate", model, data],
    lambda data, model, out: ["evaluate", model, data],
    lambda data, model, out: ["embed", model, data, "--out", out / "x.parquet"],
]


@pytest.mark.parametrize(
    "words", EACH_COMMAND, ids=["train", "inspect", "calibrate", "evaluate", "embed"]
)
def test_data_that_is_none(
    words: Callable[..., list[object]], tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    assert "no such file or folder" in refuse(
        capsys, *words(tmp_path / "none", tiny_run.run, tmp_path)
    )
    assert "holds no pictures" in refuse(capsys, *words(loose, tiny_run.run, tmp_path))
    if words is EACH_COMMAND[-1]:  # Embeddings need no classes.
        return
    Image.new("L", (8, 8)).save(loose / "a.png")
    assert "without a class folder" in refuse(capsys, *words(loose, tiny_run.run, tmp_path))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x.parquet").exists()


def test_one_identity(
    picture_folder: PictureFolder, tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    data = picture_folder({"lonely": 5})
    found = refuse(capsys, "train", data, "--out", tmp_path / "run")
    assert "1 identity (lonely), and training needs at least 2" in found
    assert not (tmp_path / "run").exists()
    assert "all of 'lonely'" in refuse(capsys, "evaluate", tiny_run.run, data)
    assert "impostor" in refuse(capsys, "calibrate", tiny_run.run, data)
    code, out, _ = run(capsys, "inspect", data)
    assert code == 0
    assert "Training would fail: " in out


MODEL_COMMANDS = ("calibrate", "evaluate", "embed", "verify")


def ask(command: str, model: Path, tiny_run: TinyRun, tmp_path: Path) -> list[object]:
    more: dict[str, tuple[object, ...]] = {
        "verify": two_pictures(tiny_run),
        "embed": (tiny_run.data, "--out", tmp_path / "x.parquet"),
    }
    return [command, model, *more.get(command, (tiny_run.data,))]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_models_that_are_none(
    command: str, tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    found = refuse(capsys, *ask(command, tmp_path / "none", tiny_run, tmp_path))
    assert "is not a model: nothing is there" in found
    found = refuse(capsys, *ask(command, tiny_run.data, tiny_run, tmp_path))
    assert "is not a model: it holds no model.json" in found


def damage_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_json(model: Path) -> None:
    file = model / "model.json"
    file.write_text(file.read_text()[:-200])


def make_newer(model: Path) -> None:
    file = model / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))


def swap_weights(model: Path) -> None:
    file = model / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)


def damage_calibration(model: Path) -> None:
    file = model / "model.json"
    description = json.loads(file.read_text())
    description["calibration"]["threshold"] = "near"
    file.write_text(json.dumps(description))


DAMAGES = [
    (damage_weights, "is damaged"), (damage_json, "is damaged"), (swap_weights, "is damaged"),
    (make_newer, "has format 99"), (damage_calibration, "calibration is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_damaged_models(
    damage: Callable[[Path], None], message: str, tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    damage(model)
    for command in ("verify", "evaluate"):
        assert message in refuse(capsys, *ask(command, model, tiny_run, tmp_path))


def test_error_of_an_uncalibrated_model_names_the_command(
    tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    file = model / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": None}))
    found = refuse(capsys, *ask("verify", model, tiny_run, tmp_path))
    assert f"twinlens calibrate {model} DATA" in found
    code, out, _ = run(capsys, "evaluate", model, tiny_run.data, "--json")
    assert code == 0
    assert "calibrated" not in json.loads(out)["verification"]
    code, out, _ = run(capsys, "calibrate", model, tiny_run.data, "--far", "0.1")
    assert code == 0
    assert out.startswith("threshold ")
    code, *_ = run(capsys, *ask("verify", model, tiny_run, tmp_path))
    assert code in (0, 1)


def test_pictures_that_do_not_open(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    good, _ = two_pictures(tiny_run)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:60])
    for name in ("text.png", "empty.jpg", "half.png", "none.png", ""):
        found = refuse(capsys, "verify", tiny_run.run, good, tmp_path / name)
        assert str(tmp_path / name) in found
        assert found.count("\n") == 1


def test_places_that_cannot_be_written(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    there = tmp_path / "none" / "x"
    os.mkfifo(tmp_path / "pipe")
    data, model = tiny_run.data, tiny_run.run
    wrong: list[tuple[list[object], str]] = [
        (["train", data, "--out", file, *tiny_words()], "is a file"),
        (["train", data, "--out", file / "run", *tiny_words()], "cannot make the run folder"),
        (["embed", model, data, "--out", there], "there is no folder"),
        (["embed", model, data, "--out", tmp_path], "it is a folder"),
        (["embed", model, data, "--out", tmp_path / "pipe"], "it is not a regular file"),
        (["evaluate", model, data, "--report", there], "there is no folder"),
        (["evaluate", model, data, "--protocol", "nearest", "--answers", there], "is no folder"),
        (["inspect", data, "--montage", there], "there is no folder"),
        (["inspect", data, "--montage", tmp_path / "x.nonsense"], "cannot write"),
    ]
    for words, message in wrong:
        found = refuse(capsys, *words)
        assert message in found, (words, found)
    assert file.read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["file"]


def test_out_that_is_not_empty(tiny_run: TinyRun, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thing").touch()
    found = refuse(capsys, "train", tiny_run.data, "--out", tmp_path / "old")
    assert "is not empty: resume its run with --resume, or name another --out" in found


def test_a_reader_that_leaves_early(tiny_run: TinyRun) -> None:
    """`twinlens ... | head` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "twinlens", "recipes", "auto"], stdout=writer,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_file_names_that_are_not_text(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A name that is not UTF-8 is shown escaped, in words and in JSON."""
    name = os.fsdecode(b"\xff.png")
    data = tmp_path / "odd"
    try:
        (data / "a").mkdir(parents=True)
        (data / "b").mkdir()
        (data / "a" / name).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system takes no such names")
    shutil.copy(two_pictures(tiny_run)[0], data / "b" / "0.png")
    words = [sys.executable, "-m", "twinlens", "inspect", str(data)]
    shown = subprocess.run([*words, "--json"], capture_output=True)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["broken"][0]["path"] == f"a/{name}"
