"""Files and folders that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlens.errors import DataError
from twinlens.files import creating_folder, replacing_file


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_a_folder_appears_when_it_is_whole(tmp_path: Path, before: str) -> None:
    out = tmp_path / "new" / "out"
    if before != "nothing":
        out.mkdir(parents=True)
    with creating_folder(out, "x", "y") as part:
        (part / "file").write_text("x")
        assert part.parent.parent == out.parent  # On the same disk, so that it can be renamed.
        assert not out.exists() or not any(out.iterdir())
    assert below(tmp_path / "new") == ["out", "out/file"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with creating_folder(tmp_path / "out", "x", "y") as part:
            (part / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert below(tmp_path) == []


def test_a_place_that_was_taken_meanwhile_is_not_touched(tmp_path: Path) -> None:
    def fill() -> None:
        with creating_folder(tmp_path / "out", "x", "y") as part:
            (part / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(OSError, match="not empty"):
        fill()
    assert below(tmp_path) == ["out", "out/theirs"]


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    message = r"^cannot write to the shelf \(.+\): go elsewhere$"
    with pytest.raises(DataError, match=message), creating_folder(out, "the shelf", "go elsewhere"):
        raise AssertionError("never filled")


def test_replacing_keeps_what_was_there_where_writing_fails(tmp_path: Path) -> None:
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
