"""Drawings of a gallery's answers, for `--show`.

A template is drawn from its file; if that is missing, from its thumbnail; else as an empty tile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from twinlens.data.decode import open_picture
from twinlens.errors import CalibrationError, DataError, PictureError, one_line
from twinlens.files import check_output_file, save_picture, writing_file
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.schema import quoted
from twinlens.match.answers import Candidate, Hit, IdentifyAnswer
from twinlens.match.matcher import Picture
from twinlens.measure.error_rates import matches
from twinlens.report.answer_sheet import Strip, Tile, draw_sheet
from twinlens.report.canvas import GREEN, INK, RED

__all__ = ["check_sheet", "draw_answers", "draw_hits"]

log = logging.getLogger("twinlens")

MAX_STRIPS, MAX_TILES = 50, 120
MAX_THUMBNAIL = 1 << 20
SIZE = (480, 480)  # Larger pictures are shrunk, since many are in memory at once.


def check_sheet(path: str | Path) -> None:
    """Refuse a path that cannot be written as a picture, before any work is done.

    Raises:
        DataError: no such folder, or an ending that is not a picture's.
    """
    check_output_file(path)
    ending = Path(path).suffix.lower()
    # This loads all formats of Pillow.
    if Image.registered_extensions().get(ending) not in Image.SAVE:
        raise DataError(
            f"cannot write {path}: its ending is not a picture's, give it one such as .png"
        )


def draw_answers(
    path: str | Path,
    gallery: Gallery,
    answers: Sequence[tuple[str, IdentifyAnswer | None]],
    probes: Mapping[str, Picture] | None = None,
) -> None:
    """Draw answers: each probe beside its candidates' nearest templates.

    Candidates within the threshold have a green frame, the others a red one. An identified probe
    has a green frame.

    Args:
        path: file to write, in the format of its ending.
        gallery: gallery that gave the answers.
        answers: names of the probes with their answers; None for an unreadable one.
        probes: pictures by name; a name that is missing is that of a file.
    Raises:
        DataError: the file cannot be written.
    """
    if len(answers) > MAX_STRIPS:
        log.info("%s shows the first %d of %d pictures", path, MAX_STRIPS, len(answers))
    shown = answers[:MAX_STRIPS]
    candidates = [answer.candidates[:MAX_TILES] for _, answer in shown if answer is not None]
    pictures = _templates(gallery, [candidate.path for row in candidates for candidate in row])
    probes = {} if probes is None else probes
    strips = [
        _strip(gallery, name, probes.get(name, name), answer, pictures) for name, answer in shown
    ]
    with writing_file(path) as part:
        save_picture(draw_sheet(strips), part)


def draw_hits(
    path: str | Path, gallery: Gallery, name: str, picture: Picture, hits: Sequence[Hit]
) -> None:
    """Draw the hits of a search, nearest first.

    Hits within the gallery's threshold have a green frame, the others a red one. Without a
    threshold for single templates, as with the rule "mean", there are no frames.

    Args:
        path: file to write, in the format of its ending.
        gallery: gallery that was searched.
        name: name of the query.
        picture: picture of the query.
        hits: hits of the search; the first 120 are drawn.
    Raises:
        DataError: the file cannot be written.
    """
    if len(hits) > MAX_TILES:
        log.info("%s shows the nearest %d of %d", path, MAX_TILES, len(hits))
    pictures = _templates(gallery, [hit.path for hit in hits[:MAX_TILES]])
    threshold = _threshold(gallery)
    tiles = tuple(
        Tile(
            pictures.get(hit.path),
            one_line(hit.identity),
            (f"distance {hit.distance:.4f}",),
            None if threshold is None else GREEN if matches(hit.distance, threshold) else RED,
        )
        for hit in hits[:MAX_TILES]
    )
    probe = Tile(_small(gallery, picture), "query", missing="unreadable")
    count = f"the {len(hits)} nearest" if hits else "nothing found"
    green = "" if threshold is None else f"; green: within the threshold {threshold:.4f}"
    strip = Strip(one_line(name, None), count + green, INK, probe, tiles)
    with writing_file(path) as part:
        save_picture(draw_sheet([strip]), part)


def _strip(
    gallery: Gallery,
    name: str,
    picture: Picture,
    answer: IdentifyAnswer | None,
    pictures: Mapping[str, Image.Image | None],
) -> Strip:
    name = one_line(name, None)
    if answer is None:
        return Strip(f"{name}: not read", "", RED, Tile(None, "?", missing="unreadable"), ())
    color = GREEN if answer.verdict == "identified" else RED
    verdict = answer.verdict if answer.identity is None else one_line(answer.identity)
    place = None if answer.face is None else answer.face.box
    probe = Tile(_small(gallery, picture, place), verdict, (Path(name).name,), color, "unreadable")
    tiles = tuple(
        Tile(
            pictures.get(candidate.path),
            one_line(candidate.identity),
            _notes(candidate),
            GREEN if matches(candidate.distance, answer.threshold) else RED,
        )
        for candidate in answer.candidates[:MAX_TILES]
    )
    return Strip(f"{verdict}: {name}", one_line(answer.reason, None), color, probe, tiles)


def _threshold(gallery: Gallery) -> float | None:
    """The threshold for single templates; None if the gallery has none."""
    if gallery.state().rule == "mean":
        return None
    try:
        return gallery.threshold().value
    except CalibrationError:
        return None


def _notes(candidate: Candidate) -> tuple[str, ...]:
    notes, probability = (f"distance {candidate.distance:.4f}",), candidate.probability
    return notes if probability is None else (*notes, f"probability {100 * probability:.1f} %")


def _templates(gallery: Gallery, paths: Iterable[str]) -> dict[str, Image.Image | None]:
    """The picture at each path, or its thumbnail, or None."""
    # Only a full path is that of a file: others are names of uploads, or of pixels.
    pictures = {
        path: _small(gallery, path) if Path(path).is_absolute() else None
        for path in dict.fromkeys(paths)
    }
    missing = [quoted(path) for path, picture in pictures.items() if picture is None]
    if missing:
        where = f"thumbnail IS NOT NULL AND path IN ({', '.join(missing)})"
        rows = gallery.store.find(where, columns=["path", "thumbnail"])
        for row in rows.to_pylist():
            pictures[row["path"]] = open_picture(row["thumbnail"], max_pixels=MAX_THUMBNAIL)
    return pictures


def _small(
    gallery: Gallery, picture: Picture, box: tuple[float, float, float, float] | None = None
) -> Image.Image | None:
    """A picture made small, or the face in a box of it; None if it cannot be read."""
    try:
        opened = gallery.matcher.open(picture, target=SIZE if box is None else None)
    except PictureError:
        return None
    small = opened.copy() if box is None else opened.crop(box)
    small.thumbnail(SIZE)
    return small
