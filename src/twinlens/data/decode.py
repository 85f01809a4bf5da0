"""Bytes on disk -> one plain 8-bit picture -> the input array of a network.

Every picture becomes "L" or "RGB"; every failure becomes a `PictureError` with a short reason. This
module decodes one picture at a time and may be called from several threads, which share a budget of
memory; files are opened by `picture_file`.

Shapes: C channels (1 grey, 3 colour), H height, W width.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from twinlens.config import PictureSettings
from twinlens.data.arrays import picture_array, unit_to_bytes
from twinlens.data.depth import (
    Sixteen,
    boxes,
    color_depth,
    grey_depth,
    is_bright,
    load_low,
    shifted,
    sixteen_of,
)
from twinlens.data.picture_file import (
    jxl_size,
    open_file,
    picture_formats,
    reason_of,
    reserved,
    unread_content,
)
from twinlens.errors import DataError, PictureError, TwinlensError

__all__ = ["Header", "PictureSource", "open_picture", "read_array", "read_comment", "read_depth",
           "read_header", "read_sized", "to_array"]  # fmt: skip

log = logging.getLogger("twinlens")

WHITE = 255
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
MAX_SIDE = 2**16  # pixels that are resized in one step
MAX_BETWEEN = 2**24  # pixels between the two passes of resizing
MAX_SCANS = 100  # of a JPEG; encoders write up to 20, and each may cost as much as a picture
MAX_SLOW_PIXELS = 25_000_000  # for the decoders of PPM in Python, some 2 million a second
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others 4
# Bytes for each pixel that a decoder takes beside the picture, measured; the formats that are read
# only on demand are taken to need 8.
DECODER_BYTES = {"PNG": 0, "GIF": 0, "BMP": 0, "PPM": 0, "TGA": 0, "WEBP": 14, "AVIF": 12,
                 "HEIF": 12, "JXL": 16}  # fmt: skip
ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT = 278, 322, 323  # tags of TIFF
START_OF_SCAN = b"\xff\xda"
WHOLE_FILES = {"WEBP", "AVIF", "HEIF", "JXL"}  # Their decoders read the whole file into memory.


PictureSource: TypeAlias = str | Path | bytes | NDArray[Any]
"""The path of a picture, the bytes of its file, or its pixels."""


@dataclass(frozen=True)
class Header:
    """Format, size as a viewer shows it, and whether values have 16 bits, from a file's header."""

    format: str
    height: int
    width: int
    sixteen_bit: bool = False


