"""Quality of decoded pictures: sharpness, size and contrast, each in [0, 1], and their minimum.

The scales are absolute, so that a score means the same for every model. They are measured at the
network's input, since that is all that it sees:

    sharpness   the blur metric of Crete et al. (2007) turned around: the share of the differences
                between neighbours that blurring takes away. 0 at 0.15, 1 from 0.45 on: sharp
                photographs and drawings of any size have 0.5 to 0.9, and a Gaussian blur of 1, 2
                and 4 pixels leaves some 0.5, 0.3 and 0.15
    size        side of a square with as many pixels as the source, by that of the network's input
    contrast    standard deviation of the grey levels, 1 from 12 levels on

Exposure shows as lost contrast: clipped pixels prove nothing, since paper is white in every good
scan. Noise counts as sharpness.

Shapes: N pictures, C channels (1 grey, 3 colour), H x W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.data.pixels import Pixels
from twinlens.errors import ConfigError

__all__ = ["LOW_QUALITY", "PARTS", "PictureQuality", "check_minimum", "quality_parts",
           "quality_scores", "size_part"]  # fmt: skip

PARTS = ("sharpness", "size", "contrast")
LOW_QUALITY = 0.3
"""Scores below are worth a word."""
WORDS = {
    "sharpness": "blurred",
    "size": "smaller than the network's input",
    "contrast": "of low contrast",
}
NO_SHARPNESS, FULL_SHARPNESS = 0.15, 0.45
FULL_CONTRAST = 12.0
BLUR = 9  # pixels of the moving average, as published
LINES = 32  # of each direction that are measured; all would take longer than a small network
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
AT_ONCE = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PictureQuality:
    """Quality of one picture.

    Attributes:
        score: the least of the parts, in [0, 1].
        sharpness: 0 for blurred, 1 for sharp.
        size: 1 if the source has at least the pixels of the network's input; None if unknown.
        contrast: 0 for a flat picture, 1 from a standard deviation of 12 grey levels on.
    """

    score: float
    sharpness: float
    size: float | None
    contrast: float

    @classmethod
    def of_parts(cls, parts_3: NDArray[Any]) -> PictureQuality:
        """From a row of `quality_parts`."""
        sharpness, size, contrast = (round(float(part), 4) for part in parts_3)
        known = [part for part in (sharpness, size, contrast) if not np.isnan(part)]
        return cls(min(known), sharpness, None if np.isnan(size) else size, contrast)

    @property
    def is_low(self) -> bool:
        """Whether the score is below `LOW_QUALITY`."""
        return self.score < LOW_QUALITY

    def as_json(self) -> dict[str, Any]:
        """`{"score", "sharpness", "size", "contrast"}`."""
        return asdict(self)

    def as_text(self) -> str:
        """The score and its reason, such as "quality 0.12: blurred"."""
        worst = [name for name in PARTS if getattr(self, name) == self.score]
        return f"quality {self.score:.2f}: {' and '.join(WORDS[name] for name in worst)}"

    def reason_below(self, minimum: float | None) -> str | None:
        """Why a picture is not acquired; None if its score reaches the minimum, or without one."""
        if minimum is None or self.score >= minimum:
            return None
        return f"{self.as_text()}; the minimum is {minimum:g}"


def check_minimum(minimum: float | None) -> None:
    """Check a gate of quality.

    Raises:
        ConfigError: outside [0, 1].
    """
    if minimum is not None and not 0 <= minimum <= 1:
        raise ConfigError(f"min_quality must be in [0, 1], found {minimum:g}")


def quality_parts(
    pixels_NCHW: Pixels, spec: PictureSettings, source_N: NDArray[np.int64] | None = None
) -> Floats:
    """Sharpness, size and contrast of pictures, shape (N, 3).

    Args:
        pixels_NCHW: uint8 pictures at the network's input size.
        spec: the model's picture settings.
        source_N: height x width of each source; 0, or None for all, if unknown: the size is NaN.
    """
    parts_N3 = np.full((len(pixels_NCHW), 3), np.nan, np.float32)
    if source_N is not None:
        parts_N3[:, 1] = size_part(source_N, spec)
    at_once = AT_ONCE if spec.fit != "pad" else 1  # Each has its own border then.
    for start in range(0, len(parts_N3), at_once):
        rows = slice(start, start + at_once)
        block = np.asarray(pixels_NCHW[rows])
        if spec.fit == "pad":
            block = _without_border(block, spec.fill)
        parts_N3[rows, 0], parts_N3[rows, 2] = _sharpness_and_contrast(block)
    return parts_N3


def size_part(source_N: NDArray[np.int64], spec: PictureSettings) -> Floats:
    """The size of pictures by the height x width of their sources, shape (N,); NaN for 0."""
    share_N = np.where(source_N > 0, source_N, np.nan) / (spec.size[0] * spec.size[1])
    return np.sqrt(share_N).clip(max=1).astype(np.float32)


def quality_scores(parts_N3: Floats) -> Floats:
    """The score of each picture: its least part that is known, shape (N,)."""
    scores: Floats = np.nanmin(parts_N3, axis=1)
    return scores


def _without_border(pixels_1CHW: NDArray[np.uint8], fill: int) -> NDArray[np.uint8]:
    """The picture without the rows and columns at its sides that hold the fill only."""
    for axis in (2, 3):
        others = tuple(other for other in range(4) if other != axis)
        used = np.flatnonzero((pixels_1CHW != fill).any(others))
        if len(used):
            pixels_1CHW = pixels_1CHW.take(np.arange(used[0], used[-1] + 1), axis)
    return pixels_1CHW


def _sharpness_and_contrast(pixels_NCHW: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    rows, columns = _lines(pixels_NCHW), _lines(pixels_NCHW.swapaxes(2, 3))
    sharpness = np.minimum(_kept_differences(rows), _kept_differences(columns))
    return (
        ((sharpness - NO_SHARPNESS) / (FULL_SHARPNESS - NO_SHARPNESS)).clip(0, 1),
        (rows.std(axis=(1, 2)) / FULL_CONTRAST).clip(0, 1),
    )


def _lines(pixels_NCHW: NDArray[np.uint8]) -> Floats:
    """Evenly spaced rows as grey levels, (N, rows, W)."""
    height = pixels_NCHW.shape[2]
    chosen = np.linspace(0, height - 1, min(height, LINES)).round().astype(int)
    lines = pixels_NCHW[:, :, chosen].astype(np.float32)
    grey: Floats = lines[:, 0] if lines.shape[1] == 1 else np.tensordot(LUMA, lines, ([0], [1]))
    return grey


def _kept_differences(lines_NLW: Floats) -> Floats:
    """Share of the differences along lines that a moving average takes away, (N,); 0 if flat."""
    width = min(BLUR, (lines_NLW.shape[2] - 1) // 2 * 2 + 1)
    half = width // 2
    wide = np.pad(lines_NLW, ((0, 0), (0, 0), (half, half)), mode="edge")
    sharp = np.abs(np.diff(lines_NLW, axis=2))
    # Neighbouring means differ by what enters and what leaves.
    blurred = np.abs(wide[..., width:] - wide[..., :-width]) / width
    lost = np.maximum(sharp - blurred, 0).sum(axis=(1, 2))
    total = sharp.sum(axis=(1, 2))
    share: Floats = np.divide(lost, total, out=np.zeros_like(total), where=total > 0)
    return share
