"""Quality of pictures: each part falls with what it is named for, and the gates say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun
from PIL import Image, ImageFilter

import twinlens
from twinlens.config import PictureSettings
from twinlens.data.decode import to_array
from twinlens.data.quality import PictureQuality, quality_parts
from twinlens.errors import ConfigError, DataError, PictureError

SIDE = 64
SPEC = PictureSettings(size=(SIDE, SIDE))


def photograph(seed: int = 0, side: int = SIDE) -> Image.Image:
    """Noise with the spectrum of photographs, 1 / f."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    f[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / f).real
    return Image.fromarray((128 + 40 * field / field.std()).clip(0, 255).astype(np.uint8))


def drawing() -> Image.Image:
    """A thin cross on white paper."""
    pixels = np.full((SIDE, SIDE), 255, np.uint8)
    pixels[30:33], pixels[:, 30:33] = 0, 0
    return Image.fromarray(pixels)


def quality(picture: Image.Image, spec: PictureSettings = SPEC) -> PictureQuality:
    source = np.array([picture.width * picture.height])
    return PictureQuality.of_parts(quality_parts(to_array(picture, spec)[None], spec, source)[0])


def test_a_photograph_and_a_drawing_are_good() -> None:
    assert quality(photograph()).score > 0.9
    assert quality(drawing()) == PictureQuality(1, 1, 1, 1)