def open_picture(
    source: PictureSource, *, max_pixels: int, target: tuple[int, int] | None = None
) -> Image.Image:
    """Decode one picture into plain "L" or "RGB", upright and without transparency.

    EXIF orientation is applied; transparency is blended with white; animations give their first
    frame; colour profiles are ignored. Of 16-bit values the upper 8 of the bits in use are taken,
    see `depth`. 32-bit integers that fit into 16 bits are treated alike (Pillow's mode for many
    16-bit files); others are scaled from their minimum to their maximum. Floats in [0, 1] are
    multiplied by 255; others are scaled likewise. Formats are those of
    `picture_file.picture_formats`.

    Args:
        source: path, bytes of a file, or an array as of `to_array`, which is no file.
        max_pixels: largest height x width that is decoded, checked in the header. Pillow's limit
            (twice `PIL.Image.MAX_IMAGE_PIXELS`) applies too.
        target: (height, width) to which the picture will be shrunk. A JPEG is then decoded at a
            reduced size of at least twice that, which is faster and nearly equal.
    Returns:
        A picture of mode "L" or "RGB" that keeps no file open.
    Raises:
        PictureError: missing, no permission, a folder, empty, too many pixels, too little memory,
            broken, truncated, or not a picture of a format that is read.
        ConfigError: an environment variable of `picture_file` with an invalid value.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    with _opened(source, max_pixels) as file, _memory(file, target):
        return _without_metadata(_plain(_loaded(file, None), None))


def read_header(source: PictureSource, *, max_pixels: int) -> Header:
    """Format and upright size of a picture, read from its header only.

    Raises:
        PictureError: as in `open_picture`, for problems that the header shows.
    """
    if isinstance(source, np.ndarray):
        height, width = picture_array(source).shape[:2]
        return Header("array", height, width)
    with _opened(source, max_pixels) as file:
        picture = file.picture
        width, height = picture.size
        if _orientation(picture) in SIDEWAYS:
            width, height = height, width
        return Header(picture.format or "unknown", height, width, file.sixteen is not None)


def read_comment(source: str | Path | bytes, *, max_pixels: int) -> str | None:
    """The comment of a PNG or JPEG file, read from its header only; None if it has none.

    Raises:
        PictureError: as in `open_picture`, for problems that the header shows.
    """
    with _opened(source, max_pixels) as file:
        info = file.picture.info
        comment = info.get("comment", info.get("Comment"))
        return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment


def read_depth(source: PictureSource, *, max_pixels: int) -> int | None:
    """The bits that a 16-bit picture uses, one of `depth.DEPTHS`; None for other pictures.

    Files that Pillow scales to all 16 bits have none either.

    Raises:
        PictureError: as in `open_picture`.
    """
    if isinstance(source, np.ndarray):
        return None
    with _opened(source, max_pixels) as file:
        if file.sixteen is None or file.sixteen.scaled:
            return None
        with _memory(file, None):
            _loaded(file, None)
            return file.depth


def read_array(
    source: PictureSource, spec: PictureSettings, *, max_pixels: int, resize: bool = True
) -> NDArray[np.uint8]:
    """`to_array(open_picture(...))` with the depth of `spec`, for both training and answers.

    Returns:
        uint8, shape (C, H, W).
    Raises:
        PictureError: as in `open_picture`.
    """
    return read_sized(source, spec, max_pixels=max_pixels, resize=resize)[0]


def read_sized(
    source: PictureSource, spec: PictureSettings, *, max_pixels: int, resize: bool = True
) -> tuple[NDArray[np.uint8], int]:
    """`read_array`, and the number of pixels of the file, before resizing.

    Raises:
        PictureError: as in `open_picture`.
    """
    if isinstance(source, np.ndarray):
        plain = _from_array(source)
        return _fitted(plain, spec, resize), plain.width * plain.height
    with _opened(source, max_pixels) as file:
        num_pixels = file.picture.width * file.picture.height  # A JPEG's draft is smaller.
        with _memory(file, spec.size if resize else None):
            return _decoded(file, spec, resize), num_pixels


def _decoded(file: _PictureFile, spec: PictureSettings, resize: bool) -> NDArray[np.uint8]:
    array = _fitted(_plain(_loaded(file, spec.depth), spec.depth), spec, resize)
    if spec.depth is None and file.depth not in (None, 16):
        _warn_once(
            "16-bit pictures of fewer bits are scaled by the bits that each uses, %d in %s; "
            "the setting picture.depth is one number for all",
            file.depth, file.name,
        )  # fmt: skip
    return array


def to_array(
    picture: Image.Image | NDArray[Any], spec: PictureSettings, *, resize: bool = True
) -> NDArray[np.uint8]:
    """Convert a picture to the size, proportions and colour of `spec`.

    Resizing uses Pillow's bilinear filter, which is antialiased when shrinking. "stretch" ignores
    proportions; "pad" keeps them and centres the picture on grey level `spec.fill`; "crop" keeps
    them and takes the centre. Colour is converted to grey by ITU-R 601.

    Args:
        picture: any Pillow picture, converted as in `open_picture`; or an array as of
            `arrays.picture_array`.
        spec: picture settings of a model.
        resize: False for a network that resizes pictures itself: only the colour is converted.
    Returns:
        uint8, shape (C, spec.size[0], spec.size[1]), contiguous; without resizing (C, H, W).
    Raises:
        DataError: an array of another shape, type or range.
        PictureError: a Pillow picture whose file is broken.
    """
    if isinstance(picture, Image.Image):
        return _fitted(plain_picture(picture, spec.depth), spec, resize)
    return _fitted(_from_array(picture), spec, resize)


# --- opening ------------------------------------------------------------------------------------


class _Quiet:
    """Suppress warnings while at least one thread is inside.

    `warnings.catch_warnings` alone is not safe if threads enter and leave out of order: the last
    one may restore a filter list that another thread has changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)


_quiet = _Quiet()


@dataclass
class _PictureFile:
    """An opened picture.

    Attributes:
        picture: opened, not loaded.
        stream: its file.
        name: path, or the number of bytes.
        num_bytes: length of the file.
        sixteen: its 16-bit values.
        depth: the bits that 16-bit values use, once they are loaded; None for other pictures.
    """

    picture: Image.Image
    stream: BinaryIO
    name: str
    num_bytes: int
    sixteen: Sixteen | None
    depth: int | None = None


