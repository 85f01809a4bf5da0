"""Decoding: every kind of file against values worked by hand, and every kind of failure."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin

from twinlens.config import PictureSettings
from twinlens.data import decode, picture_file
from twinlens.data.decode import open_picture, read_array, read_depth, read_header, to_array
from twinlens.data.picture_file import file_digest, picture_suffixes, unread_suffix
from twinlens.errors import ConfigError, DataError, PictureError

LIMIT = 10_000_000


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes | Path, **options: object) -> np.ndarray:
    return np.asarray(open_picture(data, max_pixels=LIMIT, **options))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI", "QOI"])
def test_lossless_formats_keep_every_pixel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_FORMATS", "pcx, SGI,qoi")
    picture = noise(5, 7)
    got = open_picture(encode(picture, kind), max_pixels=LIMIT)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), np.asarray(picture))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000", "GIF"])
def test_lossy_formats_come_close(kind: str) -> None:
    smooth = Image.linear_gradient("L").resize((32, 48)).convert("RGB")
    got = open_picture(encode(smooth, kind), max_pixels=LIMIT)
    assert (got.mode, got.size) == ("RGB", (32, 48))
    assert np.abs(np.asarray(got).astype(int) - np.asarray(smooth)).mean() < 4


def test_grey_stays_grey_and_bits_become_black_and_white() -> None:
    assert open_picture(encode(noise(4, 4, 1), "PNG"), max_pixels=LIMIT).mode == "L"
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    np.testing.assert_array_equal(pixels(encode(bits, "PNG")), [[0, 255], [255, 0]])


def test_pgm_follows_its_format() -> None:
    np.testing.assert_array_equal(pixels(b"P5 3 1 255\n\x00\x7f\xff"), [[0, 127, 255]])
    np.testing.assert_array_equal(pixels(b"P2 3 1 255\n0 127 255\n"), [[0, 127, 255]])
    # Two bytes a value, most significant first: 0x0100 >> 8 = 1.
    sixteen = b"P5 3 1 65535\n\x00\xff\x01\x00\xff\xff"
    np.testing.assert_array_equal(pixels(sixteen), [[0, 1, 255]])


def sixteen_bit_png(
    values_HWC: np.ndarray, color_type: int, *, significant: int | None = None
) -> bytes:
    """A 16-bit PNG written by hand: Pillow writes none in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    height, width = values_HWC.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    bits = b"" if significant is None else chunk(b"sBIT", bytes([significant]))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + bits
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_values_are_taken_from_the_bits_that_a_picture_uses(depth: int) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    values = eight << (depth - 8) | (1 << (depth - 8)) - 1
    little, big = Image.fromarray(values), Image.frombytes("I;16B", (16, 16), values.astype(">u2"))
    whole = Image.fromarray(values.astype(np.int32))
    for kind, picture in (("PNG", little), ("TIFF", little), ("TIFF", big), ("TIFF", whole)):
        data = encode(picture, kind)
        np.testing.assert_array_equal(pixels(data), eight)
        assert read_depth(data, max_pixels=LIMIT) == depth
        assert read_header(data, max_pixels=LIMIT).sixteen_bit
    np.testing.assert_array_equal(to_array(little, spec((16, 16)))[0], eight)
    # A known depth holds for dark pictures too, and brighter values become white.
    dark = encode(Image.fromarray(values >> 2), "PNG")
    got = read_array(dark, spec((16, 16), depth=depth), max_pixels=LIMIT)[0]
    np.testing.assert_array_equal(got, eight >> 2)
    got = read_array(encode(little, "PNG"), spec((16, 16), depth=8), max_pixels=LIMIT)[0]
    np.testing.assert_array_equal(got, np.minimum(values, 255))


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("depth", [10, 12, 16])
def test_colours_of_sixteen_bits(color_type: int, channels: int, depth: int) -> None:
    """Pillow reads the high bytes only, which are nearly black."""
    eight = np.random.default_rng(0).integers(0, 256, (9, 7, channels)).astype(np.uint16)
    eight[0, 0] = 255
    values = eight << (depth - 8)
    if channels % 2 == 0:
        values[:, :, -1] = 0xFFFF
    got = pixels(sixteen_bit_png(values, color_type))
    want = eight[:, :, :1].repeat(3, 2) if channels == 2 else eight[:, :, :3]
    np.testing.assert_array_equal(got, want)
    assert read_depth(sixteen_bit_png(values, color_type), max_pixels=LIMIT) == depth


