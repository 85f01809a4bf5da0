"""`faces.csv` and `faces.html`: the result of each photograph, with pictures of the doubtful ones.

The page uses the report's style sheet, and is one file that loads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from twinlens.config import DataSettings
from twinlens.data.csv_file import write_csv
from twinlens.data.decode import open_picture
from twinlens.errors import PictureError
from twinlens.face.faces_of import FacePlace
from twinlens.face.geometry import Box, Face
from twinlens.face.layout import face_path
from twinlens.face.result import PhotographResult
from twinlens.report.canvas import GREEN, RED, Color
from twinlens.report.embedding_map import data_uri
from twinlens.report.formatting import count_of, percent
from twinlens.report.templates import page_template, style_sheet

__all__ = ["FacePage", "framed", "render_page", "write_list", "write_page"]

COLUMNS = (
    "path", "output", "outcome", "faces", "score", "left", "top", "right", "bottom", "reason",
    "frontal",
)  # fmt: skip
MOST_SHOWN = 24  # pictures of each kind
MOST_NAMED = 100  # broken files, identities
SIDE = 240  # pixels of a picture on the page


@dataclass(frozen=True, eq=False)
class FacePage:
    """Contents of the page.

    Attributes:
        title: name of the new folder.
        source: name of the data as the user gave it.
        counts: `FacesResult.as_json()`.
        names: N names as the user knows the photographs.
        files: N paths to open.
        identities: N identities.
        results: N results.
        crops: files of the faces that were written, in their order.
        settings: settings by name.
        command: command line that repeats it.
        confident: whether scores are confidences in [0, 1].
    """

    title: str
    source: str
    counts: Mapping[str, Any]
    names: Sequence[str]
    files: Sequence[str]
    identities: Sequence[str]
    results: Sequence[PhotographResult]
    crops: Sequence[Path]
    settings: Mapping[str, Any]
    command: str
    confident: bool


def write_list(
    file: Path, names: Sequence[str], places: Sequence[Path], results: Sequence[PhotographResult],
    *, keep_all: bool,
) -> None:  # fmt: skip
    """Write a CSV row for each kept face, or photograph without one, in their order.

    `faces` counts those of the photograph with a sufficient score. The box (pixels of the upright
    photograph), the score and the pose (`geometry.frontality`; only by YuNet) belong to the kept
    face, or else to the best one.
    """
    rows = (
        _list_row(name, face_path(place, number) if keep_all else place, result, face)
        for name, place, result in zip(names, places, results, strict=True)
        for number, face in enumerate(result.kept or [next(iter(result.faces), None)], 1)
    )
    write_csv(file, COLUMNS, rows)


def _list_row(name: str, place: Path, result: PhotographResult, face: Face | None) -> list[Any]:
    output = place.as_posix() if result.kept else ""
    shown: list[Any] = [""] * 5
    if face is not None:
        box = face.box
        sides = (box.left, box.top, box.right, box.bottom)
        shown = [f"{face.score:.4f}", *(f"{side:.1f}" for side in sides)]
    frontal = "" if face is None or face.frontal is None else f"{face.frontal:.2f}"
    return [name, output, result.outcome, result.num_sure, *shown, result.reason, frontal]


def write_page(file: Path, page: FacePage) -> None:
    """Write the page."""
    file.write_text(render_page(page), encoding="utf-8", errors="backslashreplace")


def render_page(page: FacePage) -> str:
    """Render the page as HTML; user text is escaped."""
    broken = [row for row, result in enumerate(page.results) if result.outcome == "broken"]
    few = _few_faces(page)
    return page_template("faces.html.j2").render(
        page=page,
        style=style_sheet(),
        lead=_lead(page),
        key=_key_numbers(page.counts),
        cautions=list(_cautions(page)),
        galleries=[gallery for gallery in _galleries(page) if gallery["shown"]],
        few=few[:MOST_NAMED],
        few_more=max(0, len(few) - MOST_NAMED),
        broken=[(page.names[row], page.results[row].reason) for row in broken[:MOST_NAMED]],
        broken_more=max(0, len(broken) - MOST_NAMED),
    )


# --- in words -----------------------------------------------------------------------------------


def _lead(page: FacePage) -> str:
    counts = page.counts
    keep = page.settings["keep"]
    if keep == "all":
        return (
            f"From {count_of(counts['pictures'], 'photograph')}, every face was cropped: "
            f"{count_of(counts['faces'], 'face')} in all."
        )
    kept = {"best": "with the best score", "largest": "that is the largest"}[keep]
    return (
        f"From {count_of(counts['pictures'], 'photograph')} of "
        f"{count_of(counts['identities'], 'identity')}, {count_of(counts['faces'], 'face')} of "
        f"{count_of(counts['identities_with_a_face'], 'identity')} "
        f"{'was' if counts['faces'] == 1 else 'were'} cropped: of each photograph the face {kept}."
    )


def _key_numbers(counts: Mapping[str, Any]) -> list[dict[str, str]]:
    names = {
        "faces": "Faces cropped",
        "several": "With several faces",
        "low_score": "Below the score",
        "without": "No face",
        "broken": "Unreadable",
    }
    whole = max(1, counts["pictures"])
    return [
        {
            "name": name,
            "value": f"{counts[key]:,}",
            "share": f"{percent(counts[key] / whole)} of all",
        }
        for key, name in names.items()
    ]


def _cautions(page: FacePage) -> Iterator[str]:
    counts = page.counts
    if not page.confident:
        yield (
            "The Haar cascade was used. Its scores are not confidences, so no face was rejected "
            "for a low score, and it misses more faces than YuNet."
        )
    if lost := counts["identities"] - counts["identities_with_a_face"]:
        yield f"{count_of(lost, 'identity')} of {counts['identities']:,} without a face."
    if few := counts["identities_with_a_face"] - counts["identities_with_two"]:
        yield f"{count_of(few, 'identity')} with only one face, which gives no genuine pair."


def _few_faces(page: FacePage) -> list[tuple[str, int, int]]:
    """Identities with fewer than two faces: name, faces, photographs."""
    before = Counter(name for name in page.identities if name)
    after = Counter[str]()
    for name, result in zip(page.identities, page.results, strict=True):
        after[name] += len(result.kept)
    return sorted((name, after[name], count) for name, count in before.items() if after[name] < 2)


# --- in pictures --------------------------------------------------------------------------------


def _galleries(page: FacePage) -> Iterator[dict[str, Any]]:
    yield _crops(page)
    for outcome, title, words in (
        (
            "without",
            "No face",
            "No face was detected here, and nothing was written.",
        ),
        (
            "low_score",
            "Below the score",
            "The detected faces have too low a score, and nothing was written.",
        ),
        (
            "several",
            "Several faces",
            "The faces in green frames were kept."
            if page.settings["keep"] == "all"
            else "The face in the green frame was kept. If it is the wrong one, crop by hand.",
        ),
    ):
        rows = [row for row, result in enumerate(page.results) if result.outcome == outcome]
        yield _gallery(page, outcome, title, words, _sample_evenly(rows), len(rows))
    if page.confident:
        kept = [row for row, result in enumerate(page.results) if result.outcome == "single"]
        surest = _by_score(page)
        rows = sorted(kept, key=surest)[: MOST_SHOWN // 2]
        words = "The kept faces with the lowest scores, of photographs with one face: check them."
        yield _gallery(page, "least", "The least certain", words, rows, len(rows))


def _crops(page: FacePage) -> dict[str, Any]:
    """Faces as they were written."""
    files = [page.crops[place] for place in _sample_evenly(range(len(page.crops)))]
    shown = [
        {"uri": data_uri(pixels, SIDE), "name": file.name, "identity": file.parent.name, "note": ""}
        for file in files
        if (pixels := _pixels(file)) is not None
    ]
    words = "The faces as they were written. Delete the files of those that are no faces."
    return {"key": "crops", "title": "Crops", "words": _with_total(words, shown, len(page.crops)),
            "shown": shown}  # fmt: skip


def _pixels(file: Path) -> NDArray[np.uint8] | None:
    """A written face, (3, H, W); None if it is gone."""
    try:
        picture = open_picture(file, max_pixels=DataSettings().max_pixels)
    except PictureError:
        return None
    return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)


def _by_score(page: FacePage) -> Callable[[int], float]:
    def score(row: int) -> float:
        return min((face.score for face in page.results[row].kept), default=0.0)

    return score


def _gallery(
    page: FacePage, key: str, title: str, words: str, rows: Sequence[int], total: int
) -> dict[str, Any]:
    shown = [picture for picture in (_tile(page, row) for row in rows) if picture]
    return {"key": key, "title": title, "words": _with_total(words, shown, total), "shown": shown}


def _with_total(words: str, shown: Sequence[object], total: int) -> str:
    more = f"{total:,} in all; {len(shown)} of them, evenly spaced, are shown."
    return f"{words} {more}" if total > len(shown) else words


def _sample_evenly(rows: Sequence[int]) -> list[int]:
    """At most `MOST_SHOWN` rows, evenly spaced."""
    if len(rows) <= MOST_SHOWN:
        return list(rows)
    return [rows[place] for place in np.linspace(0, len(rows) - 1, MOST_SHOWN).astype(int)]


def _tile(page: FacePage, row: int) -> dict[str, Any] | None:
    result = page.results[row]
    try:
        picture = open_picture(page.files[row], max_pixels=DataSettings().max_pixels)
    except PictureError:  # It was readable when the face was cropped.
        return None
    return {
        "uri": data_uri(_boxed(picture, result)),
        "name": page.names[row],
        "identity": page.identities[row],
        "note": _note(result, page.confident),
    }


def _boxed(picture: Image.Image, result: PhotographResult) -> NDArray[np.uint8]:
    """A small copy with the boxes of all faces; (3, H, W)."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    draw = ImageDraw.Draw(small)
    for face in sorted(result.faces, key=lambda face: face in result.kept):
        _draw_box(draw, face.box, scale, GREEN if face in result.kept else RED)
    return np.moveaxis(np.asarray(small), -1, 0)


