"""Files and folders that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlens.errors import DataError
from twinlens.files import creating_folder, replacing_file


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_creating_folder_appears_when_complete(tmp_path: Path, before: str) -> None:
    out = tmp_path / "new" / "out"
    if before != "nothing":
        out.mkdir(parents=True)
    with creating_folder(out, "x", "y") as part:
        (part / "file").write_text("x")
        assert part.parent.parent == out.parent  # On the same disk, so that it can be renamed.
        assert not out.exists() or not any(out.iterdir())
    assert below(tmp_path / "new") == ["out", "out/file"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777


def test_creating_folder_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    def fill() -> None:
        with creating_folder(tmp_path / "out", "x", "y") as part:
            (part / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert below(tmp_path) == []


def test_creating_folder_keeps_what_another_process_created(tmp_path: Path) -> None:
    def fill() -> None:
        with creating_folder(tmp_path / "out", "x", "y") as part:
            (part / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(OSError, match="not empty"):
        fill()
    assert below(tmp_path) == ["out", "out/theirs"]


def test_creating_folder_explains_an_unwritable_location(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    message = r"^cannot write to the shelf \(.+\): go elsewhere$"
    with pytest.raises(DataError, match=message), creating_folder(out, "the shelf", "go elsewhere"):
        raise AssertionError("never filled")


def test_replacing_file_keeps_the_old_file_after_a_failure(tmp_path: Path) -> None:
    file, part = tmp_path / "file", tmp_path / "part"
    file.write_text("old")

    def write() -> None:
        with replacing_file(file, part):
            part.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert file.read_text() == "old"
    with replacing_file(file, part):
        part.write_text("new")
    assert file.read_text() == "new"
    assert below(tmp_path) == ["file"]