@contextmanager
def _opened(source: str | Path | bytes, max_pixels: int) -> Iterator[_PictureFile]:
    """A lazily opened picture with a valid header; every failure is a PictureError."""
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
    formats = picture_formats()
    with _quiet:
        try:
            with _stream(source, name) as stream:
                num_bytes = stream.seek(0, io.SEEK_END)
                stream.seek(0)
                with (
                    reserved("file", name, num_bytes),
                    _jxl_memory(stream, name, max_pixels, num_bytes)
                    if "JXL" in formats
                    else nullcontext(),
                    _identified(stream, name, formats) as picture,
                ):
                    _check_size(picture.size, name, max_pixels)
                    yield _PictureFile(
                        picture, stream, name, num_bytes, sixteen_of(picture, stream)
                    )
        except TwinlensError:
            raise
        except Image.DecompressionBombError:
            limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
            raise PictureError(name, f"more than {limit:,} pixels (data.max_pixels)") from None
        except Exception as error:
            # Decoders raise SyntaxError, struct.error, ValueError, EOFError, MemoryError, ...
            raise PictureError(name, reason_of(error)) from error


def _stream(source: str | Path | bytes, name: str) -> BinaryIO:
    if not isinstance(source, bytes):
        return open_file(source)
    if not source:
        raise PictureError(name, "empty")
    return io.BytesIO(source)


