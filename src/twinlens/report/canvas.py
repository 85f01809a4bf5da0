"""Drawing on a canvas: cards, pictures and lines of text.

Text falls back to other fonts, and finally to squares, for missing glyphs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["CARD", "GREEN", "GROUND", "INK", "LINE", "MUTED", "RED", "Color", "aspect_ratio",
           "box_size", "draw_card", "draw_picture", "draw_text", "text_width"]  # fmt: skip

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GREEN: Color = (22, 150, 72)
RED: Color = (211, 47, 47)
INK: Color = (28, 30, 36)
MUTED: Color = (108, 113, 124)
LINE: Color = (214, 217, 223)
CARD: Color = (255, 255, 255)
GROUND: Color = (246, 247, 249)

SMOOTH = 4  # Rounded corners are drawn this much larger and shrunk.
TINY = 64  # Smaller pictures keep their pixels when enlarged.
RADIUS = 14

# Fallbacks in this order for glyphs that the first font lacks, if installed.
FALLBACK_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc", "wqy-microhei.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc",
    "msgothic.ttc", "malgun.ttf", "Arial Unicode.ttf", "NotoSans-Regular.ttf", "unifont.ttf",
)  # fmt: skip


def aspect_ratio(pictures: Sequence[Image.Image]) -> float:
    """Width by height of the median picture, within 1:2 and 5:2; 1 without pictures."""
    ratios = [picture.width / picture.height for picture in pictures]
    return float(np.clip(np.median(ratios), 0.5, 2.5)) if ratios else 1.0


def box_size(pictures: Sequence[Image.Image], area: int) -> tuple[int, int]:
    """Width and height of a place of `area` pixels in the aspect ratio of the median picture."""
    ratio = aspect_ratio(pictures)
    return round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)


def draw_picture(
    canvas: Image.Image,
    picture: Image.Image | None,
    corner: tuple[int, int],
    box: tuple[int, int],
    frame: Color | None = None,
    missing: str = "unreadable",
) -> None:
    """Put a picture into the middle of a box, with a hairline so that white paper has an edge.

    Args:
        canvas: picture to draw on.
        picture: picture of any size, enlarged or shrunk in its aspect ratio; below 64 pixels its
            pixels stay sharp squares. None draws an empty place.
        corner: left and top of the box.
        box: its width and height.
        frame: a thicker frame around the picture.
        missing: text in an empty place.
    """
    fitted = Image.new("RGB", box, LINE) if picture is None else _fitted(picture, box)
    x = corner[0] + (box[0] - fitted.width) // 2
    y = corner[1] + (box[1] - fitted.height) // 2
    canvas.paste(fitted, (x, y))
    edge = (x - 1, y - 1, x + fitted.width, y + fitted.height)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle(edge, outline=LINE)
    if frame is not None:
        draw.rectangle((edge[0] - 3, edge[1] - 3, edge[2] + 3, edge[3] + 3), outline=frame, width=4)
    if picture is None:
        middle = (corner[0] + box[0] // 2, corner[1] + box[1] // 2 - 12)
        draw_text(canvas, middle, missing, 17, MUTED, width=box[0])


def draw_card(
    canvas: Image.Image, box: tuple[int, int, int, int], color: Color, width: int
) -> None:
    """A white card with rounded corners and a frame `width` wide, smooth at its edges."""
    size = (box[2] - box[0], box[3] - box[1])
    for inset, fill in ((0, color), (width, CARD)):
        large = Image.new("L", (size[0] * SMOOTH, size[1] * SMOOTH))
        edge = inset * SMOOTH
        ImageDraw.Draw(large).rounded_rectangle(
            (edge, edge, large.width - 1 - edge, large.height - 1 - edge),
            radius=(RADIUS - inset) * SMOOTH,
            fill=255,
        )
        canvas.paste(fill, box, large.resize(size, Image.Resampling.BOX))


def draw_text(
    canvas: Image.Image,
    at: tuple[int, int],
    text: str,
    size: int,
    color: Color,
    *,
    bold: bool = False,
    centred: bool = True,
    width: int | None = None,
) -> None:
    """Write one line below `at`, its middle or its left end, shortened to `width` pixels."""
    line = " ".join(text.split()) if width is None else _shortened(text, size, bold, width)
    line, font = _drawable(line, size, bold)
    left = at[0] - font.getlength(line) / 2 if centred else at[0]
    ImageDraw.Draw(canvas).text((left, at[1]), line, fill=color, font=font)


def text_width(text: str, size: int, bold: bool = False) -> float:
    """The width of a line in pixels."""
    line, font = _drawable(text, size, bold)
    return float(font.getlength(line))


def _fitted(picture: Image.Image, box: tuple[int, int]) -> Image.Image:
    picture = picture.convert("RGB")
    scale = min(box[0] / picture.width, box[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if max(picture.size) >= TINY:
        return picture.resize(size, Image.Resampling.LANCZOS)
    whole = int(np.ceil(scale)) * 2  # Whole steps first, so that the squares come out alike.
    enlarged = (picture.width * whole, picture.height * whole)
    return picture.resize(enlarged, Image.Resampling.NEAREST).resize(size, Image.Resampling.BOX)


def _shortened(text: str, size: int, bold: bool, width: int) -> str:
    """The text with its middle left out; of a path, the last part stays as long as it fits."""
    text = " ".join(text.split())
    if text_width(text, size, bold) <= width:
        return text
    last = len(text) - 1 - text.rfind("/") if "/" in text else 0
    for kept in range(len(text) - 1, 1, -1):
        tail = max(kept // 2, min(last, kept - 1))
        short = f"{text[: kept - tail]}…{text[len(text) - tail :]}"
        if text_width(short, size, bold) <= width:
            return short
    return text[:1]


def _drawable(text: str, size: int, bold: bool) -> tuple[str, Font]:
    """A font that has every glyph of the text; if none has, the text with squares for some."""
    ours = _default_font(size, bold)
    if all(_has_glyph(ours, char) for char in text):
        return text, ours
    for name in FALLBACK_FONTS:
        font = _system_font(name, size)
        if font is not None and all(_has_glyph(font, char) for char in text):
            return text, font
    return "".join(char if _has_glyph(ours, char) else "□" for char in text), ours


@lru_cache(maxsize=32)
def _default_font(size: int, bold: bool) -> Font:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic and more."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _system_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_glyph(font: Font, char: str) -> bool:
    """Whether a font has a glyph: a missing one looks like that of an unassigned code point."""
    if char.isspace():
        return True
    try:
        drawn, missing = font.getmask(char), font.getmask("\U0010ffff")
    except (UnicodeError, ValueError):
        return False
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