@pytest.mark.parametrize("make", [photograph, drawing])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_sharpness_falls_with_blur_only(make: object, color: str) -> None:
    spec = PictureSettings.model_validate({"size": (SIDE, SIDE), "color": color})
    assert callable(make)
    sharp = make()
    parts = [quality(sharp.filter(ImageFilter.GaussianBlur(s)), spec) for s in (0, 1.5, 3, 6)]
    values = [part.sharpness for part in parts]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.15 < 0.6 < values[0]
    assert parts[-1].is_low
    assert parts[-1].as_text().endswith(": blurred")
    faint = sharp.point(lambda v: 100 + v // 8)
    assert quality(faint, spec).sharpness > 0.6
    assert quality(faint, spec).contrast < 1


def test_size_is_that_of_the_source() -> None:
    assert quality(photograph(side=SIDE // 4)).size == pytest.approx(0.25)
    assert quality(photograph(side=2 * SIDE)).size == 1
    parts = quality_parts(to_array(photograph(), SPEC)[None], SPEC)
    assert PictureQuality.of_parts(parts[0]).size is None


def test_contrast_of_dark_and_flat_pictures() -> None:
    dark = quality(photograph().point(lambda v: v // 40))
    assert dark.contrast < 0.2
    assert dark.as_text().endswith("of low contrast")
    flat = quality(Image.new("L", (SIDE, SIDE), 77))
    assert (flat.score, flat.sharpness, flat.contrast) == (0, 0, 0)
    assert "blurred and of low contrast" in flat.as_text()


def test_padding_is_not_measured() -> None:
    spec = PictureSettings.model_validate({"size": (SIDE, SIDE), "fit": "pad", "fill": 0})
    wide = photograph().filter(ImageFilter.GaussianBlur(3)).resize((SIDE, SIDE // 2))
    alone = PictureSettings(size=(SIDE // 2, SIDE))
    assert quality(wide, spec).sharpness == pytest.approx(quality(wide, alone).sharpness, abs=0.03)
    assert quality(Image.new("L", (SIDE, SIDE)), spec).score == 0


def test_tiny_and_large_inputs() -> None:
    for shape in ((1, 1, 1, 1), (2, 3, 2, 9), (70, 1, 5, 300), (0, 1, 4, 4)):
        spec = PictureSettings(size=(8, 8))
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        parts = quality_parts(pixels, spec, np.ones(shape[0], np.int64))
        assert parts.shape == (shape[0], 3)
        assert np.isfinite(parts).all()


def test_each_row_is_as_alone() -> None:
    pixels = np.stack([to_array(photograph(seed), SPEC) for seed in range(3)] * 30)
    together = quality_parts(pixels, SPEC)
    for row in (0, 1, 2, 64, 89):
        alone = quality_parts(pixels[row : row + 1], SPEC)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5)


def flat_file(folder: Path) -> Path:
    Image.new("L", (SIDE, SIDE), 77).save(folder / "flat.png")
    return folder / "flat.png"


def test_verify_says_it_and_refuses(tiny_run: TinyRun, tmp_path: Path) -> None:
    good, bad = tiny_run.data / "thing 0" / "0.png", flat_file(tmp_path)
    answer = twinlens.verify(tiny_run.run, good, bad)
    assert answer.quality is not None
    assert answer.quality[1].score < 0.3 < answer.quality[0].score
    assert "the second picture has a low quality" in answer.explain()
    assert "the first" not in answer.explain()
    assert answer.as_json()["quality"][1] == answer.quality[1].as_json()
    assert twinlens.verify(tiny_run.run, good, good, min_quality=0.3).match
    with pytest.raises(PictureError, match=r"flat\.png: quality 0\.00: blurred and of low"):
        twinlens.verify(tiny_run.run, good, bad, min_quality=0.3)
    with pytest.raises(ConfigError, match=r"min_quality must be in \[0, 1\], found 2"):
        twinlens.verify(tiny_run.run, good, good, min_quality=2)


def test_a_gallery_gates_and_counts(tiny_run: TinyRun, tmp_path: Path) -> None:
    gallery = twinlens.Gallery.create(tmp_path / "gallery", tiny_run.run)
    good, bad = tiny_run.data / "thing 0" / "0.png", flat_file(tmp_path)
    gated = gallery.enrol_files("a", [good, bad, tmp_path / "none.png"], min_quality=0.3)
    assert (gated.num_new, gated.num_failed) == (1, 2)
    assert [one.reason.partition(";")[2] for one in gated.skipped if "quality" in one.reason] == [
        " the minimum is 0.3"
    ]
    assert "2 skipped (2 failed to enrol)" in gated.as_text()
    open_to_all = gallery.enrol_files("a", [good, bad])
    assert (open_to_all.num_new, open_to_all.num_known, open_to_all.num_failed) == (1, 1, 0)
    assert list(open_to_all.low_quality) == [str(bad)]
    assert "enrolled in low quality" in open_to_all.warnings()[0]
    found = gallery.identify(bad)
    assert found.quality is not None
    assert found.quality.is_low
    assert "; low quality 0." in found.explain()
    result = twinlens.identify(gallery, [good, bad], min_quality=0.3)
    assert [row.answer is None for row in result.answers] == [False, True]
    assert "the minimum is 0.3" in str(result.answers[1].error)
    assert result.as_json()["num_failed"] == 1
    with pytest.raises(DataError, match="the minimum is 1"):
        twinlens.identify(gallery, bad, min_quality=1)


def test_embed_writes_the_scores(tiny_run: TinyRun, tmp_path: Path) -> None:
    top = tmp_path / "in" / "x"
    top.mkdir(parents=True)
    good = Image.open(tiny_run.data / "thing 0" / "0.png")
    for number in (0, 1, 3, 4, 5):
        good.save(top / f"{number}.png")
    (top / "1.png").write_bytes(b"none")
    good.resize((8, 8)).save(top / "2.png")
    run = twinlens.load(tiny_run.run)
    twinlens.embed(tiny_run.run, tmp_path / "in", out=tmp_path / "x.parquet")
    stored = pq.read_table(tmp_path / "x.parquet")
    expected = [run.acquire(top / f"{n}.png")[1] for n in (0, 2, 3, 4, 5)]
    assert stored["quality"].to_pylist() == pytest.approx([one.score for one in expected], abs=1e-3)
    assert expected[1].size == pytest.approx(0.5)
