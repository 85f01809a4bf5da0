from __future__ import annotations

import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from twinlens.data.download import cache_folder, create_once, download_once, unpack_once
from twinlens.errors import DataError


def zip_of(file, content):
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return file


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_cache_is_named_by_the_environment(own_cache, monkeypatch):
    assert cache_folder() == own_cache
    monkeypatch.delenv("TWINLENS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "twinlens"


def test_a_folder_is_filled_once(tmp_path):
    calls = []

    def fill(folder):
        calls.append(folder)
        (folder / "file").write_text("x")

    for _ in range(2):
        assert create_once(tmp_path / "new/target", fill) == tmp_path / "new/target"
    assert len(calls) == 1
    assert below(tmp_path / "new") == ["target", "target/file"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "file").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_once(tmp_path / "new/target", fill)
    assert below(tmp_path / "new") == []


def test_a_killed_process_leaves_no_incomplete_folder(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from twinlens.data.download import create_once\n"
        "def fill(folder): (folder / 'half').write_text('x'); os.kill(os.getpid(), 9)\n"
        "create_once(Path(sys.argv[1]), fill)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "target"], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "target").exists()
    create_once(tmp_path / "target", lambda folder: (folder / "file").touch())
    assert below(tmp_path / "target") == ["file"]


def test_another_process_may_create_the_folder_first(tmp_path):
    target = tmp_path / "target"

    def fill(folder):
        (folder / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    assert below(create_once(target, fill)) == ["theirs"]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to the cache .*TWINLENS_CACHE"):
        create_once(tmp_path / "file/target", lambda folder: None)


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("bad"), TimeoutError()])
def test_a_failed_download_is_one_line_and_is_tried_again(error, own_cache):
    before = socket.getdefaulttimeout()

    def fail(folder):
        assert socket.getdefaulttimeout() is not None
        (folder / "half").touch()
        raise error

    with pytest.raises(DataError, match=r"^cannot download x from http://a or http://b \(.+\): y$"):
        download_once("x", ["http://a", "http://b"], fail, "y")
    assert socket.getdefaulttimeout() == before
    assert below(own_cache / "downloads") == []
    assert download_once("x", [], lambda folder: None, "y") == own_cache / "downloads/x"


def test_zips_are_unpacked_together_into_the_cache_once_for_each_content(tmp_path, own_cache):
    one = zip_of(tmp_path / "one.zip", {"one/a.txt": "1"})
    two = zip_of(tmp_path / "two.zip", {"two/b.txt": "2"})
    folder = unpack_once([two, one], "name")
    assert below(folder) == ["one", "one/a.txt", "two", "two/b.txt"]
    assert folder.parent == own_cache / "unpacked"
    assert unpack_once([one, two], "name") == folder
    assert below(tmp_path / "own-cache/unpacked") == [folder.name, *(
        f"{folder.name}/{name}" for name in below(folder)
    )]  # fmt: skip
    zip_of(one, {"one/a.txt": "changed"})
    assert unpack_once([one, two], "name") != folder


def test_zips_cannot_write_outside_of_the_cache(tmp_path):
    archive = zip_of(tmp_path / "bad.zip", {"../../escaped.txt": "x"})
    folder = unpack_once([archive], "name")
    assert below(folder) == ["escaped.txt"]


def test_damaged_and_missing_zips_are_named(tmp_path, own_cache):
    damaged = zip_of(tmp_path / "bad.zip", {"a.txt": "text" * 1000})
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"bad\.zip is not a complete zip file"):
        unpack_once([damaged], "name")
    assert below(own_cache / "unpacked") == []
    with pytest.raises(DataError, match=r"cannot read .*gone\.zip"):
        unpack_once([tmp_path / "gone.zip"], "name")
