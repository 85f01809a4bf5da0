"""Bytes on disk -> one plain 8-bit picture -> the input array of a network.

Every picture that Pillow reads becomes "L" or "RGB"; every failure becomes a `PictureError` with a
short reason. This module decodes one picture at a time and may be called from several threads.

Shapes: C channels (1 grey, 3 colour), H height, W width.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from twinlens.config import PictureSettings
from twinlens.errors import DataError, PictureError

__all__ = ["Header", "open_picture", "read_array", "read_header", "to_array"]

WHITE = 255
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
# Resizing may push floats slightly out of [0, 1].
FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Header:
    """Format and size from the header of a file; the size as a viewer shows it."""

    format: str
    height: int
    width: int


def open_picture(
    source: str | Path | bytes, *, max_pixels: int, target: tuple[int, int] | None = None
) -> Image.Image:
    """Decode one picture into plain "L" or "RGB", upright and without transparency.

    EXIF orientation is applied; transparency is blended with white; animations give their first
    frame; colour profiles are ignored. 16-bit grey is shifted right by 8 bits. 32-bit integers
    that fit into 16 bits are treated alike (Pillow's mode for many 16-bit files); others are
    scaled from their minimum to their maximum. Floats in [0, 1] are multiplied by 255; others are
    scaled likewise. EPS as bytes is an error: reading it runs Ghostscript.

    Args:
        source: path, or bytes of a file.
        max_pixels: largest height x width that is decoded, checked in the header. Pillow's limit
            (twice `PIL.Image.MAX_IMAGE_PIXELS`) applies too.
        target: (height, width) to which the picture will be shrunk. A JPEG is then decoded at a
            reduced size of at least twice that, which is faster and nearly equal.
    Returns:
        A picture of mode "L" or "RGB" that keeps no file open.
    Raises:
        PictureError: missing, no permission, a folder, empty, too many pixels, broken, truncated,
            or not a picture.
    """
    with _opened(source, max_pixels) as picture:
        return _without_metadata(_plain(_loaded(picture, target)))


def read_header(source: str | Path | bytes, *, max_pixels: int) -> Header:
    """Format and upright size of a picture, read from its header only.

    Raises:
        PictureError: as in `open_picture`, for problems that the header shows.
    """
    with _opened(source, max_pixels) as picture:
        width, height = picture.size
        if _orientation(picture) in SIDEWAYS:
            width, height = height, width
        return Header(picture.format or "unknown", height, width)


def read_array(
    source: str | Path | bytes, spec: PictureSettings, *, max_pixels: int
) -> NDArray[np.uint8]:
    """`to_array(open_picture(...))`, for both training and answers.

    Returns:
        uint8, shape (C, H, W).
    Raises:
        PictureError: as in `open_picture`.
    """
    with _opened(source, max_pixels) as picture:
        return _fitted(_plain(_loaded(picture, spec.size)), spec)


def to_array(picture: Image.Image | NDArray[Any], spec: PictureSettings) -> NDArray[np.uint8]:
    """Convert a picture to the size, proportions and colour of `spec`.

    Resizing uses Pillow's bilinear filter, which is antialiased when shrinking. "stretch" ignores
    proportions; "pad" keeps them and centres the picture on grey level `spec.fill`; "crop" keeps
    them and takes the centre. Colour is converted to grey by ITU-R 601.

    Args:
        picture: any Pillow picture, or an array (H, W) or (H, W, 1 | 3 | 4) of uint8, bool, or
            floats in [0, 1]. Pillow pictures are converted as in `open_picture`.
        spec: picture settings of a model.
    Returns:
        uint8, shape (C, spec.size[0], spec.size[1]), contiguous.
    Raises:
        DataError: an array of another shape, type or range.
        PictureError: a Pillow picture whose file is broken.
    """
    plain = _from_picture(picture) if isinstance(picture, Image.Image) else _from_array(picture)
    return _fitted(plain, spec)


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


@contextmanager
def _opened(source: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """A lazily opened picture with a valid header; every failure is a PictureError."""
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
    with _quiet:
        try:
            with _stream(source, name) as stream:
                # All formats in advance: the lazy loading in Image.open loses formats when several
                # threads call it. preinit registers the common ones first.
                Image.preinit()
                Image.init()
                with Image.open(stream) as picture:
                    _check_header(picture, source, name, max_pixels)
                    yield picture
        except PictureError:
            raise
        except Image.DecompressionBombError:
            limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
            raise PictureError(name, f"more than {limit:,} pixels (data.max_pixels)") from None
        except Exception as error:
            # Decoders raise SyntaxError, struct.error, ValueError, EOFError, MemoryError, ...
            raise PictureError(name, _reason(error)) from error


def _stream(source: str | Path | bytes, name: str) -> IO[bytes]:
    if isinstance(source, bytes):
        if not source:
            raise PictureError(name, "empty")
        return io.BytesIO(source)
    path = Path(source)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise PictureError(name, "a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait forever.
        raise PictureError(name, "not a regular file")
    if status.st_size == 0:
        raise PictureError(name, "an empty file")
    return path.open("rb")


def _check_header(
    picture: Image.Image, source: str | Path | bytes, name: str, max_pixels: int
) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise PictureError(name, "has no pixels")
    if width * height > max_pixels:
        raise PictureError(
            name, f"{width:,} x {height:,} pixels, over the limit of {max_pixels:,}"
            " (data.max_pixels)",
        )  # fmt: skip
    if isinstance(source, bytes) and picture.format == "EPS":
        raise PictureError(name, "EPS is read from files only: it runs Ghostscript")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    errno_text = error.strerror if isinstance(error, OSError) else None  # str() has the path
    text = " ".join((errno_text or str(error)).split())
    text = f"{text[:80]}..." if len(text) > 80 else text
    if "truncated" in text or isinstance(error, EOFError):
        return f"truncated ({text or 'end of file'})"
    return f"broken ({text or type(error).__name__})"


def _loaded(picture: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    """Decoded and turned upright in place."""
    if target is not None:
        side = 2 * max(target)  # Square, since EXIF may turn the picture.
        picture.draft(None, (side, side))
    picture.load()
    with suppress(Exception):  # The pixels may be intact if the EXIF block is broken.
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _orientation(picture: Image.Image) -> int:
    # getexif() decodes a whole PNG without EXIF in its header; TIFF sizes are already turned.
    if "exif" not in picture.info or picture.format == "TIFF":
        return 1
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


# --- to plain 8-bit -----------------------------------------------------------------------------


def _from_picture(picture: Image.Image) -> Image.Image:
    """As `open_picture`, for a picture of the caller, which is not changed."""
    if min(picture.size) < 1:
        raise DataError(f"a picture needs at least one pixel, found size {picture.size}")
    name = str(getattr(picture, "filename", "") or "<picture>")
    with _quiet:
        try:
            picture.load()
        except Exception as error:
            raise PictureError(name, _reason(error)) from error
        try:
            upright = ImageOps.exif_transpose(picture)
        except Exception:
            upright = picture
        return _plain(upright)


def _plain(picture: Image.Image) -> Image.Image:
    """Any loaded picture as "L" or "RGB"; a picture of these modes is not copied."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.has_transparency_data or picture.mode in ("La", "LA", "PA", "RGBA", "RGBa"):
        return _on_white(picture)
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _without_metadata(picture: Image.Image) -> Image.Image:
    """A copy without EXIF, profiles and open file."""
    bare = Image.new(picture.mode, picture.size, None)
    bare.paste(picture)
    return bare


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """32-bit integers and floats as 8 bits; see `open_picture`."""
    if values.dtype.kind in "iu":
        if values.min() >= 0 and values.max() <= 0xFFFF:
            shifted: NDArray[np.uint8] = (values >> 8).astype(np.uint8)
            return shifted
        values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no finite values")
    low, high = float(values[finite].min()), float(values[finite].max())
    if not (low >= 0 and high <= 1):
        values = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
    values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    return _unit_to_bytes(values)


def _on_white(picture: Image.Image) -> Image.Image:
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.mode == "La":
        picture = picture.convert("LA")
    layered = picture.convert("RGBA")
    ground = Image.new("RGBA", layered.size, (WHITE, WHITE, WHITE, 255))
    flat = Image.alpha_composite(ground, layered)
    return flat.convert("RGB").getchannel(0) if grey else flat.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    array = np.asarray(array)
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_ok or array.size == 0:
        raise DataError(
            f"a picture array needs shape (H, W) or (H, W, 1 | 3 | 4), found {array.shape}"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        array = _from_floats(array)
    elif array.dtype != np.uint8:
        raise DataError(
            f"a picture array needs uint8, bool, or floats in [0, 1], found {array.dtype}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(array))
    return _on_white(picture) if picture.mode == "RGBA" else picture


def _from_floats(array: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    if not (low >= -FLOAT_TOLERANCE and high <= 1 + FLOAT_TOLERANCE):  # also true of NaN
        raise DataError(
            f"a picture array of floats needs values in [0, 1], found {low:g} to {high:g}: "
            "divide by the largest value, or pass uint8"
        )
    return _unit_to_bytes(array)


def _unit_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return rounded


# --- to the network's size ----------------------------------------------------------------------


def _fitted(plain: Image.Image, spec: PictureSettings) -> NDArray[np.uint8]:
    if spec.color == "grey" and plain.mode != "L":
        plain = plain.convert("L")  # Before resizing: a third of the work.
    fitted = _FITS[spec.fit](plain, spec)
    if spec.color == "rgb" and fitted.mode != "RGB":
        fitted = fitted.convert("RGB")
    array: NDArray[np.uint8] = np.asarray(fitted, dtype=np.uint8)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return np.array(array, order="C", copy=True)


def _stretch(picture: Image.Image, spec: PictureSettings) -> Image.Image:
    height, width = spec.size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _pad(picture: Image.Image, spec: PictureSettings) -> Image.Image:
    height, width = spec.size
    scale = min(height / picture.height, width / picture.width)
    inner = (
        min(width, max(1, round(picture.width * scale))),
        min(height, max(1, round(picture.height * scale))),
    )
    small = picture.resize(inner, Image.Resampling.BILINEAR) if inner != picture.size else picture
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
