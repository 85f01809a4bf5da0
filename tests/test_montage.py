"""montage: read back from its pixels which pictures it framed in which colour."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from twinlens.config import SamplerSettings
from twinlens.data.batch import Batch
from twinlens.data.samplers import make_sampler
from twinlens.data.table import ImageTable
from twinlens.errors import PictureError
from twinlens.report import canvas as drawing
from twinlens.report import montage
from twinlens.report.canvas import GREEN, GROUND, LINE, RED, draw_picture, text_width
from twinlens.report.montage import draw_montage

NUM_LABELS = 6


def table_of(
    identity: list[str], forged: list[bool], pixels: np.ndarray | None = None
) -> ImageTable:
    num = len(identity)
    return ImageTable(
        path=np.array([f"set/{i:03d}" for i in range(num)], dtype=object),
        identity=np.array(identity, dtype=object),
        forged=np.array(forged),
        split=np.full(num, "train", dtype=object),
        source="some/where/pictures",
        root=None,
        pixels=pixels,
    )


@pytest.fixture
def table() -> ImageTable:
    """Six identities, four genuine and two forged pictures of each."""
    identity = [f"person {i // 6}" for i in range(6 * NUM_LABELS)]
    return table_of(identity, [i % 6 >= 4 for i in range(6 * NUM_LABELS)])


def color_of(table: ImageTable, row: int) -> tuple[int, int, int]:
    """Says identity and role: nothing else in a montage is blue to this degree."""
    return (10, 10 * int(table.labels()[row]) + (5 if table.forged[row] else 0), 200)


def identity_and_role(color: tuple[int, int, int]) -> tuple[int, bool]:
    return color[1] // 10, color[1] % 10 == 5


def solid(table: ImageTable) -> object:
    return lambda row: Image.new("RGB", (80, 80), color_of(table, row))


def batch_of(table: ImageTable, **options: object) -> Batch:
    return make_sampler(table.labels(), table.forged, SamplerSettings(**options), 0).batch(0)


def cards(picture: Image.Image, frame: tuple[int, int, int]) -> list[list[tuple[int, bool]]]:
    """The contents of each card with such a frame, from left to right, row by row."""
    array = np.asarray(picture)
    is_frame = (array == frame).all(axis=2)
    # A row of pixels through a card has the frame's two upright strokes and not its long ones.
    through = [
        y for y in range(len(array)) if is_frame[y, montage.MARGIN + 2] and is_frame[y].sum() < 200
    ]
    bands = np.split(through, np.flatnonzero(np.diff(through) > 5) + 1)
    contents = []
    for band in bands:
        if len(band) > 50:  # Titles are green too.
            y = int(band[len(band) // 3])  # Within the pictures, above the names.
            contents += _cards_of_line(array[y], is_frame[y])
    return contents


def _cards_of_line(line: np.ndarray, is_frame: np.ndarray) -> list[list[tuple[int, bool]]]:
    strokes = np.flatnonzero(np.diff(is_frame.astype(int)) == 1)
    contents = []
    for left, right in zip(strokes[::2], strokes[1::2], strict=True):
        inside = [tuple(int(v) for v in pixel) for pixel in line[left:right]]
        runs = [b for a, b in pairwise(inside) if a != b and b[0] == 10 and b[2] == 200]
        contents.append([identity_and_role(color) for color in runs])
    return contents


# --- pairs --------------------------------------------------------------------------------------


def test_green_frames_hold_the_same_and_red_ones_different_things(table: ImageTable) -> None:
    picture = draw_montage(table, solid(table), batch_of(table))
    green, red = cards(picture, GREEN), cards(picture, RED)
    assert len(green) == len(red) == 8
    for (a, forged_a), (b, forged_b) in green:
        assert a == b
        assert not forged_a
        assert not forged_b
    assert all(a != b for a, b in red)
    forgeries = [card for card in red if card[0][0] == card[1][0]]
    assert len(forgeries) == 4  # Every second one.
    assert all(a[1] != b[1] for a, b in forgeries)
    assert len({a[0] for a, _ in green[:6]}) == 6  # All identities before any comes again.


def test_without_forgeries_red_frames_hold_two_identities(table: ImageTable) -> None:
    genuine = table.select(~table.forged)
    red = cards(draw_montage(genuine, solid(genuine), batch_of(genuine)), RED)
    assert len(red) == 8
    assert all(a[0] != b[0] and not a[1] and not b[1] for a, b in red)


def test_literal_pairs_are_shown_as_drawn(table: ImageTable) -> None:
    batch = Batch(
        row=np.array([0, 1, 6, 16]),
        label=table.labels()[[0, 1, 6, 16]],
        forged=table.forged[[0, 1, 6, 16]],
        turns=np.zeros(4, np.int64),
        pairs=np.array([[0, 1], [0, 2]]),
        same=np.array([True, False]),
    )
    picture = draw_montage(table, solid(table), batch)
    assert cards(picture, GREEN) == [[(0, False), (0, False)]]
    assert cards(picture, RED) == [[(0, False), (1, False)]]


def test_triplets_are_green_and_red_around_single_pictures(table: ImageTable) -> None:
    literal = batch_of(table, kind="triplets")
    for batch in (literal, batch_of(table)):
        picture = draw_montage(table, solid(table), batch, num_pairs=0)
        array = np.asarray(picture)
        line = next(y for y in range(200, len(array)) if (array[y, :, 2] == 200).sum() > 800)
        runs = [tuple(int(v) for v in b) for a, b in pairwise(array[line + 60]) if (a != b).any()]
        kept = [c for c in runs if c in (GREEN, RED) or (c[0] == 10 and c[2] == 200)]
        for start in range(0, len(kept), 7):
            anchor, g1, positive, g2, r1, negative, r2 = kept[start : start + 7]
            assert (g1, g2, r1, r2) == (GREEN, GREEN, RED, RED)
            assert anchor == positive != negative
        assert len(kept) == 21  # Three to a row.


# --- pictures and names -------------------------------------------------------------------------


def test_pixels_and_decoders_draw_the_same(table: ImageTable) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(table), 3, 20, 30), dtype=np.uint8)
    batch = batch_of(table)
    from_array = draw_montage(table, pixels, batch)
    from_function = draw_montage(
        table, lambda row: Image.fromarray(np.moveaxis(pixels[row], 0, -1).copy()), batch
    )
    np.testing.assert_allclose(np.asarray(from_array, int), np.asarray(from_function, int), atol=1)
    assert from_array.tobytes() == draw_montage(table, pixels, batch).tobytes()
    assert from_array.tobytes() != draw_montage(table, pixels, batch, seed=1).tobytes()
    assert from_array.width == 1600
    draw_montage(table, pixels[:, :1], batch)


def test_turned_pictures_are_drawn_turned() -> None:
    table = table_of(["a", "a", "b"], [False] * 3)
    stored = np.zeros((3, 1, 2, 2), np.uint8)
    stored[:, 0] = [[10, 20], [30, 40]]
    batch = Batch(np.arange(3), np.array([0, 0, 1]), np.zeros(3, bool), np.array([0, 1, 2]))
    for position in range(3):
        got = montage._picture(stored, batch, position)
        np.testing.assert_array_equal(np.asarray(got), np.rot90(stored[position, 0], position))
    assert montage._caption(table, batch, 1).note == "turned 90°"


def test_unreadable_pictures_leave_a_place(table: ImageTable) -> None:
    def broken(row: int) -> Image.Image:
        raise PictureError("x.png", "empty")

    picture = draw_montage(table, broken, batch_of(table))
    assert (np.asarray(picture) == LINE).all(axis=2).mean() > 0.1


@pytest.mark.parametrize("size", [(400, 90), (60, 200), (8, 8)])
def test_any_proportions_fill_the_width(table: ImageTable, size: tuple[int, int]) -> None:
    picture = draw_montage(table, lambda _: Image.new("L", size, 90), batch_of(table))
    green = (np.asarray(picture) == GREEN).all(axis=2).any(axis=0)
    assert green[: montage.MARGIN].sum() == 0
    right = 1600 - montage.MARGIN
    assert right - 5 <= np.flatnonzero(green).max() < right


def test_tiny_pictures_keep_sharp_squares() -> None:
    checks = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8))
    canvas = Image.new("RGB", (160, 160), GROUND)
    draw_picture(canvas, checks, (0, 0), (160, 160))
    inner = np.asarray(canvas)[1:-1, 1:-1, 0]
    assert set(np.unique(inner)) == {0, 255}
    assert inner[9, 9] != inner[9, 29]


def test_long_names_are_shortened_and_their_last_part_stays() -> None:
    long = "Japanese_(hiragana)/character17"
    short = drawing._shortened(long, 17, False, 140)
    assert text_width(short, 17) <= 140
    assert short.startswith("J")
    assert short.endswith("…character17")
    assert drawing._shortened("abc\n def", 17, False, 140) == "abc def"
    assert drawing._shortened("x" * 500, 17, False, 1) == "x"
    assert drawing._shortened("", 17, False, 1) == ""


def test_names_in_other_scripts() -> None:
    for name in ("Zoë Müller", "Анна", "Ωμέγα", "Łukasz"):
        text, font = drawing._drawable(name, 17, False)
        assert text == name
        assert len({bytes(font.getmask(char)) for char in set(name) - {" "}}) >= 3
    private = chr(0xE9AB)  # No font has a glyph for this one.
    assert drawing._drawable(f"A{private}", 17, False)[0] == "A□"
    for odd in ("漢字", "\udcff", "👩‍👩‍👧", "\u202eabc", "a\0b"):
        drawing.draw_text(Image.new("RGB", (200, 40)), (0, 0), odd, 17, RED, width=180)


def test_without_matplotlibs_font(monkeypatch: pytest.MonkeyPatch, table: ImageTable) -> None:
    drawing._default_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert draw_montage(table, solid(table), batch_of(table)).width == 1600
    drawing._default_font.cache_clear()
