"""Picture of an explanation: what makes two pictures alike (green) or unlike (red), and its checks.

This module lays out pictures, curves and text; maps and distances come from `match.explain`.

Shapes: C channels, H x W pixels at the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from twinlens.match.explain import Explanation, Neighbour, PictureExplanation
from twinlens.report.canvas import (
    CARD,
    GREEN,
    GROUND,
    INK,
    LINE,
    MUTED,
    RED,
    box_size,
    draw_card,
    draw_picture,
    draw_text,
    text_width,
)

__all__ = ["draw_explanation", "overlay"]

AREA, GAP, MARGIN, PADDING, FRAME = 400 * 400, 28, 36, 20, 2
HEADING, TEXT, NOTE = 30, 19, 15
CURVE_HEIGHT, THUMBNAIL, MOST_NEIGHBOURS = 150, 72, 5
STRONGEST = 0.8  # opacity of the greatest effect
FAINT = 0.35  # contrast of the picture below the colours


def draw_explanation(
    explanation: Explanation,
    pictures: tuple[Image.Image, Image.Image],
    lines: Sequence[str],
) -> Image.Image:
    """Draw both pictures, their maps, the curves of deletion and insertion, and the neighbours.

    Args:
        explanation: explanation of the pair.
        pictures: both pictures, of any size, in the proportions of the maps.
        lines: text below; the first line is the verdict.
    Returns:
        An RGB picture.
    """
    box = box_size(list(pictures), AREA)
    scale = max(float(np.abs(part.effect).max()) for part in explanation.pictures)
    near = any(part.neighbours for part in explanation.pictures)
    inner = 2 * box[0] + GAP
    high = box[1] + 42 + CURVE_HEIGHT + 30 + (THUMBNAIL + 54 if near else 0) + 2 * PADDING
    text = [*lines, *_notes(explanation)]
    width = max(2 * (inner + 2 * PADDING) + GAP, *(round(text_width(t, TEXT)) for t in text))
    head = 110
    canvas = Image.new(
        "RGB", (width + 2 * MARGIN, head + high + 2 * MARGIN + 28 * len(text)), GROUND
    )
    color = GREEN if explanation.match else RED
    draw_text(canvas, (MARGIN, MARGIN), lines[0], HEADING, color, bold=True, centred=False)
    _draw_legend(canvas, (MARGIN, MARGIN + 46))
    card = inner + 2 * PADDING
    for i, (part, picture) in enumerate(zip(explanation.pictures, pictures, strict=True)):
        x, y = MARGIN + i * (card + GAP), MARGIN + head - 20
        draw_card(canvas, (x, y, x + card, y + high), LINE, FRAME)
        x, y = x + PADDING, y + PADDING
        draw_picture(canvas, picture, (x, y), box)
        draw_picture(canvas, overlay(picture, part.effect, scale, box), (x + box[0] + GAP, y), box)
        y += box[1] + 42
        _draw_curves(canvas, (x, y), inner, part)
        if near:
            _draw_neighbours(canvas, (x, y + CURVE_HEIGHT + 30), part.neighbours)
    y = MARGIN + head + high
    for line in text[1:]:
        draw_text(canvas, (MARGIN, y), line, TEXT, INK, centred=False)
        y += 28
    return canvas


def overlay(
    picture: Image.Image, effect_HW: NDArray[np.float32], scale: float, box: tuple[int, int]
) -> Image.Image:
    """A pale grey picture with its effect in green (alike) and red (unlike).

    Args:
        picture: the picture.
        effect_HW: effect of its pixels at the network's input.
        scale: effect of full colour.
        box: width and height that the result fits into.
    """
    ratio = min(box[0] / picture.width, box[1] / picture.height)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    pale = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    pale = 255 - FAINT * (255 - pale)
    field = Image.fromarray((effect_HW / scale if scale > 0 else effect_HW).astype(np.float32))
    part = np.asarray(field.resize(size, Image.Resampling.BILINEAR))
    opacity = STRONGEST * np.abs(part).clip(max=1)[..., None]
    ink = np.where(part[..., None] > 0, *(np.array(color, np.float32) for color in (GREEN, RED)))
    blended = pale[..., None] * (1 - opacity) + ink * opacity
    return Image.fromarray(blended.round().astype(np.uint8))


def _notes(explanation: Explanation) -> list[str]:
    notes = []
    for name, part in zip(("first", "second"), explanation.pictures, strict=True):
        notes.append(
            f"{name} picture: mean distance {part.deletion_area:.3f} as the most alike parts are "
            f"hidden first, {part.random_area:.3f} in random order, {part.insertion_area:.3f} as "
            f"they are shown first; {100 * part.central_share:.0f} % of the effect lies in the "
            "middle"
        )
    without = " and ".join(f"{part.without_object:.3f}" for part in explanation.pictures)
    return [
        *notes,
        f"{explanation.background()} (distance without the object of the first, of the second "
        f"picture: {without}; without both backgrounds: {explanation.without_background:.3f})",
    ]


def _draw_legend(canvas: Image.Image, at: tuple[int, int]) -> None:
    x, y = at
    for color, text in ((GREEN, "makes them alike: hidden, the distance grows"),
                        (RED, "makes them unlike: hidden, the distance shrinks")):  # fmt: skip
        canvas.paste(color, (x, y + 3, x + 18, y + 21))
        draw_text(canvas, (x + 28, y), text, TEXT, MUTED, centred=False)
        x += round(text_width(text, TEXT)) + 70


def _draw_curves(
    canvas: Image.Image, corner: tuple[int, int], width: int, part: PictureExplanation
) -> None:
    """Distance over the share of hidden cells, in the map's order and at random."""
    left, top = corner
    curves = ((part.random, MUTED, "random order"), (part.deletion, GREEN, "most alike first"),
              (part.insertion[::-1], RED, "most unlike first"))  # fmt: skip
    highest = max(float(curve.max()) for curve, _, _ in curves)
    canvas.paste(CARD, (left, top, left + width, top + CURVE_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    draw.line((left, top + CURVE_HEIGHT, left + width, top + CURVE_HEIGHT), fill=LINE, width=2)
    for curve, color, _ in curves:
        points = [
            (left + width * i / (len(curve) - 1),
             top + CURVE_HEIGHT - (CURVE_HEIGHT - 6) * float(value) / max(highest, 1e-9))
            for i, value in enumerate(curve)
        ]  # fmt: skip
        draw.line(points, fill=color, width=3, joint="curve")
    x = left
    y = top - 24
    draw_text(canvas, (x, y), "distance as parts are hidden:", NOTE, MUTED, centred=False)
    x += round(text_width("distance as parts are hidden:", NOTE)) + 12
    for _, color, name in curves:
        draw_text(canvas, (x, y), name, NOTE, color, centred=False)
        x += round(text_width(name, NOTE)) + 14


def _draw_neighbours(
    canvas: Image.Image, corner: tuple[int, int], neighbours: Sequence[Neighbour]
) -> None:
    x, y = corner
    title = "nearest training identities, by their stored thumbnails"
    draw_text(canvas, (x, y - 4), title, NOTE, MUTED, centred=False)
    for neighbour in neighbours[:MOST_NEIGHBOURS]:
        thumbnail = Image.fromarray(neighbour.thumbnail)
        draw_picture(canvas, thumbnail, (x, y + 20), (THUMBNAIL, THUMBNAIL))
        middle = (x + THUMBNAIL // 2, y + THUMBNAIL + 22)
        draw_text(canvas, middle, f"{neighbour.distance:.3f}", NOTE, MUTED)
        x += THUMBNAIL + 16
