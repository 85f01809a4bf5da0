"""Montages: genuine and impostor pairs and triplets of a training batch, and a verdict.

Genuine pairs have green frames, impostor pairs red ones, and forgeries a note. This module reads
no files and computes no distances.

Shapes: N pictures, C channels, H height, W width; B pictures in a batch, Q pairs, T triplets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.data.batch import Batch
from twinlens.data.table import ImageTable, pair_masks
from twinlens.errors import PictureError
from twinlens.report.canvas import (
    GREEN,
    GROUND,
    INK,
    LINE,
    MUTED,
    RED,
    Color,
    box_size,
    draw_card,
    draw_picture,
    draw_text,
    proportions,
    text_width,
)

__all__ = ["draw_montage", "draw_verdict"]

Pictures = NDArray[np.uint8] | Callable[[int], Image.Image]

WIDTH, MARGIN, GAP, PADDING, FRAME = 1600, 36, 22, 14, 5
TEXT, NAME_HEIGHT = 17, 27
HEADING, TITLE, TITLE_HEIGHT, SECTION_GAP = 20, 25, 52, 34
VERDICT_AREA = 400 * 400


@dataclass(frozen=True)
class _Tile:
    """One picture of a card, as a position in the batch."""

    position: int
    role: str = ""
    color: Color | None = None


Card = list[_Tile]


@dataclass(frozen=True)
class _Section:
    title: str
    color: Color
    cards: list[Card]
    framed: bool  # Frames around whole cards, or around single pictures.


@dataclass(frozen=True)
class _Caption:
    name: str
    note: str
    color: Color


def draw_montage(
    table: ImageTable,
    pictures: Pictures,
    batch: Batch,
    *,
    num_pairs: int = 8,
    num_triplets: int = 6,
    seed: int = 0,
) -> Image.Image:
    """Draw sample genuine pairs (green), impostor pairs (red) and triplets of a batch.

    Literal pairs or triplets of the batch are shown as they were drawn; for other batches, pairs
    are those of `pair_masks`. Identities are varied as far as possible. With forgeries, every
    second impostor is one.

    Args:
        table: table of the batch's rows.
        pictures: pixels of each row, uint8 (N, C, H, W), or a function from a row to a picture; one
            that raises PictureError leaves an empty place.
        batch: batch of a sampler of `batches.make_sampler` gives.
        num_pairs: largest number of each kind.
        num_triplets: largest number of triplets.
        seed: random seed of the choice.
    Returns:
        An RGB picture, 1600 pixels wide.
    """
    rng = np.random.default_rng(seed)
    pairs = [_choose(batch, kind, num_pairs, rng) for kind in _pairs(batch)]
    triplets = _triplets(batch, num_triplets, rng)
    sections = [
        _Section("Genuine pairs: pulled together", GREEN, _plain_cards(pairs[0]), framed=True),
        _Section("Impostor pairs: pushed apart", RED, _plain_cards(pairs[1]), framed=True),
        _Section("Anchor, positive, negative", INK, _triplet_cards(triplets), framed=False),
    ]
    sections = [section for section in sections if section.cards]
    shown = sorted(
        {tile.position for section in sections for card in section.cards for tile in card}
    )
    images = {position: _picture(pictures, batch, position) for position in shown}
    captions = {position: _caption(table, batch, position) for position in shown}
    heading = (
        f"{Path(table.source).name or table.source}: from a training batch of "
        f"{len(batch.row):,} pictures, {len(np.unique(batch.label)):,} identities"
    )
    return _Page(images, captions).draw(heading, sections)


def draw_verdict(
    left: Image.Image, right: Image.Image, lines: Sequence[str], match: bool
) -> Image.Image:
    """Draw two pictures side by side in a green or red frame, with lines of text below.

    Args:
        left: first picture.
        right: second picture.
        lines: text; the first line is the verdict, large and in the frame's colour.
        match: whether the frame is green instead of red.
    Returns:
        An RGB picture.
    """
    color = GREEN if match else RED
    box = box_size([left, right], VERDICT_AREA)
    wide = 2 * box[0] + GAP + 2 * (PADDING + FRAME)
    high = box[1] + 2 * (PADDING + FRAME)
    # Size, height and whether bold of each line.
    styles = [(30, 44, True), *[(20, 34, False)] * len(lines)][: len(lines)]
    texts = [
        text_width(line, style[0], style[2]) for line, style in zip(lines, styles, strict=True)
    ]
    width = max(wide, round(max(texts, default=0))) + 2 * MARGIN
    text_high = sum(style[1] for style in styles) + (PADDING if lines else 0)
    canvas = Image.new("RGB", (width, high + text_high + 2 * MARGIN), GROUND)
    x, y = (width - wide) // 2, MARGIN
    draw_card(canvas, (x, y, x + wide, y + high), color, FRAME)
    for i, picture in enumerate((left, right)):
        corner = (x + FRAME + PADDING + i * (box[0] + GAP), y + FRAME + PADDING)
        draw_picture(canvas, picture, corner, box)
    y += high + PADDING
    for line, (size, line_high, bold) in zip(lines, styles, strict=True):
        draw_text(canvas, (width // 2, y), line, size, color if bold else MUTED, bold=bold)
        y += line_high
    return canvas


# --- which pairs and triplets -------------------------------------------------------------------


def _pairs(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Genuine and impostor pairs, (Q, 2) each."""
    if batch.pairs is not None and batch.same is not None:
        return batch.pairs[batch.same], batch.pairs[~batch.same]
    if batch.triplets is not None:
        return batch.triplets[:, :2], batch.triplets[:, ::2]
    genuine_BB, impostor_BB = _masks(batch)
    return np.argwhere(np.triu(genuine_BB, 1)), np.argwhere(np.triu(impostor_BB, 1))


