"""Measures of strokes: what they are of drawn lines, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twinlens.config import ModelSettings, PictureSettings
from twinlens.model.backbones import make_backbone
from twinlens.model.strokes import ANGLES, LEVELS, MEASURE_STD, Strokes, stroke_measures

EXTENT, PRESSURE = slice(0, 7), slice(7, 7 + 2 + LEVELS + 2)
WIDTH = slice(PRESSURE.stop, PRESSURE.stop + 5)
SLANT = slice(WIDTH.stop, WIDTH.stop + ANGLES[1])


def page(height: int = 40, width: int = 60) -> Tensor:
    return torch.zeros(height, width)


def bar(rows: slice, columns: slice, dark: float = 0.6) -> Tensor:
    picture = page()
    picture[rows, columns] = dark
    return picture


def settings(fill: int = 255, **values: object) -> PictureSettings:
    plain: dict[str, object] = {"size": (40, 60), "color": "grey", "fill": fill}
    return PictureSettings.model_validate(plain | values)


def seen(dark_HW: Tensor, picture: PictureSettings) -> Tensor:
    """The measures of ink on this ground, as an encoder asks for them."""
    grey = picture.fill / 255 - dark_HW
    normalised = (grey - picture.mean[0]) / picture.std[0]
    result: Tensor = Strokes(picture, ModelSettings())(normalised[None, None])
    return result[0]


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
    assert shares.sum() == 1
    assert int(shares.argmax()) == int((0.6 - 0.16) / (0.8 / LEVELS))


def test_width_is_what_is_left_of_a_bar_when_its_edge_is_taken_off() -> None:
    result = stroke_measures(bar(slice(10, 16), slice(5, 25)))[WIDTH]
    left = [4 * 18 / 120, 2 * 16 / 120, 0, 0]
    assert result[:4].tolist() == pytest.approx(left)
    assert result[4] == pytest.approx(-math.log(1 - left[0]))


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_slant_of_stripes(degrees: int) -> None:
    """Stripes whose grey changes along one direction have the edges of that direction alone."""
    down, right = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    angle = math.radians(degrees)
    wave = 0.55 + 0.3 * torch.sin(0.3 * (right * math.cos(angle) + down * math.sin(angle)))
    shares = stroke_measures(wave)[SLANT]
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert int(shares.argmax()) == degrees * ANGLES[1] // 180
    assert shares.max() > 0.8


def test_where_on_the_page_does_not_matter() -> None:
    torch.manual_seed(0)
    word = torch.rand(12, 20)
    here, there = page(), page()
    here[2:14, 3:23], there[25:37, 30:50] = word, word
    torch.testing.assert_close(seen(here, settings()), seen(there, settings()))


def test_ground_and_normalisation_do_not_matter() -> None:
    """Ink is what differs from the ground; what the network subtracts and divides is undone."""
    torch.manual_seed(0)
    word = page()
    word[5:30, 10:50] = torch.rand(25, 40) * 0.9
    white = seen(word, settings())
    other = seen(word, settings(fill=250, mean=(0.9,), std=(0.1,)))
    torch.testing.assert_close(white, other, atol=2e-3, rtol=2e-3)
    negative = seen(-word, settings(fill=0))
    torch.testing.assert_close(white, negative, atol=2e-3, rtol=2e-3)


def test_a_darker_and_a_wider_pen_differ_from_a_longer_line() -> None:
    line = stroke_measures(bar(slice(10, 13), slice(5, 45)))
    darker = stroke_measures(bar(slice(10, 13), slice(5, 45), 0.8))
    wider = stroke_measures(bar(slice(10, 17), slice(5, 45)))
    assert darker[PRESSURE][0] > line[PRESSURE][0]
    torch.testing.assert_close(darker[WIDTH], line[WIDTH])
    assert wider[WIDTH][4] > line[WIDTH][4]
    torch.testing.assert_close(wider[PRESSURE][0], line[PRESSURE][0])


@pytest.mark.parametrize("size", [(40, 60), (1, 1), (2, 300)])
@pytest.mark.parametrize("ink", [0.0, 1.0])
def test_empty_and_black_pages_have_finite_measures(size: tuple[int, int], ink: float) -> None:
    result = stroke_measures(torch.full(size, ink))
    assert result.shape == (len(MEASURE_STD),)
    assert result.isfinite().all()


def test_each_picture_by_itself_and_nothing_to_learn() -> None:
    torch.manual_seed(0)
    backbone = make_backbone(ModelSettings(backbone="strokes"), settings()).eval()
    assert not list(backbone.parameters())
    assert not backbone.state_dict()
    x_BCHW = torch.rand(3, 1, 40, 60)
    one_by_one = torch.cat([backbone(one[None]) for one in x_BCHW])
    torch.testing.assert_close(backbone(x_BCHW), one_by_one)
