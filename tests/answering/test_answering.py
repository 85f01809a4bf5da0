"""Every command that answers runs without torch; training says in one line what is missing."""

from __future__ import annotations

import json
import pkgutil
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_pictures
from test_architecture import learns

import twinlens
from twinlens.cli.main import main
from twinlens.errors import MissingExtraError

GOLDEN = Path(__file__).parents[1] / "golden"
Json = Callable[..., Any]
TRAIN = r"pip install 'twinlens\[train\]'"


@pytest.fixture(autouse=True)
def no_torch() -> Iterator[None]:
    yield
    assert not {"torch", "torchvision", "timm"} & {name.split(".")[0] for name in sys.modules}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten things in six pictures each; tests do not change them."""
    folder = tmp_path_factory.mktemp("answering") / "pictures"
    draw_pictures(folder, {f"thing {number}": 6 for number in range(10)})
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the golden model of format 3, without the weights that only learning reads."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bundle_3" / "model", folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Json:
    """A command with --json: its output, after a check of its exit code."""

    def call(*words: object, codes: Collection[int] = (0,)) -> Any:
        assert main([*map(str, words), "--json"]) in codes, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def test_every_module_that_answers_is_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(twinlens.__path__, "twinlens.")]
    apart = "twinlens.service."  # Needs the extra `serve`.
    answering = [
        name for name in names
        if not learns(name) and not name.endswith("__main__") and not name.startswith(apart)
    ]  # fmt: skip
    assert len(answering) > 100
    for name in answering:
        import_module(name)


def test_pairs(run: Json, model: Path, pictures: Path) -> None:
    a, b = pictures / "thing 1" / "0.png", pictures / "thing 2" / "0.png"
    run("calibrate", model, pictures, "--far=0.1")
    same, other = run("verify", model, a, a), run("verify", model, a, b, codes=[1])
    assert (same["distance"], same["match"], other["match"]) == (0, True, False)
    assert twinlens.load(model).distance(a, b) == pytest.approx(other["distance"], abs=1e-6)


def test_data_sets(run: Json, model: Path, pictures: Path, tmp_path: Path) -> None:
    run("inspect", pictures)
    run("calibrate", model, pictures, "--far=0.1")
    assert twinlens.embed(model, pictures, out=tmp_path / "table.parquet") == 60
    result = run("evaluate", model, pictures, "--report", tmp_path / "report.html")
    assert 0 <= result["verification"]["eer"]["value"] <= 1
    assert "twinlens" in (tmp_path / "report.html").read_text(encoding="utf-8")
    clusters = run("cluster", model, pictures, "--out", tmp_path / "clusters", "--threshold=0.3")
    assert clusters["pictures"] == 60


def test_a_gallery(run: Json, model: Path, pictures: Path, tmp_path: Path) -> None:
    gallery, probe = tmp_path / "gallery", pictures / "thing 3" / "5.png"
    run("gallery", "create", gallery, "--model", model)
    assert run("gallery", "enrol", gallery, pictures)["num_new"] == 60
    answer = run("identify", gallery, probe, codes=[0, 1])["answers"][0]  # 1: ambiguous.
    assert answer["candidates"][0]["distance"] == 0
    run("gallery", "calibrate", gallery, "--fpir=0.1")
    assert run("search", gallery, probe)["hits"][0]["distance"] == 0


def test_inspect_says_why_a_run_would_fail(run: Json, pictures: Path) -> None:
    problem = run("inspect", pictures)["run"]["problem"]
    assert problem == "training needs torch: pip install 'twinlens[train]'"


@pytest.mark.parametrize("words", [["train", "digits"], ["demo"]])
def test_what_learns_says_what_to_install(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    line = f"twinlens: error: twinlens.{words[0]} needs torch: pip install 'twinlens[train]'\n"
    assert capsys.readouterr().err == line


def test_serving_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "twinlens.service.run", raising=False)
    assert main(["serve", "--port=0"]) == 2
    line = "twinlens: error: twinlens.serve needs uvicorn: pip install 'twinlens[serve]'\n"
    assert capsys.readouterr().err == line


def test_from_python() -> None:
    with pytest.raises(MissingExtraError, match=TRAIN):
        twinlens.train  # noqa: B018


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_data_sets_of_torchvision(name: str, model: Path) -> None:
    with pytest.raises(MissingExtraError, match=TRAIN):
        twinlens.evaluate(model, name)


def test_a_model_without_graphs(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bundle_1" / "model", tmp_path / "old")
    with pytest.raises(MissingExtraError, match=rf"old, of an older format, needs torch: {TRAIN}"):
        twinlens.load(tmp_path / "old")


def test_doctor(run: Json, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run("doctor")
    assert facts["training"] is None
    assert facts["missing"]["train"] == "pip install 'twinlens[train]'"
    assert main(["doctor"]) == 0
    assert "answers, and cannot train" in capsys.readouterr().out
