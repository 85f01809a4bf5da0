"""The scripts in examples/ run and write what they describe."""

from __future__ import annotations

import csv
import importlib.util
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY, TinyRun
from PIL import Image

import twinlens
from twinlens.measure.trials import OneShotTrialsResult

ROOT = Path(__file__).parents[1]
ALL_RUNS = ROOT.parent / "shared" / "data" / "omniglot" / "all_runs.zip"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(archive: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    monkeypatch.setattr(sys, "argv", ["omniglot_trials.py", str(archive), str(out)])
    example("omniglot_trials").main()
    with (out / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_official(rows: list[dict[str, str]], out: Path) -> None:
    trials = defaultdict(list)
    for row in rows:
        trials[row["trial"]].append(row)
    assert len(trials) == 400
    for candidates in trials.values():
        assert len({row["candidate"] for row in candidates}) == 20
        assert len({row["probe"] for row in candidates}) == 1
        assert [row["same"] for row in candidates].count("1") == 1
        assert {row["same"] for row in candidates} == {"0", "1"}
        assert {row["cluster"] for row in candidates} == {candidates[0]["probe"].split("/")[0]}
    assert {row["cluster"] for row in rows} == {f"run{number:02}" for number in range(1, 21)}
    # In each run, each of the 20 characters is the answer to one probe.
    answers = [row["candidate"] for row in rows if row["same"] == "1"]
    assert len(set(answers)) == 400
    assert all((out / row[name]).is_file() for row in rows for name in ("probe", "candidate"))


def test_official_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not ALL_RUNS.is_file():
        pytest.skip(f"no {ALL_RUNS}")
    rows = convert(ALL_RUNS, tmp_path / "trials", monkeypatch)
    assert capsys.readouterr().out == f"400 trials in {tmp_path / 'trials' / 'trials.csv'}\n"
    check_official(rows, tmp_path / "trials")
    answer = {row["trial"]: row["candidate"] for row in rows if row["same"] == "1"}
    for run in range(1, 21):
        labels = tmp_path / "trials" / f"run{run:02}" / "class_labels.txt"
        for line in labels.read_text().splitlines():
            probe, right = line.split()
            assert answer[probe] == right


def test_runs_of_the_official_shape(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up runs in which each probe is its answer's own drawing: a model gets all right."""
    archive = tmp_path / "all_runs.zip"
    files = sorted(tiny_run.data.rglob("*.png"))[:20]
    with zipfile.ZipFile(archive, "w") as content:
        for run in range(1, 21):
            lines = []
            for number, file in enumerate(files, start=1):
                item, shown = f"run{run:02}/test/item{number:02}.png", (number * 7) % 20 + 1
                right = f"run{run:02}/training/class{shown:02}.png"
                content.write(files[shown - 1], item)
                content.write(file, f"run{run:02}/training/class{number:02}.png")
                lines.append(f"{item} {right}")
            content.writestr(f"run{run:02}/class_labels.txt", "\n".join(lines) + "\n")
    rows = convert(archive, tmp_path / "out", monkeypatch)
    check_official(rows, tmp_path / "out")
    with Image.open(tmp_path / "out" / rows[0]["probe"]) as picture:
        assert picture.size == (16, 16)
    found = twinlens.evaluate(tiny_run.run, trials=tmp_path / "out" / "trials.csv", quiet=True)
    assert isinstance(found.trials, OneShotTrialsResult)
    assert found.trials.num_trials == 400
    assert found.trials.accuracy.value == 1


@pytest.mark.slow
def test_a_study_of_settings_ends_poor_trials_and_trains_with_the_best(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    optuna = pytest.importorskip("optuna")
    study = example("optuna_study")
    fixed = TINY | {"train.steps": 8, "train.validations": 4}
    del fixed["model.embedding"]
    best, model = study.study_settings(str(tiny_run.data), tmp_path, 2, fixed)
    assert set(best) == {
        "optimizer.rate", "loss.temperature", "augment.rotate", "model.embedding"
    }  # fmt: skip
    assert model.settings.embedding == best["model.embedding"]
    assert (tmp_path / "trial-1" / "results.json").is_file()

    class Poor:
        def report(self, value: float, step: int) -> None:
            reports.append((value, step))

        def should_prune(self) -> bool:
            return True

    reports: list[tuple[float, int]] = []
    with pytest.raises(optuna.TrialPruned):
        twinlens.train(
            tiny_run.data, out=tmp_path / "pruned", settings=fixed,
            callbacks=[study.Pruning(Poor())],
        )  # fmt: skip
    assert [step for _, step in reports] == [2]
    assert not (tmp_path / "pruned" / "results.json").exists()
