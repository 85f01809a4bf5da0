"""Decoded pictures in shards: equal to a plain loop, within the room, resumed, and in windows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinlens.config import PictureSettings, SamplerSettings
from twinlens.data import pixel_cache, pixel_shards
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixel_shards import PixelShards
from twinlens.data.pixels import DecodedTable, DecodeJob
from twinlens.data.samplers import WindowSampler, make_sampler
from twinlens.errors import ConfigError, DataError

SPEC = PictureSettings(size=(8, 6), color="rgb")
BYTES = 3 * 8 * 6
NUM = 23


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """23 pictures in shards of 4; two of them are broken."""
    monkeypatch.setattr(pixel_shards, "SHARD_BYTES", 4 * BYTES)
    rng = np.random.default_rng(0)
    for number in range(NUM):
        file = tmp_path / "pictures" / f"id{number % 4}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(file)
    for number in (5, 22):
        (tmp_path / "pictures" / f"id{number % 4}" / f"{number:02d}.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def decode(folder: Path, kept: int, held: int = 8, **options: Any) -> DecodedTable:
    """With room for some pictures in the cache and in memory."""
    return decode_table(
        read_table(folder), SPEC, max_pixels=10**6, max_broken=0.2, cache_dir=folder / "../cache",
        memory_limit=held * BYTES, limit=kept * BYTES, **options,
    )  # fmt: skip


@pytest.fixture
def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows that were decoded."""
    rows = list[int]()
    results = DecodeJob.results

    def count(job: DecodeJob, part: range, *, prefetch: bool = True) -> Any:
        rows.extend(part)
        return results(job, part, prefetch=prefetch)

    monkeypatch.setattr(DecodeJob, "results", count)
    return rows


@pytest.mark.parametrize("kept", [0, 12])
def test_shards_equal_an_array(folder: Path, kept: int) -> None:
    whole, shards = decode(folder, 0, held=NUM), decode(folder, kept)
    assert isinstance(shards.pixels, PixelShards)
    assert isinstance(whole.pixels, np.ndarray)
    assert (shards.table.path == whole.table.path).all()
    assert shards.broken == whole.broken
    assert len(shards.broken) == 2
    assert shards.pixels.shape == whole.pixels.shape
    some = np.array([20, 3, 3, -1, 0])
    for index in (0, -1, np.int64(7), slice(None), slice(3, 17, 2), slice(9, 2, -1), some,
                  np.array([], int), some > 2):  # fmt: skip
        place = np.resize(index, len(whole.pixels)) if np.asarray(index).dtype == bool else index
        np.testing.assert_array_equal(shards.pixels[place], whole.pixels[place])
    with pytest.raises(IndexError):
        shards.pixels[len(whole.pixels)]


def test_kept_shards_are_not_decoded_again(folder: Path, decoded_rows: list[int]) -> None:
    pixels = decode(folder, 12).pixels
    assert decoded_rows == list(range(NUM))
    files = list((folder / "../cache").rglob("*.npy"))
    assert 0 < sum(np.load(file).nbytes for file in files) <= 12 * BYTES
    decoded_rows.clear()
    pixels[:]
    assert 0 < len(decoded_rows) <= NUM - 8
    decoded_rows.clear()
    decode(folder, 12)
    assert decoded_rows == []


def test_what_is_read_ahead_is_not_decoded_again(folder: Path, decoded_rows: list[int]) -> None:
    pixels = decode(folder, 0, held=12).pixels
    assert isinstance(pixels, PixelShards)
    decoded_rows.clear()
    pixels.read_ahead([1, 3, 99])
    until = time.monotonic() + 30
    while len(decoded_rows) < 8 and time.monotonic() < until:
        time.sleep(0.01)
    pixels[pixels.first[[3, 1]]]
    assert decoded_rows == [*range(4, 8), *range(12, 16)]


def test_shards_of_a_time_with_less_room_are_replaced(folder: Path) -> None:
    assert isinstance(decode(folder, 12).pixels, PixelShards)
    assert not isinstance(decode(folder, NUM).pixels, PixelShards)
    assert sorted(entry.suffix for entry in (folder / "../cache").iterdir()) == [".json", ".npy"]


def test_a_stopped_first_pass_goes_on(folder: Path, decoded_rows: list[int]) -> None:
    def stop(done: int, total: int) -> None:
        if done > NUM // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(folder, 12, progress=stop)
    before = len(decoded_rows)
    decode(folder, 12)
    assert before < NUM
    assert decoded_rows == list(range(NUM))


def test_a_damaged_shard_is_decoded_again(folder: Path) -> None:
    whole = decode(folder, 0, held=NUM).pixels
    decode(folder, 12)
    for file in (folder / "../cache").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-9])
    pixels = decode(folder, 12).pixels
    np.testing.assert_array_equal(pixels[:], whole)


def test_pictures_that_change_are_an_error(folder: Path) -> None:
    pixels = decode(folder, 0).pixels
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="have changed"):
        pixels[:]


