"""Near copies between two sets of pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance

from twinlens.config import PictureSettings
from twinlens.data.decode import to_array
from twinlens.data.near_copies import MIN_CORRELATION, near_copies
from twinlens.model.training_record import thumbnails_of

SPEC = PictureSettings(size=(48, 48), color="grey")


def drawn(num: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random pictures, 64 x 64."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(30, 220, (num, 8, 8), dtype=np.uint8)
    return [Image.fromarray(c).resize((64, 64), Image.Resampling.BICUBIC) for c in coarse]


def thumbs(pictures: list[Image.Image]) -> np.ndarray:
    return thumbnails_of(np.stack([to_array(picture, SPEC) for picture in pictures]))


def saved_again(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=70)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_pictures_that_were_saved_again_are_near_copies() -> None:
    pictures = drawn(60)
    known = thumbs(pictures)
    changes = {
        "saved again": saved_again,
        "smaller": lambda picture: picture.resize((51, 51), Image.Resampling.BILINEAR),
        "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.05),
        "duller": lambda picture: ImageEnhance.Contrast(picture).enhance(0.8),
        "all": lambda picture: saved_again(
            ImageEnhance.Brightness(picture.resize((51, 51))).enhance(1.05)
        ),
    }
    for name, change in changes.items():
        assert near_copies(thumbs([change(picture) for picture in pictures]), known).all(), name
    assert not near_copies(thumbs(drawn(60, seed=1)), known).any()
    assert not near_copies(255 - known, known).any()


def test_near_copies_are_those_of_a_loop() -> None:
    """Around the limit, with few pictures and many."""
    generator = np.random.default_rng(0)
    for num in (1, 3, 300):
        known = generator.integers(0, 256, (num, 16, 16), dtype=np.uint8)
        noise = generator.normal(size=(num, 16, 16)) * generator.uniform(0, 12, (num, 1, 1))
        asked = np.clip(known + noise, 0, 255).astype(np.uint8)
        expected = [
            max(np.corrcoef(a.ravel(), b.ravel())[0, 1] for b in known) >= MIN_CORRELATION
            for a in asked
        ]
        assert near_copies(asked, known).tolist() == expected
    assert 0 < np.mean(expected) < 1


def test_blank_pictures_are_no_copies() -> None:
    blank = np.full((2, 16, 16), 255, np.uint8)
    noisy = thumbs(drawn(2))
    for a, b in ((blank, blank), (blank, noisy), (noisy, blank)):
        assert near_copies(a, b).tolist() == [False, False]
    assert near_copies(noisy, noisy[:0]).tolist() == [False, False]
    assert near_copies(noisy[:0], noisy).tolist() == []
    assert near_copies(noisy, noisy).tolist() == [True, True]
    assert near_copies(noisy[:1], noisy[:1]).tolist() == [True]