def framed(picture: Image.Image, places: Sequence[FacePlace], side: int) -> Image.Image:
    """A small copy of a picture with green frames around faces, and their numbers if several."""
    scale = min(1.0, side / max(picture.size))
    small = picture.convert("RGB").resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.BICUBIC, reducing_gap=3.0,
    )  # fmt: skip
    draw = ImageDraw.Draw(small)
    for place in places:
        if place.box is None:
            continue
        _draw_box(draw, Box(*place.box), scale, GREEN)
        if place.of > 1:
            corner = place.box[0] * scale + 4, place.box[1] * scale + 2
            draw.text(corner, str(place.number), fill=GREEN, font_size=16,
                      stroke_width=2, stroke_fill="white")  # fmt: skip
    return small


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, scale: float, color: Color) -> None:
    left, top = round(box.left * scale), round(box.top * scale)
    right = max(left + 1, round(box.right * scale) - 1)
    bottom = max(top + 1, round(box.bottom * scale) - 1)
    draw.rectangle((left, top, right, bottom), outline=color, width=2)


def _note(result: PhotographResult, confident: bool) -> str:
    face = next(iter(result.kept or result.faces), None)
    score = "" if face is None else f"score {face.score:.2f}" if confident else ""
    faces = count_of(result.num_sure, "face") if result.outcome == "several" else ""
    return ", ".join(part for part in (faces, score) if part)
