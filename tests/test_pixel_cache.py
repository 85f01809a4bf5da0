"""cache: the same pixels in memory and in a file, broken rows dropped, nothing half left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.config import PictureSettings
from twinlens.data import pixel_cache as cache
from twinlens.data.decode import read_array
from twinlens.data.pixel_cache import BrokenPicture, DecodedTable, PixelStream, decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError

LIMIT = 1_000_000
SPEC = PictureSettings(size=(8, 6), color="rgb")
BYTES_EACH = 3 * 8 * 6


def table_of(paths: list[Path], root: Path) -> ImageTable:
    num = len(paths)
    return ImageTable(
        path=np.array([str(path) for path in paths], dtype=object),
        identity=np.array([f"id{i % 3}" for i in range(num)], dtype=object),
        forged=np.zeros(num, dtype=bool),
        split=np.full(num, "", dtype=object),
        source="pictures",
        root=root,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of different sizes; numbers 3 and 7 are broken."""
    root = tmp_path / "pictures"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        array = rng.integers(0, 256, (9 + i, 7 + 2 * i, 3), dtype=np.uint8)
        Image.fromarray(array).save(root / f"{i:02d}.png")
    (root / "03.png").write_bytes(b"")
    (root / "07.png").write_bytes((root / "07.png").read_bytes()[:60])
    return root


def decode(table: ImageTable, cache_dir: Path | None, **options: object) -> DecodedTable:
    options = {"max_pixels": LIMIT, "max_broken": 0.2, "cache_dir": cache_dir, **options}
    return decode_table(table, SPEC, **options)


def check(decoded: DecodedTable, table: ImageTable) -> None:
    """Against a plain loop over the files."""
    good = [row for row in range(len(table)) if row not in (3, 7)]
    assert list(decoded.table.path) == [table.path[row] for row in good]
    assert list(decoded.table.identity) == [table.identity[row] for row in good]
    assert decoded.pixels.dtype == np.uint8
    for place, row in enumerate(good):
        want = read_array(str(table.path[row]), SPEC, max_pixels=LIMIT)
        np.testing.assert_array_equal(decoded.pixels[place], want)
    assert len(decoded.pixels) == len(good)
    assert [Path(broken.path).name for broken in decoded.broken] == ["03.png", "07.png"]
    assert decoded.broken[0] == BrokenPicture(str(table.path[3]), "an empty file")
    assert decoded.broken[1].reason


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_pixels_are_those_of_a_plain_loop(folder: Path, tmp_path: Path, memory_limit: int) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    decoded = decode(table, tmp_path / "cache", memory_limit=memory_limit)
    check(decoded, table)
    assert (tmp_path / "cache").exists() == (memory_limit == 0)
    assert isinstance(decoded.pixels, np.memmap) == (memory_limit == 0)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_some_rows_are_what_a_copy_would_be(
    folder: Path, tmp_path: Path, memory_limit: int
) -> None:
    decoded = decode(
        table_of(sorted(folder.iterdir()), folder), tmp_path, memory_limit=memory_limit
    )
    row = np.array([1, 2, 5, 9])
    found, copy = decoded.rows(row), decoded.pixels[row]
    assert np.shares_memory(found.pixels, decoded.pixels)
    assert len(found) == 4
    np.testing.assert_array_equal(list(found), copy)
    for place in (2, -1, np.int64(3), slice(1, 3), slice(3, 9), np.array([3, 0, 3]), row < 5):
        np.testing.assert_array_equal(found[place], copy[place])
        assert type(found[place]) is np.ndarray
    with pytest.raises(IndexError):
        found[4]


def test_the_limit_is_in_bytes(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    need = 12 * BYTES_EACH
    assert not isinstance(decode(table, tmp_path / "c", memory_limit=need).pixels, np.memmap)
    assert isinstance(decode(table, tmp_path / "c", memory_limit=need - 1).pixels, np.memmap)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_small_blocks_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int
) -> None:
    monkeypatch.setattr(cache, "BLOCK_BYTES", 1)
    table = table_of(sorted(folder.iterdir()), folder)
    check(decode(table, tmp_path / "cache", memory_limit=memory_limit), table)


def test_progress_counts_every_picture(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    table = table_of(sorted(folder.iterdir()), folder)
    decode(table, tmp_path / "cache", progress=progress)
    assert calls == [(i, 12) for i in range(1, 13)]
    decode(table, tmp_path / "cache", memory_limit=0)
    calls.clear()
    decode(table, tmp_path / "cache", memory_limit=0, progress=progress)
    assert calls == [(12, 12)]


# --- a few at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_stream_gives_what_the_table_decodes_to(folder: Path, tmp_path: Path, size: int) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    whole = decode(table, tmp_path / "cache")
    stream = PixelStream(
        table, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path / "cache"
    )
    found = list(stream.batches(size))
    assert [len(batch) for _, batch in found[:-1]] == [size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in found]), whole.pixels)
    seen = [rows for rows, _ in found]
    assert seen == sorted(seen)
    assert seen[-1] == 12
    assert stream.broken == whole.broken
    assert list(stream.table.path) == list(whole.table.path)
    assert not (tmp_path / "cache").exists()


