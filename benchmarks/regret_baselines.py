"""Simple features of pictures, frozen or whitened: what `auto` must not fall behind.

Peers of twinlens's own features, hence computed by numpy, OpenCV and timm alone. Each kind has a
few variants; the one with the fewest errors on training and validation pictures is taken, by
cross-validation where something is fitted. Test pictures choose nothing.

Shapes: N pictures, D dimensions, H x W pixels, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.regret_data import LITE0
from benchmarks.regret_errors import Protocol, measure_errors
from twinlens.data.table import ImageTable

__all__ = ["COLUMNS", "Embedded", "Pictures", "embed_baseline", "error_on"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

FOLDS = 5
MOST_TO_FIT = 4000  # pictures; of more, a random part chooses and fits
SHRINKAGE = (0.01, 0.1, 0.5, 2.0)
LITE0_SIZE, LITE0_BATCH = 224, 16


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings (N, D) of length 1, the variant that was chosen, and the seconds of all of it."""

    emb: Floats
    variant: str
    seconds: float


class Pictures:
    """The pictures of a table, of any size, and what was computed of them already."""

    def __init__(self, table: ImageTable, protocol: Protocol) -> None:
        self.table, self.protocol = table, protocol
        self.features: dict[str, tuple[Floats, float]] = {}

    @cached_property
    def all(self) -> Sequence[Pixels]:
        """(H, W) or (H, W, 3) RGB each."""
        if self.table.pixels is not None:
            return list(self.table.pixels)
        return [read_rgb(path) for path in self.table.path]

    @cached_property
    def coloured(self) -> bool:
        """Whether any of the first pictures has colours."""
        return any(one.ndim == 3 and np.ptp(one, axis=2).max() > 12 for one in self.all[:50])

    @cached_property
    def fitting_rows(self) -> NDArray[np.int64]:
        """Rows that may choose and fit: of the training and validation splits."""
        rows = np.flatnonzero(self.table.split != "test")
        drawn = np.random.default_rng(0).permutation(rows)[:MOST_TO_FIT]
        return np.asarray(np.sort(drawn), dtype=np.int64)

    def feature(self, name: str) -> tuple[Floats, float]:
        """Features (N, D) by name, and the seconds that they took."""
        if name not in self.features:
            assert len(self.all)  # Read before the clock starts.
            started = time.perf_counter()
            emb = FEATURES[name](self)
            self.features[name] = emb, time.perf_counter() - started
        return self.features[name]


def read_rgb(path: str) -> Pixels:
    bgr = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, path
    return np.asarray(bgr[..., ::-1])


def grey(picture: Pixels) -> Pixels:
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def rgb(picture: Pixels) -> Pixels:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def resized(picture: Pixels, side: int) -> Pixels:
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def pixels(side: int, centred: bool) -> Callable[[Pictures], Floats]:
    def compute(pictures: Pictures) -> Floats:
        view = rgb if pictures.coloured else grey
        emb = np.stack([resized(view(one), side).ravel() for one in pictures.all])
        emb = emb.astype(np.float32)
        return emb - emb.mean(axis=1, keepdims=True) if centred else emb

    return compute


def histogram(space: str, bins: tuple[int, int, int]) -> Callable[[Pictures], Floats]:
    """Square roots of shares, whose Euclidean distance is Hellinger's."""

    def of_one(picture: Pixels) -> Floats:
        if picture.ndim == 2:
            count = np.bincount(picture.ravel() // 8, minlength=32)
        else:
            hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV) if space == "HSV" else picture
            most = (180, 256, 256) if space == "HSV" else (256, 256, 256)
            ranges = [number for top in most for number in (0, top)]
            count = cv2.calcHist([np.ascontiguousarray(hsv)], [0, 1, 2], None, bins, ranges)
        return np.sqrt(count.ravel() / count.sum(), dtype=np.float32)

    return lambda pictures: np.stack([of_one(one) for one in pictures.all])


def hog(side: int) -> Callable[[Pictures], Floats]:
    """9 directions in cells of 8 x 8 pixels, blocks of 2 x 2 cells (Dalal & Triggs)."""
    descriptor = cv2.HOGDescriptor((side, side), (16, 16), (8, 8), (8, 8), 9)
    return lambda pictures: np.stack([
        np.asarray(descriptor.compute(resized(grey(one), side)), dtype=np.float32).ravel()
        for one in pictures.all
    ])  # fmt: skip


def lite0(pictures: Pictures) -> Floats:
    """Pooled features of ImageNet's EfficientNet-lite0; zeros for pictures that nothing needs."""
    import timm
    import torch
    from safetensors.torch import load_file

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(load_file(LITE0), strict=False)
    needed = np.union1d(pictures.fitting_rows, np.flatnonzero(pictures.table.split == "test"))
    needed = np.union1d(needed, np.flatnonzero(pictures.table.split == "val")[:MOST_TO_FIT])
    emb = np.zeros((len(pictures.all), 1280), dtype=np.float32)
    for start in range(0, len(needed), LITE0_BATCH):
        rows = needed[start : start + LITE0_BATCH]
        batch = np.stack([
            cv2.resize(rgb(pictures.all[row]), (LITE0_SIZE, LITE0_SIZE)) for row in rows
        ])  # fmt: skip
        x_BCHW = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            emb[rows] = network(x_BCHW).numpy()
    return emb


