"""The walk through a folder: each folder once, and every file left out is counted."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from twinlens.data import walk
from twinlens.data.folders import read_table, read_unlabelled
from twinlens.data.picture_file import picture_suffixes
from twinlens.data.walk import LeftOut, LeftOutPath, walk_pictures
from twinlens.errors import DataError

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_pictures_are_sorted_and_nothing_is_left_out(tmp_path):
    touch(tmp_path, "b/2.png", "b/1.JPG", "a/deep/er/x.webp")
    result = walk_pictures(tmp_path)
    assert result.pictures == ["a/deep/er/x.webp", "b/1.JPG", "b/2.png"]
    assert result.left_out == LeftOut()
    assert result.left_out.text() == ""


def test_every_file_left_out_is_counted_by_its_reason(tmp_path):
    unread = [".psd", ".CR2", ".nef", ".Dng", ".svg"]
    touch(tmp_path, "a/1.png", "a/._1.png", "a/.DS_Store", ".thumbnails/a/1.png", "a/b.txt")
    touch(tmp_path, "notes.txt", "a/Thumbs.db", "a/name", "a/film.mov", "a/paper.pdf")
    touch(tmp_path, *(f"a/p{i}{suffix}" for i, suffix in enumerate(unread)))
    left_out = walk_pictures(tmp_path).left_out
    assert left_out.pictures == {suffix.lower(): 1 for suffix in unread}
    assert left_out.others == {".txt": 2, "": 1, ".db": 1, ".mov": 1, ".pdf": 1}
    assert left_out.hidden == 3
    assert left_out.text() == (
        "5 pictures that are not read here, 3 hidden, 2 .txt, 1 without an ending, 1 .db, "
        "2 with other endings"
    )
    assert left_out.as_json()["others"] == left_out.others


@pytest.mark.parametrize(
    ("suffix", "remedy"),
    [(".heic", r"twinlens\[heif\]"), (".HEIF", r"twinlens\[heif\]"), (".jxl", r"twinlens\[heif\]"),
     (".cr3", "raw data of a camera"), (".svg", "convert"), (".psd", "TWINLENS_FORMATS")],
)  # fmt: skip
def test_pictures_of_other_formats_are_named_with_what_to_do(
    picture_folder, caplog, monkeypatch, suffix, remedy
):
    readable = picture_suffixes() - {".heic", ".heif", ".jxl"}
    monkeypatch.setattr(walk, "picture_suffixes", lambda: readable)
    monkeypatch.setattr("twinlens.data.picture_file.picture_suffixes", lambda: readable)
    folder = picture_folder({"a": 1, "b": 1})
    touch(folder, *(f"a/IMG_{i}{suffix}" for i in range(12)))
    for read in (read_table, read_unlabelled):
        caplog.clear()
        assert len(read(folder)) == 2
        [line] = caplog.messages
        assert line.startswith(f"12 pictures left out: 12 {suffix.lower()} (")
    touch(folder / "only", f"x/1{suffix}", f"y/2{suffix}")
    for read in (read_table, read_unlabelled):
        with pytest.raises(DataError, match=rf"found 2 {suffix.lower()} \(.*{remedy}") as caught:
            read(folder / "only")
        assert "class folders" not in str(caught.value)


SYSTEM = ["@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information",
          "__MACOSX", "lost+found", "@Recycle", "RECYCLER", "FOUND.000", "@tmp"]  # fmt: skip


def test_folders_of_systems_are_no_identities(picture_folder, caplog):
    folder = picture_folder({"a": 1, "b": 1})
    touch(folder, *(f"{name}/a/1.png" for name in SYSTEM), "a/@eaDir/0.png/THUMB_M.png")
    hidden = (".thumbnails", ".Trash-1000", ".picasaoriginals", ".@__thumb", ".git")
    touch(folder, *(f"a/{name}/1.png" for name in hidden))
    with caplog.at_level("INFO", logger="twinlens"):
        table = read_table(folder)
    assert table.identities() == ["a", "b"]
    left_out = table.left_out
    assert left_out.hidden == len(hidden)
    assert left_out.system_folders == {"@eaDir": 2, **dict.fromkeys(SYSTEM[1:], 1)}
    [line] = caplog.messages
    assert line.startswith("12 folders of the operating system left out: 2 @eaDir, 1 #recycle")


def test_names_that_only_resemble_those_of_systems_are_read(picture_folder):
    names = ["@eaDir2", "recycle", "@home", "found.1", "MACOSX"]
    assert read_table(picture_folder(dict.fromkeys(names, 1))).identities() == sorted(names)


def test_a_folder_of_a_system_is_read_if_it_is_the_data(picture_folder):
    assert len(read_table(picture_folder({"a": 1}, top="#recycle"))) == 1
    assert len(read_table(picture_folder({"a": 1}, top=".hidden"))) == 1


# --- links ----------------------------------------------------------------------------------------


@posix
def test_folders_that_all_link_to_each_other_are_read_once(picture_folder):
    names = [f"p{i}" for i in range(8)]
    folder = picture_folder(dict.fromkeys(names, 1))
    for name in names:
        for other in names:
            if other != name:
                (folder / name / other).symlink_to(folder / other)
    start = time.monotonic()
    table = read_table(folder)
    assert time.monotonic() - start < 2
    assert len(table) == 8
    assert len(table.left_out.repeated) == 56
    assert table.left_out.repeated[0] == LeftOutPath("p0/p1", "the same folder as p1")
    assert (
        "56 linked folders left out, read under another name: p0/p1" in (table.left_out.notes()[0])
    )


@posix
def test_a_folder_keeps_its_own_name_and_the_first_link_names_others(picture_folder, tmp_path):
    folder = picture_folder({"z": 1})
    picture_folder({"c": 1}, top="elsewhere")
    (folder / "a").symlink_to(folder / "z")
    for name in ("n", "m"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (folder / "z/up").symlink_to(folder)
    table = read_table(folder)
    assert table.identities() == ["m/c", "z"]
    assert table.left_out.repeated == (
        LeftOutPath("a", "the same folder as z"),
        LeftOutPath("n", "the same folder as m"),
        LeftOutPath("z/up", f"the same folder as {folder}"),
    )


@posix
def test_bad_links_pipes_and_sockets_are_skipped_with_a_reason(picture_folder, caplog, monkeypatch):
    folder = picture_folder({"a": 1, "b": 1})
    (folder / "a/me.jpg").symlink_to("me.jpg")
    (folder / "a/one").symlink_to("two")
    (folder / "a/two").symlink_to("one")
    (folder / "b/gone.png").symlink_to("nowhere")
    (folder / "b/null.png").symlink_to(os.devnull)
    os.mkfifo(folder / "b/pipe.jpg")
    monkeypatch.chdir(folder)  # Paths of sockets are short.
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("b/socket.png")
    (folder / "b/fine.png").symlink_to("0.png")
    table = read_table(folder)
    assert len(table) == 3
    reasons = {one.path: one.reason for one in table.left_out.skipped}
    assert set(reasons) == {"a/me.jpg", "a/one", "a/two", "b/gone.png", "b/null.png",
                            "b/pipe.jpg", "b/socket.png"}  # fmt: skip
    assert "symbolic links" in reasons["a/me.jpg"]
    assert reasons["b/gone.png"] == "a link that leads nowhere"
    assert reasons["b/pipe.jpg"] == "not a regular file"
    assert caplog.messages[0].startswith("7 files or folders left out: a/me.jpg (")
    assert caplog.messages[0].endswith("; ... 7 in all")


@posix
def test_a_folder_of_bad_links_says_so(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"no pictures: 1 file or folder left out: a/1.png \(a link"
    ):
        read_table(tmp_path)


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_skipped_below_the_top(picture_folder):
    folder = picture_folder({"a": 1, "b": 1, "c": 1})
    (folder / "b").chmod(0)
    try:
        left_out = read_table(folder).left_out
        assert left_out.skipped == (LeftOutPath("b", "no permission to read it"),)
        folder.chmod(0)
        with pytest.raises(DataError, match="cannot read"):
            read_table(folder)
    finally:
        folder.chmod(0o755)
        (folder / "b").chmod(0o755)


def test_permission_errors_below_the_top_are_skipped(picture_folder, monkeypatch):
    folder = picture_folder({"a": 1, "b": 1})
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == refused:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = "b"
    assert read_table(folder).left_out.skipped == (LeftOutPath("b", "no permission to read it"),)
    refused = folder.name
    with pytest.raises(DataError, match=r"cannot read the folder .*: Permission denied"):
        read_table(folder)


def test_the_depth_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "MAX_DEPTH", 3)
    touch(tmp_path, "a/b/c/1.png", "a/b/c/d/2.png")
    result = walk_pictures(tmp_path)
    assert result.pictures == ["a/b/c/1.png"]
    assert result.left_out.skipped == (LeftOutPath("a/b/c/d", "more than 3 folders deep"),)


def test_what_is_left_out_is_no_part_of_the_fingerprint(picture_folder):
    folder = picture_folder({"a": 1, "b": 1})
    before = read_table(folder).fingerprint()
    touch(folder, "a/x.cr2", "@eaDir/1.png", "notes.txt")
    table = read_table(folder)
    assert table.fingerprint() == before
    assert table.of_split("").left_out == table.left_out
