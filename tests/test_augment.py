"""Random views: each change by hand, and reproducible by the seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from twinlens.config import AugmentSettings
from twinlens.data import augment as augment_module
from twinlens.data.augment import augment, mirror, quarter_turns

NOTHING = AugmentSettings()
EVERYTHING = AugmentSettings(
    rotate=20, translate=0.1, scale=0.2, shear=10, flip=True, brightness=0.1, contrast=0.3
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(num: int = 6, channels: int = 1, height: int = 40, width: int = 40) -> torch.Tensor:
    """Pictures with soft, lopsided blobs, so that resampling twice stays close."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    blob = torch.exp(-8 * ((x - 0.2) ** 2 + (y + 0.3) ** 2)) + 0.5 * torch.exp(
        -9 * ((x + 0.3) ** 2 + (y - 0.1) ** 2)
    )
    return blob.expand(num, channels, height, width).clone() / 1.5


def drawing(monkeypatch: pytest.MonkeyPatch, **units: float) -> None:
    """Make every picture draw these units in [-1, 1] (0 for the rest) in place of random ones."""

    def rand(size, generator):
        row = [(units.get(name, 0.0) + 1) / 2 for name in augment_module._DRAWN]
        return torch.tensor(row).expand(size)

    monkeypatch.setattr(augment_module.torch, "rand", rand)


def test_nothing_to_do_returns_the_same_tensor_and_draws_nothing():
    x, generator = smooth(), seeded()
    before = generator.get_state()
    assert augment(x, NOTHING, generator, 1.0) is x
    assert torch.equal(generator.get_state(), before)
    empty = x[:0]
    assert augment(empty, EVERYTHING, generator, 1.0) is empty


def test_views_depend_on_the_seed_and_differ_between_pictures():
    x = smooth()
    first = augment(x, EVERYTHING, seeded(3), 1.0)
    assert torch.equal(first, augment(x, EVERYTHING, seeded(3), 1.0))
    assert not torch.allclose(first, augment(x, EVERYTHING, seeded(4), 1.0), atol=0.01)
    assert not torch.allclose(first[0], first[1], atol=0.01)


def test_global_randomness_is_left_alone_and_the_input_too():
    x = smooth()
    before, kept = torch.get_rng_state(), x.clone()
    augment(x, EVERYTHING, seeded(), 1.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept)


def test_enabling_one_change_leaves_the_numbers_of_the_others():
    x = smooth()
    alone = augment(x, AugmentSettings(brightness=0.2), seeded(), 0.0)
    turned = augment(x, AugmentSettings(brightness=0.2, rotate=1e-6), seeded(), 0.0)
    torch.testing.assert_close(alone, turned, atol=1e-4, rtol=0)


@pytest.mark.parametrize("unit", [1.0, -1.0])
def test_a_right_angle_is_a_quarter_turn(monkeypatch, unit):
    x = torch.rand(2, 3, 17, 17, generator=seeded())
    drawing(monkeypatch, rotate=unit)
    turned = augment(x, AugmentSettings(rotate=90), seeded(), 0.0)
    torch.testing.assert_close(turned, x.rot90(int(unit), (2, 3)), atol=1e-4, rtol=0)


def test_a_turn_agrees_with_pillow_on_a_picture_that_is_not_square(monkeypatch):
    drawing(monkeypatch, rotate=1.0)
    x = smooth(1, height=60, width=90)
    turned = augment(x, AugmentSettings(rotate=25), seeded(), 0.0)[0, 0]
    picture = Image.fromarray(x[0, 0].numpy()).rotate(25, Image.Resampling.BILINEAR, fillcolor=0)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(turned.numpy()[inside], np.asarray(picture)[inside], atol=5e-3)


def test_a_shift_moves_by_its_share_and_fills(monkeypatch):
    x = torch.rand(1, 1, 20, 40, generator=seeded())
    drawing(monkeypatch, right=1.0, down=-1.0)
    moved = augment(x, AugmentSettings(translate=0.1), seeded(), 0.25)
    torch.testing.assert_close(moved[:, :, :18, 4:], x[:, :, 2:, :36], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, 18:], torch.full((1, 1, 2, 40), 0.25))
    torch.testing.assert_close(moved[:, :, :, :4], torch.full((1, 1, 20, 4), 0.25))


