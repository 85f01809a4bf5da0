"""The service under mixed load while its workers are killed; a minute."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import TinyRun

from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher

service = pytest.importorskip("benchmarks.service")

SECONDS = 60


@pytest.mark.slow
def test_nothing_acknowledged_is_lost(tiny_run: TinyRun, tmp_path: Path) -> None:
    matcher = Matcher.load(tiny_run.model)
    pictures = [_picture(number) for number in range(8)]
    gallery = Gallery.create(tmp_path / "gallery", matcher)
    gallery.enrol_embeddings(
        matcher.embed(pictures), [f"start {number}" for number in range(8)],
        fingerprint=gallery.fingerprint,
    )  # fmt: skip
    figures = service.soak(str(tiny_run.model), str(gallery.place), pictures, SECONDS, tmp_path)
    assert figures["killed"] >= 3
    assert figures["acknowledged"] > 20
    assert figures["missing"] == []
    assert figures["mb_at_the_end"] < 1.2 * figures["mb_after_a_quarter"] + 20
    # A killed worker breaks its connections; everything else is answered, or refused at once.
    assert {status.split()[1] for status in figures["statuses"]} <= {"0", "200", "201", "503"}


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((320, 320)).save(file, "JPEG")
    return file.getvalue()