def test_sets_used_longest_ago_make_room(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    files = list[set[Path]]()
    for name in "abc":
        copy = tmp_path / name / "pictures"
        shutil.copytree(folder, copy)
        (tmp_path / name / "cache").symlink_to(tmp_path / "cache")
        assert not isinstance(decode(copy, 60).pixels, PixelShards)
        files.append(set((tmp_path / "cache").glob("*.npy")))
    assert [len(names) for names in files] == [1, 2, 2]
    assert files[1] & files[2] == files[1] - files[0]


@pytest.mark.parametrize("kept", [60, 12])
def test_a_set_that_was_read_last_stays(folder: Path, tmp_path: Path, kept: int) -> None:
    """A file and its sidecar are one set, and so are shards."""
    cache = tmp_path / "cache"
    copies = [shutil.copytree(folder, tmp_path / name / "pictures") for name in "abc"]
    jobs = [DecodeJob(read_table(copy), SPEC, 10**6, 0.2) for copy in copies]
    sets = [pixel_cache._cache_file(job, cache).stem for job in jobs]

    def use(number: int, limit: int) -> None:
        time.sleep(0.02)  # The times of files have a resolution.
        if limit < NUM and (cache / sets[number]).exists():
            PixelShards(jobs[number], cache / sets[number], limit * BYTES, 8 * BYTES)
            return
        decode_table(
            jobs[number].table, SPEC, max_pixels=10**6, max_broken=0.2, cache_dir=cache,
            memory_limit=8 * BYTES, limit=limit * BYTES,
        )  # fmt: skip

    for number, limit in ((0, kept), (1, 60), (0, kept), (2, 52)):
        use(number, limit)
    assert {entry.name for entry in cache.iterdir()} == {
        *([f"{sets[0]}.npy", f"{sets[0]}.json"] if kept > NUM else [sets[0]]),
        *(f"{sets[2]}.npy", f"{sets[2]}.json"),
    }


@pytest.mark.parametrize("kept", [60, 12])
def test_one_of_several_processes_decodes(folder: Path, decoded_rows: list[int], kept: int) -> None:
    with ThreadPoolExecutor(3) as pool:  # A lock of a file holds for threads too.
        tables = list(pool.map(lambda _: decode(folder, kept), range(3)))
    assert decoded_rows == list(range(NUM))
    assert {len(decoded.table) for decoded in tables} == {NUM - 2}
    assert not list((folder / "../cache").glob(".*"))


def test_processes_share_the_room(folder: Path, tmp_path: Path) -> None:
    job = DecodeJob(read_table(folder), SPEC, 10**6, 0.2)
    shards = [PixelShards(job, tmp_path / "set", 10**6, 8 * BYTES) for _ in range(2)]
    for file in (tmp_path / "set").glob("*.npy"):
        file.unlink()
    for each in shards:
        each._budget = 14 * BYTES
        np.testing.assert_array_equal(each[0:12], shards[0][0:12])
    assert 0 < len(list((tmp_path / "set").glob("*.npy"))) <= 14 // 4
    shutil.rmtree(tmp_path / "set")  # By a third one.
    assert len(shards[0][:]) == len(shards[0])
    assert pixel_shards.bytes_of(tmp_path / "set") == 0


@pytest.mark.parametrize("size", ["much", "-1", "nan", "1e400"])
def test_the_size_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("TWINLENS_CACHE_GIB", size)
    with pytest.raises(ConfigError, match=f"'{size}'"):
        decode_table(read_table(folder), SPEC, max_pixels=99, max_broken=1, memory_limit=0)


def test_windows_read_each_shard_once_in_an_epoch() -> None:
    label = np.repeat(np.arange(20), 12)
    shard = np.random.default_rng(1).integers(0, 10, len(label))
    forged = np.zeros(len(label), bool)
    settings = SamplerSettings(labels_per_batch=4, images_per_label=3)
    ahead = list[list[int]]()
    sampler = make_sampler(label, forged, settings, 0, (shard, 3, ahead.append))
    assert isinstance(sampler, WindowSampler)
    read = list[set[int]]()
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        windows = list[set[int]]()
        for step in steps:
            batch = sampler.batch(step)
            np.testing.assert_array_equal(batch.label, label[batch.row])
            used = set(shard[batch.row].tolist())
            if windows and len(windows[-1] | used) <= 3:
                windows[-1] |= used
            else:
                windows.append(used)
        assert len(windows) == 4
        assert sorted(number for window in windows for number in window) == list(range(10))
        read += windows
    assert [set(numbers) for numbers in ahead[:-1]] == read[1:]
    again = make_sampler(label, forged, settings, 0, (shard, 3, None)).batch(7)
    np.testing.assert_array_equal(again.row, sampler.batch(7).row)


def test_a_window_of_one_identity_takes_all_pictures() -> None:
    label, forged = np.repeat(np.arange(2), 8), np.zeros(16, bool)
    sampler = make_sampler(label, forged, SamplerSettings(), 0, (label, 1, None))
    assert set(sampler.batch(0).label) == {0, 1}
    drawn = [set(sampler.batch(step).row) for step in range(2 * sampler.steps_per_epoch)]
    assert set.union(*drawn) == set(range(16))
