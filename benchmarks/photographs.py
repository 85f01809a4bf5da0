"""Made-up photographs in JPEG files, the size of those that a telephone sends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from twinlens.data.table import ImageTable

__all__ = ["write_photographs"]

WIDTH, HEIGHT = 640, 480


def write_photographs(folder: Path, num: int, per_label: int = 8) -> ImageTable:
    """`num` JPEG files of about 75 kB, as photographs of such a size have, as a table."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.jpg" for number in range(num)]
    for path in paths:
        coarse, fine = _noise(rng, 32), _noise(rng, 4)
        Image.blend(coarse, fine, 0.25).save(path, quality=90)
    return ImageTable(
        path=np.array([str(path) for path in paths], dtype=object),
        identity=np.array([f"thing {number // per_label}" for number in range(num)], dtype=object),
        forged=np.zeros(num, dtype=bool),
        split=np.full(num, "", dtype=object),
        source="made-up photographs",
        root=folder,
    )


def _noise(rng: np.random.Generator, side: int) -> Image.Image:
    """Random colours in squares of `side` pixels, smoothed."""
    colour = rng.integers(0, 256, (HEIGHT // side, WIDTH // side, 3), dtype=np.uint8)
    return Image.fromarray(colour).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
