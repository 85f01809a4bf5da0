"""Explanation of a distance: the parts of two pictures that make them alike or unlike.

Occlusion (Zeiler and Fergus 2014): windows of two sizes are hidden in one picture, the other stays,
and the change of the distance is credited to the hidden pixels. Each map is checked by deletion and
insertion (Petsiuk et al. 2018): cells are hidden, or shown alone, in the map's order, beside random
orders. A test for the background hides the object.

Shapes: C channels, H x W pixels at the network's input, N pictures, D dimensions, G cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from twinlens.data.table import SPLITS
from twinlens.measure.error_rates import matches
from twinlens.measure.pairs import Comparison
from twinlens.model.training_record import NUM_LEARNED, TrainingRecord, thumbnails_of

__all__ = ["OBJECT", "Explanation", "Neighbour", "PictureExplanation", "explain_pair",
           "nearest_thumbnails"]  # fmt: skip

WINDOWS = (3, 6)  # windows to a side; neighbours share a half
CELLS = 14  # to a side, that deletion and insertion hide
STEPS = 14
RANDOM_ORDERS = 4
AT_ONCE = 64  # pictures
MOST_THUMBNAILS = 200
BLUR = 8  # windows of the smallest kind would still show what a weaker blur leaves
EVEN_GROUND, EVEN_LEVELS = 0.8, 24  # share of the border that is near its median colour
OBJECT_RADIUS = 0.4  # of a side: half of the picture
OBJECT: Final = "the ellipse in the middle that covers half of the picture"

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Embed = Callable[[Bytes], Floats]


@dataclass(frozen=True)
class Neighbour:
    """The training identity of a thumbnail that is near to a picture.

    Attributes:
        thumbnail: its grey thumbnail, uint8, shape (T, T).
        distance: distance of the two thumbnails by the network.
    """

    thumbnail: Bytes
    distance: float


@dataclass(frozen=True, eq=False)
class PictureExplanation:
    """Explanation of one of two pictures, the other unchanged.

    Attributes:
        pixels: the picture at the network's input, shape (C, H, W).
        effect: mean change of the distance if a pixel is hidden, shape (H, W): positive where the
            picture is like the other, negative where it is unlike.
        hidden_by: "ground", the colour of an even border, or else "blur".
        deletion: distances as cells are hidden, those of the greatest effect first, (STEPS + 1,).
        insertion: distances as cells are shown in that order, shape (STEPS + 1,).
        random: mean distances as cells are hidden in random order, shape (STEPS + 1,).
        without_object: distance with the object hidden.
        central_share: share of the absolute effect that lies on the object.
        neighbours: nearest training identities; empty if unknown.
    """

    pixels: Bytes
    effect: Floats
    hidden_by: Literal["ground", "blur"]
    deletion: Floats
    insertion: Floats
    random: Floats
    without_object: float
    central_share: float
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def deletion_area(self) -> float:
        """Mean distance of the deletion; above `random_area` if the map is right."""
        return _area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """Mean distance of the insertion; below `random_area` if the map is right."""
        return _area(self.insertion)

    @property
    def random_area(self) -> float:
        """Mean distance in random order, of deletion and insertion alike."""
        return _area(self.random)

    def as_json(self) -> dict[str, Any]:
        """The figures, without maps and curves."""
        return {
            "hidden_by": self.hidden_by,
            "deletion": self.deletion_area,
            "insertion": self.insertion_area,
            "random": self.random_area,
            "without_object": self.without_object,
            "central_share": self.central_share,
            "neighbours": [neighbour.distance for neighbour in self.neighbours],
        }


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of a verdict.

    Attributes:
        pictures: explanation of each picture.
        match: verdict of the two pictures.
        stays_without_object: whether the verdict is the same with the object of either hidden.
        without_background: distance with the background of both hidden.
        stays_without_background: whether the verdict is the same then.
    """

    pictures: tuple[PictureExplanation, PictureExplanation]
    match: bool
    stays_without_object: bool
    without_background: float
    stays_without_background: bool

    @property
    def depends_on_background(self) -> bool:
        """Whether the backgrounds alone bring about the verdict.

        "same" must not stay if either object is hidden; "different" must not turn into "same" if
        both backgrounds are.
        """
        return self.stays_without_object if self.match else not self.stays_without_background

    def background(self) -> str:
        """The test for the background, in words."""
        if self.match and self.stays_without_object:
            return "depends on the background: still the same without the object of either picture"
        if self.match:
            return "depends on the object: no longer the same without it"
        if not self.stays_without_background:
            return "depends on the background: the same once both backgrounds are hidden"
        return "depends on the object: still different once both backgrounds are hidden"

    def as_json(self) -> dict[str, Any]:
        """Plain data, without maps and curves."""
        return {
            "pictures": [picture.as_json() for picture in self.pictures],
            "object": OBJECT,
            "stays_without_object": self.stays_without_object,
            "without_background": self.without_background,
            "stays_without_background": self.stays_without_background,
            "depends_on_background": self.depends_on_background,
            "background": self.background(),
        }


