"""Duplicates: against all pairs, against drawings that only look alike, and on real pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from twinlens.data import duplicates
from twinlens.data.datasets import read_idx
from twinlens.data.duplicates import (
    equal_pictures,
    groups_of_equal,
    near_copies,
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


def all_pairs_near(a: np.ndarray, b: np.ndarray, own: bool) -> np.ndarray:
    """(N, M) near copies, by plain loops; the spacing is that among all of A."""

    def pattern(thumb: np.ndarray) -> np.ndarray:
        flat = thumb.astype(float).ravel() - thumb.mean()
        return flat / (16 * max(flat.std(), 4))

    def limit(thumb: np.ndarray, others: list[np.ndarray]) -> float:
        spacing = sorted(((pattern(thumb) - pattern(x)) ** 2).sum() for x in others)
        return float(np.clip(0.1 * spacing[min(5, len(spacing)) - 1], 0.005, 0.05))

    limits_a = [limit(x, [y for j, y in enumerate(a) if j != i]) for i, x in enumerate(a)]
    limits_b = limits_a if own else [limit(x, list(a)) for x in b]
    near = np.zeros((len(a), len(b)), bool)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            contrasts = max(x.std(), 4), max(y.std(), 4)
            near[i, j] = (
                ((pattern(x) - pattern(y)) ** 2).sum() <= min(limits_a[i], limits_b[j])
                and abs(x.mean() - y.mean()) <= 32
                and max(contrasts) / min(contrasts) <= 1.5
            )
    return near


def variants(picture: Image.Image) -> dict[str, Image.Image]:
    """A picture, slightly changed."""
    smaller = [round(0.8 * side) for side in picture.size]
    return {
        "saved again": saved_again(picture, 70),
        "resized": picture.resize(smaller, Image.Resampling.BILINEAR),
        "brighter": picture.point(lambda v: min(255, v + 8)),
        "more contrast": picture.point(lambda v: min(255, round(v * 1.1))),
    }


def thumbs_of(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnail(picture) for picture in pictures])


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


@pytest.mark.parametrize("draw", [photo, drawing, lambda rng: photo(rng, 24).convert("L")])
def test_changed_copies_are_near_and_other_pictures_are_not(draw) -> None:
    rng = np.random.default_rng(0)
    originals = [draw(rng) for _ in range(60)]
    thumbs = thumbs_of(originals)
    assert near_duplicates(thumbs) == ()
    for name in variants(originals[0]):
        copies = thumbs_of([variants(picture)[name] for picture in originals])
        assert near_copies(thumbs, copies).tolist() == list(range(60)), name
        both = near_duplicates(np.concatenate([thumbs, copies]))
        assert both == tuple((row, 60 + row) for row in range(60)), name


@pytest.mark.parametrize(
    "change", [lambda v: 255 - v, lambda v: v // 2, lambda v: min(255, v + 90), lambda v: 128]
)
def test_other_tones_are_no_copies(change) -> None:
    rng = np.random.default_rng(1)
    originals = [photo(rng).convert("L") for _ in range(20)]
    changed = thumbs_of([picture.point(change) for picture in originals])
    assert set(near_copies(thumbs_of(originals), changed)) == {-1}


def test_a_group_is_alike_throughout_and_no_chain() -> None:
    rng = np.random.default_rng(2)
    start, end = (rng.integers(0, 256, (16, 16)).astype(float) for _ in range(2))
    steps = np.linspace(0, 0.6, 40)
    thumbs = np.rint([(1 - t) * start + t * end for t in steps]).astype(np.uint8)
    thumbs = np.concatenate([thumbs, rng.integers(0, 256, (60, 16, 16), dtype=np.uint8)])
    near = all_pairs_near(thumbs, thumbs, own=True)
    groups = near_duplicates(thumbs)
    assert len(groups) > 2  # A chain would be one.
    for rows in groups:
        assert near[np.ix_(rows, rows)].all()


def test_the_same_as_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    originals = [photo(rng) for _ in range(40)] + [drawing(rng, 3) for _ in range(40)]
    copies = [copy for p in originals[::4] for copy in variants(p).values()]
    a = thumbs_of(originals + copies[::2])
    b = thumbs_of(copies[1::2] + [photo(rng) for _ in range(20)])
    a = np.concatenate([a, np.full((2, 16, 16), 250, np.uint8)])
    a, b = a[rng.permutation(len(a))], b[rng.permutation(len(b))]
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 7)
    near = all_pairs_near(a, b, own=False)
    rows = near_copies(a, b)
    assert near.any(axis=0).sum() > 30
    assert ((rows >= 0) == near.any(axis=0)).all()
    assert all(near[row, column] for column, row in enumerate(rows) if row >= 0)
    near = all_pairs_near(a, a, own=True)
    groups = near_duplicates(a)
    grouped = {row for group in groups for row in group}
    assert all(near[np.ix_(group, group)].all() for group in groups)
    alone = [row for row in range(len(a)) if row not in grouped]
    assert not (near[np.ix_(alone, alone)] & ~np.eye(len(alone), dtype=bool)).any()


def test_copies_are_recognised_among_many() -> None:
    rng = np.random.default_rng(4)
    originals = [photo(rng) for _ in range(1200)]
    thumbs = thumbs_of(originals + [saved_again(p, 70) for p in originals[:100]])
    assert near_duplicates(thumbs) == tuple((i, 1200 + i) for i in range(100))


def test_very_many_alike_are_one_group() -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(20, 230, (16, 16))
    thumbs = (base + rng.integers(-1, 2, (3000, 16, 16))).astype(np.uint8)
    assert near_duplicates(thumbs) == (tuple(range(3000)),)
    equal = np.full((20_000, 16, 16), 250, np.uint8)
    equal[5] = 7
    assert near_duplicates(equal) == (tuple(row for row in range(20_000) if row != 5),)


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_pictures(num: int) -> None:
    rng = np.random.default_rng(6)
    thumbs = rng.integers(0, 256, (num, 16, 16), dtype=np.uint8)
    assert near_duplicates(thumbs) == ()
    assert near_copies(thumbs, thumbs).tolist() == list(range(num))
    assert near_copies(thumbs, thumbs[:0]).tolist() == []
    assert near_copies(thumbs[:0], thumbs).tolist() == [-1] * num


def test_the_order_of_pictures_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    originals = [photo(rng) for _ in range(450)]
    thumbs = thumbs_of(originals + [saved_again(p) for p in originals[:20]])
    order = rng.permutation(len(thumbs))
    back = {frozenset(int(order[row]) for row in rows) for rows in near_duplicates(thumbs[order])}
    assert back == {frozenset(rows) for rows in near_duplicates(thumbs)}


# --- real pictures ------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
def test_real_faces_and_signatures_have_next_to_none() -> None:
    faces = sorted((SHARED / "att_faces").glob("*/*.pgm"))
    thumbs = np.stack([thumbnail(Image.open(path)) for path in faces])
    groups = near_duplicates(thumbs)
    assert len(groups) <= 15  # Shots a blink apart.
    for rows in groups:
        assert len({faces[row].parent for row in rows}) == 1
    writers = sorted((SHARED / "signatures" / "test").glob("*/*"))[::3]
    thumbs = np.stack([thumbnail(Image.open(path)) for path in writers])
    assert near_duplicates(thumbs) == ()


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
    assert near_duplicates(thumbs_of(pictures)) == want


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
def test_digits_of_one_shape_are_no_copies() -> None:
    digits = read_idx(SHARED / "mnist" / "t10k-images-idx3-ubyte.gz")[:5000]
    pictures = [Image.fromarray(digit) for digit in digits]
    thumbs = thumbs_of(pictures)
    groups = near_duplicates(thumbs)
    assert sum(map(len, groups)) <= 25
    assert max(map(len, groups), default=0) <= 3
    for name in variants(pictures[0]):
        copies = thumbs_of([variants(picture)[name] for picture in pictures[:200]])
        assert (near_copies(thumbs, copies) == np.arange(200)).mean() >= 0.97, name


def test_equal_pictures_are_equal_in_every_pixel() -> None:
    rng = np.random.default_rng(8)
    pixels = rng.integers(0, 256, (50, 3, 20, 20), dtype=np.uint8)
    pixels[[7, 30]] = pixels[3]
    pixels[[9, 41]] = pixels[8]
    pixels[41, 2, 19, 19] ^= 1
    assert equal_pictures(pixels) == [(3, 7, 30), (8, 9)]
    assert equal_pictures(pixels[:0]) == []
    assert equal_pictures(np.zeros((3, 1, 1, 1), np.uint8)) == [(0, 1, 2)]
