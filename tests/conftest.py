"""Tiny pictures, made on the spot, and a cache that is never the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PictureFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test."""
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("TWINLENS_CACHE", str(folder))
    return folder


@pytest.fixture
def picture_folder(tmp_path: Path) -> PictureFolder:
    """A factory of folders: `picture_folder({"a": 3, "deep/b": 2})` has a/0.png ... deep/b/1.png.

    Pictures in one class folder share a coarse pattern and differ by noise.
    """

    def make(
        classes: Mapping[str, int],
        *,
        size: tuple[int, int] = (16, 16),
        seed: int = 0,
        suffix: str = ".png",
        top: str = "pictures",
    ) -> Path:
        generator = np.random.default_rng(seed)
        for name, count in classes.items():
            folder = tmp_path / top / name
            folder.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(30, 226, (4, 4), dtype=np.uint8)
            pattern = np.asarray(Image.fromarray(coarse).resize(size[::-1]), dtype=np.int64)
            for number in range(count):
                noise = generator.integers(-20, 21, size)
                Image.fromarray((pattern + noise).astype(np.uint8)).save(
                    folder / f"{number}{suffix}"
                )
        return tmp_path / top

    return make
