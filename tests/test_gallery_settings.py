"""Stored settings of a gallery: format 1 stays readable, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun

from twinlens.errors import GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.settings import GalleryState, read_settings

GOLDEN = Path(__file__).parent / "golden" / "gallery_settings_1.json"


@pytest.fixture
def stored() -> dict[str, Any]:
    """Settings of a calibrated and indexed gallery, as version 0.1.0 wrote them."""
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8")))


def test_settings_of_format_1_open(stored: dict[str, Any]) -> None:
    settings = read_settings("g", stored)
    assert settings.model_dump(exclude_unset=True) == stored
    state = GalleryState(1, settings, 12)
    assert state.open_set is not None
    assert (state.open_set.target_fpir, state.rule) == (0.25, stored["open_set"]["rule"])
    later = {"unadjusted": None, "fpir_limit": None}
    assert state.open_set.as_json() == stored["open_set"] | later
    assert state.pairs is not None
    assert {key: state.pairs.as_json()[key] for key in stored["pairs"]} == stored["pairs"]
    assert state.index is not None
    assert (state.index.partitions, state.nprobes) == (2, stored["index"]["nprobes"])


def test_new_galleries_store_the_same_keys(
    stored: dict[str, Any], tiny_run: TinyRun, tmp_path: Path
) -> None:
    gallery = Gallery.create(tmp_path / "g", tiny_run.model)
    assert list(gallery.store.settings()) == list(stored)
    gallery.enrol(tiny_run.data)
    gallery.calibrate(fpir=0.25)
    gallery.optimize(partitions=2)
    new = gallery.store.settings()
    assert list(new) == list(stored)
    for name in ("pairs", "open_set", "index"):
        assert list(new[name])[: len(stored[name])] == list(stored[name])


def test_all_problems_of_damaged_settings_are_named(stored: dict[str, Any]) -> None:
    del stored["created"]
    stored |= {"scale": 0, "index": {"partitions": 0, "nprobes": 1, "recall": 2}}
    with pytest.raises(
        GalleryError, match=r"the gallery g is damaged: created is missing"
    ) as caught:
        read_settings("g", stored)
    for name in ("scale: ", "index.partitions: ", "index.recall: "):
        assert name in str(caught.value)


def test_a_newer_format_needs_an_upgrade(stored: dict[str, Any]) -> None:
    with pytest.raises(GalleryError, match=r"has format 4, but .* up to 3: upgrade twinlens"):
        read_settings("g", stored | {"format": 4, "unknown": True})