def test_a_stream_takes_what_lies_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    whole = decode(table, tmp_path / "cache", memory_limit=0)
    forbid_decoding(monkeypatch)
    stream = PixelStream(
        table, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path / "cache"
    )
    found = list(stream.batches(4))
    assert [rows for rows, _ in found] == [4, 8, 10]
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in found]), whole.pixels)
    assert stream.broken == whole.broken


@pytest.mark.parametrize("meanwhile", [True, False])
def test_a_stream_decodes_ahead_and_no_more_than_a_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    """While a batch is looked at the next ones are decoded, or nothing is."""
    begun: list[str] = []

    def noted(path: str, spec: PictureSettings, *, max_pixels: int) -> np.ndarray:
        begun.append(path)
        return np.zeros((3, 8, 6), np.uint8)

    monkeypatch.setattr(cache, "read_array", noted)
    monkeypatch.setattr(cache, "BLOCK_BYTES", 1)  # Which makes blocks of 8.
    many = table_of([folder / f"{i}.png" for i in range(40)], folder)
    stream = PixelStream(many, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path)
    batches = stream.batches(2, meanwhile=meanwhile)
    next(batches)
    # One of the two that were taken has made room for another by now.
    until, most = time.monotonic() + 30, 9 if meanwhile else 8
    while len(begun) < most and time.monotonic() < until:
        time.sleep(0.01)
    assert len(begun) == most
    for _ in range(3):
        next(batches)
    if not meanwhile:
        assert len(begun) == most
        next(batches)
        assert len(begun) == 2 * most
    batches.close()


def test_a_stream_judges_at_its_end(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    stream = PixelStream(table, SPEC, max_pixels=LIMIT, max_broken=0.1, cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"data\.max_broken"):
        list(stream.batches(5))
    with pytest.raises(DataError, match="nothing to decode"):
        PixelStream(table.select([]), SPEC, max_pixels=LIMIT, max_broken=0.1)


# --- the file -----------------------------------------------------------------------------------


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "read_array", refuse)


def test_the_file_is_found_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    first = decode(table, tmp_path / "cache", memory_limit=0)
    names = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert names == [".json", ".npy"]
    with pytest.raises(ValueError, match="read-only"):
        first.pixels[0] = 0
    forbid_decoding(monkeypatch)
    second = decode(table, tmp_path / "cache", memory_limit=0)
    np.testing.assert_array_equal(second.pixels, first.pixels)
    assert second.broken == first.broken
    assert list(second.table.path) == list(first.table.path)
    with pytest.raises(DataError, match=r"data\.max_broken"):  # Judged by today's share.
        decode(table, tmp_path / "cache", memory_limit=0, max_broken=0.1)