def test_shifts_alone_are_by_whole_pixels():
    x = torch.rand(64, 1, 10, 20, generator=seeded())
    moved = augment(x, AugmentSettings(translate=0.1, flip=True), seeded(), 0.0)
    places = [(down, right) for down in (-1, 0, 1) for right in (-2, -1, 0, 1, 2)]
    for before, after in zip(x[:, 0], moved[:, 0], strict=True):
        inside = after[1:-1, 2:-2]
        views = [
            source.roll(place, (0, 1))[1:-1, 2:-2]
            for source in (before, before.flip(1))
            for place in places
        ]
        assert min(float((inside - view).abs().max()) for view in views) < 1e-4


@pytest.mark.parametrize(("unit", "factor"), [(1.0, 1.25), (-1.0, 0.8)])
def test_a_scale_grows_or_shrinks_about_the_centre(monkeypatch, unit, factor):
    drawing(monkeypatch, scale=unit)
    bell = torch.exp(-((torch.arange(41.0) - 20) ** 2) / 18)
    x = (bell[:, None] * bell[None, :]).view(1, 1, 41, 41)
    sized = augment(x, AugmentSettings(scale=0.25), seeded(), 0.0)
    assert float(sized.sum()) == pytest.approx(float(x.sum()) * factor**2, rel=1e-3)
    torch.testing.assert_close(sized, sized.flip(2, 3), atol=1e-5, rtol=0)


def test_a_shear_slants_columns_by_its_angle(monkeypatch):
    drawing(monkeypatch, shear=1.0)
    x = torch.zeros(1, 1, 41, 41)
    x[:, :, :, 20] = 1.0
    slanted = augment(x, AugmentSettings(shear=20), seeded(), 0.0)[0, 0]
    columns = torch.arange(41.0)
    for row in (5, 20, 35):
        centre = float((slanted[row] * columns).sum() / slanted[row].sum())
        assert centre == pytest.approx(20 + (row - 20) * math.tan(math.radians(20)), abs=0.02)


@pytest.mark.parametrize(
    ("place", "corner"), [(1.0, np.s_[:, :, 8:, 8:]), (-1.0, np.s_[:, :, :32, :32])]
)
def test_a_crop_is_a_window_enlarged(monkeypatch, place, corner):
    x = smooth(1)
    monkeypatch.setattr(
        augment_module.torch, "rand", lambda size, generator: torch.full(size, (place + 1) / 2)
    )
    seen = augment(x, AugmentSettings(crop=0.2), seeded(), 0.0)
    window = torch.nn.functional.interpolate(x[corner], (40, 40), mode="bilinear")
    torch.testing.assert_close(seen[:, :, 2:-2, 2:-2], window[:, :, 2:-2, 2:-2], atol=1e-4, rtol=0)


