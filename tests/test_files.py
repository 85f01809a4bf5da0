"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from twinlens.errors import DataError
from twinlens.files import (
    DAY,
    check_output_folder,
    creating_folder,
    sweep_parts,
    write_text,
    writing_file,
)


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
        with creating_folder(tmp_path / "new" / "out", "x", "y") as part:
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

    with pytest.raises(DataError, match=r"^cannot write .+/out: Directory not empty$"):
        fill()
    assert below(tmp_path) == ["out", "out/theirs"]


def test_creating_folder_replaces_a_folder_or_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for name in ("old", "new"):
        with creating_folder(out, "x", "y", replace=True) as part:
            (part / name).touch()
    assert below(tmp_path) == ["out", "out/new"]

    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "whole":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    def fill() -> None:
        with creating_folder(out, "x", "y", replace=True) as part:
            (part / "newer").touch()

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=rf"^cannot write {out}: Input/output error$"):
        fill()
    assert below(tmp_path) == ["out", "out/new"]


def test_creating_folder_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    def fill(error: OSError) -> None:
        with creating_folder(tmp_path / "out", "x", "y") as part:
            name = error.filename and error.filename.replace("PART", str(part))
            raise OSError(error.errno, os.strerror(error.errno), name)

    for error, message in (
        (OSError(errno.ENOSPC, "", "PART/a/b.csv"), "cannot write {}/a/b.csv: No space left .*run"),
        (OSError(errno.EDQUOT, ""), "cannot write {}: Disk quota exceeded; free some space"),
        (OSError(errno.EFBIG, "", "/its/source"), "cannot write {}: File too large; raise"),
        (OSError(errno.EROFS, ""), "cannot write {}: Read-only file system"),
        (OSError(errno.EACCES, "", "PART/a"), "cannot write {}/a: Permission denied"),
    ):
        with pytest.raises(DataError, match=message.format(tmp_path / "out")):
            fill(error)
    with pytest.raises(PermissionError):  # A source, which is read.
        fill(OSError(errno.EACCES, "", "/its/source"))
    assert below(tmp_path) == []


def test_creating_folder_explains_an_unwritable_location(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    message = r"^cannot write to the shelf \(.+\): go elsewhere$"
    with pytest.raises(DataError, match=message), creating_folder(out, "the shelf", "go elsewhere"):
        raise AssertionError("never filled")


def test_writing_file_keeps_the_old_file_after_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "file.csv"
    file.write_text("old")

    def write(error: Exception) -> None:
        with writing_file(file) as part:
            assert part.suffix == ".csv"
            part.write_text("half")
            raise error

    for error, message in (
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space or name another"),
        (OSError("9 of 10 bytes written"), "9 of 10 bytes written$"),
        (ValueError("no"), "no$"),
        (SafetensorError("I/O error: x (os error 28)"), "No space left on device; free some"),
    ):
        with pytest.raises(DataError, match=f"^cannot write {file}: {message}"):
            write(error)
        assert file.read_text() == "old"
    with pytest.raises(RuntimeError):
        write(RuntimeError("no failure to write"))
    write_text(file, "new")
    assert file.read_text() == "new"
    assert below(tmp_path) == ["file.csv"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "-", ".hidden", "a b.tar.gz"])
def test_writing_file_takes_every_name_of_a_file(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert below(tmp_path) == [name]


def test_writing_file_writes_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"
    (tmp_path / "loop").symlink_to("loop")
    with suppress(DataError):  # Not an endless loop.
        write_text(tmp_path / "loop", "x")
    with pytest.raises(DataError, match=r"cannot write .*: File name too long"):
        write_text(tmp_path / ("x" * 256), "x")
    with pytest.raises(DataError, match=r"cannot write .*: embedded null byte"):
        write_text(tmp_path / "a\0b", "x")
    for name in ("x" * 256, "a\0b", "loop/b"):
        with (
            pytest.raises(DataError, match=r"^cannot write "),
            creating_folder(check_output_folder(tmp_path / name, "x", tmp_path / "in"), "x", "y"),
        ):
            raise AssertionError("never filled")


# --- parts of killed processes ------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from twinlens.files import creating_folder, writing_file
place = Path(sys.argv[1])
with writing_file(place / "a.txt") as part, creating_folder(place / "b", "x", "y") as folder:
    part.write_text("half")
    (folder / "half").touch()
    print(flush=True)
    time.sleep(60)
"""


def test_parts_of_a_killed_process_are_swept_by_the_next(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        write_text(tmp_path / "c.txt", "x")
        assert len(below(tmp_path)) == 1 + 3 + 4  # Parts of a living process stay.
        process.kill()
    write_text(tmp_path / "c.txt", "x")
    assert below(tmp_path) == ["c.txt"]


def test_a_part_that_was_not_locked_yet_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed right after making it leaves it; one that lives makes it again."""
    acquire = FileLock.acquire

    def swept_before(lock: FileLock) -> object:
        sweep_parts(tmp_path)
        assert below(tmp_path) == []
        return acquire(lock)

    monkeypatch.setattr(FileLock, "acquire", swept_before)
    write_text(tmp_path / "a.txt", "x")
    assert below(tmp_path) == ["a.txt"]


def test_threads_write_into_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_text(tmp_path / f"{number}", "x"), range(300)))
    assert len(below(tmp_path)) == 300


def test_parts_of_another_machine_are_swept_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / ".a\nb.part-00000000-abcdefgh"
    (part / "whole" / "deep").mkdir(parents=True)
    (part / "lock").touch()
    sweep_parts(tmp_path)
    assert part.is_dir()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + DAY + 60)
    os.utime(part / "whole" / "deep", (now + DAY, now + DAY))
    sweep_parts(tmp_path)
    assert part.is_dir()  # It was written a minute ago.
    monkeypatch.setattr("time.time", lambda: now + 3 * DAY)
    sweep_parts(tmp_path)
    assert below(tmp_path) == []


def test_folders_of_the_user_are_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".my.part-1" / "photos").mkdir(parents=True)
    (tmp_path / "a.part-abcdefgh").mkdir()
    (tmp_path / "elsewhere" / "photos").mkdir(parents=True)
    (tmp_path / ".b.part-abcdefgh").symlink_to("elsewhere")
    (tmp_path / ".c.part-abcdefgh").touch()
    before = below(tmp_path)
    monkeypatch.setattr("time.time", lambda: 4e9)
    sweep_parts(tmp_path)
    assert below(tmp_path) == before
