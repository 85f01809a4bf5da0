"""Measures of strokes: what they are of drawn lines, and what they do not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from twinlens.config import ModelSettings, PictureSettings
from twinlens.model.backbones import make_backbone
from twinlens.model.strokes import (
    ANGLES,
    DARKEST,
    INK,
    LEVELS,
    MEASURE_STD,
    grey_features,
    stroke_features,
    stroke_measures,
)

Floats = NDArray[np.float32]

EXTENT, PRESSURE = slice(0, 7), slice(7, 7 + 2 + LEVELS + 2)
WIDTH = slice(PRESSURE.stop, PRESSURE.stop + 5)
SLANT = slice(WIDTH.stop, WIDTH.stop + ANGLES[1])


def page(height: int = 40, width: int = 60) -> Floats:
    return np.zeros((height, width), np.float32)


def bar(rows: slice, columns: slice, dark: float = 0.6) -> Floats:
    picture = page()
    picture[rows, columns] = dark
    return picture


def settings(fill: int = 255, **values: object) -> PictureSettings:
    plain: dict[str, object] = {"size": (40, 60), "color": "grey", "fill": fill}
    return PictureSettings.model_validate(plain | values)


def seen(dark_HW: Floats, picture: PictureSettings) -> Floats:
    """The measures of ink on this ground."""
    return grey_features(np.float32(picture.fill / 255) - dark_HW, picture)


def test_extent_and_pressure_of_a_bar() -> None:
    result = stroke_measures(bar(slice(10, 14), slice(5, 25)))
    extent, pressure = result[EXTENT], result[PRESSURE]
    assert extent[0] == pytest.approx(math.log(40 / 60))
    assert extent[1] == pytest.approx(math.log(4 * 20 / (40 * 60)))
    assert extent[2] == pytest.approx(11.5 / 39, abs=1e-6)  # The mean row, from 0 to 1.
    assert extent[4] == pytest.approx(14.5 / 59, abs=1e-6)
    assert extent[6] == pytest.approx(0, abs=1e-5)  # Rows and columns vary by themselves.
    assert pressure[:2].tolist() == pytest.approx([0.6, 1e-5], abs=1e-4)
    shares = pressure[2 : 2 + LEVELS]
    assert shares.sum() == pytest.approx(1)
    assert int(shares.argmax()) == int((0.6 - 0.16) / (0.8 / LEVELS))


def test_width_is_what_is_left_of_a_bar_when_its_edge_is_taken_off() -> None:
    result = stroke_measures(bar(slice(10, 16), slice(5, 25)))[WIDTH]
    left = [4 * 18 / 120, 2 * 16 / 120, 0, 0]
    assert result[:4].tolist() == pytest.approx(left)
    assert result[4] == pytest.approx(-math.log(1 - left[0]))


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_slant_of_stripes(degrees: int) -> None:
    """Stripes whose grey changes along one direction have the edges of that direction alone."""
    down, right = np.indices((64, 64), np.float32)
    angle = math.radians(degrees)
    wave = 0.55 + 0.3 * np.sin(0.3 * (right * math.cos(angle) + down * math.sin(angle)))
    shares = stroke_measures(wave)[SLANT]
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert int(shares.argmax()) == degrees * ANGLES[1] // 180
    assert shares.max() > 0.8


def test_where_on_the_page_does_not_matter() -> None:
    word = np.random.default_rng(0).random((12, 20), np.float32)
    here, there = page(), page()
    here[2:14, 3:23], there[25:37, 30:50] = word, word
    assert_allclose(seen(here, settings()), seen(there, settings()), rtol=1e-5)


def test_ground_does_not_matter() -> None:
    """Ink is what differs from the ground, lighter or darker."""
    word = page()
    word[5:30, 10:50] = np.random.default_rng(0).random((25, 40), np.float32) * 0.9
    white = seen(word, settings())
    assert_allclose(seen(word, settings(fill=250)), white, atol=2e-3, rtol=2e-3)
    assert_allclose(seen(-word, settings(fill=0)), white, atol=2e-3, rtol=2e-3)


def test_a_darker_and_a_wider_pen_differ_from_a_longer_line() -> None:
    line = stroke_measures(bar(slice(10, 13), slice(5, 45)))
    darker = stroke_measures(bar(slice(10, 13), slice(5, 45), 0.8))
    wider = stroke_measures(bar(slice(10, 17), slice(5, 45)))
    assert darker[PRESSURE][0] > line[PRESSURE][0]
    assert_allclose(darker[WIDTH], line[WIDTH])
    assert wider[WIDTH][4] > line[WIDTH][4]
    assert_allclose(wider[PRESSURE][0], line[PRESSURE][0], rtol=1e-6)


@pytest.mark.parametrize("size", [(40, 60), (1, 1), (2, 300)])
@pytest.mark.parametrize("ink", [0.0, 1.0])
def test_empty_and_black_pages_have_finite_measures(size: tuple[int, int], ink: float) -> None:
    result = seen(np.full(size, ink, np.float32), settings())
    assert result.shape == (len(MEASURE_STD),)
    assert np.isfinite(result).all()


def scanned(color: str, height: int = 33, width: int = 47) -> NDArray[np.uint8]:
    """Waves of ink of several widths, as scanned with noise, on white paper."""
    rng = np.random.default_rng(3)
    down, right = np.indices((height, width))
    ink = np.maximum(0, np.sin(0.3 * right + 0.05 * down) + np.sin(0.11 * down * right / 9) - 0.6)
    channels = 1 if color == "grey" else 3
    noise = rng.integers(0, 30, (channels, height, width))
    return (255 - ink * 140 - noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_all_measures_are_those_of_loops_over_pixels(color: str) -> None:
    picture = settings(color=color)
    pixels_CHW = scanned(color)
    expected = loops(abs(pixels_CHW.astype(float).mean(0) / 255 - picture.fill / 255))
    got = stroke_features(pixels_CHW, picture)
    assert got.dtype == np.float32
    assert_allclose(got, np.array(expected) / MEASURE_STD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_the_backbone_undoes_what_is_subtracted_and_divided(color: str) -> None:
    channels = 1 if color == "grey" else 3
    mean, std = (0.9, 0.8, 0.7)[:channels], (0.1, 0.2, 0.3)[:channels]
    picture = settings(color=color, mean=mean, std=std)
    backbone = make_backbone(ModelSettings(backbone="strokes"), picture)
    pixels_BCHW = np.stack([scanned(color), scanned(color)[:, ::-1]])
    subtracted, divisor = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    x_BCHW = (torch.from_numpy(pixels_BCHW.copy()) / 255 - subtracted) / divisor
    expected = [stroke_features(pixels_CHW, picture) for pixels_CHW in pixels_BCHW]
    assert_allclose(backbone(x_BCHW).numpy(), expected, atol=1e-5, rtol=1e-5)


def test_without_pressure_the_darkness_of_ink_does_not_matter() -> None:
    picture = settings()
    pixels = scanned("grey")
    is_ink = abs(pixels / 255 - picture.fill / 255) > INK
    darker = np.where(is_ink, pixels // 2, pixels)
    by_pressure = [stroke_features(each, picture) for each in (pixels, darker)]
    assert abs(by_pressure[0] - by_pressure[1]).max() > 0.5
    even = [stroke_features(each, picture, pressure=False) for each in (pixels, darker)]
    assert_allclose(even[0], even[1], atol=1e-6)
    backbone = make_backbone(ModelSettings(backbone="strokes", pressure=False), picture)
    normalised = (torch.from_numpy(pixels[None]) / 255 - picture.mean[0]) / picture.std[0]
    assert_allclose(backbone(normalised)[0].numpy(), even[0], atol=1e-5)


def test_each_picture_by_itself_and_nothing_to_learn() -> None:
    torch.manual_seed(0)
    backbone = make_backbone(ModelSettings(backbone="strokes"), settings()).eval()
    assert not list(backbone.parameters())
    assert not backbone.state_dict()
    x_BCHW = torch.rand(3, 1, 40, 60)
    one_by_one = torch.cat([backbone(one[None]) for one in x_BCHW])
    torch.testing.assert_close(backbone(x_BCHW), one_by_one)


def loops(dark_HW: NDArray[np.float64]) -> list[float]:
    """The measures, undivided, by obvious loops."""
    ink = [(int(y), int(x)) for y, x in np.argwhere(dark_HW > INK)]
    (top, left), (bottom, right) = np.min(ink, 0), np.max(ink, 0)
    dark = np.pad(dark_HW[top : bottom + 1, left : right + 1], 2)
    height, width = dark.shape
    ink = [(int(y), int(x)) for y, x in np.argwhere(dark > INK)]

    def moments(values: list[float]) -> list[float]:
        return [float(np.mean(values)), float(np.std(values))]

    y, x = ([one[axis] / (dark.shape[axis] - 1) for one in ink] for axis in (0, 1))
    share = len(ink) / (height * width)
    result = [math.log(height / width), math.log(share), *moments(y), *moments(x)]
    result.append(float(np.corrcoef(y, x)[0, 1]))

    inner = [ink]
    for _ in range(4):
        before = set(inner[-1])
        inner.append([
            (r, c) for r, c in inner[-1]
            if all((r + i, c + j) in before for i in (-1, 0, 1) for j in (-1, 0, 1))
        ])  # fmt: skip
    levels = [0.0] * LEVELS
    for one in ink:
        level = int((dark[one] - INK) / (DARKEST - INK) * LEVELS)
        levels[min(level, LEVELS - 1)] += 1 / len(ink)
    result += [*moments([dark[one] for one in ink]), *levels]
    result += moments([dark[one] for one in inner[1]])
    left_over = [len(pixels) / len(ink) for pixels in inner[1:]]
    result += [*left_over, -math.log(1 - left_over[0])]

    for size, bins in ANGLES.items():
        rows, columns = range(0, height, size), range(0, width, size)
        small = np.array([[dark[r : r + size, c : c + size].mean() for c in columns] for r in rows])
        counts = [0.0] * bins
        for one in map(tuple, np.argwhere(small > INK / size**0.5)):
            down, across = gradient(small, *one)
            position = (math.atan2(down, across) / math.pi) % 1 * bins
            low = int(position)
            counts[low % bins] += math.hypot(down, across) * (1 - position + low)
            counts[(low + 1) % bins] += math.hypot(down, across) * (position - low)
        result += [count / sum(counts) for count in counts]

    result += moments([math.hypot(*gradient(dark, *one)) for one in ink])
    for side in (3, 5):
        half = side // 2
        padded = np.pad(dark, half)
        result.append(
            float(np.mean([abs(dark[r, c] - padded[r : r + side, c : c + side].mean())
                           for r, c in ink]))
        )  # fmt: skip
    for step in (1, 3):
        padded = np.pad(dark, step)
        codes = [0.0] * 10
        for r, c in ink:
            circle = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
            darker = [
                padded[r + step + i * step, c + step + j * step] > dark[r, c] + 0.02
                for i, j in circle
            ]
            changes = sum(darker[k] != darker[k - 1] for k in range(8))
            codes[sum(darker) if changes <= 2 else 9] += 1 / len(ink)
        result += codes
    return result


def gradient(grey: NDArray[np.float64], row: int, column: int) -> tuple[float, float]:
    """Sobel's differences down and across at a pixel; the border is repeated."""
    padded = np.pad(grey, 1, mode="edge")[row : row + 3, column : column + 3]
    weights = np.array([1, 2, 1]) / 8
    return float(weights @ (padded[2] - padded[0])), float(weights @ (padded[:, 2] - padded[:, 0]))
