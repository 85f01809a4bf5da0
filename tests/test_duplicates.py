"""Duplicates: against all pairs, against drawings that only look alike, and on real pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from twinlens.data import duplicates
from twinlens.data.duplicates import (
    MAX_DIFFERENCE,
    MAX_INK_SHARE,
    groups_of_equal,
    near_duplicates,
    pixel_digest,
    thumbnail,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def photo(rng: np.random.Generator, side: int = 64) -> Image.Image:
    """Smooth and colourful, different for each call."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def drawing(rng: np.random.Generator, strokes: int = 1) -> Image.Image:
    """A few thin lines on paper: nearly all white."""
    picture = Image.new("L", (100, 100), 255)
    for _ in range(strokes):
        ends = [int(v) for v in rng.integers(10, 90, 4)]
        ImageDraw.Draw(picture).line(ends, fill=0, width=2)
    return picture


def saved_again(picture: Image.Image, quality: int = 85) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert(picture.mode)


def all_pairs_groups(thumbs: np.ndarray, limit: float, share: float) -> list[tuple[int, ...]]:
    """Plain loops over all pairs, with plain union."""
    flat = thumbs.reshape(len(thumbs), -1).astype(float)
    ink = [np.abs(one - np.median(one)).mean() for one in flat]
    group = list(range(len(flat)))
    for i in range(len(flat)):
        for j in range(i + 1, len(flat)):
            difference = np.abs(flat[i] - flat[j]).mean()
            if difference <= limit and difference <= share * max(ink[i], ink[j]):
                old, new = group[j], group[i]
                group = [new if g == old else g for g in group]
    members: dict[int, list[int]] = {}
    for row, g in enumerate(group):
        members.setdefault(g, []).append(row)
    return sorted(tuple(rows) for rows in members.values() if len(rows) > 1)


# --- exact --------------------------------------------------------------------------------------


def test_equal_pixels_have_equal_digests() -> None:
    rng = np.random.default_rng(0)
    colour = photo(rng)
    stream = io.BytesIO()
    colour.save(stream, "PNG")
    assert pixel_digest(Image.open(io.BytesIO(stream.getvalue()))) == pixel_digest(colour)
    changed = colour.copy()
    changed.putpixel((5, 5), (1, 2, 3))
    assert pixel_digest(changed) != pixel_digest(colour)
    grey = colour.convert("L")
    assert pixel_digest(grey.convert("RGB")) == pixel_digest(grey)
    # The same bytes in another shape are another picture.
    reshaped = Image.frombytes("L", (32, 128), grey.tobytes())
    assert pixel_digest(reshaped) != pixel_digest(grey)


def test_groups_of_equal_by_hand() -> None:
    assert groups_of_equal([b"a", b"b", b"a", b"c", b"b", b"a"]) == [(0, 2, 5), (1, 4)]
    assert groups_of_equal([b"a", b"b"]) == []
    assert groups_of_equal([]) == []


# --- near ---------------------------------------------------------------------------------------


def test_near_duplicates_by_hand() -> None:
    paper = np.full((32, 32), 250, np.uint8)
    half = paper.copy()
    half[:16] = 50  # ink: mean |v - median| where half is 50, half 250: 100
    shifted = half.copy()
    shifted[16:] -= 6  # mean difference 3
    more = half.copy()
    more[16:] -= 7  # 3.5: over the limit of 3
    dot = paper.copy()
    dot[0, 0] = 0  # differs from paper by 250 / 1024, all of it ink
    pairs = [(half, shifted), (half, more), (paper, dot), (paper, paper)]

    def near(**limits: float) -> list[bool]:
        return [near_duplicates(np.stack(pair), **limits).groups == ((0, 1),) for pair in pairs]

    assert near() == [True, False, False, True]
    assert near(max_difference=4.0) == [True, True, False, True]
    assert near(max_ink_share=1.0) == [True, False, True, True]


@pytest.mark.parametrize("all_pairs", [True, False])
def test_the_same_as_all_pairs(monkeypatch: pytest.MonkeyPatch, all_pairs: bool) -> None:
    rng = np.random.default_rng(1)
    originals = [photo(rng) for _ in range(60)] + [drawing(rng, 3) for _ in range(60)]
    copies = [saved_again(p) for p in originals[::3]]
    copies += [p.resize((40, 40), Image.Resampling.LANCZOS) for p in originals[::4]]
    copies += [p.point(lambda v: min(255, v + 2)) for p in originals[::5]]
    thumbs = np.stack([thumbnail(p) for p in originals + copies])
    thumbs = thumbs[rng.permutation(len(thumbs))]
    want = all_pairs_groups(thumbs, MAX_DIFFERENCE, MAX_INK_SHARE)
    assert len(want) > 50
    monkeypatch.setattr(duplicates, "ALL_PAIRS_UP_TO", 10_000 if all_pairs else 0)
    monkeypatch.setattr(duplicates, "CHUNK", 37)
    got = near_duplicates(thumbs)
    assert list(got.groups) == want
    assert not got.capped


