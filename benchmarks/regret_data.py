"""The data sets of `benchmarks.regret`, divided into training, validation and test pictures.

A division is drawn by its number. But for closed sets and the landmarks, which come divided, no
identity is in two splits. Textures and badges are made by code and were used for no choice.

Shapes: N pictures, H x W pixels, C channels.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.regret_errors import Protocol
from twinlens.config import DataSettings
from twinlens.data.folders import read_table
from twinlens.data.splits import assign_splits
from twinlens.data.table import ImageTable

__all__ = ["DATA_SETS", "LITE0", "WEIGHTS", "DataSet", "divide"]

SHARED = Path(__file__).parents[2] / "shared"
DATA, WEIGHTS = SHARED / "data", SHARED / "weights"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
LITE0 = WEIGHTS / "tf_efficientnet_lite0.in1k.safetensors"

Pixels = NDArray[np.uint8]

SMALL1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
NUM_MADE, PICTURES_OF_MADE = 24, 12

# ImageNet's weights for recipes that begin with a pretrained network.
PRETRAINED = {"model.backbone": "tf_efficientnet_lite0", "model.weights": str(LITE0)}
THAWED = {**PRETRAINED, "model.freeze": "blocks.6"}


@dataclass(frozen=True)
class DataSet:
    """A table for each division, what is measured on it, and the seconds that training may take.

    `recipe` is a published recipe that fits the data, with its settings; "" if none does.
    """

    make: Callable[[int], ImageTable]
    protocol: Protocol
    budget: int
    divisions: int = 1
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def divide(table: ImageTable, division: int, *, train: int, val: int) -> ImageTable:
    """So many random identities to train and to validate with; all others are test identities."""
    names = np.random.default_rng(division).permutation(table.identities())
    split = dict.fromkeys(names, "test")
    split.update(dict.fromkeys(names[: train + val], "val"))
    split.update(dict.fromkeys(names[:train], "train"))
    return table.with_split([split[name] for name in table.identity])


def in_memory(name: str, pixels: Pixels, identity: Sequence[str]) -> ImageTable:
    """A table of pictures (N, H, W) or (N, H, W, 3) without splits."""
    num = len(identity)
    path = [f"{one}/{number:05d}" for number, one in enumerate(identity)]
    return ImageTable(
        np.array(path, dtype=object), np.array(identity, dtype=object), np.zeros(num, dtype=bool),
        np.full(num, "", dtype=object), name, None, pixels=pixels,
    )  # fmt: skip


def groceries(division: int) -> ImageTable:
    return divide(read_table(str(DATA / "groceries")), division, train=16, val=4)


def groceries_closed(division: int) -> ImageTable:
    table = read_table(str(DATA / "groceries"))
    return assign_splits(table, mode="images", fractions=DataSettings().fractions, seed=division)


def faces(division: int) -> ImageTable:
    return divide(read_table(str(DATA / "orl_faces")), division, train=24, val=6)


def signatures(division: int) -> ImageTable:
    return read_table(str(DATA / "signatures"))


def landmarks(division: int) -> ImageTable:
    root = DATA / "landmarks"
    files = [(split, file) for split in ("train", "test") for file in root.glob(f"{split}/*/*")]
    rows = [(str(file), file.parent.name, False, split) for split, file in files]
    table = ImageTable.of_rows(rows, "landmarks", root)
    return assign_splits(table, mode="images", fractions=(0.8, 0.2, 0), seed=division)


def digits(division: int) -> ImageTable:
    table = read_table("digits")
    learned = table.select(np.isin(table.identity, list("0123456")))
    split = dict.fromkeys("789", "test")
    split.update(zip(learned.path, divide(learned, division, train=5, val=2).split, strict=True))
    rows = zip(table.path, table.identity, strict=True)
    return table.with_split([split.get(path) or split[name] for path, name in rows])


@cache
def characters() -> tuple[Pixels, list[str]]:
    """The drawings of 8 alphabets, (N, 105, 105), and the identity of each, ALPHABET/CHARACTER."""
    drawings = {}
    for number in (1, 2):
        file = zipfile.ZipFile(DATA / f"omniglot/images_background_small{number}.zip")
        for name in file.namelist():
            if name.endswith(".png"):
                _, alphabet, character, drawing = name.split("/")
                image = Image.open(io.BytesIO(file.read(name))).convert("L")
                drawings[f"{alphabet}/{character}", drawing] = np.asarray(image)
    identity = [name for name, _ in drawings]
    return np.stack(list(drawings.values())), identity


def omniglot(division: int) -> ImageTable:
    """The first small set to learn from, one of its alphabets to validate, three others as test."""
    table = in_memory("omniglot", *characters())
    val = SMALL1[(division + 1) % len(SMALL1)]
    split = {name: "train" if name != val else "val" for name in SMALL1}
    return table.with_split([split.get(one.split("/")[0], "test") for one in table.identity])


def drawings(height: int, width: int, num: int) -> Callable[[int], ImageTable]:
    """Few characters (`num`, a quarter to validate) of another shape than square; 20 as test."""

    def make(division: int) -> ImageTable:
        pixels, identity = characters()
        names = np.random.default_rng(1000 * height + division).permutation(np.unique(identity))
        rows = np.flatnonzero(np.isin(identity, names[: num + 20]))
        small = [
            cv2.resize(pixels[row], (width, height), interpolation=cv2.INTER_AREA) for row in rows
        ]
        table = in_memory("drawings", np.stack(small), [identity[row] for row in rows])
        return divide(table, division, train=num - num // 4, val=num // 4)

    return make


def closed(name: str, root: Path) -> Callable[[int], ImageTable]:
    def make(division: int) -> ImageTable:
        table = read_table(name, root=root)
        fractions = DataSettings().fractions
        return assign_splits(table, mode="identities", fractions=fractions, seed=division)

    return make


def cifar10(division: int) -> ImageTable:
    file = zipfile.ZipFile(DATA / "cifar10/cifar10-jpeg.zip")
    names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names])
    table = in_memory("cifar10", pixels, [name.split("/")[1] for name in names])
    table = ImageTable(
        np.array(names, dtype=object), np.array([name.split("/")[1] for name in names]),
        np.zeros(len(names), dtype=bool), np.array([name.split("/")[0] for name in names]),
        "cifar10", None, pixels=pixels,
    )  # fmt: skip
    return assign_splits(table, mode="images", fractions=(0.85, 0.15, 0), seed=division)


def made_up(
    name: str, draw: Callable[[np.random.Generator, np.random.Generator], Pixels]
) -> Callable[[int], ImageTable]:
    """10 identities to learn from, 4 to validate, 10 as test.

    `draw` draws a picture from a generator that begins anew for each picture of an identity, hence
    gives its traits, and one for what differs between pictures.
    """

    def make(division: int) -> ImageTable:
        own = np.random.default_rng([division, 1])
        pictures, identity = [], []
        for number in range(NUM_MADE):
            for _ in range(PICTURES_OF_MADE):
                pictures.append(draw(np.random.default_rng([division, 2, number]), own))
                identity.append(f"{number:02d}")
        return divide(in_memory(name, np.stack(pictures), identity), division, train=10, val=4)

    return make


def badge(traits: np.random.Generator, own: np.random.Generator) -> Pixels:
    """Patches of the identity's three colours, (40, 40, 3), wherever they fall."""
    colour_3C = traits.uniform(0, 255, (3, 3))
    share_3 = traits.dirichlet(np.full(3, 3.0))
    picture = np.full((40, 40, 3), own.uniform(60, 200), dtype=np.float32)
    for _ in range(14):
        x, y, a, b = own.integers((0, 0, 5, 5), (40, 40, 12, 12)).tolist()
        colour = tuple(colour_3C[own.choice(3, p=share_3)].tolist())
        cv2.ellipse(picture, (x, y), (a, b), own.uniform(0, 180), 0, 360, colour, -1)
    return noisy(picture * own.uniform(0.85, 1.15), own, 6)