def _masks(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    label, forged = batch.label, batch.forged
    genuine, impostor = pair_masks(label[:, None], forged[:, None], label[None], forged[None])
    other = ~np.eye(len(label), dtype=np.bool_)
    return genuine & other, impostor


def _is_forgery(batch: Batch, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a pair is a forgery and a picture of the imitated identity, (Q,)."""
    a, b = pairs.T
    forgery: NDArray[np.bool_] = batch.forged[pairs].any(axis=1) & (
        batch.label[a] == batch.label[b]
    )
    return forgery


def _choose(
    batch: Batch, pairs: NDArray[np.int64], num: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Up to `num` of the pairs (or triplets), the identities varied, every second a forgery."""
    shuffled = rng.permutation(pairs)
    forgery = _is_forgery(batch, shuffled[:, [0, -1]])
    other = ~batch.forged[shuffled].any(axis=1)
    if not (forgery | other).any():
        other = ~forgery
    heaps = [_varied(batch, shuffled[forgery]), _varied(batch, shuffled[other])]
    chosen: list[tuple[int, ...]] = []
    while len(chosen) < num and any(heaps):
        heap = heaps[len(chosen) % 2] or heaps[(len(chosen) + 1) % 2]
        chosen.append(heap.pop(0))
    return chosen


def _varied(batch: Batch, pairs: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """The pairs, ordered so that rarely drawn identities come first."""
    seen: dict[int, int] = {}
    ranked = []
    for place, pair in enumerate(pairs.tolist()):
        labels = {int(label) for label in batch.label[pair]}
        ranked.append((max(seen.get(label, 0) for label in labels), place, tuple(pair)))
        for label in labels:
            seen[label] = seen.get(label, 0) + 1
    return [pair for _, _, pair in sorted(ranked)]


def _triplets(batch: Batch, num: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if batch.triplets is not None:
        return _choose(batch, batch.triplets, num, rng)
    genuine_BB, impostor_BB = _masks(batch)
    if batch.pairs is not None:
        genuine_BB, impostor_BB = _drawn_masks(batch)
    candidates = [
        (anchor, rng.choice(np.flatnonzero(genuine_BB[anchor])), negative)
        for anchor in np.flatnonzero(genuine_BB.any(axis=1)).tolist()
        for negative in _two_negatives(batch, anchor, np.flatnonzero(impostor_BB[anchor]), rng)
    ]
    return _choose(batch, np.array(candidates, dtype=np.int64).reshape(-1, 3), num, rng)


def _drawn_masks(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The literal pairs as masks, (B, B)."""
    assert batch.pairs is not None
    assert batch.same is not None
    genuine_BB, impostor_BB = np.zeros((2, len(batch.row), len(batch.row)), dtype=np.bool_)
    for mask, pairs in (
        (genuine_BB, batch.pairs[batch.same]),
        (impostor_BB, batch.pairs[~batch.same]),
    ):
        mask[pairs[:, 0], pairs[:, 1]] = True
    return genuine_BB, impostor_BB


def _two_negatives(
    batch: Batch, anchor: int, negatives: NDArray[np.int64], rng: np.random.Generator
) -> list[int]:
    """A random forgery of the anchor and a random other negative, if any."""
    forgery = batch.forged[negatives] & (batch.label[negatives] == batch.label[anchor])
    genuine = ~batch.forged[negatives]
    kinds = (negatives[forgery], negatives[genuine])
    return [int(rng.choice(kind)) for kind in kinds if len(kind)]


def _plain_cards(pairs: list[tuple[int, ...]]) -> list[list[_Tile]]:
    return [[_Tile(position) for position in pair] for pair in pairs]


def _triplet_cards(triplets: list[tuple[int, ...]]) -> list[list[_Tile]]:
    roles = (("anchor", None), ("positive", GREEN), ("negative", RED))
    return [
        [_Tile(position, role, color) for position, (role, color) in zip(card, roles, strict=True)]
        for card in triplets
    ]


def _picture(pictures: Pictures, batch: Batch, position: int) -> Image.Image | None:
    """The picture at a position of the batch, turned as the batch says."""
    row, turns = int(batch.row[position]), int(batch.turns[position])
    if callable(pictures):
        try:
            picture = pictures(row)
        except PictureError:
            return None
    else:
        pixels_HWC = np.ascontiguousarray(np.moveaxis(pictures[row], 0, -1))
        picture = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    return picture.rotate(90 * turns, expand=True) if turns else picture


def _caption(table: ImageTable, batch: Batch, position: int) -> _Caption:
    row, turns = int(batch.row[position]), int(batch.turns[position])
    notes = [f"turned {90 * turns}°"] if turns else []
    if batch.forged[position]:
        notes.insert(0, "forged")
    return _Caption(
        str(table.identity[row]), ", ".join(notes), RED if batch.forged[position] else MUTED
    )


# --- the page -----------------------------------------------------------------------------------


class _Page:
    """Cards of equal size in sections, from top to bottom, over the whole width."""

    def __init__(
        self, images: dict[int, Image.Image | None], captions: dict[int, _Caption]
    ) -> None:
        self._images = images
        self._captions = captions
        self._ratio = proportions([image for image in images.values() if image is not None])

    def draw(self, heading: str, sections: list[_Section]) -> Image.Image:
        layouts = [self._layout(section) for section in sections]
        top = MARGIN + HEADING + SECTION_GAP
        high = top + sum(layout.height for layout in layouts) + SECTION_GAP * (len(layouts) - 1)
        canvas = Image.new("RGB", (WIDTH, high + MARGIN), GROUND)
        draw_text(canvas, (MARGIN, MARGIN), heading, HEADING, MUTED, centred=False,
                  width=WIDTH - 2 * MARGIN)  # fmt: skip
        for section, layout in zip(sections, layouts, strict=True):
            self._draw_section(canvas, section, layout, top)
            top += layout.height + SECTION_GAP
        return canvas

    def _layout(self, section: _Section) -> _Layout:
        num = len(section.cards[0])
        # Wide pictures get fewer columns. Keys: pictures of a card.
        wanted = {2: 5, 3: 4} if self._ratio < 0.7 else {2: 4, 3: 3}
        columns = {2: 3, 3: 2}[num] if self._ratio > 1.4 else wanted[num]
        cards = section.cards
        if len(cards) > columns:  # Whole rows only.
            cards = cards[: len(cards) // columns * columns]
        inner = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
        box_wide = (inner - 2 * (PADDING + FRAME) - (num - 1) * PADDING) // num
        lines = 1 + any(self._captions[tile.position].note for card in cards for tile in card)
        return _Layout(
            cards=cards,
            columns=columns,
            box=(box_wide, round(box_wide / self._ratio)),
            role_height=0 if section.framed else NAME_HEIGHT,
            text_height=lines * NAME_HEIGHT,
        )

    def _draw_section(
        self, canvas: Image.Image, section: _Section, layout: _Layout, top: int
    ) -> None:
        draw_text(canvas, (MARGIN, top), section.title, TITLE, section.color, bold=True,
                  centred=False)  # fmt: skip
        wide, high = layout.card_size
        color, width = (section.color, FRAME) if section.framed else (LINE, 2)
        for i, card in enumerate(layout.cards):
            spare = WIDTH - 2 * MARGIN - wide
            x = MARGIN + (i % layout.columns) * spare // (layout.columns - 1)
            y = top + TITLE_HEIGHT + (i // layout.columns) * (high + GAP)
            draw_card(canvas, (x, y, x + wide, y + high), color, width)
            corner = (x + FRAME + PADDING, y + FRAME + PADDING)
            self._draw_tiles(canvas, card, layout, corner)
            self._draw_captions(canvas, card, layout, corner)

    def _draw_tiles(
        self, canvas: Image.Image, card: Card, layout: _Layout, corner: tuple[int, int]
    ) -> None:
        for tile, x in zip(card, layout.lefts(corner[0], len(card)), strict=True):
            y = corner[1]
            if tile.role:
                middle = (x + layout.box[0] // 2, y - 7)
                draw_text(canvas, middle, tile.role, TEXT, tile.color or MUTED)
            place = (x, y + layout.role_height)
            draw_picture(canvas, self._images[tile.position], place, layout.box, tile.color)

    def _draw_captions(
        self, canvas: Image.Image, card: Card, layout: _Layout, corner: tuple[int, int]
    ) -> None:
        captions = [self._captions[tile.position] for tile in card]
        lefts = layout.lefts(corner[0], len(card))
        width, y = layout.box[0], corner[1] + layout.role_height + layout.box[1] + 7
        if len(set(captions)) == 1:  # One caption for all, which leaves room for a long one.
            captions, lefts, width = captions[:1], lefts[:1], layout.inner(len(card))
        for caption, x in zip(captions, lefts, strict=True):
            middle = x + width // 2
            draw_text(canvas, (middle, y), caption.name, TEXT, INK, width=width)
            draw_text(canvas, (middle, y + NAME_HEIGHT - 4), caption.note, TEXT, caption.color,
                      width=width)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """Layout of a section, in pixels."""

    cards: list[Card]
    columns: int
    box: tuple[int, int]
    role_height: int
    text_height: int

    @property
    def card_size(self) -> tuple[int, int]:
        wide = self.inner(len(self.cards[0])) + 2 * (PADDING + FRAME)
        high = self.box[1] + self.role_height + self.text_height + PADDING + 2 * FRAME + 6
        return wide, high

    @property
    def height(self) -> int:
        rows = -(-len(self.cards) // self.columns)
        return TITLE_HEIGHT + rows * self.card_size[1] + (rows - 1) * GAP

    def inner(self, num: int) -> int:
        return num * self.box[0] + (num - 1) * PADDING

    def lefts(self, x: int, num: int) -> list[int]:
        return [x + i * (self.box[0] + PADDING) for i in range(num)]
