"""Named set `glyphs`: letters and digits, drawn in the typefaces that Matplotlib ships.

An identity is a letter. Each of its pictures has another typeface and another view: turned,
slanted, scaled and shifted a little, with noise. Training, validation and test have different
scripts. No two identities look alike: of letters such as Latin A and Greek Λ one is left out.
This module draws; it reads no pictures.

Shapes: N pictures, S x S pixels.
"""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from twinlens.data.table import ImageTable
from twinlens.errors import DataError

__all__ = ["SPLIT_LETTERS", "TYPEFACES", "draw_glyph", "glyphs"]

SIZE = 40  # S
OVERSIZE = 3  # Glyphs are drawn larger, so that turning and reducing them leaves smooth edges.
FONT_SIZE = 25 * OVERSIZE

# No two of these look alike: in no typeface do their glyphs, centred and scaled to one size, have a
# cosine above 0.95. A Latin P and a Cyrillic Р would be one identity in two splits.
SPLIT_LETTERS = {
    "train": (
        "BDEGIJKLMNPQRSTUVWZabcdefghikmqrtxy12456789"
        "ɐɒɔɕɖɗɘəɚɝɞɠɣɤɥɧɩɫɬɭɮɯɰɱɲɶɷɸɹɺɻɼɾɿʁʂʃʇʉʊʍʎʏʐʑʒʓʔʕʖʗʚʛʝʞʠʣʤʦʧʨßæœøþðƕ"
        "ԳԴԵԶԷԸԹԺԻԽԾԿՀՁՃՄՅՆՇՈՉՊՋՎՐՒՔՖբեէըթխծձճմնչջռվփքֆ"
        "აბგდეთკლმოპჟრსტუფქღყჩცწჭჯჰ"
    ),
    "val": "ΔΘΛΞΣΨΩαβγδεζηλμξπρσςτυφχω",
    "test": "БГДЖЗИЛФЦЧШЩЪЫЭЮЯЄЉЊЂЋ",
}

TYPEFACES = tuple(
    f"{family}{style}"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
        "cm": ("r10", "b10", "ss10", "tt10", "ti10"),
    }.items()
    for style in styles
)


def glyphs(seed: int = 0) -> ImageTable:
    """Draw every letter once in each typeface that has it, dark on light.

    Args:
        seed: random seed for the views.
    Returns:
        A table with pixels (N, S, S), grey, and with splits.
    Raises:
        DataError: Matplotlib's typefaces are missing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for split, alphabet in SPLIT_LETTERS.items():
        for letter in alphabet:
            name = unicodedata.name(letter).lower().replace(" letter", "")
            drawn = set[bytes]()  # A typeface may have a glyph from another.
            for typeface in TYPEFACES:
                picture = draw_glyph(typeface, letter)
                if picture is not None and picture.tobytes() not in drawn:
                    drawn.add(picture.tobytes())
                    rows.append((f"glyphs/{name}/{typeface}", name, split, _view(picture, rng)))
    path, identity, splits, pixels = zip(*rows, strict=True)
    return ImageTable(
        path=np.array(path, dtype=object),
        identity=np.array(identity, dtype=object),
        forged=np.zeros(len(rows), dtype=np.bool_),
        split=np.array(splits, dtype=object),
        source="glyphs",
        root=None,
        pixels=np.stack(pixels),
    )


def draw_glyph(typeface: str, letter: str) -> Image.Image | None:
    """A letter in the middle of a picture, white on black; None if the typeface lacks it.

    Raises:
        DataError: the typeface is missing.
    """
    font, codes = _font(typeface)
    # Computer Modern has other glyphs at the codes beyond ASCII.
    if ord(letter) not in codes or (typeface.startswith("cm") and not letter.isascii()):
        return None
    picture = Image.new("L", (SIZE * OVERSIZE, SIZE * OVERSIZE))
    left, top, right, bottom = font.getbbox(letter)
    corner = ((picture.width - left - right) / 2, (picture.height - top - bottom) / 2)
    ImageDraw.Draw(picture).text(corner, letter, fill=255, font=font)
    return picture if picture.getbbox() else None


@cache
def _font(typeface: str) -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """A typeface and the code points that it has."""
    import matplotlib  # Takes a third of a second.
    from matplotlib.ft2font import FT2Font

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{typeface}.ttf")
    try:
        return ImageFont.truetype(file, FONT_SIZE), frozenset(FT2Font(file).get_charmap())
    except OSError as error:
        raise DataError(
            f"cannot draw letters: cannot read {file}, which comes with Matplotlib: reinstall it"
        ) from error


def _view(picture: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A glyph as it might lie on a scanned page, shape (S, S)."""
    angle, slant = rng.uniform(-0.14, 0.14, 2)  # radians; 0.14 is 8 degrees.
    scale = rng.uniform(0.8, 1.2)
    shift = rng.uniform(-3, 3, 2) * OVERSIZE
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ [[scale, slant], [0, scale]])
    middle = np.full(2, picture.width / 2)
    origin = middle - inverse @ (middle + shift)
    coefficients = np.column_stack([inverse, origin]).ravel().tolist()
    turned = picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    ink = np.asarray(turned.reduce(OVERSIZE), dtype=np.float64) / 255
    paper, darkest = rng.uniform(200, 255), rng.uniform(0, 90)
    grey = paper + (darkest - paper) * ink + rng.normal(0, 10, ink.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)
