"""docs/json.md names every key of every JSON output, with its type; no more and no fewer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.commands import doctor as doctor_job
from twinlens.config import ModelSettings, Settings
from twinlens.data.table import ImageTable
from twinlens.learn.records import CandidateRow, LearningPoint
from twinlens.learn.run_folder import RaceRecord
from twinlens.machine import machine
from twinlens.match.matcher import Matcher
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.probability import Isotonic, Platt

DOCUMENT = Path(__file__).parents[1] / "docs" / "json.md"

LEAVES: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "null": lambda v: v is None,
    "any": lambda v: True,
    "figure": lambda v: (
        isinstance(v, dict)
        and list(v) == ["value", "low", "high"]
        and all(n is None or isinstance(n, int | float) for n in v.values())
    ),
}

# What a table says of a key is then said by another table.
OTHERS = {"settings": "settings.json", "calibration": "calibrate", "reliability": "reliability",
          "groups": "groups", "domain": "domain"}  # fmt: skip


def documented() -> dict[str, dict[str, str]]:
    """Output -> key path -> type, from the marked tables."""
    found = {}
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, block in re.findall(r"<!-- keys: (\S+) -->\n(.*?)<!-- end -->", text, re.S):
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", block, re.M)
        assert len(rows) == len(dict(rows)) == block.count("\n") - 2
        found[name] = dict(rows)
    return found


TABLES = documented()


def compare(value: Any, table: dict[str, str], path: str = "") -> set[str]:
    """The documented paths that a JSON value shows; fails where it shows others."""
    kinds = table[path].split(" or ") if path in table else []
    seen = {path} if kinds else set()
    if any(LEAVES[kind](value) for kind in kinds if kind in LEAVES):
        return seen
    if other := [OTHERS[kind] for kind in kinds if kind in OTHERS]:
        compare(value, TABLES[other[0]])
        return seen
    assert not kinds or "object" in kinds, f"{path} is {value!r}, not {' or '.join(kinds)}"
    assert isinstance(value, dict | list), f"{path} is {value!r} and not documented"
    children = value.items() if isinstance(value, dict) else [("[]", item) for item in value]
    for key, child in children:
        seen |= compare(child, table, place_of(key, table, path))
    return seen


def place_of(key: str, table: dict[str, str], path: str) -> str:
    """The documented path that a key of the object at `path` is meant by."""
    begin = f"{path}." if path else ""
    for place in (f"{path}[]",) if key == "[]" else (f"{begin}{key}", f"{begin}*"):
        if any(known == place or known.startswith((f"{place}.", f"{place}[")) for known in table):
            return place
    raise AssertionError(f"{begin}{key} is not documented")


def check(name: str, *outputs: Any) -> None:
    """Together the outputs show all that is documented, and nothing else."""
    seen = set().union(*(compare(output, TABLES[name]) for output in outputs))
    missing = set(TABLES[name]) - seen
    assert not missing, f"documented, and not there: {sorted(missing)}"


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code in (0, 1), err
    assert out.count("\n") == 1
    return json.loads(out)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_comparison_sees_what_is_wrong() -> None:
    table = {
        "a": "integer",
        "b[].c": "string",
        "d.*": "number",
        "e": "object or null",
        "e.f": "any",
    }
    good = {"a": 1, "b": [{"c": "x"}], "d": {"z": 0.5}, "e": {"f": 1}}
    assert compare(good, table) == set(table)
    assert compare(good | {"e": None}, table) == set(table) - {"e.f"}
    for wrong in ({"a": True}, {"a": 1.0}, {"x": 1}, {"b": [{"c": 1}]}, {"b": [{}, {"d": "x"}]},
                  {"d": {"z": None}}, {"d": None}, {"e": 3}):  # fmt: skip
        with pytest.raises(AssertionError):
            compare(good | wrong, table)


def test_verify(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = sorted(tiny_run.data.rglob("*.png"))[:2]
    priors = [["--prior", 1e-9], ["--prior", 1 - 1e-9]]  # One of them gives a reason.
    priors[0] += ["--explain", tmp_path / "why.png"]
    check(
        "verify", *(printed(capsys, "verify", tiny_run.run, a, b, "--json", *at) for at in priors)
    )


def test_evaluate_and_results(
    tiny_run: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signed = tmp_path / "signed"
    draw_pictures(signed, {"a": 4, "a_forg": 3, "b": 4, "b_forg": 3, "c": 1})
    pairs, shots = tmp_path / "pairs.csv", tmp_path / "shots.csv"
    pairs.write_text(
        "a,b,same,pen\nsigned/a/0.png,signed/a/1.png,1,x\nsigned/a/0.png,signed/b/1.png,0,x\n"
    )
    shots.write_text("trial,probe,candidate,same\n1,signed/a/0.png,signed/a/1.png,1\n")
    closed = tmp_path / "closed"
    draw_pictures(closed, {f"{split}/{name}": 2 for split in ("train", "test") for name in "ab"})
    draw_pictures(tmp_path / "six", dict.fromkeys("abcdef", 4), seed=3)
    rows = [f"six/{name}/{i}.png,{name},{'xy'[i % 2]},{'small' if name == 'a' else ''}"
            for name in "abcdef" for i in range(4)]  # fmt: skip
    cameras = tmp_path / "cameras.csv"
    cameras.write_text("\n".join(["path,identity,camera,room", *rows]))
    run = tiny_run.run
    by = printed(capsys, "evaluate", run, cameras, "--by=camera", "--by=room",
                 "--group-thresholds", "--json")  # fmt: skip
    check("groups", *by["groups"].values())
    check("reliability", by["verification"]["reliability"])
    with monkeypatch.context() as patched:
        patched.setattr("twinlens.measure.pairs.ALL_PAIRS_LIMIT", 5)
        patched.setattr("twinlens.measure.pairs.SAMPLED_PAIRS", 5)
        sampled = printed(capsys, "evaluate", run, tiny_run.data, "--json")
    check(
        "evaluate",
        sampled,
        read(run / "results.json"),
        printed(capsys, "evaluate", run, signed, "--json"),
        printed(capsys, "evaluate", run, "--trials", pairs, "--by=pen", "--json"),
        by,
        printed(capsys, "evaluate", run, "--trials", shots, "--json"),
        printed(capsys, "evaluate", run, closed, "--protocol", "nearest", "--json"),
        printed(capsys, "evaluate", run, tiny_run.data, "--on", "all", "--protocol", "open-set",
                "--json"),
    )  # fmt: skip


def test_calibrate_and_files_of_a_run(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    output = printed(capsys, "calibrate", model, tiny_run.data, "--far", "0.1", "--json")
    found = Matcher.load(model).calibration
    assert found is not None
    assert found.as_json() == output
    curves = (Isotonic((0.1, 0.2), (1.0, 0.0)), Platt(1.0, 2.0))
    kinds = [replace(found, curve=curve).as_json() for curve in curves]
    check("calibrate", output, *kinds)
    check("model.json", read(model / "model.json"))
    check("run.json", read(tiny_run.run / "run.json"))
    with_head = Settings(model=ModelSettings(head=(8,))).model_dump(mode="json")
    check("settings.json", read(tiny_run.run / "settings.json"), with_head)


def test_candidates() -> None:
    rows = [
        asdict(CandidateRow("a", 0.1, 0.9, 5, 1.0, 1.0, loss))
        for loss in (None, Estimate(0.1, 0.0, 0.2))
    ]
    check("candidates.json", {"candidates": rows, "curve": [asdict(LearningPoint(9, 0.1))]})
    race = RaceRecord(updates={"loss.temperature": 0.05}, rows=[CandidateRow("a", 0.1, 0.9, 1, 1)])
    check("race.json", race.model_dump(mode="json"))


def test_uncalibrated_model_has_null(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    description = read(model / "model.json") | {"calibration": None}
    (model / "model.json").write_text(json.dumps(description))
    assert Matcher.load(model).calibration is None
    compare(description, TABLES["model.json"])


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "mixed"
    draw_pictures(top, dict.fromkeys("abcdefgh", 4))
    draw_pictures(top, {"lonely": 1}, seed=5)
    shutil.copy(top / "a" / "0.png", top / "b" / "same.png")
    (top / "c" / "broken.png").write_bytes(b"no picture")
    Image.new("L", (16, 16), 90).save(top / "e" / "blank.png")
    with Image.open(top / "d" / "0.png") as picture:
        picture.point([min(255, level + 3) for level in range(256)]).save(top / "d" / "nearly.png")
    for name in ("a/raw.cr2", "notes.txt", ".hidden"):
        (top / name).write_bytes(b"x")
    for name in ("@eaDir", "lfw"):  # Of a system, and as in a named set.
        (top / name).mkdir()
    (top / "gone.png").symlink_to("nowhere")
    (top / "again").symlink_to("a")
    check("inspect", printed(capsys, "inspect", top, "--json"))
    alone = tmp_path / "one"
    (alone / "x").mkdir(parents=True)
    (alone / "x" / "0.png").write_bytes(b"no picture")
    found = printed(capsys, "inspect", alone, "--json")
    compare(found, TABLES["inspect"])
    assert found["sizes"]["height"] is None
    assert "1 identity" in found["run"]["problem"]


def test_audit(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(tiny_run.data, tmp_path / "data")
    (data / "thing 3" / "0.png").rename(data / "thing 4" / "moved.png")
    (data / "thing 5" / "broken.png").write_bytes(b"no picture")
    words = ["audit", data, "--json", "--quiet", "--out"]
    check("audit", printed(capsys, *words, tmp_path / "a", "--model", tiny_run.run))
    applied = [tmp_path / "b", "--apply", tmp_path / "a" / "audit.csv"]
    check("audit-apply", printed(capsys, *words, *applied))


def test_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="the extra `faces` is not installed")
    draw_pictures(tmp_path / "photos", {"a": 2, "b": 1})
    out = tmp_path / "faces"
    check("faces", printed(capsys, "faces", tmp_path / "photos", out, "--detector=haar", "--json"))


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """Three identities with two templates each and one with one, with metadata."""
    for name, num in (("thing 0", 2), ("thing 1", 2), ("thing 2", 2), ("thing 3", 1)):
        for number in range(num):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_run.data / name / f"{number}.png", tmp_path / "in" / name)
    place = tmp_path / "gallery"
    opened = twinlens.Gallery.create(place, tiny_run.model)
    opened.enrol(tmp_path / "in", metadata={"room": "north", "floor": 2})
    return place


def test_identify_and_search(
    gallery: Path, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, other = (tiny_run.data / name / "3.png" for name in ("thing 0", "thing 8"))
    empty = tmp_path / "empty"
    outputs = [
        printed(capsys, "gallery", "create", empty, "--model", tiny_run.run, "--json"),
        printed(capsys, "identify", empty, known, "--json"),
        printed(capsys, "identify", gallery, known, other, "--json"),
    ]
    printed(capsys, "gallery", "calibrate", gallery, "--fpir", "0.4", "--json", "--quiet")
    outputs.append(printed(capsys, "identify", gallery, known, "-k", 2, "--json"))
    assert main(["identify", str(gallery), str(known), str(tmp_path / "none"), "--json"]) == 2
    outputs.append(json.loads(capsys.readouterr().out))
    check("identify", *outputs[1:])
    check("search", printed(capsys, "search", gallery, known, "-k", 3, "--json"))
    check("gallery-info", outputs[0], printed(capsys, "gallery", "info", gallery, "--json"))


def test_gallery(
    gallery: Path, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(command: str, *words: object) -> Any:
        return printed(capsys, "gallery", command, gallery, *words, "--json")

    (tmp_path / "in" / "thing 0" / "broken.png").write_bytes(b"no picture")
    Image.new("L", (16, 16)).save(tmp_path / "in" / "thing 0" / "flat.png")
    check("gallery-enrol", ask("enrol", tmp_path / "in"))
    check("gallery-list", ask("list"))
    check("gallery-templates", ask("list", "thing 0"), ask("list", "--templates"))
    check("gallery-optimize", ask("optimize"), ask("optimize", "--partitions", "2"))
    check("gallery-export", ask("export", tmp_path / "all.parquet"))
    compare(ask("import", tmp_path / "all.parquet"), TABLES["gallery-enrol"])
    check("gallery-rename", ask("rename", "thing 3", "thing 2", "--merge"))
    picture = tmp_path / "in" / "thing 0" / "0.png"
    other = ask("feedback", picture, "--is-not", "thing 2")
    compare(other, TABLES["gallery-feedback"])
    check("gallery-corrections", ask("feedback", "--list"))
    check("gallery-erase", ask("erase", "thing 1"))
    (tmp_path / "in" / "thing 0" / "0.png").unlink()
    check("gallery-rebuild", ask("rebuild", "--model", tiny_run.run, "--drop-missing"))
    found = json.loads((tiny_run.model / "model.json").read_text())
    assert ask("info")["fingerprint"] == found["fingerprint"]


def test_export(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "m")
    description = json.loads((model / "model.json").read_text())
    description |= {"origin": None, "calibration": None}
    (model / "model.json").write_text(json.dumps(description))
    words = [
        (tiny_run.run, tmp_path / "a", "--data", tiny_run.data, "--resize", "inside"),
        (model, tmp_path / "b"),  # neither calibrated nor measured
    ]
    check("export", *(printed(capsys, "export", *one, "--json", "--quiet") for one in words))


def test_gallery_calibrate(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, "gallery", "calibrate", gallery, "--fpir", "0.4", "--json")
    opened = twinlens.Gallery.open(gallery)
    found = opened.state().open_set
    assert found is not None
    assert output == found.as_json() | {"pairs": output["pairs"]}
    curves = (Isotonic((0.1, 0.2), (1.0, 0.0)), Platt(1.0, 2.0), None)
    kinds = [{**replace(found, curve=one).as_json(), "pairs": None} for one in curves]
    check("gallery-calibrate", output, *kinds)


def test_cluster(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster", tiny_run.run, tiny_run.data, "--json", "--out"]
    plain = printed(capsys, *words, tmp_path / "plain")
    next(path for path in tmp_path.glob("plain/*/*.png")).unlink()  # A new picture from now on.
    check(
        "cluster",
        plain,
        printed(capsys, *words, tmp_path / "scored", "--labelled", "--threshold=0.5"),
        printed(capsys, *words, tmp_path / "chosen", "--validation", tiny_run.data),
        printed(capsys, *words, tmp_path / "joined", "--onto", tmp_path / "plain"),
    )


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"conv 32x32": (*doctor_job.TRIALS["conv 32x32"][:2], 2)}
    monkeypatch.setattr(doctor_job, "TRIALS", small)
    monkeypatch.setattr(doctor_job, "machine", lambda: machine() | {"gpus": ["H200"]})
    check("doctor", printed(capsys, "doctor", "--json"))


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    check("recipes", printed(capsys, "recipes", "--json"))
    check("recipe", printed(capsys, "recipes", "auto", "--json"))


def test_a_run_of_a_table_from_python_too(tmp_path: Path) -> None:
    """The table has no file to name: `command` is empty, and nothing else changes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    table = ImageTable(
        path=np.array([f"made/{row:02}" for row in range(24)], dtype=object),
        identity=np.array([f"id{row // 4}" for row in range(24)], dtype=object),
        forged=np.zeros(24, dtype=bool),
        split=np.full(24, "", dtype=object),
        source="made",
        root=None,
        pixels=pixels,
    )
    twinlens.train(table, out=tmp_path / "run", settings=TINY | {"train.steps": 2}, quiet=True)
    run = read(tmp_path / "run" / "run.json")
    compare(run, TABLES["run.json"])
    assert run["command"] == ""
