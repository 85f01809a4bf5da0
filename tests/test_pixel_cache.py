"""Decoding a table: equal pixels in memory and in a file, no broken rows, no incomplete files."""

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

from twinlens.commands.prepare import choose_run_settings
from twinlens.commands.training_table import choice_line
from twinlens.config import PictureSettings
from twinlens.data import pixels
from twinlens.data.decode import read_array
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import PixelStream, decode_table
from twinlens.data.pixels import BrokenPicture, DecodedTable
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.recipes import load_recipe

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
def test_rows_equal_a_copy(folder: Path, tmp_path: Path, memory_limit: int) -> None:
    decoded = decode(
        table_of(sorted(folder.iterdir()), folder), tmp_path, memory_limit=memory_limit
    )
    row = np.array([1, 2, 5, 9])
    rows, copy = decoded.rows(row), decoded.pixels[row]
    assert np.shares_memory(rows.pixels, decoded.pixels)
    assert len(rows) == 4
    np.testing.assert_array_equal(list(rows), copy)
    for place in (2, -1, np.int64(3), slice(1, 3), slice(3, 9), np.array([3, 0, 3]), row < 5):
        np.testing.assert_array_equal(rows[place], copy[place])
        assert type(rows[place]) is np.ndarray
    with pytest.raises(IndexError):
        rows[4]


def test_the_limit_is_in_bytes(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    need = 12 * BYTES_EACH
    assert not isinstance(decode(table, tmp_path / "c", memory_limit=need).pixels, np.memmap)
    assert isinstance(decode(table, tmp_path / "c", memory_limit=need - 1).pixels, np.memmap)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_small_blocks_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int
) -> None:
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 1)
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


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_stream_yields_the_pixels_of_decode_table(
    folder: Path, tmp_path: Path, size: int
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    whole = decode(table, tmp_path / "cache")
    stream = PixelStream(
        table, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path / "cache"
    )
    batches = list(stream.batches(size))
    assert [len(batch) for _, batch in batches[:-1]] == [size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in batches]), whole.pixels)
    seen = [rows for rows, _ in batches]
    assert seen == sorted(seen)
    assert seen[-1] == 12
    assert stream.broken == whole.broken
    assert list(stream.table.path) == list(whole.table.path)
    assert not (tmp_path / "cache").exists()


def test_a_stream_reads_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    whole = decode(table, tmp_path / "cache", memory_limit=0)
    forbid_decoding(monkeypatch)
    stream = PixelStream(
        table, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path / "cache"
    )
    batches = list(stream.batches(4))
    assert [rows for rows, _ in batches] == [4, 8, 10]
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in batches]), whole.pixels)
    assert stream.broken == whole.broken


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_stream_decodes_ahead_and_no_more_than_a_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefetch: bool
) -> None:
    """While the caller works on a batch, the next ones are decoded if `prefetch`, or none."""
    started: list[str] = []

    def recorded(path: str, spec: PictureSettings, *, max_pixels: int) -> tuple[np.ndarray, int]:
        started.append(path)
        return np.zeros((3, 8, 6), np.uint8), 48

    monkeypatch.setattr(pixels, "read_sized", recorded)
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 1)  # Which makes blocks of 8.
    many = table_of([folder / f"{i}.png" for i in range(40)], folder)
    stream = PixelStream(many, SPEC, max_pixels=LIMIT, max_broken=0.2, cache_dir=tmp_path)
    batches = stream.batches(2, prefetch=prefetch)
    next(batches)
    # One more is decoded for the first of the two that were taken.
    until, most = time.monotonic() + 30, 9 if prefetch else 8
    while len(started) < most and time.monotonic() < until:
        time.sleep(0.01)
    assert len(started) == most
    for _ in range(3):
        next(batches)
    if not prefetch:
        assert len(started) == most
        next(batches)
        assert len(started) == 2 * most
    batches.close()


def test_a_stream_counts_broken_pictures_at_its_end(folder: Path, tmp_path: Path) -> None:
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

    monkeypatch.setattr(pixels, "read_sized", refuse)


def test_the_file_is_reused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(DataError, match=r"data\.max_broken"):  # By the share of this call.
        decode(table, tmp_path / "cache", memory_limit=0, max_broken=0.1)