def test_bits_that_a_header_declares() -> None:
    dark = np.full((2, 2, 1), 0x3FF, dtype=np.uint16)
    assert read_depth(sixteen_bit_png(dark, 0), max_pixels=LIMIT) == 10
    assert read_depth(sixteen_bit_png(dark, 0, significant=12), max_pixels=LIMIT) == 12
    # Scaled to all 16 bits, as PNG's text wants it.
    assert read_depth(sixteen_bit_png(dark * 64, 0, significant=12), max_pixels=LIMIT) == 16
    maximum = encode(Image.fromarray(dark[:, :, 0]), "TIFF", tiffinfo={281: 4095})
    assert read_depth(maximum, max_pixels=LIMIT) == 12
    np.testing.assert_array_equal(pixels(maximum), 63)
    # Pillow scales a PGM by its maximum.
    np.testing.assert_array_equal(pixels(b"P5 2 1 4095\n\x0f\xff\x01\x00"), [[255, 16]])
    assert read_depth(encode(noise(4, 4), "PNG"), max_pixels=LIMIT) is None


def test_one_line_says_that_depths_were_found(caplog: pytest.LogCaptureFixture) -> None:
    decode._warned.clear()
    twelve = encode(Image.fromarray(np.full((2, 2), 4095, np.uint16)), "PNG")
    for _ in range(3):
        read_array(twelve, spec((2, 2)), max_pixels=LIMIT)
    read_array(twelve, spec((2, 2), depth=12), max_pixels=LIMIT)
    assert len(caplog.messages) == 1
    assert "12 in" in caplog.messages[0]
    assert "picture.depth" in caplog.messages[0]


def test_sixteen_bits_are_shifted() -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        got = open_picture(encode(Image.fromarray(values), kind), max_pixels=LIMIT)
        assert got.mode == "L"
        np.testing.assert_array_equal(np.asarray(got), [[0, 0, 1, 0x12, 0xFF]])
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(encode(big_endian, "TIFF")), [[0, 0, 1, 0x12, 0xFF]])