def test_crops_are_uniform_and_leave_the_other_changes_unchanged():
    x = torch.zeros(400, 1, 20, 20)
    x[:, :, :, 10:] = 1.0  # The share of white gives the position of the window.
    share = augment(x, AugmentSettings(crop=0.4), seeded(), 0.0).mean(dim=(1, 2, 3))
    # A window of 0.6 of the width sees between 1/6 and 5/6 of white, evenly.
    assert float(share.min()) == pytest.approx(1 / 6, abs=0.03)
    assert float(share.max()) == pytest.approx(5 / 6, abs=0.03)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    views = AugmentSettings(rotate=20, brightness=0.1)
    alone = augment(smooth(), views, seeded(), 0.0)
    within = augment(smooth(), views.model_copy(update={"crop": 1e-6}), seeded(), 0.0)
    torch.testing.assert_close(alone, within, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mirror_mirrors_the_selected_pictures(dtype):
    x = torch.arange(12).view(2, 1, 2, 3).to(dtype)
    seen = mirror(x, torch.tensor([False, True]))
    assert seen[0].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert seen[1].tolist() == [[[8, 7, 6], [11, 10, 9]]]


def test_flips_alone_are_exact_and_about_half():
    x = torch.rand(400, 1, 4, 6, generator=seeded())
    seen = augment(x, AugmentSettings(flip=True), seeded(1), 0.0)
    flipped = (seen == x.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(seen[~flipped], x[~flipped])
    assert 160 < int(flipped.sum()) < 240


def test_a_flip_inside_a_warp_mirrors_the_same_pictures():
    x = smooth(50)
    alone = augment(x, AugmentSettings(flip=True), seeded(1), 0.0)
    within = augment(x, AugmentSettings(flip=True, rotate=1e-4), seeded(1), 0.0)
    torch.testing.assert_close(alone, within, atol=1e-3, rtol=0)


def test_contrast_keeps_the_mean_and_brightness_adds(monkeypatch):
    x = 0.4 + 0.2 * torch.rand(2, 3, 8, 8, generator=seeded())
    drawing(monkeypatch, contrast=1.0)
    stretched = augment(x, AugmentSettings(contrast=0.5), seeded(), 0.0)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(stretched, mean + 1.5 * (x - mean))
    drawing(monkeypatch, brightness=-1.0)
    darker = augment(x, AugmentSettings(brightness=0.1), seeded(), 0.0)
    torch.testing.assert_close(darker, x - 0.1)


def test_results_stay_in_range():
    x = torch.rand(64, 3, 16, 16, generator=seeded()).round()
    loud = AugmentSettings(rotate=90, translate=0.5, scale=0.9, brightness=0.9, contrast=0.9)
    seen = augment(x, loud, seeded(), 1.0)
    assert float(seen.min()) >= 0.0
    assert float(seen.max()) <= 1.0


def test_a_flat_picture_of_the_fill_stays_flat():
    x = torch.full((8, 3, 24, 18), 0.7)
    loud = AugmentSettings(rotate=180, translate=0.5, scale=0.5, shear=30, flip=True)
    torch.testing.assert_close(augment(x, loud, seeded(), 0.7), x)


def test_draws_fill_their_range_evenly(monkeypatch):
    seen: dict[str, torch.Tensor] = {}
    real = augment_module._views

    def spy(x_BCHW, settings, unit):
        seen.update(unit)
        return real(x_BCHW, settings, unit)

    monkeypatch.setattr(augment_module, "_views", spy)
    augment(torch.zeros(4000, 1, 2, 2), EVERYTHING, seeded(), 0.0)
    for drawn in seen.values():
        assert float(drawn.abs().max()) <= 1.0
        assert float(drawn.mean()) == pytest.approx(0.0, abs=0.05)
        assert float(drawn.std()) == pytest.approx(1 / math.sqrt(3), abs=0.03)


def test_autocast_does_not_coarsen_a_view():
    x = smooth(3, height=220, width=220)
    plain = augment(x, EVERYTHING, seeded(), 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(x, EVERYTHING, seeded(), 0.0)
    torch.testing.assert_close(plain, cast)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_quarter_turns_are_numpys(dtype):
    x = torch.randint(0, 255, (9, 2, 5, 5), generator=seeded()).to(dtype)
    turns = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 1])
    kept = x.clone()
    turned = quarter_turns(x, turns)
    for one, k, before in zip(turned, turns.tolist(), x, strict=True):
        np.testing.assert_array_equal(one.numpy(), np.rot90(before.numpy(), k, (1, 2)))
    assert torch.equal(x, kept)


def test_quarter_turns_of_oblong_pictures():
    x = torch.arange(12).view(1, 1, 3, 4)
    assert quarter_turns(x, torch.tensor([0])) is x
    assert torch.equal(quarter_turns(x, torch.tensor([2])), x.flip(2, 3))
    with pytest.raises(AssertionError):
        quarter_turns(x, torch.tensor([1]))
