"""Decoding: every kind of file against values worked by hand, and every kind of failure."""

from __future__ import annotations

import io
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twinlens.config import PictureSettings
from twinlens.data.decode import open_picture, read_array, read_header, to_array
from twinlens.errors import DataError, PictureError

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


def test_eps_bytes_never_reach_ghostscript() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert "EPS" in reason(eps)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_off_files(kind: str, share: float) -> None:
    data = encode(noise(64, 64), kind)
    reason(data[: int(len(data) * share)])


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "QOI"]),
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
        (np.full((2, 2), np.nan), "nan"),
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
