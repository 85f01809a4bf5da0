from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twinlens.report import embedding_map as maps
from twinlens.report.embedding_map import data_uri, embedding_map, map_rows

SVG = "{http://www.w3.org/2000/svg}"


def clusters(num: int, each: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(num, 16)) * 5
    emb_ND = np.repeat(centre, each, axis=0) + rng.normal(size=(num * each, 16)) * 0.2
    return emb_ND.astype(np.float32), [f"id{i // each}" for i in range(num * each)]


def pictures(num: int, channels: int = 1, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (num, channels, size, size + 2), dtype=np.uint8)


@pytest.mark.parametrize("num", [4, 12], ids=["pca", "t-sne"])
def test_near_embeddings_lie_near(num: int) -> None:
    emb_ND, identity = clusters(num, 5)
    at_N2 = maps._layout(emb_ND.astype(np.float64), 0)
    gap_NN = np.linalg.norm(at_N2[:, None] - at_N2[None], axis=2)
    np.fill_diagonal(gap_NN, np.inf)
    nearest = gap_NN.argmin(axis=1)
    right = np.mean([identity[i] == identity[j] for i, j in enumerate(nearest)])
    assert right > 0.95


def test_the_same_map_twice_and_another_with_another_seed() -> None:
    emb_ND, identity = clusters(8, 4)
    first, again, other = (
        embedding_map(emb_ND, identity, pictures(32), seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_every_picture_is_a_thumbnail_or_a_dot_with_its_name() -> None:
    emb_ND, identity = clusters(10, 8)
    identity[3] = '<b>"Zoë" & 李</b>'
    forged = np.arange(80) == 3
    root = ET.fromstring(embedding_map(emb_ND, identity, pictures(80), forged=forged))
    titles = [node.text for node in root.iter(f"{SVG}title")]
    assert len(titles) == 80
    assert '<b>"Zoë" & 李</b> (forged)' in titles
    thumbnails, dots = len(list(root.iter(f"{SVG}image"))), len(list(root.iter(f"{SVG}circle")))
    assert thumbnails + dots == 80
    assert thumbnails >= 10  # One at least of each cluster.


def test_thumbnails_are_bounded_and_lie_inside() -> None:
    emb_ND, identity = clusters(29, 1)
    root = ET.fromstring(embedding_map(emb_ND, identity, pictures(29), most_thumbnails=9))
    images = list(root.iter(f"{SVG}image"))
    assert len(images) == 9
    for node in images:
        x, y, w, h = (float(node.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert 0 <= x <= maps.MAP_SIZE[0] - w
        assert 0 <= y <= maps.MAP_SIZE[1] - h


def test_thumbnails_do_not_cover_each_other() -> None:
    rng = np.random.default_rng(0)
    at_N2 = rng.uniform(0, 100, (200, 2))
    shown = maps._without_overlap(at_N2, 9.0, 300, rng)
    gap = np.abs(at_N2[shown][:, None] - at_N2[shown][None]).max(axis=2)
    np.fill_diagonal(gap, np.inf)
    assert gap.min() >= 9.0
    hidden = np.abs(at_N2[~shown][:, None] - at_N2[shown][None]).max(axis=2).min(axis=1)
    assert hidden.max() < 9.0  # Each dot would have covered a thumbnail.


@pytest.mark.parametrize(
    "emb_ND",
    [np.zeros((40, 4)), np.ones((1, 3)), np.arange(5.0)[:, None], np.full((3, 2), np.nan)],
    ids=["collapsed", "one picture", "one dimension", "no number"],
)
def test_odd_embeddings(emb_ND: np.ndarray) -> None:
    picture = embedding_map(emb_ND, ["a"] * len(emb_ND), pictures(len(emb_ND)))
    if np.isnan(emb_ND).all():
        assert picture == ""
    else:
        assert "nan" not in re.sub(r"base64,[^\"]+", "", picture)
        ET.fromstring(picture)


@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 60), st.integers(0, 3))
def test_rows_of_a_map(labels: list[int], most: int, seed: int) -> None:
    identity = [f"id{label}" for label in labels]
    rows = map_rows(identity, np.random.default_rng(seed), most)
    assert len(set(rows.tolist())) == len(rows) <= most
    assert rows.tolist() == sorted(rows.tolist())
    if len(labels) <= most:
        assert rows.tolist() == list(range(len(labels)))
    elif len(set(labels)) * 20 < most:
        assert len(rows) > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_survive_as_they_are(channels: int) -> None:
    pixels_CHW = np.zeros((channels, 12, 9), dtype=np.uint8)
    pixels_CHW[:, 3:7, 2] = 200
    kind, _, content = data_uri(pixels_CHW).partition(";base64,")
    assert kind == "data:image/png"
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    decoded = array[None] if channels == 1 else np.moveaxis(array, -1, 0)
    assert np.array_equal(decoded, pixels_CHW)


def test_large_pictures_are_made_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 200), dtype=np.uint8)
    kind, _, content = data_uri(noise, 60).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (40, 60)
