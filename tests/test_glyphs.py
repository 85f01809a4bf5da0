"""The named set `glyphs`: scripts apart, no lookalikes, no missing glyphs."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import twinlens
from twinlens.data import glyphs as drawing
from twinlens.data.folders import read_table
from twinlens.data.glyphs import SPLIT_LETTERS, TYPEFACES, draw_glyph, glyphs
from twinlens.errors import DataError

LETTERS = "".join(SPLIT_LETTERS.values())


@pytest.fixture(scope="module")
def table() -> twinlens.ImageTable:
    return glyphs()


def test_a_script_is_in_one_split() -> None:
    scripts = {
        split: {unicodedata.name(letter).split()[0] for letter in letters}
        for split, letters in SPLIT_LETTERS.items()
    }
    assert scripts == {
        "train": {"LATIN", "DIGIT", "ARMENIAN", "GEORGIAN"},
        "val": {"GREEK"},
        "test": {"CYRILLIC"},
    }


def test_no_two_letters_look_alike() -> None:
    """Glyphs in the middle of 32 x 32 pixels, 28 on their longer side, then averaged to 16 x 16."""
    for typeface in TYPEFACES:
        drawn = [
            (letter, picture)
            for letter in LETTERS
            if (picture := draw_glyph(typeface, letter)) is not None
        ]
        shape_ND = np.stack([_shape(picture) for _, picture in drawn])
        cosine_NN = np.triu(shape_ND @ shape_ND.T, 1)
        first, second = np.unravel_index(cosine_NN.argmax(), cosine_NN.shape)
        assert cosine_NN.max() <= 0.95, (typeface, drawn[first][0], drawn[second][0])


def _shape(picture: Image.Image) -> NDArray[np.float64]:
    ink = picture.crop(picture.getbbox())
    scale = 28 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))))
    canvas = Image.new("L", (32, 32))
    canvas.paste(ink, ((32 - ink.width) // 2, (32 - ink.height) // 2))
    shape = np.asarray(canvas.reduce(2), dtype=np.float64).ravel()
    return np.asarray(shape / np.linalg.norm(shape))


def test_the_measure_knows_lookalikes() -> None:
    pictures = [
        draw_glyph("DejaVuSans", letter) for letter in ("P", "\N{CYRILLIC CAPITAL LETTER ER}", "x")
    ]
    latin, cyrillic, other = (_shape(picture) for picture in pictures if picture is not None)
    assert latin @ cyrillic > 0.99
    assert latin @ other < 0.9


def test_a_glyph_that_a_typeface_lacks_is_left_out() -> None:
    assert draw_glyph("STIXGeneral", "Ֆ") is None
    assert draw_glyph("cmr10", "Ω") is None  # Its glyphs beyond ASCII are others.
    font, _ = drawing._font("DejaVuSans")
    box = bytes(font.getmask("\uffff"))  # Drawn for any that it lacks.
    assert all(bytes(font.getmask(letter)) != box for letter in LETTERS)


def test_no_glyph_occurs_twice(table: twinlens.ImageTable) -> None:
    """Neither in two typefaces of a letter, nor as two letters."""
    letters_of = defaultdict[bytes, set[str]](set)
    for letter, typeface in product(LETTERS, TYPEFACES):
        if (picture := draw_glyph(typeface, letter)) is not None:
            letters_of[picture.tobytes()].add(letter)
    assert {len(letters) for letters in letters_of.values()} == {1}
    assert len(table) == len(letters_of)


def test_the_table(table: twinlens.ImageTable) -> None:
    assert table.identities() == sorted(
        unicodedata.name(letter).lower().replace(" letter", "") for letter in LETTERS
    )
    assert table.pixels is not None
    assert table.pixels.shape == (len(table), 40, 40)
    assert min(np.bincount(table.labels())) >= 12
    for split, letters in SPLIT_LETTERS.items():
        assert len(table.of_split(split).identities()) == len(letters)
    assert {Path(path).name for path in table.path} == set(TYPEFACES)
    middle, edge = table.pixels[:, 8:32, 8:32], table.pixels[:, :2]
    assert (middle.min(axis=(1, 2)) + 40.0 < edge.mean(axis=(1, 2))).all()  # Ink on paper.


def test_a_seed_gives_the_views(table: twinlens.ImageTable) -> None:
    again, other = read_table("glyphs"), glyphs(seed=1)
    assert table.pixels is not None
    assert np.array_equal(table.pixels, again.pixels)
    assert (table.pixels != other.pixels).any(axis=(1, 2)).all()


def test_it_takes_no_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="take no root"):
        read_table("glyphs", root=tmp_path)


def test_without_the_typefaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    drawing._font.cache_clear()
    with pytest.raises(DataError, match=r"cannot read .*DejaVuSans\.ttf.*reinstall"):
        glyphs()
