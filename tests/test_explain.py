"""Explanations of networks whose distance depends on known parts of the pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from twinlens.match.explain import Explanation, explain_pair
from twinlens.measure.distances import EuclideanComparison

SIDE = 24
PART = (slice(None), slice(None), slice(8, 14), slice(8, 14))  # N C H W
CORNER = (slice(None), slice(None), slice(0, 2), slice(0, 24))
EUCLIDEAN = EuclideanComparison("euclidean")


def network(part: tuple[slice, ...]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Embeddings that are the pixels of a part."""
    return lambda pixels: pixels[part].reshape(len(pixels), -1).astype(np.float32) / 255


def two(alike: tuple[slice, ...] | None, seed: int = 0) -> tuple[NDArray[np.uint8], ...]:
    """Two pictures of noise that share a part."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 1, SIDE, SIDE), dtype=np.uint8)
    if alike is not None:
        pixels[1][alike[1:]] = pixels[0][alike[1:]]
    return pixels[0], pixels[1]


def explained(
    seen: tuple[slice, ...], alike: tuple[slice, ...] | None, threshold: float = 1.0
) -> Explanation:
    return explain_pair(network(seen), EUCLIDEAN, *two(alike), threshold)


def test_the_map_points_at_the_part_that_makes_them_alike() -> None:
    for picture in explained(PART, PART).pictures:
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        inside[PART[2:]] = True
        assert picture.effect.min() >= 0
        assert picture.effect[inside].min() > picture.effect[~inside].mean() * 3
        row, column = np.unravel_index(picture.effect.argmax(), picture.effect.shape)
        assert inside[row, column]
        assert picture.deletion[0] == picture.insertion[-1] == 0
        assert picture.deletion[-1] == picture.insertion[0] == picture.random[-1]
        assert picture.deletion_area > 1.2 * picture.random_area
        assert picture.insertion_area < 0.5 * picture.random_area


def test_a_part_that_makes_them_unlike_is_negative() -> None:
    """All is equal but one part, and the whole is seen."""
    whole = (slice(None),) * 4
    a = np.full((1, SIDE, SIDE), 128, np.uint8)
    b = a.copy()
    b[PART[1:]] = 0
    explanation = explain_pair(network(whole), EUCLIDEAN, a, b, 1.0)
    other = explanation.pictures[1]
    assert other.hidden_by == "ground"
    row, column = np.unravel_index(other.effect.argmin(), other.effect.shape)
    assert (b[0, row, column], other.effect.max()) == (0, 0)
    assert other.insertion_area < other.random_area + 1e-6
    assert explanation.as_json()["pictures"][1]["hidden_by"] == "ground"


@pytest.mark.parametrize(
    ("seen", "alike", "depends", "words"),
    [
        (PART, PART, False, "depends on the object: no longer the same"),
        (CORNER, CORNER, True, "depends on the background: still the same"),
        (PART, None, False, "depends on the object: still different"),
    ],
)
def test_the_background_is_named(
    seen: tuple[slice, ...], alike: tuple[slice, ...] | None, depends: bool, words: str
) -> None:
    explanation = explained(seen, alike, threshold=0.5)
    assert explanation.depends_on_background == depends
    assert explanation.background().startswith(words)
    assert explanation.match == (alike is not None)
    shares = [picture.central_share for picture in explanation.pictures]
    assert all((share > 0.6) == (seen is PART) for share in shares)


def test_different_backgrounds_are_named() -> None:
    """Equal objects, and borders that set the pictures apart."""
    rng = np.random.default_rng(0)
    a = np.full((1, SIDE, SIDE), 250, np.uint8)
    a[0, 6:18, 6:18] = rng.integers(0, 256, (12, 12))
    b = a.copy()
    b[0, 1, 1:-1] = 0
    explanation = explain_pair(network((slice(None),) * 4), EUCLIDEAN, a, b, 1.0)
    assert not explanation.match
    assert explanation.depends_on_background
    assert "the same once both backgrounds are hidden" in explanation.background()


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (40, 5)])
def test_any_size_and_equal_pictures(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, *size), dtype=np.uint8)
    explanation = explain_pair(network((slice(None),) * 4), EUCLIDEAN, pixels, pixels, 0.1)
    assert explanation.match
    assert all(np.isfinite(picture.effect).all() for picture in explanation.pictures)
    again = explain_pair(network((slice(None),) * 4), EUCLIDEAN, pixels, pixels, 0.1)
    assert again.as_json() == explanation.as_json()