def _identified(stream: BinaryIO, name: str, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        stream.seek(0)
        reason = unread_content(stream.read(32))
        if reason is None:
            raise
        raise PictureError(name, reason) from None


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(name, "has no pixels")
    if width * height > max_pixels:
        raise PictureError(
            name, f"{width:,} x {height:,} pixels, over the limit of {max_pixels:,}"
            " (data.max_pixels)",
        )  # fmt: skip


def _jxl_memory(
    stream: BinaryIO, name: str, max_pixels: int, num_bytes: int
) -> AbstractContextManager[None]:
    """The memory for a JPEG XL, whose plugin decodes it as it is opened; nothing for others."""
    size = jxl_size(stream)
    stream.seek(0)
    if size is None:
        return nullcontext()
    _check_size(size, name, max_pixels)
    num_pixels = size[0] * size[1]
    if num_pixels > 2 * (Image.MAX_IMAGE_PIXELS or num_pixels):
        raise Image.DecompressionBombError
    return reserved("pixels", name, (DECODER_BYTES["JXL"] + 8) * num_pixels, num_bytes)


def _memory(file: _PictureFile, target: tuple[int, int] | None) -> AbstractContextManager[None]:
    """The memory to decode a picture, and for its plain copy.

    Args:
        file: an opened picture.
        target: as in `open_picture`; it sets the reduced size of a JPEG.
    Raises:
        PictureError: what would be decoded for minutes.
    """
    picture, (width, height) = file.picture, file.picture.size
    _check_time(file)
    if picture.format == "JXL":  # Held since it was opened.
        return nullcontext()
    if target is not None:
        side = 2 * max(target)  # Square, since EXIF may turn the picture.
        picture.draft(None, (side, side))
    pixel_bytes = PIXEL_BYTES.get(picture.mode, 4)
    num_bytes = (
        _decoder_bytes(picture, width * height)
        + _picture_bytes(picture.size, pixel_bytes)
        + _picture_bytes(picture.size, 4 if picture.mode == "P" else pixel_bytes)
        + (0 if file.sixteen is None or file.sixteen.low is None else 4 * width * height)
    )
    whole = file.num_bytes if picture.format in WHOLE_FILES else 0
    return reserved("pixels", file.name, num_bytes, whole)


def _picture_bytes(size: tuple[int, int], pixel_bytes: int) -> int:
    width, height = size
    # Pillow keeps a pointer to each row, and fills rows up to 4 bytes.
    return height * (8 + (pixel_bytes * width + 3) // 4 * 4)


def _decoder_bytes(picture: Image.Image, num_pixels: int) -> int:
    """Bytes that the decoder of a file of `num_pixels` takes beside the picture."""
    bands = len(picture.getbands())
    if picture.format == "TIFF":
        # A strip or tile is decoded as a whole, and a tile may claim to be larger than the picture.
        tags, (width, height) = picture.tag_v2, picture.size  # type: ignore[attr-defined]
        tall, wide = tags.get(TILE_HEIGHT, 0), tags.get(TILE_WIDTH, 0)
        strip = width * min(height, tags.get(ROWS_PER_STRIP, height))
        return 0 if _codec(picture) == "raw" else 4 * bands * max(strip, tall * wide)
    if picture.format in ("JPEG", "MPO"):  # A progressive one keeps its coefficients.
        return 2 * bands * num_pixels if picture.info.get("progressive") else 0
    if picture.format == "JPEG2000":
        return (4 * bands + 4) * num_pixels
    return DECODER_BYTES.get(picture.format or "", 8) * num_pixels


def _codec(picture: Image.Image) -> str:
    tiles = getattr(picture, "tile", None)
    return str(tiles[0][0]) if tiles else ""


def _check_time(file: _PictureFile) -> None:
    """Refuse what would be decoded for minutes: no thread can be stopped.

    Raises:
        PictureError: too many scans of a JPEG, or pixels of a PPM that is decoded in Python.
    """
    picture, stream = file.picture, file.stream
    num_pixels = picture.width * picture.height
    if _codec(picture).startswith("ppm") and num_pixels > MAX_SLOW_PIXELS:
        raise PictureError(
            file.name, f"{num_pixels:,} pixels, over the limit of {MAX_SLOW_PIXELS:,} for PPM as "
            "text or with an unusual maximum: convert it to PNG",
        )  # fmt: skip
    if picture.format in ("JPEG", "MPO") and _has_scans(picture, stream):
        stream.seek(0)
        num_scans, before = 0, b""
        while block := stream.read(2**20):
            num_scans += (before + block).count(START_OF_SCAN)
            before = block[-1:]
        if num_scans > MAX_SCANS:
            raise PictureError(file.name, f"a JPEG of {num_scans:,} scans, at most {MAX_SCANS}")


def _has_scans(picture: Image.Image, stream: BinaryIO) -> bool:
    """Whether a JPEG is divided into scans, which may be any number."""
    if picture.info.get("progressive"):
        return True
    # Pillow has read up to the marker of the first scan; its third byte counts the channels.
    head = stream.read(3)
    return picture.format == "MPO" or len(head) < 3 or head[2] != len(picture.getbands())


def _loaded(file: _PictureFile, depth: int | None) -> Image.Image:
    """Decoded, upright, and of 8 bits a channel, except for 32-bit integers and floats.

    Args:
        file: an opened picture, whose `depth` is set.
        depth: as in `PictureSettings`.
    """
    picture = file.picture
    picture.load()
    if file.sixteen is not None:
        picture = _of_sixteen(file, file.sixteen, depth)
    with suppress(Exception):  # The pixels may be intact if the EXIF block is broken.
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _of_sixteen(file: _PictureFile, sixteen: Sixteen, depth: int | None) -> Image.Image:
    """A loaded picture of 16-bit values as 8 bits; unchanged if they have more bits."""
    high, low = file.picture, None
    if high.mode not in ("RGB", "RGBA"):
        used = grey_depth(high)
    elif sixteen.low is None or (depth is None and is_bright(high)) or depth == 16:
        used = 16
    else:
        file.stream.seek(0)
        with Image.open(file.stream, formats=[high.format or ""]) as again:
            low = load_low(again, sixteen.low)
        used = color_depth(high, low)
    if used is None:  # Pillow's mode for integers of 32 bits.
        return high
    file.depth = used if sixteen.declared is None else max(used, sixteen.declared)
    chosen = 16 if sixteen.scaled else file.depth if depth is None else depth
    if low is None and high.mode in ("RGB", "RGBA"):
        return high
    plain = shifted(high, low, chosen)
    plain.info = {k: v for k, v in high.info.items() if k != "transparency"}
    return plain


def _orientation(picture: Image.Image) -> int:
    # getexif() decodes a whole PNG without EXIF in its header; TIFF sizes are already turned.
    if "exif" not in picture.info or picture.format == "TIFF":
        return 1
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


# --- to plain 8-bit -----------------------------------------------------------------------------


def plain_picture(picture: Image.Image, depth: int | None = None) -> Image.Image:
    """As `open_picture`, for a picture of the caller, which is not changed.

    Raises:
        DataError: a picture without pixels.
        PictureError: its file is broken.
    """
    if min(picture.size) < 1:
        raise DataError(f"a picture needs at least one pixel, found size {picture.size}")
    name = str(getattr(picture, "filename", "") or "<picture>")
    with _quiet:
        try:
            picture.load()
        except Exception as error:
            raise PictureError(name, reason_of(error)) from error
        try:
            upright = ImageOps.exif_transpose(picture)
        except Exception:
            upright = picture
        return _plain(upright, depth)


def _plain(picture: Image.Image, depth: int | None) -> Image.Image:
    """Any loaded picture as "L" or "RGB"; a picture of these modes is not copied."""
    if picture.mode.startswith("I"):
        used = grey_depth(picture)
        if used is not None:
            return shifted(picture, None, used if depth is None else depth)
    if picture.mode in ("I", "F"):
        return _eight_bits(picture)
    if picture.has_transparency_data or picture.mode in ("La", "LA", "PA", "RGBA", "RGBa"):
        return _on_white(picture)
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _without_metadata(picture: Image.Image) -> Image.Image:
    """A picture without EXIF, profiles and open file; a copy of one that has a file."""
    if not isinstance(picture, ImageFile.ImageFile):
        picture.info = {}
        return picture
    bare = Image.new(picture.mode, picture.size, None)
    bare.paste(picture)
    return bare


def _eight_bits(picture: Image.Image) -> Image.Image:
    """32-bit integers and floats as 8 bits; see `open_picture`."""
    low, high = np.inf, -np.inf
    for box in boxes(picture.size):
        values = np.asarray(picture.crop(box))
        if (finite := values[np.isfinite(values)]).size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise ValueError("no finite values")
    scaled = picture.mode == "I" or not (low >= 0 and high <= 1)
    if scaled:
        _warn_once(
            "32-bit integers, and floats beyond [0, 1], are scaled from the minimum to the maximum "
            "of each picture"
        )
    plain = Image.new("L", picture.size)
    for box in boxes(picture.size):
        values = np.asarray(picture.crop(box))
        if scaled:
            values = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
        values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
        plain.paste(Image.fromarray(unit_to_bytes(values)), box)
    return plain


def _on_white(picture: Image.Image) -> Image.Image:
    grey = picture.mode in ("1", "L", "LA", "La")
    plain = Image.new("L" if grey else "RGB", picture.size)
    for box in boxes(picture.size):
        part = picture.crop(box)
        if part.mode == "La":
            part = part.convert("LA")
        layered = part.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (WHITE, WHITE, WHITE, 255))
        flat = Image.alpha_composite(ground, layered)
        plain.paste(flat.getchannel(0) if grey else flat.convert("RGB"), box)
    return plain


_warned: set[str] = set()


def _warn_once(message: str, *values: object) -> None:
    """One line for all pictures of a process."""
    if message not in _warned:
        _warned.add(message)
        log.warning(message, *values)


def _from_array(array: NDArray[Any]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(picture_array(array)))
    return _on_white(picture) if picture.mode == "RGBA" else picture


# --- to the network's size ----------------------------------------------------------------------


def _fitted(plain: Image.Image, spec: PictureSettings, resize: bool) -> NDArray[np.uint8]:
    if spec.color == "grey" and plain.mode != "L":
        plain = plain.convert("L")  # Before resizing: a third of the work.
    fitted = _FITS[spec.fit](plain, spec) if resize else plain
    if spec.color == "rgb" and fitted.mode != "RGB":
        fitted = fitted.convert("RGB")
    array: NDArray[np.uint8] = np.asarray(fitted, dtype=np.uint8)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return np.array(array, order="C", copy=True)


def _stretch(picture: Image.Image, spec: PictureSettings) -> Image.Image:
    height, width = spec.size
    return picture if picture.size == (width, height) else _resized(picture, (width, height))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # The weights of resizing take 16 bytes for each pixel of a side.
    shrink = [max(1, side // MAX_SIDE) for side in picture.size]
    if max(shrink) > 1:
        picture = picture.reduce((shrink[0], shrink[1]))
    width, height = size
    if height < picture.height and width * picture.height > MAX_BETWEEN:
        # Pillow resizes to the new width first, which is large if a thread becomes wider.
        picture = picture.resize((picture.width, height), Image.Resampling.BILINEAR)
    return picture.resize(size, Image.Resampling.BILINEAR)


def _pad(picture: Image.Image, spec: PictureSettings) -> Image.Image:
    height, width = spec.size
    scale = min(height / picture.height, width / picture.width)
    inner = (
        min(width, max(1, round(picture.width * scale))),
        min(height, max(1, round(picture.height * scale))),
    )
    small = _resized(picture, inner) if inner != picture.size else picture
    fill = spec.fill if picture.mode == "L" else (spec.fill,) * 3
    ground = Image.new(picture.mode, (width, height), fill)
    ground.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return ground


def _crop(picture: Image.Image, spec: PictureSettings) -> Image.Image:
    height, width = spec.size
    scale = max(height / picture.height, width / picture.width)
    keep_w = min(float(picture.width), width / scale)
    keep_h = min(float(picture.height), height / scale)
    left, top = (picture.width - keep_w) / 2, (picture.height - keep_h) / 2
    box = (left, top, left + keep_w, top + keep_h)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


_FITS = {"stretch": _stretch, "pad": _pad, "crop": _crop}
