"""Montage of a training batch: genuine pairs, impostor pairs and triplets in one picture.

Genuine pairs have green frames, impostor pairs red ones, and forgeries a note. This module reads
no files and computes no distances.

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.data.batch import Batch
from twinlens.data.table import ImageTable
from twinlens.errors import PictureError
from twinlens.report.canvas import (
    GREEN,
    GROUND,
    INK,
    LINE,
    MUTED,
    RED,
    Color,
    aspect_ratio,
    draw_card,
    draw_picture,
    draw_text,
)
from twinlens.report.example_pairs import example_pairs, example_triplets

__all__ = ["draw_montage"]

Pictures = NDArray[np.uint8] | Callable[[int], Image.Image]

WIDTH, MARGIN, GAP, PADDING, FRAME = 1600, 36, 22, 14, 5
TEXT, NAME_HEIGHT = 17, 27
HEADING, TITLE, TITLE_HEIGHT, SECTION_GAP = 20, 25, 52, 34


@dataclass(frozen=True)
class _Cell:
    """A picture on a card, by its position in the batch."""

    position: int
    role: str = ""
    color: Color | None = None


Card = list[_Cell]


@dataclass(frozen=True)
class _Section:
    title: str
    color: Color
    cards: list[Card]
    framed: bool  # a frame around each card; else around single pictures


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
    """Draw examples of genuine pairs (green), impostor pairs (red) and triplets of a batch.

    They are chosen by `example_pairs` and `example_triplets`. A last row is left out unless full.

    Args:
        table: table of the batch's rows.
        pictures: pixels of the table's rows, uint8 (N, C, H, W), or a function from a row to its
            picture; a row that raises PictureError leaves an empty box.
        batch: a training batch.
        num_pairs: largest number of pairs of each kind.
        num_triplets: largest number of triplets.
        seed: random seed for the choice of examples.
    Returns:
        An RGB picture, 1600 pixels wide.
    """
    rng = np.random.default_rng(seed)
    genuine, impostor = example_pairs(batch, num_pairs, rng)
    triplets = example_triplets(batch, num_triplets, rng)
    sections = [
        _Section("Genuine pairs: pulled together", GREEN, _pair_cards(genuine), framed=True),
        _Section("Impostor pairs: pushed apart", RED, _pair_cards(impostor), framed=True),
        _Section("Triplets: anchor, positive, negative", INK, _triplet_cards(triplets),
                 framed=False),
    ]  # fmt: skip
    sections = [section for section in sections if section.cards]
    shown = sorted(
        {cell.position for section in sections for card in section.cards for cell in card}
    )
    images = {position: _picture(pictures, batch, position) for position in shown}
    captions = {position: _caption(table, batch, position) for position in shown}
    heading = (
        f"{Path(table.source).name or table.source}: examples from a training batch of "
        f"{len(batch.row):,} pictures of {len(np.unique(batch.label)):,} identities"
    )
    return _Page(images, captions).draw(heading, sections)


def _pair_cards(pairs: list[tuple[int, ...]]) -> list[Card]:
    return [[_Cell(position) for position in pair] for pair in pairs]


def _triplet_cards(triplets: list[tuple[int, ...]]) -> list[Card]:
    roles = (("anchor", None), ("positive", GREEN), ("negative", RED))
    return [
        [_Cell(position, role, color) for position, (role, color) in zip(card, roles, strict=True)]
        for card in triplets
    ]


def _picture(pictures: Pictures, batch: Batch, position: int) -> Image.Image | None:
    """The picture at a position of the batch, turned; None if it cannot be read."""
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
    """Sections from top to bottom over the whole width; the cards of a section have one size."""

    def __init__(
        self, images: dict[int, Image.Image | None], captions: dict[int, _Caption]
    ) -> None:
        self._images = images
        self._captions = captions
        self._ratio = aspect_ratio([image for image in images.values() if image is not None])

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
        # Columns by the number of pictures on a card; fewer for wide pictures.
        usual = {2: 5, 3: 4} if self._ratio < 0.7 else {2: 4, 3: 3}
        columns = {2: 3, 3: 2}[num] if self._ratio > 1.4 else usual[num]
        cards = section.cards
        if len(cards) > columns:  # Only full rows.
            cards = cards[: len(cards) // columns * columns]
        inner = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
        box_wide = (inner - 2 * (PADDING + FRAME) - (num - 1) * PADDING) // num
        lines = 1 + any(self._captions[cell.position].note for card in cards for cell in card)
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
            self._draw_cells(canvas, card, layout, corner)
            self._draw_captions(canvas, card, layout, corner)

    def _draw_cells(
        self, canvas: Image.Image, card: Card, layout: _Layout, corner: tuple[int, int]
    ) -> None:
        for cell, x in zip(card, layout.lefts(corner[0], len(card)), strict=True):
            y = corner[1]
            if cell.role:
                middle = (x + layout.box[0] // 2, y - 7)
                draw_text(canvas, middle, cell.role, TEXT, cell.color or MUTED)
            place = (x, y + layout.role_height)
            draw_picture(canvas, self._images[cell.position], place, layout.box, cell.color)

    def _draw_captions(
        self, canvas: Image.Image, card: Card, layout: _Layout, corner: tuple[int, int]
    ) -> None:
        captions = [self._captions[cell.position] for cell in card]
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
