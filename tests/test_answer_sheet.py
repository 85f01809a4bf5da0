"""Sheets of answers: every picture is there, in its place, in its frame."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from twinlens.report import answer_sheet as sheets
from twinlens.report.answer_sheet import Strip, Tile, draw_sheet
from twinlens.report.canvas import GREEN, LINE, RED


def flat(level: int, size: tuple[int, int] = (90, 90)) -> Image.Image:
    return Image.new("RGB", size, (level, 2, 250 - level))


def strip(num: int, start: int = 10) -> Strip:
    found = tuple(
        Tile(flat(start + 1 + i), f"name {i}", ("distance 0.1",), GREEN if i % 2 == 0 else RED)
        for i in range(num)
    )
    return Strip("anna: a.png", "why", GREEN, Tile(flat(start), "anna", (), GREEN), found)


def spans(picture: Image.Image, level: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of a flat picture."""
    array = np.asarray(picture).astype(int)
    is_it = (array == (level, 2, 250 - level)).all(axis=2)
    rows, columns = np.flatnonzero(is_it.any(axis=1)), np.flatnonzero(is_it.any(axis=0))
    return columns[0], rows[0], columns[-1], rows[-1]


def count(picture: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == color).all(axis=2).sum())


def test_the_probe_is_left_of_what_was_found_in_order() -> None:
    picture = draw_sheet([strip(4)])
    assert (picture.mode, picture.width) == ("RGB", 1600)
    places = [spans(picture, 10 + i) for i in range(5)]
    for before, after in pairwise(places):
        assert before[2] < after[0]
        assert before[1] == after[1]
    assert places[0][0] >= sheets.MARGIN
    assert places[-1][2] < 1600 - sheets.MARGIN


@pytest.mark.parametrize("num", [0, 1, 6, 7, 13])
def test_many_go_on_below(num: int) -> None:
    picture = draw_sheet([strip(num)])
    rows = {spans(picture, 11 + i)[1] for i in range(num)}
    assert len(rows) == -(-num // sheets.MOST)
    assert picture.height > draw_sheet([strip(0)]).height or num <= sheets.MOST
    assert all(spans(picture, 11 + i)[3] < picture.height - sheets.MARGIN for i in range(num))


def test_frames_are_of_their_colour() -> None:
    one, two = (draw_sheet([strip(num)]) for num in (1, 2))
    assert count(one, GREEN) > 2000
    assert count(one, RED) == 0
    assert count(two, RED) > 1000
    left, top, _, _ = spans(two, 12)
    assert tuple(np.asarray(two)[top + 20, left - 3]) == RED


def test_strips_are_below_each_other() -> None:
    picture = draw_sheet([strip(2, 10), strip(2, 60)])
    assert spans(picture, 12)[3] < spans(picture, 60)[1]
    assert spans(picture, 10)[0] == spans(picture, 60)[0]


def test_what_is_gone_leaves_an_empty_place() -> None:
    there = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(None, "b"),))
    grey = count(draw_sheet([there]), LINE)
    full = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(flat(11), "b"),))
    assert grey > count(draw_sheet([full]), LINE) + 10_000
    other = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(None, "b", missing="unreadable"),))
    assert draw_sheet([there]).tobytes() != draw_sheet([other]).tobytes()


@pytest.mark.parametrize("size", [(400, 90), (60, 200), (4, 4), (3000, 2000)])
def test_any_proportions(size: tuple[int, int]) -> None:
    found = tuple(Tile(flat(20 + i, size), "漢字\n👩‍👩‍👧" * 10, ("x" * 80,)) for i in range(8))
    picture = draw_sheet([Strip("t" * 200, "r\n" * 200, RED, Tile(flat(10, size), ""), found)])
    assert picture.width == 1600
    assert all(spans(picture, 20 + i)[2] < 1600 - sheets.MARGIN for i in range(8))


def test_nothing_at_all() -> None:
    assert draw_sheet([]).size == (1600, 2 * sheets.MARGIN)
    assert draw_sheet([Strip("", "", RED, Tile(None, ""), ())]).width == 1600