def texture(traits: np.random.Generator, own: np.random.Generator) -> Pixels:
    """Two bands of noise of the identity's directions and wavelengths, (36, 52), grey."""
    angles, lengths = traits.uniform(0, np.pi, 2), traits.uniform(3, 9, 2)
    height, width = 36, 52
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    spectrum = np.fft.rfft2(own.standard_normal((height, width)))
    turned = angles + own.normal(0, 0.05, 2)
    bands = 0.0
    for angle, length in zip(turned, lengths, strict=True):
        for side in (-1, 1):
            at_x, at_y = side * np.cos(angle) / length, side * np.sin(angle) / length
            bands += np.exp(-((fx - at_x) ** 2 + (fy - at_y) ** 2) / (2 * 0.025**2))
    wave = np.fft.irfft2(spectrum * bands, (height, width))
    wave *= own.uniform(25, 50) / wave.std()
    return noisy(own.uniform(90, 160) + wave, own, 8)


def noisy(picture: NDArray[Any], own: np.random.Generator, level: float) -> Pixels:
    return np.clip(picture + own.normal(0, level, picture.shape), 0, 255).astype(np.uint8)


DATA_SETS: dict[str, DataSet] = {
    "landmarks": DataSet(landmarks, "nearest", 60, 1, "landmarks", THAWED),
    "faces": DataSet(faces, "open", 60, 3, "faces-triplet", PRETRAINED),
    "groceries": DataSet(groceries, "open", 300, 1, "faces-triplet", PRETRAINED),
    "groceries-closed": DataSet(groceries_closed, "closed", 150),
    "drawings-20x16": DataSet(drawings(20, 16, 12), "open", 60, 3),
    "drawings-16x28": DataSet(drawings(16, 28, 16), "open", 60, 3),
    "drawings-28x20": DataSet(drawings(28, 20, 20), "open", 60, 3),
    "digits": DataSet(digits, "open", 60, 1, "digits-contrastive"),
    "badges": DataSet(made_up("badges", badge), "open", 60, 2),
    "textures": DataSet(made_up("textures", texture), "open", 60, 2),
    "signatures": DataSet(signatures, "skilled", 300, 1, "signet", {"model.stride": 4}),
    "omniglot": DataSet(omniglot, "open", 300, 1, "omniglot-eca"),
    "mnist": DataSet(closed("mnist", DATA / "mnist"), "closed", 600, 1, "digits-contrastive"),
    "fashion": DataSet(closed("fashion-mnist", FASHION), "closed", 600, 1, "digits-contrastive"),
    "cifar10": DataSet(cifar10, "closed", 600, 1, "cifar"),
}