def test_what_the_file_depends_on(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    home = tmp_path / "cache"

    def num_files(table: ImageTable, spec: PictureSettings) -> int:
        decode_table(table, spec, max_pixels=LIMIT, max_broken=0.2, cache_dir=home, memory_limit=0)
        return len(list(home.glob("*.npy")))

    assert num_files(table, SPEC) == 1
    assert num_files(table, SPEC.model_copy(update={"mean": (0.1,)})) == 1
    assert num_files(table, SPEC.model_copy(update={"fit": "pad"})) == 2
    assert num_files(table, SPEC.model_copy(update={"size": (6, 8)})) == 3
    assert num_files(table, SPEC.model_copy(update={"color": "grey"})) == 4
    os.utime(folder / "05.png", ns=(1, 1))
    assert num_files(table, SPEC) == 5
    Image.new("RGB", (90, 90), "red").save(folder / "05.png")
    assert num_files(table, SPEC) == 6
    assert num_files(table.select(np.arange(len(table)) != 1), SPEC) == 7
    # Repaired, it counts at once.
    Image.new("RGB", (9, 9), "red").save(folder / "03.png")
    decoded = decode(table, home, memory_limit=0)
    assert [Path(broken.path).name for broken in decoded.broken] == ["07.png"]
    red = decoded.pixels[list(decoded.table.path).index(str(folder / "03.png"))]
    np.testing.assert_array_equal(red[:, 0, 0], [255, 0, 0])


@pytest.mark.parametrize("damage", ["cut pixels", "no sidecar", "cut sidecar", "wrong sidecar"])
def test_a_damaged_file_is_written_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    decode(table, tmp_path / "cache", memory_limit=0)
    pixels = next((tmp_path / "cache").glob("*.npy"))
    sidecar = pixels.with_suffix(".json")
    if damage == "cut pixels":
        pixels.write_bytes(pixels.read_bytes()[:-5])
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "cut sidecar":
        sidecar.write_text(sidecar.read_text()[:-3])
    else:
        sidecar.write_text(json.dumps({"format": 1, "broken": []}))
    check(decode(table, tmp_path / "cache", memory_limit=0), table)


def test_a_killed_run_leaves_nothing_that_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(table, tmp_path / "cache", memory_limit=0, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []
    # What even `kill -9` leaves is removed a day later, and not while it is being written.
    old, young = tmp_path / "cache" / "a.part", tmp_path / "cache" / "b.part"
    old.touch()
    young.touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    check(decode(table, tmp_path / "cache", memory_limit=0), table)
    assert not old.exists()
    assert young.exists()


def test_a_disk_without_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match=r"0\.0 MiB are needed") as caught:
        decode(table, tmp_path / "cache", memory_limit=0)
    assert str(tmp_path / "cache") in str(caught.value)
    monkeypatch.undo()

    def full(self: object, picture: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache._File, "add", full)
    with pytest.raises(DataError, match="No space left on device"):
        decode(table, tmp_path / "cache", memory_limit=0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_one(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot keep 12 decoded pictures"):
        decode(table, tmp_path / "file" / "cache", memory_limit=0)


def test_the_default_folder(folder: Path, own_cache: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    decode(table, None, memory_limit=0)
    assert len(list((own_cache / "pixels").glob("*.npy"))) == 1


# --- too many broken ones -----------------------------------------------------------------------


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_too_many_broken(folder: Path, tmp_path: Path, memory_limit: int) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    # 2 of 12 are 16.7 %: exactly that share is still allowed.
    decode(table, tmp_path / "cache", max_broken=2 / 12, memory_limit=memory_limit)
    with pytest.raises(DataError) as caught:
        decode(table, tmp_path / "cache", max_broken=0.16, memory_limit=memory_limit)
    message = str(caught.value)
    for part in ("2 of 12 pictures", "16.7%", "16.0%", "data.max_broken", "an empty file"):
        assert part in message
    assert str(folder / "03.png") in message
    assert str(folder / "07.png") in message
    assert not list((tmp_path / "cache").glob("*.part")) if memory_limit == 0 else True


def test_only_five_are_named(folder: Path, tmp_path: Path) -> None:
    for i in range(8):
        (folder / f"{i:02d}.png").write_bytes(b"")
    table = table_of(sorted(folder.iterdir()), folder)
    with pytest.raises(DataError, match="8 of 12") as caught:
        decode(table, tmp_path / "cache")
    assert "04.png" in str(caught.value)
    assert "05.png" not in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_all_broken_even_where_all_may_be(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    table = table_of(sorted(folder.iterdir()), folder)
    with pytest.raises(DataError, match="none of the 12 pictures of pictures can be read"):
        decode(table, tmp_path / "cache", max_broken=1.0)


def test_an_empty_table(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder).select(np.zeros(12, dtype=bool))
    with pytest.raises(DataError, match="holds no pictures"):
        decode(table, tmp_path / "cache")


# --- array-backed sets --------------------------------------------------------------------------


def array_table(pixels: np.ndarray) -> ImageTable:
    num = len(pixels)
    return ImageTable(
        path=np.array([f"digits/{i:05d}" for i in range(num)], dtype=object),
        identity=np.array([str(i % 2) for i in range(num)], dtype=object),
        forged=np.zeros(num, dtype=bool),
        split=np.full(num, "", dtype=object),
        source="digits",
        root=None,
        pixels=pixels,
    )


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_arrays_need_no_files(tmp_path: Path, memory_limit: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    decoded = decode(array_table(pixels), tmp_path / "cache", memory_limit=memory_limit)
    np.testing.assert_array_equal(decoded.pixels, pixels.transpose(0, 3, 1, 2))
    assert decoded.broken == ()
    changed = array_table(255 - pixels)
    again = decode(changed, tmp_path / "cache", memory_limit=memory_limit)
    np.testing.assert_array_equal(again.pixels, 255 - pixels.transpose(0, 3, 1, 2))


def test_arrays_are_resized_and_coloured(tmp_path: Path) -> None:
    grey = np.zeros((3, 16, 12), dtype=np.uint8)
    grey[1] = 100
    decoded = decode(array_table(grey), tmp_path / "cache")
    assert decoded.pixels.shape == (3, 3, 8, 6)
    np.testing.assert_array_equal(decoded.pixels[1], 100)
    np.testing.assert_array_equal(decoded.pixels[2], 0)


def test_grey_arrays_of_the_right_size_are_taken_as_they_are(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 6), dtype=np.uint8)
    spec = PictureSettings(size=(8, 6), color="grey")
    decoded = decode_table(array_table(grey), spec, max_pixels=1, max_broken=0)
    np.testing.assert_array_equal(decoded.pixels, grey[:, None])
    assert decoded.pixels.flags.writeable
