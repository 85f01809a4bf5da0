"""Named data sets: read from the user's copy, or downloaded by torchvision's classes.

`digits` comes with scikit-learn, and `glyphs` is drawn. The others are read from the folder that
the user gives, or are downloaded once into the cache. torchvision imports torch, which takes
seconds. So it is imported only for downloads and for CIFAR-10, whose files are pickles: torchvision
checks their MD5 before it opens them. numpy reads IDX files. Without the extra `train` only these
two are refused.

Shapes: N pictures, H x W pixels.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.download import download_once, unpack_once
from twinlens.data.glyphs import glyphs
from twinlens.data.table import ImageTable, Row
from twinlens.errors import DataError, naming_extras

__all__ = ["NAMED_SETS", "named_set_in", "read_idx"]

FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Label -> garment, as in torchvision's FashionMNIST."""

OMNIGLOT_SET = re.compile(r"images_(background|evaluation)")

LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")

ReadDataset = Callable[[Path | None], ImageTable]


def named_set_in(folder: Path) -> str | None:
    """The named set that a folder holds a copy of, judged by names of files; else None."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return None
    if any(OMNIGLOT_SET.match(name) for name in names):
        return "omniglot"
    if "cifar-10-batches-py" in names:
        return "cifar10"
    if any(re.match(r"train-images[-.]idx3-ubyte", name) for name in names):
        return "fashion-mnist" if "fashion" in folder.resolve().name.lower() else "mnist"
    return "lfw" if names.intersection(LFW_FOLDERS) else None


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not, of any shape.

    The format is described at http://yann.lecun.com/exdb/mnist/: two zero bytes, the type (8 for
    unsigned bytes), the number of dimensions, each length as a big-endian int32, the values.

    Raises:
        DataError: the file cannot be read, is not IDX, or is cut off.
    """
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{file} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], dtype=">i4").tolist()
    size = int(np.prod(shape, dtype=np.int64))
    if len(shape) != content[3] or len(content) - start != size:
        raise DataError(
            f"{file} is damaged: its header says {shape} bytes, and it holds"
            f" {max(len(content) - start, 0)}: download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _digits(root: Path | None) -> ImageTable:
    if root is not None:
        raise DataError("digits comes with scikit-learn and takes no root: leave --root out")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    return _in_memory("digits", [("", pixels, bunch.target)], [str(digit) for digit in range(10)])


def _glyphs(root: Path | None) -> ImageTable:
    if root is not None:
        raise DataError("glyphs are drawn and take no root: leave --root out")
    return glyphs()


def _mnist(root: Path | None) -> ImageTable:
    return _from_idx("mnist", "MNIST", [str(digit) for digit in range(10)], root)


def _fashion_mnist(root: Path | None) -> ImageTable:
    return _from_idx("fashion-mnist", "FashionMNIST", FASHION_NAMES, root)


def _from_idx(name: str, folder: str, names: Sequence[str], root: Path | None) -> ImageTable:
    if root is None:
        hint = "name a folder with its four IDX files with --root"
        if name == "fashion-mnist":
            hint += (
                " (the Debian package dataset-fashion-mnist installs them in /usr/share/datasets)"
            )
        root = _download(name, folder, ({"train": True},), hint)
    parts = []
    for split, word in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(_idx_file(root, folder, f"{word}-images", "idx3-ubyte"))
        label = read_idx(_idx_file(root, folder, f"{word}-labels", "idx1-ubyte"))
        if pixels.ndim != 3 or label.shape != pixels.shape[:1] or label.max(initial=0) > 9:
            raise DataError(
                f"the {word} files in {root} do not belong together: pictures have shape"
                f" {pixels.shape}, labels {label.shape} with a maximum of {label.max(initial=0)}"
            )
        parts.append((split, pixels, label))
    return _in_memory(name, parts, names)


def _idx_file(root: Path, folder: str, stem: str, ending: str) -> Path:
    folders = (root, root / "raw", root / folder / "raw")
    names = [f"{stem}{dot}{ending}{gz}" for dot in "-." for gz in ("", ".gz")]
    for home in folders:
        for name in names:
            if (home / name).is_file():
                return home / name
    raise DataError(
        f"{root} holds no {names[0]}, gzipped or not: it needs the IDX files train-images,"
        f" train-labels, t10k-images and t10k-labels, or a folder {folder}/raw with them"
    )


@naming_extras("CIFAR-10")
def _cifar10(root: Path | None) -> ImageTable:
    from torchvision.datasets import CIFAR10

    if root is None:
        hint = "name a folder that contains cifar-10-batches-py with --root"
        root = _download("cifar10", "CIFAR10", ({"train": True},), hint)
    if root.name == CIFAR10.base_folder and not (root / CIFAR10.base_folder).is_dir():
        root = root.resolve().parent
    parts = []
    for split in ("train", "test"):
        try:
            dataset = CIFAR10(str(root), train=split == "train")
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{root} holds no complete {CIFAR10.base_folder}: extract {CIFAR10.filename} there,"
                " unchanged, since the MD5 of its files is checked"
            ) from error
        parts.append((split, dataset.data, np.asarray(dataset.targets)))
    return _in_memory("cifar10", parts, dataset.classes)


