"""Every writer on a full disk: one line that names the file, exit code 2, and nothing lost.

A limit of a file's size stands for the full disk: it needs no permission, and writes fail alike.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import TinyRun, file_limit, tiny_words

from twinlens.cli.main import main

Capture = pytest.CaptureFixture[str]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def place(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A folder with a model, pictures, and an older version of each output."""
    folder = tmp_path / "place"
    shutil.copytree(tiny_run.run, folder / "run")
    shutil.copytree(tiny_run.data, folder / "pictures")
    for name in ("e.parquet", "r.html", "m.png", "m.jpg", "m.webp", "s.jpg"):
        (folder / name).write_text("older")
    return folder


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("embed run pictures --out e.parquet", "e.parquet"),
        ("evaluate run pictures --report r.html", "r.html"),
        ("inspect pictures --montage m.png", "m.png"),
        ("inspect pictures --montage m.jpg", "m.jpg"),
        ("inspect pictures --montage m.webp", "m.webp"),
        ("verify run pictures/thing-0/0.png pictures/thing-1/0.png --show s.jpg", "s.jpg"),
        ("cluster run pictures --threshold 0.5 --out c", "c"),
        ("cluster run pictures --threshold 0.5 --copy --out new/c", "new/c"),
        ("calibrate run pictures --far 0.1 --split all", "run/model/model.json"),
    ],
)
def test_a_full_disk_is_one_message(
    words: str, output: str, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = snapshot(place)
    argv = [word.replace("thing-", "thing ") for word in words.split()]
    with file_limit(100):
        code = main(argv)
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert last.startswith("twinlens: error: cannot write ")
    assert output in last
    assert "File too large; raise the limit" in last
    assert snapshot(place) == before
    code = main(argv)
    assert code in (0, 1), capsys.readouterr().err


@pytest.mark.parametrize("limit", [100, 1500, 8000, 40_000])
def test_a_full_disk_in_training_can_be_resumed_from(
    limit: int, tiny_run: TinyRun, tmp_path: Path, capsys: Capture
) -> None:
    """Split, records, history, checkpoint, model and report fail at one limit or another."""
    words = ["train", str(tiny_run.data), "--out", str(tmp_path / "run"), *tiny_words(), "--quiet"]
    with file_limit(limit):
        assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"twinlens: error: cannot write {tmp_path / 'run'}/")
    assert not list(tmp_path.rglob(".*.part-*"))
    assert main([*words, "--resume"]) == 0
    for name in ("model/model.safetensors", "split.csv", "results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tiny_run.run / name).read_bytes(), name