def test_copies_are_found_among_many() -> None:
    rng = np.random.default_rng(2)
    originals = [photo(rng) for _ in range(1000)]
    thumbs = [thumbnail(p) for p in originals + [saved_again(p, 70) for p in originals[:100]]]
    got = near_duplicates(np.stack(thumbs))
    assert got.groups == tuple((i, 1000 + i) for i in range(100))


def test_different_drawings_are_not_near() -> None:
    rng = np.random.default_rng(3)
    thumbs = np.stack([thumbnail(drawing(rng)) for _ in range(500)])
    flat = thumbs.reshape(500, -1).astype(float)
    # Judged by the limit alone, most of them would be: they are nearly all paper.
    difference = np.abs(flat[1:] - flat[0]).mean(axis=1)
    assert np.mean(difference <= MAX_DIFFERENCE * 2) > 0.5
    assert near_duplicates(thumbs).groups == all_pairs_of_equal(thumbs)


def all_pairs_of_equal(thumbs: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(groups_of_equal([thumb.tobytes() for thumb in thumbs]))


def test_full_bands_are_capped_and_said_to_be() -> None:
    rng = np.random.default_rng(4)
    base = np.asarray(photo(rng, 32).convert("L")).astype(int)
    thumbs = np.clip(base + rng.integers(-1, 2, (1500, 32, 32)), 0, 255).astype(np.uint8)
    got = near_duplicates(thumbs)
    assert got.capped
    assert got.groups == (tuple(range(1500)),)  # Chains through neighbours still join them all.


def test_equal_thumbnails_cost_nothing_and_are_near() -> None:
    thumbs = np.full((20_000, 32, 32), 250, np.uint8)
    thumbs[5] = 7
    got = near_duplicates(thumbs)
    assert got.groups == (tuple(row for row in range(20_000) if row != 5),)
    assert not got.capped


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_pictures(num: int) -> None:
    rng = np.random.default_rng(5)
    thumbs = np.array([thumbnail(photo(rng)) for _ in range(num)], np.uint8).reshape(-1, 32, 32)
    assert near_duplicates(thumbs).groups == ()
    assert not near_duplicates(thumbs).capped


def test_the_order_of_pictures_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    originals = [photo(rng) for _ in range(450)]
    thumbs = np.stack([thumbnail(p) for p in originals + [saved_again(p) for p in originals[:20]]])
    order = rng.permutation(len(thumbs))
    shuffled = near_duplicates(thumbs[order]).groups
    back = {frozenset(int(order[row]) for row in rows) for rows in shuffled}
    assert back == {frozenset(rows) for rows in near_duplicates(thumbs).groups}


# --- real pictures ------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
def test_real_faces_and_signatures_have_next_to_none() -> None:
    faces = sorted((SHARED / "att_faces").glob("*/*.pgm"))
    thumbs = np.stack([thumbnail(Image.open(path)) for path in faces])
    groups = near_duplicates(thumbs).groups
    assert len(groups) <= 4  # Shots a blink apart.
    for rows in groups:
        assert len({faces[row].parent for row in rows}) == 1
    writers = sorted((SHARED / "signatures" / "test").glob("*/*"))[::3]
    thumbs = np.stack([thumbnail(Image.open(path)) for path in writers])
    assert near_duplicates(thumbs).groups == ()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
def test_real_drawings_that_are_in_both_archives() -> None:
    def latin(archive: str) -> dict[str, Image.Image]:
        with zipfile.ZipFile(SHARED / "omniglot" / archive) as packed:
            return {
                name.partition("/")[2]: Image.open(io.BytesIO(packed.read(name))).convert("L")
                for name in packed.namelist()
                if "Latin/" in name and name.endswith(".png") and "__MACOSX" not in name
            }

    one = latin("images_background_small1.zip")
    two = latin("images_background_small2.zip")
    assert one.keys() == two.keys()
    pictures = list(one.values()) + [two[name] for name in one]
    num = len(one)
    want = tuple((i, num + i) for i in range(num))
    assert tuple(groups_of_equal([pixel_digest(p) for p in pictures])) == want
    assert near_duplicates(np.stack([thumbnail(p) for p in pictures])).groups == want
