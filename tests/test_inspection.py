"""Inspection: folders made so that every number is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.data import inspection
from twinlens.data.inspection import has_color, inspect_table, sample_statistics
from twinlens.data.inspection_result import Inspection, MinMedianMax
from twinlens.data.table import ImageTable
from twinlens.errors import DataError

LIMIT = 10_000_000


def noise(seed: int, height: int = 20, width: int = 30, color: bool = True) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3) if color else (5, 5), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def table_of(root: Path, rows: list[tuple[str, str, bool, str]]) -> ImageTable:
    names, identity, forged, split = zip(*rows, strict=True)
    return ImageTable(
        path=np.array([str(root / name) for name in names], dtype=object),
        identity=np.array(identity, dtype=object),
        forged=np.array(forged),
        split=np.array(split, dtype=object),
        source="pictures",
        root=root,
    )


@pytest.fixture
def mixed(tmp_path: Path) -> ImageTable:
    """Two splits with copies within and across, contradictions, a singleton, broken files."""
    noise(0).save(tmp_path / "a0.png")
    noise(0).save(tmp_path / "a1.bmp")  # the pixels of a0, in the same split
    noise(1).save(tmp_path / "b0.png")
    noise(1).save(tmp_path / "b1.png")  # b0, in another split
    noise(2, 40, 60).save(tmp_path / "c0.png")
    noise(2, 40, 60).save(tmp_path / "c1.jpg", quality=90)  # nearly c0, in another split
    noise(3).save(tmp_path / "d0.png")
    noise(3).save(tmp_path / "e0.png")  # d0 under another identity
    noise(4).save(tmp_path / "d1.png")
    noise(4).save(tmp_path / "d2.png")  # d1, called a forgery
    noise(5, color=False).save(tmp_path / "f0.png")  # grey, and the only one of f
    (tmp_path / "g0.png").write_bytes(b"")
    (tmp_path / "g1.png").write_bytes(b"no picture")
    rows = [
        ("a0.png", "a", False, "train"), ("a1.bmp", "a", False, "train"),
        ("b0.png", "b", False, "train"), ("b1.png", "b", False, "test"),
        ("c0.png", "c", False, "test"), ("c1.jpg", "c", False, "train"),
        ("d0.png", "d", False, "train"), ("e0.png", "e", False, "train"),
        ("d1.png", "d", False, "train"), ("d2.png", "d", True, "train"),
        ("f0.png", "f", False, "train"),
        ("g0.png", "g", False, "train"), ("g1.png", "g", False, "test"),
    ]  # fmt: skip
    return table_of(tmp_path, rows)


def test_every_number(mixed: ImageTable) -> None:
    result = inspect_table(mixed, max_pixels=LIMIT)
    assert result.as_json() == {
        "source": "pictures",
        "pictures": 13,
        "identities": 7,
        "forged": 1,
        "splits": {
            "train": {"pictures": 10, "identities": 7},
            "test": {"pictures": 3, "identities": 3},
        },
        "identity_disjoint": False,
        "sizes": {
            "height": {"min": 20, "median": 20.0, "max": 40},
            "width": {"min": 30, "median": 30.0, "max": 60},
            "common": [
                {"height": 20, "width": 30, "pictures": 9},
                {"height": 40, "width": 60, "pictures": 2},
            ],
        },
        "color": "mixed",
        "formats": {"PNG": 9, "BMP": 1, "JPEG": 1},
        # Genuine: a 2, b 2, c 2, d 2, e 1, f 1, g 2.
        "pictures_per_identity": {
            "min": 1,
            "median": 2.0,
            "max": 2,
            "histogram": {"1": 2, "2": 5},
        },
        "singletons": {"count": 2, "names": ["e", "f"]},
        "blank": [],
        "broken": [
            {"path": "g0.png", "reason": "an empty file"},
            {"path": "g1.png", "reason": "not a picture that Pillow can read"},
        ],
        "duplicates": {
            "exact": {
                "within": 3,
                "across": 1,
                "groups": [
                    ["b0.png", "b1.png"],
                    ["a0.png", "a1.bmp"],
                    ["d0.png", "e0.png"],
                    ["d1.png", "d2.png"],
                ],
            },
            "near": {
                "within": 0,
                "across": 1,
                "groups": [["c0.png", "c1.jpg"]],
            },
        },
        "contradictions": [
            {
                "kind": "exact",
                "paths": ["d0.png", "e0.png"],
                "identities": ["d", "e"],
                "forged": [False, False],
            },
            {
                "kind": "exact",
                "paths": ["d1.png", "d2.png"],
                "identities": ["d", "d"],
                "forged": [False, True],
            },
        ],
        "left_out": None,
        "layout_hints": [],
    }  # fmt: skip
    assert json.loads(json.dumps(result.as_json())) == result.as_json()


def test_text_of_a_mixed_table(mixed: ImageTable) -> None:
    text = inspect_table(mixed, max_pixels=LIMIT).as_text()
    for part in (
        "pictures: 13 pictures of 7 identities, 1 of them forged",
        "train 10 (7 identities), test 3 (3 identities); some identities in several",
        "20 to 40 high (median 20), 30 to 60 wide (median 30)",
        "some grey, some colour",
        "PNG 9, BMP 1, JPEG 1",
        "1 to 2 genuine pictures, median 2",
        "! 2 files cannot be read",
        "g0.png: an empty file",
        "! 2 pictures have copies with another label",
        "d1.png (d) = d2.png (d, forged)",
        "! 2 pictures are in more than one split (1 exact, 1 near copies)",
        "c0.png = c1.jpg",
        "! 3 pictures have copies within a split (3 exact, 0 near)",
        "! 2 identities have fewer than two genuine pictures",
        "add pictures of e, f.",
    ):
        assert part in text


def test_a_table_without_problems(tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        noise(i).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", "ab"[i // 2], False, ""))
    result = inspect_table(table_of(tmp_path, rows), max_pixels=LIMIT)
    assert result.as_json()["splits"] == {"unassigned": {"pictures": 4, "identities": 2}}
    assert result.as_json()["identity_disjoint"] is True
    assert result.as_json()["color"] == "rgb"
    text = result.as_text()
    assert "No problems." in text
    assert "none given" in text
    assert "all 20 high, 30 wide" in text
    assert "2 genuine pictures each" in text
    assert "!" not in text


def test_copies_without_a_split_are_no_leak(tmp_path: Path) -> None:
    for name in ("a", "b"):
        noise(0).save(tmp_path / f"{name}.png")
    table = table_of(tmp_path, [("a.png", "a", False, ""), ("b.png", "a", False, "train")])
    result = inspect_table(table, max_pixels=LIMIT)
    assert (result.exact.within, result.exact.across) == (1, 0)
    split = inspect_table(table.with_split(["test", "train"]), max_pixels=LIMIT)
    assert (split.exact.within, split.exact.across) == (0, 1)


def test_near_copies_with_conflicting_labels(tmp_path: Path) -> None:
    noise(0, 64, 64).save(tmp_path / "a.png")
    noise(0, 64, 64).save(tmp_path / "b.jpg", quality=90)
    noise(0, 64, 64).save(tmp_path / "c.png")
    rows = [("a.png", "one", False, ""), ("b.jpg", "two", False, ""), ("c.png", "one", False, "")]
    result = inspect_table(table_of(tmp_path, rows), max_pixels=LIMIT)
    assert [(c.kind, c.paths) for c in result.contradictions] == [
        ("near", ("a.png", "b.jpg", "c.png"))
    ]
    assert result.near.groups == (("a.png", "b.jpg", "c.png"),)
    assert result.exact.groups == (("a.png", "c.png"),)
    assert "[near duplicates]" in result.as_text()
    # The near copy only repeats the conflict of the exact ones.
    rows[2] = ("c.png", "two", False, "")
    result = inspect_table(table_of(tmp_path, rows), max_pixels=LIMIT)
    assert [c.kind for c in result.contradictions] == ["exact"]


def test_large_jpegs_are_the_same_only_with_the_same_bytes(tmp_path: Path) -> None:
    big = noise(0, 1200, 1600)
    big.save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    big.save(tmp_path / "c.jpg", quality=94)
    rows = [(f"{name}.jpg", "x", False, "") for name in "abc"]
    result = inspect_table(table_of(tmp_path, rows), max_pixels=LIMIT)
    assert result.exact.groups == (("a.jpg", "b.jpg"),)
    assert result.near.groups == (("a.jpg", "b.jpg", "c.jpg"),)
    assert result.heights == MinMedianMax(1200, 1200.0, 1200)


def test_only_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    noise(0, 100, 100).save(tmp_path / "b.png")
    table = table_of(tmp_path, [("a.png", "a", False, ""), ("b.png", "b", False, "")])
    result = inspect_table(table, max_pixels=9_999)
    assert [broken.path for broken in result.broken] == ["a.png", "b.png"]
    assert "over the limit of 9,999" in result.broken[1].reason
    assert result.as_json()["sizes"]["height"] is None
    assert result.as_json()["color"] is None
    assert "! 2 files cannot be read" in result.as_text()


def test_names_that_are_not_utf8_do_not_break_the_text(tmp_path: Path) -> None:
    table = table_of(tmp_path, [("\udcff.png", "\udcfe", False, ""), ("b.png", "b", False, "")])
    result = inspect_table(table, max_pixels=LIMIT)
    assert "\\udcff.png" in result.as_text()
    result.as_text().encode("utf-8")
    json.dumps(result.as_json()).encode("ascii")


def test_progress_and_blocks(mixed: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "BLOCK", 3)
    calls: list[tuple[int, int]] = []
    result = inspect_table(
        mixed, max_pixels=LIMIT, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 13) for i in range(1, 14)]
    monkeypatch.undo()
    assert result.as_json() == inspect_table(mixed, max_pixels=LIMIT).as_json()


def test_arrays(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(noise(seed, color=False)) for seed in (0, 1, 1)])
    table = ImageTable(
        path=np.array(["d/0", "d/1", "d/2"], dtype=object),
        identity=np.array(["a", "a", "b"], dtype=object),
        forged=np.zeros(3, bool),
        split=np.full(3, "", dtype=object),
        source="d",
        root=None,
        pixels=pixels,
    )
    result = inspect_table(table, max_pixels=LIMIT)
    assert result.formats == {"array": 3}
    assert result.color == "grey"
    assert result.exact.groups == (("d/1", "d/2"),)
    assert len(result.contradictions) == 1
    assert sample_statistics(table).median_width == 30


def test_an_empty_table(mixed: ImageTable) -> None:
    empty = mixed.select(np.zeros(len(mixed), bool))
    for inspect in (sample_statistics, lambda table: inspect_table(table, max_pixels=LIMIT)):
        with pytest.raises(DataError, match="holds no pictures"):
            inspect(empty)


# --- sample_statistics -------------------------------------------------------------------------


def test_sample_statistics_by_hand(tmp_path: Path) -> None:
    """White paper of 20 x 30 with a black block of 10 x 12: 480 of 600 pixels are background."""
    array = np.full((20, 30), 250, np.uint8)
    array[5:15, 5:17] = 0
    array[1, 1] = 235  # within 16 levels
    rows = []
    for i in range(5):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", "aaabc"[i], i == 1, ""))
    got = sample_statistics(table_of(tmp_path, rows))
    assert (got.num_pictures, got.num_identities, got.num_forged) == (5, 3, 1)
    assert (got.min_pictures, got.median_pictures, got.max_pictures) == (1, 1.0, 2)
    assert got.num_singletons == 2
    assert (got.median_height, got.median_width) == (20, 30)
    assert got.grey is True
    assert got.border_level == 250
    assert got.border_share == 480 / 600


def test_sample_statistics_with_one_coloured_and_some_broken_pictures(mixed: ImageTable) -> None:
    got = sample_statistics(mixed)
    assert got.grey is False
    assert (got.median_height, got.median_width) == (20, 30)
    assert got.num_identities == 7
    only_broken = mixed.select(np.asarray(mixed.identity == "g"))
    with pytest.raises(DataError, match=r"none of the 2 pictures sampled.*an empty file"):
        sample_statistics(only_broken)


def test_sample_statistics_opens_a_sample(
    mixed: ImageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    read = inspection._read_sampled

    def counted(table: ImageTable, row: int, max_pixels: int) -> object:
        opened.append(row)
        return read(table, row, max_pixels)

    monkeypatch.setattr(inspection, "_read_sampled", counted)
    first = sample_statistics(mixed, sample=4, seed=3)
    assert len(opened) == 4
    assert first == sample_statistics(mixed, sample=4, seed=3)
    assert sorted(opened[:4]) == sorted(opened[4:])
    assert first.num_pictures == 13  # Labels are always counted whole.


def test_colour() -> None:
    grey = noise(0, color=False)
    assert not has_color(grey)
    assert not has_color(grey.convert("RGB"))
    assert has_color(noise(0))
    stamp = Image.new("RGB", (100, 100), "white")
    stamp.paste((200, 0, 0), (0, 0, 3, 5))
    assert has_color(stamp)  # 15 of 10,000 pixels
    dust = Image.new("RGB", (100, 100), "white")
    dust.paste((200, 0, 0), (0, 0, 3, 3))
    assert not has_color(dust)
    yellowed = Image.new("RGB", (50, 50), (250, 245, 232))
    assert not has_color(yellowed)


def test_min_median_max() -> None:
    assert MinMedianMax.of([3, 1, 2, 2]) == MinMedianMax(1, 2.0, 3)
    assert Inspection.__dataclass_params__.frozen