def test_the_file_depends_on_files_and_settings(folder: Path, tmp_path: Path) -> None:
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
    # A repaired picture is used at once.
    Image.new("RGB", (9, 9), "red").save(folder / "03.png")
    decoded = decode(table, home, memory_limit=0)
    assert [Path(broken.path).name for broken in decoded.broken] == ["07.png"]
    red = decoded.pixels[list(decoded.table.path).index(str(folder / "03.png"))]
    np.testing.assert_array_equal(red[:, 0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    "damage",
    ["cut pixels", "no sidecar", "cut sidecar", "wrong sidecar", "deep sidecar", "no such row"],
)
def test_a_damaged_file_is_rewritten(folder: Path, tmp_path: Path, damage: str) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    decode(table, tmp_path / "cache", memory_limit=0)
    file = next((tmp_path / "cache").glob("*.npy"))
    sidecar = file.with_suffix(".json")
    if damage == "cut pixels":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "cut sidecar":
        sidecar.write_text(sidecar.read_text()[:-3])
    elif damage == "deep sidecar":
        sidecar.write_text("[" * 100_000)
    elif damage == "no such row":
        sidecar.write_text(json.dumps({"format": 1, "broken": [[99, "x"], [-1, "y"]]}))
    else:
        sidecar.write_text(json.dumps({"format": 1, "broken": []}))
    check(decode(table, tmp_path / "cache", memory_limit=0), table)


def test_an_interrupted_run_leaves_no_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(sorted(folder.iterdir()), folder)

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(table, tmp_path / "cache", memory_limit=0, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []
    # What `kill -9` left is swept, and not while another machine may be writing it.
    old, young = (tmp_path / "cache" / f".{name}.part-00000000-abcdefgh" for name in "ab")
    old.mkdir()
    young.mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    check(decode(table, tmp_path / "cache", memory_limit=0), table)
    assert not old.exists()
    assert young.exists()


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        check(decode(table, tmp_path / "small", memory_limit=0), table)
    assert not list((tmp_path / "small").rglob("*.npy"))

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        decode(table, tmp_path / "cache", memory_limit=0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_below_a_file(folder: Path, tmp_path: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot keep 12 decoded pictures"):
        decode(table, tmp_path / "file" / "cache", memory_limit=0)


def test_the_default_folder(folder: Path, own_cache: Path) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    decode(table, None, memory_limit=0)
    assert len(list((own_cache / "pixels").glob("*.npy"))) == 1


# --- 16-bit pictures ----------------------------------------------------------------------------


@pytest.fixture
def deep_folder(tmp_path: Path) -> Path:
    """Two identities: seven pictures of 12 bits, one of them dark, and one of 8 bits."""
    for i in range(8):
        home = tmp_path / "deep" / f"id{i % 2}"
        home.mkdir(parents=True, exist_ok=True)
        values = np.linspace(0, 4095 if i else 1000, 48).astype(np.uint16).reshape(8, 6)
        Image.fromarray(values if i < 7 else (values >> 4).astype(np.uint8)).save(home / f"{i}.png")
    return tmp_path / "deep"


def test_depths_of_a_table(deep_folder: Path) -> None:
    table = read_table(deep_folder)
    assert pixels.table_depths(table, max_pixels=LIMIT) == {10: 1, 12: 6}
    assert pixels.table_depths(array_table(np.zeros((2, 4, 4), np.uint8)), max_pixels=LIMIT) == {}


def test_training_takes_the_bits_of_the_data_set(deep_folder: Path) -> None:
    table = read_table(deep_folder).with_split(np.array(["train"] * 8, dtype=object))
    settings, choices = choose_run_settings(load_recipe("auto"), table)
    assert settings.picture.depth == 12
    line = next(choice_line(choice) for choice in choices if choice.key == "picture.depth")
    assert line == (
        "  picture.depth = 12: the bits that 7 16-bit pictures of 8 pictures use, 1 of them fewer"
    )
    spec = SPEC.model_copy(update={"depth": 12, "color": "grey"})
    got = decode_table(table, spec, max_pixels=LIMIT, max_broken=0).pixels
    row = {Path(path).name: i for i, path in enumerate(table.path)}
    np.testing.assert_array_equal(got[row["1.png"]], got[row["7.png"]])
    assert got[row["0.png"]].max() == 1000 >> 4
    given, _ = choose_run_settings(load_recipe("auto", {"picture.depth": 16}), table)
    assert given.picture.depth == 16


# --- too many broken ones -----------------------------------------------------------------------


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_too_many_broken(folder: Path, tmp_path: Path, memory_limit: int) -> None:
    table = table_of(sorted(folder.iterdir()), folder)
    # 2 of 12 are 16.7 %: exactly that share is still allowed.
    decode(table, tmp_path / "cache", max_broken=2 / 12, memory_limit=memory_limit)
    with pytest.raises(DataError) as caught:
        decode(table, tmp_path / "cache", max_broken=0.16, memory_limit=memory_limit)
    message = str(caught.value)
    for part in ("2 of 12 pictures", "16.7 %", "16.0 %", "data.max_broken", "an empty file"):
        assert part in message
    assert str(folder / "03.png") in message
    assert str(folder / "07.png") in message
    assert not list((tmp_path / "cache").glob(".*")) if memory_limit == 0 else True


def test_only_five_are_named(folder: Path, tmp_path: Path) -> None:
    for i in range(8):
        (folder / f"{i:02d}.png").write_bytes(b"")
    table = table_of(sorted(folder.iterdir()), folder)
    with pytest.raises(DataError, match="8 of 12") as caught:
        decode(table, tmp_path / "cache")
    assert "04.png" in str(caught.value)
    assert "05.png" not in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_all_broken_is_an_error_even_if_all_may_be(folder: Path, tmp_path: Path) -> None:
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


def test_grey_arrays_of_the_right_size_are_copied_unchanged(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 6), dtype=np.uint8)
    spec = PictureSettings(size=(8, 6), color="grey")
    decoded = decode_table(array_table(grey), spec, max_pixels=1, max_broken=0)
    np.testing.assert_array_equal(decoded.pixels, grey[:, None])
    assert decoded.pixels.flags.writeable
