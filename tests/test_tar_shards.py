"""Tar files, as WebDataset and as `tar` write them."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.data import tar_shards
from twinlens.data.folders import read_table
from twinlens.data.tar_shards import files_in_range
from twinlens.errors import DataError, PictureError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 12, 14, 3), dtype=np.uint8)


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "s-%02d.tar"), maxcount=2, verbose=0) as writer:
        for row in range(6):
            writer.write({"__key__": f"{row:03d}", "png": PIXELS[row], "cls": row // 2})
    shards = str(tmp_path / "s-{00..02}.tar")
    table = read_table(shards)
    assert table.path[:3].tolist() == ["s-00.tar/000.png", "s-00.tar/001.png", "s-01.tar/002.png"]
    assert table.source == shards
    stream = webdataset.WebDataset(shards, shardshuffle=False)
    for same in (table, read_table(stream), read_table(stream.decode("pil"))):
        assert same.identity.tolist() == ["0", "0", "1", "1", "2", "2"]
        for row in range(6):
            picture = same.picture(row)
            encoded = io.BytesIO(picture) if isinstance(picture, bytes) else None
            pixels = picture if encoded is None else np.asarray(Image.open(encoded))
            np.testing.assert_array_equal(pixels, PIXELS[row])
    del stream
    gc.collect()  # WebDataset leaves its files open, which is a warning.


def test_identities_of_json_and_of_folders(tmp_path: Path) -> None:
    label = json.dumps({"identity": "anna", "camera": 2, "box": [1, 2]}).encode()
    file = write_tar(tmp_path / "a.tar", {"0.jpg": png(0), "0.json": label, "notes.txt": b"x"})
    table = read_table(file)
    assert table.identity.tolist() == ["anna"]
    assert table.metadata is not None
    assert table.metadata[0] == {"camera": 2}
    members = {"./anna/1.png": png(0), "./anna/2.png": png(1), "./ben/1.png": png(2)}
    table = read_table(write_tar(tmp_path / "b.tar", members))
    assert table.identity.tolist() == ["anna", "anna", "ben"]
    np.testing.assert_array_equal(Image.open(io.BytesIO(table.picture(2))), PIXELS[2])  # type: ignore[arg-type]


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", {"x/1.png": png(0)})
    table = read_table(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(PictureError, match="truncated"):
        table.picture(0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b"x"}, "1 of the 1 pictures .* have no identity, such as a.tar/1.png"),
        ({"x/1.png": b"x", "2.png": b"x", "2.cls": b"y"}, "1 of the 2 .* such as a.tar/x/1.png"),
        ({"1.txt": b"x"}, "holds no pictures"),
        ({"1.png": b"x", "1.json": b"[1]"}, r"a.tar, 1: the .json of a sample must be an object"),
        ({"1.png": b"x", "1.json": b"{"}, r"a.tar, 1: the .json .* object, .* \(Expecting"),
        ({"1.png": b"x", "./1.png": b"y", "1.cls": b"z"}, "has two members 1.png: give each a"),
    ],
)
def test_tars_that_are_not_read(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write_tar(tmp_path / "a.tar", members))


def test_other_files(tmp_path: Path) -> None:
    packed = write_tar(tmp_path / "a.tar", {"x/1.png": png(0)}, "w:gz")
    with pytest.raises(DataError, match=r"needed is a complete, uncompressed \.tar"):
        read_table(packed)
    with pytest.raises(DataError, match=r"no such file: '.*b-1\.tar'"):
        read_table(str(tmp_path / "b-{1..2}.tar"))
    info = tarfile.TarInfo("x")
    info.size, info.type = 2**70, b"Q"
    packed.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"cannot read .*a\.tar: .* needed is a complete"):
        read_table(packed)
    with pytest.raises(DataError, match="names 1,000,001 files"):
        files_in_range("a-{0..1000000}.tar")
    with pytest.raises(DataError, match="names 1,000,000 files"):
        files_in_range("{0..999}-{0..999}.tar")
    assert files_in_range(name := "{0..99999999999999999999}.tar") == [name]


def test_members_are_listed_without_room_in_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = write_tar(tmp_path / "a.tar", {"x/1.png": png(0)})
    monkeypatch.setattr(tar_shards, "is_store", lambda _: True)
    assert len(read_table(packed)) == 1
    (listed,) = (own_cache / "tars").iterdir()
    listed.unlink()
    (own_cache / "tars").rmdir()
    (own_cache / "tars").touch()  # No folder can be made there.
    assert len(read_table(packed)) == 1
