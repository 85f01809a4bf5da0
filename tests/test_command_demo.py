"""`demo`: letters learned, told apart and identified."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from twinlens.commands import demo as demo_job
from twinlens.commands import train as train_job
from twinlens.commands.demo import demo
from twinlens.data.glyphs import glyphs
from twinlens.data.table import ImageTable

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch) -> ImageTable:
    """Some letters of each split, in place of all."""
    table = glyphs()
    names = [
        name
        for split in ("train", "val", "test")
        for name in table.of_split(split).identities()[:7]
    ]
    small = table.select(np.isin(table.identity.astype(str), names))
    read_table = demo_job.read_table
    monkeypatch.setattr(
        demo_job, "read_table", lambda data: small if data == "glyphs" else read_table(data)
    )
    return small


def test_the_demo_in_small(
    few_glyphs: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(demo_job, "SETTINGS", TINY | {"train.steps": 4})
    monkeypatch.setattr(train_job, "write_model_report", lambda path, *facts: path.touch())
    monkeypatch.chdir(tmp_path)
    run = Path("runs/demo-2")
    run.with_name("demo").mkdir(parents=True)
    lines = list(demo(quiet=True))
    assert lines[-1] == f"Report: {run / 'report.html'}"
    assert capsys.readouterr().out == ""
    eer = json.loads((run / "results.json").read_text())["verification"]["eer"]["value"]
    assert f"7 Cyrillic letters the equal error rate is {100 * eer:.1f} % (" in lines[0]
    assert "one picture of each of 3 of these letters" in lines[1]
    assert re.search(r"^Of 45 pictures .* of 60 pictures of 4 letters", lines[2])
    assert lines[-2] == f"Picture of these answers: {run / 'identify.png'}"
    with Image.open(run / "identify.png") as sheet:
        assert sheet.width == 1600
    _check_answers(lines, run)


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    lines = list(demo(out=tmp_path / "run", quiet=True))
    verification = json.loads((tmp_path / "run/results.json").read_text())["verification"]
    assert verification["eer"]["value"] < 0.05
    assert verification["num_identities"] == 22
    mated, others = (int(share) / 100 for share in re.findall(r"(\d+) ?% are", lines[2]))
    assert mated > 0.7
    assert others > 0.4  # Letters as alike as Sha and Shcha are among them.
    assert _check_answers(lines, tmp_path / "run") >= 4


def _check_answers(lines: list[str], run: Path) -> int:
    """Check what is said about each answer; the last probe is a letter without a template.

    Returns:
        How many answers are right.
    """
    answers = [line.strip().split(": ") for line in lines if line.startswith("  ")]
    assert len(answers) == 5
    letters = {folder.name for folder in (run / "letters").iterdir()}
    for probe, answer, *_ in answers:
        assert probe in letters
        assert answer in letters | {"nobody", "ambiguous"}
    truths = [probe for probe, *_ in answers[:-1]] + ["nobody"]
    right = [answer[1] == truth for answer, truth in zip(answers, truths, strict=True)]
    assert [answer[-1].endswith("[right]") for answer in answers] == right
    return sum(right)
