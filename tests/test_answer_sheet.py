"""Sheets of answers: every picture is there, in its place, in its frame."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from twinlens.report import answer_sheet as sheets
from twinlens.report.answer_sheet import Strip, Tile, draw_sheet, draw_verdict
from twinlens.report.canvas import GREEN, LINE, RED, text_width


def flat(level: int, size: tuple[int, int] = (90, 90)) -> Image.Image:
    return Image.new("RGB", size, (level, 2, 250 - level))


def strip(num: int, start: int = 10) -> Strip:
    results = tuple(
        Tile(flat(start + 1 + i), f"name {i}", ("distance 0.1",), GREEN if i % 2 == 0 else RED)
        for i in range(num)
    )
    return Strip("anna: a.png", "why", GREEN, Tile(flat(start), "anna", (), GREEN), results)


def spans(picture: Image.Image, level: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of a flat picture."""
    array = np.asarray(picture).astype(int)
    is_it = (array == (level, 2, 250 - level)).all(axis=2)
    rows, columns = np.flatnonzero(is_it.any(axis=1)), np.flatnonzero(is_it.any(axis=0))
    return columns[0], rows[0], columns[-1], rows[-1]


def count(picture: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == color).all(axis=2).sum())


def test_the_probe_is_left_of_its_results_in_order() -> None:
    picture = draw_sheet([strip(4)])
    assert (picture.mode, picture.width) == ("RGB", 1600)
    places = [spans(picture, 10 + i) for i in range(5)]
    for before, after in pairwise(places):
        assert before[2] < after[0]
        assert before[1] == after[1]
    assert places[0][0] >= sheets.MARGIN
    assert places[-1][2] < 1600 - sheets.MARGIN


@pytest.mark.parametrize("num", [0, 1, 6, 7, 13])
def test_many_results_fill_rows(num: int) -> None:
    picture = draw_sheet([strip(num)])
    rows = {spans(picture, 11 + i)[1] for i in range(num)}
    assert len(rows) == -(-num // sheets.MOST)
    assert picture.height > draw_sheet([strip(0)]).height or num <= sheets.MOST
    assert all(spans(picture, 11 + i)[3] < picture.height - sheets.MARGIN for i in range(num))


def test_frames_have_their_colour() -> None:
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


def test_a_missing_picture_leaves_an_empty_box() -> None:
    there = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(None, "b"),))
    grey = count(draw_sheet([there]), LINE)
    full = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(flat(11), "b"),))
    assert grey > count(draw_sheet([full]), LINE) + 10_000
    other = Strip("t", "r", RED, Tile(flat(10), "a"), (Tile(None, "b", missing="unreadable"),))
    assert draw_sheet([there]).tobytes() != draw_sheet([other]).tobytes()


@pytest.mark.parametrize("size", [(400, 90), (60, 200), (4, 4), (3000, 2000)])
def test_any_proportions(size: tuple[int, int]) -> None:
    results = tuple(Tile(flat(20 + i, size), "漢字\n👩‍👩‍👧" * 10, ("x" * 80,)) for i in range(8))
    picture = draw_sheet([Strip("t" * 200, "r\n" * 200, RED, Tile(flat(10, size), ""), results)])
    assert picture.width == 1600
    assert all(spans(picture, 20 + i)[2] < 1600 - sheets.MARGIN for i in range(8))


def test_an_empty_sheet() -> None:
    assert draw_sheet([]).size == (1600, 2 * sheets.MARGIN)
    assert draw_sheet([Strip("", "", RED, Tile(None, ""), ())]).width == 1600


# --- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [True, False])
def test_a_verdict_has_its_frame_its_pictures_and_its_text(match: bool) -> None:
    lines = ["same" if match else "different", "distance 0.2", "probability 97 %"]
    picture = draw_verdict(flat(10, (90, 120)), flat(60, (200, 100)), lines, match)
    array = np.asarray(picture)
    color, absent = (GREEN, RED) if match else (RED, GREEN)
    assert count(picture, absent) == 0

    # The frame is a closed rectangle of full strokes, and both pictures are inside, side by side.
    is_frame = (array == color).all(axis=2)
    top, *_, bottom = np.flatnonzero(is_frame.mean(axis=1) > 0.5)
    left, *_, right = np.flatnonzero(is_frame.mean(axis=0) > 0.5)
    for stroke in (is_frame[top, left + 20 : right - 20], is_frame[bottom, left + 20 : right - 20]):
        assert stroke.all()
    first, second = spans(picture, 10), spans(picture, 60)
    assert left < first[0] < first[2] < second[0] < second[2] < right
    for level, span, ratio in ((10, first, 90 / 120), (60, second, 200 / 100)):
        assert top < span[1] < span[3] < bottom
        assert (span[2] - span[0] + 1) / (span[3] - span[1] + 1) == pytest.approx(ratio, abs=0.02)
        middle = ((span[0] + span[2]) // 2, (span[1] + span[3]) // 2)
        assert picture.getpixel(middle) == (level, 2, 250 - level)

    # Three lines of text below the frame, the verdict in its colour.
    text = (array[bottom + 3 :] != array[0, 0]).any(axis=(1, 2))
    assert np.count_nonzero(np.diff(text.astype(int)) == 1) == 3
    verdict = is_frame[bottom + 3 :].any(axis=1)
    assert verdict.any()
    assert np.flatnonzero(verdict).max() < np.flatnonzero(text).max() - 30


def test_text_sets_the_size_of_a_verdict() -> None:
    left, right = flat(10), flat(60)
    sizes = [draw_verdict(left, right, lines, True).size for lines in ([], ["same"], ["same", "x"])]
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]
    long = draw_verdict(left, right, ["same", "x" * 200], True)
    assert long.width > text_width("x" * 200, 20)
