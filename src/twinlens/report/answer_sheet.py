"""Pictures of answers: a sheet of probes beside their results, and a verdict on two pictures.

This module lays out pictures and text; galleries, distances and thresholds play no part here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from twinlens.report.canvas import (
    GREEN,
    GROUND,
    INK,
    LINE,
    MUTED,
    RED,
    Color,
    aspect_ratio,
    box_size,
    draw_card,
    draw_picture,
    draw_text,
    text_width,
)

__all__ = ["Strip", "Tile", "draw_sheet", "draw_verdict"]

WIDTH, MARGIN, GAP, PADDING, FRAME = 1600, 36, 22, 20, 2
FEWEST, MOST = 4, 6  # columns of results, beside the probe
TITLE, REASON, NAME, NOTE = 23, 17, 17, 15
TITLE_HEIGHT, REASON_HEIGHT, NAME_HEIGHT, NOTE_HEIGHT = 36, 34, 25, 23
PROBE_GAP = 56  # around the line between the probe and its results
VERDICT_AREA, VERDICT_FRAME, VERDICT_PADDING = 400 * 400, 5, 14


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture with a caption and notes.

    Attributes:
        picture: the picture; None if missing.
        name: caption.
        notes: lines below the caption.
        frame: colour of the frame; None for a hairline.
        missing: text in place of a missing picture.
    """

    picture: Image.Image | None
    name: str
    notes: tuple[str, ...] = ()
    frame: Color | None = None
    missing: str = "missing"


@dataclass(frozen=True, eq=False)
class Strip:
    """A probe and its results, best first.

    Attributes:
        title: the answer.
        reason: reason of the answer, one line.
        color: colour of the title.
        probe: the probe.
        results: tiles of the results, in drawing order.
    """

    title: str
    reason: str
    color: Color
    probe: Tile
    results: tuple[Tile, ...]


def draw_sheet(strips: Sequence[Strip]) -> Image.Image:
    """Draw a card for each strip, one below the other.

    Returns:
        An RGB picture, 1600 pixels wide.
    """
    tiles = [tile for strip in strips for tile in (strip.probe, *strip.results)]
    columns = min(max([FEWEST, *(len(strip.results) for strip in strips)]), MOST)
    box = _box([tile.picture for tile in tiles if tile.picture is not None], columns)
    text = NAME_HEIGHT + NOTE_HEIGHT * max((len(tile.notes) for tile in tiles), default=0)
    cell = box[1] + 8 + text + PADDING
    heights = [_height(strip, columns, cell) for strip in strips]
    height = 2 * MARGIN + sum(heights) + GAP * max(len(strips) - 1, 0)
    canvas = Image.new("RGB", (WIDTH, height), GROUND)
    top = MARGIN
    for strip, high in zip(strips, heights, strict=True):
        draw_card(canvas, (MARGIN, top, WIDTH - MARGIN, top + high), LINE, FRAME)
        _draw_strip(canvas, strip, top + PADDING, box, cell, columns)
        top += high + GAP
    return canvas


def draw_verdict(
    left: Image.Image, right: Image.Image, lines: Sequence[str], match: bool
) -> Image.Image:
    """Draw two pictures side by side in a green or red frame, with lines of text below.

    Args:
        left: first picture.
        right: second picture.
        lines: text; the first line is the verdict, large and in the frame's colour.
        match: whether the frame is green instead of red.
    Returns:
        An RGB picture.
    """
    color = GREEN if match else RED
    box = box_size([left, right], VERDICT_AREA)
    wide = 2 * box[0] + GAP + 2 * (VERDICT_PADDING + VERDICT_FRAME)
    high = box[1] + 2 * (VERDICT_PADDING + VERDICT_FRAME)
    # Font size, line height and weight of each line.
    styles = [(30, 44, True), *[(20, 34, False)] * len(lines)][: len(lines)]
    texts = [
        text_width(line, style[0], style[2]) for line, style in zip(lines, styles, strict=True)
    ]
    width = max(wide, round(max(texts, default=0))) + 2 * MARGIN
    text_high = sum(style[1] for style in styles) + (VERDICT_PADDING if lines else 0)
    canvas = Image.new("RGB", (width, high + text_high + 2 * MARGIN), GROUND)
    x, y = (width - wide) // 2, MARGIN
    draw_card(canvas, (x, y, x + wide, y + high), color, VERDICT_FRAME)
    for i, picture in enumerate((left, right)):
        corner = (
            x + VERDICT_FRAME + VERDICT_PADDING + i * (box[0] + GAP),
            y + VERDICT_FRAME + VERDICT_PADDING,
        )
        draw_picture(canvas, picture, corner, box)
    y += high + VERDICT_PADDING
    for line, (size, line_high, bold) in zip(lines, styles, strict=True):
        draw_text(canvas, (width // 2, y), line, size, color if bold else MUTED, bold=bold)
        y += line_high
    return canvas


def _box(pictures: Sequence[Image.Image], columns: int) -> tuple[int, int]:
    """Size of each picture: as wide as the columns allow, in the median aspect ratio."""
    inner = WIDTH - 2 * (MARGIN + PADDING) - PROBE_GAP - (columns - 1) * GAP
    width = inner // (columns + 1)
    return width, round(width / aspect_ratio(pictures))


def _rows(strip: Strip, columns: int) -> int:
    return max(1, -(-len(strip.results) // columns))


def _height(strip: Strip, columns: int, cell: int) -> int:
    return PADDING + TITLE_HEIGHT + REASON_HEIGHT + _rows(strip, columns) * cell


def _draw_strip(
    canvas: Image.Image, strip: Strip, top: int, box: tuple[int, int], cell: int, columns: int
) -> None:
    left, width = MARGIN + PADDING, WIDTH - 2 * (MARGIN + PADDING)
    draw_text(canvas, (left, top), strip.title, TITLE, strip.color, bold=True, centred=False,
              width=width)  # fmt: skip
    draw_text(canvas, (left, top + TITLE_HEIGHT), strip.reason, REASON, MUTED, centred=False,
              width=width)  # fmt: skip
    top += TITLE_HEIGHT + REASON_HEIGHT
    _draw_tile(canvas, strip.probe, (left, top), box)
    start = left + box[0] + PROBE_GAP
    line = left + box[0] + PROBE_GAP // 2
    canvas.paste(LINE, (line, top, line + 2, top + _rows(strip, columns) * cell - PADDING))
    for i, tile in enumerate(strip.results):
        row, column = divmod(i, columns)
        _draw_tile(canvas, tile, (start + column * (box[0] + GAP), top + row * cell), box)


def _draw_tile(
    canvas: Image.Image, tile: Tile, corner: tuple[int, int], box: tuple[int, int]
) -> None:
    draw_picture(canvas, tile.picture, corner, box, tile.frame, missing=tile.missing)
    middle, y = corner[0] + box[0] // 2, corner[1] + box[1] + 8
    draw_text(canvas, (middle, y), tile.name, NAME, INK, width=box[0])
    for i, note in enumerate(tile.notes):
        at = (middle, y + NAME_HEIGHT + i * NOTE_HEIGHT)
        draw_text(canvas, at, note, NOTE, MUTED, width=box[0])