def test_whole_numbers_of_32_bits() -> None:
    def tiff(values: list[int]) -> bytes:
        return encode(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")

    np.testing.assert_array_equal(pixels(tiff([0, 256, 65535])), [[0, 1, 255]])
    # Does not fit into 16 bits: from the smallest to the largest.
    np.testing.assert_array_equal(pixels(tiff([-100, 0, 100])), [[0, 128, 255]])
    np.testing.assert_array_equal(pixels(tiff([0, 500_000, 1_000_000])), [[0, 128, 255]])


def test_floats() -> None:
    def tiff(values: list[float]) -> bytes:
        return encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")

    np.testing.assert_array_equal(pixels(tiff([0.25, 0.5, 0.75])), [[64, 128, 191]])
    np.testing.assert_array_equal(pixels(tiff([-10.0, 0.0, 30.0])), [[0, 64, 255]])
    np.testing.assert_array_equal(pixels(tiff([7.0, 7.0])), [[0, 0]])
    np.testing.assert_array_equal(pixels(tiff([np.nan, 1.0, np.inf])), [[0, 255, 255]])
    with pytest.raises(PictureError, match="no finite values"):
        open_picture(tiff([np.nan, np.nan]), max_pixels=LIMIT)


def test_transparency_lies_on_white() -> None:
    # alpha 0 -> white; alpha 255 -> itself; half of black on white -> half.
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], dtype=np.uint8)
    got = pixels(encode(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(got, [[[255] * 3, [10, 20, 30], [127] * 3]])
    la = Image.merge("LA", [Image.fromarray(rgba[:, :, 0]), Image.fromarray(rgba[:, :, 3])])
    got_la = open_picture(encode(la, "PNG"), max_pixels=LIMIT)
    assert got_la.mode == "L"
    np.testing.assert_array_equal(np.asarray(got_la), [[255, 10, 127]])


def test_transparency_of_palettes_and_of_single_colours() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    np.testing.assert_array_equal(pixels(encode(palette, "PNG")), [[[255, 0, 0], [0, 0, 255]]])
    for transparency in (0, b"\x00\xff"):
        data = encode(palette, "PNG", transparency=transparency)
        np.testing.assert_array_equal(pixels(data), [[[255] * 3, [0, 0, 255]]])
    grey = Image.fromarray(np.array([[9, 50]], dtype=np.uint8))
    np.testing.assert_array_equal(pixels(encode(grey, "PNG", transparency=9)), [[255, 50]])


def test_cmyk_and_lab_become_rgb() -> None:
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    got = open_picture(encode(cmyk, "TIFF"), max_pixels=LIMIT)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got)[0, 0], [255, 0, 0])
    lab = open_picture(encode(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"), max_pixels=LIMIT)
    assert lab.mode == "RGB"
    assert np.asarray(lab).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_turns(orientation: int, kind: str) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # What a camera stores so that the orientation's instruction gives the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored_picture = Image.fromarray(np.ascontiguousarray(stored))
    data = encode(stored_picture, kind, exif=exif, **options)
    got = pixels(data)
    np.testing.assert_array_equal(got if got.ndim == 2 else got[:, :, 0], upright)
    header = read_header(data, max_pixels=LIMIT)
    assert (header.format, header.height, header.width) == (kind, 2, 3)
    # A Pillow picture is turned as its file would be, once, and is left as it was.
    mine = Image.open(io.BytesIO(data))
    spec = PictureSettings(size=(2, 3), color="grey")
    np.testing.assert_array_equal(to_array(mine, spec)[0], upright)
    if kind != "TIFF":  # Pillow itself turns a TIFF as it loads.
        assert mine.getexif().get(0x0112) == orientation
    opened = open_picture(data, max_pixels=LIMIT)
    np.testing.assert_array_equal(to_array(opened, spec)[0], upright)


def test_broken_exif_does_not_break_a_sound_picture() -> None:
    data = encode(noise(4, 4), "PNG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    np.testing.assert_array_equal(pixels(data), np.asarray(noise(4, 4)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


def test_a_path_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ein Bild, 日本.png"
    path.write_bytes(encode(noise(6, 5), "PNG"))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(pixels(source), np.asarray(noise(6, 5)))


def test_jpegs_are_decoded_small_and_come_out_the_same() -> None:
    big = noise(12, 16).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encode(big, "JPEG", quality=95)
    small = open_picture(data, max_pixels=LIMIT, target=(64, 48))
    assert small.width < 1600
    assert small.width >= 128
    assert small.height >= 128
    spec = PictureSettings(size=(64, 48))
    whole = to_array(open_picture(data, max_pixels=LIMIT), spec)
    drafted = read_array(data, spec, max_pixels=LIMIT)
    assert np.abs(whole.astype(int) - drafted).max() <= 4


# --- what cannot be read ------------------------------------------------------------------------


def reason(source: str | Path | bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(source, max_pixels=max_pixels)
    assert isinstance(caught.value, DataError)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 120
    if not isinstance(source, bytes):
        assert caught.value.path == str(source)
        assert str(source) not in caught.value.reason
    return caught.value.reason


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    assert reason(tmp_path / "missing.png") == "no such file"
    assert reason(tmp_path) == "a folder, not a picture"
    (tmp_path / "empty.png").touch()
    assert reason(tmp_path / "empty.png") == "an empty file"
    assert reason(tmp_path / "empty.png" / "below") == "no such file"
    assert reason(b"") == "empty"
    assert "broken" in reason("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "not a regular file"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encode(noise(4, 4), "PNG"))
    if os.geteuid() == 0:  # Root may read everything; refuse as the system would.

        def refuse(path: str, *_: object) -> None:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.chmod(0)
    assert reason(path) == "no permission to read it"


def test_an_input_output_error_is_named_without_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad-sector.png"
    path.write_bytes(encode(noise(4, 4), "PNG"))

    def fail(path: str, *_: object) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "open", fail)
    assert reason(path) == "broken (Input/output error)"


def test_not_pictures() -> None:
    assert reason(b"<html>not found</html>") == "not a picture that Pillow can read"
    assert reason(b"\x00" * 1000) == "not a picture that Pillow can read"


def test_too_many_pixels_is_judged_before_decoding() -> None:
    # A header of 50,000 x 50,000 and no pixels at all: only the header can have been read.
    header = b"P5 50000 50000 255\n"
    assert "data.max_pixels" in reason(header)
    assert "data.max_pixels" in reason(b"P5 12000 10000 255\n", max_pixels=LIMIT)
    data = encode(noise(10, 11), "PNG")
    assert reason(data, max_pixels=109) == "11 x 10 pixels, over the limit of 109 (data.max_pixels)"
    open_picture(data, max_pixels=110)
    with pytest.raises(PictureError, match="over the limit of 109"):
        read_header(data, max_pixels=109)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_never_reaches_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def record(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise OSError("no Ghostscript here")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", record)
    (tmp_path / "a.jpg").write_bytes(EPS)
    for source in (EPS, tmp_path / "a.jpg"):
        told = reason(source)
        assert told.startswith("a picture in EPS, which is read only if")
        assert "TWINLENS_FORMATS" in told
    assert calls == []
    monkeypatch.setenv("TWINLENS_FORMATS", "EPS")
    assert "no Ghostscript here" in reason(tmp_path / "a.jpg")
    assert len(calls) == 1


def test_formats_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(4, 4), "PCX")
    assert "PCX" in reason(data)
    assert ".pcx" not in picture_suffixes()
    assert unread_suffix(".PCX") is not None
    assert unread_suffix(".txt") is None
    monkeypatch.setenv("TWINLENS_FORMATS", "pcx")
    open_picture(data, max_pixels=LIMIT)
    assert ".pcx" in picture_suffixes()
    assert unread_suffix(".PCX") is None
    monkeypatch.setenv("TWINLENS_FORMATS", "PNG2")
    with pytest.raises(ConfigError, match="TWINLENS_FORMATS names 'PNG2'"):
        open_picture(data, max_pixels=LIMIT)


def test_formats_of_a_plugin_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_file, "_plugins", frozenset)
    picture_file._formats.cache_clear()
    try:
        heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
        assert reason(heic) == "a picture in HEIF, which needs `pip install 'twinlens[heif]'`"
        assert "twinlens[heif]" in reason(b"\xff\x0a\xfa\x1f")
        assert unread_suffix(".HEIC") == "HEIF, which needs `pip install 'twinlens[heif]'`"
        assert "twinlens[heif]" in str(unread_suffix(".jxl"))
    finally:
        picture_file._formats.cache_clear()


@pytest.mark.parametrize(("kind", "suffix"), [("HEIF", ".heic"), ("JXL", ".jxl")])
def test_formats_of_an_installed_plugin(
    kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(picture_file.PLUGINS[kind], reason="needs the extra heif")
    assert suffix in picture_suffixes()
    smooth = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    data = encode(smooth, kind)
    got = open_picture(data, max_pixels=LIMIT)
    assert (got.mode, got.size) == ("RGB", (320, 240))
    assert np.abs(np.asarray(got).astype(int) - np.asarray(smooth)).mean() < 4
    header = read_header(data, max_pixels=LIMIT)
    assert (header.format, header.height, header.width) == (kind, 240, 320)
    assert "over the limit of 100 (data.max_pixels)" in reason(data, max_pixels=100)
    reason(data[: len(data) // 2])
    monkeypatch.setenv("TWINLENS_DECODE_MEMORY", "1")
    big = encode(smooth.resize((2000, 1500)), kind)
    assert "TWINLENS_DECODE_MEMORY" in reason(big)


@pytest.mark.parametrize("size", [(8, 8), (320, 240), (641, 333), (3000, 2000), (40_000, 3)])
@pytest.mark.parametrize("boxes", [False, True])
def test_the_size_in_the_header_of_a_jpeg_xl(size: tuple[int, int], boxes: bool) -> None:
    """Written by hand: small sides in units of 8, others of 9 to 30 bits; 0 for no ratio."""
    width, height = size

    def side(value: int) -> str:
        bits, selector = next(
            (bits, selector) for selector, bits in enumerate((9, 13, 18, 30)) if value <= 1 << bits
        )
        return f"{selector:02b}"[::-1] + f"{value - 1:0{bits}b}"[::-1]

    if max(size) <= 256 and width % 8 == height % 8 == 0:
        text = "1" + f"{height // 8 - 1:05b}"[::-1] + "000" + f"{width // 8 - 1:05b}"[::-1]
    else:
        text = "0" + side(height) + "000" + side(width)
    data = b"\xff\x0a" + int(text[::-1], 2).to_bytes(12, "little")
    if boxes:
        data = picture_file.JXL_BOX + b"\0\0\0\x14ftypjxl \0\0\0\0jxl " + b"\0\0\0\0jxlc" + data
    assert picture_file.jxl_size(io.BytesIO(data)) == size


def test_other_files_than_regular_ones(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null"):
        if Path(device).exists():
            assert reason(device) == "not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        assert reason(tmp_path / "s.jpg") == "not a regular file"
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    assert "TWINLENS_DECODE_MEMORY" in reason(tmp_path / "sparse.jpg")
    with pytest.raises(PictureError, match="not a regular file"):
        file_digest("/dev/zero")


# --- memory and time ----------------------------------------------------------------------------


def lossless_webp(width: int, height: int) -> bytes:
    """A WebP of one colour: 28 bytes for any size."""
    bits = f"{width - 1:014b}"[::-1] + f"{height - 1:014b}"[::-1] + "0" + "000" + "000"
    bits += "1000" * 5  # five codes of a single symbol
    body = b"\x2f" + int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    body += b"\0" * (len(body) % 2)
    size = struct.pack("<I", len(body))
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + size + body


def test_giant_pictures_are_refused_by_their_headers() -> None:
    big = 100_000_000
    np.testing.assert_array_equal(pixels(lossless_webp(5, 3)), np.zeros((3, 5, 3)))
    with pytest.raises(PictureError, match=r"2,098 MiB .* 1,024 MiB \(TWINLENS_DECODE_MEMORY\)"):
        open_picture(lossless_webp(9999, 9999), max_pixels=big)
    # A pointer to each of its rows takes more than the pixels.
    thread = sixteen_bit_png(np.zeros((1, 1, 1)), 0).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 1, 99_999_999), 1
    )
    i = thread.index(b"IHDR")
    thread = thread[: i + 17] + struct.pack(">I", zlib.crc32(thread[i : i + 17])) + thread[i + 21 :]
    with pytest.raises(PictureError, match="TWINLENS_DECODE_MEMORY"):
        open_picture(thread, max_pixels=big)


def test_a_tile_larger_than_its_picture_is_counted() -> None:
    """A TIFF of 8 x 8 pixels, whose only tile claims 16,384 x 16,384."""
    packed = zlib.compress(bytes(192))
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, 16_384),
            (323, 16_384), (324, 146), (325, len(packed))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(12) + packed
    with pytest.raises(PictureError, match="TWINLENS_DECODE_MEMORY"):
        open_picture(data, max_pixels=LIMIT)


def test_the_memory_is_that_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 40 MiB under a limit of 100 MiB: at most two at once."""
    monkeypatch.setenv("TWINLENS_DECODE_MEMORY", "100")
    data = encode(Image.new("RGB", (2300, 2300)), "PNG")
    inside, most, lock = 0, 0, threading.Lock()
    load = PngImagePlugin.PngImageFile.load

    def counted(picture: PngImagePlugin.PngImageFile) -> object:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        try:
            return load(picture)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", counted)
    with ThreadPoolExecutor(8) as pool:
        sizes = [p.size for p in pool.map(lambda _: open_picture(data, max_pixels=LIMIT), range(8))]
    assert sizes == [(2300, 2300)] * 8
    assert 1 <= most <= 2
    assert picture_file._memory._held == {"file": 0, "pixels": 0}
    monkeypatch.setenv("TWINLENS_DECODE_MEMORY", "20")
    assert "over the limit of 20 MiB (TWINLENS_DECODE_MEMORY)" in reason(data)
    for wrong in ("0", "-5", "1e999", "many", "1" * 5000):
        monkeypatch.setenv("TWINLENS_DECODE_MEMORY", wrong)
        with pytest.raises(ConfigError, match="TWINLENS_DECODE_MEMORY needs a whole number of MiB"):
            open_picture(data, max_pixels=LIMIT)


def test_a_big_picture_waits_for_those_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_DECODE_MEMORY", "100")
    monkeypatch.setattr(picture_file, "_memory", picture_file._Memory())
    lock = threading.Lock()
    picture_file.share_memory(4, lock)
    small, big = (encode(Image.new("RGB", (side, side)), "PNG") for side in (1000, 2300))
    with lock, ThreadPoolExecutor(1) as pool:
        open_picture(small, max_pixels=LIMIT)
        waiting = pool.submit(open_picture, big, max_pixels=LIMIT)
        time.sleep(0.1)
        assert not waiting.done()
        lock.release()
        assert waiting.result(30).size == (2300, 2300)
        lock.acquire()


def test_a_file_that_is_read_whole_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_DECODE_MEMORY", "6")
    small = lossless_webp(8, 8)
    open_picture(small, max_pixels=LIMIT)
    assert "TWINLENS_DECODE_MEMORY" in reason(small + bytes(7 * 2**20))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = encode(noise(16, 16), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data[:last] + data[last:-2] * 101 + data[-2:]
    assert "scans, at most 100" in reason(scans)
    open_picture(data[:last] + data[last:-2] * 20 + data[-2:], max_pixels=LIMIT)


def test_a_thread_of_pixels_is_resized_in_little_memory() -> None:
    """The weights of resizing 3,000,000 pixels to 64 would take 48 MB for each row or column."""
    for picture in (Image.new("L", (3_000_000, 1), 7), Image.new("L", (1, 3_000_000), 7)):
        np.testing.assert_array_equal(to_array(picture, spec((64, 64))), 7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_off_files(kind: str, share: float) -> None:
    data = encode(noise(64, 64), kind)
    reason(data[: int(len(data) * share)])


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "AVIF"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    head=st.booleans(),
)
def test_damaged_bytes_give_a_picture_or_a_picture_error(
    kind: str, places: list[tuple[float, int]], head: bool
) -> None:
    data = bytearray(encode(noise(16, 16), kind))
    reach = min(len(data), 64) if head else len(data)
    for share, value in places:
        data[int(share * (reach - 1))] = value
    with suppress(PictureError):  # Anything else that is raised fails the test.
        assert open_picture(bytes(data), max_pixels=100_000).mode in ("L", "RGB")


# --- warnings -----------------------------------------------------------------------------------


def test_pillows_warnings_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(10, 10), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_picture(data, max_pixels=LIMIT)
    assert caught == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert reason(data) == "more than 80 pixels (data.max_pixels)"


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = encode(noise(40, 40), "PNG")
    before = list(warnings.filters)
    start = threading.Barrier(8)

    def work(_: int) -> None:
        start.wait()
        for _ in range(50):
            open_picture(data, max_pixels=LIMIT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(warnings.filters) == before


# --- to_array -----------------------------------------------------------------------------------


def spec(size: tuple[int, int], **options: object) -> PictureSettings:
    return PictureSettings(size=size, **{"color": "grey", **options})


def test_the_same_size_is_untouched() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for fit in ("stretch", "pad", "crop"):
        got = to_array(array, spec((3, 4), fit=fit))
        assert got.shape == (1, 3, 4)
        assert got.flags.writeable
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got[0], array)
    colour = np.asarray(noise(3, 4))
    got = to_array(colour, spec((3, 4), color="rgb"))
    np.testing.assert_array_equal(got, colour.transpose(2, 0, 1))


def test_shrinking_is_antialiased() -> None:
    # A checkerboard of single pixels: every weighted mean of it is about half.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = to_array(board, spec((8, 8)))
    assert np.abs(got.astype(int) - 127).max() <= 2


def test_pad_keeps_proportions_in_the_middle_on_the_ground() -> None:
    got = to_array(np.zeros((2, 4), np.uint8), spec((4, 4), fit="pad", fill=200))[0]
    np.testing.assert_array_equal(got, [[200] * 4, [0] * 4, [0] * 4, [200] * 4])
    tall = to_array(np.zeros((40, 10), np.uint8), spec((8, 8), fit="pad", fill=7))[0]
    np.testing.assert_array_equal(tall, np.tile([7, 7, 7, 0, 0, 7, 7, 7], (8, 1)))
    rgb = to_array(np.zeros((2, 4, 3), np.uint8), spec((4, 4), fit="pad", fill=200, color="rgb"))
    np.testing.assert_array_equal(rgb[:, 0], 200)
    thread = to_array(np.zeros((1, 5000), np.uint8), spec((8, 8), fit="pad", fill=255))[0]
    assert (thread == 0).sum() == 8


def test_crop_takes_the_middle() -> None:
    wide = np.repeat(np.array([[10, 20, 30, 40]], dtype=np.uint8), 2, axis=0)
    np.testing.assert_array_equal(to_array(wide, spec((2, 2), fit="crop"))[0], [[20, 30]] * 2)
    np.testing.assert_array_equal(to_array(wide.T, spec((2, 2), fit="crop"))[0].T, [[20, 30]] * 2)


def test_stretch_ignores_proportions() -> None:
    array = np.repeat(np.array([[0], [100]], dtype=np.uint8), 1, axis=1)
    np.testing.assert_array_equal(to_array(array, spec((2, 6)))[0], [[0] * 6, [100] * 6])


def test_colours() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[:, :, 0] = 255
    np.testing.assert_array_equal(to_array(red, spec((2, 2))), 76)  # 0.299 x 255
    grey = np.full((2, 2), 9, np.uint8)
    np.testing.assert_array_equal(
        to_array(grey, spec((2, 2), color="rgb")), np.full((3, 2, 2), 9, np.uint8)
    )


def test_kinds_of_arrays_agree() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    want = to_array(array, spec((3, 4)))
    opaque = np.dstack([array, array, array, np.full_like(array, 255)])
    for same in (array[:, :, None], np.dstack([array] * 3), opaque, array / 255, array[::-1][::-1]):
        np.testing.assert_array_equal(to_array(same, spec((3, 4))), want)
    np.testing.assert_array_equal(to_array((array / 255).astype(np.float32), spec((3, 4))), want)
    np.testing.assert_array_equal(to_array(array > 100, spec((3, 4))), (array > 100)[None] * 255)
    clear = np.dstack([array, array, array, np.zeros_like(array)])
    np.testing.assert_array_equal(to_array(clear, spec((3, 4))), 255)
    np.testing.assert_array_equal(to_array(Image.fromarray(array), spec((3, 4))), want)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, np.uint8), r"found \(4,\)"),
        (np.zeros((2, 2, 2), np.uint8), r"found \(2, 2, 2\)"),
        (np.zeros((3, 0), np.uint8), r"found \(3, 0\)"),
        (np.zeros((2, 2), np.int64), "found int64"),
        (np.full((2, 2), 200.0), "0 to 1|200 to 200"),
        (np.full((2, 2), -0.5), "-0.5"),
        (np.full((2, 2), np.nan), "NaN"),
    ],
)
def test_arrays_that_are_not_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_array(array, spec((2, 2)))


def test_a_pillow_picture_that_breaks_while_it_loads(tmp_path: Path) -> None:
    data = encode(noise(64, 64), "PNG")
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(PictureError) as caught:
        to_array(lazy, spec((4, 4)))
    assert caught.value.path == str(tmp_path / "cut.png")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    fit=st.sampled_from(["stretch", "pad", "crop"]),
    color=st.sampled_from(["grey", "rgb"]),
    level=st.integers(0, 255),
)
def test_an_even_picture_stays_even(
    height: int, width: int, size: tuple[int, int], fit: str, color: str, level: int
) -> None:
    array = np.full((height, width), level, np.uint8)
    got = to_array(array, spec(size, fit=fit, color=color, fill=level))
    assert got.shape == (1 if color == "grey" else 3, *size)
    assert (got == level).all()