def explain_pair(
    embed: Embed,
    comparison: Comparison,
    a_CHW: Bytes,
    b_CHW: Bytes,
    threshold: float,
    *,
    neighbours: Callable[[Bytes], Sequence[Neighbour]] | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain the distance of two pictures; takes some 600 embeddings.

    Args:
        embed: embeddings (N, D) of uint8 pictures (N, C, H, W).
        comparison: distances of embeddings.
        a_CHW: first picture at the network's input.
        b_CHW: second picture.
        threshold: pictures match at or below this distance.
        neighbours: nearest training identities of a picture (C, H, W); None if unknown.
        seed: random seed of the random orders.
    """
    rng = np.random.default_rng(seed)
    emb_a, emb_b = embed(a_CHW[None]), embed(b_CHW[None])

    def to(other_1D: Floats) -> Callable[[Sequence[Bytes]], Floats]:
        def distances(pictures: Sequence[Bytes]) -> Floats:
            parts = []
            for start in range(0, len(pictures), AT_ONCE):
                emb_ND = embed(np.stack(pictures[start : start + AT_ONCE]))
                parts.append(comparison.pairwise(emb_ND, other_1D.repeat(len(emb_ND), 0)))
            return np.concatenate(parts).astype(np.float32)

        return distances

    distance = float(comparison.pairwise(emb_a, emb_b)[0])
    pictures = tuple(
        _explained(pixels, to(other), distance, neighbours, rng)
        for pixels, other in ((a_CHW, emb_b), (b_CHW, emb_a))
    )
    # One ground for both, which would otherwise still set them apart.
    ground_C11 = np.mean([_ground(pixels)[0] for pixels in (a_CHW, b_CHW)], axis=0)[:, None, None]
    objects = [
        np.where(_object(*pixels.shape[1:]), pixels, ground_C11.astype(np.uint8))
        for pixels in (a_CHW, b_CHW)
    ]
    without_background = float(comparison.pairwise(*(embed(part[None]) for part in objects))[0])
    match = bool(matches(distance, threshold))
    alone = [bool(matches(picture.without_object, threshold)) for picture in pictures]
    return Explanation(
        pictures=(pictures[0], pictures[1]),
        match=match,
        stays_without_object=all(verdict == match for verdict in alone),
        without_background=without_background,
        stays_without_background=bool(matches(without_background, threshold)) == match,
    )


def nearest_thumbnails(
    embed: Embed, comparison: Comparison, record: TrainingRecord, pixels_CHW: Bytes, count: int = 5
) -> list[Neighbour]:
    """The training identities that are nearest to a picture, nearest first, one thumbnail each.

    The run stores no names, pictures or embeddings, but grey thumbnails of 16 x 16. They are
    enlarged and embedded, and so is the picture's own thumbnail, since both then lack the same.

    Args:
        embed: as in `explain_pair`.
        comparison: distances of embeddings.
        record: training record of the model, with thumbnails.
        pixels_CHW: the picture at the network's input.
        count: number of identities, at most.
    """
    if record.thumb is None:
        return []
    learned = record.split < NUM_LEARNED
    rows = np.flatnonzero(record.split[learned] == SPLITS.index("train"))
    _, code_N = np.unique(record.identity[learned][rows], axis=0, return_inverse=True)
    code_N = code_N.ravel()
    # Some of each identity, as many as there is time for.
    rank_N = np.zeros(len(rows), np.int64)
    order = np.argsort(code_N, kind="stable")
    starts = np.flatnonzero(np.diff(code_N[order], prepend=-1))
    rank_N[order] = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
    chosen = np.argsort(rank_N, kind="stable")[:MOST_THUMBNAILS]
    thumb_NTT = record.thumb[rows[chosen]]
    own_1TT = thumbnails_of(pixels_CHW[None])
    emb_ND = np.concatenate(
        [embed(np.stack([_enlarged(thumb, pixels_CHW) for thumb in part]))
         for part in _parts(np.concatenate([own_1TT, thumb_NTT]))]
    )  # fmt: skip
    distance_N = comparison.pairwise(emb_ND[1:], emb_ND[:1].repeat(len(emb_ND) - 1, 0))
    nearest: dict[int, Neighbour] = {}
    for row in np.argsort(distance_N, kind="stable"):
        if len(nearest) == count:
            break
        neighbour = Neighbour(thumb_NTT[row], float(distance_N[row]))
        nearest.setdefault(int(code_N[chosen[row]]), neighbour)
    return list(nearest.values())


def _enlarged(thumb_TT: Bytes, pixels_CHW: Bytes) -> Bytes:
    """A thumbnail at the size and colours of a picture (C, H, W)."""
    channels, height, width = pixels_CHW.shape
    grey_HW = np.asarray(Image.fromarray(thumb_TT).resize((width, height)))
    return np.broadcast_to(grey_HW, (channels, height, width))


def _parts(pictures: Bytes) -> list[Bytes]:
    return [pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE)]


def _explained(
    pixels_CHW: Bytes,
    distances: Callable[[Sequence[Bytes]], Floats],
    distance: float,
    neighbours: Callable[[Bytes], Sequence[Neighbour]] | None,
    rng: np.random.Generator,
) -> PictureExplanation:
    cover_CHW, hidden_by = _cover(pixels_CHW)
    size = pixels_CHW.shape[1:]

    def hidden(mask_HW: NDArray[np.bool_]) -> Bytes:
        return np.where(mask_HW, cover_CHW, pixels_CHW)

    def effects(windows: Sequence[NDArray[np.bool_]]) -> Floats:
        return distances([hidden(window) for window in windows]) - np.float32(distance)

    effect_HW = _effect(size, effects)
    cell_HW = _cells(size)
    num_cells = int(cell_HW.max()) + 1
    strength_G = np.bincount(cell_HW.ravel(), effect_HW.ravel()) / np.bincount(cell_HW.ravel())
    order_G = np.argsort(-strength_G, kind="stable")

    def curve(order_G: NDArray[np.int64]) -> Floats:
        """Distances as cells are hidden in an order."""
        rank_HW = np.argsort(order_G)[cell_HW]
        shares = np.linspace(0, num_cells, STEPS + 1).round()
        inner = distances([hidden(rank_HW < share) for share in shares[1:-1]])
        return np.concatenate([[np.float32(distance)], inner, [bare]])

    object_HW = _object(*size)
    bare, without_object = distances([cover_CHW, hidden(object_HW)])
    total = float(np.abs(effect_HW).sum())
    return PictureExplanation(
        pixels=pixels_CHW,
        effect=effect_HW,
        hidden_by=hidden_by,
        deletion=curve(order_G),
        insertion=curve(order_G[::-1])[::-1],  # What is shown first is hidden last.
        random=np.mean([curve(rng.permutation(num_cells)) for _ in range(RANDOM_ORDERS)], axis=0),
        without_object=float(without_object),
        central_share=float(np.abs(effect_HW[object_HW]).sum()) / total if total > 0 else 0.0,
        neighbours=() if neighbours is None else tuple(neighbours(pixels_CHW)),
    )


def _effect(
    size: tuple[int, ...], effects: Callable[[Sequence[NDArray[np.bool_]]], Floats]
) -> Floats:
    """Mean effect of the windows over each pixel, (H, W), both sizes of windows alike in weight."""
    maps = []
    for count in WINDOWS:
        windows = _windows(size, count)
        effect_N = effects(windows)
        cover_HW = np.sum(windows, axis=0)
        summed = np.tensordot(effect_N, np.stack(windows).astype(np.float32), 1)
        maps.append(summed / cover_HW)
    means = [float(np.abs(each).mean()) for each in maps]
    fine = means[0] / means[1] if means[1] > 0 else 1.0  # Small windows hide little.
    effect: Floats = ((maps[0] + fine * maps[1]) / 2).astype(np.float32)
    return effect


def _windows(size: tuple[int, ...], count: int) -> list[NDArray[np.bool_]]:
    """Windows of a `count`-th of each side at steps of half of that, over the border too."""
    spans = []
    for length in size:
        pixel = np.arange(length) + 0.5
        centres = np.arange(2 * count + 1) * length / (2 * count)
        near = np.abs(pixel - centres[:, None]) <= max(length / count, 1) / 2
        spans.append(near[near.any(1)])
    return [rows[:, None] & columns for rows in spans[0] for columns in spans[1]]


def _cells(size: tuple[int, ...]) -> NDArray[np.int64]:
    """The number of the cell that each pixel lies in, (H, W)."""
    rows, columns = (np.arange(length) * min(CELLS, length) // length for length in size)
    return rows[:, None] * min(CELLS, size[1]) + columns


def _object(height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of the ellipse `OBJECT`, (H, W)."""
    y, x = (
        (np.arange(length) + 0.5 - length / 2) / (OBJECT_RADIUS * length)
        for length in (height, width)
    )
    return y[:, None] ** 2 + x**2 <= 1


def _cover(pixels_CHW: Bytes) -> tuple[Bytes, Literal["ground", "blur"]]:
    """What takes the place of hidden pixels, (C, H, W).

    The median colour of an even border, as of paper: a blurred drawing would still show. Otherwise
    the blurred picture, which has no edges of its own (Fong and Vedaldi 2017).
    """
    ground_C, is_even = _ground(pixels_CHW)
    if is_even:
        ground = np.broadcast_to(ground_C[:, None, None].astype(np.uint8), pixels_CHW.shape)
        return ground, "ground"
    radius = max(pixels_CHW.shape[1:]) / BLUR
    blurred = [Image.fromarray(channel).filter(ImageFilter.GaussianBlur(radius))
               for channel in pixels_CHW]  # fmt: skip
    return np.stack([np.asarray(channel) for channel in blurred]), "blur"


def _ground(pixels_CHW: Bytes) -> tuple[Floats, bool]:
    """The median colour of the border, shape (C,), and whether most of the border is near it."""
    border_CN = np.concatenate(
        [pixels_CHW[:, [0, -1]].reshape(len(pixels_CHW), -1),
         pixels_CHW[:, :, [0, -1]].reshape(len(pixels_CHW), -1)], axis=1,
    ).astype(np.float32)  # fmt: skip
    ground_C: Floats = np.median(border_CN, axis=1)
    near_N = (np.abs(border_CN - ground_C[:, None]) <= EVEN_LEVELS).all(axis=0)
    return ground_C, bool(near_N.mean() >= EVEN_GROUND)


def _area(curve: Floats) -> float:
    """Area under a curve over the share of cells, from 0 to 1."""
    return float(np.trapezoid(curve, dx=1 / STEPS))
