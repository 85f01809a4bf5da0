"""Pictures of more than 8 bits a channel as 8 bits, by the bits that they use.

Sensors of 10, 12 or 14 bits store their values in 16-bit files. Shifted right by 8 bits, 12-bit
values become nearly black.

Shapes: H height, W width.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["DEPTHS", "Sixteen", "boxes", "color_depth", "depth_of", "grey_depth", "is_bright",
           "load_low", "shifted", "sixteen_of"]  # fmt: skip

DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the sensors whose values lie in 16-bit files."""

BOX_PIXELS = 2**20  # Boxes are converted one by one, which bounds the copies.
HIGH_BYTE = 0x40  # of a value of more than 14 bits, at least
MAX_CHUNKS = 100
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF


@dataclass(frozen=True)
class Sixteen:
    """A file of 16-bit values, as its header says.

    Attributes:
        declared: bits that are used; None if the header does not say.
        scaled: whether Pillow scales the values to all 16 bits.
        low: layout of the low bytes of a colour picture, of which Pillow gives only the high ones;
            None for grey.
    """

    declared: int | None = None
    scaled: bool = False
    low: str | None = None


def depth_of(maximum: int) -> int:
    """The smallest of `DEPTHS` that holds a value of at most 16 bits.

    >>> [depth_of(value) for value in (0, 255, 256, 4095, 65535)]
    [8, 8, 10, 12, 16]
    """
    return next(depth for depth in DEPTHS if maximum < 1 << depth)


def sixteen_of(picture: Image.Image, stream: BinaryIO) -> Sixteen | None:
    """The 16-bit values of an opened picture that is not loaded yet; None for other pictures."""
    codec, rawmode, maximum = _layout(picture)
    grey = picture.mode.startswith("I;16") or picture.mode == "I"
    if not grey and ";16" not in rawmode:
        return None
    if picture.format == "JPEG2000" or (codec.startswith("ppm") and maximum != 0xFFFF):
        return Sixteen(scaled=True)
    declared = _declared_in_png(stream) if picture.format == "PNG" else _declared_in_tiff(picture)
    has_low = picture.mode in ("RGB", "RGBA")
    return Sixteen(declared, low=_low_rawmode(rawmode) if has_low else None)


def _layout(picture: Image.Image) -> tuple[str, str, int | None]:
    """The decoder of a picture, its name for the layout of the values, and their maximum in PPM."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return "", "", None
    codec, args = str(tiles[0][0]), tiles[0][3]
    args = args if isinstance(args, tuple) else (args,)
    maximum = args[1] if codec.startswith("ppm") else None
    return codec, str(args[0]) if args else "", maximum


def _low_rawmode(rawmode: str) -> str:
    """The layout under which the low bytes of a 16-bit colour picture are read as its values."""
    if rawmode == "LA;16B":
        return "RGBA"  # The four bytes of a pixel: grey high and low, alpha high and low.
    order = rawmode[-1]
    little = order == "L" or (order == "N" and sys.byteorder == "little")
    return rawmode[:-1] + ("B" if little else "L")


def load_low(picture: Image.Image, low: str) -> Image.Image:
    """The low bytes of a 16-bit colour picture that is opened again and not loaded yet."""
    tiles = picture.tile  # type: ignore[attr-defined]
    picture.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(low, *tile.args[1:]) if isinstance(tile.args, tuple) else low)
        for tile in tiles
    ]
    picture.load()
    if low != "RGBA":
        return picture
    _, grey, _, alpha = picture.split()
    return Image.merge("RGBA", (grey, grey, grey, alpha))


def _declared_in_png(stream: BinaryIO) -> int | None:
    """The significant bits of the chunk sBIT, which stands before the pixels."""
    stream.seek(8)
    for _ in range(MAX_CHUNKS):
        length, name = int.from_bytes(stream.read(4), "big"), stream.read(4)
        if name == b"sBIT":
            bits = stream.read(min(length, 3))
            return max(bits) if bits and max(bits) <= 16 else None
        if name in (b"", b"IDAT"):
            break
        stream.seek(length + 4, io.SEEK_CUR)
    return None


def _declared_in_tiff(picture: Image.Image) -> int | None:
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))
    if isinstance(bits, tuple) and bits and 8 < max(bits) < 16:
        return int(max(bits))
    maximum = tags.get(MAX_SAMPLE_VALUE)
    maximum = max(maximum) if isinstance(maximum, tuple) and maximum else maximum
    return depth_of(maximum) if isinstance(maximum, int) and 0xFF < maximum < 0xFFFF else None


# --- to 8 bits ----------------------------------------------------------------------------------


def boxes(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, upper, right, lower) that cover a picture of (width, height)."""
    width, height = size
    tall = max(1, BOX_PIXELS // min(width, BOX_PIXELS))
    for top in range(0, height, tall):
        for left in range(0, width, BOX_PIXELS):
            yield left, top, min(left + BOX_PIXELS, width), min(top + tall, height)


def grey_depth(picture: Image.Image) -> int | None:
    """The bits that a loaded picture "I" or "I;16" uses; None for more than 16, or a sign."""
    low = high = 0
    for box in boxes(picture.size):
        values_HW = _values(picture, None, box)
        low, high = min(low, int(values_HW.min())), max(high, int(values_HW.max()))
    return depth_of(high) if low >= 0 and high <= 0xFFFF else None


def color_depth(high: Image.Image, low: Image.Image) -> int:
    """The bits that the colours of a 16-bit picture use, from its high and low bytes."""
    return depth_of(max(int(_values(high, low, box)[:, :, :3].max()) for box in boxes(high.size)))


def is_bright(high: Image.Image) -> bool:
    """Whether the high bytes of a colour picture tell that more than 14 bits are used."""
    return any(band[1] >= HIGH_BYTE for band in high.getextrema()[:3])  # type: ignore[index]


def shifted(high: Image.Image, low: Image.Image | None, depth: int) -> Image.Image:
    """The upper 8 of `depth` bits of a 16-bit picture; larger values become 255.

    Args:
        high: a picture of mode "I" or "I;16", or the high bytes of a colour picture.
        low: the low bytes of a colour picture.
        depth: 8 to 16. Alpha that uses more bits is taken from all 16.
    """
    plain = Image.new("L" if low is None else high.mode, high.size)
    for box in boxes(high.size):
        values = np.minimum(_values(high, low, box) >> (depth - 8), 255).astype(np.uint8)
        plain.paste(Image.fromarray(values), box)
    if high.mode == "RGBA" and np.asarray(alpha := high.getchannel(3)).max() >= 1 << (depth - 8):
        plain.putalpha(alpha)
    return plain


def _values(
    high: Image.Image, low: Image.Image | None, box: tuple[int, int, int, int]
) -> NDArray[Any]:
    values: NDArray[Any] = np.asarray(high if box == (0, 0, *high.size) else high.crop(box))
    if low is None:
        return values
    wide: NDArray[np.uint16] = values.astype(np.uint16) << 8 | np.asarray(low.crop(box))
    return wide