def _omniglot(root: Path | None) -> ImageTable:
    if root is None:
        hint = "name a folder with images_background.zip and images_evaluation.zip with --root"
        calls = ({"background": True}, {"background": False})
        root = _download("omniglot", "Omniglot", calls, hint)
    home, sets = _omniglot_sets(root)
    background = [folder for folder in sets if folder.name.startswith("images_background")]
    both = 0 < len(background) < len(sets)
    rows: list[Row] = []
    seen: set[tuple[str, str, str]] = set()
    for folder in sets:
        # The small sets repeat drawings of the full one, and of each other.
        for file in sorted(folder.glob("**/character*/*.png")):
            drawing = (file.parts[-3], file.parts[-2], file.name)
            if drawing not in seen and not file.name.startswith("."):
                seen.add(drawing)
                split = ("train" if folder in background else "test") if both else ""
                rows.append((str(file), "/".join(drawing[:2]), False, split))
    if not rows:
        raise DataError(f"the Omniglot sets in {root} hold no Alphabet/character/drawing.png")
    return ImageTable.of_rows(rows, "omniglot", home)


def _omniglot_sets(root: Path) -> tuple[Path, list[Path]]:
    """The folder that contains the sets, and the folders of the sets; zips are unpacked."""
    for home in (root, root / "omniglot-py"):
        folders = _sets_in(home)
        names = {folder.name for folder in folders}
        zips = [file for file in home.glob("images_*.zip") if file.stem not in names]
        zips = [file for file in zips if OMNIGLOT_SET.match(file.name)]
        if zips:
            cached = unpack_once(zips, "omniglot")
            return home if folders else cached, [*folders, *_sets_in(cached)]
        if folders:
            return home, folders
    raise DataError(
        f"{root} holds no Omniglot set: it needs images_background.zip (or the small1 and small2"
        " sets), with or without images_evaluation.zip, or their extracted folders"
    )


def _sets_in(home: Path) -> list[Path]:
    return sorted(
        path for path in home.glob("images_*") if OMNIGLOT_SET.match(path.name) and path.is_dir()
    )


def _lfw(root: Path | None) -> ImageTable:
    if root is None:
        raise DataError(
            "lfw can no longer be downloaded from its authors: get lfw-deepfunneled from a mirror"
            " (https://www.kaggle.com/datasets/jessicali9530/lfw-dataset) and name the folder"
            " that contains it with --root"
        )
    home, faces = _lfw_folder(root)
    split_of = {}
    for split, name in (("train", "peopleDevTrain.txt"), ("test", "peopleDevTest.txt")):
        if (home / name).is_file():
            lines = (home / name).read_text(encoding="utf-8").splitlines()
            split_of.update({line.split("\t")[0]: split for line in lines if "\t" in line})
    rows: list[Row] = [
        (str(file), file.parent.name, False, split_of.get(file.parent.name, ""))
        for file in faces.glob("*/*.jpg")
        if not file.name.startswith(".")
    ]
    if not rows:
        raise DataError(
            f"{faces} holds no Name/picture.jpg: extract the archive of Labeled Faces in the Wild"
        )
    return ImageTable.of_rows(rows, "lfw", faces)


def _lfw_folder(root: Path) -> tuple[Path, Path]:
    """The folder with the lists of people, and the folder with one folder for each person."""
    if root.name in LFW_FOLDERS and not any((root / name).is_dir() for name in LFW_FOLDERS):
        return root.parent, root
    for home in (root, root / "lfw-py"):
        for name in LFW_FOLDERS:
            if (home / name).is_dir():
                inner = home / name / name  # Archives of some mirrors nest the folder twice.
                return home, inner if inner.is_dir() else home / name
    raise DataError(
        f"{root} holds none of {', '.join(LFW_FOLDERS)}: extract the archive of lfw there"
    )


NAMED_SETS: dict[str, ReadDataset] = {
    "cifar10": _cifar10,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "glyphs": _glyphs,
    "lfw": _lfw,
    "mnist": _mnist,
    "omniglot": _omniglot,
}
"""Name -> reader, from a folder of the user or (None) from the cache."""


def _in_memory(
    name: str,
    parts: Sequence[tuple[str, NDArray[np.uint8], NDArray[Any]]],
    names: Sequence[str],
) -> ImageTable:
    """The table of parts (split, pixels (N, H, W[, 3]), labels (N,))."""
    path = [
        f"{name}/{split}/{row:05d}" if split else f"{name}/{row:05d}"
        for split, pixels, _ in parts
        for row in range(len(pixels))
    ]
    label = np.concatenate([label for _, _, label in parts]).astype(np.int64)
    return ImageTable(
        path=np.array(path, dtype=object),
        identity=np.array(names, dtype=object)[label],
        forged=np.zeros(len(path), dtype=np.bool_),
        split=np.array([split for split, pixels, _ in parts for _ in pixels], dtype=object),
        source=name,
        root=None,
        pixels=np.concatenate([pixels for _, pixels, _ in parts]),
    )


@naming_extras("a download")
def _download(name: str, class_name: str, calls: Sequence[dict[str, Any]], hint: str) -> Path:
    """Download the files of a torchvision class into the cache, once for each of `calls`."""
    from torchvision import datasets

    dataset = getattr(datasets, class_name)
    if hasattr(dataset, "mirrors"):
        urls = list(dataset.mirrors)
    else:
        urls = [getattr(dataset, "url", None) or dataset.download_url_prefix]

    def fill(folder: Path) -> None:
        for arguments in calls:
            dataset(str(folder), download=True, **arguments)

    return download_once(name, urls, fill, hint)