FEATURES: dict[str, Callable[[Pictures], Floats]] = {
    **{f"pixels {n}": pixels(n, False) for n in (16, 32)},
    **{f"pixels {n}, centred": pixels(n, True) for n in (16, 32)},
    "RGB 4x4x4": histogram("RGB", (4, 4, 4)),
    "RGB 8x8x8": histogram("RGB", (8, 8, 8)),
    "HSV 16x4x4": histogram("HSV", (16, 4, 4)),
    "HOG 32": hog(32),
    "HOG 64": hog(64),
    "lite0": lite0,
}

COLUMNS: dict[str, tuple[tuple[str, ...], bool]] = {
    "pixels": (tuple(name for name in FEATURES if name.startswith("pixels")), False),
    "histogram": (("RGB 4x4x4", "RGB 8x8x8", "HSV 16x4x4"), False),
    "HOG": (("HOG 32", "HOG 64"), False),
    "HOG whitened": (("HOG 32", "HOG 64"), True),
    "lite0": (("lite0",), False),
    "lite0 whitened": (("lite0",), True),
}
"""Column -> its features, and whether they are whitened."""

Map = Callable[[Floats], Floats]


def identity_map(emb_ND: Floats, label_N: NDArray[Any]) -> Map:
    return lambda emb: emb


def whitening(kind: str, shrinkage: float) -> Callable[[Floats, NDArray[Any]], Map]:
    """Whitening of the covariance of all features, or of that within identities."""

    def fit(emb_ND: Floats, label_N: NDArray[Any]) -> Map:
        emb_ND = unit(emb_ND)
        mean_D = emb_ND.mean(axis=0)
        rest_ND = (emb_ND - mean_D).astype(np.float64)
        if kind == "within":
            for label in np.unique(label_N):
                rest_ND[label_N == label] -= rest_ND[label_N == label].mean(axis=0)
        rest_ND /= np.sqrt(len(rest_ND))
        # The eigenvectors of the smaller of both products; all other directions have variance 0.
        wide = rest_ND.shape[0] < rest_ND.shape[1]
        variance_K, vector_K = np.linalg.eigh(rest_ND @ rest_ND.T if wide else rest_ND.T @ rest_ND)
        variance_K, vector_K = variance_K[variance_K > 1e-10], vector_K[:, variance_K > 1e-10]
        basis_DK = rest_ND.T @ vector_K / np.sqrt(variance_K) if wide else vector_K
        added = shrinkage * variance_K.sum() / rest_ND.shape[1]
        gain_K = np.sqrt(added / (variance_K + added)) - 1
        left_DK, basis_DK = (basis_DK * gain_K).astype(np.float32), basis_DK.astype(np.float32)
        return lambda emb: apply_gain(unit(emb) - mean_D, left_DK, basis_DK)

    return fit


def apply_gain(rest_ND: Floats, left_DK: Floats, basis_DK: Floats) -> Floats:
    """Whitened features, but for one factor of all."""
    return rest_ND + (rest_ND @ left_DK) @ basis_DK.T


WHITENINGS = {
    f"{kind} {share}": whitening(kind, share) for kind in ("total", "within") for share in SHRINKAGE
}


def unit(emb_ND: Floats) -> Floats:
    length_N1 = np.linalg.norm(emb_ND, axis=1, keepdims=True)
    return np.asarray(emb_ND / np.maximum(length_N1, 1e-12), dtype=np.float32)


def embed_baseline(pictures: Pictures, column: str) -> Embedded:
    """Embed all pictures by the best variant of a column."""
    names, whitened = COLUMNS[column]
    spent = sum(pictures.feature(name)[1] for name in names)
    started = time.perf_counter()
    fits = WHITENINGS if whitened else {"": identity_map}
    rows = pictures.fitting_rows
    part = pictures.table.select(rows)
    error = {
        (name, fit): held_out_error(pictures.protocol, part, pictures.feature(name)[0][rows], make)
        for name in names for fit, make in fits.items() if len(names) * len(fits) > 1
    }  # fmt: skip
    name, fit = min(error, key=lambda key: error[key]) if error else (names[0], "")
    emb = pictures.feature(name)[0]
    emb = unit(fits[fit](emb[rows], part.labels())(emb))
    return Embedded(emb, f"{name} {fit}".strip(), spent + time.perf_counter() - started)


def held_out_error(
    protocol: Protocol,
    part: ImageTable,
    emb_ND: Floats,
    make: Callable[[Floats, NDArray[Any]], Map],
) -> float:
    """Mean error of pictures held out: other identities, or other pictures of a closed set."""
    label_N = part.labels()
    rng = np.random.default_rng(0)
    if protocol in ("open", "skilled"):
        folds = min(FOLDS, len(part.identities()) // 2)
        fold_N = (rng.permutation(len(part.identities())) % folds)[label_N]
    else:
        fold_N = rng.permutation(len(part)) % FOLDS
    errors = []
    for fold in np.unique(fold_N):
        held = fold_N == fold
        # Forgeries are other people's hands: they tell nothing about the variation within one.
        learned = ~held & ~part.forged
        emb = unit(make(emb_ND[learned], label_N[learned])(emb_ND))
        errors.append(error_on(protocol, part, emb, held))
    return float(np.mean(errors))


def error_on(
    protocol: Protocol, part: ImageTable, emb_ND: Floats, held_N: NDArray[np.bool_]
) -> float:
    """Error of the pictures held out; in a closed set, which has no threshold yet, their EER."""
    if protocol == "closed":
        part, emb_ND, protocol = part.select(held_N), emb_ND[held_N], "open"
        held_N = np.ones(len(part), dtype=np.bool_)
    table = part.with_split(np.where(held_N, "test", "train").astype(object))
    return next(iter(measure_errors(protocol, table, emb_ND, replicates=0).value.values()))
